"""Ranks, zones and contrasts against slow loops."""

import itertools

import numpy as np
import pytest
from scipy.stats import rankdata

from analysis_movies import DISCS, STEPS, masks, movie
from fadeviz import FadevizError
from fadeviz.analysis.contrasts import Contrasts, measure_contrasts, own_less_others, perfect_contrasts
from fadeviz.analysis.ranks import ranks, squared_gradient, steepness_ranks
from fadeviz.analysis.regions import build_regions
from fadeviz.analysis.zones import Zones, build_zones, depth_bins


def zones_of(found, size=(48, 48)):
    return [build_zones(build_regions(mask, size)) for mask in found]


def slow_ranks(one):
    return ((rankdata(one.ravel()) - 0.5) / one.size).reshape(one.shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_ranks_average_ties(dtype):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 4, 9, 7)).astype(dtype)
    maps[0, 1] = np.round(maps[0, 1])  # ties
    maps[1, 0] = np.maximum(maps[1, 0], 0)
    maps[2, 3, 0, :2] = 0.0, -0.0
    relative, undefined = ranks(maps)
    assert not undefined.any()
    expected = np.stack([[slow_ranks(one) for one in row] for row in maps])
    assert np.allclose(relative, expected, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_without_a_pattern_ranks_everything_equal(value):
    maps = np.random.default_rng(0).normal(size=(4, 6, 6)).astype(np.float32)
    maps[1, 2, 3] = value
    maps[2] = 7.0
    maps[3] = 1e3 + 1e-4 * maps[3]  # equal but for the rounding of float32
    relative, undefined = ranks(maps)
    assert undefined.tolist() == [False, True, True, True]
    assert (relative[1:] == 0.5).all()
    assert ranks(maps[:0])[0].shape == (0, 6, 6)


def test_steepness_is_of_the_raw_map_at_any_scale():
    maps = np.random.default_rng(1).normal(size=(2, 8, 9))
    expected = np.stack([slow_ranks(one) for one in squared_gradient(maps)])
    for scale in (1.0, 1e-30, 1e30, -1.0):
        relative, undefined = steepness_ranks((maps * scale).astype(np.float32), np.zeros(2, bool))
        assert not undefined.any()
        assert np.abs(relative - expected).max() < 0.02  # neighbours may change places by rounding
    y, x = np.mgrid[0:5, 0:6].astype(float)
    assert squared_gradient(3 * x + 4 * y) == pytest.approx(np.full((3, 4), 25.0))


def test_zones_are_disjoint_and_of_the_paper():
    for zone, (_, _, radius) in zip(zones_of(masks()), DISCS, strict=True):
        assert isinstance(zone, Zones)
        assert zone.radius == pytest.approx(radius, abs=1.5)
        assert zone.cut == min(2.0, zone.radius / 2)
        distance = zone.depth * zone.radius
        assert np.array_equal(zone.rim | zone.deep, zone.inside)
        assert not (zone.rim & zone.deep).any()
        assert np.array_equal(zone.surround, (distance > 1) & (distance <= 3))
        assert np.array_equal(zone.far, distance > 2)
        assert zone.depth.min() == -1


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((48, 48)), "no object"),
        (np.ones((48, 48)), "the object fills the image"),
        (np.eye(48), "too coarse for the object: its inscribed radius is below 1.5 cells"),
        (np.pad(np.zeros((4, 4)), 22, constant_values=1), "the object nearly fills the image"),
    ],
)
def test_objects_without_an_interior_are_named(mask, reason):
    (zone,) = zones_of([mask])
    assert reason in zone


def test_contrasts_are_those_of_a_slow_loop():
    maps = movie("inward", STEPS[::4], images=5)
    maps[1, 2] = np.round(maps[1, 2])
    zones = zones_of(masks(5))
    measured = measure_contrasts(maps, zones)
    edges = depth_bins(zones)
    assert edges[0] == -1
    assert 0 in edges
    assert edges[-1] == pytest.approx(1.5, abs=0.1)
    for t in range(len(maps)):
        ranked = [slow_ranks(one) for one in maps[t]]
        steep = [slow_ranks(one) for one in squared_gradient(maps[t].astype(np.float64))]
        for n in range(5):
            for m, zone in enumerate(zones):
                outline = ranked[n][zone.rim].mean() - ranked[n][zone.surround].mean()
                interior = ranked[n][zone.deep].mean() - ranked[n][zone.far].mean()
                band = zone.band[1:-1, 1:-1]
                marked = steep[n][band].mean() - steep[n][~band].mean()
                assert measured.outline[t, n, m] == pytest.approx(outline, abs=1e-5)
                assert measured.interior[t, n, m] == pytest.approx(interior, abs=1e-5)
                assert measured.marked[t, n, m] == pytest.approx(marked, abs=1e-5)
        for index, (low, high) in enumerate(itertools.pairwise(edges)):
            bins = [(zone.depth >= low) & (zone.depth < high) for zone in zones]
            kept = [n for n in range(5) if bins[n].any()]
            table = np.array([[ranked[n][bins[m]].mean() for m in kept] for n in kept])
            expected = own_less_others(table) if len(kept) > 1 else np.nan
            assert measured.profile[t, index] == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_areas_under_the_roc_curve_count_pairs():
    maps = movie("together", (3, 50), images=2)
    maps[1, 1] = np.round(maps[1, 1])
    zones = zones_of(masks(2))
    measured = measure_contrasts(maps, zones)
    for t in range(2):
        for n, zone in enumerate(zones):
            inside, outside = maps[t, n][zone.inside], maps[t, n][~zone.inside]
            greater = (inside[:, None] > outside).mean() + (inside[:, None] == outside).mean() / 2
            assert measured.region_auc[t, n] == pytest.approx(greater, abs=1e-5)
            steep, band = squared_gradient(maps[t, n].astype(np.float64)), zone.band[1:-1, 1:-1]
            greater = (steep[band][:, None] > steep[~band]).mean()
            assert measured.boundary_auc[t, n] == pytest.approx(
                greater + (steep[band][:, None] == steep[~band]).mean() / 2, abs=2e-3
            )


def test_what_depends_on_place_alone_cancels():
    zones = zones_of(masks(6))
    blob = movie("blob", (0, 50, 200), images=1, noise=0.0)[:, [0] * 6]
    measured = measure_contrasts(blob, zones)
    assert np.abs(measured.outline[1:]).max() > 0.1
    for table in (measured.outline, measured.interior, measured.marked):
        assert np.abs(own_less_others(table)).max() < 1e-6
    assert np.nanmax(np.abs(measured.profile)) < 1e-6
    loop = np.mean([blob[1, 0, 0, 0] * 0 + measured.interior[1, n, n] for n in range(6)])
    rest = np.mean([measured.interior[1, n, m] for n in range(6) for m in range(6) if n != m])
    assert own_less_others(measured.interior[1]) == pytest.approx(loop - rest, abs=1e-9)


def test_perfect_maps_and_maps_that_show_nothing():
    zones = zones_of(masks())
    perfect = perfect_contrasts(zones)
    assert (np.diagonal(perfect.outline[0]) > 0.4).all()
    assert perfect.region_auc == pytest.approx(np.ones((1, len(zones))), abs=1e-5)
    flat = measure_contrasts(np.zeros((2, len(zones), 48, 48), np.float32), zones)
    assert flat.undefined == 2 * len(zones)
    assert np.abs(flat.outline).max() < 1e-6
    assert np.isnan(flat.region_auc).all()
    assert np.isnan(flat.boundary_auc).all()


def test_some_images_and_none():
    maps, zones = movie("inward", STEPS[::5], images=5), zones_of(masks(5))
    some = measure_contrasts(maps, [zones[3], zones[1]], images=[3, 1])
    other = measure_contrasts(maps[:, [3, 1]], [zones[3], zones[1]])
    assert np.array_equal(some.outline, other.outline)
    again = Contrasts.from_arrays(some.to_arrays())
    assert np.array_equal(again.profile, some.profile, equal_nan=True)
    assert again.undefined == 0
    none = measure_contrasts(maps, [], images=[])
    assert none.outline.shape == (len(maps), 0, 0)
    with pytest.raises(FadevizError, match="one mask per image"):
        measure_contrasts(maps, zones[:2])
    with pytest.raises(FadevizError, match="one mask per image"):
        measure_contrasts(maps[..., :40], zones)
