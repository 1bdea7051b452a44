"""Distance-time maps: the mean rank of a map's cells by signed distance to the contour, over training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .ranks import Ranked

QUANTITIES = {
    "value": "the maps themselves, all inverted if the inside is below the outside at the end",
    "gradient": "the steepness of the maps: the squared gradient of their ranks, without the outermost cells",
}
"""The quantities whose ranks a distance-time map can show."""


@dataclass(frozen=True)
class Kymograph:
    r"""A distance-time map: the mean rank of a map's cells by signed distance to the contour and by step.

    .. math::

        K(t, d) = \frac{1}{|I_d|} \sum_{n \in I_d} \frac{1}{|C_{n,d}|} \sum_{i \in C_{n,d}} \rho_{n,i}(t)

    with :math:`\rho_{n,i}(t)` the relative rank of cell :math:`i` of image :math:`n` at step :math:`t`
    (:func:`~fadeviz.analysis.ranks.ranks`), :math:`C_{n,d}` the cells of that image in the bin of signed distance
    :math:`d`, and :math:`I_d` the images with at least one such cell and a defined map. Chance level: 1/2.

    Attributes:
        edges: ``(D + 1,)``, edges of the bins of signed distance, in pixels of the layer; negative inside.
        value: ``(S, D)``, mean over images of their mean in the bin, in (0, 1). NaN where no image has a cell there or
            a defined map.
        images: ``(S, D)``, number of images (of all runs) in each mean.
        cells: ``(S, D)``, number of their cells in the bin.
        quantity: a name in ``QUANTITIES``.
    """

    edges: NDArray[np.float64]
    value: NDArray[np.float64]
    images: NDArray[np.int64]
    cells: NDArray[np.int64]
    quantity: str

    @property
    def distance(self) -> NDArray[np.float64]:
        """``(D,)``, centres of the bins, in pixels of the layer."""
        return (self.edges[1:] + self.edges[:-1]) / 2


def merge_kymographs(parts: Sequence[Kymograph]) -> Kymograph:
    """The mean over several runs, in which every image of every run has the same weight.

    Args:
        parts: distance-time maps with the same bins and steps.
    """
    first = parts[0]
    images = np.sum([part.images for part in parts], axis=0)
    total = np.sum([np.where(part.images > 0, part.value, 0) * part.images for part in parts], axis=0)
    value = np.divide(total, images, out=np.full(total.shape, np.nan), where=images > 0)
    cells = np.sum([part.cells for part in parts], axis=0)
    return Kymograph(first.edges, value, images, cells, first.quantity)


class BinnedMeans:
    """Sums, over images, of their mean ranks in bins of distance."""

    def __init__(self, steps: int, edges: NDArray[np.float64], distances: Sequence[NDArray[np.float64]]) -> None:
        self.edges = np.asarray(edges, np.float64)
        self.total = np.zeros((steps, len(edges) - 1))
        self.images, self.cells = np.zeros(self.total.shape, np.int64), np.zeros(self.total.shape, np.int64)
        self._bins: list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]] = []
        for distance in distances:
            bins = np.digitize(distance, self.edges).ravel() - 1
            counts = np.array([(bins == index).sum() for index in range(len(edges) - 1)], np.intp)
            filled = np.flatnonzero(counts)
            sorted_cells = np.argsort(bins, kind="stable")[(bins < 0).sum() :][: counts.sum()]
            self._bins.append((filled, counts[filled], sorted_cells))

    def add(self, steps: NDArray[np.intp], image: int, ranked: Ranked, *, invert: bool = False) -> None:
        """Add the maps of one image at some steps; ``invert`` takes 1 minus each rank."""
        filled, counts, cells = self._bins[image]
        steps = steps[ranked.defined]
        if not len(steps) or not len(filled):
            return
        # Sums of whole numbers, exact in any order.
        places = ranked.twice[ranked.defined].take(cells, axis=1)
        sums = np.add.reduceat(places, np.cumsum(counts) - counts, axis=1)
        means = sums / (2 * ranked.twice.shape[1] * counts)
        at = np.ix_(steps, filled)
        self.total[at] += 1 - means if invert else means
        self.images[at] += 1
        self.cells[at] += counts

    def mean(self, quantity: str) -> Kymograph:
        """The distance-time map of all maps that were added."""
        value = np.divide(self.total, self.images, out=np.full(self.total.shape, np.nan), where=self.images > 0)
        return Kymograph(self.edges, value, self.images, self.cells, quantity)
