"""Marks on images: the window that is shown enlarged elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .page import Page

WINDOW_COLOUR, _RIM = "#e8112d", "white"
"""Red is not in ``class_palette``; its rim stays visible where an image is red or dark."""

Rectangle = tuple[int, int, int, int]
"""x, y, width and height in pixels."""


def mark_window(
    page: Page, image: Rectangle, window: Sequence[int], size: tuple[int, int], points: Callable[[float], int]
) -> None:
    """The outline of a window on its image: a coloured line with a rim on both sides, none of it beyond the image.

    Args:
        page: the page.
        image: where the image is.
        window: left, top, right and bottom in pixels of the image.
        size: height and width of the image in its pixels.
        points: a size in points as pixels of the page.
    """
    x, y, width, height = image
    line, rim = max(1, points(0.8)), max(1, points(0.4))
    ends = []
    for start, length, begin, end, count in (
        (x, width, window[0], window[2], size[1]),
        (y, height, window[1], window[3], size[0]),
    ):
        low, high = (start + round(length * place / count) for place in (begin, end))
        ends.append((max(start, low - rim), min(start + length, high + rim)))
    (left, right), (top, bottom) = ends
    outer = (left, top, right - left, bottom - top)
    inner = (left + rim, top + rim, outer[2] - 2 * rim, outer[3] - 2 * rim)
    draw_frame(page, outer, 2 * rim + line, _RIM)
    draw_frame(page, inner, line, WINDOW_COLOUR)


def draw_frame(page: Page, box: Rectangle, line: int, colour: str) -> None:
    """A line of whole pixels along the inside of a box."""
    from matplotlib.patches import Rectangle as Patch

    x, y, width, height = box
    line = max(1, min(line, width, height))
    parts = (
        ((x, y), width, line),
        ((x, y + height - line), width, line),
        ((x, y + line), line, height - 2 * line),
        ((x + width - line, y + line), line, height - 2 * line),
    )
    for corner, wide, high in parts:
        if wide > 0 and high > 0:
            page.front.add_patch(Patch(corner, wide, high, facecolor=colour, linewidth=0, antialiased=False))


__all__ = ["WINDOW_COLOUR", "draw_frame", "mark_window"]
