"""Colour maps: 256 colours a map, an index for each value, and a colour of its own for what is not finite."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import unknown_name

NON_FINITE = (255, 0, 255)
"""What NaN and infinity are painted in: magenta, which no usual colour map comes near."""

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
