"""One forward pass on example images, without a trace in the model: what upsamples which maps, and from where."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FadevizError
from ..recording.batch import map_tensors
from ..recording.functions import FunctionCalls
from ..recording.hooks import observation_modes
from ..recording.layer_choice import Layer
from ..recording.modules import all_modules, devices_of
from ..recording.restore import preserved_generators, preserved_state
from ..recording.views import describe
from .installed import place_of_call, requested
from .sites import Site, Use, is_elementwise


class ExamplePass:
    """What the hooks of a forward pass have seen.

    Attributes:
        outputs: the name and the shape of each layer's output that is a map, in the order in which they ran.
        calls: the sites of calls of ``F.interpolate``, by the module's id and the number of the call.
        called: by a module's id, the functions that it called.
        places: by a module's id, where its calls of ``F.interpolate`` come from, by their numbers.
        convolutions: by a pixel shuffle's id, what its inputs came from; None for anything but a convolution.
        runs: how often each convolution ran, by its id.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        sites: Iterable[Site],
        callers: Mapping[int, str],
        guides: Mapping[str, Layer],
    ) -> None:
        """Nothing is known before :meth:`run`.

        Args:
            model: the model.
            modules: its modules by name.
            sites: modules that upsample.
            callers: by their ids, the names of modules whose calls of ``F.interpolate`` are to be found.
            guides: the guides by name.
        """
        self.outputs: list[tuple[str, torch.Size]] = []
        self.calls: dict[tuple[int, int], Site] = {}
        self.called: dict[int, set[str]] = {}
        self.places: dict[int, list[str]] = {}
        self.convolutions: dict[int, list[nn.Module | None]] = {}
        self.runs: Counter[int] = Counter()
        self.shuffled: dict[int, list[Use]] = {}
        self._model, self._modules, self._callers = model, modules, callers
        self._sites = {id(site.module): site for site in sites}
        self._guides = guides
        self._guide_modules: dict[tuple[int, str], list[str]] = {}
        for name, guide in guides.items():
            self._guide_modules.setdefault((id(guide.module), guide.function), []).append(name)
        self._latest: dict[str, torch.Size | str] = {}
        # Of a tensor that comes from a convolution: the tensor, the convolution, and the use of the convolution.
        self._origins: dict[int, tuple[weakref.ref[Tensor], nn.Module, Use]] = {}
        self._counts: dict[int, Counter[str]] = {}
        self._running: Counter[int] = Counter()

    def run(self, images: Any) -> None:
        """Run the model on the images.

        Raises:
            FadevizError: if it fails.
        """
        names: dict[int, str] = {}
        for name, module in self._modules.items():
            names.setdefault(id(module), name)
        with ExitStack() as stack:
            for module in self._model.modules():
                hook = partial(self._on_output, names.get(id(module), ""))
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
                if id(module) in self._callers:
                    stack.callback(module.register_forward_pre_hook(self._on_start).remove)
                    stack.callback(module.register_forward_hook(self._on_end, always_call=True).remove)
            if self._callers or any(guide.function for guide in self._guides.values()):
                stack.enter_context(FunctionCalls(self._model, self._modules.values(), self._on_call))
            run_images(self._model, images)

    def _on_output(self, name: str, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        x = args[0] if args else kwargs.get("input")
        if isinstance(x, Tensor) and isinstance(output, Tensor):
            if (site := self._sites.get(id(module))) is not None:
                if isinstance(module, nn.PixelShuffle):
                    self._on_shuffle(module, x, output)
                else:
                    site.uses.append(self._use(x, output, site.size is not None))
            elif isinstance(module, nn.Conv2d):
                self.runs[id(module)] += 1
                self._origins[id(output)] = weakref.ref(output), module, self._use(x, output)
            elif is_elementwise(module) and (origin := self._origin(x)) is not None:
                self._origins[id(output)] = weakref.ref(output), *origin
        if name and isinstance(output, Tensor) and output.ndim == 4:
            self.outputs.append((name, output.shape))
        self._keep(module, "", output)

    def _on_shuffle(self, shuffle: nn.Module, x: Tensor, output: Tensor) -> None:
        origin = self._origin(x)
        self.convolutions.setdefault(id(shuffle), []).append(None if origin is None else origin[0])
        if origin is not None:
            convolution, use = origin
            self.shuffled.setdefault(id(convolution), []).append(use._replace(returned=tuple(output.shape)))

    def _origin(self, x: Tensor) -> tuple[nn.Module, Use] | None:
        reference, *origin = self._origins.get(id(x), (None,))
        return (origin[0], origin[1]) if reference is not None and reference() is x else None  # type: ignore[return-value]

    def _on_start(self, module: nn.Module, inputs: Any) -> None:
        self._running[id(module)] += 1
        self._counts[id(module)] = Counter()

    def _on_end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running[id(module)] -= 1

    def _on_call(self, module: nn.Module, function: str, call: partial[Any]) -> Any:
        output = call()
        self.called.setdefault(id(module), set()).add(function)
        if function == "interpolate" and id(module) in self._callers:
            number = self._number_of_call(module)
            name = f"{self._callers[id(module)]}.interpolate_{number}".lstrip(".")
            site = self.calls.setdefault((id(module), number), Site(name, "interpolate", module, call=number))
            if not self._running[id(module)]:
                site.reason = f"is called outside of the forward of {self._callers[id(module)]!r}"
            scale = call.keywords.get("scale_factor", call.args[2] if len(call.args) > 2 else None)
            if call.keywords.get("align_corners") and not site.notes:
                site.notes.append("align_corners=True is not kept")
            use = self._use(requested(call)[0], output, scale is None)
            sides = zip(use.given[2:], use.returned[2:], strict=True)
            factors = scale if isinstance(scale, tuple | list) else [scale] * (len(use.given) - 2)
            if scale is not None and any(s * a != b for s, (a, b) in zip(factors, sides, strict=True)):
                site.reason = site.reason or f"has scale_factor {scale}; a power of two is needed"
            site.uses.append(use)
        self._keep(module, function, output)
        return output

    def _number_of_call(self, module: nn.Module) -> int:
        """The number of a call in a forward pass of its module; calls from one place have the same in each pass."""
        places = self.places.setdefault(id(module), [])
        counts, place = self._counts.setdefault(id(module), Counter()), place_of_call(module)
        counts[place] += 1
        known = [number for number, other in enumerate(places) if other == place]
        if counts[place] > len(known):
            places.append(place)
            return len(places) - 1
        return known[counts[place] - 1]

    def _keep(self, module: nn.Module, function: str, output: Any) -> None:
        for name in self._guide_modules.get((id(module), function), ()):
            self._latest[name] = output.shape if isinstance(output, Tensor) else describe(output)

    def _use(self, x: Tensor, output: Tensor, by_size: bool = False) -> Use:
        # Attributes alone: a function that a hook calls would be seen as one of the model's.
        shapes = tuple(x.shape), tuple(output.shape)
        return Use(*shapes, x.device, x.dtype.is_floating_point, by_size, dict(self._latest), len(self.outputs))


def run_images(model: nn.Module, images: Any) -> None:
    """Run a model on images in eval mode, and leave its state, modes and all random generators as they were.

    Args:
        model: the model.
        images: its argument, or its keyword arguments; copies are moved to its device, and floats made its dtype.

    Raises:
        FadevizError: if it fails.
    """
    modules = all_modules(model).values()
    devices = devices_of(model)
    device = next(iter(devices)) if len(devices) == 1 else None
    dtype = parameter_dtype(model)

    def placed(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device or tensor.device, dtype if tensor.is_floating_point() else None, copy=True)

    with (
        preserved_generators(devices),
        preserved_state(modules),
        observation_modes(modules, "eval"),
        torch.autocast(device.type if device else "cpu", enabled=False),
        torch.no_grad(),
        # A compiled model would not call hooks that were added after it was compiled.
        torch.compiler.set_stance("force_eager"),
    ):
        copies = map_tensors(images, placed)
        try:
            _ = model(**copies) if isinstance(copies, Mapping) else model(copies)
        except FadevizError:
            raise
        except Exception as error:
            text = next(iter(str(error).strip().splitlines()), "")
            given = "" if isinstance(images, Tensor | Mapping) else f". It was called with {describe(images)}"
            text = text.rstrip(".: ") if given else text
            raise FadevizError(
                f"{type(model).__name__} fails for images=: {type(error).__name__}: {text:.300}{given}"
            ) from error


def parameter_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the first floating-point parameter; the default one if there is none."""
    floating = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(floating, torch.get_default_dtype())


__all__ = ["ExamplePass", "parameter_dtype", "run_images"]
