"""Several runs together: labels that distinguish them, and the steps that all of them have."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import FadevizError
from .stored_run import StoredRun


def check_distinct(runs: Sequence[StoredRun]) -> None:
    """Raise if a run is given twice.

    Raises:
        FadevizError: if two of the runs are read from the same folder.
    """
    for first, second in itertools.combinations(runs, 2):
        if second.same_folder(first):
            raise FadevizError(f"{first.address} and {second.address} are the same run, {second.run_id}. Give it once")


def distinct_paths(runs: Sequence[StoredRun]) -> list[str]:
    """The shortest end of each run's path that is unique: ``fade``, or ``a/fade`` and ``b/fade``."""
    paths = [run.path_parts for run in runs]

    def shortest(parts: tuple[str, ...]) -> str:
        others = [other for other in paths if other != parts]
        for length in range(1, len(parts)):
            if all(other[-length:] != parts[-length:] for other in others):
                return "/".join(parts[-length:])
        return "/".join(parts)

    return [shortest(parts) for parts in paths]


def run_labels(runs: Sequence[StoredRun], names: Sequence[str] | None = None) -> list[str]:
    """Unique labels of the runs for figures and tables: their titles, and what distinguishes runs of the same title.

    That is the network, the seed, or as much of the path as needed, whichever is the first to be unique among the runs
    of that title: ``FADE, SegNet``; ``FADE, seed 1``; ``FADE, b/fade``. A run named after its folder gets as much of
    its path: ``b/fade``.

    Args:
        runs: the runs, each from a different folder.
        names: the labels where these are unique; None takes the runs' titles.
    """
    names = [run.title for run in runs] if names is None else names
    labels = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        twins = [other for i, other in enumerate(runs) if i != index and names[i] == name]
        path = distinct_paths([run, *twins])[0]
        network, seed = run.info.network_title, run.info.config.seed
        candidates: list[tuple[object, list[Any], str]] = [
            (network, [twin.info.network_title for twin in twins], f"{name}, {network}"),
            (seed, [None if seed is None else twin.info.config.seed for twin in twins], f"{name}, seed {seed}"),
            (path, [], path if path.endswith(f"/{name}") else f"{name}, {path}"),
        ]
        unique = next(label for own, theirs, label in candidates if own not in theirs)
        labels.append(unique if twins else name)
    return labels


def describe_calls(layer: str, calls: Mapping[int, Sequence[int]], call: int = 0) -> str:
    """A note on a layer's other calls (see :meth:`StoredRun.calls`) when one is shown; empty if there are none."""
    others = [f"{number} ({'x'.join(map(str, size))})" for number, size in calls.items() if number != call]
    if not others:
        return ""
    shown = ", ".join(others if len(others) <= 8 else [*others[:7], "...", others[-1]])
    plural = "s" * (len(others) > 1)
    return f"{layer}: call {call} is shown; also recorded: call{plural} {shown}. Choose with call=..."


def describe_snapshots(steps: Sequence[int]) -> str:
    """The number of snapshots and their range: ``15 snapshots, steps 0 to 200``."""
    if len(steps) == 1:
        return f"1 snapshot, step {steps[0]}"
    return f"{len(steps)} snapshots, steps {steps[0]} to {steps[-1]}"


def common_steps(runs: Sequence[StoredRun], steps: Sequence[int] | None = None) -> tuple[int, ...]:
    """The steps that all runs have, increasing; or ``steps``, sorted, after a check that all runs have them."""
    common = set(runs[0].steps).intersection(*(run.steps for run in runs))
    if steps is not None:
        for step in steps:
            for run in runs:
                if step not in run.steps:
                    raise FadevizError(
                        f"{run.address} has no snapshot of step {step}. List them: fadeviz info {run.address}"
                    )
        common = set(steps)
    if not common:
        names = " and ".join(run.address for run in runs)
        raise FadevizError(f"{names}: no recorded step in common. Record them with the same snapshots")
    return tuple(sorted(common))
