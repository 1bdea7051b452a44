"""A run's folder as readers see it: on this machine, or at an address."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import FadevizError, printable
from .remote import RemoteFolder, is_address


class RunFolder:
    """Where the files of a run lie: in a folder of this machine, or at an address from which each is fetched once.

    Attributes:
        path: the folder on this machine; of a remote run the temporary one.
        address: the folder as messages name it: the path as it was given, or the address.
        remote: the address and its connection; None for a folder of this machine.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a folder.

        Raises:
            FadevizError: if an address cannot be read, or has no run.json.
        """
        self.remote = RemoteFolder(path) if is_address(path) else None
        self.path = Path(path) if self.remote is None else self.remote.path
        self.address = str(self.path) if self.remote is None else self.remote.shown
        if self.remote is not None and not self.file("run.json").exists():
            raise FadevizError(f"no run at {self.address}: it has no run.json. Give the address of a run's folder")

    def __reduce__(self) -> tuple[Any, ...]:
        # Opened again where it is unpickled: a remote run's temporary folder goes with the run.
        return type(self), (self.path if self.remote is None else self.remote.address,)

    def file(self, name: str) -> Path:
        """The path of one of the files on this machine; of a remote run it is fetched.

        Raises:
            FadevizError: if a remote file cannot be fetched.
        """
        return self.path / name if self.remote is None else self.remote.fetch(name)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the folder's path, from the root to its name, or of a remote run's URL."""
        parts = self.path.resolve().parts if self.remote is None else self.address.split("/")
        return tuple(printable(part) for part in parts)

    def same_as(self, other: RunFolder) -> bool:
        """Whether both are the same folder."""
        if self.remote is None or other.remote is None:
            return self.remote is other.remote and self.path.resolve() == other.path.resolve()
        return self.remote.address.rstrip("/") == other.remote.address.rstrip("/")
