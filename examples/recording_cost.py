"""What recording costs: training time with and without the probe, in one process, taken in turns.

The paper's schedule is 36 snapshots in 3000 steps, one in 83. Blocks of 83 training steps alternate: one opens with a
recorded snapshot, one does not. What the snapshot itself takes is the cost; that the steps after it are not slower is
seen by the medians of both kinds of block.
"""

import argparse
import statistics
import tempfile
import time
from itertools import count

import torch
from torch.nn import functional as F

from fadeviz.data.synthetic import SyntheticHorses
from fadeviz.models import build_network
from fadeviz.probes import Probe
from fadeviz.snapshots import SnapshotStore
from fadeviz.training.loop import batches, fit, keep_freed_memory, to_tensors


def main(steps: int = 83, pairs: int = 5, size: int = 128, width: float = 0.25, upsampler: str = "fade") -> float:
    """Return the time of a snapshot as a share of the training it stands in, in percent; medians."""
    keep_freed_memory()
    torch.manual_seed(0)
    model = build_network("segnet", upsampler, width=width).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    probe = Probe(model)
    images, masks = to_tensors([SyntheticHorses(size, stream="test")[i] for i in range(4)])
    pool = [SyntheticHorses(size)[i] for i in range(32)]  # drawn before: the data's cost is not the question

    class Pool:
        count = 32

        def __getitem__(self, index):
            return pool[index]

    blocks: dict[bool, list[float]] = {True: [], False: []}
    snapshots = []
    with tempfile.TemporaryDirectory() as folder:
        store = SnapshotStore(folder, "cost")
        training = fit(model, batches(Pool(), count(1), 4, 0), F.cross_entropy, optimizer, lambda step: 0.01)
        for _ in range(3):  # warm up
            next(training)
        store.write(0, probe.observe(images, masks, F.cross_entropy, step=0))
        for pair in range(pairs):
            for recorded in (True, False) if pair % 2 else (False, True):
                if recorded:
                    start = time.perf_counter()
                    store.write(pair + 1, probe.observe(images, masks, F.cross_entropy, step=pair + 1))
                    snapshots.append(time.perf_counter() - start)
                for _ in range(steps):
                    start = time.perf_counter()
                    next(training)
                    blocks[recorded].append(time.perf_counter() - start)
        training.close()
    step, after, snapshot = (statistics.median(times) for times in (blocks[False], blocks[True], snapshots))
    print(f"a step: {1000 * step:.0f} ms; after a snapshot: {1000 * after:.0f} ms ({after / step - 1:+.2%})")
    print(
        f"a snapshot: {1000 * snapshot:.0f} ms or {snapshot / step:.2f} steps (longest {1000 * max(snapshots):.0f} ms)"
    )
    return 100 * snapshot / (steps * step)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("steps", 83), ("pairs", 5), ("size", 128), ("width", 0.25), ("upsampler", "fade")):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    print(f"recording costs {main(**vars(parser.parse_args())):.2f} % of the training time")
