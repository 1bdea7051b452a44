"""Checkpoints: all that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import FadevizError
from ..files import write_whole
from ..snapshots import open_checkpoint


def write_checkpoint(
    path: Path,
    step: int,
    run_id: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Save model, optimiser, gradient scaler, random state and step; the file is replaced whole."""
    state = {
        "step": step,
        "run_id": run_id,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
    # Through memory: torch reports a full disk as an error of its own kind.
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
        FadevizError: damaged, or of another run.
    """
    with _damage_in_words(path):
        state = _load(path, run_id)
        step = int(state["step"])
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda_rng"])
    return step


def read_weights(path: Path, run_id: str, model: nn.Module) -> int:
    """Load a checkpoint's weights alone into a model and return its step.

    Raises:
        FadevizError: missing, damaged, or of another run.
    """
    if not path.exists():
        raise FadevizError(f"{path} is missing: there are no weights to predict with. Put it back, or record again")
    with _damage_in_words(path):
        state = _load(path, run_id)
        model.load_state_dict(state["model"])
        return int(state["step"])


def _load(path: Path, run_id: str) -> dict[str, Any]:
    open_checkpoint(path).close()  # torch.load does not look at the checksums
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["run_id"] != run_id:
        raise FadevizError(f"{path} belongs to run {state['run_id']}, not to {run_id}. Record again with --overwrite")
    return state


@contextlib.contextmanager
def _damage_in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except FadevizError:
        raise
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FadevizError(f"{path} is damaged ({reason}). Record the run again with --overwrite") from error
