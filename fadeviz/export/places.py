"""Where exports go: a file or a folder that is replaced whole, and only if an export wrote what is there."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import FadevizError, MissingExtra
from ..storage.files import replacing


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a failing import within the block into an error with the command that repairs the installation."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(extra, f"exporting to {extra} needs {error.name}, which is not installed") from error


@contextmanager
def new_file(path: Path, suffix: str, is_ours: Callable[[Path], bool], *, overwrite: bool) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends without an error.

    Raises:
        FadevizError: if the name does not end in ``suffix``, an existing file must not be replaced, or the disk is
            full.
    """
    if path.suffix.lower() != suffix:
        raise FadevizError(f"cannot write {path.name}: this export is one file. Give a name that ends in {suffix}")
    if path.is_dir():
        raise FadevizError(f"{path} is a folder, this export is one file. Choose another output")
    if os.path.lexists(path):
        _refuse_unless(overwrite, path)
        if not path.is_file() or not is_ours(path):  # opening a FIFO would block
            raise FadevizError(f"{path} was not written by this export: it is not replaced. Choose another output")
    with replacing(path) as partial:
        yield partial


@contextmanager
def new_folder(path: Path, ours: re.Pattern[str], mark: re.Pattern[str], *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place when the block ends without an error.

    What is there is replaced only if every file in it is one that such an export writes. A process that is killed
    leaves the old folder whole, and at worst a hidden one beside it.

    Args:
        path: the folder to be made.
        ours: what an export calls its files, as paths within the folder with ``/``.
        mark: what at least one of them must be called, so that somebody else's folder of the same sort stays.
        overwrite: whether to replace an earlier export.

    Raises:
        FadevizError: if an existing folder must not be replaced, or the folder cannot be written.
    """
    path = Path(os.path.abspath(path))
    if not path.name:
        raise FadevizError(f"{path} cannot be replaced. Choose another output")
    if path.is_symlink():
        raise FadevizError(f"{path} is a link: it is not replaced. Give the folder itself, or choose another output")
    if path.exists() and not path.is_dir():
        raise FadevizError(f"{path} is a file, this export is a folder. Choose another output")
    occupied = path.is_dir() and any(path.iterdir())
    if occupied:
        files = sorted(_files(path))
        foreign = [file for file in files if not ours.fullmatch(file)]
        if foreign or not any(mark.fullmatch(file) for file in files):
            example = f", e.g. {foreign[0]}" if foreign else ""
            raise FadevizError(
                f"{path} holds what this export did not write{example}: nothing is replaced. Choose another output"
            )
        _refuse_unless(overwrite, path)
    token = secrets.token_hex(4)
    partial, old = (path.with_name(f".{path.name}.{what}-{token}") for what in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        yield partial
        if path.is_dir():
            path.rename(old)
        try:
            partial.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except OSError as error:
        raise FadevizError(
            f"cannot write {path}: {error.strerror or error}. Nothing was replaced. Choose another output"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def _refuse_unless(overwrite: bool, path: Path) -> None:
    if not overwrite:
        raise FadevizError(f"{path} exists. Replace it with overwrite=True, or choose another output")


def _files(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in files + links:
            yield (Path(parent) / name).relative_to(folder).as_posix()
