"""The recorder in somebody else's loop: what it stores, and that the training does not notice."""

import contextlib
import gc
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
from fadeviz.check import check_run
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
            model, "up,twice", "2:4:2", out, observe=OBSERVED, loss_fn=loss_fn, kinds=kinds, mode=mode, scaler=scaler
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
    assert run.info["status"] == "finished"
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
        self.make(tmp_path / "alone", Net(), mode="batch").close()
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        for rank in (0, 1):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            with pytest.raises(FadevizError, match="the observation mode batch with SyncBatchNorm would wait"):
                self.make(tmp_path / "run", net, mode="batch")
        assert not (tmp_path / "run").exists()


class TestSteps:
    def make(self, out, net=None, **options):
        options = {"observe": OBSERVED, "loss_fn": F.cross_entropy, **options}
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
        with pytest.raises(FadevizError, match="step 1 comes after step 5: .* over the whole training, not in each"):
            recorder.step(1)
        assert recorder.step(10)

    def test_a_step_that_was_passed_over_is_made_up_for(self, tmp_path):
        recorder = self.make(tmp_path / "run")
        assert [step for step in range(3, 28, 3) if recorder.step(step)] == [6, 12, 15, 21]
        run = open_run(tmp_path / "run")
        assert run.steps == (0, 6, 12, 15, 21)
        assert run.info["status"] == "finished"
        assert not check_run(tmp_path / "run")

    def test_what_a_killed_training_left_of_later_steps_is_dropped(self, tmp_path):
        net = Net()
        first = self.make(tmp_path / "run", net)
        for step in range(1, 18):
            first.step(step)
            first.log(step, loss=1.0)
        first._open.close()  # as if the process had been killed, at a step after the checkpoint of 7
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
        assert open_run(tmp_path / "run").info["schedule"] == [0, 5, 10]

    def test_a_line_of_metrics_tells_too_where_a_training_goes_on(self, tmp_path):
        first = self.make(tmp_path / "run")
        for step in range(1, 12):
            first.step(step)
        first._open.close()
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
        late._open.close()
        self.change(net)
        again = self.make(tmp_path / "late", net, start=15, resume=True)  # was killed before it recorded 15
        assert open_run(tmp_path / "late").steps == (7, 10, 15)
        again._open.close()
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
            assert (info["status"], info["message"]) == (status, str(error))
        resumed = self.make(tmp_path / "run", resume=True)
        assert "message" not in open_run(tmp_path / "run").info
        assert resumed.step(20)
        resumed.close(RuntimeError("after all was recorded"))
        assert open_run(tmp_path / "run").info["status"] == "finished"


def test_an_error_while_looking_leaves_everything_as_it_was(tmp_path):
    net, broken = Net().train(), []
    net.encoder[1].eval()

    def loss_fn(output, targets):
        if broken:
            raise RuntimeError("no loss today")
        return F.cross_entropy(output, targets)

    recorder = Recorder(net, "up", [1, 2], tmp_path / "run", observe=OBSERVED, loss_fn=loss_fn)
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

    recorder = Recorder(Net(), "up,twice", [1, 2, 3], tmp_path / "run", observe=OBSERVED, loss_fn=F.cross_entropy)
    recorder.step(1)
    before = alive()
    recorder.step(2)
    recorder.step(3)
    assert alive() == before


def test_weights_in_bfloat16(tmp_path):
    net = Net().bfloat16()
    recorder = Recorder(net, "up", [1], tmp_path / "run", observe=OBSERVED, loss_fn=F.cross_entropy)
    assert recorder.step(1)
    assert recorder.targets.dtype == torch.long
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
        Recorder(prepared, "up", [1], tmp_path / "run", observe=OBSERVED, loss_fn=F.cross_entropy)
        wanted = plain.up(plain.encoder(OBSERVED[0])).mean(1).detach().numpy()
        assert np.array_equal(open_run(tmp_path / "run").read(0, "up", "feature"), wanted)
        assert prepared.forward is forward
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class TestOnADevice:
    pytestmark = on_a_gpu

    def test_a_training_on_another_stream_is_waited_for(self, tmp_path):
        net = Net().cuda()
        recorder = Recorder(net, "twice", [1], tmp_path / "run", observe=OBSERVED, loss_fn=F.cross_entropy)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            torch.cuda._sleep(500_000_000)  # a step that takes a while
            for parameter in net.parameters():
                parameter.zero_()
        assert recorder.step(1)  # on the default stream
        assert not open_run(tmp_path / "run").read(1, "twice", "feature").any()

    def test_no_memory_is_kept_and_the_training_is_the_same(self, tmp_path):
        def train(out):
            torch.manual_seed(0)
            net = Net().cuda()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            recorder = None
            if out is not None:
                recorder = Recorder(net, "up", "1:4:1", out, observe=OBSERVED, loss_fn=F.cross_entropy)
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
