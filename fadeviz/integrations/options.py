"""The arguments of a recorder that its callbacks pass on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..recording.failures import OnError
from ..recording.observation import Mode
from ..recording.views import View


class RecorderOptions(TypedDict, total=False):
    """Arguments of :class:`fadeviz.Recorder` that callbacks accept in addition to their own, with its defaults."""

    kinds: str | Sequence[str] | None
    observe_mode: Mode
    views: Mapping[str, View] | None
    reduce: Callable[[Tensor], Tensor] | None
    channel_images: int
    display_images: NDArray[np.uint8] | None
    masks: NDArray[Any] | Tensor | None
    ignore_index: int | None
    classes: int | None
    foreground: int | Sequence[int] | None
    names: Sequence[str] | None
    name: str | None
    seed: int | None
    predictions: bool | Callable[[Any], Any]
    config: Mapping[str, Any] | None
    on_error: OnError


__all__ = ["RecorderOptions"]
