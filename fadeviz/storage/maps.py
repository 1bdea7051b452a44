"""Maps of one layer over training: an array that is read from the snapshots where it is indexed."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError, MissingExtra
from .snapshot_files import SnapshotFiles, some_steps
from .snapshots import CHANNEL_KINDS, KINDS


class Maps:
    """Maps of one layer and kind over training: an array that is read from the files where it is indexed.

    ``maps[3:5, 0]`` reads two snapshots, and of each one image; ``np.asarray(maps)`` reads all. The index takes
    integers and slices, an ellipsis, and on the first axis a list; the result is a float32 array.

    Attributes:
        files: the run's snapshots.
        layer: dotted module name.
        kind: a name in ``KINDS``.
        call: the call of the layer, from 0.
        steps: the optimiser steps along the first axis.
        images: the names of the observed images along the axis ``image``, or of the one that was chosen.
        dims: a name for each axis: ``step``, ``image``, ``channel``, ``y``, ``x``, less what was chosen.
        shape: the length of each axis. y and x are counted in the layer's own cells.

    Example::

        maps = run.maps("decoder.3.upsample")
        last = maps[-1]                             # (N, h, w) float32, of the last step
        curve = [m.std() for m in maps[:, 0]]       # one image, a number a step
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        files: SnapshotFiles,
        run: str,
        layer: str,
        kind: str,
        steps: tuple[int, ...],
        image: int | None,
        channel: int | None,
        call: int,
    ) -> None:
        """See :meth:`StoredRun.maps`, which makes them. ``run`` is the name that their repr shows."""
        self.files, self._run = files, run
        self.layer, self.kind, self.call, self.steps = layer, kind, call, steps
        self._checked: set[int] = set()
        axes = ("image", "channel", "y", "x") if kind in CHANNEL_KINDS else ("image", "y", "x")
        with files.open_map(steps[0], layer, kind, call) as part:
            self._stored = tuple(part.get_shape())
        if len(self._stored) != len(axes) or 0 in self._stored:
            raise FadevizError(
                f"{files.address}, step {steps[0]}: {kind!r} of {layer!r} is {_times(self._stored)}, but {len(axes)} "
                f"axes that are not empty are needed ({', '.join(axes)}). Record the run again with overwrite=True"
            )
        if image is not None:
            _check_index("image", image, self._stored[0], f"{kind!r} of {files.address}")
        if channel is not None:
            _check_index("channel", channel, self._stored[1], f"layer {layer!r}")
        self._chosen = {"image": image, "channel": channel}
        self._axes = axes
        kept = [(axis, size) for axis, size in zip(axes, self._stored, strict=True) if self._chosen.get(axis) is None]
        self.dims = ("step", *(axis for axis, _ in kept))
        self.shape = (len(steps), *(size for _, size in kept))

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The memory that all of them take, in bytes."""
        return self.size * self.dtype.itemsize

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the observed images along the axis ``image``, or of the one that was chosen."""
        if self.kind == "constant":
            return ("constant input",)
        numbers = range(self._stored[0]) if self._chosen["image"] is None else [self._chosen["image"]]
        return tuple(map(self.files.info.observation.name_of, numbers))

    def __repr__(self) -> str:
        size = f"{self.nbytes / 1e6:.1f} MB" if self.nbytes >= 1e5 else f"{self.nbytes} bytes"
        axes = ", ".join(f"{name} {length}" for name, length in zip(self.dims, self.shape, strict=True))
        chosen = "".join(f", {axis} {number}" for axis, number in self._chosen.items() if number is not None)
        return (
            f"Maps({self._run}, {self.layer}, {self.kind}{chosen}: {axes}; {self.dtype}, {size})\n"
            f"  steps {some_steps(self.steps)}\n  read where it is indexed; np.asarray(...) reads all"
        )

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[place] for place in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("maps lie in files: an array of them is always a copy")
        whole: NDArray[np.float32] = self[...]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        """Read a part: integers and slices, an ellipsis, and a list or an array of places on the first axis.

        Raises:
            IndexError: if an index is out of range, or of another kind.
            FadevizError: if a file cannot be read, or its maps have another shape than those of the first step.
        """
        first, *within = _expanded(index, self.dims, self.shape)
        if isinstance(first, int):
            return self._read(self.steps[first], within)
        shown = [self.steps[place] for place in first]
        for step in shown:  # all of them before any room is taken: none is larger than its file
            self._check_room(step)
        each = np.broadcast_to(np.float32(0), self.shape[1:])[tuple(within)].shape
        values = np.empty((len(shown), *each), np.float32)
        for place, step in enumerate(shown):
            values[place] = self._read(step, within)
        return values

    def _check_room(self, step: int) -> None:
        """Raise if a file is too small for such maps; its content is checked when it is read."""
        try:
            if step in self._checked or self.files.path(step).stat().st_size >= 4 * math.prod(self._stored):
                return
        except OSError:
            pass  # opening the file reports what is wrong
        with self.files.open_map(step, self.layer, self.kind, self.call) as part:
            self._check(step, part)

    def _check(self, step: int, part: Any) -> None:
        if step in self._checked:
            return
        stored = tuple(part.get_shape())
        if stored != self._stored:
            raise FadevizError(
                f"{self.files.address}/snapshots/step_{step:06d}.safetensors: {self.kind!r} of {self.layer!r} is "
                f"{_times(stored)}, but {_times(self._stored)} at step {self.steps[0]}. Choose other steps, "
                "or record the run again"
            )
        self._checked.add(step)

    def _read(self, step: int, within: Sequence[int | slice]) -> NDArray[np.float32]:
        """The part of one step: along the leading axes only the requested range is read."""
        asked = iter(within)
        fixed = [self._chosen.get(axis) for axis in self._axes]
        index = [next(asked) if number is None else number for number in fixed]
        bounds = [_bounds(item, size) for item, size in zip(index[:-2], self._stored[:-2], strict=True)]
        with self.files.open_map(step, self.layer, self.kind, self.call) as part:
            self._check(step, part)
            read: NDArray[np.float32] = part[tuple(outer for outer, _ in bounds)]
        value: NDArray[np.float32] = read[(*(inner for _, inner in bounds), *index[-2:])]
        return value

    def to_xarray(self) -> Any:
        """All of the maps as an ``xarray.DataArray`` with coordinates: step, image, channel, y and x (cell numbers).

        Raises:
            MissingExtra: if xarray is not installed.
        """
        xarray = _xarray()
        names = self.images if self._chosen["image"] is None else self.images[0]
        coordinates: dict[str, Any] = {"step": list(self.steps), "image": names}
        for axis, length in zip(self._axes[1:], self._stored[1:], strict=True):
            number = self._chosen.get(axis)
            coordinates[axis] = np.arange(length) if number is None else number
        return xarray.DataArray(
            np.asarray(self),
            dims=self.dims,
            coords={k: (k, list(v) if k == "image" else v) if k in self.dims else v for k, v in coordinates.items()},
            name=self.kind,
            attrs={
                "long_name": self.kind.replace("_", " "),
                "meaning": KINDS[self.kind],
                "layer": self.layer,
                "kind": self.kind,
                "call": self.call,
                "run": self.files.info.run_id,
            },
        )


def _expanded(index: Any, dims: Sequence[str], shape: Sequence[int]) -> list[Any]:
    """An index for each axis: a list of places or an integer on the first one, integers and slices on the others."""
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = [place for place, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if len(parts) - len(dots) > len(shape):
        raise IndexError(f"too many indices: maps have {len(shape)} axes ({', '.join(dims)})")
    at = dots[0] if dots else len(parts)
    parts[at : at + len(dots)] = [slice(None)] * (len(shape) - len(parts) + len(dots))
    first, *others = parts
    if isinstance(first, slice):
        first = list(range(shape[0])[first])
    elif isinstance(first, (list, np.ndarray)) and np.ndim(first) == 1:
        places = np.asarray(first) if len(first) else np.zeros(0, np.intp)
        if places.dtype == bool and len(places) == shape[0]:
            places = np.flatnonzero(places)
        first = [_place(place, dims[0], shape[0]) for place in places]
    else:
        first = _place(first, dims[0], shape[0])
    rest = zip(others, dims[1:], shape[1:], strict=True)
    return [first, *(part if isinstance(part, slice) else _place(part, name, size) for part, name, size in rest)]


def _place(index: Any, axis: str, size: int) -> int:
    try:
        if isinstance(index, (bool, np.bool_)):
            raise TypeError
        number = operator.index(index)
    except TypeError:
        what = "integers, slices and a list" if axis == "step" else "integers and slices"
        raise IndexError(
            f"axis {axis!r} of maps takes {what}, not {type(index).__name__}: index np.asarray(maps)"
        ) from None
    if not -size <= number < size:
        raise IndexError(f"index {number} is out of bounds for axis {axis!r} with size {size}")
    return number % size


def _bounds(index: int | slice, size: int) -> tuple[slice, int | slice]:
    """The contiguous range of an axis that contains the requested places, and their index within that range."""
    if isinstance(index, int):
        return slice(index, index + 1), 0
    places = range(size)[index]
    if not places:
        return slice(0, 1), slice(0, 0)
    low, high = min(places[0], places[-1]), max(places[0], places[-1])
    stop = places.stop - low
    return slice(low, high + 1), slice(places.start - low, stop if stop >= 0 else None, places.step)


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def as_dataset(maps: Sequence[Maps], kinds: Sequence[str]) -> Any:
    """Maps of one layer as an ``xarray.Dataset``: those that have the shape of the first.

    Args:
        maps: one for each kind.
        kinds: all kinds of the layer; those without maps of that shape are named in the attribute ``left_out``.

    Raises:
        MissingExtra: if xarray is not installed.
    """
    xarray = _xarray()
    first = maps[0]
    variables = {part.kind: part.to_xarray() for part in maps if part.shape == first.shape}
    left_out = ", ".join(kind for kind in kinds if kind not in variables)
    attributes = {"run": first.files.info.run_id, "layer": first.layer, "left_out": left_out}
    return xarray.Dataset(variables, attrs=attributes)


def _check_index(axis: str, index: int, count: int, where: str) -> None:
    if not 0 <= index < count:
        raise FadevizError(f"no {axis} {index} in {where}: there are {count}, from 0 to {count - 1}")


def _xarray() -> Any:
    try:
        import xarray
    except ImportError as error:
        raise MissingExtra("xarray", "this needs xarray, which is not installed") from error
    return xarray
