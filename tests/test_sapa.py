"""SAPA: golden numbers, a slow second implementation, limit cases, costs, messages."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import oracles
from fadeviz import FadevizError
from fadeviz.ops.reassemble import reassemble
from fadeviz.upsamplers import SAPAB, SAPAG, SAPAI, Skip, build_upsampler, sapa

NORMS = {"norm_y": "norm_encoder", "norm_x": "norm_decoder"}
MAPS = {**NORMS, "q": "query", "k": "key"}
GATED = {**NORMS, "qy": "query_encoder", "qx": "query_decoder", "k": "key", "gate": "gate.linear"}
CASES = {
    "sapa_i_c8": ("sapa_i", {}, {}),
    "sapa_i_ln_c8": ("sapa_i", NORMS, {"norm": "layer"}),
    "sapa_b_e32_c8": ("sapa_b", MAPS, {}),
    "sapa_b_e64_c8": ("sapa_b", MAPS, {"compressed_channels": 64}),
    "sapa_b_ext_gn_c32": ("sapa_b", MAPS, {"norm": "group"}),
    "sapa_g_e32_c8": ("sapa_g", GATED, {}),
}


def inside(operator, x, skip, part):
    """What the submodule ``part`` gives during a forward pass: exactly one map."""
    seen = []
    handle = operator.get_submodule(part).register_forward_hook(lambda module, args, output: seen.append(output))
    operator(x, skip)
    handle.remove()
    assert len(seen) == 1
    return seen[0]


class TestGoldenNumbers:
    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("memory_format", oracles.FORMATS)
    def test_outputs_and_gradients(self, case, memory_format):
        name, names, options = CASES[case]
        operator, t = oracles.check_case(case, name, names, memory_format, **options)
        for part in ("kernels", "gate"):
            if part in t:
                oracles.close(inside(operator, t["x"], Skip(t["skip"]), part)[:1], t[part], 1e-6)

    def test_the_gate_is_looked_at(self):
        assert "gate" in oracles.load("sapa_g_e32_c8")[1]


def drawn(name, channels, **options):
    """An operator in float64 with every parameter drawn: at the start biases are 0 and would hide a mistake."""
    torch.manual_seed(0)
    operator = build_upsampler(name, channels, **options).double()
    for parameter in operator.parameters():
        nn.init.normal_(parameter, std=0.5)
    return operator


def draw(operator, channels, size, skip_channels=None, batch=1):
    torch.manual_seed(1)
    s = operator.scale_factor
    feature = torch.randn(batch, skip_channels or channels, s * size[0], s * size[1], dtype=torch.float64)
    return torch.randn(batch, channels, *size, dtype=torch.float64), Skip(feature)


def slow_norm(z, norm, groups=None):
    """z (C, h, w) normalised over the channels of a pixel, or over groups of channels of the whole map."""
    channels, h, w = z.shape
    out = z.clone()
    for n in range(channels):
        for i in range(h):
            for j in range(w):
                if groups is None:
                    seen = [z[m, i, j].item() for m in range(channels)]
                else:
                    first = n // (channels // groups) * (channels // groups)
                    seen = z[first : first + channels // groups].flatten().tolist()
                mean = sum(seen) / len(seen)
                variance = sum((v - mean) ** 2 for v in seen) / len(seen)
                out[n, i, j] = (z[n, i, j] - mean) / math.sqrt(variance + 1e-5) * norm.weight[n] + norm.bias[n]
    return out


def slow_map(z, linear):
    weight = linear.weight.reshape(len(linear.weight), -1)
    return (weight[:, :, None, None] * z[None]).sum(1) + linear.bias[:, None, None]


def slow_nearest(z, s):
    channels, h, w = z.shape
    out = torch.zeros(channels, s * h, s * w, dtype=z.dtype)
    for i in range(s * h):
        for j in range(s * w):
            out[:, i, j] = z[:, i // s, j // s]
    return out


def slow_sapa(x, query, key, k, s):
    """One sample of the definition, a pixel at a time."""
    channels, h, w = x.shape
    y = torch.zeros(channels, s * h, s * w, dtype=x.dtype)
    for i in range(s * h):
        for j in range(s * w):
            window = [(i // s + u - k // 2, j // s + v - k // 2) for u in range(k) for v in range(k)]
            inner = [0 <= row < h and 0 <= column < w for row, column in window]
            logits = [
                (query[:, i, j] * key[:, row, column]).sum().item() if ok else 0.0
                for (row, column), ok in zip(window, inner, strict=True)
            ]
            total = sum(math.exp(logit) for logit in logits)
            for (row, column), ok, logit in zip(window, inner, logits, strict=True):
                if ok:
                    y[:, i, j] += math.exp(logit) / total * x[:, row, column]
    return y


class TestAgainstTheSlowLoop:
    @pytest.mark.parametrize(
        ("k", "s", "size"),
        [(5, 2, (3, 2)), (3, 3, (2, 3)), (4, 2, (2, 3)), (3, 1, (3, 3)), (5, 2, (1, 1))],
    )
    @pytest.mark.parametrize("norm", ["none", "layer"])
    def test_sapa_i(self, k, s, size, norm):
        operator = drawn("sapa_i", 3, kernel_size=k, scale_factor=s, norm=norm)
        x, skip = draw(operator, 3, size)
        query, key = skip.feature[0], x[0]
        if norm == "layer":
            query, key = slow_norm(query, operator.norm_encoder), slow_norm(key, operator.norm_decoder)
        torch.testing.assert_close(operator(x, skip)[0], slow_sapa(x[0], query, key, k, s), rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("k", "s", "size"), [(5, 2, (3, 2)), (3, 3, (2, 2)), (4, 2, (2, 3)), (5, 2, (1, 1))])
    @pytest.mark.parametrize("norm", ["layer", "group", "none"])
    def test_sapa_b(self, k, s, size, norm):
        # 4 and 6 channels: gcd(32, C) is 4 groups of one channel, and 2 groups of three.
        operator = drawn("sapa_b", 4, kernel_size=k, scale_factor=s, norm=norm, compressed_channels=3, skip_channels=6)
        x, skip = draw(operator, 4, size, skip_channels=6)
        query, key = skip.feature[0], x[0]
        if norm != "none":
            groups = (2, 4) if norm == "group" else (None, None)
            query = slow_norm(query, operator.norm_encoder, groups[0])
            key = slow_norm(key, operator.norm_decoder, groups[1])
        slow = slow_sapa(x[0], slow_map(query, operator.query), slow_map(key, operator.key), k, s)
        torch.testing.assert_close(operator(x, skip)[0], slow, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("k", "s", "size"), [(5, 2, (3, 2)), (3, 3, (2, 2)), (4, 2, (2, 3)), (5, 2, (1, 1))])
    def test_sapa_g(self, k, s, size):
        operator = drawn("sapa_g", 4, kernel_size=k, scale_factor=s, compressed_channels=3, skip_channels=5)
        x, skip = draw(operator, 4, size, skip_channels=5)
        normalised = slow_norm(x[0], operator.norm_decoder)
        gate = slow_nearest(1 / (1 + (-slow_map(normalised, operator.gate.linear)).exp()), s)
        encoder = slow_map(slow_norm(skip.feature[0], operator.norm_encoder), operator.query_encoder)
        decoder = slow_map(slow_nearest(x[0], s), operator.query_decoder)
        query = gate * encoder + (1 - gate) * decoder
        slow = slow_sapa(x[0], query, slow_map(normalised, operator.key), k, s)
        torch.testing.assert_close(operator(x, skip)[0], slow, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(
        ("name", "options"),
        [("sapa_i", {"norm": "layer"}), ("sapa_b", {"norm": "group"}), ("sapa_g", {"scale_factor": 3})],
    )
    def test_gradients(self, name, options):
        operator = drawn(name, 4, kernel_size=3, **options)
        x, skip = draw(operator, 4, (2, 3), batch=2)

        def run(x, feature, *parameters):
            return operator(x, Skip(feature))

        inputs = (x.requires_grad_(), skip.feature.requires_grad_(), *operator.parameters())
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)

    @pytest.mark.parametrize(
        ("name", "options"),
        [("sapa_i", {"norm": "layer"}), ("sapa_b", {"norm": "group"}), ("sapa_b", {"norm": "none"}),
         ("sapa_g", {"scale_factor": 3, "skip_channels": 5})],
    )  # fmt: skip
    def test_memory_formats_and_batches(self, name, options):
        operator = drawn(name, 8, **options)
        x, skip = draw(operator, 8, (5, 3), operator.skip_channels if name != "sapa_i" else None, batch=3)
        y = operator(x, skip)
        last = Skip(skip.feature.contiguous(memory_format=torch.channels_last))
        mixed = operator(x, last)
        torch.testing.assert_close(mixed, y, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            operator(x.contiguous(memory_format=torch.channels_last), last), y, rtol=0, atol=1e-12
        )
        torch.testing.assert_close(operator(x[1:2], Skip(skip.feature[1:2])), y[1:2], rtol=0, atol=1e-12)


class TestLimitCases:
    def box(self, x, s=2):
        blurred = F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=True)
        return F.interpolate(blurred, scale_factor=s, mode="nearest")

    def test_a_zero_encoder_feature_is_a_box_blur(self):
        operator = drawn("sapa_i", 4)
        x, skip = draw(operator, 4, (5, 6))
        torch.testing.assert_close(operator(x, Skip(0 * skip.feature)), self.box(x), rtol=0, atol=1e-12)

    def test_a_large_encoder_feature_takes_the_most_similar_pixel(self):
        operator = drawn("sapa_i", 4, kernel_size=3)
        x, _ = draw(operator, 4, (5, 6))
        x = x / x.norm(dim=1, keepdim=True)  # then nothing is more similar to a pixel than itself
        feature = 1e4 * F.interpolate(x, scale_factor=2, mode="nearest")
        torch.testing.assert_close(operator(x, Skip(feature)), feature / 1e4, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("norm", ["layer", "group", "none"])
    def test_a_zero_query_is_a_box_blur(self, norm):
        operator = drawn("sapa_b", 4, norm=norm)
        x, skip = draw(operator, 4, (5, 6))
        nn.init.zeros_(operator.query.weight)
        nn.init.zeros_(operator.query.bias)
        torch.testing.assert_close(operator(x, skip), self.box(x), rtol=0, atol=1e-12)

    def test_gate_one_is_sapa_b(self):
        operator, other = drawn("sapa_g", 4), build_upsampler("sapa_b", 4).double()
        state = {key.replace("query_encoder", "query"): value for key, value in operator.state_dict().items()}
        other.load_state_dict({key: value for key, value in state.items() if key in other.state_dict()})
        x, skip = draw(operator, 4, (5, 6))
        nn.init.constant_(operator.gate.linear.bias, 60)
        torch.testing.assert_close(operator(x, skip), other(x, skip), rtol=0, atol=1e-12)

    def test_gate_zero_does_not_see_the_encoder(self):
        operator = drawn("sapa_g", 4)
        x, skip = draw(operator, 4, (5, 6))
        open_gate = operator(x, skip)
        nn.init.constant_(operator.gate.linear.bias, -60)
        y = operator(x, skip)
        torch.testing.assert_close(operator(x, Skip(skip.feature.flip(1))), y, rtol=0, atol=1e-12)
        parents = F.interpolate(y[..., ::2, ::2], scale_factor=2, mode="nearest")
        torch.testing.assert_close(parents, y, rtol=0, atol=1e-12)
        assert not torch.allclose(open_gate, y, atol=1e-3)

    def test_the_gate_is_between_0_and_1_and_of_the_low_resolution(self):
        operator = drawn("sapa_g", 4, scale_factor=3)
        x, skip = draw(operator, 4, (2, 3), batch=2)
        gate = inside(operator, x, skip, "gate")
        assert gate.shape == (2, 1, 6, 9)
        assert 0 < gate.min() < gate.max() < 1
        assert torch.equal(gate, F.interpolate(gate[..., ::3, ::3], scale_factor=3, mode="nearest"))

    @pytest.mark.parametrize("name", ["sapa_i", "sapa_b", "sapa_g"])
    def test_a_constant_map_stays_where_the_window_is_inside(self, name):
        operator = drawn(name, 4)
        _, skip = draw(operator, 4, (7, 8))
        y = operator(torch.full((1, 4, 7, 8), 3.0, dtype=torch.float64), skip)
        inner = y[..., 4:-4, 4:-4]
        torch.testing.assert_close(inner, torch.full_like(inner, 3.0), rtol=0, atol=1e-12)
        assert (y[..., 0, 0] < 3 - 1e-3).all()  # zeros from outside take their share


def test_reassembles_x_as_it_is():
    # The kernels of normalised maps do not change where x is scaled; what is reassembled does.
    operator = drawn("sapa_i", 4, norm="layer")
    x, skip = draw(operator, 4, (3, 4))
    kernels = inside(operator, x, skip, "kernels")
    torch.testing.assert_close(operator(x, skip), reassemble(x, kernels, 5, 2), rtol=0, atol=1e-12)
    torch.testing.assert_close(inside(operator, 1e3 * x, skip, "kernels"), kernels, rtol=0, atol=1e-3)


class TestStart:
    @pytest.mark.parametrize("norm", ["layer", "group", "none"])
    def test_sapa_b(self, norm):
        torch.manual_seed(0)
        operator = SAPAB(256, skip_channels=512, norm=norm)
        for layer in (operator.query, operator.key):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
            assert abs(layer.weight.mean().item()) < 1e-3
            assert not layer.bias.any()
        with torch.no_grad():
            for parameter in operator.parameters():
                parameter.fill_(7)
        operator.reset_parameters()
        assert operator.query.weight.std().item() == pytest.approx(0.02, rel=0.03)
        if norm != "none":
            for module in (operator.norm_encoder, operator.norm_decoder):
                assert (module.weight == 1).all()
                assert not module.bias.any()

    def test_sapa_g(self):
        torch.manual_seed(0)
        operator = SAPAG(512)
        for layer in (operator.query_encoder, operator.query_decoder, operator.key, operator.gate.linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not layer.bias.any()
        assert (operator.norm_encoder.weight == 1).all()
        assert not operator.norm_decoder.bias.any()

    def test_sapa_i(self):
        operator = SAPAI(4, norm="layer")
        nn.init.zeros_(operator.norm_encoder.weight)
        operator.reset_parameters()
        assert (operator.norm_encoder.weight == 1).all()


SEGNET = list(zip((512, 512, 256, 128, 64), (7, 14, 28, 56, 112), strict=True))
SEGFORMER = [(256, side) for side in (16, 32, 64, 32, 64, 64)]


class TestCost:
    @pytest.mark.parametrize(
        ("network", "name", "millions", "billions"),
        [
            (SEGNET, "sapa_i", 0, 0.306),
            (SEGNET, "sapa_b", 0.1004, 0.451),
            (SEGFORMER, "sapa_i", 0, 0.75),
            (SEGFORMER, "sapa_b", 0.10, 1.018),
            (SEGNET, "sapa_g", 0.1492, 0.506),
            (SEGFORMER, "sapa_g", 0.156, 1.145),
        ],
    )
    def test_tables(self, network, name, millions, billions):
        stages = [(build_upsampler(name, channels), side) for channels, side in network]
        parameters = sum(p.numel() for operator, _ in stages for p in operator.parameters())
        cost = sum(operator.multiply_adds(side, side) for operator, side in stages)
        for value, published in ((parameters / 1e6, millions), (cost / 1e9, billions)):
            digits = len(str(published).partition(".")[2])
            assert round(value, digits) == published

    @pytest.mark.parametrize("c", [16, 256])
    def test_formulas(self, c):
        def count(name, **options):
            return sum(p.numel() for p in build_upsampler(name, c, **options).parameters())

        assert count("sapa_i") == 0
        assert count("sapa_i", norm="layer") == 4 * c
        assert count("sapa_b") == 68 * c + 64
        assert count("sapa_b", norm="group") == 68 * c + 64
        assert count("sapa_b", norm="none") == 64 * c + 64
        assert count("sapa_b", compressed_channels=5, skip_channels=3) == (c + 3) * 7 + 10
        assert count("sapa_g") == 101 * c + 97
        assert count("sapa_g", compressed_channels=5, skip_channels=3) == 3 * 7 + c * 13 + 16

    @pytest.mark.parametrize(
        ("name", "options", "products"),
        [("sapa_i", {"kernel_size": 3}, 0), ("sapa_i", {"norm": "layer", "scale_factor": 3}, 0), ("sapa_b", {}, 0),
         ("sapa_b", {"norm": "group", "skip_channels": 6, "kernel_size": 3}, 0),
         ("sapa_g", {"skip_channels": 6, "scale_factor": 3}, 2 * 32)],
    )  # fmt: skip
    def test_what_runs(self, monkeypatch, name, options, products):
        """Matrix products as torch counts them, windows by their definition, and the mixing of the queries."""
        windows = 0

        def similarity(query, key, k, s):
            nonlocal windows
            windows += k * k * query.numel()
            return query.new_zeros(len(query), k * k, *query.shape[2:])

        def reassembled(x, kernels, logits, scale_factor):
            y = F.interpolate(x, scale_factor=scale_factor, mode="nearest")
            nonlocal windows
            windows += logits.shape[1] * y.numel()
            return y

        monkeypatch.setattr(sapa, "similarity", similarity)
        monkeypatch.setattr(sapa, "reassemble_logits", reassembled)
        operator = build_upsampler(name, 8, **options)
        s = operator.scale_factor
        feature = torch.zeros(1, options.get("skip_channels", 8), 5 * s, 3 * s)
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            operator(torch.zeros(1, 8, 5, 3), Skip(feature))
        total = flops.get_total_flops() // 2 + windows + products * 15 * s * s
        assert operator.multiply_adds(5, 3) == total


class TestMessages:
    @pytest.mark.parametrize(
        ("name", "norm", "message"),
        [
            ("sapa_i", "group", "SAPAI: no norm 'group'. There are: none, layer"),
            ("sapa_b", "batch", "SAPAB: no norm 'batch'. There are: layer, group, none"),
        ],
    )
    def test_norm(self, name, norm, message):
        with pytest.raises(FadevizError, match=message):
            build_upsampler(name, 4, norm=norm)

    @pytest.mark.parametrize("operator", [SAPAI, SAPAB, SAPAG])
    def test_guides(self, operator):
        name = operator.__name__
        with pytest.raises(FadevizError, match=f"{name}: skip.feature is 31x48, but x is 16x24 .* 32x48 is needed"):
            operator(4)(torch.zeros(1, 4, 16, 24), Skip(torch.zeros(1, 4, 31, 48)))
        with pytest.raises(FadevizError, match=f"{name}: skip.feature has 3 channels, but 4 are needed"):
            operator(4)(torch.zeros(1, 4, 2, 2), Skip(torch.zeros(1, 3, 4, 4)))

    @pytest.mark.parametrize("operator", [SAPAB, SAPAG])
    def test_guides_of_other_channels(self, operator):
        with pytest.raises(FadevizError, match="skip.feature has 4 channels, but 3 are needed"):
            operator(4, skip_channels=3)(torch.zeros(1, 4, 2, 2), Skip(torch.zeros(1, 4, 4, 4)))

    def test_official_weights_that_do_not_fit(self):
        state = {"q.weight": torch.zeros(64, 8)}
        with pytest.raises(FadevizError, match=r"SAPAB: q.weight is \(64, 8\), this operator needs \(32, 8\)"):
            SAPAB(8).load_official_state_dict(state)
        with pytest.raises(FadevizError, match=r"q.weight is \(32, 8, 1, 1\), this operator needs \(32, 8\)"):
            SAPAB(8).load_official_state_dict({"q.weight": torch.zeros(32, 8, 1, 1)})
        with pytest.raises(FadevizError, match="SAPAG: the state dict has 'q.weight', which this operator does not"):
            SAPAG(8).load_official_state_dict(state)
        with pytest.raises(FadevizError, match="SAPAG: the state dict has nothing for 'gate.linear.bias' .11 of 12"):
            SAPAG(8).load_official_state_dict({"gate.weight": torch.zeros(1, 8)})
