"""Regions of a mask at a layer's resolution: contour band, interior and background."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import FadevizError

BAND_PIXELS = 1.0
"""Half-width of the contour band in pixels of the layer: a sharp step shows in one cell on each side of it."""

BAND_SHARE = 0.005
"""Half-width of the contour band as a share of the map's diagonal, as in the finer of the two Boundary IoUs."""


@dataclass(frozen=True)
class Regions:
    """Three disjoint parts of a map that cover it; any of them may be empty.

    Attributes:
        band: ``(h, w)`` bool, cells within ``half_width`` of the contour.
        inside: ``(h, w)`` bool, foreground without the band.
        outside: ``(h, w)`` bool, background without the band.
        distance: ``(h, w)`` float64, signed distance to the contour (:func:`signed_distance`).
        half_width: half-width of the band, in pixels of the layer.
    """

    band: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    distance: NDArray[np.float64]
    half_width: float


def cell_means(values: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float64]:
    """Mean of an image over each cell of another grid, finer or coarser.

    A pixel is weighted by the area that it shares with the cell.

    Shape: ``(H, W)`` -> ``size``; neither needs to divide the other.
    """
    return _shares(size[0], values.shape[0]) @ values.astype(np.float64) @ _shares(size[1], values.shape[1]).T


def coverage(mask: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float64]:
    """Share of each cell that is foreground, in [0, 1]; foreground is every class but 0.

    Shape: ``(H, W)`` -> ``size``.
    """
    return cell_means(_foreground(mask, size), size)


def signed_distance(mask: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float64]:
    r"""Mean over each cell of the signed Euclidean distance to the contour: negative inside, positive outside.

    .. math:: d(c) = \frac{1}{|c|} \int_c \pm \min_{q \in \partial M} \lVert p - q \rVert \, dp

    with :math:`c` a cell, :math:`M` the foreground of the mask and :math:`\partial M` its contour, the line between
    foreground and background pixels at the mask's own resolution; the image border is not a contour. The distance is
    exact at each pixel's centre, and its mean over a cell keeps detail finer than the cell.

    Args:
        mask: ``(H, W)``; foreground is every class but 0.
        size: ``(h, w)`` of the result.

    Returns:
        float64 of ``size``; infinite if the mask has no contour.

    Units: pixels of ``size``.

    Raises:
        FadevizError: if the mask or the size has no pixels.
    """
    inside = _foreground(mask, size)
    if inside.all() or not inside.any():
        return np.full(size, -math.inf if inside.all() else math.inf)
    height, width = inside.shape
    # Half-pixel grid: pixel centres at odd indices, borders between pixels at even ones. The point of a border nearest
    # to any centre is its middle or one of its ends, so that marking these three makes the distances exact.
    line = np.zeros((2 * height + 1, 2 * width + 1), bool)
    rows, columns = inside[1:] != inside[:-1], inside[:, 1:] != inside[:, :-1]
    for shift in range(3):
        line[2:-1:2, shift : shift + 2 * width - 1 : 2] |= rows
        line[shift : shift + 2 * height - 1 : 2, 2:-1:2] |= columns
    half_pixel = (size[0] / (2 * height), size[1] / (2 * width))
    distance = ndimage.distance_transform_edt(~line, sampling=half_pixel)[1::2, 1::2]
    return cell_means(np.where(inside, -distance, distance), size)


def build_regions(
    mask: NDArray[np.generic], size: tuple[int, int], *, pixels: float = BAND_PIXELS, share: float = BAND_SHARE
) -> Regions:
    """The regions of one mask at a layer's resolution.

    Args:
        mask: ``(H, W)``, at any resolution; foreground is every class but 0.
        size: ``(h, w)`` of the layer's maps.
        pixels: half-width of the band in pixels of the layer.
        share: half-width of the band as a share of the map's diagonal; the larger of the two counts.

    Raises:
        FadevizError: if the mask or the size has no pixels, or the band no width.
    """
    half_width = max(pixels, share * math.hypot(*size))
    if not 0 < half_width < math.inf:
        raise FadevizError(
            f"contour band: half-width {half_width:g}; it must be above 0 and finite. Change pixels=... or share=..."
        )
    distance = signed_distance(mask, size)
    return Regions(
        band=np.abs(distance) <= half_width,
        inside=distance < -half_width,
        outside=distance > half_width,
        distance=distance,
        half_width=half_width,
    )


def _foreground(mask: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.bool_]:
    if mask.ndim != 2 or 0 in mask.shape or min(size) < 1:
        raise FadevizError(
            f"regions: mask {mask.shape}, maps {size}; both must have a height and a width of at least 1"
        )
    inside: NDArray[np.bool_] = mask != 0
    return inside


def _shares(cells: int, pixels: int) -> NDArray[np.float64]:
    """Share of each cell's length that each pixel covers: ``(cells, pixels)``; rows sum to 1."""
    edges = np.arange(cells + 1) * pixels / cells
    place = np.arange(pixels)
    shared = np.minimum(edges[1:, None], place + 1) - np.maximum(edges[:-1, None], place)
    weights = np.maximum(shared, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)
