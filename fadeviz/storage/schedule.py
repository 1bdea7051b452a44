"""Which optimiser steps to record: the text ``100:3000:100,320:360:10`` and its friends, as a set of steps."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..errors import FadevizError

_MAX_STEPS = 1_000_000  # a typo such as 1:10000000000 must not fill the memory before it is reported
_GRAMMAR = "Write steps as N, FIRST:LAST:STRIDE or log:FIRST:LAST:COUNT, joined by commas"


@dataclass(frozen=True)
class Schedule:
    """An increasing set of optimiser steps; step 0 (the untrained model) is always in it.

    ``step in schedule`` asks, ``for step in schedule`` lists, ``schedule.last`` is the largest.

    Example:
        >>> list(parse_schedule("100:300:100,220"))
        [0, 100, 200, 220, 300]
    """

    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if (
            not self.steps
            or self.steps[0] != 0
            or any(a >= b for a, b in zip(self.steps, self.steps[1:], strict=False))
        ):
            raise FadevizError(
                f"schedule: steps must increase from 0, got {self.steps[:8]}. Use fadeviz.storage.schedule.at(...)"
            )

    def __contains__(self, step: int) -> bool:
        place = bisect.bisect_left(self.steps, step)
        return place < len(self.steps) and self.steps[place] == step

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> int:
        """The largest step of the schedule."""
        return self.steps[-1]


def at(steps: Iterable[int]) -> Schedule:
    """Record at these steps and at 0."""
    wanted = {int(step) for step in steps}
    if wanted and min(wanted) < 0:
        raise FadevizError(f"schedule: step {min(wanted)} is negative. Steps count optimiser steps from 0")
    return Schedule(tuple(sorted(wanted | {0})))


def every(stride: int, last: int) -> Schedule:
    """Record at 0, stride, 2 stride, ... up to and including ``last`` where it falls on the stride."""
    return at(_range(0, last, stride, f"every({stride}, {last})"))


def log_spaced(first: int, last: int, count: int) -> Schedule:
    """Record at ``count`` steps from ``first`` to ``last``, both ends included, evenly spaced in the logarithm."""
    return at(_log_range(first, last, count, f"log:{first}:{last}:{count}"))


def parse_schedule(text: str, last: int | None = None) -> Schedule:
    """Read a schedule such as ``"100:3000:100,320:360:10"``; step 0 is added where it is not named.

    Args:
        text: as for :func:`parse_steps`.
        last: the last step of the run; a part that reaches past it is an error. ``None``: no limit.

    Raises:
        FadevizError: empty text, something that is no number, a range that runs backwards, a step past ``last``.
    """
    return at(parse_steps(text, last))


def parse_steps(text: str, last: int | None = None) -> list[int]:
    """Read steps such as ``"0,320:360:10"``, increasing; both ends of a range belong to it.

    Args:
        text: comma-separated parts, each a step ``N``, a range ``FIRST:LAST:STRIDE`` (``FIRST:LAST`` has stride 1) or
            ``log:FIRST:LAST:COUNT``.
        last: the largest step there may be. ``None``: no limit.

    Raises:
        FadevizError: as :func:`parse_schedule`.
    """
    steps: set[int] = set()
    parts = [part.strip() for part in text.split(",")]
    if not any(parts):
        raise FadevizError(f"schedule is empty. {_GRAMMAR}, e.g. 100:3000:100,320:360:10")
    for part in parts:
        fields = part.split(":")
        is_log = fields[0] == "log"
        numbers = [_number(field, part) for field in fields[is_log:]]
        if is_log and len(numbers) == 3:
            added = _log_range(numbers[0], numbers[1], numbers[2], part)
        elif not is_log and len(numbers) == 1:
            added = numbers
        elif not is_log and len(numbers) in (2, 3):
            added = list(_range(numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else 1, part))
        else:
            raise FadevizError(f"schedule part {part!r} has {len(fields)} fields. {_GRAMMAR}")
        if last is not None and max(added) > last:
            raise FadevizError(
                f"schedule part {part!r} reaches step {max(added)}, but the run ends at step {last}. "
                "Train longer (steps=...) or shorten the schedule (snapshots=...)"
            )
        steps.update(added)
    return sorted(steps)


def _number(field: str, part: str) -> int:
    # isascii: int() also takes other scripts' digits and underscores, which nobody means in a schedule.
    if not (field.isascii() and field.isdigit()) or len(field) > 12:
        raise FadevizError(f"schedule part {part!r}: {field!r} is not a whole number of steps. {_GRAMMAR}")
    return int(field)


def _range(first: int, last: int, stride: int, part: str) -> range:
    if stride < 1:
        raise FadevizError(f"schedule part {part!r}: the stride is {stride}, it must be 1 or more")
    if last < first:
        raise FadevizError(f"schedule part {part!r} runs backwards. Write {last}:{first}:{stride}")
    steps = range(first, last + 1, stride)
    count = (last - first) // stride + 1  # len() overflows beyond the machine's integers
    if count > _MAX_STEPS:
        raise FadevizError(f"schedule part {part!r} names {count} steps, more than {_MAX_STEPS}. Use a larger stride")
    return steps


def _log_range(first: int, last: int, count: int, part: str) -> list[int]:
    if first < 1 or not 2 <= count <= _MAX_STEPS:
        raise FadevizError(f"schedule part {part!r}: log-spaced steps need FIRST >= 1 and COUNT from 2 to {_MAX_STEPS}")
    if last < first:
        raise FadevizError(f"schedule part {part!r} runs backwards. Write log:{last}:{first}:{count}")
    ratio = last / first
    return sorted({round(first * ratio ** (i / (count - 1))) for i in range(count)})
