"""Anybody's images and masks as a data set: their classes, one size for all, and which to train and to test on."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImagePalette import ImagePalette

from ...errors import FadevizError, printable
from ...storage.files import check_regular, read_regular
from .. import Sample, Splits
from ..images import MAX_BYTES, cannot_read, open_image, orientation, shorten, to_rgb
from ..pool import Kept
from ..splitting import split_groups
from ..transforms import IGNORED
from .classes import (
    BLACK_AND_WHITE,
    MOST_CLASSES,
    ClassTable,
    Color,
    ColouredMask,
    coloured_text,
    describe_unknown,
    ignored_values,
    is_lossy_file,
    lossy_text,
    number_classes,
    parse_ignore,
    read_classes,
    read_pixels,
    to_classes,
)
from .files import Found, Pair, find_pairs

TRAIN_SHARE = 0.85
"""Share of the images to train on, in a set without parts of its own."""

HASHED_BYTES = 1 << 28
"""A set of at most this many bytes is identified by its files' bytes, a larger one by their names and sizes."""

_MANY_SHADES = 32
_MANY_CLASSES = 64
_BLACK_OR_WHITE = 0.5
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


class MaskOptions(NamedTuple):
    """What the user says about the masks of a folder.

    Attributes:
        masks_dir: their folder; empty to find it.
        palette: the class file, by its path or its path in the folder; ``voc``; empty if there is none.
        classes: the number of classes; 0 to find it.
        ignore: names and values to ignore, separated by commas.
    """

    masks_dir: str = ""
    palette: str = ""
    classes: int = 0
    ignore: str = ""

    def within(self, folder: str | os.PathLike[str]) -> MaskOptions:
        """The same with the path of a class file that lies in the data folder, which may have moved."""
        root = Path(folder).parent if Path(folder).is_file() else Path(folder)
        inside = bool(self.palette) and (root / self.palette).is_file()
        return self._replace(palette=str(root / self.palette)) if inside else self


class FolderImages:
    """Images with masks by index, all warped to one square; made by :func:`load_folder`.

    *Shape*: image ``(size, size, 3)`` uint8, mask ``(size, size)`` uint8 with the labels of the classes and
    ``IGNORED`` (255). Images are scaled linearly (averaged over area where they shrink), masks by the nearest pixel.

    *Cost*: nothing is kept here; an image is decoded whenever it is asked for.
    """

    def __init__(self, pairs: Sequence[Pair], table: ClassTable, size: int, *, two_colours: bool = False) -> None:
        """Not called by hand: use :func:`load_folder`."""
        self._pairs = tuple(pairs)
        self._table = table
        self._two_colours = two_colours
        self.size = size

    def __repr__(self) -> str:
        return f"FolderImages({self.count} images, {self.size}x{self.size})"

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self._pairs)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The files."""
        return self._pairs

    def __getitem__(self, index: int) -> Sample:
        """The image at ``index``.

        Raises:
            FadevizError: if a file cannot be read, the two differ in shape, or the mask has what stands for no class.
            IndexError: if there is no such index; negative indices are not supported.
        """
        if not 0 <= index < len(self._pairs):
            raise IndexError(f"no image {index}: there are {len(self._pairs)}, from 0")
        pair = self._pairs[index]
        image = to_rgb(open_image(pair.image), pair.image)
        pixels = read_pixels(pair.mask, self._table, two_colours=self._two_colours)
        check_sizes(pair, _Shape(image.size, False), _Shape(pixels.values.shape[::-1], False))
        mask, unknown = to_classes(pixels, self._table)
        if unknown.counts:
            raise FadevizError(describe_unknown(pair.mask, unknown, self._table))
        square = self.size, self.size
        return Sample(
            pair.name,
            np.array(image.resize(square, Image.Resampling.BILINEAR), dtype=np.uint8),
            np.array(Image.fromarray(mask).resize(square, Image.Resampling.NEAREST)),
        )


def load_folder(
    folder: str | os.PathLike[str], size: int = 224, split_seed: int = 0, options: MaskOptions | None = None
) -> Splits:
    """The images of a folder split into training and test images, with their entry in ``run.json``.

    Test images are those of ``test``, or of ``val`` if there is no ``test``; of a set that is not split, 15 % by
    ``split_seed``. Files of equal bytes are then on the same side, unless the set is larger than ``HASHED_BYTES``.

    The headers of all files are read beforehand. Masks are only read beforehand if their classes are not known: without
    a class file and a number of classes, or with two classes, which may be 0 and 1 or black and white.

    Args:
        folder: the folder, or a CSV of pairs; see :func:`~fadeviz.data.folder.files.find_pairs`.
        size: side of the squares that images are warped to.
        split_seed: seed of the split.
        options: what is known of the masks; None for nothing.

    Raises:
        FadevizError: if the folder has another layout, images or masks without their other half, lists of images that
            are not there, or classes that cannot be told. Images are read when they are used: damaged ones are reported
            then, or beforehand by :func:`~fadeviz.data.folder.check.examine_folder`.
    """
    options = (options or MaskOptions()).within(folder)
    found = find_pairs(folder, options.masks_dir)
    raise_first(found.problems)
    survey = survey_masks([pair.mask for pair in found.pairs], options)
    raise_first(survey.problems)
    problems, notes = compare_shapes(found.pairs)
    raise_first(problems)
    found.notes += notes
    return build_splits(folder, found, resolve_classes(survey, options), size, split_seed)


def raise_first(problems: Sequence[str]) -> None:
    """Raise the first problem, if there are any, with how many more there are."""
    if problems:
        more = f" (and {len(problems) - 1} more such problems)" if len(problems) > 1 else ""
        raise FadevizError(problems[0] + more)


class _Shape(NamedTuple):
    """The shape of a file's image.

    Attributes:
        size: width and height, as a viewer shows it.
        turned: whether an orientation tag turns or mirrors it.
    """

    size: tuple[int, int]
    turned: bool


def check_sizes(pair: Pair, image: _Shape, mask: _Shape) -> None:
    """Raise if an image and its mask have different shapes.

    One may be smaller than the other: both are warped to the same square.

    Args:
        pair: the files.
        image: the image's shape.
        mask: the mask's.

    Raises:
        FadevizError: if they do; it says whether the orientation tag is the reason.
    """
    (width, height), (columns, rows) = image.size, mask.size
    # To within a pixel of the smaller one, which rounding takes.
    if abs(width * rows - height * columns) <= max(width, height, columns, rows):
        return
    why = "Put the mask there that belongs to the image"
    if image.turned and not mask.turned and image.size[::-1] == mask.size:
        why = (
            "The mask fits the image without its orientation tag: remove the tag, or turn the mask as a viewer "
            "shows the image"
        )
    raise FadevizError(f"{pair.mask} is {columns}x{rows}, but {pair.image} is {width}x{height}. {why}")


def shape_of(path: Path) -> _Shape:
    """The shape of an image, from its header.

    Raises:
        FadevizError: if the file cannot be read.
    """
    try:
        check_regular(path, MAX_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                turn = orientation(opened)
                return _Shape(opened.size[::-1] if turn > 4 else opened.size, turn != 1)
    except Exception:
        open_image(path)  # says in a line what is wrong
        raise cannot_read(path, "its header is damaged") from None


def compare_shapes(pairs: Iterable[Pair]) -> tuple[list[str], list[str]]:
    """Problems and notes on the shapes of images and their masks, a line each. Only headers are read."""
    problems: list[str] = []
    scaled: list[str] = []
    turned: list[str] = []
    for pair in pairs:
        try:
            image, mask = shape_of(pair.image), shape_of(pair.mask)
            check_sizes(pair, image, mask)
        except FadevizError as error:
            problems.append(str(error))
            continue
        if image.size != mask.size:
            scaled.append(f"{pair.image.name} {image.size[0]}x{image.size[1]}, {mask.size[0]}x{mask.size[1]}")
        if image.turned and not mask.turned:
            turned.append(pair.image.name)
    notes = []
    if scaled:
        notes.append(f"masks of another size than their image, but of its shape: {len(scaled)} ({shorten(scaled)})")
    if turned:
        notes.append(
            f"images with an orientation tag, whose masks have none: {len(turned)} ({shorten(turned)}). The masks are "
            "taken to be of the image as a viewer shows it"
        )
    return problems, notes


# --- what the masks hold ---


class MaskSurvey(NamedTuple):
    """What is known of a set of masks before they are read as classes.

    Attributes:
        table: their classes; None if nothing is known of them.
        values: pixels by value, where the masks were read because these have to tell the classes; else None.
        two_colours: masks with a palette have black and white alone in it: they are read by their colours.
        both: some mask has 1 and 255.
        lossy: names of the masks in lossy files, whose compression noise is removed.
        colors: the colours in the palettes of the files, by value; empty if they say nothing.
        problems: faults, a line each.
    """

    table: ClassTable | None
    values: Mapping[int, int] | None
    two_colours: bool
    both: bool
    lossy: tuple[str, ...]
    colors: tuple[Color, ...]
    problems: tuple[str, ...]


class Classes(NamedTuple):
    """The classes of a set of masks.

    Attributes:
        table: what stands for them.
        two_colours: as in :class:`MaskSurvey`.
        notes: how the masks are read, a line each.
    """

    table: ClassTable
    two_colours: bool
    notes: tuple[str, ...]


def survey_masks(paths: Sequence[Path], options: MaskOptions) -> MaskSurvey:
    """Look at the headers of masks, and at their pixels where these have to tell the classes.

    Args:
        paths: the masks.
        options: what is known of them.

    Raises:
        FadevizError: if the class file cannot be read, or ``ignore`` has a name without one.
    """
    if not options.palette:
        ignored_values(options.ignore)  # names are refused before anything is read
    headers = _read_headers(paths)
    faults = list(headers.problems)
    table: ClassTable | None = None
    if options.palette:
        table = read_classes(options.palette, options.ignore, options.classes)
        if table.codes and not table.grey_by_color and headers.grey is not None and headers.coloured is not None:
            faults.append(
                f"{headers.grey} is grey, but {headers.coloured} has colours: a grey mask is read by its values, one "
                "with colours by these. Store all masks alike"
            )
    elif options.classes:
        table = number_classes(options.classes, options.ignore, headers.colors)
    known = table is not None and not (table.unsure and (headers.coloured is None or not table.codes))
    two_colours = headers.two_colours and not known
    if not options.palette and not two_colours:
        faults += [headers.unlike] if headers.unlike else []
        faults += [_OPPOSITE] if options.classes == 2 and headers.colors[:2] == (_WHITE, _BLACK) else []
    if table is not None and known:
        if headers.lossy and not table.black_and_white:
            faults.append(lossy_text(headers.lossy[0]))
        return MaskSurvey(table, None, two_colours, False, _names(headers.lossy), headers.colors, tuple(faults))
    counts: Counter[int] = Counter()
    both, coloured, colours = False, [], Counter[int]()
    for path in paths:
        try:
            here = count_values(read_pixels(path, None, two_colours=two_colours).values)
        except ColouredMask as error:
            coloured.append(path)
            colours.update(error.counts)
        except FadevizError as error:
            faults.append(str(error))
        else:
            counts.update(here)
            both |= 1 in here and 255 in here
    if coloured:
        others = f" (and {len(coloured) - 1} more masks)" if len(coloured) > 1 else ""
        faults.insert(0, coloured_text(f"{coloured[0]}{others}", colours))
    unique = tuple(dict.fromkeys(faults))
    return MaskSurvey(table, counts, two_colours, both, _names(headers.lossy), headers.colors, unique)


_OPPOSITE = (
    "the masks are black and white by a palette whose 0 is white: their values and their colours say opposite things. "
    "Save them in grey, or give palette=FILE with the two colours in the order of the classes"
)


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(path.name for path in paths)


def count_values(values: NDArray[np.integer]) -> dict[int, int]:
    """Pixels by value."""
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=256)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    found, numbers = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), numbers.tolist(), strict=True))


def resolve_classes(survey: MaskSurvey, options: MaskOptions) -> Classes:
    """The classes of a set of masks.

    Raises:
        FadevizError: if the values cannot tell the classes.
    """
    lossy: tuple[str, ...] = ()
    if survey.lossy:
        many = f"{len(survey.lossy)} lossy mask{'s' * (len(survey.lossy) > 1)}"
        lossy = (f"{many} read as black and white, with 128 and more as white ({shorten(survey.lossy)})",)
    named = survey.table
    if survey.values is None:
        assert named is not None
        return Classes(named, survey.two_colours, lossy)
    ignored = parse_ignore(options.ignore)[0]
    held = sorted(survey.values)
    shown = ", ".join(map(str, held[:8])) + ", ..." * (len(held) > 8)
    if not ignored and set(held) <= {0, 255} and 255 in held:
        if 0 not in held:
            raise FadevizError("every mask is all white (255): there is nothing to learn. Give masks with 0 and 255")
        table = BLACK_AND_WHITE
        if named is not None and named.source:
            table = replace(BLACK_AND_WHITE, names=named.names, colors=named.colors, source=named.source)
        note = f"the masks are black and white: 0 is {table.names[0]}, 255 is {table.names[1]}"
        return Classes(table, survey.two_colours, (note, *lossy))
    if survey.lossy:
        raise FadevizError(
            f"{survey.lossy[0]} is lossy and can only be read as black and white, but the masks hold {shown}. Save "
            "masks losslessly, as PNG"
        )
    if not ignored and 255 in held and set(held) <= {0, 1, 255} and 1 in held and not survey.both:
        raise FadevizError(
            "some masks hold 0 and 1, others 0 and 255: 255 may be a class or ignored. Store all masks alike, or say "
            "ignore=255"
        )
    numbers = [value for value in held if value not in (ignored or (255,))]
    shades = _describe_shades(survey.values)
    if shades and (named is None or not named.source):
        raise FadevizError(shades)
    if len(numbers) < 2:
        what = f"only the value {numbers[0]}" if numbers else "no class"
        raise FadevizError(f"the masks hold {what}: there is nothing to learn. Give masks with two classes or more")
    if (named is None or not named.source) and (numbers[0] < 0 or numbers[-1] >= MOST_CLASSES):
        odd = [number for number in numbers if number < 0 or number >= MOST_CLASSES]
        soft = " (many values: soft edges, or mattes?)" * (len(numbers) > _MANY_SHADES)
        others = f"; or ignore={','.join(map(str, odd))}" if not soft and len(numbers) - len(odd) > 1 else ""
        raise FadevizError(
            f"the masks hold {shown}{soft}: classes are 0 to "
            f"{MOST_CLASSES - 1}. Give a class file with the columns name and value: palette=FILE{others}"
        )
    # Values that are ignored are no classes, so that 0 for what is not labelled and 1 to 40 are 40 classes.
    count = len(named.names) if named is not None else numbers[-1] + 1 - sum(0 <= n < numbers[-1] for n in set(ignored))
    if named is None and (2 * len(numbers) < count or len(numbers) > _MANY_CLASSES):
        raise FadevizError(
            f"the masks hold {len(numbers)} values up to {numbers[-1]} ({shown}): these may be shades, or classes some "
            f"of which do not occur. Give classes={count} for the latter, or else a class file: palette=FILE; of black "
            "and white masks with soft edges, save the masks with two values"
        )
    colors = survey.colors
    if count == 2 and colors[:2] == (_WHITE, _BLACK):
        raise FadevizError(_OPPOSITE)
    table = named or number_classes(count, options.ignore, colors)
    gone = [value for value in held if value in (ignored or (255,))]
    note = f"the masks hold {shown}: {count} classes" + f", {', '.join(map(str, gone))} ignored" * bool(gone)
    absent = [str(value) for value, label in table.values.items() if label != IGNORED and value not in numbers]
    if absent:
        note += f"; no pixel of class {', '.join(absent)}"
    return Classes(table, survey.two_colours, (note,))


def _describe_shades(values: Mapping[int, int]) -> str:
    """A line on masks that are black and white with soft edges; empty for others."""
    total, two = sum(values.values()), values.get(0, 0) + values.get(255, 0)
    if len(values) <= _MANY_SHADES or max(values) > 255 or min(values) < 0 or not {0, 255} <= values.keys():
        return ""
    if two < _BLACK_OR_WHITE * total:
        return ""
    return (
        f"{two / total:.1%} of the masks' pixels are black (0) or white (255), and the others {len(values) - 2} shades "
        "of grey: soft edges, which are no classes. Save the masks with two values, as with "
        "PIL.Image.open(path).convert('L').point(lambda value: 255 * (value > 127))"
    )


class _Headers(NamedTuple):
    """What the headers of masks say.

    Attributes:
        grey: the first grey mask.
        coloured: the first one with colours.
        two_colours: there are masks with a palette, each of black and white alone.
        colors: the first palette's colours; empty if they are grey.
        unlike: a line on two palettes that differ; empty if there are none.
        lossy: the masks in lossy files.
        problems: faults, a line each.
    """

    grey: Path | None
    coloured: Path | None
    two_colours: bool
    colors: tuple[Color, ...]
    unlike: str
    lossy: list[Path]
    problems: list[str]


def _read_headers(paths: Iterable[Path]) -> _Headers:
    grey: Path | None = None
    coloured: Path | None = None
    first: tuple[Path, tuple[Color, ...]] | None = None
    two_colours, unlike = True, ""
    lossy: list[Path] = []
    problems: list[str] = []
    for path in paths:
        try:
            mode, colors, noisy = _header(path)
        except FadevizError as error:
            problems.append(str(error))
            continue
        if noisy:
            lossy.append(path)
        if mode in ("1", "L", "LA") or mode.startswith(("I", "F")):
            grey = grey or path
            continue
        coloured = coloured or path
        if mode not in ("P", "PA"):
            continue
        two_colours &= len(colors) > 0 and set(colors) <= {_WHITE, _BLACK}
        if first is None or not first[1]:
            first = path, colors
        elif colors and not unlike:
            differing = [i for i, (a, b) in enumerate(zip(first[1], colors, strict=False)) if a != b]
            if differing:
                number = differing[0]
                unlike = (
                    f"{path} and {first[0]} have different palettes: {number} is {colors[number]} in the one and "
                    f"{first[1][number]} in the other, so their values are no classes. Give the colours: palette=FILE"
                )
    of_file = first[1] if first else ()
    has_colors = any(len(set(color)) > 1 for color in of_file) or of_file[:2] == (_WHITE, _BLACK)
    two_colours &= first is not None
    return _Headers(grey, coloured, two_colours, of_file if has_colors else (), unlike, lossy, problems)


def _header(path: Path) -> tuple[str, tuple[Color, ...], bool]:
    """The mode of an image, the colours of its palette, and whether it is lossy; nothing is decoded."""
    try:
        check_regular(path, MAX_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                mode, noisy, palette = opened.mode, is_lossy_file(opened, path), getattr(opened, "palette", None)
                colors = _colors_of(palette) if mode in ("P", "PA") and palette is not None else ()
                return mode, colors, noisy
    except Exception:
        open_image(path)  # says in a line what is wrong
        raise cannot_read(path, "its header is damaged") from None


def _colors_of(palette: ImagePalette) -> tuple[Color, ...]:
    """The colours of a palette that is not decoded yet; none of a form that no mask has."""
    values = list(palette.palette)
    if palette.mode == "RGB" and palette.rawmode in (None, "RGB"):
        return tuple(zip(values[::3], values[1::3], values[2::3], strict=False))
    third = len(values) // 3
    if palette.rawmode == "RGB;L":  # TIFF
        return tuple(zip(values[:third], values[third : 2 * third], values[2 * third :], strict=False))
    if palette.rawmode == "BGRX":  # BMP
        return tuple(zip(values[2::4], values[1::4], values[::4], strict=False))
    return ()


# --- splits ---


def build_splits(folder: str | os.PathLike[str], found: Found, classes: Classes, size: int, split_seed: int) -> Splits:
    """Training and test images of what was found in a folder, with their entry in ``run.json``.

    Raises:
        FadevizError: if there are fewer than two images, or none to train on.
    """
    table = classes.table
    digests, whole = _digests(found.pairs)
    train, test, notes = _split(found.parts, split_seed, digests if whole else None)
    lines = [
        f"{part} {file.parent.name}/{file.name} {digests[file]}"
        for part, pairs in (("train", train), ("test", test))
        for pair in pairs
        for file in (pair.image, pair.mask)
    ]
    info: dict[str, object] = {
        "name": "folder",
        "folder": str(folder),
        "count": len(train) + len(test),
        "train": len(train),
        "test": len(test),
        "split_seed": split_seed,
        "fingerprint": hashlib.sha256("\n".join([*lines, table.describe()]).encode()).hexdigest(),
        "fingerprint_of": "bytes" if whole else "names and sizes",
        "classes": [printable(name) for name in table.names],
        "ignored": IGNORED,
        "notes": [*found.notes, *classes.notes, *notes],
    }
    if table.colors:
        info["colors"] = [list(color) for color in table.colors]
    images = (FolderImages(part, table, size, two_colours=classes.two_colours) for part in (train, test))
    kept_train, kept_test = map(Kept, images)
    return Splits(kept_train, kept_test, info, len(table.names))


def _digests(pairs: Sequence[Pair]) -> tuple[dict[Path, str], bool]:
    """What identifies each file: a digest of its bytes, or its size; and whether it is the digest."""
    paths = [path for pair in pairs for path in (pair.image, pair.mask)]
    try:
        sizes = {path: path.stat().st_size for path in paths}
        if sum(sizes.values()) > HASHED_BYTES:
            return {path: str(size) for path, size in sizes.items()}, False
        return {path: hashlib.sha256(read_regular(path, MAX_BYTES)).hexdigest() for path in sizes}, True
    except OSError as error:
        raise FadevizError(f"{error.filename} cannot be read: {error.strerror or error}. Put it back") from error


def _split(
    parts: Mapping[str, list[Pair]], seed: int, digests: Mapping[Path, str] | None
) -> tuple[list[Pair], list[Pair], list[str]]:
    """What to train and to test on, with notes."""
    notes = []
    rest = {part: pairs for part, pairs in parts.items() if part and pairs}
    pool = parts.get("") or []
    if rest:
        if "train" not in rest:
            raise FadevizError(
                f"there are images for {' and '.join(rest)}, but none to train on. Add a part named train"
            )
        if "test" in rest or "val" in rest:
            used = "test" if "test" in rest else "val"
            if used == "test" and "val" in rest:
                number = len(rest["val"])
                images = "1 image of val is" if number == 1 else f"{number} images of val are"
                notes.append(f"{images} not used: the run is tested on test")
            trained = {digests[pair.image] for pair in rest["train"]} if digests else set()
            both = [pair.name for pair in rest[used] if digests and digests[pair.image] in trained]
            if both:
                notes.append(f"test images whose files are among those to train on: {len(both)} ({shorten(both)})")
            return rest["train"], rest[used], notes
        pool = rest["train"]
        notes.append("there is no test and no val: 15 % of the training images are tested on instead")
    groups: dict[str, list[int]] = {}
    for index, pair in enumerate(pool):
        groups.setdefault(digests[pair.image] if digests else str(index), []).append(index)
    if len(groups) < 2:
        images = "1 image" if len(pool) == 1 else f"{len(pool)} images, all alike,"
        raise FadevizError(f"{images} cannot be split: at least 2 are needed. Add images")
    copies = [pool[group[1]].name for group in groups.values() if len(group) > 1]
    if copies:
        notes.append(f"copies of other images, on the same side of the split: {len(copies)} ({shorten(copies)})")
    train, test = split_groups(list(groups.values()), [pair.name for pair in pool], TRAIN_SHARE, seed)
    if not train:
        raise FadevizError("no group of copies fits into the training images. Remove copies")
    return [pool[i] for i in train], [pool[i] for i in test], notes


__all__ = [
    "HASHED_BYTES",
    "TRAIN_SHARE",
    "Classes",
    "FolderImages",
    "MaskOptions",
    "MaskSurvey",
    "build_splits",
    "check_sizes",
    "count_values",
    "load_folder",
    "raise_first",
    "resolve_classes",
    "survey_masks",
]
