"""The command that exports a run for other tools: export."""

from __future__ import annotations

from pathlib import Path

import click

from fadeviz import plugins

from .arguments import NUMBERS, RUN, Output
from .installed import InstalledOption
from .messages import print_written
from .options import STEPS


class _ExportCommand(click.Command):
    """A command whose help ends with the export targets; they are only imported for that."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from fadeviz.export import all_targets

        with formatter.section("Targets"):
            formatter.write_dl([(name, target.help) for name, target in all_targets().items()])
        formatter.write_paragraph()
        formatter.write_text('All of fadeviz\'s own except npz need an extra, e.g. pip install ".[zarr]".')


@click.command(cls=_ExportCommand)
@click.argument("run", type=RUN)
@click.option("--to", "target", required=True, metavar="TARGET", cls=InstalledOption, group=plugins.EXPORTERS,
              help="What to write, e.g. npz; the targets are listed below.")  # fmt: skip
@click.option("-o", "--output", type=Output(), required=True, help="The file or folder to write.")
@click.option("--layer", "layers", multiple=True, help="Only this layer; may be repeated.  [default: all]")
@click.option("--kind", "kinds", multiple=True,
              help="Only this kind: feature, gradient, readout, readout_contour, channels, gate, kernel_entropy, "
                   "constant, kernels or guide; may be repeated.  [default: all]")  # fmt: skip
@STEPS
@click.option("--images", type=NUMBERS, help="Only these observed images, from 0, e.g. 0,2.  [default: all]")
@click.option("--call", type=int,
              help="Only this call of layers that run several times in a forward pass, from 0.  "
                   "[default: all]")  # fmt: skip
@click.option("--normalize", metavar="frame|run",
              help="For targets that draw maps: what spans black to white, each frame or the run.  "
                   "[default: frame]")  # fmt: skip
@click.option("--colormap",
              help="For targets that draw maps: gray, viridis, magma, cividis, or any name that matplotlib knows.  "
                   "[default: gray]")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an earlier export; files that no export wrote are kept.")
def export(
    run: Path,
    target: str,
    output: Path,
    layers: tuple[str, ...],
    kinds: tuple[str, ...],
    steps: str | None,
    images: tuple[int, ...] | None,
    call: int | None,
    normalize: str | None,
    colormap: str | None,
    overwrite: bool,
) -> None:
    """Export a RUN for another tool.

    Writes its maps, observed images, metrics and settings.

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
        call=call,
        normalize=normalize,
        colormap=colormap,
        overwrite=overwrite,
    )
    print_written(output, notes)


__all__ = ["export"]
