"""The contract of every network whose upsampling operator can be exchanged."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NamedTuple

from torch import nn

from ..errors import FadevizError
from .recipes import Recipe


class Site(NamedTuple):
    """Where a network has an operator, as far as its cost depends on it.

    Attributes:
        channels: channels of the operator's low-resolution input.
        side: side of that map, in pixels.
    """

    channels: int
    side: int


class Network(nn.Module):
    """A network whose upsampling operator can be exchanged: images ``(B, image_channels, H, W)`` -> logits or alpha.

    A subclass is called as ``build(upsampler, width=..., **options)``: ``upsampler`` is a name with options, which
    :func:`~fadeviz.upsamplers.build_upsampler` builds; ``width`` multiplies all channel counts; further keyword-only
    parameters are the network's own options, as in ``"segformer:backbone=b1"``. A segmentation network also takes
    ``classes``. Operators are built last, so that networks of one seed that differ in the operator alone start with the
    same weights elsewhere. ``forward`` gives maps of the images' own resolution.

    Attributes:
        title: the network's name in figures and reports; an instance may have a more precise one than its class.
        task: ``"segmentation"`` or ``"matting"``.
        layers: the layers that are recorded by default, as a comma-separated list of patterns.
        figure_layer: the layer that figures show by default.
        stride: number by which both sides of an image must be divisible.
        recipe: default training settings.
        least_batch: the fewest images that a training step works with.
        image_channels: channels of the input: 3, or 4 with a trimap.
        reference_size: side of the images that ``sites`` refers to, in pixels.
        sites: every operator of the network on images of ``reference_size``; empty where costs are not listed.
        encoder: the part that :meth:`load_encoder` loads weights into.
    """

    title: str
    task: ClassVar[str]
    layers: ClassVar[str]
    figure_layer: ClassVar[str]
    stride: ClassVar[int]
    recipe: ClassVar[Recipe]
    least_batch: ClassVar[int] = 1
    image_channels: int = 3
    reference_size: ClassVar[int] = 0
    sites: ClassVar[tuple[Site, ...]] = ()
    encoder: nn.Module

    def load_encoder(self, weights: str | Path) -> str:
        """Load pretrained weights into ``encoder``.

        Args:
            weights: ``"imagenet"``, or a file or folder.

        Returns:
            The name of the weights in ``run.json``.

        Raises:
            FadevizError: if the network has no pretrained weights, or these do not fit.
        """
        raise FadevizError(f"{self.title} does not load weights ({weights}). Use weights='none'")


REQUIRED = ("title", "task", "layers", "figure_layer", "stride", "recipe")
"""The attributes that a network must define on its class."""
