"""Whole runs: the same bytes for the same command, untouched by the probe, resumed and killed without loss."""

import dataclasses
import json
import operator
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fadeviz_cli.main import main
from torch import nn
from torch.nn import functional as F

from fadeviz import FadevizError, open_run
from fadeviz.data.synthetic import dataset as synthetic
from fadeviz.errors import MissingExtra
from fadeviz.experiment import (
    PAPER_SCHEDULE,
    RunConfig,
    build_model,
    choose_device,
    differing_settings,
    read_config,
    train,
    usable_cores,
)
from fadeviz.experiment.checkpoints import Checkpoints
from fadeviz.experiment.observing import Observer
from fadeviz.experiment.session import Session
from fadeviz.experiment.training_run import earlier_threads
from fadeviz.models import build_network
from fadeviz.recording.probe import Probe
from fadeviz.storage.check import check_run
from fadeviz.storage.info import RunInfo
from fadeviz.training import checkpoint, tasks
from fadeviz.training.checkpoint import CheckpointWriter
from fadeviz.training.loop import compile_forward, fit
from fadeviz.training.signals import Interrupted

SMALL = RunConfig(
    upsampler="fade",
    size=64,
    width=0.125,
    steps=8,
    snapshots="2:8:2",
    evaluate_every=4,
    checkpoint_every=3,
    kinds="feature,gradient,channels,gate",
    observe=4,
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
        train(SMALL, folder)
    return folder


def test_what_a_run_leaves(whole):
    opened = open_run(whole)
    assert opened.steps == (0, 2, 4, 6, 8)
    assert opened.info.status == "finished"
    assert opened.info.upsampler == "fade"
    assert len(opened.layers) == 5
    assert opened.default_layer("feature") == "decoder.3.upsample"
    images, masks = opened.observation
    assert images.shape == (4, 64, 64, 3)
    assert set(np.unique(masks)) == {0, 1}
    lines = opened.metrics()
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert ["miou" in line for line in lines] == [False, False, False, True] * 2
    assert opened.info.result["miou"] == lines[-1]["miou"]
    assert len(set(opened.info.observation.names)) == 4
    assert read_config(whole) == SMALL
    # The maps change as the network learns.
    maps = opened.maps(kind="feature", image=0)
    assert all(not np.array_equal(a, b) for a, b in pairwise(maps))


def test_same_command_same_bytes(whole, tmp_path):
    train(SMALL, tmp_path / "again")
    assert files(tmp_path / "again") == files(whole)


def test_layers_that_a_glob_leaves_out_are_noted(tmp_path):
    config = dataclasses.replace(SMALL, layers="*", kinds="feature", steps=1, snapshots="1", evaluate_every=1)
    said: list[str] = []
    finished = train(config, tmp_path / "run", on_note=said.append)
    assert list(finished.layers) == ["head"]
    (note,) = finished.info.notes
    assert said == [note]
    assert note.startswith("left out: layer 'encoder', layer 'decoder' did not run in the forward pass")


def test_another_seed_other_maps_same_observation(whole, tmp_path):
    other = open_run(train(dataclasses.replace(SMALL, seed=1, steps=2, snapshots="2"), tmp_path / "seed1").path)
    first = open_run(whole)
    assert other.run_id != first.run_id
    np.testing.assert_array_equal(other.observation[0], first.observation[0])
    assert not np.array_equal(
        other.read(0, "decoder.3.upsample", "feature"), first.read(0, "decoder.3.upsample", "feature")
    )


@pytest.fixture(scope="module")
def unobserved(tmp_path_factory):
    """The same run, observed at step 0 only, where the layers are found, and there with a probe that sees nothing."""
    folder = tmp_path_factory.mktemp("runs") / "without"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "TEST_DRAWINGS", 8)
        patch.setattr(Probe, "observe", lambda *a, **k: [])
        train(SMALL, folder)
    return final_weights(folder)


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_training_is_bit_identical_with_and_without_the_probe(whole, unobserved, tmp_path, mode):
    if mode == "eval":
        with_probe = final_weights(whole)
    else:
        train(dataclasses.replace(SMALL, observe_mode="batch"), tmp_path / "with")
        with_probe = final_weights(tmp_path / "with")
    for part in ("model", "optimizer", "rng"):
        assert_same_state({part: with_probe[part]}, {part: unobserved[part]})


def test_that_comparison_can_fail(unobserved, tmp_path):
    """A different seed trains differently."""
    other = train(dataclasses.replace(SMALL, seed=1, snapshots="8"), tmp_path / "other")
    with pytest.raises(AssertionError):
        assert_same_state(final_weights(other.path)["model"], unobserved["model"])


def test_a_run_from_before_the_labels_setting_is_resumed(whole, tmp_path):
    def stop(progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, tmp_path / "run", on_progress=stop)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["config"].pop("labels") == "true"
    (tmp_path / "run" / "run.json").write_text(json.dumps(info))
    assert read_config(tmp_path / "run") == SMALL
    with pytest.raises(FadevizError, match="other settings: labels was 'true', is 'shuffled'. Use overwrite=True"):
        train(dataclasses.replace(SMALL, labels="shuffled"), tmp_path / "run", resume=True)
    train(SMALL, tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == files(whole)
    assert open_run(whole).run_id == "412cef852835"  # which it had before


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_interrupted_and_resumed_gives_the_same_bytes(whole, tmp_path, stop_at):
    def stop(progress):
        if progress.step == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, tmp_path / "run", on_progress=stop)
    half = open_run(tmp_path / "run")
    assert half.info.status == "interrupted"
    assert half.steps[-1] <= stop_at
    assert half.maps(kind="gradient").shape[0] == len(half.steps)  # readable as it is
    train(SMALL, tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == files(whole)
    assert_same_state(final_weights(tmp_path / "run"), final_weights(whole))


@pytest.mark.parametrize("finished", [True, False])
def test_what_resuming_does_not_bring_back_is_said(tmp_path, finished):
    tiny = dataclasses.replace(SMALL, steps=4, snapshots="1:4:1", kinds="feature", upsampler="nearest", width=1 / 16)
    if finished:
        train(tiny, tmp_path / "run")
    else:
        with pytest.raises(Interrupted):
            train(tiny, tmp_path / "run", on_progress=send(signal.SIGINT, 3))
    for step in (0, 2):
        (tmp_path / "run" / "snapshots" / f"step_{step:06d}.safetensors").unlink()
    notes = []
    assert train(tiny, tmp_path / "run", resume=True, on_note=notes.append).steps == (1, 3, 4)
    lost = "scheduled steps without a whole snapshot: 0, 2. Only recording the run anew brings them back"
    assert notes == [f"{tmp_path / 'run'}: {lost}"]
    assert [fault.what for fault in check_run(tmp_path / "run")] == [lost]
    notes = []
    train(tiny, tmp_path / "run", overwrite=True, on_note=notes.append)
    assert notes == check_run(tmp_path / "run") == []


def send(number, at, *, more=()):
    """An ``on_progress`` that sends this process a signal after step ``at``, and another one at each of ``more``."""

    def report(progress):
        if progress.step in (at, *more):
            os.kill(os.getpid(), number)

    return report


@pytest.mark.skipif(sys.platform == "win32", reason="signals are those of Unix")
class TestSignals:
    @pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
    def test_a_run_is_stopped_after_its_step_and_goes_on_with_the_next(self, whole, tmp_path, name):
        number = getattr(signal, name)
        before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        with pytest.raises(Interrupted) as caught:
            train(SMALL, tmp_path / "run", on_progress=send(number, 5))
        error = caught.value
        assert (error.signal, error.step, error.steps, error.saved) == (number, 5, 8, 5)
        assert not error.finished
        assert str(error) == "interrupted at step 5 of 8; resume=True continues at step 6"
        half = open_run(tmp_path / "run")
        assert half.info.status == "interrupted"
        assert half.info.message == str(error)
        assert half.info.last_step == 5
        assert half.steps == (0, 2, 4)
        assert final_weights(tmp_path / "run")["step"] == 5  # though checkpoints are due every third
        assert {one: signal.getsignal(one) for one in before} == before
        steps = []
        train(SMALL, tmp_path / "run", resume=True, on_progress=lambda progress: steps.append(progress.step))
        assert steps == [6, 7, 8]
        assert files(tmp_path / "run") == files(whole)
        assert_same_state(final_weights(tmp_path / "run"), final_weights(whole))

    @pytest.mark.parametrize("where", ["observer.observe", "checkpoints.save", "parts.task.evaluate", "writer.log"])
    def test_amid_whatever_is_done_after_a_step(self, whole, tmp_path, monkeypatch, where):
        """During an observation, a checkpoint, a test, or a line of the metrics: it is brought to its end."""
        real = Session.on_step_end

        def after(work, result):
            if result.step == 4:  # a test and an observation are due
                holder, _, name = where.rpartition(".")
                of = operator.attrgetter(holder)(work)
                done = getattr(of, name)

                def told(*args, **options):
                    os.kill(os.getpid(), signal.SIGTERM)
                    return done(*args, **options)

                config = dataclasses.replace(work.parts.config, checkpoint_every=4)
                monkeypatch.setattr(work.checkpoints, "_parts", dataclasses.replace(work.parts, config=config))
                object.__setattr__(of, name, told)
                real(work, result)
                object.__setattr__(of, name, done)
            else:
                real(work, result)

        monkeypatch.setattr(Session, "on_step_end", after)
        with pytest.raises(Interrupted) as caught:
            train(SMALL, tmp_path / "run")
        assert (caught.value.signal, caught.value.step, caught.value.saved) == (signal.SIGTERM, 4, 4)
        assert open_run(tmp_path / "run").info.status == "interrupted"
        monkeypatch.undo()
        monkeypatch.setattr(synthetic, "TEST_DRAWINGS", 8)
        train(SMALL, tmp_path / "run", resume=True)
        assert files(tmp_path / "run") == files(whole)

    def test_before_the_training_begins_nothing_is_written(self, tmp_path, monkeypatch):
        real = Probe.observe

        def observe(*args, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            return real(*args, **options)

        monkeypatch.setattr(Probe, "observe", observe)
        with pytest.raises(Interrupted, match="^interrupted before the training began$") as caught:
            train(SMALL, tmp_path / "run")
        assert (caught.value.signal, caught.value.step, caught.value.saved) == (signal.SIGTERM, None, None)
        assert not (tmp_path / "run").exists()

    def test_while_the_first_files_are_written(self, whole, tmp_path, monkeypatch):
        real = Session.begin

        def begin(work, overwrite):
            os.kill(os.getpid(), signal.SIGHUP)
            return real(work, overwrite)

        monkeypatch.setattr(Session, "begin", begin)
        with pytest.raises(Interrupted, match="^interrupted at step 0 of 8; resume=True continues at step 1$"):
            train(SMALL, tmp_path / "run")
        assert open_run(tmp_path / "run").info.status == "interrupted"
        assert open_run(tmp_path / "run").steps == (0,)
        train(SMALL, tmp_path / "run", resume=True)
        assert files(tmp_path / "run") == files(whole)

    def test_after_the_last_step_the_run_is_finished_and_the_caller_is_told(self, whole, tmp_path):
        with pytest.raises(Interrupted, match="after the last of 8 steps; the run is finished") as caught:
            train(SMALL, tmp_path / "run", on_progress=send(signal.SIGTERM, 8))
        assert caught.value.finished
        assert open_run(tmp_path / "run").info.status == "finished"
        assert files(tmp_path / "run") == files(whole)

    def test_somebody_who_insists_is_not_kept_waiting(self, tmp_path, monkeypatch):
        """A second SIGINT, two seconds later, amid a test: the step is lost, and the run says where it goes on."""
        clock = [100.0]
        monkeypatch.setattr("fadeviz.training.signals.time", SimpleNamespace(monotonic=lambda: clock[0]))

        def evaluate(*args, **options):
            os.kill(os.getpid(), signal.SIGINT)
            clock[0] += 1.9  # torchrun hands on what the terminal has sent already
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            clock[0] += 0.1
            os.kill(os.getpid(), signal.SIGTERM)  # no one at a keyboard
            waited.append(True)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("it was not heard")

        waited = []
        monkeypatch.setattr("fadeviz.training.tasks.evaluate", evaluate)
        with pytest.raises(
            Interrupted, match="^interrupted at step 4 of 8; resume=True continues at step 4$"
        ) as caught:
            train(SMALL, tmp_path / "run")
        assert waited
        assert caught.value.signal == signal.SIGINT
        assert open_run(tmp_path / "run").info.status == "interrupted"
        assert final_weights(tmp_path / "run")["step"] == 3

    def test_stopped_again_before_a_step_it_writes_no_checkpoint_anew(self, tmp_path, monkeypatch):
        """By which a job that gets nowhere is known (sweep/slurm.py)."""
        real = Session.begin
        monkeypatch.setattr(Session, "begin", lambda *args: (os.kill(os.getpid(), signal.SIGTERM), real(*args))[1])
        with pytest.raises(Interrupted):
            train(SMALL, tmp_path / "run")
        written = (tmp_path / "run" / "checkpoints" / "last.pt").stat().st_mtime_ns
        resume = Session.resume
        monkeypatch.setattr(Session, "resume", lambda *args: (os.kill(os.getpid(), signal.SIGTERM), resume(*args))[1])
        with pytest.raises(Interrupted, match="at step 0 of 8"):
            train(SMALL, tmp_path / "run", resume=True)
        assert (tmp_path / "run" / "checkpoints" / "last.pt").stat().st_mtime_ns == written

    def test_another_process_is_told_the_same(self):
        told = pickle.loads(pickle.dumps(Interrupted(15, 5, 8, 5)))
        assert (str(told), told.signal) == ("interrupted at step 5 of 8; resume=True continues at step 6", 15)

    @pytest.mark.slow
    def test_a_terminal_that_is_closed(self, tmp_path):
        pty = pytest.importorskip("pty")
        ours, theirs = pty.openpty()
        program = (
            "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"  # it is the terminal's own
            "from fadeviz_cli.main import main\nmain()"
        )
        out = tmp_path / "run"
        options = [
            "--size", "32", "--width", "0.0625", "--steps", "9999", "--snapshots", "9999",
            "--batch-size", "2", "--observe", "4",
        ]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", program, "record", "--out", str(out), "--evaluate-every", "9999", *options],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        deadline = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.close(ours)
        assert process.wait(120) == 128 + signal.SIGHUP
        stopped = open_run(out)
        assert stopped.info.status == "interrupted"
        assert final_weights(out)["step"] == stopped.info.last_step == stopped.metrics()[-1]["step"]

    def test_what_was_ignored_stays_ignored(self, tmp_path):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        try:
            train(
                dataclasses.replace(SMALL, steps=2, snapshots="2"), tmp_path / "run", on_progress=send(signal.SIGHUP, 1)
            )
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, before)
        assert open_run(tmp_path / "run").info.status == "finished"

    def test_in_another_thread_there_are_no_handlers(self, tmp_path):
        before = signal.getsignal(signal.SIGINT)
        with ThreadPoolExecutor(1) as pool:
            config = dataclasses.replace(SMALL, steps=1, snapshots="1")
            seen = []
            found = pool.submit(
                train, config, tmp_path / "run", on_progress=lambda _: seen.append(signal.getsignal(signal.SIGINT))
            )
            assert found.result().info.status == "finished"
        assert seen == [before]

    def test_the_handlers_return_after_an_error(self, tmp_path):
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(FadevizError, match="the loss became"):
            train(dataclasses.replace(SMALL, lr=1e30), tmp_path / "run")
        assert signal.getsignal(signal.SIGTERM) is before

    def test_a_full_disk_when_it_is_to_be_saved(self, tmp_path, monkeypatch):
        def full(*args):
            raise FadevizError("disk full while writing last.pt")

        monkeypatch.setattr("fadeviz.experiment.checkpoints.write_checkpoint", full)
        with pytest.raises(FadevizError, match="disk full"):
            train(dataclasses.replace(SMALL, checkpoint_every=8), tmp_path / "run", on_progress=send(signal.SIGINT, 2))
        assert open_run(tmp_path / "run").info.status == "failed"

    @pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
    def test_the_command_says_where_it_goes_on(self, tmp_path, monkeypatch, name, code):
        number = getattr(signal, name)
        real = Session.on_step_end

        def after(work, result):
            real(work, result)
            if result.step == stop_at:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Session, "on_step_end", after)
        out, stop_at = tmp_path / "a run", 2
        options = [
            "--size", "32", "--width", "0.0625", "--steps", "4", "--snapshots", "4",
            "--kinds", "feature", "--observe", "4",
        ]  # fmt: skip
        result = CliRunner().invoke(main, ["record", "--out", str(out), *options])
        assert result.exit_code == code
        line = f"interrupted at step 2 of 4; fadeviz record --resume --out '{out}' continues at step 3"
        assert result.stderr.splitlines()[-1] == line
        assert "Error" not in result.stderr
        stop_at = 4  # after the last: the run is finished, and so is the command
        result = CliRunner().invoke(main, ["record", "--resume", "--out", str(out)])
        assert result.exit_code == 0
        assert "2 snapshots;" in result.stdout

    def test_a_terminal_that_is_gone_ends_no_training(self, tmp_path, monkeypatch):
        """What is written to it fails before the signal has come."""

        def gone(*args, **options):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("tqdm.tqdm.__init__", gone)
        monkeypatch.setattr("tqdm.tqdm.__del__", lambda self: None)
        out = tmp_path / "run"
        options = [
            "--size", "32", "--width", "0.0625", "--steps", "2", "--snapshots", "2",
            "--kinds", "feature", "--observe", "4",
        ]  # fmt: skip
        assert CliRunner().invoke(main, ["record", "--out", str(out), *options]).exit_code == 0
        assert open_run(out).info.status == "finished"


def test_a_checkpoint_is_written_when_the_last_is_old(whole, tmp_path, monkeypatch):
    clock, saved = [0.0], []
    monkeypatch.setattr("fadeviz.experiment.checkpoints.time", SimpleNamespace(monotonic=lambda: clock[0]))
    real = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, step: (saved.append(step), real(self, step)))

    def slow(progress):
        clock[0] += 150.0

    train(SMALL, tmp_path / "run", on_progress=slow)
    assert saved == [3, 5, 6, 8]  # every third, the last, and one that was due after 300 seconds
    assert files(tmp_path / "run") == files(whole)


TINY = dataclasses.replace(
    SMALL, upsampler="nearest", kinds="feature,gradient", size=32, width=1 / 16, steps=2, snapshots="1:2:1",
    evaluate_every=1,
)  # fmt: skip
THREADED = dataclasses.replace(TINY, steps=8, snapshots="2:8:2", evaluate_every=4)


class TestArithmetic:
    """Torch's switches for a GPU, which stand on a CPU too."""

    @pytest.mark.parametrize("allowed", [True, False])
    def test_tf32_is_for_the_training_alone(self, tmp_path, monkeypatch, allowed):
        seen = {"training": set(), "observing": set(), "testing": set()}
        now, real = ["training"], tasks.segmentation_loss

        def loss(*args):
            what = "testing" if not torch.is_grad_enabled() else now[0]
            seen[what].add((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
            return real(*args)

        def observe(observer, step, real=Observer.observe):
            now[0] = "observing"
            snapshots = real(observer, step)
            now[0] = "training"
            return snapshots

        monkeypatch.setattr(tasks, "segmentation_loss", loss)  # of tests
        segmentation = dataclasses.replace(tasks.TASKS["segmentation"], loss=loss)
        monkeypatch.setitem(tasks.TASKS, "segmentation", segmentation)
        monkeypatch.setattr(Observer, "observe", observe)
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        finished = train(dataclasses.replace(TINY, tf32=allowed), tmp_path / "run")
        off = {(False, False)}
        assert seen == {"training": {(allowed, allowed)}, "observing": off, "testing": off}
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
        assert finished.info.config["tf32"] is allowed

    @pytest.mark.parametrize("wanted", [True, False])
    def test_deterministic_algorithms(self, tmp_path, monkeypatch, wanted):
        seen = []
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

        def report(progress):
            cudnn = torch.backends.cudnn
            enabled = torch.are_deterministic_algorithms_enabled()
            warns = torch.is_deterministic_algorithms_warn_only_enabled()
            workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
            seen.append((cudnn.deterministic, cudnn.benchmark, enabled, warns, workspace))

        train(dataclasses.replace(TINY, deterministic=wanted), tmp_path / "run", on_progress=report)
        assert set(seen) == {(True, False, wanted, wanted, ":4096:8" if wanted else None)}
        assert not torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ

    def test_a_cuda_graph_needs_a_cuda_device(self, tmp_path):
        with pytest.raises(FadevizError, match="compile=graph is for a CUDA device. Use compile=off on a CPU"):
            train(dataclasses.replace(TINY, compile="graph", device="cpu"), tmp_path / "run")
        assert not (tmp_path / "run" / "run.json").exists()

    def test_a_compiled_run_is_observed_tested_and_saved_as_any_other(self, tmp_path, monkeypatch):
        calls = []

        def backend(graph, inputs):
            return lambda *args: (calls.append(len(args)), graph(*args))[1]

        forward = partial(compile_forward, backend=backend)
        monkeypatch.setattr("fadeviz.experiment.training_run.compile_forward", forward)
        compiled = train(dataclasses.replace(TINY, compile="on"), tmp_path / "compiled")
        plain = train(TINY, tmp_path / "plain")
        assert len(calls) == 2  # the training steps
        assert compiled.metrics() == plain.metrics()
        assert_same_state(*(final_weights(tmp_path / name)["model"] for name in ("compiled", "plain")))
        for kind in ("feature", "gradient"):
            for a, b in zip(compiled.maps(kind=kind, image=0), plain.maps(kind=kind, image=0), strict=True):
                np.testing.assert_array_equal(a, b)

    def test_settings_that_came_later_leave_old_runs_their_ids(self, tmp_path):
        old = train(TINY, tmp_path / "old")
        newer = ("tf32", "deterministic", "compile")
        stored = {name: value for name, value in old.info.config.items() if name not in newer}
        (tmp_path / "old" / "run.json").write_text(json.dumps({**old.info.to_dict(), "config": stored}))
        assert old.run_id == "8754679fb103"  # of a version without these settings
        assert read_config(tmp_path / "old") == TINY
        assert differing_settings(stored, TINY) == ""
        for name, value in zip(newer, (True, True, "on"), strict=True):
            changed = dataclasses.replace(TINY, **{name: value})
            assert differing_settings(stored, changed) == f"{name} was {getattr(TINY, name)!r}, is {value!r}"
            with pytest.raises(FadevizError, match=f"other settings: {name} was"):
                train(changed, tmp_path / "old", resume=True)


class TestObservedImages:
    """Objects have to have an interior, but a run that began before that was so keeps its images and its id."""

    @staticmethod
    def stop(progress):
        if progress.step == 1:
            raise KeyboardInterrupt

    def test_of_an_earlier_version_are_kept(self, tmp_path, monkeypatch):
        with monkeypatch.context() as earlier:
            earlier.setattr("fadeviz.data.observation.has_interior", lambda inside: True)
            whole = train(TINY, tmp_path / "whole")
            with pytest.raises(Interrupted):
                train(TINY, tmp_path / "old", on_progress=self.stop)
        images = whole.info.observation.indices
        monkeypatch.setattr("fadeviz.data.observation.has_interior", lambda inside: inside.sum() % 2 == 0)
        now = train(TINY, tmp_path / "now")
        assert now.info.observation.indices != images
        assert now.run_id != whole.run_id
        old = train(read_config(tmp_path / "old"), tmp_path / "old", resume=True)
        assert old.info.observation == whole.info.observation
        assert old.run_id == whole.run_id == "8754679fb103"
        assert files(tmp_path / "old") == files(tmp_path / "whole")
        # Nor is the new one's resumption taken for an earlier version's.
        with pytest.raises(Interrupted):
            train(TINY, tmp_path / "new", on_progress=self.stop)
        new = train(TINY, tmp_path / "new", resume=True)
        assert (new.run_id, new.info.observation) == (now.run_id, now.info.observation)
        assert files(tmp_path / "new") == files(tmp_path / "now")

    def test_of_a_version_that_stored_no_indices_too(self, tmp_path, monkeypatch):
        with monkeypatch.context() as earlier:
            earlier.setattr("fadeviz.data.observation.has_interior", lambda inside: True)
            with pytest.raises(Interrupted):
                train(TINY, tmp_path / "old", on_progress=self.stop)
        monkeypatch.setattr("fadeviz.data.observation.has_interior", lambda inside: inside.sum() % 2 == 0)
        stored = json.loads((tmp_path / "old" / "run.json").read_text())
        images = stored["observation"].pop("indices")
        (tmp_path / "old" / "run.json").write_text(json.dumps(stored))
        assert list(train(TINY, tmp_path / "old", resume=True).info.observation.indices) == images

    def test_without_an_interior_are_named(self, tmp_path, monkeypatch):
        notes = []
        lacking = train(TINY, tmp_path / "lacking", on_note=notes.append)  # of 32 pixels, none has one
        names = ", ".join(lacking.info.observation.names)
        note = f"4 of 4 observed images have an object without an interior at a quarter of the image's size: {names}."
        assert [one for one in notes if one.startswith(note)]
        assert lacking.info.notes == tuple(notes)
        monkeypatch.setattr("fadeviz.data.interior.has_interior", lambda inside: True)
        assert not train(TINY, tmp_path / "having").info.notes

    def test_a_dozen_is_the_default(self):
        assert RunConfig().observe == 12


class TestCheckpointsFromAThread:
    """As on a GPU."""

    @pytest.fixture(autouse=True)
    def _from_a_thread(self, monkeypatch):
        real = Checkpoints.__init__

        def init(checkpoints, *args):
            real(checkpoints, *args)
            self.writer = checkpoints.writer = CheckpointWriter()

        monkeypatch.setattr(Checkpoints, "__init__", init)
        self.clock = [0.0]
        monkeypatch.setattr("fadeviz.experiment.checkpoints.time", SimpleNamespace(monotonic=lambda: self.clock[0]))

    def later(self, seconds, calls=None):
        def report(progress):
            self.clock[0] += seconds
            if calls is not None:
                calls(progress)

        return report

    def test_the_first_when_it_is_due_and_then_one_a_minute(self, tmp_path, monkeypatch):
        saved, write = [], checkpoint._write

        def slow(path, state):
            time.sleep(0.1)
            write(path, state)
            saved.append(state["step"])

        def calls(progress):
            if progress.step == 2:
                assert saved == [2]  # the training has waited for the first
            while self.writer.busy:  # which may put off the next
                time.sleep(0.01)

        monkeypatch.setattr(checkpoint, "_write", slow)
        config = dataclasses.replace(TINY, steps=10, snapshots="10", evaluate_every=10, checkpoint_every=2)
        train(config, tmp_path / "run", on_progress=self.later(25.0, calls))
        assert saved == [2, 5, 8, 10]  # due at 4 and 6, but 60 seconds had passed only at 5 and 8

    def test_stopped_and_resumed(self, tmp_path):
        with pytest.raises(Interrupted) as caught:
            train(THREADED, tmp_path / "run", on_progress=self.later(1.0, send(signal.SIGTERM, 5)))
        assert (caught.value.step, caught.value.saved) == (5, 5)
        assert final_weights(tmp_path / "run")["step"] == 5
        train(THREADED, tmp_path / "run", resume=True, on_progress=self.later(1.0))
        train(THREADED, tmp_path / "whole")
        assert files(tmp_path / "run") == files(tmp_path / "whole")
        assert_same_state(final_weights(tmp_path / "run"), final_weights(tmp_path / "whole"))

    @pytest.mark.parametrize("at", [3, 6, 8])
    def test_a_full_disk_is_reported_at_the_next_step_at_the_latest(self, tmp_path, monkeypatch, at):
        write = checkpoint._write

        def full(path, state):
            if state["step"] == at:
                raise FadevizError("disk full while writing last.pt")
            write(path, state)

        monkeypatch.setattr(checkpoint, "_write", full)
        steps = []

        def settle(progress):
            steps.append(progress.step)
            while self.writer.busy:  # a step of this size takes less time than a thread may need to begin
                time.sleep(0.001)

        later = self.later(60.0, settle)
        with pytest.raises(FadevizError, match="disk full"):
            train(THREADED, tmp_path / "run", on_progress=later)
        failed = open_run(tmp_path / "run")
        assert failed.info.status == "failed"
        assert "disk full" in failed.info.message
        assert failed.info.last_step in (at, at + 1)
        assert steps[-1] in (at - 1, at)
        assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())

    def test_whatever_ends_a_run_waits_for_what_is_being_written(self, tmp_path, monkeypatch):
        def report(progress):
            if progress.step == 5:
                self.clock[0] += 100
            if progress.step == 7:
                ended.set()
                raise SystemExit

        write, slow, ended = checkpoint._write, threading.Event(), threading.Event()

        def delayed(path, state):
            if state["step"] == 6:
                assert slow.wait(60)
            write(path, state)

        monkeypatch.setattr(checkpoint, "_write", delayed)
        wait = Checkpoints.wait
        monkeypatch.setattr(Checkpoints, "wait", lambda self: (slow.set() if ended.is_set() else None, wait(self)))
        with pytest.raises(SystemExit):
            train(THREADED, tmp_path / "run", on_progress=report)
        assert final_weights(tmp_path / "run")["step"] == 6
        train(THREADED, tmp_path / "run", resume=True)
        assert open_run(tmp_path / "run").info.status == "finished"


class TestThreads:
    @pytest.fixture(autouse=True)
    def _restored(self):
        before = torch.get_num_threads()
        yield
        torch.set_num_threads(before)

    @pytest.mark.parametrize(("stored", "used", "noted"), [(1, 1, 0), (2, 2, 0), (64, 3, 1)])
    def test_as_many_as_it_was_begun_with_or_as_there_are_cores(self, tmp_path, monkeypatch, stored, used, noted):
        monkeypatch.setattr("fadeviz.experiment.training_run.usable_cores", lambda: 3)
        tiny = dataclasses.replace(SMALL, steps=2, snapshots="2", kinds="feature", upsampler="nearest", width=1 / 16)
        torch.set_num_threads(1)
        with pytest.raises(Interrupted):
            train(tiny, tmp_path / "run", on_progress=send(signal.SIGINT, 1))
        info = json.loads((tmp_path / "run" / "run.json").read_text())
        (tmp_path / "run" / "run.json").write_text(json.dumps({**info, "threads": stored, "processes": 2}))
        seen, notes = [], []
        train(
            tiny, tmp_path / "run", resume=True, on_note=notes.append,
            on_progress=lambda progress: seen.append(torch.get_num_threads()),
        )  # fmt: skip
        assert seen == [used]
        assert torch.get_num_threads() == 1  # the caller's
        assert len(notes) == noted
        assert all("started with 64 threads and continues with 3, the number of cores" in one for one in notes)
        after = open_run(tmp_path / "run").info
        assert after.threads == used
        assert list(after.notes) == notes
        assert after.processes is None  # one alone has finished it

    def test_of_several_processes_here_each_takes_its_share_of_the_cores(self, monkeypatch):
        monkeypatch.setattr("fadeviz.experiment.training_run.usable_cores", lambda: 4)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        torch.set_num_threads(1)
        with earlier_threads(SimpleNamespace(info=RunInfo(threads=64))):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 1


def test_killed_and_resumed_gives_the_same_bytes(tmp_path):
    program = (
        "import sys, dataclasses\n"
        "import fadeviz.experiment as e\n"
        "import fadeviz.data.synthetic.dataset as s\n"
        "s.TEST_DRAWINGS = 8\n"
        "c = e.RunConfig(upsampler='fade', size=32, width=0.125, steps=10, snapshots='1:10:1', evaluate_every=10,\n"
        "                checkpoint_every=4, observe=4, kinds='feature,gradient')\n"
        "e.train(c, sys.argv[1], resume=len(sys.argv) > 2)\n"
    )
    out = tmp_path / "run"
    # With several threads, as a user's training has: the promise must hold there. Many would wait for each other.
    several = {**os.environ, "OMP_NUM_THREADS": str(min(4, usable_cores())), "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen([sys.executable, "-c", program, str(out)], env=several)
    deadline = time.monotonic() + 120
    try:
        while not (out / "snapshots" / "step_000006.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = open_run(out)
    assert killed.info.status == "running"
    assert not killed.broken
    assert 6 <= killed.steps[-1] < 10
    assert killed.maps(image=0).shape == (len(killed.steps), 16, 16)
    subprocess.run([sys.executable, "-c", program, str(out), "resume"], check=True, env=several)
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "undisturbed")], check=True, env=several)
    assert files(out) == files(tmp_path / "undisturbed")


def test_a_finished_run_resumed_is_left_alone(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    assert train(SMALL, whole, resume=True).steps == (0, 2, 4, 6, 8)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_loss_that_is_not_finite_stops_the_run_and_keeps_it(tmp_path):
    with pytest.raises(FadevizError, match=r"the loss became (nan|inf) at step \d+. Use a smaller lr="):
        train(dataclasses.replace(SMALL, lr=1e30, steps=30, snapshots="1:30:1"), tmp_path / "run")
    kept = open_run(tmp_path / "run")
    assert kept.info.status == "failed"
    assert "the loss became" in kept.info.message
    assert kept.steps[0] == 0
    assert kept.maps(image=0).shape[0] == len(kept.steps)


def test_disk_full_is_one_line_and_keeps_what_is_there(tmp_path, monkeypatch):
    real = os.replace

    def full(source, target):
        if str(target).endswith("step_000004.safetensors"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("fadeviz.storage.files.os.replace", full)
    with pytest.raises(FadevizError, match="disk full while writing .*step_000004.safetensors.*resume=True"):
        train(SMALL, tmp_path / "run")
    assert open_run(tmp_path / "run").steps == (0, 2)
    assert not list((tmp_path / "run").rglob(".*partial*"))


@pytest.mark.parametrize("where", ["fadeviz.recording.probe.Probe.observe", "fadeviz.training.tasks.evaluate"])
def test_out_of_memory_is_one_line(tmp_path, monkeypatch, where):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(where, full)
    with pytest.raises(
        FadevizError, match="^out of memory. Use a smaller batch_size=..., observe=..., size=... or width=...$"
    ):
        train(SMALL, tmp_path / "run")


class TestFolder:
    def test_in_use(self, whole):
        line = "holds a run already. Continue it with resume=True, replace it with overwrite=True"
        with pytest.raises(FadevizError, match=line):
            train(SMALL, whole)

    def test_overwrite_replaces_the_run_and_nothing_else(self, tmp_path):
        tiny = dataclasses.replace(SMALL, steps=1, snapshots="1", kinds="feature")
        train(tiny, tmp_path / "run")
        (tmp_path / "run" / "notes.txt").write_text("mine")
        train(dataclasses.replace(tiny, seed=3), tmp_path / "run", overwrite=True)
        assert open_run(tmp_path / "run").info.config["seed"] == 3
        assert (tmp_path / "run" / "notes.txt").read_text() == "mine"

    def test_overwrite_refuses_what_is_no_run(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(FadevizError, match="so it is not a run: nothing is replaced"):
            train(SMALL, tmp_path, overwrite=True)
        assert (tmp_path / "thesis.tex").read_text() == "years of work"

    def test_a_file_in_its_place(self, tmp_path):
        (tmp_path / "out").write_text("x")
        with pytest.raises(FadevizError, match="out is a file"):
            train(SMALL, tmp_path / "out")

    def test_bad_settings_leave_an_old_run_alone(self, whole):
        before = files(whole)
        for bad in ({"upsampler": "fad"}, {"layers": "nothing.*"}, {"kinds": "fature"}, {"observe": 99}):
            with pytest.raises(FadevizError):
                train(dataclasses.replace(SMALL, **bad), whole, overwrite=True)
        assert files(whole) == before

    @pytest.mark.parametrize(
        "bad", [{"layers": "decoder"}, {"upsampler": "carafe:kernel_size=4,encoder_kernel_size=2"}]
    )
    def test_what_cannot_be_observed_leaves_an_old_run_alone(self, whole, bad):
        before = files(whole)
        with pytest.raises(FadevizError):
            train(dataclasses.replace(SMALL, kinds="", **bad), whole, overwrite=True)
        assert files(whole) == before

    def test_an_interrupted_overwrite_can_be_given_again(self, tmp_path, monkeypatch):
        tiny = dataclasses.replace(SMALL, steps=1, snapshots="1", kinds="feature")
        train(tiny, tmp_path / "run")
        with monkeypatch.context() as patch:
            removed: list[Path] = []

            def remove(path):
                if removed:
                    raise KeyboardInterrupt
                removed.append(path)
                path.unlink()

            patch.setattr("fadeviz.storage.snapshots._remove", remove)
            with pytest.raises(KeyboardInterrupt):
                train(tiny, tmp_path / "run", overwrite=True)
        assert train(tiny, tmp_path / "run", overwrite=True).info.status == "finished"

    def test_a_lost_checkpoint_does_not_cost_the_snapshots(self, tmp_path):
        def stop(progress):
            if progress.step == 6:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(SMALL, tmp_path / "run", on_progress=stop)
        (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
        with pytest.raises(FadevizError, match=r"last.pt is missing, though 6 steps were done. Put it back"):
            train(SMALL, tmp_path / "run", resume=True)
        assert open_run(tmp_path / "run").steps == (0, 2, 4, 6)

    def test_a_second_writer_is_refused(self, whole, tmp_path):
        tiny = dataclasses.replace(SMALL, steps=1, snapshots="1", kinds="feature")
        refused = []

        def second(progress):
            try:
                train(dataclasses.replace(tiny, seed=5), tmp_path / "run", overwrite=True)
            except FadevizError as error:
                refused.append(str(error))

        train(tiny, tmp_path / "run", on_progress=second)
        assert len(refused) == 1
        assert "this process is recording into" in refused[0]
        assert open_run(tmp_path / "run").info.config["seed"] == 0
        train(dataclasses.replace(tiny, seed=5), tmp_path / "run", overwrite=True)  # free again

    def test_resume_with_other_settings(self, whole):
        with pytest.raises(FadevizError, match=r"other settings: lr was 0.01, is 0.1. Use overwrite=True"):
            train(dataclasses.replace(SMALL, lr=0.1), whole, resume=True)

    def test_resume_of_nothing(self, tmp_path):
        with pytest.raises(FadevizError, match="no run folder"):
            train(SMALL, tmp_path / "none", resume=True)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"data": "weizman"}, "no data set 'weizman'. Nearest: 'weizmann'"),
        ({"data": "weizmann"}, "data weizmann needs its folder: data_dir="),
        ({"size": 100}, "size is 100; it must be divisible by 32. Nearest: 96"),
        ({"size": 0}, "size is 0; it must be 1 or more"),
        ({"size": 16}, "size is 16; it must be divisible by 32. Nearest: 32"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number"),
        ({"steps": "8"}, "steps is '8'; it must be a whole number"),
        ({"steps": True}, "steps is True; it must be a whole number"),
        ({"steps": 10**30}, r"steps is 10+; it must be 1 or more and at most 10\^9"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"observe": 0}, "observe is 0; it must be 1 or more"),
        ({"channel_images": -2}, "channel_images is -2; it must be 1 or more"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0; it must be 1 or more"),
        ({"subset": -1}, "subset is -1; it must be 0 or more"),
        ({"subset": 5}, "subset is 5 of data synthetic: this set is only used whole"),
        ({"momentum": -5}, "momentum is -5; it must be 0 or more and below 1"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be 0 or more and below 1"),
        ({"momentum": float("nan")}, "momentum is nan; it must be a finite number"),
        ({"width": -1}, "width is -1; it must be above 0 and at most 4"),
        ({"width": float("inf")}, "width is inf; it must be a finite number"),
        ({"width": "1"}, "width is '1'; it must be a finite number"),
        ({"lr": True}, "lr is True; it must be a finite number"),
        (
            {"lr_drops": (0.9, 0.7)},
            r"lr_drops is \(0.9, 0.7\); it must be shares of the run from 0 to 1, in increasing",
        ),
        ({"lr_drops": (2.0,)}, r"lr_drops is \(2.0,\); it must be shares of the run from 0 to 1"),
        ({"lr_drops": "x"}, "lr_drops is 'x'; it must be a sequence of finite numbers"),
        ({"flip": "yes"}, "flip is 'yes'; it must be True or False"),
        ({"device": "cuda:7"}, "no device 'cuda:7'. Nearest: 'cuda'"),
        ({"weights": "a\0b"}, r"weights is 'a.*b'; it must be a string without NUL characters"),
        ({"network": "segnett"}, "no network 'segnett'. Nearest: 'segnet'"),
        ({"upsampler": "fad"}, "no upsampler 'fad'. Nearest: 'fade'"),
        ({"upsampler": "fade:gat=off"}, "no option of fade 'gat'. Nearest: 'gate'"),
        ({"upsampler": "carafe:groups=3", "kinds": ""}, "64 channels do not divide into 3 groups"),
        ({"layers": "decoder.9.upsample"}, "no layer in SegNet 'decoder.9.upsample'. Nearest: 'decoder.4.upsample'"),
        ({"kinds": "features"}, "no kind 'features'. Nearest: 'feature'"),
        ({"upsampler": "nearest"}, "none of the layers .* has 'gate': there is no gate to record"),
        ({"lr": -0.1}, "lr is -0.1; it must be 0 or more"),
        ({"seed": -1}, r"seed is -1; it must be from 0"),
        ({"split_seed": 2**64}, r"split_seed is \d+; it must be from 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be 0 or more"),
        ({"data_dir": "/data"}, "data synthetic has no folder, but data_dir is /data. Use data=weizmann"),
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"compile": "reduce"}, "no compile mode 'reduce'. Nearest: 'reduce-overhead'"),
        ({"tf32": "on"}, "tf32 is 'on'; it must be True or False"),
        ({"deterministic": 1}, "deterministic is 1; it must be True or False"),
        ({"labels": "shufled"}, "no kind of labels 'shufled'. Nearest: 'shuffled'"),
        ({"observe_mode": "train"}, "no observation mode 'train'"),
        ({"evaluate_every": -1}, "evaluate_every is -1"),
        ({"snapshots": "100:900:100"}, "reaches step 900, but the run ends at step 8"),
    ],
)
def test_bad_settings(bad, message):
    with pytest.raises(FadevizError, match=message):
        dataclasses.replace(SMALL, **bad)


def test_settings_are_what_run_json_can_hold():
    given = RunConfig(
        steps=np.int64(8), snapshots="2", seed=np.uint8(3), lr=np.float32(0.5), lr_drops=np.array([0.5, 0.5]),
        flip=np.bool_(True), weights=Path("a") / "b", size=64, width=1 / 16,
    )  # fmt: skip
    assert given == RunConfig(
        steps=8, snapshots="2", seed=3, lr=0.5, lr_drops=(0.5, 0.5), flip=True, weights="a/b", size=64, width=1 / 16
    )
    assert json.loads(json.dumps(dataclasses.asdict(given)))["seed"] == 3
    assert hash(given)
    # A whole number stays one: the ids of stored runs are made of it.
    assert repr(RunConfig(lr=1, size=64).lr) == "1"


def test_settings_are_read_where_the_network_cannot_be_built(monkeypatch):
    def missing(*args, **options):
        raise MissingExtra("segformer", "the network segformer needs transformers")

    monkeypatch.setattr("fadeviz.experiment.validation.build_network", missing)
    assert RunConfig(network="segformer", layers="some.layer").layers == "some.layer"


def test_checking_a_model_draws_no_weights():
    state = torch.get_rng_state()
    RunConfig(size=64, width=0.3)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_cuda_is_said():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert choose_device("auto").type == "cpu"
    with pytest.raises(FadevizError, match="no CUDA device here .* Use device=cpu"):
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
    info = train(config, tmp_path / "run").info
    assert (len(info.data["train"]), len(info.data["test"])) == (279, 49)
    assert set(info.observation.names) <= set(info.data["test"])
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["split_seed"] == 0


def test_the_checkpoint_too_is_the_seeds(tmp_path):
    files = []
    for folder, before in (("a", 1), ("b", 2)):
        torch.manual_seed(before)
        state = torch.get_rng_state()
        train(RunConfig(size=32, width=0.125, steps=1, snapshots="1", observe=1), tmp_path / folder)
        assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are the caller's
        files.append((tmp_path / folder / "checkpoints" / "last.pt").read_bytes())
    assert files[0] == files[1]
