"""Metrics of segmentation: mIoU over the test images, and Boundary IoU at two widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Dataset
from ..errors import FadevizError
from ..ops.arithmetic import tf32
from .batches import collate_masks
from .distributed import ALONE, Processes

BOUNDARY_SHARES = {"boundary_iou": 0.02, "boundary_iou_fine": 0.005}
"""Widths of the boundary band as shares of the image's diagonal."""


def boundary_width(height: int, width: int, share: float) -> int:
    """The band's width in pixels: ``share`` of the diagonal, at least 1."""
    return max(1, round(share * math.hypot(height, width)))


def boundary_band(mask: Tensor, width: int) -> Tensor:
    """The pixels of a mask that lie within ``width`` pixels (chessboard distance) of its contour.

    The image's border counts as contour where the mask reaches it.

    Shape: ``(..., H, W)`` bool -> the same.
    Source: Boundary IoU (Cheng et al., CVPR 2021), section 4.
    """
    outside = (~mask).float().reshape(-1, 1, *mask.shape[-2:])
    padded = F.pad(outside, (width, width, width, width), value=1.0)
    near = F.max_pool2d(padded, 2 * width + 1, stride=1).squeeze(1) > 0
    return mask & near.reshape(mask.shape)


def boundary_iou(prediction: Tensor, truth: Tensor, width: int) -> Tensor:
    """Intersection over union of the two masks' boundary bands, a value per image; NaN where both bands are empty.

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
    """Evaluate a model in eval mode, in float32; its training mode is restored.

    Pixels whose mask is ``classes`` or more are ignored. Several ``processes`` share the images, and all return the
    metrics that a single one would: bit-identical, if their weights are the same.

    Returns:
        ``test_loss``; ``miou``, the mean over classes of intersection over union, with the pixels of all images pooled,
        for the classes that occur in the masks or the predictions; ``accuracy`` of the pixels. With two classes also
        ``iou``, that of class 1, and each name of ``BOUNDARY_SHARES``, class 1's Boundary IoU averaged over images.

    Raises:
        FadevizError: if the data set has no images, no end, or no labelled pixel.
    """
    count = dataset.count
    if not count:
        raise FadevizError("evaluate: the data set has no images, or no end. Give a data set with a count")
    device = next(model.parameters()).device
    # For each batch, by its first image: the loss and its weight in images; each image's Boundary IoU. All stays on
    # the device until the end, so that a GPU gets the next batch while it computes this one.
    sums: dict[int, Tensor] = {}
    bands: dict[int, Tensor] = {}
    pixels = torch.zeros(classes**2 + 1, dtype=torch.int64, device=device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), tf32(False):
            for first in range(processes.rank * batch_size, count, processes.world_size * batch_size):
                samples = [dataset[i] for i in range(first, min(first + batch_size, count))]
                images, truth = collate_masks(samples, device)
                logits = model(images).float()
                predicted = logits.argmax(1)
                valid = truth < classes
                weight = valid.double().mean() * len(images)
                sums[first] = torch.stack([loss_fn(logits, truth).double() * weight, weight])
                pairs = torch.where(valid, truth * classes + predicted, classes**2).flatten()
                pixels.scatter_add_(0, pairs, torch.ones_like(pairs))
                if classes == 2:
                    height, width = truth.shape[1:]
                    widths = [boundary_width(height, width, share) for share in BOUNDARY_SHARES.values()]
                    bands[first] = torch.stack([boundary_iou(predicted == 1, truth == 1, width) for width in widths])
            counts = _Counts(_on_cpu(sums), _on_cpu(bands), pixels[:-1].view(classes, classes).cpu())
    finally:
        for module, training in modes:
            module.training = training
    gathered = processes.all_gather(counts)
    confusion = torch.stack([part.confusion for part in gathered]).sum(0)
    if not confusion.any():
        raise FadevizError("evaluate: the test images have no labelled pixel. Check their annotations")
    hits = confusion.diagonal().double()
    iou = hits / (confusion.sum(0) + confusion.sum(1) - confusion.diagonal())
    losses = [part.tolist() for part in _in_order([part.sums for part in gathered])]
    metrics = {
        "test_loss": sum(loss for loss, _ in losses) / max(sum(weight for _, weight in losses), 1e-9),
        "miou": iou.nanmean().item(),
        "iou": iou[1].item(),
        "accuracy": (hits.sum() / confusion.sum()).item(),
    }
    if classes != 2:
        del metrics["iou"]
        return metrics
    means = [row.nanmean().item() for row in torch.cat(_in_order([part.bands for part in gathered]), 1)]
    return metrics | dict(zip(BOUNDARY_SHARES, means, strict=True))


class _Counts(NamedTuple):
    """The counts of one rank; ``sums`` and ``bands`` by the first image of each batch."""

    sums: dict[int, Tensor]
    bands: dict[int, Tensor]
    confusion: Tensor


def _on_cpu(values: dict[int, Tensor]) -> dict[int, Tensor]:
    """Copy all tensors to the CPU at once; they may differ in length."""
    if not values:
        return {}
    whole = torch.cat([value.flatten() for value in values.values()]).cpu()
    parts = whole.split([value.numel() for value in values.values()])
    return {first: part.view_as(value) for part, (first, value) in zip(parts, values.items(), strict=True)}


def _in_order(parts: list[dict[int, Tensor]]) -> list[Tensor]:
    values = {first: value for part in parts for first, value in part.items()}
    return [values[first] for first in sorted(values)]
