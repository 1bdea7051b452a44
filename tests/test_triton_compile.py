"""The Triton kernels' machine code, compiled ahead of time: no GPU is needed. Run with `pytest -m slow`.

As a script this prints the table for the Triton that is installed: ``python tests/test_triton_compile.py 90``.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton: pip install triton", allow_module_level=True)

PAPER = (16, 256, 64, 64)
K, SCALE = 5, 2
H100 = 132 * 4 * 1.755e9
"""Instructions of a warp that an H100 issues in a second: one a clock from each of the schedulers of 132 processors."""


@dataclasses.dataclass
class Compiled:
    """What the machine code of one launch tells."""

    what: str
    kernel: str
    registers: int
    stack: int
    spills: int
    loads: dict[int, int]  # by bits
    instructions: int
    issue_us: float  # of the whole launch, on an H100, were every instruction issued without a wait


# ------------------------------------------------------------------------------------------------- a process of its own


def compile_all(arch):
    """Every kernel at the paper's size, in the main dtypes and both formats."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    class Driver:  # what a launch asks of a GPU that is not there
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", arch, 32))

    triton.runtime.driver.set_active(Driver())
    launched = []
    triton.JITFunction.__getitem__ = lambda self, grid: (
        lambda *args, **options: launched.append(
            (self.fn.__name__, grid[0], args, options, self.run(*args, grid=grid, warmup=True, **options))
        )
    )
    from fadeviz.ops.backends import cuda as backend
    from fadeviz.ops.backends import direct

    backend.choose = backend.choose_forward = lambda *tensors: direct

    b, c, h, w = PAPER
    high = (h * SCALE, w * SCALE)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        # In the second format bfloat16 is as float16; compiling takes seconds.
        for dtype in (torch.float32, torch.float16, torch.bfloat16)[: 3 if memory_format == torch.channels_last else 2]:

            def empty(*shape, dtype=dtype, memory_format=memory_format):
                return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)

            x, y, kernels, gate = empty(b, c, h, w), empty(b, c, *high), empty(b, K * K, *high), empty(b, 1, *high)
            launched.clear()
            backend.reassemble(x, kernels, K, SCALE)
            backend.similarity(y, x, K, SCALE)
            backend.spread(y, kernels, K, SCALE)
            backend.fused_forward(x, kernels, K, SCALE, y, gate)
            backend.fused_backward(y, x, kernels, K, SCALE, y, gate)
            layout = "channels_last" if memory_format == torch.channels_last else "contiguous"
            for n, launch in enumerate(launched[:-1]):  # the fused gradient ends with a plain spread
                yield read(f"{str(dtype)[6:]} {layout} {'plain' if n < 3 else 'fused'}", *launch)


def read(what, name, programs, args, options, compiled):
    """Count in the machine code; ``options`` are the constants that the kernel was compiled for."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    path = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run([tools / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True).stdout
    code = subprocess.run([tools / "nvdisasm", "-c", path], capture_output=True, text=True, check=True).stdout
    instructions, loops = disassembled(code)
    channels, blocks = args[-2:]
    if "reassemble" in name:
        rounds = -(-channels // (options["C"] * options["N"] * blocks))
        trips = [rounds, options["K"]] if len(loops) > 1 else [options["K"]]
    elif "similarity" in name:
        trips = [-(-channels // (options["C"] * options["V"]))]
    else:
        trips = [options["K"] * options["S"] ** 2 // options["Q"]]
    count = issued(len(instructions), loops, trips)
    loads = [re.search(r"\bLDG\.E(?:\.[A-Z0-9_]*)*", text) for text in instructions]
    widths = [int((re.search(r"\.(?:U|S)?(8|16|64|128)\b", load[0]) or [0, 32])[1]) for load in loads if load]
    return Compiled(
        what=what,
        kernel=name.strip("_").removesuffix("_kernel"),
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),
        spills=sum(bool(re.search(r"\b(STL|LDL)\b", text)) for text in instructions),
        loads={width: widths.count(width) for width in sorted(set(widths))},
        instructions=len(instructions),
        issue_us=1e6 * count * programs * options["num_warps"] / H100,
    )


def disassembled(code):
    """The instructions of nvdisasm's listing, and its loops as ranges of them: backward branches."""
    instructions, labels = [], {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    loops = []
    for end, text in enumerate(instructions, 1):
        branch = re.search(r"\bBRA\b.*?`\((\.L_x_\d+)\)", text)
        # The listing ends with a branch to itself, which is none of ours.
        if branch and labels.get(branch[1], end) < end - 3:
            loops.append((labels[branch[1]], end))
    return instructions, sorted(loops)


def issued(instructions, loops, trips):
    """How many instructions a warp issues: those of a loop as often as it runs; ``trips`` by depth."""
    counts = [1] * instructions
    for start, end in loops:
        depth = sum(a <= start and end <= b and (a, b) != (start, end) for a, b in loops)
        counts[start:end] = [n * trips[depth] for n in counts[start:end]]
    return sum(counts)


# ------------------------------------------------------------------------------------------------------------ the tests


def table(arch, folder):
    """From a process without the interpreter, which this one may have loaded."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "error", __file__, str(arch), "--json"]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return [Compiled(**row) for row in json.loads(done.stdout)]


@pytest.fixture(scope="module", params=[80, 90], ids=["ampere", "hopper"])
def compiled(request, tmp_path_factory):
    return request.param, table(request.param, tmp_path_factory.mktemp("cache"))


@pytest.mark.slow
def test_registers_suffice(compiled):
    """Nothing is spilled; and of plain float32 in the usual format three blocks of 128 threads fit a processor."""
    rows = compiled[1]
    assert len(rows) == (3 + 2) * 5
    for row in rows:
        assert (row.spills, row.stack) == (0, 0), row
        assert row.registers <= (168 if row.what == "float32 channels_last plain" else 255), row


@pytest.mark.slow
def test_channels_are_loaded_16_bytes_at_a_time(compiled):
    """With channels contiguous: x in reassembly, the gradient in spread, both in similarity."""
    for row in compiled[1]:
        if "channels_last" in row.what:
            least = {"reassemble": K, "similarity": K * K, "spread": K + 3}[row.kernel]
            assert row.loads.get("128", 0) >= least, row


BOUNDS = {
    ("float32 channels_last", "plain"): 345,
    ("float32 channels_last", "fused"): 425,
    ("float16 channels_last", "plain"): 400,
    ("float16 channels_last", "fused"): 480,
    ("bfloat16 channels_last", "plain"): 425,
    ("bfloat16 channels_last", "fused"): 500,
    ("float32 contiguous", "plain"): 480,
    ("float32 contiguous", "fused"): 560,
    ("float16 contiguous", "plain"): 540,
    ("float16 contiguous", "fused"): 640,
}
"""Microseconds of issue that forward and backward need at the paper's size, with a few per cent for other versions."""


@pytest.mark.slow
def test_issue_floor(compiled):
    arch, rows = compiled
    if arch != 90:
        pytest.skip("counted for an H100")
    for (what, form), bound in BOUNDS.items():
        assert floor(rows, what, form) <= bound, [row for row in rows if what in row.what]


def floor(rows, what, form):
    """Forward and backward together; the fused gradient ends with a plain spread."""
    return sum(
        row.issue_us
        for row in rows
        if row.what == f"{what} {form}" or (row.kernel == "spread" and row.what == f"{what} plain" and form == "fused")
    )


def test_loops_are_weighted_by_their_trips():
    """By hand: one instruction before, a loop of 5 around one of 4, one after."""
    lines = ["MOV", "A: ADD", "B: FFMA", "FFMA", "FFMA", "BRA B", "BRA A", "EXIT"]
    code = ""
    for n, line in enumerate(lines):
        label, _, text = line.rpartition(": ")
        code += f".L_x_{label}:\n".replace("A", "0").replace("B", "1") if label else ""
        text = re.sub(r"BRA (.)", lambda m: f"@P0 BRA `(.L_x_{'AB'.index(m[1])})", text)
        code += f"        /*{n:04x}*/                   {text} ;\n"
    instructions, loops = disassembled(code)
    assert (len(instructions), loops) == (8, [(1, 7), (2, 6)])
    assert issued(8, loops, [3, 10]) == 1 + 3 * (2 + 10 * 4) + 1


if __name__ == "__main__":
    found = [dataclasses.asdict(row) for row in compile_all(int(sys.argv[1]))]
    if "--json" in sys.argv:
        print(json.dumps(found))
    else:
        for row in found:
            print(
                "  ".join(f"{key} {value:.0f}" if key == "issue_us" else f"{key} {value}" for key, value in row.items())
            )
        rows = [Compiled(**row) for row in found]
        for what in dict.fromkeys(row.what.rpartition(" ")[0] for row in rows):
            print(what, *(f"{form} {floor(rows, what, form):.0f} us" for form in ("plain", "fused")))
