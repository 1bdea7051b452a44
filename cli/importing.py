"""The commands import and record-checkpoints: runs of maps, and of checkpoints, that one already has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fadeviz.errors import printable

from .messages import print_notes, print_written
from .training import settings_options

_PATH = click.Path(path_type=Path)


@click.command("import")
@click.argument("maps")
@click.option("--out", type=_PATH, required=True, help="Folder for the run.")
@click.option("--steps", metavar="SCHEDULE",
              help="Step of each frame, e.g. 100:3500:100.  [default: from file names, else counted]")  # fmt: skip
@click.option("--key", metavar="NAME", help="Which array, in files that hold several.")
@click.option("--reduce", default="mean", show_default=True, metavar="mean|sum|max|norm",
              help="What makes one map of the channels, where there are any.")  # fmt: skip
@click.option("--layer", default="maps", show_default=True, help="What the layer is called.")
@click.option("--kind", default="feature", show_default=True,
              help="Kind of map that they are stored as: feature, gradient, readout, gate or another.")  # fmt: skip
@click.option("--images", type=_PATH, metavar="PATH", help="The image that the maps are of, or a folder of images.")
@click.option("--masks", type=_PATH, metavar="PATH", help="Its mask, or a folder of masks, in the order of the images.")
@click.option("--ignore-index", type=int, metavar="N", help="Label of void pixels.  [default: 255]")
@click.option("--classes", type=int, metavar="N", help="Number of classes.  [default: the largest label plus 1]")
@click.option("--foreground", type=int, metavar="N",
              help="Class whose outline and interior are measured.  [default: the clearest in each image]")  # fmt: skip
@click.option("--name", help="Name of the run in figures.  [default: that of its folder]")
@click.option("--network", metavar="TEXT", help="Name of the network in captions.")
@click.option("--seed", type=int, metavar="N",
              help="Seed of the training; runs of one name with different seeds are measured together.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the run in that folder.")
@click.option("--animate", type=_PATH, metavar="FILE", help="Draw them as well: .gif, .apng, .webp or .mp4.")
def import_(
    maps: str,
    out: Path,
    steps: str | None,
    key: str | None,
    reduce: str,
    layer: str,
    kind: str,
    images: Path | None,
    masks: Path | None,
    ignore_index: int | None,
    classes: int | None,
    foreground: int | None,
    name: str | None,
    network: str | None,
    seed: int | None,
    overwrite: bool,
    animate: Path | None,
) -> None:
    """Make a run of MAPS that you already have.

    MAPS is a file (.npy, .npz, .safetensors, .pt), a folder or a quoted pattern of numbered files (arrays or images),
    or an animation (GIF, APNG, WebP). What draws, measures and reports runs then works on it.

    \b
    fadeviz import maps.npy --steps 100:3500:100 --out runs/mine
    fadeviz import "maps/iter_*.png" --images horse.jpg --masks horse.png --out runs/mine
    fadeviz import maps/ --out runs/mine --animate maps.gif
    fadeviz import paper.gif --steps 100:3500:100 --name "FADE (paper)" --out runs/paper
    """
    import fadeviz
    from fadeviz.render.animation import check_ending

    if animate is not None:
        check_ending(animate)  # before anything is written
    run = fadeviz.import_maps(
        maps, out, steps=steps, key=key, reduce=reduce, layer=layer, kind=kind, images=images, masks=masks,
        ignore_index=ignore_index, classes=classes, foreground=foreground, name=name, network=network, seed=seed,
        overwrite=overwrite,
    )  # fmt: skip
    notes = [*run.info.notes, *filter(None, [run.lost])]
    print_notes(notes)
    count, height, width = run.read(run.steps[0], layer, kind).shape
    pictures = "1 image" if count == 1 else f"{count} images"
    snapshots = "1 snapshot" if len(run.steps) == 1 else f"{len(run.steps)} snapshots"
    click.echo(f"{snapshots} of {pictures}, {width}x{height}, steps {run.steps[0]} to {run.steps[-1]}")
    print_written(printable(str(out)))
    if animate is not None:
        print_written(animate, [note for note in fadeviz.animate(run, animate, kind=kind) if note not in notes])


@settings_options(
    "upsampler", "network", "width", "data", "data_dir", "masks_dir", "palette", "ignore", "subset", "size",
    "split_seed", "layers", "kinds", "observe", "observe_mode", "channel_images", "predictions", "channels_last",
    "device",
)  # fmt: skip
@click.command("record-checkpoints")
@click.argument("checkpoints", nargs=-1, required=True, metavar="PATH...")
@click.option("--out", type=_PATH, required=True, help="The run's folder.")
@click.option("--steps", metavar="SCHEDULE",
              help="Step of each checkpoint, e.g. 1000:80000:1000.  [default: from the file names]")  # fmt: skip
@click.option("--key", metavar="NAME", help="Where the weights are in each file.  [default: the usual places]")
@click.option("--classes", type=int, metavar="N", help="Number of classes of the network.  [default: that of the data]")
@click.option("--strict/--no-strict", default=True, show_default=True,
              help="Refuse checkpoints whose weights are not those of the network; otherwise a note lists the "
                   "differences.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N",
              help="Seed of the training; runs of one name with different seeds are measured together.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
def record_checkpoints(
    checkpoints: tuple[str, ...],
    out: Path,
    steps: str | None,
    key: str | None,
    classes: int | None,
    strict: bool,
    overwrite: bool,
    **settings: Any,
) -> None:
    """Record a network at the checkpoints that a training left.

    PATH is a folder or a quoted pattern of files with the state dicts of one of fadeviz's networks, or such files. The
    observed images are those that a run of these settings observes. What draws, measures and reports runs then works
    on it. For other models: fadeviz.record_checkpoints, in Python.

    \b
    fadeviz record-checkpoints "checkpoints/step_*.pt" --network unet --upsampler carafe --out runs/carafe
    """
    import fadeviz

    if settings["data"] == "folder" and not settings["palette"]:
        settings["classes"] = classes or 0  # of the masks too, which are then not read to count them
    run = fadeviz.record_network_checkpoints(
        fadeviz.RunConfig(**settings), checkpoints[0] if len(checkpoints) == 1 else checkpoints, out, steps=steps,
        key=key, classes=classes, strict=strict, overwrite=overwrite,
    )  # fmt: skip
    print_notes([*run.info.data.notes, *run.info.notes])
    snapshots = "1 snapshot" if len(run.steps) == 1 else f"{len(run.steps)} snapshots"
    images = "1 image" if len(run.observation[0]) == 1 else f"{len(run.observation[0])} images"
    click.echo(f"{snapshots} of {images}, steps {run.steps[0]} to {run.steps[-1]}")
    print_written(printable(str(out)))


__all__ = ["import_", "record_checkpoints"]
