"""manifest.json: the trials of a sweep's folder and the status of each.

Only the process that runs the sweep writes the file, and replaces it as a whole. In the file the trials are called
``runs``; each has the keys ``name``, ``folder``, ``operator``, ``seed``, ``settings`` and ``status``.
"""

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
from .plan import SweepPlan, Trial

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the manifest's format; newer versions are refused."""

TRIAL_SETTINGS = ("upsampler", "labels", "seed")
"""The settings in which the trials of a sweep differ."""


@dataclass
class Manifest:
    """The content of manifest.json: the shared settings, and each trial's entry by its name."""

    path: Path
    base: RunConfig
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def plan(self) -> SweepPlan:
        """The plan of all trials that were ever part of this sweep."""
        return SweepPlan(self.base, tuple(Trial(entry["operator"], entry["seed"]) for entry in self.runs.values()))

    def enter(self, trial: Trial, config: RunConfig) -> None:
        """Add a trial as ``planned``, unless it is there already."""
        if trial.name in self.runs:
            return
        settings = {name: getattr(config, name) for name in TRIAL_SETTINGS}
        entry = {"folder": trial.name, "operator": trial.operator, "seed": trial.seed, "settings": settings}
        self.runs[trial.name] = {**entry, "status": "planned"}

    def set(self, trial: Trial, status: str, **more: object) -> bool:
        """Set a trial's status; returns whether its entry changed. Nothing is written before :meth:`write`."""
        entry = self.runs[trial.name]
        kept = {key: entry[key] for key in ("folder", "operator", "seed", "settings")}
        changed = {**kept, "status": status, **{key: value for key, value in more.items() if value}}
        self.runs[trial.name] = changed
        return changed != entry

    def update_killed(self) -> None:
        """Update trials that a killed sweep left as ``running``; only for the sweep that holds the folder's lock."""
        for name, entry in self.runs.items():
            if entry.get("status") == "running" and not entry.get("job"):
                entry["status"] = _run_status(self.path.parent, name, entry, only_sweep=True).status

    def job(self, trial: Trial) -> str:
        """The scheduler's number of the last known job of this trial; empty if it has none."""
        entry = self.runs[trial.name]
        job = str(entry.get("job", "")) if entry.get("status") in ("queued", "running") else ""
        return job if re.fullmatch(r"[0-9_]*", job) else ""  # it becomes a part of file names

    def write(self) -> None:
        """Replace the file."""
        settings = {name: value for name, value in settings_of(self.base).items() if name not in TRIAL_SETTINGS}
        # One line per trial instead of indented text: the file is written after every change, and may have thousands.
        runs = ",\n".join(
            "    " + json.dumps({"name": name, **entry}, ensure_ascii=False) for name, entry in self.runs.items()
        )
        shared = json.dumps(settings, indent=2, ensure_ascii=False).replace("\n", "\n  ")
        text = f'{{\n  "format": {FORMAT},\n  "settings": {shared},\n  "runs": [\n{runs}\n  ]\n}}\n'
        # Lone surrogates, as in a path that is not UTF-8, have to be escaped; JSON's escapes are Python's.
        write_whole(self.path, text.encode(errors="backslashreplace"), named=False)


def read_manifest(path: Path) -> Manifest | None:
    """Read the file; None if it does not exist.

    Raises:
        FadevizError: if the file is damaged, or of a newer version.
    """
    remedy = "Delete it: the runs are kept, and the same command finds them again"
    try:
        content = json.loads(read_regular(path).decode())
        version, runs, settings = int(content["format"]), list(content["runs"]), dict(content["settings"])
        entries = {str(entry.pop("name")): {**entry, "seed": int(entry["seed"])} for entry in runs}
        for name, entry in entries.items():
            dict(entry["settings"])
            if not name == entry["folder"] == Trial(entry["operator"], entry["seed"]).name:
                raise ValueError(f"the name of the run {name!r} does not match its operator and seed")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FadevizError(f"{path} is damaged ({type(error).__name__}: {error}). {remedy}") from error
    if version > FORMAT:
        raise FadevizError(
            f"{path} has format {version}, this fadeviz reads up to {FORMAT}. Upgrade: pip install -U fadeviz"
        )
    first = next(iter(entries.values()), {}).get("settings", {})  # the shared settings are valid with an operator only
    upsampler = {"upsampler": first["upsampler"]} if "upsampler" in first else {}
    return Manifest(path, config_from({**settings, **upsampler}, str(path), remedy), entries)


class RunStatus(NamedTuple):
    """The status of one trial of a sweep, from its own folder."""

    name: str
    status: str
    """``planned``, ``queued``, ``running``, ``finished``, ``failed``, ``interrupted``, or ``stopped``: its process
    exited without reporting a result."""
    step: int
    """The last step according to run.json."""
    message: str
    """Why it failed, or where it was interrupted."""


def read_status(out: str | Path) -> list[RunStatus]:
    """The status of each trial of the sweep in the folder ``out``, whether the sweep is active or was killed.

    Raises:
        FadevizError: if there is no sweep in ``out``, or its manifest is damaged.
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
    """The plan of the sweep in the folder ``out``; None if there is no sweep.

    Raises:
        FadevizError: if its manifest is damaged, or of a newer version.
    """
    manifest = read_manifest(Path(out) / MANIFEST)
    return None if manifest is None else manifest.plan


__all__ = ["FORMAT", "MANIFEST", "TRIAL_SETTINGS", "Manifest", "RunStatus", "read_manifest", "read_plan", "read_status"]
