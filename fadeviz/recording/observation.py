"""The arguments of one observation, checked and completed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import FadevizError
from .layer_choice import Layer
from .predictions import PredictionReader
from .readout import ReadoutTargets
from .views import View

Mode = Literal["eval", "batch"]

MODES = ("eval", "batch")


@dataclass(frozen=True)
class Observation:
    """What to observe and how: the arguments of :meth:`~fadeviz.recording.probe.Probe.observe`, and the layers.

    Attributes:
        images: the argument or the keyword arguments of the model.
        targets: the second argument of ``loss_fn``.
        loss_fn: ``loss_fn(output, targets)``, a scalar.
        step: the number of optimiser steps done.
        mode: ``eval`` or ``batch``.
        autocast: the dtype of autocast; None for none.
        images_at_once: the number of images that are in the model at a time; None decides by their size.
        layers: the recorded layers by the name under which each is recorded.
        required: the layers whose problems raise an error; others, matched by a glob only, are left out instead.
        model: the model, to which calls of functions in no other module belong.
        modules: all modules of the model by name.
        guarded: all modules that must be left unchanged: those of the model and of the loss.
        views: how to read a map from each layer's output.
        reduce: ``(B, C, h, w) -> (B, h, w)``, for the kind ``feature``.
        channel_images: the number of images that kinds with many maps per image keep.
        readout: what is read out of the channels; None if no such kind is recorded.
        predictions: reads what the model predicts from its output; None if that is not recorded.
    """

    images: Any
    targets: Any
    loss_fn: Callable[[Any, Any], Tensor]
    step: int
    mode: Mode
    autocast: torch.dtype | None
    images_at_once: int | None
    layers: Mapping[str, Layer]
    required: frozenset[str]
    model: nn.Module
    modules: Mapping[str, nn.Module]
    guarded: tuple[nn.Module, ...]
    views: Mapping[str, View]
    reduce: Callable[[Tensor], Tensor]
    channel_images: int
    readout: ReadoutTargets | None = None
    predictions: PredictionReader | None = None

    @contextmanager
    def error_context(self, failure: str, layer: str = "", remark: str = "") -> Iterator[None]:
        """Turn an error of the model or the loss into a message with the failure, the layer, the step and the mode."""
        try:
            yield
        except FadevizError:
            raise
        except Exception as error:
            if is_out_of_memory(error):  # the caller may retry with fewer images
                raise
            layer = layer or _deepest_layer(error, self.modules)
            place = f", in layer {layer!r}" if layer else ""
            text = next(iter(str(error).strip().splitlines()), "")
            text = text.rstrip(".: ") if remark else text
            raise FadevizError(
                f"{failure}{place} (step {self.step}, observed in {self.mode} mode): "
                f"{type(error).__name__}: {text:.300}{remark}"
            ) from error


def _deepest_layer(error: BaseException, modules: Mapping[str, nn.Module]) -> str:
    """The innermost layer in the error's traceback."""
    names = {id(module): name for name, module in reversed(list(modules.items()))}
    layer, trace = "", error.__traceback__
    while trace is not None:
        layer = names.get(id(trace.tb_frame.f_locals.get("self")), layer)
        trace = trace.tb_next
    return layer


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory; torch has no exception class for this on a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
