"""Images with masks, as numpy arrays: the interface between data sets, training and observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Sample(NamedTuple):
    """One image with its ground truth.

    Attributes:
        name: the image's name in ``run.json``, such as a file's stem.
        image: ``(H, W, 3)`` uint8, sRGB.
        mask: ``(H, W)`` uint8, the class of each pixel; for horses 0 is ground and 1 is horse.
        alpha: ``(H, W)`` float32 in [0, 1], the matte, or None if the data set has none.
        trimap: ``(H, W)`` uint8: 0 is background, 128 unknown, 255 foreground; None without a matte.
        foreground: ``(H, W, 3)`` uint8, the foreground's colour wherever alpha is above 0; or None.
        background: ``(H, W, 3)`` uint8, the background's colour; or None.
    """

    name: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    alpha: NDArray[np.float32] | None = None
    trimap: NDArray[np.uint8] | None = None
    foreground: NDArray[np.uint8] | None = None
    background: NDArray[np.uint8] | None = None


class Dataset(Protocol):
    """Images by index. ``count`` is their number; None means endless: every index from 0 is a new image."""

    @property
    def count(self) -> int | None:
        """The number of images, or None for an endless set."""

    def __getitem__(self, index: int) -> Sample:
        """The image at this index, always the same one for the same index."""


@dataclass(frozen=True)
class Splits:
    """The training and test images of a run.

    Attributes:
        train: the training images.
        test: the test images; their ``count`` is not None.
        info: the entry in ``run.json``; except for ``folder``, it is part of the run's id.
        classes: number of classes in the masks.
    """

    train: Dataset
    test: Dataset
    info: Mapping[str, object] = field(default_factory=dict)
    classes: int = 2
