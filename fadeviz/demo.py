"""The demo: FADE and CARAFE in a U-Net and in a SegNet on synthetic horses, and figures of every kind from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .analysis.result import Analysis, analyze
from .errors import FadevizError
from .experiment import Progress, RunConfig, differing_settings, train
from .plotting import plot
from .prediction.compare import compare
from .render.animation import write_animation
from .render.grid import write_grid
from .render.selection import MapSelection
from .run import Run, open_run
from .storage.files import write_whole
from .storage.snapshots import check_folder

RUNS = (("unet", "fade"), ("unet", "carafe"), ("segnet", "fade"), ("segnet", "carafe"))
"""Network and operator of each run; its folder is named after both: ``unet-fade``.

The verdicts are on the U-Net's runs. In SegNet an operator without a guide, such as CARAFE, needs many times as
many steps: shown beside the U-Net, its maps tell what the network contributes.
"""
IMAGE = 0
"""Index of the observed image that the figures show; ``fadeviz grid --image`` draws the others."""
OBSERVE = 12
"""Number of observed images: with fewer than ten or so, the analysis can rarely decide."""


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
    steps: int = 200,
    seed: int = 0,
    overwrite: bool = False,
    on_progress: Callable[[Progress, str], None] | None = None,
) -> str:
    """Train a slim U-Net and a slim SegNet with each of two operators and draw the figures into ``out``.

    Existing runs with the same settings are not trained again: interrupted ones are resumed from their last checkpoint,
    and finished ones only have their figures redrawn.

    Args:
        out: folder for the runs, ``figures/`` and ``summary.md``.
        steps: optimiser steps of each run, at least 5.
        seed: seed of the weights and the data order.
        overwrite: replace an earlier demo.
        on_progress: called after every step with the progress and the run's name.

    Returns:
        The summary in Markdown, which is also written to ``summary.md``; it ends with the verdicts.

    Raises:
        FadevizError: if the folder is in use or holds runs with other settings, or ``steps`` is less than 5;
            nothing is trained in that case.
        Interrupted: if a signal stopped training, as in :func:`fadeviz.train`; calling it again resumes the demo.
    """
    out = Path(out)
    if steps < 5:
        raise FadevizError(f"steps is {steps}; the demo needs 5 or more")
    configs = {"-".join(names): demo_config(*names, steps, seed) for names in RUNS}
    resume = {name: _begun(out / name, config, overwrite) for name, config in configs.items()}  # before minutes of work
    runs = []
    for name, config in configs.items():
        show = None if on_progress is None else _titled(on_progress, name)
        runs.append(train(config, out / name, resume=resume[name], overwrite=overwrite, on_progress=show))
    summary = draw_demo(runs, out)
    write_whole(out / "summary.md", summary.encode(), named=False)
    return summary


def demo_config(network: str, upsampler: str, steps: int, seed: int = 0) -> RunConfig:
    """The settings of the demo's run of a network with an operator."""
    return RunConfig(
        upsampler=upsampler,
        network=network,
        size=96,
        width=0.25,
        steps=steps,
        snapshots=demo_schedule(steps),
        layers="decoder.3.upsample",
        kinds="feature,gradient,readout,channels,kernel_entropy" + (",gate" if upsampler == "fade" else ""),
        evaluate_every=max(1, steps // 2),
        observe=OBSERVE,
        # In such a short run the running statistics lag behind the weights, and maps in eval mode would show the lag.
        observe_mode="batch",
        # SegNet: three times the paper's rate, because the run is a fifteenth of the paper's.
        lr=0.03 if network == "segnet" else None,
        seed=seed,
        split_seed=1,  # its first observed image shows a whole horse
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
    """Draw every figure of the demo into ``out/figures`` and return the summary; ``runs`` are those of ``RUNS``."""
    figures = out / "figures"
    unet, fade = runs[:2], runs[0]
    write_animation(runs, figures / "features.gif", MapSelection(image=IMAGE))
    one_range = MapSelection(image=IMAGE, normalize="run", percentiles=(1, 99))
    write_animation(runs, figures / "features_viridis.gif", one_range, colormap="viridis")
    write_grid(unet, figures / "features.png", MapSelection(image=IMAGE))
    write_grid(unet, figures / "gradients.png", MapSelection(kind="gradient", image=IMAGE))
    write_grid([fade], figures / "gate.png", MapSelection(kind="gate", normalize="run", image=IMAGE))
    write_grid([fade], figures / "channels.png", MapSelection(kind="channels", image=IMAGE))
    compare(runs, figures / "panel.png")
    analysis = analyze(unet)
    plot(analysis, figures / "kymograph.png")
    return _summary(runs, analysis, out)


def _summary(runs: list[Run], analysis: Analysis, out: Path) -> str:
    """The results as a table, what each figure shows, and the verdicts, in Markdown."""
    lines = [
        "# What FADE and CARAFE learned",
        "",
        "| network | operator | parameters | mIoU | Boundary IoU (2 %) | snapshots |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for run in runs:
        result = run.info.result
        lines.append(
            f"| {run.info.network_title} | {run.title} | {run.info.parameters:,} | {result['miou']:.3f} "
            f"| {result['boundary_iou']:.3f} | {len(run.steps)} |"
        )
    config, figures = runs[0].info.config, out / "figures"
    paths = [out / "-".join(names) for names in RUNS]
    lines += [
        "",
        f"Width {config['width']}, {config['size']}x{config['size']}, {config['steps']} steps, synthetic horses, seed "
        f"{config['seed']}, {runs[0].info.device}. Tested on 64 other images.",
        "",
        f"- {figures}/features.gif: channel-averaged upsampled features during training, all four; open this first",
        f"- {figures}/features_viridis.gif: the same with one range per run, so that brightness compares over time",
        f"- {figures}/features.png: the U-Net's as a figure, each frame in its own range as in the paper",
        f"- {figures}/gradients.png: gradients of the loss with respect to these features",
        f"- {figures}/gate.png: FADE's gate; bright where it takes the encoder's feature, dark the upsampled one",
        f"- {figures}/channels.png: single channels of FADE's output",
        f"- {figures}/kymograph.png: where on the object each map is higher than for other images' objects, over time",
        f"- {figures}/panel.png: the masks that all four predict for test images, enlarged where they disagree most",
        "",
        f"Other images: fadeviz grid {paths[0]} {paths[1]} --image 0 -o FILE; more: fadeviz grid --help",
        "",
        f"In the U-Net, over {config['observe']} images (fadeviz analyze {paths[0]} {paths[1]}):",
        "",
        *_verdicts(analysis),
        "",
    ]
    return "\n".join(lines)


def _verdicts(analysis: Analysis) -> list[str]:
    """A list item for each sentence: what the maps show of outline and interior, and what the features hold."""
    return [f"- {sentence}" for sentences in analysis.sentences.values() for sentence in sentences]


def _titled(on_progress: Callable[[Progress, str], None], title: str) -> Callable[[Progress], None]:
    return lambda progress: on_progress(progress, title)
