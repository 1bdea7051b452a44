"""The maps that fit in a page: sequences are packed in order of importance until the budget is used up."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from ..render.normalize import Limits, limits_by_scope
from ..storage.layers_of_runs import LayerOfRuns, describe_layers, layers_of
from ..storage.map_index import bare_name
from ..storage.stored_run import StoredRun
from .codec import Packed, pack

LayerNames = Mapping[StoredRun, str]
"""A layer of the page: its name in each run that has it."""

Place = tuple[int, int]
"""Indices of a run and of an image."""

MAP_KINDS = ("feature", "gradient", "readout", "gate", "kernel_entropy", "readout_contour")
"""Kinds that are one map per image, the most informative first."""

_ELEMENT = 64
"""Bytes that surround one packed sequence in the page."""

_BLOCK = 2**22
"""Number of map values read at a time (16 MB), so that the same files are not opened again for each image."""


@dataclass
class MapSequences:
    """The packed maps of one layer and kind.

    Attributes:
        layer: dotted module name; where it differs between the runs, each name with its runs.
        kind: a name in ``MAP_KINDS``.
        names: dotted module name of each run, where they differ in more than prefixes; else empty.
        packed: the sequence of each run and image; runs without such maps have none.
        sizes: height and width of the maps of each run.
        own: the limits in the scope ``run``, for each run and image.
        shared: the limits in the scope ``shared``, over all runs of the page, for each image.
    """

    layer: str
    kind: str
    packed: dict[Place, Packed] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    own: dict[Place, Limits] = field(default_factory=dict)
    shared: dict[int, Limits] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that all sequences take in the page."""
        return sum(map(text_size, self.packed.values()))


@dataclass(frozen=True)
class ReportSelection:
    """The maps that a page shows.

    Attributes:
        runs: indices of the runs whose maps are included.
        images: number of images, counted from the first.
        sequences: the maps of each layer and kind.
        left_out: what is not included and why, one sentence each.
    """

    runs: tuple[int, ...] = ()
    images: int = 0
    sequences: tuple[MapSequences, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """Runs, steps and call that maps are read from."""

    runs: Sequence[StoredRun]
    steps: Sequence[int]
    call: int


def text_size(packed: Packed) -> int:
    """Bytes that a sequence takes in the page: in base64, with its limits."""
    return 4 * -(-len(packed.data) // 3) + len(json.dumps([shortest(packed.low), shortest(packed.high)])) + _ELEMENT


def shortest(values: Sequence[float]) -> list[float | None]:
    """Float32 values as the shortest decimals that round to them; NaN becomes None."""
    return [float(str(np.float32(value))) if math.isfinite(value) else None for value in values]


def select_sequences(
    runs: Sequence[StoredRun],
    seeds: Sequence[int],
    steps: Sequence[int],
    images: int,
    budget: int,
    *,
    layers: Sequence[LayerNames],
    kinds: Sequence[str] = (),
    advice: str,
    call: int = 0,
) -> ReportSelection:
    """Pack maps until ``budget`` bytes are used: all runs and images of a layer and kind, or none of them.

    The order: the first layer with its kinds as in ``MAP_KINDS``; then, kind by kind, the other layers, coarse ones
    first. What is too large is skipped, and something smaller after it may still fit. If not even the first layer and
    kind fits, runs are omitted, the last seeds first, until each operator has one; then images, the last first.

    Args:
        runs: runs whose maps to show.
        seeds: position of each run among the runs of its operator, from 0.
        steps: steps to show, which all runs have.
        images: maximum number of images.
        budget: available space in bytes.
        layers: layers to show; see :func:`page_layers`.
        kinds: kinds to show; none for all.
        advice: how a user can raise the budget, for the message.
        call: index of the call of layers that run several times in a forward pass; layers without it are omitted.

    Raises:
        FadevizError: if not even one image of the first layer and kind fits, in one run per operator.
    """
    wanted = wanted_maps(runs, layers, kinds, call)
    if not wanted:
        raise FadevizError(
            f"no maps of {', '.join(kinds) or 'any kind'} in {', '.join(map(describe_layers, layers))}. "
            f"List what there is: fadeviz info {runs[0].address}"
        )
    source = _Source(runs, steps, call)
    layer, kind = wanted[0]
    first = _pack_maps(source, [(run, image) for run in range(len(runs)) for image in range(images)], layer, kind)
    assert first is not None  # nothing exceeds an unlimited budget
    costs = {place: text_size(packed) for place, packed in first.packed.items()}
    shown, count = _reduce(costs, seeds, images, budget)
    if not shown:
        least = sum(costs.get((run, 0), 0) for run in range(len(runs)) if seeds[run] == 0)
        raise FadevizError(
            f"one image of {first.layer}, {kind}, takes {least / 1e6:.2f} MB, but "
            f"{max(0, budget) / 1e6:.2f} MB are free. {advice}"
        )
    places = [(run, image) for run in shown for image in range(count)]
    first.packed = {place: first.packed[place] for place in places if place in first.packed}
    others, no_room = _pack_others(source, places, wanted[1:], budget - first.size)
    sequences = (first, *others)
    for maps in sequences:
        _set_limits(maps)
    return ReportSelection(tuple(shown), count, sequences, (*_left_out(runs, shown, count, images), *no_room))


def _left_out(runs: Sequence[StoredRun], shown: Sequence[int], count: int, images: int) -> list[str]:
    """Sentences on the images and runs that did not fit."""
    sentences = []
    if count < images:
        sentences.append(f"images {count + 1} to {images}: no room for their maps")
    omitted = [run for run in range(len(runs)) if run not in shown]
    if omitted:
        names = ", ".join(runs[run].address for run in omitted)
        sentences.append(f"maps of {len(omitted)} of {len(runs)} runs, which are in the curves only: {names}")
    return sentences


def _pack_others(
    source: _Source, places: Sequence[Place], wanted: Sequence[tuple[LayerNames, str]], budget: int
) -> tuple[list[MapSequences], list[str]]:
    """The other layers and kinds that fit, and sentences on those that do not."""
    included: list[MapSequences] = []
    too_large: dict[str, list[str]] = {}
    for layer, kind in wanted:
        maps = _pack_maps(source, places, layer, kind, budget)
        if maps is None:
            too_large.setdefault(describe_layers(layer), []).append(kind)
        elif maps.packed:
            budget -= maps.size
            included.append(maps)
    return included, [f"{', '.join(kinds)} of {layer}: no room" for layer, kinds in too_large.items()]


def page_layers(
    runs: Sequence[StoredRun], measured: LayerNames, layers: Sequence[LayerOfRuns] = ()
) -> list[LayerNames]:
    """The layers that a page shows, the measured one first.

    Args:
        runs: the runs of the page.
        measured: the layer that is measured.
        layers: the layers to show; none for all that some run has, where layers whose names differ only in prefixes
            that trainers add are one.

    Raises:
        FadevizError: if a layer is not found.
    """
    every = [layers_of(runs, layer) for layer in layers] or _every_layer(runs)
    chosen: list[LayerNames] = [measured]
    for names in every:
        chosen += [names] * (names not in chosen)
    return chosen


def _every_layer(runs: Sequence[StoredRun]) -> list[dict[StoredRun, str]]:
    by_name: dict[str, dict[StoredRun, str]] = {}
    for run in runs:
        for name in run.layers:
            by_name.setdefault(name, {})[run] = name
    by_bare: dict[str, list[dict[StoredRun, str]]] = {}
    for name, names in by_name.items():
        by_bare.setdefault(bare_name(name), []).append(names)
    every = []
    for several in by_bare.values():
        owners = [run for names in several for run in names]
        merged = {run: names[run] for run in runs for names in several if run in names}
        every += [merged] if len(merged) == len(owners) else several  # a run may have both
    return every


def wanted_maps(
    runs: Sequence[StoredRun], layers: Sequence[LayerNames], kinds: Sequence[str], call: int = 0
) -> list[tuple[LayerNames, str]]:
    """Layers and kinds that some run has for this call, the most important first."""
    found = [(layer, place) for layer in layers if (place := _find_maps(runs, layer, call)) is not None]
    first, others = (
        [layer for layer, _ in found if layer is layers[0]],
        [one for one in found if one[0] is not layers[0]],
    )
    others.sort(key=lambda one: one[1])
    requested = [kind for kind in MAP_KINDS if not kinds or kind in kinds]
    pairs = [(layer, kind) for layer in first for kind in requested]
    pairs += [(layer, kind) for kind in requested for layer, _ in others]
    return [(layer, kind) for layer, kind in pairs if any(_is_recorded(run, layer, kind, call) for run in runs)]


def _find_maps(runs: Sequence[StoredRun], layer: LayerNames, call: int) -> tuple[int, int, int] | None:
    """Size of a layer's maps, and where it is in the first run that has some; None if no run has any."""
    for number, run in enumerate(runs):
        kinds = [kind for kind in run.layers.get(layer.get(run, ""), ()) if _is_recorded(run, layer, kind, call)]
        kinds = [kind for kind in kinds if kind in MAP_KINDS]
        if kinds:
            size = run.read(run.steps[0], layer[run], kinds[0], call)[0].size
            return size, number, list(run.layers).index(layer[run])
    return None


def _is_recorded(run: StoredRun, layer: LayerNames, kind: str, call: int) -> bool:
    if run not in layer or kind not in run.layers[layer[run]]:
        return False
    return call == 0 or call in run.calls(layer[run], kind)


def _pack_maps(
    source: _Source, places: Sequence[Place], layer: LayerNames, kind: str, budget: float = math.inf
) -> MapSequences | None:
    """The sequences of one layer and kind, or None once they exceed ``budget`` or the first suggests that they will."""
    sequences, used = MapSequences(describe_layers(layer), kind), 0
    if len(set(map(bare_name, layer.values()))) > 1:
        sequences.names = {number: layer[run] for number, run in enumerate(source.runs) if run in layer}
    count = sum(kind in source.runs[run].layers.get(layer.get(source.runs[run], ""), ()) for run, _ in places)
    for run, image, maps in _read_maps(source, places, layer, kind):
        # The first predicts the others: images hardly differ by half.
        left = budget - used if sequences.packed else min(budget, 2 * budget / count)
        packed = pack(maps, kind, limit=3 / 4 * left)  # in base64 three bytes take four
        if packed is None or text_size(packed) > left:
            return None
        sequences.packed[run, image] = packed
        height, width = maps.shape[-2:]
        sequences.sizes[run] = (height, width)
        used += text_size(packed)
    return sequences


def _read_maps(
    source: _Source, places: Sequence[Place], layer: LayerNames, kind: str
) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Each run and image with its maps ``(S, h, w)``; of a run as many images at a time as ``_BLOCK`` values hold."""
    for run in dict.fromkeys(run for run, _ in places):
        if _is_recorded(source.runs[run], layer, kind, source.call):
            opened = source.runs[run]
            maps = opened.maps(layer[opened], kind, steps=source.steps, call=source.call)
            images = sum(other == run for other, _ in places)  # the first ones
            together = max(1, _BLOCK // math.prod((len(maps), *maps.shape[2:])))
            for start in range(0, min(images, maps.shape[1]), together):
                block = maps[:, start : min(start + together, images)]
                yield from ((run, start + index, block[:, index]) for index in range(block.shape[1]))


def _reduce(costs: Mapping[Place, int], seeds: Sequence[int], images: int, budget: int) -> tuple[list[int], int]:
    """The runs and the number of images that fit; no runs if nothing does."""
    attempts = [(count, images) for count in range(max(seeds) + 1, 0, -1)]
    attempts += [(1, count) for count in range(images - 1, 0, -1)]
    for seed_count, image_count in attempts:
        shown = [run for run, seed in enumerate(seeds) if seed < seed_count]
        if sum(costs.get((run, image), 0) for run in shown for image in range(image_count)) <= budget:
            return shown, image_count
    return [], 0


def _set_limits(sequences: MapSequences) -> None:
    # From the limits of the frames: the ends over several frames are the ends of their ends. NaN does not count.
    for image in sorted({image for _, image in sequences.packed}):
        runs = [run for run, other in sequences.packed if other == image]
        ends = []
        for run in runs:
            packed = sequences.packed[run, image]
            ends.append(np.array([packed.low, packed.high]).T[:, None, :])
        own = limits_by_scope(ends, runs, sequences.kind, "run")
        shared = limits_by_scope(ends, runs, sequences.kind, "shared")
        sequences.own.update({(run, image): ranges[0] for run, ranges in zip(runs, own, strict=True)})
        sequences.shared[image] = shared[0][0]
