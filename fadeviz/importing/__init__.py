"""Runs made of maps that one already has."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.images import list_folder, open_image, to_rgb
from ..errors import FadevizError, unknown_name
from ..recording.masks import Masks, masks_of, names_of, whole_number
from ..run import Run
from ..storage.info import LayerInfo, ObservationInfo, RunInfo, StoredConfig
from ..storage.schedule import parse_steps
from ..storage.snapshots import CHANNEL_KINDS, KINDS, LAST_STEP, Snapshot, check_folder
from ..storage.writer import RunWriter
from .sources import MERGED, Array, Source, as_array, frames_of, open_source

Images = NDArray[np.uint8]

REDUCTIONS: Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "mean": lambda maps: maps.mean(axis=1),
    "sum": lambda maps: maps.sum(axis=1),
    "max": lambda maps: maps.max(axis=1),
    "norm": lambda maps: np.linalg.norm(maps, axis=1),
}
"""What makes one map of the channels of each image, ``(N, C, h, w) -> (N, h, w)``."""


def import_maps(
    maps: object,
    out: str | os.PathLike[str],
    *,
    steps: str | Iterable[int] | None = None,
    key: str | None = None,
    reduce: str = "mean",
    layer: str = "maps",
    kind: str = "feature",
    images: object = None,
    masks: object = None,
    ignore_index: int | None = None,
    classes: int | None = None,
    foreground: int | Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    name: str | None = None,
    network: str | None = None,
    seed: int | None = None,
    overwrite: bool = False,
) -> Run:
    """Make a run of maps that one already has, to draw, measure and report it like any other.

    Args:
        maps: the maps of all steps. An array ``(steps, H, W)``, ``(steps, images, H, W)`` or ``(steps, images,
            channels, H, W)``; a list or a dict by step of arrays without the first axis; a file with such an array
            (.npy, .npz, .safetensors, .pt) or with an array for each step, whose names end with the step; a folder or
            a pattern (``"maps/iter_*.npy"``) of files with the maps of a step each, arrays or images; or an animation
            (GIF, APNG, WebP).
        out: the run's folder.
        steps: the step of each frame: ``"100:3500:100"`` or numbers. None takes those of the dict or of the file names,
            or else counts from 0.
        key: which array, in files with several.
        reduce: what makes one map of channels: ``mean``, ``sum``, ``max`` or ``norm``.
        layer: what the layer is called.
        kind: the kind that the maps are stored as: one of ``KINDS`` with a map for each image.
        images: the images that the maps are of: ``(N, H, W, 3)`` uint8, or their files, or a folder of them. Without
            them, figures show the maps alone.
        masks: their masks, of the same size: an array ``(N, H, W)`` of classes, or files, or a folder. Without them,
            nothing can be measured against an outline.
        ignore_index: as for :class:`~fadeviz.recording.recorder.Recorder`, like ``classes``, ``foreground`` and
            ``names``; names are those of the image files by default.
        classes: the number of classes.
        foreground: the class whose outline and interior are measured.
        names: names of the images.
        name: the run's name in figures, such as the operator's; None takes the folder's.
        network: the network's name in captions.
        seed: the training's seed; runs of one name with different seeds are measured together.
        overwrite: replace the run that is in the folder.

    Returns:
        The run.

    Raises:
        FadevizError: if the maps cannot be read, are of different sizes, have values that are not finite, or do not
            fit the steps, images or masks; or if the folder holds something else.

    Example:
        >>> import tempfile
        >>> maps = np.random.default_rng(0).random((3, 16, 24))
        >>> run = import_maps(maps, f"{tempfile.mkdtemp()}/run", steps="0:200:100", name="mine")
        >>> run.steps, run.read(100, "maps", "feature").shape
        ((0, 100, 200), (1, 16, 24))
    """
    if kind not in KINDS or kind in CHANNEL_KINDS:
        raise unknown_name("kind with a map for each image", kind, [one for one in KINDS if one not in CHANNEL_KINDS])
    if reduce not in REDUCTIONS:
        raise unknown_name("reduction", reduce, REDUCTIONS)
    if not layer or "/" in layer or not layer.isprintable():
        raise FadevizError(f"the layer name {layer!r} cannot be stored. Choose one without a slash or a line break")
    if not overwrite and os.path.lexists(Path(out) / "run.json"):
        raise FadevizError(f"{out} holds a run already. Replace it with overwrite=True, or choose another out=...")
    check_folder(Path(out), overwrite=overwrite)
    source = open_source(maps, key, numbered=steps is None)
    numbers, order = _steps(source, steps)
    read = dict(zip(numbers, _checked(source, order, reduce), strict=True))
    first = read[numbers[0]]
    count, height, width = first.shape
    shown, file_names = _read_images(images, "images", colours=True)
    drawn = np.zeros((count, height, width, 3), np.uint8) if shown is None else shown
    if len(drawn) != count:
        raise FadevizError(f"{len(drawn)} images for maps of {count}. Give one for each, in the order of the maps")
    labels = _masks(masks, drawn, ignore_index, classes, foreground)
    notes = [*source.notes, *_note_shape(drawn, (height, width), shown is not None)]
    snapshots = {step: Snapshot(step, layer, 0, kind, value) for step, value in read.items()}
    info = RunInfo(
        status="recording",
        upsampler=name or Path(out).name,
        title=name or Path(out).name,
        network=network,
        network_title=network,
        classes=labels.classes if labels.classes > 2 else None,
        config=StoredConfig({} if seed is None else {"seed": whole_number(seed, "seed")}),
        schedule=tuple(numbers),
        kinds=(kind,),
        layers={layer: LayerInfo(size=(height, width))},
        observation=ObservationInfo(
            names=tuple(names_of(file_names if names is None else names, count)),
            images="none" if shown is None else None,
            foreground=None if labels.foreground is None else tuple(labels.foreground),
        ),
        imported=str(maps) if isinstance(maps, str | os.PathLike) else type(maps).__name__,
        last_step=numbers[-1],
        notes=tuple(notes),
        versions={"numpy": np.__version__},
    )
    run_id = _run_id(snapshots.values(), drawn, seed)
    with RunWriter(out) as writer:
        writer.begin(run_id, info, drawn, labels.values, overwrite=overwrite)
        for step, snapshot in snapshots.items():
            writer.snapshot(step, [snapshot])
        writer.end("finished")
    return Run(out)


def _steps(source: Source, given: str | Iterable[int] | None) -> tuple[list[int], list[int]]:
    """The steps in increasing order, and the index of each one's maps."""
    count = len(source.names)
    if not count:
        raise FadevizError("there are no maps: the array or list is empty")
    if given is None:
        steps = source.steps if source.steps is not None else list(range(count))
    elif isinstance(given, str):
        steps = parse_steps(given)
    elif not isinstance(given, Iterable):
        raise FadevizError(f"steps is {given!r:.40}: a step for each frame is needed, such as '100:3500:100'")
    else:
        steps = [whole_number(step, "a step") for step in given]
    if len(steps) != count:
        frames = "1 frame" if count == 1 else f"{count} frames"
        merged = f" ({MERGED.partition(',')[0]})" * (MERGED in source.notes)
        raise FadevizError(f"{len(steps)} steps for {frames}{merged}. Give one for each: steps=...")
    if min(steps) < 0 or len(set(steps)) < count:
        wrong = next(step for step in steps if step < 0 or steps.count(step) > 1)
        raise FadevizError(
            f"step {wrong} is {'negative' if wrong < 0 else 'given twice'}. Give each frame one: steps=..."
        )
    if max(steps) > LAST_STEP:
        raise FadevizError(f"step {max(steps)} is too large: {LAST_STEP} at most. Give steps=...")
    order = sorted(range(count), key=steps.__getitem__)
    return [steps[index] for index in order], order


def _checked(source: Source, order: Sequence[int], reduce: str) -> Iterator[NDArray[np.float32]]:
    """The maps ``(N, h, w)`` of each step, all of one shape and finite."""
    shape: tuple[int, ...] | None = None
    first = ""
    frames = list(frames_of(source))
    for name, array in (frames[index] for index in order):
        value = _one_map_each(np.asarray(array), name, reduce)
        if shape is None:
            shape, first = value.shape, name
        if value.shape != shape:
            raise FadevizError(f"{name} has maps of {_size(value.shape)}, {first} of {_size(shape)}. All must be alike")
        broken = int(np.count_nonzero(~np.isfinite(value)))
        if broken and np.isfinite(array).all():
            raise FadevizError(f"{name} has values beyond 3e38, which float32 cannot hold. Scale the maps down")
        if broken:
            values = "1 value that is" if broken == 1 else f"{broken} values that are"
            raise FadevizError(f"{name} has {values} not finite (NaN or infinite). Replace them, or leave the step out")
        yield value


def _one_map_each(array: Array, name: str, reduce: str) -> NDArray[np.float32]:
    if not 2 <= array.ndim <= 4 or 0 in array.shape:
        raise FadevizError(
            f"{name} has the shape {array.shape}: a step needs (H, W), (images, H, W) or (images, channels, H, W)"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
        value = array.astype(np.float32)
        if value.ndim == 4:
            value = REDUCTIONS[reduce](value).astype(np.float32)
    return np.ascontiguousarray(value.reshape(-1, *value.shape[-2:]))


def _size(shape: Sequence[int]) -> str:
    images = "" if shape[0] == 1 else f"{shape[0]} images of "
    return f"{images}{shape[1]}x{shape[2]}"


def _read_images(given: object, what: str, *, colours: bool) -> tuple[Images | None, list[str] | None]:
    """Images ``(N, H, W, 3)``, or values ``(N, H, W)``, from an array, files or a folder; and the files' names."""
    if given is None:
        return None, None
    if isinstance(given, str | Path):
        path = Path(given)
        files = list(list_folder(path).files.values()) if path.is_dir() else [path]
        if not files:
            raise FadevizError(f"{path} has no images")
    elif isinstance(given, list | tuple) and all(isinstance(one, str | Path) for one in given):
        files = [Path(one) for one in given]
    else:
        array = as_array(given, what)
        return (_as_colours(array) if colours else array), None
    opened = [open_image(file) for file in files]
    arrays = [np.asarray(to_rgb(one, file) if colours else one) for one, file in zip(opened, files, strict=True)]
    for file, array in zip(files, arrays, strict=True):
        if array.shape[:2] != arrays[0].shape[:2]:
            raise FadevizError(
                f"{file} has {array.shape[1]}x{array.shape[0]} pixels, {files[0].name} {arrays[0].shape[1]}x"
                f"{arrays[0].shape[0]}. All must be alike"
            )
        if not colours and array.ndim != 2:
            raise FadevizError(f"{file} is a coloured mask: a grey or palette image of class indices is needed")
    return np.stack(arrays), [file.stem for file in files]


def _as_colours(array: Array) -> Images:
    if array.ndim == 3 and array.shape[-1] == 3:  # one image in colours
        array = array[None]
    if array.ndim == 4 and array.shape[1] == 3 and array.shape[-1] != 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim == 3:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or not array.size:
        raise FadevizError(f"images are {array.dtype} {array.shape}; uint8 (N, H, W, 3) or (N, H, W) is needed")
    return np.ascontiguousarray(array)


def _masks(given: object, images: Images, *options: Any) -> Masks:
    ignore_index, classes, foreground = options
    labels, _ = _read_images(given, "masks", colours=False)
    if labels is None and (classes is not None or foreground is not None):
        raise FadevizError(
            f"{'classes' if classes is not None else 'foreground'} is given without masks. Give masks=..."
        )
    return masks_of(
        None, labels, images.shape[:3], ignore_index=ignore_index, classes=classes, foreground=foreground
    )  # fmt: skip


def _note_shape(images: Images, size: tuple[int, int], given: bool) -> list[str]:
    """A remark where the maps have another shape than the images, onto which they are stretched."""
    (height, width), (rows, columns) = images.shape[1:3], size
    if not given or abs(height * columns - width * rows) <= 0.05 * width * rows:
        return []
    return [f"maps of {columns}x{rows} are stretched onto images of {width}x{height}, which have another shape"]


def _run_id(snapshots: Iterable[Snapshot], images: Images, seed: int | None) -> str:
    digest = hashlib.sha256(images.tobytes() + repr(seed).encode())
    for snapshot in snapshots:
        digest.update(f"{snapshot.step} {snapshot.key}".encode() + snapshot.value.tobytes())
    return digest.hexdigest()[:12]


__all__ = ["REDUCTIONS", "import_maps"]
