"""CARAFE: reassembly kernels predicted from the decoder map itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError
from ..ops.compressed import compressed_conv
from ..ops.reassemble import KernelSoftmax, reassemble_logits
from .base import Skip, Upsampler, check_input
from .semishift import Init, check_init


class CARAFE(Upsampler):
    r"""Content-aware reassembly: kernels are predicted from the decoder feature itself.

    .. math::

        w = \mathrm{softmax}(\mathrm{PS}_s(V(W x))), \qquad y = R(x, w)

    with W a 1x1 convolution to d channels (the compressor), V a k_e x k_e convolution to ``G*K*K*s*s`` (the content
    encoder), :math:`\mathrm{PS}_s` the pixel shuffle, the softmax over the K*K weights of a pixel, and R(x, w) the
    reassembly of x with the kernels w: every output pixel is a weighted mean of the K x K window around its parent.

    Limit case:
        Zero content-encoder weights make every kernel a K x K box blur of the nearest-upsampled map; this is (nearly)
        the initial state.

    Shape:
        x ``(B, C, h, w)`` -> ``(B, C, s*h, s*w)``; skip is not read.

    Cost:
        ``C*d + d`` and ``k_e^2*d*G*K^2*s^2 + G*K^2*s^2`` parameters; with the defaults ``64C + 57,764``, and ``64C +
        57,600 + 100C`` multiply-adds a low-resolution pixel: logits and reassembly.

    Raises:
        FadevizError: if C does not divide by ``groups``, ``encoder_kernel_size`` is even, or ``init`` is unknown.

    Source:
        Wang et al., ICCV 2019, section 3; initialisation of the released code: compressor Xavier-uniform, content
        encoder N(0, 0.001^2), biases 0; ``init="xavier"`` draws the content encoder as FADE does, for comparison.

    Differs:
        Compressor and content encoder are one convolution where that is less work.
    """

    official_names: ClassVar[Mapping[str, str]] = {"channel_compressor": "compressor"}

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 5,
        scale_factor: int = 2,
        groups: int = 1,
        compressed_channels: int = 64,
        encoder_kernel_size: int = 3,
        encoder_dilation: int = 1,
        init: Init = "small",
    ) -> None:
        """Kernels of ``kernel_size`` from ``compressed_channels`` through an ``encoder_kernel_size`` convolution."""
        super().__init__()
        if encoder_kernel_size % 2 == 0 and encoder_dilation % 2:
            raise FadevizError(
                f"CARAFE: encoder_kernel_size is {encoder_kernel_size}, it must be odd to keep the map's size"
            )
        if in_channels % groups:
            raise FadevizError(f"CARAFE: {in_channels} channels do not divide into {groups} groups")
        check_init("CARAFE", init)
        self.in_channels = in_channels
        self.init = init
        self.kernel_size = kernel_size
        self.scale_factor = scale_factor
        self.groups = groups
        self.compressor = nn.Conv2d(in_channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            groups * kernel_size**2 * scale_factor**2,
            encoder_kernel_size,
            padding=(encoder_kernel_size - 1) * encoder_dilation // 2,
            dilation=encoder_dilation,
        )
        self.kernels = KernelSoftmax(kernel_size, groups)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        nn.init.xavier_uniform_(self.compressor.weight)
        if self.init == "small":
            nn.init.normal_(self.content_encoder.weight, std=0.001)
        else:
            nn.init.xavier_uniform_(self.content_encoder.weight)
        for conv in (self.compressor, self.content_encoder):
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Predict the kernels from x and reassemble x with them."""
        check_input(self, x, skip, self.in_channels)
        return reassemble_logits(x, self.kernels, self._logits(x), scale_factor=self.scale_factor)

    def _logits(self, x: Tensor) -> Tensor:
        s = self.scale_factor
        if not x.is_contiguous(memory_format=torch.channels_last):
            return F.pixel_shuffle(compressed_conv(x, self.compressor, self.content_encoder), s)
        # torch's own is slow in channels_last; with the channels ordered by sub-pixel, this moves whole kernels.
        logits = compressed_conv(x, self.compressor, self.content_encoder, phases=s * s).permute(0, 2, 3, 1)
        b, h, w, _ = logits.shape
        blocks = logits.reshape(b, h, w, s, s, -1).permute(0, 1, 3, 2, 4, 5)
        return blocks.reshape(b, h * s, w * s, -1).permute(0, 3, 1, 2)

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of compressor, content encoder and reassembly."""
        logits = self.compressor.weight.numel() + self.content_encoder.weight.numel()
        return height * width * (logits + self.kernel_size**2 * self.scale_factor**2 * self.in_channels)
