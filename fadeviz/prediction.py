"""Masks and mattes of pictures, from the weights that a run ended with."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .data import Sample
from .data.matting_files import read_trimap
from .data.pictures import open_picture, to_rgb
from .data.sets import find_data
from .errors import FadevizError
from .experiment import choose_device, config_from, out_of_memory_in_words
from .files import make_folder, write_whole
from .models import build_network
from .render.colormap import class_palette
from .runs import Run, open_run
from .training.checkpoint import read_weights
from .training.tasks import choose_task

MOST_PIXELS = 1 << 23
"""A network is not shown a larger picture than this, of 8 megapixels: some of its maps would take gigabytes."""

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""What is taken for a picture in a folder."""

OTHER_PARTS = ("_trimap", "_alpha", "_mask", "_foreground")
"""Ends of names that a folder's pictures have beside them: not pictures to predict."""


class Predictor:
    """A run's network with the weights it ended with.

    Attributes:
        run: the run.
        config: its settings.
        task: ``segmentation`` or ``matting``.
        classes: of its masks.
        step: the optimiser step that the weights are of.

    Example:
        >>> predict = Predictor("runs/fade")  # doctest: +SKIP
        >>> mask = predict(read_picture("horse.jpg"))  # doctest: +SKIP
    """

    def __init__(self, run: Run | str | Path, device: str = "auto") -> None:
        """Build the network and load its weights.

        Raises:
            FadevizError: no run, one that was not recorded by ``fadeviz record``, no or damaged weights, no such
                device.
        """
        self.run = run if isinstance(run, Run) else open_run(run)
        settings = self.run.info.get("config", {})
        if "network" not in settings:
            raise FadevizError(
                f"{self.run.address} was recorded in a training of its own: what its network was is not known here. "
                "Predict with that program, or give a run of: fadeviz record"
            )
        self.config = config_from(settings, f"{self.run.address}/run.json", "Record again with --overwrite")
        self.classes = int(self.run.info.get("classes", 2))
        self._model = build_network(
            self.config.network, self.config.upsampler, classes=self.classes, width=self.config.width
        )
        self.task = self._model.task
        path = self.run.file("checkpoints/last.pt")
        self.step = read_weights(path, self.run.run_id, self._model)
        self._model.to(choose_device(device))
        self._model.eval()
        self._predict = choose_task(self.task, self.classes).predict

    def __call__(self, sample: Sample, *, size: int | None = None) -> NDArray[np.uint8] | NDArray[np.float32]:
        """The class of each pixel, uint8, or its alpha, float32 in [0, 1]; ``(H, W)`` as the picture has.

        The network sees the picture as the test pictures of its training were: squeezed into a square where they were,
        else with its shorter side scaled to theirs. Mattes are made at the picture's own size.

        Args:
            sample: a picture of any size; for matting with a trimap.
            size: the shorter side, or the square's, in pixels, instead.

        Raises:
            FadevizError: matting without a trimap; a size below the network's stride, or far too large; no memory.
        """
        height, width = sample.image.shape[:2]
        stride = self._model.stride
        if size is not None and size < stride:
            raise FadevizError(f"size is {size}; {self._model.title} needs pictures of {stride} pixels or more")
        seen = height, width
        if self.task == "segmentation" and find_data(self.task, self.config.data).whole:
            seen = (size or self.config.size,) * 2
        elif size or self.task == "segmentation":
            scale = (size or self.config.size) / min(height, width)
            seen = max(stride, round(height * scale)), max(stride, round(width * scale))
        if seen[0] * seen[1] > MOST_PIXELS:
            raise FadevizError(
                f"{sample.name}: the network would see {seen[1]}x{seen[0]} pixels, and {MOST_PIXELS:,} are the most. "
                "Use a smaller --size, or crop the picture"
            )
        with out_of_memory_in_words("Use a smaller --size"):
            result = self._predict(self._model, _resized(sample, seen), stride, (height, width))
        if sample.trimap is not None and self.task == "matting":
            result[sample.trimap == 0], result[sample.trimap == 255] = 0, 1
        return result


def _resized(sample: Sample, size: tuple[int, int]) -> Sample:
    """Image and trimap at another size; the mask is only what fits them."""
    if size == sample.image.shape[:2]:
        return sample
    there = size[1], size[0]
    image = np.array(Image.fromarray(sample.image).resize(there, Image.Resampling.BILINEAR))
    trimap = sample.trimap
    if trimap is not None:
        trimap = np.array(Image.fromarray(trimap).resize(there, Image.Resampling.NEAREST))
    return Sample(sample.name, image, np.zeros(size, np.uint8), trimap=trimap)


def read_picture(path: str | Path, trimap: str | Path | None = None) -> Sample:
    """A picture of one's own, turned as its camera says, with its trimap if there is one; its mask is all 0.

    Raises:
        FadevizError: a file that cannot be read, or that is no trimap; two that differ in size.
    """
    path = Path(path)
    if not path.is_file():
        raise FadevizError(f"no picture {path}. Give a file such as photo.jpg, or a folder of them")
    opened = ImageOps.exif_transpose(open_picture(path))
    image = np.array(to_rgb(opened, path), dtype=np.uint8)
    known = None
    if trimap is not None:
        known = read_trimap(Path(trimap))
        if known.shape != image.shape[:2]:
            raise FadevizError(
                f"{trimap} is {known.shape[1]}x{known.shape[0]}, but {path} is {image.shape[1]}x{image.shape[0]}. "
                "Give the trimap that belongs to the picture"
            )
    return Sample(path.stem, image, np.zeros(image.shape[:2], np.uint8), trimap=known)


def list_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """The files to predict: of a folder all pictures, by name, but not the trimaps and mattes beside them.

    Raises:
        FadevizError: nothing there.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [
                file
                for file in sorted(path.iterdir())
                if file.suffix.lower() in PICTURES
                and not file.name.startswith(".")
                and not file.stem.endswith(OTHER_PARTS)
            ]
            if not inside:
                raise FadevizError(f"{path} has no pictures ({', '.join(PICTURES)}). Give pictures, or another folder")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FadevizError(f"no picture {path}. Give a file such as photo.jpg, or a folder of them")
    return list({path.resolve(): path for path in reversed(found)}.values())[::-1]


def find_trimap(picture: Path, folder: Path | None = None) -> Path:
    """The trimap of a picture: ``name_trimap.*`` beside it, or ``name.*`` or ``name_trimap.*`` in ``folder``.

    Raises:
        FadevizError: there is none.
    """
    places = [picture.parent / f"{picture.stem}_trimap"]
    if folder is not None:
        places = [folder / f"{picture.stem}_trimap", folder / picture.stem]
    for place in places:
        beside = sorted(place.parent.iterdir()) if place.parent.is_dir() else []
        for file in beside:
            if file.stem == place.name and file.suffix.lower() in PICTURES:
                return file
    where = f"in {folder}" if folder is not None else "beside it, or in --trimaps DIR"
    raise FadevizError(
        f"{picture} has no trimap: matting needs one, 0 background, 128 unknown, 255 foreground. "
        f"Put {picture.stem}_trimap.png {where}"
    )


def predict_files(
    run: Run | str | Path,
    pictures: Sequence[str | Path],
    out: str | Path,
    *,
    trimaps: str | Path | None = None,
    size: int | None = None,
    device: str = "auto",
) -> Iterator[Path]:
    """Write the mask or the matte of each picture, at its own size, and give the files one after another.

    A mask is ``NAME_mask.png``: the classes as numbers, with a palette to look at (two classes black and white; more in
    the colours of :func:`~fadeviz.render.colormap.class_palette`). A matte is ``NAME_alpha.png``, 8 bits of grey.

    Args:
        run: a finished run, or one that stopped: its last checkpoint counts.
        pictures: files, or folders of them.
        out: folder for the results; files of these names are replaced.
        trimaps: folder with the trimaps, for matting; else they lie beside the pictures.
        size: see :class:`Predictor`.
        device: where to compute.

    Raises:
        FadevizError: before anything is written: no weights, no pictures, a missing trimap, two pictures of one name,
            results that would replace a picture; later, a picture that cannot be read.
    """
    files, folder = list_pictures(pictures), Path(out)
    predict = Predictor(run, device)
    matting = predict.task == "matting"
    if trimaps is not None and not matting:
        raise FadevizError(f"{predict.run.address} is a segmentation run: trimaps are of no use. Leave them out")
    known: dict[Path, Path | None] = {
        file: find_trimap(file, None if trimaps is None else Path(trimaps)) if matting else None for file in files
    }
    results: dict[Path, Path] = {}
    for file in files:
        result = folder / f"{file.stem}_{'alpha' if matting else 'mask'}.png"
        if result in results:
            raise FadevizError(f"{file} and {results[result]} would both become {result.name}. Predict them one by one")
        results[result] = file
    if replaced := {path.resolve() for path in results} & {path.resolve() for path in files}:
        raise FadevizError(f"{min(replaced)} would be replaced by its own result. Choose another folder")
    palette = np.array([[0] * 3, [255] * 3], np.uint8) if predict.classes == 2 else class_palette(predict.classes)

    def write() -> Iterator[Path]:
        for result, file in results.items():
            found = predict(read_picture(file, known[file]), size=size)
            if matting:
                picture = Image.fromarray(np.rint(found * 255).astype(np.uint8))
            else:
                picture = Image.fromarray(found.astype(np.uint8))
                picture.putpalette(palette.tobytes())
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            make_folder(folder)
            write_whole(result, buffer.getvalue(), named=False)
            yield result

    return write()


__all__ = ["Predictor", "find_trimap", "list_pictures", "predict_files", "read_picture"]
