"""The matting network: shapes, guides, the published parameter counts, the encoder against ResNet-34, and weights."""

import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fadeviz import FadevizError
from fadeviz.upsamplers import UPSAMPLERS, Upsampler, build_upsampler, parse_upsampler

transformers = pytest.importorskip("transformers", reason='needs transformers: pip install ".[segformer]"')

from fadeviz.models.matting import MattingNet  # noqa: E402
from fadeviz.recording.probe import Probe  # noqa: E402

CHANNELS = (256, 128, 64, 64)
"""Of the operators, coarsest first; of their guides too."""

BILINEAR = 8_049_003
"""Parameters of the network with bilinear interpolation; published: 8.05 M."""

ADDED = {
    "nearest": 0,
    "max_unpool": 0,
    "fade": 124_008,
    "fade_lite": 27_216,
    "carafe": 263_824,
    "a2u:down_head=true": 38_184 + 4 * sum(CHANNELS),  # the published number leaves the norms' weights out
}
"""Parameters over bilinear interpolation."""

PUBLISHED = {"carafe": ("0.26", "6.00"), "a2u:down_head=true": ("0.04", "0.66"), "fade": ("0.12", "8.85")}
"""Millions of parameters and thousands of millions of multiply-adds over bilinear interpolation, for 512x512."""


def error_of(function, *arguments, **options):
    with pytest.raises(FadevizError) as caught:
        function(*arguments, **options)
    line = str(caught.value)
    assert len(line.splitlines()) == 1, line
    return line


def slim(name="nearest", **options):
    return MattingNet(name, width=0.125, **options)


def parameters(upsampler):
    with torch.device("meta"):
        return sum(p.numel() for p in MattingNet(upsampler).parameters())


class TestNetwork:
    @pytest.mark.parametrize("name", UPSAMPLERS)
    def test_every_parameter_learns(self, name):
        torch.manual_seed(0)
        model = slim(name)
        alpha = model(torch.rand(2, 4, 48, 16))
        assert alpha.shape == (2, 1, 48, 16)
        alpha.square().sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            if ".upsample." not in key:  # those may rightly start at a point of rest
                assert parameter.grad.any(), key

    @pytest.mark.parametrize("name", UPSAMPLERS)
    def test_guides(self, name):
        """Each operator gets the map before the pooling that it undoes, of its own channels and twice its size."""
        model, seen = slim(name).eval(), []
        for stage in model.decoder:
            stage.upsample.register_forward_hook(lambda _, inputs, out: seen.append((*inputs, out)))
        assert model(torch.rand(1, 4, 48, 80)).shape == (1, 1, 48, 80)
        assert len(seen) == 4
        for i, (x, skip, out) in enumerate(seen):
            c = max(8, CHANNELS[i] // 8)
            h, w = 3 * 2**i, 5 * 2**i
            assert x.shape == (1, c, h, w)
            assert skip.feature.shape == out.shape == (1, c, 2 * h, 2 * w)
            assert skip.feature.requires_grad  # the encoder learns what guides
            # An operator's pool keeps a map of indices, or nothing.
            assert (skip.indices is not None) == (name in ("max_unpool", "indexnet"))
        if name == "max_unpool":
            for _, skip, _ in seen:
                assert torch.equal(skip.indices, F.max_pool2d(skip.feature, 2, return_indices=True)[1])

    @pytest.mark.parametrize("size", [(33, 64), (64, 40), (8, 8), (0, 32)])
    def test_sizes_that_do_not_fit(self, size):
        line = error_of(slim(), torch.zeros(2, 4, *size))
        assert line == f"MattingNet: the image is {size[0]}x{size[1]}; both sides must be divisible by 16"

    def test_channels_that_do_not_fit(self):
        line = error_of(slim(), torch.zeros(2, 3, 32, 32))
        assert line == ("MattingNet: the images are (2, 3, 32, 32), but (B, 4, H, W) is needed: RGB and the trimap")
        assert "(4, 32, 32)" in error_of(slim(), torch.zeros(4, 32, 32))
        assert slim(channels=3)(torch.rand(2, 3, 32, 32)).shape == (2, 1, 32, 32)
        assert "channels is 0" in error_of(slim, channels=0)

    def test_one_image_alone(self):
        model, image = slim(), torch.rand(1, 4, 32, 32)
        assert "2 images or more" in error_of(model, image)
        assert "2 images or more" in error_of(
            Probe(model).observe, image, image[:, :1], F.l1_loss, step=0, mode="batch"
        )
        assert model.eval()(image).shape == (1, 1, 32, 32)

    @pytest.mark.parametrize("width", [0.0, -1.0, 5.0, float("nan"), float("inf")])
    def test_width(self, width):
        assert "must be above 0 and at most 4" in error_of(MattingNet, "nearest", width=width)

    @pytest.mark.parametrize("width", [0.01, 0.1, 0.3])
    @pytest.mark.parametrize("name", ["dysample", "lda_aqu", "freqfusion"])
    def test_any_width_divides_into_groups(self, name, width):
        model = MattingNet(name, width=width).eval()
        with torch.no_grad():
            assert model(torch.rand(1, 4, 16, 32)).shape == (1, 1, 16, 32)

    def test_names_of_operators(self):
        assert "no upsampler 'fede'. Nearest: 'fade'" in error_of(MattingNet, "fede")
        assert "every stage doubles, but carafe has scale_factor 4" in error_of(slim, "carafe:scale_factor=4")

    def test_without_transformers(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        assert error_of(slim).endswith('pip install ".[segformer]"')

    def test_operators_differ_in_the_operator_alone(self):
        states = {}
        for name in UPSAMPLERS:
            torch.manual_seed(3)
            whole = slim(name).state_dict()
            states[name] = {key: tensor for key, tensor in whole.items() if ".upsample." not in key}
        first = states.pop("nearest")
        for part in ("encoder.stem.convolution", "context.point.0", "decoder.3.convs.0.convs.0.0", "head.1"):
            assert first[f"{part}.weight"].std() > 0, part
        for name, other in states.items():
            assert other.keys() == first.keys(), name
            for key in first:
                assert torch.equal(other[key], first[key]), (name, key)

    def test_other_seeds_give_other_weights(self):
        weights = []
        for seed in (3, 4):
            torch.manual_seed(seed)
            model = slim()
            weights.append((model.encoder.stem.convolution.weight, model.head[1].weight))
        for one, other in zip(*weights, strict=True):
            assert not torch.equal(one, other)

    def test_initial_weights(self):
        """Xavier-normal with a leaky ReLU's gain, but for the encoder and the operators."""
        torch.manual_seed(0)
        model = MattingNet("nearest", width=0.25)
        for part in (
            "context.fuse.0",
            "decoder.0.shortcut.0",
            "decoder.0.convs.0.convs.0.0",
            "decoder.2.convs.1.convs.1.0",
        ):
            weight = model.get_submodule(part).weight
            area = weight.shape[2] * weight.shape[3]
            wanted = (2 / (1 + 0.01**2) * 2 / (area * (weight.shape[0] + weight.shape[1]))) ** 0.5
            assert weight.std().item() == pytest.approx(wanted, rel=0.05), part
        assert model.context.dropout.p == 0.5

    def test_channels_last_gives_the_same(self):
        torch.manual_seed(0)
        model = slim("fade").double().eval()
        x = torch.rand(2, 4, 32, 48, dtype=torch.float64)
        wanted = model(x)
        got = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)

    def test_shortcuts(self):
        """What the encoder's stages, its stem and the image give is added to what the operators make."""
        torch.manual_seed(0)
        model, x, seen = slim().eval(), torch.rand(1, 4, 32, 32), []
        for stage in model.decoder:
            stage.shortcut.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
        for stage, convs in zip(model.decoder, [stage.convs for stage in model.decoder], strict=True):
            stage.upsample.register_forward_hook(lambda _, inputs, out: torch.zeros_like(out))
            convs.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
        model(x)
        given, added = seen[::2], seen[1::2]
        assert [tuple(map_.shape[1:]) for map_ in given] == [(16, 4, 4), (8, 8, 8), (8, 16, 16), (4, 32, 32)]
        assert given[3] is x
        assert torch.equal(given[2], F.max_pool2d(model.encoder.stem(x), 2))
        for stage, before, after in zip(model.decoder, given, added, strict=True):
            assert torch.equal(stage.shortcut(before), after)

    def test_context_reaches_as_far_as_its_rates(self):
        torch.manual_seed(0)
        context = slim().context.eval()
        x = torch.zeros(1, 32, 41, 41)
        x[..., 20, 20] = 1
        for rate, dilated in zip((6, 12, 18), context.dilated, strict=True):
            rows = dilated(x).abs().sum((0, 1, 3)).nonzero().flatten()
            assert rows.tolist() == [20 - rate, 20, 20 + rate]
        assert context.point(x).abs().sum((0, 1)).count_nonzero() == 1
        assert context.image(x).shape == (1, 32, 1, 1)
        assert not torch.equal(context.train()(x.expand(2, -1, -1, -1))[0], context(x.expand(2, -1, -1, -1))[0])


class TestAlpha:
    def test_training_sees_what_inference_clamps(self):
        torch.manual_seed(0)
        model = slim("fade").eval()
        images = torch.rand(2, 4, 32, 32)
        images[:, 3] = 0.5
        raw = model(images)
        assert raw.requires_grad
        assert raw.min() < 0
        assert raw.max() > 0
        alpha = model.alpha(images)
        assert not alpha.requires_grad
        assert torch.equal(alpha, raw.detach().clamp(0, 1))

    def test_the_trimap_is_believed(self):
        torch.manual_seed(0)
        model = slim().eval()
        images = torch.rand(1, 4, 32, 32)
        images[:, 3] = torch.tensor([0.0, 0.5, 1.0, 0.5]).repeat_interleave(8)
        alpha, raw = model.alpha(images), model(images).detach()
        assert not alpha[..., :8].any()
        assert (alpha[..., 16:24] == 1).all()
        for unknown in (slice(8, 16), slice(24, 32)):
            assert torch.equal(alpha[..., unknown], raw[..., unknown].clamp(0, 1))

    def test_without_a_trimap(self):
        model = slim(channels=3).eval()
        images = torch.ones(1, 3, 16, 16)
        assert torch.equal(model.alpha(images), model(images).detach().clamp(0, 1))

    def test_it_learns(self):
        torch.manual_seed(0)
        model = slim("fade")
        images, target = torch.rand(4, 4, 32, 32), torch.zeros(4, 1, 32, 32)
        target[..., 16:] = 1
        images[:, 3:] = target * 0.5 + 0.25
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        losses = []
        for _ in range(20):
            loss = F.l1_loss(model(images), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 2


class TestProbe:
    def test_default_layers(self):
        torch.manual_seed(0)
        model = slim("fade")
        assert model.get_submodule(model.figure_layer) is model.decoder[2].upsample
        kinds = ("feature", "gradient", "gate", "kernel_entropy", "guide")
        probe = Probe(model, model.layers, kinds)
        assert probe.layers == tuple(f"decoder.{i}.upsample" for i in range(4))
        images, target = torch.rand(2, 4, 32, 48), torch.ones(2, 1, 32, 48)
        snapshots = probe.observe(images, target, F.l1_loss, step=0)
        assert len(snapshots) == 4 * len(kinds)
        for i in range(4):
            found = {s.kind: s.value for s in snapshots if s.layer == f"decoder.{i}.upsample"}
            assert found["feature"].shape == (2, 4 * 2**i, 6 * 2**i)
            assert found["gradient"].max() > 0  # also in eval mode, where a clamped alpha would have none
            assert found["guide"].shape[1] == max(8, CHANNELS[i] // 8)


class TestParameters:
    def test_bilinear(self):
        assert parameters("bilinear") == BILINEAR

    @pytest.mark.parametrize("name", ADDED)
    def test_added(self, name):
        assert parameters(name) - BILINEAR == ADDED[name]

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_published(self, name):
        kind, options = parse_upsampler(name)
        with torch.device("meta"):
            model = MattingNet(name)
        operators = [stage.upsample for stage in model.decoder]
        assert all(isinstance(operator, Upsampler) for operator in operators)
        multiply_adds = sum(o.multiply_adds(512 // s, 512 // s) for o, s in zip(operators, (16, 8, 4, 2), strict=True))
        assert (f"{ADDED[name] / 1e6:.2f}", f"{multiply_adds / 1e9:.2f}") == PUBLISHED[name]
        for operator, channels in zip(operators, CHANNELS, strict=True):
            wanted = build_upsampler(kind, channels, **options).state_dict()
            assert {k: v.shape for k, v in operator.state_dict().items()} == {k: v.shape for k, v in wanted.items()}

    def test_the_channels_follow_from_the_published_numbers(self):
        """Each operator's count is a*C + b; over four stages FADE's, FADE-Lite's, CARAFE's and A2U's agree on sum C."""
        for total, a, b in ((124_008, 129, 14_490), (27_216, 51, 276), (263_824, 64, 57_764), (38_184, 74, 74)):
            assert divmod(total - 4 * b, a) == (sum(CHANNELS), 0)


def every_second(x):
    return x[..., ::2, ::2], None


def resnet(channels=3, depths=(3, 4, 6, 3), width=8, kind="ResNetModel", **options):
    config = transformers.ResNetConfig(
        num_channels=channels,
        embedding_size=width,
        hidden_sizes=[width * 2**i for i in range(4)],
        depths=list(depths),
        layer_type="basic",
        **options,
    )
    torch.manual_seed(5)
    model = getattr(transformers, kind)(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet-34-slim"
    resnet().save_pretrained(path)
    return path


def rewritten(folder, tmp_path, change):
    """A copy of the folder whose tensors ``change`` has been at."""
    state = change(load_file(folder / "model.safetensors"))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@torch.no_grad()
def check_is_resnet(net, theirs, images):
    """With strides in place of the operators' pools, the encoder is ResNet-34 up to its 11th block."""

    def strided_max(x):
        return F.max_pool2d(x, 3, 2, 1), None

    got = net.encoder(images, (every_second, every_second, strided_max, every_second))
    x = theirs.embedder(images[:, : theirs.config.num_channels])
    outputs = []
    for stage, blocks in zip(theirs.encoder.stages[:3], (3, 4, 4), strict=True):
        for block in stage.layers[:blocks]:
            x = block(x)
        outputs.append(x)
    assert x.std() > 0.1
    for ours, wanted in zip((got.x, *got.shortcuts[:2]), reversed(outputs), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


class TestWeights:
    @pytest.mark.parametrize("kind", ["ResNetModel", "ResNetForImageClassification"])
    def test_folder(self, tmp_path, capfd, kind):
        model = resnet(kind=kind)
        model.save_pretrained(tmp_path / "mine")
        net = slim().eval()
        capfd.readouterr()
        assert net.load_encoder(tmp_path / "mine") == "mine"
        assert "LOAD REPORT" not in capfd.readouterr().err
        images = torch.randn(2, 4, 32, 64, generator=torch.Generator().manual_seed(1))
        check_is_resnet(net, getattr(model, "resnet", model), images)
        assert not net.encoder.stem.convolution.weight[:, 3].any()

    def test_four_channels(self, tmp_path):
        model = resnet(channels=4)
        model.save_pretrained(tmp_path)
        net = slim().eval()
        net.load_encoder(tmp_path)
        assert net.encoder.stem.convolution.weight[:, 3].any()
        check_is_resnet(net, model, torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1)))

    def test_three_channels(self, folder):
        net = slim(channels=3).eval()
        assert net.load_encoder(str(folder)) == folder.name
        check_is_resnet(net, resnet(), torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)))

    def test_half_precision(self, folder, tmp_path):
        path = rewritten(
            folder, tmp_path, lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}
        )
        net = slim().eval()
        net.load_encoder(path)
        assert {p.dtype for p in net.parameters()} == {torch.float32}

    def test_the_rest_is_left_alone(self, folder):
        net = slim("fade")
        before = {k: v.clone() for k, v in net.state_dict().items()}
        net.load_encoder(folder)
        after = net.state_dict()
        for key, tensor in before.items():
            if not key.startswith("encoder."):
                assert torch.equal(after[key], tensor), key
        assert not torch.equal(after["encoder.stem.convolution.weight"], before["encoder.stem.convolution.weight"])

    def test_imagenet_is_a_name_on_the_hub(self, folder, monkeypatch):
        asked = []
        load = transformers.ResNetModel.from_pretrained

        def from_pretrained(name, **options):
            asked.append(name)
            return load(folder, **options)

        monkeypatch.setattr(transformers.ResNetModel, "from_pretrained", from_pretrained)
        assert slim().load_encoder("imagenet") == "microsoft/resnet-34"
        assert slim().load_encoder("someone/resnet") == "someone/resnet"
        assert asked == ["microsoft/resnet-34", "someone/resnet"]

    def test_no_network(self, monkeypatch):
        def from_pretrained(name, **options):
            raise OSError(f"We couldn't connect to 'https://huggingface.co'\nto load {name}.")

        monkeypatch.setattr(transformers.ResNetModel, "from_pretrained", from_pretrained)
        verbosity = transformers.utils.logging.get_verbosity()
        line = error_of(slim().load_encoder, "imagenet")
        assert line.startswith("no ResNet-34 weights at microsoft/resnet-34 (We couldn't connect to")
        assert line.endswith("weights='none'")
        assert transformers.utils.logging.get_verbosity() == verbosity

    def test_no_such_folder(self, tmp_path):
        line = error_of(slim().load_encoder, tmp_path / "none")
        assert line == f"no folder {tmp_path / 'none'}. Give one that transformers saved, 'imagenet' or 'none'"
        assert error_of(slim().load_encoder, tmp_path).startswith(f"no ResNet-34 weights at {tmp_path} (")

    def test_another_width(self, folder):
        net = MattingNet("nearest", width=0.25)
        before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
        line = error_of(net.load_encoder, folder)
        assert "embedder.embedder.convolution.weight is (8, 3, 7, 7), this network (width 0.25) needs" in line
        assert line.endswith("(16, 4, 7, 7). The weights are for width=1")
        assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())

    def test_another_network(self, tmp_path):
        resnet(depths=(2, 2, 2, 2)).save_pretrained(tmp_path)
        line = error_of(slim().load_encoder, tmp_path)
        assert re.search(r"is not a ResNet-34: it has no 'encoder\.stages\.0\.layers\.2\.", line)

    def test_a_missing_tensor_is_not_drawn(self, folder, tmp_path):
        name = "encoder.stages.1.layers.0.layer.0.convolution.weight"
        path = rewritten(folder, tmp_path, lambda s: {k: v for k, v in s.items() if k != name})
        assert f"is not a ResNet-34: it has no {name!r}" in error_of(slim().load_encoder, path)

    def test_not_finite(self, folder, tmp_path):
        name = "encoder.stages.2.layers.3.layer.1.normalization.running_var"
        path = rewritten(folder, tmp_path, lambda s: {**s, name: torch.full_like(s[name], torch.nan)})
        line = error_of(slim().load_encoder, path)
        assert line == f"{path} is damaged: {name} holds values that are not finite. Get it again"

    @pytest.mark.parametrize("kept", [0, 1, 100, 5000, -1000])
    def test_truncated(self, folder, tmp_path, kept):
        rewritten(folder, tmp_path, dict)
        whole = (folder / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(whole[:kept])
        assert error_of(slim().load_encoder, tmp_path).startswith(f"no ResNet-34 weights at {tmp_path} (")
