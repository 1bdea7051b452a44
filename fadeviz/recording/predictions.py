"""What a model predicts for the observed images: the class or the alpha of each pixel, read from its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..data.transforms import IGNORED
from ..errors import FadevizError
from .batch import map_tensors
from .masks import MOST_CLASSES
from .views import describe

Values = Literal["classes", "alpha"]

ENTRIES = ("logits", "out")
"""Where the outputs of transformers and torchvision hold the logits."""

_TOGETHER = 8
"""Classes that are interpolated at a time: 150 maps of a large image would take gigabytes."""


class PredictionReader:
    """Reads masks or mattes ``(N, H, W)`` uint8 from outputs of a model.

    Attributes:
        values: ``classes`` or ``alpha``, as the first output gave them; None before it.
    """

    def __init__(self, predict: bool | Callable[[Any], Any], shape: tuple[int, int, int]) -> None:
        """Choose what to read.

        Args:
            predict: True takes the class with the largest logit: the output, or its entry ``logits`` or ``out``, is
                ``(N, C, h, w)``; of a single channel the object is where the logit is positive, which is where its
                sigmoid exceeds 0.5. Otherwise ``output -> (N, h, w)``: the class of each pixel as integers or booleans,
                or its alpha as floats from 0 to 1.
            shape: number, height and width of the observed images. Logits and alphas are interpolated to their size
                (bilinear), before the largest logit is taken; classes take the nearest pixel.

        Raises:
            FadevizError: if ``predict`` is neither True nor callable.
        """
        if predict is not True and not callable(predict):
            raise FadevizError(
                f"predictions is {predict!r:.60}: True is needed, for logits (N, C, H, W), or a function that takes "
                "the model's output and returns masks (N, H, W)"
            )
        self._predict, self._count, self._size = predict, shape[0], shape[1:]
        self.values: Values | None = None

    @torch.no_grad()
    def read(self, output: Any, count: int | None = None) -> NDArray[np.uint8]:
        """The masks or mattes in the output for ``count`` of the images; None for all.

        Returns:
            ``(count, H, W)``: classes, 255 where a logit is NaN or the function said so; or alphas from 0 to 255.

        Raises:
            FadevizError: if there are no logits, or the function returns anything but masks or mattes.
        """
        count = self._count if count is None else count
        if not callable(self._predict):
            values: Values = "classes"
            result = _largest(_logits(output, count), self._size)
        else:
            # A copy: the loss of this observation reads the output after the function.
            given = _as_tensor(self._predict(map_tensors(output, lambda tensor: tensor.detach().clone())), count)
            values = "alpha" if given.is_floating_point() else "classes"
            result = _alphas(given, self._size) if values == "alpha" else _labels(given, self._size)
        if self.values not in (None, values):
            raise FadevizError(
                f"predictions returned {_NAMES[values]}, but {self.values} before. Return the same at every step"
            )
        self.values = values
        array: NDArray[np.uint8] = result.cpu().numpy()
        return array


_NAMES: Mapping[Values, str] = {"classes": "classes (integers)", "alpha": "alphas (floats)"}


def _logits(output: Any, count: int) -> Tensor:
    """The logits ``(N, C, h, w)`` in an output."""
    found = output
    for name in ENTRIES:
        if isinstance(output, Tensor):
            break
        inside = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(inside, Tensor):
            found = inside
            break
    if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != count or not found.is_floating_point():
        raise FadevizError(
            f"predictions=True: the model returns {describe(output)} for {count} images; logits ({count}, C, H, W), or "
            "an entry 'logits' or 'out' with them, are needed. Give a function: predictions=lambda output: masks"
        )
    if 0 in found.shape or found.shape[1] > MOST_CLASSES:
        raise FadevizError(
            f"predictions=True: the logits are {tuple(found.shape)}; from 1 to {MOST_CLASSES} classes can be stored. "
            "Give a function: predictions=lambda output: masks"
        )
    return found.detach()


def _largest(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of the largest logit of each pixel, at this size; ``IGNORED`` where a logit is NaN."""
    result = torch.empty((len(logits), *size), dtype=torch.uint8, device=logits.device)
    for classes, image in zip(result, logits, strict=True):
        classes.zero_()
        broken = torch.zeros_like(classes, dtype=torch.bool)
        best = torch.full(size, 0 if len(image) == 1 else -torch.inf, device=logits.device)
        for number, few in enumerate(image.split(_TOGETHER)):
            largest, which = _interpolated(few.float(), size).max(dim=0)
            better = largest > best
            # Of a single channel, class 1 is where it is positive.
            classes[better] = 1 if len(image) == 1 else (which + _TOGETHER * number).to(torch.uint8)[better]
            best = torch.where(better, largest, best)
            broken |= largest.isnan()
        classes[broken] = IGNORED
    return result


def _interpolated(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps ``(C, h, w)`` at another size (bilinear)."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def _as_tensor(returned: Any, count: int) -> Tensor:
    """What a function returned, as a tensor ``(N, h, w)`` of integers or floats."""
    given = torch.from_numpy(np.ascontiguousarray(returned)) if isinstance(returned, np.ndarray) else returned
    if (
        not isinstance(given, Tensor)
        or given.ndim != 3
        or len(given) != count
        or 0 in given.shape
        or given.is_complex()
    ):
        raise FadevizError(
            f"predictions returned {describe(given)} for {count} images; ({count}, H, W) is needed: the class of each "
            "pixel as integers, or its alpha as floats from 0 to 1"
        )
    return given.detach()


def _alphas(given: Tensor, size: tuple[int, int]) -> Tensor:
    given = given.float()
    if not ((given >= 0) & (given <= 1)).all():  # NaN as well
        low, high = given.amin().item(), given.amax().item()
        raise FadevizError(
            f"predictions returned floats from {low:.4g} to {high:.4g}, which are alphas and must be from 0 to 1. "
            "Return probabilities, or the classes as integers: output.argmax(dim=1)"
        )
    return (_interpolated(given, size) * 255).round().to(torch.uint8)


def _labels(given: Tensor, size: tuple[int, int]) -> Tensor:
    given = given.to(torch.int64)
    low, high = int(given.min()), int(given.max())
    if low < 0 or high > IGNORED:
        raise FadevizError(
            f"predictions returned classes from {low} to {high}; from 0 to {MOST_CLASSES - 1}, or {IGNORED} for none, "
            "can be stored"
        )
    if (given == MOST_CLASSES).any():
        raise FadevizError(
            f"predictions returned class {MOST_CLASSES}; from 0 to {MOST_CLASSES - 1}, or {IGNORED} for none, can be "
            "stored"
        )
    small = given.to(torch.uint8)
    if tuple(small.shape[-2:]) == size:
        return small
    return F.interpolate(small[:, None], size, mode="nearest-exact")[:, 0]


__all__ = ["PredictionReader"]
