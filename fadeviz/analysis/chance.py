"""Permutation test: the response that chance gives, from masks permuted among the images."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .contrasts import own_less_others

DRAWN = 1999
"""Random permutations of the masks, besides the identity, where there are too many to try all."""

ALL_UP_TO = 7
"""Number of images up to which all permutations of the masks are tried: 7! = 5040."""

LIMIT_LEVEL = 0.95
"""Quantile of the largest strengths of the permutations, which is the chance level."""

CERTAIN = 3.0
"""Standard deviations over the permutations beyond which the response at one snapshot is not chance."""

_BLOCK = 2**22
"""Values of curves for permuted masks in memory at a time."""


@dataclass(frozen=True)
class ChanceLevel:
    """A response of R runs, and its permutation test.

    Attributes:
        curves: ``(R, S)``, the response of each run: own mask less other masks, 1 for perfect maps.
        strength: ``(S,)``, mean over the runs of the magnitude of the smoothed curves; of their values where the sign
            is known.
        level: the largest strength over all steps stays below this in 95 % of the permutations: a simultaneous band.
        bounds: ``(S,)``, magnitude of the runs' mean beyond which a smoothed response is not chance at that snapshot:
            ``CERTAIN`` standard deviations there, and at most the level. Of a strong response, the masks permuted, much
            is left: the level, which holds at all steps, is then far above what a weak one before it has.
        run_bounds: ``(R, S)``, the same for each run by itself.
        p: share of the permutations whose largest strength is at least that of the true masks.
        p_start: the same for the first snapshot alone, unsmoothed.
    """

    curves: NDArray[np.float64]
    strength: NDArray[np.float64]
    level: float
    bounds: NDArray[np.float64]
    run_bounds: NDArray[np.float64]
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


def permute_images(images: int, seed: int = 0) -> NDArray[np.intp]:
    """Permutations of the images, ``(P, N)``, the identity first: all for up to 7 images, else 1999 random ones."""
    if images <= ALL_UP_TO:
        return np.array(list(itertools.permutations(range(images))), np.intp)
    drawn = np.random.default_rng(seed).random((DRAWN, images)).argsort(axis=1)
    return np.vstack([np.arange(images), drawn])


def chance_level(
    table: NDArray[np.float64],
    perfect: NDArray[np.float64],
    permutations: NDArray[np.intp],
    *,
    known_sign: bool = False,
) -> ChanceLevel:
    """Compare the response of R runs with that for permuted masks, the same permutation for all runs and steps.

    Args:
        table: ``(R, S, N, N)``, contrasts of map n read with mask m.
        perfect: ``(N, N)``, those of the masks themselves.
        permutations: ``(P, N)``, from :func:`permute_images`, the identity first.
        known_sign: whether objects can only be bright; otherwise the runs' signs are free, and each run counts by its
            magnitude.
    """
    runs, steps, images = table.shape[:3]
    room = float(own_less_others(perfect))
    # Row p of the matrix selects map n with mask permutations[p, n], for all n.
    columns = (np.arange(images) * images + permutations).ravel()
    rows = np.repeat(np.arange(len(permutations)), images)
    selection = sparse.csr_array((np.ones(len(columns)), (rows, columns)), shape=(len(permutations), images * images))
    flat = table.reshape(runs * steps, images * images)
    rest = flat.sum(1) / images
    length = max(1, _BLOCK // max(1, runs * steps))
    largest, first, of_runs, curves, strength = [], [], [], None, None
    squares = np.zeros((runs, steps))
    for start in range(0, len(permutations), length):
        sums = (selection[start : start + length] @ flat.T - rest) / ((images - 1) * room)
        permuted = sums.reshape(-1, runs, steps)
        smoothed, starts = smooth(permuted), permuted[:, :, 0]
        sizes = np.abs(smoothed)
        magnitudes = (smoothed if known_sign else sizes).mean(1)
        largest.append(magnitudes.max(1))
        of_runs.append(sizes.max(2))
        squares += (sizes**2).sum(0)
        first.append((starts if known_sign else np.abs(starts)).mean(1))
        if curves is None:
            curves, strength = permuted[0], magnitudes[0]
    assert curves is not None
    assert strength is not None
    tops = np.concatenate(largest)
    level = float(np.quantile(tops, LIMIT_LEVEL))
    run_levels = np.quantile(np.concatenate(of_runs), LIMIT_LEVEL, axis=0)
    certain = CERTAIN * np.sqrt(squares / len(permutations))
    return ChanceLevel(
        curves=curves,
        strength=strength,
        level=level,
        bounds=np.minimum(certain.mean(0), level),
        run_bounds=np.minimum(certain, run_levels[:, None]),
        p=_share_at_least(tops),
        p_start=_share_at_least(np.concatenate(first)),
    )


def _share_at_least(values: NDArray[np.float64]) -> float:
    """Share of the values that are at least the first one, to rounding."""
    return float((values >= values[0] * (1 - 1e-9) - 1e-12).mean())
