"""Masks and mattes for images, from the weights in a run's last checkpoint."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data import Sample
from ..data.images import SUFFIXES, is_hidden, key_of, list_folder, open_image, shorten, to_rgb
from ..data.matting.files import read_trimap
from ..data.sets import find_data
from ..errors import FadevizError
from ..experiment import choose_device, config_from, out_of_memory_in_words
from ..models import build_network
from ..render.classes import class_colours, class_key, largest_shares, names_classes
from ..render.legend import write_legend
from ..storage.files import make_folder, write_whole
from ..storage.opening import RunLike, stored_runs
from ..storage.stored_run import StoredRun
from ..training.checkpoint import read_weights
from ..training.tasks import TASKS

MOST_PIXELS = 1 << 23
"""Maximum number of pixels that a network is given, 8 megapixels: some maps of larger images would take gigabytes."""

OTHER_PARTS = ("_trimap", "_alpha", "_mask", "_foreground")
"""Endings of the names of trimaps, mattes and masks, which are not images to predict."""

LONGEST_NAME = 200
"""Maximum length of a result's name in bytes; file systems allow 255, and temporary names are a little longer."""


LEGEND = "mask_legend.png"
"""Name of the figure with the colours of the classes, beside the masks."""


class Prediction(NamedTuple):
    """The result for one image.

    Attributes:
        image: the image, or the given path if there is none.
        output: the file that was written; None after an error.
        error: a one-line message; empty if the file was written.
    """

    image: Path
    output: Path | None
    error: str = ""


class Predictor:
    """A run's network with the weights of its last checkpoint.

    Attributes:
        run: the run.
        config: its settings.
        task: ``segmentation`` or ``matting``.
        classes: number of classes of its masks.
        step: the optimiser step of the weights.

    Example:
        >>> predict = Predictor("runs/fade")  # doctest: +SKIP
        >>> mask = predict(read_image("horse.jpg"))  # doctest: +SKIP
    """

    def __init__(self, run: RunLike, device: str = "auto") -> None:
        """Build the network and load its weights.

        Args:
            run: a run with a checkpoint, opened or by its path; it may be unfinished.
            device: ``auto``, ``cpu`` or ``cuda``.

        Raises:
            FadevizError: if there is no run, it was not recorded by :func:`fadeviz.train`, its weights are missing or
                damaged, or there is no such device.
        """
        (self.run,) = stored_runs(run)
        settings = self.run.info.config
        if "network" not in settings:
            raise FadevizError(
                f"{self.run.address} was recorded in a training loop of its own: its network is not known here. "
                "Predict with that program, or give a run of: fadeviz record"
            )
        self.config = config_from(settings, f"{self.run.address}/run.json", "Record again with overwrite=True")
        self.classes = self.run.info.classes or 2
        self._model = build_network(
            self.config.network, self.config.upsampler, classes=self.classes, width=self.config.width
        )
        self.task = self._model.task
        path = self.run.file("checkpoints/last.pt")
        self.step = read_weights(path, self.run.run_id, self._model)
        self._model.to(choose_device(device))
        self._model.eval()
        rules = TASKS[self.task]
        self._predict, self._has_classes = rules.predict, rules.has_classes

    def check_size(self, size: int | None) -> None:
        """Check that a size is not too small for the network.

        Raises:
            FadevizError: if it is less than the network's stride.
        """
        stride = self._model.stride
        if size is not None and size < stride:
            raise FadevizError(f"size is {size}; {self._model.title} needs images of {stride} pixels or more")

    def __call__(self, sample: Sample, *, size: int | None = None) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Predict the mask or the matte of an image.

        The network sees the image as it saw the test images of its training: squeezed into a square if they were,
        otherwise with its shorter side scaled to theirs. Mattes are predicted at the image's own size.

        Args:
            sample: an image of any size; for matting with a trimap.
            size: shorter side, or side of the square, at which the network sees the image, in pixels; None for that
                of the run's test images, or for matting the image's own.

        Returns:
            The class of each pixel, uint8, or its alpha, float32 in [0, 1]; ``(H, W)`` as the image.

        Raises:
            FadevizError: if a trimap is missing, ``size`` is less than the network's stride or far too large, or the
                memory does not suffice.
        """
        height, width = sample.image.shape[:2]
        stride = self._model.stride
        self.check_size(size)
        seen = height, width
        if self._has_classes and find_data(self.task, self.config.data).whole_images:
            seen = (size or self.config.size,) * 2
        elif size or self._has_classes:
            scale = (size or self.config.size) / min(height, width)
            seen = max(stride, round(height * scale)), max(stride, round(width * scale))
        if seen[0] * seen[1] > MOST_PIXELS:
            raise FadevizError(
                f"{sample.name}: the network would see {seen[1]}x{seen[0]} pixels, and {MOST_PIXELS:,} are the most. "
                "Use a smaller size=..., or crop the image"
            )
        with out_of_memory_in_words("Use a smaller size=..."):
            result = self._predict(self._model, _resized(sample, seen), stride, (height, width))
        if sample.trimap is not None and not self._has_classes:
            result[sample.trimap == 0], result[sample.trimap == 255] = 0, 1
        return result


def _resized(sample: Sample, size: tuple[int, int]) -> Sample:
    """Image and trimap at another size; the mask is a placeholder of that size."""
    if size == sample.image.shape[:2]:
        return sample
    there = size[1], size[0]
    image = np.array(Image.fromarray(sample.image).resize(there, Image.Resampling.BILINEAR))
    trimap = sample.trimap
    if trimap is not None:
        trimap = np.array(Image.fromarray(trimap).resize(there, Image.Resampling.NEAREST))
    return Sample(sample.name, image, np.zeros(size, np.uint8), trimap=trimap)


def read_image(path: str | Path, trimap: str | Path | None = None) -> Sample:
    """Read an image file, with its orientation tag applied, and its trimap if there is one; the mask is all 0.

    Transparent parts are composited over white.

    Raises:
        FadevizError: if a file cannot be read, the trimap is not one, or the two differ in size.
    """
    path = Path(path)
    if not path.is_file():
        raise FadevizError(f"no image {path}. Give a file such as photo.jpg, or a folder of them")
    image = np.array(to_rgb(open_image(path), path), dtype=np.uint8)
    regions = None
    if trimap is not None:
        regions = read_trimap(Path(trimap))
        if regions.shape != image.shape[:2]:
            raise FadevizError(
                f"{trimap} is {regions.shape[1]}x{regions.shape[0]}, but {path} is {image.shape[1]}x{image.shape[0]}. "
                "Give the trimap that belongs to the image"
            )
    return Sample(path.stem, image, np.zeros(image.shape[:2], np.uint8), trimap=regions)


def list_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The image files to predict: files as given, and all images of a folder but the trimaps and mattes among them.

    Raises:
        FadevizError: if a path does not exist, or a folder has no images.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            # What cannot be opened, such as a broken symlink, is reported when it is read.
            inside = [
                file
                for file in _inside(path)
                if not file.is_dir() and not file.stem.endswith(OTHER_PARTS) and file.name != LEGEND
            ]
            if not inside:
                raise FadevizError(f"{path} has no images ({', '.join(SUFFIXES)}). Give files, or another folder")
            files += inside
        elif os.path.lexists(path):
            files.append(path)
        else:
            raise FadevizError(f"no image {path}. Give a file such as photo.jpg, or a folder of them")
    return list({os.path.realpath(path): path for path in reversed(files)}.values())[::-1]


def note_not_predicted(paths: Iterable[str | Path]) -> list[str]:
    """A line for each folder among ``paths`` that holds subfolders, or files that are not images."""
    notes = []
    for folder in filter(Path.is_dir, map(Path, paths)):
        names = [name for name in list_folder(folder).left_out if not is_hidden(Path(name))]
        if names:
            what = "other entries" if len(names) > 1 else "other entry"
            notes.append(f"left out of {folder}: {len(names)} {what} ({shorten(names)})")
    return notes


def _inside(folder: Path) -> list[Path]:
    """The files in a folder whose names are those of images, sorted."""
    try:
        return [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES and not is_hidden(file)]
    except OSError as error:
        raise FadevizError(f"{folder} cannot be listed: {error.strerror or error}. Check its permissions") from error


def find_trimap(image: Path, folder: Path | None = None) -> Path:
    """The trimap of an image: ``name_trimap.*`` beside it, or ``name.*`` or ``name_trimap.*`` in ``folder``.

    Raises:
        FadevizError: if there is none, or there are two.
    """
    names = [f"{image.stem}_trimap"] if folder is None else [f"{image.stem}_trimap", image.stem]
    place = image.parent if folder is None else folder
    candidates = _inside(place) if place.is_dir() else []
    for name in names:
        trimaps = [file for file in candidates if key_of(file.stem) == key_of(name)]
        if len(trimaps) > 1:
            first, second = trimaps[0].name, trimaps[1].name
            raise FadevizError(f"{image} has two trimaps, {first} and {second}. Remove one of the two")
        if trimaps:
            return trimaps[0]
    where = f"in {folder}" if folder is not None else "beside it, or in trimaps=DIR"
    raise FadevizError(
        f"{image} has no trimap: matting needs one, 0 background, 128 unknown, 255 foreground. "
        f"Put {image.stem}_trimap.png {where}"
    )


def predict(
    run: RunLike,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    trimaps: str | Path | None = None,
    size: int | None = None,
    device: str = "auto",
    on_result: Callable[[Prediction], None] | None = None,
) -> list[Prediction]:
    """Write a mask or a matte for each image, at the image's size and with its orientation tag applied.

    A mask is ``NAME_mask.png``: class indices with a palette: the colours of the run's classes, or else black and white
    for two classes and those of :func:`~fadeviz.render.colormap.class_palette` for more. Where classes have colours or
    names, ``LEGEND`` shows those of the masks. A matte is ``NAME_alpha.png``, 8-bit greyscale. An image that
    cannot be read, or has no trimap, does not stop the others.

    Args:
        run: a run with a checkpoint, opened or by its path; it may be unfinished. The last checkpoint is used.
        images: one or several image files, or folders of them.
        output: folder for the results; files of these names are replaced.
        trimaps: folder of the trimaps, for matting; by default they are beside the images.
        size: shorter side at which the network sees an image, in pixels; see :class:`Predictor`.
        device: ``auto``, ``cpu`` or ``cuda``.
        on_result: called with each image's result as soon as it is ready.

    Returns:
        The result for each image, in order; check ``error`` for failures.

    Raises:
        FadevizError: before anything is written, if the run has no weights, two results would have the same name or
            replace an image, or ``size`` is too small; later, if the folder cannot be written or the disk is full.

    Example:
        >>> done = predict("runs/fade", ["photos"], "masks")  # doctest: +SKIP
        >>> [p.error for p in done if p.output is None]  # doctest: +SKIP
        ['photos/b.png cannot be read: it is empty (0 bytes). Download it again, or remove it and what belongs to it']
    """
    predictor = Predictor(run, device)
    predictor.check_size(size)
    rules = TASKS[predictor.task]
    needs_trimap = not rules.has_classes
    if trimaps is not None and not needs_trimap:
        raise FadevizError(f"{predictor.run.address} is a segmentation run: trimaps are of no use. Leave them out")
    folder = None if trimaps is None else Path(trimaps)
    paths = [images] if isinstance(images, str | os.PathLike) else images
    done: list[Prediction] = []
    legend = Path(output) / LEGEND if has_legend(predictor.run) else None
    shares = largest_shares([])
    for planned in _plan(paths, Path(output), rules.result, legend):
        result = planned
        if planned.output is not None:
            try:
                sample = read_image(planned.image, find_trimap(planned.image, folder) if needs_trimap else None)
                values = predictor(sample, size=size)
            except FadevizError as error:
                result = planned._replace(output=None, error=str(error))
            else:
                _write_result(values, predictor.run, planned.output)
                if legend is not None:
                    shares = np.maximum(shares, largest_shares([values.astype(np.uint8)]))
        done.append(result)
        if on_result is not None:
            on_result(result)
    if legend is not None and shares.any():
        write_legend(class_key([predictor.run], shares, least=0).legend, legend)
    return done


def has_legend(run: RunLike) -> bool:
    """Whether :func:`predict` writes a legend of the classes beside the masks of a run."""
    return names_classes(*stored_runs(run))


def _plan(images: Sequence[str | os.PathLike[str]], folder: Path, ending: str, legend: Path | None) -> list[Prediction]:
    """Each image with the file to write.

    Raises:
        FadevizError: if two results would have the same name, or a result or the legend would replace an image.
    """
    planned: list[Prediction] = []
    seen: dict[str, Path] = {}
    files: set[str] = set()
    for image in images:
        try:
            listed = list_images([image])
        except FadevizError as error:
            planned.append(Prediction(Path(image), None, str(error)))
            continue
        for file in listed:
            if (real := os.path.realpath(file)) in files:
                continue  # given twice
            files.add(real)
            name = f"{file.stem}_{ending}.png"
            if (key := key_of(name)) in seen:
                raise FadevizError(f"{file} and {seen[key]} would both become {name}. Predict them one by one")
            seen[key] = file
            if len(os.fsencode(name)) > LONGEST_NAME:
                planned.append(Prediction(file, None, f"{file} has too long a name for a result. Rename it"))
            else:
                planned.append(Prediction(file, folder / name))
    written = [result.output for result in planned if result.output is not None] + ([legend] if legend else [])
    replaced = files & set(map(os.path.realpath, written))
    if replaced:
        raise FadevizError(f"{min(replaced)} would be replaced by a result. Choose another folder")
    return planned


def _write_result(values: NDArray[np.uint8] | NDArray[np.float32], run: StoredRun, path: Path) -> None:
    """A mask as indices with a palette, a matte as greyscale."""
    if np.issubdtype(values.dtype, np.floating):
        image = Image.fromarray(np.rint(values * 255).astype(np.uint8))
    else:
        image = Image.fromarray(values.astype(np.uint8))
        image.putpalette(class_colours(run).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    make_folder(path.parent)
    write_whole(path, buffer.getvalue(), named=False)


__all__ = [
    "LEGEND",
    "Prediction",
    "Predictor",
    "find_trimap",
    "has_legend",
    "list_images",
    "note_not_predicted",
    "predict",
    "read_image",
]
