"""IndexNet: pooling and upsampling by index maps that are learned from the encoder feature."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError
from .base import Skip, Upsampler, check_input, feature_of, read_guide
from .plain import nearest

Kind = Literal["hin", "o2o", "m2o"]


class IndexBlock(nn.Module):
    """The index map of an encoder feature: ``pixel_shuffle(sigmoid(Z))``, values in (0, 1), as large as the feature.

    Z has 4 maps at half the resolution, one for each sub-pixel: ``hin`` predicts them by one branch for all channels,
    ``o2o`` and ``m2o`` by four branches with a map for every channel. A module of its own so that a probe can record
    it.
    """

    def __init__(self, channels: int, kind: Kind, nonlinear: bool, context: bool) -> None:
        """Branches for a feature of ``channels``; see :class:`IndexNet` for the options."""
        super().__init__()
        self.holistic = kind == "hin"
        self.map_channels = 1 if self.holistic else channels
        groups = channels if kind == "o2o" else 1
        # Each sub-pixel of a 2x2 block reads one number; with context the window is one pixel larger on every side.
        size, padding = (4, 1) if context else (2, 0)
        hidden = channels * (2 if self.holistic else 1)
        out = 4 if self.holistic else channels
        self.branches = nn.ModuleList()
        for _ in range(1 if self.holistic else 4):
            strided_out = hidden if nonlinear else out
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            layers["strided"] = nn.Conv2d(channels, strided_out, size, 2, padding, groups=groups, bias=False)
            if nonlinear:
                layers["norm"] = nn.BatchNorm2d(strided_out)
                layers["relu"] = nn.ReLU6(inplace=True)
                layers["point"] = nn.Conv2d(strided_out, out, 1, groups=groups, bias=False)
            self.branches.append(nn.Sequential(layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw convolutions from N(0, 2 / (k*k*C_out)); set BatchNorm to 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C_skip, 2h, 2w)`` -> ``(B, 1 or C_skip, 2h, 2w)``."""
        maps = [branch(feature) for branch in self.branches]
        # Sub-pixel q = 2a + c of map n is channel 4n + q.
        z = maps[0] if self.holistic else torch.stack(maps, dim=2).flatten(1, 2)
        return F.pixel_shuffle(z.sigmoid(), 2)


class IndexNet(Upsampler):
    r"""Indexed pooling and upsampling, with index maps learned from the encoder feature.

    .. math::

        D = \mathrm{PS}_2(\sigma(Z(e))), \qquad y = D \odot \mathrm{nearest}_2(x)

    .. math::

        \mathrm{pool}(e)_{i,j} = \sum_{p \in B_{i,j}} E_p\, e_p, \qquad
        E_p = \frac{\exp D_p}{\sum_{r \in B_{i,j}} \exp D_r}

    with e the encoder feature, Z strided convolutions of it without biases, :math:`\mathrm{PS}_2` the pixel shuffle,
    :math:`B_{i,j}` the 2 x 2 block of pixel (i, j), and D and E the index maps of the decoder and the encoder. The
    kernels of Z have size 2 (with ``context`` 4, padding 1); ``nonlinear`` adds BatchNorm, ReLU6 and a 1 x 1
    convolution. Kinds of Z:

    - ``hin``, holistic: C_skip -> 4 maps for all channels (with ``nonlinear`` through 2 C_skip).
    - ``o2o``, one to one: four depth-wise branches C_skip -> C_skip.
    - ``m2o``, many to one: four dense branches C_skip -> C_skip.

    A decoder that pooled by ``pool`` passes its index map on in ``skip.indices``; without it the index map is computed
    from ``skip.feature`` (in training BatchNorm then counts that as its one step).

    Limit case:
        Zero weights make the index map 1/2 everywhere: y is half the nearest interpolation, pooling is the mean.

    Shape:
        x ``(B, C, h, w)``, skip.feature ``(B, C_skip, 2h, 2w)``, skip.indices None or ``(B, 1 or C, 2h, 2w)`` -> ``(B,
        C, 2h, 2w)``. C_skip may differ from C with ``hin`` only.

    Cost:
        With k = 2 (``context``: 4) and C = C_skip, ``4 k^2 C`` parameters (``hin`` and ``o2o``) or ``4 k^2 C^2``
        (``m2o``); with ``nonlinear`` ``2 k^2 C^2 + 12C``, ``4 k^2 C + 12C`` or ``4 k^2 C^2 + 4C^2 + 8C``. As many
        multiply-adds a low-resolution pixel, as every parameter enters once; the product with the index map is not
        counted.

    Raises:
        FadevizError: if a side of the feature to pool is odd, the encoder feature is missing, it or the index map does
            not match x, ``skip_channels`` differs from C without ``hin``, or ``kind`` is unknown.

    Source:
        Lu et al., ICCV 2019; initialisation of the published matting network: convolutions N(0, 2 / (k*k*C_out)),
        BatchNorm 1 and 0.

    Differs:
        The released decoder then concatenates y and the product of E and e, and convolves them; that belongs to
        the decoder, for which ``guide`` gives the second half. The encoder's softmax is taken of the decoder's map, not
        of Z, as in the released code.
    """

    official_names: ClassVar[Mapping[str, str]] = {
        "indexnet": "index.branches.0.strided",
        **{
            f"indexnet{branch}.{theirs}": f"index.branches.{number}.{ours}"
            for branch, number in (("", 0), ("1", 0), ("2", 1), ("3", 2), ("4", 3))
            for theirs, ours in ((0, "strided"), (1, "norm"), (3, "point"))
        },
    }

    def __init__(
        self,
        in_channels: int,
        kind: Kind = "hin",
        nonlinear: bool = False,
        context: bool = False,
        skip_channels: int | None = None,
    ) -> None:
        """Index maps of an encoder feature of ``skip_channels`` (default: ``in_channels``) for x of ``in_channels``."""
        super().__init__()
        if kind not in ("hin", "o2o", "m2o"):
            raise FadevizError(f"IndexNet: no kind {kind!r}. There are: hin, o2o, m2o")
        self.in_channels = in_channels
        self.skip_channels = in_channels if skip_channels is None else skip_channels
        if kind != "hin" and self.skip_channels != in_channels:
            raise FadevizError(
                f"IndexNet: skip_channels is {self.skip_channels}, but {kind} has an index map for each of x's "
                f"{in_channels} channels. Use kind hin, or project the feature with a 1x1 convolution"
            )
        self.kind = kind
        self.index = IndexBlock(self.skip_channels, kind, nonlinear, context)

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        self.index.reset_parameters()

    def pool(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        """Indexed pooling, and the index map for the way up (part of the graph: gradients flow through both).

        Raises:
            FadevizError: if a side is odd, or the number of channels is not ``skip_channels``.
        """
        h, w = feature.shape[-2:]
        if h % 2 or w % 2:
            raise FadevizError(
                f"IndexNet: the feature to pool is {h}x{w}; indexed pooling needs even sides. "
                "Pad the input so that every stage divides evenly"
            )
        if feature.shape[1] != self.skip_channels:
            raise FadevizError(
                f"IndexNet: the feature to pool has {feature.shape[1]} channels, {self.skip_channels} are needed. "
                f"Build it with skip_channels={feature.shape[1]} and kind hin, or project it with a 1x1 convolution"
            )
        index: Tensor = self.index(feature)
        # The block's sum of E e, with the softmax's division left to the pooled map.
        weight = index.exp()
        pooled = F.avg_pool2d(feature * weight, 2) / F.avg_pool2d(weight, 2)
        return pooled.to(feature.dtype), index

    def guide(self, skip: Skip) -> Tensor:
        """E times e, ``(B, C_skip, 2h, 2w)``, for a decoder that concatenates it to y as the authors' does.

        Sums to ``pool(e)`` over each 2 x 2 block. Like ``forward`` it takes the index map from ``skip.indices``, or
        computes it if there is none.
        """
        index: Tensor = self.index(skip.feature) if skip.indices is None else skip.indices
        weight = index.exp()
        total = F.avg_pool2d(weight, 2, divisor_override=1)
        index_encoder = weight / F.interpolate(total, scale_factor=2, mode="nearest")
        return skip.feature * index_encoder.to(skip.feature.dtype)

    def channels_advice(self, channels: int) -> str:
        """Advice for an error message about an encoder feature with another number of ``channels``."""
        return super().channels_advice(channels) + ("" if self.index.holistic else " and kind='hin'")

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Spread every value over its 2 x 2 block, weighted by the index map."""
        feature, indices = feature_of(self, skip), getattr(skip, "indices", None)
        # Each channel of x has its own index map; a holistic one fits any number of channels.
        channels = None if self.index.holistic else self.in_channels
        if indices is None:
            read_guide(self, x, skip, channels, self.skip_channels)
            index: Tensor = self.index(feature)
        else:
            check_input(self, x, skip, channels)
            index = indices
            needed = (x.shape[0], self.index.map_channels, 2 * x.shape[2], 2 * x.shape[3])
            if tuple(index.shape) != needed:
                raise FadevizError(
                    f"IndexNet: skip.indices are {tuple(index.shape)}, but x is {tuple(x.shape)} and needs {needed}. "
                    "Pass on the index map of IndexNet.pool, or none: it is then computed from skip.feature"
                )
        return nearest(x, 2) * index.to(x.dtype)

    def multiply_adds(self, height: int, width: int) -> int:
        """One for every convolution weight a low-resolution pixel, and two a value for BatchNorm."""
        return height * width * sum(parameter.numel() for parameter in self.parameters())
