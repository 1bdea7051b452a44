"""The run that a recorder writes: its folder, its run.json, and the steps that a resumed training repeats."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.info import RunInfo
from ..storage.snapshots import Snapshot
from ..storage.stored_run import StoredRun
from ..storage.writer import RunWriter

MOST_ERRORS = 100
"""Most errors that run.json lists: enough even if a disk stays full for a week."""


class RecordedRun:
    """A run between the beginning and the end of its recording.

    Attributes:
        info: the content of run.json, some of which may still have to be written.
        repeated_after: what is stored of later steps than this is dropped before anything else is written; None if
            nothing has to be dropped.
    """

    def __init__(self, out: Path) -> None:
        """Lock the folder.

        Raises:
            FadevizError: if it is in use, or cannot be made.
        """
        self.info = RunInfo()
        self.repeated_after: int | None = None
        self._writer = RunWriter(out)
        self._recorded: set[int] = set()
        self._unsaved = False

    @property
    def is_open(self) -> bool:
        """Whether the run was begun or resumed, and not closed."""
        return self._writer.begun

    @property
    def last_recorded(self) -> int:
        """The last recorded step, or 0."""
        return max(self._recorded, default=0)

    def earlier(self) -> StoredRun | None:
        """The run that is in the folder, if it has a snapshot: otherwise there is nothing to resume.

        Raises:
            FadevizError: if its run.json is damaged.
        """
        out = self._writer.out
        begun = (out / "run.json").exists() and any((out / "snapshots").glob("step_*"))
        return StoredRun(out) if begun else None

    def begin(
        self,
        run_id: str,
        info: RunInfo,
        images: NDArray[np.uint8],
        masks: NDArray[np.uint8],
        *,
        overwrite: bool,
    ) -> None:
        """Begin a new run, see :meth:`RunWriter.begin`; notes that were made before are kept.

        Raises:
            FadevizError: if something cannot be removed or written.
        """
        self.info = dataclasses.replace(info, notes=self.info.notes)
        self._writer.begin(run_id, self.info, images, masks, overwrite=overwrite)
        self._unsaved = False

    def adopt(self, before: StoredRun, schedule: Sequence[int], settings: Mapping[str, Any] | None) -> None:
        """Take over what is known of a run that was recorded in part; nothing is written before :meth:`resume`.

        ``settings`` replace those of the run, unless they are None.
        """
        self.info = dataclasses.replace(before.info, status="recording", message=None, schedule=tuple(schedule))
        if settings is not None and dict(settings) != dict(self.info.settings):
            self.info = dataclasses.replace(self.info, settings=settings)
        self._recorded = set(before.steps)

    def resume(self) -> None:
        """Continue the run that was adopted.

        Raises:
            FadevizError: if run.json cannot be written.
        """
        self._writer.resume(self.info.run_id, self.info)
        self._unsaved = False

    def is_recorded(self, step: int) -> bool:
        """Whether there is a snapshot of this step."""
        return step in self._recorded

    def drop_repeated(self) -> None:
        """Drop the stored steps that a resumed training repeats.

        Raises:
            FadevizError: if they cannot be removed.
        """
        last = self.repeated_after
        if last is None:
            return
        self._writer.forget_after(last)
        self._recorded = {step for step in self._recorded if step <= last}
        errors = tuple(entry for entry in self.info.errors if _step_of(entry) <= last)
        if errors != self.info.errors:
            self._change(errors=errors)
        self.repeated_after = None

    def snapshot(self, step: int, snapshots: Iterable[Snapshot], prediction: NDArray[np.uint8] | None = None) -> None:
        """Write the maps of one step, and what the model predicted at it.

        Raises:
            FadevizError: if they cannot be written.
        """
        self._writer.snapshot(step, snapshots, prediction)
        self._recorded.add(step)
        if self._unsaved:
            self.save()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line to the metrics.

        Raises:
            FadevizError: if it cannot be written.
        """
        self._writer.log({"step": step, **values})

    def add_notes(self, notes: Sequence[str]) -> list[str]:
        """Keep notes for run.json, which the next snapshot writes; returns those that are new."""
        new = [note for note in notes if note not in self.info.notes]
        if new:
            self._change(notes=(*self.info.notes, *new))
        return new

    def add_error(self, message: str, step: int | None) -> None:
        """Add an error to run.json, unless it lists many already.

        Raises:
            FadevizError: if run.json cannot be written now; the next snapshot includes it.
        """
        if len(self.info.errors) < MOST_ERRORS:
            entry = {} if step is None else {"step": step}
            self._change(errors=(*self.info.errors, {**entry, "message": message}))
            self.save()

    def finish(self) -> None:
        """Mark the run as finished.

        Raises:
            FadevizError: if run.json cannot be written.
        """
        # What was recorded: a training may end before its schedule does, and then nothing is missing.
        self._change(status="finished", schedule=tuple(sorted(self._recorded)))
        self.save()

    def stop(self, error: BaseException) -> None:
        """Mark the run as interrupted or failed, unless it is finished.

        Raises:
            FadevizError: if run.json cannot be written.
        """
        if self.info.status != "finished":
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            self._change(status="interrupted" if interrupted else "failed", message=str(error))
            self.save()

    def save(self) -> None:
        """Write run.json.

        Raises:
            FadevizError: if it cannot be written.
        """
        self._writer.save(self.info)
        self._unsaved = False

    def close(self) -> None:
        """Release the folder."""
        self._writer.close()

    def _change(self, **changes: Any) -> None:
        self.info, self._unsaved = dataclasses.replace(self.info, **changes), True


def _step_of(entry: Mapping[str, Any]) -> int:
    step = entry.get("step")
    return step if isinstance(step, int) else 0
