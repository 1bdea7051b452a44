"""The stage ``machine``: versions, the device, and its ceilings."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import platform
import subprocess
import time

import numpy as np
import torch

from .setting import DTYPES, GPU_FILES, Rows, Setting, synchronize, timed


def stage_machine(setting: Setting, rows: Rows) -> None:
    """Versions, the device, and what it reaches."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    for name in ("triton", "transformers", "pytest"):
        with contextlib.suppress(ImportError):
            versions[name] = importlib.import_module(name).__version__
    rows.add(what="versions", **versions, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    rows.add(what="host", cores=len(os.sched_getaffinity(0)), processor=platform.machine())
    if setting.cuda:
        of = torch.cuda.get_device_properties(0)
        rows.add(
            what="device", name=of.name, count=torch.cuda.device_count(), capability=f"{of.major}.{of.minor}",
            multiprocessors=of.multi_processor_count, memory=of.total_memory, l2=getattr(of, "L2_cache_size", 0),
        )  # fmt: skip
        asked = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            told = subprocess.run(
                ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"],
                capture_output=True, text=True, timeout=20, check=True,
            ).stdout.strip()  # fmt: skip
            rows.add(what="nvidia-smi", asked=asked, told=told)
    size = 1 << (22 if setting.small else 31)
    source = torch.randn(size // 8, device=setting.device)
    into = torch.empty_like(source)
    seconds = timed([functools.partial(into.copy_, source)], setting.device)
    rows.add(what="copy", bytes=size, seconds=seconds, rate=size / seconds)
    del source, into
    side = 128 if setting.small else 8192
    for name in ("bf16", "fp16", "tf32", "fp32"):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        dtype = DTYPES.get(name, torch.float32)
        n = side if name != "fp32" else side // 2
        a, b = (torch.randn(n, n, device=setting.device, dtype=dtype) for _ in range(2))
        seconds = timed([lambda a=a, b=b: a @ b], setting.device)  # type: ignore[misc]
        rows.add(what="matmul", precision=name, side=n, seconds=seconds, rate=2 * n**3 / seconds)
    tiny = torch.zeros(8, device=setting.device)
    synchronize(setting.device)
    start = time.perf_counter()
    for _ in range(1000):
        tiny.add_(1)
    synchronize(setting.device)
    rows.add(what="launch", seconds=(time.perf_counter() - start) / 1000)
    rows.add(
        what="at hand",
        weizmann=(GPU_FILES / "weizmann").is_dir(), weights=(GPU_FILES / "vgg16_bn.safetensors").is_file(),
        mmcv=(GPU_FILES / "mmcv").is_dir(),
    )  # fmt: skip
