"""A run for reading: settings, metrics, observed images and maps, without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError, printable
from .files import lock_is_free, machine
from .folder import RunFolder
from .info import ACTIVE, RunInfo, read_info
from .map_index import MapIndex
from .maps import Maps, as_dataset
from .observation import FILE, read_mattes, read_observation, select_foregrounds
from .snapshot_files import SnapshotFiles, some_steps
from .snapshots import CHANNEL_KINDS, KINDS, read_metrics


class StoredRun:
    """The reading half of a run folder: settings, metrics, observed images and maps, without torch.

    The folder may lie at an address that fsspec knows (``s3://bucket/run``, ``https://...``): each file is then fetched
    when it is first needed, into a temporary folder.

    Attributes:
        path: the folder on this machine; of a remote run the temporary one.
        address: the folder as messages name it: the path as it was given, or the address.
        info: the content of run.json.

    Example::

        run = fadeviz.open_run("outputs/fade")
        maps = run.maps("decoder.3.upsample", "feature", image=0)   # (steps, h, w) float32, read when indexed
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a run folder.

        Raises:
            FadevizError: if there is no such folder, its run.json is missing, damaged or of a newer format, or an
                address cannot be read.
        """
        self._folder = RunFolder(path)
        self.path, self.address = self._folder.path, self._folder.address
        self.info: RunInfo = read_info(self.path, self.address)
        self._snapshots = SnapshotFiles(self._folder, self.info)
        self._index = MapIndex(self._snapshots)

    def __repr__(self) -> str:
        return f"Run({self.address!r}, upsampler={self.info.upsampler!r}, {len(self.steps)} snapshots)"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._folder.__reduce__()[1]  # opened again where it is unpickled

    def reopened(self) -> Self:
        """The run as its folder is now; snapshot files that have not changed are not checked again.

        Raises:
            FadevizError: as when a run is opened.
        """
        run = type(self)(*self._folder.__reduce__()[1])
        run._snapshots.trust(self._snapshots)
        return run

    def same_folder(self, other: StoredRun) -> bool:
        """Whether both runs are read from the same folder."""
        return self._folder.same_as(other._folder)

    def file(self, name: str) -> Path:
        """The path of a file on this machine, e.g. ``metrics.jsonl``, if it exists; of a remote run it is fetched.

        Raises:
            FadevizError: if a remote run's file cannot be fetched.
        """
        return self._folder.file(name)

    @property
    def path_parts(self) -> tuple[str, ...]:
        """The parts of the folder's path, from the root to its name, or of a remote run's URL."""
        return self._folder.parts

    @property
    def run_id(self) -> str:
        """The id that every snapshot of this run carries in its header."""
        return self.info.run_id

    @property
    def status(self) -> str:
        """The run's status: ``running``, ``recording``, ``finished``, ``interrupted``, ``failed``, or ``stopped``.

        A run is ``stopped`` if run.json calls it active, but no process on this machine writes into its folder: its
        process was killed, or the power failed. This is not detected for runs written by another machine, and on file
        systems without locks.
        """
        status = self.info.status or ""
        if status not in ACTIVE or self._folder.remote is not None:
            return status
        # Older runs do not say which machine writes them.
        writer = machine() if self.info.writer is None else self.info.writer
        if writer != machine() or not lock_is_free(self.path):
            return status
        now = read_info(self.path, self.address).status or ""  # it may have ended since it was opened
        return "stopped" if now == status else now

    @property
    def name(self) -> str:
        """The run's name: its operator, and ``@shuffled`` if its labels were; or, without one, its folder."""
        control = "@shuffled" if self.info.config.labels == "shuffled" else ""
        return (self.info.upsampler or printable(self.path.resolve().name)) + control

    @property
    def title(self) -> str:
        """The operator as papers write it, with its options and control; or, without one, the run's name."""
        if not self.info.title:
            return self.name
        operator, _, control = self.name.partition("@")
        options = operator.partition(":")[2]
        labels = f", {control} labels" if control else ""
        return self.info.title + (f" ({options})" if options else "") + labels

    @property
    def steps(self) -> tuple[int, ...]:
        """The recorded steps whose files are whole, increasing; of a remote run those that are listed."""
        return self._snapshots.steps

    @property
    def broken(self) -> dict[str, str]:
        """Files of the run that cannot be used, with the reason; of a remote run they show when they are read."""
        return self._snapshots.broken

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Each recorded layer with its recorded kinds, in the network's order.

        Raises:
            FadevizError: if there is no whole snapshot.
        """
        return self._index.layers

    def default_layer(self, kind: str) -> str:
        """The layer that figures show: the network's intermediate one, else the last but one that has ``kind``.

        Raises:
            FadevizError: if no layer has it.
        """
        return self._index.default_layer(kind)

    def read(self, step: int, layer: str, kind: str, call: int = 0) -> NDArray[np.float32]:
        """The maps of every observed image at one step: ``(N, h, w)``, or ``(n, C, h, w)`` for ``CHANNEL_KINDS``."""
        self._snapshots.path(step)
        layer = self.check(layer, kind)
        with self._snapshots.open_map(step, layer, kind, call) as part:
            shape = part.get_shape()
            value: NDArray[np.float32] = np.zeros(shape, np.float32) if 0 in shape else part[...]
        return value

    def prediction(self, step: int, image: int | None = None) -> NDArray[np.uint8]:
        """What the model predicted for the observed images at one step.

        Args:
            step: a recorded step.
            image: index of an observed image, or None for all.

        Returns:
            ``(N, H, W)``, or ``(H, W)`` of one image: the class of each pixel, 255 where it has none; or, where
            ``info.predictions`` is ``alpha``, its alpha from 0 to 255.

        Raises:
            FadevizError: if predictions were not recorded, or there is no such step or image.
        """
        with self._snapshots.open_prediction(step) as part:
            count = part.get_shape()[0]
            if image is not None and not 0 <= image < count:
                raise FadevizError(
                    f"no image {image} in the predictions of {self.address}: there are {count}, from 0 to {count - 1}"
                )
            value: NDArray[np.uint8] = part[...] if image is None else part[image : image + 1][0]
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
            layer: dotted name, with or without prefixes that trainers add (see :meth:`find_layer`); None takes
                ``default_layer(kind)``.
            kind: a name in ``KINDS``; ``CHANNEL_KINDS`` have one axis more, before h, unless ``channel`` is given.
            image: index of an observed image, or None for all.
            channel: index of a channel, for ``CHANNEL_KINDS`` only.
            steps: which recorded steps, or None for all.
            call: which call of a layer that runs several times in a forward pass.

        Raises:
            FadevizError: if there is no such layer, kind, call, step, image or channel.
        """
        layer = self.check(layer if layer is not None else self.default_layer(kind), kind)
        shown = self.steps if steps is None else tuple(int(step) for step in steps)
        if not shown:
            raise FadevizError(f"no steps of {self.address} were asked for. It has: {some_steps(self.steps)}")
        for step in shown:
            self._snapshots.check_step(step)
        channel = channel if kind in CHANNEL_KINDS else None
        return Maps(self._snapshots, self.name, layer, kind, shown, image, channel, call)

    def to_xarray(self, layer: str | None = None, *, call: int = 0) -> Any:
        """What was recorded of one layer as an ``xarray.Dataset``: a variable for each kind with one map per image.

        Kinds whose size differs from the first one's, and ``CHANNEL_KINDS``, are left out and named in the attribute
        ``left_out``: ``run.maps(layer, kind)`` has its own ``to_xarray``.

        Args:
            layer: dotted name; None takes the first kind's ``default_layer``.
            call: which call of the layer.

        Raises:
            FadevizError: if xarray is missing, or there is no such layer, or none of its kinds is one map per image.
        """
        if layer is None:
            recorded = (kind for kind in KINDS if any(kind in kinds for kinds in self.layers.values()))
            layer = self.default_layer(next((kind for kind in recorded if kind not in CHANNEL_KINDS), "feature"))
        layer = self.find_layer(layer)
        kinds = self.layers[layer]
        maps = [self.maps(layer, kind, call=call) for kind in kinds if kind not in CHANNEL_KINDS]
        if not maps:
            raise FadevizError(f"{self.address} has no kind of {layer!r} with one map per image. Use run.maps(...)")
        return as_dataset(maps, kinds)

    def calls(self, layer: str, kind: str = "feature") -> dict[int, tuple[int, ...]]:
        """The recorded calls of a layer in one forward pass, each with the height and width of its maps.

        A head shared by several pyramid levels has one call per level.

        Raises:
            FadevizError: if there is no such layer or kind.
        """
        return self._index.calls(layer, kind)

    def snapshot_versions(self, steps: Sequence[int]) -> dict[str, list[int | str]] | None:
        """What tells the snapshots of these steps from others of the same steps, without reading their maps.

        Of a folder on this machine: each file's size, time and header, which holds checksums of its maps. Of a remote
        run: what the server says of the file. Equal versions mean that the maps are the same.

        Returns:
            The versions by file names; None if a file is missing or a server does not say enough.

        Raises:
            FadevizError: if there is no snapshot of a step.
        """
        return self._snapshots.versions(steps)

    def snapshots_are(self, steps: Sequence[int], versions: dict[str, list[int | str]]) -> bool:
        """Whether these versions are still those of the files, and what was read in the meantime was of them."""
        return self._snapshots.are(steps, versions)

    def check(self, layer: str, kind: str, call: int = 0) -> str:
        """Raise unless maps of this layer, kind and call were recorded; the message lists the nearest names.

        Returns:
            The layer's name as it is recorded; see :meth:`find_layer`.

        Raises:
            FadevizError: if they were not.
        """
        return self._index.check(layer, kind, call)

    def matching_layers(self, layer: str) -> list[str]:
        """The recorded layers that a name stands for, more than one if it is ambiguous; see :meth:`find_layer`."""
        return self._index.matching(layer)

    def find_layer(self, layer: str) -> str:
        """The name under which a layer is recorded.

        Prefixes that trainers add (Lightning's ``model.``, ``module.`` of DistributedDataParallel, ``_orig_mod.`` of
        torch.compile) may be missing or different: ``decoder.up1`` finds ``model.decoder.up1``, unless there is a layer
        of the very name.

        Raises:
            FadevizError: if there is no such layer, or several that differ only in their prefixes.
        """
        return self._index.find(layer)

    @cached_property
    def observation(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The observed images: images ``(N, H, W, 3)`` and masks ``(N, H, W)``, uint8.

        Raises:
            FadevizError: if the file is missing or damaged, or holds arrays of another shape or dtype.
        """
        return read_observation(self._folder)

    @cached_property
    def lost(self) -> str:
        """A note on why the observed images cannot be shown; empty if they can."""
        self.file(FILE)  # errors of a server are not damage
        try:
            _ = self.observation, self.mattes
        except FadevizError as error:
            return f"the observed images are left out: {error}"
        if self.info.observation.images == "none":
            return "the observed images are left out: the maps were imported without them"
        return ""

    @cached_property
    def mattes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """Alpha (0 to 255) and trimaps (0, 128, 255) of a matting run's images, ``(N, H, W)`` uint8; else None.

        Raises:
            FadevizError: as :attr:`observation`.
        """
        return read_mattes(self._folder, self.observation[1].shape)

    @property
    def foregrounds(self) -> NDArray[np.bool_]:
        """What is inside in each observed image, ``(N, H, W)``: the object whose outline and interior are measured.

        Where run.json names a class per image (``observation.foreground``, for data of many classes), that class; else
        every class but 0.

        Raises:
            FadevizError: as :attr:`observation`, or if there is not one class for each image.
        """
        return select_foregrounds(self.observation[1], self.info.observation.foreground, self.address)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: one for each step (loss, lr), with the metrics of a test where there was one."""
        path = self.file("metrics.jsonl")
        return read_metrics(path) if path.exists() else []


def lost_snapshots(run: StoredRun) -> str:
    """A note on the scheduled steps of a finished run that have no whole snapshot; empty if there are none."""
    missing = sorted(set(run.info.schedule) - set(run.steps))
    if not missing or run.info.status != "finished":
        return ""
    steps = ", ".join(map(str, missing[:6])) + (" ..." if len(missing) > 6 else "")
    return f"scheduled steps without a whole snapshot: {steps}. Only recording the run anew brings them back"
