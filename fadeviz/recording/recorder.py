"""Recording from inside anybody's training loop: five lines, and the training stays what it was."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import os
import platform
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import FadevizError, RecorderWarning, printable, unknown_name
from ..storage.files import only_writer
from ..storage.info import ObservationInfo, RunInfo, StoredConfig
from ..storage.schedule import Schedule, at, parse_schedule
from ..storage.snapshots import Snapshot, SnapshotStore, check_folder, layer_sizes, remove_run
from ..storage.stored_run import StoredRun
from .batch import map_tensors
from .masks import Masks, images_to_show, masks_of, names_of, whole_number
from .observation import Mode
from .probe import Probe
from .state import state_changes, state_of
from .views import View
from .wrapped import device_of, float32_forward, is_first_process, refuse_waiting, unwrapped

OnError = Literal["warn", "raise"]

MOST_ERRORS = 100
"""Most failed steps that run.json lists: enough even if a disk stays full for a week."""


class Recorder:
    """Maps of a model's layers on a fixed batch, recorded at scheduled steps of a training that is not ours.

    The untrained model is recorded when the recorder is made; :meth:`step`, called after each optimiser step, records
    the scheduled ones and does nothing else at all others. Weights, gradients, optimiser, BatchNorm statistics, modes
    and random numbers of the training stay as they are, bit for bit. Gradients are of ``loss_fn`` on the observed batch
    in float32: a GradScaler's scale is not in them.

    State outside the modules of the model and the loss cannot be protected: closures, objects of other classes, and
    what your own hooks store, as they run during an observation too. The first observation therefore compares the model
    and the loss before and after, and on a CPU also the maps of a second pass; differences are warned of, and noted in
    run.json.

    The folder is an ordinary run: ``fadeviz grid``, ``animate``, ``analyze`` and ``report`` read it.

    Steps are counted over the whole training and never go back. A recorder that resumes drops what its folder holds
    of the steps that the training repeats: a training that was killed at step 350 and resumed from a checkpoint at
    step 200 records step 300 again.

    Errors of a recorder do not stop the training. Once it is created, anything that fails (a model that cannot be
    observed any more, out of memory, a full disk, a folder that was moved) is reported once as a
    :class:`~fadeviz.errors.RecorderWarning` and listed in run.json as ``errors``; later steps are tried again.
    ``on_error="raise"`` raises instead, as do warning filters that turn warnings into errors.

    Its methods are thread-safe. Copies of a recorder, and recorders in forked child processes, do nothing.

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
        display_images: NDArray[np.uint8] | None = None,
        masks: NDArray[Any] | Tensor | None = None,
        ignore_index: int | None = None,
        classes: int | None = None,
        foreground: int | Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        name: str | None = None,
        seed: int | None = None,
        start: int | None = None,
        scaler: torch.amp.GradScaler | None = None,
        resume: bool = False,
        overwrite: bool = False,
        on_error: OnError = "warn",
    ) -> None:
        """Observe the untrained model and open the folder.

        Args:
            model: any module, on its device; also compiled, prepared by accelerate, or wrapped in DataParallel or
                DistributedDataParallel. It may be cast or moved to another device later.
            layers: as for :class:`~fadeviz.recording.probe.Probe`.
            steps: ``"100:3000:100,320:360:10"``, or the steps; 0 is always one.
            out: the run's folder; it stays the same if the working directory changes later.
            observe: ``(images, targets)``, the same at every step. Images are what the model is called with: a tensor
                ``(N, ...)``, a dict of keyword arguments, or whatever else is its one argument. Both may be tuples
                (named ones too), lists, dicts, dataclasses or objects with tensors in them. They are copied, and
                moved to the model's device at each observation; float images are cast to the dtype of the weights if
                they all have the same.
            loss_fn: ``loss_fn(output, targets)``, a scalar; None records no gradients.
            kinds: as for :class:`~fadeviz.recording.probe.Probe`; None takes the small ones that the layers have.
            mode: ``eval`` or ``batch``, as for :meth:`~fadeviz.recording.probe.Probe.observe`.
            views: how to read a map from other outputs.
            reduce: makes the kind ``feature`` of a layer's map; None takes the mean over channels.
            channel_images: number of images for which the large kinds are kept.
            display_images: ``(N, H, W, 3)`` uint8, how figures show the observed images; None makes them from images
                ``(N, 1 or 3, H, W)``, from the smallest to the largest value of each.
            masks: ``(N, H, W)``, the classes of the images shown, or their objects as booleans, 0 and 1, or 0 and 255.
                None takes the first suitable target: integers ``(N, H, W)`` or ``(N, 1, H, W)``, floats that are all 0
                and 1, or one-hot; resized to the images. Without masks, the maps can be drawn, but not measured
                against an outline.
            ignore_index: the label of void pixels, which belong to no object; None takes that of ``loss_fn``, if any.
                Negative labels and 255 are always void.
            classes: the number of classes, including background; None takes the largest label plus 1.
            foreground: the class whose outline and interior are measured, one for all images or one for each. None
                takes class 1 if there are two classes, and otherwise the class of each image that is most like a
                single clear object, as ``fadeviz record`` does.
            names: names of the images.
            name: the run's name in figures; None takes the folder's name.
            seed: the training's seed; runs of the same name with different seeds are measured together.
            start: number of optimiser steps already done, for a training resumed from a checkpoint: a new run begins
                with this step instead of 0 (its maps can be drawn, but learning is measured from step 0), and a
                resumed run drops its later steps. None takes 0 for a new run, and the first :meth:`step` for a
                resumed one.
            scaler: the training's GradScaler: its scale goes into the metrics of recorded steps, as ``grad_scale``.
            resume: continue an existing run, which must have the same layers, kinds and images; if there is none yet,
                start a new one.
            overwrite: replace an existing run.
            on_error: ``warn`` warns if recording fails later, ``raise`` raises. The constructor always raises.

        Raises:
            FadevizError: a folder that is in use or holds something else, unknown layers or kinds, a model that cannot
                be observed, masks, images or names that do not fit. Nothing is written or removed then.
        """
        if on_error not in ("warn", "raise"):
            raise unknown_name("value of on_error", str(on_error), ("warn", "raise"))
        self.on_error = on_error
        self.model = unwrapped(model)
        refuse_waiting(self.model, mode)
        self.out = _absolute(out)
        self.schedule = _schedule(steps)
        device = device_of(self.model)
        if device.type == "meta":
            raise FadevizError("the model is on the meta device and has no weights. Load them first")
        # Copies, in case the loader reuses its buffers; each observation copies them again.
        self.images, self.targets = (
            map_tensors(part, lambda tensor: tensor.detach().to(device, copy=True)) for part in _pair(observe)
        )
        if scaler is not None and not callable(getattr(scaler, "get_scale", None)):
            raise FadevizError(f"scaler is a {type(scaler).__name__}: a torch.amp.GradScaler is needed")
        self.scaler = scaler
        self.loss_fn = loss_fn if loss_fn is not None else _no_loss
        self.mode = mode
        seed, start = (None if n is None else whole_number(n, what) for n, what in ((seed, "seed"), (start, "start")))
        if start is not None and start < 0:
            raise FadevizError(f"start is {start}: it counts the optimiser steps done before, 0 or more")
        self._seen = start  # the last step that was told of; None: a resumed training has not told yet
        self._forget: int | None = None  # what is stored of later steps than this has still to go
        self._recorded: set[int] = set()
        self.info = RunInfo()
        self._warned: set[tuple[str, type]] = set()
        self._stage = "observe"
        self._looked = self._busy = self._unsaved = False
        self._lock, self._process = threading.RLock(), os.getpid()
        self._open = contextlib.ExitStack()
        self._writes = is_first_process()
        if not self._writes:  # one process writes; the others need not even look
            return
        check_folder(self.out, resume=resume, overwrite=overwrite)
        probe = Probe(self.model, layers, kinds, channel_images, views=views, reduce=reduce)
        if loss_fn is None and "gradient" in probe.kinds:
            if kinds is not None and kinds != "all":
                raise FadevizError("the kind gradient needs loss_fn: the scalar it is the gradient of")
            probe.kinds = tuple(kind for kind in probe.kinds if kind != "gradient")
        self.probe = probe
        shown = images_to_show(self.images, display_images)
        size = (shown.shape[0], shown.shape[1], shown.shape[2])
        truth = masks_of(self.targets, masks, size, ignore_index=ignore_index, classes=classes, foreground=foreground,
                         loss_fn=loss_fn)  # fmt: skip
        self._open.enter_context(only_writer(self.out))
        try:
            # A run whose disk was full before its first snapshot has nothing to go on with.
            begun = (self.out / "run.json").exists() and any((self.out / "snapshots").glob("step_*"))
            before = StoredRun(self.out) if resume and begun else None
            if before is None:
                self._begin(shown, truth, names_of(names, len(shown)), name, seed, overwrite)
            else:
                self._go_on(before, shown, truth, foreground is not None)
        except BaseException:
            self._open.close()
            raise
        weakref.finalize(self, _release, self._open, self._process)

    def _begin(
        self,
        display_images: NDArray[np.uint8],
        masks: Masks,
        names: list[str],
        name: str | None,
        seed: int | None,
        overwrite: bool,
    ) -> None:
        start = self._seen = self._seen or 0
        self._note([masks.note] if masks.note else [])
        untrained = self._look(start)  # what cannot be observed is found here, before an old run is removed
        if overwrite:
            remove_run(self.out)
        self.store = SnapshotStore(self.out, _run_id(untrained, display_images, seed))
        self.store.forget_after(-1)
        self.info = dataclasses.replace(
            self.info,  # the notes
            status="recording",
            upsampler=None if name is None else str(name),
            title=None if name is None else str(name),
            network=type(self.model).__name__,
            network_title=type(self.model).__name__,
            parameters=sum(p.numel() for p in self.model.parameters()),
            classes=masks.classes if masks.classes > 2 else None,
            config=StoredConfig({} if seed is None else {"seed": seed}),
            schedule=tuple(self.schedule),
            kinds=tuple(self.probe.kinds),
            layers=layer_sizes(untrained),
            observation=ObservationInfo(
                names=tuple(names),
                mode=self.mode,
                foreground=_tuple(masks.foreground),
            ),
            versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        )
        self._save_info()
        self.store.write_observation(display_images, masks.values)
        self._write(start, untrained)

    def _go_on(
        self, before: StoredRun, display_images: NDArray[np.uint8], masks: Masks, foreground_given: bool
    ) -> None:
        was_shown, were_masks = before.observation
        notes, layers = before.info.notes, list(before.info.layers)
        # What was left out of a glob then is left out again.
        asked = [one for one in self.probe.layers if one in layers or not any(f"layer {one!r}" in n for n in notes)]
        same = np.array_equal(were_masks, masks.values)
        if not np.array_equal(was_shown, display_images) or not (same or np.array_equal(were_masks, masks.earlier)):
            raise FadevizError(f"{self.out} observed other images. Observe the same, or choose another folder")
        object_was = _list(before.info.observation.foreground)
        for what, was, wanted in (
            ("layers", layers, asked),
            ("kinds", list(before.info.kinds), list(self.probe.kinds)),
            ("foreground", object_was, _list(masks.foreground) if same and foreground_given else object_was),
        ):
            if was != wanted:
                raise FadevizError(f"{self.out} was recorded with other {what}: {was}, now {wanted}. Use the same")
        self.probe.settle(layers)
        self.info = dataclasses.replace(before.info, status="recording", message=None, schedule=tuple(self.schedule))
        self._recorded = set(before.steps)
        # Errors in observing are raised here, not hours into the training.
        now = self._look(max(self._recorded, default=0) if self._seen is None else self._seen)
        self.store = SnapshotStore(self.out, before.run_id)
        self._save_info()
        if self._seen is not None:
            self._forget = self._seen
            self._drop_later()
            if self._seen in self.schedule and self._seen not in self._recorded:
                self._write(self._seen, now)

    def _drop_later(self) -> None:
        """Drop the stored steps that a resumed training repeats."""
        if self._forget is None:
            return
        self.store.forget_after(self._forget)
        self._recorded = {recorded for recorded in self._recorded if recorded <= self._forget}
        kept = [one for one in self.errors if _step_of(one) <= self._forget]
        if kept != self.errors:
            self.info, self._unsaved = dataclasses.replace(self.info, errors=tuple(kept)), True
        self._forget = None

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The errors as run.json lists them: ``step`` and ``message`` of each, at most ``MOST_ERRORS``."""
        return [dict(one) for one in self.info.errors] if self._writes else []

    def step(self, step: int) -> bool:
        """Record, if ``step`` is scheduled: the number of optimiser steps done.

        To be called once an optimiser step; a second call of the same step does nothing. A scheduled step that was
        passed over, since calls are further apart, is made up for by the next call, under that call's number.

        Args:
            step: any integer type, including numpy's, or a tensor of one integer.

        Returns:
            Whether maps were recorded.

        Raises:
            FadevizError: only with ``on_error="raise"``: a step before the last one, not a step at all, a closed
                recorder, a full disk, a model that cannot be observed any more.
        """
        if not self._writes or self._is_forked():
            return False
        with self._lock:
            if self._busy:  # called during an observation: by a hook of the model, or by the loss
                return False
            self._stage, number = "call", None
            try:
                number = whole_number(step, "step")
                return self._step(number)
            except Exception as error:
                self._failed(error, number)
                if self._writes and number is not None and number >= self.schedule.last and hasattr(self, "store"):
                    with contextlib.suppress(Exception):  # the failure is reported already; close() tries again
                        self._end()
                return False

    def _step(self, step: int) -> bool:
        closed = not hasattr(self, "store")
        if closed and step in self.schedule:
            raise FadevizError("this recorder is closed: make a new one, with resume=True to go on in its folder")
        if closed or (step == 0 and self._seen is None):  # the untrained model was recorded before
            return False
        if self._seen is None:
            self._seen = self._forget = step - 1
        self._drop_later()
        seen, self._seen = self._seen, max(step, self._seen)
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

    def log(self, step: int, **values: float | np.number[Any] | NDArray[Any] | Tensor) -> None:
        """Add a line to the metrics: ``recorder.log(step, loss=0.3)``; ``fadeviz plot`` draws ``miou`` and ``sad``.

        Args:
            step: as for :meth:`step`.
            **values: numbers of any type, including numpy's and single-element tensors; NaN and infinities are kept.

        Raises:
            FadevizError: only with ``on_error="raise"``: a value that is not a number, a closed recorder, a full disk.
        """
        if not self._writes or self._is_forked():
            return
        with self._lock:
            if self._busy:  # by the loss of an observation, which is not the training's
                return
            self._stage = "log"
            try:
                self._log(whole_number(step, "step"), values)
            except Exception as error:
                self._failed(error)

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if not hasattr(self, "store"):
            raise FadevizError("this recorder is closed: log before close()")
        if self._seen is None:
            self._seen, self._forget = max(0, step - 1), step  # its maps are still to come
        self._drop_later()
        numbers = {key: _number(value) for key, value in values.items()}
        known = {key: number for key, number in numbers.items() if number is not None}
        if known or not values:
            self.store.append_metrics({"step": step, **known})
        for key in values.keys() - known.keys():
            raise FadevizError(f"log: {key} is {values[key]!r:.60}: a number is needed")

    def close(self, error: BaseException | None = None) -> None:
        """Finish the recording and release the folder. The last scheduled step does so too.

        Args:
            error: the error that ended the training early; the run is then marked as failed or interrupted.

        Raises:
            FadevizError: only with ``on_error="raise"``: the end cannot be written. The folder is released anyway.
        """
        if not self._writes or os.getpid() != self._process:
            return
        with self._lock:
            if not hasattr(self, "store"):
                return
            self._stage = "close"
            try:
                with self._open:
                    if error is None:
                        self._end()
                    elif self.info.status != "finished":
                        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                        status = "interrupted" if stopped else "failed"
                        self.info = dataclasses.replace(self.info, status=status, message=str(error))
                        with contextlib.suppress(FadevizError):  # a full disk: the original error matters more
                            self._save_info()
            except Exception as failure:
                self._failed(failure)
            finally:
                del self.store

    def __enter__(self) -> Recorder:
        """For ``with``: closes at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, such as those of a model that holds its recorder, record nothing: a folder has one recorder."""
        return _without_folder, ()

    def _is_forked(self) -> bool:
        """Whether this is a forked child of the recording process, such as a DataLoader worker; reported once."""
        if os.getpid() == self._process:
            return False
        self._writes = False
        self._stage = "call"
        self._failed(
            FadevizError("this process was forked from the one that records; only that one writes to the folder")
        )
        return True

    def _failed(self, error: Exception, step: int | None = None) -> None:
        """Re-raise the error; or list it in run.json, and warn the first time."""
        if self.on_error == "raise":
            raise error
        message = str(error) if isinstance(error, FadevizError) else f"{type(error).__name__}: {error}"
        message = printable(message)[:600].rstrip(". ")
        kind = (self._stage, type(error))
        first = kind not in self._warned
        self._warned.add(kind)
        if self._writes and (first or self._stage in ("observe", "write")) and len(self.errors) < MOST_ERRORS:
            entry = {} if step is None else {"step": step}
            errors = (*self.info.errors, {**entry, "message": message})
            self.info = dataclasses.replace(self.info, errors=errors)
            self._unsaved = True
            with contextlib.suppress(Exception):  # the disk may be what failed; the next write includes it
                self._save_info()
        if first:
            at = "" if step is None else f" at step {step}"
            _warn(f"{_FAILED[self._stage]}{at}: {message}. The training continues")

    def _look(self, step: int) -> list[Snapshot]:
        self._stage, self._busy = "observe", True
        try:
            return self._observe(step) if self._looked else self._first_look(step)
        finally:
            self._busy = False

    def _observe(self, step: int) -> list[Snapshot]:
        device = device_of(self.model)  # its current device: it may have been moved since
        if device.type == "cuda":  # the training may run on another stream than this call
            torch.cuda.synchronize(device)
        with float32_forward(self.model):
            found = self.probe.observe(self.images, self.targets, self.loss_fn, step=step, mode=self.mode)
        self._note(self.probe.notes)
        return found

    def _first_look(self, step: int) -> list[Snapshot]:
        """Observe, and note whether that changed anything."""
        before = state_of(self.model, self.loss_fn)
        found = self._observe(step)
        # On a GPU two observations may differ by the order of sums.
        again = self._observe(step) if device_of(self.model).type == "cpu" else found
        notes = []
        changes = state_changes(before, state_of(self.model, self.loss_fn))
        if changes:
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            notes.append(f"observing changes the state of the training: {'; '.join(changes[:3])}{more}")
        other = next((a for a, b in zip(found, again, strict=True) if not _is_alike(a.value, b.value)), None)
        if other is not None:
            notes.append(
                f"a second pass over the same batch gave different maps (layer {other.layer!r}, {other.kind}): the "
                "model or the loss draws random numbers or counts its calls where this cannot be undone"
            )
        self._looked = True
        self._note(notes)
        return found

    def _note(self, notes: Sequence[str]) -> None:
        """Warn of new notes, and keep them in run.json."""
        new = [note for note in notes if note not in self.info.notes]
        if new:
            self.info, self._unsaved = dataclasses.replace(self.info, notes=(*self.info.notes, *new)), True
            _warn("; ".join(new))

    def _write(self, step: int, snapshots: list[Snapshot]) -> None:
        self._stage = "write"
        self.store.write(step, snapshots)
        self._recorded.add(step)
        if self._unsaved:
            self._save_info()

    def _end(self) -> None:
        # What was recorded: a training may end before its schedule does, and then nothing is missing.
        self._stage = "close"
        self.info = dataclasses.replace(self.info, status="finished", schedule=tuple(sorted(self._recorded)))
        self._save_info()

    def _save_info(self) -> None:
        self.store.write_info(self.info)
        self._unsaved = False


_FAILED = {
    "call": "nothing is recorded",
    "observe": "nothing was recorded",
    "write": "nothing was recorded",
    "log": "metrics were not logged",
    "close": "the end of the run was not written",
}


def _without_folder() -> Recorder:
    recorder = Recorder.__new__(Recorder)
    recorder._writes = False
    return recorder


def _warn(text: str) -> None:
    """Warn, pointing at the calling line outside this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(f"fadeviz: {text}", RecorderWarning, stacklevel=level)


_PACKAGE = Path(__file__).parents[1]


def _release(folder: contextlib.ExitStack, process: int) -> None:
    if os.getpid() == process:  # not in a child that was forked: the lock is its parent's
        folder.close()


def _is_alike(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether two observations are equal up to rounding."""
    if one.shape != other.shape:
        return False
    largest = float(np.nan_to_num(np.abs(one), posinf=0).max(initial=0))
    return np.allclose(one, other, rtol=0, atol=1e-4 * largest, equal_nan=True)


def _absolute(out: str | Path) -> Path:
    try:
        return Path(out).absolute()
    except OSError as error:
        raise FadevizError(f"the working directory is gone, so that {out} is nowhere. Give an absolute path") from error


def _number(value: Any) -> float | None:
    try:
        # A single-element tensor or array, for some of which float() would warn.
        return float(value.item() if isinstance(value, Tensor | np.ndarray) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _pair(observe: Any) -> tuple[Any, Any]:
    if isinstance(observe, Tensor | Mapping | str) or not hasattr(observe, "__len__") or len(observe) != 2:
        got = f"{len(observe)} parts" if isinstance(observe, tuple | list) else f"a {type(observe).__name__}"
        raise FadevizError(
            f"observe is {got}: a pair (images, targets) is needed, with None where there are no targets"
        )
    return observe[0], observe[1]


def _step_of(entry: Any) -> int:
    step = entry.get("step") if isinstance(entry, dict) else None
    return step if isinstance(step, int) else 0


def _tuple(values: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def _list(values: Sequence[int] | None) -> list[int] | None:
    return None if values is None else list(values)


def _no_loss(output: Any, targets: Any) -> Tensor:
    raise AssertionError("no gradients without loss_fn")  # never called: gradient is not among the kinds


def _schedule(steps: str | Schedule | Iterable[int]) -> Schedule:
    if isinstance(steps, str):
        return parse_schedule(steps)
    if not isinstance(steps, Iterable):
        raise FadevizError(f"steps is {steps!r:.60}: a schedule such as '100:3000:100' is needed, or a list of steps")
    return at(whole_number(step, "a step of the schedule") for step in steps)


def _run_id(untrained: Sequence[Snapshot], display_images: NDArray[np.uint8], seed: int | None) -> str:
    # Of what the untrained model shows: other weights, another run.
    digest = hashlib.sha256(display_images.tobytes() + repr(seed).encode())
    for snapshot in untrained:
        digest.update(snapshot.key.encode() + snapshot.value.tobytes())
    return digest.hexdigest()[:12]
