"""What an operator costs where the papers compare them: parameters and multiply-adds in each network."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import build_upsampler, parse_upsampler

SITES: dict[str, tuple[tuple[int, int], ...]] = {
    "segnet": ((512, 7), (512, 14), (256, 28), (128, 56), (64, 112)),
    "segformer": ((256, 16), (256, 32), (256, 64), (256, 32), (256, 64), (256, 64)),
    "matting": ((256, 32), (128, 64), (64, 128), (64, 256)),
}
"""Channels and low-resolution side of every operator in a network: SegNet on images of 224x224; SegFormer's head on
512x512, where the three coarse maps climb to a quarter of the image in three, two and one steps; and the matting
network's decoder on 512x512, from 1/16 to full resolution."""


class Cost(NamedTuple):
    """What all operators of a network need for one image.

    ``multiply_adds`` counts one for a product and the sum it goes into; the papers' tables give this number as FLOPs.
    """

    parameters: int
    multiply_adds: int


def operator_cost(upsampler: str, network: str) -> Cost:
    """The cost of an operator, written ``"name"`` or ``"name:option=value"``, at all sites of a network in ``SITES``.

    Raises:
        FadevizError: no such operator or option.

    Example:
        >>> operator_cost("fade", "segformer")
        Cost(parameters=285084, multiply_adds=2653175808)
    """
    name, options = parse_upsampler(upsampler)
    parameters = multiply_adds = 0
    with torch.device("meta"):  # shapes alone: nothing is drawn or stored
        for channels, side in SITES[network]:
            operator = build_upsampler(name, channels, **options)
            parameters += sum(p.numel() for p in operator.parameters())
            multiply_adds += operator.multiply_adds(side, side)
    return Cost(parameters, multiply_adds)
