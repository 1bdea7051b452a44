"""What recording costs, beside TensorBoard images logged by hand, in one process, taken in turns.

The paper's schedule is 36 snapshots in 3000 steps, one in 83. Blocks of 83 training steps take turns: plain; with a
recorder that has nothing scheduled; with a recorded snapshot before it; with the same maps logged by hand. What the
snapshot takes is the cost; that the steps after it are not slower is seen by the medians of the blocks.

python examples/recording_cost.py                              # synthetic horses
python examples/recording_cost.py --data-dir DIR --width 1 --size 224
"""

import argparse
import statistics
import tempfile
import time
from itertools import count
from pathlib import Path

import torch
from torch.nn import functional as F

from fadeviz import Recorder, Snapshot, open_run
from fadeviz.data.synthetic.dataset import SyntheticHorses
from fadeviz.data.weizmann_horse import load_weizmann
from fadeviz.models import build_network
from fadeviz.storage.snapshots import SnapshotStore
from fadeviz.training.batches import batches, collate_masks
from fadeviz.training.loop import fit, keep_freed_memory


class Pool:
    """Images that are read once, before: the data's cost is not the question."""

    def __init__(self, dataset, images=32):
        self.samples = [dataset[i] for i in range(images)]
        self.count = images

    def __getitem__(self, index):
        """One image."""
        return self.samples[index]


def log_by_hand(model, layers, images, masks, writer, step):
    """What people write: hooks, a forward and a backward pass, grey images of features and gradients."""
    kept, handles = {}, []

    def keep(name):
        def hook(module, inputs, output):
            kept["feature/" + name] = output.detach().mean(1)
            output.register_hook(lambda grad: kept.update({"gradient/" + name: grad.relu().sum(1)}))

        return hook

    modules = dict(model.named_modules())
    for name in layers:
        handles.append(modules[name].register_forward_hook(keep(name)))
    model.eval()
    F.cross_entropy(model(images), masks).backward()
    model.zero_grad(set_to_none=True)
    model.train()
    for handle in handles:
        handle.remove()
    for tag, maps in kept.items():
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        writer.add_images(tag, ((maps - low) / (high - low).clamp_min(1e-12))[:, None], step)
    writer.flush()


def tensorboard_writer(folder):
    """A writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder)


def milliseconds(work, times):
    """The median duration of ``work(number)``."""
    taken = []
    for number in range(times):
        start = time.perf_counter()
        work(number)
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def main(steps=83, rounds=5, size=128, width=0.25, upsampler="fade", data_dir="", out=None):
    """Print the costs; returns them by name, times in milliseconds."""
    keep_freed_memory()
    torch.manual_seed(0)
    model = build_network("segnet", upsampler, width=width).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if data_dir:
        splits = load_weizmann(data_dir, size)
        pool, watched = Pool(splits.train), Pool(splits.test, 4).samples
    else:
        pool, watched = Pool(SyntheticHorses(size)), Pool(SyntheticHorses(size, stream="test"), 4).samples
    images, masks = collate_masks(watched)
    training = fit(model, batches(pool, count(1), 4, 0), F.cross_entropy, optimizer, lambda step: 0.01)

    with tempfile.TemporaryDirectory(dir=out) as folder:
        blocks = {"plain": [], "unscheduled": [], "recorded": [], "by hand": []}
        looks = {"recorded": [], "by hand": []}
        writer = tensorboard_writer(Path(folder) / "tensorboard")
        if writer is None:
            print("TensorBoard is not installed: pip install tensorboard, to compare")
            del blocks["by hand"], looks["by hand"]
        options = {"batch": (images, masks), "loss_fn": F.cross_entropy, "kinds": ("feature", "gradient")}
        # Blocks change places, and steps are numbered with gaps: turn, place in the turn, step of the block.
        turns = {
            turn: [*blocks][turn % len(blocks) :] + [*blocks][: turn % len(blocks)] for turn in range(1, rounds + 1)
        }
        scheduled = [turn * 100_000 + 10_000 * order.index("recorded") for turn, order in turns.items()]
        recorder = Recorder(model, "decoder.*.upsample", scheduled, Path(folder) / "run", **options)
        layers = [*open_run(Path(folder) / "run").layers]
        for _ in range(3):  # warm up
            next(training)
        if writer is not None:
            log_by_hand(model, layers, images, masks, writer, 0)
        for turn, order in turns.items():
            for place, kind in enumerate(order):
                number = turn * 100_000 + 10_000 * place
                start = time.perf_counter()
                if kind == "recorded":
                    assert recorder.step(number)
                    looks[kind].append(time.perf_counter() - start)
                elif kind == "by hand":
                    log_by_hand(model, layers, images, masks, writer, number)
                    looks[kind].append(time.perf_counter() - start)
                for done in range(1, steps + 1):
                    start = time.perf_counter()
                    next(training)
                    if kind == "unscheduled":
                        recorder.step(number + done)
                    blocks[kind].append(time.perf_counter() - start)
        training.close()

        far = (rounds + 1) * 100_000
        start = time.perf_counter()
        for number in range(far, far + 100_000):
            recorder.step(number)
        idle = (time.perf_counter() - start) / 100_000

        coarse = torch.rand(10, 4, 28, 28, generator=torch.Generator().manual_seed(0))
        forty = F.interpolate(coarse, size=(224, 224), mode="bicubic").numpy()  # smooth: noise would not compress
        store = SnapshotStore(Path(folder) / "forty", "cost")
        written = {
            "fadeviz, float32": milliseconds(
                lambda n: store.write(n, [Snapshot(n, f"layer{i}", 0, "feature", m) for i, m in enumerate(forty)]), 9
            )
        }
        if writer is not None:

            def write_images(number):
                for i, maps in enumerate(forty):
                    writer.add_images(f"layer{i}", maps[:, None], number)
                writer.flush()

            written["TensorBoard, 8 bit"] = milliseconds(write_images, 9)
            writer.close()

    step = {kind: 1000 * statistics.median(times) for kind, times in blocks.items()}
    look = {kind: 1000 * statistics.median(times) for kind, times in looks.items()}
    plain = step["plain"]
    print(f"a step: {plain:.1f} ms, median of {len(blocks['plain'])}")
    print(f"recorder.step with nothing scheduled: {1e6 * idle:.2f} microseconds")
    for kind in list(step)[1:]:
        print(f"steps of the blocks {kind}: {step[kind] / plain - 1:+.2%}")
    names = {"recorded": "a snapshot", "by hand": "the same maps to TensorBoard, by hand"}
    for kind, value in look.items():
        share = value / (83 * plain)
        print(
            f"{names[kind]}: {value:.0f} ms or {value / plain:.2f} steps; one in 83 steps: {share:.2%} of the training"
        )
    for kind, value in written.items():
        print(f"writing 40 maps of 224x224 ({kind}): {value:.0f} ms")
    return {"step": plain, "unscheduled": 1000 * idle, **look, **{f"40 maps, {k}": v for k, v in written.items()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 83), ("rounds", 5), ("size", 128), ("width", 0.25), ("upsampler", "fade")):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--data-dir", default="", help="Weizmann Horse; synthetic horses without it")
    parser.add_argument("--out", help="where to write while measuring: the disk is part of the cost")
    main(**vars(parser.parse_args()))
