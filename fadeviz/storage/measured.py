"""Results of measurements in files beside the snapshots, so that nothing is measured twice.

Each file holds the arrays of one result, what they depend on, and a checksum of both. It is used only if the
dependencies are equal to those of the request; any other file, damaged or out of date, counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as deserialize
from safetensors.numpy import save as serialize

from ..errors import FadevizError, printable
from .files import TEXT_LIMIT, leads_outside, left_over, read_regular, unreadable, write_whole
from .info import json_value
from .remote import is_address
from .snapshots import MEASURED, MEASURED_FILE
from .stored_run import StoredRun

Arrays = dict[str, NDArray[Any]]
"""The values of one result, by their names."""

SWITCH = "FADEVIZ_MEASURED"
"""The environment variable that names another folder for measured results, or, if it is 0, switches them off."""

CACHE_LIMIT = 200 * 10**6
"""Bytes that the user's cache may hold; beyond them the oldest files are removed."""

FORMAT = 1
"""Version of these files: of another version they are measured again."""

_NUMBERS = {
    "bool",
    "float16",
    "float32",
    "float64",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}
_DAMAGED = (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError, MemoryError)
_writing = threading.Lock()  # the temporary file of an atomic replacement is one for each process


def stored_measurement(
    run: StoredRun,
    name: str,
    depends_on: Mapping[str, object],
    measure: Callable[[], Mapping[str, Any]],
    *,
    steps: Sequence[int] | None = None,
) -> Arrays:
    """The arrays that ``measure`` returns: from a file, if they were stored under the same dependencies, else measured.

    A new result is stored in the run's folder, or in the user's cache if that is impossible: for a remote run, a folder
    of another user or without write permission, a full disk. If the cache cannot be written either, the result is
    returned all the same. Nothing is stored if a snapshot changes during the measurement.

    Args:
        run: the run; it may still be recorded.
        name: what is measured, of which layer, call and kind: one file for each name, which the next result replaces.
        depends_on: what the result depends on apart from the snapshots, as JSON values: the version of the method, its
            settings, the steps, a digest of the masks. A change of any of them means that it is measured again.
        measure: called without arguments, if there is no such file. Returns arrays of numbers or truth values by name.
        steps: the steps whose snapshots are measured; None for all. A change of their files means that the result is
            measured again.

    Returns:
        The arrays, in the order in which ``measure`` returned them, with the same dtypes, shapes and bits.

    Raises:
        TypeError: if ``depends_on`` holds what JSON cannot, or ``measure`` returns other values than numbers.
        FadevizError: if there is no snapshot of a step, or ``measure`` raises it.

    Example::

        curve = stored_measurement(
            run, f"spectrum {layer}/0/feature", {"method": 1, "steps": run.steps}, lambda: {"slope": slopes(run)}
        )["slope"]
    """
    steps = tuple(run.steps if steps is None else steps)
    files = _files(run, name)
    versions = run.snapshot_versions(steps) if files else None
    if versions is None:
        return _arrays(measure())
    key = {
        "format": FORMAT,
        "run_id": run.run_id,
        "name": name,
        "depends_on": json.loads(json.dumps(depends_on, default=json_value)),
        "snapshots": hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest(),
    }
    for file in files:
        with suppress(*_DAMAGED):
            header, arrays = _decode(read_regular(file))
            if all(_text(header[part]) == _text(value) for part, value in key.items()):
                return arrays
    arrays = _arrays(measure())
    data = _encode(key, arrays)
    if len(data) <= TEXT_LIMIT and run.snapshots_are(steps, versions):
        _store(run, files, data)
    return arrays


def measured_faults(run: StoredRun) -> Iterator[tuple[str, str]]:
    """The damaged files in the run's folder of measured results: path within the run's folder, and what is wrong.

    Those that are out of date are no faults.
    """
    folder = run.path / MEASURED
    try:
        names = [] if leads_outside(folder, run.path) else sorted(os.listdir(folder))
    except OSError:  # there is none
        return
    for name in filter(MEASURED_FILE.fullmatch, names):
        what = _fault(folder / name, run.run_id)
        if what:
            yield f"{MEASURED}/{name}", what


def _fault(file: Path, run_id: str) -> str:
    try:
        header, _ = _decode(read_regular(file))
        if header["run_id"] != run_id:
            return f"belongs to another run than {run_id}"
        return "" if _file_name(header["name"]) == file.name else f"holds {printable(header['name'])}"
    except _DAMAGED as error:
        return unreadable(error) or f"damaged: {error}"


def _file_name(name: str, place: str = "") -> str:
    """A readable file name that no other result has; in lower case, as some file systems ignore the case."""
    digest = hashlib.sha256(f"{place}\n{name}".encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{re.sub('[^a-z0-9]+', '_', name.lower())[:80].strip('_')}_{digest}.safetensors"


def _files(run: StoredRun, name: str) -> list[Path]:
    """Where the result may be, the preferred place first."""
    switch = os.environ.get(SWITCH, "")
    if switch == "0":
        return []
    local = not is_address(run.address)
    # Runs that were recorded alike have one id, so the cache tells them apart by their places.
    place = f"{run.path.resolve() if local else run.address}\n{run.run_id}"
    folder = Path(switch).absolute() if switch else _cache_folder()
    files = [] if folder is None else [folder / _file_name(name, place)]
    if local and not switch and not leads_outside(run.path / MEASURED, run.path):
        files.insert(0, run.path / MEASURED / _file_name(name))
    return files


def _cache_folder() -> Path | None:
    try:
        import platformdirs
    except ImportError:  # run from a checkout on a machine with torch and no network: results stay with the run
        return None
    folder = platformdirs.user_cache_path("fadeviz", appauthor=False) / "measured"
    return folder if folder.is_absolute() else None  # it is not where the user has no home


def _store(run: StoredRun, files: Sequence[Path], data: bytes) -> None:
    """Write the result to the first place that takes it; to none, if none does."""
    for file in files:
        within = file.parent == run.path / MEASURED
        if within and not _is_own(run.path):
            continue
        # OSError is one of a folder that cannot be looked at: to store a result is a convenience.
        with suppress(FadevizError, OSError), _writing:
            if not within:
                file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(file, data, named=False)
            if not within:
                _remove_oldest(file.parent)
            return


def _is_own(run: Path) -> bool:
    """Whether the run is still there and the user's own: another user could not remove what is written into it."""
    try:
        return (run / "run.json").is_file() and (not hasattr(os, "geteuid") or run.stat().st_uid == os.geteuid())
    except OSError:
        return False


def _remove_oldest(folder: Path) -> None:
    """Keep to ``CACHE_LIMIT``; leftovers of killed processes go too."""
    ours = []
    for file in folder.iterdir():
        if left_over(file):
            file.unlink(missing_ok=True)
        elif MEASURED_FILE.fullmatch(file.name) and not file.is_symlink():
            with suppress(FileNotFoundError):  # another process does the same
                status = file.stat()
                ours.append((status.st_mtime_ns, status.st_size, file))
    total = sum(size for _, size, _ in ours)
    for _, size, file in sorted(ours):
        if total <= CACHE_LIMIT:
            break
        file.unlink(missing_ok=True)
        total -= size


def _arrays(values: Mapping[str, Any]) -> Arrays:
    """The values as arrays that can be stored: in the machine's byte order, with the bytes of one row after another."""
    arrays = {}
    for name, value in values.items():
        array = np.asarray(value, order="C")
        if array.dtype.name not in _NUMBERS:
            raise TypeError(f"{name!r} is {array.dtype}, but only numbers of up to 64 bits and truth values are stored")
        arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    return arrays


def _encode(key: Mapping[str, object], arrays: Arrays) -> bytes:
    header = {**key, "arrays": list(arrays)}
    header["sha256"] = _digest(header, arrays)
    return serialize(arrays, metadata={"fadeviz": json.dumps(header)})


def _decode(data: bytes) -> tuple[dict[str, Any], Arrays]:
    """The header and the arrays of a file.

    Raises:
        ValueError: if they are not what was written; further errors of ``_DAMAGED`` depend on where it is damaged.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["fadeviz"])
    stored = deserialize(data)
    arrays = {name: np.array(stored.pop(name)) for name in header["arrays"]}  # copies, which may be written to
    checksum = header.pop("sha256")
    if stored or checksum != _digest(header, arrays):
        raise ValueError("not what was written (checksum)")
    return header, arrays


def _digest(header: Mapping[str, object], arrays: Arrays) -> str:
    """A checksum of all that a file says: of the header, and of each array's name, dtype, shape and bytes."""
    digest = hashlib.sha256(_text(header).encode())
    for name, array in arrays.items():
        digest.update(f"\n{name}\n{array.dtype.name}\n{array.shape}\n".encode("utf-8", "surrogatepass"))
        digest.update(array.tobytes())
    return digest.hexdigest()


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


__all__ = ["MEASURED", "SWITCH", "measured_faults", "stored_measurement"]
