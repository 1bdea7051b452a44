"""Distance-time maps of several operators as one figure: depth against training step, with the arrivals marked."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import FadevizError
from .colormap import signed_palette
from .fonts import font, letters, spell
from .labels import format_number, shorten, wrap
from .page import STYLE, check_ending, save_figure
from .panels import INTERIOR, OUTLINE, ArrivalMark, KymographPanel, kymograph_span, panel_grid
from .step_axis import StepAxis, choose_step_axis

_DPI = 220
_TITLE, _SMALL, _TICK = 9.0, 7.5, 7.0
"""Font sizes in points: of titles, of all other sentences, of numbers at the axes."""
_LEADING = 1.32
"""Distance between lines of text, in font sizes."""
_INK, _QUIET = "0.1", "0.35"

_CONTOUR: Any = {"color": "black", "linewidth": 0.8, "linestyle": (0, (5, 2.5))}
_SYMBOLS = {OUTLINE: ("o", 5.2), INTERIOR: ("D", 4.4)}
"""Marker of an arrival, and its size in points."""
_UNDEFINED = "0.86"

_SIZES = {1: (3.3, 2.3), 2: (2.6, 2.0), 3: (2.05, 1.7)}
"""Width and height of a panel, by the number of columns."""
_MANY = (1.56, 1.46)
"""The same for four columns and more."""
_MARGIN, _GAP, _AXIS, _ROW, _BAR = 0.08, 0.15, 0.46, 0.22, 0.98
"""Margin of the figure, space between columns, of the vertical axis, of the rows' names, and right of the panels."""

_STYLE: Any = STYLE | {
    "font.size": _SMALL,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "0.25",
    "hatch.linewidth": 0.4,
    "xtick.labelsize": _TICK,
    "ytick.labelsize": _TICK,
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


def write_kymographs(
    panels: Sequence[KymographPanel],
    output: str | os.PathLike[str],
    *,
    quantity: str,
    step_axis: str = "auto",
    caption: str = "",
    provenance: str = "",
) -> None:
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
        caption: sentences below.
        provenance: what the figure is made of, for the metadata of the file.

    Raises:
        FadevizError: if there are no panels, the file has another ending, or the step axis is unknown.
    """
    from matplotlib import rc_context

    path = check_ending(output, "plot")
    if not panels:
        raise FadevizError("there is nothing to plot. Give at least one run")
    axis = choose_step_axis([panel.steps for panel in panels], step_axis)
    with rc_context(_STYLE):
        _save(_Figure(panels, axis, quantity, caption).draw(), path, provenance)


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

    @property
    def length(self) -> float:
        return 0.33 + font(_pixels(_SMALL)).getlength(self.text) / _DPI + 0.2


class _Figure:
    """The figure; all lengths are in inches from its upper left corner."""

    def __init__(self, panels: Sequence[KymographPanel], axis: StepAxis, quantity: str, caption: str) -> None:
        from matplotlib.figure import Figure

        self.panels, self.axis = panels, axis
        rows, grid = panel_grid(panels)
        self.columns, self.named = _columns(len(grid[0])), len(rows) > 1
        self.width, self.height = _SIZES.get(self.columns, _MANY)
        self.left = _MARGIN + _AXIS + _ROW * self.named
        self.right = self.left + self.columns * self.width + (self.columns - 1) * _GAP
        self.total = self.right + _BAR
        self.lines = self._lines(rows, grid)
        self.legend = self._legend()
        self.quantity, self.span = quantity, kymograph_span(panels)
        self.caption = wrap(caption, _pixels(_SMALL), round((self.total - 2 * _MARGIN) * _DPI)) if caption else []
        borders = [axis.borders(panel.steps) for panel in panels]
        self.ends = min(float(one[0]) for one in borders), max(float(one[-1]) for one in borders)
        bottom = sum(line.space + line.head + self.height for line in self.lines)
        texts = (len(self.legend) + len(self.caption)) * _inches(_SMALL) + 0.08 * bool(self.caption)
        self.tall = _MARGIN + bottom + 0.43 + texts + _MARGIN
        self.figure = Figure((self.total, self.tall), dpi=_DPI)
        self.figure.patch.set_facecolor("white")

    def _lines(self, rows: Sequence[str], grid: Sequence[Sequence[KymographPanel | None]]) -> list[_Line]:
        lines: list[_Line] = []
        for start in range(0, len(grid[0]), self.columns):
            for row, every in zip(rows, grid, strict=True):
                panels, titled = every[start : start + self.columns], row == rows[0]
                verdicts = max((len(self._verdict(panel)) for panel in panels if panel), default=0)
                head = verdicts * _inches(_SMALL) + titled * _inches(_TITLE) + 0.05
                lines.append(_Line(row, panels, titled, head, (0.14 if titled else 0.06) if lines else 0.0))
        return lines

    def _verdict(self, panel: KymographPanel) -> list[str]:
        """The subtitle in at most two lines."""
        width = round(self.width * _DPI)
        lines = wrap(panel.subtitle, _pixels(_SMALL), width)
        return lines if len(lines) <= 2 else [lines[0], shorten(" ".join(lines[1:]), _pixels(_SMALL), width)]

    def draw(self) -> Any:
        """The figure, drawn."""
        y, mesh, first = _MARGIN, None, self.lines[0].head + _MARGIN
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
                self._upright(_MARGIN + 0.07, middle, line.row, color=_INK, fontweight="bold")
            self._upright(self.left - _AXIS + 0.07, middle, "inside ← object radii → outside")
            y += self.height
        self._bar(mesh, first, min(y - first, 3.4))
        self._text((self.left + self.right) / 2, y + 0.22, self.axis.label, ha="center", color=_QUIET)
        y += 0.43
        for entries in self.legend:
            self._draw_entries(entries, y)
            y += _inches(_SMALL)
        for text in self.caption:
            self._text(_MARGIN, y + 0.08, text, color=_QUIET)
            y += _inches(_SMALL)
        return self.figure

    # --- parts --------------------------------------------------------------------------------------------------------

    def _axes(self, x: float, y: float, width: float, height: float) -> Any:
        box = (x / self.total, 1 - (y + height) / self.tall, width / self.total, height / self.tall)
        return self.figure.add_axes(box)

    def _text(self, x: float, y: float, text: str, size: float = _SMALL, **style: Any) -> None:
        style = {"va": "top", "ha": "left", "color": _INK} | style
        self.figure.text(x / self.total, 1 - y / self.tall, spell(text), fontsize=size, **style)

    def _upright(self, x: float, y: float, text: str, **style: Any) -> None:
        upright: dict[str, Any] = {"rotation": 90, "va": "center", "ha": "center", "color": _QUIET}
        self._text(x, y, text, **upright | style)

    def _head(self, panel: KymographPanel, line: _Line, x: float, y: float) -> None:
        if line.titled:
            title = shorten(panel.title, _pixels(_TITLE), round(self.width * _DPI), bold=True)
            self._text(x, y, title, _TITLE, fontweight="bold")
            y += _inches(_TITLE)
        for text in self._verdict(panel):
            self._text(x, y, text)
            y += _inches(_SMALL)

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
        ticks = self.axis.ticks(min(steps), max(steps), self.width * _DPI, font(_pixels(_TICK)).getlength)
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
        lines = _balanced(self.quantity, round(max(height, 1.4) * _DPI))
        for number, text in enumerate(lines):
            x = self.total - _MARGIN - (len(lines) - number - 0.5) * _inches(_SMALL)
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
        room = self.total - self.left - _MARGIN
        for entry in entries:
            if lines[-1] and sum(other.length for other in lines[-1]) + entry.length > room + 0.2:
                lines.append([])
            lines[-1].append(entry)
        return lines

    def _draw_entries(self, entries: Sequence[_Entry], y: float) -> None:
        from matplotlib.lines import Line2D

        x, middle = self.left, y + 0.5 * _inches(_SMALL)
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
            x += _Entry(symbol, opened, text).length


def _columns(count: int) -> int:
    """Panels in a line: few gaps in the last one."""
    if count <= 4:
        return count
    return min((4, 5, 3) if count <= 12 else (5, 4), key=lambda columns: -count % columns)


def _balanced(text: str, width: int) -> list[str]:
    """A text in as few lines as fit into a width in pixels, of about the same length."""
    lines = wrap(text, _pixels(_SMALL), width)
    while len(narrower := wrap(text, _pixels(_SMALL), width - 10)) == len(lines) and width > 20:
        lines, width = narrower, width - 10
    return lines


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


def _inches(points: float) -> float:
    """The height of a line of text of a font size in points."""
    return points * _LEADING / 72


def _pixels(points: float) -> int:
    """A font size in points as pixels."""
    return round(points * _DPI / 72)


def _save(figure: Any, path: Path, provenance: str) -> None:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.update(letters(text.get_text()))
    save_figure(figure, path, _DPI, provenance=provenance)


__all__ = ["write_kymographs"]
