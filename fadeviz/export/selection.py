"""The content of an export: layers, kinds, images and steps of a run, read a step at a time or drawn as images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError, unknown_name
from ..render.colormap import colorize, palette
from ..render.frames import FrameSequence, select_frames
from ..render.labels import truth_image
from ..render.normalize import SCOPES
from ..render.selection import MapSelection
from ..storage.maps import Maps
from ..storage.metrics import CLASS_KEY, class_metrics
from ..storage.several_runs import common_steps
from ..storage.snapshots import CHANNEL_KINDS, KINDS
from ..storage.stored_run import StoredRun

CHANNELS_DRAWN = 8
"""Number of representative channels drawn per map."""

_TILE = 128
"""Pixels that a drawn map is about wide."""


@dataclass(frozen=True)
class Part:
    """The maps of one layer, kind and call over the exported steps.

    Attributes:
        maps: the maps of all recorded images.
        images: numbers of those whose maps are exported; ``(0,)`` for ``constant``, which is of no image.
    """

    maps: Maps
    images: tuple[int, ...]

    @property
    def layer(self) -> str:
        """The dotted module name."""
        return self.maps.layer

    @property
    def kind(self) -> str:
        """A name in ``KINDS``."""
        return self.maps.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the exported array: ``(steps, n, h, w)``, or ``(steps, n, C, h, w)`` for ``CHANNEL_KINDS``."""
        return (len(self.maps), len(self.images), *self.maps.shape[2:])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the exported images; for ``constant``, of its sources."""
        return tuple(self.maps.images[number] for number in self.images)

    def each_step(self) -> Iterator[NDArray[np.float32]]:
        """What is exported of one step after the other, as recorded: a long run need not fit into the memory.

        Raises:
            FadevizError: if a file cannot be read, or its maps differ in shape from those of the first step.
        """
        for value in self.maps:
            yield np.ascontiguousarray(value[list(self.images)])


@dataclass(frozen=True)
class Drawing:
    """How targets that draw turn maps into images.

    Attributes:
        normalize: the range from black to white: ``frame``, of each map, or ``run``.
        colormap: ``gray`` or any colour map of matplotlib.
    """

    normalize: str = "frame"
    colormap: str = "gray"

    def check(self) -> None:
        """Raise unless such a normalisation and colour map exist.

        Raises:
            FadevizError: if there is no such normalisation or colour map.
        """
        if self.normalize not in SCOPES:
            raise unknown_name("normalisation scope", self.normalize, SCOPES)
        palette(self.colormap)


@dataclass(frozen=True)
class ExportSelection:
    """What is exported of a run.

    Attributes:
        run: the run.
        steps: the recorded steps, increasing.
        images: indices of the observed images, increasing.
        names: the names of those images.
        parts: the maps of each layer, kind and call, in the network's order.
        notes: notes on what was left out, one sentence each.
        drawing: how maps become images, for targets that draw.
    """

    run: StoredRun
    steps: tuple[int, ...]
    images: tuple[int, ...]
    names: tuple[str, ...]
    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    drawing: Drawing = Drawing()

    def label(self, number: int) -> str:
        """The name of an observed image, unique in the selection and safe as a part of a path."""
        name = self.names[self.images.index(number)]
        return safe_name(name if len(set(self.names)) == len(self.names) else f"{number} {name}")

    def observation(self) -> dict[str, NDArray[np.uint8]]:
        """The exported ones of the observed ``images``, ``(n, H, W, 3)``, and their ``masks``, ``(n, H, W)``.

        Of a matting run also their ``alphas``, 0 to 255, and ``trimaps``. Empty if the run has lost them.
        """
        if self.run.lost:
            return {}
        arrays = dict(zip(("images", "masks"), self.run.observation, strict=True))
        arrays |= zip(("alphas", "trimaps"), self.run.mattes or (), strict=False)
        return {name: values[list(self.images)] for name, values in arrays.items()}

    def truth(self, index: int) -> NDArray[np.uint8]:
        """The truth of the exported image at ``index`` to look at, ``(H, W, 3)``: a mask, or an alpha in greys."""
        return truth_image(self.run, self.images[index])

    def metrics(self) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
        """The run's numbers: the step of each line, and for each name its values; NaN where a line has none."""
        lines = _lines(self.run)
        columns = {name: np.array([_number(line.get(name), math.nan) for line in lines]) for name in _names(lines)}
        return np.array([line["step"] for line in lines], np.int64), columns

    def scalars(self) -> Iterator[tuple[str, int, float]]:
        """Each number of the run's metrics, including NaN and infinities: its name, the step, the value."""
        lines = _lines(self.run)
        for name in _names(lines):
            for line in lines:
                value = _number(line.get(name))
                if value is not None:
                    yield name, line["step"], value


def _lines(run: StoredRun) -> list[dict[str, Any]]:
    """The lines of a run's metrics whose step can be exported; of each class as ``iou NAME``."""
    return [_flat(line, run) for line in run.metrics() if 0 <= line["step"] < 2**63]


def _flat(line: dict[str, Any], run: StoredRun) -> dict[str, Any]:
    """A line of metrics with a number, not a list, for each class."""
    by_class = class_metrics(line)
    count = max(map(len, by_class.values()), default=0)
    names = [run.info.data.class_name(label) for label in range(count)]
    names = [name if names.count(name) == 1 else f"{name} {label}" for label, name in enumerate(names)]
    numbers = {
        f"{metric} {name}": value
        for metric, values in by_class.items()
        for name, value in zip(names, values, strict=False)
        if value is not None
    }
    return {key: value for key, value in line.items() if key != CLASS_KEY or not by_class} | numbers


def _names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the numbers in the lines."""
    names = dict.fromkeys(key for line in lines for key in line if key != "step")
    return [name for name in names if any(_number(line.get(name)) is not None for line in lines)]


def _number(value: object, otherwise: float | None = None) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return otherwise
    try:
        return float(value)
    except OverflowError:
        return otherwise


def _left_out(run: StoredRun) -> Iterator[str]:
    """Notes on what of a run cannot be exported, one sentence each."""
    yield from (f"left out {name} ({reason})" for name, reason in run.broken.items())
    if run.info.predictions is not None:
        yield "left out the predictions, which are no maps: run.prediction(step) reads them"
    lines, every = _lines(run), run.metrics()
    names = dict.fromkeys(key for line in lines for key in line if key != "step")
    if texts := [name for name in names if name not in _names(lines)]:
        yield f"left out of the metrics, not representable as floats: {', '.join(texts)}"
    if len(lines) < len(every):
        yield f"left out {len(every) - len(lines)} lines of the metrics: their steps are not whole numbers from 0"


def select(
    run: StoredRun,
    *,
    layers: Sequence[str] = (),
    kinds: Sequence[str] = (),
    steps: Sequence[int] | None = None,
    images: Sequence[int] | None = None,
    call: int | None = None,
    drawing: Drawing = Drawing(),
) -> ExportSelection:
    """Select layers, kinds, steps, images and calls of a run; an empty sequence, or None, selects all.

    Raises:
        FadevizError: if a layer, kind, step, image or call was not recorded.
    """
    shown = common_steps([run], steps)
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
    layers = [run.find_layer(layer) for layer in layers]
    for layer in layers:
        for kind in kinds or run.layers[layer]:
            run.check(layer, kind, call or 0)
    count = _observed_images(run, shown)
    numbers = tuple(range(count)) if images is None else tuple(sorted(set(images)))
    for number in numbers:
        if not 0 <= number < count:
            raise FadevizError(f"no image {number} in {run.address}: there are {count}, from 0 to {count - 1}")
    if not numbers:
        raise FadevizError(f"no images of {run.address} were asked for: there are {count}")
    parts: list[Part] = []
    notes = [run.lost] if run.lost else []
    without: list[str] = []
    for layer, recorded in run.layers.items():
        for kind in recorded:
            if (layers and layer not in layers) or (kinds and kind not in kinds):
                continue
            calls = run.calls(layer, kind)
            if call is not None and call not in calls:
                without.append(layer)
                continue
            for number in calls if call is None else [call]:
                maps = run.maps(layer, kind, steps=shown, call=number)
                kept = (0,) if kind == "constant" else tuple(n for n in numbers if n < maps.shape[1])
                if kept:
                    parts.append(Part(maps, kept))
                elif maps.call == (call or 0):
                    notes.append(f"no {kind} of {layer}: it was not recorded of the images asked for")
    if without:
        left_out = ", ".join(dict.fromkeys(without))
        notes.append(f"left out {left_out}: no call {call}. Without call=..., all calls are exported")
    if not parts:
        for kind in kinds:
            run.default_layer(kind)  # raises with a list of what was recorded
        if without:
            raise FadevizError(
                f"{run.address} has no call {call} of any layer. List the calls: fadeviz info {run.address}"
            )
        raise FadevizError(f"{run.address}: nothing to export. {'; '.join(notes)}. Choose other images=...")
    names = tuple(map(run.info.observation.name_of, numbers))
    return ExportSelection(run, shown, numbers, names, tuple(parts), (*_left_out(run), *notes), drawing)


def _observed_images(run: StoredRun, steps: Sequence[int]) -> int:
    """The number of observed images, or of images with maps if the run has lost them."""
    if not run.lost:
        return len(run.observation[0])
    return max(run.maps(layer, kind, steps=steps[:1]).shape[1] for layer, kinds in run.layers.items() for kind in kinds)


def safe_name(name: str) -> str:
    """A name as one part of a path: what could lead out of a folder, hide a file or break a name is percent-encoded.

    Example:
        >>> safe_name("decoder.3.upsample"), safe_name("../../x"), safe_name("..")
        ('decoder.3.upsample', '%2E.%2F..%2Fx', '%2E.')
    """
    encoded = quote(name, safe=" ", errors="replace")
    if encoded[:1] in (".", "_", "~", " ") or encoded == "zarr.json":  # hidden, or reserved by Zarr
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    if len(encoded) > 150:
        # Still one name for each: file systems hold 255 bytes.
        import hashlib

        encoded = f"{encoded[:120]}%{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:16]}"
    return encoded or "%"


@dataclass(frozen=True)
class MapImages:
    """A map over training, as images.

    Attributes:
        layer: dotted module name.
        kind: a name in ``KINDS``.
        name: layer, kind, image and channel, separated by ``/``; safe as a path.
        sequence: the maps, and the same within the range of values.
        colormap: a colour map's name.
    """

    layer: str
    kind: str
    name: str
    sequence: FrameSequence
    colormap: str

    def frames(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Each step with its image ``(H, W, 3)`` uint8: every cell of the map a square of whole pixels."""
        scale = max(1, round(_TILE / self.sequence.unit.shape[-1]))
        for step, unit in zip(self.sequence.steps, self.sequence.unit, strict=True):
            yield step, colorize(unit, self.colormap).repeat(scale, axis=0).repeat(scale, axis=1)


def draw(selection: ExportSelection) -> Iterator[MapImages]:
    """The maps of a selection as images, one sequence after the other; of channels the representative ones."""
    for part in selection.parts:
        for image in part.images:
            maps = MapSelection(
                layer=part.layer,
                kind=part.kind,
                image=image,
                channels=CHANNELS_DRAWN,
                normalize=selection.drawing.normalize,
                steps=selection.steps,
                call=part.maps.call,
            )
            for sequence in select_frames([selection.run], maps):
                name = f"{safe_name(part.layer)}/{part.kind}"
                if part.maps.call:
                    name += f"/call {part.maps.call}"
                if part.kind != "constant":  # of no image
                    name += f"/{selection.label(image)}"
                if sequence.channel is not None:
                    name += f"/channel {sequence.channel}"
                yield MapImages(part.layer, part.kind, name, sequence, selection.drawing.colormap)


def undrawn(selection: ExportSelection, cells: int) -> tuple[str, ...]:
    """Notes on what :func:`draw` leaves out or marks, one sentence each; ``cells`` of all maps are not finite."""
    many = {
        part.kind: part.shape[2]
        for part in selection.parts
        if part.kind in CHANNEL_KINDS and part.shape[2] > CHANNELS_DRAWN
    }
    notes = [
        f"{kind}: at most {CHANNELS_DRAWN} of {count} channels of an image are drawn, the representative ones; "
        "npz and zarr include all"
        for kind, count in many.items()
    ]
    return (*notes, *([f"{cells} cells are NaN or infinite; they are painted magenta"] if cells else []))
