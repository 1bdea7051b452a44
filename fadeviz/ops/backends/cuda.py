"""Which kernels compute reassembly on a CUDA device: of :mod:`.triton` and :mod:`.banded` the faster ones.

By measurement on an H200 (``scripts/time_kernels.py``): the banded products are 1.2 to 10 times faster, but in float32
not the forward pass of channels-last maps; float64 has no tensor cores that Triton uses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import banded, triton
from .triton import available


def reassemble(x: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int = 1) -> Tensor:
    """As :func:`.triton.reassemble`."""
    rows = x.dtype == torch.float32 and triton._last(x)
    by = triton if rows or not banded.takes(x, kernels) else banded
    return by.reassemble(x, kernels, kernel_size, scale, groups)


def similarity(query: Tensor, key: Tensor, kernel_size: int, scale: int, groups: int = 1) -> Tensor:
    """As :func:`.triton.similarity`."""
    return (banded if banded.takes(query, key) else triton).similarity(query, key, kernel_size, scale, groups)


def spread(grad: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int = 1) -> Tensor:
    """As :func:`.triton.spread`."""
    return (banded if banded.takes(grad, kernels) else triton).spread(grad, kernels, kernel_size, scale, groups)


def fused_forward(
    x: Tensor, logits: Tensor, kernel_size: int, scale: int, skip: Tensor | None = None, gate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`.triton.fused_forward`."""
    rows = x.dtype == torch.float32 and triton._last(x)
    by = triton if rows or not banded.takes(x, logits, skip, gate) else banded
    return by.fused_forward(x, logits, kernel_size, scale, skip, gate)


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
    by = banded if banded.takes(grad, x, kernels, skip, gate) else triton
    return by.fused_backward(grad, x, kernels, kernel_size, scale, skip, gate)


__all__ = ["available", "fused_backward", "fused_forward", "reassemble", "similarity", "spread"]
