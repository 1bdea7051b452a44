"""``fadeviz ls``: the runs below a folder, how far they are, and what cannot be opened."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main

import fadeviz
from fadeviz.storage.info import read_info
from fadeviz.storage.listing import describe, format_entries, format_metrics
from fadeviz.storage.snapshots import SnapshotStore
from fadeviz.storage.stored_run import StoredRun
from render_runs import STEPS, make_run


def ls(*arguments):
    return CliRunner().invoke(main, ["ls", *map(str, arguments)])


def log(folder, *lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_line_for_each_run(tmp_path):
    make_run(tmp_path / "fade0")
    make_run(tmp_path / "more" / "carafe", upsampler="carafe", seed=3, run_id="c")
    log(tmp_path / "fade0", {"step": 1, "loss": 2.5}, {"step": 110, "loss": 0.25, "miou": 0.75})
    done = ls(tmp_path)
    assert done.exit_code == 0
    head, *rows = done.stdout.splitlines()
    assert head.split("  ")[0] == "run"
    assert [row.split() for row in rows] == [
        ["fade0", "FADE", "SegNet", "drawn", "0", "finished", "110", "12", "loss", "0.25,", "mIoU", "0.750"],
        ["more/carafe", "CARAFE", "SegNet", "drawn", "3", "finished", "110", "12"],
    ]
    assert done.stdout == f"{fadeviz.list_runs(tmp_path)}\n"


def test_json_has_every_value(tmp_path):
    make_run(tmp_path / "fade0")
    log(tmp_path / "fade0", {"step": 7, "loss": float("nan")})
    (entry,) = json.loads(ls(tmp_path, "--json").stdout, parse_constant=pytest.fail)
    assert entry == fadeviz.list_runs(tmp_path).to_dicts()[0]
    assert (entry["snapshots"], entry["step"], entry["seed"], entry["metrics"]) == (len(STEPS), 110, 0, {"loss": None})


def test_what_cannot_be_opened_is_named_and_the_others_are_listed(tmp_path):
    make_run(tmp_path / "fade0")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    done = ls(tmp_path)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[1].startswith("fade0")
    assert f"{tmp_path}/broken/run.json is damaged" in done.stderr
    assert done.stderr.endswith("Error: 1 of 2 runs cannot be opened: they are listed above\n")


@pytest.mark.parametrize(("name", "message"), [("no", "Error: no folder "), ("empty", "Error: no runs in ")])
def test_nothing_to_list(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    done = ls(tmp_path / name)
    assert (done.exit_code, done.stderr.startswith(message), done.stderr.count("\n")) == (1, True, 1)


def test_snapshots_are_not_opened(tmp_path):
    run = make_run(tmp_path / "fade0")
    (tmp_path / "fade0" / "snapshots" / "step_000110.safetensors").write_bytes(b"damaged")
    assert describe(run, "fade0").snapshots == len(STEPS)


def test_progress_is_the_last_step_that_is_known(tmp_path):
    make_run(tmp_path / "fade0")
    store = SnapshotStore(tmp_path / "fade0", "a1b2c3")
    info = read_info(tmp_path / "fade0", "fade0")
    store.write_info(type(info).from_dict({**info.to_dict(), "schedule": [0, 500], "status": "interrupted"}))
    log(tmp_path / "fade0", {"step": 123, "loss": 1})
    entry = describe(StoredRun(tmp_path / "fade0"), "x")
    assert (entry.step, entry.last_step, entry.status) == (123, 500, "interrupted")
    assert "123/500  12/2" in format_entries([entry])


def test_a_test_further_up_is_found(tmp_path):
    """The loss is of the last step, and mIoU of the last test, whatever is damaged between them."""
    run = make_run(tmp_path / "fade0")
    log(tmp_path / "fade0", {"step": 100, "loss": 3, "miou": 0.5}, *({"step": s, "loss": s} for s in range(101, 140)))
    with (tmp_path / "fade0" / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step": true}\n{"step": 140, "lo')
    entry = describe(run, "x")
    assert (entry.metrics, entry.step) == ({"loss": 139.0, "miou": 0.5}, 139)
    assert format_metrics(entry.metrics) == "loss 139, mIoU 0.500"


def test_a_run_whose_process_was_killed_is_stopped(tmp_path):
    code = f"""
        import os, signal, sys
        import numpy as np
        from fadeviz.storage.files import only_writer
        from fadeviz.storage.info import RunInfo
        from fadeviz.storage.files import machine
        from fadeviz.storage.snapshots import SnapshotStore
        from pathlib import Path
        out = Path({str(tmp_path / "run")!r})
        with only_writer(out):
            SnapshotStore(out, "r").write_info(RunInfo.from_dict({{"status": "running", "writer": machine()}}))
            print("ready", flush=True)
            sys.stdin.read()
    """
    writer = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(writer, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        assert describe(StoredRun(tmp_path / "run"), "run").status == "running"
        process.kill()
    assert describe(StoredRun(tmp_path / "run"), "run").status == "stopped"


def test_names_do_nothing_to_a_terminal(tmp_path):
    folder = tmp_path / "a\x1b[31m\nb"
    make_run(folder)
    text = ls(tmp_path).stdout
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2


class TestReopened:
    def test_sees_what_was_recorded_since_and_checks_it_alone(self, tmp_path, monkeypatch):
        run = make_run(tmp_path / "run", steps=(0, 10))
        assert run.steps == (0, 10)
        make_run(tmp_path / "other", steps=(20,))
        opened = []
        shutil.copy(tmp_path / "other" / "snapshots" / "step_000020.safetensors", tmp_path / "run" / "snapshots")
        check = type(run._snapshots)._fault
        monkeypatch.setattr(
            type(run._snapshots), "_fault", lambda self, file, step: opened.append(step) or check(self, file, step)
        )
        again = run.reopened()
        assert (again.steps, opened, run.steps) == ((0, 10, 20), [20], (0, 10))
        np.testing.assert_array_equal(again.read(10, *_first_map(again)), run.read(10, *_first_map(run)))

    def test_a_file_that_changed_is_checked_again(self, tmp_path):
        run = make_run(tmp_path / "run", steps=(0, 10))
        assert run.steps == (0, 10)
        file = tmp_path / "run" / "snapshots" / "step_000010.safetensors"
        os.truncate(file, 100)
        assert (run.reopened().steps, list(run.reopened().broken)) == ((0,), [file.name])

    def test_another_run_in_the_same_folder_is_checked_anew(self, tmp_path):
        run = make_run(tmp_path / "run", steps=(0, 10))
        assert run.steps == (0, 10)
        info = read_info(run.path, "run").to_dict()
        SnapshotStore(run.path, "new").write_info(type(run.info).from_dict({**info, "run_id": "new"}))
        assert run.reopened().steps == ()


def _first_map(run):
    layer, kinds = next(iter(run.layers.items()))
    return layer, kinds[0]
