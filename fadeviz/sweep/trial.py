"""One trial of a sweep: the training in its folder, and its progress as seen from another process."""

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
from ..storage.metrics import CLASS_KEY, headline
from ..training.signals import Interrupted
from .plan import Trial

_NO_METRICS: Mapping[str, float] = MappingProxyType({})


class Task(NamedTuple):
    """A trial to train: its settings, its folder, and the scheduler's id of the job submitted for it, if any."""

    trial: Trial
    config: RunConfig
    folder: Path
    job: str = ""


class Event(NamedTuple):
    """A change in the status or progress of a trial, reported by an executor."""

    task: Task
    """The task, with its job if a scheduler has one for it."""
    status: str
    """``queued``, ``running``, ``finished`` or ``failed``."""
    message: str = ""
    """Why it failed."""
    progress: Progress | None = None
    result: Mapping[str, float] = _NO_METRICS
    traceback: str = ""


class TrialEnd(NamedTuple):
    """How a run ended: ``finished``, ``failed`` or ``interrupted``. Plain values, which processes can exchange."""

    status: str
    message: str
    result: dict[str, float]
    traceback: str


def train_trial(config: RunConfig, folder: Path, on_progress: Callable[[Progress], None]) -> TrialEnd:
    """Start or resume a run; a finished one is left alone. Errors are returned, not raised.

    ``on_progress`` is called after every step. It can stop the run, as a signal does, by raising KeyboardInterrupt.
    """
    try:
        finished = train(config, folder, resume=has_begun(folder), on_progress=on_progress)
    except KeyboardInterrupt as error:
        if not (isinstance(error, Interrupted) and error.finished):
            return TrialEnd("interrupted", "", {}, "")
        finished = open_run(folder)  # the signal came after its last step
    except FadevizError as error:
        return TrialEnd("failed", str(error), {}, "")
    except Exception as error:  # a bug of ours, or of torch: the other trials continue
        first = (str(error).splitlines() or [""])[0]
        return TrialEnd("failed", f"{type(error).__name__}: {first}", {}, traceback.format_exc())
    return TrialEnd("finished", "", dict(finished.info.result), "")


def has_begun(folder: str | Path) -> bool:
    """Whether ``folder`` contains the beginning of a run; remains of one killed before its first file are removed.

    Anything else is kept: :func:`fadeviz.experiment.train` refuses a folder that contains foreign files.
    """
    folder = Path(folder)
    if os.path.lexists(folder / "run.json"):
        return True
    if folder.is_symlink():  # nothing is removed behind a symlink to files of unknown origin
        return False
    for file in folder.glob(".*.partial*"):
        # The other machine cannot be asked: schedulers restart a run once its node is gone.
        if left_over(file, elsewhere=True):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (folder / "snapshots").rmdir()
    return False


@contextlib.contextmanager
def isolated_torch_state() -> Iterator[None]:
    """Restore torch's random state and threads afterwards, so that a run does not depend on the one before it."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The settings for a process that may have another working directory."""
    data = str(Path(config.data_dir).resolve()) if config.data_dir else ""
    weights = str(Path(config.weights).resolve()) if Path(config.weights).is_file() else config.weights
    root = Path(data).parent if Path(data).is_file() else Path(data)
    # What lies in the data folder is found there wherever the process works.
    palette, masks = (
        str(Path(path).resolve()) if path and not (root / path).exists() and Path(path).exists() else path
        for path in (config.palette, config.masks_dir)
    )
    return dataclasses.replace(config, data_dir=data, weights=weights, palette=palette, masks_dir=masks)


class ProgressReader:
    """Reads the progress of a trial that another machine trains from the end of its metrics.jsonl."""

    _TAIL = 65536
    """Bytes read from the end: some hundred steps, which usually include the latest evaluation, of 254 classes too."""

    def __init__(self, task: Task) -> None:
        """Skip what the file contains now: only what is added later is reported."""
        self.path, self.steps = task.folder / "metrics.jsonl", task.config.steps
        self.metrics: dict[str, float] = {}
        self._seen = self._stamp()

    def read(self) -> Progress | None:
        """The latest step; None if nothing was added since the last call."""
        stamp = self._stamp()
        if stamp == self._seen or stamp is None:
            return None
        self._seen = stamp
        latest: dict[str, float] = {}
        for line in self._lines(stamp[1]):
            latest = line
            if headline(line) is not None:
                self.metrics = {
                    key: value for key, value in line.items() if key not in ("step", "loss", "lr", CLASS_KEY)
                }
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
                tail = file.read(self._TAIL)
        except OSError:
            return []
        for text in tail.splitlines():
            with contextlib.suppress(ValueError):  # the first line may be incomplete, and the last still being written
                line = json.loads(text)
                if isinstance(line, dict):
                    lines.append(line)
        return lines


def follow_trials(
    tasks: Sequence[Task], ends: Callable[[Sequence[Task]], Mapping[Trial, TrialEnd]], pause: float
) -> Generator[list[Event], None, None]:
    """Yield the progress and ends of trials that other machines train, until each has ended.

    Args:
        tasks: the trials.
        ends: called once per round with the pending tasks; returns those that have ended, and how.
        pause: seconds between two rounds.
    """
    readers = {task.trial: ProgressReader(task) for task in tasks}
    latest: dict[Trial, Progress] = {}
    missing_since: dict[Trial, float] = {}
    pending = list(tasks)
    while pending:
        time.sleep(pause)
        ended = ends(pending)
        events, still_pending = [], []
        for task in pending:
            progress, end = readers[task.trial].read(), ended.get(task.trial)
            if progress is not None:
                latest[task.trial] = progress
            if end is not None and end.status == "finished" and not (task.folder / "run.json").exists():
                # The report arrived before the files did on the shared disk; or the disk is not shared.
                since = missing_since.setdefault(task.trial, time.monotonic())
                end = None if time.monotonic() - since < SLOW_DISK else TrialEnd("failed", _NOT_SHARED, {}, "")
            if end is None:
                still_pending.append(task)
                if progress is not None:
                    events.append(Event(task, "running", progress=progress))
                continue
            status = "finished" if end.status == "finished" else "failed"
            message = end.message or ("it received a signal to stop" if end.status == "interrupted" else "")
            events.append(Event(task, status, message, latest.get(task.trial), end.result, end.traceback))
        pending = still_pending
        if events:
            yield events


SLOW_DISK = 60.0
"""Seconds until a file written by another machine is visible: network file systems cache that it did not exist."""

_NOT_SHARED = (
    "its worker reported success, but its folder does not exist here. "
    "Choose a folder that all machines see under the same path: out=..."
)


__all__ = [
    "SLOW_DISK",
    "Event",
    "ProgressReader",
    "Task",
    "TrialEnd",
    "follow_trials",
    "has_begun",
    "isolated_torch_state",
    "train_trial",
    "with_absolute_paths",
]
