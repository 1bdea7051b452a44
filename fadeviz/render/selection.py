"""The maps to draw: the one set of options that grids, animations, notebooks, reports and exports share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from ..errors import FadevizError
from ..storage.layers_of_runs import LayerOfRuns
from ..storage.snapshots import CHANNEL_KINDS


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
