"""What fits into a page: maps are packed in the order of their worth until the room is used up."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from ..render.normalize import Limits, limits_by_scope
from ..storage.stored_run import StoredRun
from .codec import Packed, pack

Place = tuple[int, int]
"""A run and an image, by their numbers."""

MAP_KINDS = ("feature", "gradient", "gate", "kernel_entropy")
"""Kinds that are a map of each image, the most telling first."""

_ELEMENT = 64
"""Bytes that surround one packed movie in the page."""

_AT_A_TIME = 2**22
"""So many values of maps are read at a time: 16 MB. For each image the same files would be opened again."""


@dataclass
class Movies:
    """The packed maps of one layer and kind.

    Attributes:
        layer: dotted module name.
        kind: a name in ``MAP_KINDS``.
        packed: the movie of each run and image; runs without such maps have none.
        sizes: height and width, of each run.
        own: for each run and image, the limits of the scope ``run``.
        shared: for each image, the limits of the scope ``shared``, over all runs of the page.
    """

    layer: str
    kind: str
    packed: dict[Place, Packed] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    own: dict[Place, Limits] = field(default_factory=dict)
    shared: dict[int, Limits] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """What a page shows of its runs.

    Attributes:
        runs: numbers of the runs whose maps are in it.
        images: how many images, from the first.
        movies: of each layer and kind.
        left_out: what is not in it and why, a sentence each.
    """

    runs: tuple[int, ...]
    images: int
    movies: tuple[Movies, ...]
    left_out: tuple[str, ...]


def text_size(packed: Packed) -> int:
    """Bytes that a movie takes in the page: in base64, with its limits."""
    return 4 * -(-len(packed.data) // 3) + len(json.dumps([shortest(packed.low), shortest(packed.high)])) + _ELEMENT


def shortest(values: Sequence[float]) -> list[float | None]:
    """Float32 values as the shortest decimals that stand for them, to be rounded to float32 again; NaN becomes None."""
    return [float(str(np.float32(value))) if math.isfinite(value) else None for value in values]


def select_movies(
    runs: Sequence[StoredRun],
    ranks: Sequence[int],
    steps: Sequence[int],
    images: int,
    room: int,
    *,
    layers: Sequence[str] = (),
    kinds: Sequence[str] = (),
    first: str,
    needed: str,
    call: int = 0,
) -> Selection:
    """Pack maps until ``room`` bytes are used: all runs and images of a layer and kind, or none of them.

    The order: the layer ``first``, its kinds as in ``MAP_KINDS``; then, kind by kind, the other layers, coarse ones
    first. What is too large is skipped, and something smaller after it may still fit. Where not even the first fits,
    runs go, the last seeds first, until each operator has one; then images, the last first.

    Args:
        runs: of which to show maps.
        ranks: of each run among those of its operator, from 0.
        steps: to show; all runs have them.
        images: how many at most.
        room: in bytes.
        layers: only these, or all.
        kinds: only these, or all.
        first: the layer that comes first.
        needed: how a user makes more room, for the message.
        call: of each layer that runs several times in a forward pass; layers without such a call are left out.

    Raises:
        FadevizError: not even one image of the first layer and kind, in one run an operator, fits.
    """
    wanted = wanted_maps(runs, layers, kinds, first, call)
    if not wanted:
        raise FadevizError(
            f"no maps of {', '.join(kinds) or 'any kind'} in {', '.join(layers) or 'any layer'}. "
            f"List what there is: fadeviz info {runs[0].address}"
        )
    places = [(run, image) for run in range(len(runs)) for image in range(images)]
    layer, kind = wanted[0]
    movies = _packed(runs, places, steps, layer, kind, call)
    assert movies is not None  # without a limit nothing is too large
    costs = {place: text_size(one) for place, one in movies.packed.items()}
    left_out = []
    shown, count = _reduced(costs, ranks, images, room)
    if not shown:
        least = sum(costs.get((run, 0), 0) for run in range(len(runs)) if ranks[run] == 0)
        raise FadevizError(
            f"one image of {layer}, {kind}, takes {least / 1e6:.2f} MB, but {max(0, room) / 1e6:.2f} MB are free. "
            + needed
        )
    if count < images:
        left_out.append(f"images {count + 1} to {images}: no room for their maps")
    gone = [run for run in range(len(runs)) if run not in shown]
    if gone:
        names = ", ".join(runs[run].address for run in gone)
        left_out.append(f"maps of {len(gone)} of {len(runs)} runs, which are in the curves alone: {names}")
    places = [(run, image) for run in shown for image in range(count)]
    movies.packed = {place: movies.packed[place] for place in places if place in movies.packed}
    room -= sum(costs.get(place, 0) for place in places)
    found, too_large = [movies], dict[str, list[str]]()
    for layer, kind in wanted[1:]:
        more = _packed(runs, places, steps, layer, kind, call, room)
        if more is None:
            too_large.setdefault(layer, []).append(kind)
        elif more.packed:
            room -= sum(map(text_size, more.packed.values()))
            found.append(more)
    left_out += [f"{', '.join(names)} of {layer}: no room" for layer, names in too_large.items()]
    for movies in found:
        _set_limits(movies, runs, steps)
    return Selection(tuple(shown), count, tuple(found), tuple(left_out))


def wanted_maps(
    runs: Sequence[StoredRun], layers: Sequence[str], kinds: Sequence[str], first: str, call: int = 0
) -> list[tuple[str, str]]:
    """Layers and kinds that have this call in some run, most important first."""
    sizes: dict[str, int] = {}
    for run in runs:
        for layer, having in run.layers.items():
            known = [kind for kind in having if kind in MAP_KINDS and _recorded(run, layer, kind, call)]
            if layer not in sizes and known:
                sizes[layer] = run.read(run.steps[0], layer, known[0], call)[0].size
    chosen = [layer for layer in sizes if not layers or layer in layers]
    others = sorted((layer for layer in chosen if layer != first), key=lambda layer: sizes[layer])
    asked = [kind for kind in MAP_KINDS if not kinds or kind in kinds]
    pairs = [(first, kind) for kind in asked if first in chosen]
    pairs += [(layer, kind) for kind in asked for layer in others]
    return [(layer, kind) for layer, kind in pairs if any(_recorded(run, layer, kind, call) for run in runs)]


def _recorded(run: StoredRun, layer: str, kind: str, call: int) -> bool:
    return kind in run.layers.get(layer, ()) and (call == 0 or call in run.calls(layer, kind))


def _packed(
    runs: Sequence[StoredRun],
    places: Sequence[Place],
    steps: Sequence[int],
    layer: str,
    kind: str,
    call: int,
    room: float = math.inf,
) -> Movies | None:
    """The movies of one layer and kind, or None once they exceed ``room`` or the first suggests that they will."""
    movies, used = Movies(layer, kind), 0
    count = sum(kind in runs[run].layers.get(layer, ()) for run, _ in places)
    for run, image, maps in _each(runs, places, steps, layer, kind, call):
        # The first foretells the others: images differ, hardly by half.
        left = room - used if movies.packed else min(room, 2 * room / count)
        one = pack(maps, kind, most=3 / 4 * left)  # in base64 three bytes take four
        if one is None or text_size(one) > left:
            return None
        movies.packed[run, image] = one
        height, width = maps.shape[-2:]
        movies.sizes[run] = (height, width)
        used += text_size(one)
    return movies


def _each(
    runs: Sequence[StoredRun], places: Sequence[Place], steps: Sequence[int], layer: str, kind: str, call: int
) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Each run and image with its maps ``(S, h, w)``; of a run as many images at a time as ``_AT_A_TIME`` values."""
    for run in dict.fromkeys(run for run, _ in places):
        if _recorded(runs[run], layer, kind, call):
            maps = runs[run].maps(layer, kind, steps=steps, call=call)
            images = sum(r == run for r, _ in places)  # the first ones
            together = max(1, _AT_A_TIME // math.prod((len(maps), *maps.shape[2:])))
            for start in range(0, min(images, maps.shape[1]), together):
                block = maps[:, start : min(start + together, images)]
                yield from ((run, start + number, block[:, number]) for number in range(block.shape[1]))


def _reduced(costs: Mapping[Place, int], ranks: Sequence[int], images: int, room: int) -> tuple[list[int], int]:
    """The runs and the number of images that fit; no runs where nothing does."""
    tries = [(seeds, images) for seeds in range(max(ranks) + 1, 0, -1)]
    tries += [(1, count) for count in range(images - 1, 0, -1)]
    for seeds, count in tries:
        shown = [run for run, rank in enumerate(ranks) if rank < seeds]
        if sum(costs.get((run, image), 0) for run in shown for image in range(count)) <= room:
            return shown, count
    return [], 0


def _set_limits(movies: Movies, runs: Sequence[StoredRun], steps: Sequence[int]) -> None:
    # From the frames' own limits: the ends over several frames are the ends of their ends. NaN does not count.
    for image in sorted({image for _, image in movies.packed}):
        there = [run for run, i in movies.packed if i == image]
        ends = []
        for run in there:
            one = movies.packed[run, image]
            ends.append(np.array([one.low, one.high]).T[:, None, :])
        own = limits_by_scope(ends, there, movies.kind, "run")
        shared = limits_by_scope(ends, there, movies.kind, "shared")
        movies.own.update({(run, image): ranges[0] for run, ranges in zip(there, own, strict=True)})
        movies.shared[image] = shared[0][0]
