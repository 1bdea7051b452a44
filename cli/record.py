"""The commands that train one network, or those of the demo: record and demo."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .messages import print_notes
from .options import SEED
from .training import UPSAMPLER, describe_metrics, explicit_options, leave_interrupted, training_options

if TYPE_CHECKING:
    from fadeviz.experiment import Progress, RunConfig

_DEMO = Path("outputs/demo")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=_DEMO, show_default=True,
              help="Folder for the four runs and the figures.")  # fmt: skip
@click.option("--steps", type=int, default=200, show_default=True, help="Optimiser steps of each run.")
@SEED
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo in the same folder.")
def demo(out: Path, steps: int, seed: int, overwrite: bool) -> None:
    """Watch FADE and CARAFE learn.

    Trains both on synthetic horses, in a U-Net and in a SegNet, and writes figures, animations and a summary that ends
    with the verdict on each: outline or interior first.

    Running it again resumes an interrupted demo; after a finished one, it only redraws the figures.
    """
    import fadeviz

    with Bars() as bars:
        try:
            summary = fadeviz.run_demo(out, steps=steps, seed=seed, overwrite=overwrite, on_progress=bars.show)
        except KeyboardInterrupt as error:
            bars.close()
            again = _demo_command(out, steps, seed)
            leave_interrupted(error, again, nothing=f"interrupted; {again} resumes")
    click.echo(summary)


def _demo_command(out: Path, steps: int, seed: int) -> str:
    """The command line that resumes a demo; what is the default is left out."""
    words = ["fadeviz", "demo"]
    for option, value, default in (("--out", out, _DEMO), ("--steps", steps, 200), ("--seed", seed, 0)):
        words += [option, str(value)] if value != default else []
    return shlex.join(words)


@click.command()
@UPSAMPLER
@SEED
@click.option("--labels", default="true", show_default=True, metavar="true|shuffled",
              help="shuffled: every training image gets the mask of another one, as a control.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@training_options
@click.option("--resume", is_flag=True,
              help="Continue the run in --out from its last checkpoint; other options may be left out.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option("--requeue", is_flag=True,
              help="For job schedulers: start the run in --out, or continue it; a finished run is left "
                   "alone.")  # fmt: skip
@click.pass_context
def record(ctx: click.Context, /, out: Path, resume: bool, overwrite: bool, requeue: bool, **options: Any) -> None:
    """Train a network and record its maps.

    Ctrl-C, SIGTERM and a closed terminal stop the run after the current step and write a checkpoint; --resume continues
    with the next step, with the same result as an uninterrupted run. A second Ctrl-C, at least two seconds later, stops
    it immediately. The exit code is 128 plus the signal number: 130 after Ctrl-C, 143 after SIGTERM.
    """
    if resume and overwrite:
        raise click.UsageError("--resume continues a run, --overwrite replaces it: choose one")
    if requeue and (resume or overwrite):
        raise click.UsageError("--requeue decides by itself whether to continue: leave --resume and --overwrite out")
    import fadeviz
    from fadeviz.sweep import has_begun
    from fadeviz.training.distributed import OtherRankFailed, launched_rank
    from fadeviz.training.signals import Interrupted

    config = _config(ctx, out, resume, options)
    quiet = launched_rank() > 0  # of the processes that torchrun started, only the first prints
    with Bars() as bars:
        try:
            run = fadeviz.train(
                config, out, resume=has_begun(out) if requeue else resume, overwrite=overwrite,
                on_progress=None if quiet else bars.show, on_note=None if quiet else _print_note,
            )  # fmt: skip
        except OtherRankFailed:
            if quiet:
                sys.exit(1)
            raise
        except KeyboardInterrupt as error:
            if not (isinstance(error, Interrupted) and error.finished):
                bars.close()
                again = f"fadeviz record --resume --out {shlex.quote(str(out))}"
                leave_interrupted(error, again, quiet=quiet, nothing="interrupted before anything was recorded")
            run = fadeviz.open_run(out)  # the signal came after the last step
    if quiet:
        return
    print_notes(run.info.data.notes)
    click.echo(f"{out}: {len(run.steps)} snapshots; {describe_metrics(run.info.result)}")
    click.echo(f"draw it: fadeviz grid {out} -o {out}/figures/grid.png")


def _print_note(note: str) -> None:
    print_notes([note])


def _config(ctx: click.Context, out: Path, resume: bool, options: dict[str, Any]) -> RunConfig:
    """The settings of the run; of one that is resumed, its own with those that were named."""
    from dataclasses import replace

    from fadeviz.experiment import RunConfig, read_config

    if not resume:
        return RunConfig(**options)
    return replace(read_config(out), **explicit_options(ctx, options))


class Bars:
    """One progress bar per run, on standard error."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()
            self._bar = None

    def show(self, progress: Progress, title: str = "training") -> None:
        """Show the progress of the run called ``title``."""
        with contextlib.suppress(OSError):  # a closed terminal must not stop the training
            self._move(progress, title)

    def _move(self, progress: Progress, title: str) -> None:
        from tqdm import tqdm

        from .training import progress_metrics

        if self._bar is None or progress.step < self._bar.n:
            self.close()
            # A log file gets a line now and then, a terminal a living bar.
            calm = 0.1 if sys.stderr.isatty() else 15
            self._bar = tqdm(total=progress.steps, initial=progress.step - 1, desc=title, unit="step", mininterval=calm)
        self._bar.set_postfix(progress_metrics(progress), refresh=False)
        self._bar.update(progress.step - self._bar.n)


__all__ = ["Bars", "demo", "record"]
