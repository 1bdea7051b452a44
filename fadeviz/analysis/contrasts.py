"""Contrasts: how much higher a map ranks just inside an outline, and in an interior, than outside, for any mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from ..storage.maps import Maps
from .blocks import in_blocks
from .ranks import ranks, steepness_ranks
from .zones import Zones, depth_bins

METHOD = 1
"""Version of what is measured here: stored contrasts of another version are measured again."""

_BLOCK = 2**18
"""Values ranked at a time: enough for an efficient matrix product."""


@dataclass(frozen=True)
class Contrasts:
    r"""The contrasts of the maps of one run: S steps, N images, each map read with each mask.

    With :math:`\bar u_Z` the mean over a zone :math:`Z` of mask :math:`m` (:class:`~fadeviz.analysis.zones.Zones`) of
    the relative ranks of the cells of image :math:`n`'s map at step :math:`t`
    (:func:`~fadeviz.analysis.ranks.ranks`):

    .. math::

        A^E_{tnm} = \bar u_\text{rim} - \bar u_\text{surround}, \qquad
        A^I_{tnm} = \bar u_\text{deep} - \bar u_\text{far}

    Both are in (-1, 1); a map that is not finite or is constant gives 0.

    Attributes:
        outline: ``(S, N, N)``, outline contrast of map n for mask m.
        interior: ``(S, N, N)``, interior contrast of map n for mask m.
        marked: ``(S, N, N)``, mean rank of the map's own steepness on the contour band of mask m, less that elsewhere.
        boundary_auc: ``(S, N)``, area under the ROC curve of the map's steepness as a detector of its own contour band;
            NaN where undefined. Chance: 0.5.
        region_auc: ``(S, N)``, area under the ROC curve of the map's values as a detector of its own object, below 0.5
            where the object is dark; NaN where undefined. Chance: 0.5.
        profile: ``(S, D)``, mean rank by depth, own mask less other masks: the rows of a distance-time map, before the
            sign of the run; NaN where fewer than two objects have cells.
        undefined: number of maps that are not finite or are constant.
    """

    outline: NDArray[np.float64]
    interior: NDArray[np.float64]
    marked: NDArray[np.float64]
    boundary_auc: NDArray[np.float64]
    region_auc: NDArray[np.float64]
    profile: NDArray[np.float64]
    undefined: int

    def to_arrays(self) -> dict[str, NDArray[np.float64]]:
        """All attributes as float64 arrays, by their names."""
        return {field.name: np.asarray(getattr(self, field.name), np.float64) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float64]]) -> Contrasts:
        """The inverse of :meth:`to_arrays`."""
        values = {field.name: arrays[field.name] for field in fields(cls)}
        return cls(**{**values, "undefined": int(arrays["undefined"])})  # type: ignore[arg-type]


def measure_contrasts(
    maps: Maps | NDArray[np.floating], zones: Sequence[Zones], *, images: Sequence[int] | None = None
) -> Contrasts:
    """Read every map with every mask.

    All contrasts are weighted means of ranks: one matrix product for each block of steps.

    Args:
        maps: ``(S, N, h, w)``, steps and images; maps in files are read once.
        zones: zones of the measured images' objects at the maps' resolution.
        images: indices of the measured images in the maps; None takes all.

    Raises:
        FadevizError: if the number of images, or the size of the maps, differs from that of the zones.
    """
    chosen = list(range(maps.shape[1])) if images is None else list(images)
    size = zones[0].inside.shape if zones else maps.shape[2:]
    if maps.ndim != 4 or len(chosen) != len(zones) or maps.shape[2:] != size:
        raise FadevizError(
            f"maps are {maps.shape}, but there are {len(zones)} masks of {size}; (steps, images, h, w) and one mask "
            "per image are needed"
        )
    if not zones:
        return _no_contrasts(len(maps))
    of_values, of_steepness, bins = _weights(zones)
    count = len(zones)
    values, slopes = np.empty((len(maps), count, 3 * count + bins.size)), np.empty((len(maps), count, count))
    undefined, flat_slopes = np.zeros((2, len(maps), count), bool)
    for start, block in in_blocks(maps, values=_BLOCK):
        stop = start + len(block)
        block = block if images is None else block[:, chosen]
        ranked, undefined[start:stop] = ranks(block)
        values[start:stop] = _product(ranked, of_values)
        ranked, flat_slopes[start:stop] = steepness_ranks(block, undefined[start:stop])
        slopes[start:stop] = _product(ranked, of_steepness)
    inside = np.array([zone.inside.mean() for zone in zones])
    band = np.array([zone.band[1:-1, 1:-1].mean() for zone in zones])
    own = np.arange(count)
    return Contrasts(
        outline=values[..., :count],
        interior=values[..., count : 2 * count],
        marked=slopes,
        boundary_auc=np.where(flat_slopes | (band == 0) | (band == 1), np.nan, _auc(slopes[:, own, own])),
        region_auc=np.where(undefined | (inside == 1), np.nan, _auc(values[:, own, 2 * count + own])),
        profile=_profiles(values[..., 3 * count :].reshape(len(maps), count, *bins.shape), bins),
        undefined=int(undefined.sum()),
    )


def _auc(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area under the ROC curve from the difference of mean relative ranks, whatever the shares of the two parts."""
    return np.clip(difference + 0.5, 0, 1)


def _no_contrasts(steps: int) -> Contrasts:
    table, rows = np.zeros((steps, 0, 0)), np.zeros((steps, 0))
    return Contrasts(table, table, table, rows, rows, rows, undefined=0)


def perfect_contrasts(zones: Sequence[Zones]) -> Contrasts:
    """The contrasts of perfect maps, the masks themselves: S = 1."""
    if not zones:
        return _no_contrasts(1)
    return measure_contrasts(np.stack([zone.inside for zone in zones])[None].astype(np.float32), zones)


def own_less_others(table: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""The mean response of maps for their own mask less that for the masks of other images.

    .. math:: \operatorname{own}(A) = \frac{\operatorname{tr} A - \frac{1}{N} \sum_{nm} A_{nm}}{N - 1}

    Whatever depends on place alone has the same response for all masks in expectation, and gives 0.

    Shape: ``(..., N, N)`` -> ``(...)``; NaN for N < 2.
    """
    count = table.shape[-1]
    if count < 2:
        return np.full(table.shape[:-2], np.nan)
    trace = np.trace(table, axis1=-2, axis2=-1)
    own: NDArray[np.float64] = (trace - table.sum((-2, -1)) / count) / (count - 1)
    return own


def _weights(zones: Sequence[Zones]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Weights of the cells for values, ``(3 N + N D, h w)``, and for steepness, ``(N, (h-2) (w-2))``.

    The last is ``(N, D)``: which objects have cells in which bin of depth; an empty bin has the weights 0.
    """
    edges, count = depth_bins(zones), len(zones)
    bins = len(edges) - 1
    values = np.zeros((count * (3 + bins), zones[0].inside.size), np.float32)
    steepness = np.empty((count, zones[0].band[1:-1, 1:-1].size), np.float32)
    filled = np.zeros((count, bins), bool)
    for image, zone in enumerate(zones):
        pairs = ((zone.rim, zone.surround), (zone.deep, zone.far), (zone.inside, ~zone.inside))
        for reading, (first, second) in enumerate(pairs):
            values[reading * count + image] = _share(first) - _share(second)
        band = zone.band[1:-1, 1:-1]
        steepness[image] = _share(band) - _share(~band)
        index = np.digitize(zone.depth, edges).ravel() - 1
        cells = np.flatnonzero((index >= 0) & (index < bins))
        sizes = np.bincount(index[cells], minlength=bins)
        values[count * 3 + image * bins + index[cells], cells] = 1 / sizes[index[cells]]
        filled[image] = sizes > 0
    return values, steepness, filled


def _share(cells: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights that give the mean over some cells."""
    shares: NDArray[np.float64] = cells.ravel() / max(1, cells.sum())
    return shares


def _product(ranked: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(S, N, h, w)`` times ``(K, h w)``: ``(S, N, K)``."""
    steps, images = ranked.shape[:2]
    product: NDArray[np.float32] = (ranked.reshape(steps * images, -1) @ weights.T).reshape(steps, images, -1)
    return product


def _profiles(means: NDArray[np.float64], filled: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Own less others for each bin of depth, over the images whose object has cells in it: ``(S, D)``."""
    columns = []
    for index, present in enumerate(filled.T):
        table = means[:, present][:, :, present, index]
        columns.append(own_less_others(table))
    return np.stack(columns, axis=1)
