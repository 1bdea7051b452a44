"""Segmentation of many classes and matting through the same training: losses, tests, choices, and whole runs."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fadeviz import FadevizError, open_run
from fadeviz.data import Sample, Splits
from fadeviz.data.observation import choose_observed, find_object
from fadeviz.data.sets import DATA, DataOptions, check_data, find_data
from fadeviz.data.synthetic import dataset as synthetic
from fadeviz.experiment import RunConfig, train
from fadeviz.models import NETWORKS
from fadeviz.storage.check import check_run
from fadeviz.storage.metrics import CLASS_METRICS
from fadeviz.training.metrics import BOUNDARY_SHARES, evaluate
from fadeviz.training.tasks import TASKS, segmentation_loss
from test_ade20k import save_set
from test_experiment import assert_same_state, files, final_weights

transformers = pytest.importorskip("transformers", reason="these networks need it: pip install transformers")


@pytest.fixture(autouse=True)
def few_drawings(monkeypatch):
    monkeypatch.setattr(synthetic, "TEST_DRAWINGS", 3)


# --- the loss and the test ---


def test_segmentation_loss_is_the_mean_over_labelled_pixels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 4, 6, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, 5, (2, 4, 6), generator=generator)
    masks[0, :2] = 255
    picked = [
        -torch.log_softmax(logits[b, :, y, x], 0)[masks[b, y, x]]
        for b in range(2) for y in range(4) for x in range(6) if masks[b, y, x] != 255
    ]  # fmt: skip
    torch.testing.assert_close(segmentation_loss(logits, masks), torch.stack(picked).mean())
    assert TASKS["segmentation"].loss_weight(masks) == len(picked) == 36


def test_without_ignored_pixels_it_is_plain_cross_entropy_to_the_bit():
    logits = torch.randn(2, 2, 9, 7, requires_grad=True)
    masks = torch.randint(0, 2, (2, 9, 7))
    ours, theirs = segmentation_loss(logits, masks), F.cross_entropy(logits, masks)
    assert torch.equal(ours, theirs)
    assert torch.equal(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_a_batch_without_labels_moves_nothing():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    nothing = torch.full((1, 4, 4), 255)
    loss = segmentation_loss(logits, nothing)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    logits.data[0, 0, 0, 0] = torch.inf  # its gradient would be NaN
    for one in (logits, logits.as_subclass(_OnGpu)):
        assert not segmentation_loss(one, nothing).isfinite()


class _OnGpu(torch.Tensor):
    is_cuda = True


def test_the_loss_as_a_gpu_computes_it():
    for ignored in (0, 0.4, 1):
        logits = torch.randn(2, 3, 9, 7, dtype=torch.float64)
        masks = torch.randint(0, 3, (2, 9, 7))
        masks[torch.rand(masks.shape) < ignored] = 255
        found = []
        for kind in (torch.Tensor, _OnGpu):
            leaf = logits.clone().as_subclass(kind).requires_grad_()
            loss = segmentation_loss(leaf, masks)
            loss.backward()
            found.append((loss.detach().as_subclass(torch.Tensor), leaf.grad.as_subclass(torch.Tensor)))
        torch.testing.assert_close(*found)


class _Images:
    def __init__(self, masks):
        self.samples = [Sample(f"p{i}", np.zeros((*mask.shape, 3), np.uint8), mask) for i, mask in enumerate(masks)]
        self.count = len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class _Says(torch.nn.Module):
    """Gives every image the same classes."""

    def __init__(self, found, classes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.logits = F.one_hot(torch.as_tensor(found).long(), classes).permute(2, 0, 1).float()

    def forward(self, images):
        return self.logits.expand(len(images), -1, -1, -1)


def test_figures_of_many_classes_leave_out_what_is_not_labelled():
    truth = [np.array([[0, 0, 3, 255]], np.uint8), np.array([[3, 2, 255, 255]], np.uint8)]
    model = _Says(np.array([[0, 3, 3, 1]]), 5)
    result = evaluate(model, _Images(truth), segmentation_loss, batch_size=1, classes=5).metrics
    # class 0: 1 of 3 (a hit, a miss, and one said that is 3); 2: 0 of 1; 3: 1 of 4; classes 1 and 4 are nowhere
    assert result["miou"] == pytest.approx((1 / 3 + 0 + 1 / 4) / 3)
    assert result["accuracy"] == pytest.approx(2 / 5)
    hit, miss = (-torch.log_softmax(torch.eye(5)[0], 0)[i].item() for i in (0, 1))
    assert result["test_loss"] == pytest.approx((2 * hit + 3 * miss) / 5)
    assert set(result) == {"test_loss", "miou", "accuracy", *BOUNDARY_SHARES}


def test_two_classes_have_the_figures_of_their_contours_too():
    result = evaluate(_Says(np.eye(4), 2), _Images([np.eye(4, dtype=np.uint8)]), segmentation_loss).metrics
    assert result["iou"] == result["miou"] == result["boundary_iou"] == 1


def test_classes_are_found_a_few_at_a_time_as_all_at_once():
    class Scores(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = torch.nn.Conv2d(3, 21, 5, padding=2)

        def forward(self, images):
            return self.scores(images)

    torch.manual_seed(0)
    model = Scores()
    sample = Sample(
        "a", np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8), np.zeros((12, 20), np.uint8)
    )
    images, _ = TASKS["segmentation"].collate([sample])
    with torch.no_grad():
        logits = model(F.pad(images, (0, 4, 0, 4), mode="reflect"))[:, :, :12, :20]
    for size in ((12, 20), (31, 47)):
        larger = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
        found = TASKS["segmentation"].predict(model, sample, 8, size)
        np.testing.assert_array_equal(found, larger.argmax(0).numpy())
        assert len(np.unique(found)) > 8


# --- which images and which object ---


def test_the_object_is_the_class_most_like_one_clear_thing():
    mask = np.zeros((40, 40), np.uint8)
    mask[:20] = 2  # half the image, at the border
    mask[12:28, 12:28] = 7  # in one piece, in the middle
    mask[30:32, 30:32] = 9  # small
    mask[0, :] = 255
    assert find_object(mask) == 7
    assert find_object(np.full((4, 4), 255, np.uint8)) == 0


def test_observed_pictures_of_many_classes_have_a_clear_object():
    rng = np.random.default_rng(0)
    clutter = [rng.integers(0, 150, (40, 40), dtype=np.uint8) for _ in range(5)]
    clear = np.full((40, 40), 3, np.uint8)
    clear[12:28, 10:30] = 11
    pictures = _Images([*clutter, clear])
    assert choose_observed(pictures, 1, classes=150).indices == (5,)
    assert len(choose_observed(pictures, 3, classes=150).indices) == 3


# --- the table of data sets ---


def test_every_data_set_is_of_one_kind(tmp_path):
    for task, sets in DATA.items():
        assert "synthetic" in sets
        assert {entry.task for entry in sets.values()} == {task}
        assert TASKS[task].evaluate
        splits = sets["synthetic"].load(DataOptions("", 64, 0, 0))
        assert isinstance(splits, Splits)
        assert splits.test.count == 3


def test_a_data_set_for_another_task_is_named():
    with pytest.raises(FadevizError, match="data weizmann is for segmentation, but the network is for matting"):
        find_data("matting", "weizmann")
    with pytest.raises(FadevizError, match="Nearest: 'weizmann'"):
        find_data("segmentation", "wiezmann")


def test_folders_are_known_by_their_layout(tmp_path, shared):
    assert check_data(save_set(tmp_path / "ade")).data == "ade20k"
    for part in ("rgb", "figure_ground"):
        (tmp_path / "horses" / part).mkdir(parents=True)
        for number in range(1, 5):
            shutil.copy(
                shared / "data" / "weizmann_horse_db" / part / f"horse00{number}.jpg", tmp_path / "horses" / part
            )
    for folder, name, trained, tested in (
        (tmp_path / "horses", "weizmann", 3, 1),
        (shared / "data" / "alphamatting", "mattes", 14, 4),
        (shared / "data" / "ade20k_sample", "ade20k", 3, 3),
    ):
        checked = check_data(folder)
        assert (checked.data, checked.problems) == (name, ())
        train = checked.splits.info["train"]
        assert (len(train) if isinstance(train, list) else train, checked.splits.test.count) == (trained, tested)
        assert str(checked).startswith(f"{folder}: {name}, images: ")


def test_folders_with_faults_tell_them(tmp_path):
    root = save_set(tmp_path / "ade")
    (root / "annotations" / "training" / "ADE_train_00000002.png").write_bytes(b"")
    checked = check_data(root)
    assert (checked.data, checked.splits) == ("ade20k", None)
    assert any("ADE_train_00000002.png cannot be read: it is empty" in problem for problem in checked.problems)
    assert str(checked) == f"{root}: ade20k, 1 problem"
    with pytest.raises(FadevizError, match="does not exist"):
        check_data(tmp_path / "none")
    (tmp_path / "other" / "music").mkdir(parents=True)
    with pytest.raises(FadevizError, match="looks like no data set"):
        check_data(tmp_path / "other")
    (tmp_path / "cut" / "input").mkdir(parents=True)
    assert check_data(tmp_path / "cut").data == "mattes"
    with pytest.raises(FadevizError, match="data set with a folder"):
        check_data(root, "synthetic")


# --- settings ---


def test_a_network_decides_task_recipe_and_layers():
    config = RunConfig(network="matting")
    assert (config.lr, config.weight_decay, config.layers) == (0.01, 0.0, "decoder.*.upsample")
    assert config.lr_drops == (20 / 30, 26 / 30)
    assert RunConfig().lr_drops == (0.7, 0.9)
    assert dataclasses.replace(RunConfig(), lr_drops=(1.0,)).lr_drops == (1.0,)


def test_the_matting_recipe_slows_the_encoder():
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(1, 1), "head": torch.nn.Linear(1, 1)})
    optimizer = NETWORKS["matting"].recipe.optimizer(model, 0.01, 0.0, 0.9)
    factors = {id(p): group["lr_factor"] for group in optimizer.param_groups for p in group["params"]}
    assert {factors[id(p)] for p in model["encoder"].parameters()} == {0.01}
    assert {factors[id(p)] for p in model["head"].parameters()} == {1.0}
    lr_at = NETWORKS["matting"].recipe.lr_at(0.01, 30, NETWORKS["matting"].recipe.lr_drops)
    np.testing.assert_allclose([lr_at(step) for step in (1, 20, 21, 26, 27, 30)], [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"network": "matting", "data": "weizmann", "data_dir": "x"}, "is for segmentation, but the network is for"),
        ({"data": "mattes", "data_dir": "x"}, "data mattes is for matting, but the network is for segmentation"),
        ({"network": "matting", "data": "mattes"}, "data mattes needs its folder"),
        ({"network": "matting", "data_dir": "x"}, "Use data=mattes"),
        ({"network": "matting", "flip": True}, "mirrors half of its training images already"),
        ({"network": "matting", "labels": "shuffled"}, "mattes belong to their images"),
        ({"subset": 5}, "this set is only used whole"),
        ({"data": "ade20k", "data_dir": "x", "subset": -1}, "it must be 0"),
        ({"network": "matting", "size": 40}, "divisible by 16"),
        ({"network": "matting:channels=3"}, "channels"),
        ({"network": "matting", "batch_size": 1}, "batch_size is 1; matting needs 2 or more"),
        (
            {"network": "matting", "observe": 1, "observe_mode": "batch"},
            "observe is 1; matting in mode batch needs 2",
        ),
    ],
)
def test_settings_that_no_run_can_have_are_one_line(settings, words):
    with pytest.raises(FadevizError, match=words) as error:
        RunConfig(**settings)
    assert "\n" not in str(error.value)


# --- whole runs ---


def short(**settings):
    return RunConfig(
        "fade", **settings, width=0.125, steps=4, snapshots="2:4:2", batch_size=2, observe=2, evaluate_every=2,
        checkpoint_every=2,
    )  # fmt: skip


def stopped_and_resumed(config, folder):
    """A run that was stopped after its third step and went on."""

    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, folder, on_progress=stop)
    return train(config, folder, resume=True)


def test_matting_is_recorded_tested_and_resumed_to_the_bit(tmp_path):
    config = short(network="matting", size=64)
    whole = train(config, tmp_path / "whole")
    assert whole.info.task == "matting"
    assert whole.info.classes is None
    assert set(whole.info.result) == {"test_loss", "sad", "mse", "grad", "conn"}
    assert list(whole.layers) == [f"decoder.{i}.upsample" for i in range(4)]
    assert check_run(tmp_path / "whole") == []
    alphas, trimaps = whole.mattes
    assert alphas.shape == trimaps.shape == (2, 64, 64)
    assert set(np.unique(trimaps)) == {0, 128, 255}
    np.testing.assert_array_equal(whole.observation[1], (alphas >= 128).astype(np.uint8))
    stopped_and_resumed(config, tmp_path / "twice")
    assert files(tmp_path / "twice") == files(tmp_path / "whole")
    assert_same_state(final_weights(tmp_path / "twice"), final_weights(tmp_path / "whole"))


def test_gradients_of_a_matting_run_are_of_its_own_loss(tmp_path):
    finished = train(short(network="matting", size=64), tmp_path / "run")
    assert finished.read(4, "decoder.2.upsample", "gradient").max() > 0


def test_many_classes_are_recorded_tested_and_resumed_to_the_bit(tmp_path):
    root = save_set(tmp_path / "ade", train=6, test=12)
    config = short(network="segformer", data="ade20k", data_dir=str(root), size=64, subset=4)
    whole = train(config, tmp_path / "whole")
    assert whole.info.classes == 150
    assert whole.info.data["train"] == 4
    assert whole.info.data["test"] == 8
    assert set(whole.info.result) == {"test_loss", "miou", "accuracy", *BOUNDARY_SHARES}
    assert {name: len(values) for name, values in whole.info.class_metrics.items()} == dict.fromkeys(CLASS_METRICS, 150)
    masks = whole.observation[1]
    for mask, inside, chosen in zip(masks, whole.foregrounds, whole.info.observation.foreground, strict=True):
        assert chosen == find_object(mask)
        np.testing.assert_array_equal(inside, mask == chosen)
    stopped_and_resumed(config, tmp_path / "twice")
    assert files(tmp_path / "twice") == files(tmp_path / "whole")
    assert_same_state(final_weights(tmp_path / "twice"), final_weights(tmp_path / "whole"))
    with pytest.raises(FadevizError, match="subset was 4, is 5"):
        train(dataclasses.replace(config, subset=5), tmp_path / "whole", resume=True)


def test_a_test_set_without_labels_is_refused(tmp_path):
    from PIL import Image

    root = save_set(tmp_path / "ade", train=2, test=2)
    for path in (root / "annotations" / "validation").iterdir():
        with Image.open(path) as annotation:
            size = annotation.size
        Image.new("L", size).save(path)
    checked = check_data(root)
    assert (checked.data, len(checked.problems)) == ("ade20k", 2)
    assert all("has no labelled pixel" in problem for problem in checked.problems)
    with pytest.raises(FadevizError, match="the test images have no labelled pixel"):
        train(short(network="segformer", data="ade20k", data_dir=str(root), size=64), tmp_path / "run")


def test_what_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(FadevizError, match="only 3 test images"):
        train(dataclasses.replace(short(size=64), observe=9), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_class_ids_out_of_range_stop_the_run_in_one_line(tmp_path):
    from PIL import Image

    root = save_set(tmp_path / "ade", train=2, test=8)
    wrong = np.full((45, 65), 200, np.uint8)
    path = root / "annotations" / "training" / "ADE_train_00000001.png"
    Image.fromarray(wrong).save(path)
    with pytest.raises(FadevizError, match="has class 200: classes are 1 to 150") as error:
        train(short(network="segformer", data="ade20k", data_dir=str(root), size=64), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert open_run(tmp_path / "run").info.status == "failed"


def test_test_pictures_smaller_than_the_crop_are_one_line(tmp_path, shared):
    folder = shared / "data" / "alphamatting"
    with pytest.raises(FadevizError, match=r"smaller than size=1600\. Use a smaller size"):
        train(short(network="matting", data="mattes", data_dir=str(folder), size=1600), tmp_path / "run")


def test_real_mattes_are_recorded(tmp_path, shared):
    config = short(network="matting", data="mattes", data_dir=str(shared / "data" / "alphamatting"), size=64)
    finished = train(dataclasses.replace(config, steps=2, snapshots="2", evaluate_every=2), tmp_path / "run")
    assert finished.info.data["name"] == "alphamatting"
    assert finished.mattes is not None
    assert finished.info.result["sad"] > 0
