"""Gates and kernels: what an operator's gate and its kernels' entropy do inside, on the band and outside, over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from .similarity import correlation_to_final


class RegionMeans(NamedTuple):
    """The mean of a map in three regions, ``(S, N)`` each.

    Attributes:
        inside: pixels of the object, away from its contour.
        band: pixels along the contour.
        outside: pixels of the background, away from the contour.
    """

    inside: NDArray[np.float64]
    band: NDArray[np.float64]
    outside: NDArray[np.float64]

    @property
    def halo(self) -> NDArray[np.float64]:
        """How far the band is above the interior, ``band - inside``: positive for a dark interior in a bright rim."""
        return self.band - self.inside


class RegionSummary(NamedTuple):
    """A gate, or the entropy of kernels, over the training.

    Attributes:
        means: in the three regions at every step.
        similarity: correlation of the whole map with that of the last step, ``(S, N)``.
    """

    means: RegionMeans
    similarity: NDArray[np.float64]


def region_mean(maps: NDArray[np.floating], region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean of each map over the pixels of a region.

    Args:
        maps: ``(S, N, h, w)``, over the training.
        region: boolean ``(N, h, w)``, of the maps' own resolution.

    Returns:
        float64 ``(S, N)``; NaN where the region is empty or the map is not finite in it. A constant map has a mean.

    Raises:
        FadevizError: not four axes, or a region that does not fit or is not boolean.
    """
    return _means(np.asarray(maps), [np.asarray(region)])[0]


def _means(maps: NDArray[np.floating], regions: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.float64]]:
    """The means over each of several regions, as of :func:`region_mean`: a product of the maps with the regions."""
    if maps.ndim != 4:
        raise FadevizError(f"maps over the training are needed, (S, N, h, w); got the shape {maps.shape}")
    for region in regions:
        if region.shape != maps.shape[1:] or region.dtype != np.bool_:
            raise FadevizError(f"a boolean region {maps.shape[1:]} is needed; got {region.dtype} {region.shape}")
    values = maps.reshape(*maps.shape[:2], -1).swapaxes(0, 1).astype(np.float64)
    weights = np.stack(regions, axis=-1).reshape(values.shape[0], -1, len(regions)).astype(np.float64)
    broken = ~np.isfinite(values)
    lost = np.zeros((*values.shape[:2], len(regions)), bool)
    if broken.any():  # cells outside a region do not count in it, whatever they are
        lost = broken.astype(np.float64) @ weights > 0
        values[broken] = 0
    counts = np.broadcast_to(weights.sum(1)[:, None], lost.shape)
    known = ~lost & (counts > 0)
    # A product a map: of all at once the last bit would depend on how many they are.
    sums = (values[:, :, None] @ weights[:, None])[:, :, 0]
    means = np.divide(sums, counts, out=np.full(lost.shape, np.nan), where=known)
    return [means[..., number].T for number in range(len(regions))]


def mean_by_region(
    maps: NDArray[np.floating], inside: NDArray[np.bool_], band: NDArray[np.bool_], outside: NDArray[np.bool_]
) -> RegionMeans:
    """Mean of each map inside an object, on the band along its contour, and outside; see :func:`region_mean`.

    Args:
        maps: ``(S, N, h, w)``, the kind ``gate`` or ``kernel_entropy`` over the training.
        inside, band, outside: boolean ``(N, h, w)``, disjoint.

    Raises:
        FadevizError: as :func:`region_mean`; regions that overlap.
    """
    regions = inside, band, outside
    means = _means(np.asarray(maps), [np.asarray(region) for region in regions])
    if (np.sum(regions, axis=0) > 1).any():
        raise FadevizError("inside, band and outside overlap: each pixel can be in one of them only")
    return RegionMeans(*means)


def summarize_regions(
    maps: NDArray[np.floating], inside: NDArray[np.bool_], band: NDArray[np.bool_], outside: NDArray[np.bool_]
) -> RegionSummary:
    """What a gate or the entropy of kernels does over the training: where it is high, and when it is what it will be.

    Args:
        maps: ``(S, N, h, w)``, the kind ``gate`` or ``kernel_entropy``.
        inside, band, outside: boolean ``(N, h, w)``, disjoint.

    Raises:
        FadevizError: as :func:`mean_by_region`.
    """
    return RegionSummary(mean_by_region(maps, inside, band, outside), correlation_to_final(maps))
