"""The observed images of a run, as they are read: images, masks and mattes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from ..errors import FadevizError
from .folder import RunFolder
from .snapshots import open_tensors

FILE = "observation.safetensors"


def read_observation(folder: RunFolder) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images ``(N, H, W, 3)`` and masks ``(N, H, W)``, uint8.

    Raises:
        FadevizError: if the file is missing or damaged, or holds arrays of another shape or dtype.
    """
    remedy = "Put it back, or record the run again with overwrite=True"
    path = folder.file(FILE)
    try:
        with open_tensors(path) as file:
            parts = [file.get_slice(name) for name in ("images", "masks")]
            # From the header, before anything is read: what fits together is no larger than the file.
            (images, masks), types = (part.get_shape() for part in parts), {part.get_dtype() for part in parts}
            if types != {"U8"} or len(images) != 4 or images[-1] != 3 or masks != images[:3] or 0 in images:
                raise FadevizError(
                    f"{folder.address}: {FILE} holds images {tuple(images)} and masks {tuple(masks)}, "
                    f"{' and '.join(sorted(types))}, but U8 (N, H, W, 3) and (N, H, W) are needed. {remedy}"
                )
            return parts[0][...], parts[1][...]
    except (SafetensorError, OSError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error
        raise FadevizError(f"{folder.address}: {FILE} is missing or damaged ({reason}). {remedy}") from error


def read_mattes(folder: RunFolder, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Alpha (0 to 255) and trimaps (0, 128, 255), uint8 of ``shape``, the masks' ``(N, H, W)``; None without mattes.

    Raises:
        FadevizError: if they have another shape or dtype.
    """
    with open_tensors(folder.file(FILE)) as file:
        if not {"alphas", "trimaps"} <= set(file.keys()):
            return None
        parts = [file.get_slice(name) for name in ("alphas", "trimaps")]
        if any(tuple(part.get_shape()) != shape or part.get_dtype() != "U8" for part in parts):
            raise FadevizError(
                f"{folder.address}: {FILE} holds mattes that do not fit its masks. "
                "Record the run again with overwrite=True"
            )
        return parts[0][...], parts[1][...]


def select_foregrounds(masks: NDArray[np.uint8], classes: Sequence[int] | None, address: str) -> NDArray[np.bool_]:
    """What is inside in each image, as :attr:`StoredRun.foregrounds`.

    Args:
        masks: the masks, ``(N, H, W)``.
        classes: the class of each image that is inside; None for every class but 0.
        address: the run, for messages.

    Raises:
        FadevizError: if there is not one class for each image.
    """
    if classes is None:
        inside: NDArray[np.bool_] = masks != 0
        return inside
    if len(classes) != len(masks):
        raise FadevizError(
            f"{address}/run.json names {len(classes)} foreground classes for {len(masks)} observed images. "
            "Record the run again with overwrite=True"
        )
    of_class: NDArray[np.bool_] = masks == np.array(classes, np.int64)[:, None, None]
    return of_class
