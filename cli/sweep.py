"""The command that trains many runs: sweep."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fadeviz import plugins
from fadeviz.errors import FadevizError

from .installed import InstalledOption
from .messages import in_options
from .training import explicit_options, leave_interrupted, progress_metrics, training_options

if TYPE_CHECKING:
    from fadeviz.experiment import RunConfig
    from fadeviz.sweep import Executor, SweepPlan, SweepProgress

EXECUTORS = ("local", "slurm", "dask")


@click.command()
@click.option("--upsamplers", metavar="NAME,...", cls=InstalledOption, group=plugins.UPSAMPLERS,
              help="Operators; may have options, and @shuffled for the control with shuffled labels: "
                   "fade,fade:gate=off,carafe:init=xavier,fade@shuffled; all names every operator. "
                   "List: fadeviz upsamplers.")  # fmt: skip
@click.option("--seeds", default="0:5", show_default=True, metavar="SEEDS",
              help="Seeds of weights, data order and shuffled labels: 0:5 is 0,1,2,3,4; or 0,3,7.")  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The sweep's folder; it contains those of the runs."
)
@click.option("--jobs", type=int,
              help="Number of runs at a time. On this machine, they share the cores and are spread over the GPUs.  "
                   "[default: on this machine 1, or 1 for each GPU; all at once with slurm]")  # fmt: skip
@click.option("--executor", default="local", show_default=True, metavar="local|slurm|dask",
              help="Where to train: on this machine, as an array of Slurm jobs, or on a running Dask cluster. On a "
                   "cluster --out must be on a disk that all machines share.")  # fmt: skip
@click.option("--slurm", "slurm_options", multiple=True, metavar="NAME=VALUE,...",
              help="With --executor slurm: options of sbatch for each job, by their long names, such as "
                   "partition=gpu,time=120 (minutes) and gpus_per_node=1; may be repeated.  "
                   "[default: time=60; a run that takes longer is continued by another job]")  # fmt: skip
@click.option("--scheduler", metavar="ADDRESS", help="With --executor dask: the scheduler's address, tcp://HOST:8786.")
@click.option("--dry-run", is_flag=True,
              help="Train and write nothing; print what is missing: a shell command per run, a script for sbatch "
                   "(--executor slurm), or names (dask).")  # fmt: skip
@training_options
@click.pass_context
def sweep(
    ctx: click.Context,
    /,
    upsamplers: str | None,
    seeds: str,
    out: Path,
    jobs: int | None,
    executor: str,
    slurm_options: tuple[str, ...],
    scheduler: str | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Record several operators with several seeds.

    For one seed, all operators see the same images in the same order and start with the same encoder and decoder
    weights. A failed run does not stop the others. Given again, the same command trains only what is missing: it
    resumes stopped runs, tries failed ones again, and adds new ones. Options that are left out are those of the sweep
    in --out.

    Ctrl-C, SIGTERM and a closed terminal stop runs on this machine or on a Dask cluster: each finishes its step and
    writes a checkpoint. Slurm jobs keep running: the same command waits for them, and submits none twice. The exit
    code is then 128 plus the signal number.

    \b
    fadeviz sweep --upsamplers fade,carafe --seeds 0:5 --out runs                    on this machine
      ... --executor slurm --slurm partition=gpu,gpus_per_node=1,time=120            as Slurm jobs
      ... --executor slurm --slurm partition=gpu --dry-run > job.sh; sbatch job.sh   without submitit
      ... --executor dask --scheduler tcp://HOST:8786                                on a Dask cluster
    fadeviz sweep --out runs                                                         what is still missing
    """
    import fadeviz

    _check_choice(executor, slurm_options, scheduler, jobs)
    plan = _sweep_plan(ctx, out, upsamplers, seeds, options)
    if dry_run:
        _print_missing(plan, out, executor, slurm_options, jobs)
        return
    chosen = _executor(executor, slurm_options, scheduler, jobs)
    with _SweepLines(plan) as lines:
        try:
            outcomes = fadeviz.run_sweep(plan, out, executor=chosen, on_progress=lines.report)
        except KeyboardInterrupt as error:
            lines.close()
            leave_interrupted(error, "", nothing=_stopped(out, executor, lines.jobs, scheduler))
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    click.echo(f"{out}: {len(outcomes) - len(failed)} of {len(outcomes)} runs finished")
    for outcome in failed:
        click.echo(f"failed: {outcome.folder}: {in_options(outcome.message, ctx.command)}", err=True)
    if failed:
        raise click.ClickException(
            f"{len(failed)} of {len(outcomes)} runs failed. Try them again: fadeviz sweep --out {out}; "
            "a run whose folder is moved away begins anew"
        )


def _check_choice(executor: str, slurm_options: tuple[str, ...], scheduler: str | None, jobs: int | None) -> None:
    """Raise for options that cannot be combined."""
    if executor not in EXECUTORS:
        raise click.BadParameter(f"{executor!r} is none of {', '.join(EXECUTORS)}", param_hint="--executor")
    if slurm_options and executor != "slurm":
        raise click.UsageError("--slurm is for --executor slurm")
    if scheduler and executor != "dask":
        raise click.UsageError("--scheduler is for --executor dask")
    if executor == "dask" and jobs is not None:
        raise click.UsageError(
            "--jobs is not for --executor dask: a cluster trains as many at a time as it has workers"
        )


def _executor(name: str, slurm_options: tuple[str, ...], scheduler: str | None, jobs: int | None) -> Executor:
    if name == "slurm":
        from fadeviz.sweep.slurm import SlurmArray, parse_options

        return SlurmArray(parse_options(slurm_options), jobs)
    if name == "dask":
        from fadeviz.sweep.dask import DaskCluster

        if not scheduler:
            raise click.UsageError("--executor dask needs the address of a cluster: --scheduler tcp://HOST:8786")
        return DaskCluster(scheduler)
    from fadeviz.sweep import LocalProcesses

    return LocalProcesses(jobs)


def _stopped(out: Path, executor: str, jobs: list[str], scheduler: str | None) -> str:
    """The line to print after Ctrl-C or another signal."""
    if executor == "slurm" and jobs:
        return (
            f"stopped waiting; the jobs keep running. Wait for them again: fadeviz sweep --out {out} --executor slurm; "
            f"or cancel them: scancel {' '.join(jobs)}"
        )
    options = {"dask": f" --executor dask --scheduler {scheduler}", "slurm": " --executor slurm"}
    return f"stopped. Resume with: fadeviz sweep --out {out}{options.get(executor, '')}"


def _print_missing(plan: SweepPlan, out: Path, executor: str, slurm_options: tuple[str, ...], jobs: int | None) -> None:
    """Print what is missing, for a shell or a scheduler to do it; on standard error, how much that is."""
    from fadeviz.sweep import unfinished_trials
    from fadeviz.sweep.slurm import batch_script, parse_options

    sbatch_options = parse_options(slurm_options)
    tasks = unfinished_trials(plan, out)
    click.echo(f"{len(tasks)} of {len(plan.trials)} runs are missing in {out}; nothing was written", err=True)
    if not tasks:
        return
    if executor == "dask":
        for task in tasks:
            click.echo(task.trial.name)
        return
    commands = [shlex.join(["fadeviz", *record_arguments(task.config, task.folder)]) for task in tasks]
    if executor == "slurm":
        click.echo(batch_script(commands, sbatch_options, jobs), nl=False)
        return
    for command in commands:
        click.echo(command)


def record_arguments(config: RunConfig, out: Path) -> list[str]:
    """The arguments of ``fadeviz`` that train this run in ``out``, or continue it; defaults are left out.

    Raises:
        FadevizError: if a setting has no option on the command line.
    """
    from fadeviz.experiment import RunConfig

    default = RunConfig(network=config.network)  # which decides on some of the others
    arguments = ["record", "--requeue", "--out", str(out), "--upsampler", config.upsampler, "--seed", str(config.seed)]
    for field in fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        usual = RunConfig.network if field.name == "network" else getattr(default, field.name)
        if field.name in ("upsampler", "seed") or value == usual:
            continue
        if field.name in ("momentum", "lr_drops"):
            raise FadevizError(f"{field.name} is {value}, for which there is no option: train this sweep from Python")
        if field.name == "channels_last":
            arguments.append("--contiguous")
        elif isinstance(value, bool):
            arguments.append(f"--{name}")
        else:
            arguments += [f"--{name}", str(value)]
    return arguments


def _sweep_plan(
    ctx: click.Context, out: Path, upsamplers: str | None, seeds: str, options: dict[str, Any]
) -> SweepPlan:
    from dataclasses import replace

    from fadeviz.experiment import RunConfig
    from fadeviz.sweep import parse_seeds, plan_sweep, read_plan

    before = read_plan(out)
    if before is None:
        if not upsamplers:
            raise click.UsageError(f"there is no sweep in {out} yet: name its operators, --upsamplers fade,carafe")
        operators = _operators(upsamplers)
        first = operators[0].partition("@")[0].strip()
        return plan_sweep(operators, parse_seeds(seeds), RunConfig(upsampler=first, **options))
    base = replace(before.base, **explicit_options(ctx, options))
    seeds_given = bool(explicit_options(ctx, {"seeds": seeds}))
    if not upsamplers and not seeds_given:
        return replace(before, base=base)
    return plan_sweep(
        _operators(upsamplers) if upsamplers else [trial.operator for trial in before.trials],
        parse_seeds(seeds) if seeds_given else [trial.seed for trial in before.trials],
        base,
    )


def _operators(text: str) -> list[str]:
    """The operators in ``--upsamplers``; ``all`` stands for every one."""
    from fadeviz.upsamplers import all_upsamplers, split_upsamplers

    return [name for part in split_upsamplers(text) for name in (all_upsamplers() if part == "all" else [part])]


class _SweepLines:
    """One line per run on standard error: a progress bar on a terminal, a line per minute in a log; then its end."""

    def __init__(self, plan: SweepPlan) -> None:
        self._width = max(len(trial.name) for trial in plan.trials)
        self._bars: dict[str, Any] = {}
        self._logged_at: dict[str, float] = {}
        self.jobs: list[str] = []
        """The scheduler's ids of the job arrays."""

    def __enter__(self) -> _SweepLines:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()

    def report(self, progress: SweepProgress) -> None:
        if progress.status == "queued":
            array = progress.job.partition("_")[0]
            if array and array not in self.jobs:
                self.jobs.append(array)
                click.echo(f"queued as job {array}: squeue --job {array}", err=True)
            return
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
        bar.set_postfix(progress_metrics(progress), refresh=False)
        bar.update(progress.step - bar.n)

    def _log(self, progress: SweepProgress) -> None:
        now = time.monotonic()
        if now - self._logged_at.setdefault(progress.name, now) >= 60:
            self._logged_at[progress.name] = now
            self._line(progress, {})

    def _line(self, progress: SweepProgress, words: dict[str, str]) -> None:
        from tqdm import tqdm

        width = len(str(progress.runs))
        shown = " ".join(f"{name} {value}" for name, value in progress_metrics(progress).items())
        steps = f"{progress.step:>{len(str(progress.steps))}}/{progress.steps}"
        line = [f"[{progress.ended:{width}}/{progress.runs}] {progress.name:{self._width}}  {steps}", shown]
        tqdm.write("  ".join(part for part in [*line, words.get(progress.status, "")] if part), file=sys.stderr)


__all__ = ["sweep"]
