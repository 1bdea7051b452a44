"""What a layer's channels hold: a linear readout of the object, fitted on all other observed images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..analysis.regions import build_regions
from ..ops.arithmetic import tf32

LEAST_IMAGES = 4
"""The least number of observed images whose mask has both classes: a fit on fewer than three others says little."""

PENALTY = 0.01
"""The ridge penalty as a share of the mean of the normal matrix's diagonal."""

MOST_CHANNELS = 2048
"""The largest number of channels that are read: time and memory of the fits grow with its cube and square."""

_GROUP = 2**22
"""Elements of the matrices that are solved at a time."""

_LEAST_SPREAD = 1e-6
"""Standard deviation of a channel relative to its mean, below which it is constant but for float32 rounding."""


def describe_count(maps: int, images: int) -> str:
    """That a layer does not return one map per image: ``returns 1 map for 4 images``."""
    return f"returns {maps} map{'s' * (maps != 1)} for {images} image{'s' * (images != 1)}"


class ReadoutTargets:
    """What is read out of the observed images, at the resolution of any layer.

    Attributes:
        objects: ``(N, H, W)`` bool, what is inside in each observed image.
    """

    def __init__(self, objects: NDArray[np.bool_]) -> None:
        """The targets of a resolution are computed when a layer first needs them, and kept."""
        self.objects = objects
        self._targets: dict[tuple[str, tuple[int, int]], NDArray[np.bool_]] = {}
        self._on_device: dict[tuple[str, tuple[int, int], torch.device], tuple[Tensor, Tensor]] = {}

    @property
    def usable(self) -> int:
        """The number of images with an object and a background."""
        return count_both(self.objects)

    def target(self, kind: str, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The target of a kind, ``(N, h, w)``: cells inside the contour, or within the contour band.

        Both are those of :func:`~fadeviz.analysis.regions.build_regions`: cells whose mean signed distance to the
        contour is below 0, or at most the band's half-width.
        """
        if (kind, size) not in self._targets:
            regions = [build_regions(mask, size) for mask in self.objects]
            self._targets["readout", size] = np.stack([part.distance < 0 for part in regions])
            self._targets["readout_contour", size] = np.stack([part.band for part in regions])
        return self._targets[kind, size]

    def why_none(self, kind: str, shape: tuple[int, ...]) -> str:
        """Why channels ``(B, C, h, w)`` give no readout; empty if they do."""
        if shape[0] != len(self.objects):
            return describe_count(shape[0], len(self.objects))
        if shape[1] > MOST_CHANNELS:
            return f"has {shape[1]} channels, and at most {MOST_CHANNELS} are read"
        height, width = shape[-2:]
        both = count_both(self.target(kind, (height, width))) if height and width and shape[1] else 0
        if both >= LEAST_IMAGES:
            return ""
        part = "an inside and an outside" if kind == "readout" else "a contour and cells away from it"
        return f"is too coarse: at {height}x{width} cells {both} of {len(self.objects)} images have {part}"

    def read(self, kind: str, channels: Tensor) -> Tensor:
        """The readout of a layer's channels: :func:`linear_readout` with the target of ``kind``."""
        size = (channels.shape[-2], channels.shape[-1])
        key = (kind, size, channels.device)
        if key not in self._on_device:
            target = self.target(kind, size)
            pair = (torch.from_numpy(target).float(), torch.from_numpy(balanced_weights(target)))
            self._on_device[key] = (pair[0].to(channels.device), pair[1].to(channels.device))
        return linear_readout(channels, *self._on_device[key])


def count_both(target: NDArray[np.bool_]) -> int:
    """The number of images in which some pixels belong to the target ``(N, h, w)``, and some do not."""
    return int(np.count_nonzero(target.any(axis=(1, 2)) & ~target.all(axis=(1, 2))))


def balanced_weights(target: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Weights of the pixels, ``(N, h, w)``, with which both classes count alike in each image; their mean is 1.

    An image with one class has weights of 0: nothing is fitted on it.
    """
    share = target.mean(axis=(1, 2), keepdims=True)
    both = (share > 0) & (share < 1)
    share = np.where(both, share, 0.5)
    weights: NDArray[np.float32] = (both * np.where(target, 0.5 / share, 0.5 / (1 - share))).astype(np.float32)
    return weights


@torch.no_grad()
def linear_readout(channels: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    r"""Ridge regression from a layer's channels to a target, fitted on all other images and read on the one left out.

    .. math::
        r_n(p) = \beta_n^T z_n(p), \qquad
        \beta_n = (A_n + \lambda_n I)^{-1} \sum_{m \ne n} \sum_p w_m(p)\, y_m(p)\, z_m(p), \qquad
        A_n = \sum_{m \ne n} \sum_p w_m(p)\, z_m(p)\, z_m(p)^T

    with :math:`z_n(p)` the channels of image n at pixel p, standardised over the pixels of all images, and a constant
    1; :math:`y` the target, :math:`w` the weights, and :math:`\lambda_n` the mean of the diagonal of :math:`A_n` times
    ``PENALTY``.

    *Limit case*: a channel that is the target in every image, and other channels of noise, give the target up to the
    shrinkage of the penalty, which is 1 % of an only channel.

    *Shape*: channels ``(N, C, h, w)`` float32; target and weights ``(N, h, w)`` float32 -> ``(N, h, w)`` float32.

    *Cost*: N h w (C + 2)^2 multiply-adds, N (C + 1)^3 / 3 for the fits; memory for N matrices of (C + 2)^2 numbers and
    three copies of one image's channels.

    An image without weights is read, but nothing is fitted on it. Constant channels have no effect. If a channel is not
    finite in one image, or beyond 1e19, all maps are NaN: every fit but one has seen it.
    """
    n, c, h, w = channels.shape
    pixels, weights = channels.flatten(2), weights.flatten(1)
    with torch.autocast(channels.device.type, enabled=False), tf32(False):
        mean = pixels.mean(dim=(0, 2))
        moments, variance = _moments(pixels, mean, target.flatten(1), weights)
        # To the CPU from a device that may not have float64, but not from a GPU, which would wait.
        moments, variance, center = (part if part.is_cuda else part.cpu() for part in (moments, variance, mean))
        spread = variance.double().sqrt()
        scale = torch.where(spread > _LEAST_SPREAD * center.abs(), 1 / spread, 0)
        finite = moments.isfinite().all() & spread.isfinite().all()
        # What is not finite is solved without channels: nothing may wait on a GPU to learn whether it is.
        scale = torch.cat([torch.where(finite, scale, 0), scale.new_ones(1)])
        coefficients = _fit(moments.nan_to_num_(0, 0, 0), scale).to(pixels)
        # Of centred channels, as in the fit: a mean far from 0 would cost digits.
        maps = torch.stack(
            [beta[:c] @ (image - mean[:, None]) + beta[c] for image, beta in zip(pixels, coefficients, strict=True)]
        )
    return torch.where(finite.to(maps.device), maps, torch.nan).reshape(n, h, w)


def _moments(pixels: Tensor, mean: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted products of the centred channels, a constant 1 and the target; and the channels' variance.

    Shape: pixels ``(N, C, P)``, mean ``(C,)``, target and weights ``(N, P)`` -> ``(N, C + 2, C + 2)`` and ``(C,)``.
    """
    n, c, p = pixels.shape
    products, squares = pixels.new_empty(n, c + 2, c + 2), torch.zeros_like(mean)
    rows = pixels.new_ones(c + 2, p)
    # Image by image: a centred copy of all would take as much memory as the channels do.
    for image, product in enumerate(products):
        centred = torch.sub(pixels[image], mean[:, None], out=rows[:c])
        rows[c + 1] = target[image]
        torch.mm(rows * weights[image], rows.T, out=product)
        squares += torch.linalg.vector_norm(centred, dim=1).square()
    return products, squares / (n * p)


def _fit(moments: Tensor, scale: Tensor) -> Tensor:
    """The coefficients of each image's readout, ``(N, C + 1)``, for standardised channels times ``scale``.

    Args:
        moments: the products of each image, ``(N, C + 2, C + 2)``, from :func:`_moments`.
        scale: ``(C + 1,)``: the inverse standard deviation of the channels, and 1; they make the products standardised,
            and the coefficients fit for channels that are only centred.
    """
    total, results = moments.sum(dim=0, dtype=torch.float64), []
    for part in moments.split(max(1, _GROUP // total.numel())):
        others = total - part.double()
        matrix = others[:, :-1, :-1] * scale[:, None] * scale
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        diagonal += PENALTY * diagonal.mean(dim=1, keepdim=True)
        # Unlike linalg.cholesky and cholesky_solve, these do not wait for a GPU; with the penalty nothing fails.
        factor = torch.linalg.cholesky_ex(matrix).L
        half = torch.linalg.solve_triangular(factor, others[:, :-1, -1:] * scale[:, None], upper=False)
        results.append(torch.linalg.solve_triangular(factor.mT, half, upper=True)[..., 0] * scale)
    return torch.cat(results)
