"""The page to mail: what it holds, that it fits, that names stay text, and that its maps are the library's."""

import base64
import colorsys
import hashlib
import itertools
import json
import math
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main

import fadeviz
from fadeviz import FadevizError
from fadeviz.analysis.result import analyze
from fadeviz.onset_panels import kymograph_panels
from fadeviz.page import PALETTES
from fadeviz.render import style
from fadeviz.render.colormap import palette, signed_palette, to_indices
from fadeviz.render.labels import format_number
from fadeviz.render.normalize import find_limits, limits_by_scope, normalize
from fadeviz.render.panels import kymograph_span
from fadeviz.report import text as page_text
from fadeviz.report import write_report
from fadeviz.report.charts import signature_data
from fadeviz.report.codec import pack
from fadeviz.report.contour import contour_path
from fadeviz.report.page import balanced
from fadeviz.report.sequences import page_layers, select_sequences, shortest, text_size
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from onset_runs import make_onset_run
from render_runs import LAYER, STEPS, make_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028\"'&{{data}}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """FADE with two seeds, CARAFE with one."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "fade0", run_id="fade0")
    make_run(folder / "fade1", run_id="fade1", seed=1)
    make_run(folder / "carafe", run_id="carafe", upsampler="carafe", outline_first=False)
    return [fadeviz.open_run(folder / name) for name in ("fade0", "fade1", "carafe")]


CHANNELS = "channels: no single map per image; draw them with fadeviz grid --kind channels"
"""What no page of the runs above shows."""


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert write_report(runs, path) == (CHANNELS,)
    return Page(path)


class Page(HTMLParser):
    """A written page taken apart."""

    def __init__(self, path):
        super().__init__()
        self.bytes = path.read_bytes()
        self.text = self.bytes.decode("utf-8")
        self.tags, self.scripts, self.policy, self.style = [], [], "", ""
        self.feed(self.text)
        self.close()
        self.data = json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "data"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "script":
            self.scripts.append((attributes, ""))
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]

    def handle_data(self, data):
        tag = self.tags[-1][0] if self.tags else ""
        if tag == "script" and self.getpos()[0] and not self.scripts[-1][1]:
            self.scripts[-1] = (self.scripts[-1][0], data)
        elif tag == "style" and not self.style:
            self.style = data

    def sequence(self, element):
        return base64.b64decode(next(text for attributes, text in self.scripts if attributes.get("id") == element))


def unpack(data, steps, height, width, holes):
    """Levels ``(S, h, w)`` and holes of a packed sequence, cell by cell."""
    raw = zlib.decompress(data)
    modes, residuals, rest = raw[:steps], raw[steps : steps * (1 + height * width)], raw[steps * (1 + height * width) :]
    levels = np.zeros((steps, height, width), int)
    for s in range(steps):
        before = levels[s - 1] if modes[s] == 1 and s > 0 else np.zeros((height, width), int)
        left_over = np.zeros((height, width), int)
        for y in range(height):
            for x in range(width):
                if x == 0 or y == 0:
                    guess = left_over[y, x - 1] if x else left_over[y - 1, x] if y else 0
                else:
                    a, b = left_over[y, x - 1], left_over[y - 1, x]
                    guess = sorted((a, b, a + b - left_over[y - 1, x - 1]))[1]
                levels[s, y, x] = (residuals[(s * height + y) * width + x] + guess + before[y, x]) % 256
                left_over[y, x] = levels[s, y, x] - before[y, x]
    bits = (
        np.unpackbits(np.frombuffer(rest, np.uint8))[: levels.size].astype(bool)
        if holes
        else np.zeros(levels.size, bool)
    )
    return levels, bits.reshape(levels.shape)


def library_levels(maps, kind):
    return np.stack([to_indices(normalize(frame, find_limits(frame, kind, scope="frame"))) for frame in maps])


class TestPack:
    @pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (9, 11)])
    @pytest.mark.parametrize("kind", ["feature", "gradient", "gate"])
    def test_the_levels_are_the_librarys(self, size, kind):
        rng = np.random.default_rng(0)
        maps = np.cumsum(rng.normal(size=(5, *size)), axis=0).astype(np.float32) * 1e-7
        packed = pack(maps, kind)
        levels, holes = unpack(packed.data, 5, *size, packed.holes)
        assert (levels == library_levels(maps, kind)).all()
        assert not holes.any()

    def test_packing_stops_where_there_is_no_room(self):
        maps = np.random.default_rng(0).normal(size=(30, 64, 64)).astype(np.float32)  # more than is deflated at once
        whole = pack(maps, "feature")
        size = len(whole.data)
        assert pack(maps, "feature", limit=size) == whole
        assert pack(maps, "feature", limit=size - 1) is None
        assert pack(maps, "feature", limit=size // 4) is None

    def test_frames_that_move_little_and_frames_that_jump_are_both_predicted(self):
        rng = np.random.default_rng(1)
        still = rng.normal(size=(20, 20))
        smooth = np.add.outer(np.arange(20.0), np.arange(20.0))
        maps = np.stack([still, still + 1e-3, smooth, smooth[::-1]]).astype(np.float32)
        packed = pack(maps, "feature")
        assert list(zlib.decompress(packed.data)[1:3]) == [1, 0]
        assert (unpack(packed.data, 4, 20, 20, False)[0] == library_levels(maps, "feature")).all()

    def test_holes_constant_frames_and_frames_without_a_finite_cell(self):
        maps = np.random.default_rng(0).normal(size=(4, 5, 7)).astype(np.float32)
        maps[0, 2, 3], maps[0, 4, 6], maps[1], maps[2] = np.nan, np.inf, np.nan, 2.5
        packed = pack(maps, "feature")
        levels, holes = unpack(packed.data, 4, 5, 7, packed.holes)
        assert (holes == ~np.isfinite(maps)).all()
        assert (levels == library_levels(maps, "feature")).all()
        assert (levels[2] == 128).all()
        assert math.isnan(packed.low[1])
        assert math.isnan(packed.high[1])
        assert (packed.low[2], packed.high[2]) == (2.5, 2.5)

    def test_limits_come_through_json_to_the_last_bit(self):
        values = np.float32([0.1, -1e-30, 3.4e38, 1 / 3, np.nan])
        told = json.loads(json.dumps(shortest(values.astype(float).tolist())))
        assert told[-1] is None
        assert (np.float32(told[:-1]) == values[:-1]).all()


class TestLimits:
    @pytest.mark.parametrize("kind", ["feature", "gradient", "gate"])
    def test_run_and_shared_are_those_of_the_library(self, runs, kind):
        chosen = choose(runs)
        sequences = next(one for one in chosen.sequences if one.kind == kind)
        for image in range(2):
            maps = [run.maps(LAYER, kind, image=image)[:] for run in runs]
            own = limits_by_scope(maps, range(3), kind, "run")
            assert [sequences.own[run, image] for run in range(3)] == [limits[0] for limits in own]
            assert sequences.shared[image] == limits_by_scope(maps, range(3), kind, "shared")[0][0]

    def test_a_frame_without_a_finite_cell_does_not_count(self, tmp_path):
        maps = np.random.default_rng(0).uniform(5, 6, size=(len(STEPS), 24, 32)).astype(np.float32)
        maps[4] = np.nan
        run = make_run(tmp_path / "run", maps=maps)
        chosen = choose([run])
        assert chosen.sequences[0].own[0, 0] == find_limits(maps, "feature")
        assert chosen.sequences[0].own[0, 0].low > 4


def choose(runs, budget=10**7, seeds=None, **options):
    seeds = seeds if seeds is not None else [0, 1, 0][: len(runs)]
    layers = page_layers(runs, dict.fromkeys(runs, LAYER))
    return select_sequences(runs, seeds, STEPS, 2, budget, layers=layers, advice="Give more.", **options)


class TestRoom:
    def test_features_come_first_then_gradients(self, runs):
        everything = choose(runs)
        assert [one.kind for one in everything.sequences] == ["feature", "gradient", "gate"]
        assert everything.left_out == ()
        sizes = [sum(map(text_size, one.packed.values())) for one in everything.sequences]
        fewer = choose(runs, budget=sizes[0] + sizes[1])
        assert [one.kind for one in fewer.sequences] == ["feature", "gradient"]
        assert fewer.left_out == (f"gate of {LAYER}: no room",)

    def test_seeds_go_before_images(self, runs):
        costs = {place: text_size(one) for place, one in choose(runs).sequences[0].packed.items()}
        first_seeds = sum(cost for (run, _), cost in costs.items() if run != 1)
        one = choose(runs, budget=first_seeds, kinds=["feature"])
        assert (one.runs, one.images) == ((0, 2), 2)
        assert str(runs[1].path) in one.left_out[0]
        two = choose(runs, budget=first_seeds - 1, kinds=["feature"])
        assert (two.runs, two.images) == ((0, 2), 1)
        assert two.left_out[0] == "images 2 to 2: no room for their maps"
        assert set(two.sequences[0].packed) == {(0, 0), (2, 0)}

    def test_no_room_for_one_image_is_an_error(self, runs):
        with pytest.raises(FadevizError, match=r"one image of decoder\.3\.upsample, feature, takes .* Give more\."):
            choose(runs, budget=100)

    def test_other_layers_follow_coarse_ones_first(self, tmp_path):
        run = with_layers(tmp_path / "run", {LAYER: 24, "decoder.4.upsample": 48, "decoder.0.upsample": 6})
        chosen = choose([run])
        assert [(one.layer, one.kind) for one in chosen.sequences] == [
            (layer, kind)
            for layers in ([LAYER], ["decoder.0.upsample", "decoder.4.upsample"])
            for kind in ("feature", "gradient")
            for layer in layers
        ]

    def test_the_file_is_never_larger_than_asked_for(self, runs, tmp_path, page):
        whole = len(page.bytes)
        seen = set()
        for limit in np.linspace(0.75 * whole, whole, 8):
            notes = write_report(runs, tmp_path / "a.html", max_mb=limit / 1e6)
            assert (tmp_path / "a.html").stat().st_size <= limit
            seen.add(notes)
            text = (tmp_path / "a.html").read_text("utf-8")
            assert all(note.replace("'", "&#x27;") in text for note in notes)
        assert len(seen) > 1  # more and less room was tried

    def test_many_small_maps_take_more_than_they_hold(self, tmp_path):
        """What surrounds a map in the page is more than a map of 2x2, and was once not counted in full."""
        names = [f"decoder.{i}.a_module_with_a_name_of_some_length.upsample" for i in range(12)]
        run = with_layers(tmp_path / "run", {LAYER: 24, **dict.fromkeys(names, 2)})
        write_report([run], tmp_path / "whole.html")
        whole = (tmp_path / "whole.html").stat().st_size
        limit = whole - 2000
        assert write_report([run], tmp_path / "a.html", max_mb=limit / 1e6)
        assert limit - 5000 < (tmp_path / "a.html").stat().st_size <= limit


def with_layers(path, sides):
    """A run with feature and gradient maps of several layers."""
    make_run(path)
    store = SnapshotStore(path, "a1b2c3")
    rng = np.random.default_rng(0)
    for step in STEPS:
        maps = {layer: rng.normal(size=(2, side, side)).astype(np.float32) for layer, side in sides.items()}
        store.write(
            step, [Snapshot(step, layer, 0, k, m) for layer, m in maps.items() for k in ("feature", "gradient")]
        )
    return fadeviz.open_run(path)


class TestPage:
    def test_it_says_what_was_found(self, page):
        for text in (
            "FADE and CARAFE in SegNet",
            "Does the decoder learn an object’s outline first",
            "disc_0",
            "fade1",
        ):
            assert text in page.text
        assert page.data["steps"] == list(STEPS)
        assert [one["title"] for one in page.data["operators"]] == ["FADE", "CARAFE"]
        assert [run["seed"] for run in page.data["operators"][0]["runs"]] == ["0", "1"]
        assert {figure["name"] for figure in page.data["groups"]} >= {"responses", "spectrum", "continuity", "gate"}

    def test_its_frames_are_the_librarys(self, page, runs):
        checked = 0
        for maps in page.data["maps"]:
            for sequence in maps["sequences"]:
                values = runs[sequence["run"]].maps(maps["layer"], maps["kind"], image=sequence["image"])[:]
                levels, _ = unpack(page.sequence(sequence["element"]), *values.shape, sequence["holes"])
                assert (levels == library_levels(values, maps["kind"])).all()
                assert (np.float32(sequence["low"]) == values.min(axis=(1, 2))).all()
                assert (np.float32(sequence["high"]) == values.max(axis=(1, 2))).all()
                checked += 1
        assert checked == 3 * 2 * 3  # runs, images, kinds

    def test_its_palettes_are_the_librarys(self, page):
        assert set(page.data["palettes"]) == set(PALETTES)
        for name, text in page.data["palettes"].items():
            assert base64.b64decode(text) == palette(name).tobytes()

    def test_the_policy_lets_only_its_own_script_and_style_run(self, page):
        def digest(text):
            return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

        script = next(text for attributes, text in page.scripts if not attributes)
        assert page.policy == (
            f"default-src 'none'; img-src data: blob:; style-src {digest(page.style)}; script-src {digest(script)}; "
            "base-uri 'none'; form-action 'none'"
        )
        assert not any("style" in attributes for _, attributes in page.tags)  # such a policy would refuse them
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)

    def test_it_names_nothing_to_load(self, page):
        assert not [attributes for _, attributes in page.tags if "src" in attributes]
        links = [attributes["href"] for _, attributes in page.tags if "href" in attributes]
        there = {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}
        assert len(links) > 5
        assert set(links) <= there  # places on the page
        assert set(re.findall(r"https?://[^\"' )]*", page.text)) == {"http://www.w3.org/2000/svg"}

    def test_the_same_runs_make_the_same_bytes(self, page, runs, tmp_path):
        write_report([fadeviz.open_run(run.path) for run in runs], tmp_path / "report.html")
        assert (tmp_path / "report.html").read_bytes() == page.bytes

    def test_the_two_responses_have_the_colours_of_the_plots(self, page):
        assert f"--outline: {style.OUTLINE_COLOR}; --interior: {style.INTERIOR_COLOR};" in page.style

    def test_every_element_that_the_script_asks_for_is_there(self, page):
        source = Path(fadeviz.__file__).parent / "page" / "src"
        files = [source / "report.ts", *(source / "report").glob("*.ts"), *(source / "common").glob("*.ts")]
        text = "".join(file.read_text("utf-8") for file in files)
        asked = set(re.findall(r'\b(?:byId|input|select|button)(?:<\w+>)?\("([\w-]+)"\)', text))
        there = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
        assert len(asked) > 25
        assert asked <= there

    def test_responses_have_a_chart_an_operator_and_spectrum_one_a_measure(self, page):
        figures = {figure["name"]: figure["panels"] for figure in page.data["groups"]}
        assert [chart["title"] for chart in figures["responses"]] == ["FADE", "CARAFE"]
        assert {"outline", "interior"} == {line["role"] for line in figures["responses"][0]["curves"]}
        assert all([line["label"] for line in panel["curves"]] == ["FADE", "CARAFE"] for panel in figures["spectrum"])

    def test_differences_and_common_settings_are_apart(self, page):
        table = page.text[page.text.index('<table class="marked"') :]
        table = table[: table.index("</table>")]
        assert "upsampler" in table
        assert "seed" in table
        assert "parameters" not in table
        assert "1234" in page.text[page.text.index("Common settings") :]

    def test_where_things_lie_on_the_machine_is_not_told(self, tmp_path):
        run = make_run(tmp_path / "run")
        path = run.path / "run.json"
        info = json.loads(path.read_text())
        info["config"] |= {"data_dir": "/home/me/secret/horses", "weights": "/home/me/secret/vgg.safetensors"}
        path.write_text(json.dumps({**info, "weights": "vgg.safetensors (0123abcd)"}))
        write_report([fadeviz.open_run(run.path)], tmp_path / "r.html")
        text = (tmp_path / "r.html").read_text("utf-8")
        assert "secret" not in text
        assert "vgg.safetensors (0123abcd)" in text

    def test_of_many_snapshots_some_are_shown_and_all_measured(self, runs, page, tmp_path, monkeypatch):
        monkeypatch.setattr(page_text, "MAX_STEPS", 5)
        path = tmp_path / "thin.html"
        said = "7 of 12 snapshots: the maps and curves show 5, evenly spaced; all of them are measured"
        assert write_report(runs, path)[0] == said
        thin = Page(path)
        assert f"<li>{said}</li>" in thin.text
        assert thin.data["steps"] == [0, 30, 60, 80, 110]
        places = [page.data["steps"].index(step) for step in thin.data["steps"]]
        for ours, all_of_it in zip(thin.data["signature"]["panels"], page.data["signature"]["panels"], strict=True):
            assert ours["value"] == [all_of_it["value"][place] for place in places]
        lines = (
            [line for group in one.data["groups"] for panel in group["panels"] for line in panel["curves"]]
            for one in (thin, page)
        )
        for ours, all_of_it in zip(*lines, strict=True):
            assert ours["middle"] == [all_of_it["middle"][place] for place in places]
        assert len(thin.data["maps"][0]["sequences"][0]["low"]) == 5
        assert re.findall(r'<p class="word">.*?</article>', thin.text) == re.findall(
            r'<p class="word">.*?</article>', page.text
        )

    def test_many_runs_are_rows(self, tmp_path):
        many = [make_run(tmp_path / str(seed), run_id=f"r{seed}", seed=seed) for seed in range(5)]
        write_report(many, tmp_path / "many.html")
        text = (tmp_path / "many.html").read_text("utf-8")
        assert '<th scope="col">folder</th><th scope="col">run</th><th scope="col">seed</th>' in text

    def test_one_run_alone_differs_in_nothing(self, runs, tmp_path):
        write_report(runs[:1], tmp_path / "one.html")
        assert "Different settings" not in (tmp_path / "one.html").read_text("utf-8")

    def test_the_command_makes_the_page_again(self, page, runs, tmp_path, monkeypatch):
        command = re.search(r"<code>(.*?)</code>", page.text)[1].split()
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(main, command[1:])
        assert result.exit_code == 0, result.output
        assert (tmp_path / "report.html").read_bytes() == page.bytes


class TestStrangers:
    """Whoever made a run wrote its run.json: nothing of it may become markup or script."""

    @pytest.fixture
    def hostile(self, tmp_path):
        make_run(tmp_path / "run")
        info = json.loads((tmp_path / "run/run.json").read_text())
        info |= {
            "upsampler": HOSTILE,
            "title": HOSTILE,
            "network": HOSTILE,
            "network_title": HOSTILE,
            "device": HOSTILE,
            "versions": {HOSTILE: HOSTILE},
            "observation": {"names": [HOSTILE, "\ud800 \x00 \u202e"], "mode": HOSTILE},
        }
        info["config"] |= {"data": HOSTILE, HOSTILE: [HOSTILE], "long": "x" * 10_000}
        (tmp_path / "run/run.json").write_text(json.dumps(info))
        write_report([fadeviz.open_run(tmp_path / "run")], tmp_path / "page.html", title=HOSTILE)
        return Page(tmp_path / "page.html")

    def test_names_stay_text(self, hostile, page):
        def elements(one):
            return sorted((tag, tuple(sorted(attributes))) for tag, attributes in one.tags if tag != "div")

        assert "alert(1)" in hostile.text
        assert "<script>alert" not in hostile.text
        assert "<img" not in hostile.text
        assert "\u2028" not in hostile.text
        assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in page.tags}
        assert len([a for a, _ in hostile.scripts if "id" not in a]) == 1
        assert hostile.policy == page.policy
        assert hostile.data["images"][0]["name"].startswith("</script>")
        assert "{{data}}" in hostile.text  # what is put in is not filled in again

    def test_control_characters_and_long_values_are_cut(self, hostile):
        assert hostile.data["images"][1]["name"] == r"\ud800 \x00 \u202e"  # as text
        assert "x" * 199 + "…" in hostile.text
        assert "x" * 200 not in hostile.text

    @pytest.mark.parametrize("change", [{"versions": 3}, {"versions": ["a"]}, {"weights": {"a": [1]}}])
    def test_settings_of_another_shape_are_named(self, tmp_path, change):
        make_run(tmp_path / "run")
        info = json.loads((tmp_path / "run/run.json").read_text()) | change
        (tmp_path / "run/run.json").write_text(json.dumps(info))
        with pytest.raises(FadevizError, match=f"run.json is damaged \\({next(iter(change))} is no"):
            write_report([fadeviz.open_run(tmp_path / "run")], tmp_path / "page.html")
        assert not (tmp_path / "page.html").exists()

    @pytest.mark.parametrize("versions", [{}, {"a": None}, {"torch": ["x"]}])
    def test_odd_versions_are_no_crash(self, tmp_path, versions):
        make_run(tmp_path / "run")
        info = json.loads((tmp_path / "run/run.json").read_text()) | {"versions": versions}
        (tmp_path / "run/run.json").write_text(json.dumps(info))
        write_report([fadeviz.open_run(tmp_path / "run")], tmp_path / "page.html")


class TestContour:
    def test_the_path_runs_between_unlike_pixels(self):
        rng = np.random.default_rng(0)
        for mask in (
            rng.integers(0, 3, size=(9, 12)),
            np.eye(5, dtype=int),
            np.ones((4, 4), int),
            np.zeros((3, 2), int),
        ):
            inside = mask != 0
            drawn = set()
            for x, y, way, length in re.findall(r"M(\d+) (\d+)([hv])(\d+)", contour_path(inside)):
                for i in range(int(length)):
                    drawn.add((int(x) + i * (way == "h"), int(y) + i * (way == "v"), way))
            wanted = set()
            for y in range(mask.shape[0]):
                for x in range(mask.shape[1]):
                    if y and inside[y, x] != inside[y - 1, x]:
                        wanted.add((x, y, "h"))
                    if x and inside[y, x] != inside[y, x - 1]:
                        wanted.add((x, y, "v"))
            assert drawn == wanted


class TestWords:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-12.0, "−12"),
            (0.5, "0.500"),
            (0.99999, "1.00"),
            (-999.99, "−1,000"),
            (0.1234, "0.123"),
            (-12.345, "−12.3"),
            (1234.5, "1,234"),
            (1e-9, "1.00e−9"),
            (-3.4e38, "−3.40e38"),
            (math.nan, "–"),
        ],
    )
    def test_numbers(self, value, text):
        assert format_number(value) == text


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """An analysis of four operators whose answers are known, two seeds each, and its page."""
    folder = tmp_path_factory.mktemp("answered")
    runs = [
        make_onset_run(folder / f"{kind}{seed}", kind, upsampler=kind, seed=seed)
        for kind in ("inward", "outward", "start", "place")
        for seed in (0, 1)
    ]
    write_report(runs, folder / "r.html")
    return analyze(runs), Page(folder / "r.html")


def with_readout(onsets):
    """The same with a readout, that of the next operator."""
    operators = onsets.operators
    following = (*operators[1:], operators[0])
    return replace(
        onsets,
        operators=tuple(
            replace(one, readout=other.map, readout_kymograph=other.kymograph)
            for one, other in zip(operators, following, strict=True)
        ),
    )


class TestAnswer:
    """The first screen: a verdict, a sentence and a distance-time map for each operator, and the table."""

    def test_a_sentence_for_each_operator(self, answered):
        analysis, page = answered
        words = re.findall(r'<p class="word">(.*?)</p>', page.text)
        assert words == ["outline first", "interior first", "outline from the start", "neither"]
        sentences = re.findall(r'<p class="sentence">(.*?)</p>', page.text)
        assert sentences[0].startswith("The outline comes first, by step ")
        assert sentences[2].startswith("The outline is there before training and stays; the interior follows by step ")
        assert sentences[3] == "Shows where objects usually are, but nothing of this object."
        for sentence, whole in zip(sentences, analysis.sentences.values(), strict=True):
            assert whole[0].endswith(sentence[1:])
        assert page.text.index("</article>") < page.text.index('id="viewer"')

    def test_the_table_has_the_numbers_of_the_analysis(self, answered):
        analysis, page = answered
        table = page.text[page.text.index('<div class="onsets">') :]
        table = table[: table.index("</table>")]
        head = re.findall(r'<th scope="col">(.*?)</th>', table)
        assert head == [
            "operator", "seeds", "outline: step 0 → top → end", "by step", "interior: step 0 → top → end",
            "by step", "outline earlier by", "verdict",
        ]  # fmt: skip
        rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table)
        assert [name for name, _ in rows] == ["INWARD", "OUTWARD", "START", "PLACE"]
        for (_, cells), row in zip(rows, analysis.table, strict=True):
            count, outline, by, *_, factor, verdict = re.findall(r"<td>(.*?)</td>", cells)
            assert count == "2"
            assert verdict == row["verdict"]
            numbers = [row[f"outline_{end}"] for end in ("start", "top", "end")]
            told = [float(part.strip("()").replace("\N{MINUS SIGN}", "-")) for part in outline.split(" → ")]
            np.testing.assert_allclose(told, numbers, atol=0.00501)
            assert outline.startswith("(") == (not row["outline_shown"])
            if row["verdict"] == "outline first":
                assert by.startswith(f"{row['outline_arrival']:.0f} (")
                assert factor.startswith(f"{row['lead']:.1f} (")
                assert factor.endswith(") ×")
        assert re.findall(r"<td>(.*?)</td>", rows[2][1])[2] == "start"
        assert re.findall(r"<td>(.*?)</td>", rows[3][1])[2] == "–"

    def test_the_maps_are_those_of_the_figure(self, answered):
        analysis, page = answered
        panels = kymograph_panels(analysis.onsets)
        signature = page.data["signature"]
        assert base64.b64decode(page.data["signed"]) == signed_palette().tobytes()
        assert signature["span"] == kymograph_span(panels)
        assert signature["log"]
        assert re.findall(r'data-panel="(\d+)"', page.text) == ["0", "1", "2", "3"]
        for ours, panel in zip(signature["panels"], panels, strict=True):
            np.testing.assert_allclose(np.array(ours["value"], float), panel.value, rtol=0.006, atol=1e-9)
            assert (ours["title"], ours["subtitle"]) == (panel.title, panel.subtitle)
            assert [mark["label"] for mark in ours["arrivals"]] == [mark.label for mark in panel.arrivals]
        assert [mark["fromStart"] for mark in signature["panels"][2]["arrivals"]] == [True, False]
        assert signature["panels"][3]["arrivals"] == []

    def test_an_end_beyond_the_training_is_none(self, answered):
        panel = kymograph_panels(answered[0].onsets)[0]
        endless = replace(panel, arrivals=(replace(panel.arrivals[0], high=math.inf),))
        (mark,) = signature_data([endless])["panels"][0]["arrivals"]
        assert mark["high"] is None
        assert mark["low"] == pytest.approx(panel.arrivals[0].low, rel=1e-4)

    def test_two_halves_with_a_readout(self, answered):
        onsets = with_readout(answered[0].onsets)
        panels = kymograph_panels(onsets)
        assert [panel.row for panel in panels] == ["channel mean", "linear readout"] * 4
        rows = page_text.verdict_rows(onsets, panels)
        assert [half["row"] for half in rows[0]["halves"]] == [
            "what the channel mean shows", "what the features hold (linear readout)"
        ]  # fmt: skip
        assert [half["word"] for half in rows[2]["halves"]] == ["outline from the start", "neither"]
        assert rows[2]["halves"][1]["sentence"] == "A linear readout finds nothing of this object."
        assert [half["panel"] for row in rows for half in row["halves"]] == list(range(8))

    def test_operators_are_compared(self, answered):
        analysis, page = answered
        told = page_text.comparison_sentences(analysis.onsets)
        assert len(told) == len(analysis.onsets.comparisons) == 3
        assert told[0].startswith("INWARD against OUTWARD: relative to the interior, the outline comes ")
        same = replace(analysis.onsets, comparisons=[replace(one, p=0.5) for one in analysis.onsets.comparisons])
        assert page_text.comparison_sentences(same) == [
            "No difference in lead is shown for 3 pairs of operators (p &gt; 0.05).".replace("&gt;", ">")
        ]
        assert "corrected by Holm" in page.text

    def test_responses_have_chance_and_arrivals(self, answered):
        analysis, page = answered
        panels = {group["name"]: group["panels"] for group in page.data["groups"]}["responses"]
        for panel, operator in zip(panels, analysis.onsets.operators, strict=True):
            onset = operator.map
            assert panel["chance"] == pytest.approx(max(onset.outline.chance, onset.interior.chance), rel=1e-4)
            shown = [reading for reading in (onset.outline, onset.interior) if reading.shown]
            assert [mark["step"] for mark in panel["marks"]] == pytest.approx(
                [reading.arrival_steps[0] for reading in shown], rel=1e-4
            )


class TestWhatIsNotInIt:
    """Said on the page and by the command, a line each, with the option that shows it."""

    def test_images_and_steps(self, runs, tmp_path):
        short = make_run(tmp_path / "short", upsampler="x", run_id="x", steps=STEPS[:8])
        left_out = write_report([runs[0], short], tmp_path / "r.html", images=1)
        assert left_out == ("images 2 to 2: shown with images=2", "4 steps, because not all runs have them", CHANNELS)
        page = Page(tmp_path / "r.html")
        assert all(f"<li>{said}</li>" in page.text for said in left_out)

    def test_other_calls(self, runs, tmp_path):
        run = make_run(tmp_path / "calls", calls=3)
        assert write_report([run], tmp_path / "0.html")[0] == f"calls 1, 2 of {LAYER}: choose with call=..."
        assert write_report([run], tmp_path / "1.html", call=1)[0] == f"calls 0, 2 of {LAYER}: choose with call=..."
        page = Page(tmp_path / "1.html")
        assert f"{LAYER}, call 1, feature:" in page.text
        assert "--call 1" in page.text
        assert {tuple(sequence["size"]) for maps in page.data["maps"] for sequence in maps["sequences"]} == {(12, 16)}
        with pytest.raises(FadevizError, match="no call 3"):
            write_report([run], tmp_path / "3.html", call=3)

    def test_layers_without_that_call(self, tmp_path):
        run = make_run(tmp_path / "calls", calls=2)
        for step in STEPS:
            shared = [Snapshot(step, LAYER, call, "feature", run.read(step, LAYER, "feature", call)) for call in (0, 1)]
            once = Snapshot(step, "head", 0, "feature", np.ones((2, 4, 4), np.float32))
            SnapshotStore(run.path, run.run_id).write(step, [*shared, once])
        left_out = write_report([fadeviz.open_run(run.path)], tmp_path / "r.html", call=1)
        assert left_out == (f"call 0 of {LAYER}: choose with call=...", "head, which has no call 1")


@pytest.mark.parametrize("steps", [(0,), (0, 1, 2), STEPS[1:]])
def test_a_run_that_cannot_be_judged_shows_its_maps(tmp_path, steps):
    run = make_run(tmp_path / "run", steps=steps)
    write_report([run], tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert page.data["steps"] == list(steps)
    assert len(page.data["maps"]) == 3
    assert '<p class="word">too few images</p>' in page.text
    assert f"outline: step {steps[0]} → top → end" in page.text
    assert "To decide: observe 12 images or more" in page.text


class TestCommand:
    def call(self, *arguments):
        return CliRunner().invoke(main, ["report", *map(str, arguments)])

    def test_it_says_what_it_wrote_and_what_it_left_out(self, runs, tmp_path, page):
        limit = 0.97 * len(page.bytes) / 1e6
        result = self.call(*(run.path for run in runs), "-o", tmp_path / "r.html", "--max-mb", limit)
        assert result.exit_code == 0, result.output
        assert re.fullmatch(r"wrote .*r\.html \(0\.\d MB\)", result.stdout.strip())
        assert f"note: left out gate of {LAYER}: no room" in result.stderr

    def test_layer_kind_images_and_title(self, runs, tmp_path):
        result = self.call(runs[0].path, "-o", tmp_path / "r.html", "--layer", LAYER, "--kind", "gradient", "--kind",
                           "gate", "--images", 1, "--title", "A <title>")  # fmt: skip
        assert result.exit_code == 0, result.output
        made = Page(tmp_path / "r.html")
        assert [one["kind"] for one in made.data["maps"]] == ["gradient", "gate"]
        assert made.data["kind"] == "gradient"
        assert made.data["count"] == len(made.data["images"]) == 1
        assert "<h1>A &lt;title&gt;</h1>" in made.text
        assert "--images 1" in made.text

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["-o", "r.pdf"], "a report is an HTML page. Give a name that ends in .html"),
            (["-o", "r.html", "--kind", "gradint"], "no kind 'gradint'. Nearest: 'gradient'"),
            (["-o", "r.html", "--kind", "channels"], "has no single map per image"),
            (["-o", "r.html", "--layer", "decoder.9"], "no layer in these runs 'decoder.9'"),
            (["-o", "r.html", "--images", "0"], "must be at least 1"),
            (["-o", "r.html", "--max-mb", "0"], "must be a positive number of megabytes"),
            (["-o", "r.html", "--max-mb", "nan"], "must be a positive number of megabytes"),
            (["-o", "r.html", "--max-mb", "0.01"], "Give a larger"),
            (["-o", "r.html", "--kind", "kernel_entropy"], "no 'kernel_entropy' maps"),
        ],
    )
    def test_mistakes_are_one_line(self, runs, tmp_path, monkeypatch, arguments, said):
        monkeypatch.chdir(tmp_path)
        result = self.call(runs[0].path, *arguments)
        assert result.exit_code == 1
        assert said in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert not list(tmp_path.glob("r.*"))


def luminance(colour):
    """Relative luminance of ``#RRGGBB`` by WCAG."""
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


VISIONS = {
    "usual": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
"""How linear RGB is seen: Machado, Oliveira and Fernandes, 2009."""


def lab(colour, vision):
    """CIE L*a*b* of ``#RRGGBB`` as it is seen."""
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ np.clip(vision @ linear, 0, 1) / (0.9505, 1, 1.089), 0.00887))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


class TestLayout:
    def test_columns_leave_no_item_alone(self):
        assert [balanced(count, 4) for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)] == [1, 2, 3, 4, 3, 3, 4, 4, 3, 4]
        for room in range(2, 8):
            for count in range(2, 40):
                columns = balanced(count, room)
                assert 2 <= columns <= max(room, 2)
                assert count % columns != 1 or columns == 2

    def test_every_line_has_contrast_on_light_and_dark_paper(self, page):
        light, dark, printed = (
            dict(re.findall(r"--([\w-]+): (#\w{6})", block))
            for block in re.findall(r":root \{(.*?)\}", page.style, re.DOTALL)
        )
        assert contrast("#000000", "#ffffff") == pytest.approx(21)
        names = [name for name in light if re.fullmatch(r"(series|operator)-\d|outline|interior", name)]
        assert len(names) == 18
        for name in names:
            assert contrast(light[name], light["paper"]) >= 3, name
            assert contrast(dark[name], dark["paper"]) >= 3, name
            assert printed[name] == light[name]

    def test_operators_differ_with_any_colour_vision(self, page):
        light, dark, _ = (
            re.findall(r"--operator-\d: (#\w{6})", block)
            for block in re.findall(r":root \{(.*?)\}", page.style, re.DOTALL)
        )
        for vision in VISIONS.values():
            for colours in (light, dark):
                seen = [lab(colour, np.array(vision)) for colour in colours]
                apart = [np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)]
                assert len(apart) == 28
                assert min(apart) > 5

    def test_operators_have_the_colours_of_the_plots(self, page):
        root = page.style[: page.style.index("prefers-color-scheme")]
        ours = re.findall(r"--operator-\d: (#\w{6})", root)
        assert len(ours) == len(style.COLORS)
        for colour, plotted in zip(ours, style.COLORS, strict=True):
            hues = [
                colorsys.rgb_to_hls(*(int(one[at : at + 2], 16) / 255 for at in (1, 3, 5)))[0]
                for one in (colour, plotted)
            ]
            assert colour == plotted or (
                contrast(plotted, "#ffffff") < 3 and hues[0] == pytest.approx(hues[1], abs=0.02)
            )

    def test_an_operators_curves_have_its_look(self, page):
        curves = [curve for group in page.data["groups"] for panel in group["panels"] for curve in panel["curves"]]
        roles = {curve["label"]: curve["role"] for curve in curves if curve["role"].startswith("operator")}
        assert len(roles) == len(page.data["operators"])
        assert roles["FADE"].startswith("operator-0-")
        assert roles["CARAFE"].startswith("operator-1-")
        dashes = [role.rsplit("-", 1)[1] for role in roles.values()]
        assert len(set(dashes)) == len(dashes)
