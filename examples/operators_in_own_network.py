"""Figures for a paper of your own: a U-Net with F.interpolate, and the same with FADE and DySample, on your images."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import fadeviz
from fadeviz.data.synthetic.dataset import SyntheticHorses


class Up(nn.Module):
    """A decoder stage: interpolate, concatenate, convolve."""

    def __init__(self, channels: int, skip: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels + skip, out, 3, padding=1)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Twice as high and wide as ``x``."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return F.relu(self.norm(self.conv(torch.cat([x, skip], 1))))


def stage(channels: int, out: int) -> nn.Sequential:
    """An encoder stage of half the size."""
    return nn.Sequential(nn.Conv2d(channels, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU(),
                         nn.Conv2d(out, out, 3, 1, 1), nn.BatchNorm2d(out), nn.ReLU())  # fmt: skip


class UNet(nn.Module):
    """Nothing in it is fadeviz's, and its upsampling has no module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.down1, self.down2, self.down3 = stage(16, 32), stage(32, 48), stage(48, 64)
        self.up3, self.up2, self.up1 = Up(64, 48, 48), Up(48, 32, 32), Up(32, 16, 16)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits at the images' resolution."""
        x0 = self.stem(images)
        x1 = self.down1(x0)
        x2 = self.down2(x1)
        x = self.up3(self.down3(x2), x2)
        return self.head(self.up1(self.up2(x, x1), x0))


GUIDES = {"up3:interpolate": "down2", "up2:interpolate": "down1", "up1:interpolate": "stem"}
"""The encoder feature that an operator in each stage reads."""


class Data(NamedTuple):
    """Images ``(N, 3, H, W)`` in [0, 1], masks ``(N, H, W)`` of classes, and the images' names."""

    images: Tensor
    masks: Tensor
    names: list[str]


def draw_images(folder: Path, count: int, size: int) -> None:
    """Write ``images/NAME.png`` and ``masks/NAME.png``, which stand for your own."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        sample = SyntheticHorses(size)[index]
        Image.fromarray(sample.image).save(folder / "images" / f"horse{index:03}.png")
        Image.fromarray(sample.mask * 255).save(folder / "masks" / f"horse{index:03}.png")


def read_images(folder: Path) -> Data:
    """All images and masks of a folder: replace this by your data set."""
    files = sorted((folder / "images").iterdir())
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    masks = np.stack([np.asarray(Image.open(folder / "masks" / file.name)) > 127 for file in files])
    return Data(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, torch.from_numpy(masks).long(),
                [file.stem for file in files])  # fmt: skip


def train(operator: str, seed: int, data: Data, steps: int, out: Path) -> None:
    """Train the U-Net, with the operator in place of F.interpolate if there is one, and record it."""
    observed, rest = slice(0, 12), slice(12, None)
    torch.manual_seed(seed)
    model = UNet()
    if operator != "interpolate":
        guides = GUIDES if operator == "fade" else None  # DySample reads no encoder feature
        fadeviz.replace_upsamplers(model, operator, data.images[:1], calls="up*:interpolate", guides=guides, seed=seed)
    # What is compared has one name in all runs: up2 is a call in one network, and a module in the others.
    upsampling = "interpolate" if operator == "interpolate" else "interpolate_0"
    layers = {f"up{i}": f"up{i}{':' if operator == 'interpolate' else '.'}{upsampling}" for i in (1, 2)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    recorder = fadeviz.Recorder(
        model, layers, [*range(10, steps, 10), steps], out, batch=(data.images[observed], data.masks[observed]),
        loss_fn=F.cross_entropy, names=data.names[observed], name=operator, seed=seed, predictions=True,
        config={"optimizer": "SGD", "lr": 0.05, "momentum": 0.9, "batch_size": 8}, overwrite=True,
    )  # fmt: skip
    with recorder:
        for step in range(1, steps + 1):
            chosen = torch.randint(len(data.images[rest]), (8,), generator=generator)
            loss = F.cross_entropy(model(data.images[rest][chosen]), data.masks[rest][chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(step)
            recorder.log(step, loss=loss.item())


def main(
    steps: int = 300, seeds: int = 3, count: int = 108, size: int = 64, out: Path = Path("outputs/own_network")
) -> list[Path]:
    """Train each operator with each seed, then draw, measure and report; returns the files."""
    draw_images(out / "data", count, size)
    data = read_images(out / "data")
    operators = ("interpolate", "fade", "dysample")
    runs = {(operator, seed): out / f"{operator}-seed{seed}" for operator in operators for seed in range(seeds)}
    for (operator, seed), folder in runs.items():
        train(operator, seed, data, steps, folder)
    first = [runs[operator, 0] for operator in operators]
    shown = [step for step in (0, 10, 20, 40, 80, 150, 300) if step <= steps]
    files = [out / name for name in ("s1.png", "s2.png", "training.gif", "verdict.png", "report.html")]
    fadeviz.grid(first, files[0], layer="up1", image=7, steps=shown)
    fadeviz.grid(first, files[1], layer="up1", image=7, kind="gradient", steps=shown)
    fadeviz.animate(first, files[2], layer="up1", image=7)
    fadeviz.plot(list(runs.values()), files[3], what="kymograph", layer="up1")
    fadeviz.write_report(list(runs.values()), files[4], layers=["up1"])
    for sentences in fadeviz.analyze(list(runs.values()), layer="up1").sentences.values():
        print(*sentences)
    return files


if __name__ == "__main__":
    print(*main(), sep="\n")
