"""Where a map's cells lie: the contour band, the interior and the background of a mask, at a layer's resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import FadevizError

BAND_PIXELS = 1.0
"""Half-width of the contour band in pixels of the layer: a sharp step between two cells is seen in one on each side."""

BAND_SHARE = 0.005
"""Half-width of the contour band as a share of the map's diagonal, as in the finer of the two Boundary IoUs."""


@dataclass(frozen=True)
class Regions:
    """Three disjoint parts of a map that together are all of it; any of them may be empty.

    Attributes:
        band: ``(h, w)`` bool, the cells within ``half_width`` of the contour.
        inside: ``(h, w)`` bool, the foreground without the band.
        outside: ``(h, w)`` bool, the background without the band.
        distance: ``(h, w)`` float64, as of :func:`signed_distance`.
        half_width: of the band, in pixels of the layer.
    """

    band: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    distance: NDArray[np.float64]
    half_width: float


def cell_means(values: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float64]:
    """The mean of an image over each cell of a coarser or finer grid; a pixel counts by the area it shares with it.

    Shape: ``(H, W)`` -> ``size``; neither needs to divide the other.
    """
    return _shares(size[0], values.shape[0]) @ values.astype(np.float64) @ _shares(size[1], values.shape[1]).T


def coverage(mask: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float64]:
    """The share of each cell that is foreground, in [0, 1]. Foreground is every class but 0.

    Shape: ``(H, W)`` -> ``size``.
    """
    return cell_means(_foreground(mask, size), size)


def signed_distance(mask: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float64]:
    """The mean over each cell of the Euclidean distance to the contour: negative inside, positive outside.

    The contour is the line between unlike pixels of the mask at its own resolution. The distance of a pixel's centre
    to that line is exact; its mean over a cell keeps what is finer than the cell. The image's border is no contour.

    Shape: ``(H, W)`` -> ``size``.
    Units: pixels of ``size``; infinite where the mask has no contour.
    """
    inside = _foreground(mask, size)
    if inside.all() or not inside.any():
        return np.full(size, -math.inf if inside.all() else math.inf)
    height, width = inside.shape
    # Half-pixel grid: centres of pixels at odd places, the line between them at even ones. The nearest point of a
    # pixel's side to any centre is the side's middle or an end, so that marking those three loses nothing.
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
        FadevizError: a mask or a size without pixels, or a band without width.
    """
    half_width = max(pixels, share * math.hypot(*size))
    if not 0 < half_width < math.inf:
        raise FadevizError(f"contour band: half-width {half_width:g}; it must be above 0. Give more pixels or share")
    distance = signed_distance(mask, size)
    return Regions(
        band=np.abs(distance) <= half_width,
        inside=distance < -half_width,
        outside=distance > half_width,
        distance=distance,
        half_width=half_width,
    )


def distance_bins(regions: Sequence[Regions], width: float = 1.0) -> NDArray[np.float64]:
    """Edges of bins of signed distance, multiples of ``width``; 0, the contour, is one of them.

    They reach inward and outward as far as at least half of the masks do: farther, single images would decide.

    Returns:
        D + 1 increasing edges, in pixels of the layer; at least one bin on each side of the contour.
    """
    with_contour = [r.distance for r in regions if np.isfinite(r.distance).all()]
    inward = [max(0.0, -float(d.min())) for d in with_contour] or [0.0]
    outward = [max(0.0, float(d.max())) for d in with_contour] or [0.0]
    first = max(1, math.ceil(float(np.quantile(inward, 0.5, method="higher")) / width))
    last = max(1, math.ceil(float(np.quantile(outward, 0.5, method="higher")) / width))
    return np.arange(-first, last + 1).astype(np.float64) * width


def _foreground(mask: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.bool_]:
    if mask.ndim != 2 or 0 in mask.shape or min(size) < 1:
        raise FadevizError(f"regions: mask {mask.shape}, maps {size}; both must be a height and a width of 1 or more")
    inside: NDArray[np.bool_] = mask != 0
    return inside


def _shares(cells: int, pixels: int) -> NDArray[np.float64]:
    """The share of each cell's length that each pixel has: ``(cells, pixels)``, rows sum to 1."""
    edges = np.arange(cells + 1) * pixels / cells
    place = np.arange(pixels)
    shared = np.minimum(edges[1:, None], place + 1) - np.maximum(edges[:-1, None], place)
    weights = np.maximum(shared, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)
