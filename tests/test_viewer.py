"""The viewer's server: what it lists and sends, that it follows what is recorded, and what it refuses."""

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from PIL import Image

import fadeviz
from fadeviz.analysis.logged import logged_curves
from fadeviz.errors import FadevizError, MissingExtra
from fadeviz.page import script
from fadeviz.storage.info import read_info
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from fadeviz.viewer import index, page
from render_runs import LAYER, STEPS, make_run
from task_runs import make_matting_run

for package in ("starlette", "uvicorn"):
    pytest.importorskip(package, reason=f'needs {package}: pip install ".[view]"')


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    """Every question is answered from a new look."""
    monkeypatch.setattr(index, "_PAUSE", 0.0)
    monkeypatch.setattr(index, "_SEARCH_SHARE", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "fade0", calls=2)
    make_run(folder / "study" / "carafe", upsampler="carafe", run_id="c", seed=1)
    return folder


@pytest.fixture(scope="module")
def viewer(folder):
    with fadeviz.view(folder) as viewer:
        yield viewer


def send(viewer, path, method="GET", host=None, headers=()):
    """Status, headers and body of one request, sent as it is spelled."""
    connection = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for one in [f"127.0.0.1:{viewer.port}"] if host is None else host:
            connection.putheader("Host", one)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def get(viewer, path):
    """The body of an answer, parsed if it is JSON."""
    status, headers, body = send(viewer, path)
    assert status == 200, body
    return json.loads(body, parse_constant=pytest.fail) if headers["content-type"] == "application/json" else body


def entries(viewer):
    return {entry["place"]: entry for entry in get(viewer, "/api/runs")["runs"]}


def token(viewer, place):
    return entries(viewer)[place]["id"]


def values(viewer, place, **query):
    query = {"layer": LAYER, "kind": "feature", **query}
    path = f"/api/run/{token(viewer, place)}/map?" + "&".join(f"{name}={value}" for name, value in query.items())
    status, headers, body = send(viewer, path)
    assert (status, headers["content-type"]) == (200, "application/octet-stream"), body
    return np.frombuffer(body, "<f4").reshape(tuple(map(int, headers["x-size"].split(","))))


class TestList:
    def test_has_what_one_looks_for(self, viewer):
        news = get(viewer, "/api/runs")
        assert [entry["place"] for entry in news["runs"]] == ["fade0", "study/carafe"]
        entry = news["runs"][1]
        assert (entry["title"], entry["network"], entry["data"], entry["seed"]) == ("CARAFE", "SegNet", "drawn", 1)
        assert (entry["status"], entry["step"], entry["snapshots"]) == ("finished", STEPS[-1], len(STEPS))

    def test_sends_only_what_changed(self, tmp_path):
        make_run(tmp_path / "a", steps=STEPS[:3])
        make_run(tmp_path / "b", run_id="b")
        with fadeviz.view(tmp_path) as viewer:
            first = get(viewer, "/api/runs")
            assert len(first["runs"]) == 2

            def news(since):
                return get(viewer, f"/api/runs?since={since['session']}.{since['version']}")

            assert news(first) == {**first, "runs": [], "gone": []}
            add_snapshot(tmp_path / "a", 77)
            second = news(first)
            assert [(entry["place"], entry["step"]) for entry in second["runs"]] == [("a", 77)]
            shutil.rmtree(tmp_path / "b")
            make_run(tmp_path / "c" / "d", run_id="d")
            third = news(second)
            assert [entry["place"] for entry in third["runs"]] == ["c/d"]
            assert third["gone"] == [entry["id"] for entry in first["runs"] if entry["place"] == "b"]
            assert [entry["place"] for entry in news({"session": "other", "version": 9})["runs"]] == ["a", "c/d"]

    def test_several_folders_one_in_the_other_and_two_of_one_name(self, tmp_path):
        make_run(tmp_path / "x" / "runs" / "a")
        make_run(tmp_path / "y" / "runs" / "a", run_id="y")
        with fadeviz.view([tmp_path / "x" / "runs", tmp_path / "y" / "runs", tmp_path / "x"]) as viewer:
            runs = get(viewer, "/api/runs")["runs"]
        assert [(entry["place"], entry["run_id"]) for entry in runs] == [("runs/a", "a1b2c3"), ("runs/a", "y")]
        assert len({entry["id"] for entry in runs}) == 2

    def test_a_run_itself_may_be_given(self, folder):
        with fadeviz.view(folder / "fade0") as viewer:
            assert list(entries(viewer)) == ["fade0"]

    def test_a_link_survives_another_start_and_another_place(self, tmp_path):
        make_run(tmp_path / "runs" / "a")
        with fadeviz.view(tmp_path / "runs") as viewer:
            before = token(viewer, "a")
        shutil.move(tmp_path / "runs", tmp_path / "more" / "runs")
        with fadeviz.view(tmp_path / "more" / "runs") as viewer:
            assert token(viewer, "a") == before

    def test_damage_is_listed_and_goes_when_it_is_mended(self, tmp_path):
        make_run(tmp_path / "a")
        good = (tmp_path / "a" / "run.json").read_bytes()
        (tmp_path / "a" / "run.json").write_text("{")
        with fadeviz.view(tmp_path) as viewer:
            entry = entries(viewer)["a"]
            assert (entry["status"], "run.json is damaged" in entry["message"]) == ("damaged", True)
            assert "run.json is damaged" in get(viewer, f"/api/run/{entry['id']}")["error"]
            (tmp_path / "a" / "run.json").write_bytes(good)
            assert entries(viewer)["a"]["status"] == "finished"

    def test_numbers_that_are_none_are_no_bare_words_of_json(self, tmp_path):
        make_run(tmp_path / "a")
        (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "miou": Infinity}\n')
        with fadeviz.view(tmp_path) as viewer:
            assert entries(viewer)["a"]["metrics"] == {"loss": None, "miou": None}


def add_snapshot(path, step, value=1.0):
    run_id = read_info(path, "run").run_id
    maps = np.full((2, 24, 32), value, np.float32)
    SnapshotStore(path, run_id).write(step, [Snapshot(step, LAYER, 0, "feature", maps)])


class TestMaps:
    @pytest.mark.parametrize("kind", ["feature", "gradient", "gate"])
    def test_values_are_those_that_were_recorded(self, viewer, folder, kind):
        run = fadeviz.open_run(folder / "fade0")
        for call in (0, 1):
            for image in (0, 1):
                sent = values(viewer, "fade0", kind=kind, call=call, image=image, step=30)
                np.testing.assert_array_equal(sent, run.maps(LAYER, kind, image=image, call=call, steps=[30])[0])

    def test_every_channel(self, viewer, folder):
        run = fadeviz.open_run(folder / "fade0")
        for channel in range(6):
            sent = values(viewer, "fade0", kind="channels", step=110, channel=channel)
            np.testing.assert_array_equal(sent, run.read(110, LAYER, "channels")[0, channel])

    def test_what_is_not_finite_stays_so(self, tmp_path):
        odd = np.array([[np.nan, np.inf, -np.inf, 1e-45, -0.0, 3.4e38]], np.float32)
        maps = np.broadcast_to(odd, (len(STEPS), 24, 6))
        make_run(tmp_path / "a", maps=maps, size=(24, 6))
        with fadeviz.view(tmp_path) as viewer:
            sent = values(viewer, "a", step=0)
            path = f"/api/run/{token(viewer, 'a')}/ranges?layer={LAYER}&kind=feature"
            ranges = get(viewer, path)
        np.testing.assert_array_equal(sent.view("<u4"), np.broadcast_to(odd, (24, 6)).view("<u4"))
        assert ranges["low"] == [-0.0] * len(STEPS)
        assert ranges["high"] == [float(np.float32(3.4e38))] * len(STEPS)

    def test_layers_kinds_calls_and_channels_are_described(self, viewer):
        details = get(viewer, f"/api/run/{token(viewer, 'fade0')}")
        assert [step for step, _ in details["steps"]] == list(STEPS)
        (layer,) = details["layers"]
        calls = {"0": [24, 32], "1": [12, 16]}
        assert layer["name"] == LAYER == details["figureLayer"]
        assert layer["kinds"] == {
            "feature": {"images": 2, "channels": None, "calls": calls},
            "gradient": {"images": 2, "channels": None, "calls": calls},
            "channels": {"images": 1, "channels": 6, "calls": calls},
            "gate": {"images": 2, "channels": None, "calls": calls},
        }

    def test_ranges_of_a_difference(self, viewer, folder):
        runs = [
            fadeviz.open_run(folder / name).maps(LAYER, image=0)[:].astype(float) for name in ("study/carafe", "fade0")
        ]
        path = f"/api/run/{token(viewer, 'study/carafe')}/ranges?layer={LAYER}&kind=feature"
        ranges = get(viewer, f"{path}&less={token(viewer, 'fade0')}")
        difference = runs[0] - runs[1]
        assert ranges["low"] == difference.min(axis=(1, 2)).tolist()
        assert ranges["high"] == difference.max(axis=(1, 2)).tolist()
        assert get(viewer, f"{path}&less={token(viewer, 'fade0')}&less_layer=nix")["low"] == [None] * len(STEPS)
        assert "not there" in get(viewer, f"{path}&less={'0' * 12}")["error"]

    def test_ranges_of_all_steps_and_of_those_that_come(self, tmp_path):
        make_run(tmp_path / "a", steps=STEPS[:4])
        with fadeviz.view(tmp_path) as viewer:
            path = f"/api/run/{token(viewer, 'a')}/ranges?layer={LAYER}&kind=feature&image=1"
            before = get(viewer, path)
            maps = fadeviz.open_run(tmp_path / "a").maps(LAYER, image=1)[:]
            assert before == {
                "steps": list(STEPS[:4]),
                "low": maps.min(axis=(1, 2)).tolist(),
                "high": maps.max(axis=(1, 2)).tolist(),
            }
            add_snapshot(tmp_path / "a", 77, 5.0)
            after = get(viewer, path)
            assert after == {name: [*before[name], last] for name, last in (("steps", 77), ("low", 5.0), ("high", 5.0))}

    def test_a_snapshot_that_is_replaced_has_another_version(self, tmp_path):
        make_run(tmp_path / "a", steps=STEPS[:2])
        with fadeviz.view(tmp_path) as viewer:
            path = f"/api/run/{token(viewer, 'a')}"
            before = dict(get(viewer, path)["steps"])
            add_snapshot(tmp_path / "a", 10, 3.0)
            after = dict(get(viewer, path)["steps"])
            assert (before[0] == after[0], before[10] == after[10]) == (True, False)
            assert (values(viewer, "a", step=10) == 3).all()

    def test_damaged_snapshots_are_named_and_the_others_sent(self, tmp_path):
        make_run(tmp_path / "a", steps=STEPS[:3])
        os.truncate(tmp_path / "a" / "snapshots" / "step_000010.safetensors", 500)
        with fadeviz.view(tmp_path) as viewer:
            details = get(viewer, f"/api/run/{token(viewer, 'a')}")
            assert [step for step, _ in details["steps"]] == [0, 20]
            assert details["broken"][0].startswith("step_000010.safetensors: damaged")
            assert values(viewer, "a", step=20).shape == (24, 32)

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("step=11&kind=feature", "has no snapshot of step 11"),
            ("step=10&kind=feature&layer=nix", "no layer"),
            ("step=10&kind=nix", "no kind 'nix'"),
            ("step=10&kind=feature&image=7", "no image 7"),
            ("step=10&kind=feature&call=5", "call 5"),
            ("step=10&kind=channels&channel=99", "no channel 99"),
            ("step=10&kind=channels", "name one with channel="),
        ],
    )
    def test_what_there_is_not(self, viewer, query, message):
        query = query if "layer" in query else f"{query}&layer={LAYER}"
        answer = get(viewer, f"/api/run/{token(viewer, 'fade0')}/map?{query}")
        assert message in answer["error"]
        assert "\n" not in answer["error"]

    @pytest.mark.parametrize("query", ["step=x", "step=-1", "step=1e3", "step=9999999999999", "step=0&image=%C2%B2"])
    def test_what_no_page_asks(self, viewer, query):
        status, _, body = send(viewer, f"/api/run/{token(viewer, 'fade0')}/map?{query}")
        assert (status, "a whole number is needed" in json.loads(body)["error"]) == (400, True)


class TestLogged:
    def test_curves_are_the_librarys(self, tmp_path):
        run = make_run(tmp_path / "a")
        lines = [{"step": step, "loss": 1 / step, "odd name": "text"} for step in range(1, 451)]
        lines[6]["loss"] = float("nan")
        lines[449] |= {"miou": 0.5, "b\x1b": 1}
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with fadeviz.view(tmp_path) as viewer:
            answer = get(viewer, f"/api/run/{token(viewer, 'a')}/logged")
        curve = logged_curves([run])["loss"]
        assert list(answer["curves"]) == ["loss", "miou", "b\\x1b"]
        assert answer["curves"]["loss"]["steps"] == list(curve.steps)
        assert len(curve.steps) == 200
        for part in ("middle", "low", "high"):
            sent = [np.nan if value is None else value for value in answer["curves"]["loss"][part]]
            np.testing.assert_array_equal(sent, getattr(curve, part))
        assert answer["leftOut"] == 0

    def test_nothing_was_logged(self, viewer):
        assert get(viewer, f"/api/run/{token(viewer, 'fade0')}/logged") == {"curves": {}, "leftOut": 0}


class TestImages:
    def test_are_those_that_were_observed(self, viewer, folder):
        run = fadeviz.open_run(folder / "fade0")
        path = f"/api/run/{token(viewer, 'fade0')}/image"
        observed, masks = run.observation
        for image in (0, 1):
            np.testing.assert_array_equal(pixels(get(viewer, f"{path}?image={image}")), observed[image])
            truth = pixels(get(viewer, f"{path}?image={image}&what=truth"))
            np.testing.assert_array_equal(truth[..., 0], 255 * masks[image])
        described = get(viewer, f"{path}s")
        assert [image["name"] for image in described["images"]] == ["disc_0", "disc_1"]
        assert described["images"][0]["contour"].startswith("M")
        assert get(viewer, f"{path}?image=2") == {"error": f"no image 2 in {folder}/fade0: there are 2"}

    def test_of_a_run_that_lost_them(self, tmp_path):
        make_run(tmp_path / "a")
        (tmp_path / "a" / "observation.safetensors").unlink()
        with fadeviz.view(tmp_path) as viewer:
            described = get(viewer, f"/api/run/{token(viewer, 'a')}/images")
            assert "the observed images are left out" in described["lost"]
            assert values(viewer, "a", step=0).shape == (24, 32)

    def test_of_a_matting_run(self, tmp_path):
        make_matting_run(tmp_path / "a")
        with fadeviz.view(tmp_path) as viewer:
            path = f"/api/run/{token(viewer, 'a')}/image"
            assert get(viewer, f"{path}s")["truth"] == "alpha"
            alpha = fadeviz.open_run(tmp_path / "a").mattes[0][0]
            np.testing.assert_array_equal(pixels(get(viewer, f"{path}?what=truth"))[..., 0], alpha)

    def test_predictions_in_the_colours_of_their_classes(self, tmp_path):
        run = make_run(tmp_path / "a", steps=STEPS[:1])
        predicted = np.zeros((2, 48, 64), np.uint8)
        predicted[0, :10] = 1
        store = SnapshotStore(tmp_path / "a", run.run_id)
        store.write(5, [Snapshot(5, LAYER, 0, "feature", np.ones((2, 24, 32), np.float32))], predicted)
        store.write_info(type(run.info).from_dict({**run.info.to_dict(), "predictions": "classes"}))
        with fadeviz.view(tmp_path) as viewer:
            path = f"/api/run/{token(viewer, 'a')}"
            assert get(viewer, path)["predictions"] == "classes"
            drawn = pixels(get(viewer, f"{path}/image?what=prediction&step=5&image=0"))
            assert (drawn[:10] == 255).all()
            assert (drawn[10:] == 0).all()
            assert "no predictions of step 0" in get(viewer, f"{path}/image?what=prediction&step=0")["error"]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


class TestFigures:
    def test_is_what_the_library_draws(self, viewer, folder, tmp_path):
        runs = [token(viewer, place) for place in ("fade0", "study/carafe")]
        path = f"/api/figure?runs={','.join(runs)}&layer={LAYER}&kind=gradient&image=1&normalize=shared&colormap=magma"
        status, headers, body = send(viewer, f"{path}&steps=10,50")
        assert (status, headers["content-type"]) == (200, "image/png")
        assert headers["content-disposition"] == 'attachment; filename="fadeviz_gradient.png"'
        fadeviz.grid(
            [folder / "fade0", folder / "study" / "carafe"], tmp_path / "grid.png", layer=LAYER, kind="gradient",
            image=1, normalize="shared", colormap="magma", steps=[10, 50],
        )  # fmt: skip
        np.testing.assert_array_equal(pixels(body), pixels((tmp_path / "grid.png").read_bytes()))

    @pytest.mark.slow
    @pytest.mark.parametrize(("ending", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("gif", b"GIF8")])
    def test_formats(self, viewer, ending, start):
        path = f"/api/figure?runs={token(viewer, 'fade0')}&kind=feature&format={ending}&steps=0,10"
        assert get(viewer, path).startswith(start)

    @pytest.mark.slow
    def test_each_run_may_have_its_own_layer(self, tmp_path):
        make_run(tmp_path / "a")
        make_run(tmp_path / "b", run_id="b", upsampler="carafe")
        for file in (tmp_path / "b" / "snapshots").iterdir():
            step = int(file.stem.split("_")[1])
            maps = np.ones((2, 24, 32), np.float32) * step
            SnapshotStore(tmp_path / "b", "b").write(step, [Snapshot(step, "other", 0, "feature", maps)])
        with fadeviz.view(tmp_path) as viewer:
            runs = ",".join(token(viewer, place) for place in "ab")
            names = json.dumps([LAYER, "other"]).replace('"', "%22").replace(" ", "")
            answer = get(viewer, f"/api/figure?runs={runs}&layers={names}&steps=0,10")
            assert answer.startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        ("query", "message"),
        [("format=exe", "no format 'exe'"), ("steps=3", "no snapshot of step 3"), ("colormap=nix", "no colour map")],
    )
    def test_what_cannot_be_drawn(self, viewer, query, message):
        assert message in get(viewer, f"/api/figure?runs={token(viewer, 'fade0')}&{query}")["error"]

    @pytest.mark.parametrize("query", ["", f"runs={','.join(['0' * 12] * 65)}", "runs=a&layers=[1]"])
    def test_what_no_page_asks(self, viewer, query):
        assert send(viewer, f"/api/figure?{query}")[0] == 400


class TestSafety:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8000"])
    def test_names_of_this_machine(self, viewer, host):
        assert send(viewer, "/", host=[host])[0] == 200

    @pytest.mark.parametrize(
        "host",
        ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "evil.example@127.0.0.1", "",
         "127.0.0.1:80:80", "0.0.0.0", "[::1", "localhost/"],
    )  # fmt: skip
    def test_other_names_are_refused(self, viewer, host):
        """A page whose name is made to lead here reads nothing (DNS rebinding)."""
        for path in ("/", "/page.js", "/api/runs"):
            status, _, body = send(viewer, path, host=[host])
            assert status in (400, 403)
            assert b"fade0" not in body

    @pytest.mark.parametrize("hosts", [[], ["127.0.0.1", "evil.example"], ["evil.example", "127.0.0.1"]])
    def test_no_name_or_two(self, viewer, hosts):
        assert send(viewer, "/api/runs", host=hosts)[0] in (400, 403)

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
    def test_it_only_reads(self, viewer, method):
        for path in ("/", "/api/runs", "/api/figure"):
            assert send(viewer, path, method)[0] == 405

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    def test_pages_of_others_get_no_answers(self, viewer, site):
        assert send(viewer, "/api/runs", headers=[("Sec-Fetch-Site", site)])[0] == 403
        assert send(viewer, "/", headers=[("Sec-Fetch-Site", site)])[0] == 200  # a link to it

    def test_headers(self, viewer):
        for path in ("/", "/page.js", "/page.css", "/api/runs", "/nix", "/api/run/x"):
            headers = send(viewer, path)[1]
            assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["referrer-policy"] == "no-referrer"
            assert "access-control-allow-origin" not in headers

    def test_addresses_are_relative_and_lead_nowhere_else(self):
        text = page.markup(["x"]) + page.style() + script("viewer")
        text = text.replace("http://www.w3.org/2000/svg", "")
        assert "//" not in "".join(line for line in text.splitlines() if "http" in line or "src=" in line)
        assert 'href="/' not in text
        assert 'src="/' not in text
        assert "`/" not in text

    @pytest.mark.parametrize(
        "path",
        [
            "/../run.json", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/api/run/..",
            "/api/run/%2e%2e", "/api/run/..%2f..%2fsecret", "/api/run/%2fetc", "/api/run/.", "/api/run/fade0",
            "/api/run/fade0/map?step=0", "/api/run/..%5c..", "/api/run/%00/image", "/page.py", "/script/state.js",
            "/api/run/..;/images",
        ],
    )  # fmt: skip
    def test_no_path_reaches_a_file(self, viewer, path):
        status, _, body = send(viewer, path)
        if status == 200:
            assert json.loads(body)["error"].startswith("this run is not there")
        else:
            assert status in (400, 404)
        assert b"a1b2c3" not in body
        assert b"root:" not in body

    def test_symlinks_out_of_the_folders_are_not_followed(self, tmp_path):
        secret, shown = tmp_path / "secret", tmp_path / "shown"
        make_run(secret / "run", run_id="secret")
        for name in ("whole", "snapshots", "step", "info", "observation", "metrics"):
            make_run(shown / name, run_id=name, steps=STEPS[:2])
        shutil.rmtree(shown / "whole")
        (shown / "whole").symlink_to(secret / "run")
        for name, inner in {
            "snapshots": "snapshots",
            "step": "snapshots/step_000010.safetensors",
            "info": "run.json",
            "observation": "observation.safetensors",
            "metrics": "metrics.jsonl",
        }.items():
            place = shown / name / inner
            (secret / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 1234567.0}\n')
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
            place.symlink_to(secret / "run" / inner)
        with fadeviz.view(shown) as viewer:
            found = entries(viewer)
            assert sorted(found) == ["info", "metrics", "observation", "snapshots", "step"]
            for entry in found.values():
                assert entry["status"] == "damaged"
                assert "outside of the folders that are viewed" in entry["message"]
                assert (entry["run_id"], entry["metrics"]) == ("", {})
                for path in ("", "/images", "/image?image=0", f"/map?layer={LAYER}&kind=feature&step=10"):
                    answer = get(viewer, f"/api/run/{entry['id']}{path}")
                    assert "outside of the folders that are viewed" in answer["error"]
        with fadeviz.view([shown, secret]) as viewer:  # those that lead to what is viewed as well are followed
            assert entries(viewer)["shown/metrics"]["metrics"] == {"loss": 1234567.0}

    def test_a_symlink_that_comes_later_is_not_followed_either(self, tmp_path):
        make_run(tmp_path / "secret", run_id="a1b2c3")
        make_run(tmp_path / "shown" / "a")
        with fadeviz.view(tmp_path / "shown") as viewer:
            assert values(viewer, "a", step=0).shape == (24, 32)
            known = token(viewer, "a")
            file = tmp_path / "shown" / "a" / "snapshots" / "step_000000.safetensors"
            file.unlink()
            file.symlink_to(tmp_path / "secret" / "snapshots" / "step_000000.safetensors")
            answer = get(viewer, f"/api/run/{known}/map?layer={LAYER}&kind=feature&step=0")
            assert "outside of the folders that are viewed" in answer["error"]

    def test_symlinks_in_a_circle(self, tmp_path):
        make_run(tmp_path / "a")
        shutil.rmtree(tmp_path / "a" / "snapshots")
        (tmp_path / "a" / "snapshots").symlink_to(tmp_path / "a" / "snapshots")
        (tmp_path / "loop").symlink_to(tmp_path)
        with fadeviz.view(tmp_path) as viewer:
            assert list(entries(viewer)) == ["a"]

    def test_names_are_no_markup(self, tmp_path):
        name = "</script><img src=x onerror=alert(1)>"
        make_run(tmp_path / name / "a")
        with fadeviz.view(tmp_path / name) as viewer:
            body = get(viewer, "/")
        assert b"<img" not in body
        assert body.count(b"</script>") == 2

    def test_a_map_that_is_too_large_is_refused(self, viewer, monkeypatch):
        monkeypatch.setattr("fadeviz.viewer.reading.MAX_CELLS", 100)
        answer = get(viewer, f"/api/run/{token(viewer, 'fade0')}/map?layer={LAYER}&kind=feature&step=0")
        assert "a map of 24x32 is too large" in answer["error"]

    def test_it_listens_on_this_machine_alone(self, viewer):
        assert viewer._server.servers[0].sockets[0].getsockname()[0] == "127.0.0.1"


class TestServer:
    def test_ends_and_frees_its_port(self, folder):
        viewer = fadeviz.view(folder)
        port = viewer.port
        assert viewer.running
        assert f'<iframe src="http://127.0.0.1:{port}/"' in viewer._repr_html_()
        assert repr(viewer) == f"Viewer('http://127.0.0.1:{port}/')"
        viewer.close()
        viewer.close()
        assert not viewer.running
        assert "closed" in viewer._repr_html_()
        assert repr(viewer).endswith(", closed)")
        with fadeviz.view(folder, port=port) as again:
            assert again.port == port

    def test_a_port_in_use(self, viewer, folder):
        done = CliRunner().invoke(main, ["view", str(folder), "--port", str(viewer.port), "--no-browser"])
        expected = f"Error: port {viewer.port} is in use. Choose another, or a free one: --port 0\n"
        assert (done.exit_code, done.stderr) == (1, expected)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"port": -1}, "port=-1: must be from 0"),
            ({"port": 65536}, "port=65536: must be from 0"),
            ({"address": "hub.example.org"}, "a URL is needed"),
            ({"address": "/user/me/"}, "a URL is needed"),
            ({"address": "file://x/y"}, "a URL is needed"),
            ({"address": "http://a/?b"}, "a URL is needed"),
            ({"address": "http://[x/"}, "a URL is needed"),
        ],
    )
    def test_bad_options(self, folder, options, message):
        with pytest.raises(FadevizError, match="^" + message.replace("?", r"\?") if "=" in message else message):
            fadeviz.view(folder, **options)

    def test_no_folder(self, tmp_path):
        with pytest.raises(FadevizError, match="no folder .*nix"):
            fadeviz.view(tmp_path / "nix")
        with pytest.raises(FadevizError, match="no folder to view"):
            fadeviz.view([])

    def test_a_folder_that_goes_and_comes_back(self, tmp_path):
        make_run(tmp_path / "runs" / "a")
        with fadeviz.view(tmp_path / "runs") as viewer:
            assert list(entries(viewer)) == ["a"]
            shutil.move(tmp_path / "runs", tmp_path / "away")
            assert list(entries(viewer)) == []
            shutil.move(tmp_path / "away", tmp_path / "runs")
            assert list(entries(viewer)) == ["a"]

    def test_without_the_extra(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        with pytest.raises(MissingExtra, match=r'not installed\. Install it.*pip install "\.\[view\]"'):
            fadeviz.view(folder)

    @pytest.mark.parametrize("prefix", ["", "/user/me/proxy/1"])
    def test_behind_a_proxy(self, folder, prefix):
        """One that removes its prefix from the path, or one that does not."""
        with fadeviz.view(folder, address="https://Hub.example.org/user/me/proxy/1") as viewer:
            assert viewer.url == "https://Hub.example.org/user/me/proxy/1/"
            for path in ("/", "/page.js", "/api/runs"):
                assert send(viewer, prefix + path, host=["hub.example.org"])[0] == 200
            assert send(viewer, prefix + "/", host=["example.org"])[0] == 403
            assert send(viewer, prefix + "/api/runs", headers=[("Sec-Fetch-Site", "cross-site")])[0] == 403

    def test_the_port_in_an_address(self, folder):
        with fadeviz.view(folder, address="https://hub/proxy/{port}/") as viewer:
            assert viewer.url == f"https://hub/proxy/{viewer.port}/"

    def test_two_servers_of_the_same_folder(self, folder, viewer):
        with fadeviz.view(folder) as other:
            first, second = get(viewer, "/api/runs"), get(other, "/api/runs")
        assert first["runs"] == second["runs"]
        assert first["session"] != second["session"]

    def test_what_stays_open_does_not_delay_the_end(self, folder):
        with fadeviz.view(folder) as viewer, socket.create_connection(("127.0.0.1", viewer.port)) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\n")
            begin = time.monotonic()
            viewer.close()
            assert time.monotonic() - begin < 5


@pytest.mark.slow  # a process of its own
def test_the_command_runs_until_it_is_interrupted(folder):
    command = [sys.executable, "-m", "fadeviz", "view", str(folder), "--no-browser"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.stderr.read()
        port = int(line.split("/")[2].split(":")[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/api/runs")
        assert len(json.loads(connection.getresponse().read())["runs"]) == 2
        connection.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (out, err, process.returncode) == ("stopped\n", "", 0)


@pytest.mark.parametrize("screen", [True, False])
def test_the_command_opens_a_browser(folder, monkeypatch, screen):
    """Unless it would be one of text, in the terminal."""
    opened = []
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    if screen:
        monkeypatch.setenv("DISPLAY", ":0")

    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("fadeviz.viewer.server.Viewer.wait", interrupt)
    done = CliRunner().invoke(main, ["view", str(folder)])
    assert done.exit_code == 0
    url, rest = done.stdout.split("  ", 1)
    assert rest == "(Ctrl-C stops it)\nstopped\n"
    assert opened == [url] * screen
