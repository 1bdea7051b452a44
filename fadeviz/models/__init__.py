"""The table of networks whose upsampling operator can be exchanged."""

from __future__ import annotations

from ..errors import unknown_name
from .segnet import SegNet

NETWORKS: dict[str, type[SegNet]] = {"segnet": SegNet}
"""Every network by name."""


def build_network(name: str, upsampler: str = "fade", *, classes: int = 2, width: float = 1.0) -> SegNet:
    """Make the network ``name`` with one upsampling operator at every stage.

    The weights are drawn from torch's global generator, those of the operators last: with one seed, networks that
    differ in the operator alone start with the same encoder and decoder weights.

    Args:
        name: a name in ``NETWORKS``.
        upsampler: a name in ``UPSAMPLERS``, with options if need be: ``"pixel_shuffle:icnr=true"``.
        classes: channels of the output.
        width: multiplier of every channel count.

    Raises:
        FadevizError: no such network or operator.
    """
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    return NETWORKS[name](upsampler, classes=classes, width=width)


__all__ = ["NETWORKS", "SegNet", "build_network"]
