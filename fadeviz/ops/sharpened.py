"""FreqFusion's logits of the sharpened and compressed encoder map, computed without that map.

They are one convolution of the sharpened encoder map, and a correction at the border.

With e the encoder's feature, a = We e + be the compressed one, n the high-pass kernels, and R the reassembly:
``a* = 2a - R(a, n) = We e* + be s`` with ``e* = 2e - R(e, n)`` and ``s = 2 - R(1, n)``. As the kernels sum to 1, s is 1
except where they reach beyond the border.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import native
from .library import gradients_of, operator, shapes_of
from .memory_format import with_strides_of
from .reassemble import reassemble, similarity
from .torch_ops import choose_backend


def sharpened_conv(
    e: Tensor, n: Tensor, weight: Tensor, shift: Tensor, bias: Tensor | None, kernel_size: int
) -> Tensor:
    """``conv(e*, weight) + conv(s, shift) + bias``, both convolutions zero-padded.

    Args:
        e: ``(B, C, h, w)``.
        n: kernels ``(B, K*K, h, w)`` that sum to 1.
        weight: ``(M, C, k, k)``, k odd.
        shift: ``(M, 1, k, k)``.
        bias: ``(M,)``.
        kernel_size: K.

    Returns:
        ``(B, M, h, w)``.
    """
    sharp = sharpen(e, n, kernel_size, 2)
    if min(e.shape[2:]) < kernel_size // 2 * 2 + weight.shape[-1] - 1:  # the strips of two sides would overlap
        ones = e.new_ones((e.shape[0], 1, *e.shape[2:]))
        whole, weight = torch.cat((sharp, sharpen(ones, n, kernel_size, 2)), 1), torch.cat((weight, shift), 1)
        return F.conv2d(whole, weight, bias, padding=weight.shape[-1] // 2)
    inside = shift.sum((1, 2, 3))
    out: Tensor = framed_conv(sharp, n, weight, shift, inside if bias is None else bias + inside, kernel_size)
    return out


def sharpen(z: Tensor, kernels: Tensor, kernel_size: int, gain: int) -> Tensor:
    """``gain * z`` minus the reassembled z, as one reassembly, without another pass over z."""
    centre = torch.zeros(kernel_size**2, 1, 1, dtype=kernels.dtype, device=kernels.device)
    centre[kernel_size // 2 * (kernel_size + 1)] = gain
    return reassemble(z, centre - kernels, kernel_size, 1)


@operator("framed_conv")
def framed_conv(sharp: Tensor, n: Tensor, weight: Tensor, shift: Tensor, bias: Tensor, kernel_size: int) -> Tensor:
    """``conv(sharp, weight) + conv(s, shift)``, where ``bias`` includes the second term for s = 1."""
    out = F.conv2d(sharp, weight, bias, padding=weight.shape[-1] // 2)
    if _frames_natively(out, n, shift):
        native.frame(out, n, shift, kernel_size)
        return out
    for side in _SIDES:
        s, _ = _ones(n, kernel_size, weight.shape[-1] // 2, side)
        strip = F.conv2d(s, shift.to(s.dtype), padding=weight.shape[-1] // 2) - shift.sum((1, 2, 3))[:, None, None]
        _outer(out, kernel_size, weight.shape[-1], side).add_(_outer(strip, kernel_size, weight.shape[-1], side))
    return out


@operator("framed_conv_backward")
def framed_conv_backward(
    grad: Tensor, sharp: Tensor, n: Tensor, weight: Tensor, shift: Tensor, kernel_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of all maps and weights of :func:`framed_conv`."""
    radius, size = weight.shape[-1] // 2, weight.shape[-1]
    to_sharp, to_weight, to_bias = _convolution_backward(grad, sharp, weight, True)
    to_sharp, to_weight = with_strides_of(sharp, to_sharp), with_strides_of(weight, to_weight)
    if _frames_natively(grad, n, shift):
        to_n, to_shift = native.frame_backward(grad, n, shift, kernel_size)
        return to_sharp, to_n, to_weight, to_shift, to_bias
    to_n, to_shift = torch.zeros_like(n), torch.zeros_like(shift)
    for side in _SIDES:
        s, ones = _ones(n, kernel_size, radius, side)
        upstream = grad.new_zeros((grad.shape[0], grad.shape[1], *s.shape[2:])).to(s.dtype)
        outer = _outer(upstream, kernel_size, size, side)
        outer.copy_(_outer(grad, kernel_size, size, side))
        to_s, part, _ = _convolution_backward(upstream, s, shift.to(s.dtype), False)
        to_shift += part - outer.sum((0, 2, 3))[:, None, None, None]
        beyond = torch.zeros_like(ones)
        _end(beyond, s.shape[_axis(side)], side).copy_(to_s)
        _end(to_n, ones.shape[_axis(side)], side).sub_(similarity(beyond, ones, kernel_size, 1))
    return to_sharp, to_n, to_weight, to_shift, to_bias


def _frames_natively(*maps: Tensor) -> bool:
    return choose_backend(maps[0], 1, 1) == "native" and native.can_frame(*maps)


_SIDES = ("top", "bottom", "left", "right")


def _axis(side: str) -> int:
    return 2 if side in ("top", "bottom") else 3


def _end(z: Tensor, length: int, side: str) -> Tensor:
    """The outer ``length`` rows or columns."""
    start = 0 if side in ("top", "left") else z.shape[_axis(side)] - length
    return z.narrow(_axis(side), start, length)


def _outer(z: Tensor, kernel_size: int, size: int, side: str) -> Tensor:
    """The part at a side of the output, or of its strip, that is corrected: the corners belong to the rows."""
    length = kernel_size // 2 + size // 2
    part = _end(z, length, side)
    return part if _axis(side) == 2 else part.narrow(2, length, z.shape[2] - 2 * length)


def _ones(n: Tensor, kernel_size: int, radius: int, side: str) -> tuple[Tensor, Tensor]:
    """s near a side, as far as the outer rows of its convolution read, and the map of ones that it is computed from."""
    length = kernel_size // 2 + 2 * radius
    near = _end(n, length + kernel_size // 2, side)
    ones = near.new_ones((near.shape[0], 1, *near.shape[2:]))
    return _end(sharpen(ones, near, kernel_size, 2), length, side), ones


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, bias: bool) -> tuple[Any, ...]:
    pad, dtype = [weight.shape[-1] // 2] * 2, grad.dtype  # of the convolution, chosen by autocast
    gradients = torch.ops.aten.convolution_backward(
        grad, x.to(dtype), weight.to(dtype), [len(weight)], [1, 1], pad, [1, 1], False, [0, 0], 1, [True, True, bias]
    )
    return tuple(g if g is None else g.to(t.dtype) for g, t in zip(gradients, (x, weight, weight), strict=True))


@shapes_of("framed_conv")
def _(sharp: Tensor, n: Tensor, weight: Tensor, shift: Tensor, bias: Tensor, kernel_size: int) -> Tensor:
    return F.conv2d(sharp, weight, bias, padding=weight.shape[-1] // 2)


@shapes_of("framed_conv_backward")
def _(
    grad: Tensor, sharp: Tensor, n: Tensor, weight: Tensor, shift: Tensor, kernel_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (torch.empty_like(t) for t in (sharp, n, weight, shift))
    to_sharp, to_n, to_weight, to_shift = like
    return to_sharp, to_n, to_weight, to_shift, weight.new_empty(len(weight))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, ctx.kernel_size = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    sharp, n, weight, shift = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return *framed_conv_backward(grad, sharp, n, weight, shift, ctx.kernel_size), None
    # For second derivatives: the same without the frame, in operators that can be differentiated again.
    bias = weight.new_zeros(len(weight)).requires_grad_()
    ones = sharp.new_ones((sharp.shape[0], 1, *sharp.shape[2:]))
    pad = weight.shape[-1] // 2
    at_border = sharpen(ones, n, ctx.kernel_size, 2) - ones
    out = F.conv2d(sharp, weight, bias, padding=pad) + F.conv2d(at_border, shift, padding=pad)
    # s = 1 is part of the bias, except near the border, where the convolution reads zeros.
    out = out + F.conv2d(ones, shift, padding=pad) - shift.sum((1, 2, 3))[:, None, None]
    inputs = (sharp, n, weight, shift, bias)
    needed = [t for t in inputs if t.requires_grad]
    gradients = dict(zip(map(id, needed), torch.autograd.grad(out, needed, grad, create_graph=True), strict=True))
    return *(gradients.get(id(t)) for t in inputs), None


gradients_of("framed_conv", _backward, _keep)
