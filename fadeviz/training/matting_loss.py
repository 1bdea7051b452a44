"""Matting networks in training: their inputs and targets, and the loss in the unknown region."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import Sample
from ..data.matting.compositing import UNKNOWN
from ..errors import FadevizError
from .batches import Collation, Packed, normalize, stack

EPSILON = 1e-6
"""The losses use sqrt(d^2 + EPSILON^2) for |d|, whose slope is defined at 0."""


def pack_mattes(samples: Sequence[Sample]) -> Packed:
    """Images, trimaps and alphas of samples of one size; also foregrounds and backgrounds, if all samples have them.

    Raises:
        FadevizError: if a sample has no alpha, no trimap or no unknown pixel, or has another size than the first.
    """
    for sample in samples:
        check_matting_sample(sample)
    parts = (*pack_inputs(samples), stack(s.alpha for s in samples if s.alpha is not None))
    if all(s.foreground is not None and s.background is not None for s in samples):
        for layer in ("foreground", "background"):
            parts = *parts, stack(getattr(s, layer) for s in samples)
    return parts


def unpack_mattes(images: Tensor, trimaps: Tensor, alphas: Tensor, *layers: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs ``(B, 4, H, W)`` and targets ``(B, 11, H, W)``, or ``(B, 2, H, W)``, from packed samples."""
    targets = [alphas.float()[:, None], (trimaps == UNKNOWN)[:, None].float()]
    for pixels in (*layers, images) if layers else ():
        targets.append(pixels.permute(0, 3, 1, 2).float() / 255)
    return unpack_inputs(images, trimaps), torch.cat(targets, 1)


collate_matting = Collation(pack_mattes, unpack_mattes)
"""Inputs and targets of a matting network, for :func:`~fadeviz.training.loop.fit`.

Inputs ``(B, 4, H, W)`` float32: RGB normalised by ImageNet's statistics, and the trimap in [0, 1] (0 background,
128/255 unknown, 1 foreground). Targets ``(B, 11, H, W)`` float32 in [0, 1], in this order: alpha; 1 where unknown;
foreground, background and image, three channels each. If an image has no foreground or background, the targets of the
batch are only the first two channels.
"""


def pack_inputs(samples: Sequence[Sample]) -> Packed:
    """Images and trimaps of samples of one size.

    Raises:
        FadevizError: if a sample has no trimap, or has another size than the first.
    """
    for sample in samples:
        if sample.trimap is None:
            raise FadevizError(f"{sample.name} has no trimap: matting needs one. Use a matting set")
        if sample.mask.shape != samples[0].mask.shape:
            raise FadevizError(
                f"{sample.name} and {samples[0].name} differ in size, but are in one batch. Use crops, or batches of 1"
            )
    return stack(s.image for s in samples), stack(s.trimap for s in samples if s.trimap is not None)


def unpack_inputs(images: Tensor, trimaps: Tensor) -> Tensor:
    """Inputs ``(B, 4, H, W)`` from packed images and trimaps."""
    return torch.cat([normalize(images), trimaps[:, None].float() / 255], 1)


def check_matting_sample(sample: Sample) -> None:
    """Check that a sample can be trained on or measured.

    Raises:
        FadevizError: if it has no alpha, no trimap or no unknown pixel.
    """
    if sample.alpha is None or sample.trimap is None:
        missing = "matte" if sample.alpha is None else "trimap"
        raise FadevizError(f"{sample.name} has no {missing}: matting needs one. Use a matting set")
    if not (sample.trimap == UNKNOWN).any():
        raise FadevizError(
            f"{sample.name} has no unknown pixel in its trimap: there is nothing to estimate. Leave it out"
        )


def matting_loss(prediction: Tensor, targets: Tensor, share: float = 0.5) -> Tensor:
    """``share`` times the alpha loss plus ``1 - share`` times the composition loss, in the trimap's unknown region.

    Alpha loss: the mean of ``|alpha - truth|`` over an image's unknown pixels. Composition loss: the mean over the same
    pixels of ``|alpha * foreground + (1 - alpha) * background - image|``, summed over the three channels, with colours
    in [0, 1]. Both use ``sqrt(d^2 + 1e-12)`` for ``|d|``. The batch's loss is the mean over its images, so that the
    shares of several ranks can be averaged. Without foreground and background the loss is the alpha loss alone.

    Shape: prediction ``(B, 1, H, W)`` or ``(B, H, W)``, not clipped; targets as :func:`collate_matting` gives them.
    Source: N. Xu et al., "Deep image matting", CVPR 2017; weights and sums as H. Lu et al., ICCV 2019.
    Raises: FadevizError if the shapes do not match.
    """
    alpha, truth, unknown = _unpack(prediction, targets)
    loss = _mean_where(unknown, alpha - truth)
    if targets.shape[1] == 2:
        return loss.mean()
    foreground, background, image = targets[:, 2:5], targets[:, 5:8], targets[:, 8:11]
    composed = _mean_where(unknown, alpha * foreground + (1 - alpha) * background - image)
    return (share * loss + (1 - share) * composed).mean()


def alpha_loss(prediction: Tensor, targets: Tensor) -> Tensor:
    """The alpha loss of :func:`matting_loss` alone: the mean absolute error where the trimap is unknown."""
    alpha, truth, unknown = _unpack(prediction, targets)
    return _mean_where(unknown, alpha - truth).mean()


def _unpack(prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    alpha = prediction[:, None] if prediction.ndim == 3 else prediction
    if targets.shape[1] not in (2, 11) or alpha.shape != (targets.shape[0], 1, *targets.shape[2:]):
        raise FadevizError(
            f"matting loss: the prediction is {tuple(prediction.shape)} and the targets are {tuple(targets.shape)}; "
            "(B, 1, H, W) and (B, 2 or 11, H, W) are needed. Take the targets from collate_matting"
        )
    return alpha, targets[:, :1], targets[:, 1:2]


def _mean_where(unknown: Tensor, difference: Tensor) -> Tensor:
    """For each image: ``|difference|``, summed over channels, averaged over its unknown pixels; 0 if it has none."""
    size = torch.sqrt(difference.square() + EPSILON**2) * unknown
    return size.sum((1, 2, 3)) / unknown.sum((1, 2, 3)).clamp(min=1)
