"""Export to Weights & Biases, offline: a run folder on disk, which ``wandb sync`` uploads."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..errors import FadevizError, MissingExtra
from .places import new_folder
from .selection import ExportSelection, draw, undrawn
from .tensorboard_log import as_png, observed, scalars

_OURS = re.compile(r"wandb/(debug[^/]*\.log|latest-run|offline-run-[0-9_]+-fadeviz-[^/]+/.+)")
_MARK = re.compile(r"wandb/offline-run-[0-9_]+-fadeviz-[^/]+/run-fadeviz-[^/]+\.wandb")

_SECONDS = 120.0
"""Seconds that W&B may take, in addition to the time for each image."""


def write_wandb(selection: ExportSelection, out: Path, *, overwrite: bool = False) -> tuple[str, ...]:
    """Write a selection as an offline W&B run, in a process of its own: no login, no network, no files at home.

    Keys are ``LAYER/KIND/IMAGE`` for images, ``observed/IMAGE`` for what was observed and ``metrics/NAME`` for
    scalars, at the training's steps; the run's config is run.json. The W&B run is called by the fadeviz run's id, so
    that what is sent twice is one run there. W&B puts the time into names and files: other bytes each time.

    Returns:
        Notes; the last explains how to upload it.

    Raises:
        FadevizError: if wandb is not installed, fails or does not end, or an existing folder must not be replaced.
    """
    # Looked for, not imported: the process below imports it. A folder called wandb, as W&B leaves, has no origin.
    spec = importlib.util.find_spec("wandb") if sys.modules.get("wandb", True) else None
    if spec is None or spec.origin is None:
        raise MissingExtra("wandb", "exporting to wandb needs wandb, which is not installed")
    with (
        new_folder(out, _OURS, _MARK, overwrite=overwrite) as partial,
        tempfile.TemporaryDirectory(prefix="fadeviz-wandb-") as scratch,
    ):
        lines, cells = _draw_all(selection, Path(scratch))
        run_id = "fadeviz-" + (re.sub(r"[^A-Za-z0-9_-]", "-", selection.run.run_id)[:40] or "run")
        (Path(scratch) / "run.json").write_text(
            json.dumps(
                {"id": run_id, "name": selection.run.title, "config": selection.run.info.to_dict(), "lines": lines}
            )
        )
        _log(Path(scratch), partial, _SECONDS + 0.1 * sum(len(line["images"]) for line in lines))
        _tidy(partial / "wandb")
    how = f"nothing was sent. Send it: wandb sync {shlex.quote(str(out))}/wandb/offline-run-*"
    return (*selection.notes, *undrawn(selection, cells), how)


def _draw_all(selection: ExportSelection, folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Write every image to ``folder``; return one line per step, since W&B requires steps in order.

    Also returns how many cells of all maps are not finite.
    """
    cells = 0
    lines: dict[int, dict[str, Any]] = {}

    def line(step: int) -> dict[str, Any]:
        return lines.setdefault(step, {"step": step, "scalars": {}, "images": {}})

    def keep(step: int, key: str, png: bytes) -> None:
        file = folder / f"{hashlib.sha256(png).hexdigest()[:32]}.png"
        file.write_bytes(png)
        line(step)["images"][key] = file.name

    for name, step, value in scalars(selection):
        line(step)["scalars"][f"metrics/{name}"] = value
    for name, pixels in observed(selection):
        keep(0, f"observed/{name}", as_png(pixels))
    for maps in draw(selection):
        cells += maps.sequence.non_finite
        for step, pixels in maps.frames():
            keep(step, maps.name, as_png(pixels))
    return [lines[step] for step in sorted(lines)], cells


def _log(scratch: Path, out: Path, seconds: float) -> None:
    # Another process: W&B starts a service, hooks signals and exit, and may already serve a training in this one.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    variables = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(out),
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        **{f"WANDB_{what}_DIR": str(scratch / what) for what in ("CACHE", "CONFIG", "DATA", "ARTIFACT")},
    }
    # -P: the script's own folder, with modules of ours, is not searched for imports.
    command = [sys.executable, "-P", str(Path(__file__).with_name("wandb_process.py")), str(scratch / "run.json")]
    with (scratch / "log").open("w+b") as log:
        process = subprocess.Popen(
            command, cwd=out, env=kept | variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise FadevizError(f"wandb did not end within {seconds:.0f} s: nothing was written. Try again") from None
        finally:
            process.kill()  # its service ends when it does
            process.wait()
        if status:
            log.seek(0)
            lines = log.read().decode("utf-8", "replace").strip().splitlines()
            raise FadevizError(
                f"wandb failed: {lines[-1] if lines else f'exit {status}'}. Nothing was written. "
                "Check its installation: python -c 'import wandb'"
            )


def _tidy(folder: Path) -> None:
    # What is only of use where the process ran: its own journals name a folder that is gone.
    for journal in [*folder.glob("debug*.log"), *folder.glob("offline-run-*/logs"), *folder.glob("offline-run-*/tmp")]:
        if journal.is_dir() and not journal.is_symlink():
            shutil.rmtree(journal)
        else:
            journal.unlink()
