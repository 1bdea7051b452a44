"""Types of arguments: a run, by its folder or its address; indices of images; names; files to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fadeviz.storage.remote import is_address


class _RunPath(click.Path):
    """A path, or an address kept as text: as a path it would lose a slash."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_address(value) else super().convert(value, param, ctx)


RUN = _RunPath(path_type=Path)
"""The type of RUN on the command line: a ``Path`` or, for an address, the text."""


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """Indices of images, from 0, joined by commas."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):  # a default
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
            self.fail("numbers of images are needed, e.g. 0,2", param, ctx)
        return tuple(map(int, parts))


NUMBERS = _Numbers()
"""The type of such an option: a tuple."""


class _Names(click.ParamType):  # type: ignore[type-arg]
    """Names, joined by commas."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):  # a default
            return value
        return tuple(part.strip() for part in str(value).split(","))


NAMES = _Names()
"""The type of such an option: a tuple."""


class Output(click.Path):
    """The name of a file or a folder to write, as a ``Path``; with ``text``, ``-`` stands for standard output.

    Write to it with :func:`write_text`. The other options are those of :class:`click.Path`.
    """

    def __init__(self, *, text: bool = False, **options: Any) -> None:
        super().__init__(allow_dash=text, **({"path_type": Path} | options))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See :class:`click.ParamType`."""
        if str(value) == "-" and not self.allow_dash:
            self.fail("standard output is not supported here. Give a file name (./- for a file named -)", param, ctx)
        return super().convert(value, param, ctx)


def write_text(path: Path, text: str) -> None:
    """Write text to a file, atomically, or to standard output if the name is ``-``."""
    from fadeviz.storage.files import write_whole

    if is_stdout(path):
        click.echo(text, nl=False)
    else:
        write_whole(path, text.encode())


def is_stdout(path: Path | None) -> bool:
    """Whether an option of the type ``Output(text=True)`` names standard output."""
    return path is not None and str(path) == "-"


__all__ = ["NAMES", "NUMBERS", "RUN", "Output", "is_stdout", "write_text"]
