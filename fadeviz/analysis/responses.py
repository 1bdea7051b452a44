"""How well a map shows the outline, and how well the interior: areas under the ROC curve, and the distance-time map."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from ..storage.maps import Maps
from .blocks import in_blocks
from .regions import Regions
from .spectrum import FLAT, has_pattern

MIN_CELLS = 8
"""A region of fewer cells counts as empty: of so few, a polarity-free area is far from chance by chance."""

QUANTITIES = {
    "value": "the maps themselves, all turned over if the inside is below the outside at the end",
    "gradient": "how steep the map is: the squared gradient of its ranks, without the outermost cells",
}
"""What a distance-time map shows the ranks of."""

_BATCH = 2**15
"""So many values are ranked at a time: their places take twice their room."""

LAST = 3
"""So many snapshots at the end of a run stand for its end."""


def ranks(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """The place of each cell's value among its map's: (rank - 1/2) / (h w), in (0, 1), ties averaged, mean 1/2.

    No increasing rescaling of a map changes it.

    Shape: ``(..., h, w)`` -> the same; all NaN where a map is constant or not finite.
    """
    place = np.full(maps.shape, np.nan)
    flat = place.reshape(math.prod(maps.shape[:-2]), *maps.shape[-2:])
    for rows, batch in _defined_maps(maps):
        ranked = _rank(batch)
        flat[rows] = (ranked.twice / (2 * ranked.twice.shape[1])).reshape(batch.shape)
    return place


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
    for rows, batch in _defined_maps(maps):
        steepness = _steepness(_rank(batch), batch.shape) if ranked else _rank(squared_gradient(batch))
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
    for rows, batch in _defined_maps(maps):
        flat[rows] = masks.polarity(_rank(batch))[:, 0]
    return found


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
    value = _Binned(len(maps), edges, [where.distance for where in regions])
    gradient = _Binned(len(maps), edges, [where.distance[1:-1, 1:-1] for where in regions])
    turn = _turn(maps[-LAST:], regions)
    for start, block in in_blocks(maps):
        for image in range(block.shape[1]):
            for rows, batch in _defined_maps(_checked(block[:, image], regions[image])):
                steps = start + rows
                ranked = _rank(batch)
                steepness = _steepness(ranked, batch.shape)
                edge[steps, image] = masks.edge(steepness)
                edge_raw[steps, image] = masks.edge(_rank(squared_gradient(batch)))
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
        for _, batch in _defined_maps((where.distance < 0).astype(np.float64)):
            ranked = _rank(batch)
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


class _Binned:
    """Sums over images of their means in bins of distance."""

    def __init__(self, steps: int, edges: NDArray[np.float64], distances: Sequence[NDArray[np.float64]]) -> None:
        self.edges = np.asarray(edges, np.float64)
        self.total = np.zeros((steps, len(edges) - 1))
        self.images, self.cells = np.zeros(self.total.shape, np.int64), np.zeros(self.total.shape, np.int64)
        self._bins: list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]] = []
        for distance in distances:
            number = np.digitize(distance, self.edges).ravel() - 1
            counts = np.array([(number == index).sum() for index in range(len(edges) - 1)], np.intp)
            filled = np.flatnonzero(counts)
            sorted_cells = np.argsort(number, kind="stable")[(number < 0).sum() :][: counts.sum()]
            self._bins.append((filled, counts[filled], sorted_cells))

    def add(self, steps: NDArray[np.intp], image: int, ranked: _Ranked, *, turn: bool = False) -> None:
        """Add an image's maps of some steps; ``turn`` takes 1 less each place."""
        filled, counts, cells = self._bins[image]
        steps = steps[ranked.defined]
        if not len(steps) or not len(filled):
            return
        # Sums of whole numbers, exact in any order.
        places = ranked.twice[ranked.defined].take(cells, axis=1)
        sums = np.add.reduceat(places, np.cumsum(counts) - counts, axis=1)
        means = sums / (2 * ranked.twice.shape[1] * counts)
        at = np.ix_(steps, filled)
        self.total[at] += 1 - means if turn else means
        self.images[at] += 1
        self.cells[at] += counts

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


def _defined_maps(maps: NDArray[np.floating]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.floating]]]:
    """Maps ``(..., h, w)`` that are finite and more than constant, as many at a time as a processor's cache holds.

    Yields:
        Their numbers, all leading axes counted as one, and the maps, ``(M, h, w)``.
    """
    usable = np.flatnonzero(has_pattern(maps))
    flat = maps.reshape(math.prod(maps.shape[:-2]), *maps.shape[-2:])
    length = max(1, _BATCH // max(1, math.prod(maps.shape[-2:])))
    for start in range(0, len(usable), length):
        rows = usable[start : start + length]
        yield rows, flat[rows]


class _Ties(NamedTuple):
    """Runs of equal cells of maps ``(M, n)`` in order; G groups, T cells in them. Empty where no cells are equal.

    Attributes:
        row: ``(G,)``, the map of each group.
        size: ``(G,)``, cells in it.
        start: ``(G,)``, where its cells begin in ``places``.
        places: ``(T,)``, where the cells lie in the maps' order, all maps counted in a row.
        twice: ``(G,)``, what each of its cells has for a rank, as in ``_Ranked``.
    """

    row: NDArray[np.intp]
    size: NDArray[np.intp]
    start: NDArray[np.intp]
    places: NDArray[np.intp]
    twice: NDArray[np.intp]


class _Ranked(NamedTuple):
    """The n cells of M maps by rank, counted so that all are whole numbers.

    Attributes:
        twice: ``(M, n)``, twice a cell's rank from 1, less 1; ties averaged. Meaningless where a map is not defined.
        order: ``(M, n)``, the cells from the lowest to the highest.
        ties: the cells that are equal.
        defined: ``(M,)``, whether the map is finite and more than constant.
    """

    twice: NDArray[np.float64]
    order: NDArray[np.intp]
    ties: _Ties
    defined: NDArray[np.bool_]


def _rank(maps: NDArray[np.floating], *, whole: bool = False) -> _Ranked:
    """The ranks of maps ``(M, h, w)``; ``whole`` where their values are known to be whole numbers from 0."""
    flat = maps.reshape(len(maps), -1)
    if not flat.shape[1]:
        nothing = np.empty(flat.shape, np.intp)
        none = np.empty(0, np.intp)
        return _Ranked(np.empty(flat.shape), nothing, _Ties(none, none, none, none, none), np.zeros(len(flat), bool))
    order = _by_digits(flat.astype(np.uint64)) if whole else _ascending(flat)
    at = _in_a_row(order)
    ordered = flat.ravel()[at]
    ties = _find_ties(ordered)
    places = np.tile(2.0 * np.arange(flat.shape[1]) + 1, (len(flat), 1))
    places.ravel()[ties.places] = ties.twice.repeat(ties.size)
    twice = np.empty(flat.shape)
    twice.ravel()[at] = places
    # The ends in order say what has_pattern asks of a map: what is not finite is at one of them.
    low, high = ordered[:, 0].astype(np.float64), ordered[:, -1].astype(np.float64)
    finite = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(finite, low, 0), np.where(finite, high, 0)
    return _Ranked(twice, order, ties, high - low > FLAT * np.maximum(np.abs(low), np.abs(high)))


def _in_a_row(order: NDArray[np.intp]) -> NDArray[np.intp]:
    """Places in each of several rows as places in all of them, one after the other."""
    rows, length = order.shape
    return order + np.arange(0, rows * length, length)[:, None]


def _find_ties(ordered: NDArray[np.floating]) -> _Ties:
    """The runs of equal values in rows that increase."""
    rows, length = ordered.shape
    same = np.zeros((rows, length + 1), bool)
    same[:, 1:-1] = ordered[:, 1:] == ordered[:, :-1]
    # A run begins where a cell is first equal to the one after it, and ends where it no longer is.
    first, last = np.flatnonzero(same[:, 1:] != same[:, :-1]).reshape(-1, 2).T
    size, row = last - first + 1, first // length
    start = np.cumsum(size) - size
    places = np.arange(size.sum()) + (first - start).repeat(size)
    return _Ties(row, size, start, places, first + last - 2 * length * row + 1)


def _ascending(values: NDArray[np.floating]) -> NDArray[np.intp]:
    """The places of values ``(M, n)`` from the lowest to the highest of each row; what is NaN comes first or last.

    Of float32 by a radix sort of the bits that these numbers are ordered by, which takes half the time of comparisons.
    """
    if values.dtype != np.float32:
        return values.argsort(axis=1)
    bits = (values + np.float32(0)).view(np.uint32)  # -0 is 0
    top = np.uint32(2**31)
    keys = np.where(bits >= top, ~bits, bits | top)  # of negative numbers the larger is the lower one
    return _by_digits(keys)


def _by_digits(keys: NDArray[np.unsignedinteger]) -> NDArray[np.intp]:
    """The places of whole numbers ``(M, n)`` in order, row by row: sorted by digits of 16 bits, the lowest first."""
    order = keys.astype(np.uint16).argsort(axis=1, kind="stable")
    for shift in range(16, int(keys.max()).bit_length(), 16):
        digit = (keys >> keys.dtype.type(shift)).astype(np.uint16)
        at = _in_a_row(order)
        order = order.ravel()[_in_a_row(digit.ravel()[at].argsort(axis=1, kind="stable"))]
    return order


def _steepness(value: _Ranked, shape: tuple[int, ...]) -> _Ranked:
    """The ranks of the squared gradient of maps ``(M, h, w)`` given by their ranks; without the outermost cells."""
    # Of whole numbers, times the 32 that Scharr's weights are parts of: slopes that are equal are then equal to the
    # last bit, and tie.
    right, down = _scharr(value.twice.reshape(shape))
    return _rank(right**2 + down**2, whole=True)


class _Masks:
    """K masks of the same size, and how well a map detects each of them."""

    def __init__(self, regions: Sequence[Regions]) -> None:
        bands = [where.band[1:-1, 1:-1].ravel() for where in regions]
        self._bands = np.stack(bands, axis=1).astype(np.float64)
        self._in_band = np.array([band.sum() for band in bands], np.float64)
        self._labels = [(where.inside + 2 * where.outside.astype(np.uint8)).ravel() for where in regions]
        self._counts = [(int(where.inside.sum()), int(where.outside.sum())) for where in regions]

    def edge(self, ranked: _Ranked) -> NDArray[np.float64]:
        """2 AUC - 1 of the cells of each band against all others: P(one in it is higher) - P(one outside is higher).

        From the sum of their ranks (Mann and Whitney), exactly.

        Returns:
            ``(M, K)``; NaN for a map that is not defined, and where a band or its rest has less than ``MIN_CELLS``.
        """
        inside, outside = self._in_band, len(self._bands) - self._in_band
        usable = (np.minimum(inside, outside) >= MIN_CELLS) & ranked.defined[:, None]
        gained = ranked.twice @ self._bands - inside**2
        return np.divide(gained, inside * outside, out=np.full(gained.shape, np.nan), where=usable) - 1

    def polarity(self, ranked: _Ranked) -> NDArray[np.float64]:
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


def _won_by_ties(ordered: NDArray[np.uint8], ties: _Ties) -> NDArray[np.float64]:
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
