"""Similarity of maps and channels to their final state, and of one frame to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError, unknown_name
from .blocks import FLAT, has_pattern

GREY_SCOPES = ("frame", "run")
"""The ranges that grey levels 0 to 255 can span: the frame's own, or one over all steps of an image."""


class Continuity(NamedTuple):
    """Changes from each recorded step to the next, ``(S - 1, N)`` each.

    Attributes:
        correlation: Pearson correlation of the two maps.
        pixel_change: mean over pixels of the absolute change, in grey levels (0 to 255).
        luminance_change: absolute change of the frame's mean, in grey levels: flicker. At most ``pixel_change``.
    """

    correlation: NDArray[np.float64]
    pixel_change: NDArray[np.float64]
    luminance_change: NDArray[np.float64]


def correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    r"""Pearson correlation of two maps over their last two axes.

    .. math::

        r = \frac{\sum_i (a_i - \bar a)(b_i - \bar b)}
                 {\sqrt{\sum_i (a_i - \bar a)^2}\,\sqrt{\sum_i (b_i - \bar b)^2}}

    with :math:`i` over the cells of the maps :math:`a` and :math:`b`, and bars for their means. Chance level: 0.

    Args:
        a, b: ``(..., h, w)``, of one resolution; leading axes broadcast.

    Returns:
        float64 of the leading axes, in [-1, 1]; NaN where a map is constant or not finite.

    Raises:
        FadevizError: if a map has fewer than two axes, or the resolutions differ.
    """
    a, b = np.asarray(a), np.asarray(b)
    if min(a.ndim, b.ndim) < 2 or a.shape[-2:] != b.shape[-2:]:
        raise FadevizError(f"maps (..., h, w) of one resolution are needed; got the shapes {a.shape} and {b.shape}")
    return dot_products(standardize(a), standardize(b))


def correlation_to_final(maps: NDArray[np.floating], final: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
    """Correlation of each step's map with that of the last step; see :func:`correlation`.

    Args:
        maps: ``(S, ..., h, w)``, over training.
        final: ``(..., h, w)``, map of the last step, if ``maps`` are a stretch before it; None takes the last of
            ``maps``.

    Returns:
        float64 ``(S, ...)``, in [-1, 1]: 1 at the last step; NaN where either map is constant or not finite.

    Raises:
        FadevizError: if there are fewer than three axes.
    """
    maps = check_axes(maps, 3, "(S, ..., h, w)")
    return correlation(maps, maps[-1] if final is None else final)


def settling_step(similarity: NDArray[np.floating], steps: Sequence[int], level: float = 0.9) -> NDArray[np.float64]:
    r"""First recorded step from which the similarity to the final state stays at or above a level.

    .. math:: t^* = \min\,\{t_i : s_j \ge \ell \text{ for all } j \ge i\}

    with :math:`s_j` the similarity at step :math:`t_j` and :math:`\ell` the level.

    Args:
        similarity: ``(S, ...)``, from :func:`correlation_to_final` or :func:`cka_to_final`.
        steps: the S recorded steps.
        level: similarity that counts as settled.

    Returns:
        float64 of the axes after the first. Missing similarities count as below the level. NaN where the last one is;
        the last step itself means that the map was still changing at the end.

    Units: optimiser steps.

    Raises:
        FadevizError: if there is not one step for each similarity.
    """
    if len(steps) != len(similarity):
        raise FadevizError(f"{len(similarity)} similarities, but {len(steps)} steps; one step for each is needed")
    below = ~(np.asarray(similarity) >= level)
    first = len(steps) - np.argmax(below[::-1], axis=0)
    first = np.where(below.any(0), first, 0)
    return np.append(np.asarray(steps, dtype=np.float64), np.nan)[first]


def linear_cka(a: NDArray[np.floating], b: NDArray[np.floating], *, debiased: bool = False) -> float:
    r"""Linear centred kernel alignment (CKA) of two representations of the same samples.

    .. math::

        \mathrm{CKA} = \frac{\mathrm{HSIC}(K, L)}{\sqrt{\mathrm{HSIC}(K, K)\,\mathrm{HSIC}(L, L)}}, \qquad
        K = a^\top a, \quad L = b^\top b

    Biased: :math:`\mathrm{HSIC}(K, L) = \operatorname{tr}(K_c L_c)` with the centred matrices. Debiased, with :math:`n`
    samples and :math:`K_0, L_0` the matrices with zero diagonals:

    .. math::

        \mathrm{HSIC}(K, L) = \operatorname{tr}(K_0 L_0)
            + \frac{\mathbf 1^\top K_0 \mathbf 1\;\mathbf 1^\top L_0 \mathbf 1}{(n-1)(n-2)}
            - \frac{2}{n-2}\,\mathbf 1^\top K_0 L_0 \mathbf 1

    It is computed from the p x q cross products of the centred features, in p q n operations instead of n^2 (p + q).

    Args:
        a: ``(p, n)``, p features of n samples: the channels of a map at its pixels.
        b: ``(q, n)``, features of the same samples in the same order.
        debiased: whether to use the unbiased estimate of HSIC; the biased one rises with p / n.

    Returns:
        In [0, 1]. Chance level of the debiased form: 0, possibly slightly below. Invariant to shifts, to one common
        scale and to rotations of the features. NaN where a representation is constant or not finite, for fewer than 2
        samples, and debiased for fewer than 4.

    Limit case: with one feature each it is the squared correlation.

    Raises:
        FadevizError: if an array does not have two axes, or the numbers of samples differ.

    Source: Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, section 3; unbiased HSIC:
    Song et al. 2012, Feature Selection via Dependence Maximization.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise FadevizError(
            f"features by samples, (p, n) and (q, n), are needed; got the shapes {a.shape} and {b.shape}"
        )
    samples = a.shape[1]
    if samples < (4 if debiased else 2):
        return float("nan")
    first, second = _centred_features(a), _centred_features(b)
    if first is None or second is None:
        return float("nan")
    cross = _hsic(first, second, debiased)
    norms = []
    for features in (first, second):
        norm = _hsic(features, features, debiased)
        # If all samples are equally similar, the unbiased HSIC is 0: what remains is rounding.
        if norm <= 1e-12 * _hsic(features, features, debiased=False):
            return float("nan")
        norms.append(norm)
    value = cross / float(np.sqrt(norms[0]) * np.sqrt(norms[1]))
    return value if debiased else min(value, 1.0)


def cka_to_final(
    maps: NDArray[np.floating], final: NDArray[np.floating] | None = None, *, debiased: bool = False
) -> NDArray[np.float64]:
    """Linear CKA of each step's channels with those of the last step; the samples are the pixels of one image.

    Args:
        maps: ``(S, n, C, h, w)``, of kind ``channels``, over training.
        final: ``(n, C, h, w)``, channels of the last step, if ``maps`` are a stretch before it; None takes the last of
            ``maps``.
        debiased: see :func:`linear_cka`; useful if C is not far below h w.

    Returns:
        float64 ``(S, n)``, in [0, 1]: 1 at the last step; NaN where undefined. Unlike a correlation it is unchanged by
        permutations and rotations of the channels.

    Raises:
        FadevizError: if there are not five axes.
    """
    maps = check_axes(maps, 5, "(S, n, C, h, w)", exactly=True)
    last = maps[-1] if final is None else final
    similarities = np.full(maps.shape[:2], np.nan)
    for step, image in np.ndindex(*similarities.shape):
        a, b = (frame[image].reshape(maps.shape[2], -1) for frame in (maps[step], last))
        similarities[step, image] = linear_cka(a, b, debiased=debiased)
    return similarities


def grey_levels(maps: NDArray[np.floating], scope: str = "frame") -> NDArray[np.float64]:
    r"""Grey levels that a drawing of each map shows.

    .. math:: g = \operatorname{round}\!\left(255\,\frac{F - \min F}{\max F - \min F}\right)

    with :math:`F` the map, and the range taken over the scope.

    Args:
        maps: ``(S, N, h, w)``, over training.
        scope: ``frame``, the range of each map, as in the paper; or ``run``, one range over all steps of an image.

    Returns:
        float64 of the same shape, in [0, 255]; NaN everywhere in a map that is constant or not finite.

    Raises:
        FadevizError: if there are not four axes, or the scope is unknown.
    """
    maps = check_axes(maps, 4, "(S, N, h, w)", exactly=True)
    if scope not in GREY_SCOPES:
        raise unknown_name("normalisation scope", scope, GREY_SCOPES)
    usable = has_pattern(maps)
    low = np.where(usable, maps.min((2, 3)).astype(np.float64), np.inf)
    high = np.where(usable, maps.max((2, 3)).astype(np.float64), -np.inf)
    if scope == "run":
        low, high = low.min(0, keepdims=True), high.max(0, keepdims=True)
    low, high = (np.where(usable, end, np.nan)[..., None, None] for end in (low, high))
    unit = (maps - low) / (high - low)
    # Through float32, as in drawing: the grey levels are the same.
    return np.rint(255.0 * unit.astype(np.float32).astype(np.float64))


def continuity(maps: NDArray[np.floating], scope: str = "frame") -> Continuity:
    """How much an animation of the maps changes from frame to frame.

    Args:
        maps: ``(S, N, h, w)``, over training.
        scope: range that the grey levels span, see :func:`grey_levels`.

    Returns:
        Three arrays ``(S - 1, N)``; NaN where either map is constant or not finite.

    Raises:
        FadevizError: if there are not four axes, or the scope is unknown.
    """
    maps = np.asarray(maps)
    grey, units = grey_levels(maps, scope), standardize(maps)
    return Continuity(
        correlation=dot_products(units[:-1], units[1:]),
        pixel_change=np.abs(np.diff(grey, axis=0)).mean((2, 3)),
        luminance_change=np.abs(np.diff(grey.mean((2, 3)), axis=0)),
    )


def frame_correlations(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """Correlation of every step's map with every other step's; see :func:`correlation`.

    Args:
        maps: ``(S, N, h, w)``, over training.

    Returns:
        float64 ``(N, S, S)``, symmetric, in [-1, 1]; NaN in the rows and columns of maps that are constant or not
        finite.

    Raises:
        FadevizError: if there are not four axes.
    """
    maps = check_axes(maps, 4, "(S, N, h, w)", exactly=True)
    tables = np.empty((maps.shape[1], len(maps), len(maps)))
    for image, table in enumerate(tables):
        units = standardize(maps[:, image]).reshape(len(maps), -1)
        missing = np.isnan(units).any(1)
        units[missing] = 0.0  # some BLAS libraries warn about NaN
        table[:] = np.clip(units @ units.T, -1.0, 1.0)
        table[missing] = np.nan
        table[:, missing] = np.nan
    return tables


def standardize(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """Maps centred and scaled to norm 1, so that a correlation is a dot product; NaN where a map has no pattern.

    Shape: ``(..., h, w)`` -> the same.
    """
    usable = has_pattern(maps)
    wide = maps.astype(np.float64)
    wide[~usable] = 0.0
    wide -= wide.mean((-2, -1), keepdims=True)
    norms = np.where(usable, np.sqrt(np.einsum("...yx,...yx->...", wide, wide)), np.nan)
    wide /= norms[..., None, None]
    return wide


def dot_products(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlations of maps from :func:`standardize`; NaN where either is."""
    products: NDArray[np.float64] = np.clip(np.einsum("...yx,...yx->...", a, b), -1.0, 1.0)
    return products


def _centred_features(features: NDArray[np.floating]) -> NDArray[np.float64] | None:
    """Features minus their mean over the samples; None if they are constant or not finite."""
    if not features.size or not np.isfinite(features).all():
        return None
    wide = features.astype(np.float64)
    level = np.abs(wide).max()
    wide -= wide.mean(1, keepdims=True)
    return wide if np.abs(wide).max() > FLAT * level else None


def _hsic(a: NDArray[np.float64], b: NDArray[np.float64], debiased: bool) -> float:
    """HSIC of centred features, up to a factor that depends on n alone and cancels in the ratio."""
    cross = float(((a @ b.T) ** 2).sum())
    if not debiased:
        return cross
    samples = a.shape[1]
    sizes_a, sizes_b = (a**2).sum(0), (b**2).sum(0)
    return (
        cross
        - samples / (samples - 2) * float(sizes_a @ sizes_b)
        + float(sizes_a.sum() * sizes_b.sum()) / ((samples - 1) * (samples - 2))
    )


def check_axes(maps: NDArray[np.floating], axes: int, wanted: str, *, exactly: bool = False) -> NDArray[np.floating]:
    """Maps as an array, after a check of its axes; ``wanted`` names them in the message.

    Raises:
        FadevizError: if there are fewer axes, more of them where ``exactly``, or no steps.
    """
    maps = np.asarray(maps)
    if maps.ndim < axes or (exactly and maps.ndim != axes) or not len(maps):
        raise FadevizError(f"maps over training {wanted} are needed; got the shape {maps.shape}")
    return maps
