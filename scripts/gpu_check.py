"""All that can be checked and measured in some minutes on a machine with a GPU and no network: ``make gpu``.

    python scripts/gpu_check.py [--out DIR] [--stages machine,tests:200] [--minutes 9]

It runs from the checkout with the Python that is there; nothing is installed or downloaded. Every stage is a process
with a limit of its own, so that one that fails or hangs stops no other. Left in DIR: ``gpu_check.json`` (every number),
``gpu_check.txt`` (the table, also printed last) and ``gpu_check.log`` (what the stages printed). The exit code is 1
where a check failed or a stage did not end well.

    machine    versions, the device, and its ceilings: copies, matrix products, launches
    operators  every operator in three precisions and two memory layouts against float64 on the CPU, with gradients
    peer       mmcv's CARAFE operator is built
    prepare    the kernels that are measured next are compiled, by all cores
    kernels    reassembly at the paper's shape and at SegNet's, against other forms and the bytes that must move
    steps      a training step of SegNet: milliseconds, memory, launches, and how much of it the GPU is busy
    together   how many steps a second several processes take on one GPU
    record     ``fadeviz record``: where the seconds go
    tests      the tests that need a GPU
    training   the lines that synchronise in a training step; which operators resume to the same bits; observing
    memory     compute-sanitizer over the Triton kernels
    compile, bench, tune    only when asked for: a compiled step, ``fadeviz bench``, the kernels' block sizes anew

``--device cpu --small`` rehearses it anywhere. ``scripts/gpu_data.py`` fills ``.gpu`` with a data set, weights and the
sources of mmcv's operator; what is not there is left out, or done with synthetic images.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import importlib
import json
import math
import multiprocessing
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEGUN = time.monotonic()  # before torch, whose import a stage's limit counts
ROOT = Path(__file__).resolve().parents[1]
for _place in (str(ROOT / "scripts"), str(ROOT)):
    if _place not in sys.path:
        sys.path.insert(0, _place)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

Row = dict[str, Any]
Call = Callable[[], object]

GPU_FILES = ROOT / ".gpu"
LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KERNEL_SIZE, SCALE = 5, 2
NETWORKS = ("segnet", "segformer:backbone=b0", "matting")


@dataclass(frozen=True)
class Setting:
    """Where to measure, how large, and where a stage may write."""

    device: str = "cuda"
    small: bool = False
    work: str = ""
    processes: int = 0
    """In which the checks of a stage are spread; 0: in its own."""
    seconds: float = 1e6
    """That the stage has."""

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device == "cuda"


class Rows:
    """A stage's results, written line by line: what a stage that is stopped had measured is kept."""

    def __init__(self, path: Path | None) -> None:
        """None keeps them in memory alone."""
        self.path, self.rows, self.begun = path, list[Row](), time.monotonic()

    def add(self, **row: Any) -> None:
        """One result; ``ok=False`` is a failed check."""
        row["at"] = round(time.monotonic() - self.begun, 1)
        self.rows.append(row)
        line = json.dumps(row, default=str)
        print(line, flush=True)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(line + "\n")


# ------------------------------------------------------------------------------------------------------------- timing


def timed(calls: Sequence[Call], device: str, seconds: float = 0.2) -> float:
    """Median seconds of a call; ``calls`` take turns, so that each finds its inputs outside of the L2 cache.

    On a GPU by events around every call: gaps in which the GPU waits for its next launch count too.
    """
    for call in calls[:3]:
        call()
    synchronize(device)
    start = time.perf_counter()
    for call in calls[:2]:
        call()
    synchronize(device)
    once = (time.perf_counter() - start) / min(2, len(calls))
    count = max(5, min(200, int(seconds / max(once, 1e-7))))
    if device != "cuda":
        spent = []
        for number in range(count):
            start = time.perf_counter()
            calls[number % len(calls)]()
            spent.append(time.perf_counter() - start)
        return statistics.median(spent)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for number, (before, after) in enumerate(events):
        before.record()
        calls[number % len(calls)]()
        after.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in events) / 1e3


def timed_graph(calls: Sequence[Call], seconds: float = 0.1) -> float:
    """Median seconds of a call in a CUDA graph of all ``calls``: what the GPU takes where no launch is waited for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    once = timed([graph.replay], "cuda", seconds)
    del kept
    return once / len(calls)


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def exact_fp32() -> None:
    """No TF32: what is compared in float32 is computed in it."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


# ---------------------------------------------------------------------------------------------------- 0: the machine


def stage_machine(setting: Setting, rows: Rows) -> None:
    """Versions, the device, and what it reaches."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    for name in ("triton", "transformers", "pytest"):
        with contextlib.suppress(ImportError):
            versions[name] = importlib.import_module(name).__version__
    rows.add(what="versions", **versions, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    rows.add(what="host", cores=len(os.sched_getaffinity(0)), processor=platform.machine())
    if setting.cuda:
        of = torch.cuda.get_device_properties(0)
        rows.add(
            what="device", name=of.name, count=torch.cuda.device_count(), capability=f"{of.major}.{of.minor}",
            multiprocessors=of.multi_processor_count, memory=of.total_memory, l2=getattr(of, "L2_cache_size", 0),
        )  # fmt: skip
        asked = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            told = subprocess.run(
                ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"],
                capture_output=True, text=True, timeout=20, check=True,
            ).stdout.strip()  # fmt: skip
            rows.add(what="nvidia-smi", asked=asked, told=told)
    size = 1 << (22 if setting.small else 31)
    source = torch.randn(size // 8, device=setting.device)
    into = torch.empty_like(source)
    seconds = timed([functools.partial(into.copy_, source)], setting.device)
    rows.add(what="copy", bytes=size, seconds=seconds, rate=size / seconds)
    del source, into
    side = 128 if setting.small else 8192
    for name in ("bf16", "fp16", "tf32", "fp32"):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        dtype = DTYPES.get(name, torch.float32)
        n = side if name != "fp32" else side // 2
        a, b = (torch.randn(n, n, device=setting.device, dtype=dtype) for _ in range(2))
        seconds = timed([lambda a=a, b=b: a @ b], setting.device)  # type: ignore[misc]
        rows.add(what="matmul", precision=name, side=n, seconds=seconds, rate=2 * n**3 / seconds)
    tiny = torch.zeros(8, device=setting.device)
    synchronize(setting.device)
    start = time.perf_counter()
    for _ in range(1000):
        tiny.add_(1)
    synchronize(setting.device)
    rows.add(what="launch", seconds=(time.perf_counter() - start) / 1000)
    rows.add(
        what="at hand",
        weizmann=(GPU_FILES / "weizmann").is_dir(), weights=(GPU_FILES / "vgg16_bn.safetensors").is_file(),
        mmcv=(GPU_FILES / "mmcv").is_dir(),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- 1: the tests


OUTCOME = re.compile(
    r"\[gw\d+\] (?:\[ *\d+%\] )?(?P<word>[A-Z]+) (?P<name>\S.*::.*?) *$"  # by pytest-xdist, else by pytest alone
    r"|(?P<alone>\S.*::.*?) (?P<verdict>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)(?: \(.*\))? *(?:\[ *\d+%\])?$"
)
SUMMARY = re.compile(r"(?:FAILED|ERROR) (?P<name>\S.*?) - (?P<message>.*)$")


def stage_tests(setting: Setting, rows: Rows) -> None:
    """The tests that are marked gpu, file by file named: what a file of others wants need not be installed."""
    files = sorted(path for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text())
    files = sorted({*files, ROOT / "tests" / "test_triton.py"})  # which is marked where there is a GPU
    command = [
        sys.executable, "-m", "pytest", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "-v", "--color=no",
        "-o", "xfail_strict=false", "--tb=short", "--maxfail=40", "--durations=15",
    ]  # fmt: skip
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", "12" if setting.cuda else "0", "-p", "no:benchmark"]
    if setting.small:
        code = subprocess.run([*command, "--collect-only", str(files[0])], cwd=ROOT, check=False).returncode
        rows.add(what="collected", files=[files[0].name], code=code, ok=code == 0)
        return
    follow_tests([*command, *map(str, files)], rows, setting.seconds)


def follow_tests(command: Sequence[str], rows: Rows, seconds: float) -> None:
    """Run pytest: a row for each test that fails as it fails, so that a stage that is stopped has their names.

    25 seconds before the end the process group is interrupted, the workers of pytest-xdist with it; pytest then tells
    what failed so far. This process is of the group, but reads on.
    """
    signal.signal(signal.SIGINT, lambda *_: None)
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env={**os.environ, "COLUMNS": "250"},  # or the summary cuts messages off
    )  # fmt: skip
    assert process.stdout is not None
    allowed = max(1.0, seconds - 25)

    def interrupt() -> None:
        rows.add(what="stopped", message=f"after {allowed:.0f} s", ok=False)
        os.killpg(0, signal.SIGINT)

    timer = threading.Timer(allowed, interrupt)
    timer.start()
    start, counts, failed = time.monotonic(), Counter[str](), set[str]()
    for line in process.stdout:
        print(line, end="", flush=True)
        if match := OUTCOME.match(line.rstrip()):
            outcome = (match["word"] or match["verdict"]).lower()
            counts[outcome] += 1
            if outcome in ("failed", "error"):
                failed.add(match["name"] or match["alone"])
                rows.add(what=outcome, test=match["name"] or match["alone"], ok=False)
        elif match := SUMMARY.match(line.rstrip()):
            rows.add(what="message", test=match["name"], message=match["message"][:300], ok=match["name"] in failed)
    process.stdout.close()
    code = process.wait()
    timer.cancel()
    rows.add(what="tests", **counts, code=code, seconds=round(time.monotonic() - start, 1), ok=code == 0)


# --------------------------------------------------------------------------------------------------- 2: the operators

BOUNDS = {"fp32": (1e-5, 5e-5), "bf16": (2e-2, 5e-2), "fp16": (3e-3, 1e-2)}
"""Relative errors, ||a - b|| / ||b||, of an output and of gradients, that rounding explains."""

LOOSER = {"dysample": 4, "lda_aqu": 8, "freqfusion": 4, "a2u": 4}
"""How many times that: where a position is rounded, gradients jump from one pixel to the next; A2U's are small."""

LOSS_SCALE = 8
"""Of gradients in float16, which a training scales too: small ones would vanish."""

SHAPES = ((2, 32, 9, 14), (2, 64, 28, 28))
LARGE = ((4, 64, 112, 112), (4, 512, 14, 14))
"""SegNet's; for those operators that our kernels compute."""

WITH_KERNELS = ("carafe", "fade", "sapa_b", "a2u", "semishift")


def stage_operators(setting: Setting, rows: Rows) -> None:
    """Each operator, and the worst of its errors."""
    from fadeviz.upsamplers import UPSAMPLERS

    names = [*WITH_KERNELS, *(name for name in UPSAMPLERS if name not in WITH_KERNELS)]
    cases = [(name, (2, 8, 3, 4)) for name in names]
    if not setting.small:
        cases = [(name, SHAPES[0]) for name in names] + [(name, shape) for shape in LARGE for name in WITH_KERNELS]
        cases += [(name, SHAPES[1]) for name in names]
    tasks = [(name, shape, precision) for name, shape in cases for precision in DTYPES]
    for task, result in spread_over(setting, check_operator, tasks):
        if isinstance(result, BaseException):
            rows.add(what="operator", operator=task[0], shape=task[1], error=first_line(result), ok=False)
        else:
            for row in result:
                rows.add(**row)


def check_operator(setting: Setting, name: str, shape: tuple[int, int, int, int], *precisions: str) -> list[Row]:
    """The errors of one operator at one shape, for each precision and layout; in float32 with poisoned memory too."""
    exact_fp32()
    torch.set_num_threads(2)
    reports = []
    for precision in precisions or DTYPES:
        wanted, given = reference(name, shape, DTYPES[precision])
        for layout in LAYOUTS:
            for poison in (False, True) if precision == "fp32" else (False,):
                row: Row = {"what": "operator", "operator": name, "shape": shape, "precision": precision}
                row |= {"layout": layout, **({"poisoned": True} if poison else {})}
                try:
                    with poisoned_memory() if poison else contextlib.nullcontext():
                        got = apply(given, DTYPES[precision], LAYOUTS[layout], setting.device)
                    errors = {key: relative(got[key], wanted[key]) for key in wanted}
                    first, later = (bound * LOOSER.get(name, 1) for bound in BOUNDS[precision])
                    ok = all(error <= (first if key == "out" else later) for key, error in errors.items())
                    row |= {**errors, "ok": ok}
                except Exception as error:
                    traceback.print_exc()
                    row |= {"error": first_line(error), "ok": False}
                reports.append(row)
    return reports


Given = tuple[nn.Module, Tensor, Tensor, Tensor | None, Tensor]


def reference(name: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[dict[str, list[Tensor]], Given]:
    """Outputs and gradients in float64 on the CPU, and what they were computed from, exact in ``dtype``."""
    from fadeviz.upsamplers import Skip, build_upsampler

    b, c, h, w = shape
    torch.manual_seed(sum(map(ord, name)) + b * c * h * w)
    operator = build_upsampler(name, c)
    with torch.no_grad():  # away from initial weights of 0 and from regular grids
        for parameter in operator.parameters():
            of = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.add_(torch.randn_like(parameter) * 0.1 / math.sqrt(of))
    x, feature, grad = (
        torch.randn(size).to(dtype).double()
        for size in ((b, c, h, w), (b, c, SCALE * h, SCALE * w), (b, c, SCALE * h, SCALE * w))
    )
    wide = copy.deepcopy(operator).double()
    with torch.no_grad():
        _, indices = copy.deepcopy(wide).pool(feature)
    inputs = [x.requires_grad_(), feature.requires_grad_(), *wide.parameters()]
    y = wide(x, Skip(feature, indices))
    gradients = torch.autograd.grad(y, inputs, grad, allow_unused=True)
    given = (operator, x.detach(), feature.detach(), indices, grad)
    return named(y, gradients), given


def apply(given: Given, dtype: torch.dtype, layout: torch.memory_format, device: str) -> dict[str, list[Tensor]]:
    """The same on the device in ``dtype``, weights in float32 as in a training."""
    from fadeviz.upsamplers import Skip

    operator, x, feature, indices, grad = given
    operator = copy.deepcopy(operator).to(device).to(memory_format=layout)  # type: ignore[call-overload]
    x, feature, grad = (t.to(device, dtype).contiguous(memory_format=layout) for t in (x, feature, grad))
    if indices is not None:
        indices = indices.to(device, dtype if indices.is_floating_point() else indices.dtype)
        indices = indices.contiguous(memory_format=layout)
    inputs = [x.requires_grad_(), feature.requires_grad_(), *operator.parameters()]
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        y = operator(x, Skip(feature, indices))
    scale = LOSS_SCALE if dtype == torch.float16 else 1
    gradients = torch.autograd.grad(y, inputs, grad.to(y.dtype) * scale, allow_unused=True)
    return named(y, [None if gradient is None else gradient.double() / scale for gradient in gradients])


def named(y: Tensor, gradients: Sequence[Tensor | None]) -> dict[str, list[Tensor]]:
    """Tensors by what they are; those that do not depend are left out."""
    x, skip, *parameters = gradients
    parts = {"out": [y], "x": [x], "skip": [skip], "parameters": parameters}
    kept = {key: [t.detach().double().cpu() for t in part if t is not None] for key, part in parts.items()}
    return {key: part for key, part in kept.items() if part}


def relative(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """||got - wanted|| / ||wanted|| over several tensors."""
    ours, theirs = (torch.cat([t.reshape(-1) for t in part]) for part in (got, wanted))
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory holds NaN: an output that a kernel leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def spread_over(
    setting: Setting, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """``function(setting, *task)`` of each task as it is done, in several processes; an exception is a result."""
    if not setting.processes:
        for task in tasks:
            try:
                yield task, function(setting, *task)
            except Exception as error:
                traceback.print_exc()
                yield task, error
        return
    with ProcessPoolExecutor(setting.processes, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(function, setting, *task): task for task in tasks}
        for future in as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except Exception as error:
                traceback.print_exc()
                yield waiting[future], error


# ---------------------------------------------------------------------------------------------------- 3: the training


def stage_training(setting: Setting, rows: Rows) -> None:
    """Synchronisations, bits, and observing."""
    from fadeviz.upsamplers import UPSAMPLERS

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    networks, names = (NETWORKS[:1], ("fade",)) if setting.small else (NETWORKS, tuple(UPSAMPLERS))
    tasks: list[tuple[Any, ...]] = [("synchronisations", network) for network in networks]
    tasks += [("observing", network, mode) for network in networks for mode in ("eval", "batch")]
    tasks += [("bits", name, exact) for exact in (False, True) for name in names]
    for task, result in spread_over(setting, check_training, tasks):
        if isinstance(result, BaseException):
            rows.add(what=task[0], of=task[1:], error=first_line(result), ok=False)
        else:
            rows.add(**result)


def check_training(setting: Setting, what: str, *of: Any) -> Row:
    """One of the checks of a training, by its name."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=setting.work or None) as folder, few_synthetic_tests():
        function = {"synchronisations": synchronisations, "observing": observing, "bits": same_bits}[what]
        return function(setting, Path(folder), *of)


@contextlib.contextmanager
def few_synthetic_tests() -> Iterator[None]:
    """Test on eight synthetic horses, not 64."""
    from fadeviz.data.synthetic import dataset as synthetic

    name = next(
        (name for name in vars(synthetic) if name.startswith("TEST_") and isinstance(vars(synthetic)[name], int)), ""
    )
    if not name:
        yield
        return
    before = getattr(synthetic, name)
    setattr(synthetic, name, 8)
    try:
        yield
    finally:
        setattr(synthetic, name, before)


def run_config(setting: Setting, **values: Any) -> Any:
    """Settings of a run; those that this version does not have are left out."""
    from fadeviz.experiment import RunConfig

    values = {"workers": 0, **values}  # processes that draw take longer to start than tiny runs to train
    known = {field.name for field in dataclasses.fields(RunConfig)}
    return RunConfig(device=setting.device, **{name: value for name, value in values.items() if name in known})


def synchronisations(setting: Setting, folder: Path, network: str) -> Row:
    """Where the host waits for the GPU in three training steps, by line."""
    from fadeviz.experiment import train

    found: Counter[str] = Counter()

    def show(message: Any, *args: Any, **kwargs: Any) -> None:
        if "called a synchronizing" in str(message):
            found[place_in_fadeviz()] += 1

    def report(progress: Any) -> None:
        if setting.cuda and progress.step in (3, 6):
            torch.cuda.set_sync_debug_mode("warn" if progress.step == 3 else "default")

    size, width = (32, 0.125) if setting.small else (64, 0.25)
    config = run_config(
        setting, network=network, upsampler="fade", size=size, width=width, steps=8, snapshots="8", evaluate_every=8,
        checkpoint_every=100,
    )  # fmt: skip
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        try:
            train(config, folder / "run", on_progress=report)
        finally:
            warnings.showwarning = before
            if setting.cuda:
                torch.cuda.set_sync_debug_mode("default")
    return {"what": "synchronisations", "network": network, "a step": sum(found.values()) / 3, "lines": dict(found)}


def place_in_fadeviz() -> str:
    """The innermost line of the package, and the innermost of all."""
    frames = [frame for frame in traceback.extract_stack()[:-2] if "/warnings.py" not in frame.filename]
    own = [frame for frame in frames if f"{ROOT}/fadeviz/" in frame.filename]
    at = own[-1] if own else frames[-1]
    inner = frames[-1]
    text = f"{at.filename.removeprefix(f'{ROOT}/')}:{at.lineno}"
    return text if inner is at else f"{text} ({Path(inner.filename).name}:{inner.lineno})"


def observing(setting: Setting, folder: Path, network: str, mode: str) -> Row:
    """A run that observes at steps 0, 1 and 2, every kind of map."""
    from fadeviz.experiment import train

    size, width = (32, 0.125) if setting.small else (64, 0.25)
    config = run_config(
        setting, network=network, upsampler="fade", size=size, width=width, steps=2, snapshots="1:2:1", kinds="all",
        observe_mode=mode, evaluate_every=2,
    )  # fmt: skip
    done = train(config, folder / "run")
    layer = next(iter(done.info.layers))
    finite = all(np.isfinite(done.read(2, layer, kind)).all() for kind in ("feature", "gradient"))
    return {"what": "observing", "network": network, "mode": mode, "steps": list(done.steps), "ok": finite}


def same_bits(setting: Setting, folder: Path, name: str, exact: bool) -> Row:
    """Whether four steps, trained twice, and interrupted and resumed, leave the same files."""
    from fadeviz.experiment import train

    values = {"deterministic": True} if exact else {}
    size, width = (32, 0.125) if setting.small else (64, 0.25)
    config = run_config(
        setting, upsampler=name, size=size, width=width, steps=4, snapshots="1:4:1", checkpoint_every=2,
        evaluate_every=4, **values,
    )  # fmt: skip
    by_setting = hasattr(config, "deterministic")

    def stop(progress: Any) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    unfit: set[str] = set()

    def show(message: Any, *args: Any, **kwargs: Any) -> None:
        if "deterministic" in str(message):
            unfit.add(str(message).split(" does not")[0][:60])

    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        if exact and not by_setting:
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            for label in ("a", "b"):
                train(config, folder / label)
            with contextlib.suppress(KeyboardInterrupt):
                train(config, folder / "c", on_progress=stop)
            train(config, folder / "c", resume=True)
        finally:
            warnings.showwarning = before
            torch.use_deterministic_algorithms(False)
    files = sorted(path.name for path in (folder / "a" / "snapshots").iterdir())
    same = {
        other: all(
            (folder / "a" / "snapshots" / file).read_bytes() == (folder / other / "snapshots" / file).read_bytes()
            for file in files
        )
        and losses(folder / "a") == losses(folder / other)
        for other in ("b", "c")
    }
    return {
        "what": "bits", "operator": name, "deterministic": exact, "twice": same["b"], "resumed": same["c"],
        "without": sorted(unfit),
    }  # fmt: skip


def losses(run: Path) -> list[float]:
    """The loss of every step of a run."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


# ----------------------------------------------------------------------------------------------------- 4: the kernels

PAPER = (16, 256, 64)
SEGNET = ((4, 64, 112), (4, 128, 56), (4, 256, 28), (4, 512, 14), (4, 512, 7))
"""Batch, channels and side of x at SegNet's five stages for images of 224 x 224."""


def stage_kernels(setting: Setting, rows: Rows) -> None:
    """Every form of reassembly, the most wanted first."""
    exact_fp32()
    cases = kernel_cases(setting)
    for case in cases:
        try:
            rows.add(**measure_kernel(setting, *case))
        except Exception as error:
            traceback.print_exc()
            of = dict(zip(("form", "shape", "precision", "layout"), case, strict=True))
            rows.add(what="reassembly", **of, error=first_line(error), ok=case[0] in ("mmcv", "compiled"))
        if setting.cuda:
            torch.cuda.empty_cache()


def kernel_cases(setting: Setting) -> list[tuple[str, tuple[int, int, int], str, str]]:
    """Form, shape, precision and layout of what is measured."""
    own = "triton" if setting.cuda else "tiles"
    if setting.small:
        return [(form, (1, 4, 4), "fp32", layout) for form in (own, "plain") for layout in LAYOUTS]
    last, plain = "channels-last", "contiguous"
    mmcv = (GPU_FILES / "mmcv").is_dir()
    cases = [(own, PAPER, precision, last) for precision in ("fp32", "fp16", "bf16")]
    cases += [("mmcv", PAPER, precision, plain) for precision in ("fp32", "fp16") if mmcv]
    cases += [("fused", PAPER, precision, last) for precision in ("fp32", "bf16")]
    cases += [(own, PAPER, precision, plain) for precision in ("fp32", "fp16")]
    cases += [(own, shape, "fp32", last) for shape in SEGNET]
    cases += [("mmcv", shape, "fp32", plain) for shape in SEGNET if mmcv]
    cases += [("tiles", PAPER, "fp32", last), ("plain", PAPER, "fp32", plain)]
    cases += [(own, shape, "bf16", last) for shape in SEGNET]
    cases += [("fused", PAPER, "fp32", plain), ("tiles", PAPER, "bf16", last)]
    cases += [("tiles", shape, "fp32", last) for shape in SEGNET[::2]]
    cases += [("compiled", PAPER, precision, plain) for precision in ("fp32", "fp16")]
    return cases


def plain_reassemble(x: Tensor, kernels: Tensor) -> Tensor:
    """Reassembly as it is written in torch's own operators."""
    b, c, h, w = x.shape
    windows = F.unfold(x, KERNEL_SIZE, padding=KERNEL_SIZE // 2).view(b, c, KERNEL_SIZE**2, h, w)
    windows = windows.repeat_interleave(SCALE, 3).repeat_interleave(SCALE, 4)
    return torch.einsum("bckhw,bkhw->bchw", windows, kernels)


@functools.cache
def compiled_reassemble() -> Callable[[Tensor, Tensor], Tensor]:
    """The plain form by torch's compiler."""
    return torch.compile(plain_reassemble, dynamic=False)


def reassembly_form(form: str) -> Callable[..., Tensor]:
    """A function of x and kernels; of x, logits, skip and gate for ``fused``."""
    from fadeviz.ops.reassemble import reassemble

    if form == "mmcv":
        import gpu_peer

        return functools.partial(gpu_peer.carafe, gpu_peer.build(), kernel_size=KERNEL_SIZE, scale=SCALE)
    if form == "fused":
        return lambda *given: torch.ops.fadeviz.fused(*given, KERNEL_SIZE, SCALE)[0]
    if form == "compiled":
        return compiled_reassemble()
    if form == "plain":
        return plain_reassemble
    return functools.partial(reassemble, kernel_size=KERNEL_SIZE, scale_factor=SCALE, backend=form)


def measure_kernel(setting: Setting, form: str, shape: tuple[int, int, int], precision: str, layout: str) -> Row:
    """Forward, and forward and backward, of one form, and the bytes that three kernels must move."""
    function, (b, c, n), dtype = reassembly_form(form), shape, DTYPES[precision]
    fused, taps = form == "fused", KERNEL_SIZE**2
    low, high, weights, pixels = (
        b * c * n * n,
        b * c * (SCALE * n) ** 2,
        b * taps * (SCALE * n) ** 2,
        b * (SCALE * n) ** 2,
    )
    # Each kernel reads its inputs and writes its outputs once: reassemble, similarity, spread.
    forward = low + weights + high + fused * (high + pixels)
    backward = (high + low + weights) + (high + weights + low) + fused * (2 * high + 3 * pixels + weights)
    itemsize = dtype.itemsize
    sets = max(1, min(6, math.ceil(200e6 / ((forward + high) * itemsize)))) if setting.cuda else 1

    calls_forward, calls_both = [], []
    for _ in range(sets):
        given, grad = kernel_inputs(setting, form, shape, precision, layout)
        calls_forward.append(torch.no_grad()(functools.partial(function, *given)))
        calls_both.append(functools.partial(_both, function, given, grad))
    start = time.perf_counter()
    calls_both[0]()
    synchronize(setting.device)
    row: Row = {"what": "reassembly", "form": form, "shape": shape, "precision": precision, "layout": layout}
    row |= {"first": time.perf_counter() - start, "forward": timed(calls_forward, setting.device)}
    row |= {"both": timed(calls_both, setting.device), "bytes": (forward + backward) * itemsize}
    row["forward bytes"] = forward * itemsize
    if setting.cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        calls_both[0]()
        row["peak"] = torch.cuda.max_memory_allocated() - before
        try:
            row |= {"forward graph": timed_graph(calls_forward), "both graph": timed_graph(calls_both)}
        except Exception as error:
            row["graph error"] = first_line(error)
    return row


def kernel_inputs(
    setting: Setting, form: str, shape: tuple[int, int, int], precision: str, layout: str
) -> tuple[list[Tensor], Tensor]:
    """x and kernels, skip and gate too for ``fused``; and the output's gradient."""
    (b, c, n), high, taps = shape, SCALE * shape[2], KERNEL_SIZE**2
    sizes = [(b, c, n, n), (b, taps, high, high)] + [(b, c, high, high), (b, 1, high, high)] * (form == "fused")
    made = [
        torch.randn(size, device=setting.device).to(DTYPES[precision]).contiguous(memory_format=LAYOUTS[layout])
        for size in [*sizes, (b, c, high, high)]
    ]
    return [t.requires_grad_() for t in made[:-1]], made[-1]


def _both(function: Callable[..., Tensor], given: Sequence[Tensor], grad: Tensor) -> object:
    return torch.autograd.grad(function(*given), given, grad)


def stage_prepare(setting: Setting, rows: Rows) -> None:
    """Compile what the measuring stages will use, so that they find it in Triton's cache."""
    import gpu_warm

    if setting.small:
        uses, cases = [gpu_warm.Use("fade", (1, 8, 3, 4))], []
    else:
        cases = [case for case in kernel_cases(setting) if case[0] in ("triton", "fused")]
        uses = [
            use
            for precision in ("fp32", "bf16")
            for name in ("fade", "carafe")
            for use in gpu_warm.segnet_uses(name, 4, precision)
        ]
    for task, result in spread_over(setting, prepare, [(case,) for case in (*cases, *uses)]):
        rows.add(
            what="prepared", of=task[0], **({"error": first_line(result)} if result.__class__ is not float else {})
        )


def prepare(setting: Setting, case: Any) -> float:
    """Run a kernel, or an operator, once; the seconds that it took."""
    import gpu_warm

    if isinstance(case, gpu_warm.Use):
        return gpu_warm.run_once(case, setting.device)
    start = time.perf_counter()
    form, shape, precision, layout = case
    given, grad = kernel_inputs(setting, form, shape, precision, layout)
    _both(reassembly_form(form), given, grad)
    synchronize(setting.device)
    return time.perf_counter() - start


def stage_peer(setting: Setting, rows: Rows) -> None:
    """Build mmcv's operator, and compare it with ours."""
    if not (GPU_FILES / "mmcv").is_dir():
        rows.add(what="peer", error="no .gpu/mmcv; fill it with scripts/gpu_data.py")
        return
    import gpu_peer

    from fadeviz.ops.reassemble import reassemble

    start = time.perf_counter()
    try:
        module = gpu_peer.build()
        row: Row = {"what": "peer", "seconds": time.perf_counter() - start}
        x, kernels = (torch.randn(size, device=setting.device) for size in ((2, 32, 9, 14), (2, 25, 18, 28)))
        for name, t in (("fp32", torch.float32), ("fp16", torch.float16)):
            theirs = gpu_peer.carafe(module, x.to(t), kernels.to(t), KERNEL_SIZE, SCALE)
            ours = reassemble(x.to(t).double(), kernels.to(t).double(), KERNEL_SIZE, SCALE, backend="tiles")
            row[name] = relative([theirs.double()], [ours])
        rows.add(**row)
    except Exception as error:
        traceback.print_exc()
        rows.add(what="peer", error=first_line(error))


# ------------------------------------------------------------------------------------------------------- 5: the steps


def stage_steps(setting: Setting, rows: Rows) -> None:
    """Training steps with the data on the device, then with the real pipeline."""
    for case in step_cases(setting):
        try:
            rows.add(**measure_step(setting, *case))
        except Exception as error:
            traceback.print_exc()
            rows.add(
                what="step", upsampler=case[0], batch=case[1], precision=case[2], error=first_line(error), ok=False
            )
        if setting.cuda:
            torch.cuda.empty_cache()
    compiled = any("error" not in row for row in read_rows(Path(setting.work) / "compile.jsonl"))
    for values in pipeline_cases(setting):
        if any(name.startswith("compile") for name in values) and not compiled:
            continue  # it would take the time that is left
        try:
            rows.add(**measure_pipeline(setting, values))
        except Exception as error:
            traceback.print_exc()
            rows.add(what="pipeline", **values, error=first_line(error), ok=False)


def step_cases(setting: Setting) -> list[tuple[str, int, str]]:
    """Operator, batch and precision."""
    if setting.small:
        return [("nearest", 2, "fp32")]
    cases = [(name, 4, "tf32") for name in ("nearest", "fade", "carafe", "bilinear", "max_unpool")]
    cases += [(name, 4, "bf16") for name in ("nearest", "fade", "carafe")]
    cases += [("fade", 16, "tf32"), ("fade", 16, "bf16"), ("nearest", 16, "tf32"), ("nearest", 4, "fp32")]
    return [*cases, ("fade", 4, "fp32"), ("carafe", 16, "tf32"), ("nearest", 16, "bf16"), ("carafe", 16, "bf16")]


def training_step(setting: Setting, upsampler: str, batch: int, precision: str) -> Callable[[], None]:
    """A step of SegNet on one batch that lies on the device; it waits for nothing."""
    from fadeviz.models import build_network

    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False  # as in fadeviz.experiment
    size, width = (32, 0.125) if setting.small else (224, 1.0)
    torch.manual_seed(0)
    model = build_network("segnet", upsampler, width=width).to(memory_format=torch.channels_last).to(setting.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    images = torch.randn(batch, 3, size, size, device=setting.device).contiguous(memory_format=torch.channels_last)
    masks = torch.randint(2, (batch, size, size), device=setting.device)
    dtype = DTYPES.get(precision, torch.float32)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(setting.device, dtype, enabled=dtype != torch.float32):
            out = model(images)
        F.cross_entropy(out.float(), masks).backward()
        optimizer.step()

    return step


def measure_step(setting: Setting, upsampler: str, batch: int, precision: str) -> Row:
    """Milliseconds of a step of SegNet, nothing waited for; in one CUDA graph; and what the profiler counts."""
    step = training_step(setting, upsampler, batch, precision)
    count = 2 if setting.small else 30
    for _ in range(2 if setting.small else 5):
        step()
    row: Row = {"what": "step", "upsampler": upsampler, "batch": batch, "precision": precision}
    if setting.cuda:
        torch.cuda.reset_peak_memory_stats()
    row["seconds"] = seconds_a_call(step, count, setting.device)
    if not setting.cuda:
        return row
    row["peak"] = torch.cuda.max_memory_allocated()
    if batch == 4 and upsampler in ("nearest", "fade", "carafe"):
        row |= profiled(step, row["seconds"])
    try:
        row["graph"] = seconds_in_graph(step)
    except Exception as error:
        traceback.print_exc()
        row["graph error"] = first_line(error)
    if upsampler == "fade" and batch == 4 and precision == "tf32":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
        for _ in range(3):
            step()
        row["seconds, cudnn.benchmark"] = seconds_a_call(step, count, setting.device)
    return row


def seconds_a_call(call: Call, count: int, device: str) -> float:
    """Of ``count`` calls one after the other, the GPU's end waited for once."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / count


def seconds_in_graph(step: Call) -> float:
    """Of a replay of the whole step."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    return seconds_a_call(graph.replay, 30, "cuda")


def profiled(step: Call, seconds: float, count: int = 5) -> Row:
    """Launches a step, seconds of kernels in it, the share of ``seconds`` that these fill, and the largest of them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(count):
            step()
        torch.cuda.synchronize()
    kernels = [
        event
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)  # those span kernels
        and not event.name.startswith(("Optimizer.", "ProfilerStep"))
    ]
    spent: Counter[str] = Counter()
    for event in kernels:
        spent[event.name] += event.time_range.elapsed_us()
    total = sum(spent.values()) / count / 1e6
    largest = {name[:80]: value / count / 1e6 for name, value in spent.most_common(12)}
    return {"launches": len(kernels) / count, "kernels": total, "busy": total / seconds, "largest": largest}


def stage_together(setting: Setting, rows: Rows) -> None:
    """How many steps a second several processes take together on one GPU: how many runs at a time pay."""
    counts = (1, 2) if setting.small else (1, 3, 5, 8)
    seconds = 0.5 if setting.small else 3.0
    folder = Path(setting.work)
    with ProcessPoolExecutor(counts[-1], multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(step_together, setting, number, counts, seconds) for number in range(counts[-1])]
        while len(list(folder.glob("ready-*"))) < counts[-1] and not any(one.done() for one in waiting):
            time.sleep(0.05)
        (folder / "start.partial").write_text(str(time.time() + 1))
        (folder / "start.partial").rename(folder / "start")
        taken = [one.result() for one in waiting]
    for number, count in enumerate(counts):
        rows.add(what="together", processes=count, rate=sum(steps[number] for steps in taken) / seconds)


def step_together(setting: Setting, number: int, counts: Sequence[int], seconds: float) -> list[int]:
    """The steps that process ``number`` takes in each of several spans, where it is among the processes at work."""
    folder = Path(setting.work)
    step = training_step(setting, "fade" if number % 2 == 0 else "nearest", 4, "tf32")
    for _ in range(3):
        step()
    synchronize(setting.device)
    (folder / f"ready-{number}").touch()
    while not (folder / "start").exists():
        time.sleep(0.02)
    start, taken = float((folder / "start").read_text()), []
    for span, count in enumerate(counts):
        begin = start + span * (seconds + 0.3)
        time.sleep(max(0.0, begin - time.time()))
        steps = 0
        while number < count and time.time() < begin + seconds:
            step()
            synchronize(setting.device)  # as a training that reads its loss
            steps += 1
        taken.append(steps)
    return taken


def pipeline_cases(setting: Setting) -> list[Row]:
    """What runs are given besides the data."""
    from fadeviz.experiment import RunConfig

    if setting.small:
        return [{"upsampler": "nearest"}]
    cases: list[Row] = [{"upsampler": name} for name in ("nearest", "fade", "carafe")]
    cases += [{"upsampler": "fade", "precision": "bf16"}]
    known = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    for name, on in (("tf32", True), ("compile", "reduce-overhead"), ("compiled", True)):
        if name in known:
            value = on if isinstance(known[name], type(on)) else True
            cases += [{"upsampler": "fade", name: value}]
    return cases


def stage_compile(setting: Setting, rows: Rows) -> None:
    """Compile the training step once, so that the run that is measured finds it in inductor's cache."""
    for values in pipeline_cases(setting):
        if not any(name.startswith("compile") for name in values):
            continue
        try:
            row = measure_pipeline(setting, values, steps=4)
            rows.add(what="compiled", **values, seconds=row["first step"])
        except Exception as error:
            traceback.print_exc()
            rows.add(what="compiled", **values, error=first_line(error))


def data_values(setting: Setting) -> Row:
    """The Weizmann Horse set where it is at hand, else synthetic horses."""
    folder = GPU_FILES / "weizmann"
    if folder.is_dir() and not setting.small:
        return {"data": "weizmann", "data_dir": str(folder)}
    return {"data": "synthetic"}


def measure_pipeline(setting: Setting, values: Row, steps: int = 140) -> Row:
    """Seconds a step of ``fadeviz.experiment.train`` between its tests and observations."""
    from fadeviz.experiment import train

    steps = 4 if setting.small else steps
    size, width = (32, 0.125) if setting.small else (224, 1.0)
    at: list[float] = []
    config = run_config(
        setting, size=size, width=width, steps=steps, snapshots=str(steps), evaluate_every=steps,
        checkpoint_every=10 * steps, workers=None, **data_values(setting), **values,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=setting.work or None) as folder, few_synthetic_tests():
        start = time.perf_counter()
        train(config, Path(folder) / "run", on_progress=lambda progress: at.append(time.perf_counter()))
        whole = time.perf_counter() - start
    between = at[len(at) // 4 : -1]  # the last step ends with a test, an observation and a checkpoint
    seconds = (between[-1] - between[0]) / max(1, len(between) - 1)
    row: Row = {"what": "pipeline", **values, "data": config.data, "seconds": seconds, "first step": at[0] - start}
    return row | {"whole": whole, "after the last": whole - (at[-2] - start)}


# ------------------------------------------------------------------------------------------------------- 6: recording


def stage_record(setting: Setting, rows: Rows) -> None:
    """The command itself, as a user runs it, and what run.json says of its seconds."""
    steps, size, width = ("6", "32", "0.125") if setting.small else ("300", "224", "1")
    values = data_values(setting)
    named = [word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", value)]
    weights = GPU_FILES / "vgg16_bn.safetensors"
    if weights.is_file() and not setting.small:
        named += ["--weights", str(weights)]
    for upsampler in ("nearest",) if setting.small else ("fade",):
        out = Path(setting.work) / f"record-{upsampler}"
        start = time.perf_counter()
        command = [
            sys.executable, "-c", "from fadeviz_cli.main import main; main()", "record", "--upsampler", upsampler,
            "--steps", steps, "--size", size, "--width", width, "--device", setting.device, "--out", str(out), *named,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        whole = time.perf_counter() - start
        print(done.stdout[-2000:], done.stderr[-2000:], flush=True)
        row: Row = {"what": "record", "upsampler": upsampler, "whole": whole, "ok": done.returncode == 0}
        if done.returncode == 0:
            info = json.loads((out / "run.json").read_text())
            row |= {"steps": int(steps), "seconds": info["seconds"], "result": info["result"], "device": info["device"]}
            row |= {"snapshots": len(info["schedule"]), "data": values["data"]}
        else:
            row["error"] = done.stderr.strip().splitlines()[-1:] or done.returncode
        rows.add(**row)
        shutil.rmtree(out, ignore_errors=True)


def stage_bench(setting: Setting, rows: Rows) -> None:
    """That ``fadeviz bench`` runs here; beside other stages, so that its times are too long."""
    out = Path(setting.work) / "bench.json"
    command = [sys.executable, "-c", "from fadeviz_cli.main import main; main()", "bench", "--quick", "-o", str(out)]
    command += ["--device", setting.device, "--part", "machine" if setting.small else "reassembly"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    row: Row = {"what": "bench", "ok": done.returncode == 0 and out.is_file()}
    rows.add(**row, **({} if row["ok"] else {"error": done.stderr.strip().splitlines()[-1:]}))


# ---------------------------------------------------------------------------------------------------------- 7: memory


def stage_memory(setting: Setting, rows: Rows) -> None:
    """compute-sanitizer's memcheck over the kernels at tiny odd shapes."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    command = [sys.executable, __file__, "--device", setting.device, "--only-kernels"]
    if setting.cuda:
        if not Path(tool).exists():
            rows.add(what="memcheck", error="no compute-sanitizer here")
            return
        command = [tool, "--tool", "memcheck", "--error-exitcode", "9", "--print-limit", "20", *command]
    start = time.perf_counter()
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    print(done.stdout[-6000:], done.stderr[-3000:], flush=True)
    said = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line or "kernels ran" in line]
    rows.add(
        what="memcheck", code=done.returncode, said=said, seconds=time.perf_counter() - start, ok=done.returncode == 0
    )


def only_kernels(setting: Setting) -> None:
    """Forward and backward of every kernel, small enough to run under a memory checker."""
    from fadeviz.ops.reassemble import reassemble

    backend, count = ("triton" if setting.cuda else "tiles"), 0
    for dtype in (torch.float32, torch.bfloat16):
        for layout in LAYOUTS.values():
            for b, c, h, w in ((1, 3, 2, 5), (2, 20, 5, 9)):
                sizes = ((b, c, h, w), (b, 25, 2 * h, 2 * w), (b, c, 2 * h, 2 * w), (b, 1, 2 * h, 2 * w))
                made = [torch.randn(s).to(setting.device, dtype).contiguous(memory_format=layout) for s in sizes]
                x, kernels, skip, gate = (t.requires_grad_() for t in made)
                y = reassemble(x, kernels, KERNEL_SIZE, SCALE, backend=backend)
                torch.autograd.grad(y, [x, kernels], torch.ones_like(y))
                count += 3
                if setting.cuda:
                    for given in ((x, kernels, skip, gate), (x, kernels, None, None)):
                        y = torch.ops.fadeviz.fused(*given, KERNEL_SIZE, SCALE)[0]
                        torch.autograd.grad(y, [t for t in given if t is not None], torch.ones_like(y))
                        count += 3
    synchronize(setting.device)
    print(f"{count} kernels ran")


# ---------------------------------------------------------------------------------------------------------- 8: tuning


def stage_tune(setting: Setting, rows: Rows) -> None:
    """Which division of their work suits the kernels here: ``scripts/tune_triton.py``."""
    out = Path(setting.work) / "tuned.json"
    command = [sys.executable, str(ROOT / "scripts" / "tune_triton.py"), "--out", str(out)]
    done = subprocess.run([*command, *["--dry-run"] * setting.small], capture_output=True, text=True, check=False)
    print(done.stdout[-20000:], done.stderr[-3000:], flush=True)
    found = json.loads(out.read_text()) if out.is_file() else None
    rows.add(what="tuned", said=done.stdout.strip().splitlines()[-14:], found=found, ok=done.returncode == 0)


# ---------------------------------------------------------------------------------------------------------- the stages


@dataclass(frozen=True)
class Stage:
    """What runs in a process of its own."""

    number: int
    title: str
    function: Callable[[Setting, Rows], None]
    limit: float
    """Seconds."""
    processes: int = 0


STAGES = {
    "machine": Stage(0, "machine", stage_machine, 45),
    "tests": Stage(1, "tests on the GPU", stage_tests, 110),
    "operators": Stage(2, "operators against float64", stage_operators, 90, processes=13),
    "training": Stage(3, "training", stage_training, 90, processes=8),
    "prepare": Stage(4, "kernels are compiled", stage_prepare, 70, processes=13),
    "peer": Stage(4, "mmcv's operator is built", stage_peer, 90),
    "kernels": Stage(4, "kernels", stage_kernels, 70),
    "steps": Stage(5, "training steps", stage_steps, 80),
    "together": Stage(5, "several processes on one GPU", stage_together, 50),
    "compile": Stage(5, "the training step is compiled", stage_compile, 110),
    "record": Stage(6, "fadeviz record", stage_record, 45),
    "bench": Stage(6, "fadeviz bench", stage_bench, 85),
    "memory": Stage(7, "memcheck", stage_memory, 90),
    "tune": Stage(8, "the kernels are tuned", stage_tune, 110),
}

ROUNDS = "machine,operators+peer,prepare,kernels,steps,together,record,tests,training+memory"
"""What ``make gpu`` runs. What is compiled by one is found in Triton's cache by those that follow."""


def parse_rounds(text: str) -> list[list[tuple[str, float]]]:
    """The stages of each round with their limits: ``machine,operators+peer:60`` is two rounds, the second of two."""
    rounds = []
    for part in text.split(","):
        together = []
        for one in part.split("+"):
            name, _, seconds = one.strip().partition(":")
            name = next((key for key, stage in STAGES.items() if name == str(stage.number)), name)
            if name not in STAGES:
                raise SystemExit(f"no stage {name!r}. There are: {', '.join(STAGES)}")
            together.append((name, float(seconds or STAGES[name].limit)))
        rounds.append(together)
    return rounds


@dataclass
class Running:
    """A stage at work."""

    name: str
    process: subprocess.Popen[bytes]
    started: float
    limit: float
    ended: float = 0.0
    status: str = ""


def main() -> None:
    """Run the stages, leave the results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ["OUT"]) if os.environ.get("OUT") else ROOT / "outputs" / "gpu"
    parser.add_argument("--out", type=Path, default=default, help="default: $OUT, or outputs/gpu")
    parser.add_argument(
        "--stages", default=ROUNDS, metavar="NAME[:SECONDS],...",
        help=f"in this order, those joined by + side by side, each with its limit; default: {ROUNDS}; also: "
        f"{', '.join(name for name in STAGES if name not in ROUNDS)}",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of them together; default: 9")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to rehearse")
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # what a stage's own process is called with
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=1e6, help=argparse.SUPPRESS)
    parser.add_argument("--only-kernels", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    seconds = options.seconds - (time.monotonic() - BEGUN)
    setting = Setting(options.device, options.small, options.work, seconds=seconds)
    if options.only_kernels:
        only_kernels(setting)
    elif options.stage:
        stage = STAGES[options.stage]
        setting = dataclasses.replace(setting, processes=0 if options.small else stage.processes)
        stage.function(setting, Rows(Path(options.work) / f"{options.stage}.jsonl"))
    else:
        sys.exit(run_all(options))


def run_all(options: argparse.Namespace) -> int:
    """Every chosen stage, each in its process."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here. To rehearse: gpu_check.py --device cpu --small")
    deadline = time.monotonic() + 60 * options.minutes
    rounds = parse_rounds(options.stages)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "gpu_check.log"
    log.unlink(missing_ok=True)
    results: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        environment = stage_environment(Path(work))
        for together in rounds:
            for done in run_round(together, options, Path(work), environment, deadline):
                rows = read_rows(Path(work) / f"{done.name}.jsonl")
                results[done.name] = {
                    "status": done.status, "seconds": round(done.ended - done.started, 1), "rows": rows,
                }  # fmt: skip
                keep_log(Path(work) / f"{done.name}.log", log, done.name)
                (options.out / "gpu_check.json").write_text(json.dumps(results, indent=1))
                (options.out / "gpu_check.txt").write_text(table(results) + "\n")
                print(f"[{done.name}] {done.status} after {done.ended - done.started:.0f} s", flush=True)
    print("\n" + table(results), flush=True)
    return 0 if all_well(results) else 1


def stage_environment(work: Path) -> dict[str, str]:
    """For a stage's process: the package and its command line from the checkout, few threads, own caches."""
    (work / "site").mkdir()
    (work / "site" / "fadeviz_cli").symlink_to(ROOT / "cli")  # as it is installed: no module called cli
    paths = [str(work / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "4", "PYTHONUNBUFFERED": "1",
        "FADEVIZ_PEER": str(work / "peer"), **os.environ, "PYTHONPATH": os.pathsep.join(paths),
    }  # fmt: skip


def run_round(
    together: Sequence[tuple[str, float]],
    options: argparse.Namespace,
    work: Path,
    environment: dict[str, str],
    deadline: float,
) -> Iterator[Running]:
    """Run stages side by side, and give each when it has ended, was stopped, or found no time."""
    at_work: list[Running] = []
    for name, limit in together:
        started = time.monotonic()
        limit = min(limit, deadline - started)
        if deadline - started < (1 if options.small else 8):
            yield Running(name, None, started, 0, started, "no time left")  # type: ignore[arg-type]
            continue
        command = stage_command(name, options, work, limit)
        with (work / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
            )
        at_work.append(Running(name, process, started, limit))
    try:
        while at_work:
            time.sleep(0.1)
            for one in list(at_work):
                now = time.monotonic()
                code = one.process.poll()
                if code is None and now - one.started < one.limit:
                    continue
                one.ended = now
                one.status = (
                    "ok" if code == 0 else f"stopped at {one.limit:.0f} s" if code is None else f"exit code {code}"
                )
                stop(one.process)
                at_work.remove(one)
                yield one
    finally:
        for one in at_work:
            stop(one.process)


def stage_command(name: str, options: argparse.Namespace, work: Path, limit: float) -> list[str]:
    """This script once more, for one stage."""
    command = [sys.executable, __file__, "--stage", name, "--work", str(work), "--seconds", str(limit)]
    return [*command, "--device", options.device, *["--small"] * options.small]


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a stage with all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_rows(path: Path) -> list[Row]:
    """What a stage wrote; a line that was cut off is left out."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def keep_log(source: Path, log: Path, name: str, limit: int = 1 << 20) -> None:
    """Add the end of a stage's log to the one that is kept."""
    with contextlib.suppress(FileNotFoundError), log.open("ab") as file:
        text = source.read_bytes()
        file.write(f"\n===== {name}\n".encode() + text[-limit:])


def all_well(results: dict[str, Row]) -> bool:
    """Whether every stage ended well and every check held."""
    return all(one["status"] == "ok" and all(row.get("ok", True) for row in one["rows"]) for one in results.values())


# ----------------------------------------------------------------------------------------------------------- the table


def table(results: dict[str, Row], limit: int = 7800) -> str:
    """All in a few lines a stage; the whole is in the JSON file."""
    lines = []
    for name, one in results.items():
        failed = sum(not row.get("ok", True) for row in one["rows"])
        state = f"{one['status']}, {one['seconds']:.0f} s" + (f", {failed} FAILED" if failed else "")
        lines.append(f"== {name}, {STAGES[name].title}: {state}")
        try:
            lines += _TABLES[name](one["rows"], results)
        except Exception as error:
            lines.append(f"   (no table: {first_line(error)})")
    text = "\n".join(line[:220] for line in lines)
    return text if len(text) <= limit else text[: limit - 40] + "\n... (all of it in gpu_check.json)"


def _of(rows: Sequence[Row], what: str) -> list[Row]:
    return [row for row in rows if row.get("what") == what]


def _machine_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    lines = []
    for row in rows:
        told = {key: value for key, value in row.items() if key != "what"}
        if row["what"] == "copy":
            lines.append(f"   copy {row['rate'] / 1e12:.2f} TB/s (read and written)")
        elif row["what"] == "launch":
            lines.append(f"   a launch {row['seconds'] * 1e6:.1f} us")
        elif row["what"] != "matmul":
            lines.append(f"   {row['what']}: " + ", ".join(f"{key} {value}" for key, value in told.items()))
    rates = ", ".join(f"{row['precision']} {row['rate'] / 1e12:.0f}" for row in _of(rows, "matmul"))
    return [*lines, f"   matrix products, TFLOP/s: {rates}"]


def _tests_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    lines = [f"   {row}" for row in _of(rows, "tests")]
    said = {row["test"]: row["message"] for row in _of(rows, "message")}
    bad = {row.get("test", row["what"]): row for row in rows if not row.get("ok", True) and row["what"] != "tests"}
    for name, row in list(bad.items())[:20]:
        lines.append(f"   {name}: {said.get(name, row.get('message', ''))[:110]!r}")
    return lines + ([f"   ... and {len(bad) - 20} more"] if len(bad) > 20 else [])


def _operators_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    lines = []
    for precision in DTYPES:
        mine = [row for row in rows if row.get("precision") == precision and "error" not in row]
        if mine:
            worst = {
                key: max(mine, key=lambda row, key=key: row.get(key, 0)) for key in ("out", "x", "skip", "parameters")
            }
            told = ", ".join(f"{key} {row.get(key, 0):.1e} ({row['operator']})" for key, row in worst.items())
            lines.append(f"   {precision}: {len(mine)} cases; worst {told}")
    bad = [row for row in rows if not row.get("ok", True)]
    for row in bad[:14]:
        errors = {key: f"{row[key]:.1e}" for key in ("out", "x", "skip", "parameters") if key in row}
        place = f"{row['operator']} {tuple(row['shape'])} {row.get('precision', '')} {row.get('layout', '')}"
        lines.append(f"   BAD {place}{' poisoned' * bool(row.get('poisoned'))}: {row.get('error', errors)}")
    return lines + ([f"   ... and {len(bad) - 14} more"] if len(bad) > 14 else [])


def _training_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    lines = []
    for row in _of(rows, "synchronisations"):
        if "error" not in row:
            places = ", ".join(f"{place} x{count}" for place, count in list(row["lines"].items())[:6])
            lines.append(f"   {row['network']}: {row['a step']:.1f} synchronisations a step: {places}")
    for exact in (False, True):
        mine = [row for row in _of(rows, "bits") if row.get("deterministic") == exact]
        differ = [row["operator"] for row in mine if not row["twice"]]
        resumed = [row["operator"] for row in mine if not row["resumed"]]
        how = "deterministic" if exact else "as usual"
        same = f"{len(mine) - len(differ)} of {len(mine)} operators train to the same bits twice"
        lines.append(f"   {how}: {same}, not {','.join(differ) or '-'}; resumed, not {','.join(resumed) or '-'}")
    lines.append(
        f"   observing: {sum(row.get('ok', False) for row in _of(rows, 'observing'))} of {len(_of(rows, 'observing'))}"
    )
    return lines + [f"   BAD {row['what']} {row.get('of', '')}: {row['error']}" for row in rows if "error" in row][:8]


def _kernels_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    rate = next((row["rate"] for row in _of(results.get("machine", {}).get("rows", []), "copy")), math.nan)
    lines = [
        "   form      shape           precision layout          fwd us  both us (in a graph)  floor us  times  MB peak"
    ]
    for row in rows:
        place = f"   {row['form']:9} {'x'.join(map(str, row['shape'])):15} {row['precision']:9} {row['layout']:13}"
        if "error" in row:
            lines.append(f"{place} {row['error'][:90]}")
            continue
        floor, graph = row["bytes"] / rate, row.get("both graph", math.nan)
        best = graph if graph == graph else row["both"]
        lines.append(
            f"{place} {row['forward'] * 1e6:8.0f} {row['both'] * 1e6:8.0f} ({graph * 1e6:8.0f}) "
            f"     {floor * 1e6:8.0f} {best / floor:6.2f} {row.get('peak', 0) / 1e6:8.0f}"
        )
    return lines


def _prepare_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    return [f"   {row['of']}: {row['error']}" for row in rows if "error" in row][:4]


def _plain_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    return [f"   { ({key: value for key, value in row.items() if key != 'what'}) }" for row in rows]


def _steps_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    lines = ["   operator    batch precision   ms  graph ms  busy  kernel ms  launches  GB peak"]
    for row in _of(rows, "step"):
        place = f"   {row['upsampler']:11} {row['batch']:5} {row['precision']:9}"
        if "error" in row:
            lines.append(f"{place} {row['error'][:100]}")
            continue
        ms = {key: row.get(key, math.nan) * 1e3 for key in ("seconds", "graph", "kernels")}
        lines.append(
            f"{place} {ms['seconds']:6.2f}  {ms['graph']:6.2f} {row.get('busy', math.nan):7.2f} {ms['kernels']:8.2f} "
            f"{row.get('launches', math.nan):8.0f} {row.get('peak', 0) / 1e9:8.2f}"
            + (
                f"  cudnn.benchmark {row['seconds, cudnn.benchmark'] * 1e3:.2f}"
                if "seconds, cudnn.benchmark" in row
                else ""
            )
        )
    for row in _of(rows, "pipeline"):
        told = {key: value for key, value in row.items() if key not in ("what", "seconds", "error", "ok")}
        said = row.get("error") or f"{row['seconds'] * 1e3:.2f} ms a step"
        short = ", ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in told.items())
        lines.append(f"   run(): {said}; {short}")
    return lines


def _together_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    return ["   " + ", ".join(f"{row['processes']} processes {row['rate']:.0f} steps/s" for row in rows)]


def _tune_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    return [f"   {line}" for row in rows for line in row["said"]]


def _record_lines(rows: Sequence[Row], results: dict[str, Row]) -> list[str]:
    lines = []
    for row in rows:
        spent = ", ".join(f"{key} {value:.1f} s" for key, value in row.get("seconds", {}).items())
        told = row.get("error") or f"{row['steps']} steps in {row['whole']:.1f} s: {spent}; {row['result']}"
        lines.append(f"   {row['upsampler']}: {told}")
    return lines


_TABLES: dict[str, Callable[[Sequence[Row], dict[str, Row]], list[str]]] = {
    "machine": _machine_lines, "tests": _tests_lines, "operators": _operators_lines, "training": _training_lines,
    "prepare": _prepare_lines, "peer": _plain_lines, "compile": _plain_lines, "bench": _plain_lines,
    "memory": _plain_lines, "kernels": _kernels_lines, "steps": _steps_lines, "together": _together_lines,
    "record": _record_lines, "tune": _tune_lines,
}  # fmt: skip


if __name__ == "__main__":
    main()
