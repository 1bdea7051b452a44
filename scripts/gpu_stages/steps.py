"""The stages ``steps``, ``together`` and ``compile``: training steps alone, in whole runs, and in several processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.nn import functional as F

from .setting import DTYPES, GPU_FILES, Call, Row, Rows, Setting, first_line, read_rows, synchronize
from .training import few_synthetic_tests, run_config


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
