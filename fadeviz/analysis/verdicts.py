"""What the measures of an operator's maps say in words: outline first, interior first, or neither."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .learning import State
from .statistics import Interval

VERDICTS = {
    "outline first": "the interval of the lead lies above 0, and the lead is longer than what the snapshots resolve",
    "interior first": "the interval of the lead lies below 0, and the lead is longer than what the snapshots resolve",
    "together": "the interval of the lead lies within what the snapshots resolve",
    "already there at step 0": "most maps show the outline, or the interior, before any training",
    "undecided": "the interval of the lead holds 0, too few maps have a lead, one of the two never comes, or is no "
    "better than for the masks of other images",
}
"""What can be said of an operator, and when."""


MIN_LEADS = 6
"""Leads needed for a verdict: of fewer, all have the same sign by chance more than once in twenty times."""


@dataclass(frozen=True)
class Verdict:
    """What the measures say of an operator.

    Attributes:
        word: a name in ``VERDICTS``.
        reason: the numbers behind it, in a sentence.
    """

    word: str
    reason: str


def verdict(
    edge: Sequence[State],
    interior: Sequence[State],
    leads: Interval,
    margin: float,
    by_place: Sequence[Collection[str]] = (),
) -> Verdict:
    """What the states and leads of an operator's maps say, in words.

    The rules, the first that holds decides; a map is known when neither of its two responses is missing:

    1. fewer than half of the maps are known: undecided;
    2. in more than half of the known maps the outline or the interior is told by its place alone: undecided;
    3. in more than half of them the outline or the interior is there at step 0: already there at step 0;
    4. in more than half of them the outline or the interior never comes: undecided, as what a map does not show may
       still be in the network;
    5. fewer than ``MIN_LEADS`` leads, or leads in fewer than half of the known maps: undecided;
    6. the lead's interval lies within -margin ... margin: together;
    7. it lies above 0 and the lead is longer than the margin: outline first; the same below 0: interior first; else
       undecided.

    Args:
        edge: state of the edge response of each map.
        interior: state of the interior response of each map.
        leads: the interval of the leads, positive = outline first.
        margin: in steps; leads as short as that are not resolved. NaN counts as 0.
        by_place: for each map, which of the two responses, ``outline`` and ``interior``, is hardly above that for the
            other images' masks.
    """
    pairs = list(zip(edge, interior, strict=True))
    known = [pair for pair in pairs if State.MISSING not in pair]
    if not known or 2 * len(known) < len(pairs):
        return Verdict("undecided", f"a response is undefined in {len(pairs) - len(known)} of {len(pairs)} maps")
    counts = _counts(known)
    for name in ("outline", "interior"):
        told = sum(name in one for one in by_place)
        if 2 * told > len(known):
            reason = f"the {name} is hardly better than for other images' masks in {told} of {len(pairs)} maps"
            return Verdict("undecided", f"{reason}; {counts}")
    if 2 * sum(State.AT_START in pair for pair in known) > len(known):
        return Verdict("already there at step 0", counts)
    if 2 * sum(State.NEVER in pair for pair in known) > len(known):
        return Verdict("undecided", counts)
    if leads.count < MIN_LEADS or 2 * leads.count < len(known):
        few = f", {MIN_LEADS} are needed" if leads.count < MIN_LEADS else ""
        return Verdict("undecided", f"a lead in {leads.count} of {len(pairs)} maps{few}; {counts}")
    seeds = f"{leads.count} maps, {leads.seeds} seed{'s' * (leads.seeds != 1)}"
    numbers = f"lead {_signed(leads.estimate)} steps ({_signed(leads.low)} to {_signed(leads.high)}; {seeds})"
    resolved = 0.0 if math.isnan(margin) else margin
    if -resolved <= leads.low and leads.high <= resolved:
        return Verdict("together", f"{numbers}, within the {resolved:.0f} steps that the snapshots resolve")
    if leads.low > 0 or leads.high < 0:
        if abs(leads.estimate) <= resolved:
            return Verdict("undecided", f"{numbers}; the snapshots resolve {resolved:.0f} steps")
        return Verdict("outline first" if leads.low > 0 else "interior first", numbers)
    return Verdict("undecided", numbers)


def _counts(pairs: Sequence[tuple[State, State]]) -> str:
    """How often each state occurs: ``outline 3 reached, 1 never; interior 4 reached``."""
    parts = []
    for name, states in zip(("outline", "interior"), zip(*pairs, strict=True), strict=True):
        counts = [f"{states.count(state)} {state}" for state in State if state in states]
        parts.append(f"{name} {', '.join(counts)}")
    return "; ".join(parts)


def _signed(steps: float) -> str:
    return f"{steps:+.0f}"  # censored ones read +inf and -inf
