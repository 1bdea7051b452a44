"""What grids and animations have in common: which maps they draw, in which colours, and what they say of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import FadevizError
from ..storage.snapshots import PREDICTION
from ..storage.stored_run import StoredRun
from .colormap import is_diverging, palette
from .frames import FrameSequence, crop_frames, select_frames
from .labels import truth_name
from .predictions import select_predictions
from .selection import FigureContent, MapSelection


class Notes(tuple[str, ...]):
    """Notes on what a figure omits or marks, one sentence each.

    Attributes:
        description: sentences that say in full what the figure shows; its caption has the most needed ones.
    """

    description: tuple[str, ...]

    def __new__(cls, notes: Iterable[str], description: Iterable[str] = ()) -> Notes:
        """The notes without duplicates."""
        made = super().__new__(cls, dict.fromkeys(notes))
        made.description = tuple(description)
        return made


def select_sequences(
    runs: Sequence[StoredRun], selection: MapSelection, content: FigureContent, colormap: str, max_frames: int
) -> list[FrameSequence]:
    """The sequences of a figure, cut to its crop.

    Args:
        runs: one run, or several to be compared.
        selection, content: what is drawn.
        colormap: as :func:`choose_colormap` gives it.
        max_frames: maximum number of frames of each, evenly spaced, unless ``selection.steps`` names them.

    Raises:
        FadevizError: as :func:`~fadeviz.render.frames.select_frames`; or if an overlay needs images that a run has
            lost, or the crop does not lie in the image.
    """
    content.check(selection, colormap)
    images, labels = content.images, content.labels
    if selection.kind == PREDICTION:
        sequences = select_predictions(
            runs, selection, images=images, labels=labels, colormap=colormap, max_frames=max_frames
        )
    else:
        sequences = select_frames(
            runs,
            selection,
            images=images,
            labels=labels,
            difference=content.difference,
            centered=is_diverging(colormap),
            max_frames=max_frames,
        )
    lost = next((sequence.run for sequence in sequences if sequence.observed_image is None), None)
    if content.overlay is not None and lost is not None:
        raise FadevizError(
            f"overlay={content.overlay!r}: {lost.address} has lost its observed images. Leave out overlay=..."
        )
    window = content.window
    return sequences if window is None else [crop_frames(sequence, window) for sequence in sequences]


def choose_colormap(name: str, content: FigureContent) -> str:
    """The colour map of a figure: ``name``, or for a difference, which takes both signs, ``signed`` in place of gray.

    Raises:
        FadevizError: if there is no such colour map, or it does not diverge and a difference needs that.
    """
    palette(name)
    if not content.difference:
        return name
    if name != "gray" and not is_diverging(name):
        raise FadevizError(
            f"colormap={name!r}: a difference takes both signs, and needs a colour map that diverges from its middle. "
            "Choose colormap='signed' or, say, colormap='RdBu'"
        )
    return "signed" if name == "gray" else name


def overlay_sentence(sequences: Sequence[FrameSequence], content: FigureContent) -> list[str]:
    """How to read what is laid over."""
    if content.overlay == "map":
        return [f"Maps over the image, {100 * content.alpha:g} % opaque."]
    return [] if content.overlay is None else [f"Line: contour of the true {truth_name(sequences[0].run)}."]


__all__ = ["Notes", "choose_colormap", "overlay_sentence", "select_sequences"]
