"""Courses: every measure over the training, on a run whose parts are known."""

import numpy as np
import pytest

from analysis_movies import STEPS as ALL_STEPS
from analysis_movies import mask, movie
from fadeviz import open_run
from fadeviz.analysis.courses import FIGURES, MEASURES, operator_courses
from fadeviz.analysis.order import learning_order
from fadeviz.analysis.regions import build_regions
from fadeviz.analysis.spectrum import radial_centroid
from fadeviz.analysis.table import course_rows, summary_rows
from fadeviz.snapshots import Snapshot, SnapshotStore

STEPS = ALL_STEPS[::2]
LAYER = "decoder.3.upsample"
REGIONS = build_regions(mask(), (48, 48))


def write_run(path, seed=0, parts=True, tests=True):
    """The gate is 0.2 inside, 0.5 on the band, 0.8 outside; channels rotate into each other; kernels stay."""
    rng = np.random.default_rng(seed)
    store = SnapshotStore(path, f"run{seed}")
    maps = np.stack([movie("inward", STEPS, noise=0.05, seed=10 * seed + i) for i in range(3)], axis=1)
    gate = np.select([REGIONS.inside, REGIONS.band], [0.2, 0.5], 0.8).astype(np.float32)
    entropy = np.where(build_regions(mask(), (24, 24)).inside, 0.3, 0.9).astype(np.float32)
    base = rng.normal(size=(2, 2, 48, 48))
    base[:, 0] += 3 * REGIONS.inside
    kernels = rng.random((2, 9, 48, 48)).astype(np.float32)
    checks = (-1.0) ** np.add.outer(np.arange(48), np.arange(48))
    for index, step in enumerate(STEPS):
        made = [Snapshot(step, LAYER, 0, "feature", maps[index])]
        if parts:
            angle = np.pi / 2 * (1 - index / (len(STEPS) - 1))
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            channels = np.einsum("ij,njhw->nihw", turn, base).astype(np.float32)
            made += [
                Snapshot(step, LAYER, 0, "gate", np.stack([gate] * 3)),
                Snapshot(step, LAYER, 0, "kernel_entropy", np.stack([entropy] * 3)),
                Snapshot(step, LAYER, 0, "channels", channels),
                Snapshot(step, LAYER, 0, "guide", channels[:, ::-1]),
                Snapshot(step, LAYER, 0, "kernels", kernels),
                Snapshot(step, LAYER, 0, "constant", (2 + 0.5 * checks)[None].astype(np.float32)),
            ]
        store.write(step, made)
    store.write_observation(np.zeros((3, 48, 48, 3), np.uint8), np.stack([mask()] * 3))
    store.write_info({"upsampler": "fade", "title": "FADE", "config": {"seed": seed}, "figure_layer": LAYER})
    for step in range(1, STEPS[-1] + 1):
        line = {"step": step, "loss": 1.0}
        if tests and step % 50 == 0:
            line |= {"miou": step / 1000 + seed, "boundary_iou": 0.1}
        store.append_metrics(line)
    return open_run(path)


@pytest.fixture(scope="module")
def order(tmp_path_factory):
    folder = tmp_path_factory.mktemp("courses")
    return learning_order([write_run(folder / str(seed), seed) for seed in range(2)])


@pytest.fixture(scope="module")
def courses(order):
    return operator_courses(order, order.operators[0])


def test_all_measures_in_their_order_with_what_they_are(courses):
    assert list(courses) == [name for name in MEASURES if name != "boundary_iou_fine"]
    assert {measure.figure for measure in MEASURES.values()} == set(FIGURES)
    for name, course in courses.items():
        assert course.measure == name
        assert course.values.shape[:2] == (2, len(course.steps))
        known = np.isfinite(course.middle)
        assert (course.low[known] <= course.middle[known]).all()
        assert (course.middle[known] <= course.high[known]).all()


def test_responses_are_those_of_the_order(order, courses):
    assert np.array_equal(courses["edge"].values, order.operators[0].edge)
    assert np.array_equal(courses["interior"].values, order.operators[0].interior)
    # All masks are alike here: the others' are one's own.
    assert np.allclose(courses["interior_elsewhere"].values, courses["interior"].values)


def test_gate_and_entropy_by_region_each_at_its_own_size(courses):
    for part, value in (("inside", 0.2), ("band", 0.5), ("outside", 0.8)):
        assert np.allclose(courses[f"gate_{part}"].values, value)
    assert np.allclose(courses["entropy_inside"].values, 0.3)
    assert np.allclose(courses["entropy_outside"].values, 0.9)
    assert courses["entropy_band"].values.shape == (2, len(STEPS), 3)


def test_what_only_turns_keeps_its_cka_and_loses_its_correlation(courses):
    for kind in ("channels", "guide"):
        assert np.allclose(courses[f"{kind}_cka"].values, 1, atol=1e-5)
        assert (np.diff(courses[f"{kind}_correlation"].middle) > 0).all()
        assert courses[f"{kind}_correlation"].middle[-1] == pytest.approx(1)
        assert courses[f"{kind}_correlation"].middle[0] < 0.6
        assert courses[f"{kind}_cka"].values.shape == (2, len(STEPS), 2)
    assert np.allclose(courses["kernels_correlation"].values, 1)
    assert np.allclose(courses["kernels_cka"].values, 1)
    assert np.allclose(courses["gate_correlation"].values, 1)


def test_classes_are_apart_in_the_interior_more_than_at_the_edge(courses):
    own, other = (courses[f"{part}_interior"].values for part in ("intra", "inter"))
    assert (own > other + 0.1).all()
    assert (courses["intra_edge"].values < own).all()


def test_spectrum_is_of_the_maps_and_changes_begin_with_the_second(order, courses):
    maps = order.operators[0].runs[1].maps(LAYER)
    assert np.array_equal(courses["centroid"].values[1], radial_centroid(maps))
    for name in ("frame_correlation", "pixel_change", "luminance_change"):
        assert np.isnan(courses[name].values[:, 0]).all()
        assert np.isfinite(courses[name].values[:, 1:]).all()


def test_the_operators_own_pattern_over_its_mean(courses):
    assert np.allclose(courses["constant"].values, 0.25, atol=1e-6)
    assert courses["constant"].values.shape == (2, len(STEPS), 1)


def test_tests_are_told_at_their_own_steps(courses):
    assert courses["miou"].steps == (50, 100, 150, 200)
    assert courses["miou"].values[:, :, 0].tolist() == [[0.05, 0.1, 0.15, 0.2], [1.05, 1.1, 1.15, 1.2]]
    assert courses["miou"].middle.tolist() == pytest.approx([0.55, 0.6, 0.65, 0.7])


def test_what_a_run_lacks_is_absent(tmp_path):
    runs = [write_run(tmp_path / "0", 0), write_run(tmp_path / "1", 1, parts=False, tests=False)]
    order = learning_order(runs)
    found = operator_courses(order, order.operators[0])
    assert {MEASURES[name].figure for name in found} == {"responses", "spectrum", "learning", "continuity"}
    assert [name for name in found if MEASURES[name].figure == "learning"] == ["map_correlation"]


def test_rows(order, courses):
    (row,) = summary_rows(order, [courses])
    assert row == summary_rows(order)[0]
    assert row["centroid_at_end"] == courses["centroid"].middle[-1]
    assert row["miou"] == pytest.approx(0.7)
    told = course_rows(courses)
    assert told["miou"]["steps"] == [50, 100, 150, 200]
    assert told["pixel_change"]["middle"][0] is None
    assert told["edge"]["low"] == courses["edge"].low.tolist()
