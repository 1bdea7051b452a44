"""Observing a few images at a time, to save memory: the same maps, and the gradients of the whole batch's loss."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import FadevizError
from ..storage.snapshots import CHANNEL_KINDS, Snapshot
from .batch import concatenate_outputs, count_images, map_tensors, slice_images, tensors_in
from .hooks import MapCollector
from .modules import modules_of_loss
from .observation import Observation
from .observed_model import ObservedModel

_MOST_PIXELS, _CHUNK_PIXELS = 2**20, 2**19
"""Pixels up to which all observed images are in the model at once, and the pixels of a chunk above that."""


class ChunkedObserver:
    """Observes a model in chunks of images, if its maps and its loss allow it; the first observation decides."""

    def __init__(self, model: ObservedModel) -> None:
        """Nothing is run before :meth:`observe`."""
        self.model = model
        self._separable: bool | None = None

    def observe(self, observation: Observation, kinds: Sequence[str]) -> MapCollector | None:
        """Observe a few images at a time; None if all must or may be in the model at once."""
        count, pixels = count_images(observation.images)
        chunk = observation.images_at_once
        if chunk is None:
            chunk = count if count * pixels <= _MOST_PIXELS else max(1, _CHUNK_PIXELS // pixels)
        if observation.mode != "eval" or not 0 < chunk < count:
            return None
        if self._separable is None:
            self._separable = self._is_separable(observation, count)
            if not self._separable:
                self.model.note(
                    f"all {count} images were observed at once: one at a time they give different maps or losses"
                )
        if not self._separable:
            return None
        starts = range(0, count, chunk)
        chunks = [slice_images(observation.images, count, start, min(start + chunk, count)) for start in starts]
        sizes = [min(chunk, count - start) for start in starts]
        cotangents = self._cotangents(observation, chunks, sizes) if "gradient" in kinds else []
        collectors = []
        for start, images in zip(starts, chunks, strict=True):
            rows = slice(start, start + chunk)
            chunk_cotangents = [None if c is None else c[rows] for c in cotangents]
            collectors.append(self._observe_chunk(observation, kinds, images, chunk_cotangents))
        return _concatenate(collectors, observation, self.model.device())

    def _observe_chunk(
        self, observation: Observation, kinds: Sequence[str], images: Any, cotangents: Sequence[Tensor | None]
    ) -> MapCollector:
        with self.model.collecting(observation, kinds, partial=True) as collector:
            output = self.model.forward(images, collector)
            collector.add_prediction(output, count_images(images)[0])
            outputs = tensors_in(output)
            if "gradient" in kinds:
                both = zip(outputs, cotangents, strict=True)
                pairs = [(output, c) for output, c in both if c is not None and output.requires_grad]
                collector.add_gradients([output for output, _ in pairs], [c for _, c in pairs])
        return collector

    def _is_separable(self, observation: Observation, count: int) -> bool:
        """Whether the first image gives the same maps and output alone as together with the second."""
        of_loss = {id(part) for module in modules_of_loss(observation.loss_fn) for part in module.modules()}
        if not of_loss.isdisjoint(id(module) for module in self.model.module.modules()):
            return False  # a loss that reads more of the model than its output
        maps, outputs = [], []
        try:
            for stop in (1, 2):
                with self.model.collecting(observation, ("feature",)) as collector:
                    output = self.model.forward(slice_images(observation.images, count, 0, stop), collector)
                maps.append({s.key: torch.from_numpy(s.value) for s in collector.snapshots})
                outputs.append(output)
            concatenate_outputs(outputs, (1, 2))
        except FadevizError as error:
            if half_precision_of(error.__cause__) is not None:  # fails with all images too; retried under autocast
                raise
            return False
        alone, together = ([*m.values(), *tensors_in(o)] for m, o in zip(maps, outputs, strict=True))
        # Rounding depends on the number of images, and is larger at lower precision.
        tolerance = 1e-3 if self.model.dtype() == torch.float32 and observation.autocast is None else 3e-2
        return maps[0].keys() == maps[1].keys() and all(
            _begins_with(both, first, tolerance) for both, first in zip(together, alone, strict=True)
        )

    def _cotangents(self, observation: Observation, chunks: Sequence[Any], sizes: Sequence[int]) -> list[Tensor | None]:
        """d loss / d output of the whole batch, for each tensor of the output; None for those without a gradient."""
        outputs = []
        for images in chunks:
            with self.model.collecting(observation, ()) as collector:
                outputs.append(map_tensors(self.model.forward(images, collector), Tensor.detach))
        with self.model.collecting(observation, ()), torch.enable_grad():
            output = concatenate_outputs(outputs, sizes)
            leaves = [t.requires_grad_() for t in tensors_in(output) if t.is_floating_point()]
            # A loss may write into the output, but not into a leaf.
            loss = self.model.loss(map_tensors(output, lambda t: t.clone()), observation)
            with observation.error_context("the backward pass failed"):
                gradients = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
        return [next(gradients) if t.is_floating_point() else None for t in tensors_in(output)]


def half_precision_of(error: BaseException | None) -> torch.dtype | None:
    """The dtype for autocast, if this is the error of layers with different dtypes; None otherwise."""
    match = (
        re.search("(bfloat16)|(half|float16)", str(error), re.IGNORECASE) if isinstance(error, RuntimeError) else None
    )
    if match is None:
        return None
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):  # the training's, around the call
            return torch.get_autocast_dtype(device)
    return torch.bfloat16 if match[1] else torch.float16


def _concatenate(
    collectors: Sequence[MapCollector], observation: Observation, device: torch.device | None
) -> MapCollector | None:
    """Concatenate the maps of chunks, and add the readouts; None if the layers did not run the same way in each."""
    keys = [sorted(snapshot.key for snapshot in collector.snapshots) for collector in collectors]
    channels = collectors[0].channels.keys()
    if any(others != keys[0] for others in keys) or any(c.channels.keys() != channels for c in collectors):
        return None
    values: dict[str, list[NDArray[np.float32]]] = {key: [] for key in keys[0]}
    for collector in collectors:
        for snapshot in collector.snapshots:
            values[snapshot.key].append(snapshot.value)
    whole = collectors[0]
    whole.snapshots = [
        s
        if s.kind == "constant"
        else dataclasses.replace(s, value=np.concatenate(values[s.key])[: _most_images(s, observation.channel_images)])
        for s in whole.snapshots
    ]
    predictions = [c.prediction for c in collectors if c.prediction is not None]
    whole.prediction = np.concatenate(predictions) if predictions else None
    for layer, call in list(channels):  # one after the other: on a GPU there may be no room for all
        parts = [collector.channels.pop((layer, call)) for collector in collectors]
        whole.add_readouts(layer, call, torch.cat(parts).to(device))
    whole.synchronize()
    return whole


def _most_images(snapshot: Snapshot, channel_images: int) -> int | None:
    return channel_images if snapshot.kind in CHANNEL_KINDS else None


def _begins_with(both: Tensor, first: Tensor, tolerance: float) -> bool:
    """Whether the rows of ``first`` are the first half of ``both``, to rounding."""
    if both.shape != (2 * len(first), *first.shape[1:]):
        return False
    if not first.is_floating_point() or not first.numel():
        return True
    limit = tolerance * float(first.detach().abs().nan_to_num().max())
    return torch.allclose(both[: len(first)], first, rtol=0, atol=limit, equal_nan=True)
