"""Planted movies: maps of a training whose order of learning is known, because it was planted.

A movie is a signal of the observed objects (an outline that fills, a blob that sharpens, ...), a blob where objects
usually stand, and noise: of each cell, smooth and drifting over the snapshots, and smooth and constant (what an image
shows besides its object, the same for every seed). Every movie draws its own objects, onset and speed; every seed and
image has a delay and a strength of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fadeviz.analysis.regions import Regions, build_regions
from planted_objects import POOL, ellipse, object_mask, pool_regions

NOISE = {"least": 0.05, "low": 0.4, "middle": 1.0, "high": 1.8}
"""Standard deviation of a cell's noise; the object's signal rises to 1."""

Maps = NDArray[np.float32]
Signal = Callable[["Scene"], Maps]


@dataclass(frozen=True)
class Kind:
    """What is planted, and in which objects.

    Attributes:
        signal: signal of the objects, ``(R, S, N, h, w)`` or what broadcasts to it; None for none.
        shape: key of ``SHAPES``.
        size: height and width of the maps.
        snapshots: number of recorded steps.
        images: number of images; None: whatever the caller asks for.
        seed_signs: sign of the object in each seed, repeated as necessary.
        place: strength of the blob where objects usually stand.
        finish: applied to the finished maps ``(R, S, N, h, w)``.
    """

    signal: Signal | None
    shape: str = "horse"
    size: int = 48
    snapshots: int = 27
    images: int | None = None
    seed_signs: tuple[int, ...] = (1,)
    place: float = 1.0
    finish: Callable[[Maps, np.random.Generator], Maps] | None = None


@dataclass(frozen=True)
class Movie:
    """Maps of R runs, with what was observed.

    Attributes:
        maps: ``(R, S, N, h, w)`` float32.
        steps: ``(S,)`` increasing optimiser steps.
        regions: regions of the N masks at the maps' size.
    """

    maps: Maps
    steps: NDArray[np.int64]
    regions: tuple[Regions, ...]


class Scene:
    """What a signal is made of.

    Attributes:
        time: ``(R, S, N, 1, 1)``, log(1 + step) over that of the last step, less the delay of the seed and the image.
        distance: ``(N, h, w)`` signed distance to the contour in cells, negative inside.
        depth: ``(N, h, w)``, 0 on the contour and 1 where the object is deepest, negative outside.
        mask: ``(N, h, w)``, the object, 0 to 1.
        begin, length: when the movie's main event begins and how long it takes, in units of ``time``.
        random: the movie's generator.
    """

    def __init__(self, time: Maps, distance: Maps, random: np.random.Generator) -> None:
        self.time, self.distance, self.random = time, distance, random
        self.depth = -distance / -distance.min(axis=(1, 2), keepdims=True)
        self.mask = np.clip(0.5 - distance, 0, 1)
        self.begin, self.length = random.uniform(0.25, 0.4), random.uniform(0.25, 0.4)

    def rise(self, start: float, end: float) -> Maps:
        """0 until ``start`` of the movie's event, 1 from its ``end`` on; 0 and 1 are its begin and its end."""
        return smoothstep((self.time - self.begin) / self.length, start, end)

    def line(self, width: float = 1.0, at: float = 0.0) -> Maps:
        """A line along the contour, ``at`` cells outside of it."""
        return np.exp(-0.5 * ((self.distance - at) / width) ** 2)

    def inward(self) -> Maps:
        """A front from the contour to the deepest cell."""
        front = 1.2 * self._progress()
        return self.mask * smoothstep(front - self.depth, 0, 0.15)

    def outward(self) -> Maps:
        """A front from the deepest cell to the contour."""
        front = 1.2 * self._progress()
        return self.mask * smoothstep(front - (1 - self.depth), 0, 0.15)

    def _progress(self) -> Maps:
        return np.clip((self.time - self.begin) / self.length, 0, 1)


def smoothstep(x: Maps, low: float, high: float) -> Maps:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


# Signals. What is planted is in the name; the times are shares of the movie's event.


def inward(scene: Scene) -> Maps:
    return scene.inward()


def outward(scene: Scene) -> Maps:
    return scene.outward()


def line_then_fill(scene: Scene) -> Maps:
    return np.maximum(scene.rise(-0.5, 0.1) * scene.line(), scene.rise(0.5, 1.3) * scene.mask)


def blob_then_sharp(scene: Scene) -> Maps:
    blob = ndimage.gaussian_filter(scene.mask, (0, 5, 5))
    blob /= blob.max(axis=(1, 2), keepdims=True)
    sharp = scene.rise(0.7, 1.4)
    return scene.rise(-0.6, 0.1) * ((1 - sharp) * blob + sharp * scene.mask)


def together(scene: Scene) -> Maps:
    return scene.rise(0, 1) * scene.mask


def line_at_step_0(scene: Scene) -> Maps:
    return np.maximum(scene.line(), scene.rise(0.2, 1.2) * scene.mask)


def line_at_step_0_inward(scene: Scene) -> Maps:
    return np.maximum(scene.line(), scene.inward())


def sign_flips(scene: Scene) -> Maps:
    flipped = np.where(scene.time > scene.begin + 1.1 * scene.length, -1, 1)
    return flipped * scene.rise(0, 1) * scene.mask


def two_fronts(scene: Scene) -> Maps:
    """One front from the contour, one from the centre; the outer two cells and what is deeper fill at the same rate."""
    order = np.zeros_like(scene.distance)
    for distance, place in zip(scene.distance, order, strict=True):
        for zone, inwards in ((distance < 0) & (distance >= -2), -1), (distance < -2, 1):
            place[zone] = (np.argsort(np.argsort(inwards * distance[zone])) + 0.5) / zone.sum()
    progress = np.clip((scene.time - scene.begin) / scene.length, 0, 1)
    return scene.mask * smoothstep(1.2 * progress - order, 0, 0.2)


def drift_inward(scene: Scene) -> Maps:
    """A slope of brightness over the whole map that grows throughout, and the level with it."""
    height, width = scene.distance.shape[1:]
    angle = scene.random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width] / height - 0.5
    slope = np.cos(angle) * x + np.sin(angle) * y
    return scene.inward() + scene.time * (0.6 * slope + 3)


def halo_fades(scene: Scene) -> Maps:
    """A rim outside the contour first, which goes while the object fills inward."""
    return scene.inward() + scene.rise(-0.6, -0.1) * (1 - scene.rise(0, 0.5)) * _rim(scene)


def halo_stays(scene: Scene) -> Maps:
    return scene.inward() + scene.rise(-0.6, -0.1) * _rim(scene)


def halo_narrow(scene: Scene) -> Maps:
    rim = np.clip(scene.distance + 0.5, 0, 1) * np.clip(1.5 - scene.distance, 0, 1)
    return scene.inward() + scene.rise(-0.6, -0.1) * (1 - scene.rise(0, 0.5)) * rim


def _rim(scene: Scene) -> Maps:
    return np.clip(scene.distance + 0.5, 0, 1) * np.clip(2.5 - scene.distance, 0, 1)


def texture(scene: Scene) -> Maps:
    """A chequered texture of mean 0 inside the object, before its mean rises."""
    height, width = scene.distance.shape[1:]
    chequered = np.indices((height, width)).sum(0) % 2 * 2 - 1
    return scene.mask * (2 * chequered * scene.rise(-0.6, -0.1) + scene.rise(0.3, 1))


def outline_goes_then_deep(scene: Scene) -> Maps:
    """The outline comes and goes; what is deep comes later and stays."""
    deep = smoothstep(scene.depth, 0.2, 0.5)
    return scene.rise(-0.6, -0.1) * (1 - scene.rise(0.3, 0.6)) * scene.line() + scene.rise(0.5, 1.2) * deep


def outline_goes_then_all(scene: Scene) -> Maps:
    return scene.rise(-0.6, -0.1) * (1 - scene.rise(0.3, 0.6)) * scene.line() + scene.rise(0.7, 1.4) * scene.mask


def inward_then_goes(scene: Scene) -> Maps:
    """Filled inward by the middle of the event; nothing of it is left at the end."""
    return scene.inward() * (1 - scene.rise(1.1, 1.6))


def seeds_disagree(scene: Scene) -> Maps:
    """Inward in the even seeds, outward in the odd ones."""
    odd = (np.arange(len(scene.time)) % 2)[:, None, None, None, None]
    return np.where(odd, scene.outward(), scene.inward())


def line_only(scene: Scene) -> Maps:
    return scene.rise(0, 1) * scene.line()


def deep_only(scene: Scene) -> Maps:
    return scene.rise(0, 1) * smoothstep(scene.depth, 0.4, 0.65)


def deep_at_step_0(scene: Scene) -> Maps:
    """What is deep is there at step 0; the object grows from it outward."""
    return np.maximum(smoothstep(scene.depth, 0.3, 0.6), scene.outward())


def whole_at_step_0(scene: Scene) -> Maps:
    return scene.mask


def at_once(scene: Scene) -> Maps:
    """The whole object between two neighbouring snapshots, the same two in every seed and image."""
    half = np.arange(scene.time.shape[1]) > scene.time.shape[1] // 2
    return half[:, None, None, None] * scene.mask


def deep_bright_then_dark(scene: Scene) -> Maps:
    """What is deep is bright first; then the whole object is dark."""
    late = scene.rise(0.6, 1.2)
    return scene.rise(-0.6, 0) * (1 - late) * smoothstep(scene.depth, 0.3, 0.6) - late * scene.mask


def deep_dark_then_bright(scene: Scene) -> Maps:
    return -deep_bright_then_dark(scene)


def line_bright_then_dark(scene: Scene) -> Maps:
    late = scene.rise(0.6, 1.2)
    return scene.rise(-0.6, 0) * (1 - late) * scene.line() - late * scene.mask


def line_bright_deep_dark(scene: Scene) -> Maps:
    deep = smoothstep(scene.depth, 0.2, 0.5)
    return scene.rise(-0.6, 0) * scene.line() - scene.rise(0.6, 1.2) * deep


def deep_goes_then_all(scene: Scene) -> Maps:
    deep = smoothstep(scene.depth, 0.3, 0.6)
    return scene.rise(-0.6, -0.1) * (1 - scene.rise(0.3, 0.6)) * deep + scene.rise(0.7, 1.4) * scene.mask


def both_then_deep_goes(scene: Scene) -> Maps:
    """The whole object faintly; then little of what is deep, and more of the rest; then all of it."""
    goes, stays = _falls_back(scene, 0.48), _falls_back(scene, 0.24)
    deep = smoothstep(scene.depth, 0.3, 0.6)
    return (goes * deep + stays * (1 - deep)) * scene.mask


def both_then_outline_goes(scene: Scene) -> Maps:
    """The same, but little is left of what is not deep."""
    goes, stays = _falls_back(scene, 0.48), _falls_back(scene, 0.24)
    deep = smoothstep(scene.depth, 0.3, 0.6)
    return (stays * deep + goes * (1 - deep)) * scene.mask


def _falls_back(scene: Scene, by: float) -> Maps:
    return 0.6 * scene.rise(-0.6, -0.1) - by * scene.rise(0.3, 0.6) + (0.4 + by) * scene.rise(0.7, 1.4)


def inward_then_flips(scene: Scene) -> Maps:
    """Filled inward; then the sign flips, in every seed."""
    return _flip(scene) * scene.inward()


def outward_then_flips(scene: Scene) -> Maps:
    return _flip(scene) * scene.outward()


def outward_flips_in_one_seed(scene: Scene) -> Maps:
    first = (np.arange(len(scene.time)) == 0)[:, None, None, None, None]
    return np.where(first, _flip(scene), 1) * scene.outward()


def _flip(scene: Scene) -> Maps:
    return np.where(scene.time > scene.begin + 1.4 * scene.length, -1, 1)


def faint_rim(scene: Scene) -> Maps:
    """The whole object at once, its outer 30 % half as strong."""
    return scene.rise(0, 1) * scene.mask * np.where(scene.depth > 0.3, 1, 0.5)


# What is done to the finished maps.


def rescaled(maps: Maps, random: np.random.Generator) -> Maps:
    """Every map in units of its own: an increasing function of its values, over six orders of magnitude."""
    shape = (*maps.shape[:3], 1, 1)
    scale = 10.0 ** random.uniform(-3, 3, shape)
    offset = random.normal(size=shape)
    return (scale * (np.exp(maps / random.uniform(1, 3, shape)) + offset)).astype(np.float32)


def zero_at_step_0(maps: Maps, random: np.random.Generator) -> Maps:
    maps[:, 0] = 0
    return maps


def some_nan(maps: Maps, random: np.random.Generator) -> Maps:
    """One map in twenty is not finite: in a cell, or throughout."""
    whole, cell = random.random((2, *maps.shape[:3])) < 0.025
    maps[whole] = np.nan
    maps[cell, 10, 20] = np.inf
    return maps


def quantised(maps: Maps, random: np.random.Generator) -> Maps:
    """Six values only, and what is below the mean is 0, as after a ReLU: most cells are tied."""
    return np.round(np.clip(maps, 0, 2.5) * 2).astype(np.float32)


def less_noise(maps: Maps, random: np.random.Generator) -> Maps:
    """Further noise of each cell, three times the object's signal at first and none at the end."""
    strength = np.linspace(3, 0, maps.shape[1], dtype=np.float32)[:, None, None, None]
    return maps + strength * random.standard_normal(maps.shape, np.float32)


KINDS = {
    "inward": Kind(inward),
    "line, then fill": Kind(line_then_fill),
    "outward": Kind(outward),
    "wide blob, then sharp": Kind(blob_then_sharp),
    "together": Kind(together),
    "line at step 0, then fill": Kind(line_at_step_0),
    "line at step 0, inward": Kind(line_at_step_0_inward),
    "sign flips half-way": Kind(sign_flips),
    "place": Kind(None),
    "noise": Kind(None, place=0),
    "two objects, inward": Kind(inward, "two"),
    "two objects, outward": Kind(outward, "two"),
    "two fronts": Kind(two_fronts),
    "drift, inward": Kind(drift_inward),
    "border, inward": Kind(inward, "border"),
    "border, outward": Kind(outward, "border"),
    "legs, inward": Kind(inward, "legs"),
    "legs, outward": Kind(outward, "legs"),
    "thin, inward": Kind(inward, "thin"),
    "thin, outward": Kind(outward, "thin"),
    "thin, line then fill": Kind(line_then_fill, "thin"),
    "no interior": Kind(inward, "thread"),
    "halo fades": Kind(halo_fades),
    "halo stays": Kind(halo_stays),
    "halo within 1 cell": Kind(halo_narrow),
    "texture": Kind(texture),
    "outline goes, then deep": Kind(outline_goes_then_deep),
    "outline goes, then all": Kind(outline_goes_then_all),
    "inward, then goes": Kind(inward_then_goes),
    "line only": Kind(line_only),
    "deep only": Kind(deep_only),
    "deep at step 0, outward": Kind(deep_at_step_0),
    "whole at step 0": Kind(whole_at_step_0),
    "all at once": Kind(at_once),
    "seeds disagree": Kind(seeds_disagree),
    "masks alike": Kind(inward, "alike"),
    "24x24, inward": Kind(inward, size=24),
    "24x24, outward": Kind(outward, size=24),
    "12x12, inward": Kind(inward, size=12),
    "four images": Kind(inward, images=4),
    "six snapshots, inward": Kind(inward, snapshots=6),
    "six snapshots, outward": Kind(outward, snapshots=6),
    "dark, inward": Kind(inward, seed_signs=(-1,)),
    "dark, outward": Kind(outward, seed_signs=(-1,)),
    "dark in some seeds, inward": Kind(inward, seed_signs=(1, -1)),
    "dark in some seeds, outward": Kind(outward, seed_signs=(1, -1)),
    "dark in some seeds, together": Kind(together, seed_signs=(1, -1)),
    "rescaled, inward": Kind(inward, finish=rescaled),
    "rescaled, together": Kind(together, finish=rescaled),
    "zero at step 0, inward": Kind(inward, finish=zero_at_step_0),
    "zero at step 0, outward": Kind(outward, finish=zero_at_step_0),
    "zero at step 0, noise": Kind(None, place=0, finish=zero_at_step_0),
    "some NaN, inward": Kind(inward, finish=some_nan),
    "some NaN, outward": Kind(outward, finish=some_nan),
    "few values, inward": Kind(inward, finish=quantised),
    "few values, outward": Kind(outward, finish=quantised),
    "deep bright, then all dark": Kind(deep_bright_then_dark),
    "line bright, then all dark": Kind(line_bright_then_dark),
    "line bright, deep dark": Kind(line_bright_deep_dark),
    "deep goes, then all": Kind(deep_goes_then_all),
    "deep dark, then all bright": Kind(deep_dark_then_bright),
    "inward, then sign flips": Kind(inward_then_flips),
    "outward, then sign flips": Kind(outward_then_flips),
    "outward, sign flips in one seed": Kind(outward_flips_in_one_seed),
    "faint rim, together": Kind(faint_rim),
    "noise shrinks, together": Kind(together, finish=less_noise),
    "both, deep goes, then all": Kind(both_then_deep_goes),
    "both, outline goes, then all": Kind(both_then_outline_goes),
}


def plant(
    kind: str | Kind, number: int, level: str = "middle", *, images: int = 8, seeds: int = 3, stream: int = 0
) -> Movie:
    """One movie of a kind; the same arguments give the same movie.

    Args:
        kind: key of ``KINDS``, or a kind.
        number: which movie.
        level: key of ``NOISE``.
        images: number of images, unless the kind has its own.
        seeds: number of runs.
        stream: another number is another set of movies.
    """
    code = 0 if isinstance(kind, Kind) else list(KINDS).index(kind)
    random = np.random.default_rng([stream, code, number])
    kind = kind if isinstance(kind, Kind) else KINDS[kind]
    count = kind.images or images
    regions = _draw_objects(kind, count, random)
    distance = np.stack([r.distance for r in regions]).astype(np.float32)
    steps = log_steps(kind.snapshots)
    time = _local_time(steps, seeds, count, random)
    maps = _noise(NOISE[level], (seeds, len(steps), count, *distance.shape[1:]), random)
    if kind.place:
        maps += kind.place * _place(distance) * _strength(seeds, count, random) * smoothstep(time, 0, 0.4)
    if kind.signal is not None:
        sign = np.resize(kind.seed_signs, seeds)[:, None, None, None, None]
        maps += sign * _strength(seeds, count, random) * kind.signal(Scene(time, distance, random))
    if kind.finish is not None:
        maps = kind.finish(maps, random)
    return Movie(maps.astype(np.float32), steps, regions)


def plant_lead(number: int, lead: float, *, images: int = 12, seeds: int = 3, spread: float = 0.1) -> Movie:
    """A movie whose lead is known: outline and deep interior rise with one curve, ``lead`` apart in log(1 + step).

    The objects are ellipses, none of which overlaps another image's, so that neither zone's rise shows in the other
    zone's response by way of the mismatched masks; and they are small, so that it hardly changes the ranks elsewhere.

    Args:
        number: which movie.
        lead: log(1 + step) of the interior's rise less that of the outline's.
        images: number of images, at most 12.
        seeds: number of runs.
        spread: standard deviation of the lead over seeds and, once more, over images, around ``lead``; a single seed
            has the lead itself.
    """
    random = np.random.default_rng([7, number])
    regions = tuple(build_regions(ellipse(cell, random), (48, 48)) for cell in random.permutation(12)[:images])
    distance = np.stack([r.distance for r in regions]).astype(np.float32)
    steps = log_steps(27)
    log_step = np.log1p(steps)[None, :, None, None, None]
    middle = random.uniform(3.2, 4.0) + 0.1 * random.normal(size=(seeds, 1, images, 1, 1))
    own = lead + spread * random.normal(size=(1, 1, images, 1, 1))
    if seeds > 1:
        own = own + spread * random.normal(size=(seeds, 1, 1, 1, 1))
    cut = np.array([min(2 * r.half_width, -r.distance.min() / 2) for r in regions])[:, None, None]
    maps = _noise(1.0, (seeds, len(steps), images, 48, 48), random)
    maps += smoothstep(log_step - middle + own / 2, -1, 1) * ((distance < 0) & (distance >= -cut))
    maps += smoothstep(log_step - middle - own / 2, -1, 1) * (distance < -cut)
    return Movie(maps.astype(np.float32), steps, regions)


def log_steps(count: int, last: int = 1000) -> NDArray[np.int64]:
    """``count`` different steps from 0 to ``last``, as evenly spaced in log(1 + step) as whole numbers can be."""
    for points in range(count, 100 * count):
        steps = np.unique(np.rint(np.expm1(np.linspace(0, np.log1p(last), points)))).astype(np.int64)
        if len(steps) == count:
            return steps
    raise ValueError(f"no {count} different steps up to {last}")


def _local_time(steps: NDArray[np.int64], seeds: int, images: int, random: np.random.Generator) -> Maps:
    time = (np.log1p(steps) / np.log1p(steps[-1]))[None, :, None]
    delay = 0.03 * random.normal(size=(seeds, 1, 1)) + 0.03 * random.normal(size=(seeds, 1, images))
    return (time - delay)[..., None, None].astype(np.float32)


def _strength(seeds: int, images: int, random: np.random.Generator) -> Maps:
    return random.uniform(0.75, 1.25, (seeds, 1, 1, 1, 1)) * random.uniform(0.75, 1.25, (1, 1, images, 1, 1))


def _place(distance: Maps) -> Maps:
    """Where the objects usually stand, 0 to 1."""
    blob = ndimage.gaussian_filter((distance < 0).mean(0), distance.shape[1] / 12)
    return blob / blob.max()


def _noise(sd: float, shape: tuple[int, ...], random: np.random.Generator) -> Maps:
    """Noise of each cell, smooth noise that drifts over the snapshots, and a smooth pattern of each image."""
    seeds, snapshots, images, height, width = shape
    knots = (max(4, height // 4), max(4, width // 4))
    drifting = random.standard_normal((seeds, snapshots, images, *knots), np.float32)
    for s in range(1, snapshots):  # correlation 0.8 from one snapshot to the next
        drifting[:, s] = 0.8 * drifting[:, s - 1] + 0.6 * drifting[:, s]
    constant = random.standard_normal((images, *knots), np.float32)
    smooth = _bumps(height, knots[0]) @ (0.4 * drifting + 0.3 * constant) @ _bumps(width, knots[1]).T
    return np.float32(sd) * (random.standard_normal(shape, np.float32) + smooth)


@functools.cache
def _bumps(cells: int, knots: int) -> Maps:
    """``(cells, knots)`` weights that make smooth noise of variance 1 from white noise."""
    apart = (np.arange(cells)[:, None] + 0.5) / cells - (np.arange(knots) + 0.5) / knots
    bumps = np.exp(-0.5 * (apart * knots) ** 2)
    return (bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32)


def _draw_objects(kind: Kind, count: int, random: np.random.Generator) -> tuple[Regions, ...]:
    if kind.shape == "alike":
        numbers = [int(random.integers(POOL))] * count
        shifts = random.integers(0, 2, (count, 2))
        masks = [np.roll(object_mask("horse", n), tuple(s), (0, 1)) for n, s in zip(numbers, shifts, strict=True)]
        return tuple(build_regions(mask, (kind.size, kind.size)) for mask in masks)
    return tuple(pool_regions(kind.shape, int(n), kind.size) for n in random.choice(POOL, count, replace=False))
