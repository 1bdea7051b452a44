"""Legends: which colour stands for which class, in lines below a figure or as a figure of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import printable
from .fonts import font
from .labels import shorten
from .page import STYLE, Page, new_figure, save_figure

Legend = Sequence[tuple[str, Sequence[int]]]
"""Classes with their colours, ``(R, G, B)`` from 0 to 255."""

PlacedLegend = list[tuple[int, int, str, tuple[float, ...]]]
"""The ``(x, y)`` of each class's square in pixels, its name and its colour, from 0 to 1."""

TEXT = 6.0
"""Font size of the names in points."""
_SQUARE, _GAP, _APART, _LINE, _LONGEST = 5.6, 2.2, 7.0, 8.4, 130.0
"""Points: the side of a square, its distance to the name, that of two classes, of two lines; the widest name."""
_DPI, _WIDTH = 300, 238
"""Of a legend that is a figure of its own: pixels per inch, and the width in points."""


def place_legend(
    legend: Legend, left: int, right: int, top: int, points: Callable[[float], int]
) -> tuple[PlacedLegend, int]:
    """Lay out a legend in as many lines as it needs.

    Args:
        legend: the classes.
        left, right, top: the space that it may take, in pixels.
        points: a size in points as pixels.

    Returns:
        Where each class stands; and the bottom of the last line.
    """
    square, gap = points(_SQUARE), points(_GAP)
    size = max(1, points(TEXT))
    widest = min(right - left - square - gap, points(_LONGEST))
    placed: PlacedLegend = []
    x = left
    for name, colour in legend:
        text = shorten(printable(name), size, widest)
        width = square + gap + math.ceil(font(size).getlength(text))
        if x > left and x + width > right:
            x, top = left, top + points(_LINE)
        placed.append((x, top, text, tuple(int(part) / 255 for part in colour)))
        x += width + points(_APART)
    return placed, top + square


def draw_legend(page: Page, placed: PlacedLegend, points: Callable[[float], int], size: float = TEXT) -> None:
    """Draw the squares and names that :func:`place_legend` placed, with names of ``size`` points."""
    from matplotlib.patches import Rectangle

    side = points(_SQUARE)
    for x, y, text, colour in placed:
        page.front.add_patch(Rectangle((x, y), side, side, facecolor=colour, edgecolor="0.4", linewidth=0.35))
        page.text(x + side + points(_GAP), y + side / 2, text, size, va="center_baseline")


def write_legend(legend: Legend, output: Path) -> None:
    """Write a legend as a figure of its own: .png, .pdf or .svg, by the file's ending.

    Raises:
        FadevizError: if it cannot be written.
    """
    from matplotlib import rc_context

    def points(size: float) -> int:
        return round(size * _DPI / 72)

    margin, width = points(5), points(_WIDTH)
    placed, bottom = place_legend(legend, margin, width - margin, margin, points)
    height = bottom + margin
    with rc_context(STYLE):
        figure = new_figure(width, height, _DPI)
        draw_legend(Page(figure, width, height, exact=True), placed, points)
    save_figure(figure, output, _DPI)


__all__ = ["TEXT", "Legend", "PlacedLegend", "draw_legend", "place_legend", "write_legend"]
