"""What all stages share: where they measure, their results, clocks, and checks spread over processes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.py"

Row = dict[str, Any]
Call = Callable[[], object]

GPU_FILES = ROOT / ".gpu"
LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KERNEL_SIZE, SCALE = 5, 2
NETWORKS = ("segnet", "segformer:backbone=b0", "matting")


@dataclass(frozen=True)
class Setting:
    """Where to measure, how large, and where a stage may write."""

    device: str = "cuda"
    small: bool = False
    work: str = ""
    processes: int = 0
    """In which the checks of a stage are spread; 0: in its own."""
    seconds: float = 1e6
    """That the stage has."""

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device == "cuda"


class Rows:
    """A stage's results, written line by line: what a stage that is stopped had measured is kept."""

    def __init__(self, path: Path | None) -> None:
        """None keeps them in memory alone."""
        self.path, self.rows, self.begun = path, list[Row](), time.monotonic()

    def add(self, **row: Any) -> None:
        """One result; ``ok=False`` is a failed check."""
        row["at"] = round(time.monotonic() - self.begun, 1)
        self.rows.append(row)
        line = json.dumps(row, default=str)
        print(line, flush=True)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(line + "\n")


def read_rows(path: Path) -> list[Row]:
    """What a stage wrote; a line that was cut off is left out."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def timed(calls: Sequence[Call], device: str, seconds: float = 0.2) -> float:
    """Median seconds of a call; ``calls`` take turns, so that each finds its inputs outside of the L2 cache.

    On a GPU by events around every call: gaps in which the GPU waits for its next launch count too.
    """
    for call in calls[:3]:
        call()
    synchronize(device)
    start = time.perf_counter()
    for call in calls[:2]:
        call()
    synchronize(device)
    once = (time.perf_counter() - start) / min(2, len(calls))
    count = max(5, min(200, int(seconds / max(once, 1e-7))))
    if device != "cuda":
        spent = []
        for number in range(count):
            start = time.perf_counter()
            calls[number % len(calls)]()
            spent.append(time.perf_counter() - start)
        return statistics.median(spent)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for number, (before, after) in enumerate(events):
        before.record()
        calls[number % len(calls)]()
        after.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in events) / 1e3


def timed_graph(calls: Sequence[Call], seconds: float = 0.1) -> float:
    """Median seconds of a call in a CUDA graph of all ``calls``: what the GPU takes where no launch is waited for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    once = timed([graph.replay], "cuda", seconds)
    del kept
    return once / len(calls)


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def exact_fp32() -> None:
    """No TF32: what is compared in float32 is computed in it."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def spread_over(
    setting: Setting, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """``function(setting, *task)`` of each task as it is done, in several processes; an exception is a result."""
    if not setting.processes:
        for task in tasks:
            try:
                yield task, function(setting, *task)
            except Exception as error:
                traceback.print_exc()
                yield task, error
        return
    with ProcessPoolExecutor(setting.processes, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(function, setting, *task): task for task in tasks}
        for future in as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except Exception as error:
                traceback.print_exc()
                yield waiting[future], error
