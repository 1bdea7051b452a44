"""Comparisons: the window where runs disagree, images exact to the pixel, the same bytes, errors in a line."""

import dataclasses
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from fadeviz.errors import FadevizError
from fadeviz.prediction.compare import _best
from fadeviz.render import comparison_layout
from fadeviz.render.colormap import class_palette, colour_classes
from fadeviz.render.comparison import _draw, fit, render_comparison, write_comparison
from fadeviz.render.comparison_layout import Row, layout_comparison
from fadeviz.render.style import FigureStyle
from fadeviz.render.zoom import Box, choose_zoom


def masks(count, height=24, width=32, seed=0, classes=2):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, classes, (height, width)).astype(np.uint8) for _ in range(count)]


def tent_of(side):
    """The weight of a row or column of a window: that of two boxes of half the side, one moved over the other."""
    half = (side + 1) // 2
    return [min(i + 1, side - i, half, side - half + 1) for i in range(side)]


def slow_zoom(results, truth, side, ignored=None):
    """By a loop over all windows; classes only."""
    height, width = results[0].shape

    def weight(y, x):
        if truth is not None and ignored is not None and truth[y, x] == ignored:
            return 0
        return sum(int(a[y, x] != b[y, x]) for a, b in combinations(results, 2))

    def error(y, x):
        return (
            0 if truth is None or (ignored is not None and truth[y, x] == ignored) else results[0][y, x] != truth[y, x]
        )

    reach = max(1, side // 8)

    def counts(y, x):
        return ignored is None or truth is None or truth[y, x] != ignored

    def on_contour(values, y, x):
        beside = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
        return counts(y, x) and any(
            values[v, u] != values[y, x] and counts(v, u) for v, u in beside if 0 <= v < height and 0 <= u < width
        )

    pixels = [(y, x) for y in range(height) for x in range(width)]
    contours = [] if truth is None else [place for place in pixels if on_contour(truth, *place)]
    contours = contours or [place for place in pixels if any(on_contour(result, *place) for result in results)]

    def near(y, x):
        return any(max(abs(y - v), abs(x - u)) <= reach for v, u in contours)

    def along(measure):
        return lambda y, x: measure(y, x) if near(y, x) else 0

    tent = tent_of(side)
    for measure in (along(weight), weight, along(error), error):
        best, found = 0, None
        for top in range(height - side + 1):
            for left in range(width - side + 1):
                total = sum(
                    int(measure(top + y, left + x)) * tent[y] * tent[x] for y in range(side) for x in range(side)
                )
                if total > best:
                    best, found = total, Box(left, top, side)
        if found:
            return found
    return Box((width - side) // 2, (height - side) // 2, side)


def make_row(runs=2, size=(24, 32), *, seed=0, **options):
    """A row of noise, so that every misplaced pixel is seen."""
    height, width = size
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    results = tuple(mask * 255 for mask in masks(runs, height, width, seed + 1))
    truth = masks(1, height, width, seed + 9)[0] * 255
    scores = tuple(f"mIoU 0.{number + 1}00" for number in range(runs))
    filled = {"scores": scores, "best": runs - 1, "box": Box(3, 5, 6)} | options
    return Row(f"image {seed}", image, truth, results, **filled)


def grey(pixels):
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


class TestZoom:
    @given(
        seed=st.integers(0, 2**32 - 1),
        runs=st.integers(1, 4),
        shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
        classes=st.integers(1, 3),
        with_truth=st.booleans(),
        ignored=st.sampled_from([None, 0]),
        data=st.data(),
    )
    def test_against_a_loop(self, seed, runs, shape, classes, with_truth, ignored, data):
        given_masks = masks(runs + 1, *shape, seed=seed, classes=classes)
        truth = given_masks.pop() if with_truth else None
        side = data.draw(st.integers(1, min(shape)))
        assert choose_zoom(given_masks, truth, side, ignored) == slow_zoom(given_masks, truth, side, ignored)

    @given(seed=st.integers(0, 2**32 - 1), runs=st.integers(2, 4), side=st.integers(1, 5))
    def test_alphas_by_their_standard_deviation(self, seed, runs, side):
        alphas = list(np.random.default_rng(seed).random((runs, 6, 8)).astype(np.float32))
        deviation = np.std(np.array(alphas, np.float64), axis=0)
        found = choose_zoom(alphas, None, side)
        sums = {
            (top, left): (
                deviation[top : top + side, left : left + side] * np.outer(tent_of(side), tent_of(side))
            ).sum()
            for top in range(7 - side)
            for left in range(9 - side)
        }
        assert sums[found.top, found.left] == pytest.approx(max(sums.values()), abs=1e-4)

    def test_equal_windows_of_alphas_are_equal(self):
        # Sums of floats would differ in their last digit, and another window than the first would win.
        one, other = np.full((40, 40), 0.1), np.full((40, 40), 0.4)
        assert choose_zoom([one, other], None, 7) == Box(0, 0, 7)

    def test_small_differences_of_alphas_count(self):
        one, other = np.zeros((9, 9)), np.zeros((9, 9))
        other[4, 6] = 1e-3
        assert choose_zoom([one, other], None, 2) == Box(5, 3, 2)

    def test_a_quarter_of_the_shorter_side(self):
        assert choose_zoom(masks(2, 41, 60), None).side == 10
        assert choose_zoom(masks(2, 60, 41), None).side == 10
        assert choose_zoom(masks(2, 1, 5), None).side == 1

    def test_a_single_run_is_compared_with_the_truth(self):
        truth, result = np.zeros((2, 16, 16), np.uint8)
        result[9:12, 2:5] = 1
        assert choose_zoom([result], truth, 3) == Box(2, 9, 3)
        assert choose_zoom([result / 2], truth / 1.0, 3) == Box(2, 9, 3)
        # Two that make the same mistake, too.
        assert choose_zoom([result, result], truth, 3) == Box(2, 9, 3)
        # What is ignored is no mistake.
        assert choose_zoom([result], np.where(result, 255, 0), 3, ignored=255) == Box(6, 6, 3)

    def test_runs_that_differ_count_before_a_common_mistake(self):
        truth, first = np.zeros((2, 16, 16), np.uint8)
        first[0:6, 0:6] = 1
        second = first.copy()
        second[14, 14] = 1
        assert choose_zoom([first, second], truth, 2) == Box(13, 13, 2)

    def test_nothing_to_tell_gives_the_middle(self):
        same = np.zeros((10, 20), np.uint8)
        assert choose_zoom([same], None, 4) == Box(8, 3, 4)
        assert choose_zoom([same, same], same, 4) == Box(8, 3, 4)

    def test_the_window_is_on_the_contour_and_not_in_what_one_run_misses(self):
        truth = np.zeros((64, 64), np.uint8)
        truth[8:56, 8:56] = 1
        missed = np.zeros_like(truth)
        missed[20:56, 8:44] = 1
        for results in ([truth, missed], [missed]):
            left, top, side = choose_zoom(results, truth, 16)
            inside = truth[top : top + side, left : left + side]
            assert 0.2 < inside.mean() < 0.8
            assert (inside != missed[top : top + side, left : left + side]).any()
        soft = np.clip(truth + 0.0, 0, 1)
        left, top, side = choose_zoom([soft, missed * 1.0], soft, 16)
        assert 0.2 < soft[top : top + side, left : left + side].mean() < 0.8

    def test_far_from_every_contour_all_pixels_count(self):
        truth = np.zeros((64, 64), np.uint8)
        truth[:8] = 1
        hole = truth.copy()
        hole[50:53, 50:53] = 1
        assert choose_zoom([truth, hole], truth, 16) == Box(43, 43, 16)  # in its middle

    def test_what_is_not_finite_counts_as_nothing(self):
        one, other = np.zeros((8, 8)), np.zeros((8, 8))
        one[0, 0] = np.nan
        other[6, 6] = np.inf
        assert choose_zoom([one, other], None, 1) == Box(6, 6, 1)

    @pytest.mark.parametrize(
        ("results", "truth", "side", "message"),
        [
            ([], None, None, "no result"),
            ([np.zeros((4, 4))], np.zeros((4, 5)), None, r"one size.*\(4, 4\) float64, \(4, 5\) float64"),
            ([np.zeros((4, 4))], np.zeros((4, 4), np.uint8), None, "all classes or all alphas"),
            ([np.zeros((4, 4, 3))], None, None, r"must be \(H, W\)"),
            ([np.zeros((0, 4))], None, None, r"must be \(H, W\)"),
            ([np.zeros((4, 6))], None, 5, "side 5 does not fit in an image of 6x4. Choose a side from 1 to 4"),
            ([np.zeros((4, 6))], None, 0, "side 0"),
        ],
    )
    def test_errors(self, results, truth, side, message):
        with pytest.raises(FadevizError, match=message):
            choose_zoom(results, truth, side)


class TestFit:
    def test_pixels_stay_squares(self):
        mask = masks(1, 5, 7)[0] * 255
        np.testing.assert_array_equal(fit(mask, (28, 20), smooth=False), mask.repeat(4, 0).repeat(4, 1))
        # No multiple: the middle of every pixel has its colour still.
        larger = fit(mask, (45, 33), smooth=False)
        ys, xs = ((np.arange(n) + 0.5) * size / n for n, size in ((5, 33), (7, 45)))
        np.testing.assert_array_equal(larger[np.ix_(ys.astype(int), xs.astype(int))], mask)

    def test_smaller_is_the_mean(self):
        mask = masks(1, 12, 20)[0] * 255
        expected = mask.reshape(6, 2, 10, 2).mean(axis=(1, 3))
        # Pillow rounds once a direction.
        np.testing.assert_allclose(fit(mask, (10, 6), smooth=False), expected, atol=1)

    def test_smooth_makes_levels_between(self):
        step = np.repeat(np.array([[0, 255]], np.uint8), 2, axis=0)
        assert len(np.unique(fit(step, (40, 40), smooth=True))) > 10
        assert len(np.unique(fit(step, (40, 40), smooth=False))) == 2


class TestPictures:
    def check(self, pixels, layout, rows, contents):
        """Every image and enlargement is where the layout says, but for the frames that are drawn on it."""
        line = layout.points(2) + 2
        for (index, column), (x, y, width, height) in layout.images.items():
            row, given = rows[index], contents(rows[index])[column]
            smooth = column == 0 or (row.smooth and given is not row.trimap)
            expected = grey(fit(given, (width, height), smooth=smooth))
            same = (pixels[y : y + height, x : x + width] == expected).all(axis=2)
            if row.box is not None:
                left, top, side = row.box
                factor = width / row.size[1]
                ends = [round(v * factor) for v in (left, left + side, top, top + side)]
                near = np.zeros(same.shape, bool)
                near[max(0, ends[2] - line) : ends[3] + line, max(0, ends[0] - line) : ends[1] + line] = True
                near[ends[2] + line : ends[3] - line, ends[0] + line : ends[1] - line] = False
                assert not same[near].all()
                same |= near
                x, y, width, height = layout.crops[index, column]
                crop = grey(fit(given[top : top + side, left : left + side], (width, height), smooth=smooth))
                inside = slice(layout.points(1.1), -layout.points(1.1))
                seen = pixels[y : y + height, x : x + width]
                np.testing.assert_array_equal(seen[inside, inside], crop[inside, inside])
                assert (seen[0] == (232, 17, 45)).all()
                assert (seen[:, -1] == (232, 17, 45)).all()
            assert same.all()

    @pytest.mark.parametrize(("cell", "runs"), [(None, 1), (61, 3), (200, 2)])
    def test_every_image_is_exact(self, tmp_path, cell, runs):
        rows = [
            make_row(runs),
            make_row(runs, (40, 30), seed=1, box=None),
            make_row(runs, (20, 60), seed=2, scores=()),
        ]
        rows[2] = dataclasses.replace(rows[2], best=None, smooth=True, box=Box(40, 0, 20))
        names = [f"operator {number}" for number in range(runs)]
        layout = layout_comparison(rows, names, cell=cell)
        pixels = render_comparison(rows, names, cell=cell)
        assert pixels.shape == (layout.height, layout.width, 3)
        self.check(pixels, layout, rows, lambda row: [row.image, row.truth, *row.results])
        write_comparison(rows, names, tmp_path / "p.png", cell=cell)
        with Image.open(tmp_path / "p.png") as written:
            np.testing.assert_array_equal(np.asarray(written.convert("RGB")), pixels)

    def test_trimaps_and_colours(self):
        trimap = np.random.default_rng(0).choice(np.array([0, 128, 255], np.uint8), (24, 32))
        matte = make_row(2, trimap=trimap, smooth=True)
        mask = masks(1, classes=100)[0]
        coloured = colour_classes(mask, 150)
        row = dataclasses.replace(make_row(2, seed=3), trimap=trimap, truth=coloured, results=(coloured, coloured))
        layout = layout_comparison([matte, row], ["a", "b"])
        pixels = render_comparison([matte, row], ["a", "b"])
        self.check(pixels, layout, [matte, row], lambda row: [row.image, row.trimap, row.truth, *row.results])
        x, y, side, _ = layout.crops[1, 2]
        centre = pixels[y + side * 7 // 12, x + side * 7 // 12]
        assert centre.tolist() == class_palette(150)[mask[5 + 3, 3 + 3]].tolist()

    def test_the_window_is_marked_where_it_is(self):
        row = make_row(1, (32, 32), box=Box(8, 16, 8))
        black = dataclasses.replace(row, image=np.zeros_like(row.image))
        layout = layout_comparison([black], ["a"], cell=320)
        x, y, *_ = layout.images[0, 0]
        seen = render_comparison([black], ["a"], cell=320)[y : y + 320, x : x + 320]
        ys, xs = np.nonzero(seen.any(axis=2))
        near = layout.points(1.5)
        for found, wanted in zip((xs.min(), xs.max(), ys.min(), ys.max()), (80, 160, 160, 240), strict=True):
            assert abs(found - wanted) <= near
        # Red between two white lines, and nothing within.
        middle = seen[200, : 80 + near].any(axis=1).nonzero()[0]
        colours = [tuple(c) for c in seen[200, middle].tolist()]
        assert colours[0] == colours[-1] == (255, 255, 255)
        assert (232, 17, 45) in colours
        assert not seen[200, 80 + near : 160 - near].any()

    @pytest.mark.parametrize("box", [Box(0, 0, 6), Box(26, 18, 6), Box(0, 0, 24), Box(5, 5, 1)])
    def test_no_mark_beyond_its_image(self, box):
        rows = [make_row(2, box=box), make_row(2, seed=4, box=box)]
        layout, without = layout_comparison(rows, ["a", "b"]), [dataclasses.replace(row, box=None) for row in rows]
        pixels = render_comparison(rows, ["a", "b"])
        covered = np.zeros(pixels.shape[:2], bool)
        for x, y, width, height in [*layout.images.values(), *layout.crops.values()]:
            covered[y : y + height, x : x + width] = True
        for x, y, width, height in layout.images.values():
            across, down = slice(x, x + width), slice(y, y + height)
            for edge in (pixels[down, x - 1], pixels[down, x + width], pixels[y - 1, across]):
                assert (edge == 153).all()
        red = (pixels == (232, 17, 45)).all(axis=2)
        assert red.any()
        assert not red[~covered].any()
        assert layout_comparison(without, ["a", "b"]).height < layout.height

    def test_cells_do_not_overlap_and_gutters_are_even(self):
        rows = [make_row(8), make_row(8, (30, 90), seed=1), make_row(8, (90, 30), seed=2)]
        layout = layout_comparison(rows, [f"run {number}" for number in range(8)])
        boxes = [*layout.images.values(), *layout.crops.values()]
        for (x, y, w, h), (ox, oy, ow, oh) in combinations(boxes, 2):
            assert x + w + 1 < ox or ox + ow + 1 < x or y + h + 1 < oy or oy + oh + 1 < y
        assert all(x > 0 and y > 0 and x + w < layout.width and y + h < layout.height for x, y, w, h in boxes)
        assert len(set(np.diff(layout.lefts).tolist())) == 1
        assert all(w == layout.cell for _, _, w, _ in boxes)
        for (row, _), (_, _, w, h) in layout.images.items():
            assert h / w == pytest.approx(rows[row].size[0] / rows[row].size[1], abs=0.01)
        for place, (x, y, w, h) in layout.crops.items():
            above = layout.images[place]
            assert (x, w, h) == (above[0], layout.cell, layout.cell)
            assert 0 < y - above[1] - above[3] < layout.points(3)

    def test_a_row_without_truth(self):
        known, unknown = make_row(2), dataclasses.replace(make_row(2, seed=1), truth=None)
        both = layout_comparison([known, unknown], ["a", "b"])
        assert (0, 1) in both.images
        assert (1, 1) not in both.images
        assert (1, 1) not in both.crops
        assert both.images[1, 2][0] == both.images[0, 2][0]
        assert sum(map(len, both.headings[0])) == 4
        none = layout_comparison([unknown], ["a", "b"])
        assert none.headings[0] == [["Image"], ["a"], ["b"]]
        x, y, width, height = both.images[1, 0]
        blank = render_comparison([known, unknown], ["a", "b"])[y : y + height, both.lefts[1] : both.lefts[1] + width]
        assert 0 < (blank != 255).any(axis=2).mean() < 0.1  # a word says that nothing is known

    def test_the_page_is_between_one_column_and_two(self):
        for runs in (1, 2, 3, 5, 8):
            for size in ((32, 32), (30, 90), (90, 30)):
                layout = layout_comparison([make_row(runs, size)], ["x"] * runs)
                assert 3.2 < layout.width / layout.dpi < 7.1
                assert layout.points(40) <= layout.cell
        sizes = [layout_comparison([make_row(3)], ["x"] * 3, cell=cell) for cell in (100, 400)]
        inches = [layout.width / layout.dpi for layout in sizes]
        assert [layout.cell for layout in sizes] == [100, 400]
        assert inches[0] == pytest.approx(inches[1], rel=0.03)


class TestWords:
    def test_headings_are_broken_before_they_are_cut(self):
        names = ["FADE (kernel_size=5, groups=32), seed 0", "a word that goes on and on and on without end " * 3]
        layout = layout_comparison([make_row(2)], names)
        lines = layout.headings[0]
        assert " ".join(lines[2]) == names[0]
        assert len(lines[3]) == 3
        assert lines[3][2].endswith("…")
        size = layout.points(layout.heading_size)
        assert all(comparison_layout.font(size).getlength(line) <= layout.cell for column in lines for line in column)
        # Smaller before they are broken.
        trimap = np.zeros((24, 32), np.uint8)
        few, more = (layout_comparison([make_row(runs, trimap=trimap)], ["a"] * runs) for runs in (2, 8))
        assert few.headings[0][2] == more.headings[0][2] == ["Ground truth"]
        assert few.heading_size > more.heading_size
        # Where an underscore is the only place to break at.
        many = layout_comparison([make_row(8)], ["SAPA (embedding_dim=64)"] * 8)
        assert "".join(many.headings[0][2]).replace(" ", "") == "SAPA(embedding_dim=64)"

    def test_the_best_is_bold(self):
        row = make_row(3, scores=("mIoU 0.5",) * 3, best=1)
        layout, pixels = layout_comparison([row], ["a"] * 3), render_comparison([row], ["a"] * 3)
        ink = []
        for run in range(3):
            x, y = layout.score_places[0, run]
            ink.append(int((255 - pixels[y : y + layout.points(8), x - layout.cell // 2 : x + layout.cell // 2]).sum()))
            assert x == pytest.approx(layout.images[0, 2 + run][0] + layout.cell / 2, abs=1)
        assert ink[0] == pytest.approx(ink[2], rel=0.05)
        assert ink[1] > 1.2 * ink[0] > 0

    @pytest.mark.parametrize(
        ("scores", "best"),
        [([0.5, 0.7], 1), ([0.7, 0.5, 0.7], None), ([float("nan"), 0.5], 1), ([float("nan")] * 2, None), ([0.5], None)],
    )
    def test_none_is_bold_where_several_are_as_good(self, scores, best):
        assert _best(scores) == best

    def test_long_figures_become_smaller(self):
        text = "accuracy 0.95"
        short, long = (layout_comparison([make_row(8, scores=(one,) * 8)], ["a"] * 8) for one in ("0.9", text))
        assert short.score_size > long.score_size > comparison_layout.LEAST_TEXT
        assert (
            comparison_layout.font(1000, True).getlength(text) / 1000 * long.score_size * long.dpi / 72
            <= 1.01 * long.cell
        )

    def test_two_figures_stand_below_one_another_where_columns_are_narrow(self):
        wide, narrow = (
            layout_comparison([make_row(runs, scores=("SAD 12.34  MSE 0.012",) * runs)], ["a"] * runs)
            for runs in (2, 8)
        )
        assert wide.scores[0][0] == ["SAD 12.34  MSE 0.012"]
        assert narrow.scores[0] == [["SAD 12.34", "MSE 0.012"]] * 8
        assert narrow.score_size > comparison_layout.LEAST_TEXT
        bottom = narrow.score_places[0, 0][1] + 2 * narrow.points(narrow.score_size)
        pixels = render_comparison([make_row(8, scores=("SAD 12.34  MSE 0.012",) * 8)], ["a"] * 8)
        assert bottom < len(pixels)
        x, y = narrow.score_places[0, 0]
        first, second = pixels[y : (y + bottom) // 2], pixels[(y + bottom) // 2 : bottom]
        assert all((255 - part[:, x - narrow.cell // 2 : x + narrow.cell // 2]).any() for part in (first, second))

    @pytest.mark.parametrize("cell", [110, 200, 250, 260, 270, 333])
    def test_bold_figures_are_never_cut(self, cell):
        text = "SAD 0.471  MSE 0.069"
        layout = layout_comparison([make_row(3, scores=(text,) * 3, best=1)], ["a", "b", "c"], cell=cell)
        (lines,) = {tuple(lines) for lines in layout.scores[0]}
        assert "  ".join(lines) == text
        for line in lines:
            pixels = layout.points(layout.score_size)
            assert comparison_layout.font(pixels, True).getlength(line) <= layout.cell

    def test_names_legend_and_caption_change_pixels(self):
        row = make_row(2)
        plain = render_comparison([row], ["a", "b"], cell=80)
        assert (plain != render_comparison([dataclasses.replace(row, name="other")], ["a", "b"], cell=80)).any()
        assert (plain != render_comparison([row], ["a", "c"], cell=80)).any()
        captioned = render_comparison([row], ["a", "b"], caption=["One sentence.", "And another."], cell=80)
        np.testing.assert_array_equal(captioned[: len(plain) - 8], plain[:-8])
        assert len(captioned) > len(plain)
        nameless = layout_comparison([dataclasses.replace(row, name="")], ["a", "b"], cell=80)
        assert nameless.lefts[0] < layout_comparison([row], ["a", "b"], cell=80).lefts[0]

    def test_the_legend_shows_its_colours_and_wraps(self):
        colours = class_palette(30)
        legend = [(f"class number {index}", colour) for index, colour in enumerate(colours)]
        layout = layout_comparison([make_row(2)], ["a", "b"], legend=legend)
        pixels = render_comparison([make_row(2)], ["a", "b"], legend=legend, caption=["A caption."])
        assert len({y for _, y, *_ in layout.legend}) > 3
        bottom = max(y + height for _, y, _, height in layout.crops.values())
        half = layout.points(5.6) // 2
        for (x, y, text, _), (name, colour) in zip(layout.legend, legend, strict=True):
            assert y > bottom
            assert text == name
            assert pixels[y + half, x + half].tolist() == colour.tolist()
            assert x + comparison_layout.font(layout.points(6)).getlength(text) < layout.width

    def test_names_with_marks(self):
        row = dataclasses.replace(make_row(1), name="a\nb $x_1$ \x1b[31m", scores=("$\\alpha$",))
        write = render_comparison([row], ["$x$"], caption=["$y"], legend=[("$z$", (1, 2, 3))], cell=100)
        assert write.shape[2] == 3
        assert "\n" not in layout_comparison([row], ["$x$"]).names[0][2]


class TestFiles:
    @pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
    def test_the_same_input_gives_the_same_bytes(self, tmp_path, ending):
        rows = [make_row(2), make_row(2, (48, 30), seed=5)]
        options = {"caption": ["Words."], "legend": [("wall", (9, 99, 200))], "cell": 100}
        for name in ("one", "two"):
            write_comparison(rows, ["a", "b"], tmp_path / f"{name}.{ending}", **options)
        one, two = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("one", "two"))
        assert one == two
        assert len(one) > 1000
        assert b"atplotlib v" not in one

    def test_vector_files_hold_the_pixels_themselves(self, tmp_path):
        row = make_row(2, (24, 32))
        write_comparison([row], ["a", "b"], tmp_path / "p.pdf")
        text = (tmp_path / "p.pdf").read_bytes()
        # Truth and two results as they are, and their windows; the image is enlarged smoothly.
        assert text.count(b"/Width 32") == 3
        assert text.count(b"/Width 6\n") + text.count(b"/Width 6 ") == 3
        large = make_row(2, (300, 600), box=None)
        write_comparison([large], ["a", "b"], tmp_path / "l.pdf", cell=100)
        assert b"/Width 600" not in (tmp_path / "l.pdf").read_bytes()

    @pytest.mark.parametrize(
        ("change", "options", "message"),
        [
            ({}, {"name": "p.jpg"}, "a comparison cannot be written as .jpg. Endings: .png .pdf .svg"),
            ({}, {"name": "p"}, "a file without an ending"),
            ({}, {"rows": []}, "no image to draw"),
            ({"results": ()}, {"columns": []}, "no run to draw"),
            ({}, {"columns": ["a"]}, "'image 0' has 2 results for 1 columns"),
            ({"scores": ("x",), "best": None}, {}, "1 scores for 2 columns"),
            ({"best": 2}, {}, "best=2, but there are 2 scores"),
            ({"best": -1}, {}, "best=-1"),
            ({"truth": np.zeros((24, 31), np.uint8)}, {}, r"its truth is \(24, 31\) uint8, needed is \(24, 32\) or"),
            ({"results": (np.zeros((24, 32)),) * 2}, {}, "its result of a is .* float64"),
            ({"results": (np.zeros((24, 32, 4), np.uint8),) * 2}, {}, r"its result of a is \(24, 32, 4\)"),
            ({"trimap": np.zeros((2, 2), np.uint8)}, {}, "its trimap is"),
            ({"image": np.zeros((24, 32), np.uint8)}, {}, r"its image is \(24, 32\) uint8"),
            ({"image": np.zeros(24, np.uint8)}, {}, r"its image is \(24,\) uint8"),
            ({"box": Box(27, 0, 6)}, {}, "side 6 at x 27, y 0 does not lie in the image of 32x24"),
            ({"box": Box(0, 19, 6)}, {}, "does not lie"),
            ({"box": Box(-1, 0, 6)}, {}, "does not lie"),
            ({"box": Box(0, -1, 6)}, {}, "does not lie"),
            ({"box": Box(0, 0, 0)}, {}, "does not lie"),
            ({}, {"cell": 31}, "cell=31: must be at least 32 pixels"),
        ],
    )
    def test_errors_leave_the_old_file(self, tmp_path, change, options, message):
        options = {"name": "p.png", "columns": ["a", "b"], "rows": None} | options
        name, columns, rows = (options.pop(key) for key in ("name", "columns", "rows"))
        (tmp_path / name).write_text("old")
        rows = [dataclasses.replace(make_row(2), **change)] if rows is None else rows
        with pytest.raises(FadevizError, match=message) as caught:
            write_comparison(rows, columns, tmp_path / name, **options)
        assert "\n" not in str(caught.value)
        assert (tmp_path / name).read_text() == "old"
        assert [file.name for file in tmp_path.iterdir()] == [name]

    @pytest.mark.parametrize(("width", "dpi"), [("85mm", None), ("page", 97), (5.2, 217)])
    def test_a_width_on_paper(self, tmp_path, width, dpi):
        rows, style = [make_row(2), make_row(2, (30, 45), seed=1)], FigureStyle(width=width, dpi=dpi)
        layout = layout_comparison(rows, ["a", "b"], style=style, caption=["One."])
        assert layout.width == round(style.inches * (dpi or 300))
        assert set(np.diff(np.diff(layout.lefts))) <= {-1, 0, 1}
        assert layout.lefts[-1] + layout.cell < layout.width
        write_comparison(rows, ["a", "b"], tmp_path / "p.png", style=style, caption=["One."])
        with Image.open(tmp_path / "p.png") as image:
            assert image.size == (layout.width, layout.height)
            assert image.width / image.info["dpi"][0] == pytest.approx(style.inches, rel=2e-3)
            pixels = np.asarray(image.convert("RGB"))
        TestPictures().check(pixels, layout, rows, lambda row: [row.image, row.truth, *row.results])

    @pytest.mark.parametrize(
        "style", [FigureStyle(), FigureStyle(width="85mm"), FigureStyle(font_size=9, width="page")]
    )
    def test_every_word_can_be_read_and_lies_on_no_image(self, style):
        rows = [make_row(3), make_row(3, (30, 45), seed=1)]
        options = {"caption": ["A sentence.", "And another one."], "title": "A title", "style": style}
        layout = layout_comparison(
            rows, ["FADE (ours)", "CARAFE", "Bilinear"], legend=[("horse", (9, 9, 9))], **options
        )
        figure = _draw(rows, layout, exact=True)
        renderer = FigureCanvasAgg(figure).get_renderer()
        texts = [text for text in figure.findobj(Text) if text.get_text()]
        assert {"A title", "FADE (ours)", "horse", "image 1"} <= {text.get_text() for text in texts}
        for text in texts:
            assert text.get_fontsize() >= 5
            box = text.get_window_extent(renderer)
            top, bottom = layout.height - box.y1, layout.height - box.y0
            for x, y, width, height in [*layout.images.values(), *layout.crops.values()]:
                apart = box.x0 >= x + width - 1 or box.x1 <= x + 1 or top >= y + height - 1 or bottom <= y + 1
                assert apart, text.get_text()

    def test_a_caption_has_two_lines_and_its_first_sentences(self):
        sentences = [f"Sentence number {number} with some words." for number in range(30)]
        layout = layout_comparison([make_row(2)], ["a", "b"], caption=sentences)
        assert len(layout.caption[0]) == 2
        assert " ".join(layout.caption[0]).startswith("Sentence number 0 with some words. Sentence number 1 ")
        assert layout.caption[0][-1].endswith(".")

    @pytest.mark.parametrize(
        ("style", "cell", "message"),
        [
            (FigureStyle(width="40mm"), None, "width='40mm': 4 columns would be .* wide each, less than 24"),
            (FigureStyle(width="85mm", dpi=300), 90, "decide the size twice"),
            (FigureStyle(font_size=4.9), None, "font_size=4.9: less than 5 points"),
        ],
    )
    def test_sizes_that_are_none(self, style, cell, message):
        with pytest.raises(FadevizError, match=message):
            layout_comparison([make_row(2)], ["a", "b"], style=style, cell=cell)

    def test_a_page_of_too_many_pixels_is_refused_early(self, monkeypatch):
        monkeypatch.setattr(comparison_layout, "MAX_PIXELS", 10_000)
        with pytest.raises(FadevizError, match="and 10,000 are the limit. Use smaller cells"):
            layout_comparison([make_row(2)], ["a", "b"])

    def test_no_torch(self):
        code = "import sys, fadeviz.render.comparison; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
