"""The names of a model's modules, and the names that match a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import FadevizError, unknown_name
from ..storage.map_index import bare_name

_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
    "ActivationWrapper": "_checkpoint_wrapped_module",
}
"""torch's wrapper modules, and the attribute that holds the wrapped module."""


def layer_names(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, list[str]]]:
    """The modules of a model by the names under which they are recorded.

    These are all names of ``named_modules``, including every name of a shared module, without wrappers' prefixes.

    Returns:
        The modules by name; and, for each name that stands for several modules, their full names.
    """
    named = dict(model.named_modules(remove_duplicate=False))
    modules: dict[str, nn.Module] = {}
    full: dict[str, list[str]] = {}
    for name, module in named.items():
        plain, before, wrapped = [], "", False
        for part in name.split(".") if name else []:
            wrapped = part == wrapped_child(named[before])
            if not wrapped:
                plain.append(part)
            before = f"{before}.{part}" if before else part
        # A wrapped module is recorded under its wrapper's name.
        if not plain or wrapped:
            continue
        known = modules.setdefault(".".join(plain), module)
        if known is module:
            full.setdefault(".".join(plain), [name])
        else:
            full[".".join(plain)].append(name)
    return modules, {name: names for name, names in full.items() if len(names) > 1}


def wrapped_child(module: nn.Module) -> str | None:
    """The name of the child that one of torch's wrappers wraps; None if the module is not a wrapper."""
    names = (_WRAPPERS.get(cls.__name__) for cls in type(module).__mro__ if cls.__module__.startswith("torch."))
    return next((name for name in names if name is not None), None)


def find_layers(
    modules: Mapping[str, nn.Module], patterns: str | nn.Module | Sequence[str | nn.Module], network: str
) -> tuple[str, ...]:
    """The names among ``modules`` that match the patterns or the given modules, in the network's order.

    Raises:
        FadevizError: if a pattern matches no name; the message lists the nearest ones.
    """
    names = list(modules)
    chosen: set[str] = set()
    for pattern in _as_list(patterns):
        if isinstance(pattern, nn.Module):
            matches = [name for name in names if _innermost(modules[name]) is _innermost(pattern)][:1]
            if not matches:
                raise FadevizError(f"the {type(pattern).__name__} given as a layer is not part of {network}")
        else:
            matches = [name for name in names if name_matches(pattern, name)]
            bare = bare_name(_without_wrappers(pattern))
            matches = matches or [name for name in names if name_matches(bare, bare_name(name))]
            if len(matches) > 1 and "*" not in pattern:
                raise FadevizError(
                    f"the layer {pattern!r} may be {' or '.join(map(repr, matches))} of {network}. Give the whole name"
                )
        if not matches:
            raise FadevizError(
                f"{unknown_name(f'layer in {network}', str(pattern), names)} {_children_of(str(pattern), names)}"
                "Calls of a function are named after the module around them, e.g. decoder.up1:interpolate"
            )
        chosen |= set(matches)
    return tuple(name for name in names if name in chosen)


def _as_list(patterns: str | nn.Module | Sequence[str | nn.Module]) -> list[str | nn.Module]:
    if isinstance(patterns, nn.Module):
        return [patterns]
    several = patterns.split(",") if isinstance(patterns, str) else patterns
    return [pattern.strip() if isinstance(pattern, str) else pattern for pattern in several]


def parse_patterns(layers: Any) -> list[str | nn.Module]:
    """The names, globs and modules in ``layers`` as a list; an iterator is read only once.

    Raises:
        FadevizError: if ``layers`` is empty, or contains anything else.
    """
    if isinstance(layers, str | nn.Module):
        return _as_list(layers)
    several = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, bytes) else [layers]
    for layer in several:
        if not isinstance(layer, str | nn.Module):
            raise FadevizError(
                f"layers contains {layer!r:.60}, a {type(layer).__name__}: a name, a glob or a module is needed"
            )
    if not several:
        raise FadevizError("layers is empty: a name, a glob or a module is needed")
    return _as_list(several)


def _innermost(module: nn.Module) -> nn.Module:
    while (
        module is not None
        and (name := wrapped_child(module))
        and isinstance(inner := module._modules.get(name), nn.Module)
    ):
        module = inner
    return module


def _children_of(pattern: str, names: Sequence[str]) -> str:
    """The children of the deepest existing parent of ``pattern``, for an error message."""
    parent = pattern
    while "." in parent:
        parent = parent.rpartition(".")[0]
        if parent in names:
            children = [name for name in names if name.rpartition(".")[0] == parent]
            return f"{parent!r} has {', '.join(map(repr, children)) or 'no children'}. "
    return ""


def exact_layers(modules: Mapping[str, nn.Module], patterns: str | nn.Module | Sequence[str | nn.Module]) -> set[str]:
    """The layers requested by name or as modules, rather than matched by a glob."""
    exact = [pattern for pattern in _as_list(patterns) if isinstance(pattern, nn.Module) or "*" not in pattern]
    return set(find_layers(modules, exact, "the model"))


def without_duplicates(names: Sequence[str], modules: Mapping[str, nn.Module], exact: set[str]) -> tuple[str, ...]:
    """The names without those that a glob matched in addition to another name of the same module."""
    kept: list[str] = [name for name in names if name in exact]
    known = {id(modules[name]) for name in kept}
    for name in names:
        if name not in exact and id(modules[name]) not in known:
            known.add(id(modules[name]))
            kept.append(name)
    return tuple(name for name in names if name in kept)


def name_matches(pattern: str, name: str) -> bool:
    """Whether the whole name matches: ``*`` stands for one part of it, ``**`` for any number."""
    parts = re.split(r"(\*\*|\*)", pattern)
    expression = "".join({"**": ".*", "*": "[^.]+"}.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(expression, name) is not None


def _without_wrappers(pattern: str) -> str:
    return re.sub(r"(^|\.)(module|_orig_mod|_checkpoint_wrapped_module)(?=\.|$)", "", pattern).lstrip(".")
