"""Metrics of segmentation: IoU and, at two widths, Boundary IoU; of each class, and their means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
    near = _largest_within(outside, width, beyond=1.0).squeeze(1) > 0
    return mask & near.reshape(mask.shape)


def class_band(labels: Tensor, width: int) -> Tensor:
    """The pixels that lie within ``width`` pixels (chessboard distance) of another class, or of the image's border.

    Of the pixels of any class these are its :func:`boundary_band`; the cost does not depend on the number of classes.

    Shape: ``(B, H, W)`` int -> the same, bool.
    """
    values = labels.float().unsqueeze(1)
    both = torch.cat([values, -values], 1)  # the largest of -values is the smallest of values
    return (_largest_within(both, width, beyond=torch.inf) != both).any(1)


def _largest_within(values: Tensor, width: int, *, beyond: float) -> Tensor:
    """The largest value within ``width`` pixels of each, ``(B, C, H, W)``; outside the image it is ``beyond``."""
    padded = F.pad(values, (width, width, width, width), value=beyond)
    # Along rows, then along columns: the same, at a fraction of the cost.
    rows = F.max_pool2d(padded, (1, 2 * width + 1), stride=1)
    return F.max_pool2d(rows, (2 * width + 1, 1), stride=1)


def boundary_iou(prediction: Tensor, truth: Tensor, width: int) -> Tensor:
    """Intersection over union of the two masks' boundary bands, a value per image; NaN where both bands are empty.

    Shape: ``(B, H, W)`` bool, twice -> ``(B,)`` float64.
    """
    a, b = boundary_band(prediction, width), boundary_band(truth, width)
    return (a & b).sum((1, 2)).double() / (a | b).sum((1, 2)).double()


class Evaluation(NamedTuple):
    """The result of a test.

    Attributes:
        metrics: the metrics by name.
        class_metrics: for more than two classes the metrics of each class, by name and label; None for a class that
            occurs neither in the masks nor in the predictions. Else empty.
    """

    metrics: dict[str, float]
    class_metrics: dict[str, list[float | None]]


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    batch_size: int = 8,
    classes: int = 2,
    processes: Processes = ALONE,
) -> Evaluation:
    """Evaluate a model in eval mode, in float32; its training mode is restored.

    Pixels whose mask is ``classes`` or more are ignored. Several ``processes`` share the images, and all return the
    metrics that a single one would: bit-identical, if their weights are the same.

    Returns:
        ``test_loss``; ``miou``, the mean over classes of intersection over union, with the pixels of all images pooled,
        for the classes that occur in the masks or the predictions; ``accuracy`` of the pixels; and each name of
        ``BOUNDARY_SHARES``. With two classes these are class 1's Boundary IoU averaged over images, and there is
        ``iou``, that of class 1. With more they are the mean over classes of Boundary IoU, with the pixels of all
        images pooled; and ``iou`` and the names of ``BOUNDARY_SHARES`` are given for each class.

    Raises:
        FadevizError: if the data set has no images, no end, or no labelled pixel.

    Where the masks are not labelled, predictions are of no class either, so that the border of what is labelled is a
    contour of both.

    Source: Boundary IoU (Cheng et al., CVPR 2021); of more than two classes as detectron2's ``SemSegEvaluator`` pools
    it.
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
    banded = torch.zeros(len(BOUNDARY_SHARES), 3, classes + 1, dtype=torch.int64, device=device)
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
                height, width = truth.shape[1:]
                widths = [boundary_width(height, width, share) for share in BOUNDARY_SHARES.values()]
                if classes == 2:
                    found = (predicted == 1) & valid
                    bands[first] = torch.stack([boundary_iou(found, truth == 1, width) for width in widths])
                else:
                    found, wanted = (torch.where(valid, labels, classes) for labels in (predicted, truth))
                    for width, counted in zip(widths, banded, strict=True):
                        _count_bands(found, wanted, width, counted)
            confusion, banded = pixels[:-1].view(classes, classes).cpu(), banded[..., :-1].cpu()
            counts = _Counts(_on_cpu(sums), _on_cpu(bands), confusion, banded)
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
    if classes == 2:
        rows = torch.cat(_in_order([part.bands for part in gathered]), 1)
        return Evaluation(metrics | _means(dict(zip(BOUNDARY_SHARES, rows, strict=True))), {})
    del metrics["iou"]
    both, of_prediction, of_truth = torch.stack([part.banded for part in gathered]).sum(0).double().unbind(1)
    by_class = dict(zip(BOUNDARY_SHARES, both / (of_prediction + of_truth - both), strict=True))
    return Evaluation(metrics | _means(by_class), {name: _known(row) for name, row in {"iou": iou, **by_class}.items()})


def _count_bands(predicted: Tensor, truth: Tensor, width: int, counts: Tensor) -> None:
    """Add to ``counts`` the pixels of each class that are in both bands, in that of the prediction, of the truth.

    Shape: labels ``(B, H, W)`` int64 twice, ``(3, classes + 1)`` int64. Its last column takes all other pixels, and
    those of the label ``classes``.
    """
    a, b = class_band(predicted, width), class_band(truth, width)
    nothing = counts.shape[1] - 1
    places = [
        torch.where(a & b & (predicted == truth), truth, nothing),
        torch.where(a, predicted, nothing),
        torch.where(b, truth, nothing),
    ]
    # In one dimension, for which torch has a deterministic algorithm on every device.
    flat = torch.cat([place.flatten() + row * (nothing + 1) for row, place in enumerate(places)])
    counts.view(-1).scatter_add_(0, flat, torch.ones_like(flat))


def _means(rows: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: row.nanmean().item() for name, row in rows.items()}


def _known(values: Tensor) -> list[float | None]:
    """The values, with None for NaN, which JSON does not have."""
    return [None if math.isnan(value) else value for value in values.tolist()]


class _Counts(NamedTuple):
    """The counts of one rank; ``sums`` and ``bands`` by the first image of each batch."""

    sums: dict[int, Tensor]
    bands: dict[int, Tensor]
    confusion: Tensor
    banded: Tensor


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
