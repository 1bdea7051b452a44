"""LDA-AQU: golden numbers, a slow second implementation, its limit cases, costs, memory and messages."""

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import oracles
from fadeviz import FadevizError
from fadeviz.upsamplers import LDAAQU, build_upsampler, parse_upsampler

NAMES = {
    "layer_norm.norm": "norm",
    "proj_q": "query",
    "proj_k": "key",
    "conv_offset.0": "offsets.depthwise",
    "conv_offset.1.norm": "offsets.norm",
    "conv_offset.3": "offsets.conv",
    "relative_position_bias_table": "position_bias",
}


def upsample(operator, x):
    return operator(x)


def redrawn(operator, std):
    for parameter in operator.parameters():
        nn.init.normal_(parameter, std=std)
    return operator


@pytest.mark.parametrize("memory_format", oracles.FORMATS)
def test_golden_numbers(memory_format):
    operator, t = oracles.check_case("lda_aqu_c32", "lda_aqu", NAMES, memory_format)
    query = operator.query(operator.norm(t["x"]))
    query = F.interpolate(query, scale_factor=2, mode="bilinear", align_corners=True)
    oracles.close(operator.offsets(query)[:1].reshape(2, 18, 10, 14), t["offset"], 1e-6)


def slow_lda_aqu(x, operator, s, k, heads, groups, reach):
    """The definition, one pixel at a time."""
    b, channels, h, w = x.shape
    high, wide = s * h, s * w
    state = {key: value.detach() for key, value in operator.state_dict().items()}
    d = state["query.weight"].shape[0]
    bias = state.get("position_bias", torch.zeros(heads, k * k, d // heads, dtype=x.dtype))

    def norm(vector, name):
        centred = vector - vector.mean()
        scale = (centred.square().mean() + 1e-5).sqrt()
        return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]

    def bilinear(plane, row, column):
        """Zero outside; plane is (channels, rows, columns)."""
        top, left = math.floor(row), math.floor(column)
        out = plane.new_zeros(len(plane))
        for r, p in ((top, 1 - (row - top)), (top + 1, row - top)):
            for c, q in ((left, 1 - (column - left)), (left + 1, column - left)):
                if 0 <= r < plane.shape[1] and 0 <= c < plane.shape[2]:
                    out += p * q * plane[:, r, c]
        return out

    def parent(position, low, high):
        return position * (low - 1) / (high - 1)

    def convolve(planes, weight, i, j, depthwise):
        """A zero-padded convolution at one pixel."""
        out = planes.new_zeros(len(weight))
        size = weight.shape[-1]
        for u in range(size):
            for v in range(size):
                r, c = i + u - size // 2, j + v - size // 2
                if 0 <= r < high and 0 <= c < wide:
                    tap = weight[:, :, u, v]
                    out += tap[:, 0] * planes[:, r, c] if depthwise else tap @ planes[:, r, c]
        return out

    y = torch.zeros(b, channels, high, wide, dtype=x.dtype)
    pixels = [(i, j) for i in range(high) for j in range(wide)]
    for sample in range(b):
        key, low_query = torch.zeros(2, d, h, w, dtype=x.dtype)
        for i in range(h):
            for j in range(w):
                normed = norm(x[sample, :, i, j], "norm")
                key[:, i, j] = state["key.weight"][:, :, 0, 0] @ normed
                low_query[:, i, j] = state["query.weight"][:, :, 0, 0] @ normed
        query = torch.zeros(d, high, wide, dtype=x.dtype)
        for i, j in pixels:
            query[:, i, j] = bilinear(low_query, parent(i, h, high), parent(j, w, wide))
        keys = torch.zeros(k * k, d, high, wide, dtype=x.dtype)
        values = torch.zeros(k * k, channels, high, wide, dtype=x.dtype)
        for g in range(groups):
            mine = slice(g * d // groups, (g + 1) * d // groups)
            theirs = slice(g * channels // groups, (g + 1) * channels // groups)
            hidden = torch.zeros(d // groups, high, wide, dtype=x.dtype)
            for i, j in pixels:
                z = norm(convolve(query[mine], state["offsets.depthwise.weight"], i, j, True), "offsets.norm")
                hidden[:, i, j] = 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
            for i, j in pixels:
                learned = state["offsets.conv.bias"] + convolve(hidden, state["offsets.conv.weight"], i, j, False)
                for n in range(k * k):
                    down = reach * math.tanh(learned[2 * n]) + n // k - k // 2
                    across = reach * math.tanh(learned[2 * n + 1]) + n % k - k // 2
                    row, column = parent(i + down, h, high), parent(j + across, w, wide)
                    keys[n, mine, i, j] = bilinear(key[mine], row, column)
                    values[n, theirs, i, j] = bilinear(x[sample, theirs], row, column)
        for i, j in pixels:
            for head in range(heads):
                part = slice(head * d // heads, (head + 1) * d // heads)
                block = slice(head * channels // heads, (head + 1) * channels // heads)
                scaled = query[part, i, j] * (d // heads) ** -0.5
                logits = torch.stack([(scaled * (keys[n, part, i, j] + bias[head, n])).sum() for n in range(k * k)])
                kernel = logits.exp() / logits.exp().sum()
                y[sample, block, i, j] = sum(kernel[n] * values[n, block, i, j] for n in range(k * k))
    return y


OPTIONS = [
    # C, size, options: every option away from its default at least once
    (8, (2, 3), {"heads": 2, "groups": 1, "reduction_factor": 2}),
    (6, (3, 2), {"heads": 2, "groups": 3, "reduction_factor": 1, "kernel_size": 2, "encoder_kernel_size": 1}),
    (8, (1, 2), {"scale_factor": 3, "range_factor": 2.5, "encoder_kernel_size": 5}),
    (4, (2, 1), {"groups": 1, "kernel_size": 1, "relative_position_bias": False}),
    (4, (1, 1), {"groups": 1, "reduction_factor": 2, "range_factor": 0.0}),
]


@pytest.mark.parametrize(("channels", "size", "options"), OPTIONS)
def test_against_the_slow_loop(channels, size, options):
    torch.manual_seed(0)
    operator = redrawn(LDAAQU(channels, **options).double(), 1.0)
    x = torch.randn(1, channels, *size, dtype=torch.float64)
    want = slow_lda_aqu(
        x,
        operator,
        options.get("scale_factor", 2),
        options.get("kernel_size", 3),
        options.get("heads", 1),
        options.get("groups", 2),
        options.get("range_factor", 11),
    )
    torch.testing.assert_close(upsample(operator, x), want, rtol=0, atol=1e-12)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(upsample(operator, last), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{}, {"heads": 2, "groups": 1, "relative_position_bias": False}, {"kernel_size": 2, "scale_factor": 3}],
)
def test_gradients(options):
    # Redrawn: at the start all points are on the grid, where an interpolated value has a kink.
    torch.manual_seed(0)
    operator = redrawn(LDAAQU(8, **options).double(), 0.3)
    x = torch.randn(1, 8, 3, 2, dtype=torch.float64, requires_grad=True)
    inputs = (x, *operator.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: upsample(operator, x), inputs, fast_mode=True)


def test_gradients_of_some_inputs_only():
    torch.manual_seed(0)
    operator = redrawn(LDAAQU(8).double(), 0.3)
    x = torch.randn(1, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    everything = dict(zip(["x", *dict(operator.named_parameters())],
                          torch.autograd.grad(upsample(operator, x).sum(), (x, *operator.parameters())),
                          strict=True))  # fmt: skip
    for name, parameter in operator.named_parameters():
        operator.requires_grad_(False)
        parameter.requires_grad_()
        (alone,) = torch.autograd.grad(upsample(operator, x.detach()).sum(), parameter)
        torch.testing.assert_close(alone, everything[name], rtol=1e-9, atol=1e-12)
    operator.requires_grad_(False)
    (alone,) = torch.autograd.grad(upsample(operator, x).sum(), x)
    torch.testing.assert_close(alone, everything["x"], rtol=1e-9, atol=1e-12)


class TestLimitCases:
    @pytest.mark.parametrize("s", [1, 2, 3, 4])
    @pytest.mark.parametrize("size", [(5, 7), (1, 1), (2, 9)])
    def test_one_regular_neighbour_is_bilinear(self, s, size):
        operator = LDAAQU(8, kernel_size=1, scale_factor=s).double()
        x = torch.randn(2, 8, *size, dtype=torch.float64)
        want = F.interpolate(x, scale_factor=s, mode="bilinear", align_corners=True)
        torch.testing.assert_close(upsample(operator, x), want, rtol=0, atol=1e-12)

    def test_a_zero_query_averages_the_neighbours(self):
        operator = LDAAQU(8).double()
        nn.init.zeros_(operator.query.weight)
        x = torch.randn(1, 8, 5, 7, dtype=torch.float64)
        between = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        box = F.avg_pool2d(between, 3, stride=1)
        # At the rim a neighbour outside is half way to the zero beyond the border.
        torch.testing.assert_close(upsample(operator, x)[..., 1:-1, 1:-1], box, rtol=0, atol=1e-12)

    def test_a_negative_range_is_refused_and_zero_keeps_the_grid_regular(self):
        operator = redrawn(LDAAQU(8, range_factor=0.0), 1.0)
        offsets = operator.offsets(torch.randn(1, 2, 6, 4)).reshape(2, 9, 2, 6, 4)
        assert offsets[:, :, 0].unique().tolist() == [-1, 0, 1]
        assert torch.equal(offsets[0, :, 0, 0, 0], torch.tensor([-1.0] * 3 + [0.0] * 3 + [1.0] * 3))
        assert torch.equal(offsets[1, :, 1, 5, 3], torch.tensor([-1.0, 0.0, 1.0] * 3))

    def test_offsets_stay_in_range(self):
        operator = redrawn(LDAAQU(8, range_factor=2.0), 5.0)
        offsets = operator.offsets(torch.randn(3, 2, 6, 4))
        assert offsets.shape == (3, 36, 6, 4)
        assert 2.5 < offsets.abs().max() <= 3

    def test_float32_positions(self):
        operator, x = LDAAQU(8, kernel_size=1), torch.randn(1, 8, 33, 48)
        want = F.interpolate(x.double(), scale_factor=2, mode="bilinear", align_corners=True)
        torch.testing.assert_close(upsample(operator, x).double(), want, rtol=0, atol=5e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_keeps_float32_positions(self, dtype):
        # At the far end of 600 pixels a bfloat16 position would be off by a pixel, a float16 one by an eighth.
        operator = LDAAQU(8, kernel_size=1).to(dtype)
        x = torch.randn(1, 8, 2, 600).to(dtype)
        want = F.interpolate(x.double(), scale_factor=2, mode="bilinear", align_corners=True)
        y = upsample(operator, x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), want, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_kernels_can_be_looked_at():
    operator, x, seen = redrawn(LDAAQU(8, heads=2), 1.0), torch.randn(2, 8, 3, 4), []
    with torch.no_grad():
        handle = operator.kernels.register_forward_hook(lambda *args: seen.append(args[2]))
        upsample(operator, x)
        handle.remove()
    (kernels,) = seen
    assert kernels.shape == (2, 2 * 9, 6, 8)
    assert (operator.kernels.kernel_size, operator.kernels.groups) == (3, 2)
    torch.testing.assert_close(kernels.reshape(2, 2, 9, 6, 8).sum(2), torch.ones(2, 2, 6, 8))


def test_no_sampled_neighbour_is_kept():
    operator, kept = LDAAQU(64), {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = upsample(operator, torch.randn(2, 64, 16, 16, requires_grad=True))
    # Nine maps of values and nine of keys would be 11 times the output.
    assert sum(kept.values()) < 4 * y.numel() * y.element_size()


class TestOfficialWeights:
    def state(self, operator):
        state = {theirs: operator.get_parameter(mine) for theirs, mine in NAMES.items() if "table" in theirs}
        for theirs, mine in NAMES.items():
            for key, value in operator.state_dict().items():
                if key.startswith(f"{mine}."):
                    state[theirs + key.removeprefix(mine)] = value
        state["relative_position_bias_table"] = operator.position_bias.detach()[None, :, None]
        return {f"up.{key}": value.clone() for key, value in state.items()}

    @pytest.mark.parametrize("constant", [True, False])
    def test_loads_with_and_without_the_constant(self, constant):
        other, operator = redrawn(LDAAQU(8, heads=2), 1.0), LDAAQU(8, heads=2)
        state = self.state(other)
        assert state["up.relative_position_bias_table"].shape == (1, 2, 1, 9, 1)
        if constant:
            state["up.base_offset"] = torch.zeros(1, 18, 1, 1)
        operator.load_official_state_dict(state, prefix="up.")
        x = torch.randn(1, 8, 3, 4)
        assert torch.equal(upsample(operator, x), upsample(other, x))
        assert state["up.relative_position_bias_table"].ndim == 5

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"groups": 1}, "up.conv_offset.0.weight is (1, 1, 3, 3), this operator needs (2, 1, 3, 3)"),
            ({"heads": 2}, "up.relative_position_bias_table is (1, 9, 2), this operator needs (2, 9, 1)"),
            ({"relative_position_bias": False}, "'up.relative_position_bias_table', which this operator does not have"),
        ],
    )
    def test_weights_of_another_operator(self, options, message):
        state, operator = self.state(LDAAQU(8)), LDAAQU(8, **options)
        before = {key: value.clone() for key, value in operator.state_dict().items()}
        with pytest.raises(FadevizError, match=re.escape(message)):
            operator.load_official_state_dict(state, prefix="up.")
        assert all(torch.equal(value, before[key]) for key, value in operator.state_dict().items())

    @pytest.mark.parametrize("shape", [(9, 2), (1, 1, 2, 9, 2)])
    def test_a_position_bias_of_no_known_shape(self, shape):
        state = self.state(LDAAQU(8)) | {"up.relative_position_bias_table": torch.zeros(shape)}
        message = f"up.relative_position_bias_table is {shape}, this operator needs (1, 9, 2)"
        with pytest.raises(FadevizError, match=re.escape(message)):
            LDAAQU(8).load_official_state_dict(state, prefix="up.")

    def test_a_missing_weight(self):
        state = self.state(LDAAQU(8))
        del state["up.proj_k.weight"]
        with pytest.raises(FadevizError, match="nothing for 'key.weight' \\(1 of 10 missing\\)"):
            LDAAQU(8).load_official_state_dict(state, prefix="up.")


class TestCost:
    @pytest.mark.parametrize("c", [16, 64, 256])
    def test_parameters_by_formula(self, c):
        def count(**options):
            return sum(p.numel() for p in LDAAQU(c, **options).parameters())

        assert 8 * count() == 4 * c * c + 207 * c + 144  # C^2/2 + 25.875 C + 18
        assert count() - count(relative_position_bias=False) == 9 * c // 4
        d = c // 2
        general = 2 * c * d + 2 * c + 11 * d + 2 * 4 * (25 * d + 1) + 4 * d
        assert count(reduction_factor=2, groups=1, heads=2, kernel_size=2, encoder_kernel_size=5) == general

    def test_multiply_adds_by_formula(self):
        # Per high-resolution pixel: query 4D, depth-wise 9D, offsets 2*9*9*D, keys (4 + 1)*9*D, values (4 + 1)*9*C.
        assert LDAAQU(256).multiply_adds(64, 48) == 64 * 48 * (2 * 256 * 64 + 4 * ((4 + 9 + 162 + 45) * 64 + 45 * 256))
        general = LDAAQU(8, 2, 2, 3, 2, 5, 1, relative_position_bias=False)
        assert general.multiply_adds(1, 1) == 2 * 8 * 4 + 9 * ((4 + 9 + 8 * 25 + 5 * 4) * 4 + 5 * 4 * 8)

    def test_convolutions_as_counted_by_torch(self):
        operator, (h, w) = LDAAQU(32, relative_position_bias=False), (5, 3)
        for conv in (operator.offsets.depthwise, operator.offsets.conv):
            conv.register_forward_hook(lambda *_: None)  # else they run natively, where torch does not count
        with FlopCounterMode(display=False) as counter:
            upsample(operator, torch.randn(1, 32, h, w))
        sampling = 4 * h * w * (4 * 8 + 5 * 9 * (8 + 32))
        assert operator.multiply_adds(h, w) - sampling == counter.get_total_flops() // 2


class TestInitialisation:
    def check(self, operator):
        for module in (operator.query, operator.key, operator.offsets.depthwise):
            weight = module.weight
            taps = weight[0, 0].numel()
            bound = math.sqrt(6 / (taps * (weight.shape[0] + weight.shape[1])))
            assert 0.9 * bound < weight.abs().max() <= bound
        assert not operator.offsets.conv.weight.any()
        assert not operator.offsets.conv.bias.any()
        for norm in (operator.norm, operator.offsets.norm):
            assert (norm.weight == 1).all()
            assert not norm.bias.any()
        assert 0.017 < operator.position_bias.std().item() < 0.023

    def test_as_released(self):
        torch.manual_seed(0)
        self.check(LDAAQU(128))

    def test_reset_draws_them_again(self):
        torch.manual_seed(0)
        operator = redrawn(LDAAQU(128), 1.0)
        operator.reset_parameters()
        self.check(operator)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lda_aqu:reduction_factor=3", "8 channels do not divide by reduction_factor 3"),
        ("lda_aqu:groups=4", "8 channels over reduction_factor 4 are 2 query channels, .* into 4 groups"),
        ("lda_aqu:heads=3", "8 channels over reduction_factor 4 are 2 query channels, .* into 3 heads"),
        ("lda_aqu:encoder_kernel_size=2", "encoder_kernel_size is 2, it must be odd"),
        ("lda_aqu:range_factor=-1", "range_factor is -1, it must be 0 .* or more"),
        ("lda_aqu:range_factor=far", "range_factor is 'far'; it must be a number"),
        ("lda_aqu:reduction_factor=16", "8 channels do not divide by reduction_factor 16"),
    ],
)
def test_options_that_do_not_fit(text, message):
    name, options = parse_upsampler(text)
    with pytest.raises(FadevizError, match=message):
        build_upsampler(name, 8, **options)
