"""Distance-time maps: where on the object the maps rank higher than for other images' objects, over training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .contrasts import Contrasts


@dataclass(frozen=True)
class Kymograph:
    r"""A distance-time map: mean rank by depth in the object and by step, own mask less other masks.

    .. math:: K(t, b) = \frac{1}{R} \sum_r s_r \operatorname{own}_{nm}\bigl(\bar u_{rtn}(b_m)\bigr)

    with :math:`\bar u_{rtn}(b_m)` the mean relative rank of the map of run :math:`r`, step :math:`t` and image
    :math:`n` over the cells in bin :math:`b` of mask :math:`m`, own less others as in
    :func:`~fadeviz.analysis.contrasts.own_less_others` over the images whose object has such cells, and
    :math:`s_r = \pm 1` the sign of the run, -1 where the maps are dark on the object. 0: as for other images' objects.

    Attributes:
        edges: ``(D + 1,)``, edges of the bins of depth, in units of the object's inscribed radius: -1 deepest inside, 0
            on the contour, positive outside.
        value: ``(S, D)``, in (-1, 1); NaN where fewer than two objects have cells.
        dark: number of runs that were negated.
    """

    edges: NDArray[np.float64]
    value: NDArray[np.float64]
    dark: int


def build_kymograph(parts: Sequence[Contrasts], signs: NDArray[np.int64], edges: NDArray[np.float64]) -> Kymograph:
    """The distance-time map of R runs.

    Args:
        parts: their contrasts.
        signs: ``(R,)``, 1 or -1.
        edges: edges of the bins of depth, from :func:`~fadeviz.analysis.zones.depth_bins`.
    """
    profiles = np.stack([part.profile for part in parts]) * signs[:, None, None]
    return Kymograph(edges, profiles.mean(0), int((signs < 0).sum()))
