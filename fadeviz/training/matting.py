"""Matting: the loss in the unknown region, the four published errors, and mattes of whole images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from ..data import Dataset, Sample
from ..data.matting.compositing import UNKNOWN
from ..errors import FadevizError
from ..ops.arithmetic import tf32
from .batches import Collation, Packed, normalize, stacked
from .distributed import ALONE, Processes

EPSILON = 1e-6
"""The losses use sqrt(d^2 + EPSILON^2) for |d|, whose slope is defined at 0."""

METRICS = ("sad", "mse", "grad", "conn")

Alpha = NDArray[np.float32] | NDArray[np.float64]
Trimap = NDArray[np.uint8]


def pack_mattes(samples: Sequence[Sample]) -> Packed:
    """Images, trimaps and alphas of samples of one size; foregrounds and backgrounds too, where all have them.

    Raises:
        FadevizError: an image without alpha or trimap, without an unknown pixel, or of another size than the first.
    """
    for sample in samples:
        _check(sample)
    parts = (*_pack_inputs(samples), stacked(s.alpha for s in samples if s.alpha is not None))
    if all(s.foreground is not None and s.background is not None for s in samples):
        for layer in ("foreground", "background"):
            parts = *parts, stacked(getattr(s, layer) for s in samples)
    return parts


def unpack_mattes(images: Tensor, trimaps: Tensor, alphas: Tensor, *layers: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs ``(B, 4, H, W)`` and targets ``(B, 11, H, W)``, or ``(B, 2, H, W)``, of what is packed."""
    targets = [alphas.float()[:, None], (trimaps == UNKNOWN)[:, None].float()]
    for pixels in (*layers, images) if layers else ():
        targets.append(pixels.permute(0, 3, 1, 2).float() / 255)
    return _unpack_inputs(images, trimaps), torch.cat(targets, 1)


to_matting_tensors = Collation(pack_mattes, unpack_mattes)
"""Inputs and targets of a matting network, for :func:`~fadeviz.training.loop.fit`.

Inputs ``(B, 4, H, W)`` float32: RGB normalised by ImageNet's statistics, and the trimap in [0, 1] (0 background,
128/255 unknown, 1 foreground). Targets ``(B, 11, H, W)`` float32 in [0, 1], in this order: alpha; 1 where unknown;
foreground, background and image, three channels each. Where an image has no foreground or background, the targets of
the batch are the first two channels alone.
"""


def _pack_inputs(samples: Sequence[Sample]) -> Packed:
    for sample in samples:
        if sample.trimap is None:
            raise FadevizError(f"{sample.name} has no trimap: matting needs one. Use a matting set")
        if sample.mask.shape != samples[0].mask.shape:
            raise FadevizError(
                f"{sample.name} and {samples[0].name} differ in size; a batch needs one. Use crops, or one a batch"
            )
    return stacked(s.image for s in samples), stacked(s.trimap for s in samples if s.trimap is not None)


def _unpack_inputs(images: Tensor, trimaps: Tensor) -> Tensor:
    return torch.cat([normalize(images), trimaps[:, None].float() / 255], 1)


def _check(sample: Sample) -> None:
    if sample.alpha is None or sample.trimap is None:
        what = "matte" if sample.alpha is None else "trimap"
        raise FadevizError(f"{sample.name} has no {what}: matting needs one. Use a matting set")
    if not (sample.trimap == UNKNOWN).any():
        raise FadevizError(
            f"{sample.name} has no unknown pixel in its trimap: there is nothing to estimate. Leave it out"
        )


def matting_loss(prediction: Tensor, targets: Tensor, share: float = 0.5) -> Tensor:
    """``share`` times the alpha loss plus ``1 - share`` times the composition loss, where the trimap is unknown.

    Alpha loss: the mean of ``|alpha - truth|`` over an image's unknown pixels. Composition loss: the mean over them of
    ``|alpha * foreground + (1 - alpha) * background - image|``, summed over the three channels, colours in [0, 1] (that
    is /255). Both with ``sqrt(d^2 + 1e-12)`` for ``|d|``. The batch's loss is the mean over its images, so that the
    shares of several processes add up. Targets without layers have the alpha loss alone, in full.

    Shape: prediction ``(B, 1, H, W)`` or ``(B, H, W)``, not clipped; targets as :func:`to_matting_tensors` gives them.
    Source: N. Xu et al., "Deep image matting", CVPR 2017; weights and sums as H. Lu et al., ICCV 2019.
    Raises: FadevizError: shapes that do not fit.
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
    wanted = (targets.shape[0], 1, *targets.shape[2:])
    if targets.shape[1] not in (2, 11) or alpha.shape != wanted:
        raise FadevizError(
            f"matting loss: the prediction is {tuple(prediction.shape)} and the targets are {tuple(targets.shape)}; "
            "needed are (B, 1, H, W) and (B, 2 or 11, H, W). Take the targets from to_matting_tensors"
        )
    return alpha, targets[:, :1], targets[:, 1:2]


def _mean_where(unknown: Tensor, difference: Tensor) -> Tensor:
    """A value per image: ``|difference|`` summed over channels, the mean over its unknown pixels; 0 without any."""
    size = torch.sqrt(difference.square() + EPSILON**2) * unknown
    return size.sum((1, 2, 3)) / unknown.sum((1, 2, 3)).clamp(min=1)


# --- errors ---


def sad(prediction: Alpha, truth: Alpha, trimap: Trimap) -> float:
    """Sum of absolute differences over the unknown pixels, / 1000; mattes in [0, 1].

    Shape: ``(H, W)`` three times; ``trimap`` is 128 where unknown. So are those of the other errors.

    Example:
        >>> sad(np.full((20, 50), 0.75), np.full((20, 50), 0.25), np.full((20, 50), 128, np.uint8))
        0.5
    """
    difference, unknown = _difference(prediction, truth, trimap)
    return float(np.abs(difference[unknown]).sum() / 1000)


def mse(prediction: Alpha, truth: Alpha, trimap: Trimap) -> float:
    """Mean of squared differences over the unknown pixels; mattes in [0, 1], so that 0.008 is a good figure.

    Raises:
        FadevizError: no pixel is unknown.
    """
    difference, unknown = _difference(prediction, truth, trimap)
    if not unknown.any():
        raise FadevizError(
            "mse: no pixel of the trimap is 128 (unknown): there is no mean to take. Leave the image out"
        )
    return float(np.square(difference[unknown]).mean())


def gradient_error(prediction: Alpha, truth: Alpha, trimap: Trimap, sigma: float = 1.4) -> float:
    """Sum over the unknown pixels of the squared difference of gradient magnitudes, / 1000; mattes in [0, 1].

    A matte's gradient is its convolution with the first derivative of a Gaussian, along x and along y. The kernel is
    ``-u / sigma^2 * g(u) * g(v)`` for whole ``u`` and ``v`` up to where the Gaussian ``g`` falls to 0.01 (9 x 9 pixels
    at 1.4), divided by the root of the sum of its squares: published figures have that scale. The image's border
    pixels are repeated outwards.

    Source: C. Rhemann et al., CVPR 2009, with the kernel of the Deep Image Matting evaluation.
    Differs: that evaluation stretches each matte from its own minimum and maximum to 0 and 1 first; mattes that span
        both, as almost all do, are the same.
    """
    _difference(prediction, truth, trimap)
    kernel = _gradient_kernel(sigma)
    sizes = []
    for alpha in (prediction, truth):
        alpha = np.asarray(alpha, np.float64)
        # Filters along one axis each are several times faster than the square kernel, and the same.
        x = ndimage.convolve1d(ndimage.convolve1d(alpha, kernel[0], 0, mode="nearest"), kernel[1], 1, mode="nearest")
        y = ndimage.convolve1d(ndimage.convolve1d(alpha, kernel[0], 1, mode="nearest"), kernel[1], 0, mode="nearest")
        sizes.append(np.hypot(x, y))
    return float(np.square(sizes[0] - sizes[1])[trimap == UNKNOWN].sum() / 1000)


def _gradient_kernel(sigma: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The Gaussian and its derivative, each divided by the root of its sum of squares."""
    reach = math.ceil(sigma * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * sigma * 0.01)))
    u = np.arange(-reach, reach + 1, dtype=np.float64)
    smooth = np.exp(-(u**2) / (2 * sigma**2))
    slope = -u * smooth
    return smooth / np.linalg.norm(smooth), slope / np.linalg.norm(slope)


def connectivity_error(
    prediction: Alpha, truth: Alpha, trimap: Trimap, step: float = 0.1, theta: float = 0.15
) -> float:
    """Sum over the unknown pixels of the difference in connectedness, / 1000; mattes in [0, 1].

    For each threshold ``t = step, 2 step, .., 1`` the *source region* is the largest 4-connected region where both
    mattes are at least ``t`` (the first in reading order among equals; none where there is no such pixel). ``l`` of a
    pixel is the last threshold before it first leaves the source region: 0 if it is never in it, 1 if it always is.
    With ``d = alpha - l``, its connectedness is ``1 - d`` where ``d >= theta``, else 1. The error sums the absolute
    differences of the two mattes' connectedness.

    Values are compared in float32, so that a matte's 51/255 is a threshold's 0.2.

    Source: C. Rhemann et al., CVPR 2009, in the form of the Deep Image Matting evaluation: the weight lambda is 1.
    """
    _difference(prediction, truth, trimap)
    both = np.minimum(np.asarray(prediction, np.float32), np.asarray(truth, np.float32))
    steps = round(1 / step)
    level = np.zeros(both.shape)
    inside = np.ones(both.shape, np.bool_)
    for number in range(1, steps + 1):
        labels, count = ndimage.label(both >= np.float32(number / steps))
        if count == 0:
            break
        inside &= labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
        level[inside] = number / steps
    connected = []
    for alpha in (prediction, truth):
        distance = np.asarray(alpha, np.float64) - level
        connected.append(1 - distance * (distance.astype(np.float32) >= np.float32(theta)))
    return float(np.abs(connected[0] - connected[1])[trimap == UNKNOWN].sum() / 1000)


def _difference(prediction: Alpha, truth: Alpha, trimap: Trimap) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    if not prediction.shape == truth.shape == trimap.shape:
        raise FadevizError(
            f"matting errors: the prediction is {prediction.shape}, the truth {truth.shape} and the trimap "
            f"{trimap.shape}; they must be of one size. Crop away the padding"
        )
    return np.asarray(prediction, np.float64) - np.asarray(truth, np.float64), trimap == UNKNOWN


# --- whole images ---


def predict_alpha(model: nn.Module, sample: Sample, *, stride: int = 16) -> NDArray[np.float32]:
    """The matte ``(H, W)`` in [0, 1] that a network gives for one whole image, with what the trimap knows put in.

    The input is padded by reflection, at the bottom and at the right, to multiples of ``stride``, and the output is
    cropped; nothing is padded where the sides are multiples already. The model is used as it is: call ``eval()`` first.

    Args:
        model: ``(1, 4, H, W)`` -> ``(1, 1, H, W)`` or ``(1, H, W)``, as :func:`to_matting_tensors` makes its input.
        sample: with image and trimap.
        stride: what the network's input sides must be divisible by, in pixels.

    Raises:
        FadevizError: an image without trimap; an output of another size.
    """
    inputs = _unpack_inputs(*_pack_inputs([sample]))
    height, width = inputs.shape[2:]
    bottom, right = -height % stride, -width % stride
    # Not torch's reflection, which refuses a padding as wide as the image.
    padded = torch.from_numpy(np.pad(inputs.numpy(), ((0, 0), (0, 0), (0, bottom), (0, right)), mode="reflect"))
    with torch.no_grad(), tf32(False):
        output = model(padded.to(next(model.parameters()).device)).float().cpu()
    if output.numel() != padded.shape[2] * padded.shape[3]:
        raise FadevizError(
            f"{sample.name}: the network gave {tuple(output.shape)} for an input of {tuple(padded.shape)}; one value a "
            "pixel is needed. Use a matting network"
        )
    alpha = output.reshape(padded.shape[2:])[:height, :width].clamp(0, 1).numpy().copy()
    assert sample.trimap is not None
    alpha[sample.trimap == 0], alpha[sample.trimap == 255] = 0, 1
    return alpha


def measure_matte(prediction: Alpha, sample: Sample) -> dict[str, float]:
    """The four errors of one matte, by the names of ``METRICS``.

    Raises:
        FadevizError: an image without matte, trimap or unknown pixel; another size.
    """
    _check(sample)
    assert sample.alpha is not None
    assert sample.trimap is not None
    three = prediction, sample.alpha, sample.trimap
    return {
        "sad": sad(*three),
        "mse": mse(*three),
        "grad": gradient_error(*three),
        "conn": connectivity_error(*three),
    }


def evaluate_mattes(
    model: nn.Module, dataset: Dataset, *, stride: int = 16, processes: Processes = ALONE
) -> dict[str, float]:
    """Test a matting network in eval mode, in float32, image by image at full size; its mode is restored.

    Known pixels count as the trimap has them. Several ``processes`` share the images; all return the same figures.

    Returns:
        ``test_loss``, the mean absolute error in the unknown region; ``sad``, ``mse``, ``grad`` and ``conn``: the
        published tables' scales (SAD, Grad and Conn / 1000, MSE plain), each the mean over images.

    Raises:
        FadevizError: a data set without images, or without an end; an image without matte or trimap.
    """
    count = dataset.count
    if not count:
        raise FadevizError("evaluate_mattes: there are no test images, or they never end. Give a data set with a count")
    measured: dict[int, dict[str, float]] = {}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for index in range(processes.rank, count, processes.world_size):
            sample = dataset[index]
            alpha = predict_alpha(model, sample, stride=stride)
            _, targets = to_matting_tensors([sample])
            loss = alpha_loss(torch.from_numpy(alpha)[None], targets).item()
            measured[index] = {"test_loss": loss, **measure_matte(alpha, sample)}
    finally:
        for module, training in modes:
            module.training = training
    everywhere = {index: one for told in processes.all_gather(measured) for index, one in told.items()}
    images = [everywhere[index] for index in range(count)]
    return {name: math.fsum(one[name] for one in images) / count for name in ("test_loss", *METRICS)}
