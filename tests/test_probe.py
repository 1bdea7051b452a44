"""Probes: what they see, and that they leave no trace."""

import collections
import concurrent.futures
import threading
import typing
import warnings

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional as F

from fadeviz import FadevizError
from fadeviz.models import build_network
from fadeviz.recording.hooks import kernel_entropy
from fadeviz.recording.layer_names import find_layers
from fadeviz.recording.probe import Probe
from fadeviz.storage.info import LayerInfo
from fadeviz.storage.snapshots import layer_sizes
from fadeviz.upsamplers import Skip, build_upsampler


class Net(nn.Module):
    """A small network with what makes probing hard: BatchNorm, in-place ReLU, dropout, a layer used twice."""

    def __init__(self, inplace=True):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace)
        self.drop = nn.Dropout(0.5)
        self.twice = nn.Conv2d(4, 4, 1)
        self.unused = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.drop(self.relu(self.norm(self.first(x))))
        x = self.twice(torch.relu_(self.twice(x)))
        return self.head(x)


def make(inplace=True, seed=0):
    torch.manual_seed(seed)
    net = Net(inplace)
    net.norm.running_mean.normal_()
    return net, torch.randn(2, 3, 6, 8), torch.randint(0, 2, (2, 6, 8))


def observe(net, images, targets, **options):
    mode = options.pop("mode", "eval")
    return {s.key: s.value for s in Probe(net, **options).observe(images, targets, F.cross_entropy, step=3, mode=mode)}


def test_feature_is_the_mean_over_channels():
    net, images, targets = make()
    found = observe(net, images, targets, layers="first", kinds=["feature"])
    want = net.first(images).mean(1).detach().numpy()
    np.testing.assert_allclose(found["first/0/feature"], want, atol=1e-6)


def test_gradient_is_relu_then_sum_of_the_loss_gradient():
    net, images, targets = make(inplace=False)
    found = observe(net, images, targets, layers="norm", kinds=["gradient"])
    net.eval()
    output = net.norm(net.first(images)).detach().requires_grad_()
    x = net.twice(torch.relu(net.twice(torch.relu(output))))
    F.cross_entropy(net.head(x), targets).backward()
    np.testing.assert_allclose(found["norm/0/gradient"], output.grad.relu().sum(1).numpy(), rtol=1e-5, atol=1e-9)


def test_in_place_and_out_of_place_give_the_same():
    results = []
    for inplace in (True, False):
        net, images, targets = make(inplace)
        results.append(observe(net, images, targets, layers="first,norm,twice", kinds=["feature", "gradient"]))
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][key])


def test_a_layer_used_twice_has_two_calls():
    net, images, targets = make()
    found = observe(net, images, targets, layers="twice", kinds=["feature", "gradient"])
    assert sorted(found) == ["twice/0/feature", "twice/0/gradient", "twice/1/feature", "twice/1/gradient"]
    assert not np.array_equal(found["twice/0/feature"], found["twice/1/feature"])


def test_frozen_weights_have_gradients_too():
    net, images, targets = make()
    wanted = observe(net, images, targets, layers="norm", kinds=["gradient"])
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    np.testing.assert_array_equal(
        observe(net, images, targets, layers="norm", kinds=["gradient"])["norm/0/gradient"], wanted["norm/0/gradient"]
    )


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_leaves_no_trace(mode):
    net, images, targets = make()
    net.train()
    net.norm.eval()  # frozen on purpose: must stay so
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    rng = torch.get_rng_state()
    images_before = images.clone()
    observe(net, images, targets, layers="first,norm", mode=mode)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.all(p.grad == 0.25) for p in net.parameters())
    assert net.training
    assert not net.norm.training
    assert net.drop.training
    assert torch.equal(images, images_before)
    assert not images.requires_grad
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())


def test_no_hook_left_after_an_exception():
    net, images, targets = make()
    net.train()

    def broken(output, target):
        assert any(m._forward_hooks for m in net.modules())
        raise RuntimeError("no loss today")

    with pytest.raises(FadevizError, match="no loss today"):
        Probe(net, "first").observe(images, targets, broken, step=0)
    assert not any(m._forward_hooks for m in net.modules())
    assert all(m.training for m in net.modules())


def test_batch_mode_normalises_with_the_batch():
    net, images, targets = make()
    found = observe(net, images, targets, layers="norm", kinds=["channels"], channel_images=2, mode="batch")
    channels = found["norm/0/channels"]
    assert channels.shape == (2, 4, 6, 8)
    np.testing.assert_allclose(channels.mean((0, 2, 3)), 0, atol=1e-5)
    evaluated = observe(net, images, targets, layers="norm", kinds=["channels"], channel_images=2)
    assert np.abs(evaluated["norm/0/channels"].mean((0, 2, 3))).max() > 0.1


def test_batch_mode_keeps_dropout_off():
    net, images, targets = make()
    one = observe(net, images, targets, layers="drop", kinds=["feature"], mode="batch")
    two = observe(net, images, targets, layers="drop", kinds=["feature"], mode="batch")
    np.testing.assert_array_equal(one["drop/0/feature"], two["drop/0/feature"])


def test_autocast_around_it_changes_nothing():
    net, images, targets = make()
    wanted = observe(net, images, targets, layers="norm")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = observe(net, images, targets, layers="norm")
    for key, value in wanted.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.fixture(scope="module")
def fade():
    torch.manual_seed(0)
    net = build_network("segnet", "fade", width=0.125)
    images, targets = torch.randn(2, 3, 32, 64), torch.randint(0, 2, (2, 32, 64))
    return net, images, targets


class TestOperators:
    def test_default_kinds_are_what_the_operator_has(self, fade):
        assert Probe(fade[0]).kinds == ("feature", "gradient", "gate", "kernel_entropy")
        assert Probe(build_network("segnet", "carafe", width=0.125)).kinds == ("feature", "gradient", "kernel_entropy")
        assert Probe(build_network("segnet", "nearest", width=0.125)).kinds == ("feature", "gradient")

    def test_all_maps_have_the_layers_resolution(self, fade):
        found = Probe(fade[0], kinds=["feature", "gradient", "channels", "gate", "kernel_entropy"]).observe(
            fade[1], fade[2], F.cross_entropy, step=0
        )
        assert len(found) == 25
        for snapshot in found:
            assert snapshot.value.dtype == np.float32
            assert np.isfinite(snapshot.value).all()
            stage = int(snapshot.layer.split(".")[1])
            assert snapshot.value.shape[-2:] == (2 << stage, 4 << stage)
            if snapshot.kind in ("gate", "kernel_entropy"):
                assert snapshot.value.min() >= 0
                assert snapshot.value.max() <= 1

    def test_fade_is_what_its_parts_say(self, fade):
        net, images, targets = fade
        operator = net.decoder[2].upsample
        seen = {}
        handle = operator.register_forward_hook(lambda m, i, o: seen.update(x=i[0], skip=i[1], y=o))
        found = observe(net, images, targets, layers="decoder.2.upsample", kinds=["gate", "feature", "kernel_entropy"])
        handle.remove()
        np.testing.assert_allclose(
            found["decoder.2.upsample/0/gate"], operator.gate(seen["x"]).squeeze(1).detach().numpy(), atol=1e-6
        )
        kernels = operator.kernels(operator.semi_shift(seen["skip"].feature, seen["x"])).detach()
        slow = -(kernels * kernels.log()).sum(1) / np.log(25)
        np.testing.assert_allclose(found["decoder.2.upsample/0/kernel_entropy"], slow.numpy(), atol=1e-5)


def test_kernel_entropy_ends():
    box = torch.full((1, 25, 2, 2), 1 / 25)
    one = torch.zeros(1, 25, 2, 2)
    one[:, 3] = 1
    torch.testing.assert_close(kernel_entropy(box), torch.ones(1, 1, 2, 2))
    assert torch.equal(kernel_entropy(one), torch.zeros(1, 1, 2, 2))
    both = kernel_entropy(torch.cat([box, one], 1), groups=2)
    torch.testing.assert_close(both[:, 0], torch.ones(1, 2, 2))
    assert torch.equal(both[:, 1], torch.zeros(1, 2, 2))


def test_under_activation_checkpointing():
    net, images, targets = make()
    wanted = observe(net, images, targets, layers="norm", kinds=["feature", "gradient"])
    inner = net.forward
    net.forward = lambda x: torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False)
    found = observe(net, images, targets, layers="norm", kinds=["feature", "gradient"])
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(found[key], value)


def test_a_compiled_model_is_seen_through():
    net, images, targets = make()
    wanted = observe(net, images, targets, layers="norm")
    compiled = torch.compile(net.eval(), backend="eager")
    compiled(images)
    found = observe(compiled, images, targets, layers="norm")
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-7)


def test_batch_mode_through_data_parallel():
    net, images, targets = make()
    wanted = observe(net, images, targets, layers="norm", mode="batch")
    found = observe(nn.DataParallel(net), images, targets, layers="norm", mode="batch")
    for key, value in wanted.items():
        np.testing.assert_array_equal(found[key], value)


class TestNames:
    def test_a_star_is_one_part_of_the_name(self):
        names = dict.fromkeys(["a", "a.0", "a.0.up", "a.1.up", "a.1.up.gate", "b.up"])
        assert find_layers(names, "a.*.up", "Net") == ("a.0.up", "a.1.up")
        assert find_layers(names, "**.up", "Net") == ("a.0.up", "a.1.up", "b.up")
        assert find_layers(names, "b.up,a.0", "Net") == ("a.0", "b.up")

    def test_wrappers_names_are_left_out(self):
        net, images, targets = make()
        wrapped = nn.DataParallel(net)
        assert Probe(wrapped, "norm").layers == ("norm",)
        assert Probe(wrapped, "module.norm").layers == ("norm",)

    def test_unknown_layer_names_the_nearest(self):
        with pytest.raises(FadevizError, match="no layer in SegNet 'decoder.3.upsampl'. Nearest: 'decoder.3.upsample'"):
            Probe(build_network("segnet", "nearest", width=0.125), "decoder.3.upsampl")

    def test_unknown_kind(self):
        with pytest.raises(FadevizError, match="no kind 'gradients'. Nearest: 'gradient'"):
            Probe(make()[0], "norm", ["gradients"])

    def test_a_kind_that_the_operator_has_not(self):
        with pytest.raises(FadevizError, match="has 'gate': there is no gate to record.*e.g. fade"):
            Probe(build_network("segnet", "carafe", width=0.125), kinds=["gate"])


class TestWhatCannotBeRecorded:
    def test_a_layer_that_did_not_run(self):
        net, images, targets = make()
        with pytest.raises(FadevizError, match="layer 'unused' did not run"):
            observe(net, images, targets, layers="unused", kinds=["feature"])

    def test_a_layer_that_gives_no_map(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        with pytest.raises(FadevizError, match="layer '1' returns a tensor of 2 axes"):
            Probe(net, "1", ["feature"]).observe(torch.zeros(1, 3, 2, 2), None, F.cross_entropy, step=0)

    def test_a_layer_without_influence_on_the_loss(self):
        net, images, targets = make()
        with pytest.raises(FadevizError, match="layer 'norm' does not influence the loss"):
            Probe(net, "norm", ["gradient"]).observe(
                images, targets, lambda output, target: net.head.weight.sum(), step=0
            )

    def test_a_layer_that_runs_without_gradients(self):
        net, images, targets = make()
        first = net.first.forward
        net.first.forward = torch.no_grad()(first)
        with pytest.raises(FadevizError, match="layer 'first' runs without gradients"):
            observe(net, images, targets, layers="first", kinds=["gradient"])

    def test_an_unknown_mode(self):
        net, images, targets = make()
        with pytest.raises(FadevizError, match="no observation mode 'train'"):
            observe(net, images, targets, layers="norm", mode="train")


def test_large_kinds_of_an_operator():
    torch.manual_seed(0)
    model = build_network("segnet", "fade", width=0.0625)
    images, masks = torch.randn(3, 3, 32, 32), torch.randint(0, 2, (3, 32, 32))
    probe = Probe(model, "decoder.3.upsample", "all", channel_images=2)
    kinds = ("feature", "gradient", "channels", "gate", "kernel_entropy", "constant", "kernels", "guide")
    assert probe.kinds == kinds
    found = {s.kind: s.value for s in probe.observe(images, masks, F.cross_entropy, step=0)}
    assert found["kernels"].shape == (2, 25, 16, 16)
    np.testing.assert_allclose(found["kernels"].sum(1), 1, rtol=1e-5)
    entropy = kernel_entropy(torch.from_numpy(found["kernels"]))[:, 0].numpy()
    np.testing.assert_allclose(entropy, found["kernel_entropy"][:2], atol=1e-6)
    with torch.no_grad():
        model.eval()
        guide = model.encoder[1](F.max_pool2d(model.encoder[0](images), 2))
    np.testing.assert_allclose(found["guide"], guide[:2].numpy(), atol=1e-5)


def test_all_kinds_are_those_that_a_layer_has():
    assert Probe(make()[0], "first", "all").kinds == ("feature", "gradient", "channels")
    model = build_network("segnet", "bilinear", width=0.0625)
    assert Probe(model, "decoder.3.upsample", "all").kinds == ("feature", "gradient", "channels", "constant", "guide")
    with pytest.raises(FadevizError, match="has 'guide': there is no guide to record"):
        Probe(make()[0], "first", ["guide"])


@pytest.mark.parametrize("name", ["bilinear", "max_unpool", "deconv", "carafe", "indexnet", "fade", "a2u"])
@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_constant_is_what_the_operator_makes_of_ones(name, mode):
    torch.manual_seed(0)
    model = build_network("segnet", name, width=0.0625).train()
    images, masks = torch.randn(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with_it, without = (
        {s.key: s.value for s in Probe(model, "decoder.3.upsample", kinds).observe(
            images, masks, F.cross_entropy, step=0, mode=mode)}
        for kinds in ("all", "feature,gradient")
    )  # fmt: skip
    for key in without:  # what else is recorded does not notice
        np.testing.assert_array_equal(with_it[key], without[key])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    value = with_it["decoder.3.upsample/0/constant"]
    assert value.shape == (1, 32, 32)
    inner = value[0, 6:-6, 6:-6]
    if name in ("bilinear", "carafe"):
        np.testing.assert_allclose(inner, 1, atol=1e-5)  # kernels that sum to 1
    if name == "deconv":  # its kernel reaches each phase with other weights
        operator = model.get_submodule("decoder.3.upsample").eval()
        want = operator(torch.ones(1, 8, 16, 16), None).mean(1).detach().numpy()
        np.testing.assert_allclose(value, want, atol=1e-5)
        assert np.ptp(inner) > 1e-3


def test_an_operator_called_in_another_way_has_no_guide():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = build_upsampler("bilinear", 3)

        def forward(self, x):
            return self.up(x, skip=Skip(x.repeat_interleave(2, -1).repeat_interleave(2, -2)))

    images = torch.randn(1, 3, 8, 8)
    with pytest.raises(FadevizError, match=r"was not called as upsampler\(x, skip\)"):
        Probe(Mine(), "up", ["guide"]).observe(images, None, lambda output, _: output.sum(), step=0)
    assert len(Probe(Mine(), "up", ["feature"]).observe(images, None, lambda output, _: output.sum(), step=0)) == 1


class Shared(nn.Module):
    """A module that has two names, containers that are never called, a layer beside the path to the loss."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.first = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)])
        self.alias = self.blocks[0]
        self.beside = nn.Conv2d(4, 1, 1)
        self.flat = nn.Flatten()
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.encoder.first(x)
        for block in self.blocks:
            x = block(x)
        self.beside(x)
        self.flat(x)
        return self.head(x)


class TestWhatAGlobTakes:
    def test_what_ran_and_is_a_map_and_notes_the_rest(self):
        _, images, targets = make()
        probe = Probe(Shared(), "*,blocks.*", ["feature", "gradient"])
        assert set(probe.layers) == {"encoder", "blocks", "blocks.0", "blocks.1", "beside", "flat", "head"}
        found = probe.observe(images, targets, F.cross_entropy, step=0)
        assert probe.layers == ("blocks.0", "blocks.1", "head")
        assert {s.layer for s in found} == set(probe.layers)
        ran = "did not run in the forward pass, so there is nothing to record"
        assert probe.notes == [
            "left out: layer 'flat' returns a tensor of 2 axes; a map (B, C, h, w) or tokens (B, L, C) are needed",
            f"left out: layer 'encoder', layer 'blocks' {ran}",
            "left out: layer 'beside' does not influence the loss, so it has no gradient",
        ]
        with_fewer = Probe(Shared(), "*", "feature")
        with_fewer.observe(images, targets, F.cross_entropy, step=0)
        assert "beside" in with_fewer.layers  # no gradient was asked for

    def test_an_exact_name_beside_a_glob_keeps_its_refusal(self):
        _, images, targets = make()
        for name in ("blocks", "flat", "beside"):
            with pytest.raises(FadevizError, match=f"layer '{name}'"):
                Probe(Shared(), f"*,{name}").observe(images, targets, F.cross_entropy, step=0)

    def test_nothing_left(self):
        _, images, targets = make()
        with pytest.raises(FadevizError, match="there is nothing to record: layer 'unused' did not run.*"):
            Probe(make()[0], "unus*").observe(images, targets, F.cross_entropy, step=0)

    def test_the_layers_of_the_first_observation_are_those_from_then_on(self):
        net, (images, targets) = Shared(), make()[1:]
        probe = Probe(net, "**", "feature")
        first = probe.observe(images, targets, F.cross_entropy, step=0)
        net.blocks = net.blocks[:1]
        with pytest.raises(FadevizError, match="layer 'blocks.1' did not run"):
            probe.observe(images, targets, F.cross_entropy, step=1)
        net.blocks.append(probe._choice.modules["blocks.1"])
        assert [s.key for s in probe.observe(images, targets, F.cross_entropy, step=2)] == [s.key for s in first]

    def test_a_resumed_recording_settles_for_the_layers_it_had(self):
        _, images, targets = make()
        probe = Probe(Shared(), "*,head", "feature")
        probe.settle(["alias", "head"])
        assert {s.layer for s in probe.observe(images, targets, F.cross_entropy, step=3)} == {"alias", "head"}
        with pytest.raises(FadevizError, match="'head' was not recorded before"):
            Probe(Shared(), "*,head").settle(["alias"])
        with pytest.raises(FadevizError, match="no layer among those requested of Shared 'gone'"):
            Probe(Shared(), "*").settle(["gone"])
        probe = Probe(Shared(), "*")
        probe.settle(["flat", "head"])
        with pytest.raises(FadevizError, match="layer 'flat' returns"):
            probe.observe(images, targets, F.cross_entropy, step=3)


class TestNamesOfModules:
    def test_a_shared_module_has_all_its_names(self):
        _, images, targets = make()
        net = Shared()
        values = [
            Probe(net, name, "feature").observe(images, targets, F.cross_entropy, step=0)[0]
            for name in ("blocks.0", "alias")
        ]
        assert [s.layer for s in values] == ["blocks.0", "alias"]
        np.testing.assert_array_equal(values[0].value, values[1].value)
        assert Probe(net, "**.0,al*").layers == ("blocks.0",)  # once, where a glob finds it twice
        assert Probe(net, net.alias).layers == ("blocks.0",)

    def test_a_child_called_module_is_a_child(self):
        class Inner(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Conv2d(3, 4, 1)

            def forward(self, x):
                return self.head(x)

        class Wrapper(nn.Module):
            def __init__(self):
                super().__init__()
                self.module = Inner()
                self._orig_mod = nn.Sequential(nn.ReLU())
                self.head = nn.Conv2d(4, 2, 1)

            def forward(self, x):
                return self.head(self._orig_mod(self.module(x)))

        _, images, targets = make()
        net = Wrapper()
        assert set(Probe(net, "**").layers) == {"module", "module.head", "_orig_mod", "_orig_mod.0", "head"}
        (found,) = Probe(net, "head", "feature").observe(images, targets, F.cross_entropy, step=0)
        want = net(images).mean(1).detach().numpy()
        np.testing.assert_allclose(found.value, want, atol=1e-6)

    @pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
    def test_what_wraps_leaves_no_trace_in_the_names(self, wrap):
        wrapped = wrap(nn.Sequential(collections.OrderedDict(module=nn.Conv2d(3, 2, 1), up=nn.Conv2d(2, 2, 1))))
        assert Probe(wrapped, "*").layers == ("module", "up")
        assert Probe(wrapped, "module.up").layers == ("up",)

    def test_a_compiled_part_has_the_name_it_had(self):
        net, images, targets = make()
        want = observe(net, images, targets, layers="norm,twice")
        net.twice = torch.compile(net.twice, backend="eager")
        for layers in ("norm,twice", "norm,tw*", "norm,twice._orig_mod", ["norm", net.twice._orig_mod]):
            found = observe(net, images, targets, layers=layers)
            assert found.keys() == want.keys()
        np.testing.assert_array_equal(found["twice/0/feature"], want["twice/0/feature"])

    def test_a_part_in_an_activation_checkpoint_has_the_name_it_had(self):
        net, images, targets = make()
        want = observe(net, images, targets, layers="norm,twice")
        net.twice = checkpoint_wrapper(net.twice)
        for layers in ("norm,twice", "norm,tw*", "norm,twice._checkpoint_wrapped_module"):
            found = observe(net, images, targets, layers=layers)
            assert found.keys() == want.keys()
        for key, value in want.items():
            np.testing.assert_array_equal(found[key], value)

    def test_names_with_control_characters_are_refused(self):
        net = nn.Sequential(collections.OrderedDict([("a", nn.Conv2d(3, 2, 1)), ("b\x1b[1m", nn.Conv2d(2, 2, 1))]))
        assert Probe(net, "a").layers == ("a",)
        with pytest.raises(FadevizError, match=r"the layer name 'b\\x1b\[1m' has control characters"):
            Probe(net, "*")

    def test_two_modules_of_one_name_are_refused(self):
        class Wider(nn.DataParallel):
            def __init__(self, module):
                super().__init__(module)
                self.first = nn.Conv2d(2, 2, 1)

        net = Wider(make()[0])
        for layers in ("first", "*"):
            with pytest.raises(
                FadevizError, match="'first' stands for two modules of Wider: 'module.first' and 'first'"
            ):
                Probe(net, layers)
        assert Probe(net, "norm").layers == ("norm",)

    def test_an_unknown_name_is_followed_by_how_functions_are_named(self):
        with pytest.raises(FadevizError, match="'blocks' has 'blocks.0', 'blocks.1'. Calls of a function are named"):
            Probe(Shared(), "blocks.interpolate")


def quantised(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: quantised tensors are to go
        return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)


class TestErrorsOfOthers:
    def wrong(self, net, loss_fn=F.cross_entropy, mode="eval", layers="up", **options):
        images, targets = make()[1:]
        with pytest.raises(FadevizError) as caught:
            Probe(net, layers, **options).observe(images, targets, loss_fn, step=7, mode=mode)
        assert "\n" not in str(caught.value)
        return caught.value

    def net(self, then):
        class Then(nn.Module):
            def forward(self, x):
                return then(x)

        return nn.Sequential(collections.OrderedDict(up=nn.Conv2d(3, 2, 1), then=nn.Sequential(Then())))

    @pytest.mark.parametrize("mode", ["eval", "batch"])
    def test_in_the_forward_pass(self, mode):
        error = self.wrong(self.net(lambda x: x.view(7)), mode=mode)
        assert str(error).startswith(
            f"the forward pass failed, in layer 'then.0' (step 7, observed in {mode} mode): RuntimeError: shape"
        )
        assert isinstance(error.__cause__, RuntimeError)

    def test_in_the_loss(self):
        error = self.wrong(self.net(lambda x: {"out": x, "sizes": [1.5, 2.5]}))
        assert "loss_fn failed (step 7, observed in eval mode): TypeError" in str(error)
        assert str(error).endswith("It was given dict of 'out' (2, 2, 6, 8), 'sizes' list")
        error = self.wrong(self.net(lambda x: [x]), loss_fn=lambda o, t: F.cross_entropy(o["out"], t))
        assert str(error).endswith("It was given list of 0 (2, 2, 6, 8)")

    def test_in_the_backward_pass(self):
        class Fails(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 1

            @staticmethod
            def backward(ctx, grad):
                raise KeyError("nothing kept")

        error = self.wrong(self.net(Fails.apply))
        assert "the backward pass failed (step 7, observed in eval mode): KeyError: 'nothing kept'" in str(error)

    def test_in_reduce(self):
        error = self.wrong(self.net(torch.relu), reduce=lambda value: value.nothing)
        assert "reduce failed, in layer 'up' (step 7, observed in eval mode): AttributeError" in str(error)

    def test_a_model_that_catches_errors_does_not_swallow_a_refusal(self):
        class Catches(nn.Module):
            def __init__(self):
                super().__init__()
                self.up = nn.Flatten()

            def forward(self, x):
                try:
                    return self.up(x)
                except ValueError:
                    return x

        assert "layer 'up' returns a tensor of 2 axes" in str(self.wrong(Catches(), kinds="feature"))

    @pytest.mark.parametrize(("loss_fn", "gives"), [
        (lambda o, t: o, "a tensor (2, 2, 6, 8) of torch.float32"),
        (lambda o, t: 1.5, "float"),
        (lambda o, t: {"loss": o.mean()}, "dict of 'loss' ()"),
        (lambda o, t: o.detach().mean(), "without a gradient"),
        (lambda o, t: o.to(torch.int8).sum(), "a tensor () of torch.int64 without a gradient"),
    ])  # fmt: skip
    def test_a_loss_that_is_no_scalar(self, loss_fn, gives):
        error = str(self.wrong(self.net(torch.relu), loss_fn))
        assert error.startswith("loss_fn returned ")
        assert gives in error

    @pytest.mark.parametrize(("then", "what"), [
        (lambda x: torch.complex(x, x), "returns a complex tensor; a dense, real map"),
        (lambda x: x.to_sparse(), "returns a sparse tensor"),
        (lambda x: x.to(torch.int8), "returns torch.int8, which has no gradient. Leave gradient out"),
        (lambda x: quantised(x.detach()), "returns torch.quint8, which has no"),
        (lambda x: x.to("meta"), "returns a tensor without values (meta device). Load the model's weights first"),
        (lambda x: [1.5, 2.5], "returns list without a map (B, C, h, w): 0 float, 1 float"),
        (lambda x: None, "returns NoneType"),
    ])  # fmt: skip
    def test_outputs_that_are_no_map(self, then, what):
        assert f"layer 'then.0' {what}" in str(self.wrong(self.net(then), layers="then.0"))

    def test_integers_and_quantised_values_can_be_seen(self):
        images, targets = make()[1:]
        for then in (lambda x: x.to(torch.int8), quantised):
            (seen,) = Probe(self.net(then), "then.0", "feature").observe(images, targets, F.cross_entropy, step=0)
            assert seen.value.max() > 0

    def test_scripted_models_and_parts(self):
        with pytest.warns(DeprecationWarning, match="torch.jit.script"):
            scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 2, 1)))
        with pytest.raises(FadevizError, match="Sequential is a torch.jit script module"):
            Probe(scripted, "0")
        net = nn.Sequential(collections.OrderedDict(up=nn.Conv2d(3, 3, 1), part=scripted))
        for layer in ("part", "part.0"):
            assert f"layer '{layer}' is scripted (torch.jit), so it does not call hooks" in str(
                self.wrong(net, layers=layer)
            )
        images, targets = make()[1:]
        probe = Probe(net, "**")
        assert {s.layer for s in probe.observe(images, targets, F.cross_entropy, step=0)} == {"up"}
        assert probe.notes == [
            "left out: layer 'part', layer 'part.0' is scripted (torch.jit), so it does not call hooks. "
            "Choose the layer around it"
        ]

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), torch.OutOfMemoryError("no room"),
                                       RuntimeError("DefaultCPUAllocator: can't allocate")])  # fmt: skip
    def test_what_passes_through_as_it_is(self, error):
        def loss_fn(output, targets):
            raise error

        net, images, targets = make()
        with pytest.raises(type(error)) as caught:
            Probe(net, "norm").observe(images, targets, loss_fn, step=0)
        assert caught.value is error
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


class TestAFewImagesAtATime:
    def both(self, net, images, targets, loss_fn, kinds="all", layers="**", **options):
        whole = Probe(net, layers, kinds, **options)
        parts = Probe(net, layers, kinds, **options)
        found = [
            {s.key: s.value for s in probe.observe(images, targets, loss_fn, step=0, images_at_once=count)}
            for probe, count in ((whole, len(targets)), (parts, 2))
        ]
        assert found[0].keys() == found[1].keys()
        for key, value in found[0].items():
            assert found[1][key].shape == value.shape
            np.testing.assert_allclose(found[1][key], value, rtol=1e-5, atol=1e-6 * np.abs(value).max(), err_msg=key)
        return parts

    @pytest.fixture
    def batch(self):
        torch.manual_seed(1)
        images, targets = torch.randn(5, 3, 8, 8), torch.randint(0, 2, (5, 8, 8))
        targets[0] = 255
        targets[1:, :3] = 255
        return images, targets

    def test_gives_the_maps_and_gradients_of_the_whole_batch(self, batch):
        """Weights and void pixels make the loss of a batch another than the mean of its images' losses."""
        images, targets = batch
        net = make()[0].train()
        weight, sizes = torch.tensor([0.2, 3.0]), []
        net.head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        probe = self.both(
            net, images, targets, lambda o, t: F.cross_entropy(o, t, weight, ignore_index=255), channel_images=3
        )
        assert sizes[0] == 5
        assert max(sizes[1:]) == 2
        assert not [note for note in probe.notes if "at once" in note]
        assert all(module.training for module in net.modules())

    def test_an_operator_with_all_that_it_has(self, batch):
        torch.manual_seed(0)
        net = build_network("segnet", "fade", width=0.0625)
        images, targets = torch.randn(3, 3, 32, 32), torch.randint(0, 2, (3, 32, 32))
        probe = self.both(net, images, targets, F.cross_entropy, layers="decoder.*.upsample", channel_images=3)
        assert {"constant", "guide", "kernels", "gate"} <= set(probe.kinds)

    def test_structured_batches_and_outputs(self, batch):
        class Out(typing.NamedTuple):
            main: torch.Tensor
            aux: torch.Tensor

        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.up = nn.Conv2d(3, 2, 1)

            def forward(self, image, scale):
                x = self.up(image) * scale
                return {"pair": Out(x, x.mean((2, 3))), "classes": x.argmax(1)}

        def loss_fn(output, targets):
            output["pair"].main.mul_(2)  # writes into what it is given
            return (
                F.cross_entropy(output["pair"].main, targets[0], ignore_index=255) + output["pair"].aux.square().mean()
            )

        images, targets = batch
        probe = Probe(Two(), "up")
        values = [
            probe.observe({"image": images, "scale": torch.tensor(2.0)}, [targets], loss_fn, step=0, images_at_once=n)
            for n in (5, 2)
        ]
        for whole, parts in zip(*values, strict=True):
            np.testing.assert_allclose(parts.value, whole.value, rtol=1e-5, atol=1e-9)
        assert probe.notes == []

    def test_images_that_depend_on_each_other_stay_together(self, batch):
        images, targets = batch
        norm = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 2, 1))
        probe = self.both(norm, images, targets, lambda o, t: F.cross_entropy(o, t, ignore_index=255))
        assert any(note.startswith("all 5 images were observed at once") for note in probe.notes)

        class WithLoss(nn.Module):
            def __init__(self):
                super().__init__()
                self.up = nn.Conv2d(3, 2, 1)

            def forward(self, image, labels):
                x = self.up(image)
                return {"loss": F.cross_entropy(x, labels, ignore_index=255), "logits": x}

        probe = Probe(WithLoss(), "up")
        found = probe.observe(
            {"image": images, "labels": targets}, None, lambda o, t: o["loss"], step=0, images_at_once=2
        )
        assert len(found) == 2
        assert len(probe.notes) == 1

        class Squeezes(nn.Sequential):
            def forward(self, x):
                return super().forward(x).squeeze().flatten(1, 2).unflatten(1, (2, 8))  # not of one image

        probe = self.both(Squeezes(nn.Conv2d(3, 2, 1)), images, targets, lambda o, t: o.mean())
        assert len(probe.notes) == 1

        net = make()[0]
        probe = self.both(net, images, targets, lambda o, t: o.mean() + net.head.weight.sum(), layers="norm,head")
        assert len(probe.notes) == 1

    def test_small_batches_and_batch_statistics_stay_together(self, batch):
        images, targets = batch
        net, sizes = make()[0], []
        net.head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        probe = Probe(net, "norm", "feature")
        probe.observe(images, targets, F.cross_entropy, step=0)
        probe.observe(images, targets, F.cross_entropy, step=0, mode="batch", images_at_once=2)
        assert sizes == [5, 5]

    def test_large_batches_are_cut_by_themselves(self):
        net, sizes = nn.Sequential(nn.AvgPool2d(256)), []
        net.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        Probe(net, "0", "feature").observe(torch.rand(5, 1, 512, 512), None, F.mse_loss, step=0)
        assert sizes == [1, 2, 2, 2, 1]  # a look at one and two, and then all


class TestPrecision:
    def test_a_layer_of_another_type_is_observed_under_autocast(self):
        net, images, targets = make()
        probe = Probe(net, "norm")
        wanted = probe.observe(images, targets, F.cross_entropy, step=0, autocast=torch.bfloat16)
        assert probe.notes == []
        net.twice.bfloat16()
        probe = Probe(net, "norm")
        found = probe.observe(images, targets, F.cross_entropy, step=0, images_at_once=1)
        assert probe.notes == ["observed under autocast to bfloat16, because it does not run in plain float32"]
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one.value, other.value, rtol=0.05, atol=0.02 * np.abs(other.value).max())

    def test_the_first_error_is_told_where_autocast_does_not_help(self):
        class Always(nn.Module):
            def forward(self, x):
                raise RuntimeError(
                    f"expected Float, found BFloat16, and autocast is {torch.is_autocast_enabled('cpu')}"
                )

        with pytest.raises(FadevizError, match="autocast is False"):
            Probe(nn.Sequential(Always()), "0").observe(*make()[1:], F.cross_entropy, step=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_images_follow_the_weights(self, dtype):
        net, images, targets = make()
        probe = Probe(net, "norm")
        wanted = probe.observe(images, targets, F.cross_entropy, step=0)
        net.to(dtype)
        for one, want in zip(probe.observe(images, targets, F.cross_entropy, step=1), wanted, strict=True):
            assert np.abs(one.value - want.value).mean() < 0.05 * np.abs(want.value).max()
        net.float()
        for one, want in zip(probe.observe(images.to(dtype), targets, F.cross_entropy, step=2), wanted, strict=True):
            assert np.abs(one.value - want.value).mean() < 0.05 * np.abs(want.value).max()

    def test_a_loss_may_write_into_the_targets(self):
        def loss_fn(output, targets):
            targets["mask"][:] = 0
            targets["sizes"] += 1
            return F.cross_entropy(output, targets["mask"])

        net, images, masks = make()
        targets = {"mask": masks.clone(), "sizes": np.zeros(2)}
        Probe(net, "norm").observe(images, targets, loss_fn, step=0)
        assert torch.equal(targets["mask"], masks)
        assert not targets["sizes"].any()


class TestOtherThreads:
    class Waits(nn.Module):
        """Says when it runs, and goes on when it may."""

        def __init__(self):
            super().__init__()
            self.up = nn.Conv2d(3, 2, 1)
            self.norm = nn.BatchNorm2d(2)
            self.running, self.may_end = threading.Event(), threading.Event()

        def forward(self, x):
            x = self.up(x)
            self.running.set()
            assert self.may_end.wait(10)
            return self.norm(x)

    def test_a_model_that_runs_in_another_thread_is_refused(self):
        net, (images, targets) = self.Waits().train(), make()[1:]
        thread = threading.Thread(target=net, args=(images,))
        thread.start()
        assert net.running.wait(10)
        with pytest.raises(FadevizError, match="Waits is running in another thread"):
            Probe(net, "up").observe(images, targets, F.cross_entropy, step=0)
        assert net.training
        net.may_end.set()
        thread.join()
        assert len(Probe(net, "up").observe(images, targets, F.cross_entropy, step=0)) == 2

    def test_a_forward_pass_of_another_thread_waits_for_the_end(self):
        net, (images, targets) = self.Waits().train(), make()[1:]
        modes = []
        net.norm.register_forward_hook(lambda module, inputs, output: modes.append(module.training))

        def trains():
            assert net.running.wait(10)  # the observation is in the middle of its forward pass
            threading.Timer(0.1, net.may_end.set).start()
            net(images)

        thread = threading.Thread(target=trains)
        thread.start()
        found = Probe(net, "up").observe(images, targets, F.cross_entropy, step=0)
        thread.join()
        assert len(found) == 2  # not the call of the other thread
        assert modes == [False, True]
        assert int(net.norm.num_batches_tracked) == 1

    def test_a_layer_that_the_model_itself_runs_in_a_thread(self):
        class Threaded(nn.Module):
            def __init__(self):
                super().__init__()
                self.up = nn.Conv2d(3, 2, 1)

            def forward(self, x):
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    return pool.submit(self.up, x).result()

        with pytest.raises(FadevizError, match="layer 'up' did not run in the thread that observes"):
            Probe(Threaded(), "up").observe(*make()[1:], F.cross_entropy, step=0)

    def test_two_probes_of_two_threads_do_not_meet(self):
        net, images, targets = make()
        net.train()
        wanted = observe(net, images, targets, layers="norm")
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(observe(net, images, targets, layers="norm")))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        for found in results:
            np.testing.assert_array_equal(found["norm/0/gradient"], wanted["norm/0/gradient"])
        assert all(module.training for module in net.modules())


def test_sizes_of_every_call():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return sum(F.interpolate(self.head(F.avg_pool2d(x, k)), x.shape[-2:]) for k in (1, 2))

    net, (images, targets) = Pyramid(), make()[1:]
    found = Probe(net, "head").observe(images, targets, F.cross_entropy, step=np.int64(3))
    assert layer_sizes(found) == {"head": LayerInfo(size=(6, 8), calls=((6, 8), (3, 4)))}
    assert [type(snapshot.step) for snapshot in found] == [int] * 4
