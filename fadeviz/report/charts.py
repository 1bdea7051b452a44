"""Charts of a page: panels of curves and distance-time maps of an analysis, and the JSON of each."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from ..analysis.curves import MeasureCurve
from ..analysis.logged import describe_gaps, explain_logged, logged_curves, shown_names
from ..analysis.measures import GROUPS, MEASURES, describe_group
from ..analysis.onsets import Onsets, OperatorOnset
from ..analysis.result import Analysis
from ..render.panels import ArrivalMark, Curve, CurvePanel, KymographPanel, curve_order, kymograph_span
from ..render.step_axis import choose_step_axis
from ..render.style import COLORS, operator_looks
from .text import plain, shown_indices

BY_OPERATOR = ("responses", "learning", "gate")
"""Groups of measures with one panel per operator; the other groups have one panel per measure."""

_LIKE = {"outline_readout": "outline", "interior_readout": "interior"}
"""Measures that share the colour of another one."""

_ROLES = {MEASURES[name].title: name for name in ("outline", "interior")}
"""Curves that have the same colour wherever they occur."""

_NOTE = (
    "Grey: chance level; 95 % of the permutations of the masks stay within it at all steps. "
    "Dotted vertical lines: arrivals."
)


def chart_groups(analysis: Analysis) -> list[dict[str, Any]]:
    """The panels of each group of measures that the runs have, with what they mean, ready for JSON."""
    measured = list(analysis.curves.values())
    groups = []
    for name in GROUPS:
        members = [key for key in MEASURES if MEASURES[key].group == name and any(key in own for own in measured)]
        if members:
            panels = (_by_operator if name in BY_OPERATOR else _by_measure)(analysis.onsets, measured, members)
            meaning, note = describe_group(name, members)
            groups.append(
                {
                    "name": name.upper() if name == "auc" else name,
                    "meaning": meaning,
                    "panels": panels,
                    "measures": [[MEASURES[key].title, MEASURES[key].meaning] for key in members],
                    "note": _NOTE if name == "responses" else note,
                }
            )
    return [*groups, *_logged(analysis.onsets, {key for own in measured for key in own})]


def _logged(onsets: Onsets, drawn: Collection[str]) -> list[dict[str, Any]]:
    """The group of the numbers that the trainings logged, one panel per name; without those that are drawn already."""
    curves = [
        {name: curve for name, curve in logged_curves(operator.runs).items() if name not in drawn}
        for operator in onsets.operators
    ]
    names, more = shown_names(curves)
    labels = _labels(onsets)
    series, roles = {label: index for index, label in enumerate(labels)}, _operator_roles(onsets)
    panels, measures = [], []
    for name in names:
        lines = {label: own[name] for label, own in zip(labels, curves, strict=True) if name in own}
        gaps = [describe_gaps(label, curve) for label, curve in lines.items()]
        if text := "; ".join(filter(None, gaps)):
            measures.append([plain(name, 80), plain(text, 400)])
        finite = {label: curve for label, curve in lines.items() if not np.isnan(curve.middle).all()}
        if finite:
            shown = [Curve(label, curve.steps, curve.middle, curve.low, curve.high) for label, curve in finite.items()]
            panel = CurvePanel(plain(name, 80), "", "", shown)
            panels.append(panel_data(panel, series, scale=f"logged {name}", operators=roles))
    if not panels and not measures:
        return []
    note = explain_logged(curves) + (f" {len(more)} more names were logged." if more else "")
    meaning = "the numbers that the training logged"
    return [{"name": "logged", "meaning": meaning, "panels": panels, "measures": measures, "note": note}]


def _labels(onsets: Onsets) -> list[str]:
    """A label for each operator: its title, or its name if titles are the same."""
    titles = [plain(operator.title) for operator in onsets.operators]
    return titles if len(set(titles)) == len(titles) else [plain(operator.name) for operator in onsets.operators]


def _operator_roles(onsets: Onsets) -> dict[str, str]:
    """How each operator's lines are drawn: its colour in all figures, and dashes by its place, which tell them apart.

    ``operator-2-1`` is the third colour of :data:`~fadeviz.render.style.COLORS` and the page's second dash.
    """
    looks = operator_looks([operator.name for operator in onsets.operators])
    return {
        label: f"operator-{COLORS.index(looks[operator.name].color)}-{place}"
        for place, (label, operator) in enumerate(zip(_labels(onsets), onsets.operators, strict=True))
    }


def _by_operator(
    onsets: Onsets, measured: Sequence[Mapping[str, MeasureCurve]], members: Sequence[str]
) -> list[dict[str, Any]]:
    """One panel per unit and operator, one curve per measure."""
    data = []
    for unit in dict.fromkeys(MEASURES[key].unit for key in members):
        keys = [key for key in members if MEASURES[key].unit == unit]
        panels = []
        for operator, own in zip(onsets.operators, measured, strict=True):
            marks = _arrivals(operator)
            curves = [_curve(MEASURES[key].title, own[key], key, marks) for key in keys if key in own]
            levels = [own[key].chance for key in keys if key in own and math.isfinite(own[key].chance)]
            if curves:
                panels.append(CurvePanel(plain(operator.title), "", unit, curves, chance=max(levels, default=None)))
        series = curve_order(panels)
        data += [panel_data(panel, series, scale=unit) for panel in panels]
    return data


def _by_measure(
    onsets: Onsets, measured: Sequence[Mapping[str, MeasureCurve]], members: Sequence[str]
) -> list[dict[str, Any]]:
    """One panel per measure, one curve per operator; an operator has the same colour in all of them."""
    labels = _labels(onsets)
    series, roles = {label: index for index, label in enumerate(labels)}, _operator_roles(onsets)
    data = []
    for key in members:
        curves = [_curve(label, own[key]) for label, own in zip(labels, measured, strict=True) if key in own]
        panel = CurvePanel(MEASURES[key].title, MEASURES[key].meaning, MEASURES[key].unit, curves)
        data.append(panel_data(panel, series, scale=key, operators=roles))
    return data


def _arrivals(operator: OperatorOnset) -> dict[str, float]:
    """The arrivals of what is shown, by measure."""
    halves = ((operator.map, ""), (operator.readout, "_readout"))
    return {
        f"{name}{suffix}": getattr(onset, name).arrival_steps[0]
        for onset, suffix in halves
        if onset is not None
        for name in ("outline", "interior")
    }


def _curve(label: str, curve: MeasureCurve, key: str = "", marks: Mapping[str, float] | None = None) -> Curve:
    indices = shown_indices(len(curve.steps))
    like = _LIKE.get(key)
    return Curve(
        label,
        [curve.steps[index] for index in indices],
        curve.middle[indices],
        curve.low[indices],
        curve.high[indices],
        mark=(marks or {}).get(key, math.nan),
        like=None if like is None else MEASURES[like].title,
    )


def panel_data(
    panel: CurvePanel, series: Mapping[str, int], *, scale: str, operators: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """A panel as the page's script reads it.

    Args:
        panel: the curves.
        series: the position of each label with a colour of its own, see :func:`~fadeviz.render.panels.curve_order`.
        scale: panels with the same scale share the range of their vertical axes.
        operators: the look of each label that is an operator, see :func:`_operator_roles`.
    """

    def role(curve: Curve) -> str:
        label = curve.like or curve.label
        variant = " like" if curve.like else ""
        if label in operators:
            return operators[label]
        return _ROLES.get(label, f"series-{series[label]}") + variant

    return {
        "title": panel.title,
        "unit": panel.unit,
        "scale": scale,
        "chance": None if panel.chance is None else float(f"{panel.chance:.5g}"),
        "marks": [
            {"role": role(curve), "step": float(f"{curve.mark:.5g}")}
            for curve in panel.curves
            if math.isfinite(curve.mark)
        ],
        "curves": [
            {
                "label": curve.label,
                "role": role(curve),
                "steps": list(curve.steps),
                "middle": _rounded(curve.middle),
                "low": _rounded(curve.low),
                "high": _rounded(curve.high),
            }
            for curve in panel.curves
        ],
    }


def signature_data(panels: Sequence[KymographPanel]) -> dict[str, Any]:
    """Distance-time maps as the page's script reads them, with the colours and the axis that they share."""
    if not panels:
        return {"edges": [], "span": 1.0, "log": True, "panels": []}
    indices = shown_indices(len(panels[0].steps))
    return {
        "edges": _rounded(panels[0].edges),
        "span": kymograph_span(panels),
        "log": choose_step_axis([panel.steps for panel in panels]).log,
        "panels": [
            {
                "title": panel.title,
                "subtitle": panel.subtitle,
                "row": panel.row,
                "value": [_rounded(row, 3) for row in np.asarray(panel.value)[indices]],
                "arrivals": [_arrival(mark) for mark in panel.arrivals],
            }
            for panel in panels
        ],
    }


def _arrival(mark: ArrivalMark) -> dict[str, Any]:
    """An arrival for JSON; None for an end that is beyond all steps."""
    step, low, high = _rounded((mark.step, mark.low, mark.high))
    start = {"label": mark.label, "fromStart": mark.from_start, "depth": mark.depth}
    return {**start, "step": step, "low": low, "high": high}


def _rounded(values: Iterable[float], digits: int = 5) -> list[float | None]:
    """Values rounded to ``digits`` significant digits, for JSON; None where they are not finite."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in map(float, values)]
