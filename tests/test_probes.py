"""Probes: what they see, and that they leave no trace."""

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F

from fadeviz import FadevizError
from fadeviz.models import build_network
from fadeviz.probes import Probe, find_layers, kernel_entropy
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
        with pytest.raises(FadevizError, match="layer '1' gives a tensor of 2 axes"):
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
