"""Runs for other tools: what is in the files, read back with each tool's own reader, and what is never replaced."""

import contextlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from PIL import Image

import fadeviz
from fadeviz import FadevizError
from fadeviz.export import TARGETS, export_run, places
from fadeviz.export.selection import safe_name
from fadeviz.render.animation import render_frames
from fadeviz.render.colormap import colorize
from fadeviz.render.frames import select_channels, select_frames
from fadeviz.render.selection import MapSelection
from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from render_runs import LAYER, STEPS, make_run
from task_runs import make_matting_run

HOSTILE = "../../escaped"
NO_NUMBERS = "left out of the metrics, not representable as floats: note, huge"
"""Every export of the run below says that."""
MAGENTA = "cells are NaN or infinite; they are painted magenta"
NAMES = {"npz": "a.npz", "zarr": "a.zarr", "tensorboard": "logs", "wandb": "offline", "rerun": "a.rrd"}
EXTRAS = {"zarr": "zarr", "tensorboard": "tensorboard", "wandb": "wandb", "rerun": "rerun"}


def need(name):
    """Skip where an extra is not installed."""
    return pytest.importorskip(name, reason=f'needs {name}: pip install ".[{name}]"')


def read_npz(path):
    """What an export holds, as a dict of arrays; the file is closed again."""
    with np.load(path) as held:
        return dict(held)


each_target = pytest.mark.parametrize("target", TARGETS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Twelve steps of a disc, with numbers; one map holds what is not finite, and a negative zero."""
    folder = tmp_path_factory.mktemp("run") / "fade"
    maps = np.random.default_rng(0).normal(size=(len(STEPS), 24, 32)).astype(np.float32)
    maps[2, :2, :2] = [[np.nan, np.inf], [-np.inf, -0.0]]
    made = make_run(folder, maps=maps)
    store = SnapshotStore(folder, made.run_id)
    for step in range(1, 4):
        store.append_metrics({"step": step, "loss": 1 / step, "lr": 0.01})
    store.append_metrics({"step": 10, "loss": 0.25, "miou": 0.5, "note": "text", "huge": 10**400})
    store.append_metrics({"step": 11, "worst": float("nan"), "top": float("inf")})
    return fadeviz.open_run(folder)


@pytest.fixture
def hostile(tmp_path):
    """A run whose layer, image and metric are called after a way out of any folder."""
    folder = tmp_path / "deep" / "deeper" / "run"
    store = SnapshotStore(folder, "id")
    for step in (0, 5):
        maps = np.full((2, 4, 4), step, np.float32)
        maps[0, 0] = np.arange(4)
        store.write(step, [Snapshot(step, name, 0, "feature", maps) for name in (HOSTILE, "..", "zarr.json")])
    store.write_observation(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.uint8))
    store.append_metrics({"step": 1, HOSTILE: 1.0, "__x": 2.0})
    store.write_info(
        RunInfo.from_dict({"title": HOSTILE, "upsampler": HOSTILE, "observation": {"names": [HOSTILE, HOSTILE]}})
    )
    return fadeviz.open_run(folder)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if not path.is_dir())


def contents(path):
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(p.relative_to(path.parent)): p.read_bytes() for p in paths if p.is_file()}


def pictures(run, kind, image=0, scope="frame", colormap="gray"):
    """What the renderer gives for a map of 32 cells: each cell 4 pixels wide."""
    [sequence] = select_frames([run], MapSelection(kind=kind, image=image, normalize=scope))
    return [colorize(unit, colormap).repeat(4, 0).repeat(4, 1) for unit in sequence.unit]


class TestNpz:
    def test_everything_is_there_bit_by_bit(self, run, tmp_path):
        assert export_run(run, "npz", tmp_path / "a.npz") == (NO_NUMBERS,)
        with np.load(tmp_path / "a.npz", allow_pickle=False) as held:
            for kind in run.layers[LAYER]:
                array = held[f"maps/{LAYER}/{kind}"]
                assert array.dtype == np.float32
                assert array.tobytes() == np.asarray(run.maps(LAYER, kind)).tobytes()
            assert held[f"maps/{LAYER}/feature"].shape == (len(STEPS), 2, 24, 32)
            assert held["steps"].tolist() == list(STEPS)
            assert held["images"].tolist() == ["disc_0", "disc_1"]
            for name, expected in zip(("images", "masks"), run.observation, strict=True):
                np.testing.assert_array_equal(held[f"observation/{name}"], expected)
            assert held["metrics/step"].tolist() == [1, 2, 3, 10, 11]
            np.testing.assert_array_equal(held["metrics/loss"], [1, 1 / 2, 1 / 3, 0.25, np.nan])
            np.testing.assert_array_equal(held["metrics/miou"], [np.nan] * 3 + [0.5, np.nan])
            np.testing.assert_array_equal(held["metrics/worst"], [np.nan] * 5)
            np.testing.assert_array_equal(held["metrics/top"], [np.nan] * 4 + [np.inf])
            assert not {"metrics/note", "metrics/huge"} & set(held)
            assert json.loads(str(held["run.json"])) == run.info.to_dict()

    def test_mattes_are_there_too(self, tmp_path):
        matting = make_matting_run(tmp_path / "run")
        export_run(matting, "npz", tmp_path / "a.npz", images=[1])
        with np.load(tmp_path / "a.npz") as held:
            for name, expected in zip(("alphas", "trimaps"), matting.mattes, strict=True):
                np.testing.assert_array_equal(held[f"observation/{name}"], expected[1:])

    def test_the_same_bytes_at_any_time(self, run, tmp_path):
        export_run(run, "npz", tmp_path / "a.npz")
        export_run(fadeviz.open_run(run.path), "npz", tmp_path / "b.npz")
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
        with zipfile.ZipFile(tmp_path / "a.npz") as archive:
            assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}

    def test_a_choice(self, run, tmp_path):
        notes = export_run(run, "npz", tmp_path / "a.npz", kinds=["gate", "channels"], steps=[20, 0], images=[1])
        held = read_npz(tmp_path / "a.npz")
        assert [name for name in held if name.startswith("maps/")] == [f"maps/{LAYER}/gate"]
        np.testing.assert_array_equal(held[f"maps/{LAYER}/gate"], run.maps(LAYER, "gate", steps=[0, 20])[:, 1:])
        assert (held["images"].tolist(), held["image_numbers"].tolist()) == (["disc_1"], [1])
        assert len(held["observation/masks"]) == 1
        assert notes == (NO_NUMBERS, f"no channels of {LAYER}: it was not recorded of the images asked for")

    def test_every_call_of_a_layer(self, tmp_path):
        store = SnapshotStore(tmp_path / "run", "id")
        maps = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
        store.write(0, [Snapshot(0, "up", call, "feature", maps[call]) for call in (0, 1)])
        store.write_observation(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4), np.uint8))
        store.write_info(RunInfo())
        run = fadeviz.open_run(tmp_path / "run")
        export_run(run, "npz", tmp_path / "a.npz")
        held = read_npz(tmp_path / "a.npz")
        np.testing.assert_array_equal(held["maps/up/feature"][0], maps[0])
        np.testing.assert_array_equal(held["maps/up/feature/call 1"][0], maps[1])

    @pytest.mark.parametrize("kind", ["feature", "channels"])
    def test_every_call_is_drawn(self, tmp_path, kind):
        need("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        maps = np.random.default_rng(0).normal(size=(2, 1, 4, 4)).astype(np.float32)
        if kind == "channels":
            maps = np.stack([maps * (c + 1) + np.eye(4, dtype=np.float32) * c**3 for c in range(12)], axis=2)
        store = SnapshotStore(tmp_path / "run", "id")
        store.write(0, [Snapshot(0, "up", call, kind, maps[call]) for call in (0, 1)])
        store.write_observation(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4), np.uint8))
        store.write_info(RunInfo.from_dict({"observation": {"names": ["call 1"]}}))
        run = fadeviz.open_run(tmp_path / "run")
        notes = export_run(run, "tensorboard", tmp_path / "logs")
        found = EventAccumulator(str(tmp_path / "logs"), size_guidance={"images": 0}).Reload()
        for call, prefix in ((0, f"up/{kind}/call 1"), (1, f"up/{kind}/call 1/call 1")):
            for sequence in select_frames([run], MapSelection(layer="up", kind=kind, call=call)):
                tag = prefix if sequence.channel is None else f"{prefix}/channel {sequence.channel}"
                [event] = found.Images(tag)
                pixels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
                np.testing.assert_array_equal(pixels[::32, ::32], colorize(sequence.unit[0], "gray"))
        said = [note for note in notes if note.startswith("channels: at most 8 of 12 channels")]
        assert len(said) == (kind == "channels")
        assert len(notes) == len(said)


class TestZarr:
    @pytest.fixture(autouse=True)
    def zarr(self):
        return need("zarr")

    def test_every_map_bit_by_bit(self, run, tmp_path, zarr):
        assert export_run(run, "zarr", tmp_path / "a.zarr") == (NO_NUMBERS,)
        root = zarr.open_group(tmp_path / "a.zarr", mode="r")
        for kind in run.layers[LAYER]:
            array = root[f"layers/{LAYER}/{kind}"]
            assert array.chunks == (1, *array.shape[1:])
            assert array[...].tobytes() == np.asarray(run.maps(LAYER, kind)).tobytes()
        assert root[f"layers/{LAYER}/feature"].metadata.dimension_names == ("step", "image", "y", "x")
        assert root["layers"][LAYER]["step"][...].tolist() == list(STEPS)
        assert root["fadeviz"].attrs["run"] == run.info.to_dict()
        assert root.attrs["run_id"] == run.run_id
        np.testing.assert_array_equal(root["observation/images"][...], run.observation[0])
        np.testing.assert_array_equal(root["metrics/loss"][...], [1, 1 / 2, 1 / 3, 0.25, np.nan])
        np.testing.assert_array_equal(root["metrics/worst"][...], [np.nan] * 5)
        np.testing.assert_array_equal(root["metrics/top"][...], [np.nan] * 4 + [np.inf])

    def test_the_same_bytes(self, run, tmp_path):
        export_run(run, "zarr", tmp_path / "a" / "a.zarr")
        export_run(run, "zarr", tmp_path / "b" / "a.zarr")
        assert contents(tmp_path / "a" / "a.zarr") == contents(tmp_path / "b" / "a.zarr")

    def test_xarray_opens_a_layer_and_the_tree(self, run, tmp_path):
        xarray = need("xarray")
        need("dask")
        export_run(run, "zarr", tmp_path / "a.zarr")
        layer = xarray.open_zarr(tmp_path / "a.zarr", group=f"layers/{LAYER}")
        one = layer["feature"].sel(step=STEPS[3], image="disc_1")
        np.testing.assert_array_equal(one.values, run.read(STEPS[3], LAYER, "feature")[1])
        assert layer["channels"].dims == ("step", "image_channels", "channel", "y", "x")
        assert layer["image_channels"].values.tolist() == ["disc_0"]
        assert layer["x"].values.tolist() == list(range(32))
        tree = xarray.open_datatree(tmp_path / "a.zarr", engine="zarr")
        assert tree["metrics"]["step"].values.tolist() == [1, 2, 3, 10, 11]

    def test_kinds_of_another_size_have_axes_of_their_own(self, tmp_path, zarr):
        store = SnapshotStore(tmp_path / "run", "id")
        held = {"feature": (2, 4, 6), "gate": (2, 2, 6), "constant": (1, 4, 6), "channels": (1, 3, 4, 6),
                "kernels": (1, 25, 2, 3), "guide": (1, 3, 4, 6)}  # fmt: skip
        zeros = {kind: np.zeros(shape, np.float32) for kind, shape in held.items()}
        zeros["feature"] *= -1
        store.write(0, [Snapshot(0, "up", 0, kind, value) for kind, value in zeros.items()])
        store.write_observation(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.uint8))
        store.write_info(RunInfo())
        export_run(fadeviz.open_run(tmp_path / "run"), "zarr", tmp_path / "a.zarr")
        group = zarr.open_group(tmp_path / "a.zarr", mode="r")["layers/up"]
        lengths = {}
        for kind, shape in held.items():
            for name, length in zip(group[kind].metadata.dimension_names, (1, *shape), strict=True):
                assert lengths.setdefault(name, length) == length
            assert group[kind][...].tobytes() == zeros[kind].tobytes()
            assert (tmp_path / "a.zarr" / "layers" / "up" / kind / "c").is_dir()  # no map is left out for being zero
        assert group["gate"].metadata.dimension_names == ("step", "image", "y_gate", "x")
        assert group["constant"].metadata.dimension_names[1] == "image_constant"
        assert group["guide"].metadata.dimension_names[1:3] == ("image_channels", "channel_guide")
        assert "metrics" not in [name for name, _ in group.arrays()]


class TestTensorBoard:
    @pytest.fixture(autouse=True)
    def accumulator(self):
        need("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        def read(folder, images):
            found = EventAccumulator(str(folder), size_guidance={"images": images, "scalars": 0})
            found.Reload()
            return found

        return read

    @pytest.mark.parametrize(("scope", "colormap"), [("frame", "gray"), ("run", "viridis")])
    def test_every_step_as_the_renderer_draws_it(self, run, tmp_path, accumulator, scope, colormap):
        export_run(run, "tensorboard", tmp_path / "logs", normalize=scope, colormap=colormap)
        found = accumulator(tmp_path / "logs", images=0)
        for kind in ("feature", "gradient", "gate"):
            for image in (0, 1):
                events = found.Images(f"{LAYER}/{kind}/disc_{image}")
                assert [event.step for event in events] == list(STEPS)
                for event, expected in zip(events, pictures(run, kind, image, scope, colormap), strict=True):
                    pixels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
                    np.testing.assert_array_equal(pixels, expected)
                    assert (event.height, event.width) == expected.shape[:2]
        chosen = [f"{LAYER}/channels/disc_0/channel {n}" for n in select_channels(run, LAYER)]
        assert [tag for tag in found.Tags()["images"] if "/channels/" in tag] == chosen
        assert (255, 0, 255) in {tuple(p) for p in pictures(run, "feature")[2].reshape(-1, 3)}  # what is not finite

    def test_as_in_an_animation(self, run, tmp_path, accumulator):
        export_run(run, "tensorboard", tmp_path / "logs", kinds=["feature"])
        events = accumulator(tmp_path / "logs", images=0).Images(f"{LAYER}/feature/disc_0")
        tiles = render_frames(select_frames([run]), scale=4)
        for event, frame in zip(events, tiles, strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
            windows = np.lib.stride_tricks.sliding_window_view(np.asarray(frame), pixels.shape)
            found = np.argwhere((windows[..., 0, 0, :] == pixels[0, 0]).all(-1))
            assert any(np.array_equal(windows[tuple(at)], pixels) for at in found)

    def test_numbers_at_their_steps(self, run, tmp_path, accumulator):
        export_run(run, "tensorboard", tmp_path / "logs")
        found = accumulator(tmp_path / "logs", images=0)
        assert found.Tags()["scalars"] == ["metrics/loss", "metrics/lr", "metrics/miou", "metrics/worst", "metrics/top"]
        assert [event.value for event in found.Scalars("metrics/top")] == [np.inf]
        assert np.isnan([event.value for event in found.Scalars("metrics/worst")]).tolist() == [True]
        loss = [(event.step, event.value) for event in found.Scalars("metrics/loss")]
        assert loss == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (10, 0.25)]
        observed = np.asarray(Image.open(io.BytesIO(found.Images("observed/disc_1")[0].encoded_image_string)))
        np.testing.assert_array_equal(observed[:, :64], run.observation[0][1])

    def test_the_warning_is_true(self, run, tmp_path):
        """TensorBoard's own limits drop steps, unless the note is followed."""
        from tensorboard.backend.event_processing.data_ingester import DEFAULT_TENSOR_SIZE_GUIDANCE
        from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

        notes = export_run(run, "tensorboard", tmp_path / "logs")
        assert len(STEPS) == 12
        assert notes == (
            NO_NUMBERS,
            f"6 {MAGENTA}",
            "TensorBoard shows 10 of the 12 steps by default; to see all: "
            f"tensorboard --logdir {tmp_path / 'logs'} --samples_per_plugin images=12",
        )

        def shown(sizes):
            found = EventAccumulator(str(tmp_path / "logs"), tensor_size_guidance=sizes)
            found.Reload()
            return [event.step for event in found.Tensors(f"{LAYER}/feature/disc_0")]

        assert len(shown(DEFAULT_TENSOR_SIZE_GUIDANCE)) == 10
        assert shown(DEFAULT_TENSOR_SIZE_GUIDANCE | {"images": 12}) == list(STEPS)
        few = export_run(run, "tensorboard", tmp_path / "few", steps=STEPS[3:12], kinds=["gate"])
        assert few == (NO_NUMBERS,)

    def test_the_same_bytes(self, run, tmp_path):
        for folder in ("a", "b"):
            export_run(run, "tensorboard", tmp_path / folder / "logs")
        assert contents(tmp_path / "a" / "logs") == contents(tmp_path / "b" / "logs")


def wandb_records(folder):
    """The records of an offline run: a LevelDB log of protocol buffers, of which W&B offers no reader."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    data, place, record = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # a block's end, too short for a header
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


class TestWandb:
    @pytest.fixture(autouse=True)
    def wandb(self):
        need("wandb")

    def test_an_offline_run(self, run, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_RUN_GROUP", "of a training")
        (tmp_path / "home").mkdir()
        asked = []
        with socket.create_server(("127.0.0.1", 0)) as server:  # whoever wants into the network asks here

            def listen():
                while True:
                    try:
                        asked.append(server.accept())
                    except OSError:
                        return

            threading.Thread(target=listen, daemon=True).start()
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
            before = dict(os.environ)
            notes = export_run(run, "wandb", tmp_path / "out", kinds=["feature", "gradient"])
            server.shutdown(socket.SHUT_RDWR)
        assert not asked
        assert os.environ == before
        assert files(tmp_path / "home") == []
        assert "wandb" not in sys.modules or not sys.modules["wandb"].run
        assert notes[:2] == (NO_NUMBERS, f"5 {MAGENTA}")
        assert notes[2:] == (f"nothing was sent. Send it: wandb sync {tmp_path}/out/wandb/offline-run-*",)

        patience = time.monotonic() + 30
        while living(tmp_path) and time.monotonic() < patience:  # its service takes a moment
            time.sleep(0.1)
        assert living(tmp_path) == []

        records = list(wandb_records(tmp_path / "out"))
        [told] = [r.run for r in records if r.HasField("run")]
        config = {update.key: json.loads(update.value_json) for update in told.config.update}
        assert (told.run_id, told.project, told.display_name) == ("fadeviz-a1b2c3", "fadeviz", "FADE")
        assert told.run_group == ""
        assert {key: config[key] for key in run.info.to_dict()} == run.info.to_dict()
        history = {}
        for record in records:
            if record.HasField("history"):
                values = {tuple(i.nested_key) or (i.key,): json.loads(i.value_json) for i in record.history.item}
                history[values["_step",]] = {"/".join(key): value for key, value in values.items()}
        assert sorted(history) == sorted({*STEPS, 1, 2, 3, 11})
        assert np.isnan(float(history[11]["metrics/worst"]))
        assert float(history[11]["metrics/top"]) == np.inf
        assert (history[10]["metrics/loss"], history[10]["metrics/miou"]) == (0.25, 0.5)
        [folder] = (tmp_path / "out").glob("wandb/offline-run-*/files")
        for kind in ("feature", "gradient"):
            for step, expected in zip(STEPS, pictures(run, kind, 1), strict=True):
                path = folder / history[step][f"{LAYER}/{kind}/disc_1/path"]
                np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink() and not path.exists()]

    def test_one_that_does_not_end_is_ended(self, run, tmp_path, monkeypatch):
        from fadeviz.export import wandb_log

        (tmp_path / "slow.py").write_text(f"import time\ntime.sleep(20)\nopen({str(tmp_path / 'done')!r}, 'w')")
        monkeypatch.setattr("fadeviz.export.wandb_log.Path.with_name", lambda self, name: tmp_path / "slow.py")
        with pytest.raises(FadevizError, match="wandb did not end within 1 s: nothing was written"):
            wandb_log._log(tmp_path, tmp_path, 1)
        assert living(tmp_path) == []
        assert not (tmp_path / "done").exists()

    def test_one_that_fails_says_why(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr("fadeviz.export.wandb_log.Path.with_name", lambda self, name: tmp_path / "broken.py")
        (tmp_path / "broken.py").write_text("raise SystemExit('no such luck')")
        from fadeviz.export import wandb_log

        with pytest.raises(FadevizError, match="wandb failed: no such luck. Nothing was written"):
            wandb_log._log(tmp_path, tmp_path, 60)


def living(folder):
    """Numbers of the processes that were told to write into ``folder``, where the system tells."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"WANDB_DIR={folder}".encode() in entry.read_bytes():
                found.append(entry.parent.name)
    return found


class TestRerun:
    @pytest.fixture(autouse=True)
    def rerun(self):
        return need("rerun")

    def test_pictures_and_numbers_on_a_timeline_of_steps(self, run, tmp_path):
        from rerun.chunk import RrdReader

        export_run(run, "rerun", tmp_path / "a.rrd")
        held = {}
        for chunk in RrdReader(tmp_path / "a.rrd").stream():
            held.setdefault(chunk.entity_path, []).append(chunk.to_record_batch())
        buffers = {}
        for batch in held[f"/maps/{LAYER}/feature/disc_0"]:
            for row in batch.to_pylist():
                buffers[row["step"]] = np.frombuffer(bytes(row["Image:buffer"][0]), np.uint8)
        assert sorted(buffers) == list(STEPS)
        for step, expected in zip(STEPS, pictures(run, "feature"), strict=True):
            np.testing.assert_array_equal(buffers[step], expected.ravel())
        rows = [row for batch in held["/metrics/loss"] for row in batch.to_pylist()]
        assert sorted((row["step"], row["Scalars:scalars"][0]) for row in rows) == [
            (1, 1.0), (2, 0.5), (3, 1 / 3), (10, 0.25)
        ]  # fmt: skip
        for name, value in (("worst", np.nan), ("top", np.inf)):
            [row] = [row for batch in held[f"/metrics/{name}"] for row in batch.to_pylist()]
            np.testing.assert_array_equal((row["step"], row["Scalars:scalars"][0]), (11, value))
        assert {"/observed/disc_0/image", "/observed/disc_1/mask", "/run.json"} <= set(held)


class TestWhatIsThere:
    """An export replaces an export if told to, and nothing else ever."""

    def write(self, run, target, out, **options):
        if target in EXTRAS:
            need(EXTRAS[target])
        return export_run(run, target, out, kinds=["gate"], steps=[0, 10], images=[0], **options)

    def earlier(self, run, target, out):
        """An export that is there already; of wandb, which takes seconds, only its names."""
        if target != "wandb":
            self.write(run, target, out)
            return
        need("wandb")
        run_folder = out / "wandb" / "offline-run-20260101_000000-fadeviz-id"
        run_folder.mkdir(parents=True)
        (run_folder / "run-fadeviz-id.wandb").write_bytes(b"an earlier one")

    @each_target
    def test_an_earlier_export(self, run, tmp_path, target):
        out = tmp_path / NAMES[target]
        self.earlier(run, target, out)
        before = contents(out)
        with pytest.raises(FadevizError, match="exists. Replace it with overwrite=True, or choose another output"):
            self.write(run, target, out)
        assert contents(out) == before
        self.write(run, target, out, overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == [NAMES[target]]
        if target not in ("wandb", "rerun"):
            assert contents(out) == before
        else:
            assert contents(out) != before

    @each_target
    def test_what_is_not_ours_stays(self, run, tmp_path, target):
        out = tmp_path / NAMES[target]
        if target == "rerun":
            with need("rerun").RecordingStream("mine") as recording:
                recording.save(out)
                recording.flush()
            recording.disconnect()
        elif target == "npz":
            np.savez(tmp_path / "mine.npz", a=1)
            (tmp_path / "mine.npz").rename(out)
        else:
            out.mkdir()
            (out / "zarr.json").write_text("{}")  # a store, but somebody else's
        before = contents(out)
        with pytest.raises(FadevizError, match="not"):
            self.write(run, target, out, overwrite=True)
        assert contents(out) == before
        assert [path.name for path in tmp_path.iterdir()] == [NAMES[target]]

    @pytest.mark.parametrize("target", ["zarr", "tensorboard"])
    def test_a_note_beside_our_files_stays(self, run, tmp_path, target):
        self.write(run, target, tmp_path / "out")
        (tmp_path / "out" / "notes.txt").write_text("mine")
        with pytest.raises(FadevizError, match=r"holds what this export did not write, e.g. notes.txt: nothing is"):
            self.write(run, target, tmp_path / "out", overwrite=True)
        assert (tmp_path / "out" / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize("target", ["zarr", "tensorboard"])
    def test_the_run_itself_stays(self, tmp_path, target):
        run = make_run(tmp_path / "run")
        before = contents(run.path)
        with pytest.raises(FadevizError, match="holds what this export did not write"):
            self.write(run, target, run.path, overwrite=True)
        assert contents(run.path) == before

    def test_links_files_and_folders_in_the_way(self, run, tmp_path):
        need("zarr")
        (tmp_path / "file").write_text("mine")
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        (tmp_path / "a.npz").mkdir()
        for target, name, message in (
            ("zarr", "file", "is a file, this export is a folder"),
            ("zarr", "link", "is a link: it is not replaced"),
            ("npz", "a.npz", "is a folder, this export is one file"),
            ("npz", "a.zip", r"Give a name that ends in \.npz"),
            ("zarr", "/", "cannot be replaced"),
        ):
            with pytest.raises(FadevizError, match=message):
                self.write(run, target, tmp_path / name, overwrite=True)
        self.write(run, "zarr", tmp_path / "real")  # empty: nobody's
        for name in ("pipe.npz", "nowhere.npz"):
            if name == "pipe.npz":
                os.mkfifo(tmp_path / name)
            else:
                (tmp_path / name).symlink_to("nothing")
            with pytest.raises(FadevizError, match=f"{name} exists. Replace it with overwrite=True"):
                self.write(run, "npz", tmp_path / name)
            with pytest.raises(FadevizError, match=f"{name} was not written by this export"):
                self.write(run, "npz", tmp_path / name, overwrite=True)

    @each_target
    def test_a_write_that_fails_leaves_what_was(self, run, tmp_path, target, monkeypatch):
        out = tmp_path / NAMES[target]
        self.earlier(run, target, out)
        before = contents(out)

        def fail(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("fadeviz.export.selection.ExportSelection.observation", fail)
        with pytest.raises(FadevizError, match="disk full|No space left"):
            self.write(run, target, out, overwrite=True)
        assert contents(out) == before
        assert [path.name for path in tmp_path.iterdir()] == [NAMES[target]]

    def test_a_rename_that_fails_brings_the_old_one_back(self, run, tmp_path, monkeypatch):
        need("tensorboard")
        self.write(run, "tensorboard", tmp_path / "logs")
        before, rename = contents(tmp_path / "logs"), Path.rename

        def fail(self, target):
            if ".partial-" in self.name:
                raise OSError(5, "Input/output error")
            return rename(self, target)

        monkeypatch.setattr(places.Path, "rename", fail)
        with pytest.raises(FadevizError, match="Nothing was replaced"):
            self.write(run, "tensorboard", tmp_path / "logs", overwrite=True)
        assert contents(tmp_path / "logs") == before
        assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_images_of_one_name_stay_apart(tmp_path):
    """Also from one that is called as another would be with its number."""
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store = SnapshotStore(tmp_path / "run", "id")
    store.write(0, [Snapshot(0, "up", 0, "feature", np.zeros((3, 4, 4), np.float32))])
    store.write_observation(np.zeros((3, 8, 8, 3), np.uint8), np.zeros((3, 8, 8), np.uint8))
    store.write_info(RunInfo.from_dict({"observation": {"names": ["same", "same", "0 same"]}}))
    export_run(fadeviz.open_run(tmp_path / "run"), "tensorboard", tmp_path / "logs")
    found = EventAccumulator(str(tmp_path / "logs"), size_guidance={"images": 0}).Reload()
    assert len(found.Tags()["images"]) == 6
    assert all(len(found.Images(tag)) == 1 for tag in found.Tags()["images"])


class TestHostileNames:
    @each_target
    def test_nothing_leaves_the_folder(self, hostile, tmp_path, target):
        if target in EXTRAS:
            need(EXTRAS[target])
        around = files(tmp_path)
        out = tmp_path / "deep" / "deeper" / NAMES[target]
        export_run(hostile, target, out)
        new = set(files(tmp_path)) - set(around)
        assert new
        assert all(Path(tmp_path, name).absolute().is_relative_to(out) for name in new)
        assert not [path for path in tmp_path.rglob("*") if path.name == "escaped"]
        assert not [path for path in tmp_path.parent.iterdir() if "escaped" in path.name]

    def test_they_can_be_read(self, hostile, tmp_path):
        export_run(hostile, "npz", tmp_path / "a.npz")
        held = read_npz(tmp_path / "a.npz")
        assert {f"maps/{name}/feature" for name in ("%2E.%2F..%2Fescaped", "%2E.", "%7Aarr.json")} <= set(held)
        assert not [name for name in held if ".." in name.split("/")]
        zarr = need("zarr")
        export_run(hostile, "zarr", tmp_path / "a.zarr")
        layers = zarr.open_group(tmp_path / "a.zarr", mode="r")["layers"]
        assert sorted(group.attrs["layer"] for _, group in layers.groups()) == sorted([HOSTILE, "..", "zarr.json"])

    def test_one_name_for_each(self):
        names = [
            "",
            ".",
            "..",
            "a/b",
            "a%2Fb",
            "__x",
            "_x",
            "a\0b",
            "-",
            "x" * 300,
            "x" * 301,
            "\udc00",
            " ",
            "ü",
            "~a",
        ]
        safe = [safe_name(name) for name in names]
        assert len(set(safe)) == len(names)
        for name in safe:
            assert name.isascii()
            assert name.isprintable()
            assert 0 < len(name) <= 200
            assert "/" not in name
            assert name[0] not in "._~ "
        assert safe_name("decoder.3.upsample") == "decoder.3.upsample"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["decoder.3.upsampel"]}, f"Nearest: '{LAYER}'"),
        ({"kinds": ["featur"]}, "no kind 'featur'. Nearest: 'feature'"),
        ({"kinds": ["kernels"]}, "has no 'kernels' maps. Recorded: feature"),
        ({"kinds": ["kernels"], "layers": [LAYER]}, f"has no 'kernels' maps of '{LAYER}'"),
        ({"steps": [5]}, "has no snapshot of step 5"),
        ({"images": [2]}, "no image 2 in .*: there are 2, from 0 to 1"),
        ({"images": []}, "no images of .* were asked for"),
        ({"kinds": ["channels"], "images": [1]}, "nothing to export. no channels of"),
        ({"normalize": "frame"}, "npz writes maps as recorded and draws nothing. Leave out normalize='frame'"),
        ({"colormap": "gray"}, "Leave out colormap='gray'"),
        ({"target": "zip"}, "no target 'zip'"),
        ({"target": "tensorboard", "normalize": "frames"}, "no normalisation scope 'frames'. Nearest: 'frame'"),
        ({"target": "tensorboard", "colormap": "grey2"}, "no colour map 'grey2'"),
    ],
)
def test_bad_choices_write_nothing(run, tmp_path, options, message):
    options = {"target": "npz", **options}
    if options["target"] in EXTRAS:
        need(EXTRAS[options["target"]])
    with pytest.raises(FadevizError, match=message):
        export_run(run, output=tmp_path / "a.npz", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("target", "module"), EXTRAS.items())
def test_a_missing_library_is_named_with_its_extra(run, tmp_path, monkeypatch, target, module):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FadevizError, match=rf'not installed\. Install it, .*: pip install "\.\[{target}\]"'):
        export_run(run, target, tmp_path / NAMES[target])
    assert not list(tmp_path.iterdir())


def test_no_target_imports_torch(run, tmp_path):
    # The process that speaks with W&B is not this one.
    there = [target for target in TARGETS if target == "npz" or (need(EXTRAS[target]) and target != "wandb")]
    code = (
        "import sys, fadeviz; from fadeviz.export import export_run; run = fadeviz.open_run(sys.argv[1])\n"
        f"for t, n in {[(target, NAMES[target]) for target in there]}:\n"
        "    export_run(run, t, sys.argv[2] + '/' + n, kinds=['gate'], steps=[0])\n"
        "assert 'torch' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, run.path, tmp_path], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stderr) == (0, "")


class TestCommand:
    def call(self, *arguments):
        return CliRunner().invoke(main, ["export", *map(str, arguments)])

    def test_a_choice(self, run, tmp_path):
        out = tmp_path / "a.npz"
        result = self.call(run.path, "--to", "npz", "-o", out, "--layer", LAYER, "--kind", "gate", "--kind", "feature",
                           "--steps", "0:40:20", "--images", "1,0")  # fmt: skip
        assert (result.exit_code, result.stdout) == (0, f"wrote {out}\n")
        with np.load(out) as held:
            assert held["steps"].tolist() == [0, 20, 40]
            assert [name for name in held if name.startswith("maps/")] == [
                f"maps/{LAYER}/feature", f"maps/{LAYER}/gate"
            ]  # fmt: skip

    def test_notes_are_one_line_on_stderr(self, run, tmp_path):
        need("tensorboard")
        result = self.call(run.path, "--to", "tensorboard", "-o", tmp_path / "logs", "--kind", "gate")
        assert result.exit_code == 0
        lines = result.stderr.splitlines()
        assert lines[:-1] == [f"note: {NO_NUMBERS}", f"note: 1 {MAGENTA}"]
        assert lines[-1].startswith("note: TensorBoard shows 10 of the 12 steps")
        assert result.stdout == f"wrote {tmp_path / 'logs'}\n"

    def test_errors_are_one_line(self, run, tmp_path):
        result = self.call(run.path, "--to", "npy", "-o", tmp_path / "a.npz")
        assert (result.exit_code, result.stderr) == (1, "Error: no target 'npy'. Nearest: 'npz'.\n")
        result = self.call(run.path, "--to", "npz", "-o", tmp_path / "a.npz", "--images", "0:2")
        assert result.exit_code == 2
        assert "numbers of images are needed, e.g. 0,2" in result.stderr

    def test_help_names_every_target(self):
        result = self.call("--help")
        assert result.exit_code == 0
        for target in TARGETS:
            assert f"\n  {target} " in result.output
        assert {name for name, target in TARGETS.items() if target.draws} == {"tensorboard", "wandb", "rerun"}
