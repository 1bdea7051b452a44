"""The order of learning: outline first or interior first, for each operator of several runs, with a verdict."""

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
from ..storage.several_runs import common_steps, describe_calls
from ..storage.stored_run import StoredRun
from .grouping import check_runs, check_size, describe_inside, group_runs, note_uneven, setting
from .kymograph import Kymograph, merge_kymographs
from .learning import LEVELS, MIN_RESPONSE, UNTIL, LearningTimes, State, lead, learning_times, peak_of
from .regions import BAND_PIXELS, BAND_SHARE, Regions, build_regions, distance_bins
from .responses import LAST, Responses, measure_responses
from .statistics import UNITS, Interval, PairedTest, bootstrap_interval, paired_test
from .verdicts import Verdict, verdict

RESPONSES = {
    "plain": "the edge and the interior response as they are",
    "raw-edge": "the edge response of the map's own gradient, not that of its ranks: large steps count more than "
    "ripples",
    "position-corrected": "how far each response exceeds the same map's response for mismatched masks, those of the "
    "other images, which any centred blob reaches too; 1 for a perfect map",
    "raw-position-corrected": "the same with the edge response of the map's own gradient",
    "mismatched-masks": "the responses for mismatched masks alone, as a control: a verdict that these give too means "
    "nothing",
}
"""The responses whose learning times are measured."""

MIN_HEADROOM = 0.1
"""Headroom below which position explains the response: a perfect map is hardly better for its own mask."""


class Rules(NamedTuple):
    """How learning times, intervals and verdicts are made from responses.

    Attributes:
        responses: a name in ``RESPONSES``.
        until: final level of a response, a name in ``UNTIL``.
        levels: fractions of the rise for which times are measured.
        level: nominal coverage of the intervals.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap and the paired tests.
    """

    responses: str = "plain"
    until: str = "end"
    levels: tuple[float, ...] = LEVELS
    level: float = 0.95
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class OperatorOrder:
    """The order of learning of one operator: R runs (seeds), S steps, N images.

    Attributes:
        name: the operator with its options, and the settings that distinguish its runs from others of that operator.
        title: the operator's name in figures.
        runs: the R runs, ordered by seed.
        seeds: their seeds; None where a run has none.
        measured: all responses of the maps of each run.
        edge: ``(R, S, N)``, edge response that the times are of, see ``RESPONSES``; NaN where undefined.
        interior: ``(R, S, N)``, interior response that the times are of; NaN where undefined.
        edge_times: learning times of the edge response, for each run and image.
        interior_times: learning times of the interior response, for each run and image.
        lead: ``(R, N)``, t50(interior) - t50(edge) in steps; infinite where censored, NaN where undefined.
        edge_t50: median t50 of the edge response over the maps that have one, with its interval.
        interior_t50: median t50 of the interior response over the maps that have one, with its interval.
        lead_interval: median lead with its interval.
        margin: shortest lead that the snapshots resolve, in steps: the median, over the maps with both times, of the
            wider of the two gaps between the snapshots around them.
        verdict: verdict on the operator.
        value_kymograph: distance-time map of the maps' values.
        gradient_kymograph: distance-time map of the maps' steepness.
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
    """Paired tests of the leads of two operators, on the seeds that both have.

    Attributes:
        first: name of an operator.
        second: name of the other one; differences are first - second.
        seeds: seeds that both have.
        tests: a test for each name in ``UNITS``; p-values are not corrected for the number of comparisons.
    """

    first: str
    second: str
    seeds: tuple[int | None, ...]
    tests: dict[str, PairedTest]


@dataclass(frozen=True)
class LearningOrder:
    """The order of learning of all operators, measured on the same images.

    Attributes:
        layer: dotted module name.
        kind: a name in ``KINDS``.
        steps: the S steps that all runs have.
        images: names of the N observed images.
        regions: regions of their masks at the layer's resolution.
        half_width: requested half-widths of the contour band: in pixels of the layer, and as a share of its diagonal.
        rules: how times and verdicts are made.
        operators: the operators, in the order of the runs given.
        comparisons: paired tests of every two operators with seeds in common.
        notes: caveats about the runs, a sentence each, without a full stop.
        call: number of the layer's call in a forward pass.
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
        """The layer's name, with the number of the call unless it is the first."""
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
    responses: str = "plain",
    until: str = "end",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    call: int = 0,
    allow_few_steps: bool = False,
) -> LearningOrder:
    """Measure what each operator learns first; the runs of one operator are its seeds.

    Runs of one operator that differ in more than the seed become operators of their own, named after the difference.

    Args:
        runs: one or more runs that observed the same images.
        layer: dotted name; None takes the first run's ``default_layer(kind)``.
        kind: a name in ``KINDS`` with one map per image.
        steps: steps to measure, step 0 among them; None takes all that the runs have in common.
        pixels: half-width of the contour band in pixels of the layer.
        share: half-width of the contour band as a share of the map's diagonal; the larger of the two counts.
        levels: fractions of the rise for which times are measured.
        responses: responses whose learning times are measured, a name in ``RESPONSES``.
        until: final level of a response, a name in ``UNTIL``.
        level: nominal coverage of the intervals.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap and the paired tests.
        call: call to measure of a layer that runs several times in a forward pass, from 0.
        allow_few_steps: accept steps that are too few for learning times, or that lack step 0; every verdict is
            undecided then.

    Raises:
        FadevizError: if there is no run, a run is given twice, or two runs have the same operator and seed; if the
            layer, kind, call, ``responses`` or ``until`` is unknown; if the runs observed different images or have maps
            of different sizes; or if step 0 is missing or the steps in common are too few.
    """
    _check_rules(responses, until)
    chosen = check_runs(runs, layer, kind, call)
    shown = common_steps(runs, steps)
    too_few = _too_few(runs, shown)
    if too_few and not allow_few_steps:
        raise FadevizError(f"{too_few}. Record the runs with step 0 and the same snapshots=...")
    masks = runs[0].foregrounds
    height, width = runs[0].read(shown[0], chosen, kind, call).shape[-2:]
    regions = tuple(build_regions(mask, (height, width), pixels=pixels, share=share) for mask in masks)
    bins = distance_bins(regions)
    groups, notes = group_runs(runs)
    rules = Rules(responses, until, tuple(levels), level, resamples, seed)
    operators = []
    for name, members in groups.items():
        measured = []
        for run in members:
            maps = run.maps(chosen, kind, steps=shown, call=call)
            check_size(run, maps, chosen, runs[0], regions)
            measured.append(measure_responses(maps, regions, bins))
        operators.append(_classify(name, members, measured, shown, rules))
    other_calls = dict.fromkeys(describe_calls(chosen, run.calls(chosen, kind), call) for run in runs)
    names = runs[0].info.observation.names
    return LearningOrder(
        layer=chosen,
        kind=kind,
        steps=shown,
        images=names if len(names) == len(masks) else tuple(map(str, range(len(masks)))),
        regions=regions,
        half_width=(pixels, share),
        rules=rules,
        operators=tuple(operators),
        comparisons=tuple(_comparisons(operators, seed)),
        notes=(*filter(None, [describe_inside(runs[0]), *other_calls]), *notes, *note_uneven(groups, chosen)),
        call=call,
    )


def reclassify(order: LearningOrder, *, responses: str = "plain", until: str = "end") -> LearningOrder:
    """Times and verdicts of the same measured responses by other rules; no map is read again.

    A verdict that holds by a single rule is weak evidence.

    Args:
        order: a measured order of learning; its other rules stay as they are.
        responses: responses whose learning times are measured, a name in ``RESPONSES``.
        until: final level of a response, a name in ``UNTIL``.

    Raises:
        FadevizError: if ``responses`` or ``until`` is unknown.
    """
    _check_rules(responses, until)
    rules = order.rules._replace(responses=responses, until=until)
    operators = tuple(_classify(op.name, op.runs, op.measured, order.steps, rules) for op in order.operators)
    comparisons = tuple(_comparisons(operators, rules.seed))
    return dataclasses.replace(order, rules=rules, operators=operators, comparisons=comparisons)


def _check_rules(responses: str, until: str) -> None:
    if responses not in RESPONSES:
        raise unknown_name("responses", responses, RESPONSES)
    if until not in UNTIL:
        raise unknown_name("final level", until, UNTIL)


def _classify(
    name: str, runs: Sequence[StoredRun], measured: Sequence[Responses], steps: Sequence[int], rules: Rules
) -> OperatorOrder:
    pairs = [_selected(run_responses, rules.responses) for run_responses in measured]
    edge, interior = (np.stack(tables) for tables in zip(*pairs, strict=True))
    edge_times, interior_times = (_times(steps, table, rules.levels, rules.until) for table in (edge, interior))
    leads = np.array([list(map(lead, *both)) for both in zip(edge_times, interior_times, strict=True)])
    edge_t50, interior_t50, lead_interval = (
        bootstrap_interval(table, level=rules.level, resamples=rules.resamples, seed=rules.seed)
        for table in (_half_times(edge_times), _half_times(interior_times), leads)
    )
    margin = _margin(edge_times, interior_times)
    too_few = _too_few(runs, steps)
    edge_states, interior_states = (
        [times.state for times in itertools.chain(*table)] for table in (edge_times, interior_times)
    )
    explained = _explained_by_position(measured, edge_times, interior_times, rules)
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
        else verdict(edge_states, interior_states, lead_interval, margin, explained),
        value_kymograph=merge_kymographs([run_responses.value for run_responses in measured]),
        gradient_kymograph=merge_kymographs([run_responses.gradient for run_responses in measured]),
    )


def _selected(measured: Responses, responses: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The edge and the interior response whose times are measured; see ``RESPONSES``."""
    raw = responses.startswith("raw")
    edge = measured.edge_raw if raw else measured.edge
    edge_mismatched = measured.edge_raw_mismatched if raw else measured.edge_mismatched
    if responses == "mismatched-masks":
        return edge_mismatched, measured.interior_mismatched
    if responses.endswith("position-corrected"):
        # The interior response of a perfect map has less headroom than its edge response: both are scaled to 1.
        edge_headroom, interior_headroom = (
            np.where(headroom >= MIN_HEADROOM, headroom, np.nan)
            for headroom in (measured.edge_headroom, measured.interior_headroom)
        )
        return (
            (edge - edge_mismatched) / edge_headroom,
            (measured.interior - measured.interior_mismatched) / interior_headroom,
        )
    return edge, measured.interior


def _margin(edge_times: Sequence[Sequence[LearningTimes]], interior_times: Sequence[Sequence[LearningTimes]]) -> float:
    """The shortest lead that the snapshots resolve, see ``OperatorOrder``; NaN without any map that has both times."""
    edges, interiors = (itertools.chain(*table) for table in (edge_times, interior_times))
    gaps = [max(edge.gap, interior.gap) for edge, interior in zip(edges, interiors, strict=True)
            if not math.isnan(edge.gap) and not math.isnan(interior.gap)]  # fmt: skip
    return float(np.median(gaps)) if gaps else math.nan


def _explained_by_position(
    measured: Sequence[Responses],
    edge_times: Sequence[Sequence[LearningTimes]],
    interior_times: Sequence[Sequence[LearningTimes]],
    rules: Rules,
) -> list[set[str]]:
    """For each map, by runs and images: which of its responses are hardly above those for mismatched masks."""
    if rules.responses not in ("plain", "raw-edge"):
        return []  # corrected for already, or the control itself
    corrected = "raw-position-corrected" if rules.responses == "raw-edge" else "position-corrected"
    learned = (State.REACHED, State.AT_START, State.REGAINED)
    explained = []
    for run, edges, interiors in zip(measured, edge_times, interior_times, strict=True):
        above_edge, above_interior = _selected(run, corrected)
        for image, (edge, interior) in enumerate(zip(edges, interiors, strict=True)):
            names = set()
            for name, times, above in (("outline", edge, above_edge), ("interior", interior, above_interior)):
                series = above[:, image][np.isfinite(above[:, image])]
                if times.state in learned and series.size and _final_level(series, rules.until) < MIN_RESPONSE:
                    names.add(name)
            explained.append(names)
    return explained


def _final_level(series: NDArray[np.float64], until: str) -> float:
    end = float(series[-LAST:].mean())
    return max(end, peak_of(series)[0]) if until == "peak" else end


def _times(
    steps: Sequence[int], response: NDArray[np.float64], levels: Sequence[float], until: str
) -> tuple[tuple[LearningTimes, ...], ...]:
    if len(steps) < LAST + 2 or steps[0] != 0:  # too few steps for any time
        unknown = LearningTimes(State.MISSING, tuple(levels), (math.nan,) * len(levels), math.nan, math.nan, math.nan)
        return tuple((unknown,) * run.shape[1] for run in response)
    return tuple(tuple(learning_times(steps, series, levels, until=until) for series in run.T) for run in response)


def _half_times(times: Sequence[Sequence[LearningTimes]]) -> NDArray[np.float64]:
    return np.array([[time.t50 for time in row] for row in times])


def _comparisons(operators: Sequence[OperatorOrder], seed: int) -> list[Comparison]:
    comparisons = []
    for first, second in itertools.combinations(operators, 2):
        common = [s for s in first.seeds if s in second.seeds]
        if common:
            a, b = (op.lead[[op.seeds.index(s) for s in common]] for op in (first, second))
            tests = {unit: paired_test(a, b, unit=unit, seed=seed) for unit in UNITS}
            comparisons.append(Comparison(first.name, second.name, tuple(common), tests))
    return comparisons


def _too_few(runs: Sequence[StoredRun], shown: Sequence[int]) -> str:
    """Why these steps are too few to measure learning times; empty if they are not."""
    if 0 not in shown:
        where = next((run.address for run in runs if 0 not in run.steps), "the chosen steps")
        return f"step 0, the untrained model, is missing in {where}: learning times are measured from it"
    if len(shown) < LAST + 2:
        steps = f"{len(shown)} step{'s' * (len(shown) > 1)}"
        return f"{steps} in common are too few to measure learning times; {LAST + 2} are needed"
    return ""
