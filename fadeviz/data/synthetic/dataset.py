"""Synthetic horses in synthetic landscapes: an endless data set with exact mattes that needs no download.

A sample is drawn in four steps, each with random numbers of its own, so that a change to one leaves the others as they
were:

1. the pose: where the joints are (:mod:`fadeviz.data.synthetic.pose`);
2. the horse: the colours of its coat and the body around the joints (:mod:`fadeviz.data.synthetic.horse`);
3. the ground: sky, hills, grass, fences and clutter in the coats' own colours (:mod:`fadeviz.data.synthetic.ground`);
4. the compositing, in this file: place, shading, hair, shadow and the matte.

Inside these files an image is three planes, ``(3, H, W)`` float32 in [0, 255]: numpy is several times slower when the
short axis comes last.

Two frames are used. A figure is built in *horse units*: x forward, y up, hooves near 0 and withers at 1. An image is
drawn in *image units*, in which the shorter side is 1; only the last step uses pixels, so one horse at two sizes is
one image at two resolutions (:class:`fadeviz.data.synthetic.scene.Place` leads from each to the next).
"""

from __future__ import annotations

import operator
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ...errors import FadevizError
from .. import Sample, Splits
from .ground import render_ground
from .horse import LOCK_WIDTH, CoatDraw, Figure, build_figure, draw_coat
from .pose import Pose, draw_pose
from .scene import LAYER, Floats, Light, Place, draw_light, noise, planes, read_layer, shrink_layer, smoothstep

SMALLEST = 32
"""Below this many pixels a leg is thinner than half a pixel and the mask falls apart."""

TEST_DRAWINGS = 64
"""Number of images in the synthetic test sets."""

SUPERSAMPLING = 4
"""Outlines are filled at this many samples per pixel and axis; the matte is their mean."""


class SyntheticHorses:
    """Horses drawn from outlines, each before a landscape that shares its colours.

    ``image = alpha * horse + (1 - alpha) * ground``, computed on sRGB values (not on linear light), as matting data
    sets do, and then rounded. ``mask = alpha >= 0.5``. The coats' colours also occur in earth, straw, trunks, walls and
    rocks, so that colour alone does not find the horse.

    A sample depends on (seed, stream, index, size) only, never on earlier accesses. The random numbers are
    drawn before the size matters: the same index at another size is about the same image.

    *Shape*: image ``(H, W, 3)`` uint8, mask ``(H, W)`` uint8 (0 ground, 1 horse), alpha ``(H, W)`` float32 in [0, 1].

    *Units*: ``size`` is in pixels, one number for a square or ``(height, width)``.

    *Cost*: about 8 ms a sample at 128x128 and 16 ms at 224x224 on one core.

    Args:
        size: height and width in pixels, at least 32 each.
        seed: 0 or more; another seed is another set of horses.
        stream: a name such as ``"train"`` or ``"test"``; streams share no image.
        count: the number of samples, or None for an endless set.

    Raises:
        FadevizError: if an argument is out of range.

    Example:
        >>> sample = SyntheticHorses(64, stream="test")[3]
        >>> sample.name, sample.image.shape
        ('synthetic-test-0-3', (64, 64, 3))
    """

    def __init__(
        self, size: int | tuple[int, int] = 128, seed: int = 0, *, stream: str = "train", count: int | None = None
    ) -> None:
        self.size = _check_size(size)
        self.seed = _check_whole("seed", seed, 0)
        if not isinstance(stream, str) or not stream:
            raise FadevizError(f"SyntheticHorses: stream is {stream!r}, but a name such as 'train' is needed.")
        self.stream = stream
        self._count = None if count is None else _check_whole("count", count, 1)

    @property
    def count(self) -> int | None:
        """The number of samples, or None for an endless set."""
        return self._count

    def __getitem__(self, index: int) -> Sample:
        """The sample at this index, the same one every time.

        Raises:
            IndexError: if the index is negative, or ``count`` or more.
        """
        image, alpha = _draw_sample(self._dice(index), *self.size)
        return Sample(
            name=f"synthetic-{self.stream}-{self.seed}-{index}",
            image=image,
            mask=(alpha >= 0.5).astype(np.uint8),
            alpha=alpha,
        )

    def layers(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
        """The horse, the ground and the matte of the sample at this index, before they are put together.

        Both layers have the image's light and grain, so that ``alpha * horse + (1 - alpha) * ground`` is the
        sample's image, but for rounding, and for the few pixels where a layer by itself is cut off at 0 or 255. Where
        the matte is 0 the horse's colour means nothing.

        Shape: ``(H, W, 3)`` uint8 twice, ``(H, W)`` float32.

        Raises:
            IndexError: if the index is negative, or ``count`` or more.
        """
        return _draw_layers(self._dice(index), *self.size)

    def _dice(self, index: int) -> _Dice:
        index = operator.index(index)
        if index < 0 or (self._count is not None and index >= self._count):
            held = "0 and up" if self._count is None else f"0 to {self._count - 1}"
            raise IndexError(f"SyntheticHorses: no sample {index}; there are {held}.")
        return _Dice(self.seed, self.stream, index)

    def __repr__(self) -> str:
        """The call that makes this set again."""
        return f"SyntheticHorses({self.size}, {self.seed}, stream={self.stream!r}, count={self._count})"


def held_out_horses(size: int | tuple[int, int], seed: int = 0) -> SyntheticHorses:
    """The ``TEST_DRAWINGS`` synthetic horses that runs are tested on: none of them is among the training images."""
    return SyntheticHorses(size, seed, stream="test", count=TEST_DRAWINGS)


def load_synthetic(size: int | tuple[int, int] = 224, split_seed: int = 0, seed: int = 0) -> Splits:
    """Endless synthetic horses to train on (by ``seed``), and 64 others to test on (by ``split_seed``).

    Raises:
        FadevizError: if a size is below 32 or a seed below 0.
    """
    test = held_out_horses(size, split_seed)
    info = {"name": "synthetic", "train": "endless", "test": test.count}
    return Splits(SyntheticHorses(size, seed, stream="train"), test, info)


def _check_whole(what: str, value: int, smallest: int) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        whole = smallest - 1
    if isinstance(value, bool) or whole < smallest:
        raise FadevizError(
            f"SyntheticHorses: {what} is {value!r}, but a whole number of at least {smallest} is needed."
        )
    return whole


def _check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(size, (tuple, list)):
        if len(size) != 2:
            raise FadevizError(f"SyntheticHorses: size is {size!r}, but one number or (height, width) is needed.")
        height, width = size
        return _check_whole("size's height", height, SMALLEST), _check_whole("size's width", width, SMALLEST)
    side = _check_whole("size", size, SMALLEST)
    return side, side


class _Dice:
    """One random generator per step of the drawing: what one step draws never shifts another's numbers."""

    STEPS = ("pose", "coat", "patches", "place", "light", "ground", "hair", "grain")

    def __init__(self, seed: int, stream: str, index: int) -> None:
        self._entropy = (seed, zlib.crc32(stream.encode()), index)

    def __getitem__(self, step: str) -> np.random.Generator:
        sequence = np.random.SeedSequence(self._entropy, spawn_key=(self.STEPS.index(step),))
        return np.random.Generator(np.random.PCG64(sequence))


def _draw_sample(dice: _Dice, height: int, width: int) -> tuple[NDArray[np.uint8], Floats]:
    """The image and its matte."""
    horse, ground, alpha, light = _draw_planes(dice, height, width)
    return _finished(ground + alpha * (horse - ground), light, dice), alpha


def _draw_layers(dice: _Dice, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Floats]:
    """The image's two layers and its matte."""
    horse, ground, alpha, light = _draw_planes(dice, height, width)
    return _finished(horse, light, dice), _finished(ground, light, dice), alpha


def _draw_planes(dice: _Dice, height: int, width: int) -> tuple[Floats, Floats, Floats, Light]:
    """Horse, ground with the horse's shadow, and matte, and the light they are in: every step up to the grain."""
    pose = draw_pose(dice["pose"])
    coat = draw_coat(dice["coat"])
    figure = build_figure(pose, coat, dice["hair"])
    light = draw_light(dice["light"])
    place = _draw_place(dice["place"], figure, pose, height, width)

    horse, alpha = _render_horse(figure, coat, light, place, dice["patches"])
    ground = render_ground(dice["ground"], light, place)
    ground *= 1 - _cast_shadow(alpha, light, place)
    return horse, ground, alpha, light


def _finished(image: Floats, light: Light, dice: _Dice) -> NDArray[np.uint8]:
    """The planes ``(3, H, W)``, which are changed, as pixels ``(H, W, 3)``, with the camera's balance and grain."""
    # The same balance and grain on both layers are those of the composite: the compositing equation still holds.
    image *= planes(light.balance)
    grain = dice["grain"].integers(0, 256, image.shape, np.uint8, endpoint=False)
    image += (grain - np.float32(127.5)) * (light.grain / 74)
    np.clip(image + 0.5, 0, 255, out=image)
    return np.ascontiguousarray(image.astype(np.uint8).transpose(1, 2, 0))


AREA = 0.60
"""Approximate area of a horse, in square horse units."""


def _draw_place(random: np.random.Generator, figure: Figure, pose: Pose, height: int, width: int) -> Place:
    """Scale, position and horizon; about one horse in six is cut by the frame."""
    unit = min(height, width)
    high, wide = height / unit, width / unit
    share = random.triangular(0.13, 0.19, 0.34)
    u = random.uniform(0, 1, 4)
    scale = float(np.sqrt(share * min(high * wide, 1.6) / (AREA * pose.squeeze)))
    box = (figure.high - figure.low) * scale
    cut = u[0] < 0.16
    if not cut:
        shrink = min(1.0, 0.96 * wide / box[0], 0.94 * high / box[1])
        scale, box = scale * shrink, box * shrink
    spare = wide - box[0]
    margin = 0.02 * wide
    if cut:
        left = -0.28 * box[0] if u[1] < 0.5 else wide - 0.72 * box[0]
    else:
        left = margin + u[1] * max(0.0, spare - 2 * margin)
    spare_above = high - box[1]
    bottom = high - 0.02 * high - max(0.0, spare_above - 0.04 * high) * u[2] * 0.7
    origin = np.array([left - figure.low[0] * scale, bottom], np.float32)
    horizon = bottom - (0.12 + 0.55 * u[3]) * scale
    return Place(height, width, origin, float(scale), float(np.clip(horizon, 0.06 * high, 0.85 * high)))


def _render_horse(
    figure: Figure, coat: CoatDraw, light: Light, place: Place, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """The horse's colour ``(3, H, W)`` in [0, 255] wherever it covers anything, and its matte ``(H, W)``."""
    colour, body, relief = _fill_layer(figure, place)
    if coat.patched:
        blotch = noise(random, place, (60 / place.scale, 60 / place.scale), 0.4)
        colour = colour + smoothstep(blotch, 0.0, 0.12) * (planes(coat.white) - colour)
    texture = noise(random, place, (200, 200))
    shade = _shading(relief, body, light, place) * (1 + coat.dapple * texture)
    colour *= shade
    colour += coat.gloss * np.maximum(shade - 0.95, 0)

    tone, hair = _hair_layer(figure, place)
    lit = (0.55 + 0.7 * tone) * (0.35 + 0.65 * shade)
    # "Over", with premultiplied colours: where neither covers anything the colour is never seen.
    alpha = body + hair - body * hair
    near = hair / np.maximum(alpha, 1e-6)
    colour += near * (lit * planes(coat.hair) - colour)
    return np.clip(colour, 0, 255), alpha


def _fill_layer(figure: Figure, place: Place) -> tuple[Floats, Floats, Image.Image]:
    """Every outline filled: colour ``(3, H, W)``, coverage ``(H, W)`` in [0, 1], and the relief."""
    canvas = Image.new(LAYER, (place.width * SUPERSAMPLING, place.height * SUPERSAMPLING))
    relief = Image.new("L", (place.width, place.height))
    paint, carve = ImageDraw.Draw(canvas), ImageDraw.Draw(relief)
    corners = place.pixels(figure.outlines)
    coarse, fine = corners.ravel().tolist(), (corners * SUPERSAMPLING).ravel().tolist()
    inks = np.concatenate([fill.colour for fill in figure.fills]).clip(0, 255).astype(int).reshape(-1, 3).tolist()
    start = 0
    for fill, (red, green, blue) in zip(figure.fills, inks, strict=True):
        end = start + 2 * len(fill.points)
        paint.polygon(fine[start:end], fill=(red, green, blue, 255))
        if fill.relief is not None:
            carve.polygon(coarse[start:end], fill=fill.relief)
        start = end
    return *read_layer(shrink_layer(canvas, SUPERSAMPLING)), relief


def _hair_layer(figure: Figure, place: Place) -> tuple[Floats, Floats]:
    """Every lock drawn: its shade and its coverage, both ``(H, W)`` in [0, 1]."""
    canvas = Image.new(LAYER, (place.width * SUPERSAMPLING, place.height * SUPERSAMPLING))
    paint = ImageDraw.Draw(canvas)
    thick = max(1, round(LOCK_WIDTH * place.scale * place.unit * SUPERSAMPLING))
    for locks in figure.hair:
        lines = place.pixels(locks.curves, SUPERSAMPLING).reshape(len(locks.curves), -1).tolist()
        inks = np.zeros((len(lines), 4), int)
        inks[:, 0], inks[:, 3] = locks.shades * locks.opacities / 255, locks.opacities
        for line, ink in zip(lines, map(tuple, inks.tolist()), strict=True):
            paint.line(line[:10], fill=ink, width=thick)
            paint.line(line[8:], fill=ink, width=max(1, thick // 2))
    shades, cover = read_layer(shrink_layer(canvas, SUPERSAMPLING))
    return shades[0] / 255, cover


def _shading(relief: Image.Image, alpha: Floats, light: Light, place: Place) -> Floats:
    """Brightness ``(H, W)`` of a surface that bulges where the relief is high and falls away at the outline.

    The silhouette blurred at two radii stands in for thickness: its slope is steep at the edge and flat in the middle,
    as on a barrel.
    """
    scale = float(place.scale * place.unit)
    solid = Image.fromarray(np.asarray(alpha * 255, np.uint8))
    fine = Image.blend(solid, relief, 0.46).filter(ImageFilter.GaussianBlur(0.021 * scale))
    broad = solid.filter(ImageFilter.GaussianBlur(0.075 * scale))
    bulge = 0.15 * np.asarray(broad, np.float32) + 0.065 * np.asarray(fine, np.float32)
    slope_y, slope_x = np.gradient(bulge * (scale / 255 * 1.6))
    x, y, z = light.direction
    facing = (z - slope_x * x - slope_y * y) / np.sqrt(1 + slope_x**2 + slope_y**2)
    return np.asarray(light.ambient + 1.15 * light.strength * np.maximum(facing, 0), np.float32)


def _cast_shadow(alpha: Floats, light: Light, place: Place) -> Floats:
    """How much light the ground loses ``(H, W)``: the matte laid down along the sun, and a patch below the belly."""
    run, fall = light.slant
    floor = place.floor * place.unit
    solid = Image.fromarray(np.asarray(alpha * 255, np.uint8))
    lean = run / fall
    # Pillow wants the way back: which pixel of the matte darkens this pixel of the ground.
    way_back = (1.0, -lean, lean * floor, 0.0, -1 / fall, floor + floor / fall)
    laid = solid.transform(solid.size, Image.Transform.AFFINE, way_back, Image.Resampling.BILINEAR)
    reach = float(place.scale * place.unit)
    x, y = place.origin * place.unit
    patch = ImageDraw.Draw(laid)
    patch.ellipse((x - 0.45 * reach, y - 0.045 * reach, x + 0.45 * reach, y + 0.03 * reach), fill=200)
    soft = laid.filter(ImageFilter.BoxBlur(0.016 * reach))
    shadow = np.asarray(soft, np.float32) * np.float32(light.shadow / 255)
    shadow[: max(0, int(place.horizon * place.unit))] = 0
    return shadow
