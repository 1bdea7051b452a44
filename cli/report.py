"""The command that writes one page of everything that was measured: report."""

from __future__ import annotations

from pathlib import Path

import click

from .runs import CALL, RUN, Output


@click.command()
@click.argument("runs", nargs=-1, required=True, type=RUN, metavar="RUN...")
@click.option("-o", "--output", type=Output(dir_okay=False), required=True,
              help="The page: .html.")  # fmt: skip
@click.option("--layer", "layers", multiple=True,
              help="Show this layer alone; may be repeated, the first is measured.  "
                   "[default: all, measuring the network's intermediate one]")  # fmt: skip
@click.option("--kind", "kinds", multiple=True,
              help="Show this kind of map alone; may be repeated, the first is measured.  "
                   "[default: all, measuring feature]")  # fmt: skip
@click.option("--images", type=int, default=4, show_default=True,
              help="How many observed images to show, from the first; all are measured.")  # fmt: skip
@click.option("--max-mb", type=float, default=6.0, show_default=True,
              help="Largest size of the file; maps that do not fit are named.")  # fmt: skip
@click.option("--call", type=int, default=0, show_default=True, help=CALL)
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
    """Write RUNS as one page to mail: verdict, maps to step through, curves, distance-time maps. It loads nothing."""
    from fadeviz import open_run
    from fadeviz.report import write_report

    notes = write_report(
        [open_run(run) for run in runs], output, layers=layers, kinds=kinds, images=images, max_mb=max_mb, title=title,
        call=call,
    )  # fmt: skip
    for note in notes:
        click.echo(f"note: left out {note}", err=True)
    click.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")


__all__ = ["report"]
