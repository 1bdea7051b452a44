"""All that can be checked and measured in some minutes on a machine with a GPU and no network: ``make gpu``.

    python scripts/gpu_check.py [--out DIR] [--stages machine,tests:200] [--minutes 9]

It runs from the checkout with the Python that is there; nothing is installed or downloaded. Every stage is a process
with a limit of its own, so that one that fails or hangs stops no other. Left in DIR: ``gpu_check.json`` (every number),
``gpu_check.txt`` (the table, also printed last) and ``gpu_check.log`` (what the stages printed). The exit code is 1
where a check failed or a stage did not end well.

    machine    versions, the device, and its ceilings: copies, matrix products, launches
    operators  every operator in three precisions and two memory layouts against float64 on the CPU, with gradients
    peer       mmcv's CARAFE operator is built
    prepare    the kernels that are measured next are compiled, by all cores
    kernels    reassembly at the paper's shape and at SegNet's, against other forms and the bytes that must move
    steps      a training step of SegNet: milliseconds, memory, launches, and how much of it the GPU is busy
    together   how many steps a second several processes take on one GPU
    record     ``fadeviz record``: where the seconds go
    tests      the tests that need a GPU
    training   the lines that synchronise in a training step; which operators resume to the same bits; observing
    memory     compute-sanitizer over the Triton kernels
    compile, bench, tune    only when asked for: a compiled step, ``fadeviz bench``, the kernels' block sizes anew

The stages are in ``gpu_stages``. ``--device cpu --small`` rehearses them anywhere. ``scripts/gpu_data.py`` fills
``.gpu`` with a data set, weights and the sources of mmcv's operator; what is not there is left out, or done with
synthetic images.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BEGUN = time.monotonic()  # before torch, whose import counts towards a stage's limit
for _folder in (str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)

import torch  # noqa: E402
from gpu_stages.commands import only_kernels, stage_bench, stage_memory, stage_record, stage_tune  # noqa: E402
from gpu_stages.kernels import stage_kernels, stage_peer, stage_prepare  # noqa: E402
from gpu_stages.machine import stage_machine  # noqa: E402
from gpu_stages.operators import stage_operators  # noqa: E402
from gpu_stages.setting import ROOT, Row, Rows, Setting, read_rows  # noqa: E402
from gpu_stages.steps import stage_compile, stage_steps, stage_together  # noqa: E402
from gpu_stages.tables import table  # noqa: E402
from gpu_stages.tests import stage_tests  # noqa: E402
from gpu_stages.training import stage_training  # noqa: E402


@dataclass(frozen=True)
class Stage:
    """What runs in a process of its own."""

    number: int
    title: str
    function: Callable[[Setting, Rows], None]
    limit: float
    """Seconds."""
    processes: int = 0


STAGES = {
    "machine": Stage(0, "machine", stage_machine, 45),
    "tests": Stage(1, "tests on the GPU", stage_tests, 110),
    "operators": Stage(2, "operators against float64", stage_operators, 90, processes=13),
    "training": Stage(3, "training", stage_training, 90, processes=8),
    "prepare": Stage(4, "kernels are compiled", stage_prepare, 70, processes=13),
    "peer": Stage(4, "mmcv's operator is built", stage_peer, 90),
    "kernels": Stage(4, "kernels", stage_kernels, 70),
    "steps": Stage(5, "training steps", stage_steps, 80),
    "together": Stage(5, "several processes on one GPU", stage_together, 50),
    "compile": Stage(5, "the training step is compiled", stage_compile, 110),
    "record": Stage(6, "fadeviz record", stage_record, 45),
    "bench": Stage(6, "fadeviz bench", stage_bench, 85),
    "memory": Stage(7, "memcheck", stage_memory, 90),
    "tune": Stage(8, "the kernels are tuned", stage_tune, 110),
}

ROUNDS = "machine,operators+peer,prepare,kernels,steps,together,record,tests,training+memory"
"""What ``make gpu`` runs. What is compiled by one is found in Triton's cache by those that follow."""


def parse_rounds(text: str) -> list[list[tuple[str, float]]]:
    """The stages of each round with their limits: ``machine,operators+peer:60`` is two rounds, the second of two."""
    rounds = []
    for part in text.split(","):
        together = []
        for one in part.split("+"):
            name, _, seconds = one.strip().partition(":")
            name = next((key for key, stage in STAGES.items() if name == str(stage.number)), name)
            if name not in STAGES:
                raise SystemExit(f"no stage {name!r}. There are: {', '.join(STAGES)}")
            together.append((name, float(seconds or STAGES[name].limit)))
        rounds.append(together)
    return rounds


@dataclass
class Running:
    """A stage at work."""

    name: str
    process: subprocess.Popen[bytes]
    started: float
    limit: float
    ended: float = 0.0
    status: str = ""


def main() -> None:
    """Run the stages, leave the results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ["OUT"]) if os.environ.get("OUT") else ROOT / "outputs" / "gpu"
    parser.add_argument("--out", type=Path, default=default, help="default: $OUT, or outputs/gpu")
    parser.add_argument(
        "--stages", default=ROUNDS, metavar="NAME[:SECONDS],...",
        help=f"in this order, those joined by + side by side, each with its limit; default: {ROUNDS}; also: "
        f"{', '.join(name for name in STAGES if name not in ROUNDS)}",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of them together; default: 9")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to rehearse")
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # what a stage's own process is called with
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=1e6, help=argparse.SUPPRESS)
    parser.add_argument("--only-kernels", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    seconds = options.seconds - (time.monotonic() - BEGUN)
    setting = Setting(options.device, options.small, options.work, seconds=seconds)
    if options.only_kernels:
        only_kernels(setting)
    elif options.stage:
        stage = STAGES[options.stage]
        setting = dataclasses.replace(setting, processes=0 if options.small else stage.processes)
        stage.function(setting, Rows(Path(options.work) / f"{options.stage}.jsonl"))
    else:
        sys.exit(run_all(options))


def run_all(options: argparse.Namespace) -> int:
    """Every chosen stage, each in its process."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here. To rehearse: gpu_check.py --device cpu --small")
    deadline = time.monotonic() + 60 * options.minutes
    rounds = parse_rounds(options.stages)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "gpu_check.log"
    log.unlink(missing_ok=True)
    results: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        environment = stage_environment(Path(work))
        for together in rounds:
            for done in run_round(together, options, Path(work), environment, deadline):
                rows = read_rows(Path(work) / f"{done.name}.jsonl")
                results[done.name] = {
                    "status": done.status, "seconds": round(done.ended - done.started, 1), "rows": rows,
                }  # fmt: skip
                keep_log(Path(work) / f"{done.name}.log", log, done.name)
                (options.out / "gpu_check.json").write_text(json.dumps(results, indent=1))
                (options.out / "gpu_check.txt").write_text(summary(results) + "\n")
                print(f"[{done.name}] {done.status} after {done.ended - done.started:.0f} s", flush=True)
    print("\n" + summary(results), flush=True)
    return 0 if all_well(results) else 1


def stage_environment(work: Path) -> dict[str, str]:
    """For a stage's process: the package and its command line from the checkout, few threads, own caches."""
    (work / "site").mkdir()
    (work / "site" / "fadeviz_cli").symlink_to(ROOT / "cli")  # as it is installed: no module called cli
    paths = [str(work / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "4", "PYTHONUNBUFFERED": "1",
        "FADEVIZ_PEER": str(work / "peer"), **os.environ, "PYTHONPATH": os.pathsep.join(paths),
    }  # fmt: skip


def run_round(
    together: Sequence[tuple[str, float]],
    options: argparse.Namespace,
    work: Path,
    environment: dict[str, str],
    deadline: float,
) -> Iterator[Running]:
    """Run stages side by side, and give each when it has ended, was stopped, or found no time."""
    at_work: list[Running] = []
    for name, limit in together:
        started = time.monotonic()
        limit = min(limit, deadline - started)
        if deadline - started < (1 if options.small else 8):
            yield Running(name, None, started, 0, started, "no time left")  # type: ignore[arg-type]
            continue
        command = stage_command(name, options, work, limit)
        with (work / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
            )
        at_work.append(Running(name, process, started, limit))
    try:
        while at_work:
            time.sleep(0.1)
            for one in list(at_work):
                now = time.monotonic()
                code = one.process.poll()
                if code is None and now - one.started < one.limit:
                    continue
                one.ended = now
                one.status = (
                    "ok" if code == 0 else f"stopped at {one.limit:.0f} s" if code is None else f"exit code {code}"
                )
                stop(one.process)
                at_work.remove(one)
                yield one
    finally:
        for one in at_work:
            stop(one.process)


def stage_command(name: str, options: argparse.Namespace, work: Path, limit: float) -> list[str]:
    """This script once more, for one stage."""
    command = [sys.executable, __file__, "--stage", name, "--work", str(work), "--seconds", str(limit)]
    return [*command, "--device", options.device, *["--small"] * options.small]


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a stage with all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def keep_log(source: Path, log: Path, name: str, limit: int = 1 << 20) -> None:
    """Add the end of a stage's log to the one that is kept."""
    with contextlib.suppress(FileNotFoundError), log.open("ab") as file:
        text = source.read_bytes()
        file.write(f"\n===== {name}\n".encode() + text[-limit:])


def summary(results: dict[str, Row]) -> str:
    """The table of all results."""
    return table(results, {name: stage.title for name, stage in STAGES.items()})


def all_well(results: dict[str, Row]) -> bool:
    """Whether every stage ended well and every check held."""
    return all(one["status"] == "ok" and all(row.get("ok", True) for row in one["rows"]) for one in results.values())


if __name__ == "__main__":
    main()
