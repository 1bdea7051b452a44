"""What the operators, a training step, recording and drawing cost on this machine, beside the machine's own bounds."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..errors import FadevizError, unknown_name
from ..models import build_network
from ..ops.reassemble import choose_backend
from ..storage.files import make_folder, write_whole
from ..training.loop import keep_freed_memory
from ..upsamplers import build_upsampler, parse_upsampler, split_upsamplers
from .cases import KERNEL_SIZE, SCALE
from .memory import MeasuringProcess
from .parts import MEASURES, Result, Row, Setting
from .plan import FULL, FULL_CUDA, PRECISIONS, QUICK, QUICK_CUDA, Plan
from .tables import CAPTIONS, CAPTIONS_CUDA, describe

FORMAT = 1
"""Version of the JSON report."""

PARTS = tuple(MEASURES)
"""What can be measured, in this order."""


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
    """Measure ``parts`` and return the report.

    Args:
        parts: names in ``PARTS``; none takes all.
        upsamplers: operators, with options if need be, of the parts ``operators`` and ``step``; none takes all.
        plan: ``FULL``, ``QUICK``, ``FULL_CUDA``, ``QUICK_CUDA`` or another; the full one of the device by default.
        precisions: names in ``PRECISIONS``, of the parts ``reassembly``, ``operators`` and ``step``; none takes the
            plan's. A CPU has fp32 and bf16.
        limit: seconds after which no other table is begun; what is missing is said.
        device: the CPU by default.
        threads: of torch and of the native backend; None leaves torch's own.
        compiled: also time torch.compile of the plain form, which takes about a minute a shape to compile.
        output: a JSON file, replaced whole after every part.
        on_result: called with every table as it is finished.

    Returns:
        What the JSON file holds: ``environment`` and, for each part, its tables; ``unfinished`` names the parts that
        the limit cut short.

    Raises:
        FadevizError: no such part, operator or precision, a bad number of threads or of seconds, a file that cannot be
            written.
    """
    for part in parts:
        if part not in MEASURES:
            raise unknown_name("part of the benchmark", part, PARTS)
    device = device or torch.device("cpu")
    plan = plan or (FULL_CUDA if device.type == "cuda" else FULL)
    _check_precisions(precisions, device)
    plan = plan.at(precisions) if precisions else plan
    _check_upsamplers(upsamplers, plan)
    if threads is not None and threads < 1:
        raise FadevizError(f"{threads} threads: at least 1 is needed")
    if limit is not None and not limit > 0:
        raise FadevizError(f"a limit of {limit:g} seconds: more than 0 is needed")
    if output is not None:
        _check_output(output)
    keep_freed_memory()
    start = time.monotonic()
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    found: dict[str, list[Row]] = {}
    told = environment(device)
    whole: dict[str, Any] = {
        "format": FORMAT, "environment": told, "plan": dataclasses.asdict(plan), "parts": found, "unfinished": []
    }  # fmt: skip
    try:
        if on_result is not None:
            on_result(Result("environment", "this machine", tuple({"what": k, "is": v} for k, v in told.items())))
        with MeasuringProcess(device, torch.get_num_threads()) as process:
            setting = Setting(plan, device, process, tuple(upsamplers) or None, compiled)
            captions = CAPTIONS_CUDA if setting.cuda else CAPTIONS
            for part in PARTS:
                if parts and part not in parts:
                    continue
                results = MEASURES[part](setting)
                while True:
                    if limit is not None and time.monotonic() - start > limit:
                        whole["unfinished"].append(part)
                        break
                    result = next(results, None)
                    if result is None:
                        break
                    if part not in found:
                        result = dataclasses.replace(result, notes=(captions[part], *result.notes))
                    found.setdefault(part, []).append(dataclasses.asdict(result))
                    if output is not None:
                        _write(output, whole)
                    if on_result is not None:
                        on_result(result)
            if output is not None and whole["unfinished"]:
                _write(output, whole)
    finally:
        torch.set_num_threads(before)
    return whole


def _write(path: Path, whole: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine and settings that the figures depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    like = torch.empty(1, 1, 1, 1, device=device)
    return {
        "fadeviz": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": f"{device.type} ({name})",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "backend": choose_backend(like, KERNEL_SIZE, SCALE),
        "freed memory": "kept, as in training" if os.environ.get("FADEVIZ_KEEP_MEMORY") != "0" else "not kept",
        **(_cuda_environment(device) if device.type == "cuda" else {}),
    }


def _cuda_environment(device: torch.device) -> dict[str, Any]:
    """What a CUDA device's figures depend on besides."""
    properties = torch.cuda.get_device_properties(device)
    driver = "unknown"
    with suppress(OSError, subprocess.SubprocessError, IndexError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        driver = answer.stdout.split()[0]
    versions = {"triton": "not installed", "mmcv": "not installed"}
    for name in versions:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "compute capability": f"{properties.major}.{properties.minor}",
        "memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "multiprocessors": properties.multi_processor_count,
        "driver": driver,
        "CUDA of torch": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        **versions,
    }


def _processor() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


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


def _check_precisions(precisions: Sequence[str], device: torch.device) -> None:
    for precision in precisions:
        if precision not in PRECISIONS:
            raise unknown_name("precision", precision, PRECISIONS)
        if device.type != "cuda" and precision in ("tf32", "fp16"):
            raise FadevizError(f"{precision} is measured on a CUDA device. Choose fp32 or bf16 here, or --device cuda")


def _check_output(path: Path) -> None:
    make_folder(path.parent)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise FadevizError(f"cannot write {path}. Give a file in a folder that can be written")


__all__ = [
    "FULL",
    "FULL_CUDA",
    "PARTS",
    "PRECISIONS",
    "QUICK",
    "QUICK_CUDA",
    "Plan",
    "Result",
    "describe",
    "environment",
    "measure",
    "split_upsamplers",
]
