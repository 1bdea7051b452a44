"""Batches in a fixed order: read as bytes, optionally by worker processes, and converted on the network's device."""

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
from .signals import STOP_SIGNALS

# ImageNet's statistics: what VGG16's weights expect, and harmless for others.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

Packed = tuple[Tensor, ...]
"""Parts of a batch, each ``(B, H, W)`` or ``(B, H, W, 3)``, as the data set has them: images as uint8."""


@dataclass(frozen=True)
class Collation:
    """Converts samples to inputs and targets: packed where they are read, unpacked on the network's device.

    Calling it does both: ``collation(samples, device)``.

    Attributes:
        pack: stacks the samples' arrays. It runs in worker processes, so it must be a module's function.
        unpack: converts the result of ``pack`` to inputs and targets, on the same device.
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
    return stack(sample.image for sample in samples), stack(sample.mask for sample in samples)


def unpack_masks(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Images ``(B, 3, H, W)`` float32, normalised by ImageNet's statistics, and masks ``(B, H, W)`` int64."""
    return normalize(images), masks.long()


collate_masks = Collation(pack_masks, unpack_masks)
"""Converts samples to images ``(B, 3, H, W)`` float32, normalised by ImageNet's statistics, and masks ``(B, H, W)``
int64."""


def stack(arrays: Iterable[NDArray[Any]]) -> Tensor:
    """Stack arrays of one shape to a tensor, along a new first axis."""
    return torch.from_numpy(np.stack(list(arrays)))


def normalize(images: Tensor) -> Tensor:
    """``(image / 255 - mean) / std`` by ImageNet's statistics.

    Shape: ``(B, H, W, 3)`` uint8 -> ``(B, 3, H, W)`` float32, in channels-last memory.
    """
    # In rows of W * 3 values: with an innermost axis of 3, vector units would be idle.
    width = images.shape[2]
    rows = images.contiguous().flatten(2).float() / 255
    mean, std = (_row(values, width, images.device) for values in (_MEAN, _STD))
    return rows.sub_(mean).div_(std).unflatten(2, (width, 3)).permute(0, 3, 1, 2)


_rows: dict[tuple[object, ...], Tensor] = {}


def _row(values: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    # Cached: on a GPU a copy from the host would wait for the queue.
    key = values, width, device
    if key in _rows:
        return _rows[key]
    row = torch.tensor(values).repeat(width).to(device)
    if type(row) is Tensor:  # not a fake tensor of torch.compile or the like
        while len(_rows) >= 16:  # test images may have any width
            _rows.pop(next(iter(_rows)))
        _rows[key] = row
    return row


def batch_indices(step: int, count: int | None, batch_size: int, seed: int) -> NDArray[np.int64]:
    """The indices of the images on which optimiser step ``step`` (from 1) trains: a function of its arguments alone.

    Every epoch has its own permutation; its last batch may be smaller. An endless data set (``count`` None) is read in
    order. Since no state is kept between steps, a resumed run continues with the same data.
    """
    if count is None:
        first = (step - 1) * batch_size
        return np.arange(first, first + batch_size)
    per_epoch = -(-count // batch_size)
    epoch, batch = divmod(step - 1, per_epoch)
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)
    return order[batch * batch_size : (batch + 1) * batch_size]


def batches(
    dataset: Dataset,
    steps: Iterable[int],
    batch_size: int,
    seed: int,
    *,
    flip: bool = False,
    workers: int = 0,
    prefetch: int = 0,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
    collate: Collation = collate_masks,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batch of each step, or this rank's share of it: inputs and targets on ``device``.

    A batch is a function of its step and of the arguments: bit-identical for any ``workers`` and ``prefetch``. Bytes
    are copied to a GPU asynchronously from pinned memory, and mirrored and normalised there.

    Args:
        dataset: images of one size. With workers it is pickled.
        steps: the optimiser steps, from 1, in order.
        batch_size: the number of images per step.
        seed: the seed of the order and of the flips.
        flip: mirror half of the images left to right.
        workers: the number of processes that read or generate the images, each two batches in advance. They are started
            at the first batch (which takes some seconds), ignore Ctrl-C, and end with the iterator. Unless the data
            set's classes or functions come from the main script, that script needs no
            ``if __name__ == "__main__":`` guard.
        prefetch: without workers, the number of batches that a thread prepares in advance. On a CPU this takes cores
            and the interpreter from the training (measured: 0.35 s per step, 0.29 s without).
        device: the device of inputs and targets.
        processes: the ranks that train. Together their shares are the batch that a single process would see.
        collate: converts samples to inputs and targets.

    Raises:
        FadevizError: if the data set raises it, also in a worker; if the data set cannot be pickled; or if a worker was
            killed.
    """
    device = torch.device(device)
    load = _Batches(dataset, batch_size, seed, flip, processes, collate.pack)
    pin = device.type == "cuda" and torch.cuda.is_available()
    if workers:
        packed = work_through(load, steps, workers, pin)
    elif prefetch:
        packed = _prefetched(load, steps, prefetch, pin)
    else:
        packed = ((_pinned(load[step]) if pin else load[step]) for step in steps)
    with contextlib.closing(packed):  # type: ignore[type-var]
        for parts in packed:
            parts = tuple(part.to(device, non_blocking=pin) for part in parts)
            if flip:
                *parts, coins = parts
                parts = tuple(_mirrored(part, coins) for part in parts)
            yield collate.unpack(*parts)


class _Batches:
    """Packed batches by step; with ``flip``, their last part marks the images to mirror."""

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
    """``(B, H, W)`` or ``(B, H, W, 3)`` with the images whose coin is True mirrored left to right."""
    return torch.where(coins.view(-1, *[1] * (part.ndim - 1)), part.flip(2), part)


def _pinned(parts: Packed) -> Packed:
    return tuple(part.pin_memory() for part in parts)


def _prefetched(load: _Batches, steps: Iterable[int], prefetch: int, pin: bool) -> Iterator[Packed]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque[Future[Packed]] = deque()
        for step in steps:
            waiting.append(pool.submit(lambda step: _pinned(load[step]) if pin else load[step], step))
            if len(waiting) > prefetch:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


# --- worker processes ---


def work_through(source: Any, items: Iterable[int], workers: int, pin: bool = False) -> Iterator[Any]:
    """Yield ``source[item]`` of each item, in order, computed by worker processes.

    Args:
        source: is pickled.
        items: are read a little in advance.
        workers: the number of processes, at least 1.
        pin: whether tensors arrive in pinned memory.

    Raises:
        FadevizError: if ``source`` cannot be pickled, or a worker was killed.
        Exception: if ``source[item]`` raised it.
    """
    work = _Work(source)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
        loader: DataLoader[Any] = DataLoader(
            work,  # type: ignore[arg-type]
            batch_size=None,
            sampler=items,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=pin,
            worker_init_fn=_start_worker,
            multiprocessing_context=_context(),
            generator=torch.Generator(),  # else its seed would be drawn from the training's random numbers
        )
    held: list[Iterator[Any]] = []
    # Runs before the exit hooks of torch and multiprocessing, which would wait for workers that still run.
    atexit.register(held.clear)
    started: tuple[Any, ...] = ()
    try:
        with _signals_blocked(work.needs_main):
            held.append(iter(loader))
        started = tuple(getattr(held[0], "_workers", ()))
        while held:
            try:
                result = next(held[0])
            except StopIteration:
                return
            except RuntimeError as error:
                message = _describe_death(error)
                if message is None:
                    raise
                raise FadevizError(message) from error
            if isinstance(result, _Failure):
                raise result.error
            yield result
    finally:
        held.clear()
        atexit.unregister(held.clear)
        for process in started:
            if process.is_alive():  # busy with an image that takes long
                process.kill()
                process.join()


class _Work:
    """The source of items as workers get it; exceptions are results too."""

    def __init__(self, source: Any) -> None:
        self.source = source
        try:
            self.needs_main = b"__main__" in pickle.dumps(source)
        except Exception as error:
            raise FadevizError(
                f"this data set cannot be sent to worker processes ({_one_line(error)}). Use workers=0, or make it "
                "picklable"
            ) from error

    def __getitem__(self, item: int) -> Any:
        try:
            return self.source[item]
        except Exception as error:
            return _Failure(error)


class _Failure:
    """An exception of a worker, as a value: torch would make its traceback part of the message."""

    def __init__(self, error: Exception) -> None:
        if not isinstance(error, FadevizError):
            error.add_note("In a worker process:\n" + "".join(traceback.format_exception(error)).rstrip())
        try:
            pickle.dumps(error)
            copy.copy(error)  # rebuilt as by unpickling, which fails if the class has other arguments
        except Exception:
            error = RuntimeError(f"{type(error).__name__} in a worker process: {_one_line(error)}")
        self.error = error


def _describe_death(error: RuntimeError) -> str | None:
    """The message for an error of torch that means that a worker died; None for other errors."""
    text = str(error)
    if "shared memory" in text or "No space left" in text:
        return "no shared memory left (/dev/shm) for batches from worker processes. Use a smaller workers=..."
    if "DataLoader worker" in text:
        return (
            "a worker process that reads the data was killed, perhaps because memory ran out. Use a smaller workers=..."
        )
    return None


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unchanged(value: Any) -> Any:
    return value


def _start_worker(number: int) -> None:
    """Ignore signals, which the training process handles: it stops its workers."""
    for name in STOP_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    keep_freed_memory()  # generating images allocates many arrays of a megabyte, which took a fifth of its time
    # torch watches the fork server instead, which runs as long as its children.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _context() -> Any:
    """Start processes that are not forked from this one, with its threads and CUDA; one server imports torch once."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextlib.contextmanager
def _signals_blocked(needs_main: bool) -> Iterator[None]:
    """Processes started inside the block ignore the signals of terminals and schedulers from their first moment on.

    They do not import the main script, unless their work ``needs_main``: a script without
    ``if __name__ == "__main__":`` would be run again in each.
    """
    daemon = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    was = daemon.get("daemon")
    main = sys.modules["__main__"]
    numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    if os.name == "posix":
        before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        resource_tracker.ensure_running()  # here, because it unblocks some signals
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        daemon["daemon"] = False  # lets a sweep's process have children, which end when it does
        if not needs_main:
            sys.modules["__main__"] = ModuleType("__main__")
        yield
    finally:
        sys.modules["__main__"] = main
        daemon["daemon"] = was
        if os.name == "posix":
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- a pool generated in advance ---


def draw_pool(pool: Pool, workers: int, report: Callable[[int], None] | None = None) -> None:
    """Generate the missing images of a pool with ``workers`` processes; ``report`` is called with the number done.

    Raises:
        FadevizError: if the data set raises it, or a worker was killed.
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
    "collate_masks",
    "draw_pool",
    "normalize",
    "stack",
    "work_through",
]
