"""What recording costs: training time with and without the probe, in one process, taken in turns.

The paper's schedule is 36 snapshots in 3000 steps, one in 83. Blocks of 83 training steps alternate: one with a
recorded snapshot at its end, one without; each pair gives a ratio.
"""

import argparse
import statistics
import tempfile
import time

import torch
from torch.nn import functional as F

from fadeviz.data.synthetic import SyntheticHorses
from fadeviz.models import build_network
from fadeviz.probes import Probe
from fadeviz.snapshots import SnapshotStore
from fadeviz.training.loop import batches, fit, keep_freed_memory, to_tensors


def main(steps: int = 83, pairs: int = 5, size: int = 128, width: float = 0.25, upsampler: str = "fade") -> float:
    """Return the cost of recording as a share of the training time, in percent (median over pairs of blocks)."""
    keep_freed_memory()
    torch.manual_seed(0)
    model = build_network("segnet", upsampler, width=width).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    probe = Probe(model)
    images, masks = to_tensors([SyntheticHorses(size, stream="test")[i] for i in range(4)])
    pool = [SyntheticHorses(size)[i] for i in range(32)]  # drawn before: the data's cost is not the question

    class Pool:
        count = len(pool)

        def __getitem__(self, index):
            return pool[index]

    shares, snapshots = [], []
    with tempfile.TemporaryDirectory() as folder:
        store = SnapshotStore(folder, "cost")
        training = fit(
            model, batches(Pool(), range(1, 10**9), 4, 0), F.cross_entropy, optimizer, lambda step: 0.01
        )  # fmt: skip
        for _ in range(3):  # warm up
            step = next(training).step
        store.write(0, probe.observe(images, masks, F.cross_entropy, step=0))
        for pair in range(pairs):
            seconds = {}
            for recorded in (True, False) if pair % 2 else (False, True):
                start = time.perf_counter()
                for _ in range(steps):
                    step = next(training).step
                if recorded:
                    begin = time.perf_counter()
                    store.write(step, probe.observe(images, masks, F.cross_entropy, step=step))
                    snapshots.append(time.perf_counter() - begin)
                seconds[recorded] = time.perf_counter() - start
            shares.append(100 * (seconds[True] / seconds[False] - 1))
            step_time = seconds[False] / steps
            print(f"pair {pair + 1}: {shares[-1]:+.2f} %, a step {1000 * step_time:.0f} ms, ", end="")
            alone = 100 * snapshots[-1] / (steps * step_time)
            print(f"a snapshot {1000 * snapshots[-1]:.0f} ms = {alone:.2f} % by itself")
        training.close()
    return statistics.median(shares)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("steps", 83), ("pairs", 5), ("size", 128), ("width", 0.25), ("upsampler", "fade")):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    print(f"median {main(**vars(parser.parse_args())):+.2f} % of the training time")
