"""Whether an object has an interior: cells deep enough inside, at a coarse resolution, to tell it from its outline."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

CELL = 4
"""Pixels of the image along a cell's side. An object with an interior at a quarter of the image's size has one in the
last two stages of a network too, at half and full size, which are the ones that figures show and measures read."""

HALF_WIDTH = (1.0, 0.005)
"""Half-width of the contour band, whichever is larger: in cells, and as a share of the map's diagonal; as in
``analysis.regions``."""

LEAST_RADIUS = 1.5
"""Minimum radius of the largest disc that fits into the object, in cells."""

LEAST_CELLS = 4
"""Minimum number of cells in each zone: inside of the contour, deep inside, outside of the contour, far outside."""


def has_interior(inside: NDArray[np.bool_]) -> bool:
    r"""Whether an outline and an interior can be told apart in an object, at a quarter of its image's size.

    With :math:`d` the signed distance to the contour in cells, negative inside, :math:`w` the half-width of the contour
    band, :math:`D = -\min d` the inscribed radius and :math:`c = \min(2 w, D / 2)`, it has one if :math:`D` is at least
    ``LEAST_RADIUS`` and each of the zones :math:`-c \le d < 0` (the rim), :math:`d < -c` (deep inside),
    :math:`w < d \le 3 w` and :math:`d > 2 w` has at least ``LEAST_CELLS`` cells. An object that is too thin or small
    has no deep cells; one that fills the image has nothing outside to compare with.

    Args:
        inside: ``(H, W)``, True on the object.
    """
    if inside.all() or not inside.any():
        return False
    distance = _signed_distance(inside)
    half_width = max(HALF_WIDTH[0], HALF_WIDTH[1] * math.hypot(*distance.shape))
    radius = -float(distance.min())
    depth = min(2 * half_width, radius / 2)
    zones = (
        (distance >= -depth) & (distance < 0),
        distance < -depth,
        (distance > half_width) & (distance <= 3 * half_width),
        distance > 2 * half_width,
    )
    return radius >= LEAST_RADIUS and all(np.count_nonzero(zone) >= LEAST_CELLS for zone in zones)


def _signed_distance(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean over each cell of the distance to the contour, negative inside, in cells: ``(H, W)`` -> about a quarter."""
    # Distances are between the centres of pixels, and the contour is half a pixel before the other side's.
    inward, outward = (ndimage.distance_transform_edt(side) - 0.5 for side in (inside, ~inside))
    values = np.where(inside, -inward, outward) / CELL
    for axis, length in enumerate(values.shape):
        starts = np.arange(max(1, length // CELL)) * length // max(1, length // CELL)
        sums = np.add.reduceat(values, starts, axis=axis)
        counts = np.diff(starts, append=length)
        values = sums / (counts[:, None] if axis == 0 else counts)
    return values


def describe_missing(names: Sequence[str], insides: Sequence[NDArray[np.bool_]]) -> str:
    """A sentence that names the observed images without an interior; empty if all of them have one.

    Args:
        names: the name of each observed image.
        insides: the pixels of its object, ``(H, W)`` each.
    """
    missing = [name for name, inside in zip(names, insides, strict=True) if not has_interior(inside)]
    if not missing:
        return ""
    return (
        f"{len(missing)} of {len(names)} observed images have an object without an interior at a quarter of the "
        f"image's size: {', '.join(missing)}. Outline and interior are hard to tell apart in them"
    )


__all__ = ["CELL", "HALF_WIDTH", "LEAST_CELLS", "LEAST_RADIUS", "describe_missing", "has_interior"]
