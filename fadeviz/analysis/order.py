"""Outline first or interior first: the measures of all runs put together, operator by operator, with a verdict."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError, unknown_name
from ..storage.stored_run import StoredRun, common_steps, describe_calls
from .grouping import check_runs, check_size, describe_inside, group_runs, note_uneven, setting
from .kymograph import Kymograph, merge_kymographs
from .learning import LEVELS, MIN_RESPONSE, UNTIL, LearningTimes, State, lead, learning_times
from .regions import BAND_PIXELS, BAND_SHARE, Regions, build_regions, distance_bins
from .responses import LAST, Responses, responses
from .statistics import UNITS, Interval, PairedTest, bootstrap_interval, paired_test
from .verdicts import Verdict, verdict

RESPONSES = {
    "plain": "the edge and the interior response as they are",
    "raw-edge": "the edge response is of the map's own gradient, not its ranks': large steps count more than ripples",
    "beyond-position": "how far each response is above the same map's for the other images' masks, which any centred "
    "blob has too; 1 for a perfect map",
    "raw-beyond-position": "the same with the edge response of the map's own gradient",
    "other-masks": "the responses for the other images' masks alone: a verdict that these give too is worth nothing",
}
"""Which responses the learning times are of."""


MIN_ROOM = 0.1
"""Where a perfect map is no more than this better for its own mask than for others, place cannot be told from it."""


class Rules(NamedTuple):
    """How times, intervals and verdicts are made of responses; see :func:`learning_order`."""

    which: str = "plain"
    until: str = "end"
    levels: tuple[float, ...] = LEVELS
    level: float = 0.95
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class OperatorOrder:
    """What one operator learns first: R runs (seeds), S steps, N images.

    Attributes:
        name: the operator with its options, and the settings that set its runs apart from others of that operator.
        title: how images call it.
        runs: the R runs, by seed.
        seeds: their seeds; None where a run has none.
        measured: for each run, all responses of its maps.
        edge: ``(R, S, N)``, the edge response that counts, see ``RESPONSES``; NaN where undefined.
        interior: ``(R, S, N)``, the interior response that counts; NaN where undefined.
        edge_times: for each run and image, when the edge response was learned.
        interior_times: the same of the interior response.
        lead: ``(R, N)``, t50(interior) - t50(edge) in steps; infinite where censored, NaN where there is none.
        edge_t50: median over the maps with a time, with its interval.
        interior_t50: the same of the interior response.
        lead_interval: median lead with its interval.
        margin: in steps, what the snapshots resolve: median over the maps with both t50 of the wider gap there.
        verdict: in words.
        value_kymograph: distance-time map of the values.
        gradient_kymograph: distance-time map of the steepness.
    """

    name: str
    title: str
    runs: tuple[StoredRun, ...]
    seeds: tuple[int | None, ...]
    measured: tuple[Responses, ...]
    edge: NDArray[np.float64]
    interior: NDArray[np.float64]
    edge_times: tuple[tuple[LearningTimes, ...], ...]
    interior_times: tuple[tuple[LearningTimes, ...], ...]
    lead: NDArray[np.float64]
    edge_t50: Interval
    interior_t50: Interval
    lead_interval: Interval
    margin: float
    verdict: Verdict
    value_kymograph: Kymograph
    gradient_kymograph: Kymograph


@dataclass(frozen=True)
class Comparison:
    """The leads of two operators compared on the seeds that both have.

    Attributes:
        first: name of an operator.
        second: name of the other; differences are first - second.
        seeds: the seeds in common.
        tests: one for each name in ``UNITS``; p-values are not corrected for the number of comparisons.
    """

    first: str
    second: str
    seeds: tuple[int | None, ...]
    tests: dict[str, PairedTest]


@dataclass(frozen=True)
class LearningOrder:
    """What is learned first, of several runs on the same images.

    Attributes:
        layer: dotted module name.
        kind: a name in ``KINDS``.
        steps: the S steps that all runs have.
        images: names of the N observed images.
        regions: of their masks at the layer's resolution.
        half_width: of the contour band as it was asked for: pixels of a layer, share of its diagonal.
        rules: how times and verdicts were made.
        operators: in the order in which they were given.
        comparisons: of every two operators with seeds in common.
        notes: what a reader should know of the runs, a sentence each.
        call: which call of the layer.
    """

    layer: str
    kind: str
    steps: tuple[int, ...]
    images: tuple[str, ...]
    regions: tuple[Regions, ...]
    half_width: tuple[float, float]
    rules: Rules
    operators: tuple[OperatorOrder, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    call: int = 0

    @property
    def layer_title(self) -> str:
        """The layer, and its call where that is not the first."""
        return f"{self.layer}, call {self.call}" if self.call else self.layer


def learning_order(
    runs: Sequence[StoredRun],
    layer: str | None = None,
    kind: str = "feature",
    *,
    steps: Sequence[int] | None = None,
    pixels: float = BAND_PIXELS,
    share: float = BAND_SHARE,
    levels: Sequence[float] = LEVELS,
    which: str = "plain",
    until: str = "end",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    call: int = 0,
    few: bool = False,
) -> LearningOrder:
    """Measure what each operator learns first; the runs of one operator are its seeds.

    Runs of one operator that differ in more than the seed become operators of their own, named with the difference.

    Args:
        runs: one or more, observed on the same images.
        layer: dotted name; None takes the first run's ``default_layer(kind)``.
        kind: a name in ``KINDS``, with one map an image.
        steps: which steps, step 0 among them, or None for all that the runs have in common.
        pixels: half-width of the contour band in pixels of the layer.
        share: the same as a share of the map's diagonal; the larger counts.
        levels: shares of the way whose steps are told.
        which: responses the times are of, a name in ``RESPONSES``.
        until: the level they are learned towards, a name in ``UNTIL``.
        level: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap and the tests.
        call: which call of a layer that runs several times in a forward pass.
        few: take steps that are too few to measure when something is learned, or lack step 0: all is undecided then.

    Raises:
        FadevizError: no run, a run given twice, two runs of one operator and seed, an unknown layer, kind or response,
            other images or map sizes, no step 0 or too few steps in common.
    """
    _check_rules(which, until)
    chosen = check_runs(runs, layer, kind, call)
    shown = common_steps(runs, steps)
    too_few = _too_few(runs, shown)
    if too_few and not few:
        raise FadevizError(f"{too_few}. Record the runs with step 0 and the same --snapshots")
    masks = runs[0].foregrounds
    height, width = runs[0].read(shown[0], chosen, kind, call).shape[-2:]
    regions = tuple(build_regions(mask, (height, width), pixels=pixels, share=share) for mask in masks)
    bins = distance_bins(regions)
    groups, notes = group_runs(runs)
    found = []
    for name, members in groups.items():
        measured = []
        for run in members:
            maps = run.maps(chosen, kind, steps=shown, call=call)
            check_size(run, maps, chosen, runs[0], regions)
            measured.append(responses(maps, regions, bins))
        found.append((name, members, measured))
    rules = Rules(which, until, tuple(levels), level, resamples, seed)
    operators = [_judge(name, members, measured, shown, rules) for name, members, measured in found]
    others = dict.fromkeys(describe_calls(chosen, run.calls(chosen, kind), call) for run in runs)
    names = (runs[0].info.get("observation") or {}).get("names") or []
    return LearningOrder(
        layer=chosen,
        kind=kind,
        steps=shown,
        images=tuple(map(str, names)) if len(names) == len(masks) else tuple(map(str, range(len(masks)))),
        regions=regions,
        half_width=(pixels, share),
        rules=rules,
        operators=tuple(operators),
        comparisons=tuple(_comparisons(operators, seed)),
        notes=(*filter(None, [describe_inside(runs[0]), *others]), *notes, *note_uneven(groups, chosen)),
        call=call,
    )


def judge_again(order: LearningOrder, which: str = "plain", until: str = "end") -> LearningOrder:
    """The same measured responses by other rules, without measuring anew; the arguments are :func:`learning_order`'s.

    A verdict that holds by one rule alone is a weak one.
    """
    _check_rules(which, until)
    rules = order.rules._replace(which=which, until=until)
    operators = tuple(_judge(one.name, one.runs, one.measured, order.steps, rules) for one in order.operators)
    comparisons = tuple(_comparisons(operators, rules.seed))
    return dataclasses.replace(order, rules=rules, operators=operators, comparisons=comparisons)


def _check_rules(which: str, until: str) -> None:
    if which not in RESPONSES:
        raise unknown_name("responses", which, RESPONSES)
    if until not in UNTIL:
        raise unknown_name("level to learn until", until, UNTIL)


def _judge(
    name: str, runs: Sequence[StoredRun], measured: Sequence[Responses], steps: Sequence[int], rules: Rules
) -> OperatorOrder:
    edge, interior = (np.stack(one) for one in zip(*(_counting(one, rules.which) for one in measured), strict=True))
    edge_times, interior_times = (_times(steps, one, rules.levels, rules.until) for one in (edge, interior))
    leads = np.array([list(map(lead, *both)) for both in zip(edge_times, interior_times, strict=True)])
    edge_t50, interior_t50, lead_interval = (
        bootstrap_interval(table, level=rules.level, resamples=rules.resamples, seed=rules.seed)
        for table in (_half_times(edge_times), _half_times(interior_times), leads)
    )
    flat_edge, flat_interior = (list(itertools.chain(*table)) for table in (edge_times, interior_times))
    pairs = [(e.gap, i.gap) for e, i in zip(flat_edge, flat_interior, strict=True)]
    gaps = [max(pair) for pair in pairs if not np.isnan(pair).any()]
    margin = float(np.median(gaps)) if gaps else math.nan
    too_few = _too_few(runs, steps)
    states = [times.state for times in flat_edge], [times.state for times in flat_interior]
    return OperatorOrder(
        name=name,
        # What distinguishes operators of the same name follows it; runs without a name are titled by their path.
        title=runs[0].title + name.removeprefix(runs[0].name) if name.startswith(runs[0].name) else name,
        runs=tuple(runs),
        seeds=tuple(setting(run, "seed") for run in runs),
        measured=tuple(measured),
        edge=edge,
        interior=interior,
        edge_times=edge_times,
        interior_times=interior_times,
        lead=leads,
        edge_t50=edge_t50,
        interior_t50=interior_t50,
        lead_interval=lead_interval,
        margin=margin,
        verdict=Verdict("undecided", too_few)
        if too_few
        else verdict(*states, lead_interval, margin, _by_place(measured, edge_times, interior_times, rules)),
        value_kymograph=merge_kymographs([one.value for one in measured]),
        gradient_kymograph=merge_kymographs([one.gradient for one in measured]),
    )


def _counting(measured: Responses, which: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The edge and the interior response that count."""
    raw = which.startswith("raw")
    edge, edge_elsewhere = (
        (measured.edge_raw, measured.edge_raw_elsewhere) if raw else (measured.edge, measured.edge_elsewhere)
    )
    if which == "other-masks":
        return edge_elsewhere, measured.interior_elsewhere
    if which.endswith("beyond-position"):
        # Of a perfect map the interior has a smaller part above other masks than the edge: both are to have 1.
        edge_room, interior_room = (
            np.where(room >= MIN_ROOM, room, np.nan) for room in (measured.edge_room, measured.interior_room)
        )
        return (edge - edge_elsewhere) / edge_room, (measured.interior - measured.interior_elsewhere) / interior_room
    return edge, measured.interior


def _by_place(
    measured: Sequence[Responses],
    edge_times: Sequence[Sequence[LearningTimes]],
    interior_times: Sequence[Sequence[LearningTimes]],
    rules: Rules,
) -> list[set[str]]:
    """Which responses of each map, by runs and images, any map of that shape would have: those of its place."""
    if rules.which not in ("plain", "raw-edge"):
        return []  # taken away already, or wanted
    shown = (State.REACHED, State.AT_START, State.REGAINED)
    found = []
    for run, edges, interiors in zip(measured, edge_times, interior_times, strict=True):
        above = _counting(run, "raw-beyond-position" if rules.which == "raw-edge" else "beyond-position")
        for image, (edge, interior) in enumerate(zip(edges, interiors, strict=True)):
            told = set()
            for name, times, rest in (("outline", edge, above[0]), ("interior", interior, above[1])):
                series = rest[:, image][np.isfinite(rest[:, image])]
                if times.state in shown and series.size and _level(series, rules.until) < MIN_RESPONSE:
                    told.add(name)
            found.append(told)
    return found


def _level(series: NDArray[np.float64], until: str) -> float:
    end = float(series[-LAST:].mean())
    if until == "end" or len(series) < LAST:
        return end
    return max(end, float(np.median(np.lib.stride_tricks.sliding_window_view(series, LAST), axis=1).max()))


def _times(
    steps: Sequence[int], response: NDArray[np.float64], levels: Sequence[float], until: str
) -> tuple[tuple[LearningTimes, ...], ...]:
    if len(steps) < LAST + 2 or steps[0] != 0:  # too few steps to tell
        unknown = LearningTimes(State.MISSING, tuple(levels), (math.nan,) * len(levels), math.nan, math.nan, math.nan)
        return tuple((unknown,) * run.shape[1] for run in response)
    return tuple(tuple(learning_times(steps, series, levels, until=until) for series in run.T) for run in response)


def _half_times(times: Sequence[Sequence[LearningTimes]]) -> NDArray[np.float64]:
    return np.array([[one.t50 for one in row] for row in times])


def _comparisons(operators: Sequence[OperatorOrder], seed: int) -> list[Comparison]:
    found = []
    for first, second in itertools.combinations(operators, 2):
        common = [s for s in first.seeds if s in second.seeds]
        if common:
            a, b = (one.lead[[one.seeds.index(s) for s in common]] for one in (first, second))
            tests = {unit: paired_test(a, b, unit=unit, seed=seed) for unit in UNITS}
            found.append(Comparison(first.name, second.name, tuple(common), tests))
    return found


def _too_few(runs: Sequence[StoredRun], shown: Sequence[int]) -> str:
    """Why these steps are not enough to tell when something is learned; empty if they are."""
    if 0 not in shown:
        where = next((run.address for run in runs if 0 not in run.steps), "the chosen steps")
        return f"step 0, the untrained model, is missing in {where}: learning is measured from it"
    if len(shown) < LAST + 2:
        steps = f"{len(shown)} step{'s' * (len(shown) > 1)}"
        return f"{steps} in common are too few to measure when something is learned; {LAST + 2} are needed"
    return ""
