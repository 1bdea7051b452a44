"""Downloading an archive or a file: resumable, checked by SHA256, put in place atomically.

No address or checksum is built in: both come from the user. The Weizmann Horse set (Borenstein and Ullman, ECCV
2002) was published on its first author's pages, www.wisdom.weizmann.ac.il/~eranb and
www.msri.org/people/members/eranb, on the latter as ``weizmann_horse_db.tar.gz``. Pages move; :func:`get_data`
takes whatever address still has the set.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, Request, build_opener

import pooch
from tqdm import tqdm

from ..errors import FadevizError
from .archive import unpack

GIGABYTE = 10**9

MAX_GB = 8.0
"""Default size limit of an archive in gigabytes, both packed and unpacked."""

MIN_SPEED = 1.0
"""Default minimum speed in kilobytes per second, averaged over ``SPEED_SECONDS`` of waiting."""

SPEED_SECONDS = 60.0
"""Seconds for which a server may be slower than ``MIN_SPEED``."""

TRIES = 4
"""Number of attempts at a broken connection before giving up; the next call still resumes from there."""

WAIT_SECONDS = 1.0
"""Pause before the next attempt, in seconds."""

TIMEOUT_SECONDS = 30.0
"""A connection without data for this many seconds counts as broken."""

_CHUNK = 1 << 18
_MARKER = ".unpacked_from_sha256"


def get_data(
    url: str,
    sha256: str,
    folder: str | os.PathLike[str],
    *,
    max_gb: float = MAX_GB,
    min_speed: float = MIN_SPEED,
) -> Path:
    """Download a .zip, .tar, .tar.gz or .tgz archive, check it, and unpack it as ``folder``.

    A partial download is resumed. The archive is unpacked beside ``folder`` and renamed at the end, so that ``folder``
    is never half unpacked. A folder that was unpacked from an archive with the same checksum is returned unchanged.

    Args:
        url: http or https address.
        sha256: checksum of the archive, 64 hexadecimal digits.
        folder: the folder to unpack the archive as; it must not exist yet.
        max_gb: maximum size of the archive, and of its contents unpacked, in gigabytes (10^9 bytes).
        min_speed: minimum speed in kilobytes (10^3 bytes) per second, averaged over ``SPEED_SECONDS``; 0 for no limit.

    Returns:
        ``folder``.

    Raises:
        FadevizError: if the URL or the checksum is invalid, the folder exists, the network or the server fails or is
            too slow, the checksum does not match (nothing is unpacked), or the disk is full; if the file is not an
            archive, or is one with links, names that lead out of it, more than ``max_gb`` or 200,000 files, or
            folders 64 deep.
    """
    limits = _Limits(max_gb, min_speed)
    folder = Path(os.path.expanduser(folder)).absolute()
    sha256 = _check_request(url, sha256)
    if os.path.lexists(folder):
        if _unpacked_from(folder) == sha256:
            return folder
        raise FadevizError(
            f"{folder} exists and was not unpacked from this archive. Choose another folder, or remove it"
        )
    archive = folder.with_name(f".{folder.name}.{sha256[:12]}.archive")
    _download(url, sha256, archive, f"download {url} with a browser and unpack it as {folder}", limits)
    try:
        _unpack(archive, folder, sha256, limits)
    except FadevizError:
        # The checksum was right, so the same bytes would be refused again.
        archive.unlink(missing_ok=True)
        raise
    except OSError as error:
        # The archive stays: once there is space, it is not downloaded again.
        raise _cannot_write(folder, error) from error
    archive.unlink(missing_ok=True)
    return folder


def fetch_file(
    url: str, sha256: str, path: str | os.PathLike[str], *, max_gb: float = MAX_GB, min_speed: float = MIN_SPEED
) -> Path:
    """Download one file, such as weights, and check it; resumed and put in place whole, as :func:`get_data`.

    Args:
        url: http or https address.
        sha256: checksum of the file, 64 hexadecimal digits.
        path: the file to write; one with that checksum is left as it is.
        max_gb: see :func:`get_data`.
        min_speed: see :func:`get_data`.

    Returns:
        ``path``.

    Raises:
        FadevizError: if the URL or checksum is invalid, there is no network, the checksum does not match, another file
            exists there, the file is too large, or the server is too slow.
    """
    limits = _Limits(max_gb, min_speed)
    path = Path(os.path.expanduser(path)).absolute()
    sha256 = _check_request(url, sha256)
    if os.path.lexists(path):
        if path.is_file() and _sha256_of(path) == sha256:
            return path
        raise FadevizError(f"{path} exists and has another SHA256 than {sha256}. Choose another path, or remove it")
    _download(url, sha256, path, f"download {url} with a browser and save it as {path}", limits)
    return path


class _Limits:
    """The limits of a download.

    Attributes:
        max_bytes: largest size of a file, or of an unpacked archive.
        min_speed: minimum speed in bytes per second.
    """

    def __init__(self, max_gb: float, min_speed: float) -> None:
        if not 0 < max_gb < math.inf:
            raise FadevizError(f"max_gb is {max_gb}; a number of gigabytes above 0 is needed")
        if not 0 <= min_speed < math.inf:
            raise FadevizError(
                f"min_speed is {min_speed}; a number of kilobytes per second is needed, or 0 for no limit"
            )
        self.max_bytes = int(max_gb * GIGABYTE)
        self.min_speed = min_speed * 1000

    def check_bytes(self, count: int, what: str) -> None:
        """Raise if ``count`` bytes are too many; ``what`` begins the message."""
        if count > self.max_bytes:
            raise FadevizError(
                f"{what} more than {self.max_bytes / GIGABYTE:g} GB: nothing is put in place. "
                "Allow more with max_gb=... if you trust it"
            )


def _check_request(url: str, sha256: str) -> str:
    """The checksum in lower case, after checking both arguments."""
    digits = sha256.strip().lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise FadevizError(f"{sha256!r} is not a SHA256. Give its 64 hexadecimal digits; `sha256sum FILE` prints them")
    try:
        parts = urlsplit(url)
        # No name and password: urllib does not take them here, and messages and logs would show them.
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        usable = usable and not re.search(r"[\s\x00-\x1f]", url)
    except ValueError:
        usable = False
    if not usable:
        raise FadevizError(f"{url!r} is not an address to download from. Give an https:// address, without a password")
    return digits


def _sha256_of(path: Path) -> str:
    try:
        return str(pooch.file_hash(str(path)))
    except OSError as error:
        raise FadevizError(f"{path} cannot be read: {error.strerror or error}") from error


def _download(url: str, sha256: str, path: Path, by_hand: str, limits: _Limits) -> None:
    """Download to ``path`` through pooch, which checks the checksum and moves the file into place."""
    part = path.with_name(f".{path.name.lstrip('.')}.{sha256[:12]}.part")
    for file in (path, part):
        _drop_special(file)
    downloader = _Resuming(part, by_hand, limits)
    for last in (False, True):
        try:
            pooch.retrieve(
                url, known_hash=f"sha256:{sha256}", fname=path.name, path=str(path.parent), downloader=downloader
            )
            return
        except FadevizError:
            raise
        except ValueError as error:
            # Pooch's error for a wrong checksum; it has removed the file. If the file came in two halves, the server's
            # may have changed in between: then all of it is fetched once more.
            if downloader.resumed and not last:
                continue
            raise FadevizError(
                f"{url} has SHA256 {downloader.got}, not {sha256}: removed, nothing is put in place. "
                "Check the checksum with whoever published the file, or try another address"
            ) from error
        except OSError as error:
            raise _cannot_write(path, error) from error


class _BrokenOff(Exception):
    """The connection ended before the file did."""


class _TooSlow(Exception):
    """The server is slower than the minimum speed."""


class _TimedResponse(io.RawIOBase):
    """A server's response, headers included, that raises if the server is too slow.

    Only the time spent waiting for the server counts, not that spent writing to disk.
    """

    def __init__(self, raw: Any, min_speed: float) -> None:
        super().__init__()
        self._raw = raw
        self._min_speed = min_speed
        self._waited = 0.0
        self._came = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        began = time.monotonic()
        count: int | None = self._raw.readinto(buffer)
        self._waited += time.monotonic() - began
        self._came += count or 0
        if self._waited >= SPEED_SECONDS:
            if self._came < self._min_speed * self._waited:
                raise _TooSlow(f"{self._came:,} bytes came in {self._waited:.3g} s")
            self._waited, self._came = 0.0, 0
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
            super().close()


def _build_opener(min_speed: float) -> Callable[..., Any]:
    """Like ``urlopen``, with the speed of every response checked."""

    class Answer(HTTPResponse):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.fp: Any = io.BufferedReader(_TimedResponse(self.fp.detach(), min_speed))

    def timed(http_class: type[HTTPConnection]) -> Any:
        return type("Connection", (http_class,), {"response_class": Answer})

    class Plain(HTTPHandler):
        def do_open(self, http_class: type[HTTPConnection], req: Request, **options: Any) -> Any:  # type: ignore[override]
            return super().do_open(timed(http_class), req, **options)

    class Encrypted(HTTPSHandler):
        def do_open(self, http_class: type[HTTPConnection], req: Request, **options: Any) -> Any:  # type: ignore[override]
            return super().do_open(timed(http_class), req, **options)

    return build_opener(Plain, Encrypted).open


class _Resuming:
    """A downloader for pooch that keeps received bytes in a .part file and resumes from its end.

    Attributes:
        resumed: whether the last download continued one of an earlier connection.
        got: SHA256 of the last download.
    """

    def __init__(self, part: Path, by_hand: str, limits: _Limits) -> None:
        self.part = part
        self.by_hand = by_hand
        self.limits = limits
        self.resumed = False
        self.got = ""

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        """Fetch ``url`` as ``output_file``; the signature of pooch's downloaders."""
        self.resumed = False
        for attempt in range(TRIES):
            if attempt:
                time.sleep(WAIT_SECONDS)
            try:
                self._continue(url)
                break
            except _BrokenOff as error:
                reason = error
            except _TooSlow as error:
                raise FadevizError(
                    f"{url} is too slow ({error}); {_size(self.part)} bytes are kept. Run the same command again to "
                    f"continue from there, allow less than {self.limits.min_speed / 1000:g} kB/s with "
                    f"min_speed=..., or {self.by_hand}"
                ) from error
        else:
            raise FadevizError(
                f"the download of {url} broke off ({reason}); {_size(self.part)} bytes are kept. "
                f"Run the same command again to continue from there, or {self.by_hand}"
            ) from reason
        self.got = _sha256_of(self.part)
        os.replace(self.part, output_file)

    def _continue(self, url: str) -> None:
        have = _size(self.part)
        with self._open(url, have) as response:
            resumes = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if have and response.status == 206 and not resumes:
                self.part.unlink()
                raise _BrokenOff("the server sent another part than requested")
            # A server that cannot resume sends the whole file, with status 200.
            have = have if resumes else 0
            self.resumed = resumes
            length = response.headers.get("Content-Length", "")
            total = have + int(length) if length.isdecimal() and len(length) < 20 else None
            self._check_size(url, total or have)
            # `disable=None` draws the bar only on a terminal.
            bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, disable=None, leave=False)
            with self.part.open("ab" if resumes else "wb") as file, bar:
                for piece in _pieces(response):
                    have += len(piece)
                    self._check_size(url, have)
                    file.write(piece)
                    bar.update(len(piece))
                file.flush()
                os.fsync(file.fileno())
        if total is not None and have < total:
            raise _BrokenOff(f"{have} of {total} bytes came")

    def _check_size(self, url: str, count: int) -> None:
        try:
            self.limits.check_bytes(count, f"{url} has")
        except FadevizError:
            self.part.unlink(missing_ok=True)
            raise

    def _open(self, url: str, have: int) -> HTTPResponse:
        headers = {"User-Agent": "fadeviz", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            opener = _build_opener(self.limits.min_speed)
            response = opener(Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
        except HTTPError as error:
            with error:
                if error.code == 416 and have:
                    # The part is as long as the file or longer: left over from another file, or whole but never moved.
                    # Beginning anew is right for both.
                    self.part.unlink()
                    raise _BrokenOff("what was left over did not fit") from error
                answer = f"{error.code} {error.reason}"
                raise FadevizError(f"{url} answers {answer}. Check the address, or {self.by_hand}") from error
        except (OSError, HTTPException, UnicodeError) as error:
            # URLError is an OSError; its reason is more precise.
            reason = error.reason if isinstance(error, URLError) else error
            host = urlsplit(url).netloc
            raise FadevizError(f"cannot reach {host} ({reason}). Check the network, or {self.by_hand}") from error
        if not isinstance(response, HTTPResponse):  # an http URL can redirect to an ftp one
            raise FadevizError(f"{url} redirects to another kind of URL, {response.url}. Give an https:// one")
        return response


def _drop_special(path: Path) -> None:
    """Remove a symlink or a FIFO with the name of a download: one would be followed, the other would block."""
    try:
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            path.unlink()
    except OSError as error:
        raise FadevizError(f"cannot write {path}: {error.strerror or error}. Remove what is there") from error


def _pieces(response: HTTPResponse) -> Iterator[bytes]:
    # Apart from the writing, so that an OSError here is the network's and one there the disk's.
    while True:
        try:
            piece = response.read1(_CHUNK)  # what has arrived, without waiting for more
        except (OSError, HTTPException) as error:
            raise _BrokenOff(str(error) or type(error).__name__) from error
        if not piece:
            return
        yield piece


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _unpacked_from(folder: Path) -> str:
    try:
        return (folder / _MARKER).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _unpack(archive: Path, folder: Path, sha256: str, limits: _Limits) -> None:
    """Unpack beside ``folder``, mark with the checksum, rename. The checksum vouches for bytes, not for intent."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.unpacking-", dir=folder.parent) as beside:
        new = Path(beside) / "new"
        new.mkdir()
        unpack(archive, new, limits.check_bytes)
        (new / _MARKER).write_text(sha256 + "\n", encoding="utf-8")
        if os.path.lexists(folder):
            raise FadevizError(f"{folder} came into being during the download. Choose another folder, or remove it")
        os.rename(new, folder)


def _cannot_write(path: Path, error: OSError) -> FadevizError:
    return FadevizError(f"cannot write {path}: {error.strerror or error}. Free some space, or choose another folder")
