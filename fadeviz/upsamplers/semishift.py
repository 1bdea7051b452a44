"""Reassembly kernels from encoder and decoder by a semi-shift convolution: FADE without its gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class SemiShiftOptions:
    """The options of a :class:`SemiShiftConv`, which its operators have too.

    Attributes:
        kernel_size: K, of the reassembly kernels.
        scale_factor: s.
        compressed_channels: d; K*K with ``depthwise``.
        encoder_kernel_size: k_e, of the shared convolution T; odd.
        form: ``"l2h"`` or ``"h2l"``.
        bias_on: the side whose compressor has a bias, ``"encoder"`` or ``"decoder"``.
        depthwise: compress to K*K channels, and let T work on each of them alone (FADE-Lite).
        init: initialisation of T: ``"xavier"``, or ``"small"`` for N(0, 0.001^2).

    Raises:
        FadevizError: if ``encoder_kernel_size`` is even, an option has an unknown value, or ``compressed_channels`` is
            given with ``depthwise``.
    """

    kernel_size: int = 5
    scale_factor: int = 2
    compressed_channels: int = 64
    encoder_kernel_size: int = 3
    form: Form = "l2h"
    bias_on: Side = "encoder"
    depthwise: bool = False
    init: Init = "xavier"

    def __post_init__(self) -> None:
        """Check the options."""
        if self.encoder_kernel_size % 2 == 0:
            raise FadevizError(f"SemiShiftConv: encoder_kernel_size is {self.encoder_kernel_size}, it must be odd")
        if self.form not in ("l2h", "h2l"):
            raise FadevizError(f"SemiShiftConv: no form {self.form!r}. There are: l2h, h2l")
        if self.bias_on not in ("encoder", "decoder"):
            raise FadevizError(f"SemiShiftConv: bias_on is {self.bias_on!r}. There are: encoder, decoder")
        check_init("SemiShiftConv", self.init)
        default = SemiShiftOptions.compressed_channels  # with depthwise it stands for "not given"
        if self.depthwise and self.compressed_channels not in (default, self.kernel_size**2):
            raise FadevizError(
                f"SemiShiftConv: with depthwise the compressed channels are kernel_size^2 = {self.kernel_size**2}, not "
                f"{self.compressed_channels}. Leave compressed_channels out"
            )


class SemiShiftConv(nn.Module):
    r"""Kernel logits at high resolution from an encoder map and a decoder map, with one shared convolution T.

    .. math::

        \mathrm{logits} = T(W_e e + b) + \mathrm{nearest}_s(T(W_x x))

    with :math:`W_e` and :math:`W_x` 1x1 convolutions (the compressors) and T a k_e x k_e convolution. T is zero-padded
    on the grid of its input, and its bias enters twice. Two forms, equal to rounding, borders included:

    - ``l2h`` (FADE, IJCV 2024): T at high resolution plus the nearest-upsampled T at low resolution. The fast form.
    - ``h2l`` (ECCV 2022, Algorithm 1): for each of the s*s sub-pixels a zero-padded copy of the compressed encoder map,
      shifted so that a stride-s convolution reads it at that sub-pixel; then sub-pixel reassembly.

    Limit case:
        A black encoder map and zero bias leave the nearest-upsampled logits of the decoder alone.

    Shape:
        e ``(B, C_skip, s*h, s*w)``, x ``(B, C, h, w)`` -> ``(B, K*K, s*h, s*w)``.

    Cost:
        ``(C_skip + C)*d + d + k_e^2*d*K^2 + K^2`` parameters; for a depth-wise T, where d = K^2, ``(C_skip + C)*d + d +
        k_e^2*d + d``.

    Source:
        FADE supplement, section S2. The compressors' one bias is on the encoder, as in the released code;
        ``bias_on="decoder"`` is the printed algorithm: equal inside, different on the outer ring of pixels.

    Differs:
        In the l2h form compressor and T are one convolution where that is less work.
    """

    def __init__(self, in_channels: int, skip_channels: int, options: SemiShiftOptions) -> None:
        """Compressors of maps with ``in_channels`` and ``skip_channels``, and the shared convolution."""
        super().__init__()
        self.scale_factor = options.scale_factor
        self.form = options.form
        self.init = options.init
        taps, k_e = options.kernel_size**2, options.encoder_kernel_size
        d = taps if options.depthwise else options.compressed_channels
        self.compressor_encoder = nn.Conv2d(skip_channels, d, 1, bias=options.bias_on == "encoder")
        self.compressor_decoder = nn.Conv2d(in_channels, d, 1, bias=options.bias_on == "decoder")
        self.content_encoder = nn.Conv2d(d, taps, k_e, padding=k_e // 2, groups=d if options.depthwise else 1)
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
        """Those of both compressors, and of T at both resolutions."""
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
        """The two terms of the logits: the encoder's at high resolution, and the decoder's at low resolution."""
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
    """Check the initialisation of a content encoder.

    Args:
        name: the operator, for the message.
        init: ``"xavier"`` or ``"small"``.

    Raises:
        FadevizError: if it is neither.
    """
    if init not in ("xavier", "small"):
        raise FadevizError(f"{name}: init is {init!r}. There are: xavier, small")


class SemiShift(Upsampler):
    r"""FADE without its gate: reassembly with kernels from the encoder and the decoder.

    .. math::

        w = \mathrm{softmax}(T(W_e e) + \mathrm{nearest}_s(T(W_x x))), \qquad y = R(x, w)

    with e the encoder feature, T, :math:`W_e` and :math:`W_x` the convolutions of :class:`SemiShiftConv`, the softmax
    over the K*K weights of a pixel, and R(x, w) the reassembly of x with the kernels w.

    Limit case:
        If the weights and the bias of T are 0, every kernel is a K x K box blur of the nearest-upsampled map.

    Shape:
        x ``(B, C, h, w)``, skip.feature ``(B, C_skip, s*h, s*w)`` -> ``(B, C, s*h, s*w)``.

    Cost:
        With d = 64, K = 5, C_skip = C: ``128C + 14,489`` parameters.

    Raises:
        FadevizError: if the encoder feature is missing or has another size or channel count, or an option is invalid.

    Source:
        Lu et al., ECCV 2022, section 4.2; all convolutions Xavier-uniform, biases 0.
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
        """``skip_channels`` of the encoder feature default to ``in_channels``; see :class:`SemiShiftOptions`."""
        super().__init__()
        self.in_channels = in_channels
        self.skip_channels = in_channels if skip_channels is None else skip_channels
        self.kernel_size = kernel_size
        self.scale_factor = scale_factor
        options = SemiShiftOptions(
            kernel_size=kernel_size,
            scale_factor=scale_factor,
            compressed_channels=compressed_channels,
            encoder_kernel_size=encoder_kernel_size,
            form=form,
            bias_on=bias_on,
            depthwise=depthwise,
            init=init,
        )
        self.semi_shift = SemiShiftConv(in_channels, self.skip_channels, options)
        self.kernels = KernelSoftmax(kernel_size)

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Reassemble x with kernels of both maps."""
        feature = read_guide(self, x, skip, self.in_channels, self.skip_channels)
        logits, coarse = self.semi_shift.parts(feature, x)
        return reassemble_logits(x, self.kernels, logits, coarse, self.scale_factor)

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of the semi-shift convolution and of the reassembly."""
        reassembly = self.kernel_size**2 * self.scale_factor**2 * self.in_channels
        return self.semi_shift.multiply_adds(height, width) + height * width * reassembly
