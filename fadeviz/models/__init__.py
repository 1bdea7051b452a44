"""The table of networks whose upsampling operator can be exchanged."""

from __future__ import annotations

import inspect

import torch

from ..errors import unknown_name
from ..upsamplers import check_options, parse_options
from .matting import MattingNet
from .segformer import SegFormer
from .segnet import SegNet

Network = SegNet | SegFormer | MattingNet
"""What training, probes and figures are given: an ``encoder``, operators that ``layers`` names, a ``figure_layer``, the
``task`` that it is for."""

NETWORKS: dict[str, type[Network]] = {"segnet": SegNet, "segformer": SegFormer, "matting": MattingNet}
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
        classes: channels of the output; a matting network has one.
        width: multiplier of every channel count.

    Raises:
        FadevizError: no such network or operator.
    """
    network, options = parse_network(name)
    if NETWORKS[network].task == "segmentation":
        options["classes"] = classes
    return NETWORKS[network](upsampler, width=width, **options)  # type: ignore[arg-type]


def map_shapes(model: Network) -> dict[str, tuple[int, float]]:
    """Of each module that gives a map: its channels, and how many times smaller its sides are than the image's."""
    shapes: dict[str, tuple[int, float]] = {}
    side = 2 * model.stride

    def note(name: str, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            shapes.setdefault(name, (output.shape[1], side / output.shape[2]))

    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: note(name, output))
        for name, module in model.named_modules()
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, model.channels if isinstance(model, MattingNet) else 3, side, side))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return shapes


__all__ = ["NETWORKS", "MattingNet", "Network", "SegFormer", "SegNet", "build_network", "map_shapes", "parse_network"]
