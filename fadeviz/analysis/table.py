"""Rows of numbers: one row per operator, for a table, JSON or CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.metrics import TASK_METRICS
from ..storage.several_runs import distinct_paths
from .curves import Curves
from .jackknife import Estimate
from .onset import Onset, Reading
from .onsets import Comparison, Onsets, OperatorOnset
from .sentences import advise, describe_operator
from .splices import find_splice

Row = dict[str, Any]


def summary_rows(onsets: Onsets, curves: Sequence[Curves]) -> list[Row]:
    """One flat row per operator; undefined numbers are None, those beyond the training "inf" or "-inf".

    Responses are own mask less other masks, 1 for a perfect map; arrivals are in steps; leads are factors by which the
    outline arrives earlier. What a readout of the features gives has the same names after ``readout_``. Other values at
    the start and the end are medians over seeds and images.

    Args:
        onsets: the measured onsets.
        curves: the curves of each operator, from :func:`~fadeviz.analysis.curves.operator_curves`.
    """
    tested = _tested(curves)
    return [_row(operator, onsets, own, tested) for operator, own in zip(onsets.operators, curves, strict=True)]


def _tested(curves: Sequence[Curves]) -> list[str]:
    """The test metrics in a row: the brief ones of all tasks that the networks were tested for."""
    tasks = [task for task in TASK_METRICS.values() if any(task.headline in own for own in curves)]
    tasks = tasks or [TASK_METRICS["segmentation"]]
    return [name for task in tasks for name, metric in task.metrics.items() if metric.brief]


def _row(operator: OperatorOnset, onsets: Onsets, curves: Curves, tested: Sequence[str]) -> Row:
    ends = {}
    for name in ("boundary_auc", "region_auc", "centroid", "checkerboard", "nyquist"):
        values = curves[name].middle if name in curves else np.array([np.nan])
        ends[f"{name}_at_start"], ends[f"{name}_at_end"] = json_number(values[0]), json_number(values[-1])
    change = curves["pixel_change"].values if "pixel_change" in curves else np.array([np.nan])
    sentences = describe_operator(operator, onsets.steps)
    return {
        "operator": operator.name,
        "title": operator.title,
        **({} if len(set(onsets.layers.values())) == 1 else {"layer": onsets.layers[operator.runs[0]]}),
        "seeds": list(operator.seeds),
        "images": operator.map.images,
        "sentence": sentences[0],
        **_onset(operator.map, onsets.steps),
        "readout_sentence": sentences[1] if len(sentences) > 1 else None,
        **{f"readout_{name}": value for name, value in _onset(operator.readout, onsets.steps).items()},
        "contour_p": None if operator.contour is None else operator.contour.p,
        "contour_top": None if operator.contour is None else float(operator.contour.strength.max()),
        "control": operator.control or None,
        "origins": {origin.name: origin.origin for origin in operator.origins},
        "readout_origins": {origin.name: origin.origin for origin in operator.readout_origins},
        **ends,
        "frame_change": _median(change),
        **{name: json_number(curves[name].values[:, -1].mean()) if name in curves else None for name in tested},
        "spliced": _spliced(operator, onsets, curves),
        "runs": [run.run_id for run in operator.runs],
    }


def _onset(onset: Onset | None, steps: Sequence[int]) -> Row:
    """The numbers of one onset; all None without one."""
    return {
        "verdict": None if onset is None else str(onset.verdict),
        **_reading("outline", None if onset is None else onset.outline),
        **_reading("interior", None if onset is None else onset.interior),
        **_lead(None if onset is None else onset.lead),
        "advice": (advise(onset, steps) or None) if onset is not None else None,
        "place": None if onset is None else json_number(onset.place),
        "alike": None if onset is None else json_number(onset.alike),
    }


def _reading(name: str, reading: Reading | None) -> Row:
    if reading is None or not reading.measured:
        numbers = ("start", "top", "end", "p", "p_start", "chance", "arrival", "arrival_low", "arrival_high")
        return {f"{name}_{number}": None for number in (*numbers, "shown", "gone")}
    step, low, high = reading.arrival_steps
    return {
        f"{name}_start": json_number(reading.start),
        f"{name}_top": json_number(reading.top),
        f"{name}_end": json_number(reading.end),
        f"{name}_p": json_number(reading.p),
        f"{name}_p_start": json_number(reading.p_start),
        f"{name}_chance": json_number(reading.chance),
        f"{name}_arrival": json_number(step),
        f"{name}_arrival_low": json_number(max(low, 0.0) if math.isfinite(low) else low),
        f"{name}_arrival_high": json_number(high),
        f"{name}_shown": reading.shown,
        f"{name}_gone": reading.gone_step,
    }


def _lead(lead: Estimate | None) -> Row:
    values = (math.nan,) * 3 if lead is None else (lead.value, *lead.interval())
    factors = (math.exp(min(value, 700.0)) for value in values)
    return dict(zip(("lead", "lead_low", "lead_high"), map(json_number, factors), strict=True))


def _spliced(operator: OperatorOnset, onsets: Onsets, curves: Curves) -> list[str]:
    """The folders of runs whose frames do not look like those of a single training."""
    correlation = curves.get("frame_correlation")
    return [
        path
        for index, (path, run) in enumerate(zip(distinct_paths(operator.runs), operator.runs, strict=True))
        if find_splice(
            run,
            onsets.layers[run],
            onsets.kind,
            onsets.call,
            next_correlation=None
            if correlation is None or correlation.steps != run.steps
            else correlation.values[index, 1:],
        ).found
    ]


def curve_rows(curves: Curves) -> dict[str, Row]:
    """The curves of one operator for JSON: steps, middle and ends of the interval; undefined values are None."""
    return {
        name: {
            "steps": list(curve.steps),
            **{part: [json_number(v) for v in getattr(curve, part).tolist()] for part in ("middle", "low", "high")},
            **({} if math.isnan(curve.chance) else {"chance": curve.chance}),
        }
        for name, curve in curves.items()
    }


def comparison_row(comparison: Comparison) -> Row:
    """The difference of two operators' leads for JSON, as the ratio of their factors."""
    low, high = comparison.difference.interval()
    ratio = [json_number(math.exp(min(value, 700.0))) for value in (comparison.difference.value, low, high)]
    return {
        "first": comparison.first,
        "second": comparison.second,
        "kind": comparison.kind,
        "seeds": list(comparison.seeds),
        "ratio": ratio[0],
        "ratio_low": ratio[1],
        "ratio_high": ratio[2],
        "p": json_number(comparison.p),
    }


def _median(values: NDArray[np.floating]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def json_number(value: float) -> float | str | None:
    """A number for JSON, which has no infinities: "inf" or "-inf" beyond the training, None where undefined."""
    return float(value) if math.isfinite(value) else None if math.isnan(value) else "inf" if value > 0 else "-inf"
