"""Gates and kernel entropy: their means inside the object, on the contour band and outside, over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from .similarity import correlation_to_final


class RegionMeans(NamedTuple):
    """Mean of a map in three regions, ``(S, N)`` each.

    Attributes:
        inside: mean over the object, without its contour band.
        band: mean over the contour band.
        outside: mean over the background, without the band.
    """

    inside: NDArray[np.float64]
    band: NDArray[np.float64]
    outside: NDArray[np.float64]

    @property
    def halo(self) -> NDArray[np.float64]:
        """``(S, N)``, ``band - inside``: positive for a dark interior with a bright rim."""
        return self.band - self.inside


class RegionSummary(NamedTuple):
    """A gate, or the entropy of kernels, over training.

    Attributes:
        means: means in the three regions at every step.
        similarity: ``(S, N)``, correlation of the whole map with that of the last step.
    """

    means: RegionMeans
    similarity: NDArray[np.float64]


def region_mean(maps: NDArray[np.floating], region: NDArray[np.bool_]) -> NDArray[np.float64]:
    r"""Mean of each map over the cells of a region.

    .. math:: \bar F = \frac{1}{|R|} \sum_{i \in R} F_i

    with :math:`F` a map and :math:`R` the region.

    Args:
        maps: ``(S, N, h, w)``, over training.
        region: boolean ``(N, h, w)``, at the maps' resolution.

    Returns:
        float64 ``(S, N)``, in the maps' units; NaN where the region is empty or the map is not finite in it. A constant
        map has a mean.

    Raises:
        FadevizError: if the maps do not have four axes, or the region has another size or is not boolean.
    """
    return _means(np.asarray(maps), [np.asarray(region)])[0]


def _means(maps: NDArray[np.floating], regions: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.float64]]:
    """Means over each of several regions, see :func:`region_mean`, as one matrix product."""
    if maps.ndim != 4:
        raise FadevizError(f"maps over training (S, N, h, w) are needed; got the shape {maps.shape}")
    for region in regions:
        if region.shape != maps.shape[1:] or region.dtype != np.bool_:
            raise FadevizError(f"a boolean region {maps.shape[1:]} is needed; got {region.dtype} {region.shape}")
    values = maps.reshape(*maps.shape[:2], -1).swapaxes(0, 1).astype(np.float64)
    weights = np.stack(regions, axis=-1).reshape(values.shape[0], -1, len(regions)).astype(np.float64)
    broken = ~np.isfinite(values)
    lost = np.zeros((*values.shape[:2], len(regions)), bool)
    if broken.any():  # non-finite cells matter only in the regions that contain them
        lost = broken.astype(np.float64) @ weights > 0
        values[broken] = 0
    counts = np.broadcast_to(weights.sum(1)[:, None], lost.shape)
    defined = ~lost & (counts > 0)
    # One product per map: with a single one for all, the last bit would depend on their number.
    sums = (values[:, :, None] @ weights[:, None])[:, :, 0]
    means = np.divide(sums, counts, out=np.full(lost.shape, np.nan), where=defined)
    return [means[..., number].T for number in range(len(regions))]


def mean_by_region(
    maps: NDArray[np.floating], inside: NDArray[np.bool_], band: NDArray[np.bool_], outside: NDArray[np.bool_]
) -> RegionMeans:
    """Mean of each map inside the object, on its contour band, and outside; see :func:`region_mean`.

    Args:
        maps: ``(S, N, h, w)``, of kind ``gate`` or ``kernel_entropy``, over training.
        inside, band, outside: boolean ``(N, h, w)``, disjoint.

    Raises:
        FadevizError: under the same conditions as :func:`region_mean`; and if the regions overlap.
    """
    regions = inside, band, outside
    means = _means(np.asarray(maps), [np.asarray(region) for region in regions])
    if (np.sum(regions, axis=0) > 1).any():
        raise FadevizError("inside, band and outside overlap: each pixel may be in only one of them")
    return RegionMeans(*means)


def summarize_regions(
    maps: NDArray[np.floating], inside: NDArray[np.bool_], band: NDArray[np.bool_], outside: NDArray[np.bool_]
) -> RegionSummary:
    """Means of a gate or of kernel entropy by region, and when the map takes its final form.

    Args:
        maps: ``(S, N, h, w)``, of kind ``gate`` or ``kernel_entropy``, over training.
        inside, band, outside: boolean ``(N, h, w)``, disjoint.

    Raises:
        FadevizError: under the same conditions as :func:`mean_by_region`.
    """
    return RegionSummary(mean_by_region(maps, inside, band, outside), correlation_to_final(maps))
