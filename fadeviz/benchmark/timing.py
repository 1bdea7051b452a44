"""Timing candidates in turns: a machine that is busy now and then slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import NamedTuple

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
        host: least seconds a call, of a turn, until it had been handed to the device, where the others are the device's
            own: a call takes the longer of the two in a program that does nothing else. None where they are not told
            apart.
    """

    median: float
    low: float
    high: float
    best: float
    first: float
    calls: int
    host: float | None = None


class Turn(NamedTuple):
    """What a clock says of some calls: seconds of each, and the host's seconds a call where it tells them apart."""

    seconds: list[float]
    host: float | None = None


Clock = Callable[[Call, torch.device, int, float], Turn]
"""``clock(call, device, count, host)`` calls ``count`` times; ``host`` is what it said of the host last time, or 0."""


def host_clock(call: Call, device: torch.device, count: int, host: float = 0.0) -> Turn:
    """Every call on its own, by the host's clock: from an idle device to an idle device."""
    return Turn([timed(call, device) for _ in range(count)])


def block_clock(call: Call, device: torch.device, count: int, host: float = 0.0) -> Turn:
    """All calls at once, by the host's clock: the device is waited for after the last, as in a training that goes on.

    One value: the seconds a call.
    """

    def block() -> None:
        for _ in range(count):
            call()

    return Turn([timed(block, device) / count])


def device_clock(call: Call, device: torch.device, count: int, host: float = 0.0) -> Turn:
    """Every call on its own, by the events of a CUDA device: what the device spends on it, launches hidden.

    The calls are handed over while the device is kept waiting, for as long as that should take the host, so that it
    then runs from one to the next; no more of them than fit its queue, or the host would have to wait.
    """
    if host:
        count = max(1, min(count, int(_QUEUED / host)))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    _synchronize(device)
    wait = int(_CYCLES * 1.5 * host * count)
    if wait:
        torch.cuda._sleep(wait)
    start = time.perf_counter()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    host = (time.perf_counter() - start) / count
    _synchronize(device)
    return Turn([before.elapsed_time(after) / 1e3 for before, after in pairwise(events)], host)


_QUEUED = 4e-3
"""Seconds in which a host hands over fewer kernels than a device's queue holds, which are about a thousand."""

_CYCLES = 2e9
"""Cycles a second of a GPU's clock, roughly."""


def time_in_turns(
    candidates: Mapping[str, Call],
    device: torch.device,
    rounds: int,
    turn: float,
    budget: float,
    peers: Collection[str] = (),
    clock: Clock = host_clock,
) -> tuple[dict[str, Timing], list[str]]:
    """Time every candidate in turns, after calls to warm up.

    Args:
        candidates: what to call.
        device: synchronised before and after every turn, by ``host_clock`` every call.
        rounds: turns of each candidate.
        turn: seconds of a turn; a slower candidate is called once in it.
        budget: a candidate that has used that many seconds leaves after three rounds.
        peers: candidates that may fail on this machine: what they say is returned, and they are left out.
        clock: what measures a turn.

    Returns:
        The timings, and a line for each peer that failed.
    """
    first: dict[str, float] = {}
    calls: dict[str, int] = {}
    failed = []
    for name, call in candidates.items():
        try:
            first[name] = timed(call, device)
            # A first call may have compiled for long what is fast. On a CPU it rather is a slow one.
            again = clock is not host_clock or first[name] <= 0.5
            seconds = timed(call, device) if again else first[name]
        except Exception as error:
            if name not in peers:
                raise
            failed.append(f"{name} does not run here: {first_line(error)}")
            continue
        calls[name] = max(1, min(20, int(turn / max(seconds, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    hosts: dict[str, list[float]] = {name: [] for name in calls}
    if clock is device_clock:
        for name in calls:  # warms up, and says for how long the device is to be kept waiting
            hosts[name].append(clock(candidates[name], device, 3, 0.0).host or 0.0)
    names = list(calls)
    for number in range(rounds):
        start = number % max(1, len(names))
        for name in names[start:] + names[:start]:
            if number < 3 or sum(samples[name]) < budget:
                seconds_each, host = clock(candidates[name], device, calls[name], min(hosts[name], default=0.0))
                samples[name] += seconds_each
                if host is not None:
                    hosts[name].append(host)
    return {name: summary(values, first[name], hosts[name]) for name, values in samples.items()}, failed


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


def summary(values: Sequence[float], first: float, hosts: Sequence[float] = ()) -> Timing:
    """The statistics of what was measured."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Timing(median, low, high, min(values), first, len(values), min(hosts, default=None))


def rotating(calls: Sequence[Call]) -> Call:
    """One call after another, and again: each on maps of its own, which the device's cache no longer holds."""
    if len(calls) == 1:
        return calls[0]
    turns = cycle(calls)
    return lambda: next(turns)()


def copies_past_cache(size: int, device: torch.device) -> int:
    """How many sets of maps of ``size`` bytes to rotate, for the cache to hold none that comes up again; 1 on a CPU."""
    if device.type != "cuda":
        return 1
    cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 << 20
    return max(2, min(64, -(-2 * cache // max(1, size)) + 1))


def launches(call: Call, device: torch.device) -> tuple[int, float]:
    """How many kernels, copies and fills a call starts on a CUDA device, and the seconds that these take there."""
    _synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        _synchronize(device)
    ran = [
        event
        for event in profile.events() or ()
        # A name that torch gives a stretch of time, such as "Optimizer.step", shows on the device too.
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ]
    return len(ran), sum(event.time_range.elapsed_us() for event in ran) / 1e6


def first_line(error: Exception) -> str:
    """An error in one line."""
    return (str(error).splitlines() or [""])[0][:160] or type(error).__name__
