"""The recorder in somebody else's loop: what it stores, and that the training does not notice."""

import contextlib
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F

import fadeviz
from fadeviz import FadevizError, Recorder, View, open_run
from fadeviz.probes import Probe


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
    }.get(setting, lambda m: m)(net)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if setting == "scaled" else None
    recorder = None
    if out is not None:
        kinds = ["feature", "gradient"] if setting != "feature only" else None
        loss_fn = F.cross_entropy if setting != "feature only" else None
        mode = "batch" if setting == "batch mode" else "eval"
        recorder = Recorder(model, "up,twice", "2:4:2", out, observe=OBSERVED, loss_fn=loss_fn, kinds=kinds, mode=mode)
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
        "frozen", "data parallel", "compiled", "distributed",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_the_training_is_the_same_to_the_bit(tmp_path, setting, request):
    if setting == "distributed":
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
    assert run.info["status"] == "finished"
    kinds = ("feature",) if setting == "feature only" else ("feature", "gradient")
    assert run.layers == {"up": kinds, "twice": kinds}
    assert run.maps("up").shape == (3, 2, 16, 16)
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
    recorder = Recorder(net, "up", [1], tmp_path / "run", observe=OBSERVED, loss_fn=F.cross_entropy)
    compiled = torch.compile(net, backend="aot_eager")
    F.cross_entropy(compiled(OBSERVED[0]), OBSERVED[1]).backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= 0.1 * parameter.grad
    assert recorder.step(1)
    assert not np.array_equal(*open_run(tmp_path / "run").maps("up"))


def test_layers_as_modules_and_a_reduction_of_ones_own(tmp_path):
    net = Net()
    with Recorder(net, net.up, [3], tmp_path / "a", observe=OBSERVED, reduce=lambda m: m.amax(1)) as recorder:
        recorder.step(3)
    run = open_run(tmp_path / "a")
    want = net.eval().up(net.encoder(OBSERVED[0])).amax(1).detach().numpy()
    np.testing.assert_allclose(run.read(3, "up", "feature"), want, atol=1e-6)
    with pytest.raises(FadevizError, match=r"reduce made \(2, 6\) of \(2, 6, 16, 16\) in layer 'up'. It must give"):
        Recorder(net, net.up, [3], tmp_path / "b", observe=OBSERVED, reduce=lambda m: m.amax((2, 3)))
    assert not (tmp_path / "b" / "run.json").exists()
    with pytest.raises(FadevizError, match="the Upsample given as a layer is no part of Net"):
        Recorder(net, nn.Upsample(), [3], tmp_path / "c", observe=OBSERVED)
    with pytest.raises(FadevizError, match=r"F.interpolate is no layer: choose the module"):
        Recorder(net, "interpolate", [3], tmp_path / "d", observe=OBSERVED)


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
    recorder = Recorder(model, "inner", [1], tmp_path / "run", observe=({"pixel_values": images}, None),
                        loss_fn=lambda out, _: out.sum(), views={"inn*": view} if view else None)  # fmt: skip
    assert recorder.step(1)
    run = open_run(tmp_path / "run")
    np.testing.assert_allclose(run.read(1, "inner", "feature"), images.mean(1).numpy(), atol=1e-6)
    gradient = (2 * images).relu().sum(1).numpy()  # of the sum of squares
    np.testing.assert_allclose(run.read(1, "inner", "gradient"), gradient, atol=1e-5)


def test_a_grid_that_is_no_square(tmp_path):
    model, images = Wrapped(lambda t: t, lambda o: o), torch.randn(1, 3, 2, 8)
    with pytest.raises(FadevizError, match=r"gives 15 tokens, which fill not a square. Say how they lie: View\(grid="):
        Recorder(model, "inner", [1], tmp_path / "a", observe=(torch.randn(1, 3, 3, 5), None))
    Recorder(model, "inner", [1], tmp_path / "run", observe=(images, None), views={"inner": View(grid=(2, 8))})
    stored = open_run(tmp_path / "run").read(0, "inner", "feature")
    np.testing.assert_allclose(stored, images.mean(1).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("wrap", "view", "message"),
    [
        (lambda t: (t, t), View(), r"several tensors: 0 \(2, 16, 3\), 1 \(2, 16, 3\). Choose one: View\(key=0\)"),
        (lambda t: {"a": t}, View("b"), r"gives no tensor 'b'. There are: 'a' \(2, 16, 3\)"),
        (lambda t: t, View("b"), "gives one tensor, not several"),
        (lambda t: (t.mean(), "x"), View(), r"gives tuple without a map .*: 0 \(\), 1 str"),
        (lambda t: t.mean((1, 2)), View(), "gives a tensor of 1 axes"),
        (lambda t: "text", View(), "gives str, a map"),
    ],
)
def test_outputs_without_one_map(wrap, view, message):
    probe = Probe(Wrapped(wrap, lambda o: torch.zeros(2, 1, 3)), "inner", ["feature"], views={"inner": view})
    with pytest.raises(FadevizError, match=message):
        probe.observe(torch.randn(2, 3, 4, 4), None, None, step=0)


class TestFolder:
    def make(self, out, net=None, **options):
        options = {"observe": OBSERVED, "loss_fn": F.cross_entropy, **options}
        return Recorder(net or Net(), "up", "5:15:5", out, **options)

    def test_a_run_like_any_other(self, tmp_path):
        with self.make(
            tmp_path / "run", name="mine", seed=3, names=["a", "b"], masks=np.eye(16)[None].repeat(2, 0)
        ) as r:
            r.log(4, loss=0.5, miou=0.25)
        run = open_run(tmp_path / "run")
        assert (run.name, run.title, run.info["config"], run.info["status"]) == (
            "mine",
            "mine",
            {"seed": 3},
            "finished",
        )
        assert run.info["observation"]["names"] == ["a", "b"]
        assert run.observation[0].shape == (2, 16, 16, 3)
        assert (run.observation[0].min(), run.observation[0].max()) == (0, 255)
        assert np.array_equal(run.observation[1][0], np.eye(16))
        assert run.metrics() == [{"step": 4, "loss": 0.5, "miou": 0.25}]

    def test_resume_goes_on_and_a_second_writer_is_refused(self, tmp_path):
        first = self.make(tmp_path / "run")
        first.step(5)
        with pytest.raises(FadevizError, match="another process is recording"):
            self.make(tmp_path / "run", resume=True)
        first._open.close()  # as if the process had been killed
        with pytest.raises(FadevizError, match="holds a run already"):
            self.make(tmp_path / "run")
        second = self.make(tmp_path / "run", resume=True)
        assert [second.step(n) for n in (5, 6, 10, 15)] == [True, False, True, True]
        run = open_run(tmp_path / "run")
        assert run.steps == (0, 5, 10, 15)
        assert not run.broken
        assert run.info["status"] == "finished"
        second.log(16, loss=1.0)
        second.close()
        second.log(17, loss=1.0)
        assert len(run.metrics()) == 1
        with pytest.raises(FadevizError, match="this recorder is closed"):
            second.step(15)
        with pytest.raises(FadevizError, match="observed other images"):
            self.make(tmp_path / "run", resume=True, observe=(OBSERVED[0] + torch.randn(2, 3, 16, 16), OBSERVED[1]))
        with pytest.raises(FadevizError, match="recorded with other kinds"):
            self.make(tmp_path / "run", resume=True, kinds=["feature"])
        third = self.make(tmp_path / "run", overwrite=True)
        assert open_run(tmp_path / "run").steps == (0,)
        third.close()

    def test_what_the_loader_does_to_its_buffer_is_not_seen(self, tmp_path):
        images = OBSERVED[0].clone()
        recorder = self.make(tmp_path / "run", observe=(images, OBSERVED[1]))
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
            ({"pictures": np.zeros((2, 4, 4))}, r"pictures are float64 \(2, 4, 4\); uint8"),
            ({"masks": np.zeros((1, 4, 4))}, r"masks are \(1, 4, 4\); \(N, H, W\) with N = 2"),
            ({"observe": (torch.randn(2, 6, 16, 16), None)}, "cannot be|can be shown"),
        ],
    )
    def test_bad_arguments_leave_nothing(self, tmp_path, options, message):
        with pytest.raises(FadevizError, match=message):
            self.make(tmp_path / "run", **options)
        assert not (tmp_path / "run" / "run.json").exists()

    def test_a_sharded_model_is_refused(self, tmp_path):
        class FSDPModule:
            """Stands for torch's, which needs several processes to be made."""

        class Sharded(FSDPModule, Net):
            pass

        with pytest.raises(FadevizError, match="this model is sharded"):
            self.make(tmp_path / "run", Sharded())


def test_reading_a_run_imports_no_torch():
    import subprocess
    import sys

    code = "import fadeviz, sys; fadeviz.open_run; assert 'torch' not in sys.modules; fadeviz.View; fadeviz.Recorder"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'Recordr'"):
        fadeviz.Recordr  # noqa: B018
