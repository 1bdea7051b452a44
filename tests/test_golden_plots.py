"""Plots as they were looked at: a change of their layout, colours or words shows here, whether it was meant or not."""

import math

import numpy as np
import pytest
from PIL import Image

from fadeviz.render.kymographs import write_kymographs
from fadeviz.render.panels import ArrivalMark, Curve, CurvePanel, KymographPanel
from fadeviz.render.plots import write_curves
from fadeviz.render.style import FigureStyle
from golden_pictures import check_picture

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
EVEN = tuple(range(0, 260, 20))
STYLE = {"dpi": 72}


def wave(steps, phase, height=1.0, width=0.15):
    middle = height * np.sin(np.linspace(0, 2, len(steps)) + phase)
    return middle, middle - width, middle + width


def by_operator(count):
    """Panels that are compared: outline and interior, the readout in the same colours, arrivals, chance."""
    panels = []
    for n in range(count):
        curves = [
            Curve("outline", STEPS, *wave(STEPS, 0.2 * n), mark=8),
            Curve("interior", STEPS, *wave(STEPS, 0.4 + 0.1 * n, 0.6), mark=40),
            Curve("outline, readout", STEPS, *wave(STEPS, 0.8, 0.5), like="outline"),
        ]
        panels.append(CurvePanel(f"Operator {n}", "3 seeds; outline first", "response", curves, (-0.2, 1.0), 0.2, "r"))
    return panels


def by_measure(count):
    """Panels of different scales, a curve for each operator; one has a gap, one a lone point."""
    panels = []
    for n in range(count):
        curves = []
        for i, (name, title) in enumerate(
            (("fade", "FADE"), ("fade:gate=off", "FADE (gate=off)"), ("carafe", "CARAFE"))
        ):
            middle, low, high = wave(EVEN, 0.3 * i, 10.0**n)
            if i == 1:
                middle[4:6] = low[4:6] = high[4:6] = math.nan
            curves.append(Curve(title, EVEN, middle, low, high, operator=name))
        meaning = "how well the steepness of the map detects the band along the contour"
        panels.append(CurvePanel(f"measure {n}", meaning if n else "short", "share" if n % 2 else "AUC", curves))
    return panels


def distance_times(count, rows=("",)):
    edges = np.linspace(-1, 1.5, 11)
    depth, time = np.meshgrid((edges[1:] + edges[:-1]) / 2, np.log1p(STEPS) / np.log1p(STEPS[-1]))
    marks = (ArrivalMark("outline", 3, 1, 9, 0.0), ArrivalMark("interior", 60, 20, 900, -0.6))
    panels = []
    for n in range(count):
        value = 0.3 * ((depth < 0) & (depth > -1.5 * (time - 0.1 * n))) - 0.1 * (depth > 1)
        value[0, :2] = math.nan
        panels += [KymographPanel(f"Operator {n}", "outline first, 2.1× earlier", STEPS, edges, value, marks, row)
                   for row in rows]  # fmt: skip
    return panels


PICTURES = {
    "one_panel": lambda file: write_curves(by_measure(1), file, caption=["One panel."], style=FigureStyle(**STYLE)),
    "measures": lambda file: write_curves(by_measure(4), file, caption=["A caption."] * 40, style=FigureStyle(**STYLE)),
    "operators": lambda file: write_curves(
        by_operator(5), file, title="A title", style=FigureStyle(**STYLE, font="DejaVu Serif", font_size=6.5)
    ),
    "column": lambda file: write_curves(by_operator(3), file, style=FigureStyle(**STYLE, width="column")),
    "kymographs": lambda file: write_kymographs(
        distance_times(3, ("channel mean", "linear readout")), file, quantity="mean rank", caption=["A caption."] * 40,
        style=FigureStyle(**STYLE),
    ),
    "kymographs_column": lambda file: write_kymographs(
        distance_times(3, ("channel mean", "linear readout")), file, quantity="mean rank",
        style=FigureStyle(**STYLE, width="column"),
    ),
    "kymographs_gap": lambda file: write_kymographs(
        distance_times(5), file, quantity="mean rank", caption=["A caption."],
        style=FigureStyle(**STYLE, width="column"),
    ),
    "kymograph": lambda file: write_kymographs(
        distance_times(1), file, quantity="mean rank", style=FigureStyle(**STYLE)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_plots_are_as_they_were(tmp_path, golden, name):
    PICTURES[name](tmp_path / "drawn.png")
    golden(tmp_path / "drawn.png", f"plots/{name}")


class TestComparing:
    """The comparison itself: what is rounding, what is a change, and what is kept of it."""

    def picture(self, path, **changes):
        pixels = np.full((100, 120, 3), 250, np.uint8)
        for value, place in changes.values():
            pixels[place] = value
        Image.fromarray(pixels).save(path)
        return path

    def check(self, tmp_path, drawn, update=False):
        folders = {"golden": tmp_path / "golden", "failures": tmp_path / "failures"}
        check_picture(drawn, "plots/a", update=update, **folders)

    def test_rounding_is_no_change(self, tmp_path):
        with pytest.raises(AssertionError, match="no golden picture.*Draw it: pytest --update-golden"):
            self.check(tmp_path, self.picture(tmp_path / "a.png"))
        self.check(tmp_path, self.picture(tmp_path / "a.png"), update=True)
        self.check(tmp_path, self.picture(tmp_path / "a.png", all=(248, np.s_[:])))
        self.check(tmp_path, self.picture(tmp_path / "a.png", letters=(0, np.s_[:1, :20])))
        assert not (tmp_path / "failures").exists()

    @pytest.mark.parametrize("change", [(246, np.s_[:]), (0, np.s_[50, 20:60])])
    def test_a_change_is_kept_to_look_at_and_can_be_renewed(self, tmp_path, change):
        self.check(tmp_path, self.picture(tmp_path / "a.png"), update=True)
        drawn = self.picture(tmp_path / "a.png", it=change)
        with pytest.raises(AssertionError, match=r"of the pixels differ. Look at .*plots_a\.drawn\.png and"):
            self.check(tmp_path, drawn)
        names = sorted(file.name for file in (tmp_path / "failures").iterdir())
        assert names == ["plots_a.difference.png", "plots_a.drawn.png"]
        with Image.open(tmp_path / "failures" / names[0]) as difference:
            assert np.asarray(difference).max() > 0
        self.check(tmp_path, drawn, update=True)
        self.check(tmp_path, drawn)

    def test_another_size_is_a_change(self, tmp_path):
        self.check(tmp_path, self.picture(tmp_path / "a.png"), update=True)
        Image.new("RGB", (121, 100), "white").save(tmp_path / "b.png")
        with pytest.raises(AssertionError, match="it is 121x100, not 120x100"):
            self.check(tmp_path, tmp_path / "b.png")
