"""Matting data: trimaps, compositing, drawn mattes, and the layouts of the published sets, made small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fadeviz.data import Dataset, Sample, Splits
from fadeviz.data.matting.compositing import (
    composite,
    crop_unknown,
    estimate_layers,
    far_from,
    make_trimap,
    trimap_radii,
)
from fadeviz.data.matting.dataset import (
    MatteCrops,
    MatteImages,
    SyntheticMattes,
    check_matting,
    load_matting,
    load_synthetic_mattes,
)
from fadeviz.data.synthetic.dataset import SyntheticHorses
from fadeviz.errors import FadevizError

HIGH, WIDE = 60, 72


class Fixed:
    """A generator whose numbers are given."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def integers(self, low: int, high: int) -> int:
        value = self.numbers.pop(0)
        assert low <= value < high
        return value


def soft_disc(radius: float = 16, high: int = HIGH, wide: int = WIDE, soft: float = 8) -> np.ndarray:
    """A matte of 8 bits: 255 inside, falling to 0 over ``soft`` pixels."""
    y, x = np.mgrid[:high, :wide]
    far = np.hypot(y - high / 2, x - wide / 2)
    return (np.clip((radius + soft - far) / soft, 0, 1) * 255).astype(np.uint8)


def colours(seed: int, high: int = HIGH, wide: int = WIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (high, wide, 3)).astype(np.uint8)


def trimap_of(matte: np.ndarray) -> np.ndarray:
    return np.where(matte == 0, 0, np.where(matte == 255, 255, 128)).astype(np.uint8)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def same(a: Sample, b: Sample) -> bool:
    return a.name == b.name and all(np.array_equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))


def save_composition(root: Path, composed: bool = True) -> Path:
    """Adobe's layout: two parts to train on, two foregrounds to test on, two backgrounds to each."""
    train, test = root / "Training_set", root / "Test_set"
    for number, part in enumerate(["Adobe-licensed images", "Adobe-licensed images", "Other"]):
        save(train / part / "fg" / f"object{number}.png", colours(number))
        save(train / part / "alpha" / f"object{number}.png", soft_disc(12 + number))
    for number in range(3):
        Image.fromarray(colours(50 + number, 90, 80)).save(root / f"ground{number}.jpg")
    (train / "bg").mkdir()
    for number in range(3):
        (root / f"ground{number}.jpg").rename(train / "bg" / f"ground{number}.jpg")
    (train / "training_bg_names.txt").write_text("ground0.jpg\nground2.jpg\n")
    part = test / "Adobe-licensed images"
    for number in range(2):
        matte = soft_disc(10 + number)
        save(part / "fg" / f"thing{number}.png", colours(10 + number))
        save(part / "alpha" / f"thing{number}.png", matte)
        for turn in range(2):
            save(part / "trimaps" / f"thing{number}_{turn}.png", trimap_of(matte))
            if composed:
                save(part / "merged" / f"thing{number}_{turn}.png", colours(20 + 2 * number + turn))
            save(test / "bg" / f"room{2 * number + turn}.png", colours(30 + 2 * number + turn, 40, 80))
    (test / "test_fg_names.txt").write_text("thing1.png\nthing0.png\n")
    (test / "test_bg_names.txt").write_text("room3.png\nroom2.png\nroom1.png\nroom0.png\n")
    return root


def save_alphamatting(root: Path, count: int = 9) -> Path:
    for number in range(1, count + 1):
        name = f"GT{number:02d}.png"
        matte = soft_disc(8 + number)
        save(root / "input" / name, colours(number))
        save(root / "gt" / name, np.stack([matte] * 3, 2))
        trimap = Image.frombytes("P", (WIDE, HIGH), trimap_of(matte).tobytes())
        trimap.putpalette([level for level in range(256) for _ in range(3)])
        (root / "trimap1").mkdir(exist_ok=True)
        trimap.save(root / "trimap1" / name)
    return root


def save_images(root: Path, names: tuple[str, ...] = ("lemur",)) -> Path:
    for number, name in enumerate(names):
        matte = soft_disc(14)
        save(root / f"{name}.png", colours(number))
        save(root / f"{name}_alpha.png", matte)
        save(root / f"{name}_foreground.png", colours(number + 40))
        save(root / f"{name}_trimap.png", np.where(trimap_of(matte) == 128, 102, trimap_of(matte)).astype(np.uint8))
    return root


class TestTrimap:
    @pytest.mark.parametrize(("inner", "outer"), [(0, 0), (1, 3), (4, 2), (5, 5)])
    @pytest.mark.parametrize("binary", [False, True])
    def test_against_a_slow_loop(self, inner: int, outer: int, binary: bool) -> None:
        alpha = soft_disc(6, 24, 20, soft=3).astype(np.float32) / 255
        alpha[3, 4] = 0.4
        if binary:
            alpha = (alpha >= 0.5).astype(np.float32)
            if inner == outer == 0:
                with pytest.raises(FadevizError, match="no pixel is unknown"):
                    make_trimap(alpha, Fixed(0, 0), (0, 9))  # type: ignore[arg-type]
                return
        got = make_trimap(alpha, Fixed(inner, outer), (0, 9))  # type: ignore[arg-type]
        for y in range(24):
            for x in range(20):
                near = {0: [], 1: []}
                for value, radius in ((1, inner), (0, outer)):
                    for v in range(24):
                        for u in range(20):
                            if (v - y) ** 2 + (u - x) ** 2 <= radius**2:
                                near[value].append(alpha[v, u] == value)
                want = 255 if all(near[1]) else 0 if all(near[0]) else 128
                assert got[y, x] == want, (y, x)

    @pytest.mark.parametrize("radius", [0, 1, 2, 7, 19, 100, 101])
    def test_what_is_far_is_what_the_distance_transform_says(self, radius: int) -> None:
        random = np.random.default_rng(radius)
        for shape in ((1, 9), (9, 1), (31, 48), (70, 300)):
            for share in (0.0005, 0.01, 0.3):
                marked = random.random(shape) < share
                marked[int(random.integers(shape[0])), int(random.integers(shape[1]))] = True
                wanted = ndimage.distance_transform_edt(~marked) > radius
                np.testing.assert_array_equal(far_from(marked, radius), wanted)

    def test_radii_are_drawn_and_both_ends_occur(self) -> None:
        alpha = soft_disc().astype(np.float32) / 255
        random = np.random.default_rng(0)
        trimaps = [make_trimap(alpha, random, (1, 3)) for _ in range(60)]
        kinds = {(int((t == 255).sum()), int((t == 0).sum())) for t in trimaps}
        assert len(kinds) == 9
        for wide, narrow in ((make_trimap(alpha, random, (7, 7)), make_trimap(alpha, random, (1, 1))),):
            assert ((narrow == 128) <= (wide == 128)).all()
            assert (narrow == 128).sum() < (wide == 128).sum()

    @pytest.mark.parametrize(("value", "radii"), [(0, (1, 4)), (1, (1, 4)), (0.5, (3, 2)), (0.5, (-1, 2))])
    def test_what_cannot_be(self, value: float, radii: tuple[int, int]) -> None:
        with pytest.raises(FadevizError, match="radii are|nothing is unknown") as caught:
            make_trimap(np.full((8, 8), value, np.float32), np.random.default_rng(0), radii)
        assert "\n" not in str(caught.value)

    def test_radii_grow_with_the_size_up_to_the_published_ones(self) -> None:
        assert [trimap_radii(size) for size in (32, 128, 320, 512)] == [(1, 2), (1, 7), (1, 19), (1, 19)]


class TestLayers:
    def test_compositing_is_the_formula_rounded(self) -> None:
        alpha = soft_disc().astype(np.float32) / 255
        front, back = colours(1), colours(2)
        got = composite(front, back, alpha)
        for y, x in ((0, 0), (30, 36), (30, 16), (12, 36), (30, 57)):
            a = float(alpha[y, x])
            want = [a * float(f) + (1 - a) * float(b) for f, b in zip(front[y, x], back[y, x], strict=True)]
            np.testing.assert_allclose(got[y, x], want, atol=0.501)
        share = alpha[..., None]
        exact = np.clip(np.rint(share * front + (1 - share) * back.astype(np.float32)), 0, 255)
        np.testing.assert_array_equal(got, exact)
        np.testing.assert_array_equal(composite(front, back, np.ones_like(alpha)), front)
        np.testing.assert_array_equal(composite(front, back, np.zeros_like(alpha)), back)
        with pytest.raises(FadevizError, match="foreground 72x60, background 72x60 and alpha 71x60 differ"):
            composite(front, back, alpha[:, 1:])

    def test_estimates_take_the_nearest_pure_colour(self) -> None:
        image = colours(3, 9, 14)
        alpha = np.random.default_rng(0).choice([0, 0.1, 0.5, 0.9, 1], (9, 14)).astype(np.float32)
        for layer, pure in zip(estimate_layers(image, alpha), (alpha == 1, alpha == 0), strict=True):
            places = np.argwhere(pure)
            for y in range(9):
                for x in range(14):
                    squared = ((places - (y, x)) ** 2).sum(1)
                    nearest = places[squared == squared.min()]
                    assert any((layer[y, x] == image[v, u]).all() for v, u in nearest)

    def test_estimates_without_a_pure_pixel(self) -> None:
        image = colours(3, 4, 4)
        alpha = np.full((4, 4), 0.5, np.float32)
        alpha[1, 2], alpha[3, 0] = 0.7, 0.2
        front, back = estimate_layers(image, alpha)
        assert (front == image[1, 2]).all()
        assert (back == image[3, 0]).all()

    def test_windows_to_observe_hold_most_unknown_pixels_beside_known_ones(self) -> None:
        random = np.random.default_rng(0)
        trimap = random.choice([0, 128, 255], (40, 62), p=[0.5, 0.4, 0.1]).astype(np.uint8)
        image = colours(1, 40, 62)
        sample = Sample("a", image, (trimap > 0).astype(np.uint8), trimap / np.float32(255), trimap, image, image)
        counts = {}
        for y in range(25):
            for x in range(47):
                window = trimap[y : y + 16, x : x + 16]
                clear = min((window == 0).mean(), (window == 255).mean()) >= 0.1
                counts[y, x] = (clear, int((window == 128).sum()))
        top, left = max(counts, key=lambda place: counts[place])
        assert counts[top, left][0]
        assert max(unknown for _, unknown in counts.values()) > counts[top, left][1]  # the rule has its say
        got = crop_unknown(sample, 8)
        cut = image[top : top + 16, left : left + 16]
        np.testing.assert_array_equal(
            got.image, np.array(Image.fromarray(cut).resize((8, 8), Image.Resampling.BILINEAR))
        )
        assert got.trimap is not None
        assert got.trimap.shape == got.mask.shape == (8, 8)
        assert got.foreground is None
        assert got.background is None

    def test_a_window_without_known_pixels_is_better_than_none(self) -> None:
        trimap = np.zeros((30, 30), np.uint8)
        trimap[20:25, 3:9] = 128
        sample = Sample("a", colours(1, 30, 30), trimap // 128, trimap / np.float32(255), trimap)
        got = crop_unknown(sample, 20)
        assert got.trimap is not None
        assert (got.trimap == 128).any()

    def test_what_is_known_in_a_shrunk_window_is_known_of_all_it_stands_for(self) -> None:
        matte = soft_disc()
        sample = Sample("a", colours(2), (matte >= 128).astype(np.uint8), matte / np.float32(255), trimap_of(matte))
        got = crop_unknown(sample, 30)  # 60 of 60x72
        assert got.alpha is not None
        assert got.trimap is not None
        assert set(np.unique(got.trimap)) == {0, 128, 255}
        assert (got.alpha[got.trimap == 255] == 1).all()
        assert (got.alpha[got.trimap == 0] == 0).all()
        np.testing.assert_array_equal(got.mask, got.alpha >= 0.5)
        assert got.alpha.mean() == pytest.approx(matte[:, 6:66].mean() / 255, abs=0.03)

    def test_pictures_of_the_size_stay_and_smaller_ones_are_refused(self) -> None:
        sample = SyntheticMattes(64, count=2, stream="test")[1]
        for part, same in zip(crop_unknown(sample, 64), sample, strict=True):
            np.testing.assert_array_equal(part, same)
        with pytest.raises(FadevizError, match="64x64, smaller than size=65"):
            crop_unknown(sample, 65)
        with pytest.raises(FadevizError, match="has no trimap"):
            crop_unknown(sample._replace(trimap=None), 8)


def check_sample(sample: Sample, size: int) -> None:
    """All that a training crop promises."""
    assert sample.image.shape == (size, size, 3)
    assert sample.mask.shape == (size, size)
    assert sample.alpha is not None
    assert sample.alpha.dtype == np.float32
    assert sample.trimap is not None
    assert sample.foreground is not None
    assert sample.background is not None
    assert set(np.unique(sample.trimap)) <= {0, 128, 255}
    assert (sample.trimap == 128).any()
    assert (sample.alpha[sample.trimap == 255] == 1).all()
    assert (sample.alpha[sample.trimap == 0] == 0).all()
    np.testing.assert_array_equal(sample.mask, sample.alpha >= 0.5)
    np.testing.assert_array_equal(sample.image, composite(sample.foreground, sample.background, sample.alpha))
    np.testing.assert_allclose(sample.alpha * 255, np.rint(sample.alpha * 255), atol=1e-4)
    assert all(part.flags.c_contiguous for part in sample[1:])


class TestDrawn:
    def test_layers_explain_the_drawn_picture(self) -> None:
        horses = SyntheticHorses(64, seed=4)
        for index in range(5):
            sample = horses[index]
            front, back, alpha = horses.layers(index)
            np.testing.assert_array_equal(alpha, sample.alpha)
            off = np.abs(composite(front, back, alpha).astype(int) - sample.image)
            assert (off <= 1).mean() > 0.998
            assert off.mean() < 0.05
        with pytest.raises(IndexError, match="no sample -1"):
            horses.layers(-1)

    def test_crops_and_whole_pictures(self) -> None:
        splits = load_synthetic_mattes(64, split_seed=2, seed=1)
        train: Dataset = splits.train
        assert train.count is None
        assert splits.test.count == 64
        for dataset in (splits.train, splits.test):
            for index in range(6):
                check_sample(dataset[index], 64)
        assert splits.info["name"] == "synthetic-mattes"
        np.testing.assert_array_equal(splits.test[3].mask, SyntheticHorses(64, 2, stream="test")[3].mask)

    def test_a_function_of_seed_and_index(self) -> None:
        first, again = SyntheticMattes(48, 1), SyntheticMattes(48, 1)
        kept = [first[i] for i in range(4)]
        assert all(same(again[i], kept[i]) for i in reversed(range(4)))
        assert not np.array_equal(SyntheticMattes(48, 2)[0].image, kept[0].image)
        assert not np.array_equal(SyntheticMattes(48, 1, stream="test")[0].image, kept[0].image)

    def test_crops_differ_in_scale_and_side(self) -> None:
        """Half are mirrored, and the horse fills more of some crops than of the whole drawing."""
        train, whole = SyntheticMattes(48, 0), SyntheticHorses(48, 0)
        ratios = [train[i].mask.mean() / whole[i].mask.mean() for i in range(12)]
        assert max(ratios) > 1.3

    @pytest.mark.parametrize("size", [16, True, 64.0, "64"])
    def test_sizes_that_are_none(self, size: object) -> None:
        with pytest.raises(FadevizError, match="32 or more"):
            load_synthetic_mattes(size)  # type: ignore[arg-type]


class TestComposition:
    def test_training_crops(self, tmp_path: Path) -> None:
        splits = load_matting(save_composition(tmp_path), 32)
        assert isinstance(splits, Splits)
        assert isinstance(splits.train, MatteCrops)
        assert isinstance(splits.test, MatteImages)
        assert splits.train.count is None
        assert splits.train.names == ("object0", "object1", "object2")
        assert splits.info["name"] == "composition-1k"
        assert splits.info["backgrounds"] == 2
        for index in range(12):
            check_sample(splits.train[index], 32)
        for round_ in range(3):
            names = {splits.train[index].name.split("-")[0] for index in range(3 * round_, 3 * round_ + 3)}
            assert names == {"object0", "object1", "object2"}

    def test_only_listed_backgrounds_are_used(self, tmp_path: Path) -> None:
        """Backgrounds of one colour each: the one that is not listed never occurs."""
        save_composition(tmp_path)
        for number, level in enumerate((10, 120, 240)):
            Image.new("RGB", (50, 40), (level,) * 3).save(tmp_path / "Training_set" / "bg" / f"ground{number}.jpg")
        train = load_matting(tmp_path, 32).train
        seen = {int(train[index].background[0, 0, 0]) for index in range(24)}  # type: ignore[index]
        assert seen == {10, 240}

    def test_a_crop_is_a_function_of_seed_and_index(self, tmp_path: Path) -> None:
        save_composition(tmp_path)
        train, again, other = (load_matting(tmp_path, 32, seed=seed).train for seed in (5, 5, 6))
        kept = [train[i] for i in range(6)]
        assert all(same(again[i], kept[i]) for i in reversed(range(6)))
        assert not all(np.array_equal(other[i].image, kept[i].image) for i in range(6))
        with pytest.raises(IndexError):
            train[-1]

    def test_crops_show_the_foreground_as_it_is_and_mirrored(self, tmp_path: Path) -> None:
        """At scale 1 nothing is resized: every crop is a window of the foreground, or of its mirror image."""
        save_composition(tmp_path)
        train = load_matting(tmp_path, 48).train
        found = set()
        for index in range(24):
            sample = train[index]
            whole = colours(int(sample.name.split("-")[0].removeprefix("object")))
            for turned, name in ((whole, "plain"), (whole[:, ::-1], "mirrored")):
                windows = np.lib.stride_tricks.sliding_window_view(turned, (48, 48, 3)).reshape(-1, 48, 48, 3)
                if (windows == sample.foreground).all((1, 2, 3)).any():
                    found.add(name)
        assert found == {"plain", "mirrored"}

    def test_a_lone_wavering_pixel_does_not_stop_training(self, tmp_path: Path) -> None:
        save_composition(tmp_path)
        for part, number in (("Adobe-licensed images", 0), ("Adobe-licensed images", 1), ("Other", 2)):
            matte = np.full((140, 150), 255, np.uint8)
            matte[60, 70] = 254
            save(tmp_path / "Training_set" / part / "alpha" / f"object{number}.png", matte)
            save(tmp_path / "Training_set" / part / "fg" / f"object{number}.png", colours(number, 140, 150))
        train = load_matting(tmp_path, 32).train
        for index in range(12):
            check_sample(train[index], 32)

    def test_merged_test_pictures(self, tmp_path: Path) -> None:
        test = load_matting(save_composition(tmp_path), 32).test
        assert [test[i].name for i in range(4)] == ["thing0_0", "thing0_1", "thing1_0", "thing1_1"]
        sample = test[3]
        np.testing.assert_array_equal(sample.image, colours(23))
        np.testing.assert_array_equal(np.rint(sample.alpha * 255), soft_disc(11))
        assert sample.foreground is None
        for index in (-1, 4):
            with pytest.raises(IndexError):
                test[index]

    def test_test_pictures_composed_from_the_lists(self, tmp_path: Path) -> None:
        """thing1 takes room3 and room2, thing0 room1 and room0; a small background is enlarged to cover."""
        test = load_matting(save_composition(tmp_path, composed=False), 32).test
        assert [test[i].name for i in range(4)] == ["thing1_0", "thing1_1", "thing0_0", "thing0_1"]
        sample = test[0]
        np.testing.assert_array_equal(sample.foreground, colours(11))
        enlarged = Image.fromarray(colours(33, 40, 80)).resize((120, 60), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(sample.background, np.asarray(enlarged)[:HIGH, :WIDE])
        np.testing.assert_array_equal(sample.image, composite(sample.foreground, sample.background, sample.alpha))

    def test_the_flat_layout_in_combined_dataset(self, tmp_path: Path) -> None:
        root = tmp_path / "Combined_Dataset"
        for number in range(2):
            save(root / "train" / "fg" / f"o{number}.png", colours(number))
            save(root / "train" / "alpha" / f"o{number}.png", soft_disc())
            save(root / "train" / "bg" / f"b{number}.png", colours(number + 9))
        for folder, values in (
            ("merged", colours(3)),
            ("trimaps", trimap_of(soft_disc())),
            ("alpha_copy", soft_disc()),
        ):
            save(root / "test" / folder / "t_0.png", values)
        splits = load_matting(tmp_path, 32)
        assert splits.info["train"] == ["o0", "o1"]
        assert splits.test[0].name == "t_0"
        assert check_matting(tmp_path) == []

    @pytest.mark.parametrize(
        ("remove", "message"),
        [
            (
                "Training_set/bg/ground2.jpg",
                r"bg lacks 1 of the 2 images that training_bg_names.txt lists, such as g",
            ),
            ("Training_set/Other/alpha/object2.png", r"object2.png has no matte .*alpha/object2\.\*\. Add the matte"),
            ("Test_set/Adobe-licensed images/trimaps/thing0_1.png", r"thing0_1.png has no trimap .*testing needs one"),
            ("Test_set/Adobe-licensed images/alpha/thing0.png", r"thing0_0.png has no matte in .*\(and 1 more such"),
        ],
    )
    def test_what_is_missing_is_named(self, tmp_path: Path, remove: str, message: str) -> None:
        save_composition(tmp_path)
        (tmp_path / remove).unlink()
        with pytest.raises(FadevizError, match=message) as caught:
            load_matting(tmp_path, 32)
        assert "\n" not in str(caught.value)
        assert len(check_matting(tmp_path)) >= 1

    @pytest.mark.parametrize(
        ("remove", "message"),
        [
            ("Test_set/bg/room0.png", "has no room0.png, which test_bg_names.txt lists"),
            ("Test_set/Adobe-licensed images/fg/thing1.png", "has no fg/ and alpha/ of thing1.png"),
            ("Test_set/Adobe-licensed images/trimaps/thing1_0.png", "has no trimap thing1_0"),
            ("Test_set/test_bg_names.txt", "test_bg_names.txt cannot be read: No such file"),
        ],
    )
    def test_what_is_missing_to_compose_is_named(self, tmp_path: Path, remove: str, message: str) -> None:
        save_composition(tmp_path, composed=False)
        (tmp_path / remove).unlink()
        with pytest.raises(FadevizError, match=message):
            load_matting(tmp_path, 32)

    def test_lists_that_do_not_go_together(self, tmp_path: Path) -> None:
        save_composition(tmp_path, composed=False)
        (tmp_path / "Test_set" / "test_bg_names.txt").write_text("room3.png\nroom2.png\nroom1.png\n")
        with pytest.raises(FadevizError, match=r"3 lines in test_bg_names.txt cannot be shared by 2 in"):
            load_matting(tmp_path, 32)

    def test_no_backgrounds(self, tmp_path: Path) -> None:
        save_composition(tmp_path)
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(FadevizError, match="empty has no images: backgrounds are needed"):
            load_matting(tmp_path, 32, backgrounds=empty)


class TestAlphamatting:
    def test_split_and_samples(self, tmp_path: Path) -> None:
        splits = load_matting(save_alphamatting(tmp_path), 32, split_seed=3)
        train, test = splits.info["train"], splits.info["test"]
        assert isinstance(train, list)
        assert isinstance(test, list)
        assert len(train) == 7
        assert sorted(train + test) == [f"GT{number:02d}" for number in range(1, 10)]
        others = [load_matting(tmp_path, 32, split_seed=seed).info["test"] for seed in range(4)]
        assert any(other != test for other in others)
        assert load_matting(tmp_path, 48, split_seed=3, seed=9).info == splits.info
        for index in range(8):
            check_sample(splits.train[index], 32)
        sample = splits.test[0]
        assert sample.image.shape == (HIGH, WIDE, 3)
        np.testing.assert_array_equal(np.rint(sample.alpha * 255), soft_disc(8 + int(sample.name[2:])))
        assert sample.foreground is None

    def test_crops_on_their_own_ground_and_on_others(self, tmp_path: Path) -> None:
        """Images whose ground is one colour: a crop's ground tells whose it is."""
        save_alphamatting(tmp_path)
        for number in range(1, 10):
            image = colours(number)
            image[soft_disc(8 + number) == 0] = number
            save(tmp_path / "input" / f"GT{number:02d}.png", image)
        train = load_matting(tmp_path, 32).train
        own = [int(s.background[0, 0, 0]) == int(s.name[2:4]) for s in (train[i] for i in range(60))]  # type: ignore[index]
        assert 0.35 < np.mean(own) < 0.8

    def test_backgrounds_of_ones_own(self, tmp_path: Path) -> None:
        save_alphamatting(tmp_path / "set")
        save(tmp_path / "grounds" / "a.png", np.full((20, 30, 3), 77, np.uint8))
        train = load_matting(tmp_path / "set", 32, backgrounds=tmp_path / "grounds").train
        assert all((train[index].background == 77).all() for index in range(5))

    def test_the_other_trimaps_serve(self, tmp_path: Path) -> None:
        save_alphamatting(tmp_path)
        (tmp_path / "trimap1").rename(tmp_path / "trimap2")
        assert check_matting(tmp_path) == []

    def test_the_real_set(self, shared: Path) -> None:
        folder = shared / "data" / "alphamatting"
        if not folder.is_dir():
            pytest.skip(f"needs {folder}")
        splits = load_matting(folder, 64)
        train, test = splits.info["train"], splits.info["test"]
        assert (len(train), len(test)) == (14, 4)  # type: ignore[arg-type]
        check_sample(splits.train[0], 64)
        sample = splits.test[0]
        assert sample.alpha is not None
        assert sample.trimap is not None
        assert 0.02 < (sample.trimap == 128).mean() < 0.4
        assert (sample.alpha[sample.trimap == 255] > 0.95).all()


class TestPictures:
    def test_one_picture_is_trained_and_tested_on(self, tmp_path: Path) -> None:
        splits = load_matting(save_images(tmp_path), 32)
        assert splits.info["notes"] == ["a single image: it is trained on and tested on"]
        sample = splits.test[0]
        np.testing.assert_array_equal(sample.foreground, colours(40))
        np.testing.assert_array_equal(sample.trimap, trimap_of(soft_disc(14)))
        check_sample(splits.train[0], 32)

    def test_several_are_split(self, tmp_path: Path) -> None:
        info = load_matting(save_images(tmp_path, ("a", "b", "c")), 32).info
        assert sorted([*info["train"], *info["test"]]) == ["a", "b", "c"]  # type: ignore[misc]
        assert len(info["test"]) == 1  # type: ignore[arg-type]

    def test_the_trimap_corrects_the_matte_in_training_alone(self, tmp_path: Path) -> None:
        save_images(tmp_path)
        wavering = soft_disc(14)
        wavering[wavering == 255] = 254
        save(tmp_path / "lemur_alpha.png", wavering)
        splits = load_matting(tmp_path, 32)
        assert all((splits.train[index].alpha == 1).any() for index in range(6))
        assert splits.test[0].alpha.max() < 1  # type: ignore[union-attr]

    def test_the_real_lemur(self, shared: Path) -> None:
        folder = shared / "data" / "lemur"
        if not folder.is_dir():
            pytest.skip(f"needs {folder}")
        assert check_matting(folder) == []
        check_sample(load_matting(folder, 128).train[1], 128)


class TestBadFiles:
    @pytest.mark.parametrize(
        ("name", "values", "message"),
        [
            ("_alpha", np.full((HIGH, WIDE), 900, np.uint16), r"is a matte of 16 bits or more \(mode I;16\)"),
            ("_alpha", colours(1), "is coloured; a matte is grey"),
            ("_alpha", np.full((HIGH, WIDE), 255, np.uint8), "is 255 everywhere: nothing is unknown"),
            ("_alpha", (soft_disc() > 0).astype(np.uint8), "values 0 and 1 alone; a matte goes from 0 to 255"),
            ("_alpha", soft_disc(high=HIGH + 1), r"is 72x60, but .*_alpha.png is 72x61"),
            ("_trimap", soft_disc(), r"has the values 0, \d+, .*, \.\.\.\. A trimap has 0, one grey and 255"),
            ("_trimap", (soft_disc() > 0).astype(np.uint8) * 255, "has no unknown pixel"),
            ("_trimap", np.full((HIGH, WIDE), 900, np.uint16), "is a trimap of 16 bits"),
            ("_trimap", trimap_of(soft_disc())[:-2], r"_trimap.png is 72x58, but .*_alpha.png is 72x60"),
            ("_foreground", colours(1)[:, 1:], r"_foreground.png is 71x60, but .*_alpha.png is 72x60"),
            ("", colours(1)[:, 1:], r"lemur.png is 71x60, but .*_alpha.png is 72x60"),
        ],
    )
    def test_one_clear_line(self, tmp_path: Path, name: str, values: np.ndarray, message: str) -> None:
        save_images(tmp_path)
        save(tmp_path / f"lemur{name}.png", values)
        splits = load_matting(tmp_path, 32)
        with pytest.raises(FadevizError, match=message) as caught:
            splits.test[0]
        assert "\n" not in str(caught.value)
        assert any(str(caught.value) == problem for problem in check_matting(tmp_path))

    def test_a_matte_without_trimap(self, tmp_path: Path) -> None:
        save_images(tmp_path)
        (tmp_path / "lemur_trimap.png").unlink()
        with pytest.raises(FadevizError, match="lemur_alpha.png has no trimap: testing needs one"):
            load_matting(tmp_path, 32)

    def test_a_damaged_picture(self, tmp_path: Path) -> None:
        save_alphamatting(tmp_path)
        path = tmp_path / "input" / "GT04.png"
        path.write_bytes(path.read_bytes()[:200])
        problems = check_matting(tmp_path)
        assert len(problems) == 1
        assert "GT04.png cannot be read" in problems[0]

    def test_every_problem_is_listed(self, tmp_path: Path) -> None:
        save_alphamatting(tmp_path)
        (tmp_path / "gt" / "GT01.png").unlink()
        save(tmp_path / "gt" / "GT02.png", np.zeros((HIGH, WIDE), np.uint8))
        save(tmp_path / "gt" / "GT03.png", soft_disc(high=20))
        problems = check_matting(tmp_path)
        assert len(problems) == 3
        assert [any(name in problem for problem in problems) for name in ("GT01", "GT02", "GT03")] == [True] * 3

    def test_no_such_folder_or_layout(self, tmp_path: Path) -> None:
        for folder, message in (
            (tmp_path / "none", "does not exist"),
            (tmp_path, r"is not a matting folder: it has no folders, needed is Training_set/"),
        ):
            with pytest.raises(FadevizError, match=message):
                load_matting(folder, 32)
            assert len(check_matting(folder)) == 1
        (tmp_path / "rgb").mkdir()
        assert "it has rgb/" in check_matting(tmp_path)[0]

    def test_test_backgrounds_of_no_use(self, tmp_path: Path) -> None:
        with pytest.raises(FadevizError, match="test backgrounds are of no use"):
            load_matting(save_alphamatting(tmp_path), 32, test_backgrounds=tmp_path)
        with pytest.raises(FadevizError, match="32 or more"):
            load_matting(tmp_path, 8)

    def test_the_fingerprint_is_of_the_bytes(self, tmp_path: Path) -> None:
        save_alphamatting(tmp_path)
        before = load_matting(tmp_path, 32).info["fingerprint"]
        assert load_matting(tmp_path, 32).info["fingerprint"] == before
        save(tmp_path / "gt" / "GT05.png", soft_disc(9))
        assert load_matting(tmp_path, 32).info["fingerprint"] != before
