"""Each operator's limit case, and the contract that every name of the table keeps."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fadeviz import FadevizError
from fadeviz.models import build_network
from fadeviz.upsamplers import (
    CARAFE,
    FADE,
    UPSAMPLERS,
    SemiShiftConv,
    Skip,
    build_upsampler,
    parse_upsampler,
    reassemble,
)
from fadeviz.upsamplers.deconv import Deconv
from fadeviz.upsamplers.pixel_shuffle import PixelShuffle

NAMES = list(UPSAMPLERS)


def case(name, channels=8, size=(5, 7), batch=2, dtype=torch.float32, seed=0, **options):
    """An operator, x, and the skip its own pooling makes."""
    torch.manual_seed(seed)
    operator = build_upsampler(name, channels, **options).to(dtype)
    s = operator.scale_factor
    feature = torch.randn(batch, channels, size[0] * s, size[1] * s, dtype=dtype)
    _, indices = operator.pool(feature)
    return operator, torch.randn(batch, channels, *size, dtype=dtype), Skip(feature, indices)


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    @pytest.mark.parametrize(("size", "batch"), [((5, 7), 2), ((1, 1), 1), ((4, 8), 1), ((9, 3), 3)])
    def test_shape_and_dtype(self, name, size, batch):
        operator, x, skip = case(name, size=size, batch=batch)
        y = operator(x, skip)
        assert y.shape == (batch, 8, size[0] * 2, size[1] * 2)
        assert y.dtype == x.dtype

    def test_pool_halves(self, name):
        operator, x, skip = case(name)
        pooled, _ = operator.pool(skip.feature)
        assert pooled.shape == x.shape

    def test_memory_format_does_not_change_values(self, name):
        operator, x, skip = case(name, dtype=torch.float64)
        y = operator(x, skip)
        last = torch.channels_last
        indices = None if skip.indices is None else skip.indices.contiguous(memory_format=last)
        operator = operator.to(memory_format=last)
        z = operator(x.contiguous(memory_format=last), Skip(skip.feature.contiguous(memory_format=last), indices))
        torch.testing.assert_close(y, z, rtol=1e-12, atol=1e-12)

    def test_gradcheck(self, name):
        operator, x, skip = case(name, channels=2, size=(3, 2), batch=1, dtype=torch.float64)
        feature = skip.feature.requires_grad_()

        def run(x, feature, *parameters):
            return operator(x, Skip(feature, skip.indices))

        parameters = list(operator.parameters())
        assert torch.autograd.gradcheck(run, (x.requires_grad_(), feature, *parameters), fast_mode=True)

    def test_samples_do_not_mix(self, name):
        operator, x, skip = case(name, batch=3, dtype=torch.float64)
        y = operator(x, skip)
        one = Skip(skip.feature[1:2], None if skip.indices is None else skip.indices[1:2])
        torch.testing.assert_close(operator(x[1:2], one), y[1:2], rtol=1e-12, atol=1e-12)

    def test_state_dict_round_trip(self, name):
        operator, x, skip = case(name, seed=0)
        other, *_ = case(name, seed=1)
        other.load_state_dict(operator.state_dict())
        assert torch.equal(operator(x, skip), other(x, skip))

    def test_autocast_bf16(self, name):
        operator, x, skip = case(name, size=(8, 8))
        y = operator(x, skip)
        with torch.autocast("cpu", torch.bfloat16):
            low = operator(x.bfloat16(), Skip(skip.feature.bfloat16(), skip.indices))
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), y, rtol=0.1, atol=0.1)

    def test_trains(self, name):
        operator, x, skip = case(name)
        operator(x.requires_grad_(), skip).square().sum().backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0
        for key, parameter in operator.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key

    def test_unknown_option(self, name):
        with pytest.raises(FadevizError, match=f"no option of {name} 'kernel_sise'"):
            build_upsampler(name, 8, kernel_sise=3)


def test_unknown_name_lists_nearest():
    with pytest.raises(FadevizError, match="no upsampler 'caraffe'. Nearest: 'carafe'"):
        build_upsampler("caraffe", 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pixel_shuffle:icnr=no", "icnr is 'no'; it must be true or false. Default: false"),
        ("pixel_shuffle:kernel_size=4", "kernel_size is 4, it must be odd"),
        ("carafe:groups=0", "groups is 0; it must be a whole number, 1 or more"),
        ("carafe:compressed_channels=-3", "compressed_channels is -3"),
        ("carafe:encoder_kernel_size=2", "encoder_kernel_size is 2, it must be odd"),
        ("fade:kernel_size=2.5", "kernel_size is 2.5; it must be a whole number"),
        ("fade:form=3", "form is 3; it must be a str"),
    ],
)
def test_option_values(text, message):
    name, options = parse_upsampler(text)
    with pytest.raises(FadevizError, match=message):
        build_upsampler(name, 8, **options)


def test_options_are_read():
    assert parse_upsampler("pixel_shuffle:icnr=True,kernel_size=5") == (
        "pixel_shuffle",
        {"icnr": True, "kernel_size": 5},
    )
    assert parse_upsampler("fade:form=h2l") == ("fade", {"form": "h2l"})
    with pytest.raises(FadevizError, match="every stage doubles, but carafe has scale_factor 4"):
        build_network("segnet", "carafe:scale_factor=4", width=0.125)


def test_parameter_count_by_formula():
    def count(name, c):
        return sum(p.numel() for p in build_upsampler(name, c).parameters())

    for c in (16, 64, 256):
        assert count("carafe", c) == 64 * c + 57_764
        assert count("fade", c) == 129 * c + 14_490
        assert count("deconv", c) == 9 * c * c + c
        assert count("pixel_shuffle", c) == 36 * c * c + 4 * c
        assert count("nearest", c) == count("bilinear", c) == count("max_unpool", c) == 0


def slow_reassemble(x, kernels, k, s, groups):
    b, c, h, w = x.shape
    y = x.new_zeros(b, c, h * s, w * s)
    for n in range(c):
        g = n // (c // groups)
        for i in range(h * s):
            for j in range(w * s):
                for u in range(k):
                    for v in range(k):
                        row, column = i // s + u - k // 2, j // s + v - k // 2
                        if 0 <= row < h and 0 <= column < w:
                            y[:, n, i, j] += kernels[:, (g * k + u) * k + v, i, j] * x[:, n, row, column]
    return y


class TestReassemble:
    @pytest.mark.parametrize(
        ("k", "s", "groups", "size"),
        [(5, 2, 1, (5, 7)), (3, 2, 1, (4, 4)), (7, 3, 1, (6, 5)), (4, 2, 1, (5, 6)), (1, 2, 1, (3, 3)),
         (5, 1, 1, (9, 2)),
         (3, 4, 2, (5, 3)), (5, 2, 4, (1, 9))],
    )  # fmt: skip
    def test_against_the_slow_loop(self, k, s, groups, size):
        torch.manual_seed(0)
        x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
        kernels = torch.randn(2, groups * k * k, size[0] * s, size[1] * s, dtype=torch.float64, requires_grad=True)
        cotangent = torch.randn(2, 4, size[0] * s, size[1] * s, dtype=torch.float64)
        fast = reassemble(x, kernels, k, s, groups)
        slow = slow_reassemble(x, kernels, k, s, groups)
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
        got = torch.autograd.grad(fast, (x, kernels), cotangent)
        want = torch.autograd.grad(slow, (x, kernels), cotangent)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)

    def test_many_chunks_equal_unfold(self):
        # Large enough that tile rows and images fall into several chunks, with ragged tiles at the rim.
        torch.manual_seed(0)
        x = torch.randn(3, 32, 50, 43, dtype=torch.float64, requires_grad=True)
        kernels = torch.randn(3, 25, 100, 86, dtype=torch.float64, requires_grad=True)
        windows = F.unfold(x, 5, padding=2).view(3, 32, 25, 50, 43)
        windows = windows.repeat_interleave(2, 3).repeat_interleave(2, 4)
        plain = torch.einsum("bckhw,bkhw->bchw", windows, kernels)
        fast = reassemble(x, kernels, 5, 2)
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-11)
        cotangent = torch.randn_like(plain)
        got = torch.autograd.grad(fast, (x, kernels), cotangent)
        want = torch.autograd.grad(plain, (x, kernels), cotangent)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)

    def test_one_hot_centre_is_nearest_exactly(self):
        x = torch.randn(1, 3, 6, 5)
        kernels = torch.zeros(1, 25, 12, 10)
        kernels[:, 12] = 1
        assert torch.equal(reassemble(x, kernels, 5, 2), F.interpolate(x, scale_factor=2, mode="nearest"))

    def test_keeps_the_memory_format(self):
        x = torch.randn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last)
        y = reassemble(x, torch.rand(2, 9, 12, 10), 3, 2)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert reassemble(x.contiguous(), torch.rand(2, 9, 12, 10), 3, 2).is_contiguous()

    def test_gradient_of_x_alone_and_kernels_alone(self):
        x, kernels = torch.randn(1, 4, 5, 5), torch.rand(1, 9, 10, 10)
        both = torch.autograd.grad(reassemble(x.requires_grad_(), kernels.requires_grad_(), 3, 2).sum(), (x, kernels))
        assert torch.equal(torch.autograd.grad(reassemble(x, kernels.detach(), 3, 2).sum(), x)[0], both[0])
        assert torch.equal(torch.autograd.grad(reassemble(x.detach(), kernels, 3, 2).sum(), kernels)[0], both[1])

    def test_shapes_that_do_not_fit(self):
        with pytest.raises(FadevizError, match=r"kernels are \(1, 9, 10, 10\).*need \(1, 25, 10, 10\)"):
            reassemble(torch.zeros(1, 4, 5, 5), torch.zeros(1, 9, 10, 10), 5, 2)
        with pytest.raises(FadevizError, match="3 channels do not divide into 2 groups"):
            reassemble(torch.zeros(1, 3, 5, 5), torch.zeros(1, 18, 10, 10), 3, 2, groups=2)


class TestLimitCases:
    def test_nearest_and_average_pooling(self):
        operator, x, skip = case("nearest")
        assert torch.equal(F.avg_pool2d(operator(x, skip), 2), x)

    def test_bilinear_keeps_a_ramp(self):
        operator, x, skip = case("bilinear", size=(8, 8))
        ramp = torch.arange(8.0).expand(2, 8, 8, 8)
        y = operator(ramp, skip)
        torch.testing.assert_close(y[..., 1:-1], ((torch.arange(16) + 0.5) / 2 - 0.5)[1:-1].expand(2, 8, 16, 14))

    def test_pool_after_unpool_is_relu(self):
        operator, x, skip = case("max_unpool", size=(6, 5))
        assert torch.equal(F.max_pool2d(operator(x, skip), 2), x.clamp(min=0))

    def test_unpool_takes_the_first_of_equal_maxima(self):
        operator, _, _ = case("max_unpool", channels=1)
        feature = torch.ones(1, 1, 4, 4)
        _, indices = operator.pool(feature)
        assert indices.flatten().tolist() == [0, 2, 8, 10]

    def test_unpool_needs_indices(self):
        operator, x, skip = case("max_unpool")
        with pytest.raises(FadevizError, match="skip.indices are none"):
            operator(x, Skip(skip.feature))

    def test_deconv_with_a_box_of_ones_is_nearest(self):
        deconv = Deconv(3, kernel_size=2)
        with torch.no_grad():
            deconv.conv.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2))
            deconv.conv.bias.zero_()
        x = torch.randn(1, 3, 4, 5)
        torch.testing.assert_close(deconv(x, Skip(x)), F.interpolate(x, scale_factor=2, mode="nearest"))

    @pytest.mark.parametrize("k", [2, 3, 4, 5, 6])
    def test_deconv_doubles_for_every_kernel(self, k):
        assert Deconv(2, kernel_size=k)(torch.zeros(1, 2, 3, 4), Skip(torch.zeros(1))).shape == (1, 2, 6, 8)

    def test_deconv_refuses_a_kernel_that_leaves_holes(self):
        with pytest.raises(FadevizError, match="kernel_size 1 is smaller than scale_factor 2"):
            Deconv(2, kernel_size=1)

    def test_icnr_starts_without_a_checkerboard(self):
        x = torch.randn(1, 4, 5, 5)
        y = PixelShuffle(4, icnr=True)(x, Skip(x))
        assert torch.equal(y[..., ::2, ::2], y[..., 1::2, 1::2])
        plain = PixelShuffle(4)(x, Skip(x))
        assert not torch.allclose(plain[..., ::2, ::2], plain[..., 1::2, 1::2])

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
        with pytest.raises(FadevizError, match="skip.feature has 3 channels, 4 are needed"):
            FADE(4)(torch.zeros(1, 4, 2, 2), Skip(torch.zeros(1, 3, 4, 4)))

    def test_carafe_groups_must_divide(self):
        with pytest.raises(FadevizError, match="10 channels do not divide into 4 groups"):
            CARAFE(10, groups=4)


class TestSemiShift:
    @pytest.mark.parametrize("size", [(5, 7), (1, 1), (6, 3), (2, 9)])
    @pytest.mark.parametrize(("k", "k_e", "s"), [(5, 3, 2), (3, 3, 2), (7, 5, 2), (3, 1, 2), (5, 3, 3)])
    @pytest.mark.parametrize("bias_on", ["encoder", "decoder"])
    def test_both_forms_agree_borders_included(self, size, k, k_e, s, bias_on):
        torch.manual_seed(0)
        conv = SemiShiftConv(6, 4, k, s, 8, k_e, bias_on=bias_on).double()
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
        conv = SemiShiftConv(3, 3, 3, 2, 4).double()
        encoder, decoder = torch.randn(1, 3, 8, 10).double(), torch.randn(1, 3, 4, 5).double()
        a, d = conv.compressor_encoder(encoder), conv.compressor_decoder(decoder)
        w, bias = conv.content_encoder.weight, conv.content_encoder.bias
        at = (w * a[:, :, 4:7, 6:9]).sum((1, 2, 3)) + (w * d[:, :, 1:4, 2:5]).sum((1, 2, 3)) + 2 * bias
        torch.testing.assert_close(conv(encoder, decoder)[0, :, 5, 7], at, rtol=0, atol=1e-12)

    def test_where_the_bias_stands_matters_on_the_rim_only(self):
        torch.manual_seed(0)
        on_encoder, on_decoder = SemiShiftConv(3, 3).double(), SemiShiftConv(3, 3, bias_on="decoder").double()
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
            SemiShiftConv(3, 3, encoder_kernel_size=4)
        with pytest.raises(FadevizError, match="no form 'x2y'"):
            SemiShiftConv(3, 3, form="x2y")
        with pytest.raises(FadevizError, match="bias_on is 'both'"):
            SemiShiftConv(3, 3, bias_on="both")
