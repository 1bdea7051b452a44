"""An option whose values may come from other installed packages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from fadeviz import plugins


class InstalledOption(click.Option):
    """An option whose help also lists the names that other packages register under an entry-point group."""

    def __init__(self, declarations: Sequence[str], *, group: str, **options: Any) -> None:
        self.group = group
        super().__init__(declarations, **options)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """See :class:`click.Option`."""
        record = super().get_help_record(ctx)
        names = dict.fromkeys(point.name for point in plugins.entry_points_of(self.group))
        if record is None or not names:
            return record
        return record[0], f"{record[1]}  From other packages: {', '.join(names)}."


__all__ = ["InstalledOption"]
