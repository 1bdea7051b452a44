"""SegNet: a VGG16 encoder with BatchNorm, its mirror image as decoder, and any upsampling operator in between."""

from __future__ import annotations

import pickle
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import FadevizError
from ..upsamplers import Skip, Upsampler
from .base import Network, Site
from .blocks import build_stage_upsamplers, check_sides, check_width, convs, reset_convs
from .recipes import Recipe, sgd, step_decay

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of convolutions of the five encoder stages of VGG16, finest first."""

IMAGENET_URL = "https://download.pytorch.org/models/vgg16_bn-6c64b313.pth"
"""torchvision's VGG16-BN; the eight digits are the beginning of the file's SHA-256, which is checked."""


class DecoderStage(nn.Module):
    """Upsample by the operator, then convolve."""

    upsample: Upsampler

    def __init__(self, upsample: Upsampler, convs: nn.Sequential) -> None:
        """``upsample`` doubles the resolution, ``convs`` work at the new one."""
        super().__init__()
        self.upsample = upsample
        self.convs = convs

    def forward(self, x: Tensor, skip: Skip) -> Tensor:
        """``(B, C, h, w)`` and the encoder's hand-over -> ``(B, C_out, 2h, 2w)``."""
        x = self.upsample(x, skip)
        out: Tensor = self.convs(x)
        return out


class SegNet(Network):
    """SegNet with one upsampling operator at all five decoder stages.

    Encoder stage i hands its feature before pooling, and what its operator's ``pool`` kept, to decoder stage 4 - i.
    The operator is ``decoder.0.upsample`` (coarsest, 7 -> 14 at 224) to ``decoder.4.upsample`` (finest, 112 -> 224).

    Shape: images ``(B, 3, H, W)``, H and W divisible by 32 -> logits ``(B, classes, H, W)``.
    Raises: FadevizError if H or W is not divisible by 32.
    Source: Badrinarayanan et al., TPAMI 2017; encoder VGG16 with BatchNorm (Simonyan & Zisserman 2014). The FADE
    supplement, section S3, replaces max unpooling by other operators in it.
    """

    figure_layer = "decoder.3.upsample"
    """An intermediate layer, as in the FADE supplement; the last one is almost the mask."""

    layers = "decoder.*.upsample"
    """The operators."""

    title = "SegNet"

    task = "segmentation"

    stride = 32

    encoder: nn.ModuleList

    recipe = Recipe(0.01, 0.0, (0.7, 0.9), sgd, step_decay)

    reference_size = 224

    sites = (Site(512, 7), Site(512, 14), Site(256, 28), Site(128, 56), Site(64, 112))

    def __init__(self, upsampler: str = "max_unpool", classes: int = 2, width: float = 1.0) -> None:
        """Build the network.

        Args:
            upsampler: a name in ``UPSAMPLERS``, with options if need be: ``"carafe:kernel_size=3"``.
            classes: channels of the output.
            width: multiplier of every channel count; 0.25 makes the slim network of the demo.
        """
        super().__init__()
        check_width("SegNet", width)
        channels = [max(4, round(c * width)) for c, _ in STAGES]
        self.width = width
        self.encoder = nn.ModuleList()
        before = 3
        for c, (_, count) in zip(channels, STAGES, strict=True):
            self.encoder.append(convs([before] + [c] * count))
            before = c
        decoders = []
        for i in reversed(range(5)):
            after = channels[max(0, i - 1)]
            decoders.append(convs([channels[i]] * STAGES[i][1] + [after]))
        self.head = nn.Conv2d(channels[0], classes, 3, padding=1)
        for module in (self.encoder, *decoders, self.head):
            module.apply(reset_convs)
        # The operators come last: the draws above are then the same whichever operator is chosen.
        operators = build_stage_upsamplers("SegNet", upsampler, channels[::-1])
        self.decoder = nn.ModuleList(map(DecoderStage, operators, decoders))

    def forward(self, images: Tensor) -> Tensor:
        """Class logits at the images' resolution."""
        check_sides("SegNet", images, self.stride)
        x, skips = images, []
        for stage, decoder in zip(self.encoder, reversed(self.decoder), strict=True):
            feature = stage(x)
            x, indices = cast(DecoderStage, decoder).upsample.pool(feature)
            skips.append(Skip(feature, indices))
        for decoder in self.decoder:
            x = decoder(x, skips.pop())
        out: Tensor = self.head(x)
        return out

    def load_encoder(self, weights: str | Path) -> str:
        """Load ImageNet weights into the encoder.

        Args:
            weights: ``"imagenet"`` (downloaded once, checksum checked) or a .safetensors or .pth file that holds
                VGG16-BN under torchvision's names (``features.0.weight`` ...), float32 or float16; other keys
                are ignored.

        Returns:
            The name of the weights in ``run.json``.

        Raises:
            FadevizError: if there is no network connection, no such file, or the weights do not fit.
        """
        if weights == "imagenet":
            state, source = _download(), "torchvision vgg16_bn (ImageNet)"
        else:
            state, source = _read_weights(Path(weights)), Path(weights).name
        wanted = dict(self._torchvision_names())
        own = self.encoder.state_dict()
        counters = {name for name in wanted if name.endswith("num_batches_tracked")}
        missing = sorted(set(wanted) - set(state) - counters)
        if missing:
            raise FadevizError(
                f"{source} is not a VGG16-BN: it has no {missing[0]!r} ({len(missing)} of {len(wanted)} missing). "
                "Give a file with torchvision's names, features.0.weight and so on"
            )
        for theirs, mine in wanted.items():
            if theirs in state and state[theirs].shape != own[mine].shape:
                hint = " The weights are for width=1" if self.width != 1 else ""
                raise FadevizError(
                    f"{source} does not fit: {theirs} is {tuple(state[theirs].shape)}, this network (width "
                    f"{self.width:g}) needs {tuple(own[mine].shape)}.{hint}"
                )
        loaded = {mine: state[theirs].to(own[mine].dtype) for theirs, mine in wanted.items() if theirs in state}
        bad = [name for name, value in loaded.items() if not value.isfinite().all()]
        if bad:
            raise FadevizError(f"{source} is damaged: {bad[0]} holds values that are not finite. Get the file again")
        self.encoder.load_state_dict({**own, **loaded})
        return source

    def _torchvision_names(self) -> list[tuple[str, str]]:
        # torchvision counts every layer of its one Sequential: convolution, norm, ReLU, and the pooling after a stage.
        names, number = [], 0
        for i, (_, count) in enumerate(STAGES):
            for j in range(count):
                for offset, keys in ((0, ("weight", "bias")), (1, _NORM_KEYS)):
                    names += [(f"features.{number + offset}.{key}", f"{i}.{3 * j + offset}.{key}") for key in keys]
                number += 3
            number += 1
        return names


_NORM_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _download() -> Mapping[str, Tensor]:
    try:
        state: Mapping[str, Tensor] = torch.hub.load_state_dict_from_url(
            IMAGENET_URL, map_location="cpu", check_hash=True, weights_only=True
        )
    except (urllib.error.URLError, OSError) as error:
        raise FadevizError(
            f"cannot download {IMAGENET_URL} ({error}). Get the file on a machine with a network and give it: "
            "weights=FILE; or train from random weights: weights='none'"
        ) from error
    except Exception as error:  # a wrong checksum, or an unpickling error of any type from a damaged file in the cache
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(IMAGENET_URL).name
        raise FadevizError(
            f"{IMAGENET_URL}: {_first_line(error)}. Delete {cached} if it is there, and try again"
        ) from error
    return state


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise FadevizError(f"no weights file {path}. Give a .safetensors or .pth file, 'imagenet' or 'none'")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load it anyway, but a file that contains code must not be loaded.
        raise FadevizError(f"{path} holds more than tensors, or is damaged: it is not loaded. Get it again") from error
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise FadevizError(f"{path} is not a weights file, or damaged ({_first_line(error)}). Get it again") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FadevizError(f"{path} holds no plain state dict of tensors. Save model.state_dict() and give that file")
    return state
