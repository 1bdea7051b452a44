"""Images with masks, as numpy arrays: what every data set hands to training and to the observation set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Sample(NamedTuple):
    """One image with its truth.

    Attributes:
        name: what the image is called in ``run.json`` (a file's stem, or the seed of a drawing).
        image: ``(H, W, 3)`` uint8, sRGB.
        mask: ``(H, W)`` uint8, the class of each pixel; for horses 0 is ground and 1 is horse.
        alpha: ``(H, W)`` float32 in [0, 1], the exact matte, or None where the data set has none.
        trimap: ``(H, W)`` uint8: 0 is background, 128 unknown, 255 foreground; None where nothing is matted.
        foreground: ``(H, W, 3)`` uint8, the colour of what the matte shows, wherever it shows anything; or None.
        background: ``(H, W, 3)`` uint8, what is behind it; or None.
    """

    name: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    alpha: NDArray[np.float32] | None = None
    trimap: NDArray[np.uint8] | None = None
    foreground: NDArray[np.uint8] | None = None
    background: NDArray[np.uint8] | None = None


class Dataset(Protocol):
    """Images by index. ``count`` is how many there are; None means endless: every index from 0 is a new image."""

    @property
    def count(self) -> int | None:
        """How many images there are, or None when they never end."""

    def __getitem__(self, index: int) -> Sample:
        """The image at this index, always the same one for the same index."""


@dataclass(frozen=True)
class Splits:
    """What a run trains on, what it is tested on, what ``run.json`` says about both, and the classes of the masks."""

    train: Dataset
    test: Dataset
    info: Mapping[str, object] = field(default_factory=dict)
    classes: int = 2
