"""What stays in a model whose upsampling was replaced: chains of operators, guides, and modules whose calls go to them.

All of it is copied, pickled and moved with the model: hooks are methods and functions, not closures.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError
from ..recording.functions import FunctionCalls
from ..recording.views import describe
from ..upsamplers import Skip, Upsampler
from ..upsamplers.base import check_input


class UpsamplerChain(Upsampler):
    r"""Operators that double the map one after another: two of them for a factor of 4, three for 8.

    They are the submodules ``x2``, ``x4``, ... by the factor that is reached. An encoder feature has the resolution of
    the chain's output; the operators before the last one get it averaged over blocks of 2 x 2, 4 x 4, ... pixels.

    Shape:
        x ``(B, C, h, w)``, skip.feature ``(B, C_skip, s*h, s*w)`` -> ``(B, C_out, s*h, s*w)``, with s a power of two.
    """

    def __init__(self, operators: Sequence[Upsampler]) -> None:
        """``operators`` of scale factor 2, in the order in which they are applied."""
        super().__init__()
        self.scale_factor = 2 ** len(operators)
        for number, operator in enumerate(operators, start=1):
            self.add_module(f"x{2**number}", operator)

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Double x until it has the output's size."""
        check_input(self, x, skip)
        for factor, operator in self._steps():
            blocks = self.scale_factor // factor
            step = skip if skip is None or blocks == 1 else Skip(F.avg_pool2d(skip.feature, blocks))
            x = operator(x, step)
        return x

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of all operators, each at its own resolution."""
        return sum(
            operator.multiply_adds(height * factor // 2, width * factor // 2) for factor, operator in self._steps()
        )

    def _steps(self) -> list[tuple[int, Upsampler]]:
        factors = [2**number for number in range(1, int(math.log2(self.scale_factor)) + 1)]
        return [(factor, self.get_submodule(f"x{factor}")) for factor in factors]  # type: ignore[misc]


class Guide:
    """The latest output of a layer, for the operators that read it: hooks write, read and forget it.

    Every thread has its own, so that replicas on several devices do not read each other's. It is not copied or pickled
    with the model.

    Attributes:
        layer: the layer's name.
    """

    def __init__(self, layer: str) -> None:
        """Nothing is known before the layer has run."""
        self.layer = layer
        self._thread = threading.local()

    def write(self, output: Any) -> None:
        """Keep an output of the layer."""
        self._thread.output = output

    def read(self, operator: str) -> Tensor:
        """The latest output.

        Raises:
            FadevizError: if the layer did not run in this forward pass, or returned no map.
        """
        output = getattr(self._thread, "output", None)
        if output is None:
            raise FadevizError(
                f"{operator!r} reads the output of {self.layer!r}, its guide, which did not run before it in this "
                "forward pass. Run the whole model"
            )
        return map_of(output, self.layer, operator)

    def on_output(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Forward hook of the layer."""
        self.write(output)

    def forget(self, module: nn.Module, inputs: Any) -> None:
        """Forward pre-hook of the model: no operator reads the output of an earlier pass.

        It is not forgotten at the end of a pass, since activation checkpointing runs operators again in the backward.
        """
        self._thread.output = None

    def __getstate__(self) -> dict[str, str]:
        return {"layer": self.layer}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__init__(state["layer"])  # type: ignore[misc]


def map_of(output: Any, layer: str, operator: str) -> Tensor:
    """The map that a guide's layer returned.

    Raises:
        FadevizError: if it returned anything but a map ``(B, C, h, w)``.
    """
    if not isinstance(output, Tensor) or output.ndim != 4:
        raise FadevizError(
            f"the guide {layer!r} of {operator!r} returns {describe(output)}; a map (B, C, h, w) is needed. Choose "
            "another layer"
        )
    return output


class OperatorInput:
    """Forward pre-hook of an operator: calls of what it replaced become calls of the operator."""

    def __init__(
        self, layer: str, size: object, guide: Guide | None, projects: bool, projects_guide: bool = False
    ) -> None:
        """Nothing is computed yet.

        Args:
            layer: the operator's name.
            size: the size of the output that the replaced module was built for; None if it follows from the factor.
            guide: the encoder feature.
            projects: whether the child ``project`` changes the number of channels before the operator.
            projects_guide: whether the child ``project_guide`` changes those of the guide.
        """
        self.layer, self.size, self.guide = layer, size, guide
        self.projects, self.projects_guide = projects, projects_guide

    def __call__(self, operator: Upsampler, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Add the guide, change the channels, and check the size."""
        x, size = _arguments(*args, **kwargs)
        size = self.size if size is None else size
        if size is not None:
            h, w = x.shape[-2:]
            s, wanted = operator.scale_factor, tuple(size)[-2:] if isinstance(size, Iterable) else (size, size)
            if wanted != (s * h, s * w):
                raise FadevizError(
                    f"{self.layer!r} multiplies the sides by {s}: it turns {h}x{w} into {s * h}x{s * w}, but the model "
                    f"asks for {wanted[0]}x{wanted[1]}. Use images whose sides every stage divides evenly"
                )
        if self.projects:
            x = operator.get_submodule("project")(x)
        if self.guide is None:
            return (x,), {}
        feature = self.guide.read(self.layer)
        if self.projects_guide:
            feature = operator.get_submodule("project_guide")(feature)
        return (x, Skip(feature)), {}


def _arguments(input: Tensor, output_size: object = None) -> tuple[Tensor, Any]:
    """The input and the requested size, however the replaced module is called."""
    return input, output_size


def project_output(operator: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Forward hook of an operator whose child ``project`` changes the number of channels after it."""
    projected: Tensor = operator.get_submodule("project")(output)
    return projected


class ModuleWithCalls(nn.Module):
    """A module some of whose calls of functions are replaced, or are guides; mixed into the module's own class.

    Attributes:
        replaced_calls: by the number of a call of ``F.interpolate`` in one forward pass of this module, the child that
            is run instead.
        call_places: where in the code the calls come from, by their numbers; see :func:`place_of_call`.
        guiding_calls: by the function's name, the guides that keep what it returns.
    """

    replaced_calls: dict[int, str]
    call_places: tuple[str, ...]
    guiding_calls: dict[str, list[Guide]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle it by its own class, since the mixed one has no place of its own."""
        mixed = type(self)
        reduced: Any = super().__reduce_ex__(protocol)
        build, arguments, *state = reduced
        arguments = tuple(_own_class(self) if one is mixed else one for one in arguments)
        return _rebuild, (_own_class(self), build, arguments), *state


def _own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, also if ``ModuleWithCalls`` is mixed into it."""
    cls = type(module)
    return cls.__bases__[1] if isinstance(module, ModuleWithCalls) else cls


def _rebuild(cls: type[nn.Module], build: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    module = build(*arguments)
    module.__class__ = class_with_calls(cls)
    return module


_MIXED: dict[Any, Any] = {}
"""The classes with calls by the class that they are made of."""


def class_with_calls(cls: Any) -> Any:
    """The subclass of ``cls`` with :class:`ModuleWithCalls`, under the same name.

    A class, and not hooks around ``forward``: a forward pass that is interrupted leaves nothing behind, and replicas of
    the module call their own children.
    """
    if cls in _MIXED:
        return _MIXED[cls]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        functions = [*self.guiding_calls, *(["interpolate"] if self.replaced_calls else [])]
        calls = _ForwardPass(self)
        with FunctionCalls(_NO_MODULE, self.modules(), calls, functions):
            output = cls.forward(self, *args, **kwargs)
        calls.check()
        return output

    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    # Not compiled, since the frames of Python show whose call it is; with the signature of the module's own forward,
    # which trainers read.
    names["forward"] = functools.wraps(cls.forward)(torch.compiler.disable(forward))
    _MIXED[cls] = type(cls.__name__, (ModuleWithCalls, cls), names)
    return _MIXED[cls]


def can_have_calls(cls: type[nn.Module]) -> bool:
    """Whether :func:`class_with_calls` can make a subclass: not if the class asks something of its subclasses."""
    try:
        class_with_calls(cls)
    except Exception:
        return False
    return True


_REPLACING = next(code for code in class_with_calls.__code__.co_consts if isinstance(code, CodeType))
"""The code of ``forward`` in all these classes."""

_NO_MODULE = nn.Module()
"""The module of calls in none of the known ones."""


class _ForwardPass:
    """The calls in one forward pass of a module."""

    def __init__(self, module: ModuleWithCalls) -> None:
        self._module = module
        self._numbers: dict[str, list[int]] = {}  # of the calls that are still to come, by their places
        for number, place in enumerate(module.call_places):
            self._numbers.setdefault(place, []).append(number)
        self._others = 0

    def __call__(self, module: nn.Module, function: str, call: partial[Any]) -> Any:
        if module is not self._module:
            return call()
        name = self._replaced() if function == "interpolate" and self._module.replaced_calls else None
        output = call() if name is None else self._module.get_submodule(name)(*requested(call))
        for guide in self._module.guiding_calls.get(function, ()):
            guide.write(output)
        return output

    def _replaced(self) -> str | None:
        """The child that is run instead of this call; None for a call that was left, or was not there before.

        Raises:
            FadevizError: if the call is made more often than in the pass of the example images.
        """
        place = place_of_call(self._module)
        numbers = self._numbers.get(place)
        if numbers is None:
            self._others += 1
            return None
        if not numbers:
            function = place.rpartition(" > ")[2].partition(":")[0]
            raise FadevizError(
                f"{type(self._module).__name__} calls F.interpolate more often than for the example images (in "
                f"{function}), and each call has an operator of its own. Replace with images for which it makes as "
                "many calls"
            )
        return self._module.replaced_calls.get(numbers.pop(0))

    def check(self) -> None:
        """Check at the end of a pass that its calls are those that were replaced.

        Raises:
            FadevizError: if they all come from other places in the code than those of the example images.
        """
        known = sum(map(len, self._numbers.values()))
        if self._others and known == len(self._module.call_places):
            mode = "training" if self._module.training else "eval"
            raise FadevizError(
                f"{type(self._module).__name__} makes other calls of F.interpolate in {mode} mode than for the example "
                "images in eval mode, or its code was changed: none of those that were replaced was made. Replace the "
                "calls of a model that makes the same ones in both modes"
            )


def place_of_call(module: nn.Module) -> str:
    """Where in the code of a module's forward pass a function is called: ``forward:3 > resize:1``, lines from 0.

    These are the functions that are running, from the module's ``forward`` to the one that calls, without those of
    torch and fadeviz. What is called only in training is not confused with what was called in eval mode.
    """
    places: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code, package = frame.f_code, frame.f_globals.get("__name__", "")
        if code in (_CALL, _REPLACING) and frame.f_locals.get("self") is module:
            break
        if package.partition(".")[0] != "torch" and package not in _OURS:
            places.append(f"{code.co_name}:{(frame.f_lineno or 0) - code.co_firstlineno}")
        frame = frame.f_back
    return " > ".join(reversed(places))


_CALL = nn.Module._call_impl.__code__
_OURS = (__name__, FunctionCalls.__module__, f"{__package__}.example_pass")


def requested(call: partial[Any]) -> tuple[Tensor, tuple[int, ...] | None]:
    """The input of a call of ``F.interpolate``, and the size that it asks for."""
    arguments = dict(zip(("input", "size", "scale_factor"), call.args, strict=False)) | call.keywords
    x, size, scale = arguments["input"], arguments.get("size"), arguments.get("scale_factor")
    if size is not None:
        sizes = tuple(size) if isinstance(size, Iterable) else (size,) * (x.ndim - 2)
        return x, sizes
    if scale is None:
        return x, None
    scales = tuple(scale) if isinstance(scale, Iterable) else (scale,) * (x.ndim - 2)
    return x, tuple(math.floor(side * factor) for side, factor in zip(x.shape[2:], scales, strict=False))


__all__ = [
    "Guide",
    "ModuleWithCalls",
    "OperatorInput",
    "UpsamplerChain",
    "can_have_calls",
    "class_with_calls",
    "map_of",
    "place_of_call",
    "project_output",
    "requested",
]
