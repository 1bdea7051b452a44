"""FADE-Lite: FADE whose kernels come from depth-wise convolutions."""

from __future__ import annotations

from typing import Literal

from .fade import FADE
from .semishift import Form, Init, Side


class FADELite(FADE):
    """FADE with a fifth of its parameters.

    As FADE, but the compressors map straight to K*K channels, and the shared convolution T works on each of them
    alone: ``logits = T(A) + nearest_s(T(D))`` with T depth-wise.

    Limit cases: those of FADE.

    Shape: x ``(B, C, h, w)``, skip.feature ``(B, C_skip, s*h, s*w)`` -> ``(B, C, s*h, s*w)``. C_skip may differ from C
    only with ``gate="off"``.
    Cost: with K = 5: ``51C + 276`` parameters; ``4 * (25C + 225) + 25C + 225 + C + 100C + 8C`` multiply-adds a
    low-resolution pixel.
    Raises: those of FADE.
    Source: Lu et al., IJCV 2024 (FADE-Lite); all convolutions Xavier-uniform, biases 0.
    Differs: as FADE.
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
        """``skip_channels`` of the encoder feature default to those of x, and may differ only with ``gate="off"``."""
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
