"""The weighted-window sum that CARAFE, A2U, FADE and SAPA share, its adjoints, and the choice of who computes them.

Three maps, linear in each of their two arguments, make the family:

- ``reassemble(x, w)``: output pixels as weighted sums of low-resolution windows;
- ``similarity(y, x)``: every output pixel's inner products with its window, SAPA's logits;
- ``spread(y, w)``: output pixels added back to the windows they came from.

The gradients of each are the two others, so that all derivatives of any order are made of these three. Each is one
``torch.library`` operator (``fadeviz::reassemble`` ...), which torch.compile and autocast understand, over three
backends.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FadevizError, unknown_name
from .backends import native, tiles

BACKENDS = ("tiles", "native", "triton")
"""Matrix products over tiles, on any device: the reference; C on a CPU, compiled on first use; Triton on a GPU."""


class KernelSoftmax(nn.Module):
    """Softmax over the K*K weights of every reassembly kernel: ``(B, G*K*K, H, W)`` logits -> kernels that sum to 1.

    A module of its own so that a probe can name it: its output is what ``kernel_entropy`` is computed from.
    """

    def __init__(self, kernel_size: int, groups: int = 1) -> None:
        """Kernels of ``kernel_size`` x ``kernel_size``, one for each of ``groups`` channel groups."""
        super().__init__()
        self.kernel_size = kernel_size
        self.groups = groups

    def forward(self, logits: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Normalise each kernel; shape and memory format stay.

        ``coarse``, logits at a lower resolution, are added to every child of their pixel first, in the same pass.
        """
        return kernel_softmax(logits, coarse, self.kernel_size, self.groups)

    def extra_repr(self) -> str:
        """Shown in the printed network."""
        return f"kernel_size={self.kernel_size}, groups={self.groups}"


def choose_backend(x: Tensor, kernel_size: int, scale_factor: int) -> str:
    """Which backend computes maps like x, where none is asked for by name.

    Triton on a CUDA device, the native one on a CPU, the tiles where these cannot run. The environment variable
    ``FADEVIZ_BACKEND`` names one for the whole process.

    Raises:
        FadevizError: ``FADEVIZ_BACKEND`` names no backend.
    """
    asked = os.environ.get("FADEVIZ_BACKEND", "")
    if asked:
        if asked not in BACKENDS:
            raise unknown_name("backend", asked, BACKENDS, "unset FADEVIZ_BACKEND")
        return asked
    if x.device.type == "cuda" and _triton().available(x.device):
        return "triton"
    return "native" if native.available(x, kernel_size, scale_factor) else "tiles"


def _triton() -> ModuleType:
    from .backends import triton  # seconds to import, and only of use where a GPU is

    return triton


def _backend(name: str, x: Tensor, kernel_size: int, scale_factor: int) -> Any:
    name = name or choose_backend(x, kernel_size, scale_factor)
    return {"tiles": tiles, "native": native}.get(name) or _triton()


def reassemble(
    x: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int = 2, groups: int = 1, backend: str = ""
) -> Tensor:
    """Every output pixel is the weighted sum of the K x K window around its low-resolution parent.

    ``y[b, n, i, j] = sum over k, l of kernels[b, (g*K + k)*K + l, i, j] * x[b, n, i//s + k - K//2, j//s + l - K//2]``
    with ``g = n // (C/G)``; x is read as 0 outside its borders, and the kernels are used as they are given.

    Limit case: a kernel that is 1 at its centre makes this nearest-neighbour upsampling, exactly.

    Args:
        x: ``(B, C, h, w)``, any memory format; the output has the same one.
        kernels: ``(B, G*K*K, s*h, s*w)``, of x's floating type or another; sums are in float32 or better.
        kernel_size: K, odd or even.
        scale_factor: s.
        groups: G, a divisor of C; channels of a group share kernels.
        backend: a name in ``BACKENDS``; empty: :func:`choose_backend`.

    Returns:
        ``(B, C, s*h, s*w)``.

    Raises:
        FadevizError: shapes that do not fit, or a backend that is not there.

    Source: CARAFE (Wang et al., ICCV 2019), eq. 4. Differs: the authors' operator is a CUDA extension.
    """
    b, c, h, w = x.shape
    needed = (b, groups * kernel_size**2, scale_factor * h, scale_factor * w)
    if tuple(kernels.shape) != needed:
        raise FadevizError(
            f"reassemble: kernels are {tuple(kernels.shape)}, but x is {tuple(x.shape)}, kernel_size {kernel_size}, "
            f"scale_factor {scale_factor} and groups {groups} need {needed}"
        )
    _check("reassemble", c, groups, backend)
    out: Tensor = _reassemble(x, kernels, kernel_size, scale_factor, groups, backend)
    return out


def similarity(
    query: Tensor, key: Tensor, kernel_size: int, scale_factor: int = 2, groups: int = 1, backend: str = ""
) -> Tensor:
    """The inner product of every high-resolution query with the K x K keys around its low-resolution parent.

    ``s[b, (g*K + u)*K + v, i, j] = sum over c of group g of query[b, c, i, j] * key[b, c, i//s + u - K//2, j//s + v -
    K//2]``; keys are read as 0 outside their borders, so that a logit of 0 stands there.

    Args:
        query: ``(B, C, s*h, s*w)``, any memory format; the output has the same one.
        key: ``(B, C, h, w)``.
        kernel_size: K.
        scale_factor: s.
        groups: G, a divisor of C; each group of channels has logits of its own.
        backend: a name in ``BACKENDS``; empty: :func:`choose_backend`.

    Returns:
        ``(B, G*K*K, s*h, s*w)``, in float32 for maps of half precision: these logits are not scaled, and a softmax over
        rounded ones would be far off.

    Raises:
        FadevizError: shapes that do not fit, or a backend that is not there.

    Source: SAPA (Lu et al., NeurIPS 2022), eq. 4.
    """
    b, c, h, w = key.shape
    needed = (b, c, scale_factor * h, scale_factor * w)
    if tuple(query.shape) != needed:
        raise FadevizError(
            f"similarity: the query is {tuple(query.shape)}, but the key is {tuple(key.shape)} and scale_factor is "
            f"{scale_factor}, so {needed} is needed"
        )
    _check("similarity", c, groups, backend)
    out: Tensor = _similarity(query, key, kernel_size, scale_factor, groups, backend)
    return out


def kernel_softmax(
    logits: Tensor, coarse: Tensor | None = None, kernel_size: int = 5, groups: int = 1, backend: str = ""
) -> Tensor:
    """Softmax over the K*K channels of every kernel of ``logits + nearest_s(coarse)``.

    Args:
        logits: ``(B, G*K*K, s*h, s*w)``.
        coarse: ``(B, G*K*K, h, w)``, or None.
        kernel_size: K.
        groups: G.
        backend: a name in ``BACKENDS``; empty: :func:`choose_backend`.

    Returns:
        ``(B, G*K*K, s*h, s*w)`` in the logits' memory format; float32 under autocast, as torch's own softmax.

    Raises:
        FadevizError: shapes that do not fit, or a backend that is not there.
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
    _check("kernel_softmax", groups, groups, backend)
    half = logits.dtype in (torch.bfloat16, torch.float16)
    dtype = torch.float32 if half and torch.is_autocast_enabled(logits.device.type) else logits.dtype
    out: Tensor = _softmax(logits, coarse, kernel_size, scale, groups, backend, dtype)
    return out


def blend(reassembled: Tensor, feature: Tensor, gate: Tensor) -> Tensor:
    """``gate * feature + (1 - gate) * reassembled``, in one pass over each map, and one more for all gradients.

    Args:
        reassembled: ``(B, C, H, W)``.
        feature: ``(B, C, H, W)``.
        gate: ``(B, 1, H, W)``.
    """
    dtype = torch.promote_types(reassembled.dtype, feature.dtype)  # autocast may have made two
    out: Tensor = _blend(reassembled.to(dtype), feature.to(dtype), gate.to(dtype))
    return out


def _check(where: str, channels: int, groups: int, backend: str) -> None:
    if channels % groups:
        raise FadevizError(f"{where}: {channels} channels do not divide into {groups} groups")
    if backend and backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)


# The operators themselves. Each returns new memory in the format of its first argument; the gradients are written in
# terms of the others, so that they can be differentiated again.


@torch.library.custom_op("fadeviz::reassemble", mutates_args=())
def _reassemble(x: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int, backend: str) -> Tensor:
    out: Tensor = _backend(backend, x, kernel_size, scale).reassemble(x, kernels, kernel_size, scale, groups)
    return out


@torch.library.custom_op("fadeviz::similarity", mutates_args=())
def _similarity(query: Tensor, key: Tensor, kernel_size: int, scale: int, groups: int, backend: str) -> Tensor:
    out: Tensor = _backend(backend, query, kernel_size, scale).similarity(query, key, kernel_size, scale, groups)
    return out


@torch.library.custom_op("fadeviz::spread", mutates_args=())
def _spread(y: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int, backend: str) -> Tensor:
    out: Tensor = _backend(backend, y, kernel_size, scale).spread(y, kernels, kernel_size, scale, groups)
    return out


@torch.library.custom_op("fadeviz::kernel_softmax", mutates_args=())
def _softmax(
    logits: Tensor,
    coarse: Tensor | None,
    kernel_size: int,
    scale: int,
    groups: int,
    backend: str,
    dtype: torch.dtype,
) -> Tensor:
    module = _softmax_backend(backend, logits, kernel_size, scale)
    out: Tensor = module.softmax(logits, coarse, kernel_size, scale, groups, dtype)
    return out


@torch.library.custom_op("fadeviz::kernel_softmax_backward", mutates_args=())
def _softmax_backward(
    grad: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int, backend: str, has_coarse: bool
) -> tuple[Tensor, Tensor]:
    module = _softmax_backend(backend, grad, kernel_size, scale)
    fine, coarse = module.softmax_backward(grad, kernels, kernel_size, scale, groups, has_coarse)
    return fine, grad.new_empty(0) if coarse is None else coarse


def _softmax_backend(name: str, x: Tensor, kernel_size: int, scale: int) -> Any:
    # On a GPU torch's own softmax is as good.
    module = _backend(name, x, kernel_size, scale)
    return module if module is native else tiles


@torch.library.custom_op("fadeviz::blend", mutates_args=())
def _blend(reassembled: Tensor, feature: Tensor, gate: Tensor) -> Tensor:
    if _blends_natively(reassembled, feature, gate):
        return native.blend(reassembled, feature, gate)
    return torch.lerp(reassembled, feature, gate)


@torch.library.custom_op("fadeviz::blend_backward", mutates_args=())
def _blend_backward(grad: Tensor, reassembled: Tensor, feature: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if _blends_natively(grad, reassembled, feature, gate):
        return native.blend_backward(grad, reassembled, feature, gate)
    return _blend_gradients(grad, reassembled, feature, gate)


def _blends_natively(*maps: Tensor) -> bool:
    return choose_backend(maps[0], 1, 1) == "native" and native.can_blend(*maps)


def _blend_gradients(grad: Tensor, reassembled: Tensor, feature: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    to_feature = gate * grad
    return grad - to_feature, to_feature, (grad * (feature - reassembled)).sum(dim=1, keepdim=True)


def _empty(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    last = not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if last else torch.contiguous_format
    return like.new_empty(like.shape[0], channels, height, width).contiguous(memory_format=memory_format)


@_reassemble.register_fake
def _(x: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int, backend: str) -> Tensor:
    return _empty(x, x.shape[1], x.shape[2] * scale, x.shape[3] * scale)


@_similarity.register_fake
def _(query: Tensor, key: Tensor, kernel_size: int, scale: int, groups: int, backend: str) -> Tensor:
    dtype = torch.promote_types(query.dtype, torch.float32)
    return _empty(query, groups * kernel_size**2, query.shape[2], query.shape[3]).to(dtype)


@_spread.register_fake
def _(y: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int, backend: str) -> Tensor:
    return _empty(y, y.shape[1], y.shape[2] // scale, y.shape[3] // scale)


@_softmax.register_fake
def _(
    logits: Tensor,
    coarse: Tensor | None,
    kernel_size: int,
    scale: int,
    groups: int,
    backend: str,
    dtype: torch.dtype,
) -> Tensor:
    return _empty(logits, *logits.shape[1:]).to(dtype)


@_softmax_backward.register_fake
def _(
    grad: Tensor, kernels: Tensor, kernel_size: int, scale: int, groups: int, backend: str, has_coarse: bool
) -> tuple[Tensor, Tensor]:
    _, channels, h, w = grad.shape
    return _empty(grad, channels, h, w), _empty(
        grad, channels, h // scale, w // scale
    ) if has_coarse else grad.new_empty(0)


@_blend.register_fake
def _(reassembled: Tensor, feature: Tensor, gate: Tensor) -> Tensor:
    return torch.empty_like(reassembled)


@_blend_backward.register_fake
def _(grad: Tensor, reassembled: Tensor, feature: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(reassembled), torch.empty_like(feature), torch.empty_like(gate)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, *ctx.options = inputs
    ctx.save_for_backward(first, second)


def _backward_reassemble(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, kernels = ctx.saved_tensors
    need_x, need_kernels = ctx.needs_input_grad[:2]
    return (
        _spread(grad, kernels, *ctx.options).to(x.dtype) if need_x else None,
        _similarity(grad, x, *ctx.options).to(kernels.dtype) if need_kernels else None,
        None, None, None, None,
    )  # fmt: skip


def _backward_similarity(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key = ctx.saved_tensors
    need_query, need_key = ctx.needs_input_grad[:2]
    return (
        _reassemble(key, grad, *ctx.options).to(query.dtype) if need_query else None,
        _spread(query, grad, *ctx.options).to(key.dtype) if need_key else None,
        None, None, None, None,
    )  # fmt: skip


def _backward_spread(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, kernels = ctx.saved_tensors
    need_y, need_kernels = ctx.needs_input_grad[:2]
    return (
        _reassemble(grad, kernels, *ctx.options).to(y.dtype) if need_y else None,
        _similarity(y, grad, *ctx.options).to(kernels.dtype) if need_kernels else None,
        None, None, None, None,
    )  # fmt: skip


_reassemble.register_autograd(_backward_reassemble, setup_context=_keep)
_similarity.register_autograd(_backward_similarity, setup_context=_keep)
_spread.register_autograd(_backward_spread, setup_context=_keep)


def _keep_kernels(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, coarse, kernel_size, scale, groups, backend, _ = inputs
    ctx.save_for_backward(output)
    ctx.options = (kernel_size, scale, groups, backend, coarse is not None)
    ctx.dtypes = (logits.dtype, None if coarse is None else coarse.dtype)


def _backward_softmax(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (kernels,) = ctx.saved_tensors
    kernel_size, scale, groups, backend, has_coarse = ctx.options
    if torch.is_grad_enabled():  # somebody will differentiate again: in terms of torch's own operators then
        fine, coarse = tiles.softmax_backward(grad, kernels, kernel_size, scale, groups, has_coarse)
    else:
        fine, coarse = _softmax_backward(grad, kernels, kernel_size, scale, groups, backend, has_coarse)
    given, given_coarse = ctx.dtypes
    low = coarse.to(given_coarse) if has_coarse and coarse is not None else None
    return fine.to(given), low, None, None, None, None, None


_softmax.register_autograd(_backward_softmax, setup_context=_keep_kernels)


def _keep_blend(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_blend(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    again = torch.is_grad_enabled()
    gradients: tuple[Tensor, ...] = (_blend_gradients if again else _blend_backward)(grad, *ctx.saved_tensors)
    return gradients


_blend.register_autograd(_backward_blend, setup_context=_keep_blend)
