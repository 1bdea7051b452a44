"""The state of a model in training: what an observation must leave as it was is kept, restored, and compared."""

from __future__ import annotations

import functools
import hashlib
import inspect
import pickle
import random
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

State = Mapping[str, object]
"""What :func:`state_of` found: fingerprints by what they are of, in words."""

_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_INTERNAL = frozenset(nn.Module().__dict__)


def state_of(model: nn.Module, loss_fn: object = None) -> State:
    """A fingerprint of all that a training goes on from: to be taken before and after an observation.

    Parameters, their gradients and whether they need one, buffers, modes, hooks and plain attributes (numbers, tensors,
    arrays, generators, and containers of them) of every module, also of a loss that is a module, a method of one, or a
    function that refers to one; and the global generators of torch, NumPy and Python. Tensors count by their bytes:
    reads every parameter once, so that it takes about as long as writing a checkpoint to memory.
    """
    seen: dict[int, object] = {}
    state: dict[str, object] = {}
    for name, module in all_modules(model, loss_fn).items():
        where = f"of {name or type(module).__name__!r}"
        state[f"the training mode {where}"] = module.training
        state[f"the hooks {where}"] = sum(len(v) for k, v in module.__dict__.items() if k.endswith("_hooks"))
        for kind, entries in (("parameter", module._parameters), ("buffer", module._buffers)):
            for key, tensor in entries.items():
                if tensor is None:
                    continue
                full = f"{name}.{key}".lstrip(".")
                state[f"the {kind} {full!r}"] = _fingerprint(tensor, seen)
                if kind == "parameter":
                    state[f"the gradient of {full!r}"] = _fingerprint(tensor.grad, seen)
                    state[f"requires_grad of {full!r}"] = tensor.requires_grad
        for key, value in module.__dict__.items():
            if key not in _INTERNAL:
                state[f"the attribute {key!r} {where}"] = _fingerprint(value, seen, inside=True)
    state["torch's generator"] = _digest(torch.get_rng_state())
    for device in sorted(devices_of([model]), key=str):
        if device.type == "cuda":
            state[f"the generator of {device}"] = _digest(torch.cuda.get_rng_state(device))
    state["Python's generator (random)"] = hash(random.getstate())
    state["NumPy's generator (np.random)"] = _of_bytes(pickle.dumps(np.random.get_state()))  # noqa: NPY002 - the one that losses draw from
    return state


def state_changes(before: State, after: State) -> list[str]:
    """What differs between two states, each in words, in the model's order; empty where nothing does.

    Example:
        >>> model = nn.BatchNorm2d(2)
        >>> before = state_of(model)
        >>> _ = model(torch.ones(1, 2, 4, 4))
        >>> state_changes(before, state_of(model))[1:]
        ["the buffer 'running_var' changed", "the buffer 'num_batches_tracked' changed"]
    """
    changes = []
    for what in [*before, *(what for what in after if what not in before)]:
        if what not in after:
            changes.append(f"{what} is gone")
        elif what not in before:
            changes.append(f"{what} is new")
        elif before[what] != after[what]:
            was, now = before[what], after[what]
            plain = isinstance(was, bool | int | float) and isinstance(now, bool | int | float)
            changes.append(f"{what} was {was}, is {now}" if plain and "generator" not in what else f"{what} changed")
    return changes


def all_modules(model: nn.Module, loss_fn: object = None) -> dict[str, nn.Module]:
    """Every module that an observation runs, by name: the model's, those of the loss, and those that are no children.

    A module that is kept in a list, or otherwise hidden from ``modules()``, learns in forward like any other.
    """
    found: dict[str, nn.Module] = {}
    known: set[int] = set()

    def add(prefix: str, module: nn.Module) -> None:
        for name, part in module.named_modules(prefix=prefix):
            if id(part) in known:
                continue
            known.add(id(part))
            found[name if name not in found else f"{name} ({len(found)})"] = part
            for key, value in part.__dict__.items():
                if key not in _INTERNAL:
                    for hidden in _modules_in(value):
                        add(f"{name}.{key}".lstrip("."), hidden)

    add("", model)
    for module in modules_of_loss(loss_fn):
        add("loss_fn", module)
    return found


def modules_of_loss(loss_fn: object) -> list[nn.Module]:
    """The modules that a loss is, or refers to: as a method, a partial, or a function that names them."""
    if isinstance(loss_fn, nn.Module):
        return [loss_fn]
    if isinstance(loss_fn, functools.partial):
        parts: list[Any] = [loss_fn.func, *loss_fn.args, *loss_fn.keywords.values()]
        return [module for part in parts for module in modules_of_loss(part)]
    if inspect.ismethod(loss_fn):
        return _modules_in(loss_fn.__self__) + modules_of_loss(loss_fn.__func__)
    if inspect.isfunction(loss_fn):
        try:
            names = inspect.getclosurevars(loss_fn)
        except ValueError:  # a variable of the function around it that is not set yet
            return []
        return [m for value in (*names.nonlocals.values(), *names.globals.values()) for m in _modules_in(value)]
    return []


def devices_of(values: Iterable[Any]) -> set[torch.device]:
    """The devices of tensors, and of the modules' parameters and buffers."""
    devices: set[torch.device] = set()
    for value in values:
        tensors = [value] if isinstance(value, Tensor) else [*value.parameters(), *value.buffers()]
        devices |= {tensor.device for tensor in tensors}
    return devices


def _modules_in(value: object, depth: int = 2) -> list[nn.Module]:
    if isinstance(value, nn.Module):
        return [value]
    if depth and isinstance(value, list | tuple | dict):
        items = value.values() if isinstance(value, dict) else value
        return [module for item in items for module in _modules_in(item, depth - 1)]
    return []


def _fingerprint(value: object, seen: dict[int, object], inside: bool = False, depth: int = 4) -> object:
    """What to compare of a value: plain ones as they are, tensors and generators by their bytes."""
    if isinstance(value, _SIMPLE):
        # NaN is not equal to itself.
        return repr(value) if isinstance(value, complex | float) and value != value else value
    if isinstance(value, Tensor):
        if id(value) not in seen:
            seen[id(value)] = _digest(value)
        return seen[id(value)]
    if isinstance(value, np.ndarray):
        return (value.shape, str(value.dtype), None if value.dtype.hasobject else _of_bytes(value.tobytes()))
    if isinstance(value, torch.Generator):
        return _digest(value.get_state())
    if isinstance(value, np.random.Generator):
        return _of_bytes(pickle.dumps(value.bit_generator.state))
    if isinstance(value, np.random.RandomState):
        return _of_bytes(pickle.dumps(value.get_state()))
    if isinstance(value, random.Random):
        return hash(value.getstate())
    if depth and isinstance(value, list | tuple | deque):
        return [_fingerprint(item, seen, inside, depth - 1) for item in value]
    if depth and isinstance(value, dict):
        return [(repr(k), _fingerprint(item, seen, inside, depth - 1)) for k, item in value.items()]
    if isinstance(value, set | frozenset):
        return len(value)
    if inside and not isinstance(value, nn.Module | type) and hasattr(value, "__dict__"):
        # An object of somebody's own: what stands in it directly. Deeper, a trainer would lead to all there is.
        return [(k, _fingerprint(item, seen, depth=0)) for k, item in vars(value).items()]
    return type(value).__qualname__


def _digest(tensor: Tensor) -> object:
    shape = (type(tensor).__name__, tuple(tensor.shape), str(tensor.dtype), str(tensor.device))
    if tensor.device.type == "meta" or tensor.layout != torch.strided or tensor.is_nested:
        return shape
    if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
        return type(tensor).__name__
    plain = tensor.detach().int_repr() if tensor.is_quantized else tensor.detach().resolve_conj().resolve_neg()
    return (*shape, _of_bytes(plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()))


def _of_bytes(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
