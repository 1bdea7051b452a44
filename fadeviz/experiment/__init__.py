"""Experiments: a run's settings, and the training that records it; the one place where all the parts meet."""

from ..training.signals import Interrupted
from .config import (
    DEVICES,
    LABELS,
    PAPER_SCHEDULE,
    RunConfig,
    config_from,
    differing_settings,
    read_config,
    settings_of,
)
from .parts import build_model, choose_device, count_workers, load_data, usable_cores
from .training_run import Progress, out_of_memory_in_words, train

__all__ = [
    "DEVICES",
    "LABELS",
    "PAPER_SCHEDULE",
    "Interrupted",
    "Progress",
    "RunConfig",
    "build_model",
    "choose_device",
    "config_from",
    "count_workers",
    "differing_settings",
    "load_data",
    "out_of_memory_in_words",
    "read_config",
    "settings_of",
    "train",
    "usable_cores",
]
