"""How well a map shows the outline, and how well the interior: areas under the ROC curve, and the distance-time map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from ..runs import Maps
from .blocks import in_blocks
from .regions import Regions
from .spectrum import FLAT

MIN_CELLS = 8
"""A region of fewer cells counts as empty: of so few, a polarity-free area is far from chance by chance."""

QUANTITIES = {
    "value": "the maps themselves, all turned over if the inside is below the outside at the end",
    "gradient": "how steep the map is: the squared gradient of its ranks, without the outermost cells",
}
"""What a distance-time map shows the ranks of."""

LAST = 3
"""So many snapshots at the end of a run stand for its end."""


def ranks(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """The place of each cell's value among its map's: (rank - 1/2) / (h w), in (0, 1), ties averaged, mean 1/2.

    No increasing rescaling of a map changes it.

    Shape: ``(..., h, w)`` -> the same; all NaN where a map is constant or not finite.
    """
    if not maps.size:
        return np.full(maps.shape, np.nan)
    ranked = _rank(maps.reshape(-1, *maps.shape[-2:]))
    place = ranked.twice / (2 * ranked.twice.shape[1])
    return np.where(ranked.defined[:, None], place, np.nan).reshape(maps.shape)


def squared_gradient(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """(dF/dx)^2 + (dF/dy)^2 by Scharr's 3x3 operator: the central difference, smoothed 3:10:3 across.

    A step between two cells is seen in both of them and, through the smoothing, in those that touch it only at a
    corner. The outermost cells, which lack neighbours, are left out: whatever is made up beyond the border makes noise
    steeper or flatter there than elsewhere, and so moves chance.

    Shape: ``(..., h, w)`` -> ``(..., h - 2, w - 2)``. Units: (value per cell)^2.
    """
    f = maps.astype(np.float64)
    down = f[..., 2:, :] - f[..., :-2, :]
    right = f[..., :, 2:] - f[..., :, :-2]
    dy = (3 * down[..., :-2] + 10 * down[..., 1:-1] + 3 * down[..., 2:]) / 32
    dx = (3 * right[..., :-2, :] + 10 * right[..., 1:-1, :] + 3 * right[..., 2:, :]) / 32
    total: NDArray[np.float64] = dx**2 + dy**2
    return total


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
    series = _checked(maps, regions).reshape(-1, *maps.shape[-2:])
    value = _rank(series)
    steepness = _rank_steepness(value) if ranked else _rank_raw_steepness(series, value.defined)
    return _against_all_else(steepness, [regions.band[1:-1, 1:-1]])[:, 0].reshape(maps.shape[:-2])


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
    ranked = _rank(_checked(maps, regions).reshape(-1, *maps.shape[-2:]))
    return _separation(ranked, regions.inside, regions.outside).reshape(maps.shape[:-2])


@dataclass(frozen=True)
class Kymograph:
    """A distance-time map: the mean response by signed distance to the contour and by step.

    Attributes:
        edges: ``(D + 1,)``, of the bins of signed distance, in pixels of the layer, negative inside.
        value: ``(S, D)``, the mean over images of their mean in a bin, in (0, 1); 1/2 is the middle of a map's values.
            NaN where no image has a cell or a defined map.
        images: ``(S, D)``, how many images (of all runs) each value is the mean of.
        cells: ``(S, D)``, how many cells those have in the bin.
        quantity: a name in ``QUANTITIES``.
    """

    edges: NDArray[np.float64]
    value: NDArray[np.float64]
    images: NDArray[np.int64]
    cells: NDArray[np.int64]
    quantity: str

    @property
    def distance(self) -> NDArray[np.float64]:
        """``(D,)``, the middles of the bins, in pixels of the layer."""
        return (self.edges[1:] + self.edges[:-1]) / 2


@dataclass(frozen=True)
class Responses:
    """What the maps of one run show: S steps, N images.

    Attributes:
        edge: ``(S, N)``, as of :func:`edge_response`.
        interior: ``(S, N)``, as of :func:`interior_response`.
        edge_raw: ``(S, N)``, the edge response of the maps as they are, without their ranks.
        edge_elsewhere: ``(S, N)``, the mean edge response of a map for the other images' masks: what its place in the
            picture alone gives, for contours are where contours often are. NaN with one image.
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
    tables = {name: np.full(maps.shape[:2], np.nan) for name in _TABLES}
    value = _Binned(len(maps), edges, [where.distance for where in regions])
    gradient = _Binned(len(maps), edges, [where.distance[1:-1, 1:-1] for where in regions])
    turn = _turn(maps[-LAST:], regions)
    for start, block in in_blocks(maps):
        there = slice(start, start + len(block))
        for image, where in enumerate(regions):
            seen = _look(_checked(block[:, image], where), regions)
            for name, found in (("edge", seen.edge), ("edge_raw", seen.edge_raw), ("interior", seen.interior)):
                tables[name][there, image] = found[:, image]
                tables[f"{name}_elsewhere"][there, image] = _mean_of_defined(
                    np.delete(found, image, axis=1).T, len(block)
                )
            value.add(start, image, seen.value, turn=turn)
            gradient.add(start, image, seen.steepness)
    edge_room, interior_room = _room(regions)
    kymographs = {"value": value.mean("value"), "gradient": gradient.mean("gradient")}
    return Responses(**tables, edge_room=edge_room, interior_room=interior_room, **kymographs)


_TABLES = ("edge", "interior", "edge_raw", "edge_elsewhere", "edge_raw_elsewhere", "interior_elsewhere")


class _Look(NamedTuple):
    """What there is to see in the maps of an image at T steps: its ranks, and how well they find each of K masks.

    Attributes:
        value: ranks of the maps.
        steepness: ranks of the steepness of those ranks, without the outermost cells.
        edge: ``(T, K)``, the edge response for each mask.
        edge_raw: ``(T, K)``, the same of the maps as they are.
        interior: ``(T, K)``, the interior response for each mask.
    """

    value: _Ranked
    steepness: _Ranked
    edge: NDArray[np.float64]
    edge_raw: NDArray[np.float64]
    interior: NDArray[np.float64]


def _look(series: NDArray[np.floating], regions: Sequence[Regions]) -> _Look:
    value = _rank(series)
    steepness, raw = _rank_steepness(value), _rank_raw_steepness(series, value.defined)
    bands = [where.band[1:-1, 1:-1] for where in regions]
    return _Look(
        value=value,
        steepness=steepness,
        edge=_against_all_else(steepness, bands),
        edge_raw=_against_all_else(raw, bands),
        interior=np.abs(np.stack([_separation(value, where.inside, where.outside) for where in regions], axis=1)),
    )


def _room(regions: Sequence[Regions]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much better perfect maps, 1 inside and 0 outside, are for their own masks than for the others'."""
    edge, interior = np.full((2, len(regions)), np.nan)
    for image, where in enumerate(regions):
        seen = _look((where.distance < 0).astype(np.float64)[None], regions)
        for table, found in ((edge, seen.edge), (interior, seen.interior)):
            table[image] = (found[:, image] - _mean_of_defined(np.delete(found, image, axis=1).T, 1)).item()
    return edge, interior


def _turn(late: NDArray[np.floating], regions: Sequence[Regions]) -> bool:
    """Whether the inside is below the outside in the last maps, in the sum over images."""
    found = np.array([polarity(late[:, image], where) for image, where in enumerate(regions)])
    return bool(np.nansum(found) < 0)


def _mean_of_defined(rows: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Mean over the rows, each ``(length,)``, without NaN; NaN where there is nothing else."""
    table = np.array(rows).reshape(len(rows), length)
    known = np.isfinite(table)
    count = known.sum(0)
    return np.divide(np.where(known, table, 0).sum(0), count, out=np.full(length, np.nan), where=count > 0)


class _Binned:
    """Sums over images of their means in bins of distance."""

    def __init__(self, steps: int, edges: NDArray[np.float64], distances: Sequence[NDArray[np.float64]]) -> None:
        self.edges = np.asarray(edges, np.float64)
        self.total = np.zeros((steps, len(edges) - 1))
        self.images, self.cells = np.zeros(self.total.shape, np.int64), np.zeros(self.total.shape, np.int64)
        numbers = [np.digitize(distance, self.edges).ravel() - 1 for distance in distances]
        self._counts = [np.array([(number == bin).sum() for bin in range(len(edges) - 1)]) for number in numbers]
        self._sorted = [np.argsort(number, kind="stable")[(number < 0).sum() :] for number in numbers]

    def add(self, start: int, image: int, ranked: _Ranked, *, turn: bool = False) -> None:
        """Add an image's maps of the steps from ``start`` on; ``turn`` takes 1 less each place."""
        counts = self._counts[image]
        filled = np.flatnonzero(counts)
        if not len(filled):
            return
        defined = start + np.flatnonzero(ranked.defined)
        kept = ranked.twice[ranked.defined][:, self._sorted[image][: counts.sum()]]
        ends = np.cumsum(counts[filled])
        # Sums of whole numbers, exact in any order.
        sums = np.add.reduceat(kept, ends - counts[filled], axis=1)
        means = sums / (2 * ranked.twice.shape[1] * counts[filled])
        at = np.ix_(defined, filled)
        self.total[at] += 1 - means if turn else means
        self.images[at] += 1
        self.cells[at] += counts[filled]

    def mean(self, quantity: str) -> Kymograph:
        value = np.divide(self.total, self.images, out=np.full(self.total.shape, np.nan), where=self.images > 0)
        return Kymograph(self.edges, value, self.images, self.cells, quantity)


def merge_kymographs(parts: Sequence[Kymograph]) -> Kymograph:
    """The mean over several runs, every image of every run counted the same; they must share bins and steps."""
    first = parts[0]
    images = np.sum([part.images for part in parts], axis=0)
    total = np.sum([np.where(part.images > 0, part.value, 0) * part.images for part in parts], axis=0)
    value = np.divide(total, images, out=np.full(total.shape, np.nan), where=images > 0)
    cells = np.sum([part.cells for part in parts], axis=0)
    return Kymograph(first.edges, value, images, cells, first.quantity)


class _Ranked(NamedTuple):
    """The cells of T maps of n cells by rank, counted so that all are whole numbers.

    Attributes:
        twice: ``(T, n)``, twice a cell's rank from 1, less 1; ties averaged. Meaningless where a map is not defined.
        order: ``(T, n)``, the cells from the lowest to the highest.
        tied: ``(T,)``, whether any cells are equal.
        defined: ``(T,)``, whether a map is finite and more than constant.
        shape: height and width of the maps.
    """

    twice: NDArray[np.float64]
    order: NDArray[np.intp]
    tied: NDArray[np.bool_]
    defined: NDArray[np.bool_]
    shape: tuple[int, int]


def _rank(maps: NDArray[np.floating]) -> _Ranked:
    """The ranks of maps ``(T, h, w)``."""
    shape = (maps.shape[-2], maps.shape[-1])
    flat = maps.reshape(len(maps), -1 if maps.size else math.prod(shape))
    order = flat.argsort(axis=1)
    ordered = np.take_along_axis(flat, order, axis=1)
    same = ordered[:, 1:] == ordered[:, :-1]
    tied = same.any(axis=1)
    place = np.arange(flat.shape[1])
    ranked = np.broadcast_to(2.0 * place + 1, flat.shape)
    if tied.any():
        ranked = ranked.copy()
        first, last = _ends_of_ties(same[tied], place)
        ranked[tied] = first + last + 1
    twice = np.empty(flat.shape)
    np.put_along_axis(twice, order, ranked, axis=1)
    if not flat.shape[1]:
        return _Ranked(twice, order, tied, np.zeros(len(flat), bool), shape)
    # The ends in order say what has_pattern asks of a map: NaN comes last.
    low, high = ordered[:, 0].astype(np.float64), ordered[:, -1].astype(np.float64)
    finite = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(finite, low, 0), np.where(finite, high, 0)
    defined = finite & (high - low > FLAT * np.maximum(np.abs(low), np.abs(high)))
    return _Ranked(twice, order, tied, defined, shape)


def _ends_of_ties(same: NDArray[np.bool_], place: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first and the last place of each cell's equals, in order; ``same``: whether it equals the one before."""
    edge = np.zeros((len(same), 1), bool)
    first = np.maximum.accumulate(np.where(np.hstack([edge, same]), 0, place), axis=1)
    last = np.minimum.accumulate(np.where(np.hstack([same, edge]), len(place), place)[:, ::-1], axis=1)[:, ::-1]
    return first, last


def _rank_steepness(value: _Ranked) -> _Ranked:
    """The ranks of the squared gradient of maps given by their ranks; without the outermost cells."""
    # Of whole numbers, times the 32 that Scharr's weights are parts of: slopes that are equal are then equal to the
    # last bit, and tie.
    ranked = _rank(squared_gradient(value.twice.reshape(-1, *value.shape) * 32))
    return ranked._replace(defined=ranked.defined & value.defined)


def _rank_raw_steepness(maps: NDArray[np.floating], defined: NDArray[np.bool_]) -> _Ranked:
    """The ranks of the squared gradient of maps as they are; without the outermost cells."""
    safe = maps if defined.all() else np.where(defined[:, None, None], maps, 0)
    ranked = _rank(squared_gradient(safe))
    return ranked._replace(defined=ranked.defined & defined)


def _against_all_else(ranked: _Ranked, masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """2 AUC - 1 of the cells in each mask against all others: P(one in it is higher) - P(one outside is higher).

    From the sum of their ranks (Mann and Whitney), exactly.

    Returns:
        ``(T, K)``; NaN where a mask or its rest has less than ``MIN_CELLS``.
    """
    table = np.stack([mask.ravel() for mask in masks], axis=1)
    inside = table.sum(0).astype(np.float64)
    outside = len(table) - inside
    usable = np.minimum(inside, outside) >= MIN_CELLS
    found = np.full((len(ranked.twice), len(masks)), np.nan)
    sums = ranked.twice[ranked.defined] @ table[:, usable].astype(np.float64)
    inside, outside = inside[usable], outside[usable]
    found[np.ix_(ranked.defined, usable)] = (sums - inside**2) / (inside * outside) - 1
    return found


def _separation(ranked: _Ranked, positive: NDArray[np.bool_], negative: NDArray[np.bool_]) -> NDArray[np.float64]:
    """2 AUC - 1 of positive against negative cells: P(a positive is higher) - P(a negative is higher), exactly.

    In the order of the ranks, each positive beats the negatives counted below it, and half of its equals.

    Returns:
        ``(T,)``; NaN where either has less than ``MIN_CELLS``.
    """
    result = np.full(len(ranked.twice), np.nan)
    ups, downs = int(positive.sum()), int(negative.sum())
    if min(ups, downs) < MIN_CELLS:
        return result
    up, down = positive.ravel(), negative.ravel()
    apart = np.flatnonzero(ranked.defined & ~ranked.tied)
    order = ranked.order[apart]
    below = np.cumsum(down[order], axis=1, dtype=np.int32)
    won = np.where(up[order], below, 0).sum(axis=1, dtype=np.int64)
    result[apart] = 2 * won / (ups * downs) - 1
    for index in np.flatnonzero(ranked.defined & ranked.tied):
        code = ranked.twice[index].astype(np.int64)
        higher = np.bincount(code[up], minlength=2 * code.size)
        lower = np.bincount(code[down], minlength=2 * code.size)
        result[index] = 2 * (higher * (np.cumsum(lower) - lower / 2)).sum() / (ups * downs) - 1
    return result


def _checked(maps: NDArray[np.floating], regions: Regions) -> NDArray[np.floating]:
    if maps.ndim < 2 or maps.shape[-2:] != regions.band.shape:
        raise FadevizError(f"maps are {maps.shape}, the regions {regions.band.shape}: build them for the maps' size")
    return maps
