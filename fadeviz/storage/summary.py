"""A run's folder in a few lines: settings, snapshots, result and damage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import brief, printable
from .info import RunInfo
from .stored_run import StoredRun

_LISTED = 6
"""Number of classes that are named; a run may have 150."""


class LayerSummary(NamedTuple):
    """The recorded maps of a layer.

    Attributes:
        name: the layer's dotted name.
        kinds: the kinds of map.
        calls: height and width of the maps by the index of the call, of a layer that runs several times in a forward
            pass; of one that runs once, only call 0.
        source: its name in the model, if it was recorded under another one.
    """

    name: str
    kinds: tuple[str, ...]
    calls: Mapping[int, tuple[int, ...]]
    source: str | None = None


@dataclass(frozen=True, repr=False)
class RunSummary:
    """The output of ``fadeviz info`` for a run.

    Attributes:
        heading: the run's address, name, network and id.
        facts: lines of text by their heading: status, data, parameters, device, time, result ...
        steps: the recorded steps.
        layers: the recorded layers.
        broken: damaged files, each with the reason.
    """

    heading: str
    facts: Mapping[str, str]
    steps: tuple[int, ...]
    layers: tuple[LayerSummary, ...]
    broken: Mapping[str, str]

    def lines(self) -> list[str]:
        """Everything but the damage, as lines of text."""
        lines = [self.heading, *(f"{name:13}{text}" for name, text in self.facts.items())]
        lines.append(f"snapshots    {len(self.steps)}: {', '.join(map(str, self.steps))}")
        wide = min(60, max([28, *(len(layer.name) for layer in self.layers)]))  # a longer name shifts only its own line
        for layer in self.layers:
            sizes = ", ".join(f"{call} ({'x'.join(map(str, size))})" for call, size in layer.calls.items())
            several = f"; calls {sizes}: choose with call=..." if len(layer.calls) > 1 else ""
            size = "x".join(map(str, layer.calls.get(0, ())))
            source = f"; in the model {layer.source}" if layer.source is not None else ""
            lines.append(f"  {layer.name:{wide}}  {size:9}  {', '.join(layer.kinds)}{several}{source}")
        return [printable(line) for line in lines]

    def damage(self) -> list[str]:
        """A line of text for each damaged file."""
        return [printable(f"broken       {file}: {reason}") for file, reason in self.broken.items()]

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *self.damage()])

    __repr__ = __str__


def summarize(run: StoredRun) -> RunSummary:
    """What is known of a run; of one that a user's own loop recorded, less than of one of ``fadeviz record``."""
    network = f" in {run.info.network}" if run.info.network else ""
    layers = []
    for name, kinds in (run.layers if run.steps else {}).items():
        source = run.info.layers[name].source if name in run.info.layers else None
        layers.append(LayerSummary(name, kinds, run.calls(name, kinds[0]) if kinds else {}, source))
    return RunSummary(
        heading=f"{run.address}: {run.name}{network}, run {run.run_id}",
        facts={name: ", ".join(map(str, parts)) for name, parts in _facts(run).items() if parts},
        steps=run.steps,
        layers=tuple(layers),
        broken=dict(run.broken),
    )


def _facts(run: StoredRun) -> dict[str, list[object]]:
    info = run.info
    config, errors = info.config, info.errors
    facts: dict[str, list[object]] = {
        "status": [_status(run), info.message],
        "data": [
            info.data.name,
            *(f"{name} {config[name]}" for name in ("size", "width", "seed") if name in config),
            "shuffled labels" if config.labels == "shuffled" else None,
        ],
        "config": [f"{name} {_setting(value)}" for name, value in info.flat_settings.items()],
        "parameters": [info.parameters, f"weights {info.weights}" if info.weights is not None else None],
        "device": [
            info.device,
            f"{info.threads} threads" if info.threads is not None else None,
            f"{info.processes} processes" if info.processes is not None else None,
        ],
        "time": [f"{what} {value:.1f} s" for what, value in info.seconds.items()],
        "classes": _classes(info),
        "observed": [*_observed(info), info.observation.mode],
        "predictions": [_PREDICTED.get(info.predictions or "")],
        "result": [f"{name} {value:.4f}" for name, value in info.result.items()],
        "by class": _by_class(info),
        "errors": [f"{len(errors)}, the first: {errors[0].get('message')}"] if errors else [],
        "notes": list(info.notes),
    }
    return {name: [part for part in parts if part] for name, parts in facts.items()}


def _classes(info: RunInfo) -> list[object]:
    """The number of classes and the names of the first ones; nothing for two classes without names."""
    names, count = info.data.classes, info.classes
    if count is None or (count == 2 and not names):
        return []
    listed = ", ".join(brief(name, 40) for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return [f"{count}: {listed}{more}" if listed else count]


def _observed(info: RunInfo) -> list[str]:
    """The names of the observed images; of more than two classes, each with that of its object."""
    names = list(info.observation.names)
    if (info.classes or 2) > 2:
        objects = [brief(info.object_name(image), 40) for image in range(len(names))]
        names = [f"{name} ({inside})" if inside else name for name, inside in zip(names, objects, strict=True)]
    return names


def _by_class(info: RunInfo) -> list[object]:
    """The classes of lowest and highest IoU in the last test, and how many are in neither masks nor predictions."""
    values = info.class_metrics.get("iou", ())
    known = sorted((value, label) for label, value in enumerate(values) if value is not None)
    if not known:
        return []
    few = _LISTED // 2
    named = [f"{brief(info.data.class_name(label), 40)} {value:.3f}" for value, label in known]
    shown = named if len(named) <= _LISTED else [*named[:few], "...", *named[-few:]]
    absent = len(values) - len(known)
    return [f"IoU {shown[0]}", *shown[1:], f"{absent} neither in the masks nor predicted" if absent else None]


_PREDICTED = {"classes": "the class of each pixel", "alpha": "the alpha of each pixel"}


def _setting(value: object) -> object:
    """A setting as text; in JSON's words where Python's differ from what was written."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _status(run: StoredRun) -> str:
    if run.status != "stopped":
        return run.status
    reason = f"run.json has status {run.info.status}, but no process writes into the folder"
    return f"stopped without reporting a result: {reason}"


__all__ = ["LayerSummary", "RunSummary", "summarize"]
