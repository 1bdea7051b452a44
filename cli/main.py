"""Every command of ``fadeviz``: options in, one library call, a few lines out; torch only where it trains."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fadeviz import FadevizError, __version__, plugins
from fadeviz.errors import printable
from fadeviz.storage.metrics import FIGURES

from .export import export
from .installed import InstalledOption
from .measure import analyze, plot
from .report import report
from .results import compare, predict
from .runs import CALL, RUN, Output
from .sweep import sweep
from .training import figures, given, leave_interrupted, training_options

if TYPE_CHECKING:
    from fadeviz.experiment import Progress, RunConfig
    from fadeviz.render.selection import MapSelection
    from fadeviz.storage.stored_run import StoredRun


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _Commands(click.Group):
    """A group whose commands report what the user can mend as one line, with exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FadevizError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.filename is None:  # nothing that the user named
                if error.errno not in _FULL:
                    raise
                # Files of ours say which they are: this is what the command prints.
                raise click.ClickException(f"cannot write to standard output: {error.strerror}") from error
            raise click.ClickException(printable(f"{error.filename}: {error.strerror}")) from error
        except KeyboardInterrupt:  # during imports, or in a command that does not train
            click.echo("interrupted", err=True)
            sys.exit(128 + signal.SIGINT)


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to stop
            stream.reconfigure(errors="backslashreplace")


# --- training ---------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("outputs/demo"), show_default=True,
              help="Folder for the two runs and the images.")  # fmt: skip
@click.option("--steps", type=int, default=240, show_default=True, help="Optimiser steps of each training.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights and data order.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo in the same folder.")
def demo(out: Path, steps: int, seed: int, overwrite: bool) -> None:
    """Watch FADE and CARAFE learn: train both on drawn horses, leave figures, a GIF and a summary.

    Run again, the command resumes a demo that was interrupted; for a finished one, it only redraws the figures.
    """
    from fadeviz.demo import run_demo

    with _Bars() as bars:
        try:
            summary = run_demo(out, steps=steps, seed=seed, overwrite=overwrite, report=bars.report)
        except KeyboardInterrupt as error:
            bars.close()
            named = ["--out", str(out)], ["--steps", str(steps)], ["--seed", str(seed)]
            usual = ["outputs/demo", "240", "0"]
            again = shlex.join(
                ["fadeviz", "demo", *(w for n, u in zip(named, usual, strict=True) for w in n if n[1] != u)]
            )
            leave_interrupted(error, again, nothing=f"interrupted; {again} resumes")
    click.echo(summary)


@main.command()
@click.option("--upsampler", default="fade", show_default=True, metavar="NAME",
              cls=InstalledOption, group=plugins.UPSAMPLERS,
              help="Operator at every decoder stage, with options if need be: pixel_shuffle:icnr=true. "
                   "List: fadeviz upsamplers.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights and data order.")
@click.option("--labels", default="true", show_default=True, metavar="true|shuffled",
              help="Shuffled: every training image gets another one's mask; a control.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@training_options
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in --out from its last checkpoint; other options may be left out.",
)
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option(
    "--requeue",
    is_flag=True,
    help="For job schedulers: begin the run, or go on with what --out holds of it; one that is finished is left alone.",
)
@click.pass_context
def record(ctx: click.Context, /, out: Path, resume: bool, overwrite: bool, requeue: bool, **options: Any) -> None:
    """Train a network and record its maps.

    Ctrl-C, SIGTERM and a closed terminal stop the run after the current step and write a checkpoint; --resume continues
    with the next step, with the same result as an uninterrupted run. A second Ctrl-C, at least two seconds later, stops
    it immediately. The exit code is 128 plus the signal number: 130 after Ctrl-C, 143 after SIGTERM.
    """
    if resume and overwrite:
        raise click.UsageError("--resume goes on with a run, --overwrite replaces it: choose one")
    if requeue and (resume or overwrite):
        raise click.UsageError("--requeue finds out by itself whether to go on: leave --resume and --overwrite out")
    from fadeviz import open_run
    from fadeviz.experiment import train
    from fadeviz.training.distributed import OtherRankFailed, launched_rank
    from fadeviz.training.signals import Interrupted

    config = _config(ctx, out, resume, options)
    if requeue:
        from fadeviz.sweep import has_begun

        resume = has_begun(out)
    quiet = launched_rank() > 0  # of the processes that torchrun started, the first one talks
    with _Bars() as bars:
        try:
            finished = train(
                config, out, resume=resume, overwrite=overwrite,
                report=None if quiet else bars.report, note=None if quiet else _note,
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
            finished = open_run(out)  # the signal came after the last step
    if quiet:
        return
    for note in finished.info["data"].get("notes", []):
        click.echo(f"note: {note}", err=True)
    result = finished.info.get("result", {})
    figures = ", ".join(f"{n} {FIGURES[n].text(v) if n in FIGURES else f'{v:.3f}'}" for n, v in result.items())
    click.echo(f"{out}: {len(finished.steps)} snapshots; {figures}")
    click.echo(f"draw it: fadeviz grid {out} -o {out}/figures/grid.png")


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


def _config(ctx: click.Context, out: Path, resume: bool, options: dict[str, Any]) -> RunConfig:
    from dataclasses import replace

    from fadeviz.experiment import RunConfig, read_config

    if not resume:
        return RunConfig(**options)
    return replace(read_config(out), **given(ctx, options))


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
            with contextlib.suppress(OSError):
                self._bar.close()
            self._bar = None

    def report(self, progress: Progress, title: str = "training") -> None:
        with contextlib.suppress(OSError):  # a closed terminal must not stop the training
            self._move(progress, title)

    def _move(self, progress: Progress, title: str) -> None:
        from tqdm import tqdm

        if self._bar is None or progress.step < self._bar.n:
            self.close()
            # A log file gets a line now and then, a terminal a living bar.
            calm = 0.1 if sys.stderr.isatty() else 15
            self._bar = tqdm(total=progress.steps, initial=progress.step - 1, desc=title, unit="step", mininterval=calm)
        self._bar.set_postfix(figures(progress), refresh=False)
        self._bar.update(progress.step - self._bar.n)


# --- images ---------------------------------------------------------------------------------------------------------


def _picture_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        [
            click.argument("runs", nargs=-1, required=True, type=RUN, metavar="RUN..."),
            click.option("-o", "--output", type=Output(), required=True, help="The file to write."),
            click.option("--layer", help="Dotted layer name.  [default: the network's intermediate one]"),
            click.option("--kind", default="feature", show_default=True,
                         help="feature, gradient, channels, gate, kernel_entropy, constant, kernels or guide."),
            click.option("--image", type=int, default=0, show_default=True, help="Which observed image, from 0."),
            click.option("--channel", type=int,
                         help="Which channel, for channels, kernels and guide.  [default: representative ones]"),
            click.option("--channels", type=int, default=8, show_default=True,
                         help="How many representative channels, for --kind channels."),
            click.option("--normalize", default="frame", show_default=True, metavar="frame|run|shared",
                         help="What spans black to white: each frame (as in the paper), a run, or all runs."),
            click.option("--percentiles", default="0,100", show_default=True, metavar="LOW,HIGH",
                         help="Ends of the range in percent of the values."),
            click.option("--colormap", default="gray", show_default=True,
                         help="gray, viridis, magma, cividis, or any name matplotlib knows."),
            click.option("--steps", metavar="SCHEDULE", help="Only these recorded steps, e.g. 0,100:300:100."),
            click.option("--call", type=int, default=0, show_default=True, help=CALL),
            click.option("--scale", type=int, help="Pixels a map value is wide.  [default: about 120 to 256 a map]"),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


@main.command()
@_picture_options
@click.option("--columns", type=int, help="Frames in a row.  [default: chosen for the page]")
def grid(runs: tuple[Path | str, ...], output: Path, columns: int | None, **options: Any) -> None:
    """Draw the frames of one or several runs as a figure (PNG, PDF or SVG)."""
    from fadeviz import open_run
    from fadeviz.render.grid import write_grid

    selection, style = _map_selection(options)
    notes = write_grid([open_run(run) for run in runs], output, selection, columns=columns, **style)
    _say(output, notes)


@main.command()
@_picture_options
@click.option("--duration", type=int, default=130, show_default=True, metavar="MS",
              help="Milliseconds a frame stays; a multiple of 10.")  # fmt: skip
def animate(runs: tuple[Path | str, ...], output: Path, duration: int, **options: Any) -> None:
    """Draw one or several runs side by side as an animation (GIF, APNG, WebP or MP4)."""
    from fadeviz import open_run
    from fadeviz.render.animation import write_animation

    selection, style = _map_selection(options)
    notes = write_animation([open_run(run) for run in runs], output, selection, duration_ms=duration, **style)
    _say(output, notes)


def _map_selection(options: dict[str, Any]) -> tuple[MapSelection, dict[str, Any]]:
    """The maps to draw, and the remaining options."""
    from fadeviz.render.selection import MapSelection
    from fadeviz.storage.schedule import parse_steps

    try:
        low, high = (float(end) for end in options["percentiles"].split(","))
    except ValueError:
        raise click.BadParameter("two numbers LOW,HIGH are needed, e.g. 1,99", param_hint="--percentiles") from None
    steps = None if options["steps"] is None else parse_steps(options["steps"])
    options = {**options, "percentiles": (low, high), "steps": steps}
    style = {name: options.pop(name) for name in ("colormap", "scale")}
    return MapSelection(**options), style


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
@click.option("--upsamplers", default="", metavar="NAME,...", cls=InstalledOption, group=plugins.UPSAMPLERS,
              help="Operators to measure, with options if need be: fade,fade:form=h2l.  [default: all]")  # fmt: skip
@click.option("--threads", type=int, help="CPU threads.  [default: torch's own]")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where to measure.")
@click.option("--precision", default="", metavar="NAME,...",
              help="fp32, bf16, and on CUDA tf32 and fp16.  [default: fp32; on CUDA several]")  # fmt: skip
@click.option("--peers", "--compile", "compiled", is_flag=True,
              help="Time torch.compile of the plain form too: minutes more to compile.")  # fmt: skip
@click.option("--limit", type=float, metavar="SECONDS", help="Begin no other table after so long.")  # fmt: skip
@click.option("-o", "--output", type=Output(),
              help="A JSON file for all figures, replaced after every part.")  # fmt: skip
def bench(
    quick: bool,
    parts: tuple[str, ...],
    upsamplers: str,
    threads: int | None,
    device: str,
    precision: str,
    compiled: bool,
    limit: float | None,
    output: Path | None,
) -> None:
    """Measure what operators, a training step, recording and drawing cost on this machine.

    Times are medians and quartiles of candidates that take turns; reassembly is compared with its plain form (unfold,
    repeat, einsum) and with what the machine's memory and arithmetic allow. On CUDA kernels are timed by the device's
    events, on maps that its cache does not hold, and training steps in blocks.
    """
    from fadeviz import benchmark
    from fadeviz.experiment import choose_device

    def report(result: benchmark.Result) -> None:
        click.echo(benchmark.describe(result) + "\n")

    chosen = choose_device(device)
    cuda = chosen.type == "cuda"
    if quick and compiled and not cuda:
        raise click.UsageError("--compile takes minutes, --quick less than one: choose one")
    full, small = (benchmark.FULL_CUDA, benchmark.QUICK_CUDA) if cuda else (benchmark.FULL, benchmark.QUICK)
    measured = benchmark.measure(
        parts,
        upsamplers=benchmark.split_upsamplers(upsamplers),
        plan=small if quick else full,
        precisions=[name.strip() for name in precision.split(",")] if precision else (),
        limit=limit,
        device=chosen,
        threads=threads,
        compiled=compiled,
        output=output,
        report=report,
    )
    if measured["unfinished"]:
        click.echo(f"note: stopped after {limit:g} s: {', '.join(measured['unfinished'])} not finished", err=True)
    if output is not None:
        click.echo(f"wrote {output}")


# --- looking things up ------------------------------------------------------------------------------------------------


@main.command()
@click.argument("names", nargs=-1)
@click.option("--network", default="segnet,segformer", show_default=True, metavar="NAME,...",
              cls=InstalledOption, group=plugins.NETWORKS,
              help="Where they cost so much: segnet, segformer, matting.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Machine-readable; all networks.")
def upsamplers(names: tuple[str, ...], network: str, as_json: bool) -> None:
    """List the upsampling operators and what they cost: all, or NAMES with options, e.g. indexnet:kind=m2o."""
    from fadeviz.models import find_network, list_networks
    from fadeviz.models.costs import operator_cost
    from fadeviz.upsamplers import find_upsampler, list_upsamplers, parse_upsampler

    chosen = [name.strip() for name in network.split(",")]
    networks = {name: find_network(name) for name in chosen}
    if as_json:
        networks |= {name: one for name, one in list_networks().items() if one.sites}
    rows: list[dict[str, Any]] = []
    for name in names or list_upsamplers():
        entry = find_upsampler(parse_upsampler(name)[0])
        costs = {network: operator_cost(name, network)._asdict() for network in networks}
        what = (entry.build.__doc__ or "").partition("\n")[0]  # none under python -OO
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
    heads = [f"{network.title} {network.reference_size}x{network.reference_size}" for network in networks.values()]
    click.echo(f"{'':{wide}}{'':9}" + "".join(f"{head:>21}" for head in heads))
    columns = f"{'parameters':>11}{'M mul-add':>10}"
    click.echo(f"{'name':{wide}}{'reads':9}{columns * len(chosen)}  source")
    for row in rows:
        needs = {"feature": "encoder", "indices": "indices"}.get(row["needs"], "")
        numbers = "".join(
            f"{row[name]['parameters']:>11,}{row[name]['multiply_adds'] / 1e6:>10,.1f}" for name in chosen
        )
        source = "" if row["year"] is None else f"{row['paper']} {row['year']}"
        click.echo(f"{row['name']:{wide}}{needs:9}{numbers}  {source}".rstrip())
    click.echo(
        "\nreads: besides the decoder map. The numbers are for all operators of a network and one image: SegNet's\n"
        "five (512, 512, 256, 128, 64 channels), six of 256 channels in SegFormer's head, four of the matting\n"
        "network's decoder (256, 128, 64, 64). M mul-add: millions of multiply-adds, which the papers' tables give as\n"
        "FLOPs. With options: fadeviz upsamplers indexnet:kind=m2o"
    )


@main.command()
@click.argument("network")
@click.option("--upsampler", default="fade", show_default=True, cls=InstalledOption, group=plugins.UPSAMPLERS,
              help="Operator at every stage.")  # fmt: skip
def layers(network: str, upsampler: str) -> None:
    """List the layers of NETWORK that can be recorded, e.g. segnet, with the channels and resolution of their maps."""
    from fadeviz.models import build_network, map_shapes
    from fadeviz.recording.layer_names import find_layers

    model = build_network(network, upsampler)
    modules = {name: module for name, module in model.named_modules() if name}
    shapes, recorded = map_shapes(model), find_layers(modules, model.layers, model.title)
    rows = []
    for name, module in modules.items():
        channels, share = shapes.get(name, (0, 0))
        mark = "recorded" * (name in recorded) + ", figures show this one" * (name == model.figure_layer)
        rows.append((name, type(module).__name__, f"{channels} at 1/{share:g}" if channels else "", mark))
    first, second = (max(len(row[i]) for row in rows) + 2 for i in (0, 1))
    click.echo(f"{'layer':{first}}{'module':{second}}{'channels':14}by default")
    for row in rows:
        click.echo(f"{row[0]:{first}}{row[1]:{second}}{row[2]:14}{row[3]}".rstrip())


@main.command()
@click.argument("run", type=RUN)
def info(run: Path | str) -> None:
    """Show a run's settings, snapshots, result and damage; for a sweep's folder, the status of its runs."""
    from fadeviz import open_run

    if isinstance(run, Path) and (run / "manifest.json").is_file() and not (run / "run.json").exists():
        _sweep_info(run)
        return
    opened = open_run(run)
    told = opened.info
    config, result = told.get("config", {}), told.get("result", {})
    # A run of a user's own loop has fewer settings than one of `record`: print those there are.
    lines = {
        "status": [_status(opened), told.get("message")],
        "data": [
            told.get("data", {}).get("name"),
            *(f"{k} {config[k]}" for k in ("size", "width", "seed") if k in config),
            "shuffled labels" if config.get("labels") == "shuffled" else None,
        ],
        "parameters": [told.get("parameters"), f"weights {told['weights']}" if "weights" in told else None],
        "device": [
            told.get("device"),
            f"{told['threads']} threads" if "threads" in told else None,
            f"{told['processes']} processes" if "processes" in told else None,
        ],
        "time": [f"{what} {value:.1f} s" for what, value in told.get("seconds", {}).items()],
        "observed": [*told.get("observation", {}).get("names", []), told.get("observation", {}).get("mode")],
        "result": [f"{name} {value:.4f}" for name, value in result.items()],
        "errors": [
            f"{len(failed)}, the first: {failed[0].get('message')}" for failed in [told.get("errors")] if failed
        ],
        "notes": told.get("notes", []),
    }
    network = f" in {told['network']}" if told.get("network") else ""
    click.echo(printable(f"{opened.address}: {opened.name}{network}, run {opened.run_id}"))
    for name, parts in lines.items():
        if any(parts):
            click.echo(f"{name:13}{', '.join(str(part) for part in parts if part)}")
    click.echo(f"snapshots    {len(opened.steps)}: {', '.join(map(str, opened.steps))}")
    recorded = opened.layers if opened.steps else {}
    wide = min(60, max([28, *map(len, recorded)]))  # a longer name shifts only its own line
    for layer, kinds in recorded.items():
        calls = opened.calls(layer, kinds[0]) if kinds else {}
        sizes = ", ".join(f"{number} ({'x'.join(map(str, size))})" for number, size in calls.items())
        several = f"; calls {sizes}: choose with --call" if len(calls) > 1 else ""
        click.echo(f"  {printable(layer):{wide}}  {', '.join(kinds)}{several}")
    for file, reason in opened.broken.items():
        click.echo(printable(f"broken       {file}: {reason}"), err=True)


def _status(run: StoredRun) -> str:
    if run.status != "stopped":
        return run.status
    return (
        f"stopped without reporting a result: run.json says {run.info['status']}, but no process writes into the folder"
    )


def _sweep_info(out: Path) -> None:
    from fadeviz.sweep import read_status

    runs = read_status(out)
    finished = sum(run.status == "finished" for run in runs)
    click.echo(printable(f"{out}: a sweep, {finished} of {len(runs)} runs finished"))
    wide = max((len(run.name) for run in runs), default=0)
    for run in runs:
        said = {"stopped": f"its process ended without reporting a result. Resume with: fadeviz sweep --out {out}"}
        message = said.get(run.status, run.message)
        click.echo(printable(f"{run.name:{wide}}  {run.status:12}step {run.step}{', ' + message if message else ''}"))


@main.command()
@click.argument("run", type=RUN)
@click.option("--repair", is_flag=True, help="Remove what is broken, and nothing else.")
def check(run: Path | str, repair: bool) -> None:
    """Read all of a run and say what is damaged, foreign or left over. Exits with 1 if something is."""
    from fadeviz.storage.check import check_run, other_maps, repair_run

    for fault in repair_run(run) if repair else ():
        click.echo(printable(f"{fault.file}: {fault.what}: {fault.repair}"))
    faults = check_run(run)
    for fault in faults:
        click.echo(printable(f"{fault.file}: {fault.what}"), err=True)
    if faults:
        can = any(fault.repair for fault in faults)
        count = f"{len(faults)} fault{'s' * (len(faults) > 1)}"
        raise FadevizError(f"{run} has {count}." + (" Remove what is broken: --repair" if can else ""))
    for note in other_maps(run):
        click.echo(printable(f"note: {note}"), err=True)
    click.echo(printable(f"{run}: all is well"))


@main.group()
def data() -> None:
    """Get and check data sets."""


@data.command("get")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--url", required=True, help="Address of a .zip, .tar or .tar.gz archive.")
@click.option("--sha256", required=True, help="The archive's checksum.")
@click.option("--max-gb", type=float, default=8.0, show_default=True, metavar="GB",
              help="Refuse archives larger than this, packed or unpacked.")  # fmt: skip
@click.option("--min-speed", type=float, default=1.0, show_default=True, metavar="KB",
              help="Give up below this many kB/s, averaged over a minute; 0: no limit.")  # fmt: skip
def data_get(folder: Path, url: str, sha256: str, max_gb: float, min_speed: float) -> None:
    """Download an archive into FOLDER: resume partial downloads, verify the checksum, unpack safely."""
    import pooch

    from fadeviz.data.download import fetch_archive

    pooch.get_logger().setLevel("WARNING")  # it would announce what the last line says anyhow
    done = fetch_archive(url, sha256, folder, max_gb=max_gb, min_speed=min_speed)
    click.echo(printable(f"unpacked {done}"))


@data.command("check")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--data", "name", default="", metavar="NAME", cls=InstalledOption, group=plugins.DATASETS,
              help="Which data set it is: weizmann, ade20k, mattes.  [default: the one with its layout]")  # fmt: skip
def data_check(folder: Path, name: str) -> None:
    """Read every image of a data set's FOLDER and list what is wrong."""
    from fadeviz.data.sets import check_data, describe_data

    name, problems, splits = check_data(folder, name)
    if len(problems) == 1:
        raise FadevizError(problems[0])
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise FadevizError(f"{folder}: {len(problems)} problems")
    assert splits is not None
    notes: list[str] = splits.info.get("notes", [])  # type: ignore[assignment]
    for note in [*notes, *describe_data(folder, name)]:
        click.echo(f"note: {note}")
    train = splits.info.get("train", splits.train.count or "endless")
    count = len(train) if isinstance(train, list) else train  # crops of them may never end
    total = f"images: {splits.info['count']}, " if "count" in splits.info else ""
    counts = f"{total}to train on {count}, to test on {splits.test.count}"
    click.echo(printable(f"{folder}: {name}, {counts}"))


main.add_command(analyze)
main.add_command(compare)
main.add_command(export)
main.add_command(plot)
main.add_command(predict)
main.add_command(report)
main.add_command(sweep)


if __name__ == "__main__":
    main()
