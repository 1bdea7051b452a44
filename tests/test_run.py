"""Runs from Python: a run draws and measures itself, and what the functions write is what the commands write."""

import io

import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from PIL import Image

import fadeviz
from fadeviz import FadevizError
from render_runs import LAYER, STEPS, make_run


@pytest.fixture
def run(tmp_path):
    return fadeviz.open_run(make_run(tmp_path / "fade").path)


class TestAnimate:
    def test_it_is_the_command_lines_animation(self, run, tmp_path):
        animation = run.animate(kind="gradient", steps=(0, 50), duration_ms=200)
        options = ["--kind", "gradient", "--steps", "0,50", "--duration", "200"]
        file = tmp_path / "a.png"
        assert CliRunner().invoke(main, ["animate", str(run.path), "-o", str(file), *options]).exit_code == 0
        assert animation.data == file.read_bytes() == animation._repr_png_()
        with Image.open(io.BytesIO(animation.data)) as image:
            assert (image.n_frames, image.info["duration"]) == (2, 200)

    def test_beside_another(self, run, tmp_path):
        other = fadeviz.open_run(make_run(tmp_path / "carafe", upsampler="carafe", run_id="b").path)
        with Image.open(io.BytesIO(run.animate(other).data)) as both, Image.open(io.BytesIO(run.animate().data)) as one:
            assert both.width > one.width

    def test_its_notes(self, tmp_path):
        run = fadeviz.open_run(make_run(tmp_path / "fade", calls=2).path)
        assert any("also recorded: call 0" in note for note in run.animate(call=1).notes)

    def test_a_wrong_option(self, run):
        with pytest.raises(FadevizError, match="no kind 'gradients'"):
            run.animate(kind="gradients")
        with pytest.raises(TypeError):
            run.animate(how_many=3)


class TestFunctions:
    def test_a_run_or_its_path_or_several(self, run, tmp_path):
        files = [tmp_path / name for name in ("run.png", "path.png", "text.png", "list.png")]
        for file, runs in zip(files, (run, run.path, str(run.path), [run.path]), strict=True):
            fadeviz.grid(runs, file, kind="gradient", scale=2)
        assert len({file.read_bytes() for file in files}) == 1

    def test_they_write_what_the_commands_write(self, run, tmp_path):
        fadeviz.grid(run, tmp_path / "a.png", columns=3, percentiles=(1, 99), normalize="run", colormap="viridis")
        options = ["--columns", "3", "--percentiles", "1,99", "--normalize", "run", "--colormap", "viridis"]
        CliRunner().invoke(main, ["grid", str(run.path), "-o", str(tmp_path / "b.png"), *options])
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        fadeviz.animate([run], tmp_path / "a.gif", steps=[0, 10])
        CliRunner().invoke(main, ["animate", str(run.path), "-o", str(tmp_path / "b.gif"), "--steps", "0,10"])
        assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()

    def test_an_analysis_of_a_run_is_the_commands(self, run):
        said = CliRunner().invoke(main, ["analyze", str(run.path)]).output
        assert said == f"{run.analyze()}\n"
        assert said == f"{fadeviz.analyze(run)}\n"


class TestSummary:
    def test_it_is_what_info_prints(self, run):
        result = CliRunner().invoke(main, ["info", str(run.path)])
        assert result.output == f"{run.summary()}\n"

    def test_its_facts(self, run):
        summary = run.summary()
        assert summary.steps == STEPS
        assert [(layer.name, layer.kinds[0], dict(layer.calls)) for layer in summary.layers] == [
            (LAYER, "feature", {0: (24, 32)})
        ]
        assert summary.facts["status"] == "finished"
        assert summary.broken == {}

    def test_damage(self, run):
        (run.path / "snapshots" / "step_000010.safetensors").write_bytes(b"")
        summary = fadeviz.open_run(run.path).summary()
        assert list(summary.broken) == ["step_000010.safetensors"]
        assert str(summary).splitlines()[-1].startswith("broken       step_000010.safetensors: ")


class TestList:
    @pytest.fixture
    def folder(self, tmp_path):
        for name in ("sweep/fade-seed1", "sweep/fade-seed0", "single", ".hidden"):
            make_run(tmp_path / name, run_id=name.replace("/", ""))
        (tmp_path / "empty").mkdir()
        return tmp_path

    def test_runs_of_a_folder(self, folder):
        runs = fadeviz.list_runs(folder)
        assert [run.path for run in runs] == [
            folder / "single", folder / "sweep" / "fade-seed0", folder / "sweep" / "fade-seed1",
        ]  # fmt: skip
        assert all(isinstance(run, fadeviz.Run) for run in runs)
        assert [run.path for run in fadeviz.list_runs(folder / "single")] == [folder / "single"]
        assert fadeviz.list_runs(folder / "empty") == []

    def test_one_that_is_damaged(self, folder):
        (folder / "single" / "run.json").write_text("{")
        with pytest.raises(FadevizError, match="single"):
            fadeviz.list_runs(folder)
        errors = []
        assert len(fadeviz.list_runs(folder, on_error=errors.append)) == 2
        assert len(errors) == 1

    def test_where_nothing_can_be_listed(self, folder):
        with pytest.raises(FadevizError, match="no folder .*nothing"):
            fadeviz.list_runs(folder / "nothing")
        with pytest.raises(FadevizError, match="is an address"):
            fadeviz.list_runs("s3://bucket/runs")
