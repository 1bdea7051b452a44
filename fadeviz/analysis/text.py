"""The printed form of an analysis: a table, a sentence for each operator, comparisons, notes and a legend."""

from __future__ import annotations

from collections.abc import Sequence

from ..storage.metrics import METRICS
from ..storage.several_runs import describe_snapshots
from .onset import Onset, Reading
from .onsets import Comparison, Onsets
from .sentences import advise, describe_operator, format_arrival, format_factor
from .table import Row

MOST_COMPARISONS = 12
"""Most pairs of operators that are printed; the JSON file holds all."""


def describe(onsets: Onsets, rows: Sequence[Row]) -> str:
    """The rows as a table, the verdicts as sentences, the comparisons, and the notes.

    Args:
        onsets: the measured onsets.
        rows: the rows of :func:`~fadeviz.analysis.table.summary_rows`.
    """
    steps = onsets.steps
    lines = [
        f"{onsets.layer_title}, {onsets.kind}: {describe_images(onsets)}, {describe_snapshots(steps)}",
        "",
        *_table(onsets, rows),
        "",
    ]
    for row, operator in zip(rows, onsets.operators, strict=True):
        for sentence, onset in zip(describe_operator(operator, steps), (operator.map, operator.readout), strict=False):
            advice = "" if onset is None else advise(onset, steps)
            lines += [sentence, *([f"  To decide: {advice}."] if advice else [])]
        if row["spliced"]:
            lines.append(f"  Frames of {', '.join(row['spliced'])} do not look like those of a single training.")
    lines += _comparison_lines(onsets.comparisons)
    lines += _spectrum_table(rows)
    return "\n".join([*lines, "", *(f"note: {note}" for note in onsets.notes), *_LEGEND])


def describe_images(onsets: Onsets) -> str:
    """The number of images, and of those that are measured: ``11 of 12 images``."""
    count, measured = len(onsets.images), len(onsets.kept)
    return f"{'' if measured == count else f'{measured} of '}{count} image{'s' * (count != 1)}"


def _table(onsets: Onsets, rows: Sequence[Row]) -> list[str]:
    """A line for each operator's maps, and one below it for the readout of its features."""
    with_readout = any(operator.readout is not None for operator in onsets.operators)
    metrics = metric_columns(rows)
    cells = [["operator", "seeds", "outline", "by step", "interior", "by step", "outline earlier by", *metrics[0]]]
    ends = ["verdict"]
    for operator, tested in zip(onsets.operators, metrics[1:], strict=True):
        name = f"{operator.name}, map" if with_readout else operator.name
        cells.append([name, str(len(operator.seeds)), *onset_cells(operator.map, onsets.steps), *tested])
        ends.append(str(operator.map.verdict))
        if operator.readout is not None:
            cells.append(["  features", "", *onset_cells(operator.readout, onsets.steps), *[""] * len(tested)])
            ends.append(str(operator.readout.verdict))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row, verdict in zip(cells, ends, strict=True):
        first = f"{row[0]:<{widths[0]}}"
        rest = "".join(f"{cell:>{width + 2}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append(f"{first}{rest}  {verdict}")
    return lines


def onset_cells(onset: Onset, steps: Sequence[int]) -> list[str]:
    """Cells of the table: the levels and the arrival of outline and interior, and the lead as a factor."""
    # A ratio of a step to no step at all says nothing, nor does one of two steps that no snapshot tells apart.
    unknown = onset.outline.from_start or onset.interior.from_start or onset.verdict.label == "both within one gap"
    factor = "-" if unknown else format_factor(onset.lead)
    return [
        _levels(onset.outline), _by(onset.outline, steps), _levels(onset.interior), _by(onset.interior, steps),
        factor if factor == "-" else f"{factor} x",
    ]  # fmt: skip


def _levels(reading: Reading) -> str:
    """Response at the first snapshot, top and end; in brackets where it is not shown, "dark" where it was negated."""
    if not reading.measured:
        return "-"
    text = " > ".join(f"{round(value, 2) + 0.0:.2f}" for value in (reading.start, reading.top, reading.end))
    text = f"dark {text}" if reading.signs.mean() < 0 else text
    return text if reading.shown else f"({text})"


def _by(reading: Reading, steps: Sequence[int]) -> str:
    if not reading.shown:
        return "-"
    return "start" if reading.from_start else format_arrival(reading, steps)


def metric_columns(rows: Sequence[Row]) -> list[list[str]]:
    """Heading and cells of the test metrics that some row has."""
    names = [
        name for name, metric in METRICS.items() if metric.column and any(row.get(name) is not None for row in rows)
    ]
    lines = [[METRICS[name].column for name in names]]
    for row in rows:
        values = [row[name] for name in names]
        lines.append(
            [
                "-" if value is None else value if isinstance(value, str) else METRICS[name].text(value)
                for name, value in zip(names, values, strict=True)
            ]
        )
    return lines


def _comparison_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """The pairs of operators whose leads differ, and how many do not."""
    if not comparisons:
        return []
    different = [comparison for comparison in comparisons if comparison.p <= 0.05]
    lines = [""]
    for comparison in clearest(different):
        where = "" if comparison.kind != "readout" else " (features)"
        lines.append(f"{comparison.first} against {comparison.second}{where}: {describe_difference(comparison)}")
    if len(different) > MOST_COMPARISONS:
        more = len(different) - MOST_COMPARISONS
        lines.append(f"{more} more pair{'s' * (more > 1)} of operators differ{'s' * (more == 1)} (p <= 0.05)")
    same = len(comparisons) - len(different)
    if same:
        pairs = "1 other pair" if same == 1 and different else f"{same} other pairs" if different else f"{same} pairs"
        pairs = "1 pair" if same == 1 and not different else pairs
        lines.append(f"no difference in lead is shown for {pairs} of operators (p > 0.05)")
    corrected = f", corrected for {len(comparisons)} comparisons (Holm)" if len(comparisons) > 1 else ""
    lines.append(f"p-values: paired over seeds and images{corrected}")
    return lines


def clearest(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with the lowest p-values, at most ``MOST_COMPARISONS``, in the order given."""
    chosen = sorted(range(len(comparisons)), key=lambda index: comparisons[index].p)[:MOST_COMPARISONS]
    return [comparisons[index] for index in sorted(chosen)]


def describe_difference(comparison: Comparison) -> str:
    """How two leads differ: ``relative to the interior, the outline comes 2.0 (1.5 to 2.7) times earlier, ...``."""
    later = comparison.difference.value < 0
    factor = format_factor(comparison.difference, inverse=later)
    word = "later" if later else "earlier"
    return f"relative to the interior, the outline comes {factor} times {word}, p = {comparison.p:.2g}"


def _spectrum_table(rows: Sequence[Row]) -> list[str]:
    """How fine the maps are, and how much of a checkerboard they have."""
    names = ("centroid", "checkerboard", "nyquist")
    if all(row[f"{name}_at_end"] is None for row in rows for name in names):
        return []
    width = max(len("maps"), *(len(row["operator"]) for row in rows)) + 2
    lines = ["", f"{'maps':{width}}{'centroid':>14}{'checkerboard':>16}{'grid lines':>16}"]
    for row in rows:
        lines.append(
            f"{row['operator']:{width}}{_pair(row, 'centroid'):>14}{_pair(row, 'checkerboard'):>16}"
            f"{_pair(row, 'nyquist'):>16}"
        )
    return lines


_LEGEND = (
    "outline: just inside the contour against just outside; interior: deep inside against well outside. Both: own mask",
    "less other images' masks (1: a perfect map, 0: chance) at the first snapshot > top > end; in brackets: not shown;",
    "dark: the maps are dark on the object, and negated. by step: arrival with its 95 % interval; start: there at the",
    "first snapshot. outline earlier by: ratio of the two arrivals with its 95 % interval.",
    "centroid: mean frequency of the map at start > end, in cycles per pixel. checkerboard: share of the variance",
    "within 2 x 2 pixels that repeats with the upsampling grid; grid lines: power on the grid's lines over that beside",
    "them.",
)


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 3) + 0.0:.3f}"


def _pair(row: Row, name: str) -> str:
    return f"{_digits(row[f'{name}_at_start'])} > {_digits(row[f'{name}_at_end'])}"
