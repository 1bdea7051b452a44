"""What a benchmark measures, at which shapes, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Shape(NamedTuple):
    """The low-resolution map ``(batch, channels, side, side)`` that is doubled."""

    batch: int
    channels: int
    side: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.channels}x{self.side}x{self.side}"


class StepCase(NamedTuple):
    """A training step of SegNet, with all operators or with :data:`REFERENCES` alone: the wide network is slow."""

    width: float
    size: int
    batch: int = 4
    every: bool = False

    def __str__(self) -> str:
        return f"SegNet, width {self.width:g}, {self.size}x{self.size}, batch {self.batch}"


REFERENCES = ("bilinear", "carafe", "fade")
"""Operators of a step where none are asked for and not all are meant; ratios refer to the first."""

SEGNET = tuple(Shape(4, channels, side) for channels, side in ((512, 7), (512, 14), (256, 28), (128, 56), (64, 112)))
SEGFORMER = tuple(Shape(2, 256, side) for side in (16, 32, 64))


@dataclass(frozen=True)
class Plan:
    """What is measured and for how long.

    Attributes:
        reassembly, operators: shapes of the maps.
        steps: training steps.
        rounds: how often each candidate has its turn; one that has used ``budget`` seconds leaves after three.
        turn: seconds of a turn, in which a fast candidate is called several times.
        copy_bytes, matmul_side: of the bounds in the part ``machine``.
        frames: of the figure and the animation in the part ``rendering``.
    """

    reassembly: tuple[Shape, ...] = SEGNET + SEGFORMER
    operators: tuple[Shape, ...] = SEGNET + SEGFORMER
    steps: tuple[StepCase, ...] = (StepCase(0.25, 128, every=True), StepCase(1.0, 224))
    rounds: int = 7
    turn: float = 0.05
    budget: float = 3.0
    copy_bytes: int = 512 << 20
    matmul_side: int = 2048
    frames: int = 35


FULL = Plan()
QUICK = Plan(
    reassembly=(SEGNET[0], SEGFORMER[0]),
    operators=(SEGFORMER[0],),
    steps=(StepCase(0.25, 128),),
    rounds=3,
    turn=0.02,
    budget=0.5,
    matmul_side=1024,
)
"""The small shapes and few rounds, for a look; the large maps behave otherwise."""
