"""Looking into a network at one instant: hooks that live for one forward and backward pass, and maps in numpy."""

from __future__ import annotations

import dataclasses
import operator
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import FadevizError, printable, unknown_name
from ..ops.arithmetic import tf32
from ..storage.snapshots import CHANNEL_KINDS, KINDS, Snapshot
from ..upsamplers import Upsampler
from .batch import cut, image_size, joined, map_tensors, tensors_in
from .hooks import INSIDE, Asked, Found, Mode, hooked, unchanged_modes
from .layer_names import asked_for, find_layers, layer_names, name_fits, once, patterns_in
from .masks import whole_number
from .state import all_modules, devices_of, modules_of_loss, refuse_uninitialised, same_generators, untouched
from .views import View, describe

MODES = ("eval", "batch")

_AT_ONCE, _A_CHUNK = 2**20, 2**19
"""Pixels up to which all observed images are in the model at once, and the pixels of a chunk above that."""

_WATCHED = 2**31
"""Bytes of parameters up to which the first observation copies them, to find those that the forward pass changes."""


class Probe:
    """Maps of a model's layers for a fixed batch, without a trace in the training.

    Hooks exist only inside :meth:`observe`, which restores the model's modes, buffers, plain attributes, gradients and
    the random state, even after an error; a loss that is a module, or refers to one, is treated like the model. State
    outside the modules (generators and counters in closures or in objects of other classes) is not restored:
    :func:`fadeviz.recording.state.state_changes` shows what an observation changed. The model's other hooks run as they
    do in training, since the model may need them.

    Attributes:
        layers: the names of the recorded layers. The first observation narrows globs down to the layers that ran and
            returned a map (with a gradient, if that is recorded).
        notes: what was left out and why, one sentence each.

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
                ``**`` for any number: ``decoder.*.upsample``, ``**.gate``. Modules of the model are fine too. A module
                that is used in several places has several names; a glob takes the first.
            kinds: names in ``KINDS``, comma-separated or as a sequence; or ``all`` for what there is of them; None
                takes feature, gradient and what the layers have of gate and kernel_entropy. A kind is recorded of the
                layers that have it.
            channel_images: how many of the observed images the large kinds keep, those with many maps an image.
            views: by layer or glob, how to read a map ``(B, C, h, w)`` from the output; needed where a layer gives
                several tensors, or tokens on a grid that is no square. The first that fits counts.
            reduce: ``(B, C, h, w) -> (B, h, w)``, makes the kind ``feature``; None takes the mean over channels.

        Raises:
            FadevizError: a name that matches no layer, or two modules; an unknown kind, or one that none of the layers
                has; a scripted model.
        """
        self.model = model
        self.notes: list[str] = []
        self._called = _without_parallel(model)
        if isinstance(self._called, torch.jit.ScriptModule):
            raise FadevizError(
                f"{self._called.original_name} is a torch.jit script module, whose submodules do not call hooks. "
                "Observe the original module"
            )
        layers = patterns_in(layers)
        self._modules, clashes = layer_names(model)
        found = find_layers(self._modules, layers, type(model).__name__)
        for name in found:
            if name in clashes:
                raise FadevizError(
                    f"the layer name {name!r} stands for two modules of {type(model).__name__}: "
                    f"{' and '.join(map(repr, clashes[name]))}. Rename one, or observe the wrapped module alone"
                )
            if printable(name) != name:
                raise FadevizError(
                    f"the layer name {name!r} has control characters. Rename the module, or leave it out"
                )
        self._exact = asked_for(self._modules, layers)
        self.layers = once(found, self._modules, self._exact)
        self._settled = self._observed = False
        self._learning: list[nn.Parameter] = []
        self._separable: bool | None = None
        self.reduce = reduce if reduce is not None else _mean_of_channels
        if not isinstance(views, Mapping | None):
            raise FadevizError(f"views is a {type(views).__name__}: a dict of View by layer or glob is needed")
        views = dict(views or {})
        for pattern, view in views.items():
            if not isinstance(view, View):
                raise FadevizError(f"the view of {pattern!r} is a {type(view).__name__}: a fadeviz.View is needed")
            find_layers(self._modules, pattern, type(model).__name__)
        self.views = {
            layer: next((view for pattern, view in views.items() if name_fits(pattern, layer)), View())
            for layer in self.layers
        }
        self.channel_images = whole_number(channel_images, "channel_images")
        if self.channel_images < 1:
            raise FadevizError(f"channel_images is {channel_images}: 1 or more is needed")
        having = {k: [n for n in self.layers if f"{n}.{part}" in self._modules] for k, part in INSIDE.items()}
        for kind in ("guide", "constant"):
            having[kind] = [name for name in self.layers if isinstance(self._modules[name], Upsampler)]
        there = [kind for kind in KINDS if having.get(kind, self.layers)]
        if kinds is None:
            kinds = [kind for kind in there if kind not in CHANNEL_KINDS and kind != "constant"]
        elif isinstance(kinds, str):
            kinds = there if kinds.strip() == "all" else [kind.strip() for kind in kinds.split(",")]
        kinds = list(kinds) if isinstance(kinds, Iterable) else [kinds]
        if not kinds:
            raise FadevizError("kinds is empty: name one, or leave it out")
        for kind in kinds:
            if kind not in KINDS:
                raise unknown_name("kind", str(kind), KINDS)
            if kind in having and not having[kind]:
                raise FadevizError(
                    f"none of the layers {', '.join(self.layers)} has {INSIDE.get(kind, kind)!r}: there is no {kind} "
                    "to record. Leave it out of --kinds, or choose an operator that has one, e.g. fade"
                )
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)

    def settle(self, layers: Sequence[str]) -> None:
        """Restrict the layers to these, the ones that an earlier observation found.

        For resumed recordings: layers that a glob left out then are left out again.

        Raises:
            FadevizError: a name that is not among the layers, or a layer requested by name that is missing here.
        """
        for name in layers:
            if name not in self.layers:
                raise unknown_name(f"layer among those requested of {type(self.model).__name__}", name, self.layers)
        missing = [name for name in self.layers if name in self._exact and name not in layers]
        if missing:
            raise FadevizError(f"layer {missing[0]!r} was not recorded before. Leave it out, or start a new run")
        self.layers = tuple(name for name in self.layers if name in layers)
        self._settled = True

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
        """Send the observation batch through the model and return the maps.

        Args:
            images: what the model is called with: a tensor ``(N, ...)``, or a dict of keyword arguments. Copies are
                moved to the model's device, and made bfloat16 or float16 where its weights are.
            targets: second argument of ``loss_fn``, likewise on the model's device.
            loss_fn: called as ``loss_fn(model(images), targets)``, gives a scalar; needed for gradients.
            step: the number of optimiser steps done.
            mode: ``eval`` normalises with BatchNorm's running statistics, as a checkpoint would; ``batch`` with the
                statistics of the observed images, on copies of the buffers. Early on the running statistics lag
                behind the weights, and eval maps show that lag. Loss modules are in the same mode.
            autocast: bfloat16 or float16, to observe under autocast as the training runs. None uses the precision of
                the weights, and autocast only if the model does not run in float32; ``notes`` then says so.
            images_at_once: how many images are in the model at a time in ``eval`` mode, to save memory. The maps are
                the same up to rounding and the gradients are those of the whole batch's loss, at the price of a second
                forward pass. Ignored if maps depend on the other images of the batch, or if the loss reads more of the
                model than its output. None takes all images up to 2^20 pixels, else chunks of 2^19 pixels.

        Returns:
            Snapshots in float32 numpy, in the order of the layers and of ``KINDS``.

        Raises:
            FadevizError: a layer that did not run, returned no map, or does not influence the loss; an error in the
                model or the loss, with the layer; uninitialised lazy modules; a model that runs in another thread.
        """
        if mode not in MODES:
            raise unknown_name("observation mode", str(mode), MODES)
        modules = all_modules(self._called, loss_fn)
        refuse_uninitialised(modules)
        asked = Asked(
            images,
            targets,
            loss_fn,
            operator.index(step),
            mode,
            autocast,
            images_at_once,
            layers={name: self._modules[name] for name in self.layers},
            needed=frozenset(self.layers if self._settled else self._exact),
            parts=self._modules,
            guarded=tuple(modules.values()),
            views=self.views,
            reduce=self.reduce,
            channel_images=self.channel_images,
        )
        with _observing_alone(self._called):
            found = self._observe(asked)
        self._observed = True
        if not self._settled:
            self._leave_out(found)
        order = {(layer, kind): i for i, (layer, kind) in enumerate((a, k) for a in self.layers for k in self.kinds)}
        snapshots = [s for s in found.snapshots if s.layer in self.layers]
        return sorted(snapshots, key=lambda s: (order[s.layer, s.kind], s.call))

    def _observe(self, asked: Asked) -> Found:
        try:
            return self._in_chunks(asked) or self._at_once(asked)
        except FadevizError as error:
            half = _half_in_words(error.__cause__) if asked.autocast is None else None
            if half is None:
                raise
            try:
                asked = dataclasses.replace(asked, autocast=half)
                found = self._in_chunks(asked) or self._at_once(asked)
            except FadevizError:
                raise error from error.__cause__
        self._note(
            f"observed under autocast to {str(half).removeprefix('torch.')}, because it does not run in plain float32"
        )
        return found

    def _at_once(self, asked: Asked) -> Found:
        with self._looking(asked, self.kinds) as found:
            output = self._forward(asked, asked.images, found)
            if "gradient" in self.kinds:
                found.add_gradients([self._loss(asked, output)])
        return found

    def _in_chunks(self, asked: Asked) -> Found | None:
        """Observe a few images at a time; None if all must or may be in the model at once."""
        count, pixels = image_size(asked.images)
        chunk = asked.images_at_once
        if chunk is None:
            chunk = count if count * pixels <= _AT_ONCE else max(1, _A_CHUNK // pixels)
        if asked.mode != "eval" or not 0 < chunk < count:
            return None
        if self._separable is None:
            self._separable = self._is_separable(asked, count)
            if not self._separable:
                self._note(
                    f"all {count} images were observed at once: one at a time they give different maps or losses"
                )
        if not self._separable:
            return None
        parts = [cut(asked.images, count, i, min(i + chunk, count)) for i in range(0, count, chunk)]
        cotangents = self._cotangents(asked, parts, chunk, count) if "gradient" in self.kinds else []
        found = []
        for i, part in enumerate(parts):
            rows = slice(i * chunk, (i + 1) * chunk)
            found.append(self._a_chunk(asked, part, [None if c is None else c[rows] for c in cotangents]))
        return _put_together(found, self.channel_images)

    def _a_chunk(self, asked: Asked, images: Any, cotangents: Sequence[Tensor | None]) -> Found:
        with self._looking(asked, self.kinds) as found:
            outputs = tensors_in(self._forward(asked, images, found))
            if "gradient" in self.kinds:
                both = zip(outputs, cotangents, strict=True)
                pairs = [(output, c) for output, c in both if c is not None and output.requires_grad]
                found.add_gradients([output for output, _ in pairs], [c for _, c in pairs])
        return found

    def _is_separable(self, asked: Asked, count: int) -> bool:
        """Whether the first image gives the same maps and output alone as together with the second."""
        of_loss = {id(part) for module in modules_of_loss(asked.loss_fn) for part in module.modules()}
        if not of_loss.isdisjoint(id(module) for module in self._called.modules()):
            return False  # a loss that reads more of the model than its output
        maps, outputs = [], []
        try:
            for stop in (1, 2):
                with self._looking(asked, ("feature",)) as found:
                    output = self._forward(asked, cut(asked.images, count, 0, stop), found)
                maps.append({s.key: torch.from_numpy(s.value) for s in found.snapshots})
                outputs.append(output)
            joined(outputs, (1, 2))
        except FadevizError as error:
            if _half_in_words(error.__cause__) is not None:  # fails with all images too, and is retried under autocast
                raise
            return False
        alone, beside = ([*m.values(), *tensors_in(o)] for m, o in zip(maps, outputs, strict=True))
        # Rounding depends on the number of images, and is larger at lower precision.
        tolerance = 1e-3 if _one_dtype(self._called) == torch.float32 and asked.autocast is None else 3e-2
        return maps[0].keys() == maps[1].keys() and all(
            _begins_with(both, first, tolerance) for both, first in zip(beside, alone, strict=True)
        )

    def _cotangents(self, asked: Asked, parts: Sequence[Any], chunk: int, count: int) -> list[Tensor | None]:
        """d loss / d output of the whole batch, a tensor for each of the output's; None for those without."""
        outputs = []
        for part in parts:
            with self._looking(asked, ()) as found:
                outputs.append(map_tensors(self._forward(asked, part, found), Tensor.detach))
        sizes = [min(chunk, count - i) for i in range(0, count, chunk)]
        with self._looking(asked, ()), torch.enable_grad():
            output = joined(outputs, sizes)
            leaves = [t.requires_grad_() for t in tensors_in(output) if t.is_floating_point()]
            # A loss may write into the output, but not into a leaf.
            loss = self._loss(asked, map_tensors(output, lambda t: t.clone()))
            with asked.in_words("the backward pass failed"):
                given = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
        return [next(given) if t.is_floating_point() else None for t in tensors_in(output)]

    @contextmanager
    def _looking(self, asked: Asked, kinds: Sequence[str]) -> Iterator[Found]:
        """The context of one forward and backward pass, and what its hooks collect."""
        found = Found(asked, kinds)
        used = {tensor.device for tensor in tensors_in(asked.images)} | devices_of(self._called)
        device = _one_device(self._called) or next(
            (device for device in used if device.type not in ("cpu", "meta")), torch.device("cpu")
        )
        parameters = _parameters_of(asked.guarded)
        watched = self._learning if self._observed else _if_there_is_room(parameters)
        versions = [parameter._version for parameter in parameters]
        with (
            same_generators(used),
            untouched(asked.guarded, watched) as written,
            unchanged_modes(asked.guarded, asked.mode),
            # The maps are those of float32 arithmetic whatever the training's precision is.
            torch.autocast(device.type, dtype=asked.autocast, enabled=asked.autocast is not None),
            tf32(False),
            torch.set_grad_enabled("gradient" in kinds),
            # A compiled model would not call hooks that were added after it was compiled.
            torch.compiler.set_stance("force_eager"),
            hooked(found),
        ):
            yield found
            found.wait()
        known = {id(parameter) for parameter in self._learning}
        self._learning += [parameter for parameter in written if id(parameter) not in known]
        put_back = {id(parameter) for parameter in watched}
        changed = (p for p, version in zip(parameters, versions, strict=True) if p._version != version)
        late = [parameter for parameter in changed if id(parameter) not in put_back]
        if late:  # it began to, after the first observation: from now on it is put back
            self._learning += late
            names = sorted(self._names_of(late, asked))
            self._note(f"at step {asked.step} the observation left a trace: the model wrote to {', '.join(names)}")

    def _names_of(self, parameters: Sequence[nn.Parameter], asked: Asked) -> set[str]:
        wanted = {id(parameter) for parameter in parameters}
        modules = all_modules(self._called, asked.loss_fn).items()
        return {
            repr(f"{name}.{key}".lstrip("."))
            for name, module in modules
            for key, parameter in module._parameters.items()
            if id(parameter) in wanted
        }

    def _forward(self, asked: Asked, images: Any, found: Found) -> Any:
        # Separate leaves, so that the graph reaches every layer even if all weights are frozen.
        images = _placed(images, self._called, _one_dtype(self._called), "gradient" in found.kinds)
        with asked.in_words("the forward pass failed"):
            output = self._called(**images) if isinstance(images, Mapping) else self._called(images)
        found.forward_is_over()
        return output

    def _loss(self, asked: Asked, output: Any) -> Tensor:
        targets = _placed(asked.targets, self._called, None, False)
        # In eval mode many models return something else than in training, which makes such a loss fail.
        with asked.in_words("loss_fn failed", given=f". It was given {describe(output)}"):
            loss = asked.loss_fn(output, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            what = describe(loss)
            if isinstance(loss, Tensor) and loss.numel() == 1:
                what += " without a gradient"
            raise FadevizError(
                f"loss_fn gave {what} (step {asked.step}, observed in {asked.mode} mode); a scalar that depends on "
                "the model's output is needed. Return e.g. its mean, or leave gradient out of the kinds"
            )
        return loss

    def _leave_out(self, found: Found) -> None:
        left_out = found.left_out
        if left_out and len(left_out) == len(self.layers):
            raise FadevizError(f"there is nothing to record: {'; '.join(left_out.values())}")
        alike: dict[str, list[str]] = {}
        for name, reason in left_out.items():
            why = re.sub(r"\.( Choose another( layer)?)?$", "", reason.removeprefix(f"layer {name!r} "))
            alike.setdefault(why, []).append(name)
        for why, names in alike.items():
            self._note(f"left out: {', '.join(f'layer {name!r}' for name in names)} {why}")
        self.layers = tuple(name for name in self.layers if name not in left_out)
        self._settled = True

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def _parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    found = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
    return [parameter for parameter in found.values() if not parameter.is_inference()]


def _if_there_is_room(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """What is watched the first time: all, if there is room for copies; and then those that were written to."""
    return parameters if sum(parameter.nbytes for parameter in parameters) <= _WATCHED else []


def _mean_of_channels(value: Tensor) -> Tensor:
    return value.mean(dim=1)


_LOCK = threading.RLock()
"""Held during an observation, since modes, hooks and generators belong to the whole process."""


@contextmanager
def _observing_alone(model: nn.Module) -> Iterator[None]:
    """Refuse a model that another thread is running; its next forward pass waits for the observation."""
    me = threading.get_ident()

    def wait(module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() != me:
            with _LOCK:
                pass

    with _LOCK:
        handle = model.register_forward_pre_hook(wait, prepend=True)
        try:
            _refuse_running(model, me)
            yield
        finally:
            handle.remove()


def _refuse_running(model: nn.Module, me: int) -> None:
    parts = {id(module) for module in model.modules()}
    code = nn.Module._call_impl.__code__
    for thread, frame in sys._current_frames().items():
        while thread != me and frame is not None:
            if frame.f_code is code and id(frame.f_locals.get("self")) in parts:
                raise FadevizError(
                    f"{type(model).__name__} is running in another thread: an observation now would change its mode "
                    "there. Observe between two training steps, from the training thread"
                )
            frame = frame.f_back  # type: ignore[assignment]


def _half_in_words(error: BaseException | None) -> torch.dtype | None:
    """The dtype for autocast, if this is the error of layers with different dtypes."""
    named = (
        re.search("(bfloat16)|(half|float16)", str(error), re.IGNORECASE) if isinstance(error, RuntimeError) else None
    )
    if named is None:
        return None
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):  # the training's, around the call
            return torch.get_autocast_dtype(device)
    return torch.bfloat16 if named[1] else torch.float16


def _put_together(found: Sequence[Found], channel_images: int) -> Found | None:
    """Concatenate the maps of chunks; None if the layers did not run the same way in each."""
    keys = [[s.key for s in one.snapshots] for one in found]
    if any(sorted(some) != sorted(keys[0]) for some in keys):
        return None
    parts: dict[str, list[NDArray[np.float32]]] = {key: [] for key in keys[0]}
    for one in found:
        for snapshot in one.snapshots:
            parts[snapshot.key].append(snapshot.value)
    whole = found[0]
    whole.snapshots = [
        s
        if s.kind == "constant"
        else dataclasses.replace(s, value=np.concatenate(parts[s.key])[: _most(s, channel_images)])
        for s in whole.snapshots
    ]
    return whole


def _most(snapshot: Snapshot, channel_images: int) -> int | None:
    return channel_images if snapshot.kind in CHANNEL_KINDS else None


def _begins_with(both: Tensor, first: Tensor, tolerance: float) -> bool:
    """Whether the rows of ``first`` are the first half of ``both``, to rounding."""
    if both.shape != (2 * len(first), *first.shape[1:]):
        return False
    if not first.is_floating_point() or not first.numel():
        return True
    limit = tolerance * float(first.detach().abs().nan_to_num().max())
    return torch.allclose(both[: len(first)], first, rtol=0, atol=limit, equal_nan=True)


def _without_parallel(model: nn.Module) -> nn.Module:
    # Replicas of several devices would call the hooks from several threads; DistributedDataParallel waits for others.
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def _one_device(model: nn.Module) -> torch.device | None:
    devices = {device for device in devices_of(model) if device.type != "meta"}  # where weights wait to be loaded
    return devices.pop() if len(devices) == 1 else None


def _one_dtype(model: nn.Module) -> torch.dtype | None:
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def _placed(value: Any, model: nn.Module, dtype: torch.dtype | None, leaves: bool) -> Any:
    """Copies on the model's device, if it has only one; floats are cast, and are leaves of the graph."""
    device = _one_device(model)

    def placed(tensor: Tensor) -> Tensor:
        floating = tensor.is_floating_point()
        # A float32 model may be given float64 on purpose, times or coordinates, but not images.
        cast = floating and not (tensor.dtype == torch.float64 and dtype == torch.float32 and tensor.ndim != 4)
        copy = tensor.detach().to(device or tensor.device, dtype if cast else None, copy=True)
        return copy.requires_grad_(leaves and floating)

    return map_tensors(value, placed)
