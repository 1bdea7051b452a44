"""Verdicts: what the learning times of an operator's maps amount to, in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .learning import State
from .statistics import Interval

VERDICTS = {
    "outline first": "the interval of the lead lies above 0, and the lead is longer than the snapshots resolve",
    "interior first": "the interval of the lead lies below 0, and the lead is longer than the snapshots resolve",
    "together": "the interval of the lead lies within what the snapshots resolve",
    "already there at step 0": "most maps show the outline, or the interior, before any training",
    "undecided": "the interval of the lead contains 0, too few maps have a lead, one of the two is never learned, or "
    "is no better than for the masks of other images",
}
"""The verdicts, each with its condition; the exact rules are those of :func:`verdict`."""

MIN_LEADS = 6
"""Leads needed for a verdict: fewer have all the same sign by chance in more than one of twenty cases."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on one operator.

    Attributes:
        label: a name in ``VERDICTS``.
        reason: the numbers behind it, as a sentence without a full stop.
    """

    label: str
    reason: str


def verdict(
    edge: Sequence[State],
    interior: Sequence[State],
    leads: Interval,
    margin: float,
    explained_by_position: Sequence[Collection[str]] = (),
) -> Verdict:
    """The verdict on one operator, from the states and leads of its maps.

    The first rule that applies decides; a map is *defined* if neither of its two responses is missing:

    1. fewer than half of the maps are defined: undecided;
    2. in more than half of the defined maps position alone explains the outline or the interior: undecided;
    3. in more than half of them the outline or the interior is there at step 0: already there at step 0;
    4. in more than half of them the outline or the interior is never learned: undecided, because the network may hold
       what its maps do not show;
    5. fewer than ``MIN_LEADS`` leads, or leads in fewer than half of the defined maps: undecided;
    6. the interval of the lead lies within [-margin, margin]: together;
    7. the interval lies above 0 and the lead is longer than the margin: outline first; likewise below 0: interior
       first; otherwise undecided.

    Args:
        edge: state of the edge response of each map.
        interior: state of the interior response of each map.
        leads: median lead with its interval, in steps; positive: the outline is learned first.
        margin: shortest lead that the snapshots resolve, in steps; NaN counts as 0.
        explained_by_position: for each map, which of ``"outline"`` and ``"interior"`` its position alone explains: the
            response is hardly above that for mismatched masks. Empty: not examined.
    """
    pairs = list(zip(edge, interior, strict=True))
    defined = [pair for pair in pairs if State.MISSING not in pair]
    if not defined or 2 * len(defined) < len(pairs):
        return Verdict("undecided", f"a response is undefined in {len(pairs) - len(defined)} of {len(pairs)} maps")
    counts = _counts(defined)
    for name in ("outline", "interior"):
        explained = sum(name in names for names in explained_by_position)
        if 2 * explained > len(defined):
            reason = f"the {name} is hardly better than for other images' masks in {explained} of {len(pairs)} maps"
            return Verdict("undecided", f"{reason}; {counts}")
    if 2 * sum(State.AT_START in pair for pair in defined) > len(defined):
        return Verdict("already there at step 0", counts)
    if 2 * sum(State.NEVER in pair for pair in defined) > len(defined):
        return Verdict("undecided", counts)
    if leads.count < MIN_LEADS or 2 * leads.count < len(defined):
        few = f", {MIN_LEADS} are needed" if leads.count < MIN_LEADS else ""
        return Verdict("undecided", f"a lead in {leads.count} of {len(pairs)} maps{few}; {counts}")
    return _verdict_of_leads(leads, 0.0 if math.isnan(margin) else margin)


def _verdict_of_leads(leads: Interval, margin: float) -> Verdict:
    """Rules 6 and 7 of :func:`verdict`."""
    seeds = f"{leads.count} maps, {leads.seeds} seed{'s' * (leads.seeds != 1)}"
    numbers = f"lead {_signed(leads.estimate)} steps ({_signed(leads.low)} to {_signed(leads.high)}; {seeds})"
    if -margin <= leads.low and leads.high <= margin:
        return Verdict("together", f"{numbers}, within the {margin:.0f} steps that the snapshots resolve")
    if leads.low > 0 or leads.high < 0:
        if abs(leads.estimate) <= margin:
            return Verdict("undecided", f"{numbers}; the snapshots resolve {margin:.0f} steps")
        return Verdict("outline first" if leads.low > 0 else "interior first", numbers)
    return Verdict("undecided", numbers)


def is_representative(interval: Interval, maps: int) -> bool:
    """Whether the median of an interval comes from enough of an operator's maps to stand for all of them.

    Args:
        interval: the median and interval of the maps that have a value.
        maps: number of all maps, runs times images.
    """
    return interval.count >= MIN_LEADS and 2 * interval.count >= maps


def _counts(pairs: Sequence[tuple[State, State]]) -> str:
    """How often each state occurs: ``outline 3 reached, 1 never; interior 4 reached``."""
    parts = []
    for name, states in zip(("outline", "interior"), zip(*pairs, strict=True), strict=True):
        counts = [f"{states.count(state)} {state}" for state in State if state in states]
        parts.append(f"{name} {', '.join(counts)}")
    return "; ".join(parts)


def _signed(steps: float) -> str:
    return f"{steps:+.0f}"  # censored leads read +inf and -inf
