"""Panels: pictures in rows, what each run makes of them in columns, and beneath each cell the same window enlarged."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import FadevizError, printable
from .fonts import font
from .labels import shorten, wrap
from .page import MAX_PIXELS, STYLE, Page, check_ending, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 300
_NARROW, _WIDE = 238, 500
"""Points of a page that fills one column of a paper, and both."""
_CELL, _LEAST_CELL = 88, 40
"""Points a cell is wide where there is room, for a square picture, and where there is none."""
_LEAST_PIXELS = 32
_HEADINGS = (7.0, 6.4, 5.8)
"""Font sizes in points of what stands above the columns: the first one with the fewest cuts and lines is taken."""
_FIGURE, _BREAK_FIGURE, _LEAST_FIGURE = 6.4, 5.6, 4.6
"""Font sizes in points of the numbers under the cells: before they get a line each, and as small as they may get."""
_NAME, _TEXT = 5.8, 6.0
"""Font sizes in points: rows, words below."""
_MARGIN, _GUTTER, _INNER, _BETWEEN = 3.0, 2.5, 1.6, 4.0
"""Points around everything, between columns, between a picture and its enlargement, between rows."""
_BOX_COLOUR, _BOX_RIM = "#e8112d", "white"
"""Red is no colour of ``class_palette``; its rim is seen where a picture is red or dark."""

_LEVELS = 1 << 24
"""Into how many levels disagreement is rounded, so that sums are exact and equal windows are equal."""


class Box(NamedTuple):
    """A square window, in pixels of the picture."""

    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Row:
    """One picture of a panel and what the runs make of it, all ``(H, W)`` in greys or ``(H, W, 3)``, uint8.

    Attributes:
        name: what the picture is called; empty for nothing.
        image: ``(H, W, 3)``.
        truth: None where it is not known.
        results: one a run, ready to show.
        figures: short texts under the results, such as ``"mIoU 0.912"``, one a run; or none at all. Where columns are
            narrow, a text is broken into lines at double spaces.
        best: index of the result whose figure is set bold.
        trimap: of a matting picture.
        box: the window that is enlarged beneath each picture; None enlarges nothing.
        smooth: truth and results are alphas, enlarged smoothly; classes are enlarged so that their pixels are seen.
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    results: tuple[NDArray[np.uint8], ...]
    figures: tuple[str, ...] = ()
    best: int | None = None
    trimap: NDArray[np.uint8] | None = None
    box: Box | None = None
    smooth: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.image.shape[0]), int(self.image.shape[1])


def choose_zoom(
    results: Sequence[NDArray[Any]],
    truth: NDArray[Any] | None,
    side: int | None = None,
    ignored: int | None = None,
) -> Box:
    """The square window in which runs disagree most, the first in reading order among equals.

    Disagreement at a pixel is, for classes (whole numbers), the share of the pairs of runs that differ; for alphas
    (floats), their standard deviation over the runs. Where no pixel disagrees, as with a single run, it is the
    difference of the first run to the truth; where there is none either, the window lies in the middle.

    Args:
        results: one a run, ``(H, W)``: classes, or alphas in [0, 1]; what is not finite counts as 0.
        truth: ``(H, W)`` of the same kind, or None.
        side: of the window, in pixels; None takes a quarter of the picture's shorter side.
        ignored: the class that, in the truth, takes a pixel out.

    Raises:
        FadevizError: no result, sizes or kinds that differ, or a side that the picture has no room for.

    Example:
        >>> near, far = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
        >>> far[5, 6] = 1
        >>> choose_zoom([near, far], None, side=2)
        Box(left=5, top=4, side=2)
    """
    if not results:
        raise FadevizError("no result to choose a window from. Give at least one")
    given = [np.asarray(values) for values in [*results, *([] if truth is None else [truth])]]
    shape, kinds = given[0].shape, {np.issubdtype(values.dtype, np.floating) for values in given}
    if len(shape) != 2 or 0 in shape or any(values.shape != shape for values in given) or len(kinds) > 1:
        found = ", ".join(f"{values.shape} {values.dtype}" for values in given)
        raise FadevizError(f"results and truth must be (H, W) of one size, all classes or all alphas. Given: {found}")
    height, width = shape
    side = max(1, round(min(shape) / 4)) if side is None else side
    if not 1 <= side <= min(shape):
        raise FadevizError(
            f"a window of side {side} is not to be had in an image of {width}x{height}. "
            f"Choose a side from 1 to {min(shape)}"
        )
    counted: NDArray[np.bool_] = np.ones(shape, bool)
    if truth is not None and ignored is not None:
        counted = np.asarray(truth) != ignored
    floating = kinds == {True}
    if floating:
        given = [np.clip(np.nan_to_num(values.astype(np.float64), nan=0.0), 0.0, 1.0) for values in given]
    runs = given[: len(results)]
    weight = _spread(runs, floating) * counted
    if not weight.any() and truth is not None:
        difference = np.abs(runs[0] - given[-1]) if floating else runs[0] != given[-1]
        weight = np.rint(difference * float(_LEVELS)).astype(np.int64) * counted
    if not weight.any():
        return Box((width - side) // 2, (height - side) // 2, side)
    total = np.pad(weight.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return Box(int(left), int(top), side)


def _spread(runs: Sequence[NDArray[Any]], floating: bool) -> NDArray[np.int64]:
    """How much runs disagree at each pixel, in whole numbers: windows are compared by exact sums."""
    if floating:
        return np.rint(np.std(runs, axis=0) * _LEVELS).astype(np.int64)
    differing = np.zeros(runs[0].shape, np.int64)
    for one, other in combinations(runs, 2):
        differing += one != other
    return differing


def write_panel(
    rows: Sequence[Row],
    columns: Sequence[str],
    output: str | Path,
    *,
    cell: int | None = None,
    caption: Sequence[str] = (),
    legend: Sequence[tuple[str, Sequence[int]]] = (),
) -> None:
    """Draw a panel into a PNG, PDF or SVG file, by its ending: image, trimap, truth, then a column a run.

    A column of trimaps or of truths is there if any row has one. All pictures are as wide as their column; the page is
    between one and two columns of a paper wide, whatever ``cell`` is.

    Args:
        rows: one a picture; they may differ in size.
        columns: what stands above the runs' columns, such as their operators.
        output: the file to write; it is replaced only by a whole one. The same input gives the same bytes.
        cell: pixels a column is wide; None makes 300 pixels an inch.
        caption: sentences to stand below, each on a line of its own.
        legend: classes and their colours, ``(R, G, B)`` from 0 to 255, shown below the rows.

    Raises:
        FadevizError: another file ending, nothing to draw, or rows that do not fit: the message says which.
    """
    from matplotlib import rc_context

    path = check_ending(output, "panel")
    layout = find_layout(rows, columns, cell=cell, caption=caption, legend=legend)
    with rc_context(STYLE):
        figure = _draw(rows, layout, exact=path.suffix.lower() == ".png")
    save_figure(figure, path, layout.dpi)


def render_panel(
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    cell: int | None = None,
    caption: Sequence[str] = (),
    legend: Sequence[tuple[str, Sequence[int]]] = (),
) -> NDArray[np.uint8]:
    """The panel as pixels, ``(H, W, 3)`` uint8: what :func:`write_panel` writes into a PNG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    layout = find_layout(rows, columns, cell=cell, caption=caption, legend=legend)
    with rc_context(STYLE):
        canvas: Any = FigureCanvasAgg(_draw(rows, layout, exact=True))
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


_Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True)
class Layout:
    """Where everything of a panel is, in pixels from the upper left corner.

    Attributes:
        width, height: of the whole page.
        dpi: pixels an inch; the physical size does not depend on ``cell``.
        cell: width of a column.
        lefts: the left side of each column.
        headings: the lines above each column, and the bottom of the last.
        heading_size: of these, in points.
        pictures: ``(row, column) -> (x, y, width, height)``; only of those that there are.
        crops: the same of the enlargements.
        figures: ``(row, run) -> (x, y)``, the middle of the upper side of the numbers.
        numbers: for each row and run the lines under the result.
        figure_size: of these, in points.
        names: of each row: x and y of the middle, and the text, which is read upwards.
        legend: ``(x, y)`` of each class's square, its name and colour.
        caption: the lines below, and the top of the first.
    """

    width: int
    height: int
    dpi: int
    cell: int
    lefts: list[int]
    headings: tuple[list[list[str]], int]
    heading_size: float
    pictures: dict[tuple[int, int], _Rectangle]
    crops: dict[tuple[int, int], _Rectangle]
    figures: dict[tuple[int, int], tuple[int, int]]
    numbers: list[list[list[str]]]
    figure_size: float
    names: list[tuple[int, int, str]]
    legend: list[tuple[int, int, str, tuple[float, ...]]]
    caption: tuple[list[str], int]

    def points(self, size: float) -> int:
        """A size in points as pixels."""
        return round(size * self.dpi / 72)


def find_layout(
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    cell: int | None = None,
    caption: Sequence[str] = (),
    legend: Sequence[tuple[str, Sequence[int]]] = (),
) -> Layout:
    """Where a panel puts its pictures and words.

    Raises:
        FadevizError: nothing to draw, rows that do not fit, or a page of too many pixels.
    """
    _check(rows, columns, cell)
    titles = _titles(rows, columns)
    strip = _NAME + 2.5 if any(row.name for row in rows) else 0.0
    wanted = _cell_points(rows, len(titles), strip)
    dpi = _DPI if cell is None else max(1, round(cell * 72 / wanted))
    cell = cell if cell is not None else round(wanted * _DPI / 72)

    def points(size: float) -> int:
        return round(size * dpi / 72)

    # At least a pixel of white between the grey edges of two images.
    margin, gutter, inner, between = (max(3, points(p)) for p in (_MARGIN, _GUTTER, _INNER, _BETWEEN))
    first = margin + points(strip)
    lefts = [first + index * (cell + gutter) for index in range(len(titles))]
    width = lefts[-1] + cell + margin
    choices = [(size, [_heading_lines(title, points(size), cell) for title in titles]) for size in _HEADINGS]
    heading_size, headings = min(choices, key=lambda choice: _badness(choice[1]))
    top = margin + max(map(len, headings)) * points(heading_size * 1.16) + points(1.6)
    heading_bottom = top - points(1.8)
    numbers, figure_size = _figure_lines(rows, cell, dpi)
    pictures: dict[tuple[int, int], _Rectangle] = {}
    crops: dict[tuple[int, int], _Rectangle] = {}
    figures: dict[tuple[int, int], tuple[int, int]] = {}
    names = []
    for index, row in enumerate(rows):
        begin, tall = top, max(1, round(cell * row.size[0] / row.size[1]))
        there = [column for column, pixels in enumerate(_contents(row, rows)) if pixels is not None]
        pictures |= {(index, column): (lefts[column], top, cell, tall) for column in there}
        top += tall
        if row.box is not None:
            top += inner
            crops |= {(index, column): (lefts[column], top, cell, cell) for column in there}
            top += cell
        if row.name:
            text = shorten(printable(row.name), max(1, points(_NAME)), top - begin)
            names.append((margin + points(_NAME / 2), (begin + top) // 2, text))
        if row.figures:
            skipped = len(titles) - len(columns)
            figures |= {
                (index, run): (lefts[skipped + run] + cell // 2, top + points(1.5)) for run in range(len(columns))
            }
            top += max(map(len, numbers[index])) * points(figure_size * 1.16) + points(1.5)
        top += between
        if width * top > MAX_PIXELS:
            raise FadevizError(
                f"the panel would be {width}x{top} pixels or more, and {MAX_PIXELS:,} are the limit. "
                "Use smaller cells, or fewer pictures"
            )
    top -= between
    placed: list[tuple[int, int, str, tuple[float, ...]]] = []
    if legend:
        placed, top = _place_legend(legend, first, width - margin, top + points(4), points)
    lines = [line for text in caption for line in wrap(text, max(1, points(_TEXT)), width - first - margin)]
    top += points(4.5) if lines else 0
    return Layout(
        width=width,
        height=top + len(lines) * points(_TEXT + 1.6) + margin,
        dpi=dpi,
        cell=cell,
        lefts=lefts,
        headings=(headings, heading_bottom),
        heading_size=heading_size,
        pictures=pictures,
        crops=crops,
        figures=figures,
        numbers=numbers,
        figure_size=figure_size,
        names=names,
        legend=placed,
        caption=(lines, top),
    )


def _check(rows: Sequence[Row], columns: Sequence[str], cell: int | None) -> None:
    if not rows:
        raise FadevizError("no image to draw. A panel needs at least one row")
    if not columns:
        raise FadevizError("no run to draw. A panel needs at least one column")
    if cell is not None and cell < _LEAST_PIXELS:
        raise FadevizError(f"cells of {cell} pixels: nothing is seen in fewer than {_LEAST_PIXELS}. Use larger cells")
    for row in rows:
        name = f"image {row.name!r}"
        if len(row.results) != len(columns):
            raise FadevizError(f"{name} has {len(row.results)} results for {len(columns)} columns. Give one for each")
        if row.figures and len(row.figures) != len(columns):
            raise FadevizError(f"{name} has {len(row.figures)} figures for {len(columns)} columns. Give one for each")
        if row.best is not None and not 0 <= row.best < len(row.figures):
            raise FadevizError(f"{name}: figure {row.best} is said to be the best of {len(row.figures)}")
        parts = {"image": row.image, "truth": row.truth, "trimap": row.trimap}
        parts |= {f"result of {title}": result for title, result in zip(columns, row.results, strict=True)}
        height, width = row.image.shape[:2] if row.image.ndim >= 2 else (0, 0)
        for what, pixels in parts.items():
            shapes = [(height, width, 3)] if what == "image" else [(height, width), (height, width, 3)]
            if pixels is None or (pixels.dtype == np.uint8 and pixels.shape in shapes and pixels.size):
                continue
            raise FadevizError(
                f"{name}: its {what} is {pixels.shape} {pixels.dtype}, "
                f"needed is {' or '.join(map(str, shapes))} uint8, of at least one pixel"
            )
        if row.box is not None:
            left, top, side = row.box
            if side < 1 or left < 0 or top < 0 or left + side > width or top + side > height:
                raise FadevizError(
                    f"{name}: the window of side {side} at x {left}, y {top} does not lie in the image of "
                    f"{width}x{height}. Choose it inside"
                )


def _titles(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """What stands above the columns, those that all runs share first."""
    trimap = ["Trimap"] if any(row.trimap is not None for row in rows) else []
    truth = ["Ground truth"] if any(row.truth is not None for row in rows) else []
    return ["Image", *trimap, *truth, *columns]


def _contents(row: Row, rows: Sequence[Row]) -> list[NDArray[np.uint8] | None]:
    """What stands in the columns; None where this row has nothing that another row has."""
    trimap = [row.trimap] if any(other.trimap is not None for other in rows) else []
    truth = [row.truth] if any(other.truth is not None for other in rows) else []
    return [row.image, *trimap, *truth, *row.results]


def _cell_points(rows: Sequence[Row], columns: int, strip: float) -> float:
    """How wide a column is in points: what fits on the page, and less where pictures are tall."""
    tall = float(np.mean([row.size[0] / row.size[1] for row in rows]))
    around = 2 * _MARGIN + strip + (columns - 1) * _GUTTER
    wanted = _CELL / math.sqrt(min(max(tall, 0.5), 4.0)) * columns + around
    return max(_LEAST_CELL, (min(max(wanted, _NARROW), _WIDE) - around) / columns)


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


def _badness(headings: Sequence[Sequence[str]]) -> tuple[int, int]:
    """How many headings are cut off, and how many lines the longest one takes."""
    cut = sum(line.endswith("…") for lines in headings for line in lines)
    return cut, max(map(len, headings))


def _figure_lines(rows: Sequence[Row], cell: int, dpi: int) -> tuple[list[list[list[str]]], float]:
    """The lines of each row's numbers, and one size for all in points: as small as the longest needs, to a limit."""

    def size(numbers: list[list[list[str]]]) -> float:
        texts = {
            (line, run == row.best)
            for row, told in zip(rows, numbers, strict=True)
            for run, lines in enumerate(told)
            for line in lines
        }
        pixels = max(1, round(_FIGURE * dpi / 72))
        # Letters of whole pixels: half the size is not half as wide.
        while pixels > 1 and any(font(pixels, bold).getlength(line) > cell for line, bold in texts):
            pixels -= 1
        return min(_FIGURE, pixels * 72 / dpi)

    whole = [[[text] for text in row.figures] for row in rows]
    if size(whole) < _BREAK_FIGURE:
        whole = [[text.split("  ") for text in row.figures] for row in rows]
    return whole, max(_LEAST_FIGURE, size(whole))


def _place_legend(
    legend: Sequence[tuple[str, Sequence[int]]], left: int, right: int, top: int, points: Any
) -> tuple[list[tuple[int, int, str, tuple[float, ...]]], int]:
    """Where the classes stand, in lines; and the bottom of the last line."""
    square, gap, apart, line = points(5.6), points(2.2), points(7), points(8.4)
    placed, x = [], left
    for name, colour in legend:
        text = shorten(name, max(1, points(_TEXT)), right - left - square - gap)
        width = square + gap + math.ceil(font(max(1, points(_TEXT))).getlength(text))
        if x > left and x + width > right:
            x, top = left, top + line
        placed.append((x, top, text, tuple(int(part) / 255 for part in colour)))
        x += width + apart
    return placed, top + square


def _draw(rows: Sequence[Row], layout: Layout, *, exact: bool) -> Figure:
    """The figure; in an ``exact`` one every picture is given pixel for pixel."""
    figure = new_figure(layout.width, layout.height, layout.dpi)
    page, points = Page(figure, layout.width, layout.height, exact=exact), layout.points
    headings, bottom = layout.headings
    for left, lines in zip(layout.lefts, headings, strict=True):
        for number, line in enumerate(reversed(lines)):
            y = bottom - number * points(layout.heading_size * 1.16)
            page.text(left + layout.cell / 2, y, line, layout.heading_size, ha="center", va="baseline")
    for index, row in enumerate(rows):
        for column, pixels in enumerate(_contents(row, rows)):
            if pixels is None:
                x, y, width, height = layout.pictures[index, 0]
                middle = (layout.lefts[column] + width / 2, y + height / 2)
                page.text(*middle, "not known", _TEXT, ha="center", va="center", color="0.5")
                continue
            place, smooth = (index, column), column == 0 or (row.smooth and pixels is not row.trimap)
            _show(page, layout.pictures[place], pixels, smooth)
            if row.box is not None:
                left, top, side = row.box
                _show(page, layout.crops[place], pixels[top : top + side, left : left + side], smooth)
                _mark(page, layout, layout.pictures[place], row.box, row.size)
                _frame(page, layout.crops[place], points(1.1), _BOX_COLOUR)
        for run, texts in enumerate(layout.numbers[index]):
            x, y = layout.figures[index, run]
            bold = run == row.best
            for number, text in enumerate(texts):
                text = shorten(text, max(1, points(layout.figure_size)), layout.cell + points(1), bold)
                below = y + number * points(layout.figure_size * 1.16)
                page.text(x, below, text, layout.figure_size, ha="center", weight="bold" if bold else "normal")
    for x, y, text in layout.names:
        page.text(x, y, text, _NAME, rotation=90, ha="center", va="center", color="0.25")
    _write_below(page, layout)
    return figure


def _write_below(page: Page, layout: Layout) -> None:
    from matplotlib.patches import Rectangle

    points = layout.points
    for x, y, text, colour in layout.legend:
        side = points(5.6)
        page.front.add_patch(Rectangle((x, y), side, side, facecolor=colour, edgecolor="0.4", linewidth=0.35))
        page.text(x + side + points(2.2), y + side / 2, text, _TEXT, va="center_baseline")
    lines, top = layout.caption
    for index, line in enumerate(lines):
        page.text(layout.lefts[0], top + index * points(_TEXT + 1.6), line, _TEXT, color="0.25")


def _show(page: Page, box: _Rectangle, pixels: NDArray[np.uint8], smooth: bool) -> None:
    page.edge(box)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    page.picture(box, fit(pixels, box[2:], smooth=smooth) if page.exact else _embed(pixels, box[2:], smooth))


def _mark(page: Page, layout: Layout, picture: _Rectangle, box: Box, size: tuple[int, int]) -> None:
    """The window on its picture: a coloured line with a rim on both sides, none of it beyond the picture."""
    x, y, width, height = picture
    line, rim = max(1, layout.points(0.8)), max(1, layout.points(0.4))
    ends = []
    for start, length, begin, count in ((x, width, box.left, size[1]), (y, height, box.top, size[0])):
        low = start + round(length * begin / count)
        high = start + round(length * (begin + box.side) / count)
        ends.append((max(start, low - rim), min(start + length, high + rim)))
    (left, right), (top, bottom) = ends
    outer = (left, top, right - left, bottom - top)
    inner = (left + rim, top + rim, outer[2] - 2 * rim, outer[3] - 2 * rim)
    _frame(page, outer, 2 * rim + line, _BOX_RIM)
    _frame(page, inner, line, _BOX_COLOUR)


def _frame(page: Page, box: _Rectangle, line: int, colour: str) -> None:
    """A line of whole pixels along the inside of a box."""
    from matplotlib.patches import Rectangle

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
            page.front.add_patch(Rectangle(corner, wide, high, facecolor=colour, linewidth=0, antialiased=False))


def fit(pixels: NDArray[np.uint8], size: tuple[int, int], *, smooth: bool) -> NDArray[np.uint8]:
    """A picture at another size (width, height), ``(h, w, 3)`` uint8.

    Smooth: Lanczos. Otherwise every pixel stays a square of one colour, with mixed colours at most on its border where
    the size is no multiple; a picture made smaller becomes the mean over the area of each new pixel.
    """
    if smooth:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    times = [max(1, math.ceil(new / old)) for new, old in zip(size, pixels.shape[1::-1], strict=True)]
    repeated = pixels.repeat(times[1], axis=0).repeat(times[0], axis=1)
    return np.asarray(Image.fromarray(repeated).resize(size, Image.Resampling.BOX))


def _embed(pixels: NDArray[np.uint8], size: tuple[int, int], smooth: bool) -> NDArray[np.uint8]:
    """What a vector file holds of a picture: its own pixels, but not many more than are seen."""
    width = pixels.shape[1]
    if width > 2 * size[0]:
        return fit(pixels, (2 * size[0], 2 * size[1]), smooth=smooth)
    return fit(pixels, size, smooth=True) if smooth and width < size[0] else pixels
