"""One training by two processes: torchrun's, on gloo, against one process alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fadeviz
from fadeviz import FadevizError
from fadeviz.data.synthetic.dataset import SyntheticHorses
from fadeviz.experiment import read_config, train
from fadeviz.storage.check import check_run
from fadeviz.training.batches import batches
from fadeviz.training.distributed import ALONE, Processes, SharedBatchNorm2d, check_share, process_group, wrap_ddp

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def torchrun(*command, processes=2, check=True):
    """Run a program as torchrun would start it on one machine; returns what it said."""
    launched = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *command,
    ]  # fmt: skip
    done = subprocess.run(launched, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def record(out, *options):
    return [
        "record", "--size", "32", "--width", "0.125", "--steps", "4", "--snapshots", "2:4", "--batch-size", "4",
        "--evaluate-every", "2", "--checkpoint-every", "2", "--observe", "4", "--device", "cpu",
        "--out", str(out), *options,
    ]  # fmt: skip


TRAIN = """
import json, sys
import torch
from fadeviz.data.synthetic.dataset import SyntheticHorses
from fadeviz.models import build_network
from fadeviz.training.distributed import ALONE, process_group, wrap_ddp
from fadeviz.training.batches import batches
from fadeviz.training.loop import fit
from fadeviz.training.metrics import evaluate
from fadeviz.training.tasks import TASKS, segmentation_loss

class Eleven:
    count = 11  # the third batch of four has three: shares of two and one
    def __getitem__(self, index):
        sample = SyntheticHorses(32)[index]
        sample.mask[: 3 * index] = 255  # ignored: shares weigh what is left of them
        return sample

class Striped(Eleven):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        sample.mask[:, index::9] = 2 + index % 2
        return sample

def main(upsampler, out):
    with process_group(torch.device("cpu")) as processes:
        torch.manual_seed(0)
        model = build_network("segnet", upsampler, width=0.125).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        data = ((x.double(), y) for x, y in batches(Eleven(), range(1, 4), 4, 0, flip=True, processes=processes))
        loss_fn = lambda output, targets: segmentation_loss(output.double(), targets)
        trained = wrap_ddp(model, processes)
        steps = fit(trained, data, loss_fn, optimizer, lambda step: 0.01, processes=processes,
                    loss_weight=TASKS["segmentation"].loss_weight)
        losses = [step.loss for step in steps]
        state = {k: v.clone() for k, v in model.state_dict().items()}
        model.float()
        torch.manual_seed(1)
        several = build_network("segnet", "bilinear", classes=5, width=0.125)
        tested, alone = [], []
        for found, together in ((tested, processes), (alone, ALONE)):
            found += evaluate(model, Eleven(), segmentation_loss, batch_size=3, processes=together)
            found += evaluate(several, Striped(), segmentation_loss, batch_size=2, classes=5, processes=together)
        told = processes.all_gather([losses, tested, alone])
        if processes.is_rank_zero:
            torch.save([losses, state, told], out)

main(*sys.argv[1:])
"""


@pytest.mark.parametrize("upsampler", ["fade", pytest.param("max_unpool", marks=pytest.mark.slow)])
def test_two_processes_take_the_steps_of_one(tmp_path, upsampler):
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    subprocess.run([sys.executable, script, upsampler, tmp_path / "one.pt"], check=True, env=ENVIRONMENT, timeout=240)
    torchrun(str(script), upsampler, str(tmp_path / "two.pt"))

    losses, state, _ = torch.load(tmp_path / "one.pt")
    shared_losses, shared_state, told = torch.load(tmp_path / "two.pt")
    np.testing.assert_allclose(shared_losses, losses, rtol=1e-9)
    assert state.keys() == shared_state.keys()
    for name, value in state.items():  # weights, running statistics, number of batches
        torch.testing.assert_close(shared_state[name], value, rtol=1e-7, atol=1e-9, msg=name)
    assert len(told) == 2
    for process_losses, tested, alone in told:
        assert process_losses == shared_losses  # reduced: every process tells the whole batch's
        assert tested == alone  # to the bit, though each process tested half of the images


@pytest.mark.slow
def test_the_first_of_two_processes_records_and_one_alone_can_go_on(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run([sys.executable, "-m", "fadeviz_cli.main", *record(one)], check=True, env=ENVIRONMENT, timeout=240)
    said = torchrun("-m", "fadeviz_cli.main", *record(two))
    assert said.stdout.count("snapshots;") == 1  # one of them talks
    assert check_run(two) == []

    a, b = fadeviz.open_run(one), fadeviz.open_run(two)
    assert b.run_id == a.run_id
    assert b.steps == a.steps == (0, 2, 3, 4)
    assert b.info.processes == 2
    assert b.info.status == "finished"
    for name in ("observation.safetensors", "snapshots/step_000000.safetensors"):
        assert (two / name).read_bytes() == (one / name).read_bytes()  # the same images, the same untrained maps
    assert [line["step"] for line in b.metrics()] == [1, 2, 3, 4]
    assert b.metrics()[0]["loss"] == pytest.approx(a.metrics()[0]["loss"], rel=1e-6)
    assert b.metrics()[1]["miou"] == pytest.approx(a.metrics()[1]["miou"], rel=1e-3)
    early = [np.asarray(run.read(2, "decoder.3.upsample", "feature")) for run in (a, b)]
    np.testing.assert_allclose(*early, atol=0.01 * np.abs(early[0]).max())

    # As if it had been stopped after step 2: this process goes on alone with what two began.
    info = json.loads((two / "run.json").read_text())
    (two / "run.json").write_text(json.dumps({**info, "status": "running"}))
    subprocess.run(
        [sys.executable, "-m", "fadeviz_cli.main", "record", "--resume", "--out", str(two)],
        check=True, env=ENVIRONMENT, timeout=240,
    )  # fmt: skip
    assert fadeviz.open_run(two).info.status == "finished"


FAIL = """
import os, sys
from fadeviz import FadevizError
from fadeviz.experiment import RunConfig, train

def report(progress):
    if progress.step == 2 and int(os.environ["RANK"]) == int(sys.argv[1]):
        raise FadevizError("the disk burns")

try:
    config = RunConfig(size=32, width=0.125, steps=3, snapshots="1:3", observe=4, evaluate_every=3)
    train(config, sys.argv[2], on_progress=report)
except FadevizError as error:
    os.write(1, f"{os.environ['RANK']} says: {error}\\n".encode())  # in one piece: both ranks write to one pipe
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_ends_the_others_in_words(tmp_path, failing):
    script = tmp_path / "fail.py"
    script.write_text(FAIL)
    said = torchrun(str(script), str(failing), str(tmp_path / "run")).stdout.splitlines()
    assert f"{failing} says: the disk burns" in said
    assert any(line.startswith(f"{1 - failing} says: another process of this training has exited") for line in said)
    assert fadeviz.open_run(tmp_path / "run").info.status == "failed"


STOP = """
import os, signal, sys
from fadeviz.experiment import RunConfig, train
from fadeviz.training.signals import Interrupted

def report(progress):
    if progress.step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)  # only one of the two hears it

try:
    config = RunConfig(size=32, width=0.125, steps=6, snapshots="6", observe=4, evaluate_every=6)
    train(config, sys.argv[1], on_progress=report)
except Interrupted as error:
    line = f"{os.environ['RANK']} {error.signal.real} {error.step} {error.saved}\\n"
    os.write(1, line.encode())  # in one piece: both ranks write to one pipe
"""


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path):
    script = tmp_path / "stop.py"
    script.write_text(STOP)
    said = torchrun(str(script), str(tmp_path / "run")).stdout.splitlines()
    assert sorted(said) == ["0 15 2 2", "1 15 2 2"]
    stopped = fadeviz.open_run(tmp_path / "run").info
    assert (stopped.status, stopped.last_step, stopped.processes) == ("interrupted", 2, 2)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert saved["step"] == 2
    # One process alone finishes it, and no more is said of two.
    done = train(read_config(tmp_path / "run"), tmp_path / "run", resume=True)
    assert done.info.status == "finished"
    assert done.info.processes is None


@pytest.mark.slow
def test_ctrl_c_on_torchrun_loses_nothing(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               "-m", "fadeviz_cli.main", *record(out, "--steps", "9999", "--snapshots", "9999")]  # fmt: skip
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    stopped = fadeviz.open_run(out)
    last = stopped.info.last_step
    assert stopped.info.status == "interrupted"
    assert torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"] == last
    line = f"interrupted at step {last} of 9999; fadeviz record --resume --out {out} continues at step {last + 1}"
    assert said.count(line) == 1
    assert stopped.metrics()[-1]["step"] == last


KILL = """
import os, signal, sys
from fadeviz.training.distributed import _Sum
from fadeviz_cli.main import main

real, exchanges = _Sum.forward, []

def forward(ctx, value):
    exchanges.append(1)
    if len(exchanges) == 300 and os.environ["RANK"] == killed:  # statistics of the batch, amid a step
        os.kill(os.getpid(), signal.SIGKILL)
    return real(ctx, value)

killed = sys.argv.pop(1)
_Sum.forward = staticmethod(forward)
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_is_killed_amid_a_step_the_other_ends_and_the_run_goes_on(tmp_path, killed):
    script, out, whole = tmp_path / "kill.py", tmp_path / "run", tmp_path / "whole"
    script.write_text(KILL)
    options = ("--steps", "12", "--snapshots", "3:12:3", "--checkpoint-every", "3", "--evaluate-every", "12")
    began = time.monotonic()
    said = torchrun(str(script), str(killed), *record(out, *options), check=False)
    assert said.returncode != 0
    assert time.monotonic() - began < 120  # gloo by itself would wait for half an hour
    assert "Signal 9 (SIGKILL)" in said.stderr
    stopped = fadeviz.open_run(out)
    assert stopped.status == ("stopped" if killed == 0 else "failed")  # the first of them writes
    if killed:
        assert "another process of this training has exited" in stopped.info.message
        assert said.stderr.count("Error: another process of this training has exited") == 1
    done = stopped.metrics()[-1]["step"]
    assert 3 <= done < 12
    assert check_run(out) == []

    torchrun("-m", "fadeviz_cli.main", "record", "--resume", "--out", str(out))
    torchrun("-m", "fadeviz_cli.main", *record(whole, *options))
    assert fadeviz.open_run(out).info.status == "finished"
    for step in (0, 3, 6, 9, 12):  # as if nothing had happened
        name = f"snapshots/step_{step:06d}.safetensors"
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_refuse_a_folder_that_holds_a_run_once(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"format": 1, "run_id": "x"}))
    before = sorted(p.name for p in out.iterdir())
    said = torchrun("-m", "fadeviz_cli.main", *record(out), check=False)
    assert said.returncode != 0
    assert sum(line.startswith("Error: ") for line in said.stderr.splitlines()) == 1
    assert f"{out} holds a run already" in said.stderr
    assert sorted(p.name for p in out.iterdir()) == before


@pytest.mark.parametrize("count", [None, 11])
def test_shares_make_the_batch(count):
    class Drawn:
        def __getitem__(self, index):
            return SyntheticHorses(32)[index]

    Drawn.count = count
    whole = list(batches(Drawn(), range(1, 5), 4, seed=3, flip=True))
    shares = [list(batches(Drawn(), range(1, 5), 4, seed=3, flip=True, processes=Processes(n, 3))) for n in range(3)]
    for step, (images, masks) in enumerate(whole):
        for n, share in enumerate(shares):
            torch.testing.assert_close(share[step][0], images[n::3], rtol=0, atol=0)
            torch.testing.assert_close(share[step][1], masks[n::3], rtol=0, atol=0)


def test_a_batch_too_small_to_share_is_refused():
    check_share(None, 4, Processes(0, 4))
    check_share(11, 4, Processes(0, 3))
    check_share(1, 8, ALONE)
    with pytest.raises(FadevizError, match="a batch of 2: too few images for 3 processes"):
        check_share(None, 2, Processes(0, 3))
    with pytest.raises(FadevizError, match=r"an epoch's last batch, of 1: too few images for 2 processes"):
        check_share(9, 4, Processes(0, 2))


def test_alone_nothing_is_wrapped_or_connected(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    assert wrap_ddp(model, ALONE) is model
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group(torch.device("cpu")) as processes:
        assert processes is ALONE
        assert not torch.distributed.is_initialized()
        assert processes.all_gather("x") == ["x"]


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "two"), ("RANK", "-1")])
def test_a_broken_environment_is_named(monkeypatch, name, value):
    from fadeviz.training.distributed import launched_rank

    monkeypatch.setenv(name, value)
    with pytest.raises(FadevizError, match=f"{name} is '{value}'"), process_group(torch.device("cpu")):
        launched_rank()


@pytest.fixture
def group():
    """A process group of this process alone: sums are what they were."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shared_batch_norm_is_batch_norm(group, options, dtype):
    torch.manual_seed(0)
    ours = SharedBatchNorm2d(3, **options)
    theirs = nn.BatchNorm2d(3, **options)
    if dtype == torch.float64:
        ours, theirs = ours.double(), theirs.double()
    if ours.affine:
        with torch.no_grad():
            ours.weight.normal_()
            ours.bias.normal_()
        theirs.load_state_dict(ours.state_dict())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for _ in range(2):
        x = (100 + 5 * torch.randn(4, 3, 5, 6, dtype=torch.float64)).to(dtype)  # a mean far from 0 costs digits
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [norm(one) for norm, one in zip((ours, theirs), inputs, strict=True)]
        assert outputs[0].dtype == outputs[1].dtype
        weight = torch.randn_like(outputs[1])
        grads = [torch.autograd.grad((out * weight).sum(), one)[0] for out, one in zip(outputs, inputs, strict=True)]
        torch.testing.assert_close(*outputs, rtol=tolerance, atol=tolerance * 3)
        torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance * 3)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=1e-6)


def test_the_trained_twin_shares_what_is_saved(group):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    twin = wrap_ddp(model, Processes(0, 2)).module
    assert isinstance(twin[1], SharedBatchNorm2d)
    assert type(model[1]) is nn.BatchNorm2d  # what is observed waits for nobody
    kept = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in {**dict(twin.named_parameters()), **dict(twin.named_buffers())}.items():
        assert tensor is kept[name]


@pytest.mark.slow
def test_the_example_records_once(tmp_path):
    example = Path(__file__).resolve().parents[1] / "examples" / "record_ddp.py"
    out = tmp_path / "run"
    said = torchrun(str(example), "3", str(out))
    assert said.stdout.splitlines() == [str(out / "grid.png")]
    run = fadeviz.open_run(out)
    assert run.steps == (0, 3)
    assert run.info.status == "finished"
    assert check_run(out) == []
