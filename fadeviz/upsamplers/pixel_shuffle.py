"""Sub-pixel convolution: a convolution to s*s times the channels, rearranged into space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError
from .base import Skip, Upsampler, check_input


class PixelShuffle(Upsampler):
    r"""Sub-pixel convolution: a convolution to s*s times the channels, rearranged into space.

    .. math::

        y_{o,\, si + a,\, sj + c} = z_{(os + a)s + c,\, i,\, j}, \qquad z = W(x), \qquad 0 \le a, c < s

    with W a k x k convolution to ``C_out*s*s`` channels.

    Limit case:
        With ``icnr=True`` the s*s filters of an output channel start equal, so that the untrained operator is a
        convolution followed by nearest interpolation, free of checkerboards.

    Shape:
        x ``(B, C, h, w)`` -> ``(B, C_out, s*h, s*w)``, C_out being ``out_channels`` or C; skip is not read.

    Cost:
        ``k*k*C*C_out*s*s + C_out*s*s`` parameters, ``k*k*C*C_out*s*s`` multiply-adds a low-resolution pixel.

    Raises:
        FadevizError: if ``kernel_size`` is even.

    Source:
        Shi et al., CVPR 2016; ICNR: Aitken et al. 2017. Convolutions start Xavier-uniform, biases 0, as in the CARAFE
        authors' comparison.
    """

    official_names: ClassVar[Mapping[str, str]] = {"upsample_conv": "conv"}

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 3,
        scale_factor: int = 2,
        icnr: bool = False,
        out_channels: int | None = None,
    ) -> None:
        """A convolution to ``out_channels * scale_factor**2`` (default: ``in_channels`` for both), then the shuffle."""
        super().__init__()
        if kernel_size % 2 == 0:
            raise FadevizError(
                f"PixelShuffle: kernel_size is {kernel_size}, it must be odd: an even one shrinks the map"
            )
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.scale_factor = scale_factor
        self.icnr = icnr
        self.conv = nn.Conv2d(
            in_channels, self.out_channels * scale_factor**2, kernel_size, padding=(kernel_size - 1) // 2
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        weight = self.conv.weight
        if self.icnr:
            with torch.no_grad():
                filters = nn.init.xavier_uniform_(torch.empty_like(weight[:: self.scale_factor**2]))
                weight.copy_(filters.repeat_interleave(self.scale_factor**2, dim=0))
        else:
            nn.init.xavier_uniform_(weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Convolve, then rearrange channels into space."""
        check_input(self, x, skip, self.in_channels)
        return F.pixel_shuffle(self.conv(x), self.scale_factor)

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of the convolution."""
        return height * width * self.conv.weight.numel()
