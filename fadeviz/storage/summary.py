"""A run's folder in a few lines: settings, snapshots, result and damage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import printable
from .stored_run import StoredRun


class LayerSummary(NamedTuple):
    """The recorded maps of a layer.

    Attributes:
        name: the layer's dotted name.
        kinds: the kinds of map.
        calls: height and width of the maps by the index of the call, of a layer that runs several times in a forward
            pass; of one that runs once, only call 0.
    """

    name: str
    kinds: tuple[str, ...]
    calls: Mapping[int, tuple[int, ...]]


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
            lines.append(f"  {layer.name:{wide}}  {', '.join(layer.kinds)}{several}")
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
        layers.append(LayerSummary(name, kinds, run.calls(name, kinds[0]) if kinds else {}))
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
        "parameters": [info.parameters, f"weights {info.weights}" if info.weights is not None else None],
        "device": [
            info.device,
            f"{info.threads} threads" if info.threads is not None else None,
            f"{info.processes} processes" if info.processes is not None else None,
        ],
        "time": [f"{what} {value:.1f} s" for what, value in info.seconds.items()],
        "observed": [*_observed(run), info.observation.mode],
        "result": [f"{name} {value:.4f}" for name, value in info.result.items()],
        "errors": [f"{len(errors)}, the first: {errors[0].get('message')}"] if errors else [],
        "notes": list(info.notes),
    }
    return {name: [part for part in parts if part] for name, parts in facts.items()}


def _observed(run: StoredRun) -> list[str]:
    """The observed images, each with the class that is measured, if it has a name."""
    observed, classes = run.info.observation, run.info.data.classes
    named = [classes[label] if 0 <= label < len(classes) else "" for label in observed.foreground or ()]
    if len(named) != len(observed.names):
        return list(observed.names)
    return [f"{name} ({of})" if of else name for name, of in zip(observed.names, named, strict=True)]


def _status(run: StoredRun) -> str:
    if run.status != "stopped":
        return run.status
    reason = f"run.json has status {run.info.status}, but no process writes into the folder"
    return f"stopped without reporting a result: {reason}"


__all__ = ["LayerSummary", "RunSummary", "summarize"]
