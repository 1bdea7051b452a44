"""Runs whose layers are named differently: which layer each run shows, how that is said, and what is refused."""

import shlex

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main

import fadeviz
from fadeviz import FadevizError
from fadeviz.analysis.onsets import measure_onsets
from fadeviz.render.animation import layout_animation, render_frames
from fadeviz.render.colormap import colorize
from fadeviz.render.frames import select_frames
from fadeviz.render.grid import render_grid
from fadeviz.render.grid_layout import layout_grid
from fadeviz.render.labels import captions, heading
from fadeviz.render.selection import MapSelection
from fadeviz.report.sequences import page_layers
from fadeviz.storage.info import RunInfo
from fadeviz.storage.layers_of_runs import choose_layers, describe_layers, find_run, parse_layer, parse_layers
from fadeviz.storage.map_index import bare_name
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from onset_runs import make_onset_run
from render_runs import LAYER, make_run

TWO_STEPS = (0, 10)


def rename(run, names):
    """Store a run's maps under other names, each with every ``f``-th cell: ``{"up1": 1, "up2": 2}``."""
    store = SnapshotStore(run.path, run.run_id)
    for step in run.steps:
        maps = {
            (call, kind): run.read(step, layer, kind, call)
            for layer, kinds in run.layers.items()
            for kind in kinds
            for call in run.calls(layer, kind)
        }
        store.write(
            step,
            [
                Snapshot(step, name, call, kind, value[..., ::every, ::every])
                for name, every in names.items()
                for (call, kind), value in maps.items()
            ],
        )
    info = run.info.to_dict() | {"figure_layer": next(iter(names)), "layers": {}}
    store.write_info(RunInfo.from_dict(info))
    return fadeviz.open_run(run.path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The runs a (FADE), b (CARAFE) and lit (FADE, by Lightning, with two calls); two steps each."""
    folder = tmp_path_factory.mktemp("runs")
    rename(make_run(folder / "a", run_id="a", steps=TWO_STEPS), {"up1": 1, "up2": 2, "same": 1})
    rename(
        make_run(folder / "b", run_id="b", upsampler="carafe", steps=TWO_STEPS, outline_first=False),
        {"up1.op": 1, "up1.half": 2, "up1:interpolate": 1, "same": 2},
    )
    rename(
        make_run(folder / "lit", run_id="c", seed=1, steps=TWO_STEPS, calls=2),
        {"model.up1": 1, "model._orig_mod.up2": 2},
    )
    return folder


@pytest.fixture
def runs(folder):
    return [fadeviz.open_run(folder / name) for name in "ab"]


@pytest.fixture
def a(runs):
    return runs[0]


@pytest.fixture
def lit(folder):
    return fadeviz.open_run(folder / "lit")


def named(runs, layer, kind="feature", call=0):
    return list(choose_layers(runs, layer, kind, call).values())


class TestChoice:
    def test_one_for_each_run(self, runs):
        assert named(runs, {"a": "up1", "b": "up1.op"}) == ["up1", "up1.op"]
        assert named(runs, {"b": "up1:interpolate", "a": "up2"}) == ["up2", "up1:interpolate"]
        assert named(runs, "same") == ["same", "same"]
        assert named(runs[:1], None) == ["up1"]

    def test_a_run_is_called_by_folder_path_label_or_operator(self, runs, folder, monkeypatch):
        monkeypatch.chdir(folder.parent)
        relative = [fadeviz.open_run(f"{folder.name}/{name}") for name in "ab"]
        for label in ("b", f"{folder.name}/b", f"./{folder.name}/b/", f"{folder}/b", "CARAFE", "carafe"):
            assert find_run(relative, label) is relative[1]

    def test_a_folder_comes_before_an_operator(self, tmp_path):
        made = [make_run(tmp_path / name, run_id=name, steps=(0,)) for name in ("fade", "other")]
        assert find_run(made, "fade") is made[0]
        assert find_run(made, "FADE, fade") is made[0]
        with pytest.raises(
            FadevizError, match=r"'FADE' stands for several runs: fade \(.*\), other \(.*\)\. Call each"
        ):
            find_run(made, "FADE")

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            ({"a": "up1", "c": "up1"}, r"'c' is none of these runs: a \(FADE\), b \(CARAFE\)"),
            ({"a": "up1"}, r"no layer is named for .*b\. Name one for each run: a \(FADE\), b \(CARAFE\)"),
            ({}, "no layer is named for .*a, .*b"),
            ({"a": "up1", "FADE": "up2", "b": "same"}, r"'a' and 'FADE' are the same run, .*a\. Name its layer once"),
            ({"a": "up1", "b": "up1"}, r"no layer in .*b 'up1'. Nearest: 'up1.op'"),
            ("up1", r"b has no layer 'up1', but .*a does. Nearest in .*b: 'up1.op'.*: same\. Choose one with "
                    r"layer=..., or one for each run: layer={'a': 'up1', 'b': 'up1.op'}"),
            ("nothing", "no layer in .*a 'nothing'. There are: same, up1, up2"),
            (["up1"], r"layer=\['up1'\]: a name, or a mapping of runs to names, is needed"),
            ({"a": None, "b": "up1"}, "a mapping of names of runs to names of layers is needed"),
        ],
    )  # fmt: skip
    def test_what_is_refused(self, runs, layer, message):
        with pytest.raises(FadevizError, match=message):
            choose_layers(runs, layer, "feature")

    def test_a_call_that_one_of_the_layers_has_not(self, a, lit):
        with pytest.raises(FadevizError, match=r"a has no call 1 of 'up1' \(feature\)"):
            choose_layers([a, lit], "up1", "feature", 1)


class TestPrefixes:
    @pytest.mark.parametrize(
        ("name", "bare"),
        [
            ("model.decoder.up1", "decoder.up1"),
            ("module._orig_mod.model.up1", "up1"),
            ("decoder.model.up1", "decoder.model.up1"),
            ("models.up1", "models.up1"),
            ("net.up1", "net.up1"),
            ("model", "model"),
            ("model:interpolate", ":interpolate"),
            ("model.module:interpolate", ":interpolate"),
            ("model.up1:interpolate", "up1:interpolate"),
            ("model.", "model."),
        ],
    )
    def test_those_that_trainers_add_are_left_out(self, name, bare):
        assert bare_name(name) == bare

    def test_they_do_not_matter(self, a, lit):
        for layer in ("up1", "model.up1", "module.up1"):
            assert named([a, lit], layer) == ["up1", "model.up1"]
        assert named([lit, a], None) == ["model.up1", "up1"]
        assert named([a, lit], {"a": "up1", "lit": "up2"}) == ["up1", "model._orig_mod.up2"]

    def test_nor_where_one_run_is_read(self, lit, tmp_path):
        assert np.array_equal(lit.maps("up1")[:], lit.maps("model.up1")[:])
        assert lit.maps("up1").layer == lit.find_layer("up1") == "model.up1"
        assert list(lit.calls("up2")) == [0, 1]
        fadeviz.export_run(lit, "npz", tmp_path / "up1.npz", layers=["up1"], kinds=["gate"])
        with np.load(tmp_path / "up1.npz", allow_pickle=False) as file:
            assert [key for key in file if "gate" in key] == ["maps/model.up1/gate", "maps/model.up1/gate/call 1"]

    def test_the_very_name_comes_first_and_several_are_refused(self, tmp_path):
        run = rename(
            make_run(tmp_path / "run", steps=(0,)), {"up1": 1, "model.up1": 1, "module.up2": 1, "model.up2": 1}
        )
        assert run.find_layer("up1") == "up1"
        with pytest.raises(FadevizError, match=r"several layers 'up2': 'm.*up2', 'm.*up2'\. Give one of these names"):
            fadeviz.grid(run, tmp_path / "g.png", layer="up2")
        other = rename(make_run(tmp_path / "other", run_id="o", steps=(0,)), {"up1": 1})
        both = [{run: "up1", other: "up1"}, {run: "model.up1"}]
        layers = page_layers([run, other], both[0])
        assert all(names in layers for names in both)
        assert len(layers) == 4

    def test_captions_name_both(self, a, lit):
        sequences = select_frames([a, lit], MapSelection(layer="up1"))
        assert [heading(one) for one in sequences] == ["FADE, seed 0", "FADE, seed 1"]
        assert (
            "up1 in FADE, seed 0 and model.up1, call 0 of 2 (counted from 0) in FADE, seed 1." in captions(sequences)[0]
        )
        assert describe_layers({a: "up1", lit: "model.up1"}) == "up1 (model.up1 in FADE, seed 1)"
        assert measure_onsets([a, lit], "up1").layer == "up1 (model.up1 in FADE, seed 1)"


class TestText:
    """RUN=LAYER on the command line."""

    def test_layers_of_all_and_of_each(self, runs):
        assert parse_layer(runs, []) is None
        assert parse_layer(runs, ["up1"]) == "up1"
        assert parse_layer(runs, ["b=up1:interpolate", "FADE=up1"]) == {"b": "up1:interpolate", "FADE": "up1"}
        several = ["a=up1", "same", "b=up1.op", "a=up2", "b=up1.half"]
        assert parse_layers(runs, several) == [{"a": "up1", "b": "up1.op"}, "same", {"a": "up2", "b": "up1.half"}]

    def test_labels_and_layers_that_contain_the_sign(self, tmp_path):
        made = [
            rename(make_run(tmp_path / "x", upsampler="pixel_shuffle:icnr=true", steps=(0,)), {"a=b": 1}),
            rename(make_run(tmp_path / "a", run_id="b", steps=(0,)), {"up1": 1, "k=v": 1}),
        ]
        assert parse_layer(made, ["pixel_shuffle:icnr=true=a=b", "a=up1"]) == {
            "pixel_shuffle:icnr=true": "a=b",
            "a": "up1",
        }
        assert parse_layer(made, ["a=k=v", "x=a=b"]) == {"a": "k=v", "x": "a=b"}
        assert parse_layer(made, ["k=v"]) == "k=v"  # a layer, as no run is called so

    @pytest.mark.parametrize(
        ("texts", "message"),
        [
            (["c=up1"], r"layer='c=up1': none of these runs is named before '=': a \(FADE\), b \(CARAFE\)\. RUN=LAYER"),
            (
                ["a=up1", "a=up2", "b=up1.op"],
                "name more than one layer of a run. Give one for all runs, or one for each",
            ),
            (["up1", "up2"], "'up1', 'up2' name more than one layer of a run"),
            (["a=up1", "same"], "name more than one layer of a run"),
        ],
    )
    def test_what_is_refused(self, runs, texts, message):
        with pytest.raises(FadevizError, match=message):
            parse_layer(runs, texts)

    def test_a_run_given_twice(self, a, folder):
        with pytest.raises(FadevizError, match="are the same run, a. Give it once"):
            parse_layer([a, fadeviz.open_run(folder / "a")], ["a=up1"])


class TestDrawing:
    def test_rows_and_caption_say_which_layer(self, runs):
        first, second = select_frames(runs, MapSelection(layer={"a": "up1", "b": "up1.op"}))
        assert (first.layer, second.layer) == ("up1", "up1.op")
        assert [heading(first), heading(second)] == ["FADE, up1", "CARAFE, up1.op"]
        assert captions([first, second])[0].startswith("SegNet, up1 in FADE and up1.op in CARAFE. Feature: ")
        assert np.array_equal(second.maps, runs[1].maps("up1.op", image=0)[:])
        (channel, _) = select_frames(runs, MapSelection(layer={"a": "up1", "b": "up1.op"}, kind="channels", channel=2))
        assert heading(channel) == "FADE, up1, channel 2"

    @pytest.mark.parametrize("layer", [{"a": "up1", "b": "up1.half"}, {"a": "up2", "b": "up1.op"}, "same"])
    @pytest.mark.parametrize("scale", [None, 3])
    def test_maps_of_two_sizes_are_as_wide_as_each_other_and_exact(self, runs, layer, scale):
        sequences = select_frames(runs, MapSelection(layer=layer, normalize="shared"))
        assert sequences[0].limits == sequences[1].limits
        assert "; maps of " in captions(sequences)[0]
        layout, pixels = layout_grid(sequences, scale=scale), render_grid(sequences, scale=scale)
        assert sorted(layout.scales) == ([4, 8] if scale is None else [3, 6])
        assert layout.sizes[0] == layout.sizes[1]
        for (index, frame), (x, y) in layout.cells.items():
            each = layout.scales[index]
            expected = colorize(sequences[index].unit[frame], "gray").repeat(each, 0).repeat(each, 1)
            got = pixels[y : y + expected.shape[0], x : x + expected.shape[1]]
            assert np.array_equal(got, expected)
        moving = layout_animation(sequences, scale=scale)
        for frame, drawn in enumerate(render_frames(sequences, scale=scale)):
            for index, ((x, y), each) in enumerate(zip(moving.tiles, moving.scales, strict=True)):
                expected = colorize(sequences[index].unit[frame], "gray").repeat(each, 0).repeat(each, 1)
                assert np.array_equal(drawn[y : y + expected.shape[0], x : x + expected.shape[1]], expected)

    def test_sizes_that_are_no_multiples_do_not_overlap(self, tmp_path):
        made = [
            make_run(tmp_path / f"{side}", run_id=str(side), seed=side, size=(side, side), steps=TWO_STEPS)
            for side in (31, 40)
        ]
        (tmp_path / "31" / "observation.safetensors").unlink()  # the images of the two differ
        sequences = select_frames([fadeviz.open_run(run.path) for run in made])
        layout = layout_grid(sequences)
        assert layout.sizes == [(124, 124), (120, 120)]
        boxes = [(*corner, *layout.sizes[index]) for (index, _), corner in layout.cells.items()]
        for x, y, width, height in boxes:
            assert not any((x, y) != (u, v) and x <= u < x + width and y <= v < y + height for u, v, *_ in boxes)
            assert x + width < layout.width
            assert y + height < layout.caption[1]

    def test_a_mapping_is_a_choice_everywhere(self, runs, tmp_path):
        layer = {"a": "up1", "b": "up1.op"}
        fadeviz.grid(runs, tmp_path / "g.png", layer=layer)
        fadeviz.animate(runs, tmp_path / "a.gif", layer=layer, scale=1)
        assert len(runs[0].grid(runs[1], layer=layer, steps=[0]).axes) > 0
        assert runs[0].animate(runs[1], layer=layer, scale=1).data.startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """FADE with two seeds whose maps are the same, but for the layers' names; and CARAFE."""
    folder = tmp_path_factory.mktemp("onsets")
    for name, layer, options in (
        ("x", "up1", {}),
        ("y", "up1.op", {"seed": 1}),
        ("z", "model.up1", {"seed": 1}),
        ("c", "up1.op", {"upsampler": "carafe"}),
    ):
        rename(make_onset_run(folder / name, "inward", **options), {layer: 1, f"{layer}.half": 2})
    return {path.name: fadeviz.open_run(path) for path in folder.iterdir()}


class TestMeasuring:
    def test_each_run_is_measured_in_its_layer(self, made):
        pair = [made["x"], made["c"]]
        analysis = fadeviz.analyze(pair, layer={"x": "up1", "c": "up1.op"})
        alone = fadeviz.analyze(made["c"], layer="up1.op")
        assert analysis.table[1]["outline_top"] == alone.table[0]["outline_top"]
        assert np.array_equal(analysis.curves["carafe"]["centroid"].values, alone.curves["carafe"]["centroid"].values)
        assert str(analysis).startswith("up1 in FADE and up1.op in CARAFE, feature: ")
        assert analysis.to_dict()["layer"] == "up1 in FADE and up1.op in CARAFE"
        assert [row["layer"] for row in analysis.table] == ["up1", "up1.op"]
        assert "layer" not in alone.table[0]
        assert analysis.to_csv().startswith("operator,title,layer,seeds")

    def test_seeds_in_different_layers_are_no_seeds_of_one_operator(self, made):
        apart = fadeviz.analyze([made["x"], made["y"]], layer={"x": "up1", "y": "up1.op"})
        assert list(apart.verdicts) == ["fade (layer=up1)", "fade (layer=up1.op)"]
        assert "the runs differ in layer" in apart.notes
        together = fadeviz.analyze([made["x"], made["z"]], layer="up1")  # only a prefix differs
        assert list(together.verdicts) == ["fade"]
        assert together.table[0]["seeds"] == [0, 1]

    def test_a_control_in_another_layer_is_no_control(self, tmp_path):
        pair = []
        for name, labels in (("own", "true"), ("control", "shuffled")):
            run = rename(make_onset_run(tmp_path / name, "inward"), {"up1": 1, "up1.op": 1})
            info = run.info.to_dict()
            info["config"] |= {"upsampler": "fade", "labels": labels}
            SnapshotStore(run.path, run.run_id).write_info(RunInfo.from_dict(info))
            pair.append(fadeviz.open_run(run.path))
        for layer, control in (("up1", "fade@shuffled"), ("up1.op", "")):
            onsets = measure_onsets(pair, {"own": "up1", "control": layer})
            assert onsets.operators[0].control == control

    def test_layers_of_two_sizes_are_refused(self, made):
        with pytest.raises(
            FadevizError, match=r"up1.op.half: 6 maps of 16x16 in .*c, but 6 of 32x32 of up1 in .*x: they"
        ):
            fadeviz.analyze([made["x"], made["c"]], layer={"x": "up1", "c": "up1.op.half"})

    def test_plots_and_reports(self, made, tmp_path):
        pair, layer = [made["x"], made["c"]], {"x": "up1", "c": "up1.op"}
        fadeviz.plot(pair, tmp_path / "p.svg", what="spectrum", layer=layer)
        assert "up1 in FADE and up1.op in CARAFE, feature" in (tmp_path / "p.svg").read_text("utf-8")
        fadeviz.write_report(pair, tmp_path / "r.html", layers=[layer, {"x": "up1.half", "c": "up1.op"}], images=1)
        text = (tmp_path / "r.html").read_text("utf-8")
        for part in (
            "up1 in FADE and up1.op in CARAFE, feature: 6 images",
            '"layer":"up1.half in FADE and up1.op in CARAFE"',
            '"layer":"up1.op"',
            "--layer x=up1 --layer c=up1.op --layer x=up1.half --layer c=up1.op",
        ):
            assert part in text
        fadeviz.write_report([made["x"], made["z"]], tmp_path / "z.html", images=1)
        text = (tmp_path / "z.html").read_text("utf-8")
        assert text.count('"layer":"up1 (model.up1 in FADE, seed 1)"') == 2  # what is measured, and its maps
        assert '"layer":"up1.half (model.up1.half in FADE, seed 1)"' in text
        with pytest.raises(FadevizError, match="no layer is named for"):
            fadeviz.write_report(pair, tmp_path / "n.html", layers=["up1", {"x": "up1"}])


class TestCommands:
    @pytest.fixture
    def call(self, folder, tmp_path, monkeypatch):
        monkeypatch.chdir(folder)

        def invoke(line):
            return CliRunner().invoke(main, shlex.split(line.format(out=tmp_path)))

        return invoke

    @pytest.mark.parametrize(
        "line",
        [
            "grid a b -o {out}/g.svg",
            "animate a b -o {out}/g.gif --scale 1",
            "analyze a b",
            "plot a b -o {out}/g.svg",
            "report a b -o {out}/r.html",
        ],
    )
    def test_the_layer_of_each_run(self, call, line, tmp_path):
        result = call(f"{line} --layer a=up1 --layer CARAFE=up1.op")
        assert result.exit_code == 0, result.output
        said = result.output + "".join(path.read_text("utf-8", "replace") for path in tmp_path.iterdir())
        assert "up1 in FADE and up1.op in CARAFE" in said or "g.gif" in said
        mistakes = {
            "--layer c=up1": "Error: --layer c=up1: none of these runs is named before '='",
            "--layer a=up1": "Error: --layer: no layer is named for b. Name one for each run: a (FADE), b (CARAFE)",
            "--layer up1": "Choose one with --layer, or one for each run: --layer a=up1 --layer b=up1.op",
        }
        for options, message in mistakes.items():
            result = call(f"{line} {options}")
            assert result.exit_code == 1
            assert message in result.stderr
            assert len(result.stderr.splitlines()) == 1

    @pytest.mark.parametrize(
        "line",
        [
            "grid lit -o {out}/g.svg",
            "animate lit -o {out}/g.gif --scale 1",
            "analyze lit",
            "plot lit -o {out}/g.svg",
            "report lit -o {out}/r.html",
            "export lit --to npz -o {out}/x.npz",
        ],
    )
    def test_the_call(self, call, line):
        result = call(f"{line} --layer up1 --call 1")
        assert result.exit_code == 0, result.output
        result = call(f"{line} --layer up1 --call 2")
        assert result.exit_code == 1
        assert "lit has no call 2 of 'model.up1' (feature). Recorded: 0, 1. Choose one with --call" in result.stderr

    def test_a_call_is_said_and_how_to_choose_another(self, call):
        result = call("grid a lit -o {out}/g.png --layer up1")
        assert result.exit_code == 0, result.output
        assert "note: model.up1: call 0 is shown; also recorded: call 1 (12x16). Choose with --call" in result.stderr


class TestExportedCalls:
    def keys(self, path):
        with np.load(path, allow_pickle=False) as file:
            return [key for key in file if key.startswith("maps/")]

    def test_one_or_all(self, lit, tmp_path):
        fadeviz.export_run(lit, "npz", tmp_path / "all.npz", kinds=["feature"])
        assert len(self.keys(tmp_path / "all.npz")) == 4
        assert fadeviz.export_run(lit, "npz", tmp_path / "1.npz", kinds=["feature"], call=1) == ()
        assert [key for key in self.keys(tmp_path / "1.npz") if not key.endswith("/call 1")] == []
        with np.load(tmp_path / "1.npz", allow_pickle=False) as file:
            assert np.array_equal(file["maps/model.up1/feature/call 1"], lit.maps("model.up1", call=1)[:])

    def test_layers_without_it_are_named(self, tmp_path):
        run = make_run(tmp_path / "run", calls=2, steps=(0,))
        maps = [Snapshot(0, LAYER, call, "feature", run.read(0, LAYER, "feature", call)) for call in (0, 1)]
        SnapshotStore(run.path, run.run_id).write(0, [*maps, Snapshot(0, "head", 0, "feature", maps[0].value)])
        opened = fadeviz.open_run(run.path)
        (note,) = fadeviz.export_run(opened, "npz", tmp_path / "1.npz", call=1)
        assert note == "left out head: no call 1. Without call=..., all calls are exported"
        assert self.keys(tmp_path / "1.npz") == [f"maps/{LAYER}/feature/call 1"]
        for options, message in (
            ({"call": 2}, "has no call 2 of any layer. List the calls: fadeviz info"),
            ({"call": 1, "layers": ["head"]}, r"has no call 1 of 'head' \(feature\). Recorded: 0"),
        ):
            with pytest.raises(FadevizError, match=message):
                fadeviz.export_run(opened, "npz", tmp_path / "no.npz", **options)
        assert not (tmp_path / "no.npz").exists()
