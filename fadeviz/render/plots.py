"""Plots of curves over training, drawn with matplotlib, as PNG, PDF or SVG."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from .fonts import font, letters, spell
from .labels import balanced, fit_sentences, shorten, wrap
from .page import check_ending, figure_style, save_figure
from .panels import Curve, CurvePanel, curve_order
from .step_axis import StepAxis, choose_step_axis
from .style import COLORS, DASHES, WIDTHS, FigureStyle, Look, operator_looks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 200
_TITLE, _WORDS, _TICK = 8.5, 7.5, 7.0
"""Font sizes in points: of panels' titles, of all other words, of numbers at the axes."""
_LEADING = 1.3
"""Distance between lines of text, in font sizes."""

_MEASURE = 300
"""Pixels per inch at which words are measured, whatever the figure's own are: the same lines at any resolution."""

_MARGIN, _HEAD, _BELOW = 0.05, 0.09, 0.05
"""Inches: around the figure, between a panel and its words, and between blocks of words."""
_NARROWEST = 1.55
"""Smallest width of a panel with its axis in inches."""
_HANDLE = 0.36
"""Inches that a legend's line and the gap beside it take."""
_COLUMN_SPACING = 1.4
"""Font sizes between the columns of a legend."""
_FEW = 12
"""Number of points up to which each has a dot, which shows where the snapshots or tests are."""

_LIKE = DASHES[1]
"""Dash of a curve that has another one's colour."""


def write_curves(
    panels: Sequence[CurvePanel],
    output: str | os.PathLike[str],
    *,
    step_axis: str = "auto",
    title: str = "",
    caption: Sequence[str] = (),
    provenance: str = "",
    style: FigureStyle | None = None,
) -> Figure:
    """Draw measures over training, with their bands.

    The colours suit any kind of colour vision; from the ninth line on, dashes help. Panels fill rows of equal width; a
    gap in the last one holds the legend or, where that is too large, the row is stretched.

    Args:
        panels: the panels in reading order: one for each operator or measure.
        output: a file; the ending decides: .png, .pdf or .svg.
        step_axis: a name in :data:`~fadeviz.render.step_axis.STEP_AXES`. ``"auto"`` is linear where the snapshots are
            roughly evenly spaced (:func:`~fadeviz.render.step_axis.choose_step_axis`), otherwise log(1 + step).
        title: a title above the figure; empty for none.
        caption: sentences below, the most needed first: the first one, and others as far as they fit into two lines.
        provenance: what the figure is made of, for the metadata of the file.
        style: width, font and resolution. By default one panel is as wide as a column, several as a page.

    Returns:
        The figure that was written, which can be changed and saved again; pyplot does not manage it.

    Raises:
        FadevizError: if there are no panels, the file has another ending, or the step axis is unknown.
    """
    from matplotlib import rc_context

    path = _check(panels, output)
    style = style or FigureStyle()
    axis = choose_step_axis([curve.steps for panel in panels for curve in panel.curves], step_axis)
    with style.applied(), rc_context(_settings(style)):
        figure = _Figure(panels, axis, style, title, caption).draw()
        _save(figure, path, style, provenance)
    return figure


def _settings(style: FigureStyle) -> Any:
    """Settings of matplotlib for these plots."""
    return figure_style() | {
        "font.size": style.points(_WORDS, _WORDS),
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": style.points(_TITLE, _WORDS),
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "xtick.labelsize": style.points(_TICK, _WORDS),
        "ytick.labelsize": style.points(_TICK, _WORDS),
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.major.pad": 2.5,
        "ytick.major.pad": 2.0,
        "axes.labelpad": 2.5,
    }


class _Cell(NamedTuple):
    """Where a panel stands: its row, and the share of the width at which it begins and ends, in parts of the grid."""

    row: int
    start: int
    stop: int


class _Figure:
    """The figure: panels between words above and below; lengths are in inches."""

    def __init__(
        self, panels: Sequence[CurvePanel], axis: StepAxis, style: FigureStyle, title: str, caption: Sequence[str]
    ) -> None:
        self.panels, self.axis, self.style = panels, axis, style
        self.width = style.inches or WIDTHS["column" if len(panels) == 1 else "page"]
        self.looks = _looks(panels)
        labels = dict.fromkeys(curve.label for panel in panels for curve in panel.curves)
        room = self.width - 2 * _MARGIN
        self.names = {
            label: spell(shorten(label, self._pixels(_WORDS), self._inside(room - _HANDLE))) for label in labels
        }
        self.limits = _limits(panels)
        self.columns = self._choose_columns()
        self.wide = room / self.columns
        self.high = min(2.0, max(1.2, 0.6 * self.wide))
        self.gap = -len(panels) % self.columns
        self.aside = self.gap > 0 and self._legend_fits()
        self.cells, self.parts = self._place()
        self.title = [spell(line) for line in self._wrap(title, _TITLE, room)]
        small, inside = self._pixels(_TICK), self._inside(room)
        words = fit_sentences(caption, small, inside) if caption else ""
        self.caption = [spell(line) for line in wrap(words, small, inside)]

    def draw(self) -> Any:
        """The figure, drawn."""
        from matplotlib.figure import Figure

        heads = [self._head(panel, cell) for panel, cell in zip(self.panels, self.cells, strict=True)]
        rows = self.cells[-1].row + 1
        # The heads of a row have one height: its titles are on one line, and so are its subtitles.
        lines = [[max(len(head[part]) for head, cell in zip(heads, self.cells, strict=True) if cell.row == row)
                  for part in range(2)] for row in range(rows)]  # fmt: skip
        tall = [self._high(*counts) for counts in lines]
        legend = [] if self.aside else self._legend_lines()
        above = (
            _MARGIN + self._lines(_TITLE, len(self.title)) + self._lines(_WORDS, len(legend)) + _BELOW * bool(legend)
        )
        words = self._lines(_TICK, len(self.caption)) + _BELOW * bool(self.caption)
        below = _MARGIN + words + self._lines(_WORDS, 1)
        between = sum(head + self.high for head in tall) + 0.24 * rows
        total = above + between + below
        figure = Figure((self.width, total), dpi=self.style.dpi or _DPI, layout="constrained")
        figure.patch.set_facecolor("white")
        engine: Any = figure.get_layout_engine()
        edges = (_MARGIN / self.width, below / total, 1 - 2 * _MARGIN / self.width, between / total)
        engine.set(rect=edges, w_pad=0.03, h_pad=0.02, wspace=0.0, hspace=0.0)
        grid = figure.add_gridspec(rows, self.parts)
        first = None
        for panel, cell, head in zip(self.panels, self.cells, heads, strict=True):
            axes = figure.add_subplot(grid[cell.row, cell.start : cell.stop], sharex=first)
            first = first or axes
            self._panel(axes, panel, cell)
            self._write_head(axes, *head, *lines[cell.row])
        self._label_steps(first)
        ink: dict[str, Any] = {"fontsize": self.style.points(_WORDS, _WORDS), "va": "top"}
        figure.text(0.5, (below - 0.01) / total, self.axis.label, ha="center", **ink)
        y = total - _MARGIN
        bold: dict[str, Any] = {"fontsize": self.style.points(_TITLE, _WORDS), "fontweight": "bold", "va": "top"}
        for line in self.title:
            figure.text(_MARGIN / self.width, y / total, line, **bold)
            y -= self._lines(_TITLE, 1)
        if self.aside:
            self._legend_aside(figure, grid, rows)
        else:
            self._legend_above(figure, legend, y, total)
        y = _MARGIN + self._lines(_TICK, len(self.caption))
        small: dict[str, Any] = {"fontsize": self.style.points(_TICK, _WORDS), "va": "top", "color": "0.3"}
        for line in self.caption:
            figure.text(_MARGIN / self.width, y / total, line, **small)
            y -= self._lines(_TICK, 1)
        return figure

    # --- measures -----------------------------------------------------------------------------------------------------

    def _pixels(self, points: float) -> int:
        """The font size of words that have ``points`` by default, in pixels of ``_MEASURE``."""
        return max(1, round(self.style.points(points, _WORDS) * _MEASURE / 72))

    @staticmethod
    def _inside(inches: float) -> int:
        # Slightly less, because letters are rounded to pixels, which are others in the figure.
        return max(1, round(0.97 * inches * _MEASURE))

    def _wrap(self, text: str, points: float, inches: float) -> list[str]:
        return balanced(spell(text), self._pixels(points), self._inside(inches)) if text else []

    def _lines(self, points: float, count: int) -> float:
        """The height of lines of text."""
        return count * self.style.points(points, _WORDS) * _LEADING / 72

    def _longest(self) -> float:
        return _HANDLE + max(font(self._pixels(_WORDS)).getlength(name) for name in self.names.values()) / _MEASURE

    # --- places -------------------------------------------------------------------------------------------------------

    def _choose_columns(self) -> int:
        """Panels in a row: few gaps in the last one; with numbers at each of their axes, four are two rows of two."""
        count, shared = len(self.panels), len(set(self.limits)) == 1 and self.limits[0] is not None
        most = max(1, min(4, int(self.width / _NARROWEST)))
        if count <= most:
            return 2 if count == 4 and not shared else count
        return min(range(max(most - 1, min(2, most)), most + 1), key=lambda columns: (-count % columns, -columns))

    def _legend_fits(self) -> bool:
        """Whether the legend fits into the gap of the last row, one name a line."""
        return self._longest() <= self.gap * self.wide * 0.9 - 0.2 and self._lines(_WORDS, len(self.names)) <= self.high

    def _place(self) -> tuple[list[_Cell], int]:
        """The place of each panel, and the number of parts of the grid's width."""
        count, columns = len(self.panels), self.columns
        if self.aside or not self.gap:
            return [_Cell(index // columns, index % columns, index % columns + 1) for index in range(count)], columns
        rows = -(-count // columns)
        sizes = [count // rows + (row < count % rows) for row in range(rows)]
        parts = math.lcm(*sizes)
        widths = [parts // size for size in sizes]
        return [
            _Cell(row, index * widths[row], (index + 1) * widths[row])
            for row, size in enumerate(sizes)
            for index in range(size)
        ], parts

    def _lowest(self, cell: _Cell) -> bool:
        """Whether no panel of the same width stands below."""
        return not any(other[1:] == cell[1:] and other.row > cell.row for other in self.cells)

    def _head(self, panel: CurvePanel, cell: _Cell) -> tuple[list[str], list[str]]:
        """The title of a panel in at most three lines, and its subtitle in at most four."""
        wide = (self.width - 2 * _MARGIN) * (cell.stop - cell.start) / self.parts - 0.55
        title = self._wrap(panel.title, _TITLE, wide * 0.88)  # bold letters are wider
        subtitle = self._wrap(panel.subtitle, _TICK, wide)
        return self._few(title, 3, _TITLE, wide, bold=True), self._few(subtitle, 4, _TICK, wide)

    def _few(self, lines: Sequence[str], most: int, points: float, wide: float, bold: bool = False) -> list[str]:
        if len(lines) > most:
            rest = " ".join(lines[most - 1 :])
            lines = [*lines[: most - 1], shorten(rest, self._pixels(points), self._inside(wide), bold)]
        return [spell(line) for line in lines]

    def _high(self, titles: int, subtitles: int) -> float:
        """The height of a head of these numbers of lines."""
        return self._lines(_TITLE, titles) + self._lines(_TICK, subtitles) + _HEAD

    # --- panels -------------------------------------------------------------------------------------------------------

    def _panel(self, axes: Any, panel: CurvePanel, cell: _Cell) -> None:
        for curve in panel.curves:
            self._curve(axes, curve)
        if panel.chance is not None:
            axes.axhspan(-panel.chance, panel.chance, color="0.88", linewidth=0, zorder=0)
        index = next(index for index, other in enumerate(self.panels) if other is panel)
        limits = self.limits[index]
        if limits is not None:
            axes.set_ylim(*limits)
            if limits[0] < 0 < limits[1]:
                axes.axhline(0, color="0.7", linewidth=0.7, zorder=0)
        beside = self.panels[index - 1] if cell.start > 0 else None
        if beside is None or panel.unit != beside.unit:
            axes.set_ylabel(spell(panel.unit))
        if beside is not None and panel.scale and panel.scale == beside.scale:
            axes.yaxis.set_tick_params(labelleft=False)
        axes.xaxis.set_tick_params(labelbottom=self._lowest(cell))

    def _curve(self, axes: Any, curve: Curve) -> None:
        time, middle = self.axis.place(curve.steps), np.asarray(curve.middle, np.float64)
        color, dash = self.looks[curve.like or curve.label]
        dash = _LIKE if curve.like else dash
        axes.fill_between(time, curve.low, curve.high, color=color, alpha=0.16, linewidth=0)
        axes.plot(time, middle, color=color, linestyle=dash, linewidth=1.3)
        # A point between gaps would not be seen otherwise.
        dotted = np.isfinite(middle) if np.isfinite(middle).sum() <= _FEW else _alone(middle)
        axes.plot(time[dotted], middle[dotted], color=color, linestyle="", marker=".", markersize=4)
        if math.isfinite(curve.mark):
            axes.axvline(float(self.axis.place([curve.mark])[0]), color=color, linestyle=(0, (1, 2)), linewidth=0.9)

    def _write_head(
        self, axes: Any, title: Sequence[str], subtitle: Sequence[str], titles: int, subtitles: int
    ) -> None:
        """The head of a panel, whose row has these numbers of lines."""
        size = self.style.points(_TICK, _WORDS)
        below = 72 * (self._lines(_TITLE, titles - len(title)) + self._lines(_TICK, subtitles - len(subtitle)))
        pad = (5.0 if subtitles else 3.0) + below + len(subtitle) * size * _LEADING
        axes.set_title("\n".join(title), pad=pad, linespacing=_LEADING)
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "xytext": (0, 3 + below)}
        quiet: dict[str, Any] = {"fontsize": size, "color": "0.3", "va": "bottom", "linespacing": _LEADING}
        axes.annotate("\n".join(subtitle), (0, 1), **place, **quiet).set_in_layout(False)  # the title keeps its place

    def _label_steps(self, axes: Any) -> None:
        steps = [step for panel in self.panels for curve in panel.curves for step in curve.steps]
        size, length = self._pixels(_TICK), self._inside(0.9 * (self.wide - 0.42))
        ticks = self.axis.ticks(min(steps), max(steps), length, font(size).getlength)
        axes.set_xticks(self.axis.place(step for step, _ in ticks), [f"{step:,}" for step, _ in ticks])

    # --- the legend ---------------------------------------------------------------------------------------------------

    def _handles(self) -> list[Any]:
        from matplotlib.lines import Line2D

        like = {curve.label: curve.like for panel in self.panels for curve in panel.curves if curve.like}
        handles = []
        for label in self.names:
            color, dash = self.looks[like.get(label) or label]
            handles.append(Line2D([], [], color=color, linestyle=_LIKE if label in like else dash, linewidth=1.5))
        return handles

    def _legend_lines(self) -> list[int]:
        """The number of names in each line, which are about as many."""
        size, names = self._pixels(_WORDS), list(self.names.values())
        widths = [_HANDLE + font(size).getlength(name) / _MEASURE for name in names]
        between = _COLUMN_SPACING * self.style.points(_WORDS, _WORDS) / 72

        def fits(columns: int) -> bool:
            wide = sum(max(widths[column::columns]) for column in range(columns)) + (columns - 1) * between
            return wide <= 0.97 * (self.width - 2 * _MARGIN)

        fitting = next((columns for columns in range(len(names), 1, -1) if fits(columns)), 1)
        rows = -(-len(self.names) // fitting)
        columns = -(-len(self.names) // rows)
        return [min(columns, len(self.names) - start) for start in range(0, len(self.names), columns)]

    def _legend_above(self, figure: Any, lines: Sequence[int], y: float, total: float) -> None:
        columns = lines[0]
        order = [index for column in range(columns) for index in range(column, len(self.names), columns)]
        place = {"loc": "upper left", "bbox_to_anchor": (_MARGIN / self.width, y / total)}
        self._legend(figure, order, ncols=columns, columnspacing=_COLUMN_SPACING, **place)

    def _legend_aside(self, figure: Any, grid: Any, rows: int) -> None:
        cell = figure.add_subplot(grid[rows - 1, self.columns - self.gap :])
        cell.set_axis_off()
        cell.set_in_layout(False)
        self._legend(cell, list(range(len(self.names))), ncols=1, loc="center left", bbox_to_anchor=(0.08, 0.5))

    def _legend(self, owner: Any, order: Sequence[int], **place: Any) -> None:
        handles, names = self._handles(), list(self.names.values())
        looks = {"frameon": False, "borderpad": 0.0, "borderaxespad": 0.0, "handlelength": 2.0, "handletextpad": 0.6}
        spaced = {"labelspacing": _LEADING - 1.0}
        # Set afterwards, because legends omit names that begin with an underscore.
        numbers = [str(index) for index in order]
        legend = owner.legend([handles[index] for index in order], numbers, **looks, **spaced, **place)
        legend.set_in_layout(False)
        for text, index in zip(legend.get_texts(), order, strict=True):
            text.set_text(names[index])


def _looks(panels: Sequence[CurvePanel]) -> dict[str, Look]:
    """The look of each curve with a colour of its own: that of its operator, or the next one."""
    operators = {curve.label: curve.operator for panel in panels for curve in panel.curves if curve.operator}
    looks = operator_looks(operators.values())
    return {
        label: looks[operators[label]] if label in operators else Look(COLORS[i % 8], DASHES[i // 8 % len(DASHES)])
        for label, i in curve_order(panels).items()
    }


def _alone(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The places of finite values whose neighbours are not finite, or are not there."""
    finite = np.pad(np.isfinite(values), 1)
    alone: NDArray[np.bool_] = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    return alone


def _limits(panels: Sequence[CurvePanel]) -> list[tuple[float, float] | None]:
    """The ends of each panel's vertical axis, the same for panels of one scale; None where matplotlib chooses."""
    limits: list[tuple[float, float] | None] = [None] * len(panels)
    order = sorted(range(len(panels)), key=lambda index: panels[index].scale)
    for scale, indices in groupby(order, key=lambda index: panels[index].scale):
        members = list(indices)
        spans = [span for index in members if (span := _span(panels[index], bool(scale))) is not None]
        for index in members:
            if scale and spans:
                limits[index] = min(low for low, _ in spans), max(high for _, high in spans)
            elif not scale:
                limits[index] = _span(panels[index], False)
    return limits


def _span(panel: CurvePanel, fitted: bool) -> tuple[float, float] | None:
    """The limits of a panel's vertical axis: the requested ones, extended to include all lines and bands.

    Where none are requested, they are ``fitted`` to the lines and bands with a margin, or None.
    """
    every = [curve.middle for curve in panel.curves]
    every += [end for curve in panel.curves for end in (curve.low, curve.high)]
    values = np.concatenate([np.asarray(line, np.float64)[np.isfinite(line)] for line in every])
    if panel.span is None:
        if not fitted or not values.size:
            return None
        margin = 0.05 * float(np.ptp(values)) or 0.05
        return float(values.min()) - margin, float(values.max()) + margin
    low, high = panel.span
    return min([low, *(values - 0.02)[values < low]]), max([high, *(values + 0.02)[values > high]])


def _check(panels: Sequence[object], output: str | os.PathLike[str]) -> Path:
    if not panels:
        raise FadevizError("there is nothing to plot. Give at least one run")
    return check_ending(output, "plot")


def _settle(figure: Any) -> None:
    """Lay the figure out once and keep the places, rounded: matplotlib's solver differs in the last digits."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        x0, y0, x1, y1 = (round(float(end), 5) for end in axes.get_position().extents)
        axes.set_position((x0, y0, round(x1 - x0, 5), round(y1 - y0, 5)))


def _save(figure: Any, path: Path, style: FigureStyle, provenance: str) -> None:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.update(letters(text.get_text().replace("\n", " ")))
    _settle(figure)
    save_figure(figure, path, style.dpi or _DPI, provenance=provenance, transparent=style.transparent)


__all__ = ["write_curves"]
