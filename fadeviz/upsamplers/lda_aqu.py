"""LDA-AQU: attention of every pixel over a neighbourhood that its own query deforms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError
from ..ops.backends.tiles import is_autocast
from ..ops.per_pixel import PixelLayerNorm
from ..ops.query_points import convolved_points, group_conv, neighbour_points, pixel_norm
from ..ops.reassemble import KernelSoftmax, has_hooks, is_plain
from ..ops.sampled import sampled_logits, sampled_sums
from .base import Skip, Upsampler, check_input


class NeighbourOffsets(nn.Module):
    """Where each high-resolution pixel samples: a k x k neighbourhood, deformed by its query.

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
        """Xavier-uniform weights, and zeros for the last convolution: the neighbourhood starts regular."""
        nn.init.xavier_uniform_(self.depthwise.weight)
        self.norm.reset_parameters()
        nn.init.zeros_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, query: Tensor) -> Tensor:
        """The offset map of a high-resolution query."""
        b, c, height, width = query.shape
        if self._convolves_groups(query):
            hidden = group_conv(query, self.depthwise.weight, self.groups)
        else:
            hidden = self.depthwise(query.reshape(b * self.groups, c // self.groups, height, width))
        hidden, conv = F.gelu(self._normalize(hidden)), self.conv
        if self._convolves_few(hidden):
            out: Tensor = convolved_points(hidden, conv.weight, conv.bias, self.groups, self.range_factor)
            return out
        learned = conv(hidden)
        # bfloat16 has 8 bits, too few for a position once it is added to a pixel's index.
        learned = learned.to(torch.promote_types(learned.dtype, torch.float32))
        return neighbour_points(learned, self.groups, self.range_factor)

    def _convolves_groups(self, query: Tensor) -> bool:
        """Whether the depth-wise convolution has so few channels that torch's own is slow on a CPU."""
        return query.shape[1] in (2, 4, 8, 16) and _is_own(query, self.depthwise) and self.depthwise.bias is None

    def _convolves_few(self, hidden: Tensor) -> bool:
        """Whether the last convolution has so few channels that torch's own is slow on a CPU."""
        conv = self.conv
        few = hidden.shape[1] in (2, 4) and conv.out_channels == 18 and conv.kernel_size == (3, 3)
        return few and _is_own(hidden, conv) and conv.bias is not None

    def _normalize(self, hidden: Tensor) -> Tensor:
        norm, own = self.norm, hidden.dtype in (torch.float32, torch.float64)
        if own and hidden.device.type == "cpu" and type(norm) is PixelLayerNorm and not has_hooks(norm):
            out: Tensor = pixel_norm(hidden, norm.weight, norm.bias, norm.eps)  # torch's own is slow for few channels
            return out
        return norm(hidden)


def _is_own(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether a convolution runs on a CPU in its own precision, and has no hooks."""
    own = x.dtype == conv.weight.dtype and x.dtype in (torch.float32, torch.float64)
    return own and x.device.type == "cpu" and not is_autocast("cpu") and is_plain(conv)


class LDAAQU(Upsampler):
    r"""Adaptive query-guided upsampling by local deformable attention.

    .. math::

        n = \mathrm{LN}(x), \qquad q = \mathrm{bilinear}_s(W_q n), \qquad H = W_k n

    .. math::

        o = r\, \tanh(\mathrm{conv}(\mathrm{GELU}(\mathrm{LN}(\mathrm{dw}(q))))) + \rho

    .. math::

        w_m = \mathrm{softmax}_m \sum_d \frac{q_d}{\sqrt{D/N}} (H_{m,d} + b_{m,d}), \qquad y = \sum_m w_m x_m

    with LN a layer normalisation over the channels of a pixel; queries q (interpolated with ``align_corners=True``) and
    keys H of D = C / ``reduction_factor`` channels; dw a depth-wise 3x3 convolution; :math:`\rho` the regular k x k
    grid, r the ``range_factor``. Each of G groups of D/G query channels has offsets o of its own; pixel (i, j) reads
    neighbour m at row ``(i + o_v)*(h - 1)/(s*h - 1)`` of the low-resolution maps and at its column likewise, bilinearly
    and 0 outside: :math:`H_m` and :math:`x_m`, of the g-th block of D/G and of C/G channels. Each of N heads has
    kernels w of its own; b is the position bias.

    Limit case:
        ``kernel_size=1`` with zero offsets (the initial state) is bilinear interpolation with ``align_corners=True``;
        with zero query weights the k x k neighbours are averaged.

    Shape:
        x ``(B, C, h, w)`` -> ``(B, C, s*h, s*w)``; skip is not read.

    Units:
        Offsets are in high-resolution pixels; pixel centres are at whole numbers, and the corner pixels of both grids
        coincide.

    Cost:
        ``2*C*D + 2*C + 11*D/G + 2*k^2*(k_e^2*D/G + 1) + k^2*D`` parameters; with the defaults ``C^2/2 + 25.875C + 18``.
        Multiply-adds: ``2*C*D`` a low-resolution pixel; a high-resolution one ``(13 + 2*k^2*k_e^2 + 5*k^2)*D +
        5*k^2*C``, interpolation counted as 4 a value.

    Raises:
        FadevizError: if C does not divide by ``reduction_factor``, or D by ``groups`` or ``heads``,
            ``encoder_kernel_size`` is even, or ``range_factor`` is negative.

    Source:
        Du et al., ACM MM 2024, section 3; initialisation of the released code: convolutions Xavier-uniform, the last
        offset convolution 0, position bias truncated normal with standard deviation 0.02.

    Differs:
        Keys and values are sampled again for the gradient, so that no k*k maps are kept; positions are float32 even
        where the maps are half precision; the position bias lacks the released code's two axes of length 1, as a
        parameter with five axes cannot be made channels_last.
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
        logits = sampled_logits(query, self.key(normed), offsets, self.position_bias, self.groups, self.heads)
        kernels = self.kernels(logits * (query.shape[1] // self.heads) ** -0.5)
        y: Tensor = sampled_sums(x, offsets, kernels, self.groups, self.heads)
        return y

    def load_official_state_dict(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Load weights of the authors' own implementation; see :meth:`Upsampler.load_official_state_dict`."""
        key = f"{prefix}relative_position_bias_table"
        if key in state and state[key].ndim == 5 and state[key].shape[0] == state[key].shape[2] == 1:
            state = {**state, key: state[key][0, :, 0]}
        super().load_official_state_dict(state, prefix)

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of the projections at low resolution; of interpolation, offsets, logits and sums at high resolution."""
        points = self.kernel_size**2
        c, d = self.in_channels, self.query.out_channels
        offsets = self.groups * (self.offsets.depthwise.weight.numel() + self.offsets.conv.weight.numel())
        interpolated = d + points * (d + c)
        high = 4 * interpolated + offsets + points * (d + c)
        return height * width * (2 * c * d + self.scale_factor**2 * high)
