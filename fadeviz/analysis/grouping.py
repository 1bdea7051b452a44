"""Which runs are seeds of one operator, whether runs can be compared, and caveats about them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import FadevizError
from ..storage.layers_of_runs import LayerOfRuns, choose_layers
from ..storage.map_index import bare_name
from ..storage.maps import Maps
from ..storage.metrics import headline
from ..storage.several_runs import check_distinct, common_steps, run_labels
from ..storage.snapshots import CHANNEL_KINDS, KINDS
from ..storage.stored_run import StoredRun
from .regions import Regions

_EVERY_STUDY_DIFFERS = ("upsampler", "seed")
_ONLY_RECORDING = (
    "layers",
    "kinds",
    "snapshots",
    "channel_images",
    "predictions",
    "observe",
    "evaluate_every",
    "checkpoint_every",
)
_ONLY_PLACES = ("device", "data_dir", "weights", "channels_last")
NOT_COMPARED = frozenset(_EVERY_STUDY_DIFFERS + _ONLY_RECORDING + _ONLY_PLACES)
"""Settings in which runs may differ and still be of one operator and training."""


def group_runs(layers: Mapping[StoredRun, str]) -> tuple[dict[str, list[StoredRun]], tuple[str, ...]]:
    """The runs of each operator, ordered by seed; runs with other settings or layers form groups of their own.

    Args:
        layers: the measured layer of each run.

    Returns:
        Groups by the operator's name, with the settings that distinguish them; and notes, a sentence each.

    Raises:
        FadevizError: if two runs have the same operator, settings and seed.
    """
    runs = list(layers)
    settings = [{k: v for k, v in run.info.config.items() if k not in NOT_COMPARED} for run in runs]
    measured = [bare_name(layer) for layer in layers.values()]
    if len(set(measured)) > 1:
        settings = [config | {"layer": layer} for config, layer in zip(settings, measured, strict=True)]
    names = sorted({name for config in settings for name in config})
    differing = [name for name in names if len({repr(config[name]) for config in settings if name in config}) > 1]
    labelled: dict[str, list[StoredRun]] = {}
    for run, config in zip(runs, settings, strict=True):
        twins = [other for other, twin in zip(settings, runs, strict=True) if twin.name == run.name]
        # A setting that a run does not have is newer than the run: nothing is known to differ.
        distinguishing = [
            name
            for name in differing
            if name in config and any(name in other and other[name] != config[name] for other in twins)
        ]
        values = ", ".join(f"{name}={config[name]}" for name in distinguishing)
        labelled.setdefault(f"{run.name} ({values})" if values else run.name, []).append(run)
    groups = {name: group for label, members in labelled.items() for name, group in _by_path(label, members).items()}
    for label, members in groups.items():
        members.sort(key=lambda run: (setting(run, "seed") is None, setting(run, "seed")))
        _check_seeds(label, members)
    return groups, (*(f"the runs differ in {name}" for name in differing), *_notes(runs, groups))


def _check_seeds(label: str, members: Sequence[StoredRun]) -> None:
    """Raise if two runs of a group, ordered by seed, have the same seed."""
    for first, second in itertools.pairwise(members):
        if setting(first, "seed") == setting(second, "seed"):
            raise FadevizError(
                f"{first.address} and {second.address} are both {label} with seed {setting(first, 'seed')}. "
                "Give one of them"
            )


def _notes(runs: Sequence[StoredRun], groups: Mapping[str, Sequence[StoredRun]]) -> list[str]:
    """Caveats about unreadable files, lengths and numbers of seeds."""
    notes = [f"{run.address}: left out {name} ({reason})" for run in runs for name, reason in run.broken.items()]
    common = common_steps(runs)
    more = sum(len(run.steps) > len(common) for run in runs)
    if more:
        runs_have = "1 run has" if more == 1 else f"{more} runs have"
        notes.append(f"only steps that all runs have are measured, the last at {common[-1]}; {runs_have} more")
    for label, members in groups.items():
        names = dict.fromkeys(name for run in members for name in run.info.flat_settings if name not in NOT_COMPARED)
        differing = [name for name in names if len({repr(run.info.flat_settings.get(name)) for run in members}) > 1]
        if differing:
            notes.append(f"the runs of {label} are measured together, though their config differs: {_some(differing)}")
    single = [group_title(label, members) for label, members in groups.items() if len(members) == 1]
    if single:
        which = "one seed per operator" if len(single) == len(groups) else f"one seed of {', '.join(single)}"
        notes.append(f"{which}: the intervals hold for that run alone, not for other runs")
    return notes


def group_title(name: str, members: Sequence[StoredRun]) -> str:
    """The title of a group of :func:`group_runs` in figures."""
    first = members[0]
    # What distinguishes operators of the same name follows it; runs without a name are titled by their path.
    return first.title + name.removeprefix(first.name) if name.startswith(first.name) else name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _by_path(label: str, members: list[StoredRun]) -> dict[str, list[StoredRun]]:
    """Group runs of the same name: together, or by their paths if their seeds do not distinguish them.

    The latter are runs without a seed, and runs named after folders of the same name.
    """
    seeds = [setting(run, "seed") for run in members]
    repeated = {seed for seed in seeds if seeds.count(seed) > 1}
    named = all(run.info.upsampler for run in members)
    places = {run.path_parts for run in members}
    if len(places) < len(members) or not repeated or (named and repeated != {None}):
        return {label: members}
    return {name: [run] for name, run in zip(run_labels(members, [label] * len(members)), members, strict=True)}


def note_uneven(groups: Mapping[str, Sequence[StoredRun]], layers: Mapping[StoredRun, str]) -> list[str]:
    """Notes on what only some runs of an operator have: it is not measured, because a measure needs all runs."""
    notes = []
    for label, members in groups.items():
        kinds = [run.layers[layers[run]] for run in members]
        some = [kind for kind in KINDS if 0 < sum(kind in recorded for recorded in kinds) < len(members)]
        tested = [any(headline(line) for line in run.metrics()) for run in members]
        some += ["tests"] if any(tested) and not all(tested) else []
        if some:
            notes.append(f"{label}: not all of its runs have {', '.join(some)}: not measured")
    return notes


def setting(run: StoredRun, name: str) -> Any:
    """The value of a run's setting; None if the run does not have it."""
    return run.info.config.get(name)


def check_runs(runs: Sequence[StoredRun], layer: LayerOfRuns | None, kind: str, call: int) -> dict[StoredRun, str]:
    """Check that runs can be compared, and choose the layer of each.

    Returns:
        The recorded name of each run's layer; see :func:`~fadeviz.storage.layers_of_runs.choose_layers`.

    Raises:
        FadevizError: if there is no run, or a run is given twice; if a run has no such maps; if the kind has several
            maps per image; or if the runs observed different images.
    """
    if not runs:
        raise FadevizError("no run to measure. Give at least one run folder")
    if kind in CHANNEL_KINDS:
        raise FadevizError(f"kind={kind!r} has many maps per image. Measure one of feature, gradient, gate, readout")
    check_distinct(runs)
    layers = choose_layers(runs, layer, kind, call)
    observed = (*runs[0].observation, runs[0].foregrounds)
    for run in runs:
        if not all(map(np.array_equal, observed, (*run.observation, run.foregrounds))):
            raise FadevizError(
                f"{runs[0].address} and {run.address} observed different images: they cannot be compared. "
                "Record both with the same data, size and observation settings"
            )
    return layers


def check_size(run: StoredRun, maps: Maps, layers: Mapping[StoredRun, str], regions: Sequence[Regions]) -> None:
    """Raise unless the maps of a run have the size of the first run's regions.

    Outline and interior are zones of whole cells: in maps of another size they are other parts of the object.

    Args:
        run: one of the runs.
        maps: its maps.
        layers: the layer of each run.
        regions: the regions of the first run's images, at the size of its maps.

    Raises:
        FadevizError: if the number of maps or their size differs.
    """
    size = regions[0].band.shape
    if maps.shape[1] != len(regions):
        maps_of = f"{maps.shape[1]} map{'s' * (maps.shape[1] != 1)} of {len(regions)} images"
        raise FadevizError(
            f"{layers[run]}: {maps_of} in {run.address}, but one map per image is needed to measure it. Choose another "
            "layer: layer=..."
        )
    if maps.shape[1:] != (len(regions), *size):
        first = next(iter(layers))
        of = f" of {layers[first]}" * (layers[first] != layers[run])
        raise FadevizError(
            f"{layers[run]}: {maps.shape[1]} maps of {maps.shape[2]}x{maps.shape[3]} in {run.address}, but "
            f"{len(regions)} of {size[0]}x{size[1]}{of} in {first.address}: they cannot be compared. "
            "Choose layers of one size: layer=..."
        )


def describe_inside(run: StoredRun) -> str:
    """A sentence on what counts as the inside in a run's observed images; empty for masks of only two classes."""
    if run.mattes is not None:
        return "the masks come from the true mattes: inside is where alpha is at least one half"
    names = class_names(run)
    if not names:
        return ""
    shown = "; ".join(names if len(set(names)) > 1 else names[:1])
    return f"the masks show one class of each image ({shown}): inside is that class, outside everything else"


def describe_missing_masks(run: StoredRun) -> str:
    """What a run without any object in its masks lacks, and what to do; empty for other runs."""
    if run.foregrounds.any():
        return ""
    how = "Give the recorder masks=..., or targets of whole numbers (N, H, W), of 12 images or more"
    if recorded_by_command(run):
        how = "Observe other images, or more"
    elif run.info.imported is not None:
        how = "Import the maps with their masks, of 12 images or more"
    return f"no observed image has an object, and without masks nothing can be measured against an outline. {how}"


def recorded_by_command(run: StoredRun) -> bool:
    """Whether ``fadeviz record`` or ``train`` recorded the run, and not a user's own loop."""
    return "upsampler" in run.info.config and run.info.imported is None


def class_names(run: StoredRun) -> list[str]:
    """Name of the class that is inside in each observed image; empty for data with only two classes."""
    return list(map(run.info.data.class_name, run.info.observation.foreground or ()))
