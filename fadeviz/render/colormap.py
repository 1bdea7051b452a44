"""Colours: of maps, 256 each, with one of its own for what is not finite; and of classes, one each."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError, unknown_name

NON_FINITE = (255, 0, 255)
"""What NaN and infinity are painted in: magenta, which no usual colour map comes near."""

IGNORED = 255
"""In a mask of many classes: no class, so that nothing is expected of the network there."""

_DIVERGING = frozenset(
    ("BrBG", "PRGn", "PiYG", "PuOr", "RdBu", "RdGy", "RdYlBu", "RdYlGn", "Spectral", "berlin", "bwr", "coolwarm")
) | {"managua", "seismic", "vanimo"}


def palette(name: str) -> NDArray[np.uint8]:
    """The 256 colours of a colour map, ``(256, 3)`` uint8: ``gray`` or any that matplotlib knows.

    Raises:
        FadevizError: no such colour map; the message lists the nearest names.
    """
    if name == "gray":  # exact by construction, and without the import
        return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    import matplotlib

    if name not in matplotlib.colormaps:
        raise unknown_name("colour map", name, matplotlib.colormaps, "matplotlib.org, Choosing Colormaps")
    colors = matplotlib.colormaps[name](np.linspace(0.0, 1.0, 256), bytes=True)
    return np.ascontiguousarray(colors[:, :3], dtype=np.uint8)


def is_diverging(name: str) -> bool:
    """Whether the middle of a colour map stands for a middle value: 0 where the maps take both signs."""
    return name.removesuffix("_r") in _DIVERGING


def to_indices(unit: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The nearest of the 256 indices of a palette for values in [0, 1]; 0 where NaN."""
    scaled = np.rint(np.asarray(unit, dtype=np.float64) * 255.0)
    return np.where(np.isnan(scaled), 0.0, scaled).astype(np.uint8)


def colorize(unit: NDArray[np.floating], name: str) -> NDArray[np.uint8]:
    """Values in [0, 1] of any shape in the colours of a map, ``(..., 3)`` uint8; NaN becomes ``NON_FINITE``."""
    colors = palette(name)[to_indices(unit)]
    colors[np.isnan(unit)] = NON_FINITE
    return colors


def class_palette(classes: int) -> NDArray[np.uint8]:
    """A colour for each class, ``(classes, 3)`` uint8 sRGB: always the same ones, as far from one another as can be.

    Each next colour is the one farthest, in CIELAB, from black and from those before it; so a shorter palette is the
    beginning of a longer one. Black is left to what is ignored.

    Raises:
        FadevizError: fewer than 1 or more than 255 classes.

    Example:
        >>> class_palette(3).shape
        (3, 3)
    """
    if not 1 <= classes <= IGNORED:
        raise FadevizError(f"a palette of {classes} classes: from 1 to {IGNORED} can be had")
    return _class_palette(classes).copy()


def colour_classes(mask: NDArray[np.uint8], classes: int) -> NDArray[np.uint8]:
    """A mask as a picture in the colours of :func:`class_palette`; what is ignored, or no class, is black.

    Shape: ``(..., H, W)`` uint8 to ``(..., H, W, 3)`` uint8.

    Raises:
        FadevizError: fewer than 1 or more than 255 classes.
    """
    table = np.zeros((256, 3), np.uint8)
    table[:classes] = class_palette(classes)
    return table[mask]


@lru_cache(maxsize=4)
def _class_palette(classes: int) -> NDArray[np.uint8]:
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(colours)
    # Neither too dark to be told from what is ignored, nor nearly white, nor so vivid that it outshines the image
    # beside it: at 75 the nearest two of 150 colours are 14.8 apart, without that limit 16.1.
    usable = (lab[:, 0] > 25) & (lab[:, 0] < 93) & (np.hypot(lab[:, 1], lab[:, 2]) < 75)
    colours, lab = colours[usable], lab[usable]
    chosen: list[int] = []
    nearest = np.linalg.norm(lab - _lab(np.zeros((1, 3), np.uint8)), axis=1)
    for _ in range(classes):
        # Rounded, so that another machine's last digit does not choose another colour.
        chosen.append(int(np.argmax(np.round(nearest, 6))))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return colours[chosen]


def _lab(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """CIELAB of sRGB colours ``(N, 3)``, white point D65."""
    value = colours / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    x, y, z = np.moveaxis(linear @ to_xyz.T / to_xyz.sum(axis=1), -1, 0)
    x, y, z = (np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116) for t in (x, y, z))
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
