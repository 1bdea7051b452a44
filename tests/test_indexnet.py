"""IndexNet: the authors' numbers, its definition in plain loops, and the index map's way through a decoder."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fadeviz import FadevizError
from fadeviz.models import build_network
from fadeviz.upsamplers import IndexNet, Skip, build_upsampler
from oracles import FORMATS, check_case, close, load, official_parameters

KINDS = ["hin", "o2o", "m2o"]
FOUR = {f"indexnet{q}.0": f"index.branches.{q - 1}.strided" for q in (1, 2, 3, 4)}
CASES = {
    "indexnet_hin_linear_c8": ({"indexnet": "index.branches.0.strided"}, {}),
    "indexnet_hin_nlctx_c8": (
        {
            "indexnet.0": "index.branches.0.strided",
            "indexnet.1": "index.branches.0.norm",
            "indexnet.3": "index.branches.0.point",
        },
        {"nonlinear": True, "context": True},
    ),
    "indexnet_o2o_linear_c8": (FOUR, {"kind": "o2o"}),
    "indexnet_m2o_linear_c8": (FOUR, {"kind": "m2o"}),
}


def randomised(channels, size=(3, 2), batch=2, skip_channels=None, **options):
    """An operator with drawn weights and BatchNorm statistics, x and an encoder feature, in float64."""
    torch.manual_seed(0)
    operator = IndexNet(channels, skip_channels=skip_channels, **options).double().eval()
    for name, value in operator.state_dict().items():
        if "num_batches" not in name:
            value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value))
    feature = torch.randn(batch, skip_channels or channels, 2 * size[0], 2 * size[1], dtype=torch.float64)
    return operator, torch.randn(batch, channels, *size, dtype=torch.float64), feature


class TestOracles:
    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("memory_format", FORMATS)
    def test_both_outputs_and_their_gradients(self, case, memory_format):
        names, options = CASES[case]
        second = ("pool", lambda operator, x, feature: operator.pool(feature)[0])
        check_case(case, "indexnet", names, memory_format, second, **options)

    @pytest.mark.parametrize("case", CASES)
    def test_index_maps(self, case):
        names, options = CASES[case]
        operator, t = check_case(case, "indexnet", names, **options)
        _, index = operator.pool(t["skip"])
        close(index[:1], t["index_decoder"], 1e-6)
        encoder = operator.guide(Skip(torch.ones_like(t["skip"]), index))[:1]
        close(encoder, t["index_encoder"].expand_as(encoder), 1e-6)

    def test_state_dicts_that_do_not_fit(self):
        _, t = load("indexnet_hin_linear_c8")
        state = official_parameters(t)
        with pytest.raises(FadevizError, match="has 'indexnet2.0.weight', which this operator does not have"):
            IndexNet(8).load_official_state_dict({**state, "indexnet2.0.weight": torch.zeros(8, 1, 2, 2)})
        with pytest.raises(
            FadevizError, match=r"indexnet.weight is \(4, 8, 2, 2\), this operator needs \(4, 8, 4, 4\)"
        ):
            IndexNet(8, context=True).load_official_state_dict(state)
        with pytest.raises(FadevizError, match=r"nothing for 'index.branches.1.strided.weight' \(3 of 4 missing\)"):
            IndexNet(4, kind="o2o").load_official_state_dict({"indexnet1.0.weight": torch.zeros(4, 1, 2, 2)})

    @pytest.mark.parametrize("kind", ["o2o", "m2o"])
    def test_four_nonlinear_branches_go_where_they_belong(self, kind):
        operator, *_ = randomised(2, kind=kind, nonlinear=True)
        official = {}
        for q, branch in enumerate(operator.index.branches):
            for number, module in ((0, branch.strided), (1, branch.norm), (3, branch.point)):
                official |= {f"net.indexnet{q + 1}.{number}.{key}": v.clone() for key, v in module.state_dict().items()}
        other = IndexNet(2, kind=kind, nonlinear=True).double()
        other.load_official_state_dict({**official, "head.weight": torch.zeros(1)}, prefix="net.")
        for key, value in operator.state_dict().items():
            assert torch.equal(other.state_dict()[key], value), key


def slow_index_map(operator, e, kind, nonlinear, context):
    """Z at every low-resolution pixel, window by window; then the sigmoid, spread over the 2x2 blocks."""
    b, channels, high, wide = e.shape
    k, padding = (4, 1) if context else (2, 0)
    maps = 1 if kind == "hin" else channels
    state = operator.state_dict()
    index = e.new_zeros(b, maps, high, wide)
    for n in range(b):
        for i in range(high // 2):
            for j in range(wide // 2):
                window = e.new_zeros(channels, k, k)
                for u in range(k):
                    for v in range(k):
                        row, column = 2 * i + u - padding, 2 * j + v - padding
                        if 0 <= row < high and 0 <= column < wide:
                            window[:, u, v] = e[n, :, row, column]
                for q in range(1 if kind == "hin" else 4):
                    name = f"index.branches.{q}"
                    weight = state[f"{name}.strided.weight"]
                    if kind == "o2o":
                        z = (weight[:, 0] * window).sum((1, 2))
                    else:
                        z = torch.stack([(weight[o] * window).sum() for o in range(len(weight))])
                    if nonlinear:
                        deviation = (state[f"{name}.norm.running_var"] + 1e-5).sqrt()
                        z = (z - state[f"{name}.norm.running_mean"]) / deviation
                        z = (z * state[f"{name}.norm.weight"] + state[f"{name}.norm.bias"]).clamp(0, 6)
                        point = state[f"{name}.point.weight"][:, :, 0, 0]
                        z = point[:, 0] * z if kind == "o2o" else point @ z
                    if kind == "hin":
                        for p in range(4):
                            index[n, 0, 2 * i + p // 2, 2 * j + p % 2] = 1 / (1 + (-z[p]).exp())
                    else:
                        index[n, :, 2 * i + q // 2, 2 * j + q % 2] = 1 / (1 + (-z).exp())
    return index


class TestDefinition:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("nonlinear", [False, True])
    @pytest.mark.parametrize("context", [False, True])
    @pytest.mark.parametrize("size", [(3, 2), (1, 1)])
    def test_against_the_slow_loop(self, kind, nonlinear, context, size):
        operator, x, e = randomised(3, size, kind=kind, nonlinear=nonlinear, context=context)
        index = slow_index_map(operator, e, kind, nonlinear, context)
        pooled, got = operator.pool(e)
        torch.testing.assert_close(got, index, rtol=0, atol=1e-12)
        want, mean, guide = torch.zeros_like(e), torch.zeros_like(x), torch.zeros_like(e)
        for i in range(2 * size[0]):
            for j in range(2 * size[1]):
                want[:, :, i, j] = index[:, :, i, j] * x[:, :, i // 2, j // 2]
                block = index[:, :, i // 2 * 2 : i // 2 * 2 + 2, j // 2 * 2 : j // 2 * 2 + 2].flatten(2)
                guide[:, :, i, j] = block.softmax(2)[:, :, i % 2 * 2 + j % 2] * e[:, :, i, j]
                mean[:, :, i // 2, j // 2] += guide[:, :, i, j]
        torch.testing.assert_close(pooled, mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(operator.guide(Skip(e, got)), guide, rtol=0, atol=1e-12)
        torch.testing.assert_close(operator.guide(Skip(e)), guide, rtol=0, atol=1e-12)
        torch.testing.assert_close(operator(x, Skip(e, got)), want, rtol=0, atol=1e-12)
        torch.testing.assert_close(operator(x, Skip(e)), want, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("skip_channels", [2, 5])
    def test_a_guide_of_other_channels(self, skip_channels):
        operator, x, e = randomised(3, skip_channels=skip_channels, nonlinear=True)
        index = slow_index_map(operator, e, "hin", True, False)
        want = index * F.interpolate(x, scale_factor=2, mode="nearest")
        torch.testing.assert_close(operator(x, Skip(e)), want, rtol=0, atol=1e-12)
        assert operator.pool(e)[0].shape == (2, skip_channels, 3, 2)
        with pytest.raises(FadevizError, match=f"to pool has 4 channels, {skip_channels} are needed. Build it with"):
            operator.pool(torch.zeros(2, 4, 6, 4))

    @pytest.mark.parametrize("kind", KINDS)
    def test_zero_weights_halve_and_average(self, kind):
        operator, x, e = randomised(4, kind=kind)
        for parameter in operator.parameters():
            nn.init.zeros_(parameter)
        pooled, index = operator.pool(e)
        torch.testing.assert_close(operator(x, Skip(e, index)), F.interpolate(x, scale_factor=2, mode="nearest") / 2)
        torch.testing.assert_close(pooled, F.avg_pool2d(e, 2))

    @pytest.mark.parametrize("kind", KINDS)
    def test_keeps_the_memory_format(self, kind):
        operator, x, e = randomised(4, size=(3, 5), kind=kind)
        for layout in FORMATS:
            feature = e.contiguous(memory_format=layout)
            pooled, index = operator.to(memory_format=layout).pool(feature)
            y = operator(x.contiguous(memory_format=layout), Skip(feature, index))
            assert pooled.is_contiguous(memory_format=layout)
            assert y.is_contiguous(memory_format=layout)


class TestInADecoder:
    @pytest.mark.parametrize("kind", KINDS)
    def test_gradients_go_through_the_handed_over_map(self, kind):
        operator, x, e = randomised(3, kind=kind, nonlinear=True)
        inputs = (e.requires_grad_(), *operator.parameters())
        handed = torch.autograd.grad(operator(x, Skip(e, operator.pool(e)[1])).sin().sum(), inputs)
        computed = torch.autograd.grad(operator(x, Skip(e)).sin().sum(), inputs)
        torch.testing.assert_close(handed, computed)
        assert all(grad.any() for grad in handed)

    def test_batch_norm_runs_once_a_step(self):
        model = build_network("segnet", "indexnet:nonlinear=true,context=true", width=0.125)
        calls = []
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda module, inputs, output: calls.append(module))
        model(torch.randn(2, 3, 64, 64)).square().sum().backward()
        norms = [stage.upsample.index.branches[0].norm for stage in model.decoder]
        for norm in norms:
            assert calls.count(norm) == 1
            assert norm.num_batches_tracked == 1
            assert norm.weight.grad.any()

    @pytest.mark.parametrize("kind", KINDS)
    def test_low_precision_keeps_its_dtype(self, kind):
        operator, x, e = randomised(8, kind=kind, nonlinear=True)
        want, _ = operator.pool(e)
        y = operator(x, Skip(e))
        for dtype in (torch.bfloat16, torch.float16):
            low = IndexNet(8, kind=kind, nonlinear=True).eval()
            low.load_state_dict(operator.state_dict())
            with torch.autocast("cpu", dtype):
                pooled, index = low.pool(e.to(dtype))
                up = low(x.to(dtype), Skip(e.to(dtype), index))
            assert pooled.dtype == up.dtype == low.guide(Skip(e.to(dtype), index)).dtype == dtype
            torch.testing.assert_close(pooled.double(), want, rtol=0.1, atol=0.1)
            torch.testing.assert_close(up.double(), y, rtol=0.1, atol=0.1)


class TestCost:
    # Channels and low-resolution sides.
    SEGNET = ((512, 7), (512, 14), (256, 28), (128, 56), (64, 112))
    SEGFORMER = tuple((256, side) for side in (16, 32, 64, 32, 64, 64))

    @pytest.mark.parametrize(
        ("network", "options", "millions", "billions"),
        [
            (SEGNET, {}, 0.0236, 0.024),
            (SEGNET, {"kind": "m2o"}, 9.765, 3.494),
            # The published difference is rounded to 30.65.
            (SEGFORMER, {"nonlinear": True, "context": True}, None, 30.646),
        ],
    )
    def test_published_rows(self, network, options, millions, billions):
        parameters = operations = 0
        for channels, side in network:
            operator = build_upsampler("indexnet", channels, **options)
            operations += operator.multiply_adds(side, side)
            parameters += sum(p.numel() for p in operator.parameters())
        if millions is None:
            assert parameters == 6 * (32 * 256**2 + 12 * 256)
            assert round(parameters / 1e6, 3) == 12.601
            assert round(operations / 1e9, 2) == 30.65
        else:
            assert round(parameters / 1e6, len(str(millions).partition(".")[2])) == millions
        assert round(operations / 1e9, 3) == billions

    @pytest.mark.parametrize("c", [8, 24])
    @pytest.mark.parametrize("k", [2, 4])
    def test_parameters_by_formula(self, c, k):
        def count(**options):
            return sum(p.numel() for p in IndexNet(c, context=k == 4, **options).parameters())

        assert count() == count(kind="o2o") == 4 * k * k * c
        assert count(kind="m2o") == 4 * k * k * c * c
        assert count(nonlinear=True) == 2 * k * k * c * c + 12 * c
        assert count(nonlinear=True, kind="o2o") == 4 * k * k * c + 12 * c
        assert count(nonlinear=True, kind="m2o") == 4 * k * k * c * c + 4 * c * c + 8 * c


class TestInitialisation:
    @pytest.mark.parametrize(
        ("options", "strided", "point"),
        [
            ({}, 2 / (4 * 4), None),
            ({"context": True, "nonlinear": True}, 2 / (16 * 256), 2 / 4),
            ({"kind": "m2o", "nonlinear": True}, 2 / (4 * 128), 2 / 128),
            ({"kind": "o2o", "context": True}, 2 / (16 * 128), None),
        ],
    )
    def test_variances(self, options, strided, point):
        torch.manual_seed(0)
        for branch in IndexNet(128, **options).index.branches:
            assert branch.strided.weight.var().item() == pytest.approx(strided, rel=0.15)
            if point is not None:
                assert branch.point.weight.var().item() == pytest.approx(point, rel=0.15)
                assert torch.equal(branch.norm.weight, torch.ones_like(branch.norm.weight))
                assert not branch.norm.bias.any()

    def test_reset_draws_again(self):
        operator = IndexNet(4, nonlinear=True)
        before = {key: value.clone() for key, value in operator.state_dict().items()}
        nn.init.constant_(operator.index.branches[0].norm.bias, 3)
        operator.reset_parameters()
        assert not torch.equal(operator.index.branches[0].strided.weight, before["index.branches.0.strided.weight"])
        assert torch.equal(operator.index.branches[0].norm.bias, before["index.branches.0.norm.bias"])


class TestErrors:
    @pytest.mark.parametrize("size", [(5, 4), (4, 5)])
    def test_odd_sizes_cannot_be_pooled(self, size):
        message = f"IndexNet: the feature to pool is {size[0]}x{size[1]}; indexed pooling needs even sides"
        with pytest.raises(FadevizError, match=message):
            IndexNet(2).pool(torch.zeros(1, 2, *size))

    def test_options(self):
        with pytest.raises(FadevizError, match="no kind 'm2m'. There are: hin, o2o, m2o"):
            build_upsampler("indexnet", 8, kind="m2m")
        for kind in ("o2o", "m2o"):
            with pytest.raises(
                FadevizError, match=f"skip_channels is 4, but {kind} has an index map for each of x's 8"
            ):
                build_upsampler("indexnet", 8, kind=kind, skip_channels=4)

    def test_guides_and_maps_that_do_not_fit(self):
        operator, x = IndexNet(3, skip_channels=5), torch.zeros(1, 3, 4, 4)
        with pytest.raises(FadevizError, match="skip.feature is 8x9, but x is 4x4 .* 8x8 is needed"):
            operator(x, Skip(torch.zeros(1, 5, 8, 9)))
        with pytest.raises(FadevizError, match="skip.feature has 3 channels, but 5 are needed"):
            operator(x, Skip(torch.zeros(1, 3, 8, 8)))
        feature = torch.zeros(1, 5, 8, 8)
        with pytest.raises(FadevizError, match=r"skip.indices are \(1, 1, 4, 4\).* needs \(1, 1, 8, 8\)"):
            operator(x, Skip(feature, torch.zeros(1, 1, 4, 4)))
        with pytest.raises(FadevizError, match=r"skip.indices are \(1, 1, 8, 8\).* needs \(1, 3, 8, 8\)"):
            IndexNet(3, kind="o2o")(x, Skip(feature[:, :3], torch.zeros(1, 1, 8, 8)))
