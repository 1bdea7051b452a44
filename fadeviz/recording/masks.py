"""What is stored of the batch that a recorder observes: the images to show, masks and names."""

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
"""The number of classes that a mask can hold: one byte per pixel, with 255 for void."""


class Masks(NamedTuple):
    """What is stored of the observed images' masks.

    Attributes:
        values: ``(N, H, W)`` uint8, the classes; ``IGNORED`` where a pixel is void.
        classes: the number of classes, 2 or more.
        foreground: the class of each image that is measured as its object; None: every class but 0.
        earlier: ``values`` as stored by versions that did not distinguish void pixels and classes.
        note: why the targets are not masks, if that is unexpected.
    """

    values: NDArray[np.uint8]
    classes: int
    foreground: list[int] | None
    earlier: NDArray[np.uint8]
    note: str = ""


def whole_number(value: Any, what: str) -> int:
    """A step or a count of any integer type: Python's, numpy's, a single-element tensor.

    Raises:
        FadevizError: anything else, also a bool and a float that happens to be whole.
    """
    is_bool = isinstance(value, bool | np.bool_) or getattr(value, "dtype", None) in (torch.bool, np.dtype(bool))
    try:
        if not is_bool:
            return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise FadevizError(f"{what} is {value!r:.60}, a {type(value).__name__}: a whole number is needed")


def arrays_in(value: Any) -> Iterator[Tensor | NDArray[Any]]:
    """The tensors and numpy arrays of a batch, in order; not those of a list with a dict per image."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from arrays_in(one)
    elif isinstance(value, tuple | list):
        if len(value) < 2 or not all(isinstance(one, Mapping) for one in value):
            for one in value:
                yield from arrays_in(one)
    elif (attributes := attributes_of(value)) is not None:
        yield from (one for one in attributes.values() if isinstance(one, Tensor | np.ndarray))


def images_to_show(images: Any, given: Any) -> NDArray[np.uint8]:
    """``(N, H, W, 3)`` uint8: the images given, or made of those the model is called with.

    Raises:
        FadevizError: none given and none that can be shown, another shape or type, another number than are observed.
    """
    found = _drawable(images)
    if given is None:
        if found is None:
            raise FadevizError(
                "the observed images are not a tensor (N, 1 or 3, H, W) that can be shown. "
                "Give display_images=, uint8 (N, H, W, 3)"
            )
        return _as_bytes(found)
    shown = _array(given, "display_images")
    if shown.ndim != 4 or shown.shape[-1] != 3 or shown.dtype != np.uint8 or not shown.size:
        raise FadevizError(f"display_images are {shown.dtype} {shown.shape}; uint8 (N, H, W, 3) is needed")
    if found is not None and len(found) != len(shown):
        raise FadevizError(f"{len(shown)} display_images for {len(found)} observed images. Give one for each")
    return shown


def _drawable(images: Any) -> NDArray[np.float32] | None:
    """The first images in a batch, ``(N, C, H, W)``: those of three channels before those of one."""
    images = _stacked(images, 3)
    fitting = [one for one in arrays_in(images) if one.ndim == 4 and one.shape[1] in (1, 3) and 0 not in one.shape]
    for channels in (3, 1):
        for one in fitting:
            if one.shape[1] == channels:
                return _numbers(one).astype(np.float32)
    return None


def _stacked(value: Any, axes: int) -> Any:
    """Stack a list with an array per image if they have the same size; otherwise return it as it is."""
    if not isinstance(value, tuple | list) or not value:
        return value
    parts = [_numbers(one) for one in value if isinstance(one, Tensor | np.ndarray) and one.ndim == axes]
    same = len(parts) == len(value) and len({part.shape for part in parts}) == 1
    return np.stack(parts) if same else value


def _as_bytes(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    flat = np.nan_to_num(images.transpose(0, 2, 3, 1), posinf=0, neginf=0)
    low, high = (end(flat, axis=(1, 2, 3), keepdims=True) for end in (np.min, np.max))
    unit = (flat - low) / np.where(high > low, high - low, 1)
    return np.rint(255 * np.broadcast_to(unit, (*unit.shape[:3], 3))).astype(np.uint8)


def names_of(names: Any, count: int) -> list[str]:
    """A name for each observed image.

    Raises:
        FadevizError: another number of names.
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
    """The masks of the observed images: those given, or the first suitable target.

    Args:
        targets: of the observed batch; integers or zeros and ones, ``(N, H, W)`` or ``(N, 1, H, W)``, or one-hot.
        given: ``masks=``.
        shape: N, H and W of the images to show; targets of another resolution are resized to it.
        ignore_index: the label of void pixels; negative labels and 255 are always void.
        classes: the number of classes; None takes the largest label plus 1.
        foreground: the class of the object, one for all images or one for each.
        loss_fn: its ``ignore_index`` applies to the targets if none is given.

    Raises:
        FadevizError: masks of another shape, labels out of range, a class that does not occur.
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
                f"{what} is given, but the targets hold no masks (N, H, W) of whole numbers. Give masks="
            )
        return Masks(np.zeros(shape, np.uint8), 2, None, before, _why_none(targets, shape))
    void = (labels < 0) | (labels == IGNORED)
    if ignore_index is not None:
        void |= labels == ignore_index
    top = int(labels.max(initial=0, where=~void))
    if top >= MOST_CLASSES:
        what = f"labels up to {top}, but classes must be from 0 to {MOST_CLASSES - 1}, or void (255 or negative)"
        remedy = "Give the objects as masks=, or the label of void pixels as ignore_index="
        if given is None and foreground is None and classes is None:  # depth, or numbers of instances
            return Masks(np.zeros(shape, np.uint8), 2, None, before, f"the targets are not masks: {what}. {remedy}")
        raise FadevizError(f"the masks hold {what}. {remedy}")
    count = _count_classes(top, classes)
    values = np.where(void, IGNORED, labels).astype(np.uint8)
    return Masks(values, count, _foreground(values, count, foreground), before)


def ignored_by(loss_fn: Any) -> int | None:
    """The ``ignore_index`` that a loss was made with: a module such as ``CrossEntropyLoss``, what it is made of, or a
    ``functools.partial``; None where it has none.
    """
    if isinstance(loss_fn, functools.partial):
        value = loss_fn.keywords.get("ignore_index")
        return value if isinstance(value, int) else ignored_by(loss_fn.func)
    parts = loss_fn.modules() if isinstance(loss_fn, nn.Module) else [loss_fn]
    values = [getattr(part, "ignore_index", None) for part in parts]
    # Labels that are always void need not be given.
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


def _foreground(values: NDArray[np.uint8], classes: int, wanted: Any) -> list[int] | None:
    if wanted is None:
        if classes > 2:
            return [find_object(mask) for mask in values]
        # Stored only if there are void pixels; otherwise it is the default.
        return [1] * len(values) if (values == IGNORED).any() else None
    several = isinstance(wanted, tuple | list) or getattr(wanted, "ndim", 0) > 0
    chosen = [whole_number(one, "foreground") for one in (wanted if several else [wanted] * len(values))]
    if len(chosen) != len(values):
        raise FadevizError(
            f"foreground names {len(chosen)} classes for {len(values)} images. Give one for each, or one"
        )
    there = sorted(int(value) for value in np.unique(values) if value != IGNORED)
    for one in chosen:
        if one not in there:
            raise FadevizError(f"foreground is {one}, a class that the masks do not contain. They contain {there}")
    return chosen


def _given_labels(masks: NDArray[Any], shape: tuple[int, int, int], ignore_index: int | None) -> Labels:
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.shape != shape:
        raise FadevizError(f"masks are {masks.shape}; (N, H, W) = {shape} is needed, as the images shown are")
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
    found = [labels for one in arrays if (labels := _as_labels(one, shape, ignore_index)) is not None]
    if not found:
        return None, None
    # Of several (deep supervision), the one that is as large as the images.
    best = next((labels for labels in found if labels.shape == shape), found[0])
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
        # For a loss such as binary cross entropy; other floats are alpha, depth or the like.
        usual = np.array([0, 1, *([] if ignore_index is None else [ignore_index]), -1, -100, IGNORED])
        if not np.isin(values, usual).all():
            return None
    elif not (values.dtype == bool or np.issubdtype(values.dtype, np.integer)):
        return None
    return values.astype(np.int64)


def _of_one_hot(values: NDArray[Any], ignore_index: int | None) -> Labels | None:
    """Classes of ``(N, K, H, W)``; void where all K are one void label. None where pixels are of several, or none."""
    first = values[:, 0]
    void = (values == values[:, :1]).all(axis=1) & ((first < 0) | (first == IGNORED) | (first == ignore_index))
    inside = ~void[:, None]
    if not np.isin(values, (0, 1)).all(where=inside) or not (values.sum(axis=1) == 1).all(where=~void):
        return None
    return np.where(void, IGNORED, values.argmax(axis=1)).astype(np.int64)


def _why_none(targets: Any, shape: tuple[int, int, int]) -> str:
    """What to say of targets that might have been masks: a map for each image, of several channels or of fractions."""
    maps = (one for one in arrays_in(targets) if one.ndim == 4 and len(one) == shape[0] and one.shape[1] > 1)
    found = next((one for one in maps if np.isin(_numbers(one), (0, 1)).all()), None)
    if found is None:
        return ""
    return (
        f"the targets {tuple(found.shape)} are no masks, since a pixel is of several classes or of none: the maps are "
        "drawn, but not measured against an outline. Give masks= to choose one"
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
        raise FadevizError(f"{what} cannot be made an array: {error}") from error
