"""Frames: the maps of one or more runs over training, read, checked to belong together, and normalised."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from ..storage.layers_of_runs import choose_layers
from ..storage.map_index import bare_name
from ..storage.several_runs import check_distinct, common_steps, describe_calls, run_labels
from ..storage.snapshots import CHANNEL_KINDS, SIGNED_KINDS
from ..storage.stored_run import StoredRun
from .normalize import SCOPES, Limits, limits_by_scope
from .normalize import normalize as to_unit
from .selection import MapSelection
from .zoom import Box

MAX_CORRELATION = 0.8
"""Channels whose maps correlate above this are considered duplicates: only one of them is representative."""


@dataclass(frozen=True)
class ClassColours:
    """The colours of predictions, which stand for classes and not for values.

    Attributes:
        palette: ``(256, 3)`` uint8: the colours of the classes, of the outline, and from black to white.
        outline: index of the colour that the outline of the true object has.
        regions: ``(H, W)`` uint8, the true regions whose outline that is; None where none is drawn.
        legend: names of the classes with the indices of their colours, those that fill most first; empty for two.
        sentence: what the colours stand for, for captions.
    """

    palette: NDArray[np.uint8]
    outline: int
    regions: NDArray[np.uint8] | None
    legend: tuple[tuple[str, int], ...]
    sentence: str


@dataclass(frozen=True)
class FrameSequence:
    """One map of one run over training: a row of frames.

    Attributes:
        run: source of the maps.
        label: name of the run in figures: its operator, and the seed or folder where several share an operator.
        layer: dotted module name, as it is recorded in this run.
        title: ``label``, and the layer where the runs' layers differ.
        kind: a name in ``KINDS``, or ``PREDICTION``.
        image: index of the observed image.
        channel: index of the channel, for ``CHANNEL_KINDS``; None otherwise.
        representative: whether the channel was selected by :func:`select_channels` rather than by the caller.
        call: index of the layer's call in a forward pass.
        calls: number of its recorded calls.
        channel_count: number of recorded channels, for ``CHANNEL_KINDS``; None otherwise.
        steps: the T steps shown, increasing.
        maps: ``(T, h, w)`` float32, as recorded.
        unit: ``(T, h, w)`` float32 in [0, 1]; NaN where a map is not finite.
        limits: the values that 0 and 1 stand for, for each frame.
        scope: scope of the limits, a name in ``SCOPES``.
        percentiles: ends of the range in percent; (0, 100) is minimum and maximum.
        centered: whether the limits are symmetric about 0.
        observed_image: ``(H, W, 3)`` uint8; None if the run has lost it.
        mask: ``(H, W)`` uint8, its ground truth; None if the run has lost it.
        notes: what was omitted or marked, one sentence each.
        colours: the colours of classes, of predictions; None for maps, which take those of a colour map.
        minus: the run whose maps were subtracted; None where the maps are the run's own.
        crop: the window of the observed image to which maps, unit and regions are cut, in pixels of the image, as
            ``(left, top, right, bottom)``; None for the whole.
    """

    run: StoredRun
    label: str
    layer: str
    title: str
    kind: str
    image: int
    channel: int | None
    representative: bool
    call: int
    calls: int
    channel_count: int | None
    steps: tuple[int, ...]
    maps: NDArray[np.float32]
    unit: NDArray[np.float32]
    limits: tuple[Limits, ...]
    scope: str
    percentiles: tuple[float, float]
    centered: bool
    observed_image: NDArray[np.uint8] | None
    mask: NDArray[np.uint8] | None
    notes: tuple[str, ...]
    colours: ClassColours | None = None
    minus: StoredRun | None = None
    crop: tuple[int, int, int, int] | None = None

    @property
    def non_finite(self) -> int:
        """Number of cells, over all frames, that are NaN or infinite."""
        return int(np.isnan(self.unit).sum())


@dataclass(frozen=True)
class _Track:
    """Maps as read, before their range is known: one run, and one channel for ``CHANNEL_KINDS``."""

    run: StoredRun
    label: str
    layer: str
    title: str
    image: int
    channel: int | None
    maps: NDArray[np.float32]
    minus: StoredRun | None = None


def select_frames(
    runs: Sequence[StoredRun],
    selection: MapSelection = MapSelection(),
    *,
    images: Sequence[int] = (),
    labels: Sequence[str] = (),
    difference: bool = False,
    centered: bool = False,
    max_frames: int | None = None,
) -> list[FrameSequence]:
    """The maps to draw: one sequence per run, or one per run and channel for ``CHANNEL_KINDS``.

    Of several images the sequences of the first come first. All images of a scope share its range.

    The maps of the runs may differ in size: each keeps its own.

    Args:
        runs: one run, or several to be compared, which must have observed the same image.
        selection: which maps, and the range of values that the colours span.
        images: several observed images in place of ``selection.image``.
        labels: labels of the runs in place of their own.
        difference: whether the sequences are the second run's maps less the first's.
        centered: whether 0 is the middle, for diverging colour maps, where maps of a signed kind take both signs.
        max_frames: maximum number of frames per sequence, evenly spaced, unless ``selection.steps`` names them.

    Raises:
        FadevizError: if there is no run, a run is given twice, the runs cannot be compared, or they have no such
            layer, kind, image, channel, call, step or scope; for a ``difference`` also if there are not two runs, or
            their maps differ in size.
    """
    check_runs(runs)
    own_labels = choose_labels(runs, labels)
    layers = choose_layers(runs, selection.layer, selection.kind, selection.call)
    images = images or (selection.image,)
    for image in images:
        check_images(runs, image)
    common = common_steps(runs, selection.steps)
    steps = common
    if selection.steps is None and max_frames is not None:
        steps = tuple(spread(common, max_frames))
    alike = len({bare_name(layer) for layer in layers.values()}) == 1
    tracks = []
    for label, (run, layer) in zip(own_labels, layers.items(), strict=True):
        tracks += _read(run, label, layer, label if alike else f"{label}, {layer}", selection, images, steps)
    if difference:
        tracks = _subtract(runs, tracks, selection)
    centered = difference or (centered and selection.kind in SIGNED_KINDS and _takes_both_signs(tracks))
    limits = limits_by_scope(
        [track.maps for track in tracks],
        [track.run.path for track in tracks],
        "difference" if difference else selection.kind,  # a difference has no natural range
        selection.normalize,
        selection.percentiles,
        centered=centered,
    )
    all_steps = common if selection.steps is None else None
    sequences: list[FrameSequence] = []
    for run in runs:
        own = [(track, ranges) for track, ranges in zip(tracks, limits, strict=True) if track.run is run]
        sequences += _sequences(own, selection, steps, all_steps, centered=centered) if own else []
    return [sequence for image in images for sequence in sequences if sequence.image == image]


def choose_labels(runs: Sequence[StoredRun], labels: Sequence[str]) -> list[str]:
    """The labels of runs in a figure: those given, or else their own.

    Raises:
        FadevizError: if there is not one for each run.
    """
    if labels and len(labels) != len(runs):
        given, needed = (f"{n} {word}{'s' * (n != 1)}" for n, word in ((len(labels), "label"), (len(runs), "run")))
        raise FadevizError(f"{given} for {needed}: give labels=... for each run, in the order of the runs, or for none")
    return [*labels] or run_labels(runs)


def _subtract(runs: Sequence[StoredRun], tracks: Sequence[_Track], selection: MapSelection) -> list[_Track]:
    """The second run's maps less the first's, one track for each image and channel."""
    if len(runs) != 2:
        raise FadevizError(f"difference=True: needs two runs, the second less the first; given: {len(runs)}")
    if selection.kind in CHANNEL_KINDS and selection.channel is None:
        raise FadevizError(
            "difference=True: each run has representative channels of its own. Choose the same ones with channel=..."
        )
    first, second = ([track for track in tracks if track.run is run] for run in runs)
    subtracted = []
    for one, other in zip(first, second, strict=True):
        if one.maps.shape != other.maps.shape:
            (_, height, width), (_, other_height, other_width) = one.maps.shape, other.maps.shape
            raise FadevizError(
                f"difference=True: maps are {height}x{width} in {runs[0].address}, but {other_height}x{other_width} in "
                f"{runs[1].address}. Choose a layer=... of the same size"
            )
        with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, and painted as such
            maps = other.maps - one.maps
        label, title = (
            f"{one} \N{MINUS SIGN} {two}" for one, two in ((other.label, one.label), (other.title, one.title))
        )
        subtracted.append(replace(other, maps=maps, label=label, title=title, minus=one.run))
    return subtracted


def _read(
    run: StoredRun,
    label: str,
    layer: str,
    title: str,
    selection: MapSelection,
    images: Sequence[int],
    steps: Sequence[int],
) -> list[_Track]:
    """The maps of one run; of ``CHANNEL_KINDS`` one track per channel."""
    kind, call = selection.kind, selection.call
    channels: Sequence[int | None]
    if kind not in CHANNEL_KINDS:
        channels = [None]
    elif selection.channel is None:
        channels = select_channels(run, layer, images[0], selection.channels, kind, call)
    else:
        channels = [selection.channel] if isinstance(selection.channel, int) else list(selection.channel)
    return [
        _Track(
            run,
            label,
            layer,
            title,
            image,
            channel,
            run.maps(layer, kind, image=image, channel=channel, steps=steps, call=call)[:],
        )
        for image in images
        for channel in channels
    ]


def _sequences(
    tracks: Sequence[tuple[_Track, tuple[Limits, ...]]],
    selection: MapSelection,
    steps: tuple[int, ...],
    all_steps: Sequence[int] | None,
    *,
    centered: bool,
) -> list[FrameSequence]:
    """The sequences of one run's tracks, given the limits of each."""
    run, layer, kind = tracks[0][0].run, tracks[0][0].layer, selection.kind
    calls = run.calls(layer, kind)
    count = run.maps(layer, kind, call=selection.call).shape[2] if kind in CHANNEL_KINDS else None
    notes = (
        *filter(None, [describe_calls(layer, calls, selection.call)]),
        *_notes([track for track, _ in tracks], steps, count, all_steps),
    )
    low, high = selection.percentiles
    return [
        FrameSequence(
            run=run,
            label=track.label,
            layer=layer,
            title=track.title,
            kind=kind,
            image=track.image,
            channel=track.channel,
            representative=track.channel is not None and selection.channel is None,
            call=selection.call,
            calls=len(calls),
            channel_count=count,
            steps=steps,
            maps=track.maps,
            unit=np.stack([to_unit(frame, ends) for frame, ends in zip(track.maps, ranges, strict=True)]),
            limits=ranges,
            scope=selection.normalize,
            percentiles=(float(low), float(high)),
            centered=centered,
            observed_image=None if run.lost else run.observation[0][track.image],
            mask=None if run.lost else run.observation[1][track.image],
            notes=notes,
            minus=track.minus,
        )
        for track, ranges in tracks
    ]


def select_channels(
    run: StoredRun, layer: str, image: int = 0, count: int = 8, kind: str = "channels", call: int = 0
) -> list[int]:
    """Representative channels of a layer, selected from the last snapshot, so that a channel keeps its cell.

    Channels are taken in descending order of their variance over the image. A channel whose map correlates with one
    already taken by more than ``MAX_CORRELATION`` in absolute value is skipped. Constant and non-finite channels are
    never taken, unless there are no others: then channel 0 is returned.

    Returns:
        At most ``count`` indices, increasing; the same ones each time.
    """
    value = run.maps(layer, kind, image=image, steps=run.steps[-1:], call=call)[0]
    flat = value.reshape(len(value), -1).astype(np.float64)
    usable = np.isfinite(flat).all(axis=1, keepdims=True)
    flat = np.where(usable, flat, 0.0)
    flat -= flat.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1)
    selected: list[int] = []
    for index in np.argsort(-norms, kind="stable"):
        if len(selected) == count or norms[index] == 0:
            break
        correlations = np.abs(flat[selected] @ flat[index]) / (norms[selected] * norms[index])
        if not (correlations > MAX_CORRELATION).any():
            selected.append(int(index))
    return sorted(selected) or [0]


def check_runs(runs: Sequence[StoredRun]) -> None:
    """Raise unless there is at least one run, and no run twice."""
    if not runs:
        raise FadevizError("no run to draw. Give at least one run folder")
    check_distinct(runs)


def check_images(runs: Sequence[StoredRun], image: int) -> None:
    """Raise unless the runs observed the same image, as far as their observed images are available."""
    available = [run for run in runs if not run.lost]
    for run in available:
        count = len(run.observation[0])
        if not 0 <= image < count:
            raise FadevizError(f"no image {image} in {run.address}: there are {count}, from 0 to {count - 1}")
    for first, run in itertools.pairwise(available):
        if not np.array_equal(first.observation[0][image], run.observation[0][image]):
            raise FadevizError(
                f"{first.address} and {run.address} observed different images as image {image}: they cannot be "
                "compared. Record both with the same data=..., size=... and observation settings"
            )


def _takes_both_signs(tracks: Sequence[_Track]) -> bool:
    return any((track.maps < 0).any() for track in tracks) and any((track.maps > 0).any() for track in tracks)


def _notes(
    tracks: Sequence[_Track], steps: Sequence[int], channels: int | None, all_steps: Sequence[int] | None
) -> tuple[str, ...]:
    """Notes on what of a run is not drawn, or is marked in another colour.

    Args:
        tracks: what is drawn of the run.
        steps: the steps that are drawn.
        channels: number of recorded channels; None for kinds without channels.
        all_steps: the steps that all runs have; None if the caller named the steps.
    """
    run, label = tracks[0].run, tracks[0].label
    notes = notes_on_run(run, steps, all_steps)
    shown = dict.fromkeys(track.channel for track in tracks)
    if channels is not None and channels > len(shown):
        numbers = ", ".join(map(str, shown))
        notes.append(
            f"{label}: {len(shown)} of {channels} channels are drawn: {numbers}. "
            "Choose with channel=... or channels=..."
        )
    cells = sum(int((~np.isfinite(track.maps)).sum()) for track in tracks)
    if cells:
        notes.append(f"{label}: {cells} cells are NaN or infinite; they are painted magenta")
    return tuple(notes)


def notes_on_run(run: StoredRun, steps: Sequence[int], all_steps: Sequence[int] | None) -> list[str]:
    """Notes on files of a run that cannot be used, and on steps that are not drawn; arguments as for its maps."""
    broken = {name: reason for name, reason in run.broken.items() if name != "observation.safetensors"}
    notes = [f"{run.address}: left out {name} ({reason})" for name, reason in broken.items()]
    notes += [run.lost] if run.lost else []
    if all_steps is not None and len(run.steps) > len(all_steps):
        missing = len(run.steps) - len(all_steps)
        count = f"{missing} step{'s are' if missing > 1 else ' is'}"
        notes.append(f"{run.address}: {count} left out, because not all runs have them")
    if all_steps is not None and len(all_steps) > len(steps):
        notes.append(
            f"{len(steps)} of {len(all_steps)} snapshots are shown, evenly spaced from step {steps[0]} to {steps[-1]}. "
            "Choose others with steps=..."
        )
    return notes


def crop_frames(sequence: FrameSequence, box: Box) -> FrameSequence:
    """A sequence with the cells that a window of the observed image touches; its limits stay those of the whole maps.

    Raises:
        FadevizError: if the run has lost its images, or the window does not lie in the image.
    """
    if sequence.observed_image is None:
        raise FadevizError(
            f"crop={tuple(box)}: {sequence.run.address} has lost its observed images. Leave out crop=..."
        )
    height, width = sequence.observed_image.shape[:2]
    left, top, side = box
    if side < 1 or left < 0 or top < 0 or left + side > width or top + side > height:
        raise FadevizError(
            f"crop={tuple(box)}: the window of side {side} at x {left}, y {top} does not lie in the image of "
            f"{width}x{height}. Choose one inside it"
        )
    rows, columns = sequence.maps.shape[1:]
    across = slice(left * columns // width, -(-(left + side) * columns // width))
    down = slice(top * rows // height, -(-(top + side) * rows // height))
    colours = sequence.colours
    if colours is not None and colours.regions is not None:
        colours = replace(colours, regions=colours.regions[down, across])
    ends = (
        across.start * width // columns,
        down.start * height // rows,
        -(-across.stop * width // columns),
        -(-down.stop * height // rows),
    )
    return replace(
        sequence,
        maps=sequence.maps[:, down, across],
        unit=sequence.unit[:, down, across],
        colours=colours,
        crop=ends,
    )


def spread(steps: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the steps, evenly spaced, including the first and the last."""
    indices = np.linspace(0, len(steps) - 1, min(count, len(steps)))
    return [steps[round(index)] for index in indices]


def scale_maps(
    sequences: Sequence[FrameSequence], scale: int | None, width: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """The scale of each sequence, and width and height of its maps in pixels.

    Every map value is a square of whole pixels. Maps that have fewer values than the widest ones get a larger scale,
    with which they become about as wide.

    Args:
        sequences: the sequences.
        scale: the scale of the widest maps; None makes them about ``width`` pixels wide.
        width: see ``scale``.
    """
    shapes = [(int(sequence.maps.shape[2]), int(sequence.maps.shape[1])) for sequence in sequences]
    widest = max(across for across, _ in shapes)
    scale = scale if scale is not None else max(1, round(width / widest))
    scales = [max(1, round(widest * scale / across)) for across, _ in shapes]
    return scales, [(across * s, down * s) for (across, down), s in zip(shapes, scales, strict=True)]


def collect_notes(sequences: Sequence[FrameSequence]) -> tuple[str, ...]:
    """The notes of all sequences, without duplicates."""
    return tuple(dict.fromkeys(note for sequence in sequences for note in sequence.notes))


__all__ = [
    "MAX_CORRELATION",
    "SCOPES",
    "ClassColours",
    "FrameSequence",
    "check_images",
    "check_runs",
    "choose_labels",
    "collect_notes",
    "crop_frames",
    "notes_on_run",
    "scale_maps",
    "select_channels",
    "select_frames",
    "spread",
]
