"""Every command of ``fadeviz``: options in, one library call, a few lines out; torch only where it trains."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fadeviz import FadevizError, __version__

from .measure import analyze, plot
from .report import report

if TYPE_CHECKING:
    from fadeviz.experiment import Progress, RunConfig
    from fadeviz.sweep import SweepPlan, SweepProgress


class _Commands(click.Group):
    """A group whose commands report what the user can mend as one line, with exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FadevizError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fadeviz")
def main() -> None:
    """See what a decoder learns, and when.

    Train a segmentation network with an upsampling operator, record its feature and gradient maps at chosen
    iterations, and draw them as grids and animations.

    \b
    fadeviz demo                                       the whole thing in four minutes
    fadeviz record --upsampler fade --out runs/fade    one training, recorded
    fadeviz sweep --upsamplers fade,carafe --out runs  operators times seeds
    fadeviz grid runs/fade -o fade.png                 its frames as a figure
    fadeviz animate runs/fade runs/carafe -o a.gif     two runs side by side
    """


# --- training ---------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("outputs/demo"), show_default=True,
              help="Folder for the two runs and the pictures.")  # fmt: skip
@click.option("--steps", type=int, default=240, show_default=True, help="Optimiser steps of each training.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights and data order.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo in the same folder.")
def demo(out: Path, steps: int, seed: int, overwrite: bool) -> None:
    """Watch FADE and CARAFE learn: train both on drawn horses, leave figures, a GIF and a summary."""
    from fadeviz.demo import run_demo

    with _Bars() as bars:
        summary = run_demo(out, steps=steps, seed=seed, overwrite=overwrite, report=bars.report)
    click.echo(summary)


def _training_options(command: Callable[..., None]) -> Callable[..., None]:
    """What decides how a network is trained and observed, the same for one run and for many."""
    for option in reversed(
        [
            click.option("--network", default="segnet", show_default=True, help="Network to train."),
            click.option("--data", default="synthetic", show_default=True, metavar="synthetic|weizmann",
                         help="Drawn horses (nothing to download), or Weizmann Horse from --data-dir."),
            click.option("--data-dir", default="", metavar="DIR", help="Folder of Weizmann Horse.  [default: none]"),
            click.option("--steps", type=int, default=3500, show_default=True, help="Optimiser steps."),
            click.option("--snapshots", default="", metavar="SCHEDULE",
                         help="Steps to record, both ends of a range included; step 0 always is. "
                              "[default: 100:3000:100,320:360:10 if the run is that long, else log:1:STEPS:24]"),
            click.option("--width", type=float, default=1.0, show_default=True,
                         help="Multiplier of the network's channels."),
            click.option("--size", type=int, default=224, show_default=True,
                         help="Side of the pictures, divisible by 32."),
            click.option("--batch-size", type=int, default=4, show_default=True, help="Pictures a step."),
            click.option("--lr", type=float, default=0.01, show_default=True,
                         help="Learning rate of SGD with momentum; times 0.1 after 70 % and after 90 % of the steps."),
            click.option("--weight-decay", type=float, default=0.0, show_default=True, help="L2 penalty."),
            click.option("--flip", is_flag=True, help="Mirror half of the training pictures."),
            click.option("--split-seed", type=int, default=0, show_default=True,
                         help="Seed of the train/test split and of the observed pictures."),
            click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda",
                         help="Where to train."),
            click.option("--precision", default="fp32", show_default=True, metavar="fp32|bf16|fp16",
                         help="Arithmetic of the training; observations are always fp32."),
            click.option("--channels-last/--contiguous", default=True, show_default=True,
                         help="Memory layout of the maps."),
            click.option("--weights", default="none", show_default=True, metavar="FILE|imagenet|none",
                         help="Encoder weights: a file with torchvision's VGG16-BN names, a download, or random."),
            click.option("--layers", default="decoder.*.upsample", show_default=True, metavar="GLOB",
                         help="Layers to record, comma-separated. List: fadeviz layers segnet."),
            click.option("--kinds", default="", metavar="KIND,...",
                         help="feature, gradient, gate, kernel_entropy, constant; the large channels, kernels, guide; "
                              "or all there are. [default: the small ones that the operator has]"),
            click.option("--observe", type=int, default=4, show_default=True, help="Number of observed test pictures."),
            click.option("--observe-mode", default="eval", show_default=True, metavar="eval|batch",
                         help="BatchNorm while observing: running statistics, or those of the observed pictures."),
            click.option("--channel-images", type=int, default=1, show_default=True,
                         help="Observed pictures of which channels, kernels and guide are kept."),
            click.option("--evaluate-every", type=int, default=0,
                         help="Steps between tests.  [default: a tenth of the run]"),
            click.option("--checkpoint-every", type=int, default=250, show_default=True,
                         help="Steps between checkpoints."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


@main.command()
@click.option("--upsampler", default="fade", show_default=True, metavar="NAME",
              help="Operator at every decoder stage, with options if need be: pixel_shuffle:icnr=true. "
                   "List: fadeviz upsamplers.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights and data order.")
@click.option("--labels", default="true", show_default=True, metavar="true|shuffled",
              help="Shuffled: every training picture gets another one's mask; a control.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@_training_options
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in --out from its last checkpoint; other options may be left out.",
)
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.pass_context
def record(ctx: click.Context, /, out: Path, resume: bool, overwrite: bool, **options: Any) -> None:
    """Train a network and record its maps.

    Ctrl-C stops the run; what is recorded stays readable, and --resume goes on with the same result as if it had
    never stopped.
    """
    if resume and overwrite:
        raise click.UsageError("--resume goes on with a run, --overwrite replaces it: choose one")
    from fadeviz.experiment import run

    config = _config(ctx, out, resume, options)
    with _Bars() as bars:
        try:
            finished = run(config, out, resume=resume, overwrite=overwrite, report=bars.report)
        except KeyboardInterrupt:
            bars.close()
            if not any((out / "snapshots").glob("step_*")):
                raise click.ClickException("stopped before anything was recorded") from None
            message = f"stopped. {out} is readable; go on: fadeviz record --resume --out {out}"
            raise click.ClickException(message) from None
    for note in finished.info["data"].get("notes", []):
        click.echo(f"note: {note}", err=True)
    result = finished.info.get("result", {})
    figures = ", ".join(f"{name} {value:.3f}" for name, value in result.items())
    click.echo(f"{out}: {len(finished.steps)} snapshots; {figures}")
    click.echo(f"draw it: fadeviz grid {out} -o {out}/figures/grid.png")


def _config(ctx: click.Context, out: Path, resume: bool, options: dict[str, Any]) -> RunConfig:
    from dataclasses import replace

    from fadeviz.experiment import RunConfig, read_config

    if not resume:
        return RunConfig(**options)
    return replace(read_config(out), **_given(ctx, options))


def _given(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The options that were named on the command line."""
    default = click.core.ParameterSource.DEFAULT
    return {name: value for name, value in options.items() if ctx.get_parameter_source(name) != default}


@main.command()
@click.option("--upsamplers", metavar="NAME,...",
              help="Operators, with options if need be, and @shuffled for the control with shuffled labels: "
                   "fade,fade:gate=off,carafe:init=xavier,fade@shuffled. List: fadeviz upsamplers.")  # fmt: skip
@click.option("--seeds", default="0:5", show_default=True, metavar="SEEDS",
              help="Seeds of weights, data order and shuffled labels: 0:5 is 0,1,2,3,4; or 0,3,7.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The sweep's folder; each run's is in it.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Runs at a time; they share the cores.")
@_training_options
@click.pass_context
def sweep(ctx: click.Context, /, upsamplers: str | None, seeds: str, out: Path, jobs: int, **options: Any) -> None:
    """Record every one of several operators with every one of several seeds.

    For one seed all operators see the same pictures in the same order and begin with the same encoder and decoder.
    A run that fails stops no other. The same command again does only what is missing: it resumes what was stopped,
    tries again what failed, and adds what is new; options that are left out are those of the sweep in --out.
    """
    from fadeviz.sweep import run_sweep

    plan = _sweep_plan(ctx, out, upsamplers, seeds, options)
    with _SweepLines(plan) as lines:
        try:
            outcomes = run_sweep(plan, out, jobs=jobs, report=lines.report)
        except KeyboardInterrupt:
            lines.close()
            raise click.ClickException(f"stopped. Go on: fadeviz sweep --out {out}") from None
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    click.echo(f"{out}: {len(outcomes) - len(failed)} of {len(outcomes)} runs finished")
    for outcome in failed:
        click.echo(f"failed: {outcome.folder}: {outcome.message}", err=True)
    if failed:
        raise click.ClickException(
            f"{len(failed)} of {len(outcomes)} runs failed. Try them again: fadeviz sweep --out {out}; "
            "a run whose folder is moved away begins anew"
        )


def _sweep_plan(
    ctx: click.Context, out: Path, upsamplers: str | None, seeds: str, options: dict[str, Any]
) -> SweepPlan:
    from dataclasses import replace

    from fadeviz.experiment import RunConfig
    from fadeviz.sweep import parse_seeds, plan_sweep, read_plan
    from fadeviz.upsamplers import split_upsamplers

    before = read_plan(out)
    if before is None:
        if not upsamplers:
            raise click.UsageError(f"there is no sweep in {out} yet: name its operators, --upsamplers fade,carafe")
        return plan_sweep(split_upsamplers(upsamplers), parse_seeds(seeds), RunConfig(**options))
    base = replace(before.base, **_given(ctx, options))
    seeds_given = bool(_given(ctx, {"seeds": seeds}))
    if not upsamplers and not seeds_given:
        return replace(before, base=base)
    return plan_sweep(
        split_upsamplers(upsamplers) if upsamplers else [member.operator for member in before.members],
        parse_seeds(seeds) if seeds_given else [member.seed for member in before.members],
        base,
    )


class _SweepLines:
    """One line a run on standard error: on a terminal a living bar, in a log a line a minute; then how it ended."""

    def __init__(self, plan: SweepPlan) -> None:
        self._width = max(len(member.name) for member in plan.members)
        self._bars: dict[str, Any] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> _SweepLines:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()

    def report(self, progress: SweepProgress) -> None:
        if progress.status == "running":
            (self._move if sys.stderr.isatty() else self._log)(progress)
            return
        if progress.name in self._bars:
            self._bars.pop(progress.name).close()
        self._line(progress, {"found": "finished before", "failed": "failed"})

    def _move(self, progress: SweepProgress) -> None:
        from tqdm import tqdm

        bar = self._bars.get(progress.name)
        if bar is None:
            bar = self._bars[progress.name] = tqdm(
                total=progress.steps, initial=progress.step, desc=f"{progress.name:{self._width}}", unit="step",
                leave=False, mininterval=0, miniters=1,
            )  # fmt: skip
        bar.set_postfix(_figures(progress), refresh=False)
        bar.update(progress.step - bar.n)

    def _log(self, progress: SweepProgress) -> None:
        now = time.monotonic()
        if now - self._said.setdefault(progress.name, now) >= 60:
            self._said[progress.name] = now
            self._line(progress, {})

    def _line(self, progress: SweepProgress, words: dict[str, str]) -> None:
        from tqdm import tqdm

        width = len(str(progress.runs))
        figures = " ".join(f"{name} {value}" for name, value in _figures(progress).items())
        steps = f"{progress.step:>{len(str(progress.steps))}}/{progress.steps}"
        said = [f"[{progress.ended:{width}}/{progress.runs}] {progress.name:{self._width}}  {steps}", figures]
        tqdm.write("  ".join(part for part in [*said, words.get(progress.status, "")] if part), file=sys.stderr)


def _figures(progress: Progress | SweepProgress) -> dict[str, str]:
    figures = {} if progress.loss != progress.loss else {"loss": f"{progress.loss:.3f}"}
    return figures | ({"mIoU": f"{progress.metrics['miou']:.3f}"} if "miou" in progress.metrics else {})


class _Bars:
    """One progress bar a run, on standard error; ``report`` is handed to the library."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def report(self, progress: Progress, title: str = "training") -> None:
        from tqdm import tqdm

        if self._bar is None or progress.step < self._bar.n:
            self.close()
            # A log file gets a line now and then, a terminal a living bar.
            calm = 0.1 if sys.stderr.isatty() else 15
            self._bar = tqdm(total=progress.steps, initial=progress.step - 1, desc=title, unit="step", mininterval=calm)
        self._bar.set_postfix(_figures(progress), refresh=False)
        self._bar.update(progress.step - self._bar.n)


# --- pictures ---------------------------------------------------------------------------------------------------------


def _picture_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        [
            click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN..."),
            click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write."),
            click.option("--layer", help="Dotted layer name.  [default: the network's intermediate one]"),
            click.option("--kind", default="feature", show_default=True,
                         help="feature, gradient, channels, gate, kernel_entropy, constant, kernels or guide."),
            click.option("--image", type=int, default=0, show_default=True, help="Which observed picture, from 0."),
            click.option("--channel", type=int,
                         help="Which channel, for channels, kernels and guide.  [default: representative ones]"),
            click.option("--channels", "how_many", type=int, default=8, show_default=True,
                         help="How many representative channels, for --kind channels."),
            click.option("--normalize", default="frame", show_default=True, metavar="frame|run|shared",
                         help="What spans black to white: each frame (as in the paper), a run, or all runs."),
            click.option("--percentiles", default="0,100", show_default=True, metavar="LOW,HIGH",
                         help="Ends of the range in percent of the values."),
            click.option("--colormap", default="gray", show_default=True,
                         help="gray, viridis, magma, cividis, or any name matplotlib knows."),
            click.option("--steps", metavar="SCHEDULE", help="Only these recorded steps, e.g. 0,100:300:100."),
            click.option("--scale", type=int, help="Pixels a map value is wide.  [default: about 120 to 256 a map]"),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


@main.command()
@_picture_options
@click.option("--columns", type=int, help="Frames in a row.  [default: chosen for the page]")
def grid(runs: tuple[Path, ...], output: Path, columns: int | None, **options: Any) -> None:
    """Draw the frames of one or several runs as a figure (PNG, PDF or SVG)."""
    from fadeviz import open_run
    from fadeviz.render.grid import write_grid

    notes = write_grid([open_run(run) for run in runs], output, columns=columns, **_drawing(options))
    _say(output, notes)


@main.command()
@_picture_options
@click.option("--duration", type=int, default=130, show_default=True, metavar="MS",
              help="Milliseconds a frame stays; a multiple of 10.")  # fmt: skip
def animate(runs: tuple[Path, ...], output: Path, duration: int, **options: Any) -> None:
    """Draw one or several runs side by side as an animation (GIF, APNG, WebP or MP4)."""
    from fadeviz import open_run
    from fadeviz.render.animation import write_animation

    notes = write_animation([open_run(run) for run in runs], output, duration_ms=duration, **_drawing(options))
    _say(output, notes)


def _drawing(options: dict[str, Any]) -> dict[str, Any]:
    from fadeviz.schedule import parse_steps

    try:
        low, high = (float(end) for end in options["percentiles"].split(","))
    except ValueError:
        raise click.BadParameter("two numbers LOW,HIGH are needed, e.g. 1,99", param_hint="--percentiles") from None
    steps = None if options["steps"] is None else parse_steps(options["steps"])
    return {**options, "percentiles": (low, high), "steps": steps}


def _say(output: Path, notes: tuple[str, ...]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"wrote {output}")


# --- measuring --------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--quick", is_flag=True,
              help="Small shapes and few rounds: under a minute, in place of a quarter of an hour.")  # fmt: skip
@click.option("--part", "parts", multiple=True, metavar="NAME",
              help="machine, reassembly, operators, step, recording or rendering; "
                   "may be repeated.  [default: all]")  # fmt: skip
@click.option("--upsamplers", default="", metavar="NAME,...",
              help="Operators to measure, with options if need be: fade,fade:form=h2l.  [default: all]")  # fmt: skip
@click.option("--threads", type=int, help="CPU threads.  [default: torch's own]")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where to measure.")
@click.option("--compile", "compiled", is_flag=True,
              help="Time torch.compile of the plain form too: minutes more to compile.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="A JSON file for all figures, replaced after every part.")  # fmt: skip
def bench(
    quick: bool,
    parts: tuple[str, ...],
    upsamplers: str,
    threads: int | None,
    device: str,
    compiled: bool,
    output: Path | None,
) -> None:
    """Measure what operators, a training step, recording and drawing cost on this machine.

    Times are medians and quartiles of candidates that take turns; reassembly is compared with its plain form (unfold,
    repeat, einsum) and with what the machine's memory and arithmetic allow.
    """
    if quick and compiled:
        raise click.UsageError("--compile takes minutes, --quick less than one: choose one")
    from fadeviz import benchmark
    from fadeviz.experiment import choose_device

    def report(result: benchmark.Result) -> None:
        click.echo(benchmark.describe(result) + "\n")

    chosen = choose_device(device)
    benchmark.measure(
        parts,
        upsamplers=benchmark.split_upsamplers(upsamplers),
        plan=benchmark.QUICK if quick else benchmark.FULL,
        device=chosen,
        threads=threads,
        compiled=compiled,
        output=output,
        report=report,
    )
    if output is not None:
        click.echo(f"wrote {output}")


# --- looking things up ------------------------------------------------------------------------------------------------


@main.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def upsamplers(names: tuple[str, ...], as_json: bool) -> None:
    """List the upsampling operators and what they cost: all, or NAMES with options, e.g. indexnet:kind=m2o."""
    from fadeviz.upsamplers import UPSAMPLERS, parse_upsampler
    from fadeviz.upsamplers.costs import operator_cost

    rows: list[dict[str, Any]] = []
    for name in names or UPSAMPLERS:
        entry = UPSAMPLERS[parse_upsampler(name)[0]]
        costs = {network: operator_cost(name, network)._asdict() for network in ("segnet", "segformer")}
        what = (entry.build.__doc__ or "").splitlines()[0]
        rows.append(
            {
                "name": name,
                "needs": entry.needs,
                **costs,
                "year": entry.year or None,
                "paper": entry.paper,
                "what": what,
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    wide = max(len("name"), *(len(row["name"]) for row in rows)) + 2
    click.echo(f"{'':{wide}}{'':9}{'SegNet 224x224':>20}{'SegFormer 512x512':>21}")
    columns = f"{'parameters':>11}{'M mul-add':>10}"
    click.echo(f"{'name':{wide}}{'reads':9}{columns}{columns}  source")
    for row in rows:
        needs = {"feature": "encoder", "indices": "indices"}.get(row["needs"], "")
        numbers = "".join(
            f"{row[network]['parameters']:>11,}{row[network]['multiply_adds'] / 1e6:>10,.1f}"
            for network in ("segnet", "segformer")
        )
        source = "" if row["year"] is None else f"{row['paper']} {row['year']}"
        click.echo(f"{row['name']:{wide}}{needs:9}{numbers}  {source}".rstrip())
    click.echo(
        "\nreads: besides the decoder map. The numbers are for all operators of a network and one image: SegNet's\n"
        "five (512, 512, 256, 128, 64 channels), and six of 256 channels in SegFormer's head. M mul-add: millions of\n"
        "multiply-adds, which the papers' tables give as FLOPs. With options: fadeviz upsamplers indexnet:kind=m2o"
    )


@main.command()
@click.argument("network")
@click.option("--upsampler", default="fade", show_default=True, help="Operator at every stage.")
def layers(network: str, upsampler: str) -> None:
    """List the layers of NETWORK that can be recorded, e.g. segnet."""
    from fadeviz.models import build_network

    model = build_network(network, upsampler)
    for name, module in model.named_modules():
        if name:
            mark = "  <- figures show this one" if name == model.figure_layer else ""
            click.echo(f"{name:40}{type(module).__name__}{mark}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
def info(run: Path) -> None:
    """Say what a run folder holds: settings, snapshots, result, damage."""
    from fadeviz import open_run

    opened = open_run(run)
    told = opened.info
    config, result = told.get("config", {}), told.get("result", {})
    # A run of somebody's own loop says less of itself than one of `record`: print what there is.
    lines = {
        "status": [told.get("status"), told.get("message")],
        "data": [
            told.get("data", {}).get("name"),
            *(f"{k} {config[k]}" for k in ("size", "width", "seed") if k in config),
            "shuffled labels" if config.get("labels") == "shuffled" else None,
        ],
        "parameters": [told.get("parameters"), f"weights {told['weights']}" if "weights" in told else None],
        "device": [told.get("device"), f"{told['threads']} threads" if "threads" in told else None],
        "time": [f"{what} {value:.1f} s" for what, value in told.get("seconds", {}).items()],
        "observed": [*told.get("observation", {}).get("names", []), told.get("observation", {}).get("mode")],
        "result": [f"{name} {value:.4f}" for name, value in result.items()],
    }
    click.echo(f"{run}: {opened.name} in {told.get('network')}, run {opened.run_id}")
    for name, parts in lines.items():
        if any(parts):
            click.echo(f"{name:13}{', '.join(str(part) for part in parts if part)}")
    click.echo(f"snapshots    {len(opened.steps)}: {', '.join(map(str, opened.steps))}")
    for layer, kinds in opened.layers.items() if opened.steps else ():
        click.echo(f"  {layer:30}{', '.join(kinds)}")
    for file, reason in opened.broken.items():
        click.echo(f"broken       {file}: {reason}", err=True)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--repair", is_flag=True, help="Remove what is broken, and nothing else.")
def check(run: Path, repair: bool) -> None:
    """Read all of a run and say what is damaged, foreign or left over. Exits with 1 if something is."""
    from fadeviz.check import check_run, repair_run

    for fault in repair_run(run) if repair else ():
        click.echo(f"{fault.file}: {fault.what}: {fault.repair}")
    faults = check_run(run)
    for fault in faults:
        click.echo(f"{fault.file}: {fault.what}", err=True)
    if faults:
        can = any(fault.repair for fault in faults)
        raise FadevizError(f"{run} has {len(faults)} faults." + (" Remove what is broken: --repair" if can else ""))
    click.echo(f"{run}: all is well")


@main.group()
def data() -> None:
    """Get and check data sets."""


@data.command("get")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--url", required=True, help="Address of a .zip, .tar or .tar.gz archive.")
@click.option("--sha256", required=True, help="The archive's checksum.")
def data_get(folder: Path, url: str, sha256: str) -> None:
    """Download an archive into FOLDER: resumed where it broke off, checked, unpacked safely."""
    import pooch

    from fadeviz.data.download import fetch_archive

    pooch.get_logger().setLevel("WARNING")  # it would announce what the last line says anyhow
    click.echo(f"unpacked {fetch_archive(url, sha256, folder)}")


@data.command("check")
@click.argument("folder", type=click.Path(path_type=Path))
def data_check(folder: Path) -> None:
    """Read every picture of a Weizmann Horse FOLDER and list what is wrong."""
    from fadeviz.data.weizmann_horse import check_weizmann, load_weizmann

    problems = check_weizmann(folder)
    if len(problems) == 1:
        raise FadevizError(problems[0])
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise FadevizError(f"{folder}: {len(problems)} problems")
    splits = load_weizmann(folder, 64)
    for note in splits.info.get("notes", []):  # type: ignore[attr-defined]
        click.echo(f"note: {note}")
    click.echo(
        f"{folder}: {splits.info['count']} pictures, {splits.train.count} to train on, {splits.test.count} to test on"
    )


main.add_command(analyze)
main.add_command(plot)
main.add_command(report)


if __name__ == "__main__":
    main()
