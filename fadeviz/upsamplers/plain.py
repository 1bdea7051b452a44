"""Operators without parameters that read only the decoder feature: nearest, bilinear and bicubic interpolation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Skip, Upsampler, check_input


def nearest(x: Tensor, scale_factor: int) -> Tensor:
    """``y[i, j] = x[i // s, j // s]`` in x's own dtype; under CUDA's autocast torch interpolates only in float32."""
    if not torch.is_autocast_enabled("cuda"):
        return F.interpolate(x, scale_factor=scale_factor, mode="nearest")
    with torch.autocast("cuda", enabled=False):  # values are only copied
        return F.interpolate(x, scale_factor=scale_factor, mode="nearest")


class _Interpolation(Upsampler):
    taps: int
    """Input values that are weighted for each output value; 0 where values are only copied."""

    def __init__(self, in_channels: int, scale_factor: int = 2) -> None:
        """``in_channels`` is accepted so that all operators are built alike; interpolation has no parameters."""
        super().__init__()
        self.in_channels = in_channels
        self.scale_factor = scale_factor

    def multiply_adds(self, height: int, width: int) -> int:
        """One for each input value that is weighted for an output value."""
        return self.taps * self.in_channels * self.scale_factor**2 * height * width

    def extra_repr(self) -> str:
        """The options, for the printed network."""
        return f"{self.in_channels}, scale_factor={self.scale_factor}"


class Nearest(_Interpolation):
    r"""Nearest-neighbour interpolation: every value is repeated s x s times.

    .. math::

        y_{i,j} = x_{\lfloor i/s \rfloor,\, \lfloor j/s \rfloor}

    Limit case:
        Average pooling of y by s gives x back, exactly.

    Shape:
        x ``(B, C, h, w)`` -> ``(B, C, s*h, s*w)``; skip is not read.

    Cost:
        No parameters, no multiply-adds.
    """

    taps = 0

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Repeat every value s x s times."""
        check_input(self, x, skip)
        return nearest(x, self.scale_factor)


class Bilinear(_Interpolation):
    r"""Bilinear interpolation between the four nearest values, clamped at the border.

    .. math::

        y_{i,j} = \sum_{k,l} \max(0,\, 1 - |u_i - k|)\, \max(0,\, 1 - |u_j - l|)\; x_{k,l},
        \qquad u_i = \frac{i + 1/2}{s} - \frac{1}{2}

    Pixel centres are at half-integers (``align_corners=False``).

    Limit case:
        A constant map stays constant; a linear ramp stays linear away from the border.

    Shape:
        x ``(B, C, h, w)`` -> ``(B, C, s*h, s*w)``; skip is not read.

    Units:
        Output pixel i is at ``(i + 0.5) / s - 0.5`` low-resolution pixels.

    Cost:
        No parameters; 4 multiply-adds an output value.
    """

    taps = 4

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Interpolate between the four nearest values."""
        check_input(self, x, skip)
        return F.interpolate(x, scale_factor=self.scale_factor, mode="bilinear", align_corners=False).to(x.dtype)


class Bicubic(_Interpolation):
    r"""Bicubic convolution of the sixteen nearest values, clamped at the border.

    .. math::

        y_{i,j} = \sum_{k,l} W(u_i - k)\, W(u_j - l)\; x_{k,l}, \qquad u_i = \frac{i + 1/2}{s} - \frac{1}{2}

    .. math::

        W(t) = \begin{cases}
            (a + 2)|t|^3 - (a + 3)|t|^2 + 1 & |t| \le 1 \\
            a|t|^3 - 5a|t|^2 + 8a|t| - 4a & 1 < |t| \le 2 \\
            0 & \text{otherwise}
        \end{cases}

    with a = -0.75. Pixel centres are at half-integers (``align_corners=False``).

    Limit case:
        A constant map stays constant; a linear ramp rises by its slope from any output pixel to the one s further on,
        but is not straight in between, as it would be with a = -0.5.

    Shape:
        x ``(B, C, h, w)`` -> ``(B, C, s*h, s*w)``; skip is not read. Values may overshoot the range of x.

    Units:
        Output pixel i is at ``(i + 0.5) / s - 0.5`` low-resolution pixels.

    Cost:
        No parameters; 16 multiply-adds an output value.

    Source:
        Keys, IEEE TASSP 1981; a as in torch and OpenCV.
    """

    taps = 16

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Weight the sixteen nearest values."""
        check_input(self, x, skip)
        return F.interpolate(x, scale_factor=self.scale_factor, mode="bicubic", align_corners=False).to(x.dtype)
