"""Conducts a sweep: finds what is missing of a plan, hands it to an executor, and keeps the manifest true."""

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
from .manifest import MANIFEST, OWN, Manifest, read_manifest
from .plan import Member, SweepPlan
from .trial import Event, Task


class Executor(Protocol):
    """Where runs are trained: :class:`LocalProcesses`, or ``SlurmArray`` and ``DaskCluster`` of the modules beside."""

    def train(self, tasks: Sequence[Task]) -> Generator[list[Event], None, None]:
        """Train the runs, and tell of them in batches, until each is ``finished`` or ``failed``.

        What happens when the generator is closed early is the executor's own affair.
        """
        ...


class SweepProgress(NamedTuple):
    """What :func:`run_sweep` reports: a run was found finished, goes on, or came to its end."""

    name: str
    status: str
    """``found`` (finished by an earlier sweep), ``queued``, ``running``, ``finished`` or ``failed``."""
    step: int
    steps: int
    loss: float
    """NaN where no step was done now."""
    metrics: Mapping[str, float]
    """The latest test's figures; empty before the first."""
    message: str
    """Why it failed."""
    ended: int
    """Runs that came to an end so far."""
    runs: int
    """Runs of the plan."""
    job: str = ""
    """What the scheduler calls its job; empty where it has none."""


class Outcome(NamedTuple):
    """How one run of a sweep stands; ``status`` is ``finished`` or ``failed``, and ``message`` says why."""

    member: Member
    folder: Path
    status: str
    message: str
    result: Mapping[str, float]


def run_sweep(
    plan: SweepPlan,
    out: str | Path,
    *,
    jobs: int = 1,
    executor: Executor | None = None,
    report: Callable[[SweepProgress], None] | None = None,
) -> list[Outcome]:
    """Train what is missing of the plan, each run in a folder of its own.

    A run that is finished is left alone, one that stopped is resumed, one that failed is tried again. What fails stops
    no other run. ``manifest.json`` lists all runs the folder has seen: a sweep can be extended by operators and seeds
    at any time.

    Args:
        plan: the runs.
        out: the sweep's folder; each run's is in it.
        jobs: runs at a time, on this machine: short for ``executor=LocalProcesses(jobs)``.
        executor: where to train, if not on this machine.
        report: called when a run goes on or ends, from this process.

    Returns:
        How each run of the plan stands, in its order.

    Raises:
        FadevizError: a folder that is in use or holds something else, or runs with other settings; then nothing was
            trained.
        Interrupted: SIGINT (Ctrl-C), SIGTERM or SIGHUP: a ``KeyboardInterrupt``. By then, processes on this machine
            have finished their steps and written checkpoints, to be resumed next time; jobs on a cluster may keep
            running (see the executor). A second SIGINT, at least two seconds later, does not wait for that.
    """
    out = Path(out)
    executor = LocalProcesses(jobs) if executor is None else executor
    _check_folder(out)
    with stop_signals(), only_writer(out):
        return _Sweep(plan, out, report).run(executor)


def missing(plan: SweepPlan, out: str | Path) -> list[Task]:
    """What :func:`run_sweep` would train now, but for what is in Slurm's queue; nothing is written.

    Raises:
        FadevizError: as there.
    """
    from .slurm import queued

    out = Path(out)
    _check_folder(out)
    tasks = _Sweep(plan, out, None).missing()
    still = (queued() or set()) if any(task.job for task in tasks) else set()
    return [task for task in tasks if task.job not in still]


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise FadevizError(f"{out} is a file. Choose another --out")
    if (out / "run.json").exists():
        raise FadevizError(f"{out} is the folder of one run. Choose another --out")


class _Sweep:
    """One call of :func:`run_sweep`: the manifest, and what was heard of each run."""

    def __init__(self, plan: SweepPlan, out: Path, report: Callable[[SweepProgress], None] | None) -> None:
        """Read what is there; nothing is written."""
        self.plan, self.out, self.report = plan, out, report
        self.manifest = self._agreed_manifest()
        self.found = {member: self._finished(member) for member in plan.members}
        self.outcomes: dict[Member, Outcome] = {}

    def missing(self) -> list[Task]:
        """What is not finished yet."""
        return [
            Task(member, self.plan.config(member), self.out / member.name, self.manifest.job(member))
            for member, before in self.found.items()
            if before is None
        ]

    def run(self, executor: Executor) -> list[Outcome]:
        """Have the executor train what is missing."""
        tasks = self.missing()
        for file in self.out.glob(".manifest.*"):
            if left_over(file):  # of a sweep that was killed
                file.unlink(missing_ok=True)
        _refuse_queued_elsewhere(self.out, tasks, executor)
        for member, before in self.found.items():
            if before is not None:
                result = before.info.result
                self.manifest.set(member, "finished", result=dict(result))
                self._ended(member, "found", result, "")
        self.manifest.note_stopped()
        self.manifest.write()  # not before every folder has been found to fit
        if not tasks:
            return [self.outcomes[member] for member in self.plan.members]
        events = executor.train(tasks)
        at_work: dict[Member, Event] = {}
        try:
            for batch in events:
                # Noted before it is told: what is told can be cut short by Ctrl-C, and a job must not be sent twice.
                # Written once a batch: with a thousand runs the file is large, and a scheduler tells of many at once.
                news = [self._note(event) for event in batch]
                if any(news):
                    self.manifest.write()
                for event in batch:
                    self._hear(event, at_work)
        finally:
            events.close()
            stopped = [
                event for event in at_work.values() if not event.task.job
            ]  # jobs of a scheduler go on by themselves
            for event in stopped:
                member = event.task.member
                done = self._finished(member)  # the signal came after its last step
                result = {} if done is None else dict(done.info.result)
                self.manifest.set(member, "interrupted" if done is None else "finished", result=result)
            if stopped:
                self.manifest.write()
        return [self.outcomes[member] for member in self.plan.members]

    def _note(self, event: Event) -> bool:
        """Put a word of the executor into the manifest; returns whether that changes it."""
        how = {"message": event.message, "result": dict(event.result), "traceback": event.traceback}
        ended = event.status in ("finished", "failed")
        return self.manifest.set(event.task.member, event.status, **(how if ended else {"job": event.task.job}))

    def _hear(self, event: Event, at_work: dict[Member, Event]) -> None:
        """Take a word of the executor, and hand it on."""
        member = event.task.member
        if event.status in ("finished", "failed"):
            at_work.pop(member, None)
            self._ended(member, event.status, event.result, event.message, event.progress)
            return
        at_work[member] = event
        if event.progress is not None or event.status == "queued":
            progress = event.progress or Progress(0, self.plan.base.steps, math.nan, {})
            self._tell(member, event.status, progress, "", event.task.job)

    def _agreed_manifest(self) -> Manifest:
        path = self.out / MANIFEST
        manifest = read_manifest(path)
        if manifest is not None:
            same = {name: getattr(self.plan.base, name) for name in OWN}
            differs = differing_settings({**settings_of(manifest.base), **same}, self.plan.base)
            if differs:
                raise FadevizError(
                    f"{self.out} holds a sweep with other settings: {differs}. "
                    "Leave these options out to go on with it, or choose another --out"
                )
        manifest = Manifest(path, self.plan.base, {} if manifest is None else manifest.runs)
        for member in self.plan.members:
            manifest.enter(member, self.plan.config(member))
        return manifest

    def _finished(self, member: Member) -> StoredRun | None:
        """The run, if it is done."""
        folder = self.out / member.name
        if not (folder / "run.json").exists():
            return None
        try:
            before = StoredRun(folder)
        except FadevizError:
            return None  # damaged: its worker says so, and the others go on
        differs = differing_settings(before.info.config, self.plan.config(member))
        if differs:
            raise FadevizError(
                f"{folder} was recorded with other settings: {differs}. "
                "Use the same settings, move that folder away, or choose another --out"
            )
        return before if before.info.status == "finished" else None

    def _ended(
        self,
        member: Member,
        status: str,
        result: Mapping[str, float],
        message: str,
        progress: Progress | None = None,
    ) -> None:
        how = "finished" if status == "found" else status
        self.outcomes[member] = Outcome(member, self.out / member.name, how, message, result)
        steps = self.plan.base.steps
        step = steps if how == "finished" else progress.step if progress else 0
        loss = progress.loss if progress else math.nan
        self._tell(member, status, Progress(step, steps, loss, result), message)

    def _tell(self, member: Member, status: str, progress: Progress, message: str, job: str = "") -> None:
        if self.report is not None:
            ended, runs = len(self.outcomes), len(self.plan.members)
            step, steps, loss, metrics = progress
            self.report(SweepProgress(member.name, status, step, steps, loss, metrics, message, ended, runs, job))


def _refuse_queued_elsewhere(out: Path, tasks: Sequence[Task], executor: Executor) -> None:
    """Raise where another executor is to train what waits in Slurm's queue, or runs there."""
    from .slurm import SlurmArray, queued

    sent = {task.job for task in tasks if task.job}
    if not sent or isinstance(executor, SlurmArray):
        return
    still = sent & (queued() or set())
    if still:
        numbers = ",".join(sorted({job.partition("_")[0] for job in still}))
        raise FadevizError(
            f"{len(still)} runs of {out} are in Slurm's queue (job {numbers}). "
            f"Wait for them with --executor slurm, or take them out first: scancel {numbers}"
        )


__all__ = ["Executor", "Outcome", "SweepProgress", "missing", "run_sweep"]
