"""The step as a GPU takes it: one wait, a compiled forward pass, a fused optimiser, checkpoints from a thread."""

import threading
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fadeviz import FadevizError
from fadeviz.experiment import RunConfig, build_model
from fadeviz.models import NETWORKS, SegNet, recipes
from fadeviz.ops.arithmetic import tf32
from fadeviz.training import checkpoint
from fadeviz.training.checkpoint import CheckpointWriter, read_checkpoint, write_checkpoint
from fadeviz.training.graphs import ReplayedGradients
from fadeviz.training.loop import compile_forward, fit
from fadeviz.training.tasks import TASKS
from fadeviz.upsamplers import UPSAMPLERS


def batch(count=3, size=8):
    return torch.randn(count, 3, size, size), torch.randint(0, 2, (count, size, size))


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    return [batch() for _ in range(6)]


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def _listed(value):
    return value if isinstance(value, list | tuple) else [value]


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def train(model, optimizer, data, lr=0.1, **options):
    return list(fit(model, data, F.cross_entropy, optimizer, lambda step: lr, **options))


def trained_with_and_without_graph(name, precision, lr):
    """Losses, weights and their change, in four steps of SegNet on a GPU: step by step, and replayed as a graph."""
    data = [batch(count, 64) for count in (4, 4, 2, 4)]
    losses, weights, updates = [], [], []
    for graph in (0, 4):
        torch.manual_seed(1)
        model = SegNet(name, width=0.125).cuda().to(memory_format=torch.channels_last)
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        scaler = torch.amp.GradScaler("cuda") if precision == "fp16" else None
        with tf32(False):
            results = train(model, sgd(model, lr), data, lr=lr, graph=graph, precision=precision, scaler=scaler)
        losses.append([result.loss for result in results])
        weights.append(model.state_dict())
        updates.append(nn.utils.parameters_to_vector(model.parameters()).detach() - before)
    return losses, weights, updates


def test_the_loss_is_read_between_the_backward_pass_and_the_update(data, monkeypatch):
    """A GPU has the backward pass to work on meanwhile, and gets no update from a loss that is not finite."""
    model, order = small_net(), []
    model[0].weight.register_hook(lambda gradient: order.append("backward"))
    model.register_forward_hook(lambda *args: order.append("forward"))
    optimizer = sgd(model)
    optimizer.register_step_pre_hook(lambda *args: order.append("update"))

    def reading(scalar):
        order.append("loss")
        return lambda: (order.append("read"), scalar.item())[1]

    monkeypatch.setattr("fadeviz.training.loop._deferred_item", reading)
    train(model, optimizer, data[:2])
    assert order == ["forward", "loss", "backward", "read", "update"] * 2


class TestTF32:
    CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul

    def flags(self):
        return self.CUDNN.allow_tf32, self.MATMUL.allow_tf32

    @pytest.mark.parametrize("before", [(True, False), (False, True)])
    def test_for_a_block(self, before):
        default = self.flags()
        assert default == (True, False)  # torch's own
        try:
            self.CUDNN.allow_tf32, self.MATMUL.allow_tf32 = before
            for allowed in (True, False):
                with tf32(allowed):
                    assert self.flags() == (allowed, allowed)
                    with tf32(not allowed):
                        assert self.flags() == (not allowed, not allowed)
                    assert self.flags() == (allowed, allowed)
                assert self.flags() == before
            with pytest.raises(KeyError), tf32(False):
                raise KeyError
            assert self.flags() == before
        finally:
            self.CUDNN.allow_tf32, self.MATMUL.allow_tf32 = default

    @pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="since torch 2.9")
    @pytest.mark.parametrize("before", [("ieee", "tf32"), ("tf32", "ieee"), "tf32"])
    def test_of_a_caller_who_uses_torchs_newer_settings(self, before):
        """The flags cannot be read then, where they say something else."""
        parts = self.CUDNN.conv, self.MATMUL, self.CUDNN.rnn
        default, flags = [part.fp32_precision for part in parts], self.flags()
        try:
            if before == "tf32":
                torch.backends.fp32_precision = before  # of all that have no setting of their own
            else:
                parts[0].fp32_precision, parts[1].fp32_precision = before
            found = [part.fp32_precision for part in parts]
            assert "tf32" in found
            for allowed in (False, True):
                with tf32(allowed):
                    assert self.flags() == (allowed, allowed)
                    assert [part.fp32_precision for part in parts] == ["tf32" if allowed else "ieee"] * 3
            assert [part.fp32_precision for part in parts] == found
        finally:
            torch.backends.fp32_precision = "none"
            self.CUDNN.allow_tf32, self.MATMUL.allow_tf32 = flags
            for part, value in zip(parts, default, strict=True):
                part.fp32_precision = value
        assert self.flags() == flags


class RecordedAsACudaGraph:
    """Stands in for CUDA's graphs: what a replay computes lands in the memory of the recording, and nowhere else."""

    def __init__(self, model):
        self.model, self.log = model, []

    def __call__(self, function):
        self.log.append("recorded")
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        function()  # for the memory; a recording computes nothing
        places = [(p, p.grad) for p in self.model.parameters()]
        for buffer, value in buffers:
            buffer.copy_(value)
        loss_of = function.__self__
        place = loss_of._loss

        def replay():
            self.log.append("replayed")
            for p, _ in places:
                p.grad = None
            function()
            with torch.no_grad():
                for p, gradient in places:
                    gradient.copy_(p.grad)
                    p.grad = None
                place.copy_(loss_of._loss)
            loss_of._loss = place

        return replay


class TestGraph:
    def test_the_same_training_with_smaller_batches_in_between(self):
        data = [batch(count) for count in (3, 3, 2) * 3]
        model, plain = small_net(), small_net()
        record = RecordedAsACudaGraph(model)
        results = []
        for result in fit(model, data, F.cross_entropy, sgd(model), lambda step: 0.1 / step, graph=3, record=record):
            results.append(result)
            model.eval()
            model.train()
        wanted = list(fit(plain, data, F.cross_entropy, sgd(plain), lambda step: 0.1 / step))
        assert record.log == ["recorded"] + ["replayed"] * 6
        assert results == wanted
        assert all(torch.equal(tensor, plain.state_dict()[key]) for key, tensor in model.state_dict().items())

    def test_recording_leaves_random_numbers_and_statistics(self):
        model = nn.Sequential(small_net(), nn.Dropout(0.5))
        images, targets = batch()
        before, numbers = [b.clone() for b in model.buffers()], torch.get_rng_state()
        seen = []

        def record(function):
            seen.extend([[b.clone() for b in model.buffers()], torch.get_rng_state()])
            return lambda: None

        gradients = ReplayedGradients(model, lambda x, y: F.cross_entropy(model(x), y), record=record)
        gradients._loss = torch.zeros(())
        gradients(images, targets)
        assert all(map(torch.equal, seen[0], before))
        assert torch.equal(seen[1], numbers)

    def test_what_cannot_be_recorded_is_said(self):
        def record(function):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        model = small_net()
        with pytest.raises(FadevizError) as caught:
            list(fit(model, [batch()], F.cross_entropy, sgd(model), lambda step: 0.1, graph=3, record=record))
        assert str(caught.value) == (
            "compile=graph does not work with this model: operation not permitted when stream is capturing. "
            "Use compile=off"
        )


class TestCompileForward:
    def test_one_graph_for_full_batches_and_the_model_itself_for_the_last_of_an_epoch(self):
        compiled, ran = [], []

        def backend(graph, inputs):
            compiled.append(len(inputs[0]) if inputs[0].ndim == 4 else None)
            return lambda *args: (ran.append("graph"), graph(*args))[1]

        data = [batch(count) for count in (3, 3, 2) * 3]
        model, plain = small_net(), small_net()
        forward = compile_forward(model, "on", 3, backend=backend)
        results = []
        for result in fit(model, data, F.cross_entropy, sgd(model), lambda step: 0.1, forward=forward):
            results.append(result)
            model.eval()  # a test in between changes modes, and puts them back
            model.train()
        assert len(compiled) == 1
        assert ran == ["graph"] * 6
        assert results == train(plain, sgd(plain), data)
        assert list(model.state_dict()) == list(plain.state_dict())
        assert all(torch.equal(tensor, plain.state_dict()[key]) for key, tensor in model.state_dict().items())

    def test_what_cannot_be_compiled_is_said(self):
        def backend(graph, inputs):
            raise RuntimeError("no compiler")

        forward = compile_forward(small_net(), "on", 3, backend=backend)
        with pytest.raises(FadevizError) as caught:
            forward(torch.zeros(3, 3, 8, 8))
        line = str(caught.value)
        assert (
            line
            == "compile=on does not work here: backend='backend' raised: RuntimeError: no compiler. Use compile=off"
        )

    def test_gradients_of_maps_of_different_formats_lie_as_the_compiler_is_told(self):
        last = torch.channels_last
        maps = [torch.randn(2, 6, 4, 4) for _ in range(3)] + [torch.rand(2, 1, 4, 4)]
        for formats in product((last, torch.contiguous_format), repeat=3):
            grad, mixed, feature = (m.contiguous(memory_format=f) for m, f in zip(maps, formats, strict=False))
            found = torch.ops.fadeviz.blend_backward(grad, mixed, feature, maps[3])
            assert [one.stride() for one in found] == [one.stride() for one in (mixed, feature, maps[3])]
            wanted = torch.ops.fadeviz.blend_backward(*maps)
            torch.testing.assert_close(found, wanted)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
    @pytest.mark.parametrize("name", UPSAMPLERS)
    def test_what_every_operator_computes_lies_as_the_compiler_is_told(self, name, memory_format):
        """At 32x32, the smallest size, where the deepest maps are of both formats at once."""
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        ran, wrong = [], []

        class Checked(torch.fx.Interpreter):
            def run_node(self, node):
                results = super().run_node(node)
                if node.op == "call_function" and "fadeviz" in str(node.target):
                    ran.append(node.target)
                    told = node.meta["val"]
                    for found, said in zip(_listed(results), _listed(told), strict=True):
                        strides = [
                            (a, b) for n, a, b in zip(found.shape, found.stride(), said.stride(), strict=True) if n > 1
                        ]
                        if (found.shape, found.dtype) != (said.shape, said.dtype) or any(a != b for a, b in strides):
                            wrong.append((node.target, found.shape, found.stride(), said.stride()))
                return results

        def compiler(graph, inputs):
            return make_boxed_func(lambda *args: Checked(graph).run(*args))

        torch.compiler.reset()
        model = SegNet(name, width=0.25 if name == "lda_aqu" else 0.125).to(memory_format=memory_format)
        forward = compile_forward(model, "on", 2, backend=aot_autograd(fw_compiler=compiler, bw_compiler=compiler))
        train(model, sgd(model), [batch(2, 32)], forward=forward)
        assert wrong == []
        assert ran or name not in ("carafe", "a2u", "fade", "sapa_b")

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler, in itself
    @pytest.mark.parametrize("mode", ["on", "reduce-overhead"])
    def test_the_real_compiler(self, mode):
        torch.manual_seed(0)
        images = torch.randn(4, 3, 32, 32)
        same = images, (F.avg_pool2d(images[:, 0], 5, 1, 2) > 0).long()
        losses = []
        for compiled in (False, True):
            torch.manual_seed(1)
            model = SegNet("fade", width=0.125).to(memory_format=torch.channels_last)
            forward = compile_forward(model, mode, 4) if compiled else None
            losses.append([r.loss for r in train(model, sgd(model, 0.01), [same] * 4, lr=0.01, forward=forward)])
        assert losses[1][:2] == pytest.approx(losses[0][:2], rel=1e-4)
        assert losses[1] == pytest.approx(losses[0], rel=1e-2)  # statistics of 1x1 maps enlarge the rounding


class TestFusedOptimizers:
    """As on a GPU: torch has fused optimisers for the CPU too."""

    @pytest.fixture(autouse=True)
    def _fused(self, monkeypatch):
        monkeypatch.setattr(recipes, "_fused", lambda model: True)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_they_take_the_steps_of_the_plain_ones(self, data, name, monkeypatch):
        recipe, weights = NETWORKS[name].recipe, []
        for fused in (True, None):
            monkeypatch.setattr(recipes, "_fused", lambda model, fused=fused: fused)
            # No norm: biases before it have gradients of rounding alone, which Adam divides by their size.
            model = nn.Sequential(*(part for part in small_net() if not isinstance(part, nn.BatchNorm2d)))
            optimizer = recipe.optimizer(model, 0.01, 0.001, 0.9)
            assert optimizer.defaults["fused"] is fused
            train(model, optimizer, data, lr=0.01)
            weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)

    def test_the_first_step_left_out_by_a_scaler_leaves_no_trace(self, data):
        """Torch's own fused SGD begins its momentum with uninitialised memory then."""
        torch.use_deterministic_algorithms(True)  # which fills such memory with NaN
        try:
            losses = []
            for skipped in (True, False):
                model = small_net()
                optimizer = recipes.sgd(model, 0.1, 0.0, 0.9)
                if skipped:
                    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
                    large = fit(
                        model, data[:1], lambda *a: 1e3 * F.cross_entropy(*a), optimizer, lambda _: 0.1, scaler=scaler
                    )
                    assert len(list(large)) == 1
                    assert scaler.get_scale() == 2.0**126
                scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
                losses.append([r.loss for r in train(model, optimizer, data[1:4], scaler=scaler)])
            assert losses[0] == losses[1]
            assert np.isfinite(losses[0]).all()
        finally:
            torch.use_deterministic_algorithms(False)


class TestCheckpointWriter:
    @pytest.fixture
    def held(self, monkeypatch):
        """The writing waits for this event; ``held.begun`` is set when it does."""
        go_on, write = threading.Event(), checkpoint._write
        go_on.begun = threading.Event()

        def wait(*args):
            go_on.begun.set()
            assert go_on.wait(60)
            write(*args)

        monkeypatch.setattr(checkpoint, "_write", wait)
        yield go_on
        go_on.set()

    @pytest.fixture
    def writer(self):
        writer = CheckpointWriter()
        yield writer
        writer.close()

    def test_it_holds_what_was_when_it_was_begun(self, tmp_path, data, held, writer):
        model = small_net()
        optimizer, scaler = torch.optim.Adam(model.parameters()), torch.amp.GradScaler("cpu")
        train(model, optimizer, data[:2], scaler=scaler)
        write = checkpoint.write_checkpoint
        held.set()
        write(tmp_path / "wanted.pt", 2, "abc", model, optimizer, scaler)
        held.clear()
        writer.begin(tmp_path / "last.pt", 2, "abc", model, optimizer, scaler)
        train(model, optimizer, data[2:4], scaler=scaler)  # the training goes on
        torch.rand(3)
        assert held.begun.wait(60)
        assert writer.busy
        assert not (tmp_path / "last.pt").exists()
        assert writer.written == 0
        held.set()
        writer.wait()
        assert writer.written == 2
        assert not writer.busy
        assert (tmp_path / "last.pt").read_bytes() == (tmp_path / "wanted.pt").read_bytes()

    def test_one_at_a_time(self, tmp_path, held, writer):
        model = small_net()
        state = "abc", model, sgd(model)
        writer.begin(tmp_path / "last.pt", 1, *state)
        begun = []
        second = threading.Thread(target=lambda: begun.append(writer.begin(tmp_path / "last.pt", 2, *state)))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        held.set()
        second.join(60)
        writer.wait()
        assert begun == [None]
        assert writer.written == 2
        assert read_checkpoint(tmp_path / "last.pt", *state) == 2

    def test_what_went_wrong_is_raised_once(self, tmp_path, writer):
        model = small_net()
        state = "abc", model, sgd(model)
        (tmp_path / "file").write_bytes(b"")
        writer.begin(tmp_path / "file" / "last.pt", 1, *state)
        with pytest.raises(FadevizError, match="cannot write"):
            writer.wait()
        writer.begin(tmp_path / "last.pt", 2, *state)
        writer.wait()
        assert writer.written == 2


def test_a_run_on_the_cpu_leaves_the_gpus_alone(tmp_path, monkeypatch):
    """To ask a GPU for its random state occupies memory on it, in every process."""

    def refuse(*args, **options):
        raise AssertionError("a GPU was asked")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name in ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all", "_lazy_init"):
        monkeypatch.setattr(f"torch.cuda.{name}", refuse)
    config = RunConfig(device="cpu", size=32, width=0.0625, steps=1, snapshots="1", observe=1, upsampler="nearest")
    state = torch.get_rng_state()
    model, _ = build_model(config)
    assert torch.equal(torch.get_rng_state(), state)
    write_checkpoint(tmp_path / "last.pt", 1, "abc", model, sgd(model))
    assert torch.load(tmp_path / "last.pt")["cuda_rng"] is None
    read_checkpoint(tmp_path / "last.pt", "abc", model, sgd(model))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnCuda:
    @pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
    @pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
    def test_a_step_waits_for_nothing_but_its_loss(self, precision):
        task, recipe = TASKS["segmentation"], NETWORKS["segnet"].recipe
        model = SegNet("fade", width=0.125).cuda().to(memory_format=torch.channels_last)
        scaler = torch.amp.GradScaler("cuda") if precision == "fp16" else None
        steps = fit(model, [batch(2, 64)] * 4, task.loss, recipe.optimizer(model, 0.01, 0.0, 0.9), lambda step: 0.01,
                    precision=precision, scaler=scaler, loss_weight=task.loss_weight)  # fmt: skip
        next(steps)  # the first allocates and tunes
        torch.cuda.set_sync_debug_mode("error")
        try:
            losses = [result.loss for result in steps]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert np.isfinite(losses).all()
        assert len(set(losses)) == 3

    def test_a_checkpoint_from_a_thread(self, tmp_path, data):
        model = small_net().cuda()
        optimizer = recipes.adam(model, 0.01, 0.0, 0.9)
        train(model, optimizer, data[:2])
        write_checkpoint(tmp_path / "wanted.pt", 2, "abc", model, optimizer)
        writer = CheckpointWriter()
        writer.begin(tmp_path / "last.pt", 2, "abc", model, optimizer)
        train(model, optimizer, data[2:])
        writer.wait()
        writer.close()
        wanted, got = (torch.load(tmp_path / name, map_location="cpu") for name in ("wanted.pt", "last.pt"))
        assert str(got) == str(wanted)
        assert all(torch.equal(got["model"][key], value) for key, value in wanted["model"].items())

    def test_the_last_digits_of_the_loss_are_the_same_every_time(self):
        logits, masks = torch.randn(4, 2, 224, 224).cuda(), torch.randint(0, 2, (4, 224, 224)).cuda()
        loss = TASKS["segmentation"].loss
        assert len({loss(logits, masks).item() for _ in range(20)}) == 1

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    @pytest.mark.parametrize("name", ["fade", "carafe", "max_unpool", "sapa_b"])
    def test_a_graph_trains_as_its_function(self, name, precision):
        losses, weights, _ = trained_with_and_without_graph(name, precision, lr=0.01)
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        for key, tensor in weights[0].items():
            torch.testing.assert_close(weights[1][key], tensor, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    @pytest.mark.parametrize("name", ["bilinear", "dysample", "lda_aqu", "freqfusion"])
    def test_a_graph_trains_as_its_function_where_sums_have_no_order(self, name, precision):
        """Their gradients repeat to about six digits; at a usual rate two losses of one function soon differ by 5 %."""
        losses, _, updates = trained_with_and_without_graph(name, precision, lr=1e-5)
        assert losses[1] == pytest.approx(losses[0], rel=1e-3 if precision == "fp16" else 1e-4)
        assert (updates[1] - updates[0]).norm() < 0.1 * updates[0].norm()

    @pytest.mark.filterwarnings("ignore")  # the compiler's own, and its advice to use TF32
    def test_the_real_compiler(self):
        images = torch.randn(4, 3, 64, 64)
        same = images, (F.avg_pool2d(images[:, 0], 5, 1, 2) > 0).long()
        losses = []
        for compiled in (False, True):
            torch.manual_seed(1)
            model = SegNet("fade", width=0.125).cuda().to(memory_format=torch.channels_last)
            forward = compile_forward(model, "reduce-overhead", 4) if compiled else None
            losses.append([r.loss for r in train(model, sgd(model, 0.01), [same] * 8, lr=0.01, forward=forward)])
        assert losses[1] == pytest.approx(losses[0], rel=0.02)
