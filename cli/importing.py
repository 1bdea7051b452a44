"""The command import: a run of maps that one already has."""

from __future__ import annotations

from pathlib import Path

import click

from fadeviz.errors import printable

from .messages import print_notes, print_written

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
    print_notes([*run.info.notes, *filter(None, [run.lost])])
    count, height, width = run.read(run.steps[0], layer, kind).shape
    pictures = "1 image" if count == 1 else f"{count} images"
    snapshots = "1 snapshot" if len(run.steps) == 1 else f"{len(run.steps)} snapshots"
    click.echo(f"{snapshots} of {pictures}, {width}x{height}, steps {run.steps[0]} to {run.steps[-1]}")
    print_written(printable(str(out)))
    if animate is not None:
        print_written(animate, fadeviz.animate(run, animate, kind=kind))


__all__ = ["import_"]
