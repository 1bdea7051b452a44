"""Grids: the frames of one or more runs in reading order, as a figure that can go into a paper as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import FadevizError
from ..storage.snapshots import CHANNEL_KINDS, PREDICTION
from ..storage.stored_run import StoredRun
from .classes import class_key, has_colours, largest_shares, names_classes
from .colormap import colorize, is_diverging, palette, to_indices
from .fonts import font
from .frames import FrameSequence, collect_notes, scale_maps, select_frames
from .labels import (
    bar_ends,
    captions,
    heading,
    provenance,
    shorten,
    steps_sentence,
    truth_image,
    truth_name,
    wrap,
)
from .legend import Legend, PlacedLegend, draw_legend, place_legend
from .page import MAX_PIXELS, STYLE, Page, check_ending, new_figure, save_figure
from .predictions import select_predictions, true_outline
from .selection import MapSelection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL = 120
"""Approximate width of a cell in pixels."""
_DPI = 200
_CHANNEL_COLUMNS = 8
MAX_FRAMES = 120
"""Maximum number of frames per run by default: already more than a reader can take in."""
_TEXT, _STEP, _HEADING = 6.0, 5.2, 8.0
"""Font sizes in points: captions, the steps in the cells, the operators."""
_GAP = 1.6
"""Points between two cells."""


@dataclass(frozen=True)
class GridLayout:
    """Where everything of a grid is, in pixels from the upper left corner.

    Attributes:
        width: width of the figure.
        height: height of the figure.
        dpi: pixels per inch; the physical size does not depend on ``scale``.
        sizes: width and height of the cells of each sequence; they differ where the sizes of the runs' maps do.
        scales: width and height of a map value of each sequence.
        blocks: each run's indices of its sequences, the top of its heading, and the corners of image and mask.
        cells: ``(sequence, frame) -> (x, y)``, upper left corner of the cell.
        legend: where the classes of the masks stand, above the caption.
        caption: the lines below, and the top of the first.
        chips: whether the steps stand inside the cells; above them where cells are small.
    """

    width: int
    height: int
    dpi: int
    sizes: list[tuple[int, int]]
    scales: list[int]
    blocks: list[tuple[list[int], int, tuple[tuple[int, int], tuple[int, int]]]]
    cells: dict[tuple[int, int], tuple[int, int]]
    legend: PlacedLegend
    caption: tuple[list[str], int]
    chips: bool

    @property
    def cell(self) -> tuple[int, int]:
        """The size of the first sequence's cells."""
        return self.sizes[0]

    @property
    def scale(self) -> int:
        """The width of a map value of the first sequence."""
        return self.scales[0]

    def points(self, size: float) -> int:
        """A font size in points as pixels."""
        return round(size * self.dpi / 72)


def write_grid(
    runs: Sequence[StoredRun],
    output: str | Path,
    selection: MapSelection = MapSelection(),
    *,
    colormap: str = "gray",
    columns: int | None = None,
    scale: int | None = None,
) -> tuple[str, ...]:
    """Draw the frames of runs into a PNG, PDF or SVG file, by its ending.

    For ``CHANNEL_KINDS`` without ``selection.channel``: representative channels, one per row, at a handful of steps.

    Args:
        runs: one run, or several to be compared.
        output: the file to write, replaced only once the new one is complete. The same runs give the same bytes.
        selection: which maps, and the range of values that the colours span.
        colormap: ``gray`` or the name of a matplotlib colour map.
        columns: frames per row; None chooses a figure about 1.7 times as wide as high.
        scale: width and height of a map value in pixels; None makes cells of about 120 pixels.

    Returns:
        Notes on what was omitted or marked.

    Raises:
        FadevizError: if the file ending, ``colormap``, ``columns`` or ``scale`` is invalid, or as
            :func:`~fadeviz.render.frames.select_frames`.
    """
    from matplotlib import rc_context

    path = check_ending(output, "grid")
    sequences = _select(runs, selection, colormap)
    layout = layout_grid(sequences, columns=columns, scale=scale)
    with rc_context(STYLE):
        figure = _draw(sequences, layout, colormap, upscale=path.suffix.lower() == ".png")
    save_figure(figure, path, layout.dpi, provenance=provenance(runs))
    return collect_notes(sequences)


def draw_grid(
    runs: Sequence[StoredRun],
    selection: MapSelection = MapSelection(),
    *,
    colormap: str = "gray",
    columns: int | None = None,
    scale: int | None = None,
) -> Figure:
    """The figure that :func:`write_grid` writes, as a ``matplotlib.figure.Figure`` that pyplot does not manage.

    Args:
        runs: one run, or several to be compared.
        selection, colormap, columns, scale: see :func:`write_grid`.

    Raises:
        FadevizError: under the same conditions as :func:`write_grid`.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    sequences = _select(runs, selection, colormap)
    layout = layout_grid(sequences, columns=columns, scale=scale)
    with rc_context(STYLE):
        figure = _draw(sequences, layout, colormap, upscale=True, placed=False)
    FigureCanvasAgg(figure)
    return figure


def _select(runs: Sequence[StoredRun], selection: MapSelection, colormap: str) -> list[FrameSequence]:
    """The sequences of a grid; of representative channels only a handful of steps, unless steps are named."""
    palette(colormap)
    if selection.kind == PREDICTION:
        return select_predictions(runs, selection, colormap=colormap, max_frames=MAX_FRAMES)
    representative = selection.kind in CHANNEL_KINDS and selection.channel is None
    return select_frames(
        runs,
        selection,
        centered=is_diverging(colormap),
        max_frames=_CHANNEL_COLUMNS if representative else MAX_FRAMES,
    )


def render_grid(
    sequences: Sequence[FrameSequence],
    *,
    colormap: str = "gray",
    columns: int | None = None,
    scale: int | None = None,
) -> NDArray[np.uint8]:
    """The figure as pixels, ``(H, W, 3)`` uint8: what :func:`write_grid` writes into a PNG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    layout = layout_grid(sequences, columns=columns, scale=scale)
    with rc_context(STYLE):
        canvas: Any = FigureCanvasAgg(_draw(sequences, layout, colormap, upscale=True))
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@dataclass(frozen=True)
class _Spacing:
    """Sizes that the cells of a grid are laid out by, in pixels.

    Attributes:
        dpi: pixels per inch.
        cell: width and height of the largest cell.
        chips: whether cells are large enough to hold their step.
        step_line: height of the line above a cell that holds the step otherwise.
        pitch: distance between the corners of neighbouring cells, across and down.
        margin: white space around the figure.
    """

    dpi: int
    cell: tuple[int, int]
    chips: bool
    step_line: int
    pitch: tuple[int, int]
    margin: int

    def points(self, size: float) -> int:
        return round(size * self.dpi / 72)


def layout_grid(
    sequences: Sequence[FrameSequence], *, columns: int | None = None, scale: int | None = None
) -> GridLayout:
    """Where a grid puts its cells.

    Raises:
        FadevizError: if ``columns`` or ``scale`` is less than 1, or the figure has too many pixels.
    """
    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None and value < 1:
            raise FadevizError(f"{name}={value}: must be at least 1")
    frames = len(sequences[0].steps)
    scales, sizes = scale_maps(sequences, scale, _CELL)
    spacing = _spacing(sizes)
    by_run: dict[Path, list[int]] = {}
    for index, sequence in enumerate(sequences):
        by_run.setdefault(sequence.run.path, []).append(index)
    row_label = spacing.points(9) if any(len(members) > 1 for members in by_run.values()) else 0
    if columns is None:
        columns = frames if row_label else _choose_columns(frames, len(by_run), spacing)
    columns = min(columns, frames)
    rows = math.ceil(frames / columns)
    one_row = max(map(len, by_run.values())) * rows == 1
    observed = any(sequence.observed_image is not None for sequence in sequences)
    references = 0 if not observed else 2 if one_row else 1
    left = spacing.margin + references * spacing.pitch[0] + spacing.points(3) + row_label
    total_width = max(left + columns * spacing.pitch[0] - spacing.points(_GAP) + spacing.margin, spacing.points(230))
    blocks, cells, top = _place_blocks(list(by_run.values()), spacing, left, columns, frames, one_row=one_row)
    if total_width * top > MAX_PIXELS:
        raise FadevizError(
            f"the figure would be {total_width}x{top} pixels, more than {MAX_PIXELS:,}. "
            "Use a smaller scale=..., or fewer steps"
        )
    sentences = captions(sequences)
    sentences[1] += steps_sentence(sequences)
    sentences[1] += f" The number {'in' if spacing.chips else 'above'} a cell is the training step."
    legend, reading = _classes([sequences[members[0]] for members in by_run.values()])
    sentences += reading
    placed: PlacedLegend = []
    if legend:
        right = total_width - spacing.margin
        placed, top = place_legend(legend, spacing.margin, right, top + spacing.points(1), spacing.points)
        top += spacing.points(3)
    text_width = total_width - 2 * spacing.margin
    lines = [line for text in sentences for line in wrap(text, spacing.points(_TEXT), text_width)]
    top += spacing.points(1)
    return GridLayout(
        width=total_width,
        height=top + len(lines) * spacing.points(8) + spacing.margin,
        dpi=spacing.dpi,
        sizes=sizes,
        scales=scales,
        blocks=blocks,
        cells=cells,
        legend=placed,
        caption=(lines, top),
        chips=spacing.chips,
    )


def _classes(sequences: Sequence[FrameSequence]) -> tuple[Legend, list[str]]:
    """The legend of the classes shown, of each run with its own colours; and a sentence on how to read it."""
    predicted = [
        (name, tuple(sequence.colours.palette[index].tolist()))
        for sequence in sequences
        if sequence.colours is not None
        for name, index in sequence.colours.legend
    ]
    keys = [
        class_key([sequence.run], largest_shares([sequence.run.observation[1][sequence.image]]))
        for sequence in sequences
        if sequence.observed_image is not None and names_classes(sequence.run)
    ]
    legend = tuple(dict.fromkeys([*predicted, *(entry for key in keys for entry in key.legend)]))
    # The sentence on predictions says the same.
    return legend, [] if predicted else list(dict.fromkeys(key.sentence() for key in keys))


def _spacing(sizes: Sequence[tuple[int, int]]) -> _Spacing:
    cell = max(width for width, _ in sizes), max(height for _, height in sizes)
    least = min(width for width, _ in sizes), min(height for _, height in sizes)
    dpi = math.ceil(_DPI * max(1.0, cell[0] / 128))

    def points(size: float) -> int:
        return round(size * dpi / 72)

    chips = least[0] >= points(28) and least[1] >= points(18)
    step_line = 0 if chips else points(7.5)
    pitch = (max(cell[0], 0 if chips else points(15)) + points(_GAP), cell[1] + points(_GAP) + step_line)
    return _Spacing(dpi, cell, chips, step_line, pitch, points(5))


_Blocks = list[tuple[list[int], int, tuple[tuple[int, int], tuple[int, int]]]]


def _place_blocks(
    by_run: Sequence[list[int]], spacing: _Spacing, left: int, columns: int, frames: int, *, one_row: bool
) -> tuple[_Blocks, dict[tuple[int, int], tuple[int, int]], int]:
    """The blocks of all runs, one below the other; the corners of their cells; and the bottom of the last."""
    rows, margin, (across, down) = math.ceil(frames / columns), spacing.margin, spacing.pitch
    top = margin
    cells: dict[tuple[int, int], tuple[int, int]] = {}
    blocks: _Blocks = []
    for members in by_run:
        title = top
        top += spacing.points(12.5)
        first = top + spacing.step_line
        second = (margin + across, first) if one_row else (margin, first + down)
        blocks.append((members, title, ((margin, first), second)))
        for member in members:
            for frame in range(frames):
                row, column = divmod(frame, columns)
                cells[member, frame] = (left + column * across, top + spacing.step_line + row * down)
            top += rows * down
        top += spacing.points(3)
    return blocks, cells, top


def _choose_columns(frames: int, runs: int, spacing: _Spacing) -> int:
    """Columns for a figure about 1.7 times as wide as high, with few empty cells."""
    across, down = spacing.pitch
    least = math.ceil(spacing.points(190) / across)  # as many as fit in the width of the captions

    def badness(columns: int) -> float:
        rows = math.ceil(frames / columns)
        shape = (columns + 1) * across / (rows * runs * down)
        return abs(math.log(shape / 1.7)) + 2.0 * (rows * columns - frames) / (rows * columns)

    return min(range(min(frames, least), min(frames, max(least, 16)) + 1), key=badness)


def _draw(
    sequences: Sequence[FrameSequence], layout: GridLayout, colormap: str, *, upscale: bool, placed: bool = True
) -> Figure:
    """The figure; ``upscale`` repeats the values of a map itself, so that no renderer resamples them.

    With ``placed``, images lie on whole pixels: such a figure cannot be cropped or saved at another size.
    """
    figure = new_figure(layout.width, layout.height, layout.dpi)
    page = _GridPage(figure, layout, exact=upscale and placed)
    for members, top, (image_box, mask_box) in layout.blocks:
        first = sequences[members[0]]
        size = layout.sizes[members[0]]
        page.heading(first, first.title if len(members) > 1 else heading(first), top, colormap)
        if first.observed_image is not None:
            observed = _fit(first.observed_image, size) if upscale else first.observed_image
            page.cell(image_box, size, observed, "image")
            truth = truth_image(first.run, first.image)
            if upscale:
                truth = _fit(truth, size, blended=not has_colours(first.run))
            page.cell(mask_box, size, truth, truth_name(first.run))
        for index in members:
            sequence = sequences[index]
            if len(members) > 1:
                x, y = layout.cells[index, 0]
                middle = (x - layout.points(2.5), y + size[1] / 2)
                page.text(*middle, f"channel {sequence.channel}", _TEXT, rotation=90, ha="right", va="center")
            for frame, (step, unit) in enumerate(zip(sequence.steps, sequence.unit, strict=True)):
                pixels = _pixels(sequence, unit, colormap, layout.scales[index] if upscale else 1)
                page.cell(layout.cells[index, frame], size, pixels, str(step))
    draw_legend(page, layout.legend, layout.points)
    lines, top = layout.caption
    for index, line in enumerate(lines):
        page.text(layout.points(5), top + index * layout.points(8), line, _TEXT, color="0.25")
    return figure


def _pixels(sequence: FrameSequence, unit: NDArray[np.float32], colormap: str, scale: int) -> NDArray[np.uint8]:
    """One frame, ``(h, w, 3)``, each cell ``scale`` pixels wide; of predictions with the true object's outline."""
    colours = sequence.colours
    pixels = colorize(unit, colormap) if colours is None else colours.palette[to_indices(unit)]
    pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    line = true_outline(sequence, scale)
    if colours is not None and line is not None:
        pixels[line] = colours.palette[colours.outline]
    return pixels


class _GridPage(Page):
    """A page with the cells and headings of a grid."""

    def __init__(self, figure: Any, layout: GridLayout, *, exact: bool) -> None:
        super().__init__(figure, layout.width, layout.height, exact=exact)
        self.layout = layout

    def cell(self, corner: tuple[int, int], size: tuple[int, int], pixels: NDArray[np.uint8], label: str) -> None:
        from matplotlib.patches import Rectangle

        (x, y), (width, height), points = corner, size, self.layout.points
        self.edge((x, y, width, height))
        self.image((x, y, width, height), pixels)
        if not self.layout.chips:
            self.text(x, y - points(0.8), label, _STEP, color="0.25", va="bottom")
            return
        chip = (round(font(points(_STEP)).getlength(label)) + points(2.2), points(6.8))
        self.front.add_patch(Rectangle((x, y), *chip, facecolor="black", alpha=0.62, linewidth=0, zorder=3))
        middle = (x + chip[0] / 2, y + chip[1] / 2)
        self.text(*middle, label, _STEP, color="white", ha="center", va="center_baseline", zorder=4)

    def heading(self, sequence: FrameSequence, title: str, top: int, colormap: str) -> None:
        points, right = self.layout.points, self.layout.width - self.layout.points(5)
        middle = top + points(5)
        if sequence.colours is None:
            right = self.bar(sequence, colormap, right, middle)
        label = shorten(title, points(_HEADING), right - points(5), bold=True)
        self.text(points(5), middle, label, _HEADING, weight="bold", va="center_baseline")

    def bar(self, sequence: FrameSequence, colormap: str, right: int, middle: int) -> int:
        """The colour bar with its ends; returns their left end."""
        points = self.layout.points
        low, high = bar_ends(sequence)
        size = points(_TEXT)
        self.text(right, middle, high, _TEXT, ha="right", va="center_baseline")
        right -= round(font(size).getlength(high)) + points(3)
        width, height = points(56), points(5)
        bar = palette(colormap)[None]
        if self.exact:
            bar = bar[:, np.linspace(0, 255, width).round().astype(int)].repeat(height, axis=0)
        self.image((right - width, middle - height // 2, width, height), bar)
        right -= width + points(3)
        self.text(right, middle, low, _TEXT, ha="right", va="center_baseline")
        return right - round(font(size).getlength(low)) - points(6)


def _fit(pixels: NDArray[np.uint8], size: tuple[int, int], *, blended: bool = True) -> NDArray[np.uint8]:
    """An image at the size of a cell; not ``blended`` for classes, whose mixed colours may be a third class."""
    resample = Image.Resampling.LANCZOS if blended else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, resample))
