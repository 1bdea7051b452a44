"""Reassembly kernels from encoder and decoder by a semi-shift convolution: FADE without its gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError
from ..ops.compressed import compressed_conv
from ..ops.reassemble import KernelSoftmax, reassemble_logits
from .base import Skip, Upsampler, read_guide

Form = Literal["l2h", "h2l"]
Side = Literal["encoder", "decoder"]
Init = Literal["xavier", "small"]


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
    Cost: ``(C_skip + C)*d + d + k_e^2*d*K^2 + K^2`` parameters, and for a depth-wise T, where d = K^2,
    ``(C_skip + C)*d + d + k_e^2*d + d``.
    Source: FADE supplement, section S2. The compressor's one bias is on the encoder, as in the released code;
    ``bias_on="decoder"`` is the printed algorithm: equal inside, different on the outer ring of pixels.
    Differs: in the l2h form compressor and T are one convolution where that is less work.
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
        bias_on: Side = "encoder",
        depthwise: bool = False,
        init: Init = "xavier",
    ) -> None:
        """Compressors of both maps to ``compressed_channels``, and the shared ``encoder_kernel_size`` convolution.

        With ``depthwise`` the compressors go straight to K*K channels and T works on each of them alone (FADE-Lite).
        """
        super().__init__()
        if encoder_kernel_size % 2 == 0:
            raise FadevizError(f"SemiShiftConv: encoder_kernel_size is {encoder_kernel_size}, it must be odd")
        if form not in ("l2h", "h2l"):
            raise FadevizError(f"SemiShiftConv: no form {form!r}. There are: l2h, h2l")
        if bias_on not in ("encoder", "decoder"):
            raise FadevizError(f"SemiShiftConv: bias_on is {bias_on!r}. There are: encoder, decoder")
        check_init("SemiShiftConv", init)
        if depthwise and compressed_channels not in (64, kernel_size**2):  # 64 is the default: nobody asked
            raise FadevizError(
                f"SemiShiftConv: with depthwise the compressed channels are kernel_size^2 = {kernel_size**2}, not "
                f"{compressed_channels}. Leave compressed_channels out"
            )
        self.scale_factor = scale_factor
        self.form = form
        self.init = init
        d = kernel_size**2 if depthwise else compressed_channels
        self.compressor_encoder = nn.Conv2d(skip_channels, d, 1, bias=bias_on == "encoder")
        self.compressor_decoder = nn.Conv2d(in_channels, d, 1, bias=bias_on == "decoder")
        self.content_encoder = nn.Conv2d(
            d, kernel_size**2, encoder_kernel_size, padding=encoder_kernel_size // 2, groups=d if depthwise else 1
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases; ``init="small"`` draws T from N(0, 0.001^2) as CARAFE does."""
        for conv in (self.compressor_encoder, self.compressor_decoder, self.content_encoder):
            nn.init.xavier_uniform_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        if self.init == "small":
            nn.init.normal_(self.content_encoder.weight, std=0.001)

    def multiply_adds(self, height: int, width: int) -> int:
        """Of both compressors and of T at both resolutions."""
        t = self.content_encoder
        convolution = t.weight.numel()
        high = self.compressor_encoder.weight.numel() + convolution
        low = self.compressor_decoder.weight.numel() + convolution
        return height * width * (self.scale_factor**2 * high + low)

    def forward(self, encoder: Tensor, decoder: Tensor) -> Tensor:
        """Kernel logits at the encoder map's resolution."""
        high, low = self.parts(encoder, decoder)
        return high + F.interpolate(low, scale_factor=self.scale_factor, mode="nearest")

    def parts(self, encoder: Tensor, decoder: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's logits at its resolution and the decoder's at theirs: what forward adds up."""
        low = compressed_conv(decoder, self.compressor_decoder, self.content_encoder)
        if self.form == "l2h":
            return compressed_conv(encoder, self.compressor_encoder, self.content_encoder), low
        return self._high_to_low(self.compressor_encoder(encoder)), low

    def _high_to_low(self, a: Tensor) -> Tensor:
        conv, s = self.content_encoder, self.scale_factor
        k = conv.kernel_size[0]
        shifted = []
        for row in range(s):
            for column in range(s):
                # A stride-s window at output i starts at row s*i + row - k//2 of the map; negative padding crops.
                top, left = k // 2 - row, k // 2 - column
                copy = F.pad(a, (left, k - s - left, top, k - s - top))
                shifted.append(F.conv2d(copy, conv.weight, conv.bias, stride=s, groups=conv.groups))
        # (K*K, s*s) channels in this order: pixel_shuffle takes channel (kernel * s + row) * s + column.
        return F.pixel_shuffle(torch.stack(shifted, dim=2).flatten(1, 2), s)


def check_init(name: str, init: str) -> None:
    """Raise unless ``init`` is one of the two initialisations of content encoders."""
    if init not in ("xavier", "small"):
        raise FadevizError(f"{name}: init is {init!r}. There are: xavier, small")


class SemiShift(Upsampler):
    """FADE without its gate: reassembly kernels from encoder and decoder, ``y = reassemble(x, kernels)``.

    ``kernels = softmax(semi_shift(e, x))`` with e the encoder feature; see :class:`SemiShiftConv`.

    Limit case: where T's weights and bias are 0 every kernel is a K x K box blur of the nearest-upsampled map.

    Shape: x ``(B, C, h, w)``, skip.feature ``(B, C_skip, s*h, s*w)`` -> ``(B, C, s*h, s*w)``.
    Cost: with d = 64, K = 5, C_skip = C: ``128C + 14,489`` parameters.
    Raises: FadevizError when the encoder feature is missing or has another size or channel count.
    Source: Lu et al., ECCV 2022, section 4.2; all convolutions Xavier-uniform, biases 0.
    """

    official_names: ClassVar[Mapping[str, str]] = {
        "ker_generator.compressor_en": "semi_shift.compressor_encoder",
        "ker_generator.compressor_de": "semi_shift.compressor_decoder",
        "ker_generator.content_encoder": "semi_shift.content_encoder",
    }

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 5,
        scale_factor: int = 2,
        compressed_channels: int = 64,
        encoder_kernel_size: int = 3,
        form: Form = "l2h",
        bias_on: Side = "encoder",
        depthwise: bool = False,
        init: Init = "xavier",
        skip_channels: int | None = None,
    ) -> None:
        """The encoder map has ``skip_channels``, by default as many as x."""
        super().__init__()
        self.in_channels = in_channels
        self.skip_channels = in_channels if skip_channels is None else skip_channels
        self.kernel_size = kernel_size
        self.scale_factor = scale_factor
        self.semi_shift = SemiShiftConv(
            in_channels,
            self.skip_channels,
            kernel_size,
            scale_factor,
            compressed_channels,
            encoder_kernel_size,
            form,
            bias_on,
            depthwise,
            init,
        )
        self.kernels = KernelSoftmax(kernel_size)

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Reassemble x with kernels of both maps."""
        feature = read_guide(self, x, skip, self.in_channels, self.skip_channels)
        logits, coarse = self.semi_shift.parts(feature, x)
        return reassemble_logits(x, self.kernels, logits, coarse, self.scale_factor)

    def multiply_adds(self, height: int, width: int) -> int:
        """Of the semi-shift convolution and the reassembly."""
        reassembly = self.kernel_size**2 * self.scale_factor**2 * self.in_channels
        return self.semi_shift.multiply_adds(height, width) + height * width * reassembly
