"""Training images a second of each data set, with 0, 1, 2 ... worker processes.

Measured is what a training waits for: batches of inputs and targets on the CPU, after the workers have started and
every image of a set that is kept in memory was read once. The first column is this process's own time for an image
without workers, which other programs on the machine hardly change.

    python scripts/data_speed.py --workers 0,1,2 --folder weizmann=DIR --folder ade20k=DIR --folder mattes=DIR
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence

import torch

from fadeviz.experiment import RunConfig, load_data, usable_cores
from fadeviz.models import find_network, parse_network
from fadeviz.training.batches import batches, draw_pool
from fadeviz.training.loop import keep_freed_memory
from fadeviz.training.tasks import TASKS


def measure(config: RunConfig, workers: int, seconds: float) -> tuple[float, float]:
    """Images a second that arrive for this run, and this process's milliseconds for each."""
    splits = load_data(config)
    train = splits.train
    task = TASKS[find_network(parse_network(config.network)[0]).task]
    if config.pool:
        draw_pool(train, 0)  # type: ignore[arg-type]
    for index in range(train.count or 1):  # sets that are kept in memory are read once
        train[index]
    loader = batches(
        train, itertools.count(1), config.batch_size, 0, flip=config.flip, workers=workers, collate=task.collate
    )
    for _ in range(3 * max(1, workers)):  # what was made ready while the workers started is no measure
        next(loader)
    began, cpu, pictures = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        pictures += len(next(loader)[0])
    spent, cpu = time.perf_counter() - began, time.process_time() - cpu
    loader.close()  # type: ignore[attr-defined]
    return pictures / spent, 1000 * cpu / pictures


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="training images a second, with and without worker processes")
    parser.add_argument("--workers", default="0,1,2", help="numbers of worker processes (default: 0,1,2)")
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=DIR", help="where a data set lies")
    parser.add_argument("--seconds", type=float, default=4.0, help="to measure each for (default: 4)")
    parser.add_argument("--only", default="", help="sets to measure, by a part of their name")
    given = parser.parse_args(arguments)
    folders = dict(pair.split("=", 1) for pair in given.folder)
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does
    drawn, square, matting = RunConfig(steps=1), {"size": 224}, {"network": "matting", "size": 512}
    configs = {
        "synthetic 224": drawn,
        "synthetic 224, --pool 256": RunConfig(steps=1, pool=256),
        "synthetic mattes 512": RunConfig(steps=1, **matting),  # type: ignore[arg-type]
    }
    if "weizmann" in folders:
        where = {"data": "weizmann", "data_dir": folders["weizmann"], **square}
        configs["Weizmann 224"] = RunConfig(steps=1, **where)
        configs["Weizmann 224, --flip"] = RunConfig(steps=1, flip=True, **where)
    if "ade20k" in folders:
        configs["ADE20K 512"] = RunConfig(
            steps=1, network="segformer", data="ade20k", data_dir=folders["ade20k"], size=512
        )
    if "mattes" in folders:
        configs["mattes 512"] = RunConfig(steps=1, data="mattes", data_dir=folders["mattes"], **matting)  # type: ignore[arg-type]
    numbers = [int(number) for number in given.workers.split(",")]
    print(f"images a second, batches of {drawn.batch_size}, {usable_cores()} cores")
    print(f"{'workers':28}{'ms each':>9}" + "".join(f"{number:>9}" for number in numbers))
    for name, config in configs.items():
        if given.only in name:
            alone = measure(config, 0, given.seconds)
            speeds = [measure(config, n, given.seconds)[0] if n else alone[0] for n in numbers]
            print(f"{name:28}{alone[1]:9.2f}" + "".join(f"{speed:9.0f}" for speed in speeds), flush=True)


if __name__ == "__main__":
    main()
