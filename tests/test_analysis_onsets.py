"""Runs put together: operators, seeds, controls, readouts and comparisons, on stored movies whose answer is known."""

import dataclasses
import json

import numpy as np
import pytest

from analysis_movies import STEPS, masks, movie
from fadeviz import FadevizError, analyze, open_run
from fadeviz.analysis import blocks, contrasts, curves
from fadeviz.analysis.contrasts import measure_contrasts
from fadeviz.analysis.controls import compare_with_control
from fadeviz.analysis.curves import operator_curves
from fadeviz.analysis.jackknife import Estimate
from fadeviz.analysis.onsets import measure_onsets
from fadeviz.analysis.regions import build_regions
from fadeviz.analysis.result import Analysis
from fadeviz.analysis.sentences import describe_operator
from fadeviz.analysis.zones import build_zones
from fadeviz.plotting import make_plot
from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import Snapshot, SnapshotStore

LAYER = "decoder.3.upsample"
IMAGES = 6


def make_run(
    path, kind, *, upsampler="fade", seed=0, steps=STEPS, grey=90, size=48, config=None, readout=None, found=None
):
    """A run whose maps are a movie, each seed with its own noise; ``readout``: the movie of its readout."""
    store = SnapshotStore(path, f"{upsampler}-{seed}")
    maps = movie(kind, steps, images=IMAGES, seed=seed)[:, :, :size, :size]
    read = None if readout is None else movie(readout, steps, images=IMAGES, seed=50 + seed)
    for index, step in enumerate(steps):
        made = [Snapshot(step, LAYER, 0, "feature", maps[index])]
        made += [] if read is None else [Snapshot(step, LAYER, 0, "readout", read[index])]
        store.write(step, made)
    found = masks(IMAGES) if found is None else found
    store.write_observation(np.full((IMAGES, 48, 48, 3), grey, np.uint8), found)
    store.write_info(
        RunInfo.from_dict(
            {
                "upsampler": upsampler,
                "title": upsampler.upper(),
                "config": {"upsampler": upsampler, "seed": seed, "lr": 0.01, "snapshots": str(path), **(config or {})},
                "layers": {LAYER: {"size": [48, 48]}},
                "figure_layer": LAYER,
                "observation": {"names": [f"disc_{index}" for index in range(IMAGES)]},
            }
        )
    )
    return open_run(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two operators of three seeds, the runs mixed up."""
    folder = tmp_path_factory.mktemp("study")
    made = [
        make_run(
            folder / f"{name}{seed}", kind, upsampler=name, seed=seed, readout="complete" if name == "fade" else None
        )
        for seed in (2, 0, 1)
        for name, kind in (("fade", "inward"), ("carafe", "outward"))
    ]
    return tuple(made)


@pytest.fixture(scope="module")
def onsets(runs):
    return measure_onsets(runs)


def test_what_is_filled_inward_and_what_grows(onsets):
    fade, carafe = onsets.operators
    assert (fade.name, fade.title, fade.seeds) == ("fade", "FADE", (0, 1, 2))
    assert (carafe.name, carafe.seeds) == ("carafe", (0, 1, 2))
    assert fade.map.verdict.label == "outline first"
    assert carafe.map.verdict.label == "interior first"
    assert fade.readout.verdict.label == "both from the start"
    assert carafe.readout is None
    assert (onsets.layer, onsets.kind, onsets.steps) == (LAYER, "feature", STEPS)
    assert onsets.images == tuple(f"disc_{index}" for index in range(IMAGES))
    assert onsets.kept == tuple(range(IMAGES))
    # A front moves through the distance-time map: at half of the training FADE's rim is high, and CARAFE's centre.
    middle = STEPS.index(15)
    for operator, rim_first in ((fade, True), (carafe, False)):
        edges, value = operator.kymograph.edges, operator.kymograph.value
        deepest, rim = value[middle, 0], value[middle, np.flatnonzero(edges == 0)[0] - 1]
        assert (rim > deepest + 0.1) == rim_first
        assert operator.kymograph.dark == 0
    assert fade.readout_kymograph.value.shape == fade.kymograph.value.shape


def test_everything_is_what_the_parts_say(onsets):
    fade = onsets.operators[0]
    zones = [build_zones(build_regions(mask, (48, 48))) for mask in masks(IMAGES)]
    for run, measured in zip(fade.runs, fade.contrasts, strict=True):
        alone = measure_contrasts(run.maps(LAYER), zones)
        assert np.array_equal(measured.outline, alone.outline)
        assert np.array_equal(measured.profile, alone.profile, equal_nan=True)
    profiles = np.stack([measured.profile for measured in fade.contrasts])
    assert np.array_equal(fade.kymograph.value, profiles.mean(0), equal_nan=True)


def test_operators_are_compared_over_the_seeds_that_both_have(runs, onsets):
    (pair,) = onsets.comparisons
    fade, carafe = onsets.operators
    assert (pair.first, pair.second, pair.kind, pair.seeds) == ("fade", "carafe", "feature", (0, 1, 2))
    assert pair.difference.value == pytest.approx(fade.map.lead.value - carafe.map.lead.value)
    assert pair.p == pair.difference.p < 0.01
    some = [run for run in runs if run.path.name not in ("fade0", "carafe2")]
    (pair,) = measure_onsets(some).comparisons
    assert pair.seeds == (1,)
    assert pair.difference.variance_seeds == 0
    assert measure_onsets([runs[0], runs[3]]).comparisons == ()  # fade 2 and carafe 0
    assert "fade against carafe: relative to the interior, the outline comes " in str(Analysis(onsets))


def test_the_analysis_reads_as_sentences(onsets):
    analysis = Analysis(onsets)
    first, second = analysis.sentences["fade"]
    assert first.startswith("FADE: the outline comes first, by step ")
    assert second == "FADE, features: outline and interior are there before training and stay."
    assert len(analysis.sentences["carafe"]) == 1
    text = str(analysis)
    assert first in text
    assert second in text
    assert max(map(len, text.split("maps  ")[0].splitlines()[:6])) < 160
    row = analysis.table[0]
    assert row["verdict"] == "outline first"
    assert row["readout_verdict"] == "both from the start"
    assert analysis.table[1]["readout_verdict"] is None
    assert row["lead_low"] < row["lead"] < row["lead_high"]
    assert json.loads(json.dumps(analysis.to_dict(), allow_nan=False))["operators"][0]["sentence"] == first
    assert analysis.to_csv().count("\n") == 3
    assert repr(analysis) == f"Analysis({LAYER}, feature; fade: outline first, carafe: interior first)"


def test_a_change_of_sign_is_said(onsets):
    fade = onsets.operators[0]
    turned = dataclasses.replace(fade, map=dataclasses.replace(fade.map, sign_change=100))
    plain, said = (describe_operator(operator, onsets.steps)[0] for operator in (fade, turned))
    remark = " (bright and dark change places by step 100; what comes before is timed)"
    assert said == f"{plain[:-1]}{remark}."


def test_a_control_tells_learning_from_initialisation(tmp_path):
    made = [
        make_run(tmp_path / f"{name}{seed}", kind, seed=seed, config={"labels": labels} if labels else None)
        for seed in range(3)
        for name, kind, labels in (("own", "start", "true"), ("control", "start", "shuffled"))
    ]
    fade, control = measure_onsets(made).operators
    assert (fade.name, control.name) == ("fade", "fade@shuffled")
    assert fade.control == "fade@shuffled"
    assert control.control == ""
    assert {origin.name: origin.origin for origin in fade.origins} == {
        "outline": "initialisation",
        "interior": "initialisation",  # the control shows as much
    }
    assert "are initialisation: the control shows as much" in describe_operator(fade, STEPS)[0]
    made = [
        *made[::2],
        *(make_run(tmp_path / f"none{seed}", "noise", seed=seed, config={"labels": "shuffled"}) for seed in range(3)),
    ]
    fade, control = measure_onsets(made).operators
    assert {origin.name: origin.origin for origin in fade.origins} == {
        "outline": "initialisation",
        "interior": "learned",
    }
    assert (
        "the outline is initialisation: there from the start; the interior is learned: not shown by the control"
        in (describe_operator(fade, STEPS)[0])
    )
    weaker = Estimate(0.5, np.full(3, 0.5), np.full(IMAGES, 0.5))  # so much less in the control, without any variation
    both = [dataclasses.replace(origin, control=True, difference=weaker) for origin in fade.origins]
    told = describe_operator(dataclasses.replace(fade, origins=tuple(both)), STEPS)[0]
    assert (
        "the outline is initialisation: there from the start; the interior is learned: the control shows less" in told
    )
    # Of other seeds, or of another number of them, the variances between seeds add up.
    first = fade.map.outline.top_estimate
    for second in (first, dataclasses.replace(first, without_run=first.without_run[:2])):
        other = dataclasses.replace(fade.map, outline=dataclasses.replace(fade.map.outline, top_estimate=second))
        difference = compare_with_control(fade.map, other, same_seeds=False)[0].difference
        assert difference.variance_seeds == pytest.approx(first.variance_seeds + second.variance_seeds)
        assert difference.variance_images == pytest.approx(0)
    assert compare_with_control(fade.map, fade.map, same_seeds=True)[0].difference.variance_seeds == 0


def test_a_line_on_both_sides_of_the_contour_marks_it(tmp_path):
    run = make_run(tmp_path / "r", "noise")
    rng = np.random.default_rng(0)
    lines = np.stack([np.abs(build_regions(mask, (48, 48)).distance) < 1.5 for mask in masks(IMAGES)])
    store = SnapshotStore(run.path, run.run_id)
    for step in STEPS:  # bright from one cell inside to one cell outside: no contrast between the two
        maps = 3.0 * lines * (step > 0) + rng.normal(size=lines.shape)
        store.write(step, [Snapshot(step, LAYER, 0, "feature", maps.astype(np.float32))])
    (line,) = measure_onsets([open_run(run.path)]).operators
    (noise,) = measure_onsets([make_run(tmp_path / "noise", "noise")]).operators
    assert line.contour.p <= 0.025 < noise.contour.p
    assert "contour is marked" not in describe_operator(noise, STEPS)[0]
    told = "contour is marked" in describe_operator(line, STEPS)[0]
    assert told != line.map.outline.shown


def test_images_without_an_interior_are_left_out_and_named(tmp_path):
    found = masks(IMAGES)
    found[1] = 0
    found[4] = np.eye(48)
    onsets = measure_onsets([make_run(tmp_path / "r", "inward", found=found)])
    assert onsets.kept == (0, 2, 3, 5)
    assert onsets.operators[0].map.images == 4
    assert onsets.operators[0].map.verdict.label == "too few images"
    assert "1 image is left out (disc_1): no object (maps of 48x48)" in onsets.notes
    assert any(note.startswith("1 image is left out (disc_4): the layer is too coarse") for note in onsets.notes)
    assert "4 of 6 images" in str(Analysis(onsets))
    none = measure_onsets([make_run(tmp_path / "none", "inward", found=np.zeros_like(found))])
    assert none.operators[0].kymograph is None
    assert "0 with an interior" in Analysis(none).sentences["fade"][0]


def test_a_run_that_does_not_begin_at_step_0_is_measured_with_that_said(tmp_path):
    onsets = measure_onsets([make_run(tmp_path / "r", "complete", steps=STEPS[3:])])
    assert any(note.startswith("the first measured step is 3, not 0") for note in onsets.notes)
    assert "there at the first measured step, 3," in Analysis(onsets).sentences["fade"][0]


def test_maps_that_are_not_finite_count_as_showing_nothing(tmp_path):
    run = make_run(tmp_path / "r", "inward")
    broken = movie("inward", STEPS, images=IMAGES)[-1]
    broken[:, 3, 3] = np.nan
    SnapshotStore(run.path, run.run_id).write(STEPS[-1], [Snapshot(STEPS[-1], LAYER, 0, "feature", broken)])
    onsets = measure_onsets([open_run(run.path)])
    assert f"fade: {IMAGES} maps are constant or not finite, and count as showing nothing" in onsets.notes
    assert abs(onsets.operators[0].map.outline.curve[-1]) < 1e-6
    assert Analysis(onsets).table[0]["verdict"]


def test_a_readout_that_some_seeds_lack_is_not_measured_and_that_is_said(tmp_path):
    runs = [make_run(tmp_path / str(seed), "inward", seed=seed, readout=["complete", None][seed]) for seed in (0, 1)]
    measured = measure_onsets(runs)
    assert measured.operators[0].readout is None
    assert "fade: 1 of 2 runs has no readout: it is not measured" in measured.notes
    assert not any("readout" in note for note in measure_onsets(runs[:1]).notes + measure_onsets(runs[1:]).notes)


def test_a_gradient_is_read_by_the_same_instrument_without_a_readout(tmp_path):
    run = make_run(tmp_path / "r", "noise", readout="complete")
    maps = movie("inward", STEPS, images=IMAGES)
    store = SnapshotStore(run.path, run.run_id)
    for index, step in enumerate(STEPS):
        both = [Snapshot(step, LAYER, 0, "gradient", maps[index]), Snapshot(step, LAYER, 0, "readout", -maps[index])]
        store.write(step, [Snapshot(step, LAYER, 0, "feature", maps[index] * 0), *both])
    (operator,) = measure_onsets([open_run(run.path)], kind="gradient").operators
    assert operator.map.verdict.label == "outline first"
    assert operator.readout is None
    # The sign of a readout is known: one that is dark on the object holds nothing.
    (operator,) = measure_onsets([open_run(run.path)], kind="readout").operators
    assert operator.map.verdict.label == "neither"


def test_results_are_stored_and_measured_again_where_they_must_be(tmp_path, monkeypatch):
    monkeypatch.delenv("FADEVIZ_MEASURED")
    run = make_run(tmp_path / "r", "inward")
    first = analyze(run)
    text = str(first)
    measured = []
    for name in ("onsets.measure_contrasts", "curves._of_run"):
        function = f"fadeviz.analysis.{name}"
        was = contrasts.measure_contrasts if "contrasts" in name else curves._of_run
        monkeypatch.setattr(function, lambda *a, was=was, **b: measured.append(was.__name__) or was(*a, **b))
    assert str(analyze(open_run(run.path))) == text
    assert measured == []
    monkeypatch.setattr("fadeviz.analysis.onsets.METHOD", contrasts.METHOD + 1)
    assert str(analyze(open_run(run.path))) == text
    assert measured == ["measure_contrasts"]


@pytest.mark.parametrize("values", [1, 3 * IMAGES * 48 * 48])
def test_blocks_of_any_length_give_the_same_numbers(tmp_path, monkeypatch, values):
    run = make_run(tmp_path / "r", "inward")
    whole = measure_onsets([run])
    expected = operator_curves(whole, whole.operators[0])
    monkeypatch.setattr(blocks, "BLOCK", values)
    monkeypatch.setattr(contrasts, "_BLOCK", values)
    parts = measure_onsets([run])
    for one, other in zip(whole.operators[0].contrasts, parts.operators[0].contrasts, strict=True):
        assert np.allclose(one.outline, other.outline, atol=1e-6)
    again = operator_curves(parts, parts.operators[0])
    assert again.keys() == expected.keys()
    for name, curve in expected.items():
        assert np.allclose(curve.values, again[name].values, equal_nan=True, atol=1e-5), name


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
        _ = Analysis(measure_onsets([run])).table
    assert "\n" not in str(raised.value)


def test_other_settings_are_other_operators(tmp_path):
    made = [
        make_run(tmp_path / "a", "inward"),
        make_run(tmp_path / "b", "outward", config={"lr": 0.1}),
        make_run(tmp_path / "c", "outward", upsampler="fade:gate=off"),
        make_run(tmp_path / "d", "noise", config={"labels": "shuffled"}),
    ]
    onsets = measure_onsets(made)
    assert [one.name for one in onsets.operators] == [
        "fade (lr=0.01)",
        "fade (lr=0.1)",
        "fade:gate=off",
        "fade@shuffled",
    ]
    titles = ["FADE (lr=0.01)", "FADE (lr=0.1)", "FADE:GATE=OFF (gate=off)", "FADE, shuffled labels"]
    assert [one.title for one in onsets.operators] == titles
    assert "the runs differ in lr" in onsets.notes
    assert onsets.operators[1].control == ""  # the control has another learning rate


def test_what_is_refused(tmp_path, runs):
    one = runs[0]
    with pytest.raises(FadevizError, match="no run to measure"):
        measure_onsets([])
    with pytest.raises(FadevizError, match="are the same run, fade-2"):
        measure_onsets([one, open_run(one.path)])
    with pytest.raises(FadevizError, match="observed different images"):
        measure_onsets([one, make_run(tmp_path / "other", "inward", grey=7)])
    with pytest.raises(FadevizError, match="are both fade with seed 2. Give one of them"):
        measure_onsets([one, make_run(tmp_path / "again", "inward", seed=2)])
    with pytest.raises(FadevizError, match=r"6 maps of 40x40 in .*small, but 6 of 48x48 in .*fade2"):
        measure_onsets([one, make_run(tmp_path / "small", "inward", size=40)])
    with pytest.raises(FadevizError, match="fade2 has no snapshot of step 4"):
        measure_onsets([one], steps=[0, 4, 20])
    with pytest.raises(FadevizError, match="kind='channels' has many maps"):
        measure_onsets([one], kind="channels")
    with pytest.raises(FadevizError, match=f"Nearest: '{LAYER}'"):
        measure_onsets([one], layer="decoder.3.upsampel")


def test_runs_in_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    def measured(*parts, upsampler=None):
        made = []
        for path, kind, seed in parts:
            run = make_run(tmp_path / path, kind, seed=0, steps=STEPS[::5])
            info = {
                **run.info.to_dict(),
                "upsampler": upsampler,
                "title": upsampler,
                "config": {} if seed is None else {"seed": seed},
            }
            SnapshotStore(run.path, run.run_id).write_info(RunInfo.from_dict(info))
            made.append(open_run(run.path))
        operators = measure_onsets(made).operators
        return [(one.name, one.title, one.seeds, one.runs) for one in operators], made

    both, made = measured(("a/fade", "inward", None), ("b/fade", "outward", None))
    assert both == [(name, name, (None,), (run,)) for name, run in zip(("a/fade", "b/fade"), made, strict=True)]
    both, made = measured(("c/fade", "inward", 3), ("d/fade", "outward", 3))
    assert [one[0] for one in both] == ["c/fade", "d/fade"]
    both, made = measured(("e/fade", "inward", None), ("f/fade", "outward", None), upsampler="mine")
    assert [one[:2] for one in both] == [("mine, e/fade",) * 2, ("mine, f/fade",) * 2]
    # Runs of one name and several seeds are measured together, wherever they lie.
    both, made = measured(("g/fade", "inward", 1), ("h/fade", "outward", 2), upsampler="mine")
    assert both == [("mine", "mine", (1, 2), tuple(made))]


def test_notes_on_seeds_and_on_runs_that_end_early(tmp_path):
    made = [make_run(tmp_path / f"a{seed}", "inward", seed=seed) for seed in range(2)]
    short = make_run(tmp_path / "b", "inward", upsampler="carafe", steps=STEPS[:-2])
    notes = measure_onsets([*made, short]).notes
    assert f"only steps that all runs have are measured, the last at {STEPS[-3]}; 2 runs have more" in notes
    assert "one seed of CARAFE: the intervals hold for that run alone, not for other runs" in notes


def test_a_setting_that_older_runs_do_not_name_makes_no_other_operator(tmp_path):
    made = [
        make_run(tmp_path / "a", "inward"),
        make_run(tmp_path / "b", "inward", seed=1, config={"labels": "true"}),
        make_run(tmp_path / "c", "outward", upsampler="carafe", config={"labels": "odd"}),
    ]
    assert [one.name for one in measure_onsets(made).operators] == ["fade", "carafe"]


def test_one_snapshot_arrives_stays_and_fades_nowhere(tmp_path):
    analysis = Analysis(measure_onsets([make_run(tmp_path / "r", "complete", steps=(5,))]))
    assert analysis.sentences["fade"] == ("FADE: outline and interior are shown at step 5, the only one measured.",)
    assert str(analysis).splitlines()[0].endswith("6 images, 1 snapshot, step 5")
    assert any(note.startswith("1 snapshot: too few") for note in analysis.notes)
    assert any(note.startswith("the first measured step is 5") for note in analysis.notes)


@pytest.mark.parametrize(
    ("config", "remedy"), [({}, "Observe other images, or more"), (None, "Give the recorder masks=...")]
)
def test_a_run_without_masks_says_what_it_lacks(tmp_path, config, remedy):
    run = make_run(tmp_path / "r", "inward", found=np.zeros((IMAGES, 48, 48), np.uint8))
    if config is None:  # recorded from a user's own loop
        SnapshotStore(run.path, run.run_id).write_info(dataclasses.replace(run.info, config={}))
        run = open_run(run.path)
    analysis = analyze(run)
    assert "no observed image has an object, and without masks nothing can be measured" in analysis.notes[0]
    assert analysis.notes[0].endswith(remedy) or remedy in analysis.notes[0]
    assert not any("left out" in note for note in analysis.notes)
    assert "observe 12 images or more with masks" in str(analysis)
    assert analysis.table[0]["outline_top"] is analysis.table[0]["interior_p"] is None
    for what in ("kymograph", "responses", "auc"):
        with pytest.raises(FadevizError, match=remedy.replace(".", "[.]")):
            make_plot(analysis, what)


def test_notes_speak_of_the_steps_that_are_measured(tmp_path):
    made = [make_run(tmp_path / "a", "inward"), make_run(tmp_path / "b", "inward", seed=1, steps=(0, 1, 4, 10, 50))]
    onsets = measure_onsets(made)
    assert onsets.steps == (0, 1, 10)
    assert "only steps that all runs have are measured, the last at 10; 2 runs have more" in onsets.notes


def test_many_comparisons_are_cut_short(onsets):
    (one,) = onsets.comparisons
    many = tuple(dataclasses.replace(one, second=f"op{index}", p=index / 1000) for index in range(20, 0, -1))
    lines = str(Analysis(dataclasses.replace(onsets, comparisons=many))).splitlines()
    shown = [line for line in lines if line.startswith("fade against op")]
    assert [line.split()[2] for line in shown] == [f"op{index}:" for index in range(12, 0, -1)]
    assert "8 more pairs of operators differ (p <= 0.05)" in lines
    assert "times earlier, p = 0.012" in shown[0]
    negative = dataclasses.replace(one, difference=one.difference - one.difference - one.difference)
    text = str(Analysis(dataclasses.replace(onsets, comparisons=(negative,))))
    assert "times later" in text
    assert "corrected for" not in text


def test_a_plot_of_nothing_says_why(tmp_path):
    alike = analyze(make_run(tmp_path / "alike", "inward", found=np.repeat(masks(1), IMAGES, axis=0)))
    assert alike.verdicts["fade"].label == "masks too alike"
    assert "outline" not in alike.curves["fade"]
    with pytest.raises(FadevizError, match="The masks of all images are the same"):
        make_plot(alike, "responses")
    with pytest.raises(FadevizError, match="It compares snapshots, and there is one"):
        make_plot(analyze(make_run(tmp_path / "one", "inward", steps=(0,))), "continuity")
