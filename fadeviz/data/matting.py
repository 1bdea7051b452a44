"""Mattes: drawn horses, Composition-1K, alphamatting.com and single pictures, composed and cropped for training.

All mattes have 8 bits here, as they are published: ``alpha`` is n / 255. A training picture is composed anew each time,
``alpha * foreground + (1 - alpha) * background`` on sRGB values (not on linear light, as every matting set does it) and
rounded, so that its layers explain it exactly. Test pictures are whole, at their own sizes.

Layouts that :func:`load_matting` knows by their folder names, in a folder or in its ``Combined_Dataset``:

``composition-1k`` (N. Xu et al., "Deep image matting", CVPR 2017; licensed by Adobe, 431 + 50 foregrounds)
    ``Training_set/{fg,alpha}`` or ``Training_set/<part>/{fg,alpha}``, where a part is ``Adobe-licensed images`` or
    ``Other``. Backgrounds (COCO's training pictures) in ``Training_set/bg`` or any folder given; where
    ``Training_set/training_bg_names.txt`` lies, those of its names alone.
    ``Test_set`` in the same way: ``merged`` + ``trimaps`` + ``alpha`` (or ``alpha_copy``), where ``merged/name_7.png``
    may have the matte ``alpha/name.png``; without ``merged``, ``fg`` + ``alpha`` + ``trimaps`` with ``bg`` (Pascal
    VOC), ``test_fg_names.txt`` and ``test_bg_names.txt``: as many backgrounds, in turn, to each foreground.
    ``train`` and ``test`` serve as names too.
``alphamatting`` (C. Rhemann et al., "A perceptually motivated online benchmark for image matting", CVPR 2009)
    ``input``, ``gt``, ``trimap1`` (the narrower one, which is tested on) or ``trimap2``; split by a seed.
``pictures``
    ``name.png``, ``name_alpha.png``, ``name_trimap.png`` and, where known, ``name_foreground.png``; split by a seed.

The last two have no layers to compose with: :func:`estimate_layers` stands in for them.
"""

from __future__ import annotations

import hashlib
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ..errors import FadevizError
from . import Sample, Splits, synthetic
from .pictures import open_picture, to_rgb
from .synthetic import SMALLEST, SyntheticHorses

BACKGROUND, UNKNOWN, FOREGROUND = 0, 128, 255
"""A trimap's values."""

SCALES = (1.0, 1.5, 2.0)
"""A training crop has one of these times the wanted side, at random, and is shrunk to it (Lu et al., ICCV 2019)."""

TEST_SHARE = 0.22
"""The share of a set without a split of its own to test on: 4 of 18 pictures, 6 of 27."""

KEEP_BYTES = 1 << 29
"""Decoded pictures are kept up to this many bytes a set; what comes later is decoded each time."""

Pixels = NDArray[np.uint8]
Matte = NDArray[np.float32]

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})


def trimap_radii(size: int) -> tuple[int, int]:
    """The radii in pixels, both ends included, between which a training crop of this side draws its trimap's.

    From 1 to 19 at 320 pixels and above (Lu et al., ICCV 2019), less in proportion below, where 19 would leave
    nothing known of a leg.
    """
    return 1, max(2, min(19, size * 19 // 320))


def make_trimap(alpha: Matte, random: np.random.Generator, radii: tuple[int, int] = (1, 19)) -> Pixels:
    """A trimap of a matte: sure foreground and sure background, each eroded by a disc of a random radius.

    A pixel stays foreground if all pixels within ``r_f`` of it (Euclidean distance between centres) have ``alpha`` 1;
    background if all within ``r_b`` have ``alpha`` 0; the rest is unknown. That is the dilation of ``0 < alpha < 1`` by
    discs, ``r_f`` inwards and ``r_b`` outwards, and holds for mattes without partial pixels as well. What lies beyond
    the picture's border is not asked. Common recipes draw one radius for both sides.

    Args:
        alpha: ``(H, W)`` in [0, 1].
        random: two whole numbers are drawn from it: ``r_f``, then ``r_b``.
        radii: smallest and largest radius in pixels, both included; 0 leaves a side as it is.

    Returns:
        ``(H, W)`` uint8: 0 background, 128 unknown, 255 foreground.

    Raises:
        FadevizError: a matte that is all foreground or all background, or has no unknown pixel; bad radii.

    Example:
        >>> make_trimap(np.array([[0, 0, 0, 0.5, 1, 1]], np.float32), np.random.default_rng(0), (1, 1))
        array([[  0,   0, 128, 128, 128, 255]], dtype=uint8)
    """
    low, high = radii
    if not 0 <= low <= high:
        raise FadevizError(f"make_trimap: radii are {radii}; two numbers from 0 up are needed, the smaller one first")
    trimap = np.full(alpha.shape, UNKNOWN, np.uint8)
    for sure, value in ((alpha >= 1, FOREGROUND), (alpha <= 0, BACKGROUND)):
        radius = int(random.integers(low, high + 1))
        if sure.all():
            raise FadevizError(
                f"make_trimap: alpha is {value // 255} everywhere: nothing is unknown. Give a matte with an edge"
            )
        trimap[ndimage.distance_transform_edt(sure) > radius] = value
    if not (trimap == UNKNOWN).any():
        raise FadevizError("make_trimap: no pixel is unknown: alpha is 0 or 1 everywhere. Use radii from 1")
    return trimap


def composite(foreground: Pixels, background: Pixels, alpha: Matte) -> Pixels:
    """``alpha * foreground + (1 - alpha) * background`` on sRGB values, rounded.

    Shape: ``(H, W, 3)`` uint8 twice, ``(H, W)`` in [0, 1] -> ``(H, W, 3)`` uint8.

    Raises:
        FadevizError: sizes that differ.
    """
    if not foreground.shape[:2] == background.shape[:2] == alpha.shape:
        raise FadevizError(
            f"composite: foreground {_size(foreground)}, background {_size(background)} and alpha {_size(alpha)} "
            "differ in size. Crop or resize them first"
        )
    share = np.asarray(alpha, np.float32)[..., None]
    mixed = share * foreground + (1 - share) * background.astype(np.float32)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def estimate_layers(image: Pixels, alpha: Matte) -> tuple[Pixels, Pixels]:
    """Foreground and background of a photograph, guessed: each pixel has the colour of the nearest pure one.

    An approximation: where ``alpha`` is 1 the foreground is the photograph; elsewhere it is the photograph's colour at
    the nearest pixel with ``alpha`` 1, so that hair has the colour of the head. The background likewise, from
    ``alpha`` 0. Where no pixel is pure, those with the largest (smallest) ``alpha`` serve. Composing the two by
    ``alpha`` does not give the photograph back where it is partial.

    Shape: ``(H, W, 3)`` uint8, ``(H, W)`` in [0, 1] -> ``(H, W, 3)`` uint8 twice.
    """
    layers = []
    for pure in (alpha >= alpha.max(), alpha <= alpha.min()):
        rows, columns = ndimage.distance_transform_edt(~pure, return_distances=False, return_indices=True)
        layers.append(image[rows, columns])
    return layers[0], layers[1]


def crop_unknown(sample: Sample, size: int) -> Sample:
    """The square window of a picture that holds most unknown pixels: to observe whole pictures at one size.

    Of windows with equally many, the first in reading order. All of the sample's arrays are cropped alike.

    Raises:
        FadevizError: a picture without trimap, or smaller than ``size``.
    """
    if sample.trimap is None:
        raise FadevizError(f"{sample.name} has no trimap: there is nothing unknown to crop to. Use a matting set")
    height, width = sample.mask.shape
    if min(height, width) < size:
        raise FadevizError(f"{sample.name} is {width}x{height}, smaller than the wanted {size}. Use a smaller size")
    table = np.zeros((height + 1, width + 1), np.int64)
    table[1:, 1:] = (sample.trimap == UNKNOWN).cumsum(0).cumsum(1)
    held = table[size:, size:] - table[:-size, size:] - table[size:, :-size] + table[:-size, :-size]
    top, left = np.unravel_index(int(held.argmax()), held.shape)
    return _cropped(sample, int(top), int(left), size)


def _cropped(sample: Sample, top: int, left: int, side: int, mirrored: bool = False) -> Sample:
    across = slice(None, None, -1) if mirrored else slice(None)

    def cut(values: NDArray[np.generic] | None) -> NDArray[np.generic] | None:
        return None if values is None else np.ascontiguousarray(values[top : top + side, left : left + side][:, across])

    return Sample(sample.name, *(cut(values) for values in sample[1:]))  # type: ignore[arg-type]


def _sample(
    name: str,
    image: Pixels,
    matte: Pixels,
    trimap: Pixels,
    foreground: Pixels | None = None,
    background: Pixels | None = None,
) -> Sample:
    alpha = _to_alpha(matte)
    return Sample(name, image, (matte >= 128).astype(np.uint8), alpha, trimap, foreground, background)


def _to_alpha(matte: Pixels) -> Matte:
    return matte.astype(np.float32) / np.float32(255)


def _size(values: NDArray[np.generic]) -> str:
    return f"{values.shape[1]}x{values.shape[0]}"


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


# --- drawn horses ---


class DrawnMattes:
    """Drawn horses (:mod:`fadeviz.data.synthetic`) as a matting set: hair in manes and tails, layers known exactly.

    Without a ``count``, for training: the horse is drawn at 1 to 1.5 times the side (no picture is resized), cropped
    around a random partial pixel, and mirrored at random. With one, for testing: drawn whole. Either depends on (seed,
    stream, index, size) alone.

    Shape: as :class:`~fadeviz.data.Sample` says, ``size`` x ``size``; no array is None.

    Raises:
        FadevizError: a size or seed out of range.

    Example:
        >>> sample = DrawnMattes(64)[3]
        >>> sample.name, sample.trimap.shape
        ('synthetic-train-0-3', (64, 64))
    """

    def __init__(self, size: int, seed: int = 0, *, stream: str = "train", count: int | None = None) -> None:
        self._horses = SyntheticHorses(size, seed, stream=stream, count=count)
        self.size, self.seed, self.stream = size, seed, stream

    @property
    def count(self) -> int | None:
        """How many there are; None when they never end."""
        return self._horses.count

    def __getitem__(self, index: int) -> Sample:
        """The picture at this index.

        Raises:
            IndexError: no such index.
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
            alpha = _to_alpha(matte)
            image, trimap = composite(foreground, background, alpha), make_trimap(alpha, trimap_random, radii)
            return _sample(name, image, matte, trimap, foreground, background)
        top, left = _window(_pick(_edge(matte), random), self.size, *matte.shape)
        layers = Sample(name, foreground, matte, background=background)
        cut = _cropped(layers, top, left, self.size, bool(random.random() < 0.5))
        alpha = _to_alpha(cut.mask)
        assert cut.background is not None
        image, trimap = composite(cut.image, cut.background, alpha), make_trimap(alpha, trimap_random, radii)
        return _sample(name, image, cut.mask, trimap, cut.image, cut.background)


def load_synthetic_mattes(size: int = 224, split_seed: int = 0, seed: int = 0) -> Splits:
    """Drawn horses to train on without end (by ``seed``), and 64 others to test on (by ``split_seed``).

    Raises:
        FadevizError: a size below 32, a seed below 0.
    """
    _check_size(size)
    count = synthetic.TEST_DRAWINGS
    test = DrawnMattes(size, split_seed, stream="test", count=count)
    info = {"name": "synthetic-mattes", "train": "endless", "test": count}
    return Splits(DrawnMattes(size, seed), test, info)


# --- files ---


@dataclass(frozen=True)
class MatteFiles:
    """The files of one matte; what a layout does not have is None.

    Attributes:
        name: what the picture is called.
        alpha: the matte.
        image: the picture that the matte belongs to.
        foreground: its foreground's colours.
        background: what it is to be composed with, where there is no ``image``.
        trimap: its trimap.
    """

    name: str
    alpha: Path
    image: Path | None = None
    foreground: Path | None = None
    background: Path | None = None
    trimap: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files there are."""
        named = (self.alpha, self.image, self.foreground, self.background, self.trimap)
        return tuple(path for path in named if path is not None)


@dataclass
class _Found:
    """What a folder holds."""

    layout: str
    train: list[MatteFiles]
    test: list[MatteFiles]
    backgrounds: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class _Layers(NamedTuple):
    foreground: Pixels
    matte: Pixels
    background: Pixels | None


class _Kept:
    """What was decoded, up to a number of bytes."""

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


class MatteCrops:
    """Training crops without end: every foreground once in each round, each time on another background.

    A window with a random one of ``SCALES`` times the side (as large as the picture allows, and enlarged where that is
    less than ``size``) is cut around a random pixel of the matte's edge; foreground, matte and a window of a random
    background (from half to all of its shorter side) are resized to ``size``, mirrored at random, and composed; then
    the trimap is made (:func:`make_trimap`, :func:`trimap_radii`). All random numbers come from (seed, index).

    Without backgrounds, half of the crops stay on their picture's own one, which is close to the photograph, and half
    get a window of any training picture's, where :func:`estimate_layers` has filled up what was not seen. Where the set
    has trimaps, the matte is taken for 0 and 1 where they say so.

    Shape: as :class:`~fadeviz.data.Sample` says, ``size`` x ``size``; no array is None.
    Differs: the published recipe composes 100 fixed backgrounds with each foreground ahead of training, at full size;
        here every background may meet every foreground.
    """

    def __init__(self, mattes: Sequence[MatteFiles], backgrounds: Sequence[Path], size: int, seed: int = 0) -> None:
        """Made by :func:`load_matting`; without ``backgrounds`` the mattes' own, estimated ones serve."""
        self._mattes, self._backgrounds = tuple(mattes), tuple(backgrounds)
        self._kept = _Kept()
        self._order = lru_cache(maxsize=4)(
            lambda round_: _random(seed, round_, 5).permutation(len(self._mattes)).tolist()
        )
        self.size, self.seed = size, seed

    @property
    def count(self) -> None:
        """None: they never end."""
        return

    @property
    def names(self) -> tuple[str, ...]:
        """The mattes' names."""
        return tuple(files.name for files in self._mattes)

    def __getitem__(self, index: int) -> Sample:
        """The crop at this index, always the same one.

        Raises:
            FadevizError: a file that cannot be read, or is not what it should be.
            IndexError: a negative index.
        """
        index = operator.index(index)
        if index < 0:
            raise IndexError(f"no crop {index}: there are 0 and up")
        random = _random(self.seed, index, 6)
        round_, place = divmod(index, len(self._mattes))
        files = self._mattes[self._order(round_)[place]]
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
        alpha = _to_alpha(matte)
        try:
            trimap = make_trimap(alpha, random, trimap_radii(self.size))
        except FadevizError as error:
            raise FadevizError(f"{files.alpha}: a crop of {side} pixels has no edge. Use a larger size") from error
        name = f"{files.name}-{index}"
        return _sample(name, composite(foreground, background, alpha), matte, trimap, foreground, background)

    def _layers(self, files: MatteFiles) -> _Layers:
        return _Layers(*self._kept.get(files.alpha, lambda: _read_layers(files, bool(self._backgrounds))))  # type: ignore[arg-type]

    def _ground(self, random: np.random.Generator) -> Pixels:
        if self._backgrounds:
            path = self._backgrounds[int(random.integers(len(self._backgrounds)))]
            ground = self._kept.get(path, lambda: (_read_colours(path),))[0]
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
        # Pillow widens the filter when it shrinks a picture, so that nothing aliases.
        return np.array(Image.fromarray(cut).resize((self.size, self.size), Image.Resampling.BILINEAR))


class MattePictures:
    """Whole test pictures, each at its own size, with image, matte and trimap from files.

    Where a set has no composed pictures they are composed here: the background is enlarged (bicubic) until it covers
    the foreground, and its top left corner is taken, as the set's authors do; other programs' bicubic filters give
    slightly other pixels.

    ``foreground`` and ``background`` are None where the set does not have them.
    """

    def __init__(self, mattes: Sequence[MatteFiles]) -> None:
        """Made by :func:`load_matting`."""
        self._mattes = tuple(mattes)

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self._mattes)

    @property
    def names(self) -> tuple[str, ...]:
        """The pictures' names."""
        return tuple(files.name for files in self._mattes)

    def __getitem__(self, index: int) -> Sample:
        """The picture at this index.

        Raises:
            FadevizError: a file that cannot be read or is not what it should be; sizes that differ.
            IndexError: no such index; negative ones count as none.
        """
        if not 0 <= index < len(self._mattes):
            raise IndexError(f"no picture {index}: there are {len(self._mattes)}, from 0")
        return _read_whole(self._mattes[index])


def load_matting(
    folder: str | os.PathLike[str],
    size: int = 320,
    split_seed: int = 0,
    seed: int = 0,
    *,
    backgrounds: str | os.PathLike[str] = "",
    test_backgrounds: str | os.PathLike[str] = "",
) -> Splits:
    """A folder in one of this module's layouts: crops to train on, whole pictures to test on.

    Args:
        folder: where the set lies.
        size: side of the training crops in pixels, at least 32; test pictures keep their own sizes.
        split_seed: of the split, where the set has none of its own.
        seed: of the training crops.
        backgrounds: a folder of pictures to compose training pictures with. ``composition-1k`` needs it unless it has
            ``bg``; in other layouts the training pictures' own backgrounds serve without it.
        test_backgrounds: the same for test pictures of ``composition-1k`` that are not composed yet.

    Raises:
        FadevizError: no such folder, an unknown layout, missing files. Files are read when they are asked for:
            :func:`check_matting` reads all of them.
    """
    _check_size(size)
    found = _find(Path(folder), split_seed, str(backgrounds), str(test_backgrounds))
    if found.problems:
        more = f" (and {len(found.problems) - 1} more such problems)" if len(found.problems) > 1 else ""
        raise FadevizError(found.problems[0] + more)
    train, test = MatteCrops(found.train, found.backgrounds, size, seed), MattePictures(found.test)
    used = sorted({path for files in (*found.train, *found.test) for path in files.paths})
    info: Mapping[str, object] = {
        "name": found.layout,
        "folder": str(folder),
        "count": len({files.name for files in (*found.train, *found.test)}),
        "fingerprint": _fingerprint(used, found.backgrounds, whole=found.layout != "composition-1k"),
        "split_seed": split_seed,
        "train": list(train.names),
        "test": list(test.names),
        "backgrounds": len(found.backgrounds),
        "notes": found.notes,
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
        found = _find(Path(folder), 0, str(backgrounds), str(test_backgrounds))
    except FadevizError as error:
        return [str(error)]
    reads: list[Callable[[], object]] = [lambda path=path: _read_colours(path) for path in found.backgrounds]  # type: ignore[misc]
    reads += [lambda files=files: _read_layers(files, True) for files in found.train]  # type: ignore[misc]
    reads += [lambda files=files: _read_whole(files) for files in found.test]  # type: ignore[misc]
    problems = list(found.problems)
    for read in reads:
        try:
            read()
        except FadevizError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _check_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < SMALLEST:
        raise FadevizError(f"size is {size!r}; crops of mattes need a whole number of pixels, {SMALLEST} or more")


def _fingerprint(paths: Iterable[Path], backgrounds: Iterable[Path], whole: bool) -> str:
    """SHA256 over names, sizes and bytes; not the bytes where there may be tens of gigabytes of them."""
    digest = hashlib.sha256()
    for path, read in [*((path, whole) for path in paths), *((path, False) for path in backgrounds)]:
        try:
            # The size separates one file from the next.
            digest.update(f"{path.parent.name}/{path.name}\n{path.stat().st_size}\n".encode())
            digest.update(path.read_bytes() if read else b"")
        except OSError as error:
            raise FadevizError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


# --- reading ---


def _read_colours(path: Path) -> Pixels:
    return np.array(to_rgb(open_picture(path), path), dtype=np.uint8)


def _read_grey(path: Path, what: str) -> Pixels:
    """A matte or a trimap ``(H, W)``: one grey channel, or colours that are all grey."""
    picture = open_picture(path)
    if picture.mode.startswith(("I", "F")):
        raise FadevizError(f"{path} is a {what} of 16 bits or more (mode {picture.mode}). Convert it to 8 bits")
    if picture.mode in ("1", "L"):
        return np.array(picture.convert("L"), dtype=np.uint8)
    if picture.mode == "LA":
        return np.array(picture.getchannel("L"), dtype=np.uint8)
    colours = np.array(to_rgb(picture, path), dtype=np.uint8)
    if (colours.max(2) - colours.min(2)).max() > 2:
        raise FadevizError(f"{path} is coloured; a {what} is grey. Put the {what} there that belongs to the picture")
    return np.ascontiguousarray(colours[..., 0])


def _read_matte(path: Path) -> Pixels:
    matte = _read_grey(path, "matte")
    if matte.max() == 1:
        raise FadevizError(f"{path} has the values 0 and 1 alone; a matte goes from 0 to 255. Multiply it by 255")
    if matte.max() == matte.min():
        raise FadevizError(f"{path} is {matte.max()} everywhere: nothing is unknown. Put the picture's matte there")
    return matte


def read_trimap(path: Path) -> Pixels:
    """A trimap file ``(H, W)`` as 0, ``UNKNOWN`` and 255, whatever single grey it has for the unknown.

    Raises:
        FadevizError: a file that cannot be read, is coloured, has more greys than one, or none.
    """
    values = _read_grey(path, "trimap")
    there = np.unique(values).tolist()
    middle = [value for value in there if 0 < value < 255]
    if len(middle) > 1:
        shown = ", ".join(map(str, there[:6])) + (", ..." if len(there) > 6 else "")
        raise FadevizError(f"{path} has the values {shown}. A trimap has 0, one grey and 255; save it without loss")
    if not middle:
        raise FadevizError(f"{path} has no unknown pixel (a grey between 0 and 255). Put the picture's trimap there")
    values[values == middle[0]] = UNKNOWN
    return values


def _check_equal(a: Path, b: Path, first: Pixels, second: Pixels) -> None:
    if first.shape[:2] != second.shape[:2]:
        raise FadevizError(f"{a} is {_size(first)}, but {b} is {_size(second)}. Put the file there that belongs to it")


def _read_layers(files: MatteFiles, foreground_alone: bool) -> _Layers:
    """What a training picture is composed of; without ``foreground_alone`` a background too."""
    matte = _read_matte(files.alpha)
    if files.trimap is not None:
        # Mattes made by hand waver by 1 where all is foreground; the set's own trimap knows better.
        trimap = read_trimap(files.trimap)
        _check_equal(files.trimap, files.alpha, trimap, matte)
        matte[trimap == BACKGROUND], matte[trimap == FOREGROUND] = 0, 255
    image = foreground = None
    if files.foreground is not None:
        foreground = _read_colours(files.foreground)
        _check_equal(files.foreground, files.alpha, foreground, matte)
    if files.image is not None:
        image = _read_colours(files.image)
        _check_equal(files.image, files.alpha, image, matte)
    if image is None:
        assert foreground is not None
        return _Layers(foreground, matte, None)
    estimated, background = estimate_layers(image, _to_alpha(matte))
    return _Layers(estimated if foreground is None else foreground, matte, None if foreground_alone else background)


def _read_whole(files: MatteFiles) -> Sample:
    matte = _read_matte(files.alpha)
    if files.trimap is None:
        raise FadevizError(f"{files.alpha} has no trimap: testing needs one. Put it beside the matte")
    trimap = read_trimap(files.trimap)
    _check_equal(files.trimap, files.alpha, trimap, matte)
    foreground = background = None
    if files.foreground is not None:
        foreground = _read_colours(files.foreground)
        _check_equal(files.foreground, files.alpha, foreground, matte)
    if files.image is not None:
        image = _read_colours(files.image)
        _check_equal(files.image, files.alpha, image, matte)
    else:
        assert foreground is not None
        assert files.background is not None
        background = _covering(_read_colours(files.background), *matte.shape)
        image = composite(foreground, background, _to_alpha(matte))
    return _sample(files.name, image, matte, trimap, foreground, background)


def _covering(picture: Pixels, height: int, width: int) -> Pixels:
    """The top left of a picture, enlarged where it is smaller than that."""
    ratio = max(height / picture.shape[0], width / picture.shape[1])
    if ratio > 1:
        size = math.ceil(picture.shape[1] * ratio), math.ceil(picture.shape[0] * ratio)
        picture = np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    return np.ascontiguousarray(picture[:height, :width])


# --- finding ---


def _find(folder: Path, split_seed: int, backgrounds: str, test_backgrounds: str) -> _Found:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FadevizError(f"data folder {folder} {what}. Give the folder that holds the matting set")
    for root in (folder, folder / "Combined_Dataset"):
        for train, test in (("Training_set", "Test_set"), ("train", "test")):
            if (root / train).is_dir() and (root / test).is_dir():
                return _find_composition(root / train, root / test, backgrounds, test_backgrounds)
    if test_backgrounds:
        raise FadevizError(f"{folder}: its test pictures are whole, test backgrounds are of no use. Leave them out")
    if (folder / "input").is_dir() and (folder / "gt").is_dir():
        found = _find_alphamatting(folder)
    elif any(path.stem.endswith("_alpha") for path in _pictures(folder).values()):
        found = _find_pictures(folder)
    else:
        inside = sorted(path.name + "/" for path in folder.iterdir() if path.is_dir())[:6]
        raise FadevizError(
            f"{folder} is no matting folder: it has {', '.join(inside) or 'no folders'}, needed is Training_set/ with "
            "Test_set/, train/ with test/, input/ with gt/, or name_alpha.png with name.png. Give the folder that "
            "holds them"
        )
    if backgrounds:
        found.backgrounds = _background_files(Path(backgrounds), None)
    everything = sorted(found.train, key=lambda files: _seeded(split_seed, files.name))
    if len(everything) == 1:
        found.notes.append("a single picture: it is trained on and tested on")
        found.test = everything
    else:
        held_out = {files.name for files in everything[: max(1, round(TEST_SHARE * len(everything)))]}
        found.test = [files for files in found.train if files.name in held_out]
        found.train = [files for files in found.train if files.name not in held_out]
    for files in found.test:
        if files.trimap is None:
            found.problems.append(f"{files.alpha} has no trimap: testing needs one. Put it beside the matte")
    return found


def _seeded(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def _pictures(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by the stem of their names, sorted; nothing where there is no such folder."""
    if not folder.is_dir():
        return {}
    # Hidden files are what file managers leave behind, such as ._GT01.png.
    files = (path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."))
    return {path.stem: path for path in sorted(files)}


def _find_alphamatting(folder: Path) -> _Found:
    images, mattes = _pictures(folder / "input"), _pictures(folder / "gt")
    trimaps = _pictures(folder / "trimap1") or _pictures(folder / "trimap2")
    found = _Found("alphamatting", [], [])
    for name, image in images.items():
        if name in mattes:
            found.train.append(MatteFiles(name, mattes[name], image, trimap=trimaps.get(name)))
        else:
            found.problems.append(f"{image} has no matte {folder / 'gt' / name}.*. Add the matte, or remove the image")
    if not found.train and not found.problems:
        raise FadevizError(f"{folder / 'input'} has no images. Unpack the whole set there")
    return found


def _find_pictures(folder: Path) -> _Found:
    there = _pictures(folder)
    found = _Found("pictures", [], [])
    for stem, alpha in there.items():
        if not stem.endswith("_alpha"):
            continue
        name = stem.removesuffix("_alpha")
        if name in there:
            others = there.get(f"{name}_foreground"), None, there.get(f"{name}_trimap")
            found.train.append(MatteFiles(name, alpha, there[name], *others))
        else:
            found.problems.append(f"{alpha} has no image {folder / name}.*. Add the image, or remove the matte")
    return found


def _parts(folder: Path, *needed: str) -> list[Path]:
    """The folder, or those of its folders, that hold all the needed ones."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    return [path for path in (folder, *inside) if all((path / name).is_dir() for name in needed)]


def _find_composition(train: Path, test: Path, backgrounds: str, test_backgrounds: str) -> _Found:
    found = _Found("composition-1k", [], [])
    for part in _parts(train, "fg", "alpha"):
        mattes = _pictures(part / "alpha")
        for name, foreground in _pictures(part / "fg").items():
            if name in mattes:
                found.train.append(MatteFiles(name, mattes[name], foreground=foreground))
            else:
                found.problems.append(
                    f"{foreground} has no matte {part / 'alpha' / name}.*. Add the matte, or remove the foreground"
                )
    if not found.train and not found.problems:
        raise FadevizError(f"{train} has no fg/ with alpha/, or nothing in them. Unpack the whole training set there")
    names = train / "training_bg_names.txt"
    found.backgrounds = _background_files(Path(backgrounds or train / "bg"), names if names.is_file() else None)
    if _parts(test, "merged"):
        _find_merged(test, found)
    else:
        _find_to_compose(test, Path(test_backgrounds or test / "bg"), found)
    if not found.test and not found.problems:
        raise FadevizError(
            f"{test} has no merged/ with trimaps/ and alpha/, nor fg/ with alpha/ and trimaps/. Unpack the test set "
            "there"
        )
    return found


def _find_merged(test: Path, found: _Found) -> None:
    for part in _parts(test, "merged"):
        mattes = _pictures(part / "alpha_copy") or _pictures(part / "alpha")
        trimaps = _pictures(part / "trimaps")
        for name, image in _pictures(part / "merged").items():
            alpha = mattes.get(name) or mattes.get(re.sub(r"_\d+$", "", name))
            if alpha is None:
                found.problems.append(f"{image} has no matte in {part}/alpha or alpha_copy. Add it")
            elif name not in trimaps:
                found.problems.append(f"{image} has no trimap {part / 'trimaps' / name}.*: testing needs one. Add it")
            else:
                found.test.append(MatteFiles(name, alpha, image, trimap=trimaps[name]))


def _find_to_compose(test: Path, backgrounds: Path, found: _Found) -> None:
    """Test pictures from the authors' two lists of names: each foreground takes its turn of backgrounds."""
    foregrounds, grounds = (_lines(test / name) for name in ("test_fg_names.txt", "test_bg_names.txt"))
    if not foregrounds or len(grounds) % len(foregrounds):
        raise FadevizError(
            f"{test}: {len(grounds)} lines in test_bg_names.txt cannot be shared by {len(foregrounds)} in "
            "test_fg_names.txt. Put the set's own lists there"
        )
    each = len(grounds) // len(foregrounds)
    held: dict[str, MatteFiles] = {}
    trimaps: dict[str, Path] = {}
    for part in _parts(test, "fg", "alpha"):
        mattes = _pictures(part / "alpha")
        trimaps |= _pictures(part / "trimaps")
        held |= {
            name: MatteFiles(name, mattes[name], foreground=path)
            for name, path in _pictures(part / "fg").items()
            if name in mattes
        }
    there = _pictures(backgrounds)
    if not there:
        raise FadevizError(f"{backgrounds} has no pictures: test backgrounds are needed. Give their folder")
    for place, foreground in enumerate(foregrounds):
        files = held.get(Path(foreground).stem)
        if files is None:
            found.problems.append(f"{test} has no fg/ and alpha/ of {foreground}. Add both")
            continue
        for number, ground in enumerate(grounds[place * each : (place + 1) * each]):
            name = f"{files.name}_{number}"
            if Path(ground).stem not in there:
                found.problems.append(f"{backgrounds} has no {ground}, which test_bg_names.txt lists. Add it")
            elif name not in trimaps:
                found.problems.append(f"{test} has no trimap {name}.* in trimaps/: testing needs one. Add it")
            else:
                found.test.append(
                    MatteFiles(name, files.alpha, None, files.foreground, there[Path(ground).stem], trimaps[name])
                )


def _background_files(folder: Path, names: Path | None) -> list[Path]:
    there = _pictures(folder)
    if not there:
        raise FadevizError(
            f"{folder} has no pictures: backgrounds are needed to compose with. Give a folder of pictures without the "
            "foregrounds' kind of object, such as COCO's training set"
        )
    if names is None:
        return list(there.values())
    wanted = sorted({Path(line).stem for line in _lines(names)})
    missing = [name for name in wanted if name not in there]
    if missing:
        raise FadevizError(
            f"{folder} lacks {len(missing)} of the {len(wanted)} pictures that {names.name} lists, such as "
            f"{missing[0]}. Add them, or remove the list to use every picture there"
        )
    return [there[name] for name in wanted]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise FadevizError(f"{path} cannot be read: {reason}. Put the set's own list there") from error
