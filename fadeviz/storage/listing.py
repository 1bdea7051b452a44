"""Many runs at a glance: what each is, how far it is, and its last metrics, without opening its snapshots."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FadevizError, brief, printable
from .files import METRICS_LIMIT, open_regular
from .metrics import METRICS
from .snapshots import STEP_FILE
from .stored_run import StoredRun

_TAIL = 2**18
"""Bytes at the end of a metrics.jsonl in which the last metrics are looked for."""


@dataclass(frozen=True)
class RunEntry:
    """A run as a line of a list.

    Attributes:
        place: its folder, relative to the one that is listed.
        run_id: its id; empty if it cannot be opened.
        name: its operator, or what it is called otherwise.
        title: the operator as papers write it.
        network: the network as papers write it.
        data: the data set.
        seed: the seed of the training.
        status: ``running``, ``recording``, ``finished``, ``interrupted``, ``failed``, ``stopped`` (its process ended
            without reporting a result), or ``damaged`` if it cannot be opened.
        message: the reason for an early end, or why it cannot be opened.
        step: the last optimiser step that is known; None before the first snapshot.
        last_step: the last step of its schedule.
        snapshots: the number of snapshot files.
        scheduled: the number of scheduled snapshots.
        metrics: the loss at the last step where it was logged, and the metrics of the last test, by name.
        changed: time of the last change in seconds since 1970; 0 if unknown.
    """

    place: str
    run_id: str = ""
    name: str = ""
    title: str = ""
    network: str = ""
    data: str = ""
    seed: int | None = None
    status: str = ""
    message: str = ""
    step: int | None = None
    last_step: int | None = None
    snapshots: int = 0
    scheduled: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    changed: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; numbers that are not finite are None, as JSON has none."""
        metrics = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        return {**self.__dict__, "metrics": metrics}


def find_runs(folder: Path) -> list[Path]:
    """Folders with a run.json, sorted; a run's own subfolders, hidden folders and symlinks are not searched."""
    folders = []
    for place, inside, files in os.walk(folder):
        if "run.json" in files:
            folders.append(Path(place))
            inside.clear()
        inside[:] = sorted(name for name in inside if not name.startswith("."))
    return sorted(folders)


def describe(run: StoredRun, place: str) -> RunEntry:
    """The entry of a run: from its run.json, the names of its snapshots, and the end of its metrics.jsonl.

    Args:
        run: the run, in a folder of this machine.
        place: how the list calls it.
    """
    info = run.info
    steps = snapshot_steps(run.path)
    logged, metrics = _last_metrics(run.path / "metrics.jsonl")
    known = [step for step in (max(steps, default=None), logged, info.last_step) if step is not None]
    return RunEntry(
        place=printable(place),
        run_id=run.run_id,
        name=run.name,
        title=run.title,
        network=info.network_title or info.network or "",
        data=info.data.name or info.config.data,
        seed=info.config.seed,
        status=run.status,
        message=info.message or "",
        step=max(known, default=None),
        last_step=max(info.schedule, default=None),
        snapshots=len(steps),
        scheduled=len(info.schedule),
        metrics={**metrics, **{name: value for name, value in info.result.items() if name in METRICS}},
        changed=max((time for _, _, time in stamp(run.path)), default=0) / 1e9,
    )


def damaged(error: FadevizError | OSError, place: str) -> RunEntry:
    """The entry of a run that cannot be opened."""
    return RunEntry(place=printable(place), name=printable(os.path.basename(place)), status="damaged",
                    message=printable(str(error)))  # fmt: skip


def stamp(folder: Path) -> tuple[tuple[int, int, int], ...]:
    """What changes when something is recorded: inode, size and time in ns of run.json, metrics.jsonl and snapshots."""
    marks = []
    for name in ("run.json", "metrics.jsonl", "snapshots"):
        try:
            status = os.stat(f"{folder}/{name}")  # a Path would take longer than the rest
        except OSError:
            continue
        marks.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(marks)


def snapshot_steps(folder: Path) -> list[int]:
    """The steps of a run's snapshot files by their names alone, increasing."""
    try:
        names = os.listdir(folder / "snapshots")
    except OSError:
        return []
    return sorted(int(match[1]) for name in names if (match := STEP_FILE.fullmatch(name)))


def _last_metrics(path: Path) -> tuple[int | None, dict[str, float]]:
    """The last logged step, and the last values of the loss and of a test's metrics; of a long file, near its end."""
    try:
        with open_regular(path, METRICS_LIMIT) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read(_TAIL).split(b"\n")
    except OSError:
        return None, {}
    last, found = None, {}
    for line in reversed(lines):  # the first one may be cut off, and is then no JSON
        try:
            values = json.loads(line.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
        if not isinstance(values, dict) or not _is_step(values.get("step")):
            continue
        last = values["step"] if last is None else last
        for name in ("loss", *METRICS):
            value = values.get(name)
            if name not in found and isinstance(value, int | float) and not isinstance(value, bool):
                found[name] = float(value) if abs(value) < 2**1000 else math.inf
        if len(found) > 1:
            break
    return last, found


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


# --- as text ----------------------------------------------------------------------------------------------------------

_WIDEST = 40
"""Most characters of a column, so that a long name shifts only its own line."""


def format_entries(entries: Sequence[RunEntry]) -> str:
    """The entries as a table of plain text, a line each.

    Example:
        >>> print(format_entries([RunEntry("a", title="FADE", status="finished", step=3, last_step=3, snapshots=4)]))
        run  operator  network  data  seed  status    step  snapshots  last metrics
        a    FADE                           finished  3/3   4
    """
    head = ("run", "operator", "network", "data", "seed", "status", "step", "snapshots", "last metrics")
    rows = [head, *(_cells(entry) for entry in entries)]
    widths = [min(_WIDEST, max(len(row[column]) for row in rows)) for column in range(len(head))]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _cells(entry: RunEntry) -> tuple[str, ...]:
    scheduled = "" if entry.scheduled in (0, entry.snapshots) else f"/{entry.scheduled}"
    return (
        entry.place,
        entry.title,
        entry.network,
        entry.data,
        "" if entry.seed is None else str(entry.seed),
        entry.status,
        "" if entry.step is None else f"{entry.step}{'' if entry.last_step is None else f'/{entry.last_step}'}",
        f"{entry.snapshots}{scheduled}" if entry.status != "damaged" else "",
        brief(entry.message, 120) if entry.status == "damaged" else format_metrics(entry.metrics),
    )


def format_metrics(metrics: Mapping[str, float]) -> str:
    """The metrics of an entry in one line: ``loss 0.412, mIoU 0.703``."""
    parts = [f"loss {metrics['loss']:.3g}"] if "loss" in metrics else []
    named: Iterable[tuple[str, float]] = ((name, value) for name, value in metrics.items() if name in METRICS)
    parts += [f"{METRICS[name].column} {METRICS[name].text(value)}" for name, value in named if METRICS[name].column]
    return ", ".join(parts)


__all__ = [
    "RunEntry", "damaged", "describe", "find_runs", "format_entries", "format_metrics", "snapshot_steps", "stamp",
]  # fmt: skip
