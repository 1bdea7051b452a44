"""The view of a page as a figure or an animation, drawn by the library as its commands do."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import FadevizError, unknown_name
from ..render.animation import write_animation
from ..render.grid import write_grid
from ..render.selection import FigureContent, MapSelection
from ..storage.stored_run import StoredRun

FORMATS = {
    "png": "image/png",
    "pdf": "application/pdf",
    "svg": "image/svg+xml",
    "gif": "image/gif",
    "apng": "image/apng",
    "webp": "image/webp",
    "mp4": "video/mp4",
}
"""The formats by the ending of the file."""

_GRIDS = ("png", "pdf", "svg")

_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Drawing:
    """A file to download.

    Attributes:
        data: its bytes.
        name: its name, made of plain characters.
        notes: notes on what was omitted or marked.
    """

    data: bytes
    name: str
    notes: tuple[str, ...]


def draw(
    runs: Sequence[StoredRun],
    selection: MapSelection,
    ending: str,
    colormap: str,
    content: FigureContent = FigureContent(),
) -> Drawing:
    """Draw runs as ``fadeviz grid`` or ``fadeviz animate`` does.

    Args:
        runs: the runs.
        selection: the maps.
        ending: a name in ``FORMATS``.
        colormap: the name of a colour map.
        content: what is shown of the maps.

    Raises:
        FadevizError: if there is no such format, or the maps cannot be drawn.
    """
    if ending not in FORMATS:
        raise unknown_name("format", ending, FORMATS)
    write = write_grid if ending in _GRIDS else write_animation
    with tempfile.TemporaryDirectory(prefix="fadeviz-") as folder:
        file = Path(folder) / f"fadeviz.{ending}"
        with _one_at_a_time:  # each takes a core and, of long runs, some memory
            notes = write(runs, str(file), selection, colormap=colormap, content=content)
        try:
            return Drawing(file.read_bytes(), f"fadeviz_{selection.kind}.{ending}", tuple(notes))
        except OSError as error:
            raise FadevizError(f"the figure cannot be read: {error.strerror or error}") from error


__all__ = ["FORMATS", "Drawing", "draw"]
