"""The table of networks whose upsampling operator can be exchanged."""

from __future__ import annotations

import inspect

from ..errors import unknown_name
from ..upsamplers import check_options, parse_options
from .segformer import SegFormer
from .segnet import SegNet

Network = SegNet | SegFormer
"""What training, probes and figures are given: an ``encoder``, operators that ``layers`` names, a ``figure_layer``."""

NETWORKS: dict[str, type[Network]] = {"segnet": SegNet, "segformer": SegFormer}
"""Every network by name."""


def parse_network(text: str) -> tuple[str, dict[str, object]]:
    """Read a network with its options: ``"segformer:backbone=b1"``.

    Raises:
        FadevizError: no such network or option.

    Example:
        >>> parse_network("segformer:backbone=b1")
        ('segformer', {'backbone': 'b1'})
    """
    name, options = parse_options(text, "network")
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    known = {
        parameter: value
        for parameter, value in inspect.signature(NETWORKS[name]).parameters.items()
        if value.kind is inspect.Parameter.KEYWORD_ONLY
    }
    check_options(name, options, known)
    return name, options


def build_network(name: str, upsampler: str = "fade", *, classes: int = 2, width: float = 1.0) -> Network:
    """Make the network ``name`` with one upsampling operator wherever it doubles a map.

    The weights are drawn from torch's global generator, those of the operators last: with one seed, networks that
    differ in the operator alone start with the same encoder and decoder weights.

    Args:
        name: a name in ``NETWORKS``, with options if need be: ``"segformer:backbone=b1"``.
        upsampler: a name in ``UPSAMPLERS``, with options if need be: ``"pixel_shuffle:icnr=true"``.
        classes: channels of the output.
        width: multiplier of every channel count.

    Raises:
        FadevizError: no such network or operator.
    """
    network, options = parse_network(name)
    return NETWORKS[network](upsampler, classes=classes, width=width, **options)  # type: ignore[arg-type]


__all__ = ["NETWORKS", "Network", "SegFormer", "SegNet", "build_network", "parse_network"]
