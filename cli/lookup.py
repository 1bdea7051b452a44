"""The commands that look things up: upsamplers, layers, info and check."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fadeviz import plugins
from fadeviz.errors import FadevizError, printable

from .arguments import NAMES, RUN
from .draw import grid
from .installed import InstalledOption
from .messages import in_options, print_notes


@click.command()
@click.argument("names", nargs=-1)
@click.option("--network", "networks", type=NAMES, default="segnet,segformer", show_default=True, metavar="NAME,...",
              cls=InstalledOption, group=plugins.NETWORKS,
              help="Networks whose costs are listed: segnet, unet, segformer, matting.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the costs in all networks.")
def upsamplers(names: tuple[str, ...], networks: tuple[str, ...], as_json: bool) -> None:
    """List the upsampling operators and what they cost.

    Lists all of them, or only NAMES, which may have options: indexnet:kind=m2o.
    """
    import fadeviz

    table = fadeviz.list_upsamplers(names, networks=() if as_json else networks)
    click.echo(json.dumps(table.to_dicts(), indent=2) if as_json else table)


@click.command()
@click.argument("network")
@click.option("--upsampler", default="fade", show_default=True, metavar="NAME",
              cls=InstalledOption, group=plugins.UPSAMPLERS,
              help="Operator at every decoder stage; may have options: pixel_shuffle:icnr=true. "
                   "List: fadeviz upsamplers.")  # fmt: skip
def layers(network: str, upsampler: str) -> None:
    """List the layers of a NETWORK, e.g. segnet.

    Shows the channels and the resolution of their maps, and which are recorded by default.
    """
    import fadeviz

    click.echo(fadeviz.list_layers(network, upsampler))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(folder: Path, as_json: bool) -> None:
    """List the runs in a FOLDER and below it.

    Shows operator, network, data, seed, status, progress and last metrics. Runs that cannot be opened are listed on
    standard error, with exit code 1.
    """
    import fadeviz

    errors: list[str] = []
    runs = fadeviz.list_runs(folder, on_error=errors.append)
    if not runs and not errors:
        raise FadevizError(f"no runs in {folder}. Give a folder that holds runs, such as outputs")
    if as_json:
        click.echo(json.dumps(runs.to_dicts(), indent=2))
    elif runs:
        click.echo(runs)
    for error in errors:
        click.echo(error, err=True)
    if errors:
        raise FadevizError(f"{len(errors)} of {len(runs) + len(errors)} runs cannot be opened: they are listed above")


@click.command()
@click.argument("run", type=RUN)
def info(run: Path | str) -> None:
    """Show a run's settings, snapshots and result.

    Damaged files are listed on standard error. For a sweep's folder, shows the status of its runs.
    """
    import fadeviz

    if isinstance(run, Path) and (run / "manifest.json").is_file() and not (run / "run.json").exists():
        click.echo(fadeviz.sweep_status(run))
        return
    summary = fadeviz.open_run(run).summary()
    for line in summary.lines():
        click.echo(in_options(line, grid))  # the lines name arguments of what draws the run
    for line in summary.damage():
        click.echo(line, err=True)


@click.command()
@click.argument("run", type=RUN)
@click.option("--repair", is_flag=True, help="Remove what is broken, and nothing else.")
def check(run: Path | str, repair: bool) -> None:
    """Read all of a run and list what is damaged.

    That includes files of other runs and leftovers of unfinished writes. The exit code is 1 if anything is listed.
    """
    import fadeviz

    notes: list[str] = []
    faults = fadeviz.check_run(run, repair=repair, on_note=notes.append)
    left = [fault for fault in faults if not fault.repaired]
    for fault in faults:
        line = f"{fault.file}: {fault.what}" + (f": {fault.repair}" if fault.repaired else "")
        click.echo(printable(line), err=not fault.repaired)
    if left:
        remedy = " Remove what is broken: --repair" if any(fault.repair for fault in left) else ""
        raise FadevizError(f"{run} has {len(left)} fault{'s' * (len(left) > 1)}.{remedy}")
    print_notes(map(printable, notes))
    click.echo(printable(f"{run}: all is well"))


__all__ = ["check", "info", "layers", "ls", "upsamplers"]
