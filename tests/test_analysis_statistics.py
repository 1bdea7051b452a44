"""The bootstrap and the sign-flip test, against enumeration, scipy and what must hold under the null hypothesis."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fadeviz import FadevizError
from fadeviz.analysis.statistics import bootstrap_band, bootstrap_interval, paired_test

NAN, INF = math.nan, math.inf


def all_resamples(table, statistic):
    """Every outcome of the crossed draw of rows and columns, with its probability."""
    found = {}
    rows, columns = table.shape
    for drawn in itertools.product(range(rows), repeat=rows):
        for images in itertools.product(range(columns), repeat=columns):
            values = table[np.ix_(drawn, images)].ravel()
            values = values[~np.isnan(values)]
            if values.size:
                found[float(statistic(values))] = found.get(float(statistic(values)), 0) + 1
    total = sum(found.values())
    return {value: count / total for value, count in found.items()}


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_the_interval_is_that_of_all_resamples(statistic):
    values = np.array([[1.0, NAN, 2.5], [7.0, 4.0, 5.5], [NAN, NAN, NAN]])
    found = sorted(all_resamples(values[:2], getattr(np, statistic)).items())
    chances = np.cumsum([chance for _, chance in found])
    assert chances[-1] == pytest.approx(1)
    for level in (0.5, 0.8, 0.95):
        got = bootstrap_interval(values, statistic=statistic, level=level, resamples=20000)
        for end, share in ((got.low, (1 - level) / 2), (got.high, (1 + level) / 2)):
            # the exact quantile, give or take what 20000 draws leave open
            around = [found[min(int(np.searchsorted(chances, share + d)), len(found) - 1)][0] for d in (-0.012, 0.012)]
            assert around[0] <= end <= around[1]
        assert got.estimate == pytest.approx(getattr(np, statistic)([1, 2.5, 7, 4, 5.5]))
        assert (got.count, got.seeds, got.level) == (5, 2, level)


def test_seeds_carry_the_uncertainty():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 1)) + 0.01 * rng.normal(size=(12, 30))
    got = bootstrap_interval(values, statistic="mean")
    flat = bootstrap_interval(values.reshape(1, -1), statistic="mean")
    error = 1.96 * values.mean(axis=1).std() / math.sqrt(12)
    assert (got.high - got.low) / 2 == pytest.approx(error, rel=0.12)
    assert (flat.high - flat.low) < (got.high - got.low) / 3


def test_intervals_of_a_plain_sample_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = 0
    for index in range(200):
        got = bootstrap_interval(rng.normal(size=(20, 1)), statistic="mean", level=0.9, resamples=300, seed=index)
        held += got.low <= 0 <= got.high
    assert 165 <= held <= 192


def test_censored_and_missing_values():
    got = bootstrap_interval(np.array([[10.0, 20, INF, INF, INF]]))
    assert got.estimate == got.high == INF
    assert got.low == pytest.approx(10, abs=10)
    got = bootstrap_interval(np.array([[-INF, INF, 5.0, 5, 5, 5, 5, 5, 5]]))
    assert (got.estimate, got.low, got.high) == (5, 5, 5)
    assert bootstrap_interval(np.array([[1.0, INF]]), statistic="mean").estimate == INF
    both = bootstrap_interval(np.array([[-INF] * 3 + [INF] * 3]))
    assert math.isnan(both.estimate)  # neither first: no middle
    assert (both.low, both.high) == (-INF, INF)
    assert math.isnan(bootstrap_interval(np.array([[-INF, 1, INF]]), statistic="mean").estimate)
    nothing = bootstrap_interval(np.full((2, 3), NAN))
    assert (nothing.count, nothing.seeds) == (0, 0)
    assert np.isnan([nothing.estimate, nothing.low, nothing.high]).all()


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(2).normal(size=(3, 5))
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, statistic="mean", seed=3) != bootstrap_interval(values, statistic="mean", seed=4)


def slow_p(differences):
    place = [
        (np.abs(differences) < abs(d)).sum() + ((np.abs(differences) == abs(d)).sum() + 1) / 2 for d in differences
    ]
    signed = np.sign(differences) * place
    patterns = itertools.product((-1, 1), repeat=len(differences))
    return np.mean([abs((np.array(signs) * signed).sum()) >= abs(signed.sum()) for signs in patterns])


def test_p_is_that_of_all_sign_patterns_and_of_wilcoxon():
    rng = np.random.default_rng(3)
    for count in (1, 2, 5, 9):
        a, b = rng.normal(size=(1, count)) + 0.4, rng.normal(size=(1, count))
        got = paired_test(a, b)
        assert got.exact
        assert got.p == pytest.approx(slow_p((a - b)[0]))
        assert got.p == pytest.approx(stats.wilcoxon((a - b)[0], method="exact").pvalue)
        assert got.difference == pytest.approx(np.median(a - b))
    ties = np.array([[1.0, 1, -1, 2, 0, 0, 3, 2]])
    assert paired_test(ties, np.zeros_like(ties)).p == pytest.approx(slow_p(ties[0]))


def test_many_units_are_drawn_and_come_near_the_exact_answer():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(3, 40)) + 0.15, rng.normal(size=(3, 40))
    got = paired_test(a, b)
    assert not got.exact
    assert got.count == 40
    middle = np.median(a - b, axis=0)
    assert got.difference == pytest.approx(np.median(middle))
    assert got.p == pytest.approx(stats.wilcoxon(middle, method="exact").pvalue, abs=0.015)
    assert got == paired_test(a, b)
    assert paired_test(b, a).difference == -got.difference
    assert paired_test(a + 9, b, flips=99).p == pytest.approx(0.01)


def test_images_that_differ_are_not_seen_as_new_with_every_seed():
    """What an image does to all seeds alike is one observation: five seeds of it are no five."""
    rng = np.random.default_rng(8)
    out = {"interval": 0, "paired": 0}
    for trial in range(120):
        leads = rng.normal(size=(1, 8)) + 0.2 * rng.normal(size=(5, 8))
        got = bootstrap_interval(leads, resamples=300, seed=trial)
        out["interval"] += not got.low <= 0 <= got.high
        out["paired"] += paired_test(leads, np.zeros_like(leads)).p < 0.05
    assert out["interval"] / 120 < 0.17  # drawn anew for each seed: 0.4
    assert out["paired"] / 120 < 0.1


def test_by_seed_there_are_as_many_units_as_seeds():
    a = np.array([[1.0, 2, 9], [3, 4, NAN], [5, 5, 5], [NAN, NAN, NAN]])
    got = paired_test(a, np.zeros_like(a), unit="seed")
    assert (got.count, got.p) == (3, 0.25)
    assert got.difference == 3.5


def test_p_is_rarely_small_where_there_is_no_difference():
    rng = np.random.default_rng(5)
    p = np.array([paired_test(*rng.normal(size=(2, 1, 9))).p for _ in range(300)])
    assert 0.01 < (p <= 0.05).mean() < 0.09
    assert 0.4 < p.mean() < 0.6


def test_censored_and_missing_pairs():
    a, b = np.array([[INF, INF, 5.0, NAN, 8, 9]]), np.array([[INF, 3.0, 4, 1, NAN, 2]])
    got = paired_test(a, b)
    assert got.count == 3
    assert got.p == 0.25
    assert got.difference == 7
    none = paired_test(np.full((2, 2), NAN), np.zeros((2, 2)))
    assert none.count == 0
    assert math.isnan(none.p)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval(np.zeros((1, 2)), statistic="mode"), "no statistic 'mode'"),
        (lambda: bootstrap_interval(np.zeros((1, 2)), level=1), "level=1"),
        (lambda: paired_test(np.zeros((1, 2)), np.zeros((2, 1))), r"\(1, 2\) and \(2, 1\)"),
        (lambda: paired_test(np.zeros((1, 2)), np.zeros((1, 2)), unit="map"), "no unit 'map'"),
        (lambda: paired_test(np.zeros((1, 2)), np.zeros((1, 2)), flips=0), "flips=0"),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(FadevizError, match=message):
        call()


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
