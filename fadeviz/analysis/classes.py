"""Separation of classes: the similarity of pixels to their own class and to others, at the edges and inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from .similarity import check_axes


class RegionSimilarity(NamedTuple):
    """Similarity of one region's pixels to the class centres; each of the shape of the leading axes.

    Attributes:
        intra: cosine similarity of a pixel to the centre of its own class; mean over pixels, then over classes.
        inter: cosine similarity of a pixel to the nearest centre of another class; mean over pixels, then over classes.
        accuracy: share of all pixels that are at least as similar to their own centre as to any other.
    """

    intra: NDArray[np.float64]
    inter: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def margin(self) -> NDArray[np.float64]:
        """``intra - inter``: how much more similar pixels are to their own centre."""
        return self.intra - self.inter


class ClassSimilarity(NamedTuple):
    """FreqFusion's measures of a feature map, at the classes' edges and in their interior.

    Attributes:
        edge: similarity of the pixels in the band along the contours.
        interior: similarity of all other pixels.
        centres: mean cosine similarity of two class centres.
    """

    edge: RegionSimilarity
    interior: RegionSimilarity
    centres: NDArray[np.float64]


def class_similarity(
    maps: NDArray[np.floating], classes: NDArray[np.bool_], band: NDArray[np.bool_]
) -> ClassSimilarity:
    r"""Similarity of pixels to their own class and to the others, at the edges and in the interior.

    .. math::

        \mu_k = \operatorname{mean}_{i \in C_k \setminus B} f_i, \qquad
        \text{intra} = \cos(f_i, \mu_{k(i)}), \qquad
        \text{inter} = \max_{k \ne k(i)} \cos(f_i, \mu_k)

    with :math:`f_i` the feature of pixel :math:`i`, :math:`k(i)` its class, :math:`C_k` the pixels of class :math:`k`
    and :math:`B` the band along the contours: centres are means over the interior, so that edges do not move them. Both
    are averaged over the pixels of a region and class, then over classes.

    Args:
        maps: ``(S, n, C, h, w)``, of kind ``channels``, over training.
        classes: boolean ``(n, K, h, w)``, pixels of each class, disjoint; pixels of none are ignored.
        band: boolean ``(n, h, w)``, pixels along the contours; all others are interior.

    Returns:
        Arrays ``(S, n)``; similarities in [-1, 1], accuracy in [0, 1] with the chance level 1 / K. Pixels whose feature
        is zero have no direction and do not count; a class without interior pixels has no centre and does not count.
        NaN where nothing is left, for inter and accuracy with fewer than two classes, and for a map that is not finite.

    Raises:
        FadevizError: if the arrays do not fit together or are not boolean, or classes overlap.

    Source: Chen et al. 2024, Frequency-aware Feature Fusion for Dense Image Prediction, figure 2; the authors'
    feat_tool at commit 390d416.

    Differs: the authors compare two centres for the similarity between classes, here ``centres``; ``inter`` compares
    pixels with centres, so that edges have a value of their own. Their means cover a data set, these one image.
    """
    maps = check_axes(maps, 5, "(S, n, C, h, w)", exactly=True)
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
        raise FadevizError("classes overlap: each pixel may be of only one class")
    measures = np.full((7, *maps.shape[:2]), np.nan)
    for step, image in np.ndindex(*maps.shape[:2]):
        features = maps[step, image].reshape(maps.shape[2], -1).astype(np.float64)
        members = classes[image].reshape(classes.shape[1], -1)
        measures[:, step, image] = _class_similarity(features, members, band[image].ravel())
    return ClassSimilarity(RegionSimilarity(*measures[0:3]), RegionSimilarity(*measures[3:6]), measures[6])


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
