"""Predictions over training as frames: classes in their colours, or mattes in greys, with the true object's outline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from ..storage.several_runs import common_steps
from ..storage.snapshots import PREDICTION
from ..storage.stored_run import StoredRun
from .classes import LEAST_SHARE, class_name, has_colours, largest_shares
from .colormap import IGNORED, class_palette
from .frames import ClassColours, FrameSequence, check_images, check_runs, choose_labels, notes_on_run, spread
from .labels import outline, thicken, truth_regions
from .normalize import Limits
from .selection import MapSelection

OUTLINE = (213, 94, 0)
"""Colour of the true outline on black and white: that of outlines in plots. On colours it is white, as no class is."""


def select_predictions(
    runs: Sequence[StoredRun],
    selection: MapSelection,
    *,
    images: Sequence[int] = (),
    labels: Sequence[str] = (),
    colormap: str = "gray",
    max_frames: int | None = None,
) -> list[FrameSequence]:
    """What runs predicted for images over training: one sequence per image and run, all with the same colours.

    Args:
        runs: one run, or several to be compared, which must have observed the same image.
        selection: its image and steps; the rest applies to maps alone.
        images: several observed images in place of ``selection.image``.
        labels: labels of the runs in place of their own.
        colormap: must be ``gray``: classes have colours of their own.
        max_frames: maximum number of frames, evenly spaced, unless ``selection.steps`` names them.

    Raises:
        FadevizError: if a run has no predictions, the runs cannot be compared, there is no such image or step, or an
            option that applies to maps alone was given.
    """
    _check_selection(selection, colormap)
    check_runs(runs)
    own_labels = choose_labels(runs, labels)
    _check_values(runs)
    images = images or (selection.image,)
    for image in images:
        check_images(runs, image)
    common = common_steps(runs, selection.steps)
    steps = tuple(common if selection.steps is not None or max_frames is None else spread(common, max_frames))
    shown = [(image, run) for image in images for run in runs]
    every = [predictions_of(run, steps, image) for image, run in shown]
    _check_sizes([run for _, run in shown], every)
    colours, indices = colours_of(runs, (frame for predicted in every for frame in predicted))
    size = every[0].shape[1:]
    true = [_regions(run, image, size) for image, run in shown]
    if any(regions is not None for regions in true):
        line = "White" if colours.legend else "Orange"
        colours = replace(colours, sentence=f"{colours.sentence} {line} line: true outline.")
    sequences = []
    for (image, run), predicted, regions in zip(shown, every, true, strict=True):
        label = own_labels[runs.index(run)]
        sequences.append(
            FrameSequence(
                run=run,
                label=label,
                title=label,
                layer=PREDICTION,
                kind=PREDICTION,
                image=image,
                channel=None,
                representative=False,
                call=0,
                calls=1,
                channel_count=None,
                steps=steps,
                maps=predicted.astype(np.float32),
                unit=(indices[predicted] / 255).astype(np.float32),
                limits=(Limits(0.0, 255.0),) * len(steps),
                scope="frame",
                percentiles=(0.0, 100.0),
                centered=False,
                observed_image=None if run.lost else run.observation[0][image],
                mask=None if run.lost else run.observation[1][image],
                notes=tuple(notes_on_run(run, steps, common if selection.steps is None else None)),
                colours=replace(colours, regions=regions),
            )
        )
    return sequences


def true_outline(sequence: FrameSequence, scale: int, width: int = 1) -> NDArray[np.bool_] | None:
    """The pixels of the true object's outline on a frame whose cells are ``scale`` pixels wide; None without one.

    The line is ``width`` pixels wide.
    """
    if sequence.colours is None or sequence.colours.regions is None:
        return None
    return thicken(outline(sequence.colours.regions.repeat(scale, axis=0).repeat(scale, axis=1)), width)


def _check_selection(selection: MapSelection, colormap: str) -> None:
    """Raise for an option that applies to maps alone: it would have no effect."""
    default = MapSelection(kind=PREDICTION)
    for name in ("layer", "normalize", "percentiles", "call"):
        if getattr(selection, name) != getattr(default, name):
            raise FadevizError(
                f"kind={PREDICTION!r}: predictions are of the whole model and have colours of their own. Leave out "
                f"{name}=..."
            )
    if colormap != "gray":
        raise FadevizError(f"kind={PREDICTION!r}: classes have colours of their own. Leave out colormap=...")


def predictions_of(run: StoredRun, steps: Sequence[int], image: int) -> NDArray[np.uint8]:
    """What a run predicted for one image, ``(T, H, W)``; see :meth:`StoredRun.prediction`."""
    return np.stack([run.prediction(step, image) for step in steps])


def colours_of(
    runs: Sequence[StoredRun], frames: Iterable[NDArray[np.uint8]]
) -> tuple[ClassColours, NDArray[np.uint8]]:
    """The colours of predictions, and for each stored value the index of its colour, ``(256,)``.

    Args:
        runs: the runs, all with classes or all with alphas.
        frames: all that is shown of what they predicted, ``(H, W)`` each.
    """
    return _greys() if runs[0].info.predictions == "alpha" else _of_classes(runs, frames)


def _check_values(runs: Sequence[StoredRun]) -> None:
    """Raise unless all runs have predictions, and all of classes or all of alphas."""
    for run in runs:
        if run.info.predictions is None:
            raise FadevizError(
                f"{run.address} has no predictions. Record them: predictions=True of a Recorder, or fadeviz record "
                "--predictions"
            )
        if run.info.predictions != runs[0].info.predictions:
            raise FadevizError(
                f"{runs[0].address} has predictions of {runs[0].info.predictions}, {run.address} of "
                f"{run.info.predictions}: they cannot be compared"
            )


def _check_sizes(runs: Sequence[StoredRun], every: Sequence[NDArray[np.uint8]]) -> None:
    for run, predicted in zip(runs, every, strict=True):
        if predicted.shape != every[0].shape:
            (_, height, width), (_, other_height, other_width) = every[0].shape, predicted.shape
            raise FadevizError(
                f"predictions are {height}x{width} in {runs[0].address}, but {other_height}x{other_width} in "
                f"{run.address}: they cannot be compared"
            )


def _greys() -> tuple[ClassColours, NDArray[np.uint8]]:
    """The colours of alphas, and the index of each."""
    greys = np.arange(256, dtype=np.uint8)
    sentence = "Alpha from 0 (black) to 1 (white)."
    return ClassColours(np.repeat(greys[:, None], 3, axis=1), 255, None, (), sentence), greys


def _of_classes(
    runs: Sequence[StoredRun], frames: Iterable[NDArray[np.uint8]]
) -> tuple[ClassColours, NDArray[np.uint8]]:
    """The colours of the classes that were predicted, and the index of each: black and white if there are only two."""
    shares = largest_shares(frames)
    predicted = np.flatnonzero(shares[:IGNORED])
    count = max([*(run.info.classes or 2 for run in runs), int(predicted.max(initial=0)) + 1])
    several = has_colours(runs[0], count)
    shown = predicted if several else np.zeros(0, np.intp)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(shown)] = class_palette(count, runs[0].info.data.class_colors)[shown]
    # The rest are greys, the first of which is black: for everything around the frames, in files of 256 colours.
    first = len(shown) if several else 1
    palette[first:] = np.rint(np.linspace(0, 255, 256 - first))[:, None]
    indices = np.full(256, first, np.uint8)
    if several:
        indices[shown] = np.arange(first)
    else:
        palette[0], indices[1] = OUTLINE, 255
    listed = [int(label) for label in np.argsort(-shares[:IGNORED], kind="stable") if shares[label] >= LEAST_SHARE]
    legend = [(class_name(runs, label), int(indices[label])) for label in listed] if several else []
    none = " or no class" if shares[IGNORED] else ""
    if several:
        small = len(shown) - len(legend)
        others = f"; {small} more fill less than {LEAST_SHARE:.0%} of any frame" if small else ""
        sentence = f"Colours: classes as listed{others}.{' Black: no class.' if none else ''}"
    else:
        sentence = f"White: {class_name(runs, 1)}; black: {class_name(runs, 0)}{none}."
    return ClassColours(palette, 255 if several else 0, None, tuple(legend), sentence), indices


def _regions(run: StoredRun, image: int, size: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The true regions at the size of the predictions.

    None for alphas, whose greys a line would hide; and if the run has no masks, or the image no object.
    """
    if run.lost or run.info.predictions == "alpha":
        return None
    regions = truth_regions(run, image)
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, regions.shape, strict=True))
    resized: NDArray[np.uint8] = regions[rows][:, columns]
    return resized if outline(resized).any() else None


__all__ = ["OUTLINE", "colours_of", "predictions_of", "select_predictions", "true_outline"]
