"""The settings of a run: what they are, whether they are valid, and how they are stored, compared and identified."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.folder.dataset import MaskOptions
from ..data.sets import all_data, check_options, find_data
from ..errors import FadevizError, unknown_name
from ..models import find_network, parse_network
from ..recording.probe import MODES
from ..recording.readout import LEAST_IMAGES
from ..storage.schedule import Schedule, log_spaced, parse_schedule
from ..storage.snapshots import READOUT_KINDS
from ..storage.stored_run import StoredRun
from ..training.loop import COMPILE, PRECISIONS
from ..training.tasks import TASKS
from .validation import check_counts, check_lr_drops, check_model, check_range, plain

PAPER_SCHEDULE = "100:3000:100,320:360:10"
"""The 35 iterations of the FADE supplement's figures."""

LABELS = ("true", "shuffled")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class RunConfig:
    """The settings that determine a run, stored in its run.json; the defaults are the FADE paper's recipe.

    Attributes:
        upsampler: a name in ``UPSAMPLERS``, with options: ``"pixel_shuffle:icnr=true"``.
        network: a name in ``NETWORKS``, with options: ``"segformer:backbone=b1"``. It decides the task.
        data: a name in ``DATA`` of that task.
        data_dir: the folder of the data set; empty for a set without one. For ``folder`` also a CSV with the columns
            ``image``, ``mask`` and perhaps ``split``.
        subset: the number of training images to take from a large set, drawn by ``split_seed``; the test images are
            reduced in the same proportion. 0 takes all.
        size: side of the square images in pixels, divisible by the network's stride.
        steps: optimiser steps.
        snapshots: schedule; empty takes the paper's if the run is long enough, otherwise 24 steps evenly spaced in the
            logarithm.
        width: multiplier of the network's channels.
        batch_size: images per training step, in all processes together.
        lr: base learning rate; None takes that of the network's recipe; 0 records a control that learns nothing.
        lr_drops: fractions of the run, in increasing order, at each of which the learning rate is multiplied by 0.1;
            empty takes the network's (for SegNet and U-Net, epochs 35 and 45 of 50), ``(1.0,)`` means never.
            SegFormer's learning rate warms up and decays instead.
        momentum: momentum of SGD, in [0, 1).
        weight_decay: weight decay of the optimiser; None takes that of the network's recipe.
        flip: mirror training images at random.
        seed: the seed of the initial weights and of the data order.
        split_seed: the seed of the train/test split and of the choice of observed images; separate from ``seed`` so
            that runs with different seeds observe the same images.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.
        precision: arithmetic of the training: ``fp32``, ``bf16`` or ``fp16``; observations use float32.
        channels_last: keep the network's weights and maps in the channels-last memory format.
        labels: ``true``; or ``shuffled``, where every training image gets the mask of another one: a control in which
            only the usual place of objects can be learned. Tests and observations keep the true masks.
        weights: ``none``, ``imagenet``, or a file or folder that the network's ``load_encoder`` takes.
        layers: the layers to record, as for :class:`~fadeviz.recording.probe.Probe`; empty takes the network's
            operators.
        kinds: the kinds of maps, comma-separated, or ``all``; empty takes feature, gradient, readout if at least 4
            images are observed, and gate and kernel_entropy if the operator has them.
        observe: the number of observed images; 12 takes all where there are fewer. A verdict on what is learned first
            needs 5 or more; with a dozen, it needs only a few seeds.
        observe_mode: which statistics BatchNorm uses in an observation, ``eval`` or ``batch``.
        channel_images: the number of images for which the large kinds are recorded.
        predictions: also store what the network predicts for the observed images, one byte a pixel.
        evaluate_every: steps between tests; 0 takes a tenth of the run. The last step is always tested.
        checkpoint_every: steps between checkpoints. One is also written every five minutes, and when a run is stopped.
            On a GPU they are written while training continues; after the first, at most one a minute.
        tf32: allow TF32 in the convolutions and matrix products of fp32 training: faster on NVIDIA GPUs since Ampere,
            with 10 bits of mantissa instead of 23. Tests and observations never use it; no effect on a CPU.
        deterministic: use deterministic algorithms wherever torch has them; see :func:`train`.
        compile: ``graph`` replays the forward and backward pass of each full training batch as one CUDA graph: the same
            kernels without the time to launch them, which takes up most of a step if batches are small. ``on``
            compiles both passes with ``torch.compile``; ``reduce-overhead`` also replays what was compiled. Tests and
            observations are neither compiled nor replayed.
        pool: the number of training images to draw from an endless set before training; they are kept in memory
            and used in shuffled epochs. 0 draws new images at every step.
        workers: the number of processes that read or draw training images. None chooses: 0 on a CPU, or if the images
            are in memory; otherwise the number of cores minus one, at most 8. The result is the same for any number.
        masks_dir: of data ``folder``, the folder of the masks, by its path or its path in ``data_dir``; empty takes the
            one with a name such as ``masks``.
        palette: of data ``folder``, a file with the classes, by its path or its path in ``data_dir``; a line each:
            ``R G B name``, ``name:R,G,B::``, a CSV of ``name,r,g,b``, or names alone; or ``voc``. With colours, masks
            are read by their colours.
        classes: of data ``folder``, the number of classes; 0 takes as many as the palette or the masks have.
        ignore: of data ``folder``, values of masks and names of classes that are ignored, separated by commas; without
            a value, 255, unless the masks are black and white.
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
    observe: int = 12
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
    predictions: bool = False
    workers: int | None = None
    masks_dir: str = ""
    palette: str = ""
    classes: int = 0
    ignore: str | int = ""

    def __post_init__(self) -> None:
        """Fill in the defaults that the network decides.

        Raises:
            FadevizError: if a setting is invalid; the message names it and lists valid values. Whether a data folder or
                a file of weights exists is checked when it is read, since those of a stored run may have moved.
        """
        if isinstance(self.ignore, int) and not isinstance(self.ignore, bool):
            object.__setattr__(self, "ignore", str(self.ignore))  # 255 is stored as "255"
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(field.name, getattr(self, field.name), field.default))
        network = parse_network(self.network)[0]
        network_class = find_network(network)
        recipe = network_class.recipe
        for name, value in (
            ("lr", recipe.lr),
            ("weight_decay", recipe.weight_decay),
            ("lr_drops", recipe.lr_drops),
            ("layers", network_class.layers),
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
        for what, name, choices in (
            ("kind of labels", self.labels, LABELS),
            ("device", self.device, DEVICES),
            ("precision", self.precision, tuple(PRECISIONS)),
            ("observation mode", self.observe_mode, MODES),
            ("compile mode", self.compile, COMPILE),
        ):
            if name not in choices:
                raise unknown_name(what, name, choices)

    def _check_data(self, network: str) -> None:
        task = find_network(network).task
        data = find_data(task, self.data)
        if self.labels == "shuffled" and not TASKS[task].has_classes:
            raise FadevizError("shuffled labels are for masks; mattes belong to their images. Use labels=true")
        if self.flip and data.mirrors:
            raise FadevizError(f"data {self.data} mirrors half of its training images already. Leave out flip=True")
        if data.needs_folder and not self.data_dir:
            raise FadevizError(
                f"data {self.data} needs its folder: data_dir=DIR. Check it with: fadeviz data check DIR"
            )
        if self.data_dir and not data.needs_folder:
            fitting = " or ".join(f"data={name}" for name, data_set in all_data(task).items() if data_set.needs_folder)
            raise FadevizError(f"data {self.data} has no folder, but data_dir is {self.data_dir}. Use {fitting}")
        check_options(self.data, data, MaskOptions(self.masks_dir, self.palette, self.classes, str(self.ignore)))
        if self.pool and data.in_memory:
            raise FadevizError(f"pool is {self.pool}, but data {self.data} is in memory already. Leave out pool=...")
        if self.subset and not data.subsets:
            raise FadevizError(
                f"subset is {self.subset} of data {self.data}: this set is only used whole. Leave out subset=..."
            )

    def _check_training(self, network: str) -> None:
        least = find_network(network).least_batch
        if self.batch_size < least:
            raise FadevizError(f"batch_size is {self.batch_size}; {network} needs {least} or more for BatchNorm")
        if self.observe < least and self.observe_mode == "batch":
            raise FadevizError(
                f"observe is {self.observe}; {network} in mode batch needs {least} or more for BatchNorm"
            )
        named = [kind for kind in READOUT_KINDS if kind in self.kinds.replace(" ", "").split(",")]
        if named and self.observe < LEAST_IMAGES:
            raise FadevizError(
                f"observe is {self.observe}; the kind {named[0]} is fitted on the other observed images and needs "
                f"{LEAST_IMAGES} or more. Use observe={LEAST_IMAGES}, or leave {named[0]} out of kinds=..."
            )
        assert self.lr is not None
        assert self.weight_decay is not None
        check_range("lr", self.lr, 0)  # 0: a control that learns nothing
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


def read_config(path: str | os.PathLike[str]) -> RunConfig:
    """The settings that a run was recorded with.

    Raises:
        FadevizError: if there is no run, or it has settings that this version does not support.
    """
    return config_from(StoredRun(path).info.config, f"{path}/run.json", "Record again with overwrite=True")


def config_from(stored: Mapping[str, Any], where: str, remedy: str) -> RunConfig:
    """The settings in a file; a setting that the file does not name takes its default.

    Args:
        stored: the values by name.
        where: the file, for messages.
        remedy: the advice in a message about damaged settings.

    Raises:
        FadevizError: if settings are damaged, or not supported by this version.
    """
    values = dict(stored)
    fields = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    for name, value in values.items():
        if name not in fields:
            raise FadevizError(f"{where} has a setting {name!r}, which this version does not support. Upgrade fadeviz")
        if not _is_like(value, fields[name]):
            raise FadevizError(f"{where} has damaged settings ({name} cannot be {value!r:.60}). {remedy}")
    if "lr_drops" in values:
        values["lr_drops"] = tuple(values["lr_drops"])
    return RunConfig(**values)


def _is_like(value: object, default: object) -> bool:
    """Whether a value from a file can stand for this default."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(_is_like(item, 0.5) for item in value)
    if default is None and value is None:
        return True
    if default is None or isinstance(default, float):
        return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
    return type(value) is type(default)


def differing_settings(was: Mapping[str, Any], config: RunConfig) -> str:
    """The settings in which a stored run differs from ``config``, for a message; empty if there are none.

    Device, data folder, palette and weights are not compared: they may have moved, and their content is part of the
    run's id.
    Nor are workers, which change no result. A setting that is not stored is newer than the run, which had its default.
    """
    before = {**settings_of(RunConfig()), **was}
    differs = [
        f"{name} was {before[name]!r}, is {value!r}"
        for name, value in settings_of(config).items()
        if name not in _MAY_MOVE and before[name] != value
    ]
    return "; ".join(differs)


_MAY_MOVE = ("device", "data_dir", "masks_dir", "palette", "weights", "workers")


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings as they are read from run.json: lists in place of tuples."""
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return settings


_NEWER = {
    "labels": "true",
    "subset": 0,
    "tf32": False,
    "deterministic": False,
    "compile": "off",
    "pool": 0,
    "predictions": False,
    "classes": 0,
    "ignore": "",
}
"""Settings that older runs lack, with the values that those runs had."""


def run_id(
    config: RunConfig,
    data: Mapping[str, object],
    weights: str,
    device: str,
    observed: Sequence[int] | None = None,
) -> str:
    """The id of a run: a digest of everything that decides its result.

    Args:
        config: the settings.
        data: the data set's description of itself.
        weights: the name of the initial weights, with a digest of them.
        device: the type of the device: ``cpu`` or ``cuda``.
        observed: the indices of the observed images, unless they are those of earlier versions for these settings,
            whose runs keep their id.
    """
    settings = dataclasses.asdict(config)
    for name in _MAY_MOVE:
        del settings[name]
    for name, default in _NEWER.items():
        if settings[name] == default:
            del settings[name]  # runs from before this setting keep their id
    identity = {key: value for key, value in data.items() if key != "folder"}
    parts = [settings, identity, weights, device, *([list(observed)] if observed is not None else [])]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
