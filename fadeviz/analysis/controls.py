"""Controls: whether what an operator shows was learned, or is there in a network that has nothing to learn too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..storage.map_index import bare_name
from ..storage.stored_run import StoredRun
from .grouping import NOT_COMPARED
from .jackknife import Estimate
from .onset import Onset, Reading


@dataclass(frozen=True)
class Origin:
    """Where a response comes from.

    Attributes:
        name: ``outline`` or ``interior``.
        origin: ``learned``: not there at the first snapshot, and stronger than in the control if there is one;
            ``initialisation``: there from the start, or as strong in the control.
        control: whether the control shows it too; None without a control.
        difference: its top less that of the control, with its variance; None without a control that shows it.
    """

    name: str
    origin: str
    control: bool | None
    difference: Estimate | None


def find_controls(layers: Mapping[StoredRun, str]) -> dict[int, int]:
    """For the first runs of several operators: the index of each operator's control among them, where there is one.

    A control is a run of the same operator with shuffled labels, or with a learning rate of 0, and the same settings
    and layer otherwise.

    Args:
        layers: the measured layer of each of these runs.
    """
    settings = [run.info.config for run in layers]
    measured = [bare_name(layer) for layer in layers.values()]
    controls = {}
    for index, config in enumerate(settings):
        if _is_control(config):
            continue
        for other, control in enumerate(settings):
            alike = config.get("upsampler") == control.get("upsampler") and measured[index] == measured[other]
            if _is_control(control) and alike and _equal(config, control):
                controls[index] = other
                break
    return controls


def _is_control(config: Mapping[str, Any]) -> bool:
    return config.get("labels") == "shuffled" or config.get("lr") == 0


def _equal(config: Mapping[str, Any], control: Mapping[str, Any]) -> bool:
    """Whether a run and a control have the same training but for what makes it a control."""
    changed = {"labels"} if control.get("labels") == "shuffled" else {"lr"}
    names = (config.keys() & control.keys()) - NOT_COMPARED - changed
    return all(config[name] == control[name] for name in names)


def compare_with_control(onset: Onset, control: Onset | None, *, same_seeds: bool) -> tuple[Origin, ...]:
    """The origin of each reading that is shown.

    Args:
        onset: the onset of an operator.
        control: that of its control; None without one.
        same_seeds: whether both have the same seeds, in the same order.
    """
    origins = []
    for name in ("outline", "interior"):
        reading: Reading = getattr(onset, name)
        if not reading.shown:
            continue
        other: Reading | None = None if control is None else getattr(control, name)
        difference = None
        as_strong = False
        if other is not None and other.shown and reading.top_estimate and other.top_estimate:
            difference = _difference(reading.top_estimate, other.top_estimate, same_seeds)
            as_strong = difference.interval()[0] <= 0
        origins.append(
            Origin(
                name,
                "initialisation" if reading.from_start or as_strong else "learned",
                None if other is None else other.shown,
                difference,
            )
        )
    return tuple(origins)


def _difference(first: Estimate, second: Estimate, same_seeds: bool) -> Estimate:
    """The difference of two tops of the same images: paired over seeds if they are the same, else variances add up."""
    if same_seeds:
        return first - second
    value, total = first.value - second.value, len(first.without_run) + len(second.without_run)
    parts = []
    for sign, replicates in ((1, first.without_run), (-1, second.without_run)):
        # The jackknife's factor (k - 1) / k is that of all replicates: each part keeps its own variance.
        count = len(replicates)
        scale = math.sqrt((count - 1) / count * total / (total - 1)) if count else 0.0
        parts.append(value + sign * scale * (replicates - replicates.mean() if count else replicates))
    return Estimate(value, np.concatenate(parts), first.without_image - second.without_image)
