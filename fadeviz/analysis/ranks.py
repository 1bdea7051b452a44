"""The relative ranks of a map's cells, ties averaged, for many maps at a time; and the steepness of maps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .blocks import varies


def ranks(maps: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    r"""Relative rank of each cell among the cells of its map.

    .. math:: u_i = \frac{r_i - 1/2}{h\,w}

    with :math:`r_i` the rank of cell :math:`i`, from 1 for the lowest value, ties averaged. The ranks lie in (0, 1) and
    have the mean 1/2. No increasing rescaling of a map changes them.

    Shape: ``(..., h, w)`` -> ``(..., h, w)``.

    Returns:
        The ranks, 1/2 everywhere in a map that is not finite or is constant; and which maps those are, ``(...)``.
    """
    flat = np.asarray(maps, np.float32 if maps.dtype.itemsize <= 4 else np.float64)
    flat = flat.reshape(math.prod(maps.shape[:-2]), math.prod(maps.shape[-2:]))
    if not flat.size:
        return np.full(maps.shape, 0.5, np.float32), np.ones(maps.shape[:-2], bool)
    cells = flat.shape[1]
    order, ordered = flat.argsort(axis=1), np.sort(flat, axis=1)
    relative = np.empty(flat.shape, np.float32)
    np.put_along_axis(relative, order, ((np.arange(cells) + 0.5) / cells).astype(np.float32)[None], axis=1)
    tied = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    if len(tied):
        averaged, rows = (_average_places(ordered[tied]) / cells).astype(np.float32), relative[tied]
        np.put_along_axis(rows, order[tied], averaged, axis=1)
        relative[tied] = rows
    undefined = ~varies(ordered[:, 0], ordered[:, -1])  # NaN comes last
    relative[undefined] = 0.5
    return relative.reshape(maps.shape), undefined.reshape(maps.shape[:-2])


def _average_places(ordered: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rank less 1/2 of each cell of rows that do not decrease, averaged over equal cells."""
    places = np.arange(ordered.shape[1])
    begins = np.ones(ordered.shape, bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = np.ones(ordered.shape, bool)
    ends[:, :-1] = begins[:, 1:]
    first = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    last = np.minimum.accumulate(np.where(ends, places, len(places))[:, ::-1], axis=1)[:, ::-1]
    averaged: NDArray[np.float64] = (first + last + 1) / 2
    return averaged


def squared_gradient(maps: NDArray[np.floating]) -> NDArray[np.floating]:
    r"""Squared magnitude of the gradient, by Scharr's 3x3 operator.

    .. math::

        G = (F * S)^2 + (F * S^\top)^2, \qquad
        S = \tfrac{1}{32} \begin{pmatrix} 3 & 10 & 3 \\ 0 & 0 & 0 \\ -3 & -10 & -3 \end{pmatrix}

    with :math:`F` the map and :math:`*` the convolution: central differences, smoothed by 3:10:3 across. The outermost
    cells lack neighbours and are left out: any padding would make noise steeper or flatter at the border than inside.

    Shape: ``(..., h, w)`` -> ``(..., h - 2, w - 2)``, of the maps' dtype.

    Units: (value per cell) squared.

    Source: Scharr 2000, Optimal Operators in Digital Image Processing.
    """
    down = maps[..., 2:, :] - maps[..., :-2, :]
    right = maps[..., :, 2:] - maps[..., :, :-2]
    dy = 3 * (down[..., :-2] + down[..., 2:]) + 10 * down[..., 1:-1]
    dx = 3 * (right[..., :-2, :] + right[..., 2:, :]) + 10 * right[..., 1:-1, :]
    squared: NDArray[np.floating] = (dx / 32) ** 2 + (dy / 32) ** 2
    return squared


def steepness_ranks(
    maps: NDArray[np.floating], undefined: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Relative rank of the steepness of each cell but the outermost ones, as :func:`ranks` gives it.

    Args:
        maps: ``(..., h, w)``.
        undefined: ``(...)``, maps that are not finite or are constant.

    Returns:
        ``(..., h - 2, w - 2)`` and ``(...)``.
    """
    # Squares of very large or small values would leave the range of float32.
    largest = np.maximum(np.abs(maps.max((-2, -1), keepdims=True)), np.abs(maps.min((-2, -1), keepdims=True)))
    largest[undefined] = 1
    steepness = squared_gradient(np.where(undefined[..., None, None], 0, maps / largest))
    return ranks(steepness)
