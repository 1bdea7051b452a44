"""ADE20K: both layouts, every kind of bad file, crops and colours against slow definitions, and the real sample."""

from __future__ import annotations

import colorsys
import io
import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fadeviz.data import Sample
from fadeviz.data.ade20k import (
    CLASSES,
    IGNORED,
    check_ade20k,
    class_names,
    load_ade20k,
    read_ade20k,
)
from fadeviz.data.synthetic.dataset import SyntheticHorses
from fadeviz.data.transforms import (
    PADDING,
    Augmentation,
    AugmentedCrops,
    CentreCrops,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    augmented_crop,
    largest_share,
    scaled_shape,
)
from fadeviz.errors import FadevizError
from fadeviz.training.batches import batches

PLAIN = Augmentation(scale=(1, 1), flip=0, brightness=0, contrast=(1, 1), saturation=(1, 1), hue=0)
"""Nothing but the crop."""


def labels(seed: int, height: int, width: int) -> np.ndarray:
    """A patchwork of 4 x 4 classes as a file has them: 0 (other) to 150."""
    patches = np.random.default_rng(seed).integers(0, CLASSES + 1, (4, 4))
    return patches.repeat(-(-height // 4), axis=0).repeat(-(-width // 4), axis=1)[:height, :width].astype(np.uint8)


def photograph(annotation: np.ndarray) -> Image.Image:
    """The image that goes with an annotation: a colour for each class."""
    return Image.fromarray(np.stack([annotation, 255 - annotation, annotation // 2 + 60], axis=-1))


def save_set(root: Path, train: int = 6, test: int = 3, parts: tuple[str, str] = ("training", "validation")) -> Path:
    """A set in the layout of ADEChallengeData2016, of images from 40x56 to 70x110."""
    for part, count, name in zip(parts, (train, test), ("train", "val"), strict=True):
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True, exist_ok=True)
        for number in range(1, count + 1):
            annotation = labels(number, 40 + number % 7 * 5, 56 + number % 7 * 9)
            stem = f"ADE_{name}_{number:08d}"
            photograph(annotation).save(root / "images" / part / f"{stem}.jpg", quality=95)
            Image.fromarray(annotation).save(root / "annotations" / part / f"{stem}.png")
    return root


def image_of(root: Path, number: int = 2) -> Path:
    return root / "images" / "training" / f"ADE_train_{number:08d}.jpg"


def annotation_of(root: Path, number: int = 2) -> Path:
    return root / "annotations" / "training" / f"ADE_train_{number:08d}.png"


def save_names(path: Path, count: int = CLASSES) -> None:
    rows = [f"{n}\t0.1\t10\t1\tthing {n}, other name" for n in range(1, count + 1)]
    path.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")


def same(first: Sample, second: Sample) -> bool:
    return (
        first.name == second.name
        and np.array_equal(first.image, second.image)
        and np.array_equal(first.mask, second.mask)
    )


class Fixed:
    """A data set of given images."""

    def __init__(self, *samples: Sample) -> None:
        self.samples = samples
        self.count = len(samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def drawing(height: int, width: int, mask: np.ndarray | None = None) -> Sample:
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    return Sample("drawing", image, labels(3, height, width) if mask is None else mask)


class TestReading:
    def test_classes_are_one_less_and_other_is_ignored(self, tmp_path: Path) -> None:
        save_set(tmp_path)
        values = np.arange(151, dtype=np.uint8).repeat(40).reshape(151, 40)
        Image.fromarray(values).save(annotation_of(tmp_path))
        photograph(values).save(image_of(tmp_path), quality=100, subsampling=0)
        train, test, _ = read_ade20k(tmp_path)
        assert (train.count, test.count) == (6, 3)
        assert train.names[1] == "ADE_train_00000002"
        sample = train[1]
        assert sample.name == "ADE_train_00000002"
        assert sample.image.shape == (151, 40, 3)
        assert sample.image.dtype == sample.mask.dtype == np.uint8
        assert sample.mask[:, 7].tolist() == [IGNORED, *range(150)]
        assert np.abs(sample.image.astype(int) - np.asarray(photograph(values))).max() < 12
        assert test[0].name == "ADE_val_00000001"

    def test_a_folder_above_is_as_good(self, tmp_path: Path) -> None:
        save_set(tmp_path / "ADEChallengeData2016")
        train, test, _ = read_ade20k(tmp_path)
        assert (train.count, test.count) == (6, 3)

    def test_a_sample_without_parts_is_both(self, tmp_path: Path) -> None:
        save_set(tmp_path, train=3, test=0, parts=("", ""))
        splits = load_ade20k(tmp_path, 32)
        assert [splits.info[key] for key in ("count", "train", "test")] == [3, 3, 3]
        assert splits.info["notes"] == ["no training/ and validation/: what is tested on is trained on as well"]
        assert {splits.train[i].name for i in range(3)} == {splits.test[i].name for i in range(3)}
        assert check_ade20k(tmp_path) == []

    def test_an_incomplete_set_is_noted(self, tmp_path: Path) -> None:
        _, _, notes = read_ade20k(save_set(tmp_path))
        assert notes == [
            "training/ has 6 images; the published set has 20210",
            "validation/ has 3 images; the published set has 2000",
        ]

    def test_annotations_without_image_are_noted(self, tmp_path: Path) -> None:
        save_set(tmp_path)
        image_of(tmp_path).unlink()
        train, _, notes = read_ade20k(tmp_path)
        assert train.count == 5
        assert "annotations without an image in annotations/training/ are ignored: 1 (ADE_train_00000002)" in notes

    @pytest.mark.parametrize("mode", ["L", "CMYK"])
    def test_grey_and_cmyk_photographs_become_rgb(self, tmp_path: Path, mode: str) -> None:
        save_set(tmp_path)
        with Image.open(image_of(tmp_path)) as opened:
            colour = np.asarray(opened.convert("RGB")).astype(int)
            opened.convert(mode).save(image_of(tmp_path), quality=95)
        with Image.open(image_of(tmp_path)) as saved:
            assert saved.mode == mode
        image = read_ade20k(tmp_path)[0][1].image
        assert image.shape == colour.shape
        if mode == "L":
            np.testing.assert_array_equal(image[..., 0], image[..., 2])
        else:
            assert np.abs(image - colour).mean() < 8
        assert check_ade20k(tmp_path) == []

    def test_palette_annotations_are_read_by_index(self, tmp_path: Path) -> None:
        save_set(tmp_path)
        expected = read_ade20k(tmp_path)[0][1].mask
        with Image.open(annotation_of(tmp_path)) as opened:
            opened.load()
        indexed = Image.frombytes("P", opened.size, opened.tobytes())
        indexed.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
        indexed.save(annotation_of(tmp_path))
        with Image.open(annotation_of(tmp_path)) as saved:
            assert saved.mode == "P"
        np.testing.assert_array_equal(read_ade20k(tmp_path)[0][1].mask, expected)

    def test_indices_outside_raise_so_that_loops_end(self, tmp_path: Path) -> None:
        train, _, _ = read_ade20k(save_set(tmp_path))
        for index in (-1, 6):
            with pytest.raises(IndexError, match="there are 6"):
                train[index]

    def test_hidden_and_foreign_files_are_passed_over(self, tmp_path: Path) -> None:
        save_set(tmp_path)
        (tmp_path / "images" / "training" / "._ADE_train_00000001.jpg").write_bytes(b"\0" * 40)
        (tmp_path / "images" / "training" / "Thumbs.db").write_bytes(b"\0" * 40)
        assert read_ade20k(tmp_path)[0].count == 6
        assert check_ade20k(tmp_path) == []


class TestLoading:
    def test_what_run_json_says(self, tmp_path: Path) -> None:
        save_set(tmp_path)
        save_names(tmp_path / "objectInfo150.txt")
        info = dict(load_ade20k(tmp_path, 32, seed=5).info)
        assert info["folder"] == str(tmp_path)
        assert info["name"] == "ade20k"
        assert [info[key] for key in ("count", "train", "test", "subset", "ignored")] == [9, 6, 3, None, 255]
        assert re.fullmatch("[0-9a-f]{64}", str(info["fingerprint"]))
        assert info["classes"][:2] == ["thing 1", "thing 2"]  # type: ignore[index]
        assert info["augmentation"]["scale"] == [0.5, 2.0]  # type: ignore[index]
        assert json.loads(json.dumps(info)) == info
        # No absolute path but the folder's own.
        del info["folder"]
        assert str(tmp_path) not in json.dumps(info)

    def test_fingerprint_follows_names_and_sizes(self, tmp_path: Path) -> None:
        save_set(tmp_path / "a")
        save_set(tmp_path / "b")
        first = load_ade20k(tmp_path / "a", 32).info["fingerprint"]
        assert load_ade20k(tmp_path / "b", 64, seed=3).info["fingerprint"] == first
        with annotation_of(tmp_path / "b").open("ab") as file:
            file.write(b"\0")
        assert load_ade20k(tmp_path / "b", 32).info["fingerprint"] != first
        image_of(tmp_path / "a").rename(image_of(tmp_path / "a", 9))
        annotation_of(tmp_path / "a").rename(annotation_of(tmp_path / "a", 9))
        assert load_ade20k(tmp_path / "a", 32).info["fingerprint"] != first

    def test_subsets_keep_the_proportion_and_grow(self, tmp_path: Path) -> None:
        save_set(tmp_path, train=40, test=20)
        train, test, _ = read_ade20k(tmp_path)
        splits = {n: load_ade20k(tmp_path, 32, subset=n, subset_seed=1) for n in (4, 10, 30, 40)}
        assert [(s.info["train"], s.info["test"]) for s in splits.values()] == [(4, 8), (10, 8), (30, 15), (40, 20)]
        names = {n: {s.train[i].name for i in range(n)} for n, s in splits.items()}
        assert names[4] < names[10] < names[30] < names[40] == set(train.names)
        assert {len(found) for found in names.values()} == {4, 10, 30, 40}
        small = {splits[4].test[i].name for i in range(8)}
        assert small < {splits[30].test[i].name for i in range(15)} < set(test.names)
        other = load_ade20k(tmp_path, 32, subset=10, subset_seed=2)
        assert {other.train[i].name for i in range(10)} != names[10]
        # The crops' seed changes the crops, not the images.
        again = load_ade20k(tmp_path, 32, subset=10, seed=9, subset_seed=1)
        assert {again.train[i].name for i in range(10)} == names[10]
        assert again.info["fingerprint"] == splits[10].info["fingerprint"] != other.info["fingerprint"]

    def test_a_subset_of_few_tests_on_all_there_are(self, tmp_path: Path) -> None:
        assert load_ade20k(save_set(tmp_path), 32, subset=1).info["test"] == 3

    @pytest.mark.parametrize("subset", [0, -1, 7, True])
    def test_subsets_that_are_none(self, tmp_path: Path, subset: int) -> None:
        with pytest.raises(FadevizError, match="has 6 training images. Give 1 to 6, or none"):
            load_ade20k(save_set(tmp_path), 32, subset=subset)

    @pytest.mark.parametrize("size", [0, 31, 100, -32, (64, 64), 64.0, True])
    def test_sizes_that_are_none(self, tmp_path: Path, size: int) -> None:
        with pytest.raises(FadevizError, match="divisible by 32"):
            load_ade20k(save_set(tmp_path), size)

    def test_the_loop_takes_both_sides(self, tmp_path: Path) -> None:
        splits = load_ade20k(save_set(tmp_path), 64)
        assert splits.train.count is None
        first = list(batches(splits.train, range(1, 5), 4, seed=0))
        assert [images.shape for images, _ in first] == [(4, 3, 64, 64)] * 4
        assert {int(c) for _, masks in first for c in masks.unique()} <= {*range(150), 255}
        # A resumed run sees what the whole one did, however it was batched before.
        later = list(batches(splits.train, [3, 4], 4, seed=0, prefetch=1))
        assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(first[2:], later, strict=True))
        assert next(batches(splits.test, [1], 3, seed=0))[0].shape == (3, 3, 64, 64)

    def test_reading_needs_no_torch(self) -> None:
        code = "import sys, fadeviz.data.ade20k; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestNames:
    @pytest.mark.parametrize("place", ["set/objectInfo150.txt", "objectInfo150.txt"])
    def test_from_the_folder_or_its_parent(self, tmp_path: Path, place: str) -> None:
        save_set(tmp_path / "set")
        save_names(tmp_path / place)
        names = class_names(tmp_path / "set")
        assert len(names) == CLASSES
        assert (names[0], names[149]) == ("thing 1", "thing 150")

    def test_from_inside_when_the_folder_above_is_given(self, tmp_path: Path) -> None:
        (tmp_path / "ADEChallengeData2016").mkdir()
        save_names(tmp_path / "ADEChallengeData2016" / "objectInfo150.txt")
        assert class_names(tmp_path)[0] == "thing 1"

    def test_without_a_file_they_are_numbered_as_in_the_mask(self, tmp_path: Path) -> None:
        names = class_names(tmp_path / "set")
        assert (len(names), names[0], names[7]) == (CLASSES, "class 0", "class 7")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff\xfe\0",
            b"Idx\tName\n1\twall\n",
            b"Number\tWhat\n1\twall\n",
            b"Idx\tRatio\tTrain\tVal\tName\n1\t0.1\n",
            b"Idx\tName\n" + b"\n".join(b"%d\t" % n for n in range(1, 151)),
        ],
    )
    def test_a_damaged_list(self, tmp_path: Path, content: bytes) -> None:
        save_set(tmp_path)
        (tmp_path / "objectInfo150.txt").write_bytes(content)
        with pytest.raises(FadevizError, match="Restore the data set's own file, or remove it") as caught:
            load_ade20k(tmp_path, 32)
        assert "objectInfo150.txt" in one_line(caught.value)
        assert check_ade20k(tmp_path) == [str(caught.value)]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) > 20
    return text


def grey_png(path: Path, bits: int, rows: np.ndarray) -> None:
    """A grey PNG of fewer than 8 bits, which Pillow does not write. ``rows`` are the packed bytes, ``(H, bytes)``."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    width = rows.shape[1] * 8 // bits
    header = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


class TestFolders:
    def test_missing_folder_and_file(self, tmp_path: Path) -> None:
        with pytest.raises(FadevizError, match="does not exist. Give the folder of ADEChallengeData2016") as caught:
            read_ade20k(tmp_path / "nowhere")
        assert str(tmp_path / "nowhere") in one_line(caught.value)
        assert check_ade20k(tmp_path / "nowhere") == [str(caught.value)]
        (tmp_path / "file").touch()
        with pytest.raises(FadevizError, match="is a file, not a folder"):
            read_ade20k(tmp_path / "file")

    def test_another_set(self, tmp_path: Path) -> None:
        (tmp_path / "rgb").mkdir()
        with pytest.raises(
            FadevizError, match=r"it has rgb/, needed are images/ and annotations/, each with"
        ) as caught:
            read_ade20k(tmp_path)
        one_line(caught.value)

    @pytest.mark.parametrize(
        "missing", ["images/training", "images/validation", "annotations/training", "annotations/validation"]
    )
    def test_a_missing_part_is_named(self, tmp_path: Path, missing: str) -> None:
        save_set(tmp_path)
        for path in (tmp_path / missing).iterdir():
            path.unlink()
        (tmp_path / missing).rmdir()
        with pytest.raises(FadevizError, match=f"lacks {missing}/: needed are images/ and annotations/") as caught:
            read_ade20k(tmp_path)
        one_line(caught.value)

    def test_the_full_set_is_another(self, tmp_path: Path) -> None:
        # ADE20K_2016_07_26 has a folder for each scene, with the annotations beside the images.
        for part in ("training", "validation"):
            (tmp_path / "images" / part / "a" / "abbey").mkdir(parents=True)
        with pytest.raises(FadevizError, match="lacks annotations/training/, annotations/validation/.* another set"):
            read_ade20k(tmp_path)

    def test_images_alone(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        with pytest.raises(FadevizError, match="lacks annotations/: needed are"):
            read_ade20k(tmp_path)

    def test_empty_folders(self, tmp_path: Path) -> None:
        save_set(tmp_path, train=0)
        with pytest.raises(FadevizError, match=r"images/training has no images \(.jpg\). Unpack the whole set there"):
            load_ade20k(tmp_path, 32)

    def test_missing_annotations_are_counted(self, tmp_path: Path) -> None:
        save_set(tmp_path)
        annotation_of(tmp_path, 2).unlink()
        annotation_of(tmp_path, 5).unlink()
        with pytest.raises(FadevizError, match=r"Add it, or remove the image \(and 1 more such problems\)") as caught:
            load_ade20k(tmp_path, 32)
        assert one_line(caught.value).startswith(f"{image_of(tmp_path, 2)} has no annotation {annotation_of(tmp_path)}")
        assert [problem.split()[0] for problem in check_ade20k(tmp_path)] == [
            str(image_of(tmp_path, n)) for n in (2, 5)
        ]

    def test_one_name_twice(self, tmp_path: Path) -> None:
        save_set(tmp_path)
        image_of(tmp_path).with_suffix(".JPEG").write_bytes(image_of(tmp_path).read_bytes())
        with pytest.raises(FadevizError, match="has the same name as .* Remove one of the two"):
            load_ade20k(tmp_path, 32)


class TestFiles:
    def spoil(self, root: Path, change: Callable[[Path], None], path: Path) -> str:
        """The one complaint about a set with a spoiled file: what is read and what is checked agree."""
        change(path)
        train, _, _ = read_ade20k(root)
        with pytest.raises(FadevizError) as caught:
            train[1]
        assert str(path) in one_line(caught.value)
        assert check_ade20k(root) == [str(caught.value)]
        # The endless set meets it in its first epoch.
        with pytest.raises(FadevizError, match=re.escape(str(caught.value))):
            [load_ade20k(root, 32).train[index] for index in range(6)]
        return str(caught.value)

    @pytest.mark.parametrize("find", [image_of, annotation_of])
    def test_cut_off_empty_or_no_picture(self, tmp_path: Path, find: Callable[[Path], Path]) -> None:
        path = find(save_set(tmp_path))
        assert "is damaged or cut off" in self.spoil(tmp_path, cut_off, path)
        assert "is not an image" in self.spoil(tmp_path, lambda p: p.write_bytes(b"not an image at all"), path)
        assert "it is empty (0 bytes)" in self.spoil(tmp_path, lambda p: p.write_bytes(b""), path)

    def test_far_too_many_pixels(self, tmp_path: Path) -> None:
        path = image_of(save_set(tmp_path))
        told = self.spoil(tmp_path, lambda p: Image.new("L", (10000, 6000)).save(p), path)
        assert "10000x6000 pixels exceed the limit" in told

    def test_another_size_than_the_image(self, tmp_path: Path) -> None:
        path = annotation_of(save_set(tmp_path))
        told = self.spoil(tmp_path, lambda p: Image.fromarray(labels(1, 40, 56)).save(p), path)
        assert f"is 56x40, but {image_of(tmp_path)} is 74x50: both must have the same size" in told

    @pytest.mark.parametrize("largest", [151, 255])
    def test_classes_out_of_range(self, tmp_path: Path, largest: int) -> None:
        def change(path: Path) -> None:
            values = labels(2, 50, 74)
            values[3, 5] = largest
            Image.fromarray(values).save(path)

        assert f"has class {largest}: classes are 1 to 150" in self.spoil(
            tmp_path, change, annotation_of(save_set(tmp_path))
        )

    @pytest.mark.parametrize(
        ("what", "pixels"),
        [
            ("16-bit grey", labels(2, 50, 74).astype(np.uint16)),
            ("8-bit RGB", np.stack([labels(2, 50, 74)] * 3, axis=-1)),
            ("8-bit RGB with transparency", np.stack([labels(2, 50, 74)] * 4, axis=-1)),
            ("8-bit grey with transparency", np.stack([labels(2, 50, 74)] * 2, axis=-1)),
        ],
    )
    def test_annotations_of_other_depths_and_channels(self, tmp_path: Path, what: str, pixels: np.ndarray) -> None:
        path = annotation_of(save_set(tmp_path))
        told = self.spoil(tmp_path, lambda p: Image.fromarray(pixels).save(p), path)
        assert f"is a {what} PNG: an annotation has one channel of 8 bits" in told

    def test_a_grey_annotation_of_four_bits_would_be_stretched(self, tmp_path: Path) -> None:
        path = annotation_of(save_set(tmp_path))
        told = self.spoil(tmp_path, lambda p: grey_png(p, 4, np.full((50, 37), 0x12, np.uint8)), path)
        assert "is a 4-bit grey PNG" in told

    def test_a_jpeg_called_png(self, tmp_path: Path) -> None:
        path = annotation_of(save_set(tmp_path))

        def change(path: Path) -> None:
            buffer = io.BytesIO()
            Image.fromarray(labels(2, 50, 74)).save(buffer, "JPEG")
            path.write_bytes(buffer.getvalue())

        assert "is not a PNG but JPEG" in self.spoil(tmp_path, change, path)

    def test_a_file_gone_while_running(self, tmp_path: Path) -> None:
        train, _, _ = read_ade20k(save_set(tmp_path))
        image_of(tmp_path).unlink()
        with pytest.raises(FadevizError, match="cannot be read"):
            train[1]


class TestCrops:
    def test_an_item_depends_on_seed_and_index_alone(self) -> None:
        pictures = Fixed(*(drawing(40 + n, 70)._replace(name=str(n)) for n in range(5)))
        crops = AugmentedCrops(pictures, 32, seed=3)
        forward = [crops[i] for i in range(15)]
        fresh = AugmentedCrops(pictures, 32, seed=3)
        assert all(same(forward[i], fresh[i]) for i in (14, 0, 7, 3, 7))
        assert not same(forward[0], AugmentedCrops(pictures, 32, seed=4)[0])

    def test_every_epoch_has_each_picture_once_in_another_order_and_other_crops(self) -> None:
        pictures = Fixed(*(drawing(40 + n, 70)._replace(name=str(n)) for n in range(5)))
        crops = AugmentedCrops(pictures, 32)
        orders = [[int(crops[i].name) for i in range(start, start + 5)] for start in range(0, 40, 5)]
        assert all(sorted(order) == list(range(5)) for order in orders)
        assert len({tuple(order) for order in orders}) > 4
        assert orders[2] == [crops.source(i) for i in range(10, 15)]
        of_first = [crops[i] for i in range(40) if crops.source(i) == 0]
        assert len({crop.image.tobytes() for crop in of_first}) == 8

    def test_endless_or_empty_sets_and_bad_numbers(self) -> None:
        with pytest.raises(FadevizError, match="need a finite data set"):
            AugmentedCrops(SyntheticHorses(32), 32)
        with pytest.raises(FadevizError, match="with at least one image"):
            AugmentedCrops(Fixed(), 32)
        with pytest.raises(FadevizError, match="seed is -1"):
            AugmentedCrops(Fixed(drawing(40, 40)), 32, seed=-1)
        with pytest.raises(IndexError, match="counted from 0"):
            AugmentedCrops(Fixed(drawing(40, 40)), 32)[-1]

    def test_a_plain_crop_is_a_piece_of_the_picture(self) -> None:
        # At scale 1 the short side, 64, is the crop's: nothing is resampled, and the place along the long side is free.
        sample = drawing(64, 200)
        places = set()
        for seed in range(60):
            crop = augmented_crop(sample, 64, np.random.default_rng(seed), PLAIN)
            found = [x for x in range(137) if np.array_equal(sample.image[:, x : x + 64], crop.image)]
            assert len(found) == 1
            np.testing.assert_array_equal(sample.mask[:, found[0] : found[0] + 64], crop.mask)
            places |= set(found)
        assert min(places) < 15
        assert max(places) > 121

    @pytest.mark.parametrize(("shape", "scale"), [((90, 130), 1.7), ((300, 200), 0.9), ((61, 64), 1.31)])
    def test_a_crop_is_scaling_then_cutting(self, shape: tuple[int, int], scale: float) -> None:
        sample = drawing(*shape)
        recipe = Augmentation(**{**vars(PLAIN), "scale": (scale, scale)})
        high, wide = scaled_shape(shape, 64 * scale)
        image = np.asarray(Image.fromarray(sample.image).resize((wide, high), Image.Resampling.BILINEAR)).astype(int)
        mask = np.asarray(Image.fromarray(sample.mask).resize((wide, high), Image.Resampling.NEAREST))
        part = min(high, 64), min(wide, 64)
        crop = augmented_crop(sample, 64, np.random.default_rng(1), recipe)
        kept = crop.image[: part[0], : part[1]].astype(int)
        differences = {
            (y, x): np.abs(image[y : y + part[0], x : x + part[1]] - kept).max()
            for y in range(high - part[0] + 1)
            for x in range(wide - part[1] + 1)
        }
        (y, x), least = min(differences.items(), key=lambda item: item[1])
        assert least <= 1
        np.testing.assert_array_equal(mask[y : y + part[0], x : x + part[1]], crop.mask[: part[0], : part[1]])

    def test_a_picture_smaller_than_the_crop_is_padded(self) -> None:
        recipe = Augmentation(**{**vars(PLAIN), "scale": (0.5, 0.5)})
        sample = drawing(40, 60)
        crop = augmented_crop(sample, 64, np.random.default_rng(0), recipe)
        assert crop.image.shape == (64, 64, 3)
        assert (crop.mask[32:] == IGNORED).all()
        assert (crop.mask[:, 48:] == IGNORED).all()
        assert (crop.image[crop.mask == IGNORED] == PADDING).all()
        expected = np.asarray(Image.fromarray(sample.image).resize((48, 32), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(crop.image[:32, :48], expected)
        # Padding keeps its colour whatever the distortion: it is 0 once normalised.
        loud = Augmentation(**{**vars(recipe), "brightness": 200, "contrast": (0.1, 3)})
        for seed in range(8):
            assert (augmented_crop(sample, 64, np.random.default_rng(seed), loud).image[32:] == PADDING).all()

    def test_scales_span_the_range(self) -> None:
        sample = drawing(64, 64, np.zeros((64, 64), np.uint8))
        recipe = Augmentation(**{**vars(PLAIN), "scale": (0.5, 2.0)})
        crops = [augmented_crop(sample, 64, np.random.default_rng(seed), recipe) for seed in range(200)]
        heights = [int((crop.mask[:, 0] == 0).sum()) for crop in crops]
        assert min(heights) in range(32, 36)
        # A third of 0.5..2 is below 1, where the image is padded.
        assert 0.23 < np.mean([height < 64 for height in heights]) < 0.43

    def test_a_strip_is_scaled_by_its_long_side(self) -> None:
        assert scaled_shape((20, 400), 64, longest=256) == (13, 256)
        crop = augmented_crop(drawing(20, 400), 64, np.random.default_rng(0), PLAIN)
        assert (crop.mask[13:] == IGNORED).all()

    def test_half_of_the_crops_are_mirrored_mask_and_image_alike(self) -> None:
        sample = drawing(64, 64)
        recipe = Augmentation(**{**vars(PLAIN), "flip": 0.5})
        mirrored = 0
        for seed in range(200):
            crop = augmented_crop(sample, 64, np.random.default_rng(seed), recipe)
            way = -1 if np.array_equal(crop.image, sample.image[:, ::-1]) else 1
            np.testing.assert_array_equal(crop.image, sample.image[:, ::way])
            np.testing.assert_array_equal(crop.mask, sample.mask[:, ::way])
            mirrored += way < 0
        assert 75 < mirrored < 125

    def test_crops_of_one_class_are_drawn_anew(self) -> None:
        # One class but for the last tenth: most places are of one class, those at the end are not.
        mask = np.zeros((64, 640), np.uint8)
        mask[:, 592:] = 1
        sample = drawing(64, 640, mask)
        shares = {}
        for tries in (1, 10, 400):
            recipe = Augmentation(**{**vars(PLAIN), "tries": tries, "scale": (2.0, 2.0)})
            masks = [augmented_crop(sample, 32, np.random.default_rng(seed), recipe).mask for seed in range(60)]
            shares[tries] = float(np.mean([largest_share(m) <= 0.75 for m in masks]))
        assert shares[1] < 0.15
        assert shares[1] + 0.1 < shares[10] < 0.9
        assert shares[400] == 1

    def test_the_share_is_of_labelled_pixels(self) -> None:
        mask = np.full((10, 10), IGNORED, np.uint8)
        assert largest_share(mask) == 1
        mask[0, :3] = 149
        mask[0, 3] = 0
        assert largest_share(mask) == 0.75

    def test_the_number_of_tries_shifts_nothing_else(self) -> None:
        uniform = drawing(64, 64, np.zeros((64, 64), np.uint8))
        varied = uniform._replace(mask=labels(1, 64, 64))
        for seed in range(10):
            # Both cover the whole image, whatever its mask.
            recipe = Augmentation(scale=(0.9, 0.9))
            first, second = (augmented_crop(s, 64, np.random.default_rng(seed), recipe) for s in (uniform, varied))
            np.testing.assert_array_equal(first.image, second.image)

    def test_writing_into_a_crop_changes_no_other(self) -> None:
        sample = drawing(64, 64)
        kept = sample.image.copy(), sample.mask.copy()
        for crop in (augmented_crop(sample, 64, np.random.default_rng(0), PLAIN), CentreCrops(Fixed(sample), 64)[0]):
            crop.image[:] = 0
            crop.mask[:] = 0
        np.testing.assert_array_equal(sample.image, kept[0])
        np.testing.assert_array_equal(sample.mask, kept[1])

    def test_centre_crops_are_the_middle(self) -> None:
        sample = drawing(64, 101)
        crop = CentreCrops(Fixed(sample), 64)[0]
        np.testing.assert_array_equal(crop.image, sample.image[:, 18:82])
        np.testing.assert_array_equal(crop.mask, sample.mask[:, 18:82])
        tall = CentreCrops(Fixed(drawing(90, 30)), 64)[0]
        assert tall.image.shape == (64, 64, 3)
        assert (tall.mask != IGNORED).all()
        # Enlarged 64/30 times, its rows 32 to 158 of 192 are shown: no resampling shifts them by a pixel.
        whole = Image.fromarray(drawing(90, 30).mask).resize((64, 192), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(tall.mask, np.asarray(whole)[64:128])


class TestColours:
    """Every change of colour against the definition, pixel by pixel."""

    @staticmethod
    def slowly(planes: np.ndarray, change: Callable[[float, float, float], tuple[float, float, float]]) -> np.ndarray:
        changed = np.empty(planes.shape)
        for place in np.ndindex(planes.shape[1:]):
            hue, saturation, value = change(*colorsys.rgb_to_hsv(*(planes[(slice(None), *place)] / 255)))
            changed[(slice(None), *place)] = np.multiply(colorsys.hsv_to_rgb(hue % 1, min(saturation, 1), value), 255)
        return changed

    @staticmethod
    def planes() -> np.ndarray:
        """Random colours, and all corners and edges of the cube: greys, black, white, two channels alike."""
        random = np.random.default_rng(0).uniform(0, 255, (3, 300))
        levels = np.array(np.meshgrid(*[[0, 64, 128, 255]] * 3)).reshape(3, -1)
        return np.concatenate([random, levels], axis=1).reshape(3, 4, -1).astype(np.float32)

    @pytest.mark.parametrize("degrees", [0, 36, -36, 17.3, 180, -359])
    def test_hue(self, degrees: float) -> None:
        planes = self.planes()
        expected = self.slowly(planes, lambda h, s, v: (h + degrees / 360, s, v))
        np.testing.assert_allclose(adjust_hue(planes, degrees), expected, atol=1e-3)

    @pytest.mark.parametrize("factor", [0, 0.5, 1, 1.5, 40])
    def test_saturation(self, factor: float) -> None:
        planes = self.planes()
        expected = self.slowly(planes, lambda h, s, v: (h, s * factor, v))
        np.testing.assert_allclose(adjust_saturation(planes, factor), expected, atol=1e-3)

    def test_brightness_and_contrast(self) -> None:
        planes = self.planes()
        np.testing.assert_allclose(adjust_brightness(planes, -30), np.clip(planes - 30.0, 0, 255), atol=1e-4)
        np.testing.assert_allclose(adjust_brightness(planes, 200), np.clip(planes + 200.0, 0, 255), atol=1e-4)
        np.testing.assert_allclose(adjust_contrast(planes, 1.5), np.clip(planes * 1.5, 0, 255), atol=1e-4)

    def test_inputs_stay_as_they_are(self) -> None:
        planes = self.planes()
        kept = planes.copy()
        for change in (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue):
            assert change(planes, 0.7).dtype == np.float32
            np.testing.assert_array_equal(planes, kept)

    def test_a_crop_goes_through_brightness_contrast_saturation_hue(self) -> None:
        # Fixed amounts: each crop then is one of 2^4 choices, in one of the two orders.
        sample = drawing(64, 64, (np.arange(64 * 64) % 150).astype(np.uint8).reshape(64, 64))
        recipe = Augmentation(
            **{**vars(PLAIN), "brightness": 0, "contrast": (1.3, 1.3), "saturation": (1.4, 1.4), "hue": 0}
        )
        planes = sample.image.transpose(2, 0, 1).astype(np.float32)
        choices = {
            "nothing": planes,
            "contrast": adjust_contrast(planes, 1.3),
            "saturation": adjust_saturation(planes, 1.4),
            "contrast, saturation": adjust_saturation(adjust_contrast(planes, 1.3), 1.4),
            "saturation, contrast": adjust_contrast(adjust_saturation(planes, 1.4), 1.3),
        }
        pictures = {name: np.rint(value).astype(np.uint8).transpose(1, 2, 0) for name, value in choices.items()}
        met = []
        for seed in range(160):
            image = augmented_crop(sample, 64, np.random.default_rng(seed), recipe).image
            met.append([name for name, picture in pictures.items() if np.array_equal(picture, image)])
        assert all(len(names) == 1 for names in met)
        shares = {name: sum(names == [name] for names in met) / len(met) for name in pictures}
        assert all(0.15 < shares[name] < 0.35 for name in ("nothing", "contrast", "saturation"))
        assert all(0.06 < shares[name] < 0.2 for name in ("contrast, saturation", "saturation, contrast"))

    def test_amounts_span_their_ranges(self) -> None:
        grey = Sample("grey", np.full((32, 32, 3), 128, np.uint8), labels(0, 32, 32))
        bright = Augmentation(**{**vars(PLAIN), "brightness": 32})
        values = [augmented_crop(grey, 32, np.random.default_rng(s), bright).image[0, 0, 0] for s in range(200)]
        assert min(values) in range(96, 101)
        assert max(values) in range(156, 161)
        assert 0.35 < np.mean(np.array(values) == 128) < 0.65
        red = Sample("red", np.broadcast_to(np.array([200, 40, 40], np.uint8), (32, 32, 3)), labels(0, 32, 32))
        turning = Augmentation(**{**vars(PLAIN), "hue": 36})
        hues = [
            (
                colorsys.rgb_to_hsv(*augmented_crop(red, 32, np.random.default_rng(s), turning).image[0, 0] / 255)[0]
                + 0.5
            )
            % 1
            - 0.5
            for s in range(200)
        ]
        assert -0.1 <= min(hues) < -0.09
        assert 0.09 < max(hues) <= 0.1

    @given(seed=st.integers(0, 2**32), height=st.integers(1, 90), width=st.integers(1, 90))
    def test_any_picture_gives_a_square_of_its_classes(self, seed: int, height: int, width: int) -> None:
        sample = drawing(height, width)
        crop = augmented_crop(sample, 32, np.random.default_rng(seed))
        assert crop.image.shape == (32, 32, 3)
        assert crop.mask.shape == (32, 32)
        assert set(np.unique(crop.mask)) <= {*np.unique(sample.mask).tolist(), IGNORED}


class TestSample:
    """The three validation images of the real set, where they are at hand."""

    def test_the_real_sample(self, shared: Path) -> None:
        folder = shared / "data" / "ade20k_sample"
        if not folder.is_dir():
            pytest.skip(f"needs three images of ADE20K in {folder}")
        assert check_ade20k(folder) == []
        train, test, notes = read_ade20k(folder)
        assert train.names == test.names == tuple(f"ADE_val_0000000{n}" for n in (1, 2, 3))
        assert len(notes) == 1
        assert train[0].image.shape == (512, 683, 3)
        names = class_names(folder)
        assert names[:3] == ("wall", "building", "sky")
        assert names[149] == "flag"
        assert len(set(names)) == CLASSES
        with Image.open(folder / "annotations" / "ADE_val_00000001.png") as opened:
            values = np.asarray(opened)
        np.testing.assert_array_equal(train[0].mask == IGNORED, values == 0)
        np.testing.assert_array_equal(train[0].mask[values > 0] + 1, values[values > 0])
        splits = load_ade20k(folder, 256)
        crops = [splits.train[i] for i in range(12)]
        assert all(crop.image.shape == (256, 256, 3) for crop in crops)
        # The image and its mask stay together: what is called sky is brighter and bluer than what is called tree.
        sky, tree = names.index("sky"), names.index("tree")
        sky_colour, tree_colour = (
            np.mean([s.image[s.mask == c].mean(axis=0) for s in crops if (s.mask == c).sum() > 500], axis=0)
            for c in (sky, tree)
        )
        assert sky_colour[2] > tree_colour[2] + 40
