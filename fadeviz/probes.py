"""Looking into a network at one instant: hooks that live for one forward and backward pass, and maps in numpy."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .errors import FadevizError, unknown_name
from .snapshots import CHANNEL_KINDS, KINDS, Snapshot
from .upsamplers import Skip, Upsampler
from .upsamplers.reassemble import KernelSoftmax
from .views import View, as_map, choose_tensor

Mode = Literal["eval", "batch"]
MODES = ("eval", "batch")

_INSIDE = {"gate": "gate", "kernel_entropy": "kernels", "kernels": "kernels"}
"""Kinds that show a part of an operator: the name of the submodule whose output they are made of."""


class Probe:
    """Maps of a model's layers for a fixed batch, without a trace in the training.

    Hooks exist only inside :meth:`observe`. The model's modes, BatchNorm statistics, gradients and the random state
    are afterwards what they were, also when an error is raised.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
        >>> probe = Probe(model, layers="0", kinds=("feature", "gradient"))
        >>> batch, target = torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)
        >>> [s.kind for s in probe.observe(batch, target, nn.functional.cross_entropy, step=0)]
        ['feature', 'gradient']
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | nn.Module | Sequence[str | nn.Module] = "decoder.*.upsample",
        kinds: str | Sequence[str] | None = None,
        channel_images: int = 1,
        *,
        views: Mapping[str, View] | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Find the layers.

        Args:
            model: any module.
            layers: dotted names or globs, comma-separated or as a sequence; ``*`` stands for one part of a name,
                ``**`` for any number: ``decoder.*.upsample``, ``**.gate``. Modules of the model are fine too.
            kinds: names in ``KINDS``, comma-separated or as a sequence; or ``all`` for what there is of them; None
                takes feature, gradient and what the layers have of gate and kernel_entropy. A kind is recorded of the
                layers that have it.
            channel_images: how many of the observed images the large kinds keep, those with many maps an image.
            views: by layer or glob, how to read a map ``(B, C, h, w)`` from the output; needed where a layer gives
                several tensors, or tokens on a grid that is no square. The first that fits counts.
            reduce: ``(B, C, h, w) -> (B, h, w)``, makes the kind ``feature``; None takes the mean over channels.

        Raises:
            FadevizError: a name that fits no layer, no such kind, or a kind that none of the layers has.
        """
        self.model = model
        self.notes: list[str] = []
        self._modules = {_plain(name): module for name, module in model.named_modules() if name}
        self.layers = find_layers(self._modules, layers, type(model).__name__)
        self.reduce = reduce if reduce is not None else _mean_of_channels
        views = dict(views or {})
        for pattern in views:
            find_layers(self._modules, pattern, type(model).__name__)
        self.views = {
            layer: next((view for pattern, view in views.items() if _fits(pattern, layer)), View())
            for layer in self.layers
        }
        self.channel_images = channel_images
        having = {k: [n for n in self.layers if f"{n}.{part}" in self._modules] for k, part in _INSIDE.items()}
        for kind in ("guide", "constant"):
            having[kind] = [name for name in self.layers if isinstance(self._modules[name], Upsampler)]
        there = [kind for kind in KINDS if having.get(kind, self.layers)]
        if kinds is None:
            kinds = [kind for kind in there if kind not in CHANNEL_KINDS and kind != "constant"]
        elif isinstance(kinds, str):
            kinds = there if kinds.strip() == "all" else [kind.strip() for kind in kinds.split(",")]
        for kind in kinds:
            if kind not in KINDS:
                raise unknown_name("kind", kind, KINDS)
            if kind in having and not having[kind]:
                raise FadevizError(
                    f"none of the layers {', '.join(self.layers)} has {_INSIDE.get(kind, kind)!r}: there is no {kind} "
                    "to record. Leave it out of --kinds, or choose an operator that has one, e.g. fade"
                )
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)

    def observe(
        self,
        images: Any,
        targets: Any,
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        step: int,
        mode: Mode = "eval",
    ) -> list[Snapshot]:
        """Send the observation batch through the model and return the maps.

        Args:
            images: what the model is called with, on its device: a tensor ``(N, ...)``, or a dict of keyword arguments.
            targets: second argument of ``loss_fn``.
            loss_fn: called as ``loss_fn(model(images), targets)``, gives a scalar; needed for gradients.
            step: the number of optimiser steps done.
            mode: ``eval`` normalises with BatchNorm's running statistics, as a checkpoint would; ``batch`` with the
                statistics of the observed images, on copies of the buffers. Early on the running statistics lag
                behind the weights, and eval maps show that lag.

        Returns:
            Snapshots in float32 numpy, in the order of the layers and of ``KINDS``.

        Raises:
            FadevizError: a layer that did not run, gave no map, or does not influence the loss.
        """
        if mode not in MODES:
            raise unknown_name("observation mode", mode, MODES)
        found = _Found(step, self)
        device = next((value.device for value in _tensors(images)), torch.device("cpu"))
        devices = [device.index or 0] if device.type == "cuda" else []
        with (
            _unchanged_modes(self.model, mode),
            torch.random.fork_rng(devices),
            # The maps are those of float32 arithmetic whatever the training's precision is.
            torch.autocast(device.type, enabled=False),
            torch.set_grad_enabled("gradient" in self.kinds),
            # A compiled model would not call hooks that were added after it was compiled.
            torch.compiler.set_stance("force_eager"),
            _hooks(self, found),
        ):
            # A leaf of its own: the graph then reaches every layer even when all weights are frozen.
            leaves = _leaves(images, "gradient" in self.kinds)
            output = self._forward(leaves, mode)
            found.forward_is_over()
            if "gradient" in self.kinds:
                loss = loss_fn(output, targets)
                found.add_gradients(loss)
        order = {(layer, kind): i for i, (layer, kind) in enumerate((a, k) for a in self.layers for k in self.kinds)}
        return sorted(found.snapshots, key=lambda s: (order[s.layer, s.kind], s.call))

    def _forward(self, images: Any, mode: Mode) -> Any:
        named = images if isinstance(images, Mapping) else {}
        placed = () if isinstance(images, Mapping) else (images,)
        if mode == "eval":
            return self.model(*placed, **named)
        # DataParallel cannot be called with other buffers; what it wraps can.
        model = self.model.module if isinstance(self.model, nn.DataParallel) else self.model
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return torch.func.functional_call(model, buffers, placed, dict(named))


def _tensors(images: Any) -> list[Tensor]:
    values = images.values() if isinstance(images, Mapping) else [images]
    return [value for value in values if isinstance(value, Tensor)]


def _leaves(images: Any, wanted: bool) -> Any:
    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(wanted and value.is_floating_point())

    return {key: leaf(value) for key, value in images.items()} if isinstance(images, Mapping) else leaf(images)


class _Found:
    """What the hooks of one observation have seen so far."""

    def __init__(self, step: int, probe: Probe) -> None:
        self.step = step
        self.probe = probe
        self.snapshots: list[Snapshot] = []
        self._edges: list[tuple[str, int, GradientEdge]] = []
        self._calls: Counter[tuple[str, str]] = Counter()
        self._over = False

    def layer_ran(self, layer: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self._over:  # activation checkpointing runs layers again during the backward pass
            return
        kinds = self.probe.kinds
        call = self._count(layer, "")
        view = self.probe.views[layer]
        tensor = choose_tensor(output, view, layer)
        # Reduced here and now: a kept reference would be overwritten by an in-place ReLU that follows.
        value = as_map(tensor.detach(), view, layer).float()
        if "feature" in kinds:
            reduced = self.probe.reduce(value)
            if not isinstance(reduced, Tensor) or reduced.shape != (len(value), *value.shape[-2:]):
                got = tuple(reduced.shape) if isinstance(reduced, Tensor) else type(reduced).__name__
                raise FadevizError(
                    f"reduce made {got} of {tuple(value.shape)} in layer {layer!r}. It must give (B, h, w)"
                )
            self._add(layer, call, "feature", reduced.detach().float())
        if "channels" in kinds:
            self._add(layer, call, "channels", value[: self.probe.channel_images])
        if isinstance(module, Upsampler) and not {"guide", "constant"}.isdisjoint(kinds):
            if len(inputs) < 2 or not isinstance(inputs[1], Skip):
                raise FadevizError(
                    f"layer {layer!r} was not called as upsampler(x, skip), so that its guide is unknown. "
                    "Leave guide and constant out of the kinds, or call it so"
                )
            x, skip = inputs[0], inputs[1]
            if "guide" in kinds:
                self._add(layer, call, "guide", skip.feature.detach().float()[: self.probe.channel_images])
            if "constant" in kinds:
                self._add(layer, call, "constant", self._constant_response(module, x, skip).mean(dim=1))
        if "gradient" in kinds:
            if not tensor.requires_grad:
                raise FadevizError(
                    f"layer {layer!r} runs without gradients (torch.no_grad, or a reentrant checkpoint). "
                    "Leave gradient out of the kinds, or choose another layer"
                )
            # The edge is where the gradient of this very value arrives, also when it is modified in place later on.
            self._edges.append((layer, call, get_gradient_edge(tensor)))

    def _constant_response(self, module: Upsampler, x: Tensor, skip: Skip) -> Tensor:
        """What the operator makes of ones. Its own parts run again meanwhile: they are not to be recorded twice."""
        indices = None if skip.indices is None else skip.indices[:1]
        ones, guide = torch.ones_like(x[:1]), Skip(torch.ones_like(skip.feature[:1]), indices)
        self._over = True
        try:
            # Running statistics: those of a constant would divide it by zero.
            with torch.no_grad(), _unchanged_modes(module, "eval"):
                return module.forward(ones, guide).float()
        finally:
            self._over = False

    def part_ran(self, layer: str, kind: str, module: nn.Module, output: Tensor) -> None:
        if self._over:
            return
        call = self._count(layer, kind)
        value = output.detach().float()
        if kind == "kernels":
            self._add(layer, call, kind, value[: self.probe.channel_images])
            return
        if kind == "kernel_entropy":
            value = kernel_entropy(value, module.groups if isinstance(module, KernelSoftmax) else 1)
        self._add(layer, call, kind, value.mean(dim=1))

    def add_gradients(self, loss: Tensor) -> None:
        grads = torch.autograd.grad(loss, [edge for *_, edge in self._edges], allow_unused=True)
        for (layer, call, _), grad in zip(self._edges, grads, strict=True):
            if grad is None:
                raise FadevizError(
                    f"layer {layer!r} does not influence the loss, so it has no gradient. Choose another"
                )
            grad = as_map(grad.detach(), self.probe.views[layer], layer)
            self._add(layer, call, "gradient", grad.float().relu().sum(dim=1))

    def forward_is_over(self) -> None:
        self._over = True
        for layer in self.probe.layers:
            if not self._calls[layer, ""]:
                raise FadevizError(
                    f"layer {layer!r} did not run in the forward pass, so there is nothing to record of it"
                )

    def _count(self, layer: str, kind: str) -> int:
        self._calls[layer, kind] += 1
        return self._calls[layer, kind] - 1

    def _add(self, layer: str, call: int, kind: str, value: Tensor) -> None:
        array: NDArray[np.float32] = value.contiguous().cpu().numpy()
        # .cpu() of a CPU tensor is a view: the copy keeps what was seen when buffers are reused.
        self.snapshots.append(Snapshot(self.step, layer, call, kind, array.copy()))


def kernel_entropy(kernels: Tensor, groups: int = 1) -> Tensor:
    """Entropy of every reassembly kernel over log K^2: ``(B, G*K*K, H, W) -> (B, G, H, W)`` in [0, 1].

    1 is a box blur; 0 takes one neighbour alone.
    """
    b, channels, h, w = kernels.shape
    weights = kernels.reshape(b, groups, channels // groups, h, w)
    if weights.shape[2] == 1:
        return weights.new_zeros(b, groups, h, w)
    return torch.special.entr(weights).sum(dim=2) / math.log(weights.shape[2])


def find_layers(
    modules: Mapping[str, nn.Module], patterns: str | nn.Module | Sequence[str | nn.Module], network: str
) -> tuple[str, ...]:
    """The names among ``modules`` that fit the patterns, or are the modules given, in the network's order.

    Raises:
        FadevizError: a pattern that fits none; lists the nearest names.
    """
    names = list(modules)
    if isinstance(patterns, str):
        patterns = patterns.split(",")
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, nn.Module) else patterns:
        if isinstance(pattern, nn.Module):
            fits = {name for name in names if modules[name] is pattern}
            if not fits:
                raise FadevizError(f"the {type(pattern).__name__} given as a layer is no part of {network}")
        else:
            fits = {name for name in names if _fits(pattern.strip(), name)}
        if not fits:
            # What is called as a function cannot be hooked; who looks for it finds the modules around it.
            raise FadevizError(
                f"{unknown_name(f'layer in {network}', str(pattern).strip(), names)} A function such as F.interpolate "
                "is no layer: choose the module that gives its input or takes its output"
            )
        chosen |= fits
    return tuple(name for name in names if name in chosen)


def _fits(pattern: str, name: str) -> bool:
    parts = re.split(r"(\*\*|\*)", _plain(pattern))
    expression = "".join({"**": ".*", "*": "[^.]+"}.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(expression, name) is not None


def _mean_of_channels(value: Tensor) -> Tensor:
    return value.mean(dim=1)


def _plain(name: str) -> str:
    # Wrappers put their own name in front: DataParallel "module.", torch.compile "_orig_mod.".
    return re.sub(r"(^|\.)(module|_orig_mod)(?=\.)", "", name).lstrip(".")


@contextmanager
def _hooks(probe: Probe, found: _Found) -> Iterator[None]:
    handles = []
    try:
        for layer in probe.layers:
            handles.append(probe._modules[layer].register_forward_hook(_layer_hook(layer, found)))
            for kind, part in _INSIDE.items():
                module = probe._modules.get(f"{layer}.{part}")
                if kind in probe.kinds and module is not None:
                    handles.append(module.register_forward_hook(_part_hook(layer, kind, found)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer_hook(layer: str, found: _Found) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        found.layer_ran(layer, module, inputs, output)

    return hook


def _part_hook(layer: str, kind: str, found: _Found) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        found.part_ran(layer, kind, module, output)

    return hook


@contextmanager
def _unchanged_modes(model: nn.Module, mode: Mode) -> Iterator[None]:
    # Module by module: model.train() afterwards would also wake layers that were frozen in eval mode on purpose.
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            module.training = mode == "batch" and is_norm
        yield
    finally:
        for module, training in before:
            module.training = training
