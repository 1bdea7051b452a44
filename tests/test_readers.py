"""One rule for all that reads images: what a viewer shows is what is read, or the file is refused, or told.

The table of readers at the top has every data set in every layout, and images of one's own; a rule is one test.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fadeviz import FadevizError
from fadeviz.data import Sample, images
from fadeviz.data.ade20k import class_names, read_ade20k
from fadeviz.data.matting.dataset import MatteImages, load_matting
from fadeviz.data.matting.files import find_mattes, read_layers
from fadeviz.data.sets import check_data, describe_data
from fadeviz.data.weizmann_horse import read_weizmann
from fadeviz.prediction.predictor import find_trimap, list_images, read_image

HIGH, WIDE = 24, 40
EXIF = 274


class Reader(NamedTuple):
    """Where a layout has its files, and how the first sample is read from it.

    Attributes:
        image: folder of the images; where the masks share it, the names differ.
        mask: folder of the masks.
        ending: of the image files.
        data: what ``fadeviz data check`` calls the set; empty where it does not know it.
        read: the first sample of a folder.
        masks: the values that a mask file has for the ground and for the object.
    """

    image: str
    mask: str
    ending: str
    data: str
    read: Callable[[Path], Sample]
    masks: tuple[int, int] = (0, 255)
    suffix: str = ""
    others: tuple[tuple[str, str], ...] = ()


def read_first_horse(folder: Path) -> Sample:
    dataset = read_weizmann(folder, (HIGH, WIDE))
    return dataset[0]


def read_first_scene(folder: Path) -> Sample:
    return read_ade20k(folder)[0][0]


def read_first_matte(folder: Path) -> Sample:
    """The first whole image of a matting set that is large enough to train on."""
    found = find_mattes(folder, 0, "", "")
    if found.problems:
        raise FadevizError(found.problems[0])
    return MatteImages(sorted([*found.train, *found.test], key=lambda files: files.name))[0]


def read_first_layers(folder: Path) -> Sample:
    """Foreground and matte of Composition-1K's first training image."""
    found = find_mattes(folder, 0, "", "")
    if found.problems:
        raise FadevizError(found.problems[0])
    layers = read_layers(found.train[0], True)
    return Sample(found.train[0].name, layers.foreground, (layers.matte >= 128).astype(np.uint8))


def read_own(folder: Path) -> Sample:
    """An image of one's own; its trimap stands for the mask."""
    (path,) = list_images([folder])
    sample = read_image(path, find_trimap(path))
    assert sample.trimap is not None
    return sample._replace(mask=(sample.trimap == 255).astype(np.uint8))


READERS = {
    "weizmann, png": Reader("horse", "mask", ".png", "weizmann", read_first_horse),
    "weizmann, 0 and 1": Reader("horse", "mask", ".png", "weizmann", read_first_horse, (0, 1)),
    "weizmann, original": Reader("rgb", "figure_ground", ".bmp", "weizmann", read_first_horse),
    "ade20k": Reader("images", "annotations", ".jpg", "ade20k", read_first_scene, (1, 2)),
    "alphamatting": Reader("input", "gt", ".png", "mattes", read_first_matte, others=(("trimap1", ""),)),
    "single mattes": Reader(".", ".", ".png", "mattes", read_first_matte, suffix="_alpha", others=((".", "_trimap"),)),
    "composition-1k": Reader("Training_set/fg", "Training_set/alpha", ".png", "mattes", read_first_layers),
    "one's own": Reader(".", ".", ".png", "", read_own, suffix="_trimap"),
}
everywhere = pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
in_sets = pytest.mark.parametrize(
    "reader", [r for r in READERS.values() if r.data], ids=[n for n in READERS if READERS[n].data]
)


def scene() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """An image and an object that no turn or mirror leaves as they are, with a border to be unknown."""
    image = np.random.default_rng(0).integers(20, 255, (HIGH, WIDE, 3), np.uint8)
    inside = np.zeros((HIGH, WIDE), np.bool_)
    inside[4:14, 6:18] = True
    inside[4:20, 6:10] = True
    return image, inside


def values_of(reader: Reader, inside: NDArray[np.bool_], trimap: bool = False) -> Image.Image:
    """A mask file's pixels, or a trimap's, whose unknown is one column."""
    ground, thing = (0, 255) if trimap else reader.masks
    values = np.where(inside, thing, ground).astype(np.uint8)
    if trimap or reader.suffix == "_trimap":
        values[:, -1] = 128
    return Image.fromarray(values)


def save_set(
    folder: Path,
    reader: Reader,
    image: Image.Image,
    mask: Image.Image,
    *,
    name: str = "horse",
    mask_name: str = "",
    turned: Callable[[Image.Image], Image.Image] = lambda opened: opened,
    **options: object,
) -> tuple[Path, Path]:
    """One image in the layout of a reader; ``turned`` and ``options`` are for the files beside image and mask too."""
    _, inside = scene()
    image_file = folder / reader.image / f"{name}{reader.ending}"
    mask_file = folder / reader.mask / f"{mask_name or name}{reader.suffix}.png"
    for path in (image_file, mask_file):
        path.parent.mkdir(parents=True, exist_ok=True)
    save(image, image_file, **options)
    save(mask, mask_file, **options)
    for place, suffix in reader.others:
        (folder / place).mkdir(parents=True, exist_ok=True)
        save(turned(values_of(reader, inside, trimap=True)), folder / place / f"{name}{suffix}.png", **options)
    if reader.data == "weizmann":  # which is split, and so has two at least
        second = np.random.default_rng(1).integers(20, 255, (HIGH, WIDE, 3), np.uint8)
        Image.fromarray(second).save(image_file.with_name("\u99ac.png"))
        values_of(reader, inside).save(mask_file.with_name("\u99ac.png"))
    if reader.image.startswith("Training_set"):
        for place in ("merged", "alpha", "trimaps"):
            (folder / "Test_set" / place).mkdir(parents=True, exist_ok=True)
        plain_image, plain = Image.fromarray(scene()[0]), values_of(reader, inside)
        plain_image.save(folder / "Test_set/merged/a.png")
        plain.save(folder / "Test_set/alpha/a.png")
        values_of(reader, inside, trimap=True).save(folder / "Test_set/trimaps/a.png")
        (folder / "Training_set/bg").mkdir(exist_ok=True)
        plain_image.save(folder / "Training_set/bg/b.png")
    return image_file, mask_file


def save(picture: Image.Image, path: Path, **options: object) -> None:
    """Without loss, whatever the ending says: files are told by their first bytes."""
    picture.save(path, "PNG", **options)


def plain_set(folder: Path, reader: Reader, **options: object) -> tuple[Path, Path]:
    image, inside = scene()
    return save_set(folder, reader, Image.fromarray(image), values_of(reader, inside), **options)  # type: ignore[arg-type]


def check_read(reader: Reader, folder: Path) -> None:
    """The sample is the scene as it is shown."""
    image, inside = scene()
    sample = reader.read(folder)
    np.testing.assert_array_equal(sample.image, image)
    np.testing.assert_array_equal(sample.mask == 1, inside)


def refusal(reader: Reader, folder: Path) -> str:
    """The one line that a set is refused with; the check of the set says it too, and does not hang."""
    with pytest.raises(FadevizError) as caught:
        reader.read(folder)
    assert "\n" not in str(caught.value)
    if reader.data:
        problems = check_data(folder, reader.data).problems
        assert str(caught.value).split(" (and ")[0] in problems
    return str(caught.value)


# --- orientation ---


@everywhere
@pytest.mark.parametrize("tag", range(1, 9))
def test_orientation_tags_are_applied_to_image_and_mask(tmp_path: Path, reader: Reader, tag: int) -> None:
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(tag, tag)

    def stored(shown: Image.Image) -> Image.Image:
        other = shown.copy()
        other.getexif()[EXIF] = undo
        return ImageOps.exif_transpose(other)

    exif = Image.Exif()
    exif[EXIF] = tag
    image, inside = scene()
    image_file, mask_file = save_set(
        tmp_path, reader, stored(Image.fromarray(image)), stored(values_of(reader, inside)), turned=stored, exif=exif
    )
    with Image.open(image_file) as opened:  # what any viewer shows
        assert (np.asarray(ImageOps.exif_transpose(opened)) == image).all()
    check_read(reader, tmp_path)
    if reader.data:
        lines = "\n".join(describe_data(tmp_path, reader.data))
        assert ("rotated by their orientation tag: 1 of" in lines) == (tag != 1)
        assert not check_data(tmp_path, reader.data).problems
    # A mask without the tag was drawn over what is shown.
    save(values_of(reader, inside), mask_file)
    check_read(reader, tmp_path)


@everywhere
def test_a_mask_that_was_drawn_over_the_stored_pixels_is_refused(tmp_path: Path, reader: Reader) -> None:
    image, inside = scene()
    exif = Image.Exif()
    exif[EXIF] = 6
    image_file, _ = save_set(tmp_path, reader, Image.fromarray(image), values_of(reader, inside))
    save(Image.fromarray(image), image_file, exif=exif)
    assert f"{HIGH}x{WIDE}" in refusal(reader, tmp_path)


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "WEBP", "PNG"])
def test_orientation_tags_in_every_format(tmp_path: Path, form: str) -> None:
    exif = Image.Exif()
    exif[EXIF] = 6
    half = np.zeros((16, 32, 3), np.uint8)
    half[:, :16] = 255
    Image.fromarray(half).save(tmp_path / "a.png", form, exif=exif)
    read = read_image(tmp_path / "a.png").image
    assert read.shape == (32, 16, 3)
    assert read[:12].min() > 200
    assert read[-12:].max() < 50


def test_a_tag_that_cannot_be_read_costs_nothing(tmp_path: Path) -> None:
    image, _ = scene()
    for number, exif in enumerate([b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"]):
        Image.fromarray(image).save(tmp_path / f"{number}.png", exif=exif)
        np.testing.assert_array_equal(read_image(tmp_path / f"{number}.png").image, image)
    odd = Image.Exif()
    odd[EXIF] = 99
    Image.fromarray(image).save(tmp_path / "odd.png", exif=odd)
    np.testing.assert_array_equal(read_image(tmp_path / "odd.png").image, image)


# --- names ---


@everywhere
@pytest.mark.parametrize(("first", "second"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_match_however_their_accents_are_written(tmp_path: Path, reader: Reader, first: str, second: str) -> None:
    names = [unicodedata.normalize(form, "cheval été ñ Å 각") for form in (first, second)]  # type: ignore[arg-type]
    plain_set(tmp_path, reader, name=names[0], mask_name=names[1])
    check_read(reader, tmp_path)
    # The name is as it is on the disk: splits and stored runs keep theirs.
    assert reader.read(tmp_path).name == names[reader.suffix == "_alpha"]


@everywhere
@pytest.mark.parametrize("ending", [".JPG", ".PNG", ".Jpeg", ".TIF", ".tiff", ".BMP", ".WebP"])
def test_endings_in_either_case(tmp_path: Path, reader: Reader, ending: str) -> None:
    image_file, mask_file = plain_set(tmp_path, reader)
    image_file.rename(image_file.with_suffix(ending))
    mask_file.rename(mask_file.with_suffix(".PNG" if reader.data == "ade20k" else ending))
    if reader.data == "ade20k" and ending.lower() not in (".jpg", ".jpeg"):  # by the set's definition
        assert "has no images (.jpg)" in refusal(reader, tmp_path)
    else:
        check_read(reader, tmp_path)


@in_sets
@pytest.mark.parametrize("which", ["image", "mask"])
@pytest.mark.parametrize("how", ["ending", "accent"])
def test_two_files_of_one_name_are_refused(tmp_path: Path, reader: Reader, which: str, how: str) -> None:
    files = plain_set(tmp_path, reader, name=unicodedata.normalize("NFC", "é"))
    path = files[which == "mask"]
    other = ".jpeg" if which == "image" or reader.data != "ade20k" else ".PNG"
    stem = unicodedata.normalize("NFD", path.stem) if how == "accent" else path.stem
    twin = path.with_name(stem + (path.suffix if how == "accent" else other))
    if twin.exists():
        pytest.skip("this file system takes both for one name")
    twin.write_bytes(path.read_bytes())
    assert "has the same name as" in refusal(reader, tmp_path)


# --- not an image ---


@everywhere
def test_what_is_no_image_is_left_out_and_told(tmp_path: Path, reader: Reader) -> None:
    image_file, mask_file = plain_set(tmp_path, reader)
    for folder in {image_file.parent, mask_file.parent}:
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", f"._{image_file.name}", f"._{mask_file.name}", "x.txt"):
            (folder / name).write_bytes(b"\0\5\x16\7")
        (folder / "a.png").mkdir()
        (folder / "more").mkdir()
    check_read(reader, tmp_path)
    if reader.data:
        result = CliRunner().invoke(main, ["data", "check", str(tmp_path), "--data", reader.data])
        assert result.exit_code == 0, result.output
        assert "that are not images (" in result.stdout
        assert ".DS_Store" in result.stdout


@everywhere
@pytest.mark.parametrize("which", ["image", "mask"])
@pytest.mark.parametrize("what", ["link to nothing", "link to itself", "pipe", "device", "empty"])
@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices of a POSIX system")
def test_what_cannot_be_an_image_is_refused_and_waited_for_by_nobody(
    tmp_path: Path, reader: Reader, which: str, what: str
) -> None:
    path = plain_set(tmp_path, reader)[which == "mask"]
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "empty":
        path.write_bytes(b"")
    else:
        path.symlink_to({"device": "/dev/zero", "link to nothing": "nowhere", "link to itself": path.name}[what])
    told = refusal(reader, tmp_path)
    assert path.stem in told or "no " in told


@everywhere
@pytest.mark.skipif(sys.platform == "win32", reason="links of a POSIX system")
def test_links_to_images_and_their_folders_are_followed(tmp_path: Path, reader: Reader) -> None:
    (tmp_path / "set").mkdir()
    for path in plain_set(tmp_path / "set", reader):
        elsewhere = tmp_path / f"real {path.parent.name} {path.name}"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
    check_read(reader, tmp_path / "set")
    (tmp_path / "link").symlink_to("set")
    check_read(reader, tmp_path / "link")


@in_sets
def test_names_that_a_terminal_would_obey_are_written_out(tmp_path: Path, reader: Reader) -> None:
    folder = tmp_path / "a\x1b[2Jb"
    image_file, mask_file = plain_set(folder, reader, name="c\x1b[2J\nd")
    (image_file.parent / "e\x1b[2J").write_bytes(b"")
    check_read(reader, folder)
    results = [CliRunner().invoke(main, ["data", "check", str(folder), "--data", reader.data])]
    mask_file.unlink()
    results.append(CliRunner().invoke(main, ["data", "check", str(folder), "--data", reader.data]))
    assert [result.exit_code for result in results] == [0, 1]
    for result in results:
        assert "\\x1b" in result.output
        assert "\x1b" not in result.output


@everywhere
def test_a_folder_in_place_of_a_mask_is_no_mask(tmp_path: Path, reader: Reader) -> None:
    _, mask_file = plain_set(tmp_path, reader)
    mask_file.unlink()
    mask_file.mkdir()
    assert re.search("not a matting folder|no |it is a folder", refusal(reader, tmp_path))


def test_a_file_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FadevizError, match=r"has 1,099,511,627,776 bytes, but at most 536,870,912 are read"):
        images.open_image(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a POSIX system's device")
def test_lists_of_names_are_regular_files(tmp_path: Path) -> None:
    reader = READERS["composition-1k"]
    plain_set(tmp_path, reader)
    (tmp_path / "Test_set/merged").rename(tmp_path / "Test_set/fg")
    for name in ("test_fg_names.txt", "test_bg_names.txt"):
        (tmp_path / "Test_set" / name).symlink_to("/dev/zero")
    with pytest.raises(FadevizError, match=r"test_fg_names.txt cannot be read: it is a device"):
        load_matting(tmp_path, 32)
    (tmp_path / "Training_set/training_bg_names.txt").symlink_to("nowhere")
    with pytest.raises(FadevizError, match=r"training_bg_names.txt cannot be read: No such file"):
        load_matting(tmp_path, 32)
    plain_set(tmp_path / "ade", READERS["ade20k"])
    for target, told in (("/dev/zero", "it is a device"), ("nowhere", "No such file")):
        names = tmp_path / "ade" / "objectInfo150.txt"
        names.unlink(missing_ok=True)
        names.symlink_to(target)
        with pytest.raises(FadevizError, match=rf"objectInfo150.txt cannot be read: {told}"):
            class_names(tmp_path / "ade")


def test_files_that_belong_to_nothing_are_told(tmp_path: Path) -> None:
    for name, lone, told in (
        ("alphamatting", "gt/a.png", "mattes without an image in gt/ are ignored: 1 (a)"),
        ("single mattes", "a.png", "files without a matte are ignored: 1 (a)"),
        ("single mattes", "a_trimap.png", "files without a matte are ignored: 1 (a_trimap)"),
        (
            "composition-1k",
            "Training_set/alpha/a.png",
            "mattes without a foreground in Training_set/alpha/ are ignored",
        ),
        ("weizmann, png", "mask/a.png", "masks without an image in mask/ are ignored: 1 (a)"),
        ("ade20k", "annotations/a.png", "annotations without an image in annotations/ are ignored: 1 (a)"),
    ):
        reader, folder = READERS[name], tmp_path / lone.replace("/", " ")
        _, mask_file = plain_set(folder, reader)
        (folder / lone).write_bytes(mask_file.read_bytes())
        result = CliRunner().invoke(main, ["data", "check", str(folder), "--data", reader.data])
        assert result.exit_code == 0, result.output
        assert f"note: {told}" in result.stdout


def test_gray_twins_of_a_black_image_are_refused(tmp_path: Path) -> None:
    reader = READERS["weizmann, original"]
    image_file, _ = plain_set(tmp_path, reader)
    gray = tmp_path / "gray"
    gray.mkdir()
    for ending in (".png", ".bmp"):
        (gray / f"horse{ending}").write_bytes(image_file.read_bytes())
    check_read(reader, tmp_path)  # nobody asks which of the two
    save(Image.new("RGB", (WIDE, HIGH)), image_file)
    assert "has the same name as" in refusal(reader, tmp_path)


# --- transparency and palettes ---


@everywhere
@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_parts_of_an_image_lie_over_white(tmp_path: Path, reader: Reader, mode: str) -> None:
    image, inside = scene()
    picture = Image.fromarray(image)
    options: dict[str, object] = {}
    if mode == "RGBA":
        alpha = np.where(inside, 255, np.arange(WIDE) * 6).astype(np.uint8)
        picture.putalpha(Image.fromarray(alpha))
        share = alpha[..., None] / 255
        expected = image * share + 255 * (1 - share)
    else:
        picture = picture.quantize(7)
        expected = np.asarray(picture.convert("RGB")).astype(float)
        expected[np.asarray(picture) == 0] = 255
        options = {"transparency": 0}
        image = np.asarray(picture.convert("RGB"))
    image_file, _ = plain_set(tmp_path, reader)
    save(picture, image_file, **options)
    if reader.image.endswith("fg"):
        # A foreground's colours are those behind its matte.
        expected = image.astype(float)
    np.testing.assert_allclose(reader.read(tmp_path).image, expected, atol=1)
    if reader.data:
        assert any("with transparency: 1 of" in line for line in describe_data(tmp_path, reader.data))


BLACK_AND_WHITE = [r for r in READERS.values() if r.masks == (0, 255)]
black_and_white = pytest.mark.parametrize(
    "reader", BLACK_AND_WHITE, ids=[n for n in READERS if READERS[n] in BLACK_AND_WHITE]
)


@black_and_white
@pytest.mark.parametrize(
    "stored",
    [
        "RGB",
        "RGBA",
        "LA",
        "black first",
        "white first",
        "far indices",
        "transparent black",
        "CMYK",
        "PA",
        "grey palette",
    ],
)
def test_masks_are_what_they_show(tmp_path: Path, reader: Reader, stored: str) -> None:
    _, inside = scene()
    image_file, mask_file = plain_set(tmp_path, reader)
    grey = values_of(reader, inside)
    values = np.asarray(grey)
    if stored in ("CMYK", "PA"):  # which a PNG cannot be
        other = grey.convert("CMYK") if stored == "CMYK" else grey.convert("RGB").quantize(3).convert("PA")
        other.save(mask_file.with_suffix(".tif"))
        mask_file.unlink()
    elif stored in ("RGB", "RGBA", "LA"):
        save(grey.convert(stored), mask_file)
    else:
        levels = {"black first": [0, 128, 255], "white first": [255, 128, 0]}.get(stored, list(range(256)))
        if stored == "far indices":
            levels = [7, 7, 255, 128, 90, 0]
        indices = np.zeros_like(values)
        for value in (0, 128, 255):
            indices[values == value] = levels.index(value)
        picture = Image.frombytes("P", (WIDE, HIGH), indices.tobytes())
        picture.putpalette([level for level in levels for _ in range(3)])
        options = {"transparency": levels.index(0)} if stored == "transparent black" else {}
        save(picture, mask_file, **options)
        if reader.data:
            described = describe_data(tmp_path, reader.data)
            assert any("with a palette, read by its colours: 1 of" in line for line in described)
    check_read(reader, tmp_path)
    assert image_file.exists()


@black_and_white
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_masks_whose_transparency_says_something_else_are_refused(tmp_path: Path, reader: Reader, mode: str) -> None:
    _, inside = scene()
    _, mask_file = plain_set(tmp_path, reader)
    mask = values_of(reader, inside).convert(mode)
    mask.putalpha(Image.fromarray(np.where(np.arange(WIDE) < 9, 0, 255).astype(np.uint8)[None].repeat(HIGH, 0)))
    save(mask, mask_file)
    assert "whose transparent parts are not black, which is ambiguous" in refusal(reader, tmp_path)


class TestMasksOfHorses:
    """Two classes: what tells them apart."""

    def read(self, folder: Path, mask: Image.Image, name: str = "horse.png", **options: object) -> NDArray[np.uint8]:
        _, mask_file = plain_set(folder, READERS["weizmann, png"])
        mask_file.unlink()
        mask.save(mask_file.with_name(name), **options)  # type: ignore[arg-type]
        return read_first_horse(folder).mask

    def indexed(self, inside: NDArray[np.bool_], colours: list[tuple[int, int, int]], thing: int) -> Image.Image:
        """A mask whose object has the index ``thing`` of two."""
        indices = np.where(inside, thing, 1 - thing).astype(np.uint8)
        picture = Image.frombytes("P", (WIDE, HIGH), indices.tobytes())
        picture.putpalette([channel for colour in colours for channel in colour])
        return picture

    @pytest.mark.parametrize(
        ("colours", "thing"),
        [
            ([(0, 0, 0), (128, 0, 0)], 1),  # Pascal VOC's
            ([(128, 0, 0), (0, 0, 0)], 0),  # the same, as a tool numbered it anew
            ([(0, 0, 0), (255, 255, 255)], 1),
            ([(255, 255, 255), (0, 0, 0)], 0),
            ([(240, 240, 240), (20, 20, 20)], 0),
            ([(0, 0, 255), (255, 255, 0)], 1),
            ([(90, 90, 90), (10, 200, 30)], 1),
        ],
    )
    def test_palettes(self, tmp_path: Path, colours: list[tuple[int, int, int]], thing: int) -> None:
        _, inside = scene()
        np.testing.assert_array_equal(self.read(tmp_path, self.indexed(inside, colours, thing)), inside)

    @pytest.mark.parametrize(
        ("colours", "message"),
        [
            ([(255, 255, 0), (0, 0, 255)], "it is ambiguous which of them is the horse"),
            ([(255, 255, 255), (200, 30, 30)], "it is ambiguous which of them is the horse"),
            ([(1, 1, 1), (0, 0, 0)], "it is ambiguous which of them is the horse"),
            ([(9, 9, 9), (9, 9, 9)], "has only one colour"),
        ],
    )
    def test_palettes_that_say_nothing_are_refused(
        self, tmp_path: Path, colours: list[tuple[int, int, int]], message: str
    ) -> None:
        _, inside = scene()
        with pytest.raises(FadevizError, match=message):
            self.read(tmp_path, self.indexed(inside, colours, 1))

    def test_a_third_colour_is_refused(self, tmp_path: Path) -> None:
        _, inside = scene()
        values = np.where(inside, 255, 0).astype(np.uint8)
        values[0, 0] = 128
        with pytest.raises(FadevizError, match="has 3 colours"):
            self.read(tmp_path, Image.fromarray(values).convert("RGB").quantize(8))

    @pytest.mark.parametrize("quantize", range(3))
    def test_tools_that_choose_the_order(self, tmp_path: Path, quantize: int) -> None:
        _, inside = scene()
        mask = Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).convert("RGB")
        np.testing.assert_array_equal(self.read(tmp_path, mask.quantize(2, method=quantize)), inside)

    @pytest.mark.parametrize("kind", ["1", "1, tiff", "16 bit", "16 bit, 1", "32 bit", "float", "float, 255"])
    def test_depths(self, tmp_path: Path, kind: str) -> None:
        _, inside = scene()
        numbers = inside.astype(np.uint16)
        mask, name = {
            "1": (Image.fromarray(inside), "horse.png"),
            "1, tiff": (Image.fromarray(inside), "horse.tif"),
            "16 bit": (Image.fromarray(numbers * 65535), "horse.png"),
            "16 bit, 1": (Image.fromarray(numbers), "horse.png"),
            "32 bit": (Image.fromarray(numbers.astype(np.int32) * 255), "horse.tif"),
            "float": (Image.fromarray(numbers.astype(np.float32)), "horse.tif"),
            "float, 255": (Image.fromarray(numbers.astype(np.float32) * 255), "horse.tif"),
        }[kind]
        np.testing.assert_array_equal(self.read(tmp_path, mask, name), inside)

    @pytest.mark.parametrize(
        "values",
        [[0, 1, 255], [0, 1, -1], [0, 1, -100], [0, 2], [0, 256], [-1, 0], [0, 65535, 255]],
        ids=str,
    )
    def test_an_ignore_label_and_other_numbers_are_refused(self, tmp_path: Path, values: list[int]) -> None:
        grid = np.resize(np.array(values, np.int32), (HIGH, WIDE))
        with pytest.raises(FadevizError, match="has the values .* A mask has only 0 and 1, or only 0 and 255"):
            self.read(tmp_path, Image.fromarray(grid), "horse.tif")

    def test_not_a_number_is_refused(self, tmp_path: Path) -> None:
        grid = np.resize(np.array([0, 1, np.nan], np.float32), (HIGH, WIDE))
        with pytest.raises(FadevizError, match="has the values"):
            self.read(tmp_path, Image.fromarray(grid), "horse.tif")

    def test_white_as_zero_in_sixteen_bits_is_refused(self, tmp_path: Path) -> None:
        _, inside = scene()
        with pytest.raises(FadevizError, match="whose 0 is white"):
            self.read(tmp_path, Image.fromarray(inside.astype(np.uint16) * 65535), "horse.tif", tiffinfo={262: 0})

    @pytest.mark.parametrize(("name", "mode"), [("horse.jpg", "L"), ("horse.jpg", "RGB"), ("horse.jpg", "CMYK"),
                                                ("horse.webp", "RGB"), ("horse.tif", "L")])  # fmt: skip
    def test_noise_of_lossy_files(self, tmp_path: Path, name: str, mode: str) -> None:
        _, inside = scene()
        mask = Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).convert(mode)
        options = {"compression": "jpeg"} if name.endswith(".tif") else {"quality": 60}
        found = self.read(tmp_path, mask, name, **options)
        assert np.unique(np.asarray(mask.convert("L"))).size == 2
        np.testing.assert_array_equal(found, inside)


def test_numbers_of_a_palette_are_the_classes_of_a_scene(tmp_path: Path) -> None:
    # White and black here are what a viewer shows for class 0 and class 1; transparency is for viewers as well.
    reader = READERS["ade20k"]
    _, inside = scene()
    _, mask_file = plain_set(tmp_path, reader)
    indices = np.where(inside, 2, 1).astype(np.uint8)
    picture = Image.frombytes("P", (WIDE, HIGH), indices.tobytes())
    picture.putpalette([9, 9, 9, 255, 255, 255, 0, 0, 0])
    save(picture, mask_file, transparency=1)
    check_read(reader, tmp_path)
    assert any(
        "read by its indices, which are the classes: 1 of 1" in line for line in describe_data(tmp_path, "ade20k")
    )


# --- frames and formats ---


def test_nonsense_in_the_tags_of_a_tiff_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(scene()[0]).save(path)
    data = path.read_bytes()
    start = int.from_bytes(data[4:8], "little")
    tags = range(start + 2, start + 2 + 12 * int.from_bytes(data[start : start + 2], "little"), 12)
    read, told = 0, []
    for tag in tags:
        for kind in range(1, 14):  # a text or a fraction where a number belongs
            path.write_bytes(data[: tag + 2] + kind.to_bytes(2, "little") + data[tag + 4 :])
            images.describe_images([path], "images", "by its colours")
            try:
                read += read_image(path).image.size > 0
            except FadevizError as error:
                told.append(str(error))
    assert read > 20
    assert len(told) > 20
    assert not any("\n" in line for line in told)


def test_a_claimed_size_is_passed_over_by_the_description(tmp_path: Path) -> None:
    data = bytearray(b"BM" + bytes(52))
    data[10], data[14], data[26], data[28] = 54, 40, 1, 24
    data[18:26] = (200_000).to_bytes(4, "little") * 2
    (tmp_path / "a.bmp").write_bytes(data)
    with pytest.raises(FadevizError, match="exceed the limit of 50,000,000"):
        read_image(tmp_path / "a.bmp")
    assert images.describe_images([tmp_path / "a.bmp"], "images", "by its colours") == []


def test_several_frames_are_refused(tmp_path: Path) -> None:
    image, _ = scene()
    frames = [Image.fromarray(image), Image.fromarray(255 - image)]
    for name, form in (("a.png", "GIF"), ("b.png", "PNG"), ("c.tif", "TIFF"), ("d.webp", "WEBP")):
        frames[0].save(tmp_path / name, form, save_all=True, append_images=frames[1:])
        with pytest.raises(FadevizError, match="more than one frame"):
            read_image(tmp_path / name)
    # A phone's photograph has a second view of the same.
    views = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    views[0].save(tmp_path / "e.jpg", "MPO", save_all=True, append_images=views[1:])
    assert read_image(tmp_path / "e.jpg").image.min() > 250


def test_formats_that_start_other_programs_are_no_images(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", "EPS")
    with pytest.raises(FadevizError, match="it is not an image"):
        read_image(tmp_path / "a.png")


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(images.os, "scandir", refuse)
    with pytest.raises(FadevizError, match=r"cannot be listed: Permission denied\. Check its permissions"):
        images.list_folder(tmp_path)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_per_channel_are_not_truncated(mode, tmp_path):
    with pytest.raises(FadevizError, match=r"a\.tif has 16 bits or more per channel .*Convert it to 8 bits"):
        images.to_rgb(Image.new(mode, (4, 4)), tmp_path / "a.tif")
