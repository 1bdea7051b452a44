"""How well a map shows the outline, and how well the interior: areas under the ROC curve, and the distance-time map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..errors import FadevizError
from .regions import Regions
from .spectrum import has_pattern

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
    flat = maps.reshape(*maps.shape[:-2], -1)
    defined = has_pattern(maps)[..., None]
    place = (stats.rankdata(np.where(defined, flat, 0), axis=-1) - 0.5) / flat.shape[-1]
    return np.where(defined, place, np.nan).reshape(maps.shape)


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
    maps = _checked(maps, regions)
    return _edge(_steepness(ranks(maps)) if ranked else _raw_steepness(maps), regions)


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
    maps = _checked(maps, regions)
    return _separation(ranks(maps), regions.inside, regions.outside)


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


def responses(maps: NDArray[np.floating], regions: Sequence[Regions], edges: NDArray[np.float64]) -> Responses:
    """Edge and interior response of every map of a run, and its two distance-time maps: they show a front that moves.

    For a distance-time map each map is replaced by its ranks (:func:`ranks`), so that a map that is only noise is 1/2
    at every distance, however its values grow, and a front is a line between high and low. That agrees with the
    interior response, which compares ranks between two ranges of distance. If the inside is below the outside at the
    end (polarity over the last ``LAST`` snapshots, summed over images), the values of all images are turned over at all
    steps alike: maps that change sign during training show that. Every image counts the same in a bin.

    Args:
        maps: ``(S, N, h, w)``, steps and images.
        regions: of the N images' masks.
        edges: of the bins of signed distance, increasing, as from :func:`~fadeviz.analysis.regions.distance_bins`.

    Raises:
        FadevizError: maps, masks and regions that do not fit together.
    """
    if maps.ndim != 4 or maps.shape[1] != len(regions):
        raise FadevizError(
            f"maps are {maps.shape} with {len(regions)} masks; needed are (steps, images, h, w) and a mask an image"
        )
    edge, interior, edge_raw, edge_elsewhere, raw_elsewhere, interior_elsewhere = np.full((6, *maps.shape[:2]), np.nan)
    value, gradient = _Binned(len(maps), edges), _Binned(len(maps), edges)
    turn = _turn(maps, regions)
    for image, where in enumerate(regions):  # one image at a time, to hold one image's ranks
        series = _checked(maps[:, image], where)
        place = ranks(series)
        steepness, raw = _steepness(place), _raw_steepness(series)
        edge[:, image], edge_raw[:, image] = _edge(steepness, where), _edge(raw, where)
        interior[:, image] = np.abs(_separation(place, where.inside, where.outside))
        others = [other for index, other in enumerate(regions) if index != image]
        for table, found in (
            (edge_elsewhere, [_edge(steepness, other) for other in others]),
            (raw_elsewhere, [_edge(raw, other) for other in others]),
            (interior_elsewhere, [np.abs(_separation(place, other.inside, other.outside)) for other in others]),
        ):
            table[:, image] = _mean_of_defined(found, len(maps))
        value.add(1 - place if turn else place, where.distance)
        gradient.add(steepness, where.distance[1:-1, 1:-1])
    kymographs = value.mean("value"), gradient.mean("gradient")
    room = _room(regions)
    return Responses(edge, interior, edge_raw, edge_elsewhere, raw_elsewhere, interior_elsewhere, *room, *kymographs)


def _room(regions: Sequence[Regions]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much better perfect maps, 1 inside and 0 outside, are for their own masks than for the others'."""
    edge, interior = np.full((2, len(regions)), np.nan)
    for image, where in enumerate(regions):
        place = ranks((where.distance < 0).astype(np.float64))[None]
        steepness = _steepness(place)
        others = [other for index, other in enumerate(regions) if index != image]
        edge[image] = (
            _edge(steepness, where) - _mean_of_defined([_edge(steepness, other) for other in others], 1)
        ).item()
        interior[image] = (
            np.abs(_separation(place, where.inside, where.outside))
            - _mean_of_defined([np.abs(_separation(place, other.inside, other.outside)) for other in others], 1)
        ).item()
    return edge, interior


def _turn(maps: NDArray[np.floating], regions: Sequence[Regions]) -> bool:
    """Whether the inside is below the outside at the end, in the sum over images."""
    late = np.array([polarity(maps[-LAST:, image], where) for image, where in enumerate(regions)])
    return bool(np.nansum(late) < 0)


def _edge(steepness: NDArray[np.float64], regions: Regions) -> NDArray[np.float64]:
    band = regions.band[1:-1, 1:-1]
    return _separation(steepness, band, ~band)


def _mean_of_defined(rows: Sequence[NDArray[np.float64]], length: int) -> NDArray[np.float64]:
    """Mean over the rows, each ``(length,)``, without NaN; NaN where there is nothing else."""
    table = np.array(rows).reshape(len(rows), length)
    known = np.isfinite(table)
    count = known.sum(0)
    return np.divide(np.where(known, table, 0).sum(0), count, out=np.full(length, np.nan), where=count > 0)


class _Binned:
    """Sums over images of their means in bins of distance."""

    def __init__(self, steps: int, edges: NDArray[np.float64]) -> None:
        self.edges = np.asarray(edges, np.float64)
        self.total = np.zeros((steps, len(edges) - 1))
        self.images, self.cells = np.zeros(self.total.shape, np.int64), np.zeros(self.total.shape, np.int64)

    def add(self, place: NDArray[np.float64], distance: NDArray[np.float64]) -> None:
        defined = np.isfinite(place).all(axis=(1, 2))
        usable = place[defined]
        number = np.digitize(distance, self.edges) - 1
        for index in np.unique(number[(number >= 0) & (number < self.total.shape[1])]):
            there = number == index
            self.total[defined, index] += usable[:, there].mean(axis=1)
            self.images[defined, index] += 1
            self.cells[defined, index] += int(there.sum())

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


def _steepness(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ranks of the squared gradient of a map given by its ranks; without the outermost cells."""
    # Back to whole numbers (twice the rank, times the 32 that Scharr's weights are parts of): slopes that are equal
    # are then equal to the last bit, and tie.
    return ranks(squared_gradient(np.rint(place * (2 * place.shape[-1] * place.shape[-2])) * 32))


def _raw_steepness(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """The ranks of the squared gradient of maps as they are; without the outermost cells."""
    defined = has_pattern(maps)[..., None, None]
    return ranks(np.where(defined, squared_gradient(np.where(defined, maps, 0)), np.nan))


def _separation(
    place: NDArray[np.float64], positive: NDArray[np.bool_], negative: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """2 AUC - 1 of positive against negative cells: P(a positive is higher) - P(a negative is higher), exactly.

    Ranks are whole numbers but for a factor, so that counting does what sorting would: each positive beats the
    negatives counted below its rank, and half of those at it.

    Shape: ``(..., h, w)`` ranks, ``(h, w)`` twice -> ``(...)``; NaN where either has less than ``MIN_CELLS``.
    """
    result = np.full(place.shape[:-2], np.nan)
    if min(positive.sum(), negative.sum()) < MIN_CELLS:
        return result
    codes = place * (2 * positive.size)
    for index in np.ndindex(result.shape):
        if np.isnan(codes[(*index, 0, 0)]):
            continue
        code = np.rint(codes[index]).astype(np.int64)
        ups = np.bincount(code[positive], minlength=2 * positive.size)
        downs = np.bincount(code[negative], minlength=2 * positive.size)
        won = (ups * (np.cumsum(downs) - downs / 2)).sum()
        result[index] = 2 * won / (ups.sum() * downs.sum()) - 1
    return result


def _checked(maps: NDArray[np.floating], regions: Regions) -> NDArray[np.floating]:
    if maps.ndim < 2 or maps.shape[-2:] != regions.band.shape:
        raise FadevizError(f"maps are {maps.shape}, the regions {regions.band.shape}: build them for the maps' size")
    return maps
