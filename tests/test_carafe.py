"""CARAFE with all its options, and the plain convolutional operators, against their definitions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import oracles
from fadeviz import FadevizError
from fadeviz.ops.reassemble import reassemble
from fadeviz.upsamplers import CARAFE, Skip, build_upsampler
from fadeviz.upsamplers.deconv import Deconv


def case(name, channels=8, size=(5, 7), batch=2, dtype=torch.float32, seed=0, **options):
    """An operator, x, and an encoder feature at its output's size."""
    torch.manual_seed(seed)
    operator = build_upsampler(name, channels, **options).to(dtype)
    s = operator.scale_factor
    skip = Skip(torch.randn(batch, channels, size[0] * s, size[1] * s, dtype=dtype))
    return operator, torch.randn(batch, channels, *size, dtype=dtype), skip


@pytest.mark.parametrize("memory_format", oracles.FORMATS)
@pytest.mark.parametrize(
    ("name", "operator", "names"),
    [
        ("carafe_k5_c8", "carafe", {"channel_compressor": "compressor"}),
        ("deconv_k3_c8", "deconv", {"weight": "conv.weight", "bias": "conv.bias"}),
        ("pixel_shuffle_c8", "pixel_shuffle", {"upsample_conv": "conv"}),
    ],
)
def test_golden_numbers(name, operator, names, memory_format):
    module, t = oracles.check_case(name, operator, names, memory_format)
    if "kernels" in t:
        logits = F.pixel_shuffle(module.content_encoder(module.compressor(t["x"])), 2)
        oracles.close(module.kernels(logits)[:1], t["kernels"], 1e-6)


def test_golden_numbers_of_reassemble():
    hyper, t = oracles.load("carafe_op_k5_g1_s2")
    x, kernels = t["x"].requires_grad_(), t["kernels_in"].requires_grad_()
    y = reassemble(x, kernels, hyper["kernel_size"], hyper["scale"], hyper["group"])
    oracles.close(y, t["y"], 1e-13)
    grads = torch.autograd.grad((y * t["cotangent"]).sum(), (x, kernels))
    oracles.close(grads[0], t["grad_x"], 1e-12)
    oracles.close(grads[1], t["grad_kernels_in"], 1e-12)


def slow_carafe(operator, x):
    """The definition; convolutions are torch's, everything after them is a loop."""
    s, k, groups = operator.scale_factor, operator.kernel_size, operator.groups
    logits = operator.content_encoder(operator.compressor(x))
    b, c, h, w = x.shape
    y = x.new_zeros(b, c, h * s, w * s)
    for n in range(b):
        for i in range(h * s):
            for j in range(w * s):
                # kernel channel m of sub-pixel (a, c) is logit channel (m*s + a)*s + c
                mine = [logits[n, (m * s + i % s) * s + j % s, i // s, j // s] for m in range(groups * k * k)]
                for g in range(groups):
                    weights = torch.stack(mine[g * k * k : (g + 1) * k * k]).softmax(0)
                    for u in range(k):
                        for v in range(k):
                            row, column = i // s + u - k // 2, j // s + v - k // 2
                            if 0 <= row < h and 0 <= column < w:
                                block = slice(g * c // groups, (g + 1) * c // groups)
                                y[n, block, i, j] += weights[u * k + v] * x[n, block, row, column]
    return y


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 7, "compressed_channels": 3},
        {"kernel_size": 4, "groups": 2},
        {"kernel_size": 3, "scale_factor": 3, "groups": 4},
        {"kernel_size": 5, "scale_factor": 4, "encoder_kernel_size": 1},
        {"kernel_size": 6, "encoder_dilation": 2},
        {"kernel_size": 3, "encoder_kernel_size": 5, "encoder_dilation": 3, "groups": 8},
        {"kernel_size": 3, "encoder_kernel_size": 2, "encoder_dilation": 2},
    ],
)
def test_carafe_against_the_slow_definition(options):
    for size in ((3, 4), (1, 2)):
        operator, x, skip = case("carafe", 8, size, batch=1, dtype=torch.float64, **options)
        for parameter in operator.parameters():
            nn.init.normal_(parameter, std=0.3)
        with torch.no_grad():
            torch.testing.assert_close(operator(x, skip), slow_carafe(operator, x), rtol=1e-11, atol=1e-11)


class TestCARAFE:
    def test_carafe_with_zero_content_is_a_box_blur(self):
        operator, x, skip = case("carafe")
        nn.init.zeros_(operator.content_encoder.weight)
        box = F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=True)
        torch.testing.assert_close(operator(x, skip), F.interpolate(box, scale_factor=2, mode="nearest"))

    def test_carafe_starts_as_a_box_blur(self):
        operator, x, skip = case("carafe", channels=64)
        logits = F.pixel_shuffle(operator.content_encoder(operator.compressor(x)), 2)
        kernels = operator.kernels(logits)
        entropy = -(kernels * kernels.log()).sum(1) / torch.log(torch.tensor(25.0))
        assert entropy.min() > 0.999

    def test_carafe_groups_must_divide(self):
        with pytest.raises(FadevizError, match="10 channels do not divide into 4 groups"):
            CARAFE(10, groups=4)

    def test_init_xavier_starts_sharper(self):
        def spread(operator, x):
            logits = F.pixel_shuffle(operator.content_encoder(operator.compressor(x)), 2)
            return operator.kernels(logits).std(1).mean()

        small, x, _ = case("carafe", channels=64)
        xavier, *_ = case("carafe", channels=64, init="xavier")
        assert spread(xavier, x) > 20 * spread(small, x)
        with pytest.raises(FadevizError, match="CARAFE: init is 'big'"):
            CARAFE(8, init="big")

    def test_an_even_encoder_kernel_needs_an_even_dilation(self):
        with pytest.raises(FadevizError, match="encoder_kernel_size is 4, it must be odd"):
            CARAFE(8, encoder_kernel_size=4)


@pytest.mark.parametrize(("k", "s"), [(2, 2), (3, 2), (4, 2), (5, 3), (4, 4)])
def test_deconv_against_the_slow_definition(k, s):
    torch.manual_seed(0)
    operator = Deconv(3, k, s).double()
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64)
    weight, bias = operator.conv.weight, operator.conv.bias
    p = (k - s + 1) // 2
    y = bias[None, :, None, None].expand(1, 3, 3 * s, 4 * s).clone()
    for i in range(3):
        for j in range(4):
            for u in range(k):
                for v in range(k):
                    row, column = s * i + u - p, s * j + v - p
                    if 0 <= row < 3 * s and 0 <= column < 4 * s:
                        y[0, :, row, column] += weight[:, :, u, v].T @ x[0, :, i, j]
    torch.testing.assert_close(operator(x), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("k", "s"), [(1, 2), (3, 3), (5, 2)])
def test_pixel_shuffle_against_the_slow_definition(k, s):
    operator, x, skip = case("pixel_shuffle", 3, (3, 4), 1, torch.float64, kernel_size=k, scale_factor=s)
    z, y = operator.conv(x), operator(x, skip)
    for o in range(3):
        for i in range(3 * s):
            for j in range(4 * s):
                assert y[0, o, i, j] == z[0, (o * s + i % s) * s + j % s, i // s, j // s]
