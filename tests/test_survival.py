"""What a run survives: full and read-only disks, second writers, clocks, locales, odd names, and strangers' files."""

import ast
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fadeviz_cli.main import main
from torch.nn import functional as F

from fadeviz import FadevizError, Recorder, RecorderWarning, open_run
from fadeviz.data.images import open_image
from fadeviz.data.synthetic import dataset as synthetic
from fadeviz.errors import printable
from fadeviz.storage.check import check_run, repair_run
from fadeviz.storage.files import check_regular, has_lock, machine, only_writer, read_regular, replacing, write_whole
from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import Snapshot, SnapshotStore, read_metrics, remove_run
from fadeviz.sweep import Trial, has_begun, read_plan
from fadeviz.training.checkpoint import write_checkpoint
from render_runs import STEPS, make_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="mounts, signals and locks of a POSIX system")

SMALL = [
    *("--size", "32", "--width", "0.125", "--steps", "6", "--snapshots", "1:6:1", "--evaluate-every", "6"),
    *("--checkpoint-every", "2", "--observe", "2"),
]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _few_test_drawings(monkeypatch):
    monkeypatch.setattr(synthetic, "TEST_DRAWINGS", 8)


@pytest.fixture
def disk(tmp_path):
    """A disk of its own: ``disk(size=...)`` mounts it, and later calls with ``remount`` change it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small disk can be mounted by root alone, with CAP_SYS_ADMIN: {done.stderr.strip()}")
        return folder

    if not shutil.which("mount"):
        pytest.skip("needs the command mount")
    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def call(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def fails(result):
    """The one line that a command ended with; no traceback, exit code 1."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def digest(folder, *, but=()):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in but
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "TEST_DRAWINGS", 8)
        result = call("record", *SMALL, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


# --- the disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "when"),
    [
        slow("4k", "run.json"),
        ("8k", "observation"),
        slow("24k", "step_000000"),
        slow("100k", "step_"),
        slow("3m", "last.pt"),
        ("6m", "last.pt"),
    ],
)
def test_a_disk_that_fills_while_recording(whole, disk, size, when):
    out = disk(f"size={size}") / "run"
    if when == "run.json":
        (out.parent / "full").write_bytes(b"\0" * 4096)
    line = fails(call("record", *SMALL, "--out", out))
    assert line.startswith(f"Error: disk full while writing {out}")
    assert when in line
    assert not list(out.rglob(".*"))
    begun = (out / "run.json").exists()
    if begun:
        assert [fault.file for fault in check_run(out)] == ["observation.safetensors"] * (when == "observation")
        assert [
            hashlib.sha256(file.read_bytes()).hexdigest() == digest(whole)[f"snapshots/{file.name}"]
            for file in (out / "snapshots").iterdir()
        ] == [True] * len(open_run(out).steps)
    disk("remount,size=64m")
    result = call("record", *(["--resume"] if begun else SMALL), "--out", out)
    assert result.exit_code == 0, result.output
    assert digest(out, but=["run.json"]) == digest(whole, but=["run.json"])
    assert check_run(out) == []


RECORD = """
import sys, torch
from torch.nn import functional as F
import fadeviz
out, last = sys.argv[1:]
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 1))
images, masks = torch.randn(2, 3, 24, 24), torch.ones(2, 24, 24, dtype=torch.long)
recorder = fadeviz.Recorder(model, "0", range(31), out, batch=(images, masks), loss_fn=F.cross_entropy, resume=True)
print("ready", flush=True)
for step in range(1, int(last) + 1):
    torch.manual_seed(step)
    loss = F.cross_entropy(model(torch.randn(2, 3, 24, 24)), masks)
    model.zero_grad(); loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
    recorder.log(step, loss=float(loss))
    recorder.step(step)
sys.stdin.readline()
"""


def start(out, last=30):
    command = [sys.executable, "-c", RECORD, str(out), str(last)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def loop(out, *, steps=range(1, 31), limit=None, on_error="raise"):
    """The same loop in this process."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 1))
    images, masks = torch.randn(2, 3, 24, 24), torch.ones(2, 24, 24, dtype=torch.long)
    with Recorder(
        model, "0", range(31), out, batch=(images, masks), loss_fn=F.cross_entropy, resume=True, on_error=on_error
    ) as recorder:
        for step in steps:
            torch.manual_seed(step)
            loss = F.cross_entropy(model(torch.randn(2, 3, 24, 24)), masks)
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            recorder.step(step)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("size", ["8k", "40k", "100k", "160k"])
def test_a_disk_that_fills_under_a_recorder(tmp_path, disk, size):
    loop(tmp_path / "whole")
    out = disk(f"size={size}") / "run"
    with pytest.raises(FadevizError, match=r"^disk full while writing .* continues with resume=True$"):
        loop(out)
    assert not list(out.rglob(".*"))
    if (out / "run.json").exists():
        assert [fault for fault in check_run(out) if fault.file != "observation.safetensors"] == []
    disk("remount,size=64m")
    loop(out)
    assert digest(out) == digest(tmp_path / "whole")


def test_a_disk_that_fills_under_a_recorder_does_not_end_the_training(tmp_path, disk, recwarn):
    loop(tmp_path / "whole")
    out = disk("size=100k") / "run"
    weights = loop(out, on_error="warn")
    warned = [str(one.message) for one in recwarn.list if one.category is RecorderWarning]
    assert re.match(r"fadeviz: nothing was recorded at step \d+: disk full while writing", warned[0])
    assert len(warned) <= 2  # of the steps, and of the end
    assert torch.equal(weights, loop(tmp_path / "other"))
    assert not list(out.rglob(".*"))
    last = max(open_run(out).steps)
    assert 0 < last < 30
    disk("remount,size=64m")
    loop(out)
    assert digest(out, but=["run.json"]) == digest(tmp_path / "whole", but=["run.json"])
    assert open_run(out).info.status == "finished"


def test_a_line_that_did_not_fit_leaves_nothing_of_itself(disk):
    folder = disk("size=16k")
    store = SnapshotStore(folder, "x")
    with pytest.raises(FadevizError, match="disk full"):
        exhaust(store)
    lines = (folder / "metrics.jsonl").read_bytes()
    assert lines.endswith(b"}\n")
    (folder / "metrics.jsonl").write_bytes(lines[: len(lines) // 2])  # cut off, as by a crash, and there is room again
    kept = len(read_metrics(folder / "metrics.jsonl"))
    store.append_metrics({"step": 5, "loss": 0.25})
    assert len(read_metrics(folder / "metrics.jsonl")) == kept + 1


def exhaust(store):
    for step in range(10_000):
        store.append_metrics({"step": step, "loss": 0.5})


DRAWINGS = [
    ("grid", "a.png"),
    ("grid", "a.pdf"),
    ("grid", "a.svg"),
    ("animate", "a.gif"),
    ("animate", "a.apng"),
    ("animate", "a.webp"),
    ("animate", "a.mp4"),
    ("report", "a.html"),
    ("plot", "a.png"),
    ("plot", "a.pdf"),
]


def draw(command, run, output):
    if output.suffix == ".mp4":
        pytest.importorskip("imageio_ffmpeg", reason='needs ffmpeg: pip install ".[video]"')
    return call(command, run, "-o", output)


@pytest.mark.parametrize(
    ("command", "name"),
    [one if one[1] in ("a.mp4", "a.html") or one == ("grid", "a.pdf") else slow(*one) for one in DRAWINGS],
)
def test_a_picture_that_does_not_fit_leaves_the_old_one(tmp_path, disk, command, name):
    run = make_run(tmp_path / "run").path
    folder = disk("size=8k")
    (folder / name).write_bytes(b"old")
    line = fails(draw(command, run, folder / name))
    assert str(folder / name) in line
    assert "disk" in line
    assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [(name, b"old")]
    disk("remount,size=64m")
    assert draw(command, run, folder / name).exit_code == 0
    assert len((folder / name).read_bytes()) > 1000


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(tmp_path):
    """As a quota does; needs no mount."""
    code = "import sys; from fadeviz_cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "record", *SMALL, "--out", str(tmp_path / "run")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6,) * 2),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"Error: cannot write {tmp_path / 'run'}/checkpoints/last.pt: {os.strerror(errno.EFBIG)}"
    assert check_run(tmp_path / "run") == []
    assert not list((tmp_path / "run").rglob(".*"))


def test_a_disk_that_cannot_be_written(tmp_path, disk):
    folder = disk("size=64m")
    run = make_run(folder / "run").path
    (run / "snapshots" / "step_000050.safetensors").write_bytes(b"")
    unfinished = folder / "unfinished"
    assert call("record", *SMALL, "--steps", "3", "--snapshots", "1:3:1", "--out", unfinished).exit_code == 0
    info = open_run(unfinished).info
    SnapshotStore(unfinished, info.run_id).write_info(dataclasses.replace(info, status="interrupted"))
    before = digest(folder)
    disk("remount,ro")
    told = f": {os.strerror(errno.EROFS)}"
    assert told in fails(call("record", *SMALL, "--out", folder / "new"))
    assert told in fails(call("record", "--resume", "--out", unfinished))
    assert told in fails(call("record", *SMALL, "--overwrite", "--out", unfinished))
    assert told in fails(call("check", run, "--repair"))
    for command, name in [("grid", "a.pdf"), ("animate", "a.gif"), ("report", "a.html")]:
        assert told in fails(draw(command, run, folder / name))
    with pytest.raises(FadevizError, match=told):
        loop(folder / "loop")
    assert call("info", run).exit_code == 0
    assert [fault.file for fault in check_run(run)] == ["snapshots/step_000050.safetensors"]
    assert call("grid", run, "-o", tmp_path / "grid.png").exit_code == 0
    assert digest(folder) == before


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")],
)
def test_memory_that_does_not_suffice(tmp_path, monkeypatch, error):
    def full(*args, **options):
        raise error

    monkeypatch.setattr("fadeviz.recording.probe.Probe.observe", full)
    assert "out of memory. Use a smaller --batch-size" in fails(call("record", *SMALL, "--out", tmp_path / "run"))
    monkeypatch.setattr("fadeviz.recording.probe.Probe.observe", lambda *args, **options: 1 / 0)
    assert isinstance(call("record", *SMALL, "--out", tmp_path / "run").exception, ZeroDivisionError)  # ours is shown


def test_killed_or_full_before_the_first_file(tmp_path):
    (tmp_path / "run" / "snapshots").mkdir(parents=True)
    (tmp_path / "run" / ".run.partial.json").write_text("{")
    loop(tmp_path / "run", steps=())
    assert open_run(tmp_path / "run").steps == (0,)
    assert list((tmp_path / "run").glob(".*")) == []
    (tmp_path / "other" / "snapshots").mkdir(parents=True)
    (tmp_path / "other" / "snapshots" / "mine.txt").write_text("years of work")
    with pytest.raises(FadevizError, match="so it is not a run"):
        loop_new(tmp_path / "other")


def loop_new(out):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    Recorder(model, "0", [1], out, batch=(torch.ones(1, 3, 4, 4), None), overwrite=True)


# --- other processes ------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_whoever_comes_first(tmp_path):
    out = tmp_path / "sweep" / "fade-seed0"
    first = start(out, last=3)
    try:
        assert first.stdout.readline() == "ready\n"
        while open_run(out).steps[-1] < 3:
            time.sleep(0.05)
        before = digest(out)
        refused = "another process is recording into"
        assert refused in fails(call("record", *SMALL, "--overwrite", "--out", out))
        with pytest.raises(FadevizError, match=refused):
            loop(out)
        with pytest.raises(FadevizError, match=refused):
            repair_run(out)
        link = tmp_path / "link"
        link.symlink_to(out)
        with pytest.raises(FadevizError, match=refused):
            loop(link)
        assert check_run(out) == []  # looking is no writing
        assert digest(out) == before
        # What it is just writing is not left over.
        live = out / "snapshots" / f".step_000009.{machine()}-{first.pid}.partial.safetensors"
        live.write_bytes(b"half")
        assert check_run(out) == []
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert [fault.file for fault in check_run(out)] == [f"snapshots/{live.name}"]
    loop(out)
    loop(tmp_path / "whole")
    assert not live.exists()
    assert digest(out, but=["metrics.jsonl"]) == digest(tmp_path / "whole")


FORKED = """
import os, sys, time
from pathlib import Path
from fadeviz.storage.files import check_regular, has_lock, only_writer
from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import SnapshotStore
out = Path(sys.argv[1])
lock = only_writer(out)
lock.__enter__()
child = os.fork()
if child == 0:
    with open(os.devnull) as reused:  # has the number that the lock had
        lock.__exit__(None, None, None)
        os.fstat(reused.fileno())
    assert out.exists() and not has_lock(out)
    os.write(1, b"%d\\n" % os.getpid())  # whole lines: both processes write to one pipe
    time.sleep(60)
    os._exit(0)
SnapshotStore(out, "x").write_info(RunInfo(status="running"))
os.write(1, b"ready\\n")
sys.stdin.readline()
"""


def test_a_child_that_outlives_a_killed_recording_has_no_lock(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-c", FORKED, str(out)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = int(next(line for line in sorted(parent.stdout.readline() for _ in range(2)) if line != "ready\n"))
    try:
        assert open_run(out).status == "running"
        with pytest.raises(FadevizError, match="another process is recording"), only_writer(out):
            pass
        parent.kill()
        parent.wait()
        os.kill(child, 0)
        assert open_run(out).status == "stopped"
        with only_writer(out):
            assert open_run(out).status == "running"
    finally:
        parent.kill()
        os.kill(child, signal.SIGKILL)
        parent.communicate()


def test_a_run_that_was_killed_says_so(tmp_path):
    out = tmp_path / "run"
    process = start(out, last=3)
    assert process.stdout.readline() == "ready\n"
    assert open_run(out).status == "recording"
    assert "status       recording\n" in call("info", out).output
    process.kill()
    process.communicate()
    assert open_run(out).status == "stopped"
    status = "stopped without reporting a result: run.json has status recording, but no process writes into the folder"
    assert f"status       {status}\n" in call("info", out).output
    # Of a writer elsewhere, or where there are no locks, nobody here knows.
    store = SnapshotStore(out, open_run(out).run_id)
    for writer in ("0badcafe", ""):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fadeviz.storage.snapshots.has_lock", lambda folder, writer=writer: bool(writer))
            patch.setattr("fadeviz.storage.snapshots.machine", lambda writer=writer: writer)
            store.write_info(dataclasses.replace(open_run(out).info, status="running"))
        assert open_run(out).info.writer == writer
        assert open_run(out).status == "running"
    # As recorded before the writer was noted.
    info = json.loads((out / "run.json").read_text())
    del info["writer"], info["crc32"]
    (out / "run.json").write_text(json.dumps(info))
    opened = open_run(out)
    assert opened.status == "stopped"
    loop(out)
    assert opened.status == "finished"  # since it was opened
    assert open_run(out).status == "finished"
    assert open_run(out).info.writer is None


def test_to_look_is_not_to_be_in_the_way(tmp_path):
    """Somebody who looks all the time keeps no writer from beginning."""
    make_run(tmp_path)
    code = (
        "import sys; from pathlib import Path; from fadeviz.storage.files import lock_is_free\n"
        "print('ready', flush=True)\nwhile True: lock_is_free(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    looking = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        assert [process.stdout.readline() for process in looking] == ["ready\n"] * 2
        for _ in range(30):
            with only_writer(tmp_path):
                assert has_lock(tmp_path)
    finally:
        for process in looking:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_a_sweep_and_a_run_in_it(tmp_path):
    """Either way: to record a run of a sweep that is going on, and to sweep over a run that is being recorded."""
    out = tmp_path / "fade-seed0"
    refused = f"another process is recording into {out}. Wait for it"
    code = "import sys; from fadeviz_cli.main import main; main(sys.argv[1:])"
    record = [sys.executable, "-c", code, "record", *SMALL, "--out", str(out)]
    with only_writer(out):
        done = subprocess.run(record, capture_output=True, text=True)
        result = call("sweep", "--upsamplers", "fade", "--seeds", "0:1", "--out", tmp_path, *SMALL)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {refused}")
    assert "1 of 1 runs failed" in fails(result)
    assert f"failed: {out}: {refused}" in result.stderr
    assert not out.exists()  # nobody wrote into it


HAMMER = """
import sys
from pathlib import Path
from fadeviz.storage.files import write_whole
from fadeviz.storage.snapshots import SnapshotStore
path, letter = Path(sys.argv[1]), sys.argv[2].encode()
for _ in range(300):
    write_whole(path, letter * 100_000)
"""


def test_two_writers_of_one_file_do_not_meet_in_a_temporary_one(tmp_path):
    """As on a file system without locks, from two machines: each write is whole, and none fails."""
    path = tmp_path / "file.bin"
    both = [
        subprocess.Popen([sys.executable, "-c", HAMMER, str(path), letter], stderr=subprocess.PIPE) for letter in "ab"
    ]
    seen = set()
    while any(process.poll() is None for process in both):
        if path.exists():
            data = path.read_bytes()
            assert data in (b"a" * 100_000, b"b" * 100_000)
            seen.add(data[:1])
    for process in both:
        assert process.communicate()[1] == b""
        assert process.returncode == 0
    assert list(tmp_path.iterdir()) == [path]
    assert seen


def test_whose_left_overs_are_removed(tmp_path):
    run = make_run(tmp_path / "run")
    here, elsewhere = machine(), "0badcafe"
    dead = subprocess.Popen(["true"])
    dead.wait()
    alive = subprocess.Popen(["sleep", "60"])
    try:
        names = {
            "of a living process here": f".run.{here}-{alive.pid}.partial.json",
            "of this process, before": f".run.{here}-{os.getpid()}.partial.json",
            "of a dead process here": f".run.{here}-{dead.pid}.partial.json",
            "of another machine": f".run.{elsewhere}-{alive.pid}.partial.json",
            "of an earlier version": ".run.partial.json",
        }
        for name in names.values():
            (run.path / name).write_text("{")
        SnapshotStore(run.path, run.run_id)
        left = {what for what, name in names.items() if (run.path / name).exists()}
        assert left == {"of a living process here", "of another machine"}
        assert [fault.file for fault in check_run(run.path)] == [names["of another machine"]]
        assert [fault.file for fault in repair_run(run.path)] == [names["of another machine"]]
        assert check_run(run.path) == []
    finally:
        alive.kill()
        alive.wait()


def test_the_temporary_file_is_named_after_its_writer(tmp_path):
    with replacing(tmp_path / "image.png") as partial:
        assert partial.name == f".image.{machine()}-{os.getpid()}.partial.png"
        partial.write_bytes(b"x")


# --- links and special files ----------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """A run, and another one that is to stay as it is."""
    runs = [make_run(tmp_path / name, run_id=name * 3) for name in ("run", "victim")]
    for run in runs:
        (run.path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 9')
        write_checkpoint(
            run.path / "checkpoints" / "last.pt", 110, run.run_id, *(lambda m: (m, torch.optim.SGD(m.parameters())))(
                torch.nn.Linear(2, 2)
            )
        )  # fmt: skip
        (run.path / "snapshots" / "step_000050.safetensors").write_bytes(b"damaged")
    return [run.path for run in runs]


def linked(file, to):
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink()
    file.symlink_to(to)


EVERY_FILE = ["run.json", "metrics.jsonl", "observation.safetensors", "snapshots/step_000050.safetensors"]
EVERY_FILE += ["checkpoints/last.pt"]


@pytest.mark.parametrize("name", ["snapshots", "checkpoints", *EVERY_FILE])
def test_nothing_behind_a_link_is_changed(two, name):
    """Neither by a repair, nor by what a new, a resumed or a replaced recording does to a folder."""
    run, victim = two
    (victim / "snapshots" / ".step_000007.partial.safetensors").write_bytes(b"x")
    before = digest(victim)
    stranger = run.with_name("stranger")
    for act in (repair_run, write_all, remove_run):
        shutil.rmtree(stranger, ignore_errors=True)
        shutil.copytree(run, stranger)
        linked(stranger / name, victim / name)
        if act is write_all and name in ("snapshots", "checkpoints"):
            told = f"{stranger / name} leads to {victim / name}, where .* does not belong to this run: nothing is "
            with pytest.raises(FadevizError, match=told):
                act(stranger)
        else:
            act(stranger)
        assert digest(victim) == before
    # A link that leads nowhere, to a place that something could be made in.
    linked(run / name, victim / "nowhere")
    with contextlib.suppress(FadevizError):
        write_all(run)
    assert digest(victim) == before


def write_all(run):
    """Every file of a run, as a recording that goes on from step 10 writes them."""
    store = SnapshotStore(run, "runrunrun")
    store.forget_after(10)
    store.write_info(RunInfo.from_dict({"status": "recording"}))
    store.append_metrics({"step": 11})
    store.write(50, [Snapshot(50, "a", 0, "feature", np.ones((1, 2, 2), np.float32))])
    store.write_observation(np.ones((1, 2, 2, 3), np.uint8), np.ones((1, 2, 2), np.uint8))
    model = torch.nn.Linear(2, 2)
    write_checkpoint(run / "checkpoints" / "last.pt", 50, "runrunrun", model, torch.optim.SGD(model.parameters()))


def test_what_carries_the_runs_id_is_its_own_also_behind_a_link(tmp_path):
    """As where a disk is small: goes on to the same bytes, and what is damaged or left over there is repaired."""
    loop(tmp_path / "whole")
    out, large = tmp_path / "run", tmp_path / "large"
    loop(out, steps=range(1, 12))
    shutil.move(out / "snapshots", large)
    (out / "snapshots").symlink_to(large)
    (large / "notes.txt").write_text("mine")
    data = (large / "step_000005.safetensors").read_bytes()
    (large / "step_000005.safetensors").write_bytes(data[:-9])
    (large / ".step_000012.0badcafe-1.partial.safetensors").write_bytes(data[:-20])
    (large / ".step_000013.0badcafe-1.partial.safetensors").write_bytes(b"nobody's")
    assert sorted(fault.file for fault in repair_run(out)) == [
        "snapshots/.step_000012.0badcafe-1.partial.safetensors",
        "snapshots/step_000005.safetensors",
    ]
    loop(out)
    assert (large / "notes.txt").read_text() == "mine"
    (large / "notes.txt").unlink()
    (large / ".step_000013.0badcafe-1.partial.safetensors").unlink()
    assert digest(large) == digest(tmp_path / "whole" / "snapshots")
    assert (out / "snapshots").is_symlink()
    # A new run takes an empty folder behind a link, and leaves one that is not.
    for name, note in (("empty", False), ("full", True)):
        (tmp_path / name).mkdir()
        if note:
            (tmp_path / name / "notes.txt").write_text("mine")
        (tmp_path / f"run {name}").mkdir()
        (tmp_path / f"run {name}" / "snapshots").symlink_to(tmp_path / name)
    loop(tmp_path / "run empty", steps=range(1, 3))
    assert len(list((tmp_path / "empty").iterdir())) == 3
    with pytest.raises(FadevizError, match="holds files but no run.json"):
        loop(tmp_path / "run full", steps=range(1, 3))


def test_a_backup_by_hard_links_stays_as_it_was(tmp_path):
    loop(tmp_path / "run", steps=range(1, 6))
    store = SnapshotStore(tmp_path / "run", open_run(tmp_path / "run").run_id)
    store.append_metrics({"step": 5, "loss": 0.5})
    shutil.copytree(tmp_path / "run", tmp_path / "backup", copy_function=os.link)
    before = digest(tmp_path / "backup")
    store.append_metrics({"step": 6, "loss": 0.25})  # of a recording that goes on
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [5, 6]
    loop(tmp_path / "run", steps=range(6, 31))
    assert digest(tmp_path / "backup") == before


def test_a_run_is_replaced_and_not_what_lies_in_its_folders(tmp_path):
    run = make_run(tmp_path / "run").path
    mine = ["snapshots/notes.txt", "snapshots/old/step_000001.safetensors", "checkpoints/best.pt", "figures/a.png"]
    for name in mine:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    loop_new(run)
    assert {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()} == {
        *mine, "run.json", "observation.safetensors", "snapshots/step_000000.safetensors",
    }  # fmt: skip
    (run / "run.json").unlink()
    before = digest(run)
    with pytest.raises(FadevizError, match="holds files but no run.json, so it is not a run"):
        loop(run)  # resume=True
    assert digest(run) == before


@pytest.mark.parametrize("name", ["snapshots", "checkpoints", "run.json", "snapshots/step_000050.safetensors"])
def test_a_run_that_cannot_be_replaced_stays_as_it_was(tmp_path, name):
    """What is in the way is found before anything is removed."""
    run = make_run(tmp_path / "run").path
    (run / "checkpoints").mkdir()
    if name in ("snapshots", "checkpoints"):
        shutil.rmtree(run / name)
        (run / name).write_text("mine")
    else:
        (run / name).unlink()
        (run / name).mkdir()
        (run / name / "notes.txt").write_text("mine")
    before = digest(run)
    with pytest.raises(
        FadevizError,
        match=f"{name} is (not a folder|a folder with files) and does not belong to a run. Remove it by hand",
    ):
        loop_new(run)
    assert digest(run) == before


def test_only_a_runs_own_temporary_files_are_left_over(tmp_path):
    run = make_run(tmp_path / "run")
    names = [".thesis.partial.docx", ".thesis.partial", ".run.partial.txt", ".last.partial.json", ".partial.json"]
    names += [
        f".figure.{machine()}-1.partial.png",
        ".step_1.partial.safetensors",
        f".run.{machine()}-1.partial.json.gz",
    ]
    for folder in ("", "snapshots", "checkpoints"):
        (run.path / folder).mkdir(exist_ok=True)
        for name in names:
            (run.path / folder / name).write_text("mine")
    (run.path / ".run.partial.json").symlink_to(run.path / "run.json")
    before = digest(run.path)
    assert check_run(run.path) == repair_run(run.path) == []
    SnapshotStore(run.path, run.run_id)
    assert not has_begun(run.path / "snapshots")  # no run there
    assert digest(run.path) == before


def fifo(file):
    os.mkfifo(file)


def terabyte(file):
    with file.open("wb") as opened:
        opened.truncate(2**40)


def listening(file):
    with contextlib.chdir(file.parent), socket.socket(socket.AF_UNIX) as opened:
        opened.bind(file.name)


SPECIAL = {
    "pipe": fifo,
    "zero": lambda file: file.symlink_to("/dev/zero"),
    "circle": lambda file: file.symlink_to(file.name),
    "nowhere": lambda file: file.symlink_to("nowhere"),
    "folder": lambda file: file.mkdir(),
    "terabyte": terabyte,
    "socket": listening,
}
NOT_NEEDED = ("metrics.jsonl", "checkpoints/last.pt")
READERS = ["info {}", "check {}", "grid {} -o a.png", "animate {} -o a.gif", "analyze {}", "report {} -o a.html"]
READERS += ["plot {} -o a.png", "export --to npz {} -o a.npz", "check --repair {}"]


class Waits(BaseException):
    """Nothing catches it."""


@pytest.fixture
def patience():
    """Ten seconds, and then it has waited for ever."""

    def over(*_):
        raise Waits

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("what", [what if what in ("pipe", "zero", "terabyte") else slow(what) for what in SPECIAL])
@pytest.mark.usefixtures("patience")
def test_what_is_no_file_is_not_waited_for(two, monkeypatch, name, what):
    run, _ = two
    monkeypatch.chdir(run.parent)
    (run / name).unlink()
    SPECIAL[what](run / name)
    quick = READERS if what in ("pipe", "zero") else [*READERS[:3], READERS[-1]]
    for command in quick:
        result = call(*command.format("run").split())
        assert result.exception is None or isinstance(result.exception, SystemExit), (command, result.exception)
        assert result.exit_code in (0, 1), (command, result.output)
        if name == "run.json":
            assert "run.json" in fails(result)
        elif command == "info {}":
            assert result.exit_code == 0
        elif command == "check {}" and not (what in ("nowhere", "circle") and name in NOT_NEEDED):
            assert f"{name}: " in result.stderr


@pytest.mark.parametrize("what", ["pipe", "zero", "terabyte", "circle", "folder"])
@pytest.mark.usefixtures("patience")
def test_a_manifest_that_is_no_file(tmp_path, what):
    SPECIAL[what](tmp_path / "manifest.json")
    with pytest.raises(FadevizError, match="manifest.json is damaged"):
        read_plan(tmp_path)
    result = call("sweep", "--upsamplers", "fade", "--seeds", "0:1", "--out", tmp_path, *SMALL)
    assert "manifest.json is damaged" in fails(result)
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_a_member_of_a_sweep_behind_a_link_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".run.partial.json").write_text("mine")
    (tmp_path / "fade-seed0").symlink_to("mine")
    assert not has_begun(tmp_path / "fade-seed0")
    assert (tmp_path / "mine" / ".run.partial.json").exists()


@pytest.mark.parametrize("what", ["pipe", "zero", "terabyte"])
@pytest.mark.usefixtures("patience")
def test_a_picture_that_is_no_file(tmp_path, what):
    for name in ("horse.png", "objectInfo150.txt"):
        SPECIAL[what](tmp_path / name)
    with pytest.raises(FadevizError, match=r"horse.png cannot be read: it (is a|has)"):
        open_image(tmp_path / "horse.png")
    for read in (read_regular, lambda path: check_regular(path, 2**30)):
        with pytest.raises(OSError, match=r"it is a|at most"):
            read(tmp_path / "objectInfo150.txt")


@pytest.mark.usefixtures("patience")
def test_a_pipe_in_the_place_of_a_file_is_not_written_into(tmp_path):
    run = make_run(tmp_path / "run", run_id="runrunrun").path
    for name in ("run.json", "observation.safetensors", "snapshots/step_000050.safetensors"):
        (run / name).unlink()
        os.mkfifo(run / name)
    os.mkfifo(run / "metrics.jsonl")
    with pytest.raises(FadevizError, match="metrics.jsonl cannot be read: it is a FIFO, but a file is needed"):
        write_all(run)
    (run / "metrics.jsonl").unlink()
    write_all(run)
    assert open_run(run).steps == (0, 10, 50)
    assert not [file for file in run.rglob("*") if file.is_fifo()]


def test_limits_on_what_is_read_hold_for_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("fadeviz.storage.snapshots.TENSORS_LIMIT", 1000)
    monkeypatch.setattr("fadeviz.storage.snapshots.TEXT_LIMIT", 100)
    store = SnapshotStore(tmp_path, "x")
    store.write(0, [Snapshot(0, "a", 0, "feature", np.ones((1, 15, 15), np.float32))])
    with pytest.raises(FadevizError, match="the maps of step 1 have 1,024 bytes, but at most 900 can be read again"):
        store.write(1, [Snapshot(1, "a", 0, "feature", np.ones((1, 16, 16), np.float32))])
    (tmp_path / "long").write_bytes(bytes(101))
    assert len(read_regular(tmp_path / "long", 101)) == 101
    with pytest.raises(OSError, match="it has 101 bytes, but at most 100 are read"):
        read_regular(tmp_path / "long", 100)


def test_the_standard_output_is_not_replaced(tmp_path):
    """``/dev/stdout`` may lead to a file: who is root would replace the link itself."""
    code = (
        "from pathlib import Path; from fadeviz.storage.files import write_whole; "
        "write_whole(Path('/dev/stdout'), b'x')"
    )
    before = os.readlink("/dev/stdout")
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_bytes() == b"x"
    assert os.readlink("/dev/stdout") == before


def test_a_picture_named_through_a_link_replaces_the_link(tmp_path):
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("target")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"mine"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"
    (tmp_path / f".link.{machine()}-{os.getpid()}.partial").symlink_to("target")
    write_whole(tmp_path / "link", b"newer")
    assert (tmp_path / "target").read_bytes() == b"mine"


# --- clocks, locales, names -----------------------------------------------------------------------------------------


ODD = """
import locale, random, time
rng, real = random.Random(0), time.time
time.time = lambda: real() + rng.choice([-1e9, 0, 1e9])
time.time_ns = lambda: int(time.time() * 1e9)
locale.setlocale(locale.LC_ALL, "")
"""

EVERYTHING = """
import os, shutil, sys
from fadeviz.data.synthetic import dataset as synthetic
from fadeviz.data.images import open_image
from fadeviz_cli.main import main
synthetic.TEST_DRAWINGS = 8
out, small = sys.argv[1], sys.argv[2:]
copy = os.fsdecode("F\\xfcchse \\u99ac".encode())
for command in (["record", *small, "--out", out], ["check", out], ["info", out],
                *(["grid", out, "-o", f"{out}/figures/grid.{e}"] for e in ("png", "pdf", "svg")),
                *(["animate", out, "-o", f"{out}/figures/a.{e}"] for e in ("gif", "webp")),
                ["report", out, "-o", f"{out}/figures/report.html"],
                ["plot", out, "-o", f"{out}/figures/plot.pdf"],
                ["analyze", out, "--json", f"{out}/figures/a.json", "--csv", f"{out}/figures/a.csv"]):
    main(command, standalone_mode=False)
shutil.copytree(out, copy)
for command in (["check"], ["info"], ["analyze"], ["grid", "-o", f"{copy}.png"], ["report", "-o", f"{copy}.html"]):
    main([*command, copy], standalone_mode=False)
"""


@pytest.mark.slow
def test_clock_locale_and_time_zone_change_no_byte(tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "sitecustomize.py").write_text(ODD)
    turkish = "C"
    if shutil.which("localedef"):
        made = subprocess.run(
            ["localedef", "-i", "tr_TR", "-f", "UTF-8", str(tmp_path / "odd" / "tr_TR.UTF-8")],
            capture_output=True,
            check=False,
        )
        turkish = "tr_TR.UTF-8" if made.returncode == 0 else "C"
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "TZ", "PYTHONUTF8"))}
    settings = {
        "plain": {"LC_ALL": "C.UTF-8", "TZ": "UTC"},
        "turkish": {"LC_ALL": turkish, "LOCPATH": str(tmp_path / "odd"), "TZ": "Pacific/Kiritimati"},
        "ascii": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "America/St_Johns"},
    }
    runs = {}
    for name, more in settings.items():
        path = {} if name == "plain" else {"PYTHONPATH": str(tmp_path / "odd")}
        (tmp_path / name).mkdir()
        runs[name] = subprocess.Popen(
            [sys.executable, "-c", EVERYTHING, "run", *SMALL],
            cwd=tmp_path / name,  # the report says how it was called
            env={**plain, **more, **path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    for name, process in runs.items():
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, (name, errors.decode()[-2000:])
    # The checkpoint holds torch's global random numbers, which a training without dropout leaves to chance.
    same = digest(tmp_path / "plain" / "run", but=["run.json", "last.pt"])
    assert len(same) > 17
    for name in settings:
        assert digest(tmp_path / name / "run", but=["run.json", "last.pt"]) == same, name


@pytest.mark.parametrize("stamp", [0, 4_102_444_800], ids=["1970", "2100"])
def test_the_age_of_files_means_nothing(whole, tmp_path, stamp):
    shutil.copytree(whole, tmp_path / "run")
    info = open_run(whole).info
    SnapshotStore(tmp_path / "run", info.run_id).write_info(dataclasses.replace(info, status="interrupted"))
    for file in (tmp_path / "run").rglob("*"):
        os.utime(file, (stamp, stamp))
    assert check_run(tmp_path / "run") == []
    assert call("record", "--resume", "--out", tmp_path / "run").exit_code == 0
    assert digest(tmp_path / "run", but=["run.json"]) == digest(whole, but=["run.json"])


NAMES = [
    "with spaces",
    "Füchse 馬 🐎",
    "new\nline",
    "-dash",
    "\x1b[2J\x07",
    "%s{kind}*[a]?",
    os.fsdecode(b"\xff\xfe"),
    "ı" * 80,
]


@pytest.mark.parametrize(
    "name", NAMES[:2] + [slow(name) for name in NAMES[2:]], ids=[ascii(name)[:20] for name in NAMES]
)
def test_odd_names_of_a_folder_that_was_moved(whole, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, name)
    info = open_run(whole).info
    SnapshotStore(name, info.run_id).write_info(dataclasses.replace(info, status="interrupted", upsampler=None))
    (tmp_path / "output").mkdir()
    commands = [
        ["check", "--", name],
        ["info", "--", name],
        ["analyze", "--", name],
        ["report", "-o", "output/a.html", "--", name],
        ["animate", "-o", "output/a.gif", "--", name],
        ["grid", "-o", f"output/{name}.png", "--", name],
        ["record", "--resume", f"--out={name}"],
    ]
    for command in commands:
        result = call(*command)
        assert result.exit_code == 0, (command, result.output, result.exception)
        if command[0] in ("check", "info"):
            assert not set(result.output) & set("\x1b\x07\x00")
    assert digest(Path(name), but=["run.json"]) == digest(whole, but=["run.json"])
    assert "\x1b" not in fails(call("grid", "-o", "output/b.png", "--layer", "\x1b[2J", "--", name))
    assert {file.name for file in tmp_path.iterdir()} == {name, "output"}


def test_a_link_to_a_run_and_a_run_on_another_disk(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "there" / "run")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "run")
    assert check_run(tmp_path / "link") == []
    # A folder of it on another disk, as is done where the home is small.
    shutil.move(tmp_path / "there" / "run" / "snapshots", tmp_path / "large")
    (tmp_path / "there" / "run" / "snapshots").symlink_to(tmp_path / "large")
    assert open_run(tmp_path / "link").steps == open_run(whole).steps
    result = call("record", *SMALL, "--seed", "1", "--overwrite", "--out", tmp_path / "link")
    assert result.exit_code == 0, result.output
    assert open_run(tmp_path / "there" / "run").info.config["seed"] == 1
    assert (tmp_path / "link").is_symlink()


def test_moved_while_it_is_recorded(tmp_path):
    recorder_at = tmp_path / "run"
    store = SnapshotStore(recorder_at, "x")
    store.write_info(RunInfo())
    store.append_metrics({"step": 1})
    shutil.move(recorder_at, tmp_path / "moved")
    one = [Snapshot(5, "a", 0, "feature", np.zeros((1, 2, 2), np.float32))]
    for write in (
        lambda: store.write(5, one),
        lambda: store.write_info(RunInfo()),
        lambda: store.append_metrics({"step": 2}),
    ):
        with pytest.raises(FadevizError, match=f"^({recorder_at} was moved or removed|cannot write)"):
            write()
    assert [file.name for file in tmp_path.iterdir()] == ["moved"]


# --- strangers' files -----------------------------------------------------------------------------------------------


def test_nothing_is_unpickled_but_weights():
    loads = []
    for file in [*(ROOT / "fadeviz").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert getattr(node.value, "value", True) is False, file
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in (
                "eval",
                "exec",
                "pickle.load",
                "pickle.loads",
                "numpy.load",
                "joblib.load",
            ), file
            if name == "np.load":  # arrays of numbers
                assert "allow_pickle" in {keyword.arg for keyword in node.keywords}, file
            if name in ("torch.load", "load_state_dict_from_url"):
                given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
                assert given.get("weights_only") is True, file
                loads.append(file.name)
    assert {"checkpoint.py", "segnet.py"} <= set(loads)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "bare"])
def test_an_evil_checkpoint_is_not_run(whole, tmp_path, how):
    shutil.copytree(whole, tmp_path / "run")
    info = open_run(whole).info
    SnapshotStore(tmp_path / "run", info.run_id).write_info(dataclasses.replace(info, status="interrupted"))
    file = tmp_path / "run" / "checkpoints" / "last.pt"
    evil = {"run_id": info.run_id, "step": Evil(tmp_path / "evil")}
    if how == "torch":
        torch.save(evil, file)
    else:
        file.write_bytes(pickle.dumps(evil))
    assert f"{file} is damaged" in fails(call("record", "--resume", "--out", tmp_path / "run"))
    check_run(tmp_path / "run")
    assert str(file) in fails(call("record", *SMALL, "--weights", file, "--out", tmp_path / "new"))
    assert not (tmp_path / "evil").exists()
    pickle.loads(pickle.dumps(Evil(tmp_path / "evil")))
    assert (tmp_path / "evil").exists()  # it is as evil as it looks


def test_a_packed_checkpoint_is_not_unpacked(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    info = open_run(whole).info
    SnapshotStore(tmp_path / "run", info.run_id).write_info(dataclasses.replace(info, status="interrupted"))
    file = tmp_path / "run" / "checkpoints" / "last.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("last/data.pkl", b"\0" * 50_000_000)
    (fault,) = check_run(tmp_path / "run")
    assert fault.what == "damaged: it is compressed, as no checkpoint is"
    assert "it is compressed" in fails(call("record", "--resume", "--out", tmp_path / "run"))


def test_claimed_sizes_are_not_believed(tmp_path):
    """In a process that may have a gigabyte."""
    run = make_run(tmp_path / "run").path
    huge = {"fadeviz": '{"step": 50, "run_id": "a1b2c3", "format": 1}'}
    name = "decoder.3.upsample/0/feature"
    for step, header in (
        (50, {"__metadata__": huge, name: {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}),
        (60, {"__metadata__": huge, name: {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 4]}}),
    ):
        text = json.dumps(header).encode()
        (run / f"snapshots/step_{step:06d}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    (run / "snapshots/step_000070.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    (run / "snapshots/step_000080.safetensors").write_bytes((90_000_000).to_bytes(8, "little") + b"{}")
    code = (
        "import resource, sys; from fadeviz.storage.check import check_run\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "print(*[fault.file for fault in check_run(sys.argv[1])])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True)
    assert done.stdout.split() == [f"snapshots/step_0000{step}.safetensors" for step in (50, 60, 70, 80)], done.stderr


HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e<script>alert(1)</script>"


def test_names_that_a_terminal_would_obey(tmp_path):
    run = make_run(tmp_path / "run", upsampler=HOSTILE)
    info = run.info
    store = SnapshotStore(run.path, run.run_id)
    store.write_info(
        RunInfo.from_dict(
            {
                **info.to_dict(),
                "title": HOSTILE,
                "network": HOSTILE,
                "status": HOSTILE,
                "message": HOSTILE,
                "device": HOSTILE,
                "observation": {"names": [HOSTILE, "b"], "mode": HOSTILE},
                "result": {HOSTILE: 0.5},
                "seconds": {HOSTILE: 1.5},
                "config": {"seed": 1, "size": HOSTILE, "labels": "true"},
                "data": {"name": HOSTILE},
            }
        )
    )
    for step in STEPS:
        maps = np.ones((2, 4, 4), np.float32)
        old = [
            Snapshot(step, "decoder.3.upsample", 0, k, run.read(step, "decoder.3.upsample", k))
            for k in ("feature", "gate")
        ]
        store.write(step, [*old, *[Snapshot(step, HOSTILE, 0, "feature", maps)] * (step == 50)])
    (run.path / "snapshots" / f".{printable(HOSTILE)[:4]}\x1b[2J.partial.x").write_text("")
    for command in (
        ["info", run.path],
        ["check", run.path],
        ["analyze", run.path],
        ["grid", run.path, "-o", tmp_path / "a.png"],
        ["grid", run.path, "--layer", HOSTILE, "-o", tmp_path / "a.png"],
        ["grid", run.path, "--kind", HOSTILE, "-o", tmp_path / "a.png"],
        ["animate", run.path, "-o", tmp_path / "a.gif"],
        ["plot", run.path, "-o", tmp_path / "p.svg"],
        ["report", run.path, "-o", tmp_path / "a.html"],
        ["record", "--resume", "--out", run.path],
        ["record", "--upsampler", HOSTILE, "--out", tmp_path / "new"],
        ["layers", HOSTILE],
    ):
        result = call(*command)
        assert result.exception is None or isinstance(result.exception, SystemExit), (command, result.exception)
        assert not set(result.output) & set("\x1b\x07\x9b\r\u202e"), command
    assert "\x1b" not in (tmp_path / "a.html").read_text()
    assert "<script>alert" not in (tmp_path / "a.html").read_text()


def test_a_manifest_leads_nowhere_else(tmp_path):
    out = tmp_path / "sweep"
    out.mkdir()
    entry = {"folder": "../../outside", "seed": 0, "settings": {}, "status": "planned"}
    for name, operator in (("../outside", "fade"), ("/tmp/outside", "../outside"), ("x", "/etc/fade@shuffled")):
        told = {"format": 1, "settings": {"size": 32}, "runs": [{"name": name, "operator": operator, **entry}]}
        (out / "manifest.json").write_text(json.dumps(told))
        with pytest.raises(FadevizError, match="does not match its operator"):
            read_plan(out)
    good = Trial("../../fade:x=/etc", 0).name
    entry["folder"] = good
    told = {"format": 1, "settings": {"size": 32}, "runs": [{"name": good, "operator": "../../fade:x=/etc", **entry}]}
    (out / "manifest.json").write_text(json.dumps(told))
    (trial,) = read_plan(out).trials
    assert (out / trial.name).resolve().parent == out.resolve()


def test_an_error_is_one_line_whatever_it_quotes():
    assert str(FadevizError("a\nb\x1b[2J\u2028c\x85\udcff")) == r"a\nb\x1b[2J\u2028c\x85\udcff"
    assert str(FadevizError("Füchse 馬 \\n 🐎\u200d")) == "Füchse 馬 \\n 🐎\u200d"
    assert printable(printable("\t")) == "\\t"


def test_io_errors_of_every_kind_are_one_line(tmp_path, monkeypatch):
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG):

        def broken(*_, number=number):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", broken)
            with pytest.raises(FadevizError) as caught:
                write_whole(tmp_path / "file", b"x")
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(FadevizError, match="cannot write"):
        write_whole(tmp_path / ("n" * 300), b"x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["upsamplers"], marks=pytest.mark.slow),
        ["info", "run"],
        ["check", "run"],
        ["analyze", "run", "--json", "-"],
    ],
)
def test_output_that_does_not_fit(tmp_path, command):
    make_run(tmp_path / "run")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fadeviz_cli.main", *command],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "Error: cannot write to standard output: No space left on device\n"


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    write_whole(tmp_path / "pipe", b"through")
    assert reader.communicate(timeout=20)[0] == b"through"
    assert (tmp_path / "pipe").is_fifo()
    if Path("/dev/full").is_char_device():
        (tmp_path / "full").symlink_to("/dev/full")
        with pytest.raises(FadevizError, match="disk full"):
            write_whole(tmp_path / "full", b"x")
        assert Path("/dev/full").is_char_device()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["full", "pipe"]
