"""The printed form of an analysis: a table of at most 120 columns, verdicts, tests, notes and a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..storage.metrics import METRICS
from .learning import UNTIL
from .order import RESPONSES, LearningOrder, OperatorOrder
from .statistics import LEAST_PAIRS
from .table import Row
from .verdicts import is_representative


def describe(order: LearningOrder, rows: Sequence[Row], by_rule: Sequence[Row] = ()) -> str:
    """The rows as a table, the verdicts with their reasons, the paired tests, and the notes.

    Args:
        order: the measured order of learning.
        rows: the rows of :func:`~fadeviz.analysis.table.summary_rows`.
        by_rule: the rows of :func:`~fadeviz.analysis.table.verdicts_by_rule`; empty leaves out their table.
    """
    steps, rules = order.steps, order.rules
    width = max(len("operator"), *(len(row["operator"]) for row in rows)) + 2
    metrics = _metric_columns(rows)
    lines = [
        f"{order.layer_title}, {order.kind}: {len(order.images)} images, {len(steps)} snapshots, "
        f"steps {steps[0]} to {steps[-1]}",
        *([] if rules.responses == "plain" else [f"{rules.responses}: {RESPONSES[rules.responses]}"]),
        *([] if rules.until == "end" else [f"until {rules.until}: {UNTIL[rules.until]}"]),
        "",
        f"{'operator':{width}}{'seeds':>5}  {'edge t50':>9}{'interior t50':>14}{'lead (95 %)':>24}"
        f"{'centroid':>14}{'checker':>9}{metrics[0]}",
    ]
    for row, operator, cells in zip(rows, order.operators, metrics[1:], strict=True):
        lines.append(f"{row['operator']:{width}}{len(row['seeds']):>5}  {_times(operator)}"
                     f"{_pair(row, 'centroid'):>14}{_digits(row['checkerboard_at_end']):>9}{cells}")  # fmt: skip
    lines.append("")
    for row in rows:
        lines.append(f"{row['operator']}: {row['verdict']} ({row['reason']})")
        if row["spliced"]:
            lines.append(f"  frames of {', '.join(row['spliced'])} do not look like those of a single training")
    lines += _comparison_lines(order)
    lines += _rules_table(by_rule, width)
    lines += ["", *(f"note: {note}" for note in order.notes), *_LEGEND]
    return "\n".join(lines)


def _times(operator: OperatorOrder) -> str:
    """The columns of the two times and the lead; those of too few maps are left empty."""
    lead, maps = operator.lead_interval, operator.lead.size
    edge, interior = (
        format_steps(t50.estimate) if is_representative(t50, maps) else "-"
        for t50 in (operator.edge_t50, operator.interior_t50)
    )
    interval = f"{format_steps(lead.estimate)} [{format_steps(lead.low)}, {format_steps(lead.high)}]"
    return f"{edge:>9}{interior:>14} {interval if is_representative(lead, maps) else '-':>23}"


def _metric_columns(rows: Sequence[Row]) -> list[str]:
    """The right end of the table, heading first: the test metrics that some row has, or empty columns for them."""
    titles = {name: metric.column for name, metric in METRICS.items() if metric.column and name in rows[0]}
    names = [name for name in titles if any(row[name] is not None for row in rows)] or list(titles)
    lines = [""] * (1 + len(rows))
    for name in names:
        values = [row[name] for row in rows]
        cells = [
            titles[name],
            *("-" if v is None else v if isinstance(v, str) else METRICS[name].text(v) for v in values),
        ]
        width = max(7, 2 + max(map(len, cells)))
        lines = [f"{line}{cell:>{width}}" for line, cell in zip(lines, cells, strict=True)]
    return lines


def _rules_table(by_rule: Sequence[Row], width: int) -> list[str]:
    """A row for each operator, a column for each kind of responses."""
    if not by_rule:
        return []
    columns = list(dict.fromkeys(row["responses"] for row in by_rule))
    untils = list(dict.fromkeys(row["until"] for row in by_rule))
    widths = [max(21, len(column) + 2) for column in columns]

    def line(start: str, cells: Sequence[str]) -> str:
        return f"{start:{width}}" + "".join(f"{cell:{wide}}" for cell, wide in zip(cells, widths, strict=True)).rstrip()

    lines = ["", f"verdict by other rules (columns: responses; until {' / '.join(untils)}):", line("", columns)]
    for name in dict.fromkeys(row["operator"] for row in by_rule):
        words = {(row["responses"], row["until"]): _SHORT[row["verdict"]] for row in by_rule if row["operator"] == name}
        lines.append(line(name, [" / ".join(words[column, until] for until in untils) for column in columns]))
    return [*lines, "outline: outline first; interior: interior first; start: there at step 0; ?: undecided"]


_SHORT = {
    "outline first": "outline",
    "interior first": "interior",
    "together": "together",
    "already there at step 0": "start",
    "undecided": "?",
}


def _comparison_lines(order: LearningOrder) -> list[str]:
    """The first operator against each of the others, where there are enough pairs."""
    lines: list[str] = []
    for comparison in order.comparisons:
        if comparison.first != order.operators[0].name:
            continue  # there are as many as pairs of operators
        for unit, test in comparison.tests.items():
            if test.count >= LEAST_PAIRS:
                method = "exact" if test.exact else "sampled"
                lines.append(
                    f"lead of {comparison.first} minus that of {comparison.second}, paired by {unit}: "
                    f"{format_steps(test.difference)} steps, p = {test.p:.3g} ({method}, {test.count} pairs)"
                )
    more = sum(len(comparison.tests) for comparison in order.comparisons) - len(lines)
    if lines:
        lines += [
            "Tests paired by image generalise to other images but not to other trainings; by seed, vice versa. The",
            "p-values are not corrected for the number of comparisons.",
        ]
    if more:
        lines.append(
            f"{more} more tests, of other pairs of operators or of fewer than {LEAST_PAIRS} pairs: see the JSON"
        )
    return lines


_LEGEND = (
    "t50: step at which half of a response's rise from step 0 to its end is done; -: too few maps. Edge response: how",
    "well the steepness of the map detects the contour; interior response: how well its values separate inside from",
    "outside. lead: interior t50 minus edge t50, in steps, over the maps that have both; positive: outline first; inf:",
    "not by the end. centroid: mean frequency at start > end, in cycles per pixel. checker: checkerboard at the end,",
    "share of the variance within 2 x 2 pixels that repeats with the upsampling grid; 1: nothing but a lattice.",
)


def format_steps(value: float) -> str:
    """A number of steps: whole from 10, censored with its sign, ``-`` if undefined."""
    if math.isnan(value):
        return "-"
    return f"{value:+.0f}" if math.isinf(value) else f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}"


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 3) + 0.0:.3f}"


def _pair(row: Row, name: str) -> str:
    return f"{_digits(row[f'{name}_at_start'])} > {_digits(row[f'{name}_at_end'])}"
