"""Operators that look at nothing but the decoder map: nearest and bilinear interpolation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .base import Skip, Upsampler


class _Interpolation(Upsampler):
    mode: str

    def __init__(self, in_channels: int, scale_factor: int = 2) -> None:
        """``in_channels`` is taken so that every operator is built alike; interpolation has no parameters."""
        super().__init__()
        self.in_channels = in_channels
        self.scale_factor = scale_factor

    def extra_repr(self) -> str:
        """Shown in the printed network."""
        return f"{self.in_channels}, scale_factor={self.scale_factor}"


class Nearest(_Interpolation):
    """Nearest-neighbour interpolation: ``y[i, j] = x[i // s, j // s]``.

    Limit case: average pooling of y by s gives x back, exactly.

    Shape: x ``(B, C, h, w)`` -> ``(B, C, s*h, s*w)``; skip is ignored.
    Cost: no parameters, no multiply-adds.
    """

    def forward(self, x: Tensor, skip: Skip) -> Tensor:
        """Repeat every value s x s times."""
        return F.interpolate(x, scale_factor=self.scale_factor, mode="nearest")


class Bilinear(_Interpolation):
    """Bilinear interpolation with pixel centres at half-integers (``align_corners=False``), clamped at the border.

    Limit case: a constant map stays constant; a linear ramp stays linear away from the border.

    Shape: x ``(B, C, h, w)`` -> ``(B, C, s*h, s*w)``; skip is ignored.
    Units: output pixel i lies at ``(i + 0.5) / s - 0.5`` low-resolution pixels.
    Cost: no parameters; 4 multiply-adds a value.
    """

    def forward(self, x: Tensor, skip: Skip) -> Tensor:
        """Interpolate between the four nearest values."""
        return F.interpolate(x, scale_factor=self.scale_factor, mode="bilinear", align_corners=False)
