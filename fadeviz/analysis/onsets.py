"""The onsets of several operators: what each shows in its maps and holds in its features, since when, and how sure."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..storage.layers_of_runs import LayerOfRuns, describe_layers
from ..storage.measured import stored_measurement
from ..storage.several_runs import common_steps, describe_calls
from ..storage.stored_run import StoredRun
from .chance import ChanceLevel, chance_level, permute_images
from .contrasts import METHOD, Contrasts, measure_contrasts, own_less_others, perfect_contrasts
from .controls import Origin, compare_with_control, find_controls
from .grouping import (
    check_runs,
    check_size,
    describe_inside,
    describe_missing_masks,
    group_runs,
    group_title,
    note_uneven,
    setting,
)
from .jackknife import Estimate, holm
from .kymograph import Kymograph, build_kymograph
from .onset import LEAST_ALIKE, Onset, judge
from .regions import Regions, build_regions
from .verdicts import LEAST_IMAGES
from .zones import Zones, build_zones, depth_bins

READOUT = "readout"
"""Kind of map that shows what the features hold; it is measured beside features."""

KNOWN_SIGNS = frozenset({"readout", "readout_contour"})
"""Kinds in which an object can only be bright."""


@dataclass(frozen=True)
class OperatorOnset:
    """What one operator shows, and since when: R runs (seeds).

    Attributes:
        name: the operator with its options, and the settings that distinguish its runs from others of that operator.
        title: the operator's name in figures.
        runs: the R runs, ordered by seed.
        seeds: their seeds; None where a run has none.
        map: the onset in the measured maps.
        readout: the onset in the linear readout of all channels; None where it was not recorded, or is what ``map`` is.
        contrasts: the contrasts of each run's maps.
        readout_contrasts: those of the readout; empty without.
        kymograph: distance-time map of the maps; None where fewer than two objects have an interior.
        readout_kymograph: that of the readout; None also without one.
        contour: how much steeper the maps are along the own contour than along other images' contours, against chance:
            whether the contour is marked, in either sign and at any step; it is never timed. None for too few images.
        control: name of the operator among those measured that is its control; empty without one.
        origins: for what ``map`` shows, whether it was learned; see :class:`~fadeviz.analysis.controls.Origin`.
        readout_origins: the same for ``readout``.
    """

    name: str
    title: str
    runs: tuple[StoredRun, ...]
    seeds: tuple[int | None, ...]
    map: Onset
    readout: Onset | None
    contrasts: tuple[Contrasts, ...]
    readout_contrasts: tuple[Contrasts, ...]
    kymograph: Kymograph | None
    readout_kymograph: Kymograph | None
    contour: ChanceLevel | None
    control: str = ""
    origins: tuple[Origin, ...] = ()
    readout_origins: tuple[Origin, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The difference of two operators' leads, paired over the seeds that both have and over images.

    Attributes:
        first: name of an operator.
        second: name of the other one.
        kind: the kind of map: the measured one, or ``readout``.
        seeds: seeds that both have.
        difference: log of the ratio of the two factors by which the outline arrives earlier, first to second.
        p: two-sided p-value, corrected by Holm's method for all comparisons.
    """

    first: str
    second: str
    kind: str
    seeds: tuple[int | None, ...]
    difference: Estimate
    p: float


@dataclass(frozen=True)
class Onsets:
    """The onsets of all operators, measured on the same images.

    Attributes:
        layers: dotted module name of the layer of each run, in the order of the runs given.
        kind: a name in ``KINDS``.
        call: number of the layer's call in a forward pass.
        steps: the S steps that all runs have.
        images: names of the observed images.
        kept: indices of the N images that are measured: their object has an interior at the layer's resolution.
        regions: regions of all observed masks at the layer's resolution.
        operators: the operators, in the order of the runs given.
        comparisons: all pairs of operators with seeds in common that both show outline and interior.
        notes: caveats about the runs, a sentence each, without a full stop.
    """

    layers: Mapping[StoredRun, str]
    kind: str
    call: int
    steps: tuple[int, ...]
    images: tuple[str, ...]
    kept: tuple[int, ...]
    regions: tuple[Regions, ...]
    operators: tuple[OperatorOnset, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

    @property
    def layer(self) -> str:
        """The layer's name; where it differs between the runs, each name with its runs."""
        return describe_layers(self.layers)

    @property
    def layer_title(self) -> str:
        """The layer's name, with the number of the call unless it is the first."""
        return f"{self.layer}, call {self.call}" if self.call else self.layer


@dataclass(frozen=True)
class _Frame:
    """What the maps of all runs are measured against."""

    layers: Mapping[StoredRun, str]
    call: int
    steps: tuple[int, ...]
    regions: tuple[Regions, ...]
    kept: tuple[int, ...]
    zones: tuple[Zones, ...]
    perfect: Contrasts
    masks: str

    def onset(self, runs: Sequence[StoredRun], kind: str) -> tuple[Onset, tuple[Contrasts, ...], Kymograph | None]:
        contrasts = tuple(self._contrasts(run, kind) for run in runs)
        onset = self.judge(contrasts, kind)
        if len(self.zones) < 2:
            return onset, contrasts, None
        reading = onset.interior if onset.interior.shown else onset.outline
        return onset, contrasts, build_kymograph(contrasts, reading.signs, depth_bins(self.zones))

    def judge(self, contrasts: Sequence[Contrasts], kind: str) -> Onset:
        outline, interior = (np.stack([getattr(part, name) for part in contrasts]) for name in ("outline", "interior"))
        perfect = self.perfect.outline[0], self.perfect.interior[0]
        return judge(outline, interior, *perfect, self.steps, known_sign=kind in KNOWN_SIGNS)

    def contour(self, contrasts: Sequence[Contrasts]) -> ChanceLevel | None:
        """How much steeper maps are along their own contour, against chance; None where that is undefined."""
        perfect = self.perfect.marked[0]
        if len(self.zones) < LEAST_IMAGES or not own_less_others(perfect) > LEAST_ALIKE:
            return None
        marked = np.stack([part.marked for part in contrasts])
        return chance_level(marked, perfect, permute_images(len(self.zones)), known_sign=True)

    def _contrasts(self, run: StoredRun, kind: str) -> Contrasts:
        maps = run.maps(self.layers[run], kind, steps=self.steps, call=self.call)
        check_size(run, maps, self.layers, self.regions)
        arrays = stored_measurement(
            run,
            f"contrasts {self.layers[run]}/{self.call}/{kind}",
            {"method": METHOD, "masks": self.masks, "steps": self.steps, "size": maps.shape[2:]},
            lambda: measure_contrasts(maps, self.zones, images=self.kept).to_arrays(),
            steps=self.steps,
        )
        return Contrasts.from_arrays(arrays)


def measure_onsets(
    runs: Sequence[StoredRun],
    layer: LayerOfRuns | None = None,
    kind: str = "feature",
    *,
    steps: Sequence[int] | None = None,
    call: int = 0,
) -> Onsets:
    """Measure what each operator shows and since when; the runs of one operator are its seeds.

    Runs of one operator that differ in more than the seed, or are measured in different layers, become operators of
    their own, named after the difference.
    Beside features, the linear readout of all channels is measured where all runs of an operator recorded it.

    Args:
        runs: one or more runs that observed the same images.
        layer: dotted name, or a mapping that names one for each run (see
            :data:`~fadeviz.storage.layers_of_runs.LayerOfRuns`); None takes the first run's ``default_layer(kind)``.
        kind: a name in ``KINDS`` with one map per image.
        steps: steps to measure; None takes all that the runs have in common.
        call: call to measure of a layer that runs several times in a forward pass, from 0.

    Raises:
        FadevizError: if there is no run, a run is given twice, or two runs have the same operator and seed; if the
            layer, kind or call is unknown; or if the runs observed different images, have maps of different sizes or no
            steps in common.
    """
    layers = check_runs(runs, layer, kind, call)
    shown = common_steps(runs, steps)
    masks = runs[0].foregrounds
    height, width = runs[0].read(shown[0], layers[runs[0]], kind, call).shape[-2:]
    regions = tuple(build_regions(mask, (height, width)) for mask in masks)
    built = [build_zones(region) for region in regions]
    kept = tuple(index for index, zones in enumerate(built) if isinstance(zones, Zones))
    zones = tuple(zones for zones in built if isinstance(zones, Zones))
    frame = _Frame(layers, call, shown, regions, kept, zones, perfect_contrasts(zones), digest_of(masks))
    groups, notes = group_runs(layers)
    operators = [_measure(name, members, frame, kind) for name, members in groups.items()]
    names = runs[0].info.observation.names
    images = names if len(names) == len(masks) else tuple(map(str, range(len(masks))))
    other_calls = dict.fromkeys(describe_calls(name, run.calls(name, kind), call) for run, name in layers.items())
    reasons = {images[index]: why for index, why in enumerate(built) if isinstance(why, str)}
    return Onsets(
        layers=layers,
        kind=kind,
        call=call,
        steps=shown,
        images=images,
        kept=kept,
        regions=regions,
        operators=tuple(_with_origins(operators, layers)),
        comparisons=tuple(_comparisons(operators, frame, kind)),
        notes=(
            *filter(None, [describe_missing_masks(runs[0]) or describe_inside(runs[0]), *other_calls]),
            *(_note_left_out(reasons, (height, width)) if masks.any() else []),
            *_note_steps(shown),
            *_note_undefined(operators),
            *(_note_readouts(groups, frame) if kind == "feature" else []),
            *notes,
            *note_uneven(groups, layers),
        ),
    )


def digest_of(masks: NDArray[np.bool_]) -> str:
    """A checksum of masks, for what is measured with them."""
    return hashlib.sha256(repr(masks.shape).encode() + np.packbits(masks).tobytes()).hexdigest()


def _measure(name: str, runs: Sequence[StoredRun], frame: _Frame, kind: str) -> OperatorOnset:
    onset, contrasts, kymograph = frame.onset(runs, kind)
    readout: Onset | None = None
    readout_contrasts: tuple[Contrasts, ...] = ()
    readout_kymograph: Kymograph | None = None
    if kind == "feature" and all(_has_readout(run, frame) for run in runs):
        readout, readout_contrasts, readout_kymograph = frame.onset(runs, READOUT)
    return OperatorOnset(
        name=name,
        title=group_title(name, runs),
        runs=tuple(runs),
        seeds=tuple(setting(run, "seed") for run in runs),
        map=onset,
        readout=readout,
        contrasts=contrasts,
        readout_contrasts=readout_contrasts,
        kymograph=kymograph,
        readout_kymograph=readout_kymograph,
        contour=frame.contour(contrasts),
    )


def _has_readout(run: StoredRun, frame: _Frame) -> bool:
    layer = frame.layers[run]
    if READOUT not in run.layers[layer]:
        return False
    return frame.call == 0 or frame.call in run.calls(layer, READOUT)


def _with_origins(operators: Sequence[OperatorOnset], layers: Mapping[StoredRun, str]) -> list[OperatorOnset]:
    """The operators with their controls among them, and whether what they show was learned."""
    controls = find_controls({operator.runs[0]: layers[operator.runs[0]] for operator in operators})
    completed = []
    for index, operator in enumerate(operators):
        control = operators[controls[index]] if index in controls else None
        same_seeds = control is not None and control.seeds == operator.seeds
        origins = compare_with_control(operator.map, None if control is None else control.map, same_seeds=same_seeds)
        of_readout: tuple[Origin, ...] = ()
        if operator.readout is not None:
            of_readout = compare_with_control(
                operator.readout, None if control is None else control.readout, same_seeds=same_seeds
            )
        completed.append(
            replace(
                operator,
                control="" if control is None else control.name,
                origins=origins,
                readout_origins=of_readout,
            )
        )
    return completed


def _comparisons(operators: Sequence[OperatorOnset], frame: _Frame, kind: str) -> list[Comparison]:
    """Every two operators with seeds in common that both show outline and interior, in the maps and in the readout."""
    pairs = []
    for measured, attribute in ((kind, "map"), (READOUT, "readout")):
        for first, second in itertools.combinations(operators, 2):
            pair = (first, second)
            common = tuple(seed for seed in first.seeds if seed in second.seeds)
            onsets = [getattr(operator, attribute) for operator in pair]
            if not common or any(onset is None or onset.lead is None for onset in onsets):
                continue
            if common != first.seeds or common != second.seeds:
                onsets = [frame.judge(_of_seeds(operator, common, attribute), measured) for operator in pair]
            leads = [onset.lead for onset in onsets]
            if all(lead is not None for lead in leads):
                pairs.append((first.name, second.name, measured, common, leads[0] - leads[1]))
    corrected = holm([difference.p for *_, difference in pairs])
    return [Comparison(*pair, p) for pair, p in zip(pairs, corrected, strict=True)]


def _of_seeds(operator: OperatorOnset, seeds: Sequence[int | None], attribute: str) -> list[Contrasts]:
    contrasts = operator.contrasts if attribute == "map" else operator.readout_contrasts
    return [contrasts[operator.seeds.index(seed)] for seed in seeds]


def _note_left_out(reasons: dict[str, str], size: tuple[int, int]) -> list[str]:
    notes = []
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, why in reasons.items() if why == reason]
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        images = "1 image is" if len(names) == 1 else f"{len(names)} images are"
        notes.append(f"{images} left out ({shown}): {reason} (maps of {size[0]}x{size[1]})")
    return notes


def _note_steps(steps: Sequence[int]) -> list[str]:
    notes = []
    if len(steps) < 3:
        count = "1 snapshot" if len(steps) == 1 else f"{len(steps)} snapshots"
        notes.append(f"{count}: too few to say when anything appeared; record more steps")
    if steps[0] != 0:
        notes.append(
            f"the first measured step is {steps[0]}, not 0: what was there before training cannot be told from what "
            "was learned until then"
        )
    return notes


def _note_readouts(groups: Mapping[str, Sequence[StoredRun]], frame: _Frame) -> list[str]:
    """Of which operators some runs have a readout and others have none, so that it is not measured."""
    notes = []
    for name, runs in groups.items():
        count = sum(not _has_readout(run, frame) for run in runs)
        if 0 < count < len(runs):
            have = "has" if count == 1 else "have"
            notes.append(f"{name}: {count} of {len(runs)} runs {have} no readout: it is not measured")
    return notes


def _note_undefined(operators: Sequence[OperatorOnset]) -> list[str]:
    notes = []
    for operator in operators:
        count = sum(part.undefined for part in (*operator.contrasts, *operator.readout_contrasts))
        if count:
            maps = "1 map is" if count == 1 else f"{count} maps are"
            plural = "s" * (count == 1)
            notes.append(f"{operator.name}: {maps} constant or not finite, and count{plural} as showing nothing")
    return notes
