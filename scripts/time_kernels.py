"""Time each kernel of backends/direct.py and backends/banded.py alone, with several tiles, and check its numbers.

    python scripts/time_kernels.py --out timings

needs a CUDA device and about a minute. One process for each core compiles ahead of time, into Triton's cache on disk;
what is compiled is timed meanwhile, in CUDA graphs, on inputs that the L2 cache does not hold, and compared with
float64 on the same device. Every result is a line of timings/kernels.jsonl as soon as it is known; a table follows at
the end. ``--dry-run N`` compiles the first N and times nothing; it runs without a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from fadeviz.ops.backends import banded, direct
from fadeviz.ops.backends.launch import Size, SoftmaxBackward

K, SCALE = 5, 2
PAPER = (16, 256, 64, 64)
SEGNET = [(4, 64, 112, 112), (4, 128, 56, 56), (4, 256, 28, 28), (4, 512, 14, 14)]
KERNELS = ("forward", "similarity", "spread", "fused forward", "fused similarity")
TABLE = ("reassemble", "similarity", "spread", "fused reassemble", "fused similarity")  # rows of banded._TUNED

TILES = {
    # kernel, channels contiguous, half precision: beside the ones of banded._TUNED
    ("forward", True, True): [
        (8, 8, 128, 4, 2),
        (8, 8, 64, 4, 3),
        (8, 8, 32, 4, 4),
        (16, 8, 64, 8, 2),
        (8, 8, 64, 4, 1),
    ],
    ("forward", True, False): [
        (8, 8, 32, 4, 2),
        (8, 8, 64, 8, 2),
        (8, 8, 32, 4, 1),
        (16, 8, 32, 8, 2),
        (8, 8, 16, 4, 3),
    ],
    ("forward", False, True): [(8, 16, 64, 8, 2), (8, 16, 32, 4, 2), (8, 8, 64, 4, 2), (8, 16, 32, 8, 1)],
    ("forward", False, False): [(8, 16, 16, 8, 2), (8, 16, 32, 8, 2), (8, 8, 32, 4, 2), (8, 8, 16, 4, 2)],
    ("similarity", True, True): [(8, 8, 128, 4, 2), (8, 8, 32, 4, 4), (8, 8, 64, 4, 2), (16, 8, 64, 8, 3)],
    ("similarity", True, False): [(8, 8, 64, 4, 2), (8, 8, 32, 4, 3), (16, 8, 32, 8, 2), (8, 8, 32, 8, 2)],
    ("similarity", False, True): [(8, 16, 64, 8, 2), (8, 16, 32, 4, 2), (8, 8, 64, 4, 2)],
    ("similarity", False, False): [(8, 16, 16, 8, 2), (8, 16, 32, 8, 2), (8, 8, 64, 4, 2)],
    ("spread", True, True): [
        (16, 4, 128, 4, 2),
        (16, 4, 256, 8, 3, 64),
        (8, 4, 256, 4, 2, 32),
        (8, 4, 128, 4, 3, 32),
        (4, 4, 256, 4, 3),
        (8, 8, 128, 4, 3, 32),
    ],
    ("spread", True, False): [
        (16, 4, 64, 4, 2, 32),
        (16, 4, 128, 8, 2, 32),
        (8, 4, 128, 8, 2, 32),
        (8, 4, 64, 4, 3, 16),
        (4, 4, 128, 4, 2, 32),
        (8, 8, 64, 4, 2, 32),
    ],
    ("spread", False, True): [(4, 8, 64, 4, 3, 32), (8, 8, 64, 4, 2), (8, 4, 64, 4, 2), (8, 8, 128, 8, 2)],
    ("spread", False, False): [(4, 8, 32, 4, 2, 32), (8, 8, 64, 4, 2, 32), (8, 4, 64, 4, 2, 32)],
    ("fused forward", True, True): [(8, 8, 64, 4, 2), (8, 8, 32, 4, 2), (8, 8, 32, 8, 2), (8, 8, 128, 8, 2)],
    ("fused forward", True, False): [(8, 8, 32, 4, 2), (8, 8, 64, 8, 2), (8, 8, 16, 8, 2), (8, 8, 64, 4, 2)],
    ("fused forward", False, True): [(8, 8, 32, 4, 2), (8, 8, 64, 8, 2), (8, 16, 32, 8, 2)],
    ("fused forward", False, False): [(8, 16, 16, 8, 2), (8, 8, 32, 4, 2)],
    ("fused similarity", True, True): [(8, 8, 64, 4, 2), (8, 8, 32, 8, 3), (8, 8, 128, 8, 2)],
    ("fused similarity", True, False): [(8, 8, 32, 4, 2), (8, 8, 16, 8, 2), (8, 8, 64, 8, 2)],
    ("fused similarity", False, True): [(8, 8, 32, 4, 2), (8, 16, 32, 8, 2), (8, 8, 64, 8, 2)],
    ("fused similarity", False, False): [(8, 8, 32, 4, 2), (8, 8, 64, 8, 2)],
}


class Task(NamedTuple):
    """One kernel on one shape; without a tile that of backends/direct.py."""

    kernel: str
    shape: tuple[int, int, int, int]
    dtype: str
    last: bool
    tile: tuple[int, ...] | None
    precision: str


def tasks() -> list[Task]:
    """The most wanted first, as time may run out."""
    wanted = []
    for rank, last, dtype, kernel in itertools.product(
        range(8), (True, False), ("float32", "float16", "bfloat16"), KERNELS
    ):
        half = dtype != "float32"
        task = Task(kernel, PAPER, dtype, last, None, "tf32x3")
        now = tuple(banded._TUNED[TABLE[KERNELS.index(kernel)], last, half])
        tiles = [now, *TILES[kernel, last, half]]
        if rank == 0:
            wanted += [task, task._replace(tile=now)]
        # Shapes that share a kernel one after the other, so that it is compiled once.
        for shape in {1: SEGNET[:2], 4: SEGNET[2:]}.get(rank, []) if last and dtype != "bfloat16" else []:
            wanted += [task._replace(shape=shape), task._replace(shape=shape, tile=now)]
        if rank == 2 and not half:
            wanted.append(task._replace(tile=now, precision="ieee"))
        if 0 < rank < len(tiles) and (dtype != "bfloat16" or rank < 2):
            wanted.append(task._replace(tile=tiles[rank]))
    return list(dict.fromkeys(wanted))


class Data(NamedTuple):
    """What kernels read, and what they write."""

    size: Any
    x: Tensor
    grad: Tensor
    skip: Tensor
    gate: Tensor
    logits: Tensor
    softmax: Tensor
    y: Tensor
    kernels: Tensor  # written by the fused forward
    similarity: Tensor
    grad_x: Tensor
    grad_logits: Tensor
    grad_skip: Tensor
    grad_gate: Tensor
    mixed: Tensor


def draw(shape: tuple[int, int, int, int], dtype: torch.dtype, last: bool, device: str) -> Data:
    """Inputs, random where there is a device, and room for the results."""
    b, c, h, w = shape
    memory_format = torch.channels_last if last else torch.contiguous_format
    size = Size(b, 1, c, h, w, K, SCALE)

    def of(shape: tuple[int, ...], dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)

    x, grad, skip, gate, logits, softmax = (
        of(s) for s in (size.low, size.high, size.high, size.pixels, size.kernels, size.kernels)
    )
    if device != "meta":
        for tensor in (x, grad, skip, logits):
            tensor.normal_()
        gate.uniform_()
        softmax.copy_(logits.softmax(1))
    return Data(
        size, x, grad, skip, gate, logits, softmax,
        *(of(size.high), of(size.kernels), of(size.kernels, torch.float32), of(size.low), of(size.kernels)),
        *(of(size.high), of(size.pixels), of(size.kernels)),
    )  # fmt: skip


def launch(task: Task, d: Data) -> None:
    """The kernel, alone."""
    module: Any = direct if task.tile is None else banded
    how = {} if task.tile is None else {"tuning": banded.Tuning(banded.Tile(*task.tile), task.precision)}
    if task.kernel == "forward":
        module.reassemble(d.size, d.x, d.softmax, d.y, **how)
    elif task.kernel == "similarity":
        module.similarity(d.size, d.grad, d.x, d.similarity, **how)
    elif task.kernel == "spread":
        module.spread(d.size, d.grad, d.softmax, d.grad_x, **how)
    elif task.kernel == "fused forward":
        module.reassemble(d.size, d.x, d.kernels, d.y, d.logits, d.skip, d.gate, **how)
    else:
        softmax = SoftmaxBackward(d.softmax, d.skip, d.gate, d.grad_skip, d.grad_gate, d.mixed)
        module.similarity(d.size, d.grad, d.x, d.grad_logits, softmax, **how)


def truth(kernel: str, d: Data) -> list[tuple[Tensor, Tensor]]:
    """What the first and the last image of each written tensor hold, and should: in float64, tap by tap."""
    some = [0, -1] if len(d.x) > 1 else [0]
    x, grad, skip, gate, logits, softmax = (
        t[some].double() for t in (d.x, d.grad, d.skip, d.gate, d.logits, d.softmax)
    )
    h, w = x.shape[2:]
    before = K // 2
    padded = F.pad(x, (before, K - 1 - before) * 2)
    shares = logits.softmax(1) if kernel == "fused forward" else softmax
    y, products, back = torch.zeros_like(grad), torch.zeros_like(shares), torch.zeros_like(padded)
    for tap, (u, v) in enumerate(itertools.product(range(K), repeat=2)):
        here = padded[:, :, u : u + h, v : v + w].repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
        if "forward" in kernel:
            y += shares[:, tap, None] * here
        elif kernel == "spread":
            given = (shares[:, tap, None] * grad).unflatten(3, (w, SCALE)).sum(4).unflatten(2, (h, SCALE)).sum(3)
            back[:, :, u : u + h, v : v + w] += given
        else:
            products[:, tap] = (grad * here).sum(1)
    mean = (products * shares).sum(1, keepdim=True)
    wanted = {
        "forward": [(d.y, y)],
        "similarity": [(d.similarity, products)],
        "spread": [(d.grad_x, back[:, :, before : before + h, before : before + w])],
        "fused forward": [(d.y, y + gate * (skip - y)), (d.kernels, shares)],
        "fused similarity": [
            (d.grad_logits, (1 - gate) * shares * (products - mean)),
            (d.grad_skip, grad * gate),
            (d.grad_gate, (grad * skip).sum(1, keepdim=True) - mean),
            (d.mixed, (1 - gate) * shares),
        ],
    }
    return [(got[some], want) for got, want in wanted[kernel]]


class Bench:
    """Inputs, and what kernels should make of them, kept from one task to the next."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.data: dict[Any, list[Data]] = {}
        self.truth: dict[Any, list[Tensor]] = {}

    def copies(self, task: Task) -> list[Data]:
        """Inputs, as many times as it takes to be more than caches hold."""
        key = task.shape, task.dtype, task.last
        if key not in self.data:
            torch.manual_seed(0)
            first = draw(task.shape, getattr(torch, task.dtype), task.last, self.device)
            count = 1 + 150_000_000 // (first.grad.nbytes + first.x.nbytes + first.softmax.nbytes)
            more = 0 if self.device == "cpu" else count - 1
            self.data[key] = [first] + [
                draw(task.shape, getattr(torch, task.dtype), task.last, self.device) for _ in range(more)
            ]
        return self.data[key]

    def error(self, task: Task) -> float:
        """The largest relative error, in the norm of a tensor, of all that the kernel writes."""
        data = self.copies(task)[0]
        for tensor in data[7:]:
            tensor.fill_(float("nan"))
        launch(task, data)
        key = task.kernel, task.shape, task.dtype, task.last
        if key not in self.truth:
            self.truth[key] = [want for _, want in truth(task.kernel, data)]
        b = [0, -1] if len(data.x) > 1 else [0]
        written = {
            "forward": [data.y],
            "similarity": [data.similarity],
            "spread": [data.grad_x],
            "fused forward": [data.y, data.kernels],
            "fused similarity": [data.grad_logits, data.grad_skip, data.grad_gate, data.mixed],
        }[task.kernel]
        errors = [
            ((got[b].double() - want).norm() / want.norm()).item()
            for got, want in zip(written, self.truth[key], strict=True)
        ]
        return float("nan") if any(e != e for e in errors) or any(t.isnan().any() for t in written) else max(errors)

    def time(self, task: Task) -> float:
        """Microseconds of one launch."""
        copies = self.copies(task)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for data in copies:
                launch(task, data)
        graph.replay()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times = []
        for _ in range(5):
            begin.record()
            for _ in range(2):
                graph.replay()
            end.record()
            end.synchronize()
            times.append(1000 * begin.elapsed_time(end) / (2 * len(copies)))
        return sorted(times)[len(times) // 2]


def compile_ahead(task: Task, arch: int) -> tuple[Task, str, float]:
    """Compile what the task launches, into the cache on disk; in a process of its own. Says what failed."""
    from triton.backends.compiler import GPUTarget

    class Driver:  # what a launch asks of a GPU
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", arch, 32))

    triton.runtime.driver.set_active(Driver())
    triton.JITFunction.__getitem__ = lambda self, grid: (
        lambda *args, **options: self.run(*args, grid=grid, warmup=True, **options)
    )
    begin = time.monotonic()
    try:
        launch(task, draw(task.shape, getattr(torch, task.dtype), task.last, "meta"))
    except Exception as error:  # one tile that cannot be must not end the rest
        return task, f"{type(error).__name__}: {str(error)[-300:]}", time.monotonic() - begin
    return task, "", time.monotonic() - begin


def main() -> None:
    """Compile, check, time, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("timings"), help="folder for kernels.jsonl and kernels.json")
    parser.add_argument("--seconds", type=float, default=60, help="start nothing after so many")
    parser.add_argument("--jobs", type=int, default=min(14, os.cpu_count() or 1), help="processes that compile")
    parser.add_argument("--dry-run", type=int, metavar="N", help="compile the first N, time nothing; needs no GPU")
    options = parser.parse_args()
    begin = time.monotonic()
    wanted = tasks()
    dry = options.dry_run is not None
    if dry:
        wanted, arch, device = wanted[: options.dry_run], 90, "none"
    else:
        major, minor = torch.cuda.get_device_capability()
        arch, device = 10 * major + minor, torch.cuda.get_device_name()
        torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{len(wanted)} tasks, {device}, torch {torch.__version__}, triton {triton.__version__}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench("cuda")
    rows: list[dict[str, Any]] = []
    pool = ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"))
    with (options.out / "kernels.jsonl").open("w") as lines:
        futures = [pool.submit(compile_ahead, task, arch) for task in wanted]
        try:
            for future in as_completed(futures, timeout=max(1.0, options.seconds)):
                task, failure, seconds = future.result()
                row: dict[str, Any] = {**task._asdict(), "compile_s": round(seconds, 2)}
                if failure:
                    row["failed"] = failure
                elif not dry:
                    try:
                        row["error"] = bench.error(task)
                        row["us"] = round(bench.time(task), 2)
                    except Exception as error:
                        row["failed"] = f"{type(error).__name__}: {str(error)[-300:]}"
                        torch.cuda.synchronize()  # what poisons the device ends all: better now, and said
                rows.append(row)
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                if time.monotonic() - begin > options.seconds:
                    break
        except TimeoutError:
            pass
        except Exception as error:
            print(f"stopped: {type(error).__name__}: {str(error)[-300:]}", flush=True)
    print(f"{len(rows)} of {len(wanted)} in {time.monotonic() - begin:.0f} s", flush=True)
    for process in list((pool._processes or {}).values()):
        process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)
    about = {"device": device, "torch": torch.__version__, "triton": triton.__version__, "rows": rows}
    (options.out / "kernels.json").write_text(json.dumps(about, indent=1))
    report(rows)
    sys.stdout.flush()
    os._exit(0)  # a compiler that hangs does not keep us


def short(row: dict[str, Any]) -> str:
    """A tile in few letters, its time, and its error where it is not what the precision promises."""
    name = "now" if row["tile"] is None else "x".join(map(str, row["tile"]))
    if row["precision"] == "ieee":
        name += " ieee"
    if "failed" in row:
        return f"{name} FAILED {row['failed'][:40]!r}"
    limit = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[row["dtype"]]
    wrong = "" if row.get("error", 0) <= limit else " WRONG"
    return f"{name} {row.get('us', 0):.0f}us {row.get('error', 0):.0e}{wrong}"


def report(rows: list[dict[str, Any]]) -> None:
    """One line for each kernel, dtype and layout: the kernel of backends/direct.py, then tiles, the fastest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    small: dict[str, list[str]] = {}
    for row in rows:
        b, c, _, w = row["shape"]
        form = f"{row['dtype'][0]}{row['dtype'][-2:]} {'last' if row['last'] else 'cont'}"
        if row["shape"] == PAPER:
            found.setdefault(f"{row['kernel']} {form}", []).append(row)
        else:
            name = f"{row['kernel']} {'now' if row['tile'] is None else 'banded'}"
            wrong = short(row).split()[-1] if "failed" in row or "WRONG" in short(row) else ""
            small.setdefault(f"{b}x{c}x{w} {form}", []).append(f"{name} {row.get('us', 0):.1f}{wrong}")
    for name, some in found.items():
        old = [short(row) for row in some if row["tile"] is None]
        new = sorted((row for row in some if row["tile"] is not None), key=lambda row: row.get("us", 1e9))
        print(f"{name}:", "; ".join(old + [short(row) for row in new[:3]]))
    for name, times in small.items():
        print(f"{name}:", "; ".join(sorted(times)))
    failed = [
        f"{row['kernel']} {row['dtype']} {row['last']} {row['tile']}: {row['failed'][:90]}"
        for row in rows
        if "failed" in row
    ]
    print("\n".join(failed[:8]))
    total: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["shape"] == PAPER and "us" in row and "WRONG" not in short(row):
            key = row["kernel"], f"{row['dtype']} {'last' if row['last'] else 'cont'}"
            best = total.setdefault(key, [1e9, 1e9])
            best[row["tile"] is not None] = min(best[row["tile"] is not None], row["us"])
    for form in dict.fromkeys(key[1] for key in total):
        for name, kernels in (("plain", KERNELS[:3]), ("fused", (*KERNELS[3:], "spread"))):
            if all((kernel, form) in total for kernel in kernels):
                old_us, new_us = (sum(total[kernel, form][n] for kernel in kernels) for n in (0, 1))
                print(f"SUM {name} {form}: now {old_us:.0f} us, banded {new_us:.0f} us")


if __name__ == "__main__":
    main()
