"""Control of figures: labels, widths, several images, overlays, differences and crops of grids and animations."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from matplotlib.text import Text
from PIL import Image

import fadeviz
from fadeviz import FadevizError
from fadeviz.render.animation import layout_animation, render_frames
from fadeviz.render.colormap import colorize, palette, signed_palette, to_indices
from fadeviz.render.drawing import select_sequences
from fadeviz.render.frames import select_frames
from fadeviz.render.grid import render_grid
from fadeviz.render.grid_layout import layout_grid
from fadeviz.render.labels import outline, thicken
from fadeviz.render.overlay import CONTOUR, contour
from fadeviz.render.selection import FigureContent, MapSelection, split_options
from fadeviz.render.style import FigureStyle
from render_runs import make_run

FIVE = (0, 20, 50, 80, 110)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    runs = [
        make_run(folder / "fade", size=(16, 16)),
        make_run(folder / "carafe", upsampler="carafe", run_id="b", size=(16, 16), outline_first=False),
    ]
    return [fadeviz.open_run(run.path) for run in runs]


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def sequences_of(runs, colormap="gray", **options):
    selection, content, _ = split_options(options)
    return select_sequences(runs, selection, content, colormap, 120)


class TestSize:
    @pytest.mark.parametrize(("width", "dpi"), [("85mm", None), ("3.3in", 431), ("page", None), (2.5, 300)])
    def test_a_file_has_the_width_and_cells_are_exact(self, tmp_path, pair, width, dpi):
        style = FigureStyle(width=width, dpi=dpi)
        sequences = select_frames(pair, MapSelection(steps=FIVE))
        layout = layout_grid(sequences, style=style)
        fadeviz.grid(pair, tmp_path / "g.png", steps=FIVE, width=width, dpi=dpi)
        with Image.open(tmp_path / "g.png") as image:
            assert image.width / image.info["dpi"][0] == pytest.approx(style.inches, rel=2e-3)
            assert image.info["dpi"][0] >= 299
        pixels, (across, down) = pixels_of(tmp_path / "g.png"), layout.cell
        assert pixels.shape[:2] == (layout.height, layout.width)
        for (index, frame), (x, y) in layout.cells.items():
            expected = colorize(sequences[index].unit[frame], "gray").repeat(layout.scale, 0).repeat(layout.scale, 1)
            np.testing.assert_array_equal(pixels[y : y + down, x : x + across], expected)
        rights = [x + across for x, _ in layout.cells.values()]
        if dpi is None:  # the maps end where the caption does
            assert layout.width - layout.points(4) - max(rights) in (-1, 0, 1)

    @pytest.mark.parametrize("rows", range(1, 9))
    def test_cells_and_images_stay_apart_whatever_the_number_of_rows(self, pair, rows):
        (one,) = select_frames(pair[:1], MapSelection(steps=FIVE))
        sequences = [dataclasses.replace(one, run=copy.copy(one.run)) for _ in range(rows)]
        for width in np.linspace(75, 180, 8):
            layout = layout_grid(sequences, style=FigureStyle(width=f"{width:.1f}mm"))
            (reference,) = layout.references
            corners = sorted({x for x, _ in layout.cells.values()})
            assert min(np.diff(corners)) > layout.cell[0]
            right = max(reference.image[0] + reference.image[2], reference.mask[0] + reference.mask[2])
            below = max(reference.image[1] + reference.image[3], reference.mask[1] + reference.mask[3])
            assert corners[0] > right or min(y for _, y in layout.cells.values()) > below
            assert max(corners[-1] + layout.cell[0], right) < layout.width

    def test_beside_many_rows_image_and_mask_are_above_and_aligned_with_the_cells(self, pair):
        """Elsewhere they would have a column that is mostly empty."""
        (one,) = select_frames(pair[:1], MapSelection(steps=FIVE))
        above = []
        for rows in (2, 9):
            layout = layout_grid([dataclasses.replace(one, run=copy.copy(one.run)) for _ in range(rows)],
                                 style=FigureStyle(width="column"))  # fmt: skip
            (reference,) = layout.references
            above.append(reference.image[:2] < layout.cells[0, 0] and reference.image[0] == layout.cells[0, 0][0])
            if above[-1]:
                assert (reference.mask[0], reference.mask[1]) == (layout.cells[0, 1][0], reference.image[1])
                assert reference.image[3] == layout.cell[1]
                assert layout.blocks[0].top > reference.image[1] + reference.image[3]
        assert above == [False, True]

    def test_pdf_and_svg_have_it_too(self, tmp_path, pair):
        for ending in ("pdf", "svg"):
            fadeviz.grid(pair, tmp_path / f"g.{ending}", steps=FIVE, width="85mm")
        box = (tmp_path / "g.pdf").read_bytes().partition(b"/MediaBox [ 0 0 ")[2].split()[0]
        assert float(box) == pytest.approx(85 / 25.4 * 72, abs=0.1)
        size = (tmp_path / "g.svg").read_text().partition('width="')[2].partition("pt")[0]
        assert float(size) == pytest.approx(85 / 25.4 * 72, abs=0.1)

    @pytest.mark.parametrize("dpi", [100, 400])
    def test_pixels_per_inch_alone_leave_the_size_as_it_is(self, pair, dpi):
        sequences = select_frames(pair, MapSelection(steps=FIVE))
        usual, other = layout_grid(sequences), layout_grid(sequences, style=FigureStyle(dpi=dpi))
        assert other.dpi == dpi
        assert other.width / dpi == pytest.approx(usual.width / usual.dpi, rel=0.1)

    def test_cells_that_do_not_fill_their_room_are_noted(self, tmp_path, pair):
        notes = fadeviz.grid(pair, tmp_path / "g.png", steps=FIVE, width="85mm", dpi=80)
        assert any(note.startswith("cells fill ") and "Leave out dpi=..." in note for note in notes)

    def test_words_keep_their_size_and_can_be_larger(self, pair):
        for options, sizes in (
            ({}, {5.2, 6.0, 8.0}),
            ({"font_size": 9}, {7.8, 9.0, 12.0}),
            ({"font_size": 5}, {5, 20 / 3}),
        ):
            figure = pair[0].grid(pair[1], steps=FIVE, width="page", **options)
            got = {text.get_fontsize() for text in figure.findobj(Text) if text.get_text()}
            assert sorted(got) == pytest.approx(sorted(sizes))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"width": "50mm", "columns": 12}, r"width='50mm': 12 frames in a row would be 9.7 points wide each"),
            (
                {"width": "85mm", "dpi": 60, "columns": 12},
                r"dpi=60: a cell is \d+ pixels wide, and a map has 16 values",
            ),
            ({"width": "85mm", "dpi": 300, "scale": 2}, "decide the size twice"),
            ({"font_size": 4.5}, "font_size=4.5: less than 5 points cannot be read in print"),
            ({"width": "85px"}, "must be column, page or a length"),
        ],
    )
    def test_sizes_that_are_none(self, tmp_path, pair, options, message):
        with pytest.raises(FadevizError, match=message):
            fadeviz.grid(pair, tmp_path / "g.png", **options)
        assert not [*tmp_path.iterdir()]

    def test_a_background_that_is_left_out(self, tmp_path, pair):
        fadeviz.grid(pair, tmp_path / "g.png", steps=[0], transparent=True)
        with Image.open(tmp_path / "g.png") as image:
            values = np.asarray(image.convert("RGBA"))
        assert values[0, 0, 3] == 0
        layout = layout_grid(select_frames(pair, MapSelection(steps=[0])))
        x, y = layout.cells[0, 0]
        assert (values[y : y + layout.cell[1], x : x + layout.cell[0], 3] == 255).all()


class TestWords:
    def texts(self, figure):
        return {text.get_text() for text in figure.findobj(Text)}

    def test_labels_title_and_no_caption(self, pair):
        figure = pair[0].grid(pair[1], steps=[0], labels=["Ours", "Bilinear"], title="A title", caption=False)
        assert {"Ours", "Bilinear", "A title", "image", "mask", "step 0", "min", "max", ""} == self.texts(figure) | {""}
        usual = pair[0].grid(pair[1], steps=[0])
        assert {"FADE", "CARAFE"} <= self.texts(usual)
        assert any(text.startswith("Feature: ") for text in self.texts(usual))
        assert usual.get_figheight() > figure.get_figheight() - 0.2

    def test_a_recorders_name_stays_as_it_is_and_operators_have_their_papers_spelling(self, tmp_path):
        runs = [make_run(tmp_path / name, run_id=name, steps=(0,)) for name in ("a", "b")]
        info = runs[1].info.to_dict() | {"title": "dySample", "upsampler": "dySample"}
        runs[1].info = type(runs[1].info).from_dict(info)
        assert {"FADE", "dySample"} <= self.texts(fadeviz.open_run(runs[0].path).grid(runs[1]))

    @pytest.mark.parametrize("labels", [["one"], ["one", "two", "three"]])
    def test_a_label_for_each_run(self, tmp_path, pair, labels):
        for draw, name in ((fadeviz.grid, "g.png"), (fadeviz.animate, "a.gif")):
            with pytest.raises(FadevizError, match=f"{len(labels)} labels? for 2 runs: give labels=... for each run"):
                draw(pair, tmp_path / name, labels=labels)
        with pytest.raises(FadevizError, match="give a list"):
            fadeviz.grid(pair, tmp_path / "g.png", labels="ab")

    def test_the_figure_can_be_changed(self, pair, tmp_path):
        figure = pair[0].grid(pair[1], steps=FIVE, width="85mm")
        assert figure.get_figwidth() == pytest.approx(85 / 25.4, abs=0.01)
        figure.text(0.5, 0.5, "ours")
        figure.savefig(tmp_path / "g.pdf")
        assert (tmp_path / "g.pdf").stat().st_size > 1000


class TestImages:
    def test_one_below_the_other_with_one_range(self, pair):
        sequences = sequences_of(pair, images=[0, 1], normalize="shared", steps=FIVE)
        assert [(one.image, one.label) for one in sequences] == [(0, "FADE"), (0, "CARAFE"), (1, "FADE"), (1, "CARAFE")]
        assert len({one.limits for one in sequences}) == 1
        np.testing.assert_array_equal(sequences[3].maps, pair[1].maps(kind="feature", image=1, steps=FIVE)[:])
        layout = layout_grid(sequences)
        assert [reference.sequence for reference in layout.references] == [0, 2]
        first, second = (reference.image for reference in layout.references)
        assert second[1] > first[1] + first[3]
        assert first[:1] + first[2:] == second[:1] + second[2:]
        pixels = render_grid(sequences)
        for (index, frame), (x, y) in layout.cells.items():
            expected = colorize(sequences[index].unit[frame], "gray").repeat(layout.scale, 0).repeat(layout.scale, 1)
            np.testing.assert_array_equal(pixels[y:, x:][: expected.shape[0], : expected.shape[1]], expected)
        assert "Images: disc_0, disc_1." in " ".join(layout.caption[0])

    def test_an_animation_has_a_row_for_each(self, pair):
        sequences = sequences_of(pair, images=[1, 0], steps=FIVE)
        layout = layout_animation(sequences, scale=2, content=FigureContent(title="Both"))
        assert [index for index, _ in layout.images] == [0, 2]
        for frame, drawn in enumerate(render_frames(sequences, scale=2, content=FigureContent(title="Both"))):
            for (x, y), sequence in zip(layout.tiles, sequences, strict=True):
                expected = colorize(sequence.unit[frame], "gray").repeat(2, 0).repeat(2, 1)
                np.testing.assert_array_equal(drawn[y : y + 32, x : x + 32], expected)

    def test_channels_are_the_same_in_all(self, pair):
        sequences = sequences_of(pair[:1], kind="channels", images=[0], channels=2)
        assert len({one.channel for one in sequences}) == 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"images": [0, 2]}, "no image 2"),
            ({"images": [0, 0]}, "give each image once"),
            ({"images": [0, 1], "image": 1}, r"image=1 and images=\[0, 1\]: give one of the two"),
        ],
    )
    def test_wrong_ones(self, tmp_path, pair, options, message):
        with pytest.raises(FadevizError, match=message):
            fadeviz.grid(pair, tmp_path / "g.png", **options)


class TestDifference:
    def test_it_is_the_second_less_the_first_about_0(self, tmp_path, pair):
        (one,) = sequences_of(pair, "signed", difference=True, normalize="run")
        first, second = (run.maps(kind="feature", image=0)[:] for run in pair)
        np.testing.assert_array_equal(one.maps, second - first)
        assert one.title == "CARAFE \N{MINUS SIGN} FADE"
        (limits,) = set(one.limits)
        assert limits.low == -limits.high == pytest.approx(-np.abs(second - first).max())
        notes = fadeviz.grid(pair, tmp_path / "g.png", difference=True, normalize="run")
        said = " ".join(notes.description)
        assert "FADE, CARAFE; seed 0 each." in said
        assert "difference of the maps of two runs" in said
        layout = layout_grid([one], content=FigureContent(difference=True))
        x, y = layout.cells[0, 3]
        value = pixels_of(tmp_path / "g.png")[y + layout.scale * 4, x + layout.scale * 9]
        assert value.tolist() == signed_palette()[to_indices(one.unit[3, 4, 9])].tolist()

    def test_zero_is_the_middle_of_the_colours(self):
        assert palette("signed").tolist() == signed_palette().tolist()
        assert palette("signed")[127:129].min() > 245

    @pytest.mark.parametrize("kind", ["gate", "gradient"])
    def test_kinds_with_a_range_of_their_own(self, pair, kind):
        (one,) = sequences_of(pair, "signed", difference=True, kind=kind, normalize="shared")
        assert one.limits[0].low == -one.limits[0].high == pytest.approx(-np.abs(one.maps).max())

    def test_an_animation_of_it(self, tmp_path, pair):
        fadeviz.animate(pair, tmp_path / "a.gif", difference=True, scale=2, steps=FIVE)
        (one,) = sequences_of(pair, "signed", difference=True, steps=FIVE)
        layout = layout_animation([one], scale=2)
        (x, y), expected = layout.tiles[0], colorize(one.unit[0], "signed").repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(pixels_of(tmp_path / "a.gif")[y : y + 32, x : x + 32], expected)

    @pytest.mark.parametrize(
        ("chosen", "options", "message"),
        [
            ([0], {}, "needs two runs, the second less the first; given: 1"),
            ([0, 1], {"colormap": "magma"}, "needs a colour map that diverges"),
            ([0, 1], {"kind": "channels"}, r"Choose the same ones with channel=\.\.\."),
            ([0, 1], {"kind": "prediction"}, "classes, which have no difference"),
        ],
    )
    def test_where_there_is_none(self, tmp_path, pair, chosen, options, message):
        with pytest.raises(FadevizError, match=message):
            fadeviz.grid([pair[index] for index in chosen], tmp_path / "g.png", difference=True, **options)

    def test_maps_of_two_sizes(self, tmp_path, pair):
        other = make_run(tmp_path / "other", size=(16, 12))
        (tmp_path / "other" / "observation.safetensors").unlink()  # the images differ in size, too
        with pytest.raises(FadevizError, match="maps are 16x16 in .*, but 16x12 in .*other"):
            fadeviz.grid([pair[0], other.path], tmp_path / "g.png", difference=True)


class TestCrop:
    @pytest.mark.parametrize(
        ("crop", "rows", "columns", "ends"),
        [
            ((8, 4, 16), slice(2, 10), slice(4, 12), (8, 4, 24, 20)),
            ((9, 5, 5), slice(2, 5), slice(4, 7), (8, 4, 14, 10)),  # the cells that it touches
            ((0, 0, 32), slice(0, 16), slice(0, 16), (0, 0, 32, 32)),
            ((31, 31, 1), slice(15, 16), slice(15, 16), (30, 30, 32, 32)),
        ],
    )
    def test_cells_have_the_colours_of_the_whole_map(self, pair, crop, rows, columns, ends):
        whole, part = (sequences_of(pair, steps=FIVE, **options) for options in ({}, {"crop": crop}))
        for all_of_it, some in zip(whole, part, strict=True):
            assert some.crop == ends
            assert some.limits == all_of_it.limits
            np.testing.assert_array_equal(some.unit, all_of_it.unit[:, rows, columns])
            np.testing.assert_array_equal(some.maps, all_of_it.maps[:, rows, columns])

    def test_the_window_is_marked_on_image_and_mask(self, pair):
        sequences = sequences_of(pair, steps=[0, 50], crop=(8, 4, 16))
        layout, pixels = layout_grid(sequences), render_grid(sequences)
        for x, y, width, height in (layout.references[0].image, layout.references[0].mask):
            red = (pixels[y : y + height, x : x + width] == (232, 17, 45)).all(axis=2)
            rows, columns = (np.flatnonzero(red.any(axis=axis)) for axis in (1, 0))
            for got, wanted in ((columns[0], 8), (columns[-1], 24), (rows[0], 4), (rows[-1], 20)):
                assert got == pytest.approx(wanted / 32 * width, abs=layout.points(1.5))
        assert "16x16 pixels at x 8, y 4" in " ".join(layout.caption[0])

    def test_an_animation_of_it(self, pair):
        sequences = sequences_of(pair, steps=FIVE, crop=(8, 4, 16))
        layout = layout_animation(sequences, scale=4)
        (x, y), (width, height) = layout.tiles[1], layout.sizes[1]
        assert (width, height) == (32, 32)
        (first, *_) = render_frames(sequences, scale=4)
        expected = colorize(sequences[1].unit[0], "gray").repeat(4, 0).repeat(4, 1)
        np.testing.assert_array_equal(first[y : y + height, x : x + width], expected)

    @pytest.mark.parametrize("crop", [(0, 0, 33), (20, 0, 16), (-1, 0, 8), (0, 0, 0)])
    def test_windows_beyond_the_image(self, tmp_path, pair, crop):
        with pytest.raises(FadevizError, match="does not lie in the image of 32x32. Choose one inside it"):
            fadeviz.grid(pair, tmp_path / "g.png", crop=crop)

    def test_without_images(self, tmp_path):
        run = make_run(tmp_path / "lost")
        (run.path / "observation.safetensors").unlink()
        for options, message in (
            ({"crop": (0, 0, 8)}, "Leave out crop="),
            ({"overlay": "contour"}, "Leave out overlay="),
        ):
            with pytest.raises(FadevizError, match=f"has lost its observed images. {message}"):
                fadeviz.grid(run.path, tmp_path / "g.png", **options)


class TestOverlay:
    def cells(self, sequences, colormap, **content):
        made = FigureContent(**content)
        layout, pixels = layout_grid(sequences), render_grid(sequences, colormap=colormap, content=made)
        across, down = layout.cell
        return layout, {place: pixels[y : y + down, x : x + across] for place, (x, y) in layout.cells.items()}

    def test_a_contour_covers_only_itself(self, pair):
        sequences = sequences_of(pair, steps=[0, 50])
        layout, plain = self.cells(sequences, "gray")
        _, lined = self.cells(sequences, "gray", overlay="contour")
        line = contour(sequences[0], layout.cell, layout.points(0.5))
        assert 0.01 < line.mean() < 0.2
        for place, pixels in lined.items():
            assert (pixels[line] == CONTOUR).all()
            np.testing.assert_array_equal(pixels[~line], plain[place][~line])

    def test_a_map_over_its_image(self, pair):
        sequences = sequences_of(pair, steps=[0, 50])
        layout, plain = self.cells(sequences, "magma")
        grey = Image.fromarray(pair[0].observation[0][0]).convert("L").resize(layout.cell, Image.Resampling.LANCZOS)
        for alpha in (0, 0.25, 1):
            _, blended = self.cells(sequences, "magma", overlay="map", alpha=alpha)
            for place, pixels in blended.items():
                expected = alpha * plain[place] + (1 - alpha) * np.asarray(grey, float)[..., None]
                np.testing.assert_allclose(pixels, expected, atol=0.5)

    def test_gifs_approximate_the_colours_and_others_are_exact(self, tmp_path, pair):
        options = {"steps": FIVE, "scale": 4, "overlay": "contour"}
        (note,) = fadeviz.animate(pair, tmp_path / "a.gif", **options)
        assert note.startswith("GIF has 256 colours: those of the overlay are approximated")
        assert fadeviz.animate(pair, tmp_path / "a.apng", **options) == ()
        gif, exact = (pixels_of(tmp_path / name).astype(int) for name in ("a.gif", "a.apng"))
        assert 0 < np.abs(gif - exact).mean() < 3
        sequences = sequences_of(pair, steps=FIVE)
        layout = layout_animation(sequences, scale=4)
        (x, y), line = layout.tiles[0], contour(sequences[0], layout.sizes[0], 1)
        assert (exact[y : y + 64, x : x + 64][line] == CONTOUR).all()

    def test_lines_get_thicker_on_both_sides(self):
        line = np.zeros((9, 9), bool)
        line[4, 4] = True
        assert [int(thicken(line, width).sum()) for width in (1, 2, 3, 4)] == [1, 4, 9, 16]
        line[0, 0] = line[8, 8] = True
        assert thicken(line, 3).sum() == 9 + 4 + 4
        disc = outline((np.hypot(*np.mgrid[-9:10, -9:10]) < 6).astype(np.uint8))
        grown = [thicken(disc, width) for width in range(1, 5)]
        assert all((more >= less).all() for less, more in itertools.pairwise(grown))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"overlay": "maps"}, "no overlay 'maps'. Nearest: 'map'"),
            ({"overlay": "map"}, "overlay='map': the image is grey, so the map needs colours. Choose colormap='magma'"),
            ({"overlay": "map", "colormap": "magma", "alpha": 1.5}, r"alpha=1.5: must be 0 .* to 1"),
            ({"overlay": "contour", "kind": "prediction"}, "have the contour of the true object already"),
        ],
    )
    def test_wrong_ones(self, tmp_path, pair, options, message):
        with pytest.raises(FadevizError, match=message):
            fadeviz.grid(pair, tmp_path / "g.png", **options)


@pytest.mark.slow
def test_the_command_line_draws_the_same(tmp_path, pair):
    words = ["--label", "FADE (ours)", "--label", "CARAFE", "--title", "T", "--no-caption", "--images", "0,1",
             "--steps", "0,50", "--overlay", "map", "--alpha", "0.3", "--colormap", "viridis", "--crop",
             "4,4,24"]  # fmt: skip
    options = {"labels": ["FADE (ours)", "CARAFE"], "title": "T", "caption": False, "images": [0, 1], "steps": [0, 50],
               "overlay": "map", "alpha": 0.3, "colormap": "viridis", "crop": (4, 4, 24), "font_size": 7}  # fmt: skip
    style = ["--width", "85mm", "--font", "STIXGeneral", "--dpi", "200", "--transparent"]
    paper = {"width": "85mm", "font": "STIXGeneral", "dpi": 200, "transparent": True}
    for command, name, more, settings in (("grid", "g.png", style, paper), ("animate", "a.webp", [], {})):
        line = [command, *(str(run.path) for run in pair), "-o", str(tmp_path / f"cli_{name}"), "--font-size", "7"]
        result = CliRunner().invoke(main, [*line, *words, *more])
        assert result.exit_code == 0, result.output
        assert "Maps over the image, 30 % opaque.\n" in result.output
        assert "BatchNorm" not in result.output  # these runs do not say
        getattr(fadeviz, command)(pair, tmp_path / f"py_{name}", **options, **settings)
        assert (tmp_path / f"cli_{name}").read_bytes() == (tmp_path / f"py_{name}").read_bytes()


def test_the_command_line_names_its_own_options(tmp_path, pair):
    folders = [str(run.path) for run in pair]
    for words, message in (
        (["--label", "one"], "1 label for 2 runs: give --label for each run"),
        (["--crop", "1,2"], "--crop 1,2: must be a window in pixels: LEFT,TOP,SIDE"),
        (
            ["--crop", "30,0,16"],
            "--crop 30,0,16: the window of side 16 at x 30, y 0 does not lie in the image of 32x32",
        ),
        (["--difference", "--colormap", "magma"], "Choose --colormap signed or, say, --colormap RdBu"),
        (["--overlay", "map"], "Choose --colormap magma or another"),
    ):
        result = CliRunner().invoke(main, ["grid", *folders, "-o", str(tmp_path / "g.png"), *words])
        assert (result.exit_code, message in result.output) == (1, True), result.output
    result = CliRunner().invoke(main, ["grid", *folders, "-o", str(tmp_path / "g.png"), "--overlay", "no"])
    assert result.exit_code == 2
