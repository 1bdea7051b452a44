"""Recording the scheduled steps of a training, without regard to threads, processes and errors."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import FadevizError
from ..storage.info import LayerInfo, ObservationInfo, RunInfo, StoredConfig
from ..storage.schedule import Schedule
from ..storage.snapshots import Snapshot, layer_sizes
from ..storage.stored_run import StoredRun
from .batch_observer import BatchObserver
from .config import describe_changes
from .failures import Stage, warn
from .masks import Masks, names_of
from .observation import Mode
from .probe import Probe
from .recorded_run import RecordedRun


class ObservedImages(NamedTuple):
    """The observed batch as figures show it.

    Attributes:
        images: ``(N, H, W, 3)`` uint8.
        masks: their masks.
        foreground_given: whether the measured class was chosen by the user.
        names: their names; None numbers them.
        mode: ``eval`` or ``batch``.
    """

    images: NDArray[np.uint8]
    masks: Masks
    foreground_given: bool
    names: Sequence[str] | None
    mode: Mode


class StepRecorder:
    """Records the scheduled steps of one training into one run.

    Attributes:
        run: the run that is written.
        observer: observes the batch.
        stage: what is being done, for messages.
    """

    def __init__(
        self,
        run: RecordedRun,
        observer: BatchObserver,
        schedule: Schedule,
        start: int | None,
    ) -> None:
        """``start`` is the number of steps already done; None if a resumed training has still to show it."""
        self.run, self.observer = run, observer
        self.stage: Stage = "observe"
        self._schedule, self._last_step = schedule, start

    def open(
        self,
        model: nn.Module,
        observed: ObservedImages,
        *,
        name: str | None,
        seed: int | None,
        settings: Mapping[str, Any] | None,
        resume: bool,
        overwrite: bool,
    ) -> None:
        """Begin a new run with the model as it is, or resume the one in the folder; releases the folder after an error.

        Raises:
            FadevizError: if the model cannot be observed, something cannot be removed or written, or the run to resume
                has other images, layers, kinds or foregrounds.
        """
        try:
            before = self.run.earlier() if resume else None
            if before is None:
                self._begin(model, observed, None if name is None else str(name), seed, settings or {}, overwrite)
            else:
                self._resume(before, observed, settings)
        except BaseException:
            self.run.close()
            raise

    def _begin(
        self,
        model: nn.Module,
        observed: ObservedImages,
        name: str | None,
        seed: int | None,
        settings: Mapping[str, Any],
        overwrite: bool,
    ) -> None:
        start = self._last_step = self._last_step or 0
        masks, names = observed.masks, names_of(observed.names, len(observed.images))
        self._add_notes([masks.note] if masks.note else [])
        untrained = self._observe(start)  # what cannot be observed is found here, before an old run is removed
        predictions = self.observer.probe.predictions
        info = RunInfo(
            status="recording",
            upsampler=name,
            title=name,
            network=type(model).__name__,
            network_title=type(model).__name__,
            parameters=sum(p.numel() for p in model.parameters()),
            classes=masks.classes if masks.classes > 2 else None,
            config=StoredConfig({} if seed is None else {"seed": seed}),
            schedule=tuple(self._schedule),
            kinds=tuple(self.observer.probe.kinds),
            predictions=None if predictions is None else predictions.values,
            layers=self._layers(untrained),
            observation=ObservationInfo(
                names=tuple(names),
                mode=observed.mode,
                foreground=None if masks.foreground is None else tuple(masks.foreground),
            ),
            versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        )
        if settings:
            info = dataclasses.replace(info, settings=settings)
        run_id = _run_id(untrained, observed.images, seed)
        self.run.begin(run_id, info, observed.images, masks.values, overwrite=overwrite)
        self._write(start, untrained)

    def _layers(self, untrained: list[Snapshot]) -> dict[str, LayerInfo]:
        sources = self.observer.probe.sources
        return {
            name: dataclasses.replace(layer, source=sources.get(name)) for name, layer in layer_sizes(untrained).items()
        }

    def _resume(self, before: StoredRun, observed: ObservedImages, settings: Mapping[str, Any] | None) -> None:
        probe = self.observer.probe
        _check_images(before, observed)
        probe.resume(before.info.kinds, before.foregrounds)
        _check_settings(before, probe, observed)
        probe.settle(list(before.info.layers))
        self.run.adopt(before, tuple(self._schedule), settings)
        # Errors in observing are raised here, not hours into the training.
        now = self._observe(self.run.last_recorded if self._last_step is None else self._last_step)
        _check_predictions(before, None if probe.predictions is None else probe.predictions.values)
        changed = describe_changes(before.info.settings, settings)
        if changed:
            where = self.run.last_recorded if self._last_step is None else self._last_step
            self._add_notes([f"resumed after step {where} with another config: {changed}"])
        self.run.resume()
        if self._last_step is not None:
            self.run.repeated_after = self._last_step
            self.run.drop_repeated()
            if self._last_step in self._schedule and not self.run.is_recorded(self._last_step):
                self._write(self._last_step, now)

    def step(self, step: int) -> bool:
        """Record, if a scheduled step was reached since the last call; returns whether maps were recorded.

        Raises:
            FadevizError: if the step comes before the last one, the recorder is closed, the model cannot be observed,
                or something cannot be written.
        """
        if not self.run.is_open:
            if step in self._schedule:
                raise FadevizError("this recorder is closed: make a new one, with resume=True to continue its run")
            return False
        if self._last_step is None:
            if step == 0:  # the untrained model was recorded before
                return False
            self._last_step = self.run.repeated_after = step - 1
        self.run.drop_repeated()
        last, self._last_step = self._last_step, max(step, self._last_step)
        if step < last:
            raise FadevizError(
                f"step {step} comes after step {last}: steps are counted over the whole training, not in each epoch. "
                "To continue from a checkpoint, make a new recorder with resume=True"
            )
        steps = self._schedule.steps
        if bisect.bisect_right(steps, last) == bisect.bisect_right(steps, step):
            return False
        self._write(step, self._observe(step))
        return True

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Add the values that are numbers to the metrics.

        Raises:
            FadevizError: if some are not, the step is negative, the recorder is closed, or the line cannot be written.
        """
        if not self.run.is_open:
            raise FadevizError("this recorder is closed: log before close()")
        if step < 0:
            raise FadevizError(f"log: the step is {step}: it counts optimiser steps, from 0")
        if self._last_step is None:
            self._last_step, self.run.repeated_after = max(0, step - 1), step  # its maps are still to come
        self.run.drop_repeated()
        numbers = {key: number for key, value in values.items() if (number := _as_float(value)) is not None}
        if numbers or not values:
            self.run.log(step, numbers)
        for key in values.keys() - numbers.keys():
            raise FadevizError(f"log: {key} is {values[key]!r:.60}: a number is needed")

    def finish(self) -> None:
        """Mark the run as finished.

        Raises:
            FadevizError: if run.json cannot be written.
        """
        self.stage = "close"
        self.run.finish()

    def finish_after(self, step: int) -> None:
        """Mark the run as finished if nothing is left to record after this step; metrics may still be logged.

        Raises:
            FadevizError: if run.json cannot be written.
        """
        if self.run.is_open and step >= self._schedule.last:
            self.finish()

    def end(self, error: BaseException | None) -> None:
        """Mark the run as finished, or with the training's error as failed or interrupted.

        Raises:
            FadevizError: if the end of a training without an error cannot be written.
        """
        self.stage = "close"
        if error is None:
            self.finish()
            return
        with contextlib.suppress(FadevizError):  # a full disk: the original error matters more
            self.run.stop(error)

    def _observe(self, step: int) -> list[Snapshot]:
        self.stage = "observe"
        snapshots, notes = self.observer.observe(step)
        self._add_notes(notes)
        return snapshots

    def _add_notes(self, notes: Sequence[str]) -> None:
        new = self.run.add_notes(notes)
        if new:
            warn("; ".join(new))

    def _write(self, step: int, snapshots: list[Snapshot]) -> None:
        self.stage = "write"
        self.run.snapshot(step, snapshots, self.observer.probe.prediction)


def _check_images(before: StoredRun, observed: ObservedImages) -> None:
    """Raise unless a run observed these images and masks."""
    masks = observed.masks
    stored_images, stored_masks = before.observation
    same_masks = any(np.array_equal(stored_masks, values) for values in (masks.values, masks.earlier))
    if not np.array_equal(stored_images, observed.images) or not same_masks:
        raise FadevizError(f"{before.address} observed other images. Observe the same, or choose another folder")


def _check_settings(before: StoredRun, probe: Probe, observed: ObservedImages) -> None:
    """Raise unless a run recorded these layers and kinds, and measures the same foreground."""
    info, masks = before.info, observed.masks
    # What was left out of a glob then is left out again.
    left_out = [
        name
        for name in probe.layers
        if any(f"layer {name!r}" in note for note in info.notes) or probe.may_be_absent(name)
    ]
    layers = [name for name in probe.layers if name in info.layers or name not in left_out]
    stored = None if info.observation.foreground is None else list(info.observation.foreground)
    chosen = observed.foreground_given and np.array_equal(before.observation[1], masks.values)
    sources = {name: layer.source for name, layer in info.layers.items() if layer.source is not None}
    for what, was, now in (
        ("layers", list(info.layers), layers),
        ("layers", sources, {name: source for name, source in probe.sources.items() if name in layers}),
        ("kinds", list(info.kinds), list(probe.kinds)),
        ("foreground", stored, masks.foreground if chosen else stored),
    ):
        if was != now:
            raise FadevizError(f"{before.address} was recorded with other {what}: {was}, now {now}. Use the same")


def _check_predictions(before: StoredRun, now: str | None) -> None:
    """Raise unless a run recorded the predictions that are recorded now."""
    was = before.info.predictions
    if was != now:
        raise FadevizError(
            f"{before.address} was recorded with predictions of {was or 'nothing'}, now of {now or 'nothing'}. Use the "
            f"same: predictions={'...' if was else 'False'}"
        )


def _as_float(value: Any) -> float | None:
    try:
        # A single-element tensor or array, for some of which float() would warn.
        return float(value.item() if isinstance(value, Tensor | np.ndarray) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _run_id(untrained: Sequence[Snapshot], images: NDArray[np.uint8], seed: int | None) -> str:
    # A digest of what the untrained model shows: other weights, another run.
    digest = hashlib.sha256(images.tobytes() + repr(seed).encode())
    for snapshot in untrained:
        digest.update(snapshot.key.encode() + snapshot.value.tobytes())
    return digest.hexdigest()[:12]
