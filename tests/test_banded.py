"""The kernels for tensor cores against plain torch in float64: on a CUDA device, or in Triton's interpreter."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton: pip install triton", allow_module_level=True)

import test_triton as family
from cuda_backend import DEVICE, interpreting, load
from test_triton import CONTIGUOUS, LAST, draw, maps

HALVES = {torch.float16, torch.bfloat16}

modules = load("banded")
backend = modules.cuda


@pytest.fixture(autouse=True, scope="module")
def interpreter():
    with interpreting():
        yield


@pytest.fixture(autouse=True)
def these(monkeypatch):
    monkeypatch.setattr(family, "backend", backend)


CASES = {
    # batch, channels, h, w, K, scale, groups
    "k5": (2, 20, 9, 11, 5, 2, 1, torch.float32, LAST),
    "k5_contiguous": (1, 35, 5, 9, 5, 2, 1, torch.float32, CONTIGUOUS),
    "even_kernel_and_groups": (1, 4, 5, 7, 4, 1, 2, torch.float32, CONTIGUOUS),
    "groups_of_one_channel": (1, 3, 2, 3, 2, 2, 3, torch.float32, LAST),
    "scale_3": (1, 5, 7, 6, 3, 3, 1, torch.float32, LAST),
    "scale_3_contiguous": (1, 5, 4, 7, 3, 3, 1, torch.float32, CONTIGUOUS),
    "scale_4": (1, 2, 3, 5, 4, 4, 1, torch.float32, CONTIGUOUS),
    "k1": (2, 3, 1, 9, 1, 2, 1, torch.float32, LAST),
    "k9": (1, 2, 5, 3, 9, 1, 1, torch.float32, LAST),
    "k11": (1, 2, 3, 9, 11, 2, 1, torch.float32, LAST),
    "k11_contiguous": (1, 2, 3, 9, 11, 2, 1, torch.float32, CONTIGUOUS),
    "channel_blocks": (1, 130, 3, 5, 3, 2, 1, torch.float32, LAST),
    "fp16": (1, 33, 5, 5, 5, 2, 1, torch.float16, LAST),
    "fp16_contiguous": (1, 9, 5, 9, 5, 2, 1, torch.float16, CONTIGUOUS),
}


@pytest.mark.parametrize("case", CASES)
def test_family(case):
    batch, channels, h, w, kernel_size, scale, groups, dtype, memory_format = CASES[case]
    x, kernels, grad = maps(batch, channels, h, w, kernel_size, scale, groups, dtype, memory_format)
    family.check(x, kernels, grad, kernel_size, scale, groups)


FUSED = {
    "fade": (1, 20, 5, 6, 5, 2, torch.float32, LAST, True),
    "contiguous": (2, 3, 5, 9, 3, 2, torch.float32, CONTIGUOUS, True),
    "no_gate": (1, 3, 3, 5, 3, 2, torch.float32, LAST, False),
    "scale_3": (1, 2, 3, 4, 2, 3, torch.float32, CONTIGUOUS, True),
    "channel_blocks": (1, 130, 2, 3, 2, 1, torch.float32, LAST, True),
    "fp16": (1, 17, 5, 5, 5, 2, torch.float16, LAST, True),
}


@pytest.mark.parametrize("case", FUSED)
def test_fused(case):
    batch, channels, h, w, kernel_size, scale, dtype, memory_format, gated = FUSED[case]
    x, logits, grad = maps(batch, channels, h, w, kernel_size, scale, 1, dtype, memory_format)
    if not gated:
        return family.check_fused(x, logits, grad, kernel_size, scale)
    skip = draw(grad.shape, dtype, memory_format, seed=4)
    gate = draw((batch, 1, h * scale, w * scale), dtype, seed=5).sigmoid()
    return family.check_fused(x, logits, grad, kernel_size, scale, skip, gate)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("case", "dtype", "memory_format"),
    [given for given in family.REALISTIC_IN if given[0] != "k5_rows_together"],  # which only the others have
    ids=lambda value: str(value).split(".")[-1],
)
def test_realistic(case, dtype, memory_format, monkeypatch):
    """Against float64 on the CPU; and the same bits from run to run."""
    family.test_realistic(case, dtype, memory_format, monkeypatch)


same_as_the_other_kernels = (
    "test_any_strides",
    "test_gates_of_zero_and_one_give_one_of_the_two",
    "test_large_logits",
    "test_dtypes_that_differ",
    "test_nothing_to_do",
)


@pytest.mark.parametrize("name", same_as_the_other_kernels)
def test_as_the_other_kernels(name):
    getattr(family, name)()


def test_x_is_zero_outside():
    """A kernel that takes one corner of its window alone moves the map by two pixels, and zeros move in, exactly."""
    x = draw((1, 2, 3, 3))
    kernels = torch.zeros(1, 25, 3, 3, device=DEVICE)
    kernels[:, 0] = 1
    y = backend.reassemble(x, kernels, 5, 1)
    torch.testing.assert_close(y[:, :, 2:, 2:], x[:, :, :1, :1], rtol=1e-6, atol=0)  # two TF32 are not quite a float32
    assert not y[:, :, :2].any()
    assert not y[:, :, :, :2].any()


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, LAST], ids=["contiguous", "channels_last"])
def test_long_offsets(memory_format, monkeypatch):
    monkeypatch.setattr(modules.launch, "_INT32_ELEMENTS", 0)
    x, kernels, grad = maps(1, 2, 5, 3, 3, 2, memory_format=memory_format)
    family.check(x, kernels, grad, 3, 2)
    gate = draw((1, 1, 10, 6), seed=5).sigmoid()
    family.check_fused(x, kernels, grad, 3, 2, draw(grad.shape, memory_format=memory_format, seed=4), gate)


def tf32(x):
    """The nearest number with 10 bits of mantissa."""
    bits = x.view(torch.int32)
    return ((bits + 0x0FFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)


def test_three_products_of_tf32_are_a_product_of_float32():
    """What ``Tuning.precision`` names, on the numbers of a whole window: as near the truth as float32 is."""
    a, b = draw((64, 64)), draw((64, 256), seed=1)
    big_a, big_b = tf32(a), tf32(b)
    small_a, small_b = tf32(a - big_a), tf32(b - big_b)
    truth = a.double() @ b.double()

    def error(got):
        return ((got.double() - truth).norm() / truth.norm()).item()

    assert error(small_a @ big_b + big_a @ small_b + big_a @ big_b) < 5e-7
    assert error(big_a @ big_b) > 1e-4


def test_float64_is_left_to_the_other_kernels():
    assert modules.banded.is_supported(*(torch.zeros(1, dtype=dtype) for dtype in (torch.float32, *HALVES)), None)
    assert not modules.banded.is_supported(torch.zeros(1), torch.zeros(1, dtype=torch.float64))


AHEAD = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget

class Driver:  # what a launch asks of a GPU that is not there
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", int(sys.argv[1]), 32))

triton.runtime.driver.set_active(Driver())
found = []

def launcher(self, grid):
    def launch(*args, **options):
        compiled = self.run(*args, grid=grid, warmup=True, **options)
        if self.fn.__module__ == banded_kernels.__name__:
            code = compiled.asm
            gradient = "similarity" in self.fn.__name__ and args[3] is not None
            found.append((self.fn.__name__, gradient, code["ptx"], compiled.metadata.shared, code["cubin"].hex()))
    return launch

triton.JITFunction.__getitem__ = launcher
from fadeviz.ops.backends import banded_kernels, cuda

for last in (torch.channels_last, torch.contiguous_format):
    for dtype in (torch.float32, torch.float16):
        def empty(*shape):
            return torch.empty(shape, dtype=dtype, device="meta", memory_format=last)
        x, y, gate = empty(16, 256, 64, 64), empty(16, 256, 128, 128), empty(16, 1, 128, 128)
        kernels = empty(16, 25, 128, 128)
        cuda.reassemble(x, kernels, 5, 2)
        cuda.similarity(y, x, 5, 2)
        cuda.fused_forward(x, kernels, 5, 2, y, gate)
        cuda.fused_backward(y, x, kernels, 5, 2, y, gate)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90], ids=["ampere", "hopper"])
def test_tensor_cores_multiply_and_little_is_spilled(arch, tmp_path):
    """At the paper's size, in both formats, compiled ahead of time."""
    import triton

    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", AHEAD, str(arch)], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    found = json.loads(done.stdout)
    assert len(found) == 4 * 5 - 2  # float32 in channels-last is reassembled by the others
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    for name, gradient, ptx, shared, cubin in found:
        (tmp_path / "kernel.cubin").write_bytes(bytes.fromhex(cubin))
        code = subprocess.run(
            [tools / "nvdisasm", "-c", tmp_path / "kernel.cubin"], capture_output=True, text=True, check=True
        ).stdout
        assert "wgmma.mma_async" in ptx or "mma.sync" in ptx, name
        assert shared <= {80: 163, 90: 227}[arch] * 1024, name
        # The softmax's gradient spills after its loop, once a program; tiles that do not were measured to be slower.
        assert gradient or len(re.findall(r"\b(STL|LDL)\b", code)) <= 32, name
