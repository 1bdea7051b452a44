"""fadeviz: see what a decoder learns, and when."""

from __future__ import annotations

from .errors import FadevizError
from .schedule import Schedule, parse_schedule
from .snapshots import Run, Snapshot, open_run

__version__ = "0.1.0"
__all__ = ["FadevizError", "Run", "Schedule", "Snapshot", "__version__", "open_run", "parse_schedule"]
