"""DySample: upsampling by sampling the decoder map at learned points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError
from .base import Skip, Upsampler, check_input

Style = Literal["lp", "pl"]


class PointOffsets(nn.Module):
    """Where each sub-pixel samples, relative to its low-resolution parent: learned offset plus regular position.

    Its output is ``(B, 2*G*s*s, h, w)`` in low-resolution pixels, channel ``((xy*G + g)*s + a)*s + c``: xy 0 is
    horizontal, 1 vertical; g the channel group; (a, c) the sub-pixel's row and column. Never below float32.
    """

    def __init__(self, in_channels: int, scale_factor: int, style: Style, groups: int, dyscope: bool) -> None:
        """One 1x1 convolution to the offsets and, with ``dyscope``, one to their range."""
        super().__init__()
        self.scale_factor = scale_factor
        self.style = style
        self.groups = groups
        cells = scale_factor**2
        channels, points = (in_channels, 2 * groups * cells) if style == "lp" else (in_channels // cells, 2 * groups)
        self.conv = nn.Conv2d(channels, points, 1)
        self.scope = nn.Conv2d(channels, points, 1, bias=False) if dyscope else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets near zero, every range at half its span."""
        nn.init.normal_(self.conv.weight, std=0.001)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The offset map of x."""
        z = x if self.style == "lp" else F.pixel_shuffle(x, self.scale_factor)
        learned = self.conv(z)
        # bfloat16 has 8 bits, too few for a position once it is added to a pixel's index.
        learned = learned.to(torch.promote_types(learned.dtype, torch.float32))
        learned = 0.25 * learned if self.scope is None else 0.5 * learned * self.scope(z).sigmoid()
        if self.style == "pl":
            learned = F.pixel_unshuffle(learned, self.scale_factor)
        s = self.scale_factor
        line = (torch.arange(s, dtype=learned.dtype, device=learned.device) - (s - 1) / 2) / s
        regular = torch.stack((line.expand(s, s), line[:, None].expand(s, s)))[:, None, :, :, None, None]
        return (learned.unflatten(1, (2, self.groups, s, s)) + regular).flatten(1, 4)


class DySample(Upsampler):
    r"""Dynamic upsampling by point sampling: the decoder feature is sampled at learned positions.

    .. math::

        y_{si + a,\, sj + c} = \mathrm{bilinear}(x;\; \mathrm{row}\; i + v,\; \mathrm{column}\; j + u)

    .. math::

        u = o_u + \frac{c - (s - 1)/2}{s}, \qquad v = o_v + \frac{a - (s - 1)/2}{s}

    for each of G groups of C/G contiguous channels, x clamped at the border. (u, v) is the point of a group and
    sub-pixel (a, c): the learned offset o plus the regular position. Two styles, with L the 1x1 convolution to 2G
    offsets a point and PS the pixel shuffle:

    - ``lp`` (linear, then shuffle): o = 0.25 L(x), each sub-pixel with weights of its own.
    - ``pl`` (shuffle, then linear): o = 0.25 L(PS(x)), the weights shared by all sub-pixels.

    With ``dyscope=True`` a second convolution S sets the range: 0.5 sigmoid(S(.)) in place of 0.25.

    Limit case:
        Zero offset weights and bias make this bilinear interpolation with ``align_corners=False``; this is (nearly) the
        initial state.

    Shape:
        x ``(B, C, h, w)`` -> ``(B, C, s*h, s*w)``; skip is not read.

    Units:
        Offsets are in low-resolution pixels; pixel centres are at whole numbers.

    Cost:
        ``lp`` has ``2*G*s^2*(C + 1)`` parameters, ``pl`` ``2*G*(C/s^2 + 1)``; ``dyscope`` adds as many weights without
        biases. Multiply-adds a high-resolution pixel: ``4C`` of interpolation, and ``2*G*C`` (lp) or ``2*G*C/s^2`` (pl)
        for each convolution.

    Raises:
        FadevizError: if C does not divide by ``groups``, or by s*s with style ``pl``, or ``style`` is unknown.

    Source:
        Liu et al., ICCV 2023, section 3; initialisation of the released code: offsets N(0, 0.001^2), bias 0, range
        weights 0.

    Differs:
        Positions are float32 even where the maps are half precision, and the regular positions are computed where they
        are used, not stored: at s = 3 a stored float32 is off by 1e-8.
    """

    official_names: ClassVar[Mapping[str, str]] = {"offset": "offsets.conv", "scope": "offsets.scope"}
    official_constants: ClassVar[frozenset[str]] = frozenset({"init_pos"})

    def __init__(
        self,
        in_channels: int,
        scale_factor: int = 2,
        style: Style = "lp",
        groups: int = 4,
        dyscope: bool = False,
    ) -> None:
        """Each of ``groups`` channel groups samples at points of its own."""
        super().__init__()
        if style not in ("lp", "pl"):
            raise FadevizError(f"DySample: no style {style!r}. There are: lp, pl")
        if in_channels % groups:
            raise FadevizError(
                f"DySample: {in_channels} channels do not divide into {groups} groups. Choose groups that divide them"
            )
        if style == "pl" and in_channels % scale_factor**2:
            raise FadevizError(
                f"DySample: style pl shuffles {in_channels} channels by scale_factor {scale_factor}, so they must "
                f"divide by {scale_factor**2}. Use style lp"
            )
        self.in_channels = in_channels
        self.scale_factor = scale_factor
        self.groups = groups
        self.offsets = PointOffsets(in_channels, scale_factor, style, groups, dyscope)

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        self.offsets.reset_parameters()

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Sample x at its parents' positions plus the offsets."""
        check_input(self, x, skip, self.in_channels)
        b, c, h, w = x.shape
        s, groups = self.scale_factor, self.groups
        offsets = self.offsets(x)
        dtype = torch.promote_types(x.dtype, offsets.dtype)
        # grid_sample's coordinates: -1 and 1 are the map's outer edges, a pixel is 2/w wide. The numerators are exact.
        columns = torch.arange(1 - w, w, 2, dtype=dtype, device=x.device) / w
        rows = torch.arange(1 - h, h, 2, dtype=dtype, device=x.device) / h
        parents = torch.stack((columns.expand(h, w), rows[:, None].expand(h, w)))[:, None, None, None]
        pixel = torch.stack((parents.new_full((), 2 / w), parents.new_full((), 2 / h))).view(2, 1, 1, 1, 1, 1)
        points = torch.addcmul(parents, offsets.to(dtype).unflatten(1, (2, groups, s, s)), pixel)
        grid = points.permute(0, 2, 5, 3, 6, 4, 1).reshape(b * groups, s * h, s * w, 2)
        maps = x.to(dtype).reshape(b * groups, c // groups, h, w)
        y = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return y.reshape(b, c, s * h, s * w).to(x.dtype)

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of the interpolation, the offset convolution and, with ``dyscope``, the range and its product."""
        offsets, pixels = self.offsets, height * width * self.scale_factor**2
        linear = offsets.conv.weight.numel() * (pixels if offsets.style == "pl" else height * width)
        scope = 0 if offsets.scope is None else linear + 2 * self.groups * pixels
        return 4 * self.in_channels * pixels + linear + scope
