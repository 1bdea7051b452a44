"""Sub-pixel convolution: a convolution to s*s times the channels, rearranged into space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError
from .base import Skip, Upsampler


class PixelShuffle(Upsampler):
    """Pixel shuffle: ``y[o, s*i + a, s*j + c] = conv(x)[(o*s + a)*s + c, i, j]``.

    Limit case: with ``icnr=True`` the s*s filters of an output channel start equal, so that the untrained operator is
    a convolution followed by nearest interpolation, free of checkerboards.

    Shape: x ``(B, C, h, w)`` -> ``(B, C, s*h, s*w)``; skip is ignored.
    Cost: ``k*k*C*C*s*s + C*s*s`` parameters, ``k*k*C*C*s*s`` multiply-adds a low-resolution pixel.
    Raises: FadevizError when ``kernel_size`` is even.
    Source: Shi et al., CVPR 2016; ICNR: Aitken et al. 2017. Convolutions start Xavier-uniform, biases 0, as in the
    CARAFE authors' comparison.
    """

    official_names: ClassVar[Mapping[str, str]] = {"upsample_conv": "conv"}

    def __init__(self, in_channels: int, kernel_size: int = 3, scale_factor: int = 2, icnr: bool = False) -> None:
        """A ``kernel_size`` convolution to ``in_channels * scale_factor**2``, then the shuffle."""
        super().__init__()
        if kernel_size % 2 == 0:
            raise FadevizError(
                f"PixelShuffle: kernel_size is {kernel_size}, it must be odd: an even one shrinks the map"
            )
        self.scale_factor = scale_factor
        self.icnr = icnr
        self.conv = nn.Conv2d(in_channels, in_channels * scale_factor**2, kernel_size, padding=(kernel_size - 1) // 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        weight = self.conv.weight
        if self.icnr:
            with torch.no_grad():
                one = nn.init.xavier_uniform_(torch.empty_like(weight[:: self.scale_factor**2]))
                weight.copy_(one.repeat_interleave(self.scale_factor**2, dim=0))
        else:
            nn.init.xavier_uniform_(weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, skip: Skip) -> Tensor:
        """Convolve, then rearrange channels into space."""
        return F.pixel_shuffle(self.conv(x), self.scale_factor)

    def multiply_adds(self, height: int, width: int) -> int:
        """Of the convolution."""
        return height * width * self.conv.weight.numel()
