"""Each operator's limit case, and the contract that every name of the table keeps."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fadeviz import FadevizError
from fadeviz.models import build_network
from fadeviz.upsamplers import (
    UPSAMPLERS,
    Skip,
    build_upsampler,
    parse_upsampler,
)
from fadeviz.upsamplers.deconv import Deconv
from fadeviz.upsamplers.pixel_shuffle import PixelShuffle

NAMES = list(UPSAMPLERS)


def case(name, channels=8, size=(5, 7), batch=2, dtype=torch.float32, seed=0, **options):
    """An operator, x, and the skip its own pooling makes, with indices that are constants."""
    torch.manual_seed(seed)
    operator = build_upsampler(name, channels, **options).to(dtype)
    s = operator.scale_factor
    feature = torch.randn(batch, channels, size[0] * s, size[1] * s, dtype=dtype)
    with torch.no_grad():
        _, indices = operator.pool(feature)
    return operator, torch.randn(batch, channels, *size, dtype=dtype), Skip(feature, indices)


def pool_and_upsample(operator, x, feature):
    """Both halves, as a network runs them: the indices are a function of the feature and of the parameters."""
    _, indices = operator.pool(feature)
    return operator(x, Skip(feature, indices))


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    @pytest.mark.parametrize(("size", "batch"), [((5, 7), 2), ((1, 1), 1), ((4, 8), 1), ((9, 3), 3)])
    def test_shape_and_dtype(self, name, size, batch):
        operator, x, skip = case(name, size=size, batch=batch)
        y = operator(x, skip)
        assert y.shape == (batch, 8, size[0] * 2, size[1] * 2)
        assert y.dtype == x.dtype

    def test_empty_batch(self, name):
        operator, x, skip = case(name)
        feature = skip.feature[:0]
        _, indices = operator.eval().pool(feature)
        assert operator(x[:0], Skip(feature, indices)).shape == (0, 8, 10, 14)

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
        operator, x, skip = case(name, size=(3, 2), batch=1, dtype=torch.float64)
        operator.eval()
        # Away from the initial weights: zeros hide mistakes, and a regular grid samples on the kinks of interpolation.
        with torch.no_grad():
            for parameter in operator.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))

        def run(x, feature, *parameters):
            return pool_and_upsample(operator, x, feature)

        inputs = (x.requires_grad_(), skip.feature.requires_grad_(), *operator.parameters())
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)

    def test_samples_do_not_mix(self, name):
        operator, x, skip = case(name, batch=3, dtype=torch.float64)
        operator.eval()
        y = pool_and_upsample(operator, x, skip.feature)
        one = pool_and_upsample(operator, x[1:2], skip.feature[1:2])
        torch.testing.assert_close(one, y[1:2], rtol=1e-12, atol=1e-12)

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

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_trains_under_autocast(self, name, dtype):
        operator, x, skip = case(name, size=(8, 8))
        x = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype):
            y = pool_and_upsample(operator, x, skip.feature.to(dtype))
        assert y.dtype == dtype
        y.float().square().mean().backward()
        for t in (x, *operator.parameters()):
            assert t.grad.dtype == t.dtype
            assert t.grad.isfinite().all()

    def test_trains(self, name):
        operator, x, skip = case(name)
        pool_and_upsample(operator, x.requires_grad_(), skip.feature).square().sum().backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0
        for key, parameter in operator.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key

    def test_a_network_trains_with_it(self, name):
        torch.manual_seed(0)
        model = build_network("segnet", name, width=0.125)
        images = torch.randn(2, 3, 64, 64)
        labels = (F.avg_pool2d(images[:, 0], 9, stride=1, padding=4) > 0).long()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        losses, moved = [], {}
        for _ in range(5):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            for stage in model.decoder:
                for key, parameter in stage.upsample.named_parameters():
                    assert parameter.grad is not None, key
                    assert parameter.grad.isfinite().all(), key
                    moved[key] = moved.get(key, False) or bool(parameter.grad.any())
        assert all(moved.values()), moved
        assert losses[-1] < losses[0]

    def test_multiply_adds_are_at_least_the_convolutions(self, name):
        operator, x, skip = case(name, size=(3, 5), batch=1)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            pool_and_upsample(operator, x, skip.feature)
        # Batched products are left out: tiles of a reassembly compute more than its definition has.
        matrix = {torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm}
        counted = (
            sum(n for operation, n in counter.get_flop_counts().get("Global", {}).items() if operation in matrix) // 2
        )
        stated = operator.multiply_adds(3, 5)
        assert isinstance(stated, int)
        assert stated >= counted
        assert counted > 0 or not any(parameter.dim() > 1 for parameter in operator.parameters())
        assert operator.multiply_adds(6, 5) >= stated

    def test_unknown_option(self, name):
        with pytest.raises(FadevizError, match=f"no option of {name} 'kernel_sise'"):
            build_upsampler(name, 8, kernel_sise=3)


def test_unknown_name_lists_nearest():
    with pytest.raises(FadevizError, match="no upsampler 'caraffe'. Nearest: 'carafe'"):
        build_upsampler("caraffe", 8)


def test_every_operator_says_where_it_is_from():
    for name, entry in UPSAMPLERS.items():
        if name in ("nearest", "bilinear", "bicubic"):
            assert (entry.year, entry.paper) == (0, "-")
        else:
            assert 2010 <= entry.year <= 2030, name
            assert len(entry.paper) > 5, name
        assert entry.title, name
        assert entry.needs in ("", "indices", "feature"), name


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
        ("fade:gate_bias=1e999", "gate_bias is inf; it must be a number"),
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
        assert count("nearest", c) == count("bilinear", c) == count("bicubic", c) == count("max_unpool", c) == 0


class TestLimitCases:
    def test_nearest_and_average_pooling(self):
        operator, x, skip = case("nearest")
        assert torch.equal(F.avg_pool2d(operator(x, skip), 2), x)

    def test_bilinear_keeps_a_ramp(self):
        operator, x, skip = case("bilinear", size=(8, 8))
        ramp = torch.arange(8.0).expand(2, 8, 8, 8)
        y = operator(ramp, skip)
        torch.testing.assert_close(y[..., 1:-1], ((torch.arange(16) + 0.5) / 2 - 0.5)[1:-1].expand(2, 8, 16, 14))

    @pytest.mark.parametrize("s", [2, 3])
    def test_bicubic_is_keys_convolution_with_clamped_borders(self, s):
        operator, x, skip = case("bicubic", size=(5, 4), channels=2, dtype=torch.float64, scale_factor=s)

        def matrix(length, a=-0.75):
            weights = torch.zeros(length * s, length, dtype=torch.float64)
            for i in range(length * s):
                at = (i + 0.5) / s - 0.5
                for k in range(math.floor(at) - 1, math.floor(at) + 3):
                    t = abs(at - k)
                    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
                    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
                    weights[i, min(max(k, 0), length - 1)] += near if t <= 1 else far
            return weights

        want = matrix(5) @ x @ matrix(4).T
        torch.testing.assert_close(operator(x, skip), want, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            operator(x, skip), F.interpolate(x, scale_factor=s, mode="bicubic", align_corners=False), rtol=0, atol=0
        )

    def test_bicubic_keeps_a_constant_and_the_slope_of_a_ramp(self):
        operator, x, skip = case("bicubic", size=(8, 8), dtype=torch.float64)
        constant = operator(torch.full_like(x, 3.7), skip)
        torch.testing.assert_close(constant, torch.full_like(constant, 3.7))
        inside = operator(torch.arange(8.0, dtype=torch.float64).expand_as(x), skip)[..., 3:-3]
        torch.testing.assert_close(inside[..., 2:] - inside[..., :-2], torch.ones_like(inside[..., 2:]))
        # Not straight: a = -0.75 puts the two pixels of a parent 3/64 too far in, and out.
        steps = inside[..., 1:] - inside[..., :-1]
        torch.testing.assert_close((steps - 0.5).abs(), torch.full_like(steps, 2 * 3 / 64))

    def test_interpolations_cost_their_taps(self):
        for name, taps in (("nearest", 0), ("bilinear", 4), ("bicubic", 16)):
            assert build_upsampler(name, 6).multiply_adds(3, 5) == taps * 6 * 4 * 15
            assert build_upsampler(name, 6, scale_factor=3).multiply_adds(3, 5) == taps * 6 * 9 * 15

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
        torch.testing.assert_close(deconv(x), F.interpolate(x, scale_factor=2, mode="nearest"))

    @pytest.mark.parametrize("k", [2, 3, 4, 5, 6])
    def test_deconv_doubles_for_every_kernel(self, k):
        assert Deconv(2, kernel_size=k)(torch.zeros(1, 2, 3, 4)).shape == (1, 2, 6, 8)

    def test_deconv_refuses_a_kernel_that_leaves_holes(self):
        with pytest.raises(FadevizError, match="kernel_size 1 is smaller than scale_factor 2"):
            Deconv(2, kernel_size=1)

    def test_icnr_starts_without_a_checkerboard(self):
        x = torch.randn(1, 4, 5, 5)
        y = PixelShuffle(4, icnr=True)(x)
        assert torch.equal(y[..., ::2, ::2], y[..., 1::2, 1::2])
        plain = PixelShuffle(4)(x)
        assert not torch.allclose(plain[..., ::2, ::2], plain[..., 1::2, 1::2])


UNGUIDED = [name for name, entry in UPSAMPLERS.items() if not entry.needs]
GUIDED = [name for name, entry in UPSAMPLERS.items() if entry.needs]


class TestSkip:
    """What an operator does with the encoder's hand-over: read it, do without it, or say in one line what is wrong."""

    @pytest.mark.parametrize("name", UNGUIDED)
    def test_may_be_left_out_where_it_is_not_read(self, name):
        operator, x, skip = case(name)
        assert torch.equal(operator(x), operator(x, skip))
        assert torch.equal(operator(x, None), operator(x, skip))

    @pytest.mark.parametrize("name", GUIDED)
    @pytest.mark.parametrize("call", [lambda op, x: op(x), lambda op, x: op(x, None), lambda op, x: op(x, skip=None)])
    def test_a_missing_one_is_named(self, name, call):
        operator, x, _ = case(name)
        with pytest.raises(FadevizError, match=r"^\w+: skip is missing; call it as operator\(x, Skip\(feature\)\)"):
            call(operator, x)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        ("cut", "message"),
        [
            (lambda f: f[..., :-1, :], "skip.feature is 9x14, but x is 5x7 and scale_factor is 2, so 10x14 is needed"),
            (lambda f: f[..., ::2, ::2], "skip.feature is 5x7, but x is 5x7"),
            (lambda f: f[:1], "skip.feature has batch size 1, but x has 2"),
            (lambda f: f[0], r"skip.feature is \(8, 10, 14\); a batch of maps"),
        ],
    )
    def test_one_that_cannot_be_right_is_refused(self, name, cut, message):
        operator, x, skip = case(name)
        if name == "max_unpool":  # odd sides and the indices have messages of their own
            message = "MaxUnpool: "
        with pytest.raises(FadevizError, match=message):
            operator(x[:, :, :4] if message == "MaxUnpool: " else x, Skip(cut(skip.feature), skip.indices))

    @pytest.mark.parametrize("name", NAMES)
    def test_a_bare_map_in_its_place_is_told(self, name):
        operator, x, skip = case(name)
        with pytest.raises(FadevizError, match=r"skip is a Tensor; call it as operator\(x, Skip\(feature\)\)"):
            operator(x, skip.feature)

    @pytest.mark.parametrize("name", NAMES)
    def test_shapes_without_values(self, name):
        """On the device meta, where tools work out shapes and memory."""
        operator, x, skip = case(name)
        indices = None if skip.indices is None else skip.indices.to("meta")
        out = operator.to("meta")(x.to("meta"), Skip(skip.feature.to("meta"), indices))
        assert out.device.type == "meta"
        assert out.shape == (2, 8, 2 * x.shape[2], 2 * x.shape[3])

    @pytest.mark.parametrize("name", NAMES)
    def test_a_single_map_for_x_is_told(self, name):
        operator, x, skip = case(name)
        with pytest.raises(FadevizError, match=r"x is \(8, 5, 7\)"):
            operator(x[0], skip)

    @pytest.mark.parametrize("name", [n for n in NAMES if list(build_upsampler(n, 8).parameters()) or n == "sapa_i"])
    def test_an_x_of_other_channels(self, name):
        operator, _, skip = case(name)
        x = torch.randn(2, 4, 5, 7)
        if name in ("indexnet", "a2u", "encoder_kernel"):  # their weights are of the encoder's map alone
            assert operator(x, skip).shape == (2, 4, 10, 14)
            return
        with pytest.raises(FadevizError, match=r"x has 4 channels, but in_channels is 8. Build it with in_channels=4"):
            operator(x, skip)

    @pytest.mark.parametrize("name", ["nearest", "bilinear", "deconv", "pixel_shuffle"])
    def test_fx_traces_what_has_no_decisions(self, name):
        operator, x, skip = case(name)
        assert torch.equal(torch.fx.symbolic_trace(operator)(x, skip), operator(x))


WIDER = {
    "a2u": {},
    "encoder_kernel": {},
    "fade": {"gate": "off"},
    "fade:gate=off": {"gate": "off"},
    "fade:gate=add": {"gate": "off"},
    "fade_lite": {"gate": "off"},
    "freqfusion": {},
    "indexnet": {},
    "indexnet:kind=m2o": {"kind": "hin"},
    "indexnet:kind=o2o": {"kind": "hin"},
    "sapa_b": {},
    "sapa_g": {},
    "semishift": {},
}
"""Operators that read the encoder, and the options with which they take a map of any width."""


class TestSkipChannels:
    def test_every_operator_that_reads_a_feature_is_here(self):
        readers = {name for name, entry in UPSAMPLERS.items() if entry.needs == "feature"}
        assert {text.split(":")[0] for text in WIDER} | {"sapa_i"} == readers

    @pytest.mark.parametrize("text", WIDER)
    def test_the_remedy_can_be_followed(self, text):
        name, options = parse_upsampler(text)
        x, skip = torch.randn(2, 8, 5, 7), Skip(torch.randn(2, 6, 10, 14))
        with pytest.raises(FadevizError, match="skip.feature has 6 channels, but 8 are needed") as error:
            build_upsampler(name, 8, **options)(x, skip)
        told = {"skip_channels": 6, **{key: value for key, value in WIDER[text].items() if options.get(key) != value}}
        assert all(f"{key}={value!r}" in str(error.value) for key, value in told.items())
        assert "project the feature with a 1x1 convolution" in str(error.value)
        assert build_upsampler(name, 8, **{**options, **told})(x, skip).shape == (2, 8, 10, 14)

    @pytest.mark.parametrize("text", [text for text, options in WIDER.items() if options and "off" not in text])
    def test_building_it_for_a_width_it_cannot_take(self, text):
        name, options = parse_upsampler(text)
        with pytest.raises(FadevizError, match="skip_channels is 6, but .* project the feature with a 1x1 convolution"):
            build_upsampler(name, 8, skip_channels=6, **options)

    def test_sapa_i_compares_channel_by_channel(self):
        assert build_upsampler("sapa_i", 8, skip_channels=8).in_channels == 8
        with pytest.raises(FadevizError, match=r"SAPAI: skip_channels is 6, .* Use SAPA-B"):
            build_upsampler("sapa_i", 8, skip_channels=6)
        operator, x, _ = case("sapa_i")
        with pytest.raises(FadevizError, match="Use SAPA-B with skip_channels=6, or project the feature"):
            operator(x, Skip(torch.randn(2, 6, 10, 14)))

    @pytest.mark.parametrize("text", [*WIDER, "sapa_i"])
    def test_the_default_is_the_width_of_x(self, text):
        name, options = parse_upsampler(text)
        torch.manual_seed(0)
        plain = build_upsampler(name, 8, **options).state_dict()
        torch.manual_seed(0)
        stated = build_upsampler(name, 8, skip_channels=8, **options).state_dict()
        assert list(plain) == list(stated)
        assert all(torch.equal(plain[key], stated[key]) for key in plain)

    @pytest.mark.parametrize(("name", "other"), [("fade", {}), ("fade_lite", {"depthwise": True})])
    def test_ungated_fade_of_another_width_is_semishift(self, name, other):
        fade = build_upsampler(name, 8, skip_channels=6, gate="off")
        semishift = build_upsampler("semishift", 8, skip_channels=6, **other)
        semishift.load_state_dict(fade.state_dict())
        x, skip = torch.randn(2, 8, 5, 7), Skip(torch.randn(2, 6, 10, 14))
        assert torch.equal(fade(x, skip), semishift(x, skip))
        assert fade.multiply_adds(5, 7) == semishift.multiply_adds(5, 7)


class TestPixelShuffleToOtherChannels:
    def test_is_the_convolution_and_the_shuffle(self):
        torch.manual_seed(0)
        operator = PixelShuffle(4, kernel_size=3, scale_factor=3, out_channels=6).double()
        x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
        y, z = operator(x), F.conv2d(x, operator.conv.weight, operator.conv.bias, padding=1)
        assert y.shape == (2, 6, 15, 21)
        for o in range(6):
            for a in range(3):
                for c in range(3):
                    torch.testing.assert_close(y[:, o, a::3, c::3], z[:, (o * 3 + a) * 3 + c])
        assert sum(p.numel() for p in operator.parameters()) == 9 * 4 * 6 * 9 + 6 * 9
        assert operator.multiply_adds(5, 7) == 35 * 9 * 4 * 6 * 9

    def test_by_default_as_many(self):
        torch.manual_seed(0)
        plain = PixelShuffle(4, icnr=True)
        torch.manual_seed(0)
        stated = PixelShuffle(4, icnr=True, out_channels=4)
        assert torch.equal(plain.conv.weight, stated.conv.weight)
        assert plain.out_channels == 4

    @pytest.mark.parametrize("network", ["segnet", "segformer", "matting"])
    def test_networks_keep_their_channels(self, network):
        if network != "segnet":
            pytest.importorskip("transformers")
        width = {} if network == "segformer" else {"width": 0.125}
        with pytest.raises(
            FadevizError, match="operators must keep the number of channels, but pixel_shuffle has out_channels 3"
        ):
            build_network(network, "pixel_shuffle:out_channels=3", **width)


class Decoder(nn.Module):
    """An operator as it stands in somebody's decoder: its guide's pooling and itself."""

    def __init__(self, text):
        super().__init__()
        name, options = parse_upsampler(text)
        torch.manual_seed(0)
        self.up = build_upsampler(name, 8, **options)
        with torch.no_grad():  # zeros and regular grids hide mistakes
            for parameter in self.up.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))

    def forward(self, x, feature):
        return self.up(x, Skip(feature, self.up.pool(feature)[1]))

    def inputs(self, batch, h, w, memory_format=torch.contiguous_format):
        s = self.up.scale_factor
        maps = torch.randn(batch, 8, h, w), torch.randn(batch, 8, s * h, s * w)
        return tuple(m.contiguous(memory_format=memory_format) for m in maps)

    def dimensions(self):
        s = self.up.scale_factor
        batch, h, w = (torch.export.Dim(name, min=1, max=512) for name in ("batch", "h", "w"))
        return {"x": {0: batch, 2: h, 3: w}, "feature": {0: batch, 2: s * h, 3: s * w}}


OPTIONS = [
    "a2u:shared=false",
    "carafe:groups=2,scale_factor=3,encoder_dilation=2",
    "dysample:scale_factor=3",
    "dysample:style=pl,dyscope=true",
    "encoder_kernel:scale_factor=4",
    "fade:form=h2l,gate=add",
    "fade:gate=off,bias_on=decoder",
    "freqfusion:comp_feat_upsample=false",
    "freqfusion:resample=true",
    "indexnet:kind=m2o",
    "indexnet:kind=o2o,nonlinear=true,context=true",
    "lda_aqu",
    "max_unpool:ceil_mode=true",
    "pixel_shuffle:icnr=true",
    "sapa_b:norm=group",
    "semishift:depthwise=true",
]


class TestExport:
    """Shapes stay shapes: one exported graph, or one compiled one, serves every batch and every size."""

    def check(self, text, strict, memory_format):
        net = Decoder(text).eval()
        with torch.no_grad():
            example = net.inputs(2, 5, 6, memory_format)
            program = torch.export.export(net, example, dynamic_shapes=net.dimensions(), strict=strict).module()
            # The last is smaller than the kernels, where a convolution has no inside.
            for batch, h, w in ((3, 7, 4), (1, 4, 9), (4, 2, 2)):
                inputs = net.inputs(batch, h, w, memory_format)
                torch.testing.assert_close(program(*inputs), net(*inputs), rtol=1e-4, atol=1e-5)

    # One neighbour in place of nine makes nine times as small a graph; all nine are below.
    @pytest.mark.parametrize("text", [name if name != "lda_aqu" else "lda_aqu:kernel_size=1" for name in NAMES])
    def test_batch_and_size_stay_open(self, text):
        self.check(text, False, torch.contiguous_format)

    @pytest.mark.slow
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize("text", sorted({*NAMES, *OPTIONS}))
    def test_with_every_tracer_format_and_option(self, text, strict, memory_format):
        self.check(text, strict, memory_format)

    @pytest.mark.parametrize("name", ["carafe", pytest.param("fade", marks=pytest.mark.slow)])
    def test_an_exported_file_is_read_again(self, name, tmp_path):
        net = Decoder(name).eval()
        program = torch.export.export(net, net.inputs(2, 5, 6), dynamic_shapes=net.dimensions())
        torch.export.save(program, tmp_path / "net.pt2")
        inputs = net.inputs(3, 4, 8)
        again = torch.export.load(tmp_path / "net.pt2").module()
        torch.testing.assert_close(again(*inputs), net(*inputs), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        "text", [*(pytest.param(n, marks=pytest.mark.slow) for n in sorted({*NAMES, *OPTIONS})), "dysample"]
    )
    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own compiler does
    def test_one_compiled_graph_serves_all(self, text):
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        net = Decoder(text).eval()
        torch._dynamo.reset()
        compiled = torch.compile(net, backend=backend, dynamic=True)
        with torch.no_grad():
            for batch, h, w in ((2, 5, 6), (3, 5, 6), (4, 5, 6), (2, 7, 6), (2, 8, 9), (5, 5, 9)):
                inputs = net.inputs(batch, h, w)
                torch.testing.assert_close(compiled(*inputs), net(*inputs), rtol=1e-4, atol=1e-5)
        torch._dynamo.reset()
        assert len(graphs) == 1
