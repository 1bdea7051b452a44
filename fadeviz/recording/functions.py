"""Calls of functions such as ``F.interpolate``, which have no module, made visible together with their module."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

FUNCTIONS = ("interpolate", "pixel_shuffle", "grid_sample", "conv_transpose2d", "max_unpool2d", "cat")
"""The functions that globs match and lists show: those that upsample a map or put two maps together.

Calls of any other function of torch can be recorded by its name: ``decoder.up1:relu``.
"""

_SAME = {
    **dict.fromkeys(("concat", "concatenate"), "cat"),
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d"), "grid_sample"),
}
"""Other names of the same function."""


_AS_WRITTEN = re.compile(r"^(torch\.)?(nn\.functional\.|functional\.|F\.)?|\(\)$")
"""What code has around a function's name: ``F.interpolate``, ``torch.cat()``."""


def function_name(name: str) -> str:
    """The name of a function among its names: that of ``F.interpolate`` for ``upsample_bilinear2d.vec``, its kernel.

    Exported models call kernels.
    """
    name = name.partition(".")[0]
    return "interpolate" if name.startswith("upsample") else _SAME.get(name, name)


def split_function(name: str) -> tuple[str, str]:
    """The module's name and the function's: ``decoder.up1:interpolate`` -> ``("decoder.up1", "interpolate")``.

    ``decoder.up1:F.interpolate`` is the same.

    The function is empty for the name of a module. The module's name is empty for calls that the model itself makes.
    """
    module, colon, function = name.rpartition(":")
    if not colon:
        return name, ""
    return module, function_name(_AS_WRITTEN.sub("", function.strip()))


def describe_functions(names: Iterable[str], most: int = 8) -> str:
    """List functions for a message, those in ``FUNCTIONS`` first, and at most ``most`` of them."""
    several = sorted(set(names), key=lambda name: (name not in FUNCTIONS, name))
    more = f" and {len(several) - most} more" if len(several) > most else ""
    return ", ".join(several[:most]) + more or "none"


class FunctionCalls(TorchFunctionMode):
    """While it is active, every call of a torch function in this thread passes through ``on_call``.

    A call is that of the innermost known module whose method is running, directly or through other functions. What is
    called inside a torch function, such as the kernels of ``F.interpolate``, is not seen, nor are calls inside
    ``on_call``.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> class Up(nn.Module):
        ...     def forward(self, x):
        ...         return F.interpolate(x, scale_factor=2)
        >>> model, seen = nn.Sequential(nn.Conv2d(3, 4, 1), Up()), []
        >>> def on_call(module, function, call):
        ...     seen.append((type(module).__name__, function))
        ...     return call()
        >>> with FunctionCalls(model, list(model), on_call, functions=["interpolate"]):
        ...     _ = model(torch.zeros(1, 3, 2, 2))
        >>> seen
        [('Up', 'interpolate')]
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Iterable[nn.Module],
        on_call: Callable[[nn.Module, str, partial[Any]], Any],
        functions: Sequence[str] | None = None,
    ) -> None:
        """Nothing is seen before the ``with`` block.

        Args:
            model: calls are seen while it runs, and are its own where no other known module is inside it.
            modules: the known modules.
            on_call: ``(module, function, call)`` -> what the call returns: usually ``call()``. The arguments are
                ``call.args`` and ``call.keywords``.
            functions: names of the functions whose calls are seen; None for all.
        """
        super().__init__()
        self._modules = {id(module): module for module in (model, *modules)}
        self._on_call = on_call
        self._functions = None if functions is None else frozenset(functions)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of ``func``."""
        kwargs = kwargs or {}
        name = function_name(getattr(func, "__name__", ""))
        if name.startswith("__") or (self._functions is not None and name not in self._functions):
            return func(*args, **kwargs)
        module = _calling_module(sys._getframe(1), self._modules)
        return func(*args, **kwargs) if module is None else self._on_call(module, name, partial(func, *args, **kwargs))


def _calling_module(frame: FrameType | None, modules: Mapping[int, nn.Module]) -> nn.Module | None:
    """The innermost of ``modules`` whose method is running; None if there is none."""
    while frame is not None:
        # The first argument of a method, read only where there is one: reading a frame's variables copies them all.
        names = frame.f_code.co_varnames
        if names[:1] == ("self",) and (module := modules.get(id(frame.f_locals.get("self")))) is not None:
            return module
        frame = frame.f_back
    return None


__all__ = ["FUNCTIONS", "FunctionCalls", "describe_functions", "function_name", "split_function"]
