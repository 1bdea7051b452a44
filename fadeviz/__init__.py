"""fadeviz: see what a decoder learns, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import FadevizError, RecorderWarning
from .run import Run, open_run
from .storage.schedule import Schedule, parse_schedule
from .storage.snapshots import Snapshot

if TYPE_CHECKING:
    from .recording.recorder import Recorder
    from .recording.views import View

__version__ = "0.1.0"
__all__ = [
    "FadevizError",
    "Recorder",
    "RecorderWarning",
    "Run",
    "Schedule",
    "Snapshot",
    "View",
    "__version__",
    "open_run",
    "parse_schedule",
]


def __getattr__(name: str) -> Any:
    # What needs torch is imported when it is asked for: reading a run does without.
    if name == "Recorder":
        from .recording.recorder import Recorder

        return Recorder
    if name == "View":
        from .recording.views import View

        return View
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
