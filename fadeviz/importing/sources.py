"""Maps in arrays, files, numbered files and animations, one step after another."""

from __future__ import annotations

import operator
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from safetensors import SafetensorError, safe_open

from ..data.images import MAX_PIXELS, key_of, shorten
from ..errors import FadevizError
from ..storage.files import NoRegularFile, check_regular

Array = NDArray[Any]

TORCH = (".pt", ".pth")
PICTURES = (".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".apng")
SUFFIXES = (".npy", ".npz", ".safetensors", *TORCH, *PICTURES)
"""What maps are read from; JPEG is not among them, as it does not keep values."""

_STRETCHED = "the values are grey levels, in which every frame may have been stretched by itself"
_COLOURED = "the frames are coloured: their luminance stands for the values, whose order it may not keep"
MERGED = "the frames have different durations: equal ones may have become one, so that counted steps would be wrong"

# A number with a point is a loss or a version, no step; 80k and 8e4 are 80,000.
_WHOLE = r"(?P<whole>\d+)(?:(?P<thousands>k(?![a-z]))|e(?P<zeros>\d)(?![\da-z]))?"
_NUMBER = re.compile(rf"\d+(?:\.\d+)+|{_WHOLE}", re.IGNORECASE)
_AFTER_STEP = re.compile(rf"(?:step|iter(?:ation)?)s?[ _=-]*{_WHOLE}(?!\.?\d)", re.IGNORECASE)


@dataclass
class Source:
    """The maps of S steps.

    Attributes:
        names: what each step's maps are called in messages: a file, or a part of one.
        read: called with an index, gives the array of that step: ``(h, w)``, ``(N, h, w)`` or ``(N, C, h, w)``.
        steps: the steps, where the names tell them; None if they are to be counted.
        notes: remarks, a sentence each.
    """

    names: list[str]
    read: Callable[[int], Array]
    steps: list[int] | None = None
    notes: list[str] = field(default_factory=list)


def open_source(maps: object, key: str | None = None, *, numbered: bool = True) -> Source:
    """The maps in an array, a list or dict of arrays, a file, a folder of files, or the files of a pattern.

    Args:
        maps: as for :func:`~fadeviz.importing.import_maps`.
        key: which array, in files with several.
        numbered: whether file names tell the steps; if not, they only tell the order.

    Raises:
        FadevizError: if there is nothing of that kind there, or its parts cannot be told apart.
    """
    if isinstance(maps, str | Path):
        return _open_path(Path(maps), key, numbered)
    if isinstance(maps, Mapping):
        steps = [_step_of(step) for step in maps]
        values = list(maps.values())
        if values and all(isinstance(value, str | Path) for value in values):
            return replace(
                _open_files([Path(value) for value in values], "the dict", key, False, sort=False), steps=steps
            )
        return Source([f"the maps of step {step}" for step in steps], lambda i: as_array(values[i], "maps"), steps)
    if isinstance(maps, list | tuple) and maps and all(isinstance(one, str | Path) for one in maps):
        return _open_files([Path(one) for one in maps], "the list", key, numbered, sort=False)
    if isinstance(maps, list | tuple):
        return Source([f"maps[{i}]" for i in range(len(maps))], lambda i: as_array(maps[i], f"maps[{i}]"))
    return _stack(as_array(maps, "maps"), "maps")


def as_array(value: object, what: str) -> Array:
    """An array of numbers, also from a tensor of torch.

    Raises:
        FadevizError: if it is none.
    """
    tensor: Any = value
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise FadevizError(f"{what} is an array with masked values. Replace them: array.filled(0)")
    try:
        if hasattr(tensor, "detach"):  # without an import of torch
            tensor = tensor.detach().cpu()
            tensor = tensor.float() if "bfloat16" in str(tensor.dtype) else tensor
        array = np.asarray(tensor)
    except (ValueError, TypeError, RuntimeError) as error:
        raise FadevizError(f"{what} cannot be converted to an array: {error}") from error
    if (array.dtype != bool and not np.issubdtype(array.dtype, np.number)) or np.iscomplexobj(array):
        raise FadevizError(f"{what} is an array of {array.dtype}: real numbers are needed")
    return array


def _stack(array: Array, what: str) -> Source:
    """The steps of one array, along its first axis."""
    if not 3 <= array.ndim <= 5:
        raise FadevizError(
            f"{what} has the shape {array.shape}: (steps, H, W), (steps, images, H, W) or (steps, images, channels, "
            "H, W) is needed"
        )
    return Source([f"{what}[{i}]" for i in range(len(array))], lambda i: array[i])


def _open_path(path: Path, key: str | None, numbered: bool) -> Source:
    if any(letter in path.name for letter in "*?[") and not path.exists():
        return _open_files(sorted(path.parent.glob(path.name)), str(path), key, numbered)
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and not one.name.startswith("."))
        return _open_files(files, str(path), key, numbered)
    if not os.path.lexists(path):
        raise FadevizError(f"there is no {path}. Give a file or a folder of maps")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FadevizError(f"{path} is no file of maps: {', '.join(SUFFIXES)} or a folder of them is needed")
    _check_file(path)
    if suffix in PICTURES:
        return _open_animation(path)
    if suffix == ".npy":
        return _stack(_load_npy(path), str(path))
    return _open_parts(path, key)


def _open_files(
    files: Sequence[Path], where: str, key: str | None, numbered: bool, *, sort: bool = True
) -> Source:  # fmt: skip
    """A file for each step: in the order of the numbers in their names, else in natural order, or as they are given."""
    if not files:
        raise FadevizError(f"{where} has no maps: files of {', '.join(SUFFIXES)} are needed")
    suffixes = sorted({file.suffix.lower() for file in files})
    if len(suffixes) > 1:
        raise FadevizError(
            f"{where} has files of several kinds ({', '.join(suffixes)}). Name one kind: {where}/*{suffixes[0]}"
        )
    for file in files:
        _check_file(file)
    if numbered:
        steps, files = steps_of_names(files, where)
    else:
        steps, files = None, sorted(files, key=natural_order) if sort else files
    notes: list[str] = []
    return Source([str(file) for file in files], lambda i: _load_file(files[i], key, notes), steps, notes)


def natural_order(file: Path) -> list[tuple[int, str]]:
    """A sort key by which map9 comes before map10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key_of(file.stem))]


def steps_of_names(files: Sequence[Path], where: str) -> tuple[list[int] | None, list[Path]]:
    """The number in the file names by which they differ, and the files in its order; None if no name has a number.

    Raises:
        FadevizError: if some names have no number, or two have the same.
    """
    names = [key_of(file.stem) for file in files]
    numbers = [_numbers_in(name) for name in names]
    if not any(_NUMBER.search(name) for name in names):
        return None, list(files)
    without = [file.name for file, found in zip(files, numbers, strict=True) if not found]
    if without:
        raise FadevizError(
            f"{where}: {len(without)} names have no step ({shorten(without)}). Rename them, or give steps=..."
        )
    steps = _steps_in(names)
    if steps is None:
        unlike = [file for file, found in zip(files, numbers, strict=True) if len(found) != len(numbers[0])]
        if unlike:
            raise FadevizError(
                f"{where}: which number is the step cannot be told, as the names are not alike ({files[0].name}, "
                f"{unlike[0].name}). Rename them, or give steps=..."
            )
        last = [found[-1] for found in numbers]
        twice = next(number for number in last if last.count(number) > 1)
        same = [file.name for file, number in zip(files, last, strict=True) if number == twice]
        raise FadevizError(
            f"{where}: {len(same)} files have step {twice} ({shorten(same)}). Rename them, or give steps=..."
        )
    order = sorted(range(len(files)), key=steps.__getitem__)
    return [steps[i] for i in order], [files[i] for i in order]


def _numbers_in(name: str) -> list[int]:
    """The whole numbers in a name."""
    return [_value_of(match) for match in _NUMBER.finditer(name) if match["whole"]]


def _value_of(number: re.Match[str]) -> int:
    return int(number["whole"]) * 10 ** (3 if number["thousands"] else int(number["zeros"] or 0))


def _steps_in(names: Sequence[str]) -> list[int] | None:
    """The steps in names that are alike; None if they are not, or if no number differs between all of them.

    A number after the word step or iter comes first. Else it is the last one that differs: of iter_000100_ema2 and
    iter_000200_ema2 the first.
    """
    named = [list(_AFTER_STEP.finditer(name)) for name in names]
    if all(len(found) == 1 for found in named):
        steps = [_value_of(found[0]) for found in named]
        if len(set(steps)) == len(steps):
            return steps
    numbers = [_numbers_in(name) for name in names]
    if len({len(found) for found in numbers}) > 1:
        return None
    columns = ([found[c] for found in numbers] for c in range(-1, -1 - len(numbers[0]), -1))
    return next((column for column in columns if len(set(column)) == len(column)), None)


def _load_file(path: Path, key: str | None, notes: list[str]) -> Array:
    """The maps of one step in a file of their own; remarks are added to the notes."""
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        with _opened_image(path) as image:
            if (count := getattr(image, "n_frames", 1)) > 1:
                raise FadevizError(
                    f"{path} has {count} frames, but each file is one step here. Give the file alone, or save one frame"
                )
            value, coloured = _grey(image, str(path))
            note = _COLOURED if coloured else _STRETCHED if _is_8_bit(image) else ""
            notes += [note] if note and note not in notes else []
            return value
    if suffix == ".npy":
        return _load_npy(path)
    parts, read = _parts_of(path)
    return read(_choose_part(path, list(parts), key))


def _open_parts(path: Path, key: str | None) -> Source:
    """A file of named arrays: the steps of one of them, or an array for each step."""
    parts, read = _parts_of(path)
    if key is None and len(parts) > 1 and all(map(_numbers_in, parts)) and (steps := _steps_in(parts)) is not None:
        names = [name for _, name in sorted(zip(steps, parts, strict=True))]
        notes = [] if all(map(_AFTER_STEP.search, names)) or all(map(str.isdigit, names)) else [
            f"each array is taken for a step, by the numbers in their names ({shorten(names)})"
        ]  # fmt: skip
        return Source([f"{path}:{name}" for name in names], lambda i: read(names[i]), sorted(steps), notes)
    name = _choose_part(path, parts, key)
    source = _stack(read(name), f"{path}:{name}" if name else str(path))
    if key is None and "steps" in parts and name != "steps":
        given = np.ravel(read("steps"))
        whole = np.issubdtype(given.dtype, np.floating) and bool((given == np.trunc(given)).all())
        source.steps = [_step_of(int(step) if whole else step) for step in given]
    return source


def _choose_part(path: Path, parts: Sequence[str], key: str | None) -> str:
    named = [name for name in parts if name != "steps"]
    if key is not None:
        if key not in parts:
            raise FadevizError(f"{path} has no {key!r}. It has: {shorten(parts) or 'nothing'}")
        return key
    if len(named) != 1:
        raise FadevizError(f"{path} has {len(named)} arrays ({shorten(named)}). Choose one with key=...")
    return named[0]


def _parts_of(path: Path) -> tuple[list[str], Callable[[str], Array]]:
    """The names of the arrays in a file, and what reads one; a file of a single tensor has one without a name."""
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                names = list(archive.files)
            return names, lambda name: _load_from_npz(path, name)
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                names = list(file.keys())
            return names, lambda name: _load_safetensor(path, name)
        return _load_torch(path)
    except FadevizError:
        raise
    except (SafetensorError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FadevizError(f"{path} cannot be read ({_first_line(error)}). Is it a {path.suffix} file?") from error


def _load_from_npz(path: Path, name: str) -> Array:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return as_array(archive[name], f"{path}:{name}")
    except FadevizError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FadevizError(f"{path}:{name} cannot be read ({_first_line(error)}). Write the file again") from error


def _load_safetensor(path: Path, name: str) -> Array:
    try:
        with safe_open(path, framework="numpy") as file:
            return as_array(file.get_tensor(name), f"{path}:{name}")
    except TypeError:  # bfloat16, which numpy does not have
        import torch

        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return as_array(tensor, f"{path}:{name}")


def _load_torch(path: Path) -> tuple[list[str], Callable[[str], Array]]:
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FadevizError(
            f"{path} cannot be read: it holds other objects than tensors, or is damaged. Save tensors alone: "
            "torch.save({'maps': maps}, file)"
        ) from error
    except RuntimeError as error:
        raise FadevizError(
            f"{path} cannot be read ({_first_line(error)}). Save tensors alone: torch.save({{'maps': maps}}, file)"
        ) from error
    values: dict[str, Any] = loaded if isinstance(loaded, dict) else {"": loaded}
    values = {str(name): value for name, value in values.items()}
    return list(values), lambda name: as_array(values[name], f"{path}:{name}".rstrip(":"))


def _load_npy(path: Path) -> Array:
    try:
        return as_array(np.load(path, allow_pickle=False, mmap_mode="r"), str(path))
    except FadevizError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise FadevizError(f"{path} cannot be read ({_first_line(error)}). Is it a .npy file of numbers?") from error


def _open_animation(path: Path) -> Source:
    """The frames of an animation: every frame is a step."""
    with _opened_image(path) as image:
        count = getattr(image, "n_frames", 1)
        if count < 2:
            raise FadevizError(f"{path} has a single frame. Give an animation, or the folder of all frames")
        frames, durations, coloured = [], set(), False
        for index in range(count):
            image.seek(index)
            frame, colours = _grey(image, f"frame {index} of {path}")
            frames.append(frame)
            coloured |= colours
            durations.add(image.info.get("duration"))
        notes = [_COLOURED if coloured else _STRETCHED] if coloured or _is_8_bit(image) else []
    if len(durations) > 1:
        notes.append(MERGED)
    return Source([f"frame {i} of {path}" for i in range(count)], lambda i: frames[i], notes=notes)


@contextmanager
def _opened_image(path: Path) -> Iterator[Image.Image]:
    """An image file that is open; its damage is reported in one line."""
    try:
        with Image.open(path) as opened, _with_palette(opened, path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise FadevizError(f"{path} has {image.width}x{image.height} pixels, more than maps have. Remove it")
            yield image
    except FadevizError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise FadevizError(f"{path} is no image, or damaged ({_first_line(error)}). Replace it") from error


class _Gif(GifImageFile):
    """A GIF whose grey palette is kept: without one, Pillow takes pixels that later frames leave as they are for 0."""

    def _is_palette_needed(self, p: bytes) -> bool:
        return True


def _with_palette(opened: Image.Image, path: Path) -> Image.Image:
    return _Gif(path) if opened.format == "GIF" else opened


def _is_8_bit(image: Image.Image) -> bool:
    return image.mode in ("L", "LA", "P", "PA", "RGB", "RGBA")


def _grey(image: Image.Image, what: str) -> tuple[NDArray[np.float32], bool]:
    """The values ``(h, w)`` of a frame, and whether it has colours, of which the luminance is taken."""
    image.load()
    if image.mode in ("I", "F", "L") or image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.float32), False
    if image.has_transparency_data and (alpha := np.asarray(image.convert("RGBA"))[..., 3]).min() < 255:
        raise FadevizError(f"{what} has {np.count_nonzero(alpha < 255)} transparent pixels, which have no value. Save "
                           "it without transparency")  # fmt: skip
    colours = np.asarray(image.convert("RGB"))
    if (colours == colours[..., :1]).all():
        return colours[..., 0].astype(np.float32), False
    return np.asarray(image.convert("RGB").convert("L")).astype(np.float32), True


def _step_of(step: object) -> int:
    try:
        return int(step) if isinstance(step, str) else operator.index(step)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        shown = step.item() if isinstance(step, np.generic) else step
        raise FadevizError(f"{shown!r:.40} is no step: a whole number is needed") from None


def _check_file(path: Path) -> None:
    try:
        check_regular(path)
    except FileNotFoundError:
        raise FadevizError(f"there is no {path}. Give a file or a folder of maps") from None
    except (NoRegularFile, OSError) as error:
        raise FadevizError(f"{path} cannot be read ({_first_line(error)}). Give a file or a folder of maps") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def frames_of(source: Source) -> Iterator[tuple[str, Array]]:
    """Each step's name and array."""
    for index, name in enumerate(source.names):
        yield name, source.read(index)
