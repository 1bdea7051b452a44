"""Zoom: the square window of an image in which runs disagree most along the contours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from ..errors import FadevizError

_LEVELS = 1 << 24
"""Number of levels that disagreement is rounded to, so that sums are exact and equal windows are equal."""


_REACH = 8
"""A pixel is near a contour if that is within this part of the window's side: a quarter of the window, both sides."""
_OPAQUE = 0.02
"""Alphas closer than this to 0 or 1 are not part of a soft contour."""


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
    """The square window in which runs disagree most near contours; the first in reading order among equals.

    Disagreement at a pixel is, for classes (integers), the share of the pairs of runs that differ; for alphas (floats),
    their standard deviation over the runs. Where no pixel disagrees, as with a single run, it is the difference between
    the first run and the ground truth; where there is none either, the window lies in the middle.

    Only pixels count that are near a contour: where operators differ, and where an enlargement shows something, not
    within an object that one run misses as a whole. Contours are the borders of classes, or of alphas of one half and
    the pixels that are partly transparent; those of the ground truth or, without any there, of the results. Where
    nothing differs near them, all pixels count. A pixel counts the more the nearer it is to the middle of the window,
    along its rows and columns (a tent): what is looked for lies in the middle.

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
    differences = [_disagreement(runs, floating)]
    if truth is not None:
        wrong = np.abs(runs[0] - maps[-1]) if floating else runs[0] != maps[-1]
        differences.append(np.rint(wrong * float(_LEVELS)).astype(np.int64))
    near = _near_contours(runs, maps[-1] if truth is not None else None, counted, floating, max(1, side // _REACH))
    for difference in differences:
        weight = difference * counted
        if weight.any():
            break
    else:
        return Box((width - side) // 2, (height - side) // 2, side)
    weight = weight * near if (weight * near).any() else weight
    first = (side + 1) // 2
    sums = _box_sums(_box_sums(weight, first), side - first + 1)
    top, left = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return Box(int(left), int(top), side)


def _box_sums(values: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """The sum of each window of a side that lies within, ``(H - side + 1, W - side + 1)``."""
    total = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    sums: NDArray[np.int64] = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return sums


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


def _near_contours(
    runs: Sequence[NDArray[Any]], truth: NDArray[Any] | None, counted: NDArray[np.bool_], floating: bool, reach: int
) -> NDArray[np.bool_]:
    """The pixels within ``reach`` of a contour of the truth or, if that has none, of any run."""
    contours = np.zeros(counted.shape, bool) if truth is None else _contours(truth, counted, floating)
    if not contours.any():
        contours = np.any([_contours(run, counted, floating) for run in runs], axis=0)
    near: NDArray[np.bool_] = maximum_filter(contours, size=2 * reach + 1, mode="constant")
    return near


def _contours(values: NDArray[Any], counted: NDArray[np.bool_], floating: bool) -> NDArray[np.bool_]:
    """Pixels beside one of another region, neither of them ignored; and those that are partly transparent."""
    regions = values >= 0.5 if floating else values
    contours = (values > _OPAQUE) & (values < 1 - _OPAQUE) if floating else np.zeros(values.shape, bool)
    for first, second in ((np.s_[1:, :], np.s_[:-1, :]), (np.s_[:, 1:], np.s_[:, :-1])):
        border = (regions[first] != regions[second]) & counted[first] & counted[second]
        contours[first] |= border
        contours[second] |= border
    return contours
