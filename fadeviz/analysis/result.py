"""Analysis: what stored runs show first, as rows, verdicts, sentences, curves, JSON, CSV and text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..storage.layers_of_runs import LayerOfRuns
from ..storage.opening import RunLike, stored_runs
from .curves import MeasureCurve, operator_curves
from .latex import latex_table
from .onsets import Onsets, measure_onsets
from .sentences import describe_operator
from .table import Row, comparison_row, curve_rows, summary_rows
from .text import describe
from .verdicts import Verdict


@dataclass(frozen=True)
class Analysis:
    """The result of :func:`analyze`. ``print(analysis)`` shows a table, the verdicts as sentences, and the notes.

    Curves and rows are measured when they are first used.

    Attributes:
        onsets: readings, arrivals, leads and verdicts, operator by operator.

    Example::

        analysis = fadeviz.analyze(["outputs/fade", "outputs/carafe"])
        print(analysis)
        analysis.verdicts["fade"].label                # "outline from the start"
        analysis.sentences["fade"]                     # what the maps show, and what the features hold
        analysis.curves["fade"]["outline"].middle      # (S,) response of the outline at each step
        pandas.DataFrame(analysis.table)
    """

    onsets: Onsets

    @cached_property
    def curves(self) -> dict[str, dict[str, MeasureCurve]]:
        """The curves of all measures over training, for each operator by the names in ``MEASURES``."""
        return {operator.name: operator_curves(self.onsets, operator) for operator in self.onsets.operators}

    @cached_property
    def table(self) -> list[Row]:
        """One row per operator, as plain values; see :func:`~fadeviz.analysis.table.summary_rows`."""
        return summary_rows(self.onsets, list(self.curves.values()))

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on what each operator's maps show."""
        return {operator.name: operator.map.verdict for operator in self.onsets.operators}

    @property
    def readout_verdicts(self) -> dict[str, Verdict]:
        """The verdict on what the features of each operator hold, where a readout was recorded."""
        operators = self.onsets.operators
        return {operator.name: operator.readout.verdict for operator in operators if operator.readout is not None}

    @property
    def sentences(self) -> dict[str, tuple[str, ...]]:
        """For each operator, one sentence on what its maps show, and one on what its features hold if that is known."""
        onsets = self.onsets
        return {operator.name: describe_operator(operator, onsets.steps) for operator in onsets.operators}

    @property
    def notes(self) -> tuple[str, ...]:
        """Caveats about the runs, one sentence each, without a full stop."""
        return self.onsets.notes

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as JSON-serialisable values: undefined ones are None, infinite ones "inf" or "-inf"."""
        onsets = self.onsets
        return {
            "layer": onsets.layer,
            "call": onsets.call,
            "kind": onsets.kind,
            "steps": list(onsets.steps),
            "images": [onsets.images[index] for index in onsets.kept],
            "left_out": [name for index, name in enumerate(onsets.images) if index not in onsets.kept],
            "operators": [
                {**row, "curves": curve_rows(curves)}
                for row, curves in zip(self.table, self.curves.values(), strict=True)
            ],
            "comparisons": [comparison_row(comparison) for comparison in onsets.comparisons],
            "notes": list(onsets.notes),
        }

    def to_csv(self) -> str:
        """The table as CSV with a header; lists and counts are written as JSON."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.table[0])
        for row in self.table:
            writer.writerow(json.dumps(v) if isinstance(v, list | dict) else v for v in row.values())
        return text.getvalue()

    def to_latex(self) -> str:
        """The verdicts as a ``tabular`` of LaTeX; see :func:`~fadeviz.analysis.latex.latex_table`."""
        return latex_table(self.table)

    def __str__(self) -> str:
        return describe(self.onsets, self.table)

    def __repr__(self) -> str:
        verdicts = ", ".join(f"{name}: {verdict}" for name, verdict in self.verdicts.items())
        return f"Analysis({self.onsets.layer_title}, {self.onsets.kind}; {verdicts})"


def analyze(
    runs: RunLike | Sequence[RunLike],
    *,
    layer: LayerOfRuns | None = None,
    kind: str = "feature",
    call: int = 0,
) -> Analysis:
    """Measure what runs show first, outline or interior: a verdict on each operator, with intervals.

    Runs of one operator with different seeds are measured together. The method is described in
    :class:`~fadeviz.analysis.contrasts.Contrasts`, :func:`~fadeviz.analysis.onset.judge` and
    :func:`~fadeviz.analysis.verdicts.choose_verdict`.

    Args:
        runs: one or more runs that observed the same images: open runs, folders or addresses.
        layer: layer to measure: a dotted name; or, where it differs between the runs, a mapping that names one for each
            run, by its folder or its label: ``{"a": "up1", "b": "up1.op"}``. None takes the network's intermediate one.
        kind: kind of map to measure, with one map per image: feature, gradient, gate, readout, ...
        call: which call to measure, from 0, of a layer that runs several times in a forward pass.

    Raises:
        FadevizError: if a run cannot be opened or read; see also :func:`~fadeviz.analysis.onsets.measure_onsets`.
    """
    return Analysis(measure_onsets(stored_runs(runs), layer, kind, call=call))
