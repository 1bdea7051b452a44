"""The ranks of a map's cells: exact, ties averaged, many maps at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .blocks import FLAT, has_pattern

_BATCH = 2**15
"""So many values are ranked at a time: their places take twice their room."""


class Ties(NamedTuple):
    """Runs of equal cells of maps ``(M, n)`` in order; G groups, T cells in them. Empty where no cells are equal.

    Attributes:
        row: ``(G,)``, the map of each group.
        size: ``(G,)``, cells in it.
        start: ``(G,)``, where its cells begin in ``places``.
        places: ``(T,)``, where the cells lie in the maps' order, all maps counted in a row.
        twice: ``(G,)``, what each of its cells has for a rank, as in ``Ranked``.
    """

    row: NDArray[np.intp]
    size: NDArray[np.intp]
    start: NDArray[np.intp]
    places: NDArray[np.intp]
    twice: NDArray[np.intp]


class Ranked(NamedTuple):
    """The n cells of M maps by rank, counted so that all are whole numbers.

    Attributes:
        twice: ``(M, n)``, twice a cell's rank from 1, less 1; ties averaged. Meaningless where a map is not defined.
        order: ``(M, n)``, the cells from the lowest to the highest.
        ties: the cells that are equal.
        defined: ``(M,)``, whether the map is finite and more than constant.
    """

    twice: NDArray[np.float64]
    order: NDArray[np.intp]
    ties: Ties
    defined: NDArray[np.bool_]


def ranks(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """The place of each cell's value among its map's: (rank - 1/2) / (h w), in (0, 1), ties averaged, mean 1/2.

    No increasing rescaling of a map changes it.

    Shape: ``(..., h, w)`` -> the same; all NaN where a map is constant or not finite.
    """
    place = np.full(maps.shape, np.nan)
    flat = place.reshape(math.prod(maps.shape[:-2]), *maps.shape[-2:])
    for rows, batch in defined_maps(maps):
        ranked = rank_cells(batch)
        flat[rows] = (ranked.twice / (2 * ranked.twice.shape[1])).reshape(batch.shape)
    return place


def defined_maps(maps: NDArray[np.floating]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.floating]]]:
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


def rank_cells(maps: NDArray[np.floating], *, whole: bool = False) -> Ranked:
    """The ranks of maps ``(M, h, w)``; ``whole`` where their values are known to be whole numbers from 0."""
    flat = maps.reshape(len(maps), -1)
    if not flat.shape[1]:
        nothing = np.empty(flat.shape, np.intp)
        none = np.empty(0, np.intp)
        return Ranked(np.empty(flat.shape), nothing, Ties(none, none, none, none, none), np.zeros(len(flat), bool))
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
    return Ranked(twice, order, ties, high - low > FLAT * np.maximum(np.abs(low), np.abs(high)))


def _in_a_row(order: NDArray[np.intp]) -> NDArray[np.intp]:
    """Places in each of several rows as places in all of them, one after the other."""
    rows, length = order.shape
    return order + np.arange(0, rows * length, length)[:, None]


def _find_ties(ordered: NDArray[np.floating]) -> Ties:
    """The runs of equal values in rows that increase."""
    rows, length = ordered.shape
    same = np.zeros((rows, length + 1), bool)
    same[:, 1:-1] = ordered[:, 1:] == ordered[:, :-1]
    # A run begins where a cell is first equal to the one after it, and ends where it no longer is.
    first, last = np.flatnonzero(same[:, 1:] != same[:, :-1]).reshape(-1, 2).T
    size, row = last - first + 1, first // length
    start = np.cumsum(size) - size
    places = np.arange(size.sum()) + (first - start).repeat(size)
    return Ties(row, size, start, places, first + last - 2 * length * row + 1)


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
