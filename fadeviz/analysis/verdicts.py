"""Verdicts: conclusions from the readings of outline and interior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .jackknife import Estimate

if TYPE_CHECKING:
    from .onset import Reading

LEAST_IMAGES = 5
"""Images needed for a verdict: four masks have only 24 permutations."""

SHOWN_ALPHA = 0.025
"""p-value up to which a reading is shown: 5 % for the two readings together."""

START_ALPHA, STRICT_START_ALPHA = 0.05, 0.01
"""p-values of the first snapshot: for a response that is partly there, and for one that is there from the start."""

START_SHARE = 0.5
"""Share of its top that a response has at the first snapshot if it is there from the start."""

RESOLVED_SHARE = 0.6
"""Ratio of a reading's chance level to the other's top, up to which a reading that is not shown counts as absent."""

TOGETHER = math.log(1.5)
"""Lead (log) within which both arrive together, whichever is ahead.

A part that is drawn more faintly, or noise that shrinks, delays a reading by a factor of up to about 1.3; with enough
images and seeds, any such factor is certain.
"""

FAINT_TOP = 0.15
"""Top below which a response is faint; 1 is a perfect map."""

ALIKE = 0.15
"""Share of a perfect map's response that is its own, below which the masks are too alike."""

VERDICTS = {
    "too few images": f"fewer than {LEAST_IMAGES} images have an interior at the layer's resolution",
    "masks too alike": "neither is shown, and the masks are so alike that even perfect maps would hardly show it",
    "neither": "the maps do not respond more to their own object than to those of other images",
    "outline only": "the outline is shown, and an equally strong interior would have been",
    "interior only": "the interior is shown, and an equally strong outline would have been",
    "outline shown, interior unresolved": "the outline is shown; the interior is not, but might have been missed",
    "interior shown, outline unresolved": "the interior is shown; the outline is not, but might have been missed",
    "both from the start": "both are there at the first snapshot already",
    "outline from the start": "the outline is there at the first snapshot already, the interior is not",
    "interior from the start": "the interior is there at the first snapshot already, the outline is not",
    "both within one gap": "both rise between the same two snapshots, so that their order is unknown",
    "outline first": "the interval of the lead lies above 0, and not within a factor of 1.5",
    "interior first": "the interval of the lead lies below 0, and not within a factor of 1.5",
    "together": "the lead is within a factor of 1.5 by its 90 % interval (two one-sided tests), whichever is ahead",
    "seeds disagree": "the interval of the lead lies above 0 in one run and below 0 in another",
    "undecided": "both are shown, and the interval of the lead allows either order",
}
"""The verdicts, each with its condition; the exact rules are those of :func:`choose_verdict`."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on one operator.

    Attributes:
        label: a name in ``VERDICTS``.
        faint: whether all that is shown stays below 15 % of a perfect map's response.
        halo: whether an outline that is first is a rim just outside the contour.
    """

    label: str
    faint: bool = False
    halo: bool = False

    def __str__(self) -> str:
        return f"{'faint: ' * self.faint}{self.label}{' (halo)' * self.halo}"


def choose_verdict(
    outline: Reading,
    interior: Reading,
    images: int,
    alike: float,
    lead: Estimate | None = None,
    start_difference: Estimate | None = None,
    run_leads: Sequence[Estimate] = (),
) -> Verdict:
    """The verdict from the two readings: the first of ``VERDICTS`` that applies.

    Args:
        outline: reading of the outline.
        interior: reading of the interior.
        images: number of images.
        alike: see :class:`~fadeviz.analysis.onset.Onset`.
        lead: log of how many times earlier the outline arrives; None unless both are shown.
        start_difference: difference of the two responses at the first snapshot, each as a share of its top, outline
            minus interior.
        run_leads: the lead in each run, for several runs.
    """
    if images < LEAST_IMAGES:
        return Verdict("too few images")
    if not outline.shown and not interior.shown:
        return Verdict("neither" if alike >= ALIKE else "masks too alike")
    faint = max(abs(reading.top) for reading in (outline, interior) if reading.shown) < FAINT_TOP
    if lead is None or start_difference is None:
        return Verdict(_single(outline, interior), faint)
    label = _from_start(outline, interior, start_difference) or _order(outline, interior, lead, run_leads)
    return Verdict(label, faint, halo=outline.halo and label == "outline first")


def _single(outline: Reading, interior: Reading) -> str:
    """The verdict where only one of the two is shown."""
    name, shown, other_name, other = (
        ("outline", outline, "interior", interior) if outline.shown else ("interior", interior, "outline", outline)
    )
    if other.chance <= RESOLVED_SHARE * abs(shown.top):
        return f"{name} only"
    return f"{name} shown, {other_name} unresolved"


def _from_start(outline: Reading, interior: Reading, difference: Estimate) -> str:
    """The verdict where one is there at the first snapshot already; empty otherwise."""
    low, high = difference.interval()
    if outline.from_start and interior.from_start:
        return "both from the start"
    if outline.from_start:
        return "outline from the start" if low > 0 or not partly_at_start(interior) else "both from the start"
    if interior.from_start:
        return "interior from the start" if high < 0 or not partly_at_start(outline) else "both from the start"
    return ""


def partly_at_start(reading: Reading) -> bool:
    """Whether a response has a quarter of its top at the first snapshot already, beyond chance."""
    return reading.p_start <= START_ALPHA and reading.start >= reading.top * START_SHARE / 2 and reading.top > 0


def _order(outline: Reading, interior: Reading, lead: Estimate, run_leads: Sequence[Estimate]) -> str:
    """The verdict on the order of two responses that both arrive during the training."""
    if outline.within is not None and outline.within == interior.within:
        return "both within one gap"
    low, high = lead.interval(0.9)
    together = low >= -TOGETHER and high <= TOGETHER
    low, high = lead.interval()
    if low > 0 and not together:
        return "outline first"
    if high < 0 and not together:
        return "interior first"
    intervals = [run_lead.interval(1 - 0.05 / len(run_leads)) for run_lead in run_leads]
    if any(ends[0] > 0 for ends in intervals) and any(ends[1] < 0 for ends in intervals):
        return "seeds disagree"
    return "together" if together else "undecided"
