"""ADE20K with 150 classes, as the scene parsing benchmark has it: finding its files, reading them, naming faults.

Source: B. Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017; ``ADEChallengeData2016``: 20,210 photographs
to train on and 2,000 to validate on, each with an annotation of the same size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError, printable
from ..storage.files import read_regular
from . import Sample, Splits
from .images import describe_images, list_folder, note_left_out, open_image, shorten, to_rgb
from .transforms import IGNORED, Augmentation, AugmentedCrops, CentreCrops, check_side

__all__ = [
    "ADE20K",
    "CLASSES",
    "IGNORED",
    "check_ade20k",
    "class_names",
    "describe_ade20k",
    "load_ade20k",
    "read_ade20k",
]

CLASSES = 150
"""How many classes there are; in ``Sample.mask`` they are 0 to 149, one less than in the files, and ``IGNORED``."""

FEWEST_TO_TEST_ON = 8
"""The minimum number of validation images in a subset, if the set has that many."""

_PUBLISHED = {"training": 20210, "validation": 2000}
_LAYOUT = "images/ and annotations/, each with training/ and validation/ (or with the files themselves)"
_FOLDER = "ADEChallengeData2016"
_LARGEST_TABLE = 1 << 20


class _Files(NamedTuple):
    name: str
    image: Path
    annotation: Path


class _Part(NamedTuple):
    files: list[_Files]
    notes: list[str]
    problems: list[str]


class ADE20K:
    """The images of ADE20K by index, each at its own size; made by :func:`read_ade20k`.

    *Shape*: image ``(H, W, 3)`` uint8 and mask ``(H, W)`` uint8 with the classes 0 to 149 and ``IGNORED`` (255) where
    the file has 0, "other". Grey and CMYK photographs become RGB. Orientation tags are applied, those of images and of
    annotations separately. The indices of an annotation are the classes, whatever the colours of its palette.

    *Cost*: nothing is kept, as the whole set would take 20 GB: an image is decoded whenever it is asked for, about
    4 ms for one of 683x512.
    """

    def __init__(self, files: Sequence[_Files], what: str = "") -> None:
        """Not called by hand: use :func:`read_ade20k`."""
        self._files = tuple(files)
        self._what = what

    def __repr__(self) -> str:
        return f"ADE20K({self.count} {self._what} images)".replace("  ", " ")

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self._files)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images: the stems of their files."""
        return tuple(files.name for files in self._files)

    def __getitem__(self, index: int) -> Sample:
        """The image at ``index``.

        Raises:
            FadevizError: if a file cannot be read, or the annotation is invalid or differs in size from its image.
            IndexError: if there is no such index; negative indices are not supported.
        """
        if not 0 <= index < len(self._files):
            raise IndexError(f"no image {index}: there are {len(self._files)}, from 0")
        return _read(self._files[index])

    def subset(self, count: int, seed: int = 0) -> ADE20K:
        """The first ``count`` images of a random order, sorted by name; a larger subset contains a smaller one.

        The order is that of ``sha256("seed/name")``, which does not depend on the version of numpy.
        """
        drawn = sorted(self._files, key=lambda files: hashlib.sha256(f"{seed}/{files.name}".encode()).digest())
        return ADE20K(sorted(drawn[:count]), self._what)

    def list_files(self) -> list[str]:
        """A line for each file used, ``folder/name size in bytes``, in order: what the fingerprint is of.

        Raises:
            FadevizError: if a file no longer exists.
        """
        lines = []
        for files in self._files:
            for path in (files.image, files.annotation):
                try:
                    lines.append(f"{path.parent.name}/{path.name} {path.stat().st_size}")
                except OSError as error:
                    raise FadevizError(f"{path} cannot be read: {error.strerror or error}. Put it back") from error
        return lines


def read_ade20k(folder: str | os.PathLike[str]) -> tuple[ADE20K, ADE20K, list[str]]:
    """Find the images of an ADE20K folder; none is decoded.

    The layout is that of ``ADEChallengeData2016``: ``images/training/*.jpg`` and ``annotations/training/*.png`` of the
    same names, and ``validation/`` likewise, in ``folder`` itself or in ``folder/ADEChallengeData2016``. A sample
    without the two folders is taken as well (``images/*.jpg``, ``annotations/*.png``): then all of it is both.

    Returns:
        The training images, the validation images, both sorted by name, and notes, a line each.

    Raises:
        FadevizError: if the folder does not exist, has another layout or no images, or an image has no annotation.
    """
    parts = _find(Path(folder))
    problems = [problem for part in parts.values() for problem in part.problems]
    if problems:
        more = f" (and {len(problems) - 1} more such problems)" if len(problems) > 1 else ""
        raise FadevizError(problems[0] + more)
    notes = [note for part in parts.values() for note in part.notes]
    if "" in parts:
        both = ADE20K(parts[""].files)
        return both, both, notes
    return ADE20K(parts["training"].files, "training"), ADE20K(parts["validation"].files, "validation"), notes


def load_ade20k(
    folder: str | os.PathLike[str],
    size: int = 512,
    *,
    subset: int | None = None,
    seed: int = 0,
    subset_seed: int = 0,
    augmentation: Augmentation | None = None,
) -> Splits:
    """ADE20K split into training and test images, with its entry in ``run.json``.

    Training images are endless random crops (:class:`~fadeviz.data.transforms.AugmentedCrops`), test images the
    central square of each validation image, scaled to ``size`` (:class:`~fadeviz.data.transforms.CentreCrops`). The
    benchmark's own score is over whole images at their own size and is not comparable with a score over these squares.

    Args:
        folder: where the set lies, see :func:`read_ade20k`.
        size: side of the squares in pixels, divisible by 32.
        subset: train on this many images, chosen at random by ``subset_seed``; validation images are kept in
            proportion, but at least 8, or all. None keeps everything.
        seed: seed of the crops and of their order.
        subset_seed: seed of the choice of a subset.
        augmentation: ranges of the random crops; None for the usual recipe.

    Raises:
        FadevizError: as for :func:`read_ade20k`; also if the size is not divisible by 32, the subset is below 1 or
            larger than the set, or the list of classes cannot be read. Images are read when they are used: damaged ones
            are reported then, or beforehand by :func:`check_ade20k`.

    Example:
        >>> splits = load_ade20k("ADEChallengeData2016", 512, subset=500)  # doctest: +SKIP
        >>> splits.info["train"], splits.info["test"]  # doctest: +SKIP
        (500, 49)
    """
    check_side(size)
    train, test, notes = read_ade20k(folder)
    if subset is not None:
        if isinstance(subset, bool) or not isinstance(subset, int) or not 1 <= subset <= train.count:
            raise FadevizError(
                f"subset is {subset}: {folder} has {train.count} training images. Give 1 to {train.count}, or none"
            )
        kept = max(round(test.count * subset / train.count), FEWEST_TO_TEST_ON)
        train, test = train.subset(subset, subset_seed), test.subset(kept, subset_seed)
    recipe = augmentation or Augmentation()
    files = sorted({*train.list_files(), *test.list_files()})
    info: Mapping[str, object] = {
        "name": "ade20k",
        "folder": str(folder),
        "count": len(files) // 2,
        "train": train.count,
        "test": test.count,
        "subset": subset,
        "subset_seed": subset_seed,
        "fingerprint": hashlib.sha256("\n".join(files).encode()).hexdigest(),
        "classes": list(class_names(folder)),
        "ignored": IGNORED,
        "augmentation": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(recipe).items()
        },
        "notes": notes,
    }
    return Splits(AugmentedCrops(train, size, seed, recipe), CentreCrops(test, size), info, CLASSES)


def check_ade20k(folder: str | os.PathLike[str]) -> list[str]:
    """Read every file of an ADE20K folder and return all problems, a line each; empty means that all is well.

    The complete set takes a few minutes.
    """
    try:
        parts = _find(Path(folder))
    except FadevizError as error:
        return [str(error)]
    problems = [problem for part in parts.values() for problem in part.problems]
    for part in parts.values():
        for files in part.files:
            try:
                if (_read(files).mask == IGNORED).all():
                    problems.append(f"{files.annotation} has no labelled pixel, only 0. Remove it and its image")
            except FadevizError as error:
                problems.append(str(error))
    try:
        class_names(folder)
    except FadevizError as error:
        problems.append(str(error))
    return problems


def describe_ade20k(folder: str | os.PathLike[str]) -> list[str]:
    """Properties of an ADE20K folder's files that other readers may treat differently, a line each.

    Raises:
        FadevizError: under the same conditions as :func:`read_ade20k`.
    """
    files = [files for part in _find(Path(folder)).values() for files in part.files]
    return [
        *describe_images((pair.image for pair in files), "images", "by its colours"),
        *describe_images((pair.annotation for pair in files), "annotations", "by its indices, which are the classes"),
    ]


def class_names(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the 150 classes, class 0 of ``Sample.mask`` first: the first of a class's names, such as "wall".

    They are read from ``objectInfo150.txt`` in the folder, in ``folder/ADEChallengeData2016`` or beside the folder.
    Without it, classes are called "class 0" to "class 149".

    Raises:
        FadevizError: if the file exists but does not list one name for each class.
    """
    root = Path(folder)
    for place in (root, root / _FOLDER, root.absolute().parent):
        path = place / "objectInfo150.txt"
        if os.path.lexists(path):
            return _read_names(path)
    return tuple(f"class {number}" for number in range(CLASSES))


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        rows = [line.split("\t") for line in read_regular(path, _LARGEST_TABLE).decode().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise FadevizError(f"{path} cannot be read: {reason}. Restore the data set's own file, or remove it") from error
    header = [column.strip() for column in rows[0]] if rows else []
    try:
        number, name = header.index("Idx"), header.index("Name")
        named = {int(row[number]): printable(row[name].split(",")[0].strip()) for row in rows[1:]}
    except (ValueError, IndexError):
        named = {}
    if sorted(named) != list(range(1, CLASSES + 1)) or not all(named.values()):
        raise FadevizError(
            f"{path} has no table of {CLASSES} classes: needed are columns Idx and Name, separated by tabs, and a row "
            f"for each of 1 to {CLASSES}. Restore the data set's own file, or remove it"
        )
    return tuple(named[number] for number in range(1, CLASSES + 1))


def _find(folder: Path) -> dict[str, _Part]:
    """The files of a folder, by part: ``training`` and ``validation``, or ``""`` alone in a sample without them."""
    root = _root_of(folder)
    if not (root / "images" / "training").is_dir():
        part = _find_part(root, "")
        part.notes.append("no training/ and validation/: what is tested on is trained on as well")
        return {"": part}
    parts = {name: _find_part(root, name) for name in ("training", "validation")}
    for name, part in parts.items():
        if len(part.files) != _PUBLISHED[name]:
            part.notes.append(f"{name}/ has {len(part.files)} images; the published set has {_PUBLISHED[name]}")
    return parts


def _root_of(folder: Path) -> Path:
    """The folder that has ``images/`` and ``annotations/``.

    Raises:
        FadevizError: if there is none, or it is incomplete.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FadevizError(f"data folder {folder} {what}. Give the folder of {_FOLDER}")
    for root in (folder, folder / _FOLDER):
        if not any((root / kind).is_dir() for kind in ("images", "annotations")):
            continue
        four = [f"{kind}/{part}" for kind in ("images", "annotations") for part in ("training", "validation")]
        needed = four if any((root / name).is_dir() for name in four) else ["images", "annotations"]
        missing = [f"{name}/" for name in needed if not (root / name).is_dir()]
        if not missing:
            return root
        other = (
            " (the full ADE20K with a folder for each scene is another set)"
            if "annotations/training/" in missing
            else ""
        )
        raise FadevizError(f"{root} lacks {', '.join(missing)}: needed are {_LAYOUT}. Unpack {_FOLDER} there{other}")
    inside = sorted(path.name + "/" for path in folder.iterdir() if path.is_dir())[:6]
    raise FadevizError(
        f"{folder} is no ADE20K folder: it has {', '.join(inside) or 'no folders'}, needed are {_LAYOUT}. "
        f"Give the folder of {_FOLDER}"
    )


def _find_part(root: Path, part: str) -> _Part:
    listed = list_folder(root / "images" / part, (".jpg", ".jpeg"))
    listed_annotations = list_folder(root / "annotations" / part, (".png",))
    images, annotations = listed.files, listed_annotations.files
    problems = [*listed.problems, *listed_annotations.problems]
    if not images and not problems:
        raise FadevizError(f"{root / 'images' / part} has no images (.jpg). Unpack the whole set there")
    pairs = []
    for key, image in images.items():
        if key in annotations:
            pairs.append(_Files(image.stem, image, annotations[key]))
        else:
            wanted = root / "annotations" / part / f"{image.stem}.png"
            problems.append(f"{image} has no annotation {wanted}. Add it, or remove the image")
    notes = []
    lone = sorted(annotations.keys() - images.keys())
    if lone:
        where = f"annotations/{part}/" if part else "annotations/"
        notes.append(f"annotations without an image in {where} are ignored: {len(lone)} ({shorten(lone)})")
    for kind, left_out in (("images", listed.left_out), ("annotations", listed_annotations.left_out)):
        notes += note_left_out(f"{kind}/{part}/" if part else f"{kind}/", left_out)
    return _Part(pairs, [printable(note) for note in notes], [printable(problem) for problem in problems])


def _read(files: _Files) -> Sample:
    """An image at its own size."""
    image = np.array(to_rgb(open_image(files.image), files.image), dtype=np.uint8)
    mask = _read_annotation(files.annotation)
    if mask.shape != image.shape[:2]:
        raise FadevizError(
            f"{files.annotation} is {mask.shape[1]}x{mask.shape[0]}, but {files.image} is "
            f"{image.shape[1]}x{image.shape[0]}: both must have the same size (after their orientation tags, if any). "
            "Put the annotation there that belongs to it"
        )
    return Sample(files.name, image, mask)


def _read_annotation(path: Path) -> NDArray[np.uint8]:
    """The classes ``(H, W)`` of an annotation: one less than in the file, and 255 for its 0."""
    image = open_image(path)
    if image.format != "PNG":
        raise FadevizError(
            f"{path} is not a PNG but {image.format}, which does not keep classes. Put the original there"
        )
    with path.open("rb") as file:
        bits, kind = file.read(26)[24:]  # of the header chunk, which comes first in every PNG
    # Palette images are read by index: the palette is only how viewers colour the classes. Grey of fewer than 8 bits
    # is refused, as Pillow stretches it to 0..255.
    if not (kind == 3 or (kind == 0 and bits == 8)):
        what = {0: "grey", 2: "RGB", 4: "grey with transparency", 6: "RGB with transparency"}.get(kind, "odd")
        raise FadevizError(
            f"{path} is a {bits}-bit {what} PNG: an annotation has one channel of 8 bits, 0 to {CLASSES}. "
            f"Take the annotations of {_FOLDER}"
        )
    values = np.array(image, dtype=np.uint8)
    if (largest := int(values.max())) > CLASSES:
        raise FadevizError(
            f"{path} has class {largest}: classes are 1 to {CLASSES}, and 0 is other. "
            f"Take the annotations of {_FOLDER} as they are"
        )
    # Unsigned numbers wrap: 0 becomes 255, which is what IGNORED is.
    return values - np.uint8(1)
