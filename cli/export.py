"""The command that hands a run to other tools: export."""

from __future__ import annotations

from pathlib import Path

import click

from .messages import print_written
from .options import STEPS
from .runs import NUMBERS, RUN, Output


@click.command()
@click.argument("run", type=RUN)
@click.option("--to", "target", required=True, metavar="npz|zarr|tensorboard|wandb|rerun", help="What to write.")
@click.option("-o", "--output", type=Output(), required=True,
              help="The file (.npz, .rrd) or the folder to make.")  # fmt: skip
@click.option("--layer", "layers", multiple=True, help="This layer alone; may be repeated.  [default: all]")
@click.option("--kind", "kinds", multiple=True,
              help="feature, gradient, channels, gate, kernel_entropy, constant, kernels or guide alone; "
                   "may be repeated.  [default: all]")  # fmt: skip
@STEPS
@click.option("--images", type=NUMBERS, help="Only these observed images, from 0, e.g. 0,2.  [default: all]")
@click.option("--normalize", metavar="frame|run",
              help="Where maps are drawn, what spans black to white: each frame, or the run.  "
                   "[default: frame]")  # fmt: skip
@click.option("--colormap",
              help="Where maps are drawn: gray, viridis, magma, cividis, or any name matplotlib knows.  "
                   "[default: gray]")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an earlier export; what no export wrote stays.")
def export(
    run: Path,
    target: str,
    output: Path,
    layers: tuple[str, ...],
    kinds: tuple[str, ...],
    steps: str | None,
    images: tuple[int, ...] | None,
    normalize: str | None,
    colormap: str | None,
    overwrite: bool,
) -> None:
    """Write a stored RUN for another tool: maps, observed images, metrics, settings.

    \b
    npz          one file for NumPy: every map as recorded, (steps, images, h, w)
    zarr         a folder for xarray: a group a layer, an array a kind, a chunk a step, as recorded
    tensorboard  a log folder: maps as images, metrics as scalars
    wandb        an offline run of Weights & Biases; nothing is sent before `wandb sync`
    rerun        one .rrd file: maps as images on a timeline of steps

    All but npz need an extra, e.g. pip install ".[zarr]".

    \b
    fadeviz export runs/fade --to zarr -o fade.zarr
    fadeviz export runs/fade --to tensorboard -o logs/fade --kind feature --normalize run
    """
    import fadeviz
    from fadeviz.storage.schedule import parse_steps

    notes = fadeviz.export_run(
        run,
        target,
        output,
        layers=layers,
        kinds=kinds,
        steps=None if steps is None else parse_steps(steps),
        images=images,
        normalize=normalize,
        colormap=colormap,
        overwrite=overwrite,
    )
    print_written(output, notes)


__all__ = ["export"]
