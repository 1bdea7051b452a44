"""The commands for data sets: data get and data check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fadeviz import plugins
from fadeviz.errors import FadevizError, printable

from .groups import Commands
from .installed import InstalledOption
from .messages import in_options
from .options import own_masks


@click.group(cls=Commands)
def data() -> None:
    """Download and check data sets."""


@data.command("get")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--url", required=True, help="Address of a .zip, .tar or .tar.gz archive.")
@click.option("--sha256", required=True, help="The archive's checksum.")
@click.option("--max-gb", type=float, default=8.0, show_default=True, metavar="GB",
              help="Refuse archives larger than this, packed or unpacked.")  # fmt: skip
@click.option("--min-speed", type=float, default=1.0, show_default=True, metavar="KB",
              help="Give up below this many kB/s, averaged over a minute; 0: no limit.")  # fmt: skip
def data_get(folder: Path, url: str, sha256: str, max_gb: float, min_speed: float) -> None:
    """Download an archive and unpack it as FOLDER.

    Resumes partial downloads, verifies the checksum, and unpacks safely.
    """
    import pooch

    import fadeviz

    pooch.get_logger().setLevel("WARNING")  # it would announce what the last line says anyway
    done = fadeviz.get_data(url, sha256, folder, max_gb=max_gb, min_speed=min_speed)
    click.echo(printable(f"unpacked {done}"))


@data.command("check")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--data", default="", metavar="NAME", cls=InstalledOption, group=plugins.DATASETS,
              help="Which data set it is: folder, weizmann, ade20k or mattes.  [default: from its layout]")  # fmt: skip
@own_masks
@click.pass_context
def data_check(ctx: click.Context, /, folder: Path, data: str, **masks: Any) -> None:
    """Read every image in FOLDER and list what is wrong.

    Of your own images and masks (--data folder; FOLDER may be a CSV), it also says their sizes, which classes the masks
    have and how many pixels of each, what is ignored, and which images are copies.
    """
    import fadeviz

    checked = fadeviz.check_data(folder, data, **masks)
    for note in checked.notes:
        click.echo(f"note: {in_options(note, ctx.command)}")
    if len(checked.problems) == 1:
        raise FadevizError(checked.problems[0])
    for problem in checked.problems:
        click.echo(in_options(problem, ctx.command), err=True)
    if checked.problems:
        raise FadevizError(f"{folder}: {len(checked.problems)} problems")
    click.echo(printable(str(checked)))


__all__ = ["data"]
