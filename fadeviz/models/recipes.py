"""Training recipes of the papers: optimiser, learning rate over the steps, weight decay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """The default training settings of a network.

    Attributes:
        lr: the base learning rate.
        weight_decay: the optimiser's weight decay.
        lr_drops: shares of the run at which the learning rate falls to a tenth.
        optimizer: ``(model, lr, weight_decay, momentum)`` -> optimiser; a parameter group may have an ``lr_factor``,
            which multiplies the learning rate.
        lr_at: ``(lr, steps, drops)`` -> learning rate of each step, counted from 1.
    """

    lr: float
    weight_decay: float
    lr_drops: tuple[float, ...]
    optimizer: Callable[[nn.Module, float, float, float], torch.optim.Optimizer]
    lr_at: Callable[[float, int, tuple[float, ...]], Callable[[int], float]]


def step_decay(
    lr: float, steps: int, drops: Sequence[float] = (0.7, 0.9), factor: float = 0.1
) -> Callable[[int], float]:
    """The learning rate of each optimiser step: ``lr``, times ``factor`` from each share of the run in ``drops`` on.

    The defaults are the paper's epochs 35 and 45 of 50.
    """
    places = [round(share * steps) for share in drops]

    def at(step: int) -> float:
        return lr * factor ** sum(step > place for place in places)

    return at


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
"""The head's learning rate, times the base learning rate."""


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
"""The learning rate of a matting network's encoder, times the base learning rate: its weights are ImageNet's."""


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


__all__ = ["ENCODER_FACTOR", "HEAD_FACTOR", "WARM_UP", "Recipe", "adam", "adamw", "poly", "sgd", "step_decay"]
