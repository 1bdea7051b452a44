"""Choosing the few images whose maps are recorded: clear single objects, as different as possible from one another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from . import Dataset, Sample
from .interior import has_interior
from .transforms import IGNORED

USUAL_COUNT = 12
"""Number of images that a run observes unless another one is asked for; smaller data sets give all that they have."""

CONSIDERED = 64
"""Number of images considered, from the first on; an endless data set needs a limit."""

SHARE = (0.12, 0.55)
"""Range of the share of a good image that its foreground fills."""

AT_BORDER = 0.12
"""Maximum share of foreground among the border pixels: the object is not cut off."""

MAIN_PART = 0.9
"""Minimum share of the foreground in its largest connected component."""


class ObservedChoice(NamedTuple):
    """Which images to observe.

    Attributes:
        indices: the chosen images.
        earlier: those that earlier versions chose, which did not require an interior; their runs keep these.
    """

    indices: tuple[int, ...]
    earlier: tuple[int, ...]


def choose_observed(
    dataset: Dataset,
    count: int,
    seed: int = 0,
    *,
    classes: int = 2,
    crop: Callable[[Sample], Sample] = lambda sample: sample,
) -> ObservedChoice:
    """The images to observe during a run, the same for the same data set and seed.

    Among the first ``CONSIDERED`` images (more only if more are requested), a good one has its foreground (any class
    but 0; of more than two classes, that of :func:`find_object`) in one main component, within ``SHARE``, and hardly at
    the border. Of the good ones, the first is drawn by the seed; each following one is the farthest from those already
    ranked by size, place and outline of its foreground. Those that are not good follow, the one that misses by least
    first. In that order, images whose object has an interior (:func:`~fadeviz.data.interior.has_interior`) are taken;
    if there are too few, the first ones without an interior follow.

    Args:
        dataset: the test images.
        count: the number of images to choose; ``USUAL_COUNT`` takes all where there are fewer.
        seed: seed of the first image.
        classes: number of classes in the masks.
        crop: gives the part of an image that is observed, which has to show the interior.

    Returns:
        Different indices, ``count`` of each; the best ones first, so that the first few are the ones to show.

    Raises:
        FadevizError: if fewer than one image is requested, or another number than ``USUAL_COUNT`` that is more than
            there are.
    """
    if count < 1:
        raise FadevizError(f"{count} images to observe: at least 1 is needed")
    available = dataset.count
    if available is not None and count > available and (count != USUAL_COUNT or not available):
        raise FadevizError(
            f"{count} images to observe, but only {available} test images. Use observe={available} or fewer"
        )
    count = count if available is None else min(count, available)
    considered = max(CONSIDERED, count) if available is None else min(max(CONSIDERED, count), available)
    ranked, objects = _rank(dataset, considered, seed, classes)
    having: list[int] = []
    lacking: list[int] = []
    for index in ranked:
        if len(having) == count:
            break
        sample = dataset[index]
        mask = crop(sample).mask
        value = objects[index] if mask is sample.mask else _object(mask, classes)
        (having if has_interior(_inside(mask, value)) else lacking).append(index)
    return ObservedChoice(tuple((having + lacking)[:count]), tuple(ranked[:count]))


def _rank(dataset: Dataset, considered: int, seed: int, classes: int) -> tuple[list[int], list[int | None]]:
    """The first ``considered`` images: the good ones, each as different as possible from those before, then others.

    Returns:
        The indices in that order; and the object of each image, by its index.
    """
    objects: list[int | None] = []
    order: list[bytes] = []
    faults: list[float] = []
    features: list[tuple[float, ...]] = []
    for index in range(considered):
        sample = dataset[index]
        # Hashed names, not a generator: the choice does not depend on the version of numpy.
        order.append(hashlib.sha256(f"{seed}/{sample.name}".encode()).digest())
        objects.append(_object(sample.mask, classes))
        inside = _inside(sample.mask, objects[-1])
        faults.append(_fault(inside))
        features.append(_features(inside))
    shuffled = sorted(range(considered), key=lambda i: (order[i], i))
    good = [i for i in shuffled if faults[i] == 0]
    others = sorted((i for i in shuffled if faults[i] > 0), key=lambda i: faults[i])
    return _farthest_first(good, np.array(features)) + others, objects


def _object(mask: NDArray[np.uint8], classes: int) -> int | None:
    """The class of an image's object; None where that is every class but 0."""
    return find_object(mask) if classes > 2 else None


def _inside(mask: NDArray[np.uint8], value: int | None) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (mask > 0) & (mask != IGNORED) if value is None else mask == value
    return inside


def find_object(mask: NDArray[np.uint8]) -> int:
    """The class that is most like a single clear object in an image of many classes; the lowest number among equals.

    Its outline and interior are what is measured of such an image. ``IGNORED`` is not a class.
    """
    classes = [int(value) for value in np.unique(mask) if value != IGNORED]
    return min(classes, key=lambda value: (_fault(mask == value), value), default=0)


def _fault(inside: NDArray[np.bool_]) -> float:
    """The sum of the distances by which the foreground misses the bounds; 0 if it is within all of them."""
    share = float(inside.mean())
    if share == 0:
        return 3.0
    frame = np.concatenate([inside[0], inside[-1], inside[1:-1, 0], inside[1:-1, -1]])
    return (
        max(0.0, SHARE[0] - share, share - SHARE[1])
        + max(0.0, float(frame.mean()) - AT_BORDER)
        + max(0.0, MAIN_PART - _largest_part(inside))
    )


def _features(inside: NDArray[np.bool_]) -> tuple[float, ...]:
    """Share, centre (rows, columns) and boundary length of the foreground, all free of the image's size."""
    if not inside.any():
        return 0.0, 0.5, 0.5, 0.0
    height, width = inside.shape
    rows, columns = np.nonzero(inside)
    steps = np.count_nonzero(inside[1:] != inside[:-1]) + np.count_nonzero(inside[:, 1:] != inside[:, :-1])
    return float(inside.mean()), float(rows.mean()) / height, float(columns.mean()) / width, steps / (height + width)


def _largest_part(inside: NDArray[np.bool_]) -> float:
    """The share of the foreground in its largest 4-connected component; runs of a row are joined with those above."""
    parents: list[int] = []
    sizes: list[int] = []

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    above: list[tuple[int, int, int]] = []
    for row in inside:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(np.int8))).tolist()
        here = []
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            run = len(parents)
            parents.append(run)
            sizes.append(stop - start)
            for other_start, other_stop, other in above:
                if other_start < stop and start < other_stop:
                    joined, kept = root(other), root(run)
                    if joined != kept:
                        parents[joined] = kept
                        sizes[kept] += sizes[joined]
            here.append((start, stop, run))
        above = here
    return max((sizes[root(run)] for run in range(len(parents))), default=0) / max(1, int(np.count_nonzero(inside)))


def _farthest_first(indices: list[int], features: NDArray[np.float64]) -> list[int]:
    """Reorder: the first stays, then always the one whose nearest chosen neighbour is farthest away."""
    if not indices:
        return []
    values = features[indices]
    spread = values.std(axis=0)
    values = values / np.where(spread > 0, spread, 1)
    chosen = [0]
    nearest = np.linalg.norm(values - values[0], axis=1)
    nearest[0] = -1
    while len(chosen) < len(indices):
        # Rounded, so that a last bit that differs between machines cannot turn the choice.
        following = int(np.argmax(np.round(nearest, 9)))
        chosen.append(following)
        nearest = np.minimum(nearest, np.linalg.norm(values - values[following], axis=1))
        nearest[chosen] = -1
    return [indices[i] for i in chosen]
