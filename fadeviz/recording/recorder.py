"""Recording from inside anybody's training loop: five lines, and the training stays what it was."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import FadevizError
from ..storage.observation import select_foregrounds
from ..storage.schedule import Schedule, at, parse_schedule
from ..storage.snapshots import check_folder
from .batch_observer import BatchObserver
from .config import check_config
from .failures import Failures, OnError
from .layer_choice import Layers
from .masks import images_to_show, masks_of, whole_number
from .observation import Mode
from .predictions import PredictionReader
from .probe import Probe
from .recorded_run import RecordedRun
from .step_recorder import ObservedImages, StepRecorder
from .views import View
from .wrapped import device_of, is_first_process, refuse_waiting, unwrapped


class Recorder:
    """Records maps of a model's layers on a fixed batch, at scheduled steps of your own training loop.

    The untrained model is recorded when the recorder is made; :meth:`step`, called after each optimiser step, records
    the scheduled ones and does nothing else at all others. Weights, gradients, optimiser, BatchNorm statistics, modes
    and random numbers of the training stay as they are, bit for bit. Gradients are of ``loss_fn`` on the observed batch
    in float32: a GradScaler's scale is not in them.

    State outside the modules of the model and the loss cannot be protected: closures, objects of other classes, and
    what your own hooks store, since they run during an observation too. The first observation therefore compares the
    model and the loss before and after, and on a CPU also the maps of a second pass; a difference causes a warning and
    a note in run.json.

    Steps are counted over the whole training and never go back. A recorder that resumes drops the stored steps that the
    training repeats: one that was killed at step 350 and resumed from a checkpoint at step 200 records step 300 again.

    Errors of a recorder do not stop the training. Once it is created, anything that fails (a model that cannot be
    observed any more, out of memory, a full disk, a folder that was moved) is reported once as a
    :class:`~fadeviz.errors.RecorderWarning` and listed in run.json as ``errors``; later steps are tried again.
    ``on_error="raise"`` raises instead, as do warning filters that turn warnings into errors.

    Its methods are thread-safe. Copies of a recorder, and recorders in forked child processes, do nothing.

    Attributes:
        model: the observed model, without the wrappers of ``torch.compile`` and DistributedDataParallel.
        schedule: the steps to record.

    Example::

        recorder = fadeviz.Recorder(model, "decoder.*", "100:3000:100", "outputs/mine",
                                    batch=(images, targets), loss_fn=criterion)
        for step, batch in enumerate(loader, start=1):
            ...                       # your step, untouched
            recorder.step(step)
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        steps: str | Schedule | Iterable[int],
        out: str | os.PathLike[str],
        *,
        batch: tuple[Any, Any],
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        kinds: str | Sequence[str] | None = None,
        observe_mode: Mode = "eval",
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
        predictions: bool | Callable[[Any], Any] = False,
        config: Mapping[str, Any] | None = None,
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
            layers: names, globs or modules, as for :class:`~fadeviz.recording.probe.Probe`: ``"decoder.*"``,
                ``"decoder.up1:interpolate"`` for calls of a function. A mapping records them under names of your own:
                ``{"up1": "decoder.up1:interpolate"}``.
            steps: ``"100:3000:100,320:360:10"``, or the steps; 0 is always one.
            out: the run's folder; it stays the same if the working directory changes later.
            batch: ``(images, targets)``, observed at every recorded step. The model is called with the images: a tensor
                ``(N, ...)``, a dict of keyword arguments, or any other single argument. Both may be tuples (also named
                ones), lists, dicts, dataclasses or objects that contain tensors. They are copied, and moved to the
                model's device at each observation; float images are cast to the dtype of the weights if all weights
                have the same.
            loss_fn: ``loss_fn(output, targets)``, a scalar; None records no gradients.
            kinds: as for :class:`~fadeviz.recording.probe.Probe`; None takes the small ones that the layers have, with
                readout if there are masks of at least 4 images.
            observe_mode: ``eval`` or ``batch``, as ``mode`` of :meth:`~fadeviz.recording.probe.Probe.observe`.
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
            predictions: also store what the model predicts for the observed images, as ``fadeviz grid --kind
                prediction``, ``compare`` and the report show it: read from the output of the same forward pass, and
                kept at the size of the images shown, one byte a pixel. True takes the class with the largest logit: the
                output, or its entry ``logits`` or ``out``, is ``(N, C, h, w)``; a single channel is class 1 where it
                is positive (its sigmoid exceeds 0.5). A function ``output -> (N, h, w)`` returns anything else: classes
                as integers or booleans (255: none), or alphas as floats from 0 to 1. Logits and alphas are
                interpolated (bilinear), classes take the nearest pixel.
            config: the settings of the training, such as learning rate and batch size: a dict of JSON values, for
                ``fadeviz info`` and the report, which compares those of several runs.
            start: number of optimiser steps already done, for a training resumed from a checkpoint: a new run begins
                with this step instead of 0 (an analysis begins there too, and says so), and a resumed run drops its
                later steps. None takes 0 for a new run, and the first :meth:`step` for a resumed one.
            scaler: the training's GradScaler: its scale goes into the metrics of recorded steps, as ``grad_scale``.
            resume: continue an existing run, which must have the same layers, kinds and images; if there is none yet,
                start a new one.
            overwrite: replace an existing run.
            on_error: ``warn`` warns if recording fails later, ``raise`` raises. The constructor always raises.

        Raises:
            FadevizError: if the folder is in use or holds something else, layers or kinds are unknown, the model cannot
                be observed, or masks, images, names, predictions or config do not fit. Nothing is written or removed
                then.
        """
        self._failures = Failures(on_error)
        self._lock, self._process = threading.RLock(), os.getpid()
        self._steps: StepRecorder | None = None  # in processes that do not record
        self._scaler = _check_scaler(scaler)
        self.model = unwrapped(model)
        self.schedule = _parse_steps(steps)
        refuse_waiting(self.model, observe_mode)
        path, pair, seed, start = _absolute(out), _check_pair(batch), _check_count(seed, "seed"), _check_start(start)
        settings = check_config(config)
        if device_of(self.model).type == "meta":
            raise FadevizError("the model is on the meta device and has no weights. Load them first")
        if not is_first_process():
            return
        check_folder(path, resume=resume, overwrite=overwrite)
        images = images_to_show(pair[0], display_images)
        truth = masks_of(pair[1], masks, images.shape[:3], ignore_index=ignore_index, classes=classes,
                         foreground=foreground, loss_fn=loss_fn)  # fmt: skip
        objects = select_foregrounds(truth.values, truth.foreground, "the recorder")
        reader = None if predictions is False else PredictionReader(predictions, images.shape[:3])
        probe = Probe(
            self.model, layers, kinds, channel_images, views=views, reduce=reduce, objects=objects, predictions=reader
        )  # fmt: skip
        if loss_fn is None:
            _leave_out_gradients(probe, kinds)
        observer = BatchObserver(self.model, probe, pair, loss_fn, observe_mode)
        observed = ObservedImages(images, truth, foreground is not None, names, observe_mode)
        recorder = StepRecorder(RecordedRun(path), observer, self.schedule, start)
        recorder.open(self.model, observed, name=name, seed=seed, settings=settings, resume=resume, overwrite=overwrite)
        self._steps = recorder
        weakref.finalize(self, _release, recorder.run, self._process)

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The errors in run.json: ``step`` and ``message`` of each, at most ``MOST_ERRORS``."""
        return [] if self._steps is None else [dict(entry) for entry in self._steps.run.info.errors]

    def step(self, step: int) -> bool:
        """Record, if ``step`` is scheduled: the number of optimiser steps done.

        To be called once after each optimiser step; a second call with the same step does nothing. If calls are further
        apart and a scheduled step is skipped, the next call records instead, under its own number.

        Args:
            step: any integer type, including numpy's, or a tensor of one integer.

        Returns:
            Whether maps were recorded.

        Raises:
            FadevizError: only with ``on_error="raise"``: if the step comes before the last one or is not an integer,
                the recorder is closed, the disk is full, or the model cannot be observed any more.
        """
        recorder = self._recorder_here()
        if recorder is None:
            return False
        with self._lock:
            if recorder.observer.busy:  # called during an observation: by a hook of the model, or by the loss
                return False
            number = None
            recorder.stage = "call"
            try:
                number = whole_number(step, "step")
                if not recorder.step(number):
                    return False
                if self._scaler is not None:
                    self.log(number, grad_scale=self._scaler.get_scale())
                recorder.finish_after(number)
            except Exception as error:
                self._failures.report(error, recorder.stage, number, recorder.run)
                if number is not None:
                    with contextlib.suppress(Exception):  # the failure is reported already; close() tries again
                        recorder.finish_after(number)
                return False
            return True

    def log(self, step: int, **values: float | np.number[Any] | NDArray[Any] | Tensor) -> None:
        """Add a line to the metrics: ``recorder.log(step, loss=0.3)``; ``fadeviz plot --what logged`` draws it.

        Names are any text: ``**{"val/miou": 0.8}``. ``--what quality`` draws ``miou`` and ``sad``.

        Args:
            step: as for :meth:`step`.
            **values: numbers of any type, including numpy's and single-element tensors; NaN and infinities are kept.

        Raises:
            FadevizError: only with ``on_error="raise"``: if a value is not a number, the recorder is closed, or the
                disk is full.
        """
        recorder = self._recorder_here()
        if recorder is None:
            return
        with self._lock:
            if recorder.observer.busy:  # called by the loss of an observation, which is not the training's
                return
            recorder.stage = "log"
            try:
                recorder.log(whole_number(step, "step"), values)
            except Exception as error:
                self._failures.report(error, recorder.stage, run=recorder.run)

    def close(self, error: BaseException | None = None) -> None:
        """Finish the recording and release the folder. The last scheduled step finishes it too.

        Args:
            error: the error that ended the training early; the run is then marked as failed or interrupted.

        Raises:
            FadevizError: only with ``on_error="raise"``: if the end cannot be written. The folder is released anyway.
        """
        recorder = self._steps
        if recorder is None or os.getpid() != self._process:
            return
        with self._lock:
            if not recorder.run.is_open:
                return
            try:
                recorder.end(error)
            except Exception as failure:
                self._failures.report(failure, recorder.stage, run=recorder.run)
            finally:
                recorder.run.close()

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

    def _recorder_here(self) -> StepRecorder | None:
        """What records in this process; a forked child, such as a DataLoader worker, warns once that it does not."""
        recorder = self._steps
        if recorder is None or os.getpid() == self._process:
            return recorder
        self._steps = None
        error = FadevizError("this process was forked from the one that records; only that one writes to the folder")
        self._failures.report(error, "call")
        return None


def _without_folder() -> Recorder:
    recorder = Recorder.__new__(Recorder)
    recorder._steps = None
    return recorder


def _release(run: RecordedRun, process: int) -> None:
    if os.getpid() == process:  # not in a child that was forked: the lock is its parent's
        run.close()


def _absolute(out: str | os.PathLike[str]) -> Path:
    try:
        return Path(out).absolute()
    except OSError as error:
        raise FadevizError(
            f"out={out} is relative to a working directory that is gone. Give an absolute path"
        ) from error


def _check_pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Tensor | Mapping | str) or not hasattr(batch, "__len__") or len(batch) != 2:
        got = f"{len(batch)} parts" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}"
        raise FadevizError(f"batch is {got}: a pair (images, targets) is needed, with None if there are no targets")
    return batch[0], batch[1]


def _check_scaler(scaler: torch.amp.GradScaler | None) -> torch.amp.GradScaler | None:
    if scaler is not None and not callable(getattr(scaler, "get_scale", None)):
        raise FadevizError(f"scaler is a {type(scaler).__name__}: a torch.amp.GradScaler is needed")
    return scaler


def _check_count(value: int | None, name: str) -> int | None:
    return None if value is None else whole_number(value, name)


def _check_start(start: int | None) -> int | None:
    start = _check_count(start, "start")
    if start is not None and start < 0:
        raise FadevizError(f"start is {start}: it counts the optimiser steps done before, 0 or more")
    return start


def _leave_out_gradients(probe: Probe, kinds: str | Sequence[str] | None) -> None:
    """Record no gradients, which need a loss, unless they were asked for by name."""
    if "gradient" in probe.kinds and kinds is not None and kinds != "all":
        raise FadevizError("the kind gradient needs loss_fn: the scalar it is the gradient of")
    probe.kinds = tuple(kind for kind in probe.kinds if kind != "gradient")


def _parse_steps(steps: str | Schedule | Iterable[int]) -> Schedule:
    if isinstance(steps, str):
        return parse_schedule(steps)
    if not isinstance(steps, Iterable):
        raise FadevizError(f"steps is {steps!r:.60}: a schedule such as '100:3000:100' is needed, or a list of steps")
    return at(whole_number(step, "a step of the schedule") for step in steps)
