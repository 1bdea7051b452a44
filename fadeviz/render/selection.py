"""The maps to draw, and what figures of them show besides: the options that grids and animations share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from ..errors import FadevizError, unknown_name
from ..storage.layers_of_runs import LayerOfRuns
from ..storage.snapshots import CHANNEL_KINDS, PREDICTION
from .style import FigureStyle, StyleOptions
from .zoom import Box

OVERLAYS = ("map", "contour")
"""What may be laid over: the map over the image, or the contour of the true object over map and image."""


@dataclass(frozen=True, kw_only=True)
class MapSelection:
    """Which maps of a run to draw, and the range of values that the colours span.

    Attributes:
        layer: dotted module name; or a mapping that names one for each run, where they differ (see
            :data:`~fadeviz.storage.layers_of_runs.LayerOfRuns`); None for the first run's ``default_layer(kind)``.
        kind: a name in ``KINDS``; or ``prediction``, what the model predicted for the image, which takes ``image`` and
            ``steps`` alone.
        image: index of the observed image.
        channel: one or more channel indices, for ``CHANNEL_KINDS`` only; None for representative channels, selected in
            each run by :func:`~fadeviz.render.frames.select_channels`.
        channels: maximum number of representative channels.
        normalize: scope of the range of values, a name in :data:`~fadeviz.render.normalize.SCOPES`.
        percentiles: ends of the range, in percent of the values; (0, 100) is minimum and maximum.
        steps: recorded steps; None for all that the runs have in common.
        call: index of the call, for a layer that runs several times in a forward pass.

    Raises:
        FadevizError: if ``channel`` is given for a kind without channels, or ``channels`` is less than 1.

    Example:
        >>> MapSelection(kind="gradient", normalize="run").layer is None
        True
    """

    layer: LayerOfRuns | None = None
    kind: str = "feature"
    image: int = 0
    channel: int | Sequence[int] | None = None
    channels: int = 8
    normalize: str = "frame"
    percentiles: tuple[float, float] = (0.0, 100.0)
    steps: Sequence[int] | None = None
    call: int = 0

    def __post_init__(self) -> None:
        if self.channel is not None and self.kind not in CHANNEL_KINDS:
            raise FadevizError(
                f"channel={self.channel}: {self.kind!r} maps have no channels. Use kind='channels', or omit channel=..."
            )
        if isinstance(self.channel, Sequence) and not self.channel:
            raise FadevizError("channel=[]: give at least one channel, or None for representative ones")
        if self.channels < 1:
            raise FadevizError(f"channels={self.channels}: must be at least 1")


class MapOptions(TypedDict, total=False):
    """The fields of :class:`MapSelection` as keyword arguments: ``**options: Unpack[MapOptions]``."""

    layer: LayerOfRuns | None
    kind: str
    image: int
    channel: int | Sequence[int] | None
    channels: int
    normalize: str
    percentiles: tuple[float, float]
    steps: Sequence[int] | None
    call: int


@dataclass(frozen=True, kw_only=True)
class FigureContent:
    """What a figure of maps shows and says besides the maps.

    Attributes:
        labels: a heading for each run, in the order of the runs; empty for the runs' own.
        title: title above the figure; None for none.
        caption: whether sentences below say what is shown. What they leave out is in the file's metadata.
        images: indices of several observed images, one below the other; empty for ``MapSelection.image`` alone.
        overlay: ``map`` lays each map over its image, which is then grey; ``contour`` draws the contour of the true
            object on maps and image; None for neither.
        alpha: opacity of an overlaid map, from 0 to 1.
        difference: whether the second of two runs' maps less the first's are drawn, instead of both.
        crop: the square window of the image that is shown, in its pixels, as ``(left, top, side)``. Maps show the
            cells that it touches, in the colours that they have in the whole map. None for the whole image.

    Raises:
        FadevizError: if ``overlay`` is unknown or ``alpha`` is not in 0 to 1.

    Example:
        >>> FigureContent(labels=["Bilinear", "FADE (ours)"], crop=(16, 8, 32)).caption
        True
    """

    labels: Sequence[str] = ()
    title: str | None = None
    caption: bool = True
    images: Sequence[int] = ()
    overlay: str | None = None
    alpha: float = 0.6
    difference: bool = False
    crop: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.overlay is not None and self.overlay not in OVERLAYS:
            raise unknown_name("overlay", self.overlay, OVERLAYS)
        if not 0 <= self.alpha <= 1:
            raise FadevizError(f"alpha={self.alpha}: must be 0 (only the image) to 1 (only the map)")
        if isinstance(self.labels, str):
            raise FadevizError(
                f"labels={self.labels!r}: give a list with a label for each run, such as ['FADE (ours)']"
            )
        if len(set(self.images)) < len(self.images):
            raise FadevizError(f"images={[*self.images]}: give each image once")

    @property
    def window(self) -> Box | None:
        """The crop."""
        return None if self.crop is None else Box(*self.crop)

    def check(self, selection: MapSelection, colormap: str) -> None:
        """Raise where the options contradict each other.

        Raises:
            FadevizError: that.
        """
        if self.images and selection.image != 0:
            raise FadevizError(f"image={selection.image} and images={[*self.images]}: give one of the two")
        if selection.kind == PREDICTION and self.difference:
            raise FadevizError(f"difference=True: kind={PREDICTION!r} has classes, which have no difference")
        if selection.kind == PREDICTION and self.overlay is not None:
            raise FadevizError(
                f"overlay={self.overlay!r}: predictions have the contour of the true object already, and hide the "
                "image. Leave out overlay=..."
            )
        if self.overlay == "map" and colormap == "gray" and not self.difference:
            raise FadevizError(
                "overlay='map': the image is grey, so the map needs colours. Choose colormap='magma' or another"
            )


class ContentOptions(TypedDict, total=False):
    """The fields of :class:`FigureContent` as keyword arguments."""

    labels: Sequence[str]
    title: str | None
    caption: bool
    images: Sequence[int]
    overlay: str | None
    alpha: float
    difference: bool
    crop: tuple[int, int, int] | None


class AnimationOptions(MapOptions, ContentOptions, total=False):
    """The options of an animation as keyword arguments."""

    font: str | None
    font_size: float | None


class GridOptions(MapOptions, ContentOptions, StyleOptions, total=False):
    """The options of a grid as keyword arguments: of the maps, of what else is shown, and of the style."""


def parse_crop(text: str) -> tuple[int, int, int]:
    """Read a crop: ``LEFT,TOP,SIDE`` in pixels of the image.

    Raises:
        FadevizError: if ``text`` is anything else.

    Example:
        >>> parse_crop("40,16,32")
        (40, 16, 32)
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise FadevizError(f"crop={text!r}: must be a window in pixels: LEFT,TOP,SIDE")
    left, top, side = map(int, parts)
    return left, top, side


def split_options(options: Any) -> tuple[MapSelection, FigureContent, FigureStyle]:
    """The three parts of :class:`GridOptions`.

    Raises:
        FadevizError: under the same conditions as the parts.
        TypeError: if there is an option that none of the parts has.
    """
    content, style = (
        {field.name: options[field.name] for field in fields(part) if field.name in options}
        for part in (FigureContent, FigureStyle)
    )
    maps = {name: value for name, value in options.items() if name not in content and name not in style}
    return MapSelection(**maps), FigureContent(**content), FigureStyle(**style)
