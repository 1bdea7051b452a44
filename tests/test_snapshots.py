"""Run folders: what is written is read back to the bit, a failed write changes nothing, damage is named."""

import errno
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import save_file

from fadeviz import FadevizError, Snapshot, open_run
from fadeviz.storage.check import Fault, check_run
from fadeviz.storage.files import replacing, write_whole
from fadeviz.storage.info import RunInfo
from fadeviz.storage.maps import Maps
from fadeviz.storage.snapshots import KINDS, SnapshotStore, read_metrics
from fadeviz.storage.stored_run import StoredRun

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("encoder.4", "decoder.10.upsample", "decoder.3.upsample", "head")
"""In the network's order, which is neither that of the alphabet nor that of the files."""
STEPS = (0, 5, 120)
FIFTH = "step_000005.safetensors"
EXTREMES = np.array(
    [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 3.4028235e38, -3.4028235e38, 1e-45, 1.1754944e-38], np.float32
)


def value(step, layer, kind, call=0):
    """A map that no other place of the run has."""
    shape = (2, 6, 4, 5) if kind == "channels" else (3, 4, 5)
    start = 10_000 * STEPS.index(step) + 1000 * LAYERS.index(layer) + 200 * list(KINDS).index(kind) + 7 * call
    return np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)


def snapshots(step):
    kinds = {"encoder.4": ["feature"], "head": ["feature"]}
    for layer in sorted(LAYERS):
        for kind in kinds.get(layer, ["channels", "gradient", "feature"]):
            yield Snapshot(step, layer, 0, kind, value(step, layer, kind))
    yield Snapshot(step, "head", 1, "feature", value(step, "head", "feature", 1))


def make_run(path, run_id="0a1b2c", info=()):
    """A small run in ``path``; its writing end."""
    store = SnapshotStore(path, run_id)
    for step in STEPS:
        store.write(step, snapshots(step))
    layers = {name: {"size": [4, 5]} for name in LAYERS}
    values = {"upsampler": "fade", "layers": layers, "figure_layer": "decoder.3.upsample", **dict(info)}
    store.write_info(RunInfo.from_dict(values))
    return store


@pytest.fixture
def store(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def run(store):
    return open_run(store.path)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def one_line(caught):
    line = str(caught.value)
    assert len(line.splitlines()) == 1, line
    return line


class TestStore:
    @settings(deadline=None, max_examples=40)
    @given(
        hnp.arrays(
            np.float32,
            hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6),
            elements=st.one_of(st.floats(width=32), st.sampled_from(EXTREMES.tolist())),
        ),
        st.integers(0, 10**12 - 1),
    )
    def test_round_trip_to_the_bit(self, array, step):
        with tempfile.TemporaryDirectory() as folder:
            store = SnapshotStore(folder, "x")
            store.write_info(RunInfo())
            store.write(step, [Snapshot(step, "a.b", 0, "feature", array)])
            run = open_run(folder)
            assert run.steps == (step,)
            back = run.read(step, "a.b", "feature")
            assert back.dtype == np.float32
            assert back.shape == array.shape
            assert back.tobytes() == array.tobytes()

    @pytest.mark.parametrize("kind", [np.int16, np.uint64, np.int64, np.array, torch.tensor])
    def test_integers_and_numbers_of_any_kind(self, tmp_path, kind):
        store = SnapshotStore(tmp_path, "x")
        numbers = {"a": np.float32(0.5), "b": [np.int64(3), np.bool_(True)], "c": np.arange(2), "d": torch.tensor(2)}
        store.write_info(RunInfo(seconds={"training": np.float64(1.5)}, last_step=kind(7), extra={"numbers": numbers}))
        store.write(kind(7), [Snapshot(kind(7), "a", 0, "feature", np.ones((1, 2, 2)))])
        store.append_metrics({"step": kind(7), "loss": np.float32(0.5)})
        run = open_run(tmp_path)
        assert (run.steps, run.metrics()) == ((7,), [{"step": 7, "loss": 0.5}])
        assert run.info.extra["numbers"] == {"a": 0.5, "b": [3, True], "c": [0, 1], "d": 2}
        assert run.info.last_step == 7
        assert check_run(tmp_path) == [
            Fault("observation.safetensors", "missing or damaged: figures cannot show the images")
        ]

    @pytest.mark.parametrize(
        ("step", "what"), [(3.0, "is a float"), ("3", "is a str"), (-1, "from 0 to"), (10**12, "from 0 to")]
    )
    def test_steps_that_are_none(self, tmp_path, step, what):
        store = SnapshotStore(tmp_path, "x")
        with pytest.raises(FadevizError, match=what) as caught:
            store.write(step, [Snapshot(0, "a", 0, "feature", np.ones((1, 2, 2)))])
        one_line(caught)
        assert list((tmp_path / "snapshots").iterdir()) == []

    def test_what_json_does_not_have_is_named(self, tmp_path):
        with pytest.raises(TypeError, match="Path cannot be stored|PosixPath cannot be stored"):
            SnapshotStore(tmp_path, "x").write_info(RunInfo(extra={"folder": tmp_path}))

    def test_a_layer_that_runs_more_often_later(self, tmp_path):
        store = SnapshotStore(tmp_path, "x")
        store.write_info(RunInfo())
        for step in range(3):
            store.write(
                step, [Snapshot(step, "a", call, "feature", np.full((1, 2, 2), call)) for call in range(step + 1)]
            )
        run = open_run(tmp_path)
        assert run.layers == {"a": ("feature",)}
        assert np.asarray(run.maps("a")).shape == (3, 1, 2, 2)
        assert np.asarray(run.maps("a", call=2, steps=[2])).tolist() == [[[[2, 2], [2, 2]]]]
        with pytest.raises(FadevizError, match="step 0: no 'feature' of 'a', call 1") as caught:
            run.maps("a", call=1)
        one_line(caught)
        assert check_run(tmp_path)[0].file == "observation.safetensors"
        assert len(check_run(tmp_path)) == 1

    def test_extremes_survive(self, tmp_path):
        store = SnapshotStore(tmp_path, "x")
        store.write_info(RunInfo())
        store.write(0, [Snapshot(0, "a", 0, "feature", EXTREMES.reshape(1, 2, 5))])
        assert open_run(tmp_path).read(0, "a", "feature").tobytes() == EXTREMES.tobytes()

    def test_views_are_written_as_they_look(self, tmp_path):
        array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(0, 2, 1)[:, ::-1]
        store = SnapshotStore(tmp_path, "x")
        store.write_info(RunInfo())
        store.write(0, [Snapshot(0, "a", 0, "feature", array)])
        assert np.array_equal(open_run(tmp_path).read(0, "a", "feature"), array)

    def test_the_same_write_gives_the_same_bytes(self, tmp_path):
        first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
        before = files(first.path)
        assert len(before) == len(STEPS) + 1
        assert files(second.path) == before
        for step in STEPS:
            first.write(step, snapshots(step))
        assert files(first.path) == before

    def test_the_same_bytes_from_other_processes(self, tmp_path):
        make_run(tmp_path / "here")
        code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n" + (
            "from pathlib import Path; from test_snapshots import make_run; make_run(Path(sys.argv[1]))"
        )
        for seed in ("1",):
            environment = {**os.environ, "PYTHONHASHSEED": seed}
            subprocess.run([sys.executable, "-c", code, tmp_path / seed], env=environment, check=True)
            assert files(tmp_path / seed) == files(tmp_path / "here")

    def test_a_step_is_replaced(self, store):
        store.write(5, [Snapshot(5, "head", 0, "feature", np.zeros((1, 2, 2)))])
        assert open_run(store.path).read(5, "head", "feature").shape == (1, 2, 2)

    @pytest.mark.parametrize("function", ["replace", "fsync"])
    @pytest.mark.parametrize(
        ("number", "line"),
        [
            (errno.ENOSPC, "disk full while writing {}: nothing was replaced. Free some space"),
            (errno.EACCES, "cannot write {}: Permission denied. Choose another folder"),
            (errno.EIO, "cannot write {}: Input/output error"),
        ],
    )
    def test_a_failed_write_changes_nothing(self, store, monkeypatch, function, number, line):
        def fail(*_):
            raise OSError(number, os.strerror(number))

        before = files(store.path)
        monkeypatch.setattr(os, function, fail)
        writes = {
            "snapshots/step_000005.safetensors": lambda: store.write(5, [Snapshot(5, "a", 0, "feature", EXTREMES)]),
            "snapshots/step_000006.safetensors": lambda: store.write(6, [Snapshot(6, "a", 0, "feature", EXTREMES)]),
            "run.json": lambda: store.write_info(RunInfo.from_dict({"upsampler": "carafe"})),
        }
        for name, write in writes.items():
            with pytest.raises(FadevizError) as caught:
                write()
            assert one_line(caught).startswith(line.format(store.path / name))
            assert files(store.path) == before

    def test_an_error_in_the_block_changes_nothing(self, tmp_path):
        path = tmp_path / "image.png"
        write_whole(path, b"old")

        def write():
            with replacing(path) as partial:
                partial.write_bytes(b"ne")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            write()
        assert files(tmp_path) == {"image.png": b"old"}

    def test_the_partial_file_keeps_the_suffix(self, tmp_path):
        with replacing(tmp_path / "new" / "image.png") as partial:
            assert partial.suffix == ".png"
            assert partial.parent == tmp_path / "new"
            partial.write_bytes(b"whole")
        assert files(tmp_path) == {"new/image.png": b"whole"}

    def test_a_file_where_the_folder_should_be(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(FadevizError) as caught:
            SnapshotStore(tmp_path / "file", "x")
        assert one_line(caught).startswith(f"cannot write {tmp_path / 'file'}")

    def test_a_file_where_a_folder_above_should_be(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(FadevizError) as caught:
            write_whole(tmp_path / "file" / "below", b"")
        assert one_line(caught).startswith(f"cannot write {tmp_path / 'file' / 'below'}")

    def test_what_a_crash_left_over_is_removed(self, store):
        before = files(store.path)
        for name in (".run.partial.json", "snapshots/.step_000007.partial.safetensors", ".last.partial.pt"):
            (store.path / name).write_bytes(b"half")
        assert open_run(store.path).steps == STEPS
        SnapshotStore(store.path, store.run_id)
        assert files(store.path) == before

    def test_forget_after(self, store):
        for step in (0, 5, 6, 120):
            store.append_metrics({"step": step, "loss": 0.5})
        (store.path / "snapshots" / "notes.txt").write_text("mine")
        store.forget_after(5)
        again = open_run(store.path)
        assert again.steps == (0, 5)
        assert [line["step"] for line in again.metrics()] == [0, 5]
        assert (store.path / "snapshots" / "notes.txt").exists()
        store.append_metrics({"step": 6, "loss": 0.25})
        assert again.metrics()[-1] == {"step": 6, "loss": 0.25}
        store.forget_after(-1)
        assert open_run(store.path).steps == ()
        assert open_run(store.path).metrics() == []

    def test_forget_after_mends_a_cut_off_line(self, store):
        store.append_metrics({"step": 1, "loss": 1.0})
        with (store.path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 2, "lo')
        store.forget_after(1)
        store.append_metrics({"step": 2, "loss": 0.5})
        assert open_run(store.path).metrics() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


class TestMetrics:
    def test_cut_off_and_garbage(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        whole = [{"step": 0, "miou": 0.25}, {"step": 1, "loss": 0.7, "lr": 0.01}, {"step": 1, "note": "Pferd ü"}]
        garbage = b'\x00\xff\xfe\n{}\n[]\n3\nnull\n{"step": "4"}\n{"loss": 1}\n\n'
        lines = [json.dumps(line).encode() + b"\n" for line in whole]
        path.write_bytes(lines[0] + garbage + lines[1] + lines[2] + b'{"step": 2, "loss": 0.')
        assert read_metrics(path) == whole
        text = lines[1].rstrip()
        for end in range(len(text)):
            path.write_bytes(lines[0] + text[:end])
            assert read_metrics(path) == whole[:1]

    def test_nan_survives(self, store):
        store.append_metrics({"step": 3, "boundary_iou": float("nan")})
        assert np.isnan(open_run(store.path).metrics()[0]["boundary_iou"])

    def test_no_file(self, run):
        assert run.metrics() == []

    @pytest.mark.parametrize("line", [b'{"step": ' + b"1" * 5000 + b"}", b"[" * 100_000], ids=["digits", "nesting"])
    def test_absurd_lines_are_left_out(self, tmp_path, line):
        (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


class TestRun:
    def test_steps_layers_kinds(self, run):
        assert run.steps == STEPS
        assert run.broken == {}
        assert run.layers == {
            "encoder.4": ("feature",),
            "decoder.10.upsample": ("feature", "gradient", "channels"),
            "decoder.3.upsample": ("feature", "gradient", "channels"),
            "head": ("feature",),
        }
        assert list(run.layers) == list(LAYERS)
        assert (run.run_id, run.name) == ("0a1b2c", "fade")
        assert "upsampler='fade', 3 snapshots" in repr(run)

    def test_layers_without_an_order_are_sorted(self, tmp_path):
        make_run(tmp_path / "run", info={"layers": {}, "upsampler": None})
        run = open_run(tmp_path / "run")
        assert list(run.layers) == sorted(LAYERS)
        assert run.name == "run"

    @pytest.mark.parametrize("kind", ["feature", "gradient", "channels"])
    @pytest.mark.parametrize("image", [None, 0, 1])
    @pytest.mark.parametrize("channel", [None, 0, 5])
    @pytest.mark.parametrize("steps", [None, (5,), (120, 0)])
    def test_maps(self, run, kind, image, channel, steps):
        layer = "decoder.10.upsample"
        maps = run.maps(layer, kind, image=image, channel=channel, steps=steps)
        wanted = np.stack([value(step, layer, kind) for step in steps or STEPS])
        if kind == "channels" and channel is not None:
            wanted = wanted[:, :, channel]
        if image is not None:
            wanted = wanted[:, image]
        assert maps.dtype == np.float32
        assert maps.shape == wanted.shape
        assert np.array_equal(maps, wanted)

    def test_a_layer_that_runs_twice(self, run):
        assert np.array_equal(run.maps("head", call=1, steps=[5])[0], value(5, "head", "feature", 1))
        assert np.array_equal(run.read(5, "head", "feature"), value(5, "head", "feature"))
        with pytest.raises(FadevizError, match="step 5: no 'feature' of 'head', call 2"):
            run.read(5, "head", "feature", 2)

    def test_default_layer(self, tmp_path, run):
        assert run.default_layer("feature") == "decoder.3.upsample"
        assert np.array_equal(run.maps(kind="gradient"), run.maps("decoder.3.upsample", "gradient"))
        for name, layer in (("a", None), ("b", "encoder.0")):
            make_run(tmp_path / name, info={"figure_layer": layer})
            other = open_run(tmp_path / name)
            assert other.default_layer("feature") == "decoder.3.upsample"  # the last but one of four
            assert other.default_layer("channels") == "decoder.10.upsample"  # the last but one of two
        store = SnapshotStore(tmp_path / "one", "x")
        store.write_info(RunInfo())
        store.write(0, [Snapshot(0, "only", 0, "feature", EXTREMES)])
        assert open_run(tmp_path / "one").default_layer("feature") == "only"

    def test_default_layer_prefers_one_that_has_the_kind(self, tmp_path):
        make_run(tmp_path, info={"figure_layer": "head"})
        run = open_run(tmp_path)
        assert run.default_layer("feature") == "head"
        assert run.default_layer("gradient") == "decoder.10.upsample"
        with pytest.raises(FadevizError, match="has no 'gate' maps. Recorded: feature, gradient, channels. Record"):
            run.default_layer("gate")

    def test_observation(self, store, run):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (2, 6, 8, 3), np.uint8).transpose(0, 2, 1, 3)
        masks = rng.integers(0, 256, (2, 6, 8), np.uint8).transpose(0, 2, 1)
        store.write_observation(images, masks)
        got = run.observation
        assert all(array.dtype == np.uint8 for array in got)
        assert np.array_equal(got[0], images)
        assert np.array_equal(got[1], masks)

    @pytest.mark.parametrize("data", [None, b"", b"\x00" * 40, b"garbage"])
    def test_observation_missing_or_damaged(self, store, run, data):
        if data is not None:
            (store.path / "observation.safetensors").write_bytes(data)
        with pytest.raises(FadevizError) as caught:
            _ = run.observation
        assert "observation.safetensors is missing or damaged" in one_line(caught)
        assert "overwrite=True" in one_line(caught)

    def test_reading_a_run_writes_nothing(self, store):
        before = files(store.path)
        run = open_run(store.path)
        run.maps(kind="feature")
        run.metrics()
        assert files(store.path) == before


class TestBrokenFiles:
    def check(self, store, name, reason):
        run = open_run(store.path)
        assert list(run.broken) == [name]
        assert reason in run.broken[name]
        assert len(run.broken[name].splitlines()) == 1
        whole = tuple(step for step in STEPS if f"step_{step:06d}.safetensors" != name)
        assert run.steps == whole
        for step in whole:
            assert np.array_equal(run.read(step, "head", "feature"), value(step, "head", "feature"))
        assert len(run.maps("head")) == len(whole)

    @pytest.mark.parametrize("share", [0, 1e-9, 0.001, 0.02, 0.5, 0.999])
    @pytest.mark.parametrize("step", [0, 5])
    def test_truncated(self, store, share, step):
        file = store.path / "snapshots" / f"step_{step:06d}.safetensors"
        data = file.read_bytes()
        file.write_bytes(data[: math.ceil(share * len(data))])
        self.check(store, file.name, "damaged: ")

    @pytest.mark.parametrize("seed", range(5))
    def test_random_bytes(self, store, seed):
        file = store.path / "snapshots" / "step_000005.safetensors"
        file.write_bytes(np.random.default_rng(seed).bytes(8 + 300 * seed))
        self.check(store, file.name, "damaged: ")

    def test_a_folder_of_that_name(self, store):
        file = store.path / "snapshots" / "step_000005.safetensors"
        file.unlink()
        file.mkdir()
        self.check(store, file.name, "damaged: ")

    def test_another_programs_file(self, store):
        file = store.path / "snapshots" / "step_000005.safetensors"
        save_file({"head/0/feature": EXTREMES}, file)
        self.check(store, file.name, "damaged: ")
        save_file({"head/0/feature": EXTREMES}, file, {"fadeviz": "[1]"})
        self.check(store, file.name, "belongs to another run than 0a1b2c")

    def test_of_another_run(self, store):
        file = SnapshotStore(store.path, "ffffff").write(5, snapshots(5))
        self.check(store, file.name, "belongs to another run than 0a1b2c")

    def test_renamed(self, store):
        folder = store.path / "snapshots"
        (folder / "step_000005.safetensors").rename(folder / "step_000006.safetensors")
        run = open_run(store.path)
        assert run.broken == {"step_000006.safetensors": "holds step 5"}
        assert run.steps == (0, 120)

    def test_other_names_are_no_snapshots(self, store):
        for name in ("step_5.safetensors", "step_000005.safetensors.bak", ".step_000005.partial.safetensors"):
            (store.path / "snapshots" / name).write_bytes(b"")
        run = open_run(store.path)
        assert (run.steps, run.broken) == (STEPS, {})

    def test_nothing_whole(self, store):
        for file in (store.path / "snapshots").iterdir():
            file.write_bytes(b"")
        run = open_run(store.path)
        assert (run.steps, len(run.broken)) == ((), 3)
        with pytest.raises(FadevizError, match="has no whole snapshot. Record it again"):
            run.maps()

    def test_no_snapshots_folder(self, tmp_path):
        (tmp_path / "run.json").write_text('{"format": 1, "run_id": "x"}')
        run = open_run(tmp_path)
        assert (run.steps, run.broken, run.name) == ((), {}, tmp_path.name)


class TestRunJson:
    @pytest.mark.parametrize(
        "text",
        [
            "", "[]", "3", "null", '"run"', "{", '{"format": 1, "run_id": "x"', "{}", '{"format": 1}',
            '{"run_id": "x"}', '{"format": "new", "run_id": "x"}', '{"format": null, "run_id": "x"}',
            '{"format": 1, "run_id": 3}', '{"format": 1, "run_id": null}', "\x00\x00", "not json\nat all",
            pytest.param(
                '{"format": Infinity, "run_id": "x"}',
            ),
        ],
    )  # fmt: skip
    def test_damaged(self, store, text):
        (store.path / "run.json").write_text(text)
        with pytest.raises(FadevizError) as caught:
            open_run(store.path)
        assert one_line(caught).startswith(f"{store.path}/run.json is damaged (")
        assert one_line(caught).endswith("Record the run again with overwrite=True")

    def test_cut_off_anywhere(self, store):
        data = (store.path / "run.json").read_bytes().rstrip()
        for end in range(0, len(data), 7):
            (store.path / "run.json").write_bytes(data[:end])
            with pytest.raises(FadevizError, match=r"run.json is damaged"):
                open_run(store.path)

    def test_not_utf8(self, store):
        (store.path / "run.json").write_bytes(b'{"format": 1, "run_id": "\xff"}')
        with pytest.raises(FadevizError, match=r"run.json is damaged"):
            open_run(store.path)

    def test_newer_format(self, store):
        (store.path / "run.json").write_text('{"format": 2, "run_id": "x"}')
        with pytest.raises(
            FadevizError, match=r"has format 2, this fadeviz reads up to 1. Upgrade: pip install"
        ) as got:
            open_run(store.path)
        one_line(got)

    @pytest.mark.parametrize(("count", "runs"), [(1, "1 run"), (3, "3 runs")])
    def test_a_folder_of_runs(self, tmp_path, count, runs):
        for name in map(str, range(count)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "run.json").write_text("{}")
        (tmp_path / "manifest.json").write_text("{}")
        with pytest.raises(FadevizError, match=rf"it has no run.json. It holds {runs}: give {tmp_path}/\*/$"):
            open_run(f"{tmp_path}/")

    def test_missing(self, tmp_path):
        with pytest.raises(FadevizError, match=r"is not a run: it has no run.json. Give the folder of a run"):
            open_run(tmp_path)
        with pytest.raises(FadevizError, match=rf"no run folder {tmp_path}/x. Make one: fadeviz record --out"):
            open_run(tmp_path / "x")

    def test_round_trip(self, tmp_path):
        store = SnapshotStore(tmp_path, "x")
        store.write_info(
            RunInfo.from_dict({"upsampler": "fade", "note": "Pferd ü 馬", "nested": {"a": [1, 2.5, None]}})
        )
        assert StoredRun(tmp_path).info.to_dict() == {
            "format": 1,
            "run_id": "x",
            "upsampler": "fade",
            "note": "Pferd ü 馬",
            "nested": {"a": [1, 2.5, None]},
        }


class TestWrongNames:
    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (("decoder.3.upsampel", "feature"), r"no layer in .* 'decoder.3.upsampel'. Nearest: 'decoder.3.upsample'"),
            (("head", "featur"), r"no kind 'featur'. Nearest: 'feature'"),
            (("head", "gate"), r"has no 'gate' maps of 'head'. There are: feature. Record them"),
        ],
    )
    def test_layer_and_kind(self, run, arguments, line):
        for call in (run.check, run.maps, lambda *a: run.read(5, *a)):
            with pytest.raises(FadevizError, match=line) as caught:
                call(*arguments)
            one_line(caught)

    @pytest.mark.parametrize("index", [-1, 2, 99])
    def test_image(self, run, index):
        with pytest.raises(FadevizError, match=rf"no image {index} in 'channels' of .*: there are 2, from 0 to 1"):
            run.maps("decoder.3.upsample", "channels", image=index)

    @pytest.mark.parametrize("image", [None, 0])
    @pytest.mark.parametrize("index", [-1, 6])
    def test_channel(self, run, index, image):
        with pytest.raises(FadevizError, match=rf"no channel {index} in layer 'decoder.*: there are 6, from 0 to 5"):
            run.maps("decoder.3.upsample", "channels", image=image, channel=index)

    def test_step(self, run):
        with pytest.raises(FadevizError, match=r"has no snapshot of step 7. It has: 0, 5, 120"):
            run.maps("head", steps=[0, 7])

    def test_many_steps_are_abridged(self, tmp_path):
        store = SnapshotStore(tmp_path, "x")
        store.write_info(RunInfo())
        for step in range(20):
            store.write(step, [Snapshot(step, "a", 0, "feature", EXTREMES)])
        with pytest.raises(FadevizError, match=r"It has: 0, 1, 2, 3, \.\.\., 17, 18, 19$"):
            open_run(tmp_path).read(99, "a", "feature")

    def test_no_steps_asked_for(self, run):
        with pytest.raises(FadevizError, match="no steps"):
            run.maps("head", steps=[])


def opened_files(monkeypatch):
    """The names of the files that are opened from now on, in order."""
    opened = []

    def spy(file, framework):
        opened.append(Path(file).name)
        return safe_open(file, framework)

    monkeypatch.setattr("fadeviz.storage.snapshots.safe_open", spy)
    return opened


class TestMaps:
    LAYER = "decoder.3.upsample"

    def whole(self, kind="feature"):
        return np.stack([value(step, self.LAYER, kind) for step in STEPS])

    def test_coordinates(self, tmp_path):
        make_run(tmp_path, info={"observation": {"names": ["cat", "dog"]}})
        run = open_run(tmp_path)
        maps = run.maps(self.LAYER)
        assert isinstance(maps, Maps)
        assert (maps.shape, maps.ndim, maps.size, maps.nbytes, len(maps)) == ((3, 3, 4, 5), 4, 180, 720, 3)
        assert maps.dtype == np.float32
        assert (maps.layer, maps.kind, maps.call, maps.steps) == (self.LAYER, "feature", 0, STEPS)
        assert maps.dims == ("step", "image", "y", "x")
        assert maps.images == ("cat", "dog", "image 2")  # run.json names two of the three
        assert run.maps(self.LAYER, image=1).images == ("dog",)
        channels = run.maps(self.LAYER, "channels", steps=[120, 0])
        assert channels.dims == ("step", "image", "channel", "y", "x")
        assert channels.steps == (120, 0)
        assert run.maps(self.LAYER, "channels", image=0, channel=2).dims == ("step", "y", "x")
        told = repr(run.maps(self.LAYER, "channels", channel=2))
        assert "fade, decoder.3.upsample, channels, channel 2: step 3, image 2, y 4, x 5; float32, 480 bytes" in told
        assert "steps 0, 5, 120" in told

    @pytest.mark.parametrize(
        "index",
        [
            0, -1, np.int64(1), slice(None), slice(1, 3), slice(None, None, -1), slice(5, 9), slice(-2, None), ...,
            [0, 2], [2, 0, 0], [], [-1], np.array([1, 2]), [True, False, True], np.array([False] * 3),
            (1, 1), (1, -1), (slice(None), 0), (slice(None), slice(1, None)), (..., 0), (..., slice(None, None, 2)),
            (0, ...), (0, 1, 2, 3), (slice(0, 2), slice(None, None, -1)), (slice(None), slice(2, None, -2)),
            (slice(None), slice(9, 1)), ([0, 2], 1), ([2, 1], slice(0, 2), ..., 4), (0, slice(1, 1)),
            (slice(1, 1), 0), (-1, ..., slice(1, 3), slice(4, 0, -3)), (0, slice(None), 1), (),
        ],
        ids=str,
    )  # fmt: skip
    @pytest.mark.parametrize("kind", ["feature", "channels"])
    def test_an_index_gives_what_it_gives_of_an_array(self, run, kind, index):
        maps, whole = run.maps(self.LAYER, kind), self.whole(kind)
        if kind == "channels" and isinstance(index, tuple) and len(index) == 4 and Ellipsis not in index:
            index = (*index, 0)
        got = maps[index]
        assert got.dtype == np.float32
        assert got.shape == whole[index].shape
        assert np.array_equal(got, whole[index])

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_any_slices(self, tmp_path_factory, data):
        if not hasattr(type(self), "opened"):
            make_run(tmp_path_factory.mktemp("slices"))
            type(self).opened = open_run(tmp_path_factory.getbasetemp() / "slices0")
        image, channel = data.draw(st.sampled_from([None, 0, 1])), data.draw(st.sampled_from([None, 0, 5]))
        maps = self.opened.maps(self.LAYER, "channels", image=image, channel=channel)
        whole = self.whole("channels")
        whole = whole if channel is None else whole[:, :, channel]
        whole = whole if image is None else whole[:, image]
        index = tuple(data.draw(st.one_of(st.integers(-n, n - 1), st.slices(n))) for n in whole.shape)
        index = index[: data.draw(st.integers(0, len(index)))]
        assert np.array_equal(maps[index], whole[index])

    @pytest.mark.parametrize(
        ("index", "line"),
        [
            (3, "index 3 is out of bounds for axis 'step' with size 3"),
            ((0, -4), "index -4 is out of bounds for axis 'image' with size 3"),
            ([0, 3], "out of bounds for axis 'step'"),
            ((0, 0, 0, 0, 0), "too many indices: maps have 4 axes"),
            ((..., 0, ...), "single ellipsis"),
            (None, "axis 'step' of maps takes integers, slices and a list, not NoneType: index np.asarray"),
            ((0, [0, 1]), "axis 'image' of maps takes integers and slices, not list"),
            (True, "not bool"),
            (1.0, "not float"),
            ([[0, 1]], "not list"),
            ([0.5], "not float64"),
            ([True, False], "not bool"),
            ("head", "not str"),
        ],
    )
    def test_other_indices_are_refused(self, run, index, line):
        with pytest.raises(IndexError, match=line):
            run.maps(self.LAYER)[index]

    def test_as_an_array(self, run):
        maps, whole = run.maps(self.LAYER), self.whole()
        assert np.array_equal(np.asarray(maps), whole)
        assert np.asarray(maps, np.float64).dtype == np.float64
        assert np.array(maps, copy=True).tobytes() == whole.tobytes()
        assert np.mean(maps) == np.mean(whole)
        with pytest.raises(ValueError, match="always a copy"):
            np.array(maps, copy=False)
        assert [m.tolist() for m in maps] == whole.tolist()
        first = maps[0]
        first[:] = 0
        assert np.array_equal(maps[0], whole[0])

    def test_only_what_is_indexed_is_read(self, tmp_path, monkeypatch):
        store = SnapshotStore(tmp_path, "x")
        store.write_info(RunInfo())
        for step in range(10):
            store.write(step, [Snapshot(step, "a", 0, "feature", np.full((3, 4, 5), step, np.float32))])
        run = open_run(tmp_path)
        assert run.layers
        opened = opened_files(monkeypatch)
        maps = run.maps("a")
        assert set(opened) == {"step_000000.safetensors"}  # one header, for the shape
        opened.clear()
        assert maps[3:5, 0].tolist() == [np.full((4, 5), step).tolist() for step in (3, 4)]
        assert set(opened) == {"step_000003.safetensors", "step_000004.safetensors"}
        opened.clear()
        assert maps[7, 1, 2, 3] == 7
        assert maps.steps[-1] == 9
        assert repr(maps)
        assert set(opened) == {"step_000007.safetensors"}
        opened.clear()
        rows = iter(maps)
        assert next(rows)[0, 0, 0] == 0
        assert set(opened) == {"step_000000.safetensors"}

    @pytest.mark.parametrize(
        ("index", "asked"),
        [
            ((0, 1), (slice(1, 2),)),
            ((0, slice(None, 0, -1)), (slice(1, 3),)),
            ((0, ..., 2), (slice(0, 3),)),
            ((0, slice(3, 9)), (slice(0, 1),)),
        ],
    )
    def test_of_a_step_only_the_images_are_read(self, run, monkeypatch, index, asked):
        taken = []

        class Handle:
            def __init__(self, file, framework):
                self.file = safe_open(file, framework)

            def __enter__(self):
                self.file.__enter__()
                return self

            def __exit__(self, *error):
                return self.file.__exit__(*error)

            def __getattr__(self, name):
                return getattr(self.file, name)

            def get_slice(self, key):
                part = self.file.get_slice(key)

                class Part:
                    get_shape, get_dtype = part.get_shape, part.get_dtype

                    def __getitem__(self, index):
                        taken.append(index)
                        return part[index]

                return Part()

        maps = run.maps(self.LAYER)
        monkeypatch.setattr("fadeviz.storage.snapshots.safe_open", Handle)
        assert np.array_equal(maps[index], self.whole()[index])
        assert taken == [asked]

    def test_another_shape_is_named(self, store):
        store.write(5, [Snapshot(5, self.LAYER, 0, "feature", np.zeros((3, 8, 8)))])
        maps = open_run(store.path).maps(self.LAYER)
        line = "step_000005.safetensors: 'feature' of 'decoder.3.upsample' is 3x8x8, but 3x4x5 at step 0. Choose"
        for read in (lambda: maps[1], lambda: maps[:], lambda: np.asarray(maps), lambda: maps[[0, 1], 0]):
            with pytest.raises(FadevizError, match=line) as caught:
                read()
            one_line(caught)
        assert np.array_equal(maps[[0, 2]], self.whole()[[0, 2]])

    @pytest.mark.parametrize("shape", [(), (4,), (4, 5), (1, 3, 4, 5), (3, 0, 5), (2**31, 0, 4)])
    def test_axes_that_are_no_maps(self, store, shape):
        store.write(0, [Snapshot(0, self.LAYER, 0, "feature", np.zeros(shape))])
        with pytest.raises(FadevizError, match="step 0: 'feature' of .* axes that are not empty are needed") as caught:
            open_run(store.path).maps(self.LAYER)
        one_line(caught)

    @pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint8])
    def test_another_type_is_refused(self, store, dtype):
        header = {"fadeviz": json.dumps({"step": 5, "run_id": store.run_id})}
        save_file({"head/0/feature": np.zeros((3, 4, 5), dtype)}, store.path / "snapshots" / FIFTH, header)
        run = open_run(store.path)
        for read in (lambda: run.read(5, "head", "feature"), lambda: run.maps("head")[1]):
            with pytest.raises(FadevizError, match=r"step_000005.safetensors: head/0/feature is .*, but F32 is") as got:
                read()
            one_line(got)

    def test_a_file_that_goes_while_it_is_read(self, store):
        maps = open_run(store.path).maps("head")
        (store.path / "snapshots" / FIFTH).unlink()
        with pytest.raises(
            FadevizError, match=r"step_000005.safetensors cannot be read .*Open the run again"
        ) as caught:
            np.asarray(maps)
        one_line(caught)

    def test_a_pickled_run_is_opened_again(self, run):
        maps = pickle.loads(pickle.dumps(run.maps(self.LAYER)))
        assert np.array_equal(maps, self.whole())
        assert maps.files.folder.path == run.path


class TestXarray:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("xarray", reason='needs xarray: pip install ".[xarray]"')

    def test_maps(self, tmp_path):
        make_run(tmp_path, info={"observation": {"names": ["cat", "dog", "cow"]}})
        run = open_run(tmp_path)
        array = run.maps("head").to_xarray()
        assert array.dims == ("step", "image", "y", "x")
        assert array.dtype == np.float32
        assert array.name == "feature"
        assert array.sel(step=5, image="dog").equals(array[1, 1])
        assert np.array_equal(array.sel(step=5, image="dog"), value(5, "head", "feature")[1])
        assert array.coords["x"].values.tolist() == [0, 1, 2, 3, 4]
        assert array.attrs["layer"] == "head"
        assert array.attrs["run"] == "0a1b2c"
        assert array.attrs["meaning"] == KINDS["feature"]
        one = run.maps("decoder.3.upsample", "channels", image=1, channel=4, steps=[5]).to_xarray()
        assert one.dims == ("step", "y", "x")
        assert (one.coords["image"].item(), one.coords["channel"].item()) == ("dog", 4)
        assert run.maps("decoder.3.upsample", "channels").to_xarray().dims == ("step", "image", "channel", "y", "x")

    def test_a_layer(self, run):
        found = run.to_xarray()
        assert set(found.data_vars) == {"feature", "gradient"}
        assert found.attrs == {"run": "0a1b2c", "layer": "decoder.3.upsample", "left_out": "channels"}
        assert np.array_equal(found["gradient"], run.maps(kind="gradient"))
        assert set(run.to_xarray("head").data_vars) == {"feature"}
        with pytest.raises(FadevizError, match="no layer in .* 'heads'. Nearest: 'head'"):
            run.to_xarray("heads")

    def test_kinds_of_another_size_are_left_out(self, tmp_path):
        store = SnapshotStore(tmp_path, "x")
        store.write_info(RunInfo())
        kinds = {"feature": (2, 4, 5), "gate": (2, 8, 10), "gradient": (2, 4, 5), "constant": (1, 4, 5)}
        store.write(0, [Snapshot(0, "a", 0, kind, np.zeros(shape)) for kind, shape in kinds.items()])
        found = open_run(tmp_path).to_xarray()
        assert set(found.data_vars) == {"feature", "gradient"}
        assert found.attrs["left_out"] == "gate, constant"
        assert open_run(tmp_path).maps("a", "constant").images == ("constant input",)

    def test_missing(self, run, monkeypatch):
        monkeypatch.setitem(sys.modules, "xarray", None)
        for call in (run.to_xarray, run.maps("head").to_xarray):
            with pytest.raises(FadevizError, match=r'needs xarray, .* pip install "\.\[xarray\]"'):
                call()


def crafted(entries, data=b"", **header):
    """A safetensors file with any header."""
    text = json.dumps({"__metadata__": {"fadeviz": json.dumps(header)}, **entries}).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HUGE = 2**20
"""Along each of two axes: 4 TB."""


class TestClaims:
    """Headers that claim more than there is: refused before any room is taken."""

    @pytest.fixture(autouse=True)
    def _little_room(self):
        tracemalloc.start()
        yield
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert taken < 20e6

    @pytest.mark.parametrize(
        "data",
        [
            crafted({"head/0/feature": entry("F32", [1, HUGE, HUGE], 0, 2**42)}, bytes(64), step=5, run_id="0a1b2c"),
            crafted({"head/0/feature": entry("F32", [1, HUGE, HUGE], 0, 64)}, bytes(64), step=5, run_id="0a1b2c"),
            crafted({"head/0/feature": entry("F32", [2**63, 2**63, 0], 0, 0)}, step=5, run_id="0a1b2c"),
            crafted({"head/0/feature": entry("F32", [-1, -4, 4], 0, 64)}, bytes(64), step=5, run_id="0a1b2c"),
            crafted({"head/0/feature": entry("F32", [1, 4, 4], 0, 64)}, bytes(60), step=5, run_id="0a1b2c"),
            struct.pack("<Q", 2**60) + b"{}",
        ],
        ids=["more than the file", "more than its bytes", "overflow", "negative", "cut off", "header"],
    )  # fmt: skip
    def test_snapshots(self, store, data):
        (store.path / "snapshots" / FIFTH).write_bytes(data)
        run = open_run(store.path)
        assert run.steps == (0, 120)
        assert run.broken[FIFTH].startswith("damaged: ")
        assert np.asarray(run.maps("head")).shape == (2, 3, 4, 5)

    def test_a_large_first_step_takes_no_room_for_others(self, tmp_path):
        store = SnapshotStore(tmp_path, "x")
        store.write_info(RunInfo())
        store.write(0, [Snapshot(0, "a", 0, "feature", np.zeros((1, 512, 1024)))])  # 2 MB; for all steps 400 MB
        for step in range(1, 200):
            store.write(step, [Snapshot(step, "a", 0, "feature", np.zeros((1, 1, 1)))])
        maps = open_run(tmp_path).maps("a")
        tracemalloc.reset_peak()
        with pytest.raises(FadevizError, match="step_000001.safetensors: 'feature' of 'a' is 1x1x1, but 1x512x1024"):
            np.asarray(maps)
        assert tracemalloc.get_traced_memory()[1] < 20e6

    @pytest.mark.parametrize(
        ("images", "masks", "line"),
        [
            (np.zeros((2, 4, 5), np.uint8), np.zeros((2, 4, 5), np.uint8), r"images \(2, 4, 5\) and masks"),
            (np.zeros((2, 4, 5, 4), np.uint8), np.zeros((2, 4, 5), np.uint8), r"images \(2, 4, 5, 4\)"),
            (np.zeros((2, 4, 5, 3), np.uint8), np.zeros((1, 4, 5), np.uint8), r"masks \(1, 4, 5\)"),
            (np.zeros((2, 4, 5, 3), np.float32), np.zeros((2, 4, 5), np.uint8), "F32 and U8, but U8"),
            (np.zeros((2, 4, 5, 3), np.uint8), np.zeros((2, 4, 5), np.int64), "I64 and U8, but U8"),
            (np.zeros((0, 4, 5, 3), np.uint8), np.zeros((0, 4, 5), np.uint8), r"images \(0, 4, 5, 3\)"),
        ],
    )
    def test_observation(self, store, images, masks, line):
        save_file({"images": images, "masks": masks}, store.path / "observation.safetensors")
        with pytest.raises(FadevizError, match=line) as caught:
            _ = open_run(store.path).observation
        assert "observation.safetensors holds" in one_line(caught)

    @pytest.mark.parametrize(
        "data",
        [
            crafted({"images": entry("U8", [HUGE, HUGE, 4, 3], 0, 12 * HUGE**2)}, bytes(64)),
            crafted({"images": entry("U8", [1, 2, 2, 3], 0, 12)}, bytes(12)),
        ],
        ids=["huge", "no masks"],
    )
    def test_observation_damaged(self, store, data):
        (store.path / "observation.safetensors").write_bytes(data)
        with pytest.raises(FadevizError, match="observation.safetensors is missing or damaged") as caught:
            _ = open_run(store.path).observation
        one_line(caught)


def test_reading_and_drawing_leave_torch_out():
    code = (
        "import importlib, pkgutil, sys, fadeviz, fadeviz.storage.snapshots, fadeviz.storage.schedule\n"
        "import fadeviz.render as r\n"
        "names = [m.name for m in pkgutil.iter_modules(r.__path__)]\n"
        "for name in names: importlib.import_module('fadeviz.render.' + name)\n"
        "print(len(names), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    count, torch_loaded = done.stdout.split()
    assert int(count) >= 4
    assert torch_loaded == "False"
