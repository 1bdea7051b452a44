"""The commands that measure stored runs: analyze and plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from fadeviz.analysis.measures import PLOTS
from fadeviz.render.step_axis import STEP_AXES

from .arguments import Output, is_stdout, write_text
from .messages import print_notes, print_written
from .options import CALL, CAPTION, KIND, LABELS, LAYER, RUNS, TITLE, choose_layer, figure_style

if TYPE_CHECKING:
    from fadeviz.render.style import StyleOptions


@click.command()
@RUNS
@LAYER
@KIND
@CALL
@click.option("--json", "json_file", type=Output(text=True, dir_okay=False), metavar="FILE",
              help="Write all numbers here; - is standard output, and moves the table to standard error.")  # fmt: skip
@click.option("--csv", "csv_file", type=Output(text=True, dir_okay=False), metavar="FILE",
              help="Write the table here; - as for --json.")  # fmt: skip
def analyze(
    runs: tuple[Path | str, ...],
    layer: tuple[str, ...],
    kind: str,
    call: int,
    json_file: Path | None,
    csv_file: Path | None,
) -> None:
    """Measure what RUNS show first: outline or interior.

    Prints one row per operator, with intervals over images and seeds, and each verdict as a sentence.
    """
    import fadeviz

    piped = [file for file in (json_file, csv_file) if is_stdout(file)]
    if len(piped) > 1:
        raise click.UsageError("--json - and --csv - both write to standard output: choose one")
    opened, chosen = choose_layer(runs, layer)
    analysis = fadeviz.analyze(opened, layer=chosen, kind=kind, call=call)
    if json_file is not None:
        write_text(json_file, json.dumps(analysis.to_dict(), allow_nan=False) + "\n")
    if csv_file is not None:
        write_text(csv_file, analysis.to_csv())
    click.echo(str(analysis), err=bool(piped))
    for file in (json_file, csv_file):
        if file is not None and file not in piped:
            click.echo(f"wrote {file}", err=bool(piped))


@click.command()
@RUNS
@click.option("--what", type=click.Choice(list(PLOTS)), multiple=True, default=["kymograph"], show_default=True,
              help="May be repeated. " + "; ".join(f"{name}: {meaning}" for name, meaning in PLOTS.items()) + ".",
              )  # fmt: skip
@LAYER
@KIND
@CALL
@click.option("--step-axis", type=click.Choice(list(STEP_AXES)), default="auto", show_default=True,
              help="How training steps are drawn. " + "; ".join(f"{k}: {v}" for k, v in STEP_AXES.items()) + ".",
              )  # fmt: skip
@LABELS
@TITLE
@CAPTION
@figure_style
@click.option("-o", "--output", type=Output(path_type=str), required=True, metavar="FILE",
              help="The file to write: .png, .pdf or .svg. For several plots: figures/{what}.png.")  # fmt: skip
def plot(
    runs: tuple[Path | str, ...],
    what: tuple[str, ...],
    layer: tuple[str, ...],
    kind: str,
    call: int,
    step_axis: str,
    labels: tuple[str, ...],
    title: str | None,
    caption: bool,
    output: str,
    **style: Unpack[StyleOptions],
) -> None:
    """Plot the measures of RUNS.

    Draws distance-time maps, or curves over training with 95 % intervals.
    """
    import fadeviz

    opened, chosen = choose_layer(runs, layer)
    written = fadeviz.plot(
        opened, output, what=what, layer=chosen, kind=kind, call=call, step_axis=step_axis, labels=labels, title=title,
        caption=caption, **style,
    )  # fmt: skip
    for file in written.files:
        print_written(file)
    print_notes(written.notes)


__all__ = ["analyze", "plot"]
