"""The command for checkpoints of fadeviz's own networks: the maps that a run would have recorded."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fadeviz_cli.main import main

import fadeviz
from fadeviz import FadevizError, RunConfig, record_network_checkpoints
from fadeviz.data.synthetic import dataset
from fadeviz.experiment import build_model, load_data
from fadeviz.experiment.observing import Observer
from fadeviz.training.tasks import TASKS

CONFIG = RunConfig(network="unet", upsampler="carafe", size=32, width=0.125, observe=4, predictions=True)
OPTIONS = [
    "--network",
    "unet",
    "--upsampler",
    "carafe",
    "--size",
    "32",
    "--width",
    "0.125",
    "--observe",
    "4",
    "--predictions",
]
AT = (0, 2, 3)


@pytest.fixture(autouse=True, scope="module")
def _few_test_drawings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "TEST_DRAWINGS", 5)
        yield


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A plain loop of torch that saves state dicts, with what an observer saw at the same steps."""
    folder = tmp_path_factory.mktemp("checkpoints")
    splits = load_data(CONFIG)
    model, _ = build_model(CONFIG)
    model.to(memory_format=torch.channels_last)
    observer = Observer(CONFIG, splits, model, torch.device("cpu"))
    task = TASKS["segmentation"]
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    seen = {}
    for step in range(AT[-1] + 1):
        if step:
            images, masks = task.collate([splits.train[2 * step], splits.train[2 * step + 1]])
            optimizer.zero_grad()
            task.loss(model(images), masks).backward()
            optimizer.step()
        if step in AT:
            seen[step] = observer.observe(step), observer.prediction
            torch.save({"state_dict": model.state_dict(), "step": step}, folder / f"step_{step:03d}.pt")
    return folder, seen


def test_the_maps_are_bit_identical_to_those_of_the_training(tmp_path, training):
    folder, seen = training
    result = CliRunner().invoke(main, ["record-checkpoints", str(folder), *OPTIONS, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "3 snapshots of 4 images, steps 0 to 3" in result.output
    run = fadeviz.open_run(tmp_path / "run")
    assert run.steps == AT
    assert run.status == "finished"
    for step, (snapshots, prediction) in seen.items():
        assert {"feature", "gradient", "readout", "kernel_entropy"} <= {snapshot.kind for snapshot in snapshots}
        for snapshot in snapshots:
            np.testing.assert_array_equal(run.read(step, snapshot.layer, snapshot.kind), snapshot.value)
        np.testing.assert_array_equal(run.prediction(step), prediction)
    assert (run.title, run.info.network_title, run.info.imported) == ("CARAFE", "U-Net", str(folder))
    assert "lr" not in run.info.config  # of the training, nothing is claimed
    assert fadeviz.check_run(run) == []
    assert len(fadeviz.compare(run, tmp_path / "panel.png", cell=40, zoom="none")) == 4
    assert len(fadeviz.analyze(run, layer="decoder.4.upsample").table) == 1


def test_the_checkpoint_of_a_run_gives_that_runs_maps(tmp_path):
    config = dataclasses.replace(CONFIG, steps=2, snapshots="2", predictions=False, kinds="feature,gradient")
    run = fadeviz.train(config, tmp_path / "run")
    again = record_network_checkpoints(config, run.path / "checkpoints" / "last.pt", tmp_path / "again", steps=[2])
    assert again.steps == (2,)
    for layer, kinds in run.layers.items():
        for kind in kinds:
            np.testing.assert_array_equal(again.read(2, layer, kind), run.read(2, layer, kind))
    np.testing.assert_array_equal(again.observation[0], run.observation[0])
    assert again.info.observation == run.info.observation


def test_files_patterns_and_steps(tmp_path, training):
    folder, seen = training
    plain = dataclasses.replace(CONFIG, kinds="feature", predictions=False)
    files = [folder / "step_003.pt", str(folder / "step_00[02].pt")]
    run = record_network_checkpoints(plain, files, tmp_path / "run")
    assert run.steps == AT
    told = []
    states = {step: torch.load(folder / f"step_{step:03d}.pt", weights_only=True)["state_dict"] for step in AT}
    again = record_network_checkpoints(plain, states, tmp_path / "again", on_progress=lambda *two: told.append(two))
    assert told == [(0, 2), (2, 1), (3, 0)]
    for step, (snapshots, _) in seen.items():
        value = next(s.value for s in snapshots if (s.layer, s.kind) == ("decoder.1.upsample", "feature"))
        np.testing.assert_array_equal(run.read(step, "decoder.1.upsample", "feature"), value)
        np.testing.assert_array_equal(again.read(step, "decoder.1.upsample", "feature"), value)
    assert again.run_id == run.run_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--upsampler", "fade"], r"step_000.pt lacks \d+ of the model's \d+ weights \(decoder.0.upsample"),
        (["--upsampler", "bilinear"], r"step_000.pt has \d+ weights that the model does not have \(decoder.0.upsample"),
        (["--network", "segnet"], r"step_000.pt lacks \d+ of the model's"),
        (["--width", "0.25"], r"is \(.*\), the model's \S+ \(.*\). Build the model with the settings of the training"),
        (["--classes", "3"], r"head\S* is \(2, .*, the model's head\S* \(3,"),
        (["--classes", "1"], "classes is 1; the masks of the data have 2, so that it must be from 2 to 254"),
        (["--steps", "1,2"], "2 steps for 3 checkpoints. Give one for each: --steps"),
        (["--key", "ema"], r"step_000.pt has no 'ema'. It has: state_dict, step"),
    ],
)
def test_what_is_refused_in_one_line(tmp_path, training, options, message):
    folder, _ = training
    result = CliRunner().invoke(
        main, ["record-checkpoints", str(folder), *OPTIONS, *options, "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 1
    assert re.search(message, result.stderr), result.stderr
    assert result.stderr.count("\n") == 1
    assert "strict=False" not in result.stderr
    assert not (tmp_path / "run" / "run.json").exists()


def test_other_weights_with_a_note(tmp_path, training):
    folder, _ = training
    config = dataclasses.replace(CONFIG, upsampler="bilinear", kinds="feature", predictions=False)
    run = record_network_checkpoints(config, folder, tmp_path / "run", strict=False)
    assert any(
        note.startswith("weights that the model does not have were left out: decoder.0") for note in run.info.notes
    )


def test_a_checkpoint_at_fault_leaves_a_failed_run(tmp_path, training):
    folder, _ = training
    state = torch.load(folder / "step_000.pt", weights_only=True)
    config = dataclasses.replace(CONFIG, kinds="feature", predictions=False)
    with pytest.raises(FadevizError, match="the state dict of step 9 lacks"):
        record_network_checkpoints(config, {0: state, 9: {"x": torch.ones(1)}}, tmp_path / "run")
    run = fadeviz.open_run(tmp_path / "run")
    assert (run.steps, run.status) == ((0,), "failed")
    with pytest.raises(FadevizError, match="holds a run already"):
        record_network_checkpoints(config, {0: state}, tmp_path / "run")
    segnet = RunConfig(network="segnet", size=32, width=1, observe=4, weights="imagenet")
    with pytest.raises(FadevizError, match="weights is imagenet, but the weights are those of the checkpoints"):
        record_network_checkpoints(segnet, folder, tmp_path / "other")
