"""Wrapped and distributed models: the module inside a wrapper, its device, and whether one rank can observe it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import FadevizError
from .layer_names import wrapped_child
from .observation import Mode


def device_of(model: nn.Module) -> torch.device:
    """The model's device: that of its first parameter or buffer."""
    tensor = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile.

    Raises:
        FadevizError: if the model is sharded, or is not a module.
    """
    check_module(model)
    if any(_is_sharded(module) for module in model.modules()) or any(map(_is_dtensor, model.parameters())):
        raise FadevizError(
            "this model is sharded (FSDP, tensor parallel): no rank holds a whole layer, so there is nothing to "
            "observe. Observe an unsharded copy, e.g. from a checkpoint"
        )
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            # A forward pass through the wrapper would wait for the other processes.
            model = model.module
        elif wrapped_child(model) == "_orig_mod":  # compiled; it shares its modules
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def check_module(model: object) -> None:
    """Check that a model is a module, and not a class or a function.

    Raises:
        FadevizError: if it is not.
    """
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise FadevizError(f"the model is {got}: a torch.nn.Module is needed")


def _is_sharded(module: nn.Module) -> bool:
    return any(cls.__name__ in ("FSDPModule", "FullyShardedDataParallel") for cls in type(module).__mro__)


def _is_dtensor(parameter: Tensor) -> bool:
    return type(parameter.data).__name__ == "DTensor"


def refuse_waiting(model: nn.Module, mode: Mode) -> None:
    """Check that an observation by one rank does not wait for the others.

    Raises:
        FadevizError: if the model has SyncBatchNorm, the mode is ``batch``, and there are several ranks.
    """
    waits = mode == "batch" and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    if waits and _is_distributed() and torch.distributed.get_world_size() > 1:
        raise FadevizError(
            "with SyncBatchNorm, the observation mode batch would wait for the other processes, which do not observe. "
            "Choose mode='eval'"
        )


@contextlib.contextmanager
def float32_forward(model: nn.Module) -> Iterator[None]:
    """Disable the autocast that accelerate builds into ``forward`` itself, where no context manager reaches it."""
    attributes = {"forward", "_original_forward"}
    prepared = [(m, m.__dict__["forward"]) for m in model.modules() if attributes <= m.__dict__.keys()]
    try:
        for module, _ in prepared:
            module.forward = module.__dict__["_original_forward"]
        yield
    finally:
        for module, forward in prepared:
            module.forward = forward


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_first_process() -> bool:
    """Whether this is the process that records: the only one, or rank 0."""
    return not _is_distributed() or torch.distributed.get_rank() == 0
