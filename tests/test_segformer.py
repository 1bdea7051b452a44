"""SegFormer: the published head and parameter counts, six operators that can be named, and its recipe."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fadeviz import FadevizError, open_run
from fadeviz.experiment import RunConfig, build_model, read_config, train
from fadeviz.models import SegFormer, build_network, parse_network
from fadeviz.models.costs import operator_cost
from fadeviz.models.recipes import WARM_UP, poly
from fadeviz.recording.probe import Probe
from fadeviz.upsamplers import UPSAMPLERS, Upsampler

transformers = pytest.importorskip("transformers", reason='SegFormer needs transformers: pip install ".[segformer]"')

SMALL = {"width": 0.125, "classes": 3}
PLACES = ["c4.c3", "c4.c2", "c4.c1", "c3.c2", "c3.c1", "c2.c1"]


def count(module):
    return sum(p.numel() for p in module.parameters())


def b1(upsampler):
    with torch.device("meta"):
        return SegFormer(upsampler, classes=150, backbone="b1")


def test_b1_has_the_published_parameters():
    baseline = count(b1("bilinear"))
    assert baseline == 13_715_798  # 13.7 M, as transformers' own with 150 classes
    for name in [*UPSAMPLERS, "indexnet:nonlinear=true,context=true", "a2u:down_head=true", "indexnet:kind=m2o"]:
        assert count(b1(name)) - baseline == operator_cost(name, "segformer").parameters, name


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("carafe", "0.44", "1.45"),
        ("indexnet:nonlinear=true,context=true", "12.60", "30.65"),
        ("fade", "0.29", "2.65"),
        ("fade_lite", "0.08", "0.89"),
        ("sapa_i", "0.00", "0.75"),
        ("sapa_b", "0.10", "1.02"),
    ],
)
def test_the_operators_cost_at_512_what_was_published(name, parameters, multiply_adds):
    model = b1(name)
    seen = []
    for operator in model.head.modules():
        if isinstance(operator, Upsampler):
            operator.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0].shape)))
    features = [torch.empty(1, c, 128 >> i, 128 >> i, device="meta") for i, c in enumerate((64, 128, 320, 512))]
    with torch.device("meta"):
        model.head(features)
    assert [(shape[1], shape[2]) for _, shape in seen] == list(SegFormer.sites)
    total = sum(module.multiply_adds(*shape[-2:]) for module, shape in seen)
    assert f"{total / 1e9:.2f}" == multiply_adds
    assert f"{(count(model) - count(b1('bilinear'))) / 1e6:.2f}" == parameters


@pytest.mark.parametrize("backbone", ["b0", "b1", "b2"])
def test_with_bilinear_it_is_transformers_segformer(backbone):
    torch.manual_seed(0)
    model = SegFormer("bilinear", classes=5, width=0.25, backbone=backbone).double().eval()
    sizes = [project.in_channels for project in model.head.project]
    width = model.head.project[0].out_channels
    theirs = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            hidden_sizes=sizes, depths=model.encoder.config.depths, decoder_hidden_size=width, num_labels=5
        )
    ).double().eval()  # fmt: skip
    theirs.segformer.load_state_dict(model.encoder.state_dict())
    norm = model.head.fuse[1]
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.normal_()
        norm.bias.normal_()
    head = theirs.decode_head
    for ours, linear in zip(model.head.project, head.linear_projections, strict=True):
        linear.proj.load_state_dict({"weight": ours.weight[:, :, 0, 0], "bias": ours.bias})
    head.linear_fuse.load_state_dict(model.head.fuse[0].state_dict())
    head.batch_norm.load_state_dict(norm.state_dict())
    head.classifier.load_state_dict(model.head.classify.state_dict())
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        wanted = F.interpolate(theirs(images).logits, size=(64, 96), mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(images), wanted, rtol=1e-10, atol=1e-10)


def test_bilinear_reaches_the_finest_map_at_once():
    names = [n for n, m in SegFormer("bilinear", **SMALL).named_modules() if isinstance(m, Upsampler)]
    assert names == ["head.c4.c1", "head.c3.c1", "head.c2.c1"]
    names = [n for n, m in SegFormer("nearest", **SMALL).named_modules() if isinstance(m, Upsampler)]
    assert names == [f"head.{place}" for place in PLACES]


def test_each_operator_is_guided_by_the_map_it_is_called_by():
    model = SegFormer("fade", **SMALL)
    with torch.no_grad():  # projections that say where a map is from
        for number, project in enumerate(model.head.project, start=1):
            project.weight.zero_()
            project.bias.fill_(float(number))
    guides = {}
    for place in PLACES:
        model.head.get_submodule(place).register_forward_pre_hook(
            lambda module, inputs, place=place: guides.update({place: inputs[1].feature})
        )
    model(torch.randn(1, 3, 64, 32))
    for place in PLACES:
        number = int(place[-1])
        assert guides[place].shape[-2:] == (64 >> (number + 1), 32 >> (number + 1))
        assert torch.all(guides[place] == number)


@pytest.mark.parametrize("name", [*UPSAMPLERS, "indexnet:nonlinear=true", "fade:gate=off", "freqfusion:resample=true"])
def test_every_operator_fits_and_learns(name):
    torch.manual_seed(0)
    model = build_network("segformer", name, width=0.25)
    logits = model(torch.randn(2, 3, 32, 64))
    assert logits.shape == (2, 2, 32, 64)
    F.cross_entropy(logits, torch.randint(0, 2, (2, 32, 64))).backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert torch.isfinite(value.grad).all(), parameter


def test_one_seed_gives_one_network_but_for_the_operator():
    states = []
    for name in ("bilinear", "fade", "carafe"):
        torch.manual_seed(3)
        states.append(SegFormer(name, **SMALL).state_dict())
    shared = [key for key in states[0] if not key.startswith(("head.c4.", "head.c3.", "head.c2."))]
    assert len(shared) > 100
    for key in shared:
        assert all(torch.equal(states[0][key], other[key]) for other in states[1:]), key


def test_default_layers_are_the_operators():
    probe = Probe(build_network("segformer", "fade", width=0.125), SegFormer.layers)
    assert list(probe.layers) == [f"head.{place}" for place in PLACES]
    assert probe.kinds == ("feature", "gradient", "gate", "kernel_entropy")
    assert SegFormer.figure_layer in probe.layers


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"width": 0}, "width is 0"),
        ({"width": float("nan")}, "width is nan"),
        ({"backbone": "b9"}, "no SegFormer backbone 'b9'"),
        ({"upsampler": "nearest:scale_factor=4"}, "every operator doubles, but nearest has scale_factor 4"),
    ],
)
def test_refused(options, error):
    with pytest.raises(FadevizError, match=error):
        SegFormer(**{**SMALL, **options})


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(FadevizError, match="the image is 48x64; both sides must be divisible by 32"):
        SegFormer(**SMALL)(torch.zeros(1, 3, 48, 64))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(FadevizError, match=r'pip install "\.\[segformer\]"'):
        SegFormer(**SMALL)


def test_names_with_options():
    assert parse_network("segformer:backbone=b1,channels=128") == ("segformer", {"backbone": "b1", "channels": 128})
    model = build_network("segformer:channels=64", "fade", width=0.5)
    assert model.head.c4["c3"].in_channels == 32
    for text, error in (
        ("segfromer", "no network 'segfromer'"),
        ("segformer:bone=b1", "no option of segformer 'bone'"),
        ("segformer:backbone", "'backbone' is not an option"),
        ("segformer:channels=b1", "channels is 'b1'; it must be a whole number"),
        ("segnet:backbone=b1", "no option of segnet 'backbone'"),
    ):
        with pytest.raises(FadevizError, match=error):
            parse_network(text)


class TestWeights:
    def save(self, folder, sizes):
        torch.manual_seed(5)
        model = transformers.SegformerModel(transformers.SegformerConfig(hidden_sizes=sizes, depths=[2, 2, 2, 2]))
        model.save_pretrained(folder)
        return model

    def test_from_a_folder(self, tmp_path):
        saved = self.save(tmp_path / "mit", [4, 8, 20, 32])
        model = SegFormer("fade", **SMALL)
        assert model.load_encoder(tmp_path / "mit") == "mit"
        for key, value in saved.state_dict().items():
            assert torch.equal(model.encoder.state_dict()[key], value), key

    def test_of_another_width(self, tmp_path):
        self.save(tmp_path / "mit", [8, 16, 40, 64])
        before = SegFormer("fade", **SMALL)
        with pytest.raises(FadevizError, match=r"does not fit SegFormer-B0: .* is \(8, 3, 7, 7\).*width=1"):
            before.load_encoder(tmp_path / "mit")

    def test_with_a_tensor_missing_or_broken(self, tmp_path):
        from safetensors.torch import load_file, save_file

        self.save(tmp_path / "mit", [4, 8, 20, 32])
        file = tmp_path / "mit" / "model.safetensors"
        state = load_file(file)
        key = next(key for key in state if key.endswith("proj.weight"))
        save_file({k: v for k, v in state.items() if k != key}, file, metadata={"format": "pt"})
        with pytest.raises(FadevizError, match="is missing"):  # and not a random one
            SegFormer("fade", **SMALL).load_encoder(tmp_path / "mit")
        save_file({**state, key: torch.full_like(state[key], float("nan"))}, file, metadata={"format": "pt"})
        with pytest.raises(FadevizError, match="not finite"):
            SegFormer("fade", **SMALL).load_encoder(tmp_path / "mit")
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(FadevizError, match="no MiT weights at"):
            SegFormer("fade", **SMALL).load_encoder(tmp_path / "mit")

    def test_of_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(FadevizError, match="no folder .*or 'none'") as caught:
            SegFormer("fade", **SMALL).load_encoder(tmp_path / "nothing")
        assert "\n" not in str(caught.value)


class TestRecipe:
    def test_poly_by_hand(self):
        at = poly(1.0, 1600)
        assert round(1600 * WARM_UP) == 15
        assert at(1) == pytest.approx(1 / 15)
        assert at(15) == pytest.approx(1 - 14 / 1600)
        assert at(801) == pytest.approx(0.5)
        assert at(1600) == pytest.approx(1 / 1600)
        assert poly(1.0, 3)(1) == 1.0  # a run too short to warm up

    def test_groups(self):
        model = build_network("segformer", "fade", width=0.125)
        optimizer = SegFormer.recipe.optimizer(model, 1e-3, 0.05, 0.9)
        names = {id(p): n for n, p in model.named_parameters()}
        seen = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                seen[names[id(parameter)]] = (group["lr_factor"], group["weight_decay"])
        assert seen.keys() == set(names.values())
        assert seen["head.classify.weight"] == (10.0, 0.05)
        assert seen["head.fuse.1.weight"] == (10.0, 0.0)
        assert seen["head.c4.c3.gate.conv.weight"] == (10.0, 0.05)
        norms = [n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)]
        assert norms
        assert all(seen[f"{n}.weight"] == (1.0, 0.0) for n in norms)
        assert seen["encoder.stages.0.patch_embeddings.proj.weight"] == (1.0, 0.05)

    def test_defaults_are_the_networks(self):
        config = RunConfig(network="segformer:backbone=b1")
        assert (config.lr, config.weight_decay, config.layers) == (6e-5, 0.01, SegFormer.layers)
        config = RunConfig(network="segformer", lr=1e-3, weight_decay=0.0, layers="head.c2.*")
        assert (config.lr, config.weight_decay, config.layers) == (1e-3, 0.0, "head.c2.*")
        config = RunConfig()
        assert (config.lr, config.weight_decay, config.layers) == (0.01, 0.0, "decoder.*.upsample")


CONFIG = RunConfig(
    network="segformer", upsampler="fade", size=32, width=0.125, steps=4, snapshots="2:4", batch_size=2, lr=1e-3,
    evaluate_every=4, checkpoint_every=2, observe=2,
)  # fmt: skip


def test_stopped_and_resumed_gives_the_same_bytes_in_spite_of_dropout(tmp_path):
    whole = train(CONFIG, tmp_path / "whole")
    assert whole.info.network_title == "SegFormer-B0"

    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path / "again", on_progress=stop)
    train(read_config(tmp_path / "again"), tmp_path / "again", resume=True)
    for file in [*(f"snapshots/step_00000{n}.safetensors" for n in (0, 2, 3, 4)), "metrics.jsonl"]:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    states = [torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True) for name in ("again", "whole")]
    assert torch.equal(states[0]["rng"], states[1]["rng"])
    for key, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][key]), key


def test_observing_leaves_no_trace_in_its_training(tmp_path):
    often = dataclasses.replace(CONFIG, snapshots="1:4")
    train(CONFIG, tmp_path / "a")
    train(often, tmp_path / "b")
    states = [torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True) for name in "ab"]
    for key, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][key]), key
    maps = [np.asarray(open_run(tmp_path / name).read(4, "head.c4.c1", "feature")) for name in "ab"]
    np.testing.assert_array_equal(*maps)


def test_weights_are_a_function_of_the_settings():
    states = [build_model(CONFIG)[0].state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
