"""FADE-Lite: FADE whose kernels come from depth-wise convolutions."""

from __future__ import annotations

from typing import Literal

from .fade import FADE
from .semishift import Form, Init, Side


class FADELite(FADE):
    r"""FADE with a fifth of its parameters: kernels from depth-wise convolutions.

    .. math::

        w = \mathrm{softmax}(T(W_e e) + \mathrm{nearest}_s(T(W_x x))), \qquad y = g \odot e + (1 - g) \odot R(x, w)

    as in :class:`~fadeviz.upsamplers.fade.FADE`, but the compressors :math:`W_e` and :math:`W_x` map straight to K*K
    channels, and the shared convolution T is depth-wise.

    Limit cases:
        Those of FADE.

    Shape:
        x ``(B, C, h, w)``, skip.feature ``(B, C_skip, s*h, s*w)`` -> ``(B, C, s*h, s*w)``. C_skip may differ from C
        only with ``gate="off"``.

    Cost:
        With K = 5: ``51C + 276`` parameters; ``4 * (25C + 225) + 25C + 225 + C + 100C + 8C`` multiply-adds a
        low-resolution pixel.

    Raises:
        FadevizError: if the encoder feature is missing or has another size or channel count, ``skip_channels`` differs
            from C although ``gate`` is not off, or an option is invalid.

    Source:
        Lu et al., IJCV 2024 (FADE-Lite); all convolutions Xavier-uniform, biases 0.

    Differs:
        The L2H form is the default, as in FADE.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 5,
        scale_factor: int = 2,
        encoder_kernel_size: int = 3,
        form: Form = "l2h",
        bias_on: Side = "encoder",
        gate: Literal["on", "off", "add"] = "on",
        gate_bias: float = 0.0,
        init: Init = "xavier",
        skip_channels: int | None = None,
    ) -> None:
        """``skip_channels`` of the encoder feature default to ``in_channels``; others need ``gate="off"``."""
        super().__init__(
            in_channels,
            kernel_size,
            scale_factor,
            encoder_kernel_size=encoder_kernel_size,
            form=form,
            bias_on=bias_on,
            gate=gate,
            gate_bias=gate_bias,
            init=init,
            depthwise=True,
            skip_channels=skip_channels,
        )
