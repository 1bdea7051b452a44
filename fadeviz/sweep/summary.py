"""The status of a sweep's runs, in a few lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import printable
from .manifest import RunStatus, read_status


@dataclass(frozen=True, repr=False)
class SweepStatus:
    """The output of ``fadeviz info`` for a sweep; iterating gives the status of each run.

    Attributes:
        folder: the sweep's folder.
        runs: the status of each run.
    """

    folder: Path
    runs: tuple[RunStatus, ...]

    def __iter__(self) -> Iterator[RunStatus]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __str__(self) -> str:
        finished = sum(run.status == "finished" for run in self.runs)
        lines = [f"{self.folder}: a sweep, {finished} of {len(self.runs)} runs finished"]
        wide = max((len(run.name) for run in self.runs), default=0)
        remedy = f"its process ended without reporting a result. Resume with: fadeviz sweep --out {self.folder}"
        for run in self.runs:
            message = remedy if run.status == "stopped" else run.message
            lines.append(f"{run.name:{wide}}  {run.status:12}step {run.step}{', ' + message if message else ''}")
        return "\n".join(map(printable, lines))

    __repr__ = __str__


def sweep_status(out: str | Path) -> SweepStatus:
    """The status of each run of the sweep in the folder ``out``, whether the sweep is active or was killed.

    Raises:
        FadevizError: if there is no sweep, or its manifest is damaged.
    """
    return SweepStatus(Path(out), tuple(read_status(out)))


__all__ = ["SweepStatus", "sweep_status"]
