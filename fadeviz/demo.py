"""The demo: FADE and CARAFE trained side by side on synthetic horses, and every kind of figure drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .errors import FadevizError
from .experiment import Progress, RunConfig, differing_settings, train
from .prediction.compare import compare
from .render.animation import write_animation
from .render.grid import write_grid
from .render.selection import MapSelection
from .run import Run, open_run
from .storage.files import write_whole
from .storage.snapshots import check_folder

UPSAMPLERS = ("fade", "carafe")
IMAGE = 1
"""Index of the observed image that the figures show; ``fadeviz grid --image`` draws the others."""


def demo_schedule(steps: int) -> str:
    """Thirty evenly spaced frames, as in the paper, and more at the beginning, where most changes."""
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
    on_progress: Callable[[Progress, str], None] | None = None,
) -> str:
    """Train a slim SegNet with each of two operators and draw the figures into ``out``.

    Existing runs with the same settings are not trained again: interrupted ones are resumed from their last checkpoint,
    and finished ones only have their figures redrawn.

    Args:
        out: folder for the runs, ``figures/`` and ``summary.md``.
        steps: optimiser steps of each run, at least 5.
        seed: seed of the weights and the data order.
        overwrite: replace an earlier demo.
        on_progress: called after every step with the progress and the operator's name.

    Returns:
        The summary in Markdown, which is also written to ``summary.md``.

    Raises:
        FadevizError: if the folder is in use or holds runs with other settings, or ``steps`` is less than 5;
            nothing is trained in that case.
        Interrupted: if a signal stopped training, as in :func:`fadeviz.train`; calling it again resumes the demo.
    """
    out = Path(out)
    if steps < 5:
        raise FadevizError(f"steps is {steps}; the demo needs 5 or more")
    configs = {name: demo_config(name, steps, seed) for name in UPSAMPLERS}
    resume = {name: _begun(out / name, config, overwrite) for name, config in configs.items()}  # before minutes of work
    runs = []
    for name, config in configs.items():
        show = None if on_progress is None else _titled(on_progress, name)
        runs.append(train(config, out / name, resume=resume[name], overwrite=overwrite, on_progress=show))
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
        kinds="feature,gradient,readout,channels,kernel_entropy" + (",gate" if name == "fade" else ""),
        evaluate_every=max(1, steps // 3),
        # In such a short run the running statistics lag behind the weights, and maps in eval mode would show the lag.
        observe_mode="batch",
        # Three times the paper's rate, because the run is a fifteenth of the paper's.
        lr=0.03,
        seed=seed,
        split_seed=1,  # its observed images show whole horses
        channel_images=IMAGE + 1,
    )


def _begun(folder: Path, config: RunConfig, overwrite: bool) -> bool:
    """Whether the folder already holds this run, complete or not; raises if it holds something else."""
    begun = not overwrite and (folder / "run.json").exists()
    check_folder(folder, resume=begun, overwrite=overwrite)
    differs = differing_settings(open_run(folder).info.config, config) if begun else ""
    if differs:
        raise FadevizError(
            f"{folder} holds a run with other settings: {differs}. Replace the demo with overwrite=True, or "
            "choose another folder, out=..."
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
    compare(runs, figures / "panel.png")
    write_animation(runs, figures / "features.gif", MapSelection(image=IMAGE))
    one_range = MapSelection(image=IMAGE, normalize="run", percentiles=(1, 99))
    write_animation(runs, figures / "features_viridis.gif", one_range, colormap="viridis")
    return _summary(runs, out)


def _summary(runs: list[Run], out: Path) -> str:
    """The results as a table, and what each figure shows, in Markdown."""
    lines = [
        "# What FADE and CARAFE learned",
        "",
        "| operator | parameters | mIoU | Boundary IoU (2 %) | snapshots |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for run in runs:
        result = run.info.result
        lines.append(
            f"| {run.name} | {run.info.parameters:,} | {result['miou']:.3f} | {result['boundary_iou']:.3f} "
            f"| {len(run.steps)} |"
        )
    config, figures = runs[0].info.config, out / "figures"
    lines += [
        "",
        f"SegNet at width {config['width']}, {config['size']}x{config['size']}, {config['steps']} steps, synthetic "
        f"horses, seed {config['seed']}, {runs[0].info.device}. Tested on 64 other images.",
        "",
        f"- {figures}/features.gif: channel-averaged upsampled features during training; open this first",
        f"- {figures}/features_viridis.gif: the same with one range per run, so that brightness compares over time",
        f"- {figures}/features.png: the same frames as a figure, each in its own range as in the paper",
        f"- {figures}/gradients.png: gradients of the loss with respect to the features",
        f"- {figures}/gate.png: FADE's gate; bright where it takes the encoder's feature, dark the upsampled one",
        f"- {figures}/channels.png: single channels of FADE's output",
        f"- {figures}/panel.png: the masks that both predict for four test images, enlarged where they disagree most",
        "",
        f"Other images: fadeviz grid {out / 'fade'} {out / 'carafe'} --image 0 -o FILE; more: fadeviz grid --help",
        "",
    ]
    return "\n".join(lines)


def _titled(on_progress: Callable[[Progress, str], None], title: str) -> Callable[[Progress], None]:
    return lambda progress: on_progress(progress, title)
