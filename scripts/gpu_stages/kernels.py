"""The stages ``kernels``, ``prepare`` and ``peer``: reassembly in all forms, and what must be compiled before."""

from __future__ import annotations

import functools
import math
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .operators import relative
from .setting import (
    DTYPES,
    GPU_FILES,
    KERNEL_SIZE,
    LAYOUTS,
    SCALE,
    Row,
    Rows,
    Setting,
    exact_fp32,
    first_line,
    spread_over,
    synchronize,
    timed,
    timed_graph,
)

PAPER = (16, 256, 64)
SEGNET = ((4, 64, 112), (4, 128, 56), (4, 256, 28), (4, 512, 14), (4, 512, 7))
"""Batch, channels and side of x at SegNet's five stages for images of 224 x 224."""


def stage_kernels(setting: Setting, rows: Rows) -> None:
    """Every form of reassembly, the most wanted first."""
    exact_fp32()
    cases = kernel_cases(setting)
    for case in cases:
        try:
            rows.add(**measure_kernel(setting, *case))
        except Exception as error:
            traceback.print_exc()
            of = dict(zip(("form", "shape", "precision", "layout"), case, strict=True))
            rows.add(what="reassembly", **of, error=first_line(error), ok=case[0] in ("mmcv", "compiled"))
        if setting.cuda:
            torch.cuda.empty_cache()


def kernel_cases(setting: Setting) -> list[tuple[str, tuple[int, int, int], str, str]]:
    """Form, shape, precision and layout of what is measured."""
    own = "triton" if setting.cuda else "tiles"
    if setting.small:
        return [(form, (1, 4, 4), "fp32", layout) for form in (own, "plain") for layout in LAYOUTS]
    last, plain = "channels-last", "contiguous"
    mmcv = (GPU_FILES / "mmcv").is_dir()
    cases = [(own, PAPER, precision, last) for precision in ("fp32", "fp16", "bf16")]
    cases += [("mmcv", PAPER, precision, plain) for precision in ("fp32", "fp16") if mmcv]
    cases += [("fused", PAPER, precision, last) for precision in ("fp32", "bf16")]
    cases += [(own, PAPER, precision, plain) for precision in ("fp32", "fp16")]
    cases += [(own, shape, "fp32", last) for shape in SEGNET]
    cases += [("mmcv", shape, "fp32", plain) for shape in SEGNET if mmcv]
    cases += [("tiles", PAPER, "fp32", last), ("plain", PAPER, "fp32", plain)]
    cases += [(own, shape, "bf16", last) for shape in SEGNET]
    cases += [("fused", PAPER, "fp32", plain), ("tiles", PAPER, "bf16", last)]
    cases += [("tiles", shape, "fp32", last) for shape in SEGNET[::2]]
    cases += [("compiled", PAPER, precision, plain) for precision in ("fp32", "fp16")]
    return cases


def plain_reassemble(x: Tensor, kernels: Tensor) -> Tensor:
    """Reassembly as it is written in torch's own operators."""
    b, c, h, w = x.shape
    windows = F.unfold(x, KERNEL_SIZE, padding=KERNEL_SIZE // 2).view(b, c, KERNEL_SIZE**2, h, w)
    windows = windows.repeat_interleave(SCALE, 3).repeat_interleave(SCALE, 4)
    return torch.einsum("bckhw,bkhw->bchw", windows, kernels)


@functools.cache
def compiled_reassemble() -> Callable[[Tensor, Tensor], Tensor]:
    """The plain form by torch's compiler."""
    return torch.compile(plain_reassemble, dynamic=False)


def reassembly_form(form: str) -> Callable[..., Tensor]:
    """A function of x and kernels; of x, logits, skip and gate for ``fused``."""
    from fadeviz.ops.reassemble import reassemble

    if form == "mmcv":
        import gpu_peer

        return functools.partial(gpu_peer.carafe, gpu_peer.build(), kernel_size=KERNEL_SIZE, scale=SCALE)
    if form == "fused":
        return lambda *given: torch.ops.fadeviz.fused(*given, KERNEL_SIZE, SCALE)[0]
    if form == "compiled":
        return compiled_reassemble()
    if form == "plain":
        return plain_reassemble
    return functools.partial(reassemble, kernel_size=KERNEL_SIZE, scale_factor=SCALE, backend=form)


def measure_kernel(setting: Setting, form: str, shape: tuple[int, int, int], precision: str, layout: str) -> Row:
    """Forward, and forward and backward, of one form, and the bytes that three kernels must move."""
    function, (b, c, n), dtype = reassembly_form(form), shape, DTYPES[precision]
    fused, taps = form == "fused", KERNEL_SIZE**2
    low, high, weights, pixels = (
        b * c * n * n,
        b * c * (SCALE * n) ** 2,
        b * taps * (SCALE * n) ** 2,
        b * (SCALE * n) ** 2,
    )
    # Each kernel reads its inputs and writes its outputs once: reassemble, similarity, spread.
    forward = low + weights + high + fused * (high + pixels)
    backward = (high + low + weights) + (high + weights + low) + fused * (2 * high + 3 * pixels + weights)
    itemsize = dtype.itemsize
    sets = max(1, min(6, math.ceil(200e6 / ((forward + high) * itemsize)))) if setting.cuda else 1

    calls_forward, calls_both = [], []
    for _ in range(sets):
        given, grad = kernel_inputs(setting, form, shape, precision, layout)
        calls_forward.append(torch.no_grad()(functools.partial(function, *given)))
        calls_both.append(functools.partial(_both, function, given, grad))
    start = time.perf_counter()
    calls_both[0]()
    synchronize(setting.device)
    row: Row = {"what": "reassembly", "form": form, "shape": shape, "precision": precision, "layout": layout}
    row |= {"first": time.perf_counter() - start, "forward": timed(calls_forward, setting.device)}
    row |= {"both": timed(calls_both, setting.device), "bytes": (forward + backward) * itemsize}
    row["forward bytes"] = forward * itemsize
    if setting.cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        calls_both[0]()
        row["peak"] = torch.cuda.max_memory_allocated() - before
        try:
            row |= {"forward graph": timed_graph(calls_forward), "both graph": timed_graph(calls_both)}
        except Exception as error:
            row["graph error"] = first_line(error)
    return row


def kernel_inputs(
    setting: Setting, form: str, shape: tuple[int, int, int], precision: str, layout: str
) -> tuple[list[Tensor], Tensor]:
    """x and kernels, skip and gate too for ``fused``; and the output's gradient."""
    (b, c, n), high, taps = shape, SCALE * shape[2], KERNEL_SIZE**2
    sizes = [(b, c, n, n), (b, taps, high, high)] + [(b, c, high, high), (b, 1, high, high)] * (form == "fused")
    made = [
        torch.randn(size, device=setting.device).to(DTYPES[precision]).contiguous(memory_format=LAYOUTS[layout])
        for size in [*sizes, (b, c, high, high)]
    ]
    return [t.requires_grad_() for t in made[:-1]], made[-1]


def _both(function: Callable[..., Tensor], given: Sequence[Tensor], grad: Tensor) -> object:
    return torch.autograd.grad(function(*given), given, grad)


def stage_prepare(setting: Setting, rows: Rows) -> None:
    """Compile what the measuring stages will use, so that they find it in Triton's cache."""
    import gpu_warm

    if setting.small:
        uses, cases = [gpu_warm.Use("fade", (1, 8, 3, 4))], []
    else:
        cases = [case for case in kernel_cases(setting) if case[0] in ("triton", "fused")]
        uses = [
            use
            for precision in ("fp32", "bf16")
            for name in ("fade", "carafe")
            for use in gpu_warm.segnet_uses(name, 4, precision)
        ]
    for task, result in spread_over(setting, prepare, [(case,) for case in (*cases, *uses)]):
        rows.add(
            what="prepared", of=task[0], **({"error": first_line(result)} if result.__class__ is not float else {})
        )


def prepare(setting: Setting, case: Any) -> float:
    """Run a kernel, or an operator, once; the seconds that it took."""
    import gpu_warm

    if isinstance(case, gpu_warm.Use):
        return gpu_warm.run_once(case, setting.device)
    start = time.perf_counter()
    form, shape, precision, layout = case
    given, grad = kernel_inputs(setting, form, shape, precision, layout)
    _both(reassembly_form(form), given, grad)
    synchronize(setting.device)
    return time.perf_counter() - start


def stage_peer(setting: Setting, rows: Rows) -> None:
    """Build mmcv's operator, and compare it with ours."""
    if not (GPU_FILES / "mmcv").is_dir():
        rows.add(what="peer", error="no .gpu/mmcv; fill it with scripts/gpu_data.py")
        return
    import gpu_peer

    from fadeviz.ops.reassemble import reassemble

    start = time.perf_counter()
    try:
        module = gpu_peer.build()
        row: Row = {"what": "peer", "seconds": time.perf_counter() - start}
        x, kernels = (torch.randn(size, device=setting.device) for size in ((2, 32, 9, 14), (2, 25, 18, 28)))
        for name, t in (("fp32", torch.float32), ("fp16", torch.float16)):
            theirs = gpu_peer.carafe(module, x.to(t), kernels.to(t), KERNEL_SIZE, SCALE)
            ours = reassemble(x.to(t).double(), kernels.to(t).double(), KERNEL_SIZE, SCALE, backend="tiles")
            row[name] = relative([theirs.double()], [ours])
        rows.add(**row)
    except Exception as error:
        traceback.print_exc()
        rows.add(what="peer", error=first_line(error))
