"""How good the masks are: mIoU over the test pictures, and Boundary IoU at two widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Dataset
from ..errors import FadevizError
from .batches import to_tensors
from .distributed import ALONE, Processes

BOUNDARY_SHARES = {"boundary_iou": 0.02, "boundary_iou_fine": 0.005}
"""Widths of the boundary band as shares of the picture's diagonal."""


def boundary_width(height: int, width: int, share: float) -> int:
    """The band's width in pixels: ``share`` of the diagonal, at least 1."""
    return max(1, round(share * math.hypot(height, width)))


def boundary_band(mask: Tensor, width: int) -> Tensor:
    """The pixels of a mask that lie within ``width`` pixels (chessboard distance) of its contour.

    The picture's border counts as contour where the mask reaches it.

    Shape: ``(..., H, W)`` bool -> the same.
    Source: Boundary IoU (Cheng et al., CVPR 2021), section 4.
    """
    outside = (~mask).float().reshape(-1, 1, *mask.shape[-2:])
    padded = F.pad(outside, (width, width, width, width), value=1.0)
    near = F.max_pool2d(padded, 2 * width + 1, stride=1).squeeze(1) > 0
    return mask & near.reshape(mask.shape)


def boundary_iou(prediction: Tensor, truth: Tensor, width: int) -> Tensor:
    """Intersection over union of the two masks' boundary bands, a value a picture; NaN where both bands are empty.

    Shape: ``(B, H, W)`` bool, twice -> ``(B,)`` float64.
    """
    a, b = boundary_band(prediction, width), boundary_band(truth, width)
    return (a & b).sum((1, 2)).double() / (a | b).sum((1, 2)).double()


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    batch_size: int = 8,
    classes: int = 2,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Test a model in eval mode, in float32; its training mode is restored.

    Pixels whose mask is ``classes`` or more are left out. Several ``processes`` share the pictures, and all return the
    figures that one alone would: to the bit, if their weights are the same.

    Returns:
        ``test_loss``; ``miou``, the mean over classes of intersection over union, pixels of all pictures pooled, of
        the classes that are there or found; ``accuracy`` of the pixels. Of two classes also ``iou``, that of class 1
        alone, and each name of ``BOUNDARY_SHARES``, the mean over pictures of class 1's Boundary IoU.

    Raises:
        FadevizError: a data set without pictures, without an end, or without a labelled pixel.
    """
    count = dataset.count
    if not count:
        raise FadevizError("evaluate: there are no test pictures, or they never end. Give a data set with a count")
    device = next(model.parameters()).device
    counted: dict[int, _Counted] = {}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            for first in range(processes.number * batch_size, count, processes.count * batch_size):
                samples = [dataset[i] for i in range(first, min(first + batch_size, count))]
                images, truth = to_tensors(samples, device)
                logits = model(images).float()
                found = logits.argmax(1)
                valid = truth < classes
                weight = valid.double().mean().item() * len(images)  # in pictures
                loss = loss_fn(logits, truth).item() * weight
                pairs = truth[valid] * classes + found[valid]
                confusion = torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu()
                boundary = {}
                for name, share in BOUNDARY_SHARES.items() if classes == 2 else ():
                    width = boundary_width(truth.shape[1], truth.shape[2], share)
                    boundary[name] = boundary_iou(found == 1, truth == 1, width).cpu()
                counted[first] = _Counted(loss, weight, confusion, boundary)
    finally:
        for module, training in modes:
            module.training = training
    everywhere = {first: one for told in processes.gathered(counted) for first, one in told.items()}
    parts = [everywhere[first] for first in sorted(everywhere)]
    confusion = torch.stack([part.confusion for part in parts]).sum(0)
    if not confusion.any():
        raise FadevizError("evaluate: the test pictures have no labelled pixel. Put their annotations there")
    hits = confusion.diagonal().double()
    iou = hits / (confusion.sum(0) + confusion.sum(1) - confusion.diagonal())
    figures = {
        "test_loss": sum(part.loss for part in parts) / max(sum(part.weight for part in parts), 1e-9),
        "miou": iou.nanmean().item(),
        "iou": iou[1].item(),
        "accuracy": (hits.sum() / confusion.sum()).item(),
    }
    if classes != 2:
        del figures["iou"]
        return figures
    means = {name: torch.cat([part.boundary[name] for part in parts]).nanmean().item() for name in BOUNDARY_SHARES}
    return figures | means


class _Counted(NamedTuple):
    """What one batch of test pictures gave."""

    loss: float
    weight: float
    confusion: Tensor
    boundary: dict[str, Tensor]
