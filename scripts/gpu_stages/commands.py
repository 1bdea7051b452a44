"""The stages ``record``, ``bench``, ``memory`` and ``tune``: other programs, run and measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from .setting import GPU_FILES, KERNEL_SIZE, LAYOUTS, ROOT, SCALE, SCRIPT, Row, Rows, Setting, synchronize
from .steps import data_values


def stage_record(setting: Setting, rows: Rows) -> None:
    """The command itself, as a user runs it, and what run.json says of its seconds."""
    steps, size, width = ("6", "32", "0.125") if setting.small else ("300", "224", "1")
    values = data_values(setting)
    named = [word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", value)]
    weights = GPU_FILES / "vgg16_bn.safetensors"
    if weights.is_file() and not setting.small:
        named += ["--weights", str(weights)]
    for upsampler in ("nearest",) if setting.small else ("fade",):
        out = Path(setting.work) / f"record-{upsampler}"
        start = time.perf_counter()
        command = [
            sys.executable, "-c", "from fadeviz_cli.main import main; main()", "record", "--upsampler", upsampler,
            "--steps", steps, "--size", size, "--width", width, "--device", setting.device, "--out", str(out), *named,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        whole = time.perf_counter() - start
        print(done.stdout[-2000:], done.stderr[-2000:], flush=True)
        row: Row = {"what": "record", "upsampler": upsampler, "whole": whole, "ok": done.returncode == 0}
        if done.returncode == 0:
            info = json.loads((out / "run.json").read_text())
            row |= {"steps": int(steps), "seconds": info["seconds"], "result": info["result"], "device": info["device"]}
            row |= {"snapshots": len(info["schedule"]), "data": values["data"]}
        else:
            row["error"] = done.stderr.strip().splitlines()[-1:] or done.returncode
        rows.add(**row)
        shutil.rmtree(out, ignore_errors=True)


def stage_bench(setting: Setting, rows: Rows) -> None:
    """That ``fadeviz bench`` runs here; beside other stages, so that its times are too long."""
    out = Path(setting.work) / "bench.json"
    command = [sys.executable, "-c", "from fadeviz_cli.main import main; main()", "bench", "--quick", "-o", str(out)]
    command += ["--device", setting.device, "--part", "machine" if setting.small else "reassembly"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    row: Row = {"what": "bench", "ok": done.returncode == 0 and out.is_file()}
    rows.add(**row, **({} if row["ok"] else {"error": done.stderr.strip().splitlines()[-1:]}))


def stage_memory(setting: Setting, rows: Rows) -> None:
    """compute-sanitizer's memcheck over the kernels at tiny odd shapes."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    command = [sys.executable, str(SCRIPT), "--device", setting.device, "--only-kernels"]
    if setting.cuda:
        if not Path(tool).exists():
            rows.add(what="memcheck", error="no compute-sanitizer here")
            return
        command = [tool, "--tool", "memcheck", "--error-exitcode", "9", "--print-limit", "20", *command]
    start = time.perf_counter()
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    print(done.stdout[-6000:], done.stderr[-3000:], flush=True)
    said = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line or "kernels ran" in line]
    rows.add(
        what="memcheck", code=done.returncode, said=said, seconds=time.perf_counter() - start, ok=done.returncode == 0
    )


def only_kernels(setting: Setting) -> None:
    """Forward and backward of every kernel, small enough to run under a memory checker."""
    from fadeviz.ops.reassemble import reassemble

    backend, count = ("triton" if setting.cuda else "tiles"), 0
    for dtype in (torch.float32, torch.bfloat16):
        for layout in LAYOUTS.values():
            for b, c, h, w in ((1, 3, 2, 5), (2, 20, 5, 9)):
                sizes = ((b, c, h, w), (b, 25, 2 * h, 2 * w), (b, c, 2 * h, 2 * w), (b, 1, 2 * h, 2 * w))
                made = [torch.randn(s).to(setting.device, dtype).contiguous(memory_format=layout) for s in sizes]
                x, kernels, skip, gate = (t.requires_grad_() for t in made)
                y = reassemble(x, kernels, KERNEL_SIZE, SCALE, backend=backend)
                torch.autograd.grad(y, [x, kernels], torch.ones_like(y))
                count += 3
                if setting.cuda:
                    for given in ((x, kernels, skip, gate), (x, kernels, None, None)):
                        y = torch.ops.fadeviz.fused(*given, KERNEL_SIZE, SCALE)[0]
                        torch.autograd.grad(y, [t for t in given if t is not None], torch.ones_like(y))
                        count += 3
    synchronize(setting.device)
    print(f"{count} kernels ran")


def stage_tune(setting: Setting, rows: Rows) -> None:
    """Which division of their work suits the kernels here: ``scripts/tune_triton.py``."""
    out = Path(setting.work) / "tuned.json"
    command = [sys.executable, str(ROOT / "scripts" / "tune_triton.py"), "--out", str(out)]
    done = subprocess.run([*command, *["--dry-run"] * setting.small], capture_output=True, text=True, check=False)
    print(done.stdout[-20000:], done.stderr[-3000:], flush=True)
    found = json.loads(out.read_text()) if out.is_file() else None
    rows.add(what="tuned", said=done.stdout.strip().splitlines()[-14:], found=found, ok=done.returncode == 0)
