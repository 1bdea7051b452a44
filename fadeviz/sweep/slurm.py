"""Trials as an array of Slurm jobs: submitted and followed with submitit, or written as a script for sbatch."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FadevizError, MissingExtra, unknown_name
from ..experiment import Progress, RunConfig
from ..storage.files import read_regular, write_whole
from ..storage.info import RunInfo
from ..storage.stored_run import StoredRun
from .plan import Trial
from .trial import SLOW_DISK, Event, Task, TrialEnd, follow_trials, train_trial, with_absolute_paths

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_SUBMITIT_OPTIONS = (
    "account", "comment", "constraint", "cpus_per_gpu", "cpus_per_task", "dependency", "exclude", "exclusive",
    "gpus_per_node", "gpus_per_task", "gres", "job_name", "mail_type", "mail_user", "mem", "mem_per_cpu",
    "mem_per_gpu", "nodelist", "partition", "qos", "time", "wckey",
)  # fmt: skip

OPTIONS = tuple(sorted([*_SUBMITIT_OPTIONS, "begin", "gpus", "licenses", "nice", "reservation", "tmp"]))
"""The accepted options of sbatch, by their long names."""

MINUTES = 60
"""Default time limit of a job; a run that takes longer continues in the next one."""

WARNING = 90
"""Seconds before the time limit at which Slurm signals a job."""

_ARRAY = 1000
"""Jobs in one array: Slurm's default limit."""

_KILL_WAIT = 120.0
"""Seconds that Slurm has to end or restart a job after its SIGTERM."""

_TRIES = 5
"""How many times in a row a job may be stopped before it has reached a new checkpoint."""


class SlurmArray:
    """Trains each trial as a job of a Slurm array; needs submitit and Slurm's commands.

    A job that is preempted, requeued or out of time finishes its step, writes a checkpoint and resumes from it. A job
    that fails does not stop the others.

    The jobs do not depend on the process that submitted them: when it ends, by Ctrl-C or otherwise, they stay in the
    queue, and the same sweep started again waits for them instead of submitting others. The logs are in the folder
    ``slurm`` of the sweep.

    Args:
        options: options of sbatch by their long names, with underscores (see :data:`OPTIONS`).
        jobs: the number of jobs at a time; None leaves it to Slurm.
        pause: seconds between two checks of the queue.
        patience: seconds after which a job that left the queue without reporting a result counts as failed.
        cluster: ``slurm``; or ``local``, which runs the same jobs as processes of this machine, for a test.

    Raises:
        FadevizError: if an option or its value is invalid, or if ``jobs`` is less than 1.
    """

    def __init__(
        self,
        options: Mapping[str, str] | None = None,
        jobs: int | None = None,
        *,
        pause: float = 5.0,
        patience: float = SLOW_DISK,
        cluster: str = "slurm",
    ) -> None:
        """Nothing is submitted before :meth:`train`."""
        self.options = {"time": str(MINUTES), **(options or {})}
        check_options(self.options)
        if jobs is not None and jobs < 1:
            raise FadevizError(f"jobs is {jobs}; it must be 1 or more")
        self.jobs, self.pause, self.patience, self.cluster = jobs, pause, patience, cluster
        self._submitted: list[Any] = []
        self._gone_since: dict[Trial, float] = {}

    def train(self, tasks: Sequence[Task]) -> Generator[list[Event], None, None]:
        """Submit the trials that are not queued yet, and follow all; closing the generator leaves the jobs alone."""
        if self.cluster == "slurm" and not all(map(shutil.which, ("sbatch", "srun", "squeue"))):
            raise FadevizError(
                "there is no Slurm here (sbatch, srun and squeue are not all on the PATH). Start the sweep on a "
                "machine that has it, or write a script to run there: fadeviz sweep --executor slurm --dry-run ..."
            )
        queue = self._queue() if any(task.job for task in tasks) else set()
        if queue is None:
            raise FadevizError("Slurm does not answer (squeue failed), and runs of this sweep may be queued. Try later")
        queued = [task for task in tasks if task.job in queue]
        if queued:
            yield [Event(task, "queued") for task in queued]
        new = [task for task in tasks if task.job not in queue]
        for first in range(0, len(new), _ARRAY):
            submitted = self._submit(new[first : first + _ARRAY])
            queued += submitted
            yield [Event(task, "queued") for task in submitted]
        yield from follow_trials(queued, self._ended, self.pause)

    def _submit(self, tasks: Sequence[Task]) -> list[Task]:
        try:
            import submitit
            from submitit.core.utils import FailedJobError, FailedSubmissionError
        except ImportError as error:
            raise MissingExtra(
                "slurm",
                "submitting Slurm jobs needs submitit, which is not installed; "
                "fadeviz sweep --executor slurm --dry-run ... writes a script instead",
            ) from error
        executor = submitit.AutoExecutor(
            _logs(tasks[0].folder), cluster=self.cluster, **{f"{self.cluster}_max_num_timeout": 1000}
        )
        executor.update_parameters(stderr_to_stdout=True, **self._parameters())
        try:
            with executor.batch():
                jobs = [
                    executor.submit(_Job(with_absolute_paths(task.config), task.folder.resolve())) for task in tasks
                ]
        except (FailedJobError, FailedSubmissionError, OSError, subprocess.SubprocessError) as error:
            raise FadevizError(f"sbatch refused the jobs: {_last_line(error)}. Check the Slurm options") from error
        self._submitted += jobs
        for task, job in zip(tasks, jobs, strict=True):  # Slurm reuses ids: an older job's report is not this one's
            _end_file(task.folder, str(job.job_id)).unlink(missing_ok=True)
        return [task._replace(job=str(job.job_id)) for task, job in zip(tasks, jobs, strict=True)]

    def _parameters(self) -> dict[str, Any]:
        minutes = _minutes(self.options["time"])
        if self.cluster != "slurm":
            return {"timeout_min": minutes}
        # By Slurm's defaults, srun does not inherit this option from sbatch.
        cpus = self.options.get("cpus_per_task")
        own = {"job_name": "fadeviz", **self.options, "time": minutes}
        more = {
            "array_parallelism": self.jobs or _ARRAY,
            "signal_delay_s": WARNING,
            "additional_parameters": {key: value for key, value in own.items() if key not in _SUBMITIT_OPTIONS},
            "srun_args": [f"--cpus-per-task={cpus}"] if cpus else None,
        }
        named = {key: True if value == "" else value for key, value in own.items() if key in _SUBMITIT_OPTIONS}
        return {f"slurm_{key}": value for key, value in {**named, **more}.items()}

    def _queue(self) -> set[str] | None:
        if self.cluster != "slurm":
            return {job.job_id for job in self._submitted if not job.done()}
        return queued_jobs()

    def _ended(self, tasks: Sequence[Task]) -> dict[Trial, TrialEnd]:
        """The tasks that have ended: those that reported a result, and those that left the queue without one."""
        queue, now, ended = self._queue(), time.monotonic(), {}
        for task in tasks:
            end = _reported_end(task)
            if end is None and queue is not None and task.job not in queue:
                if now - self._gone_since.setdefault(task.trial, now) >= self.patience:
                    end = _end_without_report(task)
            else:
                self._gone_since.pop(task.trial, None)
            if end is not None:
                ended[task.trial] = end
        return ended


class _Job:
    """The function of a job; submitit pickles it, and calls it on the machine that Slurm chooses."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config, self.folder, self.fruitless_stops = config, folder, 0

    def __call__(self) -> None:
        from submitit import JobEnvironment

        end = self._train()
        if end.status == "interrupted":
            # By SIGTERM. Whether the job is cancelled or requeued is up to Slurm, and it ends this process: a report
            # would be taken for the end of the trial, and an exit for that of a preempted job.
            time.sleep(_KILL_WAIT)
            sys.exit(128 + signal.SIGTERM)
        # submitit pickles what is returned; this file is read by the process that runs the sweep.
        path = _end_file(self.folder, JobEnvironment().job_id)
        write_whole(path, json.dumps(end._asdict()).encode(), named=False)

    def _train(self) -> TrialEnd:
        caught: list[int] = []
        submitit_handlers: dict[int, Any] = {}
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            if callable(signal.getsignal(number)):
                submitit_handlers[number] = signal.getsignal(number)
                signal.signal(number, lambda number, frame: caught.append(number))
        before = self._checkpoint_time()

        def stop_if_signalled(progress: Progress) -> None:
            # Raised here and not in the handler: within a step it could be swallowed, and training would continue.
            if caught:
                raise KeyboardInterrupt

        end = train_trial(self.config, self.folder, stop_if_signalled)
        for caught_number, handler in submitit_handlers.items():
            signal.signal(caught_number, handler)
        if not (caught and end.status == "interrupted"):
            return end
        self.fruitless_stops = self.fruitless_stops + 1 if self._checkpoint_time() == before else 0
        if self.fruitless_stops >= _TRIES:
            message = (
                f"it was stopped {_TRIES} times before it reached a new checkpoint. Give a job more time (the Slurm "
                "option time), or save more often (checkpoint_every=...)"
            )
            return TrialEnd("failed", message, {}, "")
        submitit_handlers[caught[0]](caught[0], None)  # calls checkpoint(), requeues the job, and ends this process
        return end

    def checkpoint(self) -> DelayedSubmission:
        """The job that submitit runs when this one is restarted: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _checkpoint_time(self) -> int:
        try:
            return (self.folder / "checkpoints" / "last.pt").stat().st_mtime_ns
        except OSError:
            return 0


def queued_jobs() -> set[str] | None:
    """The ids of this user's pending and running jobs (``123_4`` in an array); None if Slurm does not answer."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(answer.stdout.split())


def parse_options(texts: Iterable[str]) -> dict[str, str]:
    """Parse options as given on the command line: ``["partition=gpu,time=120", "exclusive"]``.

    Commas separate options only where a ``name=`` follows, so that ``nodelist=a,b`` stays one.

    Raises:
        FadevizError: if an option or its value is invalid.

    Example:
        >>> parse_options(["partition=gpu,gpus-per-node=1"])
        {'partition': 'gpu', 'gpus_per_node': '1'}
    """
    options = {}
    for text in texts:
        for part in re.split(r",(?=\s*(?:[a-z][a-z_-]*\s*=|exclusive\s*(?:,|$)))", text):
            name, _, value = part.partition("=")
            options[name.strip().replace("-", "_")] = value.strip()
    check_options(options)
    return options


def check_options(options: Mapping[str, str]) -> None:
    """Check options of sbatch.

    Raises:
        FadevizError: if an option is not one of :data:`OPTIONS`, if it has no value, or if its value is not a line of
            text.
    """
    for name, value in options.items():
        if name not in OPTIONS:
            raise unknown_name("Slurm option", name, OPTIONS)
        if value == "" and name != "exclusive":
            raise FadevizError(f"the Slurm option {name} needs a value: {name}=VALUE")
        if not value.isprintable():
            raise FadevizError(f"the Slurm option {name} is {value!r}; it must be a single line of text")
    if "time" in options:
        _minutes(options["time"])


def _minutes(text: str) -> int:
    """Slurm's time in minutes, rounded up: ``120``, ``2:00:00``, ``1-12``."""
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isascii() and part.isdigit() for part in [*parts, days or "0"]) or len(parts) > 3:
        raise FadevizError(f"the Slurm option time is {text!r}; write minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS")
    numbers = [int(part) for part in parts]
    # Without days, one number is minutes and two are minutes:seconds; with them, the first is hours.
    hours, minutes, seconds = (
        [*numbers, 0, 0][:3] if dash else {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    )
    total = (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)
    if total < 1:
        raise FadevizError(f"the Slurm option time is {text!r}; it must be at least a minute")
    return total


def batch_script(commands: Sequence[str], options: Mapping[str, str], jobs: int | None = None) -> str:
    """A script for sbatch that runs each of the shell commands as a task of one array.

    A task that reaches its time limit is requeued; its command must be able to resume.

    Args:
        commands: shell commands, one line each.
        options: the options of :class:`SlurmArray`.
        jobs: the number of tasks at a time; None leaves it to Slurm.

    Raises:
        FadevizError: if an option or its value is invalid.
    """
    check_options(options)
    parallel = "" if jobs is None else f"%{jobs}"
    settings = {
        "job_name": "fadeviz",
        "array": f"0-{len(commands) - 1}{parallel}",
        "time": str(MINUTES),
        "open_mode": "append",
        "requeue": "",
        "signal": f"B:USR1@{WARNING}",
        **options,
    }
    flags = [f"#SBATCH --{k.replace('_', '-')}" + (f"={shlex.quote(v)}" if v else "") for k, v in settings.items()]
    cases = [f"{number}) run=({command}) ;;" for number, command in enumerate(commands)]
    return "\n".join(
        [
            "#!/bin/bash",
            *flags,
            "",
            'case "$SLURM_ARRAY_TASK_ID" in',
            *cases,
            "*) echo \"there is no run $SLURM_ARRAY_TASK_ID\" >&2; exit 2 ;;",
            "esac",
            "",
            f"# {WARNING} seconds before the time limit: stop, and resume from the last checkpoint when requeued.",
            "trap 'kill \"$pid\"; wait \"$pid\"; scontrol requeue \"$SLURM_JOB_ID\"; exit' USR1",
            "# Cancelled, requeued or preempted: when this script exits, a run that has not saved yet is killed.",
            "trap 'kill \"$pid\"; wait \"$pid\"; exit' TERM",
            '"${run[@]}" &',
            "pid=$!",
            'wait "$pid"',
            "",
        ]
    )  # fmt: skip


def _logs(folder: Path) -> Path:
    return folder.parent.resolve() / "slurm"


def _end_file(folder: Path, job: str) -> Path:
    return _logs(folder) / f"{job}_end.json"


def _reported_end(task: Task) -> TrialEnd | None:
    """The end that a job reported; None if there is no report yet."""
    try:
        report = json.loads(read_regular(_end_file(task.folder, task.job)))
        end = TrialEnd(str(report["status"]), str(report["message"]), dict(report["result"]), str(report["traceback"]))
    except FileNotFoundError:
        if (_logs(task.folder) / f"{task.job}_0_result.pkl").exists():  # written by submitit if it fails itself
            return TrialEnd("failed", f"its job failed before the training. Its log: {_log(task)}", {}, "")
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return TrialEnd("failed", f"the report of job {task.job} is damaged ({error}). Its log: {_log(task)}", {}, "")
    return end


def _end_without_report(task: Task) -> TrialEnd:
    try:
        info = StoredRun(task.folder).info
    except FadevizError:
        info = RunInfo()
    if info.status == "finished":
        return TrialEnd("finished", "", dict(info.result), "")
    message = f"its job {task.job} exited without reporting a result: cancelled, out of memory? See {_log(task)}"
    return TrialEnd("failed", message, {}, "")


def _log(task: Task) -> Path:
    return _logs(task.folder) / f"{task.job}_0_log.out"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


__all__ = ["MINUTES", "OPTIONS", "SlurmArray", "batch_script", "check_options", "parse_options", "queued_jobs"]
