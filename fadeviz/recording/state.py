"""The state of a model in training: save, restore and compare what an observation must leave unchanged."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import pickle
import random
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import FadevizError

State = Mapping[str, object]
"""The result of :func:`state_of`: fingerprints by the description of what they belong to."""

# Exactly these types: subclasses may react to being written to.
_DICTS = (dict, OrderedDict, defaultdict, Counter)
_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_INTERNAL = frozenset(nn.Module().__dict__)
_HOOKS = tuple(key for key, value in nn.Module().__dict__.items() if "hooks" in key and isinstance(value, dict))


def state_of(model: nn.Module, loss_fn: object = None) -> State:
    """A fingerprint of the whole state of a training, to be taken before and after an observation.

    Parameters, their gradients and whether they need one, buffers, modes, hooks and plain attributes (numbers, tensors,
    arrays, generators, and containers of them) of every module, also of a loss that is a module, a method of one, or a
    function that refers to one; and the global generators of torch, NumPy and Python. Tensors are
    compared by their bytes: this reads every parameter once and takes about as long as a checkpoint to memory.
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
    for device in sorted(devices_of(model), key=str):
        if device.type == "cuda":
            state[f"the generator of {device}"] = _digest(torch.cuda.get_rng_state(device))
    state["Python's generator (random)"] = hash(random.getstate())
    state["NumPy's generator (np.random)"] = _of_bytes(pickle.dumps(np.random.get_state()))  # noqa: NPY002 - the one that losses draw from
    return state


def state_changes(before: State, after: State) -> list[str]:
    """The differences between two states, in words and in the model's order; empty if there are none.

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


@contextlib.contextmanager
def untouched(modules: Iterable[nn.Module], watched: Iterable[nn.Parameter] = ()) -> Iterator[list[nn.Parameter]]:
    """Run the block on copies of the modules' buffers, and restore everything at its end, also after an error.

    Attributes of the modules are restored: numbers, tensors and arrays, lists and dicts of them, generators, and what
    was registered or replaced. The parameters are not copied, since large models would not fit twice; those that are
    ``watched`` are restored if forward writes to them.

    State outside the modules (closures, objects of other classes) is not covered; :func:`state_changes` finds some.

    Yields:
        A list that holds, afterwards, the watched parameters that were written to.
    """
    written: list[nn.Parameter] = []
    with torch.inference_mode(False), _Undo() as undo:
        modules = list(modules)
        parameters = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
        for parameter in filter(_is_plain, watched):
            undo.later(_put_back_values, parameter, parameter.detach().to("cpu", copy=True), written)
        for parameter in filter(_is_plain, parameters.values()):
            undo.later(_put_back_data, parameter, parameter.data, parameter.requires_grad)
        with torch.no_grad():
            kept = _Kept(undo, parameters.values())
            for module in modules:
                kept.module(module)
        yield written


def _put_back_values(parameter: nn.Parameter, values: Tensor, written: list[nn.Parameter]) -> None:
    with torch.no_grad():
        values = values.to(parameter.device)
        if not torch.equal(parameter, values):
            parameter.data.copy_(values)
            written.append(parameter)


def _put_back_data(parameter: nn.Parameter, data: Tensor, requires_grad: bool) -> None:
    now = parameter.data
    if now.shape != data.shape or now.dtype != data.dtype or now.device != data.device or not now.is_set_to(data):
        parameter.data = data
    if parameter.requires_grad != requires_grad:
        parameter.requires_grad_(requires_grad)


class _Undo:
    """Calls to make at the end, last first: all of them, even if one fails or is interrupted."""

    def __init__(self) -> None:
        # Not an ExitStack, whose thousands of callbacks would take as long as the observation of a small model.
        self._calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def later(self, call: Callable[..., object], *arguments: Any) -> None:
        self._calls.append((call, arguments))

    def __enter__(self) -> _Undo:
        return self

    def __exit__(self, *_: object) -> None:
        failed: BaseException | None = None
        while self._calls:
            call, arguments = self._calls.pop()
            try:
                call(*arguments)
            except BaseException as error:
                failed = failed or error
        if failed is not None:
            raise failed


class _Kept:
    """Replaces tensors by copies, and notes how to undo it."""

    def __init__(self, undo: _Undo, parameters: Iterable[nn.Parameter]) -> None:
        self._undo = undo
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        # Tensors that share memory are copied so that they share it still: what writes to one is read in the other.
        self._storages: dict[tuple[torch.device, int], torch.UntypedStorage | None] = {
            _place(parameter): None for parameter in parameters if _is_plain(parameter)
        }
        self._seen: set[int] = set()

    def module(self, module: nn.Module) -> None:
        if not isinstance(module, torch.jit.ScriptModule):
            for buffer in module._buffers.values():
                if buffer is not None:
                    self._copies.setdefault(id(buffer), (buffer, self._new(buffer)))
            hooks = [module.__dict__[key] for key in _HOOKS if key in module.__dict__]
            self._undo.later(_restore_dicts, hooks, [dict(entries) for entries in hooks])
            self._seen.update(map(id, hooks))
            self._dict(module.__dict__, 4)
            return
        for buffer in module.buffers(recurse=False):  # stored in C++, where they cannot be replaced
            self._undo.later(_copy_back, buffer, buffer.clone())

    def _copy(self, value: Any, depth: int) -> Any:
        """The replacement of ``value``: a copy for a tensor, otherwise the value itself, with its content saved."""
        if type(value) in _SIMPLE or isinstance(value, nn.Module):
            return value
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, torch.Generator):
            self._undo.later(value.set_state, value.get_state())
        elif isinstance(value, np.random.Generator):
            self._undo.later(setattr, value.bit_generator, "state", value.bit_generator.state)
        elif isinstance(value, np.random.RandomState):
            self._undo.later(value.set_state, value.get_state())
        elif isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
            self._undo.later(value.setstate, value.getstate())
        elif isinstance(value, np.ndarray) and value.flags.writeable:
            self._undo.later(np.copyto, value, value.copy())
        elif type(value) is set:
            self._undo.later(_restore_set, value, set(value))
        elif depth and type(value) in _DICTS:
            self._dict(value, depth - 1)
        elif depth and type(value) in (list, deque):
            self._list(value, depth - 1)
        elif depth and isinstance(value, tuple):
            items = [self._copy(item, depth - 1) for item in value]
            if any(a is not b for a, b in zip(items, value, strict=True)):
                return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value

    def _dict(self, entries: MutableMapping[Any, Any], depth: int) -> None:
        if id(entries) in self._seen:
            return
        self._seen.add(id(entries))
        saved = dict(entries)
        self._undo.later(_restore_dict, entries, saved)
        for key, value in saved.items():
            copy = self._copy(value, depth)
            if copy is not value:
                entries[key] = copy

    def _list(self, items: list[Any] | deque[Any], depth: int) -> None:
        if id(items) in self._seen:
            return
        self._seen.add(id(items))
        saved = list(items)
        self._undo.later(_restore_list, items, saved)
        for i, value in enumerate(saved):
            items[i] = self._copy(value, depth)

    def _tensor(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self._copies:
            return self._copies[id(tensor)][1]
        # Computed tensors, such as a layer's last output, are restored; nothing writes to them.
        if not tensor.is_inference() and (isinstance(tensor, nn.Parameter) or tensor.grad_fn is not None):
            return tensor
        self._copies[id(tensor)] = tensor, self._new(tensor)
        return self._copies[id(tensor)][1]

    def _new(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):  # made in inference mode: nothing can be differentiated through it
            return nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
        if not _is_plain(tensor):
            copy = tensor.detach().clone()
        else:
            place = _place(tensor)
            if place not in self._storages:
                self._storages[place] = tensor.untyped_storage().clone()
            storage = self._storages[place]
            if storage is None:  # a parameter's, which is not copied
                return tensor
            copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            copy.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
        vars(copy).update(vars(tensor))
        return copy.requires_grad_() if tensor.requires_grad and tensor.is_leaf else copy


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg())
        and tensor.device.type != "meta"
        and tensor.numel() > 0
    )


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _copy_back(tensor: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(values)


def _restore_dict(entries: MutableMapping[Any, Any], saved: dict[Any, Any]) -> None:
    for key in [key for key in entries if key not in saved]:
        del entries[key]
    if list(entries) != list(saved):  # taken out and put in again: state_dict() has the order of the entries
        entries.clear()
    for key, value in saved.items():
        if key not in entries or entries[key] is not value:
            entries[key] = value


def _restore_dicts(several: list[dict[Any, Any]], saved: list[dict[Any, Any]]) -> None:
    for entries, before in zip(several, saved, strict=True):
        if entries or before:
            _restore_dict(entries, before)


def _restore_list(items: list[Any] | deque[Any], saved: list[Any]) -> None:
    if len(items) != len(saved) or any(a is not b for a, b in zip(items, saved, strict=True)):
        items.clear()
        items.extend(saved)


def _restore_set(items: set[Any], saved: set[Any]) -> None:
    if items != saved:
        items.clear()
        items.update(saved)


@contextlib.contextmanager
def same_generators(devices: Iterable[torch.device]) -> Iterator[None]:
    """Restore the global generators of torch (on the CPU and on these devices), NumPy and Python afterwards."""
    on_gpu = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that losses draw from
    try:
        with torch.random.fork_rng(on_gpu, device_type="cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def refuse_uninitialised(modules: Mapping[str, nn.Module]) -> None:
    """Refuse lazy modules that have not seen a batch, and weights that were never loaded.

    Raises:
        FadevizError: a parameter or buffer without a shape, a parameter on the device meta.
    """
    for name, module in modules.items():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and nn.parameter.is_lazy(tensor):
                raise FadevizError(
                    f"{f'{name}.{key}'.lstrip('.')!r} of {type(module).__name__} has no shape before the first batch. "
                    "Run one batch through the model first: model(images)"
                )
        # accelerate's hooks bring such weights when they are needed; without them, sums of nothing would be recorded.
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.device.type == "meta" and "_hf_hook" not in module.__dict__:
                raise FadevizError(
                    f"{f'{name}.{key}'.lstrip('.')!r} of {type(module).__name__} is on the device meta and has no "
                    "values. Load the model's weights first"
                )


def all_modules(model: nn.Module, loss_fn: object = None) -> dict[str, nn.Module]:
    """Every module that an observation runs, by name: the model's, the loss's, and those that are not children.

    A module in a plain list, or otherwise hidden from ``modules()``, may change in forward like any other.
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
    """The modules that a loss is, or refers to: as a method, a partial, an object that is called, or a function.

    Of a function these are what its variables, its defaults and the functions that it calls hold; of other objects (a
    trainer, say) the attributes that the code names.
    """
    found: dict[int, nn.Module] = {}
    _refer(loss_fn, frozenset(), found, set(), 6)
    return list(found.values())


def _refer(value: Any, names: frozenset[str], found: dict[int, nn.Module], seen: set[object], depth: int) -> None:
    """Collect the modules that code which has these names in it may reach from a value, in so many steps."""
    if isinstance(value, nn.Module):
        found[id(value)] = value
        return
    if not depth or isinstance(value, (*_SIMPLE, Tensor, np.ndarray)) or (id(value), names) in seen:
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
        _refer(value.__self__, _named_in(value.__func__), found, seen, depth)
    elif inspect.isfunction(value):
        names, parts = _named_in(value), _variables_of(value)
    else:
        names, parts = _attributes_of(value, names)
    for part in parts:
        _refer(part, names, found, seen, depth - 1)


_MOST_PARTS = 1000
"""So many entries of a list are looked into: a loss has no more modules, but a data set has more images."""

_NOT_OURS = ("builtins", "torch", "numpy")


def _is_of(thing: Any, packages: tuple[str, ...]) -> bool:
    return (getattr(thing, "__module__", None) or "").partition(".")[0] in packages


def _named_in(function: Any) -> frozenset[str]:
    """The attributes and globals that a function's code names, and that of the functions inside it."""
    codes, names = [getattr(function, "__code__", None)], set[str]()
    while codes:
        code = codes.pop()
        if code is not None:
            names.update(code.co_names)
            codes += [one for one in code.co_consts if isinstance(one, type(code))]
    return frozenset(names)


def _variables_of(function: Any) -> list[Any]:
    if _is_of(function, _NOT_OURS):
        return []
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    empty = types.CellType()  # of a variable that is not set yet
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != empty]
    there = [function.__globals__[name] for name in _named_in(function) if name in function.__globals__]
    return [*cells, *there, *defaults]


def _attributes_of(value: object, names: frozenset[str]) -> tuple[frozenset[str], list[Any]]:
    """What an object holds under these names, or under those that its methods of these names use; and all the names.

    Of an object that is called, all it holds.
    """
    cls = value if isinstance(value, type) else type(value)
    if isinstance(value, types.ModuleType):
        inside = {} if value.__name__.partition(".")[0] in _NOT_OURS else vars(value)
        return names, [inside[name] for name in names if name in inside]
    if _is_of(cls, _NOT_OURS):
        return names, []
    known, todo, parts = set(names), [*names, "__call__"], []
    own = {} if isinstance(value, type) else getattr(value, "__dict__", {})
    if "__call__" in dir(cls):
        parts += list(own.values())
    while todo:
        name = todo.pop()
        if name in own:
            parts.append(own[name])
        for attribute in (vars(one)[name] for one in cls.__mro__ if name in vars(one)):  # super() calls the others
            if inspect.ismemberdescriptor(attribute):  # of __slots__
                attribute = getattr(value, name, None)
            function = getattr(attribute, "fget", None) or getattr(attribute, "__func__", None) or attribute
            if inspect.isfunction(function):
                parts.append(function)
                todo += _named_in(function) - known
                known |= _named_in(function)
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
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return hash(value.getstate())
    if depth and isinstance(value, list | tuple | deque):
        return [_fingerprint(item, seen, inside, depth - 1) for item in value]
    if depth and isinstance(value, dict):
        return [(repr(k), _fingerprint(item, seen, inside, depth - 1)) for k, item in value.items()]
    if isinstance(value, set | frozenset):
        return len(value)
    if inside and not isinstance(value, nn.Module | type) and hasattr(value, "__dict__"):
        # Another object: its direct attributes only. Deeper, a reference to a trainer would lead to everything.
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
