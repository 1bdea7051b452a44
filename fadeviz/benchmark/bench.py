"""The benchmark as one call: what operators, a training step, recording and drawing cost on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..experiment import choose_device
from . import measure
from .parts import Result
from .plan import FULL, FULL_CUDA, QUICK, QUICK_CUDA


def run_bench(
    parts: Sequence[str] = (),
    *,
    quick: bool = False,
    upsamplers: Sequence[str] = (),
    threads: int | None = None,
    device: str = "auto",
    precisions: Sequence[str] = (),
    compiled: bool = False,
    limit: float | None = None,
    output: str | os.PathLike[str] | None = None,
    on_result: Callable[[Result], None] | None = None,
) -> dict[str, Any]:
    """Measure what operators, a training step, recording and drawing cost on this machine.

    Args:
        parts: names in ``PARTS``: machine, reassembly, operators, step, recording, rendering; all if empty.
        quick: small shapes and few rounds: under a minute instead of a quarter of an hour.
        upsamplers: operators to measure, with options if need be; all if empty.
        threads: CPU threads; None for torch's own number.
        device: ``auto``, ``cpu`` or ``cuda``.
        precisions: fp32, bf16, and on CUDA tf32 and fp16; if empty, fp32, on CUDA several.
        compiled: also time torch.compile of the plain form, which takes minutes to compile.
        limit: seconds after which no other table is begun.
        output: a JSON file for all results, replaced after every part.
        on_result: called with every table as it is finished; ``fadeviz.benchmark.describe`` turns it into text.

    Returns:
        What the JSON file holds: ``environment``, ``plan``, the tables of each part under ``parts``; ``unfinished``
        names the parts that the limit cut short.

    Raises:
        FadevizError: if a name is unknown, a number invalid, there is no such device, or the file cannot be written.
    """
    chosen = choose_device(device)
    full, small = (FULL_CUDA, QUICK_CUDA) if chosen.type == "cuda" else (FULL, QUICK)
    return measure(
        parts,
        upsamplers=upsamplers,
        plan=small if quick else full,
        precisions=precisions,
        limit=limit,
        device=chosen,
        threads=threads,
        compiled=compiled,
        output=None if output is None else Path(output),
        on_result=on_result,
    )


__all__ = ["run_bench"]
