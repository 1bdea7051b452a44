"""Runs for reading: settings, metrics, observed images and maps, without torch."""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from ..errors import FadevizError, MissingExtra, printable, unknown_name
from .files import lock_is_free, machine, read_regular
from .remote import RemoteFolder, is_address
from .snapshots import CHANNEL_KINDS, FORMAT, GOING_ON, KINDS, STEP_FILE, open_tensors, read_metrics, unreadable


class StoredRun:
    """The reading half of a run folder: settings, metrics, observed images and maps, without torch.

    The folder may lie at an address that fsspec knows (``s3://bucket/run``, ``https://...``): each file is then fetched
    when it is first needed, into a temporary folder that goes with the run.

    Attributes:
        path: the folder on this machine; of a remote run the temporary one.
        address: the folder as messages name it: the path as it was given, or the address.
        info: what run.json holds.

    Example::

        run = fadeviz.open_run("outputs/fade")
        maps = run.maps("decoder.3.upsample", "feature", image=0)   # (steps, h, w) float32, read when indexed
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a run folder.

        Raises:
            FadevizError: no such folder, no or damaged run.json, a newer format, or an address that cannot be read.
        """
        self._remote = RemoteFolder(path) if is_address(path) else None
        self.path = Path(path) if self._remote is None else self._remote.path
        self.address = str(self.path) if self._remote is None else self._remote.shown
        if self._remote is not None and not self.file("run.json").exists():
            raise FadevizError(f"no run at {self.address}: it has no run.json. Give the address of a run's folder")
        self.info: dict[str, Any] = _read_info(self.path, self.address)

    def __repr__(self) -> str:
        return f"Run({self.address!r}, upsampler={self.info.get('upsampler')!r}, {len(self.steps)} snapshots)"

    def __reduce__(self) -> tuple[Any, ...]:
        # Opened again where it is unpickled: a remote run's temporary folder goes with the run.
        return type(self), (self.path if self._remote is None else self._remote.address,)

    def same_place(self, other: StoredRun) -> bool:
        """Whether both runs are read from the same folder."""
        if self._remote is None or other._remote is None:
            return self._remote is other._remote and self.path.resolve() == other.path.resolve()
        return self._remote.address.rstrip("/") == other._remote.address.rstrip("/")

    def file(self, name: str) -> Path:
        """Where one of the run's files lies on this machine, e.g. ``metrics.jsonl``; of a remote run it is fetched.

        A file that the run does not have gives a path that does not exist.

        Raises:
            FadevizError: a remote run's file cannot be fetched.
        """
        return self.path / name if self._remote is None else self._remote.fetch(name)

    @property
    def place(self) -> tuple[str, ...]:
        """The parts of the folder's path, from the root to its name, or of a remote run's URL."""
        parts = self.path.resolve().parts if self._remote is None else self.address.split("/")
        return tuple(printable(part) for part in parts)

    @property
    def run_id(self) -> str:
        """What every snapshot of this run carries in its header."""
        return str(self.info["run_id"])

    @property
    def status(self) -> str:
        """The run's status: ``running``, ``recording``, ``finished``, ``interrupted``, ``failed``, or ``stopped``.

        All but ``stopped`` are what run.json says. A run is ``stopped`` if run.json says that it is active, but no
        process on this machine writes into its folder: its process was killed, or the power failed. For runs written
        by another machine, and on file systems without locks, this cannot be known, and run.json is taken at its word.
        """
        status = str(self.info.get("status") or "")
        if status not in GOING_ON or self._remote is not None:
            return status
        # Older runs do not say which machine writes them.
        if self.info.get("writer", machine()) != machine() or not lock_is_free(self.path):
            return status
        now = str(_read_info(self.path, self.address).get("status") or "")  # it may have ended since it was opened
        return "stopped" if now == status else now

    @property
    def name(self) -> str:
        """What this run is called: its operator, and ``@shuffled`` if its labels were; or, without one, its folder."""
        control = "@shuffled" if self.info.get("config", {}).get("labels") == "shuffled" else ""
        return str(self.info.get("upsampler") or printable(self.path.resolve().name)) + control

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
    def _files(self) -> tuple[dict[int, str], dict[str, str]]:
        """The usable snapshots' names, by their steps; and what cannot be used, with the reason."""
        if self._remote is not None:
            return self._listed(self._remote), {}
        readable: dict[int, str] = {}
        broken: dict[str, str] = {}
        observation = self.path / "observation.safetensors"
        try:
            if observation.exists():
                with open_tensors(observation):
                    pass
        except (SafetensorError, OSError) as error:
            broken[observation.name] = unreadable(error) or f"damaged: {error}"
        folder = self.path / "snapshots"
        for file in sorted(folder.iterdir()) if folder.is_dir() else []:
            match = STEP_FILE.fullmatch(file.name)
            if not match:
                continue
            fault = self._fault(file, int(match[1]))
            if fault:
                broken[file.name] = fault
            else:
                readable[int(match[1])] = file.name
        return readable, broken

    def _listed(self, remote: RemoteFolder) -> dict[int, str]:
        """The snapshots of a remote run by their names alone: each is looked into when it is first read."""
        found = [match for name in remote.names("snapshots") if (match := STEP_FILE.fullmatch(name))]
        if found:
            return {int(match[1]): match[0] for match in found}
        # A web server may give files without listing them; a run that has ended has what it was to record.
        planned = self.info.get("schedule")
        if self.info.get("status") != "finished" or not isinstance(planned, list):
            return {}
        steps = {step for step in planned if type(step) is int and 0 <= step < 10**12}
        return {step: f"step_{step:06d}.safetensors" for step in steps}

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
        if not isinstance(header, dict) or header.get("run_id") != self.run_id:
            return f"belongs to another run than {self.run_id}"
        return "" if header.get("step") == step else f"holds step {header.get('step')}"

    @cached_property
    def _fetched(self) -> set[int]:
        """The steps of a remote run whose files were found to be whole."""
        return set()

    def _snapshot(self, step: int) -> Path:
        """The file of a recorded step, on this machine and whole."""
        if step not in self._files[0]:
            raise FadevizError(f"{self.address} has no snapshot of step {step}. It has: {_some(self.steps)}")
        file = self.file(f"snapshots/{self._files[0][step]}")
        if self._remote is not None and step not in self._fetched:
            fault = self._fault(file, step) if file.exists() else "missing"
            if fault:
                raise FadevizError(f"{self.address}/snapshots/{file.name}: {fault}. Choose other steps")
            self._fetched.add(step)
        return file

    @property
    def steps(self) -> tuple[int, ...]:
        """The recorded steps whose files are whole, increasing; of a remote run those that are listed."""
        return tuple(sorted(self._files[0]))

    @property
    def broken(self) -> dict[str, str]:
        """Files of the run that cannot be used, with the reason; of a remote run they show when they are read."""
        return dict(self._files[1])

    @cached_property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Each recorded layer with the kinds there are of it, in the network's order."""
        if not self.steps and self._remote is not None:
            raise FadevizError(
                f"no snapshots are listed at {self.address}/snapshots. If the server lists no folders, "
                "open a copy of the run on this machine"
            )
        if not self.steps:
            raise FadevizError(f"{self.address} has no whole snapshot. Record it again: fadeviz record ... --overwrite")
        with open_tensors(self._snapshot(self.steps[0])) as file:
            keys = [key.rsplit("/", 2) for key in file.keys()]  # noqa: SIM118 - a safetensors handle is no dict
        keys = [key for key in keys if len(key) == 3]
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
                f"{self.address} has no {kind!r} maps. Recorded: {', '.join(self._kinds())}. "
                f"Record them: fadeviz record --kinds {kind} ..."
            )
        chosen = self.info.get("figure_layer")
        return str(chosen) if chosen in having else having[max(0, len(having) - 2)]

    def _kinds(self) -> list[str]:
        return [k for k in KINDS if any(k in kinds for kinds in self.layers.values())]

    @contextmanager
    def _open(self, step: int, layer: str, kind: str, call: int) -> Iterator[Any]:
        """One map as a safetensors slice, of which nothing is read yet; its file holds what its shape says."""
        file = self._snapshot(step)
        key = f"{layer}/{call}/{kind}"
        try:
            with open_tensors(file) as opened:
                if key not in opened.keys():  # noqa: SIM118 - a safetensors handle is no dict
                    raise FadevizError(f"{self.address}, step {step}: no {kind!r} of {layer!r}, call {call}")
                part = opened.get_slice(key)
                if part.get_dtype() != "F32":
                    raise FadevizError(
                        f"{self.address}/snapshots/{file.name}: {key} is {part.get_dtype()}, but F32 is needed. "
                        "Record the run again with --overwrite"
                    )
                yield part
        except (SafetensorError, OSError) as error:  # it was whole when the run was opened
            raise FadevizError(
                f"{self.address}/snapshots/{file.name} cannot be read ({error}). Open the run again"
            ) from error

    def read(self, step: int, layer: str, kind: str, call: int = 0) -> NDArray[np.float32]:
        """The maps of every observed image at one step: ``(N, h, w)``, or ``(n, C, h, w)`` for ``CHANNEL_KINDS``."""
        self._snapshot(step)
        self.check(layer, kind)
        with self._open(step, layer, kind, call) as part:
            shape = part.get_shape()
            value: NDArray[np.float32] = np.zeros(shape, np.float32) if 0 in shape else part[...]
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
    ) -> Maps:
        """Maps over the training: ``(steps, N, h, w)``, or ``(steps, h, w)`` of one ``image``.

        Nothing but one header is read here. Indexing reads what it needs; ``np.asarray(...)`` reads all.

        Args:
            layer: dotted name; None takes ``default_layer(kind)``.
            kind: a name in ``KINDS``; ``CHANNEL_KINDS`` have one axis more, before h, unless ``channel`` is given.
            image: index of an observed image, or None for all.
            channel: index of a channel, for ``CHANNEL_KINDS`` only.
            steps: which recorded steps, or None for all.
            call: which call of a layer that runs several times in a forward pass.

        Raises:
            FadevizError: no such layer, kind, call, step, image or channel.
        """
        layer = layer if layer is not None else self.default_layer(kind)
        self.check(layer, kind)
        shown = self.steps if steps is None else tuple(int(step) for step in steps)
        if not shown:
            raise FadevizError(f"no steps of {self.address} were asked for. It has: {_some(self.steps)}")
        for step in shown:
            if step not in self._files[0]:
                raise FadevizError(f"{self.address} has no snapshot of step {step}. It has: {_some(self.steps)}")
        return Maps(self, layer, kind, shown, image, channel if kind in CHANNEL_KINDS else None, call)

    def to_xarray(self, layer: str | None = None, *, call: int = 0) -> Any:
        """What was recorded of one layer as an ``xarray.Dataset``: a variable a kind that is one map an image.

        Kinds whose size differs from the first one's, and ``CHANNEL_KINDS``, are left out and named in the attribute
        ``left_out``: ``run.maps(layer, kind)`` has its own ``to_xarray``.

        Args:
            layer: dotted name; None takes the first kind's ``default_layer``.
            call: which call of the layer.

        Raises:
            FadevizError: xarray is missing, no such layer, or no map of an image in it.
        """
        xarray = _xarray()
        if layer is None:
            kinds = [kind for kind in self._kinds() if kind not in CHANNEL_KINDS]
            layer = self.default_layer(kinds[0] if kinds else "feature")
        elif layer not in self.layers:
            raise unknown_name(f"layer in {self.address}", layer, self.layers, f"fadeviz info {self.address}")
        maps = [self.maps(layer, kind, call=call) for kind in self.layers[layer] if kind not in CHANNEL_KINDS]
        alike = [one for one in maps if one.shape == maps[0].shape]
        if not alike:
            raise FadevizError(f"{self.address} has no kind of {layer!r} that is one map an image. Take run.maps(...)")
        held = {one.kind: one.to_xarray() for one in alike}
        left_out = ", ".join(kind for kind in self.layers[layer] if kind not in held)
        return xarray.Dataset(held, attrs={"run": self.run_id, "layer": layer, "left_out": left_out})

    def calls(self, layer: str, kind: str = "feature") -> dict[int, tuple[int, ...]]:
        """The recorded calls of a layer in one forward pass, each with the height and width of its maps.

        A head shared by several pyramid levels has one call per level. Read from the first and the last snapshot, since
        a layer may start to run more often during training.

        Raises:
            FadevizError: no such layer or kind.
        """
        self.check(layer, kind)
        found: dict[int, tuple[int, ...]] = {}
        for step in (self.steps[-1], self.steps[0]):
            with suppress(FadevizError):  # the call after the last one
                for call in itertools.count():
                    with self._open(step, layer, kind, call) as part:
                        found.setdefault(call, tuple(part.get_shape())[-2:])
        return dict(sorted(found.items()))

    def check(self, layer: str, kind: str, call: int = 0) -> None:
        """Raise unless maps of this layer, kind and call were recorded; the message lists the nearest names."""
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
        if layer not in self.layers:
            raise unknown_name(f"layer in {self.address}", layer, self.layers, f"fadeviz info {self.address}")
        if kind not in self.layers[layer]:
            raise FadevizError(
                f"{self.address} has no {kind!r} maps of {layer!r}. There are: {', '.join(self.layers[layer])}. "
                f"Record them: fadeviz record --kinds {kind} ..."
            )
        if call and call not in (calls := self.calls(layer, kind)):
            raise FadevizError(
                f"{self.address} has no call {call} of {layer!r} ({kind}). "
                f"Recorded: {', '.join(map(str, calls))}. Choose one with --call"
            )

    @cached_property
    def observation(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The observed images: images ``(N, H, W, 3)`` and masks ``(N, H, W)``, uint8.

        Raises:
            FadevizError: the file is missing, damaged, or holds arrays of another kind.
        """
        mend = "Put it back, or record the run again with --overwrite"
        path = self.file("observation.safetensors")
        try:
            with open_tensors(path) as file:
                parts = [file.get_slice(name) for name in ("images", "masks")]
                # From the header, before anything is read: what fits together is no larger than the file.
                (images, masks), types = (part.get_shape() for part in parts), {part.get_dtype() for part in parts}
                if types != {"U8"} or len(images) != 4 or images[-1] != 3 or masks != images[:3] or 0 in images:
                    raise FadevizError(
                        f"{self.address}: observation.safetensors holds images {tuple(images)} and masks "
                        f"{tuple(masks)}, {' and '.join(sorted(types))}, but U8 (N, H, W, 3) and (N, H, W) are needed. "
                        + mend
                    )
                return parts[0][...], parts[1][...]
        except (SafetensorError, OSError) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else error
            raise FadevizError(
                f"{self.address}: observation.safetensors is missing or damaged ({reason}). {mend}"
            ) from error

    @cached_property
    def lost(self) -> str:
        """A note on why the observed images cannot be shown; empty if they can."""
        self.file("observation.safetensors")  # errors of a server are not damage
        try:
            _ = self.observation, self.mattes
        except FadevizError as error:
            return f"the observed images are left out: {error}"
        return ""

    @cached_property
    def mattes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """Of a matting run the observed images' alpha (0 to 255) and trimaps (0, 128, 255), ``(N, H, W)`` uint8.

        None where the run has no mattes.

        Raises:
            FadevizError: as :attr:`observation`.
        """
        masks = self.observation[1]
        with open_tensors(self.file("observation.safetensors")) as file:
            if not {"alphas", "trimaps"} <= set(file.keys()):
                return None
            parts = [file.get_slice(name) for name in ("alphas", "trimaps")]
            if any(tuple(part.get_shape()) != masks.shape or part.get_dtype() != "U8" for part in parts):
                raise FadevizError(
                    f"{self.address}: observation.safetensors holds mattes that do not fit its masks. "
                    "Record the run again with --overwrite"
                )
            return parts[0][...], parts[1][...]

    @property
    def foregrounds(self) -> NDArray[np.bool_]:
        """What is inside in each observed image, ``(N, H, W)``: the object whose outline and interior are measured.

        Where run.json names a class per image (``observation.foreground``, for data of many classes), that class; else
        every class but 0.

        Raises:
            FadevizError: as :attr:`observation`; classes that are not one for each image.
        """
        masks = self.observation[1]
        chosen = (self.info.get("observation") or {}).get("foreground")
        if chosen is None:
            inside: NDArray[np.bool_] = masks != 0
            return inside
        if len(chosen) != len(masks):
            raise FadevizError(
                f"{self.address}/run.json names {len(chosen)} foreground classes for {len(masks)} observed images. "
                "Record the run again with --overwrite"
            )
        of_class: NDArray[np.bool_] = masks == np.array(chosen, np.int64)[:, None, None]
        return of_class

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: one a step (loss, lr), and one an evaluation (of ``quality.TESTS``)."""
        path = self.file("metrics.jsonl")
        return read_metrics(path) if path.exists() else []


class Maps:
    """Maps of one layer and kind over the training: an array that is read from the files where it is indexed.

    ``maps[3:5, 0]`` reads two snapshots, and of each one image; ``np.asarray(maps)`` reads all. The index takes
    integers and slices, an ellipsis, and on the first axis a list; the result is a float32 array.

    Attributes:
        layer: dotted module name.
        kind: a name in ``KINDS``.
        call: which call of the layer.
        steps: the optimiser steps along the first axis.
        images: the names of the observed images along the axis ``image``, or of the one that was chosen.
        dims: a name for each axis: ``step``, ``image``, ``channel``, ``y``, ``x``, less what was chosen.
        shape: the length of each axis. y and x are counted in the layer's own cells.

    Example::

        maps = run.maps("decoder.3.upsample")
        last = maps[-1]                             # (N, h, w) float32, of the last step
        curve = [m.std() for m in maps[:, 0]]       # one image, a number a step
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        run: StoredRun,
        layer: str,
        kind: str,
        steps: tuple[int, ...],
        image: int | None,
        channel: int | None,
        call: int,
    ) -> None:
        """See :meth:`StoredRun.maps`, which makes them."""
        self.run, self.layer, self.kind, self.call, self.steps = run, layer, kind, call, steps
        self._checked: set[int] = set()
        axes = ("image", "channel", "y", "x") if kind in CHANNEL_KINDS else ("image", "y", "x")
        with run._open(steps[0], layer, kind, call) as part:
            self._stored = tuple(part.get_shape())
        if len(self._stored) != len(axes) or 0 in self._stored:
            raise FadevizError(
                f"{run.address}, step {steps[0]}: {kind!r} of {layer!r} is {_times(self._stored)}, but {len(axes)} "
                f"axes that are not empty are needed ({', '.join(axes)}). Record the run again with --overwrite"
            )
        if image is not None:
            _check_index("image", image, self._stored[0], f"{kind!r} of {run.address}")
        if channel is not None:
            _check_index("channel", channel, self._stored[1], f"layer {layer!r}")
        self._chosen = {"image": image, "channel": channel}
        self._axes = axes
        kept = [(axis, size) for axis, size in zip(axes, self._stored, strict=True) if self._chosen.get(axis) is None]
        self.dims = ("step", *(axis for axis, _ in kept))
        self.shape = (len(steps), *(size for _, size in kept))

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """What all of them take in memory, in bytes."""
        return self.size * self.dtype.itemsize

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the observed images along the axis ``image``, or of the one that was chosen."""
        if self.kind == "constant":
            return ("constant input",)
        told = (self.run.info.get("observation") or {}).get("names")
        names = list(told) if isinstance(told, list) else []
        numbers = range(self._stored[0]) if self._chosen["image"] is None else [self._chosen["image"]]
        return tuple(str(names[n]) if n < len(names) else f"image {n}" for n in numbers)

    def __repr__(self) -> str:
        size = f"{self.nbytes / 1e6:.1f} MB" if self.nbytes >= 1e5 else f"{self.nbytes} bytes"
        axes = ", ".join(f"{name} {length}" for name, length in zip(self.dims, self.shape, strict=True))
        chosen = "".join(f", {axis} {number}" for axis, number in self._chosen.items() if number is not None)
        return (
            f"Maps({self.run.name}, {self.layer}, {self.kind}{chosen}: {axes}; {self.dtype}, {size})\n"
            f"  steps {_some(self.steps)}\n  read where it is indexed; np.asarray(...) reads all"
        )

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[place] for place in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("maps lie in files: an array of them is always a copy")
        whole: NDArray[np.float32] = self[...]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        """Read a part: integers and slices, an ellipsis, and a list or an array of places on the first axis.

        Raises:
            IndexError: outside of the axes, or an index of another kind.
            FadevizError: a file that cannot be read, or whose maps have another shape than the first step's.
        """
        first, *within = _expanded(index, self.dims, self.shape)
        if isinstance(first, int):
            return self._read(self.steps[first], within)
        shown = [self.steps[place] for place in first]
        for step in shown:  # all of them before any room is taken: none is larger than its file
            self._check_room(step)
        each = np.broadcast_to(np.float32(0), self.shape[1:])[tuple(within)].shape
        found = np.empty((len(shown), *each), np.float32)
        for place, step in enumerate(shown):
            found[place] = self._read(step, within)
        return found

    def _check_room(self, step: int) -> None:
        """Raise if a file is too small for such maps; its content is checked when it is read."""
        try:
            if step in self._checked or self.run._snapshot(step).stat().st_size >= 4 * math.prod(self._stored):
                return
        except OSError:
            pass  # opening the file reports what is wrong
        with self.run._open(step, self.layer, self.kind, self.call) as part:
            self._check(step, part)

    def _check(self, step: int, part: Any) -> None:
        if step in self._checked:
            return
        stored = tuple(part.get_shape())
        if stored != self._stored:
            raise FadevizError(
                f"{self.run.address}/snapshots/step_{step:06d}.safetensors: {self.kind!r} of {self.layer!r} is "
                f"{_times(stored)}, but {_times(self._stored)} at step {self.steps[0]}. Choose other steps, "
                "or record the run again"
            )
        self._checked.add(step)

    def _read(self, step: int, within: Sequence[int | slice]) -> NDArray[np.float32]:
        """The part of one step: of the leading axes no more is read than lies between the ends of what is asked for."""
        asked = iter(within)
        fixed = [self._chosen.get(axis) for axis in self._axes]
        index = [next(asked) if number is None else number for number in fixed]
        bounds = [_bounds(one, size) for one, size in zip(index[:-2], self._stored[:-2], strict=True)]
        with self.run._open(step, self.layer, self.kind, self.call) as part:
            self._check(step, part)
            read: NDArray[np.float32] = part[tuple(outer for outer, _ in bounds)]
        value: NDArray[np.float32] = read[(*(inner for _, inner in bounds), *index[-2:])]
        return value

    def to_xarray(self) -> Any:
        """All of the maps as an ``xarray.DataArray`` with coordinates: step, image, channel, y and x (cell numbers).

        Raises:
            MissingExtra: xarray is not installed.
        """
        xarray = _xarray()
        names = self.images if self._chosen["image"] is None else self.images[0]
        coordinates: dict[str, Any] = {"step": list(self.steps), "image": names}
        for axis, length in zip(self._axes[1:], self._stored[1:], strict=True):
            number = self._chosen.get(axis)
            coordinates[axis] = np.arange(length) if number is None else number
        return xarray.DataArray(
            np.asarray(self),
            dims=self.dims,
            coords={k: (k, list(v) if k == "image" else v) if k in self.dims else v for k, v in coordinates.items()},
            name=self.kind,
            attrs={
                "long_name": self.kind.replace("_", " "),
                "meaning": KINDS[self.kind],
                "layer": self.layer,
                "kind": self.kind,
                "call": self.call,
                "run": self.run.run_id,
            },
        )


def _expanded(index: Any, dims: Sequence[str], shape: Sequence[int]) -> list[Any]:
    """An index for each axis: a list of places or an integer on the first one, integers and slices on the others."""
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = [place for place, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if len(parts) - len(dots) > len(shape):
        raise IndexError(f"too many indices: maps have {len(shape)} axes ({', '.join(dims)})")
    at = dots[0] if dots else len(parts)
    parts[at : at + len(dots)] = [slice(None)] * (len(shape) - len(parts) + len(dots))
    first, *others = parts
    if isinstance(first, slice):
        first = list(range(shape[0])[first])
    elif isinstance(first, (list, np.ndarray)) and np.ndim(first) == 1:
        places = np.asarray(first) if len(first) else np.zeros(0, np.intp)
        if places.dtype == bool and len(places) == shape[0]:
            places = np.flatnonzero(places)
        first = [_place(place, dims[0], shape[0]) for place in places]
    else:
        first = _place(first, dims[0], shape[0])
    rest = zip(others, dims[1:], shape[1:], strict=True)
    return [first, *(part if isinstance(part, slice) else _place(part, name, size) for part, name, size in rest)]


def _place(index: Any, axis: str, size: int) -> int:
    try:
        if isinstance(index, (bool, np.bool_)):
            raise TypeError
        number = operator.index(index)
    except TypeError:
        what = "integers, slices and a list" if axis == "step" else "integers and slices"
        raise IndexError(
            f"axis {axis!r} of maps takes {what}, not {type(index).__name__}: index np.asarray(maps)"
        ) from None
    if not -size <= number < size:
        raise IndexError(f"index {number} is out of bounds for axis {axis!r} with size {size}")
    return number % size


def _bounds(index: int | slice, size: int) -> tuple[slice, int | slice]:
    """The contiguous part of an axis that holds what is asked for, and what is asked for as an index into that part."""
    if isinstance(index, int):
        return slice(index, index + 1), 0
    places = range(size)[index]
    if not places:
        return slice(0, 1), slice(0, 0)
    low, high = min(places[0], places[-1]), max(places[0], places[-1])
    stop = places.stop - low
    return slice(low, high + 1), slice(places.start - low, stop if stop >= 0 else None, places.step)


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _xarray() -> Any:
    try:
        import xarray
    except ImportError as error:
        raise MissingExtra("xarray", "this needs xarray, which is not installed") from error
    return xarray


def lost_snapshots(run: StoredRun) -> str:
    """Which scheduled steps of a finished run have no whole snapshot, in words; empty where there are none."""
    missing = sorted(set(run.info.get("schedule", [])) - set(run.steps))
    if not missing or run.info.get("status") != "finished":
        return ""
    steps = ", ".join(map(str, missing[:6])) + (" ..." if len(missing) > 6 else "")
    return f"scheduled steps without a whole snapshot: {steps}. Only recording the run anew brings them back"


def distinct_paths(runs: Sequence[StoredRun]) -> list[str]:
    """The shortest end of each run's path that is unique: ``fade``, or ``a/fade`` and ``b/fade``."""
    places = [run.place for run in runs]

    def told(place: tuple[str, ...]) -> str:
        others = [other for other in places if other != place]
        for length in range(1, len(place)):
            if all(other[-length:] != place[-length:] for other in others):
                return "/".join(place[-length:])
        return "/".join(place)

    return [told(place) for place in places]


def run_labels(runs: Sequence[StoredRun], names: Sequence[str] | None = None) -> list[str]:
    """Unique labels of the runs for figures and tables: their titles, and what distinguishes runs of the same title.

    That is the network, the seed, or as much of the path as needed, whichever is the first to be unique among the runs
    of that title: ``FADE, SegNet``; ``FADE, seed 1``; ``FADE, b/fade``. A run named after its folder gets as much of
    its path: ``b/fade``.

    Args:
        runs: the runs, each from a different folder.
        names: the labels where these are unique; None takes the runs' titles.
    """
    names = [run.title for run in runs] if names is None else names
    labels = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        twins = [other for i, other in enumerate(runs) if i != index and names[i] == name]
        path = distinct_paths([run, *twins])[0]
        called = [
            (f"{name}, {run.info.get('network_title')}", [other.info.get("network_title") for other in twins]),
            (f"{name}, seed {_seed(run)}", [None if _seed(run) is None else _seed(other) for other in twins]),
            (path if path.endswith(f"/{name}") else f"{name}, {path}", []),
        ]
        mine = [run.info.get("network_title"), _seed(run), path]
        told = next(label for (label, theirs), own in zip(called, mine, strict=True) if own not in theirs)
        labels.append(told if twins else name)
    return labels


def _seed(run: StoredRun) -> Any:
    return (run.info.get("config") or {}).get("seed")


def describe_calls(layer: str, calls: Mapping[int, Sequence[int]], call: int = 0) -> str:
    """A note on a layer's other calls (see :meth:`StoredRun.calls`) when one is shown; empty if there are none."""
    others = [f"{number} ({'x'.join(map(str, size))})" for number, size in calls.items() if number != call]
    if not others:
        return ""
    shown = ", ".join(others if len(others) <= 8 else [*others[:7], "...", others[-1]])
    plural = "s" * (len(others) > 1)
    return f"{layer}: call {call} is shown; also recorded: call{plural} {shown}. Choose with --call"


def check_layer(runs: Sequence[StoredRun], layer: str, kind: str, call: int = 0) -> None:
    """Raise unless all runs have maps of this layer, kind and call.

    Raises:
        FadevizError: with the run that does not, and the layers that all of them have.
    """
    for run in runs:
        having = next((other for other in runs if layer in other.layers), None)
        if having is not None and layer not in run.layers:
            common = [name for name in run.layers if all(kind in other.layers.get(name, ()) for other in runs)]
            shown = common if len(common) <= 12 else [*common[:12], "..."]
            choose = f"All have {kind!r} maps of: {', '.join(shown)}. Choose one with --layer"
            none = f"No layer has {kind!r} maps in all of them: they cannot be compared"
            raise FadevizError(
                f"{run.address} has no layer {layer!r}, but {having.address} does. {choose if common else none}"
            )
        run.check(layer, kind, call)


def common_steps(runs: Sequence[StoredRun], steps: Sequence[int] | None = None) -> tuple[int, ...]:
    """The steps that all runs have, increasing; or ``steps``, sorted, after a check that all runs have them."""
    common = set(runs[0].steps).intersection(*(run.steps for run in runs))
    if steps is not None:
        for step in steps:
            for run in runs:
                if step not in run.steps:
                    raise FadevizError(
                        f"{run.address} has no snapshot of step {step}. List them: fadeviz info {run.address}"
                    )
        common = set(steps)
    if not common:
        names = " and ".join(run.address for run in runs)
        raise FadevizError(f"{names}: no recorded step in common. Record them with the same --snapshots")
    return tuple(sorted(common))


def _read_info(path: Path, address: str) -> dict[str, Any]:
    if not os.path.isdir(path):  # False as well for what can be no path
        raise FadevizError(f"no run folder {address}. Make one: fadeviz record --out {address} ...")
    try:
        info = json.loads(read_regular(path / "run.json").decode())
        version, run_id = int(info["format"]), info["run_id"]
    except FileNotFoundError:
        raise FadevizError(f"{address} is not a run: it has no run.json. Give the folder that --out named") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        if told := unreadable(error):
            raise FadevizError(f"{address}/run.json {told}. Fix that, or choose another folder") from error
        raise FadevizError(f"{address}/run.json is damaged ({error}). Record the run again with --overwrite") from error
    if version > FORMAT:
        raise FadevizError(
            f"{address} has format {version}, this fadeviz reads up to {FORMAT}. Upgrade: pip install -U fadeviz"
        )
    if not isinstance(run_id, str):
        raise FadevizError(f"{address}/run.json is damaged (run_id is no text). Record the run again with --overwrite")
    for key, kind in _KINDS_OF_VALUES.items():
        value: Any = info
        for name in key.split("."):
            value = value.get(name, _MISSING) if isinstance(value, dict) else _MISSING
        if value is not _MISSING and not _is(value, kind):
            raise FadevizError(
                f"{address}/run.json is damaged ({key} is no {kind}). Record the run again with --overwrite"
            )
    return {key: value for key, value in _plain(info).items() if key != "crc32"}


_KINDS_OF_VALUES = {
    **dict.fromkeys(
        ("upsampler", "title", "network", "network_title", "weights", "status", "message", "writer"), "text"
    ),
    **dict.fromkeys(("figure_layer", "device", "data.name", "observation.mode", "config.labels"), "text"),
    **dict.fromkeys(("config", "data", "layers", "observation", "versions"), "object"),
    **dict.fromkeys(("kinds", "observation.names", "data.notes", "notes"), "list of texts"),
    **dict.fromkeys(("result", "seconds"), "object of numbers"),
    **dict.fromkeys(("parameters", "last_step", "config.seed"), "whole number"),
    "errors": "list of objects",
    "threads": "count",
    "classes": "number of classes",
    **dict.fromkeys(("schedule", "observation.foreground"), "list of whole numbers"),
}
"""What must be what in run.json, where it is there at all."""

_MISSING = object()


def _is(value: object, kind: str) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if kind == "text":
        return value is None or isinstance(value, str)
    if kind == "whole number":
        return value is None or whole
    if kind == "count":
        return whole and 0 < value < 10_000  # type: ignore[operator]
    if kind == "number of classes":
        return whole and 2 <= value <= 254  # type: ignore[operator]
    if kind == "number":
        return whole or isinstance(value, float)
    if kind.startswith("list of "):
        one = kind.removeprefix("list of ").removesuffix("s")
        return isinstance(value, list) and all(item is not None and _is(item, one) for item in value)
    return isinstance(value, dict) and (kind == "object" or all(_is(item, "number") for item in value.values()))


def _plain(value: Any) -> Any:
    """The value with every text as one line that does nothing to a terminal, whoever wrote it."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {printable(key): _plain(one) for key, one in value.items()}
    return value


def _check_index(what: str, index: int, count: int, where: str) -> None:
    if not 0 <= index < count:
        raise FadevizError(f"no {what} {index} in {where}: there are {count}, from 0 to {count - 1}")


def _some(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps if len(steps) <= 8 else [*steps[:4], "...", *steps[-3:]]))
