"""Shared host code of the Triton kernels: the sizes of a reassembly, arithmetic of blocks, and the launch."""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import FadevizError

VERSION: tuple[int, ...] = ()
"""Triton's version; empty if it is not installed."""

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None
else:
    VERSION = tuple(int(n) for n in triton.__version__.split(".")[:2])
    if VERSION < (3, 3):
        triton = tl = None  # It cannot pass tuples to kernels.

# Without Triton the kernels remain plain functions that are never called: a launch raises an error that advises
# what to install.
jit: Any = (lambda function: function) if triton is None else triton.jit

_INT32_ELEMENTS = 2**31
"""Tensors with this many elements or more need 64-bit offsets."""


class KernelMap(NamedTuple):
    """A four-dimensional tensor as kernels see it: its first element and the stride of each axis."""

    data: Any
    batch: Any
    channel: Any
    row: Any
    column: Any


class Size(NamedTuple):
    """The sizes of one reassembly."""

    batch: int
    groups: int
    channels: int  # of a group
    height: int  # of x
    width: int
    kernel_size: int
    scale: int

    @property
    def low(self) -> tuple[int, ...]:
        """The shape of x."""
        return self.batch, self.groups * self.channels, self.height, self.width

    @property
    def high(self) -> tuple[int, ...]:
        """The shape of y."""
        return self.batch, self.groups * self.channels, self.height * self.scale, self.width * self.scale

    @property
    def kernels(self) -> tuple[int, ...]:
        """The shape of the kernels."""
        return self.batch, self.groups * self.kernel_size**2, self.height * self.scale, self.width * self.scale

    @property
    def pixels(self) -> tuple[int, ...]:
        """The shape of a gate."""
        return self.batch, 1, self.height * self.scale, self.width * self.scale


class SoftmaxBackward(NamedTuple):
    """Further operands of a similarity kernel that continues to the gradient of the softmax and of the gate.

    The last five are given together, or not at all: there is no gate then.
    """

    kernels: Tensor
    """The softmax."""
    skip: Tensor | None = None
    gate: Tensor | None = None
    grad_skip: Tensor | None = None
    """Written: the gradient of ``skip``."""
    grad_gate: Tensor | None = None
    """Written: the gradient of ``gate``."""
    mixed: Tensor | None = None
    """Written: ``(1 - gate) * kernels``, with which the gradient of x is a plain spread."""


NO_SOFTMAX = (None,) * len(SoftmaxBackward._fields)
"""The arguments of a similarity kernel in place of a :class:`SoftmaxBackward`."""


def launch(
    kernel: Any, programs: int, tensors: tuple[Tensor | None, ...], sizes: tuple[int, ...], **constants: object
) -> None:
    """Run a kernel on the tensors' device, unless there is nothing to do.

    Raises:
        FadevizError: if Triton is not installed, or older than 3.3.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    if not programs or not all(tensor.numel() for tensor in present):
        return
    if triton is None:
        raise FadevizError('this computation needs Triton, 3.3 or newer: pip install "triton>=3.3"')
    device = present[0].device
    maps = [None if tensor is None else KernelMap(tensor, *tensor.stride()) for tensor in tensors]
    # Triton launches on the current device, whatever the tensors are on.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](
            *maps,
            *sizes,
            **constants,
            INDEX=tl.int64 if any(map(_needs_int64, present)) else tl.int32,
            ACC=tl.float64 if any(tensor.dtype == torch.float64 for tensor in present) else tl.float32,
            enable_fp_fusion=True,
        )


def _needs_int64(tensor: Tensor) -> bool:
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return last >= _INT32_ELEMENTS


def are_channels_contiguous(tensor: Tensor) -> bool:
    """Whether neighbouring channels are neighbours in memory; else the kernels take columns to be."""
    return tensor.stride(1) == 1 and tensor.shape[1] > 1


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(n: int, step: int) -> int:
    """n / step, rounded up."""
    return math.ceil(n / step)


__all__ = [
    "NO_SOFTMAX",
    "VERSION",
    "KernelMap",
    "Size",
    "SoftmaxBackward",
    "are_channels_contiguous",
    "ceil_div",
    "jit",
    "launch",
    "power_of_two",
    "tl",
    "triton",
]
