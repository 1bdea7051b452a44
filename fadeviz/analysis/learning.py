"""When a response is learned: the steps at which it has come a tenth, half and nine tenths of its way."""

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
"""The shares of the way from step 0 to the end level whose steps are told."""

MIN_RESPONSE = 0.1
"""A response that ends below this, a tenth of the way from chance to perfect, has not been learned."""

MIN_GAIN = 0.05
"""A response that ends less than this above its start has not been learned during the training."""

NEARLY = 0.9
"""A response that starts at this share of its end level was there before the training."""

UNTIL = {
    "end": "the mean over the last snapshots: when a response became what it stays",
    "peak": "the largest median of three snapshots in a row, or the end if that is higher: when it first came",
}
"""The level towards which a response is learned."""

PEAK = 0.2
"""A response that rose to this, for three snapshots or at step 0, and ends below ``MIN_RESPONSE`` came and went."""


class State(StrEnum):
    """How a response got to its end level."""

    REACHED = "reached"
    """It was learned during the training: its times are numbers."""
    AT_START = "there at step 0"
    """The untrained model has (nearly) the end level, or more: there is no time to tell."""
    NEVER = "never"
    """It ends no better than chance: its times lie beyond the last step, infinite."""
    REGAINED = "lost and regained"
    """As ``AT_START``, but it sinks to less than half of that meanwhile: no time to tell."""
    TRANSIENT = "came and went"
    """It was there, at step 0 or later, and is lost at the end: no time to tell."""
    MISSING = "missing"
    """It is undefined at step 0, at the end, or at more than half of the steps."""


@dataclass(frozen=True)
class LearningTimes:
    """When one response, of one map, was learned.

    Attributes:
        state: how it got to its end level.
        levels: shares of the way from ``start`` to ``end``.
        times: the step for each level: infinite in the state ``NEVER``, NaN in all others but ``REACHED``.
        start: the response at step 0.
        end: its mean over the last snapshots; or its peak, if it was learned until then.
        gap: in steps, how far apart the two snapshots are between which half of the way lies: what is shorter than
            that is not resolved. NaN but for ``REACHED``.
    """

    state: State
    levels: tuple[float, ...]
    times: tuple[float, ...]
    start: float
    end: float
    gap: float

    @property
    def t50(self) -> float:
        """The step at which half of the way is done."""
        return self.times[self.levels.index(0.5)]


def monotone_fit(response: NDArray[np.float64]) -> NDArray[np.float64]:
    """Isotonic regression: the non-decreasing sequence nearest in least squares; all snapshots weigh the same.

    Shape: ``(S,)`` -> ``(S,)``.
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
    """The first step at which the monotone fit has come a share ``q`` of the way from step 0 to the end level.

    With y0 the response at step 0 and y1 its mean over the last snapshots, t_q is where the fit first reaches
    y0 + q (y1 - y0). The fit depends on the order of the snapshots alone; between two of them it is a straight line in
    the step (not in its logarithm, which would need a step before 1). It ends at y1 or above, so that a response with
    something to gain always reaches its levels. Snapshots without a response are left out.

    With ``until="peak"`` y1 is the peak and the snapshots after it are left out: nothing comes and goes then, and a
    response that is noise reaches its levels sooner and oftener.

    Args:
        steps: the S recorded steps, increasing from 0.
        response: ``(S,)``; NaN where undefined.
        levels: increasing shares above 0, up to 1; 0.5 must be among them.
        until: a name in ``UNTIL``.
        last: how many snapshots the end level is the mean of.

    Raises:
        FadevizError: steps that do not start at 0 or do not increase, too few of them, unsuitable levels, or an unknown
            ``until``.
    """
    if until not in UNTIL:
        raise unknown_name("level to learn until", until, UNTIL)
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
    peak, at = _peak(values)
    if until == "peak" and peak > end:
        end = peak
        place, values = place[: at + 1], values[: at + 1]
    if end < MIN_RESPONSE:
        return without_times(State.TRANSIENT if max(start, peak) >= PEAK else State.NEVER)
    if end - start < MIN_GAIN or start >= NEARLY * end:
        if start < MIN_RESPONSE:  # noise about the threshold
            return without_times(State.NEVER)
        sank = _running_median(values).min() < 0.5 * min(start, end)
        return without_times(State.REGAINED if sank else State.AT_START)
    fit = monotone_fit(values)
    # The fit's last value is at least the mean of the last ones, but for rounding.
    wanted = [min(start + level * (end - start), float(fit[-1])) for level in levels]
    times = tuple(_first_reached(place, fit, level)[0] for level in wanted)
    gap = _first_reached(place, fit, wanted[list(levels).index(0.5)])[1]
    return LearningTimes(State.REACHED, tuple(levels), times, start, end, gap)


def lead(edge: LearningTimes, interior: LearningTimes) -> float:
    """t50(interior) - t50(edge), in steps: positive when the outline is learned first.

    Infinite when one of the two is learned and the other never; NaN when neither is, or when one is missing, came and
    went, or was there at step 0.
    """
    return interior.t50 - edge.t50


def _first_reached(place: NDArray[np.float64], fit: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Where the fit first reaches a level above its first value, and how far apart the snapshots are there."""
    after = int(np.argmax(fit >= level))
    before = after - 1
    gap = float(place[after] - place[before])
    return float(place[before] + gap * (level - fit[before]) / (fit[after] - fit[before])), gap


def _peak(values: NDArray[np.float64]) -> tuple[float, int]:
    """The largest median of three snapshots in a row, as a single one is no peak; and the highest of the first such."""
    medians = _running_median(values)
    width = len(values) - len(medians) + 1
    first = int(np.argmax(medians))
    # No lower than the median: the monotone fit up to there reaches it.
    return float(medians[first]), first + int(np.argmax(values[first : first + width]))


def _running_median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of three snapshots in a row."""
    windows = np.lib.stride_tricks.sliding_window_view(values, min(3, len(values)))
    medians: NDArray[np.float64] = np.median(windows, axis=1)
    return medians


def _check(place: NDArray[np.float64], values: NDArray[np.float64], levels: Sequence[float], last: int) -> None:
    if place.shape != values.shape or place.ndim != 1:
        raise FadevizError(f"learning times: {place.shape} steps, but {values.shape} responses; needed is one a step")
    if len(place) < last + 2 or last < 1:
        raise FadevizError(
            f"learning times: {len(place)} snapshots are too few; {last + 2} are needed, the last {last} of them for "
            "the end level. Record more with --snapshots"
        )
    if place[0] != 0 or (np.diff(place) <= 0).any():
        raise FadevizError("learning times: the steps must increase from 0, the untrained model")
    if 0.5 not in levels or min(levels) <= 0 or max(levels) > 1 or list(levels) != sorted(set(levels)):
        raise FadevizError(f"learning times: levels {list(levels)}; they must increase from above 0 to 1, with 0.5")
