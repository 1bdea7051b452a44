"""Attention to sampled points on a CPU by ``sampled.c``: sampling, the points, and layers of few channels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import native_library
from .native_library import NativeMap, bits_of, call, can_read, pointer, thread_count
from .sampler import Points

_RUN_OF_PIXELS = 1024
"""Number of pixels that are processed together; the same as in sampled.c."""

_FEW_CHANNELS = (2, 4, 8, 16)
"""Numbers of channels that may divide a vector of the processor."""


class SampledGradients(NamedTuple):
    """Memory for the gradients of ``sum(y * sampled_sums(x, points, kernels))``; None for one that is not needed."""

    points: Tensor | None = None
    kernels: Tensor | None = None
    x: Tensor | None = None
    y: Tensor | None = None


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("batch", "channels", "height", "width", "high", "wide", "groups", "heads", "points", "threads")
    ]


def can_sample(*tensors: Tensor | None) -> bool:
    """Whether maps, points and kernels like these can be sampled here."""
    return can_read(*tensors) and native_library.library(bits_of(*tensors)) is not None


def sampled_sums(x: Tensor, points: Points, kernels: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    """Fill y ``(B, C, s*h, s*w)`` with weighted sums of x (and bias) at the points."""
    _sample("fadeviz_sampled_sums", x, points, kernels, y, bias)
    return y


def sampled_logits(y: Tensor, x: Tensor, points: Points, bias: Tensor | None, logits: Tensor) -> Tensor:
    """Fill logits ``(B, N*P, s*h, s*w)`` with the inner products of y and x (plus bias) at the points."""
    _sample("fadeviz_sampled_logits", x, points, logits, y, bias)
    return logits


def sampled_gradients(
    y: Tensor, x: Tensor, points: Points, kernels: Tensor, gradients: SampledGradients, bias: Tensor | None = None
) -> None:
    """Fill the gradients of ``sum(y * sampled_sums(x, points, kernels))`` in the points, the kernels, and in x.

    With ``gradients.x``, ``gradients.y`` gets the weighted sums of x and bias, which are the gradient in y.
    """
    if gradients.x is None:
        _sample("fadeviz_sampled_slopes", x, points, kernels, y, bias, gradients[:2])
    else:
        _sample("fadeviz_sampled_gradients", x, points, kernels, y, bias, gradients)


def sampled_spread(y: Tensor, points: Points, kernels: Tensor, to_x: Tensor) -> Tensor:
    """Fill the gradient of ``sum(y * sampled_sums(x, points, kernels))`` in x."""
    _sample("fadeviz_sampled_spread", to_x, points, kernels, y, None)
    return to_x


def _sample(
    function: str,
    x: Tensor,
    points: Points,
    kernels: Tensor,
    y: Tensor,
    bias: Tensor | None,
    gradients: Sequence[Tensor | None] = (None, None),
) -> None:
    if not (x.numel() and y.numel()):
        return
    offsets, groups, heads = points
    tensors = (x, offsets, kernels, y, *gradients)
    bits = bits_of(*tensors)
    threads = thread_count(y.numel() * points.per_pixel)
    shape = _Shape(*x.shape, *offsets.shape[2:], groups, heads, points.per_pixel, threads)
    table = None if bias is None else bias.detach().to(torch.float64 if bits == 64 else torch.float32).contiguous()
    maps = [NativeMap.of(tensor) for tensor in tensors]
    refs = [ctypes.byref(m) for m in maps]
    if not call(function, bits, ctypes.byref(shape), *refs[:3], pointer(table), *refs[3:]):
        raise MemoryError("native sampling: no memory for the planes")


def points(learned: Tensor, groups: int, reach: float, out: Tensor) -> Tensor:
    """Fill ``(B, G*P*2, H, W)`` with ``reach * tanh(learned) + the pixels of a square``, from ``(B*G, P*2, H, W)``."""
    _bend("fadeviz_points", learned, out, None, groups, reach)
    return out


def points_backward(grad: Tensor, points: Tensor, groups: int, reach: float, to_learned: Tensor) -> Tensor:
    """Fill the gradient of what was learned, from the points and their gradient."""
    _bend("fadeviz_points_backward", to_learned, points, grad, groups, reach)
    return to_learned


def _bend(function: str, learned: Tensor, points: Tensor, grad: Tensor | None, groups: int, reach: float) -> None:
    if not learned.numel():
        return
    b, channels, height, width = points.shape
    shape = _Shape(b, channels, 0, 0, height, width, groups, 1, channels // (2 * groups), thread_count(learned.numel()))
    maps = [NativeMap.of(tensor) for tensor in (learned, points, grad)]
    arguments = [ctypes.byref(shape), *map(ctypes.byref, maps), ctypes.c_double(reach)]
    if not call(function, bits_of(learned, points, grad), *arguments):
        raise MemoryError("native sampling: no memory for a row")


def can_convolve(hidden: Tensor, weight: Tensor) -> bool:
    """Whether :func:`points_conv` takes these: 2 or 4 channels in channels-last memory, and a 3x3 neighbourhood."""
    return (
        hidden.device.type == "cpu"
        and hidden.dtype == weight.dtype
        and hidden.dtype in (torch.float32, torch.float64)
        and hidden.shape[1] in (2, 4)
        and tuple(weight.shape) == (18, hidden.shape[1], 3, 3)
        and hidden.is_contiguous(memory_format=torch.channels_last)
        and native_library.library(bits_of(hidden)) is not None
    )


def points_conv(hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, reach: float, out: Tensor) -> Tensor:
    """:func:`points` of the convolution of ``(B*G, C, H, W)`` with ``(18, C, 3, 3)``, in one pass."""
    bias = bias.contiguous()
    _call_points_conv((hidden, _taps(weight), bias, out, None, None, None), groups, reach)
    return out


def points_conv_backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, points: Tensor, groups: int, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the map, the weight and the bias."""
    to_hidden, taps = torch.empty_like(hidden), 9 * hidden.shape[1]
    sums = hidden.new_zeros(len(points), taps + 1, len(weight))
    grad = grad.contiguous(memory_format=torch.channels_last)
    _call_points_conv((hidden, _taps(weight), None, points, grad, to_hidden, sums), groups, reach)
    total = sums.sum(0)
    to_weight = torch.empty_like(weight).copy_(total[:taps].t().reshape(-1, 3, 3, hidden.shape[1]).permute(0, 3, 1, 2))
    return to_hidden, to_weight, total[taps]


def _taps(weight: Tensor) -> Tensor:
    return weight.permute(2, 3, 1, 0).contiguous()


def _call_points_conv(tensors: Sequence[Tensor | None], groups: int, reach: float) -> None:
    """The C function's hidden, taps, bias, points, grad, to_hidden and sums."""
    hidden, points = tensors[0], tensors[3]
    if hidden is None or points is None or not hidden.numel():
        return
    b, _, height, width = points.shape
    shape = _Shape(b, hidden.shape[1], 0, 0, height, width, groups, 1, 9, thread_count(points.numel()))
    arguments = [ctypes.byref(shape), *map(pointer, tensors), ctypes.c_double(reach)]
    if not call("fadeviz_points_conv", bits_of(hidden), *arguments):
        raise MemoryError("native sampling: no memory for a row")


def can_convolve_groups(query: Tensor, weight: Tensor) -> bool:
    """Whether :func:`group_conv` takes these: few channels, both float32 or both float64."""
    return query.dtype == weight.dtype and tuple(weight.shape[1:]) == (1, 3, 3) and _has_few_channels(query)


def group_conv(query: Tensor, weight: Tensor, groups: int) -> Tensor:
    """``(B, G*C, H, W)`` convolved depth-wise with ``(C, 1, 3, 3)``, the same for each group: ``(B*G, C, H, W)``."""
    b, _, height, width = query.shape
    shape = (b * groups, len(weight), height, width)
    out = torch.empty(shape, dtype=query.dtype, memory_format=torch.channels_last)
    _call_group_conv(query, weight, (out, None, None, None), groups)
    return out


def group_conv_backward(grad: Tensor, query: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The gradients of the query and of the weight."""
    to_query = torch.empty_like(query, memory_format=torch.channels_last)
    sums = query.new_zeros(len(query), 9, groups, len(weight))
    grad = grad.contiguous(memory_format=torch.channels_last)
    _call_group_conv(query, weight, (None, grad, to_query, sums), groups)
    return to_query, sums.sum((0, 2)).t().reshape(weight.shape)


def _call_group_conv(query: Tensor, weight: Tensor, rest: Sequence[Tensor | None], groups: int) -> None:
    """``rest``: the C function's out, grad, to_query and sums."""
    if not query.numel():
        return
    query = query.contiguous(memory_format=torch.channels_last)
    taps = weight.flatten(1).t().contiguous()
    b, _, height, width = query.shape
    shape = _Shape(b, len(weight), 0, 0, height, width, groups, 1, 9, thread_count(query.numel()))
    if not call("fadeviz_group_conv", bits_of(query), ctypes.byref(shape), *map(pointer, (query, taps, *rest))):
        raise MemoryError("native sampling: no memory for a row")


def can_normalize(x: Tensor) -> bool:
    """Whether :func:`pixel_norm` takes x: few channels, in channels-last memory."""
    return _has_few_channels(x) and x.is_contiguous(memory_format=torch.channels_last)


def _has_few_channels(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    loaded, channels = native_library.library(bits_of(x)), x.shape[1]
    return (
        loaded is not None
        and channels in _FEW_CHANNELS
        and channels <= getattr(loaded, f"fadeviz_norm_channels_f{bits_of(x)}")()
    )


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the channels of every pixel."""
    y = torch.empty_like(x)
    _call_norm((x, None, weight.contiguous(), bias.contiguous(), y, None), eps)
    return y


def pixel_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    to_x, channels = torch.empty_like(x), x.shape[1]
    sums = x.new_zeros(-(-x.numel() // channels // _RUN_OF_PIXELS), 2, channels)
    weight, grad = weight.contiguous(), grad.contiguous(memory_format=torch.channels_last)
    _call_norm((x, grad, weight, weight, to_x, sums), eps)
    to_weight, to_bias = sums.sum(0).unbind()
    return to_x, to_weight, to_bias


def _call_norm(tensors: Sequence[Tensor | None], eps: float) -> None:
    """The C function's x, grad, weight, bias, y and sums."""
    x = tensors[0]
    if x is None or not x.numel():
        return
    sizes = [ctypes.c_int64(n) for n in (x.numel() // x.shape[1], x.shape[1])]
    threads = ctypes.c_int64(thread_count(x.numel()))
    call("fadeviz_pixel_norm", bits_of(x), *map(pointer, tensors), *sizes, ctypes.c_double(eps), threads)
