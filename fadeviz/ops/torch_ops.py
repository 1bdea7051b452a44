"""The reassembly family as ``torch.library`` operators: choice of the backend, shapes, gradients.

As operators (``torch.ops.fadeviz.reassemble`` ...) they are opaque to torch.compile, which takes their shapes and
gradients from here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import unknown_name
from .backends import native, tiles
from .library import gradients_of, operator, shapes_of
from .memory_format import empty, with_strides_of

BACKENDS = ("tiles", "native", "triton")
"""Backends: matrix products over tiles on any device, the reference; C on a CPU, compiled on first use; Triton on a
GPU."""

is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""Whether ``torch.export`` is tracing; in torch 2.6, whether anything is."""


def choose_backend(x: Tensor, kernel_size: int, scale_factor: int) -> str:
    """The backend for maps like x, where none is chosen by name.

    Triton on a CUDA device, the native backend on a CPU, tiles where these cannot run. The environment variable
    ``FADEVIZ_BACKEND`` chooses one for the whole process.

    Raises:
        FadevizError: if ``FADEVIZ_BACKEND`` is not the name of a backend.
    """
    forced = os.environ.get("FADEVIZ_BACKEND", "")
    if forced:
        if forced not in BACKENDS:
            raise unknown_name("backend", forced, BACKENDS, "unset FADEVIZ_BACKEND")
        return forced
    if x.device.type == "cuda" and _cuda().available(x.device):
        return "triton"
    return "native" if native.available(x, kernel_size, scale_factor) else "tiles"


def is_fused(device: torch.device) -> bool:
    """Whether softmax, reassembly and gate run as one kernel on ``device``: with the backend triton."""
    # Separate from `choose_backend` so that torch.compile, which traces this, meets no C library on a CPU.
    forced = os.environ.get("FADEVIZ_BACKEND", "")
    return forced == "triton" if forced else device.type == "cuda" and bool(_cuda().available(device))


def _cuda() -> ModuleType:
    from .backends import cuda  # takes seconds, and is of use only on a GPU

    return cuda


def _backend(name: str, x: Tensor, kernel_size: int, scale_factor: int) -> Any:
    name = name or choose_backend(x, kernel_size, scale_factor)
    return {"tiles": tiles, "native": native}.get(name) or _cuda()


# Each returns new memory in the format of its first argument. The gradients are written in terms of the others, so that
# they can be differentiated again.


@operator("reassemble")
def reassemble(x: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int, backend: str) -> Tensor:
    """y from x and kernels; see :func:`~fadeviz.ops.reassemble.reassemble`, which checks the arguments."""
    out: Tensor = _backend(backend, x, kernel_size, scale).reassemble(x, kernels, kernel_size, scale, groups)
    return out


@operator("similarity")
def similarity(query: Tensor, key: Tensor, kernel_size: int, scale: int, groups: int, backend: str) -> Tensor:
    """Kernels' logits from queries and keys; in float32 or better."""
    out: Tensor = _backend(backend, query, kernel_size, scale).similarity(query, key, kernel_size, scale, groups)
    return out


@operator("spread")
def spread(y: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int, backend: str) -> Tensor:
    """x from y and kernels, the adjoint of reassemble."""
    out: Tensor = _backend(backend, y, kernel_size, scale).spread(y, kernels, kernel_size, scale, groups)
    return out


@operator("kernel_softmax")
def softmax(
    logits: Tensor,
    coarse: Tensor | None,
    kernel_size: int,
    scale: int,
    groups: int,
    backend: str,
    dtype: torch.dtype,
) -> Tensor:
    """Kernels from logits and, if there are any, coarse logits."""
    module = _softmax_backend(backend, logits, kernel_size, scale)
    out: Tensor = module.softmax(logits, coarse, kernel_size, scale, groups, dtype)
    return out


@operator("kernel_softmax_backward")
def softmax_backward(
    grad: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int, backend: str, has_coarse: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of the logits and of the coarse logits; the latter is empty if there are none."""
    module = _softmax_backend(backend, grad, kernel_size, scale)
    fine, coarse = module.softmax_backward(grad, kernels, kernel_size, scale, groups, has_coarse)
    return fine, grad.new_empty(0) if coarse is None else coarse


def _softmax_backend(name: str, x: Tensor, kernel_size: int, scale: int) -> Any:
    # On a GPU torch's own softmax is as fast.
    module = _backend(name, x, kernel_size, scale)
    return module if module is native else tiles


@operator("blend")
def blend(reassembled: Tensor, feature: Tensor, gate: Tensor) -> Tensor:
    """The gate's mix of two maps."""
    if _blends_natively(reassembled, feature, gate):
        return native.blend(reassembled, feature, gate)
    return torch.lerp(reassembled, feature, gate)


@operator("blend_backward")
def blend_backward(grad: Tensor, reassembled: Tensor, feature: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of both maps and of the gate."""
    if _blends_natively(grad, reassembled, feature, gate):
        return native.blend_backward(grad, reassembled, feature, gate)
    # Maps of 1x1 have both formats, so that maps of different formats may meet here.
    gradients = zip(_blend_gradients(grad, reassembled, feature, gate), (reassembled, feature, gate), strict=True)
    to_reassembled, to_feature, to_gate = (with_strides_of(of, gradient) for gradient, of in gradients)
    return to_reassembled, to_feature, to_gate


@operator("fused")
def fused(
    x: Tensor, logits: Tensor, skip: Tensor | None, gate: Tensor | None, kernel_size: int, scale: int
) -> tuple[Tensor, Tensor]:
    """The mix of ``skip`` and the reassembled x in one kernel on a GPU; and the softmax of the logits."""
    out: tuple[Tensor, Tensor] = _cuda().fused_forward(x, logits, kernel_size, scale, skip, gate)
    return out


@operator("fused_backward")
def fused_backward(
    grad: Tensor,
    x: Tensor,
    kernels: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    kernel_size: int,
    scale: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, the logits, skip and gate; the last two are empty if these are None."""
    to_x, to_logits, to_skip, to_gate = _cuda().fused_backward(grad, x, kernels, kernel_size, scale, skip, gate)
    none = grad.new_empty(0)
    return to_x, to_logits, none if to_skip is None else to_skip, none.clone() if to_gate is None else to_gate


@operator("rimmed_conv")
def rimmed_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, rim: Tensor | None, padding: int, dilation: int
) -> Tensor:
    """A convolution, and ``rim`` (M, 2p + 1, 2p + 1) added within ``padding`` p of the border."""
    out = F.conv2d(x, weight, bias, padding=padding, dilation=dilation)
    if rim is not None and padding:
        for strip, part in zip(_strips(out, padding), _strip_values(rim, padding, out.shape[-2:]), strict=True):
            strip.add_(part)
    return out


def _strips(y: Tensor, r: int) -> list[Tensor]:
    """The r rows at the top and at the bottom, and between them the r columns at the left and at the right."""
    return [y[:, :, :r], y[:, :, -r:], y[:, :, r:-r, :r], y[:, :, r:-r, -r:]]


def _strip_values(rim: Tensor, r: int, size: Sequence[int]) -> list[Tensor]:
    """The values of each strip: those of ``rim``, the middle of each side repeated."""
    inner = size[1] - 2 * r
    rows = torch.cat([rim[:, :, :r], rim[:, :, r : r + 1].expand(-1, -1, inner), rim[:, :, r + 1 :]], dim=2)
    return [rows[:, :r], rows[:, r + 1 :], rim[:, r : r + 1, :r], rim[:, r : r + 1, r + 1 :]]


def _rim_gradient(grad: Tensor, r: int) -> Tensor:
    top, bottom, left, right = (strip.sum(dim=0) for strip in _strips(grad, r))
    rows = [torch.cat([s[:, :, :r], s[:, :, r:-r].sum(2, keepdim=True), s[:, :, -r:]], dim=2) for s in (top, bottom)]
    sides = [s.sum(dim=1, keepdim=True) for s in (left, right)]
    middle = torch.cat([sides[0], torch.zeros_like(sides[0][:, :, :1]), sides[1]], dim=2)
    return torch.cat([rows[0], middle, rows[1]], dim=1)


def _blends_natively(*maps: Tensor) -> bool:
    return choose_backend(maps[0], 1, 1) == "native" and native.can_blend(*maps)


def _blend_gradients(grad: Tensor, reassembled: Tensor, feature: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    to_feature = gate * grad
    return grad - to_feature, to_feature, (grad * (feature - reassembled)).sum(dim=1, keepdim=True)


@shapes_of("reassemble")
def _(x: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int, backend: str) -> Tensor:
    return empty(x, (x.shape[0], x.shape[1], x.shape[2] * scale, x.shape[3] * scale))


@shapes_of("similarity")
def _(query: Tensor, key: Tensor, kernel_size: int, scale: int, groups: int, backend: str) -> Tensor:
    dtype = torch.promote_types(query.dtype, torch.float32)
    return empty(query, (query.shape[0], groups * kernel_size**2, query.shape[2], query.shape[3]), dtype)


@shapes_of("spread")
def _(y: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int, backend: str) -> Tensor:
    return empty(y, (y.shape[0], y.shape[1], y.shape[2] // scale, y.shape[3] // scale))


@shapes_of("kernel_softmax")
def _(
    logits: Tensor,
    coarse: Tensor | None,
    kernel_size: int,
    scale: int,
    groups: int,
    backend: str,
    dtype: torch.dtype,
) -> Tensor:
    return empty(logits, logits.shape, dtype)


@shapes_of("kernel_softmax_backward")
def _(
    grad: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int, backend: str, has_coarse: bool
) -> tuple[Tensor, Tensor]:
    b, channels, h, w = grad.shape
    coarse = empty(grad, (b, channels, h // scale, w // scale)) if has_coarse else grad.new_empty(0)
    return empty(grad, grad.shape), coarse


@shapes_of("blend")
def _(reassembled: Tensor, feature: Tensor, gate: Tensor) -> Tensor:
    return torch.empty_like(reassembled)


@shapes_of("blend_backward")
def _(grad: Tensor, reassembled: Tensor, feature: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(reassembled), torch.empty_like(feature), torch.empty_like(gate)


@shapes_of("fused")
def _(
    x: Tensor, logits: Tensor, skip: Tensor | None, gate: Tensor | None, kernel_size: int, scale: int
) -> tuple[Tensor, Tensor]:
    b, c, h, w = x.shape
    dtype = x.dtype if skip is None else torch.promote_types(x.dtype, skip.dtype)
    return empty(x, (b, c, h * scale, w * scale), dtype), empty(logits, logits.shape)


@shapes_of("fused_backward")
def _(
    grad: Tensor,
    x: Tensor,
    kernels: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    kernel_size: int,
    scale: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    to_skip, to_gate = (grad.new_empty(0) if t is None else torch.empty_like(t) for t in (skip, gate))
    return torch.empty_like(x), torch.empty_like(kernels), to_skip, to_gate


@shapes_of("rimmed_conv")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, rim: Tensor | None, padding: int, dilation: int) -> Tensor:
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, *ctx.options = inputs
    ctx.save_for_backward(first, second)


def _backward_reassemble(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, kernels = ctx.saved_tensors
    need_x, need_kernels = ctx.needs_input_grad[:2]
    return (
        spread(grad, kernels, *ctx.options).to(x.dtype) if need_x else None,
        similarity(grad, x, *ctx.options).to(kernels.dtype) if need_kernels else None,
        None, None, None, None,
    )  # fmt: skip


def _backward_similarity(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key = ctx.saved_tensors
    need_query, need_key = ctx.needs_input_grad[:2]
    return (
        reassemble(key, grad, *ctx.options).to(query.dtype) if need_query else None,
        spread(query, grad, *ctx.options).to(key.dtype) if need_key else None,
        None, None, None, None,
    )  # fmt: skip


def _backward_spread(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, kernels = ctx.saved_tensors
    need_y, need_kernels = ctx.needs_input_grad[:2]
    return (
        reassemble(grad, kernels, *ctx.options).to(y.dtype) if need_y else None,
        similarity(y, grad, *ctx.options).to(kernels.dtype) if need_kernels else None,
        None, None, None, None,
    )  # fmt: skip


gradients_of("reassemble", _backward_reassemble, _keep)
gradients_of("similarity", _backward_similarity, _keep)
gradients_of("spread", _backward_spread, _keep)


def _keep_kernels(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, coarse, kernel_size, scale, groups, backend, _ = inputs
    ctx.save_for_backward(output)
    ctx.options = (kernel_size, scale, groups, backend, coarse is not None)
    ctx.dtypes = (logits.dtype, None if coarse is None else coarse.dtype)


def _backward_softmax(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (kernels,) = ctx.saved_tensors
    kernel_size, scale, groups, backend, has_coarse = ctx.options
    same = has_coarse and scale == 1  # one gradient for both
    has_coarse = has_coarse and not same
    if torch.is_grad_enabled():  # for second derivatives, in terms of torch's own operators
        fine, coarse = tiles.softmax_backward(grad, kernels, kernel_size, scale, groups, has_coarse)
    else:
        fine, coarse = softmax_backward(grad, kernels, kernel_size, scale, groups, backend, has_coarse)
    dtype, coarse_dtype = ctx.dtypes
    if same:
        coarse, has_coarse = fine, True
    low = coarse.to(coarse_dtype) if has_coarse and coarse is not None else None
    return fine.to(dtype), low, None, None, None, None, None


gradients_of("kernel_softmax", _backward_softmax, _keep_kernels)


def _keep_blend(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_blend(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    twice = torch.is_grad_enabled()
    gradients: tuple[Tensor, ...] = (_blend_gradients if twice else blend_backward)(grad, *ctx.saved_tensors)
    return gradients


gradients_of("blend", _backward_blend, _keep_blend)


def _keep_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, rim, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(x, weight)
    ctx.sizes = None if bias is None else [len(bias)]
    ctx.rim_dtype = None if rim is None else rim.dtype


def _backward_conv(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    need_x, need_weight, need_bias, need_rim = ctx.needs_input_grad[:4]
    padding, dilation = [ctx.padding] * 2, [ctx.dilation] * 2
    mask = [need_x, need_weight, need_bias]
    grads = torch.ops.aten.convolution_backward(
        grad, x, weight, ctx.sizes, [1, 1], padding, dilation, False, [0, 0], 1, mask
    )
    rim = _rim_gradient(grad, ctx.padding).to(ctx.rim_dtype) if need_rim and ctx.padding else None
    return *grads, rim, None, None


gradients_of("rimmed_conv", _backward_conv, _keep_conv)


def _keep_fused(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, skip, gate, ctx.kernel_size, ctx.scale = inputs
    ctx.save_for_backward(x, output[1], skip, gate)
    ctx.set_materialize_grads(False)


def _backward_fused(ctx: Any, grad: Tensor | None, grad_kernels: Tensor | None) -> tuple[Tensor | None, ...]:
    x, kernels, skip, gate = ctx.saved_tensors
    k, s = ctx.kernel_size, ctx.scale
    if grad is not None and grad_kernels is None and not torch.is_grad_enabled():
        to_x, to_logits, to_skip, to_gate = fused_backward(grad, x, kernels, skip, gate, k, s)
        return to_x, to_logits, None if skip is None else to_skip, None if gate is None else to_gate, None, None
    # Second derivatives, or gradients of the softmax too: the same in operators that can be differentiated again.
    to_x, to_skip, to_gate, to_kernels = None, None, None, grad_kernels
    if grad is not None:
        if skip is not None:
            mixed = reassemble(x, kernels, k, s, 1, "").to(skip.dtype)
            grad, to_skip, to_gate = _blend_gradients(grad, mixed, skip, gate)
            grad = grad.to(x.dtype)
        to_x, from_y = spread(grad, kernels, k, s, 1, ""), similarity(grad, x, k, s, 1, "")
        to_kernels = from_y if to_kernels is None else to_kernels + from_y
    if to_kernels is None:
        return None, None, None, None, None, None
    to_logits = tiles.softmax_backward(to_kernels, kernels, k, s, 1, False)[0].to(kernels.dtype)
    return to_x, to_logits, to_skip, to_gate, None, None


gradients_of("fused", _backward_fused, _keep_fused)
