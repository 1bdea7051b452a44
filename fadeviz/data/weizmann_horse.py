"""The Weizmann Horse set: listing its files, reading them at one size, splitting them, and reporting problems.

Source: E. Borenstein and S. Ullman, "Class-specific, top-down segmentation", ECCV 2002; 328 photographs of horses seen
from the side, each with a mask of the horse.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import FadevizError, printable
from ..storage.files import read_regular
from . import Sample, Splits
from .images import (
    MAX_BYTES,
    Listing,
    check_opaque,
    describe_images,
    is_lossy,
    list_folder,
    note_left_out,
    open_image,
    palette_of,
    shorten,
    to_rgb,
)
from .splitting import split_groups

BLACK = 16
"""An image none of whose values reaches this is taken for a black one."""

MIDDLE_SHARE = 0.2
"""A lossy mask may have this share of values in 64..191; one with more is not a mask."""

ASPECT_TOLERANCE = 0.02
"""How far the aspect ratios of an image and its mask may differ; in the original files it is 0.006."""

SAME_PHOTOGRAPH = 8.0
"""Thumbnails whose values (0 to 255) differ by less than this on average show the same photograph.

In the original set nine pairs do: two of equal bytes, seven stored anew or in other sizes, which differ by less than 4.
The next pairs differ by 16 and more.
"""

CLEARLY_LIT = 64
"""A colour that reaches this in any channel does not count as black."""


class _Layout(NamedTuple):
    image: str
    mask: str
    gray: str | None


_LAYOUTS = (_Layout("rgb", "figure_ground", "gray"), _Layout("horse", "mask", None))


@dataclass(frozen=True)
class _Files:
    name: str
    image: Path
    mask: Path


class WeizmannHorses:
    """Horses by index, all warped to one size; made by :func:`read_weizmann`.

    An image is decoded on its first access and kept as uint8 (200 KB at 224 x 224), so that a second epoch
    decodes nothing. Every sample is a copy: writing into it changes no other.

    Attributes:
        size: ``(height, width)`` of every sample.
        notes: one-line remarks for the user on what was corrected in the set.
    """

    def __init__(
        self,
        files: Sequence[_Files],
        size: tuple[int, int],
        notes: Sequence[str],
        kept: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    ) -> None:
        """Not called by hand: use :func:`read_weizmann`. ``kept`` holds what is decoded, and subsets share it."""
        self._files = tuple(files)
        self._kept = kept
        self.size = size
        self.notes = tuple(notes)

    def __repr__(self) -> str:
        return f"WeizmannHorses({self.count} images, {self.size[0]}x{self.size[1]})"

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self._files)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images: the stems of their files."""
        return tuple(files.name for files in self._files)

    @cached_property
    def fingerprint(self) -> str:
        """SHA256 over the names and bytes of the image and mask files used, in hexadecimal."""
        digest = hashlib.sha256()
        for files in self._files:
            for path in (files.image, files.mask):
                data = _bytes_of(path)
                # The length separates one file from the next.
                digest.update(f"{path.parent.name}/{path.name}\n{len(data)}\n".encode())
                digest.update(data)
        return digest.hexdigest()

    def __getitem__(self, index: int) -> Sample:
        """The image at ``index``: image ``(H, W, 3)`` uint8, mask ``(H, W)`` uint8 of 0 (ground) and 1 (horse).

        Raises:
            FadevizError: if a file cannot be read, a mask is invalid, or image and mask differ in shape.
            IndexError: if there is no such index; negative indices are not supported.
        """
        if not 0 <= index < len(self._files):
            raise IndexError(f"no image {index}: there are {len(self._files)}, from 0")
        files = self._files[index]
        if files.name not in self._kept:
            image, mask = _read_pair(files)
            self._kept[files.name] = _resize_image(image, self.size), _resize_mask(mask, self.size)
        pixels, classes = self._kept[files.name]
        return Sample(files.name, pixels.copy(), classes.copy())

    def subset(self, indices: Iterable[int]) -> WeizmannHorses:
        """The images at these indices, in this order, sharing what is decoded already."""
        return WeizmannHorses([self._files[i] for i in indices], self.size, self.notes, self._kept)


def read_weizmann(folder: str | os.PathLike[str], size: int | tuple[int, int] = 224) -> WeizmannHorses:
    """Find the images of a Weizmann Horse folder.

    Two layouts are known by their folder names: the original ``rgb/`` + ``figure_ground/`` (+ ``gray/``), whose masks
    are lossy JPEGs of another size than the images; and ``horse/`` + ``mask/`` with PNG masks of 0/1 or 0/255. Either
    may lie in ``folder`` itself or in ``folder/weizmann_horse_db``. A black image is replaced by its gray one, or left
    out.

    Args:
        folder: the folder of the data set.
        size: side of the square that every image is warped to, or ``(height, width)``.

    File names match regardless of the case of their suffixes and of Unicode composition; orientation tags are applied;
    transparent parts of images are composited over white. Masks with a palette are read by colour, white is horse.

    Raises:
        FadevizError: if the folder does not exist, has an unknown layout or no images, or an image has no mask or
            cannot be read.
    """
    side = (size, size) if isinstance(size, int) else tuple(size)
    if len(side) != 2 or min(side) < 1:
        raise FadevizError(f"size is {size}; it must be a positive number, or (height, width)")
    files, notes, problems = _find(Path(folder))
    if problems:
        more = f" (and {len(problems) - 1} more such problems)" if len(problems) > 1 else ""
        raise FadevizError(problems[0] + more)
    if not files:
        raise FadevizError(f"{folder} has only black images. Download the set again")
    return WeizmannHorses(files, (int(side[0]), int(side[1])), notes, {})


def check_weizmann(folder: str | os.PathLike[str]) -> list[str]:
    """Read every file of a Weizmann Horse folder and return all problems, a line each; empty means that all is well."""
    try:
        files, _, problems = _find(Path(folder))
    except FadevizError as error:
        return [str(error)]
    for pair in files:
        try:
            _read_pair(pair)
        except FadevizError as error:
            problems.append(str(error))
    return problems


def describe_weizmann(folder: str | os.PathLike[str]) -> list[str]:
    """Properties of a Weizmann Horse folder's files that other readers may treat differently, a line each.

    Raises:
        FadevizError: under the same conditions as :func:`read_weizmann`.
    """
    files, _, _ = _find(Path(folder))
    return [
        *describe_images((pair.image for pair in files), "images", "by its colours"),
        *describe_images((pair.mask for pair in files), "masks", "by its colours"),
    ]


def split_train_test(
    dataset: WeizmannHorses, train_share: float = 0.85, seed: int = 0
) -> tuple[WeizmannHorses, WeizmannHorses]:
    """Split at random; copies of the same photograph always land on the same side.

    The order is that of ``sha256("seed/name")``, not a random generator's, so that the same names split alike under
    every version of numpy. Copies are found by their pixels (``SAME_PHOTOGRAPH``), not by their bytes. Every image is
    read, so that a damaged file is reported here and not during training.

    Args:
        dataset: the data set to split.
        train_share: the share of images to train on, in (0, 1); 0.85 of 328 is 279, which leaves 49.
        seed: another seed gives another split.

    Returns:
        The training images and the test images, each in the order of ``dataset``.

    Raises:
        FadevizError: if there are fewer than two different photographs, the share is outside (0, 1), or a file cannot
            be read.
    """
    if not 0 < train_share < 1:
        raise FadevizError(f"train share {train_share} leaves one side empty. Give a number between 0 and 1")
    twins = _twins(dataset)
    if len(twins) < 2:
        raise FadevizError(
            f"{dataset.count} images of {len(twins)} different photographs cannot be split: at least 2 are needed. "
            "Add images"
        )
    train, test = split_groups(twins, dataset.names, train_share, seed)
    if not train:
        share = f"{train_share:.0%} of {dataset.count} images"
        raise FadevizError(f"no group of copies fits into a training side of {share}. Raise the train share")
    return dataset.subset(train), dataset.subset(test)


def load_weizmann(folder: str | os.PathLike[str], size: int | tuple[int, int] = 224, split_seed: int = 0) -> Splits:
    """Read and split a Weizmann Horse folder, with its entry in ``run.json``.

    Raises:
        FadevizError: under the same conditions as :func:`read_weizmann` and :func:`split_train_test`.
    """
    dataset = read_weizmann(folder, size)
    train, test = split_train_test(dataset, seed=split_seed)
    notes = list(dataset.notes)
    pairs = [" = ".join(dataset.names[i] for i in group) for group in _twins(dataset) if len(group) > 1]
    if pairs:
        notes.append(f"copies of the same photograph, on the same side of the split: {', '.join(pairs)}")
    info: Mapping[str, object] = {
        "name": "weizmann",
        "folder": str(folder),
        "count": dataset.count,
        "fingerprint": dataset.fingerprint,
        "split_seed": split_seed,
        "train": list(train.names),
        "test": list(test.names),
        "notes": notes,
    }
    return Splits(train, test, info)


def _twins(dataset: WeizmannHorses) -> list[list[int]]:
    """The indices of all images, copies of the same photograph together; each group and the groups in order."""
    small = np.array([_thumbnail(dataset[index].image) for index in range(dataset.count)])
    label = np.arange(len(small))
    for index in range(len(small)):
        near = np.abs(small - small[index]).mean(axis=1) < SAME_PHOTOGRAPH
        joined = np.isin(label, label[near])
        label[joined] = label[joined].min()
    return [np.flatnonzero(label == first).tolist() for first in np.unique(label)]


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    small = Image.fromarray(image).resize((16, 16), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).reshape(-1)


def _find(folder: Path) -> tuple[list[_Files], list[str], list[str]]:
    """The images of a folder, the notes on them, and the problems; black images are replaced or left out."""
    root, layout = _root_of(folder)
    listed, listed_masks = _by_stem(root / layout.image), _by_stem(root / layout.mask)
    images, masks = listed.files, listed_masks.files
    problems = [*listed.problems, *listed_masks.problems]
    has_gray = layout.gray is not None and (root / layout.gray).is_dir()
    listed_grays = _by_stem(root / (layout.gray or "")) if has_gray else Listing({}, [], [])
    grays = listed_grays.files
    if not images and not problems:
        raise FadevizError(
            f"{root / layout.image} has no images (.jpg, .png, .tif or .bmp). Unpack the whole set there"
        )
    pairs: list[_Files] = []
    notes: list[str] = []
    for key, image in images.items():
        name = image.stem
        if key not in masks:
            problems.append(f"{image} has no mask {root / layout.mask / name}.*. Add the mask, or remove the image")
            continue
        try:
            black = _is_black(image)
        except FadevizError as error:
            problems.append(str(error))
            continue
        if not black:
            pairs.append(_Files(name, image, masks[key]))
        elif key in grays:
            problems += [problem for problem in listed_grays.problems if problem not in problems]
            notes.append(f"{layout.image}/{image.name} is black: {layout.gray}/{grays[key].name} stands in for it")
            pairs.append(_Files(name, grays[key], masks[key]))
        else:
            notes.append(f"{layout.image}/{image.name} is black and has no gray image: it is left out")
    lone = sorted(masks.keys() - images.keys())
    if lone:
        notes.append(f"masks without an image in {layout.mask}/ are ignored: {len(lone)} ({shorten(lone)})")
    notes += note_left_out(f"{layout.image}/", listed.left_out)
    notes += note_left_out(f"{layout.mask}/", listed_masks.left_out)
    return pairs, [printable(note) for note in notes], [printable(problem) for problem in problems]


def _root_of(folder: Path) -> tuple[Path, _Layout]:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FadevizError(f"data folder {folder} {what}. Give the folder that holds the Weizmann Horse images")
    for root in (folder, folder / "weizmann_horse_db"):
        for layout in _LAYOUTS:
            if (root / layout.image).is_dir() and (root / layout.mask).is_dir():
                return root, layout
    inside = sorted(path.name + "/" for path in folder.iterdir() if path.is_dir())[:6]
    raise FadevizError(
        f"{folder} is no Weizmann Horse folder: it has {', '.join(inside) or 'no folders'}, needed is rgb/ with "
        "figure_ground/, or horse/ with mask/, here or in weizmann_horse_db/. Give the folder that holds them"
    )


def _by_stem(folder: Path) -> Listing:
    """The images of a folder, sorted by stem."""
    listed = list_folder(folder)
    in_order = sorted(listed.files.items(), key=lambda item: (item[1].stem, item[1].name))
    return listed._replace(files=dict(in_order))


def _bytes_of(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        raise FadevizError(f"{path} cannot be read: {error.strerror or error}") from error


def _is_black(path: Path) -> bool:
    return bool(np.max(to_rgb(open_image(path, draft=(32, 32)), path).getextrema()) < BLACK)


def _read_pair(files: _Files) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Image (mode RGB) and mask (True is horse), each at its own resolution."""
    image = to_rgb(open_image(files.image), files.image)
    mask = _read_mask(files.mask)
    height, width = mask.shape
    if abs((image.width * height) / (image.height * width) - 1) > ASPECT_TOLERANCE:
        raise FadevizError(
            f"{files.mask} is {width}x{height}, but {files.image} is {image.width}x{image.height}: the aspect ratios "
            f"differ by more than {ASPECT_TOLERANCE:.0%}. Put the mask there that belongs to the image"
        )
    return image, mask


def _read_mask(path: Path) -> NDArray[np.bool_]:
    image = open_image(path)
    check_opaque(image, path, "mask")
    if image.mode in ("P", "PA"):
        mask = _by_colours(image, path)
    elif is_lossy(image):
        mask = _by_level(image, path)
    else:
        mask = _by_value(image, path)
    if mask.all() or not mask.any():
        raise FadevizError(f"{path} is all {'horse' if mask.any() else 'ground'}. Put the figure-ground mask there")
    return np.asarray(mask, dtype=np.bool_)


def _by_level(image: Image.Image, path: Path) -> NDArray[np.bool_]:
    """Read a mask that is black and white up to compression noise."""
    values = np.asarray(_to_grey(image, path))
    middle = float(np.mean((values >= 64) & (values <= 191)))
    if middle > MIDDLE_SHARE:
        raise FadevizError(
            f"{path} is not a mask: {middle:.0%} of its values are in 64..191, at most {MIDDLE_SHARE:.0%} may be. "
            "Put the figure-ground mask there"
        )
    return np.asarray(values > 127)


def _by_value(image: Image.Image, path: Path) -> NDArray[np.bool_]:
    """Read a mask that is exactly black and white, or whose values are the two classes."""
    deep = image.mode.startswith(("I", "F"))
    values = np.asarray(image if image.mode == "1" or deep else _to_grey(image, path))
    there = set(np.unique(values).tolist())
    if not any(there <= {0, white} for white in (1, 255, *([65535] if deep else []))):
        first = [f"{value:g}" for value in sorted(there)[:6]]
        shown = ", ".join(first) + (", ..." if len(there) > 6 else "")
        raise FadevizError(f"{path} has the values {shown}. A mask has only 0 and 1, or only 0 and 255")
    return np.asarray(values > 0)


def _to_grey(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "LA":
        return image.getchannel("L")
    return image if image.mode == "L" else to_rgb(image, path, hidden=True).convert("L")


def _by_colours(image: Image.Image, path: Path) -> NDArray[np.bool_]:
    """Read a mask with a palette: the lighter of two colours is horse, since tools order black and white either way.

    If the colours are not black and white, the indices are the classes, 0 and 1. A mask whose colours and indices
    contradict each other is refused.
    """
    numbers, table = palette_of(image)
    used = np.unique(numbers)
    colours = np.unique(table[used], axis=0)
    if len(colours) == 1:
        raise FadevizError(f"{path} has only one colour, {_colour(colours[0])}. Put the figure-ground mask there")
    if len(colours) > 2:
        raise FadevizError(f"{path} has {len(colours)} colours. A mask has only black and white; save it losslessly")
    lightness = colours @ np.array([0.299, 0.587, 0.114])
    dark, light = colours[np.argsort(lightness, kind="stable")]
    is_light = (table == light).all(axis=1)
    both_grey = int((colours.max(axis=1) - colours.min(axis=1)).max()) < BLACK
    by_colour = (dark.max() < BLACK and light.max() >= CLEARLY_LIT) or (both_grey and abs(np.diff(lightness)[0]) > 127)
    by_number = used.tolist() in ([0, 1], [0, 255]) and bool(is_light[used[1]])
    if not (by_colour or by_number):
        raise FadevizError(
            f"{path} shows {_colour(dark)} and {_colour(light)}: it is ambiguous which of them is the horse. "
            "Save it in black and white, with the horse white"
        )
    return np.asarray(is_light[numbers])


def _colour(colour: NDArray[np.uint8]) -> str:
    return f"({', '.join(map(str, colour.tolist()))})"


def _resize_image(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    # Pillow widens the filter when it shrinks an image, so that nothing aliases.
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR), dtype=np.uint8)


def _resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.uint8]:
    # From the mask's own resolution straight to `size`: going over the image's would round the contour twice.
    # Pillow's linear filter averages over area when it shrinks, and leaves no stairs of old pixels when it enlarges; at
    # half level it keeps an ellipse's outline better than a box does, either way.
    share = Image.fromarray(mask.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return (np.asarray(share) >= 0.5).astype(np.uint8)
