"""What `fadeviz bench` measures is what it says; how long anything takes is never tested."""

import json
import math
import os
import re
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

import fadeviz.benchmark as benchmark
from fadeviz import FadevizError
from fadeviz.benchmark import cases, memory, timing
from fadeviz.benchmark.plan import FULL, QUICK, Plan, Shape, StepCase
from fadeviz.upsamplers import Skip, build_upsampler, reassemble
from fadeviz.upsamplers.backends import native
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
        patch.setattr(native, "library", lambda: None)
        patch.setattr(benchmark, "MeasuringProcess", lambda device, threads: nullcontext(process))
        patch.setattr("torch.compiler.reset", lambda: None)
        patch.setattr("torch.compile", lambda function, **options: _cannot_compile)
        threads = torch.get_num_threads()
        report = benchmark.measure(
            upsamplers=["nearest", "carafe", "fade"],
            plan=TINY,
            threads=1,
            compiled=True,
            output=path,
            report=lambda result: tables.append(benchmark.describe(result)),
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
                    None, ["the measuring process ended with code 1: it said nothing"]
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
        assert row["gflops"] * row["seconds"]["median"] == pytest.approx(2 * 25 * y / 1e9)
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
    assert benchmark.split_upsamplers("") == []
    assert benchmark.split_upsamplers("nearest, fade:form=h2l,gate=off,carafe:kernel_size=3,bilinear") == [
        "nearest", "fade:form=h2l,gate=off", "carafe:kernel_size=3", "bilinear"
    ]  # fmt: skip


class TestCommand:
    def test_happy_path(self, tmp_path, monkeypatch):
        monkeypatch.setattr(benchmark, "QUICK", TINY)
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
            (1, "0 threads: at least 1", ["--threads", "0"]),
            (1, "no device 'tpu'", ["--device", "tpu"]),
            (1, "cannot write .*Give a file", ["-o", "."]),
            (2, "choose one", ["--quick", "--compile"]),
            (2, "not a valid integer", ["--threads", "many"]),
        ],
    )
    def test_mistakes(self, code, message, args):
        fails(code, message, "bench", *args)

    def test_a_bad_upsampler_is_said_by_the_library_too(self):
        with pytest.raises(FadevizError, match="no upsampler 'fad'"):
            benchmark.measure(upsamplers=["fad"])
