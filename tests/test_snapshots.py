"""Run folders: what is written is read back to the bit, a failed write changes nothing, damage is named."""

import errno
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from fadeviz import FadevizError, Run, Snapshot, open_run
from fadeviz.snapshots import KINDS, SnapshotStore, read_metrics, replacing, write_whole

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("encoder.4", "decoder.10.upsample", "decoder.3.upsample", "head")
"""In the network's order, which is neither that of the alphabet nor that of the files."""
STEPS = (0, 5, 120)
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
    layers = {name: name for name in LAYERS}
    store.write_info({"upsampler": "fade", "layers": layers, "figure_layer": "decoder.3.upsample", **dict(info)})
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
            store.write_info({})
            store.write(step, [Snapshot(step, "a.b", 0, "feature", array)])
            run = open_run(folder)
            assert run.steps == (step,)
            back = run.read(step, "a.b", "feature")
            assert back.dtype == np.float32
            assert back.shape == array.shape
            assert back.tobytes() == array.tobytes()

    def test_extremes_survive(self, tmp_path):
        store = SnapshotStore(tmp_path, "x")
        store.write_info({})
        store.write(0, [Snapshot(0, "a", 0, "feature", EXTREMES.reshape(1, 2, 5))])
        assert open_run(tmp_path).read(0, "a", "feature").tobytes() == EXTREMES.tobytes()

    def test_views_are_written_as_they_look(self, tmp_path):
        array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(0, 2, 1)[:, ::-1]
        store = SnapshotStore(tmp_path, "x")
        store.write_info({})
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
        for seed in ("1", "2"):
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
            "run.json": lambda: store.write_info({"upsampler": "carafe"}),
        }
        for name, write in writes.items():
            with pytest.raises(FadevizError) as caught:
                write()
            assert one_line(caught).startswith(line.format(store.path / name))
            assert files(store.path) == before

    def test_an_error_in_the_block_changes_nothing(self, tmp_path):
        path = tmp_path / "picture.png"
        write_whole(path, b"old")

        def write():
            with replacing(path) as partial:
                partial.write_bytes(b"ne")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            write()
        assert files(tmp_path) == {"picture.png": b"old"}

    def test_the_partial_file_keeps_the_suffix(self, tmp_path):
        with replacing(tmp_path / "new" / "picture.png") as partial:
            assert partial.suffix == ".png"
            assert partial.parent == tmp_path / "new"
            partial.write_bytes(b"whole")
        assert files(tmp_path) == {"new/picture.png": b"whole"}

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
        store.write_info({})
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
        assert "--overwrite" in one_line(caught)

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
        assert one_line(caught).endswith("Record the run again with --overwrite")

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

    def test_missing(self, tmp_path):
        with pytest.raises(FadevizError, match=r"is not a run: it has no run.json. Give the folder that --out named"):
            open_run(tmp_path)
        with pytest.raises(FadevizError, match=rf"no run folder {tmp_path}/x. Make one: fadeviz record --out"):
            open_run(tmp_path / "x")

    def test_round_trip(self, tmp_path):
        store = SnapshotStore(tmp_path, "x")
        store.write_info({"upsampler": "fade", "note": "Pferd ü 馬", "nested": {"a": [1, 2.5, None]}})
        assert Run(tmp_path).info == {
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
        store.write_info({})
        for step in range(20):
            store.write(step, [Snapshot(step, "a", 0, "feature", EXTREMES)])
        with pytest.raises(FadevizError, match=r"It has: 0, 1, 2, 3, \.\.\., 17, 18, 19$"):
            open_run(tmp_path).read(99, "a", "feature")

    def test_no_steps_asked_for(self, run):
        with pytest.raises(FadevizError, match="no steps"):
            run.maps("head", steps=[])


def test_reading_and_drawing_leave_torch_out():
    code = (
        "import importlib, pkgutil, sys, fadeviz, fadeviz.snapshots, fadeviz.schedule, fadeviz.render as r\n"
        "names = [m.name for m in pkgutil.iter_modules(r.__path__)]\n"
        "for name in names: importlib.import_module('fadeviz.render.' + name)\n"
        "print(len(names), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    count, torch_loaded = done.stdout.split()
    assert int(count) >= 4
    assert torch_loaded == "False"
