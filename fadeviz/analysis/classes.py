"""How alike the pixels of a class are, and how unlike those of other classes, at the edges and in the interior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from .similarity import check_axes


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
