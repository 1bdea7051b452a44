"""fadeviz: see what a decoder learns, and when.

Everything for daily use is here, and every command of the command line is a function of the same name or nearly so::

    import fadeviz

    run = fadeviz.train(fadeviz.RunConfig(upsampler="fade", steps=300), "outputs/fade")
    run.grid(kind="gradient")

Names are imported when they are first used: ``import fadeviz`` loads neither torch nor matplotlib, and reading a stored
run never needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

__all__ = [
    "Analysis",
    "FadevizError",
    "Interrupted",
    "MissingExtra",
    "Predictor",
    "Recorder",
    "RecorderWarning",
    "Run",
    "RunConfig",
    "Schedule",
    "Snapshot",
    "View",
    "__version__",
    "analyze",
    "animate",
    "build_upsampler",
    "check_data",
    "check_run",
    "compare",
    "export_run",
    "figures",
    "get_data",
    "grid",
    "import_maps",
    "layers",
    "list_layers",
    "list_runs",
    "list_upsamplers",
    "open_run",
    "parse_schedule",
    "plan_sweep",
    "plot",
    "predict",
    "record_checkpoints",
    "record_network_checkpoints",
    "replace_upsamplers",
    "run_bench",
    "run_demo",
    "run_sweep",
    "sweep_status",
    "train",
    "view",
    "write_report",
]

if TYPE_CHECKING:  # the same names for editors and type checkers; a test compares the two lists
    from .analysis.result import Analysis, analyze
    from .benchmark.bench import run_bench
    from .catalog import list_layers, list_upsamplers
    from .data.download import get_data
    from .data.sets import check_data
    from .demo import run_demo
    from .errors import FadevizError, MissingExtra, RecorderWarning
    from .experiment import RunConfig, train
    from .export import export_run
    from .importing import import_maps
    from .importing.checkpoints import record_checkpoints
    from .network_checkpoints import record_network_checkpoints
    from .paper import figures
    from .plotting import plot
    from .prediction.compare import compare
    from .prediction.predictor import Predictor, predict
    from .recording.layer_tree import layers
    from .recording.recorder import Recorder
    from .recording.views import View
    from .replacement.replace import replace_upsamplers
    from .report import write_report
    from .run import Run, animate, grid, list_runs, open_run
    from .storage.check import check_run
    from .storage.schedule import Schedule, parse_schedule
    from .storage.snapshots import Snapshot
    from .sweep import plan_sweep, run_sweep
    from .sweep.summary import sweep_status
    from .training.signals import Interrupted
    from .upsamplers import build_upsampler
    from .viewer import view
else:
    _NAMES = {
        "analysis.result": ("Analysis", "analyze"),
        "benchmark.bench": ("run_bench",),
        "catalog": ("list_layers", "list_upsamplers"),
        "data.download": ("get_data",),
        "data.sets": ("check_data",),
        "demo": ("run_demo",),
        "errors": ("FadevizError", "MissingExtra", "RecorderWarning"),
        "experiment": ("RunConfig", "train"),
        "export": ("export_run",),
        "importing": ("import_maps",),
        "importing.checkpoints": ("record_checkpoints",),
        "network_checkpoints": ("record_network_checkpoints",),
        "paper": ("figures",),
        "plotting": ("plot",),
        "prediction.compare": ("compare",),
        "prediction.predictor": ("Predictor", "predict"),
        "recording.layer_tree": ("layers",),
        "recording.recorder": ("Recorder",),
        "recording.views": ("View",),
        "replacement.replace": ("replace_upsamplers",),
        "report": ("write_report",),
        "run": ("Run", "animate", "grid", "list_runs", "open_run"),
        "storage.check": ("check_run",),
        "storage.schedule": ("Schedule", "parse_schedule"),
        "storage.snapshots": ("Snapshot",),
        "sweep": ("plan_sweep", "run_sweep"),
        "sweep.summary": ("sweep_status",),
        "training.signals": ("Interrupted",),
        "upsamplers": ("build_upsampler",),
        "viewer": ("view",),
    }
    _MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
        globals()[name] = value  # imported once
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
