"""Unpacking untrusted archives: every member is checked before the first one is written."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import IO, Any, cast

from ..errors import FadevizError

MAX_FILES = 200_000
"""Limit of files and folders in an archive: the largest data set here, ADE20K, has 44,000."""

MAX_DEPTH = 64
"""Limit of nested folders in an archive: deeper ones could not be removed by name."""

MAX_NAME = 255
"""Longest name in an archive in bytes, as in file systems."""

_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError),
    *(NotImplementedError, ValueError, struct.error, LookupError, OverflowError, RecursionError),
)
# Extended names and attributes of a tar are read at once; regular archives have far less than a megabyte.
_MAX_READ = 1 << 20
# Bytes that a zip's directory spends on a file of a long name.
_ZIP_ENTRY = 200
# The records at its end and the longest comment.
_ZIP_TAIL = 56 + 20 + 22 + (1 << 16)

CheckBytes = Callable[[int, str], None]
"""Raises if a number of bytes is too large; the second argument begins the message."""


def unpack(archive: Path, folder: Path, check_bytes: CheckBytes) -> None:
    """Unpack a .zip, .tar, .tar.gz or .tgz file into an existing, empty folder.

    Raises:
        FadevizError: if it is not an archive, or damaged; if it holds links, devices, names that lead out of it or that
            no disk accepts; if it has too many files, bytes or nested folders. Remove the folder then.
        OSError: if the disk is full.
    """
    try:
        # By content, since a URL often does not end in the archive's name.
        with archive.open("rb") as file:
            start = file.read(2)
        if start == b"PK":
            _check_directory(archive)
            with zipfile.ZipFile(archive) as opened_zip:
                _check_zip(opened_zip, check_bytes)
                opened_zip.extractall(folder)
        else:
            if not hasattr(tarfile, "data_filter"):
                raise FadevizError("this Python's tarfile cannot unpack safely. Upgrade to Python 3.11.4 or later")
            packed = start == b"\x1f\x8b"
            with (
                gzip.open(archive) if packed else archive.open("rb") as stream,
                tarfile.open(fileobj=cast("IO[bytes]", _Frugal(stream)), mode="r:") as opened_tar,
            ):
                _check_tar(opened_tar, check_bytes)
                opened_tar.extractall(folder, filter="data")
    except FadevizError:
        raise
    except _DAMAGED as error:
        raise FadevizError(
            f"the download is not an archive that can be unpacked ({error or type(error).__name__}). "
            "Give the URL of a .zip, .tar, .tar.gz or .tgz file"
        ) from error


class _Frugal:
    """A tar's stream with a limit on the size of a single read, so that headers of gigabytes are refused."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        """See :meth:`io.RawIOBase.read`."""
        if not 0 <= size <= _MAX_READ:
            raise FadevizError("the archive's extended headers are too large: nothing is unpacked. Do not trust it")
        data: bytes = self._stream.read(size)
        return data


def _check_directory(archive: Path) -> None:
    """Refuse a zip with too many files before its directory is read into memory.

    The directory's size is checked, since that is what is read; the stated number of entries may be wrong.
    """
    with archive.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - _ZIP_TAIL))
        tail = file.read()
    # Two records may hold the size, the second for large archives; zipfile uses one of these.
    for mark, place, form in ((b"PK\x05\x06", 12, "<L"), (b"PK\x06\x06", 40, "<Q")):
        for match in re.finditer(re.escape(mark), tail):
            field = tail[match.start() + place :][: struct.calcsize(form)]
            if len(field) == struct.calcsize(form) and MAX_FILES * _ZIP_ENTRY < struct.unpack(form, field)[0] <= length:
                raise _too_many()


def _check_zip(opened: zipfile.ZipFile, check_bytes: CheckBytes) -> None:
    total = 0
    for number, member in enumerate(opened.infolist()):
        # The upper half holds the Unix mode, 0 where the archive was made elsewhere.
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.flag_bits & 1:
            raise FadevizError(f"the archive's {member.filename!r} is encrypted: nothing is unpacked. Do it by hand")
        # Reading stops at the size given here, so a wrong size cannot unpack to more.
        total += member.file_size
        _check_member(member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR), number, total, check_bytes)


def _check_tar(opened: tarfile.TarFile, check_bytes: CheckBytes) -> None:
    total = 0
    for number, member in enumerate(opened):
        total += member.size
        _check_member(member.name, member.isreg() or member.isdir(), number, total, check_bytes)


def _check_member(name: str, plain: bool, number: int, total: int, check_bytes: CheckBytes) -> None:
    """Refuse a member that must not be unpacked; ``total`` is the size up to and with it."""
    shown = repr(name if len(name) <= 100 else f"{name[:100]}...")
    # Windows rules are the stricter ones: both slashes, and drives.
    path = PureWindowsPath(name)
    if path.anchor or ".." in path.parts:
        raise FadevizError(f"the archive's {shown} leads out of its folder: nothing is unpacked. Do not trust it")
    if not plain:
        # Links are refused wherever they lead: chains of links have defeated many such checks.
        raise FadevizError(f"the archive's {shown} is a link or a device: nothing is unpacked. Unpack it by hand")
    if len(path.parts) > MAX_DEPTH:
        raise FadevizError(
            f"the archive's {shown} lies {len(path.parts)} folders deep, above the limit of {MAX_DEPTH}: nothing is "
            "unpacked. Do not trust it"
        )
    if any(len(os.fsencode(part)) > MAX_NAME for part in path.parts):
        raise FadevizError(f"the archive's {shown} has too long a name: nothing is unpacked. Unpack it by hand")
    if number >= MAX_FILES:
        raise _too_many()
    check_bytes(total, "the archive unpacks to")


def _too_many() -> FadevizError:
    return FadevizError(f"the archive has more than {MAX_FILES:,} files: nothing is unpacked. Unpack it by hand")
