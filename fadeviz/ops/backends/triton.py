"""Reassembly and its gradients as Triton kernels, for CUDA devices, without atomics.

The three maps of the family are bilinear, and each is the derivative of another: :func:`reassemble`, its adjoint with
respect to x, :func:`spread`, and with respect to the kernels, :func:`similarity`. :func:`fused_forward` is softmax,
reassembly and gate in one kernel, which also writes the softmax; :func:`fused_backward` is its gradient in two kernels,
of which the first writes the kernels that the second, a plain :func:`spread`, needs.

A program owns a segment of one row of low-resolution locations, a block of channels and up to 4 of the s*s sub-pixels
of each location, its "phases": a value of x is loaded once for them all. Nothing is copied or reordered: strides say
where an element is (but before Triton 3.7, :func:`spread` takes contiguous maps of scale 2 to channels-last memory).
Sums are taken in float32, in float64 where an input is float64, and in a fixed order: results are the same, bit for
bit, from run to run.

How work is divided among threads says a small table, ``_TUNED``, which ``scripts/tune_triton.py`` measures on a device.
As it stands it was chosen by counting instructions, loads and registers in the machine code for sm_90, as
``tests/test_triton_compile.py`` does, not yet by the clock.
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
    _VERSION = tuple(int(n) for n in triton.__version__.split(".")[:2])
    if _VERSION < (3, 3):
        triton = tl = None  # It cannot pass tuples to kernels.

# Without Triton the kernels stay plain functions that nothing calls: `available` says so, a launch what to install.
_jit: Any = (lambda function: function) if triton is None else triton.jit


class _Blocks(NamedTuple):
    """How a program divides its work among threads."""

    threads: int  # side by side along the contiguous axis
    warps: int
    channels: int  # of a thread; similarity takes what one load brings
    beside: int  # locations of a thread: columns where it reassembles, rows where it spreads


_TUNED = {
    # kernel, whether channels are contiguous
    ("reassemble", True): _Blocks(32, 4, 8, 1),
    ("reassemble", False): _Blocks(32, 4, 8, 1),
    ("similarity", True): _Blocks(4, 4, 0, 1),
    ("similarity", False): _Blocks(32, 4, 0, 1),
    ("fused similarity", True): _Blocks(8, 4, 0, 1),
    ("fused similarity", False): _Blocks(32, 4, 0, 1),
    ("spread", True): _Blocks(32, 4, 8, 4),
    ("spread", False): _Blocks(32, 4, 8, 4),
}
"""What scripts/tune_triton.py finds and prints."""

_WIDE = 2**31
"""From this many elements on, offsets are 64-bit."""

_OLD = triton is not None and _VERSION < (3, 7)

_BUSY = 1024
"""Programs that fill a GPU twice over: more than these may as well share some of their work."""


class _Map(NamedTuple):
    """A four-dimensional tensor as kernels see it: its first element and the distance to the next along each axis."""

    data: Any
    batch: Any
    channel: Any
    row: Any
    column: Any


# ------------------------------------------------------------------------------------------------------------- kernels
# K, S: kernel_size and scale. P: phases of a program, whole rows of pixels; h is the first of them. T, C: locations and
# channels of a block; N: blocks of channels that share their kernels, FULL: whether all of their channels exist, ONCE:
# whether a program has no others. TAPS: K * K, up to a power of two. INDEX: type of offsets. ACC: type of sums. LAST:
# whether channels are contiguous in memory, columns being so otherwise; that axis is the last of every block,
# neighbouring threads lie along it. Triton infers types, and a variable has one type and shape in all of a kernel,
# because a loop carries all that it assigns.


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
def _known(c, channels, FULL: tl.constexpr, LAST: tl.constexpr):
    """Which channels there are; with FULL all, and nobody need ask."""
    return (tl.full([1, 1], 0, tl.int32) == 0) if FULL else _channels(c < channels, LAST)


@_jit
@no_type_check
def _block(T: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr):
    """Zeros for T locations and C channels."""
    return tl.full([T, C] if LAST else [C, T], 0, ACC)


@_jit
@no_type_check
def _pixel(of, b, i, j):
    """Where channel 0 of pixel (i, j) of image b is; j may be a block."""
    return of.data + b * of.batch + i * of.row + j * of.column


@_jit
@no_type_check
def _inside(j, width, ok):
    """Which columns j are in the image, where ``ok``; in one comparison, as what is negative is a large number too."""
    return j.to(tl.uint32) < tl.where(ok, width, 0).to(tl.uint32)


@_jit
@no_type_check
def _load_side_by_side(at, step, mask, Q: tl.constexpr):
    """Q = 1 or 2 elements of each place, ``step`` apart; two of them as one load, where they are contiguous."""
    if Q == 1:
        found = (tl.load(at, mask=mask, other=0),)
    else:
        two = tl.arange(0, 2)
        at_both = tl.expand_dims(at, -1) + two * step
        found = tl.split(tl.load(at_both, mask=tl.expand_dims(mask, -1) & (two < 2), other=0))
    return found


@_jit
@no_type_check
def _load_pixels(of, offset, b, h, j, mask, S: tl.constexpr, P: tl.constexpr, LAST: tl.constexpr):
    """The P pixels of every location, each a block like ``offset``; two neighbours in memory are loaded as one."""
    Q: tl.constexpr = 2 if S == 2 and not LAST else 1
    start = _pixel(of, b, h, j * S) + offset
    found = ()
    for n in tl.static_range(P // Q):
        at = start + ((n * Q // S) * of.row + (n * Q % S) * of.column)
        found += _load_side_by_side(at, of.column, mask, Q)
    return found


@_jit
@no_type_check
def _store_pixels(of, offset, b, h, j, mask, values, S: tl.constexpr, P: tl.constexpr, LAST: tl.constexpr):
    """The converse of :func:`_load_pixels`."""
    Q: tl.constexpr = 2 if S == 2 and not LAST else 1
    start = _pixel(of, b, h, j * S) + offset
    for n in tl.static_range(P // Q):
        at = start + ((n * Q // S) * of.row + (n * Q % S) * of.column)
        if Q == 1:
            tl.store(at, values[n].to(of.data.dtype.element_ty), mask=mask)
        else:
            two = tl.arange(0, 2)
            pair = tl.join(values[n * 2], values[n * 2 + 1]).to(of.data.dtype.element_ty)
            tl.store(tl.expand_dims(at, -1) + two * of.column, pair, mask=tl.expand_dims(mask, -1) & (two < 2))


@_jit
@no_type_check
def _place(rows, width, groups, blocks, T: tl.constexpr, E: tl.constexpr, INDEX: tl.constexpr):
    """This program's image, block of rows, columns, group and block of channels.

    Neighbours in the grid run at the same time: first those that share kernels, then those that share patches of x.
    """
    segments = (width + T * E - 1) // (T * E)
    place = tl.program_id(0)
    block = place % blocks
    group = place // blocks % groups
    segment = place // (blocks * groups) % segments
    row = place // (blocks * groups * segments) % rows
    image = place // (blocks * groups * segments * rows)
    # Axis 1 of the grid has length 1, which only we know. Knowing that columns begin at a multiple of T, Triton would
    # give every thread several neighbouring columns for the sake of the one tap that is aligned, each with its weights.
    columns = tl.cast(segment * (T * E) + tl.program_id(1), INDEX) + tl.arange(0, T) * E
    return tl.cast(image, INDEX), tl.cast(row, INDEX), columns, tl.cast(group, INDEX), tl.cast(block, INDEX)


@_jit
@no_type_check
def _softmax(
    logits,
    kernels,
    b,
    h,
    j,
    j_ok,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    TAPS: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """Kernels of P pixels from their logits."""
    tap = tl.cast(tl.arange(0, TAPS), INDEX)
    known = j_ok[:, None] & (tap < K * K)[None, :]
    for p in tl.static_range(P):
        at = _pixel(logits, b, h + p // S, j * S + p % S)[:, None] + (tap * logits.channel)[None, :]
        logit = tl.load(at, mask=known, other=float("-inf")).to(ACC)
        # Columns beyond the image have no tap at all; -inf - -inf would be NaN.
        logit = tl.exp(logit - tl.where(j_ok, tl.max(logit, 1), 0)[:, None])
        share = logit * (1 / tl.where(j_ok, tl.sum(logit, 1), 1))[:, None]
        at = _pixel(kernels, b, h + p // S, j * S + p % S)[:, None] + (tap * kernels.channel)[None, :]
        tl.store(at, share.to(kernels.data.dtype.element_ty), mask=known)


@_jit
@no_type_check
def _reassemble_block(
    x,
    kernels,
    skip,
    gate,
    y,
    size,
    b,
    h,
    j,
    g,
    first,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    E: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    FULL: tl.constexpr,
    LAST: tl.constexpr,
    ACC: tl.constexpr,
):
    """N blocks of C channels, from the first on."""
    height, width, channels = size
    i = h // S
    c = first + tl.arange(0, C)
    total = (_block(T, C, LAST, ACC),) * (E * N * P)
    for u in range(tl.maximum(K // 2 - i, 0), tl.minimum(height + K // 2 - i, K)):
        row = i + u - K // 2
        start = _columns(_pixel(x, b, row, j - K // 2), LAST) + _channels((g * channels + c) * x.channel, LAST)
        for d in tl.static_range(K + E - 1):
            values = ()
            for n in tl.static_range(N):
                at = start + d * x.column + n * C * x.channel
                ok = _inside(_columns(j + d - K // 2, LAST), width, _known(c + n * C, channels, FULL, LAST))
                values += (tl.load(at, mask=ok, other=0).to(ACC),)
            sums = ()
            for e in tl.static_range(E):
                if e <= d and d - e < K:
                    # Columns beyond the image, which are not stored, take the last one's: no mask is needed.
                    tap = (g * (K * K) + u * K + d - e) * kernels.channel
                    weights = _load_pixels(kernels, tap, b, h, tl.minimum(j + e, width - 1), j == j, S, P, LAST)
                for n in tl.static_range(N):
                    for p in tl.static_range(P):
                        so_far = total[(e * N + n) * P + p]
                        if e <= d and d - e < K:
                            so_far += _columns(weights[p].to(ACC), LAST) * values[n]
                        sums += (so_far,)
            total = sums
    for e in tl.static_range(E):
        if gate is not None:
            mixes = _load_pixels(gate, 0, b, h, j + e, j + e < width, S, P, LAST)
        for n in tl.static_range(N):
            shown = _inside(_columns(j + e, LAST), width, _known(c + n * C, channels, FULL, LAST))
            out = ()
            if gate is not None:
                offset = _channels((g * channels + c + n * C) * skip.channel, LAST)
                others = _load_pixels(skip, offset, b, h, _columns(j + e, LAST), shown, S, P, LAST)
            for p in tl.static_range(P):
                mine = total[(e * N + n) * P + p]
                if gate is not None:
                    mix, other = _columns(mixes[p].to(ACC), LAST), others[p].to(ACC)
                    # From the nearer end, as torch.lerp: gates of 0 and 1 give one of the two exactly.
                    mine = tl.where(mix < 0.5, mine + mix * (other - mine), other - (other - mine) * (1 - mix))
                out += (mine,)
            offset = _channels((g * channels + c + n * C) * y.channel, LAST)
            _store_pixels(y, offset, b, h, _columns(j + e, LAST), shown, out, S, P, LAST)


@_jit
@no_type_check
def _reassemble_kernel(
    x,
    logits,
    kernels,
    skip,
    gate,
    y,
    height,
    width,
    groups,
    channels,
    blocks,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    E: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    FULL: tl.constexpr,
    ONCE: tl.constexpr,
    LAST: tl.constexpr,
    TAPS: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """Reassembly of N blocks of C channels; with ``logits`` their softmax is written to ``kernels`` first, with
    ``gate`` the result is mixed with ``skip``."""
    b, h, j, g, block = _place(height * S * S // P, width, groups, blocks, T, E, INDEX)
    h *= P // S
    size = height, width, channels
    if logits is not None:
        for e in tl.static_range(E):
            _softmax(logits, kernels, b, h, j + e, j + e < width, K, S, P, TAPS, INDEX, ACC)
        # Below every thread reads back what its location needs. Programs of other channels write the same numbers.
        tl.debug_barrier()
    if ONCE:
        first = block * (C * N)
        _reassemble_block(x, kernels, skip, gate, y, size, b, h, j, g, first, K, S, P, T, E, C, N, FULL, LAST, ACC)
    else:
        for first in range(block * (C * N), channels, blocks * (C * N)):
            _reassemble_block(x, kernels, skip, gate, y, size, b, h, j, g, first, K, S, P, T, E, C, N, FULL, LAST, ACC)


@_jit
@no_type_check
def _lanes(block, V: tl.constexpr):
    """The V elements that a thread holds along the last axis, one by one."""
    parts = (block,)
    if V > 1:
        parts = tl.split(block.reshape(block.shape[0], block.shape[1], V // 2, 2))
    if V > 2:
        parts = _halve(parts, V // 2)
    if V > 4:
        parts = _halve(parts, V // 4)
    found = ()
    for n in tl.static_range(V):
        found += (parts[n].reshape(block.shape[0], block.shape[1]),)
    return found


@_jit
@no_type_check
def _halve(parts, V: tl.constexpr):
    halves = ()
    for n in tl.static_range(len(parts)):
        part = parts[n]
        halves += tl.split(part.reshape(part.shape[0], part.shape[1], V // 2, 2))
    return halves


@_jit
@no_type_check
def _stack(blocks, first: tl.constexpr, step: tl.constexpr, count: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr):
    """Blocks first, first + step ... as one with W >= count of them along a new last axis, summed over channels."""
    held = ()
    for n in tl.static_range(W):
        if n < count:
            held += (blocks[first + n * step],)
        else:
            held += (blocks[first] * 0,)
    if W > 1:
        held = _pairs(held, 1)
    if W > 2:
        held = _pairs(held, 2)
    if W > 4:
        held = _pairs(held, 4)
    if W > 8:
        held = _pairs(held, 8)
    if W > 16:
        held = _pairs(held, 16)
    if W > 32:
        held = _pairs(held, 32)
    whole = held[0]
    return tl.sum(whole.reshape(whole.shape[0], whole.shape[1], W), 1 if LAST else 0)


@_jit
@no_type_check
def _pairs(blocks, m: tl.constexpr):
    """Blocks n and n + half joined, m of which were joined before."""
    half: tl.constexpr = len(blocks) // 2
    joined = ()
    for n in tl.static_range(half):
        pair = tl.join(blocks[n], blocks[n + half])
        joined += (pair.reshape(pair.shape[0], pair.shape[1], 2 * m),)
    return joined


@_jit
@no_type_check
def _similarity_kernel(
    query,
    key,
    out,
    kernels,
    skip,
    gate,
    grad_skip,
    grad_gate,
    mixed,
    height,
    width,
    groups,
    channels,
    blocks,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    V: tl.constexpr,
    U: tl.constexpr,
    W: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """Inner products of queries with U rows of their windows of keys at once, U * K <= W; C * V channels at a time, V
    of them in one thread.

    With ``kernels``, a softmax, the query is the gradient of y, and out that of the logits: with D the inner products,
    p the softmax and m the gate, ``(1 - m) * p * (D - sum over taps of p * D)``. That sum is also the inner product of
    the gradient with the reassembled map, which the gate's gradient needs. ``mixed`` is ``(1 - m) * p``.
    """
    b, h, j, g, _ = _place(height * S * S // P, width, groups, blocks, T, 1, INDEX)
    h *= P // S
    i = h // S
    j_ok = j < width
    lane = tl.cast(tl.arange(0, C), INDEX)
    if V > 1:
        lanes = (lane[:, None] * V + tl.arange(0, V)[None, :])[None, :, :]
        spread_j = j[:, None, None]
        spread_ok = j_ok[:, None, None]
    else:
        lanes = _channels(lane, LAST)
        spread_j = _columns(j, LAST)
        spread_ok = _columns(j_ok, LAST)
    if gate is not None:
        seen = (_block(T, C, LAST, ACC),) * P
        for first in range(0, channels, C * V):
            ok = spread_ok & (first + lanes < channels)
            grads = _load_pixels(query, (first + lanes) * query.channel, b, h, spread_j, ok, S, P, LAST)
            others = _load_pixels(skip, (first + lanes) * skip.channel, b, h, spread_j, ok, S, P, LAST)
            mixes = _load_pixels(gate, 0, b, h, spread_j, spread_ok, S, P, LAST)
            sums = ()
            to_skip = ()
            for p in tl.static_range(P):
                grad = grads[p].to(ACC)
                mine, other = _lanes(grad, V), _lanes(others[p].to(ACC), V)
                so_far = seen[p]
                for w in tl.static_range(V):
                    so_far += mine[w] * other[w]
                sums += (so_far,)
                to_skip += (grad * mixes[p].to(ACC),)
            seen = sums
            offset = (first + lanes) * grad_skip.channel
            _store_pixels(grad_skip, offset, b, h, spread_j, ok, to_skip, S, P, LAST)
    tap = tl.cast(tl.arange(0, W), INDEX)
    products = ()
    mean = (tl.zeros([T], ACC),) * P
    for top in tl.static_range(0, K, U):
        partial = (_block(T, C, LAST, ACC),) * (U * K * P)
        for first in range(0, channels, C * V):
            c = g * channels + first + lanes
            c_ok = first + lanes < channels
            grads = _load_pixels(query, c * query.channel, b, h, spread_j, spread_ok & c_ok, S, P, LAST)
            queries = ()
            for p in tl.static_range(P):
                queries += _lanes(grads[p].to(ACC), V)
            sums = ()
            start = _pixel(key, b, i + top - K // 2, spread_j - K // 2) + c * key.channel
            for u in tl.static_range(U):
                row = i + (top + u) - K // 2
                for v in tl.static_range(K):
                    if top + u < K:
                        column = spread_j + v - K // 2
                        ok = _inside(column, width, c_ok & (row >= 0) & (row < height))
                        value = tl.load(start + (u * key.row + v * key.column), mask=ok, other=0).to(ACC)
                        values = _lanes(value, V)
                    for p in tl.static_range(P):
                        so_far = partial[(u * K + v) * P + p]
                        if top + u < K:
                            for w in tl.static_range(V):
                                so_far += queries[p * V + w] * values[w]
                        sums += (so_far,)
            partial = sums
        # What a pass found is brought at once into the form of a store: the threads of a location all hold the sums,
        # which are too many to keep. The softmax's gradient needs the sum over all passes first.
        here = j_ok[:, None] & ((tap < U * K) & (top * K + tap < K * K))[None, :]
        step = (top * K + tap)[None, :]
        means = ()
        for p in tl.static_range(P):
            product = _stack(partial, p, P, U * K, W, LAST)
            pixel_i, pixel_j = h + p // S, j * S + p % S
            if kernels is None:
                at = _pixel(out, b, pixel_i, pixel_j)[:, None] + (g * (K * K) + step) * out.channel
                tl.store(at, product.to(out.data.dtype.element_ty), mask=here)
            else:
                at = _pixel(kernels, b, pixel_i, pixel_j)[:, None] + step * kernels.channel
                share = tl.load(at, mask=here, other=0).to(ACC)
                product *= share
                means += (mean[p] + tl.sum(product, 1),)
                if gate is not None:
                    left = 1 - tl.load(_pixel(gate, b, pixel_i, pixel_j), mask=j_ok, other=0).to(ACC)
                    product *= left[:, None]
                    at = _pixel(mixed, b, pixel_i, pixel_j)[:, None] + step * mixed.channel
                    tl.store(at, (share * left[:, None]).to(mixed.data.dtype.element_ty), mask=here)
                products += (product,)
        if kernels is not None:
            mean = means
    if kernels is not None:
        for p in tl.static_range(P):
            pixel_i, pixel_j = h + p // S, j * S + p % S
            scaled = mean[p]
            if gate is not None:
                scaled *= 1 - tl.load(_pixel(gate, b, pixel_i, pixel_j), mask=j_ok, other=0).to(ACC)
                grad_mix = tl.sum(seen[p], 1 if LAST else 0) - mean[p]
                at = _pixel(grad_gate, b, pixel_i, pixel_j)
                tl.store(at, grad_mix.to(grad_gate.data.dtype.element_ty), mask=j_ok)
            for top in tl.static_range(0, K, U):
                here = j_ok[:, None] & ((tap < U * K) & (top * K + tap < K * K))[None, :]
                step = (top * K + tap)[None, :]
                at = _pixel(kernels, b, pixel_i, pixel_j)[:, None] + step * kernels.channel
                share = tl.load(at, mask=here, other=0).to(ACC)
                result = products[top // U * P + p] - share * scaled[:, None]
                at = _pixel(out, b, pixel_i, pixel_j)[:, None] + step * out.channel
                tl.store(at, result.to(out.data.dtype.element_ty), mask=here)


@_jit
@no_type_check
def _spread_kernel(
    grad,
    kernels,
    out,
    height,
    width,
    groups,
    channels,
    blocks,
    K: tl.constexpr,
    S: tl.constexpr,
    R: tl.constexpr,
    Q: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    FULL: tl.constexpr,
    LAST: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """Every location gathers from the pixels whose window it was in; R rows share what they load of the gradient."""
    b, i, j, g, block = _place((height + R - 1) // R, width, groups, blocks, T, 1, INDEX)
    c = block * (C * N) + tl.arange(0, C)
    total = (_block(T, C, LAST, ACC),) * (R * N)
    # Row r of the block is row r - d + K - 1 of the windows around row top + d.
    top = i * R + K // 2 - (K - 1)
    for n in range(K * S * S // Q):
        v, p, q = n // (S * S // Q), n // (S // Q) % S, n % (S // Q)
        column = j - v + K // 2
        start = _columns(_pixel(grad, b, top * S + p, column * S + q), LAST)
        start += _channels((g * channels + c) * grad.channel, LAST)
        taps = _pixel(kernels, b, top * S + p, column * S + q) + (g * (K * K) + v) * kernels.channel
        for d in tl.static_range(R + K - 1):
            within = tl.where((top + d >= 0) & (top + d < height), width, 0)
            values = ()
            for m in tl.static_range(N):
                at = start + d * (S * grad.row) + m * C * grad.channel
                ok = _inside(_columns(column, LAST), within, _known(c + m * C, channels, FULL, LAST))
                values += _load_side_by_side(at, grad.column, ok, Q)
            sums = ()
            for r in tl.static_range(R):
                if r <= d and d - r < K:
                    at = taps + d * (S * kernels.row) + ((r - d + K - 1) * K) * kernels.channel
                    weights = _load_side_by_side(at, kernels.column, _inside(column, within, column == column), Q)
                for m in tl.static_range(N):
                    so_far = total[r * N + m]
                    if r <= d and d - r < K:
                        for w in tl.static_range(Q):
                            so_far += _columns(weights[w].to(ACC), LAST) * values[m * Q + w].to(ACC)
                    sums += (so_far,)
            total = sums
    for r in tl.static_range(R):
        for m in tl.static_range(N):
            offset = _channels((g * channels + c + m * C) * out.channel, LAST)
            at = _columns(_pixel(out, b, i * R + r, j), LAST) + offset
            within = tl.where(i * R + r < height, width, 0)
            shown = _inside(_columns(j, LAST), within, _known(c + m * C, channels, FULL, LAST))
            tl.store(at, total[r * N + m].to(out.data.dtype.element_ty), mask=shown)


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
        y, ``(B, C, s*h, s*w)`` in the dtype of x and skip together and x's memory format; and the softmax, in the
        logits' shape, dtype and memory format.

    Raises:
        FadevizError: shapes that do not fit, or one of skip and gate without the other.
    """
    size = _Size.of(x, kernel_size, scale, 1)
    _check_fused(size, "logits", logits, skip, gate)
    y = _empty(size.high, x, x.dtype if skip is None else torch.promote_types(x.dtype, skip.dtype))
    kernels = _empty(size.kernels, logits, logits.dtype)
    _reassemble(size, x, kernels, y, logits, skip, gate)
    return y, kernels


def fused_backward(
    grad: Tensor,
    x: Tensor,
    kernels: Tensor,
    kernel_size: int,
    scale: int,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The gradients of :func:`fused_forward`'s y with respect to x, logits, skip and gate, given y's.

    The reassembled map is neither read nor written.

    Args:
        grad: ``(B, C, s*h, s*w)``, any strides.
        x: as it was given to :func:`fused_forward`.
        kernels: the softmax, as it came from there.
        kernel_size: K.
        scale: s.
        skip: as it was given.
        gate: likewise.

    Returns:
        One gradient for each of x, logits, skip and gate, of their dtype and memory format; None for None.

    Raises:
        FadevizError: shapes that do not fit.
    """
    size = _Size.of(x, kernel_size, scale, 1)
    _check("grad", grad, size.high)
    _check_fused(size, "kernels", kernels, skip, gate)
    grad_x, grad_logits = _empty(size.low, x, x.dtype), _empty(size.kernels, kernels, kernels.dtype)
    if skip is None or gate is None:
        _similarity(size, grad, x, grad_logits, kernels)
        _spread(size, grad, kernels, grad_x)
        return grad_x, grad_logits, None, None
    grad_skip, grad_gate = _empty(size.high, skip, skip.dtype), _empty(size.pixels, gate, gate.dtype)
    mixed = torch.empty_like(grad_logits)
    _similarity(size, grad, x, grad_logits, kernels, skip, gate, grad_skip, grad_gate, mixed)
    _spread(size, grad, mixed, grad_x)
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


def _reassemble(
    size: _Size,
    x: Tensor,
    kernels: Tensor,
    y: Tensor,
    logits: Tensor | None = None,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
) -> None:
    columns, channels, blocks, warps, beside = _block_of("reassemble", size, x)
    segments = size.batch * size.phase_rows * _ceil(size.width, columns * beside) * size.groups
    parts = _ceil(size.channels, channels * blocks)
    if logits is not None:  # whose softmax each part of the channels computes
        parts = max(1, min(parts, _ceil(_BUSY, max(1, segments))))
    _launch(
        _reassemble_kernel,
        segments * parts,
        (x, logits, kernels, skip, gate, y),
        (size.height, size.width, size.groups, size.channels, parts),
        K=size.kernel_size,
        S=size.scale,
        P=size.phases,
        T=columns,
        E=beside,
        C=channels,
        N=blocks,
        FULL=size.channels % (channels * blocks) == 0,
        ONCE=size.channels <= channels * blocks * parts,
        LAST=_last(x),
        TAPS=_power(size.kernel_size**2),
        num_warps=warps,
        # Left to itself, the assembler may spill a few for the sake of one more block on a processor.
        maxnreg=128 if beside == 1 and _last(x) and x.element_size() <= 4 else None,
    )


def _similarity(
    size: _Size,
    query: Tensor,
    key: Tensor,
    out: Tensor,
    kernels: Tensor | None = None,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    grad_skip: Tensor | None = None,
    grad_gate: Tensor | None = None,
    mixed: Tensor | None = None,
) -> None:
    name = "similarity" if kernels is None else "fused similarity"
    columns, channels, run, warps = _lanes_of(name, size, key)
    rows = max(1, min(size.kernel_size, 64 // (size.kernel_size * size.phases), 32 // size.kernel_size))
    rows = _ceil(size.kernel_size, _ceil(size.kernel_size, rows))
    _launch(
        _similarity_kernel,
        size.batch * size.phase_rows * _ceil(size.width, columns) * size.groups,
        (query, key, out, kernels, skip, gate, grad_skip, grad_gate, mixed),
        (size.height, size.width, size.groups, size.channels, 1),
        K=size.kernel_size,
        S=size.scale,
        P=size.phases,
        T=columns,
        C=channels,
        V=run,
        U=rows,
        W=_power(rows * size.kernel_size),
        LAST=_last(key),
        num_warps=warps,
        # Three blocks of 128 threads fit a processor, with float32. Left to itself, the assembler of one version takes
        # a few more without need, that of another spills a few. Fused, all are needed.
        maxnreg=None if kernels is not None else 168 if key.element_size() == 4 else 192,
    )


def _spread(size: _Size, grad: Tensor, kernels: Tensor, out: Tensor) -> None:
    if _OLD and size.scale == 2 and not _last(grad):
        # Triton 3.6 lays blocks of every other column out so that registers do not suffice.
        grad, kernels, result = (t.contiguous(memory_format=torch.channels_last) for t in (grad, kernels, out))
        if _last(grad):
            _spread(size, grad, kernels, result)
            out.copy_(result)
            return
    columns, channels, blocks, warps, rows = _block_of("spread", size, grad)
    parts = _ceil(size.channels, channels * blocks)
    segments = size.batch * _ceil(size.width, columns) * size.groups * parts
    # Four rows together read 8 rows of pixels' parents where single ones read 5 each (K = 5).
    while rows > 1 and segments * _ceil(size.height, rows) < _BUSY:
        rows //= 2
    _launch(
        _spread_kernel,
        segments * _ceil(size.height, rows),
        (grad, kernels, out),
        (size.height, size.width, size.groups, size.channels, parts),
        K=size.kernel_size,
        S=size.scale,
        R=rows,
        Q=2 if size.scale == 2 and not _last(grad) else 1,
        T=columns,
        C=channels,
        N=blocks,
        FULL=size.channels % (channels * blocks) == 0,
        LAST=_last(grad),
        num_warps=warps,
    )


def _block_of(kernel: str, size: _Size, of: Tensor) -> tuple[int, int, int, int, int]:
    """Columns, channels and number of the blocks of a program, its warps, and the locations of a thread.

    With channels contiguous a thread loads 16 bytes of them at a time; else a warp lies along the columns, so that
    loads coalesce, and its threads have the channels.
    """
    threads, warps, held, beside = _TUNED[kernel, _last(of)]
    if _last(of):
        run = 16 // of.element_size()
        threads = min(threads, _power(_ceil(size.channels, held)))
        return min(32 * warps // threads, _power(size.width)), threads * run, max(1, held // run), warps, beside
    columns = min(threads, _power(size.width))
    return columns, min(held * 32 * warps // columns, _power(size.channels)), 1, warps, beside


def _lanes_of(kernel: str, size: _Size, of: Tensor) -> tuple[int, int, int, int]:
    """Columns, threads of a location, channels that a thread loads at a time, and warps; likewise."""
    threads, warps, _, _ = _TUNED[kernel, _last(of)]
    if _last(of):
        run = 16 // of.element_size()
        threads = min(threads, _power(_ceil(size.channels, run)))
        return min(32 * warps // threads, _power(size.width)), threads, run, warps
    columns = min(threads, _power(size.width))
    return columns, min(32 * warps // columns, _power(size.channels)), 1, warps


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


def _check_fused(size: _Size, name: str, kernels: Tensor, skip: Tensor | None, gate: Tensor | None) -> None:
    _check(name, kernels, size.kernels)
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
