"""Signals that stop training (Ctrl-C, SIGTERM, a closed terminal) after it has finished the current step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

DELIVERED_TWICE = 2.0
"""Seconds within which a second SIGINT counts as a duplicate: launchers forward signals that the terminal already sent
to all processes."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal. This is a ``KeyboardInterrupt``, whichever signal it was.

    Attributes:
        signal: the signal's number; that of SIGINT if a callback raised ``KeyboardInterrupt``.
        step: the last completed step; None if training had not begun.
        steps: number of steps of the whole run.
        saved: the step of the checkpoint, from which ``resume=True`` continues; None if nothing was recorded.
    """

    def __init__(self, number: int, step: int | None = None, steps: int = 0, saved: int | None = None) -> None:
        """Arguments other than the signal's number are known only once the training has begun."""
        self.signal, self.step, self.steps, self.saved = number, step, steps, saved
        super().__init__(self.describe("resume=True"))

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, int | None, int, int | None]]:
        """Pickle by the constructor's arguments."""
        return Interrupted, (self.signal, self.step, self.steps, self.saved)

    @property
    def finished(self) -> bool:
        """Whether the signal came after the last step, so that the run is finished."""
        return self.step is not None and self.step == self.steps

    def describe(self, resume: str) -> str:
        """One line on what happened; ``resume`` is the command or argument that resumes the run."""
        if self.step is None:
            return "interrupted before the training began"
        if self.finished:
            return f"interrupted after the last of {self.steps} steps; the run is finished"
        saved = self.saved or 0
        return f"interrupted at step {self.step} of {self.steps}; {resume} continues at step {saved + 1}"


class StopSignals:
    """The signals that this process received: ``number`` is the first one, or 0."""

    def __init__(self) -> None:
        """No signal received yet, and no step to finish."""
        self.number, self._held, self._received_at = 0, False, 0.0

    def hold(self) -> None:
        """From now on only note signals, to be checked between two steps."""
        self._held = True

    def note(self, number: int) -> None:
        """Note a signal, or an equivalent request."""
        if not self.number:
            self.number, self._received_at = number, time.monotonic()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise if there is no step to finish, or on a second SIGINT.

        Raises:
            Interrupted: :meth:`hold` was not called.
            KeyboardInterrupt: a second SIGINT that is not a duplicate of the first.
        """
        first = not self.number
        self.note(number)
        insists = not first and time.monotonic() - self._received_at >= DELIVERED_TWICE
        if not self._held and (first or insists):
            raise Interrupted(number)
        if self._held and insists and number == signal.SIGINT:
            raise KeyboardInterrupt


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handle SIGINT, SIGTERM and SIGHUP inside the block, and restore the previous handlers at its end.

    Ignored signals stay ignored (``nohup``, background jobs of a script). Python delivers signals to the main thread
    only; in other threads nothing is handled.
    """
    stop = StopSignals()
    before: dict[int, signal._HANDLER] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for name in STOP_SIGNALS:
                if not hasattr(signal, name):  # Windows has no SIGHUP
                    continue
                number: int = getattr(signal, name)
                handler = signal.getsignal(number)
                if handler in (None, signal.SIG_IGN):  # None: a handler set in C, which could not be restored
                    continue
                before[number] = handler
                signal.signal(number, stop.handle)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["DELIVERED_TWICE", "STOP_SIGNALS", "Interrupted", "StopSignals", "stop_signals"]
