"""Time the Triton kernels with several divisions of their work, and print the best: the table in backends/direct.py.

    python scripts/tune_triton.py --out tuned.json

needs a CUDA device and about a minute. Everything is compiled first, in one process for each core, by compiling ahead
of time into Triton's cache on disk; then each kernel is timed in a CUDA graph, so that launches count for nothing.
``--dry-run`` compiles a few and times nothing; it runs without a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fadeviz.ops.backends import direct
from fadeviz.ops.backends.direct import Blocks
from fadeviz.ops.backends.launch import Size, SoftmaxBackward

K, SCALE = 5, 2
PAPER = (16, 256, 64, 64)
SEGNET = [(512, 7), (512, 14), (256, 28), (128, 56), (64, 112)]
SHAPES = [PAPER, *((batch, c, n, n) for batch in (16, 4) for c, n in SEGNET)]
TUNED_AT = [PAPER, *((batch, c, n, n) for batch in (16, 4) for c, n in ((512, 14), (128, 56)))]
KERNELS = ("reassemble", "similarity", "spread")

CANDIDATES = {
    ("reassemble", True): [Blocks(32, 4, 8, 2), Blocks(16, 4, 8, 2), Blocks(32, 2, 8, 2)],
    ("reassemble", False): [Blocks(32, 8, 8, 1), Blocks(64, 4, 8, 1)],
    ("similarity", True): [Blocks(8, 4, 0, 1), Blocks(8, 2, 0, 1), Blocks(16, 4, 0, 1)],
    ("similarity", False): [Blocks(32, 2, 0, 1), Blocks(32, 8, 0, 1)],
    ("fused similarity", True): [Blocks(4, 4, 0, 1), Blocks(8, 2, 0, 1)],
    ("fused similarity", False): [Blocks(32, 8, 0, 1), Blocks(16, 4, 0, 1)],
    ("spread", True): [Blocks(32, 4, 8, 2), Blocks(16, 4, 8, 4), Blocks(32, 2, 8, 4)],
    ("spread", False): [Blocks(32, 4, 8, 2), Blocks(32, 8, 8, 4)],
}
"""Beside the ones of the table."""


class Task(NamedTuple):
    """One kernel on one shape; fused with softmax and gate, or plain."""

    kernel: str
    shape: tuple[int, int, int, int]
    dtype: str
    channels_last: bool
    fused: bool
    blocks: Any

    @property
    def key(self) -> tuple[str, bool]:
        """Its row of the table."""
        return "fused similarity" if self.fused and self.kernel == "similarity" else self.kernel, self.channels_last

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{'fused ' * self.fused}{self.kernel} {'x'.join(map(str, self.shape))} {self.dtype} {layout}"


def tasks() -> list[Task]:
    """The most wanted first, as time may run out."""
    wanted = []
    for shape, channels_last, dtype, fused, kernel in itertools.product(
        SHAPES, (True, False), ("float32", "float16", "bfloat16"), (False, True), KERNELS
    ):
        if fused and kernel == "spread":  # never is
            continue
        if shape != PAPER and (dtype == "bfloat16" or (not channels_last and dtype == "float16")):
            continue  # they take as long as float16, and as channels-last, would let one guess
        task = Task(kernel, shape, dtype, channels_last, fused, None)
        candidates = CANDIDATES[task.key] if shape in TUNED_AT and dtype != "bfloat16" else []
        wanted += [task._replace(blocks=blocks) for blocks in (direct._TUNED[task.key], *candidates)]
    return wanted


def launch(task: Task, device: str) -> Any:
    """A function that runs the task's kernel, alone."""
    b, c, h, w = task.shape
    dtype = getattr(torch, task.dtype)
    memory_format = torch.channels_last if task.channels_last else torch.contiguous_format

    def empty(*shape: int) -> Tensor:
        made = torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)
        return made if device == "meta" else made.normal_()

    size = Size(b, 1, c, h, w, K, SCALE)
    x, y, kernels = empty(*size.low), empty(*size.high), empty(*size.kernels)
    if task.kernel == "spread":
        return lambda: direct.spread(size, y, kernels, x)
    skip, gate = empty(*size.high), empty(*size.pixels)
    logits = empty(*size.kernels)
    if task.kernel == "reassemble":
        given = (logits, skip, gate) if task.fused else ()
        return lambda: direct.reassemble(size, x, kernels, y, *given)
    if not task.fused:
        out = torch.empty_like(kernels, dtype=torch.float32)
        return lambda: direct.similarity(size, y, x, out)
    written = (empty(*size.high), empty(*size.pixels), empty(*size.kernels))
    softmax = SoftmaxBackward(kernels, skip, gate, *written)
    return lambda: direct.similarity(size, y, x, logits, softmax)


def compile_ahead(given: list[Task], arch: int) -> list[str]:
    """Compile what the tasks launch, into the cache on disk; in a process of its own. Returns what failed."""
    from triton.backends.compiler import GPUTarget

    class Driver:  # what a launch asks of a GPU
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", arch, 32))

    triton.runtime.driver.set_active(Driver())
    triton.JITFunction.__getitem__ = lambda self, grid: (
        lambda *args, **options: self.run(*args, grid=grid, warmup=True, **options)
    )
    failed = []
    for task in given:
        direct._TUNED[task.key] = task.blocks
        try:
            launch(task, "meta")()
        except Exception as error:  # one block size that cannot be must not end the rest
            failed.append(f"{task} {tuple(task.blocks)}: {type(error).__name__}: {str(error)[-300:]}")
    return failed


def main() -> None:
    """Compile, time, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for all timings")
    parser.add_argument("--seconds", type=float, default=80, help="start nothing after so many")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    parser.add_argument("--dry-run", action="store_true", help="compile a few, time nothing; needs no GPU")
    options = parser.parse_args()
    begin = time.monotonic()
    wanted = tasks()
    if options.dry_run:
        wanted, arch = [task for task in wanted if task.shape == PAPER and task.dtype == "float32"][:6], 90
    else:
        major, minor = torch.cuda.get_device_capability()
        arch = 10 * major + minor
    device = "none" if options.dry_run else torch.cuda.get_device_name()
    print(f"{len(wanted)} tasks, {device}, torch {torch.__version__}, triton {triton.__version__}", flush=True)
    # Batches share kernels, which are compiled once.
    alike = {task._replace(shape=(0, *task.shape[1:])): task for task in wanted}
    groups = [list(alike.values())[n :: options.jobs * 4] for n in range(options.jobs * 4)]
    results: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        failed = [
            f for done in as_completed([pool.submit(compile_ahead, g, arch) for g in groups]) for f in done.result()
        ]
    for failure in failed:
        print("failed", failure, flush=True)
    print(f"{len(alike)} compiled in {time.monotonic() - begin:.0f} s", flush=True)
    if not options.dry_run:
        for task in wanted:
            if time.monotonic() - begin > options.seconds:
                print(f"out of time, {len(wanted) - len(results)} tasks left", flush=True)
                break
            table = dict(direct._TUNED)
            direct._TUNED[task.key] = task.blocks
            try:
                run = launch(task, "cuda")
                run()
                ms = triton.testing.do_bench_cudagraph(run, rep=2, return_mode="median")
                results.append({**task._asdict(), "blocks": list(task.blocks), "us": 1000 * ms})
            except Exception as error:
                print(f"failed {task}: {type(error).__name__}: {str(error)[-300:]}", flush=True)
            direct._TUNED.clear()
            direct._TUNED.update(table)
    if options.out:
        options.out.write_text(
            json.dumps({"device": device, "triton": triton.__version__, "timings": results}, indent=1)
        )
    report(results)
    print(f"{time.monotonic() - begin:.0f} s")


def report(results: list[dict[str, Any]]) -> None:
    """All times, then for each row of the table the blocks that lose least, over shapes and types."""
    found: dict[Task, dict[tuple[int, ...], float]] = {}
    for result in results:
        task = Task(**{field: result[field] for field in Task._fields})._replace(blocks=None)
        found.setdefault(task, {})[tuple(result["blocks"])] = result["us"]
    for task, times in found.items():
        print(f"{task!s:56}", "  ".join(f"{blocks}: {us:.1f}" for blocks, us in times.items()), flush=True)
    for key, now in direct._TUNED.items():
        lost: dict[tuple[int, ...], list[float]] = {}
        for task, times in found.items():
            if task.key == key and len(times) > 1:
                for blocks, us in times.items():
                    lost.setdefault(blocks, []).append(math.log(us / min(times.values())))
        means = {blocks: math.exp(sum(logs) / len(logs)) for blocks, logs in lost.items()}
        if means:
            best = min(means, key=lambda blocks: means[blocks])
            ranked = ", ".join(f"{blocks} {mean:.3f}" for blocks, mean in sorted(means.items(), key=lambda m: m[1]))
            print(f"    {key}: Blocks{best},  # times the best at each shape: {ranked}; now {tuple(now)}")


if __name__ == "__main__":
    main()
