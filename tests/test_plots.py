"""The plots of measures, and the commands that measure: their numbers come from runs where the answer is known."""

import csv
import json
import math
import re

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from matplotlib.text import Text
from PIL import Image

from fadeviz import FadevizError, open_run, plotting
from fadeviz.analysis.result import analyze
from fadeviz.render import plots
from fadeviz.render.panels import Curve, CurvePanel
from fadeviz.render.plots import write_curves
from fadeviz.render.style import FigureStyle, operator_color
from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from onset_runs import make_onset_run
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


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Two runs each of four operators whose answers are known."""
    folder = tmp_path_factory.mktemp("known")
    return [
        make_onset_run(folder / f"{kind}{seed}", kind, upsampler=kind, seed=seed).path
        for kind in ("inward", "outward", "start", "place")
        for seed in (0, 1)
    ]


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class TestFiles:
    @pytest.mark.parametrize(("ending", "count"), [("png", 1), ("png", 4), ("pdf", 2), ("svg", 1)])
    def test_the_same_panels_give_the_same_bytes(self, tmp_path, ending, count):
        lines = [curves(f"Operator {n}", mark=3.0) for n in range(count)]
        made = []
        for name in ("a", "b"):
            write_curves(lines, tmp_path / f"{name}.{ending}", caption=["What it shows."])
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
    def test_analyze_tells_what_is_known(self, known, tmp_path):
        result = call("analyze", *known, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
        assert result.exit_code == 0, result.output
        assert max(map(len, result.output.split("\n\n")[1].splitlines())) <= 140
        whole = json.loads((tmp_path / "a.json").read_text())
        rows = {row["operator"]: row for row in whole["operators"]}
        verdicts = ["outline first", "interior first", "outline from the start", "neither"]
        assert [row["verdict"] for row in rows.values()] == verdicts
        assert rows["inward"]["seeds"] == [0, 1]
        assert rows["inward"]["images"] == 6
        assert rows["inward"]["runs"] == ["inward0", "inward1"]
        assert rows["inward"]["outline_top"] > 0.8
        assert rows["inward"]["lead_low"] > 1 > rows["outward"]["lead_high"]
        with open(tmp_path / "a.csv") as file:
            table = list(csv.DictReader(file))
        assert [row["operator"] for row in table] == list(rows)
        assert float(table[1]["interior_end"]) == rows["outward"]["interior_end"]
        for sentence in (row["sentence"] for row in rows.values()):
            assert f"{sentence}\n" in result.output

    @pytest.mark.parametrize(
        "kind", ["kymograph", "responses", "auc", "spectrum", "learning", "gate", "classes", "continuity"]
    )
    def test_plot(self, runs, tmp_path, kind):
        output = tmp_path / "figure.png"
        result = call("plot", runs / "fade0", runs / "carafe0", "--what", kind, "-o", output)
        assert result.exit_code == 0, result.output
        assert result.stdout == f"wrote {output}\n"
        assert np.asarray(Image.open(output)).std() > 10

    @pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
    def test_the_runs_are_in_the_metadata_and_not_in_the_caption(self, runs, tmp_path, ending):
        analysis = analyze([runs / "fade0", runs / "carafe1"])
        for what in ("kymograph", "responses"):
            made = plotting.make_plot(analysis, what)
            caption = " ".join(made.caption)
            assert made.provenance == f"fadeviz runs: fade0 (FADE, seed 0), carafe1 (CARAFE, seed 1). {caption}"
            assert "fade0" not in caption
            assert "2 runs." in caption
            plotting.write_plot(made, tmp_path / f"a.{ending}")
            data = (tmp_path / f"a.{ending}").read_bytes()
            if ending == "png":
                with Image.open(tmp_path / "a.png") as image:
                    assert image.info["Description"] == made.provenance
            else:
                assert made.provenance.encode() in re.sub(rb"\\([()])", rb"\1", data)  # PDF escapes parentheses

    def test_python_does_what_the_command_does(self, runs, tmp_path):
        paths = [runs / "fade0", runs / "carafe0"]
        analysis = analyze(paths)
        result = call("analyze", *paths, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
        assert result.stdout.startswith(f"{analysis}\n")
        assert json.loads((tmp_path / "a.json").read_text()) == analysis.to_dict()
        assert (tmp_path / "a.csv").read_text() == analysis.to_csv()
        assert list(analysis.verdicts) == list(analysis.curves) == [row["operator"] for row in analysis.table]
        assert repr(analysis).startswith(f"Analysis({LAYER}, feature; fade: ")
        call("plot", *paths, "--what", "spectrum", "--what", "responses", "-o", tmp_path / "a_{what}.png")
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

    def test_errors(self, runs, tmp_path):
        for arguments, code, message in (
            (("analyze",), 2, "Missing argument"),
            (("analyze", tmp_path / "none"), 1, "no run folder"),
            (("analyze", runs / "fade0", "--kind", "gates"), 1, "gates"),
            (("plot", runs / "fade0", "--step-axis", "sqrt", "-o", tmp_path / "a.png"), 2, "'sqrt' is not one of"),
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
        assert "FADE: too few images to say" in result.stderr  # the table is not lost
        assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]

    def test_csv(self, runs, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        [row] = csv.DictReader(call("analyze", runs / "fade0", "--csv", "-").stdout.splitlines())
        assert row["operator"] == "fade"
        both = call("analyze", runs / "fade0", "--csv", "-", "--json", "-")
        assert (both.exit_code, both.stdout) == (2, "")
        assert "choose one" in both.stderr
        assert not list(tmp_path.iterdir())


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Draws panels and gives the figure, laid out."""

    def figure_of(panels, **options):
        figure = write_curves(panels, tmp_path / "a.svg", **options)
        figure.canvas.draw()
        return figure

    return figure_of


def panels_of(figure):
    """The axes with lines, and the legend wherever it is."""
    (legend,) = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return [axes for axes in figure.axes if axes.lines], legend


class TestLayout:
    """Panels fill the page, share what they can, and nothing lies on anything else."""

    @pytest.mark.parametrize(
        ("count", "width", "lines"),
        [(1, "column", 2), (5, "page", 2), (7, "page", 12), (3, "column", 2)]
        + [pytest.param(count, width, lines, marks=pytest.mark.slow) for count in (*range(1, 9), 10, 13)
           for width in ("column", "page") for lines in (2, 12)],
    )  # fmt: skip
    def test_panels_fill_the_page(self, draw, count, width, lines):
        figure = draw(
            [curves(f"p{n}", lines) for n in range(count)], style=FigureStyle(width=width), caption=["Words."]
        )
        assert figure.get_figwidth() == pytest.approx({"column": 3.3, "page": 6.9}[width])
        panels, legend = panels_of(figure)
        rows = {}
        for axes in panels:
            box = axes.get_tightbbox()
            rows.setdefault(round(axes.get_position().y0, 2), []).append(box)
        everything = figure.bbox
        beside = legend in [axes.get_legend() for axes in figure.axes]
        last = min(rows)
        for y, boxes in rows.items():
            right = max(box.x1 for box in boxes)
            assert right <= everything.x1 + 1
            if y == last and beside:
                right = max(right, legend.get_window_extent().x1)
                assert right - boxes[-1].x1 > 30  # the legend stands in the gap
            else:
                assert right > 0.93 * everything.width
        counts = [len(boxes) for boxes in rows.values()]
        assert beside or max(counts) - min(counts) <= 1  # no orphan
        boxes = [axes.get_window_extent() for axes in panels]
        assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
        assert min(box.width for box in boxes) > 0.9 * 72
        words = [text.get_window_extent() for text in (*figure.texts, *legend.get_texts()) if text.get_text()]
        heads = [text.get_window_extent() for axes in panels for text in (axes.title, axes._left_title)]
        solid = [box.padded(-1) for box in [*boxes, *words, *heads] if box.width]
        assert all(box.x1 <= everything.x1 + 1 and box.y0 >= -1 and box.y1 <= everything.y1 + 1 for box in solid)
        assert not any(a.overlaps(b) for n, a in enumerate(solid) for b in solid[:n])

    def test_panels_that_are_compared_have_one_scale_and_share_its_numbers(self, draw):
        flat = np.zeros(2)
        lines = [Curve("x", (0, 10), flat + top, flat, flat + top) for top in (0.5, 3.0, 1.0)]
        alone, together = (
            draw([CurvePanel(f"p{n}", "", "share", [line], scale=scale) for n, line in enumerate(lines)])
            for scale in ("", "one")
        )
        assert len({axes.get_ylim() for axes in panels_of(alone)[0]}) == 3
        (limits,) = {axes.get_ylim() for axes in panels_of(together)[0]}
        assert limits[0] < 0 < 3 < limits[1]
        for figure, shown in ((alone, [True] * 3), (together, [True, False, False])):
            numbers = [any(tick.label1.get_visible() for tick in axes.yaxis.get_major_ticks()) for axes in figure.axes]
            assert numbers == shown
            assert [axes.get_ylabel() for axes in figure.axes] == ["share", "", ""]

    def test_steps_are_labelled_once_below_each_column(self, draw):
        panels, _ = panels_of(draw([curves(f"p{n}") for n in range(6)]))
        labelled = [any(tick.label1.get_visible() for tick in axes.xaxis.get_major_ticks()) for axes in panels]
        assert labelled == [False] * 3 + [True] * 3

    def test_no_name_of_the_legend_stands_alone_in_its_line(self, draw):
        flat = np.zeros(2)
        names = [f"an operator of the name {n}" for n in "abcde"]
        figure = draw([CurvePanel("p", "", "", [Curve(name, (0, 10), flat, flat, flat) for name in names])] * 2)
        legend = panels_of(figure)[1]
        texts = sorted(legend.get_texts(), key=lambda t: (-round(t.get_window_extent().y0), t.get_window_extent().x0))
        assert [text.get_text() for text in texts] == names  # in reading order
        lines = [round(text.get_window_extent().y0) for text in texts]
        assert min(lines.count(line) for line in lines) == 2

    def test_a_subtitle_is_not_cut_where_two_lines_hold_it(self, draw):
        words = "how well the steepness of the map detects the band"
        flat = np.zeros(2)
        panel = CurvePanel("p", words, "", [Curve("x", (0, 10), flat, flat, flat)])
        for axes in panels_of(draw([panel] * 3))[0]:
            text = next(text.get_text() for text in axes.texts)
            assert text.replace("\n", " ") == words
            assert min(map(len, text.split("\n"))) > 15  # of about the same length

    def test_the_style_is_obeyed(self, draw, tmp_path):
        style = FigureStyle(width="85mm", font="DejaVu Serif", font_size=6, dpi=100, transparent=True)
        write_curves([curves()], tmp_path / "a.png", style=style, title="A title")
        with Image.open(tmp_path / "a.png") as image:
            assert abs(image.width - 335) <= 1
            assert image.convert("RGBA").getpixel((1, 1))[3] == 0
        figure = draw([curves()], style=style, title="A title")
        texts = [text for text in figure.findobj(Text) if text.get_text()]
        assert {text.get_fontfamily()[0] for text in texts} == {"DejaVu Serif"}
        assert "A title" in [text.get_text() for text in texts]
        assert {round(text.get_fontsize(), 1) for text in texts} == {5.6, 6.0, 6.8}


class TestLooks:
    """Operators have their colours in every plot; labels and titles are the user's."""

    def test_an_operator_keeps_its_colour(self, runs, tmp_path):
        seen = {}
        for names in (("fade0", "carafe0"), ("carafe0", "fade0"), ("carafe0",)):
            (figure,) = plotting.plot([runs / name for name in names], tmp_path / "a.png", what="auc").figures
            for handle in panels_of(figure)[1].legend_handles:
                seen.setdefault(names, []).append(handle.get_color())
        fade, carafe = operator_color("fade"), operator_color("carafe")
        assert list(seen.values()) == [[fade, carafe], [carafe, fade], [carafe]]

    def test_labels_title_and_no_caption(self, runs, tmp_path):
        paths = [runs / "fade0", runs / "fade1", runs / "carafe0"]
        options = ("--label", "Ours", "--label", "Theirs", "--title", "A title", "--no-caption", "--width", "column")
        for what in ("auc", "responses", "kymograph"):
            result = call("plot", *paths, "--what", what, *options, "-o", tmp_path / "b.svg")
            assert result.exit_code == 0, result.output
            (figure,) = plotting.plot(
                paths, tmp_path / "a.svg", what=what, labels=["Ours", "Theirs"], title="A title", caption=False,
                width="column",
            ).figures  # fmt: skip
            assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
            words = [text.get_text() for text in figure.findobj(Text)]
            assert {"Ours", "Theirs", "A title"} <= set(words)
            assert not any("feature; 2 images" in text or "FADE" in text for text in words)
            assert figure.get_figwidth() == pytest.approx(3.3)

    @pytest.mark.parametrize("what", ["auc", "logged"])
    def test_one_label_for_each_operator(self, runs, tmp_path, what):
        arguments = ("plot", runs / "fade0", runs / "carafe0", "--what", what, "--label", "Ours")
        result = call(*arguments, "-o", tmp_path / "a.png")
        assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])
        message = "--label Ours: 1 for 2 operators, FADE, CARAFE. Give one for each, in this order"
        assert message in result.stderr
        result = call(*arguments, "--label", "Ours", "-o", tmp_path / "a.png")
        assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])
        assert "--label Ours --label Ours: some are the same. Give each operator a label of its own" in result.stderr


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
    monkeypatch.setattr(plots, "_save", lambda figure, path, *_: spans.update({path.stem: figure.axes[0].get_ylim()}))
    values = np.array([-0.9, 0.2, np.nan, 0.8])
    for name, shift in (("low", 0.0), ("high", 0.9), ("within", 0.7)):
        curve = Curve("x", (0, 1, 10, 100), values + shift, values + shift, values + shift)
        write_curves([CurvePanel("a", "", "", [curve], (-0.3, 1.6))], tmp_path / f"{name}.png")
    assert {name: tuple(round(float(end), 6) for end in span) for name, span in spans.items()} == {
        "low": (-0.92, 1.6), "high": (-0.3, 1.72), "within": (-0.3, 1.6)
    }  # fmt: skip


def test_what_only_some_seeds_have_is_named(runs, tmp_path):
    lone = make_run(tmp_path / "lone", run_id="lone", seed=7)
    for step in lone.steps:
        maps = [Snapshot(step, LAYER, 0, kind, lone.read(step, LAYER, kind)) for kind in ("feature", "gradient")]
        SnapshotStore(lone.path, lone.run_id).write(step, maps)
    SnapshotStore(lone.path, lone.run_id).append_metrics({"step": 110, "miou": 0.5})
    result = call("analyze", runs / "fade0", lone.path)
    assert "\nnote: fade: not all of its runs have channels, gate, tests: not measured\n" in result.stdout
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

    def test_responses(self, known, tmp_path, monkeypatch):
        drawn = self.panels(monkeypatch, tmp_path, *known, "--what", "responses")
        operators = analyze(known).onsets.operators
        assert [panel.title for panel in drawn["panels"]] == ["INWARD", "OUTWARD", "START", "PLACE"]
        for panel, operator in zip(drawn["panels"], operators, strict=True):
            curves = {curve.label: curve for curve in panel.curves}
            assert list(curves) == ["outline", "interior"]
            assert panel.chance == max(operator.map.outline.chance, operator.map.interior.chance)
            for name, curve in curves.items():
                reading = getattr(operator.map, name)
                np.testing.assert_array_equal(curve.middle, reading.curve)
                np.testing.assert_array_equal(curve.low, reading.low)
                np.testing.assert_array_equal(curve.high, reading.high)
                np.testing.assert_equal(curve.mark, reading.arrival_steps[0])
                assert math.isnan(curve.mark) == (not reading.shown)

    def test_kymographs(self, known, tmp_path, monkeypatch):
        drawn = self.panels(monkeypatch, tmp_path, *known, "--what", "kymograph", "--step-axis", "linear")
        assert drawn["step_axis"] == "linear"
        assert drawn["quantity"] == "mean rank, own mask less other masks"
        assert "8 runs." in " ".join(drawn["caption"])
        operators = analyze(known).onsets.operators
        for panel, operator in zip(drawn["panels"], operators, strict=True):
            np.testing.assert_array_equal(panel.value, operator.kymograph.value)
            np.testing.assert_array_equal(panel.edges, operator.kymograph.edges)
            assert panel.row == ""
            marks = {mark.label: (mark.step, mark.low, mark.high) for mark in panel.arrivals}
            shown = {name: getattr(operator.map, name) for name in ("outline", "interior")}
            assert marks == {name: reading.arrival_steps for name, reading in shown.items() if reading.shown}
        subtitles = [panel.subtitle for panel in drawn["panels"]]
        factor = math.exp(operators[0].map.lead.value)
        assert subtitles[0] == f"outline first, {factor:.1f}× earlier"
        assert subtitles[2:] == ["outline from the start", "neither"]
        assert [mark.from_start for mark in drawn["panels"][2].arrivals] == [True, False]
        # Early in training the outline is orange and the depth is not; at the end all of the inside is.
        inward, outward = drawn["panels"][:2]
        deep, shallow = np.argmin(np.abs(inward.edges + 0.9)), np.argmin(np.abs(inward.edges + 0.15))
        assert inward.value[4, shallow] > inward.value[4, deep] + 0.1
        assert outward.value[5, deep] > outward.value[5, shallow] + 0.1

    def test_one_seed_is_said(self, known):
        made = plotting.make_plot(analyze(known[0]), "kymograph")
        assert made.kymographs[0].subtitle.endswith("; 1 seed")

    def test_no_interior_no_map(self, tmp_path):
        run = make_run(tmp_path / "r", size=(4, 4))
        with pytest.raises(FadevizError, match="no distance-time map.*fewer than two images have.*finer layer"):
            plotting.make_plot(analyze(run), "kymograph")

    def test_chance_is_a_grey_band(self, tmp_path):
        flat = np.zeros(2)
        sizes = []
        for chance in (None, 0.5):
            panel = CurvePanel("t", "", "", [Curve("x", (0, 10), flat, flat, flat)], (-1, 1), chance)
            write_curves([panel], tmp_path / "g.png")
            pixels = np.asarray(Image.open(tmp_path / "g.png").convert("RGB")).astype(int)
            sizes.append(int((np.abs(pixels - 224).max(2) < 3).sum()))
        assert sizes[1] > sizes[0] + 20_000

    @pytest.mark.parametrize(
        ("step_axis", "label"), [("log", "training step (log scale)"), ("linear", "training step")]
    )
    def test_the_step_axis_is_named(self, tmp_path, monkeypatch, step_axis, label):
        figures = []
        monkeypatch.setattr(plots, "_save", lambda figure, *_: figures.append(figure))
        write_curves([curves()], tmp_path / "a.png", step_axis=step_axis)
        assert [text.get_text() for text in figures[0].texts] == [label]

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


def test_a_spliced_run_is_named(tmp_path):
    for name in ("one", "two"):
        make_run(tmp_path / name, run_id=name)
    assert "do not look like those of a single training" not in call("analyze", tmp_path / "two").output
    foreign = "snapshots/step_000050.safetensors"
    (tmp_path / "two" / foreign).write_bytes((tmp_path / "one" / foreign).read_bytes())
    result = call("analyze", tmp_path / "two", "--json", tmp_path / "a.json")
    assert "Frames of two do not look like those of a single training" in result.output
    assert json.loads((tmp_path / "a.json").read_text())["operators"][0]["spliced"] == ["two"]
