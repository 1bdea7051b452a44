"""Tasks of networks: how images become tensors, the loss, the test, and how a result is predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Dataset, Sample
from ..data.transforms import IGNORED
from ..models import Network
from ..ops.arithmetic import tf32
from .batches import Collation, collate_masks
from .distributed import ALONE, Processes
from .matting_loss import collate_matting, matting_loss
from .matting_metrics import evaluate_mattes, predict_alpha
from .metrics import Evaluation, evaluate


class Evaluate(Protocol):
    """Tests a model on a data set; the metrics of every task include ``test_loss``."""

    def __call__(
        self, model: Network, dataset: Dataset, /, *, classes: int = 2, processes: Processes = ALONE
    ) -> Evaluation:
        """The metrics, and those of each class."""


@dataclass(frozen=True)
class Task:
    """How networks of one task are trained, observed, tested and used for prediction.

    Attributes:
        collate: inputs and targets of images of one size.
        loss: ``(outputs, targets)`` -> a mean, weighted by ``loss_weight``.
        loss_weight: ``(targets)`` -> a number, or a scalar on their device.
        evaluate: returns the metrics of a test, and those of each class.
        predict: ``(model, sample, stride, size)`` -> the class of each pixel, uint8, or its alpha, float32 in [0, 1],
            of one image, as a map of ``size`` (height and width); the input is padded to multiples of ``stride``.
        has_classes: whether masks of classes are predicted; otherwise a matte, from an image and its trimap.
        result: the ending of the names of predicted files: ``NAME_mask.png``.
    """

    collate: Collation
    loss: Callable[[Tensor, Tensor], Tensor]
    loss_weight: Callable[[Tensor], Tensor | float]
    evaluate: Evaluate
    predict: Callable[[nn.Module, Sample, int, tuple[int, int]], NDArray[np.uint8] | NDArray[np.float32]]
    has_classes: bool
    result: str


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross entropy, the mean over pixels whose mask is not ``IGNORED``; 0 where there are none.

    Shape: logits ``(B, classes, H, W)``, masks ``(B, H, W)`` int64 -> scalar.
    """
    if logits.is_cuda:
        # Without a branch, which would wait for the GPU, and without torch's own mean, which differs in the last digits
        # from call to call. The second summand is 0, or not finite: ignored pixels do not show what is not.
        counted = (masks != IGNORED).sum().clamp(min=1)
        losses = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="none")
        return losses.sum() / counted + logits.detach().sum() * 0
    if (masks == IGNORED).all():
        return logits.sum() * 0  # torch's mean over nothing is NaN
    return F.cross_entropy(logits, masks, ignore_index=IGNORED)


def predict_classes(model: nn.Module, sample: Sample, stride: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The class of each pixel of one image of any size, as a map of ``size`` (height and width), uint8.

    The input is padded by reflection, at the bottom and on the right, to multiples of ``stride``. The logits are
    cropped and interpolated to ``size`` (bilinear) before the argmax. The model's mode is not changed: call ``eval()``
    first.
    """
    height, width = sample.image.shape[:2]
    padding = ((0, -height % stride), (0, -width % stride), (0, 0))
    padded = sample._replace(
        image=np.pad(sample.image, padding, mode="reflect"), mask=np.pad(sample.mask, padding[:2], mode="reflect")
    )
    images, _ = collate_masks([padded])
    with torch.no_grad(), tf32(False):
        logits = model(images.to(next(model.parameters()).device)).float()
    best, classes = torch.tensor(-torch.inf), torch.zeros(size, dtype=torch.uint8)
    for number, few in enumerate(logits[:, :, :height, :width].cpu().split(8, dim=1)):
        # A few classes at a time: 150 maps of a large photograph would take gigabytes.
        if size != (height, width):
            few = F.interpolate(few, size, mode="bilinear", align_corners=False)
        largest, which = few[0].max(0)
        classes[largest > best] = (which + 8 * number).to(torch.uint8)[largest > best]
        best = torch.maximum(largest, best)
    return classes.numpy()


def predict_matte(model: nn.Module, sample: Sample, stride: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """The alpha of each pixel, float32: that of :func:`predict_alpha`, interpolated to ``size`` (bilinear)."""
    alpha = predict_alpha(model, sample, stride=stride)
    if size == alpha.shape:
        return alpha
    larger = F.interpolate(torch.from_numpy(alpha)[None, None], size, mode="bilinear", align_corners=False)
    return larger[0, 0].numpy()


def _evaluate_classes(
    model: Network, dataset: Dataset, /, *, classes: int = 2, processes: Processes = ALONE
) -> Evaluation:
    # The logits of many classes are large: 150 of them on 512x512 take 157 MB per image.
    batch_size = 8 if classes <= 8 else 1
    return evaluate(model, dataset, segmentation_loss, batch_size=batch_size, classes=classes, processes=processes)


def _evaluate_mattes(
    model: Network, dataset: Dataset, /, *, classes: int = 2, processes: Processes = ALONE
) -> Evaluation:
    return Evaluation(evaluate_mattes(model, dataset, stride=model.stride, processes=processes), {})


TASKS: Mapping[str, Task] = {
    "segmentation": Task(
        collate=collate_masks,
        loss=segmentation_loss,
        loss_weight=lambda masks: (masks != IGNORED).sum(),
        evaluate=_evaluate_classes,
        predict=predict_classes,
        has_classes=True,
        result="mask",
    ),
    "matting": Task(
        collate=collate_matting,
        loss=matting_loss,
        loss_weight=len,
        evaluate=_evaluate_mattes,
        predict=predict_matte,
        has_classes=False,
        result="alpha",
    ),
}
"""The tasks by name: the ``task`` of networks and data sets."""


__all__ = ["IGNORED", "TASKS", "Task", "predict_classes", "predict_matte", "segmentation_loss"]
