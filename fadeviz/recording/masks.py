"""The images, masks and names that a recorder stores for the batch it observes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.observation import find_object
from ..data.transforms import IGNORED
from ..errors import FadevizError
from .batch import attributes_of

Labels = NDArray[np.int64]

MOST_CLASSES = 254
"""The largest number of classes in a mask: one byte per pixel, with 255 for void."""


class Masks(NamedTuple):
    """The masks of the observed images.

    Attributes:
        values: the classes, ``(N, H, W)`` uint8; ``IGNORED`` where a pixel is void.
        classes: the number of classes, at least 2.
        foreground: for each image the class that is measured as its object; None: every class but 0.
        earlier: ``values`` as stored by versions that did not distinguish void pixels and classes.
        note: why the targets are not masks, if that is unexpected.
    """

    values: NDArray[np.uint8]
    classes: int
    foreground: list[int] | None
    earlier: NDArray[np.uint8]
    note: str = ""


def whole_number(value: Any, what: str) -> int:
    """Convert a step or a count of any integer type: Python's, NumPy's, or a single-element tensor.

    Raises:
        FadevizError: if ``value`` is of any other type, including bool, and float even if its value is whole.
    """
    is_bool = isinstance(value, bool | np.bool_) or getattr(value, "dtype", None) in (torch.bool, np.dtype(bool))
    try:
        if not is_bool:
            return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise FadevizError(f"{what} is {value!r:.60}, a {type(value).__name__}: a whole number is needed")


def arrays_in(value: Any) -> Iterator[Tensor | NDArray[Any]]:
    """The tensors and NumPy arrays of a batch, in order; except those in a list with a dict per image."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from arrays_in(item)
    elif isinstance(value, tuple | list):
        if len(value) < 2 or not all(isinstance(item, Mapping) for item in value):
            for item in value:
                yield from arrays_in(item)
    elif (attributes := attributes_of(value)) is not None:
        yield from (item for item in attributes.values() if isinstance(item, Tensor | np.ndarray))


def images_to_show(images: Any, display_images: Any) -> NDArray[np.uint8]:
    """The images that figures show, ``(N, H, W, 3)`` uint8: ``display_images``, or else made from the model's input.

    Raises:
        FadevizError: if there are no ``display_images`` and the input cannot be shown; or if they have another shape,
            dtype or number than needed.
    """
    inputs = _drawable(images)
    if display_images is None:
        if inputs is None:
            raise FadevizError(
                "the observed images are not a tensor (N, 1 or 3, H, W) that can be shown. "
                "Give display_images=..., uint8 (N, H, W, 3)"
            )
        return _as_bytes(inputs)
    shown = _array(display_images, "display_images")
    if shown.ndim != 4 or shown.shape[-1] != 3 or shown.dtype != np.uint8 or not shown.size:
        raise FadevizError(f"display_images are {shown.dtype} {shown.shape}; uint8 (N, H, W, 3) is needed")
    if inputs is not None and len(inputs) != len(shown):
        raise FadevizError(f"{len(shown)} display_images for {len(inputs)} observed images. Give one for each")
    return shown


def _drawable(images: Any) -> NDArray[np.float32] | None:
    """The first images in a batch, ``(N, C, H, W)``; three channels are preferred to one."""
    candidates = [
        array
        for array in arrays_in(_stacked(images, 3))
        if array.ndim == 4 and array.shape[1] in (1, 3) and 0 not in array.shape
    ]
    for channels in (3, 1):
        for array in candidates:
            if array.shape[1] == channels:
                return _numbers(array).astype(np.float32)
    return None


def _stacked(value: Any, axes: int) -> Any:
    """Stack a list with an array per image if they have the same size; otherwise return it as it is."""
    if not isinstance(value, tuple | list) or not value:
        return value
    parts = [_numbers(item) for item in value if isinstance(item, Tensor | np.ndarray) and item.ndim == axes]
    same = len(parts) == len(value) and len({part.shape for part in parts}) == 1
    return np.stack(parts) if same else value


def _as_bytes(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    flat = np.nan_to_num(images.transpose(0, 2, 3, 1), posinf=0, neginf=0)
    low, high = (end(flat, axis=(1, 2, 3), keepdims=True) for end in (np.min, np.max))
    unit = (flat - low) / np.where(high > low, high - low, 1)
    return np.rint(255 * np.broadcast_to(unit, (*unit.shape[:3], 3))).astype(np.uint8)


def names_of(names: Any, count: int) -> list[str]:
    """The name of each observed image; numbered if ``names`` is None.

    Raises:
        FadevizError: if ``names`` is not a list with a name for each image.
    """
    if names is None:
        return [f"image {number}" for number in range(count)]
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise FadevizError(f"names is {names!r:.60}, a {type(names).__name__}: a list of {count} names is needed")
    names = list(names)
    if len(names) != count:
        raise FadevizError(f"{len(names)} names for {count} images. Give one for each")
    return [str(name) for name in names]


def masks_of(
    targets: Any,
    given: Any,
    shape: tuple[int, int, int],
    *,
    ignore_index: int | None = None,
    classes: int | None = None,
    foreground: int | Sequence[int] | None = None,
    loss_fn: Any = None,
) -> Masks:
    """The masks of the observed images: the given ones, or the first suitable target.

    Args:
        targets: the targets of the observed batch: integers or zeros and ones, ``(N, H, W)`` or ``(N, 1, H, W)``, or
            one-hot.
        given: the recorder's argument ``masks``.
        shape: N, H and W of the images to show; targets of another resolution are resized to it.
        ignore_index: the label of void pixels; negative labels and 255 are always void.
        classes: the number of classes; None takes the largest label plus 1.
        foreground: the class of the object, one for all images or one for each.
        loss_fn: its ``ignore_index`` applies to the targets if the argument is None.

    Raises:
        FadevizError: if masks have another shape, labels are out of range, or the foreground class does not occur.
    """
    ignore_index = None if ignore_index is None else whole_number(ignore_index, "ignore_index")
    if given is None:
        ignore_index = ignored_by(loss_fn) if ignore_index is None else ignore_index
        labels, earlier = _labels_in(targets, shape, ignore_index)
    else:
        labels = _given_labels(_array(given, "masks"), shape, ignore_index)
        earlier = labels
    before = (np.zeros(shape) if earlier is None else earlier > 0).astype(np.uint8)
    if labels is None:
        if foreground is not None or classes is not None:
            what = "foreground" if foreground is not None else "classes"
            raise FadevizError(
                f"{what} is given, but the targets contain no masks (N, H, W) of whole numbers. Give masks=..."
            )
        return Masks(np.zeros(shape, np.uint8), 2, None, before, _why_none(targets, shape))
    void = (labels < 0) | (labels == IGNORED)
    if ignore_index is not None:
        void |= labels == ignore_index
    top = int(labels.max(initial=0, where=~void))
    if top >= MOST_CLASSES:
        what = f"labels up to {top}, but classes must be from 0 to {MOST_CLASSES - 1}, or void (255 or negative)"
        remedy = "Give the objects as masks=..., or the label of void pixels as ignore_index=..."
        if given is None and foreground is None and classes is None:  # depth, or instance ids
            return Masks(np.zeros(shape, np.uint8), 2, None, before, f"the targets are not masks: {what}. {remedy}")
        raise FadevizError(f"the masks contain {what}. {remedy}")
    count = _count_classes(top, classes)
    values = np.where(void, IGNORED, labels).astype(np.uint8)
    return Masks(values, count, _foreground(values, count, foreground), before)


def ignored_by(loss_fn: Any) -> int | None:
    """The ``ignore_index`` of a loss: of a module such as ``CrossEntropyLoss``, of a submodule, or of a
    ``functools.partial``; None if it has none.
    """
    if isinstance(loss_fn, functools.partial):
        value = loss_fn.keywords.get("ignore_index")
        return value if isinstance(value, int) else ignored_by(loss_fn.func)
    parts = loss_fn.modules() if isinstance(loss_fn, nn.Module) else [loss_fn]
    values = [getattr(part, "ignore_index", None) for part in parts]
    # Labels that are always void need no ignore_index.
    return next((value for value in values if isinstance(value, int) and 0 <= value != IGNORED), None)


def _count_classes(top: int, classes: int | None) -> int:
    if classes is None:
        return max(top + 1, 2)
    count = whole_number(classes, "classes")
    if not max(2, top + 1) <= count <= MOST_CLASSES:
        raise FadevizError(
            f"classes is {count}; with labels up to {top} it must be from {max(2, top + 1)} to {MOST_CLASSES}, "
            "background included"
        )
    return count


def _foreground(values: NDArray[np.uint8], classes: int, foreground: Any) -> list[int] | None:
    if foreground is None:
        if classes > 2:
            return [find_object(mask) for mask in values]
        # Stored only if there are void pixels; otherwise it is the default.
        return [1] * len(values) if (values == IGNORED).any() else None
    several = isinstance(foreground, tuple | list) or getattr(foreground, "ndim", 0) > 0
    chosen = [whole_number(label, "foreground") for label in (foreground if several else [foreground] * len(values))]
    if len(chosen) != len(values):
        raise FadevizError(
            f"foreground has {len(chosen)} classes for {len(values)} images. Give one for each, or one for all"
        )
    present = sorted(int(value) for value in np.unique(values) if value != IGNORED)
    for label in chosen:
        if label not in present:
            raise FadevizError(f"foreground is {label}, a class that the masks do not contain. They contain {present}")
    return chosen


def _given_labels(masks: NDArray[Any], shape: tuple[int, int, int], ignore_index: int | None) -> Labels:
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.shape != shape:
        raise FadevizError(f"masks are {masks.shape}; (N, H, W) = {shape} is needed, like the images shown")
    numeric = np.issubdtype(masks.dtype, np.number) and not np.issubdtype(masks.dtype, np.complexfloating)
    if masks.dtype != bool and not (numeric and np.array_equal(masks, np.trunc(masks))):
        raise FadevizError(f"masks are {masks.dtype} and not whole numbers: classes, or 0 and 1, are needed")
    labels = masks.astype(np.int64)
    return _as_binary(labels, ignore_index)


def _as_binary(labels: Labels, ignore_index: int | None) -> Labels:
    """Convert a black and white mask of 0 and 255 to 0 and 1."""
    white = ignore_index != IGNORED and set(np.unique(labels).tolist()) == {0, 255}
    return (labels > 0).astype(np.int64) if white else labels


def _labels_in(
    targets: Any, shape: tuple[int, int, int], ignore_index: int | None
) -> tuple[Labels | None, Labels | None]:
    """The labels in the targets, and those that earlier versions found."""
    arrays = arrays_in(_stacked(targets, 2))
    candidates = [labels for array in arrays if (labels := _as_labels(array, shape, ignore_index)) is not None]
    if not candidates:
        return None, None
    # Of several (deep supervision), the first that is as large as the images.
    best = next((labels for labels in candidates if labels.shape == shape), candidates[0])
    best = _resized(best, shape)
    plain = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.ndim == 3
    return best, best if plain else None


def _as_labels(target: Tensor | NDArray[Any], shape: tuple[int, int, int], ignore_index: int | None) -> Labels | None:
    if target.ndim not in (3, 4) or len(target) != shape[0] or 0 in target.shape:
        return None
    height, width = target.shape[-2:]
    if (
        abs(shape[1] * width - shape[2] * height) > 0.02 * shape[1] * width
    ):  # another aspect ratio, so another part of the image
        return None
    values = _numbers(target)
    if values.ndim == 4:
        if values.shape[1] == 1:
            values = values[:, 0]
        else:
            return _of_one_hot(values, ignore_index)
    if values.dtype == np.uint8:
        return _as_binary(values.astype(np.int64), ignore_index)
    if np.issubdtype(values.dtype, np.floating):
        # For a loss such as binary cross entropy; other floats are alpha mattes, depth or the like.
        usual = np.array([0, 1, *([] if ignore_index is None else [ignore_index]), -1, -100, IGNORED])
        if not np.isin(values, usual).all():
            return None
    elif not (values.dtype == bool or np.issubdtype(values.dtype, np.integer)):
        return None
    return values.astype(np.int64)


def _of_one_hot(values: NDArray[Any], ignore_index: int | None) -> Labels | None:
    """Classes of one-hot ``(N, K, H, W)``; void where all K have the same void label. None if it is not one-hot."""
    first = values[:, 0]
    void = (values == values[:, :1]).all(axis=1) & ((first < 0) | (first == IGNORED) | (first == ignore_index))
    inside = ~void[:, None]
    if not np.isin(values, (0, 1)).all(where=inside) or not (values.sum(axis=1) == 1).all(where=~void):
        return None
    return np.where(void, IGNORED, values.argmax(axis=1)).astype(np.int64)


def _why_none(targets: Any, shape: tuple[int, int, int]) -> str:
    """Why targets that look like one-hot masks are not masks; empty if no target does."""
    maps = (array for array in arrays_in(targets) if array.ndim == 4 and len(array) == shape[0] and array.shape[1] > 1)
    binary = next((array for array in maps if np.isin(_numbers(array), (0, 1)).all()), None)
    if binary is None:
        return ""
    return (
        f"the targets {tuple(binary.shape)} are not masks, since some pixels have several classes or none: the maps "
        "are drawn, but not measured against an outline. Choose masks with masks=..."
    )


def _resized(labels: Labels, shape: tuple[int, int, int]) -> Labels:
    rows, columns = (np.arange(new) * old // new for new, old in zip(shape[1:], labels.shape[1:], strict=True))
    return labels[:, rows][:, :, columns]


def _numbers(value: Tensor | NDArray[Any]) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _array(value: Any, what: str) -> NDArray[Any]:
    try:
        return _numbers(value) if isinstance(value, Tensor) else np.asarray(value)
    except (ValueError, TypeError) as error:
        raise FadevizError(f"{what} cannot be converted to an array: {error}") from error
