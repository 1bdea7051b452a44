"""The weighted-window sum that CARAFE, A2U, FADE and SAPA share, SAPA's similarity, and the softmax of kernels.

The family consists of three maps, each linear in both of its arguments:

- ``reassemble(x, w)``: output pixels as weighted sums of low-resolution windows;
- ``similarity(y, x)``: every output pixel's inner products with its window, SAPA's logits;
- ``spread(y, w)``: output pixels added back to the windows they came from.

The gradients of each are the two others, so that the derivatives of every order consist of these three.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from ..errors import FadevizError, unknown_name
from . import torch_ops
from .backends.tiles import is_autocast
from .torch_ops import BACKENDS, choose_backend


class KernelSoftmax(nn.Module):
    """Softmax over the K*K weights of every reassembly kernel: ``(B, G*K*K, H, W)`` logits -> kernels that sum to 1.

    A module of its own so that a probe can record it: ``kernel_entropy`` is computed from its output.
    """

    def __init__(self, kernel_size: int, groups: int = 1) -> None:
        """Kernels of ``kernel_size`` x ``kernel_size``, one for each of ``groups`` channel groups."""
        super().__init__()
        self.kernel_size = kernel_size
        self.groups = groups

    def forward(self, logits: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Normalise each kernel; shape and memory format do not change.

        ``coarse``, logits at a lower resolution, are first added to every child of their pixel, in the same pass.
        """
        return kernel_softmax(logits, coarse, self.kernel_size, self.groups)

    def extra_repr(self) -> str:
        """The options, for the printed network."""
        return f"kernel_size={self.kernel_size}, groups={self.groups}"


def reassemble(
    x: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int = 2, groups: int = 1, backend: str = ""
) -> Tensor:
    r"""Every output pixel is the weighted sum of the K x K window around its low-resolution parent.

    .. math::

        y_{b,n,i,j} = \sum_{k,l} w_{b,\, (gK + k)K + l,\, i,j}\;
        x_{b,n,\; \lfloor i/s \rfloor + k - \lfloor K/2 \rfloor,\; \lfloor j/s \rfloor + l - \lfloor K/2 \rfloor}

    with w the kernels and g = n // (C/G) the group of channel n; x is read as 0 outside its borders, and the kernels
    are not normalised.

    Limit case:
        A kernel that is 1 at its centre makes this nearest-neighbour upsampling, exactly.

    Args:
        x: ``(B, C, h, w)``, any memory format; the output has the same one.
        kernels: ``(B, G*K*K, s*h, s*w)``, of x's floating type or another; sums are in float32 or better.
        kernel_size: K, odd or even.
        scale_factor: s.
        groups: G, a divisor of C; channels of a group share kernels.
        backend: a name in ``BACKENDS``; by default that of :func:`choose_backend`.

    Returns:
        ``(B, C, s*h, s*w)``.

    Raises:
        FadevizError: if the shapes do not match, or the backend is unknown or not available.

    Source:
        CARAFE (Wang et al., ICCV 2019), eq. 4.

    Differs:
        The authors' operator is a CUDA extension.
    """
    b, c, h, w = x.shape
    needed = (b, groups * kernel_size**2, scale_factor * h, scale_factor * w)
    if tuple(kernels.shape) != needed:
        raise FadevizError(
            f"reassemble: kernels are {tuple(kernels.shape)}, but x is {tuple(x.shape)}, kernel_size {kernel_size}, "
            f"scale_factor {scale_factor} and groups {groups} need {needed}"
        )
    _check("reassemble", c, groups, backend, x, kernels)
    out: Tensor = torch_ops.reassemble(x, kernels, kernel_size, scale_factor, groups, backend)
    return out


def similarity(
    query: Tensor, key: Tensor, kernel_size: int, scale_factor: int = 2, groups: int = 1, backend: str = ""
) -> Tensor:
    r"""The inner product of every high-resolution query with the K x K keys around its low-resolution parent.

    .. math::

        l_{b,\, (gK + u)K + v,\, i,j} = \sum_c q_{b,c,i,j}\;
        k_{b,c,\; \lfloor i/s \rfloor + u - \lfloor K/2 \rfloor,\; \lfloor j/s \rfloor + v - \lfloor K/2 \rfloor}

    with q the query, k the key, and the sum over the channels c of group g; keys are read as 0 outside their borders,
    so that the logits there are 0.

    Args:
        query: ``(B, C, s*h, s*w)``, any memory format; the output has the same one.
        key: ``(B, C, h, w)``.
        kernel_size: K.
        scale_factor: s.
        groups: G, a divisor of C; each group of channels has logits of its own.
        backend: a name in ``BACKENDS``; by default that of :func:`choose_backend`.

    Returns:
        ``(B, G*K*K, s*h, s*w)``, in float32 for maps of half precision: these logits are not scaled, so that rounding
        them would change their softmax considerably.

    Raises:
        FadevizError: if the shapes do not match, or the backend is unknown or not available.

    Source:
        SAPA (Lu et al., NeurIPS 2022), eq. 4.
    """
    b, c, h, w = key.shape
    needed = (b, c, scale_factor * h, scale_factor * w)
    if tuple(query.shape) != needed:
        raise FadevizError(
            f"similarity: the query is {tuple(query.shape)}, but the key is {tuple(key.shape)} and scale_factor is "
            f"{scale_factor}, so {needed} is needed"
        )
    _check("similarity", c, groups, backend, query, key)
    out: Tensor = torch_ops.similarity(query, key, kernel_size, scale_factor, groups, backend)
    return out


def reassemble_logits(
    x: Tensor,
    kernels: KernelSoftmax,
    logits: Tensor,
    coarse: Tensor | None = None,
    scale_factor: int = 2,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """The last steps of the operators of the family: softmax, reassembly and, for FADE, the gate's mix with ``skip``.

    On a GPU they are one kernel. If ``kernels`` has hooks, the module runs by itself, and the rest after it.

    Args:
        x: ``(B, C, h, w)``.
        kernels: the operator's softmax, which also has the kernel size and the groups.
        logits: ``(B, G*K*K, s*h, s*w)``.
        coarse: ``(B, G*K*K, h, w)``, added to every child of its pixel.
        scale_factor: s.
        skip: ``(B, C, s*h, s*w)``, with ``gate``.
        gate: ``(B, 1, s*h, s*w)``; 1 selects skip.

    Returns:
        ``(B, C, s*h, s*w)``.

    Raises:
        FadevizError: if the shapes do not match.
    """
    k = kernels.kernel_size
    plain = type(kernels) is KernelSoftmax and kernels.groups == 1 and not has_hooks(kernels)
    if plain and torch_ops.is_fused(x.device):
        if coarse is not None:
            logits = logits + F.interpolate(coarse, scale_factor=scale_factor, mode="nearest")
        out: Tensor = torch_ops.fused(x, logits, skip, gate, k, scale_factor)[0]
        return out
    reassembled = reassemble(x, kernels(logits, coarse), k, scale_factor, kernels.groups)
    return reassembled if skip is None or gate is None else blend(reassembled, skip, gate)


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks, and so must run."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_plain(module: nn.Module) -> bool:
    """Whether the module is torch's own convolution without hooks: its weights can be used without calling it."""
    return type(module) is nn.Conv2d and not has_hooks(module)


def kernel_softmax(
    logits: Tensor, coarse: Tensor | None = None, kernel_size: int = 5, groups: int = 1, backend: str = ""
) -> Tensor:
    """Softmax over the K*K channels of every kernel of ``logits + nearest_s(coarse)``.

    Args:
        logits: ``(B, G*K*K, s*h, s*w)``.
        coarse: ``(B, G*K*K, h, w)``, or None.
        kernel_size: K.
        groups: G.
        backend: a name in ``BACKENDS``; by default that of :func:`choose_backend`.

    Returns:
        ``(B, G*K*K, s*h, s*w)`` in the logits' memory format; float32 under autocast, as torch's own softmax.

    Raises:
        FadevizError: if the shapes do not match, or the backend is unknown or not available.
    """
    if logits.shape[1] != groups * kernel_size**2:
        raise FadevizError(
            f"kernel_softmax: the logits have {logits.shape[1]} channels; kernel_size {kernel_size} and groups "
            f"{groups} need {groups * kernel_size**2}"
        )
    scale = 1
    if coarse is not None:
        scale = max(1, logits.shape[2] // max(1, coarse.shape[2]))
        b, channels, h, w = coarse.shape
        if tuple(logits.shape) != (b, channels, scale * h, scale * w):
            raise FadevizError(
                f"kernel_softmax: logits are {tuple(logits.shape)}, coarse ones {tuple(coarse.shape)}; the same batch "
                "and channels, and sides that are one multiple of the coarse ones are needed"
            )
    _check("kernel_softmax", groups, groups, backend, logits)
    half = logits.dtype in (torch.bfloat16, torch.float16)
    dtype = torch.float32 if half and is_autocast(logits.device.type) else logits.dtype
    out: Tensor = torch_ops.softmax(logits, coarse, kernel_size, scale, groups, backend, dtype)
    return out


def blend(reassembled: Tensor, feature: Tensor, gate: Tensor) -> Tensor:
    """``gate * feature + (1 - gate) * reassembled``, in one pass over each map, and one more for all gradients.

    Args:
        reassembled: ``(B, C, H, W)``.
        feature: ``(B, C, H, W)``.
        gate: ``(B, 1, H, W)``.

    Returns:
        ``(B, C, H, W)``.

    Raises:
        FadevizError: if the shapes do not match.
    """
    b, _, h, w = reassembled.shape
    if feature.shape != reassembled.shape or tuple(gate.shape) != (b, 1, h, w):
        raise FadevizError(
            f"blend: maps of {tuple(reassembled.shape)} and {tuple(feature.shape)} and a gate of {tuple(gate.shape)}; "
            f"two maps of one shape and a gate of {(b, 1, h, w)} are needed"
        )
    _check("blend", b, 1, "", reassembled, feature, gate)
    dtype = torch.promote_types(reassembled.dtype, feature.dtype)  # autocast may give two
    out: Tensor = torch_ops.blend(reassembled.to(dtype), feature.to(dtype), gate.to(dtype))
    return out


def spread(
    y: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int = 2, groups: int = 1, backend: str = ""
) -> Tensor:
    """The adjoint of :func:`reassemble` in x: every output pixel is added back to the window it came from.

    ``sum(reassemble(x, kernels) * y) = sum(x * spread(y, kernels))`` for every x and y.

    Args:
        y: ``(B, C, s*h, s*w)``, any memory format; the output has the same one.
        kernels: ``(B, G*K*K, s*h, s*w)``.
        kernel_size: K.
        scale_factor: s.
        groups: G, a divisor of C.
        backend: a name in ``BACKENDS``; by default that of :func:`choose_backend`.

    Returns:
        ``(B, C, h, w)``.

    Raises:
        FadevizError: if the shapes do not match, or the backend is unknown or not available.
    """
    b, c, height, width = y.shape
    needed = (b, groups * kernel_size**2, height, width)
    if tuple(kernels.shape) != needed or height % scale_factor or width % scale_factor:
        raise FadevizError(
            f"spread: kernels are {tuple(kernels.shape)}, but y is {tuple(y.shape)}, kernel_size {kernel_size} and "
            f"groups {groups} need {needed}, and sides that divide by scale_factor {scale_factor}"
        )
    _check("spread", c, groups, backend, y, kernels)
    out: Tensor = torch_ops.spread(y, kernels, kernel_size, scale_factor, groups, backend)
    return out


def _check(where: str, channels: int, groups: int, backend: str, *maps: Tensor) -> None:
    if any(m.device != maps[0].device for m in maps):
        raise FadevizError(
            f"{where}: the maps are on {', '.join(str(m.device) for m in maps)}. Move them to one device"
        )
    if channels % groups:
        raise FadevizError(f"{where}: {channels} channels do not divide into {groups} groups")
    if forward_ad._current_level >= 0:  # without this check the derivatives would be zeros
        raise FadevizError(f"{where}: there is no forward-mode derivative. Use reverse mode, torch.autograd.grad")
    if backend and backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)


__all__ = [
    "BACKENDS",
    "KernelSoftmax",
    "blend",
    "choose_backend",
    "kernel_softmax",
    "reassemble",
    "reassemble_logits",
    "similarity",
    "spread",
]
