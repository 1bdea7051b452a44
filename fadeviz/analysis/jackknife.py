"""Jackknife intervals over seeds and images, and the comparison of two estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Indices = NDArray[np.intp]
Statistic = Callable[[Indices, Indices], float]
"""A number from the runs and the images with these indices."""


@dataclass(frozen=True)
class Estimate:
    r"""A number with its jackknife variance over seeds and images.

    .. math::

        V = V_\text{seeds} + V_\text{images}, \qquad
        V_\cdot = \frac{k - 1}{k} \sum_{i=1}^{k} (\theta_{(i)} - \bar\theta)^2, \qquad
        \nu = \frac{V^2}{V_\text{seeds}^2 / (R - 1) + V_\text{images}^2 / (N - 1)}

    with :math:`\theta_{(i)}` the number without run (image) :math:`i`, :math:`k` their number and :math:`\nu`
    Satterthwaite's degrees of freedom. With one run it is the variance between images alone, which says nothing of
    other trainings.

    Attributes:
        value: the number, from all runs and images.
        without_run: ``(R,)``, the number without each run; empty for one run.
        without_image: ``(N,)``, the number without each image.
    """

    value: float
    without_run: NDArray[np.float64]
    without_image: NDArray[np.float64]

    @property
    def variance_seeds(self) -> float:
        """Variance between seeds; 0 with one run."""
        return _variance(self.without_run)

    @property
    def variance_images(self) -> float:
        """Variance between images."""
        return _variance(self.without_image)

    @property
    def error(self) -> float:
        """Standard error; infinite where the number is undefined without some run or image."""
        return math.sqrt(self.variance_seeds + self.variance_images)

    @property
    def degrees(self) -> float:
        """Degrees of freedom, at least 1."""
        parts = [(self.variance_seeds, len(self.without_run)), (self.variance_images, len(self.without_image))]
        total = sum(variance for variance, _ in parts)
        denominator = sum(variance**2 / (count - 1) for variance, count in parts if variance > 0)
        return max(1.0, total**2 / denominator) if 0 < denominator < math.inf else 1.0

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Ends of the confidence interval by Student's t."""
        half = float(stats.t.ppf((1 + level) / 2, self.degrees)) * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided p-value of the number being 0."""
        if not self.error > 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.degrees))

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference of two numbers of the same runs (seeds) and images, paired over both."""
        return Estimate(
            self.value - other.value,
            self.without_run - other.without_run,
            self.without_image - other.without_image,
        )


def jackknife(statistic: Statistic, runs: int, images: int) -> Estimate:
    """A number with its variance over seeds and images.

    Args:
        statistic: the number from runs and images by their indices; an image is left out as a map and as a mask.
        runs: R.
        images: N, at least 3.
    """
    all_runs, all_images = np.arange(runs), np.arange(images)
    without_run = [statistic(np.delete(all_runs, run), all_images) for run in all_runs] if runs > 1 else []
    without_image = [statistic(all_runs, np.delete(all_images, image)) for image in all_images]
    return Estimate(statistic(all_runs, all_images), np.array(without_run), np.array(without_image))


def jackknife_band(
    curve_of: Callable[[Indices, Indices], NDArray[np.float64]], runs: int, images: int, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper end of the interval of a curve, at each of its S points by itself.

    Args:
        curve_of: the curve ``(S,)`` from runs and images by their indices.
        runs: R.
        images: N; the interval is undefined (NaN) for fewer than 3.
        level: nominal coverage.
    """
    curve = curve_of(np.arange(runs), np.arange(images))
    if images < 3:
        return np.full_like(curve, np.nan), np.full_like(curve, np.nan)
    every_run, every_image = np.arange(runs), np.arange(images)
    replicates = [[curve_of(every_run, np.delete(every_image, image)) for image in every_image]]
    if runs > 1:
        replicates.append([curve_of(np.delete(every_run, run), every_image) for run in every_run])
    parts = [(np.var(curves, axis=0) * (len(curves) - 1), len(curves)) for curves in replicates]
    total = np.sum([variance for variance, _ in parts], axis=0)
    denominator = np.sum([variance**2 / (count - 1) for variance, count in parts], axis=0)
    degrees = np.divide(total**2, denominator, out=np.ones_like(total), where=denominator > 0)
    half = stats.t.ppf((1 + level) / 2, np.maximum(degrees, 1)) * np.sqrt(total)
    return curve - half, curve + half


def _variance(replicates: NDArray[np.float64]) -> float:
    if not len(replicates):
        return 0.0
    if not np.isfinite(replicates).all():
        return math.inf
    return float((len(replicates) - 1) / len(replicates) * ((replicates - replicates.mean()) ** 2).sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's method, in the order given.

    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
