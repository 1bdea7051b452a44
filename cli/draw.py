"""The commands that draw maps: grid and animate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .arguments import NUMBERS, Output
from .messages import print_written
from .options import (
    CALL,
    CAPTION,
    COLORMAP,
    DRAWN_KIND,
    LABELS,
    LAYER,
    RUNS,
    STEPS,
    STYLE,
    TITLE,
    choose_layer,
    figure_style,
)

_MAPS = (
    LAYER,
    DRAWN_KIND,
    click.option("--image", type=int, default=0, show_default=True, help="Which observed image, from 0."),
    click.option("--channel", type=int,
                 help="Which channel, for --kind channels, kernels or guide, from 0.  [default: representative ones]"),
    click.option("--channels", type=int, default=8, show_default=True,
                 help="Maximum number of representative channels."),
    click.option("--normalize", default="frame", show_default=True, metavar="frame|run|shared",
                 help="What spans black to white: each frame (as in the paper), a run, or all runs."),
    click.option("--percentiles", default="0,100", show_default=True, metavar="LOW,HIGH",
                 help="Percentiles of the values at which the range begins and ends."),
    STEPS,
    CALL,
)  # fmt: skip
"""The options that become a MapSelection."""

_CONTENT = (
    click.option("--images", type=NUMBERS, default=(),
                 help="Several observed images, one below the other, e.g. 0,2,3, in place of --image."),
    LABELS,
    TITLE,
    CAPTION,
    click.option("--overlay", type=click.Choice(("map", "contour")),
                 help="Lay each map over its image (map), or the true object's contour over maps and image (contour)."),
    click.option("--alpha", type=float, default=0.6, show_default=True,
                 help="Opacity of a map over its image, from 0 to 1."),
    click.option("--difference", is_flag=True, help="Draw the second of two runs' maps less the first's."),
    click.option("--crop", metavar="LEFT,TOP,SIDE", help="Window of the image to enlarge, in pixels of the image."),
)  # fmt: skip
"""The options that become a FigureContent."""


def _font(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a style that apply to animations: the font and its size."""
    _, font, font_size, *_ = STYLE
    return font(font_size(command))


def _drawing(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments that both commands share."""
    output = click.option("-o", "--output", type=Output(), required=True, help="The file to write.")
    scale = click.option("--scale", type=int,
                         help="Width of a map value in pixels.  [default: about 120 to 256 for a map]")  # fmt: skip
    for option in reversed((RUNS, output, *_MAPS, COLORMAP, scale, *_CONTENT)):
        command = option(command)
    return command


@click.command()
@_drawing
@click.option("--columns", type=int, help="Frames per row.  [default: chosen for the page]")
@figure_style
def grid(
    runs: tuple[Path | str, ...], output: Path, colormap: str, scale: int | None, columns: int | None, **options: Any
) -> None:
    """Draw the maps of runs as a figure: PNG, PDF or SVG."""
    import fadeviz

    opened, options["layer"] = choose_layer(runs, options["layer"])
    notes = fadeviz.grid(opened, output, colormap=colormap, scale=scale, columns=columns, **_parsed(options))
    _print_description(notes.description)
    print_written(output, notes)


@click.command()
@_drawing
@click.option("--duration", "duration_ms", type=int, default=130, show_default=True, metavar="MS",
              help="Duration of a frame in milliseconds; a multiple of 10.")  # fmt: skip
@_font
def animate(
    runs: tuple[Path | str, ...], output: Path, colormap: str, scale: int | None, duration_ms: int, **options: Any
) -> None:
    """Draw runs side by side as an animation.

    The file's extension sets the format: GIF, APNG (.png or .apng), WebP or MP4.
    """
    import fadeviz

    opened, options["layer"] = choose_layer(runs, options["layer"])
    notes = fadeviz.animate(opened, output, colormap=colormap, scale=scale, duration_ms=duration_ms, **_parsed(options))
    _print_description(notes.description)
    print_written(output, notes)


def _print_description(sentences: tuple[str, ...]) -> None:
    """Say what a figure shows: its caption may have room for less."""
    for sentence in sentences:
        click.echo(sentence)


def _parsed(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a figure, with percentiles, steps and crop parsed."""
    from fadeviz.render.selection import parse_crop
    from fadeviz.storage.schedule import parse_steps

    try:
        low, high = (float(end) for end in options["percentiles"].split(","))
    except ValueError:
        raise click.BadParameter("two numbers LOW,HIGH are needed, e.g. 1,99", param_hint="--percentiles") from None
    steps = None if options["steps"] is None else parse_steps(options["steps"])
    crop = None if options["crop"] is None else parse_crop(options["crop"])
    return {**options, "percentiles": (low, high), "steps": steps, "crop": crop}


__all__ = ["animate", "grid"]
