"""What a model predicts for the observed images: stored by the observation itself, drawn, compared and reported."""

import copy
import dataclasses
import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fadeviz_cli.main import main
from PIL import Image
from torch import nn
from torch.nn import functional as F

import fadeviz
from fadeviz import FadevizError, Recorder, RecorderWarning
from fadeviz.recording.predictions import PredictionReader
from fadeviz.recording.probe import Probe
from fadeviz.render.colormap import class_palette, to_indices
from fadeviz.render.predictions import OUTLINE, select_predictions, true_outline
from fadeviz.render.selection import MapSelection
from fadeviz.storage.snapshots import open_tensors

AT = (0, 2, 4)
COUNT, SIDE = 5, 24


class Net(nn.Module):
    """A small network with BatchNorm and dropout; its logits may be in a dict, or smaller than the images."""

    def __init__(self, classes=3, wrap=lambda logits: logits):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.drop = nn.Dropout(0.3)
        self.head = nn.Conv2d(6, classes, 1)
        self.wrap = wrap

    def forward(self, images):
        return self.wrap(self.head(self.drop(self.body(images))))


def observed(classes=3):
    generator = torch.Generator().manual_seed(3)
    masks = torch.zeros(COUNT, SIDE, SIDE, dtype=torch.long)
    for index in range(COUNT):
        masks[index, 5 + index : 15 + index, 4:14] = 1
        if classes > 2:
            masks[index, -4:] = 2
    colours = torch.eye(3)[masks].permute(0, 3, 1, 2)
    return colours + 0.4 * torch.randn(COUNT, 3, SIDE, SIDE, generator=generator), masks


def train(
    out, predictions=True, *, model=None, batch=None, after=lambda step, model: None, start=0, steps=4, **options
):
    """A hand-written loop with a recorder in it; returns the model and what the training has changed."""
    torch.manual_seed(0)
    model = Net() if model is None else model
    images, masks = batch = observed() if batch is None else batch
    optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)
    recorder = None
    if out is not None:
        options = {"loss_fn": lambda output, target: F.cross_entropy(logits_of(output), target)} | options
        recorder = Recorder(
            model, "body", "2:4:2", out, batch=batch, predictions=predictions, on_error="raise", **options
        )
    after(0, model)
    for step in range(start + 1, steps + 1):
        optimizer.zero_grad()
        F.cross_entropy(logits_of(model(images)), masks).backward()
        optimizer.step()
        if recorder is not None:
            recorder.step(step)
        after(step, model)
    momentum = [state["momentum_buffer"] for state in optimizer.state_dict()["state"].values()]
    return model, [*model.state_dict().values(), *momentum, torch.get_rng_state()]


def logits_of(output):
    return output if isinstance(output, torch.Tensor) else output["logits"]


@torch.no_grad()
def logits_now(model, images):
    """The logits in eval mode, by a copy of the model."""
    return logits_of(copy.deepcopy(model).eval()(images))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of three classes with predictions, and what its model predicted at each recorded step."""
    expected = {}

    def after(step, model):
        if step in AT:
            expected[step] = logits_now(model, observed()[0]).argmax(1).numpy()

    out = tmp_path_factory.mktemp("predictions") / "three"
    train(out, after=after, name="three", seed=0)
    return fadeviz.open_run(out), expected


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    out = tmp_path_factory.mktemp("predictions") / "binary"
    train(out, model=Net(2), batch=observed(2), name="binary")
    return fadeviz.open_run(out)


class TestRecorded:
    def test_they_are_the_argmax_of_the_model_in_eval_mode(self, recorded):
        run, expected = recorded
        assert run.info.predictions == "classes"
        assert run.steps == AT
        for step in AT:
            stored = run.prediction(step)
            assert stored.dtype == np.uint8
            np.testing.assert_array_equal(stored, expected[step])
            np.testing.assert_array_equal(run.prediction(step, 2), expected[step][2])
        assert not np.array_equal(run.prediction(0), run.prediction(4))

    def test_training_is_bit_identical_and_the_maps_are_those_without(self, tmp_path, recorded):
        _, alone = train(None)
        _, with_predictions = train(tmp_path / "with")
        assert all(map(torch.equal, alone, with_predictions))
        train(tmp_path / "without", predictions=False)
        run, plain = recorded[0], fadeviz.open_run(tmp_path / "without")
        assert plain.info.predictions is None
        assert "predictions" not in json.loads((plain.path / "run.json").read_text())
        for step in AT:
            np.testing.assert_array_equal(run.read(step, "body", "gradient"), plain.read(step, "body", "gradient"))

    def test_a_byte_a_pixel_in_the_file_of_the_step(self, recorded):
        run, _ = recorded
        with open_tensors(run.path / "snapshots" / "step_000004.safetensors") as file:
            part = file.get_slice("prediction")
            assert (part.get_dtype(), part.get_shape()) == ("U8", [COUNT, SIDE, SIDE])

    def test_nothing_takes_them_for_a_map(self, recorded):
        run, _ = recorded
        assert run.layers == {"body": ("feature", "gradient", "readout")}
        assert set(run.info.layers) == {"body"}
        assert all("prediction" not in row for row in fadeviz.analyze(run).table)
        with pytest.raises(FadevizError, match="no kind 'prediction'"):
            run.maps("body", "prediction")

    def test_one_forward_pass_for_each_observation(self):
        calls = []
        model = Net()
        model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
        images, masks = observed()
        probe = Probe(model, "body", predictions=PredictionReader(True, (COUNT, SIDE, SIDE)))
        probe.observe(images, masks, F.cross_entropy, step=0)
        assert calls == [COUNT]
        assert probe.prediction.shape == (COUNT, SIDE, SIDE)

    def test_a_few_images_at_a_time(self):
        images, masks = observed()
        model = Net()
        probe = Probe(model, "body", predictions=PredictionReader(True, (COUNT, SIDE, SIDE)))
        probe.observe(images, masks, F.cross_entropy, step=0, images_at_once=2)
        assert probe.notes == []
        np.testing.assert_array_equal(probe.prediction, logits_now(model, images).argmax(1).numpy())

    def test_check_and_repair_know_them(self, tmp_path):
        train(tmp_path / "run")
        file = tmp_path / "run" / "snapshots" / "step_000002.safetensors"
        data = bytearray(file.read_bytes())
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        data[8 + int.from_bytes(data[:8], "little") + header["prediction"]["data_offsets"][0]] ^= 1
        file.write_bytes(data)
        (fault,) = fadeviz.check_run(tmp_path / "run")
        assert fault.what == "prediction is not what was written (checksum)"
        fadeviz.check_run(tmp_path / "run", repair=True)
        assert fadeviz.open_run(tmp_path / "run").steps == (0, 4)

    def test_a_run_of_fadeviz_itself(self, tmp_path, monkeypatch):
        from fadeviz.data.synthetic import dataset

        monkeypatch.setattr(dataset, "TEST_DRAWINGS", 4)
        config = fadeviz.RunConfig(
            network="unet", upsampler="bilinear", steps=2, size=32, width=0.125, observe=2, snapshots="1:2"
        )
        run = fadeviz.train(dataclasses.replace(config, predictions=True), tmp_path / "with")
        predictor = fadeviz.Predictor(run)
        images, masks = run.observation
        for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
            sample = fadeviz.data.Sample("", image, mask)
            np.testing.assert_array_equal(run.prediction(2, index), predictor(sample))
        assert "predictions" in run.summary().facts
        plain = fadeviz.train(config, tmp_path / "without")
        assert plain.run_id != run.run_id


class TestOutputs:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda logits: {"logits": logits, "features": logits},
            lambda logits: {"out": logits, "aux": -logits},
            lambda logits: SimpleNamespace(logits=logits),
        ],
    )
    def test_where_the_logits_are(self, wrap):
        logits = torch.randn(2, 4, 6, 8)
        read = PredictionReader(True, (2, 6, 8)).read(wrap(logits))
        np.testing.assert_array_equal(read, logits.argmax(1).numpy())

    def test_one_channel_is_a_logit(self):
        logits = torch.randn(2, 1, 6, 8)
        read = PredictionReader(True, (2, 6, 8)).read(logits)
        np.testing.assert_array_equal(read, (logits.sigmoid() > 0.5)[:, 0].numpy())

    def test_many_classes_and_another_size(self):
        logits = torch.randn(2, 20, 6, 8)
        larger = F.interpolate(logits, (13, 15), mode="bilinear", align_corners=False)
        np.testing.assert_array_equal(PredictionReader(True, (2, 13, 15)).read(logits), larger.argmax(1).numpy())

    def test_no_class_where_a_logit_is_nan(self):
        logits = torch.zeros(1, 3, 2, 2)
        logits[0, 1, 0, 0] = torch.nan
        logits[0, 2] = 1
        assert PredictionReader(True, (1, 2, 2)).read(logits).tolist() == [[[255, 2], [2, 2]]]

    def test_a_function_of_classes_takes_the_nearest_pixel(self):
        reader = PredictionReader(lambda output: output > 0, (1, 4, 4))
        read = reader.read(torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]]))
        assert reader.values == "classes"
        assert read.tolist() == [np.kron([[1, 0], [0, 1]], np.ones((2, 2))).tolist()]

    def test_a_function_of_alphas(self):
        reader = PredictionReader(lambda output: output.sigmoid()[:, 0].numpy(), (2, 4, 4))
        logits = torch.randn(2, 1, 4, 4)
        np.testing.assert_array_equal(reader.read(logits), (logits[:, 0].sigmoid() * 255).round().numpy())
        assert reader.values == "alpha"

    def test_a_function_cannot_change_what_the_loss_is_given(self, tmp_path):
        def spoil(output):
            return output.zero_().argmax(1)

        train(tmp_path / "spoilt", spoil)
        train(tmp_path / "plain", False)
        spoilt, plain = (fadeviz.open_run(tmp_path / name) for name in ("spoilt", "plain"))
        assert not spoilt.prediction(4).any()
        np.testing.assert_array_equal(spoilt.read(4, "body", "gradient"), plain.read(4, "body", "gradient"))

    @pytest.mark.parametrize(
        ("predictions", "message"),
        [
            (3, "predictions is 3: True is needed"),
            (lambda output: output, r"predictions returned a tensor \(5, 3, 24, 24\).* for 5 images; \(5, H, W\)"),
            (lambda output: output.argmax(1)[:4], r"a tensor \(4, 24, 24\) of torch.int64 for 5 images"),
            (lambda output: [1], "predictions returned list"),
            (lambda output: output[:, 0], r"predictions returned floats from -\S+ to \S+, .* must be from 0 to 1"),
            (lambda output: output.argmax(1) - 1, r"predictions returned classes from -1 to \d; from 0 to 253"),
            (lambda output: output.argmax(1) + 300, "predictions returned classes from 300 to"),
            (lambda output: output.argmax(1) * 0 + 254, "predictions returned class 254"),
            (lambda output: output["mask"], "predictions failed .*: TypeError|predictions failed"),
        ],
    )
    def test_what_is_no_prediction(self, tmp_path, predictions, message):
        with pytest.raises(FadevizError, match=message) as caught:
            train(tmp_path / "run", predictions)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run" / "run.json").exists()

    @pytest.mark.parametrize(
        "wrap", [lambda logits: (logits, logits), lambda logits: {"scores": logits}, lambda logits: logits.flatten(2)]
    )
    def test_no_logits(self, tmp_path, wrap):
        batch = observed()
        with pytest.raises(FadevizError, match=r"predictions=True: the model returns .* logits \(5, C, H, W\), or"):
            Recorder(Net(wrap=wrap), "body", "2", tmp_path / "run", batch=batch, predictions=True)

    def test_a_function_that_changes_its_mind(self, tmp_path):
        answers = iter([True, True, False])
        recorder = Recorder(
            Net(), "body", "1:9", tmp_path / "run", batch=observed(),
            predictions=lambda output: output.argmax(1) if next(answers) else output.softmax(1)[:, 0],
        )  # fmt: skip
        with pytest.warns(RecorderWarning, match="predictions returned alphas .floats., but classes before"):
            assert not recorder.step(1)

    def test_a_random_function_is_noted(self, tmp_path):
        model, batch, calls = Net(), observed(), itertools.count()
        with pytest.warns(RecorderWarning, match="a second pass over the same batch gave other predictions"):
            Recorder(
                model, "body", "2", tmp_path / "run", batch=batch,
                predictions=lambda output: torch.full((COUNT, SIDE, SIDE), next(calls)),
            )  # fmt: skip


class TestResumed:
    def test_the_same_as_without_a_break(self, tmp_path, recorded):
        model, _ = train(tmp_path / "run", steps=2)
        Recorder(
            model, "body", "2:4:2", tmp_path / "run", batch=observed(), predictions=True, resume=True, start=0,
            loss_fn=F.cross_entropy,
        ).close()  # fmt: skip
        assert fadeviz.open_run(tmp_path / "run").steps == (0,)
        train(tmp_path / "run", resume=True, start=0)
        run, expected = fadeviz.open_run(tmp_path / "run"), recorded[1]
        for step in (2, 4):
            np.testing.assert_array_equal(run.prediction(step), expected[step])

    @pytest.mark.parametrize(("first", "then"), [(True, False), (False, True), (True, lambda o: o.softmax(1)[:, 0])])
    def test_other_predictions_are_refused(self, tmp_path, first, then):
        train(tmp_path / "run", first)
        before = (tmp_path / "run" / "run.json").read_bytes()
        with pytest.raises(FadevizError, match="was recorded with predictions of (classes|nothing), now of "):
            train(tmp_path / "run", then, resume=True)
        assert (tmp_path / "run" / "run.json").read_bytes() == before


class TestDrawn:
    def test_classes_have_their_colours_and_the_true_outline(self, recorded):
        run, expected = recorded
        (sequence,) = select_predictions([run], MapSelection(kind="prediction", image=1))
        assert sequence.steps == AT
        for frame, step in zip(sequence.unit, AT, strict=True):
            colours = sequence.colours.palette[to_indices(frame)]
            np.testing.assert_array_equal(colours, class_palette(3)[expected[step][1]])
        assert {name for name, _ in sequence.colours.legend} <= {"class 0", "class 1", "class 2"}
        assert sequence.colours.sentence.endswith("White line: true outline.")
        line = true_outline(sequence, 3)
        assert line.shape == (3 * SIDE, 3 * SIDE)
        assert line[3 * 6, 3 * 4]  # the object's corner
        assert not line[3 * 10, 3 * 8]  # inside it

    def test_two_classes_are_black_and_white(self, binary):
        (sequence,) = select_predictions([binary], MapSelection(kind="prediction", steps=(4,)))
        colours = sequence.colours.palette[to_indices(sequence.unit[0])]
        np.testing.assert_array_equal(colours[..., 0], 255 * binary.prediction(4, 0))
        assert tuple(sequence.colours.palette[sequence.colours.outline]) == OUTLINE
        assert sequence.colours.legend == ()
        assert "White: class 1; black: class 0." in sequence.colours.sentence

    def test_files(self, tmp_path, recorded, binary):
        run, _ = recorded
        assert fadeviz.grid(run, tmp_path / "grid.png", kind="prediction") == ()
        for name in ("movie.gif", "movie.png"):
            fadeviz.animate(run, tmp_path / name, kind="prediction", image=1, scale=2)
            with Image.open(tmp_path / name) as image:
                assert image.n_frames == len(AT)
                image.seek(2)
                pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
            for label in np.unique(run.prediction(4, 1)):
                assert (pixels == class_palette(3)[label]).all(axis=1).any(), (name, label)
        fadeviz.animate(binary, tmp_path / "binary.gif", kind="prediction", scale=2)
        with Image.open(tmp_path / "binary.gif") as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert (pixels == OUTLINE).all(axis=1).any()

    def test_mattes_are_grey(self, tmp_path):
        train(tmp_path / "run", lambda output: output.softmax(1)[:, 1])
        run = fadeviz.open_run(tmp_path / "run")
        (sequence,) = select_predictions([run], MapSelection(kind="prediction"))
        np.testing.assert_array_equal(to_indices(sequence.unit[-1]), run.prediction(4, 0))
        assert sequence.colours.sentence == "Alpha from 0 (black) to 1 (white)."
        assert true_outline(sequence, 2) is None

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"layer": "body"}, "Leave out layer="),
            ({"normalize": "run"}, "Leave out normalize="),
            ({"percentiles": (1, 99)}, "Leave out percentiles="),
            ({"call": 1}, "Leave out call="),
            ({"colormap": "viridis"}, "Leave out colormap="),
            ({"image": 9}, "no image 9"),
            ({"steps": (3,)}, "no snapshot of step 3"),
        ],
    )
    def test_options_that_are_of_maps(self, tmp_path, recorded, options, message):
        with pytest.raises(FadevizError, match=message):
            fadeviz.grid(recorded[0], tmp_path / "grid.png", kind="prediction", **options)

    def test_a_run_without(self, tmp_path, recorded):
        train(tmp_path / "run", False)
        result = CliRunner().invoke(
            main, ["grid", str(tmp_path / "run"), "--kind", "prediction", "-o", str(tmp_path / "grid.png")]
        )
        assert result.exit_code == 1
        assert re.search(r"has no predictions. Record them: predictions=True of a Recorder, or fadeviz", result.output)


SMALL = {"cell": 40, "zoom": "none"}


class TestCompared:
    def test_the_last_stored_ones_or_those_of_a_step(self, tmp_path, recorded):
        run, expected = recorded
        masks = observed()[1].numpy()
        for step, options in ((4, {}), (2, {"step": 2})):
            lines = fadeviz.compare(run, tmp_path / "panel.png", images=[1, 3], **SMALL, **options)
            assert len(lines) == 2
            for line, index in zip(lines, (1, 3), strict=True):
                a, b = expected[step][index], masks[index]
                shares = [((a == c) & (b == c)).sum() / ((a == c) | (b == c)).sum() for c in np.union1d(a, b)]
                assert line == f"image {index}: three mIoU {np.mean(shares):.3f}"

    @pytest.mark.slow
    def test_beside_a_network_that_is_known(self, tmp_path, binary, monkeypatch):
        from fadeviz.data.synthetic import dataset

        monkeypatch.setattr(dataset, "TEST_DRAWINGS", 4)
        config = fadeviz.RunConfig(
            network="unet",
            upsampler="bilinear",
            steps=1,
            size=32,
            width=0.125,
            observe=4,
            snapshots="1",
            predictions=True,
        )
        run = fadeviz.train(config, tmp_path / "run")
        from_network = fadeviz.compare(run, tmp_path / "panel.png", **SMALL)
        assert fadeviz.compare(run, tmp_path / "panel.png", step=1, **SMALL) == from_network
        (run.path / "checkpoints" / "last.pt").unlink()
        assert fadeviz.compare(run, tmp_path / "panel.png", **SMALL) == from_network
        with pytest.raises(FadevizError, match="observed different images"):
            fadeviz.compare([run, binary], tmp_path / "panel.png")

    def test_mattes_against_the_mask(self, tmp_path):
        train(tmp_path / "run", lambda output: output.softmax(1)[:, 1])
        (line,) = fadeviz.compare(tmp_path / "run", tmp_path / "panel.png", images=[0], **SMALL)
        assert re.fullmatch(r"image 0: run SAD \S+ MSE \d\.\d{3}", line)

    def test_without_masks_there_is_no_score(self, tmp_path):
        images, _ = observed()
        Recorder(Net(), "body", "1", tmp_path / "run", batch=(images, None), predictions=True).close()
        assert fadeviz.compare(tmp_path / "run", tmp_path / "panel.png", images=[0], **SMALL) == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"files": ["photo.jpg"]}, "which are of its observed images alone"),
            ({"test": [0]}, "which are of its observed images alone"),
            ({"size": 32}, "are stored at one size. Leave out size="),
            ({"step": 3}, "no snapshot of step 3. It has: 0, 2, 4"),
        ],
    )
    def test_what_stored_predictions_cannot_show(self, tmp_path, recorded, options, message):
        with pytest.raises(FadevizError, match=message):
            fadeviz.compare(recorded[0], tmp_path / "panel.png", **options)

    def test_a_run_without(self, tmp_path):
        train(tmp_path / "run", False)
        with pytest.raises(FadevizError, match="its predictions were not stored. Record it with predictions=True"):
            fadeviz.compare(tmp_path / "run", tmp_path / "panel.png")


def page_data(path):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text())[1])


class TestReported:
    def test_the_page_holds_every_frame(self, tmp_path, recorded):
        import base64

        from test_report import unpack  # the inverse of the codec, written anew

        run, _ = recorded
        fadeviz.write_report(run, tmp_path / "page.html")
        data = page_data(tmp_path / "page.html")["predictions"]
        assert [sequence["image"] for sequence in data["sequences"]] == [0, 1, 2, 3]
        assert len(data["truths"]) == 4
        assert data["outlined"]
        colours = np.array(data["colours"]).reshape(256, 3)
        text = (tmp_path / "page.html").read_text()
        packed = base64.b64decode(re.search(r'id="prediction-0-2">([^<]*)<', text)[1])
        levels, _ = unpack(packed, len(AT), SIDE, SIDE, False)
        for frame, step in zip(levels, AT, strict=True):
            np.testing.assert_array_equal(colours[frame], class_palette(3)[run.prediction(step, 2)])

    def test_a_run_without_has_no_section(self, tmp_path):
        train(tmp_path / "run", False)
        fadeviz.write_report(tmp_path / "run", tmp_path / "page.html")
        assert page_data(tmp_path / "page.html")["predictions"] is None


def test_a_comparison_takes_labels_a_title_and_a_width(recorded, tmp_path):
    run, _ = recorded
    command = ["compare", str(run.path), "-o", str(tmp_path / "cli.png"), "--images", "0", "--step", "4"]
    command += ["--label", "Ours", "--title", "T", "--no-caption", "--width", "85mm", "--dpi", "150"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    options = {"labels": ["Ours"], "title": "T", "caption": False, "width": "85mm", "dpi": 150}
    fadeviz.compare(run.path, tmp_path / "py.png", images=[0], step=4, **options)
    assert (tmp_path / "cli.png").read_bytes() == (tmp_path / "py.png").read_bytes()
    with Image.open(tmp_path / "py.png") as image:
        assert image.width == round(85 / 25.4 * 150)
        assert "mIoU: mean over the classes" in image.text["Description"]
        tall = image.height
    fadeviz.compare(run.path, tmp_path / "py.png", images=[0], step=4, **options | {"caption": True})
    with Image.open(tmp_path / "py.png") as image:
        assert image.height > tall
    with pytest.raises(FadevizError, match="2 labels for 1 run"):
        fadeviz.compare(run.path, tmp_path / "py.png", step=4, labels=["a", "b"])
