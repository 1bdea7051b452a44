"""The plots of measures, and the commands that measure: their numbers come from runs where the answer is known."""

import csv
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from PIL import Image

from fadeviz import FadevizError, open_run, plotting
from fadeviz.analysis.order import learning_order
from fadeviz.analysis.result import analyze
from fadeviz.analysis.statistics import bootstrap_band
from fadeviz.analysis.text import format_steps
from fadeviz.render import plots
from fadeviz.render.page import new_figure
from fadeviz.render.panels import Curve, CurvePanel
from fadeviz.render.plots import write_curves
from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from render_runs import LAYER, make_run


def curves(title="FADE", count=2, **more):
    rising = np.linspace(0, 1, 4)
    lines = [
        Curve(f"line {n}", (0, 1, 10, 100), rising / (n + 1), rising / (n + 2), rising, **more) for n in range(count)
    ]
    return CurvePanel(title, "1 seed", "share", lines, (-0.3, 1.1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, outline_first in (("fade", True), ("carafe", False)):
        for seed in (0, 1):
            make_run(folder / f"{name}{seed}", upsampler=name, run_id=f"{name}{seed}", seed=seed,
                     outline_first=outline_first)  # fmt: skip
    return folder


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class TestFiles:
    @pytest.mark.parametrize(("ending", "count"), [("png", 1), ("png", 4), ("pdf", 2), ("svg", 1)])
    def test_the_same_panels_give_the_same_bytes(self, tmp_path, ending, count):
        lines = [curves(f"Operator {n}", mark=3.0) for n in range(count)]
        made = []
        for name in ("a", "b"):
            write_curves(lines, tmp_path / f"{name}.{ending}", caption="What it shows.")
            made.append((tmp_path / f"{name}.{ending}").read_bytes())
        assert made[0] == made[1]
        assert len(made[0]) > 5000

    def test_one_snapshot_and_nothing_but_gaps(self, tmp_path):
        gap = np.full((1, 1), math.nan)
        write_curves(
            [CurvePanel("a", "", "", [Curve("x", (0,), gap[0], gap[0], gap[0], math.inf)])], tmp_path / "r.png"
        )
        assert (tmp_path / "r.png").exists()

    def test_bad_arguments(self, tmp_path):
        with pytest.raises(FadevizError, match="nothing to plot"):
            write_curves([], tmp_path / "a.png")
        with pytest.raises(FadevizError, match=r"a.gif: a plot cannot be written as .gif. Endings: .png .pdf .svg"):
            write_curves([curves()], tmp_path / "a.gif")

    def test_lines_like_another_take_its_colour(self, tmp_path):
        flat = np.full(2, 0.5)
        for name, like in (("own", None), ("alike", "a")):
            lines = [Curve("a", (0, 100), flat + 0.3, flat, flat), Curve("b", (0, 100), flat, flat, flat, like=like)]
            write_curves([CurvePanel("x", "", "", lines, (0, 1))], tmp_path / f"{name}.png")
        seen = {}
        for name in ("own", "alike"):
            pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).reshape(-1, 3).astype(int)
            seen[name] = int((np.abs(pixels - (0, 114, 178)).sum(1) < 30).sum())
        assert seen["own"] > 100
        assert seen["alike"] == 0

    def test_many_lines_and_panels(self, tmp_path):
        write_curves([curves(f"panel {n}", 11) for n in range(5)], tmp_path / "many.png")
        assert np.asarray(Image.open(tmp_path / "many.png")).std() > 10


class TestCommands:
    def test_analyze_tells_what_is_known(self, runs, tmp_path):
        paths = [runs / name for name in ("fade0", "fade1", "carafe0", "carafe1")]
        result = call("analyze", *paths, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
        assert result.exit_code == 0, result.output
        assert max(map(len, result.output.split("\n\n")[1].splitlines())) <= 120
        whole = json.loads((tmp_path / "a.json").read_text())
        rows = {row["operator"]: row for row in whole["operators"]}
        assert list(rows) == ["fade", "carafe"]
        assert rows["fade"]["seeds"] == [0, 1]
        assert rows["fade"]["images"] == 2
        assert rows["fade"]["runs"] == ["fade0", "fade1"]
        assert rows["fade"]["edge_at_end"] is not None
        # The drawn inside of the second kind of run fills from its middle: at the end it tells inside from outside.
        assert rows["carafe"]["interior_at_end"] > 0.6
        assert sum(rows["fade"]["edge_states"].values()) == 4
        with open(tmp_path / "a.csv") as file:
            table = list(csv.DictReader(file))
        assert [row["operator"] for row in table] == ["fade", "carafe"]
        assert float(table[1]["interior_at_end"]) == rows["carafe"]["interior_at_end"]

    @pytest.mark.parametrize(
        "kind", ["kymograph", "edge-kymograph", "responses", "spectrum", "learning", "gate", "classes", "continuity"]
    )
    def test_plot(self, runs, tmp_path, kind):
        output = tmp_path / "figure.png"
        result = call("plot", runs / "fade0", runs / "carafe0", "--what", kind, "-o", output)
        assert result.exit_code == 0, result.output
        assert result.stdout == f"wrote {output}\n"
        assert np.asarray(Image.open(output)).std() > 10

    def test_responses_less_what_position_gives(self, runs, tmp_path):
        result = call("analyze", runs / "fade0", "--responses", "position-corrected", "--json", tmp_path / "a.json")
        assert result.exit_code == 0, result.output
        assert "position-corrected: how far each response exceeds" in result.output
        whole = json.loads((tmp_path / "a.json").read_text())
        assert whole["responses"] == "position-corrected"
        curves = whole["operators"][0]["curves"]
        assert len(curves["edge"]["middle"]) == len(curves["edge"]["steps"]) == len(whole["steps"])

    @pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
    def test_the_runs_are_in_the_metadata_and_not_in_the_caption(self, runs, tmp_path, ending):
        analysis = analyze([runs / "fade0", runs / "carafe1"])
        for what in ("kymograph", "responses"):
            made = plotting.make_plot(analysis, what)
            assert made.provenance == "fadeviz runs: fade0 (FADE, seed 0), carafe1 (CARAFE, seed 1)"
            assert "fade0" not in made.caption
            assert "2 runs." in made.caption
            plotting.write_plot(made, tmp_path / f"a.{ending}")
            data = (tmp_path / f"a.{ending}").read_bytes()
            if ending == "png":
                with Image.open(tmp_path / "a.png") as image:
                    assert image.info["Description"] == made.provenance
            else:
                assert made.provenance.encode() in re.sub(rb"\\([()])", rb"\1", data)  # PDF escapes parentheses

    def test_python_does_what_the_command_does(self, runs, tmp_path):
        paths = [runs / "fade0", runs / "carafe0"]
        analysis = analyze(paths, responses="raw-edge", until="peak")
        options = ["--responses", "raw-edge", "--until", "peak"]
        result = call("analyze", *paths, *options, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
        assert result.stdout.startswith(f"{analysis}\n")
        assert json.loads((tmp_path / "a.json").read_text()) == analysis.to_dict()
        assert (tmp_path / "a.csv").read_text() == analysis.to_csv()
        assert list(analysis.verdicts) == list(analysis.curves) == [row["operator"] for row in analysis.table]
        assert repr(analysis).startswith(f"Analysis({LAYER}, feature; fade: ")
        call("plot", *paths, *options, "--what", "spectrum", "--what", "responses", "-o", tmp_path / "a_{what}.png")
        written = plotting.plot(analysis, tmp_path / "b_{what}.png", what=["spectrum", "responses"])
        assert [file.name for file in written.files] == ["b_spectrum.png", "b_responses.png"]
        assert written.notes == analysis.notes
        for file in written.files:
            assert file.read_bytes() == (tmp_path / file.name.replace("b_", "a_")).read_bytes()
        with pytest.raises(FadevizError, match="no plot 'spectra'. Nearest: 'spectrum'"):
            plotting.plot(analysis, tmp_path / "c.png", what="spectra")

    def test_one_run_needs_no_list(self, runs):
        assert analyze(runs / "fade0").table == analyze([open_run(runs / "fade0")]).table

    def test_several_figures_of_one_measuring(self, runs, tmp_path):
        kinds = ["--what", "kymograph", "--what", "spectrum", "--what", "kymograph"]
        result = call("plot", runs / "fade0", *kinds, "-o", tmp_path / "new" / "{what}.svg")
        assert result.exit_code == 0, result.output
        assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["kymograph.svg", "spectrum.svg"]
        result = call("plot", runs / "fade0", *kinds, "-o", tmp_path / "one.svg")
        assert result.exit_code == 1
        assert "Put {what} into its name" in result.output

    def test_verdicts_by_every_rule(self, runs, tmp_path):
        paths = [runs / name for name in ("fade0", "fade1", "carafe0")]
        result = call("analyze", *paths, "--until", "peak", "--json", tmp_path / "a.json")
        assert result.exit_code == 0, result.output
        rules = json.loads((tmp_path / "a.json").read_text())["verdicts_by_rule"]
        assert len(rules) == 2 * 5 * 2
        alone = call("analyze", *paths, "--responses", "raw-edge", "--json", tmp_path / "b.json")
        assert alone.exit_code == 0
        for row in json.loads((tmp_path / "b.json").read_text())["operators"]:
            (same,) = (
                other
                for other in rules
                if (other["operator"], other["responses"], other["until"]) == (row["operator"], "raw-edge", "end")
            )
            assert all(row[key] == same[key] for key in ("verdict", "reason", "lead", "lead_low", "lead_high"))
        lines = result.output.splitlines()
        table = lines[lines.index("verdict by other rules (columns: responses; until end / peak):") :]
        assert table[2].startswith("fade")
        assert len(table[2].split(" / ")) == 6
        assert max(map(len, table[:4])) <= 130

    def test_errors(self, runs, tmp_path):
        for arguments, code, message in (
            (("analyze",), 2, "Missing argument"),
            (("analyze", tmp_path / "none"), 1, "no run folder"),
            (("analyze", runs / "fade0", "--kind", "gates"), 1, "gates"),
            (("analyze", runs / "fade0", "--responses", "raw"), 1, "raw-edge"),
            (("plot", runs / "fade0", "--what", "quality", "-o", tmp_path / "a.png"), 1, "none of the runs has what"),
            (("plot", runs / "fade0", "-o", tmp_path / "a.gif"), 1, "a plot cannot be written as .gif"),
            (("plot", runs / "fade0", "--what", "pie", "-o", tmp_path / "a.png"), 2, "'pie' is not one of"),
        ):
            result = call(*arguments)
            assert result.exit_code == code, result.output
            assert message in result.output


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A run whose layer runs twice, and one that has the second call's maps alone."""
    folder = tmp_path_factory.mktemp("calls")
    run = make_run(folder / "shared", calls=2)
    alone = make_run(folder / "alone")
    for step in run.steps:
        maps = [Snapshot(step, LAYER, 0, k, run.read(step, LAYER, k, 1)) for k in run.layers[LAYER]]
        SnapshotStore(alone.path, alone.run_id).write(step, maps)
    return folder


class TestCalls:
    """Another call of a layer is measured as if it were a layer of its own."""

    def numbers(self, *arguments):
        return json.loads(call("analyze", *arguments, "--json", "-").stdout)

    def test_its_numbers(self, several):
        first, other = self.numbers(several / "shared"), self.numbers(several / "shared", "--call", 1)
        alone = self.numbers(several / "alone")
        assert (first["call"], other["call"]) == (0, 1)
        assert other["operators"] == alone["operators"]
        assert other["operators"] != first["operators"]
        assert other["notes"][0] == f"{LAYER}: call 1 is shown; also recorded: call 0 (24x32). Choose with call=..."
        assert alone["notes"] == other["notes"][1:]

    def test_its_table_and_its_figures(self, several, tmp_path):
        result = call("analyze", several / "shared", "--call", 1)
        assert result.stdout.startswith(f"{LAYER}, call 1, feature: 2 images")
        result = call("plot", several / "shared", "--call", 1, "-o", tmp_path / "k.png")
        assert (result.exit_code, result.stdout) == (0, f"wrote {tmp_path / 'k.png'}\n")
        assert f"note: {LAYER}: call 1 is shown; also recorded: call 0 (24x32). Choose with --call\n" in result.stderr
        for command in (("analyze",), ("plot", "-o", tmp_path / "no.png")):
            result = call(*command, several / "shared", "--call", 2)
            assert (result.exit_code, result.stdout) == (1, "")
            assert "no call 2" in result.stderr


class TestStandardOutput:
    def test_json_and_nothing_else(self, runs, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        result = call("analyze", runs / "fade0", "--json", "-", "--csv", "t.csv")
        assert json.loads(result.stdout)["operators"][0]["operator"] == "fade"
        assert "wrote t.csv" in result.stderr
        assert "fade: undecided" in result.stderr  # the table is not lost
        assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]

    def test_csv(self, runs, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        [row] = csv.DictReader(call("analyze", runs / "fade0", "--csv", "-").stdout.splitlines())
        assert row["operator"] == "fade"
        both = call("analyze", runs / "fade0", "--csv", "-", "--json", "-")
        assert (both.exit_code, both.stdout) == (2, "")
        assert "choose one" in both.stderr
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("figure", "config", "remedy"),
    [
        ("quality", {"seed": 0}, r"Log test results .*: recorder\.log\(step, miou=\.\.\.\), or sad="),
        (
            "quality",
            {"upsampler": "x"},
            r"metrics.jsonl has no test up to step 110: continue with fadeviz record --resume",
        ),
        ("classes", {"seed": 0}, r'Recorder\(\.\.\., kinds="channels"\)'),
        ("classes", {"upsampler": "x"}, r"fadeviz record --kinds channels \.\.\."),
    ],
)
def test_the_remedy_is_for_the_way_the_run_was_recorded(tmp_path, figure, config, remedy):
    run = make_run(tmp_path / "r")
    for step in run.steps:
        only = Snapshot(step, LAYER, 0, "feature", run.read(step, LAYER, "feature"))
        SnapshotStore(run.path, run.run_id).write(step, [only])
    info = json.loads((run.path / "run.json").read_text())
    SnapshotStore(run.path, run.run_id).write_info(RunInfo.from_dict({**info, "config": config}))
    result = call("plot", run.path, "--what", figure, "-o", tmp_path / "a.png")
    assert result.exit_code == 1
    assert re.search(remedy, result.stderr)
    assert len(result.stderr.splitlines()) == 1


def test_no_line_is_cut_off(tmp_path, monkeypatch):
    spans = {}
    monkeypatch.setattr(plots, "_save", lambda figure, path, _: spans.update({path.stem: figure.axes[0].get_ylim()}))
    values = np.array([-0.9, 0.2, np.nan, 0.8])
    for name, shift in (("low", 0.0), ("high", 0.9), ("within", 0.7)):
        curve = Curve("x", (0, 1, 10, 100), values + shift, values + shift, values + shift)
        write_curves([CurvePanel("a", "", "", [curve], (-0.3, 1.6))], tmp_path / f"{name}.png")
    assert {name: tuple(round(float(end), 6) for end in span) for name, span in spans.items()} == {
        "low": (-0.92, 1.6), "high": (-0.3, 1.72), "within": (-0.3, 1.6)
    }  # fmt: skip


def test_distances_that_are_not_drawn_are_said(runs, tmp_path, monkeypatch):
    assert plotting._cut_off([SimpleNamespace(edges=np.arange(-8.0, 13))]) == ""
    far = [SimpleNamespace(edges=np.arange(-8.0, 40)), SimpleNamespace(edges=np.arange(-4.0, 31))]
    assert plotting._cut_off(far) == "Not drawn: distances of 12 to 39 px outside. "
    said = []
    monkeypatch.setattr(plotting, "write_kymographs", lambda *a, caption, **k: said.append(caption))
    monkeypatch.setattr(plotting, "shown_distances", lambda edges: (-1.0, 2.0))
    assert call("plot", runs / "fade0", "-o", tmp_path / "k.png").exit_code == 0
    assert "Not drawn: distances of 2 to 11 px outside." in said[0]


def test_tests_that_the_table_leaves_out_are_counted(runs):
    every = [runs / f"{name}{seed}" for name in ("fade", "carafe") for seed in (0, 1)]
    order = learning_order([open_run(path) for path in every])
    shown = sum(test.count >= 6 for test in order.comparisons[0].tests.values())
    left = len(order.comparisons[0].tests) - shown
    assert left > 0
    assert (
        f"\n{left} more tests, of other pairs of operators or of fewer than 6 pairs: see the JSON\n"
        in call("analyze", *every).stdout
    )


def test_what_only_some_seeds_have_is_named(runs, tmp_path):
    lone = make_run(tmp_path / "lone", run_id="lone", seed=7)
    for step in lone.steps:
        maps = [Snapshot(step, LAYER, 0, kind, lone.read(step, LAYER, kind)) for kind in ("feature", "gradient")]
        SnapshotStore(lone.path, lone.run_id).write(step, maps)
    SnapshotStore(lone.path, lone.run_id).append_metrics({"step": 110, "miou": 0.5})
    result = call("analyze", runs / "fade0", lone.path)
    assert "\nnote: fade: not all of its runs have channels, gate, tests, so these are not measured\n" in result.stdout
    assert "not all of its runs" not in call("analyze", runs / "fade0", runs / "fade1").stdout


def test_operators_that_a_figure_lacks_are_named(runs, tmp_path):
    lone = make_run(tmp_path / "plain", upsampler="plain", run_id="plain")
    for step in lone.steps:
        only = Snapshot(step, LAYER, 0, "feature", lone.read(step, LAYER, "feature"))
        SnapshotStore(lone.path, lone.run_id).write(step, [only])
    result = call("plot", runs / "fade0", lone.path, "--what", "gate", "-o", tmp_path / "g.png")
    assert result.exit_code == 0
    assert "note: left out PLAIN: not all runs have what the plot 'gate' shows\n" in result.stderr
    result = call("plot", runs / "fade0", lone.path, "--what", "responses", "-o", tmp_path / "g.png")
    assert "left out" not in result.stderr


class TestWhatIsDrawn:
    """The panels that the commands hand over, and where the drawing puts them."""

    def panels(self, monkeypatch, tmp_path, *arguments):
        drawn = {}
        for name in ("write_curves", "write_kymographs"):
            monkeypatch.setattr(plotting, name, lambda panels, output, **more: drawn.update(panels=panels, **more))
        result = call("plot", *arguments, "-o", tmp_path / "x.png")
        assert result.exit_code == 0, result.output
        return drawn

    def test_responses(self, runs, tmp_path, monkeypatch):
        paths = [runs / name for name in ("fade0", "fade1", "carafe0", "carafe1")]
        order = learning_order([open_run(path) for path in paths])
        for least in (1, 5):
            monkeypatch.setattr("fadeviz.analysis.verdicts.MIN_LEADS", least)
            drawn = self.panels(monkeypatch, tmp_path, *paths, "--what", "responses")
            assert [panel.title for panel in drawn["panels"]] == ["FADE", "CARAFE"]
            for panel, operator in zip(drawn["panels"], order.operators, strict=True):
                curves = {curve.label: curve for curve in panel.curves}
                for name, values, t50 in (
                    ("edge", operator.edge, operator.edge_t50),
                    ("interior", operator.interior, operator.interior_t50),
                ):
                    middle, low, high = bootstrap_band(values)
                    np.testing.assert_array_equal(curves[name].middle, middle)
                    np.testing.assert_array_equal(curves[name].low, low)
                    np.testing.assert_array_equal(curves[name].high, high)
                    enough = t50.count >= max(least, 2)
                    np.testing.assert_equal(curves[name].mark, t50.estimate if enough else math.nan)
                assert curves["edge, mismatched masks"].like == "edge"
                assert curves["interior, mismatched masks"].faint

    @pytest.mark.parametrize("kind", ["kymograph", "edge-kymograph"])
    def test_kymographs(self, runs, tmp_path, monkeypatch, kind):
        order = learning_order([open_run(runs / "fade0"), open_run(runs / "carafe0")])
        drawn = self.panels(monkeypatch, tmp_path, runs / "fade0", runs / "carafe0", "--what", kind)
        for panel, operator in zip(drawn["panels"], order.operators, strict=True):
            wanted = operator.value_kymograph if kind == "kymograph" else operator.gradient_kymograph
            np.testing.assert_array_equal(panel.value, wanted.value)
            np.testing.assert_array_equal(panel.edges, wanted.edges)
        assert ("steepness" in drawn["quantity"]) == (kind == "edge-kymograph")

    def test_marks_lie_where_the_step_does(self, tmp_path):
        line = np.zeros(4)
        curve = Curve("x", (0, 1, 10, 100), line, line, line, mark=9.0)
        write_curves([CurvePanel("t", "", "", [curve], (-1, 1))], tmp_path / "c.png")
        pixels = np.asarray(Image.open(tmp_path / "c.png").convert("RGB")).astype(int)
        color = np.abs(pixels - (213, 94, 0)).sum(2) < 60
        rows, columns = np.nonzero(color)
        level = np.bincount(rows).argmax()
        left, right = columns[rows == level].min(), columns[rows == level].max()
        upright = columns[np.abs(rows - level) > 30]
        upright = upright[upright > left + 20]  # without the legend
        want = left + (right - left) * math.log1p(9) / math.log1p(100)
        assert abs(np.median(upright) - want) < 6

    def test_bands_and_legend_are_there(self, tmp_path):
        flat = np.zeros(2)
        sizes = []
        for low in (0.0, -0.5):
            curve = Curve("a line", (0, 10), flat, flat + low, flat - low)
            write_curves([CurvePanel("t", "", "", [curve], (-1, 1))], tmp_path / "b.png")
            pixels = np.asarray(Image.open(tmp_path / "b.png").convert("RGB")).astype(int)
            sizes.append(int((np.abs(pixels - (248, 229, 214)).sum(2) < 30).sum()))
        assert sizes[1] > sizes[0] + 10000
        top = pixels[: pixels.shape[0] // 9]
        assert (np.abs(top - (213, 94, 0)).sum(2) < 60).any()  # the legend's line


def test_the_numbers_of_the_table_and_the_json(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("fadeviz.analysis.verdicts.MIN_LEADS", 1)
    monkeypatch.setattr("fadeviz.analysis.text.LEAST_PAIRS", 1)
    paths = [runs / name for name in ("fade0", "fade1", "carafe0", "carafe1")]
    order = learning_order([open_run(path) for path in paths], responses="raw-edge", until="peak")
    result = call("analyze", *paths, "--responses", "raw-edge", "--until", "peak", "--json", tmp_path / "a.json")
    whole = json.loads((tmp_path / "a.json").read_text())

    def told(value):
        return None if math.isnan(value) else value if math.isfinite(value) else "inf" if value > 0 else "-inf"

    for row, operator in zip(whole["operators"], order.operators, strict=True):
        for name in ("lead", "edge_t50", "interior_t50"):
            interval = operator.lead_interval if name == "lead" else getattr(operator, name)
            assert row[name] == told(interval.estimate)
            assert row[f"{name}_low"] == told(interval.low)
        for name, times in (("edge", operator.edge_times), ("interior", operator.interior_times)):
            for place, level in ((0, 10), (2, 90)):
                steps = [one.times[place] for per_run in times for one in per_run]
                known = [step for step in steps if not math.isnan(step)]
                assert row[f"{name}_t{level}"] == (told(float(np.median(known))) if known else None)
        (line,) = (one for one in result.output.splitlines() if re.match(rf"{row['operator']} +2 ", one))
        for interval in (operator.edge_t50, operator.interior_t50):
            if interval.count >= 2:
                assert re.search(rf" {re.escape(format_steps(interval.estimate))} ", line)
        if operator.lead_interval.count >= 2:
            assert f" {format_steps(operator.lead_interval.estimate)} [" in line
    (comparison,) = order.comparisons
    (stored,) = whole["comparisons"]
    for unit, test in comparison.tests.items():
        assert stored[unit]["pairs"] == test.count
        assert stored[unit]["p"] == told(test.p)
        assert stored[unit]["difference"] == told(test.difference)
        if test.count:
            assert f"paired by {unit}: {format_steps(test.difference)} steps, p = {test.p:.3g}" in result.output


def test_a_spliced_run_is_named(tmp_path):
    for name in ("one", "two"):
        make_run(tmp_path / name, run_id=name)
    assert "do not look like those of a single training" not in call("analyze", tmp_path / "two").output
    foreign = "snapshots/step_000050.safetensors"
    (tmp_path / "two" / foreign).write_bytes((tmp_path / "one" / foreign).read_bytes())
    result = call("analyze", tmp_path / "two", "--json", tmp_path / "a.json")
    assert "frames of two do not look like those of a single training" in result.output
    assert json.loads((tmp_path / "a.json").read_text())["operators"][0]["spliced"] == ["two"]


def test_the_last_two_labels_of_a_training_do_not_touch():
    figure = new_figure(400, 200, 100)
    for last, labels in ((1999, ["300", "1,000"]), (3000, ["1,000", "3,000"]), (2600, ["1,000", "2,600"])):
        axes = figure.subplots()
        plots._time_axis(axes, [0, last])
        assert [label.get_text() for label in axes.get_xticklabels()][-2:] == labels
        figure.clear()
