"""The demo: FADE and CARAFE trained side by side on drawn horses, with every image the tool can make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .errors import FadevizError
from .experiment import Progress, RunConfig, differing_settings, train
from .prediction.compare import compare_runs
from .render.animation import write_animation
from .render.grid import write_grid
from .render.selection import MapSelection
from .run import Run, open_run
from .storage.files import write_whole
from .storage.snapshots import check_folder

UPSAMPLERS = ("fade", "carafe")
IMAGE = 1
"""The observed image that the figures show; the others are drawn with ``fadeviz grid --image``."""


def demo_schedule(steps: int) -> str:
    """Thirty frames evenly spaced, as in the paper, and some in between at the beginning, where most changes."""
    if steps < 60:
        return f"1:{steps}:1" if steps < 30 else f"2:{steps}:2"
    stride = steps // 30
    dense = max(1, stride // 4)
    return f"{stride}:{30 * stride}:{stride},{dense}:{2 * stride}:{dense}"


def run_demo(
    out: str | Path,
    *,
    steps: int = 240,
    seed: int = 0,
    overwrite: bool = False,
    report: Callable[[Progress, str], None] | None = None,
) -> str:
    """Train a slim SegNet with each of two operators and leave the figures in ``out``.

    Existing runs with the same settings are not trained again: interrupted ones are resumed from their last checkpoint,
    and of finished ones only the figures are drawn.

    Args:
        out: folder for the runs, ``figures/`` and ``summary.md``.
        steps: optimiser steps of each run.
        seed: of weights and data order.
        overwrite: replace an earlier demo.
        report: called after every step with the progress and the operator's name.

    Returns:
        The summary, as text.

    Raises:
        FadevizError: a folder in use or with runs of other settings, or too few steps to show anything; then nothing
            was trained.
        KeyboardInterrupt: a signal, as in :func:`fadeviz.experiment.train`; calling it again resumes the demo.
    """
    out = Path(out)
    if steps < 5:
        raise FadevizError(f"steps is {steps}; the demo needs 5 or more")
    configs = {name: demo_config(name, steps, seed) for name in UPSAMPLERS}
    resume = {name: _begun(out / name, config, overwrite) for name, config in configs.items()}  # before minutes of work
    runs = []
    for name, config in configs.items():
        told = None if report is None else _titled(report, name)
        runs.append(train(config, out / name, resume=resume[name], overwrite=overwrite, report=told))
    summary = draw_demo(runs, out)
    write_whole(out / "summary.md", summary.encode(), named=False)
    return summary


def demo_config(name: str, steps: int, seed: int = 0) -> RunConfig:
    """The settings of the demo's run with the operator ``name``."""
    return RunConfig(
        upsampler=name,
        size=128,
        width=0.25,
        steps=steps,
        snapshots=demo_schedule(steps),
        kinds="feature,gradient,channels,kernel_entropy" + (",gate" if name == "fade" else ""),
        evaluate_every=max(1, steps // 3),
        # In so short a run the running statistics lag behind the weights, and eval maps would show the lag.
        observe_mode="batch",
        # Three times the paper's rate, because the run is a fifteenth of the paper's.
        lr=0.03,
        seed=seed,
        split_seed=1,  # whose observed images show whole horses
        channel_images=IMAGE + 1,
    )


def _begun(folder: Path, config: RunConfig, overwrite: bool) -> bool:
    """Whether the folder already holds this run, complete or not; raises if it holds something else."""
    begun = not overwrite and (folder / "run.json").exists()
    check_folder(folder, resume=begun, overwrite=overwrite)
    differs = differing_settings(open_run(folder).info.get("config", {}), config) if begun else ""
    if differs:
        raise FadevizError(
            f"{folder} holds a run with other settings: {differs}. Replace the demo with --overwrite, or choose "
            "another --out"
        )
    return begun


def draw_demo(runs: list[Run], out: Path) -> str:
    """Draw every figure of the demo into ``out/figures`` and return the summary."""
    figures = out / "figures"
    fade = runs[0]
    write_grid(runs, figures / "features.png", MapSelection(image=IMAGE))
    write_grid(runs, figures / "gradients.png", MapSelection(kind="gradient", image=IMAGE))
    write_grid([fade], figures / "gate.png", MapSelection(kind="gate", normalize="run", image=IMAGE))
    write_grid([fade], figures / "channels.png", MapSelection(kind="channels", image=IMAGE))
    compare_runs(runs, figures / "panel.png")
    write_animation(runs, figures / "features.gif", MapSelection(image=IMAGE))
    one_range = MapSelection(image=IMAGE, normalize="run", percentiles=(1, 99))
    write_animation(runs, figures / "features_viridis.gif", one_range, colormap="viridis")
    lines = [
        "# What FADE and CARAFE learned",
        "",
        "| operator | parameters | mIoU | Boundary IoU (2 %) | snapshots |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for one in runs:
        result = one.info["result"]
        lines.append(
            f"| {one.name} | {one.info['parameters']:,} | {result['miou']:.3f} | {result['boundary_iou']:.3f} "
            f"| {len(one.steps)} |"
        )
    config = fade.info["config"]
    lines += [
        "",
        f"SegNet at width {config['width']}, {config['size']}x{config['size']}, {config['steps']} steps, drawn horses, "
        f"seed {config['seed']}, {fade.info['device']}. Tested on 64 other drawings.",
        "",
        f"- {figures}/features.gif: channel-averaged upsampled features over the training; open this first",
        f"- {figures}/features_viridis.gif: the same in one range a run: brightness compares over time",
        f"- {figures}/features.png: the same frames as a figure, each in its own range as in the paper",
        f"- {figures}/gradients.png: where the loss pulls at the feature",
        f"- {figures}/gate.png: FADE's gate; bright takes the encoder's feature, dark the upsampled one",
        f"- {figures}/channels.png: single channels of FADE's output",
        f"- {figures}/panel.png: the masks that both give of four test drawings, enlarged where they disagree most",
        "",
        f"Other images: fadeviz grid {out / 'fade'} {out / 'carafe'} --image 0 -o FILE; more: fadeviz grid --help",
        "",
    ]
    return "\n".join(lines)


def _titled(report: Callable[[Progress, str], None], title: str) -> Callable[[Progress], None]:
    return lambda progress: report(progress, title)
