"""The contract of an export target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .selection import ExportSelection


class Write(Protocol):
    """Writes a selection of a run, completely or not at all."""

    def __call__(self, selection: ExportSelection, out: Path, *, overwrite: bool = False) -> tuple[str, ...]:
        """Write ``selection`` to ``out``.

        Args:
            selection: layers, kinds, images and steps of a run, read one step at a time or drawn as images.
            out: the file or folder to be made; :func:`~fadeviz.export.places.new_file` and
                :func:`~fadeviz.export.places.new_folder` make it.
            overwrite: replace an earlier export of the same kind.

        Returns:
            Notes for the user, one sentence each; at least ``selection.notes``.

        Raises:
            FadevizError: if a library is not installed, or something at ``out`` must not be replaced.
        """


@dataclass(frozen=True)
class ExportTarget:
    """A row of the table.

    Attributes:
        write: writes a selection.
        help: a line for ``fadeviz export --help``.
        draws: whether maps are drawn as images, in 256 colours, according to ``selection.drawing``; otherwise they are
            written as recorded, bit for bit.
    """

    write: Write
    help: str
    draws: bool = False


__all__ = ["ExportTarget", "Write"]
