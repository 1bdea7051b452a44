"""How sure a number is: a bootstrap over seeds and images, and a paired sign-flip test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from ..errors import FadevizError, unknown_name

STATISTICS = {
    "median": "the middle value; takes censored (infinite) ones as larger or smaller than all others",
    "mean": "the arithmetic mean; infinite as soon as one value is, undefined where both infinities are",
}
"""What an interval can be of."""

UNITS = {
    "image": "the median over the seeds of an image: speaks of other images, for the trainings that were made",
    "seed": "the median over the images of a seed: speaks of other trainings, for the images that were observed",
}
"""What is exchanged between two operators in the paired test; where both have units enough, both p-values count."""

EXACT_UP_TO = 14
"""So many units or fewer: all sign patterns are tried (2^14 = 16384)."""

_HUGE = 1e300  # stands for infinity where a mean of two would be needed: huge - huge is 0, inf - inf is not a number


@dataclass(frozen=True)
class Interval:
    """A statistic with its bootstrap interval.

    Attributes:
        estimate: of the values as they are; NaN without any.
        low: lower end.
        high: upper end.
        count: how many values are not missing.
        seeds: how many seeds have one.
        level: the nominal share of such intervals that hold the truth.
    """

    estimate: float
    low: float
    high: float
    count: int
    seeds: int
    level: float


@dataclass(frozen=True)
class PairedTest:
    """A paired sign-flip test between two operators.

    Attributes:
        difference: median of a - b over the units; NaN without any.
        p: two-sided; the share of sign patterns whose signed-rank sum is as far from 0 or farther. NaN without units.
        count: units that are in both.
        unit: a name in ``UNITS``.
        exact: whether all sign patterns were tried.
    """

    difference: float
    p: float
    count: int
    unit: str
    exact: bool


def bootstrap_interval(
    values: NDArray[np.floating],
    *,
    statistic: str = "median",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a crossed bootstrap: seeds and images are drawn with replacement, each on its own.

    All seeds see the same images, so that the images drawn are the same for all seeds drawn: what an image does to all
    of them does not average out over seeds. Missing values (NaN) are left out after drawing; seeds and images without
    any value are left out before. With one seed the interval speaks of images alone, and with fewer than about five it
    is too narrow, as percentile intervals of few units are.

    Args:
        values: ``(seeds, images)``; NaN is missing, infinite is censored.
        statistic: a name in ``STATISTICS``.
        level: of the interval, between 0 and 1.
        resamples: how often to draw.
        seed: of the drawing.

    Raises:
        FadevizError: an unknown statistic, or a level or a number of resamples that makes no interval.
    """
    if statistic not in STATISTICS:
        raise unknown_name("statistic", statistic, STATISTICS)
    if not 0 < level < 1 or resamples < 1:
        raise FadevizError(f"bootstrap: level {level:g}, {resamples} resamples; needed are 0 < level < 1 and 1 or more")
    table = np.atleast_2d(np.asarray(values, np.float64))
    known = ~np.isnan(table)
    table = table[known.any(1)][:, known.any(0)]
    if not table.size:
        return Interval(math.nan, math.nan, math.nan, 0, 0, level)
    take = _medians if statistic == "median" else _means
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(table), size=(resamples, len(table), 1))
    images = rng.integers(table.shape[1], size=(resamples, 1, table.shape[1]))
    found = take(table[drawn, images].reshape(resamples, -1))
    found = found[~np.isnan(found)]  # nothing but missing values was drawn
    low, high = (float(_quantile(found[None], share)[0]) for share in ((1 - level) / 2, (1 + level) / 2))
    estimate = float(take(table.reshape(1, -1))[0])
    return Interval(estimate, low, high, int(known.sum()), len(table), level)


def bootstrap_band(
    values: NDArray[np.floating], *, level: float = 0.95, resamples: int = 400, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The median over seeds and images at each step, with its interval: :func:`bootstrap_interval` for a curve.

    The same seeds and images are drawn for all steps, so that the ends of the band are curves, not noise.

    Args:
        values: ``(seeds, steps, images)``; NaN is missing.
        level: of the interval, between 0 and 1.
        resamples: how often to draw.
        seed: of the drawing.

    Returns:
        Median, lower and upper end, ``(steps,)`` each; NaN at steps without any value.

    Raises:
        FadevizError: not three axes, or a level or a number of resamples that makes no interval.
    """
    if values.ndim != 3 or not 0 < level < 1 or resamples < 1:
        raise FadevizError(
            f"bootstrap: values {values.shape}, level {level:g}, {resamples} resamples; needed are (seeds, steps, "
            "images), 0 < level < 1 and 1 or more"
        )
    by_step = np.moveaxis(np.asarray(values, np.float64), 1, 0)
    steps, seeds, images = by_step.shape
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.integers(seeds, size=(resamples, seeds)), axis=1)
    columns = np.sort(rng.integers(images, size=(resamples, images)), axis=1)
    # Of few seeds and images many draws are the same but for their order: each is looked at once.
    different, times = np.unique(np.hstack([drawn, columns]), axis=0, return_counts=True)
    rows, across = different[:, :seeds, None], different[:, None, seeds:]
    low, high = np.empty((2, steps))
    length = max(1, _DRAWN // (len(different) * seeds * images))
    for start in range(0, steps, length):
        block = slice(start, start + length)
        table = by_step[block][:, rows, across].reshape(-1, seeds * images)
        found = _medians(table).reshape(-1, len(different))
        order = found.argsort(axis=1)  # NaN comes last
        ordered = np.take_along_axis(found, order, axis=1).ravel().repeat(times[order].ravel()).reshape(-1, resamples)
        low[block], high[block] = (_quantile_in_order(ordered, share) for share in ((1 - level) / 2, (1 + level) / 2))
    return _medians(by_step.reshape(steps, -1)), low, high


_DRAWN = 2**20
"""Drawn values in memory at a time."""


def _medians(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of each row without NaN; NaN where there is nothing else, or the middle is between -inf and inf."""
    return _quantile(table, 0.5)


def _means(table: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(table)
    with np.errstate(invalid="ignore"):  # inf - inf
        total = np.where(known, table, 0).sum(1)
    return np.divide(total, known.sum(1), out=np.full(len(table), np.nan), where=known.any(1))


def _quantile(table: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """A quantile of each row without NaN, linear between values, as numpy's; NaN where there is nothing else.

    Between an infinite and a finite value it is the infinite one, and between the two infinities there is none.
    """
    return _quantile_in_order(np.sort(table, axis=1), share)  # NaN comes last


def _quantile_in_order(ordered: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """:func:`_quantile` of rows that are sorted already."""
    if not ordered.shape[1]:
        return np.full(len(ordered), np.nan)
    count = (~np.isnan(ordered)).sum(1)
    place = share * np.maximum(count - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    rows = np.arange(len(ordered))
    part = place - below
    low, high = ordered[rows, below], ordered[rows, above]
    with np.errstate(invalid="ignore"):
        between = np.where(np.isinf(low) & np.isfinite(high), low, low + part * (high - low))
    found: NDArray[np.float64] = np.where((part == 0) | (low == high), low, between)
    return found


def paired_test(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    *,
    unit: str = "image",
    flips: int = 9999,
    seed: int = 0,
) -> PairedTest:
    """Two-sided sign-flip permutation test of a - b on the same seeds and images.

    If the two operators did not differ, each difference could as well have the other sign. The statistic is the sum of
    the signed ranks of the differences, so that one slow map does not decide, and censored (infinite) times count as
    the largest. A pair of which one is missing is left out, as is one that is censored the same way in both.

    Args:
        a: ``(seeds, images)`` of one operator; NaN is missing.
        b: the same of the other.
        unit: a name in ``UNITS``.
        flips: how many random sign patterns are tried where there are more than ``EXACT_UP_TO`` units.
        seed: of the random sign patterns.

    Raises:
        FadevizError: unlike shapes, an unknown unit, or no flips.
    """
    if unit not in UNITS:
        raise unknown_name("unit", unit, UNITS)
    if a.shape != b.shape or a.ndim != 2:
        raise FadevizError(f"paired test: {a.shape} against {b.shape}; needed are the same seeds and images")
    if flips < 1:
        raise FadevizError(f"paired test: {flips} flips; at least 1 is needed")
    both_censored = np.isinf(a) & (a == b)
    first, second = np.where(both_censored, np.nan, a), np.where(both_censored, np.nan, b)
    with np.errstate(invalid="ignore"):  # inf - inf of two that are censored alike was left out
        difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    units = _medians(difference if unit == "seed" else difference.T)
    units = np.clip(units[~np.isnan(units)], -_HUGE, _HUGE)
    if not units.size:
        return PairedTest(math.nan, math.nan, 0, unit, True)
    weights = np.sign(units) * scipy.stats.rankdata(np.abs(units))
    exact = len(units) <= EXACT_UP_TO
    if exact:
        signs = 1 - 2 * ((np.arange(2 ** len(units))[:, None] >> np.arange(len(units))) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1, 1], size=(flips, len(units)))
    # Ranks are halves: these sums are exact, and equal ones compare as equal.
    as_far = np.abs(signs @ weights) >= abs(weights.sum())
    p = float(as_far.mean()) if exact else float((1 + as_far.sum()) / (1 + flips))
    return PairedTest(_censored(float(np.median(units))), p, len(units), unit, exact)


def _censored(value: float) -> float:
    return float(value) if abs(value) < _HUGE / 1e6 else math.copysign(math.inf, value)
