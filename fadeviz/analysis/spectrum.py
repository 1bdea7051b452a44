"""Spectrum: how fine a map's structure is, and how much of it repeats with the upsampling grid (checkerboard)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from ..errors import FadevizError
from .blocks import BLOCK, has_pattern

BORDER = 4
"""Pixels cropped on each side: a 5 x 5 kernel at half the resolution reaches the zero padding from this far."""


MIN_SIDE = 8
"""Smallest side of a cropped map in pixels: below, there are too few frequencies, and the measures are NaN."""


HIGH = 0.25
"""Frequency in cycles per pixel above which energy counts as high."""


NYQUIST_WIDTH = 0.03


NYQUIST_BAND = 0.10
"""Distances to a line of the grid in cycles per pixel: up to the first is on the line, up to the second beside it."""


_APART = 2
"""Distance in periods between compared patterns: those of adjacent periods share pixels."""


class Checkerboard(NamedTuple):
    """How much of a map repeats with the upsampling grid; each of the shape of the maps' leading axes.

    Attributes:
        share: repeated part of the variance within one period; about 0 without an artifact, 1 for a pure lattice.
        amplitude: root mean square of the repeated pattern, in the map's units; 0 if ``share`` is not positive.
        nyquist: power density on the grid's spectral lines relative to that beside them; 1 for a flat spectrum.
    """

    share: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    nyquist: NDArray[np.float64]


def radial_centroid(maps: NDArray[np.floating], border: int = BORDER) -> NDArray[np.float64]:
    r"""Mean radial frequency of a map, weighted by energy.

    .. math::

        c = \frac{\sum_f P(f)\,|f|}{\sum_f P(f)}, \qquad
        P = |\operatorname{DFT}(w\,(F - m))|^2, \qquad |f| = \sqrt{f_x^2 + f_y^2}

    with :math:`F` the map, :math:`w` the two-dimensional Hann window and :math:`m` the mean of the map under that
    window, so that :math:`P(0) = 0`. White noise has about 0.38; a smooth blob as large as the map has about 1.5
    divided by its side.

    Args:
        maps: ``(..., h, w)``.
        border: pixels left out on each side.

    Returns:
        float64 of the leading axes, in [0, 0.71]; NaN for a constant, non-finite or too small map.

    Units: cycles per pixel of the map's own resolution.

    Raises:
        FadevizError: if a map has fewer than two axes, or the border is negative.
    """
    return _each_map(maps, border, lambda values: _shares_of_power(values, 2)[0])


def high_share(maps: NDArray[np.floating], above: float = HIGH, border: int = BORDER) -> NDArray[np.float64]:
    r"""Share of a map's energy at high radial frequencies.

    .. math:: \frac{\sum_{|f| > f_0} P(f)}{\sum_f P(f)}

    with :math:`P` and :math:`|f|` as in :func:`radial_centroid` and :math:`f_0` the threshold ``above``. White noise
    has :math:`1 - \pi f_0^2` for :math:`f_0 \le 0.5`: 0.80 for 0.25.

    Args:
        maps: ``(..., h, w)``.
        above: threshold in cycles per pixel.
        border: pixels left out on each side.

    Returns:
        float64 of the leading axes, in [0, 1]; NaN for a constant, non-finite or too small map.

    Raises:
        FadevizError: if a map has fewer than two axes, the border is negative, or ``above`` is outside [0, 0.71).
    """
    if not 0 <= above < np.sqrt(0.5):
        raise FadevizError(
            f"high_share: above={above:g}; it must be in [0, 0.71), the range of radial frequencies in cycles per pixel"
        )

    def share(values: NDArray[np.float64]) -> NDArray[np.float64]:
        power, weights, radius = _power(values), _weights(values.shape[-2:]), _radius(values.shape[-2:])
        high, total = _summed(power, np.stack([weights * (radius > above), weights], axis=1)).T
        return np.asarray(high / total)

    return _each_map(maps, border, share)


def radial_spectrum(
    maps: NDArray[np.floating], bins: int = 24, border: int = BORDER
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Share of a map's energy in each ring of radial frequency.

    .. math:: s_k = \frac{\sum_{e_k \le |f| < e_{k+1}} P(f)}{\sum_f P(f)}

    with :math:`P` and :math:`|f|` as in :func:`radial_centroid` and :math:`e_k` the edges of the rings, equally spaced
    from 0 to 0.71 cycles per pixel.

    Args:
        maps: ``(..., h, w)``.
        bins: number of rings.
        border: pixels left out on each side.

    Returns:
        Centres of the rings in cycles per pixel, ``(bins,)``; and the shares, ``(..., bins)``, which sum to 1, or NaN
        for a constant, non-finite or too small map.

    Raises:
        FadevizError: if a map has fewer than two axes, the border is negative, or there are no bins.
    """
    if bins < 1:
        raise FadevizError(f"radial_spectrum: bins={bins}; it must be at least 1")
    edges = np.linspace(0.0, np.sqrt(0.5), bins + 1)

    def shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
        power, weights, radius = _power(values), _weights(values.shape[-2:]), _radius(values.shape[-2:])
        ring = np.clip(np.searchsorted(edges, radius, side="right") - 1, 0, bins - 1)
        in_ring = weights[:, None] * (ring[:, None] == np.arange(bins))
        return np.asarray(_summed(power, in_ring) / _summed(power, weights[:, None]))

    return (edges[1:] + edges[:-1]) / 2, _each_map(maps, border, shares, (bins,))


def phase_pattern(maps: NDArray[np.floating], scale: int = 2, border: int = BORDER) -> NDArray[np.float64]:
    r"""The pattern that repeats every ``scale`` pixels: the deviation of each phase's mean.

    .. math::

        p_{ab} = \operatorname{mean}_{y \bmod s = a,\; x \bmod s = b} G_{yx} - \operatorname{mean}_{yx} G_{yx},
        \qquad G = F - A F

    with :math:`F` the map, :math:`s` the scale and :math:`A` the centred moving average over one period along both
    axes. :math:`A` removes every repeated pattern and keeps a linear trend, so that :math:`p` is free of the trend;
    otherwise a slope across the map would look like a pattern.

    Applied to an operator's response to a constant input, it gives the checkerboard that the operator produces by
    itself.

    Args:
        maps: ``(..., h, w)``; phases are counted from the corner of the uncropped map.
        scale: period s in pixels.
        border: pixels left out on each side, besides half a period for the average.

    Returns:
        float64 ``(..., s, s)`` in the maps' units; 0 for a constant map, NaN for one that is too small or not finite.

    Raises:
        FadevizError: if a map has fewer than two axes, the border is negative, or the scale is below 2.
    """
    cropped = _cropped(_checked(maps, border, scale), border)
    pattern = np.full((*cropped.shape[:-2], scale, scale), np.nan)
    for index in np.ndindex(cropped.shape[:-2]):
        if not np.isfinite(cropped[index]).all():
            continue
        cells = _cells(cropped[index].astype(np.float64), scale, border)
        if cells.size:
            pattern[index] = [[cells[y::scale, x::scale].mean() for x in range(scale)] for y in range(scale)]
    return pattern


def checkerboard(maps: NDArray[np.floating], scale: int = 2, border: int = BORDER) -> Checkerboard:
    r"""How much of a map repeats with the upsampling grid.

    .. math::

        \text{share} = \frac{\min(S, D)}{V}, \qquad
        S = \tfrac12 \langle p_{ij} \cdot p_{i+2,\,j} + p_{ij} \cdot p_{i,\,j+2} \rangle, \qquad
        D = \tfrac12 \langle p_{ij} \cdot p_{i+2,\,j+2} + p_{ij} \cdot p_{i+2,\,j-2} \rangle

    with :math:`p_{ij}` the s x s pixels of period :math:`(i, j)` of :math:`G` (see :func:`phase_pattern`) minus their
    mean, the brackets for the mean over periods and phases, and :math:`V` the mean variance of the map within windows
    of s x s pixels at all positions.

    Patterns are compared two periods apart, so that a lattice counts whatever its local phase and sign, as long as
    these change little over two periods: of a lattice of two pixels times white noise blurred by 8, 4, 2 and 1.5
    pixels, the share is 0.8, 0.6, 0.12 and 0.04. Dividing by the variance within a period makes a faint lattice on a
    flat area count, whatever the values of the map are in other places. An edge repeats only along itself: the smaller
    of :math:`S` and :math:`D` excludes it. Patterns two periods apart share no pixel, so that white noise gives about
    0, the chance level, possibly slightly below. The steps that nearest-neighbour upsampling makes of a slope count as
    a lattice.

    .. math:: \text{amplitude} = \sqrt{\max(\min(S, D), 0)}, \qquad
              \text{nyquist} = \frac{\operatorname{mean}_{d \le 0.03} P(f)}{\operatorname{mean}_{0.03 < d \le 0.10}
              P(f)}

    with :math:`P` as in :func:`radial_centroid` and :math:`d` the distance of :math:`f_x` or :math:`f_y`, whichever is
    nearer, to a multiple of 1/s (for s = 2 the Nyquist frequency, 0.5). Staircases raise ``nyquist`` too, because they
    repeat the map's low frequencies beside the lines. Below 64 pixels a side the window spreads a line beyond 0.03:
    compare only maps of the same size.

    All but the amplitude are invariant to the map's mean and scale.

    Args:
        maps: ``(..., h, w)``.
        scale: period s of the upsampling grid in pixels.
        border: pixels left out on each side.

    Returns:
        Three arrays of the leading axes; NaN for a constant, non-finite or too small map (share and amplitude need four
        periods a side, and one more), and ``nyquist`` also where there is no energy beside the lines.

    Limit case: a map that consists of a repeated pattern alone has share 1.

    Raises:
        FadevizError: if a map has fewer than two axes, the border is negative, or the scale is below 2.
    """
    return measure_spectrum(maps, scale, border)[2]


def measure_spectrum(
    maps: NDArray[np.floating], scale: int = 2, border: int = BORDER
) -> tuple[NDArray[np.float64], NDArray[np.float64], Checkerboard]:
    """:func:`radial_centroid`, :func:`high_share` and :func:`checkerboard` of the same maps, each transformed once.

    Raises:
        FadevizError: under the same conditions as :func:`checkerboard`.
    """
    maps = _checked(maps, border, scale)

    def measures(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([*_shares_of_power(values, scale), *_repeated(values, scale, border)], axis=1)

    centroid, high, nyquist, share, amplitude = np.moveaxis(_each_map(maps, border, measures, (5,)), -1, 0)
    return centroid, high, Checkerboard(share, amplitude, nyquist)


def _each_map(
    maps: NDArray[np.floating],
    border: int,
    measure: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    shape: tuple[int, ...] = (),
) -> NDArray[np.float64]:
    """Apply ``measure`` to the cropped maps ``(M, h, w)`` that are defined, as many at a time as the cache holds."""
    cropped = _cropped(_checked(maps, border), border)
    results = np.full((*cropped.shape[:-2], *shape), np.nan)
    if min(cropped.shape[-2:]) < MIN_SIDE:
        return results
    row_of = results.reshape(-1, *shape)
    flat = cropped.reshape(-1, *cropped.shape[-2:])
    usable = np.flatnonzero(has_pattern(flat))
    length = max(1, BLOCK // math.prod(flat.shape[1:]))
    for start in range(0, len(usable), length):
        rows = usable[start : start + length]
        row_of[rows] = measure(flat[rows].astype(np.float64))
    return results


def _checked(maps: NDArray[np.floating], border: int, scale: int = 2) -> NDArray[np.floating]:
    maps = np.asarray(maps)
    if maps.ndim < 2:
        raise FadevizError(f"maps (..., h, w) are needed; got the shape {maps.shape}")
    if border < 0:
        raise FadevizError(f"border={border}; it must be 0 or more pixels")
    if scale < 2:
        raise FadevizError(f"scale={scale}; it must be at least 2 pixels")
    return maps


def _cropped(maps: NDArray[np.floating], border: int) -> NDArray[np.floating]:
    height, width = maps.shape[-2:]
    return maps[..., border : height - border, border : width - border]


def _hann(length: int) -> NDArray[np.float64]:
    # Sampled at half pixels: no sample is zero, and the transform is exactly three bins wide.
    return np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2


@lru_cache(maxsize=16)
def _window(shape: tuple[int, ...]) -> NDArray[np.float64]:
    window: NDArray[np.float64] = np.outer(_hann(shape[0]), _hann(shape[1]))
    return window


def _summed(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted sums of the values of each map, ``(M, n)`` and ``(n, K)`` -> ``(M, K)``."""
    # One product per map: with a single one for all, the last bit would depend on their number.
    sums: NDArray[np.float64] = (values[:, None] @ weights)[:, 0]
    return sums


def _power(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Power of maps ``(M, h, w)`` by frequency, ``(M, F)``, in the half plane that determines the other."""
    window = _window(values.shape[-2:])
    mean = _summed(values.reshape(len(values), -1), window.reshape(-1, 1)) / window.sum()
    centred = values - mean[:, :, None]
    centred *= window
    transformed = fft.rfft2(centred, overwrite_x=True)
    power: NDArray[np.float64] = transformed.real**2 + transformed.imag**2
    return power.reshape(len(values), -1)


@lru_cache(maxsize=16)
def _radius(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Radius of each frequency, ``(F,)``."""
    return np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])).ravel()


@lru_cache(maxsize=16)
def _weights(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Number of frequencies of the full plane that each one stands for, ``(F,)``: 2, or 1 if it is its own mirror."""
    columns = np.full(shape[1] // 2 + 1, 2.0)
    columns[0] = 1
    if shape[1] % 2 == 0:
        columns[-1] = 1
    return np.tile(columns, shape[0])


def _shares_of_power(values: NDArray[np.float64], scale: int) -> tuple[NDArray[np.float64], ...]:
    """Radial centroid, share of high frequencies and Nyquist ratio of maps ``(M, h, w)``."""
    power = _power(values)
    total, radial, high, on, beside = _summed(power, _parts_of_power(values.shape[-2:], scale)).T
    # A purely periodic pattern has no energy beside its lines, and no ratio.
    defined = beside > 1e-20 * power.max(1)
    return radial / total, high / total, np.divide(on, beside, out=np.full(len(on), np.nan), where=defined)


@lru_cache(maxsize=16)
def _parts_of_power(shape: tuple[int, ...], scale: int) -> NDArray[np.float64]:
    """Weights of the power for its sums and means, ``(F, 5)``, so that one product gives all of them."""
    weights, radius = _weights(shape), _radius(shape)
    on, beside = (weights * lines for lines in _lines(shape, scale))
    if not on.any() or not beside.any():
        on = beside = np.zeros(len(weights))  # nothing to compare with: no ratio
    means = [part / max(1.0, part.sum()) for part in (on, beside)]
    return np.stack([weights, weights * radius, weights * (radius > HIGH), *means], axis=1)


@lru_cache(maxsize=16)
def _lines(shape: tuple[int, ...], scale: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which frequencies lie on a line of the grid, and which beside one; ``(F,)`` each."""
    lines = np.arange(1, scale // 2 + 1) / scale

    def distance(frequencies: NDArray[np.floating]) -> NDArray[np.float64]:
        away: NDArray[np.float64] = np.abs(np.abs(frequencies)[:, None] - lines).min(1)
        return away

    away = np.minimum(distance(np.fft.fftfreq(shape[0]))[:, None], distance(np.fft.rfftfreq(shape[1]))).ravel()
    slack = 1e-9  # frequencies are multiples of a rounded step: those at a limit count as within
    on = away <= NYQUIST_WIDTH + slack
    return on, ~on & (away <= NYQUIST_BAND + slack)


def _repeated(values: NDArray[np.float64], scale: int, border: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share and amplitude of :func:`checkerboard`, for cropped maps ``(M, h, w)``."""
    cells = _cells(values, scale, border)
    if min(cells.shape[-2:]) < 2 * _APART * scale:
        return np.full(len(values), np.nan), np.full(len(values), np.nan)
    all_of, before, after = slice(None), slice(None, -_APART * scale), slice(_APART * scale, None)

    def product(rows: tuple[slice, slice], columns: tuple[slice, slice]) -> NDArray[np.float64]:
        return _mean_product(*(cells[:, y, x] for y, x in zip(rows, columns, strict=True)))

    straight = product((all_of, all_of), (before, after)) + product((before, after), (all_of, all_of))
    diagonal = product((before, after), (before, after)) + product((before, after), (after, before))
    lattice = np.minimum(straight, diagonal) / 2
    return lattice / _variance_within(values, scale), np.sqrt(np.maximum(lattice, 0.0))


def _mean_product(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over pixels of a product, ``(M, h, w)`` twice -> ``(M,)``, without an array of the products."""
    return np.einsum("myx,myx->m", a, b) / math.prod(a.shape[1:])


def _variance_within(values: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
    """Mean variance within all windows of ``scale`` x ``scale`` pixels, for maps ``(M, h, w)``."""
    # Without their means, the squares that are subtracted are small.
    centred = values - values.mean((1, 2), keepdims=True)
    height, width = (side - scale + 1 for side in centred.shape[1:])
    places = [centred[:, y : y + height, x : x + width] for y in range(scale) for x in range(scale)]
    mean = sum(places[1:], places[0]) / len(places)
    squares: NDArray[np.float64] = np.mean([_mean_product(place, place) for place in places], axis=0)
    return squares - _mean_product(mean, mean)


def _moving_average(values: NDArray[np.float64], scale: int, axis: int) -> NDArray[np.float64]:
    # Centred over one period; the two ends of an even one count half. Shorter by scale // 2 at each end.
    half = scale // 2
    weights = np.full(2 * half + 1, 1 / scale)
    if scale % 2 == 0:
        weights[[0, -1]] /= 2
    length = values.shape[axis] - 2 * half
    part = [slice(None)] * values.ndim
    mean = np.zeros(())
    for place, weight in enumerate(weights):
        part[axis] = slice(place, place + length)
        mean = mean + weight * values[tuple(part)]
    return mean


def _cells(values: NDArray[np.float64], scale: int, border: int) -> NDArray[np.float64]:
    """The whole periods of cropped maps without their trend, each of mean 0: ``(..., h, w)`` -> ``(..., r s, c s)``.

    The first pixel of a period is one whose place in the uncropped map is a multiple of ``scale``.
    """
    half = scale // 2
    skip = -(border + half) % scale
    height, width = (max(0, (side - 2 * half - skip) // scale) * scale for side in values.shape[-2:])
    if not height or not width:
        return np.empty((*values.shape[:-2], 0, 0))
    first = half + skip
    kept = values[..., first : first + height, first : first + width]
    trend = _moving_average(_moving_average(values, scale, -2), scale, -1)
    cells = kept - trend[..., skip : skip + height, skip : skip + width]
    phases = [cells[..., y::scale, x::scale] for y in range(scale) for x in range(scale)]
    mean = sum(phases[1:], phases[0]) / len(phases)
    for phase in phases:
        phase -= mean
    return cells
