"""Shared parts of the commands that train: their options, and the metrics they show meanwhile."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fadeviz import plugins

from .installed import InstalledOption
from .options import DEVICE, OWN_MASKS

if TYPE_CHECKING:
    from fadeviz.experiment import Progress
    from fadeviz.sweep import SweepProgress

UPSAMPLER = click.option(
    "--upsampler", default="fade", show_default=True, metavar="NAME",
    cls=InstalledOption, group=plugins.UPSAMPLERS,
    help="Operator at every decoder stage; may have options: pixel_shuffle:icnr=true. "
         "List: fadeviz upsamplers.",
)  # fmt: skip

_DATA = (
    click.option("--network", default="segnet", show_default=True, metavar="NAME",
                 cls=InstalledOption, group=plugins.NETWORKS,
                 help="Network to train: segnet, unet, segformer or matting; may have options: "
                      "segformer:backbone=b1."),
    click.option("--data", default="synthetic", show_default=True, metavar="NAME",
                 cls=InstalledOption, group=plugins.DATASETS,
                 help="synthetic: synthetic horses, nothing to download. From --data-dir: folder (your own images and "
                      "masks), weizmann and ade20k for segmentation; mattes for the matting network."),
    click.option("--data-dir", default="", metavar="DIR",
                 help="Folder of the data set; for folder also a CSV with the columns image, mask and perhaps split. "
                      "To check it: fadeviz data check DIR.  [default: none]"),
    *OWN_MASKS,
    click.option("--subset", type=int, default=0, metavar="N",
                 help="Train on N images of ade20k, and test on the same fraction of its test images.  [default: all]"),
    click.option("--size", type=int, default=224, show_default=True,
                 help="Side of the images in pixels (of ade20k and mattes: of the crops), divisible by 32; by 16 for "
                      "matting."),
    click.option("--flip", is_flag=True, help="Mirror half of the training images."),
    click.option("--split-seed", type=int, default=0, show_default=True,
                 help="Seed of the train/test split and of the observed images."),
    click.option("--pool", type=int, default=0, metavar="N",
                 help="Draw N training images first, on all cores, keep them in memory, and train on them in shuffled "
                      "epochs: for endless data sets.  [default: new images at every step]"),
    click.option("--workers", type=int, default=None, metavar="N",
                 help="Processes that read or draw training images; the result is the same for any number.  "
                      "[default: 0 on a CPU and where images are in memory; otherwise the number of cores minus "
                      "one, at most 8]"),
)  # fmt: skip
"""What is trained, on which images."""

_RECIPE = (
    click.option("--steps", type=int, default=3500, show_default=True, help="Optimiser steps of each run."),
    click.option("--width", type=float, default=1.0, show_default=True,
                 help="Multiplier of the network's channels."),
    click.option("--batch-size", type=int, default=4, show_default=True, help="Images per step."),
    click.option("--lr", type=float, default=None,
                 help="Learning rate.  [default: for segnet 0.01 and for unet 0.05 with SGD, times 0.1 after 70 % and "
                      "90 % of the steps; for segformer 6e-5 with AdamW, decaying to 0, and 10 times that for its "
                      "head; for matting 0.01 with Adam, times 0.1 after 67 % and 87 %, and a hundredth of that for "
                      "its encoder]"),
    click.option("--weight-decay", type=float, default=None,
                 help="Weight decay.  [default: 0.01 for segformer, 0 for others]"),
    click.option("--weights", default="none", show_default=True, metavar="FILE|imagenet|none",
                 help="Encoder weights: a file with torchvision's VGG16-BN names (segnet), a folder that transformers "
                      "saved (MiT for segformer, ResNet-34 for matting), a download, or random."),
)  # fmt: skip
"""How it is trained."""

_MACHINE = (
    DEVICE,
    click.option("--precision", default="fp32", show_default=True, metavar="fp32|bf16|fp16",
                 help="Precision of training; observations are always fp32."),
    click.option("--tf32/--no-tf32", default=False, show_default=True,
                 help="On a GPU, in fp32: let convolutions and matrix products round their factors to 10 bits during "
                 "training, which is faster. Observations and tests never do."),
    click.option("--deterministic/--no-deterministic", default=False, show_default=True,
                 help="Use deterministic algorithms wherever torch has them, so that --resume gives the same bytes "
                 "with more operators on a GPU; slower."),
    click.option("--compile", default="off", show_default=True, metavar="off|graph|on|reduce-overhead",
                 help="graph: replay the training step as one CUDA graph, for a GPU that would wait for its kernel "
                 "launches. on: compile it with torch.compile; reduce-overhead: both. Compiling takes a minute or "
                 "more."),
    click.option("--channels-last/--contiguous", default=True, show_default=True, help="Memory layout of the maps."),
    click.option("--checkpoint-every", type=int, default=250, show_default=True,
                 help="Steps between checkpoints; on a GPU, after the first, at most one a minute."),
)  # fmt: skip
"""Where it is trained, and with which arithmetic."""

_OBSERVATION = (
    click.option("--snapshots", default="", metavar="SCHEDULE",
                 help="Steps to record, both ends of a range included; step 0 is always recorded.  "
                      "[default: 100:3000:100,320:360:10 if the run is that long, otherwise log:1:STEPS:24]"),
    click.option("--layers", default="", metavar="GLOB",
                 help="Layers to record, comma-separated. List: fadeviz layers segnet.  "
                      "[default: the upsampling operators]"),
    click.option("--kinds", default="", metavar="KIND,...",
                 help="feature, gradient, readout, readout_contour, gate, kernel_entropy, constant; the large kinds "
                      "channels, kernels, guide; or all.  "
                      "[default: feature, gradient, readout with 4 observed images or more, and gate and "
                      "kernel_entropy of an operator that has them]"),
    click.option("--observe", type=int, default=12, show_default=True,
                 help="Number of observed test images; 12 takes all where there are fewer."),
    click.option("--observe-mode", default="eval", show_default=True, metavar="eval|batch",
                 help="Statistics for BatchNorm while observing: the running ones, or those of the observed images."),
    click.option("--channel-images", type=int, default=1, show_default=True,
                 help="Number of observed images whose channels, kernels and guide are kept."),
    click.option("--predictions", is_flag=True,
                 help="Also store what the network predicts for the observed images, one byte a pixel; grid --kind "
                      "prediction draws it."),
    click.option("--evaluate-every", type=int, default=0, metavar="N",
                 help="Steps between tests.  [default: a tenth of the run]"),
)  # fmt: skip
"""What is recorded and tested."""


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """The settings of training and observation, the same for one run and for many."""
    for option in reversed((*_DATA, *_RECIPE, *_OBSERVATION, *_MACHINE)):
        command = option(command)
    return command


def settings_options(*names: str) -> Callable[[click.Command], click.Command]:
    """Some of the settings of :func:`training_options`, by the names of their parameters, for another command."""

    def add(command: click.Command) -> click.Command:
        every = click.command("every")(UPSAMPLER(training_options(lambda **options: None))).params
        command.params += [option for option in every if option.name in names]
        return command

    return add


def explicit_options(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The options that were named on the command line."""
    default = click.core.ParameterSource.DEFAULT
    return {name: value for name, value in options.items() if ctx.get_parameter_source(name) != default}


def progress_metrics(progress: Progress | SweepProgress) -> dict[str, str]:
    """Values for a progress line or bar: the loss, if there is one, and the headline metric of the latest test."""
    from fadeviz.storage.metrics import METRICS, headline

    loss = {} if progress.loss != progress.loss else {"loss": f"{progress.loss:.3f}"}
    name = headline(progress.metrics)
    return loss | ({METRICS[name].title: METRICS[name].text(progress.metrics[name])} if name is not None else {})


def describe_metrics(result: Mapping[str, float]) -> str:
    """The metrics of a finished run, in one line."""
    from fadeviz.storage.metrics import METRICS

    return ", ".join(f"{n} {METRICS[n].text(v) if n in METRICS else f'{v:.3f}'}" for n, v in result.items())


def leave_interrupted(error: KeyboardInterrupt, resume: str, *, quiet: bool = False, nothing: str = "") -> NoReturn:
    """Exit with the code that shells expect after a signal, 128 plus its number, and a line on standard error.

    Args:
        error: the interruption.
        resume: the command that resumes it.
        quiet: print nothing.
        nothing: the line to print if the training had not begun, or is finished.
    """
    from fadeviz.training.signals import Interrupted

    number, line = int(signal.SIGINT), nothing
    if isinstance(error, Interrupted):
        at_work = error.step is not None and not error.finished
        number, line = error.signal, error.describe(resume) if at_work else nothing
    if not quiet:
        with contextlib.suppress(OSError):  # the terminal itself may be gone
            click.echo(line, err=True)
    sys.exit(128 + number)


__all__ = [
    "UPSAMPLER",
    "describe_metrics",
    "explicit_options",
    "leave_interrupted",
    "progress_metrics",
    "settings_options",
    "training_options",
]
