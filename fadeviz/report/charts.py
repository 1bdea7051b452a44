"""Charts of a page: panels of curves and distance-time maps from a measured learning order, and the JSON of each."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..analysis.curves import MeasureCurve, operator_curves
from ..analysis.measures import GROUPS, MEASURES, describe_group
from ..analysis.order import LearningOrder, OperatorOrder
from ..analysis.verdicts import is_representative
from ..render.colormap import palette
from ..render.panels import (
    KYMOGRAPH_COLORS,
    KYMOGRAPH_SPAN,
    Curve,
    CurvePanel,
    KymographPanel,
    curve_order,
    shown_distances,
)
from .text import plain, shown_indices

BY_OPERATOR = ("responses", "learning", "gate")
"""Groups of measures with one panel per operator; the other groups have one panel per measure."""

_COMPARED_WITH = {"edge_mismatched": "edge", "interior_mismatched": "interior", "edge_raw": "edge"}
"""Measures that share the colour of another one."""

_ROLES = {MEASURES[name].title: name for name in ("edge", "interior")}
"""Curves that have the same colour wherever they occur."""

_MARKS = "Dotted vertical lines: median t50. The distance between the two is the lead."


def chart_groups(order: LearningOrder) -> list[dict[str, Any]]:
    """The panels of each group of measures that the runs have, with what they mean, ready for JSON."""
    measured = [operator_curves(order, operator) for operator in order.operators]
    groups = []
    for name in GROUPS:
        members = [key for key in MEASURES if MEASURES[key].group == name and any(key in own for own in measured)]
        if members:
            panels = (_by_operator if name in BY_OPERATOR else _by_measure)(order, measured, members)
            meaning, note = describe_group(name, members)
            groups.append(
                {
                    "name": name,
                    "meaning": meaning,
                    "panels": panels,
                    "measures": [[MEASURES[key].title, MEASURES[key].meaning] for key in members],
                    "note": _MARKS if any(panel["marks"] for panel in panels) else note,
                }
            )
    return groups


def _by_operator(
    order: LearningOrder, measured: Sequence[Mapping[str, MeasureCurve]], members: Sequence[str]
) -> list[dict[str, Any]]:
    """One panel per unit and operator, one curve per measure."""
    data = []
    for unit in dict.fromkeys(MEASURES[key].unit for key in members):
        keys = [key for key in members if MEASURES[key].unit == unit]
        panels = []
        for operator, own in zip(order.operators, measured, strict=True):
            marks = _onsets(operator)
            curves = [_curve(MEASURES[key].title, own[key], key, marks) for key in keys if key in own]
            if curves:
                panels.append(CurvePanel(plain(operator.title), "", unit, curves))
        series = curve_order(panels)
        data += [panel_data(panel, series, scale=unit) for panel in panels]
    return data


def _by_measure(
    order: LearningOrder, measured: Sequence[Mapping[str, MeasureCurve]], members: Sequence[str]
) -> list[dict[str, Any]]:
    """One panel per measure, one curve per operator; an operator has the same colour in all of them."""
    titles = [plain(operator.title) for operator in order.operators]
    labels = titles if len(set(titles)) == len(titles) else [plain(operator.name) for operator in order.operators]
    series = {label: index for index, label in enumerate(labels)}
    data = []
    for key in members:
        curves = [_curve(label, own[key]) for label, own in zip(labels, measured, strict=True) if key in own]
        panel = CurvePanel(MEASURES[key].title, MEASURES[key].meaning, MEASURES[key].unit, curves)
        data.append(panel_data(panel, series, scale=key))
    return data


def _onsets(operator: OperatorOrder) -> dict[str, float]:
    """The median onset of each response, where enough maps have one."""
    onsets = {"edge": operator.edge_t50, "interior": operator.interior_t50}
    return {name: t50.estimate for name, t50 in onsets.items() if is_representative(t50, operator.lead.size)}


def _curve(label: str, curve: MeasureCurve, key: str = "", marks: Mapping[str, float] | None = None) -> Curve:
    indices = shown_indices(len(curve.steps))
    like = _COMPARED_WITH.get(key)
    return Curve(
        label,
        [curve.steps[index] for index in indices],
        curve.middle[indices],
        curve.low[indices],
        curve.high[indices],
        mark=(marks or {}).get(key, math.nan),
        like=None if like is None else MEASURES[like].title,
        faint=key.endswith("_mismatched"),
    )


def panel_data(panel: CurvePanel, series: Mapping[str, int], *, scale: str) -> dict[str, Any]:
    """A panel as the page's script reads it.

    Args:
        panel: the curves.
        series: the position of each label with a colour of its own, see :func:`~fadeviz.render.panels.curve_order`.
        scale: panels with the same scale share the range of their vertical axes.
    """

    def role(curve: Curve) -> str:
        label = curve.like or curve.label
        variant = " faint" if curve.faint else " like" if curve.like else ""
        return _ROLES.get(label, f"series-{series[label]}") + variant

    return {
        "title": panel.title,
        "unit": panel.unit,
        "scale": scale,
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


def kymograph_data(order: LearningOrder) -> dict[str, Any]:
    """The distance-time maps of all operators near the contour, the edges of their bins, and their colours."""
    indices = shown_indices(len(order.steps))
    steps = [order.steps[index] for index in indices]
    values, gradients = (
        [KymographPanel(plain(o.title), "", steps, map_.edges, map_.value[indices]) for o, map_ in maps]
        for maps in (
            [(operator, operator.value_kymograph) for operator in order.operators],
            [(operator, operator.gradient_kymograph) for operator in order.operators],
        )
    )
    edges = values[0].edges
    last = shown_distances([edges])[1]
    bins = sum(float(edge) <= last for edge in edges) - 1
    return {
        "edges": _rounded(edges[: bins + 1]),
        "span": list(KYMOGRAPH_SPAN),
        "colours": base64.b64encode(palette(KYMOGRAPH_COLORS).tobytes()).decode(),
        "operators": [
            {
                "title": value.title,
                "value": [_rounded(row[:bins], 3) for row in value.value],
                "gradient": [_rounded(row[:bins], 3) for row in gradient.value],
            }
            for value, gradient in zip(values, gradients, strict=True)
        ],
    }


def _rounded(values: Iterable[float], digits: int = 5) -> list[float | None]:
    """Values rounded to ``digits`` significant digits, for JSON; None where they are not finite."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in map(float, values)]
