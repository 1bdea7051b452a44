"""Panels of runs, and predictions for images of one's own: what is written, and the one-line errors."""

import dataclasses
import json
import shutil
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fadeviz_cli.main import main
from PIL import Image

from fadeviz import FadevizError, open_run
from fadeviz.data import Sample
from fadeviz.data.synthetic import dataset as synthetic
from fadeviz.experiment import RunConfig, build_model, load_data, train
from fadeviz.models.pretrained import read_pretrained
from fadeviz.prediction import compare as compare_module
from fadeviz.prediction.compare import compare, mean_iou, parse_zoom
from fadeviz.prediction.predictor import Prediction, Predictor, predict, read_image
from fadeviz.render.classes import class_key, largest_shares
from fadeviz.render.zoom import Box
from fadeviz.storage.info import RunInfo, StoredData
from fadeviz.training.matting_metrics import mse, sad
from fadeviz.training.tasks import TASKS

SEGNET = RunConfig("bilinear", size=64, width=0.125, steps=6, snapshots="6", observe=3, evaluate_every=6)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A short SegNet, another operator, and a matting network: all trained for a few steps."""
    pytest.importorskip("transformers", reason="the matting network is built of transformers: pip install transformers")
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "TEST_DRAWINGS", 4)
        train(SEGNET, folder / "bilinear")
        train(dataclasses.replace(SEGNET, upsampler="carafe"), folder / "carafe")
        matting = dataclasses.replace(SEGNET, network="matting", lr=None, layers="", lr_drops=(), observe=2)
        train(matting, folder / "matting")
    return folder


@pytest.fixture(autouse=True)
def few_drawings(monkeypatch):
    monkeypatch.setattr(synthetic, "TEST_DRAWINGS", 4)


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def final_network(path):
    """The network of a run with its last weights, put together by hand."""
    opened = open_run(path)
    config = RunConfig(**{**opened.info.config, "lr_drops": tuple(opened.info.config["lr_drops"])})
    model, _ = build_model(config)
    model.load_state_dict(torch.load(path / "checkpoints" / "last.pt", weights_only=True)["model"])
    return config, model.eval()


def test_pictures_that_a_panel_leaves_out_are_counted(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("fadeviz.prediction.compare.SHOWN", 2)
    result = invoke("compare", runs / "bilinear", "-o", tmp_path / "p.png")
    assert (result.exit_code, result.stderr) == (
        0,
        "note: 2 of 3 observed images are shown. Choose others with --images\n",
    )
    result = invoke("compare", runs / "bilinear", "-o", tmp_path / "p.png", "--images", "0")
    assert (result.exit_code, result.stderr) == (0, "")


def test_classes_without_a_place_in_the_legend_are_counted():
    maps = np.zeros((10, 100), np.uint8)
    maps[0, :5], maps[1, :50], maps[2, :3] = 1, 2, 3
    config = SimpleNamespace(network="segnet", seed=0)
    info = RunInfo(classes=4, data=StoredData({"name": "things"}))
    run = SimpleNamespace(info=info, run_id="r", name="fade", title="FADE")
    predictor = SimpleNamespace(run=run, config=config, classes=4, task="segmentation", step=1)
    row = SimpleNamespace(scores=())
    key = class_key([run], largest_shares([maps]))
    assert [name for name, _ in key.legend] == ["class 0", "class 2"]
    said = " ".join(compare_module._caption([predictor], [(row, [maps])], "none", key))
    assert "Colours: classes as listed; 2 more fill less than 1% of any image. Black: unlabelled." in said


# --- predicting ---


def test_predicts_what_the_last_weights_give(runs):
    config, model = final_network(runs / "bilinear")
    sample = load_data(config).test[1]
    images, _ = TASKS["segmentation"].collate([sample])
    with torch.no_grad():
        expected = model(images)[0].argmax(0).numpy()
    predict = Predictor(runs / "bilinear")
    found = predict(sample)
    assert predict.step == 6
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_evaluated_figures_are_those_of_the_predictions(runs):
    opened = open_run(runs / "bilinear")
    config, _ = final_network(runs / "bilinear")
    test = load_data(config).test
    predict = Predictor(opened)
    found = np.stack([predict(test[i]) for i in range(4)])
    truth = np.stack([test[i].mask for i in range(4)])
    assert mean_iou(found, truth, 2) == pytest.approx(opened.info.result["miou"], abs=1e-12)


def test_pictures_of_any_size_are_squeezed_as_in_training_and_give_masks_of_their_size(runs):
    config, model = final_network(runs / "carafe")
    picture = photo(50, 83)
    found = Predictor(runs / "carafe")(Sample("x", picture, np.zeros((50, 83), np.uint8)))
    assert found.shape == (50, 83)
    squeezed = np.array(Image.fromarray(picture).resize((64, 64), Image.Resampling.BILINEAR))
    images, _ = TASKS["segmentation"].collate([Sample("x", squeezed, np.zeros((64, 64), np.uint8))])
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(model(images), (50, 83), mode="bilinear")
    np.testing.assert_array_equal(found, logits[0].argmax(0).numpy())


def test_mattes_keep_what_the_trimap_knows_and_are_made_at_the_pictures_size(runs):
    predict = Predictor(runs / "matting")
    assert predict.task == "matting"
    trimap = np.full((45, 70), 128, np.uint8)
    trimap[:10], trimap[-10:] = 0, 255
    sample = Sample("x", photo(45, 70), np.zeros((45, 70), np.uint8), trimap=trimap)
    for size in (None, 32):
        alpha = predict(sample, size=size)
        assert alpha.shape == (45, 70)
        assert alpha.dtype == np.float32
        assert (alpha[:10] == 0).all()
        assert (alpha[-10:] == 1).all()
        assert np.unique(alpha[10:-10]).size > 0
    _, model = final_network(runs / "matting")
    padded = [np.pad(a, ((0, 3), (0, 10), (0, 0))[: a.ndim], mode="reflect") for a in (sample.image, trimap)]
    inputs, _ = TASKS["segmentation"].collate([Sample("x", padded[0], padded[1])])
    inputs = torch.cat([inputs, torch.from_numpy(padded[1])[None, None] / 255], 1)
    np.testing.assert_allclose(predict(sample), model.alpha(inputs)[0, 0, :45, :70].numpy(), atol=1e-6)


def test_files_are_written_at_the_size_of_their_pictures(runs, tmp_path):
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "a.png", photo(40, 60))
    save(tmp_path / "in" / "b.jpg", photo(64, 64))
    turned = Image.Exif()
    turned[274] = 6  # a camera held upright
    save(tmp_path / "in" / "c.jpg", photo(40, 60), exif=turned)
    save(tmp_path / "in" / "a_mask.png", photo(9, 9))  # a result, not an image
    result = invoke("predict", runs / "bilinear", tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_mask.png", "b_mask.png", "c_mask.png"]
    with Image.open(tmp_path / "out" / "a_mask.png") as mask:
        assert (mask.mode, mask.size) == ("P", (60, 40))
        assert set(np.unique(np.array(mask))) <= {0, 1}
        assert mask.getpalette()[:6] == [0, 0, 0, 255, 255, 255]
        found = Predictor(runs / "bilinear")(read_image(tmp_path / "in" / "a.png"))
        np.testing.assert_array_equal(np.array(mask), found)
    with Image.open(tmp_path / "out" / "c_mask.png") as mask:
        assert mask.size == (40, 60)


def test_mattes_are_grey_files(runs, tmp_path):
    picture = save(tmp_path / "a.png", photo(40, 60))
    trimap = np.full((40, 60), 100, np.uint8)  # any one grey is the unknown
    trimap[:5], trimap[-5:] = 0, 255
    (tmp_path / "known").mkdir()
    save(tmp_path / "known" / "a.png", trimap)
    result = invoke("predict", runs / "matting", picture, "--trimaps", tmp_path / "known", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out" / "a_alpha.png") as alpha:
        values = np.array(alpha)
    assert (values[:5] == 0).all()
    assert (values[-5:] == 255).all()
    save(tmp_path / "a_trimap.png", trimap)
    predict(runs / "matting", [picture], tmp_path / "again")
    assert (tmp_path / "again" / "a_alpha.png").read_bytes() == (tmp_path / "out" / "a_alpha.png").read_bytes()


def test_wrong_input_is_one_line(runs, tmp_path):
    picture = save(tmp_path / "a.png", photo(40, 60))
    (tmp_path / "more").mkdir()
    twin = save(tmp_path / "more" / "a.png", photo(40, 60))
    (tmp_path / "empty").mkdir()
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((40, 60), 30_000, np.uint16)).save(deep)
    (tmp_path / "text.png").write_text("no image")
    out = tmp_path / "out"
    cases = [
        (("predict", runs / "matting", picture, "-o", out), "a.png has no trimap: matting needs one"),
        (("predict", runs / "bilinear", tmp_path / "none.png", "-o", out), "no image"),
        (("predict", runs / "bilinear", tmp_path / "empty", "-o", out), "has no images"),
        (("predict", runs / "bilinear", picture, twin, "-o", out), "would both become a_mask.png"),
        (("predict", runs / "bilinear", tmp_path / "text.png", "-o", out), "it is not an image"),
        (("predict", runs / "bilinear", picture, "-o", out, "--trimaps", tmp_path), "trimaps are of no use"),
        (("predict", runs / "bilinear", picture, "-o", out, "--size", 8), "size is 8"),
        (("predict", runs / "bilinear", picture, "-o", out, "--size", 100_000), "8,388,608 are the most"),
        (("predict", runs / "bilinear", deep, "-o", out), "16 bits or more per channel"),
        (("compare", runs / "bilinear", runs / "matting", "-o", out / "p.png"), "they cannot be compared"),
        (("compare", runs / "bilinear", "-o", out / "p.gif"), ".png"),
        (("compare", runs / "bilinear", "-o", out / "p.png", "--images", 3), "there are 3, from 0 to 2"),
        (("compare", runs / "bilinear", "-o", out / "p.png", "--test", 4), "from 0 to 3"),
        (("compare", runs / "bilinear", "-o", out / "p.png", "--zoom", "1,2"), "LEFT,TOP,SIDE"),
        (("compare", runs / "bilinear", "-o", out / "p.png", "--zoom", "60,0,32"), "does not lie in the image"),
    ]
    for command, words in cases:
        result = invoke(*command)
        assert result.exit_code == 1, command
        assert words in result.stderr, (command, result.stderr)
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("Error: ")
    assert not out.exists()


def test_one_damaged_picture_costs_its_own_result_alone(runs, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "acd":
        save(folder / f"{name}.png", photo(40, 60))
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    (folder / "notes.txt").write_text("of another kind")
    (folder / "inside").mkdir()
    result = invoke("predict", runs / "bilinear", folder, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [f"wrote {tmp_path / 'out' / name}_mask.png" for name in "acd"]
    note, error = result.stderr.splitlines()
    assert note == f"note: left out of {folder}: 2 other entries (inside/, notes.txt)"
    assert error.startswith(f"Error: {folder / 'b.png'} cannot be read: ")

    # Two are listed, a line each; a path that is not there and a link to nothing are no worse.
    (folder / "e.png").symlink_to("nowhere")
    result = invoke("predict", runs / "bilinear", folder, tmp_path / "none.png", "-o", tmp_path / "again")
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 3
    *_, b, e, none, last = result.stderr.splitlines()
    assert (str(folder / "b.png") in b, str(folder / "e.png") in e, "none.png" in none) == (True, True, True)
    assert last == "Error: 3 of 6 images have no result: they are listed above"


def test_predict_works_when_it_is_called(runs, tmp_path):
    first, second = (save(tmp_path / f"{name}.png", photo(40, 60)) for name in "ab")
    known = np.full((40, 60), 128, np.uint8)
    known[:5] = 0
    save(tmp_path / "a_trimap.png", known)
    heard = []
    done = predict(runs / "matting", [first, second, tmp_path / "c.png"], tmp_path / "out", on_result=heard.append)
    assert heard == done
    assert done[0] == Prediction(first, tmp_path / "out" / "a_alpha.png")
    assert done[0].output.is_file()
    assert [one.output for one in done[1:]] == [None, None]
    assert [one.image for one in done[1:]] == [second, tmp_path / "c.png"]
    assert "b.png has no trimap" in done[1].error
    assert "no image" in done[2].error


def test_results_that_would_have_one_name_are_refused_before_anything_is_written(runs, tmp_path):
    pictures = []
    for form in ("NFC", "NFD"):
        (tmp_path / form).mkdir()
        pictures.append(save(tmp_path / form / f"{unicodedata.normalize(form, 'é')}.png", photo(40, 60)))
    with pytest.raises(FadevizError, match="would both become"):
        predict(runs / "bilinear", [tmp_path / "gone.png", *pictures], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_trimaps_of_one_picture_are_refused(runs, tmp_path):
    picture = save(tmp_path / "a.png", photo(40, 60))
    for ending in ("png", "bmp"):
        save(tmp_path / f"a_trimap.{ending}", np.full((40, 60), 128, np.uint8))
    (one,) = predict(runs / "matting", [picture], tmp_path / "out")
    assert "has two trimaps, a_trimap.bmp and a_trimap.png" in one.error


def test_one_damaged_picture_is_left_out_of_a_panel(runs, tmp_path):
    good = save(tmp_path / "a.png", photo(40, 60))
    bad = tmp_path / "b.png"
    bad.write_bytes(b"")
    panel = tmp_path / "p.png"
    result = invoke("compare", runs / "bilinear", "--file", bad, "--file", good, "-o", panel)
    assert result.exit_code == 1
    assert result.stdout == f"wrote {panel}\n"
    assert result.stderr.startswith(f"Error: {bad} cannot be read: it is empty")
    assert result.stderr.count("\n") == 1
    alone = tmp_path / "alone.png"
    compare([open_run(runs / "bilinear")], alone, files=[good])
    assert alone.read_bytes() == panel.read_bytes()
    with pytest.raises(FadevizError, match="it is empty"):  # a caller who does not ask to go on
        compare([open_run(runs / "bilinear")], tmp_path / "q.png", files=[good, bad])
    for pictures in ([bad], [bad, bad]):
        result = invoke(
            "compare", runs / "bilinear", *(x for p in pictures for x in ("--file", p)), "-o", tmp_path / "q.png"
        )
        assert result.exit_code == 1
        assert "it is empty" in result.stderr
    assert not (tmp_path / "q.png").exists()


def test_weights_that_are_not_there_or_damaged_are_one_line(runs, tmp_path):
    shutil.copytree(runs / "bilinear", tmp_path / "run")
    picture = save(tmp_path / "a.png", photo(40, 60))
    weights = tmp_path / "run" / "checkpoints" / "last.pt"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(FadevizError, match=r"last\.pt is damaged"):
        predict(tmp_path / "run", [picture], tmp_path / "out")
    weights.unlink()
    with pytest.raises(FadevizError, match=r"last\.pt is missing"):
        predict(tmp_path / "run", [picture], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_is_never_replaced_by_its_result(runs, tmp_path):
    first = save(tmp_path / "a.png", photo(40, 60))
    second = save(tmp_path / "a_mask.png", photo(40, 60))
    with pytest.raises(FadevizError, match="would be replaced by a result"):
        predict(runs / "bilinear", [first, second], tmp_path)
    assert second.read_bytes()[:4] == b"\x89PNG"


def test_mattes_of_test_pictures_have_the_figures_of_the_runs_own_test(runs, tmp_path):
    # Images whose sides are no multiples: the padding of testing and of predicting is the same.
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:75, :90]
    for number in range(5):
        matte = (np.clip(25 + number - np.hypot(y - 37, x - 45), 0, 4) * 63.75).astype(np.uint8)
        save(folder / f"{number}.png", rng.integers(0, 256, (75, 90, 3), dtype=np.uint8))
        save(folder / f"{number}_alpha.png", matte)
        trimap = np.select([matte == 0, matte == 255], [0, 255], 128).astype(np.uint8)
        trimap[30:44, 10:80] = 128
        save(folder / f"{number}_trimap.png", trimap)
    config = RunConfig(
        "bilinear", network="matting", data="mattes", data_dir=str(folder), size=48, width=0.125, steps=2
    )
    opened = train(dataclasses.replace(config, snapshots="2", observe=1, evaluate_every=2), tmp_path / "run")
    predict, test = Predictor(opened), load_data(config).test
    for name, error in (("sad", sad), ("mse", mse)):
        values = [error(predict(s), s.alpha, s.trimap) for s in (test[i] for i in range(test.count))]
        assert np.mean(values) == pytest.approx(opened.info.result[name], rel=1e-6)  # float32

    moved = tmp_path / "moved"
    folder.rename(moved)
    (line,) = compare([opened], tmp_path / "p.png", test=(0,), data_dir=moved)
    first = sad_of(predict, load_data(dataclasses.replace(config, data_dir=str(moved))).test[0])
    assert f"SAD {first:.3g} MSE" in line


def sad_of(predict, sample):
    return sad(predict(sample), sample.alpha, sample.trimap)


def test_trimaps_are_found_whatever_their_endings_case(runs, tmp_path):
    picture = save(tmp_path / "a.PNG", photo(40, 60))
    save(tmp_path / "a_trimap.PNG", np.where(np.arange(60) < 30, 0, 128)[None].repeat(40, 0).astype(np.uint8))
    result = invoke("predict", runs / "matting", tmp_path, tmp_path / "." / "a.PNG", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a_alpha.png"]
    assert picture.exists()


def test_no_memory_is_one_line(runs, monkeypatch):
    def full(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    predict = Predictor(runs / "bilinear")
    monkeypatch.setattr(predict, "_predict", full)
    with pytest.raises(FadevizError, match=r"out of memory\. Use a smaller size=\.\.\."):
        predict(Sample("x", photo(40, 60), np.zeros((40, 60), np.uint8)))


def test_weights_that_can_be_neither_folder_nor_name_are_refused_at_once():
    with pytest.raises(FadevizError, match="no folder nowhere"):  # without asking the network
        read_pretrained("SegformerModel", "nowhere", "MiT")


# --- comparing ---


def test_figures_are_those_of_the_pictures(runs, tmp_path):
    opened = [open_run(runs / name) for name in ("bilinear", "carafe")]
    lines = compare(opened, tmp_path / "p.png", images=(2, 0))
    names = opened[0].info.observation.names
    assert [line.split(":")[0] for line in lines] == [names[2], names[0]]
    images, masks = opened[0].observation
    for index, line in zip((2, 0), lines, strict=True):
        for one in opened:
            found = Predictor(one)(Sample("x", images[index], masks[index]))
            slow = []
            for c in (0, 1):
                a, b = found == c, masks[index] == c
                slow.append((a & b).sum() / (a | b).sum())
            assert f"{one.name} mIoU {np.mean(slow):.3f}" in line
    with Image.open(tmp_path / "p.png") as panel:
        assert panel.width > 500


def test_panels_are_the_same_bytes_again_and_test_pictures_are_found(runs, tmp_path):
    opened = [open_run(runs / "matting")]
    for name in ("a.png", "b.png"):
        lines = compare(opened, tmp_path / name, test=(0, 3), zoom=Box(4, 4, 16))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert all("SAD" in line and "MSE" in line for line in lines)
    config, _ = final_network(runs / "matting")
    sample = load_data(config).test[3]
    error = np.abs(Predictor(opened[0])(sample) - sample.alpha)[sample.trimap == 128].sum() / 1000
    assert f"SAD {error:.3g}" in lines[1]


def test_runs_that_observed_other_pictures_need_names(runs, tmp_path):
    train(dataclasses.replace(SEGNET, split_seed=5), tmp_path / "other")
    both = [open_run(runs / "bilinear"), open_run(tmp_path / "other")]
    with pytest.raises(FadevizError, match=r"observed different images.*test=\[0, 1\]"):
        compare(both, tmp_path / "p.png")
    with pytest.raises(FadevizError, match="split_seed"):
        compare(both, tmp_path / "p.png", test=(0,))
    info = json.loads((tmp_path / "other" / "run.json").read_text())
    info["config"]["split_seed"], info["data"]["test"] = 0, 99  # another set of the same name
    (tmp_path / "other" / "run.json").write_text(json.dumps({k: v for k, v in info.items() if k != "crc32"}))
    with pytest.raises(FadevizError, match="the files, split_seed or subset differ"):
        compare([both[0], open_run(tmp_path / "other")], tmp_path / "p.png", test=(0,))
    picture = save(tmp_path / "a.png", photo(40, 60))
    assert compare(both, tmp_path / "p.png", files=[picture]) == []
    assert (tmp_path / "p.png").exists()


def test_mean_iou_leaves_out_what_is_ignored_and_classes_that_are_nowhere():
    truth = np.array([[0, 0, 7, 255]], np.uint8)
    found = np.array([[0, 7, 7, 3]], np.uint8)
    assert mean_iou(found, truth, 150) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert np.isnan(mean_iou(found, np.full_like(truth, 255), 150))


def test_zooms():
    assert parse_zoom("auto") == "auto"
    assert parse_zoom("1, 2,3") == Box(1, 2, 3)
    for text in ("", "1,2", "1,2,3,4", "a,b,c", "-1,2,3", "all"):
        with pytest.raises(FadevizError, match="LEFT,TOP,SIDE"):
            parse_zoom(text)
