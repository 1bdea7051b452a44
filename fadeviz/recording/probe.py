"""Observing a network at one instant: the maps of its layers in one forward and backward pass, as numpy arrays."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import FadevizError, unknown_name
from ..storage.snapshots import CHANNEL_KINDS, KINDS, READOUT_KINDS, Snapshot
from ..upsamplers import Upsampler
from .chunks import ChunkedObserver, half_precision_of
from .functions import FUNCTIONS, describe_functions, split_function
from .hooks import SUBMODULES, MapCollector, exclusive, reason_of
from .layer_choice import Layer, Layers, choose_layers
from .layer_names import find_layers, name_matches
from .masks import whole_number
from .modules import all_modules, check_initialised
from .observation import MODES, Mode, Observation
from .observed_model import ObservedModel
from .predictions import PredictionReader
from .readout import LEAST_IMAGES, ReadoutTargets
from .views import View


class Probe:
    """Records maps of a model's layers for a fixed batch, without leaving a trace in the training.

    Hooks exist only inside :meth:`observe`, which restores the model's modes, buffers, plain attributes, gradients and
    the random state, even after an error; a loss that is a module, or refers to one, is treated like the model. State
    outside the modules (generators and counters in closures or in objects of other classes) is not restored:
    :func:`fadeviz.recording.state.state_changes` shows what an observation changed. The model's other hooks run as they
    do in training, since the model may need them.

    Attributes:
        layers: the names of the recorded layers. The first observation narrows globs down to the layers that ran and
            returned a map (with a gradient, if that is recorded).
        kinds: the recorded kinds, in the order of ``KINDS``. The first observation drops readouts that no layer has.
        predictions: reads what the model predicts from its output; None records no predictions.
        prediction: what the model predicted in the last observation, ``(N, H, W)`` uint8; None without ``predictions``.

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
        layers: Layers = "decoder.*.upsample",
        kinds: str | Sequence[str] | None = None,
        channel_images: int = 1,
        *,
        views: Mapping[str, View] | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        objects: NDArray[np.bool_] | None = None,
        predictions: PredictionReader | None = None,
    ) -> None:
        """Find the layers.

        Args:
            model: any module.
            layers: dotted names or globs, comma-separated or as a sequence; ``*`` stands for one part of a name,
                ``**`` for any number: ``decoder.*.upsample``, ``**.gate``. Modules of the model are fine too. A module
                that is used in several places has several names; a glob takes the first. What a function returns that
                has no module is named after the module that calls it: ``decoder.up1:interpolate``, or
                ``:interpolate`` for a call of the model itself; ``**:*`` takes every call of one of ``FUNCTIONS``. A
                mapping gives layers names of one's own: ``{"up1": "decoder.up1:interpolate"}``.
            kinds: names in ``KINDS``, comma-separated or as a sequence; ``all`` takes every kind that the layers have;
                None takes feature, gradient, readout and, if the layers have them, gate and kernel_entropy. A kind is
                recorded for the layers that have it; readout and readout_contour only with ``objects``.
            channel_images: the number of observed images for which kinds with many maps per image are kept.
            views: by layer or glob, how to read a map ``(B, C, h, w)`` from the output; needed if a layer returns
                several tensors, or tokens on a grid that is not square. The first match counts.
            reduce: ``(B, C, h, w) -> (B, h, w)``, which makes the kind ``feature``; None takes the mean over channels.
            objects: what is inside in each image that will be observed, ``(N, H, W)`` at any resolution; readouts need
                4 images or more with an inside and an outside.
            predictions: reads what the model predicts from the output of the same forward pass.

        Raises:
            FadevizError: if a name matches no layer or two modules, or a name of one's own several layers; if a kind is
                unknown, none of the layers has it or the objects do not suffice for it; or if the model is scripted.
        """
        self.model = model
        self._runner = ObservedModel(model)
        self._chunked = ChunkedObserver(self._runner)
        network = type(model).__name__
        self._choice = choose_layers(model, layers)
        self.layers = tuple(self._choice.layers)
        self._settled = False
        self._uncalled: set[str] = set()
        self._calls: dict[str, int] = {}
        self.reduce = reduce if reduce is not None else _mean_of_channels
        self.views = views_by_layer(views, self._choice.layers, self._choice.modules, network)
        self.predictions = predictions
        self.prediction: NDArray[np.uint8] | None = None
        self.channel_images = whole_number(channel_images, "channel_images")
        if self.channel_images < 1:
            raise FadevizError(f"channel_images is {channel_images}; it must be 1 or more")
        self._readout = None if objects is None else ReadoutTargets(objects)
        self._kinds_named = kinds is not None and kinds != "all"
        usable = 0 if self._readout is None else self._readout.usable
        self.kinds = _choose_kinds(kinds, self._choice.layers, self._choice.modules, usable)

    @property
    def sources(self) -> dict[str, str]:
        """The names in the model of the layers that are recorded under names of one's own."""
        chosen = self._choice.layers
        return {name: chosen[name].source for name in self.layers if chosen[name].source != name}

    def may_be_absent(self, layer: str) -> bool:
        """Whether a layer stands for calls that matched a glob: it is recorded only if there are any."""
        chosen = self._choice.layers.get(layer)
        return chosen is not None and bool(chosen.function) and layer not in self._choice.exact

    @property
    def notes(self) -> list[str]:
        """What was left out and why, and other remarks on the observations so far; one sentence each."""
        return self._runner.notes

    def settle(self, layers: Sequence[str]) -> None:
        """Restrict the layers to these, which an earlier observation recorded.

        Resumed recordings leave out the same layers as before.

        Raises:
            FadevizError: if a name is not among the layers, or a layer requested by name is missing in ``layers``.
        """
        for name in layers:
            if name not in self.layers:
                raise unknown_name(f"layer among those requested of {type(self.model).__name__}", name, self.layers)
        missing = [name for name in self.layers if name in self._choice.exact and name not in layers]
        if missing:
            raise FadevizError(f"layer {missing[0]!r} was not recorded before. Leave it out, or start a new run")
        self.layers = tuple(name for name in self.layers if name in layers)
        self._settled = True

    def resume(self, kinds: Sequence[str], objects: NDArray[np.bool_] | None = None) -> None:
        """Continue a recording of these kinds: leave out the readouts that were not recorded before.

        Recordings by versions without readouts stay without them, unless they are requested by name. ``objects``
        replaces those of the constructor, if the recording has others.
        """
        if objects is not None:
            self._readout = ReadoutTargets(objects)
        if not self._kinds_named:
            self.kinds = tuple(kind for kind in self.kinds if kind in kinds or kind not in READOUT_KINDS)

    def observe(
        self,
        images: Any,
        targets: Any,
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        step: int,
        mode: Mode = "eval",
        autocast: torch.dtype | None = None,
        images_at_once: int | None = None,
    ) -> list[Snapshot]:
        """Run the observation batch through the model and return the maps.

        Args:
            images: what the model is called with: a tensor ``(N, ...)``, or a dict of keyword arguments. Copies are
                moved to the model's device, and made bfloat16 or float16 where its weights are.
            targets: second argument of ``loss_fn``, likewise on the model's device.
            loss_fn: called as ``loss_fn(model(images), targets)``, returns a scalar; needed for gradients.
            step: the number of optimiser steps done.
            mode: ``eval`` normalises with BatchNorm's running statistics, as a checkpoint would; ``batch`` with the
                statistics of the observed images, on copies of the buffers. Early in training the running statistics
                lag behind the weights, and eval maps show that lag. Loss modules are in the same mode.
            autocast: bfloat16 or float16, to observe under autocast as the training runs. None uses the precision of
                the weights, and autocast only if the model does not run in float32; ``notes`` then says so.
            images_at_once: the number of images that are in the model at a time in ``eval`` mode, to save memory. The
                maps are the same up to rounding and the gradients are those of the whole batch's loss, at the price of
                a second forward pass. Ignored if maps depend on the other images of the batch, or if the loss reads
                more of the model than its output. None takes all images up to 2^20 pixels, and chunks of 2^19 pixels
                above that.

        Returns:
            Snapshots in float32 numpy, in the order of the layers and of ``KINDS``.

        Raises:
            FadevizError: if a layer does not run, returns no map, or does not influence the loss; if the model or the
                loss fails, with the layer; if lazy modules are uninitialised; or if the model is running in another
                thread.
        """
        if mode not in MODES:
            raise unknown_name("observation mode", str(mode), MODES)
        modules = all_modules(self._runner.module, loss_fn)
        check_initialised(modules)
        observation = Observation(
            images=images,
            targets=targets,
            loss_fn=loss_fn,
            step=operator.index(step),
            mode=mode,
            autocast=autocast,
            images_at_once=images_at_once,
            layers={name: self._choice.layers[name] for name in self.layers},
            required=frozenset(self.layers) if self._settled else self._choice.exact,
            model=self._runner.module,
            modules=self._choice.modules,
            guarded=tuple(modules.values()),
            views=self.views,
            reduce=self.reduce,
            channel_images=self.channel_images,
            readout=self._readout,
            predictions=self.predictions,
        )
        with exclusive(self._runner.module):
            collector = self._observe(observation)
        self._runner.end_observation()
        self.prediction = collector.prediction
        for note in collector.notes_on_calls():
            self._runner.note(note)
        if self._settled:
            self._note_called_later(collector)
        else:
            self._leave_out_uncalled(collector)
            self._leave_out(collector.left_out)
            self._leave_out_readouts(collector)
        order = {(layer, kind): i for i, (layer, kind) in enumerate((a, k) for a in self.layers for k in self.kinds)}
        snapshots = [s for s in collector.snapshots if s.layer in self.layers]
        self._note_other_calls(snapshots, observation.step)
        return sorted(snapshots, key=lambda s: (order[s.layer, s.kind], s.call))

    def _observe(self, observation: Observation) -> MapCollector:
        try:
            return self._chunked.observe(observation, self.kinds) or self._observe_at_once(observation)
        except FadevizError as error:
            half = half_precision_of(error.__cause__) if observation.autocast is None else None
            if half is None:
                raise
            try:
                observation = dataclasses.replace(observation, autocast=half)
                collector = self._chunked.observe(observation, self.kinds) or self._observe_at_once(observation)
            except FadevizError:
                raise error from error.__cause__
        dtype = str(half).removeprefix("torch.")
        self._runner.note(f"observed under autocast to {dtype}, because it does not run in plain float32")
        return collector

    def _observe_at_once(self, observation: Observation) -> MapCollector:
        with self._runner.collecting(observation, self.kinds) as collector:
            output = self._runner.forward(observation.images, collector)
            collector.add_prediction(output)
            if "gradient" in self.kinds:
                collector.add_gradients([self._runner.loss(output, observation)])
        return collector

    def _leave_out_uncalled(self, collector: MapCollector) -> None:
        """Restrict the layers to those whose functions are called, and refuse globs for which none is."""
        for pattern, names in self._choice.calls.items():
            modules = {id(self._choice.layers[name].module) for name in names if name in self._choice.layers}
            if names and collector.uncalled.issuperset(names):
                called = describe_functions(name for one in modules for name in collector.called.get(one, ()))
                raise FadevizError(
                    f"no layer {pattern!r} can be recorded: no module of {type(self.model).__name__} that it matches "
                    f"calls {_wanted(pattern)}. Functions that they call: {called}. List all that can be recorded: "
                    "fadeviz.layers(model, images)"
                )
        self.layers = tuple(name for name in self.layers if name not in collector.uncalled)
        self._uncalled = set(collector.uncalled)

    def _note_called_later(self, collector: MapCollector) -> None:
        """Note the functions that a glob matches, and that were not called when the recording began."""
        for name in sorted(self._uncalled):
            layer = self._choice.layers[name]
            if layer.function in collector.called.get(id(layer.module), ()):
                self._uncalled.remove(name)
                self._runner.note(f"layer {name!r} is not recorded: it was not called yet when the recording began")

    def _note_other_calls(self, snapshots: Sequence[Snapshot], step: int) -> None:
        """Note the layers that run more or less often than before: a call's number may stand for another call."""
        counts: dict[str, int] = {}
        for snapshot in snapshots:
            counts[snapshot.layer] = max(counts.get(snapshot.layer, 0), snapshot.call + 1)
        for name, count in counts.items():
            before = self._calls.setdefault(name, count)
            if before and count != before:
                self._calls[name] = 0  # noted once
                self._runner.note(
                    f"layer {name!r} has {count} call{'s' * (count != 1)} at step {step}, and had {before} before: the "
                    "number of a call may stand for another one"
                )

    def _leave_out(self, left_out: Mapping[str, str]) -> None:
        """Restrict the layers to those that could be recorded, and note the reasons why others could not."""
        if left_out and len(left_out) == len(self.layers):
            raise FadevizError(f"there is nothing to record: {'; '.join(left_out.values())}")
        reasons = {name: reason_of(name, message) for name, message in left_out.items()}
        for reason in _by_reason(reasons):
            self._runner.note(f"left out: {reason}")
        self.layers = tuple(name for name in self.layers if name not in left_out)
        self._settled = True

    def _leave_out_readouts(self, collector: MapCollector) -> None:
        """Note the layers without a readout, and record no readout if no layer has one."""
        found = {layer: reason for (layer, _), reason in reversed(collector.unread.items())}
        unread = {layer: found[layer] for layer in self.layers if layer in found}
        recorded = {snapshot.kind for snapshot in collector.snapshots}
        missing = [kind for kind in self.kinds if kind in READOUT_KINDS and kind not in recorded]
        reasons = _by_reason(unread)
        if missing and self._kinds_named:
            raise FadevizError(f"there is no {' and no '.join(missing)} to record: {'; '.join(reasons)}. Leave it out")
        for reason in reasons:
            self._runner.note(f"no readout: {reason}")
        self.kinds = tuple(kind for kind in self.kinds if kind not in missing)


def _wanted(pattern: str) -> str:
    """The functions that a glob for calls may match."""
    function = split_function(pattern)[1]
    several = [name for name in FUNCTIONS if name_matches(function, name)] if "*" in function else [function]
    return (", ".join(several[:-1]) + " or " if len(several) > 1 else "") + several[-1]


def _by_reason(reasons: Mapping[str, str]) -> list[str]:
    """One clause for each reason: the layers that it applies to, and the reason."""
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    return [f"{', '.join(f'layer {name!r}' for name in names)} {reason}" for reason, names in layers.items()]


def views_by_layer(
    views: Mapping[str, View] | None, layers: Mapping[str, Layer], modules: Mapping[str, nn.Module], network: str
) -> dict[str, View]:
    """The first matching view of each layer, under its own name or the model's; the default one where none matches."""
    if not isinstance(views, Mapping | None):
        raise FadevizError(f"views is a {type(views).__name__}: a dict of View by layer or glob is needed")
    views = dict(views or {})
    known = {name: (name, layer.source) for name, layer in layers.items()}
    for pattern, view in views.items():
        if not isinstance(view, View):
            raise FadevizError(f"the view of {pattern!r} is a {type(view).__name__}: a fadeviz.View is needed")
        if not any(name_matches(pattern, name) for names in known.values() for name in names):
            find_layers(modules, pattern, network)
    return {
        layer: next((view for pattern, view in views.items() if any(name_matches(pattern, n) for n in names)), View())
        for layer, names in known.items()
    }


def _choose_kinds(
    kinds: str | Sequence[str] | None, layers: Mapping[str, Layer], modules: Mapping[str, nn.Module], objects: int
) -> tuple[str, ...]:
    """The kinds to record, in the order of ``KINDS``; ``objects`` is the number of images with one."""
    # The layers that have a kind, for the kinds that not every layer has.
    own = {name: layer for name, layer in layers.items() if not layer.function}
    layers_with = {
        kind: [name for name, layer in own.items() if f"{layer.source}.{submodule}" in modules]
        for kind, submodule in SUBMODULES.items()
    }
    for kind in ("guide", "constant"):
        layers_with[kind] = [name for name, layer in own.items() if isinstance(layer.module, Upsampler)]
    unread = READOUT_KINDS if objects < LEAST_IMAGES else ()
    available = [kind for kind in KINDS if layers_with.get(kind, list(layers)) and kind not in unread]
    if kinds is None:
        kinds = [kind for kind in available if kind not in (*CHANNEL_KINDS, "constant", "readout_contour")]
    elif isinstance(kinds, str):
        kinds = available if kinds.strip() == "all" else [kind.strip() for kind in kinds.split(",")]
    kinds = list(kinds) if isinstance(kinds, Iterable) else [kinds]
    if not kinds:
        raise FadevizError("kinds is empty: name one, or leave it out")
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind", str(kind), KINDS)
        if kind in unread:
            raise FadevizError(
                f"the kind {kind} is fitted on the other observed images: {LEAST_IMAGES} or more need a mask with an "
                f"inside and an outside, and {objects} have one. Observe more images, give their masks, or leave "
                f"{kind} out of the kinds"
            )
        if kind in layers_with and not layers_with[kind]:
            raise FadevizError(
                f"none of the layers {', '.join(layers)} has {SUBMODULES.get(kind, kind)!r}: there is no {kind} "
                "to record. Leave it out of the kinds, or choose an operator that has one, e.g. fade"
            )
    return tuple(kind for kind in KINDS if kind in kinds)


def _mean_of_channels(value: Tensor) -> Tensor:
    return value.mean(dim=1)


__all__ = ["MODES", "Probe"]
