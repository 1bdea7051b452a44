"""The choice of observed images: good ones, unlike one another, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from fadeviz.analysis.regions import BAND_PIXELS, BAND_SHARE, build_regions
from fadeviz.data import Sample
from fadeviz.data.interior import HALF_WIDTH, LEAST_CELLS, LEAST_RADIUS, describe_missing, has_interior
from fadeviz.data.observation import AT_BORDER, CONSIDERED, MAIN_PART, SHARE, USUAL_COUNT, choose_observed
from fadeviz.errors import FadevizError
from fadeviz.experiment import RunConfig


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


def with_interior(sample: Sample) -> Sample:
    """An image with another object, which has an interior: only the form of the first one counts."""
    return sample._replace(mask=box(10, 10, 20, 20))


def chosen_of(dataset: Masks, count: int, seed: int = 0) -> list[int]:
    return list(choose_observed(dataset, count, seed, crop=with_interior).indices)


@pytest.mark.parametrize("seed", range(10))
def test_only_good_ones_while_there_are_enough(seed: int) -> None:
    masks = [TINY, *GOOD[:2], HUGE, CUT_OFF, GOOD[2], IN_TWO, EMPTY, *GOOD[3:]]
    assert sorted(chosen_of(Masks(masks), 5, seed)) == [1, 2, 5, 8, 9]


def is_good(mask: np.ndarray) -> bool:
    # Of two good ones, the seed takes now this, now that; of a good and another one, always the good.
    return {chosen_of(Masks([mask, GOOD[0]]), 1, seed)[0] for seed in range(30)} == {0, 1}


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
    chosen = chosen_of(Masks(masks), 6, seed)
    assert chosen_of(Masks(masks), 6, seed) == chosen
    assert len(set(chosen)) == 6
    assert chosen_of(Masks(masks), 3, seed) == chosen[:3]


def test_another_seed_starts_elsewhere() -> None:
    random = np.random.default_rng(4)
    masks = [box(*random.integers(2, 8, 2), *random.integers(14, 30, 2)) for _ in range(30)]
    assert len({chosen_of(Masks(masks), 4, seed)[0] for seed in range(10)}) > 3


@pytest.mark.parametrize("seed", range(10))
def test_they_are_unlike_one_another(seed: int) -> None:
    # Twenty alike and three others: every one of the others is chosen before a second of the many.
    masks = [GOOD[0]] * 20 + [GOOD[1], GOOD[2], GOOD[3]]
    chosen = chosen_of(Masks(masks), 4, seed)
    assert {20, 21, 22} <= set(chosen)


def test_too_few_good_ones_are_filled_up_with_the_next_best() -> None:
    nearly = box(5, 5, 13, 14)
    masks = [EMPTY, HUGE, nearly, GOOD[0], TINY]
    assert chosen_of(Masks(masks), 1) == [3]
    assert chosen_of(Masks(masks), 2) == [3, 2]
    assert chosen_of(Masks(masks), 5) == [3, 2, 4, 1, 0]


def test_endless_and_large_sets_are_looked_at_from_the_front() -> None:
    for dataset in (Masks(GOOD, endless=True), Masks(GOOD * 100)):
        assert len(chosen_of(dataset, 4)) == 4
        assert sorted(set(dataset.seen)) == list(range(CONSIDERED))
    many = Masks(GOOD, endless=True)
    assert sorted(chosen_of(many, CONSIDERED + 10)) == list(range(CONSIDERED + 10))


def test_more_than_there_are() -> None:
    with pytest.raises(FadevizError, match=r"4 images to observe, but only 3 test images\. Use observe=3 or fewer"):
        chosen_of(Masks(GOOD[:3]), 4)
    # The usual number takes all that there are.
    assert sorted(chosen_of(Masks(GOOD[:3]), USUAL_COUNT)) == [0, 1, 2]
    with pytest.raises(FadevizError, match="12 images to observe, but only 0 test images"):
        chosen_of(Masks([]), USUAL_COUNT)
    with pytest.raises(FadevizError, match="at least 1 is needed"):
        chosen_of(Masks(GOOD), 0)


def test_the_usual_number_is_the_default_of_a_run() -> None:
    assert RunConfig().observe == USUAL_COUNT


def test_any_class_but_zero_is_foreground() -> None:
    assert chosen_of(Masks([TINY, GOOD[0] * 7]), 1) == [1]


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
    chosen = chosen_of(Masks([inside, fallback]), 2)
    assert (chosen[0] == 0) is hangs_together


def disc(radius: float, side: int = 96, at: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    y, x = np.mgrid[:side, :side] + 0.5
    return ((y - at[0] * side) ** 2 + (x - at[1] * side) ** 2 < radius**2).astype(np.uint8)


def shapes() -> list[np.ndarray]:
    """Discs, bars, frames and lumps of all sizes."""
    random = np.random.default_rng(0)
    found = [disc(radius) for radius in (3, 5, 6, 7, 8, 9, 12, 20, 40, 44, 46, 50, 60)]
    found += [box(20, 10, thickness, 70, side=96) for thickness in (2, 6, 10, 12, 14, 18)]
    found += [1 - disc(radius) for radius in (4, 8, 12, 40, 60)]
    for sigma in (2, 4, 8, 16):
        lumps = ndimage.gaussian_filter(random.normal(size=(8, 96, 96)), (0, sigma, sigma))
        found += list((lumps > random.normal(size=(8, 1, 1)) * lumps.std()).astype(np.uint8))
    return found


def test_an_interior_by_the_regions_of_a_layer() -> None:
    assert HALF_WIDTH == (BAND_PIXELS, BAND_SHARE)
    agree = []
    for mask in shapes():
        regions = build_regions(mask, (24, 24))
        d, w = regions.distance, regions.half_width
        radius = -d.min()
        depth = min(2 * w, radius / 2)
        zones = [(-depth <= d) & (d < 0), d < -depth, (w < d) & (d <= 3 * w), d > 2 * w]
        agree.append(has_interior(mask > 0) == (radius >= LEAST_RADIUS and min(zone.sum() for zone in zones) >= 4))
    assert LEAST_CELLS == 4
    # Distances between centres differ a little from those to the contour's line: at most one shape is at a limit.
    assert agree.count(False) <= 1
    assert len(agree) == 56


def test_what_has_an_interior() -> None:
    assert has_interior(disc(12) > 0)
    for mask in (disc(5), box(20, 10, 6, 70, side=96), disc(60), disc(80), 0 * disc(5), 1 - disc(4)):
        assert not has_interior(mask > 0)
    # Sides that are no multiple of a cell's, or shorter than one.
    assert has_interior(disc(12)[3:, 10:] > 0)
    assert not has_interior(np.eye(3, dtype=bool))
    # The same object is too small in a smaller image.
    assert not has_interior(disc(12)[::2, ::2] > 0)


@pytest.mark.parametrize("seed", range(5))
def test_objects_without_an_interior_come_last(seed: int) -> None:
    bars = [box(2 + 4 * i, 2, 8, 90, side=96) | box(30, 40, 20 + i, 4, side=96) for i in range(10)]
    discs = [disc(15 + i, at=(0.4, 0.5)) for i in range(4)]
    small = [disc(12, at=(0.3, 0.6)), disc(11)]  # below the share of a good one
    choice = choose_observed(Masks([*bars, *discs, *small]), 6, seed)
    assert {10, 11, 12, 13} <= set(choice.indices) <= {10, 11, 12, 13, 14, 15}
    # Too few: those without an interior follow, in the order that they had.
    more = choose_observed(Masks([*bars, *discs, *small]), 9, seed)
    assert more.indices[:6] == choice.indices
    without = [i for i in choose_observed(Masks([*bars, *discs, *small]), 16, seed).earlier if i < 10]
    assert list(more.indices[6:]) == without[:3]


def test_an_interior_is_looked_for_in_what_is_observed() -> None:
    masks = [disc(8 + i, side=192) for i in range(6)]
    assert choose_observed(Masks(masks), 2).indices == choose_observed(Masks(masks), 2).earlier == (5, 4)
    cut = {5: 4, 4: 60}

    def crop(sample: Sample) -> Sample:
        return sample._replace(mask=disc(cut.get(int(sample.name), 20)))

    assert choose_observed(Masks(masks), 2, crop=crop).indices == (3, 2)


def test_of_many_classes_the_clearest_object_needs_an_interior() -> None:
    thin = 3 * box(40, 5, 10, 85, side=96) + 4 * box(0, 0, 5, 96, side=96)
    round_ = 5 * disc(25, at=(0.6, 0.5)) + 4 * box(0, 0, 5, 96, side=96)
    choice = choose_observed(Masks([thin, thin, round_]), 1, classes=9)
    assert choice.indices == (2,)
    # With two, all of it is the object.
    assert choose_observed(Masks([(thin > 0) * 1, thin]), 2).indices


def test_a_note_names_the_images_without_an_interior() -> None:
    insides = [disc(4) > 0, disc(12) > 0, disc(80) > 0]
    assert describe_missing(["a", "b", "c"], insides) == (
        "2 of 3 observed images have an object without an interior at a quarter of the image's size: a, c. "
        "Outline and interior are hard to tell apart in them"
    )
    assert describe_missing(["b"], insides[1:2]) == ""
