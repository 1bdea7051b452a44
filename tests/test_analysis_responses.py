"""Edge and interior responses and the distance-time map, on movies with a known answer and against slow loops."""

import numpy as np
import pytest
from scipy import stats

from analysis_movies import RADIUS, STEPS, mask, movie
from fadeviz import FadevizError
from fadeviz.analysis.kymograph import merge_kymographs
from fadeviz.analysis.ranks import ranks
from fadeviz.analysis.regions import build_regions, distance_bins
from fadeviz.analysis.responses import edge_response, interior_response, measure_responses, polarity, squared_gradient

REGIONS = build_regions(mask(), (48, 48))
BINS = distance_bins([REGIONS])
SCHARR = np.array([[3, 10, 3], [0, 0, 0], [-3, -10, -3]]) / 32


def slow_auc(scores, positive):
    wins = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    return sum(wins) / len(wins)


def test_gradient_is_the_written_convolution():
    maps = np.random.default_rng(0).normal(size=(2, 6, 5))
    expected = np.zeros((2, 4, 3))
    for index, y, x in np.ndindex(2, 4, 3):
        window = maps[index, y : y + 3, x : x + 3]
        expected[index, y, x] = (window * SCHARR).sum() ** 2 + (window * SCHARR.T).sum() ** 2
    assert np.allclose(squared_gradient(maps), expected)
    slope = np.add.outer(3.0 * np.arange(6), 4.0 * np.arange(6))
    assert squared_gradient(slope) == pytest.approx(25)


def test_ranks_average_ties():
    assert np.array_equal(ranks(np.array([[5.0, 1], [1, 9]])), [[0.625, 0.25], [0.25, 0.875]])
    assert np.isnan(ranks(np.full((3, 3), 2.0))).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ranks_are_scipys(dtype):
    """Of both signs and zeros, with and without ties, tiny and huge."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(7, 9, 13))
    maps[1] = np.round(2 * maps[1])
    maps[2] *= 1e-6
    maps[3] = np.where(maps[3] < 0, -0.0, 0.0) + (maps[3] > 1)
    maps[4] = np.maximum(maps[4], 0)
    maps[5] = np.abs(maps[5]) * 1e4
    maps[6] = -np.abs(maps[6])
    maps = maps.astype(dtype)
    expected = (stats.rankdata(maps.reshape(7, -1), axis=1) - 0.5) / 117
    assert np.array_equal(ranks(maps), expected.reshape(maps.shape))
    assert np.isnan(ranks(np.where(np.arange(13) == 4, np.inf, maps))).all()
    assert np.isnan(ranks(np.where(np.arange(13) == 4, -np.nan, maps))).all()
    assert np.isnan(ranks(np.full((2, 3, 3), 5, dtype))).all()
    assert ranks(np.zeros((2, 0, 3), dtype)).shape == (2, 0, 3)


def test_a_perfect_map_is_one_in_both():
    drawn = mask().astype(np.float32)
    assert edge_response(drawn, REGIONS) == 1
    assert interior_response(drawn, REGIONS) == 1
    assert interior_response(-drawn, REGIONS) == 1
    assert polarity(-drawn, REGIONS) == -1


def test_a_map_that_is_steep_everywhere_but_at_the_contour_is_below_chance():
    ripples = np.random.default_rng(0).normal(size=(48, 48)) * (np.abs(REGIONS.distance) > 3)
    assert edge_response(ripples, REGIONS) < -0.9


def test_interior_response_of_a_filling_disc_is_the_share_that_is_filled():
    for kind in ("inward", "outward"):
        maps = movie(kind)[3:]
        expected = [(frame[REGIONS.inside] > 0).mean() for frame in maps]
        assert interior_response(maps, REGIONS) == pytest.approx(expected, abs=1e-12)


def test_both_are_the_slow_formulas():
    rng = np.random.default_rng(1)
    maps = np.round(rng.normal(size=(3, 12, 12)) * 2)  # with ties
    regions = build_regions(mask()[6:42, 6:42], (12, 12))
    for frame in maps:
        place = np.array([(frame.ravel() < v).sum() + ((frame.ravel() == v).sum() + 1) / 2 for v in frame.ravel()])
        steep = squared_gradient(32 * place.reshape(12, 12)).ravel()
        band = regions.band[1:-1, 1:-1].ravel()
        edge = 2 * slow_auc(steep, band) - 1
        assert edge_response(frame, regions) == pytest.approx(edge, abs=1e-12)
        raw = 2 * slow_auc(squared_gradient(32 * frame).ravel(), band) - 1
        assert edge_response(32 * frame, regions, ranked=False) == pytest.approx(raw, abs=1e-12)
        chosen = regions.inside | regions.outside
        area = slow_auc(frame[chosen], regions.inside[chosen])
        assert interior_response(frame, regions) == pytest.approx(2 * max(area, 1 - area) - 1, abs=1e-12)


@pytest.mark.parametrize("rescale", [np.exp, lambda f: 3 * f - 7, lambda f: f**3, np.arctan])
def test_no_increasing_rescaling_changes_them(rescale):
    maps = movie("inward", noise=0.2).astype(np.float64)
    for measure in (edge_response, interior_response):
        assert np.array_equal(measure(maps, REGIONS), measure(rescale(maps), REGIONS))
    assert np.allclose(polarity(-rescale(maps), REGIONS), -polarity(maps, REGIONS))


def test_noise_is_chance():
    noise = np.random.default_rng(2).normal(size=(200, 48, 48))
    edge, interior = edge_response(noise, REGIONS), interior_response(noise, REGIONS)
    assert abs(edge.mean()) < 0.01
    assert interior.mean() < 0.04
    assert abs(polarity(noise, REGIONS).mean()) < 0.01


def test_undefined_is_missing():
    maps = np.random.default_rng(3).normal(size=(4, 48, 48))
    maps[1] = 0.3
    maps[2, 5, 5] = np.nan
    maps[3, 5, 5] = np.inf
    for measure in (edge_response, interior_response, lambda m, r: edge_response(m, r, ranked=False)):
        assert np.isnan(measure(maps, REGIONS)).tolist() == [False, True, True, True]
    for nothing in (np.zeros((48, 48)), np.ones((48, 48))):
        empty = build_regions(nothing, (48, 48))
        assert np.isnan(edge_response(maps, empty)).all()
        assert np.isnan(interior_response(maps, empty)).all()
    small = build_regions(np.pad(np.ones((4, 4)), 22), (48, 48))  # an interior of fewer cells than count
    assert 0 < small.inside.sum() < 8
    assert np.isnan(interior_response(maps, small)).all()
    assert np.isfinite(edge_response(maps[0], small))


def test_responses_of_a_run():
    maps = np.stack([movie("inward", noise=0.1), movie("outward", noise=0.1)], axis=1)
    other = build_regions(np.roll(mask(), 3, axis=0), (48, 48))
    found = measure_responses(maps, [REGIONS, other], BINS)
    assert found.edge.shape == found.interior.shape == (len(STEPS), 2)
    assert np.array_equal(found.edge[:, 1], edge_response(maps[:, 1], other))
    assert np.array_equal(found.interior[:, 0], interior_response(maps[:, 0], REGIONS))
    assert np.array_equal(found.edge_raw[:, 0], edge_response(maps[:, 0], REGIONS, ranked=False))
    assert not np.array_equal(found.edge_raw, found.edge)
    assert np.array_equal(found.edge_mismatched[:, 0], edge_response(maps[:, 0], other))
    assert np.array_equal(found.interior_mismatched[:, 1], interior_response(maps[:, 1], REGIONS))


def test_mismatched_is_the_mean_over_the_other_masks_that_have_a_response():
    masks = [np.roll(mask(), shift, axis=0) for shift in (0, 4, 9)] + [np.zeros((48, 48))]
    regions = [build_regions(one, (48, 48)) for one in masks]
    maps = np.stack([movie("outward", noise=0.1)] * 4, axis=1)
    found = measure_responses(maps, regions, BINS)
    edges = [edge_response(maps[:, 0], one) for one in regions[1:3]]
    interiors = [interior_response(maps[:, 0], one) for one in regions[1:3]]
    assert np.allclose(found.edge_mismatched[:, 0], np.mean(edges, axis=0), atol=1e-12)
    assert np.allclose(found.interior_mismatched[:, 0], np.mean(interiors, axis=0), atol=1e-12)
    assert np.isfinite(found.interior_mismatched[:, 3]).all()  # the image without an object has the others' masks
    alone = measure_responses(maps[:, :1], regions[:1], BINS)
    assert np.isnan(alone.edge_mismatched).all()
    assert np.isnan(alone.interior_mismatched).all()


def test_maps_too_small_for_anything():
    maps = np.random.default_rng(0).normal(size=(5, 1, 2, 2))
    found = measure_responses(maps, [build_regions(mask(), (2, 2))], BINS)
    assert np.isnan(found.edge).all()
    assert np.isnan(found.interior).all()
    assert np.isnan(found.gradient.value).all()
    ramp = np.arange(48.0 * 48).reshape(48, 48)  # also of its ranks the slope is the same everywhere
    assert np.isnan(edge_response(ramp, REGIONS))
    assert interior_response(ramp, REGIONS) < 0.01


@pytest.mark.parametrize(("kind", "sign"), [("inward", 1), ("outward", 1), ("inward", -1)])
def test_kymograph_shows_the_front(kind, sign):
    maps = sign * movie(kind)[:, None]
    seen = measure_responses(maps, [REGIONS], BINS).value
    assert seen.value.shape == (len(STEPS), len(BINS) - 1)
    for step, row in list(zip(STEPS, seen.value, strict=True))[1:]:
        front = -RADIUS * step / STEPS[-1] if kind == "inward" else -RADIUS * (1 - step / STEPS[-1])
        inner, outer = (front, 0) if kind == "inward" else (-np.inf, front)
        lit = (seen.distance > inner) & (seen.distance < outer)
        clear = (np.abs(seen.distance - front) > 1.5) & (np.abs(seen.distance) > 1.5)
        assert np.array_equal(row[clear] > 0.5, lit[clear])
    assert np.abs(seen.value[0][seen.cells[0] > 60] - 0.5).max() < 0.15  # step 0 is noise
    assert seen.cells[0, 0] == ((REGIONS.distance >= BINS[0]) & (REGIONS.distance < BINS[1])).sum()


def test_kymograph_of_the_gradient_shows_when_the_contour_gets_steep():
    inward, outward = (
        measure_responses(movie(kind)[:, None], [REGIONS], BINS).gradient for kind in ("inward", "outward")
    )
    at_contour = np.abs(inward.distance) < 1
    assert inward.value[1:, at_contour].min() > 0.7
    assert outward.value[3:-4, at_contour].max() < 0.5
    assert outward.value[-1, at_contour].min() > 0.9
    front = outward.distance[np.nanargmax(outward.value[3:], axis=1)]
    assert np.allclose(front, [-RADIUS * (1 - step / STEPS[-1]) for step in STEPS[3:]], atol=1.3)


def test_kymograph_is_the_mean_of_images_and_leaves_out_what_is_undefined():
    maps = np.stack([movie("inward"), movie("constant"), movie("outward")], axis=1)
    empty = build_regions(np.zeros((48, 48)), (48, 48))
    seen = measure_responses(maps, [REGIONS, REGIONS, empty], BINS).value
    alone = measure_responses(maps[:, :1], [REGIONS], BINS).value
    assert np.array_equal(seen.value, alone.value)
    assert seen.images.max() == 1
    assert np.isnan(measure_responses(maps[:, 1:2], [REGIONS], BINS).value.value).all()
    both = measure_responses(maps[:, [0, 2]], [REGIONS, REGIONS], BINS).value
    parts = [measure_responses(maps[:, i : i + 1], [REGIONS], BINS).value for i in (0, 2, 1)]
    assert np.allclose(both.value[2:], (parts[0].value + parts[1].value)[2:] / 2)
    assert np.array_equal(both.value[1], parts[0].value[1])  # where the outward movie is still constant
    merged = merge_kymographs(parts)
    assert np.allclose(merged.value, both.value)
    assert np.array_equal(merged.cells, both.cells)
    uneven = merge_kymographs([both, parts[0]])
    assert np.allclose(uneven.value[2:], (2 * both.value + parts[0].value)[2:] / 3)
    assert uneven.images.max() == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: edge_response(np.zeros((4, 4)), REGIONS), "Build the regions for the maps' size"),
        (lambda: measure_responses(np.zeros((3, 2, 48, 48)), [REGIONS], BINS), "with 1 masks"),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(FadevizError, match=message):
        call()


def test_maps_measured_together_are_those_measured_alone():
    regions = build_regions(np.hypot(*np.mgrid[-16:16, -16:16]) < 9, (32, 32))
    rng = np.random.default_rng(0)
    maps = np.stack([np.round(rng.normal(size=(32, 32)), digits) for digits in (8, 1, 0, 8, 0, 2)]).astype(np.float32)
    maps[0], maps[3, 5, 5] = 1.0, np.nan  # two that are undefined among those that are not, and many equal cells
    for measure in (edge_response, polarity):
        found = measure(maps, regions)
        assert (np.isnan(found) == [1, 0, 0, 1, 0, 0]).all()
        assert np.array_equal(found, [measure(one, regions) for one in maps], equal_nan=True)
    assert np.array_equal(ranks(maps), [ranks(one) for one in maps], equal_nan=True)
