"""The commands that use the weights of a run: compare and predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from fadeviz import FadevizError
from fadeviz.errors import printable

from .arguments import NUMBERS, RUN, Output
from .messages import in_options, print_notes, print_written
from .options import CAPTION, DEVICE, LABELS, RUNS, SIZE, TITLE, TRIMAPS, figure_style

if TYPE_CHECKING:
    from fadeviz.render.style import StyleOptions


@click.command()
@RUNS
@click.option("-o", "--output", type=Output(dir_okay=False), required=True,
              help="The file to write: .png, .pdf or .svg.")  # fmt: skip
@click.option("--images", type=NUMBERS, default=(), help="Observed images to show.  [default: the first four]")
@click.option("--test", type=NUMBERS, default=(),
              help="Test images to show, as they were evaluated; the data set must be available.")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
              help="Folder of that data set.  [default: where it was when the run was recorded]")  # fmt: skip
@click.option("--file", "files", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="One of your own image files to show; may be repeated.")  # fmt: skip
@TRIMAPS
@click.option("--zoom", default="auto", show_default=True, metavar="auto|none|LEFT,TOP,SIDE",
              help="Window to enlarge, in pixels of the image; auto is where the runs disagree most along contours.",
              )  # fmt: skip
@SIZE
@click.option("--step", type=int, metavar="N",
              help="Show the predictions that were stored at this recorded step.  [default: the last checkpoints; for "
                   "runs without one, the last stored predictions]")  # fmt: skip
@click.option("--cell", type=int, metavar="PIXELS", help="Width of a column in pixels.  [default: 300 pixels per inch]")
@LABELS
@TITLE
@CAPTION
@figure_style
@DEVICE
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
    step: int | None,
    cell: int | None,
    device: str,
    labels: tuple[str, ...],
    title: str | None,
    caption: bool,
    **style: Unpack[StyleOptions],
) -> None:
    """Draw what RUNS predict for the same images.

    Each row shows the image, the true mask, each run's result with its score, and an enlarged window.

    Runs of a Recorder show the predictions that it stored (predictions=True).

    Each --file that cannot be read is left out and listed at the end, with exit code 1.
    """
    import fadeviz
    from fadeviz.prediction.compare import SHOWN, parse_zoom

    opened = [fadeviz.open_run(run) for run in runs]
    failed: list[str] = []
    lines = fadeviz.compare(
        opened, output, images=images, test=test, files=files, trimaps=trimaps,
        data_dir=data_dir, zoom=parse_zoom(zoom), size=size, step=step, cell=cell, device=device,
        on_error=failed.append, labels=labels, title=title, caption=caption, **style,
    )  # fmt: skip
    for line in lines:
        click.echo(line)
    if not (images or test or files) and (observed := len(opened[0].observation[0])) > SHOWN:
        print_notes([f"{SHOWN} of {observed} observed images are shown. Choose others with --images"])
    print_written(printable(str(output)))
    _end_with(failed, f"of {len(files)} images are not in {output}")


@click.command()
@click.argument("run", type=RUN)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("-o", "--output", type=Output(file_okay=False), required=True,
              help="Folder for the results: NAME_mask.png, or NAME_alpha.png for a matting run; and "
                   "mask_legend.png, where classes have colours or names.")  # fmt: skip
@TRIMAPS
@SIZE
@DEVICE
def predict(
    run: Path | str, images: tuple[Path, ...], output: Path, trimaps: Path | None, size: int | None, device: str
) -> None:
    """Predict masks or mattes for your own images.

    Uses the weights of RUN's last checkpoint. Each IMAGE is a file, or a folder of files. Images that cannot be read
    are listed at the end, with exit code 1; the results of the others are still written. Orientation tags are applied,
    and transparent images are composited over white.
    """
    import fadeviz
    from fadeviz.prediction.predictor import LEGEND, Prediction, has_legend, note_not_predicted

    def print_result(result: Prediction) -> None:
        if result.output is not None:
            print_written(printable(str(result.output)))

    done = fadeviz.predict(run, images, output, trimaps=trimaps, size=size, device=device, on_result=print_result)
    if has_legend(run) and any(result.output is not None for result in done):
        print_written(printable(str(output / LEGEND)))
    print_notes(map(printable, note_not_predicted(images)))
    _end_with([result.error for result in done if result.error], f"of {len(done)} images have no result")


def _end_with(errors: list[str], what: str) -> None:
    """List the errors, one per line; a single one is raised itself.

    Raises:
        FadevizError: if there are errors.
    """
    if len(errors) == 1:
        raise FadevizError(errors[0])
    command = click.get_current_context().command
    for error in errors:
        click.echo(in_options(error, command), err=True)
    if errors:
        raise FadevizError(f"{len(errors)} {what}: they are listed above")


__all__ = ["compare", "predict"]
