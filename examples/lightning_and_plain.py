"""One network trained in a loop of its own and by Lightning's Trainer: both runs in one grid, under one layer name."""

import logging
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fadeviz
from fadeviz.data.synthetic.dataset import SyntheticHorses
from fadeviz.integrations.lightning import RecorderCallback
from fadeviz.training.batches import collate_masks

LAYER = "decoder:interpolate"
"""What ``F.interpolate`` returns in the decoder. In the LightningModule, its name begins with ``model.``."""


class Decoder(nn.Module):
    """Twice interpolate and convolve."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse, self.fine = nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Four times as high and wide: ``F.interpolate`` is called twice, so the layer has the calls 0 and 1."""
        for conv in (self.coarse, self.fine):
            x = F.relu(conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)))
        return x


class Network(nn.Module):
    """An encoder of two stages, and the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.decoder, self.head = Decoder(), nn.Conv2d(8, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits at the images' resolution."""
        return self.head(self.decoder(self.encoder(images)))


class Segmenter(pl.LightningModule):
    """The same network in Lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Network()

    def forward(self, images: Tensor) -> Tensor:
        """Class logits."""
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main(steps: int = 200, out: Path = Path("outputs/lightning_and_plain")) -> Path:
    """Train both, and draw them; earlier runs of this example in the same folder are replaced."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers")  # the data are in memory
    warnings.filterwarnings("ignore", ".*treespec")  # Lightning's own affair
    observed = collate_masks([SyntheticHorses(64, stream="test")[i] for i in (1, 2)])
    data = TensorDataset(*collate_masks([SyntheticHorses(64)[i] for i in range(64)]))
    schedule, options = [*range(0, steps, 20), steps], {"batch": observed, "loss_fn": F.cross_entropy, "seed": 0}

    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    step = 0
    with fadeviz.Recorder(model, LAYER, schedule, out / "plain", name="plain", overwrite=True, **options) as recorder:
        while step < steps:
            for images, masks in DataLoader(data, batch_size=4, shuffle=True):
                if step < steps:
                    optimizer.zero_grad()
                    F.cross_entropy(model(images), masks).backward()
                    optimizer.step()
                    step += 1
                    recorder.step(step)

    pl.seed_everything(0, verbose=False)
    callback = RecorderCallback(LAYER, schedule, out / "lightning", name="Lightning", overwrite=True, **options)
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[callback], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Segmenter(), DataLoader(data, batch_size=4, shuffle=True))

    image = out / "both.png"
    fadeviz.grid([out / "plain", out / "lightning"], image, layer=LAYER, call=1, normalize="shared")
    return image


if __name__ == "__main__":
    print(main())
