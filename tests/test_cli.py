"""The command line: help, the happy path, and one clear line with the right exit code for every mistake."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import click
import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main

from fadeviz import open_run
from fadeviz.data.synthetic import dataset as synthetic
from fadeviz.demo import demo_config
from fadeviz.experiment import RunConfig
from fadeviz.experiment.session import Session
from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from fadeviz.upsamplers import UPSAMPLERS
from render_runs import make_run

RECORD = ["record", "--size", "64", "--width", "0.125", "--steps", "3", "--snapshots", "1:3:1", "--observe", "4"]


def call(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def fails(code, message, *args):
    """The command fails with this code and one line that fits."""
    result = call(*args)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert re.search(message, last), last
    if code == 1:
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr


@pytest.fixture(autouse=True)
def _few_test_drawings(monkeypatch):
    monkeypatch.setattr(synthetic, "TEST_DRAWINGS", 8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two recorded runs, made by the command line itself."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "TEST_DRAWINGS", 8)
        for name in ("fade", "carafe"):
            result = call(*RECORD, "--upsampler", name, "--out", folder / name)
            assert result.exit_code == 0, result.output
    return folder


def commands(group=main, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("path", "command"), [pytest.param(p, c, id=" ".join(p)) for p, c in commands()])
def test_every_command_and_option_has_help(path, command):
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
    result = call(*path, "--help")
    assert result.exit_code == 0
    assert f"Usage: main {' '.join(path)}" in result.output


def test_defaults_are_the_librarys():
    command = main.commands["record"]
    with click.Context(command) as context:
        defaults = {p.name: p.get_default(context) for p in command.params}
    fields = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    shared = [name for name in defaults if name in fields]
    assert len(shared) > 20
    for name in shared:
        assert defaults[name] == fields[name], name


def test_help_answers_without_torch():
    code = (
        "import sys; from fadeviz_cli.main import main\n"
        "main(['--help'], standalone_mode=False); print('torch' in sys.modules)"
    )
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"
    assert time.perf_counter() - start < 20  # a hang, not a speed: the speed is in the README


class TestRecord:
    def test_happy_path(self, runs):
        run = open_run(runs / "fade")
        assert run.steps == (0, 1, 2, 3)
        assert run.info.status == "finished"
        assert run.info.config["upsampler"] == "fade"
        assert "gate" in run.layers["decoder.3.upsample"]

    def test_resume_needs_no_other_option(self, runs):
        result = call("record", "--resume", "--out", runs / "fade")
        assert result.exit_code == 0, result.output
        assert "4 snapshots" in result.output

    def test_resume_and_overwrite(self, runs):
        fails(2, "choose one", "record", "--resume", "--overwrite", "--out", runs / "fade")

    def test_resume_with_another_option(self, runs):
        fails(1, "lr was 0.01, is 0.5", "record", "--resume", "--lr", "0.5", "--out", runs / "fade")

    def test_ctrl_c_says_how_to_go_on(self, tmp_path, monkeypatch):
        def stop(self, progress, title=""):
            raise KeyboardInterrupt

        monkeypatch.setattr("fadeviz_cli.record.Bars.show", stop)
        result = call(*RECORD, "--out", tmp_path / "run")
        assert result.exit_code == 130
        resume = f"fadeviz record --resume --out {tmp_path / 'run'}"
        assert result.stderr.splitlines() == [f"interrupted at step 1 of 3; {resume} continues at step 2"]
        assert open_run(tmp_path / "run").info.status == "interrupted"

    @pytest.mark.parametrize(
        ("code", "message", "args"),
        [
            (1, "no upsampler 'fad'. Nearest: 'fade'", ["--upsampler", "fad"]),
            (1, "no option of carafe 'groop'", ["--upsampler", "carafe:groop=2"]),
            (1, "'icnr' is not an option. Write pixel_shuffle:option=value", ["--upsampler", "pixel_shuffle:icnr"]),
            (1, "no network 'segnett'", ["--network", "segnett"]),
            (1, "no layer in SegNet 'decoder.9.upsample'", ["--layers", "decoder.9.upsample"]),
            (1, "no kind 'gradients'. Nearest: 'gradient'", ["--kinds", "gradients"]),
            (1, "there is no gate to record", ["--upsampler", "nearest", "--kinds", "gate"]),
            (1, "reaches step 9, but the run ends at step 3", ["--snapshots", "1:9:2"]),
            (1, "runs backwards. Write 1:3:1", ["--snapshots", "3:1:1"]),
            (1, "'x' is not a whole number", ["--snapshots", "x"]),
            (1, "schedule is empty", ["--snapshots", " "]),
            (1, "divisible by 32. Nearest: 96", ["--size", "100"]),
            (1, "width is -1.0", ["--width", "-1"]),
            (1, "no data set 'horses'", ["--data", "horses"]),
            (1, "--data-dir DIR", ["--data", "weizmann"]),
            (1, "no weights file nothing.pth", ["--weights", "nothing.pth"]),
            (1, "no precision 'fp12'", ["--precision", "fp12"]),
            (1, "no kind of labels 'none'", ["--labels", "none"]),
            (1, "no device 'tpu'", ["--device", "tpu"]),
            (1, "80 images to observe, but only 8 test images. Use --observe 8 or fewer", ["--observe", "80"]),
            (2, "not a valid integer", ["--steps", "many"]),
            (2, "No such option", ["--stepz", "3"]),
        ],
    )
    def test_mistakes(self, tmp_path, code, message, args):
        fails(code, message, *RECORD, *args, "--out", tmp_path / "run")
        assert not (tmp_path / "run" / "run.json").exists()

    def test_folder_in_use(self, runs):
        fails(1, "holds a run already", *RECORD, "--out", runs / "fade")

    def test_no_write_permission_is_said(self, tmp_path, monkeypatch):
        def denied(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("pathlib.Path.mkdir", denied)
        fails(1, "cannot write .*Permission denied. Choose another folder", *RECORD, "--out", tmp_path / "run")


class TestPictures:
    @pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
    def test_grid(self, runs, tmp_path, ending):
        result = call("grid", runs / "fade", runs / "carafe", "-o", tmp_path / f"g.{ending}")
        assert result.exit_code == 0, result.output
        start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[ending]
        assert (tmp_path / f"g.{ending}").read_bytes().startswith(start)

    def test_animate(self, runs, tmp_path):
        options = ["--kind", "gradient", "--colormap", "magma", "--normalize", "shared", "--percentiles", "1,99"]
        both = (runs / "fade", runs / "carafe")
        result = call("animate", *both, "-o", tmp_path / "a.gif", "--duration", "200", *options)
        assert result.exit_code == 0, result.output
        assert (tmp_path / "a.gif").read_bytes().startswith(b"GIF89a")

    def test_steps_are_chosen(self, runs, tmp_path):
        call("grid", runs / "fade", "-o", tmp_path / "all.png")
        call("grid", runs / "fade", "-o", tmp_path / "two.png", "--steps", "1,3")
        assert (tmp_path / "two.png").read_bytes() != (tmp_path / "all.png").read_bytes()
        fails(
            1, "has no snapshot of step 20. List them", "grid", runs / "fade", "-o", tmp_path / "x.png", "--steps", "20"
        )

    @pytest.mark.parametrize(
        ("code", "message", "args"),
        [
            (1, "no layer in .* 'decoder.3'", ["--layer", "decoder.3"]),
            (1, "no kind 'gradients'", ["--kind", "gradients"]),
            (1, "no 'channels' maps", ["--kind", "channels"]),
            (1, "no image 9", ["--image", "9"]),
            (1, "virdis.*Nearest: 'viridis'", ["--colormap", "virdis"]),
            (1, "no normalisation scope 'frames'. Nearest: 'frame'", ["--normalize", "frames"]),
            (1, "'feature' maps have no channels", ["--channel", "3"]),
            (1, "must be at least 1", ["--channels", "0"]),
            (1, "scale 0", ["--scale", "0"]),
            (1, "pixels, more than .* Use a smaller --scale", ["--scale", "3000"]),
            (1, "percentiles 99 and 1", ["--percentiles", "99,1"]),
            (2, "two numbers LOW,HIGH", ["--percentiles", "1-99"]),
            (1, "cannot be written as .jpg", ["-o", "x.jpg"]),
        ],
    )
    @pytest.mark.parametrize("command", ["grid", "animate"])
    def test_mistakes(self, runs, tmp_path, command, code, message, args):
        target = tmp_path / "image.gif" if command == "animate" else tmp_path / "image.png"
        target.write_bytes(b"old")
        fails(code, message, command, runs / "fade", "-o", target, *args)
        assert target.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == [target.name]

    def test_duration(self, runs, tmp_path):
        start = ["animate", runs / "fade", "-o", tmp_path / "a.gif", "--duration"]
        fails(1, "duration 125 ms: .* Use 120 or 130", *start, 125)
        fails(1, "duration 0 ms: .* Use 20 or more", *start, 0)
        fails(1, "lasts at most 655350 ms", *start, 1_000_000)
        fails(2, "not a valid integer", *start, "12.5")

    @pytest.mark.parametrize("command", ["grid", "animate"])
    def test_another_call(self, tmp_path, command):
        run, out = make_run(tmp_path / "run", calls=2), tmp_path / {"grid": "a.png", "animate": "a.gif"}[command]
        result = call(command, run.path, "-o", out, "--call", 1)
        note = "note: decoder.3.upsample: call 1 is shown; also recorded: call 0 (24x32). Choose with --call\n"
        assert (result.exit_code, result.stderr) == (0, note)
        fails(1, "no call 2 of 'decoder.3.upsample' .* Recorded: 0, 1", command, run.path, "-o", out, "--call", 2)

    @pytest.mark.parametrize("command", ["grid", "animate", "plot", "report", "compare", "export --to npz", "predict"])
    def test_what_is_no_text_does_not_go_to_standard_output(self, tmp_path, monkeypatch, command):
        monkeypatch.chdir(tmp_path)
        picture = ["x.png"] if command == "predict" else []
        fails(
            2, "standard output is not supported here. Give a file name", *command.split(), "run", *picture, "-o", "-"
        )
        assert not list(tmp_path.iterdir())

    def test_no_run(self, tmp_path):
        fails(1, "no run folder .*nothing", "grid", tmp_path / "nothing", "-o", tmp_path / "a.png")
        (tmp_path / "empty").mkdir()
        fails(1, "is not a run: it has no run.json", "grid", tmp_path / "empty", "-o", tmp_path / "a.png")
        fails(2, "Missing argument 'RUN...'", "grid", "-o", tmp_path / "a.png")

    def test_run_of_a_newer_format(self, tmp_path):
        run = make_run(tmp_path / "run")
        info = json.loads((run.path / "run.json").read_text())
        (run.path / "run.json").write_text(json.dumps({**info, "format": 99}))
        fails(1, "has format 99, .* Upgrade", "grid", run.path, "-o", tmp_path / "a.png")

    def test_incomplete_run(self, tmp_path):
        run = make_run(tmp_path / "run")
        for file in (run.path / "snapshots").iterdir():
            file.write_bytes(file.read_bytes()[:100])
        fails(1, "has no whole snapshot", "grid", run.path, "-o", tmp_path / "a.png")

    def test_different_observation(self, runs, tmp_path):
        other = make_run(tmp_path / "other")
        fails(1, "observed different images as image 0", "grid", runs / "fade", other.path, "-o", tmp_path / "a.png")


class TestLookingUp:
    def test_upsamplers(self):
        rows = {row["name"]: row for row in json.loads(call("upsamplers", "--json").output)}
        assert rows["carafe"]["segnet"] == {"parameters": 383_028, "multiply_adds": 1_213_418_752}
        assert rows["carafe"]["year"] == 2019
        assert rows["nearest"]["year"] is None
        table = call("upsamplers").output
        (line,) = (line for line in table.splitlines() if line.startswith("fade "))
        assert re.sub(" +", " ", line) == "fade encoder 262,338 1,859.6 285,084 2,653.2 Lu et al., ECCV 2022"
        assert max(map(len, table.splitlines())) <= 120
        assert rows["carafe"]["matting"]["parameters"] == 263_824
        table = call("upsamplers", "--network", "matting").output
        (line,) = (line for line in table.splitlines() if line.startswith("fade "))
        assert re.sub(" +", " ", line) == "fade encoder 124,008 8,853.5 Lu et al., ECCV 2022"
        fails(1, "no network 'matte'. Nearest: 'matting'", "upsamplers", "--network", "matte")

    def test_upsamplers_with_options(self):
        output = call("upsamplers", "indexnet:kind=m2o", "fade:gate=off").output
        assert "9,764,864" in output
        assert "carafe" not in output
        fails(1, "no option of fade 'gates'", "upsamplers", "fade:gates=off")
        fails(1, "no upsampler 'fad'", "upsamplers", "fad")

    def test_upsamplers_without_docstrings(self, monkeypatch):
        """As ``python -OO`` leaves them."""
        monkeypatch.setattr(UPSAMPLERS["fade"].build, "__doc__", None)
        assert "fade" in call("upsamplers").output

    def test_layers(self):
        output = call("layers", "segnet", "--upsampler", "carafe").output
        assert re.search(r"decoder.3.upsample +CARAFE +128 at 1/2 +recorded, figures show this one\n", output)
        assert re.search(r"decoder.4.upsample +CARAFE +64 at 1/1 +recorded\n", output)
        assert re.search(r"decoder.4.upsample.kernels +KernelSoftmax +25 at 1/1\n", output)
        fails(1, "no network 'segnt'. Nearest: 'segnet'", "layers", "segnt")

    def test_info(self, runs):
        output = call("info", runs / "carafe").output
        assert "status       finished" in output
        assert "4: 0, 1, 2, 3" in output
        assert re.search(r"decoder.3.upsample +\d+x\d+ +feature, gradient, readout, kernel_entropy", output)
        assert re.search(r"result .*miou 0\.\d{4}", output)

    def test_info_of_a_run_that_says_little_of_itself(self, tmp_path):
        run = make_run(tmp_path / "run")
        for key in ("config", "network", "parameters", "observation"):
            info = json.loads((run.path / "run.json").read_text())
            info.pop(key, None)
            (run.path / "run.json").write_text(json.dumps(info))
            assert call("info", run.path).exit_code == 0, key

    def test_info_says_which_calls_there_are(self, tmp_path):
        output = call("info", make_run(tmp_path / "run", calls=3).path).output
        assert "gate; calls 0 (24x32), 1 (12x16), 2 (6x8): choose with --call\n" in output
        assert "--call" not in call("info", make_run(tmp_path / "once").path).output

    @pytest.mark.parametrize("lengths", [(28, 29, 31), (5, 40), (300, 8)])
    def test_columns_of_info_never_touch(self, tmp_path, lengths):
        run = make_run(tmp_path / "run")
        names = ["n" * length for length in lengths]
        for step in run.steps:
            maps = [Snapshot(step, name, 0, "feature", np.ones((2, 4, 4), np.float32)) for name in names]
            SnapshotStore(run.path, run.run_id).write(step, maps)
        lines = [line for line in call("info", run.path).output.splitlines() if line.startswith("  ")]
        assert sorted(re.fullmatch(r"  (n+)  +4x4  +feature", line)[1] for line in lines) == sorted(names)
        if max(lengths) < 60:
            assert len({line.index("feature") for line in lines}) == 1

    def test_info_of_a_run_without_a_network(self, tmp_path):
        run = make_run(tmp_path / "run")
        info = json.loads((run.path / "run.json").read_text())
        SnapshotStore(run.path, run.run_id).write_info(
            RunInfo.from_dict({k: v for k, v in info.items() if k != "network"})
        )
        assert call("info", run.path).output.startswith(f"{run.path}: fade, run a1b2c3\n")

    def test_info_names_what_is_broken(self, tmp_path):
        run = make_run(tmp_path / "run")
        file = sorted((run.path / "snapshots").iterdir())[1]
        file.write_bytes(b"")
        (run.path / "observation.safetensors").write_bytes(b"cut")
        said = call("info", run.path).stderr
        assert file.name in said
        assert "observation.safetensors" in said


class TestData:
    def test_check_of_no_folder(self, tmp_path):
        fails(1, "nothing", "data", "check", tmp_path / "nothing")

    def test_get_of_a_dead_address(self, tmp_path):
        fails(
            1, "127.0.0.1:9", "data", "get", tmp_path / "d", "--url", "http://127.0.0.1:9/a.zip", "--sha256", "0" * 64
        )
        assert not (tmp_path / "d").exists()

    def test_check_of_the_real_set(self, shared):
        folder = shared / "data" / "weizmann_horse_db"
        if not folder.is_dir():
            pytest.skip(f"needs {folder}")
        output = call("data", "check", folder).output
        assert "weizmann, images: 328, to train on 279, to test on 49" in output
        assert "horse318" in output


def test_ctrl_c_of_any_command(monkeypatch, tmp_path):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("fadeviz.open_run", stop)
    result = call("info", make_run(tmp_path / "run"))
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_a_demo_goes_on(tmp_path, monkeypatch):
    out, real, trained = tmp_path / "a demo", Session.on_step_end, []

    def after(work, result):
        real(work, result)
        trained.append((f"{work.parts.config.network}-{work.parts.config.upsampler}", result.step))
        if trained[-1] in (("unet-fade", 3), ("unet-carafe", 2)):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Session, "on_step_end", after)

    def tiny(network, name, steps, seed):
        return RunConfig(
            name, network, size=32, width=1 / 16, steps=steps, snapshots="5", kinds="feature", observe=1, seed=seed
        )

    monkeypatch.setattr("fadeviz.demo.demo_config", tiny)
    monkeypatch.setattr("fadeviz.demo.draw_demo", lambda runs, out: f"{[run.path.name for run in runs]} drawn")
    demo = ("demo", "--out", out, "--steps", "5")
    result = call(*demo)
    assert result.exit_code == 143
    again = f"fadeviz demo --out '{out}' --steps 5"
    assert result.stderr.splitlines()[-1] == f"interrupted at step 3 of 5; {again} continues at step 4"
    assert call(*demo).exit_code == 143
    names = ["unet-fade", "unet-carafe", "segnet-fade", "segnet-carafe"]
    assert f"{names} drawn" in call(*demo).stdout
    assert trained == [(name, step) for name in names for step in range(1, 6)]  # none twice
    before = {file: file.stat().st_mtime_ns for file in (out / "unet-fade").rglob("*")}
    assert "drawn" in call(*demo).stdout
    assert {file: file.stat().st_mtime_ns for file in (out / "unet-fade").rglob("*")} == before
    assert len(trained) == 20
    assert call(*demo, "--overwrite").exit_code == 143
    assert trained[20:] == [("unet-fade", 1), ("unet-fade", 2), ("unet-fade", 3)]


def test_demo_leaves_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fadeviz.demo.demo_config", lambda *given: dataclasses.replace(demo_config(*given), observe=4, size=32)
    )
    result = call("demo", "--out", tmp_path / "demo", "--steps", "6")
    assert result.exit_code == 0, result.output
    summary = (tmp_path / "demo" / "summary.md").read_text()
    named = re.findall(r"^- (\S+\.(?:png|gif)):", summary, re.MULTILINE)
    assert {file.rsplit("/", 1)[1] for file in named} == {p.name for p in (tmp_path / "demo" / "figures").iterdir()}
    assert len(named) == 8
    for file in named:
        assert (tmp_path / "demo" / "figures" / file.rsplit("/", 1)[1]).stat().st_size > 1000
    assert re.search(r"\| SegNet \| FADE \| 1,967,540 \| 0\.\d{3}", summary)
    sentences = [line.split(":")[0] for line in summary.rstrip().rsplit("\n\n", 1)[1].splitlines()]
    assert sentences in (["- FADE", "- CARAFE"], ["- FADE", "- FADE, features", "- CARAFE", "- CARAFE, features"])
    fails(
        1, "other settings: .*steps was 6, is 7.* Replace the demo", "demo", "--out", tmp_path / "demo", "--steps", "7"
    )
    fails(1, "the demo needs 5 or more", "demo", "--out", tmp_path / "new", "--steps", "2")
