"""Shared parts of horse and ground: places in the image, the sun, noise, and layers to draw on.

Colours are three planes, ``(3, H, W)`` float32 in [0, 255]: numpy is several times slower when the short axis comes
last.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]
"""Red, green and blue in [0, 255], sRGB."""


@dataclass(frozen=True)
class Place:
    """Where things are, in image units (the shorter side is 1) from the upper left corner, y down."""

    height: int
    width: int
    origin: Floats
    """Where the horse's (0, 0) lies."""
    scale: float
    """Image units per horse unit."""
    horizon: float

    @property
    def unit(self) -> int:
        """Pixels per image unit."""
        return min(self.height, self.width)

    @property
    def high(self) -> float:
        """The image's height in image units."""
        return self.height / self.unit

    @property
    def wide(self) -> float:
        """The image's width in image units."""
        return self.width / self.unit

    @property
    def floor(self) -> float:
        """Where the hooves stand."""
        return float(self.origin[1])

    def pixels(self, points: Floats, sampling: int = 1) -> Floats:
        """From horse units to pixels, or to samples of which a pixel has ``sampling`` along each axis."""
        flipped = self.origin + self.scale * points * np.array([1, -1], np.float32)
        return np.asarray(flipped * (self.unit * sampling), np.float32)


@dataclass(frozen=True)
class Light:
    """One sun: ``direction`` points to it (x right, y down, z towards the viewer)."""

    direction: Floats
    ambient: float
    strength: float
    shadow: float
    slant: tuple[float, float]
    """How far a shadow runs along x and y for each unit of height."""
    balance: Floats
    """Per channel: the hour of the day and the camera."""
    grain: float


def draw_light(random: np.random.Generator) -> Light:
    """The sun of one image, its shadows' direction, the hour of the day and the camera's grain."""
    u = random.uniform(-1, 1, 6)
    direction = np.array([0.8 * u[0], -0.75 - 0.2 * u[1], 0.5 + 0.3 * u[2]], np.float32)
    direction /= np.float32(np.linalg.norm(direction))
    strength = 0.5 + 0.25 * u[3]
    warm = 0.07 * u[4]
    balance = np.array([1 + warm, 1 + 0.02 * u[5], 1 - warm], np.float32) * np.float32(random.uniform(0.82, 1.12))
    return Light(
        direction=direction,
        ambient=1.05 - 0.75 * strength,
        strength=strength,
        shadow=0.25 + 0.5 * strength,
        slant=(-float(direction[0]), float(random.uniform(0.10, 0.22) * (1 if random.uniform() < 0.7 else -1))),
        balance=balance,
        grain=float(random.uniform(1.0, 5.0)),
    )


def smoothstep(x: Floats, low: float, high: float) -> Floats:
    """0 up to ``low``, 1 from ``high`` on, and a smooth rise in between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def planes(colour: Floats) -> Floats:
    """A colour ``(3,)`` as ``(3, 1, 1)``, so that it meets planes ``(3, H, W)``."""
    return colour[:, None, None]


LAYER = "RGBX"
"""Red, green and blue times coverage, and coverage. As RGBA, Pillow would multiply and divide at every resizing."""


def shrink_layer(layer: Image.Image, factor: int) -> Image.Image:
    """The same as ``layer.reduce(factor)``, but only the part that is drawn on takes time."""
    small = Image.new(LAYER, (layer.width // factor, layer.height // factor))
    drawn = layer.getbbox()
    if drawn:
        left, top, right, bottom = (factor * (edge // factor) for edge in drawn)
        box = (left, top, min(right + factor, layer.width), min(bottom + factor, layer.height))
        small.paste(layer.reduce(factor, box), (left // factor, top // factor))
    return small


def read_layer(layer: Image.Image) -> tuple[Floats, Floats]:
    """The colours ``(3, H, W)`` in [0, 255] of what is drawn, pure up to its outline, and its coverage ``(H, W)``."""
    planes = np.asarray(layer).transpose(2, 0, 1).astype(np.float32, order="C")
    cover = planes[3] / 255
    return planes[:3] / np.maximum(cover, 1 / 255), cover


ATLAS = 512


@functools.cache
def noise_atlas(roughness: float) -> Image.Image:
    """Value noise of seven octaves, mean 0 and deviation 1, laid twice in both directions so that any window fits.

    Every texture is a window of this one sheet at an offset of its own: resizing a window is several times faster than
    summing octaves for every sample.
    """
    random = np.random.Generator(np.random.PCG64(20))
    total = np.zeros((ATLAS, ATLAS), np.float32)
    for octave in range(7):
        cells = 4 << octave
        lattice = np.pad(random.standard_normal((cells, cells), np.float32), 2, mode="wrap")
        box = (2, 2, cells + 2, cells + 2)
        layer = Image.fromarray(lattice).resize((ATLAS, ATLAS), Image.Resampling.BICUBIC, box)
        total += roughness**octave * np.asarray(layer)
    total = (total - total.mean()) / total.std()
    return Image.fromarray(np.tile(total, (2, 2)))


def noise(random: np.random.Generator, place: Place, scale: tuple[float, float], roughness: float = 0.6) -> Floats:
    """A texture ``(H, W)`` of mean 0 and deviation about 1.

    Args:
        random: decides the window.
        place: the image to cover.
        scale: texels of the atlas per image unit, along x and y: more is finer.
        roughness: amplitude of an octave as a share of the one before.
    """
    x, y = random.uniform(0, ATLAS, 2)
    wide, high = min(ATLAS, scale[0] * place.wide), min(ATLAS, scale[1] * place.high)
    box = (x, y, x + wide, y + high)
    window = noise_atlas(roughness).resize((place.width, place.height), Image.Resampling.BILINEAR, box)
    return np.asarray(window, np.float32)
