"""Checkpoints: the state from which a run resumes as if it had never stopped."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FadevizError
from ..storage.files import write_whole
from ..storage.snapshots import open_checkpoint


def write_checkpoint(
    path: Path,
    step: int,
    run_id: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Save model, optimiser, gradient scaler, random state and step; the file is replaced as a whole."""
    _write(path, _state(step, run_id, model, optimizer, scaler))


class CheckpointWriter:
    """Writes checkpoints in a thread, at most one at a time, while the training continues.

    :meth:`begin` copies the state into memory and returns. On a GPU the copies, into pinned memory, are queued between
    the work of this step and the next. Errors of the thread are raised by the next :meth:`wait`.
    """

    def __init__(self) -> None:
        """No thread is started before the first checkpoint."""
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[int, Future[None]] | None = None
        self.written = 0
        """The step of the last checkpoint that is known to be complete."""

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._pending is not None and not self._pending[1].done()

    def begin(
        self,
        path: Path,
        step: int,
        run_id: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Write a checkpoint as :func:`write_checkpoint` does, after the previous one is complete.

        Raises:
            FadevizError: if the previous one could not be written.
        """
        self.wait()
        state = _copied(_state(step, run_id, model, optimizer, scaler))
        copied = torch.Event(device="cuda") if _on_gpu(model) else None
        if copied is not None:
            copied.record()

        def write() -> None:
            if copied is not None:
                copied.synchronize()
            _write(path, state)

        self._pending = step, self._thread.submit(write)

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            FadevizError: if it could not be written.
        """
        if self._pending is not None:
            (step, future), self._pending = self._pending, None
            future.result()
            self.written = step

    def close(self) -> None:
        """End the thread, after the last checkpoint is complete or has failed."""
        self._thread.shutdown()


def _state(
    step: int,
    run_id: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
) -> dict[str, Any]:
    return {
        "step": step,
        "run_id": run_id,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "rng": torch.get_rng_state(),
        # Only if the model is on a GPU: otherwise this would allocate memory on one.
        "cuda_rng": torch.cuda.get_rng_state() if _on_gpu(model) else None,
    }


def _on_gpu(model: nn.Module) -> bool:
    return any(parameter.is_cuda for parameter in model.parameters())


def _copied(value: Any) -> Any:
    """Copy all tensors in ``value`` to the CPU; copies of GPU tensors are pinned, and not complete yet."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", non_blocking=True) if value.is_cuda else value.detach().clone()
    if isinstance(value, list):
        return [_copied(part) for part in value]
    if isinstance(value, dict):
        twin = copy.copy(value)  # a module's state dict has an attribute with versions
        twin.update({key: _copied(part) for key, part in value.items()})
        return twin
    return value


def _write(path: Path, state: dict[str, Any]) -> None:
    # Through memory, because torch reports a full disk with its own kind of error.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue(), named=False)


def read_checkpoint(
    path: Path,
    run_id: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> int:
    """Load a checkpoint into the given objects and return its step.

    Raises:
        FadevizError: if the file is damaged, or belongs to another run.
    """
    with _damage_reported(path):
        state = _load(path, run_id)
        step = int(state["step"])
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and _on_gpu(model):
            torch.cuda.set_rng_state(state["cuda_rng"])
    return step


def read_weights(path: Path, run_id: str, model: nn.Module) -> int:
    """Load only the weights of a checkpoint into a model and return its step.

    Raises:
        FadevizError: if the file is missing or damaged, or belongs to another run.
    """
    if not path.exists():
        raise FadevizError(f"{path} is missing: there are no weights to predict with. Put it back, or record again")
    with _damage_reported(path):
        state = _load(path, run_id)
        model.load_state_dict(state["model"])
        return int(state["step"])


def _load(path: Path, run_id: str) -> dict[str, Any]:
    open_checkpoint(path).close()  # torch.load does not verify checksums
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["run_id"] != run_id:
        raise FadevizError(f"{path} belongs to run {state['run_id']}, not to {run_id}. Record again: overwrite=True")
    return state


@contextlib.contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    try:
        yield
    except FadevizError:
        raise
    except Exception as error:  # the exception depends on where the file is damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FadevizError(f"{path} is damaged ({reason}). Record the run again with overwrite=True") from error
