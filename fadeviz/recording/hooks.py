"""The hooks of one forward and backward pass, which turn outputs into numpy maps and errors into messages."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..errors import FadevizError
from ..ops.reassemble import KernelSoftmax
from ..storage.snapshots import Snapshot
from ..upsamplers import Skip, Upsampler
from .views import View, as_map, choose_tensor

Mode = Literal["eval", "batch"]

INSIDE = {"gate": "gate", "kernel_entropy": "kernels", "kernels": "kernels"}
"""Kinds that show a part of an operator, with the name of the submodule that they come from."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """The arguments of an observation."""

    images: Any
    targets: Any
    loss_fn: Callable[[Any, Any], Tensor]
    step: int
    mode: Mode
    autocast: torch.dtype | None
    images_at_once: int | None
    layers: Mapping[str, nn.Module]
    """The names of the recorded layers."""
    needed: frozenset[str]
    """The layers whose problems raise an error; the others were only matched by a glob."""
    parts: Mapping[str, nn.Module]
    """All modules of the model by name."""
    guarded: tuple[nn.Module, ...]
    """All modules that must be left unchanged: those of the model and of the loss."""
    views: Mapping[str, View]
    reduce: Callable[[Tensor], Tensor]
    channel_images: int

    @contextmanager
    def in_words(self, what: str, layer: str = "", given: str = "") -> Iterator[None]:
        """Turn errors of the model or the loss into one line: layer, what failed, step and mode."""
        try:
            yield
        except FadevizError:
            raise
        except Exception as error:
            if is_out_of_memory(error):  # the caller may retry with fewer images
                raise
            layer = layer or _deepest_layer(error, self.parts)
            where = f"{what}{f', in layer {layer!r}' if layer else ''} (step {self.step}, observed in {self.mode} mode)"
            text = next(iter(str(error).strip().splitlines()), "")
            raise FadevizError(f"{where}: {type(error).__name__}: {text:.300}{given}") from error


class Found:
    """What the hooks of one observation have collected so far."""

    def __init__(self, asked: Asked, kinds: Sequence[str]) -> None:
        self.asked = asked
        self.kinds = kinds
        self.snapshots: list[Snapshot] = []
        self.left_out: dict[str, str] = {}
        self.error: Exception | None = None
        self._edges: list[tuple[str, int, GradientEdge]] = []
        self._calls: Counter[tuple[str, str]] = Counter()
        self._over = False
        self._arriving: set[torch.device] = set()
        self._thread = threading.get_ident()
        self._elsewhere: set[str] = set()

    def refuse(self, layer: str, error: FadevizError) -> None:
        """Raise; or leave the layer out if it was only matched by a glob and nothing depends on it yet."""
        if layer in self.asked.needed:
            raise error
        self.left_out.setdefault(layer, str(error))
        self.snapshots = [s for s in self.snapshots if s.layer != layer]
        self._edges = [edge for edge in self._edges if edge[0] != layer]

    def is_not_for(self, layer: str) -> bool:
        """Whether to ignore a call: a recomputation, or the training's own call in another thread."""
        if threading.get_ident() != self._thread:
            self._elsewhere.add(layer)
            return True
        # Activation checkpointing runs layers again during the backward pass.
        return self._over or layer in self.left_out

    def layer_ran(self, layer: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Reduce the layer's output to the recorded kinds."""
        kinds = self.kinds
        call = self._count(layer, "")
        view = self.asked.views[layer]
        try:
            tensor = choose_tensor(output, view, layer)
            # Reduced immediately: an in-place ReLU that follows would overwrite a kept reference.
            value = as_map(tensor.detach(), view, layer).float()
            if "gradient" in kinds:
                self._needs_gradient(layer, tensor)
        except FadevizError as error:
            self.refuse(layer, error)
            return
        if "feature" in kinds:
            with self.asked.in_words("reduce failed", layer):
                reduced = self.asked.reduce(value)
            if not isinstance(reduced, Tensor) or reduced.shape != (len(value), *value.shape[-2:]):
                got = tuple(reduced.shape) if isinstance(reduced, Tensor) else type(reduced).__name__
                raise FadevizError(
                    f"reduce returned {got} for {tuple(value.shape)} in layer {layer!r}. It must return (B, h, w)"
                )
            self._add(layer, call, "feature", reduced.detach().float())
        if "channels" in kinds:
            self._add(layer, call, "channels", value[: self.asked.channel_images])
        if isinstance(module, Upsampler) and not {"guide", "constant"}.isdisjoint(kinds):
            if len(inputs) < 2 or not isinstance(inputs[1], Skip):
                raise FadevizError(
                    f"layer {layer!r} was not called as upsampler(x, skip), so its guide is unknown. "
                    "Leave guide and constant out of the kinds, or call it like that"
                )
            x, skip = inputs[0], inputs[1]
            if "guide" in kinds:
                self._add(layer, call, "guide", skip.feature.detach().float()[: self.asked.channel_images])
            if "constant" in kinds:
                self._add(layer, call, "constant", self._constant_response(module, x, skip).mean(dim=1))
        if "gradient" in kinds:
            # The edge is where the gradient of this very value arrives, also when it is modified in place later on.
            self._edges.append((layer, call, get_gradient_edge(tensor)))

    def _needs_gradient(self, layer: str, tensor: Tensor) -> None:
        if tensor.requires_grad:
            return
        why = "runs without gradients (torch.no_grad, or a reentrant checkpoint)"
        if not (tensor.is_floating_point() or tensor.is_complex()):
            why = f"gives {tensor.dtype}, which has no gradient"
        raise FadevizError(f"layer {layer!r} {why}. Leave gradient out of the kinds, or choose another layer")

    def _constant_response(self, module: Upsampler, x: Tensor, skip: Skip) -> Tensor:
        """The operator's response to ones. Its submodules run again for this, and must not be recorded twice."""
        indices = None if skip.indices is None else skip.indices[:1]
        ones, guide = torch.ones_like(x[:1]), Skip(torch.ones_like(skip.feature[:1]), indices)
        self._over = True
        try:
            # Running statistics: those of a constant would divide it by zero.
            with torch.no_grad(), unchanged_modes(module.modules(), "eval"):
                return module.forward(ones, guide).float()
        finally:
            self._over = False

    def part_ran(self, layer: str, kind: str, module: nn.Module, output: Tensor) -> None:
        """Reduce the output of an operator's gate or kernels."""
        call = self._count(layer, kind)
        value = output.detach().float()
        if kind == "kernels":
            self._add(layer, call, kind, value[: self.asked.channel_images])
            return
        if kind == "kernel_entropy":
            value = kernel_entropy(value, module.groups if isinstance(module, KernelSoftmax) else 1)
        self._add(layer, call, kind, value.mean(dim=1))

    def add_gradients(self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor] | None = None) -> None:
        """The gradient of a loss, or of outputs times cotangents, at every layer."""
        edges, self._edges = self._edges, []  # they keep the whole graph
        grads: Sequence[Tensor | None] = [None] * len(edges)
        if edges and outputs:
            with self.asked.in_words("the backward pass failed"):
                grads = torch.autograd.grad(outputs, [edge for *_, edge in edges], cotangents, allow_unused=True)
        used = {layer for (layer, *_), grad in zip(edges, grads, strict=True) if grad is not None}
        for (layer, call, _), grad in zip(edges, grads, strict=True):
            if grad is None:
                which = f"layer {layer!r}" if layer not in used else f"call {call} of layer {layer!r}"
                error = FadevizError(f"{which} does not influence the loss, so it has no gradient. Choose another")
                self.refuse(layer, error)
            elif layer not in self.left_out:
                grad = as_map(grad.detach(), self.asked.views[layer], layer)
                self._add(layer, call, "gradient", grad.float().relu().sum(dim=1))

    def forward_is_over(self) -> None:
        """Stop recording, and report the layers that are missing."""
        self._over = True
        if self.error is not None:  # raised in a hook, and caught by the model
            raise self.error
        for layer in self.asked.layers if self.kinds else ():
            if not self._calls[layer, ""]:
                where = "thread that observes" if layer in self._elsewhere else "forward pass"
                error = f"layer {layer!r} did not run in the {where}, so there is nothing to record"
                self.refuse(layer, FadevizError(error))

    def wait(self) -> None:
        """Wait until the values of all maps are there: those of a GPU are still on their way."""
        while self._arriving:
            torch.cuda.synchronize(self._arriving.pop())

    def _count(self, layer: str, kind: str) -> int:
        self._calls[layer, kind] += 1
        return self._calls[layer, kind] - 1

    def _add(self, layer: str, call: int, kind: str, value: Tensor) -> None:
        # A copy, because buffers may be reused, and memory shared with NumPy cannot be resized any more. A GPU copies
        # in its own time, into pinned memory: waiting for each map would keep it idle as often.
        copy = value.to("cpu", copy=True, non_blocking=value.is_cuda, memory_format=torch.contiguous_format)
        if value.is_cuda:
            self._arriving.add(value.device)
        array: NDArray[np.float32] = copy.numpy()
        self.snapshots.append(Snapshot(self.asked.step, layer, call, kind, array))


def kernel_entropy(kernels: Tensor, groups: int = 1) -> Tensor:
    """Entropy of every reassembly kernel over log K^2: ``(B, G*K*K, H, W) -> (B, G, H, W)`` in [0, 1].

    1 is a box blur; 0 takes one neighbour alone.
    """
    b, channels, h, w = kernels.shape
    weights = kernels.reshape(b, groups, channels // groups, h, w)
    if weights.shape[2] == 1:
        return weights.new_zeros(b, groups, h, w)
    return torch.special.entr(weights).sum(dim=2) / math.log(weights.shape[2])


@contextmanager
def hooked(found: Found) -> Iterator[None]:
    """The hooks of one pass; all are removed at the end, also after an error."""
    handles = []
    try:
        for layer, module in found.asked.layers.items() if found.kinds else ():
            if isinstance(module, torch.jit.ScriptModule):
                error = (
                    f"layer {layer!r} is scripted (torch.jit), so it does not call hooks. Choose the layer around it"
                )
                found.refuse(layer, FadevizError(error))
                continue
            handles.append(module.register_forward_hook(_layer_hook(layer, found)))
            for kind, part in INSIDE.items():
                inside = found.asked.parts.get(f"{layer}.{part}")
                if kind in found.kinds and inside is not None:
                    handles.append(inside.register_forward_hook(_part_hook(layer, kind, found)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer_hook(layer: str, found: Found) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found.is_not_for(layer):
            _noting_errors(found, layer, lambda: found.layer_ran(layer, module, inputs, output))

    return hook


def _part_hook(layer: str, kind: str, found: Found) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found.is_not_for(layer):
            _noting_errors(found, layer, lambda: found.part_ran(layer, kind, module, output))

    return hook


def _noting_errors(found: Found, layer: str, record: Callable[[], None]) -> None:
    try:
        with found.asked.in_words("recording failed", layer):
            record()
    except Exception as error:
        found.error = error  # kept in case the model catches errors of its layers
        raise


@contextmanager
def unchanged_modes(modules: Iterable[nn.Module], mode: Mode) -> Iterator[None]:
    """Put the modules into the observation's mode, and restore their own modes afterwards."""
    # Module by module: model.train() afterwards would also wake layers that were frozen in eval mode on purpose.
    before = [(module, module.training) for module in modules]
    try:
        for module, _ in before:
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            module.training = mode == "batch" and is_norm
        yield
    finally:
        for module, training in before:
            module.training = training


def _deepest_layer(error: BaseException, parts: Mapping[str, nn.Module]) -> str:
    """The innermost layer in the error's traceback."""
    names = {id(module): name for name, module in reversed(list(parts.items()))}
    layer, trace = "", error.__traceback__
    while trace is not None:
        layer = names.get(id(trace.tb_frame.f_locals.get("self")), layer)
        trace = trace.tb_next
    return layer


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory; torch has no exception class for this on a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
