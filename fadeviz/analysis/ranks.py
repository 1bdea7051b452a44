"""The ranks of a map's cells: exact, with ties averaged, for many maps at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .blocks import FLAT, has_pattern

_BATCH = 2**15
"""Values ranked at a time: their positions take twice as much memory."""


class Ties(NamedTuple):
    """Groups of equal cells in M sorted maps of n cells: G groups with T cells in all.

    Attributes:
        row: ``(G,)``, index of each group's map.
        size: ``(G,)``, number of cells in the group.
        start: ``(G,)``, index in ``places`` of the group's first cell.
        places: ``(T,)``, positions of the cells in the sorted maps, counted through all maps.
        twice: ``(G,)``, rank of the group's cells, counted as in ``Ranked``.
    """

    row: NDArray[np.intp]
    size: NDArray[np.intp]
    start: NDArray[np.intp]
    places: NDArray[np.intp]
    twice: NDArray[np.intp]


class Ranked(NamedTuple):
    """The ranks of the n cells of M maps, scaled so that all are whole numbers.

    Attributes:
        twice: ``(M, n)``, twice a cell's rank (from 1) minus 1; ties averaged. Meaningless where a map is undefined.
        order: ``(M, n)``, indices of the cells from the lowest to the highest.
        ties: groups of equal cells.
        defined: ``(M,)``, whether the map is finite and not constant.
    """

    twice: NDArray[np.float64]
    order: NDArray[np.intp]
    ties: Ties
    defined: NDArray[np.bool_]


def ranks(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    r"""Relative rank of each cell among the cells of its map.

    .. math:: \rho_i = \frac{r_i - 1/2}{h\,w}

    with :math:`r_i` the rank of cell :math:`i`, from 1 for the lowest value, ties averaged. The ranks lie in (0, 1) and
    have the mean 1/2. No increasing rescaling of a map changes them.

    Shape: ``(..., h, w)`` -> ``(..., h, w)``; NaN everywhere if a map is constant or not finite.
    """
    relative = np.full(maps.shape, np.nan)
    flat = relative.reshape(math.prod(maps.shape[:-2]), *maps.shape[-2:])
    for rows, batch in defined_maps(maps):
        ranked = rank_cells(batch)
        flat[rows] = (ranked.twice / (2 * ranked.twice.shape[1])).reshape(batch.shape)
    return relative


def defined_maps(maps: NDArray[np.floating]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.floating]]]:
    """Iterate over the maps ``(..., h, w)`` that are finite and not constant, as many at a time as the cache holds.

    Yields:
        Indices of the maps, counted through all leading axes, and the maps, ``(M, h, w)``.
    """
    usable = np.flatnonzero(has_pattern(maps))
    flat = maps.reshape(math.prod(maps.shape[:-2]), *maps.shape[-2:])
    length = max(1, _BATCH // max(1, math.prod(maps.shape[-2:])))
    for start in range(0, len(usable), length):
        rows = usable[start : start + length]
        yield rows, flat[rows]


def rank_cells(maps: NDArray[np.floating], *, whole: bool = False) -> Ranked:
    """Rank the cells of maps.

    Args:
        maps: ``(M, h, w)``.
        whole: whether all values are known to be whole numbers of 0 or more, which are sorted faster.
    """
    flat = maps.reshape(len(maps), -1)
    if not flat.shape[1]:
        nothing = np.empty(flat.shape, np.intp)
        none = np.empty(0, np.intp)
        return Ranked(np.empty(flat.shape), nothing, Ties(none, none, none, none, none), np.zeros(len(flat), bool))
    order = _by_digits(flat.astype(np.uint64)) if whole else _ascending(flat)
    at = _flat_indices(order)
    ordered = flat.ravel()[at]
    ties = _find_ties(ordered)
    places = np.tile(2.0 * np.arange(flat.shape[1]) + 1, (len(flat), 1))
    places.ravel()[ties.places] = ties.twice.repeat(ties.size)
    twice = np.empty(flat.shape)
    twice.ravel()[at] = places
    # The two ends of a sorted map are enough for what has_pattern tests: non-finite values are at one of them.
    low, high = ordered[:, 0].astype(np.float64), ordered[:, -1].astype(np.float64)
    finite = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(finite, low, 0), np.where(finite, high, 0)
    return Ranked(twice, order, ties, high - low > FLAT * np.maximum(np.abs(low), np.abs(high)))


def _flat_indices(order: NDArray[np.intp]) -> NDArray[np.intp]:
    """Indices into each row as indices into all rows, flattened."""
    rows, length = order.shape
    return order + np.arange(0, rows * length, length)[:, None]


def _find_ties(ordered: NDArray[np.floating]) -> Ties:
    """The groups of equal values in rows that do not decrease."""
    rows, length = ordered.shape
    same = np.zeros((rows, length + 1), bool)
    same[:, 1:-1] = ordered[:, 1:] == ordered[:, :-1]
    # A group begins where a cell first equals the next one, and ends where it no longer does.
    first, last = np.flatnonzero(same[:, 1:] != same[:, :-1]).reshape(-1, 2).T
    size, row = last - first + 1, first // length
    start = np.cumsum(size) - size
    places = np.arange(size.sum()) + (first - start).repeat(size)
    return Ties(row, size, start, places, first + last - 2 * length * row + 1)


def _ascending(values: NDArray[np.floating]) -> NDArray[np.intp]:
    """Indices that sort each row of values ``(M, n)``; NaN comes first or last.

    float32 is sorted by a radix sort of its bits, in half the time that comparisons take.
    """
    if values.dtype != np.float32:
        return values.argsort(axis=1)
    bits = (values + np.float32(0)).view(np.uint32)  # -0 equals 0
    top = np.uint32(2**31)
    keys = np.where(bits >= top, ~bits, bits | top)  # negative numbers: more bits, lower value
    return _by_digits(keys)


def _by_digits(keys: NDArray[np.unsignedinteger]) -> NDArray[np.intp]:
    """Indices that sort each row of whole numbers ``(M, n)``: a radix sort by digits of 16 bits, the lowest first."""
    order = keys.astype(np.uint16).argsort(axis=1, kind="stable")
    for shift in range(16, int(keys.max()).bit_length(), 16):
        digit = (keys >> keys.dtype.type(shift)).astype(np.uint16)
        at = _flat_indices(order)
        order = order.ravel()[_flat_indices(digit.ravel()[at].argsort(axis=1, kind="stable"))]
    return order
