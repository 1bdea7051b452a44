"""What a recorder does about its errors: raise them, or warn and let the training continue."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Literal

from ..errors import FadevizError, RecorderWarning, printable, unknown_name
from .recorded_run import RecordedRun

OnError = Literal["warn", "raise"]
Stage = Literal["call", "observe", "write", "log", "close"]

_CONSEQUENCES: dict[Stage, str] = {
    "call": "nothing is recorded",
    "observe": "nothing was recorded",
    "write": "nothing was recorded",
    "log": "metrics were not logged",
    "close": "the end of the run was not written",
}

_PACKAGE = Path(__file__).parents[1]


class Failures:
    """The errors of one recorder, each kind of which is reported once.

    Attributes:
        on_error: ``warn`` or ``raise``.
    """

    def __init__(self, on_error: OnError) -> None:
        """Nothing has failed yet.

        Raises:
            FadevizError: if ``on_error`` is neither.
        """
        if on_error not in ("warn", "raise"):
            raise unknown_name("value of on_error", str(on_error), ("warn", "raise"))
        self.on_error = on_error
        self._warned: set[tuple[Stage, type]] = set()

    def report(self, error: Exception, stage: Stage, step: int | None = None, run: RecordedRun | None = None) -> None:
        """Raise the error with ``on_error="raise"``; otherwise add it to the run, and warn the first time.

        Args:
            error: the error.
            stage: what failed.
            step: the step at which it failed, if that is known.
            run: the run to whose run.json it is added, if any.
        """
        if self.on_error == "raise":
            raise error
        message = str(error) if isinstance(error, FadevizError) else f"{type(error).__name__}: {error}"
        message = printable(message)[:600].rstrip(". ")
        kind = (stage, type(error))
        first = kind not in self._warned
        self._warned.add(kind)
        if run is not None and (first or stage in ("observe", "write")):
            with contextlib.suppress(Exception):  # the disk may be what failed; the next write includes it
                run.add_error(message, step)
        if first:
            place = "" if step is None else f" at step {step}"
            warn(f"{_CONSEQUENCES[stage]}{place}: {message}. The training continues")


def warn(text: str) -> None:
    """Warn, pointing at the calling line outside this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(f"fadeviz: {text}", RecorderWarning, stacklevel=level)
