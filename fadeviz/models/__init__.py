"""The table of networks whose upsampling operator can be exchanged."""

from __future__ import annotations

import inspect

from .. import plugins
from ..upsamplers import check_options, parse_options
from .base import REQUIRED, Network, Site
from .matting import MattingNet
from .recipes import Recipe
from .segformer import SegFormer
from .segnet import SegNet
from .unet import UNet

NETWORKS: dict[str, type[Network]] = {
    "segnet": SegNet,
    "unet": UNet,
    "segformer": SegFormer,
    "matting": MattingNet,
}
"""fadeviz's own networks by name. A new one is a file and a line here.

Other packages add theirs under the entry-point group ``fadeviz.networks``; :func:`find_network` finds both.
"""


def _fault(entry: object) -> str:
    """What is wrong with another package's entry; empty for nothing."""
    if not (isinstance(entry, type) and issubclass(entry, Network)):
        kind = entry.__name__ if isinstance(entry, type) else f"a {type(entry).__name__}"
        return f"is {kind}; a subclass of fadeviz.models.Network is needed"
    missing = [name for name in REQUIRED if not hasattr(entry, name)]
    return f"does not define {', '.join(missing)}. Define them on the class" if missing else ""


_TABLE = plugins.Table("network", plugins.NETWORKS, NETWORKS, _fault)


def find_network(name: str) -> type[Network]:
    """The class of the network ``name``: fadeviz's own, or another package's.

    Raises:
        FadevizError: if there is no such network, or its package is broken.
    """
    return _TABLE.find(name)


def all_networks() -> dict[str, type[Network]]:
    """Every network by name: fadeviz's own, then those of other packages.

    Raises:
        FadevizError: if another package is broken, or uses a name of fadeviz's own.
    """
    return _TABLE.all()


def parse_network(text: str) -> tuple[str, dict[str, object]]:
    """Read a network with its options: ``"segformer:backbone=b1"``.

    Raises:
        FadevizError: if there is no such network or option.

    Example:
        >>> parse_network("segformer:backbone=b1")
        ('segformer', {'backbone': 'b1'})
    """
    name, options = parse_options(text, "network")
    parameters = {
        parameter: value
        for parameter, value in inspect.signature(find_network(name)).parameters.items()
        if value.kind is inspect.Parameter.KEYWORD_ONLY
    }
    check_options(name, options, parameters)
    return name, options


def build_network(name: str, upsampler: str = "fade", *, classes: int = 2, width: float = 1.0) -> Network:
    """Build the network ``name`` with one upsampling operator wherever it doubles a map.

    The weights are drawn from torch's global generator, those of the operators last: with one seed, networks that
    differ in the operator alone start with the same encoder and decoder weights.

    Args:
        name: a network's name, with options if need be: ``"segformer:backbone=b1"``.
        upsampler: an operator's name, with options if need be: ``"pixel_shuffle:icnr=true"``.
        classes: channels of the output; without effect on a network that has no ``classes``, as for matting.
        width: multiplier of every channel count.

    Raises:
        FadevizError: if there is no such network or operator.
    """
    network, options = parse_network(name)
    build = find_network(network)
    if "classes" in inspect.signature(build).parameters:
        options["classes"] = classes
    return build(upsampler, width=width, **options)


__all__ = [
    "NETWORKS",
    "MattingNet",
    "Network",
    "Recipe",
    "SegFormer",
    "SegNet",
    "Site",
    "UNet",
    "all_networks",
    "build_network",
    "find_network",
    "parse_network",
]
