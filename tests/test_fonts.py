"""Letters of images: the one font's own pixels, other fonts for what it lacks, codes for the rest, no markup."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.text import Text
from PIL import Image, ImageDraw, ImageFont

from fadeviz.render import fonts, kymographs, plots
from fadeviz.render.animation import write_animation
from fadeviz.render.comparison import write_comparison
from fadeviz.render.comparison_layout import Row
from fadeviz.render.fonts import Face, font, letters, spell
from fadeviz.render.grid import draw_grid, write_grid
from fadeviz.render.labels import shorten, wrap
from fadeviz.render.panels import Curve, CurvePanel, KymographPanel
from fadeviz.render.selection import MapSelection
from fadeviz.storage.info import RunInfo
from fadeviz.storage.stored_run import StoredRun
from render_runs import make_run

FOLDER = Path(matplotlib.get_data_path(), "fonts", "ttf")
STIX = Face("STIXGeneral", str(FOLDER / "STIXGeneral.ttf"))
LETTER = "\u2a5e"
"""STIX has it, the one font has not."""
HOSTILE = ("_fade", "lone$", "lr=$10^-3$", "cost_5$_vs_6$", "$$", r"\frac{$x$}", "a\nb\x1b[2J", "实验 🐎", "n" * 500)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine whose fonts are known, whatever this one has: none but the one font. Gives a way to add some."""

    def install(*faces):
        monkeypatch.setattr(fonts, "_others", lambda: iter(faces))
        monkeypatch.setattr(fonts, "_faces", {})

    install()
    return install


def pixels(text, size=20, bold=False, anchor="la"):
    canvas = Image.new("L", (600, 60))
    ImageDraw.Draw(canvas).text((300, 30), text, 255, font(size, bold), anchor=anchor)
    return np.asarray(canvas)


@pytest.mark.parametrize("bold", [False, True])
def test_a_text_of_the_one_font_has_its_very_pixels(bold):
    file = FOLDER / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    plain = ImageFont.truetype(str(file), 20, layout_engine=ImageFont.Layout.BASIC)
    for text in ("step 320", "é ü ß лошадь ←∞−"):
        assert font(20, bold).getlength(text) == plain.getlength(text)
        assert bytes(font(20, bold).getmask(text)) == bytes(plain.getmask(text))
        assert font(20, bold).getbbox(text, anchor="rs") == plain.getbbox(text, anchor="rs")


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("é马!", r"é\u9a6c!"),
        ("🐎", r"\U0001f40e"),
        ("\U0010ffff", r"\U0010ffff"),
        ("a\tb\x1b", r"a\tb\x1b"),
        ("\ud800", r"\ud800"),
        ("$x_1$", "$x_1$"),
        ("", ""),
    ],
)
def test_a_letter_that_no_font_has_is_its_code(text, drawn):
    assert spell(text) == drawn
    assert font(20).getlength(text) == font(20).getlength(drawn)
    assert (pixels(text) == pixels(drawn)).all()
    assert letters(text) == {}
    assert spell("a\nb") == r"a\nb"


def test_no_two_letters_look_alike():
    masks = {letter: bytes(font(20).getmask(letter)) for letter in "é马実험🐎\U0010ffff"}
    assert len(set(masks.values())) == len(masks)


class TestOtherFonts:
    def test_a_letter_is_drawn_by_a_font_that_has_it(self, machine):
        machine(Face("damaged", __file__), STIX)
        assert spell(f"x {LETTER} 马") == rf"x {LETTER} \u9a6c"
        assert letters(f"x {LETTER}") == {"family": ["DejaVu Sans", "STIXGeneral"], "weight": "normal"}
        stix = ImageFont.truetype(STIX.path, 20, layout_engine=ImageFont.Layout.BASIC)
        alone = Image.new("L", (600, 60))
        ImageDraw.Draw(alone).text((300, 30), LETTER, 255, stix, anchor="ls")
        assert (pixels(LETTER, anchor="ls") == np.asarray(alone)).all()

    @pytest.mark.parametrize("size", [11, 20])
    def test_the_pieces_stand_in_one_line(self, machine, size):
        machine(STIX)
        whole, before = pixels(f"Ab{LETTER}g", size, anchor="ls"), pixels("Ab", size, anchor="ls")
        end = 300 + round(font(size).getlength("Ab"))
        assert (whole[:, :end] == before[:, :end]).all()
        assert whole[:, end:].any()
        assert font(size).getlength(f"Ab{LETTER}g") == sum(font(size).getlength(part) for part in ("Ab", LETTER, "g"))

    def test_anchors(self, machine):
        machine(STIX)
        text = f"Ab{LETTER}g"
        left, right, middle, top = (np.argwhere(pixels(text, anchor=anchor)) for anchor in ("ls", "rs", "ms", "la"))
        length = round(font(20).getlength(text))
        assert (right[:, 1] == left[:, 1] - length).all()
        assert (middle[:, 1] == left[:, 1] - round(length / 2)).all()
        assert (top[:, 0] == left[:, 0] + font(20).getmetrics()[0]).all()
        box = font(20).getbbox(text, anchor="ls")
        assert (left.min(0)[::-1] - [300, 30]).tolist() == list(box[:2])
        assert (left.max(0)[::-1] - [299, 29]).tolist() == list(box[2:])

    def test_fonts_of_boxes_are_not_taken(self, monkeypatch):
        monkeypatch.undo()
        names = [face.family for face in fonts._others()]
        assert "STIXGeneral" in names
        assert not [name for name in names if "last" in name.lower() or name == "DejaVu Sans"]

    def test_a_letter_without_ink_is_not_taken(self, machine, monkeypatch):
        machine(STIX)
        empty = Image.new("L", (4, 4)).im
        monkeypatch.setattr(ImageFont.FreeTypeFont, "getmask", lambda *a, **k: empty)
        assert spell(LETTER) == r"\u2a5e"


def test_words_that_are_wider_than_a_line_are_broken():
    text = "see " + "n" * 60 + " 实验" * 3
    lines = wrap(text, 12, 100)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(font(12).getlength(line) <= 100 for line in lines)
    assert lines[0] == "see"
    assert wrap("wide", 12, 0) == list("wide")


def test_a_name_of_any_length_is_shortened_at_once():
    text = shorten("马" * 200_000, 12, 100)
    assert text.endswith("…")
    assert 100 - font(12).getlength("马") < font(12).getlength(text) <= 100
    assert shorten("fits", 12, 100) == "fits"
    assert shorten("n" * 9, 12, 0) == "…"


class TestNamesInFigures:
    """Drawn as they are by everything that draws, whatever they hold; warnings of missing letters are errors here."""

    @pytest.fixture
    def drawn(self, monkeypatch):
        """All texts of the figures that are saved."""
        seen = []

        def record(real):
            def save(figure, *more):
                real(figure, *more)
                seen.extend(figure.findobj(Text))

            return save

        for module in (plots, kymographs):
            monkeypatch.setattr(module, "_save", record(module._save))
        return seen

    @pytest.mark.parametrize("ending", ["png", "pdf"])
    def test_curves(self, tmp_path, drawn, ending):
        n = np.linspace(0, 1, 3)
        curves = [Curve(name, range(3), n, n, n) for name in HOSTILE]
        panels = [CurvePanel(name, f"of {name}", "share", curves) for name in HOSTILE]
        plots.write_curves(panels, tmp_path / f"c.{ending}", caption=HOSTILE)
        legend = [text.get_text().replace("\n", " ") for text in drawn]  # a title may have two lines
        for name in HOSTILE[:-1]:
            assert legend.count(spell(name)) >= 2, name  # as a title, and in the legend
        assert not [text for text in drawn if text.get_parse_math() and is_math_text(text.get_text())]

    def test_kymographs_stay_within_their_panel(self, tmp_path, drawn):
        edges, value = np.linspace(-3, 3, 7), np.full((3, 6), 0.4)
        panels = [KymographPanel(name, name, range(3), edges, value) for name in HOSTILE]
        kymographs.write_kymographs(panels, tmp_path / "k.png", quantity="rank", caption=HOSTILE[-1:])
        with Image.open(tmp_path / "k.png") as image:
            width = image.width
        boxes = [text.get_window_extent() for text in drawn if text.get_text() and text.get_visible()]
        assert max(box.x1 for box in boxes) <= width
        assert sum(text.get_text().endswith("…") for text in drawn) == 2  # the long one's title and subtitle

    def test_of_a_run(self, tmp_path, monkeypatch):
        make_run(tmp_path / "r")
        runs = []
        for name in HOSTILE:
            run = StoredRun(tmp_path / "r")
            names = {"title": name, "upsampler": "x", "network_title": name, "observation": {"names": [name]}}
            run.info = RunInfo.from_dict(run.info.to_dict() | names)
            runs.append(run)
        for run in runs:
            texts = [text for text in draw_grid([run]).findobj(Text) if text.get_text()]
            assert not [text for text in texts if text.get_parse_math() and is_math_text(text.get_text())]
            heading = next(text.get_text() for text in texts if text.get_weight() == "bold")
            assert heading == spell(run.title) or heading.endswith("…")
        for run in (runs[6], runs[7], runs[8]):
            write_grid([run], tmp_path / "g.png", MapSelection(steps=[0]))
            write_animation([run], tmp_path / "a.gif", MapSelection(steps=[0, 10]))

    def test_settings_of_ones_own_change_nothing(self, tmp_path):
        """LaTeX reads markup whatever else is said, and another font has other letters."""
        run = make_run(tmp_path / "r")
        write_grid([run], tmp_path / "a.png", MapSelection(steps=[0]))
        with matplotlib.rc_context({"text.usetex": True, "font.family": "STIXGeneral"}):
            write_grid([run], tmp_path / "b.png", MapSelection(steps=[0]))
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_of_a_panel(self, tmp_path):
        image = np.zeros((8, 8, 3), np.uint8)
        rows = [Row(name, image, None, (image,) * len(HOSTILE)) for name in HOSTILE]
        legend = [(name, (9, 9, 9)) for name in HOSTILE]
        write_comparison(rows, HOSTILE, tmp_path / "p.png", caption=HOSTILE, legend=legend, cell=64)
        assert (tmp_path / "p.png").stat().st_size > 1000
