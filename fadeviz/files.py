"""Files that are replaced whole, and the lock on a folder that is written."""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import FadevizError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place only when the block ends without an error.

    The file is fsynced and renamed, so that a crash at any instant leaves the old file or the new one, whole. Two
    processes that write the same file, be it from two machines, each write their own temporary one. A device or a pipe,
    such as ``/dev/stdout``, is written straight to.

    Raises:
        FadevizError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{_machine()}-{os.getpid()}.partial{path.suffix}")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            yield path
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # gone already, or never made: the error above is the one to hear of
            partial.unlink()


_PARTIAL = re.compile(r"\..+?(?:\.([0-9a-f]{8})-(\d+))?\.partial(?:\..*)?")


def _machine() -> str:
    # Short, and plain whatever the machine is called.
    return f"{zlib.crc32(platform.node().encode('utf-8', 'replace')):08x}"


def left_over(file: Path, *, elsewhere: bool = False) -> bool:
    """Whether a file is a temporary one of :func:`replacing` whose process has ended.

    Of another machine's process nobody here can know that: ``elsewhere`` is what to say then.
    """
    match = _PARTIAL.fullmatch(file.name)
    if match is None or not file.is_file():
        return False
    machine, process = match.groups()
    if machine in (None, _machine()):
        return machine is None or not _lives(int(process))
    return elsewhere


def _lives(process: int) -> bool:
    """Whether another process of this number lives here."""
    if process == os.getpid() or not 0 < process < 2**31:
        return False
    if sys.platform == "win32":  # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing.

    Raises:
        FadevizError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds all of it or what it held before."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def _fsync_folder(folder: Path) -> None:
    # Makes the rename itself durable; platforms that cannot open a folder do without.
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def cannot_write(path: Path, error: OSError) -> FadevizError:
    """The error to raise, with what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FadevizError(
            f"disk full while writing {path}: nothing was replaced. Free some space, then do the same again; "
            "a run that was being recorded goes on with --resume"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FadevizError(f"cannot write {path}: {error.strerror}. Choose another folder")
    return FadevizError(f"cannot write {path}: {error.strerror or error}")


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Refuse a second process on the same folder; the lock goes with the process, however it ends."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    made = not out.exists()
    make_folder(out)
    try:
        handle = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(out, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FadevizError(
                f"another process is recording into {out}. Wait for it, or choose another --out"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        if made:  # what was refused before it began leaves nothing behind
            with suppress(OSError):
                out.rmdir()
        os.close(handle)
