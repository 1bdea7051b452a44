"""Maps that one already has, as a run: arrays, files, numbered files, animations; and what cannot be one."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fadeviz_cli.main import main
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

import fadeviz
from analysis_movies import STEPS, masks, movie
from fadeviz import FadevizError, import_maps
from fadeviz.storage.writer import RunWriter

MAPS = np.random.default_rng(0).normal(size=(4, 3, 12, 16)).astype(np.float32)
"""Of four steps and three images."""
AT = (0, 10, 20, 30)


def stored(run, kind="feature"):
    return np.stack([np.asarray(run.read(step, "maps", kind)) for step in run.steps])


def written(folder, suffix, maps=MAPS, name="iter_{:06d}"):
    """A file for each step."""
    folder.mkdir(exist_ok=True)
    for step, value in zip(AT, maps, strict=True):
        path = folder / f"{name.format(step)}{suffix}"
        if suffix == ".npy":
            np.save(path, value)
        elif suffix == ".npz":
            np.savez(path, value)
        elif suffix == ".safetensors":
            save_file({"maps": value}, path)
        else:
            torch.save({"maps": torch.from_numpy(value)}, path)
    return folder


def fails(message, *args, **options):
    with pytest.raises(FadevizError, match=message) as caught:
        import_maps(*args, **options)
    assert "\n" not in str(caught.value)


class TestArrays:
    def test_images_of_several_steps(self, tmp_path):
        run = import_maps(MAPS, tmp_path / "run", steps="0:30:10", name="mine", seed=3, network="U-Net")
        assert run.steps == AT
        assert (run.title, run.info.config.seed, run.info.network_title) == ("mine", 3, "U-Net")
        np.testing.assert_array_equal(stored(run), MAPS)
        assert fadeviz.check_run(run.path) == []

    def test_one_image(self, tmp_path):
        run = import_maps(MAPS[:, 0].astype(np.float64), tmp_path / "run")
        assert run.steps == (0, 1, 2, 3)
        assert run.title == "run"
        np.testing.assert_array_equal(stored(run)[:, 0], MAPS[:, 0])

    @pytest.mark.parametrize(
        ("reduce", "expected"),
        [("mean", np.mean), ("sum", np.sum), ("max", np.max), ("norm", lambda a, axis: np.sqrt((a**2).sum(axis)))],
    )
    def test_channels_are_reduced(self, tmp_path, reduce, expected):
        channels = np.random.default_rng(1).normal(size=(2, 3, 5, 8, 9)).astype(np.float32)
        run = import_maps(channels, tmp_path / "run", reduce=reduce, kind="gradient", layer="up1")
        assert list(run.layers) == ["up1"]
        found = np.stack([np.asarray(run.read(step, "up1", "gradient")) for step in (0, 1)])
        np.testing.assert_allclose(found, expected(channels, axis=2), rtol=1e-5)

    def test_lists_dicts_and_tensors(self, tmp_path):
        listed = import_maps([torch.from_numpy(one).bfloat16() for one in MAPS], tmp_path / "list", steps=AT)
        np.testing.assert_allclose(stored(listed), MAPS, rtol=1e-2)
        by_step = import_maps({30: MAPS[3], 0: MAPS[0], 10: MAPS[1]}, tmp_path / "dict")
        assert by_step.steps == (0, 10, 30)
        np.testing.assert_array_equal(stored(by_step), MAPS[[0, 1, 3]])

    def test_steps_are_sorted_with_their_maps(self, tmp_path):
        run = import_maps(MAPS, tmp_path / "run", steps=[30, 0, 20, 10])
        np.testing.assert_array_equal(stored(run), MAPS[[1, 3, 2, 0]])


class TestFiles:
    @pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
    def test_numbered(self, tmp_path, suffix):
        folder = written(tmp_path / "maps", suffix)
        run = import_maps(folder, tmp_path / "run")
        assert run.steps == AT
        np.testing.assert_array_equal(stored(run), MAPS)
        pattern = import_maps(f"{folder}/iter_0000[123]*", tmp_path / "some")
        assert pattern.steps == AT[1:]

    def test_the_number_that_differs_is_the_step(self, tmp_path):
        run = import_maps(written(tmp_path / "maps", ".npy", name="fold2_step{}_ema3"), tmp_path / "run")
        assert run.steps == AT

    @pytest.mark.parametrize(
        ("names", "steps"),
        [
            (["epoch=1-step=100", "epoch=2-step=200-v1"], (100, 200)),
            (["epoch=3-val_loss=0.31", "epoch=4-val_loss=0.25"], (3, 4)),
            (["iter_2k", "iter_80k"], (2000, 80000)),
            (["map_1e3", "map_5e2"], (500, 1000)),
            (["v1.0_map_10", "v1.0_map_20"], (10, 20)),
        ],
    )
    def test_numbers_that_are_no_steps(self, tmp_path, names, steps):
        (tmp_path / "maps").mkdir()
        for name in names:
            np.save(tmp_path / "maps" / f"{name}.npy", MAPS[0])
        assert import_maps(tmp_path / "maps", tmp_path / "run").steps == steps

    def test_names_that_tell_no_steps(self, tmp_path):
        for number, (names, message) in enumerate((
            (["loss_0.5", "loss_0.25"], "2 names have no step"),
            (["map_100", "map_200_final2"], r"the names are not alike \(map_100.npy, map_200_final2.npy\)"),
        )):  # fmt: skip
            (folder := tmp_path / str(number)).mkdir()
            for name in names:
                np.save(folder / f"{name}.npy", MAPS[0])
            fails(message, folder, tmp_path / "run")
        np.savez(tmp_path / "layers.npz", layer1=MAPS[0], layer2=MAPS[1])
        notes = import_maps(tmp_path / "layers.npz", tmp_path / "run").info.notes
        assert notes == ("each array is taken for a step, by the numbers in their names (layer1, layer2)",)

    def test_names_without_numbers_are_counted_in_their_order(self, tmp_path):
        (tmp_path / "maps").mkdir()
        for name, value in zip("badc", MAPS, strict=True):
            np.save(tmp_path / "maps" / f"{name}.npy", value)
        run = import_maps(tmp_path / "maps", tmp_path / "run")
        np.testing.assert_array_equal(stored(run), MAPS[[1, 0, 3, 2]])

    def test_given_steps_count_names_in_natural_order(self, tmp_path):
        (tmp_path / "maps").mkdir()
        for number, value in zip((2, 9, 10, 11), MAPS, strict=True):
            np.save(tmp_path / "maps" / f"map{number}.npy", value)
        run = import_maps(tmp_path / "maps", tmp_path / "run", steps="100:400:100")
        assert run.steps == (100, 200, 300, 400)
        np.testing.assert_array_equal(stored(run), MAPS)

    @pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
    def test_all_steps_in_one(self, tmp_path, suffix):
        path = tmp_path / f"maps{suffix}"
        if suffix == ".npy":
            np.save(path, MAPS)
        elif suffix == ".npz":
            np.savez(path, maps=MAPS, steps=np.array(AT))
        elif suffix == ".safetensors":
            save_tensors({"maps": torch.from_numpy(MAPS).half().bfloat16()}, path)
        else:
            torch.save(torch.from_numpy(MAPS), path)
        run = import_maps(path, tmp_path / "run")
        assert run.steps == (AT if suffix == ".npz" else (0, 1, 2, 3))
        np.testing.assert_allclose(stored(run), MAPS, rtol=1e-2 if suffix == ".safetensors" else 0)

    def test_an_array_for_each_step_in_one(self, tmp_path):
        save_file({f"step_{step}": value for step, value in zip(AT, MAPS, strict=True)}, tmp_path / "maps.safetensors")
        run = import_maps(tmp_path / "maps.safetensors", tmp_path / "run")
        assert run.steps == AT
        np.testing.assert_array_equal(stored(run), MAPS)

    def test_a_key(self, tmp_path):
        np.savez(tmp_path / "maps.npz", a=MAPS, b=-MAPS)
        run = import_maps(tmp_path / "maps.npz", tmp_path / "run", key="b")
        np.testing.assert_array_equal(stored(run), -MAPS)
        fails(r"has 2 arrays \(a, b\). Choose one with key=", tmp_path / "maps.npz", tmp_path / "other")
        fails("has no 'c'. It has: a, b", tmp_path / "maps.npz", tmp_path / "other", key="c")

    def test_pictures(self, tmp_path):
        (tmp_path / "maps").mkdir()
        values = np.random.default_rng(2).integers(0, 256, (3, 12, 16)).astype(np.uint8)
        for step, value in enumerate(values):
            Image.fromarray(value).save(tmp_path / "maps" / f"{step * 5}.png")
        (tmp_path / "maps" / ".DS_Store").write_text("")
        run = import_maps(tmp_path / "maps", tmp_path / "run")
        assert run.steps == (0, 5, 10)
        np.testing.assert_array_equal(stored(run)[:, 0], values)

    def test_files_that_are_listed(self, tmp_path):
        folder = written(tmp_path / "maps", ".npy")
        files = [folder / f"iter_{step:06d}.npy" for step in AT]
        np.testing.assert_array_equal(stored(import_maps(files[::-1], tmp_path / "by_name")), MAPS)
        given = import_maps(files[::-1], tmp_path / "given", steps="0:30:10")
        np.testing.assert_array_equal(stored(given), MAPS[::-1])
        by_step = import_maps({7: str(files[1]), 2: str(files[0])}, tmp_path / "by_step")
        assert by_step.steps == (2, 7)
        np.testing.assert_array_equal(stored(by_step), MAPS[:2])

    def test_colours_of_pictures_are_noted(self, tmp_path):
        (tmp_path / "maps").mkdir()
        for step, colour in enumerate(("grey", "red")):
            Image.new("RGB", (8, 6), colour).save(tmp_path / "maps" / f"{step}.png")
        notes = import_maps(tmp_path / "maps", tmp_path / "run").info.notes
        assert len(notes) == 2
        assert "grey levels" in notes[0]
        assert "coloured" in notes[1]

    def test_pictures_of_16_bits(self, tmp_path):
        (tmp_path / "maps").mkdir()
        values = np.random.default_rng(2).integers(0, 65536, (2, 12, 16)).astype(np.uint16)
        for step, value in enumerate(values):
            Image.fromarray(value).save(tmp_path / "maps" / f"{step}.png")
        np.testing.assert_array_equal(stored(import_maps(tmp_path / "maps", tmp_path / "run"))[:, 0], values)


class TestAnimations:
    """As a paper publishes them: 35 frames of 192x128."""

    @pytest.fixture
    def frames(self):
        return np.random.default_rng(3).integers(0, 256, (35, 128, 192)).astype(np.uint8)

    @staticmethod
    def save(path, frames, **options):
        first, *others = (Image.fromarray(frame) for frame in frames)
        first.save(path, save_all=True, append_images=others, **{"duration": 100, **options})
        return path

    @pytest.mark.parametrize("name", ["paper.gif", "paper.png"])
    def test_every_frame_is_a_step(self, tmp_path, frames, name):
        path = self.save(tmp_path / name, frames)
        run = import_maps(path, tmp_path / "run", steps="100:3500:100", name="FADE (paper)")
        assert run.steps == tuple(range(100, 3501, 100))
        np.testing.assert_array_equal(stored(run)[:, 0], frames)
        assert "every frame may have been stretched by itself" in run.info.notes[0]

    @pytest.mark.parametrize("mode", ["L", "P"])
    def test_grey_frames_that_partly_stay(self, tmp_path, mode):
        """With free entries in the palette, pixels that stay are transparent in the file."""
        frames = np.random.default_rng(4).integers(0, 200, (6, 40, 60)).astype(np.uint8)
        frames[1:, :, 20:] = frames[0, :, 20:]
        frames[3, 5:9] = frames[2, 5:9] + 1
        first, *others = (Image.fromarray(frame).convert(mode) for frame in frames)
        first.save(tmp_path / "maps.gif", save_all=True, append_images=others, duration=100)
        np.testing.assert_array_equal(stored(import_maps(tmp_path / "maps.gif", tmp_path / "run"))[:, 0], frames)

    def test_what_is_transparent_has_no_value(self, tmp_path, frames):
        first, *others = (Image.fromarray(frame[:8, :8]).convert("RGBA") for frame in frames[:3])
        others[1].putalpha(0)
        first.save(tmp_path / "maps.png", save_all=True, append_images=others, duration=100)
        fails("frame 2 of .*maps.png has 64 transparent pixels, which have no value", tmp_path / "maps.png",
              tmp_path / "run")  # fmt: skip

    def test_a_folder_of_animations_is_refused(self, tmp_path, frames):
        (tmp_path / "maps").mkdir()
        self.save(tmp_path / "maps" / "layer_1.gif", frames[:3])
        fails("layer_1.gif has 3 frames, but each file is one step here", tmp_path / "maps", tmp_path / "run")

    def test_it_is_drawn_measured_and_reported(self, tmp_path, frames):
        rows, columns = np.mgrid[:128, :192]
        wave = np.uint8(127 + 120 * np.cos(2 * np.pi * 24 / 192 * columns) * np.ones_like(rows))  # 0.125 cycles a pixel
        waves = [wave, *frames[1:3], wave]
        one, two = (
            import_maps(self.save(tmp_path / f"{name}.gif", waves), tmp_path / name, steps="0:300:100")
            for name in ("fade", "carafe")
        )
        fadeviz.animate([one, two], tmp_path / "both.gif")
        with Image.open(tmp_path / "both.gif") as animation:
            assert animation.n_frames == 4
        figure = one.grid()
        assert figure.get_size_inches().min() > 1
        analysis = fadeviz.analyze([one, two])
        assert [row["verdict"] for row in analysis.table] == ["too few images"] * 2
        assert analysis.table[0]["centroid_at_start"] == pytest.approx(0.125, abs=0.005)
        text = str(analysis)
        assert "Import the maps with their masks" in text
        fadeviz.write_report([one, two], tmp_path / "page.html")
        assert "Import the maps with their masks" in (tmp_path / "page.html").read_text()

    def test_what_is_lost_in_it_is_said(self, tmp_path, frames):
        colours = np.stack([frames[:3]] * 3, axis=-1)
        colours[..., 0] = 255 - colours[..., 0]
        path = self.save(tmp_path / "colours.png", colours, duration=[100, 300, 100])
        notes = import_maps(path, tmp_path / "run").info.notes
        assert "coloured" in notes[0]
        assert "different durations" in notes[1]
        same = self.save(tmp_path / "same.gif", frames[[0, 0, 1]])
        fails(r"3 steps for 2 frames \(the frames have different durations: equal ones may have become one\)", same,
              tmp_path / "other", steps="0:2")  # fmt: skip


class TestImagesAndMasks:
    @pytest.fixture
    def discs(self, tmp_path):
        """Movies of discs whose outline comes first, with images and masks in folders."""
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir()
        for index, mask in enumerate(masks(8)):
            shape = np.uint8(mask) * 255
            Image.fromarray(np.stack([shape] * 3, axis=-1)).save(tmp_path / "images" / f"disc{index}.jpg")
            Image.fromarray(shape).save(tmp_path / "masks" / f"disc{index}.png")
        return tmp_path

    def test_a_verdict(self, discs):
        runs = [
            import_maps(
                dict(zip(STEPS, movie("inward", STEPS, images=8, seed=seed), strict=True)), discs / str(seed),
                images=discs / "images", masks=discs / "masks", name="mine", seed=seed,
            )
            for seed in (0, 1)
        ]  # fmt: skip
        assert runs[0].info.observation.names[:2] == ("disc0", "disc1")
        assert not runs[0].lost
        (row,) = fadeviz.analyze(runs).table
        assert row["verdict"] == "outline first"
        assert row["seeds"] == [0, 1]

    def test_classes_and_arrays(self, tmp_path):
        labels = np.zeros((3, 24, 32), np.uint8)
        labels[:, 4:12, 4:20] = np.array([1, 2, 3])[:, None, None]
        labels[:, 0] = 9
        images = np.full((3, 3, 24, 32), 77, np.uint8)
        run = import_maps(MAPS, tmp_path / "run", images=images, masks=labels, ignore_index=9, names=["a", "b", "c"])
        assert run.info.classes == 4
        assert run.info.observation.names == ("a", "b", "c")
        assert run.info.observation.foreground == (1, 2, 3)
        assert run.foregrounds.sum() == 3 * 8 * 16

    def test_what_does_not_fit(self, discs):
        maps = movie("inward", STEPS, images=8)
        fails("8 images for maps of 3. Give one for each", MAPS, discs / "r", images=discs / "images")
        fails(r"masks are \(2, 48, 48\)", maps, discs / "r", images=discs / "images", masks=masks(2))
        fails("foreground is given without masks", maps, discs / "r", foreground=1)
        fails("names", MAPS, discs / "r", names=["only one"])
        Image.new("RGB", (48, 48), "red").save(discs / "masks" / "disc0.png")
        fails(
            "disc0.png is a coloured mask", maps, discs / "r", images=discs / "images", masks=discs / "masks"
        )  # fmt: skip
        Image.new("RGB", (40, 48)).save(discs / "images" / "disc3.jpg")
        fails(
            "disc3.jpg has 40x48 pixels, disc0.jpg 48x48. All must be alike", maps, discs / "r", images=discs / "images"
        )
        assert not (discs / "r" / "run.json").exists()

    def test_another_shape_is_said(self, tmp_path):
        run = import_maps(MAPS, tmp_path / "run", images=np.zeros((3, 64, 64, 3), np.uint8))
        assert "maps of 16x12 are stretched onto images of 64x64" in run.info.notes[0]


class TestBadInput:
    @pytest.mark.parametrize(
        ("maps", "message"),
        [
            (np.zeros((4, 5)), r"maps has the shape \(4, 5\): \(steps, H, W\)"),
            (np.zeros((1, 2, 3, 4, 5, 6)), "has the shape"),
            (np.zeros((0, 3, 4)), "there are no maps"),
            (np.zeros((2, 0, 4)), r"maps\[0\] has the shape \(0, 4\)"),
            (np.zeros((2, 3, 4), complex), "array of complex128: real numbers are needed"),
            (np.array([["a"]]), "real numbers are needed"),
            ([np.zeros((3, 4)), np.zeros((3, 5))], r"maps\[1\] has maps of 3x5, maps\[0\] of 3x4. All must be alike"),
            (
                [np.zeros((2, 3, 4)), np.zeros((3, 3, 4))],
                r"maps\[1\] has maps of 3 images of 3x4, maps\[0\] of 2 images",
            ),
            ({"first": np.zeros((3, 4))}, "'first' is no step"),
            ("missing.npy", "there is no missing.npy"),
            ({1.5: np.zeros((3, 4))}, "1.5 is no step"),
            ("missing", "there is no missing"),
            (__file__, "test_importing.py is no file of maps"),
        ],
    )
    def test_no_maps(self, tmp_path, maps, message):
        fails(message, maps, tmp_path / "run")
        assert not (tmp_path / "run" / "run.json").exists()

    def test_values_that_are_not_finite(self, tmp_path):
        broken = MAPS.copy()
        broken[2, 0, :2, 3] = np.nan, np.inf
        fails(r"maps\[2\] has 2 values that are not finite \(NaN or infinite\)", broken, tmp_path / "run")
        fails(r"maps\[0\] has values beyond 3e38", np.full((2, 3, 4), 1e300), tmp_path / "run")
        fails("masked values", np.ma.masked_greater(MAPS, 1), tmp_path / "run")

    @pytest.mark.parametrize(
        ("steps", "message"),
        [
            ("0:40:10", "5 steps for 4 frames. Give one for each"),
            ([0, 1, 1, 2], "step 1 is given twice"),
            ([-1, 0, 1, 2], "step -1 is negative"),
            ([0, 1, 2, 3.5], "a step is 3.5, a float: a whole number is needed"),
            ("x", "schedule"),
            (5, "steps is 5: a step for each frame is needed"),
            ([0, 1, 2, 10**12], "step 1000000000000 is too large: 999999999999 at most"),
        ],
    )
    def test_steps_that_do_not_fit(self, tmp_path, steps, message):
        fails(message, MAPS, tmp_path / "run", steps=steps)
        assert not (tmp_path / "run").exists()

    def test_folders(self, tmp_path):
        folder = written(tmp_path / "maps", ".npy")
        np.savez(folder / "other.npz", MAPS[0])
        fails(r"files of several kinds \(.npy, .npz\). Name one kind: .*/\*.npy", folder, tmp_path / "run")
        (folder / "other.npz").unlink()
        np.save(folder / "last.npy", MAPS[0])
        fails(r"1 names have no step \(last.npy\)", folder, tmp_path / "run")
        (folder / "last.npy").rename(folder / "again_000030.npy")
        fails(r"2 files have step 30 \(again_000030.npy, iter_000030.npy\)", folder, tmp_path / "run")
        (tmp_path / "empty").mkdir()
        fails("has no maps", tmp_path / "empty", tmp_path / "run")
        fails("has no maps", f"{folder}/*.gif", tmp_path / "run")

    @pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt", ".png", ".gif"])
    def test_damaged_files(self, tmp_path, suffix):
        (tmp_path / f"maps{suffix}").write_bytes(b"not what it says" * 20)
        fails(rf"maps{suffix}", tmp_path / f"maps{suffix}", tmp_path / "run")

    def test_pickles_are_not_run(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return (tmp_path.joinpath("sprung").touch, ())

        torch.save({"maps": Trap()}, tmp_path / "maps.pt")
        fails("Save tensors alone", tmp_path / "maps.pt", tmp_path / "run")
        np.save(tmp_path / "maps.npy", np.array([Trap()], dtype=object), allow_pickle=True)
        fails("Is it a .npy file of numbers", tmp_path / "maps.npy", tmp_path / "run")
        assert not (tmp_path / "sprung").exists()

    def test_names_that_do_not_exist(self, tmp_path):
        fails("kind", MAPS, tmp_path / "run", kind="channels")
        fails("reduction", MAPS, tmp_path / "run", reduce="median")
        fails("without a slash", MAPS, tmp_path / "run", layer="a/b")

    def test_what_is_there_is_kept(self, tmp_path):
        run = import_maps(MAPS, tmp_path / "run")
        before = (run.path / "run.json").read_bytes()
        fails("holds a run already. Replace it with overwrite=True", -MAPS, run.path)
        fails("not finite", MAPS * np.nan, run.path, overwrite=True)
        assert (run.path / "run.json").read_bytes() == before
        np.testing.assert_array_equal(stored(import_maps(-MAPS, run.path, overwrite=True)), -MAPS)


def test_an_import_that_breaks_off_is_no_finished_run(tmp_path, monkeypatch):
    write = RunWriter.snapshot

    def full(writer, step, snapshots):
        if step == 2:
            raise FadevizError("disk full")
        write(writer, step, snapshots)

    monkeypatch.setattr(RunWriter, "snapshot", full)
    fails("disk full", MAPS, tmp_path / "run")
    run = fadeviz.open_run(tmp_path / "run")
    assert run.steps == (0, 1)
    assert run.info.status != "finished"
    monkeypatch.undo()
    assert import_maps(MAPS, tmp_path / "run", overwrite=True).info.status == "finished"


def test_the_same_maps_give_the_same_bytes(tmp_path):
    one, two = (import_maps(MAPS, tmp_path / name, name="x") for name in "ab")
    for file in ("run.json", "observation.safetensors", "snapshots/step_000003.safetensors"):
        assert (one.path / file).read_bytes() == (two.path / file).read_bytes()


class TestCommand:
    def test_a_folder_of_arrays_becomes_an_animation_in_one_command(self, tmp_path):
        folder, out, gif = written(tmp_path / "maps", ".npy"), tmp_path / "run", tmp_path / "maps.gif"
        refused = CliRunner().invoke(main, ["import", str(folder), "--out", str(out), "--animate", "maps.xyz"])
        assert refused.exit_code == 1
        assert "an animation cannot be written as .xyz" in refused.output
        assert not out.exists()
        done = CliRunner().invoke(main, ["import", str(folder), "--out", str(out), "--animate", str(gif)])
        assert done.exit_code == 0, done.output
        with Image.open(gif) as drawn:
            assert drawn.n_frames == len(MAPS)

    def test_a_run(self, tmp_path):
        np.save(tmp_path / "maps.npy", MAPS)
        out = tmp_path / "run"
        result = CliRunner().invoke(
            main, ["import", str(tmp_path / "maps.npy"), "--steps", "0:30:10", "--out", str(out), "--name", "mine"]
        )
        assert result.exit_code == 0, result.output
        assert "4 snapshots of 3 images, 16x12, steps 0 to 30" in result.output
        assert f"wrote {out}" in result.output
        assert json.loads((out / "run.json").read_text())["imported"] == str(tmp_path / "maps.npy")
        info = CliRunner().invoke(main, ["info", str(out)])
        assert info.exit_code == 0, info.output
        assert "mine" in info.output

    def test_an_error_is_one_line(self, tmp_path):
        result = CliRunner().invoke(main, ["import", str(tmp_path / "maps.npy"), "--out", str(tmp_path / "run")])
        assert result.exit_code == 1
        assert result.output.startswith("Error: there is no ")
        assert len(result.output.splitlines()) == 1
