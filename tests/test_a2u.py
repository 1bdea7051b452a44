"""A2U: the authors' numbers, its definition in plain loops, and what it costs."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fadeviz import FadevizError
from fadeviz.upsamplers import A2U, Skip, build_upsampler
from oracles import FORMATS, check_case, close, load, official_parameters

CASE = "a2u_shared_c32"
NAMES = {
    "bconv_U.1": "filter_u",
    "bconv_V.1": "filter_v",
    "bnu.0": "norm_u",
    "bnv.0": "norm_v",
    "bconv_UP.1": "up",
    "bconv_DP.1": "down",
}


def randomised(channels=4, size=(3, 2), batch=2, **options):
    """An operator with drawn weights, x and an encoder feature, in float64."""
    torch.manual_seed(0)
    operator = A2U(channels, **options).double()
    for parameter in operator.parameters():
        nn.init.normal_(parameter)
    feature = torch.randn(batch, operator.skip_channels, 2 * size[0], 2 * size[1], dtype=torch.float64)
    return operator, torch.randn(batch, channels, *size, dtype=torch.float64), feature


class TestOracle:
    @pytest.mark.parametrize("memory_format", FORMATS)
    def test_output_and_gradients(self, memory_format):
        check_case(CASE, "a2u", NAMES, memory_format, down_head=True)

    def test_kernels_up_and_down(self):
        operator, t = check_case(CASE, "a2u", NAMES, down_head=True)
        seen = []
        operator.kernels.register_forward_hook(lambda module, inputs, output: seen.append(output))
        operator(t["x"], Skip(t["skip"]))
        # Near uniform whatever the weights: a relative tolerance would hold for wrong kernels too.
        torch.testing.assert_close(seen[0][:1].float(), t["kernels"].float(), rtol=0, atol=1e-7)
        assert t["kernels"].std() > 1e-3
        close(operator.kernels_down(t["skip"])[:1], t["kernels_down"], 1e-6)

    def test_without_the_down_head_its_weights_are_skipped(self):
        _, t = load(CASE)
        state = official_parameters(t)
        operator = build_upsampler("a2u", 32).double()
        operator.load_official_state_dict({f"up1.{key}": value for key, value in state.items()}, prefix="up1.")
        close(operator(t["x"], Skip(t["skip"])), t["y"], 1e-12)
        with pytest.raises(FadevizError, match="no kernels_down without the down head. Build it with down_head=True"):
            operator.kernels_down(t["skip"])

    def test_state_dicts_that_do_not_fit(self):
        _, t = load(CASE)
        state = official_parameters(t)
        up_only = {key: value for key, value in state.items() if "DP" not in key}
        with pytest.raises(FadevizError, match=r"nothing for 'down.bias' \(2 of 12 missing\)"):
            build_upsampler("a2u", 32, down_head=True).load_official_state_dict(up_only)
        with pytest.raises(
            FadevizError, match=r"bconv_U.1.weight is \(1, 32, 1, 1\), this operator needs \(32, 32, 1, 1\)"
        ):
            build_upsampler("a2u", 32, shared=False).load_official_state_dict(
                {"bconv_U.1.weight": state["bconv_U.1.weight"]}
            )
        with pytest.raises(FadevizError, match="has 'bnw.0.weight', which this operator does not have"):
            build_upsampler("a2u", 32).load_official_state_dict({"bnw.0.weight": torch.zeros(32)})


def slow_projection(state, name, norm, e, k, groups):
    """a or c of the definition for one sample: the pooled filters, the correlation, GroupNorm, leaky ReLU."""
    channels, high, wide = e.shape
    pooled = e.new_zeros(channels, k, k)
    for i in range(k):
        for j in range(k):
            rows = slice(i * high // k, math.ceil((i + 1) * high / k))
            columns = slice(j * wide // k, math.ceil((j + 1) * wide / k))
            pooled[:, i, j] = e[:, rows, columns].mean((1, 2))
    weight = state[f"{name}.weight"][:, :, 0, 0]
    filters = torch.einsum("oc,cij->oij", weight, pooled) + state[f"{name}.bias"][:, None, None]
    out = e.new_zeros(channels, high // 2, wide // 2)
    for n in range(channels):
        kernel = filters[n % len(filters)]
        for i in range(high // 2):
            for j in range(wide // 2):
                for u in range(k):
                    for v in range(k):
                        row, column = 2 * i + u - (k - 1) // 2, 2 * j + v - (k - 1) // 2
                        if 0 <= row < high and 0 <= column < wide:
                            out[n, i, j] += kernel[u, v] * e[n, row, column]
    for g in range(groups):
        part = slice(g * channels // groups, (g + 1) * channels // groups)
        deviation = (out[part].var(unbiased=False) + 1e-5).sqrt()
        out[part] = (out[part] - out[part].mean()) / deviation
    out = out * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None]
    return torch.where(out > 0, out, 0.01 * out)


def slow_a2u(operator, x, e, k, s, groups):
    """Kernels and output, number by number."""
    state = operator.state_dict()
    b, channels, h, w = x.shape
    kernels = x.new_zeros(b, s * s, 2 * h, 2 * w)
    y = x.new_zeros(b, channels, 2 * h, 2 * w)
    for n in range(b):
        a = slow_projection(state, "filter_u", "norm_u", e[n], k, groups)
        c = slow_projection(state, "filter_v", "norm_v", e[n], k, groups)
        m = (a * c).sum(0) / math.sqrt(e.shape[1])
        p = state["up.weight"][:, :, 0, 0] @ e[n].mean((1, 2)) + state["up.bias"]
        for i in range(2 * h):
            for j in range(2 * w):
                logits = torch.stack([p[4 * q + 2 * (i % 2) + j % 2] * m[i // 2, j // 2] for q in range(s * s)])
                kernels[n, :, i, j] = (1 / (1 + (-logits).exp())).softmax(0)
                for u in range(s):
                    for v in range(s):
                        row, column = i // 2 + u - s // 2, j // 2 + v - s // 2
                        if 0 <= row < h and 0 <= column < w:
                            y[n, :, i, j] += kernels[n, u * s + v, i, j] * x[n, :, row, column]
    return kernels, y


class TestDefinition:
    @pytest.mark.parametrize("memory_format", FORMATS)
    @pytest.mark.parametrize(
        ("size", "options"),
        [
            ((3, 2), {}),
            ((3, 2), {"shared": False}),
            ((2, 3), {"kernel_size": 5, "encoder_kernel_size": 3, "shared": False}),
            ((4, 1), {"kernel_size": 1, "encoder_kernel_size": 4}),
            ((2, 2), {"kernel_size": 2, "encoder_kernel_size": 5, "skip_channels": 6}),
            ((1, 1), {"skip_channels": 3, "shared": False}),
        ],
    )
    def test_against_the_slow_loop(self, size, options, memory_format):
        operator, x, e = randomised(size=size, **options)
        groups = {4: 4, 6: 2, 3: 1}[operator.skip_channels]
        k, s = options.get("encoder_kernel_size", 6), options.get("kernel_size", 3)
        kernels, y = slow_a2u(operator, x, e, k, s, groups)
        seen = []
        operator.kernels.register_forward_hook(lambda module, inputs, output: seen.append(output))
        operator = operator.to(memory_format=memory_format)
        got = operator(x.contiguous(memory_format=memory_format), Skip(e.contiguous(memory_format=memory_format)))
        torch.testing.assert_close(seen[0], kernels, rtol=0, atol=1e-12)
        torch.testing.assert_close(got, y, rtol=0, atol=1e-11)

    def test_down_kernels_share_the_map(self):
        operator, _, e = randomised(down_head=True)
        m = operator.affinity(e)
        p = operator.down(e.mean((2, 3), keepdim=True))
        for n in range(2):
            for i in range(3):
                want = (p[n, :, 0, 0] * m[n, 0, i, 1]).softmax(0)
                torch.testing.assert_close(operator.kernels_down(e)[n, :, i, 1], want, rtol=0, atol=1e-12)

    def test_zero_weights_make_a_box_blur(self):
        operator, x, e = randomised()
        nn.init.zeros_(operator.up.weight)
        nn.init.zeros_(operator.up.bias)
        box = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=True)
        torch.testing.assert_close(operator(x, Skip(e)), F.interpolate(box, scale_factor=2, mode="nearest"))

    def test_no_weight_exceeds_e_times_another(self):
        torch.manual_seed(0)
        kernels = A2U(4).kernels(1000 * torch.randn(1, 9, 64, 64, dtype=torch.float64))
        ratio = kernels.amax(1) / kernels.amin(1)
        assert ratio.max() <= math.e + 1e-12
        assert ratio.max() > 2.7

    def test_coarse_logits_are_added_before_the_sigmoid(self):
        torch.manual_seed(0)
        kernels, fine, coarse = A2U(4).kernels, torch.randn(1, 9, 4, 6), torch.randn(1, 9, 2, 3)
        whole = fine + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(kernels(fine, coarse), kernels(whole))

    def test_a_single_value_a_group_leaves_the_bias(self):
        operator, x, e = randomised(size=(1, 1), batch=1)
        m = operator.affinity(e)
        activated = [F.leaky_relu(norm.bias, 0.01) for norm in (operator.norm_u, operator.norm_v)]
        torch.testing.assert_close(m.flatten(), (activated[0] * activated[1]).sum().reshape(1) / 2)
        assert operator(x, Skip(e)).isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_low_precision(self, dtype):
        operator, x, e = randomised(8, size=(6, 5))
        y = operator(x, Skip(e))
        low = operator.to(dtype)(x.to(dtype), Skip(e.to(dtype)))
        assert low.dtype == dtype
        torch.testing.assert_close(low.double(), y, rtol=0.05, atol=0.05)


class TestCost:
    @pytest.mark.parametrize("c", [8, 64, 256])
    def test_parameters_by_formula(self, c):
        def count(**options):
            return sum(p.numel() for p in A2U(c, **options).parameters())

        assert count() == 42 * c + 38
        assert count(down_head=True) == 78 * c + 74
        assert count(shared=False) == 42 * c + 38 + 2 * (c * c - 1)
        assert count(skip_channels=48, kernel_size=5) == 49 * (2 + 100) + 4 * 48

    def test_published_rows(self):
        sides = {"segnet": ((512, 7), (512, 14), (256, 28), (128, 56), (64, 112))}
        sides["segformer"] = tuple((256, side) for side in (16, 32, 64, 32, 64, 64))
        rows = {}
        for network, stages in sides.items():
            operators = [build_upsampler("a2u", c, down_head=network == "segformer") for c, _ in stages]
            parameters = sum(p.numel() for operator in operators for p in operator.parameters())
            operations = sum(op.multiply_adds(side, side) for op, (_, side) in zip(operators, stages, strict=True))
            rows[network] = parameters / 1e6, operations / 1e9
        assert tuple(round(value, 3) for value in rows["segnet"]) == (0.062, 0.167)
        assert tuple(round(value, 2) for value in rows["segformer"]) == (0.12, 0.41)

    def test_other_options_cost_what_they_do(self):
        operator = A2U(5, kernel_size=5, encoder_kernel_size=4, shared=False, skip_channels=3)
        heads = 100 * 3 + 2 * 16 * 9
        correlations, product, reassembly = 2 * 16 * 3, 3, 25 * 5 * 4
        assert operator.multiply_adds(7, 2) == heads + 14 * (correlations + product + reassembly)


class TestInitialisation:
    def test_xavier_normal_with_a_leaky_gain(self):
        torch.manual_seed(0)
        operator = A2U(512, shared=False, down_head=True)
        gain = 2 / (1 + 0.01**2)
        for conv, outputs in (
            (operator.filter_u, 512),
            (operator.filter_v, 512),
            (operator.up, 36),
            (operator.down, 36),
        ):
            assert conv.weight.var().item() == pytest.approx(gain * 2 / (512 + outputs), rel=0.05)
            assert not conv.bias.any()
        for norm in (operator.norm_u, operator.norm_v):
            assert torch.equal(norm.weight, torch.ones(512))
            assert not norm.bias.any()
        assert operator.norm_u.num_groups == 32

    def test_reset_draws_again(self):
        operator = A2U(8)
        nn.init.constant_(operator.norm_u.bias, 3)
        before = operator.up.weight.clone()
        operator.reset_parameters()
        assert not operator.norm_u.bias.any()
        assert not torch.equal(operator.up.weight, before)


class TestErrors:
    def test_guides_that_do_not_fit(self):
        operator, x = A2U(3, skip_channels=5), torch.zeros(1, 3, 4, 4)
        with pytest.raises(FadevizError, match="A2U: skip.feature is 8x7, but x is 4x4 .* 8x8 is needed"):
            operator(x, Skip(torch.zeros(1, 5, 8, 7)))
        with pytest.raises(FadevizError, match="A2U: skip.feature has 3 channels, but 5 are needed"):
            operator(x, Skip(torch.zeros(1, 3, 8, 8)))

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("shared", 1, "a2u: shared is 1; it must be true or false"),
            ("encoder_kernel_size", 0, "a2u: encoder_kernel_size is 0; it must be a whole number, 1 or more"),
            ("skip_channels", 2.5, "a2u: skip_channels is 2.5; it must be a whole number"),
        ],
    )
    def test_options(self, option, value, message):
        with pytest.raises(FadevizError, match=message):
            build_upsampler("a2u", 8, **{option: value})
