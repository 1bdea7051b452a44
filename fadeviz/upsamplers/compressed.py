"""A 1x1 convolution and the k x k convolution after it, as one convolution where that is less work."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def compressed_conv(x: Tensor, compressor: nn.Conv2d, conv: nn.Conv2d) -> Tensor:
    """``conv(compressor(x))``, borders included.

    Two linear maps in a row are one. With C input, d compressed and M output channels the two need ``C*d + k*k*d*M``
    multiply-adds a pixel, the one ``k*k*C*M``: FADE's pair is 4 times cheaper as one at C = 16, dearer above C = 89.
    The compressor's bias is a constant map that the zero padding of ``conv`` cuts off at the border: what it adds is
    worked out on a map just large enough to have every kind of border, and stretched.

    The two modules are called one after the other where the composition saves nothing, where somebody has hooked them
    (they must then run), and for a depth-wise ``conv``.

    Shape: x ``(B, C, h, w)`` -> ``(B, M, h, w)``.
    """
    area = conv.kernel_size[0] * conv.kernel_size[1]
    c, d, m = compressor.in_channels, compressor.out_channels, conv.out_channels
    if conv.groups > 1 or area * c * m >= c * d + area * d * m or is_watched(compressor) or is_watched(conv):
        out: Tensor = conv(compressor(x))
        return out
    # Weights keep their own precision: rounding their product to bfloat16 would round twice.
    with torch.autocast(x.device.type, enabled=False):
        weight = torch.einsum("mdkl,dc->mckl", conv.weight, compressor.weight.flatten(1))
        shift = None
        if compressor.bias is not None:
            shift = torch.einsum("mdkl,d->mkl", conv.weight, compressor.bias).unsqueeze(1)
    out = F.conv2d(x, weight, conv.bias, padding=conv.padding, dilation=conv.dilation)
    if shift is None:
        return out
    radius = int(conv.padding[0])
    small = x.new_ones(1, 1, *(min(side, 2 * radius + 1) for side in x.shape[-2:]))
    added = F.conv2d(small, shift, padding=conv.padding, dilation=conv.dilation)
    for dim, side in ((2, x.shape[2]), (3, x.shape[3])):
        if side > 2 * radius + 1:
            first, middle, last = added.tensor_split([radius, radius + 1], dim)
            size = list(middle.shape)
            size[dim] = side - 2 * radius
            added = torch.cat([first, middle.expand(size), last], dim)
    return out + added


def is_watched(module: nn.Module) -> bool:
    """Whether anybody has hooked the module, and so expects it to run."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
