"""The command that draws what a paper needs of runs: figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from .arguments import NAMES, Output
from .messages import print_notes, print_written
from .options import CALL, CAPTION, DEVICE, LABELS, LAYER, RUNS, choose_layer, figure_style

if TYPE_CHECKING:
    from fadeviz.render.style import StyleOptions


@click.command()
@RUNS
@click.option("-o", "--output", type=Output(file_okay=False), required=True, metavar="DIR",
              help="The folder to write into; files of the same names are replaced.")  # fmt: skip
@LAYER
@CALL
@click.option("--image", type=int, metavar="N",
              help="Which observed image, from 0.  [default: the one in which the operators' maps differ most]",
              )  # fmt: skip
@click.option("--steps", metavar="SCHEDULE",
              help="Recorded steps of the grids, e.g. 0,100:300:100.  [default: those between which the maps change "
                   "most]")  # fmt: skip
@click.option("--count", type=int, default=8, show_default=True, help="Number of steps to choose.")
@click.option("--format", "formats", type=NAMES, default="pdf,png", show_default=True,
              help="Formats of the figures: pdf, png and svg.")  # fmt: skip
@LABELS
@CAPTION
@figure_style
@DEVICE
def figures(
    runs: tuple[Path | str, ...],
    output: Path,
    layer: tuple[str, ...],
    call: int,
    image: int | None,
    steps: str | None,
    count: int,
    formats: tuple[str, ...],
    labels: tuple[str, ...],
    caption: bool,
    device: str,
    **style: Unpack[StyleOptions],
) -> None:
    """Draw the figures that a paper needs of RUNS.

    Grids of features and gradients, distance-time maps, responses, metrics, predictions, an animation and a table of
    the verdicts, with a contact sheet of all and a README with the command that redraws each. What cannot be drawn of
    RUNS is left out, with a note.
    """
    import fadeviz
    from fadeviz.storage.schedule import parse_steps

    opened, chosen = choose_layer(runs, layer)
    written = fadeviz.figures(
        opened, output, layer=chosen, call=call, image=image, steps=None if steps is None else parse_steps(steps),
        count=count, formats=formats, labels=labels, caption=caption, device=device, **style,
    )  # fmt: skip
    print_notes(written.notes)
    for file in written.files:
        print_written(file)


__all__ = ["figures"]
