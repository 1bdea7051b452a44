"""Selection: what is shown of which runs, and what is refused."""

import numpy as np
import pytest

from fadeviz import FadevizError, open_run
from fadeviz.render.frames import select_channels, select_frames
from fadeviz.render.labels import captions
from render_runs import LAYER, STEPS, make_run


def test_one_run(tmp_path):
    run = make_run(tmp_path / "fade")
    (sequence,) = select_frames([run], image=1)
    assert sequence.steps == STEPS
    assert np.array_equal(sequence.maps, run.maps(LAYER, "feature", image=1))
    assert sequence.unit.min(axis=(1, 2)).max() == 0
    assert sequence.unit.max(axis=(1, 2)).min() == 1
    assert (sequence.label, sequence.layer, sequence.channel, sequence.notes) == ("FADE", LAYER, None, ())
    assert sequence.picture.shape == (48, 64, 3)
    assert select_frames([run], steps=[50, 10])[0].steps == (10, 50)


def test_runs_that_are_called_the_same_are_told_apart(tmp_path):
    def labels(*seeds):
        runs = [make_run(tmp_path / f"{seeds}{i}", run_id=f"r{i}", seed=seed) for i, seed in enumerate(seeds)]
        return [s.label for s in select_frames(runs)]

    assert labels(0, 1) == ["FADE, seed 0", "FADE, seed 1"]
    assert labels(0, 0) == ["FADE, (0, 0)0", "FADE, (0, 0)1"]


def test_steps_in_common_and_the_note(tmp_path):
    one = make_run(tmp_path / "one", steps=(0, 10, 20))
    two = make_run(tmp_path / "two", upsampler="carafe", run_id="b", steps=(0, 20, 40))
    sequences = select_frames([one, two])
    assert [s.steps for s in sequences] == [(0, 20)] * 2
    assert "1 steps are left out" in sequences[0].notes[0]
    with pytest.raises(FadevizError, match="two has no snapshot of step 10"):
        select_frames([one, two], steps=[10])
    with pytest.raises(FadevizError, match="no recorded step in common"):
        select_frames([one, make_run(tmp_path / "three", run_id="c", steps=(5,))])


def test_runs_that_do_not_belong_together(tmp_path):
    one = make_run(tmp_path / "one")
    with pytest.raises(FadevizError, match=r"one and .*two observed different pictures as image 0.* same --data"):
        select_frames([one, make_run(tmp_path / "two", run_id="b", picture=7)])
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
        select_frames([make_run(tmp_path / "fade")], **options)


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
    (sequence,) = select_frames([make_run(tmp_path / "fade", steps=(0, 1), maps=maps)], normalize="run")
    assert sequence.non_finite == 2
    assert "FADE: 2 cells are NaN or infinite" in sequence.notes[0]
    assert "Magenta: 2 cells" in " ".join(captions([sequence]))


def test_centered_only_where_both_signs_occur(tmp_path):
    run = make_run(tmp_path / "fade")
    (sequence,) = select_frames([run], normalize="run", centered=True)
    assert sequence.limits[0].low == -sequence.limits[0].high < 0
    (sequence,) = select_frames([run], kind="gradient", normalize="run", centered=True)
    assert sequence.limits[0].low == 0
    assert not sequence.centered


def test_representative_channels(tmp_path):
    run = make_run(tmp_path / "fade")
    chosen = select_channels(run, LAYER)
    # 1 is twice 0 and the largest: 0 is its twin.
    assert 1 in chosen
    assert 0 not in chosen
    assert chosen == sorted(chosen) == select_channels(run, LAYER)
    assert select_channels(run, LAYER, how_many=1) == [1]
    sequences = select_frames([run], kind="channels")
    assert [s.channel for s in sequences] == chosen
    assert "variance" in captions(sequences)[0]
    (sequence,) = select_frames([run], kind="channels", channel=2)
    assert np.array_equal(sequence.maps, run.maps(LAYER, "channels", image=0, channel=2))
    assert "variance" not in captions([sequence])[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "each frame spans its own minimum to maximum"),
        ({"percentiles": (1, 99)}, "each frame spans its own 1 % to 99 %"),
        ({"normalize": "run"}, "one range a run, FADE "),
        ({"normalize": "shared"}, "one range over all runs shown, "),
        ({"normalize": "shared", "kind": "gate"}, "one range over all runs shown, 0 to 1."),
    ],
)
def test_the_caption_tells_the_range(tmp_path, options, sentence):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", upsampler="carafe", run_id="b")]
    text = " ".join(captions(select_frames(runs, **options)))
    assert sentence in text
    for part in ("SegNet", LAYER, "disc_0", "drawn", "a1b2c3 (FADE, seed 0)", "b (CARAFE, seed 0)"):
        assert part in text


def test_of_many_snapshots_as_many_as_are_asked_for(tmp_path):
    run = make_run(tmp_path / "fade")
    (thin,) = select_frames([run], at_most=4)
    assert thin.steps == (0, 40, 70, 110)  # both ends are among them
    assert np.array_equal(thin.maps[1], run.read(40, LAYER, "feature")[0])
    assert thin.notes == ("4 of 12 snapshots are shown, evenly spread from step 0 to 110. Choose others with --steps",)
    for options in ({"at_most": 12}, {"at_most": 4, "steps": run.steps}):
        (whole,) = select_frames([run], **options)
        assert whole.steps == run.steps
        assert whole.notes == ()
