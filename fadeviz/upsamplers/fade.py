"""FADE: reassembly kernels from encoder and decoder through a semi-shift convolution, and a gate between the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError
from ..ops.reassemble import KernelSoftmax, is_plain, reassemble_logits
from .base import Skip, Upsampler, read_guide
from .plain import nearest
from .semishift import Form, Init, SemiShift, SemiShiftConv, SemiShiftOptions, Side


class Gate(nn.Module):
    """FADE's gate: ``nearest_s(sigmoid(conv1x1(x)))``, one channel in [0, 1]; 1 selects the encoder feature."""

    def __init__(self, in_channels: int, scale_factor: int = 2, bias: float = 0.0) -> None:
        """One 1x1 convolution of ``in_channels`` to the gate's logit, which starts around ``bias``."""
        super().__init__()
        self.scale_factor = scale_factor
        self.initial_bias = bias
        self.conv = nn.Conv2d(in_channels, 1, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weight, and the initial bias."""
        nn.init.xavier_uniform_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.constant_(self.conv.bias, self.initial_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, h, w) -> (B, 1, s*h, s*w)``."""
        if x.is_contiguous(memory_format=torch.channels_last) and is_plain(self.conv):
            # With one output channel this is a product with a vector, which is many times faster than a convolution.
            logits = F.linear(x.permute(0, 2, 3, 1), self.conv.weight.flatten(1), self.conv.bias).permute(0, 3, 1, 2)
        else:
            logits = self.conv(x)
        return nearest(logits.sigmoid(), self.scale_factor)


class FADE(Upsampler):
    r"""Fusing the assets of decoder and encoder: kernels from both, and a gate between the two features.

    .. math::

        w = \mathrm{softmax}(T(W_e e) + \mathrm{nearest}_s(T(W_x x)))

    .. math::

        g = \mathrm{nearest}_s(\sigma(W_g x)), \qquad y = g \odot e + (1 - g) \odot R(x, w)

    with e the encoder feature, :math:`W_e`, :math:`W_x` and :math:`W_g` 1x1 convolutions, T the k_e x k_e convolution
    that both features share (the semi-shift convolution, :class:`~fadeviz.upsamplers.semishift.SemiShiftConv`), the
    softmax over the K*K weights of a pixel, and R(x, w) the reassembly of x with the kernels w.

    Options that take it apart: ``gate="off"`` gives y = R(x, w), ``gate="add"`` gives y = e + R(x, w); ``gate_bias=-4``
    starts with a gate that is nearly shut; ``init="small"`` starts with kernels that are nearly box blurs.

    Limit cases:
        A gate of 1 gives the encoder feature; a gate of 0 gives the reassembled map, as SemiShift would.

    Shape:
        x ``(B, C, h, w)``, skip.feature ``(B, C_skip, s*h, s*w)`` -> ``(B, C, s*h, s*w)``. C_skip may differ from C
        only with ``gate="off"``: other gates mix the two maps channel by channel.

    Cost:
        With d = 64, K = 5: ``129C + 14,490`` parameters; ``4 * (64C + 14,400) + 64C + 14,400 + C + 100C + 8C``
        multiply-adds a low-resolution pixel: logits at both resolutions, gate, reassembly, mixing.

    Raises:
        FadevizError: if the encoder feature is missing or has another size or channel count, ``skip_channels`` differs
            from C although ``gate`` is not off, or an option is invalid.

    Source:
        Lu et al., ECCV 2022, sections 4.1 to 4.3; all convolutions Xavier-uniform, biases 0.

    Differs:
        The L2H form is the default (equal to rounding); a few convolutions and products are fused.
    """

    official_names: ClassVar[Mapping[str, str]] = {**SemiShift.official_names, "gate_generator.conv": "gate.conv"}

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 5,
        scale_factor: int = 2,
        compressed_channels: int = 64,
        encoder_kernel_size: int = 3,
        form: Form = "l2h",
        bias_on: Side = "encoder",
        gate: Literal["on", "off", "add"] = "on",
        gate_bias: float = 0.0,
        init: Init = "xavier",
        depthwise: bool = False,
        skip_channels: int | None = None,
    ) -> None:
        """``skip_channels`` of the encoder feature default to ``in_channels``, and may differ only with ``gate="off"``.

        The other options are those of :class:`~fadeviz.upsamplers.semishift.SemiShiftOptions`.
        """
        super().__init__()
        if gate not in ("on", "off", "add"):
            raise FadevizError(f"FADE: gate is {gate!r}. There are: on, off, add")
        if gate != "on" and gate_bias:
            raise FadevizError(f"FADE: gate_bias is {gate_bias:g}, but gate is {gate!r}. Leave one of them out")
        self.in_channels = in_channels
        self.skip_channels = in_channels if skip_channels is None else skip_channels
        if gate != "off" and self.skip_channels != in_channels:
            raise FadevizError(
                f"{type(self).__name__}: skip_channels is {skip_channels}, but gate {gate!r} mixes the encoder's map "
                f"with x's {in_channels} channels. Use gate='off', or project the feature with a 1x1 convolution"
            )
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
        self.adds = gate == "add"
        self.gate = Gate(in_channels, scale_factor, gate_bias) if gate == "on" else None

    def channels_advice(self, channels: int) -> str:
        """Advice for an error message about an encoder feature with another number of ``channels``."""
        return super().channels_advice(channels) + ("" if self.gate is None and not self.adds else " and gate='off'")

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Reassemble x with kernels of both maps, then mix with the encoder feature by the gate."""
        feature = read_guide(self, x, skip, self.in_channels, self.skip_channels)
        logits, coarse = self.semi_shift.parts(feature, x)
        if self.gate is not None:
            return reassemble_logits(x, self.kernels, logits, coarse, self.scale_factor, feature, self.gate(x))
        reassembled = reassemble_logits(x, self.kernels, logits, coarse, self.scale_factor)
        return reassembled + feature if self.adds else reassembled

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of the semi-shift convolution, the reassembly and the gate, and two products a value for mixing."""
        c, children = self.in_channels, self.scale_factor**2
        gate = 0 if self.gate is None else c + 2 * children * c
        pixel = self.kernel_size**2 * children * c + gate
        return self.semi_shift.multiply_adds(height, width) + height * width * pixel
