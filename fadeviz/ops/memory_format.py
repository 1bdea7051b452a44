"""New maps in the memory format of a given one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def memory_format_of(like: Tensor) -> torch.memory_format:
    """``channels_last`` or ``contiguous_format``; a map that is both, as 1x1 maps are, counts as contiguous."""
    last = not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised memory on the device, in the memory format and, by default, in the dtype of ``like``."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format_of(like))


def with_strides_of(like: Tensor, values: Tensor) -> Tensor:
    """The same values with the strides of another map of their shape, which the compiler takes for granted."""
    return values if values.stride() == like.stride() else torch.empty_like(like).copy_(values)
