"""Selection: which maps of which runs a picture shows, in one range of values, checked to belong together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from ..storage.several_runs import check_layer, common_steps, describe_calls, run_labels
from ..storage.snapshots import CHANNEL_KINDS, SIGNED_KINDS
from ..storage.stored_run import StoredRun
from .normalize import SCOPES, Limits, limits_by_scope
from .normalize import normalize as to_unit

MAX_CORRELATION = 0.8
"""Two channels that correlate more than this show the same: only one of them is drawn."""


@dataclass(frozen=True)
class FrameSequence:
    """One map of one run over the training: a row of frames.

    Attributes:
        run: where the maps are from.
        label: how pictures name the run: its operator, and the seed or folder where two would be called the same.
        layer: dotted module name.
        kind: a name in ``KINDS``.
        image: index of the observed image.
        channel: index of the channel, for ``CHANNEL_KINDS``; None otherwise.
        chosen: whether the channel was chosen by :func:`select_channels`, not named.
        call: which call of the layer in a forward pass.
        calls: how many calls of it were recorded.
        among: how many channels there are to choose from; None but for ``CHANNEL_KINDS``.
        steps: the T steps shown, increasing.
        maps: ``(T, h, w)`` float32, as recorded.
        unit: ``(T, h, w)`` float32 in [0, 1]; NaN where a map is not finite.
        limits: for each frame the values that 0 and 1 stand for.
        scope: over what the limits were computed, a name in ``SCOPES``.
        percentiles: in percent; (0, 100) is minimum and maximum.
        centered: whether the limits are symmetric about 0.
        picture: ``(H, W, 3)`` uint8, the observed image; None where the run has lost it.
        mask: ``(H, W)`` uint8, its true mask; None with the picture.
        notes: what was left out or painted apart, a sentence each.
    """

    run: StoredRun
    label: str
    layer: str
    kind: str
    image: int
    channel: int | None
    chosen: bool
    call: int
    calls: int
    among: int | None
    steps: tuple[int, ...]
    maps: NDArray[np.float32]
    unit: NDArray[np.float32]
    limits: tuple[Limits, ...]
    scope: str
    percentiles: tuple[float, float]
    centered: bool
    picture: NDArray[np.uint8] | None
    mask: NDArray[np.uint8] | None
    notes: tuple[str, ...]

    @property
    def non_finite(self) -> int:
        """How many cells of all frames are NaN or infinite."""
        return int(np.isnan(self.unit).sum())


def select_frames(
    runs: Sequence[StoredRun],
    *,
    layer: str | None = None,
    kind: str = "feature",
    image: int = 0,
    channel: int | Sequence[int] | None = None,
    how_many: int = 8,
    normalize: str = "frame",
    percentiles: tuple[float, float] = (0.0, 100.0),
    steps: Sequence[int] | None = None,
    centered: bool = False,
    call: int = 0,
    at_most: int | None = None,
) -> list[FrameSequence]:
    """The maps to draw, one sequence a run, or one a run and channel for ``CHANNEL_KINDS``.

    Args:
        runs: one run, or several to be compared: they must have observed the same picture.
        layer: dotted name; None takes the first run's ``default_layer(kind)``.
        kind: a name in ``KINDS``.
        image: index of the observed image.
        channel: for ``CHANNEL_KINDS``: one or more indices, or None for representative ones, chosen in each run
            by :func:`select_channels`.
        how_many: at most so many representative channels.
        normalize: the scope of the range, a name in ``SCOPES``.
        percentiles: in percent, the ends of the range; (0, 100) is minimum and maximum.
        steps: which steps, or None for all that the runs have in common.
        centered: for diverging colour maps: where maps of a signed kind take both signs, 0 is the middle.
        call: which call of a layer that runs several times in a forward pass.
        at_most: where no ``steps`` are named and there are more, so many of them, evenly spaced, with a note.

    Raises:
        FadevizError: nothing to draw, unknown layer, kind, image, channel, step or scope, or runs that do not fit
            together; the message says which and what to do.
    """
    if not runs:
        raise FadevizError("no run to draw. Give at least one run folder")
    if channel is not None and kind not in CHANNEL_KINDS:
        raise FadevizError(f"a channel is chosen, but {kind!r} has none. Use --kind channels, or leave --channel out")
    if how_many < 1:
        raise FadevizError(f"{how_many} channels: at least 1 is needed")
    for index, run in enumerate(runs):
        for other in runs[:index]:
            if run.same_folder(other):
                raise FadevizError(f"{other.address} and {run.address} are the same run, {run.run_id}. Give it once")
    chosen_layer = layer if layer is not None else runs[0].default_layer(kind)
    check_layer(runs, chosen_layer, kind, call)
    _check_images(runs, image)
    shown = common = common_steps(runs, steps)
    if steps is None and at_most is not None:
        shown = tuple(spread(common, at_most))
    parts: list[_Part] = []
    for run, label in zip(runs, run_labels(runs), strict=True):
        if kind not in CHANNEL_KINDS:
            parts.append((run, label, None, run.maps(chosen_layer, kind, image=image, steps=shown, call=call)[:]))
            continue
        if channel is None:
            numbers = select_channels(run, chosen_layer, image, how_many, kind, call)
        else:
            numbers = [channel] if isinstance(channel, int) else list(channel)
        parts += [
            (run, label, n, run.maps(chosen_layer, kind, image=image, channel=n, steps=shown, call=call)[:])
            for n in numbers
        ]
    calls = {run.path: run.calls(chosen_layer, kind) for run in runs}
    among = {run.path: run.maps(chosen_layer, kind, call=call).shape[2] for run in runs if kind in CHANNEL_KINDS}
    notes = {
        run.path: (
            *filter(None, [describe_calls(chosen_layer, calls[run.path], call)]),
            *_notes(
                run,
                [part for part in parts if part[0] is run],
                shown,
                among.get(run.path),
                common if steps is None else None,
            ),
        )
        for run in runs
    }
    _check_sizes([(run, maps) for run, _, _, maps in parts], chosen_layer)
    centered = centered and kind in SIGNED_KINDS and any((m < 0).any() for *_, m in parts)
    centered = centered and any((m > 0).any() for *_, m in parts)
    limits = limits_by_scope(
        [maps for *_, maps in parts], [run.path for run, *_ in parts], kind, normalize, percentiles, centered=centered
    )
    return [
        FrameSequence(
            run=run,
            label=label,
            layer=chosen_layer,
            kind=kind,
            image=image,
            channel=number,
            chosen=number is not None and channel is None,
            call=call,
            calls=len(calls[run.path]),
            among=among.get(run.path),
            steps=shown,
            maps=maps,
            unit=np.stack([to_unit(frame, ends) for frame, ends in zip(maps, ranges, strict=True)]),
            limits=ranges,
            scope=normalize,
            percentiles=(float(percentiles[0]), float(percentiles[1])),
            centered=centered,
            picture=None if run.lost else run.observation[0][image],
            mask=None if run.lost else run.observation[1][image],
            notes=notes[run.path],
        )
        for (run, label, number, maps), ranges in zip(parts, limits, strict=True)
    ]


_Part = tuple[StoredRun, str, int | None, NDArray[np.float32]]
"""A run, its label, the channel's number, and the maps."""


def select_channels(
    run: StoredRun, layer: str, image: int = 0, how_many: int = 8, kind: str = "channels", call: int = 0
) -> list[int]:
    """Representative channels of a layer, chosen from the last snapshot, so that a channel keeps its cell.

    The channels are taken in the order of their variance over the image, largest first; one whose map correlates with
    a map already taken, by more than ``MAX_CORRELATION`` in absolute value, is skipped. Channels that are constant or
    not finite are never taken, unless there is nothing else: then channel 0 stands for all of them.

    Returns:
        At most ``how_many`` indices, increasing; the same ones each time.
    """
    value = run.maps(layer, kind, image=image, steps=run.steps[-1:], call=call)[0]
    flat = value.reshape(len(value), -1).astype(np.float64)
    usable = np.isfinite(flat).all(axis=1, keepdims=True)
    flat = np.where(usable, flat, 0.0)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1)
    taken: list[int] = []
    for number in np.argsort(-length, kind="stable"):
        if len(taken) == how_many or length[number] == 0:
            break
        likeness = np.abs(flat[taken] @ flat[number]) / (length[taken] * length[number])
        if not (likeness > MAX_CORRELATION).any():
            taken.append(int(number))
    return sorted(taken) or [0]


def _check_images(runs: Sequence[StoredRun], image: int) -> None:
    """Raise unless the runs observed the same picture, as far as their pictures are available."""
    shown = [run for run in runs if not run.lost]
    for run in shown:
        count = len(run.observation[0])
        if not 0 <= image < count:
            raise FadevizError(f"no image {image} in {run.address}: there are {count}, from 0 to {count - 1}")
    for first, run in itertools.pairwise(shown):
        if not np.array_equal(first.observation[0][image], run.observation[0][image]):
            raise FadevizError(
                f"{first.address} and {run.address} observed different images as image {image}: they cannot be "
                "compared. Record both with the same --data, --size and observation options"
            )


def _check_sizes(parts: Sequence[tuple[StoredRun, NDArray[np.float32]]], layer: str) -> None:
    (first, maps), *others = parts
    for run, other in others:
        if other.shape != maps.shape:
            raise FadevizError(
                f"{layer}: maps are {maps.shape[1]}x{maps.shape[2]} in {first.address}, but {other.shape[1]}x"
                f"{other.shape[2]} in {run.address}: they cannot be compared. Choose a layer of one size with --layer"
            )


def _notes(
    run: StoredRun, parts: Sequence[_Part], shown: Sequence[int], channels: int | None, common: Sequence[int] | None
) -> tuple[str, ...]:
    """Notes on what of a run is not drawn, or marked in another colour.

    Args:
        run: the run.
        parts: what is drawn of it.
        shown: the steps that are drawn.
        channels: how many channels there are; None for a kind that has one map an image.
        common: the steps that all runs have, unless steps were chosen.
    """
    label = parts[0][1]
    broken = {name: reason for name, reason in run.broken.items() if name != "observation.safetensors"}
    notes = [f"{run.address}: left out {name} ({reason})" for name, reason in broken.items()]
    notes += [run.lost] if run.lost else []
    if common is not None and len(run.steps) > len(common):
        missing = len(run.steps) - len(common)
        some = f"{missing} step{'s are' if missing > 1 else ' is'}"
        notes.append(f"{run.address}: {some} left out, as not all runs have them")
    if common is not None and len(common) > len(shown):
        notes.append(
            f"{len(shown)} of {len(common)} snapshots are shown, evenly spaced from step {shown[0]} to {shown[-1]}. "
            "Choose others with --steps"
        )
    if channels is not None and channels > len(parts):
        numbers = ", ".join(str(number) for _, _, number, _ in parts)
        notes.append(
            f"{label}: {len(parts)} of {channels} channels are drawn: {numbers}. Choose with --channel, --channels"
        )
    cells = sum(int((~np.isfinite(maps)).sum()) for *_, maps in parts)
    if cells:
        notes.append(f"{label}: {cells} cells are NaN or infinite; they are painted magenta")
    return tuple(notes)


def spread(steps: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the steps, evenly spaced, including the first and the last."""
    places = np.linspace(0, len(steps) - 1, min(count, len(steps)))
    return [steps[round(place)] for place in places]


def all_notes(sequences: Sequence[FrameSequence]) -> tuple[str, ...]:
    """The notes of all sequences, each once."""
    return tuple(dict.fromkeys(note for sequence in sequences for note in sequence.notes))


__all__ = [
    "MAX_CORRELATION",
    "SCOPES",
    "FrameSequence",
    "all_notes",
    "select_channels",
    "select_frames",
    "spread",
]
