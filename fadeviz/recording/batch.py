"""The tensors in a model's inputs and outputs of any structure: find, map, slice by image, concatenate."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import FadevizError


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to every tensor in a structure of mappings, lists, tuples and named tuples, dataclasses, and
    objects that have tensors as attributes.

    Containers and NumPy arrays are copied; other objects are kept.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        changed = {key: map_tensors(item, change) for key, item in value.items()}
        if not isinstance(value, dict | UserDict):
            return changed
        kept = copy.copy(value)  # an OrderedDict, an output of transformers
        for key, item in changed.items():
            kept[key] = item
        return kept
    if isinstance(value, tuple | list):
        items = [map_tensors(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    attributes = attributes_of(value)
    if attributes is None:
        return value
    twin = copy.copy(value)
    for name, item in attributes.items():  # frozen or not
        object.__setattr__(twin, name, map_tensors(item, change))
    return twin


def attributes_of(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass, or the attributes of a custom batch object that holds tensors.

    None for anything else.
    """
    if isinstance(value, type | torch.nn.Module):
        return None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    plain = dict(getattr(value, "__dict__", {}))
    return plain if any(isinstance(item, Tensor) for item in plain.values()) else None


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors that :func:`map_tensors` changes, in its order."""
    tensors: list[Tensor] = []

    def add(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(value, add)
    return tensors


def count_images(images: Any) -> tuple[int, int]:
    """The number of images ``(N, C, H, W)`` and the number of pixels of each; ``(0, 0)`` if nothing has four axes."""
    largest = max((t for t in tensors_in(images) if t.ndim == 4), key=lambda t: t.numel(), default=None)
    return (0, 0) if largest is None else (len(largest), largest.shape[-2] * largest.shape[-1])


def slice_images(images: Any, count: int, start: int, stop: int) -> Any:
    """The images from ``start`` to ``stop``: tensors of ``count`` rows are sliced, others apply to every image."""
    return map_tensors(images, lambda t: t[start:stop] if t.ndim and len(t) == count else t)


def concatenate_outputs(parts: Sequence[Any], counts: Sequence[int]) -> Any:
    """Concatenate the outputs of chunks into the output of all images.

    Args:
        parts: outputs of the same structure.
        counts: the number of images in each.

    Raises:
        FadevizError: if a tensor does not have one row per image, such as a loss inside an output.
    """
    tensors_of_parts = [tensors_in(part) for part in parts]
    for tensors, count in zip(tensors_of_parts, counts, strict=True):
        if len(tensors) != len(tensors_of_parts[0]) or any(not t.ndim or len(t) != count for t in tensors):
            raise FadevizError("the model's output does not have one row per image")
    whole = iter([torch.cat(same) for same in zip(*tensors_of_parts, strict=True)])
    return map_tensors(parts[0], lambda _: next(whole))
