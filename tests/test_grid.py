"""Grids: cells exact to the pixel, the same bytes each time, nothing replaced on an error."""

import dataclasses
import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from fadeviz.errors import FadevizError
from fadeviz.render import grid
from fadeviz.render.colormap import colorize
from fadeviz.render.fonts import font
from fadeviz.render.frames import select_frames
from fadeviz.render.grid import _draw, render_grid, write_grid
from fadeviz.render.grid_layout import layout_grid
from fadeviz.render.labels import describe, short_caption
from fadeviz.render.selection import FigureContent, MapSelection
from fadeviz.render.style import FigureStyle
from fadeviz.storage.snapshot_files import SnapshotFiles
from render_runs import LAYER, make_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "fade")


@pytest.fixture
def pair(tmp_path, run):
    return [run, make_run(tmp_path / "carafe", upsampler="carafe", run_id="b", outline_first=False)]


def check_cells(pixels, sequences, layout, colormap):
    """Every cell is its map, each value a block of pixels: nothing lies on it."""
    width, height = layout.cell
    for (index, frame), (x, y) in layout.cells.items():
        expected = colorize(sequences[index].unit[frame], colormap).repeat(layout.scale, 0).repeat(layout.scale, 1)
        np.testing.assert_array_equal(pixels[y : y + height, x : x + width], expected)


@pytest.mark.parametrize(
    ("options", "colormap"),
    [
        ({}, "gray"),
        ({"scale": 1}, "viridis"),
        ({"scale": 2, "columns": 5}, "gray"),
        ({"scale": 13, "columns": 4}, "coolwarm"),
    ],
)
def test_cells_are_exact(tmp_path, pair, options, colormap):
    sequences = select_frames(pair)
    layout = layout_grid(sequences, **options)
    pixels = render_grid(sequences, colormap=colormap, **options)
    assert pixels.shape == (layout.height, layout.width, 3)
    check_cells(pixels, sequences, layout, colormap)
    write_grid(pair, tmp_path / "g.png", colormap="gray", **options)
    with Image.open(tmp_path / "g.png") as written:
        check_cells(np.asarray(written.convert("RGB")), sequences, layout, "gray")


def test_a_tall_map_of_a_single_value(tmp_path):
    sequences = select_frames([make_run(tmp_path / "r", size=(6, 2), maps=np.zeros((12, 6, 2), np.float32))])
    layout = layout_grid(sequences)
    check_cells(render_grid(sequences), sequences, layout, "gray")


def all_boxes(layout):
    cells = [(*corner, *layout.sizes[index]) for (index, _), corner in layout.cells.items()]
    return cells + [box for reference in layout.references for box in (reference.image, reference.mask)]


def text_boxes(sequences, layout):
    """The extent of every text of a figure, in pixels from its upper left corner, with the text."""
    figure = _draw(sequences, layout, FigureContent(), "gray", upscale=True)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in figure.findobj(Text):
        if text.get_text():
            extent = text.get_window_extent(renderer)
            yield (
                text.get_text(),
                (extent.x0, layout.height - extent.y1, extent.width, extent.height),
                text.get_fontsize(),
            )


def overlap(one, other):
    (x, y, w, h), (ox, oy, ow, oh) = one, other
    return min(x + w, ox + ow) - max(x, ox) > 0.5 and min(y + h, oy + oh) - max(y, oy) > 0.5


@pytest.mark.parametrize(
    ("options", "maps"),
    [
        ({}, {}),
        ({"columns": 5}, {}),
        ({"scale": 1}, {"steps": range(0, 50, 10)}),
        ({}, {"kind": "channels", "channels": 2}),
        ({"style": FigureStyle(width="60mm")}, {"kind": "channels", "steps": range(0, 50, 10)}),
        ({}, {"steps": [0]}),
        ({"style": FigureStyle(width="85mm")}, {}),
        ({"style": FigureStyle(width="column", font_size=8)}, {"steps": [0, 50, 110]}),
    ],
)
def test_no_word_lies_on_a_map_or_on_another_word(pair, options, maps):
    sequences = select_frames(pair, MapSelection(**maps))
    layout = layout_grid(sequences, **options)
    texts = list(text_boxes(sequences, layout))
    assert {"image", "mask", "FADE", "CARAFE"} <= {text for text, *_ in texts}
    for (text, box, size), (other, other_box, _) in itertools.combinations(texts, 2):
        assert not overlap(box, other_box), (text, other)
        assert size >= 5
    for text, (x, y, w, h), _ in texts:
        assert x >= 0 and y >= 0 and x + w <= layout.width + 1 and y + h <= layout.height, text  # noqa: PT018
        assert not any(overlap((x, y, w, h), cell) for cell in all_boxes(layout)), text


@pytest.mark.parametrize(
    ("frames", "rows"), [(1, 1), (2, 1), (3, 1), (5, 1), (6, 2), (12, 3), (13, 2), (17, 3), (24, 4), (35, 5)]
)
def test_rows_are_balanced(tmp_path, frames, rows):
    run = make_run(tmp_path / "r", steps=range(frames), size=(28, 28))
    layout = layout_grid(select_frames([run]))
    tops = [y for _, y in layout.cells.values()]
    counts = [tops.count(y) for y in sorted(set(tops))]
    assert len(counts) == rows
    assert max(counts) - min(counts) <= max(1, max(counts) // 4)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_image_and_mask_are_there_once_and_fill_the_height(tmp_path, count):
    runs = [make_run(tmp_path / str(n), upsampler=f"op{n}", run_id=str(n), steps=range(7)) for n in range(count)]
    layout = layout_grid(select_frames(runs), columns=7)
    (reference,) = layout.references
    tops, bottoms = zip(*((y, y + layout.cell[1]) for _, y in layout.cells.values()), strict=True)
    (x, y, _, height), (mask_x, mask_y, _, mask_height) = reference.image, reference.mask
    assert y == min(tops)
    assert height == mask_height
    if count == 1:
        assert (mask_y, height) == (y, layout.cell[1])
        assert mask_x > x
    else:
        assert mask_x == x
        assert mask_y + mask_height == pytest.approx(max(bottoms), abs=3)
        assert height >= layout.cell[1]


def test_cells_do_not_overlap_and_read_from_left_to_right(pair):
    layout = layout_grid(select_frames(pair), columns=5)
    corners, boxes = list(layout.cells.values()), all_boxes(layout)
    assert len(boxes) == 2 * 12 + 2
    for (x, y, w, h), (ox, oy, ow, oh) in itertools.combinations(boxes, 2):
        assert x + w + 1 < ox or ox + ow + 1 < x or y + h + 1 < oy or oy + oh + 1 < y
    assert all(x > 0 and x + w < layout.width and y > 0 and y + h < layout.height for x, y, w, h in boxes)
    assert [(y, x) for x, y in corners] == sorted((y, x) for x, y in corners)


def test_the_default_page_is_wider_than_high(tmp_path):
    steps = tuple(range(35))
    sequences = select_frames([make_run(tmp_path / "r", steps=steps, size=(28, 28))])
    layout = layout_grid(sequences)
    assert 1.2 < layout.width / layout.height < 2
    assert len({x for x, _ in layout.cells.values()}) * len({y for _, y in layout.cells.values()}) == 35
    assert 100 <= layout.cell[0] <= 130


def test_non_finite_cells_are_magenta(tmp_path):
    maps = np.random.default_rng(0).normal(size=(12, 24, 32)).astype(np.float32)
    maps[2, 20, 30] = np.nan
    run = make_run(tmp_path / "r", maps=maps)
    assert any("magenta" in note for note in write_grid([run], tmp_path / "g.png"))
    sequences = select_frames([run])
    layout = layout_grid(sequences)
    x, y = layout.cells[0, 2]
    corner = render_grid(sequences)[y + 20 * layout.scale, x + 30 * layout.scale]
    assert corner.tolist() == [255, 0, 255]


def test_words_change_pixels(tmp_path, run):
    renamed = make_run(tmp_path / "carafe", upsampler="carafe")
    one, two = (render_grid(select_frames([r])) for r in (run, renamed))
    assert one.shape == two.shape
    assert (one != two).any()


def test_channels_draw_a_row_each(tmp_path, run):
    sequences = select_frames([run], MapSelection(kind="channels"))
    layout = layout_grid(sequences)
    assert len({y for _, y in layout.cells.values()}) == len(sequences) > 1
    write_grid([run], tmp_path / "a.png", MapSelection(kind="channels"))
    write_grid([run], tmp_path / "b.png", MapSelection(kind="channels", channels=2))
    with Image.open(tmp_path / "a.png") as many, Image.open(tmp_path / "b.png") as few:
        assert few.height < many.height


def test_steps_that_are_not_drawn_are_counted(tmp_path, run):
    notes = write_grid([run], tmp_path / "a.png", MapSelection(kind="channels"))
    assert "8 of 12 snapshots are shown, evenly spaced from step 0 to 110. Choose others with steps=..." in notes
    notes = write_grid([run], tmp_path / "b.png", MapSelection(kind="channels", steps=run.steps))
    assert not [note for note in notes if "steps" in note]
    few = select_frames([run], MapSelection(steps=[0, 50]))
    assert "2 of 12 recorded steps are shown." in describe(few)
    assert "2 of 12 recorded steps are shown." in " ".join(short_caption(few, 10, 600))
    assert "recorded steps" not in " ".join(describe(select_frames([run])))


def test_another_call(tmp_path):
    run = make_run(tmp_path / "r", calls=2)
    notes = write_grid([run], tmp_path / "g.png", MapSelection(call=1))
    assert notes == ("decoder.3.upsample: call 1 is shown; also recorded: call 0 (24x32). Choose with call=...",)
    sequences = select_frames([run], MapSelection(call=1))
    layout = layout_grid(sequences)
    with Image.open(tmp_path / "g.png") as written:
        check_cells(np.asarray(written.convert("RGB")), sequences, layout, "gray")
    assert layout.scale == 8  # its maps are 16 cells wide


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_same_run_gives_the_same_bytes(tmp_path, pair, ending):
    for name in ("one", "two"):
        write_grid(pair, tmp_path / f"{name}.{ending}", MapSelection(normalize="shared"), colormap="viridis")
    one, two = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert len(one) > 1000
    assert b"atplotlib v" not in one


def test_vector_files_hold_the_values_themselves(tmp_path, run):
    write_grid([run], tmp_path / "g.pdf")
    text = (tmp_path / "g.pdf").read_bytes()
    assert text.count(b"/Width 32") == 12
    assert text.count(b"/Height 24") == 12
    write_grid([run], tmp_path / "g.svg")
    assert (tmp_path / "g.svg").read_text().count("image-rendering:pixelated") == 12 + 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("g.jpg", {}, r"cannot be written as .jpg. Endings: .png .pdf .svg"),
        ("g", {}, "a file without an ending"),
        ("g.png", {"colormap": "grey2"}, "no colour map 'grey2'"),
        ("g.png", {"columns": 0}, "columns=0: must be at least 1"),
        ("g.png", {"scale": 0}, "scale=0: must be at least 1"),
        ("g.png", {"selection": MapSelection(kind="gates")}, "gate"),
    ],
)
def test_errors_leave_the_old_file(tmp_path, run, name, options, message):
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / name).write_text("old")
    with pytest.raises(FadevizError, match=message):
        write_grid([run], folder / name, **options)
    assert [f.name for f in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "old"


def test_a_grid_of_a_long_run_reads_and_draws_what_can_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "MAX_FRAMES", 12)
    run = make_run(tmp_path / "long", size=(6, 8), steps=range(40))
    opened = set()
    monkeypatch.setattr(
        SnapshotFiles,
        "open_map",
        lambda files, step, *what, was=SnapshotFiles.open_map: opened.add(step) or was(files, step, *what),
    )
    (note,) = write_grid([run], tmp_path / "g.png", scale=1)
    assert note.startswith("12 of 40 snapshots are shown, evenly spaced from step 0 to 39.")
    assert len(opened) == 12
    assert write_grid([run], tmp_path / "g.png", MapSelection(steps=range(20)), scale=1) == ()


RUNS = "fadeviz runs: a1b2c3 (FADE, seed 0), b (CARAFE, seed 0)"


def test_the_ids_of_the_runs_are_in_the_file_and_not_under_the_figure(tmp_path, pair):
    for ending in ("png", "pdf", "svg"):
        write_grid(pair, tmp_path / f"g.{ending}", MapSelection(steps=[0]), scale=1)
    with Image.open(tmp_path / "g.png") as image:
        assert image.text["Description"].startswith(RUNS + ". SegNet, ")
        assert image.text["Description"].endswith("seed 0 each. 1 of 12 recorded steps are shown.")
    assert RUNS.replace("(", r"\(").replace(")", r"\)").encode() in (tmp_path / "g.pdf").read_bytes()
    assert RUNS in (tmp_path / "g.svg").read_text()
    (line,) = layout_grid(select_frames(pair)).caption[0]
    assert line.startswith("Feature: each frame spans its own minimum to maximum. Seed 0. Image: disc_0. SegNet, ")


@pytest.mark.parametrize("width", [200, 300, 500, 2000])
def test_a_caption_has_two_lines_and_what_a_reader_needs(tmp_path, width):
    long = "a_very_long_name" * 5
    runs = [make_run(tmp_path / str(n), seed=n, run_id=str(n), upsampler=f"op{n}") for n in range(3)]
    for run in runs:
        run.info = dataclasses.replace(run.info, observation=dataclasses.replace(run.info.observation, names=(long,)))
    sequences = select_frames(runs, MapSelection(normalize="shared"))
    lines = short_caption(sequences, 11, width)
    said = " ".join(lines)
    assert len(lines) <= 2
    assert all(font(11).getlength(line) <= width for line in lines)
    assert said.startswith("Feature: one range over all")
    if width >= 500:
        assert "Seeds: 0, 1, 2, in order. Image: a_very_long" in said
    assert (f"{LAYER}. Data: drawn." in said) == (width == 2000)
    assert f"Image: {long[:79]}" in " ".join(describe(sequences))


def test_seeds_and_ranges_in_short(tmp_path):
    runs = [make_run(tmp_path / name, seed=seed, run_id=name, upsampler=name) for name, seed in (("a", 3), ("b", 5))]
    by_run = " ".join(short_caption(select_frames(runs, MapSelection(normalize="run")), 10, 900))
    assert by_run.startswith("Feature: one range per run. Seeds: 3, 5, in order. Image")
    twins = [make_run(tmp_path / f"c{seed}", seed=seed, run_id=f"c{seed}") for seed in (0, 1)]
    assert "Seed" not in " ".join(short_caption(select_frames(twins), 10, 900))  # the headings say it
    assert "Seed 3." in " ".join(short_caption(select_frames(runs[:1]), 10, 900))
