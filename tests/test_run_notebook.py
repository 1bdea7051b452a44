"""Runs in a notebook: they show themselves without asking for anything, whatever they are called."""

import base64
import html
import html.parser
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

import fadeviz
from fadeviz import FadevizError, Run, open_run
from fadeviz.page import json_text
from fadeviz.page.notebook import FRAMES
from fadeviz.render.colormap import NON_FINITE, colorize
from fadeviz.render.frames import select_frames
from fadeviz.render.grid import write_grid
from fadeviz.render.selection import MapSelection
from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from pages import open_browser
from render_runs import LAYER, STEPS, make_run

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><!-- $x$ & \u2028"
LAYER_NAME = HOSTILE.replace("/", "").replace("\u2028", "")


@pytest.fixture
def run(tmp_path):
    path = make_run(tmp_path / "run").path
    store = SnapshotStore(path, "a1b2c3")
    for step in (1, 10, 20, 110):
        store.append_metrics({"step": step, "loss": 1 / (1 + step)})
    store.append_metrics({"step": 110, "miou": 0.625})
    return open_run(path)


class Elements(html.parser.HTMLParser):
    """The elements of a page, with their attributes and what stands in them."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text, self.script = [], "", ""
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.script += data
        else:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]

    @property
    def name(self):
        return self.found[0][1]["id"]

    @property
    def data(self):
        """What the script is given."""
        return json.loads(self.script.rpartition(f'("{self.name}", ')[2].removesuffix(");})();"))


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def test_it_is_a_run(tmp_path):
    path = make_run(tmp_path / "run").path
    run = open_run(path)
    assert isinstance(run, Run)
    assert isinstance(run, Run)
    assert fadeviz.open_run is open_run
    assert "seed 0" in open_run(str(path))._repr_html_()


def test_importing_loads_little():
    code = (
        "import sys, fadeviz; run = fadeviz.open_run\n"
        "print([name for name in ('torch', 'matplotlib', 'PIL', 'fsspec', 'xarray', 'IPython') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


class TestPage:
    def test_its_frames_are_the_grids(self, run):
        page = Elements(run._repr_html_())
        assert page.data["steps"] == list(STEPS)
        assert [kind["name"] for kind in page.data["kinds"]] == ["feature", "gradient"]
        for kind in page.data["kinds"]:
            (sequence,) = select_frames([run], MapSelection(kind=kind["name"]))
            assert len(kind["frames"]) == len(STEPS)
            for frame, unit in zip(kind["frames"], sequence.unit, strict=True):
                assert np.array_equal(pixels(frame), colorize(unit, "gray"))
            low, high = sequence.limits[3]
            assert kind["ranges"][3] == f"{low:.3g} to {high:.3g}".replace("-", "−")

    def test_its_words(self, run):
        page = Elements(run._repr_html_())
        assert "FADE SegNet · seed 0 · run a1b2c3 · finished · 12 snapshots, steps 0 to 110" in page.text
        assert f"SegNet, {LAYER}. Feature: mean over channels of the layer's output. Gradient: ReLU" in page.text
        assert "Normalisation: each frame spans its own minimum to maximum." in page.text
        assert "Image: disc_0." in page.text
        assert page.text.count("ReLU of d loss / d output, then the sum over channels.") == 1
        assert page.data["metrics"][1:3] == ["loss 0.0909", "loss 0.0476"]
        assert page.data["metrics"][-1] == "loss 0.00901, mIoU 0.625"
        assert page.data["metrics"][0] == page.data["metrics"][5] == ""

    def test_what_it_does_not_show(self, run, tmp_path):
        said = "Also recorded: 1 more image, channels, gate; see run.grid(image=..., kind=...)."
        assert said in Elements(run._repr_html_()).text
        several = open_run(make_run(tmp_path / "several", calls=3).path)
        said = "Also recorded: 1 more image, channels, gate, calls 1, 2; see run.grid(image=..., kind=..., call=...)."
        assert said in Elements(several._repr_html_()).text
        assert f"{LAYER}, call 0 of 3 (counted from 0). Feature" in Elements(several._repr_html_()).text

    def test_another_call(self, tmp_path):
        several = open_run(make_run(tmp_path / "several", calls=2).path)
        words = " ".join(text.get_text() for text in several.grid(call=1).findobj(Text))
        assert f"{LAYER}, call 1 of 2 (counted from 0)." in words

    def test_the_table_where_no_script_runs(self, run):
        page = Elements(run._repr_html_())
        told = [image["alt"] for image in page.all("img")]
        assert told[:2] == ["image", "true mask"]
        steps = [0, 20, 40, 70, 90, 110]
        assert told[2:] == [f"{kind}, step {step}" for kind in ("feature", "gradient") for step in steps]
        assert len(page.all("th")) == 1 + 6 + 2 + 1
        observed = [pixels(image["src"].partition("base64,")[2]) for image in page.all("img")[:2]]
        assert np.array_equal(observed[0], run.observation[0][0])
        assert np.array_equal(observed[1][..., 0], run.observation[1][0] * 255)
        assert not page.all("input")  # no slider that does nothing

    def test_nothing_is_asked_for(self, run):
        page = Elements(run._repr_html_())
        for tag, attributes in page.found:
            assert tag in ("div", "b", "img", "table", "tr", "th", "td", "br", "p", "script")
            for name, value in attributes.items():
                assert name in ("id", "class", "style", "src", "alt", "title", "width")
                assert name != "src" or value.startswith("data:image/png;base64,")
                assert "url(" not in value
        script = page.script.partition('("fadeviz-')[0].replace("http://www.w3.org/2000/svg", "")  # a name, no address
        assert not re.search(r"https?:|//|fetch|import|innerHTML|eval", script)

    def test_two_do_not_clash(self, run):
        assert Elements(run._repr_html_()).name != Elements(run._repr_html_()).name

    def test_names_stay_text(self, tmp_path):
        store = SnapshotStore(tmp_path, "x")
        store.write_info(
            RunInfo.from_dict({
                "upsampler": HOSTILE, "title": HOSTILE, "network": HOSTILE, "network_title": HOSTILE, "status": HOSTILE,
                "config": {"data": HOSTILE}, "observation": {"names": [HOSTILE]},
            })
        )  # fmt: skip
        store.write_observation(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4), np.uint8))
        store.write(0, [Snapshot(0, LAYER_NAME, 0, "feature", np.ones((1, 4, 4)))])
        page = Elements(open_run(tmp_path)._repr_html_())
        assert {tag for tag, _ in page.found} == {"div", "b", "img", "table", "tr", "th", "td", "br", "p", "script"}
        assert "<img src=x onerror" in page.text
        assert not any("onerror" in attributes for _, attributes in page.found)

    def test_what_the_script_is_given_ends_no_script(self):
        text = json_text([HOSTILE])
        assert not set("<>&\u2028") & set(text)
        assert json.loads(text) == [HOSTILE]

    @pytest.mark.parametrize(("steps", "size"), [(100, 224), (60, 128), (3, 512), (500, 8)])
    def test_its_size_is_bounded(self, tmp_path, steps, size):
        maps = np.random.default_rng(0).normal(size=(steps, size, size)).astype(np.float32)
        run = make_run(tmp_path, steps=range(steps), size=(size, size), maps=maps, channels=2)
        text = open_run(run.path)._repr_html_()
        page = Elements(text)
        assert len(text.encode()) < 1_000_000
        shown = page.data["steps"]
        assert len(shown) > 10 or len(shown) == steps
        assert (shown[0], shown[-1]) == (0, steps - 1)
        assert len(shown) <= FRAMES
        if steps > FRAMES:
            assert f"{len(shown)} of {steps} recorded steps." in page.text
        side = size // -(-size // 128)
        assert pixels(page.data["kinds"][0]["frames"][0]).shape == (side, side, 3)
        assert (f"Maps of {size}x{size} cells, shown as averages" in page.text) == (size > 128)

    def test_cells_that_are_not_finite(self, tmp_path):
        maps = np.ones((len(STEPS), 24, 32), np.float32)
        maps[2, 4, 5:8] = np.nan, np.inf, -np.inf
        page = Elements(open_run(make_run(tmp_path, maps=maps).path)._repr_html_())
        shown = pixels(page.data["kinds"][0]["frames"][2])
        assert (shown[4, 5:8] == NON_FINITE).all()
        assert "Magenta: 5 cells that are NaN or infinite." in page.text  # of both kinds

    def test_a_run_of_other_kinds(self, tmp_path):
        for name, kind, shape in (("gate", "gate", (2, 4, 5)), ("many", "channels", (1, 6, 4, 5))):
            store = SnapshotStore(tmp_path / name, "x")
            store.write_info(RunInfo())
            store.write_observation(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 4), np.uint8))
            store.write(7, [Snapshot(7, "a", 0, kind, np.random.default_rng(0).normal(size=shape))])
            page = Elements(open_run(tmp_path / name)._repr_html_())
            assert page.data["steps"] == [7]
            assert [one["name"].partition(",")[0] for one in page.data["kinds"]] == [kind]

    def test_a_run_that_cannot_be_drawn(self, tmp_path):
        path = tmp_path / "a <b>"
        store = SnapshotStore(path, "x")
        store.write_info(RunInfo())
        told = open_run(path)._repr_html_()
        assert html.unescape(told).startswith(f"<pre>Run('{path}')\n{path} has no whole snapshot. Record it again")
        assert "<b>" not in told
        store.write(0, [Snapshot(0, "a", 0, "feature", np.ones((1, 4, 4)))])
        assert "observation.safetensors is missing" in open_run(path)._repr_html_()

    def test_damage_is_told(self, run):
        (run.path / "snapshots" / "step_000050.safetensors").write_bytes(b"")
        assert "11 snapshots, steps 0 to 110 · 1 files damaged" in open_run(run.path)._repr_html_()


class TestGrid:
    def test_is_what_the_command_draws(self, run, tmp_path):
        maps = {"kind": "gradient", "normalize": "run", "steps": [0, 50, 110]}
        figure = run.grid(colormap="magma", columns=2, **maps)
        assert isinstance(figure, matplotlib.figure.Figure)
        write_grid([run], tmp_path / "grid.png", MapSelection(**maps), colormap="magma", columns=2)
        shown = np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB")).astype(int)
        with Image.open(tmp_path / "grid.png") as file:
            written = np.asarray(file.convert("RGB")).astype(int)
        assert shown.shape == written.shape
        assert np.abs(shown - written).max() <= 4  # a colour beside it, in the bar
        assert (shown != written).mean() < 0.01

    def test_several_runs(self, run, tmp_path):
        other = open_run(make_run(tmp_path / "other", run_id="ffff", upsampler="carafe", outline_first=False).path)
        figure = run.grid(other, steps=[0, 110])
        texts = {text.get_text() for axes in figure.axes for text in axes.texts}
        assert {"FADE", "CARAFE", "step 0", "110"} <= texts
        with pytest.raises(FadevizError, match="are the same run"):
            run.grid(run)

    def test_can_be_cropped_and_resized(self, run):
        """As notebooks do: images stay in their frames."""
        figure = run.grid(steps=[0])
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=2 * figure.dpi, bbox_inches="tight", pad_inches=0)
        picture = np.asarray(Image.open(file).convert("RGB"))
        horse = (picture == (150, 90, 40)).all(axis=-1)
        frame = (picture == 153).all(axis=-1)  # the grey line around every cell
        (top, left), (bottom, right) = np.argwhere(horse).min(0), np.argwhere(horse).max(0)
        assert horse.sum() > 1000
        middle = (top + bottom) // 2
        assert frame[middle, :left].any()  # a frame's line to the left of the disc, and one to its right
        assert frame[middle, right:].any()
        lines = np.flatnonzero(frame[middle])
        gap = [edge for edge in lines if edge < left][-1], next(edge for edge in lines if edge > right)
        assert abs((left - gap[0]) - (gap[1] - right)) <= 6  # the disc is in the middle of its cell

    def test_pyplot_knows_nothing_of_it(self, run):
        import matplotlib
        import matplotlib.pyplot as plt

        settings, figures = dict(matplotlib.rcParams), plt.get_fignums()
        assert run.grid()._repr_png_().startswith(b"\x89PNG")
        assert (dict(matplotlib.rcParams), plt.get_fignums()) == (settings, figures)

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            ({"kind": "gradiant"}, "no kind 'gradiant'. Nearest: 'gradient'"),
            ({"steps": [5]}, "has no snapshot of step 5"),
            ({"colormap": "greys"}, "no colour map 'greys'"),
            ({"columns": 0}, "columns=0: must be at least 1"),
        ],
    )
    def test_wrong_options(self, run, options, line):
        with pytest.raises(FadevizError, match=line):
            run.grid(**options)


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def show(browser, tmp_path):
    """Opens HTML as a notebook's page; every complaint and every request fails the test."""
    contexts, complaints = [], []
    file = tmp_path / "page.html"

    def open_page(*outputs, scripts=True):
        file.write_text(f"<!doctype html><meta charset=utf-8><title>mine</title>{''.join(outputs)}")
        context = browser.new_context(java_script_enabled=scripts)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: complaints.append(request.url) if outside(request.url) else None)
        page.goto(file.as_uri())
        return page

    def outside(url):
        return url != file.as_uri() and not url.startswith("data:")

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def shown(page, view, tile):
    """The pixels of a tile as the browser holds them: image, mask, feature, gradient."""
    image = page.locator(".fadeviz-view").nth(view).locator("figure img").nth(tile)
    return pixels(image.get_attribute("src").partition("base64,")[2])


def test_the_slider_moves(run, show):
    page = show(run._repr_html_())
    (feature,), (gradient,) = select_frames([run]), select_frames([run], MapSelection(kind="gradient"))
    slider = page.locator("input[type=range]")
    assert slider.count() == 1
    assert page.locator(".fadeviz-view span").text_content() == "step 110: loss 0.00901, mIoU 0.625"
    assert not page.locator("table").is_visible()
    for at in (0, 2, 11):
        slider.fill(str(at))
        assert page.locator(".fadeviz-view span").text_content().startswith(f"step {STEPS[at]}")
        assert np.array_equal(shown(page, 0, 2), colorize(feature.unit[at], "gray"))
        assert np.array_equal(shown(page, 0, 3), colorize(gradient.unit[at], "gray"))
    assert np.array_equal(shown(page, 0, 0), run.observation[0][0])
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".fadeviz-view span").text_content() == "step 100"
    assert slider.get_attribute("aria-valuetext") == "step 100"
    captions = page.locator("figcaption").all_text_contents()
    assert captions[:2] == ["image", "true mask"]
    assert captions[2].startswith("feature\n")
    assert page.locator("figure img").nth(2).evaluate("image => image.naturalWidth") == 32


# As JupyterLab does: scripts in inserted HTML do not run by themselves.
INSERT = """html => {
    document.body.innerHTML = html;
    for (const old of document.querySelectorAll("script")) {
        const script = document.createElement("script");
        script.textContent = old.textContent;
        old.replaceWith(script);
    }
}"""


@pytest.mark.parametrize("inserted", [False, True])
def test_two_outputs_move_by_themselves(run, tmp_path, show, inserted):
    other = open_run(make_run(tmp_path / "other", upsampler="carafe", outline_first=False).path)
    first, second = run._repr_html_(), other._repr_html_()
    outputs = (first, second, first)  # the first is shown twice, as in a second view of a notebook
    page = show() if inserted else show(*outputs)
    if inserted:
        page.evaluate(INSERT, "".join(outputs))
    sliders = page.locator("input[type=range]")
    assert sliders.count() == 3
    sliders.nth(0).fill("0")
    sliders.nth(1).fill("5")
    spans = page.locator(".fadeviz-view span").all_text_contents()
    assert [text.partition(":")[0] for text in spans] == ["step 0", "step 50", "step 110"]
    assert np.array_equal(shown(page, 0, 2), colorize(select_frames([run])[0].unit[0], "gray"))
    assert np.array_equal(shown(page, 1, 2), colorize(select_frames([other])[0].unit[5], "gray"))


def test_without_scripts_there_is_a_table(run, show):
    page = show(run._repr_html_(), scripts=False)
    assert page.locator("table").is_visible()
    assert page.locator("input").count() == 0
    assert page.locator("img").count() == 2 + 2 * 6
    assert page.locator("td img").first.evaluate("image => image.naturalWidth") == 32


def test_names_do_nothing_in_the_browser(tmp_path, show):
    store = SnapshotStore(tmp_path / "run", "x")
    store.write_info(RunInfo.from_dict({"upsampler": HOSTILE, "title": HOSTILE, "observation": {"names": [HOSTILE]}}))
    store.write_observation(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4), np.uint8))
    store.write(0, [Snapshot(0, LAYER_NAME, 0, "feature", np.ones((1, 4, 4)))])
    page = show(open_run(tmp_path / "run")._repr_html_())
    assert page.locator("input[type=range]").count() == 1
    assert page.title() == "mine"
    assert page.locator("img[src=x]").count() == 0


# --- the example ------------------------------------------------------------------------------------------------------

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


def test_the_example_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert "/tmp" not in NOTEBOOK.read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Proactor event loop does not implement:RuntimeWarning")
def test_the_example_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason='needs nbformat: pip install ".[notebook]"')
    nbclient = pytest.importorskip("nbclient", reason='needs nbclient: pip install ".[notebook]"')
    pytest.importorskip("ipykernel", reason='needs ipykernel: pip install ".[notebook]"')
    pytest.importorskip("xarray", reason='needs xarray: pip install ".[xarray]"')
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):  # nothing of this machine
        monkeypatch.setenv(name, str(tmp_path / name))
    page = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(page, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable  # this environment's kernel, whichever is registered
    client.execute()
    outputs = [output for cell in page.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output["data"] for output in outputs if "data" in output]
    (page,) = [Elements(data["text/html"]) for data in shown if "fadeviz-still" in data.get("text/html", "")]
    assert page.data["steps"] == list(range(0, 61, 3))
    assert [kind["name"] for kind in page.data["kinds"]] == ["feature", "gradient"]
    figures = [Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) for data in shown if "image/png" in data]
    assert len(figures) == 2  # the grid and the curve
    assert all(figure.format == "PNG" and figure.width > 300 for figure in figures)
    told = "".join(output.get("text", "") for output in outputs)
    assert "Maps(bilinear, up, feature: step 21, image 2, y 64, x 64; float32, 0.7 MB)" in told
    assert any("xarray" in data.get("text/html", "") for data in shown)
    assert (tmp_path / "outputs" / "notebook" / "run.json").exists()
