"""A model whose forward and backward passes leave no trace in its training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FadevizError
from ..ops.arithmetic import tf32
from .batch import count_images, map_tensors, tensors_in
from .hooks import MapCollector, hooked, observation_modes
from .modules import all_modules, devices_of
from .observation import Observation
from .restore import preserved_generators, preserved_state
from .views import describe

_MOST_SAVED = 2**31
"""Bytes of parameters up to which the first observation copies all of them, to find those that forward changes."""


class ObservedModel:
    """Runs a model for observations, and restores its state after each pass.

    Attributes:
        module: the model without DataParallel and DistributedDataParallel.
        notes: what the user should know of the observations so far, one sentence each.
    """

    def __init__(self, model: nn.Module) -> None:
        """Unwrap the model.

        Raises:
            FadevizError: if it is a torch.jit script module.
        """
        self.module = _without_parallel(model)
        if isinstance(self.module, torch.jit.ScriptModule):
            raise FadevizError(
                f"{self.module.original_name} is a torch.jit script module, whose submodules do not call hooks. "
                "Observe the original module"
            )
        self.notes: list[str] = []
        self._self_updating: list[nn.Parameter] = []  # parameters that the forward pass itself writes to
        self._observed_before = False

    def note(self, note: str) -> None:
        """Add a note, unless it is there already."""
        if note not in self.notes:
            self.notes.append(note)

    def end_observation(self) -> None:
        """Later observations save only the parameters that forward was seen to change."""
        self._observed_before = True

    def dtype(self) -> torch.dtype | None:
        """The dtype of the parameters; None if there are several."""
        dtypes = {parameter.dtype for parameter in self.module.parameters() if parameter.is_floating_point()}
        return dtypes.pop() if len(dtypes) == 1 else None

    def device(self) -> torch.device | None:
        """The device of parameters and buffers; None if there are several."""
        # On the meta device weights wait to be loaded.
        devices = {device for device in devices_of(self.module) if device.type != "meta"}
        return devices.pop() if len(devices) == 1 else None

    @contextmanager
    def collecting(
        self,
        observation: Observation,
        kinds: Sequence[str],
        *,
        partial: bool = False,
        collector: MapCollector | None = None,
    ) -> Iterator[MapCollector]:
        """The context of one forward and backward pass; yields what its hooks collect.

        ``partial`` is for a pass of only some of the images; ``collector`` collects something else than maps.
        """
        collector = MapCollector(observation, kinds, partial) if collector is None else collector
        devices = {tensor.device for tensor in tensors_in(observation.images)} | devices_of(self.module)
        device = self.device() or next(
            (device for device in devices if device.type not in ("cpu", "meta")), torch.device("cpu")
        )
        parameters = _parameters_of(observation.guarded)
        saved = self._self_updating if self._observed_before else _all_if_small(parameters)
        versions = [parameter._version for parameter in parameters]
        with (
            preserved_generators(devices),
            preserved_state(observation.guarded, saved) as written,
            observation_modes(observation.guarded, observation.mode),
            # The maps are those of float32 arithmetic, whatever the training's precision is.
            torch.autocast(device.type, dtype=observation.autocast, enabled=observation.autocast is not None),
            tf32(False),
            torch.set_grad_enabled("gradient" in kinds),
            # A compiled model would not call hooks that were added after it was compiled.
            torch.compiler.set_stance("force_eager"),
            hooked(collector),
        ):
            yield collector
            collector.on_pass_end()
            collector.synchronize()
        known = {id(parameter) for parameter in self._self_updating}
        self._self_updating += [parameter for parameter in written if id(parameter) not in known]
        restored = {id(parameter) for parameter in saved}
        changed = (p for p, version in zip(parameters, versions, strict=True) if p._version != version)
        unsaved = [parameter for parameter in changed if id(parameter) not in restored]
        if unsaved:  # first written to after the first observation: restored from now on
            self._self_updating += unsaved
            names = ", ".join(sorted(self._names_of(unsaved, observation)))
            self.note(f"at step {observation.step} the observation left a trace: the model wrote to {names}")

    def _names_of(self, parameters: Sequence[nn.Parameter], observation: Observation) -> set[str]:
        ids = {id(parameter) for parameter in parameters}
        return {
            repr(f"{name}.{key}".lstrip("."))
            for name, module in all_modules(self.module, observation.loss_fn).items()
            for key, parameter in module._parameters.items()
            if id(parameter) in ids
        }

    def forward(self, images: Any, collector: MapCollector) -> Any:
        """The output of the model for these images."""
        # Separate leaves, so that the graph reaches every layer even if all weights are frozen.
        images = self._placed(images, self.dtype(), "gradient" in collector.kinds)
        given = "" if isinstance(images, Tensor | Mapping) else f". It was called with {describe(images)}"
        with collector.observation.error_context("the forward pass failed", remark=given):
            output = self.module(**images) if isinstance(images, Mapping) else self.module(images)
        collector.images = count_images(images)[0]
        collector.on_forward_end()
        return output

    def loss(self, output: Any, observation: Observation) -> Tensor:
        """The loss of an output.

        Raises:
            FadevizError: if ``loss_fn`` fails, or does not return a scalar with a gradient.
        """
        targets = self._placed(observation.targets, None, False)
        # In eval mode many models return another structure than in training, which makes such a loss fail.
        with observation.error_context("loss_fn failed", remark=f". It was given {describe(output)}"):
            loss = observation.loss_fn(output, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            description = describe(loss)
            if isinstance(loss, Tensor) and loss.numel() == 1:
                description += " without a gradient"
            raise FadevizError(
                f"loss_fn returned {description} (step {observation.step}, observed in {observation.mode} mode); a "
                "scalar that depends on the model's output is needed. Return e.g. its mean, or leave gradient out of "
                "the kinds"
            )
        return loss

    def _placed(self, value: Any, dtype: torch.dtype | None, leaves: bool) -> Any:
        """Copies on the model's device, if it has only one; floats are cast, and are leaves of the graph."""
        device = self.device()

        def placed(tensor: Tensor) -> Tensor:
            floating = tensor.is_floating_point()
            # A float32 model may be given float64 on purpose, such as times or coordinates, but not images.
            cast = floating and not (tensor.dtype == torch.float64 and dtype == torch.float32 and tensor.ndim != 4)
            copy = tensor.detach().to(device or tensor.device, dtype if cast else None, copy=True)
            return copy.requires_grad_(leaves and floating)

        return map_tensors(value, placed)


def _parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    parameters = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
    return [parameter for parameter in parameters.values() if not parameter.is_inference()]


def _all_if_small(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters to save at the first observation: all, if there is memory for copies; none otherwise."""
    return parameters if sum(parameter.nbytes for parameter in parameters) <= _MOST_SAVED else []


def _without_parallel(model: nn.Module) -> nn.Module:
    # Replicas of several devices would call the hooks from several threads; DistributedDataParallel waits for others.
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return model
