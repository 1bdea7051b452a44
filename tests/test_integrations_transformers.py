"""The recorder as a callback of the real Hugging Face Trainer, with a small SegFormer of random weights."""

import shutil
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

HOW = 'pip install ".[transformers]"'
pytest.importorskip("transformers", reason=f"needs transformers: {HOW}")
pytest.importorskip("accelerate", reason=f"needs accelerate: {HOW}")

from transformers import (  # noqa: E402
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from fadeviz.integrations.transformers import RecorderCallback, loss_of_output  # noqa: E402

GENERATOR = torch.Generator().manual_seed(5)
DATA = [
    {
        "pixel_values": torch.randn(3, 64, 64, generator=GENERATOR),
        "labels": torch.randint(0, 2, (64, 64), generator=GENERATOR),
    }
    for _ in range(16)
]
OBSERVED = {
    "pixel_values": torch.randn(2, 3, 64, 64, generator=GENERATOR),
    "labels": torch.randint(0, 2, (2, 64, 64), generator=GENERATOR),
}
TOKENS, MAPS = "segformer.stages.1.blocks.0", "decode_head.batch_norm"
LAYERS = f"{TOKENS},decode_head.linear_projections.3,{MAPS}"


class Stop(TrainerCallback):
    """Makes another training of it from a step on, and pulls the plug at a later one."""

    def __init__(self, other, last):
        self.other, self.last = other, last

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step >= self.other:
            for parameter in model.parameters():
                parameter.data += 0.1

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.last:
            raise RuntimeError("no power today")


def small_segformer():
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=2, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16, hidden_dropout_prob=0.1,
    )  # fmt: skip
    return SegformerForSemanticSegmentation(config)


class Plain(nn.Module):
    """No model of transformers: the Trainer takes any that gives a loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Conv2d(4, 2, 1))

    def forward(self, pixel_values, labels):
        logits = self.net(pixel_values)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def trainer_of(tmp_path, *callbacks, model=None, steps=5, **options):
    arguments = TrainingArguments(
        str(tmp_path / "trainer"), max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
        lr_scheduler_type="constant", report_to=[], disable_tqdm=True, dataloader_pin_memory=False,
        **{"save_strategy": "no", "logging_strategy": "no", **options},
    )  # fmt: skip
    return Trainer(
        model or small_segformer(), arguments, train_dataset=DATA, eval_dataset=DATA[:4], callbacks=list(callbacks)
    )


def callback(out, steps="2:4:2", batch=OBSERVED, layers=LAYERS, **options):
    return RecorderCallback(layers, steps, out, batch=batch, **options)


def train(tmp_path, *callbacks, setting="plain", steps=5):
    options = {
        "accumulated": {"gradient_accumulation_steps": 3},
        "bf16": {"bf16": True},
        "checkpointing": {"gradient_checkpointing": True},
        "accumulated bf16": {"gradient_accumulation_steps": 2, "bf16": True},
    }.get(setting, {})
    trainer = trainer_of(tmp_path, *callbacks, steps=steps, **options)
    trainer.train()
    model, state = trainer.model, trainer.optimizer.state_dict()["state"]
    moments = [value for one in state.values() for value in one.values()]
    modes = torch.tensor([part.training for part in model.modules()])
    return [*model.state_dict().values(), *moments, torch.get_rng_state(), modes], model


@pytest.mark.parametrize("setting", ["plain", "accumulated", "bf16", "accumulated bf16", "checkpointing", "batch mode"])
def test_the_training_is_the_same_to_the_bit(tmp_path, setting):
    mode = "batch" if setting == "batch mode" else "eval"
    alone, plain = train(tmp_path, setting=setting)
    watched, model = train(tmp_path, callback(tmp_path / "run", observe_mode=mode), setting=setting)
    assert len(alone) == len(watched) > 100
    for a, b in zip(alone, watched, strict=True):
        assert torch.equal(a, b)
    hooks = [[len(part._forward_hooks) for part in one.modules()] for one in (plain, model)]
    assert hooks[0] == hooks[1]  # transformers has some of its own
    run = open_run(tmp_path / "run")
    assert (run.steps, run.info.status) == ((0, 2, 4), "finished")
    assert run.layers == dict.fromkeys(LAYERS.split(","), ("feature", "gradient"))
    assert run.read(0, TOKENS, "feature").shape == (2, 8, 8)
    assert run.read(0, MAPS, "feature").shape == (2, 16, 16)
    assert np.array_equal(run.observation[1], OBSERVED["labels"].numpy())
    # What is stored is what a probe sees, in float32, in a model that was trained for so many optimiser steps.
    for step in (0, 2, 4):
        then = small_segformer()
        if step:
            then.load_state_dict(train(tmp_path, setting=setting, steps=step)[1].state_dict())
        for seen in Probe(then, LAYERS).observe(OBSERVED, None, loss_of_output, step=step, mode=mode):
            assert np.array_equal(run.read(step, seen.layer, seen.kind), seen.value)


def test_a_killed_training_goes_on_from_its_checkpoint(tmp_path):
    def recording(name):
        return RecorderCallback("net.0,net.3", "1:7:1", tmp_path / name, batch=OBSERVED)

    saving = {"save_strategy": "steps", "save_steps": 3, "logging_strategy": "steps", "logging_steps": 1, "steps": 7}
    # SegFormer's checkpoints have names of an earlier version, which the Trainer of some versions does not read again.
    trainer_of(tmp_path, recording("whole"), model=Plain(), **saving).train()
    killed = recording("run")
    with pytest.raises(RuntimeError, match="no power today"):
        trainer_of(tmp_path, killed, Stop(other=3, last=5), model=Plain(), **saving).train()
    with pytest.raises(FadevizError, match="this process is recording into .* already"):
        Recorder(Plain(), "net.0", [1], tmp_path / "run", batch=(OBSERVED, None), overwrite=True)
    killed.close(RuntimeError("no power today"))
    stopped, whole = open_run(tmp_path / "run"), open_run(tmp_path / "whole")
    assert stopped.steps == (0, 1, 2, 3, 4, 5)
    assert stopped.info.status == "failed"
    assert np.array_equal(stopped.read(3, "net.3", "feature"), whole.read(3, "net.3", "feature"))
    assert not np.array_equal(stopped.read(4, "net.3", "feature"), whole.read(4, "net.3", "feature"))
    again = trainer_of(tmp_path, recording("run"), model=Plain(), **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-3"))
    run = open_run(tmp_path / "run")
    assert run.steps == whole.steps == tuple(range(8))
    assert run.info.status == "finished"
    for step in run.steps:
        assert np.array_equal(run.read(step, "net.3", "feature"), whole.read(step, "net.3", "feature"))
    losses = [[(line["step"], line["loss"]) for line in r.metrics() if "loss" in line] for r in (run, whole)]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == [1, 2, 3, 4, 5, 6, 7]


def test_smaller_batches_when_memory_runs_out_are_a_new_beginning(tmp_path):
    class Full(TrainerCallback):
        full = True

        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3 and self.full:
                self.full = False
                raise RuntimeError("CUDA out of memory.")

    trainer = trainer_of(
        tmp_path, callback(tmp_path / "run", "1:4:1"), Full(), model=small_segformer(), auto_find_batch_size=True
    )
    trainer.train()
    run = open_run(tmp_path / "run")
    assert trainer._train_batch_size == 1
    assert (run.steps, run.info.status) == ((0, 1, 2, 3, 4), "finished")


def test_what_the_trainer_logs(tmp_path):
    recording = callback(tmp_path / "run")
    trainer = trainer_of(
        tmp_path, recording, steps=4, logging_strategy="steps", logging_steps=2, eval_strategy="steps", eval_steps=2
    )
    trainer.compute_metrics = lambda prediction: {"miou": 0.5}
    trainer.train()
    lines = open_run(tmp_path / "run").metrics()
    assert [line["step"] for line in lines if "learning_rate" in line] == [2, 4]
    assert [(line["step"], line["miou"]) for line in lines if "eval_loss" in line] == [(2, 0.5), (4, 0.5)]
    trainer.evaluate()  # after the end: the run is closed
    assert len(open_run(tmp_path / "run").metrics()) == len(lines)


def test_whose_loss_it_is(tmp_path):
    images = {"pixel_values": OBSERVED["pixel_values"]}

    def own(output, targets):
        return F.cross_entropy(output.logits, targets[:, ::4, ::4])

    for name, options, kinds in (
        ("none", {"batch": images, "masks": OBSERVED["labels"].numpy()}, ("feature",)),
        ("own", {"batch": (images, OBSERVED["labels"]), "loss_fn": own}, ("feature", "gradient")),
    ):
        trainer_of(tmp_path, callback(tmp_path / name, **options), steps=2).train()
        run = open_run(tmp_path / name)
        assert run.layers[MAPS] == kinds
        assert np.array_equal(run.observation[1], OBSERVED["labels"].numpy())


def test_an_observation_that_fails_does_not_end_the_training(tmp_path):
    class Cut(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            if state.global_step == 1:
                shutil.rmtree(tmp_path / "run")

    with pytest.warns(RecorderWarning, match=r"fadeviz: (nothing was|metrics were not|the end of)") as warned:
        trainer_of(tmp_path, callback(tmp_path / "run"), Cut(), steps=4).train()
    assert len([one for one in warned if one.category is RecorderWarning]) == 3
    with pytest.raises(FadevizError, match="was moved or removed|cannot write"):
        trainer_of(tmp_path, callback(tmp_path / "run", on_error="raise"), Cut(), steps=4).train()


def test_void_is_what_the_models_configuration_says(tmp_path):
    model = small_segformer()
    model.config.semantic_loss_ignore_index = 1
    trainer_of(tmp_path, callback(tmp_path / "run"), model=model, steps=1).train()
    labels = OBSERVED["labels"].numpy()
    assert np.array_equal(open_run(tmp_path / "run").observation[1], np.where(labels == 1, 255, labels))


def test_a_glob_over_a_decode_head(tmp_path):
    """The README's own line."""
    with pytest.warns(RecorderWarning, match=r"left out: layer 'decode_head.linear_projections' did not run"):
        trainer_of(tmp_path, callback(tmp_path / "run", layers="decode_head.*"), steps=2).train()
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 2)
    assert "decode_head.classifier" in run.layers
    assert "decode_head.linear_projections" not in run.layers


def test_an_argument_that_the_recorder_does_not_know(tmp_path):
    with pytest.raises(TypeError, match="overwrit"):
        callback(tmp_path / "run", overwrit=True)


def test_without_transformers():
    code = """
        import sys
        sys.modules["transformers"] = None
        try:
            import fadeviz.integrations.transformers
        except ValueError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"the callback needs transformers, which is not installed. Install it, in a clone of fadeviz: {HOW}\n"
    )
