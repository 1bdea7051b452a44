"""What a training says of itself: its config, and the numbers that it logs, in info, plots and reports."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fadeviz_cli.main import main
from torch import nn

import fadeviz
from fadeviz import FadevizError, Recorder, RecorderWarning
from fadeviz.analysis.logged import MOST_NAMES, MOST_POINTS, describe_gaps, explain_logged, logged_curves
from fadeviz.plotting import make_plot
from fadeviz.storage.stored_run import StoredRun
from render_runs import make_run

ODD = "val/miou $x^2$ </script><b>"
"""A name that is markup for matplotlib and for HTML."""

BATCH = (torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 8, dtype=torch.long))


def record(out, config=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    return Recorder(model, "0", "1:9", out, batch=BATCH, config=config, **options)


def logged_run(path, lines, **options):
    run = make_run(path, **options)
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return StoredRun(run.path)


CONFIG = {
    "lr": np.float32(0.5),
    "batch_size": torch.tensor(8),
    "betas": (0.9, 0.999),
    "optimizer": {"name": "SGD", "nesterov": False, "dampening": None},
}


ENDLESS = {"lr": 1}
ENDLESS["self"] = ENDLESS


class TestConfig:
    def test_it_is_stored_shown_and_no_settings_of_ours(self, tmp_path):
        record(tmp_path / "run", CONFIG, seed=3).close()
        run = fadeviz.open_run(tmp_path / "run")
        assert run.info.settings == {
            "lr": 0.5, "batch_size": 8, "betas": [0.9, 0.999],
            "optimizer": {"name": "SGD", "nesterov": False, "dampening": None},
        }  # fmt: skip
        assert dict(run.info.config) == {"seed": 3}
        shown = CliRunner().invoke(main, ["info", str(tmp_path / "run")]).output
        assert (
            "config       lr 0.5, batch_size 8, betas [0.9, 0.999], optimizer.name SGD, optimizer.nesterov false, "
            "optimizer.dampening null\n"
        ) in shown
        assert fadeviz.check_run(run) == []

    def test_none_is_stored_as_before(self, tmp_path):
        record(tmp_path / "run").close()
        record(tmp_path / "empty", {}).close()
        for name in ("run", "empty"):
            assert "settings" not in json.loads((tmp_path / name / "run.json").read_text())

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ([1], r"config is a list: a dict is needed, such as vars\(arguments\)"),
            ({1: 2}, "config has the key 1, a int: strings are needed"),
            ({"out": Path("a")}, r"config\['out'\] is PosixPath\('a'\), a PosixPath, which JSON cannot hold"),
            ({"a": {"b": [1, {2}]}}, r"config\['a'\]\['b'\]\[1\] is \{2\}, a set, which JSON cannot hold"),
            ({"lr": float("nan")}, r"config\['lr'\] is nan, which JSON cannot hold"),
            ({"w": torch.ones(2)}, r"config\['w'\] is tensor\(\[1., 1.\]\), a Tensor"),
            (ENDLESS, "config is nested too deeply, or contains itself"),
            ({"a\nb": object}, r"config\['a\\nb'\] is <class 'object'>, a type"),
        ],
    )
    def test_what_json_cannot_hold(self, tmp_path, config, message):
        with pytest.raises(FadevizError, match=message) as caught:
            record(tmp_path / "run", config)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()

    def test_a_resumed_training_with_another_is_noted(self, tmp_path):
        first = record(tmp_path / "run", {"lr": 0.1, "old": 1})
        first.step(1)
        first.close()
        with pytest.warns(
            RecorderWarning, match="another config: lr was 0.1, is 0.01; old was 1, is not given; new was"
        ):
            record(tmp_path / "run", {"lr": 0.01, "new": 2}, resume=True, start=1).close()
        info = fadeviz.open_run(tmp_path / "run").info
        assert info.settings == {"lr": 0.01, "new": 2}
        assert info.notes[-1].startswith("resumed after step 1 with another config: lr was 0.1")
        record(tmp_path / "run", resume=True, start=1).close()  # without one, it stays, and nothing is noted
        assert fadeviz.open_run(tmp_path / "run").info == info

    def test_runs_that_differ(self, tmp_path):
        runs = []
        for seed, lr in ((0, 0.1), (1, 0.2)):
            run = make_run(tmp_path / f"run{seed}", upsampler="mine", seed=seed)
            stored = json.loads((run.path / "run.json").read_text())
            stored["settings"] = {"lr": lr, "batch": 4, "seed": seed}
            del stored["crc32"]
            (run.path / "run.json").write_text(json.dumps(stored))
            runs.append(StoredRun(run.path))
        notes = fadeviz.analyze(runs).notes
        assert "the runs of mine are measured together, though their config differs: lr" in notes
        fadeviz.write_report(runs, tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text()
        assert '<tr><th scope="row">config: lr</th><td>0.1</td><td>0.2</td></tr>' in text
        assert "<dt>config: batch</dt><dd>4</dd>" in text


class TestCurves:
    def test_values_gaps_and_runs(self, tmp_path):
        nan, inf = float("nan"), float("inf")
        first = [{"step": s, "loss": v, "note": "text", "flag": True} for s, v in enumerate((4, nan, 2, inf, 1))]
        second = [{"step": s, "loss": v} for s, v in ((0, 6), (2, 4), (4, 3), (4, 2))]
        runs = [logged_run(tmp_path / "a", first), logged_run(tmp_path / "b", second, seed=1)]
        curves = logged_curves(runs)
        assert set(curves) == {"loss"}
        curve = curves["loss"]
        assert curve.steps == (0, 1, 2, 3, 4)
        np.testing.assert_array_equal(curve.middle, [5, nan, 3, nan, 1.5])
        np.testing.assert_array_equal(curve.low, [4, nan, 2, nan, 1])
        np.testing.assert_array_equal(curve.high, [6, nan, 4, nan, 2])
        assert (curve.count, curve.broken) == (8, (1, 3))
        assert (
            describe_gaps("loss of A", curve)
            == "loss of A is NaN or infinite at 2 steps, the first 1: a gap in its curve"
        )
        assert explain_logged([curves]).endswith("Gaps: NaN or infinite.")

    def test_many_steps_are_means_with_their_range(self, tmp_path):
        count = 3 * MOST_POINTS
        lines = [{"step": s, "loss": float(s % 3)} for s in range(count)]
        curve = logged_curves([logged_run(tmp_path / "a", lines)])["loss"]
        assert len(curve.steps) == MOST_POINTS
        assert curve.steps[:2] == (1, 4)
        for values, expected in ((curve.middle, 1), (curve.low, 0), (curve.high, 2)):
            np.testing.assert_array_equal(values, expected)
        assert "up to 3 steps that a point is the mean of" in explain_logged([{"loss": curve}])

    def test_a_training_of_ours_is_drawn_too(self, tmp_path):
        lines = [{"step": s, "loss": 1 / (s + 1), "lr": 0.1, "miou": 0.5} for s in range(5)]
        runs = [logged_run(tmp_path / name, lines, upsampler=name) for name in ("fade", "carafe")]
        plot = make_plot(fadeviz.analyze(runs), "logged")
        assert [panel.title for panel in plot.curves] == ["loss", "lr", "mIoU"]
        assert [curve.label for curve in plot.curves[0].curves] == ["FADE", "CARAFE"]


LINES = [{"step": s, ODD: s / 4, "grad": float("nan") if s == 2 else 1.0} for s in range(5)]


class TestDrawn:
    def test_names_are_text(self, tmp_path):
        run = logged_run(tmp_path / "a", LINES)
        file = tmp_path / "logged.svg"
        result = CliRunner().invoke(main, ["plot", str(run.path), "--what", "logged", "-o", str(file)])
        assert result.exit_code == 0, result.output
        assert "note: grad of FADE is NaN or infinite at step 2: a gap in its curve" in result.output
        assert "</script>" not in file.read_text()
        assert make_plot(fadeviz.analyze(run), "logged").curves[0].title == ODD

    def test_a_point_between_gaps_is_visible(self, tmp_path):
        from matplotlib.axes import Axes

        nan = float("nan")
        drawn = []
        with pytest.MonkeyPatch.context() as patch:
            plot = Axes.plot
            patch.setattr(Axes, "plot", lambda self, *a, **k: drawn.append((a, k)) or plot(self, *a, **k))
            run = logged_run(tmp_path / "a", [{"step": s, "v": v} for s, v in enumerate((*[1] * 15, nan, 4, nan))])
            fadeviz.plot(run, tmp_path / "logged.png", what="logged")
        ((_, values), _) = next(call for call in drawn if call[1].get("marker"))
        assert list(values) == [4]

    def test_without_maps_to_measure(self, tmp_path):
        """Nothing but metrics.jsonl is read: a run without any mask has curves."""
        recorder = record(tmp_path / "run")
        recorder.log(1, loss=2.0)
        recorder.log(2, loss=1.0)
        recorder.close()
        assert fadeviz.plot(tmp_path / "run", tmp_path / "logged.svg", what="logged").notes == ()

    def test_many_names_and_none(self, tmp_path):
        lines = [{"step": s, **{f"value {i}": i for i in range(MOST_NAMES + 2)}} for s in range(2)]
        run = logged_run(tmp_path / "a", lines)
        plot = make_plot(fadeviz.analyze(run), "logged")
        assert len(plot.curves) == MOST_NAMES
        assert plot.notes == ("24 of 26 logged names are drawn, without value 24, value 25",)
        with pytest.raises(FadevizError, match="none of the runs logged a finite number: .* recorder.log"):
            fadeviz.plot(logged_run(tmp_path / "b", [{"step": 1, "loss": float("inf")}]), "x.png", what="logged")

    def test_in_the_report(self, tmp_path):
        run = logged_run(tmp_path / "a", [{**line, "miou": 0.5} for line in LINES])
        fadeviz.write_report(run, tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text()
        data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])
        group = data["groups"][-1]
        assert group["name"] == "logged"
        assert [panel["title"] for panel in group["panels"]] == [ODD, "grad"]  # mIoU is among the tests
        assert group["panels"][1]["curves"][0]["middle"] == [1, 1, None, 1, 1]
        assert group["measures"] == [["grad", "FADE is NaN or infinite at step 2: a gap in its curve"]]
        assert ODD not in text
