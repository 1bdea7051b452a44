"""The benchmark as one call: what operators, a training step, recording and drawing cost on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import FadevizError, unknown_name
from ..experiment import choose_device
from ..models import build_network
from ..storage.files import make_folder, write_whole
from ..training.loop import keep_freed_memory
from ..upsamplers import build_upsampler, parse_upsampler
from .cases import SCALE
from .machine import environment
from .memory import MeasuringProcess
from .parts import MEASURES, Result, Setting
from .plan import FULL, FULL_CUDA, PRECISIONS, QUICK, QUICK_CUDA, Plan
from .tables import CAPTIONS, CAPTIONS_CUDA

FORMAT = 1
"""Version of the JSON report's format."""

PARTS = tuple(MEASURES)
"""The parts of the benchmark, in their order."""


def run_bench(
    parts: Sequence[str] = (),
    *,
    quick: bool = False,
    upsamplers: Sequence[str] = (),
    threads: int | None = None,
    device: str = "auto",
    precisions: Sequence[str] = (),
    compiled: bool = False,
    limit: float | None = None,
    output: str | os.PathLike[str] | None = None,
    on_result: Callable[[Result], None] | None = None,
) -> dict[str, Any]:
    """Measure what operators, a training step, recording and drawing cost on this machine.

    Args:
        parts: names in ``PARTS``: machine, reassembly, operators, step, recording, rendering; all if empty.
        quick: small shapes and few rounds: under a minute instead of a quarter of an hour.
        upsamplers: operators to measure, which may have options; all if empty.
        threads: CPU threads; None uses torch's own number.
        device: ``auto``, ``cpu`` or ``cuda``.
        precisions: fp32, bf16, and on CUDA tf32 and fp16; if empty, fp32 on a CPU, and several on CUDA.
        compiled: also time torch.compile of the plain form, which takes minutes to compile.
        limit: seconds after which no further table is started.
        output: a JSON file for all results, replaced after every part.
        on_result: called with every table as it is finished; ``fadeviz.benchmark.describe`` turns it into text.

    Returns:
        What the JSON file holds: ``environment``, ``plan``, the tables of each part under ``parts``; ``unfinished``
        names the parts that the limit cut short.

    Raises:
        FadevizError: if a name is unknown, a number invalid, there is no such device, or the file cannot be written.
    """
    chosen = choose_device(device)
    full, small = (FULL_CUDA, QUICK_CUDA) if chosen.type == "cuda" else (FULL, QUICK)
    return measure(
        parts,
        upsamplers=upsamplers,
        plan=small if quick else full,
        precisions=precisions,
        limit=limit,
        device=chosen,
        threads=threads,
        compiled=compiled,
        output=None if output is None else Path(output),
        on_result=on_result,
    )


def measure(
    parts: Sequence[str] = (),
    *,
    upsamplers: Sequence[str] = (),
    plan: Plan | None = None,
    precisions: Sequence[str] = (),
    limit: float | None = None,
    device: torch.device | None = None,
    threads: int | None = None,
    compiled: bool = False,
    output: Path | None = None,
    on_result: Callable[[Result], None] | None = None,
) -> dict[str, Any]:
    """Measure what :func:`run_bench` does, with a plan of your own.

    Args:
        parts: the same as in :func:`run_bench`; so are ``upsamplers``, ``limit``, ``threads``, ``compiled``,
            ``output`` and ``on_result``.
        plan: the shapes, rounds and times; None takes the full plan of the device.
        precisions: names in ``PRECISIONS`` for the parts ``reassembly``, ``operators`` and ``step``; if empty, those of
            the plan.
        device: the device; None takes the CPU.

    Returns:
        The report of :func:`run_bench`.

    Raises:
        FadevizError: if a part, operator or precision is unknown, a number invalid, or the file cannot be written.
    """
    device = device or torch.device("cpu")
    plan = plan or (FULL_CUDA if device.type == "cuda" else FULL)
    _check_names(parts, precisions, device)
    plan = plan.at(precisions) if precisions else plan
    _check_upsamplers(upsamplers, plan)
    if threads is not None and threads < 1:
        raise FadevizError(f"threads is {threads}; it must be 1 or more")
    if limit is not None and not limit > 0:
        raise FadevizError(f"limit is {limit:g} seconds; it must be more than 0")
    if output is not None:
        _check_output(output)
    keep_freed_memory()
    start = time.monotonic()
    with _torch_threads(threads):
        report = _Report(environment(device), plan, output, on_result)
        with MeasuringProcess(device, torch.get_num_threads()) as process:
            setting = Setting(plan, device, process, tuple(upsamplers) or None, compiled)
            captions = CAPTIONS_CUDA if setting.cuda else CAPTIONS
            for part in PARTS:
                if parts and part not in parts:
                    continue
                results = MEASURES[part](setting)
                while True:
                    if limit is not None and time.monotonic() - start > limit:
                        report.unfinished.append(part)
                        break
                    result = next(results, None)
                    if result is None:
                        break
                    report.add(result, captions[part])
            if report.unfinished:
                report.write()
    return report.content


class _Report:
    """The results so far, written to a file after each."""

    def __init__(
        self,
        environment: dict[str, Any],
        plan: Plan,
        output: Path | None,
        on_result: Callable[[Result], None] | None,
    ) -> None:
        self.parts: dict[str, list[dict[str, Any]]] = {}
        self.unfinished: list[str] = []
        self.content = {
            "format": FORMAT,
            "environment": environment,
            "plan": dataclasses.asdict(plan),
            "parts": self.parts,
            "unfinished": self.unfinished,
        }
        self.output, self.on_result = output, on_result
        if on_result is not None:
            rows = tuple({"what": name, "is": value} for name, value in environment.items())
            on_result(Result("environment", "this machine", rows))

    def add(self, result: Result, caption: str) -> None:
        """Add a table; the first of a part explains the columns."""
        if result.part not in self.parts:
            result = dataclasses.replace(result, notes=(caption, *result.notes))
        self.parts.setdefault(result.part, []).append(dataclasses.asdict(result))
        self.write()
        if self.on_result is not None:
            self.on_result(result)

    def write(self) -> None:
        """Replace the file."""
        if self.output is not None:
            write_whole(self.output, (json.dumps(self.content, indent=1, allow_nan=False) + "\n").encode())


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_names(parts: Sequence[str], precisions: Sequence[str], device: torch.device) -> None:
    for part in parts:
        if part not in MEASURES:
            raise unknown_name("part of the benchmark", part, PARTS)
    for precision in precisions:
        if precision not in PRECISIONS:
            raise unknown_name("precision", precision, PRECISIONS)
        if device.type != "cuda" and precision in ("tf32", "fp16"):
            raise FadevizError(f"{precision} is measured on a CUDA device only. Choose fp32 or bf16, or device='cuda'")


def _check_upsamplers(upsamplers: Sequence[str], plan: Plan) -> None:
    """Everything that building them can complain of, before minutes are spent."""
    for text in upsamplers:
        name, options = parse_upsampler(text)
        if options:
            with torch.device("meta"):
                for channels in {shape.channels for shape in plan.operators}:
                    scale = build_upsampler(name, channels, **options).scale_factor
                    if scale != SCALE:
                        raise FadevizError(
                            f"{text}: scale_factor is {scale}; what is measured here doubles. Use {SCALE}"
                        )
                for step in plan.steps:
                    build_network("segnet", text, width=step.width)


def _check_output(path: Path) -> None:
    make_folder(path.parent)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise FadevizError(f"cannot write {path}. Give a file in a folder that can be written")


__all__ = ["PARTS", "measure", "run_bench"]
