"""Runs at an address: only what is asked for is fetched, nothing is left behind, and what fails says so in a line."""

import contextlib
import functools
import gc
import http.server
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from PIL import Image

import fadeviz
from fadeviz import FadevizError, open_run
from fadeviz.analysis.onsets import measure_onsets
from fadeviz.errors import MissingExtra
from fadeviz.render.frames import select_frames
from fadeviz.storage.remote import RemoteFolder, is_address
from render_runs import LAYER, STEPS, make_run

fsspec = pytest.importorskip("fsspec", reason='needs fsspec: pip install ".[remote]"')

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "fade").path


@pytest.fixture
def memory(local):
    """An address in memory that holds a run."""
    address = f"memory://{uuid.uuid4().hex}/fade"
    system = fsspec.filesystem("memory")
    for file in local.rglob("*"):
        if file.is_file():
            system.pipe_file(f"{address}/{file.relative_to(local)}", file.read_bytes())
    yield address
    system.rm(address, recursive=True)


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.fails(self.path):
            self.send_error(self.server.fails(self.path))
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(local):
    """A web server over the folder of the run: ``asked`` is what it was asked for, ``fails`` gives an error code."""
    pytest.importorskip("aiohttp", reason="needs aiohttp: pip install aiohttp")
    handler = functools.partial(Handler, directory=local.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked, server.fails = [], lambda path: 0
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def here(run):
    """The files that were fetched."""
    return sorted(str(file.relative_to(run.path)) for file in run.path.rglob("*") if file.is_file())


def one_line(caught):
    line = str(caught.value)
    assert len(line.splitlines()) == 1, line
    return line


def test_what_is_an_address():
    assert all(map(is_address, ("s3://bucket/run", "https://host/run", "memory://x", "zip://run::file.zip")))
    assert not any(map(is_address, ("outputs/fade", "C:/runs", "/a:/b", Path("s3://bucket/run"), "")))


class TestFetching:
    def test_only_what_is_needed(self, memory):
        run = open_run(memory)
        assert isinstance(run, fadeviz.Run)
        assert here(run) == ["run.json"]
        assert run.steps == STEPS
        assert (run.name, run.title, run.broken) == ("fade", "FADE", {})
        assert run.address == memory
        assert repr(run) == f"Run({memory!r}, upsampler='fade', 12 snapshots)"
        assert here(run) == ["run.json"]
        maps = run.maps(LAYER, image=0)
        assert here(run) == ["run.json", "snapshots/step_000000.safetensors"]
        assert maps.shape == (12, 24, 32)
        assert maps[3:5].shape == (2, 24, 32)
        assert here(run)[1:] == [f"snapshots/step_{step:06d}.safetensors" for step in (0, 30, 40)]
        assert run.observation[0].shape == (2, 48, 64, 3)
        assert "observation.safetensors" in here(run)

    def test_each_file_once(self, server):
        run = open_run(f"{server.address}/fade")
        for _ in range(2):
            assert np.asarray(run.maps()).shape[0] == len(STEPS)
            assert run.observation
            assert run.layers
        files = [path for path in server.asked if not path.endswith(("/", "/snapshots"))]
        assert len(files) == len(set(files)) == len(STEPS) + 2

    @pytest.mark.parametrize("kind", ["memory", "file", "http"])
    def test_the_same_as_at_home(self, request, local, kind):
        address = {
            "memory": lambda: request.getfixturevalue("memory"),
            "file": local.as_uri,
            "http": lambda: request.getfixturevalue("server").address + "/fade/",
        }[kind]()
        run, home = open_run(address), open_run(local)
        assert run.info == home.info
        assert (run.steps, run.layers) == (home.steps, home.layers)
        assert run.path != home.path
        for kinds in ("feature", "channels"):
            assert np.array_equal(run.maps(kind=kinds), home.maps(kind=kinds))
            assert np.array_equal(run.read(50, LAYER, kinds), home.read(50, LAYER, kinds))
        for ours, theirs in zip(run.observation, home.observation, strict=True):
            assert np.array_equal(ours, theirs)
        assert run.metrics() == home.metrics() == []

    def test_metrics(self, memory):
        fsspec.filesystem("memory").pipe_file(f"{memory}/metrics.jsonl", b'{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
        assert open_run(memory).metrics() == [{"step": 1, "loss": 0.5}]

    def test_a_run_that_goes_on(self, memory, monkeypatch):
        system = fsspec.filesystem("memory")
        listing, listed = type(system).ls, {}  # as file systems do that ask a server: they remember what they were told

        def ls(self, path, **options):
            listed[path] = listed.get(path) or listing(self, path, **options)
            return listed[path]

        monkeypatch.setattr(type(system), "ls", ls)
        monkeypatch.setattr(type(system), "invalidate_cache", lambda *_: listed.clear())
        assert open_run(memory).steps == STEPS
        system.rm_file(f"{memory}/snapshots/step_000110.safetensors")
        assert open_run(memory).steps == STEPS[:-1]

    def test_a_server_that_lists_nothing(self, server, local):
        server.fails = lambda path: 404 if path.endswith(("/snapshots", "/")) else 0
        unplanned = open_run(f"{server.address}/fade")  # make_run says of no schedule
        assert unplanned.steps == ()
        with pytest.raises(FadevizError, match=r"^no snapshots are listed at .*/fade/snapshots. If the server"):
            unplanned.maps()
        info = json.loads((local / "run.json").read_text())
        other = make_run(local.parent / "planned").path
        (other / "run.json").write_text(json.dumps({**info, "schedule": [0, 10, 20]}))
        run = open_run(f"{server.address}/planned")
        assert run.steps == (0, 10, 20)
        assert run.maps(image=0)[:].shape == (3, 24, 32)

    def test_several_at_once(self, memory, local):
        first, second, home = open_run(memory), open_run(memory), open_run(local)
        assert first.path != second.path
        assert first.same_folder(second)
        assert not first.same_folder(home)
        assert home.same_folder(open_run(local / ".." / "fade"))
        for function in (select_frames, measure_onsets):
            with pytest.raises(FadevizError, match=f"{memory} and {memory} are the same run"):
                function([first, second])

    def test_threads_that_want_the_same_file(self, memory, monkeypatch):
        system = type(fsspec.filesystem("memory"))
        get_file, together, calls = system.get_file, threading.Barrier(4, timeout=30), []

        def slowly(self, remote, to, **options):
            calls.append(remote)
            Path(to).write_bytes(b"half")
            time.sleep(0.2)  # the others come while it is at it
            get_file(self, remote, to, **options)

        run = open_run(memory)
        maps = run.maps(image=0)
        monkeypatch.setattr(system, "get_file", slowly)

        def want(_):
            together.wait()
            return maps[5]

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(want, range(4)))
        assert all(np.array_equal(one, maps[5]) for one in found)
        assert len(calls) == 1
        assert len(here(run)) == 3

    def test_pickled(self, memory):
        run = open_run(memory)
        again = pickle.loads(pickle.dumps(run))
        assert again.path != run.path
        folder = again.path
        assert np.array_equal(again.maps(), run.maps())
        del again
        gc.collect()
        assert not folder.exists()


class TestTemporaryFolder:
    def test_goes_with_the_run(self, memory):
        run = open_run(memory)
        maps, folder = run.maps(image=0), run.path.parent
        assert (folder.stat().st_mode & 0o777) == 0o700
        del run
        gc.collect()
        assert maps[1].shape == (24, 32)  # the maps keep their run
        del maps
        gc.collect()
        assert not folder.exists()

    def test_goes_with_the_process(self, local, tmp_path):
        code = f"import fadeviz; run = fadeviz.open_run({local.as_uri()!r}); run.maps(); print(run.path)"
        environment = {"TMPDIR": str(tmp_path), "PATH": ""}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
        )
        assert done.stdout.startswith(str(tmp_path))
        assert done.stderr == ""
        assert list(tmp_path.iterdir()) == []

    def test_goes_when_there_is_no_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(FadevizError):
            open_run("memory://nowhere/run")
        gc.collect()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "names",
        [
            ["../../../../step_000010.safetensors", "/etc/step_000010.safetensors", "x/../step_000010.safetensors"],
            ["..", "../..", "/", "", "step_000010.safetensors/..", "step_000010.safetensors\n", "run.json"],
            ["..\\..\\step_000010.safetensors", "step_٠٠٠٠١٠.safetensors", "step_000010.safetensors?../../x"],
        ],
    )
    def test_a_listing_cannot_lead_out_of_it(self, memory, monkeypatch, names):
        system = type(fsspec.filesystem("memory"))
        fetched = []

        def get_file(self, remote, to, **_):
            fetched.append((remote, Path(to)))
            Path(to).write_bytes(self.cat_file(remote))

        monkeypatch.setattr(system, "ls", lambda *_, **__: [{"name": name, "size": None} for name in names])
        monkeypatch.setattr(system, "get_file", get_file)
        run = open_run(memory)
        assert run.steps in ((), (10,))
        if run.steps:
            assert run.maps(image=0).shape == (1, 24, 32)
        for remote, to in fetched:
            assert remote.removeprefix("/" + memory.removeprefix("memory://")) in (
                "/run.json",
                "/snapshots/step_000010.safetensors",
            )
            assert to.parent in (run.path, run.path / "snapshots")
        assert set(here(run)) <= {"run.json", "snapshots/step_000010.safetensors"}

    @pytest.mark.parametrize("last", ["..", "...", "a%2F..%2Fb", "~", "x" * 300, "$(id)", " "])
    def test_nor_can_its_name(self, last):
        folder = RemoteFolder(f"memory://x/{last}")
        assert folder.path.parent.name.startswith("fadeviz-")
        assert folder.path.resolve() == folder.path
        assert folder.path.name not in ("", ".", "..")


class TestErrors:
    def test_no_run_there(self, server):
        for address in ("memory://nowhere/run", f"{server.address}/carafe", "file:///nowhere/run"):
            with pytest.raises(
                FadevizError, match="^no run at .*: it has no run.json. Give the address of a"
            ) as caught:
                open_run(address)
            assert address in one_line(caught)

    def test_unknown_protocol(self):
        with pytest.raises(FadevizError, match=r"^cannot open nonsense://x/run: ValueError: Protocol not known") as got:
            open_run("nonsense://x/run")
        one_line(got)

    def test_fsspec_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "fsspec.core", None)
        with pytest.raises(FadevizError, match=r'needs fsspec, .* pip install "\.\[remote\]"') as caught:
            open_run("memory://x/run")
        one_line(caught)

    @pytest.mark.parametrize(
        ("address", "library", "extra"),
        [("s3://bucket/run", "s3fs", "s3"), ("http://host/run", "aiohttp", "remote"),
         ("https://host/run", "aiohttp", "remote")],
    )  # fmt: skip
    def test_a_protocols_library_is_missing(self, monkeypatch, address, library, extra):
        monkeypatch.setitem(sys.modules, library, None)
        wanted = rf'^{address}: fsspec lacks a library for this protocol, {library}\. .* pip install "\.\[{extra}\]"$'
        with pytest.raises(MissingExtra, match=wanted) as caught:
            open_run(address)
        one_line(caught)

    def test_the_library_of_another_protocol_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "gcsfs", None)
        with pytest.raises(FadevizError, match=r"^gs://bucket/run: fsspec lacks a library .*gcsfs") as caught:
            open_run("gs://bucket/run")
        one_line(caught)

    @pytest.mark.parametrize("code", [403, 500, 503])
    def test_the_server_refuses(self, server, code):
        server.fails = lambda path: code if path.endswith("run.json") else 0
        with pytest.raises(
            FadevizError, match=rf"^cannot fetch {server.address}/fade/run.json: .*{code}.*Check"
        ) as got:
            open_run(f"{server.address}/fade")
        one_line(got)
        server.fails = lambda path: code if "30.safetensors" in path else 0
        run = open_run(f"{server.address}/fade")
        with pytest.raises(FadevizError, match="cannot fetch .*step_000030.safetensors: "):
            np.asarray(run.maps())
        server.fails = lambda path: 0
        assert np.asarray(run.maps()).shape[0] == len(STEPS)  # it is asked again

    def test_nobody_listens(self):
        pytest.importorskip("aiohttp", reason="needs aiohttp: pip install aiohttp")
        with pytest.raises(
            FadevizError, match=r"^cannot fetch http://127.0.0.1:9/run/run.json: .*Check the net"
        ) as got:
            open_run("http://127.0.0.1:9/run")
        one_line(got)

    def test_the_listing_fails(self, memory, monkeypatch):
        def fail(*_, **__):
            raise PermissionError("Access\nDenied")

        monkeypatch.setattr(type(fsspec.filesystem("memory")), "ls", fail)
        with pytest.raises(
            FadevizError, match=rf"^cannot list {memory}/snapshots: PermissionError: Access Denied"
        ) as got:
            _ = open_run(memory).steps
        one_line(got)

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (lambda data: data[:1000], "damaged: "),
            (lambda data: b"<html>please log in</html>", "damaged: "),
            (lambda data: data.replace(b"a1b2c3", b"ffffff"), "belongs to another run than a1b2c3"),
        ],
        ids=["cut off", "a page", "another run"],
    )
    def test_a_damaged_snapshot(self, memory, change, line):
        system = fsspec.filesystem("memory")
        name = f"{memory}/snapshots/step_000030.safetensors"
        system.pipe_file(name, change(system.cat_file(name)))
        run = open_run(memory)
        assert run.steps == STEPS
        with pytest.raises(FadevizError, match=f"^{name}: {line}.* Choose other steps") as caught:
            np.asarray(run.maps())
        one_line(caught)
        assert run.maps(steps=[0, 40])[:].shape[0] == 2

    def test_a_snapshot_that_went(self, memory):
        run = open_run(memory)
        assert run.steps == STEPS
        fsspec.filesystem("memory").rm_file(f"{memory}/snapshots/step_000030.safetensors")
        with pytest.raises(FadevizError, match=r"step_000030.safetensors: missing. Choose other steps"):
            run.read(30, LAYER, "feature")

    @pytest.mark.parametrize("text", ["", "[]", "{", "<html>", '{"format": 2, "run_id": "x"}'])
    def test_a_damaged_run_json(self, memory, text):
        fsspec.filesystem("memory").pipe_file(f"{memory}/run.json", text.encode())
        with pytest.raises(FadevizError, match=f"^{memory}(/run.json is damaged| has format 2)") as caught:
            open_run(memory)
        one_line(caught)

    def test_no_observation(self, memory):
        fsspec.filesystem("memory").rm_file(f"{memory}/observation.safetensors")
        with pytest.raises(FadevizError, match=f"^{memory}: observation.safetensors is missing or damaged") as caught:
            _ = open_run(memory).observation
        one_line(caught)

    @pytest.mark.parametrize(
        ("address", "shown"),
        [
            ("https://me:secret@host:80/runs/a", "https://***@host:80/runs/a"),
            ("https://host/runs/a?token=secret", "https://host/runs/a"),
            ("simplecache::https://me:secret@host/a", "simplecache::https://***@host/a"),
            ("s3://bucket/runs/a/", "s3://bucket/runs/a"),
        ],
    )
    def test_secrets_are_not_shown(self, monkeypatch, address, shown):
        monkeypatch.setattr("fsspec.core.url_to_fs", lambda address, **options: (fsspec.filesystem("memory"), "/x"))
        monkeypatch.setattr(
            "fadeviz.storage.remote._impatient", lambda protocol: {}
        )  # which asks for the protocol's library
        assert RemoteFolder(address).shown == shown


def free_port():
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


class Wire:
    """What lies between a client and a server, and can be cut: ``cut`` ends or silences an answer after some bytes."""

    def __init__(self, port):
        self.port, self.cut, self.over = port, None, threading.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self.listening.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.port))
                except OSError:
                    client.close()
                    continue
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self.carry, args=ends, daemon=True).start()

    def carry(self, source, sink, answers):
        sent = 0
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(65536):
                how, count = self.cut if self.cut and answers else ("", len(data) + sent)
                sink.sendall(data[: count - sent])
                sent += len(data)
                if how and sent >= count:
                    if how == "silent":
                        self.over.wait()
                    sink.shutdown(socket.SHUT_RDWR)
                    return
            sink.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def object_store(local):
    """A real server of S3, in a process of its own, with a run in a bucket; and the wire to it."""
    for name in ("s3fs", "moto", "flask"):
        pytest.importorskip(name, reason='needs s3fs and a server of S3: pip install ".[s3,services]"')
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wire = Wire(port)
    keys = {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "anything", "AWS_DEFAULT_REGION": "us-east-1"}
    quiet = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none"}
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**keys, **quiet, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
                patch.setenv(name, value)
            upload(local)
            patch.setenv("AWS_ENDPOINT_URL", wire.address)
            yield SimpleNamespace(process=process, wire=wire, port=port, address="s3://bucket/runs/fade")
    finally:
        process.kill()
        process.wait()
        wire.over.set()
        wire.listening.close()


@pytest.fixture(scope="class")
def store(local):
    with object_store(local) as store:
        yield store


def upload(local):
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir("bucket")
    for file in local.rglob("*"):
        if file.is_file():
            system.pipe_file(f"bucket/runs/fade/{file.relative_to(local).as_posix()}", file.read_bytes())


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("fadeviz.storage.remote._SILENT_SECONDS", 1)


@pytest.mark.usefixtures("impatient")
class TestObjectStorage:
    def test_the_same_as_on_this_machine(self, store, local, tmp_path):
        run, copy = open_run(store.address), open_run(local)
        assert (run.address, run.steps, run.name) == (store.address, STEPS, "fade")
        assert here(run) == ["run.json"]
        assert np.array_equal(run.maps(LAYER, "gate"), copy.maps(LAYER, "gate"))
        assert all(map(np.array_equal, run.observation, copy.observation))
        assert run.metrics() == copy.metrics()
        for address, name in ((store.address, "a.png"), (local, "b.png")):
            result = CliRunner().invoke(main, ["grid", str(address), "-o", str(tmp_path / name)])
            assert result.exit_code == 0, result.output
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_a_missing_object(self, store):
        run = open_run(store.address)
        assert run.steps == STEPS
        system, name = fsspec.filesystem("s3", skip_instance_cache=True), "runs/fade/snapshots/step_000030.safetensors"
        data = system.cat_file(f"bucket/{name}")
        system.rm(f"bucket/{name}")
        with pytest.raises(
            FadevizError, match="snapshots/step_000030.safetensors: missing. Choose other steps"
        ) as caught:
            np.asarray(run.maps())
        one_line(caught)
        assert open_run(store.address).steps == tuple(step for step in STEPS if step != 30)
        system.pipe_file(f"bucket/{name}", data)
        for address in ("s3://bucket/runs/none", "s3://nobucket/fade"):
            with pytest.raises(FadevizError, match=f"^no run at {address}: it has no run.json") as caught:
                open_run(address)
            one_line(caught)

    def test_a_wrong_key(self, store):
        def ask_for_keys(after):
            url, told = f"http://127.0.0.1:{store.port}/moto-api/reset-auth", {"Content-Type": "text/plain"}
            urllib.request.urlopen(urllib.request.Request(url, str(after).encode(), told)).close()

        ask_for_keys(0)
        try:
            with pytest.raises(
                FadevizError, match=r"^cannot fetch s3://.*/run.json: PermissionError: .*Key Id.*[^.]\. Check"
            ) as caught:
                open_run(store.address)
            one_line(caught)
            result = CliRunner().invoke(main, ["info", store.address])
            assert (result.exit_code, result.output.count("\n")) == (1, 1)
        finally:
            ask_for_keys("inf")
        assert open_run(store.address).name == "fade"

    @pytest.mark.parametrize("how", ["closed", "silent"])
    @pytest.mark.parametrize("count", [0, 3000])
    def test_a_cut_connection(self, store, how, count):
        run = open_run(store.address)
        maps = run.maps()
        store.wire.cut = how, count
        begun = time.monotonic()
        try:
            with pytest.raises(FadevizError, match=r"^cannot fetch s3://.*step_000050.safetensors: ") as caught:
                maps[STEPS.index(50)]
        finally:
            store.wire.cut = None
        assert time.monotonic() - begun < 20
        one_line(caught)
        assert not list(run.path.rglob(".*"))  # no half of a file
        assert maps[STEPS.index(50)].shape == (2, 24, 32)  # it is asked again

    def test_a_server_that_is_gone(self, local):
        with object_store(local) as store:
            maps = open_run(store.address).maps()
            store.process.kill()
            store.process.wait()
            begun = time.monotonic()
            with pytest.raises(FadevizError, match=r"^cannot fetch s3://.*step_000070.safetensors: ") as caught:
                maps[STEPS.index(70)]
            one_line(caught)
            with pytest.raises(FadevizError, match=r"^cannot fetch s3://.*run.json: ") as caught:
                open_run(store.address)
            one_line(caught)
            assert time.monotonic() - begun < 20


class TestEndless:
    """What never ends, or never begins, is given up."""

    @pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices of a POSIX system")
    @pytest.mark.parametrize("what", ["/dev/zero", "pipe"])
    def test_special_files_behind_an_address(self, local, tmp_path, what):
        shutil.copytree(local, tmp_path / "run")
        for name in ("run.json", "observation.safetensors"):
            (tmp_path / "run" / name).unlink()
            if what == "pipe":
                os.mkfifo(tmp_path / "run" / name)
            else:
                (tmp_path / "run" / name).symlink_to(what)
            with pytest.raises(
                FadevizError, match=f"cannot fetch .*{name}: .*it is a (device|FIFO), but a file"
            ) as caught:
                _ = open_run(f"file://{tmp_path}/run").observation
            one_line(caught)
            shutil.copy(local / name, tmp_path / name)
            (tmp_path / "run" / name).unlink()
            (tmp_path / name).rename(tmp_path / "run" / name)

    def test_a_file_that_is_too_large_or_too_slow(self, server, monkeypatch):
        assert open_run(f"{server.address}/fade").name == "fade"
        monkeypatch.setattr("fadeviz.storage.remote.TEXT_LIMIT", 100)
        with pytest.raises(FadevizError, match="cannot fetch .*run.json: .*more than 100 bytes, the limit") as caught:
            open_run(f"{server.address}/fade")
        one_line(caught)
        monkeypatch.setattr("fadeviz.storage.remote.TEXT_LIMIT", 2**20)
        monkeypatch.setattr("fadeviz.storage.remote._SLOW_SECONDS", 0)
        monkeypatch.setattr("fadeviz.storage.remote._SLOW_RATE", 10**12)
        with pytest.raises(FadevizError, match="cannot fetch .*run.json: .*too slow: .* bytes in 0 seconds") as caught:
            open_run(f"{server.address}/fade")
        one_line(caught)


class TestCommands:
    def call(self, *arguments):
        result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    def test_info(self, memory):
        told = self.call("info", memory)
        assert told.startswith(f"{memory}: fade in segnet, run a1b2c3")
        assert f"snapshots    12: {', '.join(map(str, STEPS))}" in told

    def test_grid_is_the_same(self, memory, local, tmp_path):
        self.call("grid", memory, "-o", tmp_path / "remote.png")
        self.call("grid", local, "-o", tmp_path / "local.png")
        assert (tmp_path / "remote.png").read_bytes() == (tmp_path / "local.png").read_bytes()

    def test_animate(self, memory, tmp_path):
        self.call("animate", memory, "-o", tmp_path / "a.gif", "--steps", "0,10")
        with Image.open(tmp_path / "a.gif") as movie:
            assert movie.n_frames == 2

    def test_analyze_plot_and_report(self, memory, tmp_path):
        assert "fade" in self.call("analyze", memory, "--json", tmp_path / "a.json").lower()
        self.call("plot", memory, "-o", tmp_path / "k.png")
        self.call("report", memory, "-o", tmp_path / "r.html")
        page = (tmp_path / "r.html").read_text()
        assert memory in page
        assert "fadeviz-" not in page  # the temporary folder

    def test_check_says_that_it_does_not(self, memory):
        result = CliRunner().invoke(main, ["check", memory])
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"Error: {memory} is an address: only a folder of this machine")

    def test_no_run_there(self, tmp_path):
        result = CliRunner().invoke(main, ["grid", "memory://nowhere/run", "-o", str(tmp_path / "a.png")])
        assert result.exit_code == 1
        assert (
            result.stderr
            == "Error: no run at memory://nowhere/run: it has no run.json. Give the address of a run's folder\n"
        )
