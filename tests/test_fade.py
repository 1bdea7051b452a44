"""FADE, FADE-Lite, the semi-shift convolution, and the controls that take FADE apart."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import oracles
from fadeviz import FadevizError
from fadeviz.ops.reassemble import reassemble
from fadeviz.upsamplers import FADE, EncoderKernel, FADELite, SemiShift, SemiShiftConv, Skip, build_upsampler
from fadeviz.upsamplers.semishift import SemiShiftOptions

GENERATOR = {
    "ker_generator.compressor_en": "semi_shift.compressor_encoder",
    "ker_generator.compressor_de": "semi_shift.compressor_decoder",
    "ker_generator.content_encoder": "semi_shift.content_encoder",
}
GATED = {**GENERATOR, "gate_generator.conv": "gate.conv"}
CASES = {
    "fade_k5_c8": ("fade", GATED),
    "fade_lite_k5_c8": ("fade_lite", GATED),
    "semishift_up_k5_c8": ("semishift", GENERATOR),
}


def case(name, channels=8, size=(5, 7), batch=2, dtype=torch.float32, seed=0, **options):
    """An operator, x, and an encoder feature at its output's size."""
    torch.manual_seed(seed)
    operator = build_upsampler(name, channels, **options).to(dtype)
    s = operator.scale_factor
    skip = Skip(torch.randn(batch, channels, size[0] * s, size[1] * s, dtype=dtype))
    return operator, torch.randn(batch, channels, *size, dtype=dtype), skip


def redraw(operator, seed=1):
    """Weights and biases far from their initial values: biases start at 0 and would hide a mistake."""
    torch.manual_seed(seed)
    for parameter in operator.parameters():
        nn.init.normal_(parameter, std=0.5)
    return operator


def slow(operator, x, e, gated):
    """The definition, pixel by pixel."""
    s, k = operator.scale_factor, operator.kernel_size
    part = operator.semi_shift
    t, radius = part.content_encoder, part.content_encoder.kernel_size[0] // 2

    def compress(conv, map, i, j):
        if not (0 <= i < map.shape[1] and 0 <= j < map.shape[2]):
            return torch.zeros(conv.out_channels, dtype=map.dtype)
        out = conv.weight[:, :, 0, 0] @ map[:, i, j]
        return out if conv.bias is None else out + conv.bias

    def convolve(conv, map, i, j):
        out = t.bias.clone()
        for u in range(2 * radius + 1):
            for v in range(2 * radius + 1):
                z = compress(conv, map, i + u - radius, j + v - radius)
                out = out + (t.weight[:, 0, u, v] * z if t.groups > 1 else t.weight[:, :, u, v] @ z)
        return out

    y = torch.empty_like(e)
    for b in range(len(x)):
        for i in range(e.shape[2]):
            for j in range(e.shape[3]):
                logits = convolve(part.compressor_encoder, e[b], i, j)
                logits = logits + convolve(part.compressor_decoder, x[b], i // s, j // s)
                weights = logits.softmax(0)
                total = torch.zeros(x.shape[1], dtype=x.dtype)
                for u in range(k):
                    for v in range(k):
                        row, column = i // s + u - k // 2, j // s + v - k // 2
                        if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                            total = total + weights[u * k + v] * x[b, :, row, column]
                if gated:
                    conv = operator.gate.conv
                    g = (conv.weight[0, :, 0, 0] @ x[b, :, i // s, j // s] + conv.bias[0]).sigmoid()
                    total = g * e[b, :, i, j] + (1 - g) * total
                y[b, :, i, j] = total
    return y


@pytest.mark.parametrize("memory_format", oracles.FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_golden_numbers(name, memory_format):
    operator_name, names = CASES[name]
    operator, t = oracles.check_case(name, operator_name, names, memory_format)
    kernels = operator.kernels(*operator.semi_shift.parts(t["skip"], t["x"]))
    oracles.close(kernels[:1], t["kernels"], 1e-6)
    oracles.close(reassemble(t["x"], kernels, 5, 2)[:1], t["reassembled"], 1e-6)
    if "gate" in t:
        gate = operator.gate(t["x"])
        oracles.close(gate[:1], F.interpolate(t["gate"], size=gate.shape[-2:], mode="nearest"), 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_golden_numbers_of_the_high_to_low_form(name):
    operator_name, names = CASES[name]
    oracles.check_case(name, operator_name, names, form="h2l")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fade", {"kernel_size": 3, "compressed_channels": 6}),
        ("fade", {"scale_factor": 3, "kernel_size": 3, "compressed_channels": 5, "encoder_kernel_size": 5}),
        ("fade", {"kernel_size": 3, "compressed_channels": 2, "encoder_kernel_size": 1, "bias_on": "decoder"}),
        ("fade", {"kernel_size": 5, "compressed_channels": 3, "gate": "off"}),
        ("fade_lite", {"kernel_size": 3}),
        ("fade_lite", {"kernel_size": 3, "scale_factor": 3, "encoder_kernel_size": 5}),
        ("semishift", {"kernel_size": 3, "compressed_channels": 4}),
    ],
)
def test_against_the_slow_definition(name, options):
    for size in ((3, 4), (1, 1)):
        operator, x, skip = case(name, 3, size, dtype=torch.float64, batch=1, **options)
        redraw(operator)
        with torch.no_grad():
            want = slow(operator, x, skip.feature, getattr(operator, "gate", None) is not None)
            torch.testing.assert_close(operator(x, skip), want, rtol=1e-11, atol=1e-11)


class TestParts:
    def test_gate_one_is_the_encoder_gate_zero_the_reassembly(self):
        operator, x, skip = case("fade", dtype=torch.float64)
        nn.init.constant_(operator.gate.conv.bias, 60)
        torch.testing.assert_close(operator(x, skip), skip.feature, rtol=0, atol=1e-12)
        nn.init.constant_(operator.gate.conv.bias, -60)
        kernels = operator.kernels(operator.semi_shift(skip.feature, x))
        torch.testing.assert_close(operator(x, skip), reassemble(x, kernels, 5, 2), rtol=0, atol=1e-12)

    def test_fade_names_what_does_not_fit(self):
        with pytest.raises(FadevizError, match="skip.feature is 31x48, but x is 16x24 .* 32x48 is needed"):
            FADE(4)(torch.zeros(1, 4, 16, 24), Skip(torch.zeros(1, 4, 31, 48)))
        with pytest.raises(FadevizError, match="skip.feature has 3 channels, but 4 are needed"):
            FADE(4)(torch.zeros(1, 4, 2, 2), Skip(torch.zeros(1, 3, 4, 4)))

    def test_gate_off_is_semishift(self):
        operator, x, skip = case("fade", dtype=torch.float64, gate="off")
        redraw(operator)
        other, *_ = case("semishift", dtype=torch.float64)
        other.load_state_dict(operator.state_dict())
        assert torch.equal(operator(x, skip), other(x, skip))
        assert not any("gate" in name for name, _ in operator.named_modules())

    def test_gate_add(self):
        operator, x, skip = case("fade", dtype=torch.float64, gate="add")
        other, *_ = case("fade", dtype=torch.float64, gate="off")
        other.load_state_dict(operator.state_dict())
        torch.testing.assert_close(operator(x, skip), skip.feature + other(x, skip), rtol=1e-13, atol=1e-13)

    def test_gate_bias_is_where_the_gate_starts(self):
        operator, x, skip = case("fade", gate_bias=-4)
        nn.init.zeros_(operator.gate.conv.weight)
        torch.testing.assert_close(operator.gate(x), torch.full((2, 1, 10, 14), 0.0179862), rtol=1e-5, atol=0)

    def test_what_a_gate_is_worth_looking_at(self):
        seen = []
        operator, x, skip = case("fade")
        operator.gate.register_forward_hook(lambda module, inputs, output: seen.append(output))
        operator.gate.conv.register_forward_hook(lambda module, inputs, output: seen.append(output))
        operator(x, skip)
        assert [tuple(s.shape) for s in seen] == [(2, 1, 5, 7), (2, 1, 10, 14)]
        torch.testing.assert_close(F.interpolate(seen[0].sigmoid(), scale_factor=2, mode="nearest"), seen[1])

    def test_options_that_contradict(self):
        with pytest.raises(FadevizError, match="gate is 'of'. There are: on, off, add"):
            FADE(4, gate="of")
        with pytest.raises(FadevizError, match="gate_bias is -4, but gate is 'off'"):
            FADE(4, gate="off", gate_bias=-4)
        with pytest.raises(FadevizError, match="with depthwise the compressed channels are kernel_size.2 = 25, not 7"):
            FADE(4, depthwise=True, compressed_channels=7)
        with pytest.raises(FadevizError, match="init is 'tiny'. There are: xavier, small"):
            FADELite(4, init="tiny")

    def test_lite_is_a_fifth(self):
        def count(operator):
            return sum(p.numel() for p in operator.parameters())

        for c in (16, 64, 256):
            assert count(FADELite(c)) == 51 * c + 276
            assert count(SemiShift(c)) == 128 * c + 14_489
            assert count(EncoderKernel(c)) == 64 * c + 14_489


class TestInitialisation:
    @pytest.mark.parametrize("name", ["fade", "fade_lite", "semishift"])
    def test_xavier(self, name):
        operator, *_ = case(name, channels=256)
        conv = operator.semi_shift.compressor_encoder
        bound = (6 / (conv.in_channels + conv.out_channels)) ** 0.5
        assert conv.weight.abs().max() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not any(p.any() for key, p in operator.named_parameters() if key.endswith("bias"))

    def test_kernels_are_sharp_from_the_start(self):
        # Unlike CARAFE's, which start as box blurs (entropy above 0.999).
        operator, x, skip = case("fade", channels=256, size=(16, 16), batch=1)
        kernels = operator.kernels(*operator.semi_shift.parts(skip.feature, x))
        entropy = -(kernels * kernels.clamp(min=1e-30).log()).sum(1) / torch.log(torch.tensor(25.0))
        assert 0.4 < entropy.mean() < 0.9

    def test_small_starts_as_a_box_blur(self):
        for name in ("fade", "semishift", "encoder_kernel", "decoder_kernel"):
            operator, x, skip = case(name, channels=64, init="small", **({"gate": "off"} if name == "fade" else {}))
            box = F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=True)
            box = F.interpolate(box, scale_factor=2, mode="nearest")
            assert (operator(x, skip) - box).abs().max() < 0.05


class TestOneSided:
    def test_encoder_kernels_are_fades_without_the_decoder(self):
        fade, x, skip = case("semishift", dtype=torch.float64)
        redraw(fade)
        operator, *_ = case("encoder_kernel", dtype=torch.float64)
        state = fade.state_dict()
        operator.load_state_dict(
            {
                key.replace("semi_shift.", "").replace("compressor_encoder", "compressor"): value
                for key, value in state.items()
                if "decoder" not in key
            }
        )
        with torch.no_grad():
            fade.semi_shift.compressor_decoder.weight.zero_()
        # T's bias enters FADE twice, but softmax sees only differences between its channels.
        with torch.no_grad():
            operator.content_encoder.bias.mul_(2)
        torch.testing.assert_close(operator(x, skip), fade(x, skip), rtol=1e-11, atol=1e-11)

    def test_decoder_kernels_are_fades_without_the_encoder(self):
        fade, x, skip = case("semishift", dtype=torch.float64, bias_on="decoder")
        redraw(fade)
        operator, *_ = case("decoder_kernel", dtype=torch.float64)
        state = fade.state_dict()
        operator.load_state_dict(
            {
                key.replace("semi_shift.", "").replace("compressor_decoder", "compressor"): value
                for key, value in state.items()
                if "compressor_encoder" not in key
            }
        )
        with torch.no_grad():
            fade.semi_shift.compressor_encoder.weight.zero_()
            operator.content_encoder.bias.mul_(2)
        torch.testing.assert_close(operator(x, skip), fade(x, skip), rtol=1e-11, atol=1e-11)

    def test_limit_cases(self):
        operator, x, skip = case("decoder_kernel")
        y = operator(x, skip)
        assert torch.equal(y[..., ::2, ::2], y[..., 1::2, 1::2])
        operator, x, skip = case("encoder_kernel", size=(9, 9))
        flat = Skip(torch.full_like(skip.feature, 0.7))
        seen = []
        operator.kernels.register_forward_hook(lambda module, inputs, output: seen.append(output))
        operator(x, flat)
        inner = seen[0][..., 1:-1, 1:-1]
        torch.testing.assert_close(inner, inner[..., :1, :1].expand_as(inner))

    def test_guides_of_other_width(self):
        for name in ("encoder_kernel", "semishift"):
            operator = build_upsampler(name, 8, skip_channels=3)
            x, e = torch.randn(1, 8, 4, 5), torch.randn(1, 3, 8, 10)
            assert operator(x, Skip(e)).shape == (1, 8, 8, 10)
            with pytest.raises(FadevizError, match="skip.feature has 8 channels, but 3 are needed"):
                operator(x, Skip(torch.randn(1, 8, 8, 10)))


def test_official_weights_that_do_not_fit():
    _, t = oracles.load("fade_k5_c8")
    state = {f"decode_head.up1.{key}": value for key, value in oracles.official_parameters(t).items()}
    operator = FADE(8)
    before = {key: value.clone() for key, value in operator.state_dict().items()}
    message = "has 'decode_head.up1.[^']*', which this operator does not have.*give prefix="
    with pytest.raises(FadevizError, match=message):
        operator.load_official_state_dict(state)
    with pytest.raises(FadevizError, match="has nothing for 'gate.conv.bias' .7 of 7 missing"):
        operator.load_official_state_dict(state, prefix="head.")
    with pytest.raises(
        FadevizError, match=r"gate_generator.conv.weight is \(1, 8, 1, 1\), this operator needs \(1, 4, 1, 1\)"
    ):
        FADE(4).load_official_state_dict(state, prefix="decode_head.up1.")
    assert all(torch.equal(before[key], value) for key, value in operator.state_dict().items())
    operator.load_official_state_dict(state, prefix="decode_head.up1.")
    assert torch.equal(operator.gate.conv.weight, t["param.gate_generator.conv.weight"].float())


class TestSemiShift:
    @pytest.mark.parametrize("size", [(5, 7), (1, 1), (6, 3), (2, 9)])
    @pytest.mark.parametrize(("k", "k_e", "s"), [(5, 3, 2), (3, 3, 2), (7, 5, 2), (3, 1, 2), (5, 3, 3)])
    @pytest.mark.parametrize("bias_on", ["encoder", "decoder"])
    def test_both_forms_agree_borders_included(self, size, k, k_e, s, bias_on):
        torch.manual_seed(0)
        conv = SemiShiftConv(6, 4, SemiShiftOptions(k, s, 8, k_e, bias_on=bias_on)).double()
        for parameter in conv.parameters():
            nn.init.normal_(parameter)  # biases too: at initialisation they are 0 and would hide a difference
        encoder = torch.randn(2, 4, size[0] * s, size[1] * s, dtype=torch.float64, requires_grad=True)
        decoder = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
        outputs, grads = [], []
        for form in ("l2h", "h2l"):
            conv.form = form
            outputs.append(conv(encoder, decoder))
            grads.append(torch.autograd.grad(outputs[-1].sin().sum(), (encoder, decoder, *conv.parameters())))
        assert outputs[0].shape == (2, k * k, size[0] * s, size[1] * s)
        torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-11)
        torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-10)

    def test_against_the_definition_at_one_point(self):
        torch.manual_seed(0)
        conv = SemiShiftConv(3, 3, SemiShiftOptions(3, 2, 4)).double()
        encoder, decoder = torch.randn(1, 3, 8, 10).double(), torch.randn(1, 3, 4, 5).double()
        a, d = conv.compressor_encoder(encoder), conv.compressor_decoder(decoder)
        w, bias = conv.content_encoder.weight, conv.content_encoder.bias
        at = (w * a[:, :, 4:7, 6:9]).sum((1, 2, 3)) + (w * d[:, :, 1:4, 2:5]).sum((1, 2, 3)) + 2 * bias
        torch.testing.assert_close(conv(encoder, decoder)[0, :, 5, 7], at, rtol=0, atol=1e-12)

    def test_where_the_bias_stands_matters_on_the_rim_only(self):
        torch.manual_seed(0)
        on_encoder = SemiShiftConv(3, 3, SemiShiftOptions()).double()
        on_decoder = SemiShiftConv(3, 3, SemiShiftOptions(bias_on="decoder")).double()
        bias = torch.randn(64).double()
        state = on_encoder.state_dict()
        on_decoder.load_state_dict({**state, "compressor_decoder.bias": bias} | {}, strict=False)
        on_encoder.load_state_dict({**state, "compressor_encoder.bias": bias})
        encoder, decoder = torch.randn(1, 3, 16, 16).double(), torch.randn(1, 3, 8, 8).double()
        difference = (on_encoder(encoder, decoder) - on_decoder(encoder, decoder)).abs().amax((0, 1))
        assert difference[2:-2, 2:-2].max() < 1e-12
        assert difference[:2].max() > 0.1

    def test_bad_options(self):
        with pytest.raises(FadevizError, match="encoder_kernel_size is 4"):
            SemiShiftOptions(encoder_kernel_size=4)
        with pytest.raises(FadevizError, match="no form 'x2y'"):
            SemiShiftOptions(form="x2y")
        with pytest.raises(FadevizError, match="bias_on is 'both'"):
            SemiShiftOptions(bias_on="both")
