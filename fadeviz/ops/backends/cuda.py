"""Reassembly and its gradients on a CUDA device, by Triton kernels: checks, memory for results, choice of kernels.

The three maps of the family are bilinear, and each is the derivative of another: :func:`reassemble`, its adjoint with
respect to x, :func:`spread`, and with respect to the kernels, :func:`similarity`. :func:`fused_forward` is softmax,
reassembly and gate in one kernel, which also writes the softmax; :func:`fused_backward` is its gradient in two kernels,
of which the first writes the kernels that the second, a plain spread, needs.

Two kinds of kernels compute them, :mod:`.direct` and :mod:`.banded`; the faster one is chosen by measurement on an H200
(``scripts/time_kernels.py``). The banded products are 1.2 to 10 times faster, except in the float32 forward pass of
channels-last maps; float64 has no tensor cores that Triton uses.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ...errors import FadevizError
from ..memory_format import empty
from . import banded, direct, direct_kernels
from .launch import Size, SoftmaxBackward, are_channels_contiguous, triton


def available(device: torch.device | str) -> bool:
    """Whether the kernels run on ``device``: a CUDA device, with Triton 3.3 or newer installed.

    With ``TRITON_INTERPRET=1``, set before this module was imported, Triton interprets the kernels on every device.
    """
    return triton is not None and (torch.device(device).type == "cuda" or _is_interpreted())


def _is_interpreted() -> bool:
    return not isinstance(direct_kernels.reassemble_kernel, triton.JITFunction)


def reassemble(x: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int = 1) -> Tensor:
    """Every output pixel is the weighted sum of the K x K window around its low-resolution parent.

    See :func:`fadeviz.ops.reassemble.reassemble`.

    Args:
        x: ``(B, C, h, w)``, any strides.
        kernels: ``(B, G*K*K, s*h, s*w)``, any strides.
        kernel_size: K.
        scale: s.
        groups: G, a divisor of C.

    Returns:
        ``(B, C, s*h, s*w)`` in x's dtype and memory format.

    Raises:
        FadevizError: if the shapes do not match.
    """
    size = _size_of(x, kernel_size, scale, groups)
    _check("kernels", kernels, size.kernels)
    y = empty(x, size.high)
    choose_forward(x, kernels).reassemble(size, x, kernels, y)
    return y


def similarity(query: Tensor, key: Tensor, kernel_size: int, scale: int, groups: int = 1) -> Tensor:
    """The inner product of every high-resolution query with the K x K keys around its low-resolution parent.

    See :func:`fadeviz.ops.reassemble.similarity`. With the gradient of y as the query and x as the key this is the
    gradient of :func:`reassemble` with respect to the kernels.

    Args:
        query: ``(B, C, s*h, s*w)``, any strides.
        key: ``(B, C, h, w)``, any strides.
        kernel_size: K.
        scale: s.
        groups: G, a divisor of C.

    Returns:
        ``(B, G*K*K, s*h, s*w)`` in float32 or better and query's memory format.

    Raises:
        FadevizError: if the shapes do not match.
    """
    size = _size_of(key, kernel_size, scale, groups)
    _check("query", query, size.high)
    out = empty(query, size.kernels, torch.promote_types(query.dtype, torch.float32))
    choose(query, key).similarity(size, query, key, out)
    return out


def spread(grad: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int = 1) -> Tensor:
    """The gradient of :func:`reassemble` with respect to x: every location sums over the pixels that it contributed to.

    Args:
        grad: ``(B, C, s*h, s*w)``, any strides.
        kernels: ``(B, G*K*K, s*h, s*w)``, any strides.
        kernel_size: K.
        scale: s.
        groups: G, a divisor of C.

    Returns:
        ``(B, C, h, w)`` in grad's dtype and memory format.

    Raises:
        FadevizError: if the shapes do not match.
    """
    b, c, rows, columns = grad.shape
    out = empty(grad, (b, c, rows // scale, columns // scale))
    size = _size_of(out, kernel_size, scale, groups)
    _check("grad", grad, size.high)
    _check("kernels", kernels, size.kernels)
    choose(grad, kernels).spread(size, grad, kernels, out)
    return out


def fused_forward(
    x: Tensor, logits: Tensor, kernel_size: int, scale: int, skip: Tensor | None = None, gate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``r = reassemble(x, softmax(logits))``; with ``skip`` and ``gate``, ``y = lerp(r, skip, gate)``.

    Args:
        x: ``(B, C, h, w)``, any strides, as all others.
        logits: ``(B, K*K, s*h, s*w)``.
        kernel_size: K.
        scale: s.
        skip: ``(B, C, s*h, s*w)``.
        gate: ``(B, 1, s*h, s*w)``; 1 takes skip, 0 the reassembled map.

    Returns:
        y, ``(B, C, s*h, s*w)`` in the dtype that x and skip promote to and x's memory format; and the softmax, in the
        logits' shape, dtype and memory format.

    Raises:
        FadevizError: if the shapes do not match, or only one of skip and gate is given.
    """
    size = _size_of(x, kernel_size, scale, 1)
    _check_fused(size, "logits", logits, skip, gate)
    y = empty(x, size.high, x.dtype if skip is None else torch.promote_types(x.dtype, skip.dtype))
    kernels = empty(logits, size.kernels)
    choose_forward(x, logits, skip, gate).reassemble(size, x, kernels, y, logits, skip, gate)
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
    """The gradients of :func:`fused_forward`'s y with respect to x, logits, skip and gate, given that of y.

    The reassembled map is neither read nor written.

    Args:
        grad: ``(B, C, s*h, s*w)``, any strides.
        x: the input of :func:`fused_forward`.
        kernels: the softmax that it returned.
        kernel_size: K.
        scale: s.
        skip: its input.
        gate: its input.

    Returns:
        One gradient for each of x, logits, skip and gate, of their dtype and memory format; None for None.

    Raises:
        FadevizError: if the shapes do not match, or only one of skip and gate is given.
    """
    size = _size_of(x, kernel_size, scale, 1)
    _check("grad", grad, size.high)
    _check_fused(size, "kernels", kernels, skip, gate)
    module = choose(grad, x, kernels, skip, gate)
    grad_x, grad_logits = empty(x, size.low), empty(kernels, size.kernels)
    if skip is None or gate is None:
        module.similarity(size, grad, x, grad_logits, SoftmaxBackward(kernels))
        module.spread(size, grad, kernels, grad_x)
        return grad_x, grad_logits, None, None
    grad_skip, grad_gate = empty(skip, size.high), empty(gate, size.pixels)
    mixed = torch.empty_like(grad_logits)
    softmax = SoftmaxBackward(kernels, skip, gate, grad_skip, grad_gate, mixed)
    module.similarity(size, grad, x, grad_logits, softmax)
    module.spread(size, grad, mixed, grad_x)
    return grad_x, grad_logits, grad_skip, grad_gate


def choose(*tensors: Tensor | None) -> ModuleType:
    """The module whose kernels compute a gradient from these tensors: :mod:`.banded` or :mod:`.direct`."""
    return banded if banded.is_supported(*tensors) else direct


def choose_forward(x: Tensor, *rest: Tensor | None) -> ModuleType:
    """The module whose kernels reassemble x."""
    return direct if x.dtype == torch.float32 and are_channels_contiguous(x) else choose(x, *rest)


def _size_of(x: Tensor, kernel_size: int, scale: int, groups: int) -> Size:
    b, c, h, w = x.shape
    if c % groups:
        raise FadevizError(f"reassemble: {c} channels do not divide into {groups} groups")
    return Size(b, groups, c // groups, h, w, kernel_size, scale)


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    # A kernel that reads beyond a tensor terminates the process, or worse, does not.
    if tuple(tensor.shape) != shape:
        raise FadevizError(f"reassemble: {name} is {tuple(tensor.shape)}, the other maps and sizes need {shape}")


def _check_fused(size: Size, name: str, kernels: Tensor, skip: Tensor | None, gate: Tensor | None) -> None:
    _check(name, kernels, size.kernels)
    if skip is not None:
        _check("skip", skip, size.high)
    if gate is not None:
        _check("gate", gate, size.pixels)
    if (skip is None) != (gate is None):
        raise FadevizError("reassemble: skip and gate belong together: give both or neither")


__all__ = ["available", "fused_backward", "fused_forward", "reassemble", "similarity", "spread"]
