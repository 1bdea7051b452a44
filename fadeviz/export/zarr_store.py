"""Export to a Zarr store (format 3): a group a layer, an array a kind, a chunk a step; xarray opens it."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage.snapshots import KINDS
from .places import needs, new_folder
from .selection import ExportSelection, Part, safe_name

_OURS = re.compile(r"([^/]+/)*(zarr\.json|c(/\d+)*)")
_MARK = re.compile(r"fadeviz/zarr\.json")


def write_zarr(selection: ExportSelection, out: Path, *, overwrite: bool = False) -> tuple[str, ...]:
    """Write a selection as a Zarr store: the same maps, the same bytes.

    ``layers/LAYER/KIND`` is ``(step, image, y, x)`` float32, or ``(step, image, channel, y, x)``, in chunks of one
    step, beside its coordinates: steps, names of images, numbers of channels and cells. Where kinds of a layer differ
    in an axis, the later one's is called after it, e.g. ``image_channels``. ``observation`` holds ``images`` and
    ``masks`` (of mattes ``alphas`` and ``trimaps`` too), ``metrics`` a number a line, and the group ``fadeviz`` has
    run.json in its attributes.

    Example::

        maps = xarray.open_zarr("fade.zarr", group="layers/decoder.3.upsample")["feature"]
        maps.sel(step=320, image="horse_0")

    Raises:
        FadevizError: if Zarr is not installed, or an existing folder must not be replaced.
    """
    with needs("zarr"):
        import zarr
    with new_folder(out, _OURS, _MARK, overwrite=overwrite) as partial, _as_is():
        run = selection.run
        about = {"title": run.title, "run_id": run.run_id, "network": run.info.network}
        root = zarr.create_group(partial, zarr_format=3, attributes=about)
        root.create_group("fadeviz", attributes={"export": 1, "run": _json(selection.run.info.to_dict())})
        layers = root.create_group("layers")
        for layer in dict.fromkeys(part.layer for part in selection.parts):
            group = layers.create_group(safe_name(layer), attributes={"layer": layer})
            _write_layer(group, [part for part in selection.parts if part.layer == layer])
        group = root.create_group("observation")
        for name, images in selection.observation().items():
            _write(group, name, ("image", "row", "column", "rgb")[: images.ndim], images)
        _write(group, "image", ("image",), _text(selection.names))
        group = root.create_group("metrics")
        steps, columns = selection.metrics()
        for name, values in {"step": steps, **columns}.items():
            _write(group, safe_name(name), ("line",), values)
        # Each group's own, as readers open one group: without, they list folders, and xarray warns.
        opened = [f"layers/{name}" for name, _ in layers.groups()]
        for path in [*opened, "layers", "observation", "metrics", "fadeviz", ""]:
            zarr.consolidate_metadata(partial, path=path or None)
    return selection.notes


@contextmanager
def _as_is() -> Iterator[None]:
    # Zarr 3 warns that other readers may not support consolidated metadata: they do without.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        yield


def _json(value: Any) -> Any:
    # Python reads and writes NaN in JSON, where others stop: null.
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def _write_layer(group: Any, parts: Sequence[Part]) -> None:
    meanings: dict[str, tuple[object, ...]] = {}
    coordinates: dict[str, NDArray[Any]] = {"step": np.array(parts[0].maps.steps, np.int64)}
    for part in parts:
        array_name = part.kind if part.maps.call == 0 else f"{part.kind}_call_{part.maps.call}"
        dims = ["step"]
        for axis, length in zip(part.maps.dims[1:], part.shape[1:], strict=True):
            values = _text(part.names) if axis == "image" else np.arange(length)
            # Within a group one name is one axis: as long, and with the same meaning.
            meaning = (axis, part.kind if axis == "channel" else "", *values)
            same = [name for name, other in meanings.items() if other == meaning]
            dims.append(same[0] if same else axis if axis not in meanings else f"{axis}_{array_name}")
            meanings[dims[-1]], coordinates[dims[-1]] = meaning, values
        array = group.create_array(
            array_name,
            shape=part.shape,
            chunks=(1, *part.shape[1:]),
            dtype="float32",
            dimension_names=dims,
            attributes={"long_name": part.kind.replace("_", " "), "meaning": KINDS[part.kind]},
            config={"write_empty_chunks": True},  # a chunk that is missing was lost: it does not stand for zeros
        )
        for place, value in enumerate(part.each_step()):
            array[place] = value
    for name, values in coordinates.items():
        _write(group, name, (name,), values)


def _text(names: Sequence[str]) -> NDArray[Any]:
    return np.array(list(names), dtype=object)


def _write(group: Any, name: str, axes: tuple[str, ...], values: NDArray[Any]) -> None:
    if 0 in values.shape:  # a run without metrics: Zarr has no chunks of nothing
        return
    dtype = str if values.dtype == object else values.dtype
    array = group.create_array(name, shape=values.shape, chunks=values.shape, dtype=dtype, dimension_names=axes)
    array[...] = values
