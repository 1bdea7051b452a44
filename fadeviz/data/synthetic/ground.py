"""The landscape behind a synthetic horse: sky, grass or earth, hills, and clutter from barns to rocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from .scene import (
    ATLAS,
    LAYER,
    Colour,
    Floats,
    Light,
    Place,
    noise,
    noise_atlas,
    planes,
    read_layer,
    shrink_layer,
    smoothstep,
)

# Pairs of colours, in the shade and in the light. Browns, straw and pale stone are the coats' colours on purpose.
SKIES: list[tuple[Colour, Colour]] = [
    ((92, 138, 196), (196, 214, 228)),
    ((150, 162, 176), (206, 206, 202)),
    ((120, 128, 140), (176, 172, 166)),
    ((132, 140, 172), (228, 190, 150)),
    ((196, 186, 172), (226, 214, 192)),
    ((86, 76, 80), (186, 134, 96)),
]
SOILS: list[tuple[Colour, Colour]] = [
    ((52, 74, 34), (124, 144, 74)),
    ((74, 84, 46), (156, 160, 96)),
    ((118, 94, 54), (204, 176, 118)),
    ((92, 58, 34), (166, 112, 70)),
    ((58, 40, 30), (116, 80, 54)),
    ((150, 128, 100), (220, 202, 170)),
    ((112, 108, 102), (200, 196, 188)),
    ((40, 38, 34), (90, 80, 68)),
]
LEAVES: list[Colour] = [(46, 62, 32), (84, 96, 48), (128, 82, 42), (66, 48, 34), (156, 122, 66), (36, 40, 34)]
STUFF: list[Colour] = [
    (118, 72, 42), (70, 48, 34), (150, 88, 50), (48, 44, 42), (160, 156, 150), (196, 156, 96), (216, 210, 200),
    (96, 84, 70), (132, 124, 112),
]  # fmt: skip


def render_ground(random: np.random.Generator, light: Light, place: Place) -> Floats:
    """The landscape ``(3, H, W)`` in [0, 255], without the horse's shadow."""
    rows = np.asarray((np.arange(place.height)[:, None] + 0.5) / place.unit, np.float32)
    columns = np.asarray((np.arange(place.width) + 0.5) / place.unit, np.float32)

    clouds = noise(random, place, (60, 130), 0.55)
    image = _mix(rows / max(place.horizon, 0.1) * 0.8 + 0.22 * clouds, *_pick_pair(random, SKIES))

    blades = _lay_out(random, place)
    patches = noise(random, place, (50, 140))
    first = np.count_nonzero(rows <= place.horizon)
    field, below = image[:, first:], rows[first:] - place.horizon
    soil = _render_soil(random, place, below, columns, blades[first:], patches[first:])
    far = np.clip(1 - below / 0.25, 0, 1)
    field[:] = soil + 0.25 * far * (field - soil)

    _add_hills(image, random, place, rows, patches + 0.5 * clouds)
    _add_clutter(image, random, light, place, 0.6 * blades + 0.4 * clouds)
    return image


def _render_soil(
    random: np.random.Generator, place: Place, below: Floats, columns: Floats, blades: Floats, patches: Floats
) -> Floats:
    """Grass or earth in two colours, in patches and often with a path: the rows below the horizon only."""
    soil = _mix(0.5 + 0.26 * blades, *_pick_pair(random, SOILS))
    bare = _mix(0.5 + 0.22 * blades, *_pick_pair(random, SOILS))
    amount = smoothstep(patches, random.uniform(-0.8, 1.2), random.uniform(1.3, 2.0))
    if random.uniform() < 0.45:
        start, lean, breadth = random.uniform(0, place.wide), random.normal(0, 0.5), random.uniform(0.10, 0.35)
        off = np.abs(columns - start - lean * below) - breadth * (0.05 + below)
        amount = np.maximum(amount, 1 - smoothstep(off + 0.015 * blades, -0.02, 0.02))
    soil += amount * (bare - soil)
    return soil


def _pick(random: np.random.Generator, colours: list[Colour]) -> Floats:
    """One of the colours, a little off."""
    chosen = np.asarray(colours[int(random.integers(len(colours)))], np.float32)
    tint = random.normal(1, 0.05, 3) * random.uniform(0.8, 1.2)
    return np.clip(chosen * tint, 8, 245).astype(np.float32)


def _pick_pair(random: np.random.Generator, pairs: list[tuple[Colour, Colour]]) -> tuple[Floats, Floats]:
    dark, bright = pairs[int(random.integers(len(pairs)))]
    tint = random.normal(1, 0.05, 3).astype(np.float32)
    return np.asarray(dark, np.float32) * tint, np.asarray(bright, np.float32) * tint


def _mix(share: Floats, dark: Floats, bright: Floats) -> Floats:
    """Colours ``(3, H, W)`` between the two by a share ``(H, W)``."""
    return np.asarray(planes(dark) + np.clip(share, 0, 1) * planes(bright - dark), np.float32)


def _lay_out(random: np.random.Generator, place: Place) -> Floats:
    """Grass or earth seen at a slant: one sheet of noise, coarse at our feet and fine at the horizon ``(H, W)``."""
    unit, x, y = place.unit, *random.uniform(0, ATLAS * 0.6, 2)
    horizon, depth = place.horizon - 0.10, place.high - place.horizon + 0.10
    # A row at distance d below the horizon shows ground at depth 1 / d, magnified by d.
    middle, spread = place.wide / 2, 62.0 * depth
    across = (spread / unit, x / unit, -spread * middle - x * horizon)
    down = (0.0, y / unit, 70.0 * depth - y * horizon)
    scaled = tuple(c / -horizon for c in (*across, *down, 0.0, 1 / unit))
    size = (place.width, place.height)
    sheet = noise_atlas(0.85).transform(size, Image.Transform.PERSPECTIVE, scaled, Image.Resampling.BILINEAR)
    return np.asarray(sheet, np.float32)


def _add_hills(image: Floats, random: np.random.Generator, place: Place, rows: Floats, texture: Floats) -> None:
    """Ridges and tree lines behind the field, hazier the farther they are."""
    for haze in (0.45, 0.1):
        chance, tall, kind = random.uniform(size=3)
        profile = noise(random, place, (110, 10), 0.75 if kind < 0.5 else 0.5)[0]
        colour = _pick(random, LEAVES)
        if chance < 0.3:
            continue
        ridge = place.horizon - (0.02 + 0.16 * tall) * (1 + 0.45 * profile)[None]
        # Only the rows from above the highest crest down to the horizon can change.
        first = max(0, int(ridge.min() * place.unit) - 1)
        last = np.count_nonzero(rows <= place.horizon + 0.5 / place.unit)
        cover = np.clip((rows[first:last] - ridge) * place.unit + 0.5, 0, 1)
        pale = colour + haze * (np.array([170, 178, 184], np.float32) - colour)
        band = image[:, first:last]
        band += cover * (planes(pale) * (1 + 0.16 * texture[first:last]) - band)


def _add_clutter(image: Floats, random: np.random.Generator, light: Light, place: Place, texture: Floats) -> None:
    """Barn, trees, fence, bushes and rocks, all behind the horse, so that the matte stays exact."""
    solid, leaves = _Painter(place, 2 * place.unit), _Painter(place, LEAF_GRID)
    if random.uniform() < 0.35:
        _paint_wall(solid, random, place)
    for _ in range(int(random.integers(0, 5))):
        _paint_tree(solid, leaves, random, place, light)
    if random.uniform() < 0.5:
        _paint_fence(solid, random, place)
    for _ in range(int(random.integers(0, 4))):
        x, y = random.uniform(0, place.wide), place.horizon + random.uniform(0, 0.8) * (place.floor - place.horizon)
        _paint_leaves(leaves, random, (x, y), random.uniform(0.07, 0.2), _pick(random, LEAVES), light)
    for _ in range(int(random.integers(0, 4))):
        _paint_rock(solid, random, place)

    colours, cover = read_layer(shrink_layer(solid.layer, 2))
    image += cover * (colours * (1 + 0.13 * texture) - image)
    size = (place.width, place.height)
    colours, cover = read_layer(leaves.layer.resize(size, Image.Resampling.BILINEAR))
    # Soft discs, cut by noise: a ragged edge, as leaves have.
    ragged = noise(random, place, (240, 240), 0.85)
    cover = smoothstep(cover + 0.22 * ragged, 0.42, 0.66) * (cover > 0.03)
    image += cover * (colours * (1 + 0.2 * ragged) - image)


LEAF_GRID = 40
"""Leaves are painted at this many pixels per image unit, whatever the image's size, and made ragged afterwards."""


class _Painter:
    """Draws in image units on a layer of its own, with ``scale`` pixels for each."""

    def __init__(self, place: Place, scale: float) -> None:
        self.layer = Image.new(LAYER, (round(place.wide * scale), round(place.high * scale)))
        self._draw = ImageDraw.Draw(self.layer)
        self._scale = scale

    @staticmethod
    def _ink(colour: Floats) -> tuple[int, int, int, int]:
        red, green, blue = (max(0, min(255, int(c))) for c in colour.tolist())
        return red, green, blue, 255

    def polygon(self, points: ArrayLike, colour: Floats) -> None:
        self._draw.polygon((np.asarray(points) * self._scale).ravel().tolist(), fill=self._ink(colour))

    def disc(self, x: float, y: float, radius: float, colour: Floats) -> None:
        k = self._scale
        box = (k * (x - radius), k * (y - radius), k * (x + radius), k * (y + radius))
        self._draw.ellipse(box, fill=self._ink(colour))

    def bar(self, a: tuple[float, float], b: tuple[float, float], width: float, colour: Floats) -> None:
        ends = (a[0] * self._scale, a[1] * self._scale, b[0] * self._scale, b[1] * self._scale)
        self._draw.line(ends, fill=self._ink(colour), width=max(1, round(width * self._scale)))


def _paint_wall(paint: _Painter, random: np.random.Generator, place: Place) -> None:
    """A barn: planks in shades of one colour below a roof."""
    base = place.horizon + random.uniform(0.0, 0.3) * max(0.0, place.floor - place.horizon)
    left, wide, tall = random.uniform(-0.3, 0.7) * place.wide, random.uniform(0.4, 0.9), random.uniform(0.2, 0.5)
    colour, roof = _pick(random, STUFF), _pick(random, STUFF)
    planks = int(random.integers(8, 20))
    for plank, shade in enumerate(random.uniform(0.82, 1.08, planks)):
        x = left + wide * plank / planks
        end = x + wide / planks
        paint.polygon([(x, base - tall), (end, base - tall), (end, base), (x, base)], colour * np.float32(shade))
    over = 0.04
    paint.polygon(
        [(left - over, base - tall), (left + 0.1, base - 1.35 * tall), (left + wide - 0.1, base - 1.35 * tall),
         (left + wide + over, base - tall)], roof * 0.8,
    )  # fmt: skip


def _paint_tree(paint: _Painter, leaves: _Painter, random: np.random.Generator, place: Place, light: Light) -> None:
    """A trunk, and leaves as discs that are lighter towards the sun."""
    base = place.horizon + random.uniform(0.0, 0.7) * max(0.0, place.floor - place.horizon)
    x, tall = random.uniform(0, place.wide), random.uniform(0.25, 0.75)
    half = tall * random.uniform(0.03, 0.075)
    bark, leaf = _pick(random, STUFF), _pick(random, LEAVES)
    top = base - tall
    paint.polygon([(x - half, base), (x - 0.6 * half, top), (x + 0.6 * half, top), (x + half, base)], bark * 0.8)
    paint.polygon([(x, base), (x, top), (x + 0.6 * half, top), (x + half, base)], bark * 1.05)
    _paint_leaves(leaves, random, (x, top + 0.05), tall * 0.45, leaf, light)


def _paint_leaves(
    paint: _Painter,
    random: np.random.Generator,
    centre: tuple[float, float],
    radius: float,
    leaf: Floats,
    light: Light,
) -> None:
    """A crown or a bush: discs, the sunny ones last and lightest."""
    spots = random.normal(0, 0.5, (14, 2))
    sun = spots @ light.direction[:2]
    colours = (leaf * (1 + 0.35 * sun[:, None])).astype(np.float32)
    places = (np.asarray(centre) + spots * radius * np.array([1.0, 0.7])).tolist()
    for i in np.argsort(sun).tolist():
        x, y = places[i]
        paint.disc(x, y, radius * 0.42, colours[i])


def _paint_fence(paint: _Painter, random: np.random.Generator, place: Place) -> None:
    """Posts and rails across the whole image, between the horizon and the horse."""
    base = place.horizon + random.uniform(0.1, 0.8) * max(0.0, place.floor - place.horizon)
    tall, slope = random.uniform(0.12, 0.34), random.normal(0, 0.04)
    thick, gap = tall * random.uniform(0.08, 0.16), random.uniform(0.18, 0.4)
    colour = _pick(random, STUFF)
    shift = random.uniform(0, gap)
    for rail in np.linspace(0.3, 0.9, int(random.integers(2, 4))):
        y = base - rail * tall
        paint.bar((-0.1, y), (place.wide + 0.1, y + slope * place.wide), thick * 0.6, colour * 0.92)
    for x in np.arange(shift - gap, place.wide + gap, gap):
        y = base + slope * x
        paint.bar((x, y), (x, y - tall), thick, colour)


def _paint_rock(paint: _Painter, random: np.random.Generator, place: Place) -> None:
    """A boulder, a bale or a mound: a flat-footed lump with a lit cap."""
    x, y = random.uniform(0, place.wide), place.horizon + random.uniform(0.2, 0.95) * (place.floor - place.horizon)
    size = random.uniform(0.05, 0.17)
    colour = _pick(random, STUFF)
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    reach = size * random.uniform(0.75, 1.1, 12)
    ring = np.stack([x + reach * np.cos(turn), np.minimum(y + reach * 0.65 * np.sin(turn), y + 0.2 * size)], 1)
    paint.polygon(ring, colour * 0.8)
    paint.polygon(ring * 0.72 + np.array([x, y - 0.22 * size]) * 0.28, colour * 1.08)
