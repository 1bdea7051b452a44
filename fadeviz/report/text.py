"""The sentences, numbers and tables of a page, from an analysis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..analysis.onsets import Onsets
from ..analysis.result import Analysis
from ..analysis.sentences import advise, describe_operator
from ..analysis.text import clearest, describe_difference, metric_columns, onset_cells
from ..render.frames import spread
from ..render.labels import format_number
from ..render.panels import KymographPanel
from ..storage.metrics import CLASS_METRICS, class_metrics
from ..storage.stored_run import StoredRun

MAX_STEPS = 200
"""Most snapshots shown as maps and as points of a curve; the measures use all of them."""

_MINUS = "\N{MINUS SIGN}"
_LONGEST = 200


def plain(value: object, longest: int = _LONGEST) -> str:
    """A value of a run as text: without control characters, and shortened to ``longest`` characters."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def shown_indices(count: int) -> list[int]:
    """The indices of the snapshots that a page shows of ``count``: all, or ``MAX_STEPS`` evenly spaced ones."""
    return spread(range(count), MAX_STEPS)


def shown_steps(onsets: Onsets) -> tuple[tuple[int, ...], list[str]]:
    """The steps whose maps a page shows, at most ``MAX_STEPS``, and notes on what is left out."""
    shown, count = tuple(onsets.steps[index] for index in shown_indices(len(onsets.steps))), len(onsets.steps)
    if len(shown) == count:
        return shown, []
    return shown, [
        f"{count - len(shown):,} of {count:,} snapshots: the maps and curves show {len(shown)}, evenly spaced; "
        "all of them are measured"
    ]


# --- the verdict ------------------------------------------------------------------------------------------------------

_FEATURES_HOLD = "what the features hold (linear readout)"


def verdict_rows(onsets: Onsets, panels: Sequence[KymographPanel]) -> list[dict[str, Any]]:
    """For each operator its title and one or two halves: what its maps show, and what its features hold.

    A half has its name ``row``, the verdict as a ``word``, the ``sentence``, and the index of its distance-time map
    among the panels (None without one).
    """
    indices = iter(range(len(panels)))
    names = ("what the channel mean shows" if onsets.kind == "feature" else "what the maps show", _FEATURES_HOLD)
    rows = []
    for operator in onsets.operators:
        parts = ((operator.map, operator.kymograph), (operator.readout, operator.readout_kymograph))
        sentences = [
            _without_subject(sentence, operator.title) for sentence in describe_operator(operator, onsets.steps)
        ]
        halves = []
        for name, (onset, kymograph), sentence in zip(names, parts, [*sentences, ""], strict=False):
            if onset is not None:
                advice = advise(onset, onsets.steps)
                sentence += f" To decide: {advice}." if advice else ""
                panel = None if kymograph is None else next(indices)
                halves.append(
                    {"row": name, "word": str(onset.verdict), "sentence": plain(sentence, 600), "panel": panel}
                )
        rows.append({"title": plain(operator.title), "halves": halves})
    return rows


def _without_subject(sentence: str, title: str) -> str:
    """``FADE: the outline is ...`` as ``The outline is ...``, because the operator is the heading."""
    text = sentence.removeprefix(title).partition(": ")[2]  # a title may hold a colon, too
    return f"{text[:1].upper()}{text[1:]}"


def onset_table(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    """The table of all operators, as ``print(analysis)`` shows it: the head, and a row for each half."""
    onsets = analysis.onsets
    metrics = metric_columns(analysis.table)
    levels = f"step {onsets.steps[0]:,} → top → end"
    head = ["operator", "seeds", f"outline: {levels}", "by step", f"interior: {levels}", "by step"]
    rows = []
    for operator, tested in zip(onsets.operators, metrics[1:], strict=True):
        for onset in filter(None, (operator.map, operator.readout)):
            first = onset is operator.map
            name = plain(operator.title) if first else f"{plain(operator.title)}, features"
            cells = [_typeset(cell) for cell in onset_cells(onset, onsets.steps)]
            count = str(len(operator.seeds))
            rows.append([name, count, *cells, str(onset.verdict), *(tested if first else [""] * len(tested))])
    return [*head, "outline earlier by", "verdict", *metrics[0]], rows


class ClassTable(NamedTuple):
    """The metrics of each class.

    Attributes:
        head: the headings of the columns.
        rows: a name and the values of each class that was tested, that of the lowest mean IoU first.
        notes: how to read it, and what it leaves out, one sentence each.
    """

    head: list[str]
    rows: list[list[str]]
    notes: list[str]


_SHOWN = ("iou", "boundary_iou")
"""The metrics of a class in the table, the one that orders it first."""


def class_table(onsets: Onsets) -> ClassTable | None:
    """The IoU of each class at the last test of each operator, means over its seeds; None for two classes."""
    tests = [[_by_class(run) for run in operator.runs] for operator in onsets.operators]
    count = max((len(values) for group in tests for test in group for values in test.values()), default=0)
    if not count:
        return None
    means = np.array([[_mean([test.get(name, ()) for test in group], count) for name in _SHOWN] for group in tests])
    order = _mean(list(means[:, 0]), count)
    tested = [label for label in np.argsort(order, kind="stable").tolist() if not np.isnan(order[label])]
    titles = [plain(operator.title, 60) for operator in onsets.operators]
    head = [f"{title}: {CLASS_METRICS[name].title}" for title in titles for name in _SHOWN]
    if len(titles) == 1:
        head = [CLASS_METRICS[name].title for name in _SHOWN]
    rows = [[_class_name(onsets, label), *map(_share, means[:, :, label].ravel())] for label in tested]
    several = any(len(group) > 1 for group in tests)
    notes = [f"IoU and Boundary IoU of the pixels of all test images together{', means over the seeds' * several}."]
    absent = [_class_name(onsets, label) for label in range(count) if label not in tested]
    if absent:
        few = ", ".join(absent[:_ABSENT]) + (f" and {len(absent) - _ABSENT} more" if len(absent) > _ABSENT else "")
        notes.append(f"Neither in the test masks nor predicted: {few}.")
    return ClassTable(["class", *head], rows, notes)


_ABSENT = 12
"""Most classes that are named where they are left out."""


def _by_class(run: StoredRun) -> dict[str, list[float | None]]:
    """The metrics of each class in a run's last test; empty if it has none."""
    return next(filter(None, map(class_metrics, reversed(run.metrics()))), {})


def _mean(rows: Sequence[Sequence[float | None] | NDArray[np.float64]], count: int) -> NDArray[np.float64]:
    """The mean of the rows' known values in each of ``count`` columns; NaN where none is known."""
    values = np.full((len(rows), count), np.nan)
    for row, own in zip(values, rows, strict=True):
        row[: len(own)] = np.array(own, np.float64)
    known = ~np.isnan(values)
    sums = np.where(known, values, 0).sum(0)
    return np.divide(sums, known.sum(0), out=np.full(count, np.nan), where=known.any(0))


def _class_name(onsets: Onsets, label: int) -> str:
    """The name of a class; all its names, where the runs have different ones."""
    runs = [run for operator in onsets.operators for run in operator.runs]
    named = [run for run in runs if run.info.data.classes] or runs[:1]
    return plain(" / ".join(dict.fromkeys(run.info.data.class_name(label) for run in named)), 60)


def _share(value: float) -> str:
    return "–" if np.isnan(value) else CLASS_METRICS["iou"].text(value)


def _typeset(cell: str) -> str:
    """A cell of the printed table with a true minus sign, multiplication sign and dash, and arrows between levels."""
    if cell == "-":
        return "–"
    # ">60" in the next column is a step, so that levels have arrows between them.
    return (f"{cell[:-2]} ×" if cell.endswith(" x") else cell).replace("-", _MINUS).replace(" > ", " → ")


def comparison_sentences(onsets: Onsets) -> list[str]:
    """The pairs of operators whose leads differ, and the number of the others."""
    titles = {operator.name: plain(operator.title) for operator in onsets.operators}
    different = [pair for pair in onsets.comparisons if pair.p <= 0.05]
    sentences = [
        f"{titles[pair.first]} against {titles[pair.second]}{', features' * (pair.kind == 'readout')}: "
        f"{describe_difference(pair)}."
        for pair in clearest(different)
    ]
    more = len(different) - len(sentences)
    if more:
        sentences.append(f"{_count(more, 'more pair')} of operators differ{'s' * (more == 1)} (p ≤ 0.05).")
    others = len(onsets.comparisons) - len(different)
    if others:
        sentences.append(f"No difference in lead is shown for {_count(others, 'pair')} of operators (p > 0.05).")
    return sentences


def caveats(onsets: Onsets) -> list[str]:
    """Limits of the conclusions, one sentence each."""
    sentences = [plain(note, 300) for note in onsets.notes]
    sentences = [f"{note[:1].upper()}{note[1:]}." for note in sentences]
    modes = {str(run.info.observation.mode) for operator in onsets.operators for run in operator.runs}
    if "eval" in modes:
        sentences.append(
            "BatchNorm's running statistics lag behind the weights in the first tens of steps, which affects the maps."
        )
    sentences.append(
        "Where the colours span a frame, brightness cannot be compared between frames, and noise is amplified to full "
        "contrast; to compare brightness, let them span a run or all runs."
    )
    return sentences


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


# --- the runs ---------------------------------------------------------------------------------------------------------


def settings(runs: Sequence[StoredRun]) -> tuple[list[str], dict[str, list[str]], dict[str, str]]:
    """The settings of the runs.

    Returns:
        A name for each run; the settings that differ, with one value per run; the settings that all runs share.
    """
    stored = [_settings(run) for run in runs]
    names = list(dict.fromkeys(name for values in stored for name in values))
    table = {name: [values.get(name, "–") for values in stored] for name in names}
    different = {name: row for name, row in table.items() if len(set(row)) > 1}
    common = {name: row[0] for name, row in table.items() if name not in different or len(runs) == 1}
    return [plain(run.address) for run in runs], different, common


_PLACES = ("data_dir", "masks_dir", "palette", "weights")
"""Settings that are paths of the recording machine, which are omitted because the page may be shared."""


def _settings(run: StoredRun) -> dict[str, str]:
    info = run.info
    settings: dict[str, Any] = {
        "run": run.run_id,
        "upsampler": info.upsampler,
        "network": info.network,
        "parameters": info.parameters,
        **{name: value for name, value in info.config.items() if name not in _PLACES},
        **{f"config: {name}": value for name, value in info.flat_settings.items()},
        "weights": info.weights,
        "observed in mode": info.observation.mode,
        "data fingerprint": info.data.get("fingerprint"),
        "data images": info.data.get("count"),
        "device": info.device,
        "threads": info.threads,
        **{f"version of {name}": value for name, value in info.versions.items()},
        "status": info.status,
        **{f"result: {name}": _measured(value) for name, value in info.result.items()},
    }
    return {plain(name, 60): _value(value) for name, value in settings.items() if value not in (None, "")}


def _measured(value: object) -> object:
    """A result with three digits, so that a column of results has equally many."""
    return format_number(value) if isinstance(value, float) and math.isfinite(value) else value


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return plain(f"{value:,}" if abs(value) >= 100_000 else value)
    if isinstance(value, float):
        return plain(f"{value:.5g}")
    if isinstance(value, list):
        return plain(", ".join(map(str, value)))
    return plain(value)
