"""Record your own model in your own training loop with two calls, and draw the run."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fadeviz
from fadeviz.data.synthetic.dataset import SyntheticHorses
from fadeviz.training.batches import collate_masks
from fadeviz.upsamplers import FADE, Skip


class SmallUNet(nn.Module):
    """A network of your own, with an upsampling operator of fadeviz."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.coarse = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.up = FADE(16)
        self.head = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits at the images' resolution."""
        fine = self.fine(images)
        coarse = self.coarse(F.max_pool2d(fine, 2))
        return self.head(self.up(coarse, Skip(fine)))


def main(steps: int = 200, out: Path = Path("outputs/own_model")) -> Path:
    """Train, record every tenth step, draw; an earlier run of this example in the same folder is replaced."""
    torch.manual_seed(0)
    model = SmallUNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    horses, samples = SyntheticHorses(64, seed=0), [SyntheticHorses(64, seed=0, stream="test")[i] for i in (1, 2)]
    images, masks = collate_masks(samples)

    recorder = fadeviz.Recorder(
        model, "up,coarse", [*range(0, steps, 10), steps], out, batch=(images, masks), loss_fn=F.cross_entropy,
        names=[sample.name for sample in samples], name="small U-Net", seed=0, overwrite=True,
    )  # fmt: skip
    for step in range(1, steps + 1):
        x, y = collate_masks([horses[4 * step + i] for i in range(4)])
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.step(step)
        recorder.log(step, loss=loss.item())

    image = out / "up.png"
    fadeviz.grid(out, image, layer="up")
    return image


if __name__ == "__main__":
    print(main())
