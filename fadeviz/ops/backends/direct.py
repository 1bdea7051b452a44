"""Launches of the kernels in :mod:`.direct_kernels`: reassembly and its gradients by fused multiply-adds.

A program owns a segment of one row of low-resolution locations, a block of channels and up to 4 of the s*s sub-pixels
of each location, its "phases": a value of x is loaded once for all of them. Nothing is copied or reordered: strides
give the address of an element (but before Triton 3.7, :func:`spread` copies contiguous maps of scale 2 to channels-last
memory). Sums are float32, or float64 where an input is float64, in a fixed order and without atomics: results are the
same, bit for bit, from run to run.

How work is divided among threads is in a small table, ``_TUNED``, which ``scripts/tune_triton.py`` measures on a
device. Its present entries were chosen by counting instructions, loads and registers in the machine code for sm_90, as
``tests/test_triton_compile.py`` does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .direct_kernels import reassemble_kernel, similarity_kernel, spread_kernel
from .launch import (
    NO_SOFTMAX,
    VERSION,
    Size,
    SoftmaxBackward,
    are_channels_contiguous,
    ceil_div,
    launch,
    power_of_two,
)


class Blocks(NamedTuple):
    """How a program divides its work among threads."""

    threads: int  # side by side along the contiguous axis
    warps: int
    channels: int  # of a thread; similarity takes what one load brings
    locations: int  # of a thread: neighbouring columns in reassemble, neighbouring rows in spread


_TUNED = {
    # kernel, whether channels are contiguous
    ("reassemble", True): Blocks(32, 4, 8, 1),
    ("reassemble", False): Blocks(32, 4, 8, 1),
    ("similarity", True): Blocks(4, 4, 0, 1),
    ("similarity", False): Blocks(32, 4, 0, 1),
    ("fused similarity", True): Blocks(8, 4, 0, 1),
    ("fused similarity", False): Blocks(32, 4, 0, 1),
    ("spread", True): Blocks(32, 4, 8, 4),
    ("spread", False): Blocks(32, 4, 8, 4),
}
"""The output of scripts/tune_triton.py."""

_OLD = VERSION < (3, 7)

_BUSY = 1024
"""Programs that fill a GPU twice over. With more than these, programs can share work instead of dividing it."""


def reassemble(
    size: Size,
    x: Tensor,
    kernels: Tensor,
    y: Tensor,
    logits: Tensor | None = None,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
) -> None:
    """Fill y; with ``logits`` also ``kernels``, their softmax, and with a gate y is mixed with ``skip``."""
    columns, channels, blocks, warps, locations = _block_of("reassemble", size, x)
    segments = size.batch * _phase_rows(size) * ceil_div(size.width, columns * locations) * size.groups
    parts = ceil_div(size.channels, channels * blocks)
    if logits is not None:  # each part of the channels computes their softmax
        parts = max(1, min(parts, ceil_div(_BUSY, max(1, segments))))
    launch(
        reassemble_kernel,
        segments * parts,
        (x, logits, kernels, skip, gate, y),
        (size.height, size.width, size.groups, size.channels, parts),
        K=size.kernel_size,
        S=size.scale,
        P=_phases(size),
        T=columns,
        E=locations,
        C=channels,
        N=blocks,
        FULL=size.channels % (channels * blocks) == 0,
        ONCE=size.channels <= channels * blocks * parts,
        LAST=are_channels_contiguous(x),
        TAPS=power_of_two(size.kernel_size**2),
        num_warps=warps,
        # Without a limit the assembler may spill a few registers to fit one more block on a processor.
        maxnreg=128 if locations == 1 and are_channels_contiguous(x) and x.element_size() <= 4 else None,
    )


def similarity(size: Size, query: Tensor, key: Tensor, out: Tensor, softmax: SoftmaxBackward | None = None) -> None:
    """Fill ``out`` with the logits or, with ``softmax``, with their gradient, the query being that of y."""
    columns, channels, run, warps = _lanes_of("similarity" if softmax is None else "fused similarity", size, key)
    rows = max(1, min(size.kernel_size, 64 // (size.kernel_size * _phases(size)), 32 // size.kernel_size))
    rows = ceil_div(size.kernel_size, ceil_div(size.kernel_size, rows))
    launch(
        similarity_kernel,
        size.batch * _phase_rows(size) * ceil_div(size.width, columns) * size.groups,
        (query, key, out, *(softmax or NO_SOFTMAX)),
        (size.height, size.width, size.groups, size.channels, 1),
        K=size.kernel_size,
        S=size.scale,
        P=_phases(size),
        T=columns,
        C=channels,
        V=run,
        U=rows,
        W=power_of_two(rows * size.kernel_size),
        LAST=are_channels_contiguous(key),
        num_warps=warps,
        # Three blocks of 128 threads fit a processor, with float32. Without a limit the assembler of one version takes
        # a few more registers without need, that of another spills a few. The fused kernel needs all.
        maxnreg=None if softmax is not None else 168 if key.element_size() == 4 else 192,
    )


def spread(size: Size, grad: Tensor, kernels: Tensor, out: Tensor) -> None:
    """Fill ``out``, the gradient of x."""
    if _OLD and size.scale == 2 and not are_channels_contiguous(grad):
        # Triton 3.6 lays blocks of every other column out so that registers do not suffice.
        grad, kernels, result = (t.contiguous(memory_format=torch.channels_last) for t in (grad, kernels, out))
        if are_channels_contiguous(grad):
            spread(size, grad, kernels, result)
            out.copy_(result)
            return
    columns, channels, blocks, warps, rows = _block_of("spread", size, grad)
    parts = ceil_div(size.channels, channels * blocks)
    segments = size.batch * ceil_div(size.width, columns) * size.groups * parts
    # Four rows together read 8 rows of pixels' parents where single ones read 5 each (K = 5).
    while rows > 1 and segments * ceil_div(size.height, rows) < _BUSY:
        rows //= 2
    launch(
        spread_kernel,
        segments * ceil_div(size.height, rows),
        (grad, kernels, out),
        (size.height, size.width, size.groups, size.channels, parts),
        K=size.kernel_size,
        S=size.scale,
        R=rows,
        Q=2 if size.scale == 2 and not are_channels_contiguous(grad) else 1,
        T=columns,
        C=channels,
        N=blocks,
        FULL=size.channels % (channels * blocks) == 0,
        LAST=are_channels_contiguous(grad),
        num_warps=warps,
    )


def _phases(size: Size) -> int:
    """Sub-pixels that one program computes: both rows of scale 2, one row of any other."""
    return 4 if size.scale == 2 else size.scale


def _phase_rows(size: Size) -> int:
    return size.height * size.scale**2 // _phases(size)


def _block_of(kernel: str, size: Size, of: Tensor) -> tuple[int, int, int, int, int]:
    """Columns, channels and number of the blocks of a program, its warps, and the locations of a thread.

    With channels contiguous a thread loads 16 bytes of them at a time; otherwise a warp lies along the columns, so that
    loads coalesce, and its threads have the channels.
    """
    threads, warps, channels, locations = _TUNED[kernel, are_channels_contiguous(of)]
    if are_channels_contiguous(of):
        run = 16 // of.element_size()
        threads = min(threads, power_of_two(ceil_div(size.channels, channels)))
        columns = min(32 * warps // threads, power_of_two(size.width))
        return columns, threads * run, max(1, channels // run), warps, locations
    columns = min(threads, power_of_two(size.width))
    return columns, min(channels * 32 * warps // columns, power_of_two(size.channels)), 1, warps, locations


def _lanes_of(kernel: str, size: Size, of: Tensor) -> tuple[int, int, int, int]:
    """Columns, threads of a location, channels that a thread loads at a time, and warps; divided likewise."""
    threads, warps, _, _ = _TUNED[kernel, are_channels_contiguous(of)]
    if are_channels_contiguous(of):
        run = 16 // of.element_size()
        threads = min(threads, power_of_two(ceil_div(size.channels, run)))
        return min(32 * warps // threads, power_of_two(size.width)), threads, run, warps
    columns = min(threads, power_of_two(size.width))
    return columns, min(32 * warps // columns, power_of_two(size.channels)), 1, warps
