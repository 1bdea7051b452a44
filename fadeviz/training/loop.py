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
"""How a training step may be launched or compiled, see :func:`fit` and :func:`compile_forward`."""


class StepResult(NamedTuple):
    """What one optimiser step did; ``step`` counts from 1."""

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
    weigh: Callable[[Tensor], Tensor | float] = len,
    forward: Callable[[Tensor], Tensor] | None = None,
    graph: int = 0,
    record: Callable[..., Callable[[], None]] = record_graph,
) -> Iterator[StepResult]:
    """Train: one ``StepResult`` after every optimiser step. Knows no disk, no terminal and no image.

    Between two results the caller may do with the model what leaves it as it was: evaluate, observe, save.

    Inputs and targets may be on any device. On a GPU the process waits once a step, for the loss, while the backward
    pass runs.

    With several ``processes``, ``model`` is what :func:`~fadeviz.training.distributed.shared` gives, ``data`` this
    process's share, and ``loss_fn`` a mean whose weight ``weigh`` gives (of targets; their number, where it is a mean
    over images of one size): the step is that of the whole batch.

    ``forward`` computes the output in place of ``model``: a compiled form of it, see :func:`compile_forward`.

    ``graph`` is the number of images in a full batch: forward and backward pass of such batches are then replayed as
    one CUDA graph, recorded by ``record``, those of smaller ones computed as they are. For one process.

    Raises:
        FadevizError: the loss is not finite; the weights are left as they were before that step (BatchNorm's running
            statistics have taken in its batch).
    """
    device = next(model.parameters()).device
    channels_last = any(p.ndim == 4 and _is_channels_last(p) for p in model.parameters())
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dtype = PRECISIONS[precision]
    modules = list(model.modules())

    def output_loss(images: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            output = (forward or model)(images)
        return loss_fn(output.float(), targets)

    def backward(loss: Tensor) -> None:
        (loss if scaler is None else scaler.scale(loss)).backward()

    def gradients(images: Tensor, targets: Tensor) -> Tensor:
        loss = output_loss(images, targets)
        backward(loss)
        return loss

    replayed = ReplayedGradients(model, gradients, record=record) if graph else None
    for step, (images, targets) in enumerate(data, start=first_step):
        if not all(module.training for module in modules):  # many times faster to ask than to set
            model.train()
        lr = lr_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        optimizer.zero_grad(set_to_none=True)  # before the forward pass, which may use their memory
        images = _pinned(images, device).to(device, memory_format=layout, non_blocking=True)
        targets = _pinned(targets, device).to(device, non_blocking=True)
        if replayed is not None and len(images) == graph:
            read = _reading(replayed(images, targets))
        else:
            loss = mean = output_loss(images, targets)
            if processes.world_size > 1:
                # Shares may differ by an image, or in what is ignored: the mean of their means is not the batch's.
                weight = _scalar(weigh(targets), loss)
                told = processes.all_reduce(torch.stack([loss.detach() * weight, weight]).double())
                total = told[1].clamp(min=1e-9)
                mean = told[0] / total
                loss = loss * (weight.double() * processes.world_size / total).to(loss.dtype)
            read = _reading(mean)
            backward(loss)
        value = read()
        if not math.isfinite(value):
            or_this = "" if precision == "fp32" else ", or --precision fp32"
            raise FadevizError(f"the loss became {value} at step {step}. Use a smaller --lr{or_this}")
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        yield StepResult(step, value, lr)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Where it can be copied to a GPU without waiting for what is in the queue there; as it is if it is there."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def _reading(scalar: Tensor) -> Callable[[], float]:
    """What gives the value of a scalar later, when its GPU has been given more work: it then waits for the value alone.

    ``item()`` would wait for all of that work, and leave the GPU idle until it gets the next.
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
    """A number as a tensor beside another, without a copy from the host that would be waited for."""
    if isinstance(value, Tensor):
        return value.to(like.device, like.dtype, non_blocking=True)
    return torch.full((), float(value), dtype=like.dtype, device=like.device)


def _is_channels_last(p: Tensor) -> bool:
    return p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()


def compile_forward(
    model: nn.Module, mode: str, batch_size: int, *, backend: str = "inductor"
) -> Callable[[Tensor], Tensor]:
    """The forward pass of a model, compiled by ``torch.compile`` for batches of one size, for :func:`fit`.

    It has the parameters and buffers of ``model``, which stays as it is: to observe (a compiled form calls no hooks
    that are added later), to test, and to save under plain names.

    Args:
        model: on its device.
        mode: ``on``; or ``reduce-overhead``, which on a GPU also replays the launches as CUDA graphs.
        batch_size: images of a full batch. A smaller one, the last of an epoch, takes the model itself: it is too rare
            to be compiled for.
        backend: of ``torch.compile``.

    Raises:
        FadevizError: at the first batch: the compiler fails, or there is none.
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
    """Ask glibc to keep large freed blocks instead of returning them: a step then pays no page faults for its maps.

    A tenth of a slim training step (0.27 s against 0.30). Does nothing elsewhere, or when the environment
    variable ``FADEVIZ_KEEP_MEMORY`` is 0.
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
