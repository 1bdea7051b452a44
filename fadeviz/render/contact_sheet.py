"""A contact sheet: several figures on one page, each with its name and what it shows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from ..storage.files import write_whole
from .fonts import font, spell
from .labels import shorten, wrap

_WIDE, _GAP, _TALLEST = 760, 28, 1400
"""Pixels: the width of a figure, the space around it, and its largest height."""
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
    """Write figures in two columns as a PNG; each goes below the shorter column.

    Args:
        entries: at least one figure.
        output: the file to write.
    """
    tiles = [_tile(entry) for entry in entries]
    columns = min(2, len(tiles))
    bottoms = [_GAP] * columns
    places = []
    for tile in tiles:
        column = bottoms.index(min(bottoms))
        places.append((_GAP + column * (_WIDE + _GAP), bottoms[column]))
        bottoms[column] += tile.height + _GAP
    page = Image.new("RGB", (_GAP + columns * (_WIDE + _GAP), max(bottoms)), "white")
    for tile, place in zip(tiles, places, strict=True):
        page.paste(tile, place)
    data = io.BytesIO()
    page.save(data, "PNG", optimize=True)
    write_whole(output, data.getvalue())


def _tile(entry: SheetEntry) -> Image.Image:
    with Image.open(entry.file) as opened:
        opened.seek(getattr(opened, "n_frames", 1) - 1)
        rgba = opened.convert("RGBA")
    figure = Image.new("RGB", rgba.size, "white")
    figure.paste(rgba, mask=rgba.getchannel("A"))
    figure.thumbnail((_WIDE, _TALLEST), Image.Resampling.LANCZOS)
    lines = wrap(spell(entry.text), _WORDS, _WIDE)
    head = round(1.5 * _NAME) + round(1.35 * _WORDS) * len(lines) + 8
    tile = Image.new("RGB", (_WIDE, head + figure.height), "white")
    draw = ImageDraw.Draw(tile)
    draw.text((0, 0), shorten(spell(entry.name), _NAME, _WIDE, bold=True), "black", font(_NAME, bold=True))
    for number, line in enumerate(lines):
        draw.text((0, round(1.5 * _NAME) + number * round(1.35 * _WORDS)), line, "#555555", font(_WORDS))
    tile.paste(figure, (0, head))
    return tile


__all__ = ["SheetEntry", "write_contact_sheet"]
