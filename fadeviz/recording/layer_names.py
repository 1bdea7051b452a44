"""The names of a model's modules, and the names that match a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import FadevizError, unknown_name

_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
    "ActivationWrapper": "_checkpoint_wrapped_module",
}
"""torch's wrapper modules, and the attribute that holds the wrapped module."""


def layer_names(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, list[str]]]:
    """The modules of a model by the names that they are recorded under.

    All names of ``named_modules``, both names of a shared module, without the prefixes of wrappers.

    Returns:
        Modules by name; and the full names of modules that would share a name.
    """
    named = dict(model.named_modules(remove_duplicate=False))
    modules: dict[str, nn.Module] = {}
    full: dict[str, list[str]] = {}
    for name, module in named.items():
        plain, before, wrapped = [], "", False
        for part in name.split(".") if name else []:
            wrapped = part == wraps(named[before])
            if not wrapped:
                plain.append(part)
            before = f"{before}.{part}" if before else part
        # A wrapped module has its wrapper's name.
        if not plain or wrapped:
            continue
        known = modules.setdefault(".".join(plain), module)
        if known is module:
            full.setdefault(".".join(plain), [name])
        else:
            full[".".join(plain)].append(name)
    return modules, {name: names for name, names in full.items() if len(names) > 1}


def wraps(module: nn.Module) -> str | None:
    """The name of the child that a wrapper of torch wraps; None where the module is no wrapper."""
    names = (_WRAPPERS.get(cls.__name__) for cls in type(module).__mro__ if cls.__module__.startswith("torch."))
    return next((name for name in names if name is not None), None)


def find_layers(
    modules: Mapping[str, nn.Module], patterns: str | nn.Module | Sequence[str | nn.Module], network: str
) -> tuple[str, ...]:
    """The names among ``modules`` that match the patterns or the given modules, in the network's order.

    Raises:
        FadevizError: a pattern that fits none; lists the nearest names.
    """
    names = list(modules)
    chosen: set[str] = set()
    for pattern in _each(patterns):
        if isinstance(pattern, nn.Module):
            fits = [name for name in names if _inside(modules[name]) is _inside(pattern)][:1]
            if not fits:
                raise FadevizError(f"the {type(pattern).__name__} given as a layer is not part of {network}")
        else:
            fits = [name for name in names if name_fits(pattern, name)]
            # A name with a wrapper's prefix: "module.decoder", as in DistributedDataParallel.
            fits = fits or [name for name in names if name_fits(_plain(pattern), name)]
        if not fits:
            # Functions cannot be hooked; the message points to the modules around them.
            raise FadevizError(
                f"{unknown_name(f'layer in {network}', str(pattern), names)} {_parts_there(str(pattern), names)}A "
                "function such as F.interpolate is not a layer: choose the module before or after it"
            )
        chosen |= set(fits)
    return tuple(name for name in names if name in chosen)


def _each(patterns: str | nn.Module | Sequence[str | nn.Module]) -> list[str | nn.Module]:
    if isinstance(patterns, nn.Module):
        return [patterns]
    several = patterns.split(",") if isinstance(patterns, str) else patterns
    return [pattern.strip() if isinstance(pattern, str) else pattern for pattern in several]


def patterns_in(layers: Any) -> list[str | nn.Module]:
    """The names, globs and modules that were asked for, as a list: what gives them but once is read once.

    Raises:
        FadevizError: none, or something else.
    """
    if isinstance(layers, str | nn.Module):
        return _each(layers)
    several = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, bytes) else [layers]
    for one in several:
        if not isinstance(one, str | nn.Module):
            raise FadevizError(
                f"layers names {one!r:.60}, a {type(one).__name__}: a name, a glob or a module is needed"
            )
    if not several:
        raise FadevizError("layers is empty: a name, a glob or a module is needed")
    return _each(several)


def _inside(module: nn.Module) -> nn.Module:
    while module is not None and (name := wraps(module)) and isinstance(inner := module._modules.get(name), nn.Module):
        module = inner
    return module


def _parts_there(pattern: str, names: Sequence[str]) -> str:
    """The children of the deepest existing parent of ``pattern``, for an error message."""
    parent = pattern
    while "." in parent:
        parent = parent.rpartition(".")[0]
        if parent in names:
            there = [name for name in names if name.rpartition(".")[0] == parent]
            return f"{parent!r} has {', '.join(map(repr, there)) or 'no parts'}. "
    return ""


def asked_for(modules: Mapping[str, nn.Module], patterns: str | nn.Module | Sequence[str | nn.Module]) -> set[str]:
    """The layers requested by name or as modules, not matched by a glob."""
    exact = [pattern for pattern in _each(patterns) if isinstance(pattern, nn.Module) or "*" not in pattern]
    return set(find_layers(modules, exact, "the model"))


def once(names: Sequence[str], modules: Mapping[str, nn.Module], exact: set[str]) -> tuple[str, ...]:
    """The names without duplicates of modules that a glob matched twice."""
    kept: list[str] = [name for name in names if name in exact]
    known = {id(modules[name]) for name in kept}
    for name in names:
        if name not in exact and id(modules[name]) not in known:
            known.add(id(modules[name]))
            kept.append(name)
    return tuple(name for name in names if name in kept)


def name_fits(pattern: str, name: str) -> bool:
    """Whether the whole name matches: ``*`` is one part of it, ``**`` any number."""
    parts = re.split(r"(\*\*|\*)", pattern)
    expression = "".join({"**": ".*", "*": "[^.]+"}.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(expression, name) is not None


def _plain(name: str) -> str:
    return re.sub(r"(^|\.)(module|_orig_mod|_checkpoint_wrapped_module)(?=\.|$)", "", name).lstrip(".")
