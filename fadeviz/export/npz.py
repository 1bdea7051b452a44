"""Export to one .npz file, for NumPy, MATLAB-like readers, or anything that reads ZIP and .npy."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .places import new_file
from .selection import ExportSelection, Part, safe_name

_COMMENT = b"fadeviz export 1"


def write_npz(selection: ExportSelection, out: Path, *, overwrite: bool = False) -> tuple[str, ...]:
    """Write a selection as an .npz: the same maps, the same bytes. ``numpy.load`` reads it without pickle.

    Keys: ``maps/LAYER/KIND`` (``maps/LAYER/KIND/call 1`` for a layer's second call), ``(steps, images, h, w)`` float32
    or ``(steps, images, channels, h, w)``; ``steps``; ``images``, their names, and ``image_numbers``;
    ``observation/images`` and ``observation/masks``, uint8, of mattes ``alphas`` and ``trimaps`` too; ``metrics/step``
    and ``metrics/NAME``, a number a line, NaN where a line has none; ``run.json``, its text. Kinds of many channels may
    hold the first images alone, ``constant`` holds one map.

    Raises:
        FadevizError: if the name does not end in .npz, or an existing file must not be replaced.
    """
    # Stored, not deflated: maps hardly shrink, and zlib's bytes differ from one version to the next.
    with (
        new_file(out, ".npz", _is_ours, overwrite=overwrite) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
    ):
        archive.comment = _COMMENT
        for part in selection.parts:
            key = f"maps/{safe_name(part.layer)}/{part.kind}" + (f"/call {part.maps.call}" if part.maps.call else "")
            _add_maps(archive, key, part)
        _add(archive, "steps", np.array(selection.steps, np.int64))
        _add(archive, "images", np.array(selection.names, np.str_))
        _add(archive, "image_numbers", np.array(selection.images, np.int64))
        for name, images in selection.observation().items():
            _add(archive, f"observation/{name}", images)
        steps, columns = selection.metrics()
        _add(archive, "metrics/step", steps)
        for name, values in columns.items():
            _add(archive, f"metrics/{safe_name(name)}", values)
        _add(archive, "run.json", np.array(json.dumps(selection.run.info.to_dict(), indent=2)))
    return selection.notes


def _member(key: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{key}.npy", (1980, 1, 1, 0, 0, 0))


def _add(archive: zipfile.ZipFile, key: str, array: NDArray[Any]) -> None:
    with archive.open(_member(key), "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def _add_maps(archive: zipfile.ZipFile, key: str, part: Part) -> None:
    with archive.open(_member(key), "w", force_zip64=True) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": part.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for value in part.each_step():
            file.write(value.astype("<f4", copy=False).tobytes())


def _is_ours(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment == _COMMENT
    except (zipfile.BadZipFile, OSError):
        return False
