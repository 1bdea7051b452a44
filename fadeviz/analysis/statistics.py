"""Bootstrap bands of curves, over seeds and images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError


def bootstrap_band(
    values: NDArray[np.floating], *, level: float = 0.95, resamples: int = 400, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    r"""Median over seeds and images at each step, with the percentile interval of a crossed bootstrap.

    .. math:: \theta^* = \operatorname{median}\{v_{s^*_i,\,n^*_j}\}, \qquad
              [\theta^*_{(\alpha/2)},\; \theta^*_{(1-\alpha/2)}], \quad \alpha = 1 - \text{level}

    with :math:`v_{sn}` the value of seed :math:`s` and image :math:`n`, and :math:`s^*_i` and :math:`n^*_j` the seeds
    and images, drawn with replacement and independently: all seeds see the same images. The same ones are drawn for
    all steps, so that the ends of the band are smooth curves rather than noise. With one seed the band covers the
    variation between images only; with fewer than about five seeds it is too narrow.

    Args:
        values: ``(seeds, steps, images)``; NaN is missing.
        level: nominal coverage, in (0, 1).
        resamples: number of draws.
        seed: seed of the draws.

    Returns:
        Median, lower and upper end, ``(steps,)`` each; NaN at steps without any value.

    Raises:
        FadevizError: if there are not three axes, or the level or the number of resamples is out of range.

    Source: Owen 2007, The pigeonhole bootstrap.
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
