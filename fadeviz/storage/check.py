"""Checking a run's folder for damaged, foreign and left-over files, and removing only those."""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from ..errors import FadevizError
from .files import METRICS_LIMIT, left_over, only_writer, read_regular, unreadable, write_whole
from .info import check_sum
from .measured import measured_faults
from .opening import RunLike
from .remote import is_address
from .snapshots import (
    files_of,
    may_be_removed,
    open_checkpoint,
    open_tensors,
    read_metrics,
    run_of_checkpoint,
)
from .stored_run import StoredRun, lost_snapshots

_Layout = frozenset[tuple[str, str, tuple[int, ...]]]
"""The content of a snapshot: names, number formats and shapes."""

_DAMAGED = (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError, MemoryError)
"""Errors of reading a damaged safetensors file, depending on where it is damaged."""


@dataclass(frozen=True)
class Fault:
    """A difference between a run folder and what was written into it.

    Attributes:
        file: its path within the folder.
        what: what is wrong.
        repair: what a repair does about it; empty where nothing can be done.
        repaired: whether that was done.
    """

    file: str
    what: str
    repair: str = ""
    repaired: bool = False


_AGAIN = "removed; resume the run to record what comes after its checkpoint, or overwrite it to record all"


def check_run(run: RunLike, *, repair: bool = False, on_note: Callable[[str], None] | None = None) -> list[Fault]:
    """Read all of a run and list what is wrong with it.

    Every file is read in full and compared with the checksums stored in it. Runs recorded before checksums were
    introduced have none, so a flipped bit is not noticed there; nor is a changed digit in metrics.jsonl. Of a
    checkpoint, the archive is checked and nothing is unpickled. Files that do not belong to a run are left alone and
    not listed.

    Args:
        run: the run, opened or by the path of its folder.
        repair: first remove what is broken, as :func:`repair_run` does.
        on_note: called with each note on the run that is not a fault; see :func:`other_maps`.

    Returns:
        The faults, with those that were repaired first; empty for an intact run.

    Raises:
        FadevizError: if there is no run, or its run.json is damaged; with ``repair``, also as for :func:`repair_run`.

    Example::

        for fault in fadeviz.check_run("outputs/fade"):
            print(fault.file, fault.what)
    """
    repaired = [replace(fault, repaired=True) for fault in repair_run(run)] if repair else []
    faults = list(_faults(_open(run)))
    if on_note is not None:
        for note in other_maps(run):
            on_note(note)
    return repaired + faults


def other_maps(run: RunLike) -> list[str]:
    """Notes on a run that are not faults: intact snapshots whose maps differ from most others'.

    A network may change during training, so that a layer runs more often or at another resolution.

    Raises:
        FadevizError: under the same conditions as :func:`check_run`.
    """
    opened = _open(run)
    layouts = {step: _layout(opened, step) for step in opened.steps}
    usual = Counter(layout for layout in layouts.values() if layout).most_common(1)
    notes = []
    for step, layout in layouts.items():
        differs = _difference(layout, usual[0][0]) if layout and usual else ""
        if differs:
            notes.append(f"snapshots/step_{step:06d}.safetensors {differs}")
    return notes


def repair_run(run: RunLike) -> list[Fault]:
    """Remove what :func:`check_run` finds broken, where that is possible: snapshots, results, leftovers, cut-off lines.

    Behind a symlink that leads out of the run's folder, only files that carry the run's id are removed.

    Returns:
        What was repaired; call :func:`check_run` again for what is left.

    Raises:
        FadevizError: as for :func:`check_run`; also if the run is being recorded, or a file cannot be removed.
    """
    opened = _open(run)
    with only_writer(opened.path):
        repaired = [fault for fault in _faults(opened) if fault.repair]
        for fault in repaired:
            file = opened.path / fault.file
            try:
                if file.name == "metrics.jsonl":
                    lines = read_metrics(file)
                    write_whole(file, "".join(json.dumps(line) + "\n" for line in lines).encode(), named=False)
                else:
                    file.unlink()
            except OSError as error:
                raise FadevizError(f"cannot remove {file}: {error.strerror or error}. Remove it by hand") from error
    return repaired


def _open(run: RunLike) -> StoredRun:
    path = run.address if isinstance(run, StoredRun) else run
    if is_address(path):
        raise FadevizError(f"{path} is an address: only a folder of this machine is checked. Copy the run here first")
    return StoredRun(path)


def _faults(run: StoredRun) -> Iterator[Fault]:
    yield from _left_over(run)
    what = check_sum(run.path / "run.json")
    if what:
        yield Fault("run.json", what)
    snapshots = {name: reason for name, reason in run.broken.items() if name.startswith("step_")}
    if snapshots and not run.steps and all(reason.startswith("belongs to") for reason in snapshots.values()):
        # One file is the stranger, not all the others: nothing of them may be removed.
        yield Fault("run.json", f"belongs to run {run.run_id}, but no snapshot does. Put the right file back")
        return
    what = _observation_fault(run)
    if what:
        yield Fault("observation.safetensors", what)
    for name, reason in snapshots.items():
        yield _fault(run, f"snapshots/{name}", reason, _AGAIN)
    for step in run.steps:
        what = _snapshot_fault(run, step)
        if what:
            yield _fault(run, f"snapshots/step_{step:06d}.safetensors", what, _AGAIN)
    lost = lost_snapshots(run)
    if lost:
        yield Fault("snapshots", lost)
    yield from _metrics_faults(run.path / "metrics.jsonl")
    for name, what in measured_faults(run):
        yield _fault(run, name, what, "removed; it is measured again when it is needed")
    checkpoint = run.path / "checkpoints" / "last.pt"
    what = _checkpoint_fault(checkpoint, run.run_id)
    if what:
        yield _fault(
            run, "checkpoints/last.pt", what, "removed; only a run that has not finished needs it, to be resumed"
        )


def _fault(run: StoredRun, name: str, what: str, repair: str) -> Fault:
    """A fault to repair, unless the file is a folder, or lies elsewhere and may be another run's."""
    file = run.path / name
    if what.startswith("cannot be read"):  # for now, or by this user: not damaged
        return Fault(name, what)
    if not may_be_removed(file, run.path, run.run_id):
        return Fault(name, f"{what}; it is behind a symlink, in {file.parent.resolve()}")
    return Fault(name, what, "" if file.is_dir() and not file.is_symlink() else repair)


def _left_over(run: StoredRun) -> Iterator[Fault]:
    for file in files_of(run.path):
        if left_over(file, elsewhere=True) and may_be_removed(file, run.path, run.run_id):
            yield Fault(str(file.relative_to(run.path)), "left over from an unfinished write", "removed")


def _observation_fault(run: StoredRun) -> str:
    try:
        images, masks = run.observation
        mattes = dict(zip(("alphas", "trimaps"), run.mattes or (), strict=False))
        with open_tensors(run.path / "observation.safetensors") as opened:
            header = dict(json.loads((opened.metadata() or {}).get("fadeviz", "{}")))
        sums = dict(header.get("crc32", {}))
    except (FadevizError, *_DAMAGED):
        return "missing or damaged: figures cannot show the images"
    if images.ndim != 4 or images.shape[-1:] != (3,) or masks.shape != images.shape[:3]:
        return f"images {images.shape} and masks {masks.shape} do not fit together"
    if images.dtype != np.uint8 or masks.dtype != np.uint8:
        return f"images are {images.dtype} and masks {masks.dtype}, not uint8"
    for key, value in {"images": images, "masks": masks, **mattes}.items():
        if key in sums and sums[key] != zlib.crc32(value.tobytes()):
            return f"{key} are not what was written (checksum)"
    if header.get("run_id", run.run_id) != run.run_id:
        return f"belongs to another run than {run.run_id}"
    return ""


def _metrics_faults(file: Path) -> Iterator[Fault]:
    if not file.exists():
        return
    try:
        kept = len(read_metrics(file))
        total = len([line for line in read_regular(file, METRICS_LIMIT).split(b"\n") if line.strip()])
    except (FadevizError, OSError) as error:
        yield Fault("metrics.jsonl", str(error))
        return
    if total > kept:
        what = f"{total - kept} of {total} lines are cut off or damaged"
        yield Fault("metrics.jsonl", what, "those lines removed")


def _checkpoint_fault(file: Path, run_id: str) -> str:
    if not file.exists():
        return ""
    try:
        with open_checkpoint(file) as archive:
            if not run_of_checkpoint(archive, run_id):
                return f"belongs to another run than {run_id}"
    except (OSError, zipfile.BadZipFile) as error:
        return unreadable(error) or f"damaged: {error}"
    return ""


def _layout(run: StoredRun, step: int) -> _Layout:
    """The content of the snapshot, from its header alone; empty where it is damaged."""
    with contextlib.suppress(*_DAMAGED), open_tensors(_file(run, step)) as opened:
        slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - no dict
        return frozenset((key, part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items())
    return frozenset()


def _difference(layout: _Layout, usual: _Layout) -> str:
    """How a snapshot differs from most; empty if it does not."""
    for key, dtype, shape in sorted(usual - layout):
        for other, other_dtype, other_shape in layout:
            if other == key:
                return f"holds {key} as {other_dtype} {other_shape}, most snapshots as {dtype} {shape}"
        return f"lacks {key}, which most snapshots have"
    for key, _, _ in sorted(layout - usual):
        return f"holds {key}, which most snapshots do not have"
    return ""


def _file(run: StoredRun, step: int) -> Path:
    return run.path / "snapshots" / f"step_{step:06d}.safetensors"


def _snapshot_fault(run: StoredRun, step: int) -> str:
    """How a snapshot differs from what was written; not detectable in snapshots without checksums."""
    try:
        with open_tensors(_file(run, step)) as opened:
            sums = dict(json.loads((opened.metadata() or {})["fadeviz"]).get("crc32", {}))
            names = set(opened.keys())
            if sums.keys() - names:
                return f"lacks {min(sums.keys() - names)}, with which it was written"
            for key in sorted(names):
                value = np.ascontiguousarray(opened.get_tensor(key))
                if sums and zlib.crc32(value.tobytes()) != sums.get(key):
                    return f"{key} is not what was written (checksum)"
    except _DAMAGED as error:
        return unreadable(error) or f"damaged: {error}"
    return ""
