"""Downloads from a server on this machine: resuming, checksums, and archives that mean harm."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import socket
import stat
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main

from fadeviz.data import archive, download
from fadeviz.data.download import fetch_file, get_data
from fadeviz.errors import FadevizError

DATA = np.random.default_rng(0).bytes(3_000_000)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Server:
    """Serves ``data``; the attributes say how badly, and ``ranges`` what was asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ranges: list[str | None] = []
        self.with_range = True
        self.with_length = True
        self.status = 200
        self.drops: list[int] = []
        self.false_start = 0
        self.slow = ""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/file"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers["Range"]
        self.ranges.append(asked)
        if self.status != 200:
            request.send_error(self.status)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.with_range else 0
        if start >= len(self.data) > 0 and asked and self.with_range:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.data)}")
            request.end_headers()
            return
        body = self.data[start:]
        request.send_response(206 if asked and self.with_range else 200)
        if asked and self.with_range:
            first = start + self.false_start
            self.false_start = 0
            request.send_header("Content-Range", f"bytes {first}-{len(self.data) - 1}/{len(self.data)}")
        if self.with_length:
            request.send_header("Content-Length", str(len(body)))
        if self.slow == "headers":
            self.trickle(request, b"HTTP/1.1 200 OK\r\nX: " + bytes(10_000))
            return
        request.end_headers()
        if self.slow == "body":
            self.trickle(request, body)
            return
        piece = body[: self.drops.pop(0)] if self.drops else body
        with contextlib.suppress(ConnectionError):  # whoever asked may have gone
            request.wfile.write(piece)

    def trickle(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        """A byte now and then, until whoever asked has gone."""
        with contextlib.suppress(ConnectionError):
            for value in data:
                request.wfile.write(bytes([value]))
                time.sleep(0.01)

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.0)
    server = Server(DATA)
    yield server
    server.close()


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestFile:
    def test_arrives_whole_and_is_not_fetched_twice(self, server: Server, tmp_path: Path) -> None:
        path = tmp_path / "new" / "weights.bin"
        assert fetch_file(server.url, "sha256:" + sha(DATA).upper(), path) == path
        assert path.read_bytes() == DATA
        assert left_over(path.parent) == ["weights.bin"]
        assert fetch_file(server.url, sha(DATA), path) == path
        assert server.ranges == [None]

    def test_another_file_in_place_is_kept(self, server: Server, tmp_path: Path) -> None:
        path = tmp_path / "weights.bin"
        path.write_bytes(b"mine")
        with pytest.raises(FadevizError, match="exists and has another SHA256"):
            fetch_file(server.url, sha(DATA), path)
        assert path.read_bytes() == b"mine"
        assert server.ranges == []

    def test_a_broken_connection_is_taken_up_again(self, server: Server, tmp_path: Path) -> None:
        server.drops = [1_000_000, 500_000]
        fetch_file(server.url, sha(DATA), tmp_path / "weights.bin")
        assert server.ranges == [None, "bytes=1000000-", "bytes=1500000-"]
        assert (tmp_path / "weights.bin").read_bytes() == DATA

    def test_the_next_call_goes_on(self, server: Server, tmp_path: Path) -> None:
        server.drops = [600_000, *[0] * (download.TRIES - 1)]
        with pytest.raises(FadevizError, match=r"\(600000 of 3000000 bytes came\); 600000 bytes are kept") as caught:
            fetch_file(server.url, sha(DATA), tmp_path / "weights.bin")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "weights.bin").exists()
        server.ranges.clear()
        fetch_file(server.url, sha(DATA), tmp_path / "weights.bin")
        assert server.ranges == ["bytes=600000-"]
        assert left_over(tmp_path) == ["weights.bin"]

    def test_a_server_without_ranges_starts_over(self, server: Server, tmp_path: Path) -> None:
        server.with_range = False
        server.drops = [1_000_000]
        fetch_file(server.url, sha(DATA), tmp_path / "weights.bin")
        assert server.ranges == [None, "bytes=1000000-"]
        assert (tmp_path / "weights.bin").read_bytes() == DATA

    def test_a_server_that_sends_another_range_starts_over(self, server: Server, tmp_path: Path) -> None:
        server.drops = [1_000_000]
        server.false_start = 7
        fetch_file(server.url, sha(DATA), tmp_path / "weights.bin")
        assert server.ranges == [None, "bytes=1000000-", None]

    def test_a_server_that_does_not_say_how_long(self, server: Server, tmp_path: Path) -> None:
        server.with_length = False
        fetch_file(server.url, sha(DATA), tmp_path / "weights.bin")
        assert (tmp_path / "weights.bin").read_bytes() == DATA

    @pytest.mark.parametrize("kept", [len(DATA), len(DATA) + 5])
    def test_a_part_that_is_too_long_starts_over(self, server: Server, tmp_path: Path, kept: int) -> None:
        part(tmp_path, "weights.bin").write_bytes((DATA + b"12345")[:kept])
        fetch_file(server.url, sha(DATA), tmp_path / "weights.bin")
        assert server.ranges == [f"bytes={kept}-", None]
        assert (tmp_path / "weights.bin").read_bytes() == DATA
        assert left_over(tmp_path) == ["weights.bin"]

    def test_a_part_of_another_file_starts_over(self, server: Server, tmp_path: Path) -> None:
        # The server's file changed after the first half: the whole has a wrong checksum, so all of it is fetched anew.
        part(tmp_path, "weights.bin").write_bytes(bytes(1000))
        fetch_file(server.url, sha(DATA), tmp_path / "weights.bin")
        assert server.ranges == ["bytes=1000-", None]
        assert (tmp_path / "weights.bin").read_bytes() == DATA

    def test_a_wrong_checksum_leaves_nothing(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(FadevizError, match=f"has SHA256 {sha(DATA)}, not {sha(b'x')}: removed") as caught:
            fetch_file(server.url, sha(b"x"), tmp_path / "weights.bin")
        assert "\n" not in str(caught.value)
        assert left_over(tmp_path) == []
        # After a broken connection it is tried once more from the start, and only once.
        server.drops = [1_000_000]
        server.ranges.clear()
        with pytest.raises(FadevizError, match="removed"):
            fetch_file(server.url, sha(b"x"), tmp_path / "weights.bin")
        assert server.ranges == [None, "bytes=1000000-", None]

    @pytest.mark.parametrize("status", [403, 404, 503])
    def test_the_servers_refusal_is_told(self, server: Server, tmp_path: Path, status: int) -> None:
        server.status = status
        with pytest.raises(FadevizError, match=rf"answers {status} .*Check the address, or download .* and save it as"):
            fetch_file(server.url, sha(DATA), tmp_path / "weights.bin")
        assert left_over(tmp_path) == []

    def test_no_network(self, server: Server, tmp_path: Path) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            host = f"127.0.0.1:{unused.getsockname()[1]}"
            with pytest.raises(FadevizError, match=rf"cannot reach {host} \(.*refused") as caught:
                fetch_file(f"http://{host}/a", sha(DATA), tmp_path / "weights.bin")
        assert f"save it as {tmp_path / 'weights.bin'}" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_silent_server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/a"
            with pytest.raises(FadevizError, match=r"cannot reach 127\.0\.0\.1:\d+ \(timed out\)"):
                fetch_file(url, sha(DATA), tmp_path / "weights.bin")

    @pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of a POSIX system")
    def test_links_and_pipes_with_its_name_are_not_written_through(self, server: Server, tmp_path: Path) -> None:
        mine = tmp_path / "mine"
        mine.write_bytes(b"mine")
        server.data = make_zip(*GOOD)
        for number in range(2):
            folder = tmp_path / f"{number}"
            archive_file = folder.with_name(f".{folder.name}.{sha(server.data)[:12]}.archive")
            for path in (archive_file, archive_file.with_name(f"{archive_file.name}.{sha(server.data)[:12]}.part")):
                if number:
                    os.mkfifo(path)
                else:
                    path.symlink_to(mine)
            get_data(server.url, sha(server.data), folder)
            assert (folder / "set" / "mask" / "a.png").read_bytes() == b"mask"
        assert mine.read_bytes() == b"mine"
        assert left_over(tmp_path) == ["0", "1", "mine"]

    @pytest.mark.parametrize("slow", ["body", "headers"])
    def test_a_server_that_sends_a_byte_now_and_then(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
    ) -> None:
        monkeypatch.setattr(download, "SPEED_SECONDS", 0.1)
        server.slow = slow
        with pytest.raises(FadevizError, match=r"is too slow \(\d+ bytes came in .*; \d+ bytes are kept") as caught:
            fetch_file(server.url, sha(DATA), tmp_path / "weights.bin")
        assert "\n" not in str(caught.value)
        assert "less than 1 kB/s with min_speed=..." in str(caught.value)
        assert len(server.ranges) == 1  # it would be as slow again
        assert not (tmp_path / "weights.bin").exists()
        server.slow = ""
        fetch_file(server.url, sha(DATA), tmp_path / "weights.bin")
        assert (tmp_path / "weights.bin").read_bytes() == DATA

    def test_a_slow_server_that_is_to_be_waited_for(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "SPEED_SECONDS", 0.05)
        server.slow, server.data = "body", b"little by little"
        fetch_file(server.url, sha(server.data), tmp_path / "weights.bin", min_speed=0)
        assert (tmp_path / "weights.bin").read_bytes() == server.data

    @pytest.mark.parametrize("with_length", [True, False])
    def test_one_that_is_too_large(self, server: Server, tmp_path: Path, with_length: bool) -> None:
        server.with_length = with_length
        part(tmp_path, "weights.bin").write_bytes(DATA[:100])
        with pytest.raises(FadevizError, match=r"has more than 0\.002 GB: nothing is put in place.*max_gb=") as caught:
            fetch_file(server.url, sha(DATA), tmp_path / "weights.bin", max_gb=0.002)
        assert "\n" not in str(caught.value)
        assert left_over(tmp_path) == []
        fetch_file(server.url, sha(DATA), tmp_path / "weights.bin", max_gb=0.003)
        assert (tmp_path / "weights.bin").read_bytes() == DATA

    @pytest.mark.parametrize(
        "limits",
        [
            {"max_gb": 0},
            {"max_gb": float("nan")},
            {"max_gb": float("inf")},
            {"min_speed": -1},
            {"min_speed": float("nan")},
        ],
        ids=str,
    )
    def test_no_limits(self, tmp_path: Path, limits: dict[str, float]) -> None:
        with pytest.raises(FadevizError, match="needed"):
            fetch_file("http://127.0.0.1/a", sha(DATA), tmp_path / "a", **limits)

    def test_the_command_has_the_same_limits(self, server: Server, tmp_path: Path) -> None:
        options = {option.name: option.default for option in main.commands["data"].commands["get"].params}  # type: ignore[attr-defined]
        assert (options["max_gb"], options["min_speed"]) == (download.MAX_GB, download.MIN_SPEED)
        command = ["data", "get", str(tmp_path / "a"), "--url", server.url, "--sha256", sha(DATA), "--max-gb", "0.001"]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1
        assert result.stderr == (
            f"Error: {server.url} has more than 0.001 GB: nothing is put in place. "
            "Allow more with --max-gb if you trust it\n"
        )

    @pytest.mark.parametrize(
        "url",
        [
            *["", "horses.zip", "file:///etc/passwd", "ftp://a.b/c", "http://", "http://[::1/a", "http://a.b/c d"],
            *["http://a.b/c\n", "https://someone:secret@a.b/c"],
        ],
    )
    def test_no_address(self, tmp_path: Path, url: str) -> None:
        with pytest.raises(FadevizError, match="is not an address to download from"):
            fetch_file(url, sha(DATA), tmp_path / "a")

    def test_a_host_that_cannot_be(self, tmp_path: Path) -> None:
        with pytest.raises(FadevizError, match="cannot reach"):
            fetch_file(f"http://{'a' * 70}.invalid/b", sha(DATA), tmp_path / "a")

    @pytest.mark.parametrize("digits", ["", "abc", "g" * 64, "md5:" + "a" * 32])
    def test_no_checksum(self, tmp_path: Path, digits: str) -> None:
        with pytest.raises(FadevizError, match="is not a SHA256"):
            fetch_file("http://127.0.0.1/a", digits, tmp_path / "a")

    def test_a_folder_that_cannot_be_made(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(FadevizError, match="cannot write"):
            fetch_file(server.url, sha(DATA), tmp_path / "file" / "weights.bin")


def part(folder: Path, name: str) -> Path:
    return folder / f".{name}.{sha(DATA)[:12]}.part"


def make_zip(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members:
            opened.writestr(name, data)
    return file.getvalue()


def make_tar(*members: tuple[str | tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as opened:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return file.getvalue()


def tar_member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


GOOD = (("set/rgb/a.jpg", b"image"), ("set/mask/a.png", b"mask"))


class TestArchive:
    @pytest.mark.parametrize(
        "make", [make_zip, make_tar, lambda *members: make_tar(*members, mode="w")], ids=["zip", "tar.gz", "tar"]
    )
    def test_is_unpacked_once(self, server: Server, tmp_path: Path, make: Callable[..., bytes]) -> None:
        server.data = make(*GOOD)
        folder = tmp_path / "sets" / "horses"
        assert get_data(server.url, sha(server.data), folder) == folder
        assert (folder / "set" / "rgb" / "a.jpg").read_bytes() == b"image"
        assert (folder / "set" / "mask" / "a.png").read_bytes() == b"mask"
        assert left_over(folder.parent) == ["horses"]
        assert folder.stat().st_mode & 0o777 == (tmp_path / "sets").stat().st_mode & 0o777
        assert get_data(server.url, sha(server.data), folder) == folder
        assert server.ranges == [None]

    def test_a_folder_in_place_is_kept(self, server: Server, tmp_path: Path) -> None:
        server.data = make_zip(*GOOD)
        get_data(server.url, sha(server.data), tmp_path / "a")
        (tmp_path / "b").mkdir()
        for folder, digits in ((tmp_path / "a", sha(b"other")), (tmp_path / "b", sha(server.data))):
            with pytest.raises(FadevizError, match="exists and was not unpacked from this archive"):
                get_data(server.url, digits, folder)
        assert len(server.ranges) == 1

    def test_a_folder_that_appears_during_the_download_is_kept(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.data, folder = make_zip(*GOOD), tmp_path / "a"
        unpack = download.unpack

        def slow(*args: object) -> None:
            unpack(*args)  # type: ignore[arg-type]
            folder.mkdir()
            (folder / "mine.txt").write_text("kept")

        monkeypatch.setattr(download, "unpack", slow)
        with pytest.raises(FadevizError, match="Choose another folder, or remove it"):
            get_data(server.url, sha(server.data), folder)
        assert [file.name for file in folder.iterdir()] == ["mine.txt"]
        assert not [name for name in left_over(tmp_path) if "unpacking" in name]

    def test_goes_on_where_it_broke_off(self, server: Server, tmp_path: Path) -> None:
        server.data = make_zip(("noise.bin", DATA))
        server.drops = [2_000_000]
        get_data(server.url, sha(server.data), tmp_path / "a")
        assert server.ranges == [None, "bytes=2000000-"]
        assert (tmp_path / "a" / "noise.bin").read_bytes() == DATA

    def test_a_wrong_checksum_unpacks_nothing(self, server: Server, tmp_path: Path) -> None:
        server.data = make_zip(*GOOD)
        with pytest.raises(FadevizError, match="removed, nothing is put in place"):
            get_data(server.url, sha(b"x"), tmp_path / "a")
        assert left_over(tmp_path) == []

    @pytest.mark.parametrize("name", ["../out", "a/../../out", "/out", "C:/out", "C:out", "..\\out"])
    @pytest.mark.parametrize("make", [make_zip, make_tar])
    def test_names_that_lead_out(self, server: Server, tmp_path: Path, make: Callable[..., bytes], name: str) -> None:
        server.data = make(*GOOD, (name, b"escaped"))
        self.refused(server, tmp_path, "leads out of its folder: nothing is unpacked")

    @pytest.mark.parametrize(
        "bad",
        [
            tar_member("link", tarfile.SYMTYPE, "../.."),
            tar_member("link", tarfile.SYMTYPE, "set"),
            tar_member("link", tarfile.LNKTYPE, "../../secret"),
            tar_member("pipe", tarfile.FIFOTYPE),
            tar_member("disk", tarfile.BLKTYPE),
            tar_member("null", tarfile.CHRTYPE),
        ],
        ids=lambda member: f"{member.name}-{member.linkname}",
    )
    def test_links_and_devices_in_a_tar(self, server: Server, tmp_path: Path, bad: tarfile.TarInfo) -> None:
        server.data = make_tar(*GOOD, (bad, b""), ("link/out.txt", b""))
        self.refused(server, tmp_path, f"{bad.name!r} is a link or a device")

    def test_links_in_a_zip(self, server: Server, tmp_path: Path) -> None:
        server.data = make_zip((zip_link("link"), b"../.."), ("link/out.txt", b"escaped"))
        self.refused(server, tmp_path, "'link' is a link or a device")

    @pytest.mark.parametrize("make", [make_zip, make_tar])
    def test_one_that_unpacks_to_too_much(self, server: Server, tmp_path: Path, make: Callable[..., bytes]) -> None:
        server.data = make(("a", bytes(100_000)), ("b", bytes(100_000)))
        assert len(server.data) < 10_000
        self.refused(server, tmp_path, "the archive unpacks to more than 0.00015 GB", max_gb=0.00015)
        get_data(server.url, sha(server.data), tmp_path / "more", max_gb=0.0002)
        assert (tmp_path / "more" / "b").stat().st_size == 100_000

    @pytest.mark.parametrize("make", [make_zip, make_tar])
    @pytest.mark.parametrize("name", ["a/" * 2000 + "b", "a/" * archive.MAX_DEPTH + "b", "a/" * 2000])
    def test_folders_in_folders(self, server: Server, tmp_path: Path, make: Callable[..., bytes], name: str) -> None:
        server.data = make(*GOOD, (name, b""))
        depth = name.count("/") + (not name.endswith("/"))
        self.refused(server, tmp_path, f"lies {depth} folders deep, above the limit of 64: nothing is unpacked")

    @pytest.mark.parametrize("make", [make_zip, make_tar])
    def test_as_deep_as_can_be(self, server: Server, tmp_path: Path, make: Callable[..., bytes]) -> None:
        name = "a/" * (archive.MAX_DEPTH - 1) + "b"
        server.data = make((name, b"deep"))
        get_data(server.url, sha(server.data), tmp_path / "a")
        assert (tmp_path / "a" / name).read_bytes() == b"deep"

    @pytest.mark.parametrize("make", [make_zip, make_tar])
    def test_a_name_that_no_disk_takes(self, server: Server, tmp_path: Path, make: Callable[..., bytes]) -> None:
        server.data = make(*GOOD, ("é" * 128, b""))
        self.refused(server, tmp_path, "has too long a name: nothing is unpacked")

    @pytest.mark.parametrize("make", [make_zip, make_tar])
    def test_too_many_files(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., bytes]
    ) -> None:
        monkeypatch.setattr(archive, "MAX_FILES", 20)
        server.data = make(*((f"{number}", b"") for number in range(21)))
        self.refused(server, tmp_path, "the archive has more than 20 files: nothing is unpacked")
        server.data = make(*((f"{number}", b"") for number in range(20)))
        get_data(server.url, sha(server.data), tmp_path / "few")
        assert len(left_over(tmp_path / "few")) == 20 + 1

    def test_a_zips_directory_is_not_read_if_it_is_too_large(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(archive, "MAX_FILES", 20)
        server.data = make_zip(*((f"{number:0200}", b"") for number in range(30)))
        monkeypatch.setattr(zipfile, "ZipFile", None)  # not even opened
        self.refused(server, tmp_path, "the archive has more than 20 files")

    def test_headers_of_headers(self, server: Server, tmp_path: Path) -> None:
        server.data = make_tar(*((tar_member("header", tarfile.XGLTYPE), b"") for _ in range(3000)), *GOOD)
        self.refused(server, tmp_path, "is not an archive that can be unpacked")

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
    def test_headers_of_a_tar_that_would_fill_the_memory(self, server: Server, tmp_path: Path, kind: bytes) -> None:
        head = tar_member("header", kind)
        server.data = make_tar((head, bytes(3 << 20)), *GOOD)
        assert len(server.data) < 10_000
        self.refused(server, tmp_path, "extended headers are too large")

    def test_an_encrypted_zip(self, server: Server, tmp_path: Path) -> None:
        data = bytearray(make_zip(("a", b"secret")))
        # Bit 0 of the flags, in the local header and in the directory.
        data[6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
        server.data = bytes(data)
        self.refused(server, tmp_path, "'a' is encrypted")

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"<html>not found</html>",
            make_zip(*GOOD)[:80],
            make_zip(("a", DATA[:5000])).replace(DATA[100:110], bytes(10)),
            make_tar(("a", DATA[:5000]))[:3000],
            b"\x1f\x8bnonsense",
        ],
        ids=["empty", "html", "cut zip", "bad crc", "cut tar.gz", "gzip head"],
    )
    def test_no_archive(self, server: Server, tmp_path: Path, data: bytes) -> None:
        server.data = data
        self.refused(server, tmp_path, "is not an archive that can be unpacked")

    def test_no_network_says_where_to_unpack(self, tmp_path: Path, server: Server) -> None:
        server.status = 404
        with pytest.raises(FadevizError, match=re.escape(f"with a browser and unpack it as {tmp_path / 'a'}")):
            get_data(server.url, sha(b""), tmp_path / "a")

    def test_a_full_disk_keeps_the_download(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        server.data = make_zip(*GOOD)
        with monkeypatch.context() as patch:
            patch.setattr(zipfile.ZipFile, "extractall", full)
            with pytest.raises(FadevizError, match=r"cannot write .*: No space left on device\. Free some space"):
                get_data(server.url, sha(server.data), tmp_path / "a")
        assert not (tmp_path / "a").exists()
        get_data(server.url, sha(server.data), tmp_path / "a")
        assert server.ranges == [None]
        assert left_over(tmp_path) == ["a"]

    def refused(self, server: Server, tmp_path: Path, message: str, max_gb: float = download.MAX_GB) -> None:
        inner = tmp_path / "deep" / "down"
        inner.mkdir(parents=True)
        with pytest.raises(FadevizError, match=re.escape(message)) as caught:
            get_data(server.url, sha(server.data), inner / "a", max_gb=max_gb)
        assert "\n" not in str(caught.value)
        assert left_over(inner) == []
        assert left_over(tmp_path) == ["deep"]
        assert left_over(tmp_path / "deep") == ["down"]
