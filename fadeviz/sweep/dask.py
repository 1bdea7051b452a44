"""Trials as tasks of an existing Dask cluster."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Generator, Sequence
from pathlib import Path

from ..errors import FadevizError, MissingExtra
from ..experiment import Progress, RunConfig
from ..storage.files import only_writer
from .plan import Trial
from .trial import Event, Task, TrialEnd, follow_trials, isolated_torch_state, train_trial, with_absolute_paths


class DaskCluster:
    """Trains each trial as a task of a Dask cluster; needs distributed, and a disk that all workers see.

    If a worker dies, another one takes its task and resumes from the run's checkpoint. A worker trains one trial at a
    time, however many threads it has. The tasks belong to the process that submitted them: when it ends, by Ctrl-C or
    otherwise, waiting trials are dropped and running ones stop after their step. The same sweep started again resumes
    them.

    Args:
        scheduler: the scheduler's address, such as ``tcp://host:8786``.
        pause: seconds between two checks of the trials' progress.
    """

    def __init__(self, scheduler: str, *, pause: float = 1.0) -> None:
        """Nothing is submitted before :meth:`train`."""
        self.scheduler, self.pause = scheduler, pause

    def train(self, tasks: Sequence[Task]) -> Generator[list[Event], None, None]:
        """Submit the trials and follow them; closing the generator cancels them."""
        try:
            from distributed import Client
        except ImportError as error:
            raise MissingExtra("dask", "a Dask cluster needs distributed, which is not installed") from error
        try:
            client = Client(self.scheduler, timeout=20, set_as_default=False, name="fadeviz-sweep")
        except (OSError, ValueError) as error:
            raise FadevizError(
                f"no Dask scheduler answers at {self.scheduler}. Start one with `dask scheduler`, and workers with "
                "`dask worker ADDRESS --nthreads 1`"
            ) from error
        futures = {}
        try:
            for task in tasks:
                key = f"fadeviz-{task.folder.resolve()}-{uuid.uuid4().hex[:8]}"
                futures[task.trial] = client.submit(
                    _train, with_absolute_paths(task.config), task.folder.resolve(), key, key=key, pure=False
                )
            yield [Event(task, "queued") for task in tasks]

            def ended(pending: Sequence[Task]) -> dict[Trial, TrialEnd]:
                return {task.trial: _end(futures[task.trial]) for task in pending if futures[task.trial].done()}

            yield from follow_trials(tasks, ended, self.pause)
        finally:
            client.cancel([future for future in futures.values() if not future.done()])
            client.close()


_ONE_AT_A_TIME = threading.Lock()
"""torch's random state and number of threads belong to the whole process."""


def _train(config: RunConfig, folder: Path, key: str) -> TrialEnd:
    """Train one trial on a worker."""
    from distributed import get_worker

    tasks = get_worker().state.tasks

    def stop_if_cancelled(progress: Progress) -> None:
        # The state of a task whose submitter cancelled it or is gone. Dask does not stop its thread.
        if key in tasks and tasks[key].state == "cancelled":
            raise KeyboardInterrupt

    with _ONE_AT_A_TIME, isolated_torch_state():
        _wait_for_writer(folder)
        return train_trial(config, folder, stop_if_cancelled)


def _wait_for_writer(folder: Path) -> None:
    """Wait until no other process writes into the folder: a cancelled or abandoned trial finishes its step first."""
    for _ in range(30):
        with contextlib.suppress(FadevizError), only_writer(folder):
            return
        time.sleep(1)


def _end(future) -> TrialEnd:  # type: ignore[no-untyped-def]
    """How a task ended."""
    if future.status == "finished":
        return TrialEnd(*future.result())
    if future.status != "error":
        return TrialEnd("failed", "the scheduler dropped its task, or has stopped", {}, "")
    error = future.exception()
    first = (str(error).splitlines() or [""])[0]
    return TrialEnd("failed", f"{type(error).__name__}: {first}", {}, "")


__all__ = ["DaskCluster"]
