"""The onset of outline and interior: whether the maps of an operator show them, since when, and which came first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .arrival import arrival, crossings
from .chance import ChanceLevel, chance_level, permute_images, smooth
from .contrasts import own_less_others
from .jackknife import Estimate, Indices, jackknife, jackknife_band
from .verdicts import (
    SHOWN_ALPHA,
    START_ALPHA,
    START_SHARE,
    STRICT_START_ALPHA,
    Verdict,
    choose_verdict,
)

COMPARABLE = 3
"""Images needed for a jackknife."""

OWN_MASK_SHARE = 0.85
"""Share of its bound that a reversed first response of the interior must exceed, if own masks alone show it."""

LEAST_ALIKE = 1e-3
"""Share of a perfect map's response that is its own, below which nothing is compared: the masks are equal."""


@dataclass(frozen=True)
class Reading:
    """One of the two readings, outline or interior, of the maps of R runs: S steps.

    Responses are own mask less other masks, in units of a perfect map's; where a run's maps are dark on the object they
    are negated.

    Attributes:
        curve: ``(S,)``, mean response of the runs.
        low: ``(S,)``, lower end of its 95 % interval at each step by itself, over seeds and images.
        high: ``(S,)``, upper end.
        run_curves: ``(R, S)``, response of each run.
        signs: ``(R,)``, 1, or -1 for a run whose maps are dark there where the readings are strongest.
        chance: the magnitude of the smoothed response stays below this at all steps in 95 % of the permutations of the
            masks.
        p: p-value of the response, over all steps.
        p_start: p-value of the response at the first snapshot.
        shown: whether the maps show it: p <= 0.025.
        start: response at the first snapshot.
        top: largest smoothed response of the part that is timed; negative for a halo.
        top_step: its step.
        top_estimate: the top with its variance; None unless shown.
        end: mean response of the last three snapshots.
        from_start: whether it is there at the first snapshot already, and stays until its top.
        arrival: arrival as log(1 + step), with its variance; None unless shown.
        within: the two successive steps between which the whole rise lies; None if it takes longer.
        rest_step: step by which half of the rest is there, for a response that is partly there at the first snapshot;
            None otherwise.
        gone_step: step by which a first appearance is gone again: the arrival is that of this appearance; else None.
        halo: whether what is timed is a first response of the opposite sign that the other reading does not share: for
            the outline a rim just outside the contour; for the interior a dark inside before a bright one, or the other
            way round.
    """

    curve: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    run_curves: NDArray[np.float64]
    signs: NDArray[np.int64]
    chance: float
    p: float
    p_start: float
    shown: bool
    start: float
    top: float
    top_step: int
    top_estimate: Estimate | None
    end: float
    from_start: bool
    arrival: Estimate | None
    within: tuple[int, int] | None
    rest_step: float | None
    gone_step: int | None
    halo: bool

    @property
    def measured(self) -> bool:
        """Whether there was anything to compare: two images or more, whose masks differ."""
        return not math.isnan(self.chance)

    @property
    def stays(self) -> bool:
        """Whether the end is at least half of the top."""
        return self.end >= self.top / 2

    @property
    def arrival_steps(self) -> tuple[float, float, float]:
        """Arrival in steps, with the ends of its 95 % interval; NaN where there is none.

        The interval covers at least the gap between two snapshots within which the whole rise lies: where in it, the
        snapshots cannot tell, whatever the variation between seeds and images.
        """
        if self.arrival is None:
            return (math.nan,) * 3
        step, low, high = (math.expm1(min(v, 700.0)) for v in (self.arrival.value, *self.arrival.interval()))
        first, last = self.within or (step, step)
        return step, min(low, first), max(high, last)


@dataclass(frozen=True)
class Onset:
    """What the maps of an operator's R runs show of N objects, and since when.

    Attributes:
        outline: reading of the outline.
        interior: reading of the interior.
        lead: log of how many times earlier the outline arrives, log(1 + interior) - log(1 + outline) in steps, with its
            variance; positive: outline first. None unless both are shown.
        verdict: the conclusion.
        alike: own less others of a perfect map as a share of its response: 0 for equal masks.
        place: largest response of the maps for the masks of other images, as a share of a perfect map's response for
            its own mask: what place alone explains.
        sign_change: step by which the maps of a run have changed between dark and bright on the object, after both
            readings were shown: what comes before it is timed. None if there is no such change.
        images: N.
        runs: R.
    """

    outline: Reading
    interior: Reading
    lead: Estimate | None
    verdict: Verdict
    alike: float
    place: float
    images: int
    runs: int
    sign_change: int | None = None


@dataclass(frozen=True)
class _Response:
    """The signed response of all runs, for any runs and images, before it is timed."""

    level: ChanceLevel
    signs: NDArray[np.int64]
    turned: NDArray[np.int64]
    """``(R, S)``, -1 where a run's maps have the other sign than at the snapshot that gave the run its sign, else 1."""
    curve_of: Callable[[Indices, Indices], NDArray[np.float64]]
    curve: NDArray[np.float64]
    own_mask: NDArray[np.float64]
    """The same for the own masks alone, without subtracting that of other masks."""
    shown: bool
    end: int | None = None
    """Index of the first change of sign: what comes before it is timed. None: everything."""

    @property
    def smoothed(self) -> NDArray[np.float64]:
        """The smoothed response up to the first change of sign."""
        return smooth(self.curve)[: self.end]

    def reversed_before_top(self, other: _Response, *, fallen: bool = False) -> int | None:
        """Index of the lowest smoothed response before the top, if it alone is below minus its bound; else None.

        If the other response is below minus half of its chance level there, or its bound, the whole map may be of the
        other sign.

        Args:
            other: the other of outline and interior.
            fallen: whether the response must have fallen by as much since the first snapshot, less a little where the
                own masks alone show it too. If not, it may be a pattern of the images that is there all the time, or
                an effect of the other masks: where objects overlap, a rising outline lowers the interior's response.
        """
        smoothed = self.smoothed
        index = int(smoothed[: int(smoothed.argmax()) + 1].argmin())
        lowest, bound = smoothed[index], self.level.bounds[index]
        if other.smoothed[index] <= -min(other.level.level / 2, other.level.bounds[index]):
            return None
        if not fallen:
            return index if lowest < -bound else None
        needed = bound * (OWN_MASK_SHARE if smooth(self.own_mask)[index] <= lowest / 2 else 1.0)
        return index if max(lowest, lowest - smoothed[0]) < -needed else None


def judge(
    outline: NDArray[np.float64],
    interior: NDArray[np.float64],
    perfect_outline: NDArray[np.float64],
    perfect_interior: NDArray[np.float64],
    steps: Sequence[int],
    *,
    known_sign: bool = False,
    seed: int = 0,
) -> Onset:
    """Decide what maps show and which came first, from their contrasts.

    Args:
        outline: ``(R, S, N, N)``, outline contrast of runs, steps, map n read with mask m.
        interior: ``(R, S, N, N)``, interior contrast.
        perfect_outline: ``(N, N)``, outline contrast of the masks themselves.
        perfect_interior: ``(N, N)``, interior contrast of the masks themselves.
        steps: the S steps, increasing.
        known_sign: whether an object can only be bright in these maps, as in a readout.
        seed: seed of the permutations of the masks.
    """
    runs, images = outline.shape[0], outline.shape[2]
    pairs = [(outline, perfect_outline), (interior, perfect_interior)]
    alike = min((_alikeness(perfect) for _, perfect in pairs), default=0.0)
    if images < 2 or alike < LEAST_ALIKE:
        nothing = _nothing(runs, len(steps), steps)
        return Onset(nothing, nothing, None, choose_verdict(nothing, nothing, images, alike), alike, 0.0, images, runs)
    permutations = permute_images(images, seed)
    levels = [chance_level(table, perfect, permutations, known_sign=known_sign) for table, perfect in pairs]
    shared = None if known_sign else _shared_step(levels)
    phases = np.ones((runs, len(steps)), np.int64) if shared is None else _sign_phases(levels, shared)
    responses = [
        _signed(table, perfect, level, shared, phases) for (table, perfect), level in zip(pairs, levels, strict=True)
    ]
    end = _first_change(phases, responses)
    first, second = (replace(response, end=end) for response in responses)
    time = np.log1p(np.asarray(steps, np.float64))
    early = _Timed(first, time, reversed_at=first.reversed_before_top(second), runs=runs, images=images)
    late = _Timed(second, time, reversed_at=second.reversed_before_top(first, fallen=True), runs=runs, images=images)
    early, late = early.within_appearance_of(late), late.within_appearance_of(early)
    readings = early.reading(steps, runs, images), late.reading(steps, runs, images)
    lead = start_difference = None
    run_leads: list[Estimate] = []
    if all(reading.shown for reading in readings) and images >= COMPARABLE:

        def lead_of(r: Indices, n: Indices) -> float:
            return late.arrival(r, n) - early.arrival(r, n)

        lead = jackknife(lead_of, runs, images)
        start_difference = jackknife(lambda r, n: early.start_share(r, n) - late.start_share(r, n), runs, images)
        if runs > 1:
            run_leads = [
                jackknife(lambda _, n, run=run: lead_of(np.array([run]), n), 1, images)  # type: ignore[misc]
                for run in range(runs)
            ]
    verdict = choose_verdict(*readings, images, alike, lead, start_difference, run_leads)
    place = max(_place(table, perfect) for table, perfect in pairs)
    change = None if end is None else int(steps[end])
    return Onset(*readings, lead, verdict, alike, place, images, runs, change)


def _alikeness(perfect: NDArray[np.float64]) -> float:
    diagonal = float(np.diagonal(perfect).mean()) if len(perfect) else 0.0
    own = float(own_less_others(perfect)) if len(perfect) > 1 else 0.0
    return own / diagonal if diagonal > 0 else 0.0


def _place(table: NDArray[np.float64], perfect: NDArray[np.float64]) -> float:
    images = len(perfect)
    others = table.sum((-2, -1)) - np.trace(table, axis1=-2, axis2=-1)
    mean = smooth(others / (images * (images - 1)))
    return float(np.abs(mean).mean(0).max() / np.diagonal(perfect).mean())


def _shared_step(levels: Sequence[ChanceLevel]) -> int:
    """Index of the snapshot at which the shown readings (both, if none is) are strongest against chance.

    Both readings take their signs there.
    """
    shown = [level for level in levels if level.p <= SHOWN_ALPHA] or levels
    return int(np.sum([level.strength / max(level.level, 1e-12) for level in shown], axis=0).argmax())


def _sign_phases(levels: Sequence[ChanceLevel], shared: int) -> NDArray[np.int64]:
    """Where the maps of each run have the same sign as at the shared snapshot (1) and the other one (-1), ``(R, S)``.

    A run that is nowhere beyond chance against what the mean of the runs shows, and by itself shows no change, is taken
    to change its sign where the mean does.
    """
    curves = np.stack([smooth(level.curves) for level in levels])
    by_run = curves / np.stack([np.maximum(level.run_bounds, 1e-12) for level in levels])
    signs = np.where(by_run[..., shared].sum(0) < 0, -1, 1)[:, None]
    mean = (signs * curves).mean(1) / np.stack([np.maximum(level.bounds, 1e-12) for level in levels])
    of_mean, _ = _phases(mean)
    phases = []
    for run in range(len(signs)):
        own, certain = _phases(by_run[:, run])
        own, of_all = own * own[shared], of_mean * of_mean[shared]
        alike = (own == own[0]).all() and not (certain & (own != of_all)).any()
        phases.append(of_all if alike else own)
    return np.stack(phases)


def _phases(relative: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Signs of the maps at each snapshot, and whether both readings are beyond chance there with that sign: ``(S,)``.

    In a phase, the sum of the two readings has one sign. A phase without any snapshot beyond chance has the sign of the
    next one that has, or else of the last one.

    Args:
        relative: ``(2, S)``, smoothed responses of outline and interior relative to their bounds.
    """
    signs = np.where(relative.sum(0) < 0, -1, 1)
    certain = np.logical_and.reduce(relative * signs > 1)
    ends = [*(np.flatnonzero(signs[1:] != signs[:-1]) + 1).tolist(), len(signs)]
    known = [end for start, end in zip([0, *ends[:-1]], ends, strict=True) if certain[start:end].any()]
    if not known:
        return np.ones_like(signs), certain
    next_known = np.searchsorted(known, np.arange(len(signs)), side="right").clip(max=len(known) - 1)
    return signs[np.array(known)[next_known] - 1], certain


def _first_change(phases: NDArray[np.int64], responses: Sequence[_Response]) -> int | None:
    """Index at which the first run changes its sign after both responses have been beyond chance; None if none does."""
    for index in np.flatnonzero((phases[:, 1:] != phases[:, :-1]).any(axis=0)) + 1:
        if all((smooth(response.curve) > response.level.bounds)[:index].any() for response in responses):
            return int(index)
    return None


def _signed(
    table: NDArray[np.float64],
    perfect: NDArray[np.float64],
    level: ChanceLevel,
    shared: int | None,
    phases: NDArray[np.int64],
) -> _Response:
    """The response with the sign that each run has at the shared snapshot; None: all are positive.

    In phases of the other sign, it is negated.
    """
    turned = np.ones_like(phases)
    signs = np.ones(len(table), np.int64)
    if shared is not None:
        silent = level.strength[shared] < max(level.level, level.strength.max() / 2)
        index = int(level.strength.argmax()) if silent else shared
        signs = np.where(smooth(level.curves)[:, index] < 0, -1, 1)
        turned = phases * phases[:, index, None]
    signed = table * (signs[:, None] * turned)[:, :, None, None]
    known: dict[tuple[bytes, bytes], NDArray[np.float64]] = {}

    def curve_of(r: Indices, n: Indices) -> NDArray[np.float64]:
        key = (r.tobytes(), n.tobytes())
        if key not in known:
            some = signed[r][:, :, n[:, None], n]
            room = float(own_less_others(perfect[np.ix_(n, n)]))
            # Of few images the rest may be equal masks once one is left out: there is no response, and no interval.
            known[key] = own_less_others(some).mean(0) / (room if room > 0 else np.nan)
        return known[key]

    curve = (level.curves * signs[:, None] * turned).mean(0)
    own_mask = np.trace(signed, axis1=-2, axis2=-1).mean(0) / np.trace(perfect)
    return _Response(level, signs, turned, curve_of, curve, own_mask, level.p <= SHOWN_ALPHA)


class _Timed:
    """A response and the part of it whose rise is timed."""

    def __init__(
        self, response: _Response, time: NDArray[np.float64], *, reversed_at: int | None, runs: int, images: int
    ) -> None:
        self.response, self.time, self.halo = response, time, reversed_at is not None
        self.runs, self.images = runs, images
        self.gone: int | None = None
        smoothed = response.smoothed
        self.highest, self.peak = float(smoothed.max()), int(smoothed.argmax())
        self.from_start = self._is_there_at_start(smoothed, runs)
        if self.from_start and runs > 1:
            # What is there at first, goes, and comes back, has been there from the start all the same.
            fallen = np.flatnonzero(smoothed[1:] < self.highest * START_SHARE / 2)
            self.gone = 1 + int(fallen[0]) if len(fallen) else None
            part, self.halo = smoothed[: self.gone], False
        elif reversed_at is not None:
            negated = -smoothed
            after = np.flatnonzero(negated[reversed_at:] <= 0)
            part = negated[: reversed_at + int(after[0])] if len(after) else negated
        else:
            part = smoothed
            if runs > 1:
                gone = _gone(smoothed, response.level.level)
                self.gone = gone if gone is None or self._is_certain(gone, runs, images) else None
                part = smoothed[: self.gone]
        # The last of equal tops: with two snapshots both smoothed values are the same mean.
        self.top = float(part.max())
        self.at = int(np.flatnonzero(part >= self.top - 1e-12)[-1])

    def within_appearance_of(self, other: _Timed) -> _Timed:
        """This response, timed by its first appearance if that falls back as well, where the other one's goes again.

        Where the whole object appears, falls back and appears again, one of the two may fall to half and the other just
        not: one would be timed by its first appearance and the other by its second. An appearance counts here from a
        quarter of the top and half of the chance level on, and falls back if it loses a quarter.
        """
        if other.gone is None or self.gone is not None or self.from_start or other.from_start or self.halo:
            return self
        smoothed = self.response.smoothed
        least = max(self.highest * START_SHARE / 2, self.response.level.level / 2)
        end = _gone(smoothed, least, left=0.75)
        if end is None or smoothed[: other.gone].max() <= least:
            return self
        part = replace(self.response, end=end)
        return _Timed(part, self.time, reversed_at=None, runs=self.runs, images=self.images)

    def _is_there_at_start(self, smoothed: NDArray[np.float64], runs: int) -> bool:
        response = self.response
        there = response.level.p_start <= STRICT_START_ALPHA and response.curve[0] >= self.highest * START_SHARE
        # In a single run a dip may be noise, or the start.
        stays = smoothed[: self.peak + 1].min() >= self.highest * START_SHARE / 2
        return bool(response.shown and there and (stays or runs > 1))

    def _is_certain(self, gone: int, runs: int, images: int) -> bool:
        """Whether a first appearance, gone by an index, is beyond chance without any one of the runs and of the images.

        One that barely is may be missed when the same training is repeated, and the order of the two readings turns on
        it: the interval of the lead, which knows only of what is timed, would be too narrow.
        """
        every = np.arange(runs), np.arange(images)
        left = [(np.delete(every[0], run), every[1]) for run in range(runs)]
        left += [(every[0], np.delete(every[1], image)) for image in range(images)] if images > 2 else []
        return all(smooth(self.response.curve_of(*part))[:gone].max() > self.response.level.level for part in left)

    def _curve(self, r: Indices, n: Indices) -> NDArray[np.float64]:
        curve = self.response.curve_of(r, n)
        return -curve if self.halo else curve

    def arrival(self, r: Indices, n: Indices) -> float:
        """Arrival in these runs and images; the top stays at its snapshot."""
        curve = self._curve(r, n)
        return arrival(curve[: self.at + 1], float(smooth(curve)[self.at]), self.time[: self.at + 1])

    def top_of(self, r: Indices, n: Indices) -> float:
        """Smoothed response at the top's snapshot."""
        return float(smooth(self._curve(r, n))[self.at])

    def start_share(self, r: Indices, n: Indices) -> float:
        """Response at the first snapshot as a share of the top."""
        curve = self._curve(r, n)
        return float(curve[0] / max(float(smooth(curve)[self.at]), 1e-6))

    def reading(self, steps: Sequence[int], runs: int, images: int) -> Reading:
        """The reading, with the jackknife variance of its arrival if it is shown."""
        response, level = self.response, self.response.level
        curve = -response.curve if self.halo else response.curve
        _, indices = crossings(curve[: self.at + 1], self.top, self.time[: self.at + 1])
        timed = response.shown and images >= COMPARABLE
        low, high = jackknife_band(response.curve_of, runs, images)
        one_gap = bool(indices) and min(indices) == max(indices) and indices[0] > 0
        return Reading(
            curve=response.curve,
            low=low,
            high=high,
            run_curves=level.curves * response.signs[:, None] * response.turned,
            signs=response.signs,
            chance=level.level,
            p=level.p,
            p_start=level.p_start,
            shown=response.shown,
            start=float(response.curve[0]),
            top=-self.top if self.halo else self.top,
            top_step=int(steps[self.at]),
            top_estimate=jackknife(self.top_of, runs, images) if timed else None,
            end=float(response.curve[-3:].mean()),
            from_start=self.from_start and not self.halo,
            arrival=jackknife(self.arrival, runs, images) if timed else None,
            within=(int(steps[indices[0] - 1]), int(steps[indices[0]])) if one_gap else None,
            rest_step=self._rest_step(),
            gone_step=None if self.gone is None else int(steps[self.gone]),
            halo=self.halo,
        )

    def _rest_step(self) -> float | None:
        """Step by which half of the rest is there, where the first snapshot has a quarter of the top already."""
        curve, level = self.response.curve, self.response.level
        base = float(curve[0])
        if self.halo or not self.response.shown or level.p_start > START_ALPHA or base < self.top * START_SHARE / 2:
            return None
        time = arrival(curve[: self.at + 1], self.top, self.time[: self.at + 1], base=base)
        return None if math.isnan(time) else math.expm1(time)


def _gone(smoothed: NDArray[np.float64], least: float, left: float = 0.5) -> int | None:
    """Index at which a first appearance above ``least`` is down to ``left`` of its height before the top, or None."""
    highest = np.maximum.accumulate(smoothed)
    before_top = np.arange(len(smoothed)) <= int(smoothed.argmax())
    fallen = np.flatnonzero((highest > least) & (smoothed <= left * highest) & before_top)
    if not len(fallen) or int(smoothed[: fallen[0]].argmax()) == 0:
        return None
    return int(fallen[0])


def _nothing(runs: int, count: int, steps: Sequence[int]) -> Reading:
    """The reading where nothing can be compared."""
    zeros = np.zeros((runs, count))
    return Reading(
        curve=zeros.mean(0), low=zeros.mean(0), high=zeros.mean(0), run_curves=zeros, signs=np.ones(runs, np.int64),
        chance=math.nan, p=1.0, p_start=1.0, shown=False, start=0.0, top=0.0, top_step=int(steps[0]),
        top_estimate=None, end=0.0, from_start=False, arrival=None, within=None, rest_step=None, gone_step=None,
        halo=False,
    )  # fmt: skip
