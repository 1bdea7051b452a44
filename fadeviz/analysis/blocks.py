"""Maps in blocks of a few steps, so that a long run is read once and is never in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.maps import Maps

BLOCK = 2**16
"""Values per block: few enough for float64 intermediates to stay in the processor's cache."""


def in_blocks(maps: Maps | NDArray[Any], before: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
    """Iterate over blocks of maps along the first axis, the steps.

    Args:
        maps: ``(S, ...)``, an array, or maps that lie in files: of those each step is read once.
        before: so many steps that come before a stretch are given with it, as far as there are any.

    Yields:
        The index of the block's first step, and its maps, preceded by earlier ones if ``before`` asks for them.
    """
    length = max(1, BLOCK // max(1, math.prod(maps.shape[1:])))
    kept = maps[:0]
    for start in range(0, len(maps), length):
        block = maps[start : start + length]
        given = np.concatenate([kept, block]) if len(kept) else block
        yield start, given
        kept = given[max(0, len(given) - before) :] if before else kept
