"""Responses: how well a map shows the outline and the interior of an object, as areas under the ROC curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from ..storage.maps import Maps
from .blocks import in_blocks
from .kymograph import BinnedMeans, Kymograph
from .ranks import Ranked, Ties, defined_maps, rank_cells
from .regions import Regions

MIN_CELLS = 8
"""Cells below which a region counts as empty: the area of so few is far from 1/2 by chance."""

LAST = 3
"""Number of snapshots at the end of a run whose mean stands for its end."""


def squared_gradient(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    r"""Squared magnitude of the gradient, by Scharr's 3x3 operator.

    .. math::

        G = (F * S)^2 + (F * S^\top)^2, \qquad
        S = \tfrac{1}{32} \begin{pmatrix} 3 & 10 & 3 \\ 0 & 0 & 0 \\ -3 & -10 & -3 \end{pmatrix}

    with :math:`F` the map and :math:`*` the convolution: central differences, smoothed by 3:10:3 across. A step between
    two cells shows in both of them and, through the smoothing, in those that touch it only at a corner. The outermost
    cells lack neighbours and are left out: any padding would make noise steeper or flatter at the border than inside,
    and so move the chance level.

    Shape: ``(..., h, w)`` -> ``(..., h - 2, w - 2)``.

    Units: (value per cell) squared.

    Source: Scharr 2000, Optimal Operators in Digital Image Processing.
    """
    right, down = _scharr(maps.astype(np.float64))
    total: NDArray[np.float64] = (right / 32) ** 2 + (down / 32) ** 2
    return total


def _scharr(f: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """32 times the derivatives to the right and down: whole numbers, if the values are."""
    down = f[..., 2:, :] - f[..., :-2, :]
    right = f[..., :, 2:] - f[..., :, :-2]
    dy = 3 * down[..., :-2] + 10 * down[..., 1:-1] + 3 * down[..., 2:]
    dx = 3 * right[..., :-2, :] + 10 * right[..., 1:-1, :] + 3 * right[..., 2:, :]
    return dx, dy


def edge_response(maps: NDArray[np.floating], regions: Regions, *, ranked: bool = True) -> NDArray[np.float64]:
    r"""How well the steepness of a map detects the contour.

    .. math:: E = 2\,\mathrm{AUC} - 1 = P(G_b > G_r) - P(G_b < G_r)

    with :math:`G` the squared gradient (:func:`squared_gradient`) of the map's ranks
    (:func:`~fadeviz.analysis.ranks.ranks`), :math:`b` a random cell of the contour band, :math:`r` a random cell of the
    rest, and AUC the area under the ROC curve of the steepness as a detector of the band; equal cells count half. The
    outermost cells do not count.

    1: every cell of the band is steeper than every other cell; 0: chance level; -1: the map is flattest at the contour.
    Because of the ranks, no increasing rescaling of the map changes the response; in turn, small ripples in large even
    areas count by their order, not by their height.

    Args:
        maps: ``(..., h, w)``.
        regions: regions of the mask at the maps' resolution.
        ranked: whether to rank the map before taking its gradient. Without ranks, only linear rescaling of the map
            leaves the response unchanged.

    Returns:
        float64 ``(...)``, in [-1, 1]. NaN where the map is constant, equally steep everywhere or not finite, and where
        the band or the rest has fewer than ``MIN_CELLS`` cells.

    Raises:
        FadevizError: if the maps and the regions differ in size.

    Source: Mann and Whitney 1947, for the area from the sum of ranks.
    """
    masks = _Masks([regions])
    responses = np.full(_checked(maps, regions).shape[:-2], np.nan)
    flat = responses.reshape(-1)
    for rows, batch in defined_maps(maps):
        steepness = _steepness(rank_cells(batch), batch.shape) if ranked else rank_cells(squared_gradient(batch))
        flat[rows] = masks.edge(steepness)[:, 0]
    return responses


def interior_response(maps: NDArray[np.floating], regions: Regions) -> NDArray[np.float64]:
    r"""How well the values of a map separate the interior from the background, whichever is higher.

    .. math:: I = |2\,\mathrm{AUC} - 1| = |P(F_i > F_o) - P(F_i < F_o)|

    with :math:`F_i` the map at a random cell inside and :math:`F_o` at one outside; the contour band is left out, and
    equal cells count half.

    1: the two do not overlap; 0: chance level. No monotone rescaling of the map changes it. As either sign counts, a
    map without knowledge of the object lies above 0: slightly if it is white noise, up to about 0.3 if it consists of a
    few smooth blobs. The response for mismatched masks is the level to compare with.

    Args:
        maps: ``(..., h, w)``.
        regions: regions of the mask at the maps' resolution.

    Returns:
        float64 ``(...)``, in [0, 1]. NaN where the map is constant or not finite, and where the interior or the
        background has fewer than ``MIN_CELLS`` cells.

    Raises:
        FadevizError: if the maps and the regions differ in size.
    """
    return np.abs(polarity(maps, regions))


def polarity(maps: NDArray[np.floating], regions: Regions) -> NDArray[np.float64]:
    r"""Whether the interior of a map is higher than its background.

    .. math:: 2\,\mathrm{AUC} - 1 = P(F_i > F_o) - P(F_i < F_o)

    with the symbols of :func:`interior_response`. 1: the interior is higher everywhere; 0: chance level; -1: it is
    lower everywhere.

    Args:
        maps: ``(..., h, w)``.
        regions: regions of the mask at the maps' resolution.

    Returns:
        float64 ``(...)``, in [-1, 1]; NaN as in :func:`interior_response`.

    Raises:
        FadevizError: if the maps and the regions differ in size.
    """
    masks = _Masks([regions])
    responses = np.full(_checked(maps, regions).shape[:-2], np.nan)
    flat = responses.reshape(-1)
    for rows, batch in defined_maps(maps):
        flat[rows] = masks.polarity(rank_cells(batch))[:, 0]
    return responses


@dataclass(frozen=True)
class Responses:
    r"""The responses of all maps of one run: S steps, N images.

    A *mismatched* response is that of a map for the masks of the other images, in the mean over those where it is
    defined. It is what the position of objects alone explains: contours are where contours often are, and a blob in the
    middle of every map separates inside from outside where objects are in the middle.

    The *headroom* of an image is the response of a perfect map, 1 inside and 0 outside, for its own mask minus its
    mismatched response. It is about 0 where the masks are alike, so that position alone explains the response.

    Attributes:
        edge: ``(S, N)``, edge response (:func:`edge_response`).
        interior: ``(S, N)``, interior response (:func:`interior_response`).
        edge_raw: ``(S, N)``, edge response of the maps themselves instead of their ranks.
        edge_mismatched: ``(S, N)``, mismatched edge response; NaN with one image.
        edge_raw_mismatched: ``(S, N)``, mismatched ``edge_raw``.
        interior_mismatched: ``(S, N)``, mismatched interior response.
        edge_headroom: ``(N,)``, headroom of the edge response.
        interior_headroom: ``(N,)``, headroom of the interior response.
        value: distance-time map of the values.
        gradient: distance-time map of the steepness.
    """

    edge: NDArray[np.float64]
    interior: NDArray[np.float64]
    edge_raw: NDArray[np.float64]
    edge_mismatched: NDArray[np.float64]
    edge_raw_mismatched: NDArray[np.float64]
    interior_mismatched: NDArray[np.float64]
    edge_headroom: NDArray[np.float64]
    interior_headroom: NDArray[np.float64]
    value: Kymograph
    gradient: Kymograph


def measure_responses(
    maps: Maps | NDArray[np.floating], regions: Sequence[Regions], edges: NDArray[np.float64]
) -> Responses:
    """Edge and interior response of every map of a run, and its two distance-time maps.

    In a distance-time map each map is replaced by its ranks, so that noise is 1/2 at every distance, whatever its
    scale, and a front shows as a border between high and low. If the inside is below the outside at the end (polarity
    over the last ``LAST`` snapshots, summed over images), the values of all images are inverted at all steps alike:
    maps that change their sign during training remain visible as such.

    Args:
        maps: ``(S, N, h, w)``, steps and images; maps in files are read once.
        regions: regions of the N images' masks at the maps' resolution.
        edges: increasing edges of the bins of signed distance, as from
            :func:`~fadeviz.analysis.regions.distance_bins`.

    Raises:
        FadevizError: if the number of images, or the size of the maps, differs from that of the regions.
    """
    if maps.ndim != 4 or maps.shape[1] != len(regions):
        raise FadevizError(
            f"maps are {maps.shape} with {len(regions)} masks; (steps, images, h, w) and one mask per image are needed"
        )
    masks = _Masks(regions)
    edge, edge_raw, interior = np.full((3, *maps.shape[:2], len(regions)), np.nan)
    value = BinnedMeans(len(maps), edges, [region.distance for region in regions])
    gradient = BinnedMeans(len(maps), edges, [region.distance[1:-1, 1:-1] for region in regions])
    invert = _is_inverted(maps[-LAST:], regions)
    for start, block in in_blocks(maps):
        for image in range(block.shape[1]):
            for rows, batch in defined_maps(_checked(block[:, image], regions[image])):
                steps = start + rows
                ranked = rank_cells(batch)
                steepness = _steepness(ranked, batch.shape)
                edge[steps, image] = masks.edge(steepness)
                edge_raw[steps, image] = masks.edge(rank_cells(squared_gradient(batch)))
                interior[steps, image] = np.abs(masks.polarity(ranked))
                value.add(steps, image, ranked, invert=invert)
                gradient.add(steps, image, steepness)
    tables: dict[str, NDArray[np.float64]] = {}
    for name, responses in (("edge", edge), ("edge_raw", edge_raw), ("interior", interior)):
        tables[name], tables[f"{name}_mismatched"] = _own_and_mismatched(responses)
    edge_headroom, interior_headroom = _headroom(masks, regions)
    return Responses(
        **tables,
        edge_headroom=edge_headroom,
        interior_headroom=interior_headroom,
        value=value.mean("value"),
        gradient=gradient.mean("gradient"),
    )


def _own_and_mismatched(responses: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From responses ``(S, N, N)`` of each map for each mask: that for its own mask, and the mean of the others."""
    others = np.where(np.eye(responses.shape[1], dtype=bool), np.nan, responses)
    return responses.diagonal(axis1=1, axis2=2).copy(), _mean_of_defined(others)


def _headroom(masks: _Masks, regions: Sequence[Regions]) -> list[NDArray[np.float64]]:
    """Headroom of the edge and of the interior response, ``(N,)`` each; see :class:`Responses`."""
    edge, interior = np.full((2, 1, len(regions), len(regions)), np.nan)
    for image, region in enumerate(regions):
        for _, batch in defined_maps((region.distance < 0).astype(np.float64)):
            ranked = rank_cells(batch)
            edge[0, image] = masks.edge(_steepness(ranked, batch.shape))[0]
            interior[0, image] = np.abs(masks.polarity(ranked))[0]
    return [own[0] - mismatched[0] for own, mismatched in map(_own_and_mismatched, (edge, interior))]


def _is_inverted(late: NDArray[np.floating], regions: Sequence[Regions]) -> bool:
    """Whether the inside is below the outside in the last maps, summed over images."""
    responses = np.array([polarity(late[:, image], region) for image, region in enumerate(regions)])
    return bool(np.nansum(responses) < 0)


def _mean_of_defined(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis, ignoring NaN; NaN if all values are."""
    defined = np.isfinite(table)
    count = defined.sum(-1)
    total = np.where(defined, table, 0).sum(-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _steepness(value: Ranked, shape: tuple[int, ...]) -> Ranked:
    """The ranks of the squared gradient of the ranks of maps ``(M, h, w)``, without the outermost cells."""
    # Scharr's weights are multiples of 1/32: times 32, the slopes of ranks are whole numbers, and equal ones tie.
    right, down = _scharr(value.twice.reshape(shape))
    return rank_cells(right**2 + down**2, whole=True)


class _Masks:
    """How well maps detect each of K masks of the same size."""

    def __init__(self, regions: Sequence[Regions]) -> None:
        bands = [region.band[1:-1, 1:-1].ravel() for region in regions]
        self._bands = np.stack(bands, axis=1).astype(np.float64)
        self._in_band = np.array([band.sum() for band in bands], np.float64)
        self._labels = [(region.inside + 2 * region.outside.astype(np.uint8)).ravel() for region in regions]
        self._counts = [(int(region.inside.sum()), int(region.outside.sum())) for region in regions]

    def edge(self, ranked: Ranked) -> NDArray[np.float64]:
        """2 AUC - 1 of each band's cells against all others, exactly, from the sum of their ranks.

        Returns:
            ``(M, K)``; NaN for an undefined map, and where a band or its rest has fewer than ``MIN_CELLS`` cells.
        """
        inside, outside = self._in_band, len(self._bands) - self._in_band
        usable = (np.minimum(inside, outside) >= MIN_CELLS) & ranked.defined[:, None]
        gained = ranked.twice @ self._bands - inside**2
        return np.divide(gained, inside * outside, out=np.full(gained.shape, np.nan), where=usable) - 1

    def polarity(self, ranked: Ranked) -> NDArray[np.float64]:
        """2 AUC - 1 of the inside against the outside of each mask, exactly.

        Returns:
            ``(M, K)``; NaN for an undefined map, and where either has fewer than ``MIN_CELLS`` cells.
        """
        responses = np.full((len(ranked.order), len(self._labels)), np.nan)
        for number, (label, (ups, downs)) in enumerate(zip(self._labels, self._counts, strict=True)):
            if min(ups, downs) >= MIN_CELLS:
                ordered = label.take(ranked.order)
                won = _won(ordered, ups, downs) + _won_by_ties(ordered, ranked.ties)
                responses[:, number] = 2 * won / (ups * downs) - 1
        responses[~ranked.defined] = np.nan
        return responses


def _won(ordered: NDArray[np.uint8], ups: int, downs: int) -> NDArray[np.float64]:
    """Number of pairs in which a cell of label 1 comes after one of label 2, for labels ``(M, n)`` in sorted order."""
    # The place of a cell inside is the number of cells of both labels below it; those inside are subtracted.
    counted = ordered[ordered != 0]
    places = np.flatnonzero(counted == 1).reshape(len(ordered), ups)  # counted through all maps
    sums = places.sum(1) - ups * (ups + downs) * np.arange(len(ordered))
    return (sums - ups * (ups - 1) // 2).astype(np.float64)


def _won_by_ties(ordered: NDArray[np.uint8], ties: Ties) -> NDArray[np.float64]:
    """Correction to :func:`_won`, which takes equal cells in arbitrary order, so that each equal pair counts half."""
    if not len(ties.start):
        return np.zeros(len(ordered))
    labels = ordered.ravel()[ties.places]
    up, down = (labels == 1).astype(np.int64), (labels == 2).astype(np.int64)
    before = np.cumsum(down)
    ups, downs, counted = (np.add.reduceat(part, ties.start) for part in (up, down, up * before))
    counted -= ups * (before - down)[ties.start]  # without those of earlier groups
    missing = np.bincount(ties.row, weights=ups * downs / 2 - counted, minlength=len(ordered))
    return missing.astype(np.float64)


def _checked(maps: NDArray[np.floating], regions: Regions) -> NDArray[np.floating]:
    if maps.ndim < 2 or maps.shape[-2:] != regions.band.shape:
        raise FadevizError(
            f"maps are {maps.shape}, but the regions {regions.band.shape}. Build the regions for the maps' size"
        )
    return maps
