"""Rows of numbers: one row per operator, for a table, JSON or CSV."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.metrics import TASK_METRICS
from ..storage.several_runs import distinct_paths
from .curves import Curves
from .learning import UNTIL, LearningTimes, State
from .order import RESPONSES, Comparison, LearningOrder, OperatorOrder, reclassify
from .splices import find_splice
from .statistics import Interval, bootstrap_interval

Row = dict[str, Any]


def summary_rows(order: LearningOrder, curves: Sequence[Curves]) -> list[Row]:
    """One flat row per operator; undefined numbers are None, those beyond the training "inf" or "-inf".

    ``edge_states`` and ``interior_states`` count the maps in each :class:`~fadeviz.analysis.learning.State`: a lead
    describes only the maps that have one. Values at the start and the end are medians over seeds and images.

    Args:
        order: the measured order of learning.
        curves: the curves of each operator, from :func:`~fadeviz.analysis.curves.operator_curves`.
    """
    tested = _tested(curves)
    return [_row(operator, order, own, tested) for operator, own in zip(order.operators, curves, strict=True)]


def _tested(curves: Sequence[Curves]) -> list[str]:
    """The test metrics in a row: the brief ones of all tasks that the networks were tested for."""
    tasks = [task for task in TASK_METRICS.values() if any(task.headline in own for own in curves)]
    tasks = tasks or [TASK_METRICS["segmentation"]]
    return [name for task in tasks for name, metric in task.metrics.items() if metric.brief]


def _row(operator: OperatorOrder, order: LearningOrder, curves: Curves, tested: Sequence[str]) -> Row:
    ends = {}
    for name in ("edge", "interior", "edge_mismatched", "interior_mismatched", "centroid", "checkerboard", "nyquist"):
        values = curves[name].middle if name in curves else np.array([np.nan])
        ends[f"{name}_at_start"], ends[f"{name}_at_end"] = json_number(values[0]), json_number(values[-1])
    change = curves["pixel_change"].values if "pixel_change" in curves else np.array([np.nan])
    return {
        "operator": operator.name,
        "title": operator.title,
        "seeds": list(operator.seeds),
        "images": len(order.images),
        "verdict": operator.verdict.label,
        "reason": operator.verdict.reason,
        **_interval("lead", operator.lead_interval),
        **_interval("edge_t50", operator.edge_t50),
        **_interval("interior_t50", operator.interior_t50),
        **_early_and_late("edge", operator.edge_times),
        **_early_and_late("interior", operator.interior_times),
        "edge_states": _states(operator.edge_times),
        "interior_states": _states(operator.interior_times),
        **ends,
        "frame_change": _median(change),
        **{name: json_number(curves[name].values[:, -1].mean()) if name in curves else None for name in tested},
        "spliced": _spliced(operator, order, curves),
        "runs": [run.run_id for run in operator.runs],
    }


def _spliced(operator: OperatorOrder, order: LearningOrder, curves: Curves) -> list[str]:
    """The folders of runs whose frames do not look like those of a single training."""
    correlation = curves.get("frame_correlation")
    return [
        path
        for index, (path, run) in enumerate(zip(distinct_paths(operator.runs), operator.runs, strict=True))
        if find_splice(
            run,
            order.layer,
            order.kind,
            order.call,
            next_correlation=None
            if correlation is None or correlation.steps != run.steps
            else correlation.values[index, 1:],
        ).found
    ]


def verdicts_by_rule(order: LearningOrder) -> list[Row]:
    """The verdict and the lead of every operator by every rule: each of ``RESPONSES`` with each of ``UNTIL``."""
    rows = []
    for responses, until in itertools.product(RESPONSES, UNTIL):
        same = (responses, until) == (order.rules.responses, order.rules.until)
        for operator in (order if same else reclassify(order, responses=responses, until=until)).operators:
            rows.append(
                {
                    "operator": operator.name,
                    "responses": responses,
                    "until": until,
                    "verdict": operator.verdict.label,
                    "reason": operator.verdict.reason,
                    **_interval("lead", operator.lead_interval),
                }
            )
    return rows


def curve_rows(curves: Curves) -> dict[str, Row]:
    """The curves of one operator for JSON: steps, median and ends of the interval; undefined values are None."""
    return {
        name: {
            "steps": list(curve.steps),
            **{part: [json_number(v) for v in getattr(curve, part).tolist()] for part in ("middle", "low", "high")},
        }
        for name, curve in curves.items()
    }


def comparison_row(comparison: Comparison) -> Row:
    """The paired tests of two operators for JSON."""
    return {
        "first": comparison.first,
        "second": comparison.second,
        "seeds": list(comparison.seeds),
        **{
            unit: {"difference": json_number(test.difference), "p": json_number(test.p), "pairs": test.count}
            for unit, test in comparison.tests.items()
        },
    }


def _interval(name: str, interval: Interval) -> Row:
    return {
        name: json_number(interval.estimate),
        f"{name}_low": json_number(interval.low),
        f"{name}_high": json_number(interval.high),
        f"{name}_maps": interval.count,
    }


def _early_and_late(name: str, times: Sequence[Sequence[LearningTimes]]) -> Row:
    """The median time of each level but the half: ``edge_t10``, ``edge_t90``."""
    levels = times[0][0].levels
    by_level = np.array([map_times.times for run_times in times for map_times in run_times]).T
    return {
        f"{name}_t{100 * level:g}": json_number(bootstrap_interval(values[None], resamples=1).estimate)
        for level, values in zip(levels, by_level, strict=True)
        if level != 0.5
    }


def _states(times: Sequence[Sequence[LearningTimes]]) -> dict[str, int]:
    states = [map_times.state for run_times in times for map_times in run_times]
    return {state.value: states.count(state) for state in State if state in states}


def _median(values: NDArray[np.floating]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def json_number(value: float) -> float | str | None:
    """A number for JSON, which has no infinities: "inf" or "-inf" beyond the training, None where undefined."""
    return value if math.isfinite(value) else None if math.isnan(value) else "inf" if value > 0 else "-inf"
