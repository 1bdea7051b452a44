"""manifest.json: what a sweep's folder has seen, and how each run stands; written whole, by the sweep's own process."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FadevizError
from ..experiment import RunConfig, config_from, settings_of
from ..storage.files import lock_is_free, read_regular, write_whole
from ..storage.stored_run import StoredRun
from .plan import Member, SweepPlan

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the manifest; a newer one is refused, not misread."""

OWN = ("upsampler", "labels", "seed")
"""The settings in which the runs of a sweep differ."""


@dataclass
class Manifest:
    """What manifest.json holds: the shared settings, and each run by its name with how it stands."""

    path: Path
    base: RunConfig
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def plan(self) -> SweepPlan:
        """All runs that the folder has seen."""
        return SweepPlan(self.base, tuple(Member(entry["operator"], entry["seed"]) for entry in self.runs.values()))

    def enter(self, member: Member, config: RunConfig) -> None:
        """Add a run, unless it is there."""
        if member.name in self.runs:
            return
        settings = {name: getattr(config, name) for name in OWN}
        entry = {"folder": member.name, "operator": member.operator, "seed": member.seed, "settings": settings}
        self.runs[member.name] = {**entry, "status": "planned"}

    def set(self, member: Member, status: str, **more: object) -> bool:
        """Note how a run stands; returns whether that is new. Nothing is written before :meth:`write`."""
        entry = self.runs[member.name]
        kept = {key: entry[key] for key in ("folder", "operator", "seed", "settings")}
        changed = {**kept, "status": status, **{key: value for key, value in more.items() if value}}
        self.runs[member.name] = changed
        return changed != entry

    def note_stopped(self) -> None:
        """Update what a killed sweep could not; only for the sweep that holds the folder's lock."""
        for name, entry in self.runs.items():
            if entry.get("status") == "running" and not entry.get("job"):
                entry["status"] = _run_status(self.path.parent, name, entry, only_sweep=True).status

    def job(self, member: Member) -> str:
        """The scheduler's number of the job that trains this run, as far as was known; empty where there is none."""
        entry = self.runs[member.name]
        job = str(entry.get("job", "")) if entry.get("status") in ("queued", "running") else ""
        return job if re.fullmatch(r"[0-9_]*", job) else ""  # it becomes a part of file names

    def write(self) -> None:
        """Replace the file."""
        settings = {name: value for name, value in settings_of(self.base).items() if name not in OWN}
        # A line a run, and no indented text: the file is written after every change, also with thousands of runs.
        runs = ",\n".join(
            "    " + json.dumps({"name": name, **entry}, ensure_ascii=False) for name, entry in self.runs.items()
        )
        shared = json.dumps(settings, indent=2, ensure_ascii=False).replace("\n", "\n  ")
        text = f'{{\n  "format": {FORMAT},\n  "settings": {shared},\n  "runs": [\n{runs}\n  ]\n}}\n'
        # Half a character, as in a path that is not UTF-8, has to be escaped; JSON's escapes are Python's.
        write_whole(self.path, text.encode(errors="backslashreplace"), named=False)


def read_manifest(path: Path) -> Manifest | None:
    """What the file holds; None where there is none.

    Raises:
        FadevizError: it is damaged, or of a newer version.
    """
    remedy = "Delete it: the runs are kept, and the same command finds them again"
    try:
        told = json.loads(read_regular(path).decode())
        version, runs, settings = int(told["format"]), list(told["runs"]), dict(told["settings"])
        entries = {str(entry.pop("name")): {**entry, "seed": int(entry["seed"])} for entry in runs}
        for name, entry in entries.items():
            dict(entry["settings"])
            if not name == entry["folder"] == Member(entry["operator"], entry["seed"]).name:
                raise ValueError(f"the run {name!r} is not called as it should be")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FadevizError(f"{path} is damaged ({type(error).__name__}: {error}). {remedy}") from error
    if version > FORMAT:
        raise FadevizError(
            f"{path} has format {version}, this fadeviz reads up to {FORMAT}. Upgrade: pip install -U fadeviz"
        )
    first = next(iter(entries.values()), {}).get("settings", {})  # settings are those of some operator
    own = {"upsampler": first["upsampler"]} if "upsampler" in first else {}
    return Manifest(path, config_from({**settings, **own}, str(path), remedy), entries)


class RunStatus(NamedTuple):
    """The status of a run of a sweep, from the run's own folder."""

    name: str
    status: str
    """``planned``, ``queued``, ``running``, ``finished``, ``failed``, ``interrupted``, or ``stopped``: its process
    ended without reporting a result."""
    step: int
    """The last step according to run.json."""
    message: str
    """Why it failed, or where it was interrupted."""


def read_status(out: str | Path) -> list[RunStatus]:
    """The status of each run of the sweep in the folder ``out``, whether the sweep is active or was killed.

    Raises:
        FadevizError: no sweep there, or its manifest is damaged.
    """
    manifest = read_manifest(Path(out) / MANIFEST)
    if manifest is None:
        raise FadevizError(f"{out} is not a sweep: it has no {MANIFEST}. Start one: fadeviz sweep --out {out} ...")
    return [_run_status(Path(out), name, entry) for name, entry in manifest.runs.items()]


def _run_status(out: Path, name: str, entry: Mapping[str, Any], *, only_sweep: bool = False) -> RunStatus:
    status, message = str(entry.get("status", "planned")), str(entry.get("message", ""))
    try:
        run = StoredRun(out / name)
    except FadevizError:
        # Its process may be about to start, unless the sweep is no longer active.
        gone = status == "running" and not entry.get("job") and (only_sweep or lock_is_free(out))
        return RunStatus(name, "stopped" if gone else status, 0, message)
    step = run.info.last_step or 0
    if run.status == "failed" and status == "failed":  # the manifest includes failures outside the training
        return RunStatus(name, status, step, message)
    if status == "queued" and run.status != "running":
        return RunStatus(name, status, step, "")
    return RunStatus(name, run.status, step, run.info.message or "")


def read_plan(out: str | Path) -> SweepPlan | None:
    """The plan of the sweep in the folder ``out``; None where there is none.

    Raises:
        FadevizError: its manifest is damaged, or of a newer version.
    """
    manifest = read_manifest(Path(out) / MANIFEST)
    return None if manifest is None else manifest.plan


__all__ = ["FORMAT", "MANIFEST", "OWN", "Manifest", "RunStatus", "read_manifest", "read_plan", "read_status"]
