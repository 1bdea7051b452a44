"""RunWriter: one writer a folder, from the beginning of a run to its end."""

import dataclasses

import numpy as np
import pytest

from fadeviz import FadevizError, Snapshot, open_run
from fadeviz.storage.check import check_run
from fadeviz.storage.info import RunInfo
from fadeviz.storage.writer import RunWriter

IMAGES, MASKS = np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 8, 8), np.uint8)


def maps(step):
    return [Snapshot(step, "up", 0, "feature", np.full((1, 4, 4), step, np.float32))]


def record(out, steps=(0, 5), status="finished"):
    with RunWriter(out) as writer:
        writer.begin("0a1b2c", RunInfo(status="running", upsampler="fade", extra={"mine": 1}), IMAGES, MASKS)
        for step in steps:
            writer.snapshot(step, maps(step))
            writer.log({"step": step, "loss": 0.5})
        if status:
            writer.end(status, "why" if status != "finished" else None)


def test_a_run_from_its_beginning_to_its_end(tmp_path):
    out = tmp_path / "run"
    record(out)
    run = open_run(out)
    assert (run.steps, run.status, run.run_id, run.info.upsampler) == ((0, 5), "finished", "0a1b2c", "fade")
    assert [line["step"] for line in run.metrics()] == [0, 5]
    assert np.array_equal(run.observation[1], MASKS)
    assert check_run(out) == []


def test_nothing_is_written_before_it_begins_and_the_folder_is_locked(tmp_path):
    out = tmp_path / "run"
    with RunWriter(out) as writer:
        assert not writer.begun
        assert list(out.iterdir()) == []
        with pytest.raises(FadevizError, match="this process is recording into"):
            RunWriter(out)
        for write in (
            lambda: writer.snapshot(0, maps(0)),
            lambda: writer.log({"step": 0}),
            lambda: writer.end("finished"),
            lambda: writer.forget_after(3),
        ):
            with pytest.raises(FadevizError, match="is not open for writing: begin or resume the run first"):
                write()
    assert not out.exists()  # what came to nothing leaves nothing


def test_resumed_it_drops_what_will_be_recorded_again(tmp_path):
    out = tmp_path / "run"
    record(out, (0, 5, 10), status="interrupted")
    stopped = open_run(out)
    assert (stopped.status, stopped.info.message) == ("interrupted", "why")
    with RunWriter(out) as writer:
        writer.resume("0a1b2c", dataclasses.replace(stopped.info, status="running", message=None), step=5)
        assert open_run(out).status == "running"
        assert open_run(out).steps == (0, 5)
        assert [line["step"] for line in open_run(out).metrics()] == [0, 5]
        writer.snapshot(10, maps(10))
        writer.end("finished")
    finished = open_run(out)
    assert (finished.steps, finished.status, finished.info.message) == ((0, 5, 10), "finished", None)
    assert finished.info.extra == {"mine": 1}


def test_a_writer_that_is_closed_without_an_end_has_stopped(tmp_path):
    record(tmp_path / "run", status="")
    assert open_run(tmp_path / "run").info.status == "running"
    assert open_run(tmp_path / "run").status == "stopped"


def test_overwriting_removes_the_run_that_is_there(tmp_path):
    out = tmp_path / "run"
    record(out, (0, 5, 10))
    (out / "notes.txt").write_text("mine")
    with RunWriter(out) as writer:
        writer.begin("ffffff", RunInfo(status="running"), IMAGES, MASKS, overwrite=True)
        writer.snapshot(0, maps(0))
        writer.end("failed", "no reason")
    run = open_run(out)
    assert (run.run_id, run.steps, run.status, run.metrics()) == ("ffffff", (0,), "failed", [])
    assert (out / "notes.txt").read_text() == "mine"
