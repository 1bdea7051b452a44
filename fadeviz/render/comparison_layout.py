"""The layout of a comparison: where its images, enlargements, scores and words lie, in whole pixels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError, printable
from .fonts import font
from .labels import shorten, wrap
from .legend import TEXT, Legend, PlacedLegend, place_legend
from .page import MAX_PIXELS
from .style import FigureStyle
from .zoom import Box

_DPI = 300
_NARROW, _WIDE = 238, 500
"""Widths in points of a figure over one column of a paper, and over both."""
_CELL, _LEAST_CELL = 88, 40
"""Widths of a cell in points: for a square image where there is room, and the smallest."""
_LEAST_PIXELS = 32
_HEADINGS = (7.0, 6.4, 5.8)
"""Font sizes of the column headings in points: the first one with the fewest cuts and lines is taken."""
_SCORE, _BREAK_SCORE = 6.4, 5.6
"""Font sizes of the scores in points: the largest, and the one below which they are broken into lines."""
LEAST_TEXT = 5.0
"""Smallest font size in points that can be read in print."""
_TITLE = 8.0
"""Font size of the title in points."""
_LEAST_PRINTED = 24
"""Width of the smallest cell in points where the width of the figure is given."""
NAME = 5.8
"""Font size of the rows' names in points; the caption's is that of the legend."""
LINE = 1.16
"""Distance between lines of headings and scores, in font sizes."""
_MARGIN, _GUTTER, _INNER, _BETWEEN = 3.0, 2.5, 1.6, 4.0
"""Points around everything, between columns, between an image and its enlargement, between rows."""

Rectangle = tuple[int, int, int, int]
"""x, y, width and height in pixels."""


@dataclass(frozen=True)
class Row:
    """One image of a comparison and the result of each run, all ``(H, W)`` in greys or ``(H, W, 3)``, uint8.

    Attributes:
        name: name of the image; empty for none.
        image: ``(H, W, 3)``.
        truth: ground truth; None if it is not known.
        results: one per run, ready to show.
        scores: short texts under the results, such as ``"mIoU 0.912"``, one per run; or none at all. Where columns are
            narrow, a text is broken into lines at double spaces.
        best: index of the result whose score is set in bold.
        trimap: trimap, for matting.
        box: window that is enlarged beneath each image; None for no enlargement.
        smooth: whether truth and results are alphas, enlarged smoothly; the pixels of classes stay visible.
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    results: tuple[NDArray[np.uint8], ...]
    scores: tuple[str, ...] = ()
    best: int | None = None
    trimap: NDArray[np.uint8] | None = None
    box: Box | None = None
    smooth: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.image.shape[0]), int(self.image.shape[1])


@dataclass(frozen=True)
class _Columns:
    """The columns of a comparison, in pixels."""

    dpi: int
    cell: int
    margin: int
    lefts: list[int]
    width: int
    ratio: float

    def points(self, size: float) -> int:
        return round(size * self.dpi / 72)

    def text(self, size: float) -> float:
        """A font size in points, as the style wants it and large enough to be read."""
        return max(LEAST_TEXT, size * self.ratio)


@dataclass(frozen=True)
class ComparisonLayout:
    """Where everything of a comparison is, in pixels from the upper left corner.

    Attributes:
        width: width of the figure.
        height: height of the figure.
        dpi: pixels per inch; the physical size does not depend on ``cell``.
        cell: width of a column.
        lefts: left side of each column.
        headings: the lines above each column, and the bottom of the last line.
        heading_size: font size of the headings in points.
        images: ``(row, column) -> (x, y, width, height)``; only of images that exist.
        crops: ``(row, column) -> (x, y, width, height)`` of the enlargements.
        score_places: ``(row, run) -> (x, y)``, middle of the upper side of the score.
        scores: the lines under each row's and run's result.
        score_size: font size of the scores in points.
        names: x and y of the middle of each row's name, and its text, which is read upwards.
        name_size: font size of the names in points.
        legend: where each class stands.
        title: the title, its top and its font size in points; empty for none.
        caption: the lines below, and the top of the first.
        text_size: font size of legend and caption in points.
    """

    width: int
    height: int
    dpi: int
    cell: int
    lefts: list[int]
    headings: tuple[list[list[str]], int]
    heading_size: float
    images: dict[tuple[int, int], Rectangle]
    crops: dict[tuple[int, int], Rectangle]
    score_places: dict[tuple[int, int], tuple[int, int]]
    scores: list[list[list[str]]]
    score_size: float
    names: list[tuple[int, int, str]]
    name_size: float
    legend: PlacedLegend
    title: tuple[str, int, float]
    caption: tuple[list[str], int]
    text_size: float

    def points(self, size: float) -> int:
        """A size in points as pixels."""
        return round(size * self.dpi / 72)


def layout_comparison(
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    cell: int | None = None,
    caption: Sequence[str] = (),
    legend: Legend = (),
    title: str = "",
    style: FigureStyle = FigureStyle(),
) -> ComparisonLayout:
    """Where a comparison puts its images and words.

    Raises:
        FadevizError: if there is nothing to draw, rows do not match the columns, columns do not fit in the width, or
            the figure has too many pixels.
    """
    _check(rows, columns, cell)
    titles = _titles(rows, columns)
    grid = _columns(rows, len(titles), cell, style)
    heading_size, headings = _headings(titles, grid)
    top = grid.margin
    if title:
        top += grid.points(grid.text(_TITLE) * 1.6)
    top += max(map(len, headings)) * grid.points(heading_size * LINE) + grid.points(max(1.6, 0.23 * heading_size))
    heading_bottom = top - grid.points(max(1.8, 0.26 * heading_size))
    scores, score_size = _score_lines(rows, grid)
    images: dict[tuple[int, int], Rectangle] = {}
    crops: dict[tuple[int, int], Rectangle] = {}
    score_places: dict[tuple[int, int], tuple[int, int]] = {}
    names = []
    for index, row in enumerate(rows):
        filled = [column for column, pixels in enumerate(row_contents(row, rows)) if pixels is not None]
        above, tall = top, max(1, round(grid.cell * row.size[0] / row.size[1]))
        images |= {(index, column): (grid.lefts[column], top, grid.cell, tall) for column in filled}
        top += tall
        if row.box is not None:
            top += max(3, grid.points(_INNER))
            crops |= {(index, column): (grid.lefts[column], top, grid.cell, grid.cell) for column in filled}
            top += grid.cell
        if row.name:
            text = shorten(printable(row.name), max(1, grid.points(grid.text(NAME))), top - above)
            names.append((grid.margin + grid.points(grid.text(NAME) / 2), (above + top) // 2, text))
        if row.scores:
            run_lefts = grid.lefts[len(titles) - len(columns) :]
            middles = [left + grid.cell // 2 for left in run_lefts]
            score_places |= {(index, run): (x, top + grid.points(1.5)) for run, x in enumerate(middles)}
            top += max(map(len, scores[index])) * grid.points(score_size * LINE) + grid.points(1.5)
        top += max(3, grid.points(_BETWEEN))
        _check_pixels(grid.width, top)
    top -= max(3, grid.points(_BETWEEN))
    legend_places: PlacedLegend = []
    if legend:
        right = grid.width - grid.margin
        legend_places, top = place_legend(
            legend, grid.lefts[0], right, top + grid.points(4), lambda size: grid.points(size * grid.text(TEXT) / TEXT)
        )
    lines = _caption_lines(caption, max(1, grid.points(grid.text(TEXT))), grid.width - grid.lefts[0] - grid.margin)
    top += grid.points(4.5) if lines else 0
    return ComparisonLayout(
        width=grid.width,
        height=top + len(lines) * grid.points(grid.text(TEXT) + 1.6) + grid.margin,
        dpi=grid.dpi,
        cell=grid.cell,
        lefts=grid.lefts,
        headings=(headings, heading_bottom),
        heading_size=heading_size,
        images=images,
        crops=crops,
        score_places=score_places,
        scores=scores,
        score_size=score_size,
        names=names,
        name_size=grid.text(NAME),
        legend=legend_places,
        title=(title, grid.margin, grid.text(_TITLE)),
        caption=(lines, top),
        text_size=grid.text(TEXT),
    )


def _caption_lines(sentences: Sequence[str], size: int, width: int) -> list[str]:
    """The first sentence, and in two lines as many of the others as fit; the first ones are needed most."""
    text = " ".join(sentences[:1])
    for sentence in sentences[1:]:
        longer = f"{text} {sentence}"
        if len(wrap(longer, size, width)) <= 2:
            text = longer
    lines = wrap(text, size, width)
    return lines if len(lines) <= 2 else [lines[0], shorten(" ".join(lines[1:]), size, width)]


def _check(rows: Sequence[Row], columns: Sequence[str], cell: int | None) -> None:
    if not rows:
        raise FadevizError("no image to draw. A comparison needs at least one row")
    if not columns:
        raise FadevizError("no run to draw. A comparison needs at least one column")
    if cell is not None and cell < _LEAST_PIXELS:
        raise FadevizError(f"cell={cell}: must be at least {_LEAST_PIXELS} pixels, or nothing is visible")
    for row in rows:
        _check_row(row, columns)


def _check_row(row: Row, columns: Sequence[str]) -> None:
    name = f"image {row.name!r}"
    if len(row.results) != len(columns):
        raise FadevizError(f"{name} has {len(row.results)} results for {len(columns)} columns. Give one for each")
    if row.scores and len(row.scores) != len(columns):
        raise FadevizError(f"{name} has {len(row.scores)} scores for {len(columns)} columns. Give one for each")
    if row.best is not None and not 0 <= row.best < len(row.scores):
        raise FadevizError(f"{name}: best={row.best}, but there are {len(row.scores)} scores")
    parts = {"image": row.image, "truth": row.truth, "trimap": row.trimap}
    parts |= {f"result of {title}": result for title, result in zip(columns, row.results, strict=True)}
    height, width = row.image.shape[:2] if row.image.ndim >= 2 else (0, 0)
    for part, pixels in parts.items():
        shapes = [(height, width, 3)] if part == "image" else [(height, width), (height, width, 3)]
        if pixels is None or (pixels.dtype == np.uint8 and pixels.shape in shapes and pixels.size):
            continue
        raise FadevizError(
            f"{name}: its {part} is {pixels.shape} {pixels.dtype}, "
            f"needed is {' or '.join(map(str, shapes))} uint8, of at least one pixel"
        )
    if row.box is not None:
        left, top, side = row.box
        if side < 1 or left < 0 or top < 0 or left + side > width or top + side > height:
            raise FadevizError(
                f"{name}: the window of side {side} at x {left}, y {top} does not lie in the image of "
                f"{width}x{height}. Choose one inside it"
            )


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise FadevizError(
            f"the comparison would be {width}x{height} pixels or more, and {MAX_PIXELS:,} are the limit. "
            "Use smaller cells, or fewer images"
        )


def _titles(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """The headings of all columns: those that all runs share first."""
    trimap = ["Trimap"] if any(row.trimap is not None for row in rows) else []
    truth = ["Ground truth"] if any(row.truth is not None for row in rows) else []
    return ["Image", *trimap, *truth, *columns]


def row_contents(row: Row, rows: Sequence[Row]) -> list[NDArray[np.uint8] | None]:
    """The pixels in each column of a row; None where only other rows have any."""
    trimap = [row.trimap] if any(other.trimap is not None for other in rows) else []
    truth = [row.truth] if any(other.truth is not None for other in rows) else []
    return [row.image, *trimap, *truth, *row.results]


def _columns(rows: Sequence[Row], count: int, cell: int | None, style: FigureStyle) -> _Columns:
    """The columns: as wide as the page allows, and narrower where images are tall; or as the style wants them."""
    if style.font_size is not None and style.font_size < LEAST_TEXT:
        raise FadevizError(f"font_size={style.font_size:g}: less than {LEAST_TEXT:g} points cannot be read in print")
    if cell is not None and style.dpi is not None and style.inches is not None:
        raise FadevizError("cell=..., dpi=... and width=... together decide the size twice. Leave out one of them")
    ratio = style.points(1, TEXT)
    strip = max(LEAST_TEXT, NAME * ratio) + 2.5 if any(row.name for row in rows) else 0.0
    tall = float(np.mean([row.size[0] / row.size[1] for row in rows]))
    around = 2 * _MARGIN + strip + (count - 1) * _GUTTER
    if style.inches is not None:
        cell_points = (style.inches * 72 - around) / count
        if cell_points < _LEAST_PRINTED:
            raise FadevizError(
                f"width={style.width!r}: {count} columns would be {max(0.0, cell_points):.0f} points wide each, less "
                f"than {_LEAST_PRINTED}. Use a larger width=..., or fewer runs"
            )
    elif cell is not None and style.dpi is not None:
        cell_points = cell * 72 / style.dpi
    else:
        wanted = _CELL / math.sqrt(min(max(tall, 0.5), 4.0)) * count + around
        cell_points = max(_LEAST_CELL, (min(max(wanted, _NARROW), _WIDE) - around) / count)
    dpi = style.dpi or (_DPI if cell is None else max(1, round(cell * 72 / cell_points)))
    cell = cell if cell is not None else round(cell_points * dpi / 72)
    # At least a pixel of white between the grey edges of two images.
    margin, gutter = (max(3, round(size * dpi / 72)) for size in (_MARGIN, _GUTTER))
    first = margin + round(strip * dpi / 72)
    lefts = [first + index * (cell + gutter) for index in range(count)]
    width = lefts[-1] + cell + margin
    if style.inches is not None:  # what rounding left over goes into the gutters
        width = round(style.inches * dpi)
        pitch = (width - margin - cell - first) / max(1, count - 1)
        lefts = [first + round(index * pitch) for index in range(count)]
    return _Columns(dpi, cell, margin, lefts, width, ratio)


def _headings(titles: Sequence[str], grid: _Columns) -> tuple[float, list[list[str]]]:
    """The font size of the headings in points, and the lines of each."""

    def badness(choice: tuple[float, list[list[str]]]) -> tuple[int, int]:
        """How many headings are cut off, and how many lines the longest one takes."""
        cut = sum(line.endswith("…") for lines in choice[1] for line in lines)
        return cut, max(map(len, choice[1]))

    sizes = [grid.text(size) for size in _HEADINGS]
    choices = [(size, [_heading_lines(title, grid.points(size), grid.cell) for title in titles]) for size in sizes]
    return min(choices, key=badness)


def _heading_lines(title: str, size: int, width: int) -> list[str]:
    """At most three lines; what does not fit is cut off."""
    size, lines, glue = max(1, size), [""], ""
    for word in title.split():
        # A long word, such as an operator's options, is broken where its parts end.
        parts = [word] if font(size).getlength(word) <= width else re.split(r"(?<=[_=:/,-])", word)
        for part in parts:
            if not lines[-1] or font(size).getlength(lines[-1] + glue + part) <= width:
                lines[-1] += glue * bool(lines[-1]) + part
            else:
                lines.append(part)
            glue = ""
        glue = " "
    if len(lines) > 3:
        lines = [*lines[:2], " ".join(lines[2:])]
    return [shorten(line, size, width) for line in lines]


def _score_lines(rows: Sequence[Row], grid: _Columns) -> tuple[list[list[list[str]]], float]:
    """The lines of each row's scores, and one font size for all in points: as small as the longest needs."""

    def size(scores: list[list[list[str]]]) -> float:
        texts = {
            (line, run == row.best)
            for row, row_scores in zip(rows, scores, strict=True)
            for run, lines in enumerate(row_scores)
            for line in lines
        }
        pixels = max(1, grid.points(grid.text(_SCORE)))
        # Glyphs are rounded to whole pixels: half the size is not half as wide.
        while pixels > 1 and any(font(pixels, bold).getlength(line) > grid.cell for line, bold in texts):
            pixels -= 1
        return min(grid.text(_SCORE), pixels * 72 / grid.dpi)

    scores = [[[text] for text in row.scores] for row in rows]
    if size(scores) < grid.text(_BREAK_SCORE):
        scores = [[text.split("  ") for text in row.scores] for row in rows]
    return scores, max(LEAST_TEXT, size(scores))


__all__ = [
    "LEAST_TEXT",
    "LINE",
    "NAME",
    "ComparisonLayout",
    "Rectangle",
    "Row",
    "layout_comparison",
    "row_contents",
]
