"""Validation of a run's settings before anything is built, read or written."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ..errors import FadevizError, MissingExtra
from ..models import build_network
from ..recording.probe import Probe
from ..recording.readout import LEAST_IMAGES

MOST = 10**9
"""Upper limit for numbers of steps, images and the like."""


def plain(name: str, value: object, default: object) -> Any:
    """The value of a setting in a form that run.json can hold: NumPy's numbers and paths become Python's own types.

    Raises:
        FadevizError: if the value is not of the type of the default, or is not finite.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if default is None and value is None:
        return None
    if isinstance(default, bool):
        fits, needed = isinstance(value, bool), "True or False"
    elif isinstance(default, int):
        fits, needed = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif default is None or isinstance(default, float):
        fits, needed = _is_number(value), "a finite number"
    elif isinstance(default, tuple):
        value = () if value is None else value.tolist() if isinstance(value, np.ndarray) else value
        fits, needed = False, "a sequence of finite numbers"
        if isinstance(value, Sequence) and not isinstance(value, str) and all(map(_is_number, value)):
            fits, value = True, tuple(value)
    else:
        value = "" if value is None else os.fspath(value) if isinstance(value, os.PathLike) else value
        fits, needed = isinstance(value, str) and "\0" not in value, "a string without NUL characters"
    if not fits:
        raise FadevizError(f"{name} is {value!r:.60}; it must be {needed}")
    return value


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


def check_range(name: str, value: float, least: float, most: float = math.inf, *, open_end: str = "") -> None:
    """Raise unless ``least <= value <= most``; an end named in ``open_end`` (``low``, ``high``) does not belong to it.

    Raises:
        FadevizError: if the value is out of this range.
    """
    low = value > least if open_end == "low" else value >= least
    high = value < most if open_end == "high" else value <= most
    if low and high:
        return
    at_least = f"above {least:g}" if open_end == "low" else f"{least:g} or more"
    at_most = f"below {most:g}" if open_end == "high" else f"at most {most:g}"
    raise FadevizError(f"{name} is {value}; it must be {at_least}" + (f" and {at_most}" if most < math.inf else ""))


def check_counts(counts: Mapping[str, int], least: int) -> None:
    """Raise for a count out of range."""
    for name, value in counts.items():
        if not least <= value <= MOST:
            raise FadevizError(f"{name} is {value}; it must be {least} or more" + " and at most 10^9" * (value > MOST))


def check_lr_drops(drops: Sequence[float]) -> None:
    """Raise unless these are fractions of a run, in increasing order."""
    if any(not 0 <= share <= 1 for share in drops) or list(drops) != sorted(drops):
        raise FadevizError(f"lr_drops is {drops}; it must be shares of the run from 0 to 1, in increasing order")


@lru_cache(maxsize=1024)
def check_model(network: str, upsampler: str, width: float, layers: str, kinds: str) -> None:
    """Raise unless the network and its operator exist and have these layers and kinds.

    Raises:
        FadevizError: if one of them does not exist; the message lists the names that do.
    """
    try:
        with torch.device("meta"), _WithoutWeights():
            model = build_network(network, upsampler, width=width)
    except MissingExtra:
        return  # settings can be read where training is not possible; building the network reports what is missing
    # Which images there will be is known when they are chosen; their number is checked before.
    Probe(model, layers, kinds or None, objects=np.eye(LEAST_IMAGES, dtype=bool)[:, None])


class _WithoutWeights(TorchFunctionMode):
    """Skips weight initialisation: the meta device has no weights, and initialising them imports a compiler."""

    _DRAWS = ("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self._DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


__all__ = ["MOST", "check_counts", "check_lr_drops", "check_model", "check_range", "plain"]
