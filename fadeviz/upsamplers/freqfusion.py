"""FreqFusion: a low-pass filter for the decoder map, a high-pass filter for the encoder map, and a resampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError
from ..ops import torch_ops
from ..ops.backends.tiles import is_autocast, own_precision
from ..ops.compressed import compressed_conv, is_cheaper_as_one
from ..ops.per_pixel import MapGroupNorm
from ..ops.reassemble import KernelSoftmax, has_hooks, is_plain, kernel_softmax, reassemble
from ..ops.sharpened import sharpen, sharpened_conv
from .base import Skip, Upsampler, read_guide


class WindowedSoftmax(KernelSoftmax):
    """``softmax(z)`` times a K x K Hamming window, divided by its sum; with ``hamming=False`` the softmax alone.

    Equal to the softmax of z plus the window's logarithm, which is how it is computed: one pass in place of three.
    """

    def __init__(self, kernel_size: int, hamming: bool = True) -> None:
        """Kernels of ``kernel_size`` x ``kernel_size``, one for all channels."""
        super().__init__(kernel_size)
        self.hamming = hamming

    def forward(self, logits: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Normalise each kernel; ``coarse`` logits are added as in :class:`KernelSoftmax`."""
        if self.hamming:
            window = self.window(logits)[:, None, None]
            # Added to the coarse logits if there are any: they are fewer.
            logits, coarse = (logits + window, None) if coarse is None else (logits, coarse + window)
        return super().forward(logits, coarse)

    def window(self, like: Tensor) -> Tensor:
        """The logarithm of the Hamming window, ``(K*K,)``, on the device of ``like``."""
        # Computed where it is used, never below float32: in a float32 buffer a float64 operator would lose digits.
        dtype = torch.promote_types(like.dtype, torch.float32)
        line = torch.hamming_window(self.kernel_size, periodic=False, dtype=dtype, device=like.device).log()
        return (line[:, None] + line).flatten()

    def extra_repr(self) -> str:
        """The options, for the printed network."""
        return f"{super().extra_repr()}, hamming={self.hamming}"


class SimilarityOffsets(nn.Module):
    r"""Where each pixel of the upsampled map samples: offsets towards similar neighbours.

    .. math::

        z = \mathrm{conv}(t') + \mathrm{PU}_2(\mathrm{conv}(a')), \qquad
        o = z_1 \odot \sigma(z_2)

    with a' = [GN(a), sim(GN(a))] of the encoder and t' = [GN(t), sim(GN(t))] of the decoder, sim the cosine similarity
    with the 8 neighbours at distance 2, :math:`\mathrm{PU}_2` the pixel unshuffle, and :math:`z_1` and :math:`z_2` the
    two halves of z: four 3x3 convolutions.

    Its output is o plus the regular position of every sub-pixel, ``(B, 2*G*4, h, w)`` in low-resolution pixels, channel
    ``((xy*G + g)*2 + a)*2 + c``: xy 0 is horizontal, 1 vertical; g the channel group; (a, c) the sub-pixel's row and
    column. Never below float32.
    """

    def __init__(self, channels: int, groups: int) -> None:
        """Both maps have ``channels``; each of ``groups`` gets offsets of its own."""
        super().__init__()
        self.groups = groups
        norm_groups = _norm_groups(channels)
        self.norm_encoder = MapGroupNorm(norm_groups, channels)
        self.norm_decoder = MapGroupNorm(norm_groups, channels)
        self.offset_encoder = nn.Conv2d(channels + 8, 2 * groups, 3, padding=1)
        self.scale_encoder = nn.Conv2d(channels + 8, 2 * groups, 3, padding=1)
        self.offset_decoder = nn.Conv2d(channels + 8, 8 * groups, 3, padding=1)
        self.scale_decoder = nn.Conv2d(channels + 8, 8 * groups, 3, padding=1)

    def forward(self, encoder: Tensor, decoder: Tensor) -> Tensor:
        """The offset map of a ``(B, d, 2h, 2w)`` and a ``(B, d, h, w)`` map."""
        high = _convolve_both(self.offset_encoder, self.scale_encoder, self.norm_encoder(encoder))
        low = _convolve_both(self.offset_decoder, self.scale_decoder, self.norm_decoder(decoder))
        learned, scale = (low + F.pixel_unshuffle(high, 2)).chunk(2, dim=1)
        # bfloat16 has 8 bits, too few for a position once it is added to a pixel's index.
        learned = learned.to(torch.promote_types(learned.dtype, torch.float32)) * scale.sigmoid()
        line = torch.arange(2, dtype=learned.dtype, device=learned.device) / 2 - 0.25
        regular = torch.stack((line.expand(2, 2), line[:, None].expand(2, 2)))[:, None, :, :, None, None]
        return (learned.unflatten(1, (2, self.groups, 2, 2)) + regular).flatten(1, 4)


class FreqFusion(Upsampler):
    r"""Frequency-aware fusion: low-pass kernels smooth the decoder feature, high-pass kernels sharpen the encoder's.

    .. math::

        a^{\ast} = 2a - R(a, N(T_H(a))), \qquad l = T_L(a^{\ast})

    .. math::

        w = N(l + R(T_L(t), N(l))), \qquad y = R(x, w)

    .. math::

        w_{hr} = N(T_H(a) + R(T_H(t), w)), \qquad y_{hr} = 2e - R(e, w_{hr})

    with e the encoder feature, a = conv1x1(e) and t = conv1x1(x) of d channels; :math:`T_L` and :math:`T_H` 3x3
    convolutions to KL*KL and KH*KH logits, both used at both resolutions; N the softmax over a kernel times its Hamming
    window, divided by its sum; R(z, w) the reassembly of z with the kernels w (``kernels``, ``kernels_hr``);
    :math:`a^{\ast}` is the sharpened a. y is the low-pass output, :math:`y_{hr}` the high-pass output of :meth:`fuse`
    (without ``hr_residual``, e is taken once).

    With ``comp_feat_upsample=False`` the logits of the two resolutions are added, :math:`w = N(T_L(a) +
    \mathrm{nearest}_2(T_L(t)))` and :math:`w_{hr} = N(T_H(a) + \mathrm{nearest}_2(T_H(t)))`, and a is not sharpened.
    With ``resample=True`` y is then sampled bilinearly, for G groups of C/G contiguous channels, at the points that
    ``offsets`` (:class:`SimilarityOffsets`) gives for :math:`a^{\ast}` and t.

    Limit cases:
        ``lowpass_kernel_size=1`` is nearest interpolation, ``highpass_kernel_size=1`` leaves y_hr = e; zero logits make
        y the Hamming blur of the nearest-upsampled x, nearly the initial state; with the sampler's convolutions at
        zero, y is not changed.

    Shape:
        x ``(B, C, h, w)``, skip.feature ``(B, C_skip, 2h, 2w)`` -> ``(B, C, 2h, 2w)``; y_hr ``(B, C_skip, 2h, 2w)``.

    Units:
        Offsets are in low-resolution pixels; pixel centres are at whole numbers, the point of low-resolution pixel (i,
        j) is row ``2*(i + 0.5 + v) - 0.5`` of y and its column likewise, clamped at the border.

    Cost:
        ``(C + C_skip + 2)*d + (9d + 1)*(KL^2 + KH^2)`` parameters, with the defaults ``128C + 19,746``; ``resample``
        adds ``4d + 20*G*(9*(d + 8) + 1)``, 52,176. Multiply-adds of y: an output pixel ``C_skip*d + 9*d*KL^2 + KL^2*C +
        10*d*KH^2 + KL^4`` and a pixel of x ``C*d + 9*d*KL^2``; without ``comp_feat_upsample`` the last two terms of an
        output pixel are left out. ``resample`` adds ``36*G*(d + 8) + 8d + 2G + 4C`` and ``144*G*(d + 8) + 8d``. y_hr
        adds ``KL^2*KH^2 + KH^2*C_skip`` and ``9*d*KH^2``; without ``comp_feat_upsample`` ``9*d*KH^2 + KH^2*C_skip`` and
        ``9*d*KH^2``.

    Raises:
        FadevizError: if the encoder feature is missing or has another size or channel count, or C does not divide by
            ``resample_groups`` with ``resample``.

    Source:
        Chen et al., TPAMI 2024; initialisation of the released code: TL and TH N(0, 0.001^2), every other convolution
        Xavier-uniform, biases 0.

    Differs:
        Zero padding in every reassembly, as in the compiled operator; its fallback in plain torch reflects. The windows
        are not stored as float32. GN has the largest divisor of d up to d/8 as its number of groups, which is d/8 where
        that divides; the released code needs it to. TH gets no gradient from y alone without ``comp_feat_upsample``. On
        a CPU a and its sharpened form are not computed where e has fewer channels; see :mod:`fadeviz.ops.sharpened`.
    """

    official_names: ClassVar[Mapping[str, str]] = {
        "hr_channel_compressor": "compressor_encoder",
        "lr_channel_compressor": "compressor_decoder",
        "content_encoder": "lowpass_encoder",
        "content_encoder2": "highpass_encoder",
        "dysampler.norm_hr": "offsets.norm_encoder",
        "dysampler.norm_lr": "offsets.norm_decoder",
        "dysampler.offset": "offsets.offset_decoder",
        "dysampler.direct_scale": "offsets.scale_decoder",
        "dysampler.hr_offset": "offsets.offset_encoder",
        "dysampler.hr_direct_scale": "offsets.scale_encoder",
    }
    official_constants: ClassVar[frozenset[str]] = frozenset(
        {"hamming_lowpass", "hamming_highpass", "dysampler.init_pos"}
    )

    def __init__(
        self,
        in_channels: int,
        compressed_channels: int = 64,
        lowpass_kernel_size: int = 5,
        highpass_kernel_size: int = 3,
        resample: bool = False,
        resample_groups: int = 4,
        hamming_window: bool = True,
        hr_residual: bool = True,
        comp_feat_upsample: bool = True,
        skip_channels: int | None = None,
    ) -> None:
        """Kernels of both sizes from ``compressed_channels`` of both maps; ``resample`` adds the sampler."""
        super().__init__()
        if resample and in_channels % resample_groups:
            raise FadevizError(
                f"FreqFusion: {in_channels} channels do not divide into {resample_groups} groups. "
                "Choose resample_groups that divide them"
            )
        self.in_channels = in_channels
        self.skip_channels = in_channels if skip_channels is None else skip_channels
        self.compressed_channels = compressed_channels
        self.lowpass_kernel_size = lowpass_kernel_size
        self.highpass_kernel_size = highpass_kernel_size
        self.hr_residual = hr_residual
        self.comp_feat_upsample = comp_feat_upsample
        self.compressor_encoder = nn.Conv2d(self.skip_channels, compressed_channels, 1)
        self.compressor_decoder = nn.Conv2d(in_channels, compressed_channels, 1)
        self.lowpass_encoder = nn.Conv2d(compressed_channels, lowpass_kernel_size**2, 3, padding=1)
        self.highpass_encoder = nn.Conv2d(compressed_channels, highpass_kernel_size**2, 3, padding=1)
        self.kernels = WindowedSoftmax(lowpass_kernel_size, hamming_window)
        self.kernels_hr = WindowedSoftmax(highpass_kernel_size, hamming_window)
        # Modules of their own, so that a probe sees each of them once a pass.
        self.first_kernels = WindowedSoftmax(lowpass_kernel_size, hamming_window)
        self.first_kernels_hr = WindowedSoftmax(highpass_kernel_size, hamming_window)
        self.offsets = SimilarityOffsets(compressed_channels, resample_groups) if resample else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()
        nn.init.normal_(self.lowpass_encoder.weight, std=0.001)
        nn.init.normal_(self.highpass_encoder.weight, std=0.001)

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """The low-pass output y, without the computations that only y_hr needs."""
        return self._low_pass(x, read_guide(self, x, skip, self.in_channels, self.skip_channels))[0]

    def fuse(self, x: Tensor, skip: Skip | None) -> tuple[Tensor, Tensor]:
        """Both outputs, y of x and y_hr of the encoder feature; the network adds or concatenates them."""
        feature = read_guide(self, x, skip, self.in_channels, self.skip_channels)
        y, kernels, high, t = self._low_pass(x, feature)
        if t is None:
            own = compressed_conv(x, self.compressor_decoder, self.highpass_encoder)
        else:
            own = self.highpass_encoder(t)
        if self.comp_feat_upsample:
            kernels = self.kernels_hr(high + reassemble(own, kernels, self.lowpass_kernel_size))
        else:
            kernels = self.kernels_hr(self.highpass_encoder(high), own)
        return y, sharpen(feature, kernels, self.highpass_kernel_size, 2 if self.hr_residual else 1)

    def multiply_adds(self, height: int, width: int, both: bool = False) -> int:
        """Those of all convolutions, reassemblies, similarities and products for y; with ``both`` also for y_hr."""
        c, c_skip, d = self.in_channels, self.skip_channels, self.compressed_channels
        kl, kh = self.lowpass_kernel_size**2, self.highpass_kernel_size**2
        high, low = c_skip * d + 9 * d * kl + kl * c, c * d + 9 * d * kl
        if self.comp_feat_upsample:
            high += 9 * d * kh + kh * d + kl * kl
        if self.offsets is not None:
            groups = self.offsets.groups
            high += 9 * (d + 8) * 4 * groups + 8 * d + 2 * groups + 4 * c
            low += 9 * (d + 8) * 16 * groups + 8 * d
        if both:
            high += (kl * kh if self.comp_feat_upsample else 9 * d * kh) + kh * c_skip
            low += 9 * d * kh
        return 4 * height * width * high + height * width * low

    def _low_pass(self, x: Tensor, feature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """y, its kernels, TH(a) (or a, where a is not sharpened), and t (or None, where it is not computed)."""
        size = self.lowpass_kernel_size
        if self._skips_compression(feature):
            own = compressed_conv(x, self.compressor_decoder, self.lowpass_encoder)
            in_bias = self._adds_window_to_bias(feature)
            low, high = self._encoder_logits(feature, in_bias)
            if in_bias:
                first = kernel_softmax(low, None, size)
                kernels = kernel_softmax(low, reassemble(own, first, size), size)
            else:
                kernels = self.kernels(low + reassemble(own, self.first_kernels(low), size))
            return reassemble(x, kernels, size), kernels, high, None
        a, t = self.compressor_encoder(feature), self.compressor_decoder(x)
        own = self.lowpass_encoder(t)
        if self.comp_feat_upsample:
            high = self.highpass_encoder(a)
            a = sharpen(a, self.first_kernels_hr(high), self.highpass_kernel_size, 2)
            low = self.lowpass_encoder(a)
            kernels = self.kernels(low + reassemble(own, self.first_kernels(low), size))
        else:
            high = a
            kernels = self.kernels(self.lowpass_encoder(a), own)
        y = reassemble(x, kernels, size)
        if self.offsets is not None:
            y = _sample(y, self.offsets(a, t), self.offsets.groups)
        return y, kernels, high, t

    def _skips_compression(self, feature: Tensor) -> bool:
        """Whether a and a*, of d channels, are not computed: the encoder feature has fewer, and no hook reads them."""
        # On a GPU the small operations that prepare the weights cost more than a and a*.
        encoders = self.lowpass_encoder, self.highpass_encoder
        return (
            self.comp_feat_upsample
            and self.offsets is None
            and feature.device.type == "cpu"
            and all(map(is_plain, (self.compressor_encoder, self.compressor_decoder, *encoders)))
            and all(is_cheaper_as_one(feature, self.compressor_encoder, encoder) for encoder in encoders)
        )

    def _adds_window_to_bias(self, feature: Tensor) -> bool:
        """Whether the logarithm of the low-pass window is part of TL's bias, so that the softmaxes need not add it."""
        modules = self.first_kernels, self.kernels
        # bfloat16 would round the small weights at the window's corners.
        exact = feature.dtype in (torch.float32, torch.float64) and not is_autocast(feature.device.type)
        return exact and all(type(m) is WindowedSoftmax and not has_hooks(m) for m in modules)

    def _encoder_logits(self, e: Tensor, in_bias: bool) -> tuple[Tensor, Tensor]:
        """TL(a*), with the window if it is ``in_bias``, and TH(a), computed without the compressed maps.

        Sharpening works on pixels and the compressor on channels: ``a* = We e* + be s``, where e* is the sharpened e
        and s the sharpened map of ones, which is 1 but at the border. The logits are one convolution of both.
        """
        size, compressor, encoder = self.highpass_kernel_size, self.compressor_encoder, self.lowpass_encoder
        high = compressed_conv(e, compressor, self.highpass_encoder)
        kernels = self.first_kernels_hr(high)
        bias = encoder.bias
        if in_bias and self.first_kernels.hamming:
            window = self.first_kernels.window(e)
            bias = window if bias is None else bias + window
        # Weights keep their own precision: rounding their product to bfloat16 would round twice.
        with own_precision(e.device.type):
            weight = torch.einsum("mdkl,dc->mckl", encoder.weight, compressor.weight.flatten(1))
            if compressor.bias is None:
                return F.conv2d(sharpen(e, kernels, size, 2), weight, bias, padding=1), high
            shift = torch.einsum("mdkl,d->mkl", encoder.weight, compressor.bias)[:, None]
        return sharpened_conv(e, kernels, weight, shift, bias, size), high


def neighbour_similarity(z: Tensor) -> Tensor:
    """Cosine similarity of every pixel with its 8 neighbours at distance 2: ``(B, C, h, w) -> (B, 8, h, w)``.

    Channel n is the neighbour at row and column offset -2, 0 or 2, row-major without the centre. Neighbours outside are
    zero vectors; every norm is at least 1e-8. Never below float32.
    """
    h, w = z.shape[-2:]
    # The slices of the map itself depend on its size; those of a padded map do not.
    products: Tensor = _padded_products(z) if torch_ops.is_exporting() else _NeighbourProducts.apply(z)
    # The floor of the norm, squared: the square root then stays away from 0, where it has no gradient.
    inverse = products[:, 4].clamp_min(1e-16).rsqrt()
    padded = F.pad(inverse, (2, 2, 2, 2))
    before = [products[:, n] * inverse * _shifted(padded, dy, dx, h, w) for n, (dy, dx) in enumerate(_BEFORE)]
    # A pixel's similarity with the one before it is that one's similarity with the one after it.
    after = [_shifted(F.pad(s, (2, 2, 2, 2)), -dy, -dx, h, w) for s, (dy, dx) in zip(before, _BEFORE, strict=True)]
    return torch.stack([*before, *reversed(after)], dim=1)


_BEFORE = ((-2, -2), (-2, 0), (-2, 2), (0, -2))
"""The four of the 8 neighbours that come before the centre, in row-major order."""


def _shifted(padded: Tensor, dy: int, dx: int, h: int, w: int) -> Tensor:
    """The map read at (row + dy, column + dx), from its copy with a border of 2."""
    return padded[..., 2 + dy : 2 + dy + h, 2 + dx : 2 + dx + w]


def _padded_products(z: Tensor) -> Tensor:
    """The result of :class:`_NeighbourProducts`, in torch's own operators."""
    (h, w), padded = z.shape[-2:], F.pad(z, (2, 2, 2, 2))
    dtype = torch.promote_types(z.dtype, torch.float32)
    neighbours = (_shifted(padded, dy, dx, h, w) for dy, dx in (*_BEFORE, (0, 0)))
    return torch.stack([(z * neighbour).sum(1, dtype=dtype) for neighbour in neighbours], dim=1)


class _NeighbourProducts(torch.autograd.Function):
    """Inner products with the four neighbours before the pixel, 0 where there is none, and with the pixel itself.

    Plain autograd would keep and zero-fill a map of all channels for every shifted view; this sums in place.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        b, _, h, w = z.shape
        dtype = torch.promote_types(z.dtype, torch.float32)
        out = torch.zeros(b, 5, h, w, dtype=dtype, device=z.device)
        for n, (here, there) in enumerate(_pairs(h, w)):
            out[:, n][here] = (z[here] * z[there]).sum(1, dtype=dtype)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        # In the dtype of the gradient: next to a zero vector it is up to 1e16, which overflows float16.
        total = torch.zeros_like(z, dtype=grad.dtype)
        for n, (here, there) in enumerate(_pairs(*z.shape[-2:])):
            g = grad[:, n : n + 1][here]
            total[here].addcmul_(g, z[there])
            total[there].addcmul_(g, z[here])
        return total.to(z.dtype)


def _pairs(h: int, w: int) -> list[tuple[Any, Any]]:
    """Index pairs, of the pixels that have each neighbour and of the neighbours; the pixel itself comes last."""

    def line(size: int, step: int) -> tuple[slice, slice]:
        inner = max(0, size - abs(step))
        first, last = slice(0, inner), slice(size - inner, size)
        return (last, first) if step < 0 else (first, last)

    pairs = []
    for dy, dx in (*_BEFORE, (0, 0)):
        (row, row_there), (column, column_there) = line(h, dy), line(w, dx)
        pairs.append(((..., row, column), (..., row_there, column_there)))
    return pairs


def _convolve_both(first: nn.Conv2d, second: nn.Conv2d, z: Tensor) -> Tensor:
    """Both 3x3 convolutions of z and its similarities, concatenated along the channels.

    A convolution is linear in its input's channels: those of z and of the similarities add up to the convolution of the
    concatenated map, which is never materialised.
    """
    if not (is_plain(first) and is_plain(second)):
        whole = torch.cat((z, neighbour_similarity(z).to(z.dtype)), dim=1)
        return torch.cat((first(whole), second(whole)), dim=1)
    weight = torch.cat((first.weight, second.weight))
    bias = None if first.bias is None or second.bias is None else torch.cat((first.bias, second.bias))
    similar = neighbour_similarity(z).to(z.dtype)
    of_z, of_similar = weight.split((z.shape[1], similar.shape[1]), dim=1)
    return F.conv2d(z, of_z, bias, padding=1) + F.conv2d(similar, of_similar, padding=1)


def _sample(y: Tensor, offsets: Tensor, groups: int) -> Tensor:
    """y, sampled at the points of :class:`SimilarityOffsets`, clamped at the border."""
    b, c, height, width = y.shape
    h, w = height // 2, width // 2
    dtype = torch.promote_types(y.dtype, offsets.dtype)
    # grid_sample's coordinates: -1 and 1 are the map's outer edges, at both resolutions; a pixel of x is 2/w wide.
    columns = (2 * torch.arange(w, dtype=dtype, device=y.device) + 1) / w - 1
    rows = (2 * torch.arange(h, dtype=dtype, device=y.device) + 1) / h - 1
    parents = torch.stack((columns.expand(h, w), rows[:, None].expand(h, w)))[:, None, None, None]
    pixel = torch.stack((parents.new_full((), 2 / w), parents.new_full((), 2 / h))).view(2, 1, 1, 1, 1, 1)
    points = torch.addcmul(parents, offsets.to(dtype).unflatten(1, (2, groups, 2, 2)), pixel)
    grid = points.permute(0, 2, 5, 3, 6, 4, 1).reshape(b * groups, height, width, 2)
    maps = y.to(dtype).reshape(b * groups, c // groups, height, width)
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.reshape(y.shape).to(y.dtype)


def _norm_groups(channels: int) -> int:
    """The largest divisor of ``channels`` that is at most an eighth of them, or 1."""
    return max((n for n in range(1, channels // 8 + 1) if channels % n == 0), default=1)
