"""SAPA: kernels from the similarity of every encoder pixel with the decoder pixels around its parent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import FadevizError
from ..ops.per_pixel import MapGroupNorm, PixelLayerNorm, PixelLinear
from ..ops.reassemble import KernelSoftmax, reassemble_logits, similarity
from .base import Skip, Upsampler, read_guide
from .plain import nearest


class SAPAI(Upsampler):
    r"""SAPA-I, without parameters: encoder and decoder features are compared as they are.

    .. math::

        w = \mathrm{softmax}(\mathrm{sim}(e, x)), \qquad y = R(x, w)

    with e the encoder feature, sim(e, x) its inner products with the x of every pixel of the K x K window around the
    parent (:func:`~fadeviz.ops.reassemble.similarity`), the softmax over those K*K, and R(x, w) the reassembly of x
    with the kernels w. ``norm="layer"`` compares LN(e) with LN(x), LN being a layer normalisation over the channels of
    a pixel; x itself is reassembled.

    Limit cases:
        A zero encoder feature makes every kernel a K x K box blur; a large multiple of it makes every output pixel the
        one pixel of the window that is most similar.

    Shape:
        x ``(B, C, h, w)``, skip.feature ``(B, C, s*h, s*w)`` -> ``(B, C, s*h, s*w)``.

    Cost:
        No parameters (``4C`` with ``norm="layer"``); ``2*K^2*C`` multiply-adds an output pixel.

    Raises:
        FadevizError: if the encoder feature is missing or has another size or channel count, ``norm`` is unknown, or
            ``skip_channels`` is not C.

    Source:
        Lu et al., NeurIPS 2022.

    Differs:
        The authors released no class of it; this is their similarity and their reassembly, put together.
    """

    official_names: ClassVar[Mapping[str, str]] = {"norm_y": "norm_encoder", "norm_x": "norm_decoder"}

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 5,
        scale_factor: int = 2,
        norm: Literal["none", "layer"] = "none",
        skip_channels: int | None = None,
    ) -> None:
        """Encoder and decoder maps both have ``in_channels``: they are compared channel by channel."""
        super().__init__()
        if skip_channels not in (None, in_channels):
            raise FadevizError(
                f"SAPAI: skip_channels is {skip_channels}, but the encoder's map is compared with x's {in_channels} "
                "channels one by one. Use SAPA-B, or project the feature with a 1x1 convolution"
            )
        if norm not in ("none", "layer"):
            raise FadevizError(f"SAPAI: no norm {norm!r}. There are: none, layer")
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.scale_factor = scale_factor
        self.norm_encoder: nn.Module = PixelLayerNorm(in_channels) if norm == "layer" else nn.Identity()
        self.norm_decoder: nn.Module = PixelLayerNorm(in_channels) if norm == "layer" else nn.Identity()
        self.kernels = KernelSoftmax(kernel_size)

    def reset_parameters(self) -> None:
        """Set scales to 1 and shifts to 0, where there are any."""
        for module in (self.norm_encoder, self.norm_decoder):
            if isinstance(module, PixelLayerNorm):
                module.reset_parameters()

    def channels_advice(self, channels: int) -> str:
        """Advice for an error message about an encoder feature with another number of ``channels``."""
        return f"Use SAPA-B with skip_channels={channels}"

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Compare the features, and reassemble x."""
        feature = read_guide(self, x, skip, self.in_channels, self.in_channels)
        query, key = self.norm_encoder(feature), self.norm_decoder(x)
        logits = similarity(query, key, self.kernel_size, self.scale_factor)
        return reassemble_logits(x, self.kernels, logits, scale_factor=self.scale_factor)

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of similarity and reassembly."""
        return self.scale_factor**2 * height * width * 2 * self.kernel_size**2 * self.in_channels


class SAPAB(Upsampler):
    r"""SAPA-B: encoder and decoder features are compared after a linear map of each to d channels.

    .. math::

        Q = W_q\, \mathrm{LN}(e) + b_q, \qquad H = W_k\, \mathrm{LN}(x) + b_k, \qquad
        w = \mathrm{softmax}(\mathrm{sim}(Q, H)), \qquad y = R(x, w)

    with e the encoder feature, LN a layer normalisation over the channels of a pixel, sim(Q, H) the inner products of
    every query with the keys in the K x K window around its parent (:func:`~fadeviz.ops.reassemble.similarity`; there
    is no division by sqrt(d)), the softmax over those K*K, and R(x, w) the reassembly of x with the kernels w. Keys are
    0 outside the image, without their bias. ``norm="group"`` is the extended version: GroupNorm of 32 groups and 1x1
    convolutions, ``norm="none"`` the same without it.

    Limit case:
        A query map of zeros makes every kernel a K x K box blur of the nearest-upsampled map.

    Shape:
        x ``(B, C, h, w)``, skip.feature ``(B, C_skip, s*h, s*w)`` -> ``(B, C, s*h, s*w)``.

    Cost:
        ``(C + C_skip)*(d + 2) + 2d`` parameters, with the defaults ``68C + 64``; ``C_skip*d + K^2*(d + C)``
        multiply-adds an output pixel and ``C*d`` a pixel of x.

    Raises:
        FadevizError: if the encoder feature is missing or has another size or channel count, or ``norm`` is unknown.

    Source:
        Lu et al., NeurIPS 2022; d = 32 as in its experiments. Linear maps start truncated-normal with standard
        deviation 0.02, the extended version's convolutions N(0, 0.02^2), biases 0.

    Differs:
        d is 64 by default in the released class. Where 32 does not divide the channels, which the extended version
        refuses, there are gcd(32, C) groups.
    """

    official_names: ClassVar[Mapping[str, str]] = {
        "norm_y": "norm_encoder",
        "norm_x": "norm_decoder",
        "q": "query",
        "k": "key",
    }

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 5,
        scale_factor: int = 2,
        compressed_channels: int = 32,
        skip_channels: int | None = None,
        norm: Literal["layer", "group", "none"] = "layer",
    ) -> None:
        """Both maps are normalised and mapped to ``compressed_channels``, then compared."""
        super().__init__()
        if norm not in ("layer", "group", "none"):
            raise FadevizError(f"SAPAB: no norm {norm!r}. There are: layer, group, none")
        self.in_channels = in_channels
        self.skip_channels = in_channels if skip_channels is None else skip_channels
        self.compressed_channels = compressed_channels
        self.kernel_size = kernel_size
        self.scale_factor = scale_factor
        self.norm_encoder: nn.Module = _norm(norm, self.skip_channels)
        self.norm_decoder: nn.Module = _norm(norm, in_channels)
        self.query: nn.Linear | nn.Conv2d
        self.key: nn.Linear | nn.Conv2d
        if norm == "layer":
            self.query = PixelLinear(self.skip_channels, compressed_channels)
            self.key = PixelLinear(in_channels, compressed_channels)
        else:
            self.query = nn.Conv2d(self.skip_channels, compressed_channels, 1)
            self.key = nn.Conv2d(in_channels, compressed_channels, 1)
        self.kernels = KernelSoftmax(kernel_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        for norm in (self.norm_encoder, self.norm_decoder):
            if isinstance(norm, PixelLayerNorm | nn.GroupNorm):
                norm.reset_parameters()
        _init_linear(self.query)
        _init_linear(self.key)

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Compare the mapped features, and reassemble x."""
        feature = read_guide(self, x, skip, self.in_channels, self.skip_channels)
        query, key = self.query(self.norm_encoder(feature)), self.key(self.norm_decoder(x))
        logits = similarity(query, key, self.kernel_size, self.scale_factor)
        return reassemble_logits(x, self.kernels, logits, scale_factor=self.scale_factor)

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of both linear maps, similarity and reassembly."""
        c, d = self.in_channels, self.compressed_channels
        output_pixel = self.skip_channels * d + self.kernel_size**2 * (d + c)
        return height * width * (self.scale_factor**2 * output_pixel + c * d)


class SimilarityGate(nn.Module):
    """SAPA-G's gate: ``nearest_s(sigmoid(Wg z + bg))`` of the normalised x; 1 selects the encoder's query."""

    def __init__(self, in_channels: int, scale_factor: int = 2) -> None:
        """One linear map of ``in_channels`` to the gate's logit."""
        super().__init__()
        self.scale_factor = scale_factor
        self.linear = PixelLinear(in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, h, w) -> (B, 1, s*h, s*w)``."""
        return nearest(self.linear(x).sigmoid(), self.scale_factor)


class SAPAG(Upsampler):
    r"""SAPA-G: as SAPA-B, with a gate that mixes the query of the encoder with one of the decoder.

    .. math::

        g = \mathrm{nearest}_s(\sigma(W_g\, \mathrm{LN}(x) + b_g)), \qquad
        Q = g \odot (W_y\, \mathrm{LN}(e) + b_y) + (1 - g) \odot \mathrm{nearest}_s(W_x x + b_x)

    .. math::

        H = W_k\, \mathrm{LN}(x) + b_k, \qquad w = \mathrm{softmax}(\mathrm{sim}(Q, H)), \qquad y = R(x, w)

    with the symbols of SAPA-B; g has one channel, and the decoder's query is of x as it is. Keys are 0 outside the
    image, without their bias.

    Limit cases:
        A gate of 1 is SAPA-B with the same maps; a gate of 0 ignores the encoder feature, and all s*s pixels of a
        parent are equal.

    Shape:
        x ``(B, C, h, w)``, skip.feature ``(B, C_skip, s*h, s*w)`` -> ``(B, C, s*h, s*w)``.

    Cost:
        ``C_skip*(d + 2) + C*(2d + 3) + 3d + 1`` parameters, with the defaults ``101C + 97``; ``C_skip*d + 2d + K^2*(d +
        C)`` multiply-adds an output pixel and ``2*C*d + C`` a pixel of x.

    Raises:
        FadevizError: if the encoder feature is missing or has another size or channel count.

    Source:
        Lu et al., NeurIPS 2022; linear maps truncated-normal with standard deviation 0.02, biases 0.

    Differs:
        x is mapped, then upsampled; the released code upsamples first, and maps s*s times as many pixels to the same
        values.
    """

    official_names: ClassVar[Mapping[str, str]] = {
        "norm_y": "norm_encoder",
        "norm_x": "norm_decoder",
        "qy": "query_encoder",
        "qx": "query_decoder",
        "k": "key",
        "gate": "gate.linear",
    }

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 5,
        scale_factor: int = 2,
        compressed_channels: int = 32,
        skip_channels: int | None = None,
    ) -> None:
        """Both maps are normalised and mapped to ``compressed_channels``, the queries mixed, then compared."""
        super().__init__()
        self.in_channels = in_channels
        self.skip_channels = in_channels if skip_channels is None else skip_channels
        self.compressed_channels = compressed_channels
        self.kernel_size = kernel_size
        self.scale_factor = scale_factor
        self.norm_encoder = PixelLayerNorm(self.skip_channels)
        self.norm_decoder = PixelLayerNorm(in_channels)
        self.query_encoder = PixelLinear(self.skip_channels, compressed_channels)
        self.query_decoder = PixelLinear(in_channels, compressed_channels)
        self.key = PixelLinear(in_channels, compressed_channels)
        self.gate = SimilarityGate(in_channels, scale_factor)
        self.kernels = KernelSoftmax(kernel_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        for norm in (self.norm_encoder, self.norm_decoder):
            norm.reset_parameters()
        for linear in (self.query_encoder, self.query_decoder, self.key, self.gate.linear):
            _init_linear(linear)

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Mix the queries, compare with the keys, and reassemble x."""
        feature = read_guide(self, x, skip, self.in_channels, self.skip_channels)
        normalised = self.norm_decoder(x)
        decoder, encoder = (
            nearest(self.query_decoder(x), self.scale_factor),
            self.query_encoder(self.norm_encoder(feature)),
        )
        dtype = torch.promote_types(decoder.dtype, encoder.dtype)  # lerp takes one dtype, autocast may give two
        query = torch.lerp(decoder.to(dtype), encoder.to(dtype), self.gate(normalised).to(dtype))
        logits = similarity(query, self.key(normalised), self.kernel_size, self.scale_factor)
        return reassemble_logits(x, self.kernels, logits, scale_factor=self.scale_factor)

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of all linear maps, the mixing of the queries (2d an output pixel), similarity and reassembly."""
        c, d = self.in_channels, self.compressed_channels
        output_pixel = self.skip_channels * d + 2 * d + self.kernel_size**2 * (d + c)
        return height * width * (self.scale_factor**2 * output_pixel + 2 * c * d + c)


def _norm(norm: str, channels: int) -> nn.Module:
    if norm == "layer":
        return PixelLayerNorm(channels)
    return MapGroupNorm(math.gcd(32, channels), channels) if norm == "group" else nn.Identity()


def _init_linear(layer: nn.Linear | nn.Conv2d) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
    else:
        nn.init.normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
