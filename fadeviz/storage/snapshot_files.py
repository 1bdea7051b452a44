"""The snapshot files of a run: which there are, which can be used, and single maps in them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import FadevizError, printable
from .files import TENSORS_LIMIT, TEXT_LIMIT, open_regular, unreadable
from .folder import RunFolder
from .info import RunInfo
from .remote import RemoteFolder
from .snapshots import PREDICTION, STEP_FILE, open_tensors


class SnapshotFiles:
    """The snapshots of one run, listed and opened on their first access."""

    def __init__(self, folder: RunFolder, info: RunInfo) -> None:
        """``folder`` is the run's, and ``info`` what its run.json holds."""
        self.folder, self.info = folder, info
        self._whole: set[int] = set()  # steps of a remote run whose files were fetched and checked
        self._headers: dict[tuple[str, int, int, int], str] = {}  # digests by name, size, time and inode
        self._faults: dict[tuple[str, int, int, int], str] = {}  # of the files that were checked, by the same

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.info)

    @property
    def address(self) -> str:
        """The run's folder as messages name it."""
        return self.folder.address

    @property
    def steps(self) -> tuple[int, ...]:
        """The recorded steps whose files are whole, increasing; of a remote run those that are listed."""
        return tuple(sorted(self._listing[0]))

    @property
    def broken(self) -> dict[str, str]:
        """Files that cannot be used, with the reason; of a remote run they show when they are read."""
        return dict(self._listing[1])

    @cached_property
    def _listing(self) -> tuple[dict[int, str], dict[str, str]]:
        """The usable snapshots' names, by their steps; and what cannot be used, with the reason."""
        if self.folder.remote is not None:
            return self._remote_names(self.folder.remote), {}
        readable: dict[int, str] = {}
        broken: dict[str, str] = {}
        observation = self.folder.path / "observation.safetensors"
        try:
            if observation.exists():
                with open_tensors(observation):
                    pass
        except (SafetensorError, OSError) as error:
            broken[observation.name] = unreadable(error) or f"damaged: {error}"
        folder = self.folder.path / "snapshots"
        for file in sorted(folder.iterdir()) if folder.is_dir() else []:
            match = STEP_FILE.fullmatch(file.name)
            if not match:
                continue
            fault = self._known_fault(file, int(match[1]))
            if fault:
                broken[file.name] = fault
            else:
                readable[int(match[1])] = file.name
        return readable, broken

    def _remote_names(self, remote: RemoteFolder) -> dict[int, str]:
        """The snapshots of a remote run by their names alone: each is looked into when it is first read."""
        matches = [match for name in remote.names("snapshots") if (match := STEP_FILE.fullmatch(name))]
        if matches:
            return {int(match[1]): match[0] for match in matches}
        # A web server may give files without listing them; a run that has ended has what it was to record.
        if self.info.status != "finished":
            return {}
        steps = {step for step in self.info.schedule if 0 <= step < 10**12}
        return {step: f"step_{step:06d}.safetensors" for step in steps}

    def trust(self, earlier: SnapshotFiles) -> None:
        """Take over what was found out about files of the same run that have not changed since."""
        if earlier.info.run_id == self.info.run_id:
            self._faults = dict(earlier._faults)

    def _known_fault(self, file: Path, step: int) -> str:
        """The fault of a file, which is looked into unless it is the one that was."""
        try:
            status = os.stat(file)
        except OSError as error:
            return unreadable(error)
        seen = (file.name, status.st_size, status.st_mtime_ns, status.st_ino)
        if seen not in self._faults:
            self._faults[seen] = self._fault(file, step)
        return self._faults[seen]

    def _fault(self, file: Path, step: int) -> str:
        """Why a snapshot cannot be used; empty where it can."""
        try:
            with open_tensors(file) as opened:
                header = json.loads((opened.metadata() or {})["fadeviz"])
                names = list(opened.keys())
        except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
            return unreadable(error) or f"damaged: {error}"
        if any(printable(name) != name for name in names):
            return "damaged: a layer's name has control characters"
        if not isinstance(header, dict) or header.get("run_id") != self.info.run_id:
            return f"belongs to another run than {self.info.run_id}"
        return "" if header.get("step") == step else f"holds step {header.get('step')}"

    def check_step(self, step: int) -> None:
        """Raise unless there is a snapshot of this step.

        Raises:
            FadevizError: if there is none.
        """
        if step not in self._listing[0]:
            raise FadevizError(f"{self.address} has no snapshot of step {step}. It has: {some_steps(self.steps)}")

    def path(self, step: int) -> Path:
        """The file of a recorded step, on this machine and whole.

        Raises:
            FadevizError: if there is none, or a remote one is damaged or cannot be fetched.
        """
        self.check_step(step)
        file = self.folder.file(f"snapshots/{self._listing[0][step]}")
        if self.folder.remote is not None and step not in self._whole:
            fault = self._fault(file, step) if file.exists() else "missing"
            if fault:
                raise FadevizError(f"{self.address}/snapshots/{file.name}: {fault}. Choose other steps")
            self._whole.add(step)
        return file

    def versions(self, steps: Sequence[int]) -> dict[str, list[int | str]] | None:
        """See :meth:`StoredRun.snapshot_versions`."""
        versions: dict[str, list[int | str]] = {}
        for step in steps:
            self.check_step(step)
            name = self._listing[0][step]
            version = self._version(name)
            if version is None:
                return None
            versions[name] = version
        return versions

    def are(self, steps: Sequence[int], versions: dict[str, list[int | str]]) -> bool:
        """See :meth:`StoredRun.snapshots_are`."""
        if self.folder.remote is None:
            return self.versions(steps) == versions
        return self.folder.remote.unchanged("snapshots", [self._listing[0][step] for step in steps])

    def _version(self, name: str) -> list[int | str] | None:
        if self.folder.remote is not None:
            version = self.folder.remote.version(f"snapshots/{name}")
            return [version] if version else None
        file = f"{self.folder.path}/snapshots/{name}"  # a Path would take longer than the rest
        try:
            status = os.stat(file)
            # Files may be dated alike, so the header counts too; it is read once.
            read = (name, status.st_size, status.st_mtime_ns, status.st_ino)
            if read not in self._headers:
                with open_regular(file, TENSORS_LIMIT) as opened:
                    length = int.from_bytes(opened.read(8), "little")
                    self._headers[read] = hashlib.sha256(opened.read(min(length, TEXT_LIMIT))).hexdigest()
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns, self._headers[read]]

    def keys(self, step: int) -> list[tuple[str, str, str]]:
        """Layer, call and kind of each map in a snapshot.

        Raises:
            FadevizError: under the same conditions as :meth:`path`.
        """
        with open_tensors(self.path(step)) as file:
            parts = [key.rsplit("/", 2) for key in file.keys()]  # noqa: SIM118 - a safetensors handle is not a dict
        return [(layer, call, kind) for layer, call, kind in (part for part in parts if len(part) == 3)]

    @contextmanager
    def open_map(self, step: int, layer: str, kind: str, call: int) -> Iterator[Any]:
        """One map as a safetensors slice, of which nothing is read yet; its file has the size that its shape needs.

        Raises:
            FadevizError: if there is no such map, or its file cannot be read.
        """
        file = self.path(step)
        key = f"{layer}/{call}/{kind}"
        try:
            with open_tensors(file) as opened:
                if key not in opened.keys():  # noqa: SIM118 - a safetensors handle is not a dict
                    raise FadevizError(
                        f"{self.address}, step {step}: no {kind!r} of {layer!r}, call {call}. Choose steps that have "
                        "it, or another call"
                    )
                part = opened.get_slice(key)
                if part.get_dtype() != "F32":
                    raise FadevizError(
                        f"{self.address}/snapshots/{file.name}: {key} is {part.get_dtype()}, but F32 is needed. "
                        "Record the run again with overwrite=True"
                    )
                yield part
        except (SafetensorError, OSError) as error:  # it was whole when the run was opened
            raise FadevizError(
                f"{self.address}/snapshots/{file.name} cannot be read ({error}). Open the run again"
            ) from error

    @contextmanager
    def open_prediction(self, step: int) -> Iterator[Any]:
        """What the model predicted at a step as a safetensors slice ``(N, H, W)`` uint8, of which nothing is read yet.

        Raises:
            FadevizError: if there is none, or its file cannot be read.
        """
        file = self.path(step)
        try:
            with open_tensors(file) as opened:
                if PREDICTION not in opened.keys():  # noqa: SIM118 - a safetensors handle is not a dict
                    raise FadevizError(
                        f"{self.address} has no predictions of step {step}. Record them: predictions=True of a "
                        "Recorder, or fadeviz record --predictions"
                    )
                part = opened.get_slice(PREDICTION)
                shape = part.get_shape()
                if part.get_dtype() != "U8" or len(shape) != 3 or 0 in shape:
                    raise FadevizError(
                        f"{self.address}/snapshots/{file.name}: {PREDICTION} is {part.get_dtype()} {tuple(shape)}, but "
                        "U8 (N, H, W) is needed. Choose other steps"
                    )
                yield part
        except (SafetensorError, OSError) as error:
            raise FadevizError(
                f"{self.address}/snapshots/{file.name} cannot be read ({error}). Open the run again"
            ) from error


def some_steps(steps: Sequence[int]) -> str:
    """A list of steps for a message: the first and the last ones, if there are many."""
    return ", ".join(map(str, steps if len(steps) <= 8 else [*steps[:4], "...", *steps[-3:]]))
