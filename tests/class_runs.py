"""Small data sets of any number of classes: discs and squares on a ground, with a stripe that is not labelled."""

import colorsys

import numpy as np

from fadeviz.data import Sample, Splits
from fadeviz.data.sets import DATA, DatasetEntry
from fadeviz.experiment import RunConfig, train

VOID = 255

LONG = "a class whose name is so long that no legend and no line has room for it " * 3
NAMES = ["ground", "horse", "Straße", "木", "$x_1$ <b>", "no letter \U0010fffe", LONG]
"""Names as they come: letters that fonts lack, markup, too many words."""


def class_names(count):
    return [NAMES[label] if label < len(NAMES) else f"thing {label}" for label in range(count)]


def class_colors(count):
    """Hues of one brightness; class 0 is black, as in many a data set."""
    hues = [colorsys.hsv_to_rgb(label / count, 0.8, 0.9) for label in range(count)]
    return [[0, 0, 0], *([round(255 * part) for part in hue] for hue in hues[1:])]


class Shapes:
    """Two shapes of different classes on class 0; the class decides the colour and, by its parity, the form."""

    def __init__(self, classes, count, size=64, start=0, void=True):
        self.classes, self.count, self.size, self.start, self.void = classes, count, size, start, void

    def __getitem__(self, index):
        dice = np.random.default_rng(self.start + index)
        size = self.size
        y, x = np.mgrid[:size, :size]
        mask = np.zeros((size, size), np.uint8)
        for number, side in enumerate((0.3, 0.14)):
            label = 1 + (self.start + 2 * index + number) % (self.classes - 1)
            cy, cx = dice.uniform(0.35, 0.65, 2) * size if number == 0 else dice.uniform(0.1, 0.9, 2) * size
            far = np.hypot(y - cy, x - cx) if label % 2 else np.maximum(abs(y - cy), abs(x - cx))
            mask[far < side * size] = label
        hues = np.array([[90, 90, 90], *class_colors(self.classes)[1:]], np.float64)
        image = hues[mask] + dice.normal(0, 12, (size, size, 1))
        if self.void:
            mask[-size // 16 :] = VOID
        return Sample(f"shapes_{self.start + index}", image.clip(0, 255).astype(np.uint8), mask)


def add_shapes(monkeypatch, classes, *, names=True, colors=False, void=True):
    """Add the set to the table of data sets, as ``shapes``."""
    info = {"name": "shapes"}
    info |= {"classes": class_names(classes)} if names else {}
    info |= {"colors": class_colors(classes)} if colors else {}

    def load(options):
        return Splits(
            Shapes(classes, 64, options.size, void=void), Shapes(classes, 12, options.size, 1000, void),
            info, classes=classes,
        )  # fmt: skip

    monkeypatch.setitem(DATA["segmentation"], "shapes", DatasetEntry(load))


def train_shapes(monkeypatch, path, classes=11, *, steps=4, size=64, upsampler="bilinear", seed=0, **data):
    """A short run of a small U-Net on such a set, with a checkpoint."""
    add_shapes(monkeypatch, classes, **data)
    config = RunConfig(
        network="unet", upsampler=upsampler, data="shapes", size=size, width=0.125, steps=steps, seed=seed,
        snapshots=f"{max(1, steps // 4)}:{steps}", batch_size=4, evaluate_every=max(1, steps // 2), device="cpu",
    )  # fmt: skip
    return train(config, path)
