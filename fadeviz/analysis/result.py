"""Analysis: what was learned first in stored runs, as rows, verdicts, curves, JSON, CSV and text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..storage.opening import RunLike, stored_runs
from .curves import MeasureCurve, operator_curves
from .order import LearningOrder, learning_order
from .table import Row, comparison_row, curve_rows, summary_rows, verdicts_by_rule
from .text import describe
from .verdicts import Verdict


@dataclass(frozen=True)
class Analysis:
    """The result of :func:`analyze`. ``print(analysis)`` shows a table, the verdicts and the notes.

    Curves and rows are measured when they are first used.

    Attributes:
        order: the measured responses, learning times and verdicts, operator by operator.

    Example::

        analysis = fadeviz.analyze(["outputs/fade", "outputs/carafe"])
        print(analysis)
        analysis.verdicts["fade"].label             # "outline first"
        analysis.curves["fade"]["edge"].middle      # (S,) median edge response at each step
        pandas.DataFrame(analysis.table)
    """

    order: LearningOrder

    @cached_property
    def curves(self) -> dict[str, dict[str, MeasureCurve]]:
        """The curves of all measures over training, for each operator by the names in ``MEASURES``."""
        return {operator.name: operator_curves(self.order, operator) for operator in self.order.operators}

    @cached_property
    def table(self) -> list[Row]:
        """One row per operator, as plain values; see :func:`~fadeviz.analysis.table.summary_rows`."""
        return summary_rows(self.order, list(self.curves.values()))

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on each operator, with its reason."""
        return {operator.name: operator.verdict for operator in self.order.operators}

    @cached_property
    def verdicts_by_rule(self) -> list[Row]:
        """Verdict and lead of every operator under every rule; a verdict under a single rule is weak evidence."""
        return verdicts_by_rule(self.order)

    @property
    def notes(self) -> tuple[str, ...]:
        """Caveats about the runs, one sentence each, without a full stop."""
        return self.order.notes

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as JSON-serialisable values: undefined ones are None, infinite ones "inf" or "-inf"."""
        order = self.order
        return {
            "layer": order.layer,
            "call": order.call,
            "kind": order.kind,
            "steps": list(order.steps),
            "images": list(order.images),
            "responses": order.rules.responses,
            "until": order.rules.until,
            "operators": [
                {**row, "curves": curve_rows(curves)}
                for row, curves in zip(self.table, self.curves.values(), strict=True)
            ],
            "comparisons": [comparison_row(comparison) for comparison in order.comparisons],
            "verdicts_by_rule": self.verdicts_by_rule,
            "notes": list(order.notes),
        }

    def to_csv(self) -> str:
        """The table as CSV with a header; lists and counts are written as JSON."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.table[0])
        for row in self.table:
            writer.writerow(json.dumps(v) if isinstance(v, list | dict) else v for v in row.values())
        return text.getvalue()

    def __str__(self) -> str:
        return describe(self.order, self.table, self.verdicts_by_rule)

    def __repr__(self) -> str:
        verdicts = ", ".join(f"{name}: {verdict.label}" for name, verdict in self.verdicts.items())
        return f"Analysis({self.order.layer_title}, {self.order.kind}; {verdicts})"


def analyze(
    runs: RunLike | Sequence[RunLike],
    *,
    layer: str | None = None,
    kind: str = "feature",
    call: int = 0,
    responses: str = "plain",
    until: str = "end",
) -> Analysis:
    """Measure what was learned first, outline or interior: a verdict on each operator, with intervals.

    Runs of one operator with different seeds are measured together. The method is described in
    :func:`~fadeviz.analysis.responses.edge_response`, :func:`~fadeviz.analysis.responses.interior_response`,
    :func:`~fadeviz.analysis.learning.learning_times` and :func:`~fadeviz.analysis.verdicts.verdict`.

    Args:
        runs: one or more runs that observed the same images: open runs, folders or addresses.
        layer: layer to measure; None takes the network's intermediate one.
        kind: kind of map to measure, with one map per image: feature, gradient, gate, ...
        call: which call to measure, from 0, of a layer that runs several times in a forward pass.
        responses: responses whose learning times are measured; a name in
            :data:`~fadeviz.analysis.order.RESPONSES`.
        until: level towards which a response is learned; a name in :data:`~fadeviz.analysis.learning.UNTIL`.

    Raises:
        FadevizError: if a run cannot be opened or read; see also :func:`~fadeviz.analysis.order.learning_order`.
    """
    return Analysis(learning_order(stored_runs(runs), layer, kind, responses=responses, until=until, call=call))
