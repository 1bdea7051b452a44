"""Zones of an object at a layer's resolution, between which the outline and the interior contrast are measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .regions import Regions

LEAST_RADIUS = 1.5
"""Inscribed radius of an object, in cells, below which a layer is too coarse to tell its outline from its interior."""

LEAST_CELLS = 4
"""Cells that each zone needs."""


@dataclass(frozen=True)
class Zones:
    r"""Four zones of one object, by signed distance d to its contour (negative inside), in pixels of the layer.

    With :math:`D = -\min d` the object's inscribed radius, :math:`w` the half-width of the contour band and
    :math:`c = \min(2w, D/2)`:

    .. math::

        \text{rim}: -c \le d < 0, \qquad \text{surround}: w < d \le 3w, \qquad
        \text{deep}: d < -c, \qquad \text{far}: d > 2w

    Attributes:
        rim: ``(h, w)`` bool, just inside the contour.
        surround: ``(h, w)`` bool, just outside the contour.
        deep: ``(h, w)`` bool, deep inside the object.
        far: ``(h, w)`` bool, well outside the object.
        inside: ``(h, w)`` bool, the object: d < 0.
        band: ``(h, w)`` bool, the contour band: \|d\| <= w.
        depth: ``(h, w)``, d / D: -1 deepest inside, 0 on the contour.
        radius: D, in pixels of the layer.
        cut: c, in pixels of the layer.
    """

    rim: NDArray[np.bool_]
    surround: NDArray[np.bool_]
    deep: NDArray[np.bool_]
    far: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    band: NDArray[np.bool_]
    depth: NDArray[np.float64]
    radius: float
    cut: float


def build_zones(regions: Regions) -> Zones | str:
    """The zones of one object, or why it has none: a phrase such as "too small for this layer"."""
    distance, width = regions.distance, regions.half_width
    inside = distance < 0
    if not inside.any():
        return "no object"
    radius = -float(distance.min())
    if not math.isfinite(radius):
        return "the object fills the image"
    cut = min(2 * width, radius / 2)
    zones = Zones(
        rim=inside & (distance >= -cut),
        surround=(distance > width) & (distance <= 3 * width),
        deep=distance < -cut,
        far=distance > 2 * width,
        inside=inside,
        band=regions.band,
        depth=distance / radius,
        radius=radius,
        cut=cut,
    )
    if radius < LEAST_RADIUS:
        return f"the layer is too coarse for the object: its inscribed radius is below {LEAST_RADIUS} cells"
    cells = {name: int(getattr(zones, name).sum()) for name in ("rim", "deep", "surround", "far")}
    lacking = [name for name, count in cells.items() if count < LEAST_CELLS]
    if lacking:
        inner = any(name in ("rim", "deep") for name in lacking)
        return "the layer is too coarse for the object" if inner else "the object nearly fills the image"
    return zones


def depth_bins(zones: Sequence[Zones]) -> NDArray[np.float64]:
    """Edges of bins of depth, in units of the inscribed radius: from -1, the deepest, over 0, the contour, to 1.5.

    Bins are about one cell of the median object wide: 3 to 12 of them in the inside.
    """
    radius = float(np.median([zone.radius for zone in zones])) if zones else 0.0
    count = min(12, max(3, round(radius)))
    return np.arange(-count, math.floor(1.5 * count) + 1) / count
