"""Options that several commands share, with the same help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .arguments import RUN

if TYPE_CHECKING:
    from fadeviz.storage.layers_of_runs import LayerOfRuns
    from fadeviz.storage.stored_run import StoredRun

RUNS = click.argument("runs", nargs=-1, required=True, type=RUN, metavar="RUN...")
LAYER = click.option("--layer", multiple=True, metavar="[RUN=]LAYER",
                     help="Dotted layer name. Where it differs between the runs, repeat it for each, by the run's "
                          "folder: a=up1.  [default: the network's intermediate one]")  # fmt: skip
KIND = click.option("--kind", default="feature", show_default=True,
                    help="Kind of map: feature, gradient, readout, readout_contour, channels, gate, kernel_entropy, "
                         "constant, kernels or guide.")  # fmt: skip
DRAWN_KIND = click.option("--kind", default="feature", show_default=True,
                          help="Kind of map: feature, gradient, readout, readout_contour, channels, gate, "
                               "kernel_entropy, constant, kernels or guide; or prediction, what the model predicted, "
                               "if that was stored.")  # fmt: skip
CALL = click.option("--call", type=int, default=0, show_default=True,
                    help="Which call of a layer that runs several times in a forward pass, from 0.")  # fmt: skip
STEPS = click.option("--steps", metavar="SCHEDULE",
                     help="Only these recorded steps, e.g. 0,100:300:100.  [default: all]")  # fmt: skip
COLORMAP = click.option("--colormap", default="gray", show_default=True,
                        help="gray, signed, viridis, magma, cividis, or any matplotlib colour map.")  # fmt: skip
SEED = click.option("--seed", type=int, default=0, show_default=True, help="Seed of the weights and the data order.")
DEVICE = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda",
                      help="Device to compute on; auto takes a GPU if there is one.")  # fmt: skip
SIZE = click.option("--size", type=int, metavar="N",
                    help="Length of an image's shorter side as the network sees it.  [default: as for the run's test "
                         "images; mattes: the image's own]")  # fmt: skip
TRIMAPS = click.option("--trimaps", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
                       help="Folder of the trimaps, NAME.png or NAME_trimap.png.  [default: NAME_trimap.png beside "
                            "each image]")  # fmt: skip
LABELS = click.option("--label", "labels", multiple=True, metavar="TEXT",
                      help="Label in the figure: repeat it, one for each run in their order; in a plot, and among "
                           "figures, one for each operator.  [default: the operators' own]")  # fmt: skip
TITLE = click.option("--title", metavar="TEXT", help="Title above the figure.  [default: none]")
CAPTION = click.option("--caption/--no-caption", default=True, show_default=True,
                       help="Sentences below the figure that say what is shown.")  # fmt: skip
STYLE = (
    click.option("--width", metavar="85mm|3.3in|column|page",
                 help="Width of the figure: a length, or that of one or two columns of a paper.  [default: as needed]"),
    click.option("--font", metavar="FAMILY", help="Font family, as it is installed.  [default: DejaVu Sans]"),
    click.option("--font-size", type=float, metavar="POINTS",
                 help="Size of the words at axes and in captions; titles in proportion.  [default: the figure's own]"),
    click.option("--dpi", type=int, metavar="N", help="Pixels per inch.  [default: the figure's own]"),
    click.option("--transparent", is_flag=True, help="Leave out the background."),
)  # fmt: skip
"""The options that become a FigureStyle."""
OWN_MASKS = (
    click.option("--masks-dir", default="", metavar="DIR",
                 help="For data folder: folder of the masks, by its path or its path in the data folder.  "
                      "[default: masks, labels, SegmentationClass or the like, or beside the images]"),
    click.option("--palette", default="", metavar="FILE|voc",
                 help="For data folder: the classes, a line each: R G B name, a CSV of name,r,g,b, name:R,G,B::, or "
                      "names alone. With colours, masks are read by their colours.  [default: by their values]"),
    click.option("--classes", type=int, default=0, metavar="N",
                 help="For data folder: number of classes.  [default: those of the palette, or as many as the masks "
                      "have, all of which are read for that]"),
    click.option("--ignore", default="", metavar="VALUE,...",
                 help="For data folder: values of masks, and names of classes, that are ignored.  [default: 255, "
                      "unless the masks are black and white]"),
)  # fmt: skip
"""What the masks of one's own data set hold."""


def own_masks(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options on the masks of one's own data set to a command."""
    for option in reversed(OWN_MASKS):
        command = option(command)
    return command


def figure_style(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options on the look of a figure to a command."""
    for option in reversed(STYLE):
        command = option(command)
    return command


def choose_layer(
    runs: Sequence[Path | str], texts: Sequence[str]
) -> tuple[Sequence[Path | str | StoredRun], LayerOfRuns | None]:
    """The runs, and the layer that ``--layer`` names: of all runs, or of each.

    The runs are opened where that needs their labels.
    """
    if len(texts) == 1 and "=" not in texts[0]:
        return runs, texts[0]
    if not texts:
        return runs, None
    import fadeviz
    from fadeviz.storage.layers_of_runs import parse_layer

    opened = [fadeviz.open_run(run) for run in runs]
    return opened, parse_layer(opened, texts)


__all__ = [
    *("CALL", "CAPTION", "COLORMAP", "DEVICE", "DRAWN_KIND", "KIND", "LABELS", "LAYER", "OWN_MASKS", "RUNS", "SEED"),
    *("SIZE", "STEPS", "STYLE", "TITLE", "TRIMAPS", "choose_layer", "figure_style", "own_masks"),
]
