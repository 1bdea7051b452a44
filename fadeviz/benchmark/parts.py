"""The parts of a benchmark: each yields its tables as they are finished."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..recording.probe import Probe
from ..render.animation import write_animation
from ..render.grid import write_grid
from ..storage.snapshots import SnapshotStore
from ..upsamplers import all_upsamplers
from .cases import (
    KERNEL_SIZE,
    LAYOUTS,
    PEERS,
    PLAIN,
    SCALE,
    adding_one,
    arithmetic,
    both,
    copying,
    dtype_of,
    fits,
    forward,
    fused_function,
    multiplying,
    operator_calls,
    operator_inputs,
    plain_layout,
    random_batch,
    reassembly_forms,
    reassembly_function,
    reassembly_inputs,
    resident_step,
    start_training,
    synthetic_run,
)
from .memory import MeasuringProcess, peak_extra_bytes, question_call
from .plan import PRECISIONS, REFERENCES, Plan, Shape, StepCase
from .timing import (
    Call,
    Clock,
    Timing,
    block_clock,
    copies_past_cache,
    device_clock,
    first_line,
    host_clock,
    launches,
    rotating,
    summary,
    time_in_turns,
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A table of one part: rows of raw values, in seconds and bytes, and notes on them."""

    part: str
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """The settings that all parts share.

    Attributes:
        plan: the shapes, rounds and times.
        device: the device to measure.
        process: measures memory on a CPU.
        upsamplers: the operators of the parts ``operators`` and ``step``; None takes all of them.
        compiled: whether torch.compile of the plain form is a candidate.
    """

    plan: Plan
    device: torch.device
    process: MeasuringProcess
    upsamplers: tuple[str, ...] | None = None
    compiled: bool = False

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU, which has its own clock, and whose memory torch counts."""
        return self.device.type == "cuda"

    def time(
        self, candidates: Mapping[str, Call], peers: Collection[str] = (), clock: Clock = host_clock
    ) -> tuple[dict[str, Timing], list[str]]:
        """Time the candidates for as long as the plan specifies."""
        plan = self.plan
        return time_in_turns(candidates, self.device, plan.rounds, plan.turn, plan.budget, peers, clock)

    def time_kernels(
        self, candidates: Mapping[str, Call], peers: Collection[str] = ()
    ) -> tuple[dict[str, Timing], list[str]]:
        """Time the device's work alone: on CUDA by events."""
        return self.time(candidates, peers, device_clock if self.cuda else host_clock)

    def peak(self, question: dict[str, Any]) -> tuple[int | None, list[str]]:
        """The peak of extra memory that a question asks for, in bytes, or the reason why it is unknown."""
        if not self.cuda:
            return self.process.peak(question)
        try:
            call = question_call(question, Shape(*question["shape"]), self.device)
            return peak_extra_bytes(call, self.device), []
        except Exception as error:
            return None, [first_line(error)]


def measure_machine(setting: Setting) -> Iterator[Result]:
    """The bounds: copies, large and in the cache, and a matrix product; on CUDA in every precision, and a launch."""
    plan, device = setting.plan, setting.device
    calls, work = {}, {}
    for size in (plan.copy_bytes, 4 << 20):
        name = f"copy, {size / 2**20:g} MiB read and written"
        calls[name], work[name] = copying(size, device), (size / 1e9, "GB/s")
    flops = 2 * plan.matmul_side**3 / 1e9
    rows = []
    for precision in PRECISIONS if setting.cuda else ("fp32",):
        name = f"{precision} matrix product of side {plan.matmul_side}"
        calls[name], work[name] = multiplying(plan.matmul_side, device, dtype_of(precision)), (flops, "GFLOP/s")
        with arithmetic(precision):
            timings, _ = setting.time_kernels(calls)
        for name, timing in timings.items():
            amount, unit = work[name]
            rows.append({"what": name, "rate": amount / timing.best, "unit": unit, "seconds": _seconds(timing)})
        calls = {}
    if setting.cuda:
        timings, _ = setting.time_kernels({"launches of a small kernel by torch": adding_one(_LAUNCHES, device)})
        for name, timing in timings.items():
            rate = 1e-3 * _LAUNCHES / (timing.host or timing.median)
            rows.append({"what": name, "rate": rate, "unit": "k/s", "seconds": _seconds(timing)})
    yield Result("machine", "bounds of the machine", tuple(rows))


_LAUNCHES = 100


def measure_reassembly(setting: Setting) -> Iterator[Result]:
    """Every form of reassembly at every shape: times, rates, share of the bound, memory; and the very first call."""
    # Before the process measures anything else. On CUDA every row has its first call, and memory is counted here.
    first = {} if setting.cuda else setting.process.first_call()
    for shape in setting.plan.reassembly:
        for precision, fused in itertools.product(setting.plan.precisions, (False, True)[: 1 + setting.plan.fused]):
            rows, notes = _reassembly_times(setting, shape, precision, fused)
            for row in rows:
                if row["pass"] == "forward+backward" and row["form"] != "compiled":
                    notes += _add_memory(setting, shape, row)
            if first:
                if "error" in first:
                    notes.append(f"first call: {first['error']}")
                else:
                    seconds = _seconds(summary([first["seconds"]], first["seconds"]))
                    rows.append({"pass": "first call ever", "form": first["backend"], "layout": "", "seconds": seconds})
                first = {}
            what = "softmax, reassembly and gate" if fused else "reassembly"
            title = (
                f"{what} of {shape} by {KERNEL_SIZE}x{KERNEL_SIZE} kernels to side {SCALE * shape.side}, {precision}"
            )
            yield Result("reassembly", title, tuple(rows), tuple(notes))


def _reassembly_times(setting: Setting, shape: Shape, precision: str, fused: bool) -> tuple[list[Row], list[str]]:
    """A row for each pass, form and layout; and notes on what failed."""
    device, cuda = setting.device, setting.cuda
    forms = [form for form in reassembly_forms(device) if fits(form, precision)]
    if setting.compiled:
        torch.compiler.reset()  # its limit on how often a function is compiled counts all shapes
        forms.append("compiled")
    candidates = {
        f"{form}, {layout}": (form, layout)
        for form in forms
        for layout in (["contiguous"] if form in PEERS else LAYOUTS)
    }
    # On a GPU a kernel that fails is a result among others.
    peers = [name for name, (form, _) in candidates.items() if form in PEERS or cuda]
    functions: dict[str, Callable[..., Tensor]] = {
        form: fused_function(form) if fused else reassembly_function(form) for form in forms
    }
    sizes, width = moved_values(shape, fused), dtype_of(precision).itemsize
    sets = copies_past_cache(width * sizes["forward"], device)
    inputs = {
        layout: [reassembly_inputs(shape, layout, device, precision, fused) for _ in range(sets)] for layout in LAYOUTS
    }
    rows: list[Row] = []
    notes: list[str] = []
    passes: dict[str, tuple[Callable[..., Call], int]] = {"forward": (forward, 1), "forward+backward": (both, 3)}
    for name, (bind, sums) in passes.items():
        calls = {
            label: rotating([bind(functions[form], *tensors) for tensors in inputs[layout]])
            for label, (form, layout) in candidates.items()
        }
        work = _Work(flops=2 * sums * multiply_adds(shape), moved_bytes=width * sizes[name])
        timings, bounds, failed = _time_beside_bounds(setting, calls, work, peers)
        notes += [f"{name}: {line}" for line in failed]
        if "compiled, contiguous" in timings:
            notes.append(f"{name}: compiling the plain form took {timings['compiled, contiguous'].first:.0f} s")
        for label, timing in timings.items():
            form, layout = candidates[label]
            row = {"shape": list(shape), "pass": name, "form": form, "layout": layout, "precision": precision}
            rows.append({**row, "fused": fused, **_rates(timing, timings.get("plain, contiguous"), work, bounds)})
    return rows, notes


class _Work(NamedTuple):
    """The least work of a call: floating-point operations, and bytes read and written."""

    flops: int
    moved_bytes: int


def _time_beside_bounds(
    setting: Setting, calls: Mapping[str, Call], work: _Work, peers: Collection[str]
) -> tuple[dict[str, Timing], dict[str, float], list[str]]:
    """Time the calls; and in the same turns a copy and a matrix product, which bound the seconds that they need."""
    # On a GPU neither a copy nor a product of so few values shows what the device can do.
    side = setting.plan.matmul_side if setting.cuda else _SIDE
    copied = setting.plan.copy_bytes if setting.cuda else work.moved_bytes
    bounds = {"copy": copying(copied, setting.device), "fma": multiplying(side, setting.device)}
    with arithmetic("fp32"):
        timings, failed = setting.time_kernels({**calls, **bounds}, peers)
    seconds = {
        "copy": timings.pop("copy").best * work.moved_bytes / copied,
        "fma": work.flops * timings.pop("fma").best / (2 * side**3),
    }
    return timings, seconds, failed


def _rates(timing: Timing, plain: Timing | None, work: _Work, bounds: Mapping[str, float]) -> Row:
    """The columns of a timing: seconds, rates, and how near it comes to the bounds."""
    binds = max(bounds, key=lambda bound: bounds[bound])
    return {
        "seconds": _seconds(timing),
        "times_plain": None if plain is None else plain.median / timing.median,
        "gflops": work.flops / timing.median / 1e9,
        "gbytes": work.moved_bytes / timing.median / 1e9,
        "copy_seconds": bounds["copy"],
        "fma_seconds": bounds["fma"],
        "bound_seconds": bounds[binds],
        "binds": binds,
        "share_of_bound": bounds[binds] / timing.median,
        "best_share_of_bound": bounds[binds] / timing.best,
    }


_SIDE = 512


def multiply_adds(shape: Shape) -> int:
    """The multiply-adds of one weighted sum: a window for every output value, without products beyond x's border."""
    b, c, n = shape
    reach = KERNEL_SIZE // 2
    inside = sum(min(i + reach, n - 1) - max(i - reach, 0) + 1 for i in range(n))  # windows' rows, or their columns
    return b * c * (SCALE * inside) ** 2


def moved_values(shape: Shape, fused: bool) -> dict[str, int]:
    """The least number of values that each pass reads and writes; ``given``: those of the inputs and the gradient."""
    b, c, n = shape
    high = b * (SCALE * n) ** 2
    x, w, y, gate = b * c * n * n, KERNEL_SIZE**2 * high, c * high, high
    inputs = x + w + (y + gate if fused else 0)
    # Forward reads the inputs and writes y. Backward reads them and y's gradient, and writes a gradient of each.
    return {"forward": inputs + y, "forward+backward": 3 * inputs + 2 * y, "operands": inputs + y}


def _add_memory(setting: Setting, shape: Shape, row: Row) -> list[str]:
    """Fill in the memory columns; returns the reason if memory cannot be measured."""
    form, layout, precision, fused = (row[key] for key in ("form", "layout", "precision", "fused"))
    question = {"what": "reassembly", "form": form, "layout": layout, "shape": shape}
    if (precision, fused) != ("fp32", False):
        question |= {"precision": precision, "fused": fused}
    extra, why = setting.peak(question)
    held = dtype_of(precision).itemsize * moved_values(shape, fused)["operands"]  # and as much again for the results
    row |= {"extra_bytes": extra, "held_bytes": held, "needed_bytes": 2 * held}
    row["memory_ratio"] = None if extra is None else (held + extra) / (2 * held)
    return [f"memory of {form}, {layout}: {line}" for line in why]


def measure_operators(setting: Setting) -> Iterator[Result]:
    """Every operator at every shape, forward and backward, and its memory; CARAFE and FADE in their plain form too."""
    plan = setting.plan
    for shape, precision in itertools.product(plan.operators, plan.precisions):
        rows, notes = _operator_rows(setting, shape, precision)
        title = f"operators on {shape} to side {SCALE * shape.side}, {precision}"
        yield Result("operators", title, tuple(rows), tuple(notes))


def _operator_rows(setting: Setting, shape: Shape, precision: str) -> tuple[list[Row], list[str]]:
    device, layouts = setting.device, setting.plan.operator_layouts
    names = setting.upsamplers or tuple(all_upsamplers())
    candidates = {
        name if layout == layouts[0] else f"{name}, {layout}": (name, False, layout)
        for layout in layouts
        for name in names
    }
    candidates |= {f"{name}, plain form": (name, True, plain_layout(True)) for name in PLAIN if name in names}
    peers = [label for label, (_, plain, _) in candidates.items() if plain or setting.cuda]
    b, c, n = shape
    sets = copies_past_cache(dtype_of(precision).itemsize * b * c * n * n * (1 + 2 * SCALE**2), device)
    inputs = {layout: [operator_inputs(shape, layout, device, precision) for _ in range(sets)] for layout in LAYOUTS}
    calls = {label: operator_calls(name, plain, *inputs[layout]) for label, (name, plain, layout) in candidates.items()}
    with arithmetic("fp32"):
        one_way, failed = setting.time_kernels({label: call[0] for label, call in calls.items()}, peers)
        both_ways, failed_back = setting.time_kernels({label: calls[label][1] for label in one_way}, peers)
    rows: list[Row] = []
    notes = [*failed, *failed_back]
    for label in both_ways:
        name, plain, layout = candidates[label]
        question = {"what": "operator", "operator": name, "plain": plain, "shape": shape}
        if precision != "fp32" or layout != plain_layout(plain):
            question |= {"precision": precision, "layout": layout}
        extra, why = setting.peak(question)
        notes += [f"memory of {label}: {line}" for line in why]
        row: Row = {
            "shape": list(shape),
            "operator": f"{name}, plain form" if plain else name,
            "layout": layout,
            "precision": precision,
            "forward": _seconds(one_way[label]),
            "forward+backward": _seconds(both_ways[label]),
            "extra_bytes": extra,
        }
        slow = f"{name}, plain form"
        if slow in both_ways:
            pairs = ((one_way[slow], one_way[label]), (both_ways[slow], both_ways[label]))
            row["times_plain"] = [plain_time.median / own.median for plain_time, own in pairs]
        rows.append(row)
    return rows, notes


def measure_step(setting: Setting) -> Iterator[Result]:
    """A training step with every operator, or with a few of them."""
    for case in setting.plan.steps:
        names = setting.upsamplers or (tuple(all_upsamplers()) if case.every else REFERENCES)
        yield _steps_on_cuda(setting, case, names) if setting.cuda else _steps(setting, case, names)


def _steps(setting: Setting, case: StepCase, names: Sequence[str]) -> Result:
    """Steps as a training takes them, one by one."""
    names = tuple(dict.fromkeys((REFERENCES[0], *names)))
    timings, _ = setting.time({name: partial(next, start_training(name, case, setting.device)[1]) for name in names})
    return Result("step", f"a training step of {case}", tuple(_step_rows(timings, case)))


def _steps_on_cuda(setting: Setting, case: StepCase, names: Sequence[str]) -> Result:
    """Steps in blocks, with synchronisation after each block only; and the launches and the memory of a step."""
    names = tuple(dict.fromkeys((REFERENCES[0], "nearest", *names)))
    notes: list[str] = []
    with arithmetic(case.precision):
        calls = {name: resident_step(name, case, setting.device) for name in names}
        plan = dataclasses.replace(setting.plan, turn=10 * setting.plan.turn, budget=10 * setting.plan.budget)
        timings, failed = dataclasses.replace(setting, plan=plan).time(calls, peers=names, clock=block_clock)
        notes += failed
        rows = _step_rows(timings, case)
        for row in rows:
            call = calls[row["operator"]]
            row["extra_bytes"] = peak_extra_bytes(call, setting.device)
            try:
                row["launches"], row["device_seconds"] = launches(call, setting.device)
            except RuntimeError as error:  # the profiler needs one of CUDA's libraries, and permissions
                notes.append(f"launches of {row['operator']}: {first_line(error)}")
    return Result("step", f"a training step of {case}, its batch on the device", tuple(rows), tuple(notes))


def _step_rows(timings: Mapping[str, Timing], case: StepCase) -> list[Row]:
    rows: list[Row] = []
    for name, timing in timings.items():
        row: Row = {"operator": name, "seconds": _seconds(timing)}
        for reference in (REFERENCES[0], "nearest"):
            if reference in timings:
                row[f"times_{reference}"] = timing.median / timings[reference].median
                row[f"best_times_{reference}"] = timing.best / timings[reference].best  # for a busy machine
        rows.append({**row, **case._asdict()})
    return rows


def measure_recording(setting: Setting) -> Iterator[Result]:
    """A snapshot beside a training step."""
    case = setting.plan.steps[0]
    name = (setting.upsamplers or ("fade",))[0]
    model, training = start_training(name, case, setting.device)
    images, masks = random_batch(case, setting.device)
    probe = Probe(model)
    with tempfile.TemporaryDirectory() as folder:
        store = SnapshotStore(folder, "bench")

        def snapshot() -> object:
            return store.write(0, probe.observe(images, masks, F.cross_entropy, step=0))

        timings, _ = setting.time({"step": partial(next, training), "snapshot": snapshot})
        size = sum(file.stat().st_size for file in Path(folder, "snapshots").iterdir())
    steps = timings["snapshot"].median / timings["step"].median
    row = {
        "operator": name,
        "step": _seconds(timings["step"]),
        "snapshot": _seconds(timings["snapshot"]),
        "snapshot_in_steps": steps,
        "share": steps / _ONE_IN,
        "bytes": size,
    }
    title = f"recording {len(probe.layers)} layers of {case}; the paper's schedule is a snapshot in {_ONE_IN} steps"
    yield Result("recording", title, (row,))


_ONE_IN = 83  # 36 snapshots in 3000 steps


def measure_rendering(setting: Setting) -> Iterator[Result]:
    """A grid and an animation of two runs."""
    frames = setting.plan.frames
    with tempfile.TemporaryDirectory() as folder:
        runs = [synthetic_run(Path(folder, name), name, frames) for name in ("carafe", "fade")]
        png, gif = Path(folder, "grid.png"), Path(folder, "animation.gif")
        calls: dict[str, Call] = {
            "grid, PNG": partial(write_grid, runs, png),
            "animation, GIF": partial(write_animation, runs, gif),
        }
        timings, _ = setting.time(calls)
        rows = []
        for (name, timing), file in zip(timings.items(), (png, gif), strict=True):
            rows.append({"what": name, "frames": frames, "seconds": _seconds(timing), "bytes": file.stat().st_size})
    yield Result("rendering", f"drawing two runs of {frames} frames, maps of 112x112, side by side", tuple(rows))


def _seconds(timing: Timing) -> Row:
    return dataclasses.asdict(timing)


MEASURES: dict[str, Callable[[Setting], Iterator[Result]]] = {
    "machine": measure_machine,
    "reassembly": measure_reassembly,
    "operators": measure_operators,
    "step": measure_step,
    "recording": measure_recording,
    "rendering": measure_rendering,
}
"""The parts, in their order."""
