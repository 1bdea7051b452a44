"""Mattes and trimaps as arrays: making trimaps, compositing and estimating layers, cropping samples."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ...errors import FadevizError
from .. import Sample

BACKGROUND, UNKNOWN, FOREGROUND = 0, 128, 255
"""The values of a trimap."""

Pixels = NDArray[np.uint8]
Matte = NDArray[np.float32]


def trimap_radii(size: int) -> tuple[int, int]:
    """The range of the trimap radii of a training crop of this side, in pixels, both ends included.

    From 1 to 19 at 320 pixels and above (Lu et al., ICCV 2019), proportionally less below, where a radius of 19 would
    leave no known pixel in a leg.
    """
    return 1, max(2, min(19, size * 19 // 320))


def make_trimap(alpha: Matte, random: np.random.Generator, radii: tuple[int, int] = (1, 19)) -> Pixels:
    """A trimap of a matte: sure foreground and sure background, each eroded by a disc of a random radius.

    A pixel stays foreground if all pixels within ``r_f`` of it (Euclidean distance between centres) have ``alpha`` 1;
    background if all within ``r_b`` have ``alpha`` 0; the rest is unknown. That is the dilation of ``0 < alpha < 1`` by
    discs, ``r_f`` inwards and ``r_b`` outwards, and also works for mattes without partial pixels. Pixels beyond the
    image's border are not considered. Common recipes use one radius for both sides.

    Args:
        alpha: ``(H, W)`` in [0, 1].
        random: source of two integers: ``r_f``, then ``r_b``.
        radii: smallest and largest radius in pixels, both included; 0 leaves a side as it is.

    Returns:
        ``(H, W)`` uint8: 0 background, 128 unknown, 255 foreground.

    Raises:
        FadevizError: if the matte is all foreground or all background, or has no unknown pixel; if the radii are
            invalid.

    Example:
        >>> make_trimap(np.array([[0, 0, 0, 0.5, 1, 1]], np.float32), np.random.default_rng(0), (1, 1))
        array([[  0,   0, 128, 128, 128, 255]], dtype=uint8)
    """
    low, high = radii
    if not 0 <= low <= high:
        raise FadevizError(f"make_trimap: radii are {radii}; two numbers from 0 up are needed, the smaller one first")
    trimap = np.full(alpha.shape, UNKNOWN, np.uint8)
    for certain, value in ((alpha >= 1, FOREGROUND), (alpha <= 0, BACKGROUND)):
        radius = int(random.integers(low, high + 1))
        if certain.all():
            raise FadevizError(
                f"make_trimap: alpha is {value // 255} everywhere: nothing is unknown. Give a matte with an edge"
            )
        trimap[far_from(~certain, radius)] = value
    if not (trimap == UNKNOWN).any():
        raise FadevizError("make_trimap: no pixel is unknown: alpha is 0 or 1 everywhere. Use radii from 1")
    return trimap


def far_from(marked: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Whether no marked pixel lies within ``radius`` pixels (Euclidean distance between centres).

    ``scipy.ndimage.distance_transform_edt(~marked) > radius``, several times faster for the small radii of trimaps:
    the distances to the nearest marked pixel of the same row, and then, by the circle, of as many rows up and down.

    Shape: ``(H, W)`` -> ``(H, W)``.
    """
    height, width = marked.shape
    if radius > 100:  # distances in a row are kept in 8 bits, and the circle has many rows
        return np.asarray(ndimage.distance_transform_edt(~marked) > radius)
    columns = np.arange(width, dtype=np.int32)
    left = np.maximum.accumulate(np.where(marked, columns, np.int32(-256)), axis=1)
    right = np.minimum.accumulate(np.where(marked, columns, np.int32(width + 256))[:, ::-1], axis=1)[:, ::-1]
    across = np.minimum(np.minimum(columns - left, right - columns), 255).astype(np.uint8)
    near = across <= radius
    for rows in range(1, min(radius, height - 1) + 1):
        reached = across <= math.isqrt(radius * radius - rows * rows)
        near[rows:] |= reached[:-rows]
        near[:-rows] |= reached[rows:]
    return ~near


def composite(foreground: Pixels, background: Pixels, alpha: Matte) -> Pixels:
    """``alpha * foreground + (1 - alpha) * background`` on sRGB values, rounded.

    Shape: ``(H, W, 3)`` uint8 twice, ``(H, W)`` in [0, 1] -> ``(H, W, 3)`` uint8.

    Raises:
        FadevizError: if the sizes differ.
    """
    if not foreground.shape[:2] == background.shape[:2] == alpha.shape:
        raise FadevizError(
            f"composite: foreground {size_of(foreground)}, background {size_of(background)} and alpha {size_of(alpha)} "
            "differ in size. Crop or resize them first"
        )
    share = np.asarray(alpha, np.float32)[..., None]
    # Each of the three channels has its share: numpy is several times slower where the last axis is broadcast.
    share = np.repeat(share, 3, axis=2)
    mixed = share * foreground
    np.subtract(1, share, out=share)
    share *= background
    mixed += share
    np.rint(mixed, out=mixed)
    return np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)


def estimate_layers(image: Pixels, alpha: Matte) -> tuple[Pixels, Pixels]:
    """Estimate foreground and background of a photograph: each pixel takes the colour of the nearest pure one.

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


CROP_SCALE = 2
"""The observed window's side, times the requested size, where the image is large enough; it is shrunk to that size.
Training crops reach this scale too. Beside hair, the window then shows some of the animal."""

LEAST_KNOWN = 0.1
"""Minimum share of known foreground, and of known background, in the observed window, if any window has it."""


def crop_unknown(sample: Sample, size: int) -> Sample:
    """The square window of an image with the most unknown pixels, at one size: to observe images of any size.

    Of the windows ``CROP_SCALE`` times as large as ``size`` (or as large as the image allows) that hold ``LEAST_KNOWN``
    of either known region, the one with most unknown pixels, the first in reading order; if none does, of all windows.
    It is shrunk to ``size``, where a pixel is known if every pixel that it covers is; the layers are then left out, as
    their composite would differ from the shrunk image. An image of ``size`` stays as it is.

    Raises:
        FadevizError: if the image has no trimap, or is smaller than ``size``.
    """
    if sample.trimap is None:
        raise FadevizError(f"{sample.name} has no trimap: there is nothing unknown to crop to. Use a matting set")
    height, width = sample.mask.shape
    if min(height, width) < size:
        raise FadevizError(f"{sample.name} is {width}x{height}, smaller than size={size}. Use a smaller size")
    side = min(CROP_SCALE * size, height, width)
    unknown, front, back = (
        _count_in_windows(sample.trimap == value, side) for value in (UNKNOWN, FOREGROUND, BACKGROUND)
    )
    clear = np.minimum(front, back) >= LEAST_KNOWN * side * side
    top, left = np.unravel_index(int(np.where(clear, unknown + side * side, unknown).argmax()), unknown.shape)
    cut = crop_sample(sample, int(top), int(left), side)
    return cut if side == size else _shrunk(cut, size)


def _count_in_windows(values: NDArray[np.bool_], side: int) -> NDArray[np.int64]:
    """The number of true pixels in each window, by its upper left corner."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1), np.int64)
    table[1:, 1:] = values.cumsum(0).cumsum(1)
    counts: NDArray[np.int64] = (
        table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    )
    return counts


def _shrunk(sample: Sample, size: int) -> Sample:
    """A square sample at a smaller size, without its layers."""

    def resized(values: Pixels) -> Pixels:
        # One filter for all, so that alpha is 0 or 1 where it is in the trimap.
        return np.array(Image.fromarray(values).resize((size, size), Image.Resampling.BILINEAR))

    assert sample.alpha is not None
    assert sample.trimap is not None
    trimap = np.full((size, size), UNKNOWN, np.uint8)
    for value in (BACKGROUND, FOREGROUND):
        trimap[resized((sample.trimap == value).astype(np.uint8) * 255) == 255] = value
    matte = resized(np.rint(sample.alpha * 255).astype(np.uint8))
    return to_sample(sample.name, resized(sample.image), matte, trimap)


def crop_sample(sample: Sample, top: int, left: int, side: int, mirrored: bool = False) -> Sample:
    """A square of all of a sample's arrays, which are alike in size; optionally mirrored left to right."""
    across = slice(None, None, -1) if mirrored else slice(None)

    def cut(values: NDArray[np.generic] | None) -> NDArray[np.generic] | None:
        return None if values is None else np.ascontiguousarray(values[top : top + side, left : left + side][:, across])

    return Sample(sample.name, *(cut(values) for values in sample[1:]))  # type: ignore[arg-type]


def to_sample(
    name: str,
    image: Pixels,
    matte: Pixels,
    trimap: Pixels,
    foreground: Pixels | None = None,
    background: Pixels | None = None,
) -> Sample:
    """A sample from an 8-bit matte; its mask is where the matte is at least half opaque."""
    alpha = to_alpha(matte)
    return Sample(name, image, (matte >= 128).astype(np.uint8), alpha, trimap, foreground, background)


def to_alpha(matte: Pixels) -> Matte:
    """An 8-bit matte as alpha in [0, 1]."""
    return matte.astype(np.float32) / np.float32(255)


def size_of(values: NDArray[np.generic]) -> str:
    """Width and height, for messages: ``"640x480"``."""
    return f"{values.shape[1]}x{values.shape[0]}"
