"""The argument that names a run: a folder of this machine, or an address such as s3://bucket/run."""

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

__all__ = ["RUN"]
