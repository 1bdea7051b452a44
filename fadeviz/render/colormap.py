"""Colours: 256 for a map, and one for cells that are not finite; one for each class of a mask."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError, unknown_name

NON_FINITE = (255, 0, 255)
"""Colour of NaN and infinity: magenta, which no common colour map comes near."""

IGNORED = 255
"""Value of a mask where pixels are ignored: in training, testing and figures."""

MOST_FOR_ALL = 32
"""Largest number of classes whose colours differ for every kind of colour vision."""

_SIGNED = (
    "649acb", "86b1d9", "a9c8e5", "cadef0", "e7f0f8", "ffffff", "fdeedd", "fbcf9f", "f3a257", "d4691a", "7f2d04"
)  # fmt: skip
"""Colours of signed values from the lower to the upper end, evenly spaced; white is 0."""

_DIVERGING = frozenset(
    ("BrBG", "PRGn", "PiYG", "PuOr", "RdBu", "RdGy", "RdYlBu", "RdYlGn", "Spectral", "berlin", "bwr", "coolwarm")
) | {"managua", "seismic", "vanimo"}


def palette(name: str) -> NDArray[np.uint8]:
    """The 256 colours of a colour map, ``(256, 3)`` uint8: ``gray``, ``signed`` or any colour map of matplotlib.

    Raises:
        FadevizError: if there is no such colour map; the message lists the nearest names.
    """
    if name == "gray":  # exact by construction, and without importing matplotlib
        return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    if name == "signed":
        return signed_palette()
    import matplotlib

    if name not in matplotlib.colormaps:
        raise unknown_name("colour map", name, [*matplotlib.colormaps, "signed"], "matplotlib.org, Choosing Colormaps")
    colors = matplotlib.colormaps[name](np.linspace(0.0, 1.0, 256), bytes=True)
    return np.ascontiguousarray(colors[:, :3], dtype=np.uint8)


def is_diverging(name: str) -> bool:
    """Whether a colour map diverges from its middle, which stands for 0 where maps take both signs."""
    return name == "signed" or name.removesuffix("_r") in _DIVERGING


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


def class_palette(classes: int, own: Sequence[Sequence[int]] = ()) -> NDArray[np.uint8]:
    """A colour for each class, ``(classes, 3)`` uint8 sRGB: always the same ones, as different as possible.

    Each next colour is the one farthest, in CIELAB, from black and from the previous ones. Up to ``MOST_FOR_ALL``
    classes it is farthest for readers with protanopia, deuteranopia and tritanopia as well; of more, no colours would
    be different enough for them. Black is reserved for ignored pixels.

    Args:
        classes: the number of classes.
        own: colours that the first classes have already, ``(R, G, B)`` from 0 to 255.

    Raises:
        FadevizError: if ``classes`` is not 1-255.

    Example:
        >>> class_palette(3).shape
        (3, 3)
    """
    if not 1 <= classes <= IGNORED:
        raise FadevizError(f"classes={classes}: must be 1-{IGNORED}")
    colours = _class_palette(classes).copy()
    if own := own[:classes]:
        colours[: len(own)] = own
    return colours


def void_colour(colours: NDArray[np.uint8]) -> tuple[str, tuple[int, int, int]]:
    """The name and the colour of ignored pixels beside these colours of classes: black, unless a class is black."""
    taken = set(map(tuple, colours.tolist()))
    return next((one for one in _VOID if one[1] not in taken), _VOID[0])


def colour_classes(mask: NDArray[np.uint8], classes: int, own: Sequence[Sequence[int]] = ()) -> NDArray[np.uint8]:
    """A mask in the colours of :func:`class_palette`; ignored pixels, and values that are no class, are black.

    Where a class is black, they have another colour: that of :func:`void_colour`.

    Args:
        mask: the label of each pixel, ``(..., H, W)`` uint8.
        classes: the number of classes.
        own: see :func:`class_palette`.

    Returns:
        ``(..., H, W, 3)`` uint8.

    Raises:
        FadevizError: if ``classes`` is not 1-255.
    """
    colours = class_palette(classes, own)
    table = np.full((256, 3), void_colour(colours)[1], np.uint8)
    table[:classes] = colours
    return table[mask]


_VOID = (("Black", (0, 0, 0)), ("White", (255, 255, 255)), ("Grey", (128, 128, 128)), ("Magenta", NON_FINITE))


@lru_cache(maxsize=4)
def _class_palette(classes: int) -> NDArray[np.uint8]:
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(colours)
    # Not as dark as ignored pixels, not nearly white, and not so vivid that it outshines the image beside it: with
    # chroma below 75 the nearest two of 150 colours are 14.8 apart, without that limit 16.1.
    usable = (lab[:, 0] > 25) & (lab[:, 0] < 93) & (np.hypot(lab[:, 1], lab[:, 2]) < 75)
    colours = colours[usable]
    seen = _as_seen(colours, for_all=classes <= MOST_FOR_ALL)
    black = _as_seen(np.zeros((1, 3), np.uint8), for_all=classes <= MOST_FOR_ALL)
    selected: list[int] = []
    nearest = np.linalg.norm(seen - black, axis=2).min(axis=0)
    for _ in range(classes):
        # Rounded, so that the last digit on another machine does not select another colour.
        selected.append(int(np.argmax(np.round(nearest, 6))))
        nearest = np.minimum(nearest, np.linalg.norm(seen - seen[:, selected[-1:]], axis=2).min(axis=0))
    return colours[selected]


def _as_seen(colours: NDArray[np.uint8], *, for_all: bool) -> NDArray[np.float64]:
    """CIELAB of colours as they are seen, ``(kinds of colour vision, N, 3)``: by most readers alone, or by all.

    Source: Machado, Oliveira and Fernandes, IEEE TVCG 2009, the matrices of severity 1.
    """
    usual = _lab(colours)
    if not for_all:
        return usual[None]
    linear = _linear(colours)
    others = []
    for matrix in _COLOUR_VISIONS:
        light = (linear @ np.array(matrix).T).clip(0, 1)
        others.append(_lab(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)))
    # Halved: of the eight colours that follow, the nearest two are 50 apart for most readers, and 26 for the others.
    return np.stack([usual / 2, *others])


_COLOUR_VISIONS = (
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
)
"""Linear RGB as it appears with protanopia, deuteranopia and tritanopia."""


def _linear(colours: NDArray[np.uint8] | NDArray[np.float64]) -> NDArray[np.float64]:
    value = colours / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _lab(colours: NDArray[np.uint8] | NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB of sRGB colours ``(N, 3)``, white point D65."""
    linear = _linear(colours)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    x, y, z = np.moveaxis(linear @ to_xyz.T / to_xyz.sum(axis=1), -1, 0)
    x, y, z = (np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116) for t in (x, y, z))
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
