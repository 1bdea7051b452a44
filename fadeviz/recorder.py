"""Recording from inside anybody's training loop: five lines, and the training stays what it was."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import platform
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .errors import FadevizError
from .files import only_writer
from .probes import Mode, Probe
from .runs import Run, open_run
from .schedule import Schedule, at, parse_schedule
from .snapshots import Snapshot, SnapshotStore, check_folder, remove_run
from .views import View


class Recorder:
    """Maps of a model's layers on a fixed batch, recorded at scheduled steps of a training that is not ours.

    The untrained model is recorded when the recorder is made; :meth:`step`, called after each optimiser step, records
    the scheduled ones and does nothing else at all others. Weights, gradients, optimiser, BatchNorm statistics, modes
    and random numbers of the training stay as they are, bit for bit. Gradients are of ``loss_fn`` on the observed batch
    in float32: a GradScaler's scale is not in them.

    The folder is an ordinary run: ``fadeviz grid``, ``animate``, ``analyze`` and ``report`` read it.

    Steps are counted over the whole training and never go back. A recorder that resumes drops what its folder holds
    of the steps that the training makes again: a training that was killed at 350 and goes on from a checkpoint of 200
    records 300 anew.

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
        start: int | None = None,
        scaler: torch.amp.GradScaler | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Look at the model once, and open the folder.

        Args:
            model: any module, on its device; also compiled, prepared by accelerate, or wrapped in DataParallel or
                DistributedDataParallel.
            layers: as for :class:`~fadeviz.probes.Probe`.
            steps: ``"100:3000:100,320:360:10"``, or the steps; 0 is always one.
            out: the run's folder.
            observe: ``(images, targets)``, the same at every step. Images are what the model is called with: a tensor
                ``(N, ...)``, or a dict of keyword arguments. Moved to the model's device, and made bfloat16 or
                float16 where its weights are.
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
            start: optimiser steps that were done before, of a training that goes on from a checkpoint: the maps of a
                new run begin with this step instead of 0 (they can be drawn, but learning is measured from step 0),
                and a run that is resumed forgets what it holds of later ones. None takes 0 for a new run; for one that
                is resumed, the first :meth:`step` tells.
            scaler: the training's GradScaler: its scale goes into the metrics of recorded steps, as ``grad_scale``.
            resume: go on in the folder of a run that stopped; it must have the same layers, kinds and images. Where
                there is none yet, a new one begins.
            overwrite: replace a run that is there.

        Raises:
            FadevizError: a folder that is in use or holds something else, layers or kinds there are not, a model that
                cannot be observed. Nothing was written or removed then.
        """
        self.model = _unwrapped(model)
        _refuse_waiting(self.model, mode)
        self.out = Path(out)
        self.schedule = _schedule(steps)
        self.device, half = _device(self.model), _half(self.model)
        self.images, self.targets = _on(observe[0], self.device, half), _on(observe[1], self.device)
        self.scaler = scaler
        self.loss_fn = loss_fn if loss_fn is not None else _no_loss
        self.mode = mode
        if start is not None and start < 0:
            raise FadevizError(f"start is {start}: it counts the optimiser steps done before, 0 or more")
        self._seen = start  # the last step that was told of; None: a resumed training has not told yet
        self._recorded: set[int] = set()
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
            # A run whose disk was full before its first snapshot has nothing to go on with.
            begun = (self.out / "run.json").exists() and any((self.out / "snapshots").glob("step_*"))
            before = open_run(self.out) if resume and begun else None
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
        start = self._seen = self._seen or 0
        untrained = self._look(start)  # what cannot be observed is found here, before an old run is removed
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
        self._write(start, untrained)

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
        self.info.pop("message", None)
        self.info |= {"status": "recording", "schedule": list(self.schedule)}
        self.store.write_info(self.info)
        self._recorded = set(before.steps)
        if self._seen is not None:
            self._goes_on_from(self._seen)
            if self._seen in self.schedule and self._seen not in self._recorded:
                self._write(self._seen, self._look(self._seen))

    def _goes_on_from(self, step: int) -> None:
        self.store.forget_after(step)
        self._recorded = {recorded for recorded in self._recorded if recorded <= step}
        self._seen = step

    def step(self, step: int) -> bool:
        """Record, if ``step`` is scheduled: the number of optimiser steps done.

        To be called once an optimiser step; a second call of the same step does nothing. A scheduled step that was
        passed over, since calls are further apart, is made up for by the next call, under that call's number.

        Returns:
            Whether maps were recorded.

        Raises:
            FadevizError: a step before the last one, a full disk, or a model that cannot be observed any more.
        """
        if not self._writes:
            return False
        closed = not hasattr(self, "store")
        if closed and step in self.schedule:
            raise FadevizError("this recorder is closed: make a new one, with resume=True to go on in its folder")
        if closed or (step == 0 and self._seen is None):  # the untrained model was recorded before
            return False
        if self._seen is None:
            self._goes_on_from(step - 1)
        seen, self._seen = self._seen or 0, max(step, self._seen or 0)
        if step < seen:
            raise FadevizError(
                f"step {step} comes after step {seen}: steps are counted over the whole training, not in each epoch. "
                "To go on from a checkpoint, make a new recorder with resume=True"
            )
        steps = self.schedule.steps
        if bisect.bisect_right(steps, seen) == bisect.bisect_right(steps, step):
            return False
        self._write(step, self._look(step))
        if self.scaler is not None:
            self.log(step, grad_scale=self.scaler.get_scale())
        if step >= self.schedule.last:  # metrics may still be logged
            self._end()
        return True

    def log(self, step: int, **values: float) -> None:
        """Add a line to the metrics: ``recorder.log(step, loss=0.3)``; ``fadeviz plot`` draws ``miou`` and ``sad``."""
        if not self._writes or not hasattr(self, "store"):
            return
        if self._seen is None:
            self._goes_on_from(step)
            self._seen = max(0, step - 1)  # its maps are still to come
        self.store.append_metrics({"step": step, **{key: float(value) for key, value in values.items()}})

    def close(self, error: BaseException | None = None) -> None:
        """Say that the recording is over, and let others write into the folder. The last scheduled step says it too.

        Args:
            error: what ended the training before its time; the run then counts as failed, or as interrupted.
        """
        if not self._writes or not hasattr(self, "store"):
            return
        with self._open:
            if error is None:
                self._end()
            elif self.info["status"] != "finished":
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                self.info |= {"status": "interrupted" if stopped else "failed", "message": str(error)}
                with contextlib.suppress(FadevizError):  # a full disk, perhaps: the error itself is the one to hear of
                    self.store.write_info(self.info)
        del self.store

    def __enter__(self) -> Recorder:
        """For ``with``: closes at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def _look(self, step: int) -> list[Snapshot]:
        if self.device.type == "cuda":  # the training may run on another stream than the one this is called on
            torch.cuda.synchronize(self.device)
        with _float32_forward(self.model):
            return self.probe.observe(self.images, self.targets, self.loss_fn, step=step, mode=self.mode)

    def _write(self, step: int, snapshots: list[Snapshot]) -> None:
        self.store.write(step, snapshots)
        self._recorded.add(step)

    def _end(self) -> None:
        # What was recorded: a training may end before its schedule does, and then nothing is missing.
        self.info |= {"status": "finished", "schedule": sorted(self._recorded)}
        self.store.write_info(self.info)


def _no_loss(output: Any, targets: Any) -> Tensor:
    raise AssertionError("no gradients without loss_fn")  # never called: gradient is not among the kinds


def _unwrapped(model: nn.Module) -> nn.Module:
    if any(_is_sharded(module) for module in model.modules()) or any(map(_is_dtensor, model.parameters())):
        raise FadevizError(
            "this model is sharded (FSDP, tensor parallel): no process has all of a layer, so that there is nothing "
            "to observe. Observe an unsharded copy, e.g. from a checkpoint"
        )
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            # A forward pass through the wrapper would wait for the other processes.
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # compiled; it shares its modules
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _is_sharded(module: nn.Module) -> bool:
    return any(cls.__name__ in ("FSDPModule", "FullyShardedDataParallel") for cls in type(module).__mro__)


def _is_dtensor(parameter: Tensor) -> bool:
    return type(parameter.data).__name__ == "DTensor"


def _refuse_waiting(model: nn.Module, mode: Mode) -> None:
    waits = mode == "batch" and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    if waits and _is_distributed() and torch.distributed.get_world_size() > 1:
        raise FadevizError(
            "the observation mode batch with SyncBatchNorm would wait for the other processes, which do not observe. "
            "Choose the mode eval"
        )


@contextlib.contextmanager
def _float32_forward(model: nn.Module) -> Iterator[None]:
    """Without the autocast that accelerate puts into ``forward`` itself, where no context around it reaches."""
    both = {"forward", "_original_forward"}
    prepared = [(m, m.__dict__["forward"]) for m in model.modules() if both <= m.__dict__.keys()]
    try:
        for module, _ in prepared:
            module.forward = module.__dict__["_original_forward"]
        yield
    finally:
        for module, forward in prepared:
            module.forward = forward


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _is_first_process() -> bool:
    return not _is_distributed() or torch.distributed.get_rank() == 0


def _schedule(steps: str | Schedule | Iterable[int]) -> Schedule:
    if isinstance(steps, Schedule):
        return steps
    return parse_schedule(steps) if isinstance(steps, str) else at(steps)


def _device(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def _half(model: nn.Module) -> torch.dtype | None:
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    half = dtypes.pop() if len(dtypes) == 1 else None
    return half if half in (torch.bfloat16, torch.float16) else None


def _on(value: Any, device: torch.device, floats: torch.dtype | None = None) -> Any:
    """Copies on the device, so that a buffer that the loader uses again is not observed."""
    if isinstance(value, Tensor):
        return value.detach().to(device, floats if value.is_floating_point() else None, copy=True)
    if isinstance(value, Mapping):
        return {key: _on(one, device, floats) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_on(one, device, floats) for one in value)
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
