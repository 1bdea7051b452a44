"""Objects of the planted movies: masks of synthetic horses, whole and in part, of ribbons and of ellipses."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fadeviz.analysis.regions import Regions, build_regions
from fadeviz.data.synthetic.dataset import SyntheticHorses

PIXELS = 96
POOL = 40
"""Objects of each shape, from which a movie draws its own."""


@functools.cache
def pool_regions(shape: str, number: int, size: int) -> Regions:
    return build_regions(object_mask(shape, number), (size, size))


@functools.cache
def object_mask(shape: str, number: int) -> NDArray[np.uint8]:
    """``(PIXELS, PIXELS)``, 1 on the object."""
    return SHAPES[shape](number)


def _horse(number: int) -> NDArray[np.uint8]:
    return SyntheticHorses(PIXELS, seed=1)[number].mask


def _two_horses(number: int) -> NDArray[np.uint8]:
    random = np.random.default_rng([1, number])
    canvas = np.zeros((PIXELS, PIXELS), np.uint8)
    for half, horse in enumerate((2 * number, 2 * number + 1)):
        small = _crop(SyntheticHorses(52, seed=2)[horse].mask)
        top = random.integers(0, PIXELS - small.shape[0] + 1)
        left = 0 if half == 0 else PIXELS - small.shape[1]
        canvas[top : top + small.shape[0], left : left + small.shape[1]] |= small
    return canvas


def _horse_at_border(number: int) -> NDArray[np.uint8]:
    random = np.random.default_rng([2, number])
    horse = SyntheticHorses(PIXELS, seed=3)[number].mask
    columns = np.flatnonzero(horse.any(0))
    # Shifted to one side until a quarter of its length is outside.
    outside = (columns[-1] - columns[0]) // 4
    shift = PIXELS - 1 - columns[-1] + outside if random.random() < 0.5 else -columns[0] - outside
    shifted = np.zeros_like(horse)
    if shift > 0:
        shifted[:, shift:] = horse[:, :-shift]
    else:
        shifted[:, :shift] = horse[:, -shift:]
    return shifted


def _legs(number: int) -> NDArray[np.uint8]:
    """The fore or the hind legs of a horse, up to the belly."""
    random = np.random.default_rng([4, number])
    horse = _crop(SyntheticHorses(2 * PIXELS, seed=4)[number].mask)
    height, width = horse.shape
    part = horse[6 * height // 10 :, : width // 2] if number % 2 else horse[6 * height // 10 :, width // 2 :]
    legs = _crop(part)[-PIXELS:, -PIXELS:]
    canvas = np.zeros((PIXELS, PIXELS), np.uint8)
    top, left = (random.integers(0, PIXELS - side + 1) for side in legs.shape)
    canvas[top : top + legs.shape[0], left : left + legs.shape[1]] = legs
    return canvas


def _ribbon(number: int, radius: float) -> NDArray[np.uint8]:
    """A curved band, ``radius`` pixels to each side of its middle."""
    random = np.random.default_rng([3, number])
    t = np.linspace(0, 1, 200)[:, None]
    a, b, c, d = random.uniform(0.1, 0.9, (4, 2)) * PIXELS
    a, d = np.array([a[0], 0.1 * PIXELS]), np.array([d[0], 0.9 * PIXELS])
    curve = (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d
    away = np.ones((PIXELS, PIXELS), bool)
    y, x = np.clip(np.rint(curve).astype(int), 0, PIXELS - 1).T
    away[y, x] = False
    return (ndimage.distance_transform_edt(away) < radius).astype(np.uint8)


def ellipse(cell: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """An ellipse in one cell of a grid of 4 rows and 3 columns."""
    y, x = np.mgrid[:PIXELS, :PIXELS]
    row, column = 12 + 24 * (cell // 3), 16 + 32 * (cell % 3)
    high, wide = random.uniform(8, 10), random.uniform(9, 13)
    return (((y - row) / high) ** 2 + ((x - column) / wide) ** 2 < 1).astype(np.uint8)


def _crop(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


SHAPES: dict[str, Callable[[int], NDArray[np.uint8]]] = {
    "horse": _horse,
    "two": _two_horses,
    "border": _horse_at_border,
    "legs": _legs,
    "thin": lambda number: _ribbon(number, 5.0),
    "thread": lambda number: _ribbon(number, 2.0),
}
