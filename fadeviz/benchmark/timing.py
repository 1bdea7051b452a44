"""Timing candidates in turns: a machine that is busy now and then slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds a call.

    Attributes:
        median: of all calls; ``low`` and ``high`` are the quartiles, ``best`` is the fastest.
        first: the very first call, which is not among them: it pays for what is made once.
        calls: how many.
    """

    median: float
    low: float
    high: float
    best: float
    first: float
    calls: int


def time_in_turns(
    candidates: Mapping[str, Call],
    device: torch.device,
    rounds: int,
    turn: float,
    budget: float,
    peers: Collection[str] = (),
) -> tuple[dict[str, Timing], list[str]]:
    """Time every candidate in turns, after calls to warm up.

    Args:
        candidates: what to call.
        device: synchronised before and after every call.
        rounds: turns of each candidate.
        turn: seconds of a turn; a slower candidate is called once in it.
        budget: a candidate that has used that many seconds leaves after three rounds.
        peers: candidates that may fail on this machine: what they say is returned, and they are left out.

    Returns:
        The timings, and a line for each peer that failed.
    """
    first: dict[str, float] = {}
    calls: dict[str, int] = {}
    failed = []
    for name, call in candidates.items():
        try:
            first[name] = timed(call, device)
        except Exception as error:
            if name not in peers:
                raise
            failed.append(f"{name} does not run here: {first_line(error)}")
            continue
        seconds = first[name] if first[name] > 0.5 else timed(call, device)
        calls[name] = max(1, min(20, int(turn / max(seconds, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        start = number % max(1, len(names))
        for name in names[start:] + names[:start]:
            if number < 3 or sum(samples[name]) < budget:
                samples[name] += [timed(candidates[name], device) for _ in range(calls[name])]
    return {name: summary(values, first[name]) for name, values in samples.items()}, failed


def timed(call: Call, device: torch.device) -> float:
    """Seconds of one call, what it left on the device included."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(values: Sequence[float], first: float) -> Timing:
    """The statistics of what was measured."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Timing(median, low, high, min(values), first, len(values))


def first_line(error: Exception) -> str:
    """An error in one line."""
    return (str(error).splitlines() or [""])[0][:160] or type(error).__name__
