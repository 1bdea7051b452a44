"""The settings of a user's own training, as run.json keeps them: JSON values by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import FadevizError, printable


def check_config(config: Any) -> dict[str, Any] | None:
    """The settings as JSON values; None if there are none.

    Numbers of NumPy and single-element tensors become numbers, tuples become lists.

    Raises:
        FadevizError: if ``config`` is no dict, a name is no string, or a value cannot be held by JSON.
    """
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise FadevizError(f"config is a {type(config).__name__}: a dict is needed, such as vars(arguments)")
    try:
        return {_name(key, "config"): _value(value, f"config[{key!r:.60}]") for key, value in config.items()}
    except RecursionError as error:
        raise FadevizError("config is nested too deeply, or contains itself, which JSON cannot hold") from error


def _name(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise FadevizError(f"{where} has the key {key!r:.60}, a {type(key).__name__}: strings are needed")
    return printable(key)


def _value(value: Any, where: str) -> Any:
    """A JSON value; ``where`` names it in errors."""
    single = (isinstance(value, Tensor) and value.numel() == 1) or (isinstance(value, np.ndarray) and value.size == 1)
    if isinstance(value, np.generic) or single:
        value = value.item()
    if isinstance(value, Mapping):
        return {_name(key, where): _value(item, f"{where}[{key!r:.60}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_value(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, str):
        return printable(str(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise FadevizError(f"{where} is {value}, which JSON cannot hold. Give a finite number, or None")
        return float(value)
    raise FadevizError(
        f"{where} is {printable(repr(value))[:60]}, a {type(value).__name__}, which JSON cannot hold. Give a number, a "
        "string, True, False, None, or a list or dict of them"
    )


def describe_changes(was: Mapping[str, Any], now: Mapping[str, Any] | None) -> str:
    """The settings in which ``now`` differs, for a note; empty if there are none, or nothing is given now."""
    if now is None:
        return ""
    names = [*was, *(name for name in now if name not in was)]
    return "; ".join(
        f"{name} was {_text(was, name)}, is {_text(now, name)}"
        for name in names
        if (name in was) != (name in now) or was.get(name) != now.get(name)
    )


def _text(settings: Mapping[str, Any], name: str) -> str:
    return f"{settings[name]!r:.60}" if name in settings else "not given"


__all__ = ["check_config", "describe_changes"]
