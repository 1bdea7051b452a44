"""Images that stay in memory once they have been read or generated: a test set, or a pool generated ahead."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ..errors import FadevizError
from . import Dataset, Sample

KEEP_BYTES = 1 << 29
"""Size limit of a test set in memory, half a gigabyte; images beyond it are read or generated each time.

64 synthetic horses of 224x224 take 26 MB, 64 synthetic mattes of 512x512 take 250 MB, and half a gigabyte is 390 ADE20K
squares of 512x512.
"""


class Kept:
    """A data set that keeps the images it returned in memory, up to ``limit`` bytes. Its arrays are read-only.

    Args:
        dataset: the data set to keep.
        limit: size limit in bytes.

    Example:
        >>> from fadeviz.data.synthetic.dataset import SyntheticHorses
        >>> kept = Kept(SyntheticHorses(64, count=3))
        >>> kept[2].image is kept[2].image
        True
    """

    def __init__(self, dataset: Dataset, limit: int = KEEP_BYTES) -> None:
        self.dataset = dataset
        self._left = limit
        self._samples: dict[int, Sample] = {}

    @property
    def count(self) -> int | None:
        """The number of images, or None for an endless set."""
        return self.dataset.count

    def __getitem__(self, index: int) -> Sample:
        """The image at this index; faults are those of the data set."""
        index = operator.index(index)
        if index not in self._samples:
            sample = _read_only(self.dataset[index])
            size = _bytes_of(sample)
            if size > self._left:
                return sample
            self._left -= size
            self._samples[index] = sample
        return self._samples[index]

    def __repr__(self) -> str:
        return f"Kept({self.dataset!r})"


class Pool:
    """The first ``count`` images of an endless data set, generated once, as a repeating epoch.

    An image is drawn on its first access, or before by :func:`fadeviz.training.batches.draw_pool`, and kept as
    uint8. Its arrays are read-only.

    *Shape*: as of ``dataset``. Without ``mattes``, image and mask alone are kept: 200 KB at 224x224.

    Args:
        dataset: an endless set.
        count: the number of images, 1 or more.
        mattes: keep all arrays of a sample; alpha in 8 bits, which is exact for this package's sets.

    Raises:
        FadevizError: if the set is not endless, or the count is below 1.
    """

    def __init__(self, dataset: Dataset, count: int, *, mattes: bool = False) -> None:
        if dataset.count is not None:
            raise FadevizError(f"a pool is of a data set that never ends, and {dataset!r} has {dataset.count} images")
        if count < 1:
            raise FadevizError(f"pool is {count}; it must be 1 or more")
        self.dataset = dataset
        self.count = count
        self.mattes = mattes
        self._samples: dict[int, Sample] = {}

    @property
    def drawn(self) -> int:
        """How many images are there already."""
        return len(self._samples)

    def missing(self) -> list[int]:
        """The indices of those that are not, in order."""
        return [index for index in range(self.count) if index not in self._samples]

    def put(self, index: int, sample: Sample) -> None:
        """Keep the image that the data set has at this index."""
        if not self.mattes:
            sample = Sample(sample.name, sample.image, sample.mask)
        elif sample.alpha is not None:
            sample = sample._replace(alpha=np.rint(sample.alpha * 255).astype(np.uint8))
        self._samples[index] = _read_only(sample)

    def __getitem__(self, index: int) -> Sample:
        """The image at this index.

        Raises:
            IndexError: if there is no such index; negative indices are not supported.
        """
        index = operator.index(index)
        if not 0 <= index < self.count:
            raise IndexError(f"no image {index}: the pool has {self.count}, from 0")
        if index not in self._samples:
            self.put(index, self.dataset[index])
        sample = self._samples[index]
        return (
            sample if sample.alpha is None else sample._replace(alpha=sample.alpha.astype(np.float32) / np.float32(255))
        )

    def __repr__(self) -> str:
        return f"Pool({self.dataset!r}, {self.count})"


def _read_only(sample: Sample) -> Sample:
    """The same arrays, as views that cannot be written to."""
    parts: dict[str, Any] = {}
    for name, part in sample._asdict().items():
        if isinstance(part, np.ndarray):
            parts[name] = part.view()
            parts[name].flags.writeable = False
    return sample._replace(**parts)


def _bytes_of(sample: Sample) -> int:
    return sum(part.nbytes for part in sample if isinstance(part, np.ndarray))


__all__ = ["KEEP_BYTES", "Kept", "Pool"]
