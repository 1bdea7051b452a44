"""The cost of an operator where the papers compare them: parameters and multiply-adds in each network."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..errors import FadevizError
from ..upsamplers import build_upsampler, parse_upsampler
from . import find_network


class Cost(NamedTuple):
    """The cost of all operators of a network for one image.

    Attributes:
        parameters: parameters of all operators together.
        multiply_adds: one for a product and the sum it goes into; the papers' tables give this number as FLOPs.
    """

    parameters: int
    multiply_adds: int


def operator_cost(upsampler: str, network: str) -> Cost:
    """The cost of an operator, written ``"name"`` or ``"name:option=value"``, at all sites of a network.

    Args:
        upsampler: the operator.
        network: a name in ``NETWORKS``; the sites are those on images of its ``reference_size``.

    Raises:
        FadevizError: if there is no such operator, option or network, or the network does not list its sites.

    Example:
        >>> operator_cost("fade", "segformer")
        Cost(parameters=285084, multiply_adds=2653175808)
    """
    sites = find_network(network).sites
    if not sites:
        raise FadevizError(f"network {network!r} does not list the sites of its operators: no costs. Choose another")
    name, options = parse_upsampler(upsampler)
    parameters = multiply_adds = 0
    with torch.device("meta"):  # shapes alone: nothing is drawn or stored
        for channels, side in sites:
            operator = build_upsampler(name, channels, **options)
            parameters += sum(p.numel() for p in operator.parameters())
            multiply_adds += operator.multiply_adds(side, side)
    return Cost(parameters, multiply_adds)


__all__ = ["Cost", "operator_cost"]
