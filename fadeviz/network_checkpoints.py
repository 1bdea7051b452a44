"""A run made of checkpoints of fadeviz's own networks: what a run with these settings would have recorded."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import FadevizError
from .experiment import RunConfig, build_model, choose_device, load_data, out_of_memory_in_words
from .experiment.observing import Observer
from .importing.checkpoints import find_checkpoints, load_checkpoint
from .models import Network
from .recording.masks import MOST_CLASSES
from .run import Run
from .storage.info import RunInfo, StoredConfig, StoredData
from .storage.snapshots import Snapshot, check_folder, layer_sizes
from .storage.writer import RunWriter
from .training.tasks import TASKS
from .upsamplers import find_upsampler, parse_upsampler

OBSERVING = (
    "upsampler", "network", "data", "data_dir", "subset", "size", "width", "seed", "split_seed", "device",
    "channels_last", "layers", "kinds", "observe", "observe_mode", "channel_images", "predictions",
)  # fmt: skip
"""The settings that decide what is recorded of a checkpoint; all others are of the training, which is not known."""

OF_MASKS = ("masks_dir", "palette", "classes", "ignore")
"""Settings of data ``folder`` that belong to them, where they are given."""


def record_network_checkpoints(
    config: RunConfig,
    checkpoints: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[int, Any],
    out: str | os.PathLike[str],
    *,
    steps: str | Iterable[int] | None = None,
    key: str | None = None,
    classes: int | None = None,
    strict: bool = True,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Record the maps of a network of fadeviz at each of its checkpoints, as :func:`fadeviz.train` would have.

    The network is built by its name, and the observed images are those that a run with these settings observes. The
    checkpoints are read one at a time, and nothing in them is executed. For other models see
    :func:`fadeviz.record_checkpoints`.

    Args:
        config: the network, its operator and width, the data set, and what to record. Settings of the training, such
            as ``steps`` and ``lr``, have no effect.
        checkpoints: a folder or a pattern (``"checkpoints/step_*.pt"``) of files with state dicts; a list of those; or
            a dict of files or state dicts by step.
        out: the run's folder.
        steps: the step of each checkpoint: ``"1000:80000:1000"`` or numbers. None takes those of the names.
        key: where the weights are in each file; None looks for the usual places.
        classes: the number of classes of the network; None takes that of the data set.
        strict: raise if the network and a checkpoint have not the same weights. False leaves out, with a note, what one
            of the two lacks; shapes must be the same in any case.
        overwrite: replace an existing run.
        on_progress: called after each checkpoint with its step and the number of those that remain.

    Returns:
        The run.

    Raises:
        FadevizError: if there are no checkpoints, their steps are unknown, one cannot be read or is of another network,
            or the data set cannot be read. If the first checkpoint is at fault, nothing was written or removed; a run
            that breaks off later is marked as failed.

    Example::

        config = fadeviz.RunConfig(network="unet", upsampler="carafe", width=0.25, size=96)
        fadeviz.record_network_checkpoints(config, "checkpoints/step_*.pt", "outputs/carafe")
    """
    found = find_checkpoints(checkpoints, steps)
    if config.weights != "none":
        raise FadevizError(f"weights is {config.weights}, but the weights are those of the checkpoints. Leave it out")
    check_folder(Path(out), overwrite=overwrite)
    device = choose_device(config.device)
    splits = load_data(config)
    with out_of_memory_in_words("Use a smaller observe=..., size=... or width=..."):
        count = _count_classes(classes, splits.classes)
        model, _ = build_model(config, count)
        if classes is not None and not TASKS[model.task].has_classes:
            raise FadevizError(f"classes is {classes}, but {config.network} predicts mattes. Leave it out")
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.to(device)
        observer = Observer(config, splits, model, device)
        info = _describe(config, model, observer, StoredData(splits.info), _source(checkpoints), count)
        with RunWriter(out) as writer:
            _record(writer, info, model, observer, found, key, strict, overwrite, on_progress)
    return Run(out)


def _record(
    writer: RunWriter,
    info: RunInfo,
    model: Network,
    observer: Observer,
    found: Sequence[tuple[int, Any]],
    key: str | None,
    strict: bool,
    overwrite: bool,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Load and observe one checkpoint after the other, and write how that ended."""
    left_out: dict[str, None] = {}
    initial = {} if strict else copy.deepcopy(model.state_dict())
    try:
        for index, (step, checkpoint) in enumerate(found):
            model.load_state_dict(initial, strict=False)  # what a checkpoint lacks is not that of the one before
            left_out |= dict.fromkeys(load_checkpoint(model, checkpoint, step, key, strict=strict, exact=strict))
            snapshots = observer.observe(step)
            if not writer.begun:
                predictions = observer.probe.predictions
                info = dataclasses.replace(
                    info,
                    schedule=tuple(number for number, _ in found),
                    kinds=tuple(observer.probe.kinds),
                    layers=layer_sizes(snapshots),
                    predictions=None if predictions is None else predictions.values,
                )
                run_id = _run_id(info, snapshots)
                writer.begin(run_id, info, observer.images, observer.masks, observer.mattes, overwrite=overwrite)
            writer.snapshot(step, snapshots, observer.prediction)
            notes = (*observer.notes, *observer.probe.notes, *left_out)
            info = dataclasses.replace(info, last_step=step, notes=tuple(notes))
            if on_progress is not None:
                on_progress(step, len(found) - 1 - index)
        writer.save(dataclasses.replace(info, status="finished"))
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with contextlib.suppress(FadevizError):  # a full disk: the first error matters more
            if writer.begun:
                writer.save(dataclasses.replace(info, status=status, message=str(error)))
        raise


def _count_classes(given: int | None, of_data: int) -> int:
    if given is None:
        return of_data
    if not of_data <= given <= MOST_CLASSES:
        raise FadevizError(
            f"classes is {given}; the masks of the data have {of_data}, so that it must be from {of_data} to "
            f"{MOST_CLASSES}"
        )
    return given


def _source(checkpoints: Any) -> str:
    """What the run was made of, for run.json."""
    if isinstance(checkpoints, str | os.PathLike):
        return str(checkpoints)
    if isinstance(checkpoints, Mapping) or len(checkpoints) != 1:
        return f"{len(checkpoints)} checkpoints"
    return str(checkpoints[0])


def _describe(
    config: RunConfig, model: Network, observer: Observer, data: StoredData, source: str, classes: int
) -> RunInfo:
    settings: dict[str, Any] = {name: getattr(config, name) for name in OBSERVING}
    settings |= {name: value for name in OF_MASKS if (value := getattr(config, name))}
    return RunInfo(
        status="recording",
        upsampler=config.upsampler,
        title=find_upsampler(parse_upsampler(config.upsampler)[0]).title,
        network=config.network,
        network_title=model.title,
        task=model.task,
        classes=classes if TASKS[model.task].has_classes else None,
        parameters=sum(p.numel() for p in model.parameters()),
        config=StoredConfig(settings),
        figure_layer=model.figure_layer,
        observation=observer.info,
        imported=source,
        threads=torch.get_num_threads(),
        versions={"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        data=data,
    )


_MAY_MOVE = ("device", "data_dir", "masks_dir", "palette")


def _run_id(info: RunInfo, snapshots: Iterable[Snapshot]) -> str:
    """A digest of the settings, the data and what the first checkpoint shows."""
    settings = {name: value for name, value in info.config.items() if name not in _MAY_MOVE}
    identity = {name: value for name, value in info.data.items() if name != "folder"}
    text = json.dumps(["checkpoints", settings, identity, list(info.observation.indices)], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for snapshot in snapshots:
        digest.update(f"{snapshot.step} {snapshot.key}".encode() + snapshot.value.tobytes())
    return digest.hexdigest()[:12]


__all__ = ["record_network_checkpoints"]
