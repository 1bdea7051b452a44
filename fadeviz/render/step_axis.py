"""The axis of training steps: linear or logarithmic, where its cells end, and which steps are labelled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import unknown_name

STEP_AXES = {
    "auto": "linear where the snapshots are roughly evenly spaced, otherwise logarithmic",
    "log": "log(1 + step)",
    "linear": "the step itself",
}
"""How training steps can be drawn."""

_EVEN = 2.0
"""Largest gap between two snapshots, in median gaps, of a schedule that is roughly even."""


@dataclass(frozen=True)
class StepAxis:
    """Positions of training steps on an axis.

    Attributes:
        log: whether positions are log(1 + step); otherwise they are the steps.
    """

    log: bool

    @property
    def label(self) -> str:
        """The label of the axis."""
        return "training step (log scale)" if self.log else "training step"

    def place(self, steps: Iterable[float]) -> NDArray[np.float64]:
        """Positions of steps, ``(S,)``; negative steps stand at 0, infinite ones at infinity."""
        values = np.maximum(np.fromiter(steps, np.float64), 0)
        return np.log1p(values) if self.log else values

    def borders(self, steps: Sequence[int]) -> NDArray[np.float64]:
        """Ends of the cells of snapshots, ``(S + 1,)``: half-way between two, and no farther beyond the outer ones.

        The outer cells are cut to a thirtieth of the axis, because on a logarithmic axis half of the gap between step 0
        and the next snapshot can be a large part of it.
        """
        centres = self.place(steps)
        if len(centres) == 1:
            return np.array([centres[0] - 0.5, centres[0] + 0.5])
        middle = (centres[1:] + centres[:-1]) / 2
        outside = (centres[-1] - centres[0]) / 30
        first = max(2 * centres[0] - middle[0], centres[0] - outside)
        last = min(2 * centres[-1] - middle[-1], centres[-1] + outside)
        return np.concatenate([[first], middle, [last]])

    def ticks(
        self, first: int, last: int, length: float, width: Callable[[str], float]
    ) -> list[tuple[int, Literal["left", "center", "right"]]]:
        """Steps to label between two others, as many as fit: the first, the last and round ones.

        Args:
            first: first step of the axis.
            last: last step of the axis.
            length: length of the axis.
            width: length of a label, in the same unit.

        Returns:
            The steps, increasing, and how each label is aligned: those at the ends do not reach beyond the axis.
        """
        if first == last:
            return [(first, "center")]
        low, high = (float(place) for place in self.place((first, last)))
        taken: dict[int, tuple[float, float]] = {}
        for step in dict.fromkeys([first, last, *self._round(first, last)]):
            place, own = (float(self.place([step])[0]) - low) / (high - low) * length, width(f"{step:,}")
            start = place - {"left": 0.0, "center": 0.5, "right": 1.0}[_alignment(step, first, last)] * own
            if all(start > end + width("0") or start + own < begin - width("0") for begin, end in taken.values()):
                taken[step] = start, start + own
        return [(step, _alignment(step, first, last)) for step in sorted(taken)]

    def _round(self, first: int, last: int) -> list[int]:
        """Round steps between two others, the most useful first."""
        powers = [10**power for power in range(len(str(last)))]
        if self.log:
            steps = [*powers, *(3 * power for power in powers)]
        else:
            raw = (last - first) / 4
            power = 10 ** max(0, math.floor(math.log10(max(raw, 1))))
            width = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
            steps = list(range(0, last + 1, int(width)))
        return [step for step in steps if first <= step <= last]


def _alignment(step: int, first: int, last: int) -> Literal["left", "center", "right"]:
    if step not in (first, last) or step < 100:  # short labels hardly reach beyond
        return "center"
    return "left" if step == first else "right"


def choose_step_axis(schedules: Sequence[Sequence[int]], step_axis: str = "auto") -> StepAxis:
    """The axis for one or more schedules of snapshots.

    ``"auto"`` is linear if in every schedule the largest gap between two snapshots is at most twice the median gap;
    otherwise the schedule is dense where most changes, early, and the axis is log(1 + step).

    Args:
        schedules: the recorded steps, each increasing; they need not begin at 0.
        step_axis: a name in :data:`STEP_AXES`.

    Raises:
        FadevizError: if ``step_axis`` is unknown.
    """
    if step_axis not in STEP_AXES:
        raise unknown_name("step axis", step_axis, STEP_AXES)
    if step_axis != "auto":
        return StepAxis(step_axis == "log")
    gaps = [np.diff(np.asarray(steps, np.float64)) for steps in schedules if len(steps) > 1]
    return StepAxis(any(gap.max() > _EVEN * np.median(gap) for gap in gaps))


__all__ = ["STEP_AXES", "StepAxis", "choose_step_axis"]
