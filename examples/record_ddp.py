"""Record a training that several processes share: every process makes the recorder, the first one writes.

torchrun --nproc-per-node 2 examples/record_ddp.py
"""

import sys
import time
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

import fadeviz
from fadeviz.data.synthetic.dataset import SyntheticHorses
from fadeviz.training.batches import collate_masks


class Horses(Dataset):
    """Synthetic horses as tensors, for a DataLoader."""

    def __init__(self, count: int) -> None:
        self.count, self.drawn = count, SyntheticHorses(64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One image and its mask."""
        images, masks = collate_masks([self.drawn[index]])
        return images[0], masks[0]


def main(steps: int = 200, out: Path = Path("outputs/ddp")) -> None:
    """Train, record every tenth step, draw."""
    distributed.init_process_group("gloo")
    first = distributed.get_rank() == 0
    torch.manual_seed(0)  # the same weights everywhere
    model = DistributedDataParallel(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 2, 1),
        )
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    horses = Horses(256)
    sampler = DistributedSampler(horses, seed=0)  # each process its share of every epoch
    loader = DataLoader(horses, batch_size=4, sampler=sampler)
    watched = collate_masks([SyntheticHorses(64, stream="test")[i] for i in (1, 2)])

    recorder = fadeviz.Recorder(
        model, ["4", "5"], [*range(0, steps, 10), steps], out, batch=watched, loss_fn=F.cross_entropy, overwrite=True
    )
    step = 0
    while step < steps:
        sampler.set_epoch(step)
        for images, masks in loader:
            loss = F.cross_entropy(model(images), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            recorder.step(step)
            if step == steps:
                break
    recorder.close()
    if first:
        fadeviz.grid(out, out / "grid.png", layer="5")
        print(out / "grid.png")
    distributed.destroy_process_group()
    time.sleep(0.2)  # a thread of gloo may still release its last result; a process that ends meanwhile can abort


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((int, Path), sys.argv[1:], strict=False)))
