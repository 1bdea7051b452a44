"""The table of upsampling operators: one name, one class, one contract; ``build_upsampler`` makes one."""

from __future__ import annotations

import inspect
import json
from typing import NamedTuple

from ..errors import FadevizError, unknown_name
from .base import Skip, Upsampler
from .carafe import CARAFE
from .deconv import Deconv
from .fade import FADE, SemiShiftConv
from .max_unpool import MaxUnpool
from .pixel_shuffle import PixelShuffle
from .plain import Bilinear, Nearest
from .reassemble import reassemble


class Entry(NamedTuple):
    """A row of the table."""

    build: type[Upsampler]
    title: str
    """How figures call it."""
    needs: str
    """What it reads of the encoder: nothing, ``indices`` or ``feature``."""
    paper: str


UPSAMPLERS: dict[str, Entry] = {
    "nearest": Entry(Nearest, "Nearest", "", "-"),
    "bilinear": Entry(Bilinear, "Bilinear", "", "-"),
    "max_unpool": Entry(MaxUnpool, "Max unpooling", "indices", "SegNet, Badrinarayanan 2017"),
    "deconv": Entry(Deconv, "Deconvolution", "", "Zeiler 2010"),
    "pixel_shuffle": Entry(PixelShuffle, "Pixel shuffle", "", "Shi 2016"),
    "carafe": Entry(CARAFE, "CARAFE", "", "Wang 2019"),
    "fade": Entry(FADE, "FADE", "feature", "Lu 2022"),
}
"""Every operator by name. A new one is a file, a line here, a docstring and a test of its limit case."""


def build_upsampler(name: str, in_channels: int, **options: object) -> Upsampler:
    """Make the operator ``name`` for maps of ``in_channels``; ``options`` go to its class.

    Raises:
        FadevizError: no such operator, or no such option of it.

    Example:
        >>> build_upsampler("carafe", 16, kernel_size=3).kernel_size
        3
    """
    if name not in UPSAMPLERS:
        raise unknown_name("upsampler", name, UPSAMPLERS, "fadeviz upsamplers")
    build = UPSAMPLERS[name].build
    known = {p: v for p, v in inspect.signature(build).parameters.items() if p != "in_channels"}
    for option, value in options.items():
        if option not in known:
            raise unknown_name(f"option of {name}", option, list(known))
        _check_option(name, option, value, known[option].default)
    return build(in_channels, **options)


def _check_option(name: str, option: str, value: object, default: object) -> None:
    """An option's value must be of its default's type; counts must be positive."""
    if isinstance(default, bool):
        fits, needed = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, needed = (
            isinstance(value, int) and not isinstance(value, bool) and value >= 1,
            "a whole number, 1 or more",
        )
    else:
        fits, needed = isinstance(value, type(default)), f"a {type(default).__name__}"
    if not fits:
        raise FadevizError(f"{name}: {option} is {value!r}; it must be {needed}. Default: {str(default).lower()}")


def parse_upsampler(text: str) -> tuple[str, dict[str, object]]:
    """Read an operator with its options: ``"pixel_shuffle:icnr=true,kernel_size=5"``.

    Raises:
        FadevizError: no such operator, or an option without a value.

    Example:
        >>> parse_upsampler("carafe:kernel_size=3")
        ('carafe', {'kernel_size': 3})
    """
    name, _, rest = text.partition(":")
    if name not in UPSAMPLERS:
        raise unknown_name("upsampler", name, UPSAMPLERS, "fadeviz upsamplers")
    options: dict[str, object] = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise FadevizError(
                f"upsampler {text!r}: {part!r} is no option. Write {name}:option=value, e.g. kernel_size=3"
            )
        try:
            options[key.strip()] = json.loads(value.strip().lower())
        except json.JSONDecodeError:
            options[key.strip()] = value.strip()
    return name, options


__all__ = [
    "CARAFE",
    "FADE",
    "UPSAMPLERS",
    "Bilinear",
    "Deconv",
    "Entry",
    "MaxUnpool",
    "Nearest",
    "PixelShuffle",
    "SemiShiftConv",
    "Skip",
    "Upsampler",
    "build_upsampler",
    "parse_upsampler",
    "reassemble",
]
