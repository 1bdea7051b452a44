"""Plots of curves over training, drawn with matplotlib, as PNG, PDF or SVG."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from .fonts import font, letters, spell
from .labels import shorten, wrap
from .page import STYLE, check_ending, save_figure
from .panels import CurvePanel, curve_order
from .step_axis import StepAxis, choose_step_axis
from .style import COLORS

_DPI = 150
_TITLE = 450
"""Largest width of a panel's title and subtitle in pixels: that of one of several panels."""

_DASHES: tuple[Any, ...] = ("-", "--", "-.")

_STYLE: Any = STYLE | {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_curves(
    panels: Sequence[CurvePanel],
    output: str | os.PathLike[str],
    *,
    step_axis: str = "auto",
    caption: str = "",
    provenance: str = "",
) -> None:
    """Draw measures over training, with their bands.

    The colours suit any kind of colour vision; from the ninth line on, dashes help.

    Args:
        panels: the panels in reading order: one for each operator or measure.
        output: a file; the ending decides: .png, .pdf or .svg.
        step_axis: a name in :data:`~fadeviz.render.step_axis.STEP_AXES`. ``"auto"`` is linear where the snapshots are
            roughly evenly spaced (:func:`~fadeviz.render.step_axis.choose_step_axis`), otherwise log(1 + step).
        caption: sentences below.
        provenance: what the figure is made of, for the metadata of the file.

    Raises:
        FadevizError: if there are no panels, the file has another ending, or the step axis is unknown.
    """
    from matplotlib import rc_context

    path = _check(panels, output)
    axis = choose_step_axis([curve.steps for panel in panels for curve in panel.curves], step_axis)
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    looks = {label: (COLORS[i % 8], _DASHES[i // 8 % len(_DASHES)]) for label, i in curve_order(panels).items()}
    with rc_context(_STYLE):
        figure = _figure(max(3.7 * columns, 5.0), 2.9 * rows + 1.0, caption)
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        handles: dict[str, Any] = {}
        for number, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
            for curve in panel.curves:
                time = axis.place(curve.steps)
                color, dash = looks[curve.like or curve.label]
                axes.fill_between(time, curve.low, curve.high, color=color, alpha=0.16, linewidth=0)
                dash = (0, (4, 1.5)) if curve.like else dash
                line = axes.plot(time, curve.middle, color=color, linestyle=dash, linewidth=1.7)[0]
                handles.setdefault(curve.label, line)
                alone = _alone(np.asarray(curve.middle))
                if alone.any():  # a point between gaps would not be seen
                    axes.plot(
                        np.asarray(time)[alone], np.asarray(curve.middle)[alone], color=color, linestyle="", marker="."
                    )
                if math.isfinite(curve.mark):
                    axes.axvline(float(axis.place([curve.mark])[0]), color=color, linestyle=(0, (1, 2)), linewidth=1.1)
            if panel.chance is not None:
                axes.axhspan(-panel.chance, panel.chance, color="0.88", linewidth=0, zorder=0)
            if panel.span is not None:
                span = _span(panel)
                axes.set_ylim(*span)
                if span[0] < 0:
                    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
            _title(axes, panel.title, panel.subtitle)
            if number % columns == 0 or panel.unit != panels[number - 1].unit:
                axes.set_ylabel(panel.unit)
            if number + columns >= len(panels):
                axes.xaxis.set_tick_params(labelbottom=True)
                axes.set_xlabel(axis.label)
        _label_steps(grid[0, 0], axis, [step for panel in panels for curve in panel.curves for step in curve.steps])
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        _legend(figure, handles)
        _save(figure, path, provenance)


def _alone(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The places of finite values whose neighbours are not finite, or are not there."""
    finite = np.pad(np.isfinite(values), 1)
    alone: NDArray[np.bool_] = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    return alone


def _span(panel: CurvePanel) -> tuple[float, float]:
    """The limits of a panel's vertical axis: the requested ones, extended to include all lines and bands."""
    assert panel.span is not None
    every = [curve.middle for curve in panel.curves]
    every += [end for curve in panel.curves for end in (curve.low, curve.high)]
    values = np.concatenate([np.asarray(line, np.float64)[np.isfinite(line)] for line in every])
    low, high = panel.span
    return min([low, *(values - 0.02)[values < low]]), max([high, *(values + 0.02)[values > high]])


def _legend(figure: Any, handles: dict[str, Any]) -> None:
    """Every line's name, in as many columns as fit."""
    size, width = _pixels(9), figure.get_figwidth()
    names = [spell(shorten(label, size, round((width - 0.65) * _DPI))) for label in handles]
    # In inches: a letter takes about 0.08, a wide one more.
    longest = max(max(0.08 * len(name), font(size).getlength(name) / _DPI) for name in names)
    fitting = max(1, int(width / (longest + 0.65)))
    # Set afterwards, because legends omit names that begin with an underscore.
    numbers = map(str, range(len(names)))
    legend = figure.legend(handles.values(), numbers, loc="outside upper left", ncols=fitting, frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def _check(panels: Sequence[object], output: str | os.PathLike[str]) -> Path:
    if not panels:
        raise FadevizError("there is nothing to plot. Give at least one run")
    return check_ending(output, "plot")


def _figure(width: float, height: float, caption: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=_DPI, layout="constrained")
    figure.patch.set_facecolor("white")
    if caption:
        lines = wrap(caption, _pixels(8), round(0.98 * width * _DPI))
        figure.supxlabel("\n".join(map(spell, lines)), x=0.01, ha="left", fontsize=8, color="0.3")
    return figure


def _pixels(points: float) -> int:
    """A font size in points as pixels."""
    return round(points * _DPI / 72)


def _save(figure: Any, path: Path, provenance: str) -> None:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.update(letters(text.get_text().replace("\n", " ")))
    save_figure(figure, path, _DPI, provenance=provenance)


def _title(axes: Any, title: str, subtitle: str) -> None:
    axes.set_title(spell(shorten(title, _pixels(10), _TITLE, bold=True)), pad=17)
    subtitle = spell(shorten(subtitle, _pixels(8), _TITLE))
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=8, color="0.3", va="bottom")


def _label_steps(axes: Any, axis: StepAxis, steps: Sequence[int]) -> None:
    length = 0.75 * _TITLE  # about the width of a panel without its margins
    ticks = axis.ticks(min(steps), max(steps), length, font(_pixels(9)).getlength)
    axes.set_xticks(axis.place(step for step, _ in ticks), [f"{step:,}" for step, _ in ticks])
