"""The parts of a synthetic horse: the colours of its coat, and its body and hair as outlines around a pose's joints.

Everything here is in *horse units*: x forward, y up, hooves near 0 and withers at 1.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .pose import Pose
from .scene import Colour, Floats, smoothstep

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
class CoatDraw:
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


def draw_coat(random: np.random.Generator) -> CoatDraw:
    """One of :data:`COATS`, tinted, with or without socks and blaze."""
    coat = COATS[str(random.choice(list(COATS)))]
    tint = random.normal(1, 0.015, 3) * random.uniform(0.82, 1.08)
    marked = random.uniform(size=4) < 0.35
    return CoatDraw(
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


# --- curves --------------------------------------------------------------------------------------------------------


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


def _direction(degrees: float) -> Floats:
    """The unit vector at this angle above the x axis."""
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], np.float32)


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
    """How far it stands out towards the viewer, 0 to 255; None to keep that of the layers below."""


class _Hair(NamedTuple):
    """Locks of hair, the faint ones first: Pillow's lines do not blend, so a later lock replaces an earlier."""

    curves: Floats
    """``(locks, points, 2)``."""
    shades: Floats
    """``(locks,)``: 0 is the darkest hair and 255 the lightest."""
    opacities: Floats
    """``(locks,)`` in [0, 255]."""


@dataclass(frozen=True)
class Figure:
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


class _LegShape:
    """The parts of a fore or a hind leg that are the same in every pose.

    Its stations are (bone + share of its length, half-width in front, half-width behind).
    """

    def __init__(self, bones: list[float], stations: list[tuple[float, float, float]]) -> None:
        table = np.array(stations, np.float32)
        at, self.front, self.back = table[:, 0], table[:, 1:2], table[:, 2:]
        self.bones = np.array(bones, np.float32)
        self.bone = at.astype(int)
        self.share = (at - self.bone)[:, None]
        self.fleshy = np.where(at < 1.5, 0.5, 1.0)[:, None]
        """How much of the horse's girth a station shares."""
        self.level = (0.5 * (at[:-1] + at[1:]))[:, None]
        """The middle of the quad below each station, on the scale of the stations."""
        self.dark = smoothstep(self.level, 1.4, 2.2)
        """From the body's colour down to the points'."""
        self.joints = [int(np.searchsorted(at, joint - 0.03)) for joint in (1, 2, 3)]
        """The stations at elbow or stifle, knee or hock, and fetlock."""
        self.elbow = int(np.searchsorted(at, 1.0))
        """The first station of the leg proper."""


FORE_LEG = _LegShape(
    [0.22, 0.265, 0.185, 0.085, 0.05],
    [
        (0.0, 0.09, 0.10), (0.6, 0.10, 0.11), (1.0, 0.075, 0.085), (1.3, 0.066, 0.066), (1.7, 0.042, 0.044),
        (1.98, 0.038, 0.036), (2.06, 0.040, 0.036), (2.25, 0.029, 0.030), (2.75, 0.026, 0.029), (2.98, 0.031, 0.036),
        (3.1, 0.030, 0.034), (3.5, 0.025, 0.027), (3.98, 0.033, 0.030), (4.05, 0.036, 0.033), (4.99, 0.056, 0.042),
    ],
)  # fmt: skip
HIND_LEG = _LegShape(
    [0.25, 0.28, 0.245, 0.085, 0.05],
    [
        (0.0, 0.12, 0.13), (0.5, 0.13, 0.15), (0.98, 0.11, 0.13), (1.04, 0.09, 0.125), (1.4, 0.066, 0.085),
        (1.75, 0.042, 0.046), (1.98, 0.042, 0.044), (2.06, 0.042, 0.050), (2.25, 0.034, 0.036), (2.75, 0.029, 0.031),
        (2.98, 0.032, 0.038), (3.1, 0.031, 0.035), (3.5, 0.026, 0.028), (3.98, 0.033, 0.030), (4.05, 0.036, 0.033),
        (4.99, 0.056, 0.042),
    ],
)  # fmt: skip


def _build_leg(leg: int, pose: Pose, coat: CoatDraw, root: Floats) -> list[_Fill]:
    """One leg from its uppermost joint: quads between stations, and discs where bones meet."""
    shape, far = HIND_LEG if leg % 2 else FORE_LEG, leg >= 2
    angle = np.radians(pose.legs[leg])
    along = np.stack([np.sin(angle), -np.cos(angle)], 1)
    bones = along * (shape.bones * pose.leg_length)[:, None]
    joints = np.concatenate([root[None], root + np.cumsum(bones, 0)]).astype(np.float32)

    middle = joints[shape.bone] * (1 - shape.share) + joints[shape.bone + 1] * shape.share
    across = np.stack([-along[:, 1], along[:, 0]], 1)[shape.bone]
    girth = 1 + (pose.girth - 1) * shape.fleshy
    front = (middle + across * shape.front * girth).astype(np.float32)
    back = (middle - across * shape.back * girth).astype(np.float32)
    quads = np.stack([front[:-1], front[1:], back[1:], back[:-1]], 1)

    colours = _leg_colours(shape, coat, float(coat.socks[leg])) * np.float32(FAR if far else 1.0)
    fills = [_Fill(np.concatenate([front, back[::-1]]), colours[0], None if far else 235)]
    for bone, station in enumerate(shape.joints, 1):
        ahead, behind = shape.front[station], shape.back[station]
        radius = 0.5 * float(ahead[0] + behind[0])
        centre = joints[bone] + across[station] * 0.5 * (ahead - behind)
        fills.append(_Fill(_oval(centre, along[bone], radius, radius, 10), colours[station], None))
    # A sharply folded leg's outline crosses itself and leaves holes: below the elbow its quads are filled one by one.
    return fills + [_Fill(quads[i], colours[i], None) for i in range(shape.elbow, len(quads))]


def _leg_colours(shape: _LegShape, coat: CoatDraw, sock: float) -> Floats:
    """Colour of each quad: the body's down to the knee, then the points', white below the sock's edge."""
    colours = coat.body * (1 - shape.dark) + coat.points * shape.dark
    colours = np.where(shape.level > sock, coat.white, colours)
    return np.asarray(np.where(shape.level > 4.0, coat.hoof, colours), np.float32)


def _pitched(points: Floats, pose: Pose) -> Floats:
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


def _build_front(pose: Pose) -> _Front:
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


def _head_fills(front: _Front, coat: CoatDraw) -> list[_Fill]:
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
"""Width of a lock of hair at its root, in horse units."""


def _locks(roots: Floats, mid: Floats, tips: Floats, shades: ArrayLike, opacities: ArrayLike) -> _Hair:
    """Curved locks from their roots by way of ``mid`` to their tips."""
    curves = _bezier(roots, roots * 0.4 + mid * 0.6, mid * 0.6 + tips * 0.4, tips, 7)
    shade, opacity = np.asarray(shades, np.float32), np.asarray(opacities, np.float32)
    order = np.argsort(opacity, kind="stable")
    return _Hair(curves[order], shade[order], opacity[order])


def _build_mane(front: _Front, pose: Pose, random: np.random.Generator) -> list[_Hair]:
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


def _build_tail(pose: Pose, random: np.random.Generator) -> _Hair:
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


def build_figure(pose: Pose, coat: CoatDraw, random: np.random.Generator) -> Figure:
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
    blade = _oval(_pitched(SHOULDER, pose), _direction(115), 0.18, 0.09)
    barrel = _oval(_pitched(np.array([0.0, 0.71], np.float32), pose), _direction(pose.pitch), 0.26, 0.14)
    fills += [_Fill(part, coat.body, level) for part, level in ((barrel, 175), (haunch, 205), (blade, 195))]
    fills += _head_fills(front, coat)
    fills += _build_leg(1, pose, coat, hip) + _build_leg(0, pose, coat, shoulder)

    outlines = np.concatenate([fill.points for fill in fills])
    ground = np.array([0, outlines[:, 1].min() - pose.lift], np.float32)
    turn = np.array([pose.facing * pose.squeeze, 1], np.float32)
    hair = [_build_tail(pose, random), *_build_mane(front, pose, random)]
    return Figure(
        fills=fills,
        outlines=(outlines - ground) * turn,
        hair=[locks._replace(curves=(locks.curves - ground) * turn) for locks in hair],
    )
