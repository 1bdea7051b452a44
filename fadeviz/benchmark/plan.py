"""The plan of a benchmark: shapes, training steps, rounds and times."""

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
    """A training step of SegNet, with all operators (``every``) or with :data:`REFERENCES` only."""

    width: float
    size: int
    batch: int = 4
    every: bool = False
    precision: str = "fp32"

    def __str__(self) -> str:
        precision = "" if self.precision == "fp32" else f", {self.precision}"
        return f"SegNet, width {self.width:g}, {self.size}x{self.size}, batch {self.batch}{precision}"


REFERENCES = ("bilinear", "carafe", "fade")
"""The operators of a step that is not measured with all of them; ratios refer to the first."""

SEGNET = tuple(Shape(4, channels, side) for channels, side in SegNet.sites)
SEGFORMER = tuple(Shape(2, 256, side) for side in (16, 32, 64))
MATTING = tuple(Shape(2, channels, side) for channels, side in MattingNet.sites)
LARGE = Shape(16, 256, 64)
"""Large enough for a GPU to be busy: SegFormer's last maps of 16 images."""

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
"""float32; float32 with TensorFloat-32 for products; and autocast, or maps, in half precision."""


@dataclass(frozen=True)
class Plan:
    """The measurements, and their duration.

    Attributes:
        reassembly: shapes of the maps in the part ``reassembly``.
        operators: shapes of the maps in the part ``operators``.
        steps: the training steps.
        rounds: the number of turns of each candidate; after three, one that has used ``budget`` seconds takes no more.
        turn: seconds per turn, in which a fast candidate is called several times.
        budget: seconds per candidate.
        copy_bytes: the size of the copy in the part ``machine``, in bytes.
        matmul_side: the side of the matrices in the part ``machine``.
        precisions: the precisions of reassembly and the operators.
        fused: whether to measure softmax, reassembly and FADE's gate together too, which are one kernel on a GPU.
        operator_layouts: names in ``LAYOUTS`` for the operators; their plain forms have contiguous maps.
        frames: the number of frames of the figure and the animation in the part ``rendering``.
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
        """The plan at other precisions. TensorFloat-32 applies to matrix products, so not to reassembly."""
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
"""Small shapes and few rounds, for a quick impression; large maps behave differently."""

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
"""Plans for a CUDA device, where small maps are bound by launches: all networks' sites, and one large map."""
