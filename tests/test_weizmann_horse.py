"""The Weizmann Horse reader: both layouts, every kind of bad file, the split, and the real set where it is at hand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fadeviz.data.weizmann_horse import (
    WeizmannHorses,
    check_weizmann,
    load_weizmann,
    read_weizmann,
    split_train_test,
)
from fadeviz.errors import FadevizError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "weizmann_horse_db"


def ellipse(height: int, width: int, across: float = 0.3) -> np.ndarray:
    """An ellipse in the unit square, drawn at any size: True inside."""
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    return ((x - 0.53) / across) ** 2 + ((y - 0.48) / 0.2) ** 2 < 1


def picture(seed: int, height: int, width: int) -> Image.Image:
    """A patchwork with a bright ellipse; another seed gives other colours."""
    patches = np.random.default_rng(seed).integers(20, 150, (4, 4, 3))
    pixels = patches.repeat(-(-height // 4), axis=0).repeat(-(-width // 4), axis=1)[:height, :width].astype(np.uint8)
    pixels[ellipse(height, width)] += 100
    return Image.fromarray(pixels)


def save_original(root: Path, count: int = 6) -> Path:
    """A set in the original layout: JPEG, masks of half the image's size, gray images of the mask's size."""
    for folder in ("rgb", "figure_ground", "gray"):
        (root / folder).mkdir(parents=True)
    for number in range(1, count + 1):
        name = f"horse{number:03d}.jpg"
        image = picture(number, 120, 160)
        image.save(root / "rgb" / name)
        image.convert("L").resize((80, 60)).save(root / "gray" / name)
        mask = ellipse(60, 80, 0.2 + 0.01 * number)
        Image.fromarray((mask * 255).astype(np.uint8)).save(root / "figure_ground" / name, quality=75)
    return root


def save_png(root: Path, count: int = 4, high: int = 1) -> Path:
    """A set in the PNG layout: masks of the image's size, with the values 0 and ``high``."""
    for folder in ("horse", "mask"):
        (root / folder).mkdir(parents=True)
    for number in range(1, count + 1):
        name = f"horse{number:03d}.png"
        picture(number, 60, 80).save(root / "horse" / name)
        Image.fromarray((ellipse(60, 80) * high).astype(np.uint8)).save(root / "mask" / name)
    return root


def save_mask(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(path)


class TestReading:
    def test_original_layout_gives_samples_of_one_size(self, tmp_path: Path) -> None:
        dataset = read_weizmann(save_original(tmp_path), 64)
        assert isinstance(dataset, WeizmannHorses)
        assert dataset.count == 6
        assert dataset.names[0] == "horse001"
        assert dataset.notes == ()
        sample = dataset[0]
        assert sample.name == "horse001"
        assert sample.image.shape == (64, 64, 3)
        assert sample.mask.shape == (64, 64)
        assert sample.image.dtype == sample.mask.dtype == np.uint8
        assert sample.alpha is None
        assert set(np.unique(sample.mask)) == {0, 1}
        # The image's bright ellipse is 0.3 wide, this mask's 0.21: it lies inside.
        assert sample.image[sample.mask == 1].mean() > 160

    def test_size_is_height_then_width(self, tmp_path: Path) -> None:
        sample = read_weizmann(save_original(tmp_path), (32, 48))[0]
        assert sample.image.shape == (32, 48, 3)
        assert sample.mask.shape == (32, 48)

    @pytest.mark.parametrize("size", [0, -3, (4, 0), (1, 2, 3)])
    def test_sizes_that_are_none(self, tmp_path: Path, size: object) -> None:
        with pytest.raises(FadevizError, match="must be a positive number, or"):
            read_weizmann(save_original(tmp_path, 1), size)  # type: ignore[arg-type]

    def test_a_parent_folder_is_as_good(self, tmp_path: Path) -> None:
        save_original(tmp_path / "weizmann_horse_db")
        assert read_weizmann(tmp_path, 32).count == 6

    @pytest.mark.parametrize("high", [1, 255])
    def test_png_masks_of_either_scale(self, tmp_path: Path, high: int) -> None:
        sample = read_weizmann(save_png(tmp_path, high=high), (60, 80))[1]
        np.testing.assert_array_equal(sample.mask, ellipse(60, 80))
        np.testing.assert_array_equal(sample.image, np.asarray(picture(2, 60, 80)))

    def test_palettes_to_look_at_leave_the_classes_as_they_are(self, tmp_path: Path) -> None:
        save_png(tmp_path)
        mask = Image.frombytes("P", (80, 60), ellipse(60, 80).astype(np.uint8).tobytes())
        mask.putpalette([90, 90, 90, 10, 200, 30])
        mask.save(tmp_path / "mask" / "horse001.png")
        with Image.open(tmp_path / "mask" / "horse001.png") as saved:
            assert saved.mode == "P"
        np.testing.assert_array_equal(read_weizmann(tmp_path, (60, 80))[0].mask, ellipse(60, 80))

    def test_one_bit_and_rgb_masks(self, tmp_path: Path) -> None:
        save_png(tmp_path)
        Image.fromarray(ellipse(60, 80)).save(tmp_path / "mask" / "horse001.png")
        save_mask(tmp_path / "mask" / "horse002.png", np.stack([ellipse(60, 80) * 255] * 3, axis=2))
        dataset = read_weizmann(tmp_path, (60, 80))
        for index in (0, 1):
            np.testing.assert_array_equal(dataset[index].mask, ellipse(60, 80))

    def test_palette_image_with_transparency_lies_over_white(self, tmp_path: Path) -> None:
        save_png(tmp_path)
        image = picture(1, 60, 80).quantize(8)
        shares = np.array([0, 128, 255, *[255] * 253])[np.asarray(image)][..., None] / 255
        shown = np.asarray(image.convert("RGB")) * shares + 255 * (1 - shares)
        image.save(tmp_path / "horse" / "horse001.png", transparency=bytes([0, 128, 255]))
        np.testing.assert_allclose(read_weizmann(tmp_path, (60, 80))[0].image, shown, atol=1)

    @pytest.mark.parametrize(("side", "bound"), [(60, 0.96), (150, 0.98), (300, 0.99), (900, 0.995)])
    def test_contours_stay_where_they_are(self, tmp_path: Path, side: int, bound: float) -> None:
        # The mask comes at any resolution; at 224 it must agree with the ellipse drawn at 224.
        save_png(tmp_path, 1)
        picture(1, 100, 100).save(tmp_path / "horse" / "horse001.png")
        save_mask(tmp_path / "mask" / "horse001.png", ellipse(side, side))
        got = read_weizmann(tmp_path, 224)[0].mask.astype(bool)
        truth = ellipse(224, 224)
        assert (got & truth).sum() / (got | truth).sum() > bound

    def test_a_sample_is_a_copy_and_the_second_read_needs_no_file(self, tmp_path: Path) -> None:
        dataset = read_weizmann(save_original(tmp_path), 32)
        first = dataset[2]
        kept = first.image.copy()
        first.image[:] = 0
        first.mask[:] = 9
        (tmp_path / "rgb" / "horse003.jpg").unlink()
        np.testing.assert_array_equal(dataset[2].image, kept)
        assert dataset[2].mask.max() == 1
        np.testing.assert_array_equal(dataset.subset([2])[0].image, kept)

    def test_indices_outside_raise_so_that_loops_end(self, tmp_path: Path) -> None:
        dataset = read_weizmann(save_original(tmp_path, 3), 16)
        assert [sample.name for sample in dataset] == ["horse001", "horse002", "horse003"]  # type: ignore[attr-defined]
        for index in (-1, 3):
            with pytest.raises(IndexError, match="there are 3"):
                dataset[index]

    def test_subset_keeps_the_order_given(self, tmp_path: Path) -> None:
        part = read_weizmann(save_original(tmp_path), 16).subset([4, 0])
        assert part.names == ("horse005", "horse001")
        assert part[0].name == "horse005"
        assert part.count == 2

    def test_fingerprint_follows_names_and_bytes(self, tmp_path: Path) -> None:
        save_original(tmp_path / "a")
        save_original(tmp_path / "b")
        first = read_weizmann(tmp_path / "a", 16)
        assert re.fullmatch("[0-9a-f]{64}", first.fingerprint)
        assert read_weizmann(tmp_path / "b", 32).fingerprint == first.fingerprint
        save_mask(tmp_path / "b" / "figure_ground" / "horse002.jpg", ellipse(60, 80) * 255)
        changed = read_weizmann(tmp_path / "b", 16).fingerprint
        assert changed != first.fingerprint
        for folder in ("rgb", "figure_ground"):
            (tmp_path / "a" / folder / "horse006.jpg").rename(tmp_path / "a" / folder / "horse007.jpg")
        assert read_weizmann(tmp_path / "a", 16).fingerprint not in (first.fingerprint, changed)


class TestBlackImages:
    def test_the_gray_picture_stands_in(self, tmp_path: Path) -> None:
        save_original(tmp_path)
        Image.new("RGB", (160, 120), (0, 1, 2)).save(tmp_path / "rgb" / "horse004.jpg")
        dataset = read_weizmann(tmp_path, 32)
        assert dataset.count == 6
        assert dataset.notes == ("rgb/horse004.jpg is black: gray/horse004.jpg stands in for it",)
        image = dataset[3].image
        assert image.mean() > 30
        np.testing.assert_array_equal(image[..., 0], image[..., 2])
        assert check_weizmann(tmp_path) == []

    def test_without_a_gray_picture_it_is_left_out(self, tmp_path: Path) -> None:
        save_original(tmp_path)
        Image.new("RGB", (160, 120)).save(tmp_path / "rgb" / "horse004.jpg")
        (tmp_path / "gray" / "horse004.jpg").unlink()
        dataset = read_weizmann(tmp_path, 32)
        assert dataset.count == 5
        assert "horse004" not in dataset.names
        assert dataset.notes == ("rgb/horse004.jpg is black and has no gray image: it is left out",)

    def test_nothing_but_black(self, tmp_path: Path) -> None:
        save_png(tmp_path, 1)
        Image.new("RGB", (80, 60)).save(tmp_path / "horse" / "horse001.png")
        with pytest.raises(FadevizError, match="only black images"):
            read_weizmann(tmp_path)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) > 20
    return text


class TestBadInput:
    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FadevizError, match="does not exist") as caught:
            read_weizmann(tmp_path / "nowhere")
        assert str(tmp_path / "nowhere") in one_line(caught.value)
        assert check_weizmann(tmp_path / "nowhere") == [str(caught.value)]

    def test_a_file_for_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "set.zip").write_bytes(b"PK")
        with pytest.raises(FadevizError, match="is a file, not a folder"):
            read_weizmann(tmp_path / "set.zip")

    def test_unknown_layout_names_what_is_needed(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        with pytest.raises(FadevizError, match="it has images/, needed is rgb/ with figure_ground/, or horse/ with"):
            read_weizmann(tmp_path)

    def test_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "rgb").mkdir()
        (tmp_path / "figure_ground").mkdir()
        (tmp_path / "rgb" / "Thumbs.db").write_bytes(b"x")
        (tmp_path / "rgb" / "._horse001.jpg").write_bytes(b"x")
        with pytest.raises(FadevizError, match=r"rgb has no images"):
            read_weizmann(tmp_path)

    def test_image_without_mask(self, tmp_path: Path) -> None:
        save_original(tmp_path)
        (tmp_path / "figure_ground" / "horse002.jpg").unlink()
        (tmp_path / "figure_ground" / "horse005.jpg").unlink()
        with pytest.raises(FadevizError, match=r"horse002\.jpg has no mask .*\(and 1 more such problems\)") as caught:
            read_weizmann(tmp_path)
        one_line(caught.value)
        assert len(check_weizmann(tmp_path)) == 2

    def test_mask_without_image_is_noted(self, tmp_path: Path) -> None:
        save_original(tmp_path)
        (tmp_path / "rgb" / "horse002.jpg").unlink()
        dataset = read_weizmann(tmp_path, 16)
        assert dataset.count == 5
        assert dataset.notes == ("masks without an image in figure_ground/ are ignored: 1 (horse002)",)

    def test_one_name_twice(self, tmp_path: Path) -> None:
        save_png(tmp_path)
        picture(9, 60, 80).save(tmp_path / "horse" / "horse001.jpg")
        with pytest.raises(FadevizError, match="has the same name as"):
            read_weizmann(tmp_path)

    @pytest.mark.parametrize("layout", [save_original, save_png])
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (cut_off, "damaged or cut off"),
            (lambda path: path.write_bytes(b""), r"empty \(0 bytes\)"),
            (lambda path: path.write_bytes(b"<html>404</html>"), "is not an image"),
        ],
    )
    def test_damaged_images_and_masks(self, tmp_path: Path, layout: object, damage: object, message: str) -> None:
        layout(tmp_path)  # type: ignore[operator]
        image_folder, mask_folder = ("rgb", "figure_ground") if layout is save_original else ("horse", "mask")
        suffix = "jpg" if layout is save_original else "png"
        image, mask = tmp_path / image_folder / f"horse001.{suffix}", tmp_path / mask_folder / f"horse003.{suffix}"
        damage(mask)  # type: ignore[operator]
        dataset = read_weizmann(tmp_path, 16)
        dataset[0]
        with pytest.raises(FadevizError, match=message) as caught:
            dataset[2]
        assert str(mask) in one_line(caught.value)
        damage(image)  # type: ignore[operator]
        with pytest.raises(FadevizError, match=message) as caught:
            read_weizmann(tmp_path, 16)
        assert str(image) in one_line(caught.value)
        assert len(check_weizmann(tmp_path)) == 2

    def test_png_mask_with_more_classes(self, tmp_path: Path) -> None:
        save_png(tmp_path)
        values = ellipse(60, 80).astype(np.uint8)
        values[0, 0] = 2
        save_mask(tmp_path / "mask" / "horse001.png", values)
        with pytest.raises(FadevizError, match=r"horse001\.png has the values 0, 1, 2\. A mask has only") as caught:
            read_weizmann(tmp_path)[0]
        one_line(caught.value)

    def test_png_mask_with_gray_levels(self, tmp_path: Path) -> None:
        save_png(tmp_path)
        save_mask(tmp_path / "mask" / "horse001.png", np.tile(np.arange(80), (60, 1)))
        with pytest.raises(FadevizError, match=r"has the values 0, 1, 2, 3, 4, 5, \.\.\."):
            read_weizmann(tmp_path)[0]

    @pytest.mark.parametrize(("value", "word"), [(0, "ground"), (255, "horse")])
    @pytest.mark.parametrize("layout", [save_original, save_png])
    def test_mask_of_one_class(self, tmp_path: Path, layout: object, value: int, word: str) -> None:
        root = layout(tmp_path)  # type: ignore[operator]
        path = root / ("figure_ground/horse001.jpg" if layout is save_original else "mask/horse001.png")
        save_mask(path, np.full((60, 80), value))
        with pytest.raises(FadevizError, match=rf"horse001\.\w+ is all {word}"):
            read_weizmann(root)[0]

    def test_photograph_in_place_of_a_jpeg_mask(self, tmp_path: Path) -> None:
        save_original(tmp_path)
        save_mask(tmp_path / "figure_ground" / "horse001.jpg", np.tile(np.arange(160), (120, 1)))
        with pytest.raises(FadevizError, match=r"is not a mask: \d+% of its values are in 64\.\.191"):
            read_weizmann(tmp_path)[0]

    def test_mask_of_another_shape(self, tmp_path: Path) -> None:
        save_original(tmp_path)
        save_mask(tmp_path / "figure_ground" / "horse001.jpg", ellipse(60, 78) * 255)
        with pytest.raises(FadevizError, match=r"is 78x60, but .* is 160x120: the aspect ratios differ by more than"):
            read_weizmann(tmp_path)[0]
        save_mask(tmp_path / "figure_ground" / "horse001.jpg", ellipse(60, 81) * 255)
        assert read_weizmann(tmp_path, 16)[0].mask.any()

    @pytest.mark.parametrize("limit", [2000, 3000, 10**9])
    def test_absurdly_large_picture(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        # Pillow itself warns above its limit and raises above twice that; ours holds where Pillow's is higher.
        save_png(tmp_path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        monkeypatch.setattr("fadeviz.data.images.MAX_PIXELS", 4000)
        with pytest.raises(FadevizError, match="exceed the limit") as caught:
            read_weizmann(tmp_path)
        one_line(caught.value)

    def test_check_reads_everything(self, tmp_path: Path) -> None:
        save_original(tmp_path)
        assert check_weizmann(tmp_path) == []
        cut_off(tmp_path / "figure_ground" / "horse002.jpg")
        (tmp_path / "rgb" / "horse003.jpg").write_bytes(b"")
        (tmp_path / "figure_ground" / "horse005.jpg").unlink()
        problems = check_weizmann(tmp_path)
        assert len(problems) == 3
        for name in ("horse002", "horse003", "horse005"):
            assert sum(name in problem for problem in problems) == 1


class TestSplit:
    def test_shares_and_no_overlap(self, tmp_path: Path) -> None:
        dataset = read_weizmann(save_original(tmp_path, 20), 16)
        train, test = split_train_test(dataset)
        assert (train.count, test.count) == (17, 3)
        assert set(train.names) | set(test.names) == set(dataset.names)
        assert not set(train.names) & set(test.names)
        assert train.names == tuple(sorted(train.names))

    def test_the_seed_alone_decides(self, tmp_path: Path) -> None:
        dataset = read_weizmann(save_original(tmp_path / "a", 20), 16)
        again = read_weizmann(save_original(tmp_path / "b", 20), 32)
        assert split_train_test(dataset, seed=3)[1].names == split_train_test(again, seed=3)[1].names
        assert len({split_train_test(dataset, seed=seed)[1].names for seed in range(5)}) > 2
        # Written down once: no version of anything may change it.
        assert split_train_test(dataset)[1].names == GOLDEN_TEST_SIDE

    def test_copies_of_a_photograph_stay_together(self, tmp_path: Path) -> None:
        save_png(tmp_path, 9)
        for number in (4, 7):
            # Neither the bytes nor the size nor every pixel is the same.
            copy = picture(1, 60, 80).resize((40 * number, 30 * number), Image.Resampling.BICUBIC)
            copy.save(tmp_path / "horse" / f"horse{number:03d}.png")
        dataset = read_weizmann(tmp_path, 32)
        for seed in range(20):
            train, test = split_train_test(dataset, 0.7, seed)
            assert (train.count, test.count) == (6, 3)
            sides = {name in train.names for name in ("horse001", "horse004", "horse007")}
            assert len(sides) == 1
            assert test.count

    def test_cannot_be_split(self, tmp_path: Path) -> None:
        save_png(tmp_path, 4)
        for number in (1, 2, 3, 4):
            picture(1, 60, 80).save(tmp_path / "horse" / f"horse{number:03d}.png")
        with pytest.raises(FadevizError, match="4 images of 1 different photographs cannot be split"):
            split_train_test(read_weizmann(tmp_path, 16))
        for number in (3, 4):
            picture(2, 60, 80).save(tmp_path / "horse" / f"horse{number:03d}.png")
        with pytest.raises(FadevizError, match="Raise the train share"):
            split_train_test(read_weizmann(tmp_path, 16), 0.25)
        train, test = split_train_test(read_weizmann(tmp_path, 16))
        assert (train.count, test.count) == (2, 2)

    @pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
    def test_shares_that_leave_a_side_empty(self, tmp_path: Path, share: float) -> None:
        with pytest.raises(FadevizError, match="train share"):
            split_train_test(read_weizmann(save_png(tmp_path), 16), share)

    def test_load_says_what_it_did(self, tmp_path: Path) -> None:
        save_original(tmp_path, 10)
        (tmp_path / "rgb" / "horse003.jpg").write_bytes((tmp_path / "rgb" / "horse009.jpg").read_bytes())
        splits = load_weizmann(tmp_path, 16, split_seed=5)
        info = splits.info
        assert info["name"] == "weizmann"
        assert info["folder"] == str(tmp_path)
        assert info["count"] == 10
        assert info["split_seed"] == 5
        assert info["fingerprint"] == read_weizmann(tmp_path).fingerprint
        assert info["notes"] == ["copies of the same photograph, on the same side of the split: horse003 = horse009"]
        assert info["train"] == [splits.train[i].name for i in range(splits.train.count or 0)]
        assert info["test"] == [splits.test[i].name for i in range(splits.test.count or 0)]


GOLDEN_TEST_SIDE = ("horse004", "horse014", "horse018")

# 006 and 240 have the bytes of their copies; the others were stored anew, some in another size.
REAL_COPIES = [
    *[("004", "146"), ("006", "018"), ("071", "219"), ("118", "171"), ("175", "205")],
    *[("180", "203"), ("240", "274"), ("246", "294"), ("263", "264")],
]


@pytest.fixture(scope="module")
def real() -> WeizmannHorses:
    if not REAL.is_dir():
        pytest.skip(f"the Weizmann Horse set is not at {REAL}")
    return read_weizmann(REAL, 64)


class TestRealSet:
    def test_all_pictures_with_the_black_one_replaced(self, real: WeizmannHorses) -> None:
        assert real.count == 328
        assert real.notes == ("rgb/horse318.jpg is black: gray/horse318.jpg stands in for it",)
        sample = real[317]
        assert sample.name == "horse318"
        assert sample.image.mean() > 60

    def test_masks_fit(self, real: WeizmannHorses) -> None:
        shares = np.array([real[i].mask.mean() for i in range(328)])
        assert 0.22 < shares.mean() < 0.28
        assert 0.04 < shares.min() < shares.max() < 0.5

    @pytest.mark.parametrize("seed", range(6))
    def test_split_keeps_the_duplicates_together(self, real: WeizmannHorses, seed: int) -> None:
        train, test = split_train_test(real, seed=seed)
        assert (train.count, test.count) == (279, 49)
        for one, other in REAL_COPIES:
            assert (f"horse{one}" in train.names) == (f"horse{other}" in train.names)

    def test_the_split_does_not_depend_on_the_size(self, real: WeizmannHorses) -> None:
        splits = load_weizmann(REAL.parent, 16)
        assert splits.info["test"] == list(split_train_test(real)[1].names)
        notes = splits.info["notes"]
        assert isinstance(notes, list)
        assert notes[1].endswith(", ".join(f"horse{one} = horse{other}" for one, other in REAL_COPIES))
