"""Distance-time maps: the mean rank of a map's cells by signed distance to the contour, over the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .ranks import Ranked

QUANTITIES = {
    "value": "the maps themselves, all turned over if the inside is below the outside at the end",
    "gradient": "how steep the map is: the squared gradient of its ranks, without the outermost cells",
}
"""What a distance-time map shows the ranks of."""


@dataclass(frozen=True)
class Kymograph:
    """A distance-time map: the mean response by signed distance to the contour and by step.

    Attributes:
        edges: ``(D + 1,)``, of the bins of signed distance, in pixels of the layer, negative inside.
        value: ``(S, D)``, the mean over images of their mean in a bin, in (0, 1); 1/2 is the middle of a map's values.
            NaN where no image has a cell or a defined map.
        images: ``(S, D)``, how many images (of all runs) each value is the mean of.
        cells: ``(S, D)``, how many cells those have in the bin.
        quantity: a name in ``QUANTITIES``.
    """

    edges: NDArray[np.float64]
    value: NDArray[np.float64]
    images: NDArray[np.int64]
    cells: NDArray[np.int64]
    quantity: str

    @property
    def distance(self) -> NDArray[np.float64]:
        """``(D,)``, the middles of the bins, in pixels of the layer."""
        return (self.edges[1:] + self.edges[:-1]) / 2


def merge_kymographs(parts: Sequence[Kymograph]) -> Kymograph:
    """The mean over several runs, every image of every run counted the same; they must share bins and steps."""
    first = parts[0]
    images = np.sum([part.images for part in parts], axis=0)
    total = np.sum([np.where(part.images > 0, part.value, 0) * part.images for part in parts], axis=0)
    value = np.divide(total, images, out=np.full(total.shape, np.nan), where=images > 0)
    cells = np.sum([part.cells for part in parts], axis=0)
    return Kymograph(first.edges, value, images, cells, first.quantity)


class BinnedMeans:
    """Sums over images of their means in bins of distance."""

    def __init__(self, steps: int, edges: NDArray[np.float64], distances: Sequence[NDArray[np.float64]]) -> None:
        self.edges = np.asarray(edges, np.float64)
        self.total = np.zeros((steps, len(edges) - 1))
        self.images, self.cells = np.zeros(self.total.shape, np.int64), np.zeros(self.total.shape, np.int64)
        self._bins: list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]] = []
        for distance in distances:
            number = np.digitize(distance, self.edges).ravel() - 1
            counts = np.array([(number == index).sum() for index in range(len(edges) - 1)], np.intp)
            filled = np.flatnonzero(counts)
            sorted_cells = np.argsort(number, kind="stable")[(number < 0).sum() :][: counts.sum()]
            self._bins.append((filled, counts[filled], sorted_cells))

    def add(self, steps: NDArray[np.intp], image: int, ranked: Ranked, *, turn: bool = False) -> None:
        """Add an image's maps of some steps; ``turn`` takes 1 less each place."""
        filled, counts, cells = self._bins[image]
        steps = steps[ranked.defined]
        if not len(steps) or not len(filled):
            return
        # Sums of whole numbers, exact in any order.
        places = ranked.twice[ranked.defined].take(cells, axis=1)
        sums = np.add.reduceat(places, np.cumsum(counts) - counts, axis=1)
        means = sums / (2 * ranked.twice.shape[1] * counts)
        at = np.ix_(steps, filled)
        self.total[at] += 1 - means if turn else means
        self.images[at] += 1
        self.cells[at] += counts

    def mean(self, quantity: str) -> Kymograph:
        """The distance-time map of all maps that were added."""
        value = np.divide(self.total, self.images, out=np.full(self.total.shape, np.nan), where=self.images > 0)
        return Kymograph(self.edges, value, self.images, self.cells, quantity)
