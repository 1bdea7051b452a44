"""The stage ``operators``: every operator against float64 on the CPU."""

from __future__ import annotations

import contextlib
import copy
import math
import traceback
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .setting import DTYPES, LAYOUTS, SCALE, Row, Rows, Setting, exact_fp32, first_line, spread_over

BOUNDS = {"fp32": (1e-5, 5e-5), "bf16": (2e-2, 5e-2), "fp16": (3e-3, 1e-2)}
"""Relative errors, ||a - b|| / ||b||, of an output and of gradients, that rounding explains."""

LOOSER = {"dysample": 4, "lda_aqu": 8, "freqfusion": 4, "a2u": 4}
"""How many times that: where a position is rounded, gradients jump from one pixel to the next; A2U's are small."""

LOSS_SCALE = 8
"""Of gradients in float16, which a training scales too: small ones would vanish."""

SHAPES = ((2, 32, 9, 14), (2, 64, 28, 28))
LARGE = ((4, 64, 112, 112), (4, 512, 14, 14))
"""SegNet's; for those operators that our kernels compute."""

WITH_KERNELS = ("carafe", "fade", "sapa_b", "a2u", "semishift")


def stage_operators(setting: Setting, rows: Rows) -> None:
    """Each operator, and the worst of its errors."""
    from fadeviz.upsamplers import UPSAMPLERS

    names = [*WITH_KERNELS, *(name for name in UPSAMPLERS if name not in WITH_KERNELS)]
    cases = [(name, (2, 8, 3, 4)) for name in names]
    if not setting.small:
        cases = [(name, SHAPES[0]) for name in names] + [(name, shape) for shape in LARGE for name in WITH_KERNELS]
        cases += [(name, SHAPES[1]) for name in names]
    tasks = [(name, shape, precision) for name, shape in cases for precision in DTYPES]
    for task, result in spread_over(setting, check_operator, tasks):
        if isinstance(result, BaseException):
            rows.add(what="operator", operator=task[0], shape=task[1], error=first_line(result), ok=False)
        else:
            for row in result:
                rows.add(**row)


def check_operator(setting: Setting, name: str, shape: tuple[int, int, int, int], *precisions: str) -> list[Row]:
    """The errors of one operator at one shape, for each precision and layout; in float32 with poisoned memory too."""
    exact_fp32()
    torch.set_num_threads(2)
    reports = []
    for precision in precisions or DTYPES:
        wanted, given = reference(name, shape, DTYPES[precision])
        for layout in LAYOUTS:
            for poison in (False, True) if precision == "fp32" else (False,):
                row: Row = {"what": "operator", "operator": name, "shape": shape, "precision": precision}
                row |= {"layout": layout, **({"poisoned": True} if poison else {})}
                try:
                    with poisoned_memory() if poison else contextlib.nullcontext():
                        got = apply(given, DTYPES[precision], LAYOUTS[layout], setting.device)
                    errors = {key: relative(got[key], wanted[key]) for key in wanted}
                    first, later = (bound * LOOSER.get(name, 1) for bound in BOUNDS[precision])
                    ok = all(error <= (first if key == "out" else later) for key, error in errors.items())
                    row |= {**errors, "ok": ok}
                except Exception as error:
                    traceback.print_exc()
                    row |= {"error": first_line(error), "ok": False}
                reports.append(row)
    return reports


Given = tuple[nn.Module, Tensor, Tensor, Tensor | None, Tensor]


def reference(name: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[dict[str, list[Tensor]], Given]:
    """Outputs and gradients in float64 on the CPU, and what they were computed from, exact in ``dtype``."""
    from fadeviz.upsamplers import Skip, build_upsampler

    b, c, h, w = shape
    torch.manual_seed(sum(map(ord, name)) + b * c * h * w)
    operator = build_upsampler(name, c)
    with torch.no_grad():  # away from initial weights of 0 and from regular grids
        for parameter in operator.parameters():
            of = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.add_(torch.randn_like(parameter) * 0.1 / math.sqrt(of))
    x, feature, grad = (
        torch.randn(size).to(dtype).double()
        for size in ((b, c, h, w), (b, c, SCALE * h, SCALE * w), (b, c, SCALE * h, SCALE * w))
    )
    wide = copy.deepcopy(operator).double()
    with torch.no_grad():
        _, indices = copy.deepcopy(wide).pool(feature)
    inputs = [x.requires_grad_(), feature.requires_grad_(), *wide.parameters()]
    y = wide(x, Skip(feature, indices))
    gradients = torch.autograd.grad(y, inputs, grad, allow_unused=True)
    given = (operator, x.detach(), feature.detach(), indices, grad)
    return named(y, gradients), given


def apply(given: Given, dtype: torch.dtype, layout: torch.memory_format, device: str) -> dict[str, list[Tensor]]:
    """The same on the device in ``dtype``, weights in float32 as in a training."""
    from fadeviz.upsamplers import Skip

    operator, x, feature, indices, grad = given
    operator = copy.deepcopy(operator).to(device).to(memory_format=layout)  # type: ignore[call-overload]
    x, feature, grad = (t.to(device, dtype).contiguous(memory_format=layout) for t in (x, feature, grad))
    if indices is not None:
        indices = indices.to(device, dtype if indices.is_floating_point() else indices.dtype)
        indices = indices.contiguous(memory_format=layout)
    inputs = [x.requires_grad_(), feature.requires_grad_(), *operator.parameters()]
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        y = operator(x, Skip(feature, indices))
    scale = LOSS_SCALE if dtype == torch.float16 else 1
    gradients = torch.autograd.grad(y, inputs, grad.to(y.dtype) * scale, allow_unused=True)
    return named(y, [None if gradient is None else gradient.double() / scale for gradient in gradients])


def named(y: Tensor, gradients: Sequence[Tensor | None]) -> dict[str, list[Tensor]]:
    """Tensors by what they are; those that do not depend are left out."""
    x, skip, *parameters = gradients
    parts = {"out": [y], "x": [x], "skip": [skip], "parameters": parameters}
    kept = {key: [t.detach().double().cpu() for t in part if t is not None] for key, part in parts.items()}
    return {key: part for key, part in kept.items() if part}


def relative(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """||got - wanted|| / ||wanted|| over several tensors."""
    ours, theirs = (torch.cat([t.reshape(-1) for t in part]) for part in (got, wanted))
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory holds NaN: an output that a kernel leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
