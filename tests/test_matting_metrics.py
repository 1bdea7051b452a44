"""The matting loss, the four errors against slow definitions, and mattes of whole images."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fadeviz.data import Sample
from fadeviz.data.matting.dataset import load_synthetic_mattes
from fadeviz.errors import FadevizError
from fadeviz.training.distributed import Processes
from fadeviz.training.loop import fit
from fadeviz.training.matting_loss import alpha_loss, collate_matting, matting_loss
from fadeviz.training.matting_metrics import (
    connectivity_error,
    evaluate_mattes,
    gradient_error,
    measure_matte,
    mse,
    predict_alpha,
    sad,
)

ERRORS = (sad, mse, gradient_error, connectivity_error)


def mattes(seed: int, height: int = 21, width: int = 17) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two mattes of 8 bits with whole and partial regions, and a trimap that knows nothing of them."""
    random = np.random.default_rng(seed)
    both = []
    for _ in range(2):
        coarse = random.integers(0, 4, (6, 5)).repeat(4, 0).repeat(4, 1)[:height, :width] / 3
        fine = np.clip(coarse + random.normal(0, 0.2, (height, width)), 0, 1)
        both.append((np.rint(fine * 255) / 255).astype(np.float32))
    return both[0], both[1], random.choice([0, 128, 255], (height, width)).astype(np.uint8)


def picture(seed: int, height: int = 12, width: int = 10, layers: bool = True) -> Sample:
    random = np.random.default_rng(seed)
    image, front, back = (random.integers(0, 256, (height, width, 3)).astype(np.uint8) for _ in range(3))
    alpha = random.random((height, width)).astype(np.float32)
    trimap = random.choice([0, 128, 255], (height, width)).astype(np.uint8)
    mask = (alpha >= 0.5).astype(np.uint8)
    return Sample(f"p{seed}", image, mask, alpha, trimap, *((front, back) if layers else ()))


class TestErrors:
    def test_sad_and_mse_by_hand(self) -> None:
        """Differences 0.5, 0.25 and 1 count; the fourth pixel is known."""
        prediction = np.array([[0.5, 0.25], [1, 1]], np.float32)
        truth = np.array([[0, 0.5], [0, 0]], np.float32)
        trimap = np.array([[128, 128], [128, 255]], np.uint8)
        assert sad(prediction, truth, trimap) == pytest.approx(1.75 / 1000)
        assert mse(prediction, truth, trimap) == pytest.approx((0.25 + 0.0625 + 1) / 3)

    @pytest.mark.parametrize("seed", range(3))
    def test_sad_and_mse_against_a_loop(self, seed: int) -> None:
        prediction, truth, trimap = mattes(seed)
        total = squares = count = 0.0
        for y in range(trimap.shape[0]):
            for x in range(trimap.shape[1]):
                if trimap[y, x] == 128:
                    difference = float(prediction[y, x]) - float(truth[y, x])
                    total, squares, count = total + abs(difference), squares + difference**2, count + 1
        assert sad(prediction, truth, trimap) == pytest.approx(total / 1000)
        assert mse(prediction, truth, trimap) == pytest.approx(squares / count)

    @pytest.mark.parametrize("seed", range(2))
    def test_gradient_against_a_loop(self, seed: int) -> None:
        """The square kernel of the definition, and a convolution written out."""
        prediction, truth, trimap = mattes(seed)
        sigma, reach = 1.4, 4

        def gauss(u: int) -> float:
            return math.exp(-(u**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))

        assert gauss(reach) < 0.01 < gauss(reach - 1)
        places = range(-reach, reach + 1)
        kernel = {(v, u): gauss(v) * -u * gauss(u) / sigma**2 for v in places for u in places}
        norm = math.sqrt(sum(value**2 for value in kernel.values()))
        height, width = trimap.shape

        def size_at(alpha: np.ndarray, y: int, x: int) -> float:
            along = [0.0, 0.0]
            for (v, u), weight in kernel.items():
                for axis, (dy, dx) in enumerate(((v, u), (u, v))):
                    row, column = min(max(y - dy, 0), height - 1), min(max(x - dx, 0), width - 1)
                    along[axis] += weight / norm * float(alpha[row, column])
            return math.hypot(*along)

        total = sum(
            (size_at(prediction, y, x) - size_at(truth, y, x)) ** 2
            for y in range(height)
            for x in range(width)
            if trimap[y, x] == 128
        )
        assert gradient_error(prediction, truth, trimap) == pytest.approx(total / 1000, rel=1e-9)

    def test_gradient_of_a_step_by_hand(self) -> None:
        """Right of a step from 0 to 1, the kernel's weights for u <= 0 count, and the whole Gaussian across."""
        truth = np.zeros((30, 30))
        truth[:, 15:] = 1
        trimap = np.zeros((30, 30), np.uint8)
        trimap[15, 15] = 128
        smooth = [math.exp(-u * u / 3.92) for u in range(-4, 5)]
        slope = [-u * weight for u, weight in zip(range(-4, 5), smooth, strict=True)]
        across = sum(smooth) / math.sqrt(sum(w * w for w in smooth))
        along = sum(slope[:5]) / math.sqrt(sum(w * w for w in slope))
        got = gradient_error(np.full((30, 30), 0.3), truth, trimap)
        assert got == pytest.approx((across * along) ** 2 / 1000)
        assert got == pytest.approx(0.0071, abs=5e-5)

    @pytest.mark.parametrize("seed", range(4))
    def test_connectivity_against_a_loop(self, seed: int) -> None:
        """Thresholds in tenths as integers: n / 255 >= k / 10 where 10 n >= 255 k."""
        prediction, truth, trimap = mattes(seed)
        height, width = trimap.shape
        levels = [np.rint(alpha.astype(np.float64) * 255).astype(int) for alpha in (prediction, truth)]
        left = {(y, x) for y in range(height) for x in range(width)}
        last = dict.fromkeys(left, 10)
        still = set(left)
        for k in range(1, 11):
            above = {p for p in left if all(10 * level[p] >= 255 * k for level in levels)}
            largest: set[tuple[int, int]] = set()
            for start in sorted(above):
                if start not in above:
                    continue
                region, queue = {start}, deque([start])
                while queue:
                    y, x = queue.popleft()
                    for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                        if near in above and near not in region:
                            region.add(near)
                            queue.append(near)
                above -= region
                if len(region) > len(largest):
                    largest = region
            for p in still - largest:
                last[p] = k - 1
            still &= largest
        total = 0.0
        for p in left:
            if trimap[p] == 128:
                phi = []
                for level in levels:
                    # d >= 0.15, exactly: n / 255 - k / 10 >= 15 / 100
                    d = level[p] / 255 - last[p] / 10
                    phi.append(1 - d if 100 * level[p] - 2550 * last[p] >= 15 * 255 else 1.0)
                total += abs(phi[0] - phi[1])
        assert connectivity_error(prediction, truth, trimap) == pytest.approx(total / 1000, rel=1e-6)

    def test_connectivity_by_hand(self) -> None:
        """An island of 0.6 in the prediction alone: l is 0 there, its connectedness 0.4 instead of 1.

        The column at 0.5 hangs on the body in both: l is 0.5 and d 0 in the truth; in the prediction, 0.6, d is 0.1,
        below theta, so that nothing is lost.
        """
        truth = np.zeros((5, 9), np.float32)
        truth[:, :3] = 1
        truth[:, 3] = 0.5
        prediction = truth.copy()
        prediction[:, 3] = 0.6
        prediction[2, 7] = 0.6
        trimap = np.full((5, 9), 128, np.uint8)
        assert connectivity_error(prediction, truth, trimap) == pytest.approx(0.6 / 1000)
        prediction[2, 7] = 0.1
        assert connectivity_error(prediction, truth, trimap) == 0

    def test_thresholds_are_met_by_eight_bit_values(self) -> None:
        """51/255 is 0.2 and 153/255 is 0.6: not a rounding below."""
        trimap = np.full((4, 4), 128, np.uint8)
        for level in (51, 102, 153, 204, 255):
            truth = np.full((4, 4), level / 255, np.float32)
            other = truth + np.float32(0.1)
            assert connectivity_error(np.minimum(other, 1), truth, trimap) == 0

    def test_nothing_is_connected(self) -> None:
        zero, some = np.zeros((4, 4)), np.full((4, 4), 0.5)
        trimap = np.full((4, 4), 128, np.uint8)
        assert connectivity_error(some, zero, trimap) == pytest.approx(16 * 0.5 / 1000)

    @pytest.mark.parametrize("error", ERRORS)
    def test_equal_mattes_have_none_and_known_pixels_do_not_count(self, error) -> None:
        prediction, truth, trimap = mattes(7)
        assert error(truth, truth, trimap) == 0
        assert error(prediction, truth, trimap) > 0
        known = np.where(trimap == 128, 0, trimap).astype(np.uint8)
        if error is mse:
            with pytest.raises(FadevizError, match="no pixel of the trimap is 128"):
                error(prediction, truth, known)
        else:
            assert error(prediction, truth, known) == 0

    @pytest.mark.parametrize("error", ERRORS)
    def test_sizes_that_differ(self, error) -> None:
        prediction, truth, trimap = mattes(1)
        with pytest.raises(FadevizError, match=r"prediction is \(21, 17\), the truth \(20, 17\)"):
            error(prediction, truth[1:], trimap)


class TestLoss:
    def test_tensors(self) -> None:
        samples = [picture(1), picture(2)]
        inputs, targets = collate_matting(samples)
        assert inputs.shape == (2, 4, 12, 10)
        assert targets.shape == (2, 11, 12, 10)
        sample = samples[1]
        assert sample.alpha is not None
        assert sample.trimap is not None
        np.testing.assert_allclose(inputs[1, 0], (sample.image[..., 0] / 255 - 0.485) / 0.229, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(inputs[1, 3], sample.trimap / 255, rtol=1e-6)
        np.testing.assert_array_equal(targets[1, 0], sample.alpha)
        np.testing.assert_array_equal(targets[1, 1], sample.trimap == 128)
        for first, pixels in ((2, sample.foreground), (5, sample.background), (8, sample.image)):
            assert pixels is not None
            np.testing.assert_allclose(targets[1, first : first + 3], pixels.transpose(2, 0, 1) / 255, rtol=1e-6)
        assert collate_matting([picture(1), picture(2, layers=False)])[1].shape == (2, 2, 12, 10)

    def test_against_a_loop(self) -> None:
        _, targets = collate_matting([picture(3), picture(4)])
        prediction = torch.from_numpy(np.random.default_rng(0).random((2, 1, 12, 10)).astype(np.float32)) * 1.2 - 0.1
        t = targets.double().numpy()
        means = []
        for b in range(2):
            alphas, colours, count = 0.0, 0.0, 0
            for y in range(12):
                for x in range(10):
                    if t[b, 1, y, x] == 1:
                        p, count = float(prediction[b, 0, y, x]), count + 1
                        alphas += math.sqrt((p - t[b, 0, y, x]) ** 2 + 1e-12)
                        for c in range(3):
                            mixed = p * t[b, 2 + c, y, x] + (1 - p) * t[b, 5 + c, y, x]
                            colours += math.sqrt((mixed - t[b, 8 + c, y, x]) ** 2 + 1e-12)
            means.append((alphas / count, colours / count))
        alpha, colour = np.mean(means, 0)
        assert matting_loss(prediction, targets).item() == pytest.approx(0.5 * alpha + 0.5 * colour, rel=1e-5)
        assert matting_loss(prediction, targets, 0.8).item() == pytest.approx(0.8 * alpha + 0.2 * colour, rel=1e-5)
        assert alpha_loss(prediction[:, 0], targets).item() == pytest.approx(alpha, rel=1e-5)
        assert matting_loss(prediction, targets[:, :2]).item() == pytest.approx(alpha, rel=1e-5)

    def test_by_hand(self) -> None:
        """One unknown pixel: alpha off by 0.2, a white foreground on black, so that each channel is off by 0.2 too."""
        targets = torch.zeros(1, 11, 2, 2)
        targets[:, 0], targets[:, 1, 0, 0], targets[:, 2:5], targets[:, 8:11] = 0.5, 1, 1, 0.5
        prediction = torch.full((1, 1, 2, 2), 0.7)
        assert matting_loss(prediction, targets).item() == pytest.approx(0.5 * 0.2 + 0.5 * 0.6)

    def test_the_batch_is_the_mean_of_its_pictures(self) -> None:
        """What the training by several processes needs."""
        samples = [picture(seed) for seed in range(3)]
        prediction = torch.rand(3, 1, 12, 10, generator=torch.Generator().manual_seed(0))
        whole = matting_loss(prediction, collate_matting(samples)[1])
        single = [matting_loss(prediction[i : i + 1], collate_matting([samples[i]])[1]) for i in range(3)]
        torch.testing.assert_close(whole, torch.stack(single).mean())

    def test_known_pixels_have_no_gradient_and_exact_ones_a_finite_one(self) -> None:
        sample = picture(5)
        _, targets = collate_matting([sample])
        prediction = targets[:, :1].clone().requires_grad_()
        matting_loss(prediction, targets).backward()
        assert prediction.grad is not None
        assert prediction.grad.isfinite().all()
        assert not prediction.grad[targets[:, 1:2] == 0].any()
        assert prediction.grad[targets[:, 1:2] == 1].any()

    def test_bad_input(self) -> None:
        sample = picture(1)
        known = sample._replace(trimap=np.zeros((12, 10), np.uint8))
        for samples, message in (
            ([sample._replace(alpha=None)], "p1 has no matte"),
            ([sample._replace(trimap=None)], "p1 has no trimap"),
            ([sample, known], "p1 has no unknown pixel in its trimap"),
            ([sample, picture(2, 12, 11)], "p2 and p1 differ in size"),
        ):
            with pytest.raises(FadevizError, match=message):
                collate_matting(samples)
        _, targets = collate_matting([sample])
        for prediction, truth in ((torch.zeros(1, 2, 12, 10), targets), (torch.zeros(1, 1, 12, 10), targets[:, :5])):
            with pytest.raises(FadevizError, match=r"; \(B, 1, H, W\) and \(B, 2 or 11, H, W\) are needed"):
                matting_loss(prediction, truth)


class Red(nn.Module):
    """Gives the image's red channel as the matte, and remembers the sizes that it saw."""

    def __init__(self, drop: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.229))
        self.drop = drop
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.seen.append(x)
        red = x[:, :1] * self.scale + 0.485
        return red[:, :, :-1] if self.drop else red


class Reds:
    """Images whose red channel is their matte."""

    def __init__(self, sizes: list[tuple[int, int]], off: float = 0) -> None:
        self.sizes, self.off = sizes, off

    @property
    def count(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Sample:
        sample = picture(index, *self.sizes[index], layers=False)
        sample.image[..., 0] = np.random.default_rng(index).integers(80, 170, sample.mask.shape)
        alpha = sample.image[..., 0].astype(np.float32) / 255 + np.float32(self.off)
        return sample._replace(alpha=alpha)


class TestWholePictures:
    def test_sides_that_fit_are_not_padded(self) -> None:
        sample = Reds([(32, 64)])[0]
        model = Red().eval()
        alpha = predict_alpha(model, sample, stride=32)
        np.testing.assert_array_equal(model.seen[0].numpy(), collate_matting([sample])[0].numpy())
        assert sample.trimap is not None
        unknown = sample.trimap == 128
        np.testing.assert_allclose(alpha[unknown], sample.image[unknown][:, 0] / 255, atol=1e-6)

    @pytest.mark.parametrize("size", [(33, 64), (31, 40), (5, 70), (1, 3)])
    def test_others_are_reflected_and_cropped_back(self, size: tuple[int, int]) -> None:
        sample = Reds([size])[0]
        sample.trimap[0, 0] = 128  # type: ignore[index]
        model = Red().eval()
        alpha = predict_alpha(model, sample, stride=32)
        seen = model.seen[0][0].numpy()
        assert seen.shape[1] % 32 == seen.shape[2] % 32 == 0
        assert alpha.shape == size
        whole = collate_matting([sample])[0][0].numpy()
        for y in range(seen.shape[1]):
            v = y % max(2 * size[0] - 2, 1)
            v = min(v, 2 * size[0] - 2 - v)
            for x in range(0, seen.shape[2], 7):
                u = x % max(2 * size[1] - 2, 1)
                u = min(u, 2 * size[1] - 2 - u)
                assert (seen[:, y, x] == whole[:, v, u]).all()

    def test_what_the_trimap_knows_is_put_in(self) -> None:
        sample = Reds([(20, 20)])[0]
        alpha = predict_alpha(Red().eval(), sample, stride=4)
        assert (alpha[sample.trimap == 0] == 0).all()
        assert (alpha[sample.trimap == 255] == 1).all()

    def test_a_picture_without_a_known_matte_can_be_matted(self) -> None:
        assert predict_alpha(Red().eval(), Reds([(8, 8)])[0]._replace(alpha=None), stride=4).shape == (8, 8)

    def test_an_output_of_another_size(self) -> None:
        with pytest.raises(FadevizError, match="one value per pixel is needed"):
            predict_alpha(Red(drop=True).eval(), Reds([(8, 8)])[0], stride=4)

    def test_evaluate(self) -> None:
        """The network is off by 0.1 everywhere, but the known pixels count as known."""
        pictures = Reds([(20, 30), (33, 17), (32, 32)], off=0.1)
        model = Red()
        model.train()
        got = evaluate_mattes(model, pictures, stride=8)
        assert model.training
        assert list(got) == ["test_loss", "sad", "mse", "grad", "conn"]
        unknown = [int((pictures[i].trimap == 128).sum()) for i in range(3)]
        assert got["sad"] == pytest.approx(0.1 * sum(unknown) / 3 / 1000, rel=1e-4)
        assert got["mse"] == pytest.approx(0.01, rel=1e-4)
        assert got["test_loss"] == pytest.approx(0.1, rel=1e-4)
        single = measure_matte(predict_alpha(model.eval(), pictures[1], stride=8), pictures[1])
        rest = [measure_matte(predict_alpha(model, pictures[i], stride=8), pictures[i]) for i in (0, 2)]
        for name in ("grad", "conn"):
            assert got[name] == pytest.approx((single[name] + rest[0][name] + rest[1][name]) / 3)

    def test_processes_share_the_pictures(self) -> None:
        pictures = Reds([(9, 9), (8, 12), (10, 10)], off=0.05)
        told: list[object] = []

        class Pretended(Processes):
            def all_gather(self, value):  # type: ignore[no-untyped-def]
                told.append(value)
                return told

        evaluate_two = [Pretended(number, 2) for number in (0, 1)]
        with pytest.raises(KeyError):  # the first alone does not have them all
            evaluate_mattes(Red(), pictures, stride=4, processes=evaluate_two[0])
        assert evaluate_mattes(Red(), pictures, stride=4, processes=evaluate_two[1]) == evaluate_mattes(
            Red(), pictures, stride=4
        )

    def test_sets_that_cannot_be_tested_on(self) -> None:
        for dataset in (Reds([]), load_synthetic_mattes(32).train):
            with pytest.raises(FadevizError, match="the data set has no images, or no end"):
                evaluate_mattes(Red(), dataset)


def test_a_small_network_learns_drawn_mattes() -> None:
    """All parts together on four drawings: the loss in ``fit`` and the errors fall."""
    drawn = load_synthetic_mattes(64).test

    class Few:
        count = 4

        def __getitem__(self, index: int) -> Sample:
            return drawn[index]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 1, 5, padding=2))
    before = evaluate_mattes(model, Few())
    batch = collate_matting([drawn[index] for index in range(4)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = [result.loss for result in fit(model, [batch] * 60, matting_loss, optimizer, lambda step: 0.01)]
    after = evaluate_mattes(model, Few())
    assert losses[-1] < 0.6 * losses[0]
    assert after["sad"] < 0.8 * before["sad"]
    assert after["mse"] < 0.6 * before["mse"]
