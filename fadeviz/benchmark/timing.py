"""Timing candidates in turns, so that a machine that is busy at times slows all of them alike."""

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
    """The seconds that a call takes.

    Attributes:
        median: the median of all calls; ``low`` and ``high`` are the quartiles, ``best`` is the fastest.
        first: the very first call, which is not included in the others and pays for one-time work.
        calls: the number of calls.
        host: if the others are the device's times: the host's time per call until it was queued, the least of all
            turns. A call takes the longer of the two in a program that does nothing else. None if they are not
            distinguished.
    """

    median: float
    low: float
    high: float
    best: float
    first: float
    calls: int
    host: float | None = None


class Turn(NamedTuple):
    """The seconds of each call of a turn, and the host's seconds per call if the clock distinguishes them."""

    seconds: list[float]
    host: float | None = None


Clock = Callable[[Call, torch.device, int, float], Turn]
"""``clock(call, device, count, host)`` calls ``count`` times; ``host`` is the last turn's ``Turn.host``, or 0."""


def host_clock(call: Call, device: torch.device, count: int, host: float = 0.0) -> Turn:
    """Every call on its own, by the host's clock: from an idle device to an idle device."""
    return Turn([timed(call, device) for _ in range(count)])


def block_clock(call: Call, device: torch.device, count: int, host: float = 0.0) -> Turn:
    """All calls together, by the host's clock: the device is synchronised only after the last, as in a training.

    One value: the seconds per call.
    """

    def block() -> None:
        for _ in range(count):
            call()

    return Turn([timed(block, device) / count])


def device_clock(call: Call, device: torch.device, count: int, host: float = 0.0) -> Turn:
    """Every call on its own, by the events of a CUDA device: the device's time, without that of launches.

    The calls are queued while the device is kept waiting, for as long as the host should need, so that it then runs one
    after the other without gaps; not more of them than fit its queue, or the host would have to wait.
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
"""Seconds in which a host queues fewer kernels than a device's queue holds, which is about a thousand."""

_CYCLES = 2e9
"""The approximate frequency of a GPU's clock in Hz."""


def time_in_turns(
    candidates: Mapping[str, Call],
    device: torch.device,
    rounds: int,
    turn: float,
    budget: float,
    peers: Collection[str] = (),
    clock: Clock = host_clock,
) -> tuple[dict[str, Timing], list[str]]:
    """Time every candidate in turns, after warm-up calls.

    Args:
        candidates: the calls by name.
        device: synchronised before and after every turn; by ``host_clock`` before and after every call.
        rounds: the number of turns of each candidate.
        turn: seconds per turn; a slower candidate is called once.
        budget: seconds after which a candidate takes no further turns, but at least three.
        peers: candidates that may fail on this machine: they are left out, and their errors returned.
        clock: measures a turn.

    Returns:
        The timings, and a line for each peer that failed.
    """
    first: dict[str, float] = {}
    calls: dict[str, int] = {}
    failed = []
    for name, call in candidates.items():
        try:
            first[name] = timed(call, device)
            # The first call of a fast kernel may be slow because it compiles. On a CPU the call itself is slow.
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
        for name in calls:  # warms up, and measures how long the device must be kept waiting
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
    """Seconds of one call, including its work on the device."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(values: Sequence[float], first: float, hosts: Sequence[float] = ()) -> Timing:
    """The statistics of measured seconds."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Timing(median, low, high, min(values), first, len(values), min(hosts, default=None))


def rotating(calls: Sequence[Call]) -> Call:
    """Cycle through calls, each on maps of its own, which are no longer in the device's cache."""
    if len(calls) == 1:
        return calls[0]
    turns = cycle(calls)
    return lambda: next(turns)()


def copies_past_cache(size: int, device: torch.device) -> int:
    """The number of sets of maps of ``size`` bytes to rotate so that none is still cached when it is used again; 1 on a
    CPU.
    """
    if device.type != "cuda":
        return 1
    cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 << 20
    return max(2, min(64, -(-2 * cache // max(1, size)) + 1))


def launches(call: Call, device: torch.device) -> tuple[int, float]:
    """The number of kernels, copies and fills that a call launches on a CUDA device, and their seconds there."""
    _synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        _synchronize(device)
    ran = [
        event
        for event in profile.events() or ()
        # Annotated ranges, such as torch's "Optimizer.step", appear as device events too.
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ]
    return len(ran), sum(event.time_range.elapsed_us() for event in ran) / 1e6


def first_line(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).splitlines() or [""])[0][:160] or type(error).__name__
