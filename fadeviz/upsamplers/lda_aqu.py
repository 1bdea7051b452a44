"""LDA-AQU: attention over a deformed neighbourhood that the pixel itself asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..errors import FadevizError
from .base import Skip, Upsampler, check_input
from .per_pixel import PixelLayerNorm
from .reassemble import KernelSoftmax


class NeighbourOffsets(nn.Module):
    """Where each high-resolution pixel looks: a k x k neighbourhood, deformed by its query.

    Its output is ``(B, G*k*k*2, s*h, s*w)`` in high-resolution pixels, channel ``(g*k*k + n)*2 + d``: g the query
    group, n the neighbour in row-major order, d 0 vertical and 1 horizontal. Never below float32.
    """

    def __init__(
        self, query_channels: int, groups: int, kernel_size: int, encoder_kernel_size: int, range_factor: float
    ) -> None:
        """A depth-wise 3x3 and an ``encoder_kernel_size`` convolution, shared by the groups of the query."""
        super().__init__()
        self.groups = groups
        self.kernel_size = kernel_size
        self.range_factor = range_factor
        channels = query_channels // groups
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = PixelLayerNorm(channels)
        self.conv = nn.Conv2d(channels, 2 * kernel_size**2, encoder_kernel_size, padding=encoder_kernel_size // 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform, but the last convolution zero: the neighbourhood starts regular."""
        nn.init.xavier_uniform_(self.depthwise.weight)
        self.norm.reset_parameters()
        nn.init.zeros_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, query: Tensor) -> Tensor:
        """The offset map of a high-resolution query."""
        b, c, height, width = query.shape
        k = self.kernel_size
        folded = query.reshape(b * self.groups, c // self.groups, height, width)
        learned = self.conv(F.gelu(self.norm(self.depthwise(folded))))
        # bfloat16 has 8 bits: far too few for a position once it is added to a pixel's index.
        learned = learned.to(torch.promote_types(learned.dtype, torch.float32))
        line = torch.arange(k, dtype=learned.dtype, device=learned.device) - k // 2
        regular = torch.stack((line.repeat_interleave(k), line.repeat(k)), dim=1).view(-1, 1, 1)
        return (self.range_factor * learned.tanh() + regular).reshape(b, self.groups * 2 * k * k, height, width)


class LDAAQU(Upsampler):
    """Adaptive query-guided upsampling by local deformable attention.

    ``n = LN(x)``, ``q = bilinear_s(Wq n)`` with ``align_corners=True``, ``key = Wk n``, ``D = C/r`` channels each.
    For every group of D/G query channels, ``off = R * tanh(conv(GELU(LN(depthwise(q))))) + regular k x k grid``; pixel
    (i, j) then reads neighbour m at row ``(i + off_v)*(h - 1)/(s*h - 1)`` of the low-resolution maps, at its column
    likewise, bilinearly and 0 outside: ``key_m`` and the value ``x_m``, the g-th block of D/G and of C/G channels at
    the positions of group g.
    ``kernels = softmax over m of sum over d of (q_d / sqrt(D/N)) * (key_m,d + bias_m,d)`` for each of N heads, and
    ``y = sum over m of kernels_m * x_m``. R is the ``range_factor``, r the ``reduction_factor``.

    Limit case: ``kernel_size=1`` with zero offsets (the initial state) is bilinear interpolation with
    ``align_corners=True``; with zero query weights the k x k neighbours are averaged.

    Shape: x ``(B, C, h, w)`` -> ``(B, C, s*h, s*w)``; skip is not read.
    Units: offsets are in high-resolution pixels; pixel centres lie at whole numbers, and the corner pixels of both
    grids coincide.
    Cost: ``2*C*D + 2*C + 11*D/G + 2*k^2*(k_e^2*D/G + 1) + k^2*D`` parameters; with the defaults
    ``C^2/2 + 25.875C + 18``. Multiply-adds: ``2*C*D`` a low-resolution pixel; a high-resolution one
    ``(13 + 2*k^2*k_e^2 + 5*k^2)*D + 5*k^2*C``, interpolation counted as 4 a value.
    Raises: FadevizError when C does not divide by ``reduction_factor``, or C/r by ``groups`` or ``heads``, when
    ``encoder_kernel_size`` is even, or ``range_factor`` negative.
    Source: Du et al., ACM MM 2024, section 3; initialisation of the released code: convolutions Xavier-uniform, the
    last offset convolution 0, position bias truncated normal with standard deviation 0.02.
    Differs: sampled keys and values are used one neighbour at a time and sampled again for the gradient, so that no k*k
    maps are kept; positions are float32 also where the maps are half precision; the position bias lacks the released
    code's two axes of length 1, as a parameter with five axes cannot be made channels_last.
    """

    official_names: ClassVar[Mapping[str, str]] = {
        "layer_norm.norm": "norm",
        "proj_q": "query",
        "proj_k": "key",
        "conv_offset.0": "offsets.depthwise",
        "conv_offset.1.norm": "offsets.norm",
        "conv_offset.3": "offsets.conv",
        "relative_position_bias_table": "position_bias",
    }
    official_constants: ClassVar[frozenset[str]] = frozenset({"base_offset"})

    def __init__(
        self,
        in_channels: int,
        reduction_factor: int = 4,
        heads: int = 1,
        scale_factor: int = 2,
        kernel_size: int = 3,
        encoder_kernel_size: int = 3,
        groups: int = 2,
        range_factor: float = 11.0,
        relative_position_bias: bool = True,
    ) -> None:
        """Queries and keys of ``in_channels / reduction_factor``; ``groups`` for the offsets, ``heads`` for kernels."""
        super().__init__()
        channels = in_channels // reduction_factor
        if in_channels % reduction_factor:
            raise FadevizError(
                f"LDAAQU: {in_channels} channels do not divide by reduction_factor {reduction_factor}. Choose a divisor"
            )
        for option, count in (("groups", groups), ("heads", heads)):
            if channels % count:
                raise FadevizError(
                    f"LDAAQU: {in_channels} channels over reduction_factor {reduction_factor} are {channels} query "
                    f"channels, which do not divide into {count} {option}. Choose a divisor"
                )
        if encoder_kernel_size % 2 == 0:
            raise FadevizError(
                f"LDAAQU: encoder_kernel_size is {encoder_kernel_size}, it must be odd to keep the map's size"
            )
        if range_factor < 0:
            raise FadevizError(f"LDAAQU: range_factor is {range_factor}, it must be 0 (no deformation) or more")
        self.in_channels = in_channels
        self.scale_factor = scale_factor
        self.kernel_size = kernel_size
        self.heads = heads
        self.groups = groups
        self.norm = PixelLayerNorm(in_channels)
        self.query = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.key = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.offsets = NeighbourOffsets(channels, groups, kernel_size, encoder_kernel_size, range_factor)
        self.position_bias: nn.Parameter | None = None
        if relative_position_bias:
            self.position_bias = nn.Parameter(torch.empty(heads, kernel_size**2, channels // heads))
        self.kernels = KernelSoftmax(kernel_size, heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        self.norm.reset_parameters()
        for conv in (self.query, self.key):
            nn.init.xavier_uniform_(conv.weight)
        self.offsets.reset_parameters()
        if self.position_bias is not None:
            nn.init.trunc_normal_(self.position_bias, std=0.02)

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Attend from every high-resolution pixel to its deformed neighbourhood in x."""
        check_input(self, x, skip, self.in_channels)
        if not x.shape[0]:  # no samples to attend to
            return F.interpolate(x, scale_factor=self.scale_factor, mode="nearest")
        normed = self.norm(x)
        query = F.interpolate(self.query(normed), scale_factor=self.scale_factor, mode="bilinear", align_corners=True)
        offsets = self.offsets(query)
        dtype = torch.promote_types(x.dtype, offsets.dtype)
        points = offsets.to(dtype).reshape(-1, self.kernel_size**2, 2, *query.shape[-2:])
        kernels = self.kernels(self._logits(query, self.key(normed), points))
        y = _WeightedSamples.apply(self._fold(x.to(dtype)), points, kernels.to(dtype).unflatten(1, (self.heads, -1)))
        return y.flatten(1, 2).to(x.dtype)

    def _logits(self, query: Tensor, key: Tensor, points: Tensor) -> Tensor:
        split = query.to(points.dtype).unflatten(1, (self.heads, -1))
        logits = _SampledLogits.apply(split, self._fold(key.to(points.dtype)), points).flatten(1, 2)
        if self.position_bias is not None:
            weight = self.position_bias.flatten(0, 1)[:, :, None, None]
            logits = logits + F.conv2d(query, weight, groups=self.heads)
        return logits * split.shape[2] ** -0.5

    def _fold(self, maps: Tensor) -> Tensor:
        b, c, h, w = maps.shape
        return maps.reshape(b * self.groups, c // self.groups, h, w)

    def load_official_state_dict(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Load weights of the authors' own implementation; see :meth:`Upsampler.load_official_state_dict`."""
        key = f"{prefix}relative_position_bias_table"
        if key in state and state[key].ndim == 5 and state[key].shape[0] == state[key].shape[2] == 1:
            state = {**state, key: state[key][0, :, 0]}
        super().load_official_state_dict(state, prefix)

    def multiply_adds(self, height: int, width: int) -> int:
        """Projections at low resolution; interpolation, offsets, logits and weighted sum at high resolution."""
        points = self.kernel_size**2
        c, d = self.in_channels, self.query.out_channels
        offsets = self.groups * (self.offsets.depthwise.weight.numel() + self.offsets.conv.weight.numel())
        interpolated = d + points * (d + c)
        high = 4 * interpolated + offsets + points * (d + c)
        return height * width * (2 * c * d + self.scale_factor**2 * high)


def _pitch(points: Tensor) -> tuple[float, float]:
    """Width and height of a high-resolution pixel in grid_sample's coordinates, -1 and 1 being the corner pixels."""
    height, width = points.shape[-2:]
    return 2 / max(width - 1, 1), 2 / max(height - 1, 1)


def _grid(points: Tensor, neighbour: int) -> Tensor:
    """The sampling grid of one neighbour."""
    height, width = points.shape[-2:]
    across, down = _pitch(points)
    columns = torch.arange(1 - width, width, 2, dtype=points.dtype, device=points.device) / max(width - 1, 1)
    rows = torch.arange(1 - height, height, 2, dtype=points.dtype, device=points.device)[:, None] / max(height - 1, 1)
    vertical, horizontal = points[:, neighbour].unbind(1)
    return torch.stack((horizontal * across + columns, vertical * down + rows), dim=-1)


def _sample(maps: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class _SampleGradients:
    """Gradients of the maps and the points, neighbour by neighbour."""

    def __init__(self, maps: Tensor, points: Tensor, need_maps: bool, need_points: bool) -> None:
        self.maps, self.need = maps, [need_maps, need_points]
        self.grad_maps = torch.zeros_like(maps, memory_format=torch.contiguous_format) if need_maps else None
        self.grad_points = torch.empty_like(points) if need_points else None
        self.pitch = _pitch(points)

    def add(self, neighbour: int, grid: Tensor, grad: Tensor) -> None:
        if not any(self.need):
            return
        bilinear, zeros, align_corners = 0, 0, True
        grad_maps, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad, self.maps, grid, bilinear, zeros, align_corners, self.need
        )
        if self.grad_maps is not None:
            self.grad_maps += grad_maps
        if self.grad_points is not None:
            across, down = self.pitch
            self.grad_points[:, neighbour, 0] = grad_grid[..., 1] * down
            self.grad_points[:, neighbour, 1] = grad_grid[..., 0] * across


class _SampledLogits(torch.autograd.Function):
    """``out[b, h, m] = sum over d of query[b, h, d] * sampled_m[b, h, d]``, keys sampled at the points of neighbour m.

    query ``(B, N, D/N, s*h, s*w)``, maps ``(B*G, D/G, h, w)``, points ``(B*G, k*k, 2, s*h, s*w)`` ->
    ``(B, N, k*k, s*h, s*w)``. Only the inputs are kept in between.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, maps: Tensor, points: Tensor) -> Tensor:
        ctx.save_for_backward(query, maps, points)
        b, heads, _, height, width = query.shape
        out = query.new_empty(b, heads, points.shape[1], height, width)
        for m in range(points.shape[1]):
            sampled = _sample(maps, _grid(points, m)).reshape(query.shape)
            out[:, :, m] = sampled.mul_(query).sum(2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        query, maps, points = ctx.saved_tensors
        need_query, *need = ctx.needs_input_grad
        grad_query = torch.zeros_like(query) if need_query else None
        gradients = _SampleGradients(maps, points, *need)
        for m in range(points.shape[1]):
            grid, upstream = _grid(points, m), grad[:, :, m].unsqueeze(2)
            if grad_query is not None:
                grad_query.addcmul_(_sample(maps, grid).reshape(query.shape), upstream)
            gradients.add(m, grid, (query * upstream).reshape(len(maps), -1, *query.shape[-2:]))
        return grad_query, gradients.grad_maps, gradients.grad_points


class _WeightedSamples(torch.autograd.Function):
    """``out[b, h] = sum over m of kernels[b, h, m] * sampled_m[b, h]``, maps sampled at the points of neighbour m.

    maps ``(B*G, C/G, h, w)``, points ``(B*G, k*k, 2, s*h, s*w)``, kernels ``(B, N, k*k, s*h, s*w)`` ->
    ``(B, N, C/N, s*h, s*w)``. Only the inputs are kept in between.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, points: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(maps, points, kernels)
        b, heads, count, height, width = kernels.shape
        out = maps.new_zeros(b, heads, maps[:, :, 0, 0].numel() // (b * heads), height, width)
        for m in range(count):
            out.addcmul_(_sample(maps, _grid(points, m)).reshape(out.shape), kernels[:, :, m].unsqueeze(2))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        maps, points, kernels = ctx.saved_tensors
        *need, need_kernels = ctx.needs_input_grad
        grad_kernels = torch.empty_like(kernels) if need_kernels else None
        gradients = _SampleGradients(maps, points, *need)
        for m in range(kernels.shape[2]):
            grid = _grid(points, m)
            if grad_kernels is not None:
                sampled = _sample(maps, grid).reshape(grad.shape)
                grad_kernels[:, :, m] = sampled.mul_(grad).sum(2)
            upstream = grad * kernels[:, :, m].unsqueeze(2)
            gradients.add(m, grid, upstream.reshape(len(maps), -1, *grad.shape[-2:]))
        return gradients.grad_maps, gradients.grad_points, grad_kernels
