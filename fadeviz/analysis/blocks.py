"""Maps in blocks of a few steps, so that a long run is read once and never held in memory; and which are defined."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.maps import Maps

BLOCK = 2**16
"""Values per block: few enough for float64 intermediates to fit in the processor's cache."""


FLAT = 4 * float(np.finfo(np.float32).eps)
"""Share of a map's largest magnitude below which its range is float32 rounding: such a map counts as constant."""


def in_blocks(maps: Maps | NDArray[Any], before: int = 0, *, values: int = BLOCK) -> Iterator[tuple[int, NDArray[Any]]]:
    """Iterate over blocks of maps along the first axis, the steps.

    Args:
        maps: ``(S, ...)``, an array, or maps in files, which are read once per step.
        before: number of preceding steps to add to each block, as far as there are any.
        values: values per block.

    Yields:
        The index of the block's first step, and the block's maps after the preceding ones.
    """
    length = max(1, values // max(1, math.prod(maps.shape[1:])))
    kept = maps[:0]
    for start in range(0, len(maps), length):
        block = maps[start : start + length]
        preceded = np.concatenate([kept, block]) if len(kept) else block
        yield start, preceded
        kept = preceded[max(0, len(preceded) - before) :] if before else kept


def has_pattern(maps: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether a map is finite and not constant; measures of all other maps are NaN.

    Shape: ``(..., h, w)`` -> ``(...)``.
    """
    axes = (-2, -1)
    if 0 in maps.shape[-2:]:
        return np.zeros(maps.shape[:-2], bool)
    return varies(maps.min(axes), maps.max(axes))


def varies(low: NDArray[np.floating], high: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether maps with these lowest and highest values are finite and not constant up to rounding.

    The two ends suffice: non-finite values are among them.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    finite = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(finite, low, 0), np.where(finite, high, 0)
    return np.asarray(high - low > FLAT * np.maximum(np.abs(low), np.abs(high)))
