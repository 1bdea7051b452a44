"""The training loop: one optimiser step after another, nothing else."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import FadevizError
from .distributed import ALONE, Processes
from .graphs import ReplayedGradients, record_graph

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

COMPILE = ("off", "graph", "on", "reduce-overhead")
"""How a training step may be launched or compiled; see :func:`fit` and :func:`compile_forward`."""


class StepResult(NamedTuple):
    """The result of one optimiser step; ``step`` counts from 1."""

    step: int
    loss: float
    lr: float


def fit(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    lr_at: Callable[[int], float],
    *,
    first_step: int = 1,
    precision: Precision = "fp32",
    scaler: torch.amp.GradScaler | None = None,
    processes: Processes = ALONE,
    loss_weight: Callable[[Tensor], Tensor | float] = len,
    forward: Callable[[Tensor], Tensor] | None = None,
    graph: int = 0,
    record: Callable[..., Callable[[], None]] = record_graph,
) -> Iterator[StepResult]:
    """Train, and yield a ``StepResult`` after every optimiser step. It uses neither the disk nor the terminal.

    Between two results the caller may do anything that leaves the model unchanged: evaluate, observe, save.

    Inputs and targets may be on any device. On a GPU the process waits once per step, for the loss, while the backward
    pass runs.

    Args:
        model: the model to train; with several ranks as :func:`~fadeviz.training.distributed.wrap_ddp` returns it.
        data: inputs and targets of each step; with several ranks this rank's share.
        loss_fn: ``loss_fn(output, targets)``, a mean.
        optimizer: updates the model's parameters. A parameter group may have an ``lr_factor``.
        lr_at: the learning rate of each step.
        first_step: the number of the first step.
        precision: a name in ``PRECISIONS``; the forward pass runs under autocast unless it is ``fp32``.
        scaler: scales the loss, for ``fp16``.
        processes: the ranks that train together. A step is that of the whole batch.
        loss_weight: ``loss_weight(targets)``, the weight of this rank's loss in the mean over all ranks; by default the
            number of images.
        forward: computes the output in place of ``model``: a compiled form of it, see :func:`compile_forward`.
        graph: the number of images in a full batch. Forward and backward pass of such batches are replayed as one CUDA
            graph; smaller batches are computed without it. Only for one rank; 0 for no graph.
        record: records the CUDA graph.

    Raises:
        FadevizError: if the loss is not finite. The weights are left as they were before that step, but BatchNorm's
            running statistics include its batch.
    """
    device = next(model.parameters()).device
    channels_last = any(p.ndim == 4 and _is_channels_last(p) for p in model.parameters())
    layout = torch.channels_last if channels_last else torch.contiguous_format
    modules = list(model.modules())
    passes = _Passes(
        forward or model, loss_fn, device.type, precision, scaler=scaler, processes=processes, loss_weight=loss_weight
    )
    replayed = ReplayedGradients(model, passes.gradients, record=record) if graph else None
    for step, (images, targets) in enumerate(data, start=first_step):
        if not all(module.training for module in modules):  # much faster than setting the mode
            model.train()
        lr = lr_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        optimizer.zero_grad(set_to_none=True)  # before the forward pass, which may use their memory
        images = _pinned(images, device).to(device, memory_format=layout, non_blocking=True)
        targets = _pinned(targets, device).to(device, non_blocking=True)
        if replayed is not None and len(images) == graph:
            read_loss = _deferred_item(replayed(images, targets))
        else:
            loss, mean = passes.losses(images, targets)
            read_loss = _deferred_item(mean)
            passes.backward(loss)
        value = read_loss()
        if not math.isfinite(value):
            alternative = "" if precision == "fp32" else ", or precision='fp32'"
            raise FadevizError(f"the loss became {value} at step {step}. Use a smaller lr=...{alternative}")
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        yield StepResult(step, value, lr)


class _Passes:
    """The forward and the backward pass of a training step."""

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        device_type: str,
        precision: Precision,
        *,
        scaler: torch.amp.GradScaler | None,
        processes: Processes,
        loss_weight: Callable[[Tensor], Tensor | float],
    ) -> None:
        self.forward, self.loss_fn, self.device_type, self.precision = forward, loss_fn, device_type, precision
        self.scaler, self.processes, self.loss_weight = scaler, processes, loss_weight

    def losses(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss to differentiate, and the loss of the whole batch; they differ if there are several ranks."""
        loss = self._loss(images, targets)
        if self.processes.world_size == 1:
            return loss, loss
        # Shares may differ by an image, or in the number of ignored pixels: the mean of their means is not the batch's.
        weight = _scalar(self.loss_weight(targets), loss)
        sums = self.processes.all_reduce(torch.stack([loss.detach() * weight, weight]).double())
        total = sums[1].clamp(min=1e-9)
        # DistributedDataParallel divides the gradients by the number of ranks.
        return loss * (weight.double() * self.processes.world_size / total).to(loss.dtype), sums[0] / total

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, scaled if there is a scaler."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def gradients(self, images: Tensor, targets: Tensor) -> Tensor:
        """Compute the gradients of a batch on a single rank; returns its loss."""
        loss = self._loss(images, targets)
        self.backward(loss)
        return loss

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(self.device_type, PRECISIONS[self.precision], enabled=self.precision != "fp32"):
            output = self.forward(images)
        return self.loss_fn(output.float(), targets)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in pinned memory, from which a copy to a GPU does not wait for the GPU's queue."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def _deferred_item(scalar: Tensor) -> Callable[[], float]:
    """A function that returns the scalar's value, and waits for the work queued so far only.

    ``scalar.item()``, called later, would also wait for the work queued in between, and leave the GPU idle after it.
    """
    scalar = scalar.detach()
    if not scalar.is_cuda:
        return scalar.item
    value = scalar.to("cpu", non_blocking=True)
    copied = torch.Event(device=scalar.device)
    copied.record()

    def read() -> float:
        copied.synchronize()
        return value.item()

    return read


def _scalar(value: Tensor | float, like: Tensor) -> Tensor:
    """A number as a tensor like another, without a synchronous copy from the host."""
    if isinstance(value, Tensor):
        return value.to(like.device, like.dtype, non_blocking=True)
    return torch.full((), float(value), dtype=like.dtype, device=like.device)


def _is_channels_last(p: Tensor) -> bool:
    return p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()


def compile_forward(
    model: nn.Module, mode: str, batch_size: int, *, backend: str = "inductor"
) -> Callable[[Tensor], Tensor]:
    """The forward pass of a model, compiled by ``torch.compile`` for batches of one size, for :func:`fit`.

    It shares the parameters and buffers of ``model``, which stays a plain module: to observe (a compiled form does not
    call hooks that are added later), to test, and to save under plain names.

    Args:
        model: a model on its device.
        mode: ``on``; or ``reduce-overhead``, which on a GPU also replays the launches as CUDA graphs.
        batch_size: the number of images in a full batch. A smaller one, the last of an epoch, is computed by the model
            itself: it is too rare to compile for.
        backend: the backend of ``torch.compile``.

    Raises:
        FadevizError: if the compiler fails or is missing; raised at the first batch.
    """
    from torch._dynamo.exc import TorchDynamoException  # loads the compiler: two seconds

    graphs = mode == "reduce-overhead"
    compiled = torch.compile(model, dynamic=False, backend=backend, mode=mode if graphs else None)

    def forward(images: Tensor) -> Tensor:
        if len(images) != batch_size:
            return model(images)
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return compiled(images)
        except TorchDynamoException as error:
            reason = " ".join(str(error).strip().split("\n\n")[0].split())  # what follows is for developers
            raise FadevizError(f"compile={mode} does not work here: {reason}. Use compile=off") from error

    return forward


def keep_freed_memory() -> None:
    """Ask glibc to keep large freed blocks instead of returning them, which avoids page faults for a step's maps.

    This saves a tenth of a step of a narrow network (0.27 s instead of 0.30). Does nothing without glibc, or if the
    environment variable ``FADEVIZ_KEEP_MEMORY`` is 0.
    """
    if not sys.platform.startswith("linux") or os.environ.get("FADEVIZ_KEEP_MEMORY") == "0":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, 1 << 30)
