"""SegFormer: a MiT encoder, an all-MLP head, and any upsampling operator at the head's six doublings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError, unknown_name
from ..upsamplers import Skip, Upsampler, build_upsampler, check_keeps_channels, find_upsampler, parse_upsampler
from .base import Network, Site
from .blocks import check_sides, check_width
from .pretrained import read_pretrained, transformers_for
from .recipes import Recipe, adamw, poly


class Backbone(NamedTuple):
    """A MiT encoder: channels and depth of its four stages, and the width of the head that goes with it."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    head: int


BACKBONES = {
    "b0": Backbone((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": Backbone((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": Backbone((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": Backbone((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": Backbone((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": Backbone((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
"""The published variants."""

HEADS = (1, 2, 5, 8)
"""Attention heads of the four stages: a stage's channels are a multiple of its heads."""

DROP_PATH = 0.1
"""Stochastic depth of the last block; it grows linearly from 0 at the first."""


class Climb(nn.ModuleDict):
    """Operators one after another, each called by the map whose resolution it reaches, and guided by that map."""

    def __init__(self, upsampler: str, channels: int, reached: Sequence[str]) -> None:
        """An operator of factor two for each of ``reached``; where bilinear interpolation does, one for the last."""
        super().__init__()
        name, options = parse_upsampler(upsampler)
        at_once = name == "bilinear" and not options
        for place in reached[-1:] if at_once else reached:
            factor = 2 ** len(reached) if at_once else 2
            operator = build_upsampler(name, channels, **options, **({"scale_factor": factor} if at_once else {}))
            if operator.scale_factor != factor:
                raise FadevizError(
                    f"SegFormer: every operator doubles, but {name} has scale_factor {operator.scale_factor}. Use 2"
                )
            check_keeps_channels("SegFormer", name, operator)
            self[place] = operator
        self.reads = find_upsampler(name).needs

    def forward(self, x: Tensor, finer: Mapping[str, Tensor]) -> Tensor:
        """``x`` at the resolution of the last map it is to reach; ``finer`` holds the maps by name."""
        for place, module in self.items():
            operator, guide = cast(Upsampler, module), finer[place]
            indices = operator.pool(guide)[1] if self.reads == "indices" else None
            x = operator(x, Skip(guide, indices))
        return x


class Head(nn.Module):
    """The all-MLP head: project four maps to one width, bring them to the finest one's resolution, concatenate, fuse.

    The coarsest map c4 is doubled three times, guided by the projected c3, c2 and c1; c3 twice, by c2 and c1; c2 once,
    by c1. The operators are ``c4.c3``, ``c4.c2``, ``c4.c1``, ``c3.c2``, ``c3.c1`` and ``c2.c1``: from where, to where.
    Bilinear interpolation reaches the finest resolution at once, as in the original head: it has ``c4.c1``, ``c3.c1``
    and ``c2.c1`` alone.

    Shape: four maps at 1/4, 1/8, 1/16 and 1/32 of the image -> logits at 1/4.
    """

    def __init__(self, channels: Sequence[int], width: int, classes: int, upsampler: str) -> None:
        """``channels`` of the four maps, finest first; all are projected to ``width``."""
        super().__init__()
        self.project = nn.ModuleList([nn.Conv2d(c, width, 1) for c in channels])
        self.fuse = nn.Sequential(nn.Conv2d(4 * width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.dropout = nn.Dropout(0.1)
        self.classify = nn.Conv2d(width, classes, 1)
        # The operators come last: with one seed the weights above do not depend on the operator.
        self.c4 = Climb(upsampler, width, ("c3", "c2", "c1"))
        self.c3 = Climb(upsampler, width, ("c2", "c1"))
        self.c2 = Climb(upsampler, width, ("c1",))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Class logits at a quarter of the image's resolution."""
        c = {f"c{i}": project(f) for i, (project, f) in enumerate(zip(self.project, features, strict=True), start=1)}
        maps = [self.c4(c["c4"], c), self.c3(c["c3"], c), self.c2(c["c2"], c), c["c1"]]
        logits: Tensor = self.classify(self.dropout(self.fuse(torch.cat(maps, dim=1))))
        return logits


class SegFormer(Network):
    """SegFormer with one upsampling operator wherever its head doubles a map: six of them, as in the FADE paper.

    ``head.c4.c3`` (1/32 -> 1/16), ``head.c4.c2`` and ``head.c4.c1`` (1/8 -> 1/4) bring the coarsest map up,
    ``head.c3.c2`` and ``head.c3.c1`` the next one, ``head.c2.c1`` the one after that; see :class:`Head`. The logits, at
    a quarter of the resolution, are interpolated bilinearly.

    Shape: images ``(B, 3, H, W)``, H and W divisible by 32 -> logits ``(B, classes, H, W)``.
    Cost: with B1, 150 classes and bilinear interpolation 13,715,798 parameters.
    Raises: FadevizError if H or W is not divisible by 32.
    Source: Xie et al., NeurIPS 2021; the encoder is that of transformers. The operators' places: Lu et al., ECCV 2022,
    supplement, figure S3.
    Differs: 256 channels in the head of B0 and B1, 768 from B2 on, as in the SegFormer paper.
    """

    figure_layer = "head.c4.c1"
    """The deepest map's last doubling."""

    layers = "head.c4.*,head.c3.*,head.c2.*"
    """The operators."""

    title = "SegFormer"

    task = "segmentation"

    stride = 32

    recipe = Recipe(6e-5, 0.01, (0.7, 0.9), adamw, poly)

    reference_size = 512

    sites = tuple(Site(256, side) for side in (16, 32, 64, 32, 64, 64))
    """The three coarse maps climb to a quarter of the image in three, two and one steps; 256 channels, as B1 has."""

    def __init__(
        self,
        upsampler: str = "bilinear",
        classes: int = 2,
        width: float = 1.0,
        *,
        backbone: str = "b0",
        channels: int = 0,
    ) -> None:
        """Build the network.

        Args:
            upsampler: a name in ``UPSAMPLERS``, with options if need be.
            classes: channels of the output.
            width: multiplier of every channel count; those of a stage stay a multiple of its attention heads.
            backbone: a name in ``BACKBONES``.
            channels: channels of the head, before ``width``; 0 takes the backbone's.
        """
        super().__init__()
        check_width("SegFormer", width)
        if backbone not in BACKBONES:
            raise unknown_name("SegFormer backbone", backbone, BACKBONES)
        variant = BACKBONES[backbone]
        self.title = f"SegFormer-{backbone.upper()}"
        self.width = width
        sizes = [heads * max(1, round(c * width / heads)) for c, heads in zip(variant.channels, HEADS, strict=True)]
        self.encoder = _encoder(sizes, variant.depths)
        # Attention is made of 4 equal parts at least: operators divide their channels into groups.
        self.head = Head(sizes, 4 * max(1, round((channels or variant.head) * width / 4)), classes, upsampler)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits at the images' resolution."""
        check_sides("SegFormer", images, self.stride)
        features = self.encoder(images, output_hidden_states=True).hidden_states
        return F.interpolate(self.head(features), size=images.shape[-2:], mode="bilinear", align_corners=False)

    def load_encoder(self, weights: str | Path) -> str:
        """Load a pretrained MiT.

        Args:
            weights: ``"imagenet"`` (``nvidia/mit-b0`` to ``mit-b5`` of the Hugging Face hub), another name there, or
                a folder that transformers saved.

        Returns:
            The name of the weights in ``run.json``.

        Raises:
            FadevizError: if there is no network connection, no such folder or name, or the weights do not fit.
        """
        name = f"nvidia/mit-{self.title[-2:].lower()}" if weights == "imagenet" else str(weights)
        theirs, own = read_pretrained("SegformerModel", name, "MiT"), self.encoder.state_dict()
        for key, value in own.items():
            if key not in theirs or theirs[key].shape != value.shape:
                shape = tuple(theirs[key].shape) if key in theirs else "missing"
                hint = " The weights are for width=1" if self.width != 1 else ""
                raise FadevizError(
                    f"{name} does not fit {self.title}: {key} is {shape}, {tuple(value.shape)} is needed.{hint}"
                )
            if not theirs[key].isfinite().all():
                raise FadevizError(f"{name} is damaged: {key} holds values that are not finite. Get it again")
        self.encoder.load_state_dict({key: theirs[key] for key in own})
        return Path(name).name if Path(name).is_dir() else name


def _encoder(sizes: Sequence[int], depths: Sequence[int]) -> nn.Module:
    transformers = transformers_for("SegFormer")
    config = transformers.SegformerConfig(
        hidden_sizes=list(sizes),
        depths=list(depths),
        num_attention_heads=list(HEADS),
        drop_path_rate=DROP_PATH,
    )
    encoder: nn.Module = transformers.SegformerModel(config)
    return encoder
