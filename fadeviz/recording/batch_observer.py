"""Observing one fixed batch during a training that is not ours, with a check that this leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..storage.snapshots import Snapshot
from .batch import map_tensors
from .observation import Mode
from .probe import Probe
from .state import state_changes, state_of
from .wrapped import device_of, float32_forward


class BatchObserver:
    """Observes a model on the same batch at any step; the first time it compares the model before and after.

    Attributes:
        probe: records the maps.
        images: the argument or the keyword arguments of the model, copied.
        targets: the second argument of the loss, copied.
        busy: whether an observation is going on.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        batch: tuple[Any, Any],
        loss_fn: Callable[[Any, Any], Tensor] | None,
        mode: Mode,
    ) -> None:
        """Copy the batch, whose buffers a data loader may reuse; each observation copies it again."""
        device = device_of(model)
        self.images, self.targets = (
            map_tensors(part, lambda tensor: tensor.detach().to(device, copy=True)) for part in batch
        )
        self.probe, self.busy = probe, False
        self._model, self._mode = model, mode
        self._loss_fn = loss_fn if loss_fn is not None else _no_loss
        self._checked = False

    def observe(self, step: int) -> tuple[list[Snapshot], list[str]]:
        """The maps at this step, and notes on the observation.

        Raises:
            FadevizError: if the model cannot be observed.
        """
        self.busy = True
        try:
            if self._checked:
                return self._observe(step), self.probe.notes
            return self._observe_and_check(step)
        finally:
            self.busy = False

    def _observe(self, step: int) -> list[Snapshot]:
        device = device_of(self._model)  # its current device: it may have been moved since
        if device.type == "cuda":  # the training may run on another stream than this call
            torch.cuda.synchronize(device)
        with float32_forward(self._model):
            return self.probe.observe(self.images, self.targets, self._loss_fn, step=step, mode=self._mode)

    def _observe_and_check(self, step: int) -> tuple[list[Snapshot], list[str]]:
        """Observe, and note whether that changed anything."""
        before = state_of(self._model, self._loss_fn)
        snapshots, prediction = self._observe(step), self.probe.prediction
        # On a GPU two observations may differ by the order of sums.
        again = self._observe(step) if device_of(self._model).type == "cpu" else snapshots
        notes = list(self.probe.notes)
        changes = state_changes(before, state_of(self._model, self._loss_fn))
        if changes:
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            notes.append(f"observing changes the state of the training: {'; '.join(changes[:3])}{more}")
        pairs = zip(snapshots, again, strict=True)
        other = next((first for first, second in pairs if not _is_close(first.value, second.value)), None)
        if other is not None:
            notes.append(
                f"a second pass over the same batch gave different maps (layer {other.layer!r}, {other.kind}): the "
                "model or the loss draws random numbers or counts its calls where this cannot be undone"
            )
        elif not _is_same(prediction, self.probe.prediction):
            notes.append("a second pass over the same batch gave other predictions: predictions draws random numbers")
        self._checked = True
        return snapshots, notes


def _is_close(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    """Whether two observations are equal up to rounding."""
    if first.shape != second.shape:
        return False
    largest = float(np.nan_to_num(np.abs(first), posinf=0).max(initial=0))
    return np.allclose(first, second, rtol=0, atol=1e-4 * largest, equal_nan=True)


def _is_same(first: NDArray[np.uint8] | None, second: NDArray[np.uint8] | None) -> bool:
    return first is None or second is None or np.array_equal(first, second)


def _no_loss(output: Any, targets: Any) -> Tensor:
    raise AssertionError("no gradients without loss_fn")  # never called: gradient is not among the kinds
