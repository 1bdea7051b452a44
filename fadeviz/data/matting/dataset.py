"""Matting data sets: synthetic horses, Composition-1K, alphamatting.com and single images, composed and cropped.

All mattes have 8 bits here, as they are published: ``alpha`` is n / 255. A training image is composed anew each time,
``alpha * foreground + (1 - alpha) * background`` on sRGB values (not on linear light, as every matting set does it) and
rounded, so that its layers explain it exactly. Test images are whole, at their own sizes.

The layouts that :func:`load_matting` reads are in :mod:`fadeviz.data.matting.files`.
"""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ...errors import FadevizError, printable
from ...storage.files import check_regular, read_regular
from .. import Sample, Splits
from ..images import MAX_BYTES, describe_images
from ..synthetic.dataset import SMALLEST, SyntheticHorses, held_out_horses
from .compositing import Pixels, composite, crop_sample, make_trimap, to_alpha, to_sample, trimap_radii
from .files import Layers, MatteFiles, find_mattes, read_colours, read_layers, read_whole

SCALES = (1.0, 1.5, 2.0)
"""A training crop's side is the requested one times one of these; it is then shrunk (Lu et al., ICCV 2019)."""

KEEP_BYTES = 1 << 29
"""Decoded images are kept up to this many bytes a set; what comes later is decoded each time."""


def _random(seed: int, index: int, use: int) -> np.random.Generator:
    # `use` keeps these numbers apart from each other and from those of order and flips, [seed, epoch], [seed, step, 1].
    return np.random.Generator(np.random.PCG64([seed, index, use]))


def _pick(edge: NDArray[np.bool_], random: np.random.Generator) -> tuple[int, int]:
    """Row and column of a random pixel of the edge."""
    places = np.flatnonzero(edge)
    return divmod(int(places[int(random.integers(len(places)))]), edge.shape[1])


def _window(centre: tuple[int, int], side: int, height: int, width: int) -> tuple[int, int]:
    """Top and left of a square of this side around a pixel, moved inwards where it would stick out."""
    row, column = centre
    return min(max(row - side // 2, 0), height - side), min(max(column - side // 2, 0), width - side)


def _edge(matte: Pixels) -> NDArray[np.bool_]:
    """Where the matte is partial; in a matte without such pixels, those beside another value."""
    edge = (matte > 0) & (matte < 255)
    if not edge.any():
        edge = ndimage.maximum_filter(matte, 3) != ndimage.minimum_filter(matte, 3)
    return edge


# --- synthetic horses ---


class SyntheticMattes:
    """Synthetic horses (:mod:`fadeviz.data.synthetic`) as a matting set: hair in manes and tails, layers known exactly.

    Without a ``count``, for training: the horse is drawn at 1 to 1.5 times the side (no image is resized), cropped
    around a random partial pixel, and mirrored at random. With one, for testing: drawn whole. Either depends on (seed,
    stream, index, size) alone.

    Shape: those of :class:`~fadeviz.data.Sample`, with H = W = ``size``; no array is None.

    Raises:
        FadevizError: if the size or seed is out of range.

    Example:
        >>> sample = SyntheticMattes(64)[3]
        >>> sample.name, sample.trimap.shape
        ('synthetic-train-0-3', (64, 64))
    """

    def __init__(self, size: int, seed: int = 0, *, stream: str = "train", count: int | None = None) -> None:
        self._horses = SyntheticHorses(size, seed, stream=stream, count=count)
        self.size, self.seed, self.stream = size, seed, stream

    @property
    def count(self) -> int | None:
        """The number of images; None for an endless set."""
        return self._horses.count

    def __getitem__(self, index: int) -> Sample:
        """The image at this index.

        Raises:
            IndexError: if there is no such index.
        """
        random, trimap_random = _random(self.seed, index, 3), _random(self.seed, index, 4)
        horses, whole = self._horses, self.count is not None
        if not whole:
            side = int(random.integers(self.size, self.size * 3 // 2 + 1))
            horses = SyntheticHorses(side, self.seed, stream=self.stream)
        foreground, background, drawn = horses.layers(index)
        matte = np.rint(drawn * 255).astype(np.uint8)
        name = f"synthetic-{self.stream}-{self.seed}-{index}"
        radii = trimap_radii(self.size)
        if whole:
            alpha = to_alpha(matte)
            image, trimap = composite(foreground, background, alpha), make_trimap(alpha, trimap_random, radii)
            return to_sample(name, image, matte, trimap, foreground, background)
        top, left = _window(_pick(_edge(matte), random), self.size, *matte.shape)
        layers = Sample(name, foreground, matte, background=background)
        cut = crop_sample(layers, top, left, self.size, bool(random.random() < 0.5))
        alpha = to_alpha(cut.mask)
        assert cut.background is not None
        image, trimap = composite(cut.image, cut.background, alpha), make_trimap(alpha, trimap_random, radii)
        return to_sample(name, image, cut.mask, trimap, cut.image, cut.background)


def load_synthetic_mattes(size: int = 224, split_seed: int = 0, seed: int = 0) -> Splits:
    """Endless synthetic horses to train on (by ``seed``), and 64 others to test on (by ``split_seed``).

    Raises:
        FadevizError: if the size is below 32 or a seed below 0.
    """
    _check_size(size)
    test = SyntheticMattes(size, split_seed, stream="test", count=held_out_horses(size, split_seed).count)
    info = {"name": "synthetic-mattes", "train": "endless", "test": test.count}
    return Splits(SyntheticMattes(size, seed), test, info)


# --- files ---


class _Kept:
    """Decoded images, up to a number of bytes."""

    def __init__(self, limit: int = KEEP_BYTES) -> None:
        self._left = limit
        self._kept: dict[Path, tuple[Pixels | None, ...]] = {}

    def get(self, path: Path, read: Callable[[], tuple[Pixels | None, ...]]) -> tuple[Pixels | None, ...]:
        if path in self._kept:
            return self._kept[path]
        value = read()
        size = sum(part.nbytes for part in value if part is not None)
        if size <= self._left:
            self._left -= size
            self._kept[path] = value
        return value


@lru_cache(maxsize=8)
def _round_order(seed: int, round_: int, count: int) -> list[int]:
    order: list[int] = _random(seed, round_, 5).permutation(count).tolist()
    return order


class MatteCrops:
    """Endless training crops: every foreground once in each round, each time on another background.

    A window with a random one of ``SCALES`` times the side (as large as the image allows, and enlarged where that is
    less than ``size``) is cut around a random pixel of the matte's edge; foreground, matte and a window of a random
    background (from half to all of its shorter side) are resized to ``size``, mirrored at random, and composed; then
    the trimap is made (:func:`make_trimap`, :func:`trimap_radii`). All random numbers come from (seed, index).

    Without backgrounds, half of the crops stay on their image's own one, which is close to the photograph, and half
    get a window of any training image's, where :func:`estimate_layers` has filled up what was not seen. Where the set
    has trimaps, the matte is set to 0 or 1 wherever the trimap is not unknown.

    Shape: those of :class:`~fadeviz.data.Sample`, with H = W = ``size``; no array is None.
    Differs: the published recipe composes 100 fixed backgrounds with each foreground ahead of training, at full size;
        here every background may meet every foreground.
    """

    def __init__(self, mattes: Sequence[MatteFiles], backgrounds: Sequence[Path], size: int, seed: int = 0) -> None:
        """Made by :func:`load_matting`; without ``backgrounds`` the mattes' own, estimated ones serve."""
        self._mattes, self._backgrounds = tuple(mattes), tuple(backgrounds)
        self._kept = _Kept()
        self.size, self.seed = size, seed

    @property
    def count(self) -> None:
        """None: crops are endless."""
        return

    @property
    def names(self) -> tuple[str, ...]:
        """The mattes' names."""
        return tuple(files.name for files in self._mattes)

    def __getitem__(self, index: int) -> Sample:
        """The crop at this index, always the same one.

        Raises:
            FadevizError: if a file cannot be read or has invalid content.
            IndexError: if the index is negative.
        """
        index = operator.index(index)
        if index < 0:
            raise IndexError(f"no crop {index}: there are 0 and up")
        random = _random(self.seed, index, 6)
        round_, place = divmod(index, len(self._mattes))
        files = self._mattes[_round_order(self.seed, round_, len(self._mattes))[place]]
        layers = self._layers(files)
        height, width = layers.matte.shape
        side = min(int(self.size * SCALES[int(random.integers(len(SCALES)))]), height, width)
        centre = _pick(_edge(layers.matte), random)
        matte = self._resized(layers.matte, *_window(centre, side, height, width), side)
        if matte.min() == matte.max():
            # A lone 254 among 255s, which mattes do have, is lost when the window is shrunk.
            side = min(self.size, height, width)
            matte = self._resized(layers.matte, *_window(centre, side, height, width), side)
        foreground = self._resized(layers.foreground, *_window(centre, side, height, width), side)
        background = self._ground(random)
        if layers.background is not None and random.random() < 0.5:
            background = self._resized(layers.background, *_window(centre, side, height, width), side)
        if random.random() < 0.5:
            foreground, matte = np.ascontiguousarray(foreground[:, ::-1]), np.ascontiguousarray(matte[:, ::-1])
        alpha = to_alpha(matte)
        try:
            trimap = make_trimap(alpha, random, trimap_radii(self.size))
        except FadevizError as error:
            raise FadevizError(f"{files.alpha}: a crop of {side} pixels has no edge. Use a larger size") from error
        name = f"{files.name}-{index}"
        return to_sample(name, composite(foreground, background, alpha), matte, trimap, foreground, background)

    def _layers(self, files: MatteFiles) -> Layers:
        return Layers(*self._kept.get(files.alpha, lambda: read_layers(files, bool(self._backgrounds))))  # type: ignore[arg-type]

    def _ground(self, random: np.random.Generator) -> Pixels:
        if self._backgrounds:
            path = self._backgrounds[int(random.integers(len(self._backgrounds)))]
            ground = self._kept.get(path, lambda: (read_colours(path),))[0]
        else:
            ground = self._layers(self._mattes[int(random.integers(len(self._mattes)))]).background
        assert ground is not None
        height, width = ground.shape[:2]
        side = max(1, int(min(height, width) * random.uniform(0.5, 1)))
        top, left = (int(random.integers(free + 1)) for free in (height - side, width - side))
        return self._resized(ground, top, left, side)

    def _resized(self, values: Pixels, top: int, left: int, side: int) -> Pixels:
        cut = values[top : top + side, left : left + side]
        if side == self.size:
            return cut.copy()
        # Pillow widens the filter when it shrinks an image, so that nothing aliases.
        return np.array(Image.fromarray(cut).resize((self.size, self.size), Image.Resampling.BILINEAR))


class MatteImages:
    """Whole test images, each at its own size, with image, matte and trimap from files.

    Where a set has no composed images they are composed here: the background is enlarged (bicubic) until it covers
    the foreground, and its top left corner is taken, as the set's authors do; other programs' bicubic filters give
    slightly other pixels.

    ``foreground`` and ``background`` are None where the set does not have them.
    """

    def __init__(self, mattes: Sequence[MatteFiles]) -> None:
        """Made by :func:`load_matting`."""
        self._mattes = tuple(mattes)

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self._mattes)

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names."""
        return tuple(files.name for files in self._mattes)

    def __getitem__(self, index: int) -> Sample:
        """The image at this index.

        Raises:
            FadevizError: if a file cannot be read or has invalid content, or sizes differ.
            IndexError: if there is no such index; negative indices are not supported.
        """
        if not 0 <= index < len(self._mattes):
            raise IndexError(f"no image {index}: there are {len(self._mattes)}, from 0")
        return read_whole(self._mattes[index])


def load_matting(
    folder: str | os.PathLike[str],
    size: int = 320,
    split_seed: int = 0,
    seed: int = 0,
    *,
    backgrounds: str | os.PathLike[str] = "",
    test_backgrounds: str | os.PathLike[str] = "",
) -> Splits:
    """A folder in one of this module's layouts: crops to train on, whole images to test on.

    Args:
        folder: the folder of the data set.
        size: side of the training crops in pixels, at least 32; test images keep their own sizes.
        split_seed: seed of the split, if the set has none of its own.
        seed: seed of the training crops.
        backgrounds: a folder of images to compose training images with. Required by ``composition-1k`` unless it has
            ``bg``; other layouts default to the training images' own backgrounds.
        test_backgrounds: a folder of images to compose test images with, for those of ``composition-1k`` that are not
            composed yet.

    Raises:
        FadevizError: if the folder does not exist, has an unknown layout or lacks files. Files are read when they are
            used; :func:`check_matting` reads all of them.
    """
    _check_size(size)
    contents = find_mattes(Path(folder), split_seed, str(backgrounds), str(test_backgrounds))
    if contents.problems:
        more = f" (and {len(contents.problems) - 1} more such problems)" if len(contents.problems) > 1 else ""
        raise FadevizError(contents.problems[0] + more)
    train, test = MatteCrops(contents.train, contents.backgrounds, size, seed), MatteImages(contents.test)
    used = sorted({path for files in (*contents.train, *contents.test) for path in files.paths})
    info: Mapping[str, object] = {
        "name": contents.layout,
        "folder": str(folder),
        "count": len({files.name for files in (*contents.train, *contents.test)}),
        "fingerprint": _fingerprint(
            Path(folder), used, contents.backgrounds, whole=contents.layout != "composition-1k"
        ),
        "split_seed": split_seed,
        "train": list(train.names),
        "test": list(test.names),
        "backgrounds": len(contents.backgrounds),
        "notes": [printable(note) for note in contents.notes],
    }
    return Splits(train, test, info)


def check_matting(
    folder: str | os.PathLike[str],
    *,
    backgrounds: str | os.PathLike[str] = "",
    test_backgrounds: str | os.PathLike[str] = "",
) -> list[str]:
    """Read every file of a matting folder and return all problems, a line each; empty means that all is well."""
    try:
        contents = find_mattes(Path(folder), 0, str(backgrounds), str(test_backgrounds))
    except FadevizError as error:
        return [str(error)]
    reads: list[Callable[[], object]] = [lambda path=path: read_colours(path) for path in contents.backgrounds]  # type: ignore[misc]
    reads += [lambda files=files: read_layers(files, True) for files in contents.train]  # type: ignore[misc]
    reads += [lambda files=files: read_whole(files) for files in contents.test]  # type: ignore[misc]
    problems = [printable(problem) for problem in contents.problems]
    for read in reads:
        try:
            read()
        except FadevizError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def describe_matting(folder: str | os.PathLike[str]) -> list[str]:
    """Properties of a matting folder's files that other readers may treat differently, a line each.

    Raises:
        FadevizError: under the same conditions as :func:`load_matting`.
    """
    contents = find_mattes(Path(folder), 0, "", "")
    mattes = [*contents.train, *contents.test]
    named: dict[str, Sequence[Path | None]] = {
        "images": [path for files in mattes for path in (files.image, files.background)] + [*contents.backgrounds],
        "foregrounds": [files.foreground for files in mattes],
        "mattes": [files.alpha for files in mattes],
        "trimaps": [files.trimap for files in mattes],
    }
    return [
        line
        for what, paths in named.items()
        for line in describe_images((path for path in paths if path is not None), what, "by its colours")
    ]


def _check_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < SMALLEST:
        raise FadevizError(f"size is {size!r}; crops of mattes need a whole number of pixels, {SMALLEST} or more")


def _fingerprint(root: Path, paths: Iterable[Path], backgrounds: Iterable[Path], whole: bool) -> str:
    """SHA256 over names, sizes and bytes; not the bytes where there may be tens of gigabytes of them."""
    digest = hashlib.sha256()
    for path, read in [*((path, whole) for path in paths), *((path, False) for path in backgrounds)]:
        try:
            # The set's own folder may be called anything. The size separates one file from the next.
            name = path.name if path.parent == root else f"{path.parent.name}/{path.name}"
            check_regular(path, MAX_BYTES)
            digest.update(f"{name}\n{path.stat().st_size}\n".encode())
            digest.update(read_regular(path, MAX_BYTES) if read else b"")
        except OSError as error:
            raise FadevizError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
