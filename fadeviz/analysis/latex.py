"""The verdicts as a table for LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..storage.metrics import METRICS
from .table import Row

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
            **{letter: f"\\{letter}" for letter in "&%$#_{}"}}  # fmt: skip


def latex_table(rows: Sequence[Row]) -> str:
    """A ``tabular`` with a line for each operator; it needs the package booktabs.

    Its columns are the operator, its seeds, the verdict, the steps at which outline and interior arrive, the factor by
    which the outline arrives earlier, each with its 95 % interval, and the metrics of the last test where there are
    some. What is not known is a dash.

    Args:
        rows: rows of :func:`~fadeviz.analysis.table.summary_rows`.
    """
    tested = [name for name in METRICS if any(row.get(name) is not None for row in rows)]
    heads = ["Operator", "Seeds", "Verdict", "Outline [step]", "Interior [step]", "Lead of the outline"]
    lines = [r"\begin{tabular}{lrl" + "r" * (len(heads) - 3 + len(tested)) + "}", r"\toprule"]
    lines.append(_line([*map(_escape, heads), *(_escape(METRICS[name].title) for name in tested)]))
    lines.append(r"\midrule")
    for row in rows:
        cells = [_escape(row["title"]), str(len(row["seeds"])), _escape(row["verdict"] or "--")]
        cells += [_interval(row, f"{name}_arrival", 0) for name in ("outline", "interior")]
        cells += [_interval(row, "lead", 2)]
        cells += [METRICS[name].text(row[name]) if isinstance(row.get(name), float) else "--" for name in tested]
        lines.append(_line(cells))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _interval(row: Mapping[str, Any], name: str, digits: int) -> str:
    """A value with its interval: ``34 [20, 61]``."""
    value, low, high = (_number(row.get(key), digits) for key in (name, f"{name}_low", f"{name}_high"))
    return "--" if value == "--" else f"{value} [{low}, {high}]"


def _number(value: float | str | None, digits: int) -> str:
    if value is None:
        return "--"
    number = float(value)
    if not math.isfinite(number) or number >= 1e6:
        return r"$\infty$" if number > 0 else r"$-\infty$"
    return f"{number:.{digits}f}"


def _escape(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


__all__ = ["latex_table"]
