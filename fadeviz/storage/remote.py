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
from collections.abc import Mapping, Sequence
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
        self._versions: dict[str, str] = {}
        self._fetched_before: set[str] = set()  # files that were here before their versions were asked for
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
            listed = self._listed(folder)
        except (FileNotFoundError, NotADirectoryError, NotImplementedError):
            return []
        except Exception as error:  # each file system has errors of its own
            raise FadevizError(
                f"cannot list {self.shown}/{folder}: {_line(error)}. Check the network, and that you may read there"
            ) from error
        for name, entry in listed.items():
            if _version(entry):
                self._note(f"{folder}/{name}", _version(entry))
        return sorted(listed)

    def _listed(self, folder: str) -> dict[str, Mapping[str, Any]]:
        """What the file system says of each file in a folder, by their bare names; the errors are its own."""
        self._system.invalidate_cache()  # fsspec caches listings, but a run in progress gains steps
        listed = self._system.ls(f"{self._root}/{folder}", detail=True)
        return {re.split(r"[/\\]", str(entry["name"]).rstrip("/"))[-1]: entry for entry in listed}

    def version(self, name: str) -> str:
        """What the server says of a file that changes with its content, such as an entity tag, or the time and size.

        It is asked for once: by a listing that says so much, or here. Empty where the server does not say.
        """
        if name not in self._versions:
            self._note(name, self._ask_version(name))
        return self._versions[name]

    def unchanged(self, folder: str, names: Sequence[str]) -> bool:
        """Whether files in a folder are still of the known versions, and what was fetched is of these versions."""
        try:
            listed = self._listed(folder)
        except Exception:  # it is not listed: each file is asked for
            listed = {}
        for name in names:
            path = f"{folder}/{name}"
            if (_version(listed.get(name, {})) or self._ask_version(path)) != self._versions.get(path):
                return False
            if path in self._fetched_before and not self._is_still(path):
                return False
            self._fetched_before.discard(path)
        return True

    def _is_still(self, name: str) -> bool:
        """Whether a file at the address has the bytes that were fetched."""
        try:
            fetched = (self.path / name).read_bytes()
            return bool(self._system.cat_file(f"{self._root}/{name}", 0, len(fetched) + 1) == fetched)
        except Exception:  # each file system has errors of its own
            return False

    def _note(self, name: str, version: str) -> None:
        if name not in self._versions:
            if (self.path / name).exists():
                self._fetched_before.add(name)
            self._versions[name] = version

    def _ask_version(self, name: str) -> str:
        try:
            return _version(self._system.info(f"{self._root}/{name}"))
        except Exception:  # each file system has errors of its own; that of reading the file is the one to hear of
            return ""


_S3 = ("s3", "s3a")
_HTTP = ("http", "https")
_EXTRAS = dict.fromkeys(_S3, ("s3", "s3fs")) | dict.fromkeys(_HTTP, ("remote", "aiohttp"))
"""The extra, and the library in it, that fsspec needs for a protocol."""


_VERSIONS = (
    *("ETag", "etag", "VersionId", "generation", "Content-MD5", "Digest", "md5Hash", "content_md5", "CRC"),
    *("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified"),
)
"""Names, in various file systems, of what changes with a file's content."""

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


def _version(entry: Mapping[str, Any]) -> str:
    """What a file system says of a file that changes with its content; empty if there is nothing of that kind."""
    names = [name for name in _VERSIONS if entry.get(name)] or [name for name in ("created",) if entry.get(name)]
    return " ".join(f"{name}={entry[name]}" for name in ("size", *names) if name in entry) if names else ""


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
