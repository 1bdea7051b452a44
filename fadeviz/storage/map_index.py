"""Which maps a run has: its layers, their kinds, and their calls in one forward pass."""

from __future__ import annotations

import itertools
import re
from contextlib import suppress
from functools import cached_property

from ..errors import FadevizError, unknown_name
from .snapshot_files import SnapshotFiles
from .snapshots import CHANNEL_KINDS, KINDS

_PREFIXES = re.compile(r"(?:(?:model|module|_orig_mod)(?:\.(?=.)|(?=:)))+")
"""What trainers put before a layer's name: Lightning's attribute, DistributedDataParallel and torch.compile."""


def bare_name(layer: str) -> str:
    """A layer's name without the prefixes that trainers add: ``decoder.up1`` of ``model._orig_mod.decoder.up1``.

    Of a function that the network itself calls: ``:interpolate`` of ``model:interpolate``.
    """
    found = _PREFIXES.match(layer)
    return layer[found.end() :] if found else layer


class MapIndex:
    """The maps in the snapshots of one run, looked up when they are first asked for."""

    def __init__(self, files: SnapshotFiles) -> None:
        """Nothing is read before it is asked for."""
        self._files = files

    @cached_property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Each recorded layer with its recorded kinds, in the network's order.

        Raises:
            FadevizError: if there is no whole snapshot.
        """
        if not self._files.steps and self._files.folder.remote is not None:
            raise FadevizError(
                f"no snapshots are listed at {self._files.address}/snapshots. If the server lists no folders, "
                "open a copy of the run on this machine"
            )
        if not self._files.steps:
            raise FadevizError(
                f"{self._files.address} has no whole snapshot. Record it again: fadeviz record ... --overwrite"
            )
        keys = self._files.keys(self._files.steps[0])
        order = list(self._files.info.layers)
        names = sorted({key[0] for key in keys}, key=lambda n: (order.index(n) if n in order else len(order), n))
        return {name: tuple(k for k in KINDS if any(key[0] == name and key[2] == k for key in keys)) for name in names}

    def default_layer(self, kind: str) -> str:
        """The layer that figures show: the network's intermediate one, else the last but one that has ``kind``.

        Layers with one map per image come first: of others, such as a position embedding, none belongs to an image.

        Raises:
            FadevizError: if no layer has it.
        """
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
        names = [name for name, kinds in self.layers.items() if kind in kinds]
        if not names:
            recorded = [one for one in KINDS if any(one in kinds for kinds in self.layers.values())]
            raise FadevizError(
                f"{self._files.address} has no {kind!r} maps. Recorded: {', '.join(recorded)}. "
                f"Record them: fadeviz record --kinds {kind} ..."
            )
        chosen = self._files.info.figure_layer
        if chosen in names:
            return chosen
        images = len(self._files.info.observation.names)
        one_each = [name for name in names if kind in CHANNEL_KINDS or self._count(name, kind) == images]
        names = one_each or names
        return names[max(0, len(names) - 2)]

    def _count(self, layer: str, kind: str) -> int:
        """The number of maps of a layer's first call; 0 if they cannot be read."""
        with suppress(FadevizError), self._files.open_map(self._files.steps[0], layer, kind, 0) as part:
            return int(part.get_shape()[0])
        return 0

    def matching(self, layer: str) -> list[str]:
        """The recorded layers that a name stands for: that of the very name, else those that differ in prefixes only.

        Raises:
            FadevizError: if there is no whole snapshot.
        """
        if layer in self.layers:
            return [layer]
        return [name for name in self.layers if bare_name(name) == bare_name(layer)]

    def find(self, layer: str) -> str:
        """The recorded name of a layer; prefixes that trainers add may be missing or different.

        Raises:
            FadevizError: if there is no such layer, or several that differ only in their prefixes.
        """
        names = self.matching(layer)
        if not names:
            raise unknown_name(
                f"layer in {self._files.address}", layer, self.layers, f"fadeviz info {self._files.address}"
            )
        if len(names) > 1:
            raise FadevizError(
                f"{self._files.address} has several layers {layer!r}: {', '.join(map(repr, names))}. "
                "Give one of these names"
            )
        return names[0]

    def calls(self, layer: str, kind: str = "feature") -> dict[int, tuple[int, ...]]:
        """The recorded calls of a layer in one forward pass, each with the height and width of its maps.

        A head shared by several pyramid levels has one call per level. Read from the first and the last snapshot, since
        a layer may start to run more often during training.

        Raises:
            FadevizError: if there is no such layer or kind.
        """
        layer = self.check(layer, kind)
        sizes: dict[int, tuple[int, ...]] = {}
        for step in (self._files.steps[-1], self._files.steps[0]):
            with suppress(FadevizError):  # the call after the last one
                for call in itertools.count():
                    with self._files.open_map(step, layer, kind, call) as part:
                        sizes.setdefault(call, tuple(part.get_shape())[-2:])
        return dict(sorted(sizes.items()))

    def check(self, layer: str, kind: str, call: int = 0) -> str:
        """Raise unless maps of this layer, kind and call were recorded; the message lists the nearest names.

        Returns:
            The layer's name as it is recorded; see :meth:`find`.

        Raises:
            FadevizError: if they were not.
        """
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
        layer = self.find(layer)
        if kind not in self.layers[layer]:
            raise FadevizError(
                f"{self._files.address} has no {kind!r} maps of {layer!r}. There are: {', '.join(self.layers[layer])}. "
                f"Record them: fadeviz record --kinds {kind} ..."
            )
        if call and call not in (calls := self.calls(layer, kind)):
            raise FadevizError(
                f"{self._files.address} has no call {call} of {layer!r} ({kind}). "
                f"Recorded: {', '.join(map(str, calls))}. Choose one with call=..."
            )
        return layer
