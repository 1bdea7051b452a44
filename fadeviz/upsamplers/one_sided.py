"""Controls for FADE: reassembly kernels from the encoder map alone, or from the decoder map alone."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import FadevizError
from ..ops.compressed import compressed_conv
from ..ops.reassemble import KernelSoftmax, reassemble_logits
from .base import Skip, Upsampler, check_input, read_guide
from .plain import nearest
from .semishift import Init, check_init


class _OneSided(Upsampler):
    """Compressor, content encoder and reassembly, of the feature that a subclass reads."""

    def __init__(
        self,
        in_channels: int,
        source_channels: int,
        kernel_size: int,
        scale_factor: int,
        compressed_channels: int,
        encoder_kernel_size: int,
        init: Init,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if encoder_kernel_size % 2 == 0:
            raise FadevizError(f"{name}: encoder_kernel_size is {encoder_kernel_size}, it must be odd")
        check_init(name, init)
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.scale_factor = scale_factor
        self.init = init
        self.compressor = nn.Conv2d(source_channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels, kernel_size**2, encoder_kernel_size, padding=encoder_kernel_size // 2
        )
        self.kernels = KernelSoftmax(kernel_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases; ``init="small"`` draws the content encoder from N(0, 0.001^2)."""
        for conv in (self.compressor, self.content_encoder):
            nn.init.xavier_uniform_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        if self.init == "small":
            nn.init.normal_(self.content_encoder.weight, std=0.001)

    def _logit_cost(self) -> int:
        return self.compressor.weight.numel() + self.content_encoder.weight.numel()

    def _reassembly_cost(self) -> int:
        return self.kernel_size**2 * self.scale_factor**2 * self.in_channels


class EncoderKernel(_OneSided):
    r"""Reassembly with kernels from the encoder feature alone, a control for FADE.

    .. math::

        w = \mathrm{softmax}(T(W e)), \qquad y = R(x, w)

    with e the encoder feature, W a 1x1 convolution to d channels, T a k_e x k_e convolution to K*K, and R(x, w) the
    reassembly of x with the kernels w: FADE's kernels without the decoder's part, and no gate.

    Limit case:
        An encoder map without contrast (and away from its border) gives the same kernel everywhere.

    Shape:
        x ``(B, C, h, w)``, skip.feature ``(B, C_skip, s*h, s*w)`` -> ``(B, C, s*h, s*w)``.

    Cost:
        ``C_skip*d + d + k_e^2*d*K^2 + K^2`` parameters; with the defaults ``64C + 14,489``.

    Raises:
        FadevizError: if the encoder feature is missing or has another size or channel count, or an option is invalid.

    Source:
        The encoder-only row of the ablation in Lu et al., ECCV 2022, section 3.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 5,
        scale_factor: int = 2,
        compressed_channels: int = 64,
        encoder_kernel_size: int = 3,
        init: Init = "xavier",
        skip_channels: int | None = None,
    ) -> None:
        """``skip_channels`` of the encoder feature default to ``in_channels``."""
        source = in_channels if skip_channels is None else skip_channels
        super().__init__(in_channels, source, kernel_size, scale_factor, compressed_channels, encoder_kernel_size, init)
        self.skip_channels = source

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Reassemble x with the encoder's kernels."""
        feature = read_guide(self, x, skip, None, self.skip_channels)
        logits = compressed_conv(feature, self.compressor, self.content_encoder)
        return reassemble_logits(x, self.kernels, logits, scale_factor=self.scale_factor)

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of the kernels at high resolution, and of the reassembly."""
        return height * width * (self.scale_factor**2 * self._logit_cost() + self._reassembly_cost())


class DecoderKernel(_OneSided):
    r"""Reassembly with kernels from the decoder feature alone, a control for FADE.

    .. math::

        w = \mathrm{nearest}_s(\mathrm{softmax}(T(W x))), \qquad y = R(x, w)

    with W a 1x1 convolution to d channels, T a k_e x k_e convolution to K*K, and R(x, w) the reassembly of x with the
    kernels w: FADE's kernels without the encoder's part, and no gate. The s*s output pixels of a parent share a kernel.

    Limit case:
        Every s x s block of the output is constant.

    Shape:
        x ``(B, C, h, w)`` -> ``(B, C, s*h, s*w)``; skip is not read.

    Cost:
        ``C*d + d + k_e^2*d*K^2 + K^2`` parameters; with the defaults ``64C + 14,489``.

    Raises:
        FadevizError: if an option is invalid.

    Source:
        The decoder-only row of the ablation in Lu et al., ECCV 2022, section 3.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 5,
        scale_factor: int = 2,
        compressed_channels: int = 64,
        encoder_kernel_size: int = 3,
        init: Init = "xavier",
    ) -> None:
        """Kernels of ``kernel_size`` from ``compressed_channels`` through an ``encoder_kernel_size`` convolution."""
        super().__init__(
            in_channels, in_channels, kernel_size, scale_factor, compressed_channels, encoder_kernel_size, init
        )

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Reassemble x at its own resolution, then repeat: the same sums as with repeated kernels, s*s times fewer."""
        check_input(self, x, skip, self.in_channels)
        logits = compressed_conv(x, self.compressor, self.content_encoder)
        y = reassemble_logits(x, self.kernels, logits, scale_factor=1)
        return nearest(y, self.scale_factor)

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of the kernels and of the reassembly, both at low resolution."""
        return height * width * (self._logit_cost() + self.kernel_size**2 * self.in_channels)
