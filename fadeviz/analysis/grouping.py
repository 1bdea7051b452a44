"""Which runs are seeds of one operator, whether runs can be compared, and what a reader should know of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import FadevizError
from ..storage.metrics import headline
from ..storage.snapshots import CHANNEL_KINDS, KINDS
from ..storage.stored_run import Maps, StoredRun, check_layer, run_labels
from .regions import Regions

FEW_SEEDS = 5
"""Of fewer seeds a percentile interval is too narrow."""


_EVERY_STUDY_DIFFERS = ("upsampler", "seed")


_ONLY_RECORDING = ("layers", "kinds", "snapshots", "channel_images", "observe", "evaluate_every", "checkpoint_every")


_ONLY_PLACES = ("device", "data_dir", "weights", "channels_last")


_NOT_COMPARED = frozenset(_EVERY_STUDY_DIFFERS + _ONLY_RECORDING + _ONLY_PLACES)


def group_runs(runs: Sequence[StoredRun]) -> tuple[dict[str, list[StoredRun]], tuple[str, ...]]:
    """The runs of each operator by seed, those with other settings apart, and what there is to note."""
    settings = [{k: v for k, v in (run.info.get("config") or {}).items() if k not in _NOT_COMPARED} for run in runs]
    names = sorted({name for one in settings for name in one})
    differing = [name for name in names if len({repr(one[name]) for one in settings if name in one}) > 1]
    groups: dict[str, list[StoredRun]] = {}
    for run, one in zip(runs, settings, strict=True):
        twins = [other for other, twin in zip(settings, runs, strict=True) if twin.name == run.name]
        # A setting that a run does not name is older than the setting: nothing is known to differ.
        apart = [
            name
            for name in differing
            if name in one and any(name in other and other[name] != one[name] for other in twins)
        ]
        label = run.name + (f" ({', '.join(f'{name}={one[name]}' for name in apart)})" if apart else "")
        groups.setdefault(label, []).append(run)
    groups = {name: apart for label, members in groups.items() for name, apart in _by_path(label, members).items()}
    for label, members in groups.items():
        members.sort(key=lambda run: (setting(run, "seed") is None, setting(run, "seed")))
        for one_run, other_run in itertools.pairwise(members):
            if setting(one_run, "seed") == setting(other_run, "seed"):
                raise FadevizError(
                    f"{one_run.address} and {other_run.address} are both {label} with seed "
                    f"{setting(one_run, 'seed')}. Give one of them"
                )
    notes = [f"the runs differ in {name}" for name in differing]
    notes += [f"{run.address}: left out {name} ({reason})" for run in runs for name, reason in run.broken.items()]
    last = min(run.steps[-1] for run in runs)
    longer = sum(run.steps[-1] > last for run in runs)
    if longer:
        notes.append(f"all is measured to step {last}, where the shortest run ends; {longer} went on longer")
    single = [label for label, members in groups.items() if len(members) == 1]
    if single:
        which = "one seed an operator" if len(single) == len(groups) else f"one seed of {', '.join(single)}"
        notes.append(f"{which}: the intervals speak of images alone, not of other trainings")
    few = [label for label, members in groups.items() if 1 < len(members) < FEW_SEEDS]
    if few:
        which = "fewer" if len(few) == len(groups) else f"{', '.join(few)}: fewer"
        notes.append(f"{which} than {FEW_SEEDS} seeds: intervals over so few are too narrow")
    return groups, tuple(notes)


def _by_path(label: str, members: list[StoredRun]) -> dict[str, list[StoredRun]]:
    """Group runs of the same name: together, or by their paths if their seeds do not distinguish them.

    The latter are runs without a seed, and runs named after folders of the same name.
    """
    seeds = [setting(run, "seed") for run in members]
    doubled = {seed for seed in seeds if seeds.count(seed) > 1}
    named = all(run.info.get("upsampler") for run in members)
    places = {run.place for run in members}
    if len(places) < len(members) or not doubled or (named and doubled != {None}):
        return {label: members}
    return {name: [run] for name, run in zip(run_labels(members, [label] * len(members)), members, strict=True)}


def note_uneven(groups: Mapping[str, Sequence[StoredRun]], layer: str) -> list[str]:
    """Notes on what only some runs of an operator have: measures need all runs, so these are left out."""
    notes = []
    for label, members in groups.items():
        kinds = [run.layers[layer] for run in members]
        some = [kind for kind in KINDS if 0 < sum(kind in having for having in kinds) < len(members)]
        tested = [any(headline(line) for line in run.metrics()) for run in members]
        some += ["tests"] if any(tested) and not all(tested) else []
        if some:
            notes.append(f"{label}: not all of its runs have {', '.join(some)}, so these are not measured")
    return notes


def setting(run: StoredRun, name: str) -> Any:
    """A setting of a run; None where the run does not say."""
    return (run.info.get("config") or {}).get(name)


def check_runs(runs: Sequence[StoredRun], layer: str | None, kind: str, call: int) -> str:
    """The layer to measure, after a check that the runs are different ones, on the same images, and have its maps.

    Raises:
        FadevizError: if there is no run, a run is given twice, a run lacks such maps, or the images differ.
    """
    if not runs:
        raise FadevizError("no run to measure. Give at least one run folder")
    if kind in CHANNEL_KINDS:
        raise FadevizError(f"kind {kind!r} has many maps an image. Measure one of feature, gradient, gate")
    for one, other in itertools.combinations(runs, 2):
        if one.same_place(other):
            raise FadevizError(f"{one.address} and {other.address} are the same run, {one.run_id}. Give it once")
    chosen = layer if layer is not None else runs[0].default_layer(kind)
    wanted = (*runs[0].observation, runs[0].foregrounds)
    check_layer(runs, chosen, kind, call)
    for run in runs:
        if not all(map(np.array_equal, wanted, (*run.observation, run.foregrounds))):
            raise FadevizError(
                f"{runs[0].address} and {run.address} observed different images: they cannot be compared. "
                "Record both with the same --data, --size and observation options"
            )
    return chosen


def check_size(run: StoredRun, maps: Maps, layer: str, first: StoredRun, regions: Sequence[Regions]) -> None:
    """Raise unless the maps of a run have the size of the first run's regions.

    Raises:
        FadevizError: if they do not.
    """
    size = regions[0].band.shape
    if maps.shape[1:] != (len(regions), *size):
        raise FadevizError(
            f"{layer}: {maps.shape[1]} maps of {maps.shape[2]}x{maps.shape[3]} in {run.address}, but {len(regions)} of "
            f"{size[0]}x{size[1]} in {first.address}: they cannot be compared. Choose a layer of one size with --layer"
        )


def describe_inside(run: StoredRun) -> str:
    """What counts as inside in the images a run observed, in words; empty where their masks have but two classes."""
    if run.mattes is not None:
        return "the masks are of the true mattes: inside is half opaque or more, outside all else"
    names = class_names(run)
    if not names:
        return ""
    shown = "; ".join(names)
    return f"the masks are of one class of each image ({shown}): inside is that class, outside all else"


def class_names(run: StoredRun) -> list[str]:
    """What is inside in each observed image of data with many classes, by name; empty where there are but two."""
    chosen = (run.info.get("observation") or {}).get("foreground") or []
    names = (run.info.get("data") or {}).get("classes")
    known = names if isinstance(names, list) else []
    return [str(known[one]) if 0 <= one < len(known) else f"class {one}" for one in chosen]
