"""The control condition with nothing to learn: every image has the mask of another one."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from . import Dataset, Sample

BLOCK = 256
"""An endless data set is shuffled in blocks of this many consecutive images."""


def derangement(count: int, seed: int, block: int = 0) -> NDArray[np.int64]:
    """A random permutation of ``0 .. count - 1`` without fixed points, uniform among all of these.

    Args:
        count: 2 or more.
        seed: another seed gives another permutation, as does another ``block``.
        block: number of the permutation among those of the seed.

    Raises:
        FadevizError: if ``count`` is below 2.
    """
    if count < 2:
        raise FadevizError(f"shuffled labels need 2 training images or more, there are {count}. Use labels='true'")
    # The 2 keeps these numbers apart from those of the order, [seed, epoch], and of the flips, [seed, step, 1].
    random = np.random.Generator(np.random.PCG64([seed, block, 2]))
    places = np.arange(count)
    while True:  # about e times on average, whatever the count
        order = random.permutation(count)
        if not (order == places).any():
            return order


class ShuffledLabels:
    """A data set whose images have each other's masks, by one fixed derangement of a seed.

    Every mask is used as often as before, so that the shares of the classes and the mean mask stay the same: where
    objects usually are can still be learned, and nothing else. An endless set is shuffled in blocks of ``BLOCK``.

    Shape: that of ``dataset``, whose images have one size.
    Cost: a second image is read or generated for each.
    Raises: FadevizError if the data set has fewer than two images.
    """

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        """``dataset`` stays as it is; ``seed`` is that of the derangement."""
        self.dataset = dataset
        self.seed = seed
        self._order(0)  # too few images are found here

    @property
    def count(self) -> int | None:
        """The number of images, or None for an endless set."""
        return self.dataset.count

    def source(self, index: int) -> int:
        """The index of the image whose mask the image at ``index`` gets."""
        if self.count is not None:
            return int(self._order(0)[index])
        block, place = divmod(index, BLOCK)
        return block * BLOCK + int(self._order(block)[place])

    def __getitem__(self, index: int) -> Sample:
        """The image at this index under its own name, with another one's mask and matte."""
        own = self.dataset[index]  # first: an index that there is not is reported by the data set
        other = self.dataset[self.source(index)]
        return own._replace(mask=other.mask, alpha=other.alpha)

    def _order(self, block: int) -> NDArray[np.int64]:
        return _kept_derangement(BLOCK if self.count is None else self.count, self.seed, block)


_kept_derangement = lru_cache(maxsize=8)(derangement)
