"""The commands that use what a run has learned: compare and predict."""

from __future__ import annotations

from pathlib import Path

import click

from fadeviz import FadevizError
from fadeviz.errors import printable

from .runs import NUMBERS, RUN, Output

_SIZE = click.option("--size", type=int, metavar="N",
                     help="Shorter side at which the network sees an image.  [default: as the run's test images; "
                          "mattes: the image's own]")  # fmt: skip
_DEVICE = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where to compute.")
_TRIMAPS = click.option("--trimaps", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
                        help="Folder of the trimaps, NAME.png or NAME_trimap.png.  [default: NAME_trimap.png beside "
                             "each image]")  # fmt: skip


@click.command()
@click.argument("runs", nargs=-1, required=True, type=RUN, metavar="RUN...")
@click.option("-o", "--output", type=Output(dir_okay=False), required=True,
              help="The image: .png, .pdf or .svg.")  # fmt: skip
@click.option("--images", type=NUMBERS, default=(), help="Observed images to show.  [default: the first four]")
@click.option("--test", type=NUMBERS, default=(),
              help="Test images to show, as they were tested on; the data set must be there.")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
              help="Folder of that data set.  [default: where it was at the recording]")  # fmt: skip
@click.option("--file", "files", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="An image file of your own to show; may be repeated.")  # fmt: skip
@_TRIMAPS
@click.option("--zoom", default="auto", show_default=True, metavar="auto|none|LEFT,TOP,SIDE",
              help="Window to enlarge, in pixels of the image: auto takes where the runs disagree most.")  # fmt: skip
@_SIZE
@click.option("--cell", type=int, metavar="PIXELS", help="Width of a column.  [default: 300 pixels an inch]")
@_DEVICE
def compare(
    runs: tuple[Path | str, ...],
    output: Path,
    images: tuple[int, ...],
    test: tuple[int, ...],
    files: tuple[Path, ...],
    data_dir: Path | None,
    trimaps: Path | None,
    zoom: str,
    size: int | None,
    cell: int | None,
    device: str,
) -> None:
    """Draw what RUNS make of the same images: image, truth, a column a run, a window enlarged, a figure each.

    Each --file that cannot be read is left out and listed at the end, with exit code 1.
    """
    from fadeviz import open_run
    from fadeviz.prediction.compare import SHOWN, compare_runs, parse_zoom

    opened = [open_run(run) for run in runs]
    failed: list[str] = []
    lines = compare_runs(
        opened, output, images=images, test=test, files=files, trimaps=trimaps,
        data_dir=data_dir, zoom=parse_zoom(zoom), size=size, cell=cell, device=device, on_error=failed.append,
    )  # fmt: skip
    for line in lines:
        click.echo(line)
    if not (images or test or files) and (observed := len(opened[0].observation[0])) > SHOWN:
        click.echo(f"note: {SHOWN} of {observed} observed images are shown. Choose others with --images", err=True)
    click.echo(printable(f"wrote {output}"))
    _end_with(failed, f"of {len(files)} images are not in {output}")


@click.command()
@click.argument("run", type=RUN)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("-o", "--output", "out", type=Output(file_okay=False), required=True,
              help="Folder for the results: NAME_mask.png, or NAME_alpha.png of a matting run.")  # fmt: skip
@_TRIMAPS
@_SIZE
@_DEVICE
def predict(
    run: Path | str, images: tuple[Path, ...], out: Path, trimaps: Path | None, size: int | None, device: str
) -> None:
    """Write the masks, or the mattes, that RUN's last weights give for IMAGES: files, or folders of them.

    Images that cannot be read are listed at the end, with exit code 1; the others are still written. Orientation tags
    are applied, and transparent images are composited over white.
    """
    from fadeviz.prediction.predictor import Prediction, note_not_predicted, predict_files

    def say(one: Prediction) -> None:
        if one.output is not None:
            click.echo(printable(f"wrote {one.output}"))

    done = predict_files(run, images, out, trimaps=trimaps, size=size, device=device, report=say)
    for note in note_not_predicted(images):
        click.echo(printable(f"note: {note}"), err=True)
    _end_with([one.error for one in done if one.error], f"of {len(done)} images have no result")


def _end_with(errors: list[str], what: str) -> None:
    """List the errors, one per line; a single one is raised itself.

    Raises:
        FadevizError: there were errors.
    """
    if len(errors) == 1:
        raise FadevizError(errors[0])
    for error in errors:
        click.echo(error, err=True)
    if errors:
        raise FadevizError(f"{len(errors)} {what}: they are listed above")


__all__ = ["compare", "predict"]
