"""Reading a map (B, C, h, w) from any output of a layer: tuples, dicts, dataclasses, sequences of tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import FadevizError


@dataclass(frozen=True)
class View:
    """How to read a map from a layer's output; the default works wherever only one way is possible.

    Attributes:
        key: the name of a dict's or dataclass's entry, or the index in a tuple or list; None takes the only entry that
            can be a map.
        grid: rows and columns of the tokens ``(B, L, C)``; None takes a square.
        skip_tokens: the number of tokens before the grid, such as a class token; None takes 0, or 1 if only that leaves
            a square.
    """

    key: str | int | None = None
    grid: tuple[int, int] | None = None
    skip_tokens: int | None = None


def as_map(tensor: Tensor, view: View, layer: str) -> Tensor:
    """A layer's output, or its gradient, as a map.

    Shape: ``(B, C, h, w)`` is unchanged; tokens ``(B, L, C)`` -> ``(B, C, h, w)``.

    Raises:
        FadevizError: if the tensor has another number of axes, has complex or sparse values, or is a sequence of tokens
            that does not form a grid.
    """
    if tensor.device.type == "meta":
        raise FadevizError(
            f"layer {layer!r} returns a tensor without values (meta device). Load the model's weights first"
        )
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise FadevizError(
            f"layer {layer!r} runs inside a transform of torch.func such as vmap, where its maps have no values of "
            "their own. Choose the layer around it"
        )
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_complex():
        kind = "nested" if tensor.is_nested else "complex" if tensor.is_complex() else "sparse"
        raise FadevizError(
            f"layer {layer!r} returns a {kind} tensor; a dense, real map (B, C, h, w) is needed. Choose another layer"
        )
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.ndim == 4:
        return tensor
    if tensor.ndim == 3:
        return _from_tokens(tensor, view, layer)
    raise FadevizError(
        f"layer {layer!r} returns a tensor of {tensor.ndim} axes; a map (B, C, h, w) or tokens (B, L, C) are needed. "
        "Choose another layer"
    )


def choose_tensor(output: Any, view: View, layer: str) -> Tensor:
    """The tensor in a layer's output that can be a map.

    Raises:
        FadevizError: if there is none, or more than one to choose from; the message lists them.
    """
    key = view.key
    if isinstance(output, Tensor):
        if key is not None:
            raise FadevizError(f"layer {layer!r} returns a single tensor, which has no {key!r}. Leave the key out")
        return output
    entries = _entries(output)
    if entries is None:
        raise FadevizError(
            f"layer {layer!r} returns {type(output).__name__}; a map (B, C, h, w) is needed. Choose another layer"
        )
    if key is not None:
        if not isinstance(entries.get(key), Tensor):
            raise FadevizError(f"layer {layer!r} returns no tensor {key!r}. Its entries: {_names(entries)}")
        return entries[key]
    for axes in (4, 3):
        fitting = {name: value for name, value in entries.items() if isinstance(value, Tensor) and value.ndim == axes}
        if len(fitting) == 1:
            return next(iter(fitting.values()))
        if fitting:
            raise FadevizError(
                f"layer {layer!r} returns several tensors: {_names(fitting)}. "
                f"Choose one: View(key={next(iter(fitting))!r})"
            )
    raise FadevizError(
        f"layer {layer!r} returns {type(output).__name__} without a map (B, C, h, w): {_names(entries)}. "
        "Choose another layer"
    )


def _entries(output: Any) -> dict[str | int, Any] | None:
    if isinstance(output, Mapping):
        return dict(output)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    return None


def describe(output: Any) -> str:
    """Describe an output for an error message: its type and content."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)} of {output.dtype}"
    entries = _entries(output)
    return f"{type(output).__name__}" + ("" if entries is None else f" of {_names(entries)}")


def _names(entries: Mapping[str | int, Any]) -> str:
    def describe(value: Any) -> str:
        return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__

    return ", ".join(f"{name!r} {describe(value)}" for name, value in entries.items()) or "nothing"


def _from_tokens(tokens: Tensor, view: View, layer: str) -> Tensor:
    length = tokens.shape[1]
    choices = [view.skip_tokens] if view.skip_tokens is not None else [0, 1]
    for skip in choices:
        rows, columns = view.grid or (math.isqrt(max(0, length - skip)),) * 2
        if rows * columns == length - skip > 0:
            kept = tokens[:, skip:]
            return kept.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    grid = "a {}x{} grid".format(*view.grid) if view.grid else "a square grid"
    raise FadevizError(
        f"layer {layer!r} returns {length} tokens, which do not form {grid}. "
        "Describe the grid: View(grid=(rows, columns), skip_tokens=...)"
    )
