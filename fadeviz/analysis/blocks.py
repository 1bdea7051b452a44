"""Maps in blocks of a few steps, so that a long run is read once, and the maps that can be measured at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.stored_run import Maps

BLOCK = 2**16
"""Values per block: few enough for float64 intermediates to stay in the processor's cache."""


FLAT = 4 * float(np.finfo(np.float32).eps)
"""A map whose range is below this share of its largest magnitude is constant: what is left is float32 rounding."""


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


def has_pattern(maps: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether a map is finite and more than constant: what every measure here asks of it.

    Shape: ``(..., h, w)`` -> ``(...)``.
    """
    axes = (-2, -1)
    if 0 in maps.shape[-2:]:
        return np.zeros(maps.shape[:-2], bool)
    # The ends tell it all: what is not finite is one of them.
    low, high = (np.asarray(end, np.float64) for end in (maps.min(axes), maps.max(axes)))
    finite = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(finite, low, 0), np.where(finite, high, 0)
    return np.asarray(high - low > FLAT * np.maximum(np.abs(low), np.abs(high)))
