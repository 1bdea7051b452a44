"""What several networks share: checks of width and image size, convolutions, and the operators of a decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ..errors import FadevizError
from ..upsamplers import Upsampler, build_upsampler, check_keeps_channels, parse_upsampler


def check_width(network: str, width: float) -> None:
    """Raise unless ``width`` can multiply channel counts.

    Raises:
        FadevizError: if it is not above 0 and at most 4.
    """
    if not (math.isfinite(width) and 0 < width <= 4):
        raise FadevizError(f"{network}: width is {width}; it must be above 0 and at most 4, e.g. 0.25")


def check_sides(network: str, images: Tensor, stride: int) -> None:
    """Raise unless both sides of the images are divisible by ``stride``.

    Raises:
        FadevizError: if one is not, or is 0.
    """
    h, w = images.shape[-2:]
    if h % stride or w % stride or not h or not w:
        raise FadevizError(f"{network}: the image is {h}x{w}; both sides must be divisible by {stride}")


def build_stage_upsamplers(network: str, upsampler: str, channels: Sequence[int]) -> list[Upsampler]:
    """An operator for each decoder stage, which doubles the resolution and keeps the channels.

    Args:
        network: the network's title, for messages.
        upsampler: a name in ``UPSAMPLERS``, with options if need be.
        channels: those of each stage's input.

    Raises:
        FadevizError: if there is no such operator, it does not double, or changes the number of channels.
    """
    name, options = parse_upsampler(upsampler)
    operators = []
    for c in channels:
        operator = build_upsampler(name, c, **options)
        if operator.scale_factor != 2:
            raise FadevizError(
                f"{network}: every stage doubles, but {name} has scale_factor {operator.scale_factor}. Use 2"
            )
        check_keeps_channels(network, name, operator)
        operators.append(operator)
    return operators


def convs(channels: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions from each number of channels to the next, each followed by BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def reset_convs(module: nn.Module) -> None:
    """Draw a convolution's weights Kaiming-normal (fan out), as torchvision's VGG; for ``Module.apply``."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


__all__ = ["build_stage_upsamplers", "check_sides", "check_width", "convs", "reset_convs"]
