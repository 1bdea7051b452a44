"""Selection: what is shown of which runs, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from safetensors.numpy import save_file

from fadeviz import FadevizError, open_run
from fadeviz.analysis.onsets import measure_onsets
from fadeviz.export import export_run
from fadeviz.render.animation import render_frames
from fadeviz.render.frames import collect_notes, select_channels, select_frames
from fadeviz.render.grid import render_grid
from fadeviz.render.grid_layout import layout_grid
from fadeviz.render.labels import captions, describe_runs
from fadeviz.render.selection import MapSelection
from fadeviz.storage.info import RunInfo, StoredConfig
from fadeviz.storage.several_runs import run_labels
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from fadeviz.storage.stored_run import StoredRun
from render_runs import LAYER, STEPS, make_run


def test_one_run(tmp_path):
    run = make_run(tmp_path / "fade")
    (sequence,) = select_frames([run], MapSelection(image=1))
    assert sequence.steps == STEPS
    assert np.array_equal(sequence.maps, run.maps(LAYER, "feature", image=1))
    assert sequence.unit.min(axis=(1, 2)).max() == 0
    assert sequence.unit.max(axis=(1, 2)).min() == 1
    assert (sequence.label, sequence.layer, sequence.channel, sequence.notes) == ("FADE", LAYER, None, ())
    assert sequence.observed_image.shape == (48, 64, 3)
    assert select_frames([run], MapSelection(steps=[50, 10]))[0].steps == (10, 50)


def test_runs_that_are_called_the_same_are_told_apart(tmp_path):
    def labels(*seeds):
        runs = [make_run(tmp_path / f"{seeds}{i}", run_id=f"r{i}", seed=seed) for i, seed in enumerate(seeds)]
        return [s.label for s in select_frames(runs)]

    assert labels(0, 1) == ["FADE, seed 0", "FADE, seed 1"]
    assert labels(0, 0) == ["FADE, (0, 0)0", "FADE, (0, 0)1"]


def test_runs_in_folders_of_one_name(tmp_path):
    """As much of the path as is needed; what other names, networks or seeds tell apart needs none."""

    def run(path, **info):
        made = make_run(tmp_path / path, run_id=path)
        SnapshotStore(made.path, made.run_id).write_info(
            RunInfo.from_dict({**made.info.to_dict(), "upsampler": None, "title": None, **info})
        )
        return open_run(made.path)

    a, b = run("a/fade"), run("b/fade")
    assert [s.label for s in select_frames([a, b])] == ["a/fade", "b/fade"]
    assert run_labels([a, b, run("carafe")]) == ["a/fade", "b/fade", "carafe"]
    assert run_labels([run("x/1/fade"), run("x/2/fade"), run("y/2/fade")]) == ["1/fade", "x/2/fade", "y/2/fade"]
    named = {"upsampler": "mine", "title": "Mine"}
    assert run_labels([run("a/m", **named), run("b/m", **named)]) == ["Mine, a/m", "Mine, b/m"]
    networks = [run(f"n{i}", **named, network_title=name) for i, name in enumerate(("SegNet", "SegFormer", "SegNet"))]
    assert run_labels(networks[:2]) == ["Mine, SegNet", "Mine, SegFormer"]
    assert run_labels(networks) == ["Mine, n0", "Mine, SegFormer", "Mine, n2"]


@pytest.mark.parametrize("harm", ["missing", "damaged", "other arrays"])
def test_maps_are_drawn_where_the_observed_images_are_lost(tmp_path, harm):
    runs = [make_run(tmp_path / name, run_id=name, upsampler=name) for name in ("one", "two")]
    file = runs[0].path / "observation.safetensors"
    if harm == "missing":
        file.unlink()
    elif harm == "damaged":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        save_file({"images": np.zeros((2, 3), np.uint8), "masks": np.zeros(1, np.uint8)}, file)
    opened = [open_run(run.path) for run in runs]
    first, second = select_frames(opened)
    assert (first.observed_image, first.mask, second.observed_image.shape) == (None, None, (48, 64, 3))
    assert np.array_equal(first.maps, second.maps)
    (note,) = first.notes
    assert note.startswith(f"the observed images are left out: {runs[0].path}: observation.safetensors ")
    with pytest.raises(FadevizError, match="no image 2"):
        select_frames(opened[:1], MapSelection(image=2))
    for sequences in ([first], [first, second]):
        assert render_grid(sequences).shape[2] == 3
        assert next(render_frames(sequences)).shape[2] == 3
    alone = layout_grid([first])
    assert min(x for x, _ in alone.cells.values()) < alone.cell[0]  # no room is left for what is not there
    for command in (["grid", "-o", "a.png"], ["animate", "-o", "a.gif"], ["animate", "-o", "a.webp"]):
        words = [command[0], str(runs[0].path), str(runs[1].path), "-o", str(tmp_path / command[2])]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        assert "note: the observed images are left out" in result.stderr
    export_run(opened[0], "npz", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as archive:
        assert not [name for name in archive if name.startswith("observation")]
        assert np.array_equal(archive[f"maps/{LAYER}/feature"], opened[1].maps(LAYER, "feature"))
    assert "data:image/png" in opened[0]._repr_html_()


def test_steps_in_common_and_the_note(tmp_path):
    one = make_run(tmp_path / "one", steps=(0, 10, 20))
    two = make_run(tmp_path / "two", upsampler="carafe", run_id="b", steps=(0, 20, 40))
    sequences = select_frames([one, two])
    assert [s.steps for s in sequences] == [(0, 20)] * 2
    assert "1 step is left out" in sequences[0].notes[0]
    with pytest.raises(FadevizError, match="two has no snapshot of step 10"):
        select_frames([one, two], MapSelection(steps=[10]))
    with pytest.raises(FadevizError, match="no recorded step in common"):
        select_frames([one, make_run(tmp_path / "three", run_id="c", steps=(5,))])


def test_runs_that_do_not_belong_together(tmp_path):
    one = make_run(tmp_path / "one")
    with pytest.raises(FadevizError, match=r"one and .*two observed different images as image 0.* same data="):
        select_frames([one, make_run(tmp_path / "two", run_id="b", corner=7)])
    with pytest.raises(FadevizError, match="are the same run, a1b2c3"):
        select_frames([one, open_run(tmp_path / "one" / ".." / "one")])
    assert len(select_frames([one, make_run(tmp_path / "copy")])) == 2
    with pytest.raises(FadevizError, match="no run to draw"):
        select_frames([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "decoder.3.upsampel"}, f"Nearest: '{LAYER}'"),
        ({"kind": "gradients"}, "no 'gradients' maps|Nearest: 'gradient'"),
        ({"kind": "kernel_entropy"}, "has no 'kernel_entropy' maps"),
        ({"image": 2}, "no image 2 in .*: there are 2"),
        ({"kind": "channels", "channel": 9}, "no channel 9"),
        ({"normalize": "Frame"}, "no normalisation scope 'Frame'"),
    ],
)
def test_unknown_names(tmp_path, options, message):
    with pytest.raises(FadevizError, match=message):
        select_frames([make_run(tmp_path / "fade")], MapSelection(**options))


def test_a_damaged_snapshot_is_left_out_and_named(tmp_path):
    run = make_run(tmp_path / "fade")
    file = run.path / "snapshots" / "step_000030.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    (sequence,) = select_frames([run])
    assert 30 not in sequence.steps
    assert "left out step_000030.safetensors (damaged" in sequence.notes[0]


def test_non_finite_cells_are_counted(tmp_path):
    maps = np.random.default_rng(0).normal(size=(2, 24, 32)).astype(np.float32)
    maps[1, 3, 4:6] = np.nan, np.inf
    (sequence,) = select_frames([make_run(tmp_path / "fade", steps=(0, 1), maps=maps)], MapSelection(normalize="run"))
    assert sequence.non_finite == 2
    assert "FADE: 2 cells are NaN or infinite" in sequence.notes[0]
    assert "Magenta: 2 cells" in " ".join(captions([sequence]))


def test_centered_only_where_both_signs_occur(tmp_path):
    run = make_run(tmp_path / "fade")
    (sequence,) = select_frames([run], MapSelection(normalize="run"), centered=True)
    assert sequence.limits[0].low == -sequence.limits[0].high < 0
    (sequence,) = select_frames([run], MapSelection(kind="gradient", normalize="run"), centered=True)
    assert sequence.limits[0].low == 0
    assert not sequence.centered


def test_representative_channels(tmp_path):
    run = make_run(tmp_path / "fade")
    chosen = select_channels(run, LAYER)
    # 1 is twice 0 and the largest: 0 is its twin.
    assert 1 in chosen
    assert 0 not in chosen
    assert chosen == sorted(chosen) == select_channels(run, LAYER)
    assert select_channels(run, LAYER, count=1) == [1]
    sequences = select_frames([run], MapSelection(kind="channels"))
    assert [s.channel for s in sequences] == chosen
    assert "variance" in captions(sequences)[0]
    (sequence,) = select_frames([run], MapSelection(kind="channels", channel=2))
    assert np.array_equal(sequence.maps, run.maps(LAYER, "channels", image=0, channel=2))
    assert "variance" not in captions([sequence])[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "each frame spans its own minimum to maximum"),
        ({"percentiles": (1, 99)}, "each frame spans its own 1 % to 99 %"),
        ({"centered": True}, "each frame spans minus to plus its largest absolute value."),
        ({"centered": True, "percentiles": (1, 99)}, "its own 1 % to 99 % of its values, symmetric about 0."),
        ({"normalize": "run"}, "one range per run: FADE ("),
        ({"normalize": "shared"}, "one range over all runs shown, "),
        ({"normalize": "shared", "kind": "gate"}, "one range over all runs shown, 0 to 1."),
    ],
)
def test_the_caption_tells_the_range(tmp_path, options, sentence):
    options = dict(options)
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", upsampler="carafe", run_id="b")]
    centered = options.pop("centered", False)
    text = " ".join(captions(select_frames(runs, MapSelection(**options), centered=centered)))
    assert sentence in text
    for part in ("SegNet", LAYER, "disc_0", "drawn", "FADE, CARAFE; seed 0 each."):
        assert part in text
    assert "a1b2c3" not in text


class TestCalls:
    """A layer that runs several times in a forward pass, as one head for all levels of a pyramid does."""

    @pytest.fixture
    def run(self, tmp_path):
        return make_run(tmp_path / "fade", calls=3)

    def test_the_run_knows_them_and_their_sizes(self, run, tmp_path):
        assert run.calls(LAYER) == {0: (24, 32), 1: (12, 16), 2: (6, 8)}
        assert run.calls(LAYER, "channels") == {0: (24, 32), 1: (12, 16), 2: (6, 8)}
        assert make_run(tmp_path / "once").calls(LAYER) == {0: (24, 32)}
        with pytest.raises(FadevizError, match="no layer"):
            run.calls("decoder.9")

    @pytest.mark.parametrize("call", [0, 1, 2])
    @pytest.mark.parametrize("kind", ["feature", "channels"])
    def test_each_can_be_chosen(self, run, kind, call):
        sequences = select_frames([run], MapSelection(kind=kind, call=call))
        for sequence in sequences:
            expected = run.maps(LAYER, kind, image=0, channel=sequence.channel, call=call)
            np.testing.assert_array_equal(sequence.maps, np.asarray(expected))
        others = {0: "1 (12x16), 2 (6x8)", 1: "0 (24x32), 2 (6x8)", 2: "0 (24x32), 1 (12x16)"}[call]
        said = [note for note in collect_notes(sequences) if "call" in note]
        assert said == [f"{LAYER}: call {call} is shown; also recorded: calls {others}. Choose with call=..."]
        assert f"{LAYER}, call {call} of 3 (counted from 0)." in captions(sequences)[0]

    def test_one_that_there_is_not(self, run, tmp_path):
        with pytest.raises(FadevizError, match=r"fade has no call 3 of .* \(feature\). Recorded: 0, 1, 2. .* call="):
            select_frames([run], MapSelection(call=3))
        with pytest.raises(FadevizError, match="no call -1"):
            select_frames([run], MapSelection(call=-1))
        other = make_run(tmp_path / "carafe", upsampler="carafe", run_id="b")
        with pytest.raises(FadevizError, match=r"carafe has no call 1 of .* Recorded: 0\."):
            select_frames([run, other], MapSelection(call=1))

    def test_a_layer_that_ran_once_has_nothing_to_say(self, tmp_path):
        sequences = select_frames([make_run(tmp_path / "once")])
        assert collect_notes(sequences) == ()
        assert f"{LAYER}. Feature" in captions(sequences)[0]


def test_channels_that_are_not_drawn_are_counted(tmp_path):
    run = make_run(tmp_path / "r", channels=12)
    sequences = select_frames([run], MapSelection(kind="channels", channels=3))
    numbers = ", ".join(str(sequence.channel) for sequence in sequences)
    (note,) = collect_notes(sequences)
    assert note == f"FADE: 3 of 12 channels are drawn: {numbers}. Choose with channel=... or channels=..."
    assert "(3 of 12)" in captions(sequences)[0]
    assert collect_notes(select_frames([run], MapSelection(kind="channels", channel=range(12)))) == ()


def test_cells_of_all_channels_are_one_note(tmp_path):
    run = make_run(tmp_path / "r", channels=2)
    bad = np.full((1, 2, 24, 32), np.nan, np.float32)
    bad[0, :, 0, 0] = 1
    SnapshotStore(run.path, run.run_id).write(0, [Snapshot(0, LAYER, 0, "channels", bad)])
    sequences = select_frames([StoredRun(run.path)], MapSelection(kind="channels", channel=[0, 1], steps=[0]))
    (note,) = collect_notes(sequences)
    assert note == f"FADE: {2 * (24 * 32 - 1)} cells are NaN or infinite; they are painted magenta"


def test_runs_of_different_layers(tmp_path):
    one, other = make_run(tmp_path / "one"), make_run(tmp_path / "other", run_id="b")
    for run, layers in ((one, ("a", "b", "c")), (other, ("b", "c", "d"))):
        for step in STEPS:
            maps = [Snapshot(step, name, 0, "feature", np.ones((2, 4, 4), np.float32)) for name in layers]
            SnapshotStore(run.path, run.run_id).write(step, maps)
    runs = [StoredRun(one.path), StoredRun(other.path)]
    with pytest.raises(
        FadevizError, match=r"other has no layer 'a', but .*one does. All have 'feature' maps of: b, c\."
    ):
        select_frames(runs, MapSelection(layer="a"))
    with pytest.raises(
        FadevizError, match=r"one has no layer 'd', but .*other does. .*: b, c\. Choose one with layer="
    ):
        measure_onsets(runs, "d")
    with pytest.raises(FadevizError, match=r"no layer in .*one 'e'"):
        select_frames(runs, MapSelection(layer="e"))
    apart = [make_run(tmp_path / "x"), StoredRun(other.path)]
    with pytest.raises(FadevizError, match=r"No layer has 'feature' maps in all of them. .*other has: b, c, d\."):
        select_frames(apart)


def test_of_many_snapshots_as_many_as_are_asked_for(tmp_path):
    run = make_run(tmp_path / "fade")
    (thin,) = select_frames([run], max_frames=4)
    assert thin.steps == (0, 40, 70, 110)  # both ends are among them
    assert np.array_equal(thin.maps[1], run.read(40, LAYER, "feature")[0])
    (note,) = thin.notes
    assert note == "4 of 12 snapshots are shown, evenly spaced from step 0 to 110. Choose others with steps=..."
    for count, steps in ((12, None), (4, run.steps)):
        (whole,) = select_frames([run], MapSelection(steps=steps), max_frames=count)
        assert whole.steps == run.steps
        assert whole.notes == ()


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ({"fade": [0]}, "FADE; seed 0"),
        ({"fade": [None]}, "FADE"),
        ({"fade": [0, 1, 2]}, "FADE; 3 seeds"),
        ({"fade": [0, 0]}, "FADE; 2 runs"),
        ({"fade": [7], "carafe": [7]}, "FADE, CARAFE; seed 7 each"),
        ({"fade": [0], "carafe": [1]}, "FADE, CARAFE; 1 seed each"),
        ({"fade": [0, 1], "carafe": [0, 1]}, "FADE, CARAFE; 2 seeds each"),
        ({"fade": [0, 1], "carafe": [0]}, "FADE (2 seeds), CARAFE (1 seed)"),
        ({"fade": [None], "carafe": [None]}, "FADE, CARAFE"),
        ({str(n): [0, 1] for n in range(14)}, ", ".join(map(str, range(12))) + ", 2 more; 2 seeds each"),
    ],
)
def test_captions_name_operators_and_seeds_not_runs(runs, text):
    stored = [
        SimpleNamespace(title=name.upper(), info=RunInfo(config=StoredConfig({"seed": seed})))
        for name, seeds in runs.items()
        for seed in seeds
    ]
    assert describe_runs(stored) == text


def test_many_ranges_are_summed_up(tmp_path):
    runs = [make_run(tmp_path / f"r{n}", run_id=f"r{n}", seed=n) for n in range(8)]
    (sentence,) = (s for s in captions(select_frames(runs, MapSelection(normalize="run"))) if "Normal" in s)
    assert sentence.startswith("Normalisation: one range per run, all within ")
    assert "seed 3" not in sentence
