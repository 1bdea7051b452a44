"""What tests measure, by task: all that reads a run's figures or its foreground, on mattes and on many classes."""

import base64
import csv
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from fadeviz_cli.training import progress_metrics
from PIL import Image

from fadeviz import FadevizError, open_run, plotting
from fadeviz.analysis.curves import _regions_for, operator_curves
from fadeviz.analysis.grouping import class_names, describe_inside
from fadeviz.analysis.measures import MEASURES, describe_group
from fadeviz.analysis.onsets import measure_onsets
from fadeviz.analysis.regions import build_regions
from fadeviz.analysis.result import Analysis
from fadeviz.page.notebook import render_html
from fadeviz.report import write_report
from fadeviz.report.contour import contour_path, image_uri
from fadeviz.storage import metrics as stored_metrics
from fadeviz.storage.snapshots import SnapshotStore
from fadeviz.storage.stored_run import StoredRun
from fadeviz.sweep.trial import ProgressReader, Task
from fadeviz.training.matting_metrics import METRICS
from fadeviz.training.metrics import BOUNDARY_SHARES
from render_runs import make_run
from task_runs import ERRORS, LAYER, NAMES, make_class_run, make_matting_run


@pytest.fixture(scope="module")
def mattes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mattes")
    make_matting_run(folder / "fade", run_id="fade")
    make_matting_run(folder / "carafe", run_id="carafe", upsampler="carafe", outline_first=False)
    return [folder / "fade", folder / "carafe"]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return [make_class_run(tmp_path_factory.mktemp("many") / "run").path]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two classes, as all were before there were tasks."""
    path = make_run(tmp_path_factory.mktemp("two") / "run").path
    store = SnapshotStore(path, "a1b2c3")
    store.append_metrics({"step": 50, "loss": 0.5, "test_loss": 2.0, "miou": 0.5, "iou": 0.4, "accuracy": 0.8,
                          "boundary_iou": 0.25, "boundary_iou_fine": 0.125})  # fmt: skip
    return [path]


def call(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def table(output):
    """The lines of an analysis from the heading of its table to the next empty one."""
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("operator"))
    return lines[start : lines.index("", start)]


def panels(monkeypatch, tmp_path, *arguments):
    drawn = {}
    for name in ("write_curves", "write_kymographs"):
        monkeypatch.setattr(plotting, name, lambda panels, output, **more: drawn.update(panels=panels, **more))
    call("plot", *arguments, "-o", tmp_path / "figure.png")
    return drawn | {"caption": " ".join(drawn["caption"])}


def page_data(path):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text())[1])


class TestTable:
    def test_it_has_what_the_tests_give(self):
        assert tuple(stored_metrics.TASK_METRICS["matting"].metrics) == METRICS
        assert {*stored_metrics.TASK_METRICS["segmentation"].metrics} == {"miou", *BOUNDARY_SHARES}
        assert {name for name, one in MEASURES.items() if one.group == "quality"} == set(stored_metrics.METRICS)
        for name, metric in stored_metrics.METRICS.items():
            assert (MEASURES[name].title, MEASURES[name].unit) == (metric.title, metric.unit)
            assert ("lower is better" in metric.meaning) == (name in METRICS)

    @pytest.mark.parametrize(
        ("line", "name"),
        [
            ({"step": 1, "loss": 0.5, "test_loss": 0.5, "miou": 0.5, "accuracy": 0.5}, "miou"),
            ({"step": 1, "test_loss": 0.5, **ERRORS}, "sad"),
            ({"step": 1, "miou": 0.5}, "miou"),  # what a Recorder's user logs
            ({"step": 1, "loss": 0.5, "mse": 0.5, "grad": 2.0}, None),  # everyday names in another's training
            ({"step": 1, "loss": 0.5, "lr": 0.5}, None),
            ({}, None),
        ],
    )
    def test_the_headline_says_which_line_is_a_test(self, line, name):
        assert stored_metrics.headline(line) == name

    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [("miou", 0.71249, "0.712"), ("miou", 1.0, "1.000"), ("sad", 12.3456, "12.3"), ("sad", 1234.5, "1234"),
         ("sad", 999.6, "1000"), ("mse", 0.0123456, "0.0123"), ("conn", 0.0, "0")],
    )  # fmt: skip
    def test_values_to_be_read(self, name, value, text):
        assert stored_metrics.METRICS[name].text(value) == text

    def test_a_group_says_what_its_measures_are_of(self):
        assert describe_group("quality", ["miou"]) == ("how well the network segments the test images", "")
        assert describe_group("gate", ["gate_inside"])[0].startswith("gate and kernel entropy")
        meaning, note = describe_group("quality", METRICS)
        assert meaning == "how far the network's mattes of the test images are from the true ones"
        assert "unknown" in note


class TestWhileTraining:
    @pytest.mark.parametrize(
        ("metrics", "shown"),
        [
            ({"miou": 0.5, "test_loss": 1.0}, {"mIoU": "0.500"}),
            ({"test_loss": 1.0, **ERRORS}, {"SAD": "12.3"}),
            ({}, {}),
        ],
    )
    def test_a_bar_shows_the_headline(self, metrics, shown):
        assert progress_metrics(SimpleNamespace(loss=0.25, metrics=metrics)) == {"loss": "0.250", **shown}
        assert progress_metrics(SimpleNamespace(loss=float("nan"), metrics=metrics)) == shown

    def test_a_sweep_follows_the_tests_of_a_matting_run(self, tmp_path):
        store = SnapshotStore(tmp_path, "x")
        reader = ProgressReader(Task("trial", SimpleNamespace(steps=9), tmp_path))
        store.append_metrics({"step": 1, "loss": 0.5, "lr": 0.1, "test_loss": 0.25, **ERRORS})
        store.append_metrics({"step": 2, "loss": 0.25, "lr": 0.1})
        assert reader.read() == (2, 9, 0.25, {"test_loss": 0.25, **ERRORS})


class TestMattes:
    def test_analyze(self, mattes, tmp_path):
        output = call("analyze", *mattes, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
        heading, *rows = table(output)
        assert re.search(r"earlier by +SAD +MSE  verdict$", heading)
        assert len(rows) == 2
        for row in rows:
            assert re.search(r" 12\.3  0\.0123  too few images$", row)
            assert heading.index("  verdict") == row.index("  too few images")
        assert "note: the masks come from the true mattes: inside is where alpha is at least one half" in output
        whole = json.loads((tmp_path / "a.json").read_text())
        for row in whole["operators"]:
            assert {name: row[name] for name in METRICS} == ERRORS
            assert {name: row["curves"][name]["steps"] for name in METRICS} == {name: [50, 110] for name in METRICS}
            assert not {"miou", "boundary_iou"} & {*row, *row["curves"]}
        with open(tmp_path / "a.csv") as file:
            assert [float(row["conn"]) for row in csv.DictReader(file)] == [11.25, 11.25]

    def test_plot(self, mattes, monkeypatch, tmp_path):
        drawn = panels(monkeypatch, tmp_path, *mattes, "--what", "quality")
        assert [panel.title for panel in drawn["panels"]] == ["SAD", "MSE", "Grad", "Conn"]
        assert [panel.unit for panel in drawn["panels"]] == ["sum / 1000", "mean", "sum / 1000", "sum / 1000"]
        assert all(panel.subtitle.endswith("; lower is better") for panel in drawn["panels"])
        for panel, (name, value) in zip(drawn["panels"], ERRORS.items(), strict=True):
            assert panel.title == stored_metrics.METRICS[name].title
            for curve in panel.curves:
                assert curve.steps == (50, 110)
                assert curve.middle == pytest.approx([10 * value, value])
        assert drawn["caption"].endswith("of the pixels that the trimaps leave unknown, means over the images.")
        drawn = panels(monkeypatch, tmp_path, *mattes, "--what", "kymograph")
        assert "The masks come from the true mattes: inside is where alpha is at least one half. " in drawn["caption"]

    def test_the_quality_figure_is_drawn(self, mattes, tmp_path):
        call("plot", *mattes, "--what", "quality", "-o", tmp_path / "q.png")
        assert np.asarray(Image.open(tmp_path / "q.png")).std() > 10

    def test_report(self, mattes, tmp_path):
        runs = [open_run(path) for path in mattes]
        write_report(runs, tmp_path / "r.html")
        data = page_data(tmp_path / "r.html")
        alphas = runs[0].mattes[0]
        for number, image in enumerate(data["images"]):
            assert image["matte"] == image_uri(alphas[number])
            assert image["contour"] == contour_path(alphas[number] >= 128)
            shown = Image.open(io.BytesIO(base64.b64decode(image["matte"].partition("base64,")[2])))
            assert np.abs(np.asarray(shown).astype(int) - alphas[number]).max() < 40  # of a JPEG
        (group,) = (one for one in data["groups"] if one["name"] == "quality")
        assert group["meaning"] == stored_metrics.TASK_METRICS["matting"].meaning
        assert group["note"] == stored_metrics.TASK_METRICS["matting"].note
        assert [name for name, _ in group["measures"]] == ["SAD", "MSE", "Grad", "Conn"]
        assert [panel["curves"][0]["middle"][-1] for panel in group["panels"]] == pytest.approx(
            list(ERRORS.values()), rel=1e-4
        )
        text = (tmp_path / "r.html").read_text().partition("<script")[0]
        assert "<li>The masks come from the true mattes: inside is where alpha is at least one half.</li>" in text
        for wrong in ("mIoU", "horse", "segment"):
            assert wrong not in text

    def test_notebook(self, mattes):
        run = open_run(mattes[0])
        told = render_html(run)
        assert "SAD 12.3, MSE 0.0123, Grad 7.5, Conn 11.2" in told
        shown = re.search(r'base64,([^"]+)" alt="true alpha"', told)[1]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(shown)))), run.mattes[0][0])


class TestManyClasses:
    def test_the_chosen_object_of_each_picture_is_measured(self, many):
        run = open_run(many[0])
        onsets = measure_onsets([run])
        masks = run.observation[1]
        for regions, mask, chosen in zip(onsets.regions, masks, (3, 2), strict=True):
            wanted = build_regions(mask == chosen, (24, 32))
            assert np.array_equal(regions.band, wanted.band)
            assert np.array_equal(regions.inside, wanted.inside)
            assert not np.array_equal(regions.inside, build_regions(mask, (24, 32)).inside)

    def test_so_it_is_for_parts_of_another_size(self, many):
        run = open_run(many[0])
        onsets = measure_onsets([run])
        gate = run.maps(LAYER, "gate")[:]
        inside = [gate[-1, image][one.inside].mean() for image, one in enumerate(onsets.regions)]
        curves = operator_curves(onsets, onsets.operators[0])
        assert curves["gate_inside"].values[0, -1] == pytest.approx(inside, rel=1e-5)
        coarse = build_regions(run.foregrounds[0], (12, 16))
        found = _regions_for(np.zeros((1, 2, 12, 16), np.float32), run, onsets)
        assert np.array_equal(found[0].inside, coarse.inside)

    def test_runs_with_other_objects_are_not_compared(self, many, tmp_path):
        other = make_class_run(tmp_path / "other", run_id="other", upsampler="carafe", chosen=[3, 3])
        with pytest.raises(FadevizError, match="observed different images"):
            measure_onsets([open_run(many[0]), other])

    def test_analyze(self, many, tmp_path):
        output = call("analyze", *many, "--json", tmp_path / "a.json")
        heading, row = table(output)
        assert re.search(r"earlier by +mIoU  verdict$", heading)
        assert row.endswith("  0.250  too few images")
        note = (
            "note: the masks show one class of each image (horse; bed): inside is that class, outside everything else"
        )
        assert note in output
        (row,) = json.loads((tmp_path / "a.json").read_text())["operators"]
        assert (row["miou"], row["boundary_iou"]) == (0.25, None)
        assert not {"boundary_iou", "boundary_iou_fine", "sad"} & {*row["curves"]}

    def test_plot(self, many, monkeypatch, tmp_path):
        drawn = panels(monkeypatch, tmp_path, *many, "--what", "quality")
        assert [panel.title for panel in drawn["panels"]] == ["mIoU"]
        for kind in ("responses", "gate", "classes", "auc"):
            drawn = panels(monkeypatch, tmp_path, *many, "--what", kind)
            assert "(horse; bed): inside is that class" in drawn["caption"]

    def test_report(self, many, tmp_path):
        run = open_run(many[0])
        write_report([run], tmp_path / "r.html")
        data = page_data(tmp_path / "r.html")
        assert [one["contour"] for one in data["images"]] == [
            contour_path(run.observation[1][0] == 3),
            contour_path(run.observation[1][1] == 2),
        ]
        assert all("matte" not in one for one in data["images"])
        assert "(horse; bed): inside is that class" in (tmp_path / "r.html").read_text()

    def test_notebook(self, many):
        told = render_html(open_run(many[0]))
        assert "loss 0.3, mIoU 0.25" in told
        assert 'alt="true mask"' in told

    @pytest.mark.parametrize("names", [NAMES[:3], None, {"3": "horse"}])
    def test_classes_without_a_name_have_their_number(self, tmp_path, names):
        run = make_class_run(tmp_path / "run", names=names)
        assert class_names(run) == ["class 3", "bed" if names == NAMES[:3] else "class 2"]


class TestTwoClasses:
    """As it was before there were other tasks."""

    def test_tables_have_both_figures(self, two, tmp_path):
        output = call("analyze", *two, "--json", tmp_path / "a.json")
        heading, row = table(output)
        assert heading.endswith("  outline earlier by   mIoU   BIoU  verdict")
        assert row.endswith("  0.500  0.250  too few images")
        assert "note: the masks" not in output
        (row,) = json.loads((tmp_path / "a.json").read_text())["operators"]
        assert [name for name in row if name in stored_metrics.METRICS] == ["miou", "boundary_iou"]
        assert [name for name in row["curves"] if name in stored_metrics.METRICS] == [
            *stored_metrics.TASK_METRICS["segmentation"].metrics
        ]

    def test_what_was_not_tested_has_no_column(self, tmp_path):
        heading, row = table(call("analyze", make_run(tmp_path / "run").path))
        assert heading.endswith("  outline earlier by  verdict")
        assert row.endswith("  too few images")

    def test_figures_and_reports_say_nothing_more(self, two, monkeypatch, tmp_path):
        assert describe_inside(StoredRun(two[0])) == ""
        drawn = panels(monkeypatch, tmp_path, *two, "--what", "quality")
        assert drawn["caption"].startswith("Lines: median over runs; bands: its 95 % interval over seeds. The whole")
        assert "masks" not in panels(monkeypatch, tmp_path, *two, "--what", "kymograph")["caption"]
        write_report([StoredRun(two[0])], tmp_path / "r.html")
        data = page_data(tmp_path / "r.html")
        assert [set(one) for one in data["images"]] == [{"name", "image", "contour", "size"}] * 2
        (group,) = (one for one in data["groups"] if one["name"] == "quality")
        assert (group["meaning"], group["note"]) == ("how well the network segments the test images", "")

    def test_all_but_zero_is_inside(self, two):
        run = StoredRun(two[0])
        wanted = build_regions(run.observation[1][0], (24, 32))
        assert np.array_equal(measure_onsets([run]).regions[0].distance, wanted.distance)


def test_figures_of_two_tasks_stand_side_by_side(tmp_path):
    run = make_matting_run(tmp_path / "run")
    SnapshotStore(run.path, run.run_id).append_metrics({"step": 110, "miou": 0.5})
    onsets = measure_onsets([run])
    (row,) = Analysis(onsets).table
    assert (row["miou"], row["boundary_iou"], row["sad"]) == (0.5, None, ERRORS["sad"])
    assert re.search(r"mIoU +SAD +MSE  verdict$", table(call("analyze", run.path))[0])
