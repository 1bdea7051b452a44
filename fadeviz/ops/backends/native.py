"""Reassembly on a CPU by ``native.c``, compiled once on first use; where no compiler is, the tiles serve.

The library lies in ``$XDG_CACHE_HOME/fadeviz`` (by default ``~/.cache/fadeviz``) under a name that holds the source,
the compiler and the processor, so that a home folder shared by unlike machines is safe.
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
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...errors import FadevizError

_SOURCE = Path(__file__).with_name("native.c")
_INCLUDED = (Path(__file__).with_name("sampled.c"),)
_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_MAX_KERNEL, _MAX_SCALE = 64, 16
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno")


class _Map(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p)] + [
        (name, ctypes.c_int64) for name in ("type", "batch", "channel", "row", "column")
    ]


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("batch", "channels", "height", "width", "kernel", "scale", "groups", "threads")
    ]


def available(x: Tensor, kernel_size: int, scale_factor: int) -> bool:
    """Whether maps like x can be computed here: on the CPU, with a compiler, in a dtype the C code reads."""
    return (
        x.device.type == "cpu"
        and _reads(x.dtype)
        and kernel_size <= _MAX_KERNEL
        and scale_factor <= _MAX_SCALE
        and library(_bits(x)) is not None
    )


def _reads(dtype: torch.dtype) -> bool:
    if dtype != torch.float16:
        return dtype in _TYPES
    loaded = library()
    return loaded is not None and bool(loaded.fadeviz_reads_float16_f32())  # some compilers do not know the type


def _bits(*tensors: Tensor | None) -> int:
    return 64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else 32


@functools.cache
def library(bits: int = 32) -> ctypes.CDLL | None:
    """The compiled library that computes in ``bits``, built if need be; None where that is impossible."""
    for compiler in _compilers():
        for folder in _folders():
            try:
                return _load(_find(folder, compiler, bits), bits)
            except subprocess.TimeoutExpired:
                break  # a compiler that never ends: no second try
            except (OSError, subprocess.SubprocessError):
                continue
    return None


def _compilers() -> list[str]:
    """The paths of the installed compilers, without options in CC, which may not suit a shared library."""
    try:
        asked = shlex.split(os.environ.get("CC", ""))[:1]
    except ValueError:  # an unclosed quote
        asked = []
    return list(dict.fromkeys(filter(None, map(shutil.which, (*asked, "cc", "gcc", "clang")))))


def _folders() -> list[Path]:
    """Folders for the library: the user's cache, and a temporary one if there is no writable cache."""
    # Unlike Path.home(), expanduser does not raise without a home: the path then stays relative.
    caches = (os.environ.get("XDG_CACHE_HOME", ""), os.path.join(os.path.expanduser("~"), ".cache"))
    found = [Path(cache) / "fadeviz" for cache in filter(os.path.isabs, caches)][:1]
    with contextlib.suppress(OSError):  # no writable temporary folder
        found.append(Path(tempfile.gettempdir()) / f"fadeviz-{_user()}")
    return found


def _load(path: Path, bits: int) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    if not hasattr(loaded, f"fadeviz_reassemble_f{bits}"):
        raise OSError(f"{path} was not built from native.c")
    return loaded


def _find(folder: Path, compiler: str, bits: int) -> Path:
    """The library in a cache folder, built there if need be; its name ends with the hash of what it holds."""
    sources = [source.read_text("utf-8") for source in (_SOURCE, *_INCLUDED)]
    text = "\n".join([*sources, " ".join(_FLAGS), compiler, torch.__version__, _processor()])
    start = f"native{bits}-{_hash(os.fsencode(text))}-"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _is_ours(folder):
        raise OSError(f"{folder} is not ours alone")
    for path in folder.glob(f"{start}*.so"):
        # A file cut short by a full disk or a power failure would end the process when it is used.
        if path.name == f"{start}{_hash(path.read_bytes())}.so":
            return path
        path.unlink(missing_ok=True)
    # Under a name of its own first: two processes may build at once, and a killed one leaves nothing half made.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / "native.so"
        _compile(compiler, bits, made)
        path = folder / f"{start}{_hash(made.read_bytes())}.so"
        os.replace(made, path)
    return path


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _compile(compiler: str, bits: int, target: Path) -> None:
    command = [compiler, *_FLAGS, f"-DBITS={bits}", str(_SOURCE), "-o", str(target), "-lm"]
    try:
        # The runtime of OpenMP is the one torch has loaded already: both share one pool of threads.
        _execute([*command, "-fopenmp"])
    except subprocess.CalledProcessError:
        _execute(command)


def _execute(command: list[str]) -> None:
    # No input or output: a command that is not a compiler may print or wait without end.
    nothing = subprocess.DEVNULL
    subprocess.run(command, check=True, stdin=nothing, stdout=nothing, stderr=nothing, timeout=120)


def _is_ours(folder: Path) -> bool:
    # A library that anyone else could put there is never loaded.
    if not hasattr(os, "getuid"):
        return True
    status = folder.lstat()  # a link could be turned elsewhere between this look and the loading
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _processor() -> str:
    if platform.system() == "Linux":
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return platform.processor() + platform.machine()


def reassemble(x: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int, groups: int) -> Tensor:
    """``(B, C, h, w)`` and ``(B, G*K*K, s*h, s*w)`` -> ``(B, C, s*h, s*w)``, in x's dtype and memory format."""
    b, c, h, w = x.shape
    y = _empty_like(x, (b, c, h * scale_factor, w * scale_factor))
    _call("fadeviz_reassemble", x, kernels, y, kernel_size, scale_factor, groups)
    return y


def similarity(query: Tensor, key: Tensor, kernel_size: int, scale_factor: int, groups: int) -> Tensor:
    """``(B, C, s*h, s*w)`` and ``(B, C, h, w)`` -> ``(B, G*K*K, s*h, s*w)``, in float32 or better."""
    b, _, height, width = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    out = _empty_like(query, (b, groups * kernel_size**2, height, width), dtype)
    _call("fadeviz_similarity", key, out, query, kernel_size, scale_factor, groups)
    return out


def spread(y: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int, groups: int) -> Tensor:
    """``(B, C, s*h, s*w)`` and ``(B, G*K*K, s*h, s*w)`` -> ``(B, C, h, w)``, in y's dtype and memory format."""
    b, c, height, width = y.shape
    out = _empty_like(y, (b, c, height // scale_factor, width // scale_factor))
    _call("fadeviz_spread", out, kernels, y, kernel_size, scale_factor, groups)
    return out


def softmax(
    logits: Tensor, coarse: Tensor | None, kernel_size: int, scale_factor: int, groups: int, dtype: torch.dtype
) -> Tensor:
    """Softmax over each kernel of ``logits + nearest_s(coarse)``, in the logits' memory format."""
    out = _empty_like(logits, tuple(logits.shape), dtype)
    scale = 1 if coarse is None else scale_factor
    _call_softmax("fadeviz_softmax", [logits, out, None, coarse], kernel_size, scale, groups)
    return out


def softmax_backward(
    grad: Tensor, kernels: Tensor, kernel_size: int, scale_factor: int, groups: int, has_coarse: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the logits and of the coarse ones, in the gradient's memory format."""
    b, channels, h, w = grad.shape
    out = _empty_like(grad, tuple(grad.shape))
    low = _empty_like(grad, (b, channels, h // scale_factor, w // scale_factor)) if has_coarse else None
    scale = scale_factor if has_coarse else 1
    _call_softmax("fadeviz_softmax_backward", [grad, kernels, out, low], kernel_size, scale, groups)
    return out, low


def _call_softmax(function: str, tensors: list[Tensor | None], kernel_size: int, scale: int, groups: int) -> None:
    first = tensors[0]
    if first is None or not first.numel():
        return
    b, channels, h, w = first.shape
    shape = _Shape(b, channels, h // scale, w // scale, kernel_size, scale, groups, _threads(first.numel()))
    _run(function, shape, tensors)


def can_blend(*maps: Tensor) -> bool:
    """Whether all maps are of one dtype that the C code adds up in, and lie alike in memory without gaps."""
    first = maps[0]
    last = all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    return (
        library(_bits(first)) is not None
        and all(m.device.type == "cpu" and m.dtype == first.dtype for m in maps)
        and first.dtype in (torch.float32, torch.float64)
        and all(m.shape in (first.shape, (len(first), 1, *first.shape[2:])) for m in maps)
        and (last or all(m.is_contiguous() for m in maps))
    )


def blend(reassembled: Tensor, feature: Tensor, gate: Tensor) -> Tensor:
    """``gate * feature + (1 - gate) * reassembled`` for a one-channel gate; maps that :func:`can_blend` takes."""
    out = torch.empty_like(reassembled)
    _call_blend("fadeviz_blend", reassembled, [reassembled, feature, gate, out])
    return out


def blend_backward(grad: Tensor, reassembled: Tensor, feature: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of all three."""
    outs = torch.empty_like(reassembled), torch.empty_like(feature), torch.empty_like(gate)
    _call_blend("fadeviz_blend_backward", reassembled, [grad, reassembled, feature, gate, *outs])
    return outs


def _call_blend(function: str, like: Tensor, tensors: list[Tensor]) -> None:
    loaded = library(_bits(like))
    if loaded is None or not like.numel():
        return
    b, c, h, w = like.shape
    last = not like.is_contiguous()
    call = getattr(loaded, f"{function}_f{_bits(like)}")
    sizes = [b, c, h * w, int(last), _threads(like.numel())]
    call(*(ctypes.c_void_p(t.data_ptr()) for t in tensors), *map(ctypes.c_int64, sizes))


def can_frame(*maps: Tensor) -> bool:
    """Whether :func:`frame` takes the maps: on the CPU, all in float32 or all in float64."""
    first = maps[0]
    return (
        first.dtype in (torch.float32, torch.float64)
        and all(m.device.type == "cpu" and m.dtype == first.dtype for m in maps)
        and library(_bits(first)) is not None
    )


def frame(y: Tensor, n: Tensor, shift: Tensor, kernel_size: int) -> None:
    """Add what the convolution with ``shift`` (M, 1, k, k) of a map of ones misses to y ``(B, M, h, w)``.

    It misses what the kernels n ``(B, K*K, h, w)``, which sum to 1, have beyond the border, and what k reaches there.
    """
    _call_frame(y, n, None, shift, None, kernel_size)


def frame_backward(grad: Tensor, n: Tensor, shift: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """The gradients of n and of shift."""
    size = shift.shape[-1]
    to_n, sums = torch.zeros_like(n), shift.new_zeros(len(n), size**2, len(shift))
    _call_frame(grad, n, to_n, shift, sums, kernel_size)
    return to_n, sums.sum(0).t().reshape(shift.shape)


def _call_frame(
    y: Tensor, n: Tensor, to_n: Tensor | None, shift: Tensor, sums: Tensor | None, kernel_size: int
) -> None:
    bits = _bits(y)
    loaded = library(bits)
    if loaded is None or not y.numel():
        return
    b, m, h, w = y.shape
    taps = shift.flatten(1).t().contiguous()
    shape = _Shape(b, m, h, w, kernel_size, shift.shape[-1], 1, min(b, _threads(y.numel())))
    maps = [_Map() if t is None else _Map(t.data_ptr(), _TYPES[t.dtype], *t.stride()) for t in (y, n, to_n)]
    at = [ctypes.c_void_p(0 if t is None else t.data_ptr()) for t in (taps, sums)]
    if not getattr(loaded, f"fadeviz_frame_f{bits}")(ctypes.byref(shape), *map(ctypes.byref, maps), *at):
        raise MemoryError("native frame: no memory for its weights")


def _empty_like(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.empty(
        shape, dtype=dtype or x.dtype, memory_format=torch.channels_last if last else torch.contiguous_format
    )


def _call(function: str, x: Tensor, kernels: Tensor, y: Tensor, kernel_size: int, scale: int, groups: int) -> None:
    b, c, h, w = x.shape
    if not x.numel():
        if function == "fadeviz_similarity":
            kernels.zero_()
        return
    _run(
        function, _Shape(b, c, h, w, kernel_size, scale, groups, _threads(y.numel() * kernel_size**2)), [x, kernels, y]
    )


def _threads(work: int) -> int:
    # Below this, waking a second thread costs more than it saves.
    return torch.get_num_threads() if work > 100_000 else 1


def _run(function: str, shape: _Shape, tensors: Sequence[Tensor | None]) -> None:
    bits = _bits(*tensors)
    loaded = library(bits)
    if loaded is None:
        raise FadevizError("backend native needs a C compiler (cc, gcc or clang). Install one, or use backend tiles")
    if shape.kernel > _MAX_KERNEL or shape.scale > _MAX_SCALE:
        raise FadevizError(
            f"backend native takes kernels up to {_MAX_KERNEL} and scales up to {_MAX_SCALE}, not {shape.kernel} and "
            f"{shape.scale}. Use backend tiles"
        )
    for given in tensors:
        if given is not None and (given.device.type != "cpu" or not _reads(given.dtype)):
            raise FadevizError(
                f"backend native reads floating-point maps on the CPU, not {given.dtype} on {given.device}. "
                "Convert them, or use backend tiles"
            )
    maps = [_Map() if t is None else _Map(t.data_ptr(), _TYPES[t.dtype], *t.stride()) for t in tensors]
    call = getattr(loaded, f"{function}_f{bits}")
    if not call(ctypes.byref(shape), *(ctypes.byref(one) for one in maps)):
        raise MemoryError("native reassembly: no memory for the row buffers")


class _Points(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("batch", "channels", "height", "width", "high", "wide", "groups", "heads", "points", "threads")
    ]


def samples(*tensors: Tensor | None) -> bool:
    """Whether maps, points and kernels like these can be sampled here; see ``sampled.c``."""
    given = [t for t in tensors if t is not None]
    return all(t.device.type == "cpu" and _reads(t.dtype) for t in given) and library(_bits(*given)) is not None


def sampled_sums(
    x: Tensor, points: Tensor, kernels: Tensor, bias: Tensor | None, groups: int, heads: int, y: Tensor
) -> Tensor:
    """Fill y ``(B, C, s*h, s*w)`` with weighted sums of x (and bias) at the points."""
    _call_points("fadeviz_sampled_sums", x, points, kernels, y, groups, heads, bias)
    return y


def sampled_logits(
    y: Tensor, x: Tensor, points: Tensor, bias: Tensor | None, groups: int, heads: int, logits: Tensor
) -> Tensor:
    """Fill logits ``(B, heads*P, s*h, s*w)`` with the inner products of y and x (plus bias) at the points."""
    _call_points("fadeviz_sampled_logits", x, points, logits, y, groups, heads, bias)
    return logits


def sampled_slopes(
    y: Tensor,
    x: Tensor,
    points: Tensor,
    kernels: Tensor,
    groups: int,
    heads: int,
    to_points: Tensor | None,
    to_kernels: Tensor | None,
    to_x: Tensor | None = None,
    to_y: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Fill the gradients of ``sum(y * sampled_sums(x, points, kernels))`` in the points, the kernels, and in x.

    With ``to_x``, ``to_y`` gets the weighted sums of x and bias, which are the gradient in y.
    """
    outs = [to_points, to_kernels] if to_x is None else [to_points, to_kernels, to_x, to_y]
    function = "fadeviz_sampled_slopes" if to_x is None else "fadeviz_sampled_gradients"
    _call_points(function, x, points, kernels, y, groups, heads, bias, outs)


def sampled_spread(y: Tensor, points: Tensor, kernels: Tensor, groups: int, heads: int, to_x: Tensor) -> Tensor:
    """Fill the gradient of ``sum(y * sampled_sums(x, points, kernels))`` in x."""
    _call_points("fadeviz_sampled_spread", to_x, points, kernels, y, groups, heads)
    return to_x


def _call_points(
    function: str,
    x: Tensor,
    points: Tensor,
    kernels: Tensor,
    y: Tensor,
    groups: int,
    heads: int,
    bias: Tensor | None = None,
    outs: Sequence[Tensor | None] = (None, None),
) -> None:
    if not (x.numel() and y.numel()):
        return
    b, c, h, w = x.shape
    tensors = (x, points, kernels, y, *outs)
    bits = _bits(*tensors)
    loaded = library(bits)
    if loaded is None:
        raise FadevizError("backend native needs a C compiler (cc, gcc or clang). Install one, or use backend tiles")
    count = points.shape[1] // (2 * groups)
    shape = _Points(b, c, h, w, *points.shape[2:], groups, heads, count, _threads(y.numel() * count))
    table = None if bias is None else bias.detach().to(torch.float64 if bits == 64 else torch.float32).contiguous()
    maps = [_Map() if t is None else _Map(t.data_ptr(), _TYPES[t.dtype], *t.stride()) for t in tensors]
    refs = [ctypes.byref(m) for m in maps]
    at = ctypes.c_void_p(0 if table is None else table.data_ptr())
    if not getattr(loaded, f"{function}_f{bits}")(ctypes.byref(shape), *refs[:3], at, *refs[3:]):
        raise MemoryError("native sampling: no memory for the planes")


def points(learned: Tensor, groups: int, reach: float, out: Tensor) -> Tensor:
    """Fill ``(B, G*P*2, H, W)`` with ``reach * tanh(learned) + the pixels of a square``, from ``(B*G, P*2, H, W)``."""
    _bend("fadeviz_points", learned, out, None, groups, reach)
    return out


def points_backward(grad: Tensor, points: Tensor, groups: int, reach: float, to_learned: Tensor) -> Tensor:
    """Fill the gradient of what was learned, from the points and their gradient."""
    _bend("fadeviz_points_backward", to_learned, points, grad, groups, reach)
    return to_learned


def _bend(function: str, learned: Tensor, points: Tensor, grad: Tensor | None, groups: int, reach: float) -> None:
    if not learned.numel():
        return
    b, channels, height, width = points.shape
    bits = _bits(learned, points, grad)
    loaded = library(bits)
    if loaded is None:
        raise FadevizError("backend native needs a C compiler (cc, gcc or clang). Install one, or use backend tiles")
    count = channels // (2 * groups)
    shape = _Points(b, channels, 0, 0, height, width, groups, 1, count, _threads(learned.numel()))
    maps = [_Map() if t is None else _Map(t.data_ptr(), _TYPES[t.dtype], *t.stride()) for t in (learned, points, grad)]
    call = getattr(loaded, f"{function}_f{bits}")
    if not call(ctypes.byref(shape), *map(ctypes.byref, maps), ctypes.c_double(reach)):
        raise MemoryError("native sampling: no memory for a row")


def can_convolve(hidden: Tensor, weight: Tensor) -> bool:
    """Whether :func:`points_conv` takes these: few channels that lie side by side, and a 3x3 neighbourhood."""
    return (
        hidden.device.type == "cpu"
        and hidden.dtype == weight.dtype
        and hidden.dtype in (torch.float32, torch.float64)
        and hidden.shape[1] in (2, 4)
        and tuple(weight.shape) == (18, hidden.shape[1], 3, 3)
        and hidden.is_contiguous(memory_format=torch.channels_last)
        and library(_bits(hidden)) is not None
    )


def points_conv(hidden: Tensor, weight: Tensor, bias: Tensor, groups: int, reach: float, out: Tensor) -> Tensor:
    """:func:`points` of the convolution of ``(B*G, C, H, W)`` with ``(18, C, 3, 3)``, at once."""
    _call_points_conv(hidden, weight, bias, out, None, None, None, groups, reach)
    return out


def points_conv_backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, points: Tensor, groups: int, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the map, the weight and the bias."""
    to_hidden, taps = torch.empty_like(hidden), 9 * hidden.shape[1]
    sums = hidden.new_zeros(len(points), taps + 1, len(weight))
    grad = grad.contiguous(memory_format=torch.channels_last)
    _call_points_conv(hidden, weight, None, points, grad, to_hidden, sums, groups, reach)
    total = sums.sum(0)
    to_weight = torch.empty_like(weight).copy_(total[:taps].t().reshape(-1, 3, 3, hidden.shape[1]).permute(0, 3, 1, 2))
    return to_hidden, to_weight, total[taps]


def _call_points_conv(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    points: Tensor,
    grad: Tensor | None,
    to_hidden: Tensor | None,
    sums: Tensor | None,
    groups: int,
    reach: float,
) -> None:
    bits = _bits(hidden)
    loaded = library(bits)
    if loaded is None or not hidden.numel():
        return
    b, _, height, width = points.shape
    taps = weight.permute(2, 3, 1, 0).contiguous()
    shape = _Points(b, hidden.shape[1], 0, 0, height, width, groups, 1, 9, _threads(points.numel()))
    tensors = (hidden, taps, None if bias is None else bias.contiguous(), points, grad, to_hidden, sums)
    at = [ctypes.c_void_p(0 if t is None else t.data_ptr()) for t in tensors]
    if not getattr(loaded, f"fadeviz_points_conv_f{bits}")(ctypes.byref(shape), *at, ctypes.c_double(reach)):
        raise MemoryError("native sampling: no memory for a row")


def can_convolve_groups(query: Tensor, weight: Tensor) -> bool:
    """Whether :func:`group_conv` takes these: channels that divide a vector, of one dtype that it adds up in."""
    if query.device.type != "cpu" or query.dtype != weight.dtype or query.dtype not in (torch.float32, torch.float64):
        return False
    loaded, channels = library(_bits(query)), query.shape[1]
    return (
        loaded is not None
        and tuple(weight.shape[1:]) == (1, 3, 3)
        and channels in (2, 4, 8, 16)
        and channels <= getattr(loaded, f"fadeviz_norm_channels_f{_bits(query)}")()
    )


def group_conv(query: Tensor, weight: Tensor, groups: int) -> Tensor:
    """``(B, G*C, H, W)`` convolved depth-wise with ``(C, 1, 3, 3)``, the same for each group: ``(B*G, C, H, W)``."""
    b, _, height, width = query.shape
    shape = (b * groups, len(weight), height, width)
    out = torch.empty(shape, dtype=query.dtype, memory_format=torch.channels_last)
    _call_group_conv(query, weight, out, None, None, None, groups)
    return out


def group_conv_backward(grad: Tensor, query: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The gradients of the query and of the weight."""
    to_query = torch.empty_like(query, memory_format=torch.channels_last)
    sums = query.new_zeros(len(query), 9, groups, len(weight))
    _call_group_conv(query, weight, None, grad.contiguous(memory_format=torch.channels_last), to_query, sums, groups)
    return to_query, sums.sum((0, 2)).t().reshape(weight.shape)


def _call_group_conv(
    query: Tensor,
    weight: Tensor,
    out: Tensor | None,
    grad: Tensor | None,
    to_query: Tensor | None,
    sums: Tensor | None,
    groups: int,
) -> None:
    bits = _bits(query)
    loaded = library(bits)
    if loaded is None or not query.numel():
        return
    query = query.contiguous(memory_format=torch.channels_last)
    taps = weight.flatten(1).t().contiguous()
    b, _, height, width = query.shape
    shape = _Points(b, len(weight), 0, 0, height, width, groups, 1, 9, _threads(query.numel()))
    at = [ctypes.c_void_p(0 if t is None else t.data_ptr()) for t in (query, taps, out, grad, to_query, sums)]
    if not getattr(loaded, f"fadeviz_group_conv_f{bits}")(ctypes.byref(shape), *at):
        raise MemoryError("native sampling: no memory for a row")


_RUN = 1024  # pixels; RUN_OF_PIXELS in sampled.c


def can_normalize(x: Tensor) -> bool:
    """Whether :func:`pixel_norm` takes x: few channels, that lie side by side."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    loaded, channels = library(_bits(x)), x.shape[1]
    return (
        loaded is not None
        and channels in (2, 4, 8, 16)
        and channels <= getattr(loaded, f"fadeviz_norm_channels_f{_bits(x)}")()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the channels of every pixel."""
    y = torch.empty_like(x)
    _call_norm(x, None, weight, bias, y, None, eps)
    return y


def pixel_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    to_x, channels = torch.empty_like(x), x.shape[1]
    sums = x.new_zeros(-(-x.numel() // channels // _RUN), 2, channels)
    _call_norm(x, grad.contiguous(memory_format=torch.channels_last), weight, weight, to_x, sums, eps)
    to_weight, to_bias = sums.sum(0).unbind()
    return to_x, to_weight, to_bias


def _call_norm(
    x: Tensor, grad: Tensor | None, weight: Tensor, bias: Tensor, y: Tensor, sums: Tensor | None, eps: float
) -> None:
    bits, channels = _bits(x), x.shape[1]
    loaded = library(bits)
    if loaded is None or not x.numel():
        return
    tensors = [x, grad, weight.contiguous(), bias.contiguous(), y, sums]
    at = [ctypes.c_void_p(0 if t is None else t.data_ptr()) for t in tensors]
    sizes = [ctypes.c_int64(n) for n in (x.numel() // channels, channels)]
    threads = ctypes.c_int64(_threads(x.numel()))
    getattr(loaded, f"fadeviz_pixel_norm_f{bits}")(*at, *sizes, ctypes.c_double(eps), threads)
