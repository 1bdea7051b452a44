"""The runs below the folders that are viewed: found, named and looked at again, so that what changed is known."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FadevizError, printable
from ..storage.files import unreadable
from ..storage.info import ACTIVE
from ..storage.listing import RunEntry, damaged, describe, find_runs, stamp
from ..storage.stored_run import StoredRun

_PAUSE = 0.4
"""Seconds between two looks at the runs, however many pages ask."""

UNSETTLED = 2.5e9
"""Nanoseconds for which a change may hide another: some file systems date files by whole seconds."""

_SEARCH_SHARE = 20
"""How many times longer than a search of the folders the pause after it is: large trees take their time."""


@dataclass
class _Known:
    """What was last seen of a run, and the version of the list since which it is so."""

    entry: RunEntry
    version: int
    stamp: tuple[tuple[int, int, int], ...]
    looked: int  # time of that in ns
    run: StoredRun | None  # of one that is being recorded


class RunIndex:
    """The runs below some folders. Each is named by a token, so that no path ever comes from a page.

    Symlinks that lead out of the folders are not followed: such a run is listed as damaged.

    Attributes:
        folders: the folders as they were given.
        session: tells this index from that of another server: versions count from 1 in each.
    """

    def __init__(self, folders: Sequence[str | os.PathLike[str]]) -> None:
        """Nothing is read before it is asked for.

        Raises:
            FadevizError: if one of the folders is none, or there are none.
        """
        if not folders:
            raise FadevizError("no folder to view. Give a folder that holds runs, such as outputs")
        for folder in folders:
            if not os.path.isdir(folder):
                raise FadevizError(f"no folder {folder}. Give a folder that holds runs, such as outputs")
        self.folders = tuple(Path(folder) for folder in folders)
        self.session = secrets.token_hex(4)
        self._roots = tuple(folder.resolve() for folder in self.folders)
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._gone: dict[str, int] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        self._version = 0
        self._next_refresh = self._next_search = 0.0

    def changes(self, since: int = 0) -> dict[str, Any]:
        """What changed in the list since a version, as JSON values; all of it since 0."""
        with self._lock:
            self._refresh()
            return {
                "session": self.session,
                "version": self._version,
                "runs": [
                    {"id": token, **known.entry.to_dict()}
                    for token, known in self._known.items()
                    if known.version > since
                ],
                "gone": [token for token, version in self._gone.items() if version > since],
            }

    def folder(self, token: str) -> Path:
        """The folder of a run, after a check that it leads nowhere else.

        Raises:
            FadevizError: if there is no such run (any more), or it leads out of the folders that are viewed.
        """
        with self._lock:
            if token not in self._places:
                self._refresh()
            if token not in self._places:
                raise FadevizError("this run is not there (any more): its folder was removed or renamed")
            path = self._places[token][0]
        self.check(path)
        return path

    def place(self, token: str) -> str:
        """The folder of a run as the list shows it."""
        with self._lock:
            return printable(self._places[token][1]) if token in self._places else ""

    def check(self, path: Path) -> None:
        """Raise if a run, or a file in it, lies outside of the folders that are viewed, behind a symlink.

        Raises:
            FadevizError: then; or if the folder cannot be read.
        """
        try:
            self._check_inside(path)
            for folder in (path, path / "snapshots"):
                if folder != path and not folder.is_dir():
                    continue
                self._check_inside(folder)
                with os.scandir(folder) as inside:
                    for one in inside:
                        if one.is_symlink():
                            self._check_inside(Path(one.path))
        except (OSError, RuntimeError) as error:  # RuntimeError: symlinks in a circle
            raise FadevizError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error

    def _check_inside(self, path: Path) -> None:
        real = path.resolve()
        if not any(real.is_relative_to(root) for root in self._roots):
            raise FadevizError(
                f"{path} is a symlink to {real}, outside of the folders that are viewed. View that folder as well"
            )

    # --- refreshing, under the lock ------------------------------------------------------------------------------

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._next_refresh:
            return
        if now >= self._next_search:
            self._places = self._search()
            self._next_search = time.monotonic() + max(_PAUSE, _SEARCH_SHARE * (time.monotonic() - now))
        changed = self._version + 1
        for token, (path, place) in self._places.items():
            self._update(token, path, place, changed)
        for token in [token for token in self._known if token not in self._places or not self._known[token].stamp]:
            del self._known[token]
            self._places.pop(token, None)
            self._gone[token] = self._version = changed
        self._next_refresh = time.monotonic() + _PAUSE

    def _search(self) -> dict[str, tuple[Path, str]]:
        """Path and place of each run, by its token."""
        places: dict[str, tuple[Path, str]] = {}
        seen = set()
        for root in self._roots:
            for path in find_runs(root):
                if path in seen:  # one folder may lie in another
                    continue
                seen.add(path)
                inner = os.path.relpath(path, root)
                parts = [*([root.name] if len(self.folders) > 1 or inner == "." else []), *([inner] * (inner != "."))]
                # Of its name alone: a link still opens the run where the whole tree was moved.
                name = os.fsencode(f"{root.name}\0{inner}")
                token = hashlib.sha256(name).hexdigest()[:12]
                if token in places:  # two folders of one name
                    token = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
                places[token] = (path, "/".join(parts))
        return places

    def _update(self, token: str, path: Path, place: str, changed: int) -> None:
        known = self._known.get(token)
        now = stamp(path)
        if known is not None and now == known.stamp:
            newest = max((time for _, _, time in now), default=0)
            settled = known.looked - newest > UNSETTLED
            # A process that was killed writes nothing: its lock tells.
            if settled and (known.run is None or known.run.status == known.entry.status):
                return
        looked = time.time_ns()
        run: StoredRun | None = None
        try:
            self.check(path)
            run = StoredRun(path)
            entry = describe(run, place)
        except FadevizError as error:
            entry = damaged(error, place)
        except OSError as error:
            entry = damaged(FadevizError(f"{path} {unreadable(error) or error}"), place)
        if known is None or entry != known.entry:
            self._version = changed
            version = changed
        else:
            version = known.version
        active = run if run is not None and entry.status in ACTIVE else None
        self._known[token] = _Known(entry, version, now, looked, active)
        self._gone.pop(token, None)


__all__ = ["UNSETTLED", "RunIndex"]
