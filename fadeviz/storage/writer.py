"""Writing a run: begun or resumed, one snapshot and one line of metrics after another, and how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from .files import only_writer
from .info import RunInfo
from .snapshots import Snapshot, SnapshotStore, remove_run

End = Literal["finished", "interrupted", "failed"]
"""The statuses of a run that has ended."""


class RunWriter:
    """The writer of one run's folder, of which there is one at a time.

    The folder is locked from the construction to :meth:`close`. Nothing is written or removed before :meth:`begin` or
    :meth:`resume`: until then a new run may still turn out to be impossible.

    Attributes:
        out: the folder.
        info: what run.json holds; before the beginning, what it is going to hold.

    Example::

        with RunWriter("outputs/mine") as writer:
            writer.begin(info, images, masks)
            writer.snapshot(0, snapshots)
            writer.log({"step": 1, "loss": 0.7})
            writer.end("finished")
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        """Lock the folder, which is made if there is none.

        Raises:
            FadevizError: if another writer has it, or it cannot be made.
        """
        self.out = Path(out)
        self.info = RunInfo()
        self._store: SnapshotStore | None = None
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(only_writer(self.out))

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def begun(self) -> bool:
        """Whether a run was begun or resumed here, and the folder is still open."""
        return self._store is not None

    def begin(
        self,
        run_id: str,
        info: RunInfo,
        images: NDArray[np.uint8],
        masks: NDArray[np.uint8],
        mattes: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Begin a new run.

        Args:
            run_id: the id that its files carry.
            info: the content of run.json.
            images: the observed images, ``(N, H, W, 3)`` uint8.
            masks: their masks, ``(N, H, W)`` uint8.
            mattes: their alpha (0 to 255) and trimaps, if they have any.
            overwrite: remove the run that is there.

        Raises:
            FadevizError: if something cannot be removed or written.
        """
        if overwrite:
            remove_run(self.out)
        store = SnapshotStore(self.out, run_id)
        store.forget_after(-1)
        self._open(store, info)
        store.write_observation(images, masks, mattes)

    def resume(self, run_id: str, info: RunInfo, *, step: int | None = None) -> None:
        """Continue the run that is in the folder.

        Args:
            run_id: its id.
            info: the content of run.json from now on.
            step: the last step that was done; what is stored of later ones is dropped, since it will be written again.
                None keeps everything: see :meth:`forget_after`.

        Raises:
            FadevizError: if something cannot be removed or written.
        """
        store = SnapshotStore(self.out, run_id)
        if step is not None:
            store.forget_after(step)
        self._open(store, info)

    def forget_after(self, step: int) -> None:
        """Drop the snapshots and metrics of later steps than this one.

        Raises:
            FadevizError: if they cannot be removed.
        """
        self._opened().forget_after(step)

    def snapshot(self, step: int, snapshots: Iterable[Snapshot], prediction: NDArray[np.uint8] | None = None) -> None:
        """Write the maps of one step, and what the model predicted at it, replacing what is stored of it.

        Raises:
            FadevizError: if the file cannot be written, or would be too large to be read again.
        """
        self._opened().write(step, snapshots, prediction)

    def log(self, line: Mapping[str, object]) -> None:
        """Add a line to the metrics; it has the key ``step``.

        Raises:
            FadevizError: if it cannot be written.
        """
        self._opened().append_metrics(line)

    def save(self, info: RunInfo) -> None:
        """Replace run.json.

        Raises:
            FadevizError: if it cannot be written.
        """
        self.info = info
        self._opened().write_info(info)

    def end(self, status: End, message: str | None = None) -> None:
        """Write how the run ended; the folder stays open, for metrics that come later.

        Args:
            status: ``finished``, ``interrupted`` or ``failed``.
            message: the reason for an early end.

        Raises:
            FadevizError: if run.json cannot be written.
        """
        self.save(dataclasses.replace(self.info, status=status, message=message))

    def close(self) -> None:
        """Release the folder. Nothing is written: a run that did not :meth:`end` counts as stopped."""
        self._store = None
        self._lock.close()

    def _open(self, store: SnapshotStore, info: RunInfo) -> None:
        self.info = info
        store.write_info(info)
        self._store = store  # not before: a disk that is full already holds no run

    def _opened(self) -> SnapshotStore:
        if self._store is None:
            raise FadevizError(f"{self.out} is not open for writing: begin or resume the run first")
        return self._store


__all__ = ["End", "RunWriter"]
