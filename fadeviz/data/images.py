"""Listing and opening image files, alike for all readers: an image is read as a viewer shows it, or refused.

Names are compared in composed Unicode and suffixes in either case; orientation tags are applied; palettes are read by
their colours; only regular files are opened. :func:`list_folder` also lists what a folder holds besides images.
"""

from __future__ import annotations

import os
import stat
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import FadevizError, printable
from ..storage.files import NoRegularFile, check_regular

MAX_PIXELS = 50_000_000
"""Images with more pixels are refused before decoding: no data set here has them, and few cameras make them."""

MAX_BYTES = 1 << 29
"""Larger files are refused before they are read: ``MAX_PIXELS`` of 64 bits, uncompressed, and some more."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Suffixes, in lower case, of the files that count as images in a folder."""

GROUND = (255, 255, 255)
"""The background of transparent images: white, as in viewers and browsers."""

# Pillow supports more, some of which start other programs (EPS) or are not used in this field.
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# What Pillow raises for files with nonsense in them; of tags that are numbers elsewhere, almost anything.
_DAMAGED = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(AssertionError, struct.error, zlib.error),
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 274
_PHOTOMETRIC = 262
_LISTED = 3


# --- folders ---


class Listing(NamedTuple):
    """The contents of a folder.

    Attributes:
        files: the images by the stem of their names in composed Unicode, in the order of the names.
        left_out: names of everything else: other suffixes, hidden files, folders.
        problems: a line for each name that two files share, and for each image that is not a regular file.
    """

    files: dict[str, Path]
    left_out: list[str]
    problems: list[str]


def list_folder(folder: Path, suffixes: Collection[str] = SUFFIXES) -> Listing:
    """The images of a folder; nothing is opened.

    Args:
        folder: the folder.
        suffixes: file suffixes in lower case; files match in either case.

    Raises:
        FadevizError: if the folder cannot be listed.
    """
    listing = Listing({}, [], [])
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        raise FadevizError(f"{folder} cannot be listed: {error.strerror or error}. Check its permissions") from error
    for entry in entries:
        path = folder / entry.name
        # os.path, because it treats a symlink loop as missing.
        is_file = entry.is_file(follow_symlinks=False) or os.path.isfile(path)
        is_folder = not is_file and os.path.isdir(path)
        if is_folder or is_hidden(path) or path.suffix.lower() not in suffixes:
            listing.left_out.append(entry.name + "/" * is_folder)
        elif not is_file:
            listing.problems.append(f"{path} is {_kind_of(path)}, not a file. Put the image there, or remove it")
        elif (key := key_of(path.stem)) in listing.files:
            listing.problems.append(f"{path} has the same name as {listing.files[key].name}. Remove one of the two")
        else:
            listing.files[key] = path
    return listing


def key_of(name: str) -> str:
    """The name in composed Unicode, for comparison: NFC and NFD spellings are equal."""
    return unicodedata.normalize("NFC", name)


def is_hidden(path: Path) -> bool:
    """Whether a file is what file managers leave behind: ``.DS_Store``, ``._horse001.jpg``, ``Thumbs.db``."""
    return path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini")


def note_left_out(where: str, names: Collection[str]) -> list[str]:
    """The note on what is ignored in a folder, if anything."""
    if not names:
        return []
    verb = "is not an image" if len(names) == 1 else "are not images"
    return [printable(f"left out of {where}: {len(names)} that {verb} ({shorten(names)})")]


def shorten(names: Iterable[str]) -> str:
    """The first few of some names, for a message."""
    listed = list(names)
    return printable(", ".join(listed[:_LISTED]) + (", ..." if len(listed) > _LISTED else ""))


def _kind_of(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a broken symlink" if path.is_symlink() else "gone"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a device or a socket"


# --- files ---


def open_image(path: Path, draft: tuple[int, int] | None = None) -> Image.Image:
    """The decoded image, in its own mode, turned according to its orientation tag.

    Args:
        path: the file.
        draft: allows a JPEG to be decoded at a lower resolution, at least this size.

    Raises:
        FadevizError: if the file is empty, damaged, truncated, too large, not an image, not a regular file, or has
            more than one frame.
    """
    try:
        check_regular(path, MAX_BYTES)
        if path.stat().st_size == 0:
            raise cannot_read(path, "it is empty (0 bytes)")
        with warnings.catch_warnings():
            # What Pillow remarks on harmless oddities is nothing to stop for; its limit of pixels is.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as opened:
                _check_header(path, opened)
                if draft:
                    opened.draft("L", draft)
                opened.load()
                turn = _TURNS.get(orientation(opened))
                image = opened.copy() if turn is None else opened.transpose(turn)
                # A copy forgets the file format, by which masks are distinguished.
                image.format = opened.format
                return image
    except FadevizError:
        raise
    except NoRegularFile as error:
        raise cannot_read(path, str(error)) from error
    except FileNotFoundError as error:
        raise FadevizError(f"{path} cannot be read: No such file. Put it there, or give another path") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large(path, "its pixels") from error
    except UnidentifiedImageError as error:
        raise cannot_read(path, "it is not an image, or its first bytes are damaged") from error
    except _DAMAGED as error:
        raise cannot_read(path, f"it is damaged or cut off ({' '.join(str(error).split())})") from error


def _check_header(path: Path, opened: Image.Image) -> None:
    """Refuse what is too large to decode, or would not be read as it is shown."""
    width, height = opened.size
    if width * height > MAX_PIXELS:
        raise _too_large(path, f"{width}x{height} pixels")
    # The second image of an MPO is a phone's other view of the same photograph.
    if getattr(opened, "is_animated", False) and opened.format != "MPO":
        raise FadevizError(f"{path} has more than one frame. Save the intended frame as a separate image")
    if opened.mode.startswith(("I", "F")) and getattr(opened, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
        raise FadevizError(f"{path} is a TIFF of 16 bits or more whose 0 is white. Save it with black as 0")


def orientation(opened: Image.Image) -> int:
    """The orientation tag of an image, 1 where there is none or none that can be read."""
    try:
        value = opened.getexif().get(_ORIENTATION, 1)
    except _DAMAGED:
        return 1  # damaged tags do not damage the image
    return value if value in _TURNS else 1


def _too_large(path: Path, pixels: str) -> FadevizError:
    return FadevizError(
        f"{path} cannot be read: {pixels} exceed the limit of {MAX_PIXELS:,}. "
        "Make it smaller, or remove it and what belongs to it"
    )


def cannot_read(path: Path, reason: str) -> FadevizError:
    """The error to raise for a file that is not an image, with what to do about it."""
    return FadevizError(f"{path} cannot be read: {reason}. Download it again, or remove it and what belongs to it")


def is_lossy(image: Image.Image) -> bool:
    """Whether the file that an image was read from is compressed lossily."""
    return image.format in ("JPEG", "MPO", "WEBP") or image.info.get("compression") == "jpeg"


# --- pixels ---


def to_rgb(image: Image.Image, path: Path, *, hidden: bool = False) -> Image.Image:
    """The image in mode RGB; transparent parts are composited over ``GROUND``.

    Args:
        image: an image in any mode.
        path: its file, for messages.
        hidden: take the stored colours instead, even where they are transparent.

    Raises:
        FadevizError: if it has more than 8 bits per channel, which would be truncated, or an unknown colour mode.
    """
    if image.mode.startswith(("I", "F")):
        raise FadevizError(f"{path} has 16 bits or more per channel (mode {image.mode}). Convert it to 8 bits")
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if not hidden and not _is_opaque(image):
                image = Image.alpha_composite(Image.new("RGBA", image.size, (*GROUND, 255)), image)
        return image.convert("RGB")
    except ValueError as error:
        raise cannot_read(path, f"colour mode {image.mode} is not known") from error


def _is_opaque(image: Image.Image) -> bool:
    return image.getchannel("A").getextrema()[0] == 255


def check_opaque(image: Image.Image, path: Path, what: str) -> None:
    """Refuse transparency that changes what a mask, a matte or a trimap shows; only black may be transparent.

    Raises:
        FadevizError: if pixels that are not black are transparent, so that their values are ambiguous.
    """
    if not image.has_transparency_data:
        return
    pixels = np.asarray(image.convert("RGBA"))
    if ((pixels[..., 3] < 255) & (pixels[..., :3].max(axis=2) > 0)).any():
        raise FadevizError(
            f"{path} is a {what} whose transparent parts are not black, which is ambiguous. "
            "Save it without transparency"
        )


def palette_of(image: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The indices ``(H, W)`` of an image with a palette, and the colours ``(256, 3)`` that they stand for."""
    numbers = np.asarray(image)
    table = np.zeros((256, 3), np.uint8)
    colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    table[: len(colours)] = colours
    return numbers if numbers.ndim == 2 else numbers[..., 0], table


# --- properties of files ---


def describe_images(paths: Iterable[Path], what: str, palette: str) -> list[str]:
    """Properties of files that other readers may treat differently: a line each, with a count and the first few names.

    Only headers are read; unreadable files are skipped.

    Args:
        paths: the files.
        what: their name in the plural, for the notes: ``"masks"``.
        palette: how a palette is read: ``"by its colours"``.
    """
    looks: dict[str, Callable[[Image.Image], bool]] = {
        "rotated by their orientation tag": lambda opened: orientation(opened) != 1,
        f"with a palette, read {palette}": lambda opened: opened.mode in ("P", "PA"),
        "with transparency": lambda opened: opened.has_transparency_data,
        "of 16 bits or more": lambda opened: opened.mode.startswith(("I", "F")),
    }
    met: dict[str, list[str]] = {look: [] for look in looks}
    unique = dict.fromkeys(paths)
    for path in unique:
        try:
            check_regular(path, MAX_BYTES)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(path, formats=_FORMATS) as opened:
                    for look, holds in looks.items():
                        if holds(opened):
                            met[look].append(path.name)
        except (*_DAMAGED, Image.DecompressionBombError):
            continue  # reported when the image is read
    return [f"{what} {look}: {len(names)} of {len(unique)} ({shorten(names)})" for look, names in met.items() if names]
