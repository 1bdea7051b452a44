"""Arrival: the step by which a response has risen, from its monotone fit."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Shares of the top at which the rise is timed; their mean is less noisy than a single one."""


def crossings(
    curve: NDArray[np.float64], top: float, time: NDArray[np.float64], *, base: float = 0.0
) -> tuple[list[float], list[int]]:
    """The times at which the monotone fit of a curve reaches shares of its top.

    Args:
        curve: ``(T,)``, the response up to its top.
        top: the level that counts as whole.
        time: ``(T,)``, increasing, such as log(1 + step).
        base: the level that counts as nothing.

    Returns:
        For each of ``LEVELS``, the time, interpolated between two snapshots (the first snapshot's if it is reached
        there), and the index of the snapshot by which it is reached. No times if the top is not above the base.
    """
    if not top > base:
        return [], []
    fit = isotonic_regression(np.append(curve, top)).x
    times = np.append(time, time[-1])
    reached: list[float] = []
    indices: list[int] = []
    for share in LEVELS:
        goal = min(base + share * (top - base), fit[-1])
        index = int(np.argmax(fit >= goal - 1e-12))
        indices.append(min(index, len(time) - 1))
        if index == 0:
            reached.append(float(times[0]))
        else:
            part = (goal - fit[index - 1]) / (fit[index] - fit[index - 1])
            reached.append(float(times[index - 1] + (times[index] - times[index - 1]) * part))
    return reached, indices


def arrival(curve: NDArray[np.float64], top: float, time: NDArray[np.float64], *, base: float = 0.0) -> float:
    r"""Mean time at which the monotone fit of a curve reaches 30, 40, 50, 60 and 70 % of its top.

    .. math:: \tau = \frac{1}{5} \sum_{q} t\bigl(\hat K \ge b + q\,(K_\text{top} - b)\bigr)

    with :math:`\hat K` the isotonic regression of the curve up to its top and :math:`b` the base.

    Args:
        curve, top, time, base: see :func:`crossings`.

    Returns:
        The time; NaN if the top is not above the base.
    """
    times, _ = crossings(curve, top, time, base=base)
    return math.fsum(times) / len(times) if times else math.nan
