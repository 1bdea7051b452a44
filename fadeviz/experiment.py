"""One run from its settings to its folder: the one place that knows all the parts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from .data import Dataset, Sample, Splits
from .data.observation import choose_observed, find_object
from .data.pool import Pool
from .data.sets import DataOptions, all_data, find_data
from .data.shuffled import ShuffledLabels
from .errors import FadevizError, unknown_name
from .models import Network, build_network, find_network, parse_network
from .ops.arithmetic import same_algorithms, tf32
from .ops.reassemble import choose_backend
from .recording.probe import MODES, Probe
from .run import Run, open_run
from .storage.files import only_writer
from .storage.info import ObservationInfo, RunInfo, StoredConfig, StoredData
from .storage.schedule import Schedule, log_spaced, parse_schedule
from .storage.snapshots import Snapshot, SnapshotStore, check_folder, layer_sizes, remove_run
from .storage.stored_run import StoredRun, lost_snapshots
from .training.batches import batches, draw_pool
from .training.checkpoint import CheckpointWriter, read_checkpoint, write_checkpoint
from .training.distributed import ALONE, Processes, check_share, local_rank, local_world_size, process_group, wrap_ddp
from .training.loop import COMPILE, PRECISIONS, StepResult, compile_forward, fit, keep_freed_memory
from .training.settings import check_counts, check_lr_drops, check_model, check_range, plain
from .training.signals import Interrupted, StopSignals, stop_signals
from .training.tasks import TASKS
from .upsamplers import find_upsampler, parse_upsampler

PAPER_SCHEDULE = "100:3000:100,320:360:10"
"""The 35 iterations of the FADE supplement's figures."""

LABELS = ("true", "shuffled")
DEVICES = ("auto", "cpu", "cuda")

CHECKPOINT_SECONDS = 300.0
"""Seconds after which a new checkpoint is written, regardless of ``checkpoint_every``."""

CHECKPOINT_PAUSE = 60.0
"""Seconds between two checkpoints of a run on a GPU, even if more are due."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run does; the defaults are the paper's recipe. Stored in run.json.

    Attributes:
        upsampler: a name in ``UPSAMPLERS``, with options: ``"pixel_shuffle:icnr=true"``.
        network: a name in ``NETWORKS``, with options: ``"segformer:backbone=b1"``. It decides the task.
        data: a name in ``DATA`` of that task; ``data_dir`` is its folder, if it has one.
        subset: train on so many images of a large set, drawn by ``split_seed``, and test on as large a share of its
            test images; 0 takes all.
        size: side of the square images in pixels, divisible by the network's stride.
        steps: optimiser steps.
        snapshots: schedule; empty takes the paper's where the run is long enough, else 24 steps evenly spaced in the
            logarithm.
        width: multiplier of the network's channels.
        lr: learning rate; None takes that of the network's recipe. It is multiplied by 0.1 at each share of the run
            in ``lr_drops`` (empty takes the network's: SegNet's are epochs 35 and 45 of 50; ``(1.0,)`` is never), but
            SegFormer's rises and falls.
        weight_decay: None takes the network's.
        seed: of the initial weights and of the data order.
        split_seed: of the train/test split and the observed images; apart from ``seed`` so that every seed is
            observed on the same images.
        labels: ``true``; or ``shuffled``, where every training image gets the mask of another one, for a control that
            has nothing to learn but where objects usually are. Tests and observations keep the true masks.
        weights: ``none``, ``imagenet``, or a file or folder that the network's ``load_encoder`` takes.
        layers: what to record; empty takes the network's operators.
        kinds: comma-separated, or ``all``; empty takes feature, gradient and what the operator has of gate and
            kernel_entropy.
        observe: images in the observation set.
        evaluate_every: steps between tests; 0 takes a tenth of the run. The last step is always tested.
        checkpoint_every: steps between checkpoints. There is one every five minutes too, and one where a run is
            stopped. On a GPU they are written while the training goes on, after the first at most one a minute.
        tf32: allow TF32 in the convolutions and matrix products of a fp32 training: faster on NVIDIA GPUs since Ampere,
            with 10 bits of mantissa in place of 23. Tests and observations never use it; no effect on a CPU.
        deterministic: use deterministic algorithms wherever torch has them, see :func:`run`.
        compile: ``graph`` replays the training's forward and backward pass, of full batches, as one CUDA graph: the
            same kernels without the time to launch them, which is most of a step where batches are small. ``on``
            compiles them by ``torch.compile``; ``reduce-overhead`` also replays what it compiled. Tests and
            observations are computed as they are.
        pool: train on so many images of a set that never ends, drawn before the training by all cores and kept in
            memory, in shuffled epochs; 0 draws new ones at every step.
        workers: processes that read or draw training images. None chooses: none on a CPU, or where the images are
            in memory; else up to 8, but one less than there are cores. The result is the same for any number.
    """

    upsampler: str = "fade"
    network: str = "segnet"
    data: str = "synthetic"
    data_dir: str = ""
    size: int = 224
    steps: int = 3500
    snapshots: str = ""
    width: float = 1.0
    batch_size: int = 4
    lr: float | None = None
    lr_drops: tuple[float, ...] = ()
    momentum: float = 0.9
    weight_decay: float | None = None
    flip: bool = False
    seed: int = 0
    split_seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    channels_last: bool = True
    weights: str = "none"
    layers: str = ""
    kinds: str = ""
    observe: int = 4
    observe_mode: str = "eval"
    channel_images: int = 1
    evaluate_every: int = 0
    checkpoint_every: int = 250
    labels: str = "true"
    subset: int = 0
    tf32: bool = False
    deterministic: bool = False
    compile: str = "off"
    pool: int = 0
    workers: int | None = None

    def __post_init__(self) -> None:
        """Fill in what the network decides.

        Raises:
            FadevizError: an invalid setting; the message names it and says what is valid. Whether a data folder or a
                file of weights exists is checked when it is read, since a stored run's may have moved.
        """
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(field.name, getattr(self, field.name), field.default))
        network = parse_network(self.network)[0]
        found = find_network(network)
        recipe = found.recipe
        for name, value in (
            ("lr", recipe.lr),
            ("weight_decay", recipe.weight_decay),
            ("lr_drops", recipe.lr_drops),
            ("layers", found.layers),
        ):
            if getattr(self, name) in (None, "", ()):
                object.__setattr__(self, name, value)
        counts = ("steps", "size", "batch_size", "observe", "checkpoint_every", "channel_images")
        check_counts({name: getattr(self, name) for name in counts}, 1)
        check_counts({name: getattr(self, name) for name in ("evaluate_every", "subset", "pool")}, 0)
        if self.workers is not None:
            if not isinstance(self.workers, int):
                raise FadevizError(f"workers is {self.workers}; it must be a whole number")
            check_counts({"workers": self.workers}, 0)
        for name in ("seed", "split_seed"):
            if not 0 <= getattr(self, name) < 2**63:
                raise FadevizError(f"{name} is {getattr(self, name)}; it must be from 0 to 2^63 - 1")
        self._check_choices()
        self._check_data(network)
        self._check_training(network)
        self.schedule()  # a schedule that does not fit is reported before anything is built
        check_model(self.network, self.upsampler, self.width, self.layers, self.kinds)

    def _check_choices(self) -> None:
        for what, name, known in (
            ("kind of labels", self.labels, LABELS),
            ("device", self.device, DEVICES),
            ("precision", self.precision, tuple(PRECISIONS)),
            ("observation mode", self.observe_mode, MODES),
            ("compile mode", self.compile, COMPILE),
        ):
            if name not in known:
                raise unknown_name(what, name, known)

    def _check_data(self, network: str) -> None:
        task = find_network(network).task
        data = find_data(task, self.data)
        if self.labels == "shuffled" and not TASKS[task].has_classes:
            raise FadevizError("shuffled labels are for masks; mattes belong to their images. Use labels true")
        if self.flip and data.mirrors:
            raise FadevizError(f"data {self.data} mirrors half of its training images already. Leave out --flip")
        if data.needs_folder and not self.data_dir:
            raise FadevizError(
                f"data {self.data} needs its folder: --data-dir DIR. Check it with: fadeviz data check DIR"
            )
        if self.data_dir and not data.needs_folder:
            fitting = " or ".join(f"--data {name}" for name, one in all_data(task).items() if one.needs_folder)
            raise FadevizError(f"data {self.data} has no folder, but --data-dir is {self.data_dir}. Add {fitting}")
        if self.pool and data.in_memory:
            raise FadevizError(f"pool is {self.pool}, but data {self.data} is in memory as it is. Leave out --pool")
        if self.subset and not data.subsets:
            raise FadevizError(
                f"subset is {self.subset} of data {self.data}: this set is used whole. Leave out --subset"
            )

    def _check_training(self, network: str) -> None:
        least = find_network(network).least_batch
        if self.batch_size < least:
            raise FadevizError(f"batch_size is {self.batch_size}; {network} needs {least} or more for BatchNorm")
        if self.observe < least and self.observe_mode == "batch":
            raise FadevizError(
                f"observe is {self.observe}; {network} in mode batch needs {least} or more for BatchNorm"
            )
        assert self.lr is not None
        assert self.weight_decay is not None
        check_range("lr", self.lr, 0, open_end="low")
        check_range("weight_decay", self.weight_decay, 0)
        check_range("momentum", self.momentum, 0, 1, open_end="high")
        check_lr_drops(self.lr_drops)
        stride = find_network(network).stride
        if self.size % stride:
            near = max(stride, round(self.size / stride) * stride)
            raise FadevizError(f"size is {self.size}; it must be divisible by {stride}. Nearest: {near}")

    def schedule(self) -> Schedule:
        """The steps to record."""
        if self.snapshots:
            return parse_schedule(self.snapshots, self.steps)
        if self.steps >= 3000:
            return parse_schedule(PAPER_SCHEDULE, self.steps)
        return log_spaced(1, self.steps, 24) if self.steps > 1 else parse_schedule("0:1")


class Progress(NamedTuple):
    """What ``run`` reports after each step."""

    step: int
    steps: int
    loss: float
    metrics: Mapping[str, float]
    """The latest test's figures; empty before the first."""


def load_data(config: RunConfig) -> Splits:
    """The images of a run, split into train and test. A pool is drawn when it is used, or by ``draw_pool``."""
    options = DataOptions(config.data_dir, config.size, config.seed, config.split_seed, config.subset)
    task = find_network(parse_network(config.network)[0]).task
    splits = find_data(task, config.data).load(options)
    if config.pool:
        pool = Pool(splits.train, config.pool, mattes=not TASKS[task].has_classes)
        splits = dataclasses.replace(splits, train=pool, info={**splits.info, "pool": config.pool})
    if config.labels == "shuffled":
        return dataclasses.replace(splits, train=ShuffledLabels(splits.train, config.seed))
    return splits


def choose_device(name: str) -> torch.device:
    """``auto`` takes the GPU where there is one.

    Raises:
        FadevizError: no such device, or no GPU here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    if name == "cuda" and not torch.cuda.is_available():
        raise FadevizError("no CUDA device here (torch.cuda.is_available() is False). Use --device cpu")
    if name == "cpu":
        return torch.device(name)
    if local_rank() >= torch.cuda.device_count():
        raise FadevizError(
            f"{local_rank() + 1} processes, but {torch.cuda.device_count()} GPUs here. Start one process for each GPU"
        )
    torch.cuda.set_device(local_rank())  # what a process does not name goes to its own GPU
    return torch.device(name)


def build_model(config: RunConfig, classes: int = 2) -> tuple[Network, str]:
    """The network with its initial weights, a function of the settings alone, and what to call the weights."""
    with torch.random.fork_rng([]):  # weights are drawn on the CPU; no GPU is asked for its random state
        torch.default_generator.manual_seed(config.seed)
        model = build_network(config.network, config.upsampler, classes=classes, width=config.width)
    if config.weights == "none":
        return model, "none"
    name = model.load_encoder(config.weights)
    digest = hashlib.sha256()
    for key, value in sorted(model.encoder.state_dict().items()):
        digest.update(key.encode() + value.numpy().tobytes())
    return model, f"{name} ({digest.hexdigest()[:12]})"


def train(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Run:
    """Train a network and record its maps into the folder ``out``.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP stop the run after the current step, with its test, its observation and a
    checkpoint; ``resume`` continues with the next step. A second SIGINT, at least two seconds later, stops it
    immediately. The run replaces the handlers of these signals while it lasts; ignored signals stay ignored. Python
    delivers signals to the main thread only.

    Args:
        config: the settings.
        out: the run's folder.
        resume: continue an interrupted run from its last checkpoint. Bit-identical to an uninterrupted run on a CPU; on
            a GPU where no operator sums by atomic additions in its backward pass, as bilinear and bicubic
            interpolation, the sampling of DySample and LDA-AQU, and SegFormer's head do. ``deterministic`` replaces
            those for which torch has another algorithm, and torch warns of the others.
        overwrite: replace an existing run.
        on_progress: called after every step. Raising ``KeyboardInterrupt`` in it stops the run as a signal does.
        on_note: called with notes on the run, one line at a time.

    Returns:
        The finished run, open for reading.

    Raises:
        FadevizError: bad settings, a folder that is in use, a loss that is not finite. What was recorded is kept.
        Interrupted: a signal, or ``on_progress``, stopped the run: a ``KeyboardInterrupt`` that says at which step, and
            where ``resume`` continues. Also raised if the signal came after the last step, when the run is finished.
    """
    out = Path(out)
    keep_freed_memory()
    device = choose_device(config.device)
    with process_group(device) as processes:
        with processes.all_or_raise():  # before the first process changes anything, all have seen that there is work
            before = _before(config, out, resume, overwrite)
        if before is not None and before.info.status == "finished":
            _tell_lost(before, on_note if processes.is_rank_zero else None)
            return open_run(out)
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(stop_signals())
            with processes.all_or_raise():
                if processes.is_rank_zero:
                    stack.enter_context(only_writer(out))
            stack.enter_context(same_algorithms(config.deterministic))
            stack.enter_context(tf32(config.tf32))
            # The training's random numbers are the seed's, and the caller's are left alone. A checkpoint keeps them.
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            torch.default_generator.manual_seed(config.seed)
            if device.type == "cuda":
                torch.cuda.manual_seed(config.seed)
            if config.compile not in ("off", "graph"):
                stack.callback(torch.compiler.reset)  # its limit on how often a function is compiled counts all runs
            stack.enter_context(out_of_memory_in_words("Use a smaller --batch-size, --observe, --size or --width"))
            notes = stack.enter_context(_threads_as_before(before))
            work = _prepare(config, out, device, processes, resume, notes, on_note if processes.is_rank_zero else None)
            if on_note is not None and processes.is_rank_zero:
                for text in work.notes:
                    on_note(text)
            _train(work, stop, resume, overwrite, on_progress)
        if stop.number:  # after the last step, or while the last files were written
            raise Interrupted(stop.number, config.steps, config.steps, config.steps)
        finished = open_run(out)
        _tell_lost(finished, on_note if processes.is_rank_zero else None)
    return finished


def _tell_lost(finished: StoredRun, on_note: Callable[[str], None] | None) -> None:
    """Say which maps were lost before the checkpoint that the run went on from: going on does not bring them back."""
    lost = lost_snapshots(finished)
    if lost and on_note is not None:
        on_note(f"{finished.path}: {lost}")


def _before(config: RunConfig, out: Path, resume: bool, overwrite: bool) -> StoredRun | None:
    """The run to go on with, if there is one to go on with; raises where ``out`` does not allow what is asked for."""
    check_folder(out, resume=resume, overwrite=overwrite)
    if not resume:
        return None
    before = open_run(out)
    differs = differing_settings(before.info.config, config)
    if differs:
        raise FadevizError(f"{out} was recorded with other settings: {differs}. Use --overwrite")
    return before


def _prepare(
    config: RunConfig,
    out: Path,
    device: torch.device,
    processes: Processes,
    resume: bool,
    notes: list[str],
    on_note: Callable[[str], None] | None,
) -> _Work:
    """Build the parts and observe the untrained model, without writing anything."""
    with processes.all_or_raise():
        splits = load_data(config)
        check_share(splits.train.count, config.batch_size, processes)
        if config.compile == "graph" and device.type != "cuda":
            raise FadevizError("compile=graph is for a CUDA device. Use compile=off on a CPU")
        if processes.world_size > 1 and config.compile != "off":
            raise FadevizError(f"compile={config.compile} is for one process. Use compile=off with several")
        _draw_ahead(splits.train, config, on_note)
        with processes.rank_zero_first():  # it may download weights
            model, weights = build_model(config, splits.classes)
        work = _Work(config, out, splits, model, weights, device, processes, notes)
        if not resume:
            work.untrained = work.look(0)  # errors in observing are raised here, before an old run is removed
    return work


def _draw_ahead(train: Dataset, config: RunConfig, on_note: Callable[[str], None] | None) -> None:
    """Draw the pool, if there is one, by all cores, and say how far it is every few seconds."""
    pool = train.dataset if isinstance(train, ShuffledLabels) else train
    if not isinstance(pool, Pool):
        return
    cores = usable_cores() // local_world_size()
    # Starting processes takes as long as drawing some hundred images.
    workers = config.workers if config.workers is not None else cores if cores > 1 and pool.count > 200 else 0
    said = time.monotonic()

    def report(drawn: int) -> None:
        nonlocal said
        if on_note is not None and (drawn == pool.count or time.monotonic() - said >= 5):
            said = time.monotonic()
            on_note(f"pool: {drawn} of {pool.count} images drawn")

    draw_pool(pool, workers, report)


def count_workers(config: RunConfig, device: torch.device) -> int:
    """The worker processes of a run: those asked for, or what suits its device and its data."""
    if config.workers is not None:
        return config.workers
    task = find_network(parse_network(config.network)[0]).task
    if device.type == "cpu" or config.pool or find_data(task, config.data).in_memory:
        return 0
    return min(8, max(1, usable_cores() // local_world_size() - 1))


def _train(
    work: _Work,
    stop: StopSignals,
    resume: bool,
    overwrite: bool,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Take the remaining steps, and record in run.json how that ended."""
    processes = work.processes
    stop.hold()  # from here on there is something to lose
    try:
        with processes.lost_rank_errors():
            with processes.all_or_raise():
                first_step = (work.go_on() if resume else work.begin(overwrite)) + 1
            _take_steps(work, first_step, stop, on_progress)
        work.wait_saved()
        work.end("finished")
    except Interrupted:
        raise  # run.json says so already
    except BaseException as error:
        # A full disk, a loss that is not finite, a second Ctrl-C: say so in run.json, then re-raise.
        insisted = isinstance(error, KeyboardInterrupt)
        with contextlib.suppress(FadevizError):  # the disk may be the cause, which the first error says
            work.wait_saved()
        with contextlib.suppress(FadevizError):
            work.end("interrupted" if insisted else "failed", str(error))
        if insisted:
            number = stop.number or signal.SIGINT
            raise Interrupted(number, work.last_step, work.config.steps, work.saved_step) from error
        raise
    finally:
        work.close()
    processes.all_gather(None)  # from here on, any process that opens the run finds it finished


def _take_steps(
    work: _Work, first_step: int, stop: StopSignals, on_progress: Callable[[Progress], None] | None
) -> None:
    """Train from ``first_step`` to the last, or until a stop is requested between two steps.

    Raises:
        Interrupted: it was; the checkpoint is written.
    """
    config, processes = work.config, work.processes
    data = batches(
        work.splits.train,
        range(first_step, config.steps + 1),
        config.batch_size,
        config.seed,
        flip=config.flip,
        workers=count_workers(config, work.device),
        prefetch=2 if work.device.type == "cuda" else 0,
        device=work.device,
        processes=processes,
        collate=work.task.collate,
    )
    if processes.all_reduce_max(stop.number):
        work.interrupt(stop.number)
    model, forward = wrap_ddp(work.model, processes), None
    full = min(config.batch_size, work.splits.train.count or config.batch_size)
    if config.compile not in ("off", "graph"):
        forward = compile_forward(model, config.compile, full)
    for result in fit(
        model, data, work.task.loss, work.optimizer, work.lr_at,
        first_step=first_step, precision=config.precision, scaler=work.scaler,  # type: ignore[arg-type]
        processes=processes, loss_weight=work.task.loss_weight, forward=forward,
        graph=full if config.compile == "graph" else 0,
    ):  # fmt: skip
        work.after(result)
        if on_progress is not None and not stop.number:
            try:
                on_progress(Progress(result.step, config.steps, result.loss, work.metrics))
            except KeyboardInterrupt:
                stop.note(signal.SIGINT)
        number = processes.all_reduce_max(stop.number)  # all ranks stop after the same step, whichever got the signal
        if number and result.step < config.steps:
            work.interrupt(number)


class _Work:
    """What happens around the training steps of one run: observing, testing, saving, and keeping run.json true."""

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        splits: Splits,
        model: Network,
        weights: str,
        device: torch.device,
        processes: Processes = ALONE,
        notes: Sequence[str] = (),
    ) -> None:
        """Put the parts together; nothing is written before :meth:`begin` or :meth:`go_on`."""
        self.config, self.out, self.splits, self.device, self.processes = config, out, splits, device, processes
        self.run_id = _run_id(config, splits, weights, device)
        self.model = model
        self.task = TASKS[model.task]
        self.probe = Probe(model, config.layers, config.kinds or None, config.channel_images)
        self.schedule = config.schedule()
        self.evaluate_every = config.evaluate_every or max(1, config.steps // 10)
        observed = choose_observed(splits.test, config.observe, config.split_seed, classes=splits.classes)
        crop = find_data(model.task, config.data).observation_crop
        self.samples = [crop(splits.test[i], config.size) for i in observed]
        self.inputs, self.targets = (tensor.to(device) for tensor in self.task.collate(self.samples))
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.to(device)
        assert config.lr is not None
        assert config.weight_decay is not None
        recipe = model.recipe
        self.optimizer = recipe.optimizer(model, config.lr, config.weight_decay, config.momentum)
        self.lr_at = recipe.lr_at(config.lr, config.steps, config.lr_drops)
        self.scaler = torch.amp.GradScaler(device.type) if config.precision == "fp16" else None
        self.seconds = {"training": 0.0, "observing": 0.0, "testing": 0.0}
        self.metrics: dict[str, float] = {}
        self.last_step = self.saved_step = self._begun_step = 0
        # A GPU trains while a checkpoint is written; on a CPU the writing would take the cores from the training.
        self.writer = CheckpointWriter() if device.type == "cuda" else None
        self.untrained: list[Snapshot] = []
        self._opened, self._notes = False, list(notes)
        self._start_clocks()
        self.info = RunInfo(
            upsampler=config.upsampler,
            title=find_upsampler(parse_upsampler(config.upsampler)[0]).title,
            network=config.network,
            network_title=model.title,
            task=model.task,
            classes=splits.classes if self.task.has_classes else None,
            parameters=sum(p.numel() for p in model.parameters()),
            weights=weights,
            config=StoredConfig(dataclasses.asdict(config)),
            schedule=tuple(self.schedule),
            kinds=tuple(self.probe.kinds),
            figure_layer=model.figure_layer,
            observation=ObservationInfo(
                names=tuple(s.name for s in self.samples),
                indices=tuple(observed),
                mode=config.observe_mode,
                foreground=tuple(find_object(s.mask) for s in self.samples) if splits.classes > 2 else None,
            ),
            device=_device_name(device),
            optimizer=type(self.optimizer).__name__ + " (fused)" * bool(self.optimizer.defaults.get("fused")),
            threads=torch.get_num_threads(),
            processes=processes.world_size if processes.world_size > 1 else None,
            reassembly=choose_backend(self.inputs, kernel_size=5, scale_factor=2),
            versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            data=StoredData(splits.info),
        )

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoints" / "last.pt"

    @property
    def notes(self) -> list[str]:
        """Notes on this run."""
        return [*self._notes, *self.probe.notes]

    def begin(self, overwrite: bool = False) -> int:
        """Open the folder, in place of a run that is there, and record the untrained model; returns the steps done."""
        self._start_clocks()
        if not self.processes.is_rank_zero:
            return 0
        if overwrite:
            remove_run(self.out)
        self.info = dataclasses.replace(self.info, layers=layer_sizes(self.untrained))
        self.store = SnapshotStore(self.out, self.run_id)
        self.store.forget_after(-1)
        self._write_info("running")
        self._opened = True
        self.store.write_observation(
            np.stack([s.image for s in self.samples]), np.stack([s.mask for s in self.samples]), _mattes(self.samples)
        )
        self.store.write(0, self.untrained)
        self._start_clocks()
        return 0

    def go_on(self) -> int:
        """Load the checkpoint of a run that stopped; returns the steps already done.

        Without a checkpoint, which a run killed early may not have yet, the run begins anew.
        """
        before = open_run(self.out)
        if before.run_id != self.run_id:
            raise FadevizError(
                f"{self.out}: its data, weights or device kind are not the same any more. Use --overwrite"
            )
        if not self.checkpoint.exists():
            done = max((line["step"] for line in before.metrics()), default=0)
            if done > self.config.checkpoint_every:
                raise FadevizError(
                    f"{self.checkpoint} is missing, though {done} steps were done. "
                    "Put it back, or begin anew with --overwrite"
                )
            self.untrained = self.look(0)
            return self.begin()
        self.last_step = read_checkpoint(self.checkpoint, self.run_id, self.model, self.optimizer, self.scaler)
        self.saved_step = self._begun_step = self.last_step
        self._start_clocks()
        if not self.processes.is_rank_zero:
            return self.last_step
        # What does not stand in this process's own settings was so of an earlier one: how many they were, its notes.
        self.info = self.info.over(before.info, without=_OF_A_PROCESS)
        self.seconds.update(before.info.seconds)
        self.store = SnapshotStore(self.out, self.run_id)
        # What the checkpoint does not know is recorded again, to the same bytes.
        self.store.forget_after(self.last_step)
        tests = [line for line in before.metrics() if "test_loss" in line and line["step"] <= self.last_step]
        if tests:
            self.metrics = {k: v for k, v in tests[-1].items() if k not in ("step", "loss", "lr")}
        self._write_info("running")
        self._opened = True
        self._start_clocks()
        return self.last_step

    def after(self, result: StepResult) -> None:
        """Test, record and save what is due after a training step."""
        self._spent_on("training")
        step = self.last_step = result.step
        line: dict[str, object] = {"step": step, "loss": result.loss, "lr": result.lr}
        if step % self.evaluate_every == 0 or step == self.config.steps:
            self.metrics = self.task.evaluate(
                self.model, self.splits.test, classes=self.splits.classes, processes=self.processes
            )
            line.update(self.metrics)
            self._spent_on("testing")
        if not self.processes.is_rank_zero:
            return
        self.store.append_metrics(line)
        if step in self.schedule:
            self._clock = time.perf_counter()
            self.store.write(step, self.look(step))
            self._spent_on("observing")
        if self._checkpoint_is_due():
            self.save()
        self._clock = time.perf_counter()

    def _checkpoint_is_due(self) -> bool:
        age, every = time.monotonic() - self._saved_at, self.config.checkpoint_every
        if age >= CHECKPOINT_SECONDS or self.last_step == self.config.steps:
            return True
        if self.writer is None:
            return self.last_step % every == 0
        if self.writer.busy:
            return False
        self.wait_saved()  # what went wrong with the last one is raised now
        passed = self.last_step // every > self._begun_step // every
        return passed and (not self._begun_step or age >= CHECKPOINT_PAUSE)

    def save(self) -> None:
        """Write the checkpoint of the last step; on a GPU the training goes on meanwhile."""
        state = self.checkpoint, self.last_step, self.run_id, self.model, self.optimizer, self.scaler
        if self.writer is None:
            write_checkpoint(*state)
            self.saved_step = self.last_step
        else:
            first = not self.checkpoint.exists()
            self.writer.begin(*state)
            if first:  # that one is missing after `checkpoint_every` steps shall mean that it was lost
                self.wait_saved()
        self._begun_step, self._saved_at = self.last_step, time.monotonic()

    def wait_saved(self) -> None:
        """Wait until the last checkpoint is complete."""
        if self.writer is not None:
            self.writer.wait()
            self.saved_step = max(self.saved_step, self.writer.written)

    def close(self) -> None:
        """End what runs beside the training."""
        if self.writer is not None:
            self.writer.close()

    def interrupt(self, number: int) -> NoReturn:
        """Write a checkpoint, mark the run as interrupted, and raise, on all ranks together."""
        if self.processes.is_rank_zero:
            self.wait_saved()
            if not (self.saved_step == self.last_step and self.checkpoint.exists()):
                self.save()
                self.wait_saved()
        error = Interrupted(number, self.last_step, self.config.steps, self.last_step)
        self.end("interrupted", str(error))
        self.processes.all_gather(None)
        raise error

    def look(self, step: int) -> list[Snapshot]:
        """The maps of the observed images now."""
        mode = self.config.observe_mode
        return self.probe.observe(self.inputs, self.targets, self.task.loss, step=step, mode=mode)  # type: ignore[arg-type]

    def end(self, status: str, message: str = "") -> None:
        """Say in run.json how the run ended, if this process started it."""
        if self._opened:
            self._write_info(status, message)

    def _write_info(self, status: str, message: str = "") -> None:
        self.store.write_info(
            dataclasses.replace(
                self.info,
                notes=tuple(self.notes),
                status=status,
                message=message,
                last_step=self.last_step,
                seconds=self.seconds,
                result=self.metrics,
            )
        )

    def _start_clocks(self) -> None:
        self._clock, self._saved_at = time.perf_counter(), time.monotonic()

    def _spent_on(self, what: str) -> None:
        now = time.perf_counter()
        self.seconds[what] += now - self._clock
        self._clock = now


_OF_A_PROCESS = ("processes", "notes")
"""Entries of run.json that describe the processes that trained last; left out when empty."""


def _mattes(samples: list[Sample]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Alpha from 0 to 255 and trimaps of the images, if they have them all."""
    alphas = [np.rint(s.alpha * 255).astype(np.uint8) for s in samples if s.alpha is not None]
    trimaps = [s.trimap for s in samples if s.trimap is not None]
    if not len(alphas) == len(trimaps) == len(samples):
        return None
    return np.stack(alphas), np.stack(trimaps)


def read_config(path: str | Path) -> RunConfig:
    """The settings a run was recorded with.

    Raises:
        FadevizError: no run there, or settings this version does not know.
    """
    return config_from(open_run(path).info.config, f"{path}/run.json", "Record again with --overwrite")


def config_from(stored: Mapping[str, Any], where: str, remedy: str) -> RunConfig:
    """Settings as they stand in a file; what the file does not name was recorded with the default.

    Args:
        stored: names and values.
        where: the file, for an error.
        remedy: what to do where the settings are damaged.

    Raises:
        FadevizError: settings that are damaged, or that this version does not know.
    """
    values = dict(stored)
    fields = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    for name, value in values.items():
        if name not in fields:
            raise FadevizError(f"{where} has a setting {name!r} that this fadeviz does not know. Upgrade it")
        if not _is_like(value, fields[name]):
            raise FadevizError(f"{where} has damaged settings ({name} cannot be {value!r:.60}). {remedy}")
    if "lr_drops" in values:
        values["lr_drops"] = tuple(values["lr_drops"])
    return RunConfig(**values)


def _is_like(value: object, default: object) -> bool:
    """Whether a value from a file can stand for this default."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(_is_like(one, 0.5) for one in value)
    if default is None and value is None:
        return True
    if default is None or isinstance(default, float):
        return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
    return type(value) is type(default)


@contextlib.contextmanager
def _threads_as_before(before: StoredRun | None) -> Iterator[list[str]]:
    """Use as many threads as the run was started with, up to the number of cores; then restore the caller's number.

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


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def out_of_memory_in_words(remedy: str) -> Iterator[None]:
    """An error that says so in one line, where there is no memory left, with what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Torch's own class is of RuntimeErrors; on a CPU it raises a plain one.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise FadevizError(f"out of memory. {remedy}") from error


def differing_settings(was: Mapping[str, Any], config: RunConfig) -> str:
    """What makes stored settings and ``config`` different runs, in words; empty where they are the same.

    Device, data folder and weights are left out: they may have moved, and what they hold is checked by the run's id.
    So are workers, which change no result.
    A setting that is not stored was recorded before it existed, with what is now its default.
    """
    before = {**settings_of(RunConfig()), **was}
    differs = [
        f"{name} was {before[name]!r}, is {value!r}"
        for name, value in settings_of(config).items()
        if name not in _MAY_MOVE and before[name] != value
    ]
    return "; ".join(differs)


_MAY_MOVE = ("device", "data_dir", "weights", "workers")


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings as run.json gives them back: lists for tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


_NEWER = {"labels": "true", "subset": 0, "tf32": False, "deterministic": False, "compile": "off", "pool": 0}
"""Settings that came later, with the defaults that they have in older runs."""


def _run_id(config: RunConfig, splits: Splits, weights: str, device: torch.device) -> str:
    settings = dataclasses.asdict(config)
    for name in _MAY_MOVE:
        del settings[name]
    for name, default in _NEWER.items():
        if settings[name] == default:
            del settings[name]  # runs from before this setting keep their id
    data = {k: v for k, v in splits.info.items() if k != "folder"}
    text = json.dumps([settings, data, weights, device.type], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.processor() or platform.machine()})"
