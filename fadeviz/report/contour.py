"""The images beside the maps: the observed image, and the contour of its object as a path."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_SIDE = 448
"""Longest side of an image in pixels; larger ones are downsampled."""


def image_uri(image: NDArray[np.uint8]) -> str:
    """An observed image ``(H, W, 3)``, or a matte ``(H, W)``, as a data URI of a JPEG."""
    pixels = Image.fromarray(image)
    if max(pixels.size) > MAX_SIDE:
        pixels.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    pixels.save(file, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def classes_uri(image: NDArray[np.uint8]) -> str:
    """A mask in the colours of its classes, ``(H, W, 3)``, as a data URI of a PNG: no colour is mixed."""
    step = -(-max(image.shape[:2]) // MAX_SIDE)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[::step, ::step])).save(file, "PNG", compress_level=9)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def contour_path(inside: NDArray[np.bool_]) -> str:
    """The boundary between pixels inside and outside, ``(H, W)`` bool, as SVG path data in pixels of the image."""
    # Padded as if the image continued: its border is not a contour.
    framed = np.pad(inside, 1, mode="edge")
    parts = []
    for turned, frame in ((False, framed), (True, framed.T)):
        changes = np.zeros((frame.shape[0] - 1, frame.shape[1]), np.int8)
        changes[:, 1:-1] = (frame[1:] != frame[:-1])[:, 1:-1]
        starts, ends = np.argwhere(np.diff(changes, axis=1) == 1), np.argwhere(np.diff(changes, axis=1) == -1)
        for (line, start), (_, end) in zip(starts, ends, strict=True):
            parts.append(f"M{line} {start}v{end - start}" if turned else f"M{start} {line}h{end - start}")
    return "".join(parts)
