"""Damaged runs: each fault is named, the rest stays usable, and a repair removes what is broken and nothing else."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fadeviz_cli.main import main
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fadeviz import FadevizError, open_run
from fadeviz.storage.check import check_run, repair_run
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from fadeviz.training.checkpoint import write_checkpoint
from render_runs import LAYER, STEPS, make_run

STEP = "snapshots/step_000050.safetensors"


@pytest.fixture
def folder(tmp_path):
    make_run(tmp_path / "run")
    return tmp_path / "run"


def digest(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_that_is_well(folder):
    assert check_run(folder) == []
    before = digest(folder)
    assert repair_run(folder) == []
    assert digest(folder) == before
    result = CliRunner().invoke(main, ["check", str(folder)])
    assert (result.exit_code, result.output) == (0, f"{folder}: all is well\n")


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(bytes(data))


def swap(file):
    file.write_bytes((file.parent / "step_000060.safetensors").read_bytes())


def foreign(file):
    other = make_run(file.parents[2] / "other", run_id="other")
    file.write_bytes((other.path / STEP).read_bytes())


def lacking(file, *, sums=True):
    """A map less; without checksums, as written by the first versions, nothing shows that there was one."""
    with safe_open(file, "np") as opened:
        header = json.loads(opened.metadata()["fadeviz"])
    if not sums:
        del header["crc32"]
    kept = {key: value for key, value in load_file(file).items() if not key.endswith("gate")}
    save_file(kept, file, metadata={"fadeviz": json.dumps(header)})


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (truncate, "damaged"),
        (lambda file: file.write_bytes(b""), "damaged"),
        (lambda file: file.write_bytes(b"\xff" * 500), "damaged"),
        (flip, "is not what was written (checksum)"),
        (swap, "holds step 60"),
        (foreign, "belongs to another run than a1b2c3"),
        (lacking, "lacks decoder.3.upsample/0/gate, with which it was written"),
    ],
)
def test_a_snapshot_is_named_and_removed_and_the_rest_is_as_it_was(folder, harm, what):
    good = digest(folder)
    harm(folder / STEP)
    (fault,) = (one for one in check_run(folder) if one.file == STEP)
    assert what in fault.what
    result = CliRunner().invoke(main, ["check", str(folder)])
    assert result.exit_code == 1
    assert f"{STEP}: " in result.output
    assert "--repair" in result.output
    assert [one.file for one in repair_run(folder)] == [STEP]
    del good[STEP]
    assert digest(folder) == good
    assert open_run(folder).steps == tuple(step for step in STEPS if step != 50)


def test_flipped_bits_of_a_snapshot_are_seen(folder):
    rng = random.Random(0)
    whole = (folder / STEP).read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (folder / STEP).write_bytes(bytes(data))
        assert [one.file for one in check_run(folder)] == [STEP]


def test_left_overs_and_cut_off_lines(folder):
    (folder / ".run.partial.json").write_text("{")
    (folder / "snapshots" / ".step_000007.partial.safetensors").write_bytes(b"x")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    (folder / "notes.txt").write_text("mine")
    assert len(check_run(folder)) == 3
    result = CliRunner().invoke(main, ["check", str(folder), "--repair"])
    assert result.exit_code == 0, result.output
    assert "metrics.jsonl: 1 of 2 lines are cut off or damaged: those lines removed" in result.output
    assert (folder / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'
    assert (folder / "notes.txt").read_text() == "mine"
    assert check_run(folder) == []


def test_a_file_that_cannot_be_removed_is_named(folder, monkeypatch):
    truncate(folder / STEP)
    before = digest(folder)

    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(FadevizError, match=rf"^cannot remove .*{STEP}: Permission denied\. Remove it by hand$"):
            repair_run(folder)
    assert digest(folder) == before
    assert [fault.file for fault in repair_run(folder)] == [STEP]


def test_what_cannot_be_repaired_is_said(folder):
    (folder / "observation.safetensors").write_bytes(b"")
    info = open_run(folder).info
    SnapshotStore(folder, "a1b2c3").write_info(dataclasses.replace(info, schedule=(*STEPS, 500)))
    assert [one.file for one in check_run(folder)] == ["observation.safetensors", "snapshots"]
    assert repair_run(folder) == []
    result = CliRunner().invoke(main, ["check", str(folder), "--repair"])
    assert result.exit_code == 1
    assert "has 2 faults" in result.output
    assert "--repair" not in result.output
    (folder / "run.json").write_text("{")
    with pytest.raises(FadevizError, match=r"run.json is damaged"):
        check_run(folder)


def test_a_moved_run_and_odd_names(folder, tmp_path):
    there = tmp_path / "a folder with spaces" / "Füchse 馬"
    there.parent.mkdir()
    shutil.move(folder, there)
    assert check_run(there) == []
    assert open_run(there).maps().shape[0] == len(STEPS)


# Every kind of file, and every way in which it can be another than it was.

CHECKPOINT = "checkpoints/last.pt"
FILES = [STEP, "observation.safetensors", "metrics.jsonl", "run.json", CHECKPOINT]


def complete(folder, run_id="a1b2c3", corner=0):
    """A run with all of its files."""
    make_run(folder, run_id=run_id, corner=corner)
    store = SnapshotStore(folder, run_id)
    store.write_info(dataclasses.replace(open_run(folder).info, schedule=STEPS))
    for step in range(1, 111):
        store.append_metrics({"step": step, "loss": 0.5})
    model = torch.nn.Linear(50, 50)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    write_checkpoint(folder / CHECKPOINT, 110, run_id, model, optimizer)
    return folder


def first_byte(file):
    data = file.read_bytes()
    file.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def a_folder(file):
    file.unlink()
    file.mkdir()


def another_runs(file):
    folder = file.parents[1] if file.parent.name in ("snapshots", "checkpoints") else file.parent
    other = complete(folder.parent / "other", run_id="0badcafe", corner=7)
    shutil.copy(other / file.relative_to(folder), file)


def another_file(file):
    folder = file.parents[1] if file.parent.name in ("snapshots", "checkpoints") else file.parent
    names = [name for name in FILES if folder / name != file]
    shutil.copy(folder / names[0], file)


HARMS = [truncate, lambda file: file.write_bytes(b""), lambda file: file.write_bytes(b"\xff" * 500), flip, first_byte,
         a_folder, another_runs, another_file, lambda file: file.unlink()]  # fmt: skip
CALLED = ["truncated", "empty", "garbage", "flipped", "first byte", "a folder", "another run's", "another file's"]
CALLED += ["missing"]
UNSEEN = {
    ("metrics.jsonl", "empty"),  # a run may have logged nothing
    ("metrics.jsonl", "missing"),
    ("metrics.jsonl", "another run's"),  # lines do not say whose they are
    ("metrics.jsonl", "flipped"),  # one digit has become another
    (CHECKPOINT, "missing"),  # nobody needs it but a run that has not finished
}
LEFT = {STEP: tuple(step for step in STEPS if step != 50)}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("harm", "called"), list(zip(HARMS, CALLED, strict=True)), ids=CALLED)
def test_every_file_in_every_way(tmp_path, name, harm, called):
    folder = complete(tmp_path / "run")
    assert check_run(folder) == []
    good = digest(folder)
    harm(folder / name)
    harmed = digest(folder)
    refused = ""
    try:
        faults = check_run(folder)
    except FadevizError as error:
        refused = str(error)
    if refused:
        assert name == "run.json"
        assert "is damaged" in refused or (called == "missing" and "has no run.json" in refused)
        with pytest.raises(FadevizError):
            repair_run(folder)
        assert digest(folder) == harmed
        return
    if (name, called) in UNSEEN:
        assert faults == []
        return
    named = {fault.file for fault in faults}
    assert named <= {name, "snapshots"}
    assert named if called == "missing" else name in named
    # What is not harmed is as usable as before.
    run = open_run(folder)
    left = LEFT.get(name, STEPS) if name != "run.json" else run.steps
    assert run.steps == left or called == "flipped"
    repaired = [fault.file for fault in repair_run(folder)]
    assert set(repaired) <= {name}
    for other, data in digest(folder).items():
        assert data == good[other] if other != name else True, other
    assert set(good) - set(digest(folder)) <= {name}
    if name in (STEP, CHECKPOINT, "metrics.jsonl") and called not in ("a folder", "missing"):
        assert repaired == [name]
        assert name not in {fault.file for fault in check_run(folder)}


def test_a_checkpoint_is_looked_at_without_torch(tmp_path):
    folder = complete(tmp_path / "run")
    flip(folder / CHECKPOINT)
    code = (
        "import sys; from fadeviz.storage.check import check_run\n"
        "print([(one.file, one.what) for one in check_run(sys.argv[1])], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[('checkpoints/last.pt', 'damaged: ")
    assert done.stdout.endswith("] False\n")


def test_another_runs_settings_cost_no_snapshot(tmp_path):
    folder = complete(tmp_path / "run")
    another_runs(folder / "run.json")
    before = digest(folder)
    (fault,) = check_run(folder)
    assert (fault.file, fault.what) == (
        "run.json",
        "belongs to run 0badcafe, but no snapshot does. Put the right file back",
    )
    assert repair_run(folder) == []
    assert digest(folder) == before


def test_other_maps_than_in_most_snapshots_are_no_damage(tmp_path):
    """A layer that begins to run twice, or at another size: each file is what was written."""
    folder = make_run(tmp_path / "run").path
    other = make_run(tmp_path / "other", size=(12, 16))
    for step in (0, 50):
        shutil.copy(other.path / f"snapshots/step_{step:06d}.safetensors", folder / "snapshots")
    run = open_run(folder)
    again = run.read(60, LAYER, "feature")
    SnapshotStore(folder, run.run_id).write(60, [Snapshot(60, LAYER, call, "feature", again) for call in (0, 1)])
    lacking(folder / "snapshots/step_000070.safetensors", sums=False)
    before = digest(folder)
    assert check_run(folder) == []
    assert repair_run(folder) == []
    assert digest(folder) == before
    result = CliRunner().invoke(main, ["check", str(folder)])
    assert result.exit_code == 0
    notes = result.stderr.splitlines()
    assert [note.split()[1] for note in notes] == [f"snapshots/step_{step:06d}.safetensors" for step in (0, 50, 60, 70)]
    assert notes[0].endswith("as F32 (1, 6, 12, 16), most snapshots as F32 (1, 6, 24, 32)")
    assert notes[2].endswith(f"lacks {LAYER}/0/channels, which most snapshots have")
    assert notes[3].endswith(f"lacks {LAYER}/0/gate, which most snapshots have")
    # What is the same in all of them is drawn; what is not says where.
    assert run.maps(LAYER, "gradient", steps=[10, 20]).shape == (2, 2, 24, 32)
    with pytest.raises(FadevizError, match="step 60: no 'gradient' of 'decoder.3.upsample', call 0"):
        np.asarray(open_run(folder).maps(LAYER, "gradient", steps=[10, 60]))
    assert open_run(folder).maps(LAYER, "feature", steps=[60], call=1).shape == (1, 2, 24, 32)


RECORD = """
import sys, torch
from torch.nn import functional as F
import fadeviz
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 1))
images, masks = torch.randn(2, 3, 24, 24), torch.ones(2, 24, 24, dtype=torch.long)
state = sys.argv[2]
first = 1
recorder = fadeviz.Recorder(model, "0", range(61), sys.argv[1], batch=(images, masks), loss_fn=F.cross_entropy,
                            resume=True)
print("ready", flush=True)
for step in range(1, 61):
    torch.manual_seed(step)
    loss = F.cross_entropy(model(torch.randn(2, 3, 24, 24)), masks)
    model.zero_grad(); loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
    recorder.step(step)
recorder.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_at_any_instant_every_snapshot_but_the_last_is_whole_and_going_on_gives_the_same(tmp_path):
    def start(out):
        return subprocess.Popen([sys.executable, "-c", RECORD, str(out), "x"], stdout=subprocess.PIPE)

    whole = start(tmp_path / "whole")
    whole.communicate()
    assert whole.returncode == 0
    rng = random.Random(1)
    for trial in range(50):
        out = tmp_path / f"killed{trial}"
        process = start(out)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        run = open_run(out)
        assert not run.broken
        assert run.steps == tuple(range(len(run.steps)))  # none is missing before the one being written
        assert not [fault for fault in check_run(out) if "partial" not in fault.file]
    for trial in (0, 24, 49):
        again = start(tmp_path / f"killed{trial}")
        again.communicate()
        assert again.returncode == 0
        assert digest(tmp_path / f"killed{trial}") == digest(tmp_path / "whole")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(folder):
    (folder / ".run.partial.json").write_text("{")
    folder.chmod(0o500)
    try:
        with pytest.raises(FadevizError, match="cannot remove"):
            repair_run(folder)
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize("name", [STEP, CHECKPOINT, "observation.safetensors"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, name, number):
    """Another user's file, a network disk that is away: nothing is removed for that."""
    folder = complete(tmp_path / "run")
    before = digest(folder)
    opened = os.open

    def refuse(path, *args, **options):
        if str(path) == str(folder / name):
            raise OSError(number, os.strerror(number))
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    told = [fault for fault in check_run(folder) if fault.file == name]
    assert [fault.repair for fault in told] == [""]
    if name != "observation.safetensors":
        assert told[0].what == f"cannot be read: {os.strerror(number)}"
    assert repair_run(folder) == []
    monkeypatch.undo()
    assert digest(folder) == before


def test_a_file_that_is_too_large_is_not_removed(tmp_path):
    """It may be a snapshot for all that is known; what is none at all is removed."""
    folder = complete(tmp_path / "run")
    with (folder / STEP).open("r+b") as file:
        file.truncate(2**40)
    (folder / "snapshots/step_000060.safetensors").unlink()
    (folder / "snapshots/step_000060.safetensors").symlink_to("/dev/zero")
    assert [fault.file for fault in check_run(folder)][:2] == [STEP, "snapshots/step_000060.safetensors"]
    assert [fault.file for fault in repair_run(folder)] == ["snapshots/step_000060.safetensors"]
    assert (folder / STEP).exists()
