"""The machine that a benchmark runs on: versions, device and settings that its results depend on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..ops.reassemble import choose_backend
from ..version import __version__
from .cases import KERNEL_SIZE, SCALE


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine and settings on which the timings depend."""
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
    """Further conditions of timings on a CUDA device."""
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


__all__ = ["environment"]
