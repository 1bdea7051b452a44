"""The recorder as a callback of the real Lightning Trainer."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fadeviz import FadevizError, Recorder, RecorderWarning, open_run
from fadeviz.recording.probe import Probe

pytest.importorskip("lightning", reason='needs Lightning: pip install ".[lightning]"')

import lightning.pytorch as pl
from lightning.pytorch.plugins import MixedPrecision

from fadeviz.integrations.lightning import RecorderCallback

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*does not have many workers"),
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings(r"ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings(r"ignore:Found 1 module\(s\) in eval mode at the start of training"),
    pytest.mark.filterwarnings(r"ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings(r"ignore:The `srun` command is available on your system"),  # a machine with Slurm
]

GENERATOR = torch.Generator().manual_seed(5)
OBSERVED = (torch.randn(2, 3, 8, 8, generator=GENERATOR), torch.ones(2, 8, 8, dtype=torch.long))
PICTURES = torch.randn(16, 3, 8, 8, generator=GENERATOR)
MASKS = torch.randint(0, 2, (16, 8, 8), generator=GENERATOR)


class Module(pl.LightningModule):
    """BatchNorm, dropout and an in-place ReLU."""

    def __init__(self, dropout=0.3):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Conv2d(4, 2, 1),
        )  # fmt: skip

    def forward(self, images):
        return self.model(images)

    def training_step(self, batch, index):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        self.log("epoch_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch, index):
        self.log("miou", (self(batch[0]).argmax(1) == batch[1]).float().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class TwoOptimizers(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.model[i].parameters(), lr=0.1) for i in (0, 4)]


class Stop(pl.Callback):
    """Makes another training of it from a step on, and pulls the plug at a later one."""

    def __init__(self, last, other=99):
        self.last, self.other = last, other

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step >= self.other:
            for parameter in module.parameters():
                parameter.data += 0.1

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.last:
            raise RuntimeError("no power today")


def loader(shuffle=False):
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(PICTURES, MASKS), batch_size=2, shuffle=shuffle, drop_last=True
    )


def trainer_of(tmp_path, *callbacks, package=pl, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    options = {"enable_checkpointing": False, "max_epochs": -1, "devices": 1, **quiet, **options}
    return package.Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **options)


def callback(out, steps="2:4:2", **options):
    return RecorderCallback("model.0,model.4", steps, out, batch=OBSERVED, loss_fn=F.cross_entropy, **options)


def train(tmp_path, recording, setting=None, steps=5, **options):
    pl.seed_everything(0, verbose=False)
    module = Module()
    if setting == "frozen":
        module.model[1].eval().requires_grad_(False)
    options |= {
        "accumulated": {"accumulate_grad_batches": 3},
        "bf16-mixed": {"precision": "bf16-mixed"},
        "bf16-true": {"precision": "bf16-true"},
        "clipped": {"gradient_clip_val": 0.1},
        "scaled": {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))]},
    }.get(setting, {})
    if setting == "compiled":
        module.model = torch.compile(module.model, backend="aot_eager")
    trainer = trainer_of(tmp_path, *([recording] if recording else []), max_steps=steps, **options)
    trainer.fit(module, loader(shuffle=True), loader())
    state = trainer.optimizers[0].state_dict()["state"]
    modes = [part.training for part in module.modules()]
    moments = [value for one in state.values() for value in one.values()]
    return [*module.state_dict().values(), *moments, torch.get_rng_state(), torch.tensor(modes)], module


@pytest.mark.parametrize(
    "setting",
    ["plain", "accumulated", "bf16-mixed", "bf16-true", "clipped", "scaled", "compiled", "frozen", "batch mode"],
)
def test_the_training_is_the_same_to_the_bit(tmp_path, setting):
    mode = "batch" if setting == "batch mode" else "eval"
    alone, _ = train(tmp_path, None, setting)
    watched, module = train(tmp_path, callback(tmp_path / "run", observe_mode=mode), setting)
    assert len(alone) == len(watched) > 18
    for a, b in zip(alone, watched, strict=True):
        assert torch.equal(a, b)
    assert not any(part._forward_hooks for part in module.modules())
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 2, 4)
    assert run.info.status == "finished"
    assert run.layers == {"model.0": ("feature", "gradient"), "model.4": ("feature", "gradient")}
    scales = [(line["step"], line["grad_scale"]) for line in run.metrics() if "grad_scale" in line]
    assert scales == ([(2, 256.0), (4, 256.0)] if setting == "scaled" else [])
    # What is stored is what a probe sees in a module that was trained for so many optimiser steps.
    for step in (2, 4):
        _, then = train(tmp_path, None, setting, steps=step)
        images = OBSERVED[0].bfloat16() if setting == "bf16-true" else OBSERVED[0]
        for seen in Probe(then, "model.0,model.4").observe(images, OBSERVED[1], F.cross_entropy, step=step, mode=mode):
            assert np.array_equal(run.read(step, seen.layer, seen.kind), seen.value)


def test_a_killed_training_goes_on_from_its_checkpoint(tmp_path):
    def fit(out, *others, ckpt_path=None):
        pl.seed_everything(0, verbose=False)
        options = {"enable_checkpointing": bool(others), "limit_train_batches": 3, "log_every_n_steps": 1}
        trainer = trainer_of(tmp_path, callback(out, "1:7:1"), *others, max_steps=7, **options)
        trainer.fit(Module(dropout=0), loader(), ckpt_path=ckpt_path)

    fit(tmp_path / "whole")
    keep = pl.callbacks.ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=3, save_top_k=-1)
    with pytest.raises(RuntimeError, match="no power today"):
        fit(tmp_path / "run", keep, Stop(5, other=3))
    stopped, whole = open_run(tmp_path / "run"), open_run(tmp_path / "whole")
    assert np.array_equal(stopped.read(3, "model.4", "feature"), whole.read(3, "model.4", "feature"))
    assert not np.array_equal(stopped.read(4, "model.4", "feature"), whole.read(4, "model.4", "feature"))
    assert stopped.steps == (0, 1, 2, 3, 4, 5)
    assert (stopped.info.status, stopped.info.message) == ("failed", "no power today")
    fit(tmp_path / "run", keep, ckpt_path=tmp_path / "kept" / "step=3.ckpt")
    run = open_run(tmp_path / "run")
    assert run.steps == whole.steps == tuple(range(8))
    assert run.info.status == "finished"
    assert run.info.message is None
    for step in run.steps:
        for kind in ("feature", "gradient"):
            assert np.array_equal(run.read(step, "model.4", kind), whole.read(step, "model.4", kind))
    assert run.metrics() == whole.metrics()
    # Where the folder of the first part is not there, the maps begin with the checkpoint.
    fit(tmp_path / "late", keep, ckpt_path=tmp_path / "kept" / "step=3.ckpt")
    late = open_run(tmp_path / "late")
    assert late.steps == (3, 4, 5, 6, 7)
    assert np.array_equal(late.read(3, "model.4", "feature"), whole.read(3, "model.4", "feature"))


def test_several_optimisers(tmp_path):
    pl.seed_everything(0, verbose=False)
    trainer_of(tmp_path, callback(tmp_path / "run", "3,6"), max_steps=8).fit(TwoOptimizers(), loader())
    assert open_run(tmp_path / "run").steps == (0, 4, 6)  # each batch makes two steps


def test_what_the_module_logs(tmp_path):
    recording = callback(tmp_path / "run", "3:6:3")
    trainer = trainer_of(tmp_path, recording, max_epochs=2, log_every_n_steps=4, num_sanity_val_steps=2)
    trainer.fit(Module(), loader(), loader())
    lines = open_run(tmp_path / "run").metrics()
    assert [line["step"] for line in lines if "loss" in line] == [3, 4, 6, 8, 12, 16]
    assert [line["step"] for line in lines if "miou" in line] == [8, 16]
    assert [line["step"] for line in lines if "epoch_loss" in line] == [8, 16]
    assert lines[-1]["epoch_loss"] == pytest.approx(float(trainer.callback_metrics["epoch_loss"]))
    assert recording.recorder is None


def test_a_line_a_step_when_gradients_are_accumulated(tmp_path):
    trainer = trainer_of(
        tmp_path, callback(tmp_path / "run", "2"), max_steps=4, accumulate_grad_batches=3, log_every_n_steps=1,
        limit_train_batches=6,
    )  # fmt: skip
    trainer.fit(Module(), loader(), loader())
    lines = open_run(tmp_path / "run").metrics()
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_an_error_leaves_the_folder_free(tmp_path):
    with pytest.raises(RuntimeError, match="no power today"):
        trainer_of(tmp_path, callback(tmp_path / "run"), Stop(3), max_steps=5).fit(Module(), loader())
    with pytest.raises(FadevizError, match="holds a run already"):
        trainer_of(tmp_path, callback(tmp_path / "run"), max_steps=5).fit(Module(), loader())
    again = callback(tmp_path / "run", overwrite=True)
    trainer = trainer_of(tmp_path, again, max_steps=4)
    trainer.fit(Module(), loader())
    run = open_run(tmp_path / "run")
    assert (run.steps, run.info.status) == ((0, 2, 4), "finished")
    assert Recorder(Module(), "model.0", [1], tmp_path / "run", batch=OBSERVED, overwrite=True).step(1)


def test_an_observation_that_fails_does_not_end_the_training(tmp_path):
    class Exchange(pl.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            if trainer.global_step == 1:
                module.model[4] = nn.Conv2d(4, 1, 1)  # another layer under the name of the recorded one

    class Alone(Module):
        def training_step(self, batch, index):
            return self(batch[0]).square().mean()

    trainer = trainer_of(tmp_path, Exchange(), callback(tmp_path / "run"), max_steps=5)
    with pytest.warns(RecorderWarning, match=r"nothing was recorded at step 2: layer .model.4. did not run"):
        trainer.fit(Alone(), loader())
    assert trainer.global_step == 5
    run = open_run(tmp_path / "run")
    assert (run.steps, run.info.status) == ((0,), "finished")
    assert [one["step"] for one in run.info.errors] == [2, 4]
    trainer = trainer_of(tmp_path, Exchange(), callback(tmp_path / "strict", on_error="raise"), max_steps=5)
    with pytest.raises(FadevizError, match="layer .model.4. did not run"):
        trainer.fit(Alone(), loader())


def test_metrics_that_others_put_there(tmp_path):
    class Other(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.callback_metrics["price"] = 0.5
            trainer.callback_metrics["note"] = "text"

    trainer = trainer_of(tmp_path, Other(), callback(tmp_path / "run"), max_steps=2, log_every_n_steps=1)
    trainer.fit(Module(), loader())
    assert {line["price"] for line in open_run(tmp_path / "run").metrics() if "price" in line} == {0.5}


def test_a_dry_run_records_nothing(tmp_path):
    trainer_of(tmp_path, callback(tmp_path / "run"), fast_dev_run=2).fit(Module(), loader(), loader())
    assert not (tmp_path / "run").exists()


def test_an_argument_that_the_recorder_does_not_know(tmp_path):
    with pytest.raises(TypeError, match="overwrit"):
        callback(tmp_path / "run", overwrit=True)


def test_the_older_package(tmp_path):
    older = pytest.importorskip("pytorch_lightning", reason="needs pytorch-lightning: pip install pytorch-lightning")

    class Older(older.LightningModule):
        __init__, forward, configure_optimizers = Module.__init__, Module.forward, Module.configure_optimizers
        training_step = Module.training_step

    Older.__init__ = lambda self: (older.LightningModule.__init__(self), setattr(self, "model", Module().model))[0]
    trainer_of(tmp_path, callback(tmp_path / "run"), package=older, max_steps=5).fit(Older(), loader())
    assert open_run(tmp_path / "run").steps == (0, 2, 4)


def test_without_lightning(tmp_path):
    code = """
        import sys
        sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
        try:
            import fadeviz.integrations.lightning
        except ValueError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "the callback needs Lightning, which is not installed. Install it, in a clone of fadeviz: "
        'pip install ".[lightning]"\n'
    )


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_two_processes(tmp_path):
    found = []
    for recording in (None, callback(tmp_path / "run")):
        pl.seed_everything(0, verbose=False)
        module = Module()
        trainer = trainer_of(
            tmp_path, *([recording] if recording else []), max_steps=4, devices=2, strategy="ddp_fork",
            log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(module, loader(), loader())
        found.append(module.state_dict())
    alone, watched = found
    assert all(torch.equal(alone[name], watched[name]) for name in alone)
    assert not torch.equal(alone["model.0.weight"], Module().state_dict()["model.0.weight"])
    run = open_run(tmp_path / "run")
    assert (run.steps, run.info.status) == ((0, 2, 4), "finished")
    assert [line["step"] for line in run.metrics() if "loss" in line] == [1, 2, 3, 4]
