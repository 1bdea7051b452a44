"""Curves: every measure over the training, on a run whose parts are known."""

import numpy as np
import pytest

from analysis_movies import masks, movie
from fadeviz import open_run
from fadeviz.analysis.classes import class_similarity
from fadeviz.analysis.curves import _own_pattern, operator_curves
from fadeviz.analysis.measures import GROUPS, MEASURES
from fadeviz.analysis.onsets import measure_onsets
from fadeviz.analysis.regions import build_regions
from fadeviz.analysis.result import Analysis
from fadeviz.analysis.spectrum import radial_centroid
from fadeviz.analysis.table import curve_rows, summary_rows
from fadeviz.analysis.text import describe
from fadeviz.storage.info import RunInfo, StoredConfig
from fadeviz.storage.metrics import TASK_METRICS
from fadeviz.storage.snapshots import Snapshot, SnapshotStore

STEPS = tuple(range(0, 210, 20))
LAYER = "decoder.3.upsample"
MASKS = list(masks(3))
REGIONS = [build_regions(one, (48, 48)) for one in MASKS]
COARSE = [build_regions(one, (24, 24)) for one in MASKS]


def write_run(path, seed=0, parts=True, tests=True, kept=2):
    """The gate is 0.2 inside, 0.5 on the band, 0.8 outside; channels rotate into each other; kernels stay."""
    rng = np.random.default_rng(seed)
    store = SnapshotStore(path, f"run{seed}")
    maps = movie("inward", STEPS, images=3, noise=0.05, seed=seed)
    gate = np.stack([np.select([one.inside, one.band], [0.2, 0.5], 0.8) for one in REGIONS]).astype(np.float32)
    entropy = np.stack([np.select([one.inside, one.band], [0.3, 0.6], 0.9) for one in COARSE]).astype(np.float32)
    base = rng.normal(size=(2, 2, 48, 48))
    base[:, 0] += 3 * np.stack([one.inside for one in REGIONS[:2]])
    kernels = rng.random((2, 9, 48, 48)).astype(np.float32)
    checks = (-1.0) ** np.add.outer(np.arange(48), np.arange(48))
    for index, step in enumerate(STEPS):
        made = [Snapshot(step, LAYER, 0, "feature", maps[index])]
        if parts:
            angle = np.pi / 2 * (1 - index / (len(STEPS) - 1))
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            channels = np.einsum("ij,njhw->nihw", turn, base).astype(np.float32)
            made += [
                Snapshot(step, LAYER, 0, "gate", gate),
                Snapshot(step, LAYER, 0, "kernel_entropy", entropy),
                Snapshot(step, LAYER, 0, "channels", channels[:kept]),
                Snapshot(step, LAYER, 0, "guide", channels[:, ::-1]),
                Snapshot(step, LAYER, 0, "kernels", kernels),
                Snapshot(step, LAYER, 0, "constant", (2 + 0.5 * checks)[None].astype(np.float32)),
            ]
        store.write(step, made)
    store.write_observation(np.zeros((3, 48, 48, 3), np.uint8), np.stack(MASKS))
    store.write_info(RunInfo(upsampler="fade", title="FADE", config=StoredConfig({"seed": seed}), figure_layer=LAYER))
    for step in range(1, STEPS[-1] + 1):
        line = {"step": step, "loss": 1.0}
        if tests and step % 50 == 0:
            line |= {"miou": step / 1000 + seed, "boundary_iou": 0.1}
        store.append_metrics(line)
    return open_run(path)


@pytest.fixture(scope="module")
def onsets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("courses")
    return measure_onsets([write_run(folder / str(seed), seed) for seed in range(2)])


@pytest.fixture(scope="module")
def curves(onsets):
    return operator_curves(onsets, onsets.operators[0])


def test_all_measures_in_their_order_with_what_they_are(curves):
    readout = ("outline_readout", "interior_readout")
    others = ("boundary_iou_fine", *readout, *TASK_METRICS["matting"].metrics)
    assert list(curves) == [name for name in MEASURES if name not in others]
    assert {measure.group for measure in MEASURES.values()} == set(GROUPS)
    for name, curve in curves.items():
        assert curve.measure == name
        assert curve.values.shape[:2] == (2, len(curve.steps))
        known = np.isfinite(curve.middle)
        assert (curve.low[known] <= curve.middle[known]).all()
        assert (curve.middle[known] <= curve.high[known]).all()


def test_responses_are_those_of_the_onset(onsets, curves):
    (operator,) = onsets.operators
    for name in ("outline", "interior"):
        reading = getattr(operator.map, name)
        assert np.array_equal(curves[name].values[:, :, 0], reading.run_curves)
        assert np.array_equal(curves[name].middle, reading.curve)
        assert np.array_equal(curves[name].low, reading.low, equal_nan=True)
        assert curves[name].chance == reading.chance
    assert np.array_equal(curves["boundary_auc"].values[1], operator.contrasts[1].boundary_auc)
    assert curves["region_auc"].middle[-1] > 0.95


def test_gate_and_entropy_by_region_each_at_its_own_size(curves):
    for part, value in (("inside", 0.2), ("band", 0.5), ("outside", 0.8)):
        assert np.allclose(curves[f"gate_{part}"].values, value)
    for part, value in (("inside", 0.3), ("band", 0.6), ("outside", 0.9)):
        assert np.allclose(curves[f"entropy_{part}"].values, value)
        assert curves[f"entropy_{part}"].values.shape == (2, len(STEPS), 3)


def test_what_only_turns_keeps_its_cka_and_loses_its_correlation(curves):
    for kind in ("channels", "guide"):
        assert np.allclose(curves[f"{kind}_cka"].values, 1, atol=1e-5)
        assert (np.diff(curves[f"{kind}_correlation"].middle) > 0).all()
        assert curves[f"{kind}_correlation"].middle[-1] == pytest.approx(1)
        assert curves[f"{kind}_correlation"].middle[0] < 0.6
        assert curves[f"{kind}_cka"].values.shape == (2, len(STEPS), 2)
    assert np.allclose(curves["kernels_correlation"].values, 1)
    assert np.allclose(curves["kernels_cka"].values, 1)
    assert np.allclose(curves["gate_correlation"].values, 1)


def test_classes_are_apart_in_the_interior_more_than_at_the_edge(onsets, curves):
    horses = np.stack([one.distance < 0 for one in REGIONS[:2]])
    for number, run in enumerate(onsets.operators[0].runs):
        wanted = class_similarity(
            run.maps(LAYER, "channels"), np.stack([horses, ~horses], 1), np.stack([one.band for one in REGIONS[:2]])
        )
        assert np.array_equal(curves["intra_interior"].values[number], wanted.interior.intra)
        assert np.array_equal(curves["inter_edge"].values[number], wanted.edge.inter)
    own, other = (curves[f"{part}_interior"].values for part in ("intra", "inter"))
    assert (own > other + 0.1).all()
    assert (curves["intra_edge"].values < own).all()
    assert own.shape == (2, len(STEPS), 2)


def test_spectrum_is_of_the_maps_and_changes_begin_with_the_second(onsets, curves):
    maps = onsets.operators[0].runs[1].maps(LAYER)
    assert np.array_equal(curves["centroid"].values[1], radial_centroid(maps))
    for name in ("frame_correlation", "pixel_change", "luminance_change"):
        assert np.isnan(curves[name].values[:, 0]).all()
        assert np.isfinite(curves[name].values[:, 1:]).all()


def test_the_operators_own_pattern_over_its_rms(curves):
    assert np.allclose(curves["constant"].values, 0.5 / (2**2 + 0.5**2) ** 0.5, atol=1e-6)
    assert curves["constant"].values.shape == (2, len(STEPS), 1)


def test_tests_are_told_at_their_own_steps(curves):
    assert curves["miou"].steps == (50, 100, 150, 200)
    assert curves["miou"].values[:, :, 0].tolist() == [[0.05, 0.1, 0.15, 0.2], [1.05, 1.1, 1.15, 1.2]]
    assert curves["miou"].middle.tolist() == pytest.approx([0.55, 0.6, 0.65, 0.7])


def test_what_a_run_lacks_is_absent(tmp_path):
    runs = [write_run(tmp_path / "0", 0), write_run(tmp_path / "1", 1, parts=False, tests=False)]
    onsets = measure_onsets(runs)
    found = operator_curves(onsets, onsets.operators[0])
    assert {MEASURES[name].group for name in found} == {"responses", "auc", "spectrum", "learning", "continuity"}
    assert [name for name in found if MEASURES[name].group == "learning"] == ["map_correlation"]


def test_rows(onsets, curves):
    (row,) = summary_rows(onsets, [curves])
    assert row == Analysis(onsets).table[0]
    assert row["centroid_at_end"] == curves["centroid"].middle[-1]
    assert row["miou"] == pytest.approx(0.7)
    told = curve_rows(curves)
    assert told["miou"]["steps"] == [50, 100, 150, 200]
    assert told["pixel_change"]["middle"][0] is None
    assert told["outline"]["low"] == curves["outline"].low.tolist()
    assert told["outline"]["chance"] == curves["outline"].chance


def test_runs_that_kept_unlike_numbers_of_images_have_the_first_in_common(tmp_path):
    onsets = measure_onsets([write_run(tmp_path / "0", 0), write_run(tmp_path / "1", 1, kept=1)])
    found = operator_curves(onsets, onsets.operators[0])
    assert found["channels_cka"].values.shape == (2, len(STEPS), 1)
    assert found["guide_cka"].values.shape == (2, len(STEPS), 2)


def test_figures_of_tests_that_are_no_numbers_or_come_later_do_not_count(tmp_path):
    run = write_run(tmp_path / "0", 0)
    store = SnapshotStore(tmp_path / "0", "run0")
    store.append_metrics({"step": 120, "miou": 0.5, "boundary_iou": None})
    store.append_metrics({"step": 999, "miou": 0.9})
    onsets = measure_onsets([run])
    found = operator_curves(onsets, onsets.operators[0])
    assert found["miou"].steps == (50, 100, 120, 150, 200)
    assert np.isnan(found["boundary_iou"].values[0, 2, 0])


def test_a_constants_answer_is_told_of_its_rms_and_not_of_a_mean_near_zero():
    checks = np.indices((24, 24)).sum(0) % 2 * 2.0 - 1
    maps = np.stack([1e-3 + checks, 3 + 0.3 * checks, np.zeros((24, 24)), np.full((24, 24), 7.0)]).astype(np.float32)
    found = _own_pattern(maps)
    assert found[:2] == pytest.approx([1, 0.3 / (9 + 0.09) ** 0.5], rel=1e-4)
    assert np.isnan(found[2])
    assert found[3] == 0


@pytest.mark.parametrize(("height", "low", "high"), [(0.0, -0.01, 0.005), (0.05, 0.2, 1.0)])
def test_the_table_shows_a_lattice_that_drifts(tmp_path, height, low, high):
    y, x = np.mgrid[:48, :48]
    blob = np.exp(-((y - 24) ** 2 + (x - 24) ** 2) / 12**2)
    # A half of a turn over the map: the mean of every phase is that of the blob.
    lattice = height * np.cos(np.pi * x / 47) * (-1.0) ** (x + y)
    store = SnapshotStore(tmp_path, "run")
    for step in STEPS:
        frames = np.stack([(1 + step / STEPS[-1]) * np.roll(blob, shift, 1) + lattice for shift in (0, 3, 6)])
        store.write(step, [Snapshot(step, LAYER, 0, "feature", frames.astype(np.float32))])
    store.write_observation(np.zeros((3, 48, 48, 3), np.uint8), np.stack(MASKS))
    store.write_info(RunInfo(upsampler="carafe", title="CARAFE", config=StoredConfig({"seed": 0}), figure_layer=LAYER))
    onsets = measure_onsets([open_run(tmp_path)])
    (row,) = rows = Analysis(onsets).table
    assert low < row["checkerboard_at_end"] <= high
    assert (row["nyquist_at_end"] > 3) == (height > 0)
    (line,) = [line for line in describe(onsets, rows).split("maps ")[1].splitlines() if line.startswith("carafe ")]
    assert f"{row['checkerboard_at_end']:.3f}" in line.replace("-0.000", "0.000")
