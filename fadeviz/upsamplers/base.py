"""The one contract of every upsampling operator: ``upsample(x, skip)`` doubles the resolution of a decoder map."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError


class Skip(NamedTuple):
    """What an encoder stage hands to its decoder stage.

    Attributes:
        feature: ``(B, C_skip, s*h, s*w)``, the encoder feature at the output's resolution.
        indices: what ``Upsampler.pool`` kept for the way up: max-pooling indices, or an index map; None for most.
    """

    feature: Tensor
    indices: Tensor | None = None


class Upsampler(nn.Module):
    """An operator that a decoder stage calls as ``x = self.upsample(x, skip)``: ``(B, C, h, w) -> (B, C, s*h, s*w)``.

    Operators that need no guide ignore ``skip``. What can be looked at inside is a submodule, so that a probe can name
    it: ``gate`` (values in [0, 1]) and ``kernels`` (a :class:`~fadeviz.upsamplers.reassemble.KernelSoftmax`).
    """

    scale_factor: int = 2

    def forward(self, x: Tensor, skip: Skip) -> Tensor:
        """Upsample ``x`` by ``scale_factor``."""
        raise FadevizError(f"{type(self).__name__} has no forward; an upsampler defines forward(x, skip)")

    def pool(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        """The operator's encoder half: ``(B, C, H, W)`` -> pooled by ``scale_factor``, and indices for the way up."""
        return F.max_pool2d(feature, self.scale_factor), None


def check_guide(operator: Upsampler, x: Tensor, guide: Tensor, channels: int | None) -> None:
    """Raise unless the encoder feature has the output's size (and ``channels`` channels, where the operator cares).

    Raises:
        FadevizError: with the sizes met and the sizes needed.
    """
    name, s = type(operator).__name__, operator.scale_factor
    (h, w), (gh, gw) = x.shape[-2:], guide.shape[-2:]
    if (gh, gw) != (s * h, s * w):
        raise FadevizError(
            f"{name}: skip.feature is {gh}x{gw}, but x is {h}x{w} and scale_factor is {s}, so {s * h}x{s * w} is "
            "needed. Pad the input so that every stage divides evenly"
        )
    if channels is not None and guide.shape[1] != channels:
        raise FadevizError(
            f"{name}: skip.feature has {guide.shape[1]} channels, {channels} are needed. "
            f"Build it with the encoder's channels, or project the feature with a 1x1 convolution"
        )
