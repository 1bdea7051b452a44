"""Kinds of arguments: a run, a folder of this machine or an address such as s3://bucket/run; numbers of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fadeviz.remote import is_address


class _RunPath(click.Path):
    """A path, or an address as it was typed: as a path it would lose a slash."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_address(value) else super().convert(value, param, ctx)


RUN = _RunPath(path_type=Path)
"""The type of RUN on the command line: gives a ``Path`` or, of an address, the text."""


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers of pictures, from 0, joined by commas."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):  # a default
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
            self.fail("numbers of pictures are needed, e.g. 0,2", param, ctx)
        return tuple(map(int, parts))


NUMBERS = _Numbers()
"""The type of such an option: gives a tuple."""

__all__ = ["NUMBERS", "RUN"]
