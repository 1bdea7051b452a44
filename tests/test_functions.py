"""Calls of functions as layers: F.interpolate and others, recorded like modules; names of one's own; the tree."""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fadeviz
from fadeviz import FadevizError, Recorder, View, open_run
from fadeviz.recording.functions import FUNCTIONS, FunctionCalls, split_function
from fadeviz.recording.probe import Probe


class Up(nn.Module):
    """A decoder stage of almost every paper: interpolate, concatenate, convolve."""

    def __init__(self, channels, skip, out):
        super().__init__()
        self.conv = nn.Conv2d(channels + skip, out, 3, padding=1)

    def forward(self, x, skip):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return F.relu_(self.conv(torch.cat([x, skip], 1)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout2d(0.2)
        self.down = nn.Conv2d(4, 6, 3, 2, 1)
        self.decoder = nn.ModuleDict({"up1": Up(6, 4, 5), "up2": Up(5, 3, 4)})
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        image, x = x, self.norm(self.stem(x))
        x = F.max_pool2d(x, 2)
        x = self.decoder["up1"](self.down(x), x)
        x = self.decoder["up2"](self.drop(x), image)
        x = F.interpolate(self.head(x), scale_factor=0.5)
        return F.interpolate(x, size=image.shape[-2:])


def batch(images=3, side=16):
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(2, (images, side, side), generator=generator)
    return torch.rand(images, 3, side, side, generator=generator), targets


def make(cls=UNet):
    torch.manual_seed(0)
    return cls()


def observed(model, layers, kinds=("feature", "gradient"), step=0, **options):
    images, targets = batch()
    probe = Probe(model, layers, kinds, **{k: v for k, v in options.items() if k in ("views", "reduce")})
    options = {k: v for k, v in options.items() if k not in ("views", "reduce")}
    maps = {
        (s.layer, s.call, s.kind): s.value
        for s in probe.observe(images, targets, F.cross_entropy, step=step, **options)
    }
    return probe, maps


class TestMaps:
    def test_features_and_gradients_are_those_of_the_call(self):
        model = make().eval()
        _, maps = observed(model, "decoder.up1:interpolate")
        images, targets = batch()
        x = F.max_pool2d(model.norm(model.stem(images)), 2)
        inside = F.interpolate(model.down(x), scale_factor=2, mode="bilinear", align_corners=False)
        inside.retain_grad()
        y = F.relu(model.decoder["up1"].conv(torch.cat([inside, x], 1)))
        y = model.head(model.decoder["up2"](y, images))
        y = F.interpolate(F.interpolate(y, scale_factor=0.5), size=images.shape[-2:])
        F.cross_entropy(y, targets).backward()
        assert maps.keys() == {("decoder.up1:interpolate", 0, kind) for kind in ("feature", "gradient")}
        np.testing.assert_allclose(maps["decoder.up1:interpolate", 0, "feature"], inside.detach().mean(1), atol=1e-6)
        expected = inside.grad.relu().sum(1)
        np.testing.assert_allclose(maps["decoder.up1:interpolate", 0, "gradient"], expected, atol=1e-8)
        assert expected.abs().max() > 0

    def test_calls_are_counted_in_each_module(self):
        _, maps = observed(make(), ":interpolate", "feature")
        assert {key[1]: value.shape for key, value in maps.items()} == {0: (3, 8, 8), 1: (3, 16, 16)}

    def test_it_is_the_map_of_the_module_that_calls_nothing_else(self):
        model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 1), nn.MaxPool2d(2))
        _, maps = observed(model, "1,1:interpolate")
        for kind in ("feature", "gradient"):
            np.testing.assert_array_equal(maps["1", 0, kind], maps["1:interpolate", 0, kind])

    @pytest.mark.parametrize("function", [*FUNCTIONS, "relu", "add", "fold", "softmax", "repeat_interleave"])
    def test_every_function(self, function):
        calls = {
            "interpolate": lambda x: F.interpolate(x, scale_factor=2),
            "pixel_shuffle": lambda x: torch.pixel_shuffle(x, 2),
            "grid_sample": lambda x: F.grid_sample(x, torch.zeros(len(x), 5, 4, 2), align_corners=False),
            "conv_transpose2d": lambda x: F.conv_transpose2d(x, torch.ones(4, 2, 2, 2), stride=2),
            "max_unpool2d": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
            "cat": lambda x: torch.concatenate([x, x], 1),
            "relu": lambda x: x.relu(),
            "add": lambda x: x + 1,
            "fold": lambda x: F.fold(F.unfold(x, 2, stride=2), x.shape[-2:], 2, stride=2),
            "softmax": lambda x: F.softmax(x, 1),
            "repeat_interleave": lambda x: x.repeat_interleave(2, -1),
        }

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 1)

            def forward(self, x):
                return calls[function](self.conv(x))

        model, images = Net(), batch()[0]
        probe = Probe(model, f":{function}")
        snapshots = probe.observe(images, None, lambda output, _: output.square().sum(), step=0)
        assert [s.kind for s in snapshots] == ["feature", "gradient"]
        np.testing.assert_array_equal(snapshots[0].value, model(images).detach().mean(1))

    def test_other_names_of_a_function_are_one(self):
        assert split_function("a.b:upsample") == ("a.b", "interpolate")
        assert split_function("a:concat") == ("a", "cat")
        for text in (
            "F.interpolate",
            "nn.functional.interpolate",
            "torch.nn.functional.interpolate()",
            " interpolate",
        ):
            assert split_function(f"a.b:{text}") == ("a.b", "interpolate")
        assert split_function("a:torch.cat()") == ("a", "cat")
        assert split_function("a.b") == ("a.b", "")

    def test_what_is_written_in_place_afterwards_does_not_show(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 2, 1)

            def forward(self, x):
                return F.interpolate(self.conv(x), scale_factor=1.0).mul_(0.0) + self.conv(x)

        model, images = Net(), batch()[0]
        _, maps = observed(model, ":interpolate", "feature")
        np.testing.assert_allclose(maps[":interpolate", 0, "feature"], model.conv(images).detach().mean(1), atol=1e-7)

    def test_a_few_images_at_a_time(self):
        model = make()
        _, whole = observed(model, "**:*")
        probe, parts = observed(model, "**:*", images_at_once=1)
        assert whole.keys() == parts.keys()
        assert not probe.notes
        for key, value in whole.items():
            np.testing.assert_allclose(parts[key], value, atol=1e-6)

    def test_readouts(self):
        masks = np.zeros((6, 16, 16), bool)
        masks[:, 4:12, 3:11] = True
        probe = Probe(make(), {"up": "decoder.up2:cat"}, "readout", objects=masks)
        images, targets = batch(6)
        (snapshot,) = probe.observe(images, targets, F.cross_entropy, step=0)
        assert (snapshot.layer, snapshot.kind, snapshot.value.shape) == ("up", "readout", (6, 16, 16))

    def test_functions_of_the_recording_itself_are_not_the_models(self):
        """A reduction, or a readout, that calls torch.cat does so while a hook of the module runs."""
        _, maps = observed(
            make(), "decoder.up1:cat,decoder.up1", "feature", reduce=lambda m: torch.cat([m, m], 1).mean(1)
        )
        assert {key[:2] for key in maps} == {("decoder.up1", 0), ("decoder.up1:cat", 0)}

    def test_a_compiled_model(self):
        torch.compiler.reset()
        model = make()
        _, plain = observed(model, "**:interpolate")
        _, compiled = observed(torch.compile(model, backend="eager"), "**:interpolate")
        assert plain.keys() == compiled.keys()
        assert all(np.array_equal(plain[key], compiled[key]) for key in plain)
        torch.compiler.reset()

    def test_an_exported_model(self):
        model, images = make().eval(), batch()[0]
        exported = torch.export.export(model, (images,)).module()
        snapshots = Probe(exported, ":*", "feature").observe(images, None, None, step=0)
        plain = {(s.layer, s.call): s for s in Probe(model, "**:*", "feature").observe(images, None, None, step=0)}
        assert {(s.layer, s.call) for s in snapshots} == {
            (f":{f}", c) for f, n in {"interpolate": 4, "cat": 2}.items() for c in range(n)
        }
        first = next(s for s in snapshots if s.layer == ":cat")
        np.testing.assert_allclose(first.value, plain["decoder.up1:cat", 0].value, atol=1e-6)


class TestWhoCalls:
    def test_the_innermost_module_also_through_functions_and_methods(self):
        def double(x):
            return max([F.interpolate(x, scale_factor=2) for _ in range(1)], key=len)

        class Inner(nn.Module):
            def forward(self, x):
                return double(x)

            def other(self, x):
                return F.interpolate(x, scale_factor=0.5)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.inner = nn.Conv2d(3, 2, 1), Inner()
                self.hidden = [Inner()]  # no name: its calls are those of the module around it

            def forward(self, x):
                x = self.inner.forward(self.conv(x))  # no hook would see this call
                x = self.hidden[0](self.inner.other(x))
                return self.inner.other(x)

        probe, maps = observed(Net(), "**:*", "feature")
        assert probe.layers == (":interpolate", "inner:interpolate")
        assert [key[1] for key in maps if key[0].startswith("inner")] == [0, 1, 2]

    def test_a_module_that_is_used_in_two_places(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = Up(3, 3, 2)
                self.b = self.a

            def forward(self, x):
                return self.a(x[:, :, ::2, ::2], x) + self.b(x[:, :, ::2, ::2], x)

        assert observed(Net(), "*:interpolate", "feature")[0].layers == ("a:interpolate",)
        _, maps = observed(Net(), "b:interpolate", "feature")
        assert [key[:2] for key in maps] == [("b:interpolate", 0), ("b:interpolate", 1)]

    def test_recomputation_in_the_backward_pass_is_no_call(self):
        class Net(UNet):
            def forward(self, x):
                return checkpoint(super().forward, x, use_reentrant=False)

        _, plain = observed(make(), "**:*")
        _, maps = observed(make(Net), "**:*")
        assert maps.keys() == plain.keys()
        assert all(np.array_equal(plain[key], maps[key]) for key in maps)

    def test_a_thread_of_the_training_is_not_observed(self):
        model, images = make(), batch()[0]
        probe = Probe(model, ":interpolate", "feature")
        other = Probe(copy.deepcopy(model), "decoder.up1", "feature")

        def loss(output, targets):  # meanwhile another thread uses another model
            thread = threading.Thread(target=lambda: other.observe(images, None, None, step=0))
            thread.start()
            thread.join()
            return output.mean()

        assert len(probe.observe(images, None, loss, step=0)) == 2


class TestTraining:
    def test_is_bit_identical(self):
        def train(recorder=None):
            model = make()
            optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            images, targets = batch()
            record = None if recorder is None else recorder(model)
            for step in range(1, 5):
                optimiser.zero_grad()
                F.cross_entropy(model(images), targets).backward()
                optimiser.step()
                if record is not None:
                    record.observe(images, targets, F.cross_entropy, step=step)
            return model.state_dict()

        plain, recorded = train(), train(lambda model: Probe(model, "**:*,decoder.up1"))
        assert all(torch.equal(plain[name], recorded[name]) for name in plain)

    def test_no_mode_is_left_even_after_an_error(self):
        model = make()
        probe = Probe(model, "**:*")
        with pytest.raises(FadevizError, match="the forward pass failed"):
            probe.observe(torch.zeros(1, 4, 16, 16), None, F.cross_entropy, step=0)
        assert torch.overrides._get_current_function_mode_stack() == []
        calls = []
        with FunctionCalls(model, model.modules(), lambda module, name, call: calls.append(name) or call()):
            model(batch()[0])
        assert "interpolate" in calls
        assert torch.overrides._get_current_function_mode_stack() == []


class Mixed(nn.Module):
    """Calls ``torch.cat`` for sizes, for maps and along the batch; and interpolates a position embedding."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 2, 1)
        self.position = nn.Parameter(torch.rand(1, 4, 4, 4))

    def forward(self, x):
        size = torch.cat([torch.tensor([x.shape[2]]), torch.tensor([x.shape[3]])])
        y = self.conv(x)
        y = torch.cat([y[:, 2:], y[:, :2]], 1)
        y = torch.cat([y, y.flip(-1)], 0).unflatten(0, (2, -1)).mean(0)
        y = y + F.interpolate(self.position, size=y.shape[-2:])
        with torch.no_grad():
            F.interpolate(y, scale_factor=0.5)
        F.interpolate(y, scale_factor=0.25)  # does not influence the loss
        return F.interpolate(self.head(y), size=size.tolist())


class TestSingleCalls:
    """A call that cannot be recorded says nothing against the other calls in the same module."""

    def test_they_are_left_out_with_a_note(self):
        model = make(Mixed)
        probe, maps = observed(model, "**:*")
        assert probe.layers == (":interpolate", ":cat")
        assert {key[:2] for key in maps} == {(":interpolate", 0), (":cat", 0)}  # numbered without the others
        images = batch()[0]
        y = model.conv(images)
        y = torch.cat([y[:, 2:], y[:, :2]], 1)
        np.testing.assert_allclose(maps[":cat", 0, "feature"], y.detach().mean(1), atol=1e-6)
        np.testing.assert_allclose(maps[":interpolate", 0, "feature"], model(images).detach().mean(1), atol=1e-6)
        assert maps[":cat", 0, "gradient"].any()
        assert probe.notes == [
            "left out: 1 of the 4 calls of layer ':interpolate': runs without gradients (torch.no_grad, or a reentrant "
            "checkpoint). Leave gradient out of the kinds, or choose another layer",
            "left out: 1 of the 4 calls of layer ':interpolate': does not influence the loss, so it has no gradient",
            "left out: 1 of the 4 calls of layer ':interpolate': returns 1 map for 3 images",
            "left out: 1 of the 3 calls of layer ':cat': returns a tensor of 1 axes; a map (B, C, h, w) or tokens "
            "(B, L, C) are needed",
            "left out: 1 of the 3 calls of layer ':cat': returns 6 maps for 3 images",
        ]

    def test_also_where_the_layer_was_named_and_a_few_images_at_a_time(self):
        model = make(Mixed)
        _, whole = observed(model, {"both": ":cat"})
        probe, maps = observed(model, {"both": ":cat"}, images_at_once=2)
        assert maps.keys() == whole.keys() == {("both", 0, kind) for kind in ("feature", "gradient")}
        assert maps["both", 0, "feature"].shape == (3, 8, 8)
        for key in maps:
            np.testing.assert_allclose(maps[key], whole[key], atol=1e-6)
        assert not [note for note in probe.notes if "at once" in note]

    def test_the_only_ones_are_recorded_or_say_why_not(self):
        class Batch(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 2, 1)

            def forward(self, x):
                torch.stack([x.mean(), x.std()])
                return torch.cat([self.conv(x), self.conv(x)], 0).unflatten(0, (2, -1)).mean(0)

        _, maps = observed(make(Batch), "**:*", "feature")
        assert maps[":cat", 0, "feature"].shape == (6, 16, 16)
        with pytest.raises(FadevizError, match="layer ':stack' returns a tensor of 1 axes"):
            observed(make(Batch), ":stack", "feature")

    def test_readouts_are_those_of_the_others(self):
        masks = np.zeros((5, 16, 16), bool)
        masks[:, 4:12, 3:11] = True
        images = batch(5)[0]
        probe = Probe(make(Mixed), ":interpolate", ("feature", "readout"), objects=masks)
        found = {(s.call, s.kind): s.value.shape for s in probe.observe(images, None, None, step=0)}
        sizes = [(5, 4, 4), (5, 2, 2), (5, 16, 16)]  # that under no_grad has a map, too
        assert {call: shape for (call, kind), shape in found.items() if kind == "feature"} == dict(enumerate(sizes))
        assert found[2, "readout"] == (5, 16, 16)
        assert not [note for note in probe.notes if "no readout" in note and "returns" in note]

    def test_the_tree_says_so(self):
        rows = {row.name: row for row in fadeviz.layers(make(Mixed), batch()[0])}
        assert rows[":cat"].shapes == ((3, 4, 8, 8),)
        assert rows[":cat"].note == "2 other calls left out: returns a tensor of 1 axes"
        assert rows[":interpolate"].note == "1 other call left out: returns 1 map for 3 images"

    def test_a_run_is_drawn_and_measured_in_a_layer_with_one_map_per_image(self, tmp_path):
        class Two(Mixed):
            def forward(self, x):
                y = torch.cat([self.conv(x), self.conv(x)], 0).unflatten(0, (2, -1)).mean(0)
                return self.head(y + F.grid_sample(self.position, torch.zeros(1, 8, 8, 2), align_corners=False))

        images, targets = batch(4)
        with pytest.warns(fadeviz.RecorderWarning, match="returns 8 maps for 4 images"):
            recorder = Recorder(make(Two), "**:*,head", [0], tmp_path / "a", batch=(images, targets[:, ::2, ::2]),
                                loss_fn=F.cross_entropy)  # fmt: skip
        recorder.close()
        run = open_run(tmp_path / "a")
        assert list(run.layers) == [":grid_sample", ":cat", "head"]
        assert run.default_layer("feature") == "head"
        with pytest.raises(FadevizError, match=r":cat: 8 maps of 4 images in .*, but one map per image"):
            fadeviz.analyze(run, layer=":cat")

    def test_transforms_of_torch_func(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 2, 1)

            def forward(self, x):
                def one(image):
                    return F.interpolate(self.conv(image[None]), scale_factor=2)[0]

                return F.interpolate(torch.vmap(one)(x), scale_factor=0.5)

        probe, maps = observed(make(Net), "**:*,*")
        assert probe.layers == (":interpolate",)
        assert {key[1] for key in maps} == {0}
        assert all("runs inside a transform of torch.func such as vmap" in note for note in probe.notes)
        with pytest.raises(FadevizError, match="layer 'conv' runs inside a transform of torch.func such as vmap"):
            observed(make(Net), "conv")


class Adaptive(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.times = nn.Conv2d(3, 2, 1), 1

    def forward(self, x):
        x = self.conv(x)
        for _ in range(self.times):
            x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)
        return torch.cat([x[:, :1], x[:, 1:]], 1) if self.times > 2 else x


def test_calls_that_change_during_training_are_noted():
    model, (images, targets) = Adaptive(), batch()
    probe = Probe(model, "**:*", "feature")
    for step, model.times in enumerate([1, 1, 2, 3, 1]):
        probe.observe(images, targets, None, step=step)
    assert probe.layers == (":interpolate",)
    assert probe.notes == [
        "layer ':interpolate' has 2 calls at step 2, and had 1 before: the number of a call may stand for another one",
        "layer ':cat' is not recorded: it was not called yet when the recording began",
    ]


def test_a_scripted_module_is_named(recwarn):
    class Up(nn.Module):
        def forward(self, x):
            return F.interpolate(x, scale_factor=2.0)

    model = nn.Sequential(nn.Conv2d(3, 2, 1), torch.jit.script(Up()))
    with pytest.raises(FadevizError, match=r"layer '1' is scripted \(torch.jit\), so that its calls are not seen"):
        Probe(model, "1:interpolate", "feature").observe(batch()[0], None, None, step=0)


class TestNames:
    @pytest.mark.parametrize(
        ("layers", "expected"),
        [
            ("decoder.*:interpolate", ("decoder.up1:interpolate", "decoder.up2:interpolate")),
            ("**:interpolate", (":interpolate", "decoder.up1:interpolate", "decoder.up2:interpolate")),
            ("decoder.up1:*", ("decoder.up1:interpolate", "decoder.up1:cat")),
            ("decoder.*:c*", ("decoder.up1:cat", "decoder.up2:cat")),
            ("decoder.up2:cat,decoder.up1,decoder.up1:*", ("decoder.up1", "decoder.up1:interpolate",
             "decoder.up1:cat", "decoder.up2:cat")),
            ("module.decoder.up1:cat", ("decoder.up1:cat",)),
            ("model.decoder.up1:cat", ("decoder.up1:cat",)),
            (["decoder.up1:relu_", "decoder.up1:concat"], ("decoder.up1:cat", "decoder.up1:relu_")),
        ],
    )  # fmt: skip
    def test_globs_take_what_is_called_in_the_networks_order(self, layers, expected):
        probe, maps = observed(make(), layers, "feature")
        assert probe.layers == expected
        assert dict.fromkeys(key[0] for key in maps).keys() == set(expected)
        assert not [note for note in probe.notes if "left out" in note]

    def test_the_prefix_that_a_trainer_adds(self):
        class Module(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = UNet()

            def forward(self, x):
                return self.model(x)

        assert observed(Module(), "decoder.*:cat,stem", "feature")[0].layers == (
            "model.stem", "model.decoder.up1:cat", "model.decoder.up2:cat")  # fmt: skip

    def test_prefixes_of_several_trainers(self):
        class Module(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = nn.ModuleDict({"module": UNet()})
                self.module = nn.Conv2d(3, 3, 1)

            def forward(self, x):
                return self.model["module"](x)

        assert observed(Module(), "stem,decoder.up1:cat", "feature")[0].layers == (
            "model.module.stem", "model.module.decoder.up1:cat")  # fmt: skip
        model = nn.ModuleDict({"model": UNet(), "module": UNet()})
        with pytest.raises(FadevizError, match="'stem' may be 'model.stem' or 'module.stem' of ModuleDict. Give the"):
            Probe(model, "stem")

    def test_a_modules_name_may_have_a_colon(self):
        model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ModuleDict({"a:b": nn.ReLU()})["a:b"])
        model = nn.Sequential()
        model.add_module("conv:cat", nn.Conv2d(3, 2, 1))
        assert observed(model, "conv:cat", "feature")[0].layers == ("conv:cat",)

    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            ("decoder.up1:grid_sample", "layer 'decoder.up1:grid_sample' cannot be recorded: layer 'decoder.up1' does "
             r"not call grid_sample. Functions that it calls: cat, interpolate, relu_. List all .*fadeviz.layers\("),
            (":cat", "the model itself does not call cat. Functions that it calls: interpolate, max_pool2d"),
            ("decoder.*:pixel_shuffle", "no layer 'decoder.*:pixel_shuffle' can be recorded: no module of UNet that it "
             "matches calls pixel_shuffle. Functions that they call: cat, interpolate, relu_"),
            ("decoder.*:pixel_*", "matches calls pixel_shuffle. Functions that they call: cat, interpolate, relu_"),
            ("head:*", "calls interpolate, pixel_shuffle, grid_sample, conv_transpose2d, max_unpool2d or cat"),
            ("decoder.*:x*", "matches none of the functions interpolate, pixel_shuffle, grid_sample"),
            ("decoder.up3:interpolate", "no layer in UNet named 'decoder.up3'|no layer in UNet 'decoder.up3'"),
            ("decoder.up1:", "ends with a colon: a function's name is needed after it"),
            ({"up": "decoder.*"}, r"layers\['up'\] is 'decoder.\*', which stands for 2 layers: .* Name one of them"),
            ({"a/b": "stem"}, "layers has the name 'a/b': names of layers are text without"),
            ({}, "layers is empty"),
            ({"up": 3}, "layers contains 3, a int"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_recorded_is_said_in_one_line(self, layers, message):
        with pytest.raises(FadevizError, match=message) as caught:
            observed(make(), layers, "feature")
        assert "\n" not in str(caught.value)


class TestNamesOfOnesOwn:
    def test_a_run_of_a_recorder(self, tmp_path):
        images, targets = batch()
        roles = {"up1": "decoder.up1:interpolate", "late": "decoder.up2"}
        model = make()
        with Recorder(model, roles, [0, 2], tmp_path / "run", batch=(images, targets), loss_fn=F.cross_entropy,
                      views={"up1": View(), "decoder.up2": View()}) as recorder:  # fmt: skip
            recorder.step(2)
        run = open_run(tmp_path / "run")
        assert list(run.layers) == ["up1", "late"]
        assert [layer.source for layer in run.info.layers.values()] == ["decoder.up1:interpolate", "decoder.up2"]
        lines = str(run.summary())
        assert "  up1  " in lines
        assert "decoder.up1:interpolate" in lines
        expected = observed(model, "decoder.up1:interpolate", "feature")[1]
        np.testing.assert_allclose(run.maps("up1", "feature")[0], expected["decoder.up1:interpolate", 0, "feature"])

    def test_it_is_resumed_under_the_same_names_only(self, tmp_path):
        options = {"batch": batch(), "loss_fn": F.cross_entropy}
        for layers in ({"up1": "decoder.up1:interpolate"}, "**:*"):
            out = tmp_path / str(len(layers))
            with Recorder(make(), layers, [0, 1, 2], out, **options) as recorder:
                recorder.step(1)
            with Recorder(make(), layers, [0, 1, 2], out, resume=True, **options) as recorder:
                recorder.step(2)
            assert open_run(out).steps == (0, 1, 2)
            with pytest.raises(FadevizError, match="was recorded with other layers"):
                Recorder(make(), {"up2": "decoder.up1:interpolate"}, [0, 1, 2], out, resume=True, **options)
        with pytest.raises(FadevizError, match="was recorded with other layers"):
            Recorder(make(), {"up1": "decoder.up2:interpolate"}, [0, 1, 2], tmp_path / "1", resume=True, **options)

    def test_a_glob_for_one_module_and_two_names_for_one_layer(self):
        probe, maps = observed(make(), {"a": "decoder.*p1", "b": "decoder.up1", "c": "decoder.up1:cat"}, "feature")
        assert probe.layers == ("a", "b", "c")
        np.testing.assert_array_equal(maps["a", 0, "feature"], maps["b", 0, "feature"])
        assert probe.sources == {"a": "decoder.up1", "b": "decoder.up1", "c": "decoder.up1:cat"}

    def test_parts_of_an_operator(self):
        from fadeviz.models import build_network

        model = build_network("unet", "fade", width=0.125)
        probe = Probe(model, {"late": "decoder.3.upsample"}, "gate,kernel_entropy")
        images = torch.rand(2, 3, 32, 32)
        assert [s.kind for s in probe.observe(images, None, None, step=0)] == ["gate", "kernel_entropy"]


class TestTree:
    def test_names_shapes_and_notes(self):
        tree = fadeviz.layers(make(), batch(1)[0])
        rows = {row.name: row for row in tree}
        assert rows["decoder.up1:interpolate"].shapes == ((1, 6, 8, 8),)
        assert rows[":interpolate"].shapes == ((1, 2, 8, 8), (1, 2, 16, 16))
        assert rows["decoder"].note == "is not called"
        assert rows["decoder.up2"].parameters == 8 * 4 * 9 + 4
        assert list(rows)[:3] == ["", ":interpolate", "stem"]
        text = str(tree)
        assert "    decoder.up1:interpolate" not in text.split("\n")[1]
        assert "2 calls" in text
        assert len({line for line in text.splitlines() if "interpolate()" in line}) == 3
        assert tree.to_dicts()[0]["module"] == "UNet"

    def test_every_name_can_be_recorded(self):
        model, images = make(), batch(2)[0]
        names = [row.name for row in fadeviz.layers(model, images) if row.shapes and row.name]
        probe = Probe(model, names, "feature")
        shapes = {s.layer: s.value.shape for s in probe.observe(images, None, None, step=0)}
        assert list(shapes) == names

    def test_outputs_that_are_no_maps(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.tokens, self.linear, self.pair = nn.Flatten(2), nn.Linear(3, 2), nn.Identity()

            def forward(self, x):
                return self.pair((x, x)), self.linear(self.tokens(x).mT)

        rows = {row.name: row for row in fadeviz.layers(Net(), torch.zeros(1, 3, 8, 8))}
        assert rows["pair"].note.startswith("returns several tensors")
        assert not rows["pair"].shapes
        assert rows["tokens"].note == "returns 3 tokens, which do not form a square grid"
        assert (rows["linear"].shapes, rows["linear"].note) == (((1, 64, 2),), "tokens, read as 8x8")
        assert rows[""].note.startswith("tuple of 0 tuple")

    def test_depth_and_no_trace(self):
        model = make().train()
        before = copy.deepcopy(model.state_dict())
        tree = fadeviz.layers(model, batch(1)[0], depth=1)
        assert [row.name for row in tree] == ["", ":interpolate", "stem", "norm", "drop", "down", "decoder", "head"]
        assert str(tree).endswith("and 8 deeper layers: choose with depth=...")
        assert model.training
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    @pytest.mark.parametrize(
        ("model", "images", "options", "message"),
        [
            (UNet(), torch.zeros(1, 3, 8, 8), {"depth": 0}, "depth is 0; it must be 1 or more"),
            (UNet(), torch.zeros(1, 3, 8, 8), {"mode": "train"}, "no observation mode 'train'"),
            (UNet, torch.zeros(1, 3, 8, 8), {}, "the model is the class UNet: a torch.nn.Module is needed"),
            (None, torch.zeros(1, 3, 8, 8), {}, "the model is a NoneType: a torch.nn.Module is needed"),
            (UNet(), np.zeros((1, 3, 8, 8)), {}, "the forward pass failed, in layer 'stem' .* called with ndarray"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, model, images, options, message):
        with pytest.raises(FadevizError, match=message) as caught:
            fadeviz.layers(model, images, **options)
        assert "\n" not in str(caught.value)

    def test_a_model_without_modules(self):
        class Net(nn.Module):
            def forward(self, x):
                return F.interpolate(x, scale_factor=2) + 0

        assert [row.name for row in fadeviz.layers(Net(), torch.zeros(1, 3, 4, 4))] == ["", ":interpolate"]
