"""Attention to points between the pixels of a map: logits from sampled keys, weighted sums of sampled values.

Every high-resolution pixel samples P points of a low-resolution map, bilinearly and as 0 outside. The channels form G
contiguous groups, whose points differ, and N contiguous heads, whose kernels differ. These are ``torch.library``
operators, as the reassembly family is: opaque to torch.compile and torch.export.

Points are ``(B, G*P*2, s*h, s*w)``, channel ``(g*P + m)*2 + d``: d 0 vertical, 1 horizontal, in high-resolution pixels
relative to the sampling pixel. The corner pixels of both grids coincide. Kernels and logits are ``(B, N*P, s*h,
s*w)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backends import native_sampled, tiles
from .backends.native_sampled import SampledGradients
from .backends.sampler import Points, Sampler, format_of_gradient
from .library import gradients_of, operator, shapes_of
from .memory_format import empty
from .query_points import dense, is_native, keep_nothing, no_second_order


def _shape_of_logits(query: Tensor, points: Tensor, groups: int, heads: int) -> tuple[int, ...]:
    return query.shape[0], points.shape[1] // (2 * groups) * heads, *points.shape[2:]


@operator("sampled_sums")
def sampled_sums(x: Tensor, points: Tensor, kernels: Tensor, groups: int, heads: int) -> Tensor:
    """``y[b, c] = sum over m of kernels[b, head of c, m] * (x[b, c] at point m of the group of c)``.

    x ``(B, C, h, w)``, kernels ``(B, N*P, s*h, s*w)`` -> ``(B, C, s*h, s*w)`` in x's dtype and memory format.
    """
    at = Points(dense(points), groups, heads)
    if is_native(x, at.offsets, kernels):
        return native_sampled.sampled_sums(x, at, kernels, None, empty(x, (*x.shape[:2], *points.shape[2:])))
    with tiles.own_precision(x.device.type):
        return Sampler(x, at).sums(kernels)


@operator("sampled_logits")
def sampled_logits(query: Tensor, key: Tensor, points: Tensor, bias: Tensor | None, groups: int, heads: int) -> Tensor:
    """``logits[b, n, m] = sum over d of head n of query[b, d] * ((key[b, d] at point m) + bias[n, m, d])``.

    query ``(B, D, s*h, s*w)``, key ``(B, D, h, w)``, bias ``(N, P, D/N)`` -> ``(B, N*P, s*h, s*w)`` in the query's
    memory format, in float32 or better.
    """
    at = Points(dense(points), groups, heads)
    if is_native(query, key, at.offsets, bias):
        dtype = torch.promote_types(key.dtype, points.dtype)
        out = empty(query, _shape_of_logits(query, points, groups, heads), dtype)
        return native_sampled.sampled_logits(query, key, at, bias, out)
    with tiles.own_precision(key.device.type):
        return Sampler(key, at).logits(query, bias)


@operator("sampled_gradients")
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

    This sum is also ``sum(kernels * sampled_logits(y, x, points))``. The gradients are those of x, of the points, and
    of the kernels or, with ``of_logits``, of y, in which case ``bias`` counts. Those that are not needed are empty.
    """
    at = Points(dense(points), groups, heads)
    third = y if of_logits else kernels
    if is_native(y, x, at.offsets, kernels, bias):
        return _native_gradients(y, x, at, kernels, bias, of_logits, need)
    with tiles.own_precision(x.device.type):
        sampler = Sampler(x, at)
        to_x, to_points = sampler.gradients(y, kernels, need[0], need[1])
        if not need[2]:
            return to_x, to_points, third.new_empty(0)
        return to_x, to_points, sampler.sums(kernels, bias, y) if of_logits else sampler.logits(y, None, kernels)


def _native_gradients(
    y: Tensor, x: Tensor, at: Points, kernels: Tensor, bias: Tensor | None, of_logits: bool, need: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    third = y if of_logits else kernels
    to_x = torch.empty_like(x, memory_format=format_of_gradient(x)) if need[0] else None
    to_points = empty(at.offsets, at.offsets.shape) if need[1] else None
    to_third = empty(third, third.shape) if need[2] else None
    to_y, to_kernels = (to_third, None) if of_logits else (None, to_third)
    slopes = to_points is not None or to_kernels is not None
    if slopes and to_x is not None:  # all in one pass
        native_sampled.sampled_gradients(y, x, at, kernels, SampledGradients(to_points, to_kernels, to_x, to_y), bias)
    else:
        if slopes:
            native_sampled.sampled_gradients(y, x, at, kernels, SampledGradients(to_points, to_kernels))
        if to_x is not None:
            native_sampled.sampled_spread(y, at, kernels, to_x)
        if to_y is not None:
            native_sampled.sampled_sums(x, at, kernels, bias, to_y)
    return (
        x.new_empty(0) if to_x is None else to_x,
        at.offsets.new_empty(0) if to_points is None else to_points,
        third.new_empty(0) if to_third is None else to_third,
    )


@shapes_of("sampled_sums")
def _(x: Tensor, points: Tensor, kernels: Tensor, groups: int, heads: int) -> Tensor:
    return empty(x, (*x.shape[:2], *points.shape[2:]))


@shapes_of("sampled_logits")
def _(query: Tensor, key: Tensor, points: Tensor, bias: Tensor | None, groups: int, heads: int) -> Tensor:
    return empty(query, _shape_of_logits(query, points, groups, heads), torch.promote_types(key.dtype, points.dtype))


@shapes_of("sampled_gradients")
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
        torch.empty_like(x, memory_format=format_of_gradient(x)) if need[0] else x.new_empty(0),
        empty(points, points.shape) if need[1] else points.new_empty(0),
        empty(third, third.shape) if need[2] else third.new_empty(0),
    )


def _keep_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, points, kernels, ctx.groups, ctx.heads = inputs
    ctx.save_for_backward(x, points, kernels)


def _backward_sums(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, points, kernels = ctx.saved_tensors
    need = list(ctx.needs_input_grad[:3])
    grads = sampled_gradients(grad, x, points, kernels, None, ctx.groups, ctx.heads, False, need)
    return *(g if needed else None for g, needed in zip(grads, need, strict=True)), None, None


gradients_of("sampled_sums", _backward_sums, _keep_sums)


def _keep_logits(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, points, bias, ctx.groups, ctx.heads = inputs
    ctx.save_for_backward(query, key, points, bias)


def _backward_logits(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key, points, bias = ctx.saved_tensors
    need_query, need_key, need_points, need_bias = ctx.needs_input_grad[:4]
    need = [need_key, need_points, need_query]
    grads = sampled_gradients(query, key, points, grad, bias, ctx.groups, ctx.heads, True, need)
    to_key, to_points, to_query = (g if needed else None for g, needed in zip(grads, need, strict=True))
    to_bias = None
    if need_bias:
        heads, count, _ = bias.shape
        of_heads = grad.unflatten(1, (heads, count)), query.to(grad.dtype).unflatten(1, (heads, -1))
        to_bias = torch.einsum("bnmij,bndij->nmd", *of_heads).to(bias.dtype)
    return to_query, to_key, to_points, to_bias, None, None


gradients_of("sampled_logits", _backward_logits, _keep_logits)


gradients_of("sampled_gradients", no_second_order, keep_nothing)
