"""The kernels that compute the reassembly family directly, by fused multiply-adds.

:mod:`.direct` launches them and describes how they divide the work. Names of their compile-time constants:

K, S: ``kernel_size`` and scale. P: phases of a program, whole rows of pixels; h is the first of them. T, C: locations
and channels of a block. N: blocks of channels that share their kernels, FULL: whether all of their channels exist,
ONCE: whether a program has no others. TAPS: K * K, rounded up to a power of two. INDEX: type of offsets. ACC: type of
sums. LAST: whether channels are contiguous in memory, columns being so otherwise; the contiguous axis is the last of
every block, and neighbouring threads lie along it.

A variable has one type and shape throughout a kernel, because a loop carries all that it assigns.
"""

from __future__ import annotations

from typing import no_type_check

from .launch import jit, tl


@jit
@no_type_check
def _columns(values, LAST: tl.constexpr):
    """One value a location, as a block that broadcasts over channels."""
    return values[:, None] if LAST else values[None, :]


@jit
@no_type_check
def _channels(values, LAST: tl.constexpr):
    """One value a channel or tap, as a block that broadcasts over locations."""
    return values[None, :] if LAST else values[:, None]


@jit
@no_type_check
def _exists(c, channels, FULL: tl.constexpr, LAST: tl.constexpr):
    """Which channels exist; with FULL all of them, without a comparison."""
    return (tl.full([1, 1], 0, tl.int32) == 0) if FULL else _channels(c < channels, LAST)


@jit
@no_type_check
def _block(T: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr):
    """Zeros for T locations and C channels."""
    return tl.full([T, C] if LAST else [C, T], 0, ACC)


@jit
@no_type_check
def _pixel(of, b, i, j):
    """The address of channel 0 of pixel (i, j) of image b; j may be a block."""
    return of.data + b * of.batch + i * of.row + j * of.column


@jit
@no_type_check
def _inside(j, width, ok):
    """Which columns j are in the image, where ``ok``; one comparison, as negative numbers are large unsigned ones."""
    return j.to(tl.uint32) < tl.where(ok, width, 0).to(tl.uint32)


@jit
@no_type_check
def _load_side_by_side(at, step, mask, Q: tl.constexpr):
    """Q = 1 or 2 elements at each address, ``step`` apart; two as one load, where they are contiguous."""
    if Q == 1:
        values = (tl.load(at, mask=mask, other=0),)
    else:
        two = tl.arange(0, 2)
        at_both = tl.expand_dims(at, -1) + two * step
        values = tl.split(tl.load(at_both, mask=tl.expand_dims(mask, -1) & (two < 2), other=0))
    return values


@jit
@no_type_check
def _load_pixels(of, offset, b, h, j, mask, S: tl.constexpr, P: tl.constexpr, LAST: tl.constexpr):
    """The P pixels of every location, each a block like ``offset``; two neighbours in memory are loaded as one."""
    Q: tl.constexpr = 2 if S == 2 and not LAST else 1
    start = _pixel(of, b, h, j * S) + offset
    values = ()
    for n in tl.static_range(P // Q):
        at = start + ((n * Q // S) * of.row + (n * Q % S) * of.column)
        values += _load_side_by_side(at, of.column, mask, Q)
    return values


@jit
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


@jit
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
    # Axis 1 of the grid has length 1, which Triton cannot see. If it saw that columns begin at a multiple of T, it
    # would give every thread several neighbouring columns, each with its weights, for the one tap that is aligned.
    columns = tl.cast(segment * (T * E) + tl.program_id(1), INDEX) + tl.arange(0, T) * E
    return tl.cast(image, INDEX), tl.cast(row, INDEX), columns, tl.cast(group, INDEX), tl.cast(block, INDEX)


@jit
@no_type_check
def _softmax(
    logits, kernels, b, h, j, j_ok,
    K: tl.constexpr, S: tl.constexpr, P: tl.constexpr, TAPS: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Kernels of P pixels from their logits."""
    tap = tl.cast(tl.arange(0, TAPS), INDEX)
    exists = j_ok[:, None] & (tap < K * K)[None, :]
    for p in tl.static_range(P):
        at = _pixel(logits, b, h + p // S, j * S + p % S)[:, None] + (tap * logits.channel)[None, :]
        logit = tl.load(at, mask=exists, other=float("-inf")).to(ACC)
        # Columns beyond the image have no taps; -inf - -inf would be NaN.
        logit = tl.exp(logit - tl.where(j_ok, tl.max(logit, 1), 0)[:, None])
        share = logit * (1 / tl.where(j_ok, tl.sum(logit, 1), 1))[:, None]
        at = _pixel(kernels, b, h + p // S, j * S + p % S)[:, None] + (tap * kernels.channel)[None, :]
        tl.store(at, share.to(kernels.data.dtype.element_ty), mask=exists)


@jit
@no_type_check
def _reassemble_block(
    x, kernels, skip, gate, y, size, b, h, j, g, first,
    K: tl.constexpr, S: tl.constexpr, P: tl.constexpr, T: tl.constexpr, E: tl.constexpr, C: tl.constexpr,
    N: tl.constexpr, FULL: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Reassemble N blocks of C channels, starting at channel ``first``."""
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
                ok = _inside(_columns(j + d - K // 2, LAST), width, _exists(c + n * C, channels, FULL, LAST))
                values += (tl.load(at, mask=ok, other=0).to(ACC),)
            sums = ()
            for e in tl.static_range(E):
                if e <= d and d - e < K:
                    # Columns beyond the image, which are not stored, read the last one's: no mask is needed.
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
            shown = _inside(_columns(j + e, LAST), width, _exists(c + n * C, channels, FULL, LAST))
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


@jit
@no_type_check
def reassemble_kernel(
    x, logits, kernels, skip, gate, y, height, width, groups, channels, blocks,
    K: tl.constexpr, S: tl.constexpr, P: tl.constexpr, T: tl.constexpr, E: tl.constexpr, C: tl.constexpr,
    N: tl.constexpr, FULL: tl.constexpr, ONCE: tl.constexpr, LAST: tl.constexpr, TAPS: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Reassembly of N blocks of C channels.

    With ``logits`` their softmax is written to ``kernels`` first; with ``gate`` the result is mixed with ``skip``.
    """
    b, h, j, g, block = _place(height * S * S // P, width, groups, blocks, T, E, INDEX)
    h *= P // S
    size = height, width, channels
    if logits is not None:
        for e in tl.static_range(E):
            _softmax(logits, kernels, b, h, j + e, j + e < width, K, S, P, TAPS, INDEX, ACC)
        # From here on threads read what others have written. Programs of other channels write the same numbers.
        tl.debug_barrier()
    if ONCE:
        first = block * (C * N)
        _reassemble_block(x, kernels, skip, gate, y, size, b, h, j, g, first, K, S, P, T, E, C, N, FULL, LAST, ACC)
    else:
        for first in range(block * (C * N), channels, blocks * (C * N)):
            _reassemble_block(x, kernels, skip, gate, y, size, b, h, j, g, first, K, S, P, T, E, C, N, FULL, LAST, ACC)


@jit
@no_type_check
def _lanes(block, V: tl.constexpr):
    """The V elements that a thread holds along the last axis, as a tuple of blocks."""
    parts = (block,)
    if V > 1:
        parts = tl.split(block.reshape(block.shape[0], block.shape[1], V // 2, 2))
    if V > 2:
        parts = _halve(parts, V // 2)
    if V > 4:
        parts = _halve(parts, V // 4)
    lanes = ()
    for n in tl.static_range(V):
        lanes += (parts[n].reshape(block.shape[0], block.shape[1]),)
    return lanes


@jit
@no_type_check
def _over_lanes(values, V: tl.constexpr, LAST: tl.constexpr):
    """One value a location, as a block that broadcasts over channels, V of which each thread has."""
    return values[:, None, None] if V > 1 else _columns(values, LAST)


@jit
@no_type_check
def _halve(parts, V: tl.constexpr):
    """Each part as the two halves of its last axis, which has V elements after that."""
    halves = ()
    for n in tl.static_range(len(parts)):
        part = parts[n]
        halves += tl.split(part.reshape(part.shape[0], part.shape[1], V // 2, 2))
    return halves


@jit
@no_type_check
def _stack(blocks, first: tl.constexpr, step: tl.constexpr, count: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr):
    """``count`` blocks from ``first`` on, ``step`` apart, along a new last axis of length W, summed over channels."""
    stacked = ()
    for n in tl.static_range(W):
        if n < count:
            stacked += (blocks[first + n * step],)
        else:
            stacked += (blocks[first] * 0,)
    if W > 1:
        stacked = _pairs(stacked, 1)
    if W > 2:
        stacked = _pairs(stacked, 2)
    if W > 4:
        stacked = _pairs(stacked, 4)
    if W > 8:
        stacked = _pairs(stacked, 8)
    if W > 16:
        stacked = _pairs(stacked, 16)
    if W > 32:
        stacked = _pairs(stacked, 32)
    whole = stacked[0]
    return tl.sum(whole.reshape(whole.shape[0], whole.shape[1], W), 1 if LAST else 0)


@jit
@no_type_check
def _pairs(blocks, m: tl.constexpr):
    """Blocks n and n + half joined; each consists of m blocks already."""
    half: tl.constexpr = len(blocks) // 2
    joined = ()
    for n in tl.static_range(half):
        pair = tl.join(blocks[n], blocks[n + half])
        joined += (pair.reshape(pair.shape[0], pair.shape[1], 2 * m),)
    return joined


@jit
@no_type_check
def _skip_products(
    query, skip, gate, grad_skip, b, h, j, j_ok, lanes, channels,
    S: tl.constexpr, P: tl.constexpr, T: tl.constexpr, C: tl.constexpr, V: tl.constexpr, LAST: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The gradient's inner products with ``skip``, by channel of a thread; the gradient of ``skip`` is written."""
    total = (_block(T, C, LAST, ACC),) * P
    for first in range(0, channels, C * V):
        ok = j_ok & (first + lanes < channels)
        grads = _load_pixels(query, (first + lanes) * query.channel, b, h, j, ok, S, P, LAST)
        others = _load_pixels(skip, (first + lanes) * skip.channel, b, h, j, ok, S, P, LAST)
        mixes = _load_pixels(gate, 0, b, h, j, j_ok, S, P, LAST)
        sums = ()
        to_skip = ()
        for p in tl.static_range(P):
            grad = grads[p].to(ACC)
            mine, other = _lanes(grad, V), _lanes(others[p].to(ACC), V)
            so_far = total[p]
            for w in tl.static_range(V):
                so_far += mine[w] * other[w]
            sums += (so_far,)
            to_skip += (grad * mixes[p].to(ACC),)
        total = sums
        offset = (first + lanes) * grad_skip.channel
        _store_pixels(grad_skip, offset, b, h, j, ok, to_skip, S, P, LAST)
    return total


@jit
@no_type_check
def _window_products(
    query, key, size, b, h, j, j_ok, g, lanes,
    TOP: tl.constexpr, K: tl.constexpr, S: tl.constexpr, P: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
    V: tl.constexpr, U: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Inner products with rows TOP to TOP + U of the windows, by channel of a thread; ordered by tap, then pixel."""
    height, width, channels = size
    i = h // S
    total = (_block(T, C, LAST, ACC),) * (U * K * P)
    for first in range(0, channels, C * V):
        c = g * channels + first + lanes
        c_ok = first + lanes < channels
        grads = _load_pixels(query, c * query.channel, b, h, j, j_ok & c_ok, S, P, LAST)
        queries = ()
        for p in tl.static_range(P):
            queries += _lanes(grads[p].to(ACC), V)
        sums = ()
        start = _pixel(key, b, i + TOP - K // 2, j - K // 2) + c * key.channel
        for u in tl.static_range(U):
            row = i + (TOP + u) - K // 2
            for v in tl.static_range(K):
                if TOP + u < K:
                    ok = _inside(j + v - K // 2, width, c_ok & (row >= 0) & (row < height))
                    value = tl.load(start + (u * key.row + v * key.column), mask=ok, other=0).to(ACC)
                    values = _lanes(value, V)
                for p in tl.static_range(P):
                    so_far = total[(u * K + v) * P + p]
                    if TOP + u < K:
                        for w in tl.static_range(V):
                            so_far += queries[p * V + w] * values[w]
                    sums += (so_far,)
        total = sums
    return total


@jit
@no_type_check
def _store_softmax_gradient(
    out, kernels, products, scaled, b, h, j, j_ok, tap, p: tl.constexpr,
    K: tl.constexpr, S: tl.constexpr, P: tl.constexpr, U: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of pixel p's logits: its products less ``scaled``, their mean, times the softmax."""
    pixel_i, pixel_j = h + p // S, j * S + p % S
    for top in tl.static_range(0, K, U):
        here = j_ok[:, None] & ((tap < U * K) & (top * K + tap < K * K))[None, :]
        step = (top * K + tap)[None, :]
        at = _pixel(kernels, b, pixel_i, pixel_j)[:, None] + step * kernels.channel
        share = tl.load(at, mask=here, other=0).to(ACC)
        result = products[top // U * P + p] - share * scaled[:, None]
        at = _pixel(out, b, pixel_i, pixel_j)[:, None] + step * out.channel
        tl.store(at, result.to(out.data.dtype.element_ty), mask=here)


@jit
@no_type_check
def similarity_kernel(
    query, key, out, kernels, skip, gate, grad_skip, grad_gate, mixed, height, width, groups, channels, blocks,
    K: tl.constexpr, S: tl.constexpr, P: tl.constexpr, T: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
    U: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Inner products of queries with U rows of their windows of keys at a time, U * K <= W.

    C * V channels are summed at a time, V of them in one thread. With ``kernels``, a softmax, the query is the gradient
    of y, and out that of the logits: with D the inner products, p the softmax and m the gate,
    ``(1 - m) * p * (D - sum over taps of p * D)``. That sum is also the inner product of the gradient with the
    reassembled map, which the gate's gradient needs. ``mixed`` is ``(1 - m) * p``.
    """
    b, h, j, g, _ = _place(height * S * S // P, width, groups, blocks, T, 1, INDEX)
    h *= P // S
    size = height, width, channels
    j_ok = j < width
    lane = tl.cast(tl.arange(0, C), INDEX)
    lanes = (lane[:, None] * V + tl.arange(0, V)[None, :])[None, :, :] if V > 1 else _channels(lane, LAST)
    spread_j, spread_ok = _over_lanes(j, V, LAST), _over_lanes(j_ok, V, LAST)
    if gate is not None:
        seen = _skip_products(
            query, skip, gate, grad_skip, b, h, spread_j, spread_ok, lanes, channels, S, P, T, C, V, LAST, ACC
        )
    tap = tl.cast(tl.arange(0, W), INDEX)
    products = ()
    mean = (tl.zeros([T], ACC),) * P
    for top in tl.static_range(0, K, U):
        partial = _window_products(
            query, key, size, b, h, spread_j, spread_ok, g, lanes, top, K, S, P, T, C, V, U, LAST, ACC
        )
        # The sums of a pass are brought at once into the form of a store: all threads of a location hold them, which is
        # too many to keep. The softmax's gradient needs the sum over all passes first.
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
            scaled = mean[p]
            if gate is not None:
                pixel_i, pixel_j = h + p // S, j * S + p % S
                scaled *= 1 - tl.load(_pixel(gate, b, pixel_i, pixel_j), mask=j_ok, other=0).to(ACC)
                grad_mix = tl.sum(seen[p], 1 if LAST else 0) - mean[p]
                at = _pixel(grad_gate, b, pixel_i, pixel_j)
                tl.store(at, grad_mix.to(grad_gate.data.dtype.element_ty), mask=j_ok)
            _store_softmax_gradient(out, kernels, products, scaled, b, h, j, j_ok, tap, p, K, S, P, U, ACC)


@jit
@no_type_check
def spread_kernel(
    grad, kernels, out, height, width, groups, channels, blocks,
    K: tl.constexpr, S: tl.constexpr, R: tl.constexpr, Q: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
    N: tl.constexpr, FULL: tl.constexpr, LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every location gathers from the pixels whose windows contain it; R rows share the gradient that they load."""
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
                ok = _inside(_columns(column, LAST), within, _exists(c + m * C, channels, FULL, LAST))
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
            shown = _inside(_columns(j, LAST), within, _exists(c + m * C, channels, FULL, LAST))
            tl.store(at, total[r * N + m].to(out.data.dtype.element_ty), mask=shown)
