"""Replacing the upsampling of a model: what is there is found and judged, then operators are built and installed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import FadevizError, unknown_name
from ..recording.functions import split_function
from ..recording.layer_choice import Layer, choose_layers
from ..recording.layer_names import exact_layers, find_layers, layer_names, parse_patterns
from ..recording.masks import whole_number
from ..recording.modules import check_initialised
from ..recording.wrapped import check_module
from ..upsamplers import Upsampler, build_upsampler, check_options, find_upsampler, parse_upsampler
from .example_pass import ExamplePass, parameter_dtype, run_images
from .installed import (
    Guide,
    ModuleWithCalls,
    OperatorInput,
    UpsamplerChain,
    can_have_calls,
    class_with_calls,
    project_output,
)
from .report import LeftUpsampler, ReplacedUpsampler, Replacement
from .sites import MODULES, Site, find_sites, shuffle_sites, shuffled_in_sequence, why_unknown


def replace_upsamplers(
    model: nn.Module,
    operator: str,
    images: Any = None,
    *,
    layers: str | nn.Module | Sequence[str | nn.Module] | None = None,
    calls: str | Sequence[str] | None = None,
    guides: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Replacement:
    """Replace the upsampling of a model by one of fadeviz's operators, in place.

    Replaced are ``nn.Upsample``, ``nn.ConvTranspose2d``, and ``nn.Conv2d`` with the ``nn.PixelShuffle`` that follows
    it, where they multiply both sides of a map by 2, 4, 8, ...; and calls of ``F.interpolate`` on request. The operator
    has the name of the module that it replaces (before a pixel shuffle, of the convolution), or of a new child of the
    module that calls: ``decode_head.interpolate_0`` for the first call in each of its forward passes. A factor of 4 is
    a chain of two operators, ``x2`` and ``x4``. Where a module changes the number of channels, a 1x1 convolution
    ``project`` follows the operator, or precedes one that reads a guide; where an operator needs a guide of as many
    channels as its input has, a 1x1 convolution ``project_guide`` gives it those.

    All else stays: weights, modes, hooks, the random state. Nothing is changed if an error is raised. The operators'
    parameters are new: create the optimizer, DistributedDataParallel and ``torch.compile`` afterwards.

    Args:
        model: any module.
        operator: an operator, which may have options: ``"carafe"``, ``"pixel_shuffle:icnr=true"``.
        images: an example batch: the argument of the model, or a dict of keyword arguments. It is run before and after
            the replacement, in eval mode. None replaces only modules whose channels and factor are known without it:
            transposed convolutions, and pixel shuffles in an ``nn.Sequential``.
        layers: names or globs of the modules to replace, or the modules themselves; None for all that fit, ``()`` for
            none.
        calls: names or globs of calls to replace, e.g. ``"decode_head:interpolate"`` or ``"decoder.*:interpolate"``;
            None for none.
        guides: by an operator's name, the layer whose output in the same forward pass it reads, of the operator's
            output size; for operators that read the encoder: ``{"decoder.up1": "encoder.2"}``. A module's calls may be
            named together, ``decode_head:interpolate``. A guide may be what calls of a function return,
            ``"encoder:relu"``. If a guide runs several times, its latest output before the operator is read.
        seed: of the operators' initial weights.

    Returns:
        What was replaced, and what was left and why: print it.

    Raises:
        FadevizError: if there is no such operator, layer or call; if nothing, or not what was requested by name, can be
            replaced; if an operator reads a guide and has none, or one that does not fit; or if the model fails on the
            images, before or after.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Upsample(scale_factor=2), nn.Conv2d(8, 2, 1))
        >>> print(replace_upsamplers(model, "carafe", torch.zeros(1, 3, 16, 16)))
        replaced  was       operator  factor  channels  parameters  before
        1         Upsample  carafe         2         8      58,276       0
        >>> model(torch.zeros(1, 3, 16, 16)).shape
        torch.Size([1, 2, 32, 32])
    """
    _check_types(model, operator, guides)
    seed = whole_number(seed, "seed")
    if abs(seed) >= 2**63:
        raise FadevizError(f"seed is {seed}: torch takes whole numbers of up to 63 bits")
    name, options = _parse_operator(operator)
    reads_guide = find_upsampler(name).needs == "feature"
    guides = dict(guides or {})
    _check_arguments(model, name, reads_guide, images, calls, guides)
    modules, _ = layer_names(model)
    network = type(model).__name__
    callers, named_callers = ({}, []) if calls is None else _find_callers(model, calls)
    guide_layers = {guide: _find_guide(model, guide) for guide in dict.fromkeys(guides.values())}
    sites = list(find_sites(model, modules))
    seen = None
    if images is not None:
        places = {id(caller.module): split_function(caller.source)[0] for caller in callers.values()}
        seen = ExamplePass(model, modules, sites, places, guide_layers)
        seen.run(images)
    sites = _with_convolutions(model, modules, sites, seen)
    sites, required = _choose(sites, modules, layers, network)
    if seen is not None:
        sites += _call_sites(seen, callers, named_callers, network)
    place = {id(module): number for number, module in enumerate(modules.values())}
    sites.sort(key=lambda site: (place.get(id(site.module), -1), site.call or 0))
    for site in sites:
        if seen is None:
            site.reason = site.reason or why_unknown(site)
        else:
            site.judge_uses()
    _assign_guides(sites, guides, reads_guide, name, seen)
    _build(sites, name, options, seed)
    _check_replaced(network, sites, [*([site] for site in required), *_by_name(sites, (*named_callers, *guides))])
    undo: list[Callable[[], object]] = []
    try:
        _install(model, sites, guide_layers, {} if seen is None else seen.places, undo)
        if images is not None:
            run_images(model, images)
    except BaseException as error:
        for call in reversed(undo):
            call()
        if isinstance(error, FadevizError):
            raise FadevizError(f"{network} does not run with {operator}, so it was left unchanged: {error}") from error
        raise
    return _report(sites, operator)


def _check_types(model: object, operator: object, guides: object) -> None:
    check_module(model)
    if not isinstance(operator, str):
        raise FadevizError(
            f"operator is {operator!r:.60}, a {type(operator).__name__}: a name is needed, such as 'carafe'. "
            "fadeviz upsamplers lists them"
        )
    if guides is not None and not (isinstance(guides, Mapping) and all(isinstance(name, str) for name in guides)):
        raise FadevizError(
            f"guides is {guides!r:.60}: a dict is needed, of a layer for the name of each operator, e.g. "
            "{'decoder.up1': 'encoder.2'}"
        )


def _parse_operator(operator: str) -> tuple[str, dict[str, object]]:
    name, options = parse_upsampler(operator)
    entry = find_upsampler(name)
    check_options(name, options, inspect.signature(entry.build).parameters)
    if entry.needs == "indices":
        raise FadevizError(
            f"{name} reads the indices of its own max pooling, which a model that was not built for it does not keep. "
            "Choose another operator: fadeviz upsamplers lists them"
        )
    for option in ("in_channels", "skip_channels", "out_channels"):
        if option in options:
            raise FadevizError(f"{operator!r} has {option}, which follows from the model. Leave it out")
    if options.pop("scale_factor", 2) != 2:
        raise FadevizError(f"{operator!r} has a scale_factor, which follows from the model. Leave it out")
    return name, options


def _check_arguments(
    model: nn.Module, name: str, reads_guide: bool, images: Any, calls: object, guides: Mapping[str, str]
) -> None:
    network = type(model).__name__
    for part in model.modules():
        if isinstance(part, nn.parallel.DistributedDataParallel):
            raise FadevizError(
                f"{network} is in DistributedDataParallel, which would not average the gradients of new parameters. "
                "Replace first, then wrap"
            )
    if isinstance(model, torch.jit.ScriptModule):
        raise FadevizError(f"{network} is a torch.jit script module, which cannot be changed. Use the original module")
    check_initialised(dict(model.named_modules()))
    if guides and not reads_guide:
        raise FadevizError(f"guides are given, but {name} does not read any. Leave guides=... out")
    for given, what in ((calls, "calls"), (guides or None, "guides")):
        if given is not None and images is None:
            raise FadevizError(f"{what}=... needs images=..., an example batch: it shows channels and sizes")


def _find_callers(model: nn.Module, calls: str | Sequence[str]) -> tuple[dict[str, Layer], list[str]]:
    """The modules whose calls may be replaced, by the name of their calls; and which were requested by name."""
    operators = [module for module in model.modules() if isinstance(module, Upsampler)]
    inside = {id(part) for operator in operators for part in operator.modules()}
    found: dict[str, Layer] = {}
    named: list[str] = []
    if not isinstance(calls, Sequence) or not calls:
        raise FadevizError(f"calls is {calls!r}: a name such as 'decoder.up1:interpolate' is needed, or None")
    for pattern in parse_patterns(calls):
        if not isinstance(pattern, str) or not split_function(pattern)[1]:
            raise FadevizError(f"calls has {pattern!r:.60}: a name such as 'decoder.up1:interpolate' is needed")
        chosen = choose_layers(model, pattern).layers
        of_interpolate = {name: layer for name, layer in chosen.items() if layer.function == "interpolate"}
        if not of_interpolate:
            raise FadevizError(f"calls has {pattern!r}, but only calls of interpolate can be replaced")
        for name, layer in of_interpolate.items():
            own = isinstance(layer.module, MODULES) or id(layer.module) in inside
            if own and "*" not in pattern:
                raise FadevizError(
                    f"calls has {name!r}, but {name.rpartition(':')[0]!r} is a module that upsamples by itself "
                    f"({type(layer.module).__name__}). Name it in layers=..."
                )
            if not own:
                found[name] = layer
        named += [] if "*" in pattern else of_interpolate
    return found, named


def _find_guide(model: nn.Module, guide: str) -> Layer:
    if not isinstance(guide, str) or "*" in guide or "," in guide:
        raise FadevizError(f"guides has {guide!r:.60}: the name of one layer is needed, e.g. 'encoder.2'")
    return next(iter(choose_layers(model, guide).layers.values()))


def _with_convolutions(
    model: nn.Module, modules: Mapping[str, nn.Module], sites: Sequence[Site], seen: ExamplePass | None
) -> list[Site]:
    """The sites, with the convolutions before a pixel shuffle in place of the shuffle."""
    names = {id(module): name for name, module in reversed(list(modules.items()))}
    found: list[Site] = []
    for site in sites:
        if not isinstance(site.module, nn.PixelShuffle) or site.reason:
            found.append(site)
            continue
        if seen is None:
            before, elsewhere = shuffled_in_sequence(model, site.module), []
            if not before or None in before:
                site.reason = "does not follow a Conv2d in an nn.Sequential. Give images=, an example batch"
        else:
            before = seen.convolutions.get(id(site.module), [])
            elsewhere = [one for one in before if one and seen.runs[id(one)] > len(seen.shuffled[id(one)])]
            if not before:
                site.reason = "did not run for the images (in eval mode)"
        several = shuffle_sites(site, before, names, elsewhere)
        if seen is not None:
            for one in several:
                one.uses = seen.shuffled.get(id(one.module), [])
        found += several
    return found


def _choose(
    sites: Sequence[Site],
    modules: Mapping[str, nn.Module],
    layers: str | nn.Module | Sequence[str | nn.Module] | None,
    network: str,
) -> tuple[list[Site], list[Site]]:
    """The sites that ``layers`` choose, and those among them that are requested by name."""
    if layers is None:
        return list(sites), []
    if isinstance(layers, Sequence) and not layers:
        return [], []
    patterns = parse_patterns(layers)
    names, exact = find_layers(modules, patterns, network), exact_layers(modules, patterns)
    chosen = [site for site in sites if any(site.has_name(name) for name in names)]
    for name in sorted(exact):
        if not any(site.has_name(name) for site in chosen):
            raise FadevizError(
                f"layer {name!r} of {network} is a {type(modules[name]).__name__}, which is not replaced. Name an "
                "Upsample, a ConvTranspose2d or a PixelShuffle"
            )
    if not chosen:
        raise FadevizError(f"layers={layers!r:.80} matches no module of {network} that upsamples")
    return chosen, [site for site in chosen if any(site.has_name(name) for name in exact)]


def _call_sites(seen: ExamplePass, callers: Mapping[str, Layer], named: Sequence[str], network: str) -> list[Site]:
    """The calls in the example images' pass."""
    found: list[Site] = []
    for name, layer in callers.items():
        module = layer.module
        of_module = [site for (caller, _), site in seen.calls.items() if caller == id(module)]
        if name in named and not of_module:
            called = ", ".join(sorted(seen.called.get(id(module), ()))) or "none"
            if isinstance(module, ModuleWithCalls) and module.replaced_calls:
                raise FadevizError(f"calls has {name!r}, whose calls are replaced already. Leave it out")
            raise FadevizError(
                f"calls has {name!r}, but there is no such call in {network}. Functions that are called there: {called}"
            )
        for site in of_module:
            site.known_as = (name,)
            child = site.layer.rpartition(".")[2]
            if isinstance(module, ModuleWithCalls) and module.replaced_calls:
                site.reason = "is in a module some of whose calls are replaced already. Replace them all at once"
            elif isinstance(module, torch.fx.GraphModule):
                site.reason = "is in a torch.fx.GraphModule, whose copies would lose it. Replace before tracing"
            elif not can_have_calls(type(module)):
                site.reason = f"is in a {type(module).__name__}, a class of which no subclass can be made"
            elif "forward" in module.__dict__ or isinstance(module, torch.jit.ScriptModule):
                site.reason = "is in a module whose forward was exchanged, as by accelerate, or is scripted"
            elif hasattr(module, child):
                site.reason = f"needs the name {child}, which its module has already"
        found += of_module
    if callers and not found:
        modules = (layer.module for layer in callers.values())
        replaced = any(isinstance(module, ModuleWithCalls) and module.replaced_calls for module in modules)
        already = ", other than those that are replaced already" if replaced else ""
        raise FadevizError(f"calls=... matches no call of interpolate in {network}{already}")
    return found


def _assign_guides(
    sites: Sequence[Site], guides: Mapping[str, str], reads_guide: bool, name: str, seen: ExamplePass | None
) -> None:
    for key, guide in guides.items():
        of_key = [site for site in sites if site.has_name(key)]
        if not of_key:
            raise unknown_name("upsampler to guide", key, [site.layer for site in sites])
        for site in of_key:
            site.guide = guide
    for site in sites if reads_guide else ():
        if site.reason:
            continue
        if not site.guide:
            raise FadevizError(
                f"{name} reads a guide, an encoder feature of the output's size, and {site.layer!r} has none. Give "
                f"guides={{{site.layer!r}: ...}}{_suggestion(site, seen)}, or leave it out of layers=... or calls=..."
            )
        _check_guide(site, seen)


def _check_guide(site: Site, seen: ExamplePass | None) -> None:
    channels = set()
    for use in site.uses:
        shape = use.guides.get(site.guide)
        if shape is None:
            raise FadevizError(
                f"the guide {site.guide!r} does not run before {site.layer!r}, which reads it. Choose another layer"
                f"{_suggestion(site, seen)}"
            )
        if isinstance(shape, str) or len(shape) != 4:
            got = shape if isinstance(shape, str) else f"a tensor {tuple(shape)}"
            raise FadevizError(
                f"the guide {site.guide!r} of {site.layer!r} returns {got}; a map (B, C, h, w) is needed. Choose "
                f"another layer{_suggestion(site, seen)}"
            )
        if (shape[0], *shape[2:]) != (use.returned[0], *use.returned[2:]):
            raise FadevizError(
                f"the guide {site.guide!r} of {site.layer!r} is {_size(shape)} after its latest call before it; "
                f"{_size(use.returned)}, the size of the output, is needed. Choose another layer"
                f"{_suggestion(site, seen)}"
            )
        channels.add(shape[1])
    if len(channels) > 1:
        raise FadevizError(
            f"the guide {site.guide!r} of {site.layer!r} has {' or '.join(map(str, sorted(channels)))} channels in one "
            "pass. Choose another layer"
        )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[2]}x{shape[3]} ({shape[0]} image{'s' * (shape[0] != 1)})"


def _suggestion(site: Site, seen: ExamplePass | None) -> str:
    """Layers that could guide a site: maps of the output's size that were there before, outer modules first."""
    if seen is None or not site.uses:
        return ""
    use = site.uses[0]
    fitting = [
        name
        for name, shape in seen.outputs[: use.before]
        if (shape[0], *shape[2:]) == (use.returned[0], *use.returned[2:])
    ]
    outer = sorted(dict.fromkeys(fitting), key=lambda name: name.count("."))
    return f", e.g. {_first(outer, 4)}" if outer else ""


def _build(sites: Sequence[Site], name: str, options: Mapping[str, object], seed: int) -> None:
    """Build the operator of each site that can be replaced; one that does not fit is a reason to leave the site."""
    # The random state of a GPU is not read; and tensors made in inference mode could not be trained.
    with torch.random.fork_rng([]), torch.inference_mode(False):
        torch.default_generator.manual_seed(seed)
        for site in sites:
            if not site.reason:
                try:
                    site.operator = _build_operator(site, name, options)
                except FadevizError as error:
                    site.reason = f"does not fit the operator: {error}"


def _build_operator(site: Site, name: str, options: Mapping[str, object]) -> Upsampler:
    parameters = inspect.signature(find_upsampler(name).build).parameters
    changes = site.in_channels != site.out_channels
    guided: dict[str, object] = {}
    if site.guide and "skip_channels" in parameters:
        shape = site.uses[0].guides[site.guide]
        guided["skip_channels"] = shape[1]
    channels = site.out_channels if site.guide else site.in_channels
    steps = site.factor.bit_length() - 1
    project_guide = None
    if guided and guided["skip_channels"] != channels:
        try:
            build_upsampler(name, channels, **options, **guided)
        except FadevizError:  # it mixes or compares guide and x, which then need the same channels
            project_guide = nn.Conv2d(int(site.uses[0].guides[site.guide][1]), channels, 1)
            guided["skip_channels"] = channels
    chain = [build_upsampler(name, channels, **options, **guided) for _ in range(steps - 1)]
    if changes and not site.guide and "out_channels" in parameters:
        changes = False
        guided["out_channels"] = site.out_channels
    chain.append(build_upsampler(name, channels, **options, **guided))
    operator = chain[0] if steps == 1 else UpsamplerChain(chain)
    if changes:
        bias = getattr(site.module, "bias", None) is not None
        operator.project = nn.Conv2d(site.in_channels, site.out_channels, 1, bias=bias)
        site.notes.append(f"1x1 convolution {'before' if site.guide else 'after'} it")
    if project_guide is not None:
        operator.project_guide = project_guide
        site.notes.append(f"1x1 convolution of the guide's {project_guide.in_channels} channels")
    return operator


def _by_name(sites: Sequence[Site], names: Iterable[str]) -> list[list[Site]]:
    return [[site for site in sites if site.has_name(name)] for name in names]


def _check_replaced(network: str, sites: Sequence[Site], required: Sequence[Sequence[Site]]) -> None:
    """Raise if nothing is replaced, or none of the sites that a name stands for."""
    if not sites:
        raise FadevizError(
            f"nothing to replace in {network}: none of the layers is an Upsample, a ConvTranspose2d or a "
            "PixelShuffle. Calls of F.interpolate are replaced with calls='**:interpolate'"
        )
    if any(site.operator for site in sites):
        for several in required:
            if all(site.reason for site in several):
                raise FadevizError(f"{several[0].layer!r} cannot be replaced: it {several[0].reason}")
        return
    reasons = [f"{site.layer!r} ({site.was}) {site.reason}" for site in sites]
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    raise FadevizError(f"nothing was replaced in {network}: {'; '.join(reasons[:5])}{more}")


def _install(
    model: nn.Module,
    sites: Sequence[Site],
    guide_layers: Mapping[str, Layer],
    places: Mapping[int, Sequence[str]],
    undo: list[Callable[[], object]],
) -> None:
    """Put the operators into the model; ``undo`` gets the calls that take them out again, in their order.

    ``places`` are those of the calls of each module, see :class:`ExamplePass`.
    """
    used = {site.guide for site in sites if site.operator is not None}
    guides = {name: Guide(name) for name in guide_layers if name in used}
    dtype = parameter_dtype(model)
    for site in sites:
        operator = site.operator
        if operator is None:
            continue
        like = next(site.module.parameters(), None) if site.call is None else None
        device = site.uses[0].device if site.uses else None if like is None else like.device
        operator.to(device, dtype if like is None else like.dtype).train(site.module.training)
        guide = guides.get(site.guide)
        projects = getattr(operator, "project", None) is not None
        projects_guide = getattr(operator, "project_guide", None) is not None
        hook = OperatorInput(site.layer, site.size, guide, projects and guide is not None, projects_guide)
        operator.register_forward_pre_hook(hook, with_kwargs=True)
        if projects and guide is None:
            operator.register_forward_hook(project_output)
        if site.call is None:
            _exchange(model, site.module, operator, undo)
            if site.shuffle is not None:
                _exchange(model, site.shuffle, nn.Identity().train(site.shuffle.training), undo)
        else:
            child = site.layer.rpartition(".")[2]
            site.module.add_module(child, operator)
            undo.append(partial(delattr, site.module, child))
            mixed = _mix_in(site.module, undo)
            mixed.replaced_calls[site.call], mixed.call_places = child, tuple(places[id(site.module)])
    for name, guide in guides.items():
        # Looked up again: it may be one of the operators.
        layer = _find_guide(model, name)
        if layer.function:
            _mix_in(layer.module, undo).guiding_calls.setdefault(layer.function, []).append(guide)
        else:
            undo.append(layer.module.register_forward_hook(guide.on_output).remove)
        undo.append(model.register_forward_pre_hook(guide.forget).remove)


def _exchange(model: nn.Module, old: nn.Module, new: nn.Module, undo: list[Callable[[], object]]) -> None:
    """Put ``new`` wherever a module of the model has ``old`` as a child."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new
                undo.append(partial(parent._modules.__setitem__, key, old))


_OF_CALLS = ("replaced_calls", "call_places", "guiding_calls")
"""The attributes of a module with calls."""


def _mix_in(module: nn.Module, undo: list[Callable[[], object]]) -> ModuleWithCalls:
    """Make a module one with calls by its class, or give one that is so copies of what it has, which may be changed."""
    calls: dict[int, str] = {}
    places: tuple[str, ...] = ()
    guides: dict[str, list[Guide]] = {}
    if isinstance(module, ModuleWithCalls):
        calls, guides = dict(module.replaced_calls), {name: list(some) for name, some in module.guiding_calls.items()}
        places = module.call_places
        undo += [partial(setattr, module, name, getattr(module, name)) for name in _OF_CALLS]
    else:
        cls = type(module)
        module.__class__ = class_with_calls(cls)
        undo.append(partial(setattr, module, "__class__", cls))
        undo += [partial(delattr, module, name) for name in _OF_CALLS]
    module.replaced_calls, module.call_places, module.guiding_calls = calls, places, guides  # type: ignore[assignment]
    return module  # type: ignore[return-value]


def _report(sites: Sequence[Site], operator: str) -> Replacement:
    replaced, left = [], []
    for site in sites:
        if site.operator is None:
            left.append(LeftUpsampler(site.layer, site.was, site.reason))
            continue
        replaced.append(
            ReplacedUpsampler(
                site.layer,
                site.was,
                operator,
                site.factor,
                site.in_channels,
                site.out_channels,
                sum(parameter.numel() for parameter in site.operator.parameters()),
                site.removed,
                site.guide,
                tuple(site.notes),
            )
        )
    return Replacement(tuple(replaced), tuple(left))


def _first(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


__all__ = ["replace_upsamplers"]
