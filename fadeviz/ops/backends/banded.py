"""Reassembly and its gradients as products of banded matrices, for the tensor cores of CUDA devices.

The same maps as in :mod:`.triton`, with the same signatures, for 16 and 32-bit floats. A tile of pixels reads a patch
of low-resolution locations. Of the matrix (pixels of the tile) x (locations of the patch) the kernels fill the K x K
entries of each row that its window covers, and zeros the others:

* :func:`reassemble` is this matrix times (locations x channels) of x,
* :func:`similarity` is (pixels x channels) of the query times (channels x locations) of the key, of which only the
  entries in windows are kept, so that nothing is summed across threads but by the tensor cores,
* :func:`spread` is the transposed matrix, (locations of a tile) x (pixels of the patch), times the gradient.

For K = 5 and scale 2 an 8 x 8 tile reads an 8 x 8 patch: 25 of 64 entries are other than zero, and the tensor cores
have more than that to spare. Factors are rounded to the dtype of the maps (of y, of query and key together, of the
gradient), sums are float32: weights of a half precision map are half precision, as under autocast. In float32 a factor
is the sum of two TF32 numbers and a product three products. Results are the same, bit for bit, from run to run. What is
infinite or NaN in x may make NaN of pixels of the same tile whose windows it is not in.
"""

from __future__ import annotations

from typing import Any, NamedTuple, no_type_check

import torch
from torch import Tensor

from .triton import _ceil, _check, _check_fused, _empty, _jit, _last, _launch, _power, _Size

try:
    import triton.language as tl
except ImportError:
    tl = None


class _Tile(NamedTuple):
    """How work is divided: a program has a tile of rows x columns, and takes so many channels at a time."""

    rows: int  # of pixels; spread: of locations
    columns: int
    channels: int
    warps: int
    stages: int
    inner: int = 64  # spread: pixels that it multiplies at a time


_TUNED = {
    # kernel, whether channels are contiguous, whether in half precision
    ("reassemble", True, True): _Tile(8, 8, 64, 4, 2),
    ("reassemble", True, False): _Tile(8, 8, 32, 4, 1),
    ("reassemble", False, True): _Tile(8, 16, 32, 8, 1),
    ("reassemble", False, False): _Tile(8, 8, 32, 4, 2),
    ("fused reassemble", True, True): _Tile(8, 8, 64, 4, 2),
    ("fused reassemble", True, False): _Tile(8, 8, 64, 4, 2),
    ("fused reassemble", False, True): _Tile(8, 8, 64, 4, 2),
    ("fused reassemble", False, False): _Tile(8, 8, 32, 4, 2),
    ("similarity", True, True): _Tile(8, 8, 64, 4, 3),
    ("similarity", True, False): _Tile(8, 8, 32, 4, 3),
    ("similarity", False, True): _Tile(8, 16, 32, 8, 2),
    ("similarity", False, False): _Tile(8, 8, 32, 4, 2),
    ("fused similarity", True, True): _Tile(8, 8, 64, 4, 3),
    ("fused similarity", True, False): _Tile(8, 8, 32, 4, 2),
    ("fused similarity", False, True): _Tile(8, 16, 32, 8, 2),
    ("fused similarity", False, False): _Tile(8, 8, 32, 4, 2),
    ("spread", True, True): _Tile(8, 4, 256, 4, 2, 32),
    ("spread", True, False): _Tile(4, 4, 128, 4, 2, 32),
    ("spread", False, True): _Tile(4, 8, 64, 4, 2),
    ("spread", False, False): _Tile(4, 8, 64, 4, 2, 32),
}
"""What scripts/time_kernels.py found fastest at (16, 256, 64, 64) on an H200."""

PRECISION = "tf32x3"
"""How float32 is multiplied: as three products of TF32, or "ieee"."""

_ENTRIES = 2**14
"""The largest matrix of a program. More than half of it, in float32 a quarter, takes the registers of 8 warps."""

_FULL = 264
"""Programs that give every multiprocessor two."""


# ------------------------------------------------------------------------------------------------------------- kernels
# M, N: rows and columns of the banded matrix. PH, PW: rows and columns of the tile. LH, LW: of the patch, LC of them
# real where LW is rounded up. C: channels at a time. FACTOR: what factors are rounded to.


@_jit
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


@_jit
@no_type_check
def _at(of, b, i, j):
    return of.data + b * of.batch + i * of.row + j * of.column


@_jit
@no_type_check
def _parents(first, n, SIDE: tl.constexpr, S: tl.constexpr):
    """How many locations behind that of pixel ``first`` the ones of pixels first + n are, in a tile SIDE long."""
    parents = n // S
    if SIDE % S != 0:  # else tiles begin where locations do
        parents = ((first + n) // S - first // S).to(tl.int32)
    return parents


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
    parts,
    each,
    K: tl.constexpr,
    S: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    LH: tl.constexpr,
    LW: tl.constexpr,
    LC: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """Reassembly of ``each`` channels; with ``logits`` their softmax is written to ``kernels`` and used, with ``gate``
    the result is mixed with ``skip``."""
    b, i0, j0, g, part = _corner(height * S, width * S, groups, parts, PH, PW, INDEX)
    m = tl.arange(0, PH * PW)
    n = tl.arange(0, N)
    i = i0 + m // PW
    j = j0 + m % PW
    shown = (i < height * S) & (j < width * S)
    u = (n // LW)[None, :] - _parents(i0, m // PW, PH, S)[:, None]
    v = (n % LW)[None, :] - _parents(j0, m % PW, PW, S)[:, None]
    known = (u >= 0) & (u < K) & (v >= 0) & (v < K) & shown[:, None]
    tap = g * (K * K) + u * K + v
    at = _at(kernels, b, i, j)[:, None] + tap * kernels.channel
    if logits is None:
        weights = tl.load(at, mask=known, other=0)
    else:
        logit = tl.load(_at(logits, b, i, j)[:, None] + tap * logits.channel, mask=known, other=float("-inf"))
        logit = logit.to(tl.float32)
        # Pixels beyond the image have no tap at all; -inf - -inf would be NaN.
        share = tl.exp(logit - tl.where(shown, tl.max(logit, 1), 0)[:, None])
        share *= (1 / tl.where(shown, tl.sum(share, 1), 1))[:, None]
        weights = share.to(kernels.data.dtype.element_ty)
        if part == 0:
            tl.store(at, weights, mask=known)
    weights = weights.to(FACTOR)
    row = i0 // S - K // 2 + n // LW
    column = j0 // S - K // 2 + n % LW
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (n // LW < LH) & (n % LW < LC)
    at_x = _at(x, b, row, column)[:, None]
    at_y = _at(y, b, i, j)[:, None]
    if gate is not None:
        at_skip = _at(skip, b, i, j)[:, None]
        mix = tl.load(_at(gate, b, i, j), mask=shown, other=0).to(tl.float32)[:, None]
    for first in range(part * each, tl.minimum(part * each + each, channels), C):
        c = first + tl.arange(0, C)
        there = (c < channels)[None, :]
        c = (tl.cast(g, INDEX) * channels + c)[None, :]
        values = tl.load(at_x + c * x.channel, mask=inside[:, None] & there, other=0).to(FACTOR)
        mine = tl.dot(weights, values, input_precision=PRECISION)
        if gate is not None:
            other = tl.load(at_skip + c * skip.channel, mask=shown[:, None] & there, other=0).to(tl.float32)
            # From the nearer end, as torch.lerp: gates of 0 and 1 give one of the two exactly.
            mine = tl.where(mix < 0.5, mine + mix * (other - mine), other - (other - mine) * (1 - mix))
        tl.store(at_y + c * y.channel, mine.to(y.data.dtype.element_ty), mask=shown[:, None] & there)


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
    parts,
    K: tl.constexpr,
    S: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    LH: tl.constexpr,
    LW: tl.constexpr,
    LC: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """Inner products of the queries of a tile with all keys of its patch, of which those in windows are written.

    With ``kernels``, a softmax, the query is the gradient of y, and out that of the logits: with D the inner products,
    p the softmax and m the gate, ``(1 - m) * p * (D - sum over taps of p * D)``. That sum is also the inner product of
    the gradient with the reassembled map, which the gate's gradient needs. ``mixed`` is ``(1 - m) * p``.
    """
    b, i0, j0, g, _ = _corner(height * S, width * S, groups, parts, PH, PW, INDEX)
    m = tl.arange(0, PH * PW)
    n = tl.arange(0, N)
    i = i0 + m // PW
    j = j0 + m % PW
    shown = (i < height * S) & (j < width * S)
    row = i0 // S - K // 2 + n // LW
    column = j0 // S - K // 2 + n % LW
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (n // LW < LH) & (n % LW < LC)
    at_query = _at(query, b, i, j)[:, None]
    at_key = _at(key, b, row, column)[:, None]
    if gate is not None:
        at_skip = _at(skip, b, i, j)[:, None]
        at_grad_skip = _at(grad_skip, b, i, j)[:, None]
        mix = tl.load(_at(gate, b, i, j), mask=shown, other=0).to(tl.float32)
        seen = tl.zeros([PH * PW, C], tl.float32)
    product = tl.zeros([PH * PW, N], tl.float32)
    for first in range(0, channels, C):
        c = first + tl.arange(0, C)
        there = (c < channels)[None, :]
        c = (tl.cast(g, INDEX) * channels + c)[None, :]
        grad = tl.load(at_query + c * query.channel, mask=shown[:, None] & there, other=0)
        value = tl.load(at_key + c * key.channel, mask=inside[:, None] & there, other=0)
        product = tl.dot(grad.to(FACTOR), tl.trans(value.to(FACTOR)), product, input_precision=PRECISION)
        if gate is not None:
            wide = grad.to(tl.float32)
            seen += wide * tl.load(at_skip + c * skip.channel, mask=shown[:, None] & there, other=0).to(tl.float32)
            to_skip = (wide * mix[:, None]).to(grad_skip.data.dtype.element_ty)
            tl.store(at_grad_skip + c * grad_skip.channel, to_skip, mask=shown[:, None] & there)
    u = (n // LW)[None, :] - _parents(i0, m // PW, PH, S)[:, None]
    v = (n % LW)[None, :] - _parents(j0, m % PW, PW, S)[:, None]
    known = (u >= 0) & (u < K) & (v >= 0) & (v < K) & shown[:, None]
    tap = g * (K * K) + u * K + v
    at = _at(out, b, i, j)[:, None] + tap * out.channel
    if kernels is not None:
        share = tl.load(_at(kernels, b, i, j)[:, None] + tap * kernels.channel, mask=known, other=0).to(tl.float32)
        product = tl.where(known, product * share, 0)
        mean = tl.sum(product, 1)
        if gate is not None:
            left = (1 - mix)[:, None]
            at_mixed = _at(mixed, b, i, j)[:, None] + tap * mixed.channel
            tl.store(at_mixed, (share * left).to(mixed.data.dtype.element_ty), mask=known)
            grad_mix = (tl.sum(seen, 1) - mean).to(grad_gate.data.dtype.element_ty)
            tl.store(_at(grad_gate, b, i, j), grad_mix, mask=shown)
            product = (product - share * mean[:, None]) * left
        else:
            product -= share * mean[:, None]
    tl.store(at, product.to(out.data.dtype.element_ty), mask=known)


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
    parts,
    K: tl.constexpr,
    S: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    R: tl.constexpr,
    LW: tl.constexpr,
    C: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """A tile of TH x TW locations gathers C channels from the pixels whose windows they are in, R rows of LW pixels at
    a time."""
    b, i0, j0, g, part = _corner(height, width, groups, parts, TH, TW, INDEX)
    m = tl.arange(0, TH * TW)
    n = tl.arange(0, R * LW)
    c = part * C + tl.arange(0, C)
    there = (c < channels)[None, :]
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
        known = (u >= 0) & (u < K) & (v >= 0) & (v < K) & inside[None, :]
        tap = g * (K * K) + u * K + v
        weights = tl.load(_at(kernels, b, i, j)[None, :] + tap * kernels.channel, mask=known, other=0)
        values = tl.load(_at(grad, b, i, j)[:, None] + c * grad.channel, mask=inside[:, None] & there, other=0)
        total = tl.dot(weights.to(FACTOR), values.to(FACTOR), total, input_precision=PRECISION)
    i = i0 + m // TW
    j = j0 + m % TW
    shown = (i < height) & (j < width)
    at = _at(out, b, i, j)[:, None] + c * out.channel
    tl.store(at, total.to(out.data.dtype.element_ty), mask=shown[:, None] & there)


# ------------------------------------------------------------------------------------------------------------ functions


def takes(*tensors: Tensor | None) -> bool:
    """Whether these kernels multiply tensors of such dtypes: all but float64."""
    return all(tensor is None or tensor.dtype in _FACTORS for tensor in tensors)


def reassemble(x: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int = 1) -> Tensor:
    """As :func:`.triton.reassemble`."""
    size = _Size.of(x, kernel_size, scale, groups)
    _check("kernels", kernels, size.kernels)
    y = _empty(size.high, x, x.dtype)
    _reassemble(size, x, kernels, y)
    return y


def similarity(query: Tensor, key: Tensor, kernel_size: int, scale: int, groups: int = 1) -> Tensor:
    """As :func:`.triton.similarity`."""
    size = _Size.of(key, kernel_size, scale, groups)
    _check("query", query, size.high)
    out = _empty(size.kernels, query, torch.promote_types(query.dtype, torch.float32))
    _similarity(size, query, key, out)
    return out


def spread(grad: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int = 1) -> Tensor:
    """As :func:`.triton.spread`."""
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
    """As :func:`.triton.fused_forward`."""
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
    """As :func:`.triton.fused_backward`."""
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

_FACTORS: dict[torch.dtype, Any] = (
    {} if tl is None else {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
)


def _reassemble(
    size: _Size,
    x: Tensor,
    kernels: Tensor,
    y: Tensor,
    logits: Tensor | None = None,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    tile: _Tile | None = None,
    precision: str | None = None,
) -> None:
    tile, patch = _tile_of("reassemble" if logits is None else "fused reassemble", size, x, y.dtype, tile)
    tiles = size.batch * size.groups * _tiles(size.height * size.scale, size.width * size.scale, tile)
    # Few tiles share their channels among several programs, each of which loads the kernels.
    blocks = _ceil(size.channels, tile.channels)
    each = _ceil(blocks, min(blocks, _ceil(_FULL, max(1, tiles)))) * tile.channels
    parts = _ceil(size.channels, each)
    _launch(
        _reassemble_kernel,
        tiles * parts,
        (x, logits, kernels, skip, gate, y),
        (size.height, size.width, size.groups, size.channels, parts, each),
        K=size.kernel_size,
        S=size.scale,
        PH=tile.rows,
        PW=tile.columns,
        **patch,
        C=tile.channels,
        FACTOR=_FACTORS[y.dtype],
        PRECISION=precision or PRECISION,
        num_warps=tile.warps,
        num_stages=tile.stages,
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
    tile: _Tile | None = None,
    precision: str | None = None,
) -> None:
    dtype = torch.promote_types(query.dtype, key.dtype)
    tile, patch = _tile_of("similarity" if kernels is None else "fused similarity", size, key, dtype, tile)
    _launch(
        _similarity_kernel,
        size.batch * size.groups * _tiles(size.height * size.scale, size.width * size.scale, tile),
        (query, key, out, kernels, skip, gate, grad_skip, grad_gate, mixed),
        (size.height, size.width, size.groups, size.channels, 1),
        K=size.kernel_size,
        S=size.scale,
        PH=tile.rows,
        PW=tile.columns,
        **patch,
        C=tile.channels,
        FACTOR=_FACTORS[dtype],
        PRECISION=precision or PRECISION,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _spread(
    size: _Size, grad: Tensor, kernels: Tensor, out: Tensor, tile: _Tile | None = None, precision: str | None = None
) -> None:
    tile = tile or _TUNED["spread", _last(grad), grad.dtype != torch.float32]
    channels = min(tile.channels, max(16, _power(size.channels)))
    columns = max(16, _power((tile.columns + size.kernel_size - 1) * size.scale))
    parts = _ceil(size.channels, channels)
    _launch(
        _spread_kernel,
        size.batch * size.groups * parts * _tiles(size.height, size.width, tile),
        (grad, kernels, out),
        (size.height, size.width, size.groups, size.channels, parts),
        K=size.kernel_size,
        S=size.scale,
        TH=tile.rows,
        TW=tile.columns,
        R=max(1, tile.inner // columns),
        LW=columns,
        C=channels,
        FACTOR=_FACTORS[grad.dtype],
        PRECISION=precision or PRECISION,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _tile_of(
    kernel: str, size: _Size, of: Tensor, dtype: torch.dtype, tile: _Tile | None
) -> tuple[_Tile, dict[str, int]]:
    """The tile, where not given smaller for large windows, and the patch that it reads."""
    last, half = _last(of), dtype != torch.float32
    if tile is None:
        tile = _TUNED[kernel, last, half]
        while tile.rows * tile.columns > 16 and _entries(size, tile, last) > _ENTRIES:
            larger = "columns" if tile.columns > tile.rows else "rows"
            tile = tile._replace(**{larger: getattr(tile, larger) // 2})
        if _entries(size, tile, last) > _ENTRIES // (2 if half else 4):
            tile = tile._replace(warps=8, channels=min(tile.channels, 32 if half else 16))
    return tile._replace(channels=min(tile.channels, max(16, _power(size.channels)))), _patch(size, tile, last)


def _patch(size: _Size, tile: _Tile, last: bool) -> dict[str, int]:
    """Rows and columns of the locations that a tile's windows cover. Where columns are contiguous in memory they are
    rounded up, so that Triton sees it."""
    rows, columns = (
        (side // size.scale if side % size.scale == 0 else (side + size.scale - 2) // size.scale + 1)
        + size.kernel_size
        - 1
        for side in (tile.rows, tile.columns)
    )
    held = columns if last else _power(columns)
    return {"LH": rows, "LW": held, "LC": columns, "N": max(16, _power(rows * held))}


def _entries(size: _Size, tile: _Tile, last: bool) -> int:
    return tile.rows * tile.columns * _patch(size, tile, last)["N"]


def _tiles(rows: int, columns: int, tile: _Tile) -> int:
    return _ceil(rows, tile.rows) * _ceil(columns, tile.columns)
