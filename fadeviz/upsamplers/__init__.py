"""The table of upsampling operators: one name, one class, one contract; ``build_upsampler`` builds one by name."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from typing import NamedTuple

from .. import plugins
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


class UpsamplerEntry(NamedTuple):
    """A row of the table.

    Attributes:
        build: the operator's class, called with the number of channels and its options.
        title: the operator's name in figures and reports.
        needs: what it reads from the encoder: ``"feature"``, ``"indices"``, or nothing.
        year: year of the paper; 0 if there is none.
        paper: the paper's authors and venue.
    """

    build: type[Upsampler]
    title: str
    needs: str = ""
    year: int = 0
    paper: str = "-"


UPSAMPLERS: dict[str, UpsamplerEntry] = {
    "nearest": UpsamplerEntry(Nearest, "Nearest", ""),
    "bilinear": UpsamplerEntry(Bilinear, "Bilinear", ""),
    "bicubic": UpsamplerEntry(Bicubic, "Bicubic", ""),
    "max_unpool": UpsamplerEntry(MaxUnpool, "Max unpooling", "indices", 2017, "Badrinarayanan et al., SegNet, TPAMI"),
    "deconv": UpsamplerEntry(Deconv, "Deconvolution", "", 2010, "Zeiler et al., Deconvolutional networks, CVPR"),
    "pixel_shuffle": UpsamplerEntry(PixelShuffle, "Pixel shuffle", "", 2016, "Shi et al., ESPCN, CVPR"),
    "carafe": UpsamplerEntry(CARAFE, "CARAFE", "", 2019, "Wang et al., ICCV"),
    "indexnet": UpsamplerEntry(IndexNet, "IndexNet", "feature", 2019, "Lu et al., ICCV"),
    "a2u": UpsamplerEntry(A2U, "A2U", "feature", 2021, "Dai et al., CVPR"),
    "fade": UpsamplerEntry(FADE, "FADE", "feature", 2022, "Lu et al., ECCV"),
    "fade_lite": UpsamplerEntry(FADELite, "FADE-Lite", "feature", 2024, "Lu et al., IJCV"),
    "semishift": UpsamplerEntry(SemiShift, "FADE without gate", "feature", 2022, "Lu et al., ECCV"),
    "encoder_kernel": UpsamplerEntry(EncoderKernel, "Encoder-only kernels", "feature", 2022, "Lu et al., ECCV"),
    "decoder_kernel": UpsamplerEntry(DecoderKernel, "Decoder-only kernels", "", 2022, "Lu et al., ECCV"),
    "dysample": UpsamplerEntry(DySample, "DySample", "", 2023, "Liu et al., ICCV"),
    "sapa_i": UpsamplerEntry(SAPAI, "SAPA-I", "feature", 2022, "Lu et al., NeurIPS"),
    "sapa_b": UpsamplerEntry(SAPAB, "SAPA-B", "feature", 2022, "Lu et al., NeurIPS"),
    "sapa_g": UpsamplerEntry(SAPAG, "SAPA-G", "feature", 2022, "Lu et al., NeurIPS"),
    "freqfusion": UpsamplerEntry(FreqFusion, "FreqFusion", "feature", 2024, "Chen et al., TPAMI"),
    "lda_aqu": UpsamplerEntry(LDAAQU, "LDA-AQU", "", 2024, "Du et al., ACM MM"),
}
"""fadeviz's own operators by name. A new one is a file, a line here, a docstring and a test of its limit case.

Other packages add theirs under the entry-point group ``fadeviz.upsamplers``; :func:`find_upsampler` finds both.
"""


def _fault(entry: object) -> str:
    """What is wrong with another package's entry; empty for nothing."""
    if not isinstance(entry, UpsamplerEntry):
        return f"is a {type(entry).__name__}; a fadeviz.upsamplers.UpsamplerEntry is needed"
    build: object = entry.build
    if not (isinstance(build, type) and issubclass(build, Upsampler)):
        return "does not build a fadeviz.upsamplers.Upsampler. Derive the operator's class from it"
    if entry.needs not in ("", "feature", "indices"):
        return f"needs {entry.needs!r}; an operator reads 'feature', 'indices' or ''"
    return ""


_TABLE = plugins.Table("upsampler", plugins.UPSAMPLERS, UPSAMPLERS, _fault, see="fadeviz upsamplers")


def find_upsampler(name: str) -> UpsamplerEntry:
    """The row of the operator ``name``: fadeviz's own, or another package's.

    Raises:
        FadevizError: if there is no such operator, or its package is broken.
    """
    return _TABLE.find(name)


def all_upsamplers() -> dict[str, UpsamplerEntry]:
    """Every operator by name: fadeviz's own, then those of other packages.

    Raises:
        FadevizError: if another package is broken, or uses a name of fadeviz's own.
    """
    return _TABLE.all()


def build_upsampler(name: str, in_channels: int, **options: object) -> Upsampler:
    """Build the operator ``name`` for maps of ``in_channels``; ``options`` go to its class.

    Raises:
        FadevizError: if there is no such operator, or it has no such option.

    Example:
        >>> build_upsampler("carafe", 16, kernel_size=3).kernel_size
        3
    """
    build = find_upsampler(name).build
    check_options(name, options, {p: v for p, v in inspect.signature(build).parameters.items() if p != "in_channels"})
    return build(in_channels, **options)


def check_keeps_channels(network: str, name: str, operator: Upsampler) -> None:
    """Raise unless the operator keeps the number of channels, as the networks' stages require.

    Raises:
        FadevizError: if ``out_channels`` differs from ``in_channels``.
    """
    out_channels = getattr(operator, "out_channels", None)
    if out_channels is not None and out_channels != getattr(operator, "in_channels", out_channels):
        raise FadevizError(
            f"{network}: operators must keep the number of channels, but {name} has out_channels {out_channels}. "
            "Leave out_channels out"
        )


def check_options(name: str, options: Mapping[str, object], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Raise unless every option is one of ``parameters``, and of the type of its default.

    Raises:
        FadevizError: if an option is unknown, or its value has another type or is out of range.
    """
    for option, value in options.items():
        if option not in parameters:
            raise unknown_name(f"option of {name}", option, list(parameters))
        _check_option(name, option, value, parameters[option].default)


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
        FadevizError: if there is no such operator, or an option has no value.

    Example:
        >>> parse_upsampler("carafe:kernel_size=3")
        ('carafe', {'kernel_size': 3})
    """
    name, options = parse_options(text, "upsampler")
    find_upsampler(name)
    return name, options


def parse_options(text: str, what: str) -> tuple[str, dict[str, object]]:
    """Read ``"name:option=value,option=value"``: numbers, ``true`` and ``false`` as such, all else as text.

    Args:
        text: the name and its options.
        what: the noun for messages: ``"upsampler"``.

    Raises:
        FadevizError: if an option has no value, or is given twice.
    """
    name, _, rest = text.partition(":")
    options: dict[str, object] = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise FadevizError(f"{what} {text!r}: {part!r} is not an option. Write {name}:option=value,option=value")
        if key.strip() in options:
            raise FadevizError(f"{what} {text!r}: {key.strip()} is given twice. Leave one of them out")
        try:
            options[key.strip()] = json.loads(value.strip().lower())
        except json.JSONDecodeError:
            options[key.strip()] = value.strip()
    return name, options


def split_upsamplers(text: str) -> list[str]:
    """Split a comma-separated list of operators, whose options are separated by commas too.

    Example:
        >>> split_upsamplers("nearest,fade:form=h2l,gate=off,carafe")
        ['nearest', 'fade:form=h2l,gate=off', 'carafe']
    """
    names: list[str] = []
    for part in text.split(",") if text else []:
        if names and ":" in names[-1] and "=" in part and ":" not in part:
            names[-1] += f",{part}"
        else:
            names.append(part.strip())
    return names


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
    "UpsamplerEntry",
    "all_upsamplers",
    "build_upsampler",
    "check_keeps_channels",
    "check_options",
    "find_upsampler",
    "parse_options",
    "parse_upsampler",
    "reassemble",
    "similarity",
    "split_upsamplers",
]
