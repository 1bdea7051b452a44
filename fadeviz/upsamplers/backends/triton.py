"""Reassembly and its gradients as Triton kernels, for CUDA devices: one pass over memory each, no atomics.

The three maps of the family are bilinear, and each is the derivative of another: :func:`reassemble`, its adjoint with
respect to x, :func:`spread`, and with respect to the kernels, :func:`similarity`. :func:`fused_forward` is softmax,
reassembly and gate in one kernel, :func:`fused_backward` its gradient in two.

A program owns a segment of one row of low-resolution locations, a block of channels and up to 4 of the s*s sub-pixels
of each location, its "phases": a value of x is loaded once for them all. Nothing is copied or reordered: strides say
where an element is. Sums are taken in float32, in float64 where an input is float64, and in a fixed order: results are
the same, bit for bit, from run to run.

Block sizes follow from shapes by rule. They were chosen by counting bytes, and loads and registers in the machine code,
and never measured: the kernels were compiled for sm_90 and run in Triton's interpreter, not yet on a GPU.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple, no_type_check

import torch
from torch import Tensor

from ...errors import FadevizError

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None
else:
    if tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 3):
        triton = tl = None  # It cannot pass tuples to kernels.

# Without Triton the kernels stay plain functions that nothing calls: `available` says so, a launch what to install.
_jit: Any = (lambda function: function) if triton is None else triton.jit

_WARPS = 4
_THREADS = 32 * _WARPS
_WIDE = 2**31
"""From this many elements on, offsets are 64-bit."""

_BUSY = 4096
"""Programs that fill a GPU many times over: more than these may as well share some of their work."""


class _Map(NamedTuple):
    """A four-dimensional tensor as kernels see it: its first element and the distance to the next along each axis."""

    data: Any
    batch: Any
    channel: Any
    row: Any
    column: Any


# ------------------------------------------------------------------------------------------------------------- kernels
# K, S: kernel_size and scale. P: phases of a program, whole rows of pixels; h is the first of them. T, C: locations and
# channels of a block. TAPS: K * K, up to a power of two. INDEX: type of offsets. ACC: type of sums. LAST: whether
# channels are contiguous in memory, columns being so otherwise; that axis is the last of every block, neighbouring
# threads lie along it. Triton infers types, and a variable has one type and shape in all of a kernel, because a loop
# carries all that it assigns.


@_jit
@no_type_check
def _columns(of, LAST: tl.constexpr):
    """What belongs to locations, as a block that spreads over channels."""
    return of[:, None] if LAST else of[None, :]


@_jit
@no_type_check
def _channels(of, LAST: tl.constexpr):
    """What belongs to channels or taps, as a block that spreads over locations."""
    return of[None, :] if LAST else of[:, None]


@_jit
@no_type_check
def _zeros(T: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr):
    """A block of T locations and C channels or taps."""
    return tl.full([T, C] if LAST else [C, T], 0, ACC)


@_jit
@no_type_check
def _pixel(of, b, i, j):
    """Where channel 0 of pixel (i, j) of image b is; j may be a block."""
    return of.data + b * of.batch + i * of.row + j * of.column


@_jit
@no_type_check
def _inside(i, j, height, width):
    """Which columns j of row i are in the image; the row is folded into the bound, being the same for all."""
    return (j >= 0) & (j < tl.where((i >= 0) & (i < height), width, 0))


@_jit
@no_type_check
def _place(rows, width, groups, blocks, T: tl.constexpr, INDEX: tl.constexpr):
    """This program's image, block of rows, columns, group and block of channels.

    Neighbours in the grid run at the same time: first those that share kernels, then those that share patches of x.
    """
    segments = (width + T - 1) // T
    place = tl.program_id(0)
    block = place % blocks
    group = place // blocks % groups
    segment = place // (blocks * groups) % segments
    row = place // (blocks * groups * segments) % rows
    image = place // (blocks * groups * segments * rows)
    # Axis 1 of the grid has length 1, which only we know. Knowing that columns begin at a multiple of T, Triton would
    # give every thread several neighbouring columns for the sake of the one tap that is aligned, each with its weights.
    columns = tl.cast(segment * T + tl.program_id(1), INDEX) + tl.arange(0, T)
    return tl.cast(image, INDEX), tl.cast(row, INDEX), columns, tl.cast(group, INDEX), tl.cast(block, INDEX)


@_jit
@no_type_check
def _reassemble_kernel(
    x,
    kernels,
    skip,
    gate,
    y,
    lse,
    height,
    width,
    groups,
    channels,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    LAST: tl.constexpr,
    TAPS: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """Reassembly; with ``lse`` the kernels are logits, with ``gate`` the result is mixed with ``skip``."""
    b, h, j, g, block = _place(height * S * S // P, width, groups, (channels + C - 1) // C, T, INDEX)
    h *= P // S
    i = h // S
    c = block * C + tl.arange(0, C)
    j_ok, c_ok = j < width, c < channels
    c += g * channels
    taps = ()
    for p in tl.static_range(P):
        taps += (_pixel(kernels, b, h + p // S, j * S + p % S) + g * (K * K) * kernels.channel,)
    norms = ()
    if lse is not None:
        # All logits once for their norm; below they come from the cache, one tap at a time.
        tap = tl.cast(tl.arange(0, TAPS), INDEX)
        for p in tl.static_range(P):
            known = _channels(tap < K * K, LAST)
            at_taps = _columns(taps[p], LAST) + _channels(tap * kernels.channel, LAST)
            logit = tl.load(at_taps, mask=_columns(j_ok, LAST) & known, other=0).to(ACC)
            logit = tl.where(known, logit, float("-inf"))
            top = tl.max(logit, 1 if LAST else 0)
            norm = top + tl.log(tl.sum(tl.exp(logit - _columns(top, LAST)), 1 if LAST else 0))
            tl.store(_pixel(lse, b, h + p // S, j * S + p % S), norm, mask=j_ok)
        # Read back what was just written: every thread then has the norms of its own columns, and exchanges nothing
        # inside the loop. Programs of other channels write the same numbers.
        tl.debug_barrier()
        for p in tl.static_range(P):
            norms += (tl.load(_pixel(lse, b, h + p // S, j * S + p % S), mask=j_ok, other=0),)
    total = (_zeros(T, C, LAST, ACC),) * P
    for u in range(K):
        row = i + u - K // 2
        for v in tl.static_range(K):
            column = j + v - K // 2
            ok = _columns(_inside(row, column, height, width), LAST) & _channels(c_ok, LAST)
            at = _columns(_pixel(x, b, row, column), LAST) + _channels(c * x.channel, LAST)
            value = tl.load(at, mask=ok, other=0).to(ACC)
            step = tl.cast(u * K + v, INDEX) * kernels.channel
            sums = ()
            for p in tl.static_range(P):
                weight = tl.load(taps[p] + step, mask=j_ok, other=0).to(ACC)
                if lse is not None:
                    weight = tl.exp(weight - norms[p])
                sums += (total[p] + _columns(weight, LAST) * value,)
            total = sums
    shown = _columns(j_ok, LAST) & _channels(c_ok, LAST)
    for p in tl.static_range(P):
        out = total[p]
        if gate is not None:
            mix = tl.load(_pixel(gate, b, h + p // S, j * S + p % S), mask=j_ok, other=0).to(ACC)
            mix = _columns(mix, LAST)
            at_skip = _columns(_pixel(skip, b, h + p // S, j * S + p % S), LAST)
            other = tl.load(at_skip + _channels(c * skip.channel, LAST), mask=shown, other=0).to(ACC)
            # From the nearer end, as torch.lerp: gates of 0 and 1 give one of the two exactly.
            out = tl.where(mix < 0.5, out + mix * (other - out), other - (other - out) * (1 - mix))
        at_y = _columns(_pixel(y, b, h + p // S, j * S + p % S), LAST) + _channels(c * y.channel, LAST)
        tl.store(at_y, out.to(y.data.dtype.element_ty), mask=shown)


@_jit
@no_type_check
def _similarity_kernel(
    query,
    key,
    out,
    logits,
    lse,
    skip,
    gate,
    grad_skip,
    grad_gate,
    height,
    width,
    groups,
    channels,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    V: tl.constexpr,
    LAST: tl.constexpr,
    TAPS: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """Inner products of queries with their windows of keys, C * V channels at a time, V of them in one thread.

    With ``lse`` the query is the gradient of y, and out that of the logits: with D the inner products, p the softmax
    and m the gate, ``(1 - m) * p * (D - sum over taps of p * D)``. That sum is also the inner product of the gradient
    with the reassembled map, which the gate's gradient needs.
    """
    b, h, j, g, _ = _place(height * S * S // P, width, groups, 1, T, INDEX)
    h *= P // S
    i = h // S
    j_ok = j < width
    tap = tl.cast(tl.arange(0, TAPS), INDEX)
    # Blocks are (T, C, V) or, with columns contiguous, (V, C, T).
    lane = tl.cast(_columns(tl.arange(0, C), LAST) * V + _channels(tl.arange(0, V), LAST), INDEX)
    lane = lane[None, :, :] if LAST else lane[:, :, None]
    product = (_zeros(T, TAPS, LAST, ACC),) * P
    for u in range(K):
        row = i + u - K // 2
        partial = (_zeros(T, C, LAST, ACC),) * (K * P)
        for first in range(0, channels, C * V):
            c = g * channels + first + lane
            c_ok = first + lane < channels
            queries = ()
            for p in tl.static_range(P):
                at = _columns(_columns(_pixel(query, b, h + p // S, j * S + p % S), LAST), LAST)
                ok = _columns(_columns(j_ok, LAST), LAST) & c_ok
                queries += (tl.load(at + c * query.channel, mask=ok, other=0).to(ACC),)
            sums = ()
            for v in tl.static_range(K):
                column = j + v - K // 2
                at = _columns(_columns(_pixel(key, b, row, column), LAST), LAST)
                ok = _columns(_columns(_inside(row, column, height, width), LAST), LAST) & c_ok
                value = tl.load(at + c * key.channel, mask=ok, other=0).to(ACC)
                for p in tl.static_range(P):
                    sums += (partial[v * P + p] + tl.sum(queries[p] * value, 2 if LAST else 0),)
            partial = sums
        for v in tl.static_range(K):
            filled = ()
            for p in tl.static_range(P):
                found = _columns(tl.sum(partial[v * P + p], 1 if LAST else 0), LAST)
                filled += (tl.where(_channels(tap == u * K + v, LAST), found, product[p]),)
            product = filled
    known = _columns(j_ok, LAST) & _channels(tap < K * K, LAST)
    for p in tl.static_range(P):
        result = product[p]
        if lse is not None:
            at_taps = _columns(_pixel(logits, b, h + p // S, j * S + p % S), LAST)
            at_taps += _channels(tap * logits.channel, LAST)
            logit = tl.load(at_taps, mask=known, other=float("-inf")).to(ACC)
            norm = tl.load(_pixel(lse, b, h + p // S, j * S + p % S), mask=j_ok, other=0)
            share = tl.exp(logit - _columns(norm, LAST))
            mean = tl.sum(share * result, 1 if LAST else 0)
            result = share * (result - _columns(mean, LAST))
            if gate is not None:
                mix = tl.load(_pixel(gate, b, h + p // S, j * S + p % S), mask=j_ok, other=0).to(ACC)
                result *= _columns(1 - mix, LAST)
                seen = _zeros(T, C, LAST, ACC)
                for first in range(0, channels, C * V):
                    c = first + lane
                    ok = _columns(_columns(j_ok, LAST), LAST) & (c < channels)
                    at = _columns(_columns(_pixel(query, b, h + p // S, j * S + p % S), LAST), LAST)
                    grad = tl.load(at + c * query.channel, mask=ok, other=0).to(ACC)
                    at_skip = _columns(_columns(_pixel(skip, b, h + p // S, j * S + p % S), LAST), LAST)
                    other = tl.load(at_skip + c * skip.channel, mask=ok, other=0).to(ACC)
                    seen += tl.sum(grad * other, 2 if LAST else 0)
                    at_grad = _columns(_columns(_pixel(grad_skip, b, h + p // S, j * S + p % S), LAST), LAST)
                    mixed = grad * _columns(_columns(mix, LAST), LAST)
                    tl.store(at_grad + c * grad_skip.channel, mixed.to(grad_skip.data.dtype.element_ty), mask=ok)
                at_gate = _pixel(grad_gate, b, h + p // S, j * S + p % S)
                grad_mix = tl.sum(seen, 1 if LAST else 0) - mean
                tl.store(at_gate, grad_mix.to(grad_gate.data.dtype.element_ty), mask=j_ok)
        at_out = _columns(_pixel(out, b, h + p // S, j * S + p % S), LAST)
        at_out += _channels((g * (K * K) + tap) * out.channel, LAST)
        tl.store(at_out, result.to(out.data.dtype.element_ty), mask=known)


@_jit
@no_type_check
def _spread_kernel(
    grad,
    kernels,
    lse,
    gate,
    out,
    height,
    width,
    groups,
    channels,
    K: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """Every location gathers from the pixels whose window it was in; R rows share what they load of the gradient.

    With ``lse`` the kernels are logits, with ``gate`` the gradient reaches the reassembled map by ``1 - gate``.
    """
    b, i, j, g, block = _place((height + R - 1) // R, width, groups, (channels + C - 1) // C, T, INDEX)
    c = block * C + tl.arange(0, C)
    c_ok = c < channels
    c += g * channels
    total = (_zeros(T, C, LAST, ACC),) * R
    for n in range(K * S * S):
        v, p, q = n // (S * S), n // S % S, n % S
        column = j - v + K // 2
        for d in tl.static_range(R + K - 1):
            # Row r of the block is row r - d + K - 1 of the windows around this one.
            row = i * R + d + K // 2 - (K - 1)
            pixel_ok = _inside(row, column, height, width)
            at = _columns(_pixel(grad, b, row * S + p, column * S + q), LAST) + _channels(c * grad.channel, LAST)
            ok = _columns(pixel_ok, LAST) & _channels(c_ok, LAST)
            value = tl.load(at, mask=ok, other=0).to(ACC)
            taps = _pixel(kernels, b, row * S + p, column * S + q) + g * (K * K) * kernels.channel
            if lse is not None:
                norm = tl.load(_pixel(lse, b, row * S + p, column * S + q), mask=pixel_ok, other=0)
            if gate is not None:
                mix = tl.load(_pixel(gate, b, row * S + p, column * S + q), mask=pixel_ok, other=0).to(ACC)
            sums = ()
            for r in tl.static_range(R):
                if r <= d and d - r < K:
                    tap = tl.cast((r - d + K - 1) * K + v, INDEX)
                    weight = tl.load(taps + tap * kernels.channel, mask=pixel_ok, other=0).to(ACC)
                    if lse is not None:
                        weight = tl.exp(weight - norm)
                    if gate is not None:
                        weight *= 1 - mix
                    sums += (total[r] + _columns(weight, LAST) * value,)
                else:
                    sums += (total[r],)
            total = sums
    for r in tl.static_range(R):
        at_out = _columns(_pixel(out, b, i * R + r, j), LAST) + _channels(c * out.channel, LAST)
        shown = _columns(_inside(i * R + r, j, height, width), LAST) & _channels(c_ok, LAST)
        tl.store(at_out, total[r].to(out.data.dtype.element_ty), mask=shown)


# ------------------------------------------------------------------------------------------------------------ functions


def available(device: torch.device | str) -> bool:
    """Whether the kernels run on ``device``: a CUDA device, with Triton 3.3 or newer installed.

    With ``TRITON_INTERPRET=1``, set before this module was imported, Triton interprets, and every device will do.
    """
    return triton is not None and (torch.device(device).type == "cuda" or _interpreted())


def reassemble(x: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int = 1) -> Tensor:
    """Every output pixel is the weighted sum of the K x K window around its low-resolution parent.

    ``y[b, n, i, j] = sum over k, l of kernels[b, (g*K + k)*K + l, i, j] * x[b, n, i//s + k - K//2, j//s + l - K//2]``
    with ``g = n // (C/G)``; x is read as 0 outside its borders.

    Args:
        x: ``(B, C, h, w)``, any strides.
        kernels: ``(B, G*K*K, s*h, s*w)``, any strides.
        kernel_size: K.
        scale: s.
        groups: G, a divisor of C.

    Returns:
        ``(B, C, s*h, s*w)`` in x's dtype and memory format.

    Raises:
        FadevizError: shapes that do not fit.
    """
    size = _Size.of(x, kernel_size, scale, groups)
    _check("kernels", kernels, size.kernels)
    y = _empty(size.high, x, x.dtype)
    _reassemble(size, x, kernels, y)
    return y


def similarity(query: Tensor, key: Tensor, kernel_size: int, scale: int, groups: int = 1) -> Tensor:
    """The inner product of every high-resolution query with the K x K keys around its low-resolution parent.

    ``s[b, (g*K + u)*K + v, i, j] = sum over c of query[b, c, i, j] * key[b, c, i//s + u - K//2, j//s + v - K//2]``
    over the channels c of group g; key is read as 0 outside its borders. With the gradient of y as the query and x as
    the key this is the gradient of :func:`reassemble` with respect to the kernels.

    Args:
        query: ``(B, C, s*h, s*w)``, any strides.
        key: ``(B, C, h, w)``, any strides.
        kernel_size: K.
        scale: s.
        groups: G, a divisor of C.

    Returns:
        ``(B, G*K*K, s*h, s*w)`` in float32 or better and query's memory format.

    Raises:
        FadevizError: shapes that do not fit.
    """
    size = _Size.of(key, kernel_size, scale, groups)
    _check("query", query, size.high)
    out = _empty(size.kernels, query, torch.promote_types(query.dtype, torch.float32))
    _similarity(size, query, key, out)
    return out


def spread(grad: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int = 1) -> Tensor:
    """The gradient of :func:`reassemble` with respect to x: every location sums over the pixels it was given to.

    Args:
        grad: ``(B, C, s*h, s*w)``, any strides.
        kernels: ``(B, G*K*K, s*h, s*w)``, any strides.
        kernel_size: K.
        scale: s.
        groups: G, a divisor of C.

    Returns:
        ``(B, C, h, w)`` in grad's dtype and memory format.

    Raises:
        FadevizError: shapes that do not fit.
    """
    b, c, rows, columns = grad.shape
    out = _empty((b, c, rows // scale, columns // scale), grad, grad.dtype)
    size = _Size.of(out, kernel_size, scale, groups)
    _check("grad", grad, size.high)
    _check("kernels", kernels, size.kernels)
    _spread(size, grad, kernels, out)
    return out


def fused_forward(
    x: Tensor, logits: Tensor, kernel_size: int, scale: int, skip: Tensor | None = None, gate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``r = reassemble(x, softmax(logits))``, and ``y = lerp(r, skip, gate)`` where these two are given.

    Args:
        x: ``(B, C, h, w)``, any strides, as all others.
        logits: ``(B, K*K, s*h, s*w)``.
        kernel_size: K.
        scale: s.
        skip: ``(B, C, s*h, s*w)``.
        gate: ``(B, 1, s*h, s*w)``; 1 takes skip, 0 the reassembled map.

    Returns:
        y, ``(B, C, s*h, s*w)`` in the dtype of x and skip together and x's memory format; and the logarithm of the sum
        of the logits' exponentials, ``(B, 1, s*h, s*w)`` in float32, in float64 where an input is float64.

    Raises:
        FadevizError: shapes that do not fit, or one of skip and gate without the other.
    """
    size = _Size.of(x, kernel_size, scale, 1)
    _check_fused(size, logits, skip, gate)
    y = _empty(size.high, x, x.dtype if skip is None else torch.promote_types(x.dtype, skip.dtype))
    lse = x.new_empty(size.pixels, dtype=_sum_dtype(x, logits, skip, gate))
    _reassemble(size, x, logits, y, lse, skip, gate)
    return y, lse


def fused_backward(
    grad: Tensor,
    x: Tensor,
    logits: Tensor,
    lse: Tensor,
    kernel_size: int,
    scale: int,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The gradients of :func:`fused_forward`'s y with respect to x, logits, skip and gate, given y's.

    The softmax is computed again from ``lse``; neither it nor the reassembled map is read or written.

    Args:
        grad: ``(B, C, s*h, s*w)``, any strides.
        x: as it was given to :func:`fused_forward`, like all that follow.
        logits: likewise.
        lse: as it came from there.
        kernel_size: K.
        scale: s.
        skip: likewise.
        gate: likewise.

    Returns:
        One gradient for each of x, logits, skip and gate, of their dtype and memory format; None for None.

    Raises:
        FadevizError: shapes that do not fit.
    """
    size = _Size.of(x, kernel_size, scale, 1)
    _check("grad", grad, size.high)
    _check("lse", lse, size.pixels)
    _check_fused(size, logits, skip, gate)
    grad_x, grad_logits = _empty(size.low, x, x.dtype), _empty(size.kernels, logits, logits.dtype)
    grad_skip = None if skip is None else _empty(size.high, skip, skip.dtype)
    grad_gate = None if gate is None else _empty(size.pixels, gate, gate.dtype)
    _similarity(size, grad, x, grad_logits, logits, lse, skip, gate, grad_skip, grad_gate)
    _spread(size, grad, logits, grad_x, lse, gate)
    return grad_x, grad_logits, grad_skip, grad_gate


# ------------------------------------------------------------------------------------------------------------- launches


class _Size(NamedTuple):
    """The sizes of one reassembly."""

    batch: int
    groups: int
    channels: int  # of a group
    height: int  # of x
    width: int
    kernel_size: int
    scale: int

    @classmethod
    def of(cls, x: Tensor, kernel_size: int, scale: int, groups: int) -> _Size:
        b, c, h, w = x.shape
        if c % groups:
            raise FadevizError(f"reassemble: {c} channels do not divide into {groups} groups")
        return cls(b, groups, c // groups, h, w, kernel_size, scale)

    @property
    def low(self) -> tuple[int, ...]:
        return self.batch, self.groups * self.channels, self.height, self.width

    @property
    def high(self) -> tuple[int, ...]:
        return self.batch, self.groups * self.channels, self.height * self.scale, self.width * self.scale

    @property
    def kernels(self) -> tuple[int, ...]:
        return self.batch, self.groups * self.kernel_size**2, self.height * self.scale, self.width * self.scale

    @property
    def pixels(self) -> tuple[int, ...]:
        return self.batch, 1, self.height * self.scale, self.width * self.scale

    @property
    def phases(self) -> int:
        """Sub-pixels that one program computes: both rows of scale 2, one row of any other."""
        return 4 if self.scale == 2 else self.scale

    @property
    def phase_rows(self) -> int:
        return self.height * self.scale**2 // self.phases

    @property
    def taps(self) -> int:
        return _power(self.kernel_size**2)


def _reassemble(
    size: _Size,
    x: Tensor,
    kernels: Tensor,
    y: Tensor,
    lse: Tensor | None = None,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
) -> None:
    columns, channels = _block(size, x)
    programs = size.batch * size.phase_rows * _ceil(size.width, columns) * size.groups * _ceil(size.channels, channels)
    _launch(
        _reassemble_kernel,
        programs,
        (x, kernels, skip, gate, y, lse),
        (size.height, size.width, size.groups, size.channels),
        K=size.kernel_size,
        S=size.scale,
        P=size.phases,
        T=columns,
        C=channels,
        LAST=_last(x),
        TAPS=size.taps,
    )


def _similarity(
    size: _Size,
    query: Tensor,
    key: Tensor,
    out: Tensor,
    logits: Tensor | None = None,
    lse: Tensor | None = None,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    grad_skip: Tensor | None = None,
    grad_gate: Tensor | None = None,
) -> None:
    # Where channels are contiguous a thread takes 16 bytes of them at a time, 8 neighbours a line of 128; else a warp
    # takes 32 columns, and its threads one channel after the other. All inner products stay in registers until the
    # last: at most 32 a thread.
    run = 16 // key.element_size() if _last(key) else 4
    side = _power(_ceil(size.channels, run))
    columns = _THREADS // min(8, side) if _last(key) else 32
    columns = min(columns, _power(size.width), max(1, 32 * _THREADS // (size.taps * _power(size.phases))))
    programs = size.batch * size.phase_rows * _ceil(size.width, columns) * size.groups
    _launch(
        _similarity_kernel,
        programs,
        (query, key, out, logits, lse, skip, gate, grad_skip, grad_gate),
        (size.height, size.width, size.groups, size.channels),
        K=size.kernel_size,
        S=size.scale,
        P=size.phases,
        T=columns,
        C=min(_THREADS // columns, side),
        V=run,
        LAST=_last(key),
        TAPS=size.taps,
    )


def _spread(
    size: _Size, grad: Tensor, kernels: Tensor, out: Tensor, lse: Tensor | None = None, gate: Tensor | None = None
) -> None:
    columns, channels = _block(size, grad)
    segments = size.batch * _ceil(size.width, columns) * size.groups * _ceil(size.channels, channels)
    # Four rows together read 8 rows of pixels' parents where single ones read 5 each (K = 5).
    rows = 4 if segments * size.height >= _BUSY else 1
    _launch(
        _spread_kernel,
        segments * _ceil(size.height, rows),
        (grad, kernels, lse, gate, out),
        (size.height, size.width, size.groups, size.channels),
        K=size.kernel_size,
        S=size.scale,
        R=rows,
        T=columns,
        C=channels,
        LAST=_last(grad),
    )


def _block(size: _Size, of: Tensor) -> tuple[int, int]:
    """Columns and channels of a block: long along the axis that is contiguous in memory, so that loads coalesce.

    A thread has 8 elements of it, and with 4 phases or rows 32 sums.
    """
    elements = _THREADS * (4 if of.dtype == torch.float64 else 8)
    if _last(of):
        channels = min(64, _power(size.channels))
        return min(elements // channels, _power(size.width)), channels
    columns = min(64, _power(size.width))
    return columns, min(elements // columns, _power(size.channels))


def _last(of: Tensor) -> bool:
    """Whether channels are what is contiguous in memory."""
    return of.stride(1) == 1 and of.shape[1] > 1


def _launch(
    kernel: Any, programs: int, tensors: tuple[Tensor | None, ...], sizes: tuple[int, ...], **constants: object
) -> None:
    """Run a kernel on the tensors' device, unless there is nothing to do."""
    given = [tensor for tensor in tensors if tensor is not None]
    if not programs or not all(tensor.numel() for tensor in given):
        return
    if triton is None:
        raise FadevizError('this computation needs Triton, 3.3 or newer: pip install "triton>=3.3"')
    device = given[0].device
    wide = any(sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)) >= _WIDE for t in given)
    maps = [None if tensor is None else _Map(tensor, *tensor.stride()) for tensor in tensors]
    # Triton launches on the current device, whatever the tensors are on.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](
            *maps,
            *sizes,
            **constants,
            INDEX=tl.int64 if wide else tl.int32,
            ACC=tl.float64 if _sum_dtype(*tensors) == torch.float64 else tl.float32,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )


def _interpreted() -> bool:
    return not isinstance(_reassemble_kernel, triton.JITFunction)


def _sum_dtype(*tensors: Tensor | None) -> torch.dtype:
    double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def _empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
    """New, on the device and in the memory format of ``like``."""
    last = not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


def _check(name: str, tensor: Tensor, needed: tuple[int, ...]) -> None:
    # A kernel that reads beyond a tensor stops the whole process, if one is lucky.
    if tuple(tensor.shape) != needed:
        raise FadevizError(f"reassemble: {name} is {tuple(tensor.shape)}, the other maps and sizes need {needed}")


def _check_fused(size: _Size, logits: Tensor, skip: Tensor | None, gate: Tensor | None) -> None:
    _check("logits", logits, size.kernels)
    if skip is not None:
        _check("skip", skip, size.high)
    if gate is not None:
        _check("gate", gate, size.pixels)
    if (skip is None) != (gate is None):
        raise FadevizError("reassemble: skip and gate belong together: give both or neither")


def _power(n: int) -> int:
    """The power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def _ceil(n: int, step: int) -> int:
    return math.ceil(n / step)
