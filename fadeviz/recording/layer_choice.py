"""The layers to record: modules and calls of functions, chosen by names or globs, or given names of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from ..errors import FadevizError, printable
from .functions import FUNCTIONS, split_function
from .layer_names import exact_layers, find_layers, layer_names, name_matches, parse_patterns, without_duplicates

LayerPattern = str | nn.Module

Layers = LayerPattern | Sequence[LayerPattern] | Mapping[str, LayerPattern]
"""Names, globs or modules; or one of them by each name under which it is to be recorded."""


class Layer(NamedTuple):
    """What is recorded under a name: the output of a module, or what calls of a function in it return.

    Attributes:
        source: its name in the model: ``decoder.up1``, or ``decoder.up1:interpolate`` for calls of a function.
        module: the module.
        function: the function's name; empty for the module's own output.
    """

    source: str
    module: nn.Module
    function: str = ""


@dataclass(frozen=True)
class LayerChoice:
    """The layers of a model that patterns or names of one's own choose.

    Attributes:
        layers: by the name under which each is recorded, in the network's order.
        exact: the names of those that were named, or given as modules; the others matched a glob.
        calls: by each glob for functions, the layers that it may match: which of them are called shows the forward
            pass.
        modules: every module of the model by its name.
    """

    layers: Mapping[str, Layer]
    exact: frozenset[str]
    calls: Mapping[str, tuple[str, ...]]
    modules: Mapping[str, nn.Module]


def choose_layers(model: nn.Module, layers: Layers) -> LayerChoice:
    """Find the layers in a model.

    Args:
        model: any module.
        layers: names, globs or modules; or, in a mapping, one of them by each name under which it is to be recorded.

    Raises:
        FadevizError: if a name or glob matches no module, a name stands for two modules, or a name of one's own for
            several layers.
    """
    modules, ambiguous = layer_names(model)
    network = type(model).__name__
    if isinstance(layers, Mapping):
        chosen = _named(model, modules, layers, network)
    else:
        chosen = _matching(model, modules, parse_patterns(layers), network)
    for name, layer in chosen.layers.items():
        source = split_function(layer.source)[0] if layer.function else layer.source
        if source in ambiguous:
            raise FadevizError(
                f"the layer name {source!r} stands for two modules of {network}: "
                f"{' and '.join(map(repr, ambiguous[source]))}. Rename one, or observe the wrapped module alone"
            )
        if printable(name) != name:
            raise FadevizError(f"the layer name {name!r} has control characters. Rename the module, or leave it out")
    return chosen


def _matching(
    model: nn.Module, modules: Mapping[str, nn.Module], patterns: Sequence[LayerPattern], network: str
) -> LayerChoice:
    of_modules: list[LayerPattern] = []
    of_calls: list[str] = []
    for pattern in patterns:
        # A module's own name may have a colon.
        is_module = not isinstance(pattern, str) or pattern in modules or ":" not in pattern
        (of_modules if is_module else of_calls).append(pattern)  # type: ignore[arg-type]
    names = find_layers(modules, of_modules, network)
    exact = exact_layers(modules, of_modules)
    layers = {name: Layer(name, modules[name]) for name in without_duplicates(names, modules, exact)}
    calls: dict[str, tuple[str, ...]] = {}
    named = {pattern for pattern in of_calls if "*" not in pattern}
    for pattern in sorted(of_calls, key=lambda pattern: pattern not in named):
        found = {layer.source: layer for layer in _calls(model, modules, pattern, network)}
        if pattern in named:
            exact |= found.keys()
        else:
            calls[pattern] = tuple(found)
            known = {(id(layer.module), layer.function) for layer in layers.values()}
            found = {name: one for name, one in found.items() if (id(one.module), one.function) not in known}
        layers |= found
    return LayerChoice(_in_order(layers, modules), frozenset(exact), calls, modules)


def _calls(model: nn.Module, modules: Mapping[str, nn.Module], pattern: str, network: str) -> list[Layer]:
    """The layers that a pattern for functions may match, e.g. ``decoder.*:interpolate`` or ``**:*``."""
    place, function = split_function(pattern)
    if not function:
        raise FadevizError(f"the layer {pattern!r} ends with a colon: a function's name is needed after it, e.g. cat")
    functions = [one for one in FUNCTIONS if name_matches(function, one)] if "*" in function else [function]
    if not functions:
        raise FadevizError(
            f"the layer {pattern!r} matches none of the functions {', '.join(FUNCTIONS)}. Name another without a *"
        )
    places = {"": model} if place in ("", "**") else {}
    if place and not (place == "**" and not modules):
        found = find_layers(modules, place, network)
        exact = set() if "*" in place else set(found)
        places |= {name: modules[name] for name in without_duplicates(found, modules, exact)}
    return [Layer(f"{name}:{function}", module, function) for name, module in places.items() for function in functions]


def _named(
    model: nn.Module, modules: Mapping[str, nn.Module], layers: Mapping[str, LayerPattern], network: str
) -> LayerChoice:
    if not layers:
        raise FadevizError("layers is empty: a name, a glob or a module is needed")
    chosen: dict[str, Layer] = {}
    for name, pattern in layers.items():
        if not isinstance(name, str) or not name.strip() or set(name) & set("*,/="):
            raise FadevizError(
                f"layers has the name {name!r:.60}: names of layers are text without any of the characters * , / ="
            )
        found = _matching(model, modules, parse_patterns(pattern), network)
        if len(found.layers) > 1:
            raise FadevizError(
                f"layers[{name!r}] is {pattern!r}, which stands for {len(found.layers)} layers: "
                f"{_first(found.layers)}. Name one of them"
            )
        chosen[name] = next(iter(found.layers.values()))
    return LayerChoice(_in_order(chosen, modules), frozenset(chosen), {}, modules)


def _in_order(layers: Mapping[str, Layer], modules: Iterable[str]) -> dict[str, Layer]:
    """The layers in the network's order, the calls in a module after its own output."""
    place = {name: index for index, name in enumerate(modules)}
    functions = {name: index for index, name in enumerate(FUNCTIONS)}

    def key(item: tuple[str, Layer]) -> tuple[int, int, str]:
        layer = item[1]
        name = split_function(layer.source)[0] if layer.function else layer.source
        order = functions.get(layer.function, len(functions)) if layer.function else -1
        return place.get(name, -1), order, layer.function

    return dict(sorted(layers.items(), key=key))


def _first(names: Iterable[Any], most: int = 5) -> str:
    several = [repr(name) for name in names]
    return ", ".join(several[:most]) + (f" and {len(several) - most} more" if len(several) > most else "")


__all__ = ["Layer", "LayerChoice", "Layers", "choose_layers"]
