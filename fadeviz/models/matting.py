"""Image matting: A2U-Matting's network, a ResNet-34 encoder cut at 1/16, and any upsampling operator at its decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError
from ..upsamplers import Skip, Upsampler
from .base import Network, Site
from .blocks import build_stage_upsamplers, check_sides, check_width
from .pretrained import read_pretrained, transformers_for
from .recipes import Recipe, adam, step_decay

STEM = 64
"""Channels of the first convolution."""

STAGES = ((64, 3), (128, 4), (256, 4))
"""Channels and residual blocks of the encoder's stages: the first 11 blocks of ResNet-34, whose third stage has 6."""

DECODER = ((256, 128), (128, 64), (64, 64), (64, 32))
"""Channels before and after the convolutions of the decoder's stages, coarsest first; operators work on the former."""

RATES = (6, 12, 18)
"""Dilations of the context's 3x3 convolutions, those of output stride 16."""

SLOPE = 0.01
"""Negative slope of the leaky ReLUs in context and decoder."""

IMAGENET_NAME = "microsoft/resnet-34"
"""ResNet-34 on the Hugging Face hub."""

Pool = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class Features(NamedTuple):
    """The output of the encoder.

    Attributes:
        x: the deepest map, at 1/16 of the resolution.
        skips: the map before pooling and the indices of the pooling for each decoder stage, coarsest first.
        shortcuts: the input of each decoder stage's shortcut, coarsest first: a stage's output, or the image.
    """

    x: Tensor
    skips: tuple[Skip, ...]
    shortcuts: tuple[Tensor, ...]


class HalvingBlock(nn.Module):
    """A residual block that halves the resolution by pooling between its two convolutions, where ResNet strides.

    The map before the pooling has the block's channels and the resolution that a decoder stage returns to: its guide.
    """

    def __init__(self, block: Any) -> None:
        """Take over the parts of a transformers ``ResNetBasicLayer`` of stride 2; its first convolution loses it."""
        super().__init__()
        block.layer[0].convolution.stride = (1, 1)
        self.layer = block.layer
        self.shortcut = block.shortcut
        self.activation = block.activation

    def forward(self, x: Tensor, pool: Pool) -> tuple[Tensor, Skip]:
        """``(B, C_in, 2h, 2w)`` -> ``(B, C, h, w)``, and the map before pooling, ``(B, C, 2h, 2w)``."""
        guide = self.layer[0](x)
        pooled, indices = pool(guide)
        out: Tensor = self.activation(self.layer[1](pooled) + self.shortcut(x))
        return out, Skip(guide, indices)


class Encoder(nn.Module):
    """ResNet-34's stem and first 11 residual blocks, with every stride done by pooling after a convolution at stride 1.

    ============  =======================================  ========  =========================
    resolution    what runs there                          channels  guide of
    ============  =======================================  ========  =========================
    1             7x7 convolution                          64        ``decoder.3.upsample``
    1/2           its pooled map                           64        ``decoder.2.upsample``
    1/4           stage 0, first convolution of stage 1    64, 128   ``decoder.1.upsample`` (128)
    1/8           stage 1, first convolution of stage 2    128, 256  ``decoder.0.upsample`` (256)
    1/16          stage 2                                  256
    ============  =======================================  ========  =========================
    """

    def __init__(self, channels: int, stem: int, stages: Sequence[int]) -> None:
        """``channels`` are those of the images; ``stem`` and ``stages`` are the output channels."""
        super().__init__()
        transformers = transformers_for("MattingNet")
        config = transformers.ResNetConfig(
            num_channels=channels,
            embedding_size=stem,
            hidden_sizes=list(stages),
            depths=[depth for _, depth in STAGES],
            layer_type="basic",
            hidden_act="relu",
        )
        model = transformers.ResNetModel(config)
        self.stem: nn.Module = model.embedder.embedder
        self.stem.convolution.stride = (1, 1)
        self.stages = nn.ModuleList([nn.ModuleList(stage.layers) for stage in model.encoder.stages])
        for blocks in self.stages[1:]:
            blocks = cast(nn.ModuleList, blocks)
            blocks[0] = HalvingBlock(blocks[0])

    def forward(self, images: Tensor, pools: Sequence[Pool]) -> Features:
        """``pools`` are those of the decoder's operators, coarsest first."""
        to_sixteenth, to_eighth, to_quarter, to_half = pools
        full = self.stem(images)
        half, full_indices = to_half(full)
        x, half_indices = to_quarter(half)
        skips, shortcuts = [Skip(full, full_indices), Skip(half, half_indices)], [images, half]
        for blocks, pool in zip(self.stages, (None, to_eighth, to_sixteenth), strict=True):
            if pool is not None:
                shortcuts.append(x)
            for block in cast(nn.ModuleList, blocks):
                if isinstance(block, HalvingBlock):
                    x, skip = block(x, cast(Pool, pool))
                    skips.append(skip)
                else:
                    x = block(x)
        return Features(x, tuple(reversed(skips)), tuple(reversed(shortcuts)))


class ASPP(nn.Module):
    """Context at several scales: 1x1, three dilated 3x3 convolutions (depth-wise, then 1x1), and the image's mean.

    The five maps are concatenated, fused by a 1x1 convolution and dropped out with probability 1/2.

    Shape: ``(B, C, h, w)`` -> ``(B, C, h, w)``.
    """

    def __init__(self, channels: int) -> None:
        """``channels`` in, out, and of each of the five maps."""
        super().__init__()
        self.point = _conv(channels, channels, 1)
        self.dilated = nn.ModuleList(
            [
                nn.Sequential(_conv(channels, channels, 3, rate, channels), _conv(channels, channels, 1))
                for rate in RATES
            ]
        )
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), _conv(channels, channels, 1))
        self.fuse = _conv((len(RATES) + 2) * channels, channels, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Each map sees another neighbourhood."""
        if len(x) == 1 and cast(nn.Sequential, self.image[1])[1].training:
            raise FadevizError(
                "MattingNet: one image is too few for BatchNorm after the mean over the image, which has one value a "
                "channel. Train, or observe with batch statistics, on 2 images or more; or use model.eval()"
            )
        maps = [self.point(x), *(dilated(x) for dilated in self.dilated), self.image(x).expand_as(x)]
        out: Tensor = self.dropout(self.fuse(torch.cat(maps, dim=1)))
        return out


class ResidualBlock(nn.Module):
    """``leaky_relu(norm(conv(leaky_relu(norm(conv(x))))) + shortcut(x))``, 3x3 convolutions."""

    def __init__(self, before: int, after: int) -> None:
        """The shortcut is a 1x1 convolution and its norm where the channels change, else nothing."""
        super().__init__()
        self.convs = nn.Sequential(_conv(before, after, 3), _conv(after, after, 3, activate=False))
        self.shortcut = nn.Identity() if before == after else _conv(before, after, 1, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, before, h, w)`` -> ``(B, after, h, w)``."""
        return F.leaky_relu(self.convs(x) + self.shortcut(x), SLOPE)


class MattingStage(nn.Module):
    """Upsample by the operator, add the shortcut from the encoder, then two residual blocks."""

    upsample: Upsampler

    def __init__(self, upsample: Upsampler, shortcut: nn.Module, convs: nn.Module) -> None:
        """``upsample`` doubles the resolution, ``shortcut`` and ``convs`` work at the new one."""
        super().__init__()
        self.upsample = upsample
        self.shortcut = shortcut
        self.convs = convs

    def forward(self, x: Tensor, skip: Skip, shortcut: Tensor) -> Tensor:
        """``(B, C, h, w)`` and what the encoder hands over -> ``(B, C_out, 2h, 2w)``."""
        out: Tensor = self.convs(self.upsample(x, skip) + self.shortcut(shortcut))
        return out


class MattingNet(Network):
    """A2U-Matting's network with one upsampling operator at all four decoder stages, as in the FADE paper.

    The operator is ``decoder.0.upsample`` (1/16 -> 1/8) to ``decoder.3.upsample`` (1/2 -> 1). The encoder pools with
    the operators' own ``pool``, and each is guided by the map before that pooling; see :class:`Encoder`.

    ``forward`` gives alpha as it is predicted, *not clamped*: training's loss takes it so, and gradients flow wherever
    it leaves [0, 1]. :meth:`alpha` is for inference: clamped, and known pixels taken from the trimap.

    Shape: images ``(B, C, H, W)``, H and W divisible by 16, C = 4: RGB and the trimap (0 background, 1 foreground,
    in between unknown) -> alpha ``(B, 1, H, W)``.
    Cost: with bilinear interpolation 8,049,003 parameters (published: 8.05 M). Guide and decoder map have the same
    channels, C = 256, 128, 64 and 64, together 512. So over bilinear interpolation FADE adds 129 * 512 + 4 * 14,490 =
    124,008, FADE-Lite 51 * 512 + 4 * 276 = 27,216, CARAFE 64 * 512 + 4 * 57,764 = 263,824 and A2U with its down head
    74 * 512 + 4 * 74 = 38,184, with the 4 * 512 weights of its norms 40,232 (published: +0.12 M, -, +0.26 M, +38 K).
    Raises: FadevizError if the images have other sizes or channels, or there is a single image in training mode.
    Source: Dai et al., CVPR 2021 (A2U), with the first 11 residual blocks of ResNet-34; Lu et al., ECCV 2022, for the
    guides; layers and initialisation of the released networks: context and decoder Xavier-normal with the gain of a
    leaky ReLU, no biases. The encoder's parts are those of transformers.
    Differs: the encoder has ReLUs, as the ResNet-34 of transformers was trained with, not leaky ones; untrained it is
    drawn Kaiming-normal. BatchNorm is torch's own. Operators keep their own initialisation.
    """

    figure_layer = "decoder.2.upsample"
    """An intermediate layer, 1/4 -> 1/2."""

    layers = "decoder.*.upsample"
    """The operators."""

    title = "MattingNet"

    task = "matting"

    least_batch = 2
    """BatchNorm after the mean over an image has one value of each image."""

    stride = 16

    recipe = Recipe(0.01, 0.0, (20 / 30, 26 / 30), adam, step_decay)

    reference_size = 512

    sites = (Site(256, 32), Site(128, 64), Site(64, 128), Site(64, 256))

    def __init__(self, upsampler: str = "fade", width: float = 1.0, channels: int = 4) -> None:
        """Build the network.

        Args:
            upsampler: a name in ``UPSAMPLERS``, with options if need be: ``"carafe:kernel_size=3"``.
            width: multiplier of every channel count, which stays a multiple of 8.
            channels: channels of the images: 4 with a trimap, 3 without.

        Raises:
            FadevizError: if there is no such operator, width or channels are out of range, or transformers is not
                installed.
        """
        super().__init__()
        check_width("MattingNet", width)
        if channels < 1:
            raise FadevizError(f"MattingNet: channels is {channels}; images have 4 with a trimap, 3 without")
        self.width = width
        self.image_channels = channels
        stem, *stages = (_scaled(c, width) for c in (STEM, *(c for c, _ in STAGES)))
        sizes = [(_scaled(before, width), _scaled(after, width)) for before, after in DECODER]
        self.encoder = Encoder(channels, stem, stages)
        self.context = ASPP(stages[-1])
        shortcuts = [
            _conv(before, after, 3)
            for before, (after, _) in zip((stages[1], stages[0], stem, channels), sizes, strict=True)
        ]
        convs = [nn.Sequential(ResidualBlock(*size), ResidualBlock(size[1], size[1])) for size in sizes]
        self.head = nn.Sequential(_conv(sizes[-1][1], 1, 3), nn.Conv2d(1, 1, 3, padding=1, bias=False))
        for module in (self.context, *shortcuts, *convs, self.head):
            module.apply(_reset)
        # The operators come last: the draws above are then the same whichever operator is chosen.
        operators = build_stage_upsamplers("MattingNet", upsampler, [size for size, _ in sizes])
        self.decoder = nn.ModuleList(map(MattingStage, operators, shortcuts, convs))

    def forward(self, images: Tensor) -> Tensor:
        """Alpha as predicted, not clamped."""
        if images.dim() != 4 or images.shape[1] != self.image_channels:
            kind = {3: "RGB", 4: "RGB and the trimap"}.get(self.image_channels, "as it was built")
            raise FadevizError(
                f"MattingNet: the images are {tuple(images.shape)}, but (B, {self.image_channels}, H, W) is needed: "
                f"{kind}"
            )
        check_sides("MattingNet", images, self.stride)
        stages = [cast(MattingStage, stage) for stage in self.decoder]
        x, skips, shortcuts = self.encoder(images, [stage.upsample.pool for stage in stages])
        x = self.context(x)
        for stage, skip, shortcut in zip(stages, skips, shortcuts, strict=True):
            x = stage(x, skip, shortcut)
        out: Tensor = self.head(x)
        return out

    @torch.no_grad()
    def alpha(self, images: Tensor) -> Tensor:
        """Alpha for inference, in [0, 1]: clamped, and 0 or 1 where the trimap is known.

        Runs in the model's mode: call ``model.eval()`` first.
        """
        out = self(images).clamp(0, 1)
        if self.image_channels != 4:
            return out
        trimap = images[:, 3:]
        return out.masked_fill(trimap <= 0, 0.0).masked_fill(trimap >= 1, 1.0)

    def load_encoder(self, weights: str | Path) -> str:
        """Load a pretrained ResNet-34; of its third stage the first four blocks are taken, of its fourth none.

        Channels of the images beyond the weights' three, such as the trimap, start with zero weights.

        Args:
            weights: ``"imagenet"`` (Microsoft's ``resnet-34`` from the Hugging Face hub), another name there, or a
                folder that transformers saved.

        Returns:
            The name of the weights in ``run.json``.

        Raises:
            FadevizError: if there is no network connection, no such folder or name, or the weights do not fit.
        """
        name = IMAGENET_NAME if weights == "imagenet" else str(weights)
        theirs = read_pretrained("ResNetModel", name, "ResNet-34")
        own = self.encoder.state_dict()
        loaded = {}
        for mine, value in own.items():
            key = _their_name(mine)
            tensor = theirs.get(key)
            if tensor is None:
                raise FadevizError(f"{name} is not a ResNet-34: it has no {key!r}. Give a folder or name of one")
            if mine == "stem.convolution.weight" and tensor.dim() == 4 and tensor.shape[1] < self.image_channels:
                more = tensor.new_zeros(len(tensor), self.image_channels - tensor.shape[1], *tensor.shape[2:])
                tensor = torch.cat([tensor, more], dim=1)
            if tensor.shape != value.shape:
                hint = " The weights are for width=1" if self.width != 1 else ""
                raise FadevizError(
                    f"{name} does not fit: {key} is {tuple(theirs[key].shape)}, this network (width {self.width:g}) "
                    f"needs {tuple(value.shape)}.{hint}"
                )
            if not tensor.isfinite().all():
                raise FadevizError(f"{name} is damaged: {key} holds values that are not finite. Get it again")
            loaded[mine] = tensor.to(value.dtype)
        self.encoder.load_state_dict(loaded)
        return Path(name).name if Path(name).is_dir() else name


def _scaled(channels: int, width: float) -> int:
    # A multiple of 8: operators divide their channels into groups and heads.
    return 8 * max(1, round(channels * width / 8))


def _conv(before: int, after: int, size: int, dilation: int = 1, groups: int = 1, activate: bool = True) -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(before, after, size, padding=size // 2 * dilation, dilation=dilation, groups=groups, bias=False),
        nn.BatchNorm2d(after),
    ]
    if activate:
        layers.append(nn.LeakyReLU(SLOPE, inplace=True))
    return nn.Sequential(*layers)


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_normal_(module.weight, nn.init.calculate_gain("leaky_relu", SLOPE))


def _their_name(name: str) -> str:
    """``stages.1.0.layer.0.convolution.weight`` as transformers calls it in its ResNetModel."""
    part, _, rest = name.partition(".")
    if part == "stem":
        return f"embedder.embedder.{rest}"
    stage, _, rest = rest.partition(".")
    return f"encoder.stages.{stage}.layers.{rest}"
