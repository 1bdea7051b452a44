"""The classes of a folder's masks: the file that lists them, and masks read as classes."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import FadevizError, printable
from ...storage.files import read_regular
from ..images import check_opaque, is_lossy, open_image, palette_of, to_rgb
from ..transforms import IGNORED
from .files import NO_TEXT, decode

MOST_CLASSES = 254
"""Labels are 0 to 253 in 8 bits: 254 stands for what is no class while a mask is read, 255 for what is ignored."""

MIDDLE_SHARE = 0.1
"""A lossy black and white mask may have this share of values in 64..191; one with more is not black and white."""

WHITE_16 = 65535
"""White in masks of 16 bits that are black and white: the same as 255 in 8 bits."""

_UNKNOWN = 254
_LARGEST_TABLE = 1 << 20
_SHOWN = 5
_LISTED = 32

Color = tuple[int, int, int]

VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The classes of PASCAL VOC, by their labels."""

VOC_VOID: Color = (224, 224, 192)
"""The colour of the borders in PASCAL VOC's masks, which are ignored."""


@dataclass(frozen=True)
class ClassTable:
    """The classes of a set of masks, and what stands for them in the files.

    Attributes:
        names: the names of the classes, by their labels.
        colors: their colours; empty if none are known.
        values: the label, or ``IGNORED``, of each value of a mask that is read by its values.
        codes: the label, or ``IGNORED``, of each colour, as ``0xRRGGBB``; empty if colours stand for nothing.
        source: the class file, for messages; empty if there is none.
        unsure: the values 0 and 1 stand for two classes by default: where masks have 0 and 255, these do.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    values: Mapping[int, int]
    codes: Mapping[int, int]
    source: str = ""
    unsure: bool = False

    @property
    def black_and_white(self) -> bool:
        """Whether the two classes are black and white."""
        if self.codes:
            return dict(self.codes) in ({0: 0, 0xFFFFFF: 1}, {0: 1, 0xFFFFFF: 0})
        return dict(self.values) == {0: 0, 255: 1}

    @property
    def grey_by_color(self) -> bool:
        """Whether the values of grey masks are colours too, which they are if all colours are grey."""
        return bool(self.codes) and all(code % 0x010101 == 0 for code in self.codes)

    def describe(self) -> str:
        """All that decides how masks are read, as one line: a part of a data set's fingerprint."""
        values = "" if self.grey_by_color else sorted(self.values.items())
        return f"{self.names} {values} {sorted(self.codes.items())}"

    def ignored_values(self) -> list[str]:
        """What is ignored in the masks, as a user would write it."""
        values = [str(value) for value, label in sorted(self.values.items()) if label == IGNORED]
        return [color_text(code) for code, label in self.codes.items() if label == IGNORED] if self.codes else values


# --- the class file ---


class _Row(NamedTuple):
    name: str
    color: Color | None = None
    value: int | None = None


def read_classes(palette: str, ignore: str = "", count: int = 0) -> ClassTable:
    """The classes that a file lists, a line each.

    A line has the form ``R G B name``, VOC's ``name:R,G,B::``, that of a CSV, or it is a name alone. Rows of one name
    are one class. A CSV has the columns ``name,r,g,b`` with or without a header, or by its header
    others: ``value`` is the value of the class in grey masks and in those with a palette, otherwise the row's number.
    Without colours, masks are read by their values.

    Args:
        palette: the file, or ``voc`` for the 21 classes of PASCAL VOC.
        ignore: names and values to ignore, separated by commas; without a value, 255 is ignored.
        count: the expected number of classes, without those that are ignored; 0 takes any.

    Raises:
        FadevizError: if the file cannot be read, has another form, lists a colour or value twice, too few or too many
            classes, or not as many as expected; or if a name to ignore is not in it.
    """
    rows = _voc_rows() if palette == "voc" else _read_rows(Path(palette))
    # Where all colours are grey, the values of grey masks are colours too.
    by_grey = all(row.color is not None and len(set(row.color)) == 1 for row in rows)
    values, ignored = parse_ignore(ignore)
    by_lower = {row.name.lower(): row.name for row in rows}
    if unknown := [name for name in ignored if name.lower() not in by_lower]:
        raise FadevizError(
            f"ignore is {unknown[0]!r}, which is no class of {palette}: it has {_several(list(by_lower.values()))}. "
            "Give one of these, or a value such as ignore=255"
        )
    numbers = [row.color[0] if by_grey and row.color else row.value for row in rows]
    numbers = [place if number is None else number for place, number in enumerate(numbers)]
    # A row is ignored by its name or by its value; a class, if all its rows are.
    without = [
        row.name.lower() in map(str.lower, ignored) or number in values
        for row, number in zip(rows, numbers, strict=True)
    ]
    names = tuple(dict.fromkeys(row.name for row, out in zip(rows, without, strict=True) if not out))
    if not 2 <= len(names) <= MOST_CLASSES:
        raise FadevizError(f"{palette} lists {len(names)} classes to learn; from 2 to {MOST_CLASSES} are possible")
    if count and count != len(names):
        left_out = sorted({row.name for row in rows} - set(names))
        but = f" without {', '.join(left_out)}" if left_out else ""
        raise FadevizError(
            f"classes is {count}, but {palette} lists {len(names)} classes{but}. Leave out classes=..., or correct "
            "the file"
        )
    labels = {name: number for number, name in enumerate(names)}
    by_color: dict[int, int] = {}
    by_value: dict[int, int] = {}
    colors: dict[str, Color] = {}
    for row, out, place in zip(rows, without, range(len(rows)), strict=True):
        label = IGNORED if out else labels[row.name]
        value = place if row.value is None else row.value
        if value in by_value:
            raise FadevizError(f"{palette} lists the value {value} twice. Remove one of the two lines")
        by_value[value] = label
        if row.color is None:
            continue
        if not out:
            colors.setdefault(row.name, row.color)
        if (code := _code(row.color)) in by_color:
            raise FadevizError(f"{palette} lists the colour {color_text(code)} twice. Remove one of the two lines")
        by_color[code] = label
    if palette == "voc":
        by_color[_code(VOC_VOID)] = IGNORED
    by_value |= dict.fromkeys(values, IGNORED)
    if by_grey:
        by_color |= {value * 0x010101: IGNORED for value in values if 0 <= value < 256}
    if not values:
        by_value.setdefault(255, IGNORED)
    table = ClassTable(names, tuple(colors[name] for name in names) if colors else (), by_value, by_color, palette)
    usual = not values and not any(without) and all(row.value is None for row in rows)
    return replace(table, unsure=usual and len(rows) == 2 and not table.grey_by_color)


def number_classes(count: int, ignore: str = "", colors: Sequence[Color] = ()) -> ClassTable:
    """Classes without a file: the values from 0 on that are not ignored, named after them.

    Args:
        count: the number of classes, 2 to 254, without those that are ignored.
        ignore: values to ignore, separated by commas; without one, 255.
        colors: the colours of the values, if any are known.
    """
    values = ignored_values(ignore)
    learned = [value for value in range(count + len(values)) if value not in values][:count]
    by_value = {value: label for label, value in enumerate(learned)} | dict.fromkeys(values or (255,), IGNORED)
    names = tuple(f"class {value}" for value in learned)
    known = tuple(colors[value] for value in learned) if len(colors) > learned[-1] else tuple(colors[:count])
    return ClassTable(names, known, by_value, {}, unsure=count == 2 and not values)


BLACK_AND_WHITE = ClassTable(("background", "foreground"), (), {0: 0, 255: 1}, {})
"""The classes of masks that are black and white: 0 is background, 255 is foreground."""


def parse_ignore(text: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The values and the names in ``ignore``, which are separated by commas."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    numbers = [part for part in parts if re.fullmatch(r"[+-]?\d{1,9}", part)]
    return tuple(map(int, numbers)), tuple(part for part in parts if part not in numbers)


def ignored_values(ignore: str) -> tuple[int, ...]:
    """The values to ignore, where classes have no names.

    Raises:
        FadevizError: if there is a name among them.
    """
    values, names = parse_ignore(ignore)
    if names:
        raise FadevizError(
            f"ignore is {names[0]!r}: classes have names only in a class file. Give palette=FILE too, or a value such "
            "as ignore=255"
        )
    return values


def color_text(code: int) -> str:
    """A colour ``0xRRGGBB`` as ``(R, G, B)``."""
    return f"({code >> 16}, {code >> 8 & 255}, {code & 255})"


def _code(color: Sequence[int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _several(names: Collection[str]) -> str:
    listed = list(names)
    return printable(", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" * (len(listed) > _SHOWN)))


def _voc_rows() -> list[_Row]:
    rows = []
    for number, name in enumerate(VOC_NAMES):
        # The three lowest bits are the highest ones of red, green and blue, the next three the second highest ...
        bits = [sum((number >> (3 * place + channel) & 1) << (7 - place) for place in range(3)) for channel in range(3)]
        rows.append(_Row(name, (bits[0], bits[1], bits[2])))
    return rows


_FORMS = "lines 'R G B name', VOC's 'name:R,G,B::', a CSV of name,r,g,b or name,value, or names alone"
# Perhaps with the class's value before the colour.
_SPACED = re.compile(r"(?:(-?\d+)[ \t]+)?(\d{1,3})[ \t]+(\d{1,3})[ \t]+(\d{1,3})[ \t]+(?!\d+[ \t])(\S.*)")
_NUMBERED = re.compile(r"(-?\d+)[ \t]*[:=;,\t ][ \t]*(?!\d)(\S.*)")
_WITH_NUMBER = re.compile(r"-?\d+(?:[\s:=;,.].*)?|.*[=:;,\t][ \t]*-?\d+|.*(\d+[ ,]+){2}\d+")
_VOC_LINE = re.compile(r"([^:]+):\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*(?::.*)?")
_COLUMNS = {
    "name": ("name", "class", "label", "class_name", "classname", "category"),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
    "value": ("value", "index", "id", "number", "idx", "class_id", "class_index", "class_idx", "label_id", "label_idx"),
}
_IGNORED_NAMES = ("__ignore__", "_ignore_")
"""What annotation tools call the class that masks hold as 255."""


def _read_rows(path: Path) -> list[_Row]:
    """The rows of a class file, in order."""
    try:
        text = decode(read_regular(path, _LARGEST_TABLE))
    except OSError as error:
        reason = error.strerror or "it is not a file"
        raise FadevizError(f"palette {path} cannot be read: {reason}. Give a file with {_FORMS}") from error
    except UnicodeDecodeError as error:
        raise FadevizError(f"palette {path} cannot be read: {NO_TEXT}. Give a file with {_FORMS}") from error
    # The first line of VOC's form, as annotation tools write it, is a comment; a colour such as #00ff00 is none.
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not re.match(r"#(?![0-9a-fA-F]{6}\b)", line)]
    if not lines:
        raise FadevizError(f"palette {path} is empty. Give a file with {_FORMS}")
    for pattern, name, first, value in ((_SPACED, 5, 2, 1), (_VOC_LINE, 1, 2, 0), (_NUMBERED, 2, 0, 1)):
        if pattern.fullmatch(lines[0][1]):
            rows = [_row_of(path, number, line, pattern, name, first, value) for number, line in lines]
            break
    else:
        rows = _csv_rows(path, lines)
    with_color = [row for row in rows if row.color is not None]
    if with_color and len(with_color) < len(rows):
        lacking = next(row.name for row in rows if row.color is None)
        raise FadevizError(f"palette {path} has no colour for {lacking!r}, but for others. Give all, or none")
    return rows


def _row_of(path: Path, number: int, line: str, pattern: re.Pattern[str], name: int, first: int, value: int) -> _Row:
    """The row of a line; ``name``, ``first`` (of a colour) and ``value`` are groups of the pattern, or 0."""
    match = pattern.fullmatch(line)
    if match is None or (pattern is _NUMBERED and _WITH_NUMBER.fullmatch(match[name])):
        raise _bad_line(path, number, line)
    color = _color_of(path, number, line, [match[first + i] for i in range(3)]) if first else None
    return _Row(match[name].strip(), color, int(match[value]) if value and match[value] else None)


def _color_of(path: Path, number: int, line: str, texts: Sequence[str]) -> Color:
    if not all(re.fullmatch(r"\d{1,3}", text) and int(text) < 256 for text in texts):
        raise _bad_line(path, number, line)
    red, green, blue = map(int, texts)
    return red, green, blue


def _bad_line(path: Path, number: int, line: str) -> FadevizError:
    return FadevizError(
        f"palette {path} has in line {number} {line[:60]!r}, which does not fit the other lines, or has a colour "
        f"outside 0-255. Give {_FORMS}"
    )


def _csv_rows(path: Path, lines: Sequence[tuple[int, str]]) -> list[_Row]:
    delimiter = next((mark for mark in ("\t", ";", ",") if mark in lines[0][1]), "")
    if not delimiter and lines[0][1].lower() not in _COLUMNS["name"]:
        return _names_alone(path, lines)
    try:
        reader = csv.reader([line for _, line in lines], delimiter=delimiter or ",")
        cells = [[cell.strip() for cell in row] for row in reader]
    except csv.Error as error:
        raise FadevizError(f"palette {path} is no CSV: {error}. Give a file with {_FORMS}") from error
    header = [cell.lower() for cell in cells[0]]
    columns = {name: header.index(word) for name, words in _COLUMNS.items() for word in words if word in header}
    if "name" in columns and len(cells) > 1 and (len(header) > 1 or header[0] in ("name", "class_name", "classname")):
        cells, lines = cells[1:], lines[1:]
        lacking = [name for name in "rgb" if name not in columns]
        if lacking and len(lacking) < 3:
            raise FadevizError(f"palette {path} lacks the column {lacking[0]}. Give {_FORMS}")
        if len(header) == 1:
            return _names_alone(path, lines)
        if lacking and "value" not in columns:
            _check_other_columns(path, header, cells, columns["name"])
    elif len(header) == 1:
        return _names_alone(path, lines)
    elif len(header) == 2 and _is_whole(header[1]) and not _is_whole(header[0]):
        columns = {"name": 0, "value": 1}
    elif len(header) == 4 and all(cell.isdigit() for cell in header[:3]) and not header[3].isdigit():
        columns = {"r": 0, "g": 1, "b": 2, "name": 3}
    elif len(header) == 4 and all(cell.isdigit() for cell in header[1:]):
        columns = {"name": 0, "r": 1, "g": 2, "b": 3}
    else:
        raise _bad_line(path, *lines[0])
    rows = []
    for (number, line), row in zip(lines, cells, strict=True):
        if max(columns.values()) >= len(row) or not row[columns["name"]]:
            raise _bad_line(path, number, line)
        color = _color_of(path, number, line, [row[columns[c]] for c in "rgb"]) if "r" in columns else None
        value = row[columns["value"]] if "value" in columns else None
        if value is not None and not _is_whole(value):
            raise _bad_line(path, number, line)
        rows.append(_Row(row[columns["name"]], color, None if value is None else int(value)))
    return rows


def _names_alone(path: Path, lines: Sequence[tuple[int, str]]) -> list[_Row]:
    """A name a line, of the values 0, 1, 2 ...; a line with numbers is more than a name."""
    rows: list[_Row] = []
    for number, line in lines:
        name = line.rstrip(":").strip('"')
        if not name or _WITH_NUMBER.fullmatch(name) or name.startswith("#"):
            raise _bad_line(path, number, line)
        if name in _IGNORED_NAMES:
            continue
        rows.append(_Row(name))
    return rows


def _check_other_columns(path: Path, header: Sequence[str], cells: Sequence[Sequence[str]], name: int) -> None:
    """Raise if a column may hold the classes' values or colours, but has another name."""
    for place, title in enumerate(header):
        column = [row[place] for row in cells if place < len(row)]
        if place == name or not column:
            continue
        if title in ("color", "colour", "rgb", "hex") or any(cell.startswith("#") for cell in column):
            raise FadevizError(f"palette {path} has colours in the column {title!r}. Give them in three: r, g and b")
        if all(map(_is_whole, column)) and len(set(column)) == len(column):
            raise FadevizError(
                f"palette {path} has whole numbers in the column {title!r}. Call it value if masks hold them, or "
                "remove it: then the rows stand for 0, 1, 2 ..."
            )


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d{1,9}", text) is not None


# --- masks ---


class MaskPixels(NamedTuple):
    """The pixels of a mask file, before they are classes.

    Attributes:
        values: ``(H, W)`` integers: values, or colours as ``0xRRGGBB``.
        are_colors: whether they are colours.
        lossy: whether compression noise was removed.
    """

    values: NDArray[np.integer]
    are_colors: bool
    lossy: bool = False


def read_pixels(path: Path, table: ClassTable | None, *, two_colours: bool = False) -> MaskPixels:
    """Read a mask file.

    Args:
        path: the file.
        table: the classes; None while they are not known yet, which takes lossy masks as black and white ones.
        two_colours: read masks with a palette, which has black and white alone, by their colours: as 0 and 255.

    Raises:
        FadevizError: if the file cannot be read, has colours without a class file, has fractions, or is lossy though
            it is not black and white.
    """
    image = open_image(path)
    check_opaque(image, path, "mask")
    by_color = table is not None and bool(table.codes)
    grey_by_color = table is not None and table.grey_by_color
    if is_lossy_file(image, path):
        if table is not None and not table.black_and_white:
            raise FadevizError(lossy_text(path))
        levels = _threshold(image, path)
        return MaskPixels(levels * np.uint32(0x010101) if by_color else levels, by_color, True)
    if image.mode in ("P", "PA"):
        numbers, colours = palette_of(image)
        if by_color:
            return MaskPixels(_codes(colours)[numbers], True)
        return MaskPixels(colours[:, 0][numbers] if two_colours else numbers, False)
    if image.mode == "1":
        bits = np.asarray(image).astype(np.uint8)
        if grey_by_color:
            return MaskPixels(bits * np.uint32(0xFFFFFF), True)
        # A viewer shows 0 and 255. Beside masks with numbered classes they are 0 and 1.
        numbered = table is not None and not table.black_and_white
        return MaskPixels(bits if numbered else bits * np.uint8(255), False)
    if image.mode in ("L", "LA") or image.mode.startswith(("I", "F")):
        values = _grey_values(image, path)
        wide = values.max(initial=0) == WHITE_16 and (table is None or WHITE_16 not in table.values)
        if wide and np.isin(values, (0, WHITE_16)).all():
            values = np.where(values == 0, 0, 255).astype(np.uint8)
        return MaskPixels(values * np.uint32(0x010101), True) if grey_by_color else MaskPixels(values, False)
    rgb = np.asarray(to_rgb(image, path, hidden=True))
    if by_color:
        return MaskPixels(_codes(rgb), True)
    if not ((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all()):
        raise ColouredMask(path, _codes(rgb))
    return MaskPixels(np.ascontiguousarray(rgb[..., 0]), False)


class ColouredMask(FadevizError):
    """A mask has colours, and there is no class file.

    Attributes:
        counts: pixels by colour.
    """

    def __init__(self, path: Path, codes: NDArray[np.uint32]) -> None:
        """``codes`` are the mask's pixels."""
        found, counts = np.unique(codes, return_counts=True)
        self.counts = dict(zip(found.tolist(), counts.tolist(), strict=True))
        super().__init__(coloured_text(str(path), self.counts))


def coloured_text(what: str, counts: Mapping[int, int]) -> str:
    """The line on masks with colours of unknown meaning."""
    ordered = sorted(counts, key=lambda code: -counts[code])
    total = sum(counts.values())
    shown = ", ".join(f"{color_text(code)} {counts[code] / total:.1%}" for code in ordered[:_LISTED])
    return (
        f"{what} has colours, and which class each stands for is not known: {shown}"
        + f" and {len(ordered) - _LISTED} more" * (len(ordered) > _LISTED)
        + ". Give palette=FILE, with a line 'R G B name' for each, or palette=voc"
    )


def _grey_values(image: Image.Image, path: Path) -> NDArray[np.integer]:
    values: NDArray[np.number] = np.asarray(image.getchannel("L") if image.mode == "LA" else image)
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all() or not np.array_equal(values, np.trunc(values)):
            raise FadevizError(f"{path} has values that are no whole numbers. Save the mask with the classes as 8 bits")
        return np.clip(values, -(2**31), 2**31 - 1).astype(np.int64)
    return np.asarray(values, np.uint8 if values.dtype == np.uint8 else np.int64)


def lossy_text(path: Path) -> str:
    """The line on a mask whose file cannot hold classes."""
    return (
        f"{path} is compressed lossily, which keeps no classes: only black and white masks are read from such a file. "
        "Save the mask losslessly, as PNG"
    )


def is_lossy_file(image: Image.Image, path: Path) -> bool:
    """Whether a file is compressed lossily; a WebP may be either."""
    if image.format == "WEBP":
        with path.open("rb") as file:
            return b"VP8L" not in file.read(64)
    return is_lossy(image)


def _threshold(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    grey = np.asarray(to_rgb(image, path, hidden=True).convert("L"))
    middle = float(np.mean((grey >= 64) & (grey <= 191)))
    # One whose every value is dark may as well hold the classes 0, 1, 2; one that is all black has no noise.
    dark = 0 < grey.max(initial=0) < 192
    if middle > MIDDLE_SHARE or dark:
        what = f"{middle:.0%} of its values are in 64-191" if middle > MIDDLE_SHARE else "it has no white"
        raise FadevizError(
            f"{path} is compressed lossily, which keeps no classes, and it is not black and white either: {what}. Save "
            "the mask losslessly, as PNG"
        )
    return np.where(grey > 127, 255, 0).astype(np.uint8)


def _codes(rgb: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Colours ``(..., 3)`` as ``0xRRGGBB``."""
    red, green, blue = (rgb[..., channel].astype(np.uint32) for channel in range(3))
    return np.asarray(red << 16 | green << 8 | blue, np.uint32)


class Unknown(NamedTuple):
    """What is in a mask and stands for no class.

    Attributes:
        are_colors: whether they are colours.
        counts: pixels by value or colour, the most frequent first.
    """

    are_colors: bool
    counts: dict[int, int]


def to_classes(pixels: MaskPixels, table: ClassTable) -> tuple[NDArray[np.uint8], Unknown]:
    """The labels of a mask's pixels, and what stands for none."""
    known = table.codes if pixels.are_colors else table.values
    values = pixels.values
    if values.dtype == np.uint8:
        labels = np.full(256, _UNKNOWN, np.uint8)
        for value, label in known.items():
            if 0 <= value < 256:
                labels[value] = label
        mask = labels[values]
    else:
        keys = np.array(sorted(known), np.int64)
        labels = np.array([known[key] for key in keys.tolist()], np.uint8)
        at = np.searchsorted(keys, values).clip(max=len(keys) - 1)
        mask = np.where(keys[at] == values, labels[at], np.uint8(_UNKNOWN))
    if not (wrong := mask == _UNKNOWN).any():
        return mask, Unknown(pixels.are_colors, {})
    odd, counts = np.unique(np.asarray(values[wrong], np.int64), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return mask, Unknown(pixels.are_colors, dict(zip(odd[order].tolist(), counts[order].tolist(), strict=True)))


def describe_unknown(path: Path, unknown: Unknown, table: ClassTable) -> str:
    """The line on a mask with values or colours that stand for no class."""
    total, kinds = sum(unknown.counts.values()), len(unknown.counts)
    what = "colour" if unknown.are_colors else "value"
    shown = [
        f"{color_text(value) if unknown.are_colors else value} in {count:,}"
        for value, count in list(unknown.counts.items())[:_SHOWN]
    ]
    listed = ", ".join(shown) + ", ..." * (kinds > _SHOWN)
    head = f"{path} has {total:,} pixel{'s' * (total != 1)} of {kinds} {what}{'s' * (kinds != 1)}"
    if unknown.are_colors:
        soft = " (many colours: soft edges, or a lossy copy?)" if kinds > 32 else ""
        return f"{head} that {table.source} does not have: {listed}{soft}. Add them there, or correct the mask"
    ignored = table.ignored_values()
    known = [value for value, label in table.values.items() if label != IGNORED]
    be = f"classes are {_ranges(known)}" + f", and {', '.join(ignored)} is ignored" * bool(ignored)
    largest = max(unknown.counts)
    if table.source or largest >= MOST_CLASSES or min(unknown.counts) < 0:
        remedy = f"Correct the mask, or ignore={','.join(map(str, [*unknown.counts][:_SHOWN]))}"
    else:
        remedy = f"Use classes={largest + 1}, or correct the mask"
    soft = " (soft edges, or a lossy copy?)" if kinds > 32 else ""
    return f"{head} that are no class: {listed}{soft}; {be}. {remedy}"


def _ranges(values: Collection[int]) -> str:
    listed = sorted(values)
    if listed == list(range(listed[0], listed[-1] + 1)):
        return f"{listed[0]}-{listed[-1]}"
    return _several([str(value) for value in listed])


__all__ = [
    "BLACK_AND_WHITE",
    "MOST_CLASSES",
    "VOC_NAMES",
    "ClassTable",
    "ColouredMask",
    "MaskPixels",
    "Unknown",
    "color_text",
    "coloured_text",
    "describe_unknown",
    "ignored_values",
    "is_lossy_file",
    "lossy_text",
    "number_classes",
    "parse_ignore",
    "read_classes",
    "read_pixels",
    "to_classes",
]
