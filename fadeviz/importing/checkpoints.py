"""A run made of the checkpoints that a training left: each is loaded, and observed, one after the other."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..data.images import shorten
from ..errors import FadevizError
from ..recording.layer_choice import Layers
from ..recording.masks import whole_number
from ..recording.recorder import Recorder
from ..recording.wrapped import unwrapped
from ..run import Run
from ..storage.schedule import parse_steps
from ..storage.snapshots import LAST_STEP
from ..storage.writer import RunWriter
from .sources import natural_order, steps_of_names

State = Mapping[str, Tensor]

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
"""Suffixes, in lower case, of the files that count as checkpoints."""

WRAPPINGS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
"""Where checkpoints keep the weights, the first that is there."""

WHOLE = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
"""The weights in a checkpoint that is a folder, as the Hugging Face Trainer writes it."""


def record_checkpoints(
    model: nn.Module,
    checkpoints: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[int, Any],
    layers: Layers,
    out: str | os.PathLike[str],
    *,
    batch: tuple[Any, Any],
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    steps: str | Iterable[int] | None = None,
    key: str | None = None,
    strict: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Run:
    """Record the maps of a model at each of its checkpoints, as a :class:`Recorder` would have in the training.

    The checkpoints are read one at a time, and nothing in them is executed. Afterwards the model has its own weights
    again.

    Args:
        model: the model, on its device.
        checkpoints: a folder or a pattern (``"work_dirs/iter_*.pth"``) of files, or of folders as the Hugging Face
            Trainer writes them; a list of those; or a dict of files or state dicts by step.
        layers: as for :class:`Recorder`, like ``batch`` and ``loss_fn``.
        out: the run's folder.
        batch: what is observed: ``(images, targets)``.
        loss_fn: ``loss_fn(output, targets)``, a scalar; None records no gradients.
        steps: the step of each checkpoint: ``"1000:80000:1000"`` or numbers. None takes those of the names.
        key: where the weights are in each file; None looks for the usual places.
        strict: raise if the model has weights that a checkpoint lacks.
        on_progress: called after each checkpoint with its step and the number of those that remain.
        options: other arguments of :class:`Recorder`: kinds, observe_mode, views, reduce, masks, names, name, seed,
            overwrite and so on.

    Returns:
        The run.

    Raises:
        FadevizError: if there are no checkpoints, their steps are unknown, one cannot be read or does not fit the
            model, or the model cannot be observed.

    Example::

        fadeviz.record_checkpoints(model, "work_dirs/iter_*.pth", "decode_head.*", "runs/mine",
                                   batch=(images, masks), loss_fn=criterion)
    """
    found = find_checkpoints(checkpoints, steps)
    taken = {"resume", "start", "on_error", "scaler"} & options.keys()
    if taken:
        raise FadevizError(f"record_checkpoints takes no {taken.pop()}: each checkpoint is observed once")
    inner = unwrapped(model)
    kept = {name: value.detach().clone() for name, value in inner.state_dict().items() if isinstance(value, Tensor)}
    notes: list[str] = []
    recorder: Recorder | None = None
    try:
        for index, (step, checkpoint) in enumerate(found):
            if not strict:  # what a checkpoint lacks is not that of the one before
                inner.load_state_dict(kept, strict=False)
            notes += [
                note for note in load_checkpoint(inner, checkpoint, step, key, strict=strict) if note not in notes
            ]
            if recorder is None:
                recorder = Recorder(
                    model, layers, [number for number, _ in found], out, batch=batch, loss_fn=loss_fn, start=step,
                    on_error="raise", **options,
                )  # fmt: skip
            else:
                recorder.step(step)
            if on_progress is not None:
                on_progress(step, len(found) - 1 - index)
        assert recorder is not None
        recorder.close()
    except BaseException as error:
        if recorder is not None:
            recorder.close(error)
        raise
    finally:
        inner.load_state_dict(kept, strict=False)
    return _with_notes(Run(out), notes)


def find_checkpoints(checkpoints: Any, given: str | Iterable[int] | None = None) -> list[tuple[int, Any]]:
    """The steps in increasing order, each with its file, folder or state dict.

    Args:
        checkpoints: as for :func:`record_checkpoints`; a list may also name folders and patterns.
        given: the step of each; None takes those of the names.

    Raises:
        FadevizError: if there are none, or their steps are unknown or the same.
    """
    if isinstance(checkpoints, Mapping):
        if given is not None:
            raise FadevizError("the dict has the steps of its checkpoints. Leave steps out")
        steps, items = [whole_number(step, "a step") for step in checkpoints], list(checkpoints.values())
    else:
        steps, items = _numbered(_paths(checkpoints), checkpoints, given)
    if not items:
        raise FadevizError(f"{checkpoints or 'the list'} has no checkpoints: files of {', '.join(SUFFIXES)} are needed")
    if len(steps) != len(items):
        raise FadevizError(f"{len(steps)} steps for {len(items)} checkpoints. Give one for each: steps=...")
    if min(steps) < 0 or len(set(steps)) < len(steps):
        raise FadevizError(f"the steps {shorten(map(str, steps))} are not all different and 0 or more. Give steps=...")
    if max(steps) > LAST_STEP:
        raise FadevizError(f"step {max(steps)} is too large: {LAST_STEP} at most. Give steps=...")
    return sorted(zip(steps, items, strict=True), key=lambda pair: pair[0])


def _numbered(paths: list[Path], where: Any, given: str | Iterable[int] | None) -> tuple[list[int], list[Path]]:
    """The steps of files: those of their names, or those given for them in natural order, or in that of a list."""
    if given is None:
        steps, ordered = steps_of_names(paths, str(where) if isinstance(where, str | os.PathLike) else "the list")
        if steps is None and len(paths) > 1:
            raise FadevizError(f"the names have no steps ({shorten(path.name for path in paths)}). Give steps=...")
        return [0] * len(paths) if steps is None else steps, ordered
    if not isinstance(given, Iterable):
        raise FadevizError(f"steps is {given!r:.40}: a step for each checkpoint is needed, such as '1000:80000:1000'")
    numbers = parse_steps(given) if isinstance(given, str) else [whole_number(step, "a step") for step in given]
    return numbers, sorted(paths, key=natural_order) if isinstance(where, str | os.PathLike) else paths


def _paths(checkpoints: Any) -> list[Path]:
    if not isinstance(checkpoints, str | os.PathLike):
        return [path for one in checkpoints for path in _paths(one)]
    path = Path(checkpoints)
    if any(letter in path.name for letter in "*?[") and not path.exists():
        return sorted(path.parent.glob(path.name))
    if path.is_dir() and not _weights_in(path):
        inside = sorted(path.iterdir())
        folders = [one for one in inside if one.is_dir() and _weights_in(one)]
        return folders or [one for one in inside if one.suffix.lower() in SUFFIXES and one.is_file()]
    if not path.exists():
        raise FadevizError(f"there is no {path}. Give a folder, a pattern or files of checkpoints")
    return [path]


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in WHOLE if (folder / name).is_file()), None)


def load_checkpoint(
    model: nn.Module, checkpoint: Any, step: int, key: str | None = None, *, strict: bool = True, exact: bool = False
) -> list[str]:
    """Load the weights of one checkpoint into the model.

    Args:
        model: the model.
        checkpoint: a file, a folder as the Hugging Face Trainer writes it, or a state dict.
        step: its step, for messages.
        key: where the weights are in it; None looks for the usual places.
        strict: raise if the model has weights that the checkpoint lacks.
        exact: raise also if the checkpoint has weights that the model lacks, as that of another network does.

    Returns:
        What was left out, a sentence each.

    Raises:
        FadevizError: if it cannot be read, or does not fit the model.
    """
    where = f"the state dict of step {step}" if isinstance(checkpoint, Mapping) else str(checkpoint)
    state = _state_in(checkpoint if isinstance(checkpoint, Mapping) else _read(Path(checkpoint)), where, key)
    wanted = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    names = _renamed(state, wanted)
    missing = [name for name in wanted if name not in names]
    if missing and (strict or len(missing) == len(wanted)):
        raise FadevizError(
            f"{where} lacks {len(missing)} of the model's {len(wanted)} weights ({shorten(missing)}); it has "
            f"{shorten(state)}. Build the model with the settings of the training, or give strict=False"
        )
    for name, other in names.items():
        if state[other].shape != wanted[name].shape:
            raise FadevizError(
                f"{where}: {other} is {tuple(state[other].shape)}, the model's {name} {tuple(wanted[name].shape)}. "
                "Build the model with the settings of the training"
            )
    used = set(names.values())
    left_out = [name for name in state if name not in used]
    if left_out and exact:
        raise FadevizError(
            f"{where} has {len(left_out)} weights that the model does not have ({shorten(left_out)}). Build the model "
            "with the settings of the training, or give strict=False"
        )
    model.load_state_dict({name: state[other] for name, other in names.items()}, strict=False)
    notes = [f"weights that the model does not have were left out: {shorten(left_out)}"] if left_out else []
    return [
        *notes,
        *([f"weights that the checkpoints lack kept the model's values: {shorten(missing)}"] * bool(missing)),
    ]


def _renamed(state: State, wanted: State) -> dict[str, str]:
    """The name in the state of each of the model's weights, whichever of the two has a prefix that the other lacks."""
    prefixes = {""}
    for name in wanted:
        prefixes |= {other[: -len(name)] for other in state if other.endswith(f".{name}")}
        if len(prefixes) > 1:
            break
    stripped = {part for name in wanted for part in [name.partition(".")[0] + "."] if name.startswith(part)}
    ways = [{name: prefix + name for name in wanted} for prefix in prefixes]
    ways += [{name: name.removeprefix(prefix) for name in wanted} for prefix in stripped]
    found = [{name: other for name, other in way.items() if other in state} for way in ways]
    return max(found, key=len)


def _state_in(loaded: Any, where: str, key: str | None) -> State:
    """The weights in what a checkpoint holds."""
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    if key is not None:
        for part in key.split("."):
            if not isinstance(loaded, Mapping) or part not in loaded:
                raise FadevizError(f"{where} has no {key!r}. It has: {shorten(map(str, loaded))}")
            loaded = loaded[part]
    for _ in WRAPPINGS:
        if not isinstance(loaded, Mapping):
            break
        inside = next((loaded[name] for name in WRAPPINGS if isinstance(loaded.get(name), Mapping)), None)
        # Beside the weights there may be tensors, such as the state of a generator.
        if inside is None and any(isinstance(value, Tensor) for value in loaded.values()):
            break
        if inside is None:
            raise FadevizError(
                f"{where} has no weights where they are usually kept. It has: {shorten(map(str, loaded))}. Give key=..."
            )
        loaded = inside
    if not isinstance(loaded, Mapping):
        found = "an object of another library" if isinstance(loaded, _Nothing) else f"a {type(loaded).__name__}"
        raise FadevizError(f"{where} holds {found}: a state dict is needed. Save model.state_dict()")
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def _read(path: Path) -> Any:
    """What a checkpoint holds."""
    if path.is_dir():
        inside = _weights_in(path)
        if inside is None:
            raise FadevizError(f"{path} has none of {', '.join(WHOLE)}. Give the files of the weights")
        path = inside
    try:
        if path.name.endswith(".index.json"):
            parts = json.loads(path.read_text())["weight_map"].values()
            return {name: value for part in sorted(set(parts)) for name, value in _read(path.parent / part).items()}
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        return _load_pickled(path)
    except FileNotFoundError:
        raise FadevizError(f"there is no {path}. Give a folder, a pattern or files of checkpoints") from None
    except (
        SafetensorError, pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError,
        AttributeError, IndexError,
    ) as error:  # fmt: skip
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise FadevizError(f"{path} cannot be read as a checkpoint ({first}). Leave it out") from error


def _load_pickled(path: Path) -> Any:
    """The tensors of a file that torch wrote, by torch's own reader, which runs no code from the file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # It refuses a whole file for one object that is no weight: a logger's history, a callback, a config. To name
        # these runs nothing either, and each is read as a stand-in.
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if not names:
            raise
    with torch.serialization.safe_globals([(_Nothing, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


class _Nothing:
    """Stands for an object that is no weight: it takes anything and does nothing."""

    def __new__(cls, *args: Any, **options: Any) -> _Nothing:
        return object.__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


def _with_notes(run: Run, notes: Sequence[str]) -> Run:
    if not notes:
        return run
    with RunWriter(run.path) as writer:
        writer.resume(run.run_id, dataclasses.replace(run.info, notes=(*run.info.notes, *notes)))
    return Run(run.path)


__all__ = ["find_checkpoints", "load_checkpoint", "record_checkpoints"]
