"""A training in stretches: maps a few steps at a time, so that a long run is read once and never held whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runs import Maps

BLOCK = 2**16
"""So many values at a time: what is computed of them in float64 stays in a processor's cache."""


def in_blocks(maps: Maps | NDArray[Any], before: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
    """Stretches of maps along the first axis, the steps, one after the other.

    Args:
        maps: ``(S, ...)``, an array, or maps that lie in files: of those each step is read once.
        before: so many steps that come before a stretch are given with it, as far as there are any.

    Yields:
        The number of the stretch's first step, and its maps: the last of them, if ``before`` puts others in front.
    """
    length = max(1, BLOCK // max(1, math.prod(maps.shape[1:])))
    kept = maps[:0]
    for start in range(0, len(maps), length):
        block = maps[start : start + length]
        given = np.concatenate([kept, block]) if len(kept) else block
        yield start, given
        kept = given[max(0, len(given) - before) :] if before else kept
