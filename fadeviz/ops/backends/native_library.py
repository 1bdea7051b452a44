"""The compiled library of ``native.c``: found in a cache folder or built on first use, and how it is called.

The library lies in ``$XDG_CACHE_HOME/fadeviz`` (by default ``~/.cache/fadeviz``) under a name that contains a hash of
the source, the compiler and the processor, so that a home folder shared by different machines is safe.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ...errors import FadevizError

_SOURCE = Path(__file__).with_name("native.c")
_INCLUDED = (Path(__file__).with_name("sampled.c"),)
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno")
_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_BUILD_SECONDS = 120


class NativeMap(ctypes.Structure):
    """A four-dimensional tensor as the C code sees it."""

    _fields_ = [("data", ctypes.c_void_p)] + [
        (name, ctypes.c_int64) for name in ("type", "batch", "channel", "row", "column")
    ]

    @classmethod
    def of(cls, tensor: Tensor | None) -> NativeMap:
        """The map of a tensor, which must outlive it; NULL for None."""
        return cls() if tensor is None else cls(tensor.data_ptr(), _TYPES[tensor.dtype], *tensor.stride())


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """The address of a dense tensor, which must outlive it; NULL for None."""
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


def call(function: str, bits: int, *arguments: object) -> int:
    """Call a function of the library that computes in ``bits``.

    Returns:
        What it returns, if it returns anything: 0 when memory ran out.

    Raises:
        FadevizError: if there is no library.
    """
    result: int = getattr(required_library(bits), f"{function}_f{bits}")(*arguments)
    return result


def required_library(bits: int) -> ctypes.CDLL:
    """The library that computes in ``bits``.

    Raises:
        FadevizError: if it cannot be built.
    """
    loaded = library(bits)
    if loaded is None:
        raise FadevizError("backend='native' needs a C compiler (cc, gcc, clang). Install one, or use backend='tiles'")
    return loaded


def thread_count(work: int) -> int:
    """Threads for ``work`` multiply-adds or values."""
    # Below this, waking a second thread costs more than it saves.
    return torch.get_num_threads() if work > 100_000 else 1


def can_read(*tensors: Tensor | None) -> bool:
    """Whether the tensors are on the CPU, in dtypes that the C code reads."""
    return all(t is None or (t.device.type == "cpu" and _reads(t.dtype)) for t in tensors)


def _reads(dtype: torch.dtype) -> bool:
    if dtype != torch.float16:
        return dtype in _TYPES
    loaded = library()
    return loaded is not None and bool(loaded.fadeviz_reads_float16_f32())  # some compilers lack the type


def bits_of(*tensors: Tensor | None) -> int:
    """The precision that maps like these are computed in: 64 where any of them is float64, 32 otherwise."""
    return 64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else 32


@functools.cache
def library(bits: int = 32) -> ctypes.CDLL | None:
    """The compiled library that computes in ``bits``, built if necessary; None where that is impossible."""
    for compiler in _compilers():
        for folder in _folders():
            try:
                return _load(_find(folder, compiler, bits), bits)
            except subprocess.TimeoutExpired:
                break  # a compiler that never ends: do not try it again
            except (OSError, subprocess.SubprocessError):
                continue
    return None


def _compilers() -> list[str]:
    """The paths of the installed compilers, without options in CC, which may not suit a shared library."""
    try:
        preferred = shlex.split(os.environ.get("CC", ""))[:1]
    except ValueError:  # an unclosed quote
        preferred = []
    return list(dict.fromkeys(filter(None, map(shutil.which, (*preferred, "cc", "gcc", "clang")))))


def _folders() -> list[Path]:
    """Folders for the library: the user's cache, and a temporary one if there is no writable cache."""
    # Unlike Path.home(), expanduser does not raise without a home: the path then stays relative.
    caches = (os.environ.get("XDG_CACHE_HOME", ""), os.path.join(os.path.expanduser("~"), ".cache"))
    folders = [Path(cache) / "fadeviz" for cache in filter(os.path.isabs, caches)][:1]
    with contextlib.suppress(OSError):  # no writable temporary folder
        folders.append(Path(tempfile.gettempdir()) / f"fadeviz-{_user()}")
    return folders


def _load(path: Path, bits: int) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    if not hasattr(loaded, f"fadeviz_reassemble_f{bits}"):
        raise OSError(f"{path} was not built from native.c")
    return loaded


def _find(folder: Path, compiler: str, bits: int) -> Path:
    """The library in a cache folder, built there if necessary; its name ends with the hash of its contents."""
    sources = [source.read_text("utf-8") for source in (_SOURCE, *_INCLUDED)]
    text = "\n".join([*sources, " ".join(_FLAGS), compiler, torch.__version__, _processor()])
    start = f"native{bits}-{_hash(os.fsencode(text))}-"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _is_private(folder):
        raise OSError(f"{folder} is writable by other users")
    for path in folder.glob(f"{start}*.so"):
        # A file cut short by a full disk or a power failure would end the process when it is used.
        if path.name == f"{start}{_hash(path.read_bytes())}.so":
            return path
        path.unlink(missing_ok=True)
    # Under a name of its own first: two processes may build at once, and a killed one leaves no incomplete file.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / "native.so"
        _compile(compiler, bits, built)
        path = folder / f"{start}{_hash(built.read_bytes())}.so"
        os.replace(built, path)
    return path


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _compile(compiler: str, bits: int, target: Path) -> None:
    command = [compiler, *_FLAGS, f"-DBITS={bits}", str(_SOURCE), "-o", str(target), "-lm"]
    try:
        # The OpenMP runtime is the one that torch has already loaded: both share one pool of threads.
        _execute([*command, "-fopenmp"])
    except subprocess.CalledProcessError:
        _execute(command)


def _execute(command: list[str]) -> None:
    # No input or output: a command that is not a compiler may print, or wait forever.
    null = subprocess.DEVNULL
    subprocess.run(command, check=True, stdin=null, stdout=null, stderr=null, timeout=_BUILD_SECONDS)


def _is_private(folder: Path) -> bool:
    # A library that another user could have put there is never loaded.
    if not hasattr(os, "getuid"):
        return True
    status = folder.lstat()  # a link could change between this check and the loading
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _processor() -> str:
    if platform.system() == "Linux":
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return platform.processor() + platform.machine()
