"""Normalisation and colours: always in [0, 1], never NaN for a finite value, exact grays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fadeviz.errors import FadevizError
from fadeviz.render.colormap import NON_FINITE, colorize, is_diverging, palette, to_indices
from fadeviz.render.normalize import Limits, find_limits, limits_by_scope, normalize

TOP = float(np.finfo(np.float32).max)
finite_maps = arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(-TOP, TOP, width=32)
)
any_maps = arrays(np.float32, (4, 5), elements=st.floats(width=32))
kinds = st.sampled_from(["feature", "gradient", "gate"])


@given(finite_maps, kinds, st.sampled_from(["frame", "run", "shared"]), st.booleans())
def test_finite_values_stay_in_range_and_in_order(values, kind, scope, centered):
    unit = normalize(values, find_limits(values, kind, scope=scope, centered=centered))
    assert unit.dtype == np.float32
    assert ((unit >= 0) & (unit <= 1)).all()
    order = np.argsort(values, axis=None)
    assert (np.diff(unit.ravel()[order]) >= 0).all()


@given(any_maps, kinds)
def test_only_what_is_not_finite_is_nan(values, kind):
    unit = normalize(values, find_limits(values, kind))
    assert np.array_equal(np.isnan(unit), ~np.isfinite(values))


@given(st.floats(-TOP, TOP, width=32))
def test_a_constant_map_is_mid_grey(value):
    constant = np.full((3, 4), value, np.float32)
    assert (normalize(constant, find_limits(constant, "feature", scope="frame")) == 0.5).all()


@pytest.mark.parametrize(
    ("low", "high"), [(-TOP, TOP), (0.0, 1e-45), (-1e38, 1e38), (1.0, np.nextafter(np.float32(1), 2))]
)
def test_extremes_span_the_whole_range(low, high):
    values = np.array([low, high], np.float32)
    assert normalize(values, find_limits(values, "feature")).tolist() == [0, 1]


def test_a_map_without_finite_values_has_limits_and_no_warning():
    values = np.full((2, 2), np.nan, np.float32)
    assert find_limits(values, "feature") == Limits(0, 0)
    assert np.isnan(normalize(values, Limits(0, 0))).all()


def test_equal_limits_keep_the_order_of_other_values():
    assert normalize(np.array([1.0, 2.0, 3.0]), Limits(2, 2)).tolist() == [0, 0.5, 1]


def test_kinds_with_a_natural_range():
    values = np.array([0.25, 0.5])
    assert find_limits(values, "gradient") == Limits(0, 0.5)
    assert find_limits(values, "gate") == Limits(0, 1)
    assert find_limits(values, "kernel_entropy", scope="shared") == Limits(0, 1)
    for kind in ("gradient", "gate"):
        assert find_limits(values, kind, scope="frame") == Limits(0.25, 0.5)


def test_percentiles_leave_outliers_out():
    values = np.append(np.linspace(0, 1, 101), 1000.0)
    assert find_limits(values, "feature", (0, 99)).high < 1.001
    assert find_limits(np.array([-1.0, 3.0]), "feature", centered=True) == Limits(-3, 3)


@pytest.mark.parametrize("percentiles", [(5, 5), (-1, 100), (0, 101), (99, 1)])
def test_percentiles_that_are_no_range(percentiles):
    with pytest.raises(FadevizError, match="the first must be smaller"):
        find_limits(np.zeros(3), "feature", percentiles)


def test_scopes():
    first, second = np.array([[[0.0, 1.0]], [[2.0, 3.0]]]), np.array([[[4.0, 5.0]], [[6.0, 9.0]]])
    assert limits_by_scope([first, second], ["a", "b"], "feature", "frame") == [((0, 1), (2, 3)), ((4, 5), (6, 9))]
    assert limits_by_scope([first, second], ["a", "b"], "feature", "run") == [((0, 3),) * 2, ((4, 9),) * 2]
    assert limits_by_scope([first, second], ["a", "a"], "feature", "run") == [((0, 9),) * 2] * 2
    assert limits_by_scope([first, second], ["a", "b"], "feature", "shared") == [((0, 9),) * 2] * 2
    with pytest.raises(FadevizError, match=r"no normalisation scope 'frames'. Nearest: 'frame'"):
        limits_by_scope([first], ["a"], "feature", "frames")


def test_every_grey_level_survives():
    levels = np.arange(256, dtype=np.float32)
    assert np.array_equal(to_indices(levels / np.float32(255)), levels)
    assert np.array_equal(to_indices(normalize(levels, Limits(0, 255))), levels)
    assert np.array_equal(colorize(levels / 255, "gray"), np.repeat(levels[:, None], 3, axis=1))


def test_colour_maps():
    assert palette("viridis").shape == (256, 3)
    assert palette("viridis")[0].tolist() == [68, 1, 84]
    assert palette("tab10").shape == (256, 3)
    assert colorize(np.array([[np.nan, 1.0]]), "magma")[0, 0].tolist() == list(NON_FINITE)
    assert is_diverging("coolwarm")
    assert is_diverging("RdBu_r")
    assert not is_diverging("viridis")
    with pytest.raises(FadevizError, match=r"no colour map 'virids'. Nearest: 'viridis'"):
        palette("virids")
