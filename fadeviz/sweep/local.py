"""Runs on this machine: some processes, each training one run after the other."""

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
from .trial import End, Event, Task, as_in_a_fresh_process, train_member

_TELL_EVERY = 0.5
"""Seconds between two words of a worker."""

_GRACE = 600.0
"""Seconds a worker has to finish its step, with its test and its checkpoint, before it is killed."""


class LocalProcesses:
    """Trains on this machine, ``jobs`` runs at a time; what fails stops no other, were it that its process is killed.

    A process trains one run after the other: starting one costs seconds of imports. One that has seen a run fail is
    not used again. Processes are spawned: a script that uses this needs ``if __name__ == "__main__":`` around it.

    On a machine with several GPUs each process is given the one that has the fewest of them; a single GPU is shared.

    Args:
        jobs: processes at a time; None: one for each GPU, or one. They share the cores; on a CPU the last bits of a
            result depend on the threads, and so on ``jobs``.
        grace: seconds that a process has, when training is stopped, to finish its step, with its test and its
            checkpoint, before it is killed.

    Raises:
        FadevizError: fewer than one.
    """

    def __init__(self, jobs: int | None = 1, *, grace: float = _GRACE) -> None:
        """Nothing is started before :meth:`train`."""
        self.gpus = _gpus()
        self.jobs = max(1, len(self.gpus)) if jobs is None else jobs
        self.grace = grace
        if self.jobs < 1:
            raise FadevizError(f"jobs is {jobs}; it must be 1 or more")

    def train(self, tasks: Sequence[Task]) -> Generator[list[Event], None, None]:
        """Train the runs, and tell of them in batches; closing the generator stops the processes."""
        waiting = list(reversed(tasks))
        workers: dict[Connection, _Worker] = {}
        threads = max(1, usable_cores() // self.jobs)
        try:
            while waiting or workers:
                begun = []
                while waiting and len(workers) < self.jobs:
                    worker = _start(threads, self._free_gpu(workers.values()))
                    workers[worker.pipe] = worker
                    begun.append(worker.begin(waiting.pop()))
                if begun:
                    yield begun
                told: list[Event] = []
                for pipe in wait(list(workers)):
                    worker = workers[pipe]  # type: ignore[index]
                    told += worker.hear()
                    if worker.task is None and worker.usable and waiting:
                        told.append(worker.begin(waiting.pop()))
                    elif worker.task is None:
                        del workers[worker.pipe]
                        worker.dismiss()
                yield told
        finally:
            _stop(workers.values(), self.grace)

    def _free_gpu(self, workers: Iterable[_Worker]) -> str:
        """The GPU with the fewest processes; empty where there is no choice."""
        at_work = [worker.gpu for worker in workers]
        return min(self.gpus, key=at_work.count, default="")


@dataclass
class _Worker:
    """A process, and the run it trains at present."""

    process: SpawnProcess
    pipe: Connection
    gpu: str = ""
    task: Task | None = None
    progress: Progress | None = None
    usable: bool = True

    def begin(self, task: Task) -> Event:
        self.task, self.progress = task, None
        with contextlib.suppress(OSError):  # it has died: hear() will say so
            self.pipe.send((task.config, task.folder))
        return Event(task, "running")

    def hear(self) -> list[Event]:
        """What it says now, of the one run it has."""
        task = self.task
        assert task is not None
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            said = End("failed", _death(self.process.exitcode), {}, "")
        if not isinstance(said, End):
            self.progress = Progress(*said)
            return [Event(task, "running", progress=self.progress)]
        if said.status == "interrupted":  # by a signal to itself alone
            said = said._replace(status="failed", message="its process was told to stop")
        self.task, self.usable = None, said.status == "finished"
        return [Event(task, said.status, said.message, self.progress, said.result, said.traceback)]

    def dismiss(self) -> None:
        """Let it go: it ends when its pipe is closed."""
        self.pipe.close()
        self.process.join(_GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each GPU of this machine that this process may use; empty where they are one."""
    count = torch.cuda.device_count()  # asks the driver, and takes no memory on any GPU
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count] if count > 1 else []


def _start(threads: int, gpu: str = "") -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, threads, gpu), name="fadeviz-sweep", daemon=True)
    with _deaf_to_ctrl_c():
        process.start()
    theirs.close()  # the worker's end alone is open now: when it dies, ours says so
    return _Worker(process, ours, gpu)


def _stop(workers: Iterable[_Worker], grace: float = _GRACE) -> None:
    """Stop the remaining workers after a signal or an error of the sweep. Each finishes its step and saves it."""
    left = list(workers)
    for worker in left:
        worker.process.terminate()
        worker.pipe.close()  # an idle worker waits for its next run
    deadline = time.monotonic() + grace
    try:
        for worker in left:
            worker.process.join(max(0.0, deadline - time.monotonic()))
    finally:  # out of time, or a second signal
        for worker in left:
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _work(pipe: Connection, threads: int, gpu: str = "") -> None:
    """What a worker process does: the runs it is given, with a word now and then, and one at the end of each."""
    stopping, idle, told = False, True, 0.0
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when the first run asks for CUDA

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        if idle:  # nothing to bring to an end
            raise KeyboardInterrupt

    # A terminal signals all its processes: the sweep's own process decides what that means for the runs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)  # during training, the run has its own handler
    torch.set_num_threads(min(torch.get_num_threads(), threads))

    def tell(progress: Progress) -> None:
        nonlocal told
        # Here and not in the handler: what is raised amid a step can be lost in a callback, and the run would go on.
        if stopping:
            raise KeyboardInterrupt
        now = time.monotonic()
        if now - told >= _TELL_EVERY:
            told = now
            _say(pipe, tuple(progress))

    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError):  # the sweep is over, or gone
        while not stopping:
            config, folder = pipe.recv()
            idle = False
            with as_in_a_fresh_process():
                end = train_member(config, folder, tell)
            _say(pipe, end)
            idle, stopping = True, stopping or end.status == "interrupted"


def _say(pipe: Connection, what: object) -> None:
    try:
        pipe.send(what)
    except OSError as error:  # the sweep is gone: stop as if it had said so
        raise KeyboardInterrupt from error


def _death(code: int | None) -> str:
    """How a process ended that said nothing."""
    if code is None or code >= 0:
        return f"its process exited with code {code} without reporting a result"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = ". The system does so when memory runs out: use fewer --jobs, or a smaller --batch-size or --size"
    return f"its process was killed by {name}{memory if name == 'SIGKILL' else ''}"


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """A process started here ignores Ctrl-C from its first instant: a terminal sends it to all, the sweep decides."""
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
