"""Attention to sampled points in torch's own operators, on any device: the reference, and what a GPU uses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..memory_format import empty, memory_format_of

_CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
"""Working memory for sampled values: all points of a small map at once, one at a time of a large one. On a CPU a core's
share of the cache; on a GPU a small map costs its launches, not its bytes."""

_BILINEAR_ZEROS_CORNERS = (0, 0, True)
"""Arguments of torch's grid_sampler_2d: bilinear, 0 outside, ``align_corners=True``."""


class Points(NamedTuple):
    """Where every high-resolution pixel samples, and how channels share points and kernels."""

    offsets: Tensor
    """``(B, G*P*2, s*h, s*w)``; see :mod:`fadeviz.ops.sampled`."""
    groups: int
    """G: the channels of a group share points."""
    heads: int
    """N: the channels of a head share kernels."""

    @property
    def per_pixel(self) -> int:
        """P, the points of a pixel."""
        return self.offsets.shape[1] // (2 * self.groups)


def format_of_gradient(x: Tensor) -> torch.memory_format:
    """The memory format of the gradient of x; on a GPU that of torch's own sampling."""
    return memory_format_of(x) if x.device.type == "cpu" else torch.contiguous_format


class Sampler:
    """A map folded into its groups, and the sampling grids of the points."""

    def __init__(self, x: Tensor, points: Points) -> None:
        """Prepare to sample x ``(B, C, h, w)``."""
        b, c, h, w = x.shape
        offsets, groups, heads = points
        self.x, self.offsets, self.groups, self.heads, self.count = x, offsets, groups, heads, points.per_pixel
        self.height, self.width = offsets.shape[2:]
        self.dtype = torch.promote_types(x.dtype, offsets.dtype)
        self.maps = x.to(self.dtype).reshape(b * groups, c // groups, h, w)
        # grid_sample's coordinates: -1 and 1 are the corner pixels.
        self.pitch = 2 / max(self.height - 1, 1), 2 / max(self.width - 1, 1)
        rows, columns = (torch.linspace(-1, 1, n, dtype=self.dtype, device=x.device) for n in offsets.shape[2:])
        self.regular = rows[:, None], columns
        self.of_sampled = (b, heads, c // heads, -1, self.height, self.width)
        point_bytes = b * c * self.height * self.width * self.maps.element_size()
        step = (self.count if point_bytes * self.count <= _CHUNK_BYTES.get(x.device.type, 0) else 1) or 1
        self.whole: Tensor | None = None  # the grid of all points, where they are one chunk
        self.chunks = [slice(m, m + step) for m in range(0, self.count, step)]

    def grid(self, chunk: slice) -> Tensor:
        """``(B*G, points of the chunk * height, width, 2)``."""
        if self.whole is not None:
            return self.whole
        offsets = self.offsets.unflatten(1, (self.groups, self.count, 2))[:, :, chunk]
        grid = self.offsets.new_empty((*offsets.shape[:3], self.height, self.width, 2), dtype=self.dtype)
        for d in (0, 1):
            torch.add(self.regular[d], offsets[:, :, :, d], alpha=self.pitch[d], out=grid[..., 1 - d])
        grid = grid.view(len(self.maps), -1, self.width, 2)
        if len(self.chunks) == 1:
            self.whole = grid
        return grid

    def sample(self, grid: Tensor) -> Tensor:
        """``(B, N, C/N, points of the chunk, height, width)``."""
        sampled: Tensor = torch.ops.aten.grid_sampler_2d(self.maps, grid, *_BILINEAR_ZEROS_CORNERS)
        return sampled.view(self.of_sampled)

    def split(self, kernels: Tensor) -> Tensor:
        """Kernels, to be multiplied with the result of :meth:`sample`: ``(B, N, 1, P, height, width)``."""
        return self.planes(kernels).unflatten(1, (self.heads, 1, self.count))

    def broadcast(self, y: Tensor) -> Tensor:
        """A map, to be multiplied with the result of :meth:`sample`: ``(B, N, C/N, 1, height, width)``."""
        return self.planes(y).unflatten(1, (self.heads, -1)).unsqueeze(3)

    def planes(self, maps: Tensor) -> Tensor:
        """The maps in the dtype of the sums."""
        # They are read many times on a CPU, where the layout of the sampled values is best; on a GPU a copy costs more.
        maps = maps.to(self.dtype)
        return maps.contiguous() if maps.device.type == "cpu" else maps

    def biased(self, chunk: slice, bias: Tensor | None) -> Tensor:
        """The result of :meth:`sample` for a chunk, plus the bias of each point."""
        values = self.sample(self.grid(chunk))
        return values if bias is None else values.add_(bias[:, chunk].transpose(1, 2)[..., None, None])

    def sums(self, kernels: Tensor, bias: Tensor | None = None, like: Tensor | None = None) -> Tensor:
        """Weighted sums of x (and bias) at the points, in the dtype and memory format of ``like``, by default of x."""
        like = self.x if like is None else like
        out = empty(like, (*like.shape[:2], self.height, self.width), self.dtype)
        split, into = self.split(kernels), out.unflatten(1, (self.heads, -1))
        for chunk in self.chunks:
            weighted = self.biased(chunk, bias).mul_(split[:, :, :, chunk])
            if chunk.start:
                into += weighted.sum(3)
            else:
                torch.sum(weighted, 3, out=into)
        return out.to(like.dtype)

    def logits(self, query: Tensor, bias: Tensor | None, like: Tensor | None = None) -> Tensor:
        """Inner products of the query with x (plus bias) at the points, in the format of ``like`` or of the query."""
        dtype = self.dtype if like is None else like.dtype
        shape = (query.shape[0], self.heads * self.count, self.height, self.width)
        out = empty(query if like is None else like, shape, self.dtype)
        spread_query, into = self.broadcast(query), out.unflatten(1, (self.heads, self.count))
        for chunk in self.chunks:
            torch.sum(self.biased(chunk, bias).mul_(spread_query), 2, out=into[:, :, chunk])
        return out.to(dtype)

    def gradients(self, y: Tensor, kernels: Tensor, need_x: bool, need_offsets: bool) -> tuple[Tensor, Tensor]:
        """The gradients of ``sum(y * self.sums(kernels))`` in x and in the offsets; empty where not needed."""
        to_maps = None
        to_offsets = empty(self.offsets, self.offsets.shape) if need_offsets else self.offsets.new_empty(0)
        split, spread_y = self.split(kernels), self.broadcast(y)
        for chunk in self.chunks if need_x or need_offsets else ():
            grid = self.grid(chunk)
            upstream = grid.new_empty((*self.maps.shape[:2], *grid.shape[1:3]))
            torch.mul(spread_y, split[:, :, :, chunk], out=upstream.view(self.of_sampled))
            part, to_grid = torch.ops.aten.grid_sampler_2d_backward(
                upstream, self.maps, grid, *_BILINEAR_ZEROS_CORNERS, [need_x, need_offsets]
            )
            if need_x:
                to_maps = part if to_maps is None else to_maps.add_(part)
            if need_offsets:
                into = to_offsets.unflatten(1, (self.groups, self.count, 2))[:, :, chunk]
                per_point = to_grid.view(*into.shape[:3], self.height, self.width, 2)
                for d in (0, 1):
                    torch.mul(per_point[..., 1 - d], self.pitch[d], out=into[:, :, :, d])
        if to_maps is None:
            return self.x.new_empty(0), to_offsets
        to_x = to_maps.view(self.x.shape).to(self.x.dtype)
        return to_x.contiguous(memory_format=format_of_gradient(self.x)), to_offsets
