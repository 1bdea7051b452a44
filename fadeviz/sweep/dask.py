"""Runs as tasks of a Dask cluster that is there already."""

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
from .plan import Member
from .trial import End, Event, Task, anywhere, as_in_a_fresh_process, train_member, watch


class DaskCluster:
    """Trains as tasks of a Dask cluster, a task a run; needs distributed, and a disk that all workers see.

    The task of a worker that dies is given to another, which goes on from the run's checkpoint. A worker trains one run
    at a time, whatever its threads. The tasks belong to the process that sent them: when it ends, by Ctrl-C or
    otherwise, what waits is dropped, and what is being trained stops after its step; the same sweep given again goes
    on.

    Args:
        scheduler: its address: ``tcp://host:8786``, or what a scheduler file names.
        pause: seconds between two looks at the runs.
    """

    def __init__(self, scheduler: str, *, pause: float = 1.0) -> None:
        """Nothing is sent before :meth:`train`."""
        self.scheduler, self.pause = scheduler, pause

    def train(self, tasks: Sequence[Task]) -> Generator[list[Event], None, None]:
        """Send the runs and follow them; closing the generator takes them back."""
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
                futures[task.member] = client.submit(
                    _train, anywhere(task.config), task.folder.resolve(), key, key=key, pure=False
                )
            yield [Event(task, "queued") for task in tasks]

            def ends(pending: Sequence[Task]) -> dict[Member, End]:
                return {task.member: _end(futures[task.member]) for task in pending if futures[task.member].done()}

            yield from watch(tasks, ends, self.pause)
        finally:
            client.cancel([future for future in futures.values() if not future.done()])
            client.close()


_ONE_AT_A_TIME = threading.Lock()
"""Torch has one random state and one number of threads a process."""


def _train(config: RunConfig, folder: Path, key: str) -> End:
    """What a worker does for a run."""
    from distributed import get_worker

    tasks = get_worker().state.tasks

    def tell(progress: Progress) -> None:
        # So Dask calls a task whose sender took it back, or is gone: its thread goes on if it does not look.
        if key in tasks and tasks[key].state == "cancelled":
            raise KeyboardInterrupt

    with _ONE_AT_A_TIME, as_in_a_fresh_process():
        _wait_for_another(folder)
        return train_member(config, folder, tell)


def _wait_for_another(folder: Path) -> None:
    """Until nobody writes into the folder: a run that was taken back, or whose worker was given up, ends its step."""
    for _ in range(30):
        with contextlib.suppress(FadevizError), only_writer(folder):
            return
        time.sleep(1)


def _end(future) -> End:  # type: ignore[no-untyped-def]
    """How a task ended."""
    if future.status == "finished":
        return End(*future.result())
    if future.status != "error":
        return End("failed", "the scheduler dropped it, or is gone", {}, "")
    error = future.exception()
    first = (str(error).splitlines() or [""])[0]
    return End("failed", f"{type(error).__name__}: {first}", {}, "")


__all__ = ["DaskCluster"]
