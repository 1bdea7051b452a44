"""U-Net: an encoder, a decoder that concatenates the encoder's maps, and any upsampling operator in between."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ..upsamplers import Skip, Upsampler
from .base import Network, Site
from .blocks import build_stage_upsamplers, check_sides, check_width, convs, reset_convs
from .recipes import Recipe, sgd, step_decay

CHANNELS = (64, 128, 256, 512, 512)
"""Channels of the five encoder stages, finest first; the bottleneck below them has those of the coarsest."""


class UNetStage(nn.Module):
    """Upsample by the operator, concatenate the encoder's map, then convolve."""

    upsample: Upsampler

    def __init__(self, upsample: Upsampler, convs: nn.Sequential) -> None:
        """``upsample`` doubles the resolution, ``convs`` work at the new one."""
        super().__init__()
        self.upsample = upsample
        self.convs = convs

    def forward(self, x: Tensor, skip: Skip) -> Tensor:
        """``(B, C, h, w)`` and the encoder's map of C channels -> ``(B, C_out, 2h, 2w)``."""
        out: Tensor = self.convs(torch.cat([skip.feature, self.upsample(x, skip)], dim=1))
        return out


class UNet(Network):
    """A plain U-Net with one upsampling operator at all five decoder stages.

    Encoder stage i passes its map before pooling to decoder stage 4 - i, twice: as the operator's guide, and
    concatenated with the operator's output. The network therefore localises with every operator, even with those
    without a guide, with which SegNet hardly does; what an operator's map shows has still come through it. The operator
    is ``decoder.0.upsample`` (coarsest, 7 -> 14 at 224) to ``decoder.4.upsample`` (finest, 112 -> 224): the layers of
    SegNet, with its channels and resolutions, so that runs of both networks can be drawn side by side.

    Shape: images ``(B, 3, H, W)``, H and W divisible by 32 -> logits ``(B, classes, H, W)``.
    Cost: 29,070,082 parameters with bilinear interpolation and two classes; the slim network (``width=0.25``) has
    1,820,866.
    Raises: FadevizError if H or W is not divisible by 32.
    Source: Ronneberger et al., MICCAI 2015, figure 1.
    Differs: convolutions are padded, so that the output has the images' size, and followed by BatchNorm; there are five
    poolings, not four; the bottleneck has 512 channels, not 1024, and each decoder stage ends with as many as the next
    skip has, because FADE and max unpooling need as many in the input as in the guide. The paper upsamples by 2x2
    deconvolution; here that is one operator among others.
    """

    figure_layer = "decoder.3.upsample"
    """An intermediate layer, 1/4 -> 1/2, as in SegNet: large enough for a contour and an interior."""

    layers = "decoder.*.upsample"
    """The operators."""

    title = "U-Net"

    task = "segmentation"

    stride = 32

    encoder: nn.ModuleList

    recipe = Recipe(0.05, 0.0, (0.7, 0.9), sgd, step_decay)
    """Chosen on Weizmann Horse at 96x96, width 0.25, 200 steps: of 0.02, 0.05 and 0.1, FADE is worst at the first and
    CARAFE at the last."""

    reference_size = 224

    sites = (Site(512, 7), Site(512, 14), Site(256, 28), Site(128, 56), Site(64, 112))

    def __init__(self, upsampler: str = "fade", classes: int = 2, width: float = 1.0) -> None:
        """Build the network.

        Args:
            upsampler: a name in ``UPSAMPLERS``, with options if need be: ``"carafe:kernel_size=3"``.
            classes: channels of the output.
            width: multiplier of every channel count; 0.25 makes the slim network of the demo.
        """
        super().__init__()
        check_width("U-Net", width)
        channels = [max(4, round(c * width)) for c in CHANNELS]
        sizes = pairwise([3, *channels, channels[-1]])
        self.encoder = nn.ModuleList(convs([before, after, after]) for before, after in sizes)
        decoders = [convs([2 * c, c, channels[max(0, i - 1)]]) for i, c in reversed(list(enumerate(channels)))]
        self.head = nn.Conv2d(channels[0], classes, 1)
        for module in (self.encoder, *decoders, self.head):
            module.apply(reset_convs)
        # The operators come last: the draws above are then the same whichever operator is chosen.
        operators = build_stage_upsamplers("U-Net", upsampler, channels[::-1])
        self.decoder = nn.ModuleList(map(UNetStage, operators, decoders))

    def forward(self, images: Tensor) -> Tensor:
        """Class logits at the images' resolution."""
        check_sides("U-Net", images, self.stride)
        *stages, bottleneck = self.encoder
        x, skips = images, []
        for stage, decoder in zip(stages, reversed(self.decoder), strict=True):
            feature = stage(x)
            x, indices = cast(UNetStage, decoder).upsample.pool(feature)
            skips.append(Skip(feature, indices))
        x = bottleneck(x)
        for decoder in self.decoder:
            x = decoder(x, skips.pop())
        out: Tensor = self.head(x)
        return out


__all__ = ["CHANNELS", "UNet", "UNetStage"]
