"""The plan of a sweep: operators times seeds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import FadevizError, unknown_name
from ..experiment import LABELS, RunConfig
from ..experiment.validation import check_model
from ..models import find_network, parse_network
from ..upsamplers import parse_upsampler

CONTROLS = tuple(name for name in LABELS if name != "true")
"""Controls that may follow an operator after ``@``: the labels that it is trained on."""

_MAX_SEEDS = 10_000


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
        operator: an upsampler with its options and an optional control: ``fade``, ``fade:gate=off@shuffled``.
        seed: the seed of weights, data order and shuffled labels.
    """

    operator: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the run and of its folder: ``fade-gate=off-shuffled-seed0``."""
        return f"{re.sub(r'[^A-Za-z0-9_.=+-]', '-', self.operator)}-seed{self.seed}"


@dataclass(frozen=True)
class SweepPlan:
    """The trials of a sweep and their shared settings, as :func:`plan_sweep` or :func:`read_plan` returns them.

    Attributes:
        base: the shared settings. Its ``upsampler`` is the first operator's; its ``labels`` and ``seed`` are unused.
        trials: the runs, in the order in which they are started.
    """

    base: RunConfig
    trials: tuple[Trial, ...]

    def config(self, trial: Trial) -> RunConfig:
        """The settings of one trial."""
        upsampler, _, control = trial.operator.partition("@")
        return dataclasses.replace(self.base, upsampler=upsampler, labels=control or "true", seed=trial.seed)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse seeds: ``"0:5"`` is 0, 1, 2, 3, 4; ``"0,3,7"`` is 0, 3, 7; ranges and numbers can be combined with commas.

    As in Python, and unlike in a schedule of steps, the second number of a range is excluded: ``0:N`` is N seeds.

    Raises:
        FadevizError: if a part is not a number or a range, if a range is empty, or if there are more than 10,000 seeds.

    Example:
        >>> parse_seeds("0:3,7")
        (0, 1, 2, 7)
    """
    seeds: dict[int, None] = {}
    grammar = "Write seeds as N or FIRST:STOP (0:5 is 0,1,2,3,4), joined by commas"
    for part in text.split(","):
        fields = [field.strip() for field in part.split(":")]
        if len(fields) > 2 or not all(f.isascii() and f.isdigit() and len(f) <= 18 for f in fields):
            raise FadevizError(f"seeds {text!r}: {part!r} is not a seed. {grammar}")
        first, stop = int(fields[0]), int(fields[-1]) + (len(fields) == 1)
        if stop <= first:
            raise FadevizError(f"seeds {text!r}: {part!r} is empty, since STOP is excluded. {grammar}")
        if stop - first + len(seeds) > _MAX_SEEDS:
            raise FadevizError(f"seeds {text!r}: more than {_MAX_SEEDS} seeds. Name fewer")
        seeds.update(dict.fromkeys(range(first, stop)))
    return tuple(seeds)


def plan_sweep(upsamplers: Iterable[str], seeds: Iterable[int], base: RunConfig) -> SweepPlan:
    """Combine every operator with every seed, seed by seed, so that a half-finished sweep can already be compared.

    Args:
        upsamplers: names in ``UPSAMPLERS``, which may have options and a control: ``"fade:gate=off@shuffled"``.
        seeds: seeds of weights, data order and shuffled labels.
        base: the settings that all trials share.

    Raises:
        FadevizError: if there is no operator or no seed; if an operator, option or control is unknown; or if an
            operator does not have the layers or kinds to record.
    """
    # Each operator is built once, not once a seed: a network takes some 60 ms, and a plan may have thousands of runs.
    operators = list(dict.fromkeys(_canonical(text, base) for text in dict.fromkeys(upsamplers)))
    numbers = list(dict.fromkeys(seeds))
    if not operators:
        raise FadevizError("a sweep needs operators. Name some: upsamplers=fade,carafe")
    if not numbers:
        raise FadevizError("a sweep needs seeds. Name some: seeds=0:5")
    plan = SweepPlan(base, tuple(Trial(operator, seed) for seed in numbers for operator in operators))
    for trial in plan.trials[: len(operators)]:
        plan.config(trial)  # reports layers and kinds that an operator lacks before anything is trained
    # The base is a valid configuration of one operator: with any other, its layers might not exist.
    return dataclasses.replace(plan, base=dataclasses.replace(base, upsampler=plan.config(plan.trials[0]).upsampler))


def _canonical(text: str, base: RunConfig) -> str:
    """The canonical spelling of an operator, which names its folder: options sorted, no blanks. The operator is built
    to check it.
    """
    upsampler, at, control = (part.strip() for part in text.partition("@"))
    if at and control not in CONTROLS:
        raise unknown_name(f"control (after the @ of {text!r})", control, CONTROLS)
    name, options = parse_upsampler(upsampler)
    check_model(base.network, upsampler, base.width, find_network(parse_network(base.network)[0]).layers, "")
    pairs = [part.partition("=") for part in upsampler.partition(":")[2].split(",")] if options else []
    values = {key.strip(): value.strip() for key, _, value in pairs}  # the last one counts, as in parse_upsampler
    return name + ":" * bool(values) + ",".join(f"{key}={values[key]}" for key in sorted(values)) + at + control


__all__ = ["CONTROLS", "SweepPlan", "Trial", "parse_seeds", "plan_sweep"]
