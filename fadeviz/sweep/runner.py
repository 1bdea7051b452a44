"""Runs a sweep: hands the unfinished trials of a plan to an executor, and keeps the manifest up to date."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from ..errors import FadevizError
from ..experiment import Progress, differing_settings, settings_of
from ..storage.files import left_over, only_writer
from ..storage.stored_run import StoredRun
from ..training.signals import stop_signals
from .local import LocalProcesses
from .manifest import MANIFEST, TRIAL_SETTINGS, Manifest, read_manifest
from .plan import SweepPlan, Trial
from .trial import Event, Task


class Executor(Protocol):
    """Where trials are trained: :class:`LocalProcesses`, ``slurm.SlurmArray``, ``dask.DaskCluster``, or your own."""

    def train(self, tasks: Sequence[Task]) -> Generator[list[Event], None, None]:
        """Train the trials, and yield batches of events until each is ``finished`` or ``failed``.

        If the generator is closed early, the executor decides what happens to unfinished trials.
        """
        ...


class SweepProgress(NamedTuple):
    """The argument of :func:`run_sweep`'s ``on_progress``: the progress of one trial."""

    name: str
    status: str
    """``found`` (finished by an earlier sweep), ``queued``, ``running``, ``finished`` or ``failed``."""
    step: int
    steps: int
    loss: float
    """The loss of this step; NaN if no step was done by this sweep."""
    metrics: Mapping[str, float]
    """The latest evaluation's metrics; empty before the first."""
    message: str
    """Why the trial failed."""
    ended: int
    """The number of trials that have ended so far."""
    runs: int
    """The number of trials in the plan."""
    job: str = ""
    """The scheduler's id of the trial's job; empty if it has none."""


class Outcome(NamedTuple):
    """The outcome of one trial; ``status`` is ``finished`` or ``failed``, and ``message`` is the reason."""

    trial: Trial
    folder: Path
    status: str
    message: str
    result: Mapping[str, float]


def run_sweep(
    plan: SweepPlan,
    out: str | Path,
    *,
    jobs: int | None = None,
    executor: Executor | None = None,
    on_progress: Callable[[SweepProgress], None] | None = None,
) -> list[Outcome]:
    """Train the unfinished trials of a plan, each in a folder of its own.

    Finished trials are skipped, interrupted ones resumed, and failed ones tried again. A failure does not stop the
    other trials. ``manifest.json`` lists all trials of the folder, so a sweep can be extended by operators and seeds
    at any time.

    Args:
        plan: the trials.
        out: the sweep's folder, which contains the folder of each run.
        jobs: number of trials that are trained at a time on this machine, short for ``executor=LocalProcesses(jobs)``;
            None means 1, or 1 per GPU.
        executor: where to train, if not on this machine.
        on_progress: called from this process when a trial makes progress or ends.

    Returns:
        The outcome of each trial, in the plan's order.

    Raises:
        FadevizError: if the folder is in use, or contains something else or trials with other settings. Nothing is
            trained then.
        Interrupted: on SIGINT (Ctrl-C), SIGTERM or SIGHUP; it is a ``KeyboardInterrupt``. By then, processes on this
            machine have finished their steps and written checkpoints to resume from; jobs on a cluster may keep
            running (see the executor). A second SIGINT, at least two seconds later, does not wait for that.
    """
    out = Path(out)
    executor = LocalProcesses(jobs) if executor is None else executor
    _check_folder(out)
    with stop_signals(), only_writer(out):
        return SweepRunner(plan, out, on_progress).run(executor)


def unfinished_trials(plan: SweepPlan, out: str | Path) -> list[Task]:
    """The trials that :func:`run_sweep` would train now, except those in Slurm's queue. Nothing is written.

    Raises:
        FadevizError: under the same conditions as :func:`run_sweep`.
    """
    from .slurm import queued_jobs

    out = Path(out)
    _check_folder(out)
    tasks = SweepRunner(plan, out, None).unfinished()
    queue = (queued_jobs() or set()) if any(task.job for task in tasks) else set()
    return [task for task in tasks if task.job not in queue]


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise FadevizError(f"{out} is a file. Choose another folder: out=...")
    if (out / "run.json").exists():
        raise FadevizError(f"{out} is the folder of a single run. Choose another folder: out=...")


class SweepRunner:
    """One call of :func:`run_sweep`: the manifest, and the trials' outcomes so far."""

    def __init__(self, plan: SweepPlan, out: Path, on_progress: Callable[[SweepProgress], None] | None) -> None:
        """Read the folder; nothing is written."""
        self.plan, self.out, self.on_progress = plan, out, on_progress
        self.manifest = self._checked_manifest()
        self.earlier = {trial: self._finished_run(trial) for trial in plan.trials}
        self.outcomes: dict[Trial, Outcome] = {}

    def unfinished(self) -> list[Task]:
        """The trials that are not finished yet."""
        return [
            Task(trial, self.plan.config(trial), self.out / trial.name, self.manifest.job(trial))
            for trial, run in self.earlier.items()
            if run is None
        ]

    def run(self, executor: Executor) -> list[Outcome]:
        """Have the executor train the unfinished trials."""
        tasks = self.unfinished()
        for file in self.out.glob(".manifest.*"):
            if left_over(file):  # by a sweep that was killed
                file.unlink(missing_ok=True)
        _refuse_queued_elsewhere(self.out, tasks, executor)
        for trial, run in self.earlier.items():
            if run is not None:
                result = run.info.result
                self.manifest.set(trial, "finished", result=dict(result))
                self._end(trial, "found", result, "")
        self.manifest.update_killed()
        self.manifest.write()  # only after every folder was checked
        if not tasks:
            return [self.outcomes[trial] for trial in self.plan.trials]
        events = executor.train(tasks)
        active: dict[Trial, Event] = {}
        try:
            for batch in events:
                # Noted before it is reported: Ctrl-C can cut the report short, and no job must be submitted twice.
                # Written once per batch: with a thousand trials the file is large, and schedulers report many at once.
                changes = [self._note(event) for event in batch]
                if any(changes):
                    self.manifest.write()
                for event in batch:
                    self._handle(event, active)
        finally:
            events.close()
            # Jobs of a scheduler keep running.
            stopped = [event.task.trial for event in active.values() if not event.task.job]
            for trial in stopped:
                run = self._finished_run(trial)  # if the signal came after its last step
                result = {} if run is None else dict(run.info.result)
                self.manifest.set(trial, "interrupted" if run is None else "finished", result=result)
            if stopped:
                self.manifest.write()
        return [self.outcomes[trial] for trial in self.plan.trials]

    def _note(self, event: Event) -> bool:
        """Put an event into the manifest; returns whether that changes it."""
        end = {"message": event.message, "result": dict(event.result), "traceback": event.traceback}
        ended = event.status in ("finished", "failed")
        return self.manifest.set(event.task.trial, event.status, **(end if ended else {"job": event.task.job}))

    def _handle(self, event: Event, active: dict[Trial, Event]) -> None:
        """Report an event, and keep track of the trials that are queued or running."""
        trial = event.task.trial
        if event.status in ("finished", "failed"):
            active.pop(trial, None)
            self._end(trial, event.status, event.result, event.message, event.progress)
            return
        active[trial] = event
        if event.progress is not None or event.status == "queued":
            progress = event.progress or Progress(0, self.plan.base.steps, math.nan, {})
            self._report(trial, event.status, progress, "", event.task.job)

    def _checked_manifest(self) -> Manifest:
        path = self.out / MANIFEST
        manifest = read_manifest(path)
        if manifest is not None:
            same = {name: getattr(self.plan.base, name) for name in TRIAL_SETTINGS}
            differs = differing_settings({**settings_of(manifest.base), **same}, self.plan.base)
            if differs:
                raise FadevizError(
                    f"{self.out} contains a sweep with other settings: {differs}. "
                    "Leave these settings out to continue it, or choose another folder: out=..."
                )
        manifest = Manifest(path, self.plan.base, {} if manifest is None else manifest.runs)
        for trial in self.plan.trials:
            manifest.enter(trial, self.plan.config(trial))
        return manifest

    def _finished_run(self, trial: Trial) -> StoredRun | None:
        """The trial's run, if it is finished."""
        folder = self.out / trial.name
        if not (folder / "run.json").exists():
            return None
        try:
            run = StoredRun(folder)
        except FadevizError:
            return None  # damaged: its worker reports it, and the other trials continue
        differs = differing_settings(run.info.config, self.plan.config(trial))
        if differs:
            raise FadevizError(
                f"{folder} was recorded with other settings: {differs}. "
                "Use the same settings, move that folder away, or choose another folder: out=..."
            )
        return run if run.info.status == "finished" else None

    def _end(
        self,
        trial: Trial,
        status: str,
        result: Mapping[str, float],
        message: str,
        progress: Progress | None = None,
    ) -> None:
        outcome = "finished" if status == "found" else status
        self.outcomes[trial] = Outcome(trial, self.out / trial.name, outcome, message, result)
        steps = self.plan.base.steps
        step = steps if outcome == "finished" else progress.step if progress else 0
        loss = progress.loss if progress else math.nan
        self._report(trial, status, Progress(step, steps, loss, result), message)

    def _report(self, trial: Trial, status: str, progress: Progress, message: str, job: str = "") -> None:
        if self.on_progress is not None:
            ended, runs = len(self.outcomes), len(self.plan.trials)
            step, steps, loss, metrics = progress
            self.on_progress(SweepProgress(trial.name, status, step, steps, loss, metrics, message, ended, runs, job))


def _refuse_queued_elsewhere(out: Path, tasks: Sequence[Task], executor: Executor) -> None:
    """Raise if another executor than Slurm would train trials that are queued or running there."""
    from .slurm import SlurmArray, queued_jobs

    submitted = {task.job for task in tasks if task.job}
    if not submitted or isinstance(executor, SlurmArray):
        return
    queued = submitted & (queued_jobs() or set())
    if queued:
        arrays = ",".join(sorted({job.partition("_")[0] for job in queued}))
        raise FadevizError(
            f"{len(queued)} runs of {out} are in Slurm's queue (job {arrays}). "
            f"Wait for them with the Slurm executor, or cancel them first: scancel {arrays}"
        )


__all__ = ["Executor", "Outcome", "SweepProgress", "SweepRunner", "run_sweep", "unfinished_trials"]
