"""A run made of checkpoints: what their trainings would have recorded, whatever wrote them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import fadeviz
from fadeviz import FadevizError, record_checkpoints


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, images):
        return self.head(self.body(images))


AT = (0, 5, 10)


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(1)
    masks = torch.zeros(5, 16, 16, dtype=torch.long)
    masks[:, 4:12, 4:12] = 1
    return torch.randn(5, 3, 16, 16), masks


@pytest.fixture(scope="module")
def training(tmp_path_factory, batch):
    """A training that a recorder follows, with the state dict of each recorded step."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    states = {0: {name: value.clone() for name, value in model.state_dict().items()}}
    out = tmp_path_factory.mktemp("training") / "run"
    recorder = fadeviz.Recorder(model, "body", "5:10:5", out, batch=batch, loss_fn=F.cross_entropy)
    for step in range(1, 11):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        recorder.step(step)
        if step in AT:
            states[step] = {name: value.clone() for name, value in model.state_dict().items()}
    return fadeviz.open_run(out), states


def record(checkpoints, out, batch, model=None, **options):
    return record_checkpoints(
        Net() if model is None else model, checkpoints, "body", out, batch=batch, loss_fn=F.cross_entropy, **options
    )


def same(run, recorded):
    assert run.steps == recorded.steps
    assert run.info.status == "finished"
    assert run.info.kinds == recorded.info.kinds
    for kind in run.info.kinds:
        for step in run.steps:
            np.testing.assert_array_equal(run.read(step, "body", kind), recorded.read(step, "body", kind))


class Buffer:
    """As mmengine keeps in its checkpoints."""

    def __init__(self):
        self.values = [1.0]


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


WRAPPED = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
    "ddp": lambda state: {"model_state_dict": prefixed(state, "module.")},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "lightning": lambda state: {
        "epoch": 1, "global_step": 5, "pytorch-lightning_version": "2.6.0", "loops": {"fit_loop": {}},
        "state_dict": {**prefixed(state, "model."), "criterion.weight": torch.ones(2)},
        "callbacks": {"ModelCheckpoint": {"best": Buffer()}}, "hyper_parameters": {"net": Buffer()},
    },
    "mmengine": lambda state: {
        "meta": {"epoch": 1, "iter": 5, "cfg": "model = dict()"}, "state_dict": state,
        "message_hub": {"log_scalars": {"loss": Buffer()}}, "optimizer": {"state": {}, "param_groups": []},
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", WRAPPED)
def test_the_maps_are_those_of_the_training(tmp_path, training, batch, layout):
    recorded, states = training
    for step, state in states.items():
        torch.save(WRAPPED[layout](state), tmp_path / f"epoch=1-step={step}.ckpt")
    told = []
    run = record(tmp_path, tmp_path / "run", batch, on_progress=lambda *progress: told.append(progress))
    same(run, recorded)
    assert told == [(0, 2), (5, 1), (10, 0)]
    assert fadeviz.check_run(run.path) == []
    assert any("criterion.weight" in note for note in run.info.notes) is (layout == "lightning")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_folders_of_the_hugging_face_trainer(tmp_path, training, batch, suffix, sharded):
    recorded, states = training
    for step, state in states.items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        save = save_file if suffix == ".safetensors" else torch.save
        stem = "model" if suffix == ".safetensors" else "pytorch_model"
        if not sharded:
            save(state, folder / f"{stem}{suffix}")
            continue
        parts = {name: f"{stem}-0000{1 + index % 2}-of-00002{suffix}" for index, name in enumerate(state)}
        for file in set(parts.values()):
            save({name: state[name] for name in state if parts[name] == file}, folder / file)
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": parts}))
    (tmp_path / "runs").mkdir()
    same(record(tmp_path, tmp_path / "out", batch), recorded)
    same(record(f"{tmp_path}/checkpoint-*", tmp_path / "again", batch), recorded)


def test_a_model_inside_another(tmp_path, training, batch):
    """The Lightning module is at hand, and the files are of the network in it."""

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Net()

        def forward(self, images):
            return self.model(images)

    recorded, states = training
    run = record_checkpoints(
        Module(), states, "model.body", tmp_path / "run", batch=batch, loss_fn=F.cross_entropy, kinds="feature"
    )
    for step in run.steps:
        np.testing.assert_array_equal(run.read(step, "model.body", "feature"), recorded.read(step, "body", "feature"))


def test_steps_that_are_given_and_options_of_the_recorder(tmp_path, training, batch):
    _, states = training
    paths = []
    for name, state in zip("abc", states.values(), strict=True):
        torch.save(state, tmp_path / f"{name}.pt")
        paths.append(tmp_path / f"{name}.pt")
    run = record(paths, tmp_path / "run", batch, steps="1000:3000:1000", name="mine", seed=4, kinds="feature")
    assert run.steps == (1000, 2000, 3000)
    assert (run.title, run.info.config.seed, run.info.kinds) == ("mine", 4, ("feature",))
    with pytest.raises(FadevizError, match=r"the names have no steps \(a.pt, b.pt, c.pt\). Give steps="):
        record(paths, tmp_path / "other", batch)


def test_the_model_comes_back_as_it_was(tmp_path, training, batch):
    _, states = training
    model = Net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    record(states, tmp_path / "run", batch, model)
    with pytest.raises(FadevizError, match="no 'missing'"):
        record({**states, 20: {"missing": 1}}, tmp_path / "other", batch, model, key="missing")
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_that_are_missing(tmp_path, training, batch):
    _, states = training
    part = {step: {n: v for n, v in state.items() if "running" not in n} for step, state in states.items()}
    with pytest.raises(FadevizError, match=r"lacks 2 of the model's \d+ weights \(body.1.running_mean"):
        record(part, tmp_path / "run", batch)
    run = record(part, tmp_path / "run", batch, strict=False)
    assert any("kept the model's values: body.1.running_mean" in note for note in run.info.notes)
    with pytest.raises(FadevizError, match="lacks 9 of the model's 9 weights"):
        record({0: {"other": torch.ones(1)}}, tmp_path / "other", batch, strict=False)


@pytest.mark.parametrize(
    ("checkpoints", "message"),
    [
        ("nowhere", "there is no nowhere"),
        ([], "has no checkpoints"),
        ({0: {"body": {"deep": 1}}}, r"has no weights where they are usually kept. It has: body. Give key="),
        ({0: Net(8).state_dict()}, r"body.0.weight is \(8, 3, 3, 3\), the model's body.0.weight \(4, 3, 3, 3\)"),
        ({-1: {}}, "not all different and 0 or more"),
        ({"last": {}}, "a step is 'last'"),
    ],
)
def test_what_cannot_be_recorded(tmp_path, batch, checkpoints, message):
    with pytest.raises(FadevizError, match=message) as caught:
        record(checkpoints, tmp_path / "run", batch)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_files_that_are_none(tmp_path, batch):
    (tmp_path / "step_1.pt").write_bytes(b"nonsense" * 9)
    with pytest.raises(FadevizError, match=r"step_1.pt cannot be read as a checkpoint"):
        record(tmp_path, tmp_path / "run", batch)
    with pytest.raises(FadevizError, match="takes no resume"):
        record(tmp_path, tmp_path / "run", batch, resume=True)


def test_nothing_in_a_checkpoint_is_executed(tmp_path, training, batch):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    _, states = training
    for step, state in states.items():
        torch.save({"state_dict": state, "extra": Trap()}, tmp_path / f"step_{step}.pt")
    with pytest.raises(FadevizError, match=r"step_0.pt cannot be read as a checkpoint"):
        record(tmp_path, tmp_path / "run", batch)
    assert not (tmp_path / "sprung").exists()


def test_a_failure_leaves_a_run_that_says_so(tmp_path, training, batch):
    _, states = training
    with pytest.raises(FadevizError, match="lacks"):
        record({**states, 20: {"x": torch.ones(1)}}, tmp_path / "run", batch)
    run = fadeviz.open_run(tmp_path / "run")
    assert (run.steps, run.info.status) == (AT, "failed")
