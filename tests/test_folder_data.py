"""Anybody's images and masks: layouts, class files, every kind of mask, splits, bad input, and training on them."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from fadeviz_cli.sweep import record_arguments
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import fadeviz
from fadeviz import FadevizError, RunConfig
from fadeviz.data import Splits
from fadeviz.data.folder.classes import VOC_NAMES, read_classes
from fadeviz.data.folder.dataset import MaskOptions, load_folder
from fadeviz.data.folder.files import find_pairs
from fadeviz.data.observation import choose_observed
from fadeviz.data.sets import check_data
from fadeviz.data.transforms import IGNORED
from fadeviz.experiment import differing_settings, settings_of
from fadeviz.experiment.config import run_id
from fadeviz.render.labels import data_name
from fadeviz.sweep.trial import with_absolute_paths

HIGH, WIDE = 24, 32
COLORS = ((128, 0, 0), (0, 128, 64), (10, 20, 230))
NAMES = ("sky", "road", "car")


def labels(number: int, classes: int = 3) -> NDArray[np.uint8]:
    """A mask of patches in which every class occurs, another one for every number."""
    patches = np.resize(np.roll(np.arange(classes), number), (4, 8)).astype(np.uint8)
    return patches.repeat(HIGH // 4, axis=0).repeat(WIDE // 8, axis=1)


def photograph(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (HIGH, WIDE, 3), np.uint8))


def grey(mask: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(mask)


def coloured(mask: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.array(COLORS, np.uint8)[mask])


def numbered(mask: NDArray[np.uint8], colors: Sequence[Sequence[int]] = COLORS) -> Image.Image:
    image = Image.fromarray(mask)
    image.putpalette([value for color in colors for value in color])
    return image


def save_set(
    root: Path,
    images: str = "images/img_{}.png",
    masks: str = "masks/img_{}.png",
    *,
    numbers: Sequence[int] = range(8),
    classes: int = 3,
    draw: Callable[[NDArray[np.uint8]], Image.Image] = grey,
) -> Path:
    """A set with files of these names."""
    for number in numbers:
        for name, image in ((images, photograph(number)), (masks, draw(labels(number, classes)))):
            path = root / name.format(f"{number:03d}")
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return root


def save_classes(path: Path, form: str = "{r} {g} {b}\t{name}", header: str = "") -> str:
    lines = [form.format(name=name, r=r, g=g, b=b) for name, (r, g, b) in zip(NAMES, COLORS, strict=True)]
    path.write_text("\n".join([*([header] if header else []), *lines, ""]))
    return str(path)


def load(root: Path, size: int = 32, split_seed: int = 0, **options: object) -> Splits:
    return load_folder(root, size, split_seed, MaskOptions(**options))  # type: ignore[arg-type]


def masks_of(splits: Splits) -> dict[str, NDArray[np.uint8]]:
    """The masks of a set by the names of their images."""
    parts = (splits.train, splits.test)
    return {part[i].name: part[i].mask for part in parts for i in range(part.count or 0)}


def nearest(mask: NDArray[np.uint8], size: int = 32) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


def assert_read(splits: Splits, classes: int = 3, name: str = "img_{}") -> None:
    """Every mask is what was drawn."""
    masks = masks_of(splits)
    assert len(masks) == 8
    for number in range(8):
        np.testing.assert_array_equal(masks[name.format(f"{number:03d}")], nearest(labels(number, classes)))


def refusal(root: Path, **options: object) -> str:
    """The one line with which a folder is refused; every problem of the folder is in the check as well."""
    with pytest.raises(FadevizError) as refused:
        masks_of(load(root, **options))
    line = str(refused.value)
    assert "\n" not in line
    checked = check_data(root, "folder", **options)  # type: ignore[arg-type]
    assert checked.problems
    assert checked.splits is None
    first = line.split(" (and ")[0]
    assert any(problem.startswith(first) for problem in checked.problems), checked.problems
    return line


# --- layouts ---


@pytest.mark.parametrize(
    ("images", "masks", "name"),
    [
        ("images/img_{}.png", "masks/img_{}.png", "img_{}"),
        ("images/img_{}.JPG", "Masks/img_{}_mask.png", "img_{}"),
        ("imgs/img_{}.webp", "labels/img_{}_gt.tif", "img_{}"),
        ("images/{}_sat.jpg", "gt/{}.png", "{}_sat"),
        ("701_StillsRaw_full/{}.png", "LabeledApproved_full/{}_L.png", "{}"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", "{}"),
        ("images/{}.jpg", "annotations/trimaps/{}.png", "{}"),
        ("{}_sat.jpg", "{}_mask.png", "{}_sat"),
        ("img.{}.png", "img.{}_L.png", "img.{}"),
        ("image_{}.png", "mask_{}.png", "image_{}"),
        ("{}.jpg", "{}.png", "{}"),
        ("VOCdevkit/VOC2012/JPEGImages/{}.jpg", "VOCdevkit/VOC2012/SegmentationClass/{}.png", "{}"),
        ("PennFudanPed/PNGImages/{}.png", "PennFudanPed/PedMasks/{}_mask.png", "{}"),
        ("images_png/{}.png", "masks_png/{}.png", "{}"),
        ("Original/{}.tif", "Ground Truth/{}.tif", "{}"),
        ("DUTS-TR-Image/{}.jpg", "DUTS-TR-Mask/{}.png", "{}"),
    ],
)
def test_names_that_match_up_to_an_ending_are_pairs(tmp_path, images, masks, name):
    splits = load(save_set(tmp_path, images, masks))
    assert_read(splits, name=name)
    assert (splits.train.count, splits.test.count, splits.classes) == (7, 1, 3)
    assert check_data(tmp_path).data == "folder"


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("{part}/images/{{}}.png", "{part}/masks/{{}}_mask.png"),
        ("images/{part}/{{}}.png", "masks/{part}/{{}}.png"),
        ("images/{part}/{{}}.png", "masks/{{}}.png"),
        ("{part}/{{}}.png", "{part}annot/{{}}.png"),
        ("{part}/{{}}.png", "{part}_labels/{{}}_L.png"),
        ("{part}/{{}}.jpg", "{part}/{{}}_mask.png"),
        ("images/{part}2017/{{}}.jpg", "annotations/{part}2017/{{}}.png"),
        ("img_dir/{part}/{{}}.png", "ann_dir/{part}/{{}}.png"),
        ("{part}_images/{{}}.jpg", "{part}_segmentations/{{}}.png"),
        ("{part}/CameraRGB/{{}}.png", "{part}/CameraSeg/{{}}.png"),
    ],
)
def test_parts_have_folders_of_their_own(tmp_path, images, masks):
    for part, numbers in (("train", range(5)), ("val", range(5, 6)), ("test", range(6, 8))):
        save_set(tmp_path, images.format(part=part), masks.format(part=part), numbers=numbers)
    splits = load(tmp_path)
    assert (splits.train.count, splits.test.count) == (5, 2)
    assert [splits.test[i].name for i in range(2)] == ["006", "007"]
    assert splits.info["notes"][-1] == "1 image of val is not used: the run is tested on test"
    np.testing.assert_array_equal(splits.train[4].mask, nearest(labels(4)))
    np.testing.assert_array_equal(splits.test[1].mask, nearest(labels(7)))


def test_val_is_tested_on_where_test_has_no_masks(tmp_path):
    save_set(tmp_path, "train/{}.jpg", "train_masks/{}_mask.gif", numbers=range(5))
    save_set(tmp_path, "valid/{}.jpg", "valid_masks/{}_mask.gif", numbers=range(5, 7))
    for number in (7, 8, 9):
        (tmp_path / "test").mkdir(exist_ok=True)
        photograph(number).save(tmp_path / "test" / f"{number:03d}.jpg")
    splits = load(tmp_path)
    assert (splits.train.count, splits.test.count) == (5, 2)
    assert "test: no image in test/ has a mask; it is left out" in splits.info["notes"]


def test_two_folders_are_given(tmp_path, monkeypatch):
    save_set(tmp_path, "photographs/{}.jpg", "drawings/{}.png")
    with pytest.raises(FadevizError, match=r"has drawings/, photographs/, none of them known .* give both: data_dir="):
        load(tmp_path)
    assert_read(load(tmp_path / "photographs", masks_dir=str(tmp_path / "drawings")), name="{}")
    assert_read(load(tmp_path / "photographs", masks_dir="../drawings"), name="{}")  # a path in the data folder
    monkeypatch.chdir(tmp_path)
    assert_read(load(Path("photographs"), masks_dir="drawings"), name="{}")
    config = RunConfig(data="folder", data_dir="photographs", masks_dir="drawings", palette="voc")
    moved = with_absolute_paths(config)
    assert (moved.masks_dir, moved.palette) == (str(tmp_path / "drawings"), "voc")
    assert with_absolute_paths(dataclasses.replace(config, masks_dir="../drawings")).masks_dir == "../drawings"
    with pytest.raises(FadevizError, match="masks_dir is nowhere, which is no folder"):
        load(tmp_path / "photographs", masks_dir="nowhere")


def test_words_do_not_choose_among_several_folders(tmp_path):
    root = save_set(tmp_path, "ds/img/{}.jpg", "ds/masks_machine/{}.png")
    (root / "__MACOSX" / "ds").mkdir(parents=True)  # an archive that macOS packed
    assert_read(load(root), name="{}")
    save_set(root, "ds/img/{}.jpg", "ds/masks_human/{}.png", draw=coloured)
    assert "ds has two folders of masks, masks_human/ and masks_machine/. Say which: masks_dir=DIR" in refusal(root)
    assert_read(load(root / "ds", masks_dir="masks_machine"), name="{}")


def test_the_field_of_view_of_a_retina_is_no_mask(tmp_path):
    """As DRIVE has it, with names that are alike neither at the beginning nor at the end."""
    for part, numbers in (("training", range(21, 27)), ("test", range(1, 3))):
        images = f"{part}/images/{{}}_{part}.tif"
        save_set(tmp_path, images, f"{part}/1st_manual/{{}}_manual1.gif", numbers=numbers, classes=2)
        save_set(tmp_path, images, f"{part}/mask/{{}}_{part}_mask.gif", numbers=numbers, draw=lambda m: grey(m * 0 + 1))
    assert "training has two folders of masks, mask/ and 1st_manual/. Say which: masks_dir=DIR" in refusal(tmp_path)
    splits = load(tmp_path, masks_dir="1st_manual")
    assert (splits.train.count, splits.test.count, splits.classes) == (6, 2, 2)
    np.testing.assert_array_equal(splits.train[3].mask, nearest(labels(24, 2)))
    assert "pair up by what differs in their names: 021_training and 021_manual1" in splits.info["notes"][0]


def test_names_that_differ_at_the_beginning(tmp_path):
    assert_read(load(save_set(tmp_path / "a", "images/image_{}.png", "masks/segmim_{}.png")), name="image_{}")
    assert_read(load(save_set(tmp_path / "b", "images/{}_leftImg8bit.png", "gt/{}_gtFine_labelIds.png")),
                name="{}_leftImg8bit")  # fmt: skip
    for masks in ("masks/seq2_{}.png", "masks/b{}.png"):  # another sequence; any letter
        assert "no image pairs with a mask" in refusal(save_set(tmp_path / masks[6:9], "images/seq1_{}.png", masks))


def test_folders_that_are_not_used_are_said(tmp_path):
    root = save_set(tmp_path, "images/{}.png", "masks/{}.png", numbers=range(2))
    save_set(root, "train/images/{}.png", "edges/{}.png")
    assert "folders with images that are not used: edges/, train/" in load(root).info["notes"]


def test_files_that_lie_deeper(tmp_path):
    save_set(tmp_path, "images/001.Albatross/{}.jpg", "segmentations/001.Albatross/{}.png")
    assert "the files lie deeper (images/001.Albatross/, segmentations/001.Albatross/). Give a CSV of pairs" in (
        refusal(tmp_path)
    )


def test_lists_as_they_are_found(tmp_path):
    """Of Oxford-IIIT Pet, with comments, quotes, and names with spaces; and one that is no list by its name."""
    root = save_set(tmp_path / "pets", "images/a pet {}.jpg", "annotations/trimaps/a pet {}.png")
    names = [f"a pet {n:03d}" for n in range(8)]
    annotations = root / "annotations"
    (annotations / "trainval.txt").write_text("# NAME\n" + "\n".join(f'"{name}"' for name in names[:5]))
    (annotations / "test.txt").write_text(f"images/{names[6]}.jpg annotations/trimaps/{names[6]}.png\r\n{names[7]}\r\n")
    (root / "train_split.txt").write_text("a pet 005")
    splits = load(root)
    assert [splits.train[i].name for i in range(5)] == names[:5]
    assert [splits.test[i].name for i in range(2)] == names[6:]
    assert "not used: train_split.txt. Lists of images are named train.txt" in splits.info["notes"][1]
    (annotations / "test.txt").write_bytes("a pet 00\xe4".encode("latin-1"))
    assert "it is not text in UTF-8. Save it as UTF-8, or remove it" in refusal(root)


def test_lists_say_what_is_used(tmp_path):
    root = save_set(tmp_path, "JPEGImages/2007_{}.jpg", "SegmentationClass/2007_{}.png", numbers=range(6))
    save_set(tmp_path, "JPEGImages/2008_{}.jpg", "elsewhere/2008_{}.png", numbers=range(3))
    assert "3 images without a mask: JPEGImages/2008_000.jpg, " in refusal(root)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000\n2007_001\n2007_003\n")
    (lists / "val.txt").write_text("2007_002\n\n2007_005\n")
    (lists / "trainval.txt").write_text("nonsense")
    splits = load(root)
    assert [splits.train[i].name for i in range(3)] == ["2007_000", "2007_001", "2007_003"]
    assert [splits.test[i].name for i in range(2)] == ["2007_002", "2007_005"]
    assert splits.info["notes"][:2] == [
        "1 image in none of train.txt, val.txt: left out (JPEGImages/2007_004.jpg)",
        "3 images without a mask, in none of the lists: left out "
        "(JPEGImages/2008_000.jpg, JPEGImages/2008_001.jpg, JPEGImages/2008_002.jpg)",
    ]
    (lists / "test.txt").write_text("2008_000\n2008_001\n")
    assert load(root).info["notes"][0] == "test.txt lists 2 images, all without a mask: it is left out"
    (lists / "val.txt").write_text("2007_002\n2007_000\nmissing\n2008_000\n")
    problems = find_pairs(root).problems
    assert [problem.partition("lists ")[2] for problem in problems] == [
        "1 image not there: missing. Put what is missing there, or correct the list",
        "1 image without a mask: 2008_000. Add the masks, or correct the list",
        "1 image listed already: 2007_000 (train.txt). List each once, or correct the list",
    ]
    assert refusal(root).endswith("(and 2 more such problems)")
    (lists / "train.txt").unlink()
    assert "there is no train.txt beside it" in refusal(root)


def test_lists_of_two_paths_a_line(tmp_path):
    for part, numbers in (("train", range(5)), ("test", range(5, 8))):
        save_set(tmp_path, part + "/{}.png", part + "annot/{}.png", numbers=numbers)
        lines = [f"/SegNet/CamVid/{part}/{n:03d}.png /SegNet/CamVid/{part}annot/{n:03d}.png" for n in numbers]
        (tmp_path / f"{part}.txt").write_text("\n".join(lines))
    assert_read(load(tmp_path), name="{}")
    (tmp_path / "test.txt").write_text("test/005.png testannot/006.png")
    assert "lists 1 image with another mask than in the folders: 005 (006, not 005.png)" in refusal(tmp_path)


def test_images_of_one_name_in_two_parts(tmp_path):
    save_set(tmp_path, "train/images/{}.png", "train/masks/{}.png", numbers=range(3))
    save_set(tmp_path, "test/images/{}.png", "test/masks/{}.png", numbers=range(2))
    (tmp_path / "train.txt").write_text("train/images/000.png\ntrain/images/002.png\n")
    (tmp_path / "test.txt").write_text("/home/someone/set/test/images/000.png\n")
    splits = load(tmp_path)
    assert (splits.train.count, splits.test.count) == (2, 1)
    assert splits.test.dataset.pairs[0].image == tmp_path / "test/images/000.png"
    flat = save_set(tmp_path / "flat", "images/train/{}.png", "masks/{}.png", numbers=range(3))
    save_set(flat, "images/test/{}.png", "masks/{}.png", numbers=range(1))
    assert "both parts have their masks in masks/" in refusal(flat)


def test_a_csv_of_pairs(tmp_path):
    save_set(tmp_path, "a/{}.jpg", "b/x{}.png")
    rows = [f"a/{n:03d}.jpg,b/x{n:03d}.png,{'train' if n < 6 else 'val'}" for n in range(8)]
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(["image,mask,split", *rows]))
    splits = load(table)
    assert_read(splits, name="{}")
    assert (splits.train.count, splits.test.count) == (6, 2)
    assert check_data(table).splits.train.count == 6
    table.write_text("\n".join(row.rpartition(",")[0].replace(",", ";") for row in rows))  # no header, no split
    assert load(table).test.count == 1
    for path in tmp_path.glob("?/*007.*"):
        path.rename(path.with_stem(unicodedata.normalize("NFD", "\u00e4")))
    table.write_text("image,mask\na/\u00e4.jpg,b/\u00e4.png\na/001.jpg,b/x001.png")
    assert load(table).train.count == 1

    for text, line in (
        ("image,split\na/000.jpg,train", "lacks the column mask: it has image, split"),
        ("image,mask\na/000.jpg,b/x000.png\nc.jpg,d.png", "lists 2 files not there: c.jpg, d.png"),
        ("image,mask\na/000.jpg,b/x000.png\na/000.jpg,b/x001.png", "lists a/000.jpg in row 3 again, after row 2"),
        ("image,mask,split\na/000.jpg,b/x000.png,dev", "has the split 'dev' in row 2: it must be train, val or test"),
        ("image,mask,split\na/000.jpg,b/x000.png", "has 2 cells in row 2, fewer than columns"),
        ("image,mask\n", "lists no images"),
        ("", "is empty"),
    ):
        table.write_text(text)
        assert line in refusal(table)
    with pytest.raises(FadevizError, match="names the masks already"):
        load(table, masks_dir="b")


def test_what_does_not_pair(tmp_path):
    root = save_set(tmp_path / "set")
    for number in range(1, 8):
        (root / f"masks/img_00{number}.png").unlink()
    grey(labels(0)).save(root / "masks/zebra.png")
    photograph(0).save(root / "images/img_00.png")
    problems = find_pairs(root).problems
    assert problems[0].startswith(
        f"{root}: 8 images without a mask: images/img_00.png, images/img_001.png, images/img_002.png, "
        "images/img_003.png, images/img_004.png, .... Add them, or list the images to use"
    )
    assert problems[1] == f"{root}: 1 mask without an image: masks/zebra.png. Add it, or remove it"
    assert refusal(root) == problems[0] + " (and 1 more such problems)"
    other = save_set(tmp_path / "other", "images/a{}.png", "masks/b{}.png")
    assert "no image pairs with a mask: images/a000.png, images/a001.png, images/a002.png, images/a003.png, " in (
        refusal(other)
    )


def test_an_ending_is_not_part_of_a_number(tmp_path):
    """The mask of a missing image is no other image's, though its name begins alike."""
    root = save_set(tmp_path, "images/img_{}.png", "masks/img_{}.png", numbers=range(4))
    (root / "images/img_003.png").rename(root / "images/img.png")
    problems = find_pairs(root).problems
    assert "1 image without a mask: images/img.png" in problems[0]
    assert "1 mask without an image: masks/img_003.png" in problems[1]
    for number in (1, 2):
        grey(labels(0)).save(root / f"masks/img_00{number}_gt.png")
    assert len(find_pairs(root).problems) == 3 - 1  # beside masks of equal names they belong to nothing
    (root / "masks/img_001.png").unlink()
    (root / "masks/img_001_gt.png").rename(root / "masks/img_001_mask.png")
    grey(labels(0)).save(root / "masks/img_001_gt.png")
    assert "img_001.png has 2 masks: img_001_gt.png, img_001_mask.png. Keep one" in find_pairs(root).problems[0]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda root: None, "has no images (.jpg, .jpeg, .png"),
        (lambda root: (root / "masks").mkdir(), "has masks/, none of them known to hold images or masks"),
        (lambda root: photograph(0).save(root / "a.png"), "has images, but none with a mask: a.png"),
        (
            lambda root: [save_set(root, masks=f"{name}/img_{{}}.png") for name in ("masks", "labels")],
            "has two folders of masks, masks/ and labels/. Say which: masks_dir=DIR",
        ),
        (lambda root: save_set(root, "test/images/{}.png", "test/masks/{}.png"), "none to train on"),
        (lambda root: save_set(root, numbers=[0]), "1 image cannot be split: at least 2 are needed"),
    ],
)
def test_folders_that_are_none(tmp_path, make, line):
    make(tmp_path)
    assert line in refusal(tmp_path)


def test_no_folder(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(FadevizError, match="is a file, but neither a folder nor a .csv"):
        load(tmp_path / "a.txt")
    with pytest.raises(FadevizError, match="none does not exist"):
        load(tmp_path / "none")


def test_hidden_and_other_files_are_left_out(tmp_path):
    root = save_set(tmp_path)
    (root / "images/._img_000.png").write_bytes(b"x")
    (root / "images/img_000.mat").write_bytes(b"x")
    splits = load(root)
    assert_read(splits)
    assert splits.info["notes"][0] == "left out of images/: 1 that is not an image (img_000.mat)"


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + "image,mask\n" + "A/x{n}.jpg,B/x{n}.png\n",
        "# mine\nimage,mask\n" + "A\\x{n}.jpg,.\\B\\x{n}.png\n",
        "sep=;\nimg_path;mask_path\n" + "A/x{n}.jpg;B/x{n}.png\n",
        "FileName,Segmentation\n" + '"A/x{n}.jpg","B/x{n}.png"\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_csv_as_spreadsheets_write_it(tmp_path, text, encoding):
    save_set(tmp_path, "A/x{}.jpg", "B/x{}.png")
    header, row = text.rstrip("\n").rsplit("\n", 1)
    lines = [header, *[row.replace("{n}", f"{n:03d}") for n in range(8)]]
    (tmp_path / "pairs.csv").write_bytes("\r\n".join(lines).encode(encoding))
    assert_read(load(tmp_path / "pairs.csv"), name="x{}")


def test_a_csv_says_what_it_did_not_use(tmp_path):
    save_set(tmp_path, "a/{}.jpg", "b/x{}.png")
    table = tmp_path / "pairs.csv"
    rows = [f"a/{n:03d}.jpg,b/x{n % 7:03d}.png,{n}" for n in range(8)]
    table.write_text("\n".join(["image,mask,is_test", *rows]))
    assert load(table).info["notes"][:2] == [
        "columns of pairs.csv that are not used: is_test", "masks of several images: 1 (x000.png)",
    ]  # fmt: skip
    table.write_text("image,mask\na/000.jpg,b/x000.png\na/../a/000.jpg,b/x001.png\n")
    assert "lists a/../a/000.jpg in row 3 again, after row 2" in refusal(table)
    table.write_text(f"image,mask\n{'x' * 200_000},y\n")
    assert "is no CSV of paths: field larger than field limit" in refusal(table)


# --- class files ---


@pytest.mark.parametrize(
    ("form", "header"),
    [
        ("{r} {g} {b}\t{name}", ""),
        ("{r} {g} {b}\t\t{name}", ""),
        ("{name}:{r},{g},{b}::", "# label:color_rgb:parts:actions"),
        ("{name},{r},{g},{b}", ""),
        ("{name},{r},{g},{b}", "name,r,g,b"),
        ("{name}; {r}; {g}; {b}", "class;red;green;blue"),
        ("{r},{g},{b},{name}", ""),
        ("{b},{name},{g},{r}", "b,label,g,r"),
        ("{name}\t{r}\t{g}\t{b}", ""),
    ],
)
def test_every_form_of_a_class_file(tmp_path, form, header):
    table = read_classes(save_classes(tmp_path / "classes.txt", form, header))
    assert (table.names, table.colors) == (NAMES, COLORS)
    assert dict(table.codes) == {0x800000: 0, 0x008040: 1, 0x0A14E6: 2}


@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        ("0: unlabeled\n1: person\n2: car", ("unlabeled", "person", "car"), (0, 1, 2)),
        ("1: person\n2: car", ("person", "car"), (1, 2)),
        ("7\troad\n8\tside walk", ("road", "side walk"), (7, 8)),
        ("road,7\ncar,26", ("road", "car"), (7, 26)),
        ("Idx\tRatio\tName\n1\t0.15\twall\n2\t0.1\tbuilding, edifice", ("wall", "building, edifice"), (1, 2)),
        ("class_id,class_name\n1,sky\n3,tree", ("sky", "tree"), (1, 3)),
        ("__ignore__\n_background_\nperson", ("_background_", "person"), (0, 1)),
        ("wall\nbuilding, edifice", ("wall", "building, edifice"), (0, 1)),
        ("background:::\nroad:::", ("background", "road"), (0, 1)),
        ("0 0 0 0 ground\n5 128 0 0 road", ("ground", "road"), (0, 5)),
    ],
)
def test_numbers_in_a_class_file_are_values(tmp_path, text, names, values):
    (tmp_path / "classes.txt").write_text(text)
    table = read_classes(str(tmp_path / "classes.txt"))
    assert table.names == names
    assert dict(table.values) == {value: label for label, value in enumerate(values)} | {255: IGNORED}


def test_names_alone_are_for_masks_of_values(tmp_path):
    save_set(tmp_path, draw=lambda mask: numbered(mask, [(9, 9, 9)] * 3))
    path = tmp_path / "names.txt"
    path.write_text("sky\nroad with cars\ncar\n")
    splits = load(tmp_path, palette=str(path))
    assert_read(splits)
    assert splits.info["classes"] == ["sky", "road with cars", "car"]
    assert "colors" not in splits.info


def test_values_of_ones_own_and_classes_that_are_merged(tmp_path):
    """Trimaps of 1, 2 and 3; and two rows of one name."""
    save_set(tmp_path, draw=lambda mask: grey(mask + np.uint8(1)))
    path = tmp_path / "names.csv"
    path.write_text("name,value\nbackground,2\npet,1\nborder,3\n")
    order = np.array([1, 0, 2], np.uint8)
    for name, mask in masks_of(load(tmp_path, palette=str(path))).items():
        np.testing.assert_array_equal(mask, nearest(order[labels(int(name[-3:]))]))
    for name, mask in masks_of(load(tmp_path, palette=str(path), ignore="border")).items():
        np.testing.assert_array_equal(mask, nearest(np.array([1, 0, IGNORED], np.uint8)[labels(int(name[-3:]))]))
    path.write_text("name,value\nbackground,2\npet,1\nbackground,3\n")
    assert load(tmp_path, palette=str(path)).classes == 2


def test_voc_is_known_by_name(tmp_path):
    table = read_classes("voc")
    assert table.names == VOC_NAMES
    assert table.colors[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert table.colors[20] == (0, 64, 128)
    colors = [*table.colors, *[(0, 0, 0)] * 234, (224, 224, 192)]

    def draw(mask: NDArray[np.uint8]) -> Image.Image:
        bordered = mask.copy()
        bordered[:3] = 255
        return numbered(bordered, colors)

    save_set(tmp_path, classes=21, draw=draw)
    by_color, by_value = load(tmp_path, palette="voc"), load(tmp_path, classes=21)
    for number in range(8):
        expected = labels(number, 21)
        expected[:3] = IGNORED
        for splits in (by_color, by_value):
            np.testing.assert_array_equal(masks_of(splits)[f"img_{number:03d}"], nearest(expected))
    assert by_value.info["colors"][15] == by_color.info["colors"][15] == list(table.colors[15])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "is empty"),
        ("128 0 0 sky\n0 128 64\n", "has in line 2 '0 128 64', which does not fit the other lines"),
        ("128 0 0 sky\n0 300 64 road\n", "in line 2 '0 300 64 road'"),
        ("128 0 0 sky\n128 0 0 road\n", "lists the colour (128, 0, 0) twice"),
        ("128 0 0 sky\n", "lists 1 classes to learn; from 2 to 254 are possible"),
        ("name,r,g\nsky,1,2\nroad,3,4\n", "lacks the column b"),
        ("name,value\nsky,1\nroad,1\n", "lists the value 1 twice"),
        ("name,value\nsky,1\nroad,one\n", "in line 3 'road,one'"),
        ("a,b\n1,2\n", "has in line 1 'a,b'"),
        ("name,r,g,b\nsky,1,2,3\nroad\n", "in line 3 'road'"),
        ("R G B name\n0 255 0 sky\n0 0 255 road\n", "has in line 2 '0 255 0 sky'"),
        ("0.0 1.0 0.0 sky\n0.0 0.0 1.0 road\n", "has in line 1 '0.0 1.0 0.0 sky'"),
        ("sky=1\nroad=2\n", "has in line 1 'sky=1'"),
        ("0 sky 1 2 3\n1 road 4 5 6\n", "has in line 1 '0 sky 1 2 3'"),
        ("sky\n1: road\n", "has in line 2 '1: road'"),
        ("#00ff00 sky\n#0000ff road\n", "has in line 1 '#00ff00 sky'"),
        ("name,hex\nsky,#00ff00\nroad,#0000ff\n", "has colours in the column 'hex'. Give them in three: r, g and b"),
        ("name,gray\nsky,1\nroad,2\n", "has whole numbers in the column 'gray'. Call it value if masks hold them"),
        (f"name,value\n{'x' * 200_000},1\n", "is no CSV: field larger than field limit"),
    ],
)
def test_class_files_that_are_none(tmp_path, text, line):
    root = save_set(tmp_path / "set", draw=coloured)
    (tmp_path / "classes.txt").write_text(text)
    assert line in refusal(root, palette=str(tmp_path / "classes.txt"))


def test_class_files_that_do_not_fit(tmp_path):
    root = save_set(tmp_path / "set", draw=coloured)
    palette = save_classes(tmp_path / "classes.txt")
    assert "classes is 4, but" in refusal(root, palette=palette, classes=4)
    assert "lists 2 classes without car" in refusal(root, palette=palette, classes=3, ignore="CAR")
    assert "ignore is 'tree', which is no class of" in refusal(root, palette=palette, ignore="tree")
    for classes in (0, 3):
        assert "classes have names only in a class file" in refusal(root, classes=classes, ignore="car")
    assert "cannot be read: No such file" in refusal(root, palette=str(tmp_path / "none.txt"))
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00")
    assert "it is not text in UTF-8" in refusal(root, palette=palette)


# --- masks ---


def test_masks_of_colours(tmp_path):
    root = save_set(tmp_path, draw=coloured)
    palette = save_classes(tmp_path / "classes.txt")
    splits = load(root, palette=palette)
    assert_read(splits)
    assert splits.info["classes"] == list(NAMES)
    assert splits.info["colors"] == [list(color) for color in COLORS]
    assert_read(load(root, palette="classes.txt"))  # a path in the folder
    assert_read(load(save_set(tmp_path / "palette", draw=numbered), palette=palette))
    ignoring = load(root, palette=palette, ignore="road")
    assert (ignoring.classes, ignoring.info["classes"]) == (2, ["sky", "car"])
    np.testing.assert_array_equal(
        masks_of(ignoring)["img_002"], nearest(np.array([0, IGNORED, 1], np.uint8)[labels(2)])
    )
    line = refusal(root)
    assert "img_000.png (and 7 more masks) has colours, and which class each stands for is not known" in line
    assert "(128, 0, 0) 33" in line
    assert "Give palette=FILE" in line


def test_a_colour_that_the_palette_lacks(tmp_path):
    root = save_set(tmp_path / "set", draw=coloured)
    palette = save_classes(tmp_path / "classes.txt")
    pixels = np.asarray(coloured(labels(5))).copy()
    pixels[0, :4] = (1, 2, 3)
    pixels[0, 4] = (7, 7, 7)
    Image.fromarray(pixels).save(root / "masks/img_005.png")
    assert refusal(root, palette=palette) == (
        f"{root}/masks/img_005.png has 5 pixels of 2 colours that {palette} does not have: (1, 2, 3) in 4, "
        "(7, 7, 7) in 1. Add them there, or correct the mask"
    )
    (root / "masks/img_005.png").unlink()
    grey(labels(5)).save(root / "masks/img_005.png")
    assert "img_005.png is grey, but" in refusal(root, palette=palette)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "webp"])
def test_masks_of_values(tmp_path, ending):
    def draw(mask: NDArray[np.uint8]) -> Image.Image:
        return grey(mask)

    root = save_set(tmp_path, masks="masks/img_{}_mask.png", draw=draw)
    for number in range(8):
        path = root / f"masks/img_{number:03d}_mask.png"
        with Image.open(path) as opened:
            image = opened.copy()
        path.unlink()
        image.save(path.with_suffix(f".{ending}"), **({"lossless": True} if ending == "webp" else {}))
    splits = load(root)
    assert_read(splits)
    assert splits.info["classes"] == ["class 0", "class 1", "class 2"]
    assert splits.info["notes"] == ["the masks hold 0, 1, 2: 3 classes"]
    given = load(root, classes=3)
    assert_read(given)
    assert given.info["notes"] == []


def test_a_given_number_of_classes_reads_no_mask_beforehand(tmp_path, monkeypatch):
    root = save_set(tmp_path, draw=coloured)
    palette = save_classes(tmp_path / "classes.txt")

    def stop(*args: object, **kwargs: object) -> None:
        raise AssertionError("a mask was read")

    monkeypatch.setattr("fadeviz.data.folder.dataset.read_pixels", stop)
    assert load(root, palette=palette).train.count == 7
    assert load(root, classes=3).train.count == 7
    with pytest.raises(AssertionError):
        load(root)


def test_ignored_values(tmp_path):
    def draw(mask: NDArray[np.uint8]) -> Image.Image:
        mask = mask.copy()
        mask[:2], mask[2:4] = 255, 11
        return grey(mask)

    root = save_set(tmp_path, draw=draw)
    splits = load(root, ignore="11,255")
    assert splits.classes == 3
    assert splits.info["notes"] == ["the masks hold 0, 1, 2, 11, 255: 3 classes, 11, 255 ignored"]
    assert (masks_of(splits)["img_003"][:5] == IGNORED).all()
    assert (masks_of(splits)["img_003"][6:] < 3).all()
    assert "has 64 pixels of 1 value that are no class: 255 in 64; classes are 0-2, and 11 is ignored" in (
        refusal(root, classes=3, ignore="11")
    )
    assert load(root, classes=12).classes == 12
    line = refusal(root, classes=2)
    assert "img_000.png has" in line
    assert "pixels of 2 values that are no class: 2 in " in line
    assert "11 in 64; classes are 0-1, and 255 is ignored. Use classes=12, or correct the mask" in line


def test_ignored_values_are_no_classes(tmp_path):
    """0 is not labelled, and 1 to 3 are three classes; a class of a file is ignored by its value too."""
    root = save_set(tmp_path, classes=4)
    (root / "names.txt").write_text("void\nsky\nroad\ncar")
    for options in ({}, {"classes": 3}, {"palette": "names.txt"}, {"palette": "names.txt", "classes": 3}):
        splits = load(root, ignore="0", **options)
        assert splits.classes == 3
        named = "palette" in options
        assert splits.info["classes"] == (["sky", "road", "car"] if named else ["class 1", "class 2", "class 3"])
        for number in range(8):
            expected = labels(number, 4) - np.uint8(1)  # of 0 it is 255
            np.testing.assert_array_equal(masks_of(splits)[f"img_{number:03d}"], nearest(expected))
    notes = check_data(root, ignore="0").notes
    assert [note.partition(":")[0] for note in notes[2:5]] == ["class 1", "class 2", "class 3"]
    black = save_set(tmp_path / "grey", classes=2, draw=lambda mask: grey(mask * np.uint8(255)))
    (black / "colours.txt").write_text("0 0 0 ground\n128 128 128 soft\n255 255 255 thing\n")
    assert load(black, palette="colours.txt", ignore="255").info["classes"] == ["ground", "soft"]
    assert "every pixel of the masks is ignored" in check_data(black, classes=2, ignore="0,255").problems[0]


def test_soft_edges_are_no_classes(tmp_path):
    def draw(mask: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(mask * np.uint8(255)).resize((128, 96)).rotate(9).filter(ImageFilter.GaussianBlur(1))

    root = save_set(tmp_path, classes=2, numbers=range(3), draw=draw)
    for classes in (0, 2):
        line = refusal(root, classes=classes)
        assert "shades of grey: soft edges, which are no classes. Save the masks with two values" in line
    for number in range(3):
        photograph(number).convert("L").save(root / f"masks/img_{number:03d}.png")
    assert "these may be shades, or classes some of which do not occur. Give classes=" in refusal(root)
    grey(np.arange(WIDE * HIGH).reshape(HIGH, WIDE).astype(np.uint8)).save(root / "masks/img_000.png")
    assert "(many values: soft edges, or mattes?): classes are 0 to 253" in refusal(root)


def test_black_and_white_of_16_bits(tmp_path):
    root = save_set(tmp_path, classes=2, draw=lambda mask: Image.fromarray(mask * np.uint16(65535)))
    assert_read(load(root), 2)
    (root / "names.csv").write_text("name,value\nrock,0\nsalt,65535\n")
    assert_read(load(root, palette="names.csv"), 2)
    grey(labels(0, 2) * np.uint8(255)).save(root / "masks/img_000.png")
    assert_read(load(root), 2)


def test_numbers_that_look_like_shades(tmp_path):
    root = save_set(tmp_path, draw=lambda mask: grey(mask * np.uint8(85)))
    assert "the masks hold 3 values up to 170 (0, 85, 170): these may be shades" in refusal(root)
    assert load(root, classes=171).classes == 171
    shades = tmp_path / "shades.csv"
    shades.write_text("name,r,g,b\na,0,0,0\nb,85,85,85\nc,170,170,170\n")
    assert_read(load(root, palette=str(shades)))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ((0, 1, 300), "the masks hold 0, 1, 300: classes are 0 to 253"),
        ((0, -1, 1), "the masks hold -1, 0, 1: classes are 0 to 253"),
        ((0, 0, 0), "the masks hold only the value 0: there is nothing to learn"),
        ((255, 255, 255), "every mask is all white (255)"),
    ],
)
def test_values_that_are_no_classes(tmp_path, values, line):
    def draw(mask: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(np.array(values, np.int32)[mask])

    root = save_set(tmp_path, masks="masks/img_{}.tif", draw=draw)
    assert line in refusal(root)
    if line.startswith("the masks hold -1"):
        splits = load(root, classes=2, ignore="-1")
        assert set(np.unique(masks_of(splits)["img_000"])) == {0, 1, IGNORED}


def test_fractions_are_no_classes(tmp_path):
    root = save_set(tmp_path, masks="masks/img_{}.tif", draw=lambda mask: Image.fromarray(mask / np.float32(2)))
    assert "has values that are no whole numbers" in refusal(root)


def black_and_white(mask: NDArray[np.uint8]) -> Image.Image:
    return grey(mask * np.uint8(255))


def white_first(mask: NDArray[np.uint8]) -> Image.Image:
    return numbered(np.uint8(1) - mask, [(255, 255, 255), (0, 0, 0)])


def black_first(mask: NDArray[np.uint8]) -> Image.Image:
    return numbered(mask, [(0, 0, 0), (255, 255, 255)])


def as_rgb(mask: NDArray[np.uint8]) -> Image.Image:
    return black_and_white(mask).convert("RGB")


BINARY = {
    "0 and 1": grey,
    "0 and 255": black_and_white,
    "one bit": lambda mask: black_and_white(mask).convert("1"),
    "RGB": as_rgb,
    "black first": black_first,
    "white first": white_first,
}
NUMBERED = (black_first, white_first, as_rgb)
"""Those whose colours would have to be in the class file."""


@pytest.mark.parametrize("draw", BINARY.values(), ids=BINARY)
@pytest.mark.parametrize("classes", [0, 2])
def test_two_classes(tmp_path, draw, classes):
    splits = load(save_set(tmp_path, classes=2, draw=draw), classes=classes)
    assert_read(splits, 2)
    assert splits.classes == 2
    if draw is not grey:
        assert splits.info["classes"] == ["background", "foreground"]
        assert splits.info["notes"] == ["the masks are black and white: 0 is background, 255 is foreground"]
    names = tmp_path / "names.txt"
    for text in ("ground\nhorse\n", "9 9 9 ground\n200 0 0 horse\n")[: 1 if draw in NUMBERED else 2]:
        names.write_text(text)
        named = load(tmp_path, palette=str(names), classes=classes)
        assert_read(named, 2)  # 255 is not ignored because the classes have names
        assert named.info["classes"] == ["ground", "horse"]


def test_a_border_around_one_class(tmp_path):
    """255 is ignored where masks have 0 and 1 too; it is no object of the observed images."""

    def draw(mask: NDArray[np.uint8]) -> Image.Image:
        mask = mask.copy()
        mask[:, :2] = 255
        return grey(mask)

    root = save_set(tmp_path, classes=2, draw=draw)
    splits = load(root)
    assert splits.info["notes"] == ["the masks hold 0, 1, 255: 2 classes, 255 ignored"]
    assert set(np.unique(splits.train[0].mask)) == {0, 1, IGNORED}
    assert choose_observed(splits.test, 1).indices == (0,)
    for number in range(4):
        black_and_white(labels(number, 2)).save(root / f"masks/img_{number:03d}.png")
    for number in range(4, 8):
        grey(labels(number, 2)).save(root / f"masks/img_{number:03d}.png")
    assert "some masks hold 0 and 1, others 0 and 255" in refusal(root)


def test_palettes_that_contradict(tmp_path):
    padded = [(255, 255, 255), (0, 0, 0), (9, 9, 9)]
    root = save_set(tmp_path / "a", classes=2, draw=lambda mask: numbered(np.uint8(1) - mask, padded))
    assert "by a palette whose 0 is white" in refusal(root)
    root = save_set(tmp_path / "b", draw=numbered)
    numbered(labels(3), [COLORS[1], COLORS[0], COLORS[2]]).save(root / "masks/img_003.png")
    for options in ({}, {"classes": 3}):
        assert "have different palettes: 0 is (0, 128, 64) in the one and (128, 0, 0) in the other" in (
            refusal(root, **options)
        )
    assert load(root, palette=save_classes(tmp_path / "classes.txt")).classes == 3


def blobs(number: int, classes: int = 2) -> NDArray[np.uint8]:
    mask = np.zeros((HIGH * 4, WIDE * 4), np.uint8)
    mask[20:70, 30 + number : 90 + number] = 1
    return mask


def test_masks_in_lossy_files(tmp_path):
    root = save_set(tmp_path / "set", masks="masks/img_{}.jpg", classes=2, draw=black_and_white)
    for number in range(8):
        Image.fromarray(np.asarray(photograph(number).resize((WIDE * 4, HIGH * 4)))).save(
            root / f"images/img_{number:03d}.png"
        )
        Image.fromarray(blobs(number) * np.uint8(255)).save(root / f"masks/img_{number:03d}.jpg", quality=40)
    assert len(np.unique(np.asarray(Image.open(root / "masks/img_000.jpg")))) > 2
    for options in ({}, {"classes": 2}):
        splits = load(root, **options)
        assert any(
            "8 lossy masks read as black and white, with 128 and more as white" in n for n in splits.info["notes"]
        )
        for number in range(8):
            expected = np.asarray(Image.fromarray(blobs(number)).resize((32, 32), Image.Resampling.NEAREST))
            np.testing.assert_array_equal(masks_of(splits)[f"img_{number:03d}"], expected)
    assert "is compressed lossily, which keeps no classes" in refusal(root, classes=3)
    assert "is compressed lossily" in refusal(root, palette="voc")
    Image.fromarray(blobs(3) * np.uint8(20)).save(root / "masks/img_003.jpg", quality=40)
    assert "it is not black and white either: it has no white" in refusal(root)
    photograph(3).resize((WIDE * 4, HIGH * 4)).save(root / "masks/img_003.jpg", quality=90)
    assert "of its values are in 64-191" in refusal(root)


def test_image_and_mask_of_different_sizes(tmp_path):
    root = save_set(tmp_path)
    grey(labels(2)[:-2]).save(root / "masks/img_002.png")
    assert f"{root}/masks/img_002.png is 32x22, but {root}/images/img_002.png is 32x24. Put the mask" in (
        refusal(root, classes=3)
    )


def test_masks_of_another_size_but_the_same_shape(tmp_path):
    """As of Weizmann Horse, to within the pixel that rounding takes; a cut is another shape."""
    root = save_set(tmp_path)
    photograph(3).resize((251, 188)).save(root / "images/img_003.png")
    splits = load(root)
    assert_read(splits)
    assert (
        "masks of another size than their image, but of its shape: 1 (img_003.png 251x188, 32x24)"
        in (splits.info["notes"])
    )
    photograph(3).resize((251, 200)).save(root / "images/img_003.png")
    assert "img_003.png is 32x24, but" in refusal(root, classes=3)


def test_tags_that_leave_the_size_are_noted(tmp_path):
    root = save_set(tmp_path, "images/img_{}.jpg")
    exif = Image.Exif()
    exif[274] = 3
    photograph(2).save(root / "images/img_002.jpg", exif=exif)
    assert (
        load(root).info["notes"][0].startswith("images with an orientation tag, whose masks have none: 1 (img_002.jpg")
    )


def test_orientation_tags(tmp_path):
    root = save_set(tmp_path, "images/img_{}.jpg")
    exif = Image.Exif()
    exif[274] = 6
    photograph(2).save(root / "images/img_002.jpg", exif=exif)
    line = refusal(root, classes=3)
    assert "is 32x24, but" in line
    assert "The mask fits the image without its orientation tag" in line
    grey(labels(2)).transpose(Image.Transpose.ROTATE_270).save(root / "masks/img_002.png")
    checked = check_data(root, "folder", classes=3)
    assert checked.problems == ()
    assert "images rotated by their orientation tag: 1 of 8 (img_002.jpg)" in checked.notes


def test_unreadable_files(tmp_path):
    root = save_set(tmp_path)
    (root / "images/img_001.png").write_bytes(b"")
    (root / "masks/img_002.png").write_bytes((root / "masks/img_002.png").read_bytes()[:45])
    (root / "masks/img_003.png").write_text("not an image")
    problems = check_data(root, "folder", classes=3).problems
    assert len(problems) == 3
    for problem, told in zip(
        sorted(problems),
        ("img_001.png cannot be read: it is empty", "img_002.png cannot", "img_003.png cannot"),
        strict=True,
    ):
        assert told in problem
    assert "img_003.png cannot be read: it is not an image" in refusal(root, classes=3)


# --- splits and identity ---


def test_a_split_by_seed_keeps_copies_together(tmp_path):
    root = save_set(tmp_path, numbers=range(20))
    names = {seed: set(masks_of_part(load(root, split_seed=seed, classes=3).test)) for seed in range(4)}
    assert all(len(tested) == 3 for tested in names.values())
    assert len({frozenset(tested) for tested in names.values()}) > 1
    for number in (1, 2, 3):
        (root / f"images/img_{number:03d}.png").write_bytes((root / "images/img_000.png").read_bytes())
    copies = {f"img_{number:03d}" for number in range(4)}
    for seed in range(6):
        splits = load(root, split_seed=seed, classes=3)
        tested = set(masks_of_part(splits.test))
        assert tested & copies in (set(), copies)
        assert splits.train.count + splits.test.count == 20
    assert "copies of other images, on the same side of the split: 1 (img_001)" in splits.info["notes"]


def masks_of_part(part: object) -> list[str]:
    return [part[i].name for i in range(part.count)]  # type: ignore[index,attr-defined]


def test_the_fingerprint_is_of_the_files_and_of_the_classes(tmp_path, monkeypatch):
    root = save_set(tmp_path / "set", draw=coloured)
    palette = save_classes(tmp_path / "classes.txt")
    first = load(root, palette=palette).info
    assert first["fingerprint_of"] == "bytes"
    root.rename(tmp_path / "moved")
    moved = load(tmp_path / "moved", palette=palette).info
    assert {**moved, "folder": ""} == {**first, "folder": ""}
    assert load(tmp_path / "moved", palette=palette, split_seed=1).info["fingerprint"] != first["fingerprint"]
    path = tmp_path / "moved/masks/img_000.png"
    coloured(np.roll(labels(0), 1)).save(path)
    assert load(tmp_path / "moved", palette=palette).info["fingerprint"] != first["fingerprint"]
    monkeypatch.setattr("fadeviz.data.folder.dataset.HASHED_BYTES", 100)
    large = load(tmp_path / "moved", palette=palette).info
    assert large["fingerprint_of"] == "names and sizes"


# --- the check ---


def test_the_check_says_what_it_found(tmp_path):
    root = save_set(tmp_path / "set", "images/train/{}.png", "masks/train/{}.png", numbers=range(6))
    save_set(root, "images/test/{}.jpg", "masks/test/{}.png", numbers=range(6, 8))
    Image.open(root / "images/train/002.png").save(root / "images/test/000.tif")  # other bytes, the same pixels
    grey(np.full((HIGH, WIDE), 255, np.uint8)).save(root / "masks/test/000.png")
    grey(np.full((HIGH, WIDE), 2, np.uint8)).save(root / "masks/train/003.png")
    photograph(5).resize((64, 48)).save(root / "images/train/004.png")
    grey(labels(4).repeat(2, axis=0).repeat(2, axis=1)).save(root / "masks/train/004.png")
    checked = check_data(root)
    assert checked.problems == ()
    assert checked.notes[0] == "images: 9, sizes 32x24 (8), 64x48 (1)"
    assert "the masks hold 0, 1, 2, 255: 3 classes, 255 ignored" in checked.notes
    shares = [note for note in checked.notes if note.startswith("class ")]
    assert len(shares) == 3
    assert shares[2].startswith("class 2: ")
    assert shares[2].endswith("% of the pixels, in 8 of 9 images")
    assert "ignored 255: 8.33% of all pixels, in 1 of 9 images" in checked.notes
    assert "masks with one class alone: 1 (003.png)" in checked.notes
    assert "masks that are ignored altogether: 1 (000.png)" in checked.notes
    assert "images to train on that are tested on too: 1 (002.png = 000.tif)" in checked.notes
    assert str(checked) == f"{root}: folder, images: 9, to train on 6, to test on 3"
    output = CliRunner().invoke(main, ["data", "check", str(root)])
    assert output.exit_code == 0
    assert "note: images: 9, sizes 32x24 (8), 64x48 (1)\n" in output.output


def test_what_is_tested_and_not_trained_is_said(tmp_path):
    root = save_set(tmp_path, "images/train/{}.png", "masks/train/{}.png", numbers=range(4))
    save_set(root, "images/test/{}.png", "masks/test/{}.png", numbers=range(3, 6), classes=4)
    assert "test images whose files are among those to train on: 1 (003)" in load(root).info["notes"]
    assert "classes that are tested on, but in no image to train on: 1 (class 3)" in check_data(root).notes


def test_the_check_lists_all_problems(tmp_path):
    root = save_set(tmp_path)
    (root / "masks/img_000.png").unlink()
    (root / "images/img_001.png").write_bytes(b"")
    grey(labels(2)[:4]).save(root / "masks/img_002.png")
    grey(labels(3, 8)).save(root / "masks/img_003.png")
    result = CliRunner().invoke(main, ["data", "check", str(root), "--data", "folder", "--classes", "3"])
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 5
    assert "without a mask: images/img_000.png" in lines[0]
    assert "img_001.png cannot be read: it is empty" in lines[1]
    assert "img_002.png is 32x4, but" in lines[2]
    assert "no class: 3 in" in lines[3]
    assert "Use --classes 8, or correct the mask" in lines[3]
    assert lines[4] == f"Error: {root}: 4 problems"


def test_other_sets_are_known_as_before(tmp_path):
    for names, data in (
        (("images", "annotations"), "ade20k"),
        (("horse", "mask"), "weizmann"),
        (("rgb", "figure_ground"), "weizmann"),
        (("input", "gt"), "mattes"),
    ):
        root = save_set(tmp_path / data / names[0], f"{names[0]}/{{}}.png", f"{names[1]}/{{}}.png")
        assert check_data(root).data == data
        assert check_data(root, "folder").data == "folder"


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"data": "folder"}, "data folder needs its folder: data_dir=DIR"),
        ({"data": "folder", "network": "matting", "data_dir": "x"}, "data folder is for segmentation"),
        ({"classes": 3}, "classes is 3, but data synthetic has masks of a known form. Leave out classes=..."),
        ({"data": "ade20k", "data_dir": "x", "palette": "voc"}, "palette is voc, but data ade20k has masks"),
        ({"data": "weizmann", "data_dir": "x", "ignore": 255}, "ignore is 255, but data weizmann"),
        ({"masks_dir": "x"}, "masks_dir is x, but data synthetic"),
        ({"data": "folder", "data_dir": "x", "classes": 1}, "classes is 1; it must be from 2 to 254"),
        ({"data": "folder", "data_dir": "x", "classes": 255}, "classes is 255; it must be from 2 to 254"),
        ({"data": "folder", "data_dir": "x", "classes": -2}, "classes is -2; it must be"),
        ({"data": "folder", "data_dir": "x", "ignore": 2.5}, "ignore is 2.5; it must be a string"),
        ({"data": "folder", "data_dir": "x", "subset": 5}, "this set is only used whole"),
    ],
)
def test_settings_that_do_not_fit(settings, line):
    with pytest.raises(FadevizError) as refused:
        RunConfig(**settings)
    assert line in str(refused.value)


def test_settings_are_left_out_of_other_runs():
    plain = RunConfig()
    names = {"masks_dir", "palette", "classes", "ignore"}
    stored = {name: value for name, value in settings_of(plain).items() if name not in names}
    assert differing_settings(stored, plain) == ""
    assert run_id(plain, {"name": "synthetic"}, "none", "cpu") == "621b0ea8cdde"
    own = RunConfig(data="folder", data_dir="x", ignore=255)
    assert own.ignore == "255"
    moved = dataclasses.replace(own, data_dir="y", masks_dir="z", palette="p")
    assert differing_settings(settings_of(own), moved) == ""
    assert run_id(own, {}, "none", "cpu") == run_id(moved, {}, "none", "cpu")
    assert run_id(own, {}, "none", "cpu") != run_id(dataclasses.replace(own, classes=5), {}, "none", "cpu")


def test_options_of_the_command_line(tmp_path):
    config = RunConfig(data="folder", data_dir="x", masks_dir="y", palette="p.txt", classes=5, ignore="255,void")
    arguments = record_arguments(config, tmp_path)
    assert arguments[arguments.index("--masks-dir") :] == [
        *("--masks-dir", "y", "--palette", "p.txt", "--classes", "5", "--ignore", "255,void")
    ]
    result = CliRunner().invoke(main, ["record", "--classes", "1", "--data", "folder", "--data-dir", "x", "--out", "y"])
    assert result.exit_code == 1
    assert "Error: classes is 1; it must be from 2 to 254" in result.output


# --- training ---


def scenes(root: Path, classes: int, draw: Callable[[NDArray[np.uint8]], Image.Image], count: int = 8) -> Path:
    """Images whose colours show the classes, with one object each."""
    random = np.random.default_rng(0)
    for number in range(count):
        mask = np.zeros((48, 64), np.uint8)
        mask[10:34, 12 + number : 44 + number] = 1 + number % (classes - 1)
        mask[44:, ::2] = np.arange(32) % classes
        image = np.clip(mask[..., None] * np.array([11, 5, 8]) + random.integers(0, 40, (48, 64, 3)), 0, 255)
        for folder, saved in (("images", Image.fromarray(image.astype(np.uint8))), ("masks", draw(mask))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            saved.save(root / folder / f"{number:03d}.png")
    return root


@pytest.mark.parametrize(("network", "classes"), [("unet", 2), ("segnet", 11)])
def test_networks_train_on_it(tmp_path, network, classes):
    colors = [(3 * label, 255 - label, 7 * label) for label in range(classes)]
    root = scenes(tmp_path / "camera", classes, lambda mask: Image.fromarray(np.array(colors, np.uint8)[mask]))
    palette = tmp_path / "classes.csv"
    palette.write_text("\n".join(f"thing {i},{r},{g},{b}" for i, (r, g, b) in enumerate(colors)))
    config = RunConfig(
        upsampler="nearest", network=network, data="folder", data_dir=str(root), palette=str(palette),
        size=32, width=0.125, steps=2, batch_size=2, kinds="feature", device="cpu", snapshots="0:2:2",
    )  # fmt: skip
    run = fadeviz.train(config, tmp_path / "run")
    assert run.info.classes == classes
    assert run.info.data.classes[1] == "thing 1"
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored["data"]["colors"] == [list(color) for color in colors]
    assert data_name(run) == "camera"
    if classes > 2:
        labelled = run.observation[1]
        chosen = stored["observation"]["foreground"]
        assert len(chosen) == len(labelled)
        assert all(0 < label < classes and (mask == label).any() for label, mask in zip(chosen, labelled, strict=True))
        assert f"(thing {chosen[0]})" in str(run.summary())
    assert run.info.result["miou"] > 0
    again = fadeviz.train(config, tmp_path / "run", resume=True)
    assert again.run_id == run.run_id
    predicted = fadeviz.predict(run, root / "images", tmp_path / "masks", device="cpu")
    assert not [one.error for one in predicted if one.error]
    with Image.open(predicted[0].output) as opened:
        assert opened.size == (64, 48)


def test_checkpoints_are_observed_on_it(tmp_path):
    root = scenes(tmp_path / "set", 4, grey)
    config = RunConfig(
        upsampler="nearest", network="unet", data="folder", data_dir=str(root), size=32, width=0.125, steps=1,
        kinds="feature", device="cpu", ignore="0", classes=3,
    )  # fmt: skip
    run = fadeviz.train(config, tmp_path / "run")
    result = CliRunner().invoke(main, [
        "record-checkpoints", str(tmp_path / "run" / "checkpoints" / "last.pt"), "--steps", "1", "--network", "unet",
        "--upsampler", "nearest", "--width", "0.125", "--size", "32", "--device", "cpu", "--data", "folder",
        "--data-dir", str(root), "--ignore", "0", "--classes", "3", "--kinds", "feature",
        "--out", str(tmp_path / "again"),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    again = fadeviz.open_run(tmp_path / "again")
    assert again.info.data.classes == ("class 1", "class 2", "class 3")
    assert again.info.config["ignore"] == "0"
    layer = next(iter(run.layers))
    np.testing.assert_array_equal(again.read(1, layer, "feature"), run.read(1, layer, "feature"))


def test_ignored_pixels_are_no_object(tmp_path):
    def draw(mask: NDArray[np.uint8]) -> Image.Image:
        mask = np.minimum(mask, 1)
        mask[:8] = 255
        return grey(mask)

    root = scenes(tmp_path / "set", 2, draw)
    config = RunConfig(
        upsampler="nearest", network="unet", data="folder", data_dir=str(root), size=32, width=0.125, steps=1,
        kinds="feature", device="cpu", ignore=255,
    )  # fmt: skip
    run = fadeviz.train(config, tmp_path / "run")
    assert run.info.observation.foreground == (1,)
    assert not run.foregrounds[run.observation[1] == IGNORED].any()
    assert run.foregrounds.any()


@pytest.mark.slow
def test_a_transformer_trains_on_21_classes(tmp_path):
    pytest.importorskip("transformers")
    colors = [*read_classes("voc").colors, *[(0, 0, 0)] * 234, (224, 224, 192)]
    root = scenes(tmp_path / "set", 21, lambda mask: numbered(mask, colors), count=42)
    config = RunConfig(
        upsampler="nearest", network="segformer:backbone=b0", data="folder", data_dir=str(root), palette="voc",
        size=32, steps=2, batch_size=2, kinds="feature", device="cpu",
    )  # fmt: skip
    run = fadeviz.train(config, tmp_path / "run")
    assert (run.info.classes, run.info.data.classes) == (21, VOC_NAMES)
