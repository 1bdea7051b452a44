"""Record a LightningModule: one callback in the Trainer, and the run is there to draw."""

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


class Segmenter(pl.LightningModule):
    """An encoder of two stages, and a decoder that goes up with transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.head = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits at the images' resolution."""
        return self.head(self.decoder(self.encoder(images)))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss, which is logged and so comes into the run's metrics."""
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main(steps: int = 300, out: Path = Path("outputs/lightning")) -> Path:
    """Train, record every tenth step, draw; an earlier run of this example in the same folder is replaced."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers")  # the data are in memory
    warnings.filterwarnings("ignore", ".*treespec")  # Lightning's own affair
    pl.seed_everything(0, verbose=False)
    watched = [SyntheticHorses(64, stream="test")[i] for i in (1, 2)]
    horses = collate_masks([SyntheticHorses(64)[i] for i in range(64)])

    recording = RecorderCallback(
        "decoder.0,decoder.3", [*range(0, steps, 10), steps], out, batch=collate_masks(watched),
        loss_fn=F.cross_entropy, names=[sample.name for sample in watched], name="transposed convolution", seed=0,
        overwrite=True,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[recording], log_every_n_steps=1, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Segmenter(), DataLoader(TensorDataset(*horses), batch_size=4, shuffle=True))

    image = out / "decoder.png"
    fadeviz.grid(out, image, layer="decoder.3")
    return image


if __name__ == "__main__":
    print(main())
