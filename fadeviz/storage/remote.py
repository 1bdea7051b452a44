"""Folders at an fsspec address: each file is fetched on its first access, into a private temporary folder."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import time
import uuid
import weakref
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import urlsplit

from ..errors import FadevizError, MissingExtra
from .files import METRICS_LIMIT, TENSORS_LIMIT, TEXT_LIMIT, check_regular


def is_address(path: object) -> TypeGuard[str]:
    """Whether a path is an address such as ``s3://bucket/run``, and no path of this machine.

    Example:
        >>> is_address("s3://bucket/run"), is_address("outputs/fade")
        (True, False)
    """
    return isinstance(path, str) and "://" in path


class RemoteFolder:
    """A folder for reading, at any address that fsspec supports.

    Attributes:
        address: the address, unchanged.
        shown: the address as messages and images name it: without a password and without a query.
        path: the local folder of the fetched files, which is removed with this object.
    """

    def __init__(self, address: str) -> None:
        """Find the file system; nothing is fetched yet.

        Raises:
            FadevizError: if fsspec or a package for this protocol is not installed, or the protocol is unknown.
        """
        self.address = address
        self.shown = _shown(address)
        self._fetching = threading.Lock()
        protocol = self.shown.partition("://")[0]
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise MissingExtra(
                "remote", f"{self.shown}: reading from a URL needs fsspec, which is not installed"
            ) from error
        try:
            self._system, root = url_to_fs(address, **_impatient(protocol))
        except ImportError as error:
            if protocol in _EXTRAS:
                extra, library = _EXTRAS[protocol]
                what = f"{self.shown}: fsspec lacks a library for this protocol, {library}"
                raise MissingExtra(extra, what) from error
            raise FadevizError(
                f"{self.shown}: fsspec lacks a library for this protocol ({_line(error)}). Install that library"
            ) from error
        except Exception as error:  # each file system has errors of its own
            raise FadevizError(f"cannot open {self.shown}: {_line(error)}. Check the address") from error
        if protocol in _S3:
            self._system.retries = _TRIES  # by default it retries for minutes, and botocore below it as often again
        self._root = str(root).rstrip("/")
        folder = tempfile.mkdtemp(prefix="fadeviz-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        # The last name is kept: it is what a run without an operator is called.
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", self._root.rpartition("/")[2])[:80].strip(".")
        self.path = Path(folder, name or "run")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.address,)  # a copy in another process has a temporary folder of its own

    def fetch(self, name: str) -> Path:
        """The local path of a file, which is fetched completely on its first access.

        Args:
            name: its path in the folder, e.g. ``snapshots/step_000010.safetensors``.

        Returns:
            Its local path, which does not exist if there is no such file at the address.

        Raises:
            FadevizError: if the network or the server fails, access is denied, the disk is full, or the file is too
                large or not a regular file.
        """
        local = self.path / name
        limit = {"run.json": TEXT_LIMIT, "metrics.jsonl": METRICS_LIMIT}.get(name, TENSORS_LIMIT)
        with self._fetching:  # some file systems mix up the bytes of two threads that read one file
            if local.exists():
                return local
            partial = local.with_name(f".{uuid.uuid4().hex}.partial")
            try:
                local.parent.mkdir(parents=True, exist_ok=True)
                if "file" in self._system.protocol:  # local://, a folder of this machine
                    check_regular(f"{self._root}/{name}", limit)
                self._system.get_file(f"{self._root}/{name}", str(partial), callback=_watch(limit))
                os.replace(partial, local)
            except FileNotFoundError:
                pass
            except Exception as error:  # each file system has errors of its own
                raise FadevizError(
                    f"cannot fetch {self.shown}/{name}: {_line(error)}. Check the network, and that you may read there"
                ) from error
            finally:
                partial.unlink(missing_ok=True)
        return local

    def names(self, folder: str) -> list[str]:
        """The bare names of what lies in a folder below this one; none where the server does not list it.

        Raises:
            FadevizError: if the network or the server fails, or access is denied.
        """
        try:
            self._system.invalidate_cache()  # fsspec caches listings, but a run in progress gains steps
            listed = self._system.ls(f"{self._root}/{folder}", detail=False)
        except (FileNotFoundError, NotADirectoryError, NotImplementedError):
            return []
        except Exception as error:  # each file system has errors of its own
            raise FadevizError(
                f"cannot list {self.shown}/{folder}: {_line(error)}. Check the network, and that you may read there"
            ) from error
        return sorted({re.split(r"[/\\]", str(name).rstrip("/"))[-1] for name in listed})


_S3 = ("s3", "s3a")
_HTTP = ("http", "https")
_EXTRAS = dict.fromkeys(_S3, ("s3", "s3fs")) | dict.fromkeys(_HTTP, ("remote", "aiohttp"))
"""The extra, and the library in it, that fsspec needs for a protocol."""


_TRIES = 2
"""Number of attempts when a server closes the connection or does not respond."""

_CONNECT_SECONDS, _SILENT_SECONDS = 10, 20
"""Timeouts in seconds for connecting to a server, and for its next bytes."""

_SLOW_SECONDS, _SLOW_RATE = 60, 1000
"""Bytes per second below which a download is aborted after a minute."""


def _impatient(protocol: str) -> dict[str, Any]:
    """File system options with timeouts; the user's fsspec configuration takes precedence."""
    from fsspec.config import conf

    if protocol in _S3:
        theirs = (conf.get(protocol) or {}).get("config_kwargs") or {}
        ours = {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _SILENT_SECONDS,
            "retries": {"total_max_attempts": 1},
        }
        return {"config_kwargs": {**ours, **theirs}, "skip_instance_cache": True}
    if protocol in _HTTP:
        import aiohttp

        theirs = (conf.get(protocol) or {}).get("client_kwargs") or {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
        return {"client_kwargs": {"timeout": timeout, **theirs}}
    return {}


def _watch(limit: int) -> Any:
    """An fsspec callback that aborts a download larger than ``limit`` bytes, or a too slow one."""
    from fsspec.callbacks import Callback

    begun = time.monotonic()

    class Watch(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            self.value += inc
            seconds = time.monotonic() - begun
            if self.value > limit:
                raise OSError(f"more than {limit:,} bytes, the limit for such a file")
            if seconds > _SLOW_SECONDS and self.value < seconds * _SLOW_RATE:
                raise OSError(f"too slow: {self.value:,} bytes in {seconds:.0f} seconds")

    return Watch()


def _shown(address: str) -> str:
    parts = urlsplit(address) if "::" not in address else None
    if parts is None:
        return re.sub(r"//[^/@]*@", "//***@", address).rstrip("/")
    host = f"***@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    return f"{parts.scheme}://{host}{parts.path}".rstrip("/")


def _line(error: Exception) -> str:
    """An error in one line; those of some file systems have no message, only a type."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


__all__ = ["RemoteFolder", "is_address"]
