"""The commands for data sets: data get and data check."""

from __future__ import annotations

from pathlib import Path

import click

from fadeviz import plugins
from fadeviz.errors import FadevizError, printable

from .groups import Commands
from .installed import InstalledOption


@click.group(cls=Commands)
def data() -> None:
    """Get and check data sets."""


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

    pooch.get_logger().setLevel("WARNING")  # it would repeat the last line
    done = fadeviz.get_data(url, sha256, folder, max_gb=max_gb, min_speed=min_speed)
    click.echo(printable(f"unpacked {done}"))


@data.command("check")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--data", default="", metavar="NAME", cls=InstalledOption, group=plugins.DATASETS,
              help="Which data set it is: weizmann, ade20k, mattes.  [default: the one with its layout]")  # fmt: skip
def data_check(folder: Path, data: str) -> None:
    """Read every image in FOLDER and list what is wrong."""
    import fadeviz

    checked = fadeviz.check_data(folder, data)
    if len(checked.problems) == 1:
        raise FadevizError(checked.problems[0])
    for problem in checked.problems:
        click.echo(problem, err=True)
    if checked.problems:
        raise FadevizError(f"{folder}: {len(checked.problems)} problems")
    for note in checked.notes:
        click.echo(f"note: {note}")
    click.echo(printable(str(checked)))


__all__ = ["data"]
