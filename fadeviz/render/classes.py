"""The classes of runs in figures: their colours, and which of them a legend lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..storage.stored_run import StoredRun
from .colormap import class_palette, void_colour

LEAST_SHARE = 0.01
"""Share of an image from which on a class is in a legend."""


class ClassKey(NamedTuple):
    """The classes that a figure shows.

    Attributes:
        legend: their names and colours, ``(R, G, B)`` from 0 to 255; those that fill most of an image first.
        small: the number of those that are left out, as they fill less than ``LEAST_SHARE`` of any image.
        void: the colour of pixels that are not labelled, as a sentence; empty if it needs none.
    """

    legend: tuple[tuple[str, tuple[int, int, int]], ...]
    small: int
    void: str

    def sentence(self) -> str:
        """How to read the colours."""
        others = f"; {self.small} more fill less than {LEAST_SHARE:.0%} of any image" if self.small else ""
        return f"Colours: classes as listed{others}. {self.void}".rstrip()


def has_colours(run: StoredRun, classes: int = 0) -> bool:
    """Whether masks of a run are shown in colours: those of more than two classes, or of classes with colours.

    ``classes`` counts if it is more than the run's own: predictions may have classes that no mask has.
    """
    several = max(run.info.classes or 2, classes) > 2
    return run.info.task != "matting" and (several or bool(run.info.data.class_colors))


def names_classes(run: StoredRun) -> bool:
    """Whether figures name the classes of a run's masks: those in colours, and those with names."""
    return has_colours(run) or (run.info.task != "matting" and bool(run.info.data.classes))


def class_colours(run: StoredRun, classes: int = 0) -> NDArray[np.uint8]:
    """The colours of a run's classes, ``(classes, 3)`` uint8; two classes without colours are black and white."""
    if not has_colours(run, classes):
        return np.array([[0] * 3, [255] * 3], np.uint8)
    return class_palette(max(run.info.classes or 2, classes), run.info.data.class_colors)


def largest_shares(masks: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """For each label the largest share of any mask that it fills, ``(256,)``; 0 for a label that none has."""
    counts = [np.bincount(mask.ravel(), minlength=256) / mask.size for mask in masks]
    return np.max(counts, axis=0, initial=0.0) if counts else np.zeros(256)


def class_key(
    runs: Sequence[StoredRun], shares: NDArray[np.float64], least: float = LEAST_SHARE, classes: int = 0
) -> ClassKey:
    """The classes of masks, in the colours of the first run.

    Args:
        runs: the runs whose classes they are. A class with different names has all of them.
        shares: what :func:`largest_shares` gives of the masks.
        least: the share from which on a class is listed.
        classes: as for :func:`has_colours`.
    """
    colours = class_colours(runs[0], classes)
    void = f"{void_colour(colours)[0]}: unlabelled."
    if not has_colours(runs[0], classes):
        void = "Black: unlabelled, too." if shares[len(colours) :].any() else ""
    shares = shares[: len(colours)]
    order = np.argsort(-shares, kind="stable").tolist()
    listed = [label for label in order if shares[label] >= least and shares[label] > 0]
    red, green, blue = colours.T.tolist()
    return ClassKey(
        tuple((class_name(runs, label), (red[label], green[label], blue[label])) for label in listed),
        int((shares > 0).sum()) - len(listed),
        void,
    )


def class_name(runs: Sequence[StoredRun], label: int) -> str:
    """The name of a class: all names that it has, if the runs do not agree."""
    named = [run for run in runs if run.info.data.classes] or runs[:1]
    return " / ".join(dict.fromkeys(run.info.data.class_name(label) for run in named))


__all__ = [
    "LEAST_SHARE",
    "ClassKey",
    "class_colours",
    "class_key",
    "class_name",
    "has_colours",
    "largest_shares",
    "names_classes",
]
