"""Runs as a user gives them: opened already, or by the path or address of their folder."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .stored_run import StoredRun

RunLike = StoredRun | str | os.PathLike[str]
"""A run that was opened, or the path or address of its folder."""


def stored_runs(runs: RunLike | Sequence[RunLike]) -> list[StoredRun]:
    """The runs, those given by path or address opened; a single one as a list of one.

    Raises:
        FadevizError: under the same conditions as :class:`StoredRun`.
    """
    several = [runs] if isinstance(runs, StoredRun | str | os.PathLike) else runs
    return [run if isinstance(run, StoredRun) else StoredRun(run) for run in several]


__all__ = ["RunLike", "stored_runs"]
