"""Which runs a sweep shall have: operators times seeds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import FadevizError, unknown_name
from ..experiment import LABELS, RunConfig
from ..models import find_network, parse_network
from ..training.settings import check_model
from ..upsamplers import parse_upsampler

CONTROLS = tuple(name for name in LABELS if name != "true")
"""What may follow an operator after an ``@``: the labels it is trained on."""

_MAX_SEEDS = 10_000


class Member(NamedTuple):
    """One run of a sweep: ``operator`` is an upsampler with its options and perhaps a control: ``fade@shuffled``."""

    operator: str
    seed: int

    @property
    def name(self) -> str:
        """What the run and its folder are called: ``fade-gate=off-shuffled-seed0``."""
        return f"{re.sub(r'[^A-Za-z0-9_.=+-]', '-', self.operator)}-seed{self.seed}"


@dataclass(frozen=True)
class SweepPlan:
    """Which runs there shall be. Made by :func:`plan_sweep` or :func:`read_plan`.

    Attributes:
        base: what all runs share; its labels and seed stand for nothing, nor does its upsampler, the first operator's.
        members: the runs, in the order in which they are begun.
    """

    base: RunConfig
    members: tuple[Member, ...]

    def config(self, member: Member) -> RunConfig:
        """The settings of one run."""
        upsampler, _, control = member.operator.partition("@")
        return dataclasses.replace(self.base, upsampler=upsampler, labels=control or "true", seed=member.seed)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds: ``"0:5"`` is 0, 1, 2, 3, 4, and ``"0,3,7"`` these three; parts can be joined by commas.

    As in Python, and unlike in a schedule of steps, the second number of a range does not belong to it: ``0:N`` is N
    seeds.

    Raises:
        FadevizError: something that is no number, an empty range, too many.

    Example:
        >>> parse_seeds("0:3,7")
        (0, 1, 2, 7)
    """
    seeds: dict[int, None] = {}
    grammar = "Write seeds as N or FIRST:STOP (0:5 is 0,1,2,3,4), joined by commas"
    for part in text.split(","):
        fields = [field.strip() for field in part.split(":")]
        if len(fields) > 2 or not all(f.isascii() and f.isdigit() and len(f) <= 18 for f in fields):
            raise FadevizError(f"seeds {text!r}: {part!r} is no seed. {grammar}")
        first, stop = int(fields[0]), int(fields[-1]) + (len(fields) == 1)
        if stop <= first:
            raise FadevizError(f"seeds {text!r}: {part!r} names none: STOP is left out. {grammar}")
        if stop - first + len(seeds) > _MAX_SEEDS:
            raise FadevizError(f"seeds {text!r}: these are more than {_MAX_SEEDS}. Name fewer")
        seeds.update(dict.fromkeys(range(first, stop)))
    return tuple(seeds)


def plan_sweep(operators: Iterable[str], seeds: Iterable[int], base: RunConfig) -> SweepPlan:
    """Every operator with every seed, seed by seed, so that a sweep that is half done already compares.

    Args:
        operators: names in ``UPSAMPLERS``, with options and a control if need be: ``"fade:gate=off@shuffled"``.
        seeds: of weights, data order and shuffled labels.
        base: what all runs share.

    Raises:
        FadevizError: no operator or no seed; an unknown operator, option or control; layers or kinds that an operator
            does not have.
    """
    # Each operator is built once, not once a seed: a network takes some 60 ms, and a plan may have thousands of runs.
    names = list(dict.fromkeys(_canonical(text, base) for text in dict.fromkeys(operators)))
    numbers = list(dict.fromkeys(seeds))
    if not names:
        raise FadevizError("a sweep needs operators. Name some: --upsamplers fade,carafe")
    if not numbers:
        raise FadevizError("a sweep needs seeds. Name some: --seeds 0:5")
    plan = SweepPlan(base, tuple(Member(name, seed) for seed in numbers for name in names))
    for member in plan.members[: len(names)]:
        plan.config(member)  # reports layers and kinds that an operator lacks before any is trained
    # Settings are those of some operator: another than the plan's might not have its layers.
    return dataclasses.replace(plan, base=dataclasses.replace(base, upsampler=plan.config(plan.members[0]).upsampler))


def _canonical(text: str, base: RunConfig) -> str:
    """An operator in the one spelling its folder is named after: options sorted, no blanks; checked by building it."""
    upsampler, at, control = (part.strip() for part in text.partition("@"))
    if at and control not in CONTROLS:
        raise unknown_name(f"control (after the @ of {text!r})", control, CONTROLS)
    name, options = parse_upsampler(upsampler)
    check_model(base.network, upsampler, base.width, find_network(parse_network(base.network)[0]).layers, "")
    pairs = [part.partition("=") for part in upsampler.partition(":")[2].split(",")] if options else []
    spelled = {key.strip(): value.strip() for key, _, value in pairs}  # the last counts, as in parse_upsampler
    return name + ":" * bool(spelled) + ",".join(f"{key}={spelled[key]}" for key in sorted(spelled)) + at + control


__all__ = ["CONTROLS", "Member", "SweepPlan", "parse_seeds", "plan_sweep"]
