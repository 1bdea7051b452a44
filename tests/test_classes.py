"""Data of any number of classes: what a test measures of each, and their names and colours wherever they are shown."""

import dataclasses
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fadeviz_cli.main import main
from PIL import Image
from torch.nn import functional as F

import fadeviz
from class_runs import LONG, Shapes, add_shapes, class_colors, class_names, train_shapes
from fadeviz.analysis.onsets import measure_onsets
from fadeviz.data import Sample
from fadeviz.data.observation import choose_observed, find_object
from fadeviz.experiment import train
from fadeviz.page.notebook import render_html
from fadeviz.render import animation
from fadeviz.render.classes import class_colours, class_key, largest_shares
from fadeviz.render.colormap import MOST_FOR_ALL, _as_seen, class_palette, colour_classes, void_colour
from fadeviz.render.fonts import font
from fadeviz.render.frames import select_frames
from fadeviz.render.grid import render_grid
from fadeviz.render.grid_layout import layout_grid
from fadeviz.render.labels import truth_image
from fadeviz.render.legend import place_legend, write_legend
from fadeviz.report.text import class_table
from fadeviz.storage.info import RunInfo, StoredData
from fadeviz.storage.metrics import CLASS_METRICS, class_metrics
from fadeviz.storage.snapshots import SnapshotStore
from fadeviz.storage.stored_run import StoredRun
from fadeviz.storage.summary import summarize
from fadeviz.sweep.trial import ProgressReader, Task
from fadeviz.training.metrics import BOUNDARY_SHARES, boundary_band, class_band, evaluate
from task_runs import make_class_run

# --- what is measured ---


class Drawn:
    """Images whose red channel is a given prediction, and whose masks are given."""

    def __init__(self, predictions, masks):
        self.pairs, self.count = list(zip(predictions, masks, strict=True)), len(masks)

    def __getitem__(self, index):
        prediction, mask = self.pairs[index]
        return Sample(f"i{index}", np.repeat(prediction[..., None], 3, axis=2).astype(np.uint8), mask.astype(np.uint8))


class Reads(torch.nn.Module):
    """Predicts the class that an image's red channel says."""

    def __init__(self, classes):
        super().__init__()
        self.classes, self.weight = classes, torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        values = (images[:, 0] * 0.229 + 0.485) * 255  # of ImageNet's statistics
        return F.one_hot(values.round().long(), self.classes).movedim(-1, 1).float() + self.weight


def no_loss(logits, masks):
    return logits.sum() * 0


def slow_band(inside, width):
    """The pixels of a mask from which a pixel outside it, or the image's border, is at most ``width`` pixels away."""
    height, wide = inside.shape
    band = np.zeros_like(inside)
    for y, x in zip(*np.nonzero(inside), strict=True):
        around = inside[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        at_border = min(y, x, height - 1 - y, wide - 1 - x) < width
        band[y, x] = at_border or not around.all()
    return band


def slow_metrics(predictions, masks, classes):
    """By class: IoU, and Boundary IoU at both widths, of the pixels of all images; None where a class is nowhere."""
    result = {name: [] for name in ("iou", *BOUNDARY_SHARES)}
    for label in range(classes):
        counts = {name: [0, 0] for name in result}
        for prediction, mask in zip(predictions, masks, strict=True):
            found, wanted = (prediction == label) & (mask < classes), mask == label
            bands = {"iou": (found, wanted)}
            for name, share in BOUNDARY_SHARES.items():
                width = max(1, round(share * math.hypot(*mask.shape)))
                bands[name] = slow_band(found, width), slow_band(wanted, width)
            for name, (a, b) in bands.items():
                counts[name][0] += int((a & b).sum())
                counts[name][1] += int((a | b).sum())
        for name, (both, either) in counts.items():
            result[name].append(both / either if either else None)
    return result


def patches(dice, classes, side=64):
    values = dice.integers(0, classes, (side // 8, side // 8)).repeat(8, 0).repeat(8, 1)
    return values[: side - 3]


@pytest.mark.parametrize("classes", [3, 11, 21])
def test_every_class_against_a_loop(classes):
    dice = np.random.default_rng(classes)
    masks = [patches(dice, classes - 1) for _ in range(3)]  # the last class is in no mask
    predictions = [np.where(dice.random(mask.shape) < 0.8, mask, patches(dice, classes - 1)) for mask in masks]
    masks[0][:4] = 255
    masks[1][:, 10:14] = classes  # as much as ignored
    found = evaluate(Reads(classes), Drawn(predictions, masks), no_loss, batch_size=2, classes=classes)
    expected = slow_metrics(predictions, masks, classes)
    assert found.class_metrics.keys() == expected.keys() == CLASS_METRICS.keys()
    for name, values in expected.items():
        assert found.class_metrics[name] == [one if one is None else pytest.approx(one, abs=1e-12) for one in values]
        mean = np.mean([one for one in values if one is not None])
        assert found.metrics["miou" if name == "iou" else name] == pytest.approx(mean, abs=1e-12)
    assert found.class_metrics["iou"][-1] is None
    assert 0 < found.metrics["boundary_iou_fine"] < found.metrics["boundary_iou"] < 1


@pytest.mark.parametrize("ignored", [False, True])
def test_two_classes_against_a_loop(ignored):
    """Where the masks are not labelled, predictions are of no class."""
    dice = np.random.default_rng(2)
    masks = [patches(dice, 2) for _ in range(3)]
    predictions = [np.where(dice.random(mask.shape) < 0.9, mask, 1 - mask) for mask in masks]
    if ignored:
        masks[2][:9] = 255
    metrics, by_class = evaluate(Reads(2), Drawn(predictions, masks), no_loss, batch_size=3)
    assert by_class == {}
    for name, share in BOUNDARY_SHARES.items():
        width = max(1, round(share * math.hypot(*masks[0].shape)))
        each = []
        for prediction, mask in zip(predictions, masks, strict=True):
            a, b = slow_band((prediction == 1) & (mask != 255), width), slow_band(mask == 1, width)
            each.append((a & b).sum() / (a | b).sum())
        assert metrics[name] == pytest.approx(np.mean(each), abs=1e-12)
    assert list(metrics) == ["test_loss", "miou", "iou", "accuracy", *BOUNDARY_SHARES]


@pytest.mark.parametrize("width", [1, 3, 20])
def test_the_bands_of_all_classes_are_found_at_once(width):
    labels = torch.as_tensor(np.stack([patches(np.random.default_rng(seed), 5, 32) for seed in range(3)]))
    together = class_band(labels, width)
    for label in range(5):
        assert torch.equal(together & (labels == label), boundary_band(labels == label, width))
    # As one pool of the whole window gives it.
    outside = F.pad((labels != 2).float()[:, None], (width,) * 4, value=1.0)
    near = F.max_pool2d(outside, 2 * width + 1, stride=1)[:, 0] > 0
    assert torch.equal(boundary_band(labels == 2, width), near & (labels == 2))


# --- what is stored ---


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def eleven(patch, tmp_path_factory):
    """A run of 11 classes with names, none of its own colours."""
    return train_shapes(patch, tmp_path_factory.mktemp("eleven") / "run")


@pytest.fixture(scope="module")
def coloured(patch, tmp_path_factory):
    """A run of 21 classes with names and colours, of which class 0 is black."""
    return train_shapes(patch, tmp_path_factory.mktemp("coloured") / "run", 21, colors=True, steps=2)


@pytest.fixture(scope="module")
def two(patch, tmp_path_factory):
    """A run of two classes with names."""
    return train_shapes(patch, tmp_path_factory.mktemp("two") / "run", 2, steps=2)


def test_each_test_has_every_class(eleven):
    lines = [line for line in eleven.metrics() if "miou" in line]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        by_class = line["class_metrics"]
        assert by_class.keys() == CLASS_METRICS.keys()
        assert all(len(values) == 11 for values in by_class.values())
        known = [value for value in by_class["iou"] if value is not None]
        assert line["miou"] == pytest.approx(np.mean(known))
    assert {name: list(values) for name, values in eleven.info.class_metrics.items()} == lines[-1]["class_metrics"]
    stored = json.loads((eleven.path / "run.json").read_text())
    assert all(isinstance(value, float | int) for value in stored["result"].values())


def test_two_classes_store_nothing_more(two):
    assert "class_metrics" not in (two.path / "run.json").read_text() + (two.path / "metrics.jsonl").read_text()


def test_a_resumed_run_has_the_classes_of_its_last_test(patch, eleven, tmp_path):
    add_shapes(patch, 11)
    config = dataclasses.replace(fadeviz.experiment.config_from(eleven.info.config, "it", "."), steps=4)

    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", on_progress=stop)
    assert StoredRun(tmp_path / "run").info.class_metrics["iou"] == tuple(eleven.metrics()[1]["class_metrics"]["iou"])
    train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (eleven.path / "metrics.jsonl").read_bytes()
    assert StoredRun(tmp_path / "run").info.class_metrics == eleven.info.class_metrics


@pytest.mark.parametrize(
    "wrong", [None, 3, [0.5], {"iou": 0.5}, {"iou": ["0.5"]}, {"iou": [float("nan")]}, {"iou": [10**400]}]
)
def test_lines_without_numbers_for_the_classes(wrong):
    assert class_metrics({"step": 1, "class_metrics": wrong}) == {}


def test_progress_has_numbers_only(tmp_path):
    reader = ProgressReader(Task("trial", SimpleNamespace(steps=99), tmp_path))
    many = {name: [0.123456789012345678] * 254 for name in CLASS_METRICS}
    lines = [{"step": 2, "loss": 1.0, "lr": 0.1, "miou": 0.5, "class_metrics": many}]
    lines += [{"step": 2 + n, "loss": 0.5, "lr": 0.123456789} for n in range(1, 60)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    progress = reader.read()
    assert (progress.step, progress.metrics) == (61, {"miou": 0.5})


def test_info_names_the_classes_and_does_not_list_all_of_them(eleven, coloured, two):
    facts = summarize(eleven).facts
    assert facts["classes"] == "11: ground, horse, Straße, 木, $x_1$ <b>, no letter \U0010fffe and 5 more"
    chosen = [find_object(mask) for mask in eleven.observation[1]]
    names = zip(eleven.info.observation.names, chosen, strict=True)
    short = [name if len(name) <= 40 else name[:39] + "…" for name in class_names(11)]
    assert facts["observed"] == ", ".join([*(f"{name} ({short[label]})" for name, label in names), "eval"])
    assert facts["by class"].startswith("IoU ")
    assert facts["by class"].count("0.") == 6
    assert "..." in facts["by class"]
    assert LONG not in str(summarize(coloured))
    assert summarize(two).facts["classes"] == "2: ground, horse"
    assert "(horse)" not in summarize(two).facts["observed"]
    assert not {"by class"} & summarize(two).facts.keys()
    with_absent = dataclasses.replace(eleven.info, class_metrics={"iou": (0.5, None, 0.25)})
    run = StoredRun(eleven.path)
    run.info = with_absent
    assert summarize(run).facts["by class"] == "IoU Straße 0.250, ground 0.500, 1 neither in the masks nor predicted"


# --- colours and names ---


@pytest.mark.parametrize("colors", ["red", [[1, 2]], [[1, 2, 256]], [[1, 2, True]], [[1, 2, 0.5]], {"0": [1, 2, 3]}, 7])
def test_colours_that_are_none(colors):
    assert StoredData({"colors": colors}).class_colors == ()


def test_classes_without_a_name_have_their_number():
    data = StoredData({"classes": ["wall"], "colors": [[1, 2, 3]]})
    assert (data.class_name(0), data.class_name(1), data.class_colors) == ("wall", "class 1", ((1, 2, 3),))
    assert RunInfo(classes=3).object_name(0) == ""


def test_default_colours_differ_for_every_kind_of_colour_vision():
    for count, least in ((8, 25), (11, 20), (21, 12), (MOST_FOR_ALL, 10)):
        usual, *others = _as_seen(class_palette(count), for_all=True)
        for seen in (2 * usual, *others):
            far = np.linalg.norm(seen[:, None] - seen[None], axis=2)
            assert far[~np.eye(count, dtype=bool)].min() > least
    # Of two colours that differ by red against green alone, one with deuteranopia sees much less.
    pair = np.array([[170, 60, 0], [90, 110, 0]], np.uint8)
    usual, _, deutan, tritan = (np.linalg.norm(seen[0] - seen[1]) for seen in _as_seen(pair, for_all=True))
    assert deutan < usual < 2 * tritan


def test_own_colours_come_first_and_ignored_pixels_have_another():
    own = [(0, 0, 0), (255, 255, 255)]
    colours = class_palette(4, own)
    assert colours.tolist() == [[0, 0, 0], [255, 255, 255], *class_palette(4).tolist()[2:]]
    assert void_colour(colours) == ("Grey", (128, 128, 128))
    assert void_colour(class_palette(4)) == ("Black", (0, 0, 0))
    assert colour_classes(np.array([[0, 1, 255]], np.uint8), 4, own).tolist() == [[[0] * 3, [255] * 3, [128] * 3]]
    assert len(class_palette(2, [*own, (9, 9, 9)])) == 2


def test_the_truth_is_shown_in_the_colours_of_the_run(coloured, two, eleven):
    mask = coloured.observation[1][0]
    colours = np.array([*class_colors(21), *[[255, 255, 255]] * 235], np.uint8)  # white: class 0 is black
    np.testing.assert_array_equal(truth_image(coloured, 0), colours[mask])
    assert set(np.unique(truth_image(two, 0))) == {0, 255}
    assert not truth_image(two, 0)[two.observation[1][0] != 1].any()  # not labelled is black, too
    np.testing.assert_array_equal(class_colours(eleven), class_palette(11))
    assert class_colours(two).tolist() == [[0] * 3, [255] * 3]


def test_ignored_pixels_of_two_classes_are_no_object(two):
    masks = two.observation[1]
    assert (masks == 255).any()
    assert set(two.info.observation.foreground) == {1}
    np.testing.assert_array_equal(two.foregrounds, masks == 1)
    without, with_void = Shapes(2, 12, start=1000, void=False), Shapes(2, 12, start=1000)
    assert choose_observed(with_void, 3) == choose_observed(without, 3)


def test_a_key_lists_the_classes_that_are_there(eleven, two):
    mask = np.zeros((10, 50), np.uint8)
    mask[0, :30], mask[1, :3], mask[2] = 3, 4, 255
    key = class_key([eleven], largest_shares([mask, np.full((5, 5), 255, np.uint8)]))
    colours = class_palette(11).tolist()
    assert key.legend == (("ground", tuple(colours[0])), ("木", tuple(colours[3])))
    assert key.sentence() == ("Colours: classes as listed; 1 more fill less than 1% of any image. Black: unlabelled.")
    assert [name for name, _ in class_key([eleven], largest_shares([mask]), least=0).legend][2:] == ["$x_1$ <b>"]
    said = [class_key([two], largest_shares([np.array([[0, 1, other]], np.uint8)])).sentence() for other in (1, 255)]
    assert said == ["Colours: classes as listed.", "Colours: classes as listed. Black: unlabelled, too."]
    other = StoredRun(eleven.path)
    other.info = dataclasses.replace(eleven.info, data=StoredData({"classes": ["floor"]}))
    unnamed = StoredRun(eleven.path)
    unnamed.info = dataclasses.replace(eleven.info, data=StoredData())
    names = [name for name, _ in class_key([eleven, other, unnamed], largest_shares([mask])).legend]
    assert names == ["ground / floor", "木 / class 3"]


def test_a_legend_wraps_and_shortens():
    def points(size):
        return round(size * 300 / 72)

    legend = [(name, (label, 99, 200)) for label, name in enumerate(class_names(21))]
    placed, bottom = place_legend(legend, 20, 620, 7, points)
    assert len({y for _, y, *_ in placed}) > 3
    assert min(y for _, y, *_ in placed) == 7
    assert bottom == max(y for _, y, *_ in placed) + points(5.6)
    for x, _, text, _ in placed:
        assert x >= 20
        assert x + points(5.6) + points(2.2) + font(points(6)).getlength(text) <= 621
    shown = [text for *_, text, _ in placed]
    assert shown[:6] == class_names(6)
    assert shown[6].endswith("…")
    assert LONG.startswith(shown[6][:-1])
    narrow, _ = place_legend(legend, 0, 90, 0, points)
    assert all(x == 0 for x, *_ in narrow)


def test_a_legend_of_its_own(tmp_path):
    legend = [("wall", (250, 10, 20)), (LONG, (20, 10, 250)), ("木\n", (1, 200, 1))]
    write_legend(legend, tmp_path / "l.png")
    pixels = np.asarray(Image.open(tmp_path / "l.png").convert("RGB")).reshape(-1, 3)
    for _, colour in legend:
        assert (np.abs(pixels.astype(int) - colour).sum(1) == 0).sum() > 200


# --- where they are shown ---


def test_grids_have_a_legend_and_name_the_object(eleven, two, tmp_path):
    sequences = select_frames([eleven])
    layout = layout_grid(sequences)
    present = [label for label in np.unique(eleven.observation[1][0]) if label != 255]
    assert sorted(text for *_, text, _ in layout.legend) == sorted(class_names(11)[label] for label in present)
    said = " ".join(layout.caption[0])
    chosen = eleven.info.observation.foreground[0]
    assert f"Image: {eleven.info.observation.names[0]} (object: {class_names(11)[chosen]})." in said
    assert "maximum. Black: unlabelled." in said
    pixels = render_grid(sequences)
    assert pixels.shape == (layout.height, layout.width, 3)
    for x, y, _, colour in layout.legend:
        assert pixels[y + 6, x + 6].tolist() == [round(255 * part) for part in colour]
        assert y < layout.caption[1]
    assert [text for *_, text, _ in layout_grid(select_frames([two])).legend] == ["ground", "horse"]
    # As it was: two classes without names.
    assert layout_grid(select_frames([_plain(two, tmp_path)])).legend == []


def _plain(run, tmp_path):
    plain = StoredRun(run.path)
    plain.info = dataclasses.replace(run.info, data=StoredData())
    return plain


def test_animations_name_the_object(eleven, monkeypatch):
    drawn = []
    write = animation.ImageDraw.ImageDraw.text

    def text(self, corner, words, *more, **options):
        drawn.append(words)
        return write(self, corner, words, *more, **options)

    monkeypatch.setattr(animation.ImageDraw.ImageDraw, "text", text)
    name = eleven.info.observation.names[0]
    for names, wanted in ((class_names(11), ""), (["a"] * 11, "a"), ([LONG] * 11, LONG)):
        run = StoredRun(eleven.path)
        run.info = dataclasses.replace(eleven.info, data=StoredData({"classes": names}))
        drawn.clear()
        next(animation.render_frames(select_frames([run])))
        (below,) = (words for words in drawn if "outlined" in words)
        assert "mask outlined; object: " in below
        assert wanted[:10] in below
        assert font(11).getlength(below) <= 256
        assert (name in below) == (names[0] != LONG)


def test_comparisons_and_predictions_have_the_colours_of_the_run(patch, coloured, tmp_path):
    add_shapes(patch, 21, colors=True)
    drawn = {}
    patch.setattr("fadeviz.prediction.compare.write_comparison", lambda rows, *more, **options: drawn.update(
        rows=rows, **options))  # fmt: skip
    fadeviz.compare(coloured, tmp_path / "c.png", images=[0, 1])
    mask = coloured.observation[1][1]
    colours = np.array([*class_colors(21), *[[255, 255, 255]] * 235], np.uint8)
    np.testing.assert_array_equal(drawn["rows"][1].truth, colours[mask])
    listed = dict(drawn["legend"])
    assert {"ground", "horse"} & listed.keys()
    own = dict(zip(class_names(21), map(tuple, class_colors(21)), strict=True))
    assert all(own[name] == colour for name, colour in listed.items())
    assert "White: unlabelled." in " ".join(drawn["caption"])

    for index in range(2):
        Image.fromarray(Shapes(21, 9)[index].image).save(tmp_path / f"p{index}.png")
    result = CliRunner().invoke(
        main, ["predict", *map(str, (coloured.path, tmp_path / "p0.png", tmp_path / "p1.png")), "-o", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / 'mask_legend.png'}" in result.output
    with Image.open(tmp_path / "p0_mask.png") as image:
        values = np.asarray(image)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colours[values])
    labels = set(np.unique(values)) | set(np.unique(np.asarray(Image.open(tmp_path / "p1_mask.png"))))
    legend = np.asarray(Image.open(tmp_path / "mask_legend.png").convert("RGB")).reshape(-1, 3)
    shown = {label for label in range(1, 21) if (legend == class_colors(21)[label]).all(1).sum() > 200}
    assert shown == labels - {0}
    # Its legend is no image to predict, and no image is replaced by it.
    done = fadeviz.predict(coloured, tmp_path, tmp_path / "again")
    assert sorted(one.image.name for one in done) == ["p0.png", "p1.png"]
    with pytest.raises(fadeviz.FadevizError, match=r"mask_legend\.png would be replaced by a result"):
        fadeviz.predict(coloured, [tmp_path / "p0.png", tmp_path / "mask_legend.png"], tmp_path)


def test_two_named_classes_are_named_below_a_comparison(patch, two, tmp_path):
    add_shapes(patch, 2)
    drawn = {}
    patch.setattr("fadeviz.prediction.compare.write_comparison", lambda rows, *more, **options: drawn.update(options))
    fadeviz.compare(two, tmp_path / "c.png", images=[0])
    assert dict(drawn["legend"])["horse"] == (255, 255, 255)
    assert "White: class 1." not in " ".join(drawn["caption"])


def test_notebooks_have_the_legend(eleven, two, tmp_path):
    html = render_html(eleven)
    for label in np.unique(eleven.observation[1][0]):
        if label != 255:
            assert f"background: #{bytes(class_palette(11)[label]).hex()}" in html
    assert "Colours: classes as listed" in html
    assert "<b>" not in html.partition("Colours: classes")[0].partition("fadeviz-view")[2]
    assert "Colours: classes" not in render_html(_plain(two, tmp_path))


def page(path):
    text = path.read_text()
    return text, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def with_classes(run, values, step=110):
    SnapshotStore(run.path, run.run_id).append_metrics({"step": step, "miou": 0.5, "class_metrics": values})
    return StoredRun(run.path)


class TestReport:
    def test_the_table_is_worst_first_and_a_mean_over_seeds(self, tmp_path):
        runs = []
        for upsampler, seed, iou in (("fade", 0, [0.9, None, 0.3, 0.6]), ("fade", 1, [0.7, None, None, 0.4]),
                                     ("carafe", 0, [0.5, None, 0.1, 0.9])):  # fmt: skip
            run = make_class_run(tmp_path / f"{upsampler}{seed}", upsampler=upsampler, seed=seed,
                                 run_id=f"{upsampler}{seed}")  # fmt: skip
            with_classes(run, {"iou": [0.0] * 4, "boundary_iou": [0.0] * 4}, step=50)
            runs.append(with_classes(run, {"iou": iou, "boundary_iou": [0.25, None, 0.125, 0.5]}))
        table = class_table(measure_onsets(runs))
        assert table.head == ["class", "FADE: IoU", "FADE: Boundary IoU", "CARAFE: IoU", "CARAFE: Boundary IoU"]
        assert table.rows == [
            ["bed", "0.300", "0.125", "0.100", "0.125"],
            ["wall", "0.800", "0.250", "0.500", "0.250"],
            ["horse", "0.500", "0.500", "0.900", "0.500"],
        ]
        assert table.notes == [
            "IoU and Boundary IoU of the pixels of all test images together, means over the seeds.",
            "Neither in the test masks nor predicted: sky.",
        ]
        fadeviz.write_report(runs, tmp_path / "r.html")
        text, data = page(tmp_path / "r.html")
        assert '<details class="aside wide" open><summary>Each class at the last test, worst first (3 classes)' in text
        assert '<tr><th scope="row">bed</th><td>0.300</td>' in text
        assert [one["object"] for one in data["images"]] == ["horse", "bed"]

    def test_a_run_that_was_not_tested_has_dashes(self, tmp_path):
        first = with_classes(make_class_run(tmp_path / "a", run_id="a"), {"iou": [0.5, 0.25, 1, 0]})
        second = make_class_run(tmp_path / "b", run_id="b", upsampler="carafe")
        (row, *_) = class_table(measure_onsets([first, second])).rows
        assert row == ["horse", "0.000", "–", "–", "–"]
        assert class_table(measure_onsets([second])) is None

    def test_many_classes_are_closed_and_names_are_text(self, eleven, coloured, tmp_path):
        fadeviz.write_report(coloured, tmp_path / "r.html")
        text, data = page(tmp_path / "r.html")
        assert '<details class="aside wide"><summary>Each class' in text
        assert '<th scope="row">$x_1$ &lt;b&gt;</th>' in text
        assert LONG not in text
        assert all(len(one["object"]) <= 40 for one in data["images"])
        fadeviz.write_report(eleven, tmp_path / "e.html")
        assert '<details class="aside wide" open><summary>Each class' in (tmp_path / "e.html").read_text()

    def test_the_curves_are_those_of_the_means(self, eleven, tmp_path):
        fadeviz.write_report(eleven, tmp_path / "r.html")
        (group,) = (one for one in page(tmp_path / "r.html")[1]["groups"] if one["name"] == "quality")
        assert [panel["title"] for panel in group["panels"]] == ["mIoU", "Boundary IoU", "Boundary IoU, fine"]


def test_exports_have_a_number_for_each_class(tmp_path):
    run = with_classes(
        make_class_run(tmp_path / "run", names=["a", "a", "b/c", "horse"]), {"iou": [0.5, 0.25, None, 1]}
    )
    notes = fadeviz.export_run(run, "npz", tmp_path / "r.npz")
    assert not [note for note in notes if "class_metrics" in note]
    with np.load(tmp_path / "r.npz", allow_pickle=False) as arrays:
        found = {name: arrays[name][-1] for name in arrays.files if name.startswith("metrics/iou")}
    assert found == {"metrics/iou a 0": 0.5, "metrics/iou a 1": 0.25, "metrics/iou horse": 1.0}


def test_names_of_a_set_reach_the_kymographs(eleven):
    said = fadeviz.analyze(eleven).onsets.notes
    assert any("the masks show one class of each image (" in note for note in said)
