"""The truth in figures: colours of classes, alpha in greys, and the borders that are drawn on the image."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from fadeviz.errors import FadevizError
from fadeviz.render import animation
from fadeviz.render.colormap import IGNORED, MOST_FOR_ALL, class_palette, colour_classes
from fadeviz.render.frames import select_frames
from fadeviz.render.grid import render_grid, write_grid
from fadeviz.render.grid_layout import layout_grid
from fadeviz.render.labels import outline, truth_image, truth_name, truth_regions
from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import SnapshotStore
from fadeviz.storage.stored_run import StoredRun
from render_runs import make_run
from task_runs import make_class_run, make_matting_run

CLASSES = 150


class TestClassPalette:
    def test_colours_are_distinct_and_the_same_every_time(self):
        colours = class_palette(CLASSES)
        assert colours.shape == (CLASSES, 3)
        assert colours.dtype == np.uint8
        assert len({tuple(c) for c in colours.tolist()}) == CLASSES
        # The nearest two of 150, and the nearest to black, differ by more than a trained eye needs side by side.
        far = np.abs(colours[:, None].astype(int) - colours[None]).sum(axis=2)
        assert far[~np.eye(CLASSES, dtype=bool)].min() >= 34
        assert colours.max(axis=1).min() > 60
        np.testing.assert_array_equal(class_palette(40), colours[:40])
        colours[:] = 0
        assert class_palette(CLASSES).max() > 0

    def test_the_first_colours_stay(self):
        # Figures of two versions are compared side by side.
        assert class_palette(4).tolist() == [[170, 255, 119], [255, 136, 255], [187, 68, 0], [238, 221, 221]]
        assert class_palette(150)[:4].tolist() == [[170, 255, 119], [255, 136, 255], [238, 119, 34], [0, 221, 255]]
        np.testing.assert_array_equal(class_palette(20), class_palette(MOST_FOR_ALL)[:20])

    @pytest.mark.parametrize("classes", [0, -1, 256])
    def test_sizes_that_are_none(self, classes):
        with pytest.raises(FadevizError, match="must be 1-255"):
            class_palette(classes)
        with pytest.raises(FadevizError, match="must be 1-255"):
            colour_classes(np.zeros((2, 2), np.uint8), classes)

    def test_a_mask_in_colours(self):
        mask = np.array([[0, 149, IGNORED, 200]], np.uint8)
        colours = class_palette(CLASSES).tolist()
        assert colour_classes(mask, CLASSES).tolist() == [[colours[0], colours[149], [0, 0, 0], [0, 0, 0]]]


def truth_cell(run):
    """The truth in a run's grid."""
    sequences = select_frames([run])
    layout = layout_grid(sequences)
    x, y, width, height = layout.references[0].mask
    return render_grid(sequences)[y : y + height, x : x + width]


def slow_outline(regions):
    height, width = regions.shape
    border = np.zeros(regions.shape, bool)
    for y in range(height):
        for x in range(width):
            for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= ny < height and 0 <= nx < width and regions[y, x] > regions[ny, nx]:
                    border[y, x] = True
    return border


class TestTruthPicture:
    def test_two_classes_are_black_and_white(self, tmp_path):
        run = make_run(tmp_path / "r")
        pixels = truth_image(run, 1)
        assert truth_name(run) == "mask"
        np.testing.assert_array_equal(pixels, np.repeat(run.observation[1][1][..., None] * 255, 3, axis=2))
        assert set(np.unique(pixels)) == {0, 255}

    def test_alpha_is_grey_as_it_is(self, tmp_path):
        run = make_matting_run(tmp_path / "r")
        assert truth_name(run) == "alpha"
        for image in (0, 1):
            np.testing.assert_array_equal(truth_image(run, image), run.mattes[0][image][..., None].repeat(3, axis=2))
        assert len(np.unique(truth_image(run, 0))) > 20

    def test_many_classes_have_colours_and_ignored_is_black(self, tmp_path):
        run = make_class_run(tmp_path / "r")
        mask, pixels = run.observation[1][0], truth_image(run, 0)
        assert truth_name(run) == "mask"
        np.testing.assert_array_equal(pixels[mask == 3], np.tile(class_palette(4)[3], ((mask == 3).sum(), 1)))
        assert (mask == IGNORED).any()
        assert not pixels[mask == IGNORED].any()
        assert pixels[mask == 0].all(axis=1).all()

    @pytest.mark.parametrize("make", [make_run, make_matting_run])
    def test_grid_of_greys(self, tmp_path, make):
        run = make(tmp_path / "r")
        (alpha,) = [run.observation[1][0] * 255] if run.mattes is None else run.mattes[0][:1]
        layout = layout_grid(select_frames([run]))
        expected = np.asarray(Image.fromarray(alpha).resize(layout.references[0].mask[2:], Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(truth_cell(run), expected[:, :, None].repeat(3, axis=2))

    def test_grid_of_classes_mixes_no_colours(self, tmp_path):
        run = make_class_run(tmp_path / "r")
        colours = {tuple(c) for c in truth_cell(run).reshape(-1, 3).tolist()}
        assert colours == {(0, 0, 0), *(tuple(class_palette(4)[c].tolist()) for c in (0, 2, 3))}

    def test_vector_grids_hold_the_colours_too(self, tmp_path):
        for name, make in (("mask", make_run), ("alpha", make_matting_run), ("class", make_class_run)):
            write_grid([make(tmp_path / name)], tmp_path / f"{name}.svg")
        assert len({(tmp_path / f"{name}.svg").read_bytes() for name in ("mask", "alpha", "class")}) == 3


class TestOutline:
    def test_against_a_loop(self):
        for seed in range(5):
            regions = np.random.default_rng(seed).integers(0, 4, (9, 12)).repeat(3, axis=1).astype(np.uint8)
            np.testing.assert_array_equal(outline(regions), slow_outline(regions))

    def test_two_classes_as_they_are(self, tmp_path):
        run = make_run(tmp_path / "r")
        np.testing.assert_array_equal(truth_regions(run, 0), run.observation[1][0])

    def test_alpha_at_half(self, tmp_path):
        run = make_matting_run(tmp_path / "r")
        for image in (0, 1):
            np.testing.assert_array_equal(truth_regions(run, image), run.mattes[0][image] >= 128)
        np.testing.assert_array_equal(truth_regions(self.of_alphas(tmp_path / "a", [[127, 128, 129]]), 0), [[0, 1, 1]])

    @staticmethod
    def of_alphas(path, values):
        alphas = np.array([values], np.uint8)
        store = SnapshotStore(path, "a1b2c3")
        # The mask is of another level on purpose: the matte counts.
        images = np.zeros((*alphas.shape, 3), np.uint8)
        store.write_observation(images, (alphas > 0).astype(np.uint8), (alphas, np.full_like(alphas, 128)))
        store.write_info(RunInfo.from_dict({"status": "finished"}))
        return StoredRun(path)

    def test_what_is_ignored_has_no_border_of_its_own(self, tmp_path):
        run = make_class_run(tmp_path / "r")
        mask = run.observation[1][0]
        border = outline(truth_regions(run, 0))
        assert not border[mask == IGNORED].any()
        above = np.pad(mask == IGNORED, ((0, 1), (0, 0)))[1:] & (mask != IGNORED)
        assert above.any()
        assert border[above].all()

    def test_many_classes_are_no_alpha(self, tmp_path):
        # More classes in one image than a mask of grey levels would be taken for.
        values = np.arange(60, dtype=np.uint8).reshape(1, 6, 10).repeat(4, axis=1).repeat(4, axis=2)
        run = make_run(tmp_path / "r")
        store = SnapshotStore(run.path, run.run_id)
        store.write_observation(np.zeros((*values.shape, 3), np.uint8), values)
        info = run.info
        store.write_info(dataclasses.replace(info, classes=150))
        border = outline(truth_regions(StoredRun(run.path), 0))
        np.testing.assert_array_equal(border, slow_outline(values[0]))
        assert border.any()
        # The same values in a run that does not say what they are: alpha, and nothing of it is half opaque.
        store.write_info(info)
        assert not outline(truth_regions(StoredRun(run.path), 0)).any()

    @pytest.mark.parametrize("make", [make_run, make_matting_run, make_class_run])
    def test_an_animation_draws_it(self, tmp_path, make):
        run = make(tmp_path / "r")
        sequences = select_frames([run])
        layout = animation.layout_animation(sequences)
        frame = next(animation.render_frames(sequences))
        (x, y), (width, height) = layout.image, layout.tile
        tile = frame[y : y + height, x : x + width]
        regions = Image.fromarray(truth_regions(run, 0)).resize(layout.tile, Image.Resampling.NEAREST)
        white = (tile == 255).all(axis=2)
        np.testing.assert_array_equal(white, outline(np.asarray(regions)))
