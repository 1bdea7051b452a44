"""Reassembly in tiles: batched matrix products over blocks of the map, on any device, without an unfolded tensor.

A tile is 4x4 low-resolution pixels. Their windows overlap in one patch of x (8x8 for K = 5); their kernels, laid out as
a band matrix with a row for every output pixel and a column for every pixel of the patch, turn the weighted sums into
one matrix product: ``output = band @ patch``. Both adjoints are products of the same matrices.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_TILE = 4
"""Low-resolution pixels along each side of a tile. With K = 5 a 4x4 tile shares one 8x8 patch of x: 2.56 times the
arithmetic of the plain sum, but 4 copies of x in place of 25."""

_CHUNK_BYTES = 4 << 20
"""Working memory for one batch of tiles: about a core's share of the last-level cache."""


def own_precision(device: str) -> contextlib.AbstractContextManager[object]:
    """Without autocast, which knows nothing of the device meta, where shapes are worked out without values."""
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def is_autocast(device: str) -> bool:
    """Whether maps on this device are under autocast."""
    return device != "meta" and torch.is_autocast_enabled(device)


def _in_own_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Autocast would round float32 maps to half precision for the products; here the maps' own type decides."""

    @functools.wraps(function)
    def run(first: Tensor, *rest: Any) -> Tensor:
        with own_precision(first.device.type):
            return function(first, *rest)

    return run


@_in_own_precision
def reassemble(x: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int, groups: int) -> Tensor:
    """``(B, C, h, w)`` and ``(B, G*K*K, s*h, s*w)`` -> ``(B, C, s*h, s*w)``, in x's dtype and memory format."""
    kernels = kernels.to(x.dtype)
    parts = zip(x.chunk(groups, dim=1), kernels.chunk(groups, dim=1), strict=True)
    return _join([_reassemble(xg, wg, kernel_size, scale_factor) for xg, wg in parts], x)


@_in_own_precision
def similarity(query: Tensor, key: Tensor, kernel_size: int, scale_factor: int, groups: int) -> Tensor:
    """``(B, C, s*h, s*w)`` and ``(B, C, h, w)`` -> ``(B, G*K*K, s*h, s*w)``, in float32 or better."""
    key = key.to(query.dtype)
    parts = zip(query.chunk(groups, dim=1), key.chunk(groups, dim=1), strict=True)
    return _join([_similarity(qg, kg, kernel_size, scale_factor) for qg, kg in parts], query)


@_in_own_precision
def spread(y: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int, groups: int) -> Tensor:
    """``(B, C, s*h, s*w)`` and ``(B, G*K*K, s*h, s*w)`` -> ``(B, C, h, w)``, in y's dtype and memory format."""
    kernels = kernels.to(y.dtype)
    parts = zip(y.chunk(groups, dim=1), kernels.chunk(groups, dim=1), strict=True)
    return _join([_spread(yg, wg, kernel_size, scale_factor) for yg, wg in parts], y)


def softmax(
    logits: Tensor, coarse: Tensor | None, kernel_size: int, scale_factor: int, groups: int, dtype: torch.dtype
) -> Tensor:
    """Softmax over each kernel of ``logits + nearest_s(coarse)``, in the logits' memory format."""
    if coarse is not None:
        logits = logits + F.interpolate(coarse, scale_factor=scale_factor, mode="nearest")
    b, _, h, w = logits.shape
    kernels = logits.reshape(b, groups, -1, h, w).softmax(dim=2, dtype=dtype).reshape(logits.shape)
    return _join([kernels], logits)


def softmax_backward(
    grad: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int, groups: int, has_coarse: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the logits and of the coarse ones, in the gradient's memory format."""
    b, channels, h, w = grad.shape
    weighted = (grad * kernels).reshape(b, groups, -1, h, w)
    mean = weighted.sum(dim=2, keepdim=True)
    out = (weighted - kernels.reshape(b, groups, -1, h, w) * mean).reshape(grad.shape)
    s = scale_factor
    low = out.reshape(b, channels, h // s, s, w // s, s).sum(dim=(3, 5)) if has_coarse else None
    return _join([out], grad), None if low is None else _join([low], grad)


def _join(parts: list[Tensor], like: Tensor) -> Tensor:
    joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    # A one-channel or 1x1 map is both; contiguous is then the cheaper claim.
    last = not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    return joined.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _reassemble(x: Tensor, kernels: Tensor, kernel_size: int, scale: int) -> Tensor:
    b, c, h, w = x.shape
    plan = _Plan(b, c, h, w, kernel_size, scale)
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
    return plan.crop_output(out)


def _similarity(query: Tensor, key: Tensor, kernel_size: int, scale: int) -> Tensor:
    b, c, h, w = key.shape
    plan = _Plan(b, c, h, w, kernel_size, scale)
    queries, padded = plan.pad_output(query), plan.pad_input(key)
    dtype = torch.promote_types(query.dtype, torch.float32)
    out = query.new_empty(*queries.shape[:3], kernel_size**2, dtype=dtype)
    for images, rows in plan.chunks(key.element_size()):
        patches = plan.patches(padded, images, rows).to(dtype)
        product = torch.bmm(plan.rows_of(queries, images, rows).to(dtype), patches.transpose(1, 2))
        target = plan.kernel_tiles(out, images, rows)
        target.copy_(plan.band_view(product).unflatten(0, target.shape[:3]))
    return plan.crop_output(out)


def _spread(y: Tensor, kernels: Tensor, kernel_size: int, scale: int) -> Tensor:
    b, c, height, width = y.shape
    plan = _Plan(b, c, height // scale, width // scale, kernel_size, scale)
    upstream, weights = plan.pad_output(y), plan.pad_output(kernels)
    before = kernel_size // 2
    after = kernel_size - 1 - before
    out = y.new_zeros(b, plan.rows * _TILE + before + after, plan.columns * _TILE + before + after, c)
    band = view = None
    for images, rows in plan.chunks(y.element_size()):
        if band is None or view is None:
            band, view = plan.band_buffer(_tile_count(plan, images, rows), y)
        count = _fill_band(plan, view, weights, images, rows)
        patches = torch.bmm(band[:count].transpose(1, 2), plan.rows_of(upstream, images, rows))
        _add_patches(plan, out, patches, images, rows)
    return out[:, before : before + plan.height, before : before + plan.width].permute(0, 3, 1, 2)


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
        # Small maps get by with less: working memory is not to outweigh the maps themselves.
        output = self.batch * self.channels * self.rows * self.columns * self.out_tile**2 * item_bytes
        chunk = min(_CHUNK_BYTES, max(output // 2, _CHUNK_BYTES // 16))
        rows = max(1, min(self.rows, chunk // row))
        images = max(1, chunk // (row * rows)) if rows == self.rows else 1
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
        band = like.new_zeros(count, self.out_tile**2, self.patch**2)
        return band, self.band_view(band)

    def band_view(self, product: Tensor) -> Tensor:
        """The band of a (count, (T*s)^2, P^2) matrix as the view (count, T, s, T, s, K, K)."""
        p, t, s, k = self.patch, _TILE, self.scale, self.kernel_size
        line = t * s * p * p  # one output row further down inside a tile
        strides = ((t * s) ** 2 * p * p, s * line + p, line, s * p * p + 1, p * p, p, 1)
        return product.as_strided((len(product), t, s, t, s, k, k), strides)

    def rows_of(self, padded: Tensor, images: slice, rows: slice) -> Tensor:
        """The output pixels of every tile of a chunk, copied: (tiles, (T*s)^2, C)."""
        tiles = self.tiles(padded, images, rows).permute(0, 1, 3, 2, 4, 5)
        return tiles.reshape(-1, self.out_tile**2, self.channels)

    def crop_output(self, y: Tensor) -> Tensor:
        """(B, rows, columns, channels), filled up to whole tiles, as (B, channels, s*h, s*w)."""
        return y[:, : self.height * self.scale, : self.width * self.scale].permute(0, 3, 1, 2)

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
