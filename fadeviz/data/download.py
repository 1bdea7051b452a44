"""Fetching an archive or a file from an address: resumed where it broke off, checked by SHA256, put in place whole.

No address and no checksum is built in: both come from the user. The Weizmann Horse set (Borenstein and Ullman, ECCV
2002) was published on its first author's pages, www.wisdom.weizmann.ac.il/~eranb and
www.msri.org/people/members/eranb, on the latter as ``weizmann_horse_db.tar.gz``. Pages move; :func:`fetch_archive`
takes whatever address still has the set.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PureWindowsPath
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pooch
from tqdm import tqdm

from ..errors import FadevizError

MAX_UNPACKED = 8 * 1024**3
"""An archive that unpacks to more bytes than this is refused."""

TRIES = 4
"""How often a broken connection is taken up again before giving up; the next call goes on from there all the same."""

WAIT_SECONDS = 1.0
"""Pause before a broken connection is taken up again."""

TIMEOUT_SECONDS = 30.0
"""A server that says nothing for this long counts as broken off."""

_CHUNK = 1 << 18
_MARKER = ".unpacked_from_sha256"
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError)


def fetch_archive(url: str, sha256: str, folder: str | os.PathLike[str]) -> Path:
    """Download a .zip, .tar, .tar.gz or .tgz archive, check it, and unpack it as ``folder``.

    A download that broke off is gone on with. The archive is unpacked beside ``folder`` and renamed at the end, so that
    a half-unpacked folder never stands in place. A folder that came from the same checksum is returned as it is.

    Args:
        url: http or https address.
        sha256: checksum of the archive, 64 hexadecimal digits.
        folder: what the archive is unpacked as; it must not exist yet.

    Returns:
        ``folder``.

    Raises:
        FadevizError: a bad address or checksum, no network, another checksum than asked for (nothing is unpacked), a
            folder that is there already, no archive, one with links or with names that lead out of it, one that unpacks
            to more than ``MAX_UNPACKED``, a disk that is full.
    """
    folder = Path(folder).expanduser().absolute()
    sha256 = _check_request(url, sha256)
    if os.path.lexists(folder):
        if _unpacked_from(folder) == sha256:
            return folder
        raise FadevizError(
            f"{folder} exists and was not unpacked from this archive. Choose another folder, or remove it"
        )
    archive = folder.with_name(f".{folder.name}.{sha256[:12]}.archive")
    _download(url, sha256, archive, f"download {url} with a browser and unpack it as {folder}")
    try:
        _unpack(archive, folder, sha256)
    except FadevizError:
        # The checksum was right, so the same bytes would be refused again.
        archive.unlink(missing_ok=True)
        raise
    except OSError as error:
        # The archive stays: once there is space, it is not downloaded again.
        raise _cannot_write(folder, error) from error
    archive.unlink(missing_ok=True)
    return folder


def fetch_file(url: str, sha256: str, path: str | os.PathLike[str]) -> Path:
    """Download one file, such as weights, and check it; resumed and put in place whole, as :func:`fetch_archive`.

    Args:
        url: http or https address.
        sha256: checksum of the file, 64 hexadecimal digits.
        path: where it goes; a file with that checksum is left as it is.

    Returns:
        ``path``.

    Raises:
        FadevizError: a bad address or checksum, no network, another checksum than asked for, another file in place.
    """
    path = Path(path).expanduser().absolute()
    sha256 = _check_request(url, sha256)
    if os.path.lexists(path):
        if path.is_file() and _sha256_of(path) == sha256:
            return path
        raise FadevizError(f"{path} exists and has another SHA256 than {sha256}. Choose another path, or remove it")
    _download(url, sha256, path, f"download {url} with a browser and save it as {path}")
    return path


def _check_request(url: str, sha256: str) -> str:
    """The checksum in lower case, after a look at both."""
    digits = sha256.strip().lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise FadevizError(f"{sha256!r} is no SHA256. Give its 64 hexadecimal digits; `sha256sum FILE` prints them")
    try:
        parts = urlsplit(url)
        # No name and password: urllib does not take them here, and messages and logs would show them.
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        usable = usable and not re.search(r"[\s\x00-\x1f]", url)
    except ValueError:
        usable = False
    if not usable:
        raise FadevizError(f"{url!r} is no address to download from. Give an https:// one, without a password")
    return digits


def _sha256_of(path: Path) -> str:
    try:
        return str(pooch.file_hash(str(path)))
    except OSError as error:
        raise FadevizError(f"{path} cannot be read: {error.strerror or error}") from error


def _download(url: str, sha256: str, path: Path, by_hand: str) -> None:
    """Download to ``path`` through pooch, which checks the checksum and moves the file into place."""
    downloader = _Resuming(path.with_name(f".{path.name.lstrip('.')}.{sha256[:12]}.part"), by_hand)
    for last in (False, True):
        try:
            pooch.retrieve(
                url, known_hash=f"sha256:{sha256}", fname=path.name, path=str(path.parent), downloader=downloader
            )
            return
        except FadevizError:
            raise
        except ValueError as error:
            # Pooch's word for a wrong checksum; it has removed the file. If the file came in two halves, the server's
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


class _Resuming:
    """A downloader for pooch that keeps what came so far in a .part file and goes on from its end.

    Attributes:
        resumed: whether the last download went on with bytes of an earlier connection.
        got: SHA256 of the last download.
    """

    def __init__(self, part: Path, by_hand: str) -> None:
        self.part = part
        self.by_hand = by_hand
        self.resumed = False
        self.got = ""

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        """Fetch ``url`` as ``output_file``; the form that pooch asks of a downloader."""
        self.resumed = False
        for attempt in range(TRIES):
            if attempt:
                time.sleep(WAIT_SECONDS)
            try:
                self._go_on(url)
                break
            except _BrokenOff as error:
                reason = error
        else:
            raise FadevizError(
                f"the download of {url} broke off ({reason}); {_size(self.part)} bytes are kept. "
                f"Run the same again to go on from there, or {self.by_hand}"
            ) from reason
        self.got = _sha256_of(self.part)
        os.replace(self.part, output_file)

    def _go_on(self, url: str) -> None:
        have = _size(self.part)
        with self._open(url, have) as response:
            goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if have and response.status == 206 and not goes_on:
                self.part.unlink()
                raise _BrokenOff("the server sent another part than asked for")
            # A server that cannot go on sends all of it, with status 200.
            have = have if goes_on else 0
            self.resumed = goes_on
            length = response.headers.get("Content-Length", "")
            total = have + int(length) if length.isdecimal() else None
            # `disable=None` draws the bar only on a terminal.
            bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, disable=None, leave=False)
            with self.part.open("ab" if goes_on else "wb") as file, bar:
                for piece in _pieces(response):
                    file.write(piece)
                    have += len(piece)
                    bar.update(len(piece))
                file.flush()
                os.fsync(file.fileno())
        if total is not None and have < total:
            raise _BrokenOff(f"{have} of {total} bytes came")

    def _open(self, url: str, have: int) -> HTTPResponse:
        headers = {"User-Agent": "fadeviz", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
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
            # URLError is an OSError; its reason says more than itself.
            reason = error.reason if isinstance(error, URLError) else error
            host = urlsplit(url).netloc
            raise FadevizError(f"cannot reach {host} ({reason}). Check the network, or {self.by_hand}") from error
        return response


def _pieces(response: HTTPResponse) -> Iterator[bytes]:
    # Apart from the writing, so that an OSError here is the network's and one there the disk's.
    while True:
        try:
            piece = response.read(_CHUNK)
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


def _unpack(archive: Path, folder: Path, sha256: str) -> None:
    """Unpack beside ``folder``, mark with the checksum, rename. The checksum vouches for bytes, not for intent."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.unpacking-", dir=folder.parent) as beside:
        new = Path(beside) / "new"
        new.mkdir()
        try:
            # By content: an address often ends in something else than the archive's name.
            with archive.open("rb") as file:
                start = file.read(2)
            if start == b"PK":
                with zipfile.ZipFile(archive) as opened_zip:
                    _check_zip(opened_zip)
                    opened_zip.extractall(new)
            else:
                if not hasattr(tarfile, "data_filter"):
                    raise FadevizError("this Python's tarfile cannot unpack safely. Upgrade to Python 3.11.4 or later")
                with tarfile.open(archive, "r:gz" if start == b"\x1f\x8b" else "r:") as opened_tar:
                    _check_tar(opened_tar)
                    opened_tar.extractall(new, filter="data")
        except _DAMAGED as error:
            raise FadevizError(
                f"what was downloaded is no archive that can be unpacked ({error or type(error).__name__}). "
                "Give the address of a .zip, .tar, .tar.gz or .tgz file"
            ) from error
        (new / _MARKER).write_text(sha256 + "\n", encoding="utf-8")
        if os.path.lexists(folder):
            raise FadevizError(f"{folder} came into being during the download. Choose another folder, or remove it")
        os.rename(new, folder)


def _check_zip(opened: zipfile.ZipFile) -> None:
    total = 0
    for member in opened.infolist():
        # The upper half holds the Unix mode, 0 where the archive was made elsewhere.
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.flag_bits & 1:
            raise FadevizError(f"the archive's {member.filename!r} is encrypted: nothing is unpacked. Do it by hand")
        # Reading stops at the size given here, so that a false one cannot unpack to more.
        total = _check_member(member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR), total + member.file_size)


def _check_tar(opened: tarfile.TarFile) -> None:
    total = 0
    for member in opened:
        total = _check_member(member.name, member.isreg() or member.isdir(), total + member.size)


def _check_member(name: str, plain: bool, total: int) -> int:
    """Raise for a member that must not be unpacked; ``total`` is the size up to and with it, and is returned."""
    # Windows rules are the stricter ones: both slashes, and drives.
    path = PureWindowsPath(name)
    if path.anchor or ".." in path.parts:
        raise FadevizError(f"the archive's {name!r} leads out of its folder: nothing is unpacked. Do not trust it")
    if not plain:
        # Links are refused without a look at where they lead: chains of them have outwitted many such checks.
        raise FadevizError(f"the archive's {name!r} is a link or a device: nothing is unpacked. Unpack it by hand")
    if total > MAX_UNPACKED:
        raise FadevizError(
            f"the archive unpacks to more than {MAX_UNPACKED / 1024**3:.3g} GiB: nothing is unpacked. Unpack it by hand"
        )
    return total


def _cannot_write(path: Path, error: OSError) -> FadevizError:
    return FadevizError(f"cannot write {path}: {error.strerror or error}. Free some space, or choose another folder")
