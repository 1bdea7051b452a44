"""A fingerprint of a training's whole state, and the differences between two: what an observation changed."""

from __future__ import annotations

import hashlib
import pickle
import random
from collections import deque
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from .modules import MODULE_INTERNALS, PLAIN_TYPES, all_modules, devices_of

State = Mapping[str, object]
"""The result of :func:`state_of`: fingerprints by a description of what they belong to."""


def state_of(model: nn.Module, loss_fn: object = None) -> State:
    """A fingerprint of the whole state of a training, to be taken before and after an observation.

    It covers parameters, their gradients and ``requires_grad``, buffers, modes, hooks and plain attributes (numbers,
    tensors, arrays, generators, and containers of them) of every module, including a loss that is a module, a method
    of one, or a function that refers to one; and the global generators of torch, NumPy and Python. Tensors are compared
    by their bytes: this reads every parameter once and takes about as long as a checkpoint to memory.
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
            if key not in MODULE_INTERNALS:
                state[f"the attribute {key!r} {where}"] = _fingerprint(value, seen, inside=True)
    state["torch's generator"] = _digest(torch.get_rng_state())
    for device in sorted(devices_of(model), key=str):
        if device.type == "cuda":
            state[f"the generator of {device}"] = _digest(torch.cuda.get_rng_state(device))
    state["Python's generator (random)"] = hash(random.getstate())
    state["NumPy's generator (np.random)"] = _of_bytes(pickle.dumps(np.random.get_state()))  # noqa: NPY002 - the one that losses draw from
    return state


def state_changes(before: State, after: State) -> list[str]:
    """Describe the differences between two states, in the model's order; empty if there are none.

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


def _fingerprint(value: object, seen: dict[int, object], inside: bool = False, depth: int = 4) -> object:
    """The fingerprint of a value: plain values as they are, tensors and generators by their bytes."""
    if isinstance(value, PLAIN_TYPES):
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
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return hash(value.getstate())
    if depth and isinstance(value, list | tuple | deque):
        return [_fingerprint(item, seen, inside, depth - 1) for item in value]
    if depth and isinstance(value, dict):
        return [(repr(k), _fingerprint(item, seen, inside, depth - 1)) for k, item in value.items()]
    if isinstance(value, set | frozenset):
        return len(value)
    if inside and not isinstance(value, nn.Module | type) and hasattr(value, "__dict__"):
        # Another object: only its direct attributes. Deeper, a reference to a trainer would lead to everything.
        return [(k, _fingerprint(item, seen, depth=0)) for k, item in vars(value).items()]
    return type(value).__qualname__


def _digest(tensor: Tensor) -> object:
    if nn.parameter.is_lazy(tensor):
        return type(tensor).__name__
    shape = (type(tensor).__name__, tuple(tensor.shape), str(tensor.dtype), str(tensor.device))
    if tensor.device.type == "meta" or tensor.layout != torch.strided or tensor.is_nested:
        return shape
    plain = tensor.detach().int_repr() if tensor.is_quantized else tensor.detach().resolve_conj().resolve_neg()
    # A copy: memory shared with NumPy cannot be resized any more, as quantisation observers do.
    copy = plain.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return (*shape, _of_bytes(copy.reshape(-1).view(torch.uint8).numpy().data))


def _of_bytes(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
