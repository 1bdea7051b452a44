"""Peak memory, and the first call of a backend, measured in a process of their own."""

from __future__ import annotations

import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..ops.reassemble import choose_backend, reassemble
from .cases import (
    KERNEL_SIZE,
    SCALE,
    both,
    fused_function,
    operator_calls,
    operator_inputs,
    plain_layout,
    reassembly_function,
    reassembly_inputs,
)
from .plan import Shape
from .timing import Call, first_line, timed

RETURNING = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_TOP_PAD_": "0",
    "MKL_DISABLE_FAST_MM": "1",
}
"""Environment of a process that returns freed memory to the system at once, so that its resident size is the memory in
use: glibc maps every block of 64 KiB and more, and MKL keeps no buffers."""


def peak_extra_bytes(call: Call, device: torch.device) -> int | None:
    """The peak of the memory in use while ``call`` runs, above that before; None if it cannot be measured.

    On a CPU this is the kernel's high-water mark of the resident size, including scratch memory of all libraries,
    accurate to about half a megabyte in a process started with the environment ``RETURNING``. On CUDA it is the memory
    that torch allocates.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    values: list[int] = []
    start = time.perf_counter()
    while not values or (len(values) < 3 and time.perf_counter() - start < 0.2):
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes the present size
            before = _resident("VmRSS")
            call()
            values.append(_resident("VmHWM") - before)
        except OSError:  # not Linux, or a container that hides it
            return None
    return max(0, int(statistics.median(values)))


def _resident(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"no {field} in /proc/self/status")
    return int(match[1]) * 1024


class MeasuringProcess:
    """A second process that measures memory, and the first call of a backend, with an empty cache folder.

    It answers one question at a time, a line of JSON, and sleeps in between.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        self._settings = {"device": str(device), "threads": threads}
        self._process: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> MeasuringProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
        if self._folder is not None:
            self._folder.cleanup()

    def peak(self, question: dict[str, Any]) -> tuple[int | None, list[str]]:
        """The peak of extra memory in bytes, or the reason why it is unknown."""
        answer = self._ask(question)
        return answer.get("bytes"), [str(answer["error"])] if "error" in answer else []

    def first_call(self) -> dict[str, Any]:
        """``seconds`` and ``backend`` of a first reassembly, when nothing was compiled before; or ``error``."""
        return self._ask({"what": "first call"})

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        line = ""
        with suppress(BrokenPipeError):
            if process.stdin is not None and process.stdout is not None:
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
        if not line:
            return {"error": f"the measuring process exited with code {process.wait()}: {self._last_line()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        self._stop()
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="fadeviz-bench-")
        folder = self._folder.name
        paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        fresh = {"XDG_CACHE_HOME": folder, "TRITON_CACHE_DIR": f"{folder}/triton", "PYTHONPATH": os.pathsep.join(paths)}
        code = "from fadeviz.benchmark.memory import answer; answer()"
        with open(Path(folder) / "stderr", "w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, json.dumps(self._settings)],
                env={**os.environ, **RETURNING, **fresh},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError), self._process:  # closes the pipes and waits
                pass
            self._process = None

    def _last_line(self) -> str:
        lines = Path(self._folder.name, "stderr").read_text().split("\n") if self._folder is not None else []
        return next((line for line in reversed(lines) if line.strip()), "no error message")


def answer() -> None:
    """The main function of the measuring process: reads questions and prints answers, a line of JSON each."""
    settings = json.loads(sys.argv[1])
    device = torch.device(settings["device"])
    torch.set_num_threads(settings["threads"])
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = _first_call(device) if question["what"] == "first call" else _peak(question, device)
        except Exception as error:
            answer = {"error": first_line(error)}
        print(json.dumps(answer), flush=True)


def _first_call(device: torch.device) -> dict[str, Any]:
    x = torch.zeros(1, 4, 4, 4, device=device)
    kernels = torch.zeros(1, KERNEL_SIZE**2, 4 * SCALE, 4 * SCALE, device=device)
    seconds = timed(lambda: reassemble(x, kernels, KERNEL_SIZE, SCALE), device)
    return {"seconds": seconds, "backend": choose_backend(x, KERNEL_SIZE, SCALE)}


def _peak(question: dict[str, Any], device: torch.device) -> dict[str, Any]:
    shape = Shape(*question["shape"])
    question_call(question, Shape(1, shape.channels, 4), device)()  # a small one first, for libraries' one-time buffers
    value = peak_extra_bytes(question_call(question, shape, device), device)
    return {"error": "measuring peak memory needs /proc/self/clear_refs"} if value is None else {"bytes": value}


def question_call(question: dict[str, Any], shape: Shape, device: torch.device) -> Call:
    """The forward and backward pass that a question asks for, on maps of that shape."""
    precision = question.get("precision", "fp32")
    if question["what"] == "reassembly":
        fused, form = question.get("fused", False), question["form"]
        function = fused_function(form) if fused else reassembly_function(form)
        return both(function, *reassembly_inputs(shape, question["layout"], device, precision, fused))
    plain = question["plain"]
    layout = question.get("layout", plain_layout(plain))
    return operator_calls(question["operator"], plain, operator_inputs(shape, layout, device, precision))[1]
