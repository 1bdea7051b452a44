"""What is right to say of each kind of planted movie, what is wrong, and how often either may be said."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

OUTLINE = {"outline first", "outline only", "outline from the start"}
INTERIOR = {"interior first", "interior only", "interior from the start"}
NOTHING = {"neither", "masks too alike", "too few images"}
UNRESOLVED = {"outline shown, interior unresolved", "interior shown, outline unresolved"}
SOMETHING = OUTLINE | INTERIOR | UNRESOLVED | {"both from the start", "both within one gap", "together", "undecided"}
ORDERS = OUTLINE | INTERIOR

CHANCE = 4 / 32
"""Wrong verdicts allowed where nothing is planted, or no order: the rate is 5 % by design."""


@dataclass(frozen=True)
class Demand:
    """What is demanded of the verdicts on one kind, with at least 8 images and 3 seeds.

    Attributes:
        right: verdicts that are right.
        wrong: verdicts that are wrong; all others are neither, such as "undecided" of a movie that has an order.
        least: share of right verdicts at middle noise, at least; None: not demanded.
        most: share of wrong verdicts, at most.
    """

    right: frozenset[str]
    wrong: frozenset[str]
    least: float | None = None
    most: float = 0.0

    def allowed(self, level: str, count: int) -> int:
        """Wrong verdicts allowed among ``count`` movies: of few, or at high noise, chance may give one more."""
        one_more = level == "high" or (self.most > 0 and count < 32)
        return math.ceil(self.most * count) + one_more


def _outline(least: float | None, label: str = "outline first") -> Demand:
    return Demand(frozenset({label}), frozenset(INTERIOR), least)


def _interior(least: float | None, label: str = "interior first") -> Demand:
    return Demand(frozenset({label}), frozenset(OUTLINE), least)


TOGETHER = Demand(frozenset({"together", "both within one gap"}), frozenset(ORDERS), most=CHANCE)
NEITHER = Demand(frozenset({"neither"}), frozenset(SOMETHING), least=1 - CHANCE, most=CHANCE)
CANNOT_SAY = Demand(frozenset({"too few images"}), frozenset(SOMETHING), least=1.0)

DEMANDS = {
    "inward": _outline(0.9),
    "line, then fill": _outline(0.9),
    "outward": _interior(0.9),
    "wide blob, then sharp": _interior(0.9),
    "together": TOGETHER,
    "line at step 0, then fill": _outline(0.9, "outline from the start"),
    "line at step 0, inward": _outline(0.9, "outline from the start"),
    "sign flips half-way": TOGETHER,
    "place": NEITHER,
    "noise": NEITHER,
    "two objects, inward": _outline(0.9),
    "two objects, outward": _interior(0.9),
    "two fronts": TOGETHER,
    "drift, inward": _outline(0.9),
    "border, inward": _outline(0.9),
    "border, outward": _interior(0.9),
    "legs, inward": _outline(0.9),
    "legs, outward": _interior(0.9),
    "thin, inward": _outline(0.85),
    "thin, outward": _interior(None),
    "thin, line then fill": _outline(None),
    "no interior": CANNOT_SAY,
    "halo fades": _outline(0.9),
    "halo stays": _outline(0.85),
    "halo within 1 cell": _outline(None),
    "texture": TOGETHER,
    "outline goes, then deep": _outline(0.9),
    "outline goes, then all": _outline(0.9),
    "inward, then goes": _outline(None),
    "line only": Demand(
        frozenset({"outline only", "outline shown, interior unresolved"}), frozenset(INTERIOR), 0.85, most=CHANCE
    ),
    "deep only": Demand(
        frozenset({"interior only", "interior shown, outline unresolved"}), frozenset(OUTLINE), most=CHANCE
    ),
    "deep at step 0, outward": _interior(0.9, "interior from the start"),
    "whole at step 0": Demand(frozenset({"both from the start"}), frozenset(ORDERS), 0.9, most=CHANCE),
    "all at once": TOGETHER,
    "seeds disagree": Demand(frozenset({"seeds disagree"}), frozenset(ORDERS), 0.7),
    "masks alike": Demand(frozenset({"masks too alike", "outline shown, interior unresolved"}), frozenset()),
    "24x24, inward": _outline(0.85),
    "24x24, outward": _interior(None),
    "12x12, inward": _outline(None),
    "four images": CANNOT_SAY,
    "six snapshots, inward": _outline(0.5),
    "six snapshots, outward": _interior(None),
    "dark, inward": _outline(0.9),
    "dark, outward": _interior(0.9),
    "dark in some seeds, inward": _outline(0.9),
    "dark in some seeds, outward": _interior(0.9),
    "dark in some seeds, together": TOGETHER,
    "rescaled, inward": _outline(0.9),
    "rescaled, together": TOGETHER,
    "zero at step 0, inward": _outline(0.9),
    "zero at step 0, outward": _interior(0.9),
    "zero at step 0, noise": NEITHER,
    "some NaN, inward": _outline(0.9),
    "some NaN, outward": _interior(0.9),
    "few values, inward": _outline(0.9),
    "few values, outward": _interior(0.9),
    "deep bright, then all dark": _interior(0.9),
    "line bright, then all dark": _outline(0.9),
    "line bright, deep dark": _outline(0.9),
    "deep goes, then all": _interior(0.85),
    "deep dark, then all bright": replace(_interior(0.85), most=CHANCE),
    "inward, then sign flips": _outline(0.85),
    "outward, then sign flips": _interior(0.85),
    "outward, sign flips in one seed": _interior(0.85),
    "faint rim, together": TOGETHER,
    "noise shrinks, together": TOGETHER,
    "both, deep goes, then all": TOGETHER,
    "both, outline goes, then all": TOGETHER,
}
