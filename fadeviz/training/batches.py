"""Batches in a fixed order: read as bytes, by worker processes if need be, and made inputs where the network is."""

from __future__ import annotations

import atexit
import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import Dataset, Sample
from ..data.pool import Pool
from ..errors import FadevizError
from .distributed import ALONE, Processes
from .loop import keep_freed_memory
from .signals import ASKS_TO_STOP

# ImageNet's statistics: what VGG16's weights expect, and harmless for others.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

Packed = tuple[Tensor, ...]
"""Parts of a batch, each ``(B, H, W)`` or ``(B, H, W, 3)``, as the data set has them: images as uint8."""


@dataclass(frozen=True)
class Collation:
    """How samples become inputs and targets: packed where they are read, unpacked on the network's device.

    Calling it does both: ``collation(samples, device)``.

    Attributes:
        pack: stacks the samples' arrays. It runs in worker processes, so it is a function of a module.
        unpack: inputs and targets of what ``pack`` gives, on the device that holds it.
    """

    pack: Callable[[Sequence[Sample]], Packed]
    unpack: Callable[..., tuple[Tensor, Tensor]]

    def __call__(self, samples: Sequence[Sample], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Inputs and targets of samples of one size, on ``device``."""
        pin = torch.device(device).type == "cuda" and torch.cuda.is_available()
        packed = self.pack(samples)
        return self.unpack(*(part.to(device, non_blocking=pin) for part in (_pinned(packed) if pin else packed)))


def pack_masks(samples: Sequence[Sample]) -> Packed:
    """Images ``(B, H, W, 3)`` uint8 and masks ``(B, H, W)`` of samples of one size."""
    return stacked(sample.image for sample in samples), stacked(sample.mask for sample in samples)


def unpack_masks(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Images ``(B, 3, H, W)`` float32, normalised by ImageNet's statistics, and masks ``(B, H, W)`` int64."""
    return normalize(images), masks.long()


to_tensors = Collation(pack_masks, unpack_masks)
"""Images ``(B, 3, H, W)`` float32, normalised by ImageNet's statistics, and masks ``(B, H, W)`` int64, of samples."""


def stacked(arrays: Iterable[NDArray[Any]]) -> Tensor:
    """Arrays of one shape as a tensor, along a new first axis."""
    return torch.from_numpy(np.stack(list(arrays)))


def normalize(images: Tensor) -> Tensor:
    """``(image / 255 - mean) / std`` by ImageNet's statistics: the one place that says so.

    Shape: ``(B, H, W, 3)`` uint8 -> ``(B, 3, H, W)`` float32, in channels-last memory.
    """
    # In rows of W * 3 values: an innermost axis of 3 would leave vector units idle.
    width = images.shape[2]
    rows = images.contiguous().flatten(2).float() / 255
    mean, std = (_row(values, width, images.device) for values in (_MEAN, _STD))
    return rows.sub_(mean).div_(std).unflatten(2, (width, 3)).permute(0, 3, 1, 2)


_rows: dict[tuple[object, ...], Tensor] = {}


def _row(values: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    # Kept: on a GPU a copy from the host would wait for what is in the queue.
    key = values, width, device
    if key in _rows:
        return _rows[key]
    row = torch.tensor(values).repeat(width).to(device)
    if type(row) is Tensor:  # no stand-in of torch.compile or the like
        while len(_rows) >= 16:  # images of any widths come by in a test
            _rows.pop(next(iter(_rows)))
        _rows[key] = row
    return row


def batch_indices(step: int, count: int | None, batch_size: int, seed: int) -> NDArray[np.int64]:
    """Which images optimiser step ``step`` (from 1) trains on: a function of its arguments alone.

    Every epoch is a permutation of its own; its last batch may be smaller. An endless data set (``count`` None) is read
    in order. That nothing is remembered between steps is what lets a resumed run go on with the same data.
    """
    if count is None:
        first = (step - 1) * batch_size
        return np.arange(first, first + batch_size)
    per_epoch = -(-count // batch_size)
    epoch, place = divmod(step - 1, per_epoch)
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)
    return order[place * batch_size : (place + 1) * batch_size]


def batches(
    dataset: Dataset,
    steps: Iterable[int],
    batch_size: int,
    seed: int,
    *,
    flip: bool = False,
    workers: int = 0,
    ahead: int = 0,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
    tensors: Collation = to_tensors,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batch of each step, or this process's share of it: inputs and targets on ``device``.

    A batch is a function of its step and of the arguments: to the bit the same for any ``workers`` and ``ahead``.
    To a GPU the bytes go from pinned memory, without waiting; they are mirrored and normalised there.

    Args:
        dataset: images of one size. With workers it is pickled.
        steps: which optimiser steps, from 1, in order.
        batch_size: images a step.
        seed: of the order, and of the flips.
        flip: mirror half of the images left to right.
        workers: processes that read or draw the images, two batches in advance each. They are started at the first
            batch (some seconds), ignore Ctrl-C, and end with the iterator. Unless the data set's classes or functions
            come from the main script, that script need not be guarded by ``if __name__ == "__main__":``.
        ahead: without workers: how many batches a thread makes ready in advance. On a CPU it takes the cores and the
            interpreter from the training (measured: 0.35 s a step against 0.29 without).
        device: where inputs and targets are wanted.
        processes: who trains. Together their shares are the batch that one process alone would see.
        tensors: what makes inputs and targets of images.

    Raises:
        FadevizError: what the data set raises, also in a worker; a data set that cannot be pickled; a worker that was
            killed.
    """
    device = torch.device(device)
    load = _Batches(dataset, batch_size, seed, flip, processes, tensors.pack)
    pin = device.type == "cuda" and torch.cuda.is_available()
    if workers:
        packed = work_through(load, steps, workers, pin)
    elif ahead:
        packed = _by_thread(load, steps, ahead, pin)
    else:
        packed = ((_pinned(load[step]) if pin else load[step]) for step in steps)
    with contextlib.closing(packed):  # type: ignore[type-var]
        for parts in packed:
            parts = tuple(part.to(device, non_blocking=pin) for part in parts)
            if flip:
                *parts, coins = parts
                parts = tuple(_mirrored(part, coins) for part in parts)
            yield tensors.unpack(*parts)


class _Batches:
    """Packed batches by step; with ``flip``, their last part says which images are to be mirrored."""

    def __init__(
        self, dataset: Dataset, batch_size: int, seed: int, flip: bool, processes: Processes,
        pack: Callable[[Sequence[Sample]], Packed],
    ) -> None:  # fmt: skip
        self.dataset, self.batch_size, self.seed, self.flip = dataset, batch_size, seed, flip
        self.processes, self.pack = processes, pack

    def __getitem__(self, step: int) -> Packed:
        indices = batch_indices(step, self.dataset.count, self.batch_size, self.seed)
        share = slice(self.processes.rank, None, self.processes.world_size)
        parts = self.pack([self.dataset[int(i)] for i in indices[share]])
        if not self.flip:
            return parts
        coins = np.random.Generator(np.random.PCG64([self.seed, step, 1])).random(len(indices)) < 0.5
        return *parts, torch.from_numpy(coins[share])


def _mirrored(part: Tensor, coins: Tensor) -> Tensor:
    """``(B, H, W)`` or ``(B, H, W, 3)`` with those images turned left to right whose coin is True."""
    return torch.where(coins.view(-1, *[1] * (part.ndim - 1)), part.flip(2), part)


def _pinned(parts: Packed) -> Packed:
    return tuple(part.pin_memory() for part in parts)


def _by_thread(load: _Batches, steps: Iterable[int], ahead: int, pin: bool) -> Iterator[Packed]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque[Future[Packed]] = deque()
        for step in steps:
            waiting.append(pool.submit(lambda step: _pinned(load[step]) if pin else load[step], step))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


# --- worker processes ---


def work_through(source: Any, items: Iterable[int], workers: int, pin: bool = False) -> Iterator[Any]:
    """``source[item]`` of each item, in order, worked out by processes.

    Args:
        source: is pickled.
        items: are read a little in advance.
        workers: processes, 1 or more.
        pin: tensors arrive in pinned memory.

    Raises:
        FadevizError: ``source`` cannot be pickled; a worker was killed.
        Exception: what ``source[item]`` raised.
    """
    sent = _Sent(source)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
        loader: DataLoader[Any] = DataLoader(
            sent,  # type: ignore[arg-type]
            batch_size=None,
            sampler=items,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin,
            worker_init_fn=_begin_worker,
            multiprocessing_context=_context(),
            generator=torch.Generator(),  # else its seed would be drawn from the training's random numbers
        )
    held: list[Iterator[Any]] = []
    # Before the hooks of torch and multiprocessing: they would wait for workers that do not know that they may end.
    atexit.register(held.clear)
    started: tuple[Any, ...] = ()
    try:
        with _deaf(sent.needs_main):
            held.append(iter(loader))
        started = tuple(getattr(held[0], "_workers", ()))
        while held:
            try:
                result = next(held[0])
            except StopIteration:
                return
            except RuntimeError as error:
                said = _death(error)
                if said is None:
                    raise
                raise FadevizError(said) from error
            if isinstance(result, _Failure):
                raise result.error
            yield result
    finally:
        held.clear()
        atexit.unregister(held.clear)
        for process in started:
            if process.is_alive():  # in the middle of an image that takes long
                process.kill()
                process.join()


class _Sent:
    """The source of work as workers get it: faults of an item are results too."""

    def __init__(self, source: Any) -> None:
        self.source = source
        try:
            self.needs_main = b"__main__" in pickle.dumps(source)
        except Exception as error:
            raise FadevizError(
                f"this data set cannot be sent to worker processes ({_one_line(error)}). Use workers=0, or make it of "
                "what pickle takes"
            ) from error

    def __getitem__(self, item: int) -> Any:
        try:
            return self.source[item]
        except Exception as error:
            return _Failure(error)


class _Failure:
    """What went wrong in a worker, as a value: torch would make its traceback part of the message."""

    def __init__(self, error: Exception) -> None:
        if not isinstance(error, FadevizError):
            error.add_note("In a worker process:\n" + "".join(traceback.format_exception(error)).rstrip())
        try:
            pickle.dumps(error)
            copy.copy(error)  # made again as by pickle, which fails where a class has arguments of its own
        except Exception:
            error = RuntimeError(f"{type(error).__name__} in a worker process: {_one_line(error)}")
        self.error = error


def _death(error: RuntimeError) -> str | None:
    """What to say where torch's error is that a worker is no more."""
    text = str(error)
    if "shared memory" in text or "No space left" in text:
        return "no shared memory left (/dev/shm) for batches from worker processes. Use fewer --workers"
    if "DataLoader worker" in text:
        return "a worker process that reads the data was killed, maybe as no memory was left. Use fewer --workers"
    return None


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _as_it_is(value: Any) -> Any:
    return value


def _begin_worker(number: int) -> None:
    """What a signal asks of a training is for the process that trains: it stops its workers."""
    for name in ASKS_TO_STOP:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    keep_freed_memory()  # drawing makes and drops arrays of a megabyte by the dozen: a fifth of its time
    # Torch's own watch is on the server of processes, which stays as long as its children do.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _context() -> Any:
    """Processes that are no copies of this one, with its threads and its CUDA; one server imports torch for all."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextlib.contextmanager
def _deaf(needs_main: bool) -> Iterator[None]:
    """Start processes that no signal of a terminal or a scheduler stops, from their first moment on.

    They do not import the main script, unless what they are sent ``needs_main``: a script without
    ``if __name__ == "__main__":`` would be run again in each.
    """
    daemon = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    was = daemon.get("daemon")
    main = sys.modules["__main__"]
    numbers = [getattr(signal, name) for name in ASKS_TO_STOP if hasattr(signal, name)]
    if os.name == "posix":
        before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        resource_tracker.ensure_running()  # here, as it unblocks some
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        daemon["daemon"] = False  # a sweep's process may have children: they end when it does
        if not needs_main:
            sys.modules["__main__"] = ModuleType("__main__")
        yield
    finally:
        sys.modules["__main__"] = main
        daemon["daemon"] = was
        if os.name == "posix":
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- a pool drawn ahead ---


def draw_pool(pool: Pool, workers: int, report: Callable[[int], None] | None = None) -> None:
    """Draw the images of a pool that are still missing, by so many processes; ``report`` gets how many there are.

    Raises:
        FadevizError: what the data set raises; a worker that was killed.
    """
    missing = pool.missing()
    drawn = work_through(pool.dataset, missing, workers) if workers else (pool.dataset[index] for index in missing)
    with contextlib.closing(drawn):  # type: ignore[type-var]
        for index, sample in zip(missing, drawn, strict=True):
            pool.put(index, sample)
            if report is not None:
                report(pool.drawn)


__all__ = [
    "Collation",
    "Packed",
    "batch_indices",
    "batches",
    "draw_pool",
    "normalize",
    "stacked",
    "to_tensors",
    "work_through",
]
