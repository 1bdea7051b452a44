"""Entries that other installed packages add to the tables of networks, data sets, operators and export targets.

A package registers an entry under an entry-point group, such as ``fadeviz.upsamplers``, in its own metadata. A group is
read when a name is looked up that is not in fadeviz's own table, or when all names are listed; so importing
fadeviz costs nothing, and every process of the same environment (a sweep's worker, a cluster's node) finds the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from .errors import FadevizError, unknown_name

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

NETWORKS = "fadeviz.networks"
DATASETS = "fadeviz.datasets"
UPSAMPLERS = "fadeviz.upsamplers"
EXPORTERS = "fadeviz.exporters"
"""The entry-point groups."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Table(Generic[T]):
    """A table of fadeviz together with the entries that other packages add to it.

    Attributes:
        what: the entries' name in messages, such as ``"upsampler"``.
        group: the entry-point group.
        own: fadeviz's own entries by name.
        fault: what is wrong with an object that an entry point names, in words that follow "it"; empty for a valid
            entry.
        see: the command that lists all names, for messages; or empty.
    """

    what: str
    group: str
    own: Mapping[str, T]
    fault: Callable[[object], str]
    see: str = ""

    def find(self, name: str) -> T:
        """The entry called ``name``.

        Raises:
            FadevizError: if there is no such name, if two packages offer it, or if its package cannot be imported or
                offers something else.
        """
        if name in self.own:
            return self.own[name]
        points = entry_points_of(self.group)
        offers = [point for point in points if point.name == name]
        if not offers:
            raise unknown_name(self.what, name, [*self.own, *(point.name for point in points)], self.see)
        return self._load(name, offers)

    def all(self) -> dict[str, T]:
        """Every entry by name: fadeviz's own, then those of other packages.

        Raises:
            FadevizError: under the same conditions as :meth:`find`; also if a package offers a name that fadeviz itself
                uses, or one that cannot be written in front of options.
        """
        points = entry_points_of(self.group)
        entries = dict(self.own)
        for name in dict.fromkeys(point.name for point in points):
            offers = [point for point in points if point.name == name]
            if name in self.own:
                raise FadevizError(f"{describe(offers[0])}: fadeviz has its own {self.what} {name!r}. Rename the entry")
            if not _NAME.fullmatch(name):
                raise FadevizError(
                    f"{describe(offers[0])}: a name has letters, digits, '_', '-' and '.' only. Rename the entry"
                )
            entries[name] = self._load(name, offers)
        return entries

    def _load(self, name: str, offers: list[EntryPoint]) -> T:
        if len(offers) > 1:
            packages = " and ".join(package_of(point) for point in offers)
            raise FadevizError(f"{self.what} {name!r} is offered by {packages}. Uninstall all but one")
        (point,) = offers
        try:
            entry: T = point.load()
        except Exception as error:  # whatever the package raises while it is imported
            line = (str(error).splitlines() or [""])[0]
            raise FadevizError(
                f"{describe(point)} cannot be loaded ({type(error).__name__}: {line}). Repair or uninstall the package"
            ) from error
        if fault := self.fault(entry):
            raise FadevizError(f"{describe(point)}: it {fault}")
        return entry


def entry_points_of(group: str) -> list[EntryPoint]:
    """The entry points of a group, by name; nothing is imported. Takes about 10 ms, so it is not for tight loops."""
    # Imported here, as it takes longer than everything else that `import fadeviz` does.
    from importlib.metadata import entry_points

    return sorted(entry_points(group=group), key=lambda point: (point.name, package_of(point)))


def package_of(point: EntryPoint) -> str:
    """The name and version of the distribution that an entry point belongs to."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown package"


def describe(point: EntryPoint) -> str:
    """An entry point and its distribution, to begin a message with."""
    return f"{package_of(point)}: entry point '{point.name} = {point.value}' of {point.group}"


__all__ = ["DATASETS", "EXPORTERS", "NETWORKS", "UPSAMPLERS", "Table", "describe", "entry_points_of", "package_of"]
