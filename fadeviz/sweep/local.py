"""Trials on this machine: several processes, each training one trial after the other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from ..errors import FadevizError
from ..experiment import Progress, usable_cores
from .trial import Event, Task, TrialEnd, isolated_torch_state, train_trial

_REPORT_EVERY = 0.5
"""Seconds between two progress reports of a worker."""

_GRACE = 600.0
"""Seconds that a worker has to finish its step, including evaluation and checkpoint, before it is killed."""


class LocalProcesses:
    """Trains on this machine, ``jobs`` trials at a time. A failure, even a killed process, stops no other trial.

    A process trains one trial after the other, since starting one costs seconds of imports; after a failure it is
    replaced. Processes are spawned, so a script that uses this needs ``if __name__ == "__main__":`` around it.

    On a machine with several GPUs each process gets the GPU that has the fewest processes; a single GPU is shared.

    Args:
        jobs: the number of processes; None: one per GPU, or one. They share the cores. On a CPU the last bits of a
            result depend on the number of threads, and therefore on ``jobs``.
        grace: seconds that a process has, when training is stopped, to finish its step, including evaluation and
            checkpoint, before it is killed.

    Raises:
        FadevizError: if ``jobs`` is less than 1.
    """

    def __init__(self, jobs: int | None = 1, *, grace: float = _GRACE) -> None:
        """Nothing is started before :meth:`train`."""
        self.gpus = _gpus()
        self.jobs = max(1, len(self.gpus)) if jobs is None else jobs
        self.grace = grace
        if self.jobs < 1:
            raise FadevizError(f"jobs is {jobs}; it must be 1 or more")

    def train(self, tasks: Sequence[Task]) -> Generator[list[Event], None, None]:
        """Train the trials, and yield batches of events; closing the generator stops the processes."""
        waiting = list(reversed(tasks))
        workers: dict[Connection, _Worker] = {}
        threads = max(1, usable_cores() // self.jobs)
        try:
            while waiting or workers:
                started = []
                while waiting and len(workers) < self.jobs:
                    worker = _start(threads, self._free_gpu(workers.values()))
                    workers[worker.pipe] = worker
                    started.append(worker.begin(waiting.pop()))
                if started:
                    yield started
                events: list[Event] = []
                for pipe in wait(list(workers)):
                    worker = workers[pipe]  # type: ignore[index]
                    events += worker.receive()
                    if worker.task is None and worker.reusable and waiting:
                        events.append(worker.begin(waiting.pop()))
                    elif worker.task is None:
                        del workers[worker.pipe]
                        worker.close()
                yield events
        finally:
            _stop(workers.values(), self.grace)

    def _free_gpu(self, workers: Iterable[_Worker]) -> str:
        """The GPU with the fewest processes; empty if there is no choice."""
        in_use = [worker.gpu for worker in workers]
        return min(self.gpus, key=in_use.count, default="")


@dataclass
class _Worker:
    """A process, and the trial that it trains at present."""

    process: SpawnProcess
    pipe: Connection
    gpu: str = ""
    task: Task | None = None
    progress: Progress | None = None
    reusable: bool = True

    def begin(self, task: Task) -> Event:
        self.task, self.progress = task, None
        with contextlib.suppress(OSError):  # it has died, which receive() reports
            self.pipe.send((task.config, task.folder))
        return Event(task, "running")

    def receive(self) -> list[Event]:
        """Read a message of the process: the progress or the end of its trial."""
        task = self.task
        assert task is not None
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            message = TrialEnd("failed", _describe_exit(self.process.exitcode), {}, "")
        if not isinstance(message, TrialEnd):
            self.progress = Progress(*message)
            return [Event(task, "running", progress=self.progress)]
        end = message
        if end.status == "interrupted":  # by a signal to this process alone
            end = end._replace(status="failed", message="its process received a signal to stop")
        self.task, self.reusable = None, end.status == "finished"
        return [Event(task, end.status, end.message, self.progress, end.result, end.traceback)]

    def close(self) -> None:
        """Close the pipe, at which the process ends; kill it if it does not."""
        self.pipe.close()
        self.process.join(_GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _gpus() -> list[str]:
    """The visible GPUs, as CUDA_VISIBLE_DEVICES names them; empty if there is only one, or none."""
    count = torch.cuda.device_count()  # asks the driver, and allocates no memory on any GPU
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (names or [str(index) for index in range(count)])[:count] if count > 1 else []


def _start(threads: int, gpu: str = "") -> _Worker:
    context = multiprocessing.get_context("spawn")
    pipe, worker_pipe = context.Pipe()
    process = context.Process(target=_work, args=(worker_pipe, threads, gpu), name="fadeviz-sweep", daemon=True)
    with _sigint_ignored():
        process.start()
    worker_pipe.close()  # only the worker has its end open now, so reading fails once the worker dies
    return _Worker(process, pipe, gpu)


def _stop(workers: Iterable[_Worker], grace: float = _GRACE) -> None:
    """Stop the remaining workers after a signal or an error of the sweep. Each finishes its step and saves it."""
    remaining = list(workers)
    for worker in remaining:
        worker.process.terminate()
        worker.pipe.close()  # an idle worker waits for its next trial
    deadline = time.monotonic() + grace
    try:
        for worker in remaining:
            worker.process.join(max(0.0, deadline - time.monotonic()))
    finally:  # out of time, or a second signal
        for worker in remaining:
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _work(pipe: Connection, threads: int, gpu: str = "") -> None:
    """The main function of a worker: train the trials it receives, and send the progress and the end of each."""
    stopping, idle, reported_at = False, True, 0.0
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when the first trial initialises CUDA

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        if idle:  # no step to finish
            raise KeyboardInterrupt

    # A terminal signals all its processes; the sweep's main process decides what that means for the trials.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)  # training has its own handler
    torch.set_num_threads(min(torch.get_num_threads(), threads))

    def report(progress: Progress) -> None:
        nonlocal reported_at
        # Raised here and not in the handler: within a step a callback could swallow it, and training would continue.
        if stopping:
            raise KeyboardInterrupt
        now = time.monotonic()
        if now - reported_at >= _REPORT_EVERY:
            reported_at = now
            _send(pipe, tuple(progress))

    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError):  # the sweep has ended, or was killed
        while not stopping:
            config, folder = pipe.recv()
            idle = False
            with isolated_torch_state():
                end = train_trial(config, folder, report)
            _send(pipe, end)
            idle, stopping = True, stopping or end.status == "interrupted"


def _send(pipe: Connection, message: object) -> None:
    try:
        pipe.send(message)
    except OSError as error:  # the sweep was killed: stop as if by a signal
        raise KeyboardInterrupt from error


def _describe_exit(code: int | None) -> str:
    """Describe the exit of a process that did not report a result."""
    if code is None or code >= 0:
        return f"its process exited with code {code} without reporting a result"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ". The system does so when memory runs out: use a smaller jobs=..., batch_size=... or size=..."
    return f"its process was killed by {name}{hint if name == 'SIGKILL' else ''}"


@contextlib.contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Processes started inside the block ignore SIGINT from their first moment on."""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


__all__ = ["LocalProcesses"]
