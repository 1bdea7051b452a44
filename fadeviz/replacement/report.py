"""What was replaced in a model, and what was left and why; printed as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ReplacedUpsampler:
    """An operator in a model, and what it took the place of.

    Attributes:
        layer: the operator's name in the model.
        was: what it replaced: the class of a module, or ``interpolate`` for a call.
        operator: the operator's name, with its options.
        factor: the number by which it multiplies both sides of a map.
        in_channels: channels of the replaced input.
        out_channels: channels of the output.
        parameters: the number of parameters that were added, those of a 1x1 convolution included.
        removed: the number of parameters of what it replaced.
        guide: the layer whose output it reads; empty if it reads none.
        notes: what else there is to know, e.g. that a 1x1 convolution follows.
    """

    layer: str
    was: str
    operator: str
    factor: int
    in_channels: int
    out_channels: int
    parameters: int
    removed: int
    guide: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeftUpsampler:
    """Something that upsamples and was not replaced.

    Attributes:
        layer: its name in the model.
        was: the class of the module, or ``interpolate`` for a call.
        reason: why it was left.
    """

    layer: str
    was: str
    reason: str


@dataclass(frozen=True, repr=False)
class Replacement:
    """The report of :func:`fadeviz.replace_upsamplers`; printing it gives a table.

    Attributes:
        replaced: a row for each operator, in the network's order.
        left: a row for each upsampler that was left.
    """

    replaced: tuple[ReplacedUpsampler, ...]
    left: tuple[LeftUpsampler, ...]

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Both lists as JSON-serialisable dictionaries."""
        return {"replaced": [asdict(row) for row in self.replaced], "left": [asdict(row) for row in self.left]}

    def __str__(self) -> str:
        rows = [("replaced", "was", "operator", "factor", "channels", "parameters", "before", "")]
        for row in self.replaced:
            same = row.in_channels == row.out_channels
            channels = f"{row.in_channels}" if same else f"{row.in_channels} -> {row.out_channels}"
            notes = [f"guide {row.guide}"] * bool(row.guide) + list(row.notes)
            counts = f"{row.factor}", channels, f"{row.parameters:,}", f"{row.removed:,}"
            rows.append((row.layer, row.was, row.operator, *counts, "; ".join(notes)))
        lines = _aligned(rows, right=(3, 4, 5, 6))
        if self.left:
            lines += ["", *_aligned([("left", "was", "because it"), *((r.layer, r.was, r.reason) for r in self.left)])]
        return "\n".join(lines)

    __repr__ = __str__


def _aligned(rows: Sequence[tuple[str, ...]], right: Sequence[int] = ()) -> list[str]:
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, wide, strict=True))
        ).rstrip()
        for row in rows
    ]


__all__ = ["LeftUpsampler", "ReplacedUpsampler", "Replacement"]
