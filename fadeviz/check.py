"""Looking over a run folder: what is damaged, foreign or left over, and removing that alone."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from .errors import FadevizError
from .snapshots import Run, open_run, read_metrics, write_whole

_PARTIAL = re.compile(r"\..*\.partial.*")


@dataclass(frozen=True)
class Fault:
    """Something in a run folder that is not as it was written.

    Attributes:
        file: its path within the folder.
        what: what is wrong, in words.
        repair: what ``repair`` does about it; empty where nothing can be done.
    """

    file: str
    what: str
    repair: str = ""


def check_run(path: str | os.PathLike[str]) -> list[Fault]:
    """Read all of a run, and say what is wrong with it; an undamaged run gives an empty list.

    Every snapshot is read whole and compared with the checksums in its header (runs recorded before there were any have
    none, so that a flipped bit in a map goes unseen). Files that are nobody's are left alone and not mentioned.

    Raises:
        FadevizError: no run in this folder, or its run.json is damaged.
    """
    run = open_run(path)
    return list(_faults(run))


def repair_run(path: str | os.PathLike[str]) -> list[Fault]:
    """Remove what :func:`check_run` finds broken and can be removed: snapshots, left-overs, cut-off lines.

    Returns:
        What was repaired; what is left is said by another :func:`check_run`.

    Raises:
        FadevizError: as :func:`check_run`, or a file that cannot be removed.
    """
    run = open_run(path)
    repaired = [fault for fault in _faults(run) if fault.repair]
    for fault in repaired:
        file = run.path / fault.file
        try:
            if file.name == "metrics.jsonl":
                lines = read_metrics(file)
                write_whole(file, "".join(json.dumps(line) + "\n" for line in lines).encode())
            else:
                file.unlink()
        except OSError as error:
            raise FadevizError(f"cannot remove {file}: {error.strerror or error}. Remove it by hand") from error
    return repaired


def _faults(run: Run) -> Iterator[Fault]:
    yield from _left_over(run.path)
    observed = _observation_fault(run)
    if observed:
        yield observed
    for name, reason in run.broken.items():
        if name.startswith("step_"):
            yield Fault(f"snapshots/{name}", reason, "removed; resuming the run, or recording it again, brings it back")
    for step in run.steps:
        what = _snapshot_fault(run, step)
        if what:
            file = f"snapshots/step_{step:06d}.safetensors"
            yield Fault(file, what, "removed; resuming the run, or recording it again, brings it back")
    missing = sorted(set(run.info.get("schedule", [])) - set(run.steps))
    if missing and run.info.get("status") == "finished":
        steps = ", ".join(map(str, missing[:6])) + (" ..." if len(missing) > 6 else "")
        yield Fault("snapshots", f"scheduled steps without a whole snapshot: {steps}")
    metrics = run.path / "metrics.jsonl"
    if metrics.exists():
        total = len([line for line in metrics.read_bytes().split(b"\n") if line.strip()])
        lost = total - len(read_metrics(metrics))
        if lost:
            yield Fault("metrics.jsonl", f"{lost} of {total} lines are cut off or damaged", "those lines removed")


def _left_over(folder: Path) -> Iterator[Fault]:
    for parent in (folder, folder / "snapshots", folder / "checkpoints"):
        for file in sorted(parent.iterdir()) if parent.is_dir() else []:
            if _PARTIAL.fullmatch(file.name) and file.is_file():
                yield Fault(str(file.relative_to(folder)), "left over from a write that did not end", "removed")


def _observation_fault(run: Run) -> Fault | None:
    try:
        images, masks = run.observation
    except FadevizError:
        return Fault("observation.safetensors", "missing or damaged: figures cannot show the images")
    if images.ndim != 4 or images.shape[-1:] != (3,) or masks.shape != images.shape[:3]:
        return Fault("observation.safetensors", f"images {images.shape} and masks {masks.shape} do not fit together")
    return None


def _snapshot_fault(run: Run, step: int) -> str:
    file = run.path / "snapshots" / f"step_{step:06d}.safetensors"
    try:
        with safe_open(file, "np") as opened:
            sums = json.loads((opened.metadata() or {})["fadeviz"]).get("crc32", {})
            keys = set(opened.keys())
            wanted = {f"{layer}/0/{kind}" for layer, kinds in run.layers.items() for kind in kinds}
            for key in sorted(wanted - keys):
                return f"lacks {key}, which other snapshots have"
            for key in sorted(keys):
                value = np.ascontiguousarray(opened.get_tensor(key))
                if key in sums and zlib.crc32(value.tobytes()) != sums[key]:
                    return f"{key} is not what was written (checksum)"
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        return f"damaged: {error}"
    return ""
