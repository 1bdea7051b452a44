"""Training: the order of the images, the learning rate, one step after another, metrics by hand, checkpoints."""

import math
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fadeviz import FadevizError
from fadeviz.data import Sample
from fadeviz.models import SegNet
from fadeviz.models.recipes import step_decay
from fadeviz.training.batches import batch_indices, batches, collate_masks
from fadeviz.training.checkpoint import read_checkpoint, write_checkpoint
from fadeviz.training.loop import StepResult, fit
from fadeviz.training.metrics import boundary_band, boundary_iou, boundary_width, evaluate


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small maps gain nothing from threads, and lose much to them where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Pictures:
    """Random images; the mask is a function of the image, so that a flip of one alone shows."""

    def __init__(self, count, size=(6, 8)):
        self.count = count
        self.size = size

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, (*self.size, 3), np.uint8)
        image[0, 0] = index % 251  # which image this is
        image[..., 1] = np.arange(self.size[1])  # which column
        return Sample(str(index), image, (image[..., 2] > 128).astype(np.uint8))


def raw(images):
    """The uint8 images behind ``collate_masks``' images."""
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return ((images.movedim(1, -1) * std + mean) * 255).round().to(torch.uint8)


class TestBatchIndices:
    def test_the_papers_numbers(self):
        sizes = [len(batch_indices(step, 279, 4, 0)) for step in range(1, 71)]
        assert sizes == [4] * 69 + [3]
        assert len(batch_indices(71, 279, 4, 0)) == 4

    @given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**40), st.integers(0, 5))
    def test_every_epoch_is_a_permutation(self, count, batch_size, seed, epoch):
        per_epoch = math.ceil(count / batch_size)
        steps = range(1 + epoch * per_epoch, 1 + (epoch + 1) * per_epoch)
        seen = [index for step in steps for index in batch_indices(step, count, batch_size, seed).tolist()]
        assert sorted(seen) == list(range(count))

    def test_epochs_and_seeds_differ(self):
        orders = {tuple(batch_indices(step, 30, 30, seed)) for step in range(1, 6) for seed in range(4)}
        assert len(orders) == 20
        assert tuple(range(30)) not in orders

    def test_nothing_is_remembered(self):
        wanted = [batch_indices(step, 11, 4, 5).tolist() for step in range(1, 10)]
        np.random.default_rng(0).random()
        torch.rand(3)
        got = [batch_indices(step, 11, 4, 5).tolist() for step in reversed(range(1, 10))]
        assert got[::-1] == wanted

    def test_endless_is_in_order(self):
        seen = [int(i) for step in range(1, 6) for i in batch_indices(step, None, 3, 9)]
        assert seen == list(range(15))


class TestBatches:
    @pytest.mark.parametrize("count", [7, None])
    @pytest.mark.parametrize("steps", [range(0), range(1, 2), range(1, 8), range(5, 8)])
    @pytest.mark.parametrize("prefetch", [0, 1, 2])
    def test_equals_loading_directly(self, count, steps, prefetch):
        pictures = Pictures(count)
        got = list(batches(pictures, steps, 3, 1, prefetch=prefetch))
        assert len(got) == len(steps)
        for step, (images, masks) in zip(steps, got, strict=True):
            samples = [pictures[int(i)] for i in batch_indices(step, count, 3, 1)]
            assert images.dtype == torch.float32
            assert masks.dtype == torch.int64
            assert np.array_equal(raw(images), np.stack([s.image for s in samples]))
            assert np.array_equal(masks, np.stack([s.mask for s in samples]))

    def test_normalised_by_imagenets_statistics(self):
        image = np.broadcast_to(np.array([255, 0, 51], np.uint8), (2, 3, 3))
        images, masks = collate_masks([Sample("a", image, np.full((2, 3), 255, np.uint8))])
        wanted = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225])
        torch.testing.assert_close(images, wanted.view(1, 3, 1, 1).expand(1, 3, 2, 3))
        assert masks.tolist() == [[[255] * 3] * 2]

    def test_flips(self):
        pictures = Pictures(None)
        plain = list(batches(pictures, range(1, 41), 4, 3))
        flipped = list(batches(pictures, range(1, 41), 4, 3, flip=True))
        again = list(batches(pictures, range(21, 41), 4, 3, flip=True))
        outcomes = Counter()
        for (images, masks), (images2, masks2) in zip(plain, flipped, strict=True):
            assert torch.equal((raw(images2)[..., 2] > 128).long(), masks2)
            for a, b, mask, mask2 in zip(images, images2, masks, masks2, strict=True):
                mirrored = not torch.equal(a, b)
                assert torch.equal(b, a.flip(-1) if mirrored else a)
                assert torch.equal(mask2, mask.flip(-1) if mirrored else mask)
                outcomes[mirrored] += 1
        assert 50 < outcomes[True] < 110  # of 160
        for (images, masks), (images2, masks2) in zip(flipped[20:], again, strict=True):
            assert torch.equal(images, images2)
            assert torch.equal(masks, masks2)

    @pytest.mark.parametrize("prefetch", [0, 2])
    def test_an_error_of_the_data_arrives(self, prefetch):
        class Broken(Pictures):
            def __getitem__(self, index):
                if index == 5:
                    raise FadevizError("image 5 is damaged")
                return super().__getitem__(index)

        loader = batches(Broken(None), range(1, 9), 2, 0, prefetch=prefetch)
        assert len([next(loader), next(loader)]) == 2
        with pytest.raises(FadevizError, match="image 5 is damaged"):
            next(loader)

    @pytest.mark.parametrize("prefetch", [0, 2])
    def test_may_be_left_early(self, prefetch):
        loader = batches(Pictures(None), iter(range(1, 10**9)), 2, 0, prefetch=prefetch)
        next(loader)
        loader.close()


class TestStepDecay:
    def test_the_papers_epochs(self):
        lr = step_decay(0.01, 3500)
        assert [lr(step) for step in (1, 1000, 2450)] == [0.01] * 3
        assert [lr(step) for step in (2451, 3150)] == pytest.approx([0.001] * 2, rel=1e-12)
        assert [lr(step) for step in (3151, 3500)] == pytest.approx([0.0001] * 2, rel=1e-12)

    def test_other_drops(self):
        lr = step_decay(1.0, 10, (0.5,), 0.5)
        assert [lr(step) for step in range(1, 11)] == [1.0] * 5 + [0.5] * 5
        assert step_decay(0.3, 10, ())(10) == 0.3


def eroded(mask):
    """Erosion by a 3x3 square; outside the image there is nothing."""
    h, w = mask.shape
    out = np.zeros_like(mask)
    for i in range(1, h - 1):
        for j in range(1, w - 1):
            out[i, j] = mask[i - 1 : i + 2, j - 1 : j + 2].all()
    return out


def slow_band(mask, width):
    inside = mask
    for _ in range(width):
        inside = eroded(inside)
    return mask & ~inside


def square(row, column, side=4, size=8):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[row : row + side, column : column + side] = True
    return mask


class TestBoundary:
    @settings(deadline=None, max_examples=60)
    @given(
        st.integers(0, 2**32),
        st.integers(1, 9),
        st.integers(1, 9),
        st.integers(1, 5),
        st.sampled_from([0, 0.5, 0.9, 1]),
    )
    def test_band_against_slow_erosion(self, seed, height, width, band, share):
        masks = np.random.default_rng(seed).random((2, height, width)) < share
        got = boundary_band(torch.from_numpy(masks), band)
        assert got.dtype == torch.bool
        for mask, found in zip(masks, got.numpy(), strict=True):
            assert np.array_equal(found, slow_band(mask, band))

    def test_band_of_large_shapes(self):
        y, x = np.mgrid[:40, :30]
        for mask in ((y - 20) ** 2 + (x - 12) ** 2 < 120, (x < 20) & (y > 5), np.ones((40, 30), bool)):
            for width in (1, 3, 6):
                assert np.array_equal(boundary_band(torch.from_numpy(mask)[None], width)[0], slow_band(mask, width))

    def test_band_by_hand(self):
        assert boundary_band(square(2, 2)[None], 1).sum() == 12
        assert torch.equal(boundary_band(square(2, 2)[None], 2)[0], square(2, 2))
        assert boundary_band(torch.ones(1, 8, 8, dtype=torch.bool), 1).sum() == 28

    def test_leading_axes(self):
        masks = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0)) < 0.8
        got = boundary_band(masks, 2)
        assert got.shape == masks.shape
        assert torch.equal(got[1, 2], boundary_band(masks[1, 2:], 2)[0])

    def test_a_single_mask(self):
        assert torch.equal(boundary_band(square(2, 2), 1), boundary_band(square(2, 2)[None], 1)[0])

    def test_iou_by_hand(self):
        # Two rings of 12 pixels, a column apart: 3 pixels of the upper side in common and 3 of the lower.
        a, b = square(2, 2), square(2, 3)
        empty = torch.zeros_like(a)
        got = boundary_iou(torch.stack([a, a, a, empty]), torch.stack([b, a, empty, empty]), 1)
        assert got.dtype == torch.float64
        assert got[:3].tolist() == [6 / 18, 1.0, 0.0]
        assert got[3].isnan()

    def test_width(self):
        assert boundary_width(224, 224, 0.02) == 6
        assert boundary_width(3, 4, 0.4) == 2
        assert boundary_width(8, 8, 0.005) == 1


class Red(nn.Module):
    """Says class 1 wherever the image is red."""

    def __init__(self, fail=False):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.fail = fail
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.Dropout(0.5).eval()
        self.seen = []

    def forward(self, images):
        self.seen.append((len(images), torch.is_grad_enabled(), [m.training for m in self.modules()]))
        if self.fail:
            raise RuntimeError("out of memory")
        red = self.scale * images[:, 0]
        return torch.stack([-red, red], 1)


class Drawn:
    """Images that are red where a prediction mask says so."""

    def __init__(self, predictions, truths):
        self.predictions, self.truths, self.count = predictions, truths, len(truths)

    def __getitem__(self, index):
        image = np.zeros((*self.predictions[index].shape, 3), np.uint8)
        image[..., 0] = 255 * self.predictions[index].numpy()
        return Sample(str(index), image, self.truths[index].numpy().astype(np.uint8))


def share_right(logits, truth):
    return (logits.argmax(1) == truth).float().mean()


class TestEvaluate:
    def test_by_hand(self):
        # Class 1: 12 hits, 4 false, 4 missed in image 0; 16 hits in image 1; nothing in image 2. 192 pixels.
        empty = torch.zeros(8, 8)
        data = Drawn([square(2, 2), square(1, 1), empty], [square(2, 3), square(1, 1), empty])
        model = Red()
        result = evaluate(model, data, share_right, batch_size=2).metrics
        assert result == {
            "test_loss": pytest.approx(184 / 192),
            "miou": pytest.approx((28 / 36 + 156 / 164) / 2),
            "iou": pytest.approx(28 / 36),
            "accuracy": pytest.approx(184 / 192),
            "boundary_iou": pytest.approx((6 / 18 + 1) / 2),
            "boundary_iou_fine": pytest.approx((6 / 18 + 1) / 2),
        }
        assert [(count, grad) for count, grad, _ in model.seen] == [(2, False), (1, False)]
        assert not any(any(modes) for *_, modes in model.seen)

    def test_the_loss_weighs_pictures_not_batches(self):
        ones, zeros = torch.ones(8, 8), torch.zeros(8, 8)
        data = Drawn([ones, ones, ones, ones], [ones, ones, ones, zeros])
        for batch_size in (1, 2, 3, 8):
            assert evaluate(Red(), data, share_right, batch_size=batch_size).metrics["test_loss"] == pytest.approx(
                3 / 4
            )

    def test_other_classes_are_left_out(self):
        truth = square(2, 2).long()
        truth[0] = 255
        result = evaluate(Red(), Drawn([square(2, 2) | (truth == 255)], [truth]), share_right).metrics
        assert (result["accuracy"], result["miou"]) == (1.0, 1.0)

    def test_a_class_that_is_not_there_is_no_part_of_the_mean(self):
        empty = torch.zeros(8, 8)
        result = evaluate(Red(), Drawn([empty], [empty]), share_right).metrics
        assert result["miou"] == 1.0
        assert all(math.isnan(result[name]) for name in ("iou", "boundary_iou", "boundary_iou_fine"))

    @pytest.mark.parametrize("fail", [False, True])
    @pytest.mark.parametrize("training", [False, True])
    def test_modes_are_restored(self, fail, training):
        model = Red(fail).train(training)
        model.frozen.eval()
        before = [module.training for module in model.modules()]
        data = Drawn([square(2, 2)], [square(2, 2)])
        if fail:
            with pytest.raises(RuntimeError, match="out of memory"):
                evaluate(model, data, share_right)
        else:
            evaluate(model, data, share_right)
        assert [module.training for module in model.modules()] == before
        assert torch.is_grad_enabled()

    def test_no_pictures(self):
        with pytest.raises(FadevizError, match="the data set has no images, or no end"):
            evaluate(Red(), Drawn([], []), share_right)


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def state_of(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def train(model, optimizer, data, first_step=1, lr=0.1, **options):
    return list(fit(model, data, F.cross_entropy, optimizer, lambda step: lr, first_step=first_step, **options))


@pytest.fixture(scope="module")
def data():
    """Six batches of three images."""
    return list(batches(Pictures(6), range(1, 7), 3, 0))


class TestFit:
    def test_twenty_steps_lower_the_loss(self):
        torch.manual_seed(0)
        model = SegNet("fade", width=0.125)
        images = torch.randn(2, 3, 32, 32)
        batch = images, (F.avg_pool2d(images[:, 0], 5, 1, 2) > 0).long()
        results = train(model, sgd(model), [batch] * 20, lr=0.05)
        assert [result.step for result in results] == list(range(1, 21))
        assert results[-1].loss < 0.6 * results[0].loss

    def test_the_learning_rate_of_every_step(self):
        # The loss is the output's mean, of a model that is one scalar: its gradient is 1.
        class Scalar(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.tensor(0.0))

            def forward(self, images):
                return self.w.expand(len(images))

        model = Scalar()
        optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
        data = [(torch.zeros(1, 3, 2, 2), torch.zeros(1))] * 4
        rates = {5: 1.0, 6: 0.5, 7: 0.25, 8: 0.125}
        before, results = 0.0, []
        for result in fit(model, data, lambda out, _: out.mean(), optimizer, rates.__getitem__, first_step=5):
            assert model.w.item() == before - rates[result.step]
            assert optimizer.param_groups[0]["lr"] == result.lr
            results.append((result, before))
            before = model.w.item()
        assert results == [
            (StepResult(step, start, rates[step]), start) for (_, start), step in zip(results, rates, strict=True)
        ]

    def test_equals_a_plain_loop(self, data):
        model, plain = small_net(), small_net()
        train(model, sgd(model), data)
        optimizer = sgd(plain)
        for images, masks in data:
            optimizer.zero_grad()
            F.cross_entropy(plain(images.contiguous()), masks).backward()
            optimizer.step()
        for key, tensor in plain.state_dict().items():
            assert torch.equal(model.state_dict()[key], tensor), key

    def test_training_mode_returns_after_every_pause(self, data):
        model = small_net()
        for _ in fit(model, data, F.cross_entropy, sgd(model), lambda step: 0.1):
            model.eval()
        wanted = small_net()
        train(wanted, sgd(wanted), data)
        assert all(torch.equal(tensor, state_of(wanted)[key]) for key, tensor in model.state_dict().items())

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("scaled", [False, True])
    def test_a_loss_that_is_not_finite(self, data, bad, scaled):
        model = small_net()
        optimizer = sgd(model)
        scaler = torch.amp.GradScaler("cpu") if scaled else None
        values = iter([1.0, 1.0, bad])

        def loss(output, masks):
            return F.cross_entropy(output, masks) * next(values)

        steps = fit(model, data, loss, optimizer, lambda step: 0.1, first_step=11, scaler=scaler)
        assert [next(steps).step, next(steps).step] == [11, 12]
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        with pytest.raises(FadevizError, match=rf"^the loss became {bad} at step 13. Use a smaller lr=") as caught:
            next(steps)
        assert len(str(caught.value).splitlines()) == 1
        for key, parameter in model.named_parameters():
            assert torch.equal(parameter, before[key]), key

    def test_channels_last(self, data):
        seen = []
        for last in (False, True):
            model = small_net().to(memory_format=torch.channels_last if last else torch.contiguous_format)
            model.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous()))
            train(model, sgd(model), data[:1])
        assert seen == [True, False]

    def test_bf16(self, data):
        full, half = small_net(), small_net()
        dtypes = set()
        half[0].register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
        wanted = train(full, sgd(full), data)
        got = train(half, sgd(half), data, precision="bf16")
        assert dtypes == {torch.bfloat16}
        assert all(p.dtype == torch.float32 for p in half.parameters())
        assert [r.loss for r in got] == pytest.approx([r.loss for r in wanted], rel=0.05)
        assert [r.loss for r in got] != [r.loss for r in wanted]

    def test_fp16_with_a_scaler(self, data):
        full, half = small_net(), small_net()
        dtypes = set()
        half[0].register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
        wanted = train(full, sgd(full), data)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        got = train(half, sgd(half), data, precision="fp16", scaler=scaler)
        assert dtypes == {torch.float16}
        assert scaler.get_scale() == 256.0  # no step was left out
        assert [r.loss for r in got] == pytest.approx([r.loss for r in wanted], rel=0.02)

    def test_a_step_the_scaler_leaves_out(self, data):
        model = small_net()
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        steps = fit(model, data[:1], lambda *a: 1e3 * F.cross_entropy(*a), sgd(model), lambda step: 0.1, scaler=scaler)
        assert math.isfinite(next(steps).loss)
        assert scaler.get_scale() == 2.0**126
        assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


class TestCheckpoint:
    @pytest.fixture
    def path(self, tmp_path, data):
        """A checkpoint after two steps of run ``abc``."""
        model = small_net()
        optimizer = sgd(model)
        train(model, optimizer, data[:2])
        write_checkpoint(tmp_path / "last.pt", 2, "abc", model, optimizer)
        return tmp_path / "last.pt"

    @pytest.mark.parametrize("scaled", [False, True])
    def test_goes_on_as_if_it_had_never_stopped(self, tmp_path, data, scaled):
        def fresh(seed):
            model = small_net(seed)
            model.append(nn.Dropout(0.3))  # draws random numbers at every step
            scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3) if scaled else None
            return model, sgd(model), scaler

        model, optimizer, scaler = fresh(0)
        train(model, optimizer, data[:3], scaler=scaler)
        write_checkpoint(tmp_path / "last.pt", 3, "abc", model, optimizer, scaler)
        wanted = train(model, optimizer, data[3:], first_step=4, scaler=scaler)
        draw = torch.rand(4)

        again, optimizer2, scaler2 = fresh(1)
        torch.rand(7)
        assert read_checkpoint(tmp_path / "last.pt", "abc", again, optimizer2, scaler2) == 3
        if scaled:
            assert scaler2.get_scale() == 128.0
        assert train(again, optimizer2, data[3:], first_step=4, scaler=scaler2) == wanted
        assert torch.equal(torch.rand(4), draw)
        for key, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], tensor), key
        for a, b in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(optimizer.state[a]["momentum_buffer"], optimizer2.state[b]["momentum_buffer"])

    def read(self, path, run_id="abc", model=None):
        model = model or small_net(1)
        with pytest.raises(FadevizError) as caught:
            read_checkpoint(path, run_id, model, sgd(model))
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    def test_of_another_run(self, path):
        model = small_net(1)
        before = state_of(model)
        line = self.read(path, "def", model)
        assert line == f"{path} belongs to run abc, not to def. Record again: overwrite=True"
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())

    @pytest.mark.parametrize("kept", [0, 1, 50, 1000, -500, -1])
    def test_truncated(self, path, kept):
        path.write_bytes(path.read_bytes()[:kept])
        line = self.read(path)
        assert line.startswith(f"{path} is damaged (")
        assert line.endswith("Record the run again with overwrite=True")

    def test_of_another_network(self, path):
        other = nn.Sequential(nn.Conv2d(3, 5, 3))
        assert self.read(path, model=other).startswith(f"{path} is damaged (Error(s) in loading state_dict")

    @pytest.mark.parametrize("state", [{"step": 3}, [1, 2], "text"])
    def test_something_else(self, path, state):
        torch.save(state, path)
        assert self.read(path).startswith(f"{path} is damaged (")

    def test_damaged_in_the_middle(self, path):
        whole = path.read_bytes()
        place = whole.index(b"run_id")
        model, refused = small_net(1), 0
        for start in range(place - 40, place + 40):
            path.write_bytes(whole[:start] + b"\xff" + whole[start + 1 :])
            try:
                read_checkpoint(path, "abc", model, sgd(model))  # torch.load checks no CRC: not all is noticed
            except FadevizError:
                refused += 1
        assert refused > 10

    @pytest.mark.parametrize("key", ["rng", "step", "cuda_rng"])
    def test_an_entry_is_missing(self, path, key):
        state = torch.load(path)
        del state[key]
        torch.save(state, path)
        assert self.read(path).startswith(f"{path} is damaged (")

    def test_missing(self, tmp_path):
        assert self.read(tmp_path / "none.pt").startswith(f"{tmp_path / 'none.pt'} is damaged (")

    def test_a_full_disk(self, path):
        resource = pytest.importorskip("resource")
        before = path.read_bytes()
        model = nn.Linear(300, 300)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
            with pytest.raises(FadevizError, match=f"cannot write {path}"):
                write_checkpoint(path, 3, "abc", model, sgd(model))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, handler)
            assert path.read_bytes() == before
            assert list(path.parent.iterdir()) == [path]
