"""Layers that act on the channels of every pixel of a map, in both memory formats."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PixelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of every pixel of a ``(B, C, h, w)`` map; eps 1e-5, scale and shift per channel.

    It runs on the ``(B, h, w, C)`` view: a channels_last map is not copied, a contiguous map once, and in both formats
    torch's own kernel is faster than mean and variance over axis 1. The output is channels_last.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise every pixel."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PixelLinear(nn.Linear):
    """A linear map of the channels of every pixel: ``(B, C, h, w) -> (B, d, h, w)``, weight ``(d, C)``."""

    def forward(self, input: Tensor) -> Tensor:
        """Map every pixel."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MapGroupNorm(nn.GroupNorm):
    """GroupNorm that also accepts a single value a group, as in a 1x1 map; torch's layer raises an error there."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise every group."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
