"""Distance-time maps of several operators as one figure: depth against training step, with the arrivals marked."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import FadevizError
from .colormap import signed_palette
from .fonts import font, letters, spell
from .labels import balanced, fit_sentences, format_number, shorten, wrap
from .page import check_ending, figure_style, save_figure
from .panels import INTERIOR, OUTLINE, ArrivalMark, KymographPanel, kymograph_span, panel_grid
from .step_axis import StepAxis, choose_step_axis
from .style import WIDTHS, FigureStyle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 220
_MEASURE = 300
"""Pixels per inch at which words are measured, whatever the figure's own are: the same lines at any resolution."""
_TITLE, _SMALL, _TICK = 9.0, 7.5, 7.0
"""Font sizes in points: of titles, of all other sentences, of numbers at the axes."""
_LEADING = 1.32
"""Distance between lines of text, in font sizes."""
_DEPTH = "inside ← object radii → outside"
_INK, _QUIET = "0.1", "0.35"

_CONTOUR: Any = {"color": "black", "linewidth": 0.8, "linestyle": (0, (5, 2.5))}
_SYMBOLS = {OUTLINE: ("o", 5.2), INTERIOR: ("D", 4.4)}
"""Marker of an arrival, and its size in points."""
_UNDEFINED = "0.86"

_WIDTHS = {1: 1.75, 2: 2.6, 3: 2.05}
"""Width of a panel by the number of columns, where the figure is not wider than a page."""
_MANY, _LEAST = 1.56, 0.7
"""The same for four columns and more; and the width below which there are fewer columns."""
_NARROW = 4.5
"""Inches: in narrower figures operators stand one below the other if they have rows."""
_MARGIN, _GAP, _AXIS, _ROW, _BAR = 0.08, 0.13, 0.46, 0.22, 0.92
"""Margin of the figure, space between columns, of the vertical axis, of the rows' names, and right of the panels."""


def write_kymographs(
    panels: Sequence[KymographPanel],
    output: str | os.PathLike[str],
    *,
    quantity: str,
    step_axis: str = "auto",
    title: str = "",
    caption: Sequence[str] = (),
    provenance: str = "",
    style: FigureStyle | None = None,
) -> Figure:
    """Draw distance-time maps side by side: depth upwards, training step to the right, the contour dashed.

    All panels share their axes and their colours, which are symmetric about 0: orange where a map is higher than one
    that ignores its image, blue where it is lower, white where it is the same. Panels of one title stand one below the
    other. A dot marks the arrival of the outline, a diamond that of the interior, each with its interval; both are
    open, and at the first snapshot, if there before training.

    Args:
        panels: one or more for each operator.
        output: a file; the ending decides: .png, .pdf or .svg.
        quantity: what the colours are, for the bar's label.
        step_axis: a name in :data:`~fadeviz.render.step_axis.STEP_AXES`. ``"auto"`` is linear where the snapshots are
            roughly evenly spaced (:func:`~fadeviz.render.step_axis.choose_step_axis`), otherwise log(1 + step).
        title: a title above the figure; empty for none.
        caption: sentences below, the most needed first: the first one, and others as far as they fit into two lines.
        provenance: what the figure is made of, for the metadata of the file.
        style: width, font and resolution. By default one panel is as wide as a column, several at most as a page.

    Returns:
        The figure that was written, which can be changed and saved again; pyplot does not manage it.

    Raises:
        FadevizError: if there are no panels, the file has another ending, or the step axis is unknown.
    """
    from matplotlib import rc_context

    path = check_ending(output, "plot")
    if not panels:
        raise FadevizError("there is nothing to plot. Give at least one run")
    axis = choose_step_axis([panel.steps for panel in panels], step_axis)
    style = style or FigureStyle()
    with style.applied(), rc_context(_settings(style)):
        figure = _Figure(panels, axis, quantity, style, title, caption).draw()
        _save(figure, path, style, provenance)
    return figure


def _settings(style: FigureStyle) -> Any:
    """Settings of matplotlib for these plots."""
    return figure_style() | {
        "font.size": style.points(_SMALL, _SMALL),
        "axes.linewidth": 0.6,
        "axes.edgecolor": "0.25",
        "hatch.linewidth": 0.4,
        "xtick.labelsize": style.points(_TICK, _SMALL),
        "ytick.labelsize": style.points(_TICK, _SMALL),
        "xtick.color": "0.25",
        "ytick.color": "0.25",
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.pad": 2.5,
        "ytick.major.pad": 2.5,
    }


class _Line(NamedTuple):
    """Panels side by side.

    Attributes:
        row: the name of the row.
        panels: one a column; None leaves a gap.
        titled: whether the titles stand above it.
        head: height of the title and the verdicts.
        space: height of the gap above it.
    """

    row: str
    panels: Sequence[KymographPanel | None]
    titled: bool
    head: float
    space: float


class _Entry(NamedTuple):
    """One entry of the legend: the label of an arrival or ``"contour"``, whether it is open, and its text."""

    symbol: str
    opened: bool
    text: str


class _Figure:
    """The figure; all lengths are in inches from its upper left corner."""

    def __init__(
        self,
        panels: Sequence[KymographPanel],
        axis: StepAxis,
        quantity: str,
        style: FigureStyle,
        title: str,
        caption: Sequence[str],
    ) -> None:
        from matplotlib.figure import Figure

        self.axis, self.style = axis, style
        self.panels = panels = _turned(panels) if (style.inches or WIDTHS["page"]) < _NARROW else panels
        rows, grid = panel_grid(panels)
        self.named = len(rows) > 1
        self.left = _MARGIN + _AXIS + _ROW * self.named
        self.columns, self.width = self._choose_columns(len(grid[0]))
        upright = font(self._pixels(_SMALL)).getlength(_DEPTH) / _MEASURE  # must fit beside its row
        self.height = max(0.6 + 0.54 * self.width, upright)
        self.right = self.left + self.columns * self.width + (self.columns - 1) * _GAP
        self.total = self.right + _BAR
        self.title = wrap(title, self._pixels(_TITLE), self._inside(0.9 * self.total)) if title else []
        self.lines = self._lines(rows, grid)
        self.legend_left = self.left
        self.legend = self._legend()
        self.aside = self._fits_aside(len(grid[0]), len(rows))
        self.quantity, self.span = quantity, kymograph_span(panels)
        room = self._inside(self.total - 2 * _MARGIN)
        small = self._pixels(_SMALL)
        self.caption = wrap(fit_sentences(caption, small, room), small, room) if caption else []
        borders = [axis.borders(panel.steps) for panel in panels]
        self.ends = min(float(one[0]) for one in borders), max(float(one[-1]) for one in borders)
        bottom = sum(line.space + line.head + self.height for line in self.lines)
        below = len(self.caption) + len(self.legend) * (not self.aside)
        texts = below * self._line(_SMALL) + 0.08 * bool(self.caption)
        self.tall = _MARGIN + len(self.title) * self._line(_TITLE) + bottom + 0.43 + texts + _MARGIN
        self.figure = Figure((self.total, self.tall), dpi=style.dpi or _DPI)
        self.figure.patch.set_facecolor("white")

    def _lines(self, rows: Sequence[str], grid: Sequence[Sequence[KymographPanel | None]]) -> list[_Line]:
        lines: list[_Line] = []
        for start in range(0, len(grid[0]), self.columns):
            for row, every in zip(rows, grid, strict=True):
                panels, titled = every[start : start + self.columns], row == rows[0]
                verdicts = max((len(self._verdict(panel)) for panel in panels if panel), default=0)
                titles = max((len(self._title(panel, self.width)) for panel in panels if panel), default=0) * titled
                head = verdicts * self._line(_SMALL) + titles * self._line(_TITLE) + 0.05
                lines.append(_Line(row, panels, titled, head, (0.14 if titled else 0.06) if lines else 0.0))
        return lines

    def _choose_columns(self, count: int) -> tuple[int, float]:
        """Panels in a line, with few gaps in the last one and whole titles; and their width."""
        total = self.style.inches
        around = self.left + _BAR
        most = max(1, int(((total or WIDTHS["page"]) - around + _GAP) / (_LEAST + _GAP)))
        wanted = range(count, 0, -1) if count <= 4 else (4, 5, 3, 2) if count <= 12 else (5, 4, 3, 2)
        able = [choice for choice in wanted if choice <= most] or [most]
        best = min(able, key=lambda choice: (choice < 3, -count % choice)) if count > 4 else able[0]
        whole = (choice for choice in (best, *able) if choice <= best and self._titles_fit(self._width(choice)))
        columns = next(whole, best)
        return columns, self._width(columns)

    def _width(self, columns: int) -> float:
        """The width of a panel if so many are side by side."""
        around, gaps = self.left + _BAR, (columns - 1) * _GAP
        total = self.style.inches or min(WIDTHS["page"], around + columns * _WIDTHS.get(columns, _MANY) + gaps)
        return max(0.5, (total - around + _GAP) / columns - _GAP)

    def _titles_fit(self, width: float) -> bool:
        """Whether all titles can be read whole above panels of a width."""
        return all(" ".join(self._title(panel, width)) == spell(panel.title) for panel in self.panels)

    def _verdict(self, panel: KymographPanel) -> list[str]:
        """The subtitle in at most four lines."""
        return self._few(panel.subtitle, _SMALL, 4, self.width)

    def _title(self, panel: KymographPanel, width: float) -> list[str]:
        """The title in at most two lines above a panel of a width."""
        return self._few(panel.title, _TITLE, 2, width, bold=True)

    def _few(self, text: str, points: float, most: int, inches: float, bold: bool = False) -> list[str]:
        size, width = self._pixels(points), self._inside(inches)
        text = spell(text)
        if any(shorten(word, size, width, bold) != word for word in text.split()):
            return [shorten(text, size, width, bold)]  # no word is broken
        lines = balanced(text, size, round(0.88 * width) if bold else width)  # bold letters are wider
        rest = " ".join(lines[most - 1 :])
        return lines if len(lines) <= most else [*lines[: most - 1], shorten(rest, size, width, bold)]

    def _pixels(self, points: float) -> int:
        """The font size of words that have ``points`` by default, in pixels of ``_MEASURE``."""
        return max(1, round(self.style.points(points, _SMALL) * _MEASURE / 72))

    def _line(self, points: float) -> float:
        """The height of a line of text in inches."""
        return self.style.points(points, _SMALL) * _LEADING / 72

    @staticmethod
    def _inside(inches: float) -> int:
        # Slightly less, because letters are rounded to pixels, which are others in the figure.
        return max(1, round(0.97 * inches * _MEASURE))

    def draw(self) -> Any:
        """The figure, drawn."""
        y, mesh = _MARGIN, None
        for text in self.title:
            self._text(_MARGIN, y, text, _TITLE, fontweight="bold")
            y += self._line(_TITLE)
        first = y + self.lines[0].head
        for number, line in enumerate(self.lines):
            y += line.space + line.head
            for column, panel in enumerate(line.panels):
                if panel is None:
                    continue
                x = self.left + column * (self.width + _GAP)
                below = (other.panels[column] for other in self.lines[number + 1 :] if column < len(other.panels))
                lowest = not any(below)
                self._head(panel, line, x, y - line.head)
                mesh = self._panel(panel, self._axes(x, y, self.width, self.height), column == 0, lowest)
            middle = y + self.height / 2
            if self.named:
                name = shorten(spell(line.row), self._pixels(_SMALL), self._inside(self.height), bold=True)
                self._upright(_MARGIN + 0.07, middle, name, color=_INK, fontweight="bold")
            self._upright(self.left - _AXIS + 0.07, middle, _DEPTH)
            y += self.height
        self._bar(mesh, first, min(y - first, 3.4))
        self._text((self.left + self.right) / 2, y + 0.22, self.axis.label, ha="center", color=_QUIET)
        y += 0.43
        if self.aside:
            top = y - 0.43 - self.height
            for number, entry in enumerate(entry for entries in self.legend for entry in entries):
                self._draw_entries([entry], top + 1.2 * number * self._line(_SMALL))
        else:
            for entries in self.legend:
                self._draw_entries(entries, y)
                y += self._line(_SMALL)
        for text in self.caption:
            self._text(_MARGIN, y + 0.08, text, color=_QUIET)
            y += self._line(_SMALL)
        return self.figure

    # --- parts --------------------------------------------------------------------------------------------------------

    def _axes(self, x: float, y: float, width: float, height: float) -> Any:
        box = (x / self.total, 1 - (y + height) / self.tall, width / self.total, height / self.tall)
        return self.figure.add_axes(box)

    def _text(self, x: float, y: float, text: str, size: float = _SMALL, **style: Any) -> None:
        style = {"va": "top", "ha": "left", "color": _INK} | style
        points = self.style.points(size, _SMALL)
        self.figure.text(x / self.total, 1 - y / self.tall, spell(text), fontsize=points, **style)

    def _upright(self, x: float, y: float, text: str, **style: Any) -> None:
        upright: dict[str, Any] = {"rotation": 90, "va": "center", "ha": "center", "color": _QUIET}
        self._text(x, y, text, **upright | style)

    def _head(self, panel: KymographPanel, line: _Line, x: float, y: float) -> None:
        if line.titled:
            for text in self._title(panel, self.width):
                self._text(x, y, text, _TITLE, fontweight="bold")
                y += self._line(_TITLE)
        for text in self._verdict(panel):
            self._text(x, y, text)
            y += self._line(_SMALL)

    def _panel(self, panel: KymographPanel, axes: Any, leftmost: bool, lowest: bool) -> Any:
        from matplotlib.colors import ListedColormap

        axes.set_facecolor(_UNDEFINED)
        axes.patch.set(hatch="////", edgecolor="0.7")
        mesh = axes.pcolormesh(
            self.axis.borders(panel.steps), panel.edges, np.ma.masked_invalid(np.asarray(panel.value, np.float64).T),
            cmap=ListedColormap(signed_palette() / 255), vmin=-self.span, vmax=self.span, rasterized=True,
        )  # fmt: skip
        axes.axhline(0, **_CONTOUR)
        axes.set_xlim(*self.ends)
        axes.set_ylim(float(panel.edges[0]), float(panel.edges[-1]))
        for mark in panel.arrivals:
            self._arrival(axes, mark, panel.steps)
        self._label_steps(axes, lowest)
        depths = range(math.ceil(float(panel.edges[0])), math.floor(float(panel.edges[-1])) + 1)
        axes.set_yticks(depths, [format_number(depth) for depth in depths] if leftmost else [])
        return mesh

    def _label_steps(self, axes: Any, lowest: bool) -> None:
        steps = [step for panel in self.panels for step in panel.steps]
        width = font(self._pixels(_TICK)).getlength
        ticks = self.axis.ticks(min(steps), max(steps), self.width * _MEASURE, width)
        labels = [f"{step:,}" for step, _ in ticks] if lowest else []
        axes.set_xticks(self.axis.place(step for step, _ in ticks), labels)
        for text, (_, alignment) in zip(axes.get_xticklabels() if lowest else [], ticks, strict=False):
            text.set_ha(alignment)

    def _arrival(self, axes: Any, mark: ArrivalMark, steps: Sequence[int]) -> None:
        """One symbol with its interval: black on a white rim, so that it is visible on every colour."""
        from matplotlib.patheffects import Normal, Stroke

        first, end = self.ends
        style: dict[str, Any] = {
            "color": "black",
            "path_effects": [Stroke(linewidth=2.7, foreground="white"), Normal()],
        }
        low, high = (float(place) for place in self.axis.place((mark.low, mark.high)))
        low = max(low, first)
        if low < high:
            axes.plot([low, min(high, end)], [mark.depth] * 2, linewidth=1.2, solid_capstyle="butt", **style)
            inch = (end - first) / self.width
            place = float(self.axis.place([mark.step])[0])
            for cap in (low, high):
                if cap <= end and abs(cap - place) > 0.09 * inch:  # nearer, the symbol would hide it
                    axes.plot([cap], [mark.depth], marker="|", markersize=4.5, markeredgewidth=1.1, **style)
            if high > end:
                arrow = {"marker": ">", "markersize": 4.5, "markeredgewidth": 0.6, "markeredgecolor": "white"}
                axes.plot([end], [mark.depth], color="black", clip_on=False, zorder=4, **arrow)
        place = float(self.axis.place([steps[0] if mark.from_start else mark.step])[0])
        if place <= end:
            axes.plot([place], [mark.depth], zorder=5, clip_on=False, **_symbol(mark.label, mark.from_start))

    def _bar(self, mesh: Any, top: float, height: float) -> None:
        beyond = any(np.nanmax(np.abs(p.value), initial=0) > self.span for p in self.panels)
        axes = self._axes(self.right + 0.14, top, 0.11, height)
        bar = self.figure.colorbar(mesh, cax=axes, extend="both" if beyond else "neither", extendfrac=0.04)
        ends = format_number(self.span, 2).rstrip("0")
        bar.set_ticks([-self.span, 0, self.span], labels=[f"\N{MINUS SIGN}{ends}", "0", f"+{ends}"])
        bar.outline.set_linewidth(0.6)
        lines = balanced(self.quantity, self._pixels(_SMALL), self._inside(max(height, 1.4)))
        for number, text in enumerate(lines):
            x = self.total - _MARGIN - (len(lines) - number - 0.5) * self._line(_SMALL)
            self._upright(x, top + height / 2, text, color=_INK)

    # --- the legend ---------------------------------------------------------------------------------------------------

    def _legend(self) -> list[list[_Entry]]:
        """The marks that occur, in lines that fit."""
        marks = [mark for panel in self.panels for mark in panel.arrivals]
        since = "before training" if all(min(panel.steps) == 0 for panel in self.panels) else "at the first snapshot"
        entries = [_Entry("contour", False, "contour")]
        for label in (OUTLINE, INTERIOR):
            if any(mark.label == label and not mark.from_start for mark in marks):
                entries.append(_Entry(label, False, f"{label} arrives"))
        for label in (OUTLINE, INTERIOR):
            if any(mark.label == label and mark.from_start for mark in marks):
                entries.append(_Entry(label, True, f"{label} there {since}"))
        lines: list[list[_Entry]] = [[]]
        if sum(map(self._length, entries)) > self.total - self.legend_left - _MARGIN + 0.2:
            self.legend_left = _MARGIN
        room = self.total - self.legend_left - _MARGIN
        for entry in entries:
            if lines[-1] and sum(map(self._length, [*lines[-1], entry])) > room + 0.2:
                lines.append([])
            lines[-1].append(entry)
        return lines

    def _fits_aside(self, count: int, rows: int) -> bool:
        """Whether the legend fits into the gap of the last line, one entry a line; it begins there then."""
        gap = -count % self.columns
        entries = [entry for line in self.legend for entry in line]
        left = self.right - gap * (self.width + _GAP) + 0.3
        wide = self.total - left - _MARGIN + 0.2 - (self.total - self.right) * (len(self.lines) < 2 * rows)
        fits = max(map(self._length, entries)) <= wide and 1.2 * len(entries) * self._line(_SMALL) <= self.height
        if gap and count > self.columns and fits:
            self.legend_left = left
            return True
        return False

    def _draw_entries(self, entries: Sequence[_Entry], y: float) -> None:
        from matplotlib.lines import Line2D

        x, middle = self.legend_left, y + 0.5 * self._line(_SMALL)
        for symbol, opened, text in entries:
            ends, level = [x / self.total, (x + 0.26) / self.total], 1 - middle / self.tall
            style: dict[str, Any] = {"transform": self.figure.transFigure}
            if symbol == "contour":
                self.figure.add_artist(Line2D(ends, [level] * 2, **_CONTOUR, **style))
            else:
                if not opened:
                    bar: dict[str, Any] = {
                        "color": "black",
                        "linewidth": 1.2,
                        "marker": "|",
                        "markersize": 4.5,
                        "markeredgewidth": 1.1,
                    }
                    self.figure.add_artist(Line2D(ends, [level] * 2, **bar, **style))
                self.figure.add_artist(Line2D([sum(ends) / 2], [level], **style, **_symbol(symbol, opened)))
            self._text(x + 0.33, middle, text, va="center")
            x += self._length(_Entry(symbol, opened, text))

    def _length(self, entry: _Entry) -> float:
        return 0.33 + font(self._pixels(_SMALL)).getlength(entry.text) / _MEASURE + 0.2


def _turned(panels: Sequence[KymographPanel]) -> Sequence[KymographPanel]:
    """Operators one below the other and their rows side by side, where there are more operators than rows."""
    titles = [panel.title for panel in panels]
    rows = {panel.row for panel in panels}
    if len(rows) < 2 or len(set(titles)) <= len(rows) or len({(p.title, p.row) for p in panels}) < len(panels):
        return panels
    return [replace(panel, title=panel.row, row=panel.title) for panel in panels]


def _symbol(label: str, opened: bool) -> dict[str, Any]:
    """The look of a mark: black with a white rim, or white with a black one."""
    marker, size = _SYMBOLS[label]
    face, edge = ("white", "black") if opened else ("black", "white")
    return {
        "marker": marker,
        "markersize": size if opened else size + 0.8,
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": 1.1 if opened else 0.8,
    }


def _save(figure: Any, path: Path, style: FigureStyle, provenance: str) -> None:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.update(letters(text.get_text()))
    save_figure(figure, path, style.dpi or _DPI, provenance=provenance, transparent=style.transparent)


__all__ = ["write_kymographs"]
