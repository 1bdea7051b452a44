"""Recording from inside anybody's training loop: five lines, and the training stays what it was."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .errors import FadevizError
from .probes import Mode, Probe
from .schedule import Schedule, at, parse_schedule
from .snapshots import Run, Snapshot, SnapshotStore, check_folder, only_writer, open_run, remove_run
from .views import View


class Recorder:
    """Maps of a model's layers on a fixed batch, recorded at scheduled steps of a training that is not ours.

    The untrained model is recorded when the recorder is made; :meth:`step`, called after each optimiser step, records
    the scheduled ones and does nothing else at all others. Weights, gradients, optimiser, BatchNorm statistics, modes
    and random numbers of the training stay as they are, bit for bit. Gradients are of ``loss_fn`` on the observed batch
    in float32: a GradScaler's scale is not in them.

    The folder is an ordinary run: ``fadeviz grid``, ``animate``, ``analyze`` and ``report`` read it.

    Example::

        recorder = fadeviz.Recorder(model, "decoder.*", "100:3000:100", "outputs/mine",
                                    observe=(images, targets), loss_fn=criterion)
        for step, batch in enumerate(loader, start=1):
            ...                       # your step, untouched
            recorder.step(step)
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | nn.Module | Sequence[str | nn.Module],
        steps: str | Schedule | Iterable[int],
        out: str | Path,
        *,
        observe: tuple[Any, Any],
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        kinds: str | Sequence[str] | None = None,
        mode: Mode = "eval",
        views: Mapping[str, View] | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        channel_images: int = 1,
        pictures: NDArray[np.uint8] | None = None,
        masks: NDArray[np.integer[Any]] | None = None,
        names: Sequence[str] | None = None,
        name: str | None = None,
        seed: int | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Look at the model once, and open the folder.

        Args:
            model: any module, on its device; also compiled, or wrapped in DataParallel or DistributedDataParallel.
            layers: as for :class:`~fadeviz.probes.Probe`.
            steps: ``"100:3000:100,320:360:10"``, or the steps; 0 is always one.
            out: the run's folder.
            observe: ``(images, targets)``, the same at every step. Images are what the model is called with: a tensor
                ``(N, ...)``, or a dict of keyword arguments. Moved to the model's device.
            loss_fn: ``loss_fn(output, targets)``, a scalar; None records no gradients.
            kinds: as for :class:`~fadeviz.probes.Probe`; None takes the small ones that the layers have.
            mode: ``eval`` or ``batch``, as for :meth:`~fadeviz.probes.Probe.observe`.
            views: how to read a map from outputs that are no map.
            reduce: makes the kind ``feature`` of a layer's map; None takes the mean over channels.
            channel_images: images of which the large kinds are kept.
            pictures: ``(N, H, W, 3)``, what to show of the observed images; None makes them of images
                ``(N, 1 or 3, H, W)``, from the smallest to the largest value of each.
            masks: ``(N, H, W)``, the objects: all but 0 is foreground; None takes targets of that shape that are
                integers. Without any, the maps can be drawn, but not measured against an outline.
            names: of the images.
            name: what figures call the run; None takes the folder's name.
            seed: of the training: runs of one name and several seeds are measured together.
            resume: go on in the folder of a run that stopped; it must have the same layers, kinds and images.
            overwrite: replace a run that is there.

        Raises:
            FadevizError: a folder that is in use or holds something else, layers or kinds there are not, a model that
                cannot be observed. Nothing was written or removed then.
        """
        self.model = _unwrapped(model)
        self.out = Path(out)
        self.schedule = _schedule(steps)
        self.images, self.targets = _on(observe[0], _device(self.model)), _on(observe[1], _device(self.model))
        self.loss_fn = loss_fn if loss_fn is not None else _no_loss
        self.mode = mode
        self._open = contextlib.ExitStack()
        self._writes = _is_first_process()
        if not self._writes:  # one process writes; the others need not even look
            return
        check_folder(self.out, resume=resume, overwrite=overwrite)
        probe = Probe(self.model, layers, kinds, channel_images, views=views, reduce=reduce)
        if loss_fn is None and "gradient" in probe.kinds:
            if kinds is not None and kinds != "all":
                raise FadevizError("the kind gradient needs loss_fn: the scalar it is the gradient of")
            probe.kinds = tuple(kind for kind in probe.kinds if kind != "gradient")
        self.probe = probe
        shown, outlines = _pictures(self.images, self.targets, pictures, masks)
        self._open.enter_context(only_writer(self.out))
        try:
            before = open_run(self.out) if resume and (self.out / "run.json").exists() else None
            if before is None:
                self._begin(shown, outlines, _names(names, len(shown)), name, seed, overwrite)
            else:
                self._go_on(before, shown, outlines)
        except BaseException:
            self._open.close()
            raise
        weakref.finalize(self, self._open.close)

    def _begin(
        self,
        pictures: NDArray[np.uint8],
        masks: NDArray[np.uint8],
        names: list[str],
        name: str | None,
        seed: int | None,
        overwrite: bool,
    ) -> None:
        untrained = self._look(0)  # what cannot be observed is found here, before an old run is removed
        if overwrite:
            remove_run(self.out)
        self.store = SnapshotStore(self.out, _run_id(untrained, pictures, seed))
        self.store.forget_after(-1)
        self.info: dict[str, Any] = {
            "status": "recording",
            **({} if name is None else {"upsampler": name, "title": name}),
            "network": type(self.model).__name__,
            "network_title": type(self.model).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "config": {} if seed is None else {"seed": seed},
            "schedule": list(self.schedule),
            "kinds": list(self.probe.kinds),
            "layers": {s.layer: {"size": list(s.value.shape[-2:])} for s in untrained},
            "observation": {"names": names, "mode": self.mode},
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }
        self.store.write_info(self.info)
        self.store.write_observation(pictures, masks)
        self.store.write(0, untrained)

    def _go_on(self, before: Run, pictures: NDArray[np.uint8], masks: NDArray[np.uint8]) -> None:
        same = [np.array_equal(a, b) for a, b in zip(before.observation, (pictures, masks), strict=True)]
        if not all(same):
            raise FadevizError(f"{self.out} observed other images. Observe the same, or choose another folder")
        for what, was, wanted in (
            ("layers", list(before.info.get("layers", {})), list(self.probe.layers)),
            ("kinds", before.info.get("kinds"), list(self.probe.kinds)),
        ):
            if was != wanted:
                raise FadevizError(f"{self.out} was recorded with other {what}: {was}, now {wanted}. Use the same")
        self.store = SnapshotStore(self.out, before.run_id)
        self.info = {key: value for key, value in before.info.items() if key not in ("format", "run_id")}
        self.info |= {"status": "recording", "schedule": list(self.schedule)}
        self.store.write_info(self.info)

    def step(self, step: int) -> bool:
        """Record, if ``step`` is scheduled: the number of optimiser steps done.

        Returns:
            Whether maps were recorded.

        Raises:
            FadevizError: the disk is full, or the model cannot be observed any more.
        """
        if step not in self.schedule or not self._writes:
            return False
        if not hasattr(self, "store"):
            raise FadevizError("this recorder is closed: make a new one, with resume=True to go on in its folder")
        self.store.write(step, self._look(step))
        if step == self.schedule.last:  # metrics may still be logged
            self.store.write_info({**self.info, "status": "finished"})
        return True

    def log(self, step: int, **values: float) -> None:
        """Add a line to the run's metrics: ``recorder.log(step, loss=0.3)``; ``fadeviz plot`` draws ``miou``."""
        if self._writes and hasattr(self, "store"):
            self.store.append_metrics({"step": step, **{key: float(value) for key, value in values.items()}})

    def close(self) -> None:
        """Say that the recording is over, and let others write into the folder. The last scheduled step says it too."""
        if self._writes and hasattr(self, "store"):
            with self._open:
                self.store.write_info({**self.info, "status": "finished"})
            del self.store

    def __enter__(self) -> Recorder:
        """For ``with``: closes at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._open.close()

    def _look(self, step: int) -> list[Snapshot]:
        return self.probe.observe(self.images, self.targets, self.loss_fn, step=step, mode=self.mode)


def _no_loss(output: Any, targets: Any) -> Tensor:
    raise AssertionError("no gradients without loss_fn")  # never called: gradient is not among the kinds


def _unwrapped(model: nn.Module) -> nn.Module:
    if any(type(module).__name__ in ("FullyShardedDataParallel",) or _is_sharded(module) for module in model.modules()):
        raise FadevizError(
            "this model is sharded (FSDP): no process has all of a layer, so that there is nothing to observe. "
            "Observe an unsharded copy, e.g. from a checkpoint"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        # A forward pass through the wrapper would wait for the other processes.
        inner: nn.Module = model.module
        return inner
    return model


def _is_sharded(module: nn.Module) -> bool:
    return any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__)


def _is_first_process() -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


def _schedule(steps: str | Schedule | Iterable[int]) -> Schedule:
    if isinstance(steps, Schedule):
        return steps
    return parse_schedule(steps) if isinstance(steps, str) else at(steps)


def _device(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def _on(value: Any, device: torch.device) -> Any:
    """Copies on the device, so that a buffer that the loader uses again is not observed."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, Mapping):
        return {key: _on(one, device) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_on(one, device) for one in value)
    return value


def _pictures(
    images: Any, targets: Any, pictures: NDArray[np.uint8] | None, masks: NDArray[np.integer[Any]] | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    shown = _drawable(images) if pictures is None else np.asarray(pictures)
    if shown.ndim != 4 or shown.shape[-1] != 3 or shown.dtype != np.uint8 or not shown.size:
        raise FadevizError(f"pictures are {shown.dtype} {shown.shape}; uint8 (N, H, W, 3) is needed")
    if masks is None and isinstance(targets, Tensor) and not targets.is_floating_point() and targets.ndim == 3:
        masks = targets.cpu().numpy()
    outlines = np.zeros(shown.shape[:3], np.uint8) if masks is None else (np.asarray(masks) > 0).astype(np.uint8)
    if outlines.ndim != 3 or len(outlines) != len(shown):
        raise FadevizError(f"masks are {outlines.shape}; (N, H, W) with N = {len(shown)} is needed")
    return shown, outlines


def _drawable(images: Any) -> NDArray[np.uint8]:
    candidates = images.values() if isinstance(images, Mapping) else [images]
    for value in candidates:
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] in (1, 3):
            flat = value.float().cpu().numpy().transpose(0, 2, 3, 1)
            low, high = (end(flat, axis=(1, 2, 3), keepdims=True) for end in (np.min, np.max))
            unit = (flat - low) / np.where(high > low, high - low, 1)
            return np.rint(255 * np.broadcast_to(unit, (*unit.shape[:3], 3))).astype(np.uint8)
    raise FadevizError(
        "the observed images are no tensor (N, 1 or 3, H, W) that can be shown. Give pictures=, uint8 (N, H, W, 3)"
    )


def _names(names: Sequence[str] | None, count: int) -> list[str]:
    if names is None:
        return [f"image {number}" for number in range(count)]
    if len(names) != count:
        raise FadevizError(f"{len(names)} names for {count} images. Give one for each")
    return [str(name) for name in names]


def _run_id(untrained: Sequence[Snapshot], pictures: NDArray[np.uint8], seed: int | None) -> str:
    # Of what the untrained model shows: other weights, another run.
    digest = hashlib.sha256(pictures.tobytes() + repr(seed).encode())
    for snapshot in untrained:
        digest.update(snapshot.key.encode() + snapshot.value.tobytes())
    return digest.hexdigest()[:12]
