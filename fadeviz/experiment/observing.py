"""Observations of a run: the fixed images, their maps at a step, and their entries in run.json."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import Sample, Splits
from ..data.interior import describe_missing
from ..data.matting.compositing import UNKNOWN
from ..data.observation import choose_observed, find_object
from ..data.sets import find_data
from ..data.transforms import IGNORED
from ..models import Network
from ..recording.predictions import PredictionReader
from ..recording.probe import Probe
from ..storage.info import ObservationInfo
from ..storage.observation import select_foregrounds
from ..storage.snapshots import Snapshot
from ..training.tasks import TASKS
from .config import RunConfig


class Observer:
    """Observes a network on the same few test images, at any step.

    Attributes:
        probe: records the maps.
        inputs: the images as the network takes them.
        info: the description of the images in run.json.
        unusual: the indices of the images, if the rule of earlier versions gives others; else None.
        notes: notes on the images, a sentence each.
    """

    def __init__(
        self,
        config: RunConfig,
        splits: Splits,
        model: Network,
        device: torch.device,
        recorded: Sequence[int] | None = None,
    ) -> None:
        """Choose the images.

        Args:
            config: the settings of the run.
            splits: its images, of which test images are observed.
            model: its network, on its device.
            device: that device.
            recorded: the indices in the run.json of a run that is resumed: one of an earlier version keeps its images.

        Raises:
            FadevizError: if there are too few.
        """
        entry, task = find_data(model.task, config.data), TASKS[model.task]

        def crop(sample: Sample) -> Sample:
            return entry.observation_crop(sample, config.size)

        chosen = choose_observed(splits.test, config.observe, config.split_seed, classes=splits.classes, crop=crop)
        of_earlier_version = recorded is not None and tuple(recorded) in ((), chosen.earlier)
        indices = chosen.earlier if of_earlier_version else chosen.indices
        self.unusual = indices if indices != chosen.earlier else None
        self._samples = [crop(splits.test[index]) for index in indices]
        self.inputs, self._targets = (tensor.to(device) for tensor in task.collate(self._samples))
        self._loss, self._mode = task.loss, config.observe_mode
        masks = [sample.mask for sample in self._samples]
        foreground: tuple[int, ...] | None = None
        if splits.classes > 2:
            foreground = tuple(map(find_object, masks))
        elif task.has_classes and any((mask == IGNORED).any() for mask in masks):
            foreground = (1,) * len(masks)  # every class but 0 would be the ignored pixels too
        self.info = ObservationInfo(
            names=tuple(sample.name for sample in self._samples),
            indices=indices,
            mode=config.observe_mode,
            foreground=foreground,
        )
        objects = select_foregrounds(self.masks, foreground, "the run")
        predict = True if task.has_classes else _alphas
        predictions = PredictionReader(predict, self.masks.shape) if config.predictions else None
        self.probe = Probe(
            model, config.layers, config.kinds or None, config.channel_images, objects=objects,
            predictions=predictions,
        )  # fmt: skip
        missing = describe_missing(self.info.names, list(objects))
        self.notes = [missing] if missing else []
        if len(indices) < config.observe:
            self.notes.append(f"all {len(indices)} test images are observed: there are fewer than {config.observe}")

    def observe(self, step: int) -> list[Snapshot]:
        """The maps at this step.

        Raises:
            FadevizError: if the model cannot be observed.
        """
        return self.probe.observe(self.inputs, self._targets, self._loss, step=step, mode=self._mode)  # type: ignore[arg-type]

    @property
    def prediction(self) -> NDArray[np.uint8] | None:
        """What the network predicted in the last observation, ``(N, H, W)``; None if predictions are not recorded.

        The known pixels of mattes are as the trimaps have them.
        """
        prediction = self.probe.prediction
        if prediction is None or self.mattes is None:
            return prediction
        trimaps = self.mattes[1]
        return np.where(trimaps == UNKNOWN, prediction, trimaps)

    @property
    def images(self) -> NDArray[np.uint8]:
        """The images, ``(N, H, W, 3)`` uint8."""
        return np.stack([sample.image for sample in self._samples])

    @property
    def masks(self) -> NDArray[np.uint8]:
        """Their masks, ``(N, H, W)`` uint8."""
        return np.stack([sample.mask for sample in self._samples])

    @property
    def mattes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """Their alpha (0 to 255) and trimaps, both ``(N, H, W)`` uint8; None unless all of them have both."""
        alphas = [np.rint(s.alpha * 255).astype(np.uint8) for s in self._samples if s.alpha is not None]
        trimaps = [s.trimap for s in self._samples if s.trimap is not None]
        if not len(alphas) == len(trimaps) == len(self._samples):
            return None
        return np.stack(alphas), np.stack(trimaps)


def _alphas(output: Tensor) -> Tensor:
    """The alphas ``(B, H, W)`` in a matting network's output."""
    return (output[:, 0] if output.ndim == 4 else output).float().clamp(0, 1)
