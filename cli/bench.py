"""The command that measures what things cost on this machine: bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fadeviz import plugins

from .arguments import NAMES, Output
from .installed import InstalledOption
from .messages import print_notes, print_written
from .options import DEVICE

if TYPE_CHECKING:
    from fadeviz.benchmark import Result


@click.command()
@click.option("--quick", is_flag=True,
              help="Small shapes and few rounds: under a minute instead of a quarter of an hour.")  # fmt: skip
@click.option("--part", "parts", multiple=True, metavar="NAME",
              help="machine, reassembly, operators, step, recording or rendering; "
                   "may be repeated.  [default: all]")  # fmt: skip
@click.option("--upsamplers", default="", metavar="NAME,...", cls=InstalledOption, group=plugins.UPSAMPLERS,
              help="Operators to measure; may have options: fade,fade:form=h2l.  [default: all]")  # fmt: skip
@click.option("--threads", type=int, help="CPU threads.  [default: torch's own]")
@DEVICE
@click.option("--precision", "precisions", type=NAMES, default=(), metavar="NAME,...",
              help="fp32, bf16, and on CUDA tf32 and fp16.  [default: fp32; on CUDA several]")  # fmt: skip
@click.option("--compiled", is_flag=True,
              help="Also time torch.compile of the plain form, which takes minutes to compile.")  # fmt: skip
@click.option("--limit", type=float, metavar="SECONDS", help="Start no further table after this time.")
@click.option("-o", "--output", type=Output(),
              help="A JSON file for all results, replaced after every part.")  # fmt: skip
def bench(
    quick: bool,
    parts: tuple[str, ...],
    upsamplers: str,
    threads: int | None,
    device: str,
    precisions: tuple[str, ...],
    compiled: bool,
    limit: float | None,
    output: Path | None,
) -> None:
    """Measure what things cost on this machine.

    That is operators, a training step, recording and drawing.

    Candidates are timed in turn, and times are medians with quartiles. Reassembly is compared with its plain form
    (unfold, repeat, einsum) and with what the machine's memory and arithmetic allow. On CUDA, kernels are timed by
    the device's events, on maps too large for its cache, and training steps in blocks.
    """
    import fadeviz
    from fadeviz.benchmark import describe
    from fadeviz.experiment import choose_device
    from fadeviz.upsamplers import split_upsamplers

    if quick and compiled and choose_device(device).type != "cuda":
        raise click.UsageError("--compiled takes minutes, --quick less than one: choose one")

    def print_table(result: Result) -> None:
        click.echo(describe(result) + "\n")

    measured = fadeviz.run_bench(
        parts, quick=quick, upsamplers=split_upsamplers(upsamplers), threads=threads, device=device,
        precisions=precisions, compiled=compiled, limit=limit, output=output, on_result=print_table,
    )  # fmt: skip
    if measured["unfinished"]:
        print_notes([f"stopped after {limit:g} s: {', '.join(measured['unfinished'])} not finished"])
    if output is not None:
        print_written(output)


__all__ = ["bench"]
