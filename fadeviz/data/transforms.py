"""From images of any size to squares that stack: random distorted crops to train on, centre crops to test on.

Colours are changed on planes, ``(3, H, W)`` float32 in [0, 255]: numpy is several times slower when the short axis
comes last. Hue and saturation are those of HSV, so that a change is the same as going to HSV and back.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import FadevizError
from . import Dataset, Sample

Planes = NDArray[np.float32]

IGNORED = 255
"""The class of pixels that count neither in the loss nor in a score: unlabelled ones and padding."""

PADDING = (124, 116, 104)
"""The colour of padding: ImageNet's mean, which becomes 0 (to 0.01) once the image is normalised."""

STRIDE = 32
"""The side of a square must be divisible by this, the downsampling factor of the encoders' coarsest map."""

ELONGATED = 4.0
"""An image's long side is brought to at most this many times its scaled size: only a longer strip is kept smaller."""


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes of a training crop; the defaults are those of SegFormer and others on ADE20K.

    Attributes:
        scale: the image's short side becomes the crop's, times a number between these two.
        largest_class: at most this share of a crop's labelled pixels may be of one class; 1 allows any crop.
        tries: maximum number of crops tried for that; the last one is used as it is.
        flip: the chance that a crop is mirrored left to right.
        brightness: largest number that is added to all values or subtracted from them; values are 0 to 255.
        contrast: all values are multiplied by a number between these two.
        saturation: HSV's saturation is multiplied by a number between these two.
        hue: degrees on the colour circle, at most, either way.

    Each of the four changes of colour happens with a chance of one half, brightness first. Contrast comes second or
    last, with a chance of one half each.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    largest_class: float = 0.75
    tries: int = 10
    flip: float = 0.5
    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 36.0


class AugmentedCrops:
    """An endless set: random square crops of a data set's images, epoch after epoch.

    Item ``index`` shows image ``permutation(index // n)[index % n]`` of the ``n`` images, with random numbers drawn
    from (seed, index). So every run of ``n`` items from a multiple of ``n`` is an epoch that has each image once, and
    an item depends on its index alone: a resumed run continues with the same crops.

    A crop is scaled, cut, mirrored, distorted in colour and, where the scaled image is smaller than the crop, padded
    on the right and below with ``PADDING`` and ``IGNORED``.

    *Shape*: image ``(size, size, 3)`` uint8, mask ``(size, size)`` uint8. A matte is dropped.

    *Units*: ``size`` is in pixels.

    *Cost*: about 20 ms a crop of 512x512 on one core, without reading the image.

    *Differs*: from the usual code in two ways. Colours are rounded once, at the end, instead of after every change.
    An image that is shrunk is averaged over area, where OpenCV's linear filter would alias.

    Args:
        dataset: images with masks, of any sizes; ``count`` is known.
        size: the side of the crops, divisible by 32.
        seed: 0 or more; another seed gives other crops in another order.
        augmentation: ranges of the random changes.

    Raises:
        FadevizError: if the size is not divisible by 32, the seed is negative, or the data set is empty or endless.

    Example:
        >>> from fadeviz.data.synthetic.dataset import SyntheticHorses
        >>> crops = AugmentedCrops(SyntheticHorses(48, count=3), 64)
        >>> crops.count, crops[100].image.shape
        (None, (64, 64, 3))
    """

    def __init__(self, dataset: Dataset, size: int, seed: int = 0, augmentation: Augmentation | None = None) -> None:
        count = dataset.count
        if not count:
            raise FadevizError(f"random crops need a finite data set with at least one image, not {dataset!r}")
        self.dataset = dataset
        self.size = check_side(size)
        self.seed = operator.index(seed)
        if self.seed < 0:
            raise FadevizError(f"seed is {seed}; it must be 0 or more")
        self.augmentation = augmentation or Augmentation()
        self._images = count

    @property
    def count(self) -> None:
        """None: crops are endless."""
        return

    def __getitem__(self, index: int) -> Sample:
        """The crop at this index, the same one every time.

        Raises:
            FadevizError: if the image cannot be read.
            IndexError: if the index is negative.
        """
        sample = self.dataset[self.source(index)]
        # The 4 keeps these numbers apart from those of the order, [seed, epoch, 3], and of the training loop.
        random = np.random.Generator(np.random.PCG64([self.seed, index, 4]))
        return augmented_crop(sample, self.size, random, self.augmentation)

    def source(self, index: int) -> int:
        """Which of the data set's images the crop at ``index`` shows."""
        if operator.index(index) < 0:
            raise IndexError(f"no crop {index}: they are counted from 0")
        epoch, place = divmod(operator.index(index), self._images)
        return int(_epoch_order(self.seed, epoch, self._images)[place])

    def __repr__(self) -> str:
        return f"AugmentedCrops({self.dataset!r}, {self.size}, {self.seed})"


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64([seed, epoch, 3])).permutation(count)


class CentreCrops:
    """Every image of a data set as one square: its short side brought to ``size``, the middle of the long one kept.

    Images are scaled linearly (averaged over area where they shrink), masks by the nearest pixel. What a score over
    these squares leaves out is the ends of the long side; it is not a score over whole images.

    *Shape*: image ``(size, size, 3)`` uint8, mask ``(size, size)`` uint8. A matte is dropped.

    Args:
        dataset: images with masks, of any sizes.
        size: the side of the squares, divisible by 32.

    Raises:
        FadevizError: if the size is not divisible by 32.
    """

    def __init__(self, dataset: Dataset, size: int) -> None:
        self.dataset = dataset
        self.size = check_side(size)

    @property
    def count(self) -> int | None:
        """The number of images, or None for an endless set."""
        return self.dataset.count

    def __getitem__(self, index: int) -> Sample:
        """The square at this index; faults are those of the data set."""
        sample = self.dataset[index]
        shape = scaled_shape(sample.mask.shape, self.size)
        top, left = (shape[0] - self.size) // 2, (shape[1] - self.size) // 2
        image = _scaled_part(sample.image, shape, (top, left), (self.size, self.size))
        mask = _scaled_mask(sample.mask, shape)[top : top + self.size, left : left + self.size]
        return Sample(sample.name, image, mask.copy())

    def __repr__(self) -> str:
        return f"CentreCrops({self.dataset!r}, {self.size})"


def augmented_crop(
    sample: Sample, size: int, random: np.random.Generator, augmentation: Augmentation | None = None
) -> Sample:
    """One random square of an image: what :class:`AugmentedCrops` does with each.

    Args:
        sample: an image ``(H, W, 3)`` with a mask ``(H, W)``; its matte is dropped.
        size: the side of the square, in pixels.
        random: source of all random numbers.
        augmentation: ranges of the random changes.

    Returns:
        Image ``(size, size, 3)`` uint8 and mask ``(size, size)`` uint8, ``IGNORED`` where it is padded.
    """
    recipe = augmentation or Augmentation()
    # All that does not depend on the image is drawn first: how often a crop is tried shifts no other number.
    scale = random.uniform(*recipe.scale)
    mirrored = random.random() < recipe.flip
    distortion = _draw_distortion(random, recipe)

    shape = scaled_shape(sample.mask.shape, size * scale, longest=ELONGATED * size * scale)
    part = min(shape[0], size), min(shape[1], size)
    labels = _scaled_mask(sample.mask, shape)
    for _ in range(max(1, recipe.tries)):
        top, left = (int(random.integers(whole - kept + 1)) for whole, kept in zip(shape, part, strict=True))
        mask = labels[top : top + part[0], left : left + part[1]]
        if part == shape or largest_share(mask) <= recipe.largest_class:
            break
    image = _distorted(_scaled_part(sample.image, shape, (top, left), part), distortion)
    if mirrored:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return Sample(sample.name, *_padded(image, mask, size))


def largest_share(mask: NDArray[np.uint8]) -> float:
    """The share of the commonest class among the labelled pixels of a mask; 1 where none is labelled.

    Example:
        >>> largest_share(np.array([[3, 3, 7, 255]], np.uint8))
        0.6666666666666666
    """
    counts = np.bincount(mask.reshape(-1), minlength=256)[:IGNORED]
    labelled = counts.sum()
    return float(counts.max() / labelled) if labelled else 1.0


def scaled_shape(shape: tuple[int, ...], short: float, longest: float = float("inf")) -> tuple[int, int]:
    """Height and width of an image scaled so that its short side is ``short``, or its long side ``longest`` if less.

    Example:
        >>> scaled_shape((300, 400), 150)
        (150, 200)
    """
    factor = min(short / min(shape), longest / max(shape))
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def check_side(size: int) -> int:
    """The side of a square, if it can be one.

    Raises:
        FadevizError: if the size is not an integer, below 32, or not divisible by 32.
    """
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < STRIDE or size % STRIDE:
        raise FadevizError(f"size is {size!r}; it must be one number divisible by {STRIDE}, such as 512")
    return int(size)


def adjust_brightness(planes: Planes, offset: float) -> Planes:
    """``value + offset``, clipped to [0, 255]."""
    return np.clip(planes + np.float32(offset), 0, 255)


def adjust_contrast(planes: Planes, factor: float) -> Planes:
    """``value * factor``, clipped to [0, 255]: about black, not about the mean, as SSD's distortion has it."""
    return np.clip(planes * np.float32(factor), 0, 255)


def adjust_saturation(planes: Planes, factor: float) -> Planes:
    """HSV's saturation times ``factor``, clipped to 1; hue and value stay.

    With value ``V = max(R, G, B)`` and saturation ``S = (V - min) / V``, each channel is ``V - (V - channel) * f``,
    where ``f = min(factor, 1 / S)``.
    """
    value = planes.max(axis=0)
    chroma = value - planes.min(axis=0)
    # Grey has no chroma and stays what it is, whatever the factor.
    limit = np.divide(value, chroma, out=np.full_like(value, np.inf), where=chroma > 0)
    return value - (value - planes) * np.minimum(np.float32(factor), limit)


def adjust_hue(planes: Planes, degrees: float) -> Planes:
    """HSV's hue turned by ``degrees``, from red towards green; saturation and value stay.

    With hue ``h`` in sixths of the circle and chroma ``C``, each channel is ``V - C * clip(min(k, 4 - k), 0, 1)``,
    where ``k = (h + n) mod 6`` and ``n`` is 5 for red, 3 for green and 1 for blue.
    """
    red, green, blue = planes
    value = planes.max(axis=0)
    chroma = value - planes.min(axis=0)
    # In units of chroma, so that one division does; grey has the hue of red, which is never seen.
    other = np.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    hue = np.where(value == red, green - blue, other)
    hue /= np.where(chroma > 0, chroma, np.float32(1))
    hue += np.float32(degrees / 60)
    turned = np.empty_like(planes)
    for plane, start in zip(turned, (5, 3, 1), strict=True):
        place = hue + np.float32(start)
        place -= 6 * np.floor(place * np.float32(1 / 6))  # faster than np.mod
        np.minimum(place, 4 - place, out=place)
        np.clip(place, 0, 1, out=place)
        np.subtract(value, chroma * place, out=plane)
    return turned


@dataclass(frozen=True)
class _Distortion:
    """One drawing of the changes of colour; those that do not happen are neutral."""

    brightness: float
    contrast: float
    contrast_second: bool
    saturation: float
    hue: float


def _draw_distortion(random: np.random.Generator, recipe: Augmentation) -> _Distortion:
    coins = random.random(5) < 0.5
    brightness = random.uniform(-recipe.brightness, recipe.brightness)
    contrast = random.uniform(*recipe.contrast)
    saturation = random.uniform(*recipe.saturation)
    hue = random.uniform(-recipe.hue, recipe.hue)
    return _Distortion(
        brightness=brightness if coins[0] else 0.0,
        contrast=contrast if coins[1] else 1.0,
        contrast_second=bool(coins[2]),
        saturation=saturation if coins[3] else 1.0,
        hue=hue if coins[4] else 0.0,
    )


_ROWS = 32
"""Colours are changed in strips of this many rows, so that intermediate results stay in the processor's cache."""


def _distorted(image: NDArray[np.uint8], draw: _Distortion) -> NDArray[np.uint8]:
    changed = np.empty_like(image)
    for top in range(0, len(image), _ROWS):
        changed[top : top + _ROWS] = _distorted_strip(image[top : top + _ROWS], draw)
    return changed


def _distorted_strip(image: NDArray[np.uint8], draw: _Distortion) -> NDArray[np.uint8]:
    planes = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
    if draw.brightness != 0:
        planes = adjust_brightness(planes, draw.brightness)
    if draw.contrast != 1 and draw.contrast_second:
        planes = adjust_contrast(planes, draw.contrast)
    if draw.saturation != 1:
        planes = adjust_saturation(planes, draw.saturation)
    if draw.hue != 0:
        planes = adjust_hue(planes, draw.hue)
    if draw.contrast != 1 and not draw.contrast_second:
        planes = adjust_contrast(planes, draw.contrast)
    return np.rint(planes, out=planes).astype(np.uint8).transpose(1, 2, 0)


def _scaled_part(
    image: NDArray[np.uint8], shape: tuple[int, int], corner: tuple[int, int], part: tuple[int, int]
) -> NDArray[np.uint8]:
    """The part at ``corner`` of an image scaled to ``shape``."""
    (top, left), (height, width) = corner, part
    down, across = image.shape[0] / shape[0], image.shape[1] / shape[1]
    # Only the part is computed. Pillow's filter still sees what lies around it, so that this is scaling, then cutting.
    # A rounding error must not put the box outside the image.
    right, bottom = min((left + width) * across, image.shape[1]), min((top + height) * down, image.shape[0])
    scaled = Image.fromarray(image).resize(
        (width, height), Image.Resampling.BILINEAR, box=(left * across, top * down, right, bottom)
    )
    return np.array(scaled)


def _scaled_mask(mask: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(mask).resize((shape[1], shape[0]), Image.Resampling.NEAREST))


def _padded(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    height, width = mask.shape
    if height == width == size:
        return np.ascontiguousarray(image), np.array(mask, order="C")
    square = np.empty((size, size, 3), np.uint8)
    square[...] = PADDING
    square[:height, :width] = image
    classes = np.full((size, size), IGNORED, np.uint8)
    classes[:height, :width] = mask
    return square, classes
