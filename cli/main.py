"""The command ``fadeviz`` with its subcommands: options in, one library call, a few lines out."""

from __future__ import annotations

import io
import sys

import click

from fadeviz import __version__

from .bench import bench
from .data import data
from .draw import animate, grid
from .export import export
from .figures import figures
from .groups import Commands
from .importing import import_, record_checkpoints
from .lookup import check, info, layers, ls, upsamplers
from .measure import analyze, plot
from .record import demo, record
from .report import report
from .results import compare, predict
from .sweep import sweep
from .view import view

# torch, numpy and the rooms of the library are imported inside the commands: --help answers without them.


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fadeviz")
def main() -> None:
    """See what a decoder learns, and when.

    Train a segmentation network with an upsampling operator, record its feature and gradient maps at chosen
    steps, and draw them as grids and animations.

    \b
    fadeviz demo                                       an example from start to end, in minutes
    fadeviz record --upsampler fade --out runs/fade    train and record one network
    fadeviz sweep --upsamplers fade,carafe --out runs  every operator with every seed
    fadeviz grid runs/fade -o fade.png                 its maps as a figure
    fadeviz animate runs/fade runs/carafe -o a.gif     two runs side by side
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to stop
            stream.reconfigure(errors="backslashreplace")


for command in (
    analyze, animate, bench, check, compare, data, demo, export, figures, grid, import_, info, layers, ls, plot,
    predict, record, record_checkpoints, report, sweep, upsamplers, view,
):  # fmt: skip
    main.add_command(command)


__all__ = ["main"]

if __name__ == "__main__":
    main()
