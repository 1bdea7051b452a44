"""What a benchmark measures, at which shapes, and for how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..models import MattingNet, SegNet


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
    precision: str = "fp32"

    def __str__(self) -> str:
        precision = "" if self.precision == "fp32" else f", {self.precision}"
        return f"SegNet, width {self.width:g}, {self.size}x{self.size}, batch {self.batch}{precision}"


REFERENCES = ("bilinear", "carafe", "fade")
"""Operators of a step where none are asked for and not all are meant; ratios refer to the first."""

SEGNET = tuple(Shape(4, channels, side) for channels, side in SegNet.sites)
SEGFORMER = tuple(Shape(2, 256, side) for side in (16, 32, 64))
MATTING = tuple(Shape(2, channels, side) for channels, side in MattingNet.sites)
LARGE = Shape(16, 256, 64)
"""Large enough for a GPU to be busy: SegFormer's last maps of 16 images."""

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
"""float32; float32 whose products TensorFloat-32 may take; and autocast, or maps, of half precision."""


@dataclass(frozen=True)
class Plan:
    """What is measured and for how long.

    Attributes:
        reassembly, operators: shapes of the maps.
        steps: training steps.
        rounds: how often each candidate has its turn; one that has used ``budget`` seconds leaves after three.
        turn: seconds of a turn, in which a fast candidate is called several times.
        copy_bytes, matmul_side: of the bounds in the part ``machine``.
        precisions: of reassembly and the operators.
        fused: measure softmax, reassembly and FADE's gate together too, which are one kernel on a GPU.
        operator_layouts: names in ``LAYOUTS`` that operators are measured in; their plain forms have contiguous maps.
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
    precisions: tuple[str, ...] = ("fp32",)
    fused: bool = False
    operator_layouts: tuple[str, ...] = ("channels-last",)

    def at(self, precisions: Sequence[str]) -> Plan:
        """The same plan at other precisions; TensorFloat-32 is for what multiplies matrices, so not for reassembly."""
        steps = dict.fromkeys(step._replace(precision=p) for step in self.steps for p in precisions)
        return dataclasses.replace(self, precisions=tuple(p for p in precisions if p != "tf32"), steps=tuple(steps))


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

FULL_CUDA = Plan(
    reassembly=(LARGE, *SEGNET, *SEGFORMER, *MATTING),
    operators=(LARGE, *SEGNET, *SEGFORMER, *MATTING),
    steps=(
        *(StepCase(1.0, 224, 4, every=True, precision=p) for p in ("fp32", "tf32", "bf16")),
        *(StepCase(1.0, 224, 16, precision=p) for p in ("fp32", "tf32", "bf16")),
    ),
    rounds=5,
    turn=0.02,
    matmul_side=4096,
    precisions=("fp32", "bf16", "fp16"),
    fused=True,
    operator_layouts=("channels-last", "contiguous"),
)
QUICK_CUDA = dataclasses.replace(
    FULL_CUDA,
    reassembly=(LARGE,),
    operators=(LARGE,),
    steps=tuple(StepCase(1.0, 224, 4, precision=p) for p in ("fp32", "bf16")),
    rounds=3,
    budget=0.5,
    precisions=("fp32", "fp16"),
    operator_layouts=("channels-last",),
)
"""The same on a CUDA device, where the small maps are bound by launches: all networks' sites, and one large map."""
