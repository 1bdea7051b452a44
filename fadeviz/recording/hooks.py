"""The hooks of one forward and backward pass, which turn outputs into numpy maps and errors into messages.

No other file of this package registers hooks.
"""

from __future__ import annotations

import math
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..errors import FadevizError
from ..ops.reassemble import KernelSoftmax
from ..storage.snapshots import READOUT_KINDS, Snapshot
from ..upsamplers import Skip, Upsampler
from .batch import count_images
from .functions import FunctionCalls, describe_functions
from .observation import Mode, Observation
from .readout import describe_count
from .views import as_map, choose_tensor

SUBMODULES = {"gate": "gate", "kernel_entropy": "kernels", "kernels": "kernels"}
"""The submodule of an operator from which a kind is recorded, for the kinds that show a part of it."""


MOST_CHANNELS = 2**31
"""Bytes of channels up to which an observation of a few images at a time keeps them, for the readouts."""


class MapCollector:
    """The maps that the hooks of one forward and backward pass have collected so far.

    Attributes:
        observation: the arguments of the observation.
        kinds: the kinds to record; none if the pass is only for its output.
        snapshots: the collected maps.
        images: the number of images in the pass; 0 if that is unknown.
        left_out: the layers that were left out, with the reason.
        uncalled: the layers of functions that matched a glob, but were not called.
        called: the functions called in each module, by its id, if calls are recorded.
        unread: the layers and calls whose channels give no readout, with the reason.
        channels: where a pass has only some of the images, the channels ``(B, C, h, w)`` of each layer and call on the
            CPU, for :meth:`add_readouts` when all are there.
        prediction: what the model predicted, ``(B, H, W)`` uint8; None if that is not recorded.
        error: the first error of a hook that the model may have caught.
    """

    def __init__(self, observation: Observation, kinds: Sequence[str], partial: bool = False) -> None:
        self.observation, self._partial = observation, partial
        self.kinds = kinds
        self.snapshots: list[Snapshot] = []
        self.images = 0
        self.left_out: dict[str, str] = {}
        self.uncalled: set[str] = set()
        self.called: dict[int, set[str]] = {}
        self.unread: dict[tuple[str, int], str] = {}
        self.channels: dict[tuple[str, int], Tensor] = {}
        self.prediction: NDArray[np.uint8] | None = None
        self.error: Exception | None = None
        self._edges: list[tuple[str, int, GradientEdge]] = []
        self._channel_bytes = 0
        self._calls: Counter[tuple[str, str]] = Counter()
        self._calls_left_out: dict[str, dict[int, FadevizError]] = {}
        self._maps: dict[tuple[str, int], int] = {}
        self._closed = self._recording = False
        self._pending: set[torch.device] = set()
        self._thread = threading.get_ident()
        self._in_other_threads: set[str] = set()

    def drop_layer(self, layer: str, error: FadevizError) -> None:
        """Leave the layer out if it was only matched by a glob; raise the error otherwise."""
        if layer in self.observation.required:
            raise error
        self.left_out.setdefault(layer, str(error))
        self.snapshots = [s for s in self.snapshots if s.layer != layer]
        self.channels = {key: value for key, value in self.channels.items() if key[0] != layer}
        self._edges = [edge for edge in self._edges if edge[0] != layer]

    def _cannot_record(self, layer: str, call: int, error: FadevizError) -> None:
        """Leave out a call of a function, of which other calls may be recorded; or a module's layer."""
        if not self.observation.layers[layer].function:
            self.drop_layer(layer, error)
            return
        self._calls_left_out.setdefault(layer, {})[call] = error

    def ignores(self, layer: str) -> bool:
        """Whether to ignore a call of a layer: a recomputation, or the training's own call in another thread."""
        if threading.get_ident() != self._thread:
            self._in_other_threads.add(layer)
            return True
        # Activation checkpointing runs layers again during the backward pass.
        return self._closed or layer in self.left_out

    @contextmanager
    def recording(self, layer: str) -> Iterator[None]:
        """The context of recording a layer: errors say where, and functions called meanwhile are not the model's."""
        self._recording, before = True, self._recording
        try:
            with self.observation.error_context("recording failed", layer):
                yield
        except Exception as error:
            self.error = error  # in case the model catches errors of its layers
            raise
        finally:
            self._recording = before

    def on_function_call(self, names: Sequence[str], module: nn.Module, function: str, output: Any) -> None:
        """Record what a function returned that a module called, under each of the names, like a layer's output."""
        if self._recording or self._closed or threading.get_ident() != self._thread:
            return
        self.called.setdefault(id(module), set()).add(function)
        for name in names:
            if not self.ignores(name):
                with self.recording(name):
                    self.on_layer_output(name, module, (), output)

    def on_layer_output(self, layer: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Reduce a layer's output to the recorded kinds."""
        kinds = self.kinds
        call = self.count(layer, "")
        view = self.observation.views[layer]
        try:
            tensor = choose_tensor(output, view, layer)
            # Reduced immediately: an in-place ReLU that follows would overwrite a kept reference.
            value = as_map(tensor.detach(), view, layer).float()
            if "gradient" in kinds:
                self._check_gradient(layer, tensor)
        except FadevizError as error:
            self._cannot_record(layer, call, error)
            return
        self._maps[layer, call] = len(value)
        if "feature" in kinds:
            with self.observation.error_context("reduce failed", layer):
                reduced = self.observation.reduce(value)
            if not isinstance(reduced, Tensor) or reduced.shape != (len(value), *value.shape[-2:]):
                got = tuple(reduced.shape) if isinstance(reduced, Tensor) else type(reduced).__name__
                raise FadevizError(
                    f"reduce returned {got} for {tuple(value.shape)} in layer {layer!r}. It must return (B, h, w)"
                )
            self._add(layer, call, "feature", reduced.detach().float())
        if "channels" in kinds:
            self._add(layer, call, "channels", value[: self.observation.channel_images])
        if not self._partial:
            self.add_readouts(layer, call, value)
        elif not set(READOUT_KINDS).isdisjoint(kinds):
            self._keep_channels(layer, call, value)
        of_function = bool(self.observation.layers[layer].function)
        if isinstance(module, Upsampler) and not of_function and not {"guide", "constant"}.isdisjoint(kinds):
            if len(inputs) < 2 or not isinstance(inputs[1], Skip):
                raise FadevizError(
                    f"layer {layer!r} was not called as upsampler(x, skip), so its guide is unknown. "
                    "Leave guide and constant out of the kinds, or call it like that"
                )
            x, skip = inputs[0], inputs[1]
            if "guide" in kinds:
                self._add(layer, call, "guide", skip.feature.detach().float()[: self.observation.channel_images])
            if "constant" in kinds:
                self._add(layer, call, "constant", self._constant_response(module, x, skip).mean(dim=1))
        if "gradient" in kinds:
            # The edge receives the gradient of this very value, even if it is modified in place later.
            self._edges.append((layer, call, get_gradient_edge(tensor)))

    def add_readouts(self, layer: str, call: int, channels: Tensor) -> None:
        """Add the readouts of a layer's channels ``(N, C, h, w)``, of all images, if these kinds are recorded."""
        readout = self.observation.readout
        if readout is None:
            return
        for kind in (kind for kind in READOUT_KINDS if kind in self.kinds):
            reason = readout.why_none(kind, tuple(channels.shape))
            if reason:
                self.unread.setdefault((layer, call), reason)
            else:
                self._add(layer, call, kind, readout.read(kind, channels))

    def _keep_channels(self, layer: str, call: int, channels: Tensor) -> None:
        """Keep the channels of some of the images for :meth:`add_readouts`, within ``MOST_CHANNELS``."""
        images = count_images(self.observation.images)[0]
        self._channel_bytes += channels.nbytes // max(1, len(channels)) * images
        if self._channel_bytes <= MOST_CHANNELS:
            self.channels[layer, call] = channels.to("cpu", copy=True)
        else:
            self.unread.setdefault(
                (layer, call),
                f"has too many channels to keep those of all {images} images: observe fewer images or layers",
            )

    def _check_gradient(self, layer: str, tensor: Tensor) -> None:
        if tensor.requires_grad:
            return
        reason = "runs without gradients (torch.no_grad, or a reentrant checkpoint)"
        if not (tensor.is_floating_point() or tensor.is_complex()):
            reason = f"returns {tensor.dtype}, which has no gradient"
        raise FadevizError(f"layer {layer!r} {reason}. Leave gradient out of the kinds, or choose another layer")

    def _constant_response(self, module: Upsampler, x: Tensor, skip: Skip) -> Tensor:
        """The operator's response to ones. Its submodules run again for this, which must not be recorded."""
        indices = None if skip.indices is None else skip.indices[:1]
        ones, guide = torch.ones_like(x[:1]), Skip(torch.ones_like(skip.feature[:1]), indices)
        self._closed = True
        try:
            # With running statistics: the variance of a constant is zero.
            with torch.no_grad(), observation_modes(module.modules(), "eval"):
                return module.forward(ones, guide).float()
        finally:
            self._closed = False

    def on_submodule_output(self, layer: str, kind: str, module: nn.Module, output: Tensor) -> None:
        """Reduce the output of an operator's gate or kernels."""
        call = self.count(layer, kind)
        value = output.detach().float()
        if kind == "kernels":
            self._add(layer, call, kind, value[: self.observation.channel_images])
            return
        if kind == "kernel_entropy":
            value = kernel_entropy(value, module.groups if isinstance(module, KernelSoftmax) else 1)
        self._add(layer, call, kind, value.mean(dim=1))

    def add_gradients(self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor] | None = None) -> None:
        """Add the gradient of a loss, or of outputs times cotangents, at every layer."""
        edges, self._edges = self._edges, []  # they keep the whole graph
        grads: Sequence[Tensor | None] = [None] * len(edges)
        if edges and outputs:
            with self.observation.error_context("the backward pass failed"):
                grads = torch.autograd.grad(outputs, [edge for *_, edge in edges], cotangents, allow_unused=True)
        used = {layer for (layer, *_), grad in zip(edges, grads, strict=True) if grad is not None}
        for (layer, call, _), grad in zip(edges, grads, strict=True):
            if grad is None:
                which = f" in call {call}" if layer in used else ""
                error = FadevizError(
                    f"layer {layer!r} does not influence the loss{which}, so it has no gradient. Choose another"
                )
                self._cannot_record(layer, call, error)
            elif layer not in self.left_out:
                grad = as_map(grad.detach(), self.observation.views[layer], layer)
                self._add(layer, call, "gradient", grad.float().relu().sum(dim=1))

    def add_prediction(self, output: Any, count: int | None = None) -> None:
        """Read what the model predicted from its output for ``count`` images, None for all, if that is recorded."""
        if self.observation.predictions is not None:
            with self.observation.error_context("predictions failed"):
                self.prediction = self.observation.predictions.read(output, count)

    def on_forward_end(self) -> None:
        """Stop recording, and drop the layers that did not run."""
        self._closed = True
        if self.error is not None:  # raised in a hook, and caught by the model
            raise self.error
        for layer, chosen in self.observation.layers.items() if self.kinds else ():
            if self._calls[layer, ""]:
                continue
            if not chosen.function:
                place = "thread that observes" if layer in self._in_other_threads else "forward pass"
                message = f"layer {layer!r} did not run in the {place}, so there is nothing to record"
                self.drop_layer(layer, FadevizError(message))
            elif layer in self.observation.required:
                place = f"layer {chosen.source.rpartition(':')[0]!r}" if chosen.source[0] != ":" else "the model itself"
                if isinstance(chosen.module, torch.jit.ScriptModule):
                    raise FadevizError(
                        f"layer {layer!r} cannot be recorded: {place} is scripted (torch.jit), so that its calls are "
                        "not seen. Choose the layer around it"
                    )
                called = describe_functions(self.called.get(id(chosen.module), ()))
                raise FadevizError(
                    f"layer {layer!r} cannot be recorded: {place} does not call {chosen.function}. Functions that it "
                    f"calls: {called}. List all that can be recorded: fadeviz.layers(model, images)"
                )
            else:
                self.uncalled.add(layer)

    def on_pass_end(self) -> None:
        """Number the calls of functions without those that cannot be recorded, and drop layers that have no others.

        A network calls ``torch.cat`` for sizes too, and ``F.interpolate`` for a position embedding, which is one map
        for all images: such calls say nothing against the others in the same module.
        """
        for layer, chosen in self.observation.layers.items() if self.kinds else ():
            count = self._calls[layer, ""]
            if not chosen.function or layer in self.left_out or not count:
                continue
            errors = self._calls_left_out.setdefault(layer, {})
            kept = [call for call in range(count) if call not in errors]
            if not kept:
                self.drop_layer(layer, errors[0])
                continue
            one_each = [call for call in kept if self._maps.get((layer, call)) == self.images]
            for call in (call for call in kept if one_each and call not in one_each):
                maps = self._maps[layer, call]
                errors[call] = FadevizError(f"layer {layer!r} {describe_count(maps, self.images)}")
            if errors:
                self._renumber(layer, one_each or kept)

    def _renumber(self, layer: str, kept: Sequence[int]) -> None:
        """Keep these calls of a layer, and count them from 0."""
        numbers = {call: number for number, call in enumerate(kept)}
        self.snapshots = [
            snapshot if snapshot.layer != layer else replace(snapshot, call=numbers[snapshot.call])
            for snapshot in self.snapshots
            if snapshot.layer != layer or snapshot.call in numbers
        ]

        def renumbered(entries: dict[tuple[str, int], Any]) -> dict[tuple[str, int], Any]:
            return {
                (name, call if name != layer else numbers[call]): value
                for (name, call), value in entries.items()
                if name != layer or call in numbers
            }

        self.channels, self.unread = renumbered(self.channels), renumbered(self.unread)

    def notes_on_calls(self) -> Iterator[str]:
        """A sentence on the calls of each recorded layer that were left out, for each reason."""
        for layer in self.observation.layers:
            errors = {} if layer in self.left_out else self._calls_left_out.get(layer, {})
            reasons = (re.sub(r" in call \d+", "", reason_of(layer, str(error))) for error in errors.values())
            for reason, number in Counter(reasons).items():
                yield f"left out: {number} of the {self._calls[layer, '']} calls of layer {layer!r}: {reason}"

    def synchronize(self) -> None:
        """Wait until the maps of a GPU have been copied to the CPU."""
        while self._pending:
            torch.cuda.synchronize(self._pending.pop())

    def count(self, layer: str, kind: str) -> int:
        """Count a call of a layer, or of its part that a kind shows; returns its index, from 0."""
        self._calls[layer, kind] += 1
        return self._calls[layer, kind] - 1

    def _add(self, layer: str, call: int, kind: str, value: Tensor) -> None:
        # A copy, because buffers may be reused, and memory shared with NumPy cannot be resized any more. GPUs copy
        # asynchronously, into pinned memory: waiting for each map would leave them idle.
        copy = value.to("cpu", copy=True, non_blocking=value.is_cuda, memory_format=torch.contiguous_format)
        if value.is_cuda:
            self._pending.add(value.device)
        array: NDArray[np.float32] = copy.numpy()
        self.snapshots.append(Snapshot(self.observation.step, layer, call, kind, array))


def reason_of(layer: str, message: str) -> str:
    """Why a layer or a call was left out: the message without the layer, and without the advice to choose another."""
    return re.sub(r"\.?( Choose another( layer)?)?$", "", message.removeprefix(f"layer {layer!r} "))


def kernel_entropy(kernels: Tensor, groups: int = 1) -> Tensor:
    """Entropy of every reassembly kernel over log K^2: ``(B, G*K*K, H, W) -> (B, G, H, W)`` in [0, 1].

    1 is a box blur; 0 selects a single neighbour.
    """
    b, channels, h, w = kernels.shape
    weights = kernels.reshape(b, groups, channels // groups, h, w)
    if weights.shape[2] == 1:
        return weights.new_zeros(b, groups, h, w)
    return torch.special.entr(weights).sum(dim=2) / math.log(weights.shape[2])


@contextmanager
def hooked(collector: MapCollector) -> Iterator[None]:
    """Register the hooks of one pass; all are removed at the end, also after an error."""
    observation, handles = collector.observation, []
    try:
        calls: dict[tuple[int, str], list[str]] = {}
        for layer, (source, module, function) in observation.layers.items() if collector.kinds else ():
            if function:
                calls.setdefault((id(module), function), []).append(layer)
                continue
            if isinstance(module, torch.jit.ScriptModule):
                message = (
                    f"layer {layer!r} is scripted (torch.jit), so it does not call hooks. Choose the layer around it"
                )
                collector.drop_layer(layer, FadevizError(message))
                continue
            handles.append(module.register_forward_hook(_layer_hook(layer, collector)))
            for kind, name in SUBMODULES.items():
                submodule = observation.modules.get(f"{source}.{name}")
                if kind in collector.kinds and submodule is not None:
                    handles.append(submodule.register_forward_hook(_submodule_hook(layer, kind, collector)))
        with _visible(calls, collector) if calls else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _visible(calls: Mapping[tuple[int, str], Sequence[str]], collector: MapCollector) -> FunctionCalls:
    """The mode in which the collector sees calls; ``calls`` names the layers by the module's id and the function."""

    def on_call(module: nn.Module, function: str, call: partial[Any]) -> Any:
        output = call()
        collector.on_function_call(calls.get((id(module), function), ()), module, function, output)
        return output

    return FunctionCalls(collector.observation.model, collector.observation.modules.values(), on_call)


def _layer_hook(layer: str, collector: MapCollector) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not collector.ignores(layer):
            with collector.recording(layer):
                collector.on_layer_output(layer, module, inputs, output)

    return hook


def _submodule_hook(layer: str, kind: str, collector: MapCollector) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not collector.ignores(layer):
            with collector.recording(layer):
                collector.on_submodule_output(layer, kind, module, output)

    return hook


@contextmanager
def observation_modes(modules: Iterable[nn.Module], mode: Mode) -> Iterator[None]:
    """Put the modules into the observation's mode, and restore their own modes afterwards."""
    # Module by module: model.train() afterwards would also switch layers that are frozen in eval mode on purpose.
    before = [(module, module.training) for module in modules]
    try:
        for module, _ in before:
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            module.training = mode == "batch" and is_norm
        yield
    finally:
        for module, training in before:
            module.training = training


_LOCK = threading.RLock()
"""Held during an observation, since modes, hooks and generators belong to the whole process."""


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """Make forward passes of other threads wait until the end of the block.

    Raises:
        FadevizError: if another thread is running the model now.
    """
    this_thread = threading.get_ident()

    def wait(module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() != this_thread:
            with _LOCK:
                pass

    with _LOCK:
        handle = model.register_forward_pre_hook(wait, prepend=True)
        try:
            _check_not_running(model, this_thread)
            yield
        finally:
            handle.remove()


def _check_not_running(model: nn.Module, this_thread: int) -> None:
    modules = {id(module) for module in model.modules()}
    code = nn.Module._call_impl.__code__
    for thread, frame in sys._current_frames().items():
        while thread != this_thread and frame is not None:
            if frame.f_code is code and id(frame.f_locals.get("self")) in modules:
                raise FadevizError(
                    f"{type(model).__name__} is running in another thread: an observation now would change its mode "
                    "there. Observe between two training steps, from the training thread"
                )
            frame = frame.f_back  # type: ignore[assignment]
