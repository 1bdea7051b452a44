"""The files of a run, as they are written: one safetensors file for each recorded step, run.json, metrics.jsonl."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import operator
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save as serialize

from ..errors import FadevizError
from .files import (
    METRICS_LIMIT,
    TENSORS_LIMIT,
    TEXT_LIMIT,
    cannot_write,
    has_lock,
    leads_outside,
    left_over,
    machine,
    make_folder,
    open_regular,
    read_regular,
    write_whole,
)
from .info import ACTIVE, FORMAT, LayerInfo, RunInfo, json_value

KINDS = {
    "feature": "mean over channels of the layer's output",
    "gradient": "ReLU of d loss / d output, then the sum over channels",
    "readout": "linear readout of the object (1 inside, 0 outside) from all channels, fitted on the other observed "
    "images",
    "readout_contour": "linear readout of the contour (1 on it, 0 elsewhere) from all channels, fitted on the other "
    "observed images",
    "channels": "every channel of the layer's output, for the first observation images",
    "gate": "the operator's gate in [0, 1]: 1 takes the encoder feature, 0 the upsampled decoder feature",
    "kernel_entropy": "entropy of the reassembly kernel over log K^2: 1 is a box blur, 0 a copy of one neighbour",
    "constant": "the operator's output for a constant input (ones, with a guide of ones), mean over channels: one map, "
    "whose pattern the operator draws by itself",
    "kernels": "every weight of the reassembly kernels, for the first observation images",
    "guide": "every channel of the encoder feature that the operator is given, for the first observation images",
}
"""What can be recorded of a layer, and what each map shows."""

READOUT_KINDS = ("readout", "readout_contour")
"""Kinds that need the masks of the observed images."""

LAST_STEP = 10**12 - 1
"""The largest step: file names have twelve digits."""

CHANNEL_KINDS = frozenset({"channels", "kernels", "guide"})
"""Kinds that have many maps an image, and are recorded of the first observation images alone."""

SIGNED_KINDS = frozenset({"feature", "channels", "guide", "constant"})
"""Kinds whose values have no natural zero end: their range is not pinned at 0."""

PREDICTION = "prediction"
"""The entry of a step's file with what the model predicted for the observed images; drawn like a kind, measured by
nothing."""

STEP_FILE = re.compile(r"step_([0-9]{6,12})\.safetensors")

MEASURED = "measured"
"""The folder of measured results within a run's: see ``measured.py``."""

MEASURED_FILE = re.compile(r"[a-z0-9_]*_[0-9a-f]{12}\.safetensors")


@dataclass(frozen=True)
class Snapshot:
    """One kind of map of one layer at one optimiser step.

    Attributes:
        step: optimiser steps done; 0 is the untrained model.
        layer: dotted name of a module, with ``:interpolate`` for calls of a function in it; or a name of one's own.
        call: 0 for the first time the layer ran in the forward pass, 1 for the second ...
        kind: a name in ``KINDS``.
        value: float32, ``(N, h, w)``, or ``(n, C, h, w)`` for ``CHANNEL_KINDS``; the layer's own resolution. N is 1 for
            ``constant``.
    """

    step: int
    layer: str
    call: int
    kind: str
    value: NDArray[np.float32]

    @property
    def key(self) -> str:
        """The name of the map inside its file: ``layer/call/kind``."""
        return f"{self.layer}/{self.call}/{self.kind}"


def layer_sizes(snapshots: Iterable[Snapshot]) -> dict[str, LayerInfo]:
    """Height and width of the layers' maps, as run.json holds them.

    ``size`` is that of a layer's first call; a layer that ran several times also has ``calls``, with a size for each.
    """
    calls: dict[str, dict[int, tuple[int, ...]]] = {}
    for snapshot in snapshots:  # if kinds differ in size, the first counts: the layer's own map
        calls.setdefault(snapshot.layer, {}).setdefault(snapshot.call, tuple(snapshot.value.shape[-2:]))
    return {
        layer: LayerInfo(
            size=sizes[min(sizes)], calls=tuple(sizes[call] for call in sorted(sizes)) if len(sizes) > 1 else ()
        )
        for layer, sizes in calls.items()
    }


class SnapshotStore:
    """Writes the files of a run, each of which is replaced as a whole; ``RunWriter`` decides when.

    Snapshots that are in the folder already stay, and belong to this run if they carry its id: start a new run in an
    old folder with ``forget_after(-1)``.
    """

    def __init__(self, path: str | os.PathLike[str], run_id: str) -> None:
        """Open ``path`` for writing, creating it if necessary; ``run_id`` goes into every snapshot's header.

        ``snapshots`` and ``checkpoints`` may be symlinks, for instance to a larger disk, if they lead to an empty
        folder or to files of this run only.

        Raises:
            FadevizError: it cannot be created, or a symlink leads to files that are not this run's.
        """
        self.path = Path(path)
        self.run_id = run_id
        for folder in (self.path / "snapshots", self.path / "checkpoints"):
            _refuse_foreign(folder, self.path, run_id)
        make_folder(self.path / "snapshots")
        for file in files_of(self.path):
            if left_over(file) and may_be_removed(file, self.path, run_id):
                _remove(file)

    def write(self, step: int, snapshots: Iterable[Snapshot], prediction: NDArray[np.uint8] | None = None) -> Path:
        """Write the maps of one step, replacing an existing snapshot of it.

        Args:
            step: optimiser steps done.
            snapshots: the maps.
            prediction: what the model predicted for the observed images, ``(N, H, W)``; see
                :meth:`StoredRun.prediction`.

        Raises:
            FadevizError: the file cannot be written, or would be too large to be read again.
        """
        try:
            step = operator.index(step)  # numpy's and torch's integers too
        except TypeError as error:
            raise FadevizError(f"step {step!r} is a {type(step).__name__}, but a whole number is needed") from error
        if not 0 <= step <= LAST_STEP:
            raise FadevizError(f"step {step} cannot be recorded: steps must be from 0 to {LAST_STEP}")
        arrays: dict[str, NDArray[Any]]
        arrays = {s.key: np.ascontiguousarray(s.value, dtype=np.float32) for s in snapshots}
        if prediction is not None:
            arrays[PREDICTION] = np.ascontiguousarray(prediction, dtype=np.uint8)
        sums = {key: zlib.crc32(array.tobytes()) for key, array in arrays.items()}  # a flipped bit does not go unseen
        header = _header({"step": step, "run_id": self.run_id, "format": FORMAT, "crc32": sums})
        path = self.path / "snapshots" / f"step_{step:06d}.safetensors"
        size = sum(array.nbytes for array in arrays.values())
        if size > TENSORS_LIMIT - TEXT_LIMIT:
            raise FadevizError(
                f"the maps of step {step} have {size:,} bytes, but at most {TENSORS_LIMIT - TEXT_LIMIT:,} can be read "
                "again. Record fewer layers or kinds, or observe fewer images"
            )
        self._write(path, serialize(arrays, metadata=header))
        return path

    def _write(self, path: Path, data: bytes) -> None:
        # A folder made anew would hold the rest of a run whose beginning is elsewhere.
        if not (self.path / "snapshots").is_dir():
            raise FadevizError(
                f"{self.path} was moved or removed while it was recorded. Put it back where it was, and use resume=True"
            )
        write_whole(path, data, named=False)

    def write_info(self, info: RunInfo) -> None:
        """Write run.json; for an active run also the machine that holds its lock, for ``StoredRun.status``."""
        writer = (machine() if has_lock(self.path) else "") if info.status in ACTIVE else None
        # The writer comes last in the file, wherever an earlier one stood.
        order = tuple(name for name in info.order if name != "writer")
        info = dataclasses.replace(info, run_id=self.run_id, writer=writer, order=order)
        self._write(self.path / "run.json", info.to_json())

    def write_observation(
        self,
        images: NDArray[np.uint8],
        masks: NDArray[np.uint8],
        mattes: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None,
    ) -> None:
        """Write the observed images, once: images ``(N, H, W, 3)`` and masks ``(N, H, W)``, uint8.

        ``mattes`` are alpha, 0 to 255, and trimaps, both ``(N, H, W)`` uint8, where there are any.
        """
        arrays = {"images": images, "masks": masks}
        if mattes is not None:
            arrays |= dict(zip(("alphas", "trimaps"), mattes, strict=True))
        arrays = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        sums = {key: zlib.crc32(array.tobytes()) for key, array in arrays.items()}
        header = _header({"run_id": self.run_id, "crc32": sums})
        self._write(self.path / "observation.safetensors", serialize(arrays, metadata=header))

    def append_metrics(self, line: Mapping[str, object]) -> None:
        """Append one line to metrics.jsonl, or nothing; a line truncated by a crash is ignored when read.

        A symlink, or a file with further hard links (a backup), is first replaced by a copy, so that nothing elsewhere
        is written to.
        """
        path = self.path / "metrics.jsonl"
        try:
            if not _is_its_own(path):
                self._rewrite_metrics()
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | _CAREFULLY
            with os.fdopen(os.open(path, flags, 0o666), "a+b", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - 1))
                cut_off = file.read(1) not in (b"", b"\n")
                text = b"\n" * cut_off + json.dumps(line, default=json_value).encode() + b"\n"
                try:
                    if file.write(text) != len(text):  # the disk had room for a part
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise cannot_write(path, error) from error

    def _rewrite_metrics(self, last: float = math.inf) -> None:
        """Rewrite metrics.jsonl as a new file, with the lines up to the step ``last``."""
        path = self.path / "metrics.jsonl"
        lines = read_metrics(path) if last >= 0 and path.exists() else []
        kept = [line for line in lines if int(line["step"]) <= last]
        self._write(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def forget_after(self, step: int) -> None:
        """Drop metrics and snapshots later than ``step``: a resumed run writes them again."""
        if os.path.lexists(self.path / "metrics.jsonl"):
            self._rewrite_metrics(step)
        for file in (self.path / "snapshots").iterdir():
            match = STEP_FILE.fullmatch(file.name)
            if match and int(match[1]) > step and may_be_removed(file, self.path, self.run_id):
                _remove(file)


_CAREFULLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags to open a file safely: symlinks are not followed, and FIFOs do not block."""


def _is_its_own(path: Path) -> bool:
    """Whether writing to this file changes nothing elsewhere; true if it does not exist yet."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def files_of(run: Path) -> list[Path]:
    """The files in a run's folders, by name."""
    folders = [run, run / "snapshots", run / "checkpoints", run / MEASURED]
    return [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())]


def may_be_removed(file: Path, run: Path, run_id: str) -> bool:
    """Whether a file in a run's folders is the run's own; behind a symlink, only if it carries the run's id."""
    return not leads_outside(file.parent, run) or carries(file, run_id)


def carries(file: Path, run_id: str) -> bool:
    """Whether a snapshot or a checkpoint carries this run's id, even if the rest of it is damaged."""
    try:
        if file.name == "last.pt":
            with zipfile.ZipFile(_regular(file)) as archive:
                return run_of_checkpoint(archive, run_id)
        with open_regular(file, TENSORS_LIMIT) as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, TEXT_LIMIT, file.stat().st_size)))
        return bool(json.loads(header["__metadata__"]["fadeviz"])["run_id"] == run_id)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False


def _refuse_foreign(folder: Path, run: Path, run_id: str) -> None:
    """Raise if a folder of the run is a symlink to files that are not this run's."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise FadevizError(f"{folder} is not a folder, or a broken symlink. Remove it and try again")
    if not leads_outside(folder, run):
        return
    # Hidden files are left over or unrelated, and are kept.
    files = [file for file in folder.iterdir() if not file.name.startswith(".")]
    written = [file for file in files if STEP_FILE.fullmatch(file.name) or file.name == "last.pt"]
    foreign = [file for file in written if not carries(file, run_id)]
    if foreign or (files and not written):
        raise FadevizError(
            f"{folder} leads to {folder.resolve()}, where {(foreign or files)[0].name} does not belong to this run: "
            "nothing is written there. Remove the symlink and try again"
        )


def _regular(path: Path) -> Path:
    with open_regular(path, TENSORS_LIMIT):  # safetensors reports a file without read permission as missing
        return path


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file, opened for reading with numpy.

    Raises:
        SafetensorError, OSError: it is missing, damaged, or no regular file.
    """
    with safe_open(_regular(path), "np") as opened:
        yield opened


def _header(values: Mapping[str, object]) -> dict[str, str]:
    # One entry: several would be written in an order that differs from one process to the next.
    return {"fadeviz": json.dumps(values)}


def check_folder(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise unless a run may be written to ``out``.

    Raises:
        FadevizError: a file, a run without ``resume`` or ``overwrite``, or files that are no run.
    """
    try:
        if out.exists() and not out.is_dir():
            raise FadevizError(f"{out} is a file. Choose another out=...")
        begun = os.path.lexists(out / "run.json")
        if (resume and begun) or not out.is_dir() or all(_before_the_first_file(inside) for inside in out.iterdir()):
            return
    except OSError as error:
        raise cannot_write(out, error) from error
    if not begun:
        raise FadevizError(
            f"{out} holds files but no run.json, so it is not a run: nothing is replaced. Choose another out=..."
        )
    if not overwrite:
        raise FadevizError(
            f"{out} holds a run already. Continue it with resume=True, replace it with overwrite=True, or choose "
            "another out=..."
        )


def _before_the_first_file(inside: Path) -> bool:
    """Whether this lies in a folder because a run ended, by a full disk or a kill, before run.json was written."""
    return left_over(inside) or (inside.name == "snapshots" and inside.is_dir() and not any(inside.iterdir()))


def remove_run(out: Path) -> None:
    """Remove a run from its folder, but no unrelated files, and nothing behind symlinks.

    Raises:
        FadevizError: something of it cannot be removed; where that can be seen beforehand, nothing was.
    """
    ours = []
    for folder, names in ((out / "snapshots", STEP_FILE), (out / "checkpoints", re.compile(r"last\.pt"))):
        if folder.is_dir() and not folder.is_symlink():
            ours += [file for file in folder.iterdir() if names.fullmatch(file.name) or left_over(file)]
        elif folder.is_symlink():
            ours.append(folder)
        elif folder.exists():
            raise FadevizError(f"{folder} is not a folder and does not belong to a run. Remove it by hand")
    # run.json goes last: until then the folder is recognised as a run, and the command can be repeated.
    ours += [out / name for name in ("metrics.jsonl", "observation.safetensors", "run.json")]
    for file in ours:
        if file.is_dir() and not file.is_symlink() and any(file.iterdir()):
            raise FadevizError(f"{file} is a folder with files and does not belong to a run. Remove it by hand")
    _forget_measured(out)
    for file in ours:
        _remove(file)
    for folder in (out / "snapshots", out / "checkpoints"):
        if folder.is_dir() and not any(folder.iterdir()):
            _remove(folder)


def _forget_measured(run: Path) -> None:
    """Remove the measured results of a run; one that cannot be removed does no harm, as it is out of date."""
    folder = run / MEASURED
    with suppress(OSError):  # there is none, or it holds unrelated files
        if folder.is_symlink():  # not made by fadeviz
            return
        for file in list(folder.iterdir()):
            if MEASURED_FILE.fullmatch(file.name) or left_over(file):
                with suppress(OSError):
                    file.unlink()
        folder.rmdir()


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()  # fails if it holds unrelated files
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise FadevizError(f"cannot remove {path}: {error.strerror or error}. Remove it by hand") from error


def open_checkpoint(path: Path) -> zipfile.ZipFile:
    """The zip archive that a checkpoint is, after a look at all of its checksums; nothing is unpickled.

    Raises:
        OSError, zipfile.BadZipFile: it cannot be read, or is damaged.
    """
    archive = zipfile.ZipFile(_regular(path))
    try:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise zipfile.BadZipFile("it is compressed, as no checkpoint is")  # and might unpack to anything
        damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    except BaseException as error:
        archive.close()
        if isinstance(error, zlib.error | ValueError | EOFError | RuntimeError):  # RuntimeError: encrypted
            raise zipfile.BadZipFile(str(error)) from error
        raise
    return archive


def run_of_checkpoint(archive: zipfile.ZipFile, run_id: str) -> bool:
    """Whether a checkpoint carries this run's id; nothing is unpickled."""
    pickles = [member for member in archive.infolist() if member.filename.endswith("/data.pkl")]
    # A pickle stores a string's bytes unchanged.
    return any(run_id.encode() in archive.read(one) for one in pickles if one.file_size <= TEXT_LIMIT)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a line that is cut off or damaged is left out."""
    lines: list[dict[str, Any]] = []
    try:
        texts = read_regular(path, METRICS_LIMIT).split(b"\n")
    except OSError as error:
        raise FadevizError(f"{path} cannot be read: {error.strerror or error}") from error
    for text in texts:
        try:
            line = json.loads(text.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines
