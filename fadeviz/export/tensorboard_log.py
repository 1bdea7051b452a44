"""Export to TensorBoard: an event file with the maps as images and the metrics as scalars."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .places import needs, new_folder
from .selection import ExportSelection, draw, safe_name, undrawn

SHOWN = 10
"""Number of images of a tag that TensorBoard keeps by default, a random sample."""

_FILE = "events.out.tfevents.0000000000.fadeviz"
_OURS = re.compile(re.escape(_FILE))


def write_tensorboard(selection: ExportSelection, out: Path, *, overwrite: bool = False) -> tuple[str, ...]:
    """Write a selection as a TensorBoard log folder: the same maps, the same bytes.

    Tags are ``LAYER/KIND/IMAGE`` for images, ``observed/IMAGE`` for what was observed, and ``metrics/NAME`` for
    scalars, at the training's steps. Wall time is the step in seconds: it is not known of each map, and would make
    other bytes each time.

    Returns:
        Notes; one explains how to see all steps where TensorBoard would show a sample.

    Raises:
        FadevizError: if TensorBoard is not installed, or an existing folder must not be replaced.
    """
    with needs("tensorboard"):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    cells = 0

    def image(step: int, tag: str, pixels: NDArray[np.uint8]) -> Any:
        encoded = Summary.Image(
            height=pixels.shape[0], width=pixels.shape[1], colorspace=3, encoded_image_string=as_png(pixels)
        )
        return Event(wall_time=step, step=step, summary=Summary(value=[Summary.Value(tag=tag, image=encoded)]))

    def scalar(step: int, tag: str, value: float) -> Any:
        return Event(wall_time=step, step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))

    with new_folder(out, _OURS, _OURS, overwrite=overwrite) as partial, (partial / _FILE).open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=0, file_version="brain.Event:2").SerializeToString(deterministic=True))
        for name, step, value in scalars(selection):
            writer.write(scalar(step, f"metrics/{name}", value).SerializeToString(deterministic=True))
        for name, pixels in observed(selection):
            writer.write(image(0, f"observed/{name}", pixels).SerializeToString(deterministic=True))
        for maps in draw(selection):
            cells += maps.sequence.non_finite
            for step, pixels in maps.frames():
                writer.write(image(step, maps.name, pixels).SerializeToString(deterministic=True))
    notes = selection.notes + undrawn(selection, cells)
    if len(selection.steps) > SHOWN:
        notes += (
            f"TensorBoard shows {SHOWN} of the {len(selection.steps)} steps by default; to see all: "
            f"tensorboard --logdir {shlex.quote(str(out))} --samples_per_plugin images={len(selection.steps)}",
        )
    return notes


def scalars(selection: ExportSelection) -> Iterator[tuple[str, int, float]]:
    """Every number of the run's metrics, including NaN and infinities: a name that is safe in a path, step, value."""
    return ((safe_name(name), step, value) for name, step, value in selection.scalars())


def observed(selection: ExportSelection) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Each observed image beside its truth, ``(H, 2 W, 3)`` uint8, with a name that is safe to be a path."""
    for index, image in enumerate(selection.observation().get("images", ())):
        yield selection.label(selection.images[index]), np.concatenate([image, selection.truth(index)], axis=1)


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels ``(H, W, 3)`` uint8 as a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
