"""Splices: frames of another training within a run, found by comparison with their neighbours and by run ids."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..storage.maps import Maps
from ..storage.stored_run import StoredRun
from .blocks import in_blocks
from .similarity import check_axes, correlation, standardize

SPLICE_MARGIN = 0.5


SPLICE_FLOOR = 0.8
"""A span of frames is foreign if the frames around it have a correlation of at least ``SPLICE_FLOOR``, higher by more
than ``SPLICE_MARGIN`` than their correlations with the span's ends. In trainings known to be intact this difference
reaches 0.41 (a gradient map in the first steps); in two published strips that look spliced it is 0.74 and 1.1."""


class Splice(NamedTuple):
    """Parts of a run that do not come from its own training.

    Attributes:
        files: snapshot files that carry the id of another run; ``StoredRun`` leaves them out of its maps.
        spans: first and last step of each stretch of frames that does not fit its neighbours.
    """

    files: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def found(self) -> bool:
        """Whether there is any such part."""
        return bool(self.files or self.spans)


def foreign_spans(
    maps: Maps | NDArray[np.floating], margin: float = SPLICE_MARGIN, floor: float = SPLICE_FLOOR
) -> tuple[tuple[int, int], ...]:
    r"""Stretches of frames that do not fit between their neighbours: frame k resembles k + 2 far more than k + 1.

    Frames :math:`i` to :math:`j`, at most half of all, are foreign if, in the median over images,

    .. math::

        c(i-1, j+1) \ge f \quad\text{and}\quad c(i-1, j+1) - \max\{c(i-1, i),\, c(j, j+1)\} > m

    with :math:`c` the correlation of two frames, :math:`f` the floor and :math:`m` the margin. Short stretches are
    searched first; a longer one neither contains nor touches a shorter one that was found.

    A map that learns fast leaves its old state for good and is not flagged. Not detected: a sequence that changes to
    another training and stays there, and foreign frames at the very start or end; the run id in every snapshot reveals
    those. A training that jumps for a few recorded steps and returns, as after a spike of the loss, looks like a
    splice.

    Args:
        maps: ``(S, N, h, w)``, over training.
        margin: difference by which the frames around must correlate better.
        floor: correlation that the frames around must reach.

    Returns:
        First and last frame of each stretch, as indices, in order.

    Raises:
        FadevizError: if there are not four axes.
    """
    if maps.ndim != 4 or not len(maps):
        check_axes(np.asarray(maps), 4, "(S, N, h, w)", exactly=True)
    return _foreign_spans(maps, _next_correlation(maps), margin, floor)


def _next_correlation(maps: Maps | NDArray[np.floating]) -> NDArray[np.float64]:
    """Correlation of each step's map with the next one's, ``(S - 1, N)``."""
    parts = [correlation(block[:-1], block[1:]) for _, block in in_blocks(maps, before=1)]
    return np.concatenate(parts)


def _foreign_spans(
    maps: Maps | NDArray[np.floating], next_correlation: NDArray[np.float64], margin: float, floor: float
) -> tuple[tuple[int, int], ...]:
    # No correlation exceeds 1, so that consecutive frames differ at both ends of a span: only pairs of such breaks are
    # examined, of which a training has few.
    differs = next_correlation <= 1 - margin + 1e-9
    breaks = np.flatnonzero(differs.any(1))
    defined = np.isfinite(next_correlation).astype(np.int64)
    differs = differs.astype(np.int64)
    fitting: list[tuple[int, int]] = []
    for rows in _stretches(breaks, maps):
        before: NDArray[np.float64] | None = None
        for columns in _stretches(breaks[breaks > rows[0]], maps):
            length = columns - rows[:, None]
            # If the median over the images that have one exceeds the margin, at least half of them differ at both ends.
            few = 2 * (differs[rows] @ differs[columns].T) < defined[rows] @ defined[columns].T
            if not ((length > 0) & (length <= len(next_correlation) // 2) & ~few).any():
                continue
            before = _units(maps, rows) if before is None else before
            around = np.clip(before @ _units(maps, columns + 1).swapaxes(1, 2), -1.0, 1.0)
            ends = np.maximum(next_correlation[rows].T[:, :, None], next_correlation[columns].T[:, None, :])
            fits = (_median_of_defined(around, ends) >= floor) & (_median_of_defined(around - ends, ends) > margin)
            fits &= (length > 0) & (length <= len(next_correlation) // 2)
            fitting += [(int(rows[row]) + 1, int(columns[column])) for row, column in np.argwhere(fits)]
    foreign = np.zeros(len(next_correlation) + 1, dtype=bool)
    spans = []
    for first, last in sorted(fitting, key=lambda span: (span[1] - span[0], span[0])):
        if not foreign[first - 1 : last + 2].any():
            foreign[first : last + 1] = True
            spans.append((first, last))
    return tuple(sorted(spans))


_AT_A_TIME = 2**23
"""Values of frames in memory while searching for spans: twice 64 MB."""


def _stretches(numbers: NDArray[np.intp], maps: Maps | NDArray[np.floating]) -> list[NDArray[np.intp]]:
    """Split frame numbers into blocks that fit in memory."""
    length = max(1, _AT_A_TIME // max(1, math.prod(maps.shape[1:])))
    return [numbers[start : start + length] for start in range(0, len(numbers), length)]


def _units(maps: Maps | NDArray[np.floating], numbers: NDArray[np.intp]) -> NDArray[np.float64]:
    """The standardized frames of each image, ``(N, frames, h w)``: correlations are dot products."""
    units = standardize(maps[numbers])
    units[np.isnan(units)] = 0.0  # some BLAS libraries warn about NaN
    return units.reshape(*units.shape[:2], -1).swapaxes(0, 1)


def _median_of_defined(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median over the first axis where both arrays are finite; minus infinity where they nowhere are."""
    missing = ~(np.isfinite(values) & np.isfinite(others))
    count = len(values) - missing.sum(0)
    ordered = np.sort(np.where(missing, np.inf, values), axis=0)
    low, high = (
        np.take_along_axis(ordered, place[None], axis=0)[0]
        for place in (np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(values) - 1))
    )
    return np.where(count > 0, (low + high) / 2, -np.inf)


def is_spliced(maps: NDArray[np.floating], margin: float = SPLICE_MARGIN, floor: float = SPLICE_FLOOR) -> bool:
    """Whether some frames come from another training than the rest; see :func:`foreign_spans` for the rule."""
    return bool(foreign_spans(maps, margin, floor))


def find_splice(
    run: StoredRun,
    layer: str | None = None,
    kind: str = "feature",
    call: int = 0,
    *,
    next_correlation: NDArray[np.float64] | None = None,
) -> Splice:
    """Parts of a run that do not come from its own training, by the run ids of its files and by its frames.

    Args:
        run: an open run.
        layer: dotted name; None takes the run's figure layer.
        kind: a kind with one map per image (not ``channels``).
        call: call of a layer that runs several times in a forward pass, from 0.
        next_correlation: ``(S - 1, N)``, correlation of each step with the next, see
            :func:`~fadeviz.analysis.similarity.continuity`; with it, hardly any map is read.

    Returns:
        The files of another run, and the first and last step of every foreign stretch of frames.

    Raises:
        FadevizError: if the run has no such maps.
    """
    maps = run.maps(layer, kind, call=call)
    if next_correlation is None:
        spans = foreign_spans(maps)
    else:
        spans = _foreign_spans(maps, next_correlation, SPLICE_MARGIN, SPLICE_FLOOR)
    return Splice(
        files=tuple(name for name, reason in run.broken.items() if reason.startswith("belongs to another run")),
        spans=tuple((run.steps[first], run.steps[last]) for first, last in spans),
    )
