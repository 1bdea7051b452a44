"""Spectrum: how fine a map's structure is, and how much of it repeats with the upsampling grid (checkerboard)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError

BORDER = 4
"""Pixels cropped on each side: a 5 x 5 kernel at half the resolution sees the zero padding up to here."""

MIN_SIDE = 8
"""A cropped map with fewer pixels a side has too few frequencies to be measured: its measures are missing."""

HIGH = 0.25
"""Cycles per pixel above which a frequency counts as high."""

NYQUIST_WIDTH = 0.03
NYQUIST_BAND = 0.10
"""Cycles per pixel from a line of the grid: up to the first is on the line, from there up to the second beside it."""

FLAT = 4 * float(np.finfo(np.float32).eps)
"""A map whose range is below this share of its largest magnitude is constant: what is left is float32 rounding."""

_APART = 2
"""Distance in periods between compared patterns: those of neighbouring periods share pixels."""


class Checkerboard(NamedTuple):
    """How much of a map repeats with the upsampling grid; each of the shape of the maps' leading axes.

    Attributes:
        share: what neighbouring periods repeat over the variance within one; about 0 without an artifact, 1 if there
            is nothing else.
        amplitude: root mean square of the repeated pattern, in the map's own units; 0 where ``share`` is not positive.
        nyquist: power density on the grid's spectral lines over that beside them; 1 for a flat spectrum.
    """

    share: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    nyquist: NDArray[np.float64]


def has_pattern(maps: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether a map is finite and more than constant: what every measure here asks of it.

    Shape: ``(..., h, w)`` -> ``(...)``.
    """
    axes = (-2, -1)
    if 0 in maps.shape[-2:]:
        return np.zeros(maps.shape[:-2], bool)
    finite = np.isfinite(maps)
    safe = np.where(finite, maps, 0).astype(np.float64)
    spread = safe.max(axes) - safe.min(axes)
    return np.asarray(finite.all(axes) & (spread > FLAT * np.abs(safe).max(axes)))


def radial_centroid(maps: NDArray[np.floating], border: int = BORDER) -> NDArray[np.float64]:
    """Mean radial frequency of a map, weighted by energy.

    ``sum P(f) |f| / sum P(f)`` with ``P = |DFT(w (F - m))|^2``, w the two-dimensional Hann window, m the mean of the
    map F under that window (so that P(0) = 0) and ``|f| = sqrt(fx^2 + fy^2)``. About 0.38 for white noise; a smooth
    blob as large as the map has about 1.5 over its side.

    Args:
        maps: ``(..., h, w)``.
        border: pixels left out on each side.

    Returns:
        float64 of the leading axes, in [0, 0.71]; NaN for a constant, a non-finite or a too small map.

    Units: cycles per pixel of the map's own resolution.

    Raises:
        FadevizError: fewer than two axes, or a negative border.
    """
    return _each_map(maps, border, MIN_SIDE, lambda values: _centroid(_power(values)))


def high_share(maps: NDArray[np.floating], above: float = HIGH, border: int = BORDER) -> NDArray[np.float64]:
    """Share of a map's energy at radial frequencies above ``above`` cycles per pixel.

    ``sum over |f| > above of P(f) / sum P(f)``, with P as in :func:`radial_centroid`; white noise has
    ``1 - pi above^2`` for ``above`` up to 0.5 (0.80 for 0.25).

    Returns:
        float64 of the leading axes, in [0, 1]; NaN for a constant, a non-finite or a too small map.

    Raises:
        FadevizError: fewer than two axes, a negative border, or ``above`` outside 0 to 0.71.
    """
    if not 0 <= above < np.sqrt(0.5):
        raise FadevizError(f"high_share: above is {above:g}; radial frequencies span 0 to 0.71 cycles per pixel")
    return _each_map(maps, border, MIN_SIDE, lambda values: _share_above(_power(values), above))


def radial_spectrum(
    maps: NDArray[np.floating], bins: int = 24, border: int = BORDER
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of a map's energy in each ring of radial frequency, for curves.

    Returns:
        The middle of each ring in cycles per pixel, ``(bins,)``, from 0 to 0.71 in equal steps; and the shares,
        ``(..., bins)``, which sum to 1, or NaN for a constant, a non-finite or a too small map.

    Raises:
        FadevizError: fewer than two axes, a negative border, or no bins.
    """
    if bins < 1:
        raise FadevizError(f"radial_spectrum: {bins} bins; at least 1 is needed")
    edges = np.linspace(0.0, np.sqrt(0.5), bins + 1)

    def shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
        power = _power(values)
        ring = np.clip(np.searchsorted(edges, _radius(values.shape), side="right") - 1, 0, bins - 1)
        return np.bincount(ring.ravel(), power.ravel(), minlength=bins) / power.sum()

    return (edges[1:] + edges[:-1]) / 2, _each_map(maps, border, MIN_SIDE, shares, (bins,))


def phase_pattern(maps: NDArray[np.floating], scale: int = 2, border: int = BORDER) -> NDArray[np.float64]:
    """The pattern that repeats every ``scale`` pixels: what each phase's mean adds to the map's.

    ``p[a, b] = mean of G over pixels (y, x) with y mod s = a, x mod s = b, less the mean over all phases``, with
    G = F - A F and A the centred moving average over one period along both axes. A passes no repeated pattern and keeps
    a linear trend, so that p is free of the trend: a slope across the map would look like a pattern otherwise.

    The response of an operator to a constant input is measured with it: its pattern is the checkerboard that the
    operator draws by itself.

    Args:
        maps: ``(..., h, w)``; phases are counted from the corner of the uncropped map.
        scale: the period s in pixels.
        border: pixels left out on each side, besides half a period for the average.

    Returns:
        float64 ``(..., s, s)`` in the maps' units; 0 for a constant map, NaN for one that is too small or not finite.

    Raises:
        FadevizError: fewer than two axes, a negative border, or a scale below 2.
    """
    cropped = _cropped(_checked(maps, border, scale), border)
    pattern = np.full((*cropped.shape[:-2], scale, scale), np.nan)
    for index in np.ndindex(cropped.shape[:-2]):
        if not np.isfinite(cropped[index]).all():
            continue
        cells = _cells(cropped[index].astype(np.float64), scale, border)
        if cells.size:
            pattern[index] = cells.mean((0, 1))
    return pattern


def checkerboard(maps: NDArray[np.floating], scale: int = 2, border: int = BORDER) -> Checkerboard:
    """How much of a map repeats with the upsampling grid of ``scale`` pixels.

    *Share*: ``min(S, D) / V``. p(i, j) is the pattern of one period, its s x s pixels of G (see :func:`phase_pattern`)
    less their mean; S is the mean product, over the map and the phases, of p(i, j) with p(i + 2, j) and p(i, j + 2), D
    that with p(i + 2, j + 2) and p(i + 2, j - 2), and V the mean variance of the map within s x s pixels, wherever they
    begin.

    Patterns are compared with those two periods further on, so that a lattice counts whatever its local phase and sign,
    as long as these change little over two periods. Division by the variance within a period makes a faint lattice on a
    flat area count, however high the map is elsewhere. An edge repeats only along itself: the smaller of S and D
    excludes it. Patterns two periods apart share no pixel, so white noise gives about 0, possibly a little less. The
    steps that nearest neighbour makes of a slope count as a lattice.

    *Amplitude*: the root of min(S, D), in the map's units.

    *Nyquist*: with d the distance of fx or fy, the nearer, to a multiple of 1/s (for s = 2 the Nyquist frequency, 0.5):
    mean of P(f) over d <= 0.03 divided by that over 0.03 < d <= 0.10. Staircases raise it too, as they repeat the map's
    low frequencies beside the lines. Below 64 pixels a side the window spreads a line beyond its 0.03: compare only
    maps of the same size.

    All but the amplitude are invariant to the map's mean and scale.

    Returns:
        Three arrays of the leading axes; NaN for a constant, a non-finite or a too small map (share and amplitude need
        four periods a side, and one more), and ``nyquist`` also where there is no energy beside the lines.

    Limit case: a map that is nothing but a repeated pattern has share 1.

    Raises:
        FadevizError: fewer than two axes, a negative border, or a scale below 2.
    """
    maps = _checked(maps, border, scale)
    found = _each_map(maps, border, MIN_SIDE, lambda values: _board(values, _power(values), scale, border), (3,))
    return Checkerboard(found[..., 0], found[..., 1], found[..., 2])


def measure_spectrum(
    maps: NDArray[np.floating], scale: int = 2, border: int = BORDER
) -> tuple[NDArray[np.float64], NDArray[np.float64], Checkerboard]:
    """:func:`radial_centroid`, :func:`high_share` and :func:`checkerboard` of the same maps, each transformed once.

    Raises:
        FadevizError: as :func:`checkerboard`.
    """
    maps = _checked(maps, border, scale)

    def measures(values: NDArray[np.float64]) -> tuple[float, ...]:
        power = _power(values)
        return _centroid(power), _share_above(power, HIGH), *_board(values, power, scale, border)

    found = np.moveaxis(_each_map(maps, border, MIN_SIDE, measures, (5,)), -1, 0)
    return found[0], found[1], Checkerboard(*found[2:])


def _centroid(power: NDArray[np.float64]) -> float:
    return float((power * _radius(power.shape)).sum() / power.sum())


def _share_above(power: NDArray[np.float64], above: float) -> float:
    return float(power[_radius(power.shape) > above].sum() / power.sum())


def _board(
    values: NDArray[np.float64], power: NDArray[np.float64], scale: int, border: int
) -> tuple[float, float, float]:
    """Share, amplitude and Nyquist ratio of one cropped map."""
    return *_repeated(values, scale, border), _line_ratio(power, scale)


def _each_map(
    maps: NDArray[np.floating],
    border: int,
    least: int,
    measure: Callable[[NDArray[np.float64]], Any],
    shape: tuple[int, ...] = (),
) -> NDArray[np.float64]:
    # A map at a time: the spectra of a whole run at once would take a gigabyte.
    cropped = _cropped(_checked(maps, border), border)
    found = np.full((*cropped.shape[:-2], *shape), np.nan)
    if min(cropped.shape[-2:]) < least:
        return found
    usable = has_pattern(cropped)
    for index in np.ndindex(cropped.shape[:-2]):
        if usable[index]:
            found[index] = measure(cropped[index].astype(np.float64))
    return found


def _checked(maps: NDArray[np.floating], border: int, scale: int = 2) -> NDArray[np.floating]:
    maps = np.asarray(maps)
    if maps.ndim < 2:
        raise FadevizError(f"a map has two axes (h, w), or more before them; got the shape {maps.shape}")
    if border < 0:
        raise FadevizError(f"border is {border}; 0 or more pixels can be cropped")
    if scale < 2:
        raise FadevizError(f"scale is {scale}; a pattern repeats every 2 pixels or more")
    return maps


def _cropped(maps: NDArray[np.floating], border: int) -> NDArray[np.floating]:
    height, width = maps.shape[-2:]
    return maps[..., border : height - border, border : width - border]


def _hann(length: int) -> NDArray[np.float64]:
    # Sampled at half pixels: no sample is wasted on a zero, and the transform is three bins wide, exactly.
    return np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2


@lru_cache(maxsize=16)
def _window(shape: tuple[int, ...]) -> NDArray[np.float64]:
    window: NDArray[np.float64] = np.outer(_hann(shape[0]), _hann(shape[1]))
    return window


def _power(values: NDArray[np.float64]) -> NDArray[np.float64]:
    window = _window(values.shape)
    centred = values - (window * values).sum() / window.sum()
    power: NDArray[np.float64] = np.abs(np.fft.fft2(window * centred)) ** 2
    return power


@lru_cache(maxsize=16)
def _radius(shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))


def _repeated(values: NDArray[np.float64], scale: int, border: int) -> tuple[float, float]:
    """Share and amplitude of :func:`checkerboard`, of one cropped map."""
    cells = _cells(values, scale, border)
    if min(cells.shape[:2]) < 2 * _APART:
        return np.nan, np.nan
    before, after = slice(None, -_APART), slice(_APART, None)

    def products(*pairs: tuple[tuple[slice, ...], tuple[slice, ...]]) -> float:
        return float(np.mean([(cells[first] * cells[second]).mean() for first, second in pairs]))

    straight = products(((slice(None), before), (slice(None), after)), ((before,), (after,)))
    lattice = min(straight, products(((before, before), (after, after)), ((before, after), (after, before))))
    return lattice / _variance_within(values, scale), np.sqrt(max(lattice, 0.0))


def _variance_within(values: NDArray[np.float64], scale: int) -> float:
    """Mean variance within all windows of ``scale`` x ``scale`` pixels."""
    centred = values - values.mean()  # the difference of two squares is of small numbers then
    height, width = (side - scale + 1 for side in centred.shape)
    places = [centred[y : y + height, x : x + width] for y in range(scale) for x in range(scale)]
    mean = sum(places[1:], places[0]) / len(places)
    return float(np.mean([(place * place).mean() for place in places]) - (mean * mean).mean())


@lru_cache(maxsize=16)
def _lines(shape: tuple[int, ...], scale: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which frequencies lie on a line of the grid, and which beside one."""
    lines = np.arange(1, scale // 2 + 1) / scale

    def distance(length: int) -> NDArray[np.float64]:
        away: NDArray[np.float64] = np.abs(np.abs(np.fft.fftfreq(length))[:, None] - lines).min(1)
        return away

    away = np.minimum(distance(shape[0])[:, None], distance(shape[1]))
    slack = 1e-9  # frequencies are multiples of a rounded step: those at a limit are to fall on one side of it
    on = away <= NYQUIST_WIDTH + slack
    return on, ~on & (away <= NYQUIST_BAND + slack)


def _line_ratio(power: NDArray[np.float64], scale: int) -> float:
    on, beside = _lines(power.shape, scale)
    if not on.any() or not beside.any():
        return np.nan
    level = float(power[beside].mean())
    # A pattern of whole periods and nothing else has no energy beside its lines: the ratio has no value.
    return float(power[on].mean() / level) if level > 1e-20 * float(power.max()) else np.nan


def _moving_average(values: NDArray[np.float64], scale: int, axis: int) -> NDArray[np.float64]:
    # Centred over one period: of an even one the two ends count half. Shorter by scale // 2 at each end.
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
    """The whole periods of a cropped map without its trend, ``(rows, columns, s, s)`` of mean 0.

    The first pixel of a period is one whose place in the uncropped map is a multiple of ``scale``.
    """
    half = scale // 2
    skip = -(border + half) % scale
    rows, columns = ((side - 2 * half - skip) // scale for side in values.shape)
    if rows < 1 or columns < 1:
        return np.empty((0, 0, scale, scale))
    first = half + skip
    kept = values[first : first + rows * scale, first : first + columns * scale]
    trend = _moving_average(_moving_average(values, scale, 0), scale, 1)
    rest = kept - trend[skip : skip + rows * scale, skip : skip + columns * scale]
    cells = rest.reshape(rows, scale, columns, scale).swapaxes(1, 2)
    return cells - cells.mean((2, 3), keepdims=True)
