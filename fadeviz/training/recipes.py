"""How each network is trained in the papers: optimiser, learning rate over the steps, weight decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .loop import step_decay


@dataclass(frozen=True)
class Recipe:
    """What trains a network.

    Attributes:
        lr: the learning rate, where none is given.
        weight_decay: where none is given.
        lr_drops: shares of the run at which the learning rate falls to a tenth, where none are given.
        optimizer: ``(model, lr, weight_decay, momentum)``; a parameter group may have an ``lr_factor``.
        lr_at: ``(lr, steps, drops)`` gives the learning rate of each step.
    """

    lr: float
    weight_decay: float
    lr_drops: tuple[float, ...]
    optimizer: Callable[[nn.Module, float, float, float], torch.optim.Optimizer]
    lr_at: Callable[[float, int, tuple[float, ...]], Callable[[int], float]]


def sgd(model: nn.Module, lr: float, weight_decay: float, momentum: float) -> torch.optim.Optimizer:
    """SGD with momentum."""
    fused = _fused(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused)
    if fused and momentum:
        # Torch would leave these uninitialised where a gradient scaler leaves out the first step.
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _fused(model: nn.Module) -> bool | None:
    """On a GPU few launches update all parameters, and a gradient scaler's check needs no answer on the CPU.

    Elsewhere None, torch's own choice.
    """
    return True if next(model.parameters()).is_cuda else None


HEAD_FACTOR = 10.0
"""The head learns so many times faster than the encoder."""


def adamw(model: nn.Module, lr: float, weight_decay: float, momentum: float) -> torch.optim.Optimizer:
    """AdamW: the head's learning rate times ``HEAD_FACTOR``, no weight decay of norms; ``momentum`` is not used.

    Source: SegFormer (Xie et al., NeurIPS 2021), section 4.1.
    """
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d)
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith("encoder."), id(parameter) in norms), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr_factor": 1.0 if in_encoder else HEAD_FACTOR,
                "weight_decay": 0.0 if is_norm else weight_decay,
            }
            for (in_encoder, is_norm), parameters in groups.items()
        ],
        lr=lr,
        fused=_fused(model),
    )


WARM_UP = 1500 / 160_000
"""The share of the run in which the learning rate rises from 0."""


def poly(lr: float, steps: int, drops: tuple[float, ...] = ()) -> Callable[[int], float]:
    """A linear rise over ``WARM_UP`` of the run, times a linear fall from ``lr`` to 0 over all of it."""
    rise = max(1, round(WARM_UP * steps))

    def at(step: int) -> float:
        return lr * min(1.0, step / rise) * (1 - (step - 1) / steps)

    return at


ENCODER_FACTOR = 0.01
"""A matting network's encoder learns so many times slower than the rest, as its weights are ImageNet's."""


def adam(model: nn.Module, lr: float, weight_decay: float, momentum: float) -> torch.optim.Optimizer:
    """Adam: the encoder's learning rate times ``ENCODER_FACTOR``; ``momentum`` is not used.

    Source: the recipe of IndexNet (Lu et al., ICCV 2019) and A2U (Dai et al., CVPR 2021).
    """
    groups: dict[bool, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(name.startswith("encoder."), []).append(parameter)
    return torch.optim.Adam(
        [
            {"params": parameters, "lr_factor": ENCODER_FACTOR if in_encoder else 1.0}
            for in_encoder, parameters in groups.items()
        ],
        lr=lr,
        weight_decay=weight_decay,
        fused=_fused(model),
    )


RECIPES: Mapping[str, Recipe] = {
    "segnet": Recipe(0.01, 0.0, (0.7, 0.9), sgd, step_decay),
    "segformer": Recipe(6e-5, 0.01, (0.7, 0.9), adamw, poly),
    "matting": Recipe(0.01, 0.0, (20 / 30, 26 / 30), adam, step_decay),
}
"""By network."""
