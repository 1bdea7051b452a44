"""Zoom: the square window of an image in which runs disagree most."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError

_LEVELS = 1 << 24
"""Number of levels that disagreement is rounded to, so that sums are exact and equal windows are equal."""


class Box(NamedTuple):
    """A square window, in pixels of the image."""

    left: int
    top: int
    side: int


def choose_zoom(
    results: Sequence[NDArray[Any]],
    truth: NDArray[Any] | None,
    side: int | None = None,
    ignored: int | None = None,
) -> Box:
    """The square window in which runs disagree most; the first in reading order among equals.

    Disagreement at a pixel is, for classes (integers), the share of the pairs of runs that differ; for alphas (floats),
    their standard deviation over the runs. Where no pixel disagrees, as with a single run, it is the difference between
    the first run and the ground truth; where there is none either, the window lies in the middle.

    Args:
        results: one per run, ``(H, W)``: classes, or alphas in [0, 1]; non-finite values count as 0.
        truth: ``(H, W)`` of the same kind, or None.
        side: side length of the window in pixels; None for a quarter of the image's shorter side.
        ignored: class in ``truth`` whose pixels do not count.

    Raises:
        FadevizError: if there is no result, sizes or kinds differ, or ``side`` does not fit in the image.

    Example:
        >>> near, far = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
        >>> far[5, 6] = 1
        >>> choose_zoom([near, far], None, side=2)
        Box(left=5, top=4, side=2)
    """
    maps, shape, floating = _check(results, truth)
    height, width = shape
    side = max(1, round(min(shape) / 4)) if side is None else side
    if not 1 <= side <= min(shape):
        raise FadevizError(
            f"a window of side {side} does not fit in an image of {width}x{height}. "
            f"Choose a side from 1 to {min(shape)}"
        )
    counted: NDArray[np.bool_] = np.ones(shape, bool)
    if truth is not None and ignored is not None:
        counted = np.asarray(truth) != ignored
    runs = maps[: len(results)]
    weight = _disagreement(runs, floating) * counted
    if not weight.any() and truth is not None:
        difference = np.abs(runs[0] - maps[-1]) if floating else runs[0] != maps[-1]
        weight = np.rint(difference * float(_LEVELS)).astype(np.int64) * counted
    if not weight.any():
        return Box((width - side) // 2, (height - side) // 2, side)
    total = np.pad(weight.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return Box(int(left), int(top), side)


def _check(
    results: Sequence[NDArray[Any]], truth: NDArray[Any] | None
) -> tuple[list[NDArray[Any]], tuple[int, int], bool]:
    """All maps, finite and in [0, 1] if they are alphas; their shape, and whether they are alphas."""
    if not results:
        raise FadevizError("no result to choose a window from. Give at least one")
    maps = [np.asarray(values) for values in [*results, *([] if truth is None else [truth])]]
    shape, kinds = maps[0].shape, {np.issubdtype(values.dtype, np.floating) for values in maps}
    if len(shape) != 2 or 0 in shape or any(values.shape != shape for values in maps) or len(kinds) > 1:
        received = ", ".join(f"{values.shape} {values.dtype}" for values in maps)
        raise FadevizError(
            f"results and truth must be (H, W) of one size, all classes or all alphas. Given: {received}"
        )
    floating = kinds == {True}
    if floating:
        maps = [np.clip(np.nan_to_num(values.astype(np.float64), nan=0.0), 0.0, 1.0) for values in maps]
    return maps, (shape[0], shape[1]), floating


def _disagreement(runs: Sequence[NDArray[Any]], floating: bool) -> NDArray[np.int64]:
    """How much runs disagree at each pixel, in integers: windows are compared by exact sums."""
    if floating:
        return np.rint(np.std(runs, axis=0) * _LEVELS).astype(np.int64)
    differing = np.zeros(runs[0].shape, np.int64)
    for first, second in combinations(runs, 2):
        differing += first != second
    return differing
