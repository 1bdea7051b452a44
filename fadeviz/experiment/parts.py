"""The parts of a run, built from its settings: data, device, network, optimizer."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..data import Dataset, Splits
from ..data.pool import Pool
from ..data.sets import DataOptions, find_data
from ..data.shuffled import ShuffledLabels
from ..errors import FadevizError, unknown_name
from ..models import Network, build_network, find_network, parse_network
from ..training.batches import draw_pool
from ..training.distributed import Processes, check_share, local_rank, local_world_size
from ..training.tasks import TASKS, Task
from .config import DEVICES, RunConfig

_REPORT_SECONDS = 5.0
"""Seconds between two messages on how much of a pool is drawn."""


@dataclass(frozen=True)
class Parts:
    """The parts of a run.

    Attributes:
        config: the settings.
        splits: the images, split into train and test.
        model: the network, on its device.
        weights: the name of its initial weights, with a digest of them.
        task: its task.
        device: the device of this process.
        processes: the training processes.
        optimizer: the optimizer of its weights.
        lr_at: the learning rate of each step.
        scaler: the gradient scaler of a fp16 training.
    """

    config: RunConfig
    splits: Splits
    model: Network
    weights: str
    task: Task
    device: torch.device
    processes: Processes
    optimizer: torch.optim.Optimizer
    lr_at: Callable[[int], float]
    scaler: torch.amp.GradScaler | None


def build_parts(
    config: RunConfig, device: torch.device, processes: Processes, on_note: Callable[[str], None] | None
) -> Parts:
    """Build the parts of a run, without writing anything.

    Args:
        config: the settings.
        device: the device of this process.
        processes: the training processes.
        on_note: called with messages on how much of a pool is drawn.

    Raises:
        FadevizError: if data or weights cannot be read, or the settings do not suit the device or the processes.
    """
    splits = load_data(config)
    check_share(splits.train.count, config.batch_size, processes)
    if config.compile == "graph" and device.type != "cuda":
        raise FadevizError("compile=graph is for a CUDA device. Use compile=off on a CPU")
    if processes.world_size > 1 and config.compile != "off":
        raise FadevizError(f"compile={config.compile} is for one process. Use compile=off with several")
    _draw_pool(splits.train, config, on_note)
    with processes.rank_zero_first():  # it may download weights
        model, weights = build_model(config, splits.classes)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.to(device)
    assert config.lr is not None
    assert config.weight_decay is not None
    recipe = model.recipe
    return Parts(
        config=config,
        splits=splits,
        model=model,
        weights=weights,
        task=TASKS[model.task],
        device=device,
        processes=processes,
        optimizer=recipe.optimizer(model, config.lr, config.weight_decay, config.momentum),
        lr_at=recipe.lr_at(config.lr, config.steps, config.lr_drops),
        scaler=torch.amp.GradScaler(device.type) if config.precision == "fp16" else None,
    )


def load_data(config: RunConfig) -> Splits:
    """The images of a run, split into train and test. A pool is drawn when it is used, or by ``draw_pool``.

    Raises:
        FadevizError: if the data cannot be read.
    """
    options = DataOptions(
        config.data_dir, config.size, config.seed, config.split_seed, config.subset,
        config.masks_dir, config.palette, config.classes, str(config.ignore),
    )  # fmt: skip
    task = find_network(parse_network(config.network)[0]).task
    splits = find_data(task, config.data).load(options)
    if config.pool:
        pool = Pool(splits.train, config.pool, mattes=not TASKS[task].has_classes)
        splits = dataclasses.replace(splits, train=pool, info={**splits.info, "pool": config.pool})
    if config.labels == "shuffled":
        return dataclasses.replace(splits, train=ShuffledLabels(splits.train, config.seed))
    return splits


def choose_device(name: str) -> torch.device:
    """The device of this process.

    Args:
        name: ``cpu``, ``cuda``, or ``auto``, which takes the GPU if there is one.

    Raises:
        FadevizError: if there is no such device, or no GPU for this process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    if name == "cuda" and not torch.cuda.is_available():
        raise FadevizError("no CUDA device here (torch.cuda.is_available() is False). Use device=cpu")
    if name == "cpu":
        return torch.device(name)
    if local_rank() >= torch.cuda.device_count():
        raise FadevizError(
            f"{local_rank() + 1} processes, but {torch.cuda.device_count()} GPUs here. Start one process for each GPU"
        )
    torch.cuda.set_device(local_rank())  # tensors without an explicit device go to this process's own GPU
    return torch.device(name)


def build_model(config: RunConfig, classes: int = 2) -> tuple[Network, str]:
    """The network with its initial weights, which depend on the settings alone, and the name of the weights.

    Raises:
        FadevizError: if the weights cannot be read.
    """
    with torch.random.fork_rng([]):  # weights are drawn on the CPU; the random state of a GPU is not read
        torch.default_generator.manual_seed(config.seed)
        model = build_network(config.network, config.upsampler, classes=classes, width=config.width)
    if config.weights == "none":
        return model, "none"
    name = model.load_encoder(config.weights)
    digest = hashlib.sha256()
    for key, value in sorted(model.encoder.state_dict().items()):
        digest.update(key.encode() + value.numpy().tobytes())
    return model, f"{name} ({digest.hexdigest()[:12]})"


def _draw_pool(train: Dataset, config: RunConfig, on_note: Callable[[str], None] | None) -> None:
    """Draw the pool, if there is one, on all cores, with a message every few seconds."""
    pool = train.dataset if isinstance(train, ShuffledLabels) else train
    if not isinstance(pool, Pool):
        return
    cores = usable_cores() // local_world_size()
    # Starting processes takes as long as drawing some hundred images.
    workers = config.workers if config.workers is not None else cores if cores > 1 and pool.count > 200 else 0
    reported = time.monotonic()

    def progress(drawn: int) -> None:
        nonlocal reported
        if on_note is not None and (drawn == pool.count or time.monotonic() - reported >= _REPORT_SECONDS):
            reported = time.monotonic()
            on_note(f"pool: {drawn} of {pool.count} images drawn")

    draw_pool(pool, workers, progress)


def count_workers(config: RunConfig, device: torch.device) -> int:
    """The number of worker processes that read or draw images: as configured, or as suits the device and the data."""
    if config.workers is not None:
        return config.workers
    task = find_network(parse_network(config.network)[0]).task
    if device.type == "cpu" or config.pool or find_data(task, config.data).in_memory:
        return 0
    return min(8, max(1, usable_cores() // local_world_size() - 1))


def usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
