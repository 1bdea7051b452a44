"""U-Net: shapes, guides, parameters by hand, the same layers as SegNet, and what it refuses."""

import pytest
import torch
from torch.nn import functional as F

import fadeviz
from fadeviz import FadevizError
from fadeviz.experiment import RunConfig
from fadeviz.models import NETWORKS, SegNet, UNet, build_network
from fadeviz.models.costs import operator_cost
from fadeviz.upsamplers import UPSAMPLERS, Upsampler

CHANNELS = (512, 512, 256, 128, 64)
"""Of the operators and their guides, coarsest first."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small maps gain nothing from threads, and lose much to them where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def error_of(function, *arguments, **options):
    with pytest.raises(FadevizError) as caught:
        function(*arguments, **options)
    line = str(caught.value)
    assert len(line.splitlines()) == 1, line
    return line


class TestNetwork:
    @pytest.mark.parametrize("name", UPSAMPLERS)
    def test_every_parameter_learns(self, name):
        torch.manual_seed(0)
        model = UNet(name, classes=3, width=0.125)
        logits = model(torch.randn(2, 3, 64, 32))
        assert logits.shape == (2, 3, 64, 32)
        logits.square().sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            if ".upsample." not in key:  # those may rightly start at a point of rest
                assert parameter.grad.any(), key

    @pytest.mark.parametrize("name", UPSAMPLERS)
    @torch.no_grad()
    def test_guides(self, name):
        """Each operator gets the map before the pooling that it undoes, of its own channels and twice its size."""
        model, seen = UNet(name, width=0.125).eval(), []
        for stage in model.decoder:
            stage.upsample.register_forward_hook(lambda _, inputs, out: seen.append((*inputs, out)))
        assert model(torch.rand(1, 3, 32, 64)).shape == (1, 2, 32, 64)
        assert len(seen) == 5
        for i, (x, skip, out) in enumerate(seen):
            c, h, w = CHANNELS[i] // 8, 2**i, 2 * 2**i
            assert x.shape == (1, c, h, w)
            assert skip.feature.shape == out.shape == (1, c, 2 * h, 2 * w)
            if name == "max_unpool":
                assert torch.equal(skip.indices, F.max_pool2d(skip.feature, 2, return_indices=True)[1])

    @torch.no_grad()
    def test_what_a_stage_computes(self):
        """The encoder's map is concatenated with the operator's, which holds only what came up."""
        model, seen = UNet("nearest", width=0.125).eval(), []
        stage = model.decoder[2]
        stage.convs.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
        stage.upsample.register_forward_hook(lambda _, inputs, out: seen.append((*inputs, out)))
        model(torch.rand(1, 3, 32, 32))
        (x, skip, out), joined = seen
        assert torch.equal(out, x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
        assert torch.equal(joined, torch.cat([skip.feature, out], dim=1))

    @pytest.mark.parametrize("name", ["fade", "carafe", "max_unpool", "dysample"])
    @torch.no_grad()
    def test_channels_last_gives_the_same(self, name):
        torch.manual_seed(0)
        model = UNet(name, width=0.125).double().eval()
        x = torch.randn(2, 3, 32, 64, dtype=torch.float64)
        wanted = model(x)
        model = model.to(memory_format=torch.channels_last)
        got = model(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)

    def test_operators_differ_in_the_operator_alone(self):
        states = {}
        for name in UPSAMPLERS:
            torch.manual_seed(3)
            whole = UNet(name, width=0.125).state_dict()
            states[name] = {key: tensor for key, tensor in whole.items() if ".upsample." not in key}
        first = states.pop("nearest")
        assert first["encoder.0.0.weight"].std() > 0
        assert first["head.weight"].std() > 0
        for name, other in states.items():
            assert other.keys() == first.keys(), name
            for key in first:
                assert torch.equal(other[key], first[key]), (name, key)

    @pytest.mark.parametrize("size", [(33, 64), (64, 48), (16, 16), (0, 32)])
    def test_sizes_that_do_not_fit(self, size):
        line = error_of(UNet("nearest", width=0.125), torch.zeros(1, 3, *size))
        assert line == f"U-Net: the image is {size[0]}x{size[1]}; both sides must be divisible by 32"

    def test_what_it_refuses(self, tmp_path):
        for width in (0.0, -1.0, 5.0, float("nan")):
            assert "U-Net: width is" in error_of(UNet, "nearest", width=width)
        line = error_of(UNet, "pixel_shuffle:out_channels=8")
        assert line.startswith("U-Net: operators must keep the number of channels")
        assert "U-Net: every stage doubles" in error_of(UNet, "bilinear:scale_factor=4")
        for weights in ("imagenet", tmp_path):
            line = error_of(UNet("nearest", width=0.125).load_encoder, weights)
            assert line == f"U-Net does not load weights ({weights}). Use weights='none'"
        assert "size is 80; it must be divisible by 32" in error_of(RunConfig, network="unet", size=80)


class TestLayers:
    def test_they_are_those_of_segnet(self):
        """The same names, channels and sizes: runs of both networks can be drawn and compared layer by layer."""
        assert UNet.layers == SegNet.layers
        assert UNet.figure_layer == SegNet.figure_layer
        assert UNet.sites == SegNet.sites
        shapes = {}
        for network in ("unet", "segnet"):
            rows = fadeviz.layers(build_network(network, "fade", width=0.125), torch.zeros(1, 3, 64, 64))
            shapes[network] = {row.name: row.shapes for row in rows if row.name.endswith((".upsample", ".gate"))}
        assert shapes["unet"] == shapes["segnet"]
        assert len(shapes["unet"]) == 10

    def test_the_figures_layer_has_room_for_an_interior(self):
        model, seen = build_network("unet", "carafe", width=0.125), []
        model.get_submodule(model.figure_layer).register_forward_hook(lambda _, __, out: seen.append(out.shape))
        model(torch.rand(2, 3, 96, 96))
        assert seen == [(2, 16, 48, 48)]


class TestParameters:
    def test_by_hand(self):
        """Two 3x3 convolutions with biases and norms a stage, at five resolutions down and up and at the bottleneck."""

        def stage(before, between, after):
            return 9 * before * between + 3 * between + 9 * between * after + 3 * after

        down = stage(3, 64, 64) + stage(64, 128, 128) + stage(128, 256, 256) + stage(256, 512, 512)
        down += stage(512, 512, 512)
        bottleneck = stage(512, 512, 512)
        up = stage(1024, 512, 512) + stage(1024, 512, 256) + stage(512, 256, 128) + stage(256, 128, 64)
        up += stage(128, 64, 64)
        head = 64 * 2 + 2
        with torch.device("meta"):
            model = UNet("bilinear")
        assert sum(p.numel() for p in model.parameters()) == down + bottleneck + up + head == 29_070_082

    @pytest.mark.parametrize("name", ["fade", "carafe", "a2u", "dysample"])
    def test_operators(self, name):
        with torch.device("meta"):
            model = UNet(name)
        operators = [module for module in model.modules() if isinstance(module, Upsampler)]
        counted = sum(p.numel() for operator in operators for p in operator.parameters())
        assert len(operators) == 5
        assert counted == operator_cost(name, "unet").parameters > 0

    def test_in_the_table(self):
        assert NETWORKS["unet"] is UNet
