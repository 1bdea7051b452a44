"""Many runs of one recipe: operators times seeds, a folder each, several processes, and only what is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .errors import FadevizError, unknown_name
from .experiment import (
    LABELS,
    Progress,
    RunConfig,
    config_from,
    differing_settings,
    run,
    settings_of,
)
from .models import build_network
from .snapshots import Run, only_writer, open_run, write_whole
from .upsamplers import parse_upsampler

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the manifest; a newer one is refused, not misread."""

CONTROLS = tuple(name for name in LABELS if name != "true")
"""What may follow an operator after an ``@``: the labels it is trained on."""

_OWN = ("upsampler", "labels", "seed")
"""The settings in which the runs of a sweep differ."""

_TELL_EVERY = 0.5
"""Seconds between two words of a worker."""

_GRACE = 20.0
"""Seconds a worker has to end its step and its files before it is killed."""

_MAX_SEEDS = 10_000


class Member(NamedTuple):
    """One run of a sweep: ``operator`` is an upsampler with its options and perhaps a control: ``fade@shuffled``."""

    operator: str
    seed: int

    @property
    def name(self) -> str:
        """What the run and its folder are called: ``fade-gate=off-shuffled-seed0``."""
        return f"{re.sub(r'[^A-Za-z0-9_.=+-]', '-', self.operator)}-seed{self.seed}"


@dataclass(frozen=True)
class SweepPlan:
    """Which runs there shall be. Made by :func:`plan_sweep` or :func:`read_plan`.

    Attributes:
        base: what all runs share; its upsampler, labels and seed stand for nothing.
        members: the runs, in the order in which they are begun.
    """

    base: RunConfig
    members: tuple[Member, ...]

    def config(self, member: Member) -> RunConfig:
        """The settings of one run."""
        upsampler, _, control = member.operator.partition("@")
        return dataclasses.replace(self.base, upsampler=upsampler, labels=control or "true", seed=member.seed)


class SweepProgress(NamedTuple):
    """What :func:`run_sweep` reports: a run was found finished, goes on, or came to its end."""

    name: str
    status: str
    """``found`` (finished by an earlier sweep), ``running``, ``finished`` or ``failed``."""
    step: int
    steps: int
    loss: float
    """NaN where no step was done now."""
    metrics: Mapping[str, float]
    """The latest test's figures; empty before the first."""
    message: str
    """Why it failed."""
    ended: int
    """Runs that came to an end so far."""
    runs: int
    """Runs of the plan."""


class Outcome(NamedTuple):
    """How one run of a sweep stands; ``status`` is ``finished`` or ``failed``, and ``message`` says why."""

    member: Member
    folder: Path
    status: str
    message: str
    result: Mapping[str, float]


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds: ``"0:5"`` is 0, 1, 2, 3, 4, and ``"0,3,7"`` these three; parts can be joined by commas.

    As in Python, and unlike in a schedule of steps, the second number of a range does not belong to it: ``0:N`` is N
    seeds.

    Raises:
        FadevizError: something that is no number, an empty range, too many.

    Example:
        >>> parse_seeds("0:3,7")
        (0, 1, 2, 7)
    """
    seeds: dict[int, None] = {}
    grammar = "Write seeds as N or FIRST:STOP (0:5 is 0,1,2,3,4), joined by commas"
    for part in text.split(","):
        fields = [field.strip() for field in part.split(":")]
        if len(fields) > 2 or not all(f.isascii() and f.isdigit() and len(f) <= 18 for f in fields):
            raise FadevizError(f"seeds {text!r}: {part!r} is no seed. {grammar}")
        first, stop = int(fields[0]), int(fields[-1]) + (len(fields) == 1)
        if stop <= first:
            raise FadevizError(f"seeds {text!r}: {part!r} names none: STOP is left out. {grammar}")
        if stop - first + len(seeds) > _MAX_SEEDS:
            raise FadevizError(f"seeds {text!r}: these are more than {_MAX_SEEDS}. Name fewer")
        seeds.update(dict.fromkeys(range(first, stop)))
    return tuple(seeds)


def plan_sweep(operators: Iterable[str], seeds: Iterable[int], base: RunConfig) -> SweepPlan:
    """Every operator with every seed, seed by seed, so that a sweep that is half done already compares.

    Args:
        operators: names in ``UPSAMPLERS``, with options and a control if need be: ``"fade:gate=off@shuffled"``.
        seeds: of weights, data order and shuffled labels.
        base: what all runs share.

    Raises:
        FadevizError: no operator or no seed; an operator, option or control that there is not.
    """
    names = list(dict.fromkeys(_canonical(text, base) for text in operators))
    numbers = list(dict.fromkeys(seeds))
    if not names:
        raise FadevizError("a sweep needs operators. Name some: --upsamplers fade,carafe")
    if not numbers:
        raise FadevizError("a sweep needs seeds. Name some: --seeds 0:5")
    return SweepPlan(base, tuple(Member(name, seed) for seed in numbers for name in names))


def _canonical(text: str, base: RunConfig) -> str:
    """An operator in the one spelling its folder is named after: options sorted, no blanks; checked by building it."""
    upsampler, at, control = (part.strip() for part in text.partition("@"))
    if at and control not in CONTROLS:
        raise unknown_name(f"control (after the @ of {text!r})", control, CONTROLS)
    name, options = parse_upsampler(upsampler)
    with torch.device("meta"):
        build_network(base.network, upsampler, width=base.width)
    pairs = [part.partition("=") for part in upsampler.partition(":")[2].split(",")] if options else []
    spelled = {key.strip(): value.strip() for key, _, value in pairs}  # the last counts, as in parse_upsampler
    return name + ":" * bool(spelled) + ",".join(f"{key}={spelled[key]}" for key in sorted(spelled)) + at + control


def read_plan(out: str | Path) -> SweepPlan | None:
    """The plan of the sweep in the folder ``out``; None where there is none.

    Raises:
        FadevizError: its manifest is damaged, or of a newer version.
    """
    manifest = _read_manifest(Path(out) / MANIFEST)
    return None if manifest is None else manifest.plan


def run_sweep(
    plan: SweepPlan,
    out: str | Path,
    *,
    jobs: int = 1,
    report: Callable[[SweepProgress], None] | None = None,
) -> list[Outcome]:
    """Train what is missing of the plan, each run in a process and a folder of its own.

    A run that is finished is left alone, one that stopped is resumed, one that failed is tried again. What fails stops
    no other run, were it that its process is killed. ``manifest.json`` lists all runs the folder has seen: a sweep can
    be extended by operators and seeds at any time.

    Processes are spawned: a script that calls this needs ``if __name__ == "__main__":`` around it.

    Args:
        plan: the runs.
        out: the sweep's folder; each run's is in it.
        jobs: processes at a time. They share the cores; on a CPU the last bits of a result depend on the threads, and
            so on ``jobs``.
        report: called when a run goes on or ends, from this process.

    Returns:
        How each run of the plan stands, in its order.

    Raises:
        FadevizError: a folder that is in use or holds something else, or runs with other settings; then nothing was
            trained.
        KeyboardInterrupt: Ctrl-C, after all processes have stopped; what they recorded is resumed next time.
    """
    out = Path(out)
    if jobs < 1:
        raise FadevizError(f"jobs is {jobs}; it must be 1 or more")
    if out.exists() and not out.is_dir():
        raise FadevizError(f"{out} is a file. Choose another --out")
    if (out / "run.json").exists():
        raise FadevizError(f"{out} is the folder of one run. Choose another --out")
    with only_writer(out):
        return _Sweep(plan, out, jobs, report).run()


@dataclass
class _Manifest:
    """What manifest.json holds: the shared settings, and each run by its name with how it stands."""

    path: Path
    base: RunConfig
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def plan(self) -> SweepPlan:
        return SweepPlan(self.base, tuple(Member(entry["operator"], entry["seed"]) for entry in self.runs.values()))

    def enter(self, member: Member, config: RunConfig) -> None:
        """Add a run, unless it is there."""
        settings = {name: value for name, value in settings_of(config).items() if name in _OWN}
        entry = {"folder": member.name, "operator": member.operator, "seed": member.seed, "settings": settings}
        self.runs.setdefault(member.name, {**entry, "status": "planned"})

    def set(self, member: Member, status: str, **more: object) -> None:
        """Note how a run stands, and write the file."""
        entry = self.runs[member.name]
        kept = {key: entry[key] for key in ("folder", "operator", "seed", "settings")}
        self.runs[member.name] = {**kept, "status": status, **{key: value for key, value in more.items() if value}}
        self.write()

    def write(self) -> None:
        """Replace the file."""
        settings = {name: value for name, value in settings_of(self.base).items() if name not in _OWN}
        runs = [{"name": name, **entry} for name, entry in self.runs.items()]
        text = json.dumps({"format": FORMAT, "settings": settings, "runs": runs}, indent=2, ensure_ascii=False)
        write_whole(self.path, (text + "\n").encode())


def _read_manifest(path: Path) -> _Manifest | None:
    remedy = "Delete it: the runs are kept, and the same command finds them again"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        version, runs, settings = int(told["format"]), list(told["runs"]), dict(told["settings"])
        entries = {str(entry.pop("name")): {**entry, "seed": int(entry["seed"])} for entry in runs}
        for entry in entries.values():
            entry["operator"].partition("@")  # text
            dict(entry["settings"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FadevizError(f"{path} is damaged ({type(error).__name__}: {error}). {remedy}") from error
    if version > FORMAT:
        raise FadevizError(
            f"{path} has format {version}, this fadeviz reads up to {FORMAT}. Upgrade: pip install -U fadeviz"
        )
    return _Manifest(path, config_from(settings, str(path), remedy), entries)


class _Sweep:
    """One call of :func:`run_sweep`: the manifest, what waits, and the processes at work."""

    def __init__(self, plan: SweepPlan, out: Path, jobs: int, report: Callable[[SweepProgress], None] | None) -> None:
        self.plan, self.out, self.jobs, self.report = plan, out, jobs, report
        self.outcomes: dict[Member, Outcome] = {}
        self.workers: dict[Connection, _Worker] = {}
        self.context = multiprocessing.get_context("spawn")

    def run(self) -> list[Outcome]:
        """Look at what is there, then train the rest."""
        self.manifest = self._agreed_manifest()
        found = {member: self._finished(member) for member in self.plan.members}
        self.manifest.write()  # not before every folder has been found to fit
        for member, before in found.items():
            if before is not None:
                self._ended(member, "found", before.info.get("result", {}), "")
        waiting = [member for member, before in found.items() if before is None][::-1]
        try:
            while waiting or self.workers:
                while waiting and len(self.workers) < self.jobs:
                    self._start(waiting.pop())
                for pipe in wait(list(self.workers)):
                    self._hear(self.workers[pipe])  # type: ignore[index]
        finally:
            self._stop()
        return [self.outcomes[member] for member in self.plan.members]

    def _agreed_manifest(self) -> _Manifest:
        path = self.out / MANIFEST
        manifest = _read_manifest(path)
        if manifest is not None:
            same = {name: getattr(self.plan.base, name) for name in _OWN}
            differs = differing_settings({**settings_of(manifest.base), **same}, self.plan.base)
            if differs:
                raise FadevizError(
                    f"{self.out} holds a sweep with other settings: {differs}. "
                    "Leave these options out to go on with it, or choose another --out"
                )
        manifest = _Manifest(path, self.plan.base, {} if manifest is None else manifest.runs)
        for member in self.plan.members:
            manifest.enter(member, self.plan.config(member))
        return manifest

    def _finished(self, member: Member) -> Run | None:
        """The run, if it is done."""
        folder = self.out / member.name
        if not (folder / "run.json").exists():
            return None
        try:
            before = open_run(folder)
        except FadevizError:
            return None  # damaged: its worker says so, and the others go on
        differs = differing_settings(before.info.get("config", {}), self.plan.config(member))
        if differs:
            raise FadevizError(
                f"{folder} was recorded with other settings: {differs}. "
                "Use the same settings, move that folder away, or choose another --out"
            )
        return before if before.info.get("status") == "finished" else None

    def _start(self, member: Member) -> None:
        ours, theirs = self.context.Pipe(duplex=False)
        threads = max(1, _cores() // self.jobs)
        arguments = (self.plan.config(member), self.out / member.name, threads, theirs)
        process = self.context.Process(target=_work, args=arguments, name=member.name, daemon=True)
        self.workers[ours] = _Worker(member, process, ours)
        with _deaf_to_ctrl_c():
            process.start()
        theirs.close()  # the worker's end alone is open now: when it dies, ours says so
        self.manifest.set(member, "running")

    def _hear(self, worker: _Worker) -> None:
        try:
            said = worker.pipe.recv()
        except (EOFError, OSError):
            self._conclude(worker)
            return
        if isinstance(said, _End):
            worker.end = said
            return
        worker.progress = Progress(*said)
        self._tell(worker.member, "running", worker.progress, "")

    def _conclude(self, worker: _Worker) -> None:
        """A worker is gone: with a last word, or without."""
        worker.process.join()
        del self.workers[worker.pipe]
        worker.pipe.close()
        end = worker.end or _End("failed", _death(worker.process.exitcode), {}, "")
        if end.status == "interrupted":  # by a signal to itself alone
            end = end._replace(status="failed", message="its process was told to stop")
        self._ended(worker.member, end.status, end.result, end.message, worker.progress, end.traceback)

    def _ended(
        self,
        member: Member,
        status: str,
        result: Mapping[str, float],
        message: str,
        progress: Progress | None = None,
        where: str = "",
    ) -> None:
        how = "finished" if status == "found" else status
        self.outcomes[member] = Outcome(member, self.out / member.name, how, message, result)
        self.manifest.set(member, how, message=message, result=dict(result), traceback=where)
        steps = self.plan.base.steps
        step = steps if how == "finished" else progress.step if progress else 0
        loss = progress.loss if progress else math.nan
        self._tell(member, status, Progress(step, steps, loss, result), message)

    def _tell(self, member: Member, status: str, progress: Progress, message: str) -> None:
        if self.report is not None:
            ended, runs = len(self.outcomes), len(self.plan.members)
            step, steps, loss, metrics = progress
            self.report(SweepProgress(member.name, status, step, steps, loss, metrics, message, ended, runs))

    def _stop(self) -> None:
        """End the workers that are left: after Ctrl-C, or an error of the sweep itself."""
        for worker in self.workers.values():
            if worker.process.pid is not None:
                worker.process.terminate()
        deadline = time.monotonic() + _GRACE
        for worker in self.workers.values():
            if worker.process.pid is not None:
                worker.process.join(max(0.0, deadline - time.monotonic()))
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()
            with contextlib.suppress(FadevizError):  # the disk may be the trouble itself; the first error says so
                self.manifest.set(worker.member, "interrupted")
        self.workers.clear()


@dataclass
class _Worker:
    member: Member
    process: SpawnProcess
    pipe: Connection
    progress: Progress | None = None
    end: _End | None = None


class _End(NamedTuple):
    """A worker's last word."""

    status: str
    message: str
    result: Mapping[str, float]
    traceback: str


def _work(config: RunConfig, folder: Path, threads: int, pipe: Connection) -> None:
    """What a worker process does: one run, with a word now and then, and one at the end."""
    told = -math.inf
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    def tell(progress: Progress) -> None:
        nonlocal told
        # Here and not in the handler: what is raised amid a step can be lost in a callback, and the run would go on.
        if stopping:
            raise KeyboardInterrupt
        now = time.monotonic()
        if now - told >= _TELL_EVERY:
            told = now
            _say(pipe, tuple(progress))

    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, stop)
        torch.set_num_threads(min(torch.get_num_threads(), threads))
        resume = (folder / "run.json").exists()
        if not resume:
            _clear_unbegun(folder)
        finished = run(config, folder, resume=resume, report=tell)
        end = _End("finished", "", finished.info.get("result", {}), "")
    except KeyboardInterrupt:
        end = _End("interrupted", "", {}, "")
    except FadevizError as error:
        end = _End("failed", str(error), {}, "")
    except Exception as error:  # a mistake of ours, or of torch: the other runs go on
        first = (str(error).splitlines() or [""])[0]
        end = _End("failed", f"{type(error).__name__}: {first}", {}, traceback.format_exc())
    with contextlib.suppress(KeyboardInterrupt):
        _say(pipe, end)


def _say(pipe: Connection, what: object) -> None:
    try:
        pipe.send(what)
    except OSError as error:  # the sweep is gone: stop as if it had said so
        raise KeyboardInterrupt from error


def _clear_unbegun(folder: Path) -> None:
    """Remove what a run leaves that was killed before it wrote its first file; anything else stays, and is refused."""
    for left_over in [*folder.glob(".*.partial*"), *folder.glob("snapshots")]:
        with contextlib.suppress(OSError):
            left_over.rmdir() if left_over.is_dir() else left_over.unlink()


def _death(code: int | None) -> str:
    """How a process ended that said nothing."""
    if code is None or code >= 0:
        return f"its process ended with exit code {code}, without a word"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = ". The system does so when memory runs out: use fewer --jobs, or a smaller --batch-size or --size"
    return f"its process was killed by {name}{memory if name == 'SIGKILL' else ''}"


def _cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """A process started here ignores Ctrl-C from its first instant: a terminal sends it to all, the sweep decides."""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


__all__ = [
    "CONTROLS",
    "MANIFEST",
    "Member",
    "Outcome",
    "SweepPlan",
    "SweepProgress",
    "parse_seeds",
    "plan_sweep",
    "read_plan",
    "run_sweep",
]
