"""Reassembly, softmax, FADE's gate and FreqFusion's border on a CPU, by ``native.c``.

Where the library cannot be built, :mod:`.tiles` computes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import FadevizError
from ..memory_format import empty
from . import native_library
from .native_library import NativeMap, bits_of, call, can_read, pointer, thread_count

_MAX_KERNEL, _MAX_SCALE = 64, 16


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("batch", "channels", "height", "width", "kernel", "scale", "groups", "threads")
    ]


def available(x: Tensor, kernel_size: int, scale_factor: int) -> bool:
    """Whether maps like x can be computed here: on the CPU, with a compiler, in a dtype that the C code reads."""
    return (
        can_read(x)
        and kernel_size <= _MAX_KERNEL
        and scale_factor <= _MAX_SCALE
        and native_library.library(bits_of(x)) is not None
    )


def reassemble(x: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int, groups: int) -> Tensor:
    """``(B, C, h, w)`` and ``(B, G*K*K, s*h, s*w)`` -> ``(B, C, s*h, s*w)``, in x's dtype and memory format."""
    b, c, h, w = x.shape
    y = empty(x, (b, c, h * scale_factor, w * scale_factor))
    _call("fadeviz_reassemble", x, kernels, y, kernel_size, scale_factor, groups)
    return y


def similarity(query: Tensor, key: Tensor, kernel_size: int, scale_factor: int, groups: int) -> Tensor:
    """``(B, C, s*h, s*w)`` and ``(B, C, h, w)`` -> ``(B, G*K*K, s*h, s*w)``, in float32 or better."""
    b, _, height, width = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    out = empty(query, (b, groups * kernel_size**2, height, width), dtype)
    if key.numel():
        _call("fadeviz_similarity", key, out, query, kernel_size, scale_factor, groups)
    else:
        out.zero_()
    return out


def spread(y: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int, groups: int) -> Tensor:
    """``(B, C, s*h, s*w)`` and ``(B, G*K*K, s*h, s*w)`` -> ``(B, C, h, w)``, in y's dtype and memory format."""
    b, c, height, width = y.shape
    out = empty(y, (b, c, height // scale_factor, width // scale_factor))
    _call("fadeviz_spread", out, kernels, y, kernel_size, scale_factor, groups)
    return out


def _call(function: str, x: Tensor, kernels: Tensor, y: Tensor, kernel_size: int, scale: int, groups: int) -> None:
    if not x.numel():
        return
    shape = _Shape(*x.shape, kernel_size, scale, groups, thread_count(y.numel() * kernel_size**2))
    _run(function, shape, [x, kernels, y])


def softmax(
    logits: Tensor, coarse: Tensor | None, kernel_size: int, scale_factor: int, groups: int, dtype: torch.dtype
) -> Tensor:
    """Softmax over each kernel of ``logits + nearest_s(coarse)``, in the logits' memory format."""
    out = empty(logits, logits.shape, dtype)
    scale = 1 if coarse is None else scale_factor
    _call_softmax("fadeviz_softmax", logits, [out, None, coarse], kernel_size, scale, groups)
    return out


def softmax_backward(
    grad: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int, groups: int, has_coarse: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the logits and of the coarse ones, in the gradient's memory format."""
    b, channels, h, w = grad.shape
    out = empty(grad, grad.shape)
    low = empty(grad, (b, channels, h // scale_factor, w // scale_factor)) if has_coarse else None
    scale = scale_factor if has_coarse else 1
    _call_softmax("fadeviz_softmax_backward", grad, [kernels, out, low], kernel_size, scale, groups)
    return out, low


def _call_softmax(
    function: str, first: Tensor, rest: list[Tensor | None], kernel_size: int, scale: int, groups: int
) -> None:
    if not first.numel():
        return
    b, channels, h, w = first.shape
    shape = _Shape(b, channels, h // scale, w // scale, kernel_size, scale, groups, thread_count(first.numel()))
    _run(function, shape, [first, *rest])


def _run(function: str, shape: _Shape, tensors: Sequence[Tensor | None]) -> None:
    bits = bits_of(*tensors)
    native_library.required_library(bits)
    if shape.kernel > _MAX_KERNEL or shape.scale > _MAX_SCALE:
        raise FadevizError(
            f"backend='native' supports kernel_size up to {_MAX_KERNEL} and scale_factor up to {_MAX_SCALE}, not "
            f"{shape.kernel} and {shape.scale}. Use backend='tiles'"
        )
    for tensor in tensors:
        if tensor is not None and not can_read(tensor):
            raise FadevizError(
                f"backend='native' reads floating-point maps on the CPU, not {tensor.dtype} on {tensor.device}. "
                "Convert them, or use backend='tiles'"
            )
    maps = [NativeMap.of(tensor) for tensor in tensors]
    if not call(function, bits, ctypes.byref(shape), *map(ctypes.byref, maps)):
        raise MemoryError("native reassembly: no memory for the row buffers")


def can_blend(*maps: Tensor) -> bool:
    """Whether :func:`blend` takes the maps: all float32 or all float64, dense, and in one memory format."""
    first = maps[0]
    last = all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    return (
        native_library.library(bits_of(first)) is not None
        and all(m.device.type == "cpu" and m.dtype == first.dtype for m in maps)
        and first.dtype in (torch.float32, torch.float64)
        and all(m.shape in (first.shape, (len(first), 1, *first.shape[2:])) for m in maps)
        and (last or all(m.is_contiguous() for m in maps))
    )


def blend(reassembled: Tensor, feature: Tensor, gate: Tensor) -> Tensor:
    """``gate * feature + (1 - gate) * reassembled`` for a one-channel gate; maps that :func:`can_blend` takes."""
    out = torch.empty_like(reassembled)
    _call_blend("fadeviz_blend", reassembled, [reassembled, feature, gate, out])
    return out


def blend_backward(grad: Tensor, reassembled: Tensor, feature: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of all three."""
    gradients = torch.empty_like(reassembled), torch.empty_like(feature), torch.empty_like(gate)
    _call_blend("fadeviz_blend_backward", reassembled, [grad, reassembled, feature, gate, *gradients])
    return gradients


def _call_blend(function: str, like: Tensor, tensors: list[Tensor]) -> None:
    if not like.numel():
        return
    b, c, h, w = like.shape
    last = not like.is_contiguous()
    sizes = [b, c, h * w, int(last), thread_count(like.numel())]
    call(function, bits_of(like), *map(pointer, tensors), *map(ctypes.c_int64, sizes))


def can_frame(*maps: Tensor) -> bool:
    """Whether :func:`frame` takes the maps: on the CPU, all float32 or all float64."""
    first = maps[0]
    return (
        first.dtype in (torch.float32, torch.float64)
        and all(m.device.type == "cpu" and m.dtype == first.dtype for m in maps)
        and native_library.library(bits_of(first)) is not None
    )


def frame(y: Tensor, n: Tensor, shift: Tensor, kernel_size: int) -> None:
    """Add to y ``(B, M, h, w)`` what the convolution of a map of ones with ``shift`` (M, 1, k, k) lacks at the border.

    It lacks the part of the kernels n ``(B, K*K, h, w)``, which sum to 1, that lies beyond the border, within the reach
    of k.
    """
    _call_frame(y, n, shift, kernel_size)


def frame_backward(grad: Tensor, n: Tensor, shift: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """The gradients of n and of shift."""
    size = shift.shape[-1]
    to_n, sums = torch.zeros_like(n), shift.new_zeros(len(n), size**2, len(shift))
    _call_frame(grad, n, shift, kernel_size, to_n, sums)
    return to_n, sums.sum(0).t().reshape(shift.shape)


def _call_frame(
    y: Tensor, n: Tensor, shift: Tensor, kernel_size: int, to_n: Tensor | None = None, sums: Tensor | None = None
) -> None:
    if not y.numel():
        return
    b, m, h, w = y.shape
    taps = shift.flatten(1).t().contiguous()
    shape = _Shape(b, m, h, w, kernel_size, shift.shape[-1], 1, min(b, thread_count(y.numel())))
    maps = [NativeMap.of(tensor) for tensor in (y, n, to_n)]
    arguments = [ctypes.byref(shape), *map(ctypes.byref, maps), pointer(taps), pointer(sums)]
    if not call("fadeviz_frame", bits_of(y), *arguments):
        raise MemoryError("native frame: no memory for its weights")
