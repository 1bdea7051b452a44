"""The commands that draw maps: grid and animate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .arguments import Output
from .messages import print_written
from .options import CALL, COLORMAP, DRAWN_KIND, LAYER, RUNS, STEPS, choose_layer

if TYPE_CHECKING:
    from fadeviz.render.selection import MapOptions

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


def _drawing(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments that both commands share."""
    output = click.option("-o", "--output", type=Output(), required=True, help="The file to write.")
    scale = click.option("--scale", type=int,
                         help="Width of a map value in pixels.  [default: about 120 to 256 for a map]")  # fmt: skip
    for option in reversed((RUNS, output, *_MAPS, COLORMAP, scale)):
        command = option(command)
    return command


@click.command()
@_drawing
@click.option("--columns", type=int, help="Frames per row.  [default: chosen for the page]")
def grid(
    runs: tuple[Path | str, ...], output: Path, colormap: str, scale: int | None, columns: int | None, **maps: Any
) -> None:
    """Draw the maps of runs as a figure: PNG, PDF or SVG."""
    import fadeviz

    opened, maps["layer"] = choose_layer(runs, maps["layer"])
    notes = fadeviz.grid(opened, output, colormap=colormap, scale=scale, columns=columns, **_map_options(maps))
    print_written(output, notes)


@click.command()
@_drawing
@click.option("--duration", "duration_ms", type=int, default=130, show_default=True, metavar="MS",
              help="Duration of a frame in milliseconds; a multiple of 10.")  # fmt: skip
def animate(
    runs: tuple[Path | str, ...], output: Path, colormap: str, scale: int | None, duration_ms: int, **maps: Any
) -> None:
    """Draw runs side by side as an animation.

    The file's extension sets the format: GIF, APNG (.png or .apng), WebP or MP4.
    """
    import fadeviz

    opened, maps["layer"] = choose_layer(runs, maps["layer"])
    notes = fadeviz.animate(
        opened, output, colormap=colormap, scale=scale, duration_ms=duration_ms, **_map_options(maps)
    )
    print_written(output, notes)


def _map_options(options: dict[str, Any]) -> MapOptions:
    """The selection of maps, with percentiles and steps parsed."""
    from fadeviz.storage.schedule import parse_steps

    try:
        low, high = (float(end) for end in options["percentiles"].split(","))
    except ValueError:
        raise click.BadParameter("two numbers LOW,HIGH are needed, e.g. 1,99", param_hint="--percentiles") from None
    steps = None if options["steps"] is None else parse_steps(options["steps"])
    return {**options, "percentiles": (low, high), "steps": steps}  # type: ignore[typeddict-item]


__all__ = ["animate", "grid"]
