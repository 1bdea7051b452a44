"""The numbers that trainings logged, as curves: loss, learning rate, and whatever else metrics.jsonl holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..storage.stored_run import StoredRun

MOST_POINTS = 200
"""Most points of a curve: of more steps, each point stands for several."""

MOST_NAMES = 24
"""Most names that are drawn, the first ones that were logged."""


@dataclass(frozen=True)
class LoggedCurve:
    """One number that the runs of one operator logged, over training: P points.

    Attributes:
        steps: ``(P,)``; where a point stands for several steps, their mean.
        middle: ``(P,)``, median over runs of each run's mean over the steps of a point; NaN where a run has a value
            that is not finite.
        low: ``(P,)``, lowest value of any run and step of the point.
        high: ``(P,)``, highest value.
        count: number of values, of all runs.
        broken: steps at which a value is NaN or infinite.
        steps_per_point: number of steps that a point stands for, at most.
    """

    steps: tuple[int, ...]
    middle: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    count: int
    broken: tuple[int, ...]
    steps_per_point: int


def logged_curves(runs: Sequence[StoredRun]) -> dict[str, LoggedCurve]:
    """The curves of all numbers that any of an operator's runs logged, by name, in the order of their first appearance.

    Values that are no numbers are left out. Of several values of a run at one step, the last counts.
    """
    series: dict[str, list[dict[int, float]]] = {}
    for run in runs:
        for name, values in _series(run).items():
            series.setdefault(name, []).append(values)
    return {name: _curve(values) for name, values in series.items()}


def _curve(series: Sequence[Mapping[int, float]]) -> LoggedCurve:
    steps = sorted({step for values in series for step in values})
    points = np.array_split(np.array(steps, np.int64), min(len(steps), MOST_POINTS))
    rows = [_point(series, [int(step) for step in point]) for point in points]
    middle, low, high = (np.array(column) for column in zip(*rows, strict=True))
    return LoggedCurve(
        steps=tuple(round(float(point.mean())) for point in points),
        middle=middle,
        low=low,
        high=high,
        count=sum(map(len, series)),
        broken=tuple(step for step in steps if any(not math.isfinite(values.get(step, 0.0)) for values in series)),
        steps_per_point=max(map(len, points)),
    )


def shown_names(curves: Sequence[Mapping[str, LoggedCurve]]) -> tuple[list[str], list[str]]:
    """The names to draw of several operators' curves, at most ``MOST_NAMES``, and those that are left out."""
    names = list(dict.fromkeys(name for own in curves for name in own))
    return names[:MOST_NAMES], names[MOST_NAMES:]


def describe_gaps(subject: str, curve: LoggedCurve) -> str:
    """A note on the values of a curve that are not finite, such as "loss of FADE is ..."; empty if all are."""
    if not curve.broken:
        return ""
    count = len(curve.broken)
    steps = f"step {curve.broken[0]}" if count == 1 else f"{count} steps, the first {curve.broken[0]}"
    return f"{subject} is NaN or infinite at {steps}: a gap in its curve"


def explain_logged(curves: Sequence[Mapping[str, LoggedCurve]]) -> str:
    """The meaning of lines, bands and gaps of what was logged."""
    every = [curve for own in curves for curve in own.values()]
    together = max((curve.steps_per_point for curve in every), default=1)
    points = f" and of the up to {together:,} steps that a point is the mean of" if together > 1 else ""
    gaps = " Gaps: NaN or infinite." if any(curve.broken for curve in every) else ""
    return f"Lines: median over runs; bands: lowest to highest value of the runs{points}.{gaps}"


def _series(run: StoredRun) -> dict[str, dict[int, float]]:
    """The values that a run logged under each name, by steps."""
    series: dict[str, dict[int, float]] = {}
    for line in run.metrics():
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                try:
                    series.setdefault(name, {})[line["step"]] = float(value)
                except OverflowError:
                    series[name][line["step"]] = math.inf
    return series


def _point(series: Sequence[Mapping[int, float]], steps: Sequence[int]) -> tuple[float, float, float]:
    """Middle, lowest and highest value of some steps."""
    values = [[run[step] for step in steps if step in run] for run in series]
    every = [value for run in values for value in run]
    if not all(map(math.isfinite, every)):
        return (math.nan,) * 3
    return float(np.median([np.mean(run) for run in values if run])), min(every), max(every)


__all__ = ["MOST_NAMES", "LoggedCurve", "describe_gaps", "explain_logged", "logged_curves", "shown_names"]
