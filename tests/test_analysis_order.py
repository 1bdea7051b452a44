"""Runs put together: what is learned first, in words, on synthetic runs whose answer is known."""

import math

import numpy as np
import pytest

from analysis_movies import STEPS as ALL_STEPS
from analysis_movies import mask, movie
from fadeviz import FadevizError, open_run
from fadeviz.analysis import blocks
from fadeviz.analysis.curves import operator_curves
from fadeviz.analysis.learning import State, lead
from fadeviz.analysis.order import RESPONSES, learning_order, reclassify
from fadeviz.analysis.regions import build_regions, distance_bins
from fadeviz.analysis.responses import edge_response, measure_responses
from fadeviz.analysis.result import Analysis
from fadeviz.analysis.statistics import Interval, bootstrap_interval, paired_test
from fadeviz.analysis.verdicts import VERDICTS, verdict
from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshot_files import SnapshotFiles
from fadeviz.storage.snapshots import Snapshot, SnapshotStore

STEPS = ALL_STEPS[::2]
LAYER = "decoder.3.upsample"
IMAGES = 2
REACHED, START, NEVER, MISSING = State.REACHED, State.AT_START, State.NEVER, State.MISSING


def make_run(path, kind, *, upsampler="fade", seed=0, steps=STEPS, picture=90, size=48, config=None):
    """A run of which every image shows the same movie, with its own noise."""
    store = SnapshotStore(path, f"{upsampler}-{seed}")
    noise = 0.0 if kind == "constant" else 0.05
    maps = np.stack([movie(kind, STEPS, noise=noise, seed=100 * seed + i) for i in range(IMAGES)], axis=1)[
        :, :, :size, :size
    ]
    for index, step in enumerate(steps):
        feature = Snapshot(step, LAYER, 0, "feature", maps[index])
        store.write(step, [feature, Snapshot(step, LAYER, 0, "channels", maps[index][:1, None])])

    store.write_observation(np.full((IMAGES, 48, 48, 3), picture, np.uint8), np.stack([mask()] * IMAGES))
    store.write_info(
        RunInfo.from_dict(
            {
                "upsampler": upsampler,
                "title": upsampler.upper(),
                "config": {"upsampler": upsampler, "seed": seed, "lr": 0.01, "snapshots": str(path), **(config or {})},
                "layers": {LAYER: {"size": [48, 48]}},
                "figure_layer": LAYER,
                "observation": {"names": ["disc_a", "disc_b"]},
            }
        )
    )
    return open_run(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two operators of three seeds, the runs mixed up."""
    folder = tmp_path_factory.mktemp("study")
    made = [
        make_run(folder / f"{name}{seed}", kind, upsampler=name, seed=seed)
        for seed in (2, 0, 1)
        for name, kind in (("fade", "inward"), ("carafe", "outward"))
    ]
    return tuple(made)


@pytest.fixture(scope="module")
def found(runs):
    return learning_order(runs)


def test_the_disc_that_is_filled_inward_and_the_one_that_grows(found):
    fade, carafe = found.operators
    assert (fade.name, fade.title, fade.seeds) == ("fade", "FADE", (0, 1, 2))
    assert (carafe.name, carafe.seeds) == ("carafe", (0, 1, 2))
    assert fade.verdict.label == "outline first"
    assert carafe.verdict.label == "interior first"
    assert 20 < fade.lead_interval.low <= fade.lead_interval.estimate <= fade.lead_interval.high < 90
    assert "6 maps, 3 seeds" in fade.verdict.reason
    assert -90 < carafe.lead_interval.high < -20
    assert carafe.margin == 20
    assert (found.layer, found.kind, found.steps) == (LAYER, "feature", STEPS)
    assert found.images == ("disc_a", "disc_b")
    assert found.notes == ("fewer than 5 seeds: intervals over so few seeds are too narrow",)


def test_everything_is_what_the_parts_say(runs, found):
    fade = found.operators[0]
    regions = [build_regions(mask(), (48, 48))] * IMAGES
    run = fade.runs[1]
    assert run.info.config["seed"] == 1
    maps = run.maps(LAYER)
    alone_found = measure_responses(maps, regions, distance_bins(regions))
    assert np.array_equal(fade.edge[1], alone_found.edge)
    assert np.array_equal(fade.interior[1], alone_found.interior)
    assert fade.lead[1, 1] == lead(fade.edge_times[1][1], fade.interior_times[1][1])
    assert fade.lead_interval == bootstrap_interval(fade.lead)
    assert fade.edge_t50.estimate == np.median([[t.t50 for t in row] for row in fade.edge_times])
    alone = learning_order([run], seed=7)
    assert np.array_equal(alone.operators[0].value_kymograph.value, alone_found.value.value, equal_nan=True)
    assert fade.value_kymograph.images.max() == 6
    assert alone.operators[0].gradient_kymograph.quantity == "gradient"
    assert alone.comparisons == ()
    assert "one seed per operator" in alone.notes[0]
    assert alone.operators[0].verdict.reason.startswith("a lead in 2 of 2 maps, 6 are needed; outline 2 reached")


def test_the_paired_test_is_of_the_same_seeds_and_images(runs, found):
    (pair,) = found.comparisons
    fade, carafe = found.operators
    assert (pair.first, pair.second, pair.seeds) == ("fade", "carafe", (0, 1, 2))
    assert pair.tests["image"] == paired_test(fade.lead, carafe.lead, unit="image")
    assert pair.tests["seed"].p == 2 / 2**3
    assert pair.tests["seed"].p == 0.25
    less = [run for run in runs if run.path.name not in ("fade0", "carafe2")]
    (pair,) = learning_order(less).comparisons
    assert pair.seeds == (1,)
    assert pair.tests["image"].difference == np.median(fade.lead[1] - carafe.lead[1])
    assert learning_order([runs[0], runs[3]]).comparisons == ()  # fade 2 and carafe 0


@pytest.mark.parametrize(
    ("kind", "word", "state"),
    [
        ("noise", "undecided", NEVER),
        ("constant", "undecided", MISSING),
        ("complete", "already there at step 0", START),
    ],
)
def test_movies_without_an_order(tmp_path, kind, word, state):
    made = [make_run(tmp_path / str(seed), kind, seed=seed) for seed in range(3)]
    (operator,) = learning_order(made).operators
    assert operator.verdict.label == word
    assert {times.state for row in operator.edge_times for times in row} == {state}
    assert np.isnan(operator.lead).all()
    assert operator.lead_interval.count == 0
    assert np.isnan(operator.edge).all() == (kind == "constant")


def test_options(runs):
    one = runs[0]
    wide = learning_order(
        [one], pixels=4, levels=(0.25, 0.5), steps=STEPS[::2], responses="raw-edge", kind="feature", layer=LAYER
    )
    assert wide.regions[0].half_width == 4
    assert wide.steps == STEPS[::2]
    times = wide.operators[0].edge_times[0][0]
    assert times.levels == (0.25, 0.5)
    raw = edge_response(one.maps(LAYER, steps=STEPS[::2])[:, 0], wide.regions[0], ranked=False)
    assert np.array_equal(wide.operators[0].edge[0, :, 0], raw)


def test_the_margin_is_the_wider_gap_at_the_two_half_ways(runs):
    (fade,) = learning_order(runs[:1], steps=(0, 20, 40, 100, 120, 180, 200)).operators
    gaps = [(e.gap, i.gap) for e, i in zip(fade.edge_times[0], fade.interior_times[0], strict=True)]
    assert (20, 60) in gaps
    assert fade.margin == 60


@pytest.mark.parametrize("values", [1, 3 * IMAGES * 48 * 48])
def test_stretches_of_any_length_give_the_same_numbers(tmp_path, monkeypatch, values):
    """A long run is measured a few steps at a time: what is found does not depend on how many."""
    run = make_run(tmp_path / "r", "inward")
    whole = learning_order([run])
    curves = operator_curves(whole, whole.operators[0])
    monkeypatch.setattr(blocks, "BLOCK", values)
    parts = learning_order([run])
    one, other = whole.operators[0], parts.operators[0]
    assert np.array_equal(one.edge, other.edge, equal_nan=True)
    assert np.array_equal(one.value_kymograph.value, other.value_kymograph.value, equal_nan=True)
    again = operator_curves(parts, other)
    assert again.keys() == curves.keys()
    for name, curve in curves.items():
        assert np.array_equal(curve.values, again[name].values, equal_nan=True), name


def test_each_snapshot_is_opened_a_few_times(tmp_path, monkeypatch):
    """Two looks at a map, for the order and for the curves; where frames go on as they should, none for splices."""
    run = make_run(tmp_path / "r", "inward")
    opened = []
    monkeypatch.setattr(
        SnapshotFiles,
        "open_map",
        lambda files, step, *what, was=SnapshotFiles.open_map: opened.append(step) or was(files, step, *what),
    )
    order = learning_order([run])
    _ = Analysis(order).table
    assert max(map(opened.count, STEPS[1:-3])) <= 5  # of feature twice, of channels once, and what names the shapes


@pytest.mark.parametrize("damage", ["gone", "cut off", "other shape"])
def test_a_snapshot_that_changes_while_it_is_measured_is_named(tmp_path, damage):
    run = make_run(tmp_path / "r", "inward")
    assert run.steps == STEPS
    file = tmp_path / "r" / "snapshots" / f"step_{STEPS[4]:06d}.safetensors"
    if damage == "gone":
        file.unlink()
    elif damage == "cut off":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        small = Snapshot(STEPS[4], LAYER, 0, "feature", np.ones((IMAGES, 8, 8), np.float32))
        SnapshotStore(tmp_path / "r", "fade-0").write(STEPS[4], [small])
    with pytest.raises(FadevizError, match=rf"{file.name}.*(Open the run again|Choose other steps)") as raised:
        _ = Analysis(learning_order([run])).table
    assert "\n" not in str(raised.value)
    again = open_run(tmp_path / "r")
    assert (STEPS[4] in again.steps) == (damage == "other shape")
    assert (file.name in again.broken) == (damage == "cut off")


def test_other_settings_are_other_operators(tmp_path):
    made = [
        make_run(tmp_path / "a", "inward"),
        make_run(tmp_path / "b", "outward", config={"lr": 0.1}),
        make_run(tmp_path / "c", "outward", upsampler="fade:gate=off"),
        make_run(tmp_path / "d", "noise", config={"labels": "shuffled"}),
    ]
    found = learning_order(made)
    assert [one.name for one in found.operators] == [
        "fade (lr=0.01)",
        "fade (lr=0.1)",
        "fade:gate=off",
        "fade@shuffled",
    ]
    titles = ["FADE (lr=0.01)", "FADE (lr=0.1)", "FADE:GATE=OFF (gate=off)", "FADE, shuffled labels"]
    assert [one.title for one in found.operators] == titles
    assert "the runs differ in lr" in found.notes


def interval(low, high, count=12):
    return Interval((low + high) / 2, low, high, count, 3, 0.95)


@pytest.mark.parametrize(
    ("edge", "interior", "leads", "word"),
    [
        ([REACHED] * 12, [REACHED] * 12, interval(15, 90), "outline first"),
        ([REACHED] * 12, [REACHED] * 12, interval(-90, -15), "interior first"),
        ([REACHED] * 12, [REACHED] * 12, interval(-15, 90), "undecided"),
        ([REACHED] * 12, [REACHED] * 12, interval(-9, 10), "together"),
        ([REACHED] * 12, [REACHED] * 12, interval(2, 9), "together"),
        ([REACHED] * 12, [REACHED] * 12, interval(1, 15), "undecided"),  # a lead of 8, of which 10 are resolved
        ([REACHED] * 12, [REACHED] * 12, interval(-15, -1), "undecided"),
        ([State.REGAINED] * 12, [REACHED] * 12, interval(15, 90, 0), "undecided"),
        ([REACHED] * 12, [REACHED] * 12, interval(math.inf, math.inf), "outline first"),
        ([REACHED] * 5, [REACHED] * 5, interval(15, 90, 5), "undecided"),
        ([REACHED] * 30, [REACHED] * 14 + [State.TRANSIENT] * 16, interval(15, 90, 14), "undecided"),
        ([REACHED] * 12, [NEVER] * 7 + [REACHED] * 5, interval(15, math.inf), "undecided"),
        ([REACHED] * 12, [NEVER] * 6 + [REACHED] * 6, interval(15, math.inf), "outline first"),
        ([START] * 7 + [REACHED] * 5, [REACHED] * 12, interval(15, 90, 6), "already there at step 0"),
        ([START] * 6 + [REACHED] * 6, [REACHED] * 12, interval(15, 90, 6), "outline first"),
        ([REACHED] * 6, [START] * 4 + [NEVER] * 2, interval(15, 90, 6), "already there at step 0"),
        ([MISSING] * 7 + [REACHED] * 6, [REACHED] * 13, interval(15, 90, 6), "undecided"),
        ([MISSING] * 6 + [REACHED] * 6, [REACHED] * 12, interval(15, 90, 6), "outline first"),
        ([], [], interval(math.nan, math.nan, 0), "undecided"),
    ],
)
def test_the_rules_of_the_verdict(edge, interior, leads, word):
    assert word in VERDICTS
    assert verdict(edge, interior, leads, 10.0).label == word


@pytest.mark.parametrize("state", [REACHED, START])
def test_what_place_alone_tells_is_no_verdict(state):
    for told, word in (([{"interior"}] * 7 + [set()] * 5, "undecided"), ([{"outline"}, {"interior"}] * 6, None)):
        got = verdict([REACHED] * 12, [state] * 12, interval(-90, -15), 10.0, told)
        assert got.label == (word or ("interior first" if state is REACHED else "already there at step 0"))
        if word:
            start = "the interior is hardly better than for other images' masks in 7 of 12 maps; outline 12 reached"
            assert got.reason.startswith(start)


def test_the_reason_names_the_numbers():
    said = verdict([REACHED] * 12, [REACHED] * 12, interval(15, math.inf), math.nan)
    assert said.reason == "lead +inf steps (+15 to +inf; 12 maps, 3 seeds)"
    said = verdict([START] * 2 + [REACHED], [REACHED] * 3, interval(1, 2), 1)
    assert said.reason == "outline 1 reached, 2 there at step 0; interior 3 reached"
    assert verdict([MISSING] * 3, [REACHED] * 3, interval(1, 2), 1).reason == "a response is undefined in 3 of 3 maps"


def test_what_is_refused(tmp_path, runs):
    one = runs[0]
    with pytest.raises(FadevizError, match="no run to measure"):
        learning_order([])
    with pytest.raises(FadevizError, match="are the same run, fade-2"):
        learning_order([one, open_run(one.path)])
    with pytest.raises(FadevizError, match="observed different images"):
        learning_order([one, make_run(tmp_path / "other", "inward", picture=7)])
    with pytest.raises(FadevizError, match="are both fade with seed 2. Give one of them"):
        learning_order([one, make_run(tmp_path / "again", "inward", seed=2)])
    with pytest.raises(FadevizError, match=r"2 maps of 40x40 in .*small, but 2 of 48x48 in .*fade2"):
        learning_order([one, make_run(tmp_path / "small", "inward", size=40)])
    with pytest.raises(FadevizError, match=r"step 0, the untrained model, is missing in .*late"):
        learning_order([one, make_run(tmp_path / "late", "inward", steps=STEPS[1:])])
    with pytest.raises(FadevizError, match="missing in the chosen steps"):
        learning_order([one], steps=STEPS[1:])
    with pytest.raises(FadevizError, match="3 steps in common are too few .* 5 are needed"):
        learning_order([one], steps=STEPS[:3])
    with pytest.raises(FadevizError, match="fade2 has no snapshot of step 5"):
        learning_order([one], steps=[0, 5, 20, 40, 60])
    with pytest.raises(FadevizError, match="kind='channels' has many maps"):
        learning_order([one], kind="channels")
    with pytest.raises(FadevizError, match=f"Nearest: '{LAYER}'"):
        learning_order([one], layer="decoder.3.upsampel")


def test_runs_in_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    def order(*runs, upsampler=None):
        made = []
        for path, kind, seed in runs:
            run = make_run(tmp_path / path, kind, seed=0)
            info = {
                **run.info.to_dict(),
                "upsampler": upsampler,
                "title": upsampler,
                "config": {} if seed is None else {"seed": seed},
            }
            SnapshotStore(run.path, run.run_id).write_info(RunInfo.from_dict(info))
            made.append(open_run(run.path))
        found = learning_order(made)
        return [(one.name, one.title, one.seeds, one.runs) for one in found.operators], made

    both, runs = order(("a/fade", "inward", None), ("b/fade", "outward", None))
    assert both == [(name, name, (None,), (run,)) for name, run in zip(("a/fade", "b/fade"), runs, strict=True)]
    both, runs = order(("c/fade", "inward", 3), ("d/fade", "outward", 3))
    assert [one[0] for one in both] == ["c/fade", "d/fade"]
    both, runs = order(("e/fade", "inward", None), ("f/fade", "outward", None), upsampler="mine")
    assert [one[:2] for one in both] == [("mine, e/fade",) * 2, ("mine, f/fade",) * 2]
    # Runs of one name and several seeds are measured together, wherever they lie.
    both, runs = order(("g/fade", "inward", 1), ("h/fade", "outward", 2), upsampler="mine")
    assert both == [("mine", "mine", (1, 2), tuple(runs))]


def test_masks_that_differ_are_different_pictures(tmp_path, runs):
    other = make_run(tmp_path / "mask", "inward", upsampler="sapa")
    store = SnapshotStore(other.path, other.run_id)
    store.write_observation(other.observation[0], 1 - other.observation[1])
    with pytest.raises(FadevizError, match="observed different images"):
        learning_order([runs[0], open_run(other.path)])


def test_a_blob_in_the_middle_of_every_map_is_no_knowledge_of_the_object(tmp_path):
    """Objects are near the middle: what grows there in every map tells inside from outside, and knows no object."""
    masks = np.stack([np.roll(mask(), shift, axis=(0, 1)) for shift in ((6, 0), (-6, 0), (0, 6), (0, -6))])
    blob = np.stack([movie("outward", STEPS, noise=0.1, seed=i) for i in range(4)], axis=1)
    own = np.stack([np.roll(blob[:, i], s, (1, 2)) for i, s in enumerate(((6, 0), (-6, 0), (0, 6), (0, -6)))], axis=1)
    found = {}
    for name, maps in (("blob", blob), ("own", own)):
        store = SnapshotStore(tmp_path / name, name)
        for index, step in enumerate(STEPS):
            store.write(step, [Snapshot(step, LAYER, 0, "feature", maps[index])])
        store.write_observation(np.zeros((4, 48, 48, 3), np.uint8), masks)
        store.write_info(RunInfo.from_dict({"upsampler": name, "config": {"seed": 0}}))
        for kind in RESPONSES:
            found[name, kind] = learning_order([open_run(tmp_path / name)], responses=kind).operators[0]
    states = {key: {times.state for times in one.interior_times[0]} for key, one in found.items()}
    assert states["blob", "plain"] == states["own", "plain"] == states["own", "position-corrected"] == {REACHED}
    assert states["blob", "position-corrected"] == {NEVER}
    one = found["own", "position-corrected"]
    measured = one.measured[0]
    assert np.allclose(one.interior, (measured.interior - measured.interior_mismatched) / measured.interior_headroom)
    assert np.allclose(one.edge, (measured.edge - measured.edge_mismatched) / measured.edge_headroom)
    # A map that shows all of its own object has 1 after the correction for position too.
    assert np.allclose(one.interior[0, -1], 1, atol=0.05)
    assert (one.edge[0, -1] > 0.6).all()  # some noise is as steep as its contour
    raw = found["own", "raw-position-corrected"]
    assert np.allclose(raw.edge, (measured.edge_raw - measured.edge_raw_mismatched) / measured.edge_headroom)
    others = found["blob", "mismatched-masks"]
    assert np.array_equal(others.interior[0], others.measured[0].interior_mismatched)
    # By plain responses the blob's interior is learned, but no better than for the other masks: no verdict rests on it.
    blob = found["blob", "plain"].verdict
    assert blob.label == "undecided"
    assert blob.reason.startswith("the interior is hardly better than for other images' masks in 4 of 4 maps")
    assert "hardly better" not in found["own", "plain"].verdict.reason
    with pytest.raises(FadevizError, match="raw-edge"):
        learning_order([open_run(tmp_path / "own")], responses="raw_edge")


def test_notes_on_seeds_and_on_runs_that_end_early(tmp_path):
    made = [make_run(tmp_path / f"a{seed}", "inward", seed=seed) for seed in range(2)]
    short = make_run(tmp_path / "b", "inward", upsampler="carafe", steps=STEPS[:-2])
    notes = learning_order([*made, short]).notes
    assert f"measured up to step {STEPS[-3]}, where the shortest run ends; 2 runs are longer" in notes
    assert "one seed of carafe: the intervals cover the variation between images, not between trainings" in notes
    assert "fade: fewer than 5 seeds: intervals over so few seeds are too narrow" in notes


def test_a_setting_that_older_runs_do_not_name_makes_no_other_operator(tmp_path):
    made = [
        make_run(tmp_path / "a", "inward"),
        make_run(tmp_path / "b", "inward", seed=1, config={"labels": "true"}),
        make_run(tmp_path / "c", "outward", upsampler="carafe", config={"labels": "odd"}),
    ]
    assert [one.name for one in learning_order(made).operators] == ["fade", "carafe"]


def test_reclassifying_keeps_the_other_rules(runs):
    first = learning_order(runs, level=0.5, resamples=200, seed=3, levels=(0.5, 0.8), until="peak")
    again = reclassify(learning_order(runs, level=0.5, resamples=200, seed=3, levels=(0.5, 0.8)), until="peak")
    assert again.rules == first.rules
    for one, other in zip(first.operators, again.operators, strict=True):
        assert one.lead_interval == other.lead_interval
        assert one.verdict == other.verdict
