"""Similarity: of maps to their final state, of one frame to the next, and of pixels to the centre of their class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError, unknown_name
from ..storage.maps import Maps
from ..storage.stored_run import StoredRun
from .blocks import in_blocks
from .spectrum import FLAT, has_pattern

SPLICE_MARGIN = 0.5
SPLICE_FLOOR = 0.8
"""A span of frames is foreign where the frames around it correlate at least the second with each other, and by more
than the first better than with the span's own ends. Trainings whose every file is theirs reach 0.41 (a gradient map in
the first steps); the two published strips that look spliced have 0.74 and 1.1."""

GREY_SCOPES = ("frame", "run")
"""Over what the grey levels of a frame span 0 to 255: its own range, or one range over all steps of an image."""


class Continuity(NamedTuple):
    """From each recorded step to the next, ``(S - 1, N)`` each.

    Attributes:
        correlation: Pearson correlation of the two maps.
        pixel_change: mean over pixels of the absolute change, in grey levels (0 to 255).
        luminance_change: absolute change of the frame's mean, in grey levels: flicker. Never above ``pixel_change``.
    """

    correlation: NDArray[np.float64]
    pixel_change: NDArray[np.float64]
    luminance_change: NDArray[np.float64]


class Splice(NamedTuple):
    """What of a run does not come from its own training.

    Attributes:
        files: snapshot files that carry the id of another run; ``Run`` leaves them out of its maps.
        spans: first and last step of each stretch of frames that does not fit in between its neighbours.
    """

    files: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def found(self) -> bool:
        """Whether there is anything to flag."""
        return bool(self.files or self.spans)


class RegionSimilarity(NamedTuple):
    """Pixels of one region against the centres of the classes; each of the shape of the leading axes.

    Attributes:
        intra: cosine similarity of a pixel with the centre of its own class; mean over pixels, then over classes.
        inter: the same with the nearest centre of another class.
        accuracy: share of the pixels of all classes that are no nearer to another centre than to their own.
    """

    intra: NDArray[np.float64]
    inter: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def margin(self) -> NDArray[np.float64]:
        """How much nearer a pixel is to its own centre: ``intra - inter``."""
        return self.intra - self.inter


class ClassSimilarity(NamedTuple):
    """FreqFusion's measures of a feature map, at the classes' edges and in their interior.

    Attributes:
        edge: pixels in the band along the contours.
        interior: all other pixels.
        centres: mean cosine similarity of two classes' centres.
    """

    edge: RegionSimilarity
    interior: RegionSimilarity
    centres: NDArray[np.float64]


def correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Pearson correlation of two maps over their last two axes.

    Args:
        a, b: ``(..., h, w)``, of one resolution; leading axes broadcast.

    Returns:
        float64 of the leading axes, in [-1, 1]; NaN where a map is constant or not finite.

    Raises:
        FadevizError: fewer than two axes, or different resolutions.
    """
    a, b = np.asarray(a), np.asarray(b)
    if min(a.ndim, b.ndim) < 2 or a.shape[-2:] != b.shape[-2:]:
        raise FadevizError(f"maps of one resolution are needed, (..., h, w); got the shapes {a.shape} and {b.shape}")
    return _product(_unit(a), _unit(b))


def to_final(maps: NDArray[np.floating], final: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
    """Correlation of each step's map with that of the last step.

    Args:
        maps: ``(S, ..., h, w)``, over the training.
        final: ``(..., h, w)``, the map of the last step, where ``maps`` are a stretch before it; None takes their last.

    Returns:
        float64 ``(S, ...)``: 1 at the last step; NaN where either map is constant or not finite.

    Raises:
        FadevizError: fewer than three axes.
    """
    maps = _steps_first(maps, 3, "(S, ..., h, w)")
    return correlation(maps, maps[-1] if final is None else final)


def settled_at(similarity: NDArray[np.floating], steps: Sequence[int], level: float = 0.9) -> NDArray[np.float64]:
    """The first recorded step from which the similarity to the final state never falls below ``level`` again.

    Args:
        similarity: ``(S, ...)``, of :func:`to_final` or :func:`cka_to_final`.
        steps: the S recorded steps.
        level: the similarity that counts as settled.

    Returns:
        float64 of the axes after the first. Missing similarities count as not settled. NaN where the last is missing or
        below the level; the last step itself means that the map was still changing at the end.

    Units: optimiser steps.

    Raises:
        FadevizError: not one step for each similarity.
    """
    if len(steps) != len(similarity):
        raise FadevizError(f"{len(similarity)} similarities but {len(steps)} steps; one step for each is needed")
    below = ~(np.asarray(similarity) >= level)
    first = len(steps) - np.argmax(below[::-1], axis=0)
    first = np.where(below.any(0), first, 0)
    return np.append(np.asarray(steps, dtype=np.float64), np.nan)[first]


def linear_cka(a: NDArray[np.floating], b: NDArray[np.floating], *, debiased: bool = False) -> float:
    """Linear centred kernel alignment of two representations of the same samples.

    ``CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` with ``K = a^T a`` and ``L = b^T b``. Biased:
    ``HSIC = tr(Kc Lc)`` of the centred matrices. Debiased, with n samples and K0, L0 that have zero diagonals:
    ``HSIC = tr(K0 L0) + sum(K0) sum(L0) / ((n - 1)(n - 2)) - 2 / (n - 2) sum(K0 L0)``. Computed from the p x q cross
    products of the centred features, which costs p q n and not n^2 (p + q).

    Args:
        a: ``(p, n)``, p features of n samples: the channels of a map over its pixels.
        b: ``(q, n)``, of the same samples in the same order.
        debiased: take the unbiased estimate of HSIC; the biased one rises with p / n.

    Returns:
        In [0, 1]; debiased about 0 for unrelated representations, or a little below. Invariant to shifts, to one scale
        and to rotations of the features. NaN where a representation is constant or not finite, with fewer than 2
        samples, and debiased with fewer than 4.

    Limit case: with one feature each it is the squared correlation.

    Raises:
        FadevizError: not two axes each, or different numbers of samples.

    Source: Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, section 3; unbiased HSIC:
    Song et al. 2012, Feature Selection via Dependence Maximization.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise FadevizError(f"(p, n) and (q, n) are needed, features by samples; got the shapes {a.shape} and {b.shape}")
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
        # Samples that are all equally alike have an unbiased HSIC of 0: what is left is rounding.
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
        maps: ``(S, n, C, h, w)``, the kind ``channels`` over the training.
        final: ``(n, C, h, w)``, those of the last step, where ``maps`` are a stretch before it; None takes their last.
        debiased: see :func:`linear_cka`; worth it where C is not far below h w.

    Returns:
        float64 ``(S, n)``: 1 at the last step; NaN where it is undefined. Unlike a correlation it stays 1 when channels
        are permuted or rotated.

    Raises:
        FadevizError: not five axes.
    """
    maps = _steps_first(maps, 5, "(S, n, C, h, w)", exactly=True)
    last = maps[-1] if final is None else final
    found = np.full(maps.shape[:2], np.nan)
    for step, image in np.ndindex(*found.shape):
        a, b = (frame[image].reshape(maps.shape[2], -1) for frame in (maps[step], last))
        found[step, image] = linear_cka(a, b, debiased=debiased)
    return found


def grey_levels(maps: NDArray[np.floating], scope: str = "frame") -> NDArray[np.float64]:
    """The grey levels, 0 to 255, that an image of each map shows: ``round(255 (F - min) / (max - min))``.

    Args:
        maps: ``(S, N, h, w)``.
        scope: ``frame``, the range of each map, as in the paper; or ``run``, one range over all steps of an image.

    Returns:
        float64 of the same shape; NaN all over where a map is constant or not finite.

    Raises:
        FadevizError: not four axes, or an unknown scope.
    """
    maps = _steps_first(maps, 4, "(S, N, h, w)", exactly=True)
    if scope not in GREY_SCOPES:
        raise unknown_name("normalisation scope", scope, GREY_SCOPES)
    usable = has_pattern(maps)
    low = np.where(usable, maps.min((2, 3)).astype(np.float64), np.inf)
    high = np.where(usable, maps.max((2, 3)).astype(np.float64), -np.inf)
    if scope == "run":
        low, high = low.min(0, keepdims=True), high.max(0, keepdims=True)
    low, high = (np.where(usable, end, np.nan)[..., None, None] for end in (low, high))
    unit = (maps - low) / (high - low)
    # In float32 in between, as images are made: the same levels to the last one.
    return np.rint(255.0 * unit.astype(np.float32).astype(np.float64))


def continuity(maps: NDArray[np.floating], scope: str = "frame") -> Continuity:
    """How much a movie of the maps changes from frame to frame.

    Args:
        maps: ``(S, N, h, w)``, over the training.
        scope: how the frames are turned into grey levels, see :func:`grey_levels`.

    Returns:
        Three arrays ``(S - 1, N)``; NaN where either map is constant or not finite.

    Raises:
        FadevizError: not four axes, or an unknown scope.
    """
    maps = np.asarray(maps)
    grey, units = grey_levels(maps, scope), _unit(maps)
    return Continuity(
        correlation=_product(units[:-1], units[1:]),
        pixel_change=np.abs(np.diff(grey, axis=0)).mean((2, 3)),
        luminance_change=np.abs(np.diff(grey.mean((2, 3)), axis=0)),
    )


def frame_correlations(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """Correlation of every step's map with every other step's.

    Args:
        maps: ``(S, N, h, w)``, over the training.

    Returns:
        float64 ``(N, S, S)``, symmetric; NaN in the rows and columns of maps that are constant or not finite.

    Raises:
        FadevizError: not four axes.
    """
    maps = _steps_first(maps, 4, "(S, N, h, w)", exactly=True)
    tables = np.empty((maps.shape[1], len(maps), len(maps)))
    for image, table in enumerate(tables):
        units = _unit(maps[:, image]).reshape(len(maps), -1)
        missing = np.isnan(units).any(1)
        units[missing] = 0.0  # there are BLAS libraries that warn of NaN
        table[:] = np.clip(units @ units.T, -1.0, 1.0)
        table[missing] = np.nan
        table[:, missing] = np.nan
    return tables


def foreign_spans(
    maps: Maps | NDArray[np.floating], margin: float = SPLICE_MARGIN, floor: float = SPLICE_FLOOR
) -> tuple[tuple[int, int], ...]:
    """Stretches of frames that do not fit between their neighbours: frame k is far nearer to k + 2 than to k + 1.

    Frames i to j, at most half of all, are foreign if, with c the correlation of two frames, in the median over images,
    ``c(i - 1, j + 1) >= floor`` and ``c(i - 1, j + 1) - max(c(i - 1, i), c(j, j + 1)) > margin``. Short stretches are
    looked for first, and a longer one never holds or touches a shorter one that was found.

    A map that learns fast leaves its old state for good, and is not flagged. Not seen either: a movie that changes to
    another training and stays there, and foreign frames at the very start or end; what sees those is the run id in
    every snapshot. A training that jumps for a few recorded steps and comes back, as after a spike of the loss, looks
    the same as a splice.

    Args:
        maps: ``(S, N, h, w)``, over the training.
        margin: by how much the frames around must correlate better.
        floor: how well the frames around must correlate.

    Returns:
        The first and last frame of each stretch, as indices, in order.

    Raises:
        FadevizError: not four axes.
    """
    if maps.ndim != 4 or not len(maps):
        _steps_first(np.asarray(maps), 4, "(S, N, h, w)", exactly=True)
    return _foreign_spans(maps, _to_next(maps), margin, floor)


def _to_next(maps: Maps | NDArray[np.floating]) -> NDArray[np.float64]:
    """``(S - 1, N)``: the correlation of each step's map with the next one's."""
    parts = [correlation(block[:-1], block[1:]) for _, block in in_blocks(maps, before=1)]
    return np.concatenate(parts)


def _foreign_spans(
    maps: Maps | NDArray[np.floating], to_next: NDArray[np.float64], margin: float, floor: float
) -> tuple[tuple[int, int], ...]:
    # No correlation is above 1, so that where a span begins and where it ends the frame before is unlike the one after:
    # only pairs of such breaks are looked at, of which a training has few.
    unlike = to_next <= 1 - margin + 1e-9
    breaks = np.flatnonzero(unlike.any(1))
    known = np.isfinite(to_next).astype(np.int64)
    unlike = unlike.astype(np.int64)
    fitting: list[tuple[int, int]] = []
    for rows in _stretches(breaks, maps):
        before: NDArray[np.float64] | None = None
        for columns in _stretches(breaks[breaks > rows[0]], maps):
            length = columns - rows[:, None]
            # The median over the known images is above the margin: at least half of them are unlike at both ends.
            few = 2 * (unlike[rows] @ unlike[columns].T) < known[rows] @ known[columns].T
            if not ((length > 0) & (length <= len(to_next) // 2) & ~few).any():
                continue
            before = _units(maps, rows) if before is None else before
            around = np.clip(before @ _units(maps, columns + 1).swapaxes(1, 2), -1.0, 1.0)
            ends = np.maximum(to_next[rows].T[:, :, None], to_next[columns].T[:, None, :])
            fits = (_median_of_known(around, ends) >= floor) & (_median_of_known(around - ends, ends) > margin)
            fits &= (length > 0) & (length <= len(to_next) // 2)
            fitting += [(int(rows[row]) + 1, int(columns[column])) for row, column in np.argwhere(fits)]
    foreign = np.zeros(len(to_next) + 1, dtype=bool)
    spans = []
    for first, last in sorted(fitting, key=lambda span: (span[1] - span[0], span[0])):
        if not foreign[first - 1 : last + 2].any():
            foreign[first : last + 1] = True
            spans.append((first, last))
    return tuple(sorted(spans))


_AT_A_TIME = 2**23
"""Values of frames in memory while searching for spans: 64 MB, twice."""


def _stretches(numbers: NDArray[np.intp], maps: Maps | NDArray[np.floating]) -> list[NDArray[np.intp]]:
    """Split frame numbers into blocks that fit in memory."""
    length = max(1, _AT_A_TIME // max(1, math.prod(maps.shape[1:])))
    return [numbers[start : start + length] for start in range(0, len(numbers), length)]


def _units(maps: Maps | NDArray[np.floating], numbers: NDArray[np.intp]) -> NDArray[np.float64]:
    """``(N, frames, h w)``: the frames of each image, so that a correlation is a product."""
    units = _unit(maps[numbers])
    units[np.isnan(units)] = 0.0  # there are BLAS libraries that warn of NaN
    return units.reshape(*units.shape[:2], -1).swapaxes(0, 1)


def _median_of_known(values: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median over the first axis, ignoring unknown values; minus infinity if all are unknown."""
    missing = ~(np.isfinite(values) & np.isfinite(known))
    count = len(values) - missing.sum(0)
    ordered = np.sort(np.where(missing, np.inf, values), axis=0)
    low, high = (
        np.take_along_axis(ordered, place[None], axis=0)[0]
        for place in (np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(values) - 1))
    )
    return np.where(count > 0, (low + high) / 2, -np.inf)


def is_spliced(maps: NDArray[np.floating], margin: float = SPLICE_MARGIN, floor: float = SPLICE_FLOOR) -> bool:
    """Whether some frames do not come from the training that the others show; the rule is :func:`foreign_spans`."""
    return bool(foreign_spans(maps, margin, floor))


def find_splice(
    run: StoredRun,
    layer: str | None = None,
    kind: str = "feature",
    call: int = 0,
    *,
    to_next: NDArray[np.float64] | None = None,
) -> Splice:
    """What of a run does not come from its own training: by the run id of its files, and by its frames.

    Args:
        run: an open run.
        layer: dotted name; None takes the run's figure layer.
        kind: any kind with one map an image (not ``channels``).
        call: which call of a layer that runs several times in a forward pass.
        to_next: ``(S - 1, N)``, the correlation of each step with the next as of :func:`continuity`, where it is known:
            then hardly a map is read.

    Returns:
        The files of another run, and the first and last step of every foreign stretch of frames.

    Raises:
        FadevizError: the run has no such maps.
    """
    maps = run.maps(layer, kind, call=call)
    if to_next is None:
        spans = foreign_spans(maps)
    else:
        spans = _foreign_spans(maps, to_next, SPLICE_MARGIN, SPLICE_FLOOR)
    return Splice(
        files=tuple(name for name, reason in run.broken.items() if reason.startswith("belongs to another run")),
        spans=tuple((run.steps[first], run.steps[last]) for first, last in spans),
    )


def class_similarity(
    maps: NDArray[np.floating], classes: NDArray[np.bool_], band: NDArray[np.bool_]
) -> ClassSimilarity:
    """How alike the pixels of a class are, and how unlike those of the others, at the edges and in the interior.

    The centre of class k is the mean of its pixels' features over the interior, so that what happens at the edges moves
    no centre. A pixel counts by the cosine of the angle between its feature and a centre.

    Args:
        maps: ``(S, n, C, h, w)``, the kind ``channels`` over the training.
        classes: boolean ``(n, K, h, w)``, the pixels of each class, disjoint; pixels of none are ignored.
        band: boolean ``(n, h, w)``, the pixels along the contours; all others are interior.

    Returns:
        Arrays ``(S, n)``. Pixels whose feature is zero have no angle and do not count; a class without interior pixels
        has no centre and does not count. NaN where nothing is left, for inter and accuracy with fewer than two classes,
        and for a map that is not finite.

    Raises:
        FadevizError: arrays that do not fit together, or are not boolean, or classes that overlap.

    Source: Chen et al. 2024, Frequency-aware Feature Fusion for Dense Image Prediction, figure 2; the authors'
    feat_tool at commit 390d416.

    Differs: the authors compare two centres for the similarity between classes, here ``centres``; ``inter`` is of
    pixels, so that edges have one of their own. Their means are over a data set, these are for each image.
    """
    maps = _steps_first(maps, 5, "(S, n, C, h, w)", exactly=True)
    images, shape = maps.shape[1], maps.shape[-2:]
    if classes.ndim != 4 or classes.shape[0] != images or classes.shape[-2:] != shape:
        raise FadevizError(
            f"classes of the shape ({images}, K, {shape[0]}, {shape[1]}) are needed; got {classes.shape}"
        )
    if band.shape != (images, *shape):
        raise FadevizError(f"a band of the shape ({images}, {shape[0]}, {shape[1]}) is needed; got {band.shape}")
    if classes.dtype != np.bool_ or band.dtype != np.bool_:
        raise FadevizError(f"classes and band must be boolean; got {classes.dtype} and {band.dtype}")
    if (classes.sum(1) > 1).any():
        raise FadevizError("classes overlap: each pixel can be of one class only")
    found = np.full((7, *maps.shape[:2]), np.nan)
    for step, image in np.ndindex(*maps.shape[:2]):
        features = maps[step, image].reshape(maps.shape[2], -1).astype(np.float64)
        members = classes[image].reshape(classes.shape[1], -1)
        found[:, step, image] = _class_similarity(features, members, band[image].ravel())
    return ClassSimilarity(RegionSimilarity(*found[0:3]), RegionSimilarity(*found[3:6]), found[6])


def _class_similarity(
    features: NDArray[np.float64], members: NDArray[np.bool_], band: NDArray[np.bool_]
) -> list[float]:
    if not np.isfinite(features).all() or not features.any():
        return [np.nan] * 7
    centres: list[NDArray[np.float64]] = []
    row_of: list[int | None] = []
    for inside in members & ~band:
        centre = features[:, inside].mean(1) if inside.any() else np.zeros(len(features))
        norm = float(np.linalg.norm(centre))
        row_of.append(len(centres) if norm > 0 else None)
        if norm > 0:
            centres.append(centre / norm)
    if not centres:
        return [np.nan] * 7
    stacked = np.stack(centres)
    norms = np.linalg.norm(features, axis=0)
    cosines = stacked @ (features / np.where(norms > 0, norms, 1.0))
    values = []
    for region in (band, ~band):
        intra, inter, right, total = [], [], 0, 0
        for member, row in zip(members, row_of, strict=True):
            pixels = member & region & (norms > 0)
            if row is None or not pixels.any():
                continue
            own = cosines[row, pixels]
            intra.append(own.mean())
            if len(centres) > 1:
                rival = np.delete(cosines, row, axis=0)[:, pixels].max(0)
                inter.append(rival.mean())
                right += int((rival <= own).sum())
                total += own.size
        values += [_mean(intra), _mean(inter), right / total if total else np.nan]
    pairs = (stacked @ stacked.T)[np.triu_indices(len(centres), 1)]
    return [*values, _mean(list(pairs))]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _unit(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    # Centred and of norm 1, so that a correlation is a product; NaN where a map has no pattern.
    usable = has_pattern(maps)
    wide = maps.astype(np.float64)
    wide[~usable] = 0.0
    wide -= wide.mean((-2, -1), keepdims=True)
    norms = np.where(usable, np.sqrt(np.einsum("...yx,...yx->...", wide, wide)), np.nan)
    wide /= norms[..., None, None]
    return wide


def _product(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The correlations of maps as of :func:`_unit`; NaN where one of the two is."""
    found: NDArray[np.float64] = np.clip(np.einsum("...yx,...yx->...", a, b), -1.0, 1.0)
    return found


def _centred_features(features: NDArray[np.floating]) -> NDArray[np.float64] | None:
    # None where there is nothing but a constant, or something that is not finite.
    if not features.size or not np.isfinite(features).all():
        return None
    wide = features.astype(np.float64)
    level = np.abs(wide).max()
    wide -= wide.mean(1, keepdims=True)
    return wide if np.abs(wide).max() > FLAT * level else None


def _hsic(a: NDArray[np.float64], b: NDArray[np.float64], debiased: bool) -> float:
    # Of centred features; times a factor of n alone, which cancels in the ratio.
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


def _steps_first(maps: NDArray[np.floating], axes: int, wanted: str, *, exactly: bool = False) -> NDArray[np.floating]:
    maps = np.asarray(maps)
    if maps.ndim < axes or (exactly and maps.ndim != axes) or not len(maps):
        raise FadevizError(f"maps over the training are needed, {wanted}; got the shape {maps.shape}")
    return maps
