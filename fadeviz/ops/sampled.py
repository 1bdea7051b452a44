"""Attention to points between the pixels of a map: logits from sampled keys, weighted sums of sampled values.

Every high-resolution pixel looks at P points of a low-resolution map, each read bilinearly and as 0 outside. The
channels fall into G contiguous groups, whose points differ, and into N contiguous heads, whose kernels differ. The maps
are ``torch.library`` operators as the reassembly family is: opaque to torch.compile and torch.export.

Points are ``(B, G*P*2, s*h, s*w)``, channel ``(g*P + m)*2 + d``: d 0 vertical, 1 horizontal, in high-resolution pixels
relative to the pixel that looks. The corner pixels of both grids coincide. Kernels and logits are ``(B, N*P, s*h,
s*w)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import FadevizError
from .backends import native, tiles
from .torch_ops import _gradients_of, _operator, _shapes_of, choose_backend, laid_out_like

_CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
"""Working memory for sampled values: all points of a small map at once, one at a time of a large one. On a CPU a core's
share of the cache; on a GPU a small map costs its launches, not its bytes."""


def neighbour_points(learned: Tensor, groups: int, reach: float) -> Tensor:
    """Points ``reach * tanh(learned)`` around the pixels of a regular square: the ``(B, G*P*2, H, W)`` of above.

    Args:
        learned: ``(B*G, P*2, H, W)``, P a square.
        groups: G.
        reach: in high-resolution pixels.
    """
    if learned.device.type == "cpu":
        out: Tensor = points_of(learned, groups, reach)
        return out
    return _points(learned, groups, reach)  # nothing to gain from an operator: its gradient costs no more


@_operator("pixel_norm")
def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the channels of every pixel, ``(B, C, H, W)``; on a CPU fast for few channels."""
    x = x.contiguous(memory_format=torch.channels_last)
    if choose_backend(x, 1, 1) == "native" and native.can_normalize(x):
        return native.pixel_norm(x, weight, bias, eps)
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], weight, bias, eps).permute(0, 3, 1, 2)


@_operator("pixel_norm_backward")
def pixel_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias of :func:`pixel_norm`."""
    x = x.contiguous(memory_format=torch.channels_last)
    if choose_backend(x, 1, 1) == "native" and native.can_normalize(x):
        return native.pixel_norm_backward(grad, x, weight, eps)
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


@_operator("neighbour_points")
def points_of(learned: Tensor, groups: int, reach: float) -> Tensor:
    """:func:`neighbour_points` on a CPU."""
    if _is_native(learned):
        return native.points(learned, groups, reach, _empty(learned, _shape_of_points(learned, groups)))
    return _points(learned, groups, reach).contiguous(memory_format=_format(learned))


@_operator("neighbour_points_backward")
def points_of_backward(grad: Tensor, points: Tensor, groups: int, reach: float) -> Tensor:
    """The gradient of ``learned`` from the points and their gradient."""
    out = _empty(points, _shape_of_learned(points, groups))
    grad, points = _dense(grad), _dense(points)
    if _is_native(grad, points):
        return native.points_backward(grad, points, groups, reach, out)
    bent = points.reshape(out.shape) - _regular(out)
    slope = reach - bent.square_() / reach if reach else torch.zeros_like(bent)
    return out.copy_(grad.reshape(out.shape) * slope)


@_operator("convolved_points")
def convolved_points(hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, reach: float) -> Tensor:
    """:func:`neighbour_points` of ``conv2d(hidden, weight, bias)``, zero-padded, on a CPU."""
    if _convolves_natively(hidden, weight):
        out = _empty(hidden, (len(hidden) // groups, groups * len(weight), *hidden.shape[2:]))
        return native.points_conv(hidden, weight, bias, groups, reach, out)
    learned = F.conv2d(hidden, weight, bias, padding=weight.shape[-1] // 2)
    return _points(learned, groups, reach).contiguous(memory_format=_format(hidden))


@_operator("convolved_points_backward")
def convolved_points_backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, points: Tensor, groups: int, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden, weight and bias of :func:`convolved_points`."""
    if _convolves_natively(hidden, weight) and points.is_contiguous(memory_format=torch.channels_last):
        return native.points_conv_backward(grad, hidden, weight, points, groups, reach)
    to_learned, pad = points_of_backward(grad, points, groups, reach), [weight.shape[-1] // 2] * 2
    to_hidden, to_weight, to_bias = torch.ops.aten.convolution_backward(
        to_learned, hidden, weight, [len(weight)], [1, 1], pad, [1, 1], False, [0, 0], 1, [True] * 3
    )
    return laid_out_like(to_hidden, hidden), laid_out_like(to_weight, weight), to_bias


@_operator("group_conv")
def group_conv(query: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A depth-wise 3x3 convolution that the groups share, ``(B, G*C, H, W)`` to ``(B*G, C, H, W)`` in channels-last."""
    if _convolves_groups_natively(query, weight):
        return native.group_conv(query, weight, groups)
    folded = query.reshape(-1, len(weight), *query.shape[2:])
    out = F.conv2d(folded, weight, padding=1, groups=len(weight))
    return out.contiguous(memory_format=torch.channels_last)


@_operator("group_conv_backward")
def group_conv_backward(grad: Tensor, query: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The gradients of query and weight of :func:`group_conv`."""
    if _convolves_groups_natively(query, weight):
        to_query, to_weight = native.group_conv_backward(grad, query, weight, groups)
    else:
        folded = query.reshape(-1, len(weight), *query.shape[2:])
        to_folded, to_weight, _ = torch.ops.aten.convolution_backward(
            grad, folded, weight, [0], [1, 1], [1, 1], [1, 1], False, [0, 0], len(weight), [True, True, False]
        )
        to_query = to_folded.reshape(query.shape)
    return laid_out_like(to_query, query), laid_out_like(to_weight, weight)


def _convolves_groups_natively(query: Tensor, weight: Tensor) -> bool:
    return choose_backend(query, 1, 1) == "native" and native.can_convolve_groups(query, weight)


def _convolves_natively(hidden: Tensor, weight: Tensor) -> bool:
    return choose_backend(hidden, 1, 1) == "native" and native.can_convolve(hidden, weight)


def _format(like: Tensor) -> torch.memory_format:
    last = not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _format_of_gradient(x: Tensor) -> torch.memory_format:
    return _format(x) if x.device.type == "cpu" else torch.contiguous_format  # as torch's own sampling on a GPU


def _empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Memory in the format of ``like``."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=_format(like))


def _shape_of_points(learned: Tensor, groups: int) -> tuple[int, ...]:
    return learned.shape[0] // groups, groups * learned.shape[1], *learned.shape[2:]


def _shape_of_learned(points: Tensor, groups: int) -> tuple[int, ...]:
    return points.shape[0] * groups, points.shape[1] // groups, *points.shape[2:]


def _shape_of_logits(query: Tensor, points: Tensor, groups: int, heads: int) -> tuple[int, ...]:
    return query.shape[0], points.shape[1] // (2 * groups) * heads, *points.shape[2:]


@_operator("sampled_sums")
def sampled_sums(x: Tensor, points: Tensor, kernels: Tensor, groups: int, heads: int) -> Tensor:
    """``y[b, c] = sum over m of kernels[b, head of c, m] * (x[b, c] at point m of the group of c)``.

    x ``(B, C, h, w)``, kernels ``(B, N*P, s*h, s*w)`` -> ``(B, C, s*h, s*w)`` in x's dtype and memory format.
    """
    points = _dense(points)
    if _is_native(x, points, kernels):
        out = _empty(x, (*x.shape[:2], *points.shape[2:]))
        return native.sampled_sums(x, points, kernels, None, groups, heads, out)
    with tiles.own_precision(x.device.type):
        return _Points(x, points, groups, heads).sums(kernels)


@_operator("sampled_logits")
def sampled_logits(query: Tensor, key: Tensor, points: Tensor, bias: Tensor | None, groups: int, heads: int) -> Tensor:
    """``logits[b, n, m] = sum over d of head n of query[b, d] * ((key[b, d] at point m) + bias[n, m, d])``.

    query ``(B, D, s*h, s*w)``, key ``(B, D, h, w)``, bias ``(N, P, D/N)`` -> ``(B, N*P, s*h, s*w)`` in the query's
    memory format, in float32 or better.
    """
    points = _dense(points)
    if _is_native(query, key, points, bias):
        dtype = torch.promote_types(key.dtype, points.dtype)
        out = _empty(query, _shape_of_logits(query, points, groups, heads), dtype)
        return native.sampled_logits(query, key, points, bias, groups, heads, out)
    with tiles.own_precision(key.device.type):
        return _Points(key, points, groups, heads).logits(query, bias)


@_operator("sampled_gradients")
def sampled_gradients(
    y: Tensor,
    x: Tensor,
    points: Tensor,
    kernels: Tensor,
    bias: Tensor | None,
    groups: int,
    heads: int,
    of_logits: bool,
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``sum(y * sampled_sums(x, points, kernels))``.

    This sum is also ``sum(kernels * sampled_logits(y, x, points))``. Of x, of the points, and of the kernels or, with
    ``of_logits``, of y, where ``bias`` then counts. Those that are not needed are empty.
    """
    points = _dense(points)
    if _is_native(y, x, points, kernels, bias):
        to_points = _empty(points, points.shape) if need[1] else None
        like = y if of_logits else kernels
        third = _empty(like, like.shape) if need[2] else None
        to_kernels = None if of_logits else third
        to_x = torch.empty_like(x, memory_format=_format_of_gradient(x)) if need[0] else None
        to_y = third if of_logits else None
        if to_x is not None and (to_points is not None or to_kernels is not None):
            native.sampled_slopes(y, x, points, kernels, groups, heads, to_points, to_kernels, to_x, to_y, bias)
        else:
            if to_points is not None or to_kernels is not None:
                native.sampled_slopes(y, x, points, kernels, groups, heads, to_points, to_kernels)
            if to_x is not None:
                native.sampled_spread(y, points, kernels, groups, heads, to_x)
            if to_y is not None:
                native.sampled_sums(x, points, kernels, bias, groups, heads, to_y)
        return (
            x.new_empty(0) if to_x is None else to_x,
            points.new_empty(0) if to_points is None else to_points,
            like.new_empty(0) if third is None else third,
        )
    with tiles.own_precision(x.device.type):
        at = _Points(x, points, groups, heads)
        to_x, to_points = at.gradients(y, kernels, need[0], need[1])
        third = (y if of_logits else kernels).new_empty(0)
        if need[2]:
            third = at.sums(kernels, bias, y) if of_logits else at.logits(y, None, kernels)
        return to_x, to_points, third


def _dense(points: Tensor) -> Tensor:
    return points if points.is_contiguous(memory_format=torch.channels_last) else points.contiguous()


def _is_native(x: Tensor, *rest: Tensor | None) -> bool:
    return choose_backend(x, 1, 1) == "native" and native.samples(x, *rest)


class _Points:
    """A map folded into its groups and the sampling grids of the points, in torch's own operators."""

    def __init__(self, x: Tensor, points: Tensor, groups: int, heads: int) -> None:
        b, c, h, w = x.shape
        self.x, self.points, self.groups, self.heads = x, points, groups, heads
        self.count = points.shape[1] // (2 * groups)
        self.height, self.width = points.shape[2:]
        self.dtype = torch.promote_types(x.dtype, points.dtype)
        self.maps = x.to(self.dtype).reshape(b * groups, c // groups, h, w)
        # grid_sample's coordinates: -1 and 1 are the corner pixels.
        self.pitch = 2 / max(self.height - 1, 1), 2 / max(self.width - 1, 1)
        rows, columns = (torch.linspace(-1, 1, n, dtype=self.dtype, device=x.device) for n in points.shape[2:])
        self.regular = rows[:, None], columns
        self.of_sampled = (b, heads, c // heads, -1, self.height, self.width)
        one = b * c * self.height * self.width * self.maps.element_size()
        step = (self.count if one * self.count <= _CHUNK_BYTES.get(x.device.type, 0) else 1) or 1
        self.whole: Tensor | None = None  # the grid of all points, where they are one chunk
        self.chunks = [slice(m, m + step) for m in range(0, self.count, step)]

    def grid(self, chunk: slice) -> Tensor:
        """``(B*G, points of the chunk * height, width, 2)``."""
        if self.whole is not None:
            return self.whole
        offsets = self.points.unflatten(1, (self.groups, self.count, 2))[:, :, chunk]
        grid = self.points.new_empty((*offsets.shape[:3], self.height, self.width, 2), dtype=self.dtype)
        for d in (0, 1):
            torch.add(self.regular[d], offsets[:, :, :, d], alpha=self.pitch[d], out=grid[..., 1 - d])
        grid = grid.view(len(self.maps), -1, self.width, 2)
        if len(self.chunks) == 1:
            self.whole = grid
        return grid

    def sample(self, grid: Tensor) -> Tensor:
        """``(B, N, C/N, points of the chunk, height, width)``."""
        sampled: Tensor = torch.ops.aten.grid_sampler_2d(self.maps, grid, *_BILINEAR_ZEROS_CORNERS)
        return sampled.view(self.of_sampled)

    def split(self, kernels: Tensor) -> Tensor:
        """Kernels to be multiplied with what :meth:`sample` gives: ``(B, N, 1, P, height, width)``."""
        return self.planes(kernels).unflatten(1, (self.heads, 1, self.count))

    def beside(self, y: Tensor) -> Tensor:
        """A map to be multiplied with what :meth:`sample` gives: ``(B, N, C/N, 1, height, width)``."""
        return self.planes(y).unflatten(1, (self.heads, -1)).unsqueeze(3)

    def planes(self, maps: Tensor) -> Tensor:
        # Read many times on a CPU, and then best as what is sampled lies; on a GPU one launch more would cost more.
        maps = maps.to(self.dtype)
        return maps.contiguous() if maps.device.type == "cpu" else maps

    def sampled(self, chunk: slice, bias: Tensor | None) -> Tensor:
        values = self.sample(self.grid(chunk))
        return values if bias is None else values.add_(bias[:, chunk].transpose(1, 2)[..., None, None])

    def sums(self, kernels: Tensor, bias: Tensor | None = None, like: Tensor | None = None) -> Tensor:
        like = self.x if like is None else like
        out = _empty(like, (*like.shape[:2], self.height, self.width), self.dtype)
        split, into = self.split(kernels), out.unflatten(1, (self.heads, -1))
        for chunk in self.chunks:
            weighted = self.sampled(chunk, bias).mul_(split[:, :, :, chunk])
            if chunk.start:
                into += weighted.sum(3)
            else:
                torch.sum(weighted, 3, out=into)
        return out.to(like.dtype)

    def logits(self, query: Tensor, bias: Tensor | None, like: Tensor | None = None) -> Tensor:
        dtype = self.dtype if like is None else like.dtype
        shape = _shape_of_logits(query, self.points, self.groups, self.heads)
        out = _empty(query if like is None else like, shape, self.dtype)
        beside, into = self.beside(query), out.unflatten(1, (self.heads, self.count))
        for chunk in self.chunks:
            torch.sum(self.sampled(chunk, bias).mul_(beside), 2, out=into[:, :, chunk])
        return out.to(dtype)

    def gradients(self, y: Tensor, kernels: Tensor, need_x: bool, need_points: bool) -> tuple[Tensor, Tensor]:
        to_maps = None
        to_points = _empty(self.points, self.points.shape) if need_points else self.points.new_empty(0)
        split, beside = self.split(kernels), self.beside(y)
        for chunk in self.chunks if need_x or need_points else ():
            grid = self.grid(chunk)
            upstream = grid.new_empty((*self.maps.shape[:2], *grid.shape[1:3]))
            torch.mul(beside, split[:, :, :, chunk], out=upstream.view(self.of_sampled))
            part, to_grid = torch.ops.aten.grid_sampler_2d_backward(
                upstream, self.maps, grid, *_BILINEAR_ZEROS_CORNERS, [need_x, need_points]
            )
            if need_x:
                to_maps = part if to_maps is None else to_maps.add_(part)
            if need_points:
                into = to_points.unflatten(1, (self.groups, self.count, 2))[:, :, chunk]
                per_point = to_grid.view(*into.shape[:3], self.height, self.width, 2)
                for d in (0, 1):
                    torch.mul(per_point[..., 1 - d], self.pitch[d], out=into[:, :, :, d])
        if to_maps is None:
            return self.x.new_empty(0), to_points
        to_x = to_maps.view(self.x.shape).to(self.x.dtype)
        return to_x.contiguous(memory_format=_format_of_gradient(self.x)), to_points


_BILINEAR_ZEROS_CORNERS = (0, 0, True)


@_shapes_of("pixel_norm")
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@_shapes_of("pixel_norm_backward")
def _(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(weight), torch.empty_like(weight)


@_shapes_of("neighbour_points")
def _(learned: Tensor, groups: int, reach: float) -> Tensor:
    return _empty(learned, _shape_of_points(learned, groups))


@_shapes_of("neighbour_points_backward")
def _(grad: Tensor, points: Tensor, groups: int, reach: float) -> Tensor:
    return _empty(points, _shape_of_learned(points, groups))


@_shapes_of("group_conv")
def _(query: Tensor, weight: Tensor, groups: int) -> Tensor:
    shape = (query.shape[0] * groups, weight.shape[0], *query.shape[2:])
    return torch.empty(shape, dtype=query.dtype, device=query.device, memory_format=torch.channels_last)


@_shapes_of("group_conv_backward")
def _(grad: Tensor, query: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(weight)


@_shapes_of("convolved_points")
def _(hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, reach: float) -> Tensor:
    return _empty(hidden, (hidden.shape[0] // groups, groups * weight.shape[0], *hidden.shape[2:]))


@_shapes_of("convolved_points_backward")
def _(
    grad: Tensor, hidden: Tensor, weight: Tensor, points: Tensor, groups: int, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight), weight.new_empty(len(weight))


@_shapes_of("sampled_sums")
def _(x: Tensor, points: Tensor, kernels: Tensor, groups: int, heads: int) -> Tensor:
    return _empty(x, (*x.shape[:2], *points.shape[2:]))


@_shapes_of("sampled_logits")
def _(query: Tensor, key: Tensor, points: Tensor, bias: Tensor | None, groups: int, heads: int) -> Tensor:
    return _empty(query, _shape_of_logits(query, points, groups, heads), torch.promote_types(key.dtype, points.dtype))


@_shapes_of("sampled_gradients")
def _(
    y: Tensor,
    x: Tensor,
    points: Tensor,
    kernels: Tensor,
    bias: Tensor | None,
    groups: int,
    heads: int,
    of_logits: bool,
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    third = y if of_logits else kernels
    return (
        torch.empty_like(x, memory_format=_format_of_gradient(x)) if need[0] else x.new_empty(0),
        _empty(points, points.shape) if need[1] else points.new_empty(0),
        _empty(third, third.shape) if need[2] else third.new_empty(0),
    )


def _keep_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _backward_norm(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *pixel_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None


_gradients_of("pixel_norm", _backward_norm, _keep_norm)


def _keep_points(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.groups, ctx.reach = inputs
    ctx.save_for_backward(output)


def _backward_points(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return points_of_backward(grad, *ctx.saved_tensors, ctx.groups, ctx.reach), None, None


_gradients_of("neighbour_points", _backward_points, _keep_points)


def _keep_group_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, weight, ctx.groups = inputs
    ctx.save_for_backward(query, weight)


def _backward_group_conv(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *group_conv_backward(grad, *ctx.saved_tensors, ctx.groups), None


_gradients_of("group_conv", _backward_group_conv, _keep_group_conv)


def _keep_convolved(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, weight, _, ctx.groups, ctx.reach = inputs
    ctx.save_for_backward(hidden, weight, output)


def _backward_convolved(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *convolved_points_backward(grad, *ctx.saved_tensors, ctx.groups, ctx.reach), None, None


_gradients_of("convolved_points", _backward_convolved, _keep_convolved)


def _keep_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, points, kernels, ctx.groups, ctx.heads = inputs
    ctx.save_for_backward(x, points, kernels)


def _backward_sums(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, points, kernels = ctx.saved_tensors
    need = list(ctx.needs_input_grad[:3])
    grads = sampled_gradients(grad, x, points, kernels, None, ctx.groups, ctx.heads, False, need)
    return *(g if wanted else None for g, wanted in zip(grads, need, strict=True)), None, None


_gradients_of("sampled_sums", _backward_sums, _keep_sums)


def _keep_logits(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, points, bias, ctx.groups, ctx.heads = inputs
    ctx.save_for_backward(query, key, points, bias)


def _backward_logits(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key, points, bias = ctx.saved_tensors
    need_query, need_key, need_points, need_bias = ctx.needs_input_grad[:4]
    need = [need_key, need_points, need_query]
    grads = sampled_gradients(query, key, points, grad, bias, ctx.groups, ctx.heads, True, need)
    to_key, to_points, to_query = (g if wanted else None for g, wanted in zip(grads, need, strict=True))
    to_bias = None
    if need_bias:
        heads, count, _ = bias.shape
        of_heads = grad.unflatten(1, (heads, count)), query.to(grad.dtype).unflatten(1, (heads, -1))
        to_bias = torch.einsum("bnmij,bndij->nmd", *of_heads).to(bias.dtype)
    return to_query, to_key, to_points, to_bias, None, None


_gradients_of("sampled_logits", _backward_logits, _keep_logits)


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    pass


def _no_second_order(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    raise FadevizError("LDA-AQU has first derivatives only. Use create_graph=False, or another operator")


_gradients_of("pixel_norm_backward", _no_second_order, _keep_nothing)
_gradients_of("neighbour_points_backward", _no_second_order, _keep_nothing)
_gradients_of("group_conv_backward", _no_second_order, _keep_nothing)
_gradients_of("convolved_points_backward", _no_second_order, _keep_nothing)
_gradients_of("sampled_gradients", _no_second_order, _keep_nothing)
