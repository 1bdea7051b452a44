"""The choice of observed images: good ones, unlike one another, the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from fadeviz.data import Sample
from fadeviz.data.observation import AT_BORDER, CONSIDERED, MAIN_PART, SHARE, choose_observed
from fadeviz.errors import FadevizError


def box(top: int, left: int, height: int, width: int, side: int = 40) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


class Masks:
    """A data set of given masks; endless where ``count`` says so. ``seen`` are the indices that were asked for."""

    def __init__(self, masks: list[np.ndarray], endless: bool = False) -> None:
        self.masks = masks
        self.count = None if endless else len(masks)
        self.seen: list[int] = []

    def __getitem__(self, index: int) -> Sample:
        self.seen.append(index)
        mask = self.masks[index % len(self.masks)]
        return Sample(f"{index:04d}", np.zeros((*mask.shape, 3), np.uint8), mask)


GOOD = [box(5, 5, 20, 20), box(10, 12, 16, 24), box(15, 2, 22, 12), box(3, 3, 30, 25), box(10, 10, 18, 18)]
TINY = box(10, 10, 4, 4)
HUGE = box(2, 2, 36, 36)
CUT_OFF = box(0, 0, 20, 40)
IN_TWO = box(5, 2, 20, 12) | box(5, 24, 20, 12)
EMPTY = box(0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(10))
def test_only_good_ones_while_there_are_enough(seed: int) -> None:
    masks = [TINY, *GOOD[:2], HUGE, CUT_OFF, GOOD[2], IN_TWO, EMPTY, *GOOD[3:]]
    assert sorted(choose_observed(Masks(masks), 5, seed)) == [1, 2, 5, 8, 9]


def is_good(mask: np.ndarray) -> bool:
    # Of two good ones, the seed takes now this, now that; of a good and another one, always the good.
    return {choose_observed(Masks([mask, GOOD[0]]), 1, seed)[0] for seed in range(30)} == {0, 1}


def test_the_bounds_of_the_share() -> None:
    # 40 x 40 pixels: a box of 20 x 9.6 has the lower share, and one of 32 x 27.5 the upper.
    assert SHARE == (0.12, 0.55)
    assert is_good(box(5, 5, 20, 10))
    assert not is_good(box(5, 5, 19, 10))
    assert is_good(box(3, 3, 32, 27))
    assert not is_good(box(3, 3, 32, 28))


def test_the_bound_at_the_border() -> None:
    # 40 x 40 pixels have a frame of 156, of which 18 may be touched.
    assert int(AT_BORDER * 156) == 18
    assert is_good(box(0, 5, 20, 18))
    assert not is_good(box(0, 5, 20, 19))
    assert is_good(box(5, 22, 18, 18))
    assert not is_good(box(5, 22, 19, 18))


def test_the_bound_of_the_main_part() -> None:
    # 20 x 18 pixels are nine tenths of 400.
    assert MAIN_PART == 0.9
    assert is_good(box(5, 5, 20, 18) | box(30, 5, 4, 10))
    assert not is_good(box(5, 5, 20, 18) | box(30, 5, 4, 11))


@pytest.mark.parametrize("seed", range(5))
def test_the_same_ones_every_time(seed: int) -> None:
    random = np.random.default_rng(4)
    masks = [box(*random.integers(2, 8, 2), *random.integers(14, 30, 2)) for _ in range(30)]
    chosen = choose_observed(Masks(masks), 6, seed)
    assert choose_observed(Masks(masks), 6, seed) == chosen
    assert len(set(chosen)) == 6
    assert choose_observed(Masks(masks), 3, seed) == chosen[:3]


def test_another_seed_starts_elsewhere() -> None:
    random = np.random.default_rng(4)
    masks = [box(*random.integers(2, 8, 2), *random.integers(14, 30, 2)) for _ in range(30)]
    assert len({choose_observed(Masks(masks), 4, seed)[0] for seed in range(10)}) > 3


@pytest.mark.parametrize("seed", range(10))
def test_they_are_unlike_one_another(seed: int) -> None:
    # Twenty alike and three others: every one of the others is chosen before a second of the many.
    masks = [GOOD[0]] * 20 + [GOOD[1], GOOD[2], GOOD[3]]
    chosen = choose_observed(Masks(masks), 4, seed)
    assert {20, 21, 22} <= set(chosen)


def test_too_few_good_ones_are_filled_up_with_the_next_best() -> None:
    nearly = box(5, 5, 13, 14)
    masks = [EMPTY, HUGE, nearly, GOOD[0], TINY]
    assert choose_observed(Masks(masks), 1) == [3]
    assert choose_observed(Masks(masks), 2) == [3, 2]
    assert choose_observed(Masks(masks), 5) == [3, 2, 4, 1, 0]


def test_endless_and_large_sets_are_looked_at_from_the_front() -> None:
    for dataset in (Masks(GOOD, endless=True), Masks(GOOD * 100)):
        assert len(choose_observed(dataset, 4)) == 4
        assert sorted(dataset.seen) == list(range(CONSIDERED))
    many = Masks(GOOD, endless=True)
    assert sorted(choose_observed(many, CONSIDERED + 10)) == list(range(CONSIDERED + 10))


def test_more_than_there_are() -> None:
    with pytest.raises(FadevizError, match=r"4 images to observe, but only 3 test images\. Use 3 or fewer"):
        choose_observed(Masks(GOOD[:3]), 4)
    with pytest.raises(FadevizError, match="at least 1 is needed"):
        choose_observed(Masks(GOOD), 0)


def test_any_class_but_zero_is_foreground() -> None:
    assert choose_observed(Masks([TINY, GOOD[0] * 7]), 1) == [1]


@pytest.mark.parametrize(
    ("mask", "hangs_together"),
    [
        # A spiral's arms meet only in the middle, a comb's teeth only at the bottom row.
        (np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]), True),
        (np.array([[1, 0, 1, 0, 1], [1, 0, 1, 0, 1], [1, 0, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]]), True),
        (np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]), False),
    ],
    ids=["spiral", "comb", "corner to corner"],
)
def test_one_component(mask: np.ndarray, hangs_together: bool) -> None:
    # Enlarged and put inside a frame, so that nothing but the components can disqualify it.
    inside = np.pad(mask.repeat(5, axis=0).repeat(5, axis=1), 6).astype(np.uint8)
    fallback = box(10, 10, 10, 10, side=37) | box(12, 22, 1, 1, side=37)
    assert SHARE[0] < inside.mean() < SHARE[1]
    chosen = choose_observed(Masks([inside, fallback]), 2)
    assert (chosen[0] == 0) is hangs_together
