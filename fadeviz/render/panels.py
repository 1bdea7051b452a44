"""Panels: what a plot shows, as plain data that matplotlib, the report page and notebooks draw alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KYMOGRAPH_COLORS, KYMOGRAPH_SPAN = "PuOr_r", (0.2, 0.8)
"""Colour map of distance-time maps, and the values at its ends; mean ranks hardly exceed them, and white is 1/2."""


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
        faint: thin and dotted, without a band: the level that the curve in ``like`` is compared with.
    """

    label: str
    steps: Sequence[int]
    middle: NDArray[np.floating]
    low: NDArray[np.floating]
    high: NDArray[np.floating]
    mark: float = math.nan
    like: str | None = None
    faint: bool = False


@dataclass(frozen=True)
class CurvePanel:
    """Curves that share their axes.

    Attributes:
        title: name of the operator, or of the measure.
        subtitle: runs and verdict, or what is measured.
        unit: label of the vertical axis.
        curves: the curves.
        span: ends of the vertical axis, extended where a curve exceeds them; None fits the curves.
    """

    title: str
    subtitle: str
    unit: str
    curves: Sequence[Curve]
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class KymographPanel:
    """One distance-time map.

    Attributes:
        title: name of the operator.
        subtitle: runs and verdict.
        steps: ``(S,)`` training steps, increasing.
        edges: ``(D + 1,)`` bin edges of the signed distance to the contour, in pixels of the layer, negative inside.
        value: ``(S, D)`` in [0, 1]; NaN where undefined.
    """

    title: str
    subtitle: str
    steps: Sequence[int]
    edges: NDArray[np.floating]
    value: NDArray[np.floating]


def curve_order(panels: Sequence[CurvePanel]) -> dict[str, int]:
    """The position of each label among those with a colour of their own, in the order of their first appearance."""
    labels = dict.fromkeys(curve.like or curve.label for panel in panels for curve in panel.curves)
    return {label: index for index, label in enumerate(labels)}


def shown_distances(edges: Sequence[NDArray[np.floating]]) -> tuple[float, float]:
    """The range of distances to draw: all of the inside, and about as much of the outside.

    Farther outside lies the rim of the image; what happens is near the contour.
    """
    inward, outward = min(float(bins[0]) for bins in edges), max(float(bins[-1]) for bins in edges)
    return inward, min(outward, max(12.0, math.ceil(-1.5 * inward)))
