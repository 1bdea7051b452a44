"""The work around the training steps of one run: observing, testing, saving, and keeping run.json up to date."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import torch

from ..errors import FadevizError
from ..ops.reassemble import choose_backend
from ..storage.info import RunInfo, StoredConfig, StoredData
from ..storage.metrics import CLASS_KEY, class_metrics
from ..storage.snapshots import Snapshot, layer_sizes
from ..storage.stored_run import StoredRun
from ..storage.writer import RunWriter
from ..training.loop import StepResult
from ..training.signals import Interrupted
from ..upsamplers import find_upsampler, parse_upsampler
from .checkpoints import Checkpoints
from .config import run_id
from .observing import Observer
from .parts import Parts

_OF_THIS_PROCESS = ("processes", "notes")
"""Keys of run.json that describe the processes that trained last; left out when empty."""


class Stopwatch:
    """Seconds spent, by activity.

    Attributes:
        seconds: seconds spent on each activity, by its name.
    """

    def __init__(self) -> None:
        """Start to measure."""
        self.seconds = {"training": 0.0, "observing": 0.0, "testing": 0.0}
        self.restart()

    def restart(self) -> None:
        """Count the time since the last measurement for nothing."""
        self._since = time.perf_counter()

    def spent_on(self, activity: str) -> None:
        """Add the time since the last measurement to an activity."""
        now = time.perf_counter()
        self.seconds[activity] += now - self._since
        self._since = now


class Session:
    """One process's part in a run, from its beginning or resumption to its end.

    Attributes:
        parts: the parts of the run.
        observer: its observations.
        checkpoints: its checkpoints.
        writer: writes the folder; None in all processes but the first.
        metrics: the latest test; empty before the first.
        class_metrics: that of each class, by name and label; empty for two classes.
        last_step: the number of steps done.
    """

    def __init__(
        self,
        parts: Parts,
        out: Path,
        writer: RunWriter | None,
        notes: Sequence[str] = (),
        before: StoredRun | None = None,
    ) -> None:
        """Put the parts together; nothing is written before :meth:`begin` or :meth:`resume`.

        Args:
            parts: the parts of the run.
            out: its folder.
            writer: writes the folder; None in all processes but the first.
            notes: notes on this run, a sentence each.
            before: the run in the folder, if it is resumed.
        """
        self.parts, self.out, self.writer = parts, out, writer
        recorded = None if before is None else before.info.observation.indices
        self.observer = Observer(parts.config, parts.splits, parts.model, parts.device, recorded)
        self.run_id = run_id(parts.config, parts.splits.info, parts.weights, parts.device.type, self.observer.unusual)
        self.checkpoints = Checkpoints(out / "checkpoints" / "last.pt", self.run_id, parts)
        self.metrics: dict[str, float] = {}
        self.class_metrics: dict[str, list[float | None]] = {}
        self.last_step = 0
        self._schedule = parts.config.schedule()
        self._test_every = parts.config.evaluate_every or max(1, parts.config.steps // 10)
        self._untrained: list[Snapshot] = []
        self._notes = list(notes)
        self._watch = Stopwatch()
        self._info = _describe(parts, self.observer)

    @property
    def notes(self) -> list[str]:
        """Notes on this run."""
        return [*self._notes, *self.observer.notes, *self.observer.probe.notes]

    def observe_untrained(self) -> None:
        """Observe step 0, before anything is written or an old run removed: an observation may fail.

        Raises:
            FadevizError: if the model cannot be observed.
        """
        self._untrained = self.observer.observe(0)

    def begin(self, overwrite: bool = False) -> int:
        """Begin the run's folder, in place of a run that is there, with the untrained model; returns the steps done.

        Raises:
            FadevizError: if something cannot be removed or written.
        """
        self._restart_clocks()
        if self.writer is None:
            return 0
        observer = self.observer
        kinds = tuple(observer.probe.kinds)  # those that the first observation found
        predicted = observer.probe.predictions
        self._info = dataclasses.replace(
            self._info,
            kinds=kinds,
            layers=layer_sizes(self._untrained),
            predictions=None if predicted is None else predicted.values,
        )
        self.writer.begin(
            self.run_id,
            self._current_info("running"),
            observer.images,
            observer.masks,
            observer.mattes,
            overwrite=overwrite,
        )
        self.writer.snapshot(0, self._untrained, observer.prediction)
        self._restart_clocks()
        return 0

    def resume(self) -> int:
        """Continue a run that stopped from its checkpoint; returns the steps already done.

        Without a checkpoint, which a run killed early may not have yet, the run begins anew.

        Raises:
            FadevizError: if the folder holds another run, or its checkpoint is missing or damaged.
        """
        before, path = StoredRun(self.out), self.checkpoints.path
        if before.run_id != self.run_id:
            raise FadevizError(
                f"{self.out}: its data, weights or device kind are not the same any more. Use overwrite=True"
            )
        self.observer.probe.resume(before.info.kinds)
        self._info = dataclasses.replace(self._info, kinds=tuple(self.observer.probe.kinds))
        if not path.exists():
            done = max((line["step"] for line in before.metrics()), default=0)
            if done > self.parts.config.checkpoint_every:
                raise FadevizError(
                    f"{path} is missing, though {done} steps were done. Put it back, or begin anew with overwrite=True"
                )
            self.observe_untrained()
            return self.begin()
        self.last_step = self.checkpoints.load()
        self._restart_clocks()
        if self.writer is None:
            return self.last_step
        self._info = self._info.over(before.info, without=_OF_THIS_PROCESS)
        self._watch.seconds.update(before.info.seconds)
        tests = [line for line in before.metrics() if "test_loss" in line and line["step"] <= self.last_step]
        if tests:
            self.metrics = {k: v for k, v in tests[-1].items() if k not in ("step", "loss", "lr", CLASS_KEY)}
            self.class_metrics = class_metrics(tests[-1])
        # Later steps are recorded again, to the same bytes.
        self.writer.resume(self.run_id, self._current_info("running"), step=self.last_step)
        self._restart_clocks()
        return self.last_step

    def on_step_end(self, result: StepResult) -> None:
        """Test, record and save what is due after a training step.

        Raises:
            FadevizError: if something cannot be written.
        """
        parts, step = self.parts, result.step
        self._watch.spent_on("training")
        self.last_step = step
        line: dict[str, object] = {"step": step, "loss": result.loss, "lr": result.lr}
        if step % self._test_every == 0 or step == parts.config.steps:
            self.metrics, self.class_metrics = parts.task.evaluate(
                parts.model, parts.splits.test, classes=parts.splits.classes, processes=parts.processes
            )
            line |= self.metrics
            line |= {CLASS_KEY: self.class_metrics} if self.class_metrics else {}
            self._watch.spent_on("testing")
        if self.writer is None:
            return
        self.writer.log(line)
        if step in self._schedule:
            self._watch.restart()
            snapshots = self.observer.observe(step)
            self.writer.snapshot(step, snapshots, self.observer.prediction)
            self._watch.spent_on("observing")
        self.checkpoints.save_if_due(step)
        self._watch.restart()

    def interrupt(self, number: int) -> NoReturn:
        """Write a checkpoint, mark the run as interrupted, and raise, in all processes together.

        Args:
            number: the signal's number.

        Raises:
            Interrupted: when the checkpoint is written.
            FadevizError: if the checkpoint cannot be written.
        """
        if self.writer is not None:
            self.checkpoints.save_now(self.last_step)
        error = Interrupted(number, self.last_step, self.parts.config.steps, self.last_step)
        self.end("interrupted", str(error))
        self.parts.processes.all_gather(None)
        raise error

    def end(self, status: Literal["finished", "interrupted", "failed"], message: str = "") -> None:
        """Write into run.json how the run ended, if this process began it.

        Raises:
            FadevizError: if it cannot be written.
        """
        if self.writer is not None and self.writer.begun:
            self.writer.save(self._current_info(status, message))

    def close(self) -> None:
        """End what runs beside the training."""
        self.checkpoints.close()

    def _current_info(self, status: str, message: str = "") -> RunInfo:
        by_class = {name: tuple(values) for name, values in self.class_metrics.items()}
        return dataclasses.replace(
            self._info,
            notes=tuple(self.notes),
            status=status,
            message=message,
            last_step=self.last_step,
            seconds=self._watch.seconds,
            result=self.metrics,
            class_metrics=by_class or self._info.class_metrics,  # which is left out of the file while it is empty
        )

    def _restart_clocks(self) -> None:
        self._watch.restart()
        self.checkpoints.start_clock()


def _describe(parts: Parts, observer: Observer) -> RunInfo:
    """The content of run.json before a run begins."""
    config, model, optimizer = parts.config, parts.model, parts.optimizer
    return RunInfo(
        upsampler=config.upsampler,
        title=find_upsampler(parse_upsampler(config.upsampler)[0]).title,
        network=config.network,
        network_title=model.title,
        task=model.task,
        classes=parts.splits.classes if parts.task.has_classes else None,
        parameters=sum(p.numel() for p in model.parameters()),
        weights=parts.weights,
        config=StoredConfig(dataclasses.asdict(config)),
        schedule=tuple(config.schedule()),
        kinds=tuple(observer.probe.kinds),
        figure_layer=model.figure_layer,
        observation=observer.info,
        device=_device_name(parts.device),
        optimizer=type(optimizer).__name__ + " (fused)" * bool(optimizer.defaults.get("fused")),
        threads=torch.get_num_threads(),
        processes=parts.processes.world_size if parts.processes.world_size > 1 else None,
        reassembly=choose_backend(observer.inputs, kernel_size=5, scale_factor=2),
        versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        data=StoredData(parts.splits.info),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.processor() or platform.machine()})"
