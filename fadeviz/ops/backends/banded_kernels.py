"""The kernels that compute the reassembly family as products of banded matrices.

:mod:`.banded` launches them and describes how they divide the work. Names of their compile-time constants:

K, S: ``kernel_size`` and scale. M, N: rows and columns of the banded matrix. PH, PW: rows and columns of the tile.
LH, LW: of the patch, LC of them real where LW is rounded up. C: channels at a time. FACTOR: the dtype that factors are
rounded to. INDEX: type of offsets. ACC is not used: sums are float32.
"""

from __future__ import annotations

from typing import no_type_check

from .launch import jit, tl


@jit
@no_type_check
def _corner(rows, columns, groups, parts, PH: tl.constexpr, PW: tl.constexpr, INDEX: tl.constexpr):
    """This program's image, first row and column, group, and part of the channels."""
    place = tl.program_id(0)
    across = (columns + PW - 1) // PW
    down = (rows + PH - 1) // PH
    part = place % parts
    group = place // parts % groups
    column = place // (parts * groups) % across
    row = place // (parts * groups * across) % down
    image = place // (parts * groups * across * down)
    return tl.cast(image, INDEX), tl.cast(row, INDEX) * PH, tl.cast(column, INDEX) * PW, group, part


@jit
@no_type_check
def _pixel(of, b, i, j):
    """The address of channel 0 of pixel (i, j) of image b."""
    return of.data + b * of.batch + i * of.row + j * of.column


@jit
@no_type_check
def _parents(first, n, SIDE: tl.constexpr, S: tl.constexpr):
    """The locations of pixels first + n, relative to that of pixel ``first``, in a tile SIDE long."""
    parents = n // S
    if SIDE % S != 0:  # otherwise tiles begin where locations do
        parents = ((first + n) // S - first // S).to(tl.int32)
    return parents


@jit
@no_type_check
def reassemble_kernel(
    x, logits, kernels, skip, gate, y, height, width, groups, channels, parts, each,
    K: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, LH: tl.constexpr, LW: tl.constexpr,
    LC: tl.constexpr, N: tl.constexpr, C: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Reassembly of ``each`` channels.

    With ``logits`` their softmax is written to ``kernels`` and used; with ``gate`` the result is mixed with ``skip``.
    """
    b, i0, j0, g, part = _corner(height * S, width * S, groups, parts, PH, PW, INDEX)
    m = tl.arange(0, PH * PW)
    n = tl.arange(0, N)
    i = i0 + m // PW
    j = j0 + m % PW
    in_image = (i < height * S) & (j < width * S)
    u = (n // LW)[None, :] - _parents(i0, m // PW, PH, S)[:, None]
    v = (n % LW)[None, :] - _parents(j0, m % PW, PW, S)[:, None]
    in_window = (u >= 0) & (u < K) & (v >= 0) & (v < K) & in_image[:, None]
    tap = g * (K * K) + u * K + v
    at = _pixel(kernels, b, i, j)[:, None] + tap * kernels.channel
    if logits is None:
        weights = tl.load(at, mask=in_window, other=0)
    else:
        logit = tl.load(_pixel(logits, b, i, j)[:, None] + tap * logits.channel, mask=in_window, other=float("-inf"))
        logit = logit.to(tl.float32)
        # Pixels beyond the image have no taps; -inf - -inf would be NaN.
        share = tl.exp(logit - tl.where(in_image, tl.max(logit, 1), 0)[:, None])
        share *= (1 / tl.where(in_image, tl.sum(share, 1), 1))[:, None]
        weights = share.to(kernels.data.dtype.element_ty)
        if part == 0:
            tl.store(at, weights, mask=in_window)
    weights = weights.to(FACTOR)
    row = i0 // S - K // 2 + n // LW
    column = j0 // S - K // 2 + n % LW
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (n // LW < LH) & (n % LW < LC)
    at_x = _pixel(x, b, row, column)[:, None]
    at_y = _pixel(y, b, i, j)[:, None]
    if gate is not None:
        at_skip = _pixel(skip, b, i, j)[:, None]
        mix = tl.load(_pixel(gate, b, i, j), mask=in_image, other=0).to(tl.float32)[:, None]
    for first in range(part * each, tl.minimum(part * each + each, channels), C):
        c = first + tl.arange(0, C)
        exists = (c < channels)[None, :]
        c = (tl.cast(g, INDEX) * channels + c)[None, :]
        values = tl.load(at_x + c * x.channel, mask=inside[:, None] & exists, other=0).to(FACTOR)
        mine = tl.dot(weights, values, input_precision=PRECISION)
        if gate is not None:
            other = tl.load(at_skip + c * skip.channel, mask=in_image[:, None] & exists, other=0).to(tl.float32)
            # From the nearer end, as torch.lerp: gates of 0 and 1 give one of the two exactly.
            mine = tl.where(mix < 0.5, mine + mix * (other - mine), other - (other - mine) * (1 - mix))
        tl.store(at_y + c * y.channel, mine.to(y.data.dtype.element_ty), mask=in_image[:, None] & exists)


@jit
@no_type_check
def similarity_kernel(
    query, key, out, kernels, skip, gate, grad_skip, grad_gate, mixed, height, width, groups, channels, parts,
    K: tl.constexpr, S: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, LH: tl.constexpr, LW: tl.constexpr,
    LC: tl.constexpr, N: tl.constexpr, C: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Inner products of the queries of a tile with all keys of its patch; those in windows are written.

    With ``kernels``, a softmax, the query is the gradient of y, and out that of the logits: with D the inner products,
    p the softmax and m the gate, ``(1 - m) * p * (D - sum over taps of p * D)``. That sum is also the inner product of
    the gradient with the reassembled map, which the gate's gradient needs. ``mixed`` is ``(1 - m) * p``.
    """
    b, i0, j0, g, _ = _corner(height * S, width * S, groups, parts, PH, PW, INDEX)
    m = tl.arange(0, PH * PW)
    n = tl.arange(0, N)
    i = i0 + m // PW
    j = j0 + m % PW
    in_image = (i < height * S) & (j < width * S)
    row = i0 // S - K // 2 + n // LW
    column = j0 // S - K // 2 + n % LW
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (n // LW < LH) & (n % LW < LC)
    at_query = _pixel(query, b, i, j)[:, None]
    at_key = _pixel(key, b, row, column)[:, None]
    if gate is not None:
        at_skip = _pixel(skip, b, i, j)[:, None]
        at_grad_skip = _pixel(grad_skip, b, i, j)[:, None]
        mix = tl.load(_pixel(gate, b, i, j), mask=in_image, other=0).to(tl.float32)
        seen = tl.zeros([PH * PW, C], tl.float32)
    product = tl.zeros([PH * PW, N], tl.float32)
    for first in range(0, channels, C):
        c = first + tl.arange(0, C)
        exists = (c < channels)[None, :]
        c = (tl.cast(g, INDEX) * channels + c)[None, :]
        grad = tl.load(at_query + c * query.channel, mask=in_image[:, None] & exists, other=0)
        value = tl.load(at_key + c * key.channel, mask=inside[:, None] & exists, other=0)
        product = tl.dot(grad.to(FACTOR), tl.trans(value.to(FACTOR)), product, input_precision=PRECISION)
        if gate is not None:
            wide = grad.to(tl.float32)
            seen += wide * tl.load(at_skip + c * skip.channel, mask=in_image[:, None] & exists, other=0).to(tl.float32)
            to_skip = (wide * mix[:, None]).to(grad_skip.data.dtype.element_ty)
            tl.store(at_grad_skip + c * grad_skip.channel, to_skip, mask=in_image[:, None] & exists)
    u = (n // LW)[None, :] - _parents(i0, m // PW, PH, S)[:, None]
    v = (n % LW)[None, :] - _parents(j0, m % PW, PW, S)[:, None]
    in_window = (u >= 0) & (u < K) & (v >= 0) & (v < K) & in_image[:, None]
    tap = g * (K * K) + u * K + v
    at = _pixel(out, b, i, j)[:, None] + tap * out.channel
    if kernels is not None:
        at_share = _pixel(kernels, b, i, j)[:, None] + tap * kernels.channel
        share = tl.load(at_share, mask=in_window, other=0).to(tl.float32)
        product = tl.where(in_window, product * share, 0)
        mean = tl.sum(product, 1)
        if gate is not None:
            left = (1 - mix)[:, None]
            at_mixed = _pixel(mixed, b, i, j)[:, None] + tap * mixed.channel
            tl.store(at_mixed, (share * left).to(mixed.data.dtype.element_ty), mask=in_window)
            grad_mix = (tl.sum(seen, 1) - mean).to(grad_gate.data.dtype.element_ty)
            tl.store(_pixel(grad_gate, b, i, j), grad_mix, mask=in_image)
            product = (product - share * mean[:, None]) * left
        else:
            product -= share * mean[:, None]
    tl.store(at, product.to(out.data.dtype.element_ty), mask=in_window)


@jit
@no_type_check
def spread_kernel(
    grad, kernels, out, height, width, groups, channels, parts,
    K: tl.constexpr, S: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, R: tl.constexpr, LW: tl.constexpr,
    C: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile of TH x TW locations gathers C channels from the pixels whose windows contain them.

    R rows of LW pixels are multiplied at a time.
    """
    b, i0, j0, g, part = _corner(height, width, groups, parts, TH, TW, INDEX)
    m = tl.arange(0, TH * TW)
    n = tl.arange(0, R * LW)
    c = part * C + tl.arange(0, C)
    exists = (c < channels)[None, :]
    c = (tl.cast(g, INDEX) * channels + c)[None, :]
    rows: tl.constexpr = (TH + K - 1) * S
    columns: tl.constexpr = (TW + K - 1) * S
    j = (j0 + K // 2 - (K - 1)) * S + n % LW
    v = (m % TW)[:, None] - (n % LW // S)[None, :] + K - 1
    total = tl.zeros([TH * TW, C], tl.float32)
    for first in range(0, rows, R):
        r = first + n // LW
        i = (i0 + K // 2 - (K - 1)) * S + r
        inside = (i >= 0) & (i < height * S) & (j >= 0) & (j < width * S) & (r < rows) & (n % LW < columns)
        u = (m // TW)[:, None] - (r // S)[None, :] + K - 1
        in_window = (u >= 0) & (u < K) & (v >= 0) & (v < K) & inside[None, :]
        tap = g * (K * K) + u * K + v
        weights = tl.load(_pixel(kernels, b, i, j)[None, :] + tap * kernels.channel, mask=in_window, other=0)
        values = tl.load(_pixel(grad, b, i, j)[:, None] + c * grad.channel, mask=inside[:, None] & exists, other=0)
        total = tl.dot(weights.to(FACTOR), values.to(FACTOR), total, input_precision=PRECISION)
    i = i0 + m // TW
    j = j0 + m % TW
    in_image = (i < height) & (j < width)
    at = _pixel(out, b, i, j)[:, None] + c * out.channel
    tl.store(at, total.to(out.data.dtype.element_ty), mask=in_image[:, None] & exists)
