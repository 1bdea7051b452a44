"""SegNet's own operator: max pooling that remembers where each maximum was, and unpooling to that place."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..errors import FadevizError
from .base import Skip, Upsampler


class MaxUnpool(Upsampler):
    """Max unpooling: every value returns to the place of its window's maximum, zeros elsewhere.

    ``y.flat[indices] = x`` in each plane, with ``index = row * W + column`` as ``pool`` found it (first maximum in
    row-major order).

    Limit case: ``max_pool(unpool(y)) = max(y, 0)``.

    Shape: x ``(B, C, h, w)``, skip.indices ``(B, C, h, w)`` int64 -> the size of ``skip.feature``.
    Cost: no parameters, no multiply-adds.
    Raises: FadevizError when skip.indices is missing or has another shape than x.
    Source: SegNet (Badrinarayanan et al., TPAMI 2017), section 3.
    """

    def __init__(self, in_channels: int, scale_factor: int = 2) -> None:
        """``in_channels`` is taken so that every operator is built alike; unpooling has no parameters."""
        super().__init__()
        self.in_channels = in_channels
        self.scale_factor = scale_factor

    def pool(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        """Max pooling by s and the position of every maximum."""
        pooled, indices = F.max_pool2d(feature, self.scale_factor, return_indices=True)
        return pooled, indices

    def forward(self, x: Tensor, skip: Skip) -> Tensor:
        """Scatter x into zeros at ``skip.indices``."""
        if skip.indices is None or skip.indices.shape != x.shape:
            got = "none" if skip.indices is None else tuple(skip.indices.shape)
            raise FadevizError(
                f"MaxUnpool: skip.indices are {got}, but x is {tuple(x.shape)}. "
                "Pool the encoder feature with MaxUnpool.pool and pass its indices on: Skip(feature, indices)"
            )
        # The values and the indices must lie alike in memory: max_unpool2d reads both in plane order.
        size = skip.feature.shape[-2:]
        y = F.max_unpool2d(x.contiguous(), skip.indices.contiguous(), [self.scale_factor] * 2, output_size=list(size))
        return y.to(x.dtype)  # autocast runs it in float32; values are only moved, so nothing is lost on the way back

    def extra_repr(self) -> str:
        """Shown in the printed network."""
        return f"{self.in_channels}, scale_factor={self.scale_factor}"
