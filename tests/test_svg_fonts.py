"""Text of vector figures: it stays text, and brings the glyphs that it is drawn with."""

import base64
import io
import re

import pytest
from fontTools.ttLib import TTFont

import fadeviz
from fadeviz.render.page import Page, figure_style, new_figure, save_figure
from fadeviz.render.style import FigureStyle
from render_runs import make_run


def embedded(svg):
    """The characters of each embedded font, by family and weight."""
    rules = re.findall(r"font-family:'([^']*)';font-weight:(\d+);src:url\(data:font/ttf;base64,([^)]*)\)", svg)
    return {
        (family, int(weight)): set(map(chr, TTFont(io.BytesIO(base64.b64decode(data))).getBestCmap()))
        for family, weight, data in rules
    }


def write(path, *texts, font=None, **style):
    from matplotlib import rc_context

    with FigureStyle(font=font).applied(), rc_context(figure_style()):
        page = Page(new_figure(300, 100, 100), 300, 100, exact=False)
        for index, text in enumerate(texts):
            page.text(5, 5 + 20 * index, text, 8, **style)
        save_figure(page.figure, path, 100)
    return path.read_text()


def test_a_grid_says_its_words_as_text(tmp_path):
    run = make_run(tmp_path / "r")
    fadeviz.grid(run.path, tmp_path / "g.svg", steps=[0, 50], title="<Ours> & more")
    svg = (tmp_path / "g.svg").read_text()
    assert re.search(r"<text [^>]*>FADE</text>", svg)
    assert "&lt;Ours&gt; &amp; more</text>" in svg
    fonts = embedded(svg)
    assert set(fonts) == {("DejaVu Sans", 400), ("DejaVu Sans", 700)}
    assert all(set("<Ours>& moreFADEstep0maximum") <= characters for characters in fonts.values())
    assert "Z" not in fonts["DejaVu Sans", 400]  # no more than is needed
    assert len(svg) < 150_000


def test_only_the_weights_that_are_used(tmp_path):
    assert set(embedded(write(tmp_path / "a.svg", "word"))) == {("DejaVu Sans", 400)}
    assert set(embedded(write(tmp_path / "b.svg", "word", weight="bold"))) == {("DejaVu Sans", w) for w in (400, 700)}
    assert embedded(write(tmp_path / "c.svg")) == {}


def test_the_chosen_font_and_another_for_what_it_lacks(tmp_path):
    fonts = embedded(write(tmp_path / "a.svg", "word \N{WHITE CHESS QUEEN}", font="STIXGeneral"))
    assert set("word ") <= fonts["STIXGeneral", 400]
    (other,) = (characters for (family, _), characters in fonts.items() if family != "STIXGeneral")
    assert "\N{WHITE CHESS QUEEN}" in other


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_the_same_text_gives_the_same_bytes(tmp_path, ending):
    run = make_run(tmp_path / "r")
    for name in ("a", "b"):
        fadeviz.grid(run.path, tmp_path / f"{name}.{ending}", steps=[0])
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_pdf_embeds_its_fonts(tmp_path):
    run = make_run(tmp_path / "r")
    fadeviz.grid(run.path, tmp_path / "g.pdf", steps=[0])
    pdf = (tmp_path / "g.pdf").read_bytes()
    assert pdf.count(b"/FontFile2") == 2  # regular and bold
    assert b"/Type3" not in pdf
