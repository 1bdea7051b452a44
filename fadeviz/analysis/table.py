"""The measures of several runs as one row an operator: for a table, JSON or CSV."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.metrics import FIGURES, TESTS
from ..storage.stored_run import distinct_paths
from .curves import Course, operator_courses
from .learning import UNTIL, LearningTimes, State
from .order import RESPONSES, LearningOrder, OperatorOrder, judge_again
from .splices import find_splice
from .statistics import Interval, bootstrap_interval
from .verdicts import MIN_LEADS

Row = dict[str, Any]
Courses = Mapping[str, Course]


def summary_rows(order: LearningOrder, courses: Sequence[Courses] | None = None) -> list[Row]:
    """One flat row an operator; numbers that are undefined are None, those beyond the training "inf" or "-inf".

    Each ``*_states`` says how many maps a response was learned in, stood at step 0, never came, came and went, or was
    undefined: a lead speaks for the maps it exists in alone. Starts and ends are medians over seeds and images.

    Args:
        order: what was measured.
        courses: of each operator, from :func:`~fadeviz.analysis.curves.operator_courses`; None measures them now.
    """
    if courses is None:
        courses = [operator_courses(order, operator) for operator in order.operators]
    tested = _tested(courses)
    return [_row(operator, order, one, tested) for operator, one in zip(order.operators, courses, strict=True)]


def _tested(courses: Sequence[Courses]) -> list[str]:
    """The figures of tests that a row has: all short ones of the tasks that the networks were tested for."""
    tests = [test for test in TESTS.values() if any(test.headline in one for one in courses)]
    return [name for test in tests or [TESTS["segmentation"]] for name, one in test.figures.items() if one.brief]


def _row(operator: OperatorOrder, order: LearningOrder, courses: Courses, tested: Sequence[str]) -> Row:
    ends = {}
    for name in ("edge", "interior", "edge_elsewhere", "interior_elsewhere", "centroid", "checkerboard", "nyquist"):
        values = courses[name].middle if name in courses else np.array([np.nan])
        ends[f"{name}_at_start"], ends[f"{name}_at_end"] = number(values[0]), number(values[-1])
    change = courses["pixel_change"].values if "pixel_change" in courses else np.array([np.nan])
    return {
        "operator": operator.name,
        "title": operator.title,
        "seeds": list(operator.seeds),
        "images": len(order.images),
        "verdict": operator.verdict.word,
        "reason": operator.verdict.reason,
        **_interval("lead", operator.lead_interval),
        **_interval("edge_t50", operator.edge_t50),
        **_interval("interior_t50", operator.interior_t50),
        **_early_and_late("edge", operator.edge_times),
        **_early_and_late("interior", operator.interior_times),
        "edge_states": _states(operator.edge_times),
        "interior_states": _states(operator.interior_times),
        **ends,
        "frame_change": _median(change),
        **{name: number(courses[name].values[:, -1].mean()) if name in courses else None for name in tested},
        "spliced": _spliced(operator, order, courses),
        "runs": [run.run_id for run in operator.runs],
    }


def _spliced(operator: OperatorOrder, order: LearningOrder, courses: Courses) -> list[str]:
    """The folders of runs whose frames do not look like a single training."""
    known = courses.get("frame_correlation")
    return [
        name
        for number, (name, run) in enumerate(zip(distinct_paths(operator.runs), operator.runs, strict=True))
        if find_splice(
            run,
            order.layer,
            order.kind,
            order.call,
            to_next=None if known is None or known.steps != run.steps else known.values[number, 1:],
        ).found
    ]


def other_rules(order: LearningOrder) -> list[Row]:
    """The verdict and the lead of every operator by every rule, those in ``RESPONSES`` times those in ``UNTIL``."""
    rows = []
    for which, until in itertools.product(RESPONSES, UNTIL):
        same = (which, until) == (order.rules.which, order.rules.until)
        for operator in (order if same else judge_again(order, which, until)).operators:
            rows.append(
                {
                    "operator": operator.name,
                    "responses": which,
                    "until": until,
                    "verdict": operator.verdict.word,
                    "reason": operator.verdict.reason,
                    **_interval("lead", operator.lead_interval),
                }
            )
    return rows


def course_rows(courses: Courses) -> dict[str, Row]:
    """The courses of one operator for JSON: steps, median and the ends of its interval; what is undefined is None."""
    return {
        name: {
            "steps": list(course.steps),
            **{part: [number(v) for v in getattr(course, part).tolist()] for part in ("middle", "low", "high")},
        }
        for name, course in courses.items()
    }


def _interval(name: str, interval: Interval) -> Row:
    return {
        name: number(interval.estimate),
        f"{name}_low": number(interval.low),
        f"{name}_high": number(interval.high),
        f"{name}_maps": interval.count,
    }


def _early_and_late(name: str, times: Sequence[Sequence[LearningTimes]]) -> Row:
    """The median step of each share of the way but the half: ``edge_t10``, ``edge_t90``."""
    levels = times[0][0].levels
    table = np.array([one.times for row in times for one in row]).T
    medians = {f"{name}_t{100 * level:g}": row for level, row in zip(levels, table, strict=True) if level != 0.5}
    return {key: number(bootstrap_interval(row[None], resamples=1).estimate) for key, row in medians.items()}


def _states(times: Sequence[Sequence[LearningTimes]]) -> dict[str, int]:
    counts = {state.value: 0 for state in State}
    for row in times:
        for one in row:
            counts[one.state.value] += 1
    return {state: count for state, count in counts.items() if count}


def _median(values: NDArray[np.floating]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def number(value: float) -> float | str | None:
    """A value for JSON, which has no infinities: a time beyond the training ("inf") is not the same as none (None)."""
    return value if math.isfinite(value) else None if math.isnan(value) else "inf" if value > 0 else "-inf"


def describe(order: LearningOrder, rows: Sequence[Row], others: Sequence[Row] = ()) -> str:
    """The rows as a table of at most 120 columns, the comparisons, and what has to be said beside them.

    Args:
        order: what was measured.
        rows: from :func:`summary_rows`.
        others: from :func:`other_rules`; they make a small table of verdicts.
    """
    steps = order.steps
    wide = max(len("operator"), *(len(row["operator"]) for row in rows)) + 2
    tests = _test_columns(rows)
    lines = [
        f"{order.layer_title}, {order.kind}: {len(order.images)} images, {len(steps)} snapshots, "
        f"steps {steps[0]} to {steps[-1]}",
        *([] if order.rules.which == "plain" else [f"{order.rules.which}: {RESPONSES[order.rules.which]}"]),
        *([] if order.rules.until == "end" else [f"until {order.rules.until}: {UNTIL[order.rules.until]}"]),
        "",
        f"{'operator':{wide}}{'seeds':>5}  {'edge t50':>9}{'interior t50':>14}{'lead (95 %)':>24}"
        f"{'centroid':>14}{'checker':>9}{tests[0]}",
    ]
    for row, operator, tested in zip(rows, order.operators, tests[1:], strict=True):
        lead, maps = operator.lead_interval, operator.lead.size
        between = f"{_steps(lead.estimate)} [{_steps(lead.low)}, {_steps(lead.high)}]"
        edge, interior = (
            _steps(t50.estimate) if speaks_for(t50, maps) else "-" for t50 in (operator.edge_t50, operator.interior_t50)
        )
        lines.append(
            f"{row['operator']:{wide}}{len(row['seeds']):>5}  {edge:>9}{interior:>14}"
            f" {between if speaks_for(lead, maps) else '-':>23}"
            f"{_pair(row, 'centroid'):>14}{_digits(row['checkerboard_at_end']):>9}{tested}"
        )
    lines.append("")
    for row in rows:
        lines.append(f"{row['operator']}: {row['verdict']} ({row['reason']})")
        if row["spliced"]:
            lines.append(f"  frames of {', '.join(row['spliced'])} do not look like one training")
    lines += _comparison_lines(order)
    lines += _rules_table(others, wide)
    lines += ["", *(f"note: {note}" for note in order.notes), *_LEGEND]
    return "\n".join(lines)


def _test_columns(rows: Sequence[Row]) -> list[str]:
    """The right end of the table, heading first: the tests' figures that some row has, or empty places for them."""
    titles = {name: one.column for name, one in FIGURES.items() if one.column and name in rows[0]}
    names = [name for name in titles if any(row[name] is not None for row in rows)] or list(titles)
    lines = [""] * (1 + len(rows))
    for name in names:
        values = [row[name] for row in rows]
        cells = [
            titles[name],
            *("-" if v is None else v if isinstance(v, str) else FIGURES[name].text(v) for v in values),
        ]
        width = max(7, 2 + max(map(len, cells)))
        lines = [f"{line}{cell:>{width}}" for line, cell in zip(lines, cells, strict=True)]
    return lines


def speaks_for(interval: Interval, maps: int) -> bool:
    """Whether a median is of enough of an operator's maps to stand for it."""
    return interval.count >= MIN_LEADS and 2 * interval.count >= maps


def _rules_table(others: Sequence[Row], wide: int) -> list[str]:
    """One row an operator, one column a rule."""
    if not others:
        return []
    columns = list(dict.fromkeys(row["responses"] for row in others))
    untils = list(dict.fromkeys(row["until"] for row in others))
    lines = ["", f"verdict by other rules (--responses; until {' / '.join(untils)}):"]
    lines.append(" " * wide + "".join(f"{column:21}" for column in columns).rstrip())
    for name in dict.fromkeys(row["operator"] for row in others):
        words = {(row["responses"], row["until"]): _SHORT[row["verdict"]] for row in others if row["operator"] == name}
        told = [" / ".join(words[column, until] for until in untils) for column in columns]
        lines.append(f"{name:{wide}}" + "".join(f"{one:21}" for one in told).rstrip())
    return [*lines, "outline: outline first; interior: interior first; start: there at step 0; ?: undecided"]


_SHORT = {
    "outline first": "outline",
    "interior first": "interior",
    "together": "together",
    "already there at step 0": "start",
    "undecided": "?",
}


def _comparison_lines(order: LearningOrder) -> list[str]:
    """The first operator against each of the others, where there are pairs enough to say anything."""
    lines: list[str] = []
    for comparison in order.comparisons:
        if comparison.first != order.operators[0].name:
            continue  # here they would be as many as there are pairs of operators
        for unit, test in comparison.tests.items():
            if test.count >= _LEAST_PAIRS:
                kind = "exact" if test.exact else "sampled"
                lines.append(
                    f"lead of {comparison.first} less that of {comparison.second}, paired by {unit}: "
                    f"{_steps(test.difference)} steps, p = {test.p:.3g} ({kind}, {test.count} pairs)"
                )
    more = sum(len(comparison.tests) for comparison in order.comparisons) - len(lines)
    if lines:
        lines += [
            "Tests paired by image generalise to other images but not to other trainings; by seed, vice versa. The",
            "p-values are not corrected for the number of comparisons.",
        ]
    if more:
        lines.append(
            f"{more} more tests, of other pairs of operators or of fewer than {_LEAST_PAIRS} pairs: see --json"
        )
    return lines


_LEAST_PAIRS = 6
"""Of fewer pairs no sign-flip test can fall below p = 0.05."""

_LEGEND = (
    "t50: step at which a response has come half of its way from step 0 to its end; - of too few maps to say. Edge",
    "response: how well the steepness of the map marks the contour; interior response: how well its values tell inside",
    "from outside. lead: interior t50 less edge t50, steps, over the maps that have both; positive is outline first;",
    "inf: not by the end. centroid: mean frequency at start > end, cycles a pixel; checker: at the end, share of the",
    "variance within 2 x 2 pixels that repeats nearby with the upsampling grid; 1 for a pure lattice.",
)


def _steps(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:+.0f}" if math.isinf(value) else f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}"


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 3) + 0.0:.3f}"


def _pair(row: Row, name: str) -> str:
    show: Callable[[float | None], str] = _digits
    return f"{show(row[f'{name}_at_start'])} > {show(row[f'{name}_at_end'])}"
