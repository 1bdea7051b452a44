"""Reassembly in tiles: batched matrix products over blocks of the map, on any device.

A tile is 4x4 low-resolution pixels. Their windows overlap in one patch of x (8x8 for K = 5). Their kernels, as a band
matrix with a row for every output pixel and a column for every pixel of the patch, turn the weighted sums into one
matrix product: ``output = band @ patch``. Both adjoints are products of the same matrices. The unfolded tensor is never
materialised.
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

from ..memory_format import empty, memory_format_of

_TILE = 4
"""Low-resolution pixels along each side of a tile. With K = 5 a 4x4 tile shares one 8x8 patch of x: 2.56 times the
arithmetic of the plain sum, but 4 copies of x in place of 25."""

_CHUNK_BYTES = 4 << 20
"""Working memory for one batch of tiles: about a core's share of the last-level cache."""


def own_precision(device: str) -> contextlib.AbstractContextManager[object]:
    """Without autocast; on the device meta, which has no autocast, nothing changes."""
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def is_autocast(device: str) -> bool:
    """Whether maps on this device are under autocast."""
    return device != "meta" and torch.is_autocast_enabled(device)


def _in_own_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute in the dtype of the maps: autocast would round float32 maps to half precision for the products."""

    @functools.wraps(function)
    def run(first: Tensor, *rest: Any) -> Tensor:
        with own_precision(first.device.type):
            return function(first, *rest)

    return run


@_in_own_precision
def reassemble(x: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int, groups: int) -> Tensor:
    """``(B, C, h, w)`` and ``(B, G*K*K, s*h, s*w)`` -> ``(B, C, s*h, s*w)``, in x's dtype and memory format."""
    b, c, h, w = x.shape
    out = empty(x, (b, c, h * scale_factor, w * scale_factor), x.dtype)
    for xg, wg, yg in _groups(groups, x, kernels.to(x.dtype), out):
        _reassemble(xg, wg, yg, kernel_size, scale_factor)
    return out


@_in_own_precision
def similarity(query: Tensor, key: Tensor, kernel_size: int, scale_factor: int, groups: int) -> Tensor:
    """``(B, C, s*h, s*w)`` and ``(B, C, h, w)`` -> ``(B, G*K*K, s*h, s*w)``, in float32 or better."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    out = empty(query, (len(query), groups * kernel_size**2, *query.shape[2:]), dtype)
    for qg, kg, wg in _groups(groups, query, key.to(query.dtype), out):
        _similarity(qg, kg, wg, kernel_size, scale_factor)
    return out


@_in_own_precision
def spread(y: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int, groups: int) -> Tensor:
    """``(B, C, s*h, s*w)`` and ``(B, G*K*K, s*h, s*w)`` -> ``(B, C, h, w)``, in y's dtype and memory format."""
    b, c, height, width = y.shape
    out = empty(y, (b, c, height // scale_factor, width // scale_factor), y.dtype)
    for yg, wg, xg in _groups(groups, y, kernels.to(y.dtype), out):
        _spread(yg, wg, xg, kernel_size, scale_factor)
    return out


def softmax(
    logits: Tensor, coarse: Tensor | None, kernel_size: int, scale_factor: int, groups: int, dtype: torch.dtype
) -> Tensor:
    """Softmax over each kernel of ``logits + nearest_s(coarse)``, in the logits' memory format."""
    if coarse is not None:
        logits = logits + F.interpolate(coarse, scale_factor=scale_factor, mode="nearest")
    b, _, h, w = logits.shape
    kernels = logits.reshape(b, groups, kernel_size**2, h, w).softmax(dim=2, dtype=dtype).reshape(logits.shape)
    return _in_format_of(logits, kernels)


def softmax_backward(
    grad: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int, groups: int, has_coarse: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the logits and of the coarse logits, in the gradient's memory format."""
    b, channels, h, w = grad.shape
    weighted = (grad * kernels).reshape(b, groups, kernel_size**2, h, w)
    mean = weighted.sum(dim=2, keepdim=True)
    out = (weighted - kernels.reshape(weighted.shape) * mean).reshape(grad.shape)
    s = scale_factor
    low = out.reshape(b, channels, h // s, s, w // s, s).sum(dim=(3, 5)) if has_coarse else None
    return _in_format_of(grad, out), None if low is None else _in_format_of(grad, low)


def _in_format_of(like: Tensor, values: Tensor) -> Tensor:
    return values.contiguous(memory_format=memory_format_of(like))


def _groups(groups: int, *maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The maps of every group, as views (B, height, width, channels)."""
    return zip(*(m.permute(0, 2, 3, 1).chunk(groups, dim=3) for m in maps), strict=True)


# A chunk of tiles at a time is read from and written to the maps of one group, (B, H, W, channels): no other tensor is
# as large as a map.


def _reassemble(x: Tensor, kernels: Tensor, out: Tensor, kernel_size: int, scale: int) -> None:
    plan = _plan(x, kernel_size, scale)
    band = view = None
    for images, rows in plan.chunks(x.element_size()):
        if band is None or view is None:
            band, view = plan.band_buffer(_tile_count(plan, images, rows), x)
        count = _fill_band(plan, view, kernels, images, rows)
        product = torch.bmm(band[:count], plan.patches(plan.window(x, images, rows)))
        plan.write(out, plan.as_map(product, images), images, rows)
        del product  # before the next one is made


def _similarity(query: Tensor, key: Tensor, out: Tensor, kernel_size: int, scale: int) -> None:
    plan = _plan(key, kernel_size, scale)
    for images, rows in plan.chunks(key.element_size()):
        patches = plan.patches(plan.window(key, images, rows)).to(out.dtype)
        product = torch.bmm(plan.rows_of(query, images, rows).to(out.dtype), patches.transpose(1, 2))
        del patches
        plan.write(out, plan.as_kernels(product, images), images, rows)
        del product


def _spread(y: Tensor, kernels: Tensor, out: Tensor, kernel_size: int, scale: int) -> None:
    plan = _plan(out, kernel_size, scale)
    band = view = None
    below = y.new_empty(0)
    for images, rows in plan.chunks(y.element_size()):
        if band is None or view is None:
            band, view = plan.band_buffer(_tile_count(plan, images, rows), y)
        count = _fill_band(plan, view, kernels, images, rows)
        patches = torch.bmm(band[:count].transpose(1, 2), plan.rows_of(y, images, rows))
        window = y.new_zeros(images.stop - images.start, *plan.window_size(rows), plan.channels)
        if rows.start:  # the sums of the chunk above in the rows that both reach
            window[:, : kernel_size - 1] = below
        _add_patches(plan, window, patches, images, rows)
        plan.write_window(out, window, images, rows)
        below = window[:, window.shape[1] - kernel_size + 1 :].clone()
        del patches, window  # before the next ones are made


class _Plan(NamedTuple):
    """The sizes of one tiled reassembly; rows of a band are output pixels, columns patch pixels."""

    batch: int
    height: int  # of x
    width: int
    channels: int
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
        # Small maps take less: working memory should not exceed the maps themselves.
        output = self.batch * self.channels * self.rows * self.columns * self.out_tile**2 * item_bytes
        chunk = min(_CHUNK_BYTES, max(output, _CHUNK_BYTES // 16))
        rows = max(1, min(self.rows, chunk // row))
        images = max(1, chunk // (row * rows)) if rows == self.rows else 1
        for b in range(0, self.batch, images):
            for r in range(0, self.rows, rows):
                yield slice(b, min(b + images, self.batch)), slice(r, min(r + rows, self.rows))

    def window(self, x: Tensor, images: slice, rows: slice) -> Tensor:
        """The region that the patches of a chunk of tiles cover: a copy of x (B, h, w, C), zero around the map."""
        before, after = self.kernel_size // 2, self.kernel_size - 1 - self.kernel_size // 2
        top, bottom = rows.start * _TILE - before, rows.stop * _TILE + after
        right = self.columns * _TILE - self.width + after
        inside = x[images, max(0, top) : min(self.height, bottom)]
        return F.pad(inside, (0, 0, before, right, max(0, -top), max(0, bottom - self.height)))

    def window_size(self, rows: slice) -> tuple[int, int]:
        """Height and width of the window of a chunk of tiles."""
        around = self.kernel_size - 1
        return (rows.stop - rows.start) * _TILE + around, self.columns * _TILE + around

    def write_window(self, x: Tensor, window: Tensor, images: slice, rows: slice) -> None:
        """Write the rows of a window that no chunk below reaches, without the part around the map."""
        before = self.kernel_size // 2
        top = rows.start * _TILE - before
        end = rows.stop * _TILE - before if rows.stop < self.rows else self.height
        first = max(0, top)
        if first < end:
            x[images, first:end].copy_(window[:, first - top : end - top, before : before + self.width])

    def patches(self, window: Tensor) -> Tensor:
        """The patch of every tile of a chunk, copied: (tiles, P*P, C)."""
        view = window.unfold(1, self.patch, _TILE).unfold(2, self.patch, _TILE)  # images, rows, columns, C, P, P
        return view.permute(0, 1, 2, 4, 5, 3).reshape(-1, self.patch**2, self.channels)

    def read(self, y: Tensor, images: slice, rows: slice) -> Tensor:
        """The part of a high-resolution map (B, H, W, C) that a chunk of tiles covers, zero around the map."""
        inside = y[images, rows.start * self.out_tile : rows.stop * self.out_tile]
        right = self.columns * self.out_tile - y.shape[2]
        below = (rows.stop - rows.start) * self.out_tile - inside.shape[1]
        return F.pad(inside, (0, 0, 0, right, 0, below)) if right or below else inside

    def write(self, y: Tensor, tiles: Tensor, images: slice, rows: slice) -> None:
        """Write a chunk of tiles (images, rows, T*s, columns, T*s, C) to a high-resolution map."""
        inside = y[images, rows.start * self.out_tile : rows.stop * self.out_tile]
        count, width = rows.stop - rows.start, self.columns * self.out_tile
        if inside.shape[1:3] == (count * self.out_tile, width):
            self.tiles(inside).copy_(tiles)
        else:
            whole = tiles.reshape(len(inside), count * self.out_tile, width, y.shape[3])
            inside.copy_(whole[:, : inside.shape[1], : inside.shape[2]])

    def tiles(self, y: Tensor) -> Tensor:
        """The view (images, tile rows, T*s, tile columns, T*s, channels) of whole tiles of a high-resolution map."""
        return y.unflatten(2, (self.columns, self.out_tile)).unflatten(1, (-1, self.out_tile))

    def as_map(self, product: Tensor, images: slice) -> Tensor:
        """(tiles, (T*s)^2, C) as (images, rows, T*s, columns, T*s, C)."""
        size = self.out_tile
        shape = (images.stop - images.start, -1, self.columns, size, size, self.channels)
        return product.reshape(shape).permute(0, 1, 3, 2, 4, 5)

    def as_kernels(self, product: Tensor, images: slice) -> Tensor:
        """The band of (tiles, (T*s)^2, P^2) as (images, rows, T*s, columns, T*s, K*K), copied."""
        band = self.band_view(product).unflatten(0, (images.stop - images.start, -1, self.columns))
        rows = band.permute(0, 1, 3, 4, 2, 5, 6, 7, 8)
        size = self.out_tile
        return rows.reshape(*rows.shape[:2], size, self.columns, size, self.kernel_size**2)

    def kernel_tiles(self, kernels: Tensor) -> Tensor:
        """Kernels of whole tiles as the view (images, rows, columns, T, s, T, s, K, K)."""
        view = self.tiles(kernels).unflatten(5, (self.kernel_size,) * 2)
        view = view.unflatten(4, (_TILE, self.scale)).unflatten(2, (_TILE, self.scale))
        return view.permute(0, 1, 4, 2, 3, 5, 6, 7, 8)

    def rows_of(self, y: Tensor, images: slice, rows: slice) -> Tensor:
        """The output pixels of every tile of a chunk, copied: (tiles, (T*s)^2, C)."""
        tiles = self.tiles(self.read(y, images, rows)).permute(0, 1, 3, 2, 4, 5)
        return tiles.reshape(-1, self.out_tile**2, self.channels)

    def band_buffer(self, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """A zeroed (count, (T*s)^2, P^2) band matrix and the view (count, T, s, T, s, K, K) of its band.

        Off the band it stays zero, so that one buffer serves all chunks.
        """
        band = like.new_zeros(count, self.out_tile**2, self.patch**2)
        return band, self.band_view(band)

    def band_view(self, product: Tensor) -> Tensor:
        """The band of a (count, (T*s)^2, P^2) matrix as the view (count, T, s, T, s, K, K)."""
        p, t, s, k = self.patch, _TILE, self.scale, self.kernel_size
        line = t * s * p * p  # one output row further down inside a tile
        strides = ((t * s) ** 2 * p * p, s * line + p, line, s * p * p + 1, p * p, p, 1)
        return product.as_strided((len(product), t, s, t, s, k, k), strides)


def _plan(x: Tensor, kernel_size: int, scale: int) -> _Plan:
    b, h, w, c = x.shape
    return _Plan(b, h, w, c, kernel_size, scale)


def _fill_band(plan: _Plan, view: Tensor, kernels: Tensor, images: slice, rows: slice) -> int:
    """Copy a chunk's kernels into the band; returns the number of tiles."""
    source = plan.kernel_tiles(plan.read(kernels, images, rows))
    lead = source.shape[:3]
    count = math.prod(lead)
    view[:count].unflatten(0, lead).copy_(source)
    return count


def _tile_count(plan: _Plan, images: slice, rows: slice) -> int:
    return (images.stop - images.start) * (rows.stop - rows.start) * plan.columns


def _add_patches(plan: _Plan, window: Tensor, patches: Tensor, images: slice, rows: slice) -> None:
    """Add every tile's patch to the window. Patches overlap, but their T x T blocks of the same position do not."""
    count = rows.stop - rows.start
    blocks = patches.view(images.stop - images.start, count, plan.columns, plan.patch, plan.patch, plan.channels)
    for top in range(0, plan.patch, _TILE):
        height = min(_TILE, plan.patch - top)
        for left in range(0, plan.patch, _TILE):
            width = min(_TILE, plan.patch - left)
            # unfold returns the non-overlapping blocks as a view; at the patch's rim they are smaller than a tile.
            bottom, right = top + (count - 1) * _TILE + height, left + (plan.columns - 1) * _TILE + width
            region = window[:, top:bottom, left:right]
            view = region.unfold(1, height, _TILE).unfold(2, width, _TILE)
            view.add_(blocks[:, :, :, top : top + height, left : left + width].permute(0, 1, 2, 5, 3, 4))
