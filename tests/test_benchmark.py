"""What `fadeviz bench` measures is what it says; how long anything takes is never tested."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fadeviz.benchmark as benchmark
from fadeviz import FadevizError
from fadeviz.benchmark import bench, cases, machine, memory, parts, timing
from fadeviz.benchmark.plan import FULL, FULL_CUDA, QUICK, QUICK_CUDA, Plan, Shape, StepCase
from fadeviz.benchmark.tables import CAPTIONS_CUDA
from fadeviz.ops.backends import native_library
from fadeviz.ops.reassemble import reassemble
from fadeviz.upsamplers import Skip, build_upsampler, split_upsamplers
from test_cli import call, fails

TINY = Plan(
    reassembly=(Shape(1, 8, 4),),
    operators=(Shape(1, 32, 12),),
    steps=(StepCase(0.0625, 32, 2),),
    rounds=1,
    turn=0,
    budget=0,
    copy_bytes=1 << 16,
    matmul_side=16,
    frames=2,
)
CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture(scope="module")
def process():
    with pytest.MonkeyPatch.context() as patch, memory.MeasuringProcess(CPU, 1) as process:
        patch.setenv("FADEVIZ_BACKEND", "tiles")
        yield process


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, process):
    """A run of every part at tiny shapes, without the compilers: the report, its tables, and its file."""
    path = tmp_path_factory.mktemp("bench") / "new" / "report.json"
    tables = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_library, "library", lambda bits=32: None)
        patch.setattr(bench, "MeasuringProcess", lambda device, threads: nullcontext(process))
        patch.setattr("torch.compiler.reset", lambda: None)
        patch.setattr("torch.compile", lambda function, **options: _cannot_compile)
        threads = torch.get_num_threads()
        report = benchmark.measure(
            upsamplers=["nearest", "carafe", "fade"],
            plan=TINY,
            threads=1,
            compiled=True,
            output=path,
            on_result=lambda result: tables.append(benchmark.describe(result)),
        )
        assert torch.get_num_threads() == threads
    return report, tables, path


def _cannot_compile(*inputs):
    raise RuntimeError("no compiler\nat all")


def numbers(value):
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, list | tuple):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, int | float) else []


class TestPlainForms:
    @pytest.mark.parametrize(("k", "s"), [(5, 2), (3, 3), (1, 2)])
    def test_plain_reassembly_is_reassembly(self, k, s):
        torch.manual_seed(0)
        x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
        kernels = torch.randn(2, k * k, 4 * s, 6 * s, dtype=torch.float64, requires_grad=True)
        want, got = reassemble(x, kernels, k, s), cases.plain_reassemble(x, kernels, k, s)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)
        cotangent = torch.randn_like(want)
        grads = [torch.autograd.grad(y, (x, kernels), cotangent) for y in (got, want)]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("name", list(cases.PLAIN))
    def test_plain_operators_are_the_operators(self, name):
        torch.manual_seed(0)
        operator = build_upsampler(name, 8).double()
        for parameter in operator.parameters():  # as initialised, biases are 0 and could be left out
            torch.nn.init.normal_(parameter, std=0.3)
        x, feature = (torch.randn(1, 8, n, n, dtype=torch.float64, requires_grad=True) for n in (5, 10))
        want = operator(x, Skip(feature))
        got = cases._upsample(operator, True, None, x, feature)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        inputs = [x, *operator.parameters()]
        grads = [torch.autograd.grad(y.square().sum(), inputs) for y in (got, want)]
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-10)


class TestTurns:
    def seconds(self, monkeypatch, costs):
        """Candidates that take as long as they say, and the order they were called in."""
        order = []
        candidates = {name: lambda name=name: order.append(name) for name in costs}

        def timed(call, device):
            call()
            return costs[order[-1]]

        monkeypatch.setattr(timing, "timed", timed)
        return candidates, order

    def test_interleaved(self, monkeypatch):
        candidates, order = self.seconds(monkeypatch, {"a": 1.0, "b": 1.0})
        found, failed = timing.time_in_turns(candidates, CPU, 4, 0.1, 100)
        assert order == ["a", "b"] + ["a", "b", "b", "a"] * 2
        assert found == {name: timing.Timing(1.0, 1.0, 1.0, 1.0, 1.0, 4) for name in "ab"}
        assert failed == []

    def test_fast_ones_are_called_often_and_slow_ones_leave_early(self, monkeypatch):
        candidates, order = self.seconds(monkeypatch, {"slow": 5.0, "fast": 0.01, "faster": 1e-6})
        found, _ = timing.time_in_turns(candidates, CPU, 10, 0.055, 8.0)
        assert {name: one.calls for name, one in found.items()} == {"slow": 3, "fast": 50, "faster": 200}

    def test_quartiles(self):
        assert timing.summary([5.0, 1.0, 3.0, 2.0, 4.0], 9.0) == timing.Timing(3.0, 2.0, 4.0, 1.0, 9.0, 5)

    def test_only_peers_may_fail(self):
        candidates = {"ours": lambda: None, "theirs": _cannot_compile}
        found, failed = timing.time_in_turns(candidates, CPU, 1, 0, 0, peers=["theirs"])
        assert list(found) == ["ours"]
        assert failed == ["theirs does not run here: no compiler"]
        with pytest.raises(RuntimeError, match="no compiler"):
            timing.time_in_turns(candidates, CPU, 1, 0, 0)


class Device:
    """A device with a queue: kernels handed over run one after another, at the earliest when they are handed over."""

    def __init__(self):
        self.now = self.free = 0.0
        self.waits = []

    def kernel(self, seconds, host=10e-6):
        def call():
            self.now += host
            self.free = max(self.free, self.now) + seconds

        return call

    def sleep(self, cycles):
        self.waits.append(cycles / timing._CYCLES)
        self.kernel(self.waits[-1], host=0)()

    def synchronize(self, device=None):
        self.now = max(self.now, self.free)

    def event(self, enable_timing):
        assert enable_timing
        event = SimpleNamespace()
        event.record = lambda: setattr(event, "at", max(self.free, self.now))
        event.elapsed_time = lambda later: 1e3 * (later.at - event.at)
        return event


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "_sleep", device.sleep)
    monkeypatch.setattr(timing, "_synchronize", device.synchronize)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: device.now)
    return device


class TestClocks:
    def test_events_see_the_device_alone(self, device):
        fast, slow = device.kernel(2e-6), device.kernel(50e-6)
        found, _ = timing.time_in_turns({"fast": fast, "slow": slow}, CPU, 3, 1e-3, 1, clock=timing.device_clock)
        assert found["fast"].median == pytest.approx(2e-6)
        assert found["slow"].median == pytest.approx(50e-6)
        assert found["fast"].host == found["slow"].host == pytest.approx(10e-6)
        assert (found["fast"].calls, found["slow"].calls) == (3 * 20, 3 * 16)  # 20 at most, or as many as fit a turn

    def test_without_waiting_a_short_kernel_takes_as_long_as_its_launch(self, device):
        assert timing.device_clock(device.kernel(2e-6), CPU, 3).seconds[1:] == pytest.approx([10e-6, 10e-6])

    def test_no_more_calls_than_the_queue_holds(self, device):
        seconds, host = timing.device_clock(device.kernel(2e-6, host=1.5e-3), CPU, 20, 1.5e-3)
        assert seconds == pytest.approx([2e-6] * 2)
        assert host == pytest.approx(1.5e-3)

    def test_a_block_is_waited_for_once(self, device):
        call = device.kernel(2e-6)
        assert timing.block_clock(call, CPU, 10).seconds == pytest.approx([10.2e-6])
        assert timing.host_clock(call, CPU, 2).seconds == pytest.approx([12e-6] * 2)

    def test_what_compiles_first_is_called_often_afterwards(self, device):
        first = iter([5.0])
        call = device.kernel(50e-6)

        def compiles():
            device.now += next(first, 0.0)
            call()

        found, _ = timing.time_in_turns({"a": compiles}, CPU, 3, 1e-3, 1, clock=timing.device_clock)
        assert found["a"].calls == 3 * 16
        assert found["a"].first == pytest.approx(5.0, abs=1e-3)

    def test_rotation(self, monkeypatch):
        order = []
        call = timing.rotating([lambda n=n: order.append(n) for n in range(3)])
        for _ in range(7):
            call()
        assert order == [0, 1, 2, 0, 1, 2, 0]
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=50 * MIB))
        cuda = torch.device("cuda")
        copies = {size: timing.copies_past_cache(size * MIB, cuda) for size in (1, 10, 99, 1000)}
        assert copies == {1: 64, 10: 11, 99: 3, 1000: 2}
        assert timing.copies_past_cache(1, CPU) == 1

    def test_launches(self, monkeypatch):
        kinds = torch.autograd.DeviceType

        def event(kind, microseconds, annotation=False):
            took = SimpleNamespace(elapsed_us=lambda: microseconds)
            return SimpleNamespace(device_type=kind, is_user_annotation=annotation, time_range=took)

        events = [event(kinds.CUDA, 30.0), event(kinds.CPU, 7.0), event(kinds.CUDA, 40.0, True), event(kinds.CUDA, 5.0)]
        called = []
        profile = nullcontext(SimpleNamespace(events=lambda: events))
        monkeypatch.setattr(torch.profiler, "profile", lambda activities: profile)
        assert timing.launches(lambda: called.append(1), CPU) == (2, pytest.approx(35e-6))
        assert called == [1]


class TestMemory:
    def test_peak_of_a_known_case(self, tmp_path):
        code = (
            "import sys, torch\n"
            "from fadeviz.benchmark.memory import peak_extra_bytes\n"
            "def call():\n"
            "    torch.ones(24 << 18); kept = torch.ones(8 << 18); torch.ones(12 << 18)\n"  # MiB: 24, then 8 + 12
            "def more():\n"
            "    kept = torch.ones(24 << 18); torch.ones(12 << 18); return kept\n"  # 24 + 12
            "call(), more()\n"
            "print([peak_extra_bytes(f, torch.device('cpu')) for f in (call, more, lambda: None)])\n"
        )
        environment = {**os.environ, **memory.RETURNING}
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        found = json.loads(result.stdout.replace("None", "null"))
        if None in found:
            pytest.skip("needs /proc/self/clear_refs")
        assert found == pytest.approx([24 * MIB, 36 * MIB, 0], abs=0.75 * MIB)

    def test_peak_by_the_counters_of_cuda(self, monkeypatch):
        used = {"now": 5 * MIB, "peak": 50 * MIB}

        def call():
            used["peak"] = max(used["peak"], used["now"] + 7 * MIB)

        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used["now"])
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: used["peak"])
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: used.update(peak=used["now"]))
        assert memory.peak_extra_bytes(call, torch.device("cuda")) == 7 * MIB

    def test_memory_that_is_not_there_is_said(self, monkeypatch):
        def full(call, device):
            raise torch.OutOfMemoryError("CUDA out of memory.\nMuch advice")

        monkeypatch.setattr(parts.Setting, "cuda", True)
        monkeypatch.setattr(parts, "peak_extra_bytes", full)
        question = {"what": "reassembly", "form": "plain", "layout": "contiguous", "shape": (1, 4, 4)}
        assert parts.Setting(TINY, CPU, None).peak(question) == (None, ["CUDA out of memory."])

    @pytest.mark.slow
    def test_peak_of_an_operator(self, process):
        def peak(name, shape, plain=False):
            found, why = process.peak({"what": "operator", "operator": name, "plain": plain, "shape": shape})
            if found is None:
                pytest.skip(why[0])
            return found

        assert peak("nearest", (1, 64, 64)) == pytest.approx((4 + 1) * MIB, abs=0.75 * MIB)  # output and gradient
        assert peak("carafe", (1, 64, 64)) < 6 * 4 * MIB
        assert peak("carafe", (1, 16, 32), plain=True) > 25 * MIB / 4  # all windows at high resolution

    def test_a_process_that_dies_is_said_and_replaced(self, monkeypatch):
        monkeypatch.setattr(memory.sys, "executable", "/bin/false")
        with memory.MeasuringProcess(CPU, 1) as process:
            for _ in range(2):
                assert process.peak({"what": "operator"}) == (
                    None, ["the measuring process exited with code 1: no error message"]
                )  # fmt: skip


class TestReport:
    def test_every_part_is_there_with_finite_numbers(self, tiny):
        report = tiny[0]
        assert tuple(report["parts"]) == benchmark.PARTS
        assert all(math.isfinite(n) for n in numbers(report))
        for part, tables in report["parts"].items():
            for table in tables:
                assert table["rows"], part
                for seconds in re.findall(
                    r"'median': (.+?), 'low': (.+?), 'high': (.+?), 'best': (.+?),", str(table["rows"])
                ):
                    median, low, high, best = map(float, seconds)
                    assert 0 < best <= low <= median <= high
        assert {"torch", "python", "device", "threads", "backend"} <= set(report["environment"])

    def test_file_is_the_report(self, tiny):
        report, _, path = tiny
        assert json.loads(path.read_text()) == json.loads(json.dumps(report))
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_reassembly(self, tiny):
        (table,) = tiny[0]["parts"]["reassembly"]
        rows = {(row["pass"], row["form"], row["layout"]): row for row in table["rows"]}
        forms = [("plain", "contiguous"), ("tiles", "channels-last"), ("tiles", "contiguous")]
        assert {key[1:] for key in rows if key[0] == "forward"} == set(forms)
        assert ("first call ever", "tiles", "") in rows
        row = rows["forward", "tiles", "contiguous"]
        x, w, y = 8 * 16, 25 * 64, 8 * 64
        inside = sum(0 <= i // 2 + k < 4 for i in range(8) for k in range(-2, 3))
        assert row["gflops"] * row["seconds"]["median"] == pytest.approx(2 * 8 * inside**2 / 1e9)
        assert row["gbytes"] * row["seconds"]["median"] == pytest.approx(4 * (x + w + y) / 1e9)
        assert row["share_of_bound"] * row["seconds"]["median"] == pytest.approx(row["bound_seconds"])
        assert rows["forward", "plain", "contiguous"]["times_plain"] == 1
        assert rows["forward+backward", "tiles", "contiguous"]["needed_bytes"] == 8 * (x + w + y)

    def test_a_peer_that_fails_is_a_line(self, tiny):
        (table,) = tiny[0]["parts"]["reassembly"]
        assert "forward: compiled, contiguous does not run here: no compiler" in table["notes"]

    def test_operators_and_steps(self, tiny):
        (table,) = tiny[0]["parts"]["operators"]
        names = ["nearest", "carafe", "fade"]
        assert [row["operator"] for row in table["rows"]] == [*names, "carafe, plain form", "fade, plain form"]
        (table,) = tiny[0]["parts"]["step"]
        assert [row["operator"] for row in table["rows"]] == ["bilinear", *names]
        assert table["rows"][0]["times_bilinear"] == 1
        best = [row["seconds"]["best"] for row in table["rows"]]
        assert [row["best_times_bilinear"] * best[0] for row in table["rows"]] == pytest.approx(best)

    def test_tables_fit_the_terminal(self, tiny):
        tables = tiny[1]
        assert len(tables) == 1 + len(benchmark.PARTS)
        for line in "\n".join(tables).splitlines():
            assert len(line) <= 120, line
        assert re.search(r"^  forward +tiles +channels-last +[\d.,]+ +[\d.,]+\.\.[\d.,]+ ", tables[2], re.MULTILINE)

    def test_digits(self):
        from fadeviz.benchmark.tables import _digits

        shown = [_digits(v) for v in (0, 0.004, 1.234, 9.994, 9.996, 99.94, 99.96, 12345.6, None)]
        assert shown == ["0.00", "0.00", "1.23", "9.99", "10.0", "99.9", "100", "12,346", "-"]


def test_plans_hold_what_was_asked_for():
    assert {shape[1:] for shape in FULL.reassembly} == {
        (512, 7), (512, 14), (256, 28), (128, 56), (64, 112), (256, 16), (256, 32), (256, 64)
    }  # fmt: skip
    assert FULL.operators == FULL.reassembly
    assert set(QUICK.reassembly + QUICK.operators) < set(FULL.reassembly)


def test_one_line_of_operators():
    assert split_upsamplers("") == []
    assert split_upsamplers("nearest, fade:form=h2l,gate=off,carafe:kernel_size=3,bilinear") == [
        "nearest", "fade:form=h2l,gate=off", "carafe:kernel_size=3", "bilinear"
    ]  # fmt: skip


class TestCommand:
    def test_happy_path(self, tmp_path, monkeypatch):
        monkeypatch.setattr(bench, "QUICK", TINY)
        result = call("bench", "--quick", "--part", "machine", "--device", "cpu", "-o", tmp_path / "bench.json")
        assert result.exit_code == 0, result.output
        assert re.search(r"fp32 matrix product of side 16 +[\d.,]+ GFLOP/s", result.output)
        assert list(json.loads((tmp_path / "bench.json").read_text())["parts"]) == ["machine"]

    @pytest.mark.parametrize(
        ("code", "message", "args"),
        [
            (1, "no part of the benchmark 'steps'. Nearest: 'step'", ["--part", "steps"]),
            (1, "no upsampler 'fad'. Nearest: 'fade'", ["--upsamplers", "nearest,fad"]),
            (1, "no option of carafe 'groop'", ["--upsamplers", "carafe:groop=2"]),
            (1, "scale_factor is 3; what is measured here doubles", ["--upsamplers", "carafe:scale_factor=3"]),
            (1, "3 groups", ["--upsamplers", "carafe:groups=3"]),
            (1, "threads is 0; it must be 1 or more", ["--threads", "0"]),
            (1, "no device 'tpu'", ["--device", "tpu"]),
            (1, "cannot write .*Give a file", ["-o", "."]),
            (2, "choose one", ["--quick", "--compiled", "--device", "cpu"]),
            (2, "not a valid integer", ["--threads", "many"]),
        ],
    )
    def test_mistakes(self, code, message, args):
        fails(code, message, "bench", *args)

    def test_a_bad_upsampler_is_said_by_the_library_too(self):
        with pytest.raises(FadevizError, match="no upsampler 'fad'"):
            benchmark.measure(upsamplers=["fad"])


class HostEvent:
    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, later):
        return 1e3 * (later.at - self.at)


CUDA_PLAN = dataclasses.replace(
    TINY,
    steps=(StepCase(0.0625, 32, 2, precision="bf16"),),
    precisions=("fp32", "bf16"),
    fused=True,
    operator_layouts=("channels-last", "contiguous"),
)


@pytest.fixture(scope="module")
def on_cuda():
    device = Device()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FADEVIZ_BACKEND", "tiles")
        # The device's time is the host's.
        patch.setattr(torch.cuda, "Event", lambda enable_timing: HostEvent())
        patch.setattr(torch.cuda, "_sleep", device.sleep)
        patch.setattr(parts.Setting, "cuda", True)
        patch.setattr(parts, "peak_extra_bytes", lambda call, device: 3 * MIB)
        patch.setattr(parts, "launches", lambda call, device: (189, 0.5e-3))
        patch.setattr(native_library, "library", lambda bits=32: None)
        patch.setattr(bench, "MeasuringProcess", lambda device, threads: nullcontext())
        found = []
        report = benchmark.measure(
            ["machine", "reassembly", "operators", "step"],
            upsamplers=["carafe", "fade", "max_unpool"],
            plan=CUDA_PLAN,
            threads=1,
            on_result=lambda result: found.append(benchmark.describe(result)),
        )
    return report["parts"], found


class TestOnCuda:
    """The branches for a CUDA device, run on the CPU: the device's clock, counters and profiler are stood in for."""

    def test_bounds_in_every_precision(self, on_cuda):
        (table,) = on_cuda[0]["machine"]
        what = [row["what"] for row in table["rows"]]
        assert what[2:] == [
            *(f"{p} matrix product of side 16" for p in ("fp32", "tf32", "bf16", "fp16")),
            "launches of a small kernel by torch",
        ]

    def test_reassembly_plain_and_fused_in_every_precision(self, on_cuda):
        found = on_cuda[0]["reassembly"]
        assert [(t["rows"][0]["precision"], t["rows"][0]["fused"]) for t in found] == [
            ("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)
        ]  # fmt: skip
        assert found[3]["title"].startswith("softmax, reassembly and gate of 1x8x4x4")
        x, w, y, gate = 8 * 16, 25 * 64, 8 * 64, 64
        bytes_moved = {
            ("fp32", False): (4 * (x + w + y), 4 * (3 * x + 3 * w + 2 * y)),
            ("bf16", True): (2 * (x + w + 2 * y + gate), 2 * (3 * x + 3 * w + 5 * y + 3 * gate)),
        }
        for table in found:
            forms = {(row["form"], row["layout"]) for row in table["rows"]}
            assert forms == {("plain", "contiguous"), ("tiles", "channels-last"), ("tiles", "contiguous")}
            for row in table["rows"]:
                seconds = row["seconds"]["median"]
                assert row["seconds"]["host"] > 0
                assert row["bound_seconds"] == max(row["copy_seconds"], row["fma_seconds"])
                sums = 1 if row["pass"] == "forward" else 3
                assert row["gflops"] * seconds == pytest.approx(sums * 2 * parts.multiply_adds(Shape(1, 8, 4)) / 1e9)
                expected = bytes_moved.get((row["precision"], row["fused"]))
                if expected:
                    assert row["gbytes"] * seconds == pytest.approx(expected[row["pass"] != "forward"] / 1e9)
                if row["pass"] != "forward":
                    assert row["extra_bytes"] == 3 * MIB

    def test_operators_in_both_layouts(self, on_cuda):
        for table, precision in zip(on_cuda[0]["operators"], ("fp32", "bf16"), strict=True):
            assert set(table["notes"]) <= set(CAPTIONS_CUDA.values())
            rows = {(row["operator"], row["layout"]): row for row in table["rows"]}
            names = ("carafe", "fade", "max_unpool")
            assert set(rows) == {
                *((name, layout) for name in names for layout in cases.LAYOUTS),
                ("carafe, plain form", "contiguous"), ("fade, plain form", "contiguous"),
            }  # fmt: skip
            assert {row["precision"] for row in rows.values()} == {precision}

    def test_steps(self, on_cuda):
        (table,) = on_cuda[0]["step"]
        assert [row["operator"] for row in table["rows"]] == ["bilinear", "nearest", "carafe", "fade", "max_unpool"]
        assert table["rows"][1]["times_nearest"] == 1
        assert {row["launches"] for row in table["rows"]} == {189}
        assert {row["precision"] for row in table["rows"]} == {"bf16"}

    def test_tables_fit_the_terminal(self, on_cuda):
        text = "\n".join(on_cuda[1])
        for line in text.splitlines():
            assert len(line) <= 120, line
        assert re.search(
            r"^  operator .* x bilinear +x nearest +steps/s +launches +busy +extra MiB$", text, re.MULTILINE
        )

    def test_the_environment_names_driver_and_versions(self, monkeypatch):
        properties = SimpleNamespace(major=9, minor=0, total_memory=80 << 30, multi_processor_count=132)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(machine.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout="580.95.05\n"))
        known = machine._cuda_environment(torch.device("cuda"))
        assert known["driver"] == "580.95.05"
        assert known["compute capability"] == "9.0"
        assert known["memory"] == "80.0 GiB"
        assert set(known) >= {"CUDA of torch", "cuDNN", "triton", "mmcv"}

        def absent(*args, **options):
            raise FileNotFoundError

        monkeypatch.setattr(machine.subprocess, "run", absent)
        assert machine._cuda_environment(torch.device("cuda"))["driver"] == "unknown"


class TestPrecisions:
    def test_switches_of_tf32(self):
        def switches():
            return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

        before = switches()
        for precision in ("fp32", "tf32", "bf16"):
            with cases.arithmetic(precision):
                assert switches() == ((precision == "tf32"),) * 2
            assert switches() == before

    def test_a_plan_at_other_precisions(self):
        plan = FULL_CUDA.at(("tf32", "fp16"))
        assert plan.precisions == ("fp16",)
        assert {step.precision for step in plan.steps} == {"tf32", "fp16"}
        assert len(plan.steps) == 4

    @pytest.mark.parametrize("backend", ["tiles", "plain"])
    def test_the_fused_forms_are_one_function(self, backend):
        torch.manual_seed(0)
        x, logits, skip, gate, _ = cases.reassembly_inputs(Shape(1, 4, 5), "contiguous", CPU, fused=True)
        want = torch.lerp(reassemble(x, logits.softmax(1), 5), skip, gate)
        torch.testing.assert_close(cases.fused_function(backend)(x, logits, skip, gate), want)

    def test_the_kernel_takes_what_the_fused_form_gives_it(self):
        with FakeTensorMode():
            x, logits, skip, gate, _ = cases.reassembly_inputs(Shape(1, 4, 5), "channels-last", CPU, "bf16", fused=True)
            assert cases.fused_function("triton")(x, logits, skip, gate).shape == skip.shape

    def test_a_resident_step_is_the_training_step(self):
        case = StepCase(0.0625, 32, 2)
        weights = []
        for resident in (False, True):
            torch.manual_seed(1)
            model = None
            build = cases._model

            def kept(*args, build=build):
                nonlocal model
                model, optimizer = build(*args)
                return model, optimizer

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cases, "_model", kept)
                if resident:
                    cases.resident_step("nearest", case, CPU)()
                else:
                    next(cases.start_training("nearest", case, CPU)[1])
            weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_the_limit_ends_before_the_next_table(monkeypatch, process, tmp_path):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(native_library, "library", lambda bits=32: None)
    monkeypatch.setattr(bench.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(bench, "MeasuringProcess", lambda device, threads: nullcontext(process))
    path = tmp_path / "report.json"
    plan = dataclasses.replace(TINY, reassembly=(Shape(1, 8, 4),) * 3)
    written = []

    def report_table(result):
        if result.part != "environment":
            written.append(sum(len(tables) for tables in json.loads(path.read_text())["parts"].values()))

    report = benchmark.measure(
        ["machine", "reassembly", "rendering"], plan=plan, threads=1, limit=45, output=path, on_result=report_table
    )
    assert written == [1, 2, 3]  # every table is in the file before it is shown
    # Asked before every table and once more after a part's last: machine 10, 20; reassembly 30, 40, 50.
    assert [len(tables) for tables in report["parts"].values()] == [1, 2]
    assert report["unfinished"] == ["reassembly", "rendering"]
    assert json.loads(path.read_text())["unfinished"] == ["reassembly", "rendering"]


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # the profiler's advice differs from version to version
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(tmp_path):
    plan = dataclasses.replace(
        QUICK_CUDA,
        reassembly=(Shape(2, 16, 8),),
        operators=(Shape(2, 32, 16),),
        steps=(StepCase(0.0625, 32, 2), StepCase(0.0625, 32, 2, precision="bf16")),
        rounds=1,
        turn=1e-3,
        copy_bytes=64 << 20,
        matmul_side=512,
    )
    tables = []
    report = benchmark.measure(
        ["machine", "reassembly", "operators", "step"],
        upsamplers=["nearest", "carafe", "fade"],
        plan=plan,
        device=torch.device("cuda"),
        output=tmp_path / "report.json",
        on_result=lambda result: tables.append(benchmark.describe(result)),
    )
    print("\n".join(tables))
    assert report["environment"]["driver"] != ""
    notes = {note for found in report["parts"].values() for table in found for note in table["notes"]}
    assert notes <= set(CAPTIONS_CUDA.values())
    for table in report["parts"]["reassembly"]:
        forms = {(row["form"], row["layout"]) for row in table["rows"]}
        assert {("tiles", "channels-last"), ("plain", "contiguous")} <= forms
        for row in table["rows"]:
            assert 0 < row["seconds"]["best"] < 0.1
            assert row["seconds"]["host"] > 0
    for table in report["parts"]["step"]:
        for row in table["rows"]:
            assert row["extra_bytes"] > 0
            assert row["launches"] > 50
            assert row["device_seconds"] > 0
