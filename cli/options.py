"""Options that several commands share, with the same help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from .arguments import RUN

RUNS = click.argument("runs", nargs=-1, required=True, type=RUN, metavar="RUN...")
LAYER = click.option("--layer", help="Dotted layer name.  [default: the network's intermediate one]")
KIND = click.option("--kind", default="feature", show_default=True,
                    help="Kind of map: feature, gradient, readout, readout_contour, channels, gate, kernel_entropy, "
                         "constant, kernels or guide.")  # fmt: skip
CALL = click.option("--call", type=int, default=0, show_default=True,
                    help="Which call of a layer that runs several times in a forward pass, from 0.")  # fmt: skip
STEPS = click.option("--steps", metavar="SCHEDULE",
                     help="Only these recorded steps, e.g. 0,100:300:100.  [default: all]")  # fmt: skip
COLORMAP = click.option("--colormap", default="gray", show_default=True,
                        help="gray, viridis, magma, cividis, or any matplotlib colour map.")  # fmt: skip
SEED = click.option("--seed", type=int, default=0, show_default=True, help="Seed of the weights and the data order.")
DEVICE = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda",
                      help="Device to compute on; auto takes a GPU if there is one.")  # fmt: skip
SIZE = click.option("--size", type=int, metavar="N",
                    help="Length of an image's shorter side as the network sees it.  [default: as for the run's test "
                         "images; mattes: the image's own]")  # fmt: skip
TRIMAPS = click.option("--trimaps", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
                       help="Folder of the trimaps, NAME.png or NAME_trimap.png.  [default: NAME_trimap.png beside "
                            "each image]")  # fmt: skip
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


__all__ = [
    *("CALL", "COLORMAP", "DEVICE", "KIND", "LAYER", "OWN_MASKS", "RUNS", "SEED", "SIZE", "STEPS", "TRIMAPS"),
    "own_masks",
]
