"""The recorder in somebody else's loop: what it stores, and that the training does not notice."""

import contextlib
import copy
import gc
import os
import pickle
import re
import shutil
import time
import warnings
from collections import OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from click.testing import CliRunner
from fadeviz_cli.main import main
from torch import nn
from torch.nn import functional as F

import fadeviz
from fadeviz import FadevizError, Recorder, RecorderWarning, Schedule, View, open_run
from fadeviz.data.observation import find_object
from fadeviz.recording.masks import arrays_in
from fadeviz.recording.probe import Probe
from fadeviz.recording.recorder import _release
from fadeviz.render.labels import truth_image, truth_regions
from fadeviz.storage.check import check_run
from fadeviz.storage.info import LayerInfo
from fadeviz.storage.snapshots import SnapshotStore


class Net(nn.Module):
    """A small decoder with BatchNorm, dropout, an in-place ReLU and a layer used twice."""

    def __init__(self, checkpointing=False):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Conv2d(6, 2, 1)
        self.checkpointing = checkpointing

    def decode(self, x):
        return self.drop(torch.relu_(self.twice(torch.relu_(self.twice(self.up(x))))))

    def forward(self, x):
        x = self.encoder(x)
        if self.checkpointing:
            return self.head(torch.utils.checkpoint.checkpoint(self.decode, x, use_reentrant=False))
        return self.head(self.decode(x))


OBSERVED = (
    torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5)),
    torch.ones(2, 16, 16, dtype=torch.long),
)


def train(setting, out=None, steps=5):
    """A hand-written loop; with ``out`` the same loop with a recorder in it. Returns all that training has changed."""
    torch.manual_seed(0)
    net = Net(checkpointing=setting == "checkpointing")
    if setting == "frozen":
        for parameter in net.encoder.parameters():
            parameter.requires_grad_(False)
        net.encoder.eval()
    model = {
        "data parallel": nn.DataParallel,
        "compiled": lambda m: torch.compile(m, backend="aot_eager"),
        "distributed": nn.parallel.DistributedDataParallel,
        "compiled, distributed": lambda m: torch.compile(nn.parallel.DistributedDataParallel(m), backend="aot_eager"),
    }.get(setting, lambda m: m)(net)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if setting == "scaled" else None
    recorder = None
    if out is not None:
        kinds = ["feature", "gradient"] if setting != "feature only" else None
        loss_fn = F.cross_entropy if setting != "feature only" else None
        mode = "batch" if setting == "batch mode" else "eval"
        recorder = Recorder(
            model, "up,twice", "2:4:2", out, batch=OBSERVED, loss_fn=loss_fn, kinds=kinds, observe_mode=mode,
            scaler=scaler,
        )  # fmt: skip
        assert recorder.model is net or setting == "data parallel"
    for step in range(1, steps + 1):
        parts = 2 if setting == "accumulated" else 1
        for _ in range(parts):
            images, masks = torch.randn(2, 3, 16, 16), torch.randint(0, 2, (2, 16, 16))
            with torch.autocast("cpu", torch.bfloat16) if setting == "autocast" else contextlib.nullcontext():
                loss = F.cross_entropy(model(images).float(), masks) / parts
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if recorder is not None and setting != "before zero_grad":
            recorder.step(step)
        if setting == "before zero_grad" and recorder is not None:
            held = [p.grad.clone() for p in net.parameters()]
            recorder.step(step)
            assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), held, strict=True))
        optimizer.zero_grad()
    momentum = [s["momentum_buffer"] for s in optimizer.state_dict()["state"].values()]
    modes = [module.training for module in net.modules()]
    return [*net.state_dict().values(), *momentum, torch.get_rng_state(), torch.tensor(modes)], net


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "setting",
    [
        "plain", "feature only", "batch mode", "before zero_grad", "accumulated", "autocast", "scaled", "checkpointing",
        "frozen", "data parallel", "compiled", "distributed", "compiled, distributed",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_the_training_is_the_same_to_the_bit(tmp_path, setting, request):
    if "distributed" in setting:
        request.getfixturevalue("one_process")
    alone, _ = train(setting)
    watched, net = train(setting, tmp_path / "run")
    assert len(alone) == len(watched) > 16
    for a, b in zip(alone, watched, strict=True):
        assert torch.equal(a, b)
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 2, 4)
    assert run.info.status == "finished"
    kinds = ("feature",) if setting == "feature only" else ("feature", "gradient")
    assert run.layers == {"up": kinds, "twice": kinds}
    assert run.maps("up").shape == (3, 2, 16, 16)
    scales = [{"step": step, "grad_scale": 256.0} for step in (2, 4)]
    assert run.metrics() == (scales if setting == "scaled" else [])
    # And what is stored is what a probe sees in the plain model at that step.
    torch.manual_seed(0)
    untrained = Net()
    mode = "batch" if setting == "batch mode" else "eval"
    if setting != "frozen":
        (seen,) = Probe(untrained, "up", ["feature"]).observe(*OBSERVED, F.cross_entropy, step=0, mode=mode)
        np.testing.assert_allclose(run.read(0, "up", "feature"), seen.value, atol=1e-6)
    assert np.array_equal(run.observation[1], np.ones((2, 16, 16)))


def test_a_compiled_model_made_after_the_recorder(tmp_path):
    net = Net()
    recorder = Recorder(net, "up", [1], tmp_path / "run", batch=OBSERVED, loss_fn=F.cross_entropy)
    compiled = torch.compile(net, backend="aot_eager")
    F.cross_entropy(compiled(OBSERVED[0]), OBSERVED[1]).backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= 0.1 * parameter.grad
    assert recorder.step(1)
    assert not np.array_equal(*open_run(tmp_path / "run").maps("up"))


def test_layers_as_modules_and_a_reduction_of_ones_own(tmp_path):
    net = Net()
    with Recorder(net, net.up, [3], tmp_path / "a", batch=OBSERVED, reduce=lambda m: m.amax(1)) as recorder:
        recorder.step(3)
    run = open_run(tmp_path / "a")
    want = net.eval().up(net.encoder(OBSERVED[0])).amax(1).detach().numpy()
    np.testing.assert_allclose(run.read(3, "up", "feature"), want, atol=1e-6)
    with pytest.raises(
        FadevizError, match=r"reduce returned \(2, 6\) for \(2, 6, 16, 16\) in layer 'up'. It must return"
    ):
        Recorder(net, net.up, [3], tmp_path / "b", batch=OBSERVED, reduce=lambda m: m.amax((2, 3)))
    assert not (tmp_path / "b" / "run.json").exists()
    with pytest.raises(FadevizError, match="the Upsample given as a layer is not part of Net"):
        Recorder(net, nn.Upsample(), [3], tmp_path / "c", batch=OBSERVED)
    with pytest.raises(FadevizError, match=r"Calls of a function are named after the module around them"):
        Recorder(net, "interpolate", [3], tmp_path / "d", batch=OBSERVED)


Pair = namedtuple("Pair", "hidden logits")


@dataclass
class Output:
    """As transformers have them."""

    hidden: torch.Tensor
    loss: None = None


class Tokens(nn.Module):
    """Gives tokens of a grid, with a class token before them, in whatever container is asked for."""

    def __init__(self, wrap, class_token):
        super().__init__()
        self.wrap, self.class_token = wrap, class_token
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        tokens = (self.scale * x).flatten(2).transpose(1, 2)
        if self.class_token:
            tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        return self.wrap(tokens)


class Wrapped(nn.Module):
    def __init__(self, wrap, unwrap, class_token=False):
        super().__init__()
        self.inner, self.unwrap, self.first = Tokens(wrap, class_token), unwrap, int(class_token)

    def forward(self, pixel_values):
        return self.unwrap(self.inner(pixel_values))[:, self.first :].pow(2)


@pytest.mark.parametrize(
    ("wrap", "unwrap", "class_token", "view"),
    [
        (lambda t: t, lambda o: o, False, None),
        (lambda t: t, lambda o: o, True, None),
        (lambda t: (t, None), lambda o: o[0], False, None),
        (lambda t: {"hidden": t, "logits": t[:, :, 0]}, lambda o: o["hidden"], True, None),
        (lambda t: Output(t), lambda o: o.hidden, False, View("hidden")),
        (lambda t: Pair(t, t + 1), lambda o: o.hidden, False, View(0)),
    ],
)
def test_tokens_in_any_container_are_the_map_they_are_of(tmp_path, wrap, unwrap, class_token, view):
    model = Wrapped(wrap, unwrap, class_token)
    images = torch.randn(2, 3, 4, 4)
    recorder = Recorder(model, "inner", [1], tmp_path / "run", batch=({"pixel_values": images}, None),
                        loss_fn=lambda out, _: out.sum(), views={"inn*": view} if view else None)  # fmt: skip
    assert recorder.step(1)
    run = open_run(tmp_path / "run")
    np.testing.assert_allclose(run.read(1, "inner", "feature"), images.mean(1).numpy(), atol=1e-6)
    gradient = (2 * images).relu().sum(1).numpy()  # of the sum of squares
    np.testing.assert_allclose(run.read(1, "inner", "gradient"), gradient, atol=1e-5)


def test_a_grid_that_is_no_square(tmp_path):
    model, images = Wrapped(lambda t: t, lambda o: o), torch.randn(1, 3, 2, 8)
    with pytest.raises(
        FadevizError, match=r"returns 15 tokens, which do not form a square grid. Describe the grid: View\(grid="
    ):
        Recorder(model, "inner", [1], tmp_path / "a", batch=(torch.randn(1, 3, 3, 5), None))
    Recorder(model, "inner", [1], tmp_path / "run", batch=(images, None), views={"inner": View(grid=(2, 8))})
    stored = open_run(tmp_path / "run").read(0, "inner", "feature")
    np.testing.assert_allclose(stored, images.mean(1).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("wrap", "view", "message"),
    [
        (lambda t: (t, t), View(), r"several tensors: 0 \(2, 16, 3\), 1 \(2, 16, 3\). Choose one: View\(key=0\)"),
        (lambda t: {"a": t}, View("b"), r"returns no tensor 'b'. Its entries: 'a' \(2, 16, 3\)"),
        (lambda t: t, View("b"), "returns a single tensor"),
        (lambda t: (t.mean(), "x"), View(), r"returns tuple without a map .*: 0 \(\), 1 str"),
        (lambda t: t.mean((1, 2)), View(), "returns a tensor of 1 axes"),
        (lambda t: "text", View(), "returns str; a map"),
    ],
)
def test_outputs_without_one_map(wrap, view, message):
    probe = Probe(Wrapped(wrap, lambda o: torch.zeros(2, 1, 3)), "inner", ["feature"], views={"inner": view})
    with pytest.raises(FadevizError, match=message):
        probe.observe(torch.randn(2, 3, 4, 4), None, None, step=0)


class TestFolder:
    def make(self, out, net=None, **options):
        options = {"batch": OBSERVED, "loss_fn": F.cross_entropy, **options}
        return Recorder(net or Net(), "up", "5:15:5", out, **options)

    def test_a_run_like_any_other(self, tmp_path):
        with self.make(
            tmp_path / "run", name="mine", seed=3, names=["a", "b"], masks=np.eye(16)[None].repeat(2, 0)
        ) as r:
            r.log(4, loss=0.5, miou=0.25)
        run = open_run(tmp_path / "run")
        assert (run.name, run.title, run.info.config, run.info.status) == (
            "mine",
            "mine",
            {"seed": 3},
            "finished",
        )
        assert run.info.observation.names == ("a", "b")
        assert run.observation[0].shape == (2, 16, 16, 3)
        assert (run.observation[0].min(), run.observation[0].max()) == (0, 255)
        assert np.array_equal(run.observation[1][0], np.eye(16))
        assert run.metrics() == [{"step": 4, "loss": 0.5, "miou": 0.25}]

    def test_resume_goes_on_and_a_second_writer_is_refused(self, tmp_path):
        first = self.make(tmp_path / "run")
        first.step(5)
        with pytest.raises(FadevizError, match="this process is recording into .* already"):
            self.make(tmp_path / "run", resume=True)
        first._steps.run.close()  # as if the process had been killed
        with pytest.raises(FadevizError, match="holds a run already"):
            self.make(tmp_path / "run")
        second = self.make(tmp_path / "run", resume=True)
        assert [second.step(n) for n in (5, 6, 10, 15)] == [True, False, True, True]
        run = open_run(tmp_path / "run")
        assert run.steps == (0, 5, 10, 15)
        assert not run.broken
        assert run.info.status == "finished"
        second.log(16, loss=1.0)
        second.close()
        with pytest.warns(RecorderWarning, match=r"metrics were not logged: this recorder is closed: log before close"):
            second.log(17, loss=1.0)
        assert len(run.metrics()) == 1
        with pytest.warns(RecorderWarning, match="nothing is recorded at step 15: this recorder is closed"):
            assert not second.step(15)
        with pytest.raises(FadevizError, match="observed other images"):
            self.make(tmp_path / "run", resume=True, batch=(OBSERVED[0] + torch.randn(2, 3, 16, 16), OBSERVED[1]))
        with pytest.raises(FadevizError, match="recorded with other kinds"):
            self.make(tmp_path / "run", resume=True, kinds=["feature"])
        third = self.make(tmp_path / "run", overwrite=True)
        assert open_run(tmp_path / "run").steps == (0,)
        third.close()

    def test_what_the_loader_does_to_its_buffer_is_not_seen(self, tmp_path):
        images = OBSERVED[0].clone()
        recorder = self.make(tmp_path / "run", batch=(images, OBSERVED[1]))
        images.zero_()
        recorder.step(5)
        maps = open_run(tmp_path / "run").maps("up")
        np.testing.assert_array_equal(maps[0], maps[1])

    def test_other_processes_write_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
        recorder = self.make(tmp_path / "run")
        assert not recorder.step(5)
        recorder.log(5, loss=1.0)
        recorder.close()
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"loss_fn": None, "kinds": "gradient"}, "the kind gradient needs loss_fn"),
            ({"names": ["a"]}, "1 names for 2 images"),
            ({"display_images": np.zeros((2, 4, 4))}, r"display_images are float64 \(2, 4, 4\); uint8"),
            ({"names": "ab"}, "names is 'ab', a str: a list of 2 names"),
            ({"display_images": np.zeros((3, 16, 16, 3), np.uint8)}, "3 display_images for 2 observed images"),
            ({"masks": np.zeros((1, 4, 4))}, r"masks are \(1, 4, 4\); \(N, H, W\) = \(2, 16, 16\) is needed"),
            ({"masks": np.zeros((2, 8, 8))}, r"masks are \(2, 8, 8\); \(N, H, W\) = \(2, 16, 16\) is needed"),
            ({"masks": np.full((2, 16, 16), 0.5)}, "masks are float64 and not whole numbers"),
            ({"masks": np.full((2, 16, 16), "a")}, "masks are <U1 and not whole numbers"),
            ({"masks": np.full((2, 16, 16), 254)}, "labels up to 254, but classes must be from 0 to 253, or void"),
            ({"classes": 1}, "classes is 1; with labels up to 1 it must be from 2 to 254"),
            ({"classes": 2.0}, "classes is 2.0, a float: a whole number is needed"),
            ({"foreground": 3}, r"foreground is 3, a class that the masks do not contain. They contain \[1\]"),
            ({"foreground": [1]}, "foreground has 1 classes for 2 images"),
            (
                {"foreground": 1, "batch": (OBSERVED[0], None), "loss_fn": None},
                "foreground is given, but the targets",
            ),
            ({"batch": OBSERVED[0]}, r"batch is a Tensor: a pair \(images, targets\) is needed"),
            ({"batch": (*OBSERVED, None)}, "batch is 3 parts: a pair"),
            ({"on_error": "ignore"}, "no value of on_error 'ignore'"),
            ({"scaler": 3.0}, "scaler is a float: a torch.amp.GradScaler is needed"),
            ({"start": 1.0}, "start is 1.0, a float: a whole number is needed"),
            ({"seed": "1"}, "seed is '1', a str: a whole number is needed"),
            ({"batch": (torch.randn(2, 6, 16, 16), None)}, "cannot be|can be shown"),
        ],
    )
    def test_bad_arguments_leave_nothing(self, tmp_path, options, message):
        with pytest.raises(FadevizError, match=message):
            self.make(tmp_path / "run", **options)
        assert not (tmp_path / "run" / "run.json").exists()

    def test_a_model_without_weights_is_refused(self, tmp_path):
        with torch.device("meta"):
            net = Net()
        with pytest.raises(FadevizError, match="the model is on the meta device"):
            self.make(tmp_path / "run", net)

    def test_a_sharded_model_is_refused(self, tmp_path, one_process):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import distribute_tensor

        mesh = init_device_mesh("cpu", (1,))
        sharded = fully_shard(Net(), mesh=mesh)
        with pytest.raises(FadevizError, match="this model is sharded"):
            self.make(tmp_path / "run", sharded)
        in_part = Net()  # as tensor parallelism does
        weight = distribute_tensor(in_part.head.weight, mesh)
        in_part.head.weight = nn.Parameter(weight)
        with pytest.raises(FadevizError, match="this model is sharded"):
            self.make(tmp_path / "run", in_part)
        assert not (tmp_path / "run").exists()

    def test_what_would_wait_for_the_other_processes_is_refused_by_all(self, tmp_path, monkeypatch):
        net = nn.SyncBatchNorm.convert_sync_batchnorm(Net())
        self.make(tmp_path / "alone", Net(), observe_mode="batch").close()
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        for rank in (0, 1):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            with pytest.raises(FadevizError, match="with SyncBatchNorm, the observation mode batch would wait"):
                self.make(tmp_path / "run", net, observe_mode="batch")
        assert not (tmp_path / "run").exists()


class TestSteps:
    def make(self, out, net=None, **options):
        options = {"batch": OBSERVED, "loss_fn": F.cross_entropy, **options}
        return Recorder(net or Net(), "up", "5:20:5", out, **options)

    def change(self, net):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.1

    def test_twice_the_same_is_once(self, tmp_path):
        net = Net()
        recorder = self.make(tmp_path / "run", net)
        before = {step: open_run(tmp_path / "run").read(step, "up", "feature") for step in (0,)}
        self.change(net)
        assert not recorder.step(0)  # as a loop that counts from 0 would call: the untrained model is recorded
        assert recorder.step(5)
        before[5] = open_run(tmp_path / "run").read(5, "up", "feature")
        self.change(net)
        assert not recorder.step(5)  # as in each part of an accumulated step
        for step, value in before.items():
            assert np.array_equal(open_run(tmp_path / "run").read(step, "up", "feature"), value)
        assert not np.array_equal(before[0], before[5])

    def test_steps_do_not_go_back(self, tmp_path):
        recorder = self.make(tmp_path / "run")
        assert recorder.step(5)
        with pytest.warns(RecorderWarning, match="step 1 comes after step 5: .* over the whole training, not in each"):
            assert not recorder.step(1)
        assert not any(recorder.step(step) for step in range(1, 10))  # a counter of each epoch: warned of once
        assert recorder.step(10)
        strict = self.make(tmp_path / "strict", on_error="raise")
        strict.step(5)
        with pytest.raises(FadevizError, match="step 1 comes after step 5"):
            strict.step(1)

    def test_a_step_that_was_passed_over_is_made_up_for(self, tmp_path):
        recorder = self.make(tmp_path / "run")
        assert [step for step in range(3, 28, 3) if recorder.step(step)] == [6, 12, 15, 21]
        run = open_run(tmp_path / "run")
        assert run.steps == (0, 6, 12, 15, 21)
        assert run.info.status == "finished"
        assert not check_run(tmp_path / "run")

    def test_what_a_killed_training_left_of_later_steps_is_dropped(self, tmp_path):
        net = Net()
        first = self.make(tmp_path / "run", net)
        for step in range(1, 18):
            first.step(step)
            first.log(step, loss=1.0)
        first._steps.run.close()  # as if the process had been killed, at a step after the checkpoint of 7
        self.change(net)
        second = self.make(tmp_path / "run", net, resume=True)
        assert open_run(tmp_path / "run").steps == (0, 5, 10, 15)  # nobody said where it goes on
        assert not second.step(0)
        assert not second.step(8)
        run = open_run(tmp_path / "run")
        assert run.steps == (0, 5)
        assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6, 7]
        assert second.step(10)
        second.close()
        assert not check_run(tmp_path / "run")
        assert open_run(tmp_path / "run").info.schedule == (0, 5, 10)

    def test_a_line_of_metrics_tells_too_where_a_training_goes_on(self, tmp_path):
        first = self.make(tmp_path / "run")
        for step in range(1, 12):
            first.step(step)
        first._steps.run.close()
        second = self.make(tmp_path / "run", resume=True)
        second.log(10, loss=2.0)
        assert open_run(tmp_path / "run").steps == (0, 5, 10)
        assert second.step(10)
        assert open_run(tmp_path / "run").metrics() == [{"step": 10, "loss": 2.0}]

    def test_it_may_be_said_beforehand(self, tmp_path):
        net = Net()
        late = self.make(tmp_path / "late", net, start=7)  # its beginning was not recorded
        assert [late.step(step) for step in (7, 8, 10)] == [False, False, True]
        assert open_run(tmp_path / "late").steps == (7, 10)
        late._steps.run.close()
        self.change(net)
        again = self.make(tmp_path / "late", net, start=15, resume=True)  # was killed before it recorded 15
        assert open_run(tmp_path / "late").steps == (7, 10, 15)
        again._steps.run.close()
        self.make(tmp_path / "late", net, start=9, resume=True).close()
        assert open_run(tmp_path / "late").steps == (7,)
        assert not check_run(tmp_path / "late")
        with pytest.raises(FadevizError, match="start is -1"):
            self.make(tmp_path / "other", start=-1)

    def test_a_training_that_fails_says_so_and_leaves_the_folder_free(self, tmp_path):
        def train(error):
            with self.make(tmp_path / "run", overwrite=True) as recorder:
                recorder.step(5)
                raise error

        for error, status in ((RuntimeError("no power"), "failed"), (KeyboardInterrupt(), "interrupted")):
            with pytest.raises(type(error)):
                train(error)
            info = open_run(tmp_path / "run").info
            assert (info.status, info.message) == (status, str(error))
        resumed = self.make(tmp_path / "run", resume=True)
        assert open_run(tmp_path / "run").info.message is None
        assert resumed.step(20)
        resumed.close(RuntimeError("after all was recorded"))
        assert open_run(tmp_path / "run").info.status == "finished"


def test_an_error_while_looking_leaves_everything_as_it_was(tmp_path):
    net, broken = Net().train(), []
    net.encoder[1].eval()

    def loss_fn(output, targets):
        if broken:
            raise RuntimeError("no loss today")
        return F.cross_entropy(output, targets)

    recorder = Recorder(net, "up", [1, 2], tmp_path / "run", batch=OBSERVED, loss_fn=loss_fn, on_error="raise")
    broken.append(True)
    modes, state = [module.training for module in net.modules()], torch.get_rng_state()
    with pytest.raises(FadevizError, match="no loss today"):
        recorder.step(1)
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    broken.clear()
    assert recorder.step(2)
    assert open_run(tmp_path / "run").steps == (0, 2)


def test_nothing_is_kept_from_one_step_to_the_next(tmp_path):
    def alive():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor | np.ndarray) for thing in gc.get_objects())

    recorder = Recorder(Net(), "up,twice", [1, 2, 3], tmp_path / "run", batch=OBSERVED, loss_fn=F.cross_entropy)
    recorder.step(1)
    before = alive()
    recorder.step(2)
    recorder.step(3)
    assert alive() == before


def test_weights_in_bfloat16(tmp_path):
    net = Net().bfloat16()
    recorder = Recorder(net, "up", [1], tmp_path / "run", batch=OBSERVED, loss_fn=F.cross_entropy)
    assert recorder.step(1)
    assert recorder._steps.observer.targets.dtype == torch.long
    wanted = net.eval().up(net.encoder(OBSERVED[0].bfloat16())).float().mean(1).detach().numpy()
    assert np.array_equal(open_run(tmp_path / "run").read(1, "up", "feature"), wanted)


def test_a_model_that_accelerate_prepared_is_seen_in_float32(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason='needs accelerate: pip install ".[transformers]"')
    net, plain = Net(), Net()
    plain.load_state_dict(net.state_dict())
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    prepared = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare_model(net)
    forward = prepared.forward
    try:
        assert not torch.equal(prepared.eval()(OBSERVED[0]), plain.eval()(OBSERVED[0]))  # bfloat16 inside
        Recorder(prepared, "up", [1], tmp_path / "run", batch=OBSERVED, loss_fn=F.cross_entropy)
        wanted = plain.up(plain.encoder(OBSERVED[0])).mean(1).detach().numpy()
        assert np.array_equal(open_run(tmp_path / "run").read(0, "up", "feature"), wanted)
        assert prepared.forward is forward
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def build(out, steps="1:3:1", net=None, **options):
    options = {"batch": OBSERVED, "loss_fn": F.cross_entropy, "kinds": "feature", **options}
    return Recorder(net or Net(), "up", steps, out, **options)


def test_a_child_that_is_called_as_compiled_models_call_theirs(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self._orig_mod = Net()
            self.head = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.head(self._orig_mod(x))

    recorder = Recorder(Wrapper(), "head", "1:2", tmp_path / "run", batch=OBSERVED, loss_fn=F.cross_entropy)
    assert type(recorder.model) is Wrapper
    assert recorder._steps.observer.probe.layers == ("head",)


class TestWhatCannotBeMeant:
    """Construction says in a line what is wrong, before anything is written."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"model": F.relu}, "the model is a function: a torch.nn.Module is needed"),
            ({"model": torch.nn.Conv2d}, "the model is the class Conv2d"),
            ({"layers": []}, "layers is empty: a name, a glob or a module is needed"),
            ({"layers": None}, "layers contains None, a NoneType"),
            ({"layers": ["up", 3]}, "layers contains 3, a int"),
            ({"kinds": []}, "kinds is empty: name one, or leave it out"),
            ({"kinds": 5}, "no kind '5'"),
            ({"observe_mode": None}, "no observation mode 'None'"),
            ({"channel_images": 0}, "channel_images is 0; it must be 1 or more"),
            ({"channel_images": "two"}, "channel_images is 'two', a str"),
            ({"views": {"up": len}}, "the view of 'up' is a builtin_function_or_method: a fadeviz.View is needed"),
            ({"views": 3}, "views is a int"),
            ({"names": 5}, "names is 5, a int: a list of 2 names is needed"),
        ],
    )
    def test_is_refused(self, tmp_path, options, message):
        options = {"model": Net(), "layers": "up", **options}
        with pytest.raises(FadevizError, match=re.escape(message)):
            Recorder(options.pop("model"), options.pop("layers"), "1:2", tmp_path / "run", batch=OBSERVED,
                     loss_fn=F.cross_entropy, **options)  # fmt: skip
        assert not (tmp_path / "run").exists()

    def test_layers_that_can_be_read_but_once(self, tmp_path):
        model = Net()
        recorder = Recorder(model, iter([model.up]), "1:2", tmp_path / "run", batch=OBSERVED, loss_fn=F.cross_entropy)
        assert recorder._steps.observer.probe.layers == ("up",)
        assert recorder._steps.observer.probe._choice.exact == {"up"}

    def test_a_working_directory_that_is_gone(self, tmp_path, monkeypatch):
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        with pytest.raises(FadevizError, match="out=run is relative to a working directory that is gone"):
            build("run")


class TestMasks:
    """What is stored as masks, and what is measured as the object."""

    LABELS = torch.zeros(2, 16, 16, dtype=torch.long)
    LABELS[:, 4:10, 4:10] = 1
    LABELS[:, 2:4, 2:12] = 255  # a void band, and an unlabelled strip
    LABELS[1, 13:] = 255
    OBJECT = (LABELS == 1).numpy()

    def run(self, out, targets, **options):
        build(out, batch=(OBSERVED[0], targets), loss_fn=None, **options)
        return open_run(out)

    @pytest.mark.parametrize("void", [255, -100, -1, 254, 7])
    def test_void_is_no_object(self, tmp_path, void):
        targets = torch.where(self.LABELS == 255, void, self.LABELS)
        loss_fn = torch.nn.CrossEntropyLoss(ignore_index=void)
        run = self.run(tmp_path / "run", targets, ignore_index=void)
        assert np.array_equal(run.observation[1], self.LABELS.numpy())
        assert np.array_equal(run.foregrounds, self.OBJECT)
        # What the loss ignores need not be said again, wherever in it that stands.
        for name, loss in (("a", loss_fn), ("b", partial(F.cross_entropy, ignore_index=void)), ("c", Half(loss_fn))):
            build(tmp_path / name, batch=(OBSERVED[0], targets), loss_fn=loss, kinds="gradient")
            assert np.array_equal(open_run(tmp_path / name).foregrounds, self.OBJECT)

    def test_void_is_drawn_as_no_object(self, tmp_path):
        run = self.run(tmp_path / "run", self.LABELS)
        assert np.array_equal(truth_image(run, 1)[..., 0] == 255, self.OBJECT[1])
        assert np.array_equal(truth_regions(run, 1), self.OBJECT[1])

    def test_many_classes_are_stored_and_one_object_of_each_image_is_measured(self, tmp_path):
        targets = self.LABELS.clone()
        targets[0, 12:, :2] = 3  # at the border, and small
        targets[1][self.OBJECT[1]] = 5
        run = self.run(tmp_path / "run", targets)
        assert np.array_equal(run.observation[1], targets.numpy())
        assert run.info.classes == 6
        assert list(run.info.observation.foreground) == [find_object(mask) for mask in run.observation[1]] == [1, 5]
        assert np.array_equal(run.foregrounds, self.OBJECT)
        more = self.run(tmp_path / "more", targets, classes=21, foreground=np.array([3, 0]))
        assert more.info.classes == 21
        assert np.array_equal(more.foregrounds[0], targets[0] == 3)
        assert np.array_equal(more.foregrounds[1], targets[1] == 0)

    @pytest.mark.parametrize("void", [255, -1])
    def test_one_hot_with_void_pixels(self, tmp_path, void):
        classes = (self.LABELS == 1).long()
        targets = F.one_hot(classes, 3).movedim(-1, 1).float()
        targets.masked_fill_(self.LABELS[:, None] == 255, void)
        run = self.run(tmp_path / "run", targets)
        assert np.array_equal(run.observation[1], self.LABELS.numpy())
        assert np.array_equal(run.foregrounds, self.OBJECT)

    def test_pixels_of_several_classes_or_of_none_are_no_masks_and_it_is_said(self, tmp_path):
        several = torch.ones(2, 3, 16, 16)
        none = F.one_hot((self.LABELS == 1).long(), 3).movedim(-1, 1) * (self.LABELS != 255)[:, None]
        for name, targets in (("several", several), ("none", none)):
            with pytest.warns(RecorderWarning, match=r"the targets \(2, 3, 16, 16\) are not masks, since some pixels"):
                run = self.run(tmp_path / name, targets)
            assert not run.observation[1].any()
            assert "Choose masks with masks=..." in run.info.notes[0]

    def test_class_0_can_be_the_object(self, tmp_path):
        run = self.run(tmp_path / "run", 1 - (self.LABELS == 1).long(), foreground=0)
        assert np.array_equal(run.foregrounds, self.OBJECT)
        assert np.array_equal(truth_image(run, 0)[..., 0] == 255, self.OBJECT[0])

    @pytest.mark.parametrize(
        "masks",
        [OBJECT, OBJECT.astype(np.float32), OBJECT * np.uint8(255), OBJECT * 255, torch.tensor(OBJECT)[:, None]],
    )
    def test_masks_of_objects(self, tmp_path, masks):
        run = self.run(tmp_path / "run", None, masks=masks)
        assert np.array_equal(run.observation[1], self.OBJECT)
        assert run.info.observation.foreground is None

    @pytest.mark.parametrize(
        "targets",
        [
            torch.tensor(OBJECT)[:, None].float(),  # for BCEWithLogits
            torch.tensor(OBJECT),
            torch.tensor(OBJECT)[:, None].to(torch.uint8) * 255,
            torch.tensor(np.stack([~OBJECT, OBJECT], 1)).bfloat16(),  # one-hot
            {"depth": torch.rand(2, 16, 16), "mask": torch.tensor(OBJECT).int()},
            (torch.tensor([1, 0]), torch.tensor(OBJECT).long()[:, ::2, ::2], torch.tensor(OBJECT).long()),
            [torch.tensor(one).long() for one in OBJECT],
            OBJECT.astype(np.int32),
            SimpleNamespace(labels=torch.tensor(OBJECT).long(), step=3),
        ],
    )
    def test_targets_that_hold_a_mask(self, tmp_path, targets):
        run = self.run(tmp_path / "run", targets)
        assert np.array_equal(run.observation[1], self.OBJECT)
        assert np.array_equal(run.foregrounds, self.OBJECT)

    @pytest.mark.parametrize(
        "targets",
        [
            None,
            torch.tensor([1, 0]),
            torch.rand(2, 1, 16, 16),  # alpha, or depth
            torch.ones(2, 4, 16, dtype=torch.long),  # not of the same shape
            [{"masks": torch.ones(2, 16, 16, dtype=torch.uint8)} for _ in range(2)],  # of each image two objects
        ],
    )
    def test_targets_that_hold_none(self, tmp_path, targets):
        assert not self.run(tmp_path / "run", targets).observation[1].any()

    def test_targets_of_numbers_that_are_no_classes(self, tmp_path):
        targets = torch.arange(512).reshape(2, 16, 16)
        with pytest.warns(
            RecorderWarning, match="the targets are not masks: labels up to 511, but classes must be from"
        ):
            run = self.run(tmp_path / "run", targets)
        assert not run.observation[1].any()
        (note,) = run.info.notes
        assert note.startswith("the targets are not masks")
        with pytest.raises(FadevizError, match="the masks contain labels up to 511"):
            self.run(tmp_path / "other", targets, foreground=3)

    def test_targets_at_another_resolution_are_brought_to_the_images(self, tmp_path):
        small = self.LABELS[:, ::4, ::4]
        run = self.run(tmp_path / "run", small)
        assert np.array_equal(run.observation[1], small.numpy().repeat(4, 1).repeat(4, 2))

    def test_a_run_of_an_earlier_version_goes_on(self, tmp_path):
        targets = torch.full((2, 16, 16), 4)
        targets[:, 2:] = 0
        self.run(tmp_path / "run", targets)
        store = SnapshotStore(tmp_path / "run", open_run(tmp_path / "run").run_id)
        old = open_run(tmp_path / "run")
        store.write_observation(old.observation[0], (targets > 0).numpy().astype(np.uint8))
        again = build(tmp_path / "run", batch=(OBSERVED[0], targets), loss_fn=None, resume=True)
        assert again.step(1)
        assert open_run(tmp_path / "run").observation[1].max() == 1

    def test_what_was_left_out_of_a_glob_is_left_out_again(self, tmp_path, recwarn):
        class Stages(nn.Module):
            def __init__(self, count=2):
                super().__init__()
                self.parts = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(count)])

            def forward(self, x):
                for part in self.parts:
                    x = part(x)
                return x

        options = {"batch": OBSERVED, "loss_fn": F.cross_entropy, "resume": True}
        first = Recorder(Stages(), "**", "1:3:1", tmp_path / "run", **options)
        first.step(1)
        first.close()
        (warned,) = recwarn.list
        assert "left out: layer 'parts' did not run in the forward pass" in str(warned.message)
        assert open_run(tmp_path / "run").layers.keys() == {"parts.0", "parts.1"}
        again = Recorder(Stages(), "**", "1:3:1", tmp_path / "run", **options)
        assert again.step(2)
        again.close()
        assert len(recwarn.list) == 1  # it was told
        assert len(open_run(tmp_path / "run").info.notes) == 1
        with pytest.raises(
            FadevizError, match=r"recorded with other layers: \['parts.0', 'parts.1'\], now .*'parts.2'"
        ):
            Recorder(Stages(3), "**", "1:3:1", tmp_path / "run", **options)
        with pytest.raises(FadevizError, match="recorded with other layers"):
            Recorder(Stages(), "parts.0", "1:3:1", tmp_path / "run", **options)

    def test_a_resumed_run_that_cannot_be_observed_is_refused(self, tmp_path):
        net = Net()
        build(tmp_path / "run", net=net).close()
        before = (tmp_path / "run" / "run.json").read_bytes()
        net.head = nn.Conv2d(5, 2, 1)
        with pytest.raises(FadevizError, match="the forward pass failed, in layer 'head'"):
            build(tmp_path / "run", net=net, resume=True)
        assert (tmp_path / "run" / "run.json").read_bytes() == before

    def test_another_object_is_another_run(self, tmp_path):
        options = {"batch": (OBSERVED[0], self.LABELS), "loss_fn": None}
        build(tmp_path / "run", foreground=1, **options).close()
        with pytest.raises(FadevizError, match=r"recorded with other foreground: \[1, 1\], now \[0, 0\]"):
            build(tmp_path / "run", foreground=0, resume=True, **options)
        assert build(tmp_path / "run", resume=True, **options).step(1)


class Half(nn.Module):
    """A loss made of another."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, output, targets):
        return self.inner(output, targets) / 2


class Called(nn.Module):
    """A model that takes its whole batch as one argument."""

    def __init__(self, read):
        super().__init__()
        self.net, self.read = Net(), read

    def forward(self, batch):
        return self.net(self.read(batch))


Batch = namedtuple("Batch", "image extra")


@dataclass(frozen=True)
class Frozen:
    image: torch.Tensor
    note: str = "as it is"


@pytest.mark.parametrize(
    ("batch", "read"),
    [
        (Batch(OBSERVED[0].half(), ("a", [torch.ones(1)])), lambda b: b.image * b.extra[1][0]),
        (Frozen(OBSERVED[0].half()), lambda b: b.image),
        (SimpleNamespace(image=OBSERVED[0].half(), note=None), lambda b: b.image),
        ([OBSERVED[0].half()], lambda b: b[0]),
        (OrderedDict(batch=OrderedDict(image=OBSERVED[0].half())), lambda b: b["image"]),
        (list(OBSERVED[0].half()), torch.stack),
    ],
)
def test_batches_of_any_container(tmp_path, batch, read):
    pictures = np.zeros((2, 16, 16, 3), np.uint8) if isinstance(batch, SimpleNamespace | Frozen) else None
    model = Called(read)

    def loss_fn(output, targets):
        return F.cross_entropy(output, targets.image)

    observe = (batch, Batch(OBSERVED[1], None))
    recorder = Recorder(model, "net.up", [1], tmp_path / "run", batch=observe, loss_fn=loss_fn, display_images=pictures)
    assert recorder.step(1)
    run = open_run(tmp_path / "run")
    want = model.net.eval().up(model.net.encoder(OBSERVED[0].half().float())).mean(1).detach().numpy()
    np.testing.assert_allclose(run.read(1, "net.up", "feature"), want, atol=1e-6)
    assert run.observation[1].all()
    if isinstance(batch, Batch | list):
        assert run.observation[0].max() == 255
    tensors = [one for one in arrays_in(batch) if one.ndim == 4]
    assert all(one.dtype == torch.float16 for one in tensors)  # the training's own is as it was


class TestNumbers:
    """Steps and metrics of any type."""

    @pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor, lambda n: np.array(n, np.int32)])
    def test_whole_numbers_of_any_type(self, tmp_path, kind):
        recorder = build(tmp_path / "run", [kind(1), kind(3)], start=kind(0), seed=kind(7))
        for step in range(1, 4):
            assert recorder.step(kind(step)) == (step != 2)
            recorder.log(kind(step), loss=kind(step))
        run = open_run(tmp_path / "run")
        assert (run.steps, run.info.schedule, run.info.config) == ((0, 1, 3), (0, 1, 3), {"seed": 7})
        assert run.metrics() == [{"step": step, "loss": step} for step in (1, 2, 3)]
        recorder.close()
        again = build(tmp_path / "run", Schedule((0, kind(1), kind(5))), resume=True, start=kind(3))
        assert open_run(tmp_path / "run").info.schedule == (0, 1, 5)
        again.close()

    @pytest.mark.parametrize(
        ("step", "message"),
        [
            (True, "step is True, a bool: a whole number is needed"),
            (torch.tensor(True), "step is tensor.True., a Tensor: a whole"),
            (np.bool_(True), "a bool: a whole|a bool_: a whole"),
            (1.0, "step is 1.0, a float: a whole number is needed"),
            (torch.tensor(1.0), "a Tensor: a whole number"),
            (torch.tensor([1, 2]), "a Tensor: a whole number"),
            (None, "step is None, a NoneType"),
            ("1", "step is '1', a str"),
        ],
    )
    def test_what_is_no_whole_number(self, tmp_path, step, message):
        recorder = build(tmp_path / "run")
        with pytest.warns(RecorderWarning, match=message):
            assert not recorder.step(step)
        assert not recorder.step(step)  # warned of once
        with pytest.warns(RecorderWarning, match=f"metrics were not logged: .*{message}"):
            recorder.log(step, loss=1.0)
        assert recorder.step(1)
        recorder.close()
        strict = build(tmp_path / "strict", on_error="raise")
        with pytest.raises(FadevizError, match=message):
            strict.step(step)
        with pytest.raises(FadevizError, match=message.replace("step", "a step of the schedule", 1)):
            build(tmp_path / "other", [step])

    def test_a_schedule_that_is_none(self, tmp_path):
        with pytest.raises(FadevizError, match="steps is 100: a schedule such as '100:3000:100' is needed"):
            build(tmp_path / "run", 100)

    def test_metrics_of_any_type(self, tmp_path):
        recorder = build(tmp_path / "run")
        grown = torch.tensor([0.25], requires_grad=True)
        recorder.log(1, a=np.float32(0.5), b=grown, c=np.array([1.5]), d=torch.tensor(2, dtype=torch.int8), e=True)
        recorder.log(2, nan=float("nan"), inf=torch.tensor(float("-inf")))
        with pytest.warns(RecorderWarning, match="metrics were not logged: log: note is 'text': a number is needed"):
            recorder.log(3, loss=3.0, note="text")
        with pytest.raises(FadevizError, match="log: the step is -1: it counts optimiser steps, from 0"):
            build(tmp_path / "other", on_error="raise").log(-1, loss=3.0)
        first, second, third = open_run(tmp_path / "run").metrics()
        assert first == {"step": 1, "a": 0.5, "b": 0.25, "c": 1.5, "d": 2, "e": 1}
        assert np.isnan(second["nan"])
        assert second["inf"] == float("-inf")
        assert third == {"step": 3, "loss": 3.0}  # what is a number is not lost with what is none


class Faulty(nn.Module):
    """The identity, with a fault to come."""

    def __init__(self):
        super().__init__()
        self.scale, self.fault = nn.Parameter(torch.ones(())), None

    def forward(self, x):
        if self.fault is not None:
            raise self.fault
        return self.scale * x


class TestGoingOn:
    """A recorder never ends a training."""

    def make(self, out, **options):
        model = nn.Sequential(Faulty(), nn.Conv2d(3, 2, 1))
        options = {"batch": OBSERVED, "loss_fn": F.cross_entropy, **options}
        return Recorder(model, "0", "1:6:1", out, **options), model

    @pytest.mark.parametrize(
        "fault",
        [RuntimeError("no more"), MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nTried"), KeyError("x")],
    )
    def test_an_observation_that_fails(self, tmp_path, fault, recwarn):
        recorder, model = self.make(tmp_path / "run")
        model[0].fault = fault
        assert not recorder.step(1)
        (warned,) = recwarn.list
        assert warned.category is RecorderWarning
        assert warned.filename == __file__
        text = str(warned.message)
        assert text.startswith("fadeviz: nothing was recorded at step 1: ")
        assert text.endswith(". The training continues")
        assert "\n" not in text
        assert not recorder.step(2)
        model[0].fault = None
        assert recorder.step(3)
        recorder.close()
        assert len(recwarn.list) == 1
        run = open_run(tmp_path / "run")
        assert (run.steps, run.info.status, run.info.schedule) == ((0, 3), "finished", (0, 3))
        assert [one["step"] for one in run.info.errors] == [1, 2]
        assert all(type(fault).__name__ in one["message"] for one in run.info.errors)
        assert recorder.errors == list(run.info.errors)
        assert check_run(tmp_path / "run") == []
        told = CliRunner().invoke(main, ["info", str(tmp_path / "run")])
        assert "errors       2, the first: " in told.output

    def test_a_layer_that_is_gone_another_dtype_and_a_loss_that_fails(self, tmp_path):
        broken = []

        def loss_fn(output, targets):
            if broken:
                raise IndexError("list index out of range")
            return F.cross_entropy(output, targets)

        recorder, model = self.make(tmp_path / "run", loss_fn=loss_fn)
        moved = model[0]
        model[0] = nn.Identity()
        with pytest.warns(RecorderWarning, match="nothing was recorded at step 1: .*layer '0' did not run"):
            assert not recorder.step(1)
        model[0] = moved
        model[1].half()  # a part of the model
        with pytest.warns(
            RecorderWarning, match="fadeviz: observed under autocast to float16, because it does not run in"
        ):
            assert recorder.step(2)
        model[1].float()
        broken.append(True)
        recorder._failures._warned.clear()
        with pytest.warns(RecorderWarning, match="nothing was recorded at step 3: .*IndexError"):
            assert not recorder.step(3)
        broken.clear()
        assert recorder.step(4)
        assert [one["step"] for one in open_run(tmp_path / "run").info.errors] == [1, 3]
        assert open_run(tmp_path / "run").info.notes == (
            "observed under autocast to float16, because it does not run in plain float32",
        )

    def test_interrupts_pass(self, tmp_path):
        recorder, model = self.make(tmp_path / "run")
        for step, error in enumerate((KeyboardInterrupt, SystemExit), start=1):
            model[0].fault = error()
            with pytest.raises(error):
                recorder.step(step)

    def test_raise(self, tmp_path):
        recorder, model = self.make(tmp_path / "run", on_error="raise")
        model[0].fault = RuntimeError("no more")
        with pytest.raises(
            FadevizError, match=r"in layer '0' \(step 1, observed in eval mode\): RuntimeError: no more"
        ):
            recorder.step(1)
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(FadevizError, match="cannot write"):
            recorder.log(1, loss=1.0)
        with pytest.raises(FadevizError, match="was moved or removed"):
            recorder.close()

    def test_a_folder_that_is_moved_away_and_put_back(self, tmp_path, recwarn):
        recorder, _ = self.make(tmp_path / "run")
        recorder.step(1)
        shutil.move(tmp_path / "run", tmp_path / "away")
        assert not recorder.step(2)
        assert not recorder.step(3)
        recorder.log(3, loss=1.0)
        assert not (tmp_path / "run").exists()
        shutil.move(tmp_path / "away", tmp_path / "run")
        assert recorder.step(4)
        recorder.close()
        assert [str(w.message).split(":")[1] for w in recwarn.list] == [
            " nothing was recorded at step 2", " metrics were not logged",
        ]  # fmt: skip
        run = open_run(tmp_path / "run")
        assert run.steps == (0, 1, 4)
        assert [one.get("step") for one in run.info.errors] == [2, 3, None]

    def test_a_folder_that_is_removed(self, tmp_path, recwarn):
        recorder, _ = self.make(tmp_path / "run")
        shutil.rmtree(tmp_path / "run")
        for step in range(1, 8):
            assert not recorder.step(step)
            recorder.log(step, loss=1.0)
        recorder.close()
        assert len(recwarn.list) == 3  # of steps, of metrics, of the end
        assert not (tmp_path / "run").exists()

    def test_the_errors_listed_are_some(self, tmp_path, recwarn, monkeypatch):
        monkeypatch.setattr("fadeviz.recording.recorded_run.MOST_ERRORS", 3)
        recorder, model = self.make(tmp_path / "run")
        model[0].fault = RuntimeError("no more")
        for step in range(1, 7):
            recorder.step(step)
        assert [one["step"] for one in recorder.errors] == [1, 2, 3]
        assert len(recwarn.list) == 1

    def test_what_failed_at_steps_that_are_made_again_is_forgotten(self, tmp_path, recwarn):
        recorder, model = self.make(tmp_path / "run")
        for step, fault in enumerate([RuntimeError("a"), None, RuntimeError("b")], start=1):
            model[0].fault = fault
            recorder.step(step)
        recorder._steps.run.close()  # as if the process had been killed
        model[0].fault = None
        again = Recorder(
            model, "0", "1:6:1", tmp_path / "run", batch=OBSERVED, loss_fn=F.cross_entropy, resume=True, start=2
        )
        assert [one["step"] for one in again.errors] == [1]
        assert all(again.step(step) for step in (3, 4))
        assert [one["step"] for one in open_run(tmp_path / "run").info.errors] == [1]

    def test_the_working_directory_may_change(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        recorder, _ = self.make("run")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert recorder.step(1)
        recorder.log(1, loss=1.0)
        recorder.close()
        assert open_run(tmp_path / "run").steps == (0, 1)
        assert not list((tmp_path / "elsewhere").iterdir())

    @pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
    def test_a_model_that_is_cast_later(self, tmp_path, dtype):
        recorder, model = self.make(tmp_path / "run", kinds="feature")
        model.to(dtype)
        assert recorder.step(1)
        want = OBSERVED[0].to(dtype).float().mean(1).numpy()
        np.testing.assert_allclose(open_run(tmp_path / "run").read(1, "0", "feature"), want, atol=1e-3)
        model.float()
        assert recorder.step(2)
        maps = open_run(tmp_path / "run").maps("0")
        assert np.array_equal(maps[2], maps[0])

    def test_a_layer_that_comes_to_run_twice(self, tmp_path):
        class Often(nn.Module):
            def __init__(self):
                super().__init__()
                self.c, self.head, self.times = nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 2, 1), 1

            def forward(self, x):
                for _ in range(self.times):
                    x = self.c(x)
                return self.head(x)

        model = Often()
        options = {"batch": (OBSERVED[0], None), "kinds": "feature", "resume": True}
        recorder = Recorder(model, "c", [1, 2, 3], tmp_path / "run", **options)
        assert open_run(tmp_path / "run").info.layers == {"c": LayerInfo(size=(8, 8))}
        model.times = 3
        with pytest.warns(RecorderWarning, match="layer 'c' has 3 calls at step 1, and had 1 before"):
            assert recorder.step(1)
        recorder.close()
        again = Recorder(model, "c", [1, 2, 3], tmp_path / "run", start=1, **options)
        assert again.step(2)
        run = open_run(tmp_path / "run")
        assert run.read(2, "c", "feature", call=2).shape == (2, 2, 2)
        Recorder(model, "c", [1], tmp_path / "other", **options)
        sizes = LayerInfo(size=(8, 8), calls=((8, 8), (4, 4), (2, 2)))
        assert open_run(tmp_path / "other").info.layers == {"c": sizes}


class TestTraces:
    """Observing leaves no trace, or says so."""

    def test_a_generator_of_the_models_own(self, tmp_path):
        class Noisy(Net):
            def __init__(self):
                super().__init__()
                self.noise = np.random.default_rng(0).standard_normal

            def forward(self, x):
                return super().forward(x + torch.as_tensor(self.noise(x.shape[-1])).float())

        with pytest.warns(
            RecorderWarning, match=r"a second pass .* gave different maps \(layer 'up', feature\): the model"
        ):
            recorder = build(tmp_path / "run", net=Noisy())
        assert recorder.step(1)
        (note,) = open_run(tmp_path / "run").info.notes
        assert note.startswith("a second pass over the same batch gave different maps")
        assert "notes        a second pass" in CliRunner().invoke(main, ["info", str(tmp_path / "run")]).output

    def test_targets_that_the_loss_writes_into(self, tmp_path):
        def loss_fn(output, targets):
            targets[:] = 1 - targets
            return F.cross_entropy(output, targets)

        recorder = build(tmp_path / "run", loss_fn=loss_fn, kinds="gradient")
        assert recorder.step(1)
        first, second = open_run(tmp_path / "run").maps("up", "gradient")
        assert np.array_equal(first, second)

    def test_what_the_loss_logs_while_looking_is_not_logged(self, tmp_path):
        held = []

        def loss_fn(output, targets):
            loss = F.cross_entropy(output, targets)
            for recorder in held:
                recorder.log(1, loss=loss)
                assert not recorder.step(2)
            return loss

        held.append(build(tmp_path / "run", loss_fn=loss_fn, kinds="gradient"))
        assert held[0].step(1)
        assert open_run(tmp_path / "run").metrics() == []
        assert open_run(tmp_path / "run").steps == (0, 1)


class TestOthers:
    """Other threads and processes."""

    def test_calls_of_several_threads_wait_for_each_other(self, tmp_path):
        inside, most = [], []

        class Slow(Net):
            def forward(self, x):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.005)
                inside.pop()
                return super().forward(x)

        recorder = build(tmp_path / "run", "1:40:1", net=Slow())
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _: recorder.step(1), range(4)))
            list(pool.map(lambda step: recorder.log(step, loss=step), range(40)))
        assert sorted(results) == [False, False, False, True]
        assert max(most) == 1
        assert len(open_run(tmp_path / "run").metrics()) == 40

    def test_a_model_that_keeps_its_recorder_can_be_copied(self, tmp_path):
        net = Net()
        net.recorder = build(tmp_path / "run", net=net)
        for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # an average of the weights, a checkpoint
            assert torch.equal(copied.head.weight, net.head.weight)
            assert not copied.recorder.step(1)
            copied.recorder.log(1, loss=1.0)
            copied.recorder.close()
            assert copied.recorder.errors == []
        assert net.recorder.step(1)
        assert open_run(tmp_path / "run").metrics() == []

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
    def test_a_forked_child_neither_writes_nor_frees_the_folder(self, tmp_path):
        recorder = build(tmp_path / "run")
        before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*"))
        recorded = recorder._steps.run
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with warnings.catch_warnings(record=True) as found:
                    warnings.simplefilter("always")
                    results = [recorder.step(1), recorder.step(2), recorder.log(1, loss=1.0), recorder.close()]
                    _release(recorded, recorder._process)  # as at the end of a process that ends in the usual way
                said = [str(one.message) for one in found]
                code = 0 if results == [False, False, None, None] and len(said) == 1 and "forked" in said[0] else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")) == before
        with pytest.raises(FadevizError, match="this process is recording into .* already"):
            build(tmp_path / "run", resume=True)
        assert recorder.step(1)


on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class TestOnADevice:
    pytestmark = on_a_gpu

    def test_a_training_on_another_stream_is_waited_for(self, tmp_path):
        net = Net().cuda()
        recorder = Recorder(net, "twice", [1], tmp_path / "run", batch=OBSERVED, loss_fn=F.cross_entropy)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            torch.cuda._sleep(500_000_000)  # a step that takes a while
            for parameter in net.parameters():
                parameter.zero_()
        assert recorder.step(1)  # on the default stream
        assert not open_run(tmp_path / "run").read(1, "twice", "feature").any()

    def test_a_model_that_is_moved_later(self, tmp_path):
        net = Net()
        recorder = Recorder(net, "up", "1:2:1", tmp_path / "run", batch=OBSERVED, loss_fn=F.cross_entropy)
        net.cuda()
        assert recorder.step(1)
        net.cpu()
        assert recorder.step(2)
        maps = open_run(tmp_path / "run").maps("up")
        np.testing.assert_allclose(maps[1], maps[0], atol=1e-2)  # TF32, perhaps
        assert np.array_equal(maps[2], maps[0])

    def test_no_memory_is_kept_and_the_training_is_the_same(self, tmp_path):
        def train(out):
            torch.manual_seed(0)
            net = Net().cuda()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            recorder = None
            if out is not None:
                recorder = Recorder(net, "up", "1:4:1", out, batch=OBSERVED, loss_fn=F.cross_entropy)
            held = []
            for step in range(1, 5):
                images = torch.randn(2, 3, 16, 16, device="cuda")
                with torch.autocast("cuda", torch.bfloat16):
                    loss = net(images).float().square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                before = torch.cuda.memory_allocated()
                if recorder is not None:
                    recorder.step(step)
                held.append(torch.cuda.memory_allocated() - before)
            assert held[1:] == [0, 0, 0]
            return [*net.state_dict().values(), torch.cuda.get_rng_state()]

        deterministic = torch.backends.cudnn.deterministic
        torch.backends.cudnn.deterministic = True
        try:
            for a, b in zip(train(None), train(tmp_path / "run"), strict=True):
                assert torch.equal(a, b)
        finally:
            torch.backends.cudnn.deterministic = deterministic


def test_reading_a_run_imports_no_torch():
    import subprocess
    import sys

    code = "import fadeviz, sys; fadeviz.open_run; assert 'torch' not in sys.modules; fadeviz.View; fadeviz.Recorder"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'Recordr'"):
        fadeviz.Recordr  # noqa: B018
