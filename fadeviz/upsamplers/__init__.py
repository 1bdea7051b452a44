"""The table of upsampling operators: one name, one class, one contract; ``build_upsampler`` makes one."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import FadevizError, unknown_name
from ..ops.reassemble import reassemble, similarity
from .a2u import A2U
from .base import Skip, Upsampler
from .carafe import CARAFE
from .deconv import Deconv
from .dysample import DySample
from .fade import FADE
from .fade_lite import FADELite
from .freqfusion import FreqFusion
from .indexnet import IndexNet
from .lda_aqu import LDAAQU
from .max_unpool import MaxUnpool
from .one_sided import DecoderKernel, EncoderKernel
from .pixel_shuffle import PixelShuffle
from .plain import Bicubic, Bilinear, Nearest
from .sapa import SAPAB, SAPAG, SAPAI
from .semishift import SemiShift, SemiShiftConv


class Entry(NamedTuple):
    """A row of the table."""

    build: type[Upsampler]
    title: str
    """How figures call it."""
    needs: str
    """What it reads of the encoder: nothing, ``indices`` or ``feature``."""
    year: int = 0
    paper: str = "-"


UPSAMPLERS: dict[str, Entry] = {
    "nearest": Entry(Nearest, "Nearest", ""),
    "bilinear": Entry(Bilinear, "Bilinear", ""),
    "bicubic": Entry(Bicubic, "Bicubic", ""),
    "max_unpool": Entry(MaxUnpool, "Max unpooling", "indices", 2017, "Badrinarayanan et al., SegNet, TPAMI"),
    "deconv": Entry(Deconv, "Deconvolution", "", 2010, "Zeiler et al., Deconvolutional networks, CVPR"),
    "pixel_shuffle": Entry(PixelShuffle, "Pixel shuffle", "", 2016, "Shi et al., ESPCN, CVPR"),
    "carafe": Entry(CARAFE, "CARAFE", "", 2019, "Wang et al., ICCV"),
    "indexnet": Entry(IndexNet, "IndexNet", "feature", 2019, "Lu et al., ICCV"),
    "a2u": Entry(A2U, "A2U", "feature", 2021, "Dai et al., CVPR"),
    "fade": Entry(FADE, "FADE", "feature", 2022, "Lu et al., ECCV"),
    "fade_lite": Entry(FADELite, "FADE-Lite", "feature", 2024, "Lu et al., IJCV"),
    "semishift": Entry(SemiShift, "FADE without gate", "feature", 2022, "Lu et al., ECCV"),
    "encoder_kernel": Entry(EncoderKernel, "Encoder-only kernels", "feature", 2022, "Lu et al., ECCV"),
    "decoder_kernel": Entry(DecoderKernel, "Decoder-only kernels", "", 2022, "Lu et al., ECCV"),
    "dysample": Entry(DySample, "DySample", "", 2023, "Liu et al., ICCV"),
    "sapa_i": Entry(SAPAI, "SAPA-I", "feature", 2022, "Lu et al., NeurIPS"),
    "sapa_b": Entry(SAPAB, "SAPA-B", "feature", 2022, "Lu et al., NeurIPS"),
    "sapa_g": Entry(SAPAG, "SAPA-G", "feature", 2022, "Lu et al., NeurIPS"),
    "freqfusion": Entry(FreqFusion, "FreqFusion", "feature", 2024, "Chen et al., TPAMI"),
    "lda_aqu": Entry(LDAAQU, "LDA-AQU", "", 2024, "Du et al., ACM MM"),
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
    check_options(name, options, {p: v for p, v in inspect.signature(build).parameters.items() if p != "in_channels"})
    return build(in_channels, **options)


def check_keeps_channels(network: str, name: str, operator: Upsampler) -> None:
    """Raise unless the operator keeps the number of channels, as the networks' stages require.

    Raises:
        FadevizError: ``out_channels`` differs from ``in_channels``.
    """
    made = getattr(operator, "out_channels", None)
    if made is not None and made != getattr(operator, "in_channels", made):
        raise FadevizError(
            f"{network}: operators must keep the number of channels, but {name} has out_channels {made}. "
            "Leave out_channels out"
        )


def check_options(name: str, options: Mapping[str, object], known: Mapping[str, inspect.Parameter]) -> None:
    """Raise unless every option is one of ``known``, and of the type of its default.

    Raises:
        FadevizError: that.
    """
    for option, value in options.items():
        if option not in known:
            raise unknown_name(f"option of {name}", option, list(known))
        _check_option(name, option, value, known[option].default)


def _check_option(name: str, option: str, value: object, default: object) -> None:
    """An option's value must be of its default's type; counts must be positive; a default of None is a count's."""
    if default is None and value is None:
        return
    if isinstance(default, bool):
        fits, needed = isinstance(value, bool), "true or false"
    elif isinstance(default, float):
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        needed = "a number"
    elif default is None or isinstance(default, int):
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
    name, options = parse_options(text, "upsampler")
    if name not in UPSAMPLERS:
        raise unknown_name("upsampler", name, UPSAMPLERS, "fadeviz upsamplers")
    return name, options


def parse_options(text: str, what: str) -> tuple[str, dict[str, object]]:
    """Read ``"name:option=value,option=value"``: numbers, ``true`` and ``false`` as such, all else as text.

    Raises:
        FadevizError: an option without a value, or given twice; ``what`` is what it calls the thing.
    """
    name, _, rest = text.partition(":")
    options: dict[str, object] = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise FadevizError(f"{what} {text!r}: {part!r} is no option. Write {name}:option=value,option=value")
        if key.strip() in options:
            raise FadevizError(f"{what} {text!r}: {key.strip()} is given twice. Leave one of them out")
        try:
            options[key.strip()] = json.loads(value.strip().lower())
        except json.JSONDecodeError:
            options[key.strip()] = value.strip()
    return name, options


def split_upsamplers(text: str) -> list[str]:
    """Operators from one line: a comma stands between two of them, and between the options of one.

    Example:
        >>> split_upsamplers("nearest,fade:form=h2l,gate=off,carafe")
        ['nearest', 'fade:form=h2l,gate=off', 'carafe']
    """
    found: list[str] = []
    for part in text.split(",") if text else []:
        if found and ":" in found[-1] and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part.strip())
    return found


__all__ = [
    "A2U",
    "CARAFE",
    "FADE",
    "LDAAQU",
    "SAPAB",
    "SAPAG",
    "SAPAI",
    "UPSAMPLERS",
    "Bicubic",
    "Bilinear",
    "DecoderKernel",
    "Deconv",
    "DySample",
    "EncoderKernel",
    "Entry",
    "FADELite",
    "FreqFusion",
    "IndexNet",
    "MaxUnpool",
    "Nearest",
    "PixelShuffle",
    "SemiShift",
    "SemiShiftConv",
    "Skip",
    "Upsampler",
    "build_upsampler",
    "check_keeps_channels",
    "check_options",
    "parse_options",
    "parse_upsampler",
    "reassemble",
    "similarity",
    "split_upsamplers",
]
