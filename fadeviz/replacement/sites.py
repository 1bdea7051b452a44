"""The places in a model where maps are upsampled, and whether an operator of factor 2, 4, 8, ... fits there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..upsamplers import Upsampler

MODULES = (nn.Upsample, nn.ConvTranspose2d, nn.PixelShuffle)
"""The modules that can be replaced."""

_OTHERS: Mapping[type[nn.Module], str] = {
    nn.ConvTranspose1d: "upsamples sequences, not maps",
    nn.ConvTranspose3d: "upsamples volumes, not maps",
    nn.MaxUnpool1d: "upsamples sequences, not maps",
    nn.MaxUnpool2d: "is called with the indices of a max pooling, which an operator in its place would not read",
    nn.MaxUnpool3d: "upsamples volumes, not maps",
}

ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.PReLU, nn.Identity,
)  # fmt: skip
"""Activations that may be between a convolution and its pixel shuffle: they stay, and act on the operator's output."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Use(NamedTuple):
    """One use of a place in a forward pass.

    Attributes:
        given: shape of the input.
        returned: shape of the output.
        device: of the input.
        floating: whether the input has floating-point values.
        by_size: whether the output's size was given, and not a factor.
        guides: by the name of each guide that has run before, the shape of its output, or what else it returned.
        before: how many outputs of layers came before.
    """

    given: tuple[int, ...]
    returned: tuple[int, ...]
    device: torch.device
    floating: bool
    by_size: bool
    guides: Mapping[str, torch.Size | str]
    before: int


@dataclass
class Site:
    """A place where maps are upsampled.

    Attributes:
        layer: the name of the operator in its place.
        was: what is there: the class of a module, or ``interpolate`` for a call.
        module: the module to replace, or the one that calls.
        call: the number of the call in a forward pass of the module; None if the module is to be replaced.
        shuffle: the pixel shuffle after a convolution to replace, which becomes an identity.
        known_as: other names by which it may be chosen.
        in_channels: channels of the input; 0 if unknown.
        out_channels: channels of the output; 0 if unknown.
        factor: the number by which it multiplies both sides; 0 if unknown.
        size: the size of the output that a module was built for.
        removed: the number of its parameters.
        notes: what is not kept.
        uses: those in the example images' pass.
        guide: the name of the layer whose output the operator reads; empty for none.
        operator: what takes its place, once it is built.
        reason: why it cannot be replaced, beginning with a verb; empty if it can.
    """

    layer: str
    was: str
    module: nn.Module
    call: int | None = None
    shuffle: nn.Module | None = None
    known_as: tuple[str, ...] = ()
    in_channels: int = 0
    out_channels: int = 0
    factor: int = 0
    size: Any = None
    removed: int = 0
    notes: list[str] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    guide: str = ""
    operator: Upsampler | None = None
    reason: str = ""

    def has_name(self, name: str) -> bool:
        """Whether it may be chosen by this name."""
        return name == self.layer or name in self.known_as

    def judge_uses(self) -> None:
        """Complete channels and factor from the uses, or give the reason why no operator fits."""
        if self.reason:
            return
        if not self.uses:
            self.reason = "did not run for the images (in eval mode)"
            return
        for use in self.uses:
            self.reason = self.reason or _why_no_map(use)
        if self.reason:
            return
        factors = {use.returned[2] // use.given[2] for use in self.uses}
        given = {use.given[1] for use in self.uses}
        if len(factors) > 1:
            self.reason = f"has several factors in one pass: {_listed(factors)}"
        elif len(given) > 1:
            self.reason = (
                f"is used with {_listed(given)} channels in one pass, and an operator has one number of channels. "
                "Give each use a module of its own"
            )
        elif self.factor and {self.factor} != factors:
            self.reason = f"multiplies the sides by {self.factor}, but by {_listed(factors)} for the images"
        else:
            self.factor, self.in_channels, self.out_channels = *factors, *given, self.uses[0].returned[1]


def _why_no_map(use: Use) -> str:
    if len(use.given) != 4 or len(use.returned) != 4:
        return f"has an input of {len(use.given)} axes; a batch of maps (B, C, h, w) is needed"
    if not use.floating:
        return "has whole numbers as input, such as a mask"
    if use.by_size and use.given[2:] == (1, 1) != use.returned[2:]:
        return "spreads one pixel over a map, whose size follows the image's"
    return _why_no_factor(use.given[2:], use.returned[2:])


def _why_no_factor(given: Sequence[int], returned: Sequence[int]) -> str:
    (h, w), (rows, columns) = given, returned
    sizes = f"{h}x{w} to {rows}x{columns}"
    if (h, w) == (rows, columns):
        return "keeps the size (factor 1)"
    if rows < h or columns < w:
        return f"downsamples, from {sizes}"
    if rows % h or columns % w:
        return f"goes from {sizes}, which is no whole factor"
    if rows // h != columns // w:
        return f"multiplies rows by {rows // h} and columns by {columns // w}"
    return _why_no_power(rows // h)


def _why_no_power(factor: float) -> str:
    if factor >= 2 and factor == int(factor) and int(factor).bit_count() == 1:
        return ""
    return f"has factor {factor:g}; a power of two is needed"


def find_sites(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[Site]:
    """The modules that upsample, in the network's order: pixel shuffles without their convolutions.

    Args:
        model: the model.
        modules: its modules by name.
    """
    operators = [module for module in model.modules() if isinstance(module, Upsampler)]
    inside = {id(part) for operator in operators for part in operator.modules() if part is not operator}
    names: dict[int, list[str]] = {}
    for name, module in modules.items():
        names.setdefault(id(module), []).append(name)
    for (first, *others), module in ((named, modules[named[0]]) for named in names.values()):
        if id(module) in inside or not isinstance(module, (Upsampler, *MODULES, *_OTHERS)):
            continue
        site = Site(first, _class_name(module), module, known_as=tuple(others))
        site.removed = sum(parameter.numel() for parameter in module.parameters())
        if isinstance(module, Upsampler):
            site.reason = "is one of fadeviz's operators already"
        elif isinstance(module, MODULES):
            site.reason = why_changed(module)
        else:
            site.reason = next(reason for cls, reason in _OTHERS.items() if isinstance(module, cls))
        if not site.reason and isinstance(module, nn.Upsample):
            _judge_upsample(site, module)
        elif not site.reason and isinstance(module, nn.ConvTranspose2d):
            _judge_transposed(site, module)
        elif not site.reason and isinstance(module, nn.PixelShuffle):
            site.factor, site.reason = module.upscale_factor, _why_no_power(module.upscale_factor)
        yield site


def _class_name(module: nn.Module) -> str:
    return type(module).__name__


def why_changed(module: nn.Module) -> str:
    """Why a module does not do what its class in ``torch.nn`` does; empty if it does."""
    base: Any = next(cls for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn.modules."))
    if parametrize.is_parametrized(module):
        return "has a parametrization such as spectral_norm. Remove it first"
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return "has hooks, which would be lost. Remove them first"
    if type(module).forward is not base.forward or "forward" in module.__dict__:
        return f"has a forward of its own, other than {base.__name__}'s"
    return ""


def _judge_upsample(site: Site, module: nn.Upsample) -> None:
    if module.mode in ("linear", "trilinear"):
        site.reason = f"upsamples {'sequences' if module.mode == 'linear' else 'volumes'}, not maps"
        return
    if module.align_corners:
        site.notes.append("align_corners=True is not kept")
    if module.size is not None:
        site.size = module.size
        return
    scale: Any = module.scale_factor
    scales = set(scale) if isinstance(scale, Iterable) else {scale}
    if len(scales) > 1:
        site.reason = f"has scale_factor {scale}; one factor for both sides is needed"
    else:
        (factor,) = scales
        site.reason = "keeps the size (factor 1)" if factor == 1 else _why_no_power(factor)
        site.factor = 0 if site.reason else int(factor)


def _judge_transposed(site: Site, module: nn.ConvTranspose2d) -> None:
    site.in_channels, site.out_channels = module.in_channels, module.out_channels
    stride = set(module.stride)
    if len(stride) > 1:
        site.reason = f"has stride {module.stride}; one factor for both sides is needed"
    elif stride == {1}:
        site.reason = "has stride 1"
    elif module.groups != 1:
        site.reason = f"has groups {module.groups}"
    elif set(module.dilation) != {1}:
        site.reason = f"has dilation {module.dilation}"
    else:
        (s,) = stride
        site.reason = _why_no_power(s)
        if not site.reason and not any(_extra_sides(module)):
            site.factor = s
        # An output_size that is given in each call replaces the output padding, which is less than the stride.
        elif not site.reason and not all(
            0 <= padding - extra < s for padding, extra in zip(module.output_padding, _extra_sides(module), strict=True)
        ):
            site.reason = _why_not_exact(module)


def _extra_sides(module: nn.ConvTranspose2d) -> list[int]:
    """What the output's height and width are more than stride times the input's."""
    return [
        module.kernel_size[axis] - module.stride[axis] - 2 * int(module.padding[axis]) + module.output_padding[axis]
        for axis in (0, 1)
    ]


def _why_not_exact(module: nn.ConvTranspose2d) -> str:
    s = module.stride[0]
    several = " and ".join(f"{s}h{extra:+d}" for extra in sorted(set(_extra_sides(module))))
    return f"turns h pixels into {several}, not {s}h. Change its padding"


def why_unknown(site: Site) -> str:
    """Why a place cannot be replaced without example images; empty if it can."""
    if not site.factor and isinstance(site.module, nn.ConvTranspose2d):
        return _why_not_exact(site.module)
    if not site.factor or not site.in_channels:
        return "has channels that are not known without images. Give images=, an example batch"
    return ""


def shuffle_sites(
    site: Site, convolutions: Sequence[nn.Module | None], names: Mapping[int, str], elsewhere: Iterable[nn.Module]
) -> list[Site]:
    """The convolutions before a pixel shuffle, each of which an operator can replace together with it.

    Args:
        site: the shuffle.
        convolutions: what each of its inputs comes from, directly or through elementwise activations; None for anything
            but a convolution.
        names: by a module's id, its name.
        elsewhere: convolutions whose output is used elsewhere too.

    Returns:
        A site for each convolution; or the shuffle's, with the reason why it cannot be replaced.
    """
    if site.reason:
        return [site]
    others = {id(module) for module in elsewhere}
    found: dict[int, Site] = {}
    for convolution in convolutions:
        if not isinstance(convolution, nn.Conv2d) or id(convolution) not in names:
            site.reason = (
                "has an input that does not come from a Conv2d, directly or through an activation such as ReLU"
            )
            return [site]
        name = names[id(convolution)]
        reason = why_changed(convolution) or _why_not_to_shuffle(convolution, site.factor)
        if id(convolution) in others:
            reason = reason or "has an output that is also used elsewhere"
        if reason:
            site.reason = f"follows {name!r}, which {reason}"
            return [site]
        found[id(convolution)] = Site(
            name,
            "Conv2d, PixelShuffle",
            convolution,
            shuffle=site.module,
            known_as=(site.layer, *site.known_as),
            in_channels=convolution.in_channels,
            out_channels=convolution.out_channels // site.factor**2,
            factor=site.factor,
            removed=sum(parameter.numel() for parameter in convolution.parameters()),
        )
    return list(found.values())


def _why_not_to_shuffle(convolution: nn.Conv2d, factor: int) -> str:
    if convolution.groups != 1:
        return f"has groups {convolution.groups}"
    if set(convolution.dilation) != {1}:
        return f"has dilation {convolution.dilation}"
    padding = convolution.padding
    keeps = padding == "same" or all(
        isinstance(p, int) and 2 * p == k - 1 for p, k in zip(padding, convolution.kernel_size, strict=False)
    )
    if set(convolution.stride) != {1} or not keeps:
        return "changes the size of the map"
    return "" if convolution.out_channels % factor**2 == 0 else f"has {convolution.out_channels} output channels"


def shuffled_in_sequence(model: nn.Module, shuffle: nn.Module) -> list[nn.Module | None]:
    """What each input of a pixel shuffle comes from, as far as the order in ``nn.Sequential`` shows it."""
    found: list[nn.Module | None] = []
    for parent in model.modules():
        parts = list(parent._modules.values())
        for place in (number for number, part in enumerate(parts) if part is shuffle):
            before = place - 1
            while before >= 0 and is_elementwise(parts[before]):
                before -= 1
            found.append(parts[before] if type(parent) is nn.Sequential and before >= 0 else None)
    return found


def is_elementwise(module: nn.Module | None) -> bool:
    """Whether a module acts on every value alike, so that it may be before or after a pixel shuffle."""
    return type(module) in ELEMENTWISE and not (isinstance(module, nn.PReLU) and module.num_parameters > 1)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


__all__ = ["MODULES", "Site", "Use", "find_sites", "is_elementwise", "shuffle_sites", "shuffled_in_sequence",
           "why_changed", "why_unknown"]  # fmt: skip
