"""One run of a sweep, trained in its folder by whatever process was given it, and what can be said of it meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

from ..errors import FadevizError
from ..experiment import Progress, RunConfig, train
from ..run import open_run
from ..storage.files import METRICS_LIMIT, left_over, open_regular
from ..storage.metrics import headline
from ..training.signals import Interrupted
from .plan import Member

_NOTHING: Mapping[str, float] = MappingProxyType({})


class Task(NamedTuple):
    """A run to train: its settings, its folder, and what a scheduler calls the job that was sent for it, if one was."""

    member: Member
    config: RunConfig
    folder: Path
    job: str = ""


class Event(NamedTuple):
    """What an executor has to say of a run."""

    task: Task
    """With its job, where a scheduler has one for it."""
    status: str
    """``queued``, ``running``, ``finished`` or ``failed``."""
    message: str = ""
    """Why it failed."""
    progress: Progress | None = None
    result: Mapping[str, float] = _NOTHING
    traceback: str = ""


class End(NamedTuple):
    """How the training of a run ended: ``finished``, ``failed`` or ``interrupted``. Plain values, to be sent."""

    status: str
    message: str
    result: dict[str, float]
    traceback: str


def train_member(config: RunConfig, folder: Path, report: Callable[[Progress], None]) -> End:
    """Begin a run, or go on with it; a finished one is left alone. Whatever goes wrong is told, not raised.

    ``report`` is called after every step, and stops the run by raising KeyboardInterrupt, as a signal does.
    """
    try:
        finished = train(config, folder, resume=begun(folder), report=report)
    except KeyboardInterrupt as error:
        if not (isinstance(error, Interrupted) and error.finished):
            return End("interrupted", "", {}, "")
        finished = open_run(folder)  # the signal came after its last step
    except FadevizError as error:
        return End("failed", str(error), {}, "")
    except Exception as error:  # a mistake of ours, or of torch: the other runs go on
        first = (str(error).splitlines() or [""])[0]
        return End("failed", f"{type(error).__name__}: {first}", {}, traceback.format_exc())
    return End("finished", "", dict(finished.info.result), "")


def begun(folder: str | Path) -> bool:
    """Whether a run was begun in ``folder``; what is left of one killed before its first file is removed.

    Anything else stays where it is: :func:`fadeviz.experiment.train` refuses a folder that holds something foreign.
    """
    folder = Path(folder)
    if os.path.lexists(folder / "run.json"):
        return True
    if folder.is_symlink():  # nothing is removed behind a symlink to files of unknown origin
        return False
    for file in folder.glob(".*.partial*"):
        # A node that failed cannot be asked: a scheduler begins a run anew when it is gone.
        if left_over(file, elsewhere=True):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (folder / "snapshots").rmdir()
    return False


@contextlib.contextmanager
def as_in_a_fresh_process() -> Iterator[None]:
    """Leave torch's random state and threads as they were: a run's bytes do not depend on the one before it."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def anywhere(config: RunConfig) -> RunConfig:
    """The same settings for a process that may have another working directory."""
    data = str(Path(config.data_dir).resolve()) if config.data_dir else ""
    weights = str(Path(config.weights).resolve()) if Path(config.weights).is_file() else config.weights
    return dataclasses.replace(config, data_dir=data, weights=weights)


class Follower:
    """How far a run is that another machine trains, by the tail of its metrics.jsonl."""

    _TAIL = 16384
    """Bytes read of the end: some hundred steps, so that the latest test is usually among them."""

    def __init__(self, task: Task) -> None:
        """Begin with what stands there now: only what comes after it is news."""
        self.path, self.steps = task.folder / "metrics.jsonl", task.config.steps
        self.metrics: dict[str, float] = {}
        self._seen = self._stamp()

    def news(self) -> Progress | None:
        """The latest step; None where nothing was added since the last call."""
        stamp = self._stamp()
        if stamp == self._seen or stamp is None:
            return None
        self._seen = stamp
        latest: dict[str, float] = {}
        for line in self._lines(stamp[1]):
            latest = line
            if headline(line) is not None:
                self.metrics = {key: value for key, value in line.items() if key not in ("step", "loss", "lr")}
        if "step" not in latest:
            return None
        return Progress(int(latest["step"]), self.steps, float(latest.get("loss", float("nan"))), dict(self.metrics))

    def _stamp(self) -> tuple[int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size

    def _lines(self, size: int) -> list[dict[str, float]]:
        lines = []
        try:
            with open_regular(self.path, METRICS_LIMIT) as file:
                file.seek(max(0, size - self._TAIL), os.SEEK_SET)
                told = file.read(self._TAIL)
        except OSError:
            return []
        for text in told.splitlines():
            with contextlib.suppress(ValueError):  # the first may be cut by us, the last by its writer
                line = json.loads(text)
                if isinstance(line, dict):
                    lines.append(line)
        return lines


def watch(
    tasks: Sequence[Task], ends: Callable[[Sequence[Task]], Mapping[Member, End]], pause: float
) -> Generator[list[Event], None, None]:
    """Tell of runs that other machines train, until each has ended.

    Args:
        tasks: the runs.
        ends: which of the runs it is given have ended, and how; asked once a round.
        pause: seconds between two rounds.
    """
    followers = {task.member: Follower(task) for task in tasks}
    latest: dict[Member, Progress] = {}
    unseen: dict[Member, float] = {}
    pending = list(tasks)
    while pending:
        time.sleep(pause)
        over = ends(pending)
        told, still = [], []
        for task in pending:
            progress, end = followers[task.member].news(), over.get(task.member)
            if progress is not None:
                latest[task.member] = progress
            if end is not None and end.status == "finished" and not (task.folder / "run.json").exists():
                # The word was faster than the shared disk; or there is none.
                since = unseen.setdefault(task.member, time.monotonic())
                end = None if time.monotonic() - since < SLOW_DISK else End("failed", _NOT_SHARED, {}, "")
            if end is None:
                still.append(task)
                told += [Event(task, "running", progress=progress)] if progress is not None else []
                continue
            status = "finished" if end.status == "finished" else "failed"
            message = end.message or ("it was told to stop" if end.status == "interrupted" else "")
            told.append(Event(task, status, message, latest.get(task.member), end.result, end.traceback))
        pending = still
        if told:
            yield told


SLOW_DISK = 60.0
"""Seconds after which a file is seen that another machine wrote: network file systems remember what was not there."""

_NOT_SHARED = (
    "its worker says that it finished, but its folder is not here. Choose an --out that all machines see under one path"
)


__all__ = [
    "SLOW_DISK",
    "End",
    "Event",
    "Follower",
    "Task",
    "anywhere",
    "as_in_a_fresh_process",
    "begun",
    "train_member",
    "watch",
]
