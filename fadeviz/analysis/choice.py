"""What to show of long runs: the steps between which the maps change, and the images in which the runs differ."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from ..storage.several_runs import common_steps
from ..storage.stored_run import StoredRun

_CELLS = 48
"""Largest height and width at which maps are compared; larger ones are averaged."""
_MOST_STEPS = 200
"""Largest number of snapshots among which steps are chosen; of more, evenly spaced ones."""
_IMAGE_STEPS = 24
"""The same for the choice of images."""
_EVEN = 1e-3
"""Weight of even gaps: of the squared share of the snapshots that a gap spans, against errors of maps of length 1."""


@dataclass(frozen=True)
class Choice:
    """What to show.

    Attributes:
        images: indices of all observed images, those in which the operators differ most first.
        steps: the chosen steps, increasing, with the first and the last.
    """

    images: tuple[int, ...]
    steps: tuple[int, ...]


def choose_frames(
    layers: Mapping[StoredRun, str],
    kind: str = "feature",
    *,
    count: int = 8,
    image: int | None = None,
    call: int = 0,
) -> Choice:
    """Choose images and steps for a figure; the same runs give the same choice.

    Maps are compared as a figure shows them, whatever their scale is: without their mean, and of unit variance. The
    images are sorted by how much the runs differ in them (:func:`rank_images`), and the steps chosen in the first one,
    or in ``image`` (:func:`choose_steps`).

    Args:
        layers: the recorded layer of each run; one run of each operator.
        kind: a kind with one map per image.
        count: number of steps.
        image: an image that is chosen already; it then comes first.
        call: which call of the layers.

    Raises:
        FadevizError: if the runs have no step in common, there is no such image, or ``count`` is less than 2.
    """
    runs = list(layers)
    steps = common_steps(runs)
    read = [run.maps(layer, kind, call=call, steps=_spread(steps, _IMAGE_STEPS))[:] for run, layer in layers.items()]
    number = min(len(maps[0]) for maps in read)
    order = rank_images([maps[:, :number] for maps in read])
    if image is not None:
        if not 0 <= image < number:
            raise FadevizError(f"no image {image} in {runs[0].address}: there are {number}, from 0 to {number - 1}")
        order = [image, *(index for index in order if index != image)]
    near = _spread(steps, _MOST_STEPS)
    maps = [run.maps(layer, kind, image=order[0], call=call, steps=near)[:] for run, layer in layers.items()]
    return Choice(tuple(order), tuple(near[index] for index in choose_steps(maps, count)))


def rank_images(maps: Sequence[NDArray[np.floating]]) -> list[int]:
    """Indices of the images, those first in which the runs differ most; equal ones in their order.

    The difference is 1 less the correlation of two maps, on average over pairs of runs and over steps; of a single run,
    over its steps, that of each map and the last one.

    Args:
        maps: ``(S, N, h, w)`` for each run; they may differ in h and w.
    """
    shape = _common_shape(maps)
    flat = [_standardise(_resize(one, shape)) for one in maps]
    pairs = list(itertools.combinations(flat, 2)) or [(flat[0], flat[0][-1:])]
    differences = np.mean([(1 - (first * second).sum(-1)).mean(0) for first, second in pairs], axis=0)
    return [int(index) for index in np.argsort(-np.round(differences, 9), kind="stable")]


def choose_steps(maps: Sequence[NDArray[np.floating]], count: int = 8) -> list[int]:
    """Indices of the snapshots that tell the most of a training, increasing, with the first and the last.

    They are key frames: those for which the maps between two of them are, in total, as near as possible to what
    blending the two evenly from snapshot to snapshot would give (squared error, all runs together; the optimum, by
    dynamic programming). Where maps jump from one snapshot to the next, both are therefore chosen; where they do not
    change, few are. With equal errors the gaps are even.

    Args:
        maps: ``(S, h, w)`` of one image for each run, at the same steps.
        count: number of snapshots to choose, at least 2; with no more than that, all.

    Raises:
        FadevizError: if ``count`` is less than 2.
    """
    if count < 2:
        raise FadevizError(f"count={count}: at least 2 steps are needed, the first and the last")
    number = len(maps[0])
    if number <= count:
        return list(range(number))
    flat = np.concatenate([_standardise(_resize(one, _common_shape([one]))) for one in maps], axis=1)
    costs = _blending_errors(flat / np.sqrt(len(maps)))
    gaps = np.subtract.outer(np.arange(number), np.arange(number)) / (number - 1)
    costs = np.round(costs + _EVEN * gaps**2, 12)
    best, before = costs[0].copy(), []
    for _ in range(count - 2):
        totals = best[:, None] + np.where(np.triu(np.ones_like(costs, bool), 1), costs, np.inf)
        before.append(np.argmin(totals, axis=0))
        best = totals.min(axis=0)
    chosen = [number - 1]
    for previous in reversed(before):
        chosen.append(int(previous[chosen[-1]]))
    return [0, *reversed(chosen)]


def _blending_errors(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """For snapshots a < b, the squared error of what lies between them if it is blended from both, ``(S, S)``."""
    products = frames @ frames.T
    squares, number = np.diag(products), len(frames)
    errors = np.zeros((number, number))
    for a in range(number):
        for b in range(a + 2, number):
            t = np.arange(a + 1, b)
            w = (t - a) / (b - a)
            errors[a, b] = (
                squares[t] + (1 - w) ** 2 * squares[a] + w**2 * squares[b]
                - 2 * (1 - w) * products[t, a] - 2 * w * products[t, b] + 2 * w * (1 - w) * products[a, b]
            ).sum()  # fmt: skip
    return errors


def _standardise(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maps ``(..., h, w)`` as vectors ``(..., h w)`` without their mean and of length 1; constant ones are 0."""
    flat = maps.reshape(*maps.shape[:-2], -1)
    flat = flat - flat.mean(-1, keepdims=True)
    length = np.sqrt((flat**2).sum(-1, keepdims=True))
    small = 1e-6 * np.sqrt(flat.shape[-1]) * (1e-12 + np.abs(maps).max((-2, -1))[..., None])
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > small)


def _resize(maps: NDArray[np.floating], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Maps ``(..., h, w)`` averaged over the cells of a coarser grid; what is not finite is the mean of the others."""
    values = np.asarray(maps, np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        counts = np.maximum(finite.sum((-2, -1), keepdims=True), 1)
        values = np.where(finite, values, np.where(finite, values, 0).sum((-2, -1), keepdims=True) / counts)
    rows, columns = (_averages(size, cells) for size, cells in zip(values.shape[-2:], shape, strict=True))
    averaged: NDArray[np.float64] = rows @ values @ columns.T
    return averaged


def _averages(size: int, cells: int) -> NDArray[np.float64]:
    """The matrix ``(cells, size)`` that averages a line of values over cells of equal length."""
    ends = np.arange(cells + 1) * (size / cells)
    low, high = np.maximum(ends[:-1, None], np.arange(size)), np.minimum(ends[1:, None], np.arange(size) + 1)
    return np.maximum(high - low, 0) * (cells / size)


def _common_shape(maps: Sequence[NDArray[np.floating]]) -> tuple[int, int]:
    height, width = (min(_CELLS, *(one.shape[axis] for one in maps)) for axis in (-2, -1))
    return height, width


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the steps, evenly spaced, with the first and the last."""
    indices = np.linspace(0, len(steps) - 1, min(count, len(steps)))
    return [steps[round(index)] for index in indices]


__all__ = ["Choice", "choose_frames", "choose_steps", "rank_images"]
