"""Drawn horses in drawn landscapes: an endless data set with exact mattes that needs no download.

A sample is drawn in four steps, each a section below and each with random numbers of its own, so that a change to one
leaves the others as they were:

1. the pose: where the joints are (:func:`_draw_pose`), and the body around them (:func:`_build_figure`);
2. the coat: which colour every part has (:func:`_draw_coat`, :data:`COATS`);
3. the ground: sky, hills, grass, fences and clutter in the coats' own colours (:func:`_render_ground`);
4. the compositing: shading, shadow, hair and the matte (:func:`_render_horse`, :class:`SyntheticHorses`).

Inside this file a picture is three planes, ``(3, H, W)`` float32 in [0, 255]: numpy is several times slower when the
short axis comes last.

Two frames are used. A figure is built in *horse units*: x forward, y up, hooves near 0 and withers at 1. A picture is
drawn in *picture units*, in which the shorter side is 1; only the last step knows pixels, so one horse at two sizes is
one picture at two resolutions.
"""

from __future__ import annotations

import functools
import operator
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter

from fadeviz.data import Sample
from fadeviz.errors import FadevizError

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]
"""Red, green and blue in [0, 255], sRGB."""

SMALLEST = 32
"""Below this many pixels a leg is thinner than half a pixel and the mask falls apart."""

SUPERSAMPLING = 4
"""Outlines are filled at this many samples per pixel and axis; the matte is their mean."""


class SyntheticHorses:
    """Horses drawn from outlines, each before a landscape that shares its colours.

    ``image = alpha * horse + (1 - alpha) * ground``, computed on sRGB values (not on linear light), as matting data
    sets do, and then rounded. ``mask = alpha >= 0.5``. The coats' colours also occur in earth, straw, trunks, walls and
    rocks, so that colour alone does not find the horse.

    A sample depends on (seed, stream, index, size) only, never on what was asked for before. The random numbers are
    drawn before the size matters: the same index at another size is about the same picture.

    *Shape*: image ``(H, W, 3)`` uint8, mask ``(H, W)`` uint8 (0 ground, 1 horse), alpha ``(H, W)`` float32 in [0, 1].

    *Units*: ``size`` is in pixels, one number for a square or ``(height, width)``.

    *Cost*: about 8 ms a sample at 128x128 and 16 ms at 224x224 on one core.

    Args:
        size: height and width in pixels, at least 32 each.
        seed: 0 or more; another seed is another set of horses.
        stream: a name such as ``"train"`` or ``"test"``; streams share no picture.
        count: how many samples there are, or None for an endless set.

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
        """How many samples there are, or None when they never end."""
        return self._count

    def __getitem__(self, index: int) -> Sample:
        """The sample at this index, the same one every time.

        Raises:
            IndexError: for a negative index, or one past ``count``.
        """
        index = operator.index(index)
        if index < 0 or (self._count is not None and index >= self._count):
            held = "0 and up" if self._count is None else f"0 to {self._count - 1}"
            raise IndexError(f"SyntheticHorses: no sample {index}; there are {held}.")
        image, alpha = _draw_sample(_Dice(self.seed, self.stream, index), *self.size)
        return Sample(
            name=f"synthetic-{self.stream}-{self.seed}-{index}",
            image=image,
            mask=(alpha >= 0.5).astype(np.uint8),
            alpha=alpha,
        )

    def __repr__(self) -> str:
        """The call that makes this set again."""
        return f"SyntheticHorses({self.size}, {self.seed}, stream={self.stream!r}, count={self._count})"


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
    """The image and its matte: every step in order."""
    pose = _draw_pose(dice["pose"])
    coat = _draw_coat(dice["coat"])
    figure = _build_figure(pose, coat, dice["hair"])
    light = _draw_light(dice["light"])
    place = _draw_place(dice["place"], figure, pose, height, width)

    horse, alpha = _render_horse(figure, coat, light, place, dice["patches"])
    ground = _render_ground(dice["ground"], light, place)
    ground *= 1 - _cast_shadow(alpha, light, place)

    image = ground + alpha * (horse - ground)
    # The same balance and grain on both layers are those of the composite: the compositing equation still holds.
    image *= _planes(light.balance)
    grain = dice["grain"].integers(0, 256, image.shape, np.uint8, endpoint=False)
    image += (grain - np.float32(127.5)) * (light.grain / 74)
    np.clip(image + 0.5, 0, 255, out=image)
    return np.ascontiguousarray(image.astype(np.uint8).transpose(1, 2, 0)), alpha


# --- curves and textures -------------------------------------------------------------------------------------------


def _smooth_outline(points: ArrayLike, pieces: int = 4) -> Floats:
    """A closed Catmull-Rom curve through the points, ``pieces`` vertices from each point to the next."""
    p = np.asarray(points, np.float32)
    before, after, second = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = (np.arange(pieces, dtype=np.float32) / pieces)[None, :, None]
    p0, p1, p2, p3 = (q[:, None] for q in (before, p, after, second))
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return np.asarray(curve.reshape(-1, 2), np.float32)


def _bezier(a: ArrayLike, b: ArrayLike, c: ArrayLike, d: ArrayLike, count: int) -> Floats:
    """``count`` points of the cubic curve from a to d; the points may carry leading axes."""
    corners = np.stack([np.asarray(p, np.float32) for p in (a, b, c, d)], -2)
    return np.asarray(_bernstein(count) @ corners, np.float32)


@functools.cache
def _bernstein(count: int) -> Floats:
    t = np.linspace(0, 1, count)
    return np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3], 1).astype(np.float32)


def _oval(centre: Floats, along: Floats, radius: float, other: float, count: int = 14) -> Floats:
    """An ellipse with one half-axis ``radius * along`` and the other across it."""
    axes = np.array([[radius * along[0], radius * along[1]], [-other * along[1], other * along[0]]], np.float32)
    return np.asarray(centre + _circle(count) @ axes, np.float32)


@functools.cache
def _circle(count: int) -> Floats:
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)


def _planes(colour: Floats) -> Floats:
    """A colour ``(3,)`` as ``(3, 1, 1)``, so that it meets planes ``(3, H, W)``."""
    return colour[:, None, None]


def _direction(degrees: float) -> Floats:
    """The unit vector at this angle above the x axis."""
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], np.float32)


def _smoothstep(x: Floats, low: float, high: float) -> Floats:
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


ATLAS = 512


@functools.cache
def _noise_atlas(roughness: float) -> Image.Image:
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


def _noise(random: np.random.Generator, place: _Place, scale: tuple[float, float], roughness: float = 0.6) -> Floats:
    """A texture ``(H, W)`` of mean 0 and deviation about 1.

    Args:
        random: decides the window.
        place: the picture to cover.
        scale: texels of the atlas per picture unit, along x and y: more is finer.
        roughness: amplitude of an octave as a share of the one before.
    """
    x, y = random.uniform(0, ATLAS, 2)
    wide, high = min(ATLAS, scale[0] * place.wide), min(ATLAS, scale[1] * place.high)
    box = (x, y, x + wide, y + high)
    window = _noise_atlas(roughness).resize((place.width, place.height), Image.Resampling.BILINEAR, box)
    return np.asarray(window, np.float32)


# --- the pose ------------------------------------------------------------------------------------------------------

GAITS = ("stand", "walk", "trot", "gallop", "graze", "rear")


@dataclass(frozen=True)
class _Pose:
    """Angles in degrees. A leg's are measured from straight down, forward positive, for its five bones."""

    gait: str
    legs: Floats
    """``(4, 5)``: near fore, near hind, far fore, far hind."""
    pitch: float
    neck: float
    head: float
    neck_length: float
    arch: float
    wind: float
    """How far mane and tail stream backwards, 0 to 1."""
    lift: float
    """Height of the lowest hoof above the ground."""
    leg_length: float
    depth: float
    head_size: float
    girth: float
    squeeze: float
    """Foreshortening along x: below 1 the horse stands at an angle to us."""
    facing: int
    """1 looks right, -1 looks left."""


def _fore_leg(swing: float, fold: float) -> list[float]:
    """Shoulder, forearm, cannon, pastern and hoof of a leg swung forward and folded at the knee."""
    cannon = swing - 0.75 * fold
    pastern = cannon + 28 - 0.4 * fold
    return [-22 + 0.45 * swing + 0.15 * fold, swing + 0.45 * fold, cannon, pastern, pastern - 28]


def _hind_leg(swing: float, fold: float) -> list[float]:
    """Thigh, gaskin, cannon, pastern and hoof; the hock bends the other way than the knee."""
    cannon = 2 + swing - 0.3 * fold
    pastern = cannon + 26 - 0.4 * fold
    return [20 + 0.5 * swing + 0.35 * fold, -36 + 0.8 * swing - 0.25 * fold, cannon, pastern, pastern - 28]


def _stride(gait: str, random: np.random.Generator) -> Floats:
    """The four legs at a random moment of the gait."""
    moment = random.uniform()
    jitter = random.normal(0, 1, (4, 2))
    # Per gait: swing, fold of the knee, fold of the hock, and at which part of the stride each leg is.
    reach, knee, hock, phases = {
        "stand": (5, 0, 0, (0.0, 0.5, 0.3, 0.1)),
        "graze": (13, 0, 0, (0.2, 0.6, 0.75, 0.1)),
        "walk": (20, 42, 30, (0.0, 0.25, 0.5, 0.75)),
        "trot": (26, 75, 55, (0.0, 0.5, 0.5, 0.0)),
        "gallop": (40, 88, 62, (0.0, 0.42, 0.14, 0.54)),
        "rear": (8, 0, 0, (0.0, 0.0, 0.0, 0.4)),
    }[gait]
    legs = []
    for leg, phase in enumerate(phases):
        turn = 2 * np.pi * (moment + phase)
        swing = reach * np.sin(turn) + 2 * jitter[leg, 0]
        lifted = max(0.0, float(np.cos(turn)))
        if leg % 2 == 0:
            fold = knee * lifted
            if gait == "rear":
                swing, fold = 30 + 10 * jitter[leg, 0], 80 + 15 * jitter[leg, 1]
            legs.append(_fore_leg(swing, fold))
        else:
            legs.append(_hind_leg(swing + (6 if gait == "rear" else 0), hock * lifted))
    return np.asarray(legs, np.float32)


def _draw_pose(random: np.random.Generator) -> _Pose:
    gait = str(random.choice(GAITS, p=[0.22, 0.22, 0.18, 0.16, 0.14, 0.08]))
    legs = _stride(gait, random)
    u = random.uniform(-1, 1, 12)
    neck, head = {
        "stand": (45 + 9 * u[0], -50 + 9 * u[1]),
        "walk": (38 + 10 * u[0], -48 + 9 * u[1]),
        "trot": (46 + 8 * u[0], -55 + 9 * u[1]),
        "gallop": (32 + 9 * u[0], -36 + 9 * u[1]),
        "graze": (-40 + 6 * u[0], -76 + 10 * u[1]),
        "rear": (50 + 9 * u[0], -42 + 10 * u[1]),
    }[gait]
    pitch = {"gallop": 6 * u[2], "rear": 27 + 8 * u[2], "graze": -2.0}.get(gait, 1.5 * u[2])
    wind = {"gallop": 0.8, "trot": 0.45, "rear": 0.4}.get(gait, 0.12) + 0.15 * u[3]
    return _Pose(
        gait=gait,
        legs=legs,
        pitch=pitch,
        neck=neck,
        head=head,
        neck_length=(0.76 if gait == "graze" else 0.54) * (1 + 0.06 * u[4]),
        arch=0.06 + 0.03 * u[5],
        wind=float(np.clip(wind, 0, 1)),
        lift=max(0.0, 0.08 * u[6]) if gait == "gallop" else 0.0,
        leg_length=1 + 0.08 * u[7],
        depth=1 + 0.07 * u[8],
        head_size=1.06 + 0.06 * u[9],
        girth=1.07 + 0.12 * u[10],
        squeeze=0.93 + 0.07 * u[11],
        facing=1 if random.uniform() < 0.5 else -1,
    )


# --- the coat ------------------------------------------------------------------------------------------------------


class Coat(NamedTuple):
    """The colours of one kind of horse; ``points`` are the lower legs and the muzzle."""

    body: Colour
    points: Colour
    hair: Colour
    patched: bool = False


COATS: dict[str, Coat] = {
    "bay": Coat((118, 70, 40), (38, 30, 27), (30, 25, 24)),
    "dark bay": Coat((72, 46, 32), (30, 25, 23), (26, 22, 21)),
    "chestnut": Coat((140, 84, 52), (130, 78, 50), (150, 100, 66)),
    "black": Coat((46, 42, 42), (34, 31, 32), (30, 28, 29)),
    "grey": Coat((158, 156, 152), (104, 102, 102), (196, 194, 190)),
    "palomino": Coat((198, 154, 92), (190, 150, 96), (232, 220, 192)),
    "buckskin": Coat((184, 146, 96), (52, 44, 38), (40, 34, 30)),
    "white": Coat((214, 208, 198), (188, 176, 166), (228, 224, 214)),
    "pinto": Coat((124, 72, 42), (220, 214, 204), (60, 42, 34), True),
    "black pinto": Coat((48, 43, 42), (218, 214, 208), (44, 40, 40), True),
}


@dataclass(frozen=True)
class _CoatDraw:
    """One horse's own version of a coat."""

    body: Floats
    points: Floats
    hair: Floats
    white: Floats
    hoof: Floats
    socks: Floats
    """Per leg, from which joint down it is white: 2 is the knee, 3 the fetlock, 9 nowhere."""
    blaze: float
    """Width of the white stripe on the face, 0 for none."""
    patched: bool
    dapple: float
    gloss: float


def _draw_coat(random: np.random.Generator) -> _CoatDraw:
    coat = COATS[str(random.choice(list(COATS)))]
    tint = random.normal(1, 0.015, 3) * random.uniform(0.82, 1.08)
    marked = random.uniform(size=4) < 0.35
    return _CoatDraw(
        body=np.asarray(coat.body * tint, np.float32),
        points=np.asarray(coat.points * tint, np.float32),
        hair=np.asarray(coat.hair * tint, np.float32),
        white=np.array([222, 216, 206], np.float32),
        hoof=np.array([62, 54, 48], np.float32) * np.float32(random.uniform(0.7, 1.5)),
        socks=np.where(marked, random.uniform(2.1, 3.1, 4), 9).astype(np.float32),
        blaze=random.uniform(0.25, 0.6) if random.uniform() < 0.45 else 0.0,
        patched=coat.patched,
        dapple=random.uniform(0.04, 0.12),
        gloss=random.uniform(4, 30),
    )


# --- the body around the joints ------------------------------------------------------------------------------------

# Outlines are in horse units, drawn for a horse that stands and looks right.
TORSO = _smooth_outline(
    [
        (0.27, 1.0), (0.14, 0.965), (-0.02, 0.925), (-0.18, 0.935), (-0.33, 0.962), (-0.44, 0.92), (-0.515, 0.82),
        (-0.52, 0.70), (-0.42, 0.60), (-0.28, 0.555), (-0.12, 0.52), (0.08, 0.485), (0.24, 0.475), (0.38, 0.50),
        (0.485, 0.60), (0.53, 0.715), (0.49, 0.86), (0.38, 0.97),
    ]
)  # fmt: skip
# The head in its own frame: the poll at 0, x towards the muzzle, y towards the forehead.
HEAD = _smooth_outline(
    [
        (-0.02, 0.015), (0.06, 0.042), (0.14, 0.046), (0.23, 0.024), (0.32, 0.012), (0.385, 0.006), (0.418, -0.03),
        (0.412, -0.072), (0.382, -0.088), (0.365, -0.112), (0.32, -0.108), (0.26, -0.108), (0.19, -0.138),
        (0.115, -0.172), (0.04, -0.165), (-0.02, -0.11), (-0.05, -0.04),
    ]
)  # fmt: skip
EAR = _smooth_outline([(0.0, 0.0), (0.0, 0.05), (0.028, 0.125), (0.055, 0.06), (0.05, 0.0)], 3)

# A leg's stations: (bone + share of its length, half-width in front, half-width behind).
FORE_STATIONS = np.array(
    [
        (0.0, 0.09, 0.10), (0.6, 0.10, 0.11), (1.0, 0.075, 0.085), (1.3, 0.066, 0.066), (1.7, 0.042, 0.044),
        (1.98, 0.038, 0.036), (2.06, 0.040, 0.036), (2.25, 0.029, 0.030), (2.75, 0.026, 0.029), (2.98, 0.031, 0.036),
        (3.1, 0.030, 0.034), (3.5, 0.025, 0.027), (3.98, 0.033, 0.030), (4.05, 0.036, 0.033), (4.99, 0.056, 0.042),
    ],
    np.float32,
)  # fmt: skip
HIND_STATIONS = np.array(
    [
        (0.0, 0.12, 0.13), (0.5, 0.13, 0.15), (0.98, 0.11, 0.13), (1.04, 0.09, 0.125), (1.4, 0.066, 0.085),
        (1.75, 0.042, 0.046), (1.98, 0.042, 0.044), (2.06, 0.042, 0.050), (2.25, 0.034, 0.036), (2.75, 0.029, 0.031),
        (2.98, 0.032, 0.038), (3.1, 0.031, 0.035), (3.5, 0.026, 0.028), (3.98, 0.033, 0.030), (4.05, 0.036, 0.033),
        (4.99, 0.056, 0.042),
    ],
    np.float32,
)  # fmt: skip
FORE_BONES = np.array([0.22, 0.265, 0.185, 0.085, 0.05], np.float32)
HIND_BONES = np.array([0.25, 0.28, 0.245, 0.085, 0.05], np.float32)
SHOULDER, HIP = np.array([0.35, 0.76], np.float32), np.array([-0.355, 0.81], np.float32)
WITHERS, BREAST = np.array([0.25, 0.992], np.float32), np.array([0.515, 0.665], np.float32)
DOCK = np.array([-0.47, 0.895], np.float32)
FAR = 0.6
"""Brightness of the far legs: they stand in the body's shade."""


class _Fill(NamedTuple):
    """One filled outline."""

    points: Floats
    colour: Floats
    relief: int | None
    """How far it stands out towards us, 0 to 255; None where what lies below has said so."""


class _Hair(NamedTuple):
    """Locks of hair, the faint ones first: Pillow's lines do not blend, so a later lock replaces an earlier."""

    curves: Floats
    """``(locks, points, 2)``."""
    shades: Floats
    """``(locks,)``: 0 is the darkest hair and 255 the lightest."""
    opacities: Floats
    """``(locks,)`` in [0, 255]."""


@dataclass(frozen=True)
class _Figure:
    """A horse in horse units, already turned to where it looks; y 0 is the ground."""

    fills: list[_Fill]
    outlines: Floats
    """``(N, 2)``: the corners of all the fills, one after the other."""
    hair: list[_Hair]

    @property
    def low(self) -> Floats:
        """The least x and y of body and legs, hair left out."""
        return np.asarray(self.outlines.min(0), np.float32)

    @property
    def high(self) -> Floats:
        """The greatest x and y of body and legs, hair left out."""
        return np.asarray(self.outlines.max(0), np.float32)


def _build_leg(leg: int, pose: _Pose, coat: _CoatDraw, root: Floats) -> list[_Fill]:
    """One leg from its uppermost joint: quads between stations, and discs where bones meet."""
    fore, far = leg % 2 == 0, leg >= 2
    bones = (FORE_BONES if fore else HIND_BONES) * pose.leg_length
    stations = FORE_STATIONS if fore else HIND_STATIONS
    angle = np.radians(pose.legs[leg])
    along = np.stack([np.sin(angle), -np.cos(angle)], 1)
    joints = np.concatenate([root[None], root + np.cumsum(along * bones[:, None], 0)]).astype(np.float32)

    bone = stations[:, 0].astype(int)
    share = (stations[:, 0] - bone)[:, None]
    middle = joints[bone] * (1 - share) + joints[bone + 1] * share
    front = np.stack([-along[bone, 1], along[bone, 0]], 1)
    girth = 1 + (pose.girth - 1) * np.where(stations[:, :1] < 1.5, 0.5, 1.0)
    left = (middle + front * stations[:, 1:2] * girth).astype(np.float32)
    right = (middle - front * stations[:, 2:3] * girth).astype(np.float32)
    quads = np.stack([left[:-1], left[1:], right[1:], right[:-1]], 1)

    level = 0.5 * (stations[:-1, 0] + stations[1:, 0])
    colours = _leg_colours(level, coat, float(coat.socks[leg])) * np.float32(FAR if far else 1.0)
    fills = [_Fill(np.concatenate([left, right[::-1]]), colours[0], None if far else 235)]
    for joint in (1, 2, 3):
        first = int(np.searchsorted(stations[:, 0], joint - 0.03))
        radius = 0.5 * float(stations[first, 1] + stations[first, 2])
        centre = joints[joint] - front[first] * 0.5 * (stations[first, 2] - stations[first, 1])
        fills.append(_Fill(_oval(centre, along[joint], radius, radius, 10), colours[first], None))
    # A sharply folded leg's outline crosses itself and leaves holes: below the elbow its quads are filled one by one.
    upper = int(np.searchsorted(stations[:, 0], 1.0))
    return fills + [_Fill(quads[i], colours[i], None) for i in range(upper, len(quads))]


def _leg_colours(level: Floats, coat: _CoatDraw, sock: float) -> Floats:
    """Colour at each level: the body's down to the knee, then the points', white below the sock's edge."""
    point = _smoothstep(level, 1.4, 2.2)[:, None]
    colours = coat.body * (1 - point) + coat.points * point
    colours = np.where(level[:, None] > sock, coat.white, colours)
    return np.asarray(np.where(level[:, None] > 4.0, coat.hoof, colours), np.float32)


def _pitched(points: Floats, pose: _Pose) -> Floats:
    """The torso's points, deepened and turned about the hip."""
    cos, sin = np.cos(np.radians(pose.pitch)), np.sin(np.radians(pose.pitch))
    turn = np.array([[cos, sin], [-sin * pose.depth, cos * pose.depth]], np.float32)
    return np.asarray((points - HIP) @ turn + HIP, np.float32)


@dataclass(frozen=True)
class _Front:
    """Neck and head: their outlines, and the curves that the mane grows from."""

    neck: Floats
    crest: Floats
    throat: Floats
    poll: Floats
    axis: Floats
    brow: Floats
    size: float

    def at(self, points: ArrayLike) -> Floats:
        """From the head's own frame to the figure's."""
        frame = np.array([self.axis, self.brow], np.float32) * self.size
        return np.asarray(self.poll + np.asarray(points, np.float32) @ frame, np.float32)


def _build_front(pose: _Pose) -> _Front:
    """The neck as two curves, crest and throat, from the torso to a head whose place the pose gives."""
    raised = pose.neck + 0.55 * pose.pitch
    withers, breast = _pitched(WITHERS, pose), _pitched(BREAST, pose)
    along = _direction(raised)
    poll = withers + along * pose.neck_length
    up = np.array([-along[1], along[0]], np.float32)
    axis = _direction(pose.head + 0.4 * pose.pitch)
    brow = np.array([-axis[1], axis[0]], np.float32)
    size = pose.head_size
    throat_end = poll + size * (0.02 * axis - 0.145 * brow)
    length = pose.neck_length
    crest = _bezier(
        withers, withers + 0.3 * length * along - 0.005 * up, poll - 0.3 * length * along + pose.arch * up, poll, 12
    )
    below = throat_end - breast
    throat = _bezier(breast, breast + 0.35 * below - 0.03 * up, throat_end - 0.35 * below + 0.03 * up, throat_end, 12)
    neck = np.concatenate([crest, (poll + 0.09 * axis)[None], throat[::-1], _pitched(SHOULDER, pose)[None]])
    return _Front(neck.astype(np.float32), crest, throat, poll, axis, brow, size)


def _head_fills(front: _Front, coat: _CoatDraw) -> list[_Fill]:
    """The head, then what lies on it: muzzle, blaze, cheek, ear, eye and nostril."""
    dark = coat.points * 0.55 + coat.body * 0.45
    muzzle = coat.points * 0.7 + coat.body * 0.3
    black = np.array([22, 18, 18], np.float32)

    def spot(x: float, y: float, long: float, short: float, tilt: float = 0) -> Floats:
        return front.at(_oval(np.array([x, y], np.float32), _direction(tilt), long, short))

    fills = [_Fill(front.at(HEAD), coat.body, 215), _Fill(spot(0.375, -0.05, 0.042, 0.048), muzzle, 225)]
    if coat.blaze:
        outer = np.array([(0.07, 0.042), (0.14, 0.046), (0.23, 0.024), (0.32, 0.012), (0.385, 0.006)], np.float32)
        inner = outer - np.array([0, 0.05 * coat.blaze], np.float32)
        fills.append(_Fill(front.at(np.concatenate([outer, inner[::-1]])), coat.white, 225))
    return [
        *fills,
        _Fill(spot(0.10, -0.105, 0.055, 0.045), coat.body, 255),
        _Fill(front.at(EAR + np.array([0.0, 0.01], np.float32)), dark, 235),
        _Fill(spot(0.125, 0.008, 0.017, 0.012), black, None),
        _Fill(spot(0.395, -0.035, 0.014, 0.008, 60), black, None),
    ]


LOCK_WIDTH = 0.017
"""Of a lock of hair at its root, in horse units."""


def _locks(roots: Floats, mid: Floats, tips: Floats, shades: ArrayLike, opacities: ArrayLike) -> _Hair:
    """Curved locks from their roots by way of ``mid`` to their tips."""
    curves = _bezier(roots, roots * 0.4 + mid * 0.6, mid * 0.6 + tips * 0.4, tips, 7)
    shade, opacity = np.asarray(shades, np.float32), np.asarray(opacities, np.float32)
    order = np.argsort(opacity, kind="stable")
    return _Hair(curves[order], shade[order], opacity[order])


def _build_mane(front: _Front, pose: _Pose, random: np.random.Generator) -> list[_Hair]:
    """Locks along the crest, and a forelock: they hang down the neck and stream back in the wind."""
    count = 40
    spot = np.sort(random.uniform(0.04, 1, count)) * (len(front.crest) - 1)
    low = spot.astype(int).clip(0, len(front.crest) - 2)
    roots = front.crest[low] + (spot - low)[:, None].astype(np.float32) * (front.crest[low + 1] - front.crest[low])
    length = random.uniform(0.10, 0.21, (count, 1)).astype(np.float32)
    back = np.array([-1.0, 0.10], np.float32)
    hang = pose.wind * back + (1 - pose.wind) * np.array([0.10, -1.0], np.float32)
    hang = hang / np.hypot(*hang)
    spread = random.normal(0, 0.22, (count, 2)).astype(np.float32)
    tips = roots + length * (hang + spread)
    mid = roots + length * 0.5 * (hang + 0.5 * spread) + 0.03 * pose.wind * np.array([0, 1], np.float32)
    shades, opacities = random.uniform(60, 200, count), random.uniform(110, 255, count)
    locks = _locks(roots, mid, tips, shades, opacities)

    fringe = 9
    roots = front.at(np.array([[0.01, 0.03]], np.float32) + random.uniform(-0.012, 0.012, (fringe, 2)))
    tips = front.at(np.array([[0.13, 0.035]], np.float32) + random.normal(0, 0.02, (fringe, 2)))
    shades, opacities = random.uniform(60, 200, fringe), random.uniform(130, 255, fringe)
    return [locks, _locks(roots, 0.5 * (roots + tips), tips, shades, opacities)]


def _build_tail(pose: _Pose, random: np.random.Generator) -> _Hair:
    """A bundle of locks from the dock: dense in the middle, single hairs at its edges and its end."""
    count = 40
    dock = _pitched(DOCK, pose)
    fall = 1 - pose.wind
    middle = dock + np.array([-0.10 - 0.16 * pose.wind, 0.02 - 0.14 * fall], np.float32)
    end = dock + np.array([-0.10 - 0.46 * pose.wind, -0.60 * fall - 0.10], np.float32)
    sway = random.normal(0, 0.05)
    across = random.normal(0, 1, (count, 1)).astype(np.float32)
    reach = random.uniform(0.6, 1.08, (count, 1)).astype(np.float32)
    normal = np.array([0.85, 0.35 + 0.5 * pose.wind], np.float32)
    roots = dock + 0.014 * across * normal
    mid = middle + 0.030 * across * normal
    tips = dock + (end + np.array([sway, 0], np.float32) - dock) * reach + (0.045 * across) * normal
    tips = tips + random.normal(0, 0.012, (count, 2)).astype(np.float32)
    edge = np.abs(across[:, 0])
    opacities = np.clip(285 - 80 * edge - 60 * (reach[:, 0] - 0.6), 70, 255)
    return _locks(roots, mid, tips, random.uniform(40, 200, count), opacities)


def _build_figure(pose: _Pose, coat: _CoatDraw, random: np.random.Generator) -> _Figure:
    """All outlines back to front: far legs, torso, neck and head, near legs; the hair comes on top."""
    step = np.array([0.035, 0.03], np.float32)
    shoulder, hip = _pitched(SHOULDER, pose), HIP
    front = _build_front(pose)
    fills = _build_leg(2, pose, coat, shoulder + step) + _build_leg(3, pose, coat, hip + step)
    far_ear = EAR * np.array([0.9, 0.95], np.float32) + np.array([0.03, 0.015], np.float32)
    fills.append(_Fill(front.at(far_ear), coat.body * 0.7, 120))
    fills.append(_Fill(_pitched(TORSO, pose), coat.body, 140))
    fills.append(_Fill(front.neck, coat.body, 150))
    haunch = _oval(_pitched(HIP + np.array([0.0, -0.02], np.float32), pose), _direction(100), 0.17, 0.13)
    blade = _oval(_pitched(SHOULDER + np.array([0.0, 0.0], np.float32), pose), _direction(115), 0.18, 0.09)
    barrel = _oval(_pitched(np.array([0.0, 0.71], np.float32), pose), _direction(pose.pitch), 0.26, 0.14)
    fills += [_Fill(part, coat.body, level) for part, level in ((barrel, 175), (haunch, 205), (blade, 195))]
    fills += _head_fills(front, coat)
    fills += _build_leg(1, pose, coat, hip) + _build_leg(0, pose, coat, shoulder)

    outlines = np.concatenate([fill.points for fill in fills])
    ground = np.array([0, outlines[:, 1].min() - pose.lift], np.float32)
    turn = np.array([pose.facing * pose.squeeze, 1], np.float32)
    hair = [_build_tail(pose, random), *_build_mane(front, pose, random)]
    return _Figure(
        fills=fills,
        outlines=(outlines - ground) * turn,
        hair=[locks._replace(curves=(locks.curves - ground) * turn) for locks in hair],
    )


# --- place and light -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where things are, in picture units from the upper left corner, y down."""

    height: int
    width: int
    origin: Floats
    """Where the horse's (0, 0) lies."""
    scale: float
    """Picture units per horse unit."""
    horizon: float

    @property
    def unit(self) -> int:
        """Pixels per picture unit."""
        return min(self.height, self.width)

    @property
    def high(self) -> float:
        """The picture's height in picture units."""
        return self.height / self.unit

    @property
    def wide(self) -> float:
        """The picture's width in picture units."""
        return self.width / self.unit

    @property
    def floor(self) -> float:
        """Where the hooves stand."""
        return float(self.origin[1])

    def pixels(self, points: Floats, sampling: int = 1) -> Floats:
        """From horse units to pixels, or to samples of which a pixel has ``sampling`` along each axis."""
        flipped = self.origin + self.scale * points * np.array([1, -1], np.float32)
        return np.asarray(flipped * (self.unit * sampling), np.float32)


AREA = 0.60
"""What a horse covers, in square horse units, about."""


def _draw_place(random: np.random.Generator, figure: _Figure, pose: _Pose, height: int, width: int) -> _Place:
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
    return _Place(height, width, origin, float(scale), float(np.clip(horizon, 0.06 * high, 0.85 * high)))


@dataclass(frozen=True)
class _Light:
    """One sun: ``direction`` points to it (x right, y down, z towards us)."""

    direction: Floats
    ambient: float
    strength: float
    shadow: float
    slant: tuple[float, float]
    """How far a shadow runs along x and y for each unit of height."""
    balance: Floats
    """Per channel: the hour of the day and the camera."""
    grain: float


def _draw_light(random: np.random.Generator) -> _Light:
    u = random.uniform(-1, 1, 6)
    direction = np.array([0.8 * u[0], -0.75 - 0.2 * u[1], 0.5 + 0.3 * u[2]], np.float32)
    direction /= np.float32(np.linalg.norm(direction))
    strength = 0.5 + 0.25 * u[3]
    warm = 0.07 * u[4]
    balance = np.array([1 + warm, 1 + 0.02 * u[5], 1 - warm], np.float32) * np.float32(random.uniform(0.82, 1.12))
    return _Light(
        direction=direction,
        ambient=1.05 - 0.75 * strength,
        strength=strength,
        shadow=0.25 + 0.5 * strength,
        slant=(-float(direction[0]), float(random.uniform(0.10, 0.22) * (1 if random.uniform() < 0.7 else -1))),
        balance=balance,
        grain=float(random.uniform(1.0, 5.0)),
    )


def _shading(relief: Image.Image, alpha: Floats, light: _Light, place: _Place) -> Floats:
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


# --- compositing ---------------------------------------------------------------------------------------------------


LAYER = "RGBX"
"""Red, green and blue times coverage, and coverage. As RGBA, Pillow would multiply and divide at every resizing."""


def _fill_layer(figure: _Figure, place: _Place) -> tuple[Floats, Floats, Image.Image]:
    """Every outline filled: colour ``(3, H, W)``, coverage ``(H, W)`` in [0, 1], and the relief."""
    full = (place.width * SUPERSAMPLING, place.height * SUPERSAMPLING)
    canvas = Image.new(LAYER, full)
    relief = Image.new("L", (place.width, place.height))
    paint, carve = ImageDraw.Draw(canvas), ImageDraw.Draw(relief)
    corners = place.pixels(figure.outlines)
    coarse, fine = corners.ravel().tolist(), (corners * SUPERSAMPLING).ravel().tolist()
    inks = np.clip([fill.colour for fill in figure.fills], 0, 255).astype(int).tolist()
    start = 0
    for fill, (red, green, blue) in zip(figure.fills, inks, strict=True):
        end = start + 2 * len(fill.points)
        paint.polygon(fine[start:end], fill=(red, green, blue, 255))
        if fill.relief is not None:
            carve.polygon(coarse[start:end], fill=fill.relief)
        start = end
    return *_read_layer(canvas.reduce(SUPERSAMPLING)), relief


def _hair_layer(figure: _Figure, place: _Place) -> tuple[Floats, Floats]:
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
    shades, cover = _read_layer(canvas.reduce(SUPERSAMPLING))
    return shades[0] / 255, cover


def _read_layer(layer: Image.Image) -> tuple[Floats, Floats]:
    """The colours ``(3, H, W)`` in [0, 255] of what is drawn, pure up to its outline, and its coverage ``(H, W)``."""
    planes = np.asarray(layer).transpose(2, 0, 1).astype(np.float32, order="C")
    cover = planes[3] / 255
    return planes[:3] / np.maximum(cover, 1 / 255), cover


def _render_horse(
    figure: _Figure, coat: _CoatDraw, light: _Light, place: _Place, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """The horse's colour ``(3, H, W)`` in [0, 255] wherever it covers anything, and its matte ``(H, W)``."""
    colour, body, relief = _fill_layer(figure, place)
    if coat.patched:
        blotch = _noise(random, place, (60 / place.scale, 60 / place.scale), 0.4)
        colour = colour + _smoothstep(blotch, 0.0, 0.12) * (_planes(coat.white) - colour)
    texture = _noise(random, place, (200, 200))
    shade = _shading(relief, body, light, place) * (1 + coat.dapple * texture)
    colour *= shade
    colour += coat.gloss * np.maximum(shade - 0.95, 0)

    tone, hair = _hair_layer(figure, place)
    lit = (0.55 + 0.7 * tone) * (0.35 + 0.65 * shade)
    # "Over", with premultiplied colours: where neither covers anything the colour is never seen.
    alpha = body + hair - body * hair
    near = hair / np.maximum(alpha, 1e-6)
    colour += near * (lit * _planes(coat.hair) - colour)
    return np.clip(colour, 0, 255), alpha


def _cast_shadow(alpha: Floats, light: _Light, place: _Place) -> Floats:
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


# --- the ground ----------------------------------------------------------------------------------------------------

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
    return np.asarray(_planes(dark) + np.clip(share, 0, 1) * _planes(bright - dark), np.float32)


def _lay_out(random: np.random.Generator, place: _Place) -> Floats:
    """Grass or earth seen at a slant: one sheet of noise, coarse at our feet and fine at the horizon ``(H, W)``."""
    unit, x, y = place.unit, *random.uniform(0, ATLAS * 0.6, 2)
    horizon, depth = place.horizon - 0.10, place.high - place.horizon + 0.10
    # A row at distance d below the horizon shows ground at depth 1 / d, magnified by d.
    middle, spread = place.wide / 2, 62.0 * depth
    coefficients = (
        spread / unit,
        x / unit,
        -spread * middle - x * horizon,
        0.0,
        y / unit,
        70.0 * depth - y * horizon,
        0.0,
        1 / unit,
        -horizon,
    )
    scaled = tuple(c / -horizon for c in coefficients[:8])
    size = (place.width, place.height)
    sheet = _noise_atlas(0.85).transform(size, Image.Transform.PERSPECTIVE, scaled, Image.Resampling.BILINEAR)
    return np.asarray(sheet, np.float32)


def _render_ground(random: np.random.Generator, light: _Light, place: _Place) -> Floats:
    """The landscape ``(3, H, W)`` in [0, 255], without the horse's shadow."""
    rows = ((np.arange(place.height, dtype=np.float32) + 0.5) / place.unit)[:, None]
    columns = ((np.arange(place.width, dtype=np.float32) + 0.5) / place.unit)[None]

    clouds = _noise(random, place, (60, 130), 0.55)
    sky = _mix(rows / max(place.horizon, 0.1) * 0.8 + 0.22 * clouds, *_pick_pair(random, SKIES))

    blades = _lay_out(random, place)
    patches = _noise(random, place, (50, 140))
    soil = _mix(0.5 + 0.26 * blades, *_pick_pair(random, SOILS))
    bare = _mix(0.5 + 0.22 * blades, *_pick_pair(random, SOILS))
    amount = _smoothstep(patches, random.uniform(-0.8, 1.2), random.uniform(1.3, 2.0))
    if random.uniform() < 0.45:
        start, lean, breadth = random.uniform(0, place.wide), random.normal(0, 0.5), random.uniform(0.10, 0.35)
        below = np.maximum(rows - place.horizon, 0)
        off = np.abs(columns - start - lean * below) - breadth * (0.05 + below)
        amount = np.maximum(amount, 1 - _smoothstep(off + 0.015 * blades, -0.02, 0.02))
    soil += amount * (bare - soil)
    far = np.clip(1 - (rows - place.horizon) / 0.25, 0, 1)
    soil += 0.25 * far * (sky - soil)

    picture = np.asarray(np.where(rows > place.horizon, soil, sky), np.float32)
    picture = _add_hills(picture, random, place, rows.astype(np.float32), patches + 0.5 * clouds)
    return _add_clutter(picture, random, light, place, 0.6 * blades + 0.4 * clouds)


def _add_hills(picture: Floats, random: np.random.Generator, place: _Place, rows: Floats, texture: Floats) -> Floats:
    """Ridges and tree lines behind the field, hazier the farther they are."""
    for haze in (0.45, 0.1):
        chance, tall, kind = random.uniform(size=3)
        profile = _noise(random, place, (110, 10), 0.75 if kind < 0.5 else 0.5)[0]
        colour = _pick(random, LEAVES)
        if chance < 0.3:
            continue
        ridge = place.horizon - (0.02 + 0.16 * tall) * (1 + 0.45 * profile)[None]
        cover = np.clip((rows - ridge) * place.unit + 0.5, 0, 1) * (rows <= place.horizon + 0.5 / place.unit)
        pale = colour + haze * (np.array([170, 178, 184], np.float32) - colour)
        picture += cover * (_planes(pale) * (1 + 0.16 * texture) - picture)
    return picture


LEAF_GRID = 40
"""Leaves are painted at this many pixels per picture unit, whatever the picture's size, and made ragged afterwards."""


class _Painter:
    """Draws in picture units on a layer of its own, with ``scale`` pixels for each."""

    def __init__(self, place: _Place, scale: float) -> None:
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


def _paint_wall(paint: _Painter, random: np.random.Generator, place: _Place) -> None:
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


def _paint_tree(paint: _Painter, leaves: _Painter, random: np.random.Generator, place: _Place, light: _Light) -> None:
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
    light: _Light,
) -> None:
    """A crown or a bush: discs, the sunny ones last and lightest."""
    spots = random.normal(0, 0.5, (14, 2))
    sun = spots @ light.direction[:2]
    colours = (leaf * (1 + 0.35 * sun[:, None])).astype(np.float32)
    places = (np.asarray(centre) + spots * radius * np.array([1.0, 0.7])).tolist()
    for i in np.argsort(sun).tolist():
        x, y = places[i]
        paint.disc(x, y, radius * 0.42, colours[i])


def _paint_fence(paint: _Painter, random: np.random.Generator, place: _Place) -> None:
    """Posts and rails across the whole picture, between the horizon and the horse."""
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


def _paint_rock(paint: _Painter, random: np.random.Generator, place: _Place) -> None:
    """A boulder, a bale or a mound: a flat-footed lump with a lit cap."""
    x, y = random.uniform(0, place.wide), place.horizon + random.uniform(0.2, 0.95) * (place.floor - place.horizon)
    size = random.uniform(0.05, 0.17)
    colour = _pick(random, STUFF)
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    reach = size * random.uniform(0.75, 1.1, 12)
    ring = np.stack([x + reach * np.cos(turn), np.minimum(y + reach * 0.65 * np.sin(turn), y + 0.2 * size)], 1)
    paint.polygon(ring, colour * 0.8)
    paint.polygon(ring * 0.72 + np.array([x, y - 0.22 * size]) * 0.28, colour * 1.08)


def _add_clutter(picture: Floats, random: np.random.Generator, light: _Light, place: _Place, texture: Floats) -> Floats:
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

    colours, cover = _read_layer(solid.layer.reduce(2))
    picture += cover * (colours * (1 + 0.13 * texture) - picture)
    size = (place.width, place.height)
    colours, cover = _read_layer(leaves.layer.resize(size, Image.Resampling.BILINEAR))
    # Soft discs, cut where noise says so: a ragged edge, as leaves have.
    ragged = _noise(random, place, (240, 240), 0.85)
    cover = _smoothstep(cover + 0.22 * ragged, 0.42, 0.66) * (cover > 0.03)
    picture += cover * (colours * (1 + 0.2 * ragged) - picture)
    return picture
