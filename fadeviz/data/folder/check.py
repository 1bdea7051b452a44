"""Reading every file of a folder of images and masks: what is wrong, and what is worth knowing."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import FadevizError, printable
from .. import Splits
from ..images import describe_images, open_image, shorten, to_rgb
from ..transforms import IGNORED
from .classes import ClassTable, describe_unknown, read_pixels, to_classes
from .dataset import (
    Classes,
    FolderImages,
    MaskOptions,
    build_splits,
    compare_shapes,
    resolve_classes,
    survey_masks,
)
from .files import Pair, find_pairs

_SIZES = 3


class Examination(NamedTuple):
    """The result of :func:`examine_folder`.

    Attributes:
        problems: faults, a line each; empty if the folder can be used.
        notes: what is worth knowing, a line each.
        splits: the images; None if there are problems.
    """

    problems: list[str]
    notes: list[str]
    splits: Splits | None = None


def examine_folder(folder: str | os.PathLike[str], size: int, split_seed: int, options: MaskOptions) -> Examination:
    """Read every file of a folder: all problems, and sizes, classes with their shares, orientation tags and copies.

    Arguments as for :func:`~fadeviz.data.folder.dataset.load_folder`. Masks are read twice if their values have to tell
    the classes; no more than one image is kept.
    """
    options = options.within(folder)
    try:
        found = find_pairs(folder, options.masks_dir)
    except FadevizError as error:
        return Examination([str(error)], [])
    if not found.pairs:
        return Examination(found.problems, found.notes)
    problems = list(found.problems)
    classes: Classes | None = None
    try:
        survey = survey_masks([pair.mask for pair in found.pairs], options)
        problems += survey.problems
        if not survey.problems or survey.values is None:
            classes = resolve_classes(survey, options)
    except FadevizError as error:
        problems.append(str(error))
    unlike, shapes = compare_shapes(found.pairs)
    problems += unlike
    found.notes += shapes
    seen = _Seen()
    for pair in found.pairs:
        problems += seen.look(pair, classes)
    problems = list(dict.fromkeys(problems))
    notes = list(found.notes)
    splits = None
    parts: Mapping[str, Sequence[Pair]] = found.parts
    if classes is not None:
        try:
            splits = build_splits(folder, found, classes, size, split_seed)
        except FadevizError as error:
            problems.append(str(error))
        else:
            notes = list(splits.info["notes"])  # type: ignore[call-overload]
            parts = {"train": _pairs_of(splits.train), "test": _pairs_of(splits.test)}
        if not problems and not seen.pixels[:IGNORED].any():
            problems.append("every pixel of the masks is ignored: there is nothing to learn. Correct ignore=...")
        notes += seen.describe_classes(classes.table, len(found.pairs))
        notes += seen.describe_untrained(classes.table, parts)
    notes[:0] = seen.describe_sizes()
    notes += describe_images((pair.image for pair in found.pairs), "images", "by its colours")
    by = "by its colours" if classes and (classes.table.codes or classes.two_colours) else "by its values"
    notes += describe_images((pair.mask for pair in found.pairs), "masks", by)
    notes += seen.describe_copies(parts)
    return Examination(problems, [printable(note) for note in notes], None if problems else splits)


def _pairs_of(part: object) -> Sequence[Pair]:
    images = getattr(part, "dataset", part)
    return images.pairs if isinstance(images, FolderImages) else ()


class _Seen:
    """What was met in the files of a folder."""

    def __init__(self) -> None:
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.pixels = np.zeros(256, np.int64)
        self.images = np.zeros(256, np.int64)
        self.single: list[str] = []
        self.void: list[str] = []
        self.digests: dict[Path, bytes] = {}
        self.labels: dict[Path, list[int]] = {}

    def look(self, pair: Pair, classes: Classes | None) -> list[str]:
        """Read an image and its mask; returns what is wrong with them."""
        problems = []
        try:
            image = to_rgb(open_image(pair.image), pair.image)
            self.sizes[image.size] += 1
            self.digests[pair.image] = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
        except FadevizError as error:
            problems.append(str(error))
        try:
            if classes is None:
                open_image(pair.mask)
                return problems
            pixels = read_pixels(pair.mask, classes.table, two_colours=classes.two_colours)
            mask, unknown = to_classes(pixels, classes.table)
            if unknown.counts:
                problems.append(describe_unknown(pair.mask, unknown, classes.table))
        except FadevizError as error:
            problems.append(str(error))
            return problems
        counts = np.bincount(mask.ravel(), minlength=256)
        self.pixels += counts
        self.images += counts > 0
        self.labels[pair.mask] = np.flatnonzero(counts[:IGNORED]).tolist()
        labelled = np.flatnonzero(counts[:IGNORED])
        if len(labelled) == 1:
            self.single.append(pair.mask.name)
        elif not len(labelled):
            self.void.append(pair.mask.name)
        return problems

    def describe_sizes(self) -> list[str]:
        """The number of images and their sizes."""
        count = sum(self.sizes.values())
        if not count:
            return []
        listed = [f"{width}x{height} ({number})" for (width, height), number in self.sizes.most_common(_SIZES)]
        if len(self.sizes) > _SIZES:
            sides = [side for size in self.sizes for side in size]
            listed.append(f"{len(self.sizes) - _SIZES} other sizes, sides from {min(sides)} to {max(sides)}")
        return [f"images: {count}, {'of ' if len(self.sizes) == 1 else 'sizes '}{', '.join(listed)}"]

    def describe_classes(self, table: ClassTable, count: int) -> list[str]:
        """The share of each class, and masks that are worth a look."""
        labelled = max(1, int(self.pixels[:IGNORED].sum()))
        lines = []
        for label, name in enumerate(table.names):
            title = name if re.fullmatch(r"class \d+", name) else f"class {label} {name}"
            share = f"{self.pixels[label] / labelled:.2%} of the pixels"
            lines.append(f"{title}: {share}, in {self.images[label]} of {count} images")
        if self.pixels[IGNORED]:
            what = ", ".join(table.ignored_values())
            share = self.pixels[IGNORED] / self.pixels.sum()
            lines.append(f"ignored {what}: {share:.2%} of all pixels, in {self.images[IGNORED]} of {count} images")
        if self.single:
            lines.append(f"masks with one class alone: {len(self.single)} ({shorten(self.single)})")
        if self.void:
            lines.append(f"masks that are ignored altogether: {len(self.void)} ({shorten(self.void)})")
        return lines

    def describe_untrained(self, table: ClassTable, parts: Mapping[str, Sequence[Pair]]) -> list[str]:
        """The classes that are tested on and not trained on."""
        met = {
            part: {label for pair in pairs for label in self.labels.get(pair.mask, ())} for part, pairs in parts.items()
        }
        names = [table.names[label] for label in sorted(met.get("test", set()) - met.get("train", set()))]
        if not names:
            return []
        return [f"classes that are tested on, but in no image to train on: {len(names)} ({shorten(names)})"]

    def describe_copies(self, parts: Mapping[str, Sequence[Pair]]) -> list[str]:
        """Images with the same pixels, in different parts and in one."""
        first: dict[bytes, tuple[str, Path]] = {}
        across: list[str] = []
        within: list[str] = []
        for part, pairs in parts.items():
            for pair in pairs:
                if (digest := self.digests.get(pair.image)) is None:
                    continue
                of, path = first.setdefault(digest, (part, pair.image))
                if path != pair.image:
                    (within if of == part else across).append(f"{path.name} = {pair.image.name}")
        lines = []
        if across:
            lines.append(f"images to train on that are tested on too: {len(across)} ({shorten(across)})")
        if within:
            lines.append(f"images that are copies of others on the same side: {len(within)} ({shorten(within)})")
        return lines


__all__ = ["Examination", "examine_folder"]
