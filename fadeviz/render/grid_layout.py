"""The layout of a grid: where its cells, images, steps and words lie, in whole pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import FadevizError
from ..storage.stored_run import StoredRun
from .classes import LEAST_SHARE, ClassKey, class_key, largest_shares, names_classes
from .drawing import overlay_sentence
from .fonts import font
from .frames import FrameSequence, scale_maps
from .labels import balanced, heading, short_caption, truth_name
from .legend import Legend, PlacedLegend, place_legend
from .normalize import FIXED_RANGES
from .page import MAX_PIXELS
from .selection import FigureContent
from .style import FigureStyle

_CELL, _CELL_DPI = 120, 200
"""Approximate width of a cell in pixels, and pixels per inch, of a figure without a width."""
_PRINT_DPI = 300
"""Smallest resolution of a figure with a width, in pixels per inch."""
TEXT, STEP, HEADING = 6.0, 5.2, 8.0
"""Font sizes in points: the caption, the steps, the runs and the title."""
LEADING = 1.25
"""Distance between the lines of a title, in font sizes."""
LEAST_TEXT = 5.0
"""Smallest font size in points that can be read in print."""
_GAP, _MARGIN, _GUTTER, _BETWEEN = 1.6, 4.0, 5.0, 3.0
"""Points between two cells, around everything, between images and maps, and between two runs."""
_LEAST_CELL, _GOOD_CELL = 12.0, 28.0
"""Points: the smallest cell, and the width below which frames go into more rows, if the figure has a width."""
_LARGEST_IMAGE, _LARGEST_SHARE = 3.3, 0.45
"""Largest width of the image and the mask: in cells, and as a share of the maps beside them."""
_BESIDE_MANY = 1.3
"""Width of image and mask in cells where they cannot fill the height of the maps beside them."""
_NARROWEST, _BARE = 230, 130
"""Smallest width in points of a figure whose width nobody chose, so that its caption has room; of one without."""
_HEADING, _BAR = 150, 100
"""Points that a heading may take at most before it makes a figure wider, and that the colour bar takes."""
_RATIO = 1.7
"""Width of a figure relative to its height, as far as the number of frames allows."""

Rectangle = tuple[int, int, int, int]
"""x, y, width and height in pixels."""


@dataclass(frozen=True)
class Block:
    """The frames of one run for one image.

    Attributes:
        members: indices of its sequences: one, or one for each channel.
        heading: the words above.
        top: top of the heading.
        bar: whether the colour bar stands beside the heading.
    """

    members: list[int]
    heading: str
    top: int
    bar: bool


@dataclass(frozen=True)
class Reference:
    """The observed image and its mask, once for all runs.

    Attributes:
        sequence: index of a sequence that has them.
        image: where the image is.
        mask: where the mask is.
    """

    sequence: int
    image: Rectangle
    mask: Rectangle


@dataclass(frozen=True)
class GridLayout:
    """Where everything of a grid is, in pixels from the upper left corner.

    Attributes:
        width: width of the figure.
        height: height of the figure.
        dpi: pixels per inch.
        sizes: width and height of the cells of each sequence; they differ where the sizes of the runs' maps do.
        scales: width and height of a map value of each sequence.
        left: left side of the maps.
        blocks: the runs, for each image.
        references: image and mask, for each image that a run has.
        cells: ``(sequence, frame) -> (x, y)``, upper left corner of the cell.
        over: words above cells and images, with the middle of their lower edge.
        beside: words on the left of rows, read upwards, with the middle of their right edge.
        legend: where the classes of the masks stand, above the caption.
        title: the lines of the title, and its top; empty for none.
        caption: the lines below, and the top of the first.
        ratio: font sizes relative to :data:`TEXT` and the others.
        reading: sentences on how to read the colours.
        notes: what was not possible.
    """

    width: int
    height: int
    dpi: float
    sizes: list[tuple[int, int]]
    scales: list[int]
    left: int
    blocks: list[Block]
    references: list[Reference]
    cells: dict[tuple[int, int], tuple[int, int]]
    over: list[tuple[int, int, str]]
    beside: list[tuple[int, int, str]]
    legend: PlacedLegend
    title: tuple[list[str], int]
    caption: tuple[list[str], int]
    ratio: float
    reading: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def cell(self) -> tuple[int, int]:
        """The size of the first sequence's cells."""
        return self.sizes[0]

    @property
    def scale(self) -> int:
        """The width of a map value of the first sequence."""
        return self.scales[0]

    def points(self, size: float) -> int:
        """A length in points as pixels."""
        return round(size * self.dpi / 72)

    def font_size(self, own: float) -> float:
        """One of the font sizes, in points."""
        return max(LEAST_TEXT, own * self.ratio)


@dataclass(frozen=True)
class _Measures:
    """What the lengths of a grid depend on, in pixels unless it says otherwise.

    Attributes:
        dpi: pixels per inch.
        cell: width and height of the largest cell.
        pitch: distance between the left sides of neighbouring cells.
        ratio: font sizes relative to the usual ones.
        columns: frames in a row.
        frames: frames of a sequence.
        images: for each image the number of sequences of each run.
        references: whether there are images and masks.
        label: whether there are words on the left of rows.
        above: whether image and mask are in a row above the maps of their image, and not on the left.
        fixed: the width of an image in cells if that was chosen before; None to choose it.
    """

    dpi: float
    cell: tuple[float, float]
    pitch: float
    ratio: float
    columns: int
    frames: int
    images: tuple[tuple[int, ...], ...]
    references: bool
    label: bool
    above: bool = False
    fixed: float | None = None

    def px(self, size: float) -> int:
        return round(size * self.dpi / 72)

    def text(self, own: float) -> float:
        """A font size in points."""
        return max(LEAST_TEXT, own * self.ratio)

    @property
    def rows(self) -> int:
        """Rows of cells of a sequence."""
        return math.ceil(self.frames / self.columns)

    @property
    def step_line(self) -> int:
        return self.px(self.text(STEP) * 1.45)

    @property
    def heading_line(self) -> int:
        return self.px(self.text(HEADING) * 1.5)

    def members_height(self, members: int, first: bool) -> int:
        """Height of the cells of a run, with the steps above: above each row, or once, above the columns."""
        lines = members * self.rows if self.rows > 1 else int(first)
        return round(lines * self.step_line + members * self.rows * (self.cell[1] + self.px(_GAP)))

    def image_height(self, runs: Sequence[int]) -> int:
        """Height of all runs of an image."""
        cells = sum(self.members_height(members, number == 0) for number, members in enumerate(runs))
        return self.above_height + cells + len(runs) * (self.heading_line + self.px(_BETWEEN))

    @property
    def above_height(self) -> int:
        """Height of the row with image and mask, if it is above the maps."""
        return (self.step_line + round(self.cell[1]) + self.px(_BETWEEN)) * self.above

    @property
    def reference(self) -> float:
        """Width of an image in cells: in the only row one, otherwise what makes two of them fill the height."""
        rows = min(map(sum, self.images)) * self.rows
        if self.fixed is not None:
            return self.fixed
        if rows == 1 or self.above:
            return 1.0
        lines = self.heading_line + self.step_line + self.px(_BETWEEN) + self.px(_GAP)
        height = min(map(self.image_height, self.images)) - lines
        fills = (height - self.step_line - self.px(_GAP)) / 2 / self.cell[1]
        largest = max(1.0, min(_LARGEST_IMAGE, _LARGEST_SHARE * self.columns)) if rows > 2 else 1.0
        # Beside very many rows the column is mostly empty, and a narrow one wastes less of the figure.
        widths = [min(width, largest, fills) for width in (largest, _BESIDE_MANY)]
        return min(widths, key=lambda width: (fills - width) * width / (self.columns + width))

    @property
    def aside(self) -> bool:
        """Whether the mask is on the right of the image, not below."""
        return self.above or max(sum(runs) for runs in self.images) * self.rows == 1

    @property
    def left(self) -> float:
        """Left side of the maps."""
        label = self.px(self.text(TEXT) * 1.5) if self.label else 0
        if not self.references or self.above:
            return self.px(_MARGIN) + label
        images = self.reference * self.cell[0] * (1 + self.aside) + self.px(_GAP) * self.aside
        return self.px(_MARGIN) + images + self.px(_GUTTER) + label

    @property
    def width(self) -> float:
        return self.left + self.columns * self.pitch - self.px(_GAP) + self.px(_MARGIN)

    @property
    def height(self) -> int:
        return sum(map(self.image_height, self.images)) + 2 * self.px(_MARGIN)

    @property
    def white(self) -> float:
        """The share of the figure that stays empty beside image and mask, or below them."""
        if not self.references or (self.aside and not self.above):
            return 0.0
        if self.above:
            empty = len(self.images) * self.above_height * max(0.0, self.columns - 2) * self.pitch
        else:
            used = 2 * (self.step_line + self.reference * self.cell[1]) + self.heading_line
            tall = sum(max(0.0, self.image_height(runs) - used) for runs in self.images)
            empty = tall * self.reference * self.cell[0]
        return empty / (self.width * self.height)


def layout_grid(
    sequences: Sequence[FrameSequence],
    *,
    columns: int | None = None,
    scale: int | None = None,
    content: FigureContent = FigureContent(),
    style: FigureStyle = FigureStyle(),
) -> GridLayout:
    """Where a grid puts its cells.

    Raises:
        FadevizError: if ``columns`` or ``scale`` is less than 1, the cells do not fit in the width, text would be too
            small to read, or the figure has too many pixels.
    """
    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None and value < 1:
            raise FadevizError(f"{name}={value}: must be at least 1")
    if style.font_size is not None and style.font_size < LEAST_TEXT:
        raise FadevizError(f"font_size={style.font_size:g}: less than {LEAST_TEXT:g} points cannot be read in print")
    measures, scales, sizes, notes = _measure(sequences, columns, scale, content, style)
    return _Placing(sequences, measures, scales, sizes, content, style).place(notes)


def _by_run(sequences: Sequence[FrameSequence]) -> dict[int, dict[StoredRun, list[int]]]:
    """The indices of the sequences, by image and run."""
    found: dict[int, dict[StoredRun, list[int]]] = {}
    for index, sequence in enumerate(sequences):
        found.setdefault(sequence.image, {}).setdefault(sequence.run, []).append(index)
    return found


_Measured = tuple[_Measures, list[int], list[tuple[int, int]], tuple[str, ...]]


def _measure(
    sequences: Sequence[FrameSequence],
    columns: int | None,
    scale: int | None,
    content: FigureContent,
    style: FigureStyle,
) -> _Measured:
    """The lengths of a grid, the scale and size of each sequence's cells, and notes."""
    frames = len(sequences[0].steps)
    runs = tuple(tuple(map(len, by_run.values())) for by_run in _by_run(sequences).values())
    label = any(members > 1 for image in runs for members in image)
    measures = _Measures(
        dpi=_CELL_DPI,
        cell=(_CELL, _CELL),
        pitch=_CELL,
        ratio=1.0 if style.font_size is None else style.font_size / TEXT,
        columns=frames if columns is None else min(columns, frames),
        frames=frames,
        images=runs,
        references=any(sequence.observed_image is not None for sequence in sequences),
        label=label,
    )
    given = columns is not None or label
    if style.inches is not None:
        return _measure_width(sequences, measures, given, scale, style)
    dpi = style.dpi or _CELL_DPI
    scales, sizes = scale_maps(sequences, scale, round(_CELL * dpi / _CELL_DPI))
    cell = max(width for width, _ in sizes), max(height for _, height in sizes)
    if style.dpi is None:
        dpi = math.ceil(_CELL_DPI * max(1.0, cell[0] / 128))
    measures = replace(measures, dpi=dpi, cell=cell)
    measures = replace(measures, pitch=max(cell[0], _widest_step(sequences, measures)) + measures.px(_GAP))

    def page(one: _Measures) -> float:
        return max(one.width, _least_width(one, content))

    # Where nobody chose the width, a narrow figure is no worse: only the white decides where image and mask are.
    choices = [
        min(both, key=lambda one: one.white + 1 - one.width / page(one)) for both in _arrangements(measures, given)
    ]
    return min(choices, key=lambda one: _badness(one, page(one))), scales, sizes, ()


def _measure_width(
    sequences: Sequence[FrameSequence], measures: _Measures, given: bool, scale: int | None, style: FigureStyle
) -> _Measured:
    """The same for a figure with a width: cells as large as fit, each map value a square of whole pixels."""
    assert style.inches is not None
    if scale is not None and style.dpi is not None:
        raise FadevizError("scale=..., dpi=... and width=... together decide the size twice. Leave out one of them")
    widest = max(int(sequence.maps.shape[2]) for sequence in sequences)
    tallest = max(sequence.maps.shape[1] / sequence.maps.shape[2] for sequence in sequences)
    room = style.inches * 72
    # In points first: how large can a cell be?
    choices = _arrangements(replace(measures, dpi=72 * 64), given)
    fitted = [_fit_cell(choice, room * 64, tallest) for both in choices for choice in both]
    fitting = [one for one in fitted if one.cell[0] >= _GOOD_CELL * 64] or [max(fitted, key=lambda one: one.cell[0])]
    chosen = min(fitting, key=lambda one: _badness(one, room * 64))
    cell = chosen.cell[0] / 64
    least = max(_LEAST_CELL, _widest_step(sequences, chosen) / 64)
    if cell < least:
        raise FadevizError(
            f"width={style.width!r}: {chosen.columns} frames in a row would be {max(0.0, cell):.1f} points wide each, "
            f"less than {least:.3g}. Choose fewer steps=... or columns=..., or a larger width=..."
        )
    notes: tuple[str, ...] = ()
    if style.dpi is None:
        scale = scale or max(1, math.ceil(cell * _PRINT_DPI / 72 / widest))
        dpi = scale * widest * 72 / cell
    else:
        dpi, scale = float(style.dpi), int(cell * style.dpi / 72 / widest + 1e-6)
        if scale < 1:
            raise FadevizError(
                f"dpi={style.dpi}: a cell is {int(cell * dpi / 72)} pixels wide, and a map has {widest} values across. "
                f"Choose at least dpi={math.ceil(widest * 72 / cell)}, a larger width=..., or fewer columns=..."
            )
        used = scale * widest * 72 / dpi / cell
        if used < 0.9:
            notes = (
                f"cells fill {used:.0%} of their room, because a map value is a square of whole pixels at {style.dpi} "
                "pixels per inch. Leave out dpi=... to fill it",
            )
    scales, sizes = scale_maps(sequences, scale, _CELL)
    height = max(height for _, height in sizes)
    # Rounding must not make the choice another one.
    placed = replace(chosen, dpi=dpi, cell=(max(width for width, _ in sizes), height), fixed=chosen.reference)
    # Rounding, and maps that do not fill their room, go into the gaps.
    over = round(room * dpi / 72) - placed.left - placed.px(_MARGIN) + placed.px(_GAP)
    return replace(placed, pitch=over / placed.columns), scales, sizes, notes


def _fit_cell(measures: _Measures, room: float, tall: float) -> _Measures:
    """The same with the largest cells with which it is not wider than ``room`` pixels."""
    low, high = 0.0, room
    for _ in range(40):
        middle = (low + high) / 2
        trial = replace(measures, cell=(middle, middle * tall), pitch=middle + measures.px(_GAP))
        low, high = (middle, high) if trial.width <= room else (low, middle)
    return replace(measures, cell=(low, low * tall), pitch=low + measures.px(_GAP))


def _arrangements(measures: _Measures, given: bool) -> list[list[_Measures]]:
    """For each number of columns, unless that is ``given``: with image and mask beside the maps, and above them."""
    counts = [measures.columns] if given else _balanced(measures.frames)
    places = {count: (False, True) if measures.references and count > 1 else (False,) for count in counts}
    return [[replace(measures, columns=count, above=above) for above in places[count]] for count in counts]


def _balanced(frames: int) -> list[int]:
    """Numbers of columns with which no row is much shorter than the others: of 5 frames 5 or 3, and not 4 + 1."""
    counts = [math.ceil(frames / rows) for rows in range(1, max(2, frames))]
    full = [count for count in dict.fromkeys(counts) if -frames % count <= max(1, count // 4)]
    return [count for count in full if count <= 16] or full


def _badness(measures: _Measures, width: float) -> float:
    """How far a figure is from the usual shape; what stays empty in rows, by images and of the width counts."""
    places = measures.rows * measures.columns
    empty = (places - measures.frames) / places + measures.white + (1 - measures.width / width) / 2
    return abs(math.log(width / measures.height / _RATIO)) + 6.0 * empty


def _least_width(measures: _Measures, content: FigureContent) -> int:
    """The smallest width in pixels of a figure whose width nobody chose."""
    return measures.px(_NARROWEST if content.caption else _BARE)


def _widest_step(sequences: Sequence[FrameSequence], measures: _Measures) -> int:
    """The width that the steps above the cells need."""
    size = font(max(1, measures.px(measures.text(STEP))))
    return math.ceil(max(size.getlength(str(step)) for step in sequences[0].steps)) + measures.px(1)


class _Placing:
    """Places everything of a grid, from top to bottom."""

    def __init__(
        self,
        sequences: Sequence[FrameSequence],
        measures: _Measures,
        scales: list[int],
        sizes: list[tuple[int, int]],
        content: FigureContent,
        style: FigureStyle,
    ) -> None:
        self.sequences, self.measures, self.content = sequences, measures, content
        self.scales, self.sizes, self.style = scales, sizes, style
        self.left = round(measures.left)
        self.blocks: list[Block] = []
        self.references: list[Reference] = []
        self.cells: dict[tuple[int, int], tuple[int, int]] = {}
        self.over: list[tuple[int, int, str]] = []
        self.beside: list[tuple[int, int, str]] = []

    def place(self, notes: tuple[str, ...]) -> GridLayout:
        measures, px = self.measures, self.measures.px
        margin = px(_MARGIN)
        if self.style.inches is None:
            width = max(round(measures.width), _least_width(measures, self.content), self._heading_width())
        else:
            width = round(self.style.inches * measures.dpi)
        top = margin
        size = max(1, px(measures.text(HEADING)))
        room = round(0.88 * (width - 2 * margin))  # bold letters are wider
        first, *rest = balanced(self.content.title, size, room) if self.content.title else [""]
        title = [line for line in (first, " ".join(rest)) if line]
        if title:
            top += px(measures.text(HEADING) * (1.6 + LEADING * (len(title) - 1)))
        for by_run in _by_run(self.sequences).values():
            top = self._place_image(by_run, top)
            _check_pixels(width, top)
        legend, reading = _classes(
            [self.sequences[reference.sequence] for reference in self.references], self.sequences
        )
        placed: PlacedLegend = []
        if legend:
            placed, top = place_legend(legend, margin, width - margin, top + px(1), self._words)
            top += px(3)
        lines: list[str] = []
        overlaid = overlay_sentence(self.sequences, self.content)
        if self.content.caption:
            lines = short_caption(
                self.sequences, max(1, px(measures.text(TEXT))), width - 2 * margin, reading, overlaid
            )
        top += px(1) if lines else -px(_BETWEEN) if not legend else 0
        height = top + len(lines) * px(measures.text(TEXT) * 4 / 3) + margin
        _check_pixels(width, height)
        return GridLayout(
            width=width,
            height=height,
            dpi=measures.dpi,
            sizes=self.sizes,
            scales=self.scales,
            left=self.left,
            blocks=self.blocks,
            references=self.references,
            cells=self.cells,
            over=self.over,
            beside=self.beside,
            legend=placed,
            title=(title, margin),
            caption=(lines, top),
            ratio=measures.ratio,
            reading=(*reading, *overlaid),
            notes=notes,
        )

    def _heading_width(self) -> int:
        """The width that the longest heading of usual length needs beside the colour bar."""
        px, size = self.measures.px, font(max(1, self.measures.px(self.measures.text(HEADING))), bold=True)
        longest = max(size.getlength(heading(sequence)) for sequence in self.sequences)
        return self.left + round(min(longest, px(_HEADING))) + px(_BAR) + px(_MARGIN)

    def _words(self, size: float) -> int:
        """A length of a legend in pixels: in proportion to its text."""
        return self.measures.px(size * self.measures.text(TEXT) / TEXT)

    def _place_image(self, by_run: dict[StoredRun, list[int]], top: int) -> int:
        """Place all runs of one image; returns their lower edge."""
        measures, px = self.measures, self.measures.px
        upper = top + measures.step_line
        top += measures.above_height
        first = upper if measures.above else top + measures.heading_line + measures.step_line
        second = first
        for number, members in enumerate(by_run.values()):
            sequence = self.sequences[members[0]]
            own_range = sequence.scope == "run" and sequence.kind not in FIXED_RANGES
            bar = sequence.colours is None and (not self.blocks or (own_range and len(self.blocks) < len(by_run)))
            words = sequence.title if len(members) > 1 else heading(sequence)
            self.blocks.append(Block(members, words, top, bar))
            top += measures.heading_line
            for place, member in enumerate(members):
                top = self._place_frames(member, top, above=number == place == 0)
                if number + place <= 1:
                    second = top - px(_GAP) - round(measures.cell[1])
                if len(members) > 1:
                    label = self._channel(member)
                    y = self.cells[member, 0][1] + self.sizes[member][1] // 2
                    self.beside.append((self.left - px(2), y, label))
            top += px(_BETWEEN)
        self._place_reference([index for members in by_run.values() for index in members], first, second)
        return top

    def _place_frames(self, member: int, top: int, *, above: bool) -> int:
        """Place the cells of a sequence, with the steps above each row, or only if ``above`` in a single row."""
        measures, px = self.measures, self.measures.px
        for row in range(measures.rows):
            if above or measures.rows > 1:
                top += measures.step_line
            for column in range(measures.columns):
                frame = row * measures.columns + column
                if frame == measures.frames:
                    break
                x = self.left + round(column * measures.pitch)
                self.cells[member, frame] = x, top
                if above or measures.rows > 1:
                    middle = x + self.sizes[member][0] // 2
                    self.over.append((middle, top - px(1), self._step(self.sequences[member].steps, frame)))
            top += round(measures.cell[1]) + px(_GAP)
        return top

    def _channel(self, member: int) -> str:
        """The words beside a row: its channel, or where that is too long only the number."""
        words = f"channel {self.sequences[member].channel}"
        size = max(1, self.measures.px(self.measures.text(TEXT)))
        room = 0.85 * self.sizes[member][1]  # the next row's words must not touch
        return words if font(size).getlength(words) <= room else words.partition(" ")[2]

    def _step(self, steps: Sequence[int], frame: int) -> str:
        """The words above a cell: the step; the first, where there is room, says that it is one."""
        words = f"step {steps[frame]}" if frame == 0 else str(steps[frame])
        size = max(1, self.measures.px(self.measures.text(STEP)))
        return words if font(size).getlength(words) <= self.measures.pitch else str(steps[frame])

    def _place_reference(self, indices: Sequence[int], first: int, second: int) -> None:
        """Place image and mask at ``first``, beside the rows or above; in two rows the mask begins at ``second``."""
        measures, px = self.measures, self.measures.px
        known = [index for index in indices if self.sequences[index].observed_image is not None]
        if not known:
            return
        # A run without masks has stored zeros: another one's are better.
        labelled = [index for index in known if np.any(self.sequences[index].mask)]
        index = (labelled or known)[0]
        x, (width, height) = px(_MARGIN), (round(measures.reference * length) for length in measures.cell)
        if measures.above:
            x = self.left
            mask = (x + round(measures.pitch), first, width, height)
        elif measures.aside:
            mask = (x + width + px(_GAP), first, width, height)
        elif measures.reference == 1:
            mask = (x, second, width, height)
        else:
            mask = (x, first + height + px(_GAP) + measures.step_line, width, height)
        boxes = [_proportioned(self.sequences[index], box) for box in ((x, first, width, height), mask)]
        self.references.append(Reference(index, *boxes))
        for (left, top, across, _), words in zip(boxes, ("image", truth_name(self.sequences[index].run)), strict=True):
            self.over.append((left + across // 2, top - px(1), words))


def _proportioned(sequence: FrameSequence, box: Rectangle) -> Rectangle:
    """The place of a whole image beside maps that are cut to a window: as much of it as has the image's proportions."""
    if sequence.crop is None or sequence.observed_image is None:
        return box
    x, y, width, height = box
    tall, wide = sequence.observed_image.shape[:2]
    factor = min(width / wide, height / tall)
    return x, y, max(1, round(wide * factor)), max(1, round(tall * factor))


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise FadevizError(
            f"the figure would be {width}x{height} pixels, more than {MAX_PIXELS:,}. "
            "Use a smaller scale=..., or fewer steps"
        )


def _classes(shown: Sequence[FrameSequence], sequences: Sequence[FrameSequence]) -> tuple[Legend, list[str]]:
    """The legend of the classes of the masks shown and of predictions; and a sentence on how to read it."""
    predicted = [
        (name, tuple(sequence.colours.palette[index].tolist()))
        for sequence in sequences
        if sequence.colours is not None
        for name, index in sequence.colours.legend
    ]
    keys = [
        class_key([sequence.run], largest_shares([sequence.run.observation[1][sequence.image]]))
        for sequence in shown
        if names_classes(sequence.run)
    ]
    legend = tuple(dict.fromkeys([*predicted, *(entry for key in keys for entry in key.legend)]))
    return legend, [] if predicted else list(filter(None, dict.fromkeys(map(_beside_legend, keys))))


def _beside_legend(key: ClassKey) -> str:
    """What the legend does not say of the colours."""
    others = f"{key.small} more classes fill less than {LEAST_SHARE:.0%} of any image. " if key.small else ""
    return f"{others}{key.void}".rstrip()


__all__ = [
    *("HEADING", "LEADING", "LEAST_TEXT", "STEP", "TEXT"),
    *("Block", "GridLayout", "Rectangle", "Reference", "layout_grid"),
]
