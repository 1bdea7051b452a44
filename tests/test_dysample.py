"""DySample: golden numbers, a slow second implementation, its limit case, costs and messages."""

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import oracles
from fadeviz import FadevizError
from fadeviz.upsamplers import DySample, build_upsampler, parse_upsampler

NAMES = {"offset": "offsets.conv", "scope": "offsets.scope"}
CASES = {
    "dysample_lp_c8": {},
    "dysample_lp_dyscope_c8": {"dyscope": True},
    "dysample_pl_c8": {"style": "pl"},
    "dysample_pl_dyscope_c8": {"style": "pl", "dyscope": True},
}


def upsample(operator, x):
    return operator(x)


def redrawn(operator, std):
    for parameter in operator.parameters():
        nn.init.normal_(parameter, std=std)
    return operator


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory_format", oracles.FORMATS)
def test_golden_numbers(case, memory_format):
    operator, t = oracles.check_case(case, "dysample", NAMES, memory_format, **CASES[case])
    oracles.close(operator.offsets(t["x"])[:1], t["offset"], 1e-6)


def slow_dysample(x, operator, s, style, groups):
    """The definition, one number at a time."""
    b, channels, h, w = x.shape
    weight, bias = operator.offsets.conv.weight.tolist(), operator.offsets.conv.bias.tolist()
    scope = None if operator.offsets.scope is None else operator.offsets.scope.weight.tolist()
    values = x.tolist()
    y = torch.zeros(b, channels, s * h, s * w, dtype=x.dtype)

    def learned(sample, xy, g, a, c, i, j):
        if style == "lp":
            row, seen = ((xy * groups + g) * s + a) * s + c, range(channels)
        else:
            row, seen = xy * groups + g, [(n * s + a) * s + c for n in range(channels // s**2)]
        column = [values[sample][n][i][j] for n in seen]
        o = bias[row] + sum(weight[row][n][0][0] * value for n, value in enumerate(column))
        if scope is None:
            return 0.25 * o
        return 0.5 * o / (1 + math.exp(-sum(scope[row][n][0][0] * value for n, value in enumerate(column))))

    def clamp(value, top):
        return min(max(value, 0.0), float(top))

    for sample in range(b):
        for g in range(groups):
            for i in range(s * h):
                for j in range(s * w):
                    (i0, a), (j0, c) = divmod(i, s), divmod(j, s)
                    u = learned(sample, 0, g, a, c, i0, j0) + (c - (s - 1) / 2) / s
                    v = learned(sample, 1, g, a, c, i0, j0) + (a - (s - 1) / 2) / s
                    row, column = clamp(i0 + v, h - 1), clamp(j0 + u, w - 1)
                    top, left = min(int(row), max(h - 2, 0)), min(int(column), max(w - 2, 0))
                    low, right = min(top + 1, h - 1), min(left + 1, w - 1)
                    p, q = row - top, column - left
                    for n in range(g * channels // groups, (g + 1) * channels // groups):
                        plane = values[sample][n]
                        upper = (1 - q) * plane[top][left] + q * plane[top][right]
                        lower = (1 - q) * plane[low][left] + q * plane[low][right]
                        y[sample, n, i, j] = (1 - p) * upper + p * lower
    return y


@pytest.mark.parametrize(
    ("s", "style", "groups", "dyscope", "channels", "size"),
    [
        (3, "lp", 2, True, 4, (3, 2)),
        (4, "lp", 1, False, 3, (1, 3)),
        (2, "lp", 3, True, 6, (4, 5)),
        (3, "pl", 3, True, 9, (2, 3)),
        (2, "pl", 8, False, 8, (1, 1)),
        (4, "pl", 2, True, 16, (2, 1)),
        (1, "pl", 2, False, 4, (3, 4)),
    ],
)
def test_against_the_slow_loop(s, style, groups, dyscope, channels, size):
    torch.manual_seed(0)
    operator = DySample(channels, s, style, groups, dyscope).double()
    redrawn(operator, 1.0)  # offsets of about a pixel: many leave the map
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    want = slow_dysample(x, operator, s, style, groups)
    torch.testing.assert_close(upsample(operator, x), want, rtol=0, atol=1e-12)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(upsample(operator, last), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("style", "dyscope", "s"), [("lp", False, 2), ("lp", True, 3), ("pl", True, 2)])
def test_gradients(style, dyscope, s):
    torch.manual_seed(0)
    operator = redrawn(DySample(8, s, style, 2, dyscope).double(), 0.5)
    x = torch.randn(1, 8, 3, 2, dtype=torch.float64, requires_grad=True)
    inputs = (x, *operator.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: upsample(operator, x), inputs, fast_mode=True)


class TestLimitCase:
    @pytest.mark.parametrize("s", [1, 2, 3, 4])
    @pytest.mark.parametrize(("style", "dyscope"), [("lp", False), ("pl", True)])
    @pytest.mark.parametrize("size", [(5, 7), (1, 1), (2, 9)])
    def test_zero_offsets_are_bilinear(self, s, style, dyscope, size):
        operator = DySample(2 * 144, s, style, dyscope=dyscope).double()
        nn.init.zeros_(operator.offsets.conv.weight)
        x = torch.randn(2, 288, *size, dtype=torch.float64)
        want = F.interpolate(x, scale_factor=s, mode="bilinear", align_corners=False)
        torch.testing.assert_close(upsample(operator, x), want, rtol=0, atol=1e-12)

    def test_float32_positions(self):
        operator, x = DySample(8), torch.randn(1, 8, 33, 48)
        nn.init.zeros_(operator.offsets.conv.weight)
        want = F.interpolate(x.double(), scale_factor=2, mode="bilinear", align_corners=False)
        torch.testing.assert_close(upsample(operator, x).double(), want, rtol=0, atol=5e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_keeps_float32_positions(self, dtype):
        # At the far end of 600 pixels a bfloat16 position would be off by a pixel, a float16 one by an eighth.
        operator = DySample(4, groups=2).to(dtype)
        nn.init.zeros_(operator.offsets.conv.weight)
        x = torch.randn(1, 4, 2, 600).to(dtype)
        want = F.interpolate(x.double(), scale_factor=2, mode="bilinear", align_corners=False)
        y = upsample(operator, x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), want, rtol=torch.finfo(dtype).eps, atol=1e-3)

    def test_a_whole_pixel_of_offset_moves_the_map_by_one(self):
        operator = DySample(4, groups=2)
        nn.init.zeros_(operator.offsets.conv.weight)
        with torch.no_grad():
            operator.offsets.conv.bias[: 2 * 4].fill_(4.0)  # horizontal, all groups and sub-pixels; times 0.25
        x = torch.randn(1, 4, 5, 6)
        y = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        torch.testing.assert_close(upsample(operator, x)[..., :-3], y[..., 2:-1], rtol=0, atol=1e-5)

    def test_groups_sample_apart(self):
        operator = DySample(4, groups=2)
        nn.init.zeros_(operator.offsets.conv.weight)
        x = torch.randn(1, 4, 5, 6)
        before = upsample(operator, x)
        with torch.no_grad():
            operator.offsets.conv.bias[4:8].fill_(1.0)  # horizontal, second group
        after = upsample(operator, x)
        assert torch.equal(after[:, :2], before[:, :2])
        assert not torch.allclose(after[:, 2:], before[:, 2:])


class TestOfficialWeights:
    def state(self):
        return {
            "up.offset.weight": torch.randn(32, 8, 1, 1),
            "up.offset.bias": torch.randn(32),
            "up.init_pos": torch.zeros(1, 32, 1, 1),
            "head.weight": torch.zeros(1),
        }

    def test_prefix_and_constant(self):
        operator, state = DySample(8), self.state()
        operator.load_official_state_dict(state, prefix="up.")
        assert torch.equal(operator.offsets.conv.weight, state["up.offset.weight"])
        assert torch.equal(operator.offsets.conv.bias, state["up.offset.bias"])

    @pytest.mark.parametrize(
        ("options", "change", "message"),
        [
            ({"dyscope": True}, {}, "nothing for 'offsets.scope.weight' (1 of 3 missing)"),
            ({}, {"up.scope.weight": torch.zeros(32, 8, 1, 1)}, "has 'up.scope.weight', which this operator does not"),
            ({"style": "pl"}, {}, "up.offset.weight is (32, 8, 1, 1), this operator needs (8, 2, 1, 1)"),
        ],
    )
    def test_weights_of_another_operator(self, options, change, message):
        operator = DySample(8, **options)
        before = operator.offsets.conv.weight.clone()
        with pytest.raises(FadevizError, match=re.escape(message)):
            operator.load_official_state_dict(self.state() | change, prefix="up.")
        assert torch.equal(operator.offsets.conv.weight, before)


class TestCost:
    SEGNET = ((512, 7), (512, 14), (256, 28), (128, 56), (64, 112))

    @pytest.mark.parametrize(("style", "millions", "giga"), [("lp", 0.0473, 0.073), ("pl", 0.0030, 0.037)])
    def test_segnet(self, style, millions, giga):
        operators = [(DySample(c, style=style), side) for c, side in self.SEGNET]
        assert round(sum(p.numel() for o, _ in operators for p in o.parameters()) / 1e6, 4) == millions
        assert round(sum(o.multiply_adds(side, side) for o, side in operators) / 1e9, 3) == giga

    @pytest.mark.parametrize("c", [16, 256])
    def test_parameters_by_formula(self, c):
        def count(**options):
            return sum(p.numel() for p in DySample(c, **options).parameters())

        assert count() == 32 * c + 32
        assert count(dyscope=True) == 64 * c + 32
        assert count(style="pl") == 2 * c + 8
        assert count(style="pl", dyscope=True) == 4 * c + 8
        assert count(scale_factor=4, groups=2) == 64 * c + 64

    def test_dyscope_adds_a_convolution_and_a_product(self):
        for style in ("lp", "pl"):
            plain, scoped = DySample(16, style=style), DySample(16, style=style, dyscope=True)
            convolution = plain.multiply_adds(3, 5) - 4 * 16 * 60
            assert convolution == 15 * (32 * 16 if style == "lp" else 4 * 8 * 4)
            assert scoped.multiply_adds(3, 5) == plain.multiply_adds(3, 5) + convolution + 15 * 32


class TestInitialisation:
    def test_offsets_start_small_and_ranges_at_a_quarter(self):
        torch.manual_seed(0)
        operator = DySample(256, dyscope=True)
        assert 0.0009 < operator.offsets.conv.weight.std().item() < 0.0011
        assert not operator.offsets.conv.bias.any()
        assert not operator.offsets.scope.weight.any()
        x = torch.randn(1, 256, 4, 4)
        plain = DySample(256)
        plain.offsets.conv.load_state_dict(operator.offsets.conv.state_dict())
        torch.testing.assert_close(operator.offsets(x), plain.offsets(x))

    def test_reset_draws_them_again(self):
        operator = redrawn(DySample(8, dyscope=True), 1.0)
        operator.reset_parameters()
        assert operator.offsets.conv.weight.abs().max() < 0.01
        assert not operator.offsets.conv.bias.any()
        assert not operator.offsets.scope.weight.any()

    def test_nothing_is_stored_but_weights(self):
        assert set(DySample(8).state_dict()) == {"offsets.conv.weight", "offsets.conv.bias"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dysample:style=lpp", "no style 'lpp'. There are: lp, pl"),
        ("dysample:style=3", "style is 3; it must be a str"),
        ("dysample:groups=3", "8 channels do not divide into 3 groups"),
        (
            "dysample:style=pl,scale_factor=3",
            "style pl shuffles 8 channels by scale_factor 3, so they must",
        ),
        ("dysample:dyscope=1", "dyscope is 1; it must be true or false"),
        ("dysample:groups=0", "groups is 0; it must be a whole number, 1 or more"),
    ],
)
def test_options_that_do_not_fit(text, message):
    name, options = parse_upsampler(text)
    with pytest.raises(FadevizError, match=message):
        build_upsampler(name, 8, **options)
