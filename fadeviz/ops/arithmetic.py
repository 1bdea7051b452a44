"""Torch's global switches of the arithmetic on a GPU: TF32 in place of float32, and deterministic algorithms."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in the convolutions and matrix products of float32 inside the block.

    TF32 rounds the factors to 10 bits of mantissa; sums stay float32. It exists on NVIDIA GPUs since Ampere and does
    not change the arithmetic of a CPU. Torch's own default allows it in convolutions and forbids it in matrix products.
    """
    # Since torch 2.9 convolutions, recurrent layers and matrix products have settings of their own beside the older
    # flags, which can be read only where both agree; a caller may have set either.
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    own = [(part, part.fp32_precision) for part in (cudnn.conv, cudnn.rnn, matmul)] if hasattr(cudnn, "conv") else []
    flags = [(part, _flag(part)) for part in (cudnn, matmul)]
    with _quiet():
        for part, _ in flags:
            part.allow_tf32 = allowed
    for part, _ in own:
        part.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        with _quiet():
            for part, value in flags:
                if value is not None:
                    part.allow_tf32 = value
        for part, value in own:
            part.fp32_precision = value


def _flag(part: Any) -> bool | None:
    """Whether TF32 is allowed; None where the caller's settings of torch 2.9 have no such form."""
    try:
        with _quiet():
            return bool(part.allow_tf32)
    except RuntimeError:
        return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice of some versions of torch to use the newer settings, which older versions do not have."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings")
        yield


WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""The environment variable without which cuBLAS may sum in another order when streams run side by side."""


@contextlib.contextmanager
def same_algorithms(deterministic: bool) -> Iterator[None]:
    """On a GPU: the same convolution algorithms in every process. On a CPU this changes nothing.

    cuDNN's benchmark stays off, since it chooses algorithms by timing them: two processes could choose differently.

    Args:
        deterministic: also use deterministic algorithms in torch's own operators, where it has them, on any device;
            torch warns of the others. ``CUBLAS_WORKSPACE_CONFIG`` takes effect only before the process has first
            multiplied matrices on the GPU.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(WORKSPACE)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        if deterministic:
            os.environ.setdefault(WORKSPACE, ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
        if deterministic:
            torch.use_deterministic_algorithms(enabled, warn_only=warns)
            if workspace is None:
                os.environ.pop(WORKSPACE, None)


__all__ = ["WORKSPACE", "same_algorithms", "tf32"]
