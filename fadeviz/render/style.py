"""The look of a figure: its width, font and resolution; and the colours of operators, the same in all figures."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

from ..errors import FadevizError
from .fonts import FAMILY, check_family, main_family

WIDTHS = {"column": 3.3, "page": 6.9}
"""Widths by name in inches: of one column, and of a page with two, as the conferences of computer vision have them."""

_INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72}
_WIDTH = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(in|cm|mm|pt)")
_NARROWEST, _WIDEST = 1.0, 40.0
"""Inches."""
_SIZES = (4.0, 40.0)
"""Smallest and largest font size in points."""
_DPIS = (50, 1200)


class StyleOptions(TypedDict, total=False):
    """The fields of :class:`FigureStyle` as keyword arguments: ``**style: Unpack[StyleOptions]``."""

    width: str | float | None
    font: str | None
    font_size: float | None
    dpi: int | None
    transparent: bool


@dataclass(frozen=True, kw_only=True)
class FigureStyle:
    """How a figure is set.

    Attributes:
        width: width of the figure: a name in :data:`WIDTHS`, a length such as ``85mm``, ``8.5cm``, ``3.3in`` or
            ``240pt``, or a number of inches; None for as much as the content needs.
        font: the font family, installed where matplotlib finds it; None for DejaVu Sans.
        font_size: size of the words at axes and in captions in points, with titles in proportion; None for the
            figure's own.
        dpi: pixels per inch; None for the figure's own.
        transparent: whether the background is left out.

    Raises:
        FadevizError: if a value is out of range, a width cannot be read, or no such font is installed.

    Example:
        >>> round(FigureStyle(width="85mm").inches, 2), FigureStyle(width="column").inches
        (3.35, 3.3)
    """

    width: str | float | None = None
    font: str | None = None
    font_size: float | None = None
    dpi: int | None = None
    transparent: bool = False

    def __post_init__(self) -> None:
        _ = self.inches
        if self.font is not None:
            check_family(self.font)
        if self.font_size is not None and not _SIZES[0] <= self.font_size <= _SIZES[1]:
            raise FadevizError(
                f"font_size={self.font_size}: must be {_SIZES[0]:g} to {_SIZES[1]:g} points, such as font_size=8"
            )
        if self.dpi is not None and not _DPIS[0] <= self.dpi <= _DPIS[1]:
            raise FadevizError(f"dpi={self.dpi}: must be {_DPIS[0]} to {_DPIS[1]} pixels per inch, such as dpi=300")

    @property
    def inches(self) -> float | None:
        """The width in inches; None if the content decides."""
        if self.width is None:
            return None
        text = str(self.width).strip()
        match = _WIDTH.fullmatch(text)
        if text in WIDTHS:
            inches = WIDTHS[text]
        elif match:
            inches = float(match[1]) * _INCHES[match[2]]
        else:
            try:
                inches = float(text)
            except ValueError:
                inches = math.nan
        if not _NARROWEST <= inches <= _WIDEST:
            raise FadevizError(
                f"width={self.width!r}: must be column, page or a length of {_NARROWEST:g} to {_WIDEST:g} inches, such "
                "as 85mm, 8.5cm or 3.3in"
            )
        return inches

    def points(self, own: float, base: float) -> float:
        """A font size in points: ``own``, in proportion to what ``font_size`` makes of the figure's ``base``."""
        return own if self.font_size is None else own * self.font_size / base

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Text that is drawn and measured within has the style's font."""
        with main_family(self.font or FAMILY):
            yield


OUTLINE_COLOR, INTERIOR_COLOR = "#D55E00", "#0072B2"
COLORS = (OUTLINE_COLOR, INTERIOR_COLOR, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
"""Okabe and Ito's palette, which suits any kind of colour vision; brown replaces its yellow, which is too pale here."""

DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))


class Look(NamedTuple):
    """How the lines of an operator are drawn: an RGB colour as ``#RRGGBB``, and a line style of matplotlib."""

    color: str
    dash: Any


OPERATOR_LOOKS = {
    "fade": (0, 0), "fade_lite": (0, 1), "semishift": (0, 2), "encoder_kernel": (0, 3), "decoder_kernel": (5, 3),
    "carafe": (1, 0), "deconv": (1, 1), "pixel_shuffle": (1, 2),
    "indexnet": (2, 0), "freqfusion": (2, 1), "max_unpool": (7, 0),
    "dysample": (3, 0), "lda_aqu": (3, 1),
    "sapa_b": (4, 0), "sapa_i": (4, 1), "sapa_g": (4, 2),
    "a2u": (5, 0),
    "bilinear": (6, 0), "nearest": (6, 1), "bicubic": (6, 2),
}  # fmt: skip
"""Colour and dash of each operator, as indices into :data:`COLORS` and :data:`DASHES`: relatives share a colour."""


def operator_looks(names: Iterable[str]) -> dict[str, Look]:
    """The look of each operator in a figure, which depends on its name alone as far as that is possible.

    An operator of :data:`OPERATOR_LOOKS` has its own. With options, such as ``fade:gate=off``, it has the colour of
    the operator without, unless all of its dashes are taken, and another dash if that one is taken. All others have a
    colour by a checksum of their names, or the next one that is free.

    Args:
        names: names of operators, such as ``fade`` or ``fade:gate=off``; repeated names have one look.

    Example:
        >>> operator_looks(["carafe", "fade"])["carafe"].color
        '#0072B2'
    """
    wanted = list(dict.fromkeys(names))
    places = {name: OPERATOR_LOOKS[name] for name in wanted if name in OPERATOR_LOOKS}
    # Sorted: the order of the runs does not matter.
    for name in sorted(set(wanted) - set(places)):
        places[name] = _free_place(name, set(places.values()))
    return {name: Look(COLORS[places[name][0]], DASHES[places[name][1]]) for name in wanted}


def _free_place(name: str, taken: set[tuple[int, int]]) -> tuple[int, int]:
    first = zlib.crc32(name.encode("utf-8", "replace"))
    relative = OPERATOR_LOOKS.get(re.split(r"[: (]", name, maxsplit=1)[0])
    colors = [(first + shift) % len(COLORS) for shift in range(len(COLORS))]
    order = [(color, dash) for dash in range(len(DASHES)) for color in colors]
    if relative is not None:
        order = [(relative[0], (relative[1] + shift) % len(DASHES)) for shift in range(len(DASHES))] + order
    # With more operators than looks, some look alike.
    return next((place for place in order if place not in taken), order[0])


def operator_color(name: str) -> str:
    """The colour of an operator where it stands alone, ``#RRGGBB``."""
    return operator_looks([name])[name].color


__all__ = [
    *("COLORS", "DASHES", "INTERIOR_COLOR", "OPERATOR_LOOKS", "OUTLINE_COLOR", "WIDTHS"),
    *("FigureStyle", "Look", "StyleOptions", "operator_color", "operator_looks"),
]
