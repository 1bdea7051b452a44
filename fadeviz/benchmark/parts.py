"""The parts of a benchmark: each yields its tables as they are finished."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ..probes import Probe
from ..render.animation import write_animation
from ..render.grid import write_grid
from ..snapshots import SnapshotStore
from ..upsamplers import UPSAMPLERS
from .cases import (
    KERNEL_SIZE,
    LAYOUTS,
    PEERS,
    PLAIN,
    SCALE,
    both,
    copying,
    drawn_run,
    forward,
    multiplying,
    operator_calls,
    operator_inputs,
    plain_layout,
    random_batch,
    reassembly_forms,
    reassembly_function,
    reassembly_inputs,
    start_training,
)
from .memory import MeasuringProcess
from .plan import REFERENCES, Plan, Shape
from .timing import Call, Timing, summary, time_in_turns

Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A table of one part: raw rows, in seconds and bytes, and what has to be said beside them."""

    part: str
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What all parts are told.

    Attributes:
        upsamplers: operators of the parts ``operators`` and ``step``; None where none were asked for.
        compiled: whether torch.compile of the plain form is a candidate.
    """

    plan: Plan
    device: torch.device
    process: MeasuringProcess
    upsamplers: tuple[str, ...] | None = None
    compiled: bool = False

    def time(self, candidates: Mapping[str, Call], peers: Collection[str] = ()) -> tuple[dict[str, Timing], list[str]]:
        """Time the candidates as long as planned."""
        plan = self.plan
        return time_in_turns(candidates, self.device, plan.rounds, plan.turn, plan.budget, peers)


def measure_machine(setting: Setting) -> Iterator[Result]:
    """The bounds: copies, large and in the cache, and a matrix product."""
    plan, rows = setting.plan, []
    calls, work = {}, {}
    for size in (plan.copy_bytes, 4 << 20):
        name = f"copy, {size / 2**20:g} MiB read and written"
        calls[name], work[name] = copying(size, setting.device), (size / 1e9, "GB/s")
    name = f"fp32 matrix product of side {plan.matmul_side}"
    calls[name] = multiplying(plan.matmul_side, setting.device)
    work[name] = (2 * plan.matmul_side**3 / 1e9, "GFLOP/s")
    timings, _ = setting.time(calls)
    for name, timing in timings.items():
        amount, unit = work[name]
        rows.append({"what": name, "rate": amount / timing.best, "unit": unit, "seconds": _seconds(timing)})
    yield Result("machine", "bounds of the machine", tuple(rows))


def measure_reassembly(setting: Setting) -> Iterator[Result]:
    """Every form of reassembly at every shape: times, rates, share of the bound, memory; and the first call ever."""
    first = setting.process.first_call()  # before that process is asked for anything else
    for number, shape in enumerate(setting.plan.reassembly):
        rows, notes = _reassembly_times(setting, shape)
        for row in rows:
            if row["pass"] == "forward+backward" and row["form"] != "compiled":
                notes += _add_memory(setting, shape, row)
        if number == 0:
            if "error" in first:
                notes.append(f"first call: {first['error']}")
            else:
                seconds = _seconds(summary([first["seconds"]], first["seconds"]))
                rows.append({"pass": "first call ever", "form": first["backend"], "layout": "", "seconds": seconds})
        title = f"reassembly of {shape} by {KERNEL_SIZE}x{KERNEL_SIZE} kernels to side {SCALE * shape.side}, fp32"
        yield Result("reassembly", title, tuple(rows), tuple(notes))


def _reassembly_times(setting: Setting, shape: Shape) -> tuple[list[Row], list[str]]:
    forms = reassembly_forms(setting.device)
    if setting.compiled:
        torch.compiler.reset()  # its limit on how often one function is compiled counts all shapes
        forms.append("compiled")
    candidates = {
        f"{form}, {layout}": (form, layout)
        for form in forms
        for layout in (["contiguous"] if form in PEERS else LAYOUTS)
    }
    peers = [name for name, (form, _) in candidates.items() if form in PEERS]
    functions = {form: reassembly_function(form) for form in forms}
    inputs = {layout: reassembly_inputs(shape, layout, setting.device) for layout in LAYOUTS}
    x, w, y = (t.numel() for t in inputs["contiguous"])
    passes: dict[str, tuple[Callable[..., Call], int, int]] = {
        "forward": (forward, 1, x + w + y),
        # Three sums. Forward reads x and w, writes y; backward reads all three, writes the gradients of x and w.
        "forward+backward": (both, 3, 3 * x + 3 * w + 2 * y),
    }
    rows: list[Row] = []
    notes: list[str] = []
    for name, (bind, sums, values) in passes.items():
        flops, moved = 2 * sums * KERNEL_SIZE**2 * y, 4 * values
        calls = {label: bind(functions[form], *inputs[layout]) for label, (form, layout) in candidates.items()}
        calls |= {"copy": copying(moved, setting.device), "fma": multiplying(_SIDE, setting.device)}
        timings, failed = setting.time(calls, peers)
        notes += [f"{name}: {line}" for line in failed]
        bounds = {"copy": timings.pop("copy").best, "fma": flops * timings.pop("fma").best / (2 * _SIDE**3)}
        binds = max(bounds, key=lambda bound: bounds[bound])
        plain = timings.get("plain, contiguous")
        if "compiled, contiguous" in timings:
            notes.append(f"{name}: compiling the plain form took {timings['compiled, contiguous'].first:.0f} s")
        for label, timing in timings.items():
            form, layout = candidates[label]
            rows.append(
                {
                    "shape": list(shape),
                    "pass": name,
                    "form": form,
                    "layout": layout,
                    "seconds": _seconds(timing),
                    "times_plain": None if plain is None else plain.median / timing.median,
                    "gflops": flops / timing.median / 1e9,
                    "gbytes": moved / timing.median / 1e9,
                    "bound_seconds": bounds[binds],
                    "binds": binds,
                    "share_of_bound": bounds[binds] / timing.median,
                }
            )
    return rows, notes


_SIDE = 512


def _add_memory(setting: Setting, shape: Shape, row: Row) -> list[str]:
    """Fill in the memory columns; says why where there are no figures."""
    extra, why = setting.process.peak(
        {"what": "reassembly", "form": row["form"], "layout": row["layout"], "shape": shape}
    )
    b, c, n = shape
    high = (SCALE * n) ** 2
    held = 4 * b * (c * n * n + KERNEL_SIZE**2 * high + c * high)  # x, kernels, the gradient of the output
    row |= {"extra_bytes": extra, "held_bytes": held, "needed_bytes": 2 * held}
    row["memory_ratio"] = None if extra is None else (held + extra) / (2 * held)
    return [f"memory of {row['form']}, {row['layout']}: {line}" for line in why]


def measure_operators(setting: Setting) -> Iterator[Result]:
    """Every operator at every shape, forward and backward, and its memory; CARAFE and FADE in their plain form too."""
    names = setting.upsamplers or tuple(UPSAMPLERS)
    candidates = {name: (name, False) for name in names}
    candidates |= {f"{name}, plain form": (name, True) for name in PLAIN if name in names}
    peers = [label for label, (_, plain) in candidates.items() if plain]
    for shape in setting.plan.operators:
        inputs = {layout: operator_inputs(shape, layout, setting.device) for layout in LAYOUTS}
        calls = {
            label: operator_calls(name, plain, inputs[plain_layout(plain)])
            for label, (name, plain) in candidates.items()
        }
        one_way, failed = setting.time({label: call[0] for label, call in calls.items()}, peers)
        both_ways, failed_back = setting.time({label: calls[label][1] for label in one_way}, peers)
        rows, notes = [], [*failed, *failed_back]
        for label in both_ways:
            name, plain = candidates[label]
            extra, why = setting.process.peak({"what": "operator", "operator": name, "plain": plain, "shape": shape})
            notes += [f"memory of {label}: {line}" for line in why]
            row: Row = {
                "shape": list(shape),
                "operator": label,
                "layout": plain_layout(plain),
                "forward": _seconds(one_way[label]),
                "forward+backward": _seconds(both_ways[label]),
                "extra_bytes": extra,
            }
            slow = f"{label}, plain form"
            if slow in both_ways:
                pairs = ((one_way[slow], one_way[label]), (both_ways[slow], both_ways[label]))
                row["times_plain"] = [plain_time.median / own.median for plain_time, own in pairs]
            rows.append(row)
        yield Result("operators", f"operators on {shape} to side {SCALE * shape.side}, fp32", tuple(rows), tuple(notes))


def measure_step(setting: Setting) -> Iterator[Result]:
    """A training step with every operator, or with a few of them."""
    for case in setting.plan.steps:
        names = setting.upsamplers or (tuple(UPSAMPLERS) if case.every else REFERENCES)
        names = tuple(dict.fromkeys((REFERENCES[0], *names)))
        calls = {name: partial(next, start_training(name, case, setting.device)[1]) for name in names}
        timings, _ = setting.time(calls)
        reference = timings[REFERENCES[0]].median
        rows = []
        for name, timing in timings.items():
            times = {"seconds": _seconds(timing), "times_bilinear": timing.median / reference}
            rows.append({"operator": name, **times, **case._asdict()})
        yield Result("step", f"a training step of {case}", tuple(rows))


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
        runs = [drawn_run(Path(folder, name), name, frames) for name in ("carafe", "fade")]
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
