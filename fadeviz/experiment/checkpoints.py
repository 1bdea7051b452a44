"""When a run writes checkpoints, and up to which step they are complete."""

from __future__ import annotations

import time
from pathlib import Path

from ..training.checkpoint import CheckpointWriter, read_checkpoint, write_checkpoint
from .parts import Parts

MOST_SECONDS = 300.0
"""Seconds after which a new checkpoint is written, regardless of ``checkpoint_every``."""

PAUSE_SECONDS = 60.0
"""Seconds between two checkpoints of a run on a GPU, even if more are due."""


class Checkpoints:
    """The checkpoints of a run, each in place of the one before.

    Attributes:
        path: the file.
        saved_step: the step of the last complete checkpoint; 0 if there is none.
        writer: writes them while training continues; None where writing takes the cores from the training, on a
            CPU.
    """

    def __init__(self, path: Path, run_id: str, parts: Parts) -> None:
        """No checkpoint is read or written before :meth:`load` or :meth:`save`."""
        self.path, self._run_id, self._parts = path, run_id, parts
        self.saved_step = self._started_step = 0
        self.writer = CheckpointWriter() if parts.device.type == "cuda" else None
        self.start_clock()

    def start_clock(self) -> None:
        """Count the age of the last checkpoint from now."""
        self._saved_at = time.monotonic()

    def load(self) -> int:
        """Restore the training from the checkpoint; returns the number of steps done.

        Raises:
            FadevizError: if it is damaged or belongs to another run.
        """
        parts = self._parts
        self.saved_step = read_checkpoint(self.path, self._run_id, parts.model, parts.optimizer, parts.scaler)
        self._started_step = self.saved_step
        return self.saved_step

    def save_if_due(self, step: int) -> None:
        """Write a checkpoint if one is due after this step.

        Raises:
            FadevizError: if this one or the one before cannot be written.
        """
        if self._is_due(step):
            self.save(step)

    def _is_due(self, step: int) -> bool:
        age, every = time.monotonic() - self._saved_at, self._parts.config.checkpoint_every
        if age >= MOST_SECONDS or step == self._parts.config.steps:
            return True
        if self.writer is None:
            return step % every == 0
        if self.writer.busy:
            return False
        self.wait()  # an error in writing the last one is raised now
        passed = step // every > self._started_step // every
        return passed and (not self._started_step or age >= PAUSE_SECONDS)

    def save(self, step: int) -> None:
        """Write the checkpoint of this step; on a GPU training continues meanwhile.

        Raises:
            FadevizError: if this one or the one before cannot be written.
        """
        parts = self._parts
        state = self.path, step, self._run_id, parts.model, parts.optimizer, parts.scaler
        if self.writer is None:
            write_checkpoint(*state)
            self.saved_step = step
        else:
            first = not self.path.exists()
            self.writer.begin(*state)
            if first:  # a missing checkpoint after `checkpoint_every` steps has to mean that it was lost
                self.wait()
        self._started_step = step
        self.start_clock()

    def save_now(self, step: int) -> None:
        """Make sure that the checkpoint of this step is complete.

        Raises:
            FadevizError: if it cannot be written.
        """
        self.wait()
        if not (self.saved_step == step and self.path.exists()):
            self.save(step)
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            FadevizError: if it could not be written.
        """
        if self.writer is not None:
            self.writer.wait()
            self.saved_step = max(self.saved_step, self.writer.written)

    def close(self) -> None:
        """End the thread that writes."""
        if self.writer is not None:
            self.writer.close()
