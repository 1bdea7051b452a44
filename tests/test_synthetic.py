"""The drawn horses: reproducible, with exact mattes, recognisable by outline and not by colour."""

from __future__ import annotations

import functools
from collections import deque

import numpy as np
import pytest
from numpy.typing import NDArray

from fadeviz.data import Dataset, Sample
from fadeviz.data.synthetic.dataset import SyntheticHorses
from fadeviz.errors import FadevizError

# The share of horse pixels at 64x64: a change of the drawing shows here, another machine's rounding does not.
GOLDEN_SHARES = {
    "synthetic-train-0-0": 0.163,
    "synthetic-train-0-7": 0.309,
    "synthetic-train-0-23": 0.209,
    "synthetic-test-0-2": 0.256,
    "synthetic-test-0-11": 0.323,
}


@functools.cache
def some_samples(stream: str, count: int) -> list[Sample]:
    horses = SyntheticHorses(64, seed=3, stream=stream)
    return [horses[i] for i in range(count)]


def same(a: Sample, b: Sample) -> bool:
    assert a.alpha is not None
    assert b.alpha is not None
    return a.name == b.name and all(x.tobytes() == y.tobytes() for x, y in zip(a[1:4], b[1:4], strict=True))


def main_component_share(mask: NDArray[np.uint8]) -> float:
    """Share of the foreground that its largest 8-connected component holds."""
    left = set(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True))
    total, largest = len(left), 0
    while left:
        queue = deque([left.pop()])
        size = 0
        while queue:
            y, x = queue.popleft()
            size += 1
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    queue.append(near)
        largest = max(largest, size)
    return largest / total


def foreground_iou(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float((found & truth).sum() / (found | truth).sum())


def colour_bins(samples: list[Sample]) -> NDArray[np.intp]:
    """The 8x8x8 RGB bin of every pixel."""
    coarse = np.stack([sample.image for sample in samples]).astype(np.intp) // 32
    return coarse[..., 0] * 64 + coarse[..., 1] * 8 + coarse[..., 2]


def truths(samples: list[Sample]) -> NDArray[np.bool_]:
    return np.stack([sample.mask for sample in samples]) == 1


def test_a_sample_fits_the_contract() -> None:
    horses: Dataset = SyntheticHorses((48, 80), seed=5, stream="test", count=3)
    sample = horses[2]
    assert horses.count == 3
    assert sample.name == "synthetic-test-5-2"
    assert sample.image.shape == (48, 80, 3)
    assert sample.image.dtype == np.uint8
    assert sample.mask.shape == (48, 80)
    assert sample.mask.dtype == np.uint8
    assert sample.alpha is not None
    assert sample.alpha.shape == (48, 80)
    assert sample.alpha.dtype == np.float32
    assert all(array.flags.c_contiguous for array in sample[1:4])


@pytest.mark.parametrize("size", [32, (32, 100), (100, 32), (65, 131)])
def test_any_size_shows_a_horse(size: int | tuple[int, int]) -> None:
    for index in range(4):
        sample = SyntheticHorses(size)[index]
        assert sample.mask.shape == (size if isinstance(size, tuple) else (size, size))
        assert 0.04 < sample.mask.mean() < 0.5


def test_a_sample_does_not_depend_on_what_was_asked_before() -> None:
    forward, backward = SyntheticHorses(64, seed=1), SyntheticHorses(64, seed=1, count=5)
    ahead = [forward[i] for i in range(5)]
    back = [backward[i] for i in reversed(range(5))][::-1]
    assert all(same(a, b) for a, b in zip(ahead, back, strict=True))
    assert same(forward[np.int64(3)], ahead[3])


def test_changing_a_sample_does_not_change_the_next_call() -> None:
    horses = SyntheticHorses(32)
    first = horses[0]
    kept = first.image.copy()
    first.image[:] = 0
    assert (horses[0].image == kept).all()


def test_seed_stream_and_index_each_change_ground_and_horse() -> None:
    base = SyntheticHorses(64, seed=0, stream="train")[0]
    others = [
        SyntheticHorses(64, seed=1, stream="train")[0],
        SyntheticHorses(64, seed=0, stream="test")[0],
        SyntheticHorses(64, seed=0, stream="train")[1],
    ]
    for other in others:
        assert base.alpha is not None
        assert other.alpha is not None
        ground = (base.alpha == 0) & (other.alpha == 0)
        assert np.abs(base.image[ground].astype(int) - other.image[ground]).mean() > 8
        assert foreground_iou(base.mask == 1, other.mask == 1) < 0.95


def test_another_size_is_about_the_same_picture() -> None:
    for index in range(6):
        small, large = SyntheticHorses(64)[index], SyntheticHorses(128)[index]
        shrunk = large.image.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(shrunk - small.image).mean() < 12
        assert large.alpha is not None
        assert small.alpha is not None
        assert np.abs(large.alpha.reshape(64, 2, 64, 2).mean((1, 3)) - small.alpha).mean() < 0.02


def test_the_matte_is_exact_and_the_mask_is_its_half() -> None:
    for sample in some_samples("train", 60):
        assert sample.alpha is not None
        assert sample.alpha.min() == 0
        assert 0.99 < sample.alpha.max() <= 1
        assert (sample.mask == (sample.alpha >= 0.5)).all()
        partial = ((sample.alpha > 0.02) & (sample.alpha < 0.98)).mean()
        assert 0.01 < partial < 0.25


def test_the_horse_covers_a_tenth_to_almost_half() -> None:
    shares = np.array([sample.mask.mean() for sample in some_samples("train", 60)])
    assert shares.min() > 0.08
    assert shares.max() < 0.46
    assert 0.15 < shares.mean() < 0.32
    assert shares.std() > 0.03


def test_the_horse_is_one_piece() -> None:
    shares = [main_component_share(sample.mask) for sample in some_samples("train", 60)]
    assert min(shares) > 0.9
    assert np.mean(shares) > 0.985


def test_horses_look_both_ways_and_wear_many_colours() -> None:
    samples = some_samples("train", 60)
    means = np.array([sample.image[sample.mask == 1].mean(0) for sample in samples])
    assert means.mean(1).min() < 70
    assert means.mean(1).max() > 150
    # The head is the highest part of most: left or right of the middle of the horse.
    sides = []
    for sample in samples:
        rows, columns = np.nonzero(sample.mask)
        sides.append(columns[rows < np.quantile(rows, 0.05)].mean() < columns.mean())
    assert 0.25 < np.mean(sides) < 0.75


def test_colour_alone_does_not_find_the_horse() -> None:
    """A Bayes rule on 8x8x8 colours, with the threshold that is best on its own samples, on 40 unseen ones."""
    train, test = some_samples("train", 100), some_samples("test", 40)
    bins, truth = colour_bins(train).ravel(), truths(train).ravel()
    horse = np.bincount(bins[truth], minlength=512)
    total = np.bincount(bins, minlength=512)
    chance = horse / np.maximum(total, 1)

    def training_iou(threshold: float) -> float:
        chosen = chance >= threshold
        return float(horse[chosen].sum() / (horse.sum() + (total - horse)[chosen].sum()))

    best = max(np.linspace(0.05, 0.9, 35).tolist(), key=training_iou)
    found, wanted = chance[colour_bins(test)] >= best, truths(test)
    iou = foreground_iou(found, wanted)
    everywhere = foreground_iou(np.ones_like(wanted), wanted)
    assert everywhere - 0.03 < iou < 0.42, f"colour rule: foreground IoU {iou:.3f}, all-horse {everywhere:.3f}"

    images = np.stack([sample.image for sample in test])
    cuts = [images[..., channel] < level for channel in range(3) for level in range(16, 250, 16)]
    single = max(max(foreground_iou(cut, wanted), foreground_iou(~cut, wanted)) for cut in cuts)
    assert single < iou + 0.02, f"one channel: foreground IoU {single:.3f}, colour rule {iou:.3f}"


def test_coarse_golden() -> None:
    horses = {stream: SyntheticHorses(64, stream=stream) for stream in ("train", "test")}
    found = {}
    for name in GOLDEN_SHARES:
        _, stream, _, index = name.split("-")
        sample = horses[stream][int(index)]
        assert sample.name == name
        found[name] = float(sample.mask.mean())
    assert found == pytest.approx(GOLDEN_SHARES, abs=0.01)


def test_iteration_ends_with_count() -> None:
    assert [sample.name for sample in SyntheticHorses(32, count=2)] == ["synthetic-train-0-0", "synthetic-train-0-1"]


def test_indices_outside_are_refused() -> None:
    assert SyntheticHorses(32).count is None
    with pytest.raises(IndexError, match="no sample -1; there are 0 and up"):
        SyntheticHorses(32)[-1]
    with pytest.raises(IndexError, match="no sample 2; there are 0 to 1"):
        SyntheticHorses(32, count=2)[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 31}, "size is 31, but a whole number of at least 32"),
        ({"size": (64, 16)}, "size's width is 16, but a whole number of at least 32"),
        ({"size": (64, 64, 3)}, r"size is \(64, 64, 3\), but one number or \(height, width\)"),
        ({"size": 64.0}, "size is 64.0, but a whole number"),
        ({"seed": -1}, "seed is -1, but a whole number of at least 0"),
        ({"seed": True}, "seed is True, but a whole number"),
        ({"count": 0}, "count is 0, but a whole number of at least 1"),
        ({"stream": ""}, "stream is '', but a name"),
    ],
)
def test_wrong_arguments_say_what_is_needed(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(FadevizError, match=message) as caught:
        SyntheticHorses(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
