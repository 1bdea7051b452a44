"""Reading regular files only, replacing files atomically, and the lock on a folder."""

from __future__ import annotations

import errno
import os
import platform
import re
import stat
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import FadevizError

TEXT_LIMIT = 64 * 2**20
"""Largest size in bytes of run.json and other settings files: far above any that is written."""

METRICS_LIMIT = 2**30
"""Largest size in bytes of metrics.jsonl."""

TENSORS_LIMIT = 16 * 2**30
"""Largest size in bytes of a file of tensors: a snapshot, the observed images, a checkpoint."""


class NoRegularFile(OSError):
    """A path is a folder, a FIFO, a device or a socket, or the file is larger than files of its kind may be."""

    def __init__(self, path: str | os.PathLike[str], what: str) -> None:
        """``what`` it is, as the second half of a sentence."""
        super().__init__(errno.EINVAL, what, os.fspath(path))

    def __str__(self) -> str:
        return str(self.strerror)


class TooLarge(NoRegularFile):
    """A regular file that is larger than files of its kind may be, although it may be intact."""


def check_regular(path: str | os.PathLike[str], limit: int = TENSORS_LIMIT) -> None:
    """Raise unless ``path`` is a regular file: opening a FIFO may block, and reading a device may never end.

    Raises:
        NoRegularFile: if it is anything else, or has more than ``limit`` bytes.
        OSError: if it does not exist, or cannot be reached.
    """
    _refuse_special(path, os.stat(path), limit)


def _refuse_special(path: str | os.PathLike[str], status: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        raise NoRegularFile(path, f"it is a {kinds.get(stat.S_IFMT(status.st_mode), 'device')}, but a file is needed")
    if status.st_size > limit:
        raise TooLarge(path, f"it has {status.st_size:,} bytes, but at most {limit:,} are read")


def unreadable(error: BaseException) -> str:
    """Why a file cannot be read, unless it is damaged; empty if it is."""
    if isinstance(error, NoRegularFile) and not isinstance(error, TooLarge):
        return ""
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else ""


@contextmanager
def open_regular(path: str | os.PathLike[str], limit: int = TEXT_LIMIT) -> Iterator[BinaryIO]:
    """Open a regular file for reading, whatever takes its place in the meantime.

    Raises:
        NoRegularFile: if it is anything else, or has more than ``limit`` bytes.
        OSError: if it does not exist, or cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _refuse_special(path, os.fstat(handle), limit)
    except NoRegularFile:
        os.close(handle)
        raise
    with os.fdopen(handle, "rb") as file:
        yield file


def read_regular(path: str | os.PathLike[str], limit: int = TEXT_LIMIT) -> bytes:
    """The bytes of a regular file.

    Raises:
        NoRegularFile: if it is anything else, or has more than ``limit`` bytes.
        OSError: if it does not exist, or cannot be read.
    """
    with open_regular(path, limit) as file:
        parts, size = [], 0
        while part := file.read(2**20):  # in parts, so that the limit is not allocated at once
            parts.append(part)
            size += len(part)
            if size > limit:  # a file of /proc, whose size is given as 0
                raise TooLarge(path, f"it has more than {limit:,} bytes, the most that are read")
    return b"".join(parts)


@contextmanager
def replacing(path: Path, *, named: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place only when the block ends without an error.

    The file is fsynced and renamed, so that a crash at any instant leaves the old file or the new one, whole. Two
    processes that write the same file, even from two machines, each use their own temporary one. A symlink is replaced,
    not followed: its target is left unchanged.

    Args:
        path: the file.
        named: whether the user named this file: a device or a FIFO, such as ``/dev/stdout``, is then written to
            directly. Within a run's folder it is replaced like anything else.

    Raises:
        FadevizError: if the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{machine()}-{os.getpid()}.partial{path.suffix}")
    try:
        if named and _is_stream(path):
            yield path
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # a symlink of that name would be followed
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


def _is_stream(path: Path) -> bool:
    """Whether this is a device, a FIFO, or standard output, which must not be replaced even if it is a file."""
    if not path.exists():
        return False
    if re.fullmatch(r"/dev|/proc/[0-9]+/(task/[0-9]+/)?fd", os.path.realpath(path.parent)):
        return True
    return not (path.is_file() or path.is_dir())


_PARTIAL = re.compile(r"\.([a-z_0-9]+)(?:\.([0-9a-f]{8})-([0-9]{1,10}))?\.partial(\.[a-z]+)")

_OF_A_RUN = re.compile(
    r"(?:step_[0-9]{6,12}|observation|[a-z0-9_]*_[0-9a-f]{12})\.safetensors|(?:run|manifest)\.json|metrics\.jsonl|last\.pt"
)
"""The files of a run or a sweep that are replaced atomically."""


def machine() -> str:
    """A short identifier of this machine, made of plain characters."""
    return f"{zlib.crc32(platform.node().encode('utf-8', 'replace')):08x}"


def left_over(file: Path, *, elsewhere: bool = False) -> bool:
    """Whether this is a temporary file of :func:`replacing`, of a file of a run or a sweep, whose process has ended.

    For a process of another machine this cannot be determined; ``elsewhere`` is returned then.
    """
    match = _PARTIAL.fullmatch(file.name)
    if match is None or not _OF_A_RUN.fullmatch(match[1] + match[4]) or file.is_symlink() or not file.is_file():
        return False
    where, process = match[2], match[3]
    if where in (None, machine()):
        return where is None or not _lives(int(process))
    return elsewhere


def _lives(process: int) -> bool:
    """Whether another process with this id runs on this machine."""
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
        FadevizError: if the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_whole(path: Path, data: bytes, *, named: bool = True) -> None:
    """Write ``data`` so that ``path`` holds all of it or what it held before; ``named`` as for :func:`replacing`."""
    with replacing(path, named=named) as partial:
        partial.write_bytes(data)


def leads_outside(folder: Path, run: Path) -> bool:
    """Whether a folder of a run really lies elsewhere, behind a symlink."""
    try:
        return not folder.resolve().is_relative_to(run.resolve())
    except (OSError, RuntimeError):  # a symlink loop
        return True


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
            "a run that was being recorded continues with resume=True"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FadevizError(f"cannot write {path}: {error.strerror}. Choose another folder")
    return FadevizError(f"cannot write {path}: {error.strerror or error}")


_open_folders: set[int] = set()
"""Handles that are locked, or about to be."""

_held: set[tuple[int, int]] = set()
"""Device and inode of the folders that this process has locked."""

PATIENCE = 0.3
"""Seconds for which a busy lock may be just a check by :func:`lock_is_free`."""


def _let_go() -> None:
    # In a forked child, such as a DataLoader worker: otherwise the lock would last as long as the last child.
    for handle in _open_folders:
        with suppress(OSError):
            os.close(handle)
    _open_folders.clear()
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    """A handle to lock that no child of this process inherits."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    _open_folders.add(handle)
    try:
        yield handle
    finally:
        if handle in _open_folders:  # not in a child, where the number may belong to another file by now
            _open_folders.remove(handle)
            os.close(handle)


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Refuse a second process on the same folder; the lock is released when the process ends, however it does.

    Raises:
        FadevizError: if another process has the lock, or the folder cannot be made or opened.
    """
    if sys.platform == "win32":
        yield
        return
    made = not out.exists()
    make_folder(out)
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(_opened_folder(out))
        except OSError as error:
            raise cannot_write(out, error) from error
        folder = _file_id(os.fstat(handle))
        try:
            if _lock(handle, out):
                _held.add(folder)
            yield
        finally:
            if made and handle in _open_folders:  # a refused run leaves nothing behind
                with suppress(OSError):
                    out.rmdir()
            _held.discard(folder)


def _lock(handle: int, out: Path) -> bool:
    """Take the lock; False on a file system without locks."""
    import fcntl

    patience = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if _file_id(os.fstat(handle)) in _held:
                raise FadevizError(
                    f"this process is recording into {out} already. close() the recorder, or wait for the run"
                ) from error
            if time.monotonic() > patience:
                raise FadevizError(
                    f"another process is recording into {out}. Wait for it, or choose another out=..."
                ) from error
            time.sleep(0.02)
        except OSError:
            return False
        else:
            return True


def has_lock(folder: Path) -> bool:
    """Whether this process is the :func:`only_writer` of the folder, on a file system that has locks."""
    try:
        return _file_id(os.stat(folder)) in _held
    except OSError:
        return False


def lock_is_free(folder: Path) -> bool:
    """Whether no process on this machine is the :func:`only_writer` of the folder; False if that cannot be known.

    The check takes a shared lock for an instant; a writer that starts just then waits for it.
    """
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        with _opened_folder(folder) as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def _file_id(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
