"""Grids: the frames of one or more runs in reading order, as a figure that can go into a paper as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..storage.snapshots import CHANNEL_KINDS
from ..storage.stored_run import StoredRun
from .classes import has_colours
from .colormap import colorize, palette, to_indices
from .drawing import Notes, choose_colormap, select_sequences
from .fonts import font
from .frames import FrameSequence, collect_notes
from .grid_layout import HEADING, LEADING, STEP, TEXT, Block, GridLayout, Reference, layout_grid
from .labels import bar_ends, describe, provenance, shorten, truth_image
from .legend import draw_legend
from .marks import mark_window
from .overlay import blend, contour, contour_colour, draw_contour
from .page import Page, check_ending, figure_style, new_figure, save_figure
from .predictions import true_outline
from .selection import FigureContent, MapSelection
from .style import FigureStyle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHANNEL_COLUMNS = 8
MAX_FRAMES = 120
"""Maximum number of frames per run by default: already more than a reader can take in."""


def write_grid(
    runs: Sequence[StoredRun],
    output: str | Path,
    selection: MapSelection = MapSelection(),
    *,
    colormap: str = "gray",
    columns: int | None = None,
    scale: int | None = None,
    content: FigureContent = FigureContent(),
    style: FigureStyle = FigureStyle(),
) -> Notes:
    """Draw the frames of runs into a PNG, PDF or SVG file, by its ending.

    For ``CHANNEL_KINDS`` without ``selection.channel``: representative channels, one per row, at a handful of steps.

    Args:
        runs: one run, or several to be compared.
        output: the file to write, replaced only once the new one is complete. The same runs give the same bytes.
        selection: which maps, and the range of values that the colours span.
        colormap: ``gray``, ``signed`` or the name of a matplotlib colour map.
        columns: frames per row; None chooses a figure about 1.7 times as wide as high, with rows of similar length.
        scale: width and height of a map value in pixels; None makes cells of about 120 pixels, or as large as the
            style's width allows.
        content: what is shown and said besides.
        style: width, font and resolution. With a width and no resolution this is at least 300 pixels per inch, such
            that cells of whole pixels a map value fill the width.

    Returns:
        Notes on what was omitted or marked, and what the figure shows.

    Raises:
        FadevizError: if the file ending, ``colormap``, ``columns`` or ``scale`` is invalid, the cells do not fit in
            the width, or as :func:`~fadeviz.render.frames.select_frames`.
    """
    from matplotlib import rc_context

    path = check_ending(output, "grid")
    colormap = choose_colormap(colormap, content)
    sequences = _select(runs, selection, content, colormap)
    with style.applied():
        layout = layout_grid(sequences, columns=columns, scale=scale, content=content, style=style)
        with rc_context(figure_style()):
            figure = _draw(sequences, layout, content, colormap, upscale=path.suffix.lower() == ".png")
        description = describe(sequences, layout.reading)
        said = provenance(runs, description)
        save_figure(figure, path, layout.dpi, provenance=said, transparent=style.transparent)
    return Notes((*collect_notes(sequences), *layout.notes), description)


def draw_grid(
    runs: Sequence[StoredRun],
    selection: MapSelection = MapSelection(),
    *,
    colormap: str = "gray",
    columns: int | None = None,
    scale: int | None = None,
    content: FigureContent = FigureContent(),
    style: FigureStyle = FigureStyle(),
) -> Figure:
    """The figure that :func:`write_grid` writes, as a ``matplotlib.figure.Figure`` that pyplot does not manage.

    Args:
        runs: one run, or several to be compared.
        selection, colormap, columns, scale, content, style: see :func:`write_grid`.

    Raises:
        FadevizError: under the same conditions as :func:`write_grid`.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    colormap = choose_colormap(colormap, content)
    sequences = _select(runs, selection, content, colormap)
    with style.applied(), rc_context(figure_style()):
        layout = layout_grid(sequences, columns=columns, scale=scale, content=content, style=style)
        figure = _draw(sequences, layout, content, colormap, upscale=True, placed=False)
    if style.transparent:
        figure.patch.set_alpha(0)
    FigureCanvasAgg(figure)
    return figure


def _select(
    runs: Sequence[StoredRun], selection: MapSelection, content: FigureContent, colormap: str
) -> list[FrameSequence]:
    """The sequences of a grid; of representative channels only a handful of steps, unless steps are named."""
    representative = selection.kind in CHANNEL_KINDS and selection.channel is None
    return select_sequences(runs, selection, content, colormap, _CHANNEL_COLUMNS if representative else MAX_FRAMES)


def render_grid(
    sequences: Sequence[FrameSequence],
    *,
    colormap: str = "gray",
    columns: int | None = None,
    scale: int | None = None,
    content: FigureContent = FigureContent(),
    style: FigureStyle = FigureStyle(),
) -> NDArray[np.uint8]:
    """The figure as pixels, ``(H, W, 3)`` uint8: what :func:`write_grid` writes into a PNG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with style.applied(), rc_context(figure_style()):
        layout = layout_grid(sequences, columns=columns, scale=scale, content=content, style=style)
        canvas: Any = FigureCanvasAgg(_draw(sequences, layout, content, colormap, upscale=True))
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw(
    sequences: Sequence[FrameSequence],
    layout: GridLayout,
    content: FigureContent,
    colormap: str,
    *,
    upscale: bool,
    placed: bool = True,
) -> Figure:
    """The figure; ``upscale`` repeats the values of a map itself, so that no renderer resamples them.

    With ``placed``, images lie on whole pixels: such a figure cannot be cropped or saved at another size.
    """
    figure = new_figure(layout.width, layout.height, layout.dpi)
    page = _GridPage(figure, layout, exact=upscale and placed)
    lines, top = layout.title
    for index, line in enumerate(lines):
        below = index * layout.points(layout.font_size(HEADING) * LEADING)
        page.words(layout.points(4), top + below, line, HEADING, layout.width - layout.points(8), weight="bold")
    for block in layout.blocks:
        page.heading(sequences[block.members[0]], block, colormap)
    for reference in layout.references:
        page.reference(sequences[reference.sequence], reference, content, upscale=upscale)
    for (index, frame), corner in layout.cells.items():
        sequence, size = sequences[index], layout.sizes[index]
        scale = layout.scales[index] if upscale or content.overlay else 1
        pixels = _pixels(sequence, sequence.unit[frame], colormap, scale, layout.points(0.4))
        if content.overlay == "map":
            pixels = blend(sequence, pixels, content.alpha)
        elif content.overlay == "contour":
            colour, rim = contour_colour(colormap)
            pixels = draw_contour(pixels, contour(sequence, size, layout.points(0.5)), colour, rim=rim)
        page.cell((*corner, *size), pixels)
    for x, y, words in layout.over:
        page.text(x, y, words, layout.font_size(STEP), color="0.25", ha="center", va="bottom")
    for x, y, words in layout.beside:
        page.text(x, y, words, layout.font_size(TEXT), rotation=90, ha="right", va="center")
    text = layout.font_size(TEXT)
    draw_legend(page, layout.legend, lambda size: layout.points(size * text / TEXT), text)
    lines, top = layout.caption
    for index, line in enumerate(lines):
        page.text(layout.points(4), top + index * layout.points(text * 4 / 3), line, text, color="0.25")
    return figure


def _pixels(
    sequence: FrameSequence, unit: NDArray[np.float32], colormap: str, scale: int, width: int
) -> NDArray[np.uint8]:
    """One frame, ``(h, w, 3)``, each cell ``scale`` pixels wide; of predictions with the true object's outline."""
    colours = sequence.colours
    pixels = colorize(unit, colormap) if colours is None else colours.palette[to_indices(unit)]
    pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    line = true_outline(sequence, scale, width if scale > 1 else 1)
    if colours is not None and line is not None:
        pixels[line] = colours.palette[colours.outline]
    return pixels


class _GridPage(Page):
    """A page with the cells and headings of a grid."""

    def __init__(self, figure: Any, layout: GridLayout, *, exact: bool) -> None:
        super().__init__(figure, layout.width, layout.height, exact=exact)
        self.layout = layout

    def cell(self, box: tuple[int, int, int, int], pixels: NDArray[np.uint8]) -> None:
        """An image with a line around it."""
        self.edge(box)
        self.image(box, pixels)

    def words(self, x: int, y: float, text: str, size: float, room: int, **style: Any) -> None:
        """Text of which as much is shown as fits into ``room`` pixels."""
        size = self.layout.font_size(size)
        bold = style.get("weight") == "bold"
        self.text(x, y, shorten(text, max(1, self.layout.points(size)), room, bold), size, **style)

    def reference(
        self, sequence: FrameSequence, reference: Reference, content: FigureContent, *, upscale: bool
    ) -> None:
        """The observed image and its mask, with the window that is shown of them."""
        assert sequence.observed_image is not None
        truth = truth_image(sequence.run, sequence.image)
        blended = not has_colours(sequence.run)
        for box, pixels, smooth in ((reference.image, sequence.observed_image, True), (reference.mask, truth, blended)):
            contoured = content.overlay == "contour" and box == reference.image
            if upscale or contoured:
                pixels = _fit(pixels, box[2:], blended=smooth)
            if contoured:
                line = contour(sequence, box[2:], self.layout.points(0.5), whole=True)
                pixels = draw_contour(pixels, line, (255, 255, 255), rim=True)
            self.cell(box, pixels)
            if sequence.crop is not None:
                mark_window(self, box, sequence.crop, sequence.observed_image.shape[:2], self.layout.points)

    def heading(self, sequence: FrameSequence, block: Block, colormap: str) -> None:
        """The words above a run, and the colour bar."""
        layout = self.layout
        right = layout.width - layout.points(4)
        middle = block.top + layout.points(layout.font_size(HEADING) * 0.65)
        if block.bar:
            size = layout.points(layout.font_size(HEADING))
            words = math.ceil(font(size, bold=True).getlength(block.heading))
            right = self.bar(sequence, colormap, right, middle, layout.left + words + layout.points(6))
        self.words(
            layout.left, middle, block.heading, HEADING, right - layout.left, weight="bold", va="center_baseline"
        )

    def bar(self, sequence: FrameSequence, colormap: str, right: int, middle: int, left: int) -> int:
        """The colour bar with its ends, narrower where it would reach beyond ``left``; returns its left end."""
        points, text = self.layout.points, self.layout.font_size(TEXT)
        low, high = bar_ends(sequence)
        size = max(1, points(text))
        self.text(right, middle, high, text, ha="right", va="center_baseline")
        right -= round(font(size).getlength(high)) + points(3)
        room = right - points(3) - round(font(size).getlength(low)) - left
        width, height = max(points(18), min(points(56), self.layout.width // 5, room)), points(5)
        bar = palette(colormap)[None]
        if self.exact:
            bar = bar[:, np.linspace(0, 255, width).round().astype(int)].repeat(height, axis=0)
        self.image((right - width, middle - height // 2, width, height), bar)
        right -= width + points(3)
        self.text(right, middle, low, text, ha="right", va="center_baseline")
        return right - round(font(size).getlength(low)) - points(6)


def _fit(pixels: NDArray[np.uint8], size: tuple[int, int], *, blended: bool = True) -> NDArray[np.uint8]:
    """An image at the size of a cell; not ``blended`` for classes, whose mixed colours may be a third class."""
    resample = Image.Resampling.LANCZOS if blended else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, resample))
