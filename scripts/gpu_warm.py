"""Compile the Triton kernels that a piece of work will use, by all cores at once, before it needs them one by one.

A kernel takes seconds to compile, a network with five operators dozens of kernels; Triton keeps what is compiled on
disk, for every process. So each operator is run once at each size, forward and backward, in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


class Use(NamedTuple):
    """An operator at one size: ``x`` is batch, channels, height and width."""

    upsampler: str
    x: tuple[int, int, int, int]
    precision: str = "fp32"
    channels_last: bool = True


def segnet_uses(upsampler: str, batch: int = 4, precision: str = "fp32", size: int = 224) -> list[Use]:
    """SegNet's five, the largest first."""
    stages = ((64, 2), (128, 4), (256, 8), (512, 16), (512, 32))
    return [Use(upsampler, (batch, c, size // part, size // part), precision) for c, part in stages]


def segformer_uses(upsampler: str, batch: int = 8, precision: str = "fp32", size: int = 224) -> list[Use]:
    """SegFormer's, at three resolutions."""
    return [Use(upsampler, (batch, 256, size // part, size // part), precision) for part in (8, 16, 32)]


def warm(uses: Iterable[Use], device: str, processes: int) -> tuple[ProcessPoolExecutor, dict[Future[float], Use]]:
    """Begin to run all uses, in their order; shut the pool down when the last future is done."""
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _alone)
    return pool, {pool.submit(run_once, use, device): use for use in dict.fromkeys(uses)}


def _alone() -> None:
    """A process that only compiles needs one thread, and lets those that train go first."""
    import torch

    torch.set_num_threads(1)
    os.nice(5)


def run_once(use: Use, device: str) -> float:
    """Forward and backward, as in a training; the seconds that it took."""
    import time

    import torch

    from fadeviz.upsamplers import UPSAMPLERS, Skip, build_upsampler, parse_upsampler

    start = time.perf_counter()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[use.precision]
    layout = torch.channels_last if use.channels_last else torch.contiguous_format
    name, options = parse_upsampler(use.upsampler)
    b, c, h, w = use.x
    operator = build_upsampler(name, c, **options).to(device).to(memory_format=layout)  # type: ignore[call-overload]
    x = torch.randn(b, c, h, w, device=device).to(dtype).contiguous(memory_format=layout).requires_grad_()
    feature = torch.randn(b, c, 2 * h, 2 * w, device=device).to(dtype).contiguous(memory_format=layout)
    feature.requires_grad_()
    with torch.autocast(torch.device(device).type, dtype, enabled=use.precision != "fp32"):
        _, indices = operator.pool(feature) if UPSAMPLERS[name].needs == "indices" else (None, None)
        y = operator(x, Skip(feature, indices))
    y.float().square().mean().backward()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def finished(waiting: dict[Future[float], Use], first: int) -> bool:
    """Whether the first so many uses are done."""
    return all(future.done() for future in list(waiting)[:first])


def failures(waiting: dict[Future[float], Use]) -> Iterator[str]:
    """What did not run, a line each; only of what is done."""
    for future, use in waiting.items():
        error = future.exception() if future.done() and not future.cancelled() else None
        if error is not None:
            yield f"{use.upsampler} {use.x} {use.precision}: {type(error).__name__}: {str(error).splitlines()[:1]}"
