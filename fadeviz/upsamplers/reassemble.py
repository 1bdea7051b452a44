"""The weighted-window sum that CARAFE, FADE and their kin share, in tiles: no unfolded tensor, any device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..errors import FadevizError

_TILE = 4
"""Low-resolution locations along each side of a tile. With K = 5 a 4x4 tile shares one 8x8 patch of x: 2.56 times the
arithmetic of the plain sum, but 4 copies of x in place of 25."""

_CHUNK_BYTES = 4 << 20
"""Working memory for one batch of tiles: about a core's share of the last-level cache."""


class KernelSoftmax(nn.Module):
    """Softmax over the K*K weights of every reassembly kernel: ``(B, G*K*K, H, W)`` logits -> kernels that sum to 1.

    A module of its own so that a probe can name it: its output is what ``kernel_entropy`` is computed from.
    """

    def __init__(self, kernel_size: int, groups: int = 1) -> None:
        """Kernels of ``kernel_size`` x ``kernel_size``, one for each of ``groups`` channel groups."""
        super().__init__()
        self.kernel_size = kernel_size
        self.groups = groups

    def forward(self, logits: Tensor) -> Tensor:
        """Normalise each kernel; shape and memory format stay."""
        if self.groups == 1:
            return logits.softmax(dim=1)
        b, _, h, w = logits.shape
        return logits.reshape(b, self.groups, -1, h, w).softmax(dim=2).reshape(logits.shape)

    def extra_repr(self) -> str:
        """Shown in the printed network."""
        return f"kernel_size={self.kernel_size}, groups={self.groups}"


def reassemble(x: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int = 2, groups: int = 1) -> Tensor:
    """Every output pixel is the weighted sum of the K x K window around its low-resolution parent.

    ``y[b, n, i, j] = sum over k, l of kernels[b, (g*K + k)*K + l, i, j] * x[b, n, i//s + k - K//2, j//s + l - K//2]``
    with ``g = n // (C/G)``; x is read as 0 outside its borders, and the kernels are used as they are given.

    Computed in tiles: the 4x4 low-resolution locations of a tile share one patch of x, their kernels are laid out as a
    band matrix, and ``output = band @ patch`` is one batched matrix product; so are both gradients.

    Limit case: a kernel that is 1 at its centre makes this nearest-neighbour upsampling, exactly.

    Args:
        x: ``(B, C, h, w)``, any memory format; the output has the same one.
        kernels: ``(B, G*K*K, s*h, s*w)``; cast to x's dtype where it differs.
        kernel_size: K, odd or even.
        scale_factor: s.
        groups: G, a divisor of C; channels of a group share kernels.

    Returns:
        ``(B, C, s*h, s*w)``.

    Raises:
        FadevizError: shapes that do not fit.

    Source: CARAFE (Wang et al., ICCV 2019), eq. 4. Differs: the authors' operator is a CUDA extension.
    """
    b, c, h, w = x.shape
    needed = (b, groups * kernel_size**2, scale_factor * h, scale_factor * w)
    if tuple(kernels.shape) != needed:
        raise FadevizError(
            f"reassemble: kernels are {tuple(kernels.shape)}, but x is {tuple(x.shape)}, kernel_size {kernel_size}, "
            f"scale_factor {scale_factor} and groups {groups} need {needed}"
        )
    if c % groups:
        raise FadevizError(f"reassemble: {c} channels do not divide into {groups} groups")
    kernels = kernels.to(x.dtype)
    out: Tensor
    if groups == 1:
        out = _Reassemble.apply(x, kernels, kernel_size, scale_factor)
        return out
    parts = zip(x.chunk(groups, dim=1), kernels.chunk(groups, dim=1), strict=True)
    return torch.cat([_Reassemble.apply(xg, wg, kernel_size, scale_factor) for xg, wg in parts], dim=1)


class _Plan(NamedTuple):
    """The sizes of one tiled reassembly; rows of a band are output pixels, columns patch pixels."""

    batch: int
    channels: int
    height: int  # of x
    width: int
    kernel_size: int
    scale: int

    @property
    def rows(self) -> int:
        return math.ceil(self.height / _TILE)

    @property
    def columns(self) -> int:
        return math.ceil(self.width / _TILE)

    @property
    def patch(self) -> int:
        return _TILE + self.kernel_size - 1

    @property
    def out_tile(self) -> int:
        return _TILE * self.scale

    def chunks(self, item_bytes: int) -> Iterator[tuple[slice, slice]]:
        """Batch slices and tile-row slices whose working memory is about ``_CHUNK_BYTES``."""
        band = self.out_tile**2 * self.patch**2
        row = self.columns * item_bytes * (band + (self.patch**2 + self.out_tile**2) * self.channels)
        rows = max(1, min(self.rows, _CHUNK_BYTES // row))
        images = max(1, _CHUNK_BYTES // (row * rows)) if rows == self.rows else 1
        for b in range(0, self.batch, images):
            for r in range(0, self.rows, rows):
                yield slice(b, min(b + images, self.batch)), slice(r, min(r + rows, self.rows))

    def pad_input(self, x: Tensor) -> Tensor:
        """x as (B, h, w, C) with its zero border, filled up to whole tiles."""
        before = self.kernel_size // 2
        after = self.kernel_size - 1 - before
        right = self.columns * _TILE - self.width + after
        below = self.rows * _TILE - self.height + after
        return F.pad(x.permute(0, 2, 3, 1), (0, 0, before, right, before, below))

    def pad_output(self, y: Tensor) -> Tensor:
        """A high-resolution map as (B, s*h, s*w, channels), filled up to whole tiles with zeros."""
        y = y.permute(0, 2, 3, 1)
        right = self.columns * self.out_tile - self.width * self.scale
        below = self.rows * self.out_tile - self.height * self.scale
        return F.pad(y, (0, 0, 0, right, 0, below)) if right or below else y

    def tiles(self, y: Tensor, images: slice, rows: slice) -> Tensor:
        """The view (images, tile rows, T*s, tile columns, T*s, channels) of a padded high-resolution map."""
        size = self.out_tile
        return (
            y[images, rows.start * size : rows.stop * size].unflatten(2, (self.columns, size)).unflatten(1, (-1, size))
        )

    def patches(self, padded: Tensor, images: slice, rows: slice) -> Tensor:
        """The patch of every tile of a chunk, copied: (tiles, P*P, C)."""
        window = padded[images, rows.start * _TILE : (rows.stop - 1) * _TILE + self.patch]
        view = window.unfold(1, self.patch, _TILE).unfold(2, self.patch, _TILE)  # images, rows, columns, C, P, P
        return view.permute(0, 1, 2, 4, 5, 3).reshape(-1, self.patch**2, self.channels)

    def band_buffer(self, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """A zeroed (count, (T*s)^2, P^2) band matrix and the view (count, T, s, T, s, K, K) of its band.

        Off the band it stays zero for ever, so that one buffer serves all chunks.
        """
        p, t, s, k = self.patch, _TILE, self.scale, self.kernel_size
        band = like.new_zeros(count, (t * s) ** 2, p * p)
        line = t * s * p * p  # one output row further down inside a tile
        strides = ((t * s) ** 2 * p * p, s * line + p, line, s * p * p + 1, p * p, p, 1)
        return band, band.as_strided((count, t, s, t, s, k, k), strides)

    def kernel_tiles(self, padded: Tensor, images: slice, rows: slice) -> Tensor:
        """The kernels of a chunk as the view (images, rows, columns, T, s, T, s, K, K)."""
        view = self.tiles(padded, images, rows).unflatten(5, (self.kernel_size,) * 2)
        view = view.unflatten(4, (_TILE, self.scale)).unflatten(2, (_TILE, self.scale))
        return view.permute(0, 1, 4, 2, 3, 5, 6, 7, 8)


def _fill_band(plan: _Plan, view: Tensor, kernels: Tensor, images: slice, rows: slice) -> int:
    """Copy a chunk's kernels into the band; returns the number of tiles."""
    source = plan.kernel_tiles(kernels, images, rows)
    lead = source.shape[:3]
    count = math.prod(lead)
    view[:count].unflatten(0, lead).copy_(source)
    return count


class _Reassemble(torch.autograd.Function):
    """Forward and backward of one group; only x and the kernels are kept in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor, kernel_size: int, scale: int) -> Tensor:
        b, c, h, w = x.shape
        plan = _Plan(b, c, h, w, kernel_size, scale)
        ctx.save_for_backward(x, kernels)
        ctx.plan = plan
        out = x.new_empty(plan.batch, plan.rows * plan.out_tile, plan.columns * plan.out_tile, plan.channels)
        padded, weights = plan.pad_input(x), plan.pad_output(kernels)
        band = view = None
        for images, rows in plan.chunks(x.element_size()):
            if band is None or view is None:
                band, view = plan.band_buffer(_tile_count(plan, images, rows), x)
            count = _fill_band(plan, view, weights, images, rows)
            product = torch.bmm(band[:count], plan.patches(padded, images, rows))
            target = plan.tiles(out, images, rows)
            target.copy_(_as_tiles(plan, product, target))
        out = out[:, : plan.height * scale, : plan.width * scale].permute(0, 3, 1, 2)
        return out.contiguous(memory_format=_format_of(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, kernels = ctx.saved_tensors
        plan: _Plan = ctx.plan
        need_x, need_kernels = ctx.needs_input_grad[:2]
        grads = plan.pad_output(grad)
        padded = plan.pad_input(x)
        weights = plan.pad_output(kernels)
        grad_padded = torch.zeros_like(padded) if need_x else None
        grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format) if need_kernels else None
        band = view = None
        for images, rows in plan.chunks(x.element_size()):
            if band is None or view is None:
                band, view = plan.band_buffer(_tile_count(plan, images, rows), x)
            tiles = plan.tiles(grads, images, rows)
            upstream = tiles.permute(0, 1, 3, 2, 4, 5).reshape(-1, plan.out_tile**2, plan.channels)
            if grad_weights is not None:
                product = torch.bmm(upstream, plan.patches(padded, images, rows).transpose(1, 2))
                source = product.as_strided((len(product), *view.shape[1:]), view.stride())
                target = plan.kernel_tiles(grad_weights, images, rows)
                target.copy_(source.unflatten(0, target.shape[:3]))
            if grad_padded is not None:
                count = _fill_band(plan, view, weights, images, rows)
                _add_patches(plan, grad_padded, torch.bmm(band[:count].transpose(1, 2), upstream), images, rows)
        grad_x = grad_w = None
        before = plan.kernel_size // 2
        if grad_padded is not None:
            inner = grad_padded[:, before : before + plan.height, before : before + plan.width]
            grad_x = inner.permute(0, 3, 1, 2).contiguous(memory_format=_format_of(x))
        if grad_weights is not None:
            inner = grad_weights[:, : plan.height * plan.scale, : plan.width * plan.scale]
            grad_w = inner.permute(0, 3, 1, 2).contiguous(memory_format=_format_of(kernels))
        return grad_x, grad_w, None, None


def _tile_count(plan: _Plan, images: slice, rows: slice) -> int:
    return (images.stop - images.start) * (rows.stop - rows.start) * plan.columns


def _as_tiles(plan: _Plan, product: Tensor, target: Tensor) -> Tensor:
    """(tiles, (T*s)^2, C) as (images, rows, T*s, columns, T*s, C)."""
    size = plan.out_tile
    lead = (target.shape[0], target.shape[1], plan.columns)
    return product.reshape(*lead, size, size, plan.channels).permute(0, 1, 3, 2, 4, 5)


def _add_patches(plan: _Plan, padded: Tensor, patches: Tensor, images: slice, rows: slice) -> None:
    """Add every tile's patch into the padded map. Patches overlap, their T x T blocks of one position do not."""
    count = rows.stop - rows.start
    blocks = patches.view(images.stop - images.start, count, plan.columns, plan.patch, plan.patch, plan.channels)
    for top in range(0, plan.patch, _TILE):
        height = min(_TILE, plan.patch - top)
        for left in range(0, plan.patch, _TILE):
            width = min(_TILE, plan.patch - left)
            y, x = rows.start * _TILE + top, left
            # unfold gives the non-overlapping blocks as a view, shorter than a tile at the patch's rim.
            region = padded[images, y : y + (count - 1) * _TILE + height, x : x + (plan.columns - 1) * _TILE + width]
            view = region.unfold(1, height, _TILE).unfold(2, width, _TILE)
            view.add_(blocks[:, :, :, top : top + height, left : left + width].permute(0, 1, 2, 5, 3, 4))


def _format_of(x: Tensor) -> torch.memory_format:
    # A one-channel or 1x1 map is both; contiguous is then the cheaper claim.
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
