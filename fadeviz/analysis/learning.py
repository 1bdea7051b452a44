"""Learning times: the steps at which a response has risen by a tenth, a half and nine tenths of its total rise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from ..errors import FadevizError, unknown_name
from .responses import LAST

LEVELS = (0.1, 0.5, 0.9)
"""Fractions of the rise from step 0 to the final level; a learning time is measured for each."""

MIN_RESPONSE = 0.1
"""Lowest final level of a learned response: a tenth of the way from chance to perfect."""

MIN_GAIN = 0.05
"""Smallest rise above step 0 of a response learned during the training."""

NEARLY = 0.9
"""A response that starts at this fraction of its final level was present before the training."""

UNTIL = {
    "end": "the mean over the last snapshots: when a response became what it stays",
    "peak": "the largest median of three consecutive snapshots, or the end if that is higher: when it first came",
}
"""The final level of a response: the level towards which it is learned."""

PEAK = 0.2
"""A response that reached this, for three snapshots or at step 0, and ends below ``MIN_RESPONSE`` came and went."""


class State(StrEnum):
    """How a response reached its final level."""

    REACHED = "reached"
    """Learned during the training: its times are finite."""
    AT_START = "there at step 0"
    """The untrained model has (nearly) the final level, or more: no time is defined."""
    NEVER = "never"
    """The final level is no better than chance: the times lie beyond the last step and are infinite."""
    REGAINED = "lost and regained"
    """As ``AT_START``, but the response falls below half of that level in between: no time is defined."""
    TRANSIENT = "came and went"
    """Present at step 0 or later, but lost at the end: no time is defined."""
    MISSING = "missing"
    """Undefined at step 0, at the end, or at more than half of the steps."""


@dataclass(frozen=True)
class LearningTimes:
    """When one response of one map was learned.

    Attributes:
        state: how the response reached its final level.
        levels: fractions of the rise from ``start`` to ``end``.
        times: optimiser step for each level; infinite in the state ``NEVER``, NaN in all others but ``REACHED``.
        start: response at step 0.
        end: final level: the mean over the last snapshots, or the peak with ``until="peak"``.
        gap: distance in steps between the two snapshots around half of the rise. Shorter differences are not resolved.
            NaN except in the state ``REACHED``.
    """

    state: State
    levels: tuple[float, ...]
    times: tuple[float, ...]
    start: float
    end: float
    gap: float

    @property
    def t50(self) -> float:
        """Step at which the response has risen by half."""
        return self.times[self.levels.index(0.5)]


def monotone_fit(response: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Isotonic regression: the non-decreasing sequence that is nearest in least squares.

    .. math:: \hat y = \arg\min_{z_1 \le \ldots \le z_S} \sum_{i=1}^{S} (y_i - z_i)^2

    with :math:`y_i` the response at snapshot :math:`i` of :math:`S`; all snapshots have the same weight, whatever the
    steps between them.

    Shape: ``(S,)`` -> ``(S,)``.

    Source: Barlow et al. 1972, Statistical Inference under Order Restrictions; scipy's ``isotonic_regression``.
    """
    fit: NDArray[np.float64] = optimize.isotonic_regression(np.asarray(response, np.float64)).x
    return fit


def learning_times(
    steps: Sequence[int],
    response: NDArray[np.floating],
    levels: Sequence[float] = LEVELS,
    *,
    until: str = "end",
    last: int = LAST,
) -> LearningTimes:
    r"""Steps at which the monotone fit of a response has risen by given fractions of its total rise.

    .. math:: t_q = \min\,\{t : \hat y(t) \ge y_0 + q\,(y_1 - y_0)\}

    with :math:`\hat y` the monotone fit (:func:`monotone_fit`), linear in the step between two snapshots,
    :math:`y_0` the response at step 0, :math:`y_1` its mean over the last snapshots, and :math:`q` a level. The fit
    ends at :math:`y_1` or above, so that a response with something to gain reaches all of its levels. Snapshots whose
    response is undefined are left out.

    With ``until="peak"`` :math:`y_1` is the peak, the largest median of three consecutive snapshots, and the snapshots
    after it are left out: no response is transient then, and one that is only noise reaches its levels earlier and more
    often.

    Args:
        steps: the S recorded steps, increasing from 0.
        response: ``(S,)``; NaN where undefined.
        levels: increasing fractions in (0, 1]; 0.5 must be among them.
        until: final level, a name in ``UNTIL``.
        last: number of snapshots whose mean is the level at the end.

    Returns:
        Times in optimiser steps, between 0 and the last step.

    Raises:
        FadevizError: if the steps do not increase from 0 or are too few, if their number is not that of the responses,
            if the levels are unsuitable, or if ``until`` is unknown.
    """
    if until not in UNTIL:
        raise unknown_name("final level", until, UNTIL)
    place, values = np.asarray(steps, np.float64), np.asarray(response, np.float64)
    _check(place, values, levels, last)
    defined = np.isfinite(values)
    late = values[-last:][defined[-last:]]
    start, end = float(values[0]), float(late.mean()) if late.size else math.nan

    def without_times(state: State) -> LearningTimes:
        time = math.inf if state is State.NEVER else math.nan
        return LearningTimes(state, tuple(levels), (time,) * len(levels), start, end, math.nan)

    if not defined[0] or not late.size or 2 * defined.sum() < len(values):
        return without_times(State.MISSING)
    place, values = place[defined], values[defined]
    peak, place_of_peak = peak_of(values)
    if until == "peak" and peak > end:
        end = peak
        place, values = place[: place_of_peak + 1], values[: place_of_peak + 1]
    if end < MIN_RESPONSE:
        return without_times(State.TRANSIENT if max(start, peak) >= PEAK else State.NEVER)
    if end - start < MIN_GAIN or start >= NEARLY * end:
        if start < MIN_RESPONSE:  # noise about the threshold
            return without_times(State.NEVER)
        sank = _running_median(values).min() < 0.5 * min(start, end)
        return without_times(State.REGAINED if sank else State.AT_START)
    fit = monotone_fit(values)
    # The fit's last value is at least the mean of the last ones, but for rounding.
    targets = [min(start + level * (end - start), float(fit[-1])) for level in levels]
    times = tuple(_first_reached(place, fit, level)[0] for level in targets)
    gap = _first_reached(place, fit, targets[list(levels).index(0.5)])[1]
    return LearningTimes(State.REACHED, tuple(levels), times, start, end, gap)


def lead(edge: LearningTimes, interior: LearningTimes) -> float:
    r"""How much later the interior is learned than the outline, in steps.

    .. math:: \text{lead} = t_{50}(\text{interior}) - t_{50}(\text{edge})

    with :math:`t_{50}` the step at which a response has risen by half (:func:`learning_times`). Positive: the outline
    is learned first. Infinite if one of the two is learned and the other never is; NaN if neither is, or if one is
    missing, came and went, or was there at step 0.
    """
    return interior.t50 - edge.t50


def _first_reached(place: NDArray[np.float64], fit: NDArray[np.float64], level: float) -> tuple[float, float]:
    """The step at which the fit first reaches a level above its first value, and the gap of the snapshots there."""
    after = int(np.argmax(fit >= level))
    before = after - 1
    gap = float(place[after] - place[before])
    return float(place[before] + gap * (level - fit[before]) / (fit[after] - fit[before])), gap


def peak_of(values: NDArray[np.float64]) -> tuple[float, int]:
    """The largest median of three consecutive values, and the place of the highest of the first such three.

    A single high value is not a peak. With fewer than three values it is the median of all.
    """
    medians = _running_median(values)
    width = len(values) - len(medians) + 1
    first = int(np.argmax(medians))
    # No lower than the median: the monotone fit up to there reaches it.
    return float(medians[first]), first + int(np.argmax(values[first : first + width]))


def _running_median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The medians of each three consecutive values, ``(S,)`` -> ``(S - 2,)``; of all, if there are fewer."""
    windows = np.lib.stride_tricks.sliding_window_view(values, min(3, len(values)))
    medians: NDArray[np.float64] = np.median(windows, axis=1)
    return medians


def _check(place: NDArray[np.float64], values: NDArray[np.float64], levels: Sequence[float], last: int) -> None:
    if place.shape != values.shape or place.ndim != 1:
        raise FadevizError(
            f"learning times: {place.shape} steps, but {values.shape} responses; one response per step is needed"
        )
    if len(place) < last + 2 or last < 1:
        raise FadevizError(
            f"learning times: {len(place)} snapshots are too few; {last + 2} are needed, the last {last} of them for "
            "the final level. Record more: snapshots=..."
        )
    if place[0] != 0 or (np.diff(place) <= 0).any():
        raise FadevizError("learning times: the steps must increase from 0, the untrained model")
    if 0.5 not in levels or min(levels) <= 0 or max(levels) > 1 or list(levels) != sorted(set(levels)):
        raise FadevizError(f"learning times: levels={list(levels)}; they must increase, lie in (0, 1] and include 0.5")
