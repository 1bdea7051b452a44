"""Whole runs: the same bytes for the same command, untouched by the probe, resumed and killed without loss."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fadeviz import FadevizError, open_run
from fadeviz.data import synthetic
from fadeviz.experiment import PAPER_SCHEDULE, RunConfig, build_model, choose_device, read_config, run
from fadeviz.models import build_network
from fadeviz.probes import Probe
from fadeviz.training.loop import fit

SMALL = RunConfig(
    upsampler="fade",
    size=64,
    width=0.125,
    steps=8,
    snapshots="2:8:2",
    evaluate_every=4,
    checkpoint_every=3,
    kinds="feature,gradient,channels,gate",
)


@pytest.fixture(autouse=True)
def _few_test_drawings(monkeypatch):
    monkeypatch.setattr(synthetic, "TEST_DRAWINGS", 8)


def files(folder):
    """Every byte of a run but its clock, its place and its figures."""
    found = {p.name: p.read_bytes() for p in sorted((folder / "snapshots").iterdir())}
    found["observation"] = (folder / "observation.safetensors").read_bytes()
    found["metrics"] = (folder / "metrics.jsonl").read_bytes()
    return found


def final_weights(folder):
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, b[key]), key
        elif isinstance(value, dict):
            assert_same_state(value, b[key])
        else:
            assert value == b[key], key


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "TEST_DRAWINGS", 8)
        run(SMALL, folder)
    return folder


def test_what_a_run_leaves(whole):
    opened = open_run(whole)
    assert opened.steps == (0, 2, 4, 6, 8)
    assert opened.info["status"] == "finished"
    assert opened.info["upsampler"] == "fade"
    assert len(opened.layers) == 5
    assert opened.default_layer("feature") == "decoder.3.upsample"
    images, masks = opened.observation
    assert images.shape == (4, 64, 64, 3)
    assert set(np.unique(masks)) == {0, 1}
    lines = opened.metrics()
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert ["miou" in line for line in lines] == [False, False, False, True] * 2
    assert opened.info["result"]["miou"] == lines[-1]["miou"]
    assert len(set(opened.info["observation"]["names"])) == 4
    assert read_config(whole) == SMALL
    # The maps change as the network learns.
    maps = opened.maps(kind="feature", image=0)
    assert all(not np.array_equal(a, b) for a, b in pairwise(maps))


def test_same_command_same_bytes(whole, tmp_path):
    run(SMALL, tmp_path / "again")
    assert files(tmp_path / "again") == files(whole)


def test_layers_that_a_glob_leaves_out_are_noted(tmp_path):
    config = dataclasses.replace(SMALL, layers="*", kinds="feature", steps=1, snapshots="1", evaluate_every=1)
    finished = run(config, tmp_path / "run")
    assert list(finished.layers) == ["head"]
    (note,) = finished.info["notes"]
    assert note.startswith("left out: layer 'encoder', layer 'decoder' did not run in the forward pass")


def test_another_seed_other_maps_same_observation(whole, tmp_path):
    other = open_run(run(dataclasses.replace(SMALL, seed=1, steps=2, snapshots="2"), tmp_path / "seed1").path)
    first = open_run(whole)
    assert other.run_id != first.run_id
    np.testing.assert_array_equal(other.observation[0], first.observation[0])
    assert not np.array_equal(
        other.read(0, "decoder.3.upsample", "feature"), first.read(0, "decoder.3.upsample", "feature")
    )


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_training_is_bit_identical_with_and_without_the_probe(whole, tmp_path, monkeypatch, mode):
    if mode == "eval":
        with_probe = final_weights(whole)
    else:
        run(dataclasses.replace(SMALL, observe_mode="batch"), tmp_path / "with")
        with_probe = final_weights(tmp_path / "with")
    # Observed at step 0 only, where the layers are found, and there with a probe that sees nothing.
    monkeypatch.setattr(Probe, "observe", lambda *a, **k: [])
    run(SMALL, tmp_path / "without")
    without = final_weights(tmp_path / "without")
    for part in ("model", "optimizer", "rng"):
        assert_same_state({part: with_probe[part]}, {part: without[part]})
    # The comparison can fail: a different seed trains differently.
    run(dataclasses.replace(SMALL, seed=1), tmp_path / "other")
    with pytest.raises(AssertionError):
        assert_same_state(final_weights(tmp_path / "other")["model"], without["model"])


def test_a_run_from_before_the_labels_setting_is_resumed(whole, tmp_path):
    def stop(progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(SMALL, tmp_path / "run", report=stop)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["config"].pop("labels") == "true"
    (tmp_path / "run" / "run.json").write_text(json.dumps(info))
    assert read_config(tmp_path / "run") == SMALL
    with pytest.raises(FadevizError, match="other settings: labels was 'true', is 'shuffled'. Use --overwrite"):
        run(dataclasses.replace(SMALL, labels="shuffled"), tmp_path / "run", resume=True)
    run(SMALL, tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == files(whole)
    assert open_run(whole).run_id == "412cef852835"  # which it had before


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_interrupted_and_resumed_gives_the_same_bytes(whole, tmp_path, stop_at):
    def stop(progress):
        if progress.step == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(SMALL, tmp_path / "run", report=stop)
    half = open_run(tmp_path / "run")
    assert half.info["status"] == "interrupted"
    assert half.steps[-1] <= stop_at
    assert half.maps(kind="gradient").shape[0] == len(half.steps)  # readable as it is
    run(SMALL, tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == files(whole)
    assert_same_state(final_weights(tmp_path / "run"), final_weights(whole))


def test_killed_and_resumed_gives_the_same_bytes(tmp_path):
    program = (
        "import sys, dataclasses\n"
        "import fadeviz.experiment as e\n"
        "import fadeviz.data.synthetic as s\n"
        "s.TEST_DRAWINGS = 8\n"
        "c = e.RunConfig(upsampler='fade', size=64, width=0.125, steps=24, snapshots='1:24:1', evaluate_every=24,\n"
        "                checkpoint_every=5, kinds='feature,gradient')\n"
        "e.run(c, sys.argv[1], resume=len(sys.argv) > 2)\n"
    )
    out = tmp_path / "run"
    # With as many threads as a user's training has: the promise must hold there.
    several = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    process = subprocess.Popen([sys.executable, "-c", program, str(out)], env=several)
    deadline = time.monotonic() + 120
    try:
        while not (out / "snapshots" / "step_000008.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = open_run(out)
    assert killed.info["status"] == "running"
    assert not killed.broken
    assert 8 <= killed.steps[-1] < 24
    assert killed.maps(image=0).shape == (len(killed.steps), 32, 32)
    subprocess.run([sys.executable, "-c", program, str(out), "resume"], check=True, env=several)
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "undisturbed")], check=True, env=several)
    assert files(out) == files(tmp_path / "undisturbed")


def test_a_finished_run_resumed_is_left_alone(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    assert run(SMALL, whole, resume=True).steps == (0, 2, 4, 6, 8)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_loss_that_is_not_finite_stops_the_run_and_keeps_it(tmp_path):
    with pytest.raises(FadevizError, match=r"the loss became (nan|inf) at step \d+. Use a smaller --lr"):
        run(dataclasses.replace(SMALL, lr=1e30, steps=30, snapshots="1:30:1"), tmp_path / "run")
    kept = open_run(tmp_path / "run")
    assert kept.info["status"] == "failed"
    assert "the loss became" in kept.info["message"]
    assert kept.steps[0] == 0
    assert kept.maps(image=0).shape[0] == len(kept.steps)


def test_disk_full_is_one_line_and_keeps_what_is_there(tmp_path, monkeypatch):
    real = os.replace

    def full(source, target):
        if str(target).endswith("step_000004.safetensors"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("fadeviz.files.os.replace", full)
    with pytest.raises(FadevizError, match="disk full while writing .*step_000004.safetensors.*--resume"):
        run(SMALL, tmp_path / "run")
    assert open_run(tmp_path / "run").steps == (0, 2)
    assert not list((tmp_path / "run").rglob(".*partial*"))


@pytest.mark.parametrize("where", ["fadeviz.experiment.Probe.observe", "fadeviz.training.tasks.evaluate"])
def test_out_of_memory_is_one_line(tmp_path, monkeypatch, where):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(where, full)
    with pytest.raises(FadevizError, match="^out of memory. Use a smaller --batch-size, --observe, --size or --width$"):
        run(SMALL, tmp_path / "run")


class TestFolder:
    def test_in_use(self, whole):
        with pytest.raises(FadevizError, match="holds a run already. Go on with --resume, replace with --overwrite"):
            run(SMALL, whole)

    def test_overwrite_replaces_the_run_and_nothing_else(self, tmp_path):
        tiny = dataclasses.replace(SMALL, steps=1, snapshots="1", kinds="feature")
        run(tiny, tmp_path / "run")
        (tmp_path / "run" / "notes.txt").write_text("mine")
        run(dataclasses.replace(tiny, seed=3), tmp_path / "run", overwrite=True)
        assert open_run(tmp_path / "run").info["config"]["seed"] == 3
        assert (tmp_path / "run" / "notes.txt").read_text() == "mine"

    def test_overwrite_refuses_what_is_no_run(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(FadevizError, match="so it is no run: nothing is replaced"):
            run(SMALL, tmp_path, overwrite=True)
        assert (tmp_path / "thesis.tex").read_text() == "years of work"

    def test_a_file_in_its_place(self, tmp_path):
        (tmp_path / "out").write_text("x")
        with pytest.raises(FadevizError, match="out is a file"):
            run(SMALL, tmp_path / "out")

    def test_bad_settings_leave_an_old_run_alone(self, whole):
        before = files(whole)
        for bad in ({"upsampler": "fad"}, {"layers": "nothing.*"}, {"kinds": "fature"}, {"observe": 99}):
            with pytest.raises(FadevizError):
                run(dataclasses.replace(SMALL, **bad), whole, overwrite=True)
        assert files(whole) == before

    @pytest.mark.parametrize(
        "bad", [{"layers": "decoder"}, {"upsampler": "carafe:kernel_size=4,encoder_kernel_size=2"}]
    )
    def test_what_cannot_be_observed_leaves_an_old_run_alone(self, whole, bad):
        before = files(whole)
        with pytest.raises(FadevizError):
            run(dataclasses.replace(SMALL, kinds="", **bad), whole, overwrite=True)
        assert files(whole) == before

    def test_an_interrupted_overwrite_can_be_given_again(self, tmp_path, monkeypatch):
        tiny = dataclasses.replace(SMALL, steps=1, snapshots="1", kinds="feature")
        run(tiny, tmp_path / "run")
        with monkeypatch.context() as patch:
            patch.setattr("fadeviz.snapshots.shutil.rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                run(tiny, tmp_path / "run", overwrite=True)
        assert run(tiny, tmp_path / "run", overwrite=True).info["status"] == "finished"

    def test_a_lost_checkpoint_does_not_cost_the_snapshots(self, tmp_path):
        def stop(progress):
            if progress.step == 6:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(SMALL, tmp_path / "run", report=stop)
        (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
        with pytest.raises(FadevizError, match=r"last.pt is missing, though 6 steps were done. Put it back"):
            run(SMALL, tmp_path / "run", resume=True)
        assert open_run(tmp_path / "run").steps == (0, 2, 4, 6)

    def test_a_second_writer_is_refused(self, whole, tmp_path):
        tiny = dataclasses.replace(SMALL, steps=1, snapshots="1", kinds="feature")
        refused = []

        def second(progress):
            try:
                run(dataclasses.replace(tiny, seed=5), tmp_path / "run", overwrite=True)
            except FadevizError as error:
                refused.append(str(error))

        run(tiny, tmp_path / "run", report=second)
        assert len(refused) == 1
        assert "another process is recording into" in refused[0]
        assert open_run(tmp_path / "run").info["config"]["seed"] == 0
        run(dataclasses.replace(tiny, seed=5), tmp_path / "run", overwrite=True)  # free again

    def test_resume_with_other_settings(self, whole):
        with pytest.raises(FadevizError, match=r"other settings: lr was 0.01, is 0.1. Use --overwrite"):
            run(dataclasses.replace(SMALL, lr=0.1), whole, resume=True)

    def test_resume_of_nothing(self, tmp_path):
        with pytest.raises(FadevizError, match="no run folder"):
            run(SMALL, tmp_path / "none", resume=True)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"data": "weizman"}, "no data set 'weizman'. Nearest: 'weizmann'"),
        ({"data": "weizmann"}, "data weizmann needs its folder: --data-dir"),
        ({"size": 100}, "size is 100; it must be divisible by 32. Nearest: 96"),
        ({"size": 0}, "size is 0; it must be divisible by 32. Nearest: 32"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"seed": -1}, r"seed is -1; it must be from 0"),
        ({"split_seed": 2**64}, r"split_seed is \d+; it must be from 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be 0 or more"),
        ({"data_dir": "/data"}, "data synthetic has no folder, but --data-dir is /data. Add --data weizmann"),
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"labels": "shufled"}, "no kind of labels 'shufled'. Nearest: 'shuffled'"),
        ({"observe_mode": "train"}, "no observation mode 'train'"),
        ({"evaluate_every": -1}, "evaluate_every is -1"),
        ({"snapshots": "100:900:100"}, "reaches step 900, but the run ends at step 8"),
    ],
)
def test_bad_settings(bad, message):
    with pytest.raises(FadevizError, match=message):
        dataclasses.replace(SMALL, **bad)


def test_no_cuda_is_said():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert choose_device("auto").type == "cpu"
    with pytest.raises(FadevizError, match="no CUDA device here .* Use --device cpu"):
        choose_device("cuda")
    with pytest.raises(FadevizError, match="no device 'gpu'"):
        choose_device("gpu")


def test_weights_of_one_name_are_told_apart(tmp_path):
    ids = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = build_network("segnet", "nearest").encoder.state_dict()
        names = dict(build_network("segnet", "nearest")._torchvision_names())
        (tmp_path / str(seed)).mkdir()
        torch.save({theirs: state[ours].half() for theirs, ours in names.items()}, tmp_path / str(seed) / "w.pth")
        ids.append(build_model(RunConfig(upsampler="nearest", weights=str(tmp_path / str(seed) / "w.pth")))[1])
    assert ids[0] != ids[1]
    assert all(name.startswith("w.pth (") for name in ids)


class Dropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1)
        )

    def forward(self, x):
        return self.layers(x)


def test_training_with_dropout_is_bit_identical_with_and_without_the_probe():
    states = []
    images, masks = torch.randn(2, 3, 8, 8), torch.randint(0, 2, (2, 8, 8))
    for observed in (True, False):
        torch.manual_seed(0)
        model = Dropout()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        probe = Probe(model, "layers.0")
        for result in fit(model, [(images, masks)] * 6, F.cross_entropy, optimizer, lambda step: 0.1):
            if observed:
                probe.observe(images, masks, F.cross_entropy, step=result.step, mode="batch")
        states.append({"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"][0]})
    assert_same_state(*states)


def test_default_schedules():
    assert list(RunConfig().schedule()) == [0, *sorted({*range(100, 3001, 100), *range(320, 361, 10)})]
    assert PAPER_SCHEDULE == "100:3000:100,320:360:10"
    short = RunConfig(steps=200).schedule()
    assert short.last == 200
    assert list(short)[:3] == [0, 1, 2]
    assert list(RunConfig(steps=1).schedule()) == [0, 1]


def test_weizmann_split_is_in_run_json(shared, tmp_path):
    folder = shared / "data" / "weizmann_horse_db"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    config = RunConfig(
        upsampler="nearest", data="weizmann", data_dir=str(folder), size=32, width=0.125, steps=1, kinds="feature"
    )
    info = run(config, tmp_path / "run").info
    assert (len(info["data"]["train"]), len(info["data"]["test"])) == (279, 49)
    assert set(info["observation"]["names"]) <= set(info["data"]["test"])
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["split_seed"] == 0


def test_the_checkpoint_too_is_the_seeds(tmp_path):
    files = []
    for folder, before in (("a", 1), ("b", 2)):
        torch.manual_seed(before)
        state = torch.get_rng_state()
        run(RunConfig(size=32, width=0.125, steps=1, snapshots="1", observe=1), tmp_path / folder)
        assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are the caller's
        files.append((tmp_path / folder / "checkpoints" / "last.pt").read_bytes())
    assert files[0] == files[1]
