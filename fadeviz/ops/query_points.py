"""The points that an attention samples: their operators, and fast layers of few channels that predict them.

``torch.library`` operators, as the reassembly family is: opaque to torch.compile and torch.export. Torch's own layers
are slow on a CPU where a map has few channels; on a CPU with a C compiler these run in one pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import FadevizError
from .backends import native_sampled
from .library import gradients_of, operator, shapes_of
from .memory_format import empty, memory_format_of, with_strides_of
from .torch_ops import choose_backend


def neighbour_points(learned: Tensor, groups: int, reach: float) -> Tensor:
    """Points ``reach * tanh(learned)`` around the pixels of a regular square: the ``(B, G*P*2, H, W)`` of above.

    Args:
        learned: ``(B*G, P*2, H, W)``, P a square.
        groups: G.
        reach: the reach in high-resolution pixels.
    """
    if learned.device.type == "cpu":
        out: Tensor = points_of(learned, groups, reach)
        return out
    return _points(learned, groups, reach)  # an operator would gain nothing here


@operator("pixel_norm")
def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the channels of every pixel, ``(B, C, H, W)``; on a CPU fast for few channels."""
    x = x.contiguous(memory_format=torch.channels_last)
    if choose_backend(x, 1, 1) == "native" and native_sampled.can_normalize(x):
        return native_sampled.pixel_norm(x, weight, bias, eps)
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], weight, bias, eps).permute(0, 3, 1, 2)


@operator("pixel_norm_backward")
def pixel_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias of :func:`pixel_norm`."""
    x = x.contiguous(memory_format=torch.channels_last)
    if choose_backend(x, 1, 1) == "native" and native_sampled.can_normalize(x):
        return native_sampled.pixel_norm_backward(grad, x, weight, eps)
    pixels, shape = x.permute(0, 2, 3, 1), x.shape[1:2]
    _, mean, root = torch.ops.aten.native_layer_norm(pixels, shape, weight, None, eps)
    to_x, to_weight, to_bias = torch.ops.aten.native_layer_norm_backward(
        grad.permute(0, 2, 3, 1), pixels, shape, mean, root, weight, weight, [True] * 3
    )
    return to_x.permute(0, 3, 1, 2), to_weight, to_bias


def _points(learned: Tensor, groups: int, reach: float) -> Tensor:
    points = torch.add(_regular(learned), learned.tanh(), alpha=reach)
    return points.reshape(-1, groups * learned.shape[1], *learned.shape[2:])


def _regular(learned: Tensor) -> Tensor:
    k = math.isqrt(learned.shape[1] // 2)
    line = torch.arange(-(k // 2), k - k // 2, dtype=learned.dtype, device=learned.device)
    return torch.stack((line[:, None].expand(k, k), line.expand(k, k)), dim=2).view(-1, 1, 1)


@operator("neighbour_points")
def points_of(learned: Tensor, groups: int, reach: float) -> Tensor:
    """:func:`neighbour_points` on a CPU."""
    if is_native(learned):
        return native_sampled.points(learned, groups, reach, empty(learned, _shape_of_points(learned, groups)))
    return _points(learned, groups, reach).contiguous(memory_format=memory_format_of(learned))


@operator("neighbour_points_backward")
def points_of_backward(grad: Tensor, points: Tensor, groups: int, reach: float) -> Tensor:
    """The gradient of ``learned`` from the points and their gradient."""
    out = empty(points, _shape_of_learned(points, groups))
    grad, points = dense(grad), dense(points)
    if is_native(grad, points):
        return native_sampled.points_backward(grad, points, groups, reach, out)
    bent = points.reshape(out.shape) - _regular(out)
    slope = reach - bent.square_() / reach if reach else torch.zeros_like(bent)
    return out.copy_(grad.reshape(out.shape) * slope)


@operator("convolved_points")
def convolved_points(hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, reach: float) -> Tensor:
    """:func:`neighbour_points` of ``conv2d(hidden, weight, bias)``, zero-padded, on a CPU."""
    if _convolves_natively(hidden, weight):
        out = empty(hidden, (len(hidden) // groups, groups * len(weight), *hidden.shape[2:]))
        return native_sampled.points_conv(hidden, weight, bias, groups, reach, out)
    learned = F.conv2d(hidden, weight, bias, padding=weight.shape[-1] // 2)
    return _points(learned, groups, reach).contiguous(memory_format=memory_format_of(hidden))


@operator("convolved_points_backward")
def convolved_points_backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, points: Tensor, groups: int, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden, weight and bias of :func:`convolved_points`."""
    if _convolves_natively(hidden, weight) and points.is_contiguous(memory_format=torch.channels_last):
        return native_sampled.points_conv_backward(grad, hidden, weight, points, groups, reach)
    to_learned, pad = points_of_backward(grad, points, groups, reach), [weight.shape[-1] // 2] * 2
    to_hidden, to_weight, to_bias = torch.ops.aten.convolution_backward(
        to_learned, hidden, weight, [len(weight)], [1, 1], pad, [1, 1], False, [0, 0], 1, [True] * 3
    )
    return with_strides_of(hidden, to_hidden), with_strides_of(weight, to_weight), to_bias


@operator("group_conv")
def group_conv(query: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A depth-wise 3x3 convolution that the groups share, ``(B, G*C, H, W)`` to ``(B*G, C, H, W)`` in channels-last."""
    if _convolves_groups_natively(query, weight):
        return native_sampled.group_conv(query, weight, groups)
    folded = query.reshape(-1, len(weight), *query.shape[2:])
    out = F.conv2d(folded, weight, padding=1, groups=len(weight))
    return out.contiguous(memory_format=torch.channels_last)


@operator("group_conv_backward")
def group_conv_backward(grad: Tensor, query: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The gradients of query and weight of :func:`group_conv`."""
    if _convolves_groups_natively(query, weight):
        to_query, to_weight = native_sampled.group_conv_backward(grad, query, weight, groups)
    else:
        folded = query.reshape(-1, len(weight), *query.shape[2:])
        to_folded, to_weight, _ = torch.ops.aten.convolution_backward(
            grad, folded, weight, [0], [1, 1], [1, 1], [1, 1], False, [0, 0], len(weight), [True, True, False]
        )
        to_query = to_folded.reshape(query.shape)
    return with_strides_of(query, to_query), with_strides_of(weight, to_weight)


def dense(points: Tensor) -> Tensor:
    """The points, without gaps in memory."""
    return points if points.is_contiguous(memory_format=torch.channels_last) else points.contiguous()


def is_native(x: Tensor, *rest: Tensor | None) -> bool:
    """Whether maps, points and kernels like these are sampled by the native backend."""
    return choose_backend(x, 1, 1) == "native" and native_sampled.can_sample(x, *rest)


def _convolves_groups_natively(query: Tensor, weight: Tensor) -> bool:
    return choose_backend(query, 1, 1) == "native" and native_sampled.can_convolve_groups(query, weight)


def _convolves_natively(hidden: Tensor, weight: Tensor) -> bool:
    return choose_backend(hidden, 1, 1) == "native" and native_sampled.can_convolve(hidden, weight)


def _shape_of_points(learned: Tensor, groups: int) -> tuple[int, ...]:
    return learned.shape[0] // groups, groups * learned.shape[1], *learned.shape[2:]


def _shape_of_learned(points: Tensor, groups: int) -> tuple[int, ...]:
    return points.shape[0] * groups, points.shape[1] // groups, *points.shape[2:]


@shapes_of("pixel_norm")
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@shapes_of("pixel_norm_backward")
def _(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(weight), torch.empty_like(weight)


@shapes_of("neighbour_points")
def _(learned: Tensor, groups: int, reach: float) -> Tensor:
    return empty(learned, _shape_of_points(learned, groups))


@shapes_of("neighbour_points_backward")
def _(grad: Tensor, points: Tensor, groups: int, reach: float) -> Tensor:
    return empty(points, _shape_of_learned(points, groups))


@shapes_of("group_conv")
def _(query: Tensor, weight: Tensor, groups: int) -> Tensor:
    shape = (query.shape[0] * groups, weight.shape[0], *query.shape[2:])
    return torch.empty(shape, dtype=query.dtype, device=query.device, memory_format=torch.channels_last)


@shapes_of("group_conv_backward")
def _(grad: Tensor, query: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(weight)


@shapes_of("convolved_points")
def _(hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, reach: float) -> Tensor:
    return empty(hidden, (hidden.shape[0] // groups, groups * weight.shape[0], *hidden.shape[2:]))


@shapes_of("convolved_points_backward")
def _(
    grad: Tensor, hidden: Tensor, weight: Tensor, points: Tensor, groups: int, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight), weight.new_empty(len(weight))


def _keep_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _backward_norm(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *pixel_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None


gradients_of("pixel_norm", _backward_norm, _keep_norm)


def _keep_points(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.groups, ctx.reach = inputs
    ctx.save_for_backward(output)


def _backward_points(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return points_of_backward(grad, *ctx.saved_tensors, ctx.groups, ctx.reach), None, None


gradients_of("neighbour_points", _backward_points, _keep_points)


def _keep_group_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, weight, ctx.groups = inputs
    ctx.save_for_backward(query, weight)


def _backward_group_conv(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *group_conv_backward(grad, *ctx.saved_tensors, ctx.groups), None


gradients_of("group_conv", _backward_group_conv, _keep_group_conv)


def _keep_convolved(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, weight, _, ctx.groups, ctx.reach = inputs
    ctx.save_for_backward(hidden, weight, output)


def _backward_convolved(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *convolved_points_backward(grad, *ctx.saved_tensors, ctx.groups, ctx.reach), None, None


gradients_of("convolved_points", _backward_convolved, _keep_convolved)


def keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save nothing for the gradients of an operator that has none."""


def no_second_order(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of the operators that compute gradients.

    Raises:
        FadevizError: always.
    """
    raise FadevizError("LDA-AQU has first derivatives only. Use create_graph=False, or another operator")


for _name in ("pixel_norm", "neighbour_points", "group_conv", "convolved_points"):
    gradients_of(f"{_name}_backward", no_second_order, keep_nothing)
