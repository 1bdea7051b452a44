"""Runs on disk: one safetensors file a recorded step, run.json, metrics.jsonl; written whole, read without torch."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from .errors import FadevizError, unknown_name

FORMAT = 1
"""Version of the run folder; a run of a newer format is refused, not misread."""

KINDS = {
    "feature": "mean over channels of the layer's output",
    "gradient": "ReLU of d loss / d output, then the sum over channels",
    "channels": "every channel of the layer's output, for the first observation images",
    "gate": "the operator's gate in [0, 1]: 1 takes the encoder feature, 0 the upsampled decoder feature",
    "kernel_entropy": "entropy of the reassembly kernel over log K^2: 1 is a box blur, 0 a copy of one neighbour",
    "constant": "the operator's output for a constant input (ones, with a guide of ones), mean over channels: one map, "
    "whose pattern the operator draws by itself",
    "kernels": "every weight of the reassembly kernels, for the first observation images",
    "guide": "every channel of the encoder feature that the operator is given, for the first observation images",
}
"""What can be recorded of a layer, and what each map shows."""

CHANNEL_KINDS = frozenset({"channels", "kernels", "guide"})
"""Kinds that have many maps an image, and are recorded of the first observation images alone."""

SIGNED_KINDS = frozenset({"feature", "channels", "guide", "constant"})
"""Kinds whose values have no natural zero end: their range is not pinned at 0."""

_STEP_FILE = re.compile(r"step_(\d{6,12})\.safetensors")


@dataclass(frozen=True)
class Snapshot:
    """One kind of map of one layer at one optimiser step.

    Attributes:
        step: optimiser steps done; 0 is the untrained model.
        layer: dotted module name.
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place only when the block ends without an error.

    The file is fsynced and renamed, so that a crash at any instant leaves the old file or the new one, whole.

    Raises:
        FadevizError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # gone already, or never made: the error above is the one to hear of
            partial.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds all of it or what it held before."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def _fsync_folder(folder: Path) -> None:
    # Makes the rename itself durable; platforms that cannot open a folder do without.
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: OSError) -> FadevizError:
    if error.errno == errno.ENOSPC:
        return FadevizError(f"disk full while writing {path}: nothing was replaced. Free some space, then use --resume")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FadevizError(f"cannot write {path}: {error.strerror}. Choose another folder")
    return FadevizError(f"cannot write {path}: {error.strerror or error}")


class SnapshotStore:
    """The writing half of a run folder. One writer a folder; every file is replaced whole.

    Steps that are in the folder already stay, and count as this run's if they carry its id: start a new run in an old
    folder with ``forget_after(-1)``.
    """

    def __init__(self, path: str | os.PathLike[str], run_id: str) -> None:
        """Open ``path`` for writing, making it where it is missing; ``run_id`` goes into every snapshot's header."""
        self.path = Path(path)
        self.run_id = run_id
        self.make_folder(self.path / "snapshots")
        for left_over in [*self.path.glob(".*.partial*"), *self.path.glob("*/.*.partial*")]:
            left_over.unlink(missing_ok=True)

    @staticmethod
    def make_folder(path: Path) -> None:
        """Make a folder and those above it, where they are missing."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(path, error) from error

    def write(self, step: int, snapshots: Iterable[Snapshot]) -> Path:
        """Write the maps of one step; a step that is there already is replaced."""
        arrays = {s.key: np.ascontiguousarray(s.value, dtype=np.float32) for s in snapshots}
        sums = {key: zlib.crc32(array.tobytes()) for key, array in arrays.items()}  # a flipped bit does not go unseen
        header = _header({"step": step, "run_id": self.run_id, "format": FORMAT, "crc32": sums})
        path = self.path / "snapshots" / f"step_{step:06d}.safetensors"
        write_whole(path, serialize(arrays, metadata=header))
        return path

    def write_info(self, info: Mapping[str, object]) -> None:
        """Write run.json."""
        text = json.dumps({"format": FORMAT, "run_id": self.run_id, **info}, indent=2, ensure_ascii=False)
        write_whole(self.path / "run.json", (text + "\n").encode())

    def write_observation(self, images: NDArray[np.uint8], masks: NDArray[np.uint8]) -> None:
        """Write the observed pictures, once: images ``(N, H, W, 3)`` and masks ``(N, H, W)``, uint8."""
        arrays = {"images": np.ascontiguousarray(images), "masks": np.ascontiguousarray(masks)}
        write_whole(self.path / "observation.safetensors", serialize(arrays, metadata=_header({"run_id": self.run_id})))

    def append_metrics(self, line: Mapping[str, object]) -> None:
        """Add one line to metrics.jsonl; a line cut off by a crash is ignored when read."""
        try:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise _cannot_write(self.path / "metrics.jsonl", error) from error

    def forget_after(self, step: int) -> None:
        """Drop metrics and snapshots later than ``step``: a resumed run writes them again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = [line for line in read_metrics(path) if int(line["step"]) <= step]
            write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        for file in (self.path / "snapshots").iterdir():
            match = _STEP_FILE.fullmatch(file.name)
            if match and int(match[1]) > step:
                file.unlink()


def _header(values: Mapping[str, object]) -> dict[str, str]:
    # One entry: several would be written in an order that differs from one process to the next.
    return {"fadeviz": json.dumps(values)}


def check_folder(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise unless a run may be written to ``out``.

    Raises:
        FadevizError: a file, a run without ``resume`` or ``overwrite``, or files that are no run.
    """
    if out.exists() and not out.is_dir():
        raise FadevizError(f"{out} is a file. Choose another --out")
    if resume or not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / "run.json").exists():
        raise FadevizError(
            f"{out} holds files but no run.json, so it is no run: nothing is replaced. Choose another --out"
        )
    if not overwrite:
        raise FadevizError(
            f"{out} holds a run already. Go on with --resume, replace with --overwrite, or choose another --out"
        )


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Refuse a second process on the same folder; the lock goes with the process, however it ends."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    SnapshotStore.make_folder(out)
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FadevizError(
                f"another process is recording into {out}. Wait for it, or choose another --out"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def remove_run(out: Path) -> None:
    """Remove a run from its folder, and nothing else that lies there."""
    # Only what a run writes: figures or notes that someone put beside it stay. run.json goes last: until then the
    # folder is known for a run, and the same command can be given again.
    for name in ("snapshots", "checkpoints"):
        if (out / name).exists():
            shutil.rmtree(out / name)
    for name in ("metrics.jsonl", "observation.safetensors", "run.json"):
        (out / name).unlink(missing_ok=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a line that is cut off or damaged is left out."""
    lines: list[dict[str, Any]] = []
    for text in path.read_bytes().decode("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


class Run:
    """The reading half of a run folder: settings, metrics, observed pictures and maps, without torch.

    Example::

        run = fadeviz.open_run("outputs/fade")
        maps = run.maps("decoder.3.upsample", "feature", image=0)   # (steps, h, w) float32
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a run folder.

        Raises:
            FadevizError: no such folder, no or damaged run.json, a newer format.
        """
        self.path = Path(path)
        self.info: dict[str, Any] = _read_info(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, upsampler={self.info.get('upsampler')!r}, {len(self.steps)} snapshots)"

    @property
    def run_id(self) -> str:
        """What every snapshot of this run carries in its header."""
        return str(self.info["run_id"])

    @property
    def name(self) -> str:
        """What this run is called: its operator, and ``@shuffled`` if its labels were; or, without one, its folder."""
        control = "@shuffled" if self.info.get("config", {}).get("labels") == "shuffled" else ""
        return str(self.info.get("upsampler") or self.path.resolve().name) + control

    @property
    def title(self) -> str:
        """The operator as papers write it, with its options and control; or, without one, the run's name."""
        if not self.info.get("title"):
            return self.name
        operator, _, control = self.name.partition("@")
        options = operator.partition(":")[2]
        labels = f", {control} labels" if control else ""
        return str(self.info["title"]) + (f" ({options})" if options else "") + labels

    @cached_property
    def _files(self) -> tuple[dict[int, Path], dict[str, str]]:
        readable: dict[int, Path] = {}
        broken: dict[str, str] = {}
        observation = self.path / "observation.safetensors"
        try:
            if observation.exists():
                with safe_open(observation, "np"):
                    pass
        except (SafetensorError, OSError) as error:
            broken[observation.name] = f"damaged: {error}"
        folder = self.path / "snapshots"
        for file in sorted(folder.iterdir()) if folder.is_dir() else []:
            match = _STEP_FILE.fullmatch(file.name)
            if not match:
                continue
            try:
                with safe_open(file, "np") as opened:
                    header = json.loads((opened.metadata() or {})["fadeviz"])
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                broken[file.name] = f"damaged: {error}"
                continue
            if not isinstance(header, dict) or header.get("run_id") != self.run_id:
                broken[file.name] = f"belongs to another run than {self.run_id}"
            elif header.get("step") != int(match[1]):
                broken[file.name] = f"holds step {header.get('step')}"
            else:
                readable[int(match[1])] = file
        return readable, broken

    @property
    def steps(self) -> tuple[int, ...]:
        """The recorded steps whose files are whole, increasing."""
        return tuple(sorted(self._files[0]))

    @property
    def broken(self) -> dict[str, str]:
        """Files of the run that cannot be used, with the reason."""
        return dict(self._files[1])

    @cached_property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Each recorded layer with the kinds there are of it, in the network's order."""
        if not self.steps:
            raise FadevizError(f"{self.path} has no whole snapshot. Record it again: fadeviz record ... --overwrite")
        with safe_open(self._files[0][self.steps[0]], "np") as file:
            keys = [key.rsplit("/", 2) for key in file.keys()]  # noqa: SIM118 - a safetensors handle is no dict
        order = list(self.info.get("layers", {}))
        names = sorted({key[0] for key in keys}, key=lambda n: (order.index(n) if n in order else len(order), n))
        return {name: tuple(k for k in KINDS if any(key[0] == name and key[2] == k for key in keys)) for name in names}

    def default_layer(self, kind: str) -> str:
        """The layer that figures show: the network's intermediate one, else the last but one that has ``kind``."""
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
        having = [name for name, kinds in self.layers.items() if kind in kinds]
        if not having:
            raise FadevizError(
                f"{self.path} has no {kind!r} maps. Recorded: {', '.join(self._kinds())}. "
                f"Record them: fadeviz record --kinds {kind} ..."
            )
        chosen = self.info.get("figure_layer")
        return str(chosen) if chosen in having else having[max(0, len(having) - 2)]

    def _kinds(self) -> list[str]:
        return [k for k in KINDS if any(k in kinds for kinds in self.layers.values())]

    def read(self, step: int, layer: str, kind: str, call: int = 0) -> NDArray[np.float32]:
        """The maps of every observed image at one step: ``(N, h, w)``, or ``(n, C, h, w)`` for ``CHANNEL_KINDS``."""
        if step not in self._files[0]:
            raise FadevizError(f"{self.path} has no snapshot of step {step}. It has: {_some(self.steps)}")
        self.check(layer, kind)
        with safe_open(self._files[0][step], "np") as file:
            try:
                value: NDArray[np.float32] = file.get_tensor(f"{layer}/{call}/{kind}")
            except SafetensorError as error:
                raise FadevizError(f"{self.path}, step {step}: no {kind!r} of {layer!r}, call {call}") from error
        return value

    def maps(
        self,
        layer: str | None = None,
        kind: str = "feature",
        *,
        image: int | None = None,
        channel: int | None = None,
        steps: Sequence[int] | None = None,
        call: int = 0,
    ) -> NDArray[np.float32]:
        """Maps over the training: ``(steps, N, h, w)``, or ``(steps, h, w)`` of one ``image``.

        Args:
            layer: dotted name; None takes ``default_layer(kind)``.
            kind: a name in ``KINDS``; ``CHANNEL_KINDS`` have one axis more, before h, unless ``channel`` is given.
            image: index of an observed image, or None for all.
            channel: index of a channel, for ``CHANNEL_KINDS`` only.
            steps: which recorded steps, or None for all.
            call: which call of a layer that runs several times in a forward pass.
        """
        layer = layer if layer is not None else self.default_layer(kind)
        self.check(layer, kind)
        stack = []
        for step in self.steps if steps is None else steps:
            value = self.read(step, layer, kind, call)
            if image is not None:
                _check_index("image", image, len(value), f"{kind!r} of {self.path}")
                value = value[image]
            if kind in CHANNEL_KINDS and channel is not None:
                _check_index("channel", channel, value.shape[-3], f"layer {layer!r}")
                value = np.take(value, channel, axis=-3)
            stack.append(value)
        if not stack:
            raise FadevizError(f"no steps of {self.path} were asked for. It has: {_some(self.steps)}")
        return np.stack(stack)

    def check(self, layer: str, kind: str) -> None:
        """Raise unless maps of this layer and kind were recorded; the message lists the nearest names."""
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
        if layer not in self.layers:
            raise unknown_name(f"layer in {self.path}", layer, self.layers, f"fadeviz info {self.path}")
        if kind not in self.layers[layer]:
            raise FadevizError(
                f"{self.path} has no {kind!r} maps of {layer!r}. There are: {', '.join(self.layers[layer])}. "
                f"Record them: fadeviz record --kinds {kind} ..."
            )

    @cached_property
    def observation(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The observed pictures: images ``(N, H, W, 3)`` and masks ``(N, H, W)``, uint8."""
        try:
            with safe_open(self.path / "observation.safetensors", "np") as file:
                return file.get_tensor("images"), file.get_tensor("masks")
        except (SafetensorError, OSError) as error:
            raise FadevizError(
                f"{self.path}: observation.safetensors is missing or damaged ({error}). "
                "Record the run again with --overwrite"
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: one a step (loss, lr), and one an evaluation (miou, boundary_iou)."""
        path = self.path / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run folder for reading; see :class:`Run`."""
    return Run(path)


def common_steps(runs: Sequence[Run], steps: Sequence[int] | None = None) -> tuple[int, ...]:
    """The steps that all runs have, increasing; or ``steps``, sorted, after a check that all runs have them."""
    common = set(runs[0].steps).intersection(*(run.steps for run in runs))
    if steps is not None:
        for step in steps:
            for run in runs:
                if step not in run.steps:
                    raise FadevizError(f"{run.path} has no snapshot of step {step}. List them: fadeviz info {run.path}")
        common = set(steps)
    if not common:
        names = " and ".join(str(run.path) for run in runs)
        raise FadevizError(f"{names}: no recorded step in common. Record them with the same --snapshots")
    return tuple(sorted(common))


def _read_info(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise FadevizError(f"no run folder {path}. Make one: fadeviz record --out {path} ...")
    try:
        info = json.loads((path / "run.json").read_text(encoding="utf-8"))
        version, run_id = int(info["format"]), info["run_id"]
    except FileNotFoundError:
        raise FadevizError(f"{path} is not a run: it has no run.json. Give the folder that --out named") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise FadevizError(f"{path}/run.json is damaged ({error}). Record the run again with --overwrite") from error
    if version > FORMAT:
        raise FadevizError(
            f"{path} has format {version}, this fadeviz reads up to {FORMAT}. Upgrade: pip install -U fadeviz"
        )
    if not isinstance(run_id, str):
        raise FadevizError(f"{path}/run.json is damaged (run_id is no text). Record the run again with --overwrite")
    for key in ("config", "data", "layers", "observation", "result", "seconds"):
        if not isinstance(info.get(key, {}), dict):
            raise FadevizError(
                f"{path}/run.json is damaged ({key} is no object). Record the run again with --overwrite"
            )
    return dict(info)


def _check_index(what: str, index: int, count: int, where: str) -> None:
    if not 0 <= index < count:
        raise FadevizError(f"no {what} {index} in {where}: there are {count}, from 0 to {count - 1}")


def _some(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps if len(steps) <= 8 else [*steps[:4], "...", *steps[-3:]]))
