"""Opening picture files whoever made them: decoded whole, or refused in one line."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import FadevizError
from ..files import NoRegularFile, check_regular

MAX_PIXELS = 50_000_000
"""A larger picture is refused before it is decoded: no data set here has one."""

MAX_BYTES = 2**30
"""A larger file is not opened: ``MAX_PIXELS`` of 16 bits a channel, not packed, have less."""


def open_picture(path: Path, draft: tuple[int, int] | None = None) -> Image.Image:
    """The decoded picture, in its own mode; ``draft`` lets a JPEG be decoded smaller, down to that size.

    Raises:
        FadevizError: empty, damaged, cut off, no picture, too large.
    """
    try:
        check_regular(path, MAX_BYTES)
        if path.stat().st_size == 0:
            raise cannot_read(path, "it is empty (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                width, height = opened.size
                if width * height > MAX_PIXELS:
                    raise cannot_read(path, f"{width}x{height} pixels are far more than this set has")
                if draft:
                    opened.draft("L", draft)
                opened.load()
                picture = opened.copy()
                # A copy forgets the file format, by which masks are told apart.
                picture.format = opened.format
                return picture
    except FadevizError:
        raise
    except NoRegularFile as error:
        raise cannot_read(path, str(error)) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise cannot_read(path, "it has far more pixels than this set has") from error
    except UnidentifiedImageError as error:
        raise cannot_read(path, "it is no picture, or its first bytes are damaged") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise cannot_read(path, f"it is damaged or cut off ({' '.join(str(error).split())})") from error


def cannot_read(path: Path, reason: str) -> FadevizError:
    """The error to raise for a file that is no picture, with what to do about it."""
    return FadevizError(f"{path} cannot be read: {reason}. Download it again, or remove it and what belongs to it")


def to_rgb(picture: Image.Image, path: Path) -> Image.Image:
    """The picture in mode RGB.

    Raises:
        FadevizError: more than 8 bits a channel, which would be cut off; a colour mode that nobody knows.
    """
    if picture.mode.startswith(("I", "F")):
        raise FadevizError(f"{path} has 16 bits or more a channel (mode {picture.mode}). Convert it to 8 bits")
    try:
        if picture.mode in ("P", "PA"):
            # Straight to RGB, Pillow would warn of a palette with transparency.
            picture = picture.convert("RGBA")
        return picture.convert("RGB")
    except ValueError as error:
        raise cannot_read(path, f"colour mode {picture.mode} is not known") from error
