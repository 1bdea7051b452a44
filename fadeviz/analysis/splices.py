"""Frames that do not come from the training that the others show: found by their neighbours, and by run ids."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..storage.stored_run import Maps, StoredRun
from .blocks import in_blocks
from .similarity import check_axes, correlation, standardize

SPLICE_MARGIN = 0.5


SPLICE_FLOOR = 0.8
"""A span of frames is foreign where the frames around it correlate at least the second with each other, and by more
than the first better than with the span's own ends. Trainings whose every file is theirs reach 0.41 (a gradient map in
the first steps); the two published strips that look spliced have 0.74 and 1.1."""


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
        check_axes(np.asarray(maps), 4, "(S, N, h, w)", exactly=True)
    return _foreign_spans(maps, _next_correlation(maps), margin, floor)


def _next_correlation(maps: Maps | NDArray[np.floating]) -> NDArray[np.float64]:
    """``(S - 1, N)``: the correlation of each step's map with the next one's."""
    parts = [correlation(block[:-1], block[1:]) for _, block in in_blocks(maps, before=1)]
    return np.concatenate(parts)


def _foreign_spans(
    maps: Maps | NDArray[np.floating], next_correlation: NDArray[np.float64], margin: float, floor: float
) -> tuple[tuple[int, int], ...]:
    # No correlation is above 1, so that where a span begins and where it ends the frame before is unlike the one after:
    # only pairs of such breaks are looked at, of which a training has few.
    unlike = next_correlation <= 1 - margin + 1e-9
    breaks = np.flatnonzero(unlike.any(1))
    known = np.isfinite(next_correlation).astype(np.int64)
    unlike = unlike.astype(np.int64)
    fitting: list[tuple[int, int]] = []
    for rows in _stretches(breaks, maps):
        before: NDArray[np.float64] | None = None
        for columns in _stretches(breaks[breaks > rows[0]], maps):
            length = columns - rows[:, None]
            # The median over the known images is above the margin: at least half of them are unlike at both ends.
            few = 2 * (unlike[rows] @ unlike[columns].T) < known[rows] @ known[columns].T
            if not ((length > 0) & (length <= len(next_correlation) // 2) & ~few).any():
                continue
            before = _units(maps, rows) if before is None else before
            around = np.clip(before @ _units(maps, columns + 1).swapaxes(1, 2), -1.0, 1.0)
            ends = np.maximum(next_correlation[rows].T[:, :, None], next_correlation[columns].T[:, None, :])
            fits = (_median_of_known(around, ends) >= floor) & (_median_of_known(around - ends, ends) > margin)
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
"""Values of frames in memory while searching for spans: 64 MB, twice."""


def _stretches(numbers: NDArray[np.intp], maps: Maps | NDArray[np.floating]) -> list[NDArray[np.intp]]:
    """Split frame numbers into blocks that fit in memory."""
    length = max(1, _AT_A_TIME // max(1, math.prod(maps.shape[1:])))
    return [numbers[start : start + length] for start in range(0, len(numbers), length)]


def _units(maps: Maps | NDArray[np.floating], numbers: NDArray[np.intp]) -> NDArray[np.float64]:
    """``(N, frames, h w)``: the frames of each image, so that a correlation is a product."""
    units = standardize(maps[numbers])
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
    next_correlation: NDArray[np.float64] | None = None,
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
    if next_correlation is None:
        spans = foreign_spans(maps)
    else:
        spans = _foreign_spans(maps, next_correlation, SPLICE_MARGIN, SPLICE_FLOOR)
    return Splice(
        files=tuple(name for name, reason in run.broken.items() if reason.startswith("belongs to another run")),
        spans=tuple((run.steps[first], run.steps[last]) for first, last in spans),
    )
