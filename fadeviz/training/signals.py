"""Ctrl-C, SIGTERM and a closed terminal: a training that is asked to stop ends its step first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKS_TO_STOP = ("SIGINT", "SIGTERM", "SIGHUP")

DELIVERED_TWICE = 2.0
"""Seconds in which a second SIGINT is taken for the first: a launcher hands on what the terminal sent to all."""


class Interrupted(KeyboardInterrupt):
    """A training was asked to stop, and did. A ``KeyboardInterrupt`` whatever the signal was.

    Attributes:
        signal: the signal's number; that of SIGINT where a callback raised ``KeyboardInterrupt``.
        step: the last step that was done; None where the training had not begun.
        steps: of the whole run.
        saved: the checkpoint's step, after which ``resume=True`` goes on; None where nothing was recorded.
    """

    def __init__(self, number: int, step: int | None = None, steps: int = 0, saved: int | None = None) -> None:
        """Everything but the signal's number is known only once the training has begun."""
        self.signal, self.step, self.steps, self.saved = number, step, steps, saved
        super().__init__(self.describe("resume=True"))

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, int | None, int, int | None]]:
        """For another process: by what it was made of."""
        return Interrupted, (self.signal, self.step, self.steps, self.saved)

    @property
    def finished(self) -> bool:
        """Whether it came too late: the run is finished."""
        return self.step is not None and self.step == self.steps

    def describe(self, resume: str) -> str:
        """What happened in one line, with ``resume`` for what goes on with the run."""
        if self.step is None:
            return "interrupted before the training began"
        if self.finished:
            return f"interrupted after the last of {self.steps} steps; the run is finished"
        saved = self.saved or 0
        return f"interrupted at step {self.step} of {self.steps}; {resume} continues at step {saved + 1}"


class StopSignals:
    """Whether this process was asked to stop: ``number`` is the first signal that did, or 0."""

    def __init__(self) -> None:
        """Nothing was heard, and there is nothing to bring to an end."""
        self.number, self._held, self._heard_at = 0, False, 0.0

    def hold(self) -> None:
        """From now on a signal is noted alone, for whoever asks between two steps."""
        self._held = True

    def note(self, number: int) -> None:
        """Note a signal, or what has its meaning."""
        if not self.number:
            self.number, self._heard_at = number, time.monotonic()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise where there is nothing to bring to an end, or somebody insists.

        Raises:
            Interrupted: nothing is held.
            KeyboardInterrupt: a second SIGINT that is no echo of the first.
        """
        first = not self.number
        self.note(number)
        insists = not first and time.monotonic() - self._heard_at >= DELIVERED_TWICE
        if not self._held and (first or insists):
            raise Interrupted(number)
        if self._held and insists and number == signal.SIGINT:
            raise KeyboardInterrupt


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Listen to SIGINT, SIGTERM and SIGHUP in the block; the handlers that were there return at its end.

    A signal that is ignored stays so (``nohup``, a job in the background of a script). Python gives signals to the main
    thread alone: in another one nothing is heard.
    """
    stop = StopSignals()
    before: dict[int, signal._HANDLER] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for name in ASKS_TO_STOP:
                if not hasattr(signal, name):  # Windows has no SIGHUP
                    continue
                number: int = getattr(signal, name)
                handler = signal.getsignal(number)
                if handler in (None, signal.SIG_IGN):  # None: of a library in C, which could not be put back
                    continue
                before[number] = handler
                signal.signal(number, stop.handle)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["ASKS_TO_STOP", "DELIVERED_TWICE", "Interrupted", "StopSignals", "stop_signals"]
