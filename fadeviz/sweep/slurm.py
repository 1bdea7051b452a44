"""Runs as an array of Slurm jobs: sent and followed with submitit, or written as a script for sbatch."""

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
from .plan import Member
from .trial import SLOW_DISK, End, Event, Task, anywhere, train_member, watch

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_SUBMITIT_HAS = (
    "account", "comment", "constraint", "cpus_per_gpu", "cpus_per_task", "dependency", "exclude", "exclusive",
    "gpus_per_node", "gpus_per_task", "gres", "job_name", "mail_type", "mail_user", "mem", "mem_per_cpu",
    "mem_per_gpu", "nodelist", "partition", "qos", "time", "wckey",
)  # fmt: skip

OPTIONS = tuple(sorted([*_SUBMITIT_HAS, "begin", "gpus", "licenses", "nice", "reservation", "tmp"]))
"""What ``--slurm`` may set: options of sbatch, by their long names."""

MINUTES = 60
"""Time of a job where none is given: one that is longer goes on in the next."""

WARNING = 90
"""Seconds before its end at which Slurm tells a job so."""

_ARRAY = 1000
"""Jobs in one array: what a cluster allows if nothing else was configured."""

_KILL_WAIT = 120.0
"""Seconds that Slurm has to end a job after its SIGTERM, or to restart it."""

_TRIES = 5
"""Times a job may be stopped in a row before it has reached a new checkpoint."""


class SlurmArray:
    """Trains as an array of Slurm jobs, a job a run; needs submitit and the commands of Slurm.

    A job that is preempted, requeued or out of time finishes its step, writes a checkpoint and resumes from it. A job
    that fails does not stop the others.
    The jobs do not need the process that sent them: when it ends, by Ctrl-C or otherwise, they stay in the queue, and
    the same sweep given again waits for them instead of sending others. The logs are in the folder ``slurm`` of the
    sweep.

    Args:
        options: options of sbatch by their long names, with underscores (see :data:`OPTIONS`).
        jobs: jobs at a time; None for as many as Slurm starts.
        pause: seconds between two looks at the queue.
        patience: seconds after which a job that left the queue without reporting a result is given up.
        cluster: ``slurm``; or ``local``, which sends the same jobs to processes of this machine, for a trial.

    Raises:
        FadevizError: an option or a value that there is not.
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
        """Nothing is sent before :meth:`train`."""
        self.options = {"time": str(MINUTES), **(options or {})}
        check_options(self.options)
        if jobs is not None and jobs < 1:
            raise FadevizError(f"jobs is {jobs}; it must be 1 or more")
        self.jobs, self.pause, self.patience, self.cluster = jobs, pause, patience, cluster
        self._sent: list[Any] = []
        self._gone: dict[Member, float] = {}

    def train(self, tasks: Sequence[Task]) -> Generator[list[Event], None, None]:
        """Send what is not in the queue yet, and follow all; closing the generator leaves the jobs alone."""
        if self.cluster == "slurm" and not all(map(shutil.which, ("sbatch", "srun", "squeue"))):
            raise FadevizError(
                "there is no Slurm here (sbatch, srun and squeue are not all on the PATH). Give the command on a "
                "machine that has it, or write a script to take there: --dry-run"
            )
        queue = self._queue() if any(task.job for task in tasks) else set()
        if queue is None:
            raise FadevizError("Slurm does not answer (squeue failed), and runs of this sweep may be queued. Try later")
        known = [task for task in tasks if task.job in queue]
        if known:
            yield [Event(task, "queued") for task in known]
        new = [task for task in tasks if task.job not in queue]
        for first in range(0, len(new), _ARRAY):
            sent = self._send(new[first : first + _ARRAY])
            known += sent
            yield [Event(task, "queued") for task in sent]
        yield from watch(known, self._ends, self.pause)

    def _send(self, tasks: Sequence[Task]) -> list[Task]:
        try:
            import submitit
            from submitit.core.utils import FailedJobError, FailedSubmissionError
        except ImportError as error:
            raise MissingExtra(
                "slurm", "sending Slurm jobs needs submitit, which is not installed; --dry-run writes a script instead"
            ) from error
        executor = submitit.AutoExecutor(
            _logs(tasks[0].folder), cluster=self.cluster, **{f"{self.cluster}_max_num_timeout": 1000}
        )
        executor.update_parameters(stderr_to_stdout=True, **self._parameters())
        try:
            with executor.batch():
                jobs = [executor.submit(_Job(anywhere(task.config), task.folder.resolve())) for task in tasks]
        except (FailedJobError, FailedSubmissionError, OSError, subprocess.SubprocessError) as error:
            raise FadevizError(f"sbatch refused the jobs: {_last_line(error)}. See the options --slurm") from error
        self._sent += jobs
        for task, job in zip(tasks, jobs, strict=True):  # numbers come back: an older job's word is not this one's
            _last_word(task.folder, str(job.job_id)).unlink(missing_ok=True)
        return [task._replace(job=str(job.job_id)) for task, job in zip(tasks, jobs, strict=True)]

    def _parameters(self) -> dict[str, Any]:
        minutes = _minutes(self.options["time"])
        if self.cluster != "slurm":
            return {"timeout_min": minutes}
        # As Slurm's own defaults have it, srun does not ask for what sbatch was given.
        cpus = self.options.get("cpus_per_task")
        own = {"job_name": "fadeviz", **self.options, "time": minutes}
        more = {
            "array_parallelism": self.jobs or _ARRAY,
            "signal_delay_s": WARNING,
            "additional_parameters": {key: value for key, value in own.items() if key not in _SUBMITIT_HAS},
            "srun_args": [f"--cpus-per-task={cpus}"] if cpus else None,
        }
        named = {key: True if value == "" else value for key, value in own.items() if key in _SUBMITIT_HAS}
        return {f"slurm_{key}": value for key, value in {**named, **more}.items()}

    def _queue(self) -> set[str] | None:
        if self.cluster != "slurm":
            return {job.job_id for job in self._sent if not job.done()}
        return queued()

    def _ends(self, tasks: Sequence[Task]) -> dict[Member, End]:
        """How those ended that have: by what they left, or because they left the queue and nothing else."""
        queue, now, ends = self._queue(), time.monotonic(), {}
        for task in tasks:
            end = _left(task)
            if end is None and queue is not None and task.job not in queue:
                if now - self._gone.setdefault(task.member, now) >= self.patience:
                    end = _without_a_word(task)
            else:
                self._gone.pop(task.member, None)
            if end is not None:
                ends[task.member] = end
        return ends


class _Job:
    """What a job of the array does; submitit writes it to a file, and runs it on the machine that Slurm chooses."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config, self.folder, self.in_vain = config, folder, 0

    def __call__(self) -> None:
        from submitit import JobEnvironment

        end = self._train()
        if end.status == "interrupted":
            # By SIGTERM. Only Slurm knows whether the job is cancelled or requeued, and it ends this process: a report
            # would be read as the end of the run, and exiting here as that of a preempted job.
            time.sleep(_KILL_WAIT)
            sys.exit(128 + signal.SIGTERM)
        # submitit keeps what is returned in a pickle; this is read by whoever goes on with the sweep.
        word = _last_word(self.folder, JobEnvironment().job_id)
        write_whole(word, json.dumps(end._asdict()).encode(), named=False)

    def _train(self) -> End:
        caught: list[int] = []
        theirs: dict[int, Any] = {}
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            if callable(signal.getsignal(number)):
                theirs[number] = signal.getsignal(number)
                signal.signal(number, lambda which, frame: caught.append(which))
        before = self._saved()

        def tell(progress: Progress) -> None:
            # Here and not in the handler: what is raised amid a step can be lost, and the run would go on.
            if caught:
                raise KeyboardInterrupt

        end = train_member(self.config, self.folder, tell)
        for which, handler in theirs.items():
            signal.signal(which, handler)
        if not (caught and end.status == "interrupted"):
            return end
        self.in_vain = self.in_vain + 1 if self._saved() == before else 0
        if self.in_vain >= _TRIES:
            message = (
                f"it was stopped {_TRIES} times before it reached a new checkpoint. Give a job more time (--slurm "
                "time=MINUTES), or save more often (--checkpoint-every)"
            )
            return End("failed", message, {}, "")
        theirs[caught[0]](caught[0], None)  # submitit's: asks checkpoint(), requeues the job, and ends this process
        return end

    def checkpoint(self) -> DelayedSubmission:
        """What submitit is to run when the job is started again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _saved(self) -> int:
        try:
            return (self.folder / "checkpoints" / "last.pt").stat().st_mtime_ns
        except OSError:
            return 0


def queued() -> set[str] | None:
    """The numbers of this user's jobs that wait or run (``123_4`` in an array); None where Slurm does not answer."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(done.stdout.split())


def parse_options(texts: Iterable[str]) -> dict[str, str]:
    """Read ``--slurm``: ``["partition=gpu,time=120", "exclusive"]``.

    Commas separate settings where a ``name=`` follows, so that ``nodelist=a,b`` stays one.

    Raises:
        FadevizError: an option or a value that there is not.

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
    """Raise for an option of sbatch that is not one of :data:`OPTIONS`, or has no value.

    Raises:
        FadevizError: that.
    """
    for name, value in options.items():
        if name not in OPTIONS:
            raise unknown_name("option of sbatch for --slurm", name, OPTIONS)
        if value == "" and name != "exclusive":
            raise FadevizError(f"--slurm {name} needs a value: --slurm {name}=VALUE")
        if not value.isprintable():
            raise FadevizError(f"--slurm {name} is {value!r}; a value is one line of text")
    if "time" in options:
        _minutes(options["time"])


def _minutes(text: str) -> int:
    """Slurm's time in minutes, rounded up: ``120``, ``2:00:00``, ``1-12``."""
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isascii() and part.isdigit() for part in [*parts, days or "0"]) or len(parts) > 3:
        raise FadevizError(f"--slurm time is {text!r}; write minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS")
    numbers = [int(part) for part in parts]
    # Without days, one number is minutes and two are minutes:seconds; with them, the first is hours.
    hours, minutes, seconds = (
        [*numbers, 0, 0][:3] if dash else {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    )
    total = (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)
    if total < 1:
        raise FadevizError(f"--slurm time is {text!r}; a job needs a minute or more")
    return total


def batch_script(commands: Sequence[str], options: Mapping[str, str], jobs: int | None = None) -> str:
    """A script for sbatch that runs each of the shell commands as a task of one array.

    A task that is out of time is put back into the queue; its command must know how to go on.

    Args:
        commands: one line of shell each.
        options: as for :class:`SlurmArray`.
        jobs: tasks at a time; None for as many as Slurm starts.

    Raises:
        FadevizError: an option or a value that there is not.
    """
    check_options(options)
    at_once = "" if jobs is None else f"%{jobs}"
    settings = {
        "job_name": "fadeviz",
        "array": f"0-{len(commands) - 1}{at_once}",
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


def _last_word(folder: Path, job: str) -> Path:
    return _logs(folder) / f"{job}_end.json"


def _left(task: Task) -> End | None:
    """What a job left when it ended; None where it has not, or left nothing."""
    try:
        told = json.loads(read_regular(_last_word(task.folder, task.job)))
        end = End(str(told["status"]), str(told["message"]), dict(told["result"]), str(told["traceback"]))
    except FileNotFoundError:
        if (_logs(task.folder) / f"{task.job}_0_result.pkl").exists():  # submitit's: it could not do what it was to do
            return End("failed", f"its job failed before the training. Its log: {_log(task)}", {}, "")
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return End("failed", f"the last word of job {task.job} is damaged ({error}). Its log: {_log(task)}", {}, "")
    return end


def _without_a_word(task: Task) -> End:
    try:
        info = StoredRun(task.folder).info
    except FadevizError:
        info = RunInfo()
    if info.status == "finished":
        return End("finished", "", dict(info.result), "")
    message = f"its job {task.job} exited without reporting a result: cancelled, out of memory? See {_log(task)}"
    return End("failed", message, {}, "")


def _log(task: Task) -> Path:
    return _logs(task.folder) / f"{task.job}_0_log.out"


def _last_line(what: object) -> str:
    lines = [line.strip() for line in str(what).splitlines() if line.strip()]
    return lines[-1] if lines else type(what).__name__


__all__ = ["MINUTES", "OPTIONS", "SlurmArray", "batch_script", "check_options", "parse_options", "queued"]
