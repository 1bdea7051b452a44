"""Uncertainty: bootstrap intervals over seeds and images, and a paired sign-flip test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from ..errors import FadevizError, unknown_name

STATISTICS = {
    "median": "the middle value; censored (infinite) values count as larger or smaller than all others",
    "mean": "the arithmetic mean; infinite if a value is, undefined with both infinities",
}
"""The statistics that have an interval."""

UNITS = {
    "image": "the median over the seeds of an image: generalises to other images, for the trainings that were made",
    "seed": "the median over the images of a seed: generalises to other trainings, for the images that were observed",
}
"""The units that the paired test exchanges between two operators; if there are enough of both, both p-values count."""

EXACT_UP_TO = 14
"""Largest number of units for which all sign patterns are tried (2^14 = 16384)."""

LEAST_PAIRS = 6
"""Number of pairs below which no sign-flip test can reach p = 0.05."""

_HUGE = 1e300  # replaces infinity where two values are averaged: huge - huge is 0, inf - inf is undefined


@dataclass(frozen=True)
class Interval:
    """A statistic with its bootstrap interval.

    Attributes:
        estimate: statistic of all values; NaN without any.
        low: lower end of the interval.
        high: upper end of the interval.
        count: number of values that are not missing.
        seeds: number of seeds with such a value.
        level: nominal coverage: the share of such intervals that contain the true value.
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
        p: two-sided p-value: share of sign patterns whose signed-rank sum is at least as far from 0. NaN without units.
        count: number of units that both have.
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
    r"""Percentile interval of a crossed bootstrap: seeds and images are drawn with replacement, independently.

    .. math:: \theta^* = T(\{v_{s^*_i,\,n^*_j}\}), \qquad
              [\theta^*_{(\alpha/2)},\; \theta^*_{(1-\alpha/2)}], \quad \alpha = 1 - \text{level}

    with :math:`v_{sn}` the value of seed :math:`s` and image :math:`n`, :math:`s^*_i` and :math:`n^*_j` the drawn seeds
    and images, :math:`T` the statistic, and quantiles over the resamples. All seeds see the same images, so that the
    drawn images are the same for all drawn seeds: an image's effect on all of them does not average out over seeds.

    Missing values are left out after drawing; seeds and images without any value are left out before. With one seed the
    interval covers the variation between images only; with fewer than about five seeds it is too narrow, as percentile
    intervals of few units are.

    Args:
        values: ``(seeds, images)``; NaN is missing, infinite is censored.
        statistic: a name in ``STATISTICS``.
        level: nominal coverage, in (0, 1).
        resamples: number of draws.
        seed: seed of the draws.

    Raises:
        FadevizError: if the statistic is unknown, or the level or the number of resamples is out of range.

    Source: Owen 2007, The pigeonhole bootstrap.
    """
    if statistic not in STATISTICS:
        raise unknown_name("statistic", statistic, STATISTICS)
    if not 0 < level < 1 or resamples < 1:
        raise FadevizError(
            f"bootstrap: level={level:g}, resamples={resamples}; 0 < level < 1 and at least 1 resample are needed"
        )
    table = np.atleast_2d(np.asarray(values, np.float64))
    present = ~np.isnan(table)
    table = table[present.any(1)][:, present.any(0)]
    if not table.size:
        return Interval(math.nan, math.nan, math.nan, 0, 0, level)
    take = _medians if statistic == "median" else _means
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(table), size=(resamples, len(table), 1))
    images = rng.integers(table.shape[1], size=(resamples, 1, table.shape[1]))
    estimates = take(table[drawn, images].reshape(resamples, -1))
    estimates = estimates[~np.isnan(estimates)]  # without those of missing values alone
    low, high = (float(_quantile(estimates[None], share)[0]) for share in ((1 - level) / 2, (1 + level) / 2))
    estimate = float(take(table.reshape(1, -1))[0])
    return Interval(estimate, low, high, int(present.sum()), len(table), level)


def bootstrap_band(
    values: NDArray[np.floating], *, level: float = 0.95, resamples: int = 400, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Median over seeds and images at each step, with its interval: :func:`bootstrap_interval` for a curve.

    The same seeds and images are drawn for all steps, so that the ends of the band are smooth curves rather than noise.

    Args:
        values: ``(seeds, steps, images)``; NaN is missing.
        level: nominal coverage, in (0, 1).
        resamples: number of draws.
        seed: seed of the draws.

    Returns:
        Median, lower and upper end, ``(steps,)`` each; NaN at steps without any value.

    Raises:
        FadevizError: if there are not three axes, or the level or the number of resamples is out of range.
    """
    if values.ndim != 3 or not 0 < level < 1 or resamples < 1:
        raise FadevizError(
            f"bootstrap: values {values.shape}, level={level:g}, resamples={resamples}; (seeds, steps, images), "
            "0 < level < 1 and at least 1 resample are needed"
        )
    by_step = np.moveaxis(np.asarray(values, np.float64), 1, 0)
    steps, seeds, images = by_step.shape
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.integers(seeds, size=(resamples, seeds)), axis=1)
    columns = np.sort(rng.integers(images, size=(resamples, images)), axis=1)
    # With few seeds and images, many draws are equal up to order: each is computed once.
    different, times = np.unique(np.hstack([drawn, columns]), axis=0, return_counts=True)
    rows, across = different[:, :seeds, None], different[:, None, seeds:]
    low, high = np.empty((2, steps))
    length = max(1, _DRAWN // (len(different) * seeds * images))
    for start in range(0, steps, length):
        block = slice(start, start + length)
        table = by_step[block][:, rows, across].reshape(-1, seeds * images)
        estimates = _medians(table).reshape(-1, len(different))
        order = estimates.argsort(axis=1)  # NaN comes last
        ordered = (
            np.take_along_axis(estimates, order, axis=1).ravel().repeat(times[order].ravel()).reshape(-1, resamples)
        )
        low[block], high[block] = (_quantile_in_order(ordered, share) for share in ((1 - level) / 2, (1 + level) / 2))
    return _medians(by_step.reshape(steps, -1)), low, high


_DRAWN = 2**20
"""Number of drawn values in memory at a time."""


def _medians(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of each row, ignoring NaN; NaN if all values are, or if the middle lies between -inf and inf."""
    return _quantile(table, 0.5)


def _means(table: NDArray[np.float64]) -> NDArray[np.float64]:
    present = ~np.isnan(table)
    with np.errstate(invalid="ignore"):  # inf - inf
        total = np.where(present, table, 0).sum(1)
    return np.divide(total, present.sum(1), out=np.full(len(table), np.nan), where=present.any(1))


def _quantile(table: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """A quantile of each row, ignoring NaN, with numpy's linear interpolation; NaN if all values are.

    Between an infinite and a finite value it is the infinite one; between the two infinities it is undefined.
    """
    return _quantile_in_order(np.sort(table, axis=1), share)  # NaN comes last


def _quantile_in_order(ordered: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """:func:`_quantile` of sorted rows."""
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
    quantiles: NDArray[np.float64] = np.where((part == 0) | (low == high), low, between)
    return quantiles


def paired_test(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    *,
    unit: str = "image",
    flips: int = 9999,
    seed: int = 0,
) -> PairedTest:
    r"""Two-sided sign-flip permutation test of a - b on the same seeds and images.

    .. math:: W = \sum_u \operatorname{sign}(d_u)\,R(|d_u|), \qquad
              p = \Pr(|\sum_u \varepsilon_u R(|d_u|)| \ge |W|)

    with :math:`d_u` the difference of unit :math:`u`, :math:`R` its rank by size (ties averaged), and
    :math:`\varepsilon_u = \pm 1` independent random signs: if the operators did not differ, each difference could as
    well have the other sign. Through the ranks, a single slow map does not decide, and censored (infinite) times count
    as the largest. Pairs with a missing value, or censored in the same way in both, are left out.

    Args:
        a: ``(seeds, images)``, values of one operator; NaN is missing.
        b: ``(seeds, images)``, values of the other operator.
        unit: a name in ``UNITS``.
        flips: number of random sign patterns for more than ``EXACT_UP_TO`` units.
        seed: seed of the random sign patterns.

    Raises:
        FadevizError: if the shapes differ, the unit is unknown, or there are no flips.

    Source: Wilcoxon 1945, Individual Comparisons by Ranking Methods.
    """
    if unit not in UNITS:
        raise unknown_name("unit", unit, UNITS)
    if a.shape != b.shape or a.ndim != 2:
        raise FadevizError(f"paired test: {a.shape} and {b.shape}; the same seeds and images are needed")
    if flips < 1:
        raise FadevizError(f"paired test: flips={flips}; it must be at least 1")
    both_censored = np.isinf(a) & (a == b)
    first, second = np.where(both_censored, np.nan, a), np.where(both_censored, np.nan, b)
    with np.errstate(invalid="ignore"):  # pairs that are censored alike are already NaN
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
    # Ranks are multiples of 1/2: the sums are exact, and equal ones compare as equal.
    as_far = np.abs(signs @ weights) >= abs(weights.sum())
    p = float(as_far.mean()) if exact else float((1 + as_far.sum()) / (1 + flips))
    return PairedTest(_censored(float(np.median(units))), p, len(units), unit, exact)


def _censored(value: float) -> float:
    return float(value) if abs(value) < _HUGE / 1e6 else math.copysign(math.inf, value)
