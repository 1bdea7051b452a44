"""Measured results in files: used only if nothing they depend on has changed, and never in the way of anything."""

import contextlib
import errno
import functools
import http.server
import json
import os
import shutil
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fadeviz import FadevizError, open_run
from fadeviz.storage import files, measured
from fadeviz.storage.check import check_run, repair_run
from fadeviz.storage.measured import stored_measurement
from fadeviz.storage.snapshots import Snapshot, SnapshotStore, remove_run
from render_runs import LAYER, STEPS, make_run

NAME = f"contrast {LAYER}/0/feature"
DEPENDS_ON = {"method": 2, "layer": LAYER, "band": 0.5, "steps": STEPS, "masks": "8f14e45f"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder of this test."""
    monkeypatch.delenv("FADEVIZ_MEASURED")
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # waiting for the disk is most of the time
    monkeypatch.setattr(measured, "_cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "run").path


class Measure:
    """Means of the maps, and how often they were measured."""

    def __init__(self, run, extra=0.0):
        self.run, self.extra, self.times = run, extra, 0

    def __call__(self):
        self.times += 1
        steps = self.run.steps
        return {
            "mean": np.array([self.run.read(step, LAYER, "feature").mean() for step in steps]) + self.extra,
            "steps": np.array(steps),
        }


def measure(folder, depends_on=DEPENDS_ON, name=NAME, **options):
    """The result for a run that was opened anew, and whether it was measured."""
    run = open_run(folder)
    by = Measure(run)
    values = stored_measurement(run, name, depends_on, by, **options)
    expected = Measure(run)()
    assert list(values) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(values[key], value)  # whatever was done to the files
    return by.times == 1


def entries(folder):
    return sorted(path for path in folder.iterdir()) if folder.is_dir() else []


def change_map(folder, step=50):
    """Another map in one snapshot, as a run that was overwritten has."""
    store = SnapshotStore(folder, "a1b2c3")
    maps = [
        Snapshot(step, LAYER, 0, kind, open_run(folder).read(step, LAYER, kind) + (kind == "feature"))
        for kind in ("feature", "gradient", "channels", "gate")
    ]
    store.write(step, maps)


class TestStored:
    def test_once(self, folder, cache):
        assert measure(folder)
        assert not measure(folder)
        (entry,) = entries(folder / "measured")
        assert entry.name.startswith("contrast_decoder_3_upsample_0_feature_")
        assert not cache.exists()
        shutil.move(folder, folder.parent / "Füchse 馬")
        assert not measure(folder.parent / "Füchse 馬")

    def test_bits_dtypes_shapes_and_order(self, folder):
        values = {
            "z": np.array([np.nan, -0.0, np.inf, 5e-324]),
            "a": np.arange(6, dtype=">i2").reshape(2, 3).T,
            "": np.array(True),
            "none": np.zeros((0, 4), np.float32),
            "half": np.array([[1.5]], np.float16),
            "plain": 3,
        }
        run = open_run(folder)
        first = stored_measurement(run, "x", {}, lambda: values)
        again = stored_measurement(run, "x", {}, lambda: pytest.fail("measured again"))
        assert list(first) == list(again) == list(values)
        for name, value in values.items():
            for result in (first[name], again[name]):
                np.testing.assert_array_equal(result, value)
                assert result.shape == np.shape(value)
                assert result.dtype == np.asarray(value).dtype.newbyteorder("=")
            assert first[name].tobytes() == again[name].tobytes()
        again["z"][0] = 1  # the caller's own

    @pytest.mark.parametrize("value", ["text", 1j, None, np.array([{}])])
    def test_only_numbers(self, folder, value):
        with pytest.raises(TypeError, match="'a' is .*, but only numbers"):
            stored_measurement(open_run(folder), "x", {}, lambda: {"a": value})

    def test_errors_of_the_measurement_are_the_callers(self, folder):
        def fails():
            raise FadevizError("no outline")

        with pytest.raises(FadevizError, match="no outline"):
            stored_measurement(open_run(folder), "x", {}, fails)
        assert not (folder / "measured").exists()

    def test_names_have_files_of_their_own(self, folder):
        for name in ("A/b", "a b", "a/b", "x" * 300, "../../a", "馬", "\udcff", ""):
            assert measure(folder, name=name)
        assert len(entries(folder / "measured")) == 8
        assert check_run(folder) == []
        assert not any(measure(folder, name=name) for name in ("A/b", "a b", "../../a", "馬", "\udcff"))


class TestMeasuredAgain:
    @pytest.mark.parametrize(
        "change",
        [{"method": 3}, {"band": 0.25}, {"steps": STEPS[:-1]}, {"masks": "c81e728d"}, {"layer": "x"}, {"new": None}],
    )
    def test_another_dependency(self, folder, change):
        assert measure(folder)
        assert measure(folder, DEPENDS_ON | change)
        assert not measure(folder, DEPENDS_ON | change)
        assert len(entries(folder / "measured")) == 1  # the new one replaced it

    def test_equal_dependencies_of_other_types(self, folder):
        assert measure(folder)
        alike = {key: DEPENDS_ON[key] for key in reversed(DEPENDS_ON)}
        assert not measure(folder, alike | {"steps": np.array(STEPS), "band": np.float64(0.5), "method": np.int8(2)})

    def test_another_map(self, folder):
        assert measure(folder)
        change_map(folder)
        assert measure(folder)
        assert not measure(folder)

    def test_another_map_of_the_same_size_and_date(self, folder):
        for file in folder.rglob("step*"):
            os.utime(file, (0, 0))
        assert measure(folder)
        change_map(folder)
        for file in folder.rglob("step*"):
            os.utime(file, (0, 0))
        assert measure(folder)
        assert not measure(folder)

    def test_a_map_that_was_changed_in_its_place(self, folder):
        """Its header says what it was, so the time alone tells."""
        assert measure(folder)
        file = folder / "snapshots/step_000050.safetensors"
        data = bytearray(file.read_bytes())
        data[-4 * 24 * 32 * 2 :: 4] = bytes(len(data[-4 * 24 * 32 * 2 :: 4]))
        time.sleep(0.02)  # more than a tick of the file system's clock
        file.write_bytes(data)
        assert measure(folder)

    def test_a_snapshot_more_or_less(self, folder):
        assert measure(folder)
        shutil.move(folder / "snapshots/step_000050.safetensors", folder.parent)
        assert measure(folder)
        shutil.move(folder.parent / "step_000050.safetensors", folder / "snapshots")
        assert measure(folder)

    def test_only_the_steps_that_are_measured_count(self, folder):
        early = {"steps": STEPS[:4]}

        def by(run):
            return lambda: {"mean": np.array([run.read(step, LAYER, "feature").mean() for step in STEPS[:4]])}

        first = stored_measurement(open_run(folder), NAME, DEPENDS_ON, by(open_run(folder)), **early)
        change_map(folder)
        again = stored_measurement(open_run(folder), NAME, DEPENDS_ON, lambda: pytest.fail("measured"), **early)
        np.testing.assert_array_equal(first["mean"], again["mean"])
        with pytest.raises(FadevizError, match="no snapshot of step 7"):
            stored_measurement(open_run(folder), NAME, DEPENDS_ON, dict, steps=[7])

    def test_a_growing_run(self, tmp_path):
        folder = make_run(tmp_path / "run", steps=STEPS[:3]).path
        run = open_run(folder)
        assert run.steps == STEPS[:3]
        assert measure(folder)
        make_run(tmp_path / "more", steps=STEPS[:4])
        shutil.copy(tmp_path / "more/snapshots/step_000030.safetensors", folder / "snapshots")
        assert measure(folder)
        assert not measure(folder)
        assert stored_measurement(run, NAME, {}, Measure(run))["steps"].size == 3  # as it was when it was opened

    def test_a_snapshot_that_changes_meanwhile_is_not_stored(self, folder, cache):
        run = open_run(folder)
        by = Measure(run)

        def during():
            values = by()
            change_map(folder)
            return values

        stored_measurement(run, NAME, DEPENDS_ON, during)
        assert not entries(folder / "measured")
        assert not entries(cache)
        assert measure(folder)

    def test_an_overwritten_run(self, folder, cache):
        assert measure(folder)
        (folder / "measured" / "notes.txt").write_text("mine")
        remove_run(folder)
        assert [entry.name for entry in entries(folder / "measured")] == ["notes.txt"]
        (folder / "measured" / "notes.txt").unlink()
        make_run(folder, seed=1)
        assert measure(folder)
        remove_run(folder)
        assert list(folder.iterdir()) == []

    def test_a_copy_of_another_runs_results(self, folder, tmp_path):
        other = make_run(tmp_path / "other", run_id="other", seed=3).path
        assert measure(other)
        shutil.copytree(other / "measured", folder / "measured")
        (fault,) = check_run(folder)
        assert fault.what == "belongs to another run than a1b2c3"
        assert measure(folder)
        assert check_run(folder) == []


def truncate(file):
    file.write_bytes(file.read_bytes()[:-3])


def edit(file, change):
    """Written anew in good order, with another content."""
    with safe_open(file, "np") as opened:
        header = json.loads(opened.metadata()["fadeviz"])
    arrays = load_file(file)
    change(header, arrays)
    save_file(arrays, file, metadata={"fadeviz": json.dumps(header)})


def value(header, arrays):
    arrays["mean"][3] += 1


def dtype(header, arrays):
    arrays["steps"] = arrays["steps"].view(np.float64)


def shape(header, arrays):
    arrays["mean"] = arrays["mean"].reshape(3, 4)


def swapped(header, arrays):
    arrays["mean"], arrays["steps"] = arrays["steps"], arrays["mean"]


def dropped(header, arrays):
    del arrays["steps"]
    header["arrays"].remove("steps")


def added(header, arrays):
    arrays["more"] = arrays["mean"]


def odd(header, arrays):
    header["arrays"] = {"mean": [1]}


def link_to_device(file):
    file.unlink()
    file.symlink_to("/dev/zero")


DAMAGES = {
    "truncated": truncate,
    "empty": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"\xff" * 500),
    "nested": lambda file: file.write_bytes((60000).to_bytes(8, "little") + b"[" * 60000),
    "fifo": lambda file: (file.unlink(), os.mkfifo(file)),
    "device": link_to_device,
    **{change.__name__: lambda file, change=change: edit(file, change) for change in
       (value, dtype, shape, swapped, dropped, added, odd)},
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
class TestDamaged:
    def test_it_is_measured_again(self, folder, damage):
        assert measure(folder)
        damage(entries(folder / "measured")[0])
        assert measure(folder)
        assert check_run(folder) == []
        assert not measure(folder)

    def test_it_is_named_and_removed(self, folder, damage):
        assert measure(folder)
        assert measure(folder, name="another")
        good, harmed = entries(folder / "measured")
        damage(harmed)
        before = good.read_bytes()
        (fault,) = check_run(folder)
        assert fault.file == f"measured/{harmed.name}"
        result = CliRunner().invoke(main, ["check", str(folder), "--repair"])
        assert result.exit_code == 0, result.output
        assert "removed; it is measured again when it is needed" in result.output
        assert entries(folder / "measured") == [good]
        assert good.read_bytes() == before


def test_a_flipped_bit_gives_no_other_result(folder, monkeypatch):
    assert measure(folder)
    monkeypatch.setattr(measured, "_store", lambda *_: None)
    (entry,) = entries(folder / "measured")
    whole = entry.read_bytes()
    rng = np.random.default_rng(0)
    run = open_run(folder)
    expected = Measure(run)()
    by = Measure(run)
    for place in rng.integers(0, len(whole), 60):
        data = bytearray(whole)
        data[place] ^= 1 << rng.integers(8)
        entry.write_bytes(data)
        values = stored_measurement(run, NAME, DEPENDS_ON, by)
        for key, array in expected.items():
            np.testing.assert_array_equal(values[key], array)
            assert values[key].dtype == array.dtype
    assert 40 < by.times <= 60  # a blank of the header's padding may have become another one


def test_what_is_out_of_date_or_unrelated_is_no_fault(folder):
    assert measure(folder)
    (folder / "measured" / "thesis.safetensors").write_bytes(b"mine")
    change_map(folder)
    assert check_run(folder) == []
    (entry, _) = entries(folder / "measured")
    entry.rename(entry.with_name(f"another_{'0' * 12}.safetensors"))
    assert [fault.what for fault in check_run(folder)] == [f"holds {NAME}"]


def test_a_leftover_is_removed_by_a_repair_and_by_the_next_recording(folder):
    assert measure(folder)
    (entry,) = entries(folder / "measured")
    for remove in (lambda: repair_run(folder), lambda: SnapshotStore(folder, "a1b2c3")):
        partial = entry.with_name(f".{entry.stem}.{files.machine()}-{2**31}.partial.safetensors")
        partial.write_bytes(b"x")
        assert [fault.what for fault in check_run(folder)] == ["left over from an unfinished write"]
        remove()
        assert entries(folder / "measured") == [entry]


class TestPlaces:
    def refuse(self, monkeypatch, number, *folders):
        opened = Path.write_bytes

        def write(path, data):
            if any(path.is_relative_to(folder) for folder in folders):
                raise OSError(number, os.strerror(number))
            return opened(path, data)

        monkeypatch.setattr(Path, "write_bytes", write)

    @pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EIO])
    def test_a_folder_that_takes_nothing(self, folder, cache, monkeypatch, number):
        self.refuse(monkeypatch, number, folder)
        assert measure(folder)
        assert not measure(folder)
        assert not entries(folder / "measured")
        assert len(entries(cache)) == 1

    def test_nor_a_cache(self, folder, cache, monkeypatch):
        self.refuse(monkeypatch, errno.ENOSPC, folder, cache)
        assert measure(folder)
        assert measure(folder)
        assert not entries(cache)
        monkeypatch.setattr(measured, "_cache_folder", lambda: None)
        assert measure(folder)
        monkeypatch.setattr(measured, "_cache_folder", lambda: folder / "run.json")  # a file in its place
        assert measure(folder)

    def test_a_stale_result_that_cannot_be_replaced(self, folder, cache, monkeypatch):
        assert measure(folder)
        change_map(folder)
        self.refuse(monkeypatch, errno.EROFS, folder)
        assert measure(folder)
        assert not measure(folder)

    @pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users")
    def test_another_users_run(self, folder, cache, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
        assert measure(folder)
        assert not (folder / "measured").exists()
        assert not measure(folder)

    def test_a_link_that_leads_elsewhere(self, folder, cache, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (folder / "measured").symlink_to(tmp_path / "elsewhere")
        assert measure(folder)
        assert not measure(folder)
        assert not entries(tmp_path / "elsewhere")
        for entry in entries(cache):
            (tmp_path / "elsewhere" / entry.name).write_bytes(b"damaged")
        assert check_run(folder) == []
        remove_run(folder)
        assert len(entries(tmp_path / "elsewhere")) == 1

    def test_something_else_of_that_name(self, folder, cache):
        (folder / "measured").write_text("mine")
        assert measure(folder)
        assert not measure(folder)
        assert check_run(folder) == []
        remove_run(folder)
        assert (folder / "measured").read_text() == "mine"

    def test_a_run_that_was_removed_meanwhile_stays_removed(self, folder, cache):
        run = open_run(folder)
        by = Measure(run)

        def during():
            values = by()
            shutil.rmtree(folder)
            return values

        stored_measurement(run, NAME, DEPENDS_ON, during)
        assert not folder.exists()

    def test_equal_runs_in_two_folders(self, folder, cache, monkeypatch, tmp_path):
        shutil.copytree(folder, tmp_path / "copy")
        self.refuse(monkeypatch, errno.EROFS, folder, tmp_path / "copy")
        for _ in range(2):
            measure(folder)
            measure(tmp_path / "copy")
        assert len(entries(cache)) == 2

    def test_the_variable(self, folder, cache, monkeypatch, tmp_path):
        monkeypatch.setenv("FADEVIZ_MEASURED", "0")
        assert measure(folder)
        assert measure(folder)
        monkeypatch.setenv("FADEVIZ_MEASURED", str(tmp_path / "there"))
        assert measure(folder)
        assert not measure(folder)
        assert len(entries(tmp_path / "there")) == 1
        assert not (folder / "measured").exists()
        assert not cache.exists()

    def test_the_cache_is_bounded(self, folder, cache, monkeypatch, tmp_path):
        monkeypatch.setenv("FADEVIZ_MEASURED", str(cache))
        assert measure(folder, name="first")
        size = entries(cache)[0].stat().st_size
        monkeypatch.setattr(measured, "CACHE_LIMIT", 4 * size)
        (cache / "notes.txt").write_bytes(bytes(10 * size))
        for age, name in enumerate(("second", "third", "fourth", "fifth"), 1):
            assert measure(folder, name=name)
            for entry in entries(cache):  # clearly in this order
                os.utime(entry, (entry.stat().st_atime, entry.stat().st_mtime - age))
        assert (cache / "notes.txt").exists()
        assert 3 <= len(entries(cache)) - 1 <= 4
        assert not measure(folder, name="fifth")
        assert measure(folder, name="first")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.undo()
    if os.name == "posix" and os.uname().sysname == "Linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert measured._cache_folder() == tmp_path / "fadeviz/measured"


def test_threads(folder):
    """Each gets the same values, and what they leave is whole."""
    run = open_run(folder)
    start, results = threading.Barrier(4), []

    def work(number):
        start.wait()
        for trial in range(6):
            values = stored_measurement(run, NAME, {"trial": trial}, Measure(run, trial))
            results.append((trial, values["mean"]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 24
    for trial, mean in results:
        np.testing.assert_array_equal(mean, Measure(run, trial)()["mean"])
    assert len(entries(folder / "measured")) == 1
    assert check_run(folder) == []


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(folder):
    """A web server over a folder."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class TestRemote:
    @pytest.fixture
    def memory(self, folder):
        fsspec = pytest.importorskip("fsspec", reason='needs fsspec: pip install ".[remote]"')
        address = f"memory://{uuid.uuid4().hex}/run"
        system = fsspec.filesystem("memory")
        for file in folder.rglob("*"):
            if file.is_file():
                system.pipe_file(f"{address}/{file.relative_to(folder)}", file.read_bytes())
        yield address
        system.rm(address, recursive=True)

    def put(self, address, folder, step=50):
        import fsspec

        name = f"snapshots/step_{step:06d}.safetensors"
        fsspec.filesystem("memory").pipe_file(f"{address}/{name}", (folder / name).read_bytes())

    def test_it_is_stored_in_the_cache(self, memory, cache):
        assert measure(memory)
        assert len(entries(cache)) == 1
        run = open_run(memory)
        by = Measure(run)
        stored_measurement(run, NAME, DEPENDS_ON, by)
        assert by.times == 0
        assert not (run.path / "snapshots").exists()  # nothing was fetched for it
        assert not (run.path / "measured").exists()

    def test_another_file_at_the_address(self, memory, folder):
        assert measure(memory)
        change_map(folder)
        self.put(memory, folder)
        assert measure(memory)
        assert not measure(memory)

    def test_a_file_that_is_replaced_after_the_listing_is_not_stored(self, memory, folder, cache):
        run = open_run(memory)
        assert run.steps == STEPS
        change_map(folder)
        self.put(memory, folder)
        stored_measurement(run, NAME, DEPENDS_ON, Measure(run))
        assert not entries(cache)

    def test_a_web_server(self, folder, cache, tmp_path):
        """It lists names alone; each file is asked for its time."""
        pytest.importorskip("fsspec", reason='needs fsspec: pip install ".[remote]"')
        pytest.importorskip("aiohttp", reason="needs aiohttp: pip install aiohttp")
        with serve(folder.parent) as address:
            assert measure(f"{address}/run")
            assert not measure(f"{address}/run")
            run = open_run(f"{address}/run")
            assert run.layers  # fetches a snapshot, before its version is asked for
            change_map(folder, 0)
            os.utime(folder / "snapshots/step_000000.safetensors", (10**9, 10**9))
            before = [entry.read_bytes() for entry in entries(cache)]
            stored_measurement(run, NAME, DEPENDS_ON, Measure(run))
            assert [entry.read_bytes() for entry in entries(cache)] == before  # what was fetched is gone there
            assert measure(f"{address}/run")
            assert not measure(f"{address}/run")

    def test_a_server_that_says_nothing_of_its_files(self, memory, cache, monkeypatch):
        from fadeviz.storage import remote

        monkeypatch.setattr(remote, "_version", lambda entry: "")
        assert measure(memory)
        assert measure(memory)
        assert not entries(cache)
