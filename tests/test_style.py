"""The look of figures: lengths, fonts, and colours that an operator keeps in every figure."""

import itertools

import pytest
from PIL import Image

from fadeviz import FadevizError
from fadeviz.render import fonts
from fadeviz.render.page import new_figure, save_figure
from fadeviz.render.style import COLORS, DASHES, OPERATOR_LOOKS, FigureStyle, operator_color, operator_looks
from fadeviz.upsamplers import all_upsamplers


class TestFigureStyle:
    @pytest.mark.parametrize(
        ("width", "inches"),
        [("85mm", 85 / 25.4), ("8.5 cm", 8.5 / 2.54), ("3.3in", 3.3), ("240pt", 240 / 72), ("column", 3.3),
         ("page", 6.9), (5, 5.0), ("4.5", 4.5), (None, None)],
    )  # fmt: skip
    def test_widths(self, width, inches):
        got = FigureStyle(width=width).inches
        assert got == inches if inches is None else got == pytest.approx(inches)

    @pytest.mark.parametrize("width", ["wide", "", "0mm", "-3in", "85 px", "nan", "2000mm", 0.2, "3,3in"])
    def test_what_is_no_width(self, width):
        with pytest.raises(FadevizError, match=r"width=.*: must be column, page or a length"):
            FigureStyle(width=width)

    @pytest.mark.parametrize(
        ("option", "message"),
        [({"font_size": 1.0}, "font_size=1.0: must be 4 to 40 points"), ({"dpi": 5000}, "dpi=5000: must be 50 to 1200"),
         ({"font": "DejaVu Sanz"}, "no font 'DejaVu Sanz'. Nearest: 'DejaVu Sans'")],
    )  # fmt: skip
    def test_other_values(self, option, message):
        with pytest.raises(FadevizError, match=message):
            FigureStyle(**option)

    def test_titles_grow_with_the_words(self):
        assert (FigureStyle(font_size=6).points(10, 9), FigureStyle().points(10, 9)) == (pytest.approx(20 / 3), 10)

    def test_a_font_is_measured_and_drawn_within(self):
        before, word = fonts.font(40).getlength("minimum"), "\N{RIGHTWARDS ARROW}"
        with FigureStyle(font="STIXGeneral").applied():
            assert fonts.family() == "STIXGeneral"
            assert fonts.font(40).getlength("minimum") < 0.9 * before  # a narrow face
            assert fonts.spell(word) == word
        assert (fonts.family(), fonts.font(40).getlength("minimum")) == ("DejaVu Sans", before)

    def test_a_background_that_is_left_out(self, tmp_path):
        for transparent in (False, True):
            save_figure(new_figure(20, 10, 100), tmp_path / "a.png", 100, transparent=transparent)
            with Image.open(tmp_path / "a.png") as image:
                assert image.convert("RGBA").getpixel((3, 3))[3] == (0 if transparent else 255)


class TestOperatorLooks:
    def test_every_operator_has_its_own(self):
        assert set(all_upsamplers()) <= set(OPERATOR_LOOKS)
        assert len(set(OPERATOR_LOOKS.values())) == len(OPERATOR_LOOKS)

    def test_it_does_not_depend_on_the_others(self):
        for first, second in itertools.permutations(OPERATOR_LOOKS, 2):
            assert operator_looks([second, first])[first].color == operator_color(first)

    def test_variants_have_the_colour_and_another_dash(self):
        looks = operator_looks(["fade", "fade:gate=off", "fade (lr=0.1)", "carafe"])
        assert len(set(looks.values())) == 4
        assert {look.color for name, look in looks.items() if name.startswith("fade")} == {operator_color("fade")}

    def test_unknown_names_are_distinct_whatever_their_order(self):
        names = [f"model {number}" for number in range(12)]
        looks = operator_looks([*names, "fade", "fade"])
        assert len(set(looks.values())) == 13
        assert looks == operator_looks(["fade", *reversed(names)])

    def test_more_operators_than_looks(self):
        names = [f"model {number}" for number in range(len(COLORS) * len(DASHES) + 3)]
        assert len(set(operator_looks(names).values())) == len(COLORS) * len(DASHES)
