"""Panels: what a plot shows, as plain data that matplotlib, the report page and notebooks draw alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUND = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
"""Ends of colours, in powers of ten."""

MIN_KYMOGRAPH_SPAN = 0.1
"""Smallest end of the colours of distance-time maps: with less, noise would be drawn in full colours."""

OUTLINE, INTERIOR = "outline", "interior"
"""The two readings whose arrivals are marked."""


@dataclass(frozen=True)
class Curve:
    """One curve with its band.

    Attributes:
        label: for the legend; curves with the same label look the same in all panels.
        steps: ``(S,)`` training steps, increasing.
        middle: ``(S,)``; NaN leaves a gap.
        low: ``(S,)``, lower end of the band.
        high: ``(S,)``, upper end of the band.
        mark: a step to mark by a dotted vertical line; NaN for none.
        like: label of the curve whose colour this one takes, dashed; None for a colour of its own.
        operator: name of the operator whose look this curve has; empty for the next colour.
    """

    label: str
    steps: Sequence[int]
    middle: NDArray[np.floating]
    low: NDArray[np.floating]
    high: NDArray[np.floating]
    mark: float = math.nan
    like: str | None = None
    operator: str = ""


@dataclass(frozen=True)
class CurvePanel:
    """Curves that share their axes.

    Attributes:
        title: name of the operator, or of the measure.
        subtitle: runs and verdict, or what is measured.
        unit: label of the vertical axis.
        curves: the curves.
        span: ends of the vertical axis, extended where a curve exceeds them; None fits the curves.
        chance: values between minus and plus this are what chance gives, drawn as a grey band; None for no band.
        scale: panels with the same name here are compared: their vertical axes have the same ends; empty for none.
    """

    title: str
    subtitle: str
    unit: str
    curves: Sequence[Curve]
    span: tuple[float, float] | None = None
    chance: float | None = None
    scale: str = ""


@dataclass(frozen=True)
class ArrivalMark:
    """The arrival of one reading, drawn on a distance-time map.

    Attributes:
        label: ``"outline"`` or ``"interior"``.
        step: step of the arrival.
        low: lower end of its interval, in steps.
        high: upper end of its interval, in steps; beyond the last snapshot, or infinite, it is drawn as an arrow.
        depth: depth at which the mark is drawn, in inscribed radii, see :class:`KymographPanel`.
        from_start: whether the reading is there before training: an open symbol at the first snapshot.
    """

    label: str
    step: float
    low: float
    high: float
    depth: float
    from_start: bool = False


@dataclass(frozen=True)
class KymographPanel:
    """One distance-time map: by training step and depth, how much a map responds to its own mask.

    Attributes:
        title: name of the operator.
        subtitle: the verdict, briefly.
        steps: ``(S,)`` training steps, increasing; they need not begin at 0.
        edges: ``(D + 1,)`` bin edges of the depth, the signed distance to the contour in units of the inscribed radius
            of the object: -1 is its deepest point, 0 the contour, outside is positive.
        value: ``(S, D)``, signed; 0 is what a map that ignores its image shows; NaN where undefined.
        arrivals: arrivals to mark.
        row: the map that is read, such as "channel mean"; panels of the same title with different rows stand one below
            the other.
    """

    title: str
    subtitle: str
    steps: Sequence[int]
    edges: NDArray[np.floating]
    value: NDArray[np.floating]
    arrivals: tuple[ArrivalMark, ...] = ()
    row: str = ""


def curve_order(panels: Sequence[CurvePanel]) -> dict[str, int]:
    """The position of each label among those with a colour of their own, in the order of their first appearance."""
    labels = dict.fromkeys(curve.like or curve.label for panel in panels for curve in panel.curves)
    return {label: index for index, label in enumerate(labels)}


def kymograph_span(panels: Sequence[KymographPanel]) -> float:
    """The end of the colours that all distance-time maps share, a round number: they go from minus it to plus it.

    It is the largest of the panels' 98 % quantiles of absolute values, so that neither a few cells decide, nor many
    empty panels hide the one that shows something; at least :data:`MIN_KYMOGRAPH_SPAN`.
    """
    tops = [MIN_KYMOGRAPH_SPAN]
    for panel in panels:
        values = np.abs(np.asarray(panel.value, np.float64))
        if np.isfinite(values).any():
            tops.append(float(np.quantile(values[np.isfinite(values)], 0.98)))
    top = max(tops)
    power = 10.0 ** math.floor(math.log10(top))
    return round(next(factor * power for factor in _ROUND if factor * power >= top * 0.999), 12)


def panel_grid(panels: Sequence[KymographPanel]) -> tuple[list[str], list[list[KymographPanel | None]]]:
    """Panels in columns and rows.

    Returns:
        The names of the rows, in the order of their first appearance; and for each row one panel a column, None where
        a column has none. A column holds the panels of one title; a title that comes twice in a row has two columns.
    """
    rows = list(dict.fromkeys(panel.row for panel in panels))
    columns: list[dict[str, KymographPanel]] = []
    for panel in panels:
        free = (one for one in columns if next(iter(one.values())).title == panel.title and panel.row not in one)
        column = next(free, None)
        if column is None:
            columns.append({panel.row: panel})
        else:
            column[panel.row] = panel
    return rows, [[column.get(row) for column in columns] for row in rows]
