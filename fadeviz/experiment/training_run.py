"""Training: one run from its settings to its folder."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import FadevizError
from ..ops.arithmetic import same_algorithms, tf32
from ..run import Run, open_run
from ..storage.snapshots import check_folder
from ..storage.stored_run import StoredRun, lost_snapshots
from ..storage.writer import RunWriter
from ..training.batches import batches
from ..training.distributed import Processes, local_world_size, process_group, wrap_ddp
from ..training.loop import compile_forward, fit, keep_freed_memory
from ..training.signals import Interrupted, StopSignals, stop_signals
from .config import RunConfig, differing_settings
from .parts import build_parts, choose_device, count_workers, usable_cores
from .session import Session


class Progress(NamedTuple):
    """The report of ``train`` after each step."""

    step: int
    steps: int
    loss: float
    metrics: Mapping[str, float]
    """The metrics of the latest test; empty before the first."""


def train(
    config: RunConfig,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Run:
    """Train a network and record its maps into the folder ``out``.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP stop the run after the current step, with its test, its observation and a
    checkpoint; ``resume`` continues with the next step. A second SIGINT, at least two seconds later, stops it
    immediately. While it lasts, the run replaces the handlers of these signals; ignored signals stay ignored. Python
    delivers signals to the main thread only.

    Args:
        config: the settings.
        out: the run's folder.
        resume: continue an interrupted run from its last checkpoint. The result is bit-identical to an uninterrupted
            run on a CPU, and on a GPU unless an operator uses atomic additions in its backward pass: bilinear and
            bicubic interpolation, the sampling of DySample and LDA-AQU, and SegFormer's head do. ``deterministic``
            replaces those for which torch has another algorithm, and torch warns about the others.
        overwrite: replace an existing run.
        on_progress: called after every step. Raising ``KeyboardInterrupt`` in it stops the run, as a signal does.
        on_note: called with notes on the run, one line at a time.

    Returns:
        The finished run, open for reading.

    Raises:
        FadevizError: if a setting is invalid, the folder is in use or the loss is not finite. What was recorded is
            kept.
        Interrupted: if a signal or ``on_progress`` stopped the run. It is a ``KeyboardInterrupt`` that says after which
            step, and where ``resume`` continues. Also if the signal came after the last step, when the run is finished.
    """
    out = Path(out)
    keep_freed_memory()
    device = choose_device(config.device)
    with process_group(device) as processes:
        if not processes.is_rank_zero:
            on_note = None
        with processes.all_or_raise():  # all look at the folder before the first process changes anything in it
            before = _find_earlier(config, out, resume, overwrite)
        if before is not None and before.info.status == "finished":
            _note_lost_snapshots(before, on_note)
            return open_run(out)
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(stop_signals())
            writer = None
            with processes.all_or_raise():
                if processes.is_rank_zero:
                    writer = stack.enter_context(RunWriter(out))
            notes = stack.enter_context(_torch_state(config, device, before))
            session = _prepare(config, out, device, processes, writer, notes, before, on_note)
            if on_note is not None:
                for note in session.notes:
                    on_note(note)
            _run(session, stop, resume, overwrite, on_progress)
        if stop.number:  # after the last step, or while the last files were written
            raise Interrupted(stop.number, config.steps, config.steps, config.steps)
        finished = open_run(out)
        _note_lost_snapshots(finished, on_note)
    return finished


def _find_earlier(config: RunConfig, out: Path, resume: bool, overwrite: bool) -> StoredRun | None:
    """The run to resume, if any; raises if the folder does not allow it."""
    check_folder(out, resume=resume, overwrite=overwrite)
    if not resume:
        return None
    before = StoredRun(out)
    differs = differing_settings(before.info.config, config)
    if differs:
        raise FadevizError(f"{out} was recorded with other settings: {differs}. Use overwrite=True")
    return before


def _note_lost_snapshots(run: StoredRun, on_note: Callable[[str], None] | None) -> None:
    """Note the maps that were lost before the checkpoint of a resumed run: resuming does not restore them."""
    lost = lost_snapshots(run)
    if lost and on_note is not None:
        on_note(f"{run.path}: {lost}")


@contextlib.contextmanager
def _torch_state(config: RunConfig, device: torch.device, before: StoredRun | None) -> Iterator[list[str]]:
    """Torch's algorithms, random state and threads as the run needs them, then as they were; gives notes."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(same_algorithms(config.deterministic))
        stack.enter_context(tf32(config.tf32))
        # The run has its own random state, from its seed; the caller's is left alone. A checkpoint includes it.
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.default_generator.manual_seed(config.seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(config.seed)
        if config.compile not in ("off", "graph"):
            stack.callback(torch.compiler.reset)  # its limit on how often a function is compiled counts all runs
        remedy = "Use a smaller batch_size=..., observe=..., size=... or width=..."
        stack.enter_context(out_of_memory_in_words(remedy))
        yield stack.enter_context(earlier_threads(before))


@contextlib.contextmanager
def earlier_threads(before: StoredRun | None) -> Iterator[list[str]]:
    """Use as many threads as the run was started with, at most one a core; then restore the caller's number.

    The sums of a convolution depend on how many threads share them. Gives notes.
    """
    own, notes = torch.get_num_threads(), []
    try:
        stored = None if before is None else before.info.threads
        if stored is not None:
            cores = max(1, usable_cores() // local_world_size())
            torch.set_num_threads(min(stored, cores))
            if stored > cores:
                notes.append(
                    f"the run was started with {stored} threads and continues with {cores}, the number of cores: "
                    "results may differ in the last digits"
                )
        yield notes
    finally:
        torch.set_num_threads(own)


@contextlib.contextmanager
def out_of_memory_in_words(remedy: str) -> Iterator[None]:
    """Replace the error of exhausted memory by one line.

    Args:
        remedy: the advice at its end.

    Raises:
        FadevizError: if there is no memory left.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Torch's own class is a RuntimeError; on a CPU it raises a plain one.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise FadevizError(f"out of memory. {remedy}") from error


def _prepare(
    config: RunConfig,
    out: Path,
    device: torch.device,
    processes: Processes,
    writer: RunWriter | None,
    notes: list[str],
    before: StoredRun | None,
    on_note: Callable[[str], None] | None,
) -> Session:
    """Build the parts and observe the untrained model, without writing anything."""
    with processes.all_or_raise():
        session = Session(build_parts(config, device, processes, on_note), out, writer, notes, before)
        if before is None:
            session.observe_untrained()
    return session


def _run(
    session: Session, stop: StopSignals, resume: bool, overwrite: bool, on_progress: Callable[[Progress], None] | None
) -> None:
    """Take the remaining steps, and write into run.json how that ended."""
    processes, steps = session.parts.processes, session.parts.config.steps
    stop.hold()  # from here on there is something to lose
    try:
        with processes.lost_rank_errors():
            with processes.all_or_raise():
                first_step = (session.resume() if resume else session.begin(overwrite)) + 1
            _take_steps(session, first_step, stop, on_progress)
        session.checkpoints.wait()
        session.end("finished")
    except Interrupted:
        raise  # already recorded in run.json
    except BaseException as error:
        # A full disk, a loss that is not finite, a second Ctrl-C: write it into run.json, then raise again.
        immediately = isinstance(error, KeyboardInterrupt)
        with contextlib.suppress(FadevizError):  # the disk may be the cause, which the first error names
            session.checkpoints.wait()
        with contextlib.suppress(FadevizError):
            session.end("interrupted" if immediately else "failed", str(error))
        if immediately:
            number = stop.number or signal.SIGINT
            raise Interrupted(number, session.last_step, steps, session.checkpoints.saved_step) from error
        raise
    finally:
        session.close()
    processes.all_gather(None)  # from here on, any process that opens the run finds it finished


def _take_steps(
    session: Session, first_step: int, stop: StopSignals, on_progress: Callable[[Progress], None] | None
) -> None:
    """Train from ``first_step`` to the last, or until a stop is requested between two steps.

    Raises:
        Interrupted: if a stop was requested; the checkpoint is written.
    """
    parts = session.parts
    config, processes, task = parts.config, parts.processes, parts.task
    data = batches(
        parts.splits.train,
        range(first_step, config.steps + 1),
        config.batch_size,
        config.seed,
        flip=config.flip,
        workers=count_workers(config, parts.device),
        prefetch=2 if parts.device.type == "cuda" else 0,
        device=parts.device,
        processes=processes,
        collate=task.collate,
    )
    if processes.all_reduce_max(stop.number):
        session.interrupt(stop.number)
    model, forward = wrap_ddp(parts.model, processes), None
    full = min(config.batch_size, parts.splits.train.count or config.batch_size)
    if config.compile not in ("off", "graph"):
        forward = compile_forward(model, config.compile, full)
    for result in fit(
        model, data, task.loss, parts.optimizer, parts.lr_at,
        first_step=first_step, precision=config.precision, scaler=parts.scaler,  # type: ignore[arg-type]
        processes=processes, loss_weight=task.loss_weight, forward=forward,
        graph=full if config.compile == "graph" else 0,
    ):  # fmt: skip
        session.on_step_end(result)
        if on_progress is not None and not stop.number:
            try:
                on_progress(Progress(result.step, config.steps, result.loss, session.metrics))
            except KeyboardInterrupt:
                stop.note(signal.SIGINT)
        number = processes.all_reduce_max(stop.number)  # all ranks stop after the same step, whichever got the signal
        if number and result.step < config.steps:
            session.interrupt(number)
