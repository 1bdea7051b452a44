"""The training loop: one optimiser step after another, nothing else."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import FadevizError
from .distributed import ALONE, Processes

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class StepResult(NamedTuple):
    """What one optimiser step did; ``step`` counts from 1."""

    step: int
    loss: float
    lr: float


def step_decay(
    lr: float, steps: int, drops: Sequence[float] = (0.7, 0.9), factor: float = 0.1
) -> Callable[[int], float]:
    """The learning rate of each optimiser step: ``lr``, times ``factor`` from each share of the run in ``drops`` on.

    The defaults are the paper's epochs 35 and 45 of 50.
    """
    places = [round(share * steps) for share in drops]

    def at(step: int) -> float:
        return lr * factor ** sum(step > place for place in places)

    return at


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
    weigh: Callable[[Tensor], float] = len,
) -> Iterator[StepResult]:
    """Train: one ``StepResult`` after every optimiser step. Knows no disk, no terminal and no picture.

    Between two results the caller may do with the model what leaves it as it was: evaluate, observe, save.

    With several ``processes``, ``model`` is what :func:`~fadeviz.training.distributed.shared` gives, ``data`` this
    process's share, and ``loss_fn`` a mean whose weight ``weigh`` gives (of targets; their number, where it is a mean
    over pictures of one size): the step is that of the whole batch.

    Raises:
        FadevizError: the loss is not finite; the weights are left as they were before that step (BatchNorm's running
            statistics have taken in its batch).
    """
    first = next(model.parameters())
    channels_last = any(p.ndim == 4 and _is_channels_last(p) for p in model.parameters())
    dtype = PRECISIONS[precision]
    for step, (images, targets) in enumerate(data, start=first_step):
        model.train()
        lr = lr_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        images = images.to(
            first.device, memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        with torch.autocast(first.device.type, dtype, enabled=precision != "fp32"):
            output = model(images)
        loss = loss_fn(output.float(), targets.to(first.device))
        if processes.count > 1:
            # Shares may differ by a picture, or in what is ignored: the mean of their means is not the batch's.
            weight = weigh(targets)
            told = processes.summed(torch.stack([loss.detach() * weight, loss.new_tensor(weight)]).double())
            value = (told[0] / told[1].clamp(min=1e-9)).item()
            loss = loss * (weight * processes.count / max(told[1].item(), 1e-9))
        else:
            value = loss.item()
        if not np.isfinite(value):
            or_this = "" if precision == "fp32" else ", or --precision fp32"
            raise FadevizError(f"the loss became {value} at step {step}. Use a smaller --lr{or_this}")
        optimizer.zero_grad(set_to_none=True)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        yield StepResult(step, value, lr)


def _is_channels_last(p: Tensor) -> bool:
    return p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()


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
