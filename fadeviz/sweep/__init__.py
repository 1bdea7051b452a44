"""Many runs of one recipe: operators times seeds, a folder each, here or on a cluster, and only what is missing.

What a run is stays the same wherever it is trained: ``plan`` says which there shall be, ``member`` trains one in its
folder, ``manifest`` lists how each stands, and an executor (``local``, ``slurm``, ``dask``) decides where.
"""

from .local import LocalProcesses
from .manifest import MANIFEST, RunStatus, read_plan, read_status
from .plan import CONTROLS, Member, SweepPlan, parse_seeds, plan_sweep
from .runner import Executor, Outcome, SweepProgress, missing, run_sweep
from .trial import Event, Task, begun

__all__ = [
    "CONTROLS",
    "MANIFEST",
    "Event",
    "Executor",
    "LocalProcesses",
    "Member",
    "Outcome",
    "RunStatus",
    "SweepPlan",
    "SweepProgress",
    "Task",
    "begun",
    "missing",
    "parse_seeds",
    "plan_sweep",
    "read_plan",
    "read_status",
    "run_sweep",
]
