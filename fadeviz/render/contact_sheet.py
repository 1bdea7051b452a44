"""A contact sheet: several figures on one page, each with its name and what it shows."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from ..storage.files import write_whole
from .fonts import font, spell
from .labels import shorten, wrap

_WIDE, _GAP = 1520, 28
"""Pixels: the width of a row of figures with the space between them, and that space."""
_AREA, _NARROWEST, _TALLEST = 380_000, 360, 1600
"""Usual area of a figure in pixels, its smallest width, and the largest height of a row."""
_NAME, _WORDS = 22, 17
"""Font sizes in pixels."""


@dataclass(frozen=True)
class SheetEntry:
    """One figure of a contact sheet.

    Attributes:
        name: its name, such as that of its file.
        text: what it shows, below the name.
        file: a raster image; of an animation the last frame is shown.
    """

    name: str
    text: str
    file: Path


def write_contact_sheet(entries: Sequence[SheetEntry], output: Path) -> None:
    """Write figures in their order as a PNG: in rows of one height, which fill the width of the page.

    Args:
        entries: at least one figure.
        output: the file to write.
    """
    figures = [_read(entry.file) for entry in entries]
    rows, first = [], 0
    for count in _choose_rows([figure.width / figure.height for figure in figures]):
        own = slice(first, first + count)
        rows.append(_row(entries[own], figures[own]))
        first += count
    page = Image.new(
        "RGB", (max(row.width for row in rows) + 2 * _GAP, sum(row.height + _GAP for row in rows) + _GAP), "white"
    )
    top = _GAP
    for row in rows:
        page.paste(row, (_GAP, top))
        top += row.height + _GAP
    data = io.BytesIO()
    page.save(data, "PNG", optimize=True)
    write_whole(output, data.getvalue())


def _read(file: Path) -> Image.Image:
    """A figure on white; of an animation the last frame."""
    with Image.open(file) as opened:
        opened.seek(getattr(opened, "n_frames", 1) - 1)
        rgba = opened.convert("RGBA")
    figure = Image.new("RGB", rgba.size, "white")
    figure.paste(rgba, mask=rgba.getchannel("A"))
    return figure


def _row_height(shapes: Sequence[float]) -> float:
    """The height at which figures of these ratios of width to height fill a row."""
    return (_WIDE - _GAP * (len(shapes) - 1)) / sum(shapes)


def _choose_rows(shapes: Sequence[float]) -> list[int]:
    """Numbers of figures in each row, such that figures have about the same area, and none is too narrow for its words.

    Args:
        shapes: the ratio of width to height of each figure.
    """

    def cost(first: int, stop: int) -> float:
        high = min(_TALLEST, _row_height(shapes[first:stop]))
        areas = sum(math.log(shape * high * high / _AREA) ** 2 for shape in shapes[first:stop])
        return areas + 10.0 * sum(shape * high < _NARROWEST for shape in shapes[first:stop])

    # The best rows of the first 0, 1, 2, ... figures.
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for stop in range(1, len(shapes) + 1):
        best.append(min((best[first][0] + cost(first, stop), [*best[first][1], stop - first]) for first in range(stop)))
    return best[-1][1]


def _row(entries: Sequence[SheetEntry], figures: Sequence[Image.Image]) -> Image.Image:
    """Figures side by side, each below its name and its words."""
    shapes = [figure.width / figure.height for figure in figures]
    high = min(_TALLEST, _row_height(shapes))
    edges = [round(sum(shapes[:index]) * high) for index in range(len(shapes) + 1)]
    widths = [max(1, stop - start) for start, stop in itertools.pairwise(edges)]
    words = [wrap(spell(entry.text), _WORDS, width) for entry, width in zip(entries, widths, strict=True)]
    head = round(1.5 * _NAME) + round(1.35 * _WORDS) * max(map(len, words)) + 8
    row = Image.new("RGB", (edges[-1] + _GAP * (len(figures) - 1), head + max(1, round(high))), "white")
    draw = ImageDraw.Draw(row)
    for index, (entry, figure, width, lines) in enumerate(zip(entries, figures, widths, words, strict=True)):
        left = edges[index] + index * _GAP
        draw.text((left, 0), shorten(spell(entry.name), _NAME, width, bold=True), "black", font(_NAME, bold=True))
        for number, line in enumerate(lines):
            draw.text((left, round(1.5 * _NAME) + number * round(1.35 * _WORDS)), line, "#555555", font(_WORDS))
        row.paste(figure.resize((width, row.height - head), Image.Resampling.LANCZOS), (left, head))
    return row


__all__ = ["SheetEntry", "write_contact_sheet"]
