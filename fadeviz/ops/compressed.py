"""A 1x1 convolution and the k x k convolution after it, as one convolution where that is less work."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import torch_ops
from .backends.tiles import is_autocast, own_precision
from .reassemble import is_plain


def compressed_conv(x: Tensor, compressor: nn.Conv2d, conv: nn.Conv2d, phases: int = 1) -> Tensor:
    """``conv(compressor(x))``, borders included.

    The composition of two linear maps is one linear map. With C input, d compressed and M output channels the two need
    ``C*d + k*k*d*M`` multiply-adds a pixel, their composition ``k*k*C*M``: FADE's pair is 4 times cheaper as one at
    C = 16, and more expensive above C = 89. The compressor's bias is a constant map, which the zero padding of ``conv``
    cuts off at the border: inside it adds to ``conv``'s bias, and within ``conv``'s radius r of the border it adds
    less. The difference is computed once, on a map of (2r + 1)^2 pixels, which has every kind of border, and added to
    the rim; on a GPU it is computed on a map of x's size.

    The two modules are called one after the other if the composition saves nothing, if they have hooks (and must run),
    for maps without an interior, for a depth-wise ``conv``, and in ``torch.export``.

    Args:
        x: ``(B, C, h, w)``.
        compressor: the 1x1 convolution.
        conv: the k x k convolution to M channels.
        phases: p; the output's channels, p for each of M/p maps, are reordered to M/p for each of p phases.

    Returns:
        ``(B, M, h, w)``.
    """
    radius = int(conv.padding[0])
    if not (is_plain(compressor) and is_plain(conv)):
        return _by_phase(conv(compressor(x)), 1, phases)
    if not is_cheaper_as_one(x, compressor, conv):
        weight, bias = _by_phase(conv.weight, 0, phases), conv.bias
        bias = None if bias is None else _by_phase(bias, 0, phases)
        return F.conv2d(compressor(x), weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    device = x.device.type
    # Weights keep their own precision: rounding their product to bfloat16 would round twice.
    with own_precision(device):
        weight = torch.einsum("mdkl,dc->mckl", conv.weight, compressor.weight.flatten(1))
        weight, bias, rim, border = _by_phase(weight, 0, phases), conv.bias, None, None
        if compressor.bias is not None:
            shift = torch.einsum("mdkl,d->mkl", conv.weight, compressor.bias).unsqueeze(1)
        if compressor.bias is not None and _is_launch_bound(x):
            ones = shift.new_ones(1, 1, *x.shape[-2:])
            border = F.conv2d(ones, _by_phase(shift, 0, phases), padding=conv.padding, dilation=conv.dilation)
        elif compressor.bias is not None:
            ones = shift.new_ones(1, 1, 2 * radius + 1, 2 * radius + 1)
            shifted = F.conv2d(ones, shift, padding=conv.padding, dilation=conv.dilation)[0]
            inside = shifted[:, radius, radius]
            bias = inside if bias is None else bias + inside
            rim = _by_phase(shifted - inside[:, None, None], 0, phases)
        bias = None if bias is None else _by_phase(bias, 0, phases)
    if is_autocast(device) and x.dtype != torch.float64:  # which autocast does not convert
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        border = None if border is None else border.to(dtype)
    if _is_launch_bound(x):
        whole = F.conv2d(x, weight, bias, padding=conv.padding, dilation=conv.dilation)
        return whole if border is None else whole + border
    out: Tensor = torch_ops.rimmed_conv(x, weight, bias, rim, radius, int(conv.dilation[0]))
    return out


def _is_launch_bound(x: Tensor) -> bool:
    """Whether small computations cost as much as their launch, as on a GPU.

    A map of the bias at every pixel is then cheaper than its kinds of border, which take 30 launches.
    """
    return x.is_cuda


def is_cheaper_as_one(x: Tensor, compressor: nn.Conv2d, conv: nn.Conv2d) -> bool:
    """Whether ``conv(compressor(x))`` is less work as one convolution; see :func:`compressed_conv`."""
    area = conv.kernel_size[0] * conv.kernel_size[1]
    c, d, m = compressor.in_channels, compressor.out_channels, conv.out_channels
    # An exported graph must work for every size, so it must not depend on whether the map has an interior.
    costlier = conv.groups > 1 or area * c * m >= c * d + area * d * m or torch_ops.is_exporting()
    return not costlier and min(x.shape[-2:]) >= 2 * int(conv.padding[0]) + 1


def _by_phase(values: Tensor, dim: int, phases: int) -> Tensor:
    if phases == 1:
        return values
    return values.unflatten(dim, (-1, phases)).transpose(dim, dim + 1).flatten(dim, dim + 1)
