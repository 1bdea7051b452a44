"""The commands that measure stored runs: analyze and plot."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fadeviz.analysis.order import LearningOrder

_RUNS = click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
_LAYER = click.option("--layer", default=None, help="Layer to measure.  [default: the network's intermediate one]")
_KIND = click.option("--kind", "map_kind", default="feature", show_default=True, help="Kind of map to measure.")


@click.command()
@_RUNS
@_LAYER
@_KIND
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all numbers here.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the table here.")
def analyze(
    runs: tuple[Path, ...], layer: str | None, map_kind: str, json_file: Path | None, csv_file: Path | None
) -> None:
    """Measure what RUNS learn first, outline or interior: one row an operator, with intervals over images and seeds."""
    from fadeviz.analysis.table import describe, summary_rows
    from fadeviz.snapshots import write_whole

    order = _order(runs, layer, map_kind)
    rows = summary_rows(order)
    if json_file is not None:
        whole = {
            "layer": order.layer,
            "kind": order.kind,
            "steps": list(order.steps),
            "images": list(order.images),
            "operators": rows,
            "comparisons": [
                {
                    "first": one.first,
                    "second": one.second,
                    "seeds": list(one.seeds),
                    **{
                        unit: {
                            "difference": _finite(t.difference),
                            "p": _finite(t.p),
                            "pairs": t.count,
                        }
                        for unit, t in one.tests.items()
                    },
                }
                for one in order.comparisons
            ],
            "notes": list(order.notes),
        }
        write_whole(json_file, (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())
    if csv_file is not None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(json.dumps(v) if isinstance(v, list | dict) else v for v in row.values())
        write_whole(csv_file, text.getvalue().encode())
    click.echo(describe(order, rows))
    for file in (json_file, csv_file):
        if file is not None:
            click.echo(f"wrote {file}")


@click.command()
@_RUNS
@click.option("--kind", "figure", type=click.Choice(["kymograph", "edge-kymograph", "responses"]), default="kymograph",
              show_default=True,
              help="kymograph: the map's values by distance to the contour and step; edge-kymograph: its steepness; "
                   "responses: edge and interior response over the training.")  # fmt: skip
@_LAYER
@click.option("--map-kind", default="feature", show_default=True, help="Kind of map to measure.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="The figure: .png, .pdf or .svg.")  # fmt: skip
def plot(runs: tuple[Path, ...], figure: str, layer: str | None, map_kind: str, output: Path) -> None:
    """Draw what was measured of RUNS: distance-time maps, or responses over the training."""
    from fadeviz.render.plots import KymographPanel, ResponsePanel, write_kymographs, write_responses

    order = _order(runs, layer, map_kind)
    caption = (
        f"{order.layer}, {order.kind}. {len(order.images)} images: {', '.join(order.images)}. Runs: "
        f"{', '.join(run.run_id for operator in order.operators for run in operator.runs)}. "
    )
    subtitles = [f"{len(op.seeds)} seed{'s' if len(op.seeds) > 1 else ''}; {op.verdict.word}" for op in order.operators]
    if figure == "responses":

        def flat(values: Any) -> Any:
            return values.transpose(0, 2, 1).reshape(-1, values.shape[1])

        write_responses(
            [
                ResponsePanel(op.title, subtitle, order.steps, flat(op.edge), flat(op.interior),
                              op.edge_t50.estimate, op.interior_t50.estimate)
                for op, subtitle in zip(order.operators, subtitles, strict=True)
            ],
            output,
            caption=caption + "Lines: median over runs and images; bands: their middle half; dotted: half of the way.",
        )  # fmt: skip
    else:
        value = figure == "kymograph"
        kymographs = [op.value_kymograph if value else op.gradient_kymograph for op in order.operators]
        write_kymographs(
            [
                KymographPanel(op.title, subtitle, order.steps, k.edges, k.value)
                for op, subtitle, k in zip(order.operators, subtitles, kymographs, strict=True)
            ],
            output,
            quantity=f"mean rank of the map's {'values' if value else 'steepness'} (0 lowest, 1 highest)",
            caption=caption + "Dashed: the contour. An interior that fills spreads from it; noise is 0.5 everywhere.",
        )
    click.echo(f"wrote {output}")


def _order(runs: tuple[Path, ...], layer: str | None, kind: str) -> LearningOrder:
    from fadeviz import open_run
    from fadeviz.analysis.order import learning_order

    return learning_order([open_run(path) for path in runs], layer, kind)


def _finite(value: float) -> float | None:
    import math

    return value if math.isfinite(value) else None


__all__ = ["analyze", "plot"]
