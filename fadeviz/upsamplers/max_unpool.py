"""SegNet's operator: max pooling that stores the position of each maximum, and unpooling to that position."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import FadevizError
from .base import Skip, Upsampler, feature_of


class MaxUnpool(Upsampler):
    r"""Max unpooling: every value returns to the position of its window's maximum, zeros elsewhere.

    .. math::

        y_{\pi(i,j)} = x_{i,j}, \qquad y = 0 \text{ elsewhere}

    with :math:`\pi(i,j)` the position of the maximum of window (i, j) in the plane of its channel, stored by ``pool``
    as ``row * W + column`` (the first maximum in row-major order).

    Limit case:
        ``max_pool(unpool(y)) = max(y, 0)``; a window of one pixel, at the corner with ``ceil_mode``, gives y itself.

    Shape:
        x ``(B, C, h, w)``, skip.indices ``(B, C, h, w)`` int64 -> the size of ``skip.feature``. A side H that s does
        not divide is pooled to ``H // s``, and the remaining pixels, which no window covers, are 0 in y; with
        ``ceil_mode`` it is pooled to ``ceil(H / s)``, the last windows being smaller.

    Cost:
        No parameters, no multiply-adds.

    Raises:
        FadevizError: if skip or skip.indices is missing or has another shape than x, or x is not the size to which
            skip.feature is pooled.

    Source:
        SegNet (Badrinarayanan et al., TPAMI 2017), section 3.
    """

    def __init__(self, in_channels: int, scale_factor: int = 2, ceil_mode: bool = False) -> None:
        """``in_channels`` is accepted so that all operators are built alike; unpooling has no parameters."""
        super().__init__()
        self.in_channels = in_channels
        self.scale_factor = scale_factor
        self.ceil_mode = ceil_mode

    def pool(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        """Max pooling by s and the position of every maximum."""
        pooled, indices = F.max_pool2d(feature, self.scale_factor, ceil_mode=self.ceil_mode, return_indices=True)
        return pooled, indices

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Scatter x into zeros at ``skip.indices``."""
        feature, indices = feature_of(self, skip), getattr(skip, "indices", None)
        if indices is None or indices.shape != x.shape:
            got = "none" if indices is None else tuple(indices.shape)
            raise FadevizError(
                f"MaxUnpool: skip.indices are {got}, but x is {tuple(x.shape)}. "
                "Pool the encoder feature with MaxUnpool.pool and pass its indices on: Skip(feature, indices)"
            )
        h, w = feature.shape[-2:]
        s, extra = self.scale_factor, self.scale_factor - 1 if self.ceil_mode else 0
        pooled = ((h + extra) // s, (w + extra) // s)
        if x.shape[-2:] != pooled:
            raise FadevizError(
                f"MaxUnpool: x is {x.shape[-2]}x{x.shape[-1]}, but skip.feature is {h}x{w}, which scale_factor {s} and "
                f"ceil_mode {self.ceil_mode} pool to {pooled[0]}x{pooled[1]}. Pass on the feature that was pooled"
            )
        # Both are read plane by plane, whatever their memory format.
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            pixels, positions = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (x, indices))
            y = x.new_zeros(x.shape[0], h * w, x.shape[1]).scatter_(1, positions, pixels)
            return y.unflatten(1, (h, w)).permute(0, 3, 1, 2)
        y = x.new_zeros(*x.shape[:2], h * w).scatter_(2, indices.flatten(2), x.flatten(2))
        return y.unflatten(2, (h, w))

    def multiply_adds(self, height: int, width: int) -> int:
        """None: values are moved."""
        return 0

    def extra_repr(self) -> str:
        """The options, for the printed network."""
        ceil = ", ceil_mode=True" if self.ceil_mode else ""
        return f"{self.in_channels}, scale_factor={self.scale_factor}{ceil}"
