"""Running a model on copies of its state, and restoring everything afterwards, also after an error."""

from __future__ import annotations

import contextlib
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .modules import PLAIN_TYPES

# Exactly these types: subclasses may react to being written to.
_DICTS = (dict, OrderedDict, defaultdict, Counter)
_HOOKS = tuple(key for key, value in nn.Module().__dict__.items() if "hooks" in key and isinstance(value, dict))


@contextlib.contextmanager
def preserved_state(
    modules: Iterable[nn.Module], saved_parameters: Iterable[nn.Parameter] = ()
) -> Iterator[list[nn.Parameter]]:
    """Run the block on copies of the modules' buffers, and restore everything at its end, also after an error.

    Attributes of the modules are restored: numbers, tensors and arrays, lists and dicts of them, generators, and
    whatever was registered or replaced. Parameters are not copied, since large models would not fit twice; only
    ``saved_parameters`` are, and restored if forward writes to them.

    State outside the modules (closures, objects of other classes) is not covered;
    :func:`~fadeviz.recording.state.state_changes` finds some of it.

    Yields:
        A list that contains, after the block, those of ``saved_parameters`` that were written to.
    """
    written: list[nn.Parameter] = []
    with torch.inference_mode(False), _Undo() as undo:
        modules = list(modules)
        parameters = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
        for parameter in filter(_is_plain, saved_parameters):
            undo.later(_restore_values, parameter, parameter.detach().to("cpu", copy=True), written)
        for parameter in filter(_is_plain, parameters.values()):
            undo.later(_restore_data, parameter, parameter.data, parameter.requires_grad)
        with torch.no_grad():
            copies = _Copies(undo, parameters.values())
            for module in modules:
                copies.replace_state(module)
        yield written


def _restore_values(parameter: nn.Parameter, values: Tensor, written: list[nn.Parameter]) -> None:
    with torch.no_grad():
        values = values.to(parameter.device)
        if not torch.equal(parameter, values):
            parameter.data.copy_(values)
            written.append(parameter)


def _restore_data(parameter: nn.Parameter, data: Tensor, requires_grad: bool) -> None:
    now = parameter.data
    if now.shape != data.shape or now.dtype != data.dtype or now.device != data.device or not now.is_set_to(data):
        parameter.data = data
    if parameter.requires_grad != requires_grad:
        parameter.requires_grad_(requires_grad)


class _Undo:
    """Calls to make at the end, last first: all of them, even if one fails or is interrupted."""

    def __init__(self) -> None:
        # Not an ExitStack: with thousands of callbacks it would take as long as the observation of a small model.
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


class _Copies:
    """Replaces the tensors of modules by copies, and notes how to undo it."""

    def __init__(self, undo: _Undo, parameters: Iterable[nn.Parameter]) -> None:
        self._undo = undo
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        # Tensors that share memory get copies that share memory too: what is written to one is read from the other.
        self._storages: dict[tuple[torch.device, int], torch.UntypedStorage | None] = {
            _storage_key(parameter): None for parameter in parameters if _is_plain(parameter)
        }
        self._seen: set[int] = set()

    def replace_state(self, module: nn.Module) -> None:
        """Replace a module's buffers and attributes."""
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
        """The replacement of ``value``: a copy of a tensor; otherwise the value itself, whose content is saved."""
        if type(value) in PLAIN_TYPES or isinstance(value, nn.Module):
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
        # Computed tensors, such as a layer's last output, are only put back: nothing writes to them.
        if not tensor.is_inference() and (isinstance(tensor, nn.Parameter) or tensor.grad_fn is not None):
            return tensor
        self._copies[id(tensor)] = tensor, self._new(tensor)
        return self._copies[id(tensor)][1]

    def _new(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):  # made in inference mode: it has no gradient
            return nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
        if not _is_plain(tensor):
            copy = tensor.detach().clone()
        else:
            key = _storage_key(tensor)
            if key not in self._storages:
                self._storages[key] = tensor.untyped_storage().clone()
            storage = self._storages[key]
            if storage is None:  # that of a parameter, which is not copied
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


def _storage_key(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _copy_back(tensor: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(values)


def _restore_dict(entries: MutableMapping[Any, Any], saved: dict[Any, Any]) -> None:
    for key in [key for key in entries if key not in saved]:
        del entries[key]
    if list(entries) != list(saved):  # removed and added again: state_dict() has the order of the entries
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
def preserved_generators(devices: Iterable[torch.device]) -> Iterator[None]:
    """Restore the global generators of torch (on the CPU and on these devices), NumPy and Python afterwards."""
    on_gpu = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that losses draw from
    try:
        with torch.random.fork_rng(on_gpu, device_type="cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
