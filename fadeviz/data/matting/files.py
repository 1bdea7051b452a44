"""The files of matting sets: listing them by their layout, and reading and validating mattes, trimaps and images.

Layouts that :func:`find_mattes` recognises by their folder names, in a folder or in its ``Combined_Dataset``:

``composition-1k`` (N. Xu et al., "Deep image matting", CVPR 2017; licensed by Adobe, 431 + 50 foregrounds)
    ``Training_set/{fg,alpha}`` or ``Training_set/<part>/{fg,alpha}``, where a part is ``Adobe-licensed images`` or
    ``Other``. Backgrounds (COCO's training images) in ``Training_set/bg`` or any folder given; where
    ``Training_set/training_bg_names.txt`` lies, those of its names alone.
    ``Test_set`` in the same way: ``merged`` + ``trimaps`` + ``alpha`` (or ``alpha_copy``), where ``merged/name_7.png``
    may have the matte ``alpha/name.png``; without ``merged``, ``fg`` + ``alpha`` + ``trimaps`` with ``bg`` (Pascal
    VOC), ``test_fg_names.txt`` and ``test_bg_names.txt``: as many backgrounds, in turn, to each foreground.
    ``train`` and ``test`` serve as names too.
``alphamatting`` (C. Rhemann et al., "A perceptually motivated online benchmark for image matting", CVPR 2009)
    ``input``, ``gt``, ``trimap1`` (the narrower one, which is tested on) or ``trimap2``; split by a seed.
``images``
    ``name.png``, ``name_alpha.png``, ``name_trimap.png`` and, where known, ``name_foreground.png``; split by a seed.

The last two have no layers to compose with: :func:`~fadeviz.data.matting.compositing.estimate_layers` stands in for
them.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...errors import FadevizError
from ...storage.files import read_regular
from .. import Sample
from ..images import check_opaque, key_of, list_folder, note_left_out, open_image, shorten, to_rgb
from .compositing import (
    BACKGROUND,
    FOREGROUND,
    UNKNOWN,
    Pixels,
    composite,
    estimate_layers,
    size_of,
    to_alpha,
    to_sample,
)

TEST_SHARE = 0.22
"""Share of test images in a set without a split of its own: 4 of 18 images, 6 of 27."""

_LARGEST_LIST = 1 << 26


@dataclass(frozen=True)
class MatteFiles:
    """The files of one matte; None for those that a layout does not have.

    Attributes:
        name: the image's name.
        alpha: the matte.
        image: the image that the matte belongs to.
        foreground: its foreground's colours.
        background: the image to compose it with, if there is no ``image``.
        trimap: its trimap.
    """

    name: str
    alpha: Path
    image: Path | None = None
    foreground: Path | None = None
    background: Path | None = None
    trimap: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that exist."""
        named = (self.alpha, self.image, self.foreground, self.background, self.trimap)
        return tuple(path for path in named if path is not None)


@dataclass
class FolderContents:
    """The files of a folder, and notes and problems, one line each."""

    layout: str
    train: list[MatteFiles]
    test: list[MatteFiles]
    backgrounds: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Layers(NamedTuple):
    """The layers of a training image; background is None where other images serve as backgrounds."""

    foreground: Pixels
    matte: Pixels
    background: Pixels | None


# --- reading ---


def read_colours(path: Path, *, hidden: bool = False) -> Pixels:
    """An image ``(H, W, 3)`` in RGB, with its orientation tag applied.

    Args:
        path: the file.
        hidden: keep the stored colours of transparent parts, as for a foreground, instead of a white background.

    Raises:
        FadevizError: if the file cannot be read.
    """
    return np.array(to_rgb(open_image(path), path, hidden=hidden), dtype=np.uint8)


def _read_grey(path: Path, what: str) -> Pixels:
    """A matte or a trimap ``(H, W)``: one grey channel, or colours that are all grey."""
    image = open_image(path)
    if image.mode.startswith(("I", "F")):
        raise FadevizError(f"{path} is a {what} of 16 bits or more (mode {image.mode}). Convert it to 8 bits")
    check_opaque(image, path, what)
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"), dtype=np.uint8)
    if image.mode == "LA":
        return np.array(image.getchannel("L"), dtype=np.uint8)
    colours = np.array(to_rgb(image, path, hidden=True), dtype=np.uint8)
    if (colours.max(2) - colours.min(2)).max() > 2:
        raise FadevizError(f"{path} is coloured; a {what} is grey. Put the {what} there that belongs to the image")
    return np.ascontiguousarray(colours[..., 0])


def _read_matte(path: Path) -> Pixels:
    matte = _read_grey(path, "matte")
    if matte.max() == 1:
        raise FadevizError(f"{path} has the values 0 and 1 alone; a matte goes from 0 to 255. Multiply it by 255")
    if matte.max() == matte.min():
        raise FadevizError(f"{path} is {matte.max()} everywhere: nothing is unknown. Put the image's matte there")
    return matte


def read_trimap(path: Path) -> Pixels:
    """A trimap file ``(H, W)`` as 0, ``UNKNOWN`` and 255, whatever single grey it has for the unknown.

    Raises:
        FadevizError: if the file cannot be read, is coloured, or has no grey or more than one.
    """
    values = _read_grey(path, "trimap")
    there = np.unique(values).tolist()
    middle = [value for value in there if 0 < value < 255]
    if len(middle) > 1:
        shown = ", ".join(map(str, there[:6])) + (", ..." if len(there) > 6 else "")
        raise FadevizError(f"{path} has the values {shown}. A trimap has 0, one grey and 255; save it without loss")
    if not middle:
        raise FadevizError(f"{path} has no unknown pixel (a grey between 0 and 255). Put the image's trimap there")
    values[values == middle[0]] = UNKNOWN
    return values


def _check_equal(a: Path, b: Path, first: Pixels, second: Pixels) -> None:
    if first.shape[:2] != second.shape[:2]:
        raise FadevizError(
            f"{a} is {size_of(first)}, but {b} is {size_of(second)}. Put the file there that belongs to it"
        )


def _read_with(matte: Pixels, files: MatteFiles, path: Path | None) -> Pixels | None:
    """The colours of a file that is as large as its matte; None where there is no such file."""
    if path is None:
        return None
    colours = read_colours(path, hidden=path == files.foreground)
    _check_equal(path, files.alpha, colours, matte)
    return colours


def read_layers(files: MatteFiles, foreground_alone: bool) -> Layers:
    """The layers of a training image; with ``foreground_alone``, without a background."""
    matte = _read_matte(files.alpha)
    if files.trimap is not None:
        # Mattes made by hand waver by 1 where all is foreground; the set's own trimap is more reliable.
        trimap = read_trimap(files.trimap)
        _check_equal(files.trimap, files.alpha, trimap, matte)
        matte[trimap == BACKGROUND], matte[trimap == FOREGROUND] = 0, 255
    foreground, image = _read_with(matte, files, files.foreground), _read_with(matte, files, files.image)
    if image is None:
        assert foreground is not None
        return Layers(foreground, matte, None)
    estimated, background = estimate_layers(image, to_alpha(matte))
    return Layers(estimated if foreground is None else foreground, matte, None if foreground_alone else background)


def read_whole(files: MatteFiles) -> Sample:
    """A test image at its own size, composed if the set does not have it composed.

    Raises:
        FadevizError: if a file cannot be read or has invalid content, sizes differ, or there is no trimap.
    """
    matte = _read_matte(files.alpha)
    if files.trimap is None:
        raise FadevizError(f"{files.alpha} has no trimap: testing needs one. Put {_trimap_place(files)} there")
    trimap = read_trimap(files.trimap)
    _check_equal(files.trimap, files.alpha, trimap, matte)
    background = None
    foreground, image = _read_with(matte, files, files.foreground), _read_with(matte, files, files.image)
    if image is None:
        assert foreground is not None
        assert files.background is not None
        background = _covering(read_colours(files.background), *matte.shape)
        image = composite(foreground, background, to_alpha(matte))
    return to_sample(files.name, image, matte, trimap, foreground, background)


def _covering(image: Pixels, height: int, width: int) -> Pixels:
    """The top left of an image, enlarged where it is smaller than that."""
    ratio = max(height / image.shape[0], width / image.shape[1])
    if ratio > 1:
        size = math.ceil(image.shape[1] * ratio), math.ceil(image.shape[0] * ratio)
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    return np.ascontiguousarray(image[:height, :width])


# --- finding ---


def find_mattes(folder: Path, split_seed: int, backgrounds: str, test_backgrounds: str) -> FolderContents:
    """The files of a folder, by its layout; no file is decoded.

    Args:
        folder: the folder of the data set.
        split_seed: seed of the split, if the set has none of its own.
        backgrounds: folder of images to compose training images with; empty for the layout's own.
        test_backgrounds: folder of images to compose test images of ``composition-1k`` with.

    Raises:
        FadevizError: if the folder does not exist, has an unknown layout, or is empty.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FadevizError(f"data folder {folder} {what}. Give the folder that holds the matting set")
    for root in (folder, folder / "Combined_Dataset"):
        for train, test in (("Training_set", "Test_set"), ("train", "test")):
            if (root / train).is_dir() and (root / test).is_dir():
                return _find_composition(root / train, root / test, backgrounds, test_backgrounds)
    if test_backgrounds:
        raise FadevizError(f"{folder}: its test images are whole, test backgrounds are of no use. Leave them out")
    if (folder / "input").is_dir() and (folder / "gt").is_dir():
        contents = _find_alphamatting(folder)
    elif any(name.endswith("_alpha") for name in list_folder(folder).files):
        contents = _find_images(folder)
    else:
        inside = sorted(path.name + "/" for path in folder.iterdir() if path.is_dir())[:6]
        raise FadevizError(
            f"{folder} is not a matting folder: it has {', '.join(inside) or 'no folders'}, needed is Training_set/ "
            "with Test_set/, train/ with test/, input/ with gt/, or name_alpha.png with name.png. Give the folder that "
            "holds them"
        )
    if backgrounds:
        contents.backgrounds = _background_files(Path(backgrounds), None, contents)
    everything = sorted(contents.train, key=lambda files: _seeded(split_seed, files.name))
    if len(everything) == 1:
        contents.notes.append("a single image: it is trained on and tested on")
        contents.test = everything
    else:
        held_out = {files.name for files in everything[: max(1, round(TEST_SHARE * len(everything)))]}
        contents.test = [files for files in contents.train if files.name in held_out]
        contents.train = [files for files in contents.train if files.name not in held_out]
    for files in contents.test:
        if files.trimap is None:
            contents.problems.append(
                f"{files.alpha} has no trimap: testing needs one. Put {_trimap_place(files)} there"
            )
    return contents


def _trimap_place(files: MatteFiles) -> str:
    """Where the trimap of an image would lie, by the layout of its matte."""
    if files.alpha.parent.name == "gt":
        return f"trimap1/{files.name}.png"
    return f"{files.name}_trimap.png"


def _seeded(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def _images(folder: Path, contents: FolderContents) -> dict[str, Path]:
    """The images of a folder by the stem of their names; empty if the folder does not exist.

    Notes on ignored files and problems are added to ``found``.
    """
    if not folder.is_dir():
        return {}
    listed = list_folder(folder)
    contents.problems += listed.problems
    contents.notes += note_left_out(f"{folder.name}/", listed.left_out)
    return listed.files


def _note_lone(contents: FolderContents, what: str, names: Iterable[str]) -> None:
    """Note files without a counterpart."""
    lone = sorted(names)
    if lone:
        contents.notes.append(f"{what} are ignored: {len(lone)} ({shorten(lone)})")


def _find_alphamatting(folder: Path) -> FolderContents:
    contents = FolderContents("alphamatting", [], [])
    images, mattes = _images(folder / "input", contents), _images(folder / "gt", contents)
    trimaps = _images(folder / "trimap1", contents) or _images(folder / "trimap2", contents)
    for key, image in images.items():
        name = image.stem
        if key in mattes:
            contents.train.append(MatteFiles(name, mattes[key], image, trimap=trimaps.get(key)))
        else:
            contents.problems.append(
                f"{image} has no matte {folder / 'gt' / name}.*. Add the matte, or remove the image"
            )
    if not contents.train and not contents.problems:
        raise FadevizError(f"{folder / 'input'} has no images. Unpack the whole set there")
    _note_lone(contents, "mattes without an image in gt/", mattes.keys() - images.keys())
    return contents


def _find_images(folder: Path) -> FolderContents:
    contents = FolderContents("images", [], [])
    there = _images(folder, contents)
    lone = set(there)
    for alpha in there.values():
        if not alpha.stem.endswith("_alpha"):
            continue
        name = alpha.stem.removesuffix("_alpha")
        key = key_of(name)
        if key in there:
            others = there.get(f"{key}_foreground"), None, there.get(f"{key}_trimap")
            contents.train.append(MatteFiles(name, alpha, there[key], *others))
        else:
            contents.problems.append(f"{alpha} has no image {folder / name}.*. Add the image, or remove the matte")
        lone -= {f"{key}{end}" for end in ("", "_alpha", "_foreground", "_trimap")}
    _note_lone(contents, "files without a matte", lone)
    return contents


def _parts(folder: Path, *needed: str) -> list[Path]:
    """The folder, or those of its folders, that hold all the needed ones."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    return [path for path in (folder, *inside) if all((path / name).is_dir() for name in needed)]


def _find_composition(train: Path, test: Path, backgrounds: str, test_backgrounds: str) -> FolderContents:
    contents = FolderContents("composition-1k", [], [])
    for part in _parts(train, "fg", "alpha"):
        mattes, foregrounds = _images(part / "alpha", contents), _images(part / "fg", contents)
        _note_lone(contents, f"mattes without a foreground in {part.name}/alpha/", mattes.keys() - foregrounds.keys())
        for key, foreground in foregrounds.items():
            name = foreground.stem
            if key in mattes:
                contents.train.append(MatteFiles(name, mattes[key], foreground=foreground))
            else:
                contents.problems.append(
                    f"{foreground} has no matte {part / 'alpha' / name}.*. Add the matte, or remove the foreground"
                )
    if not contents.train and not contents.problems:
        raise FadevizError(f"{train} has no fg/ with alpha/, or nothing in them. Unpack the whole training set there")
    names = train / "training_bg_names.txt"
    contents.backgrounds = _background_files(
        Path(backgrounds or train / "bg"), names if os.path.lexists(names) else None, contents
    )
    if _parts(test, "merged"):
        _find_merged(test, contents)
    else:
        _find_to_compose(test, Path(test_backgrounds or test / "bg"), contents)
    if not contents.test and not contents.problems:
        raise FadevizError(
            f"{test} has no merged/ with trimaps/ and alpha/, nor fg/ with alpha/ and trimaps/. Unpack the test set "
            "there"
        )
    return contents


def _find_merged(test: Path, contents: FolderContents) -> None:
    for part in _parts(test, "merged"):
        mattes = _images(part / "alpha_copy", contents) or _images(part / "alpha", contents)
        trimaps = _images(part / "trimaps", contents)
        for key, image in _images(part / "merged", contents).items():
            name = image.stem
            alpha = mattes.get(key) or mattes.get(re.sub(r"_\d+$", "", key))
            if alpha is None:
                contents.problems.append(f"{image} has no matte in {part}/alpha or alpha_copy. Add it")
            elif key not in trimaps:
                contents.problems.append(
                    f"{image} has no trimap {part / 'trimaps' / name}.*: testing needs one. Add it"
                )
            else:
                contents.test.append(MatteFiles(name, alpha, image, trimap=trimaps[key]))


def _find_to_compose(test: Path, backgrounds: Path, contents: FolderContents) -> None:
    """Test images from the authors' two lists of names: each foreground takes its turn of backgrounds."""
    foregrounds, grounds = (_lines(test / name) for name in ("test_fg_names.txt", "test_bg_names.txt"))
    if not foregrounds or len(grounds) % len(foregrounds):
        raise FadevizError(
            f"{test}: {len(grounds)} lines in test_bg_names.txt cannot be shared by {len(foregrounds)} in "
            "test_fg_names.txt. Put the set's own lists there"
        )
    each = len(grounds) // len(foregrounds)
    held: dict[str, MatteFiles] = {}
    trimaps: dict[str, Path] = {}
    for part in _parts(test, "fg", "alpha"):
        mattes = _images(part / "alpha", contents)
        trimaps |= _images(part / "trimaps", contents)
        for key, path in _images(part / "fg", contents).items():
            if key in held:
                contents.problems.append(f"{path} has the same name as {held[key].foreground}. Remove one of the two")
            elif key in mattes:
                held[key] = MatteFiles(path.stem, mattes[key], foreground=path)
    there = _images(backgrounds, contents)
    if not there:
        raise FadevizError(f"{backgrounds} has no images: test backgrounds are needed. Put them, or a link, there")
    for place, foreground in enumerate(foregrounds):
        files = held.get(key_of(Path(foreground).stem))
        if files is None:
            contents.problems.append(f"{test} has no fg/ and alpha/ of {foreground}. Add both")
            continue
        for number, ground in enumerate(grounds[place * each : (place + 1) * each]):
            name, key = f"{files.name}_{number}", key_of(Path(ground).stem)
            if key not in there:
                contents.problems.append(f"{backgrounds} has no {ground}, which test_bg_names.txt lists. Add it")
            elif key_of(name) not in trimaps:
                contents.problems.append(f"{test} has no trimap {name}.* in trimaps/: testing needs one. Add it")
            else:
                contents.test.append(
                    MatteFiles(name, files.alpha, None, files.foreground, there[key], trimaps[key_of(name)])
                )


def _background_files(folder: Path, names: Path | None, contents: FolderContents) -> list[Path]:
    there = _images(folder, contents)
    if not there:
        raise FadevizError(
            f"{folder} has no images: backgrounds are needed to compose with. Put images without the foregrounds' "
            "kind of object there, such as COCO's training set, or a link to their folder"
        )
    if names is None:
        return list(there.values())
    wanted = sorted({key_of(Path(line).stem) for line in _lines(names)})
    missing = [name for name in wanted if name not in there]
    if missing:
        raise FadevizError(
            f"{folder} lacks {len(missing)} of the {len(wanted)} images that {names.name} lists, such as "
            f"{missing[0]}. Add them, or remove the list to use every image there"
        )
    return [there[name] for name in wanted]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in read_regular(path, _LARGEST_LIST).decode().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise FadevizError(f"{path} cannot be read: {reason}. Put the set's own list there") from error
