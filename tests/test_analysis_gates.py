"""Gates and kernel entropy: means by region against plain loops, on gates whose values are known."""

import numpy as np
import pytest

from fadeviz.analysis.gates import mean_by_region, region_mean, summarize_regions
from fadeviz.errors import FadevizError

Y, X = np.mgrid[:24, :30]
RADIUS = np.hypot(Y - 12, X - 15)


def regions(images=2):
    inside, band = RADIUS < 6, (RADIUS >= 6) & (RADIUS < 9)
    return tuple(np.stack([part] * images) for part in (inside, band, ~inside & ~band))


def test_region_mean_by_loops():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 2, 5, 6)).astype(np.float32)
    region = rng.random((2, 5, 6)) < 0.4
    found = region_mean(maps, region)
    for s in range(3):
        for n in range(2):
            cells = [float(maps[s, n, y, x]) for y in range(5) for x in range(6) if region[n, y, x]]
            assert found[s, n] == pytest.approx(sum(cells) / len(cells), rel=1e-12)


def test_a_halo_that_grows():
    inside, band, outside = regions()
    rise = np.linspace(0, 1, 5)
    # All even at the start; at the end dark inside, bright on the band: 0.5 -> 0.2, 0.9, 0.5.
    end = 0.2 * inside + 0.9 * band + 0.5 * outside
    maps = (0.5 + rise[:, None, None, None] * (end - 0.5)).astype(np.float32)
    found = summarize_regions(maps, inside, band, outside)
    assert found.means.inside[:, 1] == pytest.approx(0.5 - 0.3 * rise, abs=1e-6)
    assert found.means.band[:, 0] == pytest.approx(0.5 + 0.4 * rise, abs=1e-6)
    assert found.means.outside == pytest.approx(np.full((5, 2), 0.5), abs=1e-6)
    assert found.means.halo[:, 0] == pytest.approx(0.7 * rise, abs=1e-6)
    # The first gate is constant and similar to nothing; from then on it is the end state, only weaker.
    assert np.isnan(found.similarity[0]).all()
    assert found.similarity[1:] == pytest.approx(np.ones((4, 2)), abs=1e-5)


def test_undefined_cases_are_missing():
    inside, band, outside = regions()
    maps = np.random.default_rng(1).random((2, 2, 24, 30))
    maps[0, 1, 12, 15] = np.inf
    maps[1, 1, 12, 14:16] = np.inf, -np.inf
    found = mean_by_region(maps, inside, np.zeros_like(band), outside)
    assert np.isnan(found.band).all()
    assert np.isnan(found.halo).all()
    assert np.isnan(found.inside).tolist() == [[False, True], [False, True]]
    assert np.isfinite(found.outside).all()


def test_messages():
    inside, band, outside = regions()
    maps = np.zeros((3, 2, 24, 30))
    with pytest.raises(FadevizError, match="overlap"):
        mean_by_region(maps, inside, inside | band, outside)
    with pytest.raises(FadevizError, match=r"\(S, N, h, w\)"):
        region_mean(maps[0], inside)
    with pytest.raises(FadevizError, match=r"boolean region \(2, 24, 30\)"):
        region_mean(maps, inside[:1])
    with pytest.raises(FadevizError, match="float64"):
        region_mean(maps, inside.astype(float))
