"""The page in a real browser: what is drawn is the library's, everything moves together, and nothing is loaded."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fadeviz
from fadeviz.analysis.result import analyze
from fadeviz.onset_panels import kymograph_panels
from fadeviz.render.colormap import NON_FINITE, colorize, colour_classes, signed_palette
from fadeviz.render.frames import select_frames
from fadeviz.render.normalize import limits_by_scope, normalize
from fadeviz.render.panels import kymograph_span
from fadeviz.render.selection import MapSelection
from fadeviz.render.step_axis import choose_step_axis
from fadeviz.report import write_report
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from onset_runs import make_onset_run
from pages import PIXELS, milliseconds_a_step, need_browser, open_browser, play_through, stop_time
from render_runs import LAYER, STEPS, make_run
from task_runs import make_matting_run

expect = need_browser().expect  # waits; the page's policy forbids wait_for_function
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">"
BROKEN_STEP = 5
"""At this snapshot some cells of CARAFE's image 0 are not finite."""


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """FADE with seeds 0 and 1, CARAFE with seed 0 and a few cells that are not finite."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    maps = np.cumsum(rng.normal(size=(len(STEPS), 24, 32)), axis=0).astype(np.float32)
    maps[BROKEN_STEP, 3, 4:9], maps[BROKEN_STEP, 20, 30] = np.nan, np.inf
    make_run(folder / "fade0", run_id="fade0")
    make_run(folder / "fade1", run_id="fade1", seed=1)
    make_run(folder / "carafe", run_id="carafe", upsampler="carafe", maps=maps)
    return [fadeviz.open_run(folder / name) for name in ("fade0", "fade1", "carafe")]


@pytest.fixture(scope="module")
def file(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(runs, path, title=HOSTILE)
    return path


@pytest.fixture
def view(browser, file):
    """Opens the page with the given settings; every complaint of the browser and every request fails the test."""
    contexts, complaints = [], []

    def open_page(**settings):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: complaints.append(request.url) if outside(request.url) else None)
        page.goto(file.as_uri())
        page.wait_for_selector(".tile canvas")
        return page

    def outside(url):
        return url != file.as_uri() and not url.startswith(("data:", "blob:"))

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def go_to(page, at):
    page.locator("#slider").fill(str(at))


def shown(page, tile):
    """What a tile's canvas holds, ``(h, w, 3)``; tile 0 is the input."""
    height, width, *values = page.locator(".tile").nth(tile).locator(".frame canvas").evaluate(PIXELS)
    pixels = np.array(values, np.uint8).reshape(height, width, 4)
    assert (pixels[..., 3] == 255).all()
    return pixels[..., :3]


def drawn(runs, run, scope, at, kind="feature", image=0, palette="gray"):
    """What the library draws: every run counts for the shared range."""
    maps = [one.maps(LAYER, kind, image=image)[:] for one in runs]
    limits = limits_by_scope(maps, range(len(runs)), kind, scope)
    return colorize(normalize(maps[run][at], limits[run][at]), palette)


def test_every_frame_in_every_normalisation_is_the_librarys(view, runs):
    page = view()
    differences, signed = {}, {}
    for scope in ("frame", "run", "shared"):
        page.locator(f"input[name=scope][value={scope}]").check()
        for at in range(0, len(STEPS), 1 if scope == "frame" else 3):
            go_to(page, at)
            for tile, run in ((1, 0), (2, 2)):
                apart = shown(page, tile).astype(int) - drawn(runs, run, scope, at)
                differences[scope] = max(differences.get(scope, 0), np.abs(apart).max())
                signed.setdefault(scope, []).append(apart.mean())
    assert differences["frame"] == 0
    assert differences["run"] <= 1
    assert differences["shared"] <= 1
    assert abs(np.mean(signed["run"] + signed["shared"])) < 0.05  # as often above as below


def differences(runs, scope):
    """The second run's maps less the first's, in the library's colours: ``(steps, h, w, 3)``."""
    (sequence,) = select_frames(runs, MapSelection(layer=LAYER, normalize=scope), difference=True)
    return colorize(sequence.unit, "signed"), sequence.limits


def test_the_difference_of_two_maps_is_the_librarys(view, runs):
    """As far as 256 levels of each map tell."""
    page = view()
    page.locator("input[name=arrangement][value=difference]").check()
    expect(page.locator("#tiles .name")).to_have_text(
        ["Input", "FADE seed 0", "CARAFE seed 0", "CARAFE, seed 0 less FADE, seed 0"]
    )
    for scope in ("frame", "shared"):
        page.locator(f"input[name=scope][value={scope}]").check()
        colours, limits = differences([runs[0], runs[2]], scope)
        for at in (0, BROKEN_STEP, len(STEPS) - 1):
            go_to(page, at)
            canvas = page.locator(".tile").nth(3).locator(".frame canvas")
            expect(canvas).to_have_attribute("aria-label", re.compile(f"difference at step {STEPS[at]},"))
            assert np.abs(shown(page, 3).astype(int) - colours[at]).max() <= 12
            ends = [
                text.replace("\u2212", "-")
                for text in page.locator(".tile").nth(3).locator(".range span").all_inner_texts()
            ]
            np.testing.assert_allclose(np.array(ends, float), limits[at], rtol=0.02)
    expect(page.locator("#caption")).to_contain_text(
        "Difference: brown where CARAFE, seed 0 is higher than FADE, seed 0"
    )
    go_to(page, BROKEN_STEP)
    np.testing.assert_array_equal(shown(page, 3)[3, 4:9], np.tile(NON_FINITE, (5, 1)))


def test_two_maps_in_one_frame_with_a_divider(view, runs):
    page = view()
    go_to(page, 3)
    page.locator("#palette").select_option("viridis")
    page.locator("input[name=arrangement][value=overlay]").check()
    divider = page.locator(".wipe")
    divider.fill("30")
    assert divider.get_attribute("aria-valuetext") == "30 % FADE, seed 0"
    canvases = page.locator(".pair .frame canvas")
    for place, run in ((0, 0), (1, 2)):
        height, width, *values = canvases.nth(place).evaluate(PIXELS)
        pixels = np.array(values, np.uint8).reshape(height, width, 4)[..., :3]
        np.testing.assert_array_equal(pixels, drawn(runs, run, "frame", 3, palette="viridis"))
    # What one sees: the first left of the divider, the second right of it.
    seen = np.asarray(Image.open(io.BytesIO(page.locator(".pair .frame").screenshot())).convert("RGB")).astype(int)
    for column, run in ((4, 0), (8, 0), (11, 2), (30, 2)):
        x, y = int((column + 0.5) / 32 * seen.shape[1]), int(7.5 / 24 * seen.shape[0])
        wanted = drawn(runs, run, "frame", 3, palette="viridis")[7, column]
        assert np.abs(seen[y, x] - wanted).max() <= 2, column
    divider.focus()
    page.keyboard.press("ArrowRight")  # moves the divider, not the step
    assert (divider.input_value(), page.locator("#step").inner_text()) == ("31", f"step {STEPS[3]}")
    page.locator("input[name=arrangement][value=side]").check()
    expect(page.locator("#tiles .name")).to_have_text(["Input", "FADE seed 0", "CARAFE seed 0"])


def saved(page, button):
    with page.expect_download() as download:
        page.locator(button).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_what_is_shown_can_be_saved(view, runs):
    page = view(accept_downloads=True)
    go_to(page, 4)
    name, data = saved(page, "#picture")
    assert name == f"fadeviz_feature_{LAYER}_step{STEPS[4]}.png"
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    # 16 pixels around tiles of 320 pixels, below a line of names.
    np.testing.assert_array_equal(picture[36:276:10, 16 + 336 : 336 + 336 : 10], drawn(runs, 0, "frame", 4))
    name, data = saved(page, "#values")
    assert name == f"fadeviz_feature_{LAYER}_step{STEPS[4]}.csv"
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    for title, run in (("FADE, seed 0", 0), ("CARAFE, seed 0", 2)):
        values = runs[run].maps(LAYER, image=0)[:][4]
        cells = {(int(row["row"]), int(row["column"])): float(row["value"]) for row in rows if row["map"] == title}
        told = np.array([[cells[y, x] for x in range(32)] for y in range(24)])
        np.testing.assert_allclose(told, values, atol=np.ptp(values) / 500)
    name, data = saved(page, "#curves-csv")
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert name == "fadeviz_curves.csv"
    assert {row["curve"] for row in rows} >= {"FADE", "CARAFE", "outline", "interior"}
    assert len({int(row["step"]) for row in rows}) == len(STEPS)
    name, data = saved(page, "#numbers button")
    head, *rows = csv.reader(io.StringIO(data.decode()))
    assert name == "fadeviz_onsets.csv"
    assert [row[0] for row in rows if row[0] in ("FADE", "CARAFE")] == ["FADE", "CARAFE"]
    assert "verdict" in head
    assert all(len(row) == len(head) for row in rows)


def test_gradients_and_gates_span_the_librarys_ranges(view, runs):
    page = view()
    page.locator("input[name=scope][value=run]").check()
    go_to(page, 7)
    for kind in ("gradient", "gate"):
        page.locator("#kind").select_option(kind)
        expect(page.locator(".tile .frame canvas").first).to_have_attribute("aria-label", re.compile(kind))
        apart = np.abs(shown(page, 1).astype(int) - drawn(runs, 0, "run", 7, kind))
        assert apart.max() <= 1


def test_colours_images_and_seeds_are_those_chosen(view, runs):
    page = view()
    go_to(page, 4)
    page.locator("#palette").select_option("viridis")
    assert (shown(page, 1) == drawn(runs, 0, "frame", 4, palette="viridis")).all()
    page.locator("#seed").select_option(label="1")
    expect(page.locator(".tile").nth(1)).to_contain_text("seed 1")
    assert (shown(page, 1) == drawn(runs, 1, "frame", 4, palette="viridis")).all()
    # CARAFE has one run: it stays beside either seed.
    assert (shown(page, 2) == drawn(runs, 2, "frame", 4, palette="viridis")).all()
    page.locator("#image").select_option(label="disc_1")
    expect(page.locator(".tile").first).to_contain_text("disc_1")
    assert (shown(page, 1) == drawn(runs, 1, "frame", 4, image=1, palette="viridis")).all()


def test_what_is_not_finite_is_magenta_and_said(view, runs):
    page = view()
    go_to(page, BROKEN_STEP)
    assert (shown(page, 2)[3, 4] == NON_FINITE).all()
    assert (shown(page, 2)[20, 30] == NON_FINITE).all()
    move_to(page, 2, 3, 5)
    assert page.locator(".tile").nth(2).locator(".reading").text_content() == "not finite here"


def move_to(page, tile, row, column, rows=24, columns=32):
    box = page.locator(".tile").nth(tile).locator(".frame").bounding_box()
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows)


def test_a_pixel_tells_its_value_and_is_marked_in_all_tiles(view, runs):
    page = view()
    go_to(page, 6)
    page.locator("input[name=scope][value=shared]").check()  # the value does not depend on the colours
    move_to(page, 1, 10, 21)
    assert page.locator("#place").text_content().startswith("Row 10, column 21 of 24 × 32")
    for tile, run in ((1, 0), (2, 2)):
        told = page.locator(".tile").nth(tile).locator(".reading").text_content()
        maps = runs[run].maps(LAYER, "feature", image=0)[6]
        value = float(re.fullmatch(r"(\S+) here", told)[1].replace("−", "-").replace(",", ""))
        assert value == pytest.approx(maps[10, 21], abs=float(np.ptp(maps)) / 510 + 0.006 * abs(float(maps[10, 21])))
    marks = page.locator(".pixel-light").evaluate_all(
        "all => all.map(one => [one.getAttribute('visibility'), ...['x', 'y'].map(name => +one.getAttribute(name))])"
    )
    assert marks == [["visible", 21 * 2, 10 * 2]] * 3  # the image has twice as many pixels
    page.mouse.move(5, 5)
    assert page.locator(".pixel-light").first.get_attribute("visibility") == "hidden"


def test_a_finger_marks_a_pixel_too(view):
    page = view(has_touch=True)
    page.locator(".tile .frame").nth(1).tap(position={"x": 30, "y": 30})
    assert page.locator(".reading").nth(1).text_content().endswith(" here")


def test_the_slider_moves_everything_to_one_step(view):
    page = view()
    for at in (0, 5, len(STEPS) - 1):
        go_to(page, at)
        assert page.locator("#step").text_content() == f"step {STEPS[at]}"
        assert page.locator("#slider").get_attribute("aria-valuetext") == f"step {STEPS[at]}"
        labels = page.locator(".tile .frame canvas").evaluate_all("all => all.map(one => one.ariaLabel)")
        assert len(labels) == 2
        assert all(f"at step {STEPS[at]}," in label for label in labels)
    places = {}
    for at in (2, 9):
        go_to(page, at)
        places[at] = page.locator(".curves .cursor").evaluate_all(
            "all => all.map(one => Number(one.getAttribute('x1')))"
        )
    assert len(places[2]) > 8
    assert all(early < late for early, late in zip(places[2], places[9], strict=True))


def test_no_step_moves_what_is_below(view):
    page = view()
    page.set_viewport_size({"width": 1280, "height": 800})  # where a legend took another line at some steps
    heights = set()
    for at in range(len(STEPS)):
        go_to(page, at)
        heights.add(page.evaluate("document.documentElement.scrollHeight"))
    assert len(heights) == 1


@pytest.mark.slow
def test_play_goes_on_stops_at_the_end_and_begins_again(view):
    page = view()
    stop_time(page)
    go_to(page, len(STEPS) - 3)
    page.locator("#speed").select_option(label="8×")
    page.locator("#play").click()
    assert page.locator("#step").get_attribute("aria-live") == "off"
    play_through(page, STEPS[-2:-1])
    expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")
    play_through(page, STEPS[-1:])
    expect(page.locator("#play")).to_have_attribute("aria-label", "Play")
    assert page.locator("#step").get_attribute("aria-live") == "polite"
    page.locator("#speed").select_option(label="½×")
    page.locator("#play").click()
    expect(page.locator("#step")).to_have_text(f"step {STEPS[0]}")
    page.clock.run_for(milliseconds_a_step(page) - 1)
    expect(page.locator("#step")).to_have_text(f"step {STEPS[0]}")
    page.clock.run_for(1)
    expect(page.locator("#step")).to_have_text(f"step {STEPS[1]}")
    assert page.locator("#play").get_attribute("aria-label") == "Pause"
    page.locator("#play").click()
    page.clock.run_for(10 * milliseconds_a_step(page))
    expect(page.locator("#step")).to_have_text(f"step {STEPS[1]}")


def test_keys(view):
    page = view()
    stop_time(page)
    page.locator("#slider").scroll_into_view_if_needed()  # elsewhere these keys scroll

    def at():
        return int(page.locator("#slider").input_value())

    page.keyboard.press("Home")
    assert at() == 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert at() == 1
    page.keyboard.press("End")
    assert at() == len(STEPS) - 1
    page.keyboard.press("Home")
    page.locator("#slider").focus()
    page.keyboard.press("ArrowRight")
    assert at() == 1  # once, not by the slider and the page both
    page.keyboard.press("Space")
    assert page.locator("#play").get_attribute("aria-label") == "Pause"
    page.keyboard.press("Space")
    assert page.locator("#play").get_attribute("aria-label") == "Play"
    page.keyboard.press("]")
    assert page.locator("#image").input_value() == "1"
    page.keyboard.press("]")
    assert page.locator("#image").input_value() == "0"
    page.keyboard.press("[")
    assert page.locator("#image").input_value() == "1"
    before = at()
    page.locator("#palette").focus()
    page.keyboard.press("ArrowRight")  # chooses a colour map
    assert at() == before


def test_the_contour_can_be_laid_over_the_maps(view):
    page = view()

    def visible():
        return page.locator(".tiles .overlay g").evaluate_all("all => all.map(one => one.getAttribute('visibility'))")

    assert visible() == ["visible", "hidden", "hidden"]
    page.locator("#contour").check()
    assert visible() == ["visible"] * 3
    assert page.locator(".contour-light").first.get_attribute("d").startswith("M")


def test_the_true_alpha_stands_beside_the_input(browser, tmp_path):
    run = make_matting_run(tmp_path / "run")
    write_report([run], tmp_path / "r.html")
    page = browser.new_page(viewport={"width": 390, "height": 900})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((tmp_path / "r.html").as_uri())
    page.wait_for_selector(".tile canvas")
    assert page.locator(".tile .name").all_text_contents() == ["Input", "True alpha", "FADE"]
    image = page.locator(".tile").nth(1).locator("img")
    assert image.evaluate("image => [image.naturalHeight, image.naturalWidth]") == [48, 64]
    assert page.locator(".tile").nth(0).bounding_box()["y"] == page.locator(".tile").nth(1).bounding_box()["y"]
    # The contour covers the input alone until it is asked for; a place is marked in all three.
    lines = page.locator(".tile .overlay g")
    assert [line.get_attribute("visibility") for line in lines.all()] == ["visible", "hidden", "hidden"]
    page.locator("#contour").check()
    assert [line.get_attribute("visibility") for line in lines.all()] == ["visible"] * 3
    move_to(page, 2, 10, 21)
    assert page.locator(".pixel-light[visibility=visible]").count() == 3
    page.locator("#image").select_option("1")
    expect(image).to_have_attribute("alt", "True alpha of disc_1")
    assert page.locator("#strip img").count() == 2
    page.close()
    assert complaints == []


def test_a_click_on_a_chart_goes_to_the_nearest_step_on_either_axis(view):
    page = view()
    for axis in ("log", "linear"):
        page.locator(f"input[name=axis][value={axis}]").check()
        for chart in (".curves .plot svg", ".kymograph .plot svg"):
            target = page.locator(chart).first
            go_to(page, 7)
            place = float(target.locator(".cursor").last.get_attribute("x1"))
            go_to(page, 1)
            box, width = target.bounding_box(), float(target.get_attribute("viewBox").split()[2])
            target.click(position={"x": place / width * box["width"], "y": 0.4 * box["height"]})
            assert page.locator("#step").text_content() == f"step {STEPS[7]}", (axis, chart)


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """Runs whose answers are known, and the page of their analysis."""
    folder = tmp_path_factory.mktemp("answered")
    kinds = ("inward", "start", "place")
    runs = [make_onset_run(folder / f"{kind}{n}", kind, upsampler=kind, seed=n) for kind in kinds for n in (0, 1)]
    write_report(runs, folder / "r.html", images=1)
    return analyze(runs), folder / "r.html"


@pytest.fixture
def answer(browser, answered):
    """The page of ``answered``; complaints of the browser fail the test."""
    complaints = []
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(answered[1].as_uri())
    page.wait_for_selector(".tile canvas")
    yield page
    page.close()
    assert complaints == []


def test_kymographs_show_the_measured_colours(answer, answered):
    panels = kymograph_panels(answered[0].onsets)
    span = kymograph_span(panels)
    index = np.clip(np.rint((np.stack([panel.value for panel in panels]) + span) / (2 * span) * 255), 0, 255)
    wanted = signed_palette()[index.astype(int)].astype(int)
    middles = """(canvas, ends) => {
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        const rows = ends.depths.length - 1;
        return Array.from({ length: ends.steps.length - 1 }, (_, x) => Array.from({ length: rows }, (_, y) => [
            ...copy.getImageData(
                Math.floor(canvas.width * (ends.steps[x] + ends.steps[x + 1]) / 2),
                Math.floor(canvas.height * (1 - (ends.depths[y] + ends.depths[y + 1]) / 2), 1), 1, 1).data]));
    }"""
    for axis in ("log", "linear"):
        answer.locator(f"input[name=axis][value={axis}]").check()
        borders = choose_step_axis([panels[0].steps], axis).borders(panels[0].steps)
        depths = panels[0].edges
        ends = {
            "steps": ((borders - borders[0]) / (borders[-1] - borders[0])).tolist(),
            "depths": ((depths - depths[0]) / (depths[-1] - depths[0])).tolist(),
        }
        wide = np.diff(ends["steps"]) > 0.01  # on a linear axis the first cells are a pixel wide
        for number in range(len(panels)):
            seen = np.array(answer.locator(".kymograph canvas").nth(number).evaluate(middles, ends))
            assert (seen[..., 3] == 255).all()
            assert wide.sum() > 4
            assert np.abs(seen[wide][..., :3] - wanted[number][wide]).max() <= 6  # one colour of 256


def test_arrivals_are_where_they_are_measured(answer, answered):
    panels = kymograph_panels(answered[0].onsets)
    charts = answer.locator(".kymograph svg")
    box = charts.nth(0).locator(".frame-line")
    left, width = (float(box.get_attribute(name)) for name in ("x", "width"))
    borders = choose_step_axis([panels[0].steps], "log").borders(panels[0].steps)
    place = left + (np.log1p(panels[0].arrivals[0].step) - borders[0]) / (borders[-1] - borders[0]) * width
    assert float(charts.nth(0).locator("circle.symbol").get_attribute("cx")) == pytest.approx(place, abs=0.1)
    assert charts.nth(0).locator(".symbol.open").count() == 0
    assert charts.nth(1).locator("circle.symbol.open").count() == 1  # there before training
    assert charts.nth(2).locator(".symbol").count() == 0
    legend = answer.locator("#symbols").text_content()
    assert "outline there before training" in legend
    assert "interior there before training" not in legend


def test_a_value_is_read_by_pointer_and_by_keyboard(answer, answered):
    panel = kymograph_panels(answered[0].onsets)[0]
    chart = answer.locator(".kymograph svg").first
    tip = answer.locator(".kymograph .tip").first
    expect(tip).to_be_hidden()
    box = chart.bounding_box()
    answer.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.6 * box["height"])
    told = re.fullmatch(r"step (\d+), ([\d.]+) radii (inside|outside): (\S+)", tip.text_content())
    at = panel.steps.index(int(told[1]))
    depth = float(told[2]) * (-1 if told[3] == "inside" else 1)
    middles = (panel.edges[1:] + panel.edges[:-1]) / 2
    value = panel.value[at, np.abs(middles - depth).argmin()]
    assert float(told[4].replace("−", "-")) == pytest.approx(value, abs=0.002)
    assert answer.evaluate("document.documentElement.scrollWidth") <= 1200
    answer.mouse.move(2, 2)
    expect(tip).to_be_hidden()
    answer.locator(".contents a").last.focus()
    answer.keyboard.press("Tab")
    expect(tip).to_be_visible()
    assert tip.text_content() == told[0]
    answer.keyboard.press("ArrowLeft")
    answer.keyboard.press("ArrowDown")
    earlier, deeper = panel.steps[at - 1], np.abs(middles - depth).argmin() - 1
    assert tip.text_content().startswith(f"step {earlier}, {round(abs(middles[deeper]), 2):g} radii ")
    answer.keyboard.press("Enter")
    assert answer.locator("#step").text_content() == f"step {earlier}"


def test_the_first_screen_answers(answer):
    """The verdicts, their sentences and the maps of all operators are seen without scrolling."""
    for name in (".verdict .word", ".verdict .sentence", ".kymograph"):
        boxes = [part.bounding_box() for part in answer.locator(name).all()]
        assert len(boxes) == 3
        assert all(box["y"] + box["height"] <= 900 for box in boxes)
    assert answer.locator(".verdict .word").all_text_contents()[0] == "outline first"


NAMES = ("fade", "carafe", "bilinear", "sapa_b", "dysample", "indexnet", "a2u")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Makes the page of so many operators."""
    folder = tmp_path_factory.mktemp("compared")

    def make(count):
        path = folder / f"{count}.html"
        if not path.exists():
            kinds = ("inward", "start", "place")
            runs = [
                make_onset_run(folder / f"{count}{name}", kinds[number % 3], upsampler=name)
                for number, name in enumerate(NAMES[:count])
            ]
            write_report(runs, path, images=1)
        return path

    return make


@pytest.fixture
def sized(browser, compared):
    """Opens the page of so many operators in a window of a size."""
    pages = []

    def open_page(count, width=1280, height=800, **settings):
        page = browser.new_page(viewport={"width": width, "height": height}, **settings)
        pages.append(page)
        page.goto(compared(count).as_uri())
        page.wait_for_selector(".tile canvas")
        return page

    yield open_page
    for page in pages:
        page.close()


# Of each grid the places of its items; a group's words count as one, since they stand in its first row.
GRIDS = """() => {
    const grids = [...document.querySelectorAll(".verdicts, .group, .tiles")];
    return grids.filter((grid) => grid.checkVisibility()).map((grid) => {
        const items = [...grid.querySelectorAll(
            ":scope > .verdict, :scope > .tile, :scope > h3, .chart:not(.kymograph)")];
        const boxes = items.map((item) => item.getBoundingClientRect()).filter((box) => box.width > 0);
        return {
            name: grid.className,
            width: grid.getBoundingClientRect().width,
            items: boxes.map((box) => [box.top, box.left, box.width]),
        };
    });
}"""


def orphans(page):
    """Grids whose last row has one item, which does not fill it, beneath rows with several."""
    found = []
    for grid in page.evaluate(GRIDS):
        rows = {}
        for top, _, width in grid["items"]:
            rows.setdefault(round(top / 4), []).append(width)
        *above, last = rows.values()
        if len(last) == 1 and last[0] < 0.9 * grid["width"] and any(len(row) > 1 for row in above):
            found.append((grid["name"], [len(row) for row in rows.values()]))
    return found


def check_layout(page, widths=(360, 390, 768, 1024, 1280, 1920, 2560)):
    for width in widths:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert orphans(page) == [], width


def test_no_item_is_alone_in_the_last_row_and_nothing_sticks_out(answer):
    check_layout(answer, [360, 2560])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7])
def test_no_item_is_alone_with_other_numbers_of_operators(sized, count):
    check_layout(sized(count))


@pytest.mark.slow
def test_a_lonely_item_would_be_found(sized):
    page = sized(3, width=1920)
    page.evaluate("document.querySelector('.verdict').parentElement.classList.replace('room6-3', 'room6-2')")
    assert [name.split()[0] for name, _ in orphans(page)] == ["verdicts"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_of_two_operators_has_answers_maps_and_the_way_on(sized, width, height):
    page = sized(2, width, height)
    for name in (".verdict .word", ".verdict .sentence", ".kymograph"):
        boxes = [part.bounding_box() for part in page.locator(name).all()]
        assert len(boxes) == 2
        assert all(box["y"] + box["height"] <= height for box in boxes), name
    link = page.locator(".contents a", has_text="Maps")
    assert link.bounding_box()["y"] < height / 2
    if width > 1000:
        assert page.locator("#viewer h2").bounding_box()["y"] < height - 100
        assert page.locator("main").bounding_box()["width"] > 0.95 * width


def test_the_contents_lead_to_the_parts(answer):
    page = answer
    page.set_viewport_size({"width": 1440, "height": 900})
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the answer"
    assert page.locator(".skip").bounding_box()["y"] >= 0  # seen while it has the focus
    links = page.locator("nav[aria-label=Contents] a")
    for link in links.all():
        page.keyboard.press("Tab")
        assert link.evaluate("link => link === document.activeElement")
        assert page.locator(link.get_attribute("href")).is_visible()
    page.keyboard.press("Enter")
    assert page.evaluate("scrollY") > 1000
    assert links.last.bounding_box()["y"] < 900  # the contents stay beside a wide page


@pytest.mark.slow
def test_a_phone_folds_the_curves(sized):
    page = sized(2, 390, 844)
    assert page.evaluate("document.documentElement.scrollHeight") < 7 * 844
    assert page.locator(".curves .curve").first.is_hidden()
    page.locator(".fold > summary").first.click()
    assert page.locator(".curves .curve").first.is_visible()
    page.locator("input[name=axis][value=linear]").check()  # draws all charts again
    assert page.locator(".curves .curve").first.is_visible()
    page.set_viewport_size({"width": 1000, "height": 800})
    expect(page.locator(".fold")).to_have_count(0)
    assert page.locator(".curves .curve").last.is_visible()


@pytest.mark.slow
def test_maps_keep_the_size_of_their_words(sized):
    page = sized(2, 1280)
    scale = "svg => svg.clientWidth / svg.viewBox.baseVal.width"
    for width in (1280, 700, 1920):
        page.set_viewport_size({"width": width, "height": 900})
        expect(page.locator(".kymograph svg").first).to_be_visible()
        page.wait_for_timeout(50)  # an observer draws them again
        assert page.locator(".kymograph svg").first.evaluate(scale) == pytest.approx(1, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 7])
def test_paper_has_at_most_four_pages(sized, count):
    page = sized(count, color_scheme="dark")
    paper = page.pdf(format="A4")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 4
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(sized, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.base", reason='needs axe: pip install ".[browser]"')
    page = sized(2, width, 844, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.evaluate(axe.AXE_SCRIPT)
    result = page.evaluate(f"axe.run({{ runOnly: {RULES} }})")
    assert len(result["passes"]) > 40
    found = [(one["id"], [node["target"] for node in one["nodes"]]) for one in result["violations"]]
    assert found == []


def test_a_picture_that_the_browser_cannot_make_is_said_so(view):
    page = view()
    page.evaluate("() => { HTMLCanvasElement.prototype.toBlob = (take) => take(null); }")
    page.locator("#picture").click()
    expect(page.locator("#trouble")).to_contain_text("too large for one picture")


def test_hostile_names_are_text(view):
    page = view()
    assert page.title() == HOSTILE
    assert page.locator("h1").text_content() == HOSTILE
    assert page.locator("h1 img").count() == 0


def test_every_control_has_a_name(view):
    page = view()
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    wanted = {
        "button",
        "slider",
        "combobox",
        "radio",
        "checkbox",
        "image",
        "img",
        "link",
        "DisclosureTriangle",
        "region",
    }
    names = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes
             if not node["ignored"] and node["role"]["value"] in wanted]  # fmt: skip
    assert [role for role, name in names if not name.strip()] == []
    assert {"button", "slider", "combobox", "radio", "checkbox"} <= {role for role, _ in names}
    assert len(names) > 25
    # Whatever can be reached by keyboard shows where the focus is.
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_phone_does_not_scroll_sideways(view):
    page = view(viewport={"width": 380, "height": 800}, device_scale_factor=2, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    for name in ("#play", "#slider", "#layer", "#kind", "#contour"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 380


def test_dark_mode_changes_paper_and_ink(view):
    light, dark = view(), view(color_scheme="dark")

    def brightness(page, what):
        colour = page.evaluate(f"getComputedStyle(document.body).{what}")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert brightness(light, "backgroundColor") > 700 > 300 > brightness(light, "color")
    assert brightness(dark, "backgroundColor") < 120 < 600 < brightness(dark, "color")


def test_the_answer_leads_to_the_maps_that_play(view):
    page = view()
    stop_time(page)
    page.locator("#play-maps").click()
    expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")
    play_through(page, STEPS[1:4])
    expect(page.locator("#viewer-title")).to_be_in_viewport()


def test_paper_has_a_strip_instead_of_controls(view, runs):
    page = view()
    assert not page.locator("#strip").is_visible()
    page.emulate_media(media="print")
    for hidden in ("#play", "#slider", ".controls", "#tiles", "#contour"):
        assert not page.locator(hidden).is_visible()
    for kept in ("#strip", ".verdict", ".curves", ".kymograph", ".caveats"):
        assert page.locator(kept).first.is_visible()
    strip = page.locator("#strip .strip-row")
    assert strip.count() == 2 + 2  # the input, the steps, the operators
    assert strip.nth(0).locator("img").is_visible()
    assert strip.nth(2).locator("canvas").count() == 6
    height, width, *values = strip.nth(2).locator("canvas").last.evaluate(PIXELS)
    assert (np.array(values, np.uint8).reshape(height, width, 4)[..., :3] == drawn(runs, 0, "frame", -1)).all()


def test_a_browser_that_cannot_unpack_says_so(browser, file):
    context = browser.new_context()
    context.add_init_script("delete globalThis.DecompressionStream")
    page = context.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("#trouble:not([hidden])")
    assert "DecompressionStream" in page.locator("#trouble").text_content()
    assert page.locator(".curves .curve").count() > 0  # the curves need no unpacking
    context.close()


def test_tiles_name_the_layers_that_differ_between_the_runs(browser, tmp_path):
    made = []
    for name, layer, every in (("a", "up1", 1), ("b", "up1.op", 2)):
        run = make_run(tmp_path / name, run_id=name, upsampler=name, steps=(0, 10))
        store = SnapshotStore(run.path, run.run_id)
        for step in run.steps:
            value = run.read(step, LAYER, "feature")
            maps = [Snapshot(step, layer, 0, "feature", value), Snapshot(step, "top", 0, "feature", value)]
            store.write(step, [*maps, Snapshot(step, f"{layer}.x", 0, "feature", value[..., ::every, ::every])])
        made.append(fadeviz.open_run(run.path))
    layers = [{"a": "up1", "b": "up1.op"}, "top", {"a": "up1.x", "b": "up1.op.x"}]
    write_report(made, tmp_path / "r.html", layers=layers, images=1)
    page = browser.new_page()
    page.goto((tmp_path / "r.html").as_uri())
    names = page.locator(".tile .name")
    expect(names).to_have_text(["Input", "A up1", "B up1.op"])
    expect(page.locator("#caption")).to_contain_text("up1 in A and up1.op in B. Feature: ")
    page.locator("#layer").select_option(label="top, 24×32")
    expect(names).to_have_text(["Input", "A", "B"])
    page.locator("#layer").select_option(label="up1.x in A and up1.op.x in B, 24×32 and 12×16")
    expect(names).to_have_text(["Input", "A up1.x", "B up1.op.x"])
    assert shown(page, 1).shape[:2] == (24, 32)
    assert shown(page, 2).shape[:2] == (12, 16)
    page.close()


def test_predictions_follow_the_step_and_the_image(browser, tmp_path):
    import torch
    from torch import nn

    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(4, 16, 16, dtype=torch.long)
    masks[:, 4:12, 4:12] = 1
    masks[:, 14:] = 2
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 1))
    with fadeviz.Recorder(model, "0", "1:3", tmp_path / "run", batch=(images, masks), predictions=True) as recorder:
        for step in (1, 2, 3):
            with torch.no_grad():
                model[1].bias[step % 3] += 0.4
            recorder.step(step)
    run = fadeviz.open_run(tmp_path / "run")
    write_report(run, tmp_path / "page.html")
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    page = context.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    canvas = page.locator("#prediction-tiles .frame canvas")
    canvas.wait_for()

    def is_drawn(step, image):
        expect(page.locator("#prediction-caption")).to_have_text(f"image {image}, step {step}.")
        expect(page.locator("#step")).to_have_text(f"step {step}")
        height, width, *values = canvas.evaluate(PIXELS)
        pixels = np.array(values, np.uint8).reshape(height, width, 4)[..., :3]
        return np.array_equal(pixels, colour_classes(run.prediction(step, image), 3))

    assert is_drawn(3, 0)
    page.locator("#prediction-slider").fill("1")
    assert is_drawn(1, 0)
    go_to(page, 2)
    assert is_drawn(2, 0)
    page.locator("#prediction-image").select_option("2")
    assert is_drawn(2, 2)
    assert page.locator("#image").input_value() == "2"
    assert page.locator("#prediction-legend li").count() == 3
    page.emulate_media(media="print")
    assert canvas.is_visible()
    context.close()
    assert complaints == []
