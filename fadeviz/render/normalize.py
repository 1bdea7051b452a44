"""Normalisation: the range of values that the colours span, and maps relative to that range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError, unknown_name

SCOPES = {
    "frame": "each frame spans its own range, as in the paper",
    "run": "one range over all frames of a run",
    "shared": "one range over all runs shown",
}
"""The scopes of a range: over what its two ends are computed."""


class Limits(NamedTuple):
    """The values that the two ends of a colour map stand for."""

    low: float
    high: float


FIXED_RANGES = {"gate": Limits(0.0, 1.0), "kernel_entropy": Limits(0.0, 1.0)}
"""Kinds with a fixed range in the scopes ``run`` and ``shared``."""


def find_limits(
    maps: NDArray[np.floating],
    kind: str,
    percentiles: tuple[float, float] = (0.0, 100.0),
    *,
    scope: str = "run",
    centered: bool = False,
) -> Limits:
    """The range of the finite values of ``maps``.

    Args:
        maps: any shape; non-finite values do not count.
        kind: a name in ``KINDS``. In the scopes ``run`` and ``shared``, gradients start at 0, and ``gate`` and
            ``kernel_entropy`` always span 0 to 1. In the scope ``frame`` every kind spans its own values.
        percentiles: ends of the range, in percent of the values; (0, 100) is minimum and maximum.
        scope: a name in ``SCOPES``.
        centered: widen the range to be symmetric about 0, for diverging colour maps.

    Returns:
        The limits; (0, 0) where nothing is finite.

    Raises:
        FadevizError: if the scope is unknown, or the percentiles are not 0 <= low < high <= 100.
    """
    if scope not in SCOPES:
        raise unknown_name("normalisation scope", scope, SCOPES)
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise FadevizError(
            f"percentiles {percentiles[0]:g} and {percentiles[1]:g}: "
            "the first must be smaller than the second, both in 0 to 100"
        )
    if scope != "frame" and kind in FIXED_RANGES:
        return FIXED_RANGES[kind]
    finite = maps[np.isfinite(maps)].astype(np.float64)
    if finite.size == 0:
        return Limits(0.0, 0.0)
    if tuple(percentiles) == (0, 100):
        low, high = float(finite.min()), float(finite.max())
    else:
        low, high = map(float, np.percentile(finite, percentiles))
    if scope != "frame" and kind == "gradient":
        low = min(0.0, high)
    if centered:
        high = max(abs(low), abs(high))
        low = -high
    return Limits(low, high)


def limits_by_scope(
    maps: Sequence[NDArray[np.floating]],
    runs: Sequence[object],
    kind: str,
    scope: str,
    percentiles: tuple[float, float] = (0.0, 100.0),
    *,
    centered: bool = False,
) -> list[tuple[Limits, ...]]:
    """The limits of every frame of every sequence; each range is computed once.

    Args:
        maps: sequences of frames, each ``(T, h, w)``.
        runs: the run of each sequence, as any hashable; sequences of one run share a range in the scope ``run``.
        kind, scope, percentiles, centered: see :func:`find_limits`.

    Returns:
        For each sequence a tuple of T limits.
    """

    def over(values: NDArray[np.floating]) -> Limits:
        return find_limits(values, kind, percentiles, scope=scope, centered=centered)

    if scope == "frame":
        return [tuple(over(frame) for frame in sequence) for sequence in maps]
    groups = [0 if scope == "shared" else run for run in runs]
    ranges = {}
    for group in dict.fromkeys(groups):
        members = [sequence.ravel() for sequence, g in zip(maps, groups, strict=True) if g == group]
        ranges[group] = over(np.concatenate(members))
    return [(ranges[group],) * len(sequence) for sequence, group in zip(maps, groups, strict=True)]


def normalize(values: NDArray[np.floating], limits: Limits) -> NDArray[np.float32]:
    """Float32 values relative to two limits.

    Returns:
        float32 of the same shape in [0, 1]: values outside the limits are clipped, non-finite ones are NaN. If the
        limits are equal, a value that equals them becomes 0.5: a constant map is mid-grey.
    """
    # float64 represents the difference of any two float32 values without overflow or underflow.
    wide = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(wide)
    wide = np.where(finite, wide, limits.low)
    span = limits.high - limits.low
    unit = (wide - limits.low) / span if span > 0 else 0.5 + 0.5 * np.sign(wide - limits.low)
    return np.where(finite, np.clip(unit, 0.0, 1.0), np.nan).astype(np.float32)
