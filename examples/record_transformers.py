"""Record a SegFormer that the Hugging Face Trainer trains: one callback, and the run is there to draw."""

import tempfile
from pathlib import Path

import torch
from transformers import PrinterCallback, SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments

import fadeviz
from fadeviz.data.synthetic.dataset import SyntheticHorses
from fadeviz.integrations.transformers import RecorderCallback
from fadeviz.training.batches import collate_masks


class Horses(torch.utils.data.Dataset):
    """Synthetic horses, as the Trainer expects them."""

    def __init__(self, count: int) -> None:
        self.images, self.masks = collate_masks([SyntheticHorses(128)[i] for i in range(count)])

    def __len__(self) -> int:
        """How many."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One image and its mask."""
        return {"pixel_values": self.images[index], "labels": self.masks[index]}


def main(steps: int = 400, out: Path = Path("outputs/segformer")) -> Path:
    """Train, record every twentieth step, draw; an earlier run of this example in the same folder is replaced."""
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=2, depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 48, 64], num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=32,
    )  # fmt: skip
    watched = [SyntheticHorses(128, stream="test")[i] for i in (1, 2)]
    images, masks = collate_masks(watched)

    recording = RecorderCallback(
        "segformer.stages.*,decode_head.linear_projections.*,decode_head.activation", [*range(0, steps, 20), steps],
        out, batch={"pixel_values": images, "labels": masks}, names=[sample.name for sample in watched],
        name="SegFormer", seed=0, overwrite=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:  # the Trainer wants one, and here leaves nothing worth keeping
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-3, lr_scheduler_type="constant",
            logging_steps=10, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(
            SegformerForSemanticSegmentation(config), arguments, train_dataset=Horses(256), callbacks=[recording]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    image = out / "decode_head.png"
    fadeviz.grid(out, image, layer="decode_head.activation")
    return image


if __name__ == "__main__":
    print(main())
