"""Chance levels: what a response reaches when the masks are dealt anew among the images."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .contrasts import own_less_others

DRAWN = 1999
"""Random deals of the masks, besides the true one, where there are too many to try all."""

ALL_UP_TO = 7
"""Number of images up to which all deals of the masks are tried: 7! = 5040."""

LIMIT_LEVEL = 0.95
"""Quantile of the dealt maxima that the chance level is."""

_BLOCK = 2**22
"""Values of dealt curves in memory at a time."""


@dataclass(frozen=True)
class ChanceLevel:
    """A response of R runs against dealt masks.

    Attributes:
        curves: ``(R, S)``, the response of each run: own mask less other masks, 1 for perfect maps.
        strength: ``(S,)``, mean over the runs of the magnitude of the smoothed curves; of their values where the sign
            is known.
        level: what the largest strength of all steps stays below in 95 % of the deals: a band for all steps at once.
        p: share of the deals whose largest strength is at least the true one's.
        p_start: the same for the first snapshot alone, unsmoothed.
    """

    curves: NDArray[np.float64]
    strength: NDArray[np.float64]
    level: float
    p: float
    p_start: float


def smooth(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each snapshot and its two neighbours (one at the ends), along the last axis."""
    padded = np.pad(curves, [(0, 0)] * (curves.ndim - 1) + [(1, 1)])
    count = np.full(curves.shape[-1], 3.0)
    count[0] -= 1
    count[-1] -= 1
    total: NDArray[np.float64] = (padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]) / count
    return total


def deals(images: int, seed: int = 0) -> NDArray[np.intp]:
    """Permutations of the images, ``(P, N)``, the true one first: all of up to 7 images, else 1999 random ones."""
    if images <= ALL_UP_TO:
        return np.array(list(itertools.permutations(range(images))), np.intp)
    drawn = np.random.default_rng(seed).random((DRAWN, images)).argsort(axis=1)
    return np.vstack([np.arange(images), drawn])


def chance_level(
    table: NDArray[np.float64], perfect: NDArray[np.float64], dealt: NDArray[np.intp], *, known_sign: bool = False
) -> ChanceLevel:
    """Compare the response of R runs with that for masks dealt anew, the same deal for all runs and steps.

    Args:
        table: ``(R, S, N, N)``, contrasts of map n read with mask m.
        perfect: ``(N, N)``, those of the masks themselves.
        dealt: ``(P, N)``, from :func:`deals`, the true deal first.
        known_sign: whether objects can only be bright; otherwise the runs' signs are free, and each run counts by its
            magnitude.
    """
    runs, steps, images = table.shape[:3]
    room = float(own_less_others(perfect))
    # Row p of the matrix selects map n with mask dealt[p, n], for all n.
    columns = (np.arange(images) * images + dealt).ravel()
    rows = np.repeat(np.arange(len(dealt)), images)
    selection = sparse.csr_array((np.ones(len(columns)), (rows, columns)), shape=(len(dealt), images * images))
    flat = table.reshape(runs * steps, images * images)
    rest = flat.sum(1) / images
    length = max(1, _BLOCK // max(1, runs * steps))
    largest, first, curves, strength = [], [], None, None
    for start in range(0, len(dealt), length):
        sums = (selection[start : start + length] @ flat.T - rest) / ((images - 1) * room)
        dealt_curves = sums.reshape(-1, runs, steps)
        smoothed, starts = smooth(dealt_curves), dealt_curves[:, :, 0]
        magnitudes = (smoothed if known_sign else np.abs(smoothed)).mean(1)
        largest.append(magnitudes.max(1))
        first.append((starts if known_sign else np.abs(starts)).mean(1))
        if curves is None:
            curves, strength = dealt_curves[0], magnitudes[0]
    assert curves is not None
    assert strength is not None
    tops = np.concatenate(largest)
    return ChanceLevel(
        curves=curves,
        strength=strength,
        level=float(np.quantile(tops, LIMIT_LEVEL)),
        p=_share_at_least(tops),
        p_start=_share_at_least(np.concatenate(first)),
    )


def _share_at_least(values: NDArray[np.float64]) -> float:
    """Share of the values that are at least the first one, to rounding."""
    return float((values >= values[0] * (1 - 1e-9) - 1e-12).mean())
