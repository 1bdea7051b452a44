"""Fonts of figures: DejaVu Sans, other installed fonts for missing characters, and escape codes for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ..errors import printable, unknown_name

FAMILY = "DejaVu Sans"
"""The main font. matplotlib ships it, so text looks the same on every machine."""

_main: ContextVar[str] = ContextVar("main font", default=FAMILY)

_TRIAL = 20
"""Size in pixels at which a character of another font is drawn to see whether it has an outline."""


class Face(NamedTuple):
    """An installed font: its family, as matplotlib calls it, and its file."""

    family: str
    path: str


class Font(ImageFont.FreeTypeFont):
    """The main font at a size in pixels; characters that it lacks are drawn by :func:`spell`'s rules.

    Text without such characters gives exactly the pixels of the font itself.
    """

    def _pieces(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """Split a text into pieces of one font each."""
        size = int(self.size)
        pieces: list[tuple[Face | None, str]] = []
        for letter in spell(text):
            face = _face(letter)
            if pieces and pieces[-1][0] == face:
                pieces[-1] = face, pieces[-1][1] + letter
            else:
                pieces.append((face, letter))
        return [(_plain(str(self.path) if face is None else face.path, size), part) for face, part in pieces]

    def getlength(self, text: str | bytes, *args: Any, **kwargs: Any) -> float:
        """The length of a text in pixels."""
        if not isinstance(text, str) or _has(text):
            return super().getlength(text, *args, **kwargs)
        return sum(face.getlength(part) for face, part in self._pieces(text))

    def getbbox(
        self,
        text: str | bytes | bytearray,
        mode: str = "",
        direction: str | None = None,
        features: list[str] | None = None,
        language: str | None = None,
        stroke_width: float = 0,
        anchor: str | None = None,
    ) -> tuple[float, float, float, float]:
        """The box of a text's ink, from its anchor."""
        if not isinstance(text, str) or _has(text):
            return super().getbbox(text, mode, direction, features, language, stroke_width, anchor)
        mask, (x, y) = self._drawn(text, anchor)
        return x, y, x + mask.size[0], y + mask.size[1]

    def getmask2(
        self,
        text: str | bytes,
        mode: str = "",
        direction: str | None = None,
        features: list[str] | None = None,
        language: str | None = None,
        stroke_width: float = 0,
        anchor: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Any, tuple[int, int]]:
        """The pixels of a text, and their offset from its anchor."""
        if not isinstance(text, str) or _has(text):
            return super().getmask2(text, mode, direction, features, language, stroke_width, anchor, *args, **kwargs)
        mask, corner = self._drawn(text, anchor)
        return mask.im, corner

    def _drawn(self, text: str, anchor: str | None) -> tuple[Image.Image, tuple[int, int]]:
        """Draw the pieces on one line, on the main font's baseline."""
        pieces = self._pieces(text)
        length = self.getlength(text)
        above, below = (max(face.getmetrics()[side] for face, _ in pieces) for side in (0, 1))
        around = math.ceil(self.size)  # a letter may reach beyond its own width
        canvas = Image.new("L", (math.ceil(length) + 2 * around, above + below + 2 * around))
        draw, x = ImageDraw.Draw(canvas), float(around)
        for face, part in pieces:
            draw.text((round(x), around + above), part, 255, face, anchor="ls")
            x += face.getlength(part)
        across, upright = tuple(anchor or "la")
        ascent, descent = self.getmetrics()
        start = {"l": 0, "m": -round(length / 2), "r": -round(length)}[across]
        baseline = {"s": 0, "a": ascent, "m": round((ascent - descent) / 2), "d": -descent}[upright]
        box = canvas.getbbox() or (0, 0, 1, 1)
        return canvas.crop(box), (start + box[0] - around, baseline + box[1] - around - above)


def font(size: int, bold: bool = False) -> Font:
    """The main font at a size in pixels, for figures and animations alike."""
    return _font(_main.get(), size, bold)


@cache
def _font(name: str, size: int, bold: bool) -> Font:
    # The basic layout: the same pixels whether or not Pillow was built with Raqm.
    return Font(str(_files(name)[bold]), size, layout_engine=ImageFont.Layout.BASIC)


def family() -> str:
    """The name of the main font."""
    return _main.get()


@contextmanager
def main_family(name: str) -> Iterator[None]:
    """Within, another font is the main one: of :func:`font`, :func:`spell` and :func:`letters`.

    Raises:
        FadevizError: if it is not installed.
    """
    check_family(name)
    before = _main.set(name)
    try:
        yield
    finally:
        _main.reset(before)


def check_family(name: str) -> None:
    """Raise unless a font family is installed where matplotlib finds it.

    Raises:
        FadevizError: if it is not; the message lists the nearest names.
    """
    if name == FAMILY:
        return
    from matplotlib.font_manager import fontManager

    names = {entry.name for entry in fontManager.ttflist}
    if name not in names:
        raise unknown_name("font", name, names, "fc-list : family")


def spell(text: str) -> str:
    """The text as one drawable line: characters that no installed font has become escape codes.

    Names come from anywhere, and an empty box would not show which name it is.

    Example:
        >>> spell("lr=$10^-3$"), spell("a\\nb"), spell("no letter: \\U0010ffff")
        ('lr=$10^-3$', 'a\\\\nb', 'no letter: \\\\U0010ffff')
    """
    text = printable(text)
    if _has(text):
        return text
    _find_faces(text)
    return "".join(
        letter if ord(letter) in _own() or _faces[letter] else letter.encode("unicode_escape").decode()
        for letter in text
    )


def letters(text: str) -> dict[str, Any]:
    """Properties of a matplotlib ``Text`` that select the right fonts; empty for most texts."""
    if _has(text):
        return {}
    others = [face.family for face in map(_face, spell(text)) if face is not None]
    # Never bold: few fonts have that weight, and matplotlib warns of each that does not.
    return {"family": [family(), *dict.fromkeys(others)], "weight": "normal"} if others else {}


def own_faces() -> tuple[Face, Face]:
    """The main font: regular and bold."""
    regular, bold = _files(family())
    return Face(family(), str(regular)), Face(family(), str(bold))


def other_faces(text: str) -> dict[Face, str]:
    """The other fonts that draw characters of a text which the main font lacks, with these characters."""
    spell(text)
    faces: dict[Face, str] = {}
    for letter in text:
        if not _has(letter) and (face := _face(letter)) is not None:
            faces[face] = faces.get(face, "") + letter
    return faces


@cache
def _files(name: str) -> tuple[Path, Path]:
    """The files of a main font: regular and bold."""
    import matplotlib
    from matplotlib.font_manager import FontProperties, findfont

    if name == FAMILY:
        folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
        return folder / "DejaVuSans.ttf", folder / "DejaVuSans-Bold.ttf"
    regular, bold = (Path(findfont(FontProperties(family=name, weight=weight))) for weight in ("normal", "bold"))
    return regular, bold


def _own() -> frozenset[int]:
    """The characters that the main font has in both regular and bold."""
    return _characters(_main.get())


@cache
def _characters(name: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    regular, bold = (frozenset(FT2Font(str(path)).get_charmap()) for path in _files(name))
    return regular & bold


def _has(text: str) -> bool:
    """Whether the main font has all characters of a text, none of them a control character."""
    return (text.isascii() and text.isprintable()) or (_own().issuperset(map(ord, text)) and printable(text) == text)


@cache
def _plain(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


_faces: dict[str, Face | None] = {}
"""The fonts of characters that the main font lacks; None if no font has them."""


def _face(letter: str) -> Face | None:
    """The font of a character of a spelled text; None for the main font."""
    return None if ord(letter) in _own() else _faces[letter]


def _find_faces(letters: Iterable[str]) -> None:
    """Find the first installed font for each character."""
    missing = {letter for letter in letters if letter not in _faces and ord(letter) not in _own()}
    for face in _others() if missing else ():
        drawn = _drawn_by(face, missing)
        _faces.update(dict.fromkeys(drawn, face))
        missing -= drawn
        if not missing:
            return
    _faces.update(dict.fromkeys(missing, None))


def _others() -> Iterator[Face]:
    """All other fonts that matplotlib finds, upright ones of regular weight first, in a fixed order.

    Where another font than :data:`FAMILY` is the main one, that comes first.
    """
    from matplotlib.font_manager import fontManager

    def order(entry: Any) -> tuple[Any, ...]:
        return entry.style != "normal", entry.weight != 400, "sans" not in entry.name.lower(), entry.name, entry.fname

    if family() != FAMILY:
        yield Face(FAMILY, str(_files(FAMILY)[0]))
    for entry in sorted(fontManager.ttflist, key=order):
        # The last resort font draws every character as a box.
        if entry.name != FAMILY and "lastresort" not in entry.name.lower().replace(" ", ""):
            yield Face(entry.name, str(entry.fname))


def _drawn_by(face: Face, letters: Iterable[str]) -> set[str]:
    """The characters that a font has outlines for; some fonts only have coloured bitmaps."""
    from matplotlib.ft2font import FT2Font

    try:
        opened = FT2Font(face.path)
        mapped = [letter for letter in letters if opened.get_char_index(ord(letter))]
        return {letter for letter in mapped if letter.isspace() or _plain(face.path, _TRIAL).getmask(letter).getbbox()}
    except (OSError, RuntimeError):  # a damaged file, or bitmaps only
        return set()


__all__ = [
    "FAMILY",
    "Face",
    "Font",
    "check_family",
    "family",
    "font",
    "letters",
    "main_family",
    "other_faces",
    "own_faces",
    "spell",
]
