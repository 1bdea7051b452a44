"""Comparisons: images in rows, the results of each run in columns, and beneath each the same window enlarged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .comparison_layout import LINE, ComparisonLayout, Rectangle, Row, layout_comparison, row_contents
from .labels import shorten
from .legend import TEXT, Legend, draw_legend
from .marks import WINDOW_COLOUR, draw_frame, mark_window
from .page import Page, check_ending, figure_style, new_figure, save_figure
from .style import FigureStyle

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_comparison(
    rows: Sequence[Row],
    columns: Sequence[str],
    output: str | Path,
    *,
    cell: int | None = None,
    caption: Sequence[str] = (),
    legend: Legend = (),
    provenance: str = "",
    title: str = "",
    style: FigureStyle = FigureStyle(),
) -> None:
    """Draw a comparison into a PNG, PDF or SVG file, by its ending: image, trimap, truth, then one column per run.

    There is a column of trimaps or of truths if any row has one. All images are as wide as their column. The figure is
    between one and two columns of a paper wide, whatever ``cell`` is, unless ``style`` has a width.

    Args:
        rows: one per image; they may differ in size.
        columns: headings of the runs' columns, such as their operators.
        output: the file to write, replaced only once the new one is complete. The same input gives the same bytes.
        cell: width of a column in pixels; None for 300 pixels per inch.
        caption: sentences to stand below, those first that are needed most: as many as fit into two lines.
        legend: classes and their colours, ``(R, G, B)`` from 0 to 255, shown below the rows.
        provenance: what the figure is made of, for the metadata of the file.
        title: title above; empty for none.
        style: width, font and resolution.

    Raises:
        FadevizError: if the file ending is invalid, there is nothing to draw, rows do not match the columns, or the
            columns do not fit in the width.
    """
    from matplotlib import rc_context

    path = check_ending(output, "comparison")
    with style.applied(), rc_context(figure_style()):
        layout = layout_comparison(rows, columns, cell=cell, caption=caption, legend=legend, title=title, style=style)
        figure = _draw(rows, layout, exact=path.suffix.lower() == ".png")
        save_figure(figure, path, layout.dpi, provenance=provenance, transparent=style.transparent)


def render_comparison(
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    cell: int | None = None,
    caption: Sequence[str] = (),
    legend: Legend = (),
    title: str = "",
    style: FigureStyle = FigureStyle(),
) -> NDArray[np.uint8]:
    """The comparison as pixels, ``(H, W, 3)`` uint8: what :func:`write_comparison` writes into a PNG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with style.applied(), rc_context(figure_style()):
        layout = layout_comparison(rows, columns, cell=cell, caption=caption, legend=legend, title=title, style=style)
        canvas: Any = FigureCanvasAgg(_draw(rows, layout, exact=True))
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw(rows: Sequence[Row], layout: ComparisonLayout, *, exact: bool) -> Figure:
    """The figure; in an ``exact`` one every image is given pixel for pixel."""
    figure = new_figure(layout.width, layout.height, layout.dpi)
    page = Page(figure, layout.width, layout.height, exact=exact)
    title, top, size = layout.title
    if title:
        room = layout.width - 2 * layout.lefts[0]
        title = shorten(title, max(1, layout.points(size)), room, bold=True)
        page.text(layout.lefts[0], top, title, size, weight="bold")
    headings, bottom = layout.headings
    for left, lines in zip(layout.lefts, headings, strict=True):
        for index, line in enumerate(reversed(lines)):
            y = bottom - index * layout.points(layout.heading_size * LINE)
            page.text(left + layout.cell / 2, y, line, layout.heading_size, ha="center", va="baseline")
    for index, row in enumerate(rows):
        for column, pixels in enumerate(row_contents(row, rows)):
            _draw_cell(page, layout, row, (index, column), pixels)
        _draw_scores(page, layout, index, row.best)
    for x, y, text in layout.names:
        page.text(x, y, text, layout.name_size, rotation=90, ha="center", va="center", color="0.25")
    _write_below(page, layout)
    return figure


def _draw_cell(
    page: Page, layout: ComparisonLayout, row: Row, place: tuple[int, int], pixels: NDArray[np.uint8] | None
) -> None:
    """An image and its enlargement; a note where this row has none."""
    index, column = place
    if pixels is None:
        _, y, width, height = layout.images[index, 0]
        middle = (layout.lefts[column] + width / 2, y + height / 2)
        page.text(*middle, "not known", layout.text_size, ha="center", va="center", color="0.5")
        return
    smooth = column == 0 or (row.smooth and pixels is not row.trimap)
    _show(page, layout.images[place], pixels, smooth)
    if row.box is not None:
        left, top, side = row.box
        _show(page, layout.crops[place], pixels[top : top + side, left : left + side], smooth)
        mark_window(page, layout.images[place], (left, top, left + side, top + side), row.size, layout.points)
        draw_frame(page, layout.crops[place], layout.points(1.1), WINDOW_COLOUR)


def _draw_scores(page: Page, layout: ComparisonLayout, index: int, best: int | None) -> None:
    for run, lines in enumerate(layout.scores[index]):
        x, y = layout.score_places[index, run]
        bold = run == best
        for number, line in enumerate(lines):
            text = shorten(line, max(1, layout.points(layout.score_size)), layout.cell + layout.points(1), bold)
            below = y + number * layout.points(layout.score_size * LINE)
            page.text(x, below, text, layout.score_size, ha="center", weight="bold" if bold else "normal")


def _write_below(page: Page, layout: ComparisonLayout) -> None:
    size = layout.text_size
    draw_legend(page, layout.legend, lambda length: layout.points(length * size / TEXT), size)
    lines, top = layout.caption
    for index, line in enumerate(lines):
        page.text(layout.lefts[0], top + index * layout.points(size + 1.6), line, size, color="0.25")


def _show(page: Page, box: Rectangle, pixels: NDArray[np.uint8], smooth: bool) -> None:
    page.edge(box)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    page.image(box, fit(pixels, box[2:], smooth=smooth) if page.exact else _embed(pixels, box[2:], smooth))


def fit(pixels: NDArray[np.uint8], size: tuple[int, int], *, smooth: bool) -> NDArray[np.uint8]:
    """An image at another size (width, height), ``(h, w, 3)`` uint8.

    Smooth: Lanczos. Otherwise every pixel stays a square of one colour, with mixed colours at most on its border where
    the size is no multiple; an image made smaller becomes the mean over the area of each new pixel.
    """
    if smooth:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    times = [max(1, math.ceil(new / old)) for new, old in zip(size, pixels.shape[1::-1], strict=True)]
    repeated = pixels.repeat(times[1], axis=0).repeat(times[0], axis=1)
    return np.asarray(Image.fromarray(repeated).resize(size, Image.Resampling.BOX))


def _embed(pixels: NDArray[np.uint8], size: tuple[int, int], smooth: bool) -> NDArray[np.uint8]:
    """The pixels that a vector file embeds: the image's own, but not many more than are visible."""
    width = pixels.shape[1]
    if width > 2 * size[0]:
        return fit(pixels, (2 * size[0], 2 * size[1]), smooth=smooth)
    return fit(pixels, size, smooth=True) if smooth and width < size[0] else pixels


__all__ = ["fit", "render_comparison", "write_comparison"]
