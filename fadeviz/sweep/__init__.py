"""Sweeps: one recipe trained for several operators and seeds, each run in a folder of its own.

``plan`` lists the trials, ``trial`` trains one of them in its folder, ``manifest`` records their status, and ``runner``
hands the unfinished ones to an executor (``local``, ``slurm``, ``dask``), which decides where they are trained.
"""

from .local import LocalProcesses
from .manifest import MANIFEST, RunStatus, read_plan, read_status
from .plan import CONTROLS, SweepPlan, Trial, parse_seeds, plan_sweep
from .runner import Executor, Outcome, SweepProgress, run_sweep, unfinished_trials
from .trial import Event, Task, has_begun

__all__ = [
    "CONTROLS",
    "MANIFEST",
    "Event",
    "Executor",
    "LocalProcesses",
    "Outcome",
    "RunStatus",
    "SweepPlan",
    "SweepProgress",
    "Task",
    "Trial",
    "has_begun",
    "parse_seeds",
    "plan_sweep",
    "read_plan",
    "read_status",
    "run_sweep",
    "unfinished_trials",
]
