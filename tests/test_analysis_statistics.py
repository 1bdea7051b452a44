"""The bootstrap bands of curves against a slow loop."""

import numpy as np
import pytest

from fadeviz import FadevizError
from fadeviz.analysis.statistics import bootstrap_band


class TestBand:
    def test_against_a_slow_loop(self):
        rng = np.random.default_rng(0)
        values = rng.normal(size=(3, 5, 4)) + np.arange(5)[:, None]
        values[0, 2, 1] = values[1, 2, 0] = np.nan
        middle, low, high = bootstrap_band(values, level=0.8, resamples=50, seed=3)
        drawing = np.random.default_rng(3)
        seeds, images = drawing.integers(3, size=(50, 3, 1)), drawing.integers(4, size=(50, 1, 4))
        for step in range(5):
            medians = [
                np.nanmedian([values[seeds[r, i, 0], step, images[r, 0, j]] for i in range(3) for j in range(4)])
                for r in range(50)
            ]
            assert middle[step] == pytest.approx(np.nanmedian(values[:, step]), abs=1e-12)
            assert low[step] == pytest.approx(np.nanquantile(medians, 0.1), abs=1e-12)
            assert high[step] == pytest.approx(np.nanquantile(medians, 0.9), abs=1e-12)

    def test_holds_the_truth_about_as_often_as_it_says(self):
        rng = np.random.default_rng(1)
        held = 0
        for trial in range(200):
            seeds = rng.normal(size=(8, 1, 1))
            _, low, high = bootstrap_band(seeds + rng.normal(size=(8, 1, 6)), resamples=200, seed=trial)
            held += low[0] <= 0 <= high[0]
        assert 0.85 < held / 200 < 0.99

    def test_missing_and_bad(self):
        middle, low, high = bootstrap_band(np.full((2, 3, 4), np.nan))
        assert np.isnan([middle, low, high]).all()
        one = bootstrap_band(np.full((1, 2, 1), 0.5))
        assert [part.tolist() for part in one] == [[0.5, 0.5]] * 3
        for arguments in ({"values": np.zeros((2, 3))}, {"values": np.zeros((1, 1, 1)), "level": 1.0}):
            with pytest.raises(FadevizError, match="bootstrap"):
                bootstrap_band(**arguments)
