"""Distance-time maps of an analysis as panels, for plots and reports: with arrivals and brief verdicts."""

from __future__ import annotations

import math

from .analysis.onset import Onset
from .analysis.onsets import Onsets
from .render.panels import INTERIOR, OUTLINE, ArrivalMark, KymographPanel

KYMOGRAPH_QUANTITY = "mean rank, own mask less other masks"
"""What the colours of distance-time maps are."""

HALVES = ("channel mean", "linear readout")
"""Names of the two halves of an answer: what the maps show, and what the features hold."""


def kymograph_panels(onsets: Onsets) -> tuple[KymographPanel, ...]:
    """The distance-time maps of all operators that have one, with their arrivals: of the maps, then of the readout."""
    halves = any(operator.readout is not None for operator in onsets.operators)
    panels = []
    for operator in onsets.operators:
        parts = ((operator.map, operator.kymograph), (operator.readout, operator.readout_kymograph))
        for (onset, kymograph), half in zip(parts, HALVES, strict=True):
            if onset is not None and kymograph is not None:
                panels.append(
                    KymographPanel(
                        operator.title,
                        brief_verdict(onset),
                        onsets.steps,
                        kymograph.edges,
                        kymograph.value,
                        _arrivals(onset),
                        half if halves else "",
                    )
                )
    return tuple(panels)


def brief_verdict(onset: Onset) -> str:
    """The verdict in a few words, with how much earlier what is first arrives: ``outline first, 2.1× earlier``."""
    text = str(onset.verdict)
    if onset.lead is not None and onset.verdict.label in ("outline first", "interior first"):
        factor = math.exp(min(abs(onset.lead.value), 700.0))
        text += f", {f'{factor:.1f}' if factor < 20 else f'{factor:.0f}' if factor < 1000 else 'over 999'}× earlier"
    return f"{text}; 1 seed" if onset.runs == 1 else text


_DEPTHS = {OUTLINE: 0.0, INTERIOR: -0.6}
"""Depth at which an arrival is drawn: on the contour, and where the zone of the interior is on most objects."""


def _arrivals(onset: Onset) -> tuple[ArrivalMark, ...]:
    """The arrivals of what is shown."""
    return tuple(
        ArrivalMark(label, *reading.arrival_steps, depth=_DEPTHS[label], from_start=reading.from_start)
        for label, reading in ((OUTLINE, onset.outline), (INTERIOR, onset.interior))
        if reading.arrival is not None
    )


def explain_kymographs(onsets: Onsets) -> str:
    """Sentences on how to read the distance-time maps."""
    return (
        "Orange: at this depth, maps are higher for their own object than for objects of other images; blue: lower; "
        "white: no difference, as for whatever depends on place alone. Depth is in inscribed radii of the object; "
        "\N{MINUS SIGN}1 is its deepest point. "
        "A front that moves down from the contour (dashed) is an interior that fills from its outline; one that moves "
        f"up to it, an object that grows from its centre. {_negated(onsets)}Symbols: arrivals with their 95 % "
        "intervals."
    )


def caption_of_kymographs(onsets: Onsets) -> list[str]:
    """:func:`explain_kymographs` in short sentences, the most needed first."""
    colours = f"Orange: higher for a map's own object than for other images' objects; blue: lower. {_negated(onsets)}"
    return [colours.rstrip(), "Symbols: arrivals with 95 % intervals."]


def _negated(onsets: Onsets) -> str:
    """A sentence on maps that are dark on the object; empty if none are."""
    halves = [
        (onset, kymograph)
        for operator in onsets.operators
        for onset, kymograph in (
            (operator.map, operator.kymograph),
            (operator.readout, operator.readout_kymograph),
        )
        if onset is not None and kymograph is not None
    ]
    dark = sum(kymograph.dark for onset, kymograph in halves if onset.outline.shown or onset.interior.shown)
    return (
        f"{dark} run{'s' * (dark > 1)} whose maps are dark on the object {'are' if dark > 1 else 'is'} negated. "
        * bool(dark)
    )
