"""Colours: 256 for a map, and one for cells that are not finite; one for each class of a mask."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError, unknown_name

NON_FINITE = (255, 0, 255)
"""Colour of NaN and infinity: magenta, which no common colour map comes near."""

IGNORED = 255
"""Value of a mask where pixels are ignored: in training, testing and figures."""

_SIGNED = (
    "649acb", "86b1d9", "a9c8e5", "cadef0", "e7f0f8", "ffffff", "fdeedd", "fbcf9f", "f3a257", "d4691a", "7f2d04"
)  # fmt: skip
"""Colours of signed values from the lower to the upper end, evenly spaced; white is 0."""

_DIVERGING = frozenset(
    ("BrBG", "PRGn", "PiYG", "PuOr", "RdBu", "RdGy", "RdYlBu", "RdYlGn", "Spectral", "berlin", "bwr", "coolwarm")
) | {"managua", "seismic", "vanimo"}


def palette(name: str) -> NDArray[np.uint8]:
    """The 256 colours of a colour map, ``(256, 3)`` uint8: ``gray`` or any colour map of matplotlib.

    Raises:
        FadevizError: if there is no such colour map; the message lists the nearest names.
    """
    if name == "gray":  # exact by construction, and without importing matplotlib
        return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    import matplotlib

    if name not in matplotlib.colormaps:
        raise unknown_name("colour map", name, matplotlib.colormaps, "matplotlib.org, Choosing Colormaps")
    colors = matplotlib.colormaps[name](np.linspace(0.0, 1.0, 256), bytes=True)
    return np.ascontiguousarray(colors[:, :3], dtype=np.uint8)


def is_diverging(name: str) -> bool:
    """Whether a colour map diverges from its middle, which stands for 0 where maps take both signs."""
    return name.removesuffix("_r") in _DIVERGING


def signed_palette() -> NDArray[np.uint8]:
    """The 256 colours of signed values, ``(256, 3)`` uint8: blue below 0, white at 0, orange to brown above.

    Blue and orange differ for every kind of colour vision. The upper end is much darker than the lower one, so that in
    grey print what is dark is positive.
    """
    values = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in _SIGNED], np.float64)
    places = np.linspace(0, 1, len(_SIGNED))
    channels = [np.interp(np.linspace(0, 1, 256), places, channel) for channel in values.T]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


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
    """A colour for each class, ``(classes, 3)`` uint8 sRGB: always the same ones, as different as possible.

    Each next colour is the one farthest, in CIELAB, from black and from the previous ones, so that a shorter palette is
    the beginning of a longer one. Black is reserved for ignored pixels.

    Raises:
        FadevizError: if ``classes`` is not 1-255.

    Example:
        >>> class_palette(3).shape
        (3, 3)
    """
    if not 1 <= classes <= IGNORED:
        raise FadevizError(f"classes={classes}: must be 1-{IGNORED}")
    return _class_palette(classes).copy()


def colour_classes(mask: NDArray[np.uint8], classes: int) -> NDArray[np.uint8]:
    """A mask in the colours of :func:`class_palette`; ignored pixels, and values that are no class, are black.

    Shape: ``(..., H, W)`` uint8 to ``(..., H, W, 3)`` uint8.

    Raises:
        FadevizError: if ``classes`` is not 1-255.
    """
    table = np.zeros((256, 3), np.uint8)
    table[:classes] = class_palette(classes)
    return table[mask]


@lru_cache(maxsize=4)
def _class_palette(classes: int) -> NDArray[np.uint8]:
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(colours)
    # Not as dark as ignored pixels, not nearly white, and not so vivid that it outshines the image beside it: with
    # chroma below 75 the nearest two of 150 colours are 14.8 apart, without that limit 16.1.
    usable = (lab[:, 0] > 25) & (lab[:, 0] < 93) & (np.hypot(lab[:, 1], lab[:, 2]) < 75)
    colours, lab = colours[usable], lab[usable]
    selected: list[int] = []
    nearest = np.linalg.norm(lab - _lab(np.zeros((1, 3), np.uint8)), axis=1)
    for _ in range(classes):
        # Rounded, so that the last digit on another machine does not select another colour.
        selected.append(int(np.argmax(np.round(nearest, 6))))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[selected[-1]], axis=1))
    return colours[selected]


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
