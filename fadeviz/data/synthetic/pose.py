"""The pose of a synthetic horse: its gait, the angles of its legs at one moment, neck, head and build."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scene import Floats

GAITS = ("stand", "walk", "trot", "gallop", "graze", "rear")


@dataclass(frozen=True)
class Pose:
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
    """Foreshortening along x: below 1 the horse stands at an angle to the viewer."""
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


def draw_pose(random: np.random.Generator) -> Pose:
    """A gait, and where neck, head and legs are in it."""
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
    return Pose(
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
