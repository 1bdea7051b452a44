"""A real browser for the tests of pages, in which time stands still where it must."""

import contextlib
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

PIXELS = """canvas => {
    // From a copy that is made to be read: reading the page's own canvases again and again makes the browser complain.
    const { width, height } = canvas;
    const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    return [height, width, ...copy.getImageData(0, 0, width, height).data];
}"""
"""Gives a canvas's height, width and RGBA values."""


def need_browser():
    """Playwright, or skips the test or the module that calls it."""
    playwright = pytest.importorskip("playwright.sync_api", reason='needs playwright: pip install ".[browser]"')
    if CHROMIUM is None:
        pytest.skip("needs chromium: apt-get install --no-install-recommends chromium", allow_module_level=True)
    playwright.expect.set_options(timeout=20_000)  # milliseconds; on a busy machine the usual five seconds pass
    return playwright


@contextlib.contextmanager
def open_browser():
    with need_browser().sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


def stop_time(page):
    """From here on timers run in ``page.clock.run_for`` alone, so that a busy machine changes nothing that is shown."""
    page.clock.install(time=0)
    page.clock.pause_at(1)


def milliseconds_a_step(page):
    return int(page.locator("#speed").input_value())


def play_through(page, steps):
    """Lets the maps that are played go on, and fails unless they go through these steps, one at a time."""
    for step in steps:
        for _ in range(500):  # the next timer is set when the maps of this step are there
            page.clock.run_for(milliseconds_a_step(page))
            if page.locator("#step").text_content() == f"step {step}":
                break
        else:
            raise AssertionError(f"step {step} was not played, but {page.locator('#step').text_content()}")
