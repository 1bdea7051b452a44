"""FADE: reassembly kernels from encoder and decoder through a semi-shift convolution, and a gate between the two."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError
from .base import Skip, Upsampler, check_guide
from .reassemble import KernelSoftmax, reassemble

Form = Literal["l2h", "h2l"]


class SemiShiftConv(nn.Module):
    """Kernel logits at high resolution from an encoder map and a decoder map, with one shared convolution T.

    ``A = conv1x1(e)``, ``D = conv1x1(x)``, ``logits = T(A) + nearest_s(T(D))``; both convolutions are zero-padded on
    their own grid, and T's bias enters twice.

    Two forms, equal to rounding, borders included:

    - ``l2h`` (FADE, IJCV 2024): T at high resolution plus the nearest-upsampled T at low resolution. The fast one.
    - ``h2l`` (ECCV 2022, Algorithm 1): for each of the s*s sub-pixels a zero-padded copy of A that is shifted so that a
      stride-s convolution reads it at that sub-pixel, then sub-pixel reassembly.

    Limit case: A = 0 (a black encoder map and zero bias) leaves nearest-upsampled logits of the decoder alone.

    Shape: e ``(B, C_skip, s*h, s*w)``, x ``(B, C, h, w)`` -> ``(B, K*K, s*h, s*w)``.
    Cost: ``(C_skip + C)*d + d + k_e^2*d*K^2 + K^2`` parameters.
    Source: FADE supplement, section S2. The compressor's one bias is on the encoder, as in the released code;
    ``bias_on="decoder"`` is the printed algorithm: equal inside, different on the outer ring of pixels.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        kernel_size: int = 5,
        scale_factor: int = 2,
        compressed_channels: int = 64,
        encoder_kernel_size: int = 3,
        form: Form = "l2h",
        bias_on: Literal["encoder", "decoder"] = "encoder",
    ) -> None:
        """Compressors of both maps to ``compressed_channels``, and the shared ``encoder_kernel_size`` convolution."""
        super().__init__()
        if encoder_kernel_size % 2 == 0:
            raise FadevizError(f"SemiShiftConv: encoder_kernel_size is {encoder_kernel_size}, it must be odd")
        if form not in ("l2h", "h2l"):
            raise FadevizError(f"SemiShiftConv: no form {form!r}. There are: l2h, h2l")
        if bias_on not in ("encoder", "decoder"):
            raise FadevizError(f"SemiShiftConv: bias_on is {bias_on!r}. There are: encoder, decoder")
        self.scale_factor = scale_factor
        self.form = form
        self.compressor_encoder = nn.Conv2d(skip_channels, compressed_channels, 1, bias=bias_on == "encoder")
        self.compressor_decoder = nn.Conv2d(in_channels, compressed_channels, 1, bias=bias_on == "decoder")
        self.content_encoder = nn.Conv2d(
            compressed_channels, kernel_size**2, encoder_kernel_size, padding=encoder_kernel_size // 2
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        for conv in (self.compressor_encoder, self.compressor_decoder, self.content_encoder):
            nn.init.xavier_uniform_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, encoder: Tensor, decoder: Tensor) -> Tensor:
        """Kernel logits at the encoder map's resolution."""
        a = self.compressor_encoder(encoder)
        d = self.compressor_decoder(decoder)
        high = self.content_encoder(a) if self.form == "l2h" else self._high_to_low(a)
        low = self.content_encoder(d)
        return high + F.interpolate(low, scale_factor=self.scale_factor, mode="nearest")

    def _high_to_low(self, a: Tensor) -> Tensor:
        conv, s = self.content_encoder, self.scale_factor
        k = conv.kernel_size[0]
        shifted = []
        for row in range(s):
            for column in range(s):
                # A stride-s window at output i starts at row s*i + row - k//2 of the map; negative padding crops.
                top, left = k // 2 - row, k // 2 - column
                copy = F.pad(a, (left, k - s - left, top, k - s - top))
                shifted.append(F.conv2d(copy, conv.weight, conv.bias, stride=s))
        # (K*K, s*s) channels in this order: pixel_shuffle takes channel (kernel * s + row) * s + column.
        return F.pixel_shuffle(torch.stack(shifted, dim=2).flatten(1, 2), s)


class Gate(nn.Module):
    """FADE's gate: ``nearest_s(sigmoid(conv1x1(x)))``, one channel in [0, 1]; 1 takes the encoder feature."""

    def __init__(self, in_channels: int, scale_factor: int = 2) -> None:
        """One 1x1 convolution of ``in_channels`` to the gate's logit."""
        super().__init__()
        self.scale_factor = scale_factor
        self.conv = nn.Conv2d(in_channels, 1, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weight, zero bias."""
        nn.init.xavier_uniform_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, h, w) -> (B, 1, s*h, s*w)``."""
        return F.interpolate(self.conv(x).sigmoid(), scale_factor=self.scale_factor, mode="nearest")


class FADE(Upsampler):
    """Fusing the assets of decoder and encoder.

    ``kernels = softmax(semi_shift(e, x))``, ``r = reassemble(x, kernels)``, ``g = gate(x)``,
    ``y = g * e + (1 - g) * r`` with e the encoder feature.

    Limit cases: gate 1 gives the encoder feature; gate 0 gives the reassembled map, as SemiShiftUp would.

    Shape: x ``(B, C, h, w)``, skip.feature ``(B, C, s*h, s*w)`` -> ``(B, C, s*h, s*w)``.
    Cost: with d = 64, K = 5: ``129C + 14,490`` parameters.
    Raises: FadevizError when the encoder feature has another size or channel count.
    Source: Lu et al., ECCV 2022, sections 4.1 to 4.3; all convolutions Xavier-uniform, biases 0.
    Differs: the L2H form by default (equal to rounding), and a fused linear interpolation for the gate.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 5,
        scale_factor: int = 2,
        compressed_channels: int = 64,
        encoder_kernel_size: int = 3,
        form: Form = "l2h",
        bias_on: Literal["encoder", "decoder"] = "encoder",
    ) -> None:
        """Encoder and decoder maps both have ``in_channels``: the gate mixes them."""
        super().__init__()
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.scale_factor = scale_factor
        self.semi_shift = SemiShiftConv(
            in_channels, in_channels, kernel_size, scale_factor, compressed_channels, encoder_kernel_size, form, bias_on
        )
        self.kernels = KernelSoftmax(kernel_size)
        self.gate = Gate(in_channels, scale_factor)

    def forward(self, x: Tensor, skip: Skip) -> Tensor:
        """Reassemble x with kernels of both maps, then mix with the encoder feature by the gate."""
        check_guide(self, x, skip.feature, self.in_channels)
        kernels = self.kernels(self.semi_shift(skip.feature, x))
        reassembled = reassemble(x, kernels, self.kernel_size, self.scale_factor)
        gate = self.gate(x)
        # lerp is one pass where gate * e + (1 - gate) * r is four; it wants one dtype, autocast may have made two.
        dtype = torch.promote_types(reassembled.dtype, skip.feature.dtype)
        return torch.lerp(reassembled.to(dtype), skip.feature.to(dtype), gate.to(dtype))
