"""A2U: reassembly kernels from second-order features (the affinity of two dynamic projections) of the encoder map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import FadevizError
from ..ops.per_pixel import MapGroupNorm
from ..ops.reassemble import KernelSoftmax, reassemble
from .base import Skip, Upsampler, read_guide


class SigmoidSoftmax(KernelSoftmax):
    """Softmax over the K*K weights of the *sigmoid* of the logits: no weight exceeds e times another one."""

    def forward(self, logits: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Apply the sigmoid, then normalise each kernel; ``coarse`` logits are added before."""
        if coarse is not None:
            logits = logits + F.interpolate(coarse, size=logits.shape[-2:], mode="nearest")
        return super().forward(logits.sigmoid())


class A2U(Upsampler):
    r"""Affinity-aware upsampling (dynamic): kernels from second-order features of the encoder map.

    .. math::

        a = \phi(\mathrm{GN}(e \star_2 u)), \qquad c = \phi(\mathrm{GN}(e \star_2 v)), \qquad
        m = \frac{1}{\sqrt{C_{skip}}} \sum_n a_n c_n

    .. math::

        w = \mathrm{softmax}(\sigma(\mathrm{PS}_2(P\, m))), \qquad y = R(x, w)

    with e the encoder feature, k = ``encoder_kernel_size`` and s = ``kernel_size``. The filters u and v are 1x1
    convolutions of e averaged to k x k: one k x k filter of a sample each (``shared=False``: one for every channel).
    :math:`\star_2` is correlation with stride 2, channel by channel, GN a group normalisation, :math:`\phi` a leaky
    ReLU; m is one map at half the resolution. P, 4 s*s numbers of a sample, is a 1x1 convolution of the mean of e. The
    softmax is over the s*s weights of a pixel, and R(x, w) is the reassembly of x with the kernels w.

    Limit case:
        P = 0 makes every kernel the s x s box blur of the nearest-upsampled map. No kernel is far from it: sigmoids in
        (0, 1) leave the weights within a factor e of each other.

    Shape:
        x ``(B, C, h, w)``, skip.feature ``(B, C_skip, 2h, 2w)`` -> ``(B, C, 2h, 2w)``.

    Cost:
        ``(C_skip + 1)(2 + 4 s^2) + 4 C_skip`` parameters, ``42C + 38`` with the defaults; ``78C + 74`` with the down
        head; ``shared=False``: ``2 C_skip^2 + 2 C_skip`` in place of ``2 C_skip + 2``. Multiply-adds a low-resolution
        pixel ``2 k^2 C_skip + C_skip + 4 s^2 C``, and for an image the 1x1 convolutions of the k x k and 1 x 1
        averages; the scaling P m is not counted, nor is the down head, which does not run on the way up.

    Raises:
        FadevizError: if the encoder feature is missing or has another size or channel count.

    Source:
        Dai et al., CVPR 2021; initialisation of the released network: Xavier-normal with the gain of a leaky ReLU of
        slope 0.01, biases 0.

    Differs:
        GroupNorm has gcd(32, C_skip) groups where the definition has 32, so that slim networks can be built; equal
        where 32 divides C_skip. The released block also predicts ``kernels_down`` for its encoder's pooling:
        ``down_head=True`` adds those weights and ``kernels_down(e)``; ``pool`` stays max pooling. Without it,
        ``load_official_state_dict`` skips the down head's weights (``bconv_DP``).
    """

    official_names: ClassVar[Mapping[str, str]] = {
        "bconv_U.1": "filter_u",
        "bconv_V.1": "filter_v",
        "bnu.0": "norm_u",
        "bnv.0": "norm_v",
        "bconv_UP.1": "up",
        "bconv_DP.1": "down",
    }

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 3,
        encoder_kernel_size: int = 6,
        shared: bool = True,
        skip_channels: int | None = None,
        down_head: bool = False,
    ) -> None:
        """Kernels of ``kernel_size`` for x of ``in_channels`` from a feature of ``skip_channels``."""
        super().__init__()
        channels = in_channels if skip_channels is None else skip_channels
        self.in_channels = in_channels
        self.skip_channels = channels
        self.kernel_size = kernel_size
        self.encoder_kernel_size = encoder_kernel_size
        filters = 1 if shared else channels
        weights = 4 * kernel_size**2
        self.filter_u = nn.Conv2d(channels, filters, 1)
        self.filter_v = nn.Conv2d(channels, filters, 1)
        self.norm_u = MapGroupNorm(math.gcd(32, channels), channels)
        self.norm_v = MapGroupNorm(math.gcd(32, channels), channels)
        self.up = nn.Conv2d(channels, weights, 1)
        self.down = nn.Conv2d(channels, weights, 1) if down_head else None
        self.kernels = SigmoidSoftmax(kernel_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, gain=nn.init.calculate_gain("leaky_relu", 0.01))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()

    def affinity(self, feature: Tensor) -> Tensor:
        """m: ``(B, C_skip, 2h, 2w)`` -> ``(B, 1, h, w)``."""
        b, c, h, w = feature.shape
        k = self.encoder_kernel_size
        if not b:  # there is no convolution of no groups
            return feature.new_empty(0, 1, h // 2, w // 2)
        pooled = F.adaptive_avg_pool2d(feature, k)
        # Every (sample, channel) is a group of one depth-wise convolution: no loop over samples, nothing unfolded. A
        # contiguous map is not copied for it, a channels_last one once. On one CPU thread the forward was faster than
        # u and v in one convolution, a group a sample with C as the batch, or a loop over samples; with the backward
        # it is within a quarter of the fastest of them at every size.
        flat = feature.reshape(1, b * c, h, w)
        projected = []
        for predict, norm in ((self.filter_u, self.norm_u), (self.filter_v, self.norm_v)):
            filters = predict(pooled).expand(b, c, k, k).reshape(b * c, 1, k, k)
            z = F.conv2d(flat, filters, stride=2, padding=(k - 1) // 2, groups=b * c)
            projected.append(F.leaky_relu(norm(z.reshape(b, c, h // 2, w // 2)), 0.01))
        return (projected[0] * projected[1]).sum(1, keepdim=True) / math.sqrt(c)

    def kernels_down(self, feature: Tensor) -> Tensor:
        """The released block's kernels for pooling ``feature``: ``softmax over 4 s*s of P_down * m``.

        Args:
            feature: ``(B, C_skip, 2h, 2w)``.

        Returns:
            ``(B, 4*s*s, h, w)``.

        Raises:
            FadevizError: if it was built without ``down_head=True``.
        """
        if self.down is None:
            raise FadevizError("A2U: there are no kernels_down without the down head. Build it with down_head=True")
        logits = self.down(feature.mean((2, 3), keepdim=True)) * self.affinity(feature)
        return logits.softmax(dim=1)

    def forward(self, x: Tensor, skip: Skip | None = None) -> Tensor:
        """Predict the kernels from the encoder feature and reassemble x with them."""
        feature = read_guide(self, x, skip, None, self.skip_channels)
        logits = self.up(feature.mean((2, 3), keepdim=True)) * self.affinity(feature)
        return reassemble(x, self.kernels(F.pixel_shuffle(logits, 2)), self.kernel_size)

    def multiply_adds(self, height: int, width: int) -> int:
        """Those of the heads, both correlations, the product of their outputs, and the reassembly."""
        area = self.encoder_kernel_size**2
        heads = self.up.weight.numel() + area * (self.filter_u.weight.numel() + self.filter_v.weight.numel())
        pixel = (2 * area + 1) * self.skip_channels + 4 * self.kernel_size**2 * self.in_channels
        return heads + height * width * pixel

    def load_official_state_dict(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Load the authors' weights; those of the down head are skipped where there is none.

        Args:
            state: their state dict.
            prefix: where the operator is in it; other keys are ignored then.

        Raises:
            FadevizError: if a weight is missing, unexpected, or of another shape; nothing is loaded then.
        """
        if self.down is None:
            state = {key: value for key, value in state.items() if not key.startswith(f"{prefix}bconv_DP.")}
        super().load_official_state_dict(state, prefix)
