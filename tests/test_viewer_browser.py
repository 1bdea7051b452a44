"""The viewer's page in a real browser: it shows what was recorded, follows, and survives what happens to runs."""

import contextlib
import functools
import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fadeviz
from fadeviz.render.colormap import colorize, colour_classes
from fadeviz.render.frames import select_frames
from fadeviz.render.labels import format_number
from fadeviz.render.normalize import limits_by_scope, normalize
from fadeviz.render.selection import MapSelection
from fadeviz.storage.info import read_info
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from pages import PIXELS, need_browser, open_browser, play_through, stop_time
from render_runs import LAYER, STEPS, make_run

for package in ("starlette", "uvicorn"):
    pytest.importorskip(package, reason=f'needs {package}: pip install ".[view]"')
expect = need_browser().expect
HOSTILE = "</script><img src=x onerror=document.title='taken'>"
BROKEN_STEP = 5


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def watch():
    """Serves folders until the end of the test, when no page asks any more."""
    with contextlib.ExitStack() as stack:
        yield lambda folder, **options: stack.enter_context(fadeviz.view(folder, **options))


@pytest.fixture
def listen():
    """Starts a server of a test's own, likewise; returns its port."""
    with contextlib.ExitStack() as stack:

        def start(handler):
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return server.server_port

        yield start


@pytest.fixture
def visit(browser, watch, listen):
    """Opens a page; every complaint of the browser, and every request to elsewhere, fails the test."""
    contexts, complaints, accepted = [], [], []

    def open_page(url, *, complaint=None, **settings):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **settings})
        contexts.append(context)
        if complaint:
            accepted.append(complaint)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        origin = "/".join(url.split("/")[:3]) + "/"
        local = (origin, "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(local) else complaints.append(request.url))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [one for one in complaints if not any(re.search(pattern, one) for pattern in accepted)] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """FADE with seeds 0 and 1, and CARAFE with a few cells that are not finite."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    maps = np.cumsum(rng.normal(size=(len(STEPS), 24, 32)), axis=0).astype(np.float32)
    maps[BROKEN_STEP, 3, 4:9], maps[BROKEN_STEP, 20, 30] = np.nan, np.inf
    make_run(folder / "carafe", run_id="carafe", upsampler="carafe", maps=maps, calls=2)
    make_run(folder / "fade0", run_id="fade0")
    make_run(folder / "fade1", run_id="fade1", seed=1)
    return folder


@pytest.fixture(scope="module")
def viewer(folder):
    with fadeviz.view(folder) as viewer:
        yield viewer


def row(page, place):
    return page.locator("#body tr", has=page.get_by_text(place, exact=True))


def tile(page, name):
    return page.locator(".tile", has=page.locator(".name", has_text=name))


def shown(page, name):
    """What a tile's canvas holds, ``(h, w, 3)``."""
    height, width, *values = tile(page, name).locator(".frame canvas").evaluate(PIXELS)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def go_to(page, at):
    """Move the slider, and wait until the maps are painted."""
    page.locator("#slider").fill(str(at))
    settle(page)


def settle(page):
    step = page.locator("#step").inner_text().replace(",", "")
    for canvas in page.locator(".tile .frame canvas").all():
        expect(canvas).to_have_attribute("aria-label", re.compile(f"at {step}(,|$)"))


def open_runs(page, *places):
    for place in places:
        row(page, place).locator("input").check()
    page.locator("#compare").click()
    page.wait_for_selector(".tile .frame canvas[aria-label]")


def add_snapshot(path, step, value=1.0):
    run_id = read_info(path, "run").run_id
    maps = np.full((2, 24, 32), value, np.float32)
    SnapshotStore(path, run_id).write(step, [Snapshot(step, LAYER, 0, "feature", maps)])


def test_a_comparison_from_the_list_to_the_last_pixel(visit, viewer, folder):
    """Found, opened side by side, in the library's colours, read exactly, and opened again from its address."""
    page = visit(viewer.url)
    expect(page.locator("#counted")).to_have_text("3 runs")
    page.locator("#search").fill("seed 0")
    expect(page.locator("#counted")).to_have_text("2 of 3 runs")
    open_runs(page, "fade0", "carafe")
    names = page.locator(".tile .name").all_inner_texts()
    assert [name.strip() for name in names] == ["Input", "True mask", "CARAFE", "FADE"]

    runs = [fadeviz.open_run(folder / name) for name in ("carafe", "fade0")]
    page.locator("#palette").select_option("viridis")
    for scope in ("frame", "run", "shared"):
        page.locator(f"input[name=scope][value={scope}]").check()
        for at in (2, BROKEN_STEP, len(STEPS) - 1):
            go_to(page, at)
            maps = [run.maps(LAYER, image=0)[:] for run in runs]
            limits = limits_by_scope(maps, [0, 1], "feature", scope)
            for name, own, ranges in zip(("CARAFE", "FADE"), maps, limits, strict=True):
                expected = colorize(normalize(own[at], ranges[at]), "viridis")
                expect(tile(page, name).locator(".range span").first).to_have_attribute("title", exact(ranges[at].low))
                np.testing.assert_array_equal(shown(page, name), expected)

    go_to(page, 2)
    frame = tile(page, "FADE").locator(".frame")
    box = frame.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 10.5 / 32, box["y"] + box["height"] * 7.5 / 24)
    expect(page.locator("#place")).to_have_text("Row 7, column 10 of 24 × 32, counted from 0.")
    for name, run in zip(("CARAFE", "FADE"), runs, strict=True):
        text = tile(page, name).locator(".reading").inner_text()
        assert np.float32(text.removesuffix(" here").replace("\u2212", "-")) == run.maps(LAYER, image=0)[2][7, 10]

    expect(page).to_have_url(re.compile("step=20&colours=shared&map=viridis"))
    again = visit(page.url)
    again.wait_for_selector(".tile .frame canvas[aria-label]")
    settle(again)
    assert again.locator("#step").inner_text() == "step 20"
    for name in ("CARAFE", "FADE"):
        expect(tile(again, name).locator(".range span").first).to_have_attribute(
            "title", tile(page, name).locator(".range span").first.get_attribute("title")
        )
        np.testing.assert_array_equal(shown(again, name), shown(page, name))


def number(value):
    return format_number(value).replace("-", "\u2212")


def exact(value):
    """As the page writes a float32: the shortest decimal that is no other."""
    return np.format_float_positional(np.float32(value), trim="-").replace("-", "\u2212")


@pytest.mark.slow
def test_the_list_is_sorted_and_filtered(visit, viewer):
    page = visit(viewer.url)
    places = page.locator("#body .where:not(.narrow, .small)")
    expect(places).to_have_text(["carafe", "fade0", "fade1"])
    page.locator("#head button", has_text="Run").click()
    expect(places).to_have_text(["fade1", "fade0", "carafe"])
    assert page.locator("#head th", has_text="Run").get_attribute("aria-sort") == "descending"
    page.locator("#head button", has_text="Seed").click()
    expect(places).to_have_text(["carafe", "fade0", "fade1"])
    page.locator("#filter-title").select_option("FADE")
    expect(places).to_have_text(["fade0", "fade1"])
    page.locator("#search").fill("seed 1")
    expect(places).to_have_text(["fade1"])
    expect(page).to_have_url(re.compile(r"search=seed\+1&title=FADE&sort=seed"))
    page.locator("#search").fill("nothing like that")
    expect(page.locator("#none")).to_have_text("No run has all of this. Change the search or the filters.")
    expect(page).to_have_url(re.compile("search=nothing"))
    page.reload()
    expect(page.locator("#search")).to_have_value("nothing like that")


@pytest.mark.slow
def test_layers_kinds_calls_images_and_channels(visit, viewer, folder):
    page = visit(viewer.url)
    open_runs(page, "carafe")
    run = fadeviz.open_run(folder / "carafe")
    go_to(page, 3)
    for kind in ("feature", "gradient", "gate"):
        page.locator("#kind").select_option(kind)
        for call in (0, 1):
            page.locator("#call").select_option(str(call))
            for image in (0, 1):
                page.locator("#image").select_option(str(image))
                size = f"{24 // 2**call}"
                expect(tile(page, "CARAFE").locator(".frame canvas")).to_have_attribute("height", size)
                maps = run.maps(LAYER, kind, image=image, call=call)[3:4]
                limits = limits_by_scope([maps], [0], kind, "frame")[0][0]
                label = re.compile(f"^CARAFE, {kind} at step 30, from ")
                expect(tile(page, "CARAFE").locator(".frame canvas")).to_have_attribute("aria-label", label)
                expect(tile(page, "CARAFE").locator(".range span").last).to_have_attribute("title", exact(limits.high))
                np.testing.assert_array_equal(shown(page, "CARAFE"), colorize(normalize(maps[0], limits), "gray"))
    page.locator("#kind").select_option("channels")
    page.locator("#call").select_option("0")
    page.locator("#image").select_option("0")
    expect(page.locator("#channels")).to_have_text("of 6")
    for channel in range(6):
        page.locator("#channel").fill(str(channel))
        maps = run.maps(LAYER, "channels", image=0, channel=channel)[3:4]
        limits = limits_by_scope([maps], [0], "channels", "frame")[0][0]
        expect(tile(page, "CARAFE").locator(".range span").last).to_have_attribute("title", exact(limits.high))
        np.testing.assert_array_equal(shown(page, "CARAFE"), colorize(normalize(maps[0], limits), "gray"))
    page.locator("#image").select_option("1")
    expect(tile(page, "CARAFE").locator(".missing")).to_have_text("no channels of image 1: recorded of the first 1")


@pytest.mark.slow
def test_keys_and_playback(visit, viewer):
    page = visit(viewer.url)
    page.keyboard.press("Tab")  # the search
    for _ in range(20):
        if page.evaluate("document.activeElement.tagName") == "A":
            break
        page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector(".tile .frame canvas[aria-label]")
    assert page.locator("#step").inner_text() == "step 110"
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#step")).to_have_text("step 100")
    page.keyboard.press("Home")
    expect(page.locator("#step")).to_have_text("step 0")
    page.keyboard.press("]")
    expect(page.locator("#image")).to_have_value("1")
    page.locator("#step").click()
    stop_time(page)
    page.keyboard.press(" ")
    expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")
    play_through(page, STEPS[1:])
    expect(page.locator("#play")).to_have_attribute("aria-label", "Play")
    page.clock.resume()
    settle(page)
    page.go_back()
    expect(page.locator("#list")).to_be_visible()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 760, 1200])
def test_pictures_of_a_row_begin_at_the_same_height(visit, watch, tmp_path, width):
    """Also where one name takes several lines: two runs of one operator are told apart by their folders."""
    for name in ("short", "a_folder_whose_name_does_not_fit_into_one_line_of_a_tile"):
        make_run(tmp_path / name, run_id=name)
    make_run(tmp_path / "carafe", run_id="carafe", upsampler="carafe")
    page = visit(watch(tmp_path).url, viewport={"width": width, "height": 900})
    for box in page.locator("#body tr input").all():
        box.check()
    page.locator("#compare").click()
    expect(page.locator(".tile .frame canvas[aria-label]")).to_have_count(3)
    rows = {}
    for tile in page.locator("#tiles .tile").all():
        name, frame = (tile.locator(part).bounding_box() for part in (".name", ".frame"))
        if frame["y"] > name["y"] + name["height"] - 1:  # and not beside it, in a row of its own
            rows.setdefault(round(name["y"]), set()).add(round(frame["y"]))
    assert len(rows) < 5
    assert all(len(tops) == 1 for tops in rows.values()), rows


@pytest.mark.slow
def test_a_link_that_is_not_yet_up_to_date_does_not_undo_going_back(visit, viewer):
    """The address is kept up to date a little later: maybe between going back and the page's hearing of it."""
    page = visit(viewer.url)
    page.evaluate(
        """() => {
            const waiting = [], plain = window.setTimeout;
            window.setTimeout = (call, time) => (time === 200 ? waiting.push(call) : plain(call, time));
            addEventListener("popstate", () => { for (const call of waiting.splice(0)) call(); });
        }"""
    )
    row(page, "fade0").locator("a").click()
    page.wait_for_selector(".tile .frame canvas[aria-label]")
    page.locator("#palette").select_option("magma")
    page.go_back()
    expect(page.locator("#list")).to_be_visible()
    assert "#" not in page.url
    page.go_forward()
    expect(page.locator("#viewer")).to_be_visible()


@pytest.mark.slow
def test_what_is_saved_is_what_the_library_draws(visit, viewer, folder, tmp_path):
    page = visit(viewer.url, accept_downloads=True)
    open_runs(page, "fade0", "fade1")
    page.locator("#kind").select_option("gradient")
    page.locator("input[name=scope][value=shared]").check()
    page.locator("#palette").select_option("magma")
    page.locator("#drawn").select_option("all")
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "fadeviz_gradient.png"
    download.value.save_as(tmp_path / "saved.png")
    runs = [folder / "fade0", folder / "fade1"]
    fadeviz.grid(runs, tmp_path / "drawn.png", kind="gradient", normalize="shared", colormap="magma")
    saved, drawn = (np.asarray(Image.open(tmp_path / name)) for name in ("saved.png", "drawn.png"))
    np.testing.assert_array_equal(saved, drawn)
    expect(page.locator("#saved")).to_contain_text("Saved as fadeviz_gradient.png.")
    page.locator("#format").select_option("gif")
    assert page.locator("#drawn").is_disabled()
    with page.expect_download() as download:
        page.locator("#save").click()
    frames = Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).n_frames
    assert frames >= len(STEPS)


@pytest.mark.slow
def test_two_runs_in_one_frame_and_their_difference(visit, viewer, folder, tmp_path):
    """In the library's colours, kept in the address, and saved as the library draws it."""
    page = visit(viewer.url, accept_downloads=True)
    open_runs(page, "fade0", "carafe")
    runs = [fadeviz.open_run(folder / name) for name in ("carafe", "fade0")]
    page.locator("input[name=arrangement][value=difference]").check()
    for scope in ("frame", "run"):
        page.locator(f"input[name=scope][value={scope}]").check()
        (sequence,) = select_frames(runs, MapSelection(layer=LAYER, normalize=scope), difference=True)
        for at in (2, BROKEN_STEP):
            go_to(page, at)
            last = page.locator(".tile").last
            label = f"difference at step {STEPS[at]}, from {number(sequence.limits[at].low)} to"
            expect(last.locator(".frame canvas")).to_have_attribute("aria-label", re.compile(label))
            told = last.locator(".range span").last.get_attribute("title")
            assert np.float32(told) == np.float32(sequence.limits[at].high)
            height, width, *values = last.locator(".frame canvas").evaluate(PIXELS)
            pixels = np.array(values, np.uint8).reshape(height, width, 4)[..., :3]
            np.testing.assert_array_equal(pixels, colorize(sequence.unit[at], "signed"))
    page.locator("#drawn").select_option("all")
    with page.expect_download() as download:
        page.locator("#save").click()
    download.value.save_as(tmp_path / "saved.png")
    fadeviz.grid(runs, tmp_path / "drawn.png", normalize="run", difference=True)
    saved, drawn = (np.asarray(Image.open(tmp_path / name)) for name in ("saved.png", "drawn.png"))
    np.testing.assert_array_equal(saved, drawn)

    page.locator("input[name=arrangement][value=overlay]").check()
    page.locator(".wipe").fill("20")
    expect(page).to_have_url(re.compile("two=overlay&pair=[0-9a-f%C]+&divider=20"))
    again = visit(page.url)
    again.wait_for_selector(".pair .frame canvas[aria-label]")
    assert again.locator(".wipe").input_value() == "20"
    assert again.locator(".pair .name").all_inner_texts() == page.locator(".pair .name").all_inner_texts()
    assert again.locator(".pair .frame canvas").nth(1).evaluate("one => one.style.clipPath") == "inset(0px 0px 0px 20%)"
    page.go_back()  # a run alone has no other
    page.locator("#clear").click()
    open_runs(page, "fade0")
    expect(page.locator("#arrangements")).to_be_hidden()


@pytest.mark.slow
def test_runs_that_name_the_layer_otherwise(visit, watch, tmp_path):
    make_run(tmp_path / "a")
    run = make_run(tmp_path / "b", run_id="b", upsampler="carafe")
    for step in STEPS:
        maps = np.random.default_rng(step).normal(size=(2, 12, 16)).astype(np.float32)
        SnapshotStore(tmp_path / "b", "b").write(step, [Snapshot(step, "head.up", 0, "feature", maps)])
    assert list(run.layers) == ["head.up"]
    viewer = watch(tmp_path)
    page = visit(viewer.url)
    for place in "ab":
        row(page, place).locator("input").check()
    page.locator("#compare").click()
    missing = tile(page, "CARAFE").locator(".missing")
    expect(missing).to_contain_text(f"no layer {LAYER}")
    missing.locator("select").select_option("head.up")
    expect(tile(page, "CARAFE").locator(".frame canvas")).to_have_attribute("width", "16")
    expect(page).to_have_url(re.compile(r"layer\.[0-9a-f]{12}=head\.up"))
    page.reload()
    expect(tile(page, "CARAFE").locator(".frame canvas")).to_have_attribute("width", "16")


RECORDER = """
    import sys, time
    import numpy as np
    import fadeviz, torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Upsample(scale_factor=2), torch.nn.Conv2d(8, 2, 1)
    )
    images, masks = torch.rand(2, 3, 32, 32), torch.ones(2, 32, 32, dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    recorder = fadeviz.Recorder(model, "1", "1:1000:1", sys.argv[1], batch=(images, masks), loss_fn=F.cross_entropy)
    for step in range(1, 1001):
        if not sys.stdin.readline():
            break
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), masks)
        loss.backward()
        optimizer.step()
        recorder.step(step)
        recorder.log(step, loss=loss.item())
        print(step, flush=True)
    recorder.close()
"""


@pytest.fixture
def recording(tmp_path):
    """A process that records a step for each line that it is sent."""
    command = [sys.executable, "-c", textwrap.dedent(RECORDER), str(tmp_path / "runs" / "mine")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def step():
            process.stdin.write("\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield step, process
        process.kill()


@pytest.mark.slow
def test_a_run_that_is_being_recorded_is_followed(visit, watch, tmp_path, recording):
    """The run appears, each snapshot within 2 s, and that its process was killed."""
    step, process = recording
    (tmp_path / "runs").mkdir(exist_ok=True)
    viewer = watch(tmp_path / "runs")
    page = visit(viewer.url)
    step()
    expect(row(page, "mine").locator(".state")).to_have_text("recording", timeout=5000)
    row(page, "mine").locator("a").click()
    page.wait_for_selector(".tile .frame canvas[aria-label]")
    delays = []
    for _ in range(6):
        number = step()
        begin = time.monotonic()
        expect(page.locator("#step")).to_have_text(f"step {number}", timeout=4000)
        settle(page)
        delays.append(time.monotonic() - begin)
    assert max(delays) < 2, delays
    values = fadeviz.open_run(tmp_path / "runs" / "mine").maps("1", image=0)[-1]
    limits = limits_by_scope([values[None]], [0], "feature", "frame")[0][0]
    name = page.locator(".tile .name").last.inner_text().strip()
    np.testing.assert_array_equal(shown(page, name), colorize(normalize(values, limits), "gray"))

    # What was logged follows too, a little later.
    chart = page.locator("#figures figure", has=page.locator("figcaption", has_text="loss"))
    points = f"at step {number}"
    expect(chart.locator("svg").first).to_have_attribute("aria-label", re.compile(points), timeout=8000)

    page.locator("#slider").fill("2")  # now it stays where it is
    settle(page)
    assert not page.locator("#follow").is_checked()
    number = step()
    expect(page.locator("#slider")).to_have_attribute("max", str(number), timeout=4000)
    assert page.locator("#step").inner_text() == "step 2"
    page.locator("#follow").check()
    expect(page.locator("#step")).to_have_text(f"step {number}")

    process.kill()
    process.wait()
    expect(page.locator("#shown .state")).to_have_text("stopped", timeout=4000)
    expect(page.locator("#notes")).to_contain_text("its process ended without reporting a result.")
    assert page.locator("#follow").is_hidden()


@pytest.mark.slow
def test_deleted_damaged_renamed_and_recorded_anew(visit, watch, tmp_path):
    for name in ("deleted", "damaged", "renamed", "anew"):
        make_run(tmp_path / name, run_id=name, steps=STEPS[:3], upsampler=name)
    viewer = watch(tmp_path)
    page = visit(viewer.url)
    open_runs(page, "deleted", "damaged", "renamed", "anew")
    expect(page.locator(".tile .frame canvas[aria-label]")).to_have_count(4)
    shutil.rmtree(tmp_path / "deleted")
    expect(tile(page, "DELETED").locator(".missing")).to_contain_text("its folder was removed or renamed")
    file = tmp_path / "damaged" / "snapshots" / "step_000020.safetensors"
    (tmp_path / "damaged" / "part").write_bytes(file.read_bytes()[:300])
    (tmp_path / "damaged" / "part").replace(file)
    expect(page.locator("#notes")).to_contain_text("step_000020.safetensors: damaged")
    expect(tile(page, "DAMAGED").locator(".at")).to_have_text("of step 10, its last one before")
    (tmp_path / "damaged" / "run.json").write_text("{")
    expect(tile(page, "damaged").locator(".missing")).to_contain_text("run.json is damaged")
    (tmp_path / "renamed").rename(tmp_path / "other")
    expect(page).to_have_url(re.compile("runs="))
    time.sleep(2)
    expect(tile(page, "RENAMED").locator(".frame canvas")).to_have_attribute("aria-label", re.compile("at step 20"))
    add_snapshot(tmp_path / "other", 30, 7.0)
    expect(tile(page, "RENAMED").locator(".range span").first).to_have_text("7", timeout=4000)
    shutil.rmtree(tmp_path / "anew")
    make_run(tmp_path / "anew", run_id="second", steps=STEPS[:3], upsampler="anew", seed=5)
    expected = fadeviz.open_run(tmp_path / "anew").maps(LAYER, image=0)[-1]
    expect(tile(page, "ANEW").locator(".range span").last).to_have_attribute(
        "title", exact(expected.max()), timeout=5000
    )
    page.locator("#back").click()
    expect(page.locator("#counted")).to_have_text("3 runs")
    expect(row(page, "other")).to_be_visible()


@pytest.mark.slow
def test_nothing_to_show_and_what_comes_later(visit, watch, tmp_path):
    """No run, a link to one that is not there, and one without a snapshot that gets its first."""
    viewer = watch(tmp_path)
    page, lost = visit(viewer.url), visit(f"{viewer.url}#runs=0123456789ab&layer=x")
    expect(page.locator("#none")).to_contain_text("There are no runs in this folder yet.")
    expect(page.locator("#none code")).to_have_text(f"fadeviz record --out {tmp_path}/NAME")
    expect(page.locator("#filters")).to_be_hidden()
    expect(lost.locator(".missing")).to_have_text("This run is not there (any more).")
    run = make_run(tmp_path / "a", steps=())
    expect(page.locator("#filters")).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 260})
    page.evaluate("scrollTo(0, 1000)")
    row(page, "a").locator("a").click()
    expect(page.locator(".missing")).to_have_text("No whole snapshot.")
    assert page.evaluate("scrollY") == 0
    assert page.locator("#slider").is_hidden()
    add_snapshot(run.path, 5, 2.0)
    expect(tile(page, "FADE").locator(".range span").first).to_have_text("2", timeout=4000)
    assert page.locator("#step").inner_text() == "step 5"


@pytest.mark.slow
def test_predictions_are_in_the_colours_of_their_classes(visit, watch, tmp_path):
    run = make_run(tmp_path / "a", steps=())
    store = SnapshotStore(run.path, run.run_id)
    predicted = np.zeros((2, 48, 64), np.uint8)
    predicted[0, :20] = 2
    predicted[1, :, :9] = 1
    for step in (0, 5):
        maps = np.ones((2, 24, 32), np.float32)
        store.write(step, [Snapshot(step, LAYER, 0, "feature", maps)], np.roll(predicted, step, axis=1))
    classes = {"predictions": "classes", "classes": 3}
    store.write_info(type(run.info).from_dict({**run.info.to_dict(), **classes}))
    viewer = watch(tmp_path)
    page = visit(viewer.url)
    open_runs(page, "a")
    page.locator("#kind").select_option("prediction")
    for image in (1, 0):
        page.locator("#image").select_option(str(image))
        for at, step in enumerate((0, 5)):
            go_to(page, at)
            expect(tile(page, "FADE").locator(".frame canvas")).to_have_attribute("width", "64")
            expected = colour_classes(np.roll(predicted, step, axis=1)[image], 3)
            np.testing.assert_array_equal(shown(page, "FADE"), expected)
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "fadeviz_prediction.png"


@pytest.mark.slow
def test_hostile_names_are_text(visit, watch, tmp_path):
    run = make_run(tmp_path / "runs" / HOSTILE.replace("/", "_") / "a", run_id="a")
    path = run.path
    for step in STEPS[:2]:
        maps = np.ones((2, 24, 32), np.float32)
        SnapshotStore(path, "a").write(step, [Snapshot(step, HOSTILE, 0, "feature", maps)])
    for file in sorted((path / "snapshots").iterdir())[2:]:
        file.unlink()
    info = {**run.info.to_dict(), "title": HOSTILE, "network_title": HOSTILE, "message": HOSTILE, "status": "failed"}
    info |= {"observation": {"names": [HOSTILE, "x"]}, "data": {"name": HOSTILE}, "upsampler": HOSTILE}
    SnapshotStore(path, "a").write_info(type(run.info).from_dict(info))
    viewer = watch(tmp_path / "runs")
    page = visit(viewer.url)
    expect(page.locator("#body a")).to_have_text(HOSTILE)
    page.locator("#body a").click()
    page.wait_for_selector(".tile .frame canvas[aria-label]")
    expect(page.locator("#layer")).to_have_value(HOSTILE)
    assert page.title() == f"{HOSTILE} · fadeviz"
    assert page.locator("img[src=x]").count() == 0
    assert HOSTILE in page.locator("#caption").inner_text()


def serve(folder, port):
    command = [sys.executable, "-m", "fadeviz", "view", str(folder), "--no-browser", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    line = process.stdout.readline()
    assert line.startswith("http"), line
    return process, line.split()[0]


@pytest.mark.slow
def test_two_pages_and_the_server_killed_and_back(visit, tmp_path):
    make_run(tmp_path / "a", steps=STEPS[:3])
    process, url = serve(tmp_path, 0)
    refused = "ERR_CONNECTION_REFUSED|Failed to load resource|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE"
    try:
        pages = [visit(url, complaint=refused) for _ in range(2)]
        for page in pages:
            open_runs(page, "a")
        add_snapshot(tmp_path / "a", 30, 3.0)
        for page in pages:
            expect(page.locator("#step")).to_have_text("step 30")
        process.send_signal(signal.SIGKILL)
        process.wait()
        for page in pages:
            expect(page.locator("#connection")).to_contain_text("no answer from the server since")
        pages[0].locator("#slider").fill("1")  # what was shown before is kept
        expect(tile(pages[0], "FADE").locator(".frame canvas")).to_have_attribute(
            "aria-label", re.compile("at step 30|at step 10")
        )
        add_snapshot(tmp_path / "a", 40, 4.0)
        process.stdout.close()
        process, _ = serve(tmp_path, url.split(":")[2].strip("/"))
        for page in pages:
            expect(page.locator("#connection")).to_have_text("live")
        expect(pages[1].locator("#step")).to_have_text("step 40")
        expect(tile(pages[1], "FADE").locator(".range span").first).to_have_text("4")
        expect(pages[0].locator("#step")).to_have_text("step 10")
        settle(pages[0])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests below a prefix on, without it, with the Host header as it came: as jupyter-server-proxy does."""

    prefix = "/user/me/proxy/1"
    port = 0

    def do_GET(self):
        if not self.path.startswith(f"{self.prefix}/"):
            self.send_error(404)
            return
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{self.path.removeprefix(self.prefix)}")
        for name in ("Host", "Sec-Fetch-Site"):
            if name in self.headers:
                request.add_header(name, self.headers[name])
        with urllib.request.urlopen(request) as answer:
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.mark.slow
def test_behind_a_proxy(visit, watch, listen, folder):
    """Under a prefix that the proxy removes."""
    viewer = watch(folder, address=f"http://127.0.0.1:{listen(Proxy)}{Proxy.prefix}/")
    Proxy.port = viewer.port
    page = visit(viewer.url)
    open_runs(page, "fade0")
    settle(page)
    with page.expect_download() as download:
        page.locator("#save").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


class Notebook(http.server.BaseHTTPRequestHandler):
    """A page of another origin with the viewer in a frame."""

    body = b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.body)

    log_message = Proxy.log_message


@pytest.mark.slow
def test_in_a_notebook(visit, watch, listen, folder):
    viewer = watch(folder)
    html = f"<!doctype html><title>notebook</title><link rel=icon href=data:,>{viewer._repr_html_()}"
    Notebook.body = html.encode()
    page = visit(f"http://localhost:{listen(Notebook)}/", complaint=re.escape(viewer.url))
    inside = page.frame_locator("iframe")
    expect(inside.locator("#counted")).to_have_text("3 runs")
    inside.locator("#body a").first.click()
    expect(inside.locator(".tile .frame canvas").first).to_have_attribute("aria-label", re.compile("at step"))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_scrolls_sideways_and_text_can_be_read(visit, viewer, scheme):
    page = visit(viewer.url, color_scheme=scheme, reduced_motion="reduce")
    expect(page.locator("#body tr")).to_have_count(3)
    for opened in (False, True):
        if opened:
            open_runs(page, "fade0", "fade1", "carafe")
            page.locator("#kind").select_option("channels")
        for width in (360, 390, 560, 768, 901, 1280, 1920, 2560):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (width, opened)
        page.set_viewport_size({"width": 1280, "height": 900})
        low = page.evaluate(CONTRAST)
        assert low == [], low


RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit, viewer, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.base", reason='needs axe: pip install ".[browser]"')
    page = visit(viewer.url, viewport={"width": width, "height": 844}, color_scheme=scheme, reduced_motion="reduce")
    expect(page.locator("#body tr")).to_have_count(3)
    page.evaluate(axe.AXE_SCRIPT)

    def check():
        result = page.evaluate(f"axe.run({{ runOnly: {RULES} }})")
        assert len(result["passes"]) > 25
        assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in result["violations"]] == []

    check()
    open_runs(page, "fade0", "fade1", "carafe")
    settle(page)
    for arrangement in ("side", "overlay", "difference"):
        page.locator(f"input[name=arrangement][value={arrangement}]").check()
        check()


CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const channels = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([red, green, blue]) => {
        const [r, g, b] = [red, green, blue].map((one) => one / 255)
            .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let one = element; one; one = one.parentElement) {
            const colour = channels(getComputedStyle(one).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return [255, 255, 255];
    };
    const low = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!own || !element.checkVisibility() || element.matches(":disabled, script, option")) continue;
        const [text, paper] = [channels(getComputedStyle(element).color), behind(element)].map(light);
        const ratio = (Math.max(text, paper) + 0.05) / (Math.min(text, paper) + 0.05);
        if (ratio < 4.5) low.push([element.tagName, element.className, element.textContent.slice(0, 30), ratio]);
    }
    return low;
}"""


@pytest.mark.slow
def test_every_control_has_a_name(visit, viewer):
    page = visit(viewer.url)
    expect(page.locator("#body tr")).to_have_count(3)
    for opened in (False, True):
        if opened:
            open_runs(page, "fade0")
        for control in page.locator("input:visible, select:visible, button:visible, a:visible").all():
            snapshot = control.aria_snapshot()
            assert re.search(r'"[^"]+"', snapshot), snapshot


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """500 runs with 100 snapshots each, most of which are links to the same files' content."""
    return make_many(tmp_path_factory.mktemp("many"), 500, 100)


def make_many(folder, runs, snapshots):
    model = make_run(folder / "run000", run_id="same", steps=tuple(range(0, 10 * snapshots, 10)), size=(64, 64))
    info = model.info.to_dict()
    for number in range(1, runs):
        path = folder / f"run{number:03d}"
        shutil.copytree(folder / "run000", path, copy_function=os.link)
        (path / "run.json").unlink()
        changed = {**info, "config": {"seed": number, "data": "drawn"}, "title": ("FADE", "CARAFE")[number % 2]}
        SnapshotStore(path, "same").write_info(type(model.info).from_dict(changed))
        (path / "metrics.jsonl").write_text(json.dumps({"step": 990, "loss": 1 / number, "miou": number / 1000}) + "\n")
    return folder


@pytest.mark.slow
def test_500_runs_of_100_snapshots(visit, watch, many):
    viewer = watch(many)
    read = functools.partial(urllib.request.urlopen, timeout=60)
    with read(f"{viewer.url}api/runs") as answer:
        first = json.loads(answer.read())
    assert len(first["runs"]) == 500
    time.sleep(0.5)
    begin = time.monotonic()
    with read(f"{viewer.url}api/runs") as answer:
        answer.read()
    assert time.monotonic() - begin < 0.5
    page = visit(viewer.url)
    expect(page.locator("#counted")).to_have_text("500 runs", timeout=10000)
    begin = time.monotonic()
    page.locator("#search").fill("carafe seed 41")
    expect(page.locator("#counted")).to_have_text("10 of 500 runs")  # 41, 141 ... and 411, 413 ... 419
    assert time.monotonic() - begin < 1.5
    open_runs(page, "run041", "run411")
    frames = page.evaluate(
        """async (ids) => {
            const taken = [];
            for (const step of [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]) {
                const begin = performance.now();
                const path = `api/run/${ids}/map?step=${step}&layer=decoder.3.upsample&kind=feature`;
                await (await fetch(path)).arrayBuffer();
                taken.push(performance.now() - begin);
            }
            return taken.sort((a, b) => a - b);
        }""",
        next(entry["id"] for entry in first["runs"] if entry["place"] == "run499"),
    )
    assert frames[len(frames) // 2] < 50, frames
