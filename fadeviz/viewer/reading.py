"""What a page asks of one run: its steps and layers, single maps, the range of each step, and the observed images."""

from __future__ import annotations

import io
import math
import os
import threading
import time
import zlib
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from ..analysis.logged import logged_curves, shown_names
from ..errors import FadevizError, printable
from ..render.labels import truth_image, truth_name
from ..render.predictions import colours_of
from ..render.style import COLORS, operator_color
from ..report.contour import contour_path
from ..storage.listing import stamp
from ..storage.map_index import bare_name
from ..storage.snapshots import CHANNEL_KINDS, KINDS, open_tensors
from ..storage.stored_run import StoredRun
from .index import UNSETTLED, RunIndex

MAX_CELLS = 2**24
"""Most values of one map that are sent: 64 MB."""

_OPEN_RUNS = 64
"""Most runs that are kept open."""

_FRESH = 0.3
"""Seconds for which a run that is being recorded need not be opened again, unless its folder looks different."""

_RANGES = 200_000
"""Most steps whose ranges are kept, over all sequences of maps: about 30 MB."""


class MapName(NamedTuple):
    """One map of a run at every step.

    Attributes:
        layer: dotted name, as it is recorded.
        kind: a name in ``KINDS``.
        call: the call of the layer, from 0.
        image: index of the observed image.
        channel: index of the channel, for ``CHANNEL_KINDS``; None otherwise.
    """

    layer: str
    kind: str
    call: int = 0
    image: int = 0
    channel: int | None = None


_Range = tuple[str, MapName, tuple[str, MapName] | None]
"""A run and its map, and what is subtracted from it."""


@dataclass
class _Open:
    """An open run, the look of its folder when it was opened, and what was computed from it."""

    run: StoredRun
    stamp: tuple[tuple[int, int, int], ...]
    opened: float  # time.monotonic() of that
    steps: dict[int, str]  # of each step what tells its file from another one


class RunReader:
    """Reads the runs of an index. Open runs and ranges are kept, up to a fixed number; maps and images are not."""

    def __init__(self, index: RunIndex) -> None:
        """Nothing is opened before it is asked for."""
        self.index = index
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._ranges: OrderedDict[
            tuple[str, MapName, tuple[str, MapName] | None], dict[int, tuple[str, float, float]]
        ] = OrderedDict()

    def run(self, token: str) -> StoredRun:
        """The run as its folder is now, opened for the caller alone: what it loads goes with it.

        Raises:
            FadevizError: if there is none, it leads elsewhere, or it cannot be opened.
        """
        return self._opened(token).run.reopened()

    def details(self, token: str) -> dict[str, Any]:
        """Steps, layers and settings of a run, as JSON values."""
        opened = self._opened(token)
        run = opened.run
        return {
            "id": token,
            "runId": run.run_id,
            "place": self.index.place(token),
            "title": run.title,
            "seed": run.info.config.seed,
            "colour": COLORS.index(operator_color(run.name)),  # that of the operator in all figures
            "network": run.info.network_title or run.info.network or "",
            "steps": [[step, version] for step, version in opened.steps.items()],
            "layers": _layers(run),
            "figureLayer": run.info.figure_layer or "",
            "predictions": run.info.predictions or "",
            "broken": [f"{name}: {reason}" for name, reason in run.broken.items()],
        }

    def images(self, token: str) -> dict[str, Any]:
        """The observed images of a run: names, sizes and contours, as JSON values."""
        run = self.run(token)
        if run.lost:
            return {"lost": run.lost, "images": [], "truth": ""}
        images, _ = run.observation
        entries = []
        for number, (image, inside) in enumerate(zip(images, run.foregrounds, strict=True)):
            entries.append(
                {
                    "name": run.info.observation.name_of(number),
                    "object": run.info.object_name(number),
                    "size": list(inside.shape),
                    "contour": contour_path(inside),
                    # Tells whether two runs observed the same image.
                    "digest": f"{zlib.crc32(image.tobytes()):08x}",
                }
            )
        return {"lost": "", "images": entries, "truth": truth_name(run)}

    def image(self, token: str, what: str, number: int) -> bytes:
        """An observed image, or its true mask or matte, as a PNG.

        Args:
            token: the run.
            what: ``image`` or ``truth``.
            number: index of the observed image.
        """
        run = self.run(token)
        if run.lost:
            raise FadevizError(run.lost)
        images, _ = run.observation
        if not 0 <= number < len(images):
            raise FadevizError(f"no image {number} in {run.address}: there are {len(images)}")
        return _png(images[number] if what == "image" else truth_image(run, number))

    def values(self, token: str, step: int, name: MapName) -> NDArray[np.float32]:
        """One map ``(h, w)`` as recorded.

        Raises:
            FadevizError: if there is none such, or it is too large.
        """
        return _read(self._opened(token).run, step, name)

    def ranges(self, token: str, name: MapName, less: tuple[str, MapName] | None = None) -> dict[str, list[Any]]:
        """The least and the greatest finite value at each step; None where nothing is finite, or it cannot be read.

        Args:
            token: the run.
            name: its map.
            less: the token of another run and a map of it: the range is that of the difference, at the steps of both.
        """
        opened = self._opened(token)
        steps, other = opened.steps, None
        if less is not None:
            other = self._opened(less[0])
            steps = {step: f"{own} {other.steps[step]}" for step, own in steps.items() if step in other.steps}
        key = (token, name, less)
        with self._lock:
            known = dict(self._ranges.get(key, {}))
        found: dict[int, tuple[str, float, float]] = {}
        for step, version in steps.items():
            if known.get(step, ("",))[0] == version:
                found[step] = known[step]
                continue
            low = high = math.nan
            with suppress(FadevizError):  # the map itself says what is wrong
                values: NDArray[np.floating[Any]] = _read(opened.run, step, name)
                if other is not None and less is not None:
                    values = _difference(values, _read(other.run, step, less[1]))
                finite = values[np.isfinite(values)]
                low, high = (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)
            found[step] = (version, low, high)
        with self._lock:
            self._ranges[key] = found
            self._ranges.move_to_end(key)
            while len(self._ranges) > 1 and sum(map(len, self._ranges.values())) > _RANGES:
                self._ranges.popitem(last=False)
        ends = [[None if math.isnan(one) else one for one in limits] for _, *limits in found.values()]
        return {"steps": list(found), "low": [low for low, _ in ends], "high": [high for _, high in ends]}

    def logged(self, token: str) -> dict[str, Any]:
        """The curves of what a run's training logged, at most 200 points of each, as JSON values."""
        curves = logged_curves([self._opened(token).run])
        names, left_out = shown_names([curves])
        return {
            "curves": {
                printable(name): {
                    "steps": list(curves[name].steps),
                    **{part: _or_none(getattr(curves[name], part)) for part in ("middle", "low", "high")},
                }
                for name in names
            },
            "leftOut": len(left_out),
        }

    def prediction(self, token: str, step: int, image: int) -> bytes:
        """What the model predicted for an image at a step, in the colours of the classes, as a PNG."""
        run = self._opened(token).run
        classes = run.prediction(step, image)
        colours, indices = colours_of([run], [classes])
        return _png(colours.palette[indices[classes]])

    def _opened(self, token: str) -> _Open:
        path = self.index.folder(token)
        now = stamp(path)
        with self._lock:
            known = self._open.get(token)
            fresh = known is not None and (_settled(now) or time.monotonic() - known.opened < _FRESH)
            if known is not None and known.stamp == now and fresh:
                self._open.move_to_end(token)
                return known
        run = StoredRun(path) if known is None else known.run.reopened()
        opened = _Open(run, now, time.monotonic(), {step: _version(run, step) for step in run.steps})
        with self._lock:
            self._open[token] = opened
            self._open.move_to_end(token)
            while len(self._open) > _OPEN_RUNS:
                self._open.popitem(last=False)
        return opened


def _settled(marks: tuple[tuple[int, int, int], ...]) -> bool:
    """Whether the last change is so long ago that it can hide no later one: see ``index.py``."""
    return time.time_ns() - max((changed for _, _, changed in marks), default=0) > UNSETTLED


def _version(run: StoredRun, step: int) -> str:
    """What tells a snapshot's file from the one that may take its place."""
    try:
        status = os.stat(run.file(f"snapshots/step_{step:06d}.safetensors"))
    except OSError:
        return "gone"
    return f"{zlib.crc32(f'{run.run_id} {status.st_ino} {status.st_size} {status.st_mtime_ns}'.encode()):08x}"


def _read(run: StoredRun, step: int, name: MapName) -> NDArray[np.float32]:
    maps = run.maps(name.layer, name.kind, image=name.image, channel=name.channel, steps=(step,), call=name.call)
    if len(maps.shape) != 3:
        raise FadevizError(f"{name.kind!r} maps have channels: name one with channel=...")
    if math.prod(maps.shape) > MAX_CELLS:
        raise FadevizError(f"a map of {maps.shape[1]}x{maps.shape[2]} is too large to view. Draw it: fadeviz grid")
    return maps[0]


def _difference(values: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The difference in float64, as a page computes it."""
    if values.shape != others.shape:
        raise FadevizError(f"maps of {values.shape} and {others.shape} have no difference")
    with np.errstate(invalid="ignore"):
        return np.subtract(values, others, dtype=np.float64)


def _layers(run: StoredRun) -> list[dict[str, Any]]:
    """Each layer with its kinds; of each kind the numbers of images and channels, and each call's height and width."""
    if not run.steps:
        return []
    found: dict[tuple[str, str], dict[str, Any]] = {}
    # As calls() does: a layer may start to run more often during training.
    for step in dict.fromkeys((run.steps[0], run.steps[-1])):
        for (layer, kind, call), shape in _shapes(run, step).items():
            entry = found.setdefault((layer, kind), {"images": shape[0], "channels": None, "calls": {}})
            entry["channels"] = shape[1] if kind in CHANNEL_KINDS else None
            entry["calls"].setdefault(str(call), list(shape[-2:]))
    order = list(run.info.layers)
    names = sorted({layer for layer, _ in found}, key=lambda n: (order.index(n) if n in order else len(order), n))
    return [
        {
            "name": name,
            "bare": bare_name(name),
            "kinds": {kind: found[name, kind] for kind in KINDS if (name, kind) in found},
        }
        for name in names
    ]


def _shapes(run: StoredRun, step: int) -> dict[tuple[str, str, int], tuple[int, ...]]:
    """The shapes of a snapshot's maps by layer, kind and call; what is no map is left out."""
    shapes = {}
    try:
        with open_tensors(run.file(f"snapshots/step_{step:06d}.safetensors")) as opened:
            for key in opened.keys():  # noqa: SIM118 - a safetensors handle is not a dict
                layer, _, rest = key.rpartition("/")
                layer, _, call = layer.rpartition("/")
                part = opened.get_slice(key)
                shape = tuple(part.get_shape())
                axes = 4 if rest in CHANNEL_KINDS else 3
                known = rest in KINDS and call.isascii() and call.isdigit() and len(call) < 6
                if known and part.get_dtype() == "F32" and len(shape) == axes and 0 not in shape:
                    shapes[layer, rest, int(call)] = shape
    except (SafetensorError, OSError):
        return {}
    return shapes


def _or_none(values: NDArray[np.float64]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=3)
    return file.getvalue()


__all__ = ["MAX_CELLS", "MapName", "RunReader"]
