"""Learning times: known answers on movies and curves, the fit against its min-max formula, and every state."""

import math

import numpy as np
import pytest

from analysis_movies import RADIUS, STEPS, mask, movie
from fadeviz import FadevizError
from fadeviz.analysis.learning import State, lead, learning_times, monotone_fit
from fadeviz.analysis.regions import build_regions
from fadeviz.analysis.responses import edge_response, interior_response

REGIONS = build_regions(mask(), (48, 48))


def times_of(kind, noise=0.02, seed=0):
    maps = movie(kind, noise=noise, seed=seed)
    return (learning_times(STEPS, measure(maps, REGIONS)) for measure in (edge_response, interior_response))


def test_the_fit_is_the_min_max_formula():
    rng = np.random.default_rng(0)
    for values in rng.normal(size=(20, 12)) + np.linspace(0, 2, 12):
        slow = [max(min(values[j : k + 1].mean() for k in range(i, 12)) for j in range(i + 1)) for i in range(12)]
        assert monotone_fit(values) == pytest.approx(slow, abs=1e-12)


def test_a_straight_line():
    times = learning_times(range(0, 110, 10), np.linspace(0, 1, 11), (0.1, 0.5, 0.8), last=1)
    assert times.state is State.REACHED
    assert times.times == pytest.approx((10, 50, 80))
    assert (times.start, times.end, times.gap, times.t50) == (0, 1, 10, pytest.approx(50))


def test_between_uneven_snapshots_the_line_is_in_the_step():
    times = learning_times([0, 1, 5, 105, 200, 300, 400], np.array([0, 0, 0.2, 0.6, 0.8, 0.8, 0.8]))
    assert times.times == pytest.approx((1 + 4 * 0.08 / 0.2, 5 + 100 * 0.2 / 0.4, 105 + 95 * 0.12 / 0.2))
    assert times.gap == 100


def test_a_dip_and_a_lone_peak_do_not_set_the_times():
    curve = np.array([0.1, 0.0, 0.9, 0.0, 0.1, 0.5, 0.8, 0.9, 0.9, 0.9])
    times = learning_times(range(10), curve, last=3)
    fit = monotone_fit(curve)
    assert fit[2:5] == pytest.approx([1 / 3] * 3)
    assert times.t50 == pytest.approx(5)  # 0.1 + 0.8 / 2 is the curve at 5
    assert times.times[0] == pytest.approx(1 + (0.18 - 0.05) / (1 / 3 - 0.05))


def test_missing_snapshots_are_left_out():
    full = np.linspace(0, 1, 21)
    holes = full.copy()
    holes[[3, 4, 12, 19]] = np.nan
    steps = range(21)
    assert learning_times(steps, holes, last=1).times == pytest.approx(learning_times(steps, full, last=1).times)
    assert learning_times(steps, holes).end == pytest.approx((full[18] + full[20]) / 2)
    for lost in (0, slice(18, 21), slice(5, 16)):
        holes = full.copy()
        holes[lost] = np.nan
        times = learning_times(steps, holes)
        assert times.state is State.MISSING
        assert np.isnan(times.times).all()
    assert np.isnan(lead(learning_times(steps, full), times))


@pytest.mark.parametrize(
    ("curve", "state"),
    [
        ([0.7, 0.7, 0.7, 0.7, 0.7, 0.7], State.AT_START),
        ([0.65, 0.2, 0.2, 0.7, 0.7, 0.7], State.REGAINED),
        ([0.65, 0.4, 0.4, 0.7, 0.7, 0.7], State.AT_START),
        ([0.65, 0.6, 0.2, 0.6, 0.7, 0.7], State.AT_START),
        ([0.06, 0.06, 0.06, 0.105, 0.105, 0.105], State.NEVER),
        ([0.8, 0.5, 0.5, 0.5, 0.5, 0.5], State.AT_START),
        ([0.1, 0.1, 0.1, 0.14, 0.14, 0.14], State.AT_START),
        ([0.64, 0.64, 0.7, 0.7, 0.7, 0.7], State.AT_START),
        ([0.62, 0.64, 0.7, 0.7, 0.7, 0.7], State.REACHED),
        ([-0.5, 0, 0.6, 0.7, 0.7, 0.7], State.REACHED),
        ([0.0, 0.05, -0.05, 0.08, 0.09, 0.09], State.NEVER),
        ([-0.6, -0.3, -0.3, 0, 0, 0], State.NEVER),
        ([0.0, 0.9, 0.0, 0.05, 0.05, 0.05], State.NEVER),
        ([0.0, 0.6, 0.6, 0.05, 0.05, 0.05], State.TRANSIENT),
        ([0.5, 0.05, 0.05, 0.05, 0.05, 0.05], State.TRANSIENT),
    ],
)
def test_states(curve, state):
    times = learning_times(range(6), np.array(curve))
    assert times.state is state
    assert np.isfinite(times.times).all() == (state is State.REACHED)
    assert np.isinf(times.times).all() == (state is State.NEVER)


def test_a_disc_filled_from_its_outline_and_one_from_its_centre():
    edge, interior = times_of("inward", noise=0)
    assert edge.t50 < 10  # the first snapshot with anything in it
    edge, interior = times_of("inward")
    assert edge.state is interior.state is State.REACHED
    # the share of the radius r < R' (the interior) that is lit: 1 - (R (1 - t) / R')^2 = 1/2
    inner = RADIUS - REGIONS.half_width
    expected = STEPS[-1] * (1 - inner / RADIUS / math.sqrt(2))
    assert interior.t50 == pytest.approx(expected, abs=6)
    assert lead(edge, interior) == pytest.approx(interior.t50 - edge.t50)
    assert lead(edge, interior) > 30
    edge, interior = times_of("outward")
    assert interior.t50 == pytest.approx(STEPS[-1] * inner / RADIUS / math.sqrt(2), abs=6)
    assert edge.t50 > 170
    assert lead(edge, interior) < -40


def test_movies_without_an_order():
    edge, interior = times_of("complete")
    assert edge.state is interior.state is State.AT_START
    edge, interior = times_of("noise")
    assert edge.state is interior.state is State.NEVER
    assert math.isnan(lead(edge, interior))
    edge, interior = times_of("constant", noise=0)
    assert edge.state is interior.state is State.MISSING


def test_a_lead_is_censored_where_one_never_comes():
    reached = learning_times(range(6), np.array([0, 0, 0.5, 0.9, 0.9, 0.9]))
    never, there = learning_times(range(6), np.zeros(6)), learning_times(range(6), np.full(6, 0.5))
    assert lead(reached, never) == math.inf
    assert lead(never, reached) == -math.inf
    assert math.isnan(lead(never, never))
    assert math.isnan(lead(there, reached))


@pytest.mark.parametrize(
    ("steps", "count", "levels", "message"),
    [
        ([0, 1, 2, 3, 4], 4, (0.5,), "5,.*4,.*one response per step"),
        ([0, 1, 2, 3], 4, (0.5,), "4 snapshots are too few; 5 are needed"),
        ([1, 2, 3, 4, 5], 5, (0.5,), "must increase from 0"),
        ([0, 2, 2, 4, 5], 5, (0.5,), "must increase from 0"),
        ([0, 1, 2, 3, 4], 5, (0.1, 0.9), r"levels=\[0.1, 0.9\]; .* include 0.5"),
        ([0, 1, 2, 3, 4], 5, (0, 0.5), r"lie in \(0, 1\]"),
        ([0, 1, 2, 3, 4], 5, (0.9, 0.5), "must increase"),
    ],
)
def test_what_cannot_be_timed(steps, count, levels, message):
    with pytest.raises(FadevizError, match=message):
        learning_times(steps, np.zeros(count), levels)


def test_until_the_peak_a_response_that_goes_again_has_its_times():
    steps = np.arange(0, 110, 10)
    hill = np.array([0, 0.1, 0.2, 0.4, 0.4, 0.4, 0.2, 0.1, 0.05, 0.05, 0.05])
    assert learning_times(steps, hill).state is State.TRANSIENT
    found = learning_times(steps, hill, until="peak")
    assert (found.state, found.start, found.end, found.t50) == (State.REACHED, 0, 0.4, 20)
    assert found.times == pytest.approx((4, 20, 28))
    # One that stays has the same times either way, but for noise at the top.
    rise = np.array([0, 0.1, 0.2, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4])
    assert learning_times(steps, rise, until="peak").times == pytest.approx(learning_times(steps, rise).times)
    noisy = np.array([0, 0, 0, 0.1, 0.5, 0.4, 0.02, 0, 0, 0, 0])  # the last of the three is far below their median
    assert learning_times(steps, noisy, until="peak").end == 0.4
    assert learning_times(steps, noisy, until="peak").t50 == pytest.approx(32.5)
    spike = np.where(steps == 50, 0.9, 0.02)  # a single snapshot is no peak
    assert learning_times(steps, spike, until="peak").state is State.NEVER
    fall = np.linspace(0.8, 0, 11)
    assert learning_times(steps, fall, until="peak").state is State.AT_START
    with pytest.raises(FadevizError, match="end"):
        learning_times(steps, hill, until="ende")
