"""Launches of the kernels in :mod:`.banded_kernels`: reassembly and its gradients on the tensor cores of CUDA devices.

A tile of pixels reads a patch of low-resolution locations. Of the matrix (pixels of the tile) x (locations of the
patch) the kernels fill the K x K entries of each row that its window covers, and set the others to zero:

* :func:`reassemble` is this matrix times (locations x channels) of x,
* :func:`similarity` is (pixels x channels) of the query times (channels x locations) of the key, of which only the
  entries in windows are kept, so that sums across threads are left to the tensor cores,
* :func:`spread` is the transposed matrix, (locations of a tile) x (pixels of the patch), times the gradient.

For K = 5 and scale 2 an 8 x 8 tile reads an 8 x 8 patch: 25 of 64 entries of a row are not zero, and the tensor cores
are fast enough for the rest. Factors are rounded to the dtype of the maps (of y, of query and key together, of the
gradient), sums are float32: weights of a half precision map are half precision, as under autocast. In float32 a factor
is the sum of two TF32 numbers, and a product three products. Results are the same, bit for bit, from run to run. An
infinite or NaN value in x may turn pixels of the same tile into NaN whose windows do not contain it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .banded_kernels import reassemble_kernel, similarity_kernel, spread_kernel
from .launch import NO_SOFTMAX, Size, SoftmaxBackward, are_channels_contiguous, ceil_div, launch, power_of_two, tl


class Tile(NamedTuple):
    """How work is divided: a program has a tile of rows x columns, and takes ``channels`` at a time."""

    rows: int  # of pixels; spread: of locations
    columns: int
    channels: int
    warps: int
    stages: int
    inner: int = 64  # spread: pixels that it multiplies at a time


class Tuning(NamedTuple):
    """How a launch computes; the scripts that measure kernels change it."""

    tile: Tile | None = None
    """None: that of the table."""
    precision: str = "tf32x3"
    """How float32 is multiplied: as three products of TF32, or "ieee"."""


_DEFAULT = Tuning()

_TUNED = {
    # kernel, whether channels are contiguous, whether in half precision
    ("reassemble", True, True): Tile(8, 8, 64, 4, 2),
    ("reassemble", True, False): Tile(8, 8, 32, 4, 1),
    ("reassemble", False, True): Tile(8, 16, 32, 8, 1),
    ("reassemble", False, False): Tile(8, 8, 32, 4, 2),
    ("fused reassemble", True, True): Tile(8, 8, 64, 4, 2),
    ("fused reassemble", True, False): Tile(8, 8, 64, 4, 2),
    ("fused reassemble", False, True): Tile(8, 8, 64, 4, 2),
    ("fused reassemble", False, False): Tile(8, 8, 32, 4, 2),
    ("similarity", True, True): Tile(8, 8, 64, 4, 3),
    ("similarity", True, False): Tile(8, 8, 32, 4, 3),
    ("similarity", False, True): Tile(8, 16, 32, 8, 2),
    ("similarity", False, False): Tile(8, 8, 32, 4, 2),
    ("fused similarity", True, True): Tile(8, 8, 64, 4, 3),
    ("fused similarity", True, False): Tile(8, 8, 32, 4, 2),
    ("fused similarity", False, True): Tile(8, 16, 32, 8, 2),
    ("fused similarity", False, False): Tile(8, 8, 32, 4, 2),
    ("spread", True, True): Tile(8, 4, 256, 4, 2, 32),
    ("spread", True, False): Tile(4, 4, 128, 4, 2, 32),
    ("spread", False, True): Tile(4, 8, 64, 4, 2),
    ("spread", False, False): Tile(4, 8, 64, 4, 2, 32),
}
"""The fastest setting, by scripts/time_kernels.py, at (16, 256, 64, 64) on an H200."""

_ENTRIES = 2**14
"""The largest matrix of a program. More than half of it, in float32 a quarter, takes the registers of 8 warps."""

_FULL = 264
"""Programs that give every multiprocessor two."""

_FACTORS: dict[torch.dtype, Any] = (
    {} if tl is None else {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
)


def is_supported(*tensors: Tensor | None) -> bool:
    """Whether these kernels multiply tensors of these dtypes: all but float64."""
    return all(tensor is None or tensor.dtype in _FACTORS for tensor in tensors)


def reassemble(
    size: Size,
    x: Tensor,
    kernels: Tensor,
    y: Tensor,
    logits: Tensor | None = None,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    tuning: Tuning = _DEFAULT,
) -> None:
    """Fill y; with ``logits`` also ``kernels``, their softmax, and with a gate y is mixed with ``skip``."""
    tile, patch = _tile_of("reassemble" if logits is None else "fused reassemble", size, x, y.dtype, tuning.tile)
    tiles = size.batch * size.groups * _tiles(size.height * size.scale, size.width * size.scale, tile)
    # Few tiles divide their channels among several programs, each of which loads the kernels.
    blocks = ceil_div(size.channels, tile.channels)
    each = ceil_div(blocks, min(blocks, ceil_div(_FULL, max(1, tiles)))) * tile.channels
    parts = ceil_div(size.channels, each)
    launch(
        reassemble_kernel,
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
        PRECISION=tuning.precision,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def similarity(
    size: Size,
    query: Tensor,
    key: Tensor,
    out: Tensor,
    softmax: SoftmaxBackward | None = None,
    tuning: Tuning = _DEFAULT,
) -> None:
    """Fill ``out`` with the logits or, with ``softmax``, with their gradient, the query being that of y."""
    dtype = torch.promote_types(query.dtype, key.dtype)
    tile, patch = _tile_of("similarity" if softmax is None else "fused similarity", size, key, dtype, tuning.tile)
    launch(
        similarity_kernel,
        size.batch * size.groups * _tiles(size.height * size.scale, size.width * size.scale, tile),
        (query, key, out, *(softmax or NO_SOFTMAX)),
        (size.height, size.width, size.groups, size.channels, 1),
        K=size.kernel_size,
        S=size.scale,
        PH=tile.rows,
        PW=tile.columns,
        **patch,
        C=tile.channels,
        FACTOR=_FACTORS[dtype],
        PRECISION=tuning.precision,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def spread(size: Size, grad: Tensor, kernels: Tensor, out: Tensor, tuning: Tuning = _DEFAULT) -> None:
    """Fill ``out``, the gradient of x."""
    tile = tuning.tile or _TUNED["spread", are_channels_contiguous(grad), grad.dtype != torch.float32]
    channels = min(tile.channels, max(16, power_of_two(size.channels)))
    columns = max(16, power_of_two((tile.columns + size.kernel_size - 1) * size.scale))
    parts = ceil_div(size.channels, channels)
    launch(
        spread_kernel,
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
        PRECISION=tuning.precision,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _tile_of(kernel: str, size: Size, of: Tensor, dtype: torch.dtype, tile: Tile | None) -> tuple[Tile, dict[str, int]]:
    """The tile, by default smaller for large windows, and the patch that it reads."""
    last, half = are_channels_contiguous(of), dtype != torch.float32
    if tile is None:
        tile = _TUNED[kernel, last, half]
        while tile.rows * tile.columns > 16 and _entries(size, tile, last) > _ENTRIES:
            larger = "columns" if tile.columns > tile.rows else "rows"
            tile = tile._replace(**{larger: getattr(tile, larger) // 2})
        if _entries(size, tile, last) > _ENTRIES // (2 if half else 4):
            tile = tile._replace(warps=8, channels=min(tile.channels, 32 if half else 16))
    return tile._replace(channels=min(tile.channels, max(16, power_of_two(size.channels)))), _patch(size, tile, last)


def _patch(size: Size, tile: Tile, last: bool) -> dict[str, int]:
    """Rows and columns of the locations that a tile's windows cover.

    Where columns are contiguous in memory their number is rounded up to a power of two, which Triton recognises.
    """
    rows, columns = (
        (side // size.scale if side % size.scale == 0 else (side + size.scale - 2) // size.scale + 1)
        + size.kernel_size
        - 1
        for side in (tile.rows, tile.columns)
    )
    padded = columns if last else power_of_two(columns)
    return {"LH": rows, "LW": padded, "LC": columns, "N": max(16, power_of_two(rows * padded))}


def _entries(size: Size, tile: Tile, last: bool) -> int:
    return tile.rows * tile.columns * _patch(size, tile, last)["N"]


def _tiles(rows: int, columns: int, tile: Tile) -> int:
    return ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns)
