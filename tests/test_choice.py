"""Steps and images for figures are chosen by what changes and what differs, and always the same."""

import itertools

import numpy as np
import pytest

from fadeviz import FadevizError
from fadeviz.analysis.choice import choose_frames, choose_steps, rank_images
from render_runs import LAYER, make_run

RNG = np.random.default_rng(0)
FACES = RNG.normal(size=(6, 12, 16))
"""Maps that have nothing in common."""


def film(*shown, noise=0.0, seed=1):
    """``(S, h, w)``: which of FACES each snapshot shows, under noise."""
    frames = FACES[list(shown)]
    return (frames + noise * np.random.default_rng(seed).normal(size=frames.shape)).astype(np.float32)


class TestSteps:
    @pytest.mark.parametrize("noise", [0.0, 0.3])
    @pytest.mark.parametrize("count", [4, 6, 8])
    @pytest.mark.parametrize("jump", [1, 3, 17, 28])
    def test_both_sides_of_a_jump_are_chosen(self, noise, count, jump):
        maps = film(*[0] * jump, *[1] * (30 - jump), noise=noise)
        chosen = choose_steps([maps], count)
        assert len(chosen) == len(set(chosen)) == count
        assert {0, jump - 1, jump, 29} <= set(chosen)
        assert chosen == sorted(chosen)

    def test_several_jumps_and_a_jump_of_one_run_alone(self):
        one, other = film(*[0] * 5, *[1] * 15, noise=0.1), film(*[2] * 14, *[3] * 6, noise=0.1)
        assert choose_steps([one, other], 6) == [0, 4, 5, 13, 14, 19]
        assert choose_steps([film(*[0] * 5, *[1] * 9, *[2] * 6)], 6) == [0, 4, 5, 13, 14, 19]

    def test_steady_change_needs_no_more_than_even_gaps(self):
        w = np.linspace(0, 1, 29)[:, None, None]
        chosen = choose_steps([(1 - w) * FACES[0] + w * FACES[1]], 5)
        assert np.ptp(np.diff(chosen)) <= 2
        assert choose_steps([film(*[0] * 29)], 5) == [0, 7, 14, 21, 28]

    def test_scale_and_shift_are_no_change(self):
        maps = film(*[0] * 8, *[1] * 8)
        gains = RNG.uniform(0.1, 100, (16, 1, 1))
        assert choose_steps([maps * gains + gains], 5) == choose_steps([maps], 5)

    def test_against_all_choices(self):
        """The optimum of the errors, each computed as it is defined."""
        maps = RNG.normal(size=(9, 5, 6)).cumsum(0)
        flat = maps.reshape(9, -1)
        flat = flat - flat.mean(1, keepdims=True)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)

        def error(chosen):
            total = 0.0
            for a, b in itertools.pairwise(chosen):
                total += 1e-3 * ((b - a) / 8) ** 2
                for t in range(a + 1, b):
                    w = (t - a) / (b - a)
                    total += ((flat[t] - (1 - w) * flat[a] - w * flat[b]) ** 2).sum()
            return total

        every = [(0, *between, 8) for between in itertools.combinations(range(1, 8), 3)]
        assert tuple(choose_steps([maps], 5)) == min(every, key=error)

    def test_few_snapshots_are_all_shown(self):
        assert choose_steps([film(0, 1, 2)], 8) == [0, 1, 2]
        with pytest.raises(FadevizError, match="count=1: at least 2 steps are needed"):
            choose_steps([film(0, 1, 2)], 1)

    def test_what_is_not_finite_or_constant(self):
        maps = film(*[0] * 6, *[1] * 6)
        maps[3] = np.nan
        maps[4, 2, 2] = np.inf
        maps[8] = 5.0
        chosen = choose_steps([maps], 6)
        assert len(chosen) == 6
        assert {0, 11} <= set(chosen)

    def test_large_maps_are_averaged(self):
        """At most 48 x 48 cells of each are kept, and give the choice that all cells give."""
        faces = RNG.normal(size=(3, 12, 16)).repeat(14, axis=1).repeat(14, axis=2)
        maps = faces.repeat(10, axis=0).astype(np.float32)
        assert {0, 9, 10, 19, 20, 29} == set(choose_steps([maps], 6))


class TestImages:
    def test_the_image_in_which_they_differ_comes_first(self):
        same = np.stack([film(0, 1, 2)] * 3, axis=1)
        other = same.copy()
        other[1:, 2] = FACES[4]
        assert rank_images([same, other]) == [2, 0, 1]
        assert rank_images([other, same, same]) == [2, 0, 1]
        assert rank_images([same, same]) == [0, 1, 2]

    def test_maps_of_other_sizes_are_compared(self):
        same = np.stack([film(0, 1)] * 2, axis=1)
        larger = same.repeat(2, axis=2).repeat(3, axis=3)
        assert rank_images([same, larger]) == [0, 1]
        larger[:, 1] = larger[:, 1, ::-1]
        assert rank_images([same, larger]) == [1, 0]

    def test_of_one_run_the_one_that_changes_most(self):
        maps = np.stack([film(0, 0, 0), film(1, 2, 3), film(4, 4, 5)], axis=1)
        assert rank_images([maps]) == [1, 2, 0]


class TestRuns:
    def test_the_steps_of_a_jump(self, tmp_path):
        """A map that changes between steps 30 and 40 alone."""
        maps = np.where(np.arange(12)[:, None, None] <= 3, 0.0, RNG.normal(size=(24, 32))) + RNG.normal(size=(24, 32))
        run = make_run(tmp_path / "r", maps=maps)
        choice = choose_frames({run: LAYER}, count=5, image=0)
        assert choice.images == (0, 1)
        assert {0, 30, 40, 110} <= set(choice.steps)
        assert choose_frames({run: LAYER}, count=5, image=0) == choice

    def test_steps_that_all_have(self, tmp_path):
        one, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", steps=(0, 20, 40, 60, 61))
        assert choose_frames({one: LAYER, other: LAYER}).steps == (0, 20, 40, 60)

    def test_an_image_that_there_is_not(self, tmp_path):
        with pytest.raises(FadevizError, match=r"no image 2 in .*: there are 2, from 0 to 1"):
            choose_frames({make_run(tmp_path / "r"): LAYER}, image=2)
