"""Transposed convolution, the learned upsampling of FCN and DCGAN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from ..errors import FadevizError
from .base import Skip, Upsampler, check_input


class Deconv(Upsampler):
    r"""Transposed convolution ("deconvolution") with stride s.

    .. math::

        y_{o,\,p} = b_o + \sum_n \;\sum_{q,\,u \,:\; sq + u - t = p} W_{n,o,u}\; x_{n,q}

    with p a position in the output, q in the input, u in the kernel, and b the bias; the padding t and an output
    padding are chosen so that the output is exactly s times as large.

    Limit case:
        W the identity over channels and 1 over an s x s kernel (``kernel_size = s``) makes this nearest interpolation.

    Shape:
        x ``(B, C, h, w)`` -> ``(B, C, s*h, s*w)``; skip is not read.

    Cost:
        ``k*k*C*C + C`` parameters, ``k*k*C*C`` multiply-adds a low-resolution pixel.

    Raises:
        FadevizError: if ``kernel_size`` is smaller than ``scale_factor``: pixels would stay empty.

    Source:
        Zeiler et al. 2010; kernel size 3 as in the FADE paper's comparison.
    """

    official_names: ClassVar[Mapping[str, str]] = {"weight": "conv.weight", "bias": "conv.bias"}

    def __init__(self, in_channels: int, kernel_size: int = 3, scale_factor: int = 2) -> None:
        """A transposed convolution that keeps the number of channels."""
        super().__init__()
        if kernel_size < scale_factor:
            raise FadevizError(
                f"Deconv: kernel_size {kernel_size} is smaller than scale_factor {scale_factor}; raise it"
            )
        self.in_channels = in_channels
        self.scale_factor = scale_factor
        # (h - 1) * s - 2p + k + output_padding = s * h
        padding = (kernel_size - scale_factor + 1) // 2
        output_padding = scale_factor + 2 * padding - kernel_size
        self.conv = nn.ConvTranspose2d(
            in_channels, in_channels, kernel_size, scale_factor, padding=padding, output_padding=output_padding
        )

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Apply the transposed convolution."""
        check_input(self, x, skip, self.in_channels)
        out: Tensor = self.conv(x)
        return out

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of the convolution."""
        return height * width * self.conv.weight.numel()
