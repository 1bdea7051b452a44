"""What can be recorded in a model: its modules and the functions that they call, with the shapes of their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FadevizError, unknown_name
from .hooks import MapCollector, exclusive
from .layer_choice import Layer, choose_layers
from .masks import whole_number
from .modules import all_modules, check_initialised
from .observation import MODES, Mode, Observation
from .observed_model import ObservedModel
from .probe import views_by_layer
from .readout import describe_count
from .views import View, as_map, choose_tensor, describe
from .wrapped import check_module


@dataclass(frozen=True)
class LayerRow:
    """A layer of a model, in one forward pass.

    Attributes:
        name: the name under which it is recorded: ``decoder.up1``, or ``decoder.up1:interpolate`` for calls of a
            function.
        module: the class of the module; for calls, that of the module that makes them.
        function: the name of the function; empty for the output of a module.
        shapes: the shape of the tensor that is recorded, by call; empty if it cannot be recorded.
        note: why it cannot be recorded, or how its output is read; empty for a map ``(N, C, h, w)``.
        parameters: the number of its parameters, with those of its submodules; 0 for a function.
    """

    name: str
    module: str
    function: str
    shapes: tuple[tuple[int, ...], ...]
    note: str
    parameters: int


@dataclass(frozen=True, repr=False)
class LayerTree:
    """The output of :func:`layers`: iterating gives a row for each layer, printing it the table.

    Attributes:
        rows: the layers in the network's order; functions follow the module that calls them.
        network: the model's class.
        hidden: the number of deeper layers without a row.
    """

    rows: tuple[LayerRow, ...]
    network: str
    hidden: int = 0

    def __iter__(self) -> Iterator[LayerRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dicts(self) -> list[dict[str, Any]]:
        """A JSON-serialisable dictionary for each row."""
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        cells = [("layer", "module", "output", "parameters", "")]
        for row in self.rows:
            name = "  " * _depth(row) + (row.name if row.name != "" else row.module)
            shape = "; ".join(dict.fromkeys("x".join(map(str, shape)) for shape in row.shapes)) or "-"
            notes = [f"{len(row.shapes)} calls"] * (len(row.shapes) > 1) + [row.note] * bool(row.note)
            parameters = f"{row.parameters:,}" if row.parameters else ""
            cells.append(
                (name, f"{row.function}()" if row.function else row.module, shape, parameters, "; ".join(notes))
            )
        wide = [min(60, max(len(line[column]) for line in cells)) for column in range(4)]
        lines = [
            f"{name:{wide[0]}}  {module:{wide[1]}}  {shape:{wide[2]}}  {parameters:>{wide[3]}}  {note}".rstrip()
            for name, module, shape, parameters, note in cells
        ]
        if self.hidden:
            lines.append(f"and {self.hidden} deeper layers: choose with depth=...")
        return "\n".join(lines)

    __repr__ = __str__


def _depth(row: LayerRow) -> int:
    place = row.name.rpartition(":")[0] if row.function else row.name
    return (place.count(".") + 1 if place else 0) + bool(row.function)


def layers(
    model: nn.Module,
    images: Any,
    *,
    depth: int | None = None,
    mode: Mode = "eval",
    views: Mapping[str, View] | None = None,
) -> LayerTree:
    """List what can be recorded in a model, with the shapes of the outputs: the names that a ``Recorder`` takes.

    The model runs once, without gradients and without a trace in its training, as in an observation. Of functions,
    those in ``FUNCTIONS`` are listed, unless what one returns is the output of its module, as in ``nn.Upsample``.

    Args:
        model: any module.
        images: what the model is called with: a tensor ``(N, ...)``, or a dict of keyword arguments. One image is
            enough.
        depth: levels of the tree below the model; functions are one level below their module. None lists all.
        mode: ``eval``, or ``batch`` for a model that BatchNorm lets run on several images only.
        views: how to read a map from other outputs, by layer or glob, as for a ``Recorder``.

    Raises:
        FadevizError: if the model fails, has weights without values, or is scripted.

    Example:
        >>> class Up(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = nn.Conv2d(4, 2, 3, padding=1)
        ...     def forward(self, x):
        ...         return self.conv(nn.functional.interpolate(x, scale_factor=2))
        >>> print(layers(nn.Sequential(nn.Conv2d(3, 4, 1), Up()), torch.zeros(1, 3, 8, 8)))
        layer              module         output     parameters
        Sequential         Sequential     1x2x16x16          90
          0                Conv2d         1x4x8x8            16
          1                Up             1x2x16x16          74
            1:interpolate  interpolate()  1x4x16x16
            1.conv         Conv2d         1x2x16x16          74
    """
    if mode not in MODES:
        raise unknown_name("observation mode", str(mode), MODES)
    if depth is not None and whole_number(depth, "depth") < 1:
        raise FadevizError(f"depth is {depth}; it must be 1 or more")
    check_module(model)
    runner = ObservedModel(model)
    modules = all_modules(runner.module)
    check_initialised(modules)
    chosen = choose_layers(model, ["**", "**:*"] if list(runner.module.children()) else ["**:*"])
    observation = Observation(
        images=images,
        targets=None,
        loss_fn=_no_loss,
        step=0,
        mode=mode,
        autocast=None,
        images_at_once=None,
        layers=chosen.layers,
        required=frozenset(),
        model=runner.module,
        modules=chosen.modules,
        guarded=tuple(modules.values()),
        views=views_by_layer(views, chosen.layers, chosen.modules, type(runner.module).__name__),
        reduce=_no_reduction,
        channel_images=1,
    )
    collector = _ShapeCollector(observation, ("feature",))
    with exclusive(runner.module), runner.collecting(observation, collector.kinds, collector=collector):
        output = runner.forward(images, collector)
    network = type(runner.module).__name__
    whole = LayerRow("", network, "", (), describe(output), _parameters_of(runner.module))
    if isinstance(output, Tensor):
        whole = replace(whole, shapes=(tuple(output.shape),), note="")
    rows = (whole, *_rows(chosen.layers, collector))
    shown = tuple(row for row in rows if depth is None or _depth(row) <= depth)
    return LayerTree(shown, network, len(rows) - len(shown))


class _ShapeCollector(MapCollector):
    """Collects the shapes of the layers' outputs, and which functions return the output of their module."""

    def __init__(self, observation: Observation, kinds: Sequence[str]) -> None:
        super().__init__(observation, kinds)
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.notes: dict[str, str] = {}
        self.failures: dict[str, list[str]] = {}
        self._outputs: dict[str, list[Any]] = {}  # kept: the id of a tensor that is gone may be another's

    def on_layer_output(self, layer: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Note the shape of the tensor that would be recorded, or why there is none."""
        self.count(layer, "")
        self._outputs.setdefault(layer, []).append(output)
        view = self.observation.views[layer]
        try:
            tensor = choose_tensor(output, view, layer)
            height, width = as_map(tensor.detach(), view, layer).shape[-2:]
        except FadevizError as error:
            self.failures.setdefault(layer, []).append(_reason(layer, error))
            return
        self.shapes.setdefault(layer, []).append(tuple(tensor.shape))
        if tensor.ndim == 3:
            self.notes[layer] = f"tokens, read as {height}x{width}"
        elif output is not tensor:
            self.notes[layer] = f"from {type(output).__name__}"

    def recorded(self, layer: str, *, of_function: bool) -> tuple[tuple[tuple[int, ...], ...], str]:
        """The shapes that would be recorded, and a note; of a function, other calls may be left out."""
        shapes, failures = self.shapes.get(layer, []), self.failures.get(layer, [])
        note = self.notes.get(layer, "")
        if not shapes:
            return (), failures[0] if failures else note
        if of_function:
            one_each = [shape for shape in shapes if shape[0] == self.images]
            if 0 < len(one_each) < len(shapes):
                others = [shape[0] for shape in shapes if shape[0] != self.images]
                failures, shapes = [*failures, *(describe_count(maps, self.images) for maps in others)], one_each
            if failures:
                more = f"{len(failures)} other call{'s' * (len(failures) > 1)} left out: {failures[0]}"
                note = f"{note}; {more}" if note else more
            return tuple(shapes), note
        return tuple(shapes), failures[0] if failures else note

    def is_output_of_module(self, layer: str) -> bool:
        """Whether each call of a function returned what its module, called as often, returned."""
        own = self._outputs.get(layer.rpartition(":")[0], [])
        calls = self._outputs[layer]
        return len(own) == len(calls) and all(first is second for first, second in zip(own, calls, strict=True))


def _rows(chosen: Mapping[str, Layer], collector: _ShapeCollector) -> Iterator[LayerRow]:
    for name, layer in chosen.items():
        module = type(layer.module).__name__
        if layer.function:
            if name not in collector.uncalled and not collector.is_output_of_module(name):
                shapes, note = collector.recorded(name, of_function=True)
                yield LayerRow(name, module, layer.function, shapes, note, 0)
            continue
        shapes, note = collector.recorded(name, of_function=False)
        if name in collector.left_out:
            note = "is scripted" if isinstance(layer.module, torch.jit.ScriptModule) else "is not called"
        yield LayerRow(name, module, "", shapes, note, _parameters_of(layer.module))


def _parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _reason(layer: str, error: FadevizError) -> str:
    """Why an output is no map: the first clause of the message, without the layer."""
    return str(error).removeprefix(f"layer {layer!r} ").split(";")[0].split(". ")[0].rstrip(".")


def _no_loss(output: Any, targets: Any) -> Tensor:
    raise AssertionError("shapes need no loss")


def _no_reduction(value: Tensor) -> Tensor:
    raise AssertionError("shapes need no reduction")


__all__ = ["LayerRow", "LayerTree", "layers"]
