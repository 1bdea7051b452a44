"""How well a map shows the outline, and how well the interior: areas under the ROC curve, and the distance-time map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from ..storage.stored_run import Maps
from .blocks import in_blocks
from .kymograph import BinnedMeans, Kymograph
from .ranks import Ranked, Ties, defined_maps, rank_cells
from .regions import Regions

MIN_CELLS = 8
"""A region of fewer cells counts as empty: of so few, a polarity-free area is far from chance by chance."""


LAST = 3
"""So many snapshots at the end of a run stand for its end."""


def squared_gradient(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """(dF/dx)^2 + (dF/dy)^2 by Scharr's 3x3 operator: the central difference, smoothed 3:10:3 across.

    A step between two cells is seen in both of them and, through the smoothing, in those that touch it only at a
    corner. The outermost cells, which lack neighbours, are left out: whatever is made up beyond the border makes noise
    steeper or flatter there than elsewhere, and so moves chance.

    Shape: ``(..., h, w)`` -> ``(..., h - 2, w - 2)``. Units: (value per cell)^2.
    """
    right, down = _scharr(maps.astype(np.float64))
    total: NDArray[np.float64] = (right / 32) ** 2 + (down / 32) ** 2
    return total


def _scharr(f: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """32 times the derivatives to the right and down: of whole numbers whole numbers."""
    down = f[..., 2:, :] - f[..., :-2, :]
    right = f[..., :, 2:] - f[..., :, :-2]
    dy = 3 * down[..., :-2] + 10 * down[..., 1:-1] + 3 * down[..., 2:]
    dx = 3 * right[..., :-2, :] + 10 * right[..., 1:-1, :] + 3 * right[..., 2:, :]
    return dx, dy


def edge_response(maps: NDArray[np.floating], regions: Regions, *, ranked: bool = True) -> NDArray[np.float64]:
    """How well the steepness of a map finds the contour band: 2 AUC - 1, band against all else, ties counted half.

    1: every cell of the band is steeper than any other; 0: chance; below 0: the map is flattest at the contour.
    The gradient is that of the map's ranks (:func:`ranks`), so that no increasing rescaling of the map changes the
    response. The price: small ripples in large even areas count by their order, not by their height. The outermost
    cells do not count.

    Args:
        maps: ``(..., h, w)``.
        regions: of the mask, at the maps' resolution.
        ranked: False takes the gradient of the map as it is; then only linear rescaling leaves the response alone.

    Returns:
        ``(...)``; NaN where the map is constant, equally steep everywhere or not finite, and where the band or the rest
        is empty.
    """
    masks = _Masks([regions])
    found = np.full(_checked(maps, regions).shape[:-2], np.nan)
    flat = found.reshape(-1)
    for rows, batch in defined_maps(maps):
        steepness = _steepness(rank_cells(batch), batch.shape) if ranked else rank_cells(squared_gradient(batch))
        flat[rows] = masks.edge(steepness)[:, 0]
    return found


def interior_response(maps: NDArray[np.floating], regions: Regions) -> NDArray[np.float64]:
    """How well a map tells the interior from the background, whichever is higher: |2 AUC - 1|, the band excluded.

    1: they do not overlap; 0: chance. The same as 2 max(a, 1 - a) - 1 of the area a; no monotone rescaling changes it.
    As either sign counts, a map that knows nothing is a little above 0 if it is white noise, and reaches about 0.3 if
    it is a few smooth blobs: what it reaches for other images' masks is the level to compare with.

    Returns:
        ``(...)``; NaN where the map is constant or not finite, or where the interior or the background is empty.
    """
    return np.abs(polarity(maps, regions))


def polarity(maps: NDArray[np.floating], regions: Regions) -> NDArray[np.float64]:
    """2 AUC - 1 of the interior against the background: 1 where the interior is higher, -1 where it is lower.

    Shape: ``(..., h, w)`` -> ``(...)``; NaN as in :func:`interior_response`.
    """
    masks = _Masks([regions])
    found = np.full(_checked(maps, regions).shape[:-2], np.nan)
    flat = found.reshape(-1)
    for rows, batch in defined_maps(maps):
        flat[rows] = masks.polarity(rank_cells(batch))[:, 0]
    return found


@dataclass(frozen=True)
class Responses:
    """What the maps of one run show: S steps, N images.

    Attributes:
        edge: ``(S, N)``, as of :func:`edge_response`.
        interior: ``(S, N)``, as of :func:`interior_response`.
        edge_raw: ``(S, N)``, the edge response of the maps as they are, without their ranks.
        edge_elsewhere: ``(S, N)``, the mean edge response of a map for the other images' masks: what its place in the
            image alone gives, for contours are where contours often are. NaN with one image.
        edge_raw_elsewhere: ``(S, N)``, the same of ``edge_raw``.
        interior_elsewhere: ``(S, N)``, the same of the interior response: a blob in the middle of every map tells the
            inside from the outside where objects are in the middle.
        edge_room: ``(N,)``, how much better the edge response of a perfect map is for its own mask than for the others;
            about 0 where the masks are alike, so that place cannot be told from knowledge.
        interior_room: ``(N,)``, the same of the interior response.
        value: the distance-time map of the values.
        gradient: the distance-time map of the steepness.
    """

    edge: NDArray[np.float64]
    interior: NDArray[np.float64]
    edge_raw: NDArray[np.float64]
    edge_elsewhere: NDArray[np.float64]
    edge_raw_elsewhere: NDArray[np.float64]
    interior_elsewhere: NDArray[np.float64]
    edge_room: NDArray[np.float64]
    interior_room: NDArray[np.float64]
    value: Kymograph
    gradient: Kymograph


def responses(maps: Maps | NDArray[np.floating], regions: Sequence[Regions], edges: NDArray[np.float64]) -> Responses:
    """Edge and interior response of every map of a run, and its two distance-time maps: they show a front that moves.

    For a distance-time map each map is replaced by its ranks (:func:`ranks`), so that a map that is only noise is 1/2
    at every distance, however its values grow, and a front is a line between high and low. That agrees with the
    interior response, which compares ranks between two ranges of distance. If the inside is below the outside at the
    end (polarity over the last ``LAST`` snapshots, summed over images), the values of all images are turned over at all
    steps alike: maps that change sign during training show that. Every image counts the same in a bin.

    Args:
        maps: ``(S, N, h, w)``, steps and images; those that lie in files are read once.
        regions: of the N images' masks.
        edges: of the bins of signed distance, increasing, as from :func:`~fadeviz.analysis.regions.distance_bins`.

    Raises:
        FadevizError: maps, masks and regions that do not fit together.
    """
    if maps.ndim != 4 or maps.shape[1] != len(regions):
        raise FadevizError(
            f"maps are {maps.shape} with {len(regions)} masks; needed are (steps, images, h, w) and a mask an image"
        )
    masks = _Masks(regions)
    edge, edge_raw, interior = np.full((3, *maps.shape[:2], len(regions)), np.nan)
    value = BinnedMeans(len(maps), edges, [where.distance for where in regions])
    gradient = BinnedMeans(len(maps), edges, [where.distance[1:-1, 1:-1] for where in regions])
    turn = _turn(maps[-LAST:], regions)
    for start, block in in_blocks(maps):
        for image in range(block.shape[1]):
            for rows, batch in defined_maps(_checked(block[:, image], regions[image])):
                steps = start + rows
                ranked = rank_cells(batch)
                steepness = _steepness(ranked, batch.shape)
                edge[steps, image] = masks.edge(steepness)
                edge_raw[steps, image] = masks.edge(rank_cells(squared_gradient(batch)))
                interior[steps, image] = np.abs(masks.polarity(ranked))
                value.add(steps, image, ranked, turn=turn)
                gradient.add(steps, image, steepness)
    tables: dict[str, NDArray[np.float64]] = {}
    for name, found in (("edge", edge), ("edge_raw", edge_raw), ("interior", interior)):
        tables[name], tables[f"{name}_elsewhere"] = _own_and_elsewhere(found)
    edge_room, interior_room = _room(masks, regions)
    return Responses(
        **tables,
        edge_room=edge_room,
        interior_room=interior_room,
        value=value.mean("value"),
        gradient=gradient.mean("gradient"),
    )


def _own_and_elsewhere(found: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From responses ``(S, N, N)`` of each map to each mask: those to its own mask, and the mean of the others."""
    others = np.where(np.eye(found.shape[1], dtype=bool), np.nan, found)
    return found.diagonal(axis1=1, axis2=2).copy(), _mean_of_defined(others)


def _room(masks: _Masks, regions: Sequence[Regions]) -> list[NDArray[np.float64]]:
    """How much better perfect maps, 1 inside and 0 outside, are for their own masks than for the others'."""
    edge, interior = np.full((2, 1, len(regions), len(regions)), np.nan)
    for image, where in enumerate(regions):
        for _, batch in defined_maps((where.distance < 0).astype(np.float64)):
            ranked = rank_cells(batch)
            edge[0, image] = masks.edge(_steepness(ranked, batch.shape))[0]
            interior[0, image] = np.abs(masks.polarity(ranked))[0]
    return [own[0] - elsewhere[0] for own, elsewhere in map(_own_and_elsewhere, (edge, interior))]


def _turn(late: NDArray[np.floating], regions: Sequence[Regions]) -> bool:
    """Whether the inside is below the outside in the last maps, in the sum over images."""
    found = np.array([polarity(late[:, image], where) for image, where in enumerate(regions)])
    return bool(np.nansum(found) < 0)


def _mean_of_defined(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis, ignoring NaN; NaN if there is nothing else."""
    known = np.isfinite(table)
    count = known.sum(-1)
    total = np.where(known, table, 0).sum(-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _steepness(value: Ranked, shape: tuple[int, ...]) -> Ranked:
    """The ranks of the squared gradient of maps ``(M, h, w)`` given by their ranks; without the outermost cells."""
    # Of whole numbers, times the 32 that Scharr's weights are parts of: slopes that are equal are then equal to the
    # last bit, and tie.
    right, down = _scharr(value.twice.reshape(shape))
    return rank_cells(right**2 + down**2, whole=True)


class _Masks:
    """K masks of the same size, and how well a map detects each of them."""

    def __init__(self, regions: Sequence[Regions]) -> None:
        bands = [where.band[1:-1, 1:-1].ravel() for where in regions]
        self._bands = np.stack(bands, axis=1).astype(np.float64)
        self._in_band = np.array([band.sum() for band in bands], np.float64)
        self._labels = [(where.inside + 2 * where.outside.astype(np.uint8)).ravel() for where in regions]
        self._counts = [(int(where.inside.sum()), int(where.outside.sum())) for where in regions]

    def edge(self, ranked: Ranked) -> NDArray[np.float64]:
        """2 AUC - 1 of the cells of each band against all others: P(one in it is higher) - P(one outside is higher).

        From the sum of their ranks (Mann and Whitney), exactly.

        Returns:
            ``(M, K)``; NaN for a map that is not defined, and where a band or its rest has less than ``MIN_CELLS``.
        """
        inside, outside = self._in_band, len(self._bands) - self._in_band
        usable = (np.minimum(inside, outside) >= MIN_CELLS) & ranked.defined[:, None]
        gained = ranked.twice @ self._bands - inside**2
        return np.divide(gained, inside * outside, out=np.full(gained.shape, np.nan), where=usable) - 1

    def polarity(self, ranked: Ranked) -> NDArray[np.float64]:
        """2 AUC - 1 of the inside against the outside: P(one inside is higher) - P(one outside is higher), exactly.

        Returns:
            ``(M, K)``; NaN for a map that is not defined, and where either has less than ``MIN_CELLS``.
        """
        found = np.full((len(ranked.order), len(self._labels)), np.nan)
        for number, (label, (ups, downs)) in enumerate(zip(self._labels, self._counts, strict=True)):
            if min(ups, downs) >= MIN_CELLS:
                ordered = label.take(ranked.order)
                won = _won(ordered, ups, downs) + _won_by_ties(ordered, ranked.ties)
                found[:, number] = 2 * won / (ups * downs) - 1
        found[~ranked.defined] = np.nan
        return found


def _won(ordered: NDArray[np.uint8], ups: int, downs: int) -> NDArray[np.float64]:
    """How often a cell of label 1 comes after one of label 2, of M maps whose labels are given in order, ``(M, n)``."""
    # Below one inside lie as many of both as its place tells, less those inside among them.
    counted = ordered[ordered != 0]
    places = np.flatnonzero(counted == 1).reshape(len(ordered), ups)  # all maps counted in a row
    sums = places.sum(1) - ups * (ups + downs) * np.arange(len(ordered))
    return (sums - ups * (ups - 1) // 2).astype(np.float64)


def _won_by_ties(ordered: NDArray[np.uint8], ties: Ties) -> NDArray[np.float64]:
    """What to add to :func:`_won`, which takes equal cells as they come, so that each pair of them counts half."""
    if not len(ties.start):
        return np.zeros(len(ordered))
    labels = ordered.ravel()[ties.places]
    up, down = (labels == 1).astype(np.int64), (labels == 2).astype(np.int64)
    before = np.cumsum(down)
    ups, downs, counted = (np.add.reduceat(part, ties.start) for part in (up, down, up * before))
    counted -= ups * (before - down)[ties.start]  # those of the groups before
    missing = np.bincount(ties.row, weights=ups * downs / 2 - counted, minlength=len(ordered))
    return missing.astype(np.float64)


def _checked(maps: NDArray[np.floating], regions: Regions) -> NDArray[np.floating]:
    if maps.ndim < 2 or maps.shape[-2:] != regions.band.shape:
        raise FadevizError(f"maps are {maps.shape}, the regions {regions.band.shape}: build them for the maps' size")
    return maps
