"""The modules that an observation runs: those of the model, hidden ones, and those that a loss refers to."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import FadevizError

PLAIN_TYPES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""Types whose values cannot change."""

MODULE_INTERNALS = frozenset(nn.Module().__dict__)
"""The attributes that every ``nn.Module`` has."""


def check_initialised(modules: Mapping[str, nn.Module]) -> None:
    """Refuse lazy modules that have not seen a batch, and weights that were never loaded.

    Raises:
        FadevizError: if a parameter or buffer has no shape yet, or a parameter is on the meta device.
    """
    for name, module in modules.items():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and nn.parameter.is_lazy(tensor):
                raise FadevizError(
                    f"{f'{name}.{key}'.lstrip('.')!r} of {type(module).__name__} has no shape before the first batch. "
                    "Run one batch through the model first: model(images)"
                )
        # accelerate's hooks load such weights when they are needed; without them the maps would be meaningless.
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.device.type == "meta" and "_hf_hook" not in module.__dict__:
                raise FadevizError(
                    f"{f'{name}.{key}'.lstrip('.')!r} of {type(module).__name__} is on the meta device and has no "
                    "values. Load the model's weights first"
                )


def all_modules(model: nn.Module, loss_fn: object = None) -> dict[str, nn.Module]:
    """Every module that an observation runs, by name: those of the model and the loss, and those hidden in them.

    A module in a plain list, or otherwise hidden from ``modules()``, may change in forward like any other.
    """
    modules: dict[str, nn.Module] = {}
    known: set[int] = set()

    def add(prefix: str, module: nn.Module) -> None:
        for name, part in module.named_modules(prefix=prefix):
            if id(part) in known:
                continue
            known.add(id(part))
            modules[name if name not in modules else f"{name} ({len(modules)})"] = part
            for key, value in part.__dict__.items():
                if key not in MODULE_INTERNALS:
                    for hidden in _modules_in(value):
                        add(f"{name}.{key}".lstrip("."), hidden)

    add("", model)
    for module in modules_of_loss(loss_fn):
        add("loss_fn", module)
    return modules


def modules_of_loss(loss_fn: object) -> list[nn.Module]:
    """The modules that a loss is or refers to: as a method, a partial, a callable object or a function.

    For a function these are the modules in its variables, its defaults and the functions that it calls; for other
    objects (such as a trainer) those in the attributes that the code uses.
    """
    modules: dict[int, nn.Module] = {}
    _collect(loss_fn, frozenset(), modules, set(), 6)
    return list(modules.values())


def _collect(value: Any, names: frozenset[str], modules: dict[int, nn.Module], seen: set[object], depth: int) -> None:
    """Collect the modules that code using these names may reach from a value in at most ``depth`` steps."""
    if isinstance(value, nn.Module):
        modules[id(value)] = value
        return
    if not depth or isinstance(value, (*PLAIN_TYPES, Tensor, np.ndarray)) or (id(value), names) in seen:
        return
    seen.add((id(value), names))
    if isinstance(value, list | tuple):
        parts = list(value[:_MOST_PARTS])
    elif isinstance(value, dict):
        parts = list(value.values())[:_MOST_PARTS]
    elif isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif inspect.ismethod(value):
        parts = [value.__func__]
        _collect(value.__self__, _names_in(value.__func__), modules, seen, depth)
    elif inspect.isfunction(value):
        names, parts = _names_in(value), _variables_of(value)
    else:
        names, parts = _attributes_of(value, names)
    for part in parts:
        _collect(part, names, modules, seen, depth - 1)


_MOST_PARTS = 1000
"""The most entries of a list that are searched: a loss has fewer modules, but a data set may have more images."""

_LIBRARIES = ("builtins", "torch", "numpy")


def _is_from(value: Any, packages: tuple[str, ...]) -> bool:
    return (getattr(value, "__module__", None) or "").partition(".")[0] in packages


def _names_in(function: Any) -> frozenset[str]:
    """The attributes and globals that a function's code, and that of the functions inside it, uses."""
    codes, names = [getattr(function, "__code__", None)], set[str]()
    while codes:
        code = codes.pop()
        if code is not None:
            names.update(code.co_names)
            codes += [constant for constant in code.co_consts if isinstance(constant, type(code))]
    return frozenset(names)


def _variables_of(function: Any) -> list[Any]:
    if _is_from(function, _LIBRARIES):
        return []
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    empty = types.CellType()  # of a variable that is not set yet
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != empty]
    used_globals = [function.__globals__[name] for name in _names_in(function) if name in function.__globals__]
    return [*cells, *used_globals, *defaults]


def _attributes_of(value: object, names: frozenset[str]) -> tuple[frozenset[str], list[Any]]:
    """All names that an object's methods of these names use, transitively, and the object's attributes of these names.

    For a callable object: all of its attributes.
    """
    cls = value if isinstance(value, type) else type(value)
    if isinstance(value, types.ModuleType):
        inside = {} if value.__name__.partition(".")[0] in _LIBRARIES else vars(value)
        return names, [inside[name] for name in names if name in inside]
    if _is_from(cls, _LIBRARIES):
        return names, []
    known, todo, parts = set(names), [*names, "__call__"], []
    own = {} if isinstance(value, type) else getattr(value, "__dict__", {})
    if "__call__" in dir(cls):
        parts += list(own.values())
    while todo:
        name = todo.pop()
        if name in own:
            parts.append(own[name])
        for attribute in (vars(base)[name] for base in cls.__mro__ if name in vars(base)):  # super() calls the others
            if inspect.ismemberdescriptor(attribute):  # of __slots__
                attribute = getattr(value, name, None)
            function = getattr(attribute, "fget", None) or getattr(attribute, "__func__", None) or attribute
            if inspect.isfunction(function):
                parts.append(function)
                todo += _names_in(function) - known
                known |= _names_in(function)
            else:
                parts.append(attribute)
    return frozenset(known), parts


def devices_of(module: nn.Module) -> set[torch.device]:
    """The devices of parameters and buffers."""
    return {tensor.device for tensor in (*module.parameters(), *module.buffers())}


def _modules_in(value: object, depth: int = 2) -> list[nn.Module]:
    if isinstance(value, nn.Module):
        return [value]
    if depth and isinstance(value, list | tuple | dict):
        items = value.values() if isinstance(value, dict) else value
        return [module for item in items for module in _modules_in(item, depth - 1)]
    if depth and not isinstance(value, type | types.ModuleType | Tensor):  # an object that keeps a teacher
        return [module for module in getattr(value, "__dict__", {}).values() if isinstance(module, nn.Module)]
    return []
