"""Overlays: a map over its image, and the contour of the true object on maps and images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .colormap import NON_FINITE
from .frames import FrameSequence
from .labels import outline, thicken, truth_regions

CONTOUR, CONTOUR_IN_COLOURS = (213, 94, 0), (255, 255, 255)
"""Colours of the contour on grey maps, and on coloured ones, where it has a dark rim."""


def image_part(sequence: FrameSequence) -> NDArray[np.uint8]:
    """The part of the observed image that the maps show, ``(H, W, 3)``."""
    assert sequence.observed_image is not None
    return _part(sequence, sequence.observed_image)


def blend(sequence: FrameSequence, pixels: NDArray[np.uint8], alpha: float) -> NDArray[np.uint8]:
    """A map in its colours, ``(H, W, 3)``, over the image in greys; cells that are not finite keep their colour."""
    size = pixels.shape[1], pixels.shape[0]
    grey = Image.fromarray(image_part(sequence)).convert("L").resize(size, Image.Resampling.LANCZOS)
    below = np.asarray(grey, np.float64)[..., None]
    blended = np.rint(alpha * pixels + (1 - alpha) * below).astype(np.uint8)
    blended[(pixels == NON_FINITE).all(axis=2)] = NON_FINITE
    return blended


def contour(sequence: FrameSequence, size: tuple[int, int], width: int, *, whole: bool = False) -> NDArray[np.bool_]:
    """The pixels of the true object's contour, ``(H, W)``.

    Args:
        sequence: a sequence whose run has the masks.
        size: width and height in pixels of what it is drawn on.
        width: width of the line in pixels.
        whole: whether it is drawn on the whole image, not on the part that the maps show.
    """
    regions = truth_regions(sequence.run, sequence.image)
    regions = regions if whole else _part(sequence, regions)
    resized = Image.fromarray(regions).resize(size, Image.Resampling.NEAREST)
    return thicken(outline(np.asarray(resized)), width)


def draw_contour(
    pixels: NDArray[np.uint8], line: NDArray[np.bool_], colour: tuple[int, int, int], *, rim: bool
) -> NDArray[np.uint8]:
    """An image with a line, and with a darker rim on both sides of it if so wanted."""
    pixels = pixels.copy()
    if rim:
        around = np.pad(line, 1)
        beside = around[:-2, 1:-1] | around[2:, 1:-1] | around[1:-1, :-2] | around[1:-1, 2:]
        pixels[beside] = pixels[beside] // 3
    pixels[line] = colour
    return pixels


def contour_colour(colormap: str) -> tuple[tuple[int, int, int], bool]:
    """The colour of the contour on maps, and whether it has a rim there."""
    return (CONTOUR, False) if colormap == "gray" else (CONTOUR_IN_COLOURS, True)


def _part(sequence: FrameSequence, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if sequence.crop is None:
        return values
    left, top, right, bottom = sequence.crop
    return values[top:bottom, left:right]


__all__ = ["blend", "contour", "contour_colour", "draw_contour", "image_part"]
