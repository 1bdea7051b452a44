"""Alpha mattes of whole images, and their four published errors: SAD, MSE, gradient and connectivity."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from ..data import Dataset, Sample
from ..data.matting.compositing import UNKNOWN
from ..errors import FadevizError
from ..ops.arithmetic import tf32
from .distributed import ALONE, Processes
from .matting_loss import alpha_loss, check_matting_sample, collate_matting, pack_inputs, unpack_inputs

METRICS = ("sad", "mse", "grad", "conn")

Alpha = NDArray[np.float32] | NDArray[np.float64]
Trimap = NDArray[np.uint8]


def sad(prediction: Alpha, truth: Alpha, trimap: Trimap) -> float:
    """Sum of absolute differences over the unknown pixels, / 1000; mattes in [0, 1].

    Shape: ``(H, W)`` three times; ``trimap`` is 128 where unknown. The other errors take the same arguments.

    Example:
        >>> sad(np.full((20, 50), 0.75), np.full((20, 50), 0.25), np.full((20, 50), 128, np.uint8))
        0.5
    """
    difference, unknown = _difference(prediction, truth, trimap)
    return float(np.abs(difference[unknown]).sum() / 1000)


def mse(prediction: Alpha, truth: Alpha, trimap: Trimap) -> float:
    """Mean of squared differences over the unknown pixels; mattes in [0, 1], so that 0.008 is a good value.

    Raises:
        FadevizError: if no pixel is unknown.
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
    at 1.4), divided by the root of the sum of its squares: published values have that scale. The image's border pixels
    are repeated outwards.

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


def predict_alpha(model: nn.Module, sample: Sample, *, stride: int = 16) -> NDArray[np.float32]:
    """Predict the matte ``(H, W)`` in [0, 1] of one whole image; known pixels are set as the trimap has them.

    The input is padded by reflection, at the bottom and at the right, to multiples of ``stride``, and the output is
    cropped; nothing is padded if the sides are multiples already. The model is used as it is: call ``eval()`` first.

    Args:
        model: ``(1, 4, H, W)`` -> ``(1, 1, H, W)`` or ``(1, H, W)``, with the inputs of :func:`collate_matting`.
        sample: a sample with image and trimap.
        stride: the number of pixels by which the sides of the network's input must be divisible.

    Raises:
        FadevizError: if the sample has no trimap, or the output has another size than the input.
    """
    inputs = unpack_inputs(*pack_inputs([sample]))
    height, width = inputs.shape[2:]
    bottom, right = -height % stride, -width % stride
    # Not torch's reflection, which refuses a padding as wide as the image.
    padded = torch.from_numpy(np.pad(inputs.numpy(), ((0, 0), (0, 0), (0, bottom), (0, right)), mode="reflect"))
    with torch.no_grad(), tf32(False):
        output = model(padded.to(next(model.parameters()).device)).float().cpu()
    if output.numel() != padded.shape[2] * padded.shape[3]:
        raise FadevizError(
            f"{sample.name}: the network returned {tuple(output.shape)} for an input of {tuple(padded.shape)}; one "
            "value per pixel is needed. Use a matting network"
        )
    alpha = output.reshape(padded.shape[2:])[:height, :width].clamp(0, 1).numpy().copy()
    assert sample.trimap is not None
    alpha[sample.trimap == 0], alpha[sample.trimap == 255] = 0, 1
    return alpha


def measure_matte(prediction: Alpha, sample: Sample) -> dict[str, float]:
    """The four errors of one matte, by the names of ``METRICS``.

    Raises:
        FadevizError: if the sample has no matte, trimap or unknown pixel, or the prediction has another size.
    """
    check_matting_sample(sample)
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
    """Evaluate a matting network in eval mode, in float32, image by image at full size; its mode is restored.

    Known pixels are set as the trimap has them. Several ``processes`` share the images; all return the same metrics.

    Returns:
        ``test_loss``, the mean absolute error in the unknown region; ``sad``, ``mse``, ``grad`` and ``conn`` in the
        scales of published tables (SAD, Grad and Conn / 1000, MSE plain); each averaged over images.

    Raises:
        FadevizError: if the data set has no images, or no end; or if an image has no matte or trimap.
    """
    count = dataset.count
    if not count:
        raise FadevizError("evaluate_mattes: the data set has no images, or no end. Give a data set with a count")
    measured: dict[int, dict[str, float]] = {}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for index in range(processes.rank, count, processes.world_size):
            sample = dataset[index]
            alpha = predict_alpha(model, sample, stride=stride)
            _, targets = collate_matting([sample])
            loss = alpha_loss(torch.from_numpy(alpha)[None], targets).item()
            measured[index] = {"test_loss": loss, **measure_matte(alpha, sample)}
    finally:
        for module, training in modes:
            module.training = training
    all_measured = {index: errors for part in processes.all_gather(measured) for index, errors in part.items()}
    images = [all_measured[index] for index in range(count)]
    return {name: math.fsum(errors[name] for errors in images) / count for name in ("test_loss", *METRICS)}
