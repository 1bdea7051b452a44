"""The scripts for a machine with a GPU, rehearsed on the CPU: nothing of them may fail there for the first time."""

import argparse
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fadeviz_cli.main import main as fadeviz

from fadeviz import FadevizError, open_run
from fadeviz.experiment import RunConfig
from fadeviz.storage.check import check_run
from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from fadeviz.sweep import LocalProcesses, Trial, local
from fadeviz.sweep.trial import Task, TrialEnd
from fadeviz.upsamplers import UPSAMPLERS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield


@pytest.fixture
def check():
    return importlib.import_module("gpu_check")


def part(name):
    """A module of the stages."""
    return importlib.import_module(f"gpu_stages.{name}")


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))  # which the script would set
    return importlib.import_module("gpu_study")


class TestCheck:
    @pytest.fixture(autouse=True)
    def switches(self):
        """What a stage sets for its own process."""
        backends = torch.backends
        before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, torch.get_num_threads()
        cudnn = backends.cudnn.deterministic, backends.cudnn.benchmark
        yield
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, threads = before
        backends.cudnn.deterministic, backends.cudnn.benchmark = cudnn
        torch.set_num_threads(threads)

    @pytest.fixture
    def setting(self, check, tmp_path):
        return check.Setting("cpu", small=True, work=str(tmp_path))

    @pytest.mark.parametrize("name", ["max_unpool", "fade"])
    def test_an_operator(self, check, setting, name):
        rows = part("operators").check_operator(setting, name, (2, 8, 3, 4))
        assert len(rows) == 8  # three precisions, two layouts, fp32 with poisoned memory too
        assert all(row["ok"] for row in rows), rows

    def test_a_wrong_operator_is_seen(self, check, setting, monkeypatch):
        carafe = UPSAMPLERS["carafe"].build
        forward = carafe.forward
        monkeypatch.setattr(
            carafe, "forward", lambda self, x, skip: forward(self, x * (1 + 1e-4 * (x.dtype != torch.float64)), skip)
        )
        rows = part("operators").check_operator(setting, "carafe", (2, 8, 3, 4))
        assert not any(row["ok"] for row in rows if row["precision"] == "fp32")

    def test_memory_that_stays_unwritten_is_seen(self, check):
        with part("operators").poisoned_memory():
            assert torch.empty(3).isnan().all()
        assert not part("operators").relative([torch.tensor([float("nan")])], [torch.ones(1)]) <= 1

    @pytest.mark.parametrize(
        "what", [("synchronisations", "segnet"), ("bits", "nearest", False), ("bits", "fade", True)]
    )
    def test_a_training(self, check, setting, what):
        row = part("training").check_training(setting, *what)
        assert row.get("twice", True)
        assert row.get("resumed", True)
        assert not row.get("lines")

    def test_what_measures(self, check, setting):
        rows = check.Rows(None)
        for stage in ("machine", "kernels", "steps"):
            check.STAGES[stage].function(setting, rows)
        assert {row["what"] for row in rows.rows} >= {"copy", "matmul", "reassembly", "step", "pipeline"}
        assert not [row for row in rows.rows if "error" in row]
        results = {"machine": {"status": "ok", "seconds": 1.0, "rows": rows.rows[:8]}}
        for stage, whats in (("kernels", ("reassembly",)), ("steps", ("step", "pipeline"))):
            of = [row for row in rows.rows if row["what"] in whats]
            results[stage] = {"status": "ok", "seconds": 1.0, "rows": of}
        text = check.summary(results)
        assert "no table" not in text
        assert len(text) < 8000
        assert check.all_well(results)

    def test_bytes_of_the_papers_shape(self, check, setting):
        row = part("kernels").measure_kernel(setting, "plain", (1, 4, 4), "fp32", "contiguous")
        x, y, kernels = 4 * 16, 4 * 64, 25 * 64
        assert row["bytes"] == 4 * ((x + kernels + y) + (y + x + kernels) + (y + kernels + x))

    def test_a_stage_that_fails_or_hangs_stops_no_other(self, check, tmp_path, monkeypatch, capsys):
        codes = {
            "machine": 'say(what="launch", seconds=1e-6)',
            "tests": 'say(what="failure", test="a::b", message="no", ok=False); sys.exit(3)',
            "memory": "import time; say(what='memcheck', ok=True); print('before it hung', flush=True); time.sleep(60)",
            "record": 'say(what="record", upsampler="fade", error="none", ok=True)',
        }

        def command(name, options, work, limit):
            rows = str(work / f"{name}.jsonl")
            say = f"import json, sys\ndef say(**row): open({rows!r}, 'a').write(json.dumps(row) + '\\n')\n"
            return [sys.executable, "-c", say + codes[name]]

        stages = {
            name: dataclasses.replace(check.STAGES[name], limit=1.0 if name == "memory" else 30) for name in codes
        }
        monkeypatch.setattr(check, "STAGES", stages)
        monkeypatch.setattr(check, "stage_command", command)
        options = argparse.Namespace(
            device="cpu", small=True, minutes=5, stages="0,tests+memory,record:20", out=tmp_path / "out"
        )
        assert check.run_all(options) == 1
        results = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
        assert {name: one["status"] for name, one in results.items()} == {
            "machine": "ok", "tests": "exit code 3", "memory": "stopped at 1 s", "record": "ok",
        }  # fmt: skip
        assert all(len(one["rows"]) == 1 for one in results.values())
        text = (tmp_path / "out" / "gpu_check.txt").read_text()
        assert "1 FAILED" in text
        assert text in capsys.readouterr().out
        assert "before it hung" in (tmp_path / "out" / "gpu_check.log").read_text()
        options.minutes, options.stages = 0, "record"
        assert check.run_all(options) == 1
        assert "no time left" in (tmp_path / "out" / "gpu_check.txt").read_text()

    def test_tests_that_failed_are_named_as_they_fail(self, check, tmp_path, monkeypatch):
        lines = [
            "scheduling tests via LoadScheduling", "tests/test_a.py::test_bad[a b] ",
            "[gw0] [  7%] PASSED tests/test_a.py::test_good ", "[gw11] [ 14%] FAILED tests/test_a.py::test_bad[a b] ",
            "tests/test_b.py::test_broken ERROR              [ 20%]", "tests/test_b.py::test_no SKIPPED (why) [100%]",
            "E   AssertionError: is bad", "!!! KeyboardInterrupt !!!",
            "FAILED tests/test_a.py::test_bad[a b] - AssertionError: is bad",
            "ERROR tests/test_c.py - ImportError: none",
        ]  # fmt: skip
        (tmp_path / "pytest.py").write_text(
            "import pathlib, time\n"
            f"for number, line in enumerate({lines!r}):\n"
            "    while number == 6 and not pathlib.Path('interrupted').exists(): time.sleep(0.02)\n"
            "    print(line, flush=True)\n"
            "raise SystemExit(2)\n"
        )
        monkeypatch.setattr(part("tests"), "ROOT", tmp_path)
        monkeypatch.setattr(
            part("tests").os, "killpg", lambda group, sign: (tmp_path / f"interrupted{group or ''}").touch()
        )
        rows, before = check.Rows(None), signal.getsignal(signal.SIGINT)
        try:
            part("tests").follow_tests([sys.executable, "-I", "-S", "pytest.py"], rows, 25)
            signal.raise_signal(signal.SIGINT)  # the stage itself, which is of the group, reads on
        finally:
            signal.signal(signal.SIGINT, before)
        names = {row["what"]: row["test"] for row in rows.rows if "test" in row and row["what"] != "message"}
        assert names == {"failed": "tests/test_a.py::test_bad[a b]", "error": "tests/test_b.py::test_broken"}
        whats = [row["what"] for row in rows.rows]
        assert max(map(whats.index, ("failed", "error", "stopped"))) < whats.index("message")
        assert {**rows.rows[-1], "seconds": 0, "at": 0} == {
            "what": "tests", "passed": 1, "failed": 1, "error": 1, "skipped": 1, "code": 2, "ok": False, "seconds": 0,
            "at": 0,
        }  # fmt: skip
        table = check.summary({"tests": {"status": "ok", "seconds": 1.0, "rows": rows.rows}})
        assert "tests/test_a.py::test_bad[a b]: 'AssertionError: is bad'" in table
        assert "tests/test_c.py: 'ImportError: none'" in table

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 2])
    def test_tests_that_are_interrupted_tell_what_failed(self, tmp_path, workers):
        (tmp_path / "test_some.py").write_text(
            "import time\n"
            "def test_bad(): assert False, 'is bad'\n"
            "def test_long(): time.sleep(200)\n"
            "def test_long_too(): time.sleep(200)\n"
        )
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"-n{workers}", str(tmp_path)]
        code = (
            f"import pathlib; from gpu_stages import setting, tests; tests.ROOT = pathlib.Path({str(tmp_path)!r})\n"
            f"tests.follow_tests({command!r}, setting.Rows(tests.ROOT / 'rows.jsonl'), 25 + 20)"
        )
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}:{os.environ.get('PYTHONPATH', '')}"}
        environment.pop("PYTEST_XDIST_WORKER", None)
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120,
            start_new_session=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "E   AssertionError: is bad" in done.stdout.replace("    A", "   A")
        rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        assert [row["what"] for row in rows] == ["failed", "stopped", "message", "tests"]
        assert rows[2]["message"].startswith("AssertionError: is bad")

    def test_stages(self, check):
        rounds = check.parse_rounds("0,tests+memory:7.5")
        assert rounds == [[("machine", 45)], [("tests", check.STAGES["tests"].limit), ("memory", 7.5)]]
        assert {name for together in check.parse_rounds(check.ROUNDS) for name, _ in together} < set(check.STAGES)
        with pytest.raises(SystemExit, match="no stage 'test'. There are: machine, tests"):
            check.parse_rounds("test")

    def test_without_a_gpu(self, check, tmp_path):
        if torch.cuda.is_available():
            pytest.skip("there is one")
        options = argparse.Namespace(device="cuda", small=False, minutes=5, stages="0", out=tmp_path)
        with pytest.raises(SystemExit, match="--device cpu --small"):
            check.run_all(options)

    @pytest.mark.slow
    def test_the_command(self, tmp_path):
        command = [sys.executable, ROOT / "scripts" / "gpu_check.py", "--device", "cpu", "--small", "--out", tmp_path]
        done = subprocess.run([*map(str, command), "--minutes", "9"], capture_output=True, text=True, check=False)
        results = json.loads((tmp_path / "gpu_check.json").read_text())
        assert done.returncode == 0, done.stdout
        assert {one["status"] for one in results.values()} == {"ok"}


class TestStudy:
    def stored(self, folder, rng, steps=(0, 1, 2), layer="decoder.3.upsample"):
        store = SnapshotStore(folder, "0123456789ab")
        for step in steps:
            maps = {"feature": rng.normal(size=(4, 12, 16)), "gate": rng.random((4, 12, 16))}
            store.write(step, [Snapshot(step, layer, 0, kind, value) for kind, value in maps.items()])
            store.append_metrics({"step": step, "loss": 0.5, "miou": 0.25 * step})
        store.write_observation(np.zeros((4, 24, 32, 3), np.uint8), np.ones((4, 24, 32), np.uint8))
        info = {"status": "finished", "upsampler": "fade", "network": "segnet", "config": {"seed": 0}, "last_step": 2}
        info |= {"layers": {layer: {"size": [12, 16]}}, "figure_layer": layer, "result": {"miou": 0.5}, "seconds": {}}
        store.write_info(RunInfo.from_dict({**info, "observation": {"names": list("abcd")}}))

    @pytest.mark.parametrize("bits", [8, 12])
    def test_a_map_is_rounded(self, study, bits):
        rng = np.random.default_rng(0)
        value = (rng.normal(size=(4, 12, 16)) * np.array([1, 1e-7, 1e4, 0]).reshape(4, 1, 1)).astype(np.float32)
        head, data = study.rounded_map(value, bits)
        again = study.restored_map(json.loads(json.dumps(head)), data)
        step = (value.max((1, 2)) - value.min((1, 2))) / (2**bits - 1)
        assert again.dtype == np.float32
        assert (np.abs(again - value).max((1, 2)) <= 0.51 * step + 1e-12).all()
        assert np.array_equal(again.max((1, 2)), value.max((1, 2)))

    def test_a_map_that_is_not_finite_is_kept(self, study):
        value = np.array([[[1, np.nan], [np.inf, 2]]], np.float32)
        assert np.array_equal(study.restored_map(*study.rounded_map(value, 8)), value, equal_nan=True)

    def test_packed_and_unpacked(self, study, tmp_path):
        self.stored(tmp_path / "work" / "fade-seed0", np.random.default_rng(0))
        rows = study.pack([("fade-seed0", tmp_path / "work" / "fade-seed0"), ("none", tmp_path / "none")], tmp_path)
        assert [(row["name"], row["status"], row.get("miou")) for row in rows] == [
            ("fade-seed0", "finished", 0.5), ("none", "not begun", None),
        ]  # fmt: skip
        study.unpack(argparse.Namespace(folder=tmp_path, out=tmp_path / "runs"))
        before, after = open_run(tmp_path / "work" / "fade-seed0"), open_run(tmp_path / "runs" / "fade-seed0")
        assert after.steps == before.steps
        assert after.run_id == before.run_id
        assert after.metrics() == before.metrics()
        for kind in ("feature", "gate"):
            got, wanted = (run.read(1, "decoder.3.upsample", kind) for run in (after, before))
            np.testing.assert_allclose(got, wanted, atol=np.ptp(wanted) / 2**12)
        assert "fade-seed0,finished,2,0.5" in (tmp_path / "runs" / "study.csv").read_text()
        assert "12 bits" in after.info.notes[-1]
        assert check_run(after.path) == check_run(before.path)
        with pytest.raises(SystemExit, match=r"runs-N\.zip"):
            study.unpack(argparse.Namespace(folder=tmp_path / "none", out=tmp_path / "runs"))

    def test_what_does_not_fit(self, study, tmp_path):
        rng, names = np.random.default_rng(0), [f"run{n}" for n in range(4)]
        for name in names:
            self.stored(tmp_path / name, rng)
        folders = [(name, tmp_path / name) for name in names]
        fine, rough = (len(study.packed(tmp_path / "run0", bits)) for bits in (12, 8))
        assert rough < fine

        def bits(room, number=1):
            rows = study.pack(folders, tmp_path, file_limit=int(room), files=number)
            files = [zipfile.ZipFile(file).namelist() for file in sorted(tmp_path.glob("runs-*.zip"))]
            stored = sorted(name for names in files for name in names)
            assert [f"{row['name']}.zip" for row in rows if row["bits"]] == stored
            return [row["bits"] for row in rows], len(files)

        assert bits(5 * fine) == ([12, 12, 12, 12], 1)
        assert bits(2.5 * fine, 2) == ([12, 12, 12, 12], 2)
        assert bits(2.1 * fine + 2.1 * rough) == ([12, 12, 8, 8], 1)
        assert bits(1.3 * fine, 3) == ([12, 12, 12, 0], 3)
        assert bits(3.1 * rough) == ([8, 8, 8, 0], 1)

    def test_what_is_wanted(self, study):
        runs = study.wanted_runs()
        names = [one.name for one in runs]
        assert names[:6] == [
            "fade-seed0", "carafe-seed0", "bilinear-seed0", "max_unpool-seed0",
            "segformer-fade-seed0", "segformer-carafe-seed0",
        ]  # fmt: skip
        assert len(set(names)) == len(names)
        assert set(UPSAMPLERS) <= {one.values["upsampler"] for one in runs}
        for one in study.wanted_runs("cpu", small=True):
            study.run_config(one.values)

    def test_the_recipe_is_that_of_the_defaults(self, study):
        config = study.run_config({**study.wanted_runs("cpu")[0].values, "data": "synthetic", "data_dir": ""})
        same = dataclasses.replace(
            RunConfig(), device="cpu", weights=config.weights, checkpoint_every=config.checkpoint_every,
            layers="decoder.3.upsample", snapshots=study.SNAPSHOTS, evaluate_every=875,
        )  # fmt: skip
        assert config == same
        assert len(tuple(config.schedule())) == len(tuple(RunConfig().schedule()))

    @pytest.mark.slow
    def test_the_command(self, tmp_path):
        script = str(ROOT / "scripts" / "gpu_study.py")
        command = [sys.executable, script, "train", "--device", "cpu", "--small", "--first", "3", "--jobs", "2"]
        command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
        subprocess.run([*command, "--until", "8"], check=False)  # most likely before any is finished
        subprocess.run([*command, "--until", "200"], check=True)
        rows = json.loads((tmp_path / "out" / "study.json").read_text())["runs"]
        assert [(row["status"], row["last_step"]) for row in rows] == [("finished", 6)] * 3
        subprocess.run([sys.executable, script, "unpack", str(tmp_path / "out"), "--out", str(tmp_path)], check=True)
        assert open_run(tmp_path / "fade-seed0").steps == tuple(range(7))


class _Stub:
    """Stands for a worker's process that finishes every run at once."""

    exitcode = 0

    def join(self, timeout=None):
        pass

    def is_alive(self):
        return False

    def terminate(self):
        pass


class TestSeveralGPUs:
    @pytest.fixture
    def started(self, monkeypatch):
        """The GPUs that workers were started for."""
        gpus, ends = [], []

        def start(threads, gpu=""):
            ours, theirs = local.multiprocessing.get_context("spawn").Pipe()
            gpus.append(gpu)
            ends.append(theirs)
            theirs.send(TrialEnd("failed", "of the test", {}, ""))  # a worker that failed is not used again
            return local._Worker(_Stub(), ours, gpu)

        monkeypatch.setattr(local, "_start", start)
        yield gpus
        for end in ends:
            end.close()

    def tasks(self, count):
        config = RunConfig(size=32, width=0.125, steps=1)
        return [Task(Trial("fade", seed), config, Path("none")) for seed in range(count)]

    @pytest.mark.parametrize(
        ("count", "visible", "jobs", "wanted"),
        [
            (3, None, 3, ["0", "1", "2"]),
            (3, None, 5, ["0", "1", "2", "0", "1"]),
            (2, "6, GPU-5a", None, ["6", "GPU-5a"]),
            (2, None, 1, ["0"]),
            (1, None, 3, ["", "", ""]),
            (0, None, None, [""]),
        ],
    )
    def test_processes_are_spread_over_them(self, started, monkeypatch, count, visible, jobs, wanted):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        words = LocalProcesses(jobs).train(self.tasks(7))
        next(words)
        assert started == wanted
        words.close()

    def test_all_run(self, started, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        events = [event for events in LocalProcesses(2).train(self.tasks(6)) for event in events]
        assert sum(event.status == "failed" for event in events) == 6
        assert sorted(started) == ["0"] * 3 + ["1"] * 3  # the one that is free is taken

    def test_a_worker_sees_its_own_alone(self, monkeypatch):
        monkeypatch.setattr(local.signal, "signal", lambda *args: None)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        threads = torch.get_num_threads()
        ours, theirs = local.multiprocessing.get_context("spawn").Pipe()
        ours.close()
        local._work(theirs, threads, "1")
        theirs.close()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"

    def test_jobs(self):
        with pytest.raises(FadevizError, match="jobs is 0; it must be 1 or more"):
            LocalProcesses(0)


def test_all_names_every_operator(tmp_path):
    arguments = ["sweep", "--upsamplers", "all,fade:gate=off", "--seeds", "0", "--width", "0.125", "--size", "32"]
    arguments += ["--out", str(tmp_path / "s"), "--executor", "dask", "--dry-run"]
    done = CliRunner().invoke(fadeviz, arguments)
    assert done.exit_code == 0, done.output
    wanted = [f"{name}-seed0" for name in [*UPSAMPLERS, "fade-gate=off"]]
    assert [line for line in done.output.split() if line.endswith("-seed0")] == wanted


def test_beside_a_cuda_build_of_torch(tmp_path):
    """Which asks for one triton alone: the constraint must leave a choice."""
    (line,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("triton")]
    assert line.startswith("triton<=")


ABSENT = ("pooch", "playwright", "imageio_ffmpeg", "wandb", "rerun", "submitit", "distributed", "moto", "s3fs")
"""What a machine with a GPU may lack."""

WITHOUT = f"""
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_others(cls, name, *more):
    return None if name.partition(".")[0] in {ABSENT!r} else find(name, *more)

PathFinder.find_spec = classmethod(find_others)
"""


def test_training_and_drawing_need_none_of_these():
    code = "import fadeviz_cli.main, fadeviz.experiment, fadeviz.sweep, fadeviz.render.grid, fadeviz.recording.recorder"
    subprocess.run([sys.executable, "-W", "error", "-c", WITHOUT + code], check=True)


@pytest.mark.slow
def test_gpu_tests_are_collected_without_these():
    files = [str(path) for path in ROOT.glob("tests/test_*.py") if "mark.gpu" in path.read_text()]
    code = WITHOUT + "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "-m", "gpu", "-q", "-p", "no:cacheprovider", "--collect-only", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "error" not in done.stdout
