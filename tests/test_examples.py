"""The examples and the README's code run, and do what they say."""

import importlib.util
import re
import shlex
import warnings
from pathlib import Path

import click
import numpy as np
import pytest
from fadeviz_cli.main import main

from fadeviz import open_run
from fadeviz.data.synthetic import dataset as synthetic

ROOT = Path(__file__).resolve().parents[1]


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _few_test_drawings(monkeypatch):
    monkeypatch.setattr(synthetic, "TEST_DRAWINGS", 12)


def test_record_and_draw_then_draw_stored_run(tmp_path):
    for image in example("record_and_draw").main(steps=3, out=tmp_path, size=64, width=0.125):
        assert image.stat().st_size > 1000
    shares = example("draw_stored_run").main(tmp_path / "fade")
    assert list(shares) == [0, 1, 2, 3]
    assert all(0 < share < 1 for share in shares.values())
    assert (tmp_path / "fade" / "figures" / "gradient_run_scale.png").exists()


def test_record_own_model(tmp_path):
    image = example("record_own_model").main(steps=3, out=tmp_path)
    assert image.stat().st_size > 1000
    run = open_run(tmp_path)
    assert run.steps == (0, 3)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    assert set(run.layers) == {"up", "coarse"}


def test_record_lightning(tmp_path, monkeypatch, capfd):
    pytest.importorskip("lightning", reason='needs Lightning: pip install ".[lightning]"')
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the example silences the library itself, where it is a program
        image = example("record_lightning").main(steps=3, out=tmp_path / "run")
    assert image.stat().st_size > 1000
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 3)
    assert [line["step"] for line in run.metrics() if "loss" in line] == [1, 2, 3]
    assert set(run.layers) == {"decoder.0", "decoder.3"}
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]  # no logs, no checkpoints
    assert capfd.readouterr().out == ""


def test_lightning_and_plain(tmp_path, monkeypatch):
    pytest.importorskip("lightning", reason='needs Lightning: pip install ".[lightning]"')
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the example silences the library itself, where it is a program
        image = example("lightning_and_plain").main(steps=3, out=tmp_path / "runs")
    assert image.stat().st_size > 1000
    plain, lightning = open_run(tmp_path / "runs" / "plain"), open_run(tmp_path / "runs" / "lightning")
    assert (set(plain.layers), set(lightning.layers)) == ({"decoder:interpolate"}, {"model.decoder:interpolate"})
    # The same seed, data and optimiser: Lightning trains the same network.
    for call in (0, 1):
        maps = [run.maps("decoder:interpolate", "feature", call=call)[:] for run in (plain, lightning)]
        np.testing.assert_allclose(*maps, atol=1e-6)


def test_operators_in_own_network(tmp_path, capsys):
    files = example("operators_in_own_network").main(steps=3, seeds=1, count=20, size=32, out=tmp_path)
    assert all(file.stat().st_size > 1000 for file in files)
    runs = {name: open_run(tmp_path / f"{name}-seed0") for name in ("interpolate", "fade", "dysample")}
    assert {name: run.info.layers["up1"].source for name, run in runs.items()} == {
        "interpolate": "up1:interpolate", "fade": "up1.interpolate_0", "dysample": "up1.interpolate_0",
    }  # fmt: skip
    assert all(run.steps == (0, 3) and run.prediction(3).shape == (12, 32, 32) for run in runs.values())
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_record_transformers(tmp_path, monkeypatch, capfd):
    for package in ("transformers", "accelerate"):
        pytest.importorskip(package, reason=f'needs {package}: pip install ".[transformers]"')
    monkeypatch.chdir(tmp_path)
    image = example("record_transformers").main(steps=3, out=tmp_path / "run")
    assert image.stat().st_size > 1000
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 3)
    assert len(run.layers) == 9
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_recording_cost(tmp_path, capsys):
    costs = example("recording_cost").main(steps=1, rounds=1, size=32, width=0.125, out=tmp_path)
    assert {"step", "unscheduled", "recorded", "40 maps, fadeviz, float32"} <= set(costs)
    assert "a snapshot" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []  # what it wrote to measure is gone


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        code = block.replace("range(1, 301)", "range(1, 4)").replace("20:300:20", "1:3:1")
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert open_run(tmp_path / "outputs" / "mine").steps == (0, 1, 2, 3)


@pytest.mark.parametrize("page", ["README.md", "outputs/gallery/README.md"])
def test_every_command_line_on_the_page_parses(page):
    text = re.sub(r"\\\n\s*", "", (ROOT / page).read_text())
    lines = re.findall(r"(?:^|`|\s/|bin/)(?:OMP_NUM_THREADS=1 )?fadeviz ([a-z][^`\n]*)", text, re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(re.split(r"\s{3,}", line)[0].replace("(the same)", "outputs/a"))
        command = main
        while isinstance(command, click.Group):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words)  # raises for an unknown or missing option


def test_every_command_is_on_the_first_page():
    text = (ROOT / "README.md").read_text()
    for name in main.commands:
        assert f"fadeviz {name}" in text


def test_every_example_is_documented_and_tested():
    text, tests = (
        (ROOT / "docs" / "examples.md").read_text(),
        [file.read_text() for file in Path(__file__).parent.glob("test_*.py")],
    )
    for file in (ROOT / "examples").iterdir():
        if file.suffix in (".py", ".ipynb"):
            assert f"](../examples/{file.name})" in text
            assert any(f'example("{file.stem}")' in test or f'"{file.name}"' in test for test in tests), file
