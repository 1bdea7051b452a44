"""Distance-time maps as a figure: where things are drawn, in which colours, and that every panel shares them."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from PIL import Image

from fadeviz import FadevizError
from fadeviz.render import kymographs
from fadeviz.render.colormap import signed_palette
from fadeviz.render.kymographs import write_kymographs
from fadeviz.render.panels import MIN_KYMOGRAPH_SPAN, ArrivalMark, KymographPanel, kymograph_span, panel_grid
from fadeviz.render.step_axis import StepAxis, choose_step_axis
from fadeviz.render.style import FigureStyle

STEPS = (0, 1, 3, 10, 30, 100)
EDGES = np.linspace(-1, 1.5, 26)


def panel(title="FADE", value=0.2, arrivals=(), row="", steps=STEPS):
    """One panel, of one value or of an array."""
    filled = np.broadcast_to(np.asarray(value, float), (len(steps), len(EDGES) - 1))
    return KymographPanel(title, "outline first", steps, EDGES, filled, tuple(arrivals), row)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws panels and gives the figure, instead of writing it."""
    figures = []
    monkeypatch.setattr(kymographs, "save_figure", lambda figure, *a, **k: figures.append(figure))

    def draw(*panels, **options):
        write_kymographs(panels, tmp_path / "a.png", quantity="rank", **options)
        return figures[-1]

    return draw


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels() if text.get_text()]


class TestStepAxis:
    @pytest.mark.parametrize(
        ("steps", "log"),
        [
            (range(0, 3001, 100), False),
            ([*range(0, 300, 10), 297], False),  # a last step off the grid
            (range(500, 900, 50), False),  # does not begin at 0
            ([0, 100, 200, 220, 240, 300, 400], False),
            (STEPS, True),
            ([0, *range(1, 20), 100, 1000], True),
            ([0], False),
            ([0, 1000], False),
        ],
    )
    def test_auto_is_linear_where_the_gaps_are_roughly_even(self, steps, log):
        assert choose_step_axis([list(steps)]).log == log
        assert choose_step_axis([list(steps), STEPS]).log  # one uneven schedule suffices
        assert not choose_step_axis([list(steps)], "linear").log
        assert choose_step_axis([list(steps)], "log").log

    def test_an_unknown_axis_lists_the_nearest(self):
        with pytest.raises(FadevizError, match="no step axis 'liner'. Nearest: 'linear'"):
            choose_step_axis([STEPS], "liner")

    @pytest.mark.parametrize("log", [True, False])
    def test_cells_lie_around_their_snapshots_and_the_outer_ones_are_short(self, log):
        axis = StepAxis(log)
        centres, borders = axis.place(STEPS), axis.borders(STEPS)
        assert len(borders) == len(STEPS) + 1
        assert (borders[:-1] < centres).all()
        assert (centres < borders[1:]).all()
        np.testing.assert_allclose(borders[1:-1], (centres[1:] + centres[:-1]) / 2)
        assert max(centres[0] - borders[0], borders[-1] - centres[-1]) <= (centres[-1] - centres[0]) / 30 + 1e-12

    @pytest.mark.parametrize("log", [True, False])
    @pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 110), (0, 1500), (0, 90_000), (2000, 3000), (7, 7)])
    @pytest.mark.parametrize("length", [60, 300, 900])
    def test_labels_do_not_touch(self, log, first, last, length):
        axis = StepAxis(log)
        ticks = axis.ticks(first, last, length, lambda text: 6.0 * len(text))
        steps = [step for step, _ in ticks]
        assert steps == sorted(set(steps))
        assert steps[0] == first
        assert all(first <= step <= last for step in steps)
        places = axis.place(steps)
        scale = length / max(float(places[-1] - places[0]), 1e-9) if steps[-1] == last else 0
        ends = []
        for (step, alignment), place in zip(ticks, places - places[0], strict=True):
            start = place * scale - {"left": 0, "center": 0.5, "right": 1}[alignment] * 6 * len(f"{step:,}")
            ends.append((start, start + 6 * len(f"{step:,}")))
        assert all(a[1] < b[0] for a, b in itertools.pairwise(ends) if scale)


class TestSpan:
    def test_it_is_round_and_covers_nearly_everything(self):
        rng = np.random.default_rng(0)
        value = rng.normal(0, 0.1, (len(STEPS), len(EDGES) - 1))
        span = kymograph_span([panel(value=value)])
        assert span in (0.25, 0.3)
        assert np.quantile(np.abs(value), 0.98) <= span
        value[0, 0] = 100.0  # one cell decides nothing
        assert kymograph_span([panel(value=value)]) == span

    def test_one_panel_among_many_empty_ones_counts(self):
        assert kymograph_span([panel(value=0.37), *[panel(value=0.0)] * 30]) == 0.4

    def test_noise_is_not_drawn_in_full_colours(self):
        assert kymograph_span([panel(value=0.004)]) == MIN_KYMOGRAPH_SPAN
        assert kymograph_span([panel(value=math.nan)]) == MIN_KYMOGRAPH_SPAN


class TestGrid:
    def test_rows_of_one_title_share_a_column(self):
        mean = [panel(title, row="mean") for title in "ab"]
        readout = panel("b", row="readout")
        rows, grid = panel_grid([*mean, readout])
        assert rows == ["mean", "readout"]
        assert grid[0] == mean
        assert grid[1][0] is None
        assert grid[1][1] is readout

    def test_titles_that_are_alike_have_columns_of_their_own(self):
        _, grid = panel_grid([panel("a", 0.1), panel("a", 0.2)])
        assert [len(row) for row in grid] == [2]


class TestColours:
    def test_white_is_zero_and_both_sides_darken(self):
        colours = signed_palette().astype(int)
        assert colours.shape == (256, 3)
        assert (colours[127:129] >= 250).all()
        light = colours @ (0.299, 0.587, 0.114)
        assert (np.diff(light[:128]) > -1e-9).all()
        assert (np.diff(light[128:]) < 1e-9).all()
        assert light[0] - light[-1] > 60  # in grey print the positive end is much the darker one
        assert colours[0, 2] > colours[0, 0]  # blue
        assert colours[-1, 0] > colours[-1, 2]  # brown

    def test_all_panels_share_one_range(self, drawn):
        figure = drawn(panel(value=0.4), panel("CARAFE", 0.01))
        meshes = [axes.collections[0] for axes in figure.axes[:2]]
        assert [mesh.get_clim() for mesh in meshes] == [(-0.4, 0.4)] * 2
        assert labels(figure.axes[-1].yaxis) == ["−0.4", "0", "+0.4"]

    def test_pixels(self, tmp_path):
        colours = {}
        for name, value in (("low", -0.3), ("high", 0.3), ("none", 0.0), ("missing", math.nan)):
            write_kymographs([panel(value=value)], tmp_path / f"{name}.png", quantity="rank")
            pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
            colours[name] = pixels[int(0.3 * pixels.shape[0]), pixels.shape[1] // 3 : pixels.shape[1] // 2].mean(0)
        assert (colours["none"] >= 250).all()
        assert colours["low"][2] > colours["low"][0] + 50
        assert colours["high"][0] > colours["high"][2] + 50
        assert np.ptp(colours["missing"]) < 1
        assert 200 < colours["missing"][0] < 240


def markers(axes, shape):
    """Lines of an axes with a marker: (x, y, face, edge)."""
    return [
        (line.get_xdata()[0], line.get_ydata()[0], to_rgba(line.get_markerfacecolor()))
        for line in axes.lines
        if line.get_marker() == shape
    ]


class TestArrivals:
    def test_they_are_drawn_where_they_are(self, drawn):
        marks = (ArrivalMark("outline", 10, 3, 30, 0.0), ArrivalMark("interior", 30, 10, math.inf, -0.6))
        axes = drawn(panel(arrivals=marks)).axes[0]
        (dot,), (diamond,) = markers(axes, "o"), markers(axes, "D")
        assert dot == (math.log(11), 0.0, to_rgba("black"))
        assert diamond == (math.log(31), -0.6, to_rgba("black"))
        bars = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"]
        end = axes.get_xlim()[1]
        assert any(np.allclose(bar, np.log([4, 31])) for bar in bars)
        assert any(np.allclose(bar, [math.log(11), end]) for bar in bars)
        assert [mark[:2] for mark in markers(axes, ">")] == [(end, -0.6)]  # its interval goes on

    def test_what_is_there_before_training_is_open_and_at_the_first_snapshot(self, drawn):
        steps = (20, 40, 60, 80)
        mark = ArrivalMark("outline", 55, 20, 60, 0.0, from_start=True)
        (dot,) = markers(drawn(panel(arrivals=[mark], steps=steps)).axes[0], "o")
        assert dot == (20, 0.0, to_rgba("white"))

    def test_an_arrival_beyond_the_last_snapshot_has_no_dot(self, drawn):
        axes = drawn(panel(arrivals=[ArrivalMark("interior", math.inf, 50, math.inf, -0.6)])).axes[0]
        assert markers(axes, "D") == []
        assert len(markers(axes, ">")) == 1

    def test_the_legend_names_what_occurs(self, drawn):
        def words(*marks):
            return " ".join(text.get_text() for text in drawn(panel(arrivals=marks)).texts)

        assert "arrives" not in words()
        both = words(ArrivalMark("outline", 0, 0, 0, 0.0, True), ArrivalMark("interior", 10, 3, 30, -0.6))
        assert "outline there before training" in both
        assert "interior arrives" in both
        assert "outline arrives" not in both
        late = drawn(panel(arrivals=[ArrivalMark("outline", 40, 40, 40, 0.0, True)], steps=(40, 50, 60)))
        assert "outline there at the first snapshot" in [text.get_text() for text in late.texts]


class TestLayout:
    @pytest.mark.parametrize("count", [1, 2, 4, 7, 20])
    @pytest.mark.parametrize("rows", [("",), ("channel mean", "linear readout")])
    def test_nothing_lies_on_anything_else(self, drawn, count, rows):
        panels = [panel(f"operator {n}", row=row) for row in rows for n in range(count)]
        figure = drawn(*panels, caption=["What it shows."] * 20)
        assert len(figure.axes) == len(panels) + 1
        boxes = [axes.get_position() for axes in figure.axes]
        assert all(0 < box.x0 < box.x1 < 1 and 0 < box.y0 < box.y1 < 1 for box in boxes)
        assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
        renderer = FigureCanvasAgg(figure).get_renderer()
        texts = [text.get_window_extent(renderer) for text in figure.texts]
        width, height = figure.canvas.get_width_height()
        assert all(box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1 for box in texts)
        shrunk = [box.padded(-2) for box in texts]
        assert not any(a.overlaps(b) for n, a in enumerate(shrunk) for b in shrunk[:n])

    @pytest.mark.parametrize("count", [1, 3, 5])
    @pytest.mark.parametrize("width", ["column", "page"])
    def test_a_figure_is_as_wide_as_it_is_told(self, drawn, count, width):
        panels = [panel(f"operator {n}", row=row) for n in range(count) for row in ("channel mean", "linear readout")]
        figure = drawn(*panels, style=FigureStyle(width=width))
        assert figure.get_figwidth() == pytest.approx({"column": 3.3, "page": 6.9}[width])
        boxes = [axes.get_position() for axes in figure.axes[:-1]]
        lines = [sum(abs(box.y0 - other.y0) < 1e-6 for other in boxes) for box in boxes]
        assert set(lines) == {min(count, 2) if width == "column" and count < 3 else 2 if width == "column" else count}

    def test_in_a_column_operators_stand_one_below_the_other(self, drawn):
        """Rows are named after them, columns after the halves; nothing is lost."""
        panels = [panel(f"operator {n}", value=n, row=row) for row in ("mean", "readout") for n in range(3)]
        figure = drawn(*panels, style=FigureStyle(width="column"))
        texts = [text.get_text() for text in figure.texts]
        assert [text for text in texts if text.startswith("operator")] == [f"operator {n}" for n in range(3)]
        assert [text for text in texts if text in ("mean", "readout")] == ["mean", "readout"]
        shown = [float(np.mean(axes.collections[0].get_array())) for axes in figure.axes[:-1]]
        assert shown == [0, 0, 1, 1, 2, 2]

    def test_no_word_of_a_title_is_broken(self, drawn):
        panels = [panel("Interpolation by neighbours"), panel("Encoder-decoder-kernels-and-others-of-their-kind")]
        figure = drawn(*panels, style=FigureStyle(width="column"))
        texts = [text.get_text() for text in figure.texts]
        assert any(text.startswith("Encoder-") and text.endswith("…") for text in texts)
        whole = " ".join(text for text in texts if text.startswith(("Inter", "by", "neigh")))
        assert whole.endswith("…") or whole == "Interpolation by neighbours"

    @pytest.mark.parametrize("count", [2, 5, 25])
    def test_titles_are_whole_in_as_many_columns_as_that_takes(self, drawn, count):
        names = [f"Encoder-only kernels {n}, shuffled labels" for n in range(count)]
        texts = [text.get_text() for text in drawn(*map(panel, names), style=FigureStyle(width="page")).texts]
        assert not any("…" in text for text in texts)
        assert all(" ".join(texts).count(f"kernels {n}, ") == 1 for n in range(count))

    def test_steps_are_labelled_below_the_lowest_panel_of_a_column(self, drawn):
        figure = drawn(*[panel(f"operator {n}") for n in range(7)])
        labelled = [bool(labels(axes.xaxis)) for axes in figure.axes[:7]]
        assert labelled == [False, False, False, True, True, True, True]
        assert [bool(labels(axes.yaxis)) for axes in figure.axes[:7]] == [True, *[False] * 3, True, False, False]

    def test_a_long_verdict_takes_four_lines_at_most(self, drawn):
        long = KymographPanel("FADE", "outline " * 60, STEPS, EDGES, np.zeros((6, 25)))
        texts = [text.get_text() for text in drawn(long).texts if text.get_text().startswith("outline")]
        assert len(texts) == 4
        assert texts[3].endswith("…")

    def test_the_inside_is_below_and_the_beginning_on_the_left(self, tmp_path):
        value = np.zeros((len(STEPS), len(EDGES) - 1))
        value[:2, :8] = 0.4  # early, inside
        write_kymographs([panel(value=value)], tmp_path / "k.png", quantity="rank")
        pixels = np.asarray(Image.open(tmp_path / "k.png").convert("RGB")).astype(int)
        rows, columns = np.nonzero(pixels[:, : int(0.75 * pixels.shape[1])] @ (1, 0, -1) > 100)  # without the bar
        assert rows.size > 1000
        assert rows.min() > 0.5 * pixels.shape[0]
        assert columns.max() < 0.5 * pixels.shape[1]

    @pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
    def test_the_same_panels_give_the_same_bytes(self, tmp_path, ending):
        made = []
        for name in "ab":
            marks = [ArrivalMark("outline", 3, 0, 500, 0.0)]
            write_kymographs([panel(arrivals=marks)], tmp_path / f"{name}.{ending}", quantity="rank")
            made.append((tmp_path / f"{name}.{ending}").read_bytes())
        assert made[0] == made[1]
        assert len(made[0]) > 5000

    def test_one_snapshot_and_nothing_but_gaps(self, tmp_path):
        write_kymographs([panel(value=math.nan, steps=(40,))], tmp_path / "a.png", quantity="rank")
        assert (tmp_path / "a.png").exists()

    def test_bad_arguments(self, tmp_path):
        with pytest.raises(FadevizError, match="nothing to plot"):
            write_kymographs([], tmp_path / "a.png", quantity="rank")
        with pytest.raises(FadevizError, match=r"a.gif: a plot cannot be written as .gif"):
            write_kymographs([panel()], tmp_path / "a.gif", quantity="rank")
        with pytest.raises(FadevizError, match="no step axis"):
            write_kymographs([panel()], tmp_path / "a.png", quantity="rank", step_axis="sqrt")
