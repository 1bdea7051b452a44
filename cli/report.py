"""The command that writes everything that was measured as one page: report."""

from __future__ import annotations

from pathlib import Path

import click

from .arguments import Output
from .messages import print_notes
from .options import CALL, RUNS


@click.command()
@RUNS
@click.option("-o", "--output", type=Output(dir_okay=False), required=True,
              help="The file to write: .html.")  # fmt: skip
@click.option("--layer", "layers", multiple=True, metavar="[RUN=]LAYER",
              help="Show only this layer; may be repeated; the first is measured. One whose name differs between the "
                   "runs is repeated for each, by the run's folder: a=up1.  "
                   "[default: all, measuring the network's intermediate one]")  # fmt: skip
@click.option("--kind", "kinds", multiple=True,
              help="Show only this kind of map; may be repeated; the first is measured.  "
                   "[default: all, measuring feature]")  # fmt: skip
@click.option("--images", type=int, default=4, show_default=True,
              help="Number of observed images to show, from the first one; all are measured.")  # fmt: skip
@click.option("--max-mb", type=float, default=6.0, show_default=True,
              help="Maximum size of the file in MB; maps that do not fit are listed.")  # fmt: skip
@CALL
@click.option("--title", help="Heading of the page.  [default: the operators and the network]")
def report(
    runs: tuple[Path | str, ...],
    output: Path,
    layers: tuple[str, ...],
    kinds: tuple[str, ...],
    images: int,
    max_mb: float,
    call: int,
    title: str | None,
) -> None:
    """Write RUNS as one self-contained HTML page.

    It shows the verdicts, maps to step through, curves and distance-time maps. It needs no network access, so it can be
    sent by mail.
    """
    import fadeviz
    from fadeviz.storage.layers_of_runs import parse_layers

    opened = [fadeviz.open_run(run) for run in runs]
    notes = fadeviz.write_report(
        opened, output, layers=parse_layers(opened, layers), kinds=kinds, images=images, max_mb=max_mb,
        call=call, title=title,
    )  # fmt: skip
    print_notes(f"left out {note}" for note in notes)
    click.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")


__all__ = ["report"]
