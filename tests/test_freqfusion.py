"""FreqFusion: golden numbers of both outputs, a slow second implementation, limit cases, costs, messages."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import oracles
from fadeviz import FadevizError
from fadeviz.ops import sharpened
from fadeviz.ops.backends import native_library
from fadeviz.ops.reassemble import reassemble
from fadeviz.upsamplers import FreqFusion, Skip, build_upsampler, freqfusion
from fadeviz.upsamplers.freqfusion import SimilarityOffsets, WindowedSoftmax, neighbour_similarity

needs_compiler = pytest.mark.skipif(native_library.library() is None, reason="no C compiler")

NAMES = {
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
CASES = {
    "freqfusion_c8": {"compressed_channels": 16},
    "freqfusion_resample_c8": {"compressed_channels": 8, "resample": True},
}


def high_pass(operator, x, feature):
    return operator.fuse(x, Skip(feature))[1]


def inside(operator, part, run):
    """What the submodule ``part`` gives during ``run``: exactly one map."""
    seen = []
    handle = operator.get_submodule(part).register_forward_hook(lambda module, args, output: seen.append(output))
    run()
    handle.remove()
    assert len(seen) == 1
    return seen[0]


class TestGoldenNumbers:
    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("memory_format", oracles.FORMATS)
    def test_outputs_and_gradients(self, case, memory_format):
        second = ("hr", high_pass)
        operator, t = oracles.check_case(case, "freqfusion", NAMES, memory_format, second, **CASES[case])
        skip = Skip(t["skip"])
        for part in ("kernels", "kernels_hr"):
            maps = inside(operator, part, lambda: operator.fuse(t["x"], skip))
            oracles.close(maps[:1], t[part], 1e-6)
        oracles.close(operator.fuse(t["x"], skip)[0], t["y"], 1e-12)


def drawn(channels=4, **options):
    """An operator in float64 with every parameter drawn: at the start biases are 0 and would hide a mistake."""
    torch.manual_seed(0)
    operator = FreqFusion(channels, **{"compressed_channels": 8, "resample_groups": 2} | options).double()
    for parameter in operator.parameters():
        nn.init.normal_(parameter, std=0.3)
    return operator


@pytest.mark.parametrize(
    "options",
    [{}, {"compressed_channels": 12, "skip_channels": 5, "highpass_kernel_size": 5}, {"highpass_kernel_size": 1}],
)
@pytest.mark.parametrize("size", [(3, 4), (2, 2), (2, 4)])  # the last two: maps that are all border
@pytest.mark.parametrize("memory_format", oracles.FORMATS)
def test_without_the_compressed_maps(options, size, memory_format):
    """Both outputs and all gradients are those of the modules run one after another, as a hook makes them."""
    operator, results = drawn(**options), []
    x, skip = draw(operator, size, batch=2)
    x, e = (m.contiguous(memory_format=memory_format).requires_grad_() for m in (x, skip.feature))
    for hooked in ("", "compressor_encoder", "highpass_encoder", "compressor_decoder", "kernels"):
        hooks = [operator.get_submodule(hooked).register_forward_hook(lambda *args: None)] if hooked else []
        assert operator._skips_compression(e) is (hooked in ("", "kernels"))
        y, y_hr = operator.fuse(x, Skip(e))
        results.append(
            (y, y_hr, *torch.autograd.grad(y.sin().sum() + y_hr.cos().sum(), (x, e, *operator.parameters())))
        )
        for hook in hooks:
            hook.remove()
    for others in results[1:]:
        for got, want in zip(results[0], others, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_under_autocast(dtype):
    operator = drawn(16, compressed_channels=64).float()
    x, skip = draw(operator, (6, 8))
    results = []
    for enabled in (False, True):
        given = [m.to(dtype if enabled else torch.float32).requires_grad_() for m in (x, skip.feature)]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert operator._skips_compression(given[1])
            y, y_hr = operator.fuse(given[0], Skip(given[1]))
        objective = y.float().square().mean() + y_hr.float().square().mean()
        results.append(torch.autograd.grad(objective, [*given, *operator.parameters()]))
    for exact, got in zip(*results, strict=True):
        assert (got.float() - exact).norm() <= 0.3 * exact.norm() + 1e-6


@pytest.mark.parametrize("size", [(5, 4), (3, 3)])
def test_all_derivatives_of_the_sharpened_convolution(size):
    torch.manual_seed(0)
    e, weight = torch.randn(1, 2, *size, dtype=torch.float64), torch.randn(2, 2, 3, 3, dtype=torch.float64)
    logits, shift = torch.randn(1, 9, *size, dtype=torch.float64), torch.randn(2, 1, 3, 3, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (e, logits, weight, shift, torch.randn(2, dtype=torch.float64))]

    def run(e, logits, *weights):
        return sharpened.sharpened_conv(e, logits.softmax(1), *weights, 3)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@needs_compiler
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel_size", "size"), [(1, (2, 3)), (3, (4, 5)), (3, (17, 12)), (5, (6, 9))])
def test_native_frame_against_torch(kernel_size, size, memory_format, monkeypatch):
    torch.manual_seed(0)
    e, n, grad = (torch.randn(2, c, *size, dtype=torch.float64) for c in (3, kernel_size**2, 25))
    e, n, grad = (t.contiguous(memory_format=memory_format) for t in (e, n.softmax(1), grad))
    weights = [torch.randn(25, c, 3, 3, dtype=torch.float64) for c in (3, 1)]
    results = []
    for backend in ("tiles", "native"):
        monkeypatch.setenv("FADEVIZ_BACKEND", backend)
        y = sharpened.framed_conv(e, n, *weights, torch.ones(25, dtype=torch.float64), kernel_size)
        to_e, to_n, *rest = sharpened.framed_conv_backward(grad, e, n, *weights, kernel_size)
        # Of n's gradient only that part matters which the softmax before it lets through.
        results.append([y, to_e, n * (to_n - (n * to_n).sum(1, keepdim=True)), *rest])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def draw(operator, size, batch=1):
    torch.manual_seed(1)
    feature = torch.randn(batch, operator.skip_channels, 2 * size[0], 2 * size[1], dtype=torch.float64)
    return torch.randn(batch, operator.in_channels, *size, dtype=torch.float64), Skip(feature)


def slow_kernels(z, k, hamming=True):
    """Softmax, window, division; one pixel at a time."""
    out = z.clone()
    line = [0.54 - 0.46 * math.cos(2 * math.pi * n / (k - 1)) if hamming and k > 1 else 1.0 for n in range(k)]
    for i in range(z.shape[1]):
        for j in range(z.shape[2]):
            weights = z[:, i, j].exp()
            weights = weights / weights.sum() * torch.tensor([a * b for a in line for b in line], dtype=z.dtype)
            out[:, i, j] = weights / weights.sum()
    return out


def slow_reassemble(z, kernels, k, s):
    _, h, w = z.shape
    y = torch.zeros(len(z), s * h, s * w, dtype=z.dtype)
    for i in range(s * h):
        for j in range(s * w):
            for u in range(k):
                for v in range(k):
                    row, column = i // s + u - k // 2, j // s + v - k // 2
                    if 0 <= row < h and 0 <= column < w:
                        y[:, i, j] += kernels[u * k + v, i, j] * z[:, row, column]
    return y


def slow_similarity(z):
    _, h, w = z.shape
    out = torch.zeros(8, h, w, dtype=z.dtype)
    steps = [(dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2) if (dy, dx) != (0, 0)]
    for n, (dy, dx) in enumerate(steps):
        for i in range(h):
            for j in range(w):
                if 0 <= i + dy < h and 0 <= j + dx < w:
                    p, q = z[:, i, j], z[:, i + dy, j + dx]
                    norms = [max(v.square().sum().sqrt().item(), 1e-8) for v in (p, q)]
                    out[n, i, j] = (p * q).sum() / (norms[0] * norms[1])
    return out


def slow_group_norm(z, norm, groups):
    channels = len(z)
    out = z.clone()
    for n in range(channels):
        first = n // (channels // groups) * (channels // groups)
        seen = z[first : first + channels // groups]
        variance = (seen - seen.mean()).square().mean()
        out[n] = (z[n] - seen.mean()) / (variance + 1e-5).sqrt() * norm.weight[n] + norm.bias[n]
    return out


def slow_sample(y, a, t, offsets, norm_groups):
    """y (C, 2h, 2w) sampled; a and t are the compressed maps."""
    high = slow_group_norm(a, offsets.norm_encoder, norm_groups)
    low = slow_group_norm(t, offsets.norm_decoder, norm_groups)
    high, low = (torch.cat((z, slow_similarity(z)))[None] for z in (high, low))
    encoder, decoder = offsets.offset_encoder(high)[0], offsets.offset_decoder(low)[0]
    scale_encoder, scale_decoder = offsets.scale_encoder(high)[0], offsets.scale_decoder(low)[0]
    channels, height, width = y.shape
    groups = offsets.groups
    out = torch.zeros_like(y)
    for g in range(groups):
        for row in range(height):
            for column in range(width):
                (i, a), (j, c) = divmod(row, 2), divmod(column, 2)
                at = []
                for xy, start, size in ((1, i + 0.5 + (a - 0.5) / 2, height), (0, j + 0.5 + (c - 0.5) / 2, width)):
                    n = xy * groups + g
                    learned = decoder[4 * n + 2 * a + c, i, j] + encoder[n, row, column]
                    scale = 1 / (1 + (-scale_decoder[4 * n + 2 * a + c, i, j] - scale_encoder[n, row, column]).exp())
                    at.append(min(max(2 * (start + (learned * scale).item()) - 0.5, 0), size - 1))
                top, left = min(int(at[0]), height - 2), min(int(at[1]), width - 2)
                p, q = at[0] - top, at[1] - left
                block = y[g * channels // groups : (g + 1) * channels // groups, top : top + 2, left : left + 2]
                upper, lower = ((1 - q) * block[:, n, 0] + q * block[:, n, 1] for n in (0, 1))
                out[g * channels // groups : (g + 1) * channels // groups, row, column] = (1 - p) * upper + p * lower
    return out


def slow_freqfusion(operator, x, e, hamming=True, residual=True, sharpened=True, norm_groups=1):
    """Both outputs for one sample; the convolutions are torch's, all else is the definition a pixel at a time."""
    k, m = operator.lowpass_kernel_size, operator.highpass_kernel_size
    a, t = operator.compressor_encoder(e[None]), operator.compressor_decoder(x[None])
    low, high = operator.lowpass_encoder, operator.highpass_encoder
    if sharpened:
        h0 = high(a)[0]
        a = 2 * a - slow_reassemble(a[0], slow_kernels(h0, m, hamming), m, 1)
        l0 = low(a)[0]
        kernels = slow_kernels(l0 + slow_reassemble(low(t)[0], slow_kernels(l0, k, hamming), k, 2), k, hamming)
        logits = h0 + slow_reassemble(high(t)[0], kernels, k, 2)
    else:
        kernels = slow_kernels((low(a) + F.interpolate(low(t), scale_factor=2, mode="nearest"))[0], k, hamming)
        logits = (high(a) + F.interpolate(high(t), scale_factor=2, mode="nearest"))[0]
    y = slow_reassemble(x, kernels, k, 2)
    rest = e - slow_reassemble(e, slow_kernels(logits, m, hamming), m, 1)
    if operator.offsets is not None:
        y = slow_sample(y, a[0], t[0], operator.offsets, norm_groups)
    return y, e + rest if residual else rest


class TestAgainstTheSlowLoop:
    @pytest.mark.parametrize(
        ("size", "options", "slow"),
        [
            ((3, 2), {}, {}),
            ((2, 3), {"lowpass_kernel_size": 3, "highpass_kernel_size": 5}, {}),
            ((2, 2), {"lowpass_kernel_size": 4, "highpass_kernel_size": 2, "skip_channels": 3}, {}),
            ((3, 2), {"hamming_window": False, "hr_residual": False}, {"hamming": False, "residual": False}),
            ((3, 2), {"comp_feat_upsample": False, "skip_channels": 5}, {"sharpened": False}),
            ((2, 3), {"resample": True}, {}),
            ((3, 3), {"resample": True, "compressed_channels": 16, "resample_groups": 4}, {"norm_groups": 2}),
            ((3, 2), {"resample": True, "compressed_channels": 20, "skip_channels": 3}, {"norm_groups": 2}),
            ((3, 2), {"resample": True, "compressed_channels": 27, "resample_groups": 1}, {"norm_groups": 3}),
            ((2, 2), {"resample": True, "compressed_channels": 3, "comp_feat_upsample": False}, {"sharpened": False}),
            ((1, 1), {"resample": True, "compressed_channels": 5}, {}),
        ],
    )
    def test_both_outputs(self, size, options, slow):
        operator = drawn(**options)
        x, skip = draw(operator, size)
        with torch.no_grad():
            y, y_hr = operator.fuse(x, skip)
            want = slow_freqfusion(operator, x[0], skip.feature[0], **slow)
            torch.testing.assert_close((y[0], y_hr[0]), want, rtol=0, atol=1e-11)
            assert torch.equal(operator(x, skip), y)

    @pytest.mark.parametrize("options", [{}, {"resample": True}, {"comp_feat_upsample": False, "hr_residual": False}])
    def test_gradients(self, options):
        operator = drawn(**options)
        x, skip = draw(operator, (3, 2), batch=2)

        def run(x, feature, *parameters):
            return operator.fuse(x, Skip(feature))

        inputs = (x.requires_grad_(), skip.feature.requires_grad_(), *operator.parameters())
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)

    @pytest.mark.parametrize("options", [{"resample": True}, {"comp_feat_upsample": False, "skip_channels": 6}])
    def test_memory_formats_and_batches(self, options):
        operator = drawn(**options)
        x, skip = draw(operator, (5, 3), batch=3)
        both = operator.fuse(x, skip)
        last = Skip(skip.feature.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(operator.fuse(x, last), both, rtol=0, atol=1e-12)
        moved = operator.to(memory_format=torch.channels_last)
        torch.testing.assert_close(
            moved.fuse(x.contiguous(memory_format=torch.channels_last), last), both, rtol=0, atol=1e-12
        )
        one = operator.fuse(x[1:2], Skip(skip.feature[1:2]))
        torch.testing.assert_close(one, tuple(y[1:2] for y in both), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        operator = drawn(8, resample=True)
        x, skip = draw(operator, (8, 8), batch=2)
        want = operator.fuse(x, skip)
        half, half_skip = x.to(dtype), Skip(skip.feature.to(dtype))
        low = operator.to(dtype).fuse(half, half_skip)
        assert inside(operator, "offsets", lambda: operator(half, half_skip)).dtype == torch.float32
        assert {y.dtype for y in low} == {dtype}
        for y, full in zip(low, want, strict=True):
            assert (y.double() - full).square().mean().sqrt() < 0.05 * full.std()


class TestNeighbourSimilarity:
    @pytest.mark.parametrize("size", [(4, 5), (1, 1), (2, 6), (3, 1), (1, 4)])
    def test_against_the_slow_loop(self, size):
        torch.manual_seed(0)
        z = torch.randn(2, 3, *size, dtype=torch.float64)
        z[:, :, 0, 0] = 0
        z[:, :, -1, -1] *= 1e-9  # under the floor of the norm
        got = neighbour_similarity(z)
        torch.testing.assert_close(got, torch.stack([slow_similarity(m) for m in z]), rtol=0, atol=1e-14)
        last = neighbour_similarity(z.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last, got, rtol=0, atol=1e-14)

    def test_equal_pixels(self):
        got = neighbour_similarity(torch.ones(1, 4, 6, 7))
        assert torch.equal(got[..., 2:-2, 2:-2], torch.ones(1, 8, 2, 3))
        assert got[:, 0, :2].eq(0).all()
        assert got[:, 7, -2:].eq(0).all()

    def test_gradients_of_first_and_second_order(self):
        torch.manual_seed(0)
        z = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(neighbour_similarity, z)
        assert torch.autograd.gradgradcheck(neighbour_similarity, z, fast_mode=True)

    def test_a_black_map_has_finite_gradients(self):
        for dtype in (torch.float32, torch.float16):
            z = torch.zeros(1, 3, 5, 5, dtype=dtype, requires_grad=True)
            neighbour_similarity(z).sum().backward()
            assert z.grad.isfinite().all()

    def test_never_below_float32(self):
        z = torch.randn(1, 64, 5, 5).bfloat16()
        got = neighbour_similarity(z)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, neighbour_similarity(z.float()), rtol=0, atol=2e-3)


class TestLimitCases:
    def zero(self, *layers):
        for layer in layers:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @pytest.mark.parametrize("comp_feat_upsample", [True, False])
    def test_kernels_of_one_pixel(self, comp_feat_upsample):
        operator = drawn(lowpass_kernel_size=1, highpass_kernel_size=1, comp_feat_upsample=comp_feat_upsample)
        x, skip = draw(operator, (4, 5))
        y, y_hr = operator.fuse(x, skip)
        assert torch.equal(y, F.interpolate(x, scale_factor=2, mode="nearest"))
        assert torch.equal(y_hr, skip.feature)

    def test_zero_logits_are_a_hamming_blur(self):
        operator = drawn()
        self.zero(operator.lowpass_encoder, operator.highpass_encoder)
        x, skip = draw(operator, (4, 5))

        def blur(z, k):
            line = torch.hamming_window(k, periodic=False, dtype=torch.float64)
            window = (line[:, None] * line / line.sum() ** 2).expand(z.shape[1], 1, k, k)
            return F.conv2d(z, window, padding=k // 2, groups=z.shape[1])

        y, y_hr = operator.fuse(x, skip)
        torch.testing.assert_close(y, F.interpolate(blur(x, 5), scale_factor=2, mode="nearest"), rtol=0, atol=1e-12)
        torch.testing.assert_close(y_hr, 2 * skip.feature - blur(skip.feature, 3), rtol=0, atol=1e-12)

    def test_zero_logits_without_window_are_a_box_blur(self):
        operator = drawn(hamming_window=False)
        self.zero(operator.lowpass_encoder, operator.highpass_encoder)
        x, skip = draw(operator, (4, 5))
        box = F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=True)
        nearest = F.interpolate(box, scale_factor=2, mode="nearest")
        torch.testing.assert_close(operator(x, skip), nearest, rtol=0, atol=1e-12)

    def test_zero_offsets_leave_y(self):
        operator, plain = drawn(resample=True), drawn()
        offsets = operator.offsets
        self.zero(offsets.offset_encoder, offsets.offset_decoder)
        plain.load_state_dict({key: value for key, value in operator.state_dict().items() if "offsets" not in key})
        x, skip = draw(operator, (4, 5))
        torch.testing.assert_close(operator(x, skip), plain(x, skip), rtol=0, atol=1e-12)

    def test_offsets_move_each_group_by_itself(self):
        operator, plain = drawn(resample=True), drawn()
        offsets = operator.offsets
        self.zero(offsets.offset_encoder, offsets.offset_decoder, offsets.scale_encoder, offsets.scale_decoder)
        plain.load_state_dict({key: value for key, value in operator.state_dict().items() if "offsets" not in key})
        with torch.no_grad():  # a sigmoid of a half: group 1 moves by one pixel of x, two of y, to the right
            offsets.offset_decoder.bias.unflatten(0, (2, 2, 4))[0, 1] = 2
        x, skip = draw(operator, (4, 5))
        y, at_rest = operator(x, skip), plain(x, skip)
        torch.testing.assert_close(y[:, :2], at_rest[:, :2], rtol=0, atol=1e-12)
        torch.testing.assert_close(y[:, 2:, :, :-2], at_rest[:, 2:, :, 2:], rtol=0, atol=1e-12)
        torch.testing.assert_close(y[:, 2:, :, -2:], at_rest[:, 2:, :, -1:].expand(1, 2, 8, 2), rtol=0, atol=1e-12)
        moved = inside(operator, "offsets", lambda: operator(x, skip)).unflatten(1, (2, 2, 2, 2))
        assert moved.shape == (1, 2, 2, 2, 2, 4, 5)
        assert moved[0, 0, 1, :, 0].eq(0.75).all()
        assert moved[0, 0, 1, :, 1].eq(1.25).all()
        assert moved[0, 1, :, 0].eq(-0.25).all()
        assert moved[0, 1, :, 1].eq(0.25).all()

    def test_y_is_the_reassembly_with_the_shown_kernels(self):
        operator = drawn()
        x, skip = draw(operator, (4, 5))
        kernels = inside(operator, "kernels", lambda: operator(x, skip))
        torch.testing.assert_close(kernels.sum(1), torch.ones(1, 8, 10, dtype=torch.float64), rtol=0, atol=1e-14)
        torch.testing.assert_close(operator(x, skip), reassemble(x, kernels, 5, 2), rtol=0, atol=1e-14)

    def test_forward_computes_nothing_for_the_other_output(self):
        operator = drawn()
        x, skip = draw(operator, (4, 5))
        seen = []
        operator.kernels_hr.register_forward_hook(lambda *_: seen.append(1))
        operator(x, skip)
        assert seen == []
        operator.fuse(x, skip)
        assert seen == [1]


class TestWindow:
    @pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
    def test_is_softmax_times_window_over_its_sum(self, k):
        torch.manual_seed(0)
        z = torch.randn(1, k * k, 2, 3, dtype=torch.float64)
        want = slow_kernels(z[0], k)
        torch.testing.assert_close(WindowedSoftmax(k)(z)[0], want, rtol=0, atol=1e-15)

    def test_coarse_logits_are_added_to_all_children(self):
        torch.manual_seed(0)
        fine, coarse = torch.randn(2, 9, 6, 4, dtype=torch.float64), torch.randn(2, 9, 3, 2, dtype=torch.float64)
        for hamming in (True, False):
            kernels = WindowedSoftmax(3, hamming)
            both = kernels(fine + F.interpolate(coarse, scale_factor=2, mode="nearest"))
            torch.testing.assert_close(kernels(fine, coarse), both, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("memory_format", oracles.FORMATS)
    def test_keeps_the_memory_format(self, memory_format):
        z = torch.randn(2, 9, 4, 3).contiguous(memory_format=memory_format)
        assert WindowedSoftmax(3)(z).is_contiguous(memory_format=memory_format)

    def test_half_precision_logits_do_not_round_the_window(self):
        z = torch.randn(1, 25, 4, 3).bfloat16()
        torch.testing.assert_close(WindowedSoftmax(5)(z), WindowedSoftmax(5)(z.float()), rtol=1e-5, atol=1e-7)

    def test_is_printed(self):
        assert repr(WindowedSoftmax(3, hamming=False)) == "WindowedSoftmax(kernel_size=3, groups=1, hamming=False)"


def test_start():
    torch.manual_seed(0)
    operator = FreqFusion(64, resample=True, compressed_channels=32)
    for layer in (operator.lowpass_encoder, operator.highpass_encoder):
        assert layer.weight.std().item() == pytest.approx(1e-3, rel=0.05)
    offsets = operator.offsets
    others = [operator.compressor_encoder, operator.compressor_decoder, offsets.offset_encoder, offsets.offset_decoder,
              offsets.scale_encoder, offsets.scale_decoder]  # fmt: skip
    for layer in others:
        out, within = layer.weight.shape[0], layer.weight[0].numel()
        bound = math.sqrt(6 / (within + out * layer.weight[0, 0].numel()))
        assert 0.95 * bound < layer.weight.abs().max().item() <= bound
    for name, parameter in operator.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
    assert (offsets.norm_encoder.weight == 1).all()
    entropy = operator.kernels(operator.lowpass_encoder(torch.randn(1, 32, 4, 4)))
    window = WindowedSoftmax(5)(torch.zeros(1, 25, 4, 4))
    torch.testing.assert_close(entropy, window, rtol=0.2, atol=0)


@pytest.mark.parametrize(("d", "groups"), [(1, 1), (4, 1), (8, 1), (16, 2), (20, 2), (23, 1), (28, 2), (64, 8)])
def test_groups_of_the_norms_divide_the_channels(d, groups):
    assert SimilarityOffsets(d, 4).norm_encoder.num_groups == groups


SEGNET = list(zip((512, 512, 256, 128, 64), (7, 14, 28, 56, 112), strict=True))


class TestCost:
    @pytest.mark.parametrize(
        ("options", "millions", "billions", "both"),
        [
            ({}, 0.2871, 2.273, 2.429),
            ({"comp_feat_upsample": False}, 0.2871, 1.846, 2.334),
            ({"resample": True}, 0.5480, 3.726, 3.883),
        ],
    )
    def test_segnet(self, options, millions, billions, both):
        """Nobody has published these; they are worked out from the formulas of the docstring."""
        stages = [(FreqFusion(channels, **options), side) for channels, side in SEGNET]
        parameters = sum(p.numel() for operator, _ in stages for p in operator.parameters())
        assert round(parameters / 1e6, 4) == millions
        assert round(sum(operator.multiply_adds(side, side) for operator, side in stages) / 1e9, 3) == billions
        assert round(sum(operator.multiply_adds(side, side, both=True) for operator, side in stages) / 1e9, 3) == both

    @pytest.mark.parametrize("c", [16, 256])
    def test_parameters(self, c):
        def count(**options):
            return sum(p.numel() for p in build_upsampler("freqfusion", c, **options).parameters())

        assert count() == 128 * c + 19_746
        assert count(resample=True) == 128 * c + 19_746 + 52_176
        options = {"compressed_channels": 16, "lowpass_kernel_size": 3, "highpass_kernel_size": 5, "skip_channels": 7}
        assert count(**options) == (c + 9) * 16 + 145 * 34
        assert count(**options, resample=True, resample_groups=2) - count(**options) == 64 + 40 * 217

    @pytest.mark.parametrize("both", [False, True])
    @pytest.mark.parametrize(
        "options",
        [{}, {"comp_feat_upsample": False, "skip_channels": 6}, {"resample": True, "lowpass_kernel_size": 3},
         {"resample": True, "comp_feat_upsample": False, "compressed_channels": 16, "resample_groups": 2}],
    )  # fmt: skip
    def test_what_runs(self, monkeypatch, options, both):
        """Convolutions as torch counts them, windows, similarities, products and sampling by their definitions."""
        windows = 0

        def reassembled(x, kernels, k, s=2):
            y = F.interpolate(x, scale_factor=s, mode="nearest")
            nonlocal windows
            windows += k * k * y.numel()
            return y

        for module in (freqfusion, sharpened):
            monkeypatch.setattr(module, "reassemble", reassembled)
        operator = FreqFusion(8, **options)
        operator.compressor_encoder.register_forward_hook(lambda *args: None)  # watched, it runs, and all after it
        x, skip = torch.zeros(1, 8, 5, 3), Skip(torch.zeros(1, operator.skip_channels, 10, 6))
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            (operator.fuse if both else operator)(x, skip)
        total = flops.get_total_flops() // 2 + windows
        if operator.offsets is not None:
            similarities = 8 * operator.compressed_channels * (60 + 15)
            total += similarities + 2 * operator.offsets.groups * 60 + 4 * 8 * 60
        assert operator.multiply_adds(5, 3, both=both) == total


class TestMessages:
    def test_groups(self):
        with pytest.raises(FadevizError, match="FreqFusion: 10 channels do not divide into 4 groups. Choose"):
            FreqFusion(10, resample=True)
        assert FreqFusion(10).offsets is None  # without the sampler there is nothing to divide

    @pytest.mark.parametrize("call", ["forward", "fuse"])
    def test_guides(self, call):
        with pytest.raises(FadevizError, match="FreqFusion: skip.feature is 31x48, but x is 16x24 .* 32x48 is needed"):
            getattr(FreqFusion(4), call)(torch.zeros(1, 4, 16, 24), Skip(torch.zeros(1, 4, 31, 48)))
        with pytest.raises(FadevizError, match="FreqFusion: skip.feature has 4 channels, but 3 are needed"):
            getattr(FreqFusion(4, skip_channels=3), call)(torch.zeros(1, 4, 2, 2), Skip(torch.zeros(1, 4, 4, 4)))

    def test_official_weights_that_do_not_fit(self):
        def official(**options):
            back = {mine: theirs for theirs, mine in NAMES.items()}
            state = FreqFusion(8, compressed_channels=8, **options).state_dict()
            return {f"{back[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in state.items()}

        operator = FreqFusion(8, compressed_channels=8)
        operator.load_official_state_dict({**official(), "hamming_lowpass": torch.ones(1, 1, 5, 5)})
        with pytest.raises(FadevizError, match=r"the state dict has 'dysampler\S*', which this operator does not have"):
            operator.load_official_state_dict(official(resample=True))
        sampling = FreqFusion(8, compressed_channels=8, resample=True)
        with pytest.raises(FadevizError, match=r"the state dict has nothing for 'offsets\S*' \(12 of 20"):
            sampling.load_official_state_dict(official())
        with pytest.raises(FadevizError, match=r"content_encoder.weight is \(9, 8, 3, 3\), .* needs \(25, 8, 3, 3\)"):
            operator.load_official_state_dict(official(lowpass_kernel_size=3))
