"""The direct Triton kernels against plain torch in float64: on a CUDA device, or in Triton's interpreter, slowly."""

import importlib.util
import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from fadeviz.errors import FadevizError
from fadeviz.ops import torch_ops
from fadeviz.upsamplers import Skip, build_upsampler

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton: pip install triton", allow_module_level=True)

from cuda_backend import DEVICE, copy, interpreting, load

CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

modules = load("direct")
backend, direct = modules.cuda, modules.direct


@pytest.fixture(autouse=True, scope="module")
def interpreter():
    with interpreting():
        yield


def windows(x, kernel_size, scale):
    """For every pixel the window around its parent, (B, C, K*K, s*h, s*w)."""
    h, w = x.shape[2:]
    before = kernel_size // 2
    padded = F.pad(x, (before, kernel_size - 1 - before) * 2)
    shifts = itertools.product(range(kernel_size), repeat=2)
    taps = torch.stack([padded[:, :, u : u + h, v : v + w] for u, v in shifts], dim=2)
    return taps.repeat_interleave(scale, 3).repeat_interleave(scale, 4)


def plain(x, kernels, kernel_size, scale, groups=1):
    taps = windows(x, kernel_size, scale).unflatten(1, (groups, -1))
    return (taps * kernels.unflatten(1, (groups, 1, -1))).sum(3).flatten(1, 2)


def plain_fused(x, logits, kernel_size, scale, skip=None, gate=None):
    y = plain(x, logits.softmax(1), kernel_size, scale)
    return y if skip is None else y + gate * (skip - y)


def draw(shape, dtype=torch.float32, memory_format=CONTIGUOUS, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(DEVICE, dtype).contiguous(memory_format=memory_format)


def close(got, wanted, like):
    """Within the tolerance of its dtype, as a part of the largest value; like ``like`` in dtype and memory format."""
    assert got.dtype == like.dtype
    assert got.shape == wanted.shape
    assert got.is_contiguous(memory_format=LAST if not like.is_contiguous() else CONTIGUOUS)
    error = (got.double() - wanted).abs().max() / wanted.abs().max()
    assert error.item() <= TOLERANCE[got.dtype]


def check(x, kernels, grad, kernel_size, scale, groups=1):
    """All three maps of the family."""
    wide_x, wide_kernels = (tensor.double().requires_grad_() for tensor in (x, kernels))
    wanted = plain(wide_x, wide_kernels, kernel_size, scale, groups)
    wanted_x, wanted_kernels = torch.autograd.grad(wanted, (wide_x, wide_kernels), grad.double())
    sizes = (kernel_size, scale, groups)
    close(backend.reassemble(x, kernels, *sizes), wanted, x)
    close(backend.spread(grad, kernels, *sizes), wanted_x, grad)
    close(backend.similarity(grad, x, *sizes), wanted_kernels, grad.to(torch.promote_types(grad.dtype, torch.float32)))


def check_fused(x, logits, grad, kernel_size, scale, skip=None, gate=None):
    """Forward and every gradient."""
    given = [tensor for tensor in (x, logits, skip, gate) if tensor is not None]
    wide = [tensor.double().requires_grad_() for tensor in given]
    wanted = plain_fused(wide[0], wide[1], kernel_size, scale, *wide[2:])
    wanted_grads = torch.autograd.grad(wanted, wide, grad.double())
    y, kernels = backend.fused_forward(x, logits, kernel_size, scale, skip, gate)
    close(y, wanted, x)
    close(kernels, logits.double().softmax(1), logits)
    grads = backend.fused_backward(grad, x, kernels, kernel_size, scale, skip, gate)
    assert grads[len(given) :] == (None,) * (4 - len(given))
    for got, wanted_grad, like in zip(grads, wanted_grads, given, strict=False):
        close(got, wanted_grad, like)


def maps(batch, channels, h, w, kernel_size, scale, groups=1, dtype=torch.float32, memory_format=CONTIGUOUS):
    """x, kernels or logits, and a gradient of y."""
    size = (h * scale, w * scale)
    x = draw((batch, channels, h, w), dtype, memory_format, seed=1)
    kernels = draw((batch, groups * kernel_size**2, *size), dtype, memory_format, seed=2)
    return x, kernels, draw((batch, channels, *size), dtype, memory_format, seed=3)


def test_the_reference_is_the_definition():
    x, kernels = (tensor.cpu() for tensor in maps(1, 2, 2, 3, 4, 2, groups=2, dtype=torch.float64)[:2])
    y = torch.zeros(1, 2, 4, 6, dtype=torch.float64)
    for n, i, j, u, v in itertools.product(range(2), range(4), range(6), range(4), range(4)):
        row, column = i // 2 + u - 2, j // 2 + v - 2
        if 0 <= row < 2 and 0 <= column < 3:
            y[0, n, i, j] += kernels[0, (n * 4 + u) * 4 + v, i, j] * x[0, n, row, column]
    torch.testing.assert_close(plain(x, kernels, 4, 2, 2), y)


CASES = {
    "k5": (1, 5, 1, 3, 5, 2, 1, torch.float32, LAST),
    "k5_contiguous": (1, 3, 1, 1, 5, 2, 1, torch.float32, CONTIGUOUS),
    "even_kernel_and_groups": (1, 4, 1, 2, 4, 1, 2, torch.float32, CONTIGUOUS),
    "groups_of_one_channel": (1, 2, 2, 1, 2, 2, 2, torch.float32, LAST),
    "scale_3": (1, 2, 1, 2, 2, 3, 1, torch.float64, LAST),
    "scale_4": (1, 2, 1, 1, 2, 4, 1, torch.float32, CONTIGUOUS),
    "k1": (2, 3, 1, 3, 1, 2, 1, torch.float32, LAST),
    "k9": (1, 2, 1, 1, 9, 1, 1, torch.float32, LAST),
    "tails": (1, 65, 1, 17, 2, 1, 1, torch.float32, LAST),
    "tails_contiguous": (1, 17, 1, 65, 2, 1, 1, torch.float32, CONTIGUOUS),
    "fp16": (1, 9, 2, 2, 3, 1, 1, torch.float16, LAST),
    "bf16": (1, 3, 1, 3, 3, 2, 1, torch.bfloat16, CONTIGUOUS),
}


@pytest.mark.parametrize("case", CASES)
def test_family(case):
    batch, channels, h, w, kernel_size, scale, groups, dtype, memory_format = CASES[case]
    check(*maps(batch, channels, h, w, kernel_size, scale, groups, dtype, memory_format), kernel_size, scale, groups)


# Odd sizes, tails of every block, groups, and the shapes that networks have. Each is compiled, which takes seconds: so
# not all of them in all dtypes and formats.
REALISTIC = {
    "k5": (2, 64, 33, 47, 5, 2, 1),
    "k5_wide": (1, 256, 28, 28, 5, 2, 1),
    "k5_small": (4, 512, 7, 7, 5, 2, 1),
    "k5_rows_together": (2, 40, 21, 30, 5, 2, 1),
    "k3_groups": (2, 60, 17, 19, 3, 2, 4),
    "k4_scale_1": (2, 40, 14, 33, 4, 1, 2),
    "k7_scale_3": (1, 33, 13, 21, 7, 3, 1),
    "k9": (1, 48, 16, 18, 9, 2, 1),
    "k11_scale_1": (1, 20, 15, 37, 11, 1, 1),
    "k5_scale_4": (1, 130, 9, 34, 5, 4, 1),
}
REALISTIC_IN = [
    *((case, torch.float32, LAST) for case in REALISTIC),
    *((case, torch.float32, CONTIGUOUS) for case in ("k5", "k5_rows_together", "k3_groups", "k7_scale_3")),
    *((case, torch.float16, LAST) for case in ("k5", "k5_rows_together", "k9")),
    *((case, torch.bfloat16, LAST) for case in ("k5_wide", "k3_groups")),
    ("k5", torch.float16, CONTIGUOUS),
    ("k3_groups", torch.bfloat16, CONTIGUOUS),
]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize(("case", "dtype", "memory_format"), REALISTIC_IN, ids=lambda value: str(value).split(".")[-1])
def test_realistic(case, dtype, memory_format, monkeypatch):
    """Against float64 on the CPU; and the same bits from run to run."""
    if case == "k5_rows_together":
        monkeypatch.setattr(direct, "_BUSY", 0)
    *shape, kernel_size, scale, groups = REALISTIC[case]
    x, kernels, grad = maps(*shape, kernel_size, scale, groups, dtype, memory_format)
    sizes = (kernel_size, scale, groups)
    names = ("reassemble", "spread", "similarity")
    given = {"reassemble": (x, kernels), "spread": (grad, kernels), "similarity": (grad, x)}
    wide_x, wide_kernels = (tensor.cpu().double().requires_grad_() for tensor in (x, kernels))
    wanted = plain(wide_x, wide_kernels, *sizes)
    truth = wanted, *torch.autograd.grad(wanted, (wide_x, wide_kernels), grad.cpu().double())
    for name, want in zip(names, truth, strict=True):
        got = getattr(backend, name)(*given[name], *sizes)
        near(got, want)
        assert torch.equal(got, getattr(backend, name)(*given[name], *sizes))
    if groups > 1:
        return
    skip = draw(grad.shape, dtype, memory_format, seed=4)
    gate = draw((x.shape[0], 1, *grad.shape[2:]), dtype, seed=5).sigmoid()
    wide = [tensor.cpu().double().requires_grad_() for tensor in (x, kernels, skip, gate)]
    wanted = plain_fused(wide[0], wide[1], kernel_size, scale, *wide[2:])
    y, softmax = backend.fused_forward(x, kernels, kernel_size, scale, skip, gate)
    near(y, wanted)
    grads = backend.fused_backward(grad, x, softmax, kernel_size, scale, skip, gate)
    for got, want in zip(grads, torch.autograd.grad(wanted, wide, grad.cpu().double()), strict=True):
        near(got, want)
    again = backend.fused_backward(grad, x, softmax, kernel_size, scale, skip, gate)
    assert all(map(torch.equal, grads, again))


def near(got, wanted):
    """As :func:`close`, of what was computed on the CPU; dtypes and formats are tested there."""
    error = (got.cpu().double() - wanted).abs().max() / wanted.abs().max()
    assert error.item() <= TOLERANCE[got.dtype]


FUSED = {
    "fade": (1, 5, 1, 2, 5, 2, torch.float32, LAST, True),
    "contiguous": (2, 3, 1, 2, 2, 2, torch.float32, CONTIGUOUS, True),
    "no_gate": (1, 3, 1, 3, 3, 2, torch.float32, LAST, False),
    "scale_3": (1, 2, 1, 2, 2, 3, torch.float64, CONTIGUOUS, True),
    "channel_blocks": (1, 66, 2, 1, 2, 1, torch.float32, LAST, True),
    "fp16": (1, 3, 1, 3, 2, 2, torch.float16, CONTIGUOUS, True),
    "bf16": (1, 3, 2, 2, 3, 1, torch.bfloat16, LAST, True),
}


@pytest.mark.parametrize("case", FUSED)
def test_fused(case):
    batch, channels, h, w, kernel_size, scale, dtype, memory_format, gated = FUSED[case]
    x, logits, grad = maps(batch, channels, h, w, kernel_size, scale, 1, dtype, memory_format)
    if not gated:
        return check_fused(x, logits, grad, kernel_size, scale)
    skip = draw(grad.shape, dtype, memory_format, seed=4)
    gate = draw((batch, 1, h * scale, w * scale), dtype, seed=5).sigmoid()
    return check_fused(x, logits, grad, kernel_size, scale, skip, gate)


def test_any_strides():
    """Views with steps, offsets, transposed axes and axes that are expanded, in both kinds of kernel."""
    x = draw((1, 6, 4, 5))[:, ::2, 1:3, :-1]
    kernels = draw((1, 1, 8, 4)).mT.expand(1, 4, 4, 8)
    grad = draw((1, 4, 8, 3), seed=3).permute(0, 3, 1, 2)
    sizes = (2, 2)
    wanted = plain(x.double(), kernels.double(), *sizes)
    torch.testing.assert_close(backend.reassemble(x, kernels, *sizes).double(), wanted, rtol=1e-5, atol=1e-5)
    wide = x.double().requires_grad_(), kernels.double().requires_grad_()
    wanted_grads = torch.autograd.grad(plain(*wide, *sizes), wide, grad.double())
    torch.testing.assert_close(backend.spread(grad, kernels, *sizes).double(), wanted_grads[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backend.similarity(grad, x, *sizes).double(), wanted_grads[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, LAST], ids=["contiguous", "channels_last"])
def test_long_offsets_and_rows_together(memory_format, monkeypatch):
    """What only large maps need: 64-bit offsets, and four rows at a time in the gradient of x."""
    monkeypatch.setattr(modules.launch, "_INT32_ELEMENTS", 0)
    monkeypatch.setattr(direct, "_BUSY", 0)
    x, kernels, grad = maps(1, 2, 5, 2, 2, 1, memory_format=memory_format)
    check(x, kernels, grad, 2, 1)
    gate = draw((1, 1, 5, 2), seed=5).sigmoid()
    check_fused(x, kernels, grad, 2, 1, draw(grad.shape, memory_format=memory_format, seed=4), gate)


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, LAST], ids=["contiguous", "channels_last"])
def test_other_blocks(memory_format, monkeypatch):
    """What a tuned table may ask for: several columns and rows a thread; and channels in a loop inside a program."""
    monkeypatch.setattr(direct, "_BUSY", 0)
    for kernel in ("reassemble", "spread"):
        monkeypatch.setitem(direct._TUNED, (kernel, memory_format == LAST), direct.Blocks(2, 1, 1, 2))
    x, kernels, grad = maps(1, 20, 2, 3, 2, 2, memory_format=memory_format)
    check(x, kernels, grad, 2, 2)
    gate = draw((1, 1, 4, 6), seed=5).sigmoid()
    check_fused(x, kernels, grad, 2, 2, draw(grad.shape, memory_format=memory_format, seed=4), gate)


def test_x_is_zero_outside():
    """A kernel that takes one corner of its window alone moves the map by two pixels, and zeros move in, exactly."""
    x = draw((1, 2, 3, 3))
    kernels = torch.zeros(1, 25, 3, 3, device=DEVICE)
    kernels[:, 0] = 1
    y = backend.reassemble(x, kernels, 5, 1)
    assert torch.equal(y[:, :, 2:, 2:], x[:, :, :1, :1])
    assert not y[:, :, :2].any()
    assert not y[:, :, :, :2].any()


def test_gates_of_zero_and_one_give_one_of_the_two():
    x, logits, skip = maps(1, 3, 1, 2, 2, 2)
    gate = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]], device=DEVICE)[None, None]
    for large in (1e6, 1e-6):  # The smaller would be lost in the rounding of a sum with the larger.
        reassembled, _ = backend.fused_forward(x * large, logits, 2, 2)
        y, _ = backend.fused_forward(x * large, logits, 2, 2, skip, gate)
        assert torch.equal(y, torch.where(gate == 1, skip, reassembled))


def test_large_logits():
    x, logits, _ = maps(1, 2, 1, 2, 3, 2)
    y, kernels = backend.fused_forward(x, logits * 1e3 + 1e4, 3, 2)
    winner = F.one_hot((logits * 1e3 + 1e4).argmax(1), 9).movedim(-1, 1).double()
    torch.testing.assert_close(kernels.double(), winner, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(y.double(), plain(x.double(), winner, 3, 2), rtol=1e-2, atol=1e-2)


def test_dtypes_that_differ():
    """As autocast may leave them: each gradient has its tensor's dtype, y what both together have."""
    x, logits, grad = maps(1, 2, 1, 2, 2, 1)
    skip, gate = draw(grad.shape, seed=4), draw((1, 1, 1, 2), seed=5).sigmoid()
    y, kernels = backend.fused_forward(x.half(), logits, 2, 1, skip, gate)
    close(y, plain_fused(x.half().double(), logits.double(), 2, 1, skip.double(), gate.double()), grad)
    grads = backend.fused_backward(grad, x.half(), kernels, 2, 1, skip, gate)
    assert [tensor.dtype for tensor in grads] == [torch.float16, *[torch.float32] * 3]


def test_nothing_to_do():
    assert backend.reassemble(*(torch.zeros(0, n, 4, 4, device=DEVICE) for n in (3, 9)), 3, 1).shape == (0, 3, 4, 4)
    assert backend.similarity(*(torch.zeros(1, 0, 4, 4, device=DEVICE),) * 2, 3, 1).shape == (1, 9, 4, 4)


def test_shapes_that_do_not_fit():
    x, kernels, grad = maps(1, 4, 2, 3, 3, 2)
    with pytest.raises(FadevizError, match=r"kernels is \(1, 9, 4, 6\).*need \(1, 25, 4, 6\)"):
        backend.reassemble(x, kernels, 5, 2)
    with pytest.raises(FadevizError, match="4 channels do not divide into 3 groups"):
        backend.reassemble(x, kernels, 3, 2, 3)
    with pytest.raises(FadevizError, match="query is"):
        backend.similarity(grad[:, :, 1:], x, 3, 2)
    with pytest.raises(FadevizError, match="grad is"):
        backend.spread(grad[:, :, 1:], kernels[:, :, 1:], 3, 2)
    with pytest.raises(FadevizError, match="give both or neither"):
        backend.fused_forward(x, kernels, 3, 2, gate=grad[:, :1])


def test_available(monkeypatch):
    assert backend.available(DEVICE)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    compiled = copy().cuda
    assert compiled.available("cuda:1")
    assert not compiled.available("cpu")


@pytest.mark.parametrize("version", [None, "3.2.1"])
def test_without_triton(version, monkeypatch):
    """It can be imported all the same, and says what is missing."""
    if version is None:
        monkeypatch.setitem(sys.modules, "triton", None)
    else:
        monkeypatch.setattr("triton.__version__", version)
    without = copy().cuda
    assert not without.available("cuda")
    with pytest.raises(FadevizError, match="needs Triton, 3.3 or newer"):
        without.reassemble(*(torch.zeros(1, n, 4, 4) for n in (3, 9)), 3, 1)


def test_blocks_are_what_triton_can_make(monkeypatch):
    """Sides are powers of two, and no block is beyond what the registers hold; the interpreter would not mind."""
    launched = []
    monkeypatch.setattr(direct, "launch", lambda kernel, programs, tensors, sizes, **made: launched.append(made))
    sizes = itertools.product((1, 2, 5, 9), (1, 2, 3, 4), (1, 2, 3), (1, 5, 300), ((1, 1), (7, 33)), (CONTIGUOUS, LAST))
    for kernel_size, scale, groups, channels, size, memory_format in sizes:
        low, high = size, tuple(n * scale for n in size)
        x = torch.empty(2, groups * channels, *low, device="meta").contiguous(memory_format=memory_format)
        y = torch.empty(2, groups * channels, *high, device="meta").contiguous(memory_format=memory_format)
        kernels = torch.empty(2, groups * kernel_size**2, *high, device="meta")
        backend.reassemble(x, kernels, kernel_size, scale, groups)
        backend.similarity(y, x, kernel_size, scale, groups)
        backend.spread(y, kernels, kernel_size, scale, groups)
    assert len(launched) == 3 * 4 * 4 * 3 * 3 * 2 * 2
    for made in launched:
        assert all(made[side].bit_count() == 1 for side in {"T", "C", "N", "V", "W", "TAPS", "R"} & made.keys())
        assert made["T"] * made["C"] * made.get("V", 1) * made.get("P", 4) <= 4096
        assert made["T"] * made.get("TAPS", 1) * made.get("P", 1) <= 65536


def test_long_offsets_where_they_are_needed(monkeypatch):
    types = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, INDEX, **made: types.append(INDEX.name)

    monkeypatch.setattr(direct, "reassemble_kernel", Kernel())
    for batch in (2, 2**14, 2**14 + 1):  # of 2**17 elements; strides beyond the last one do not count
        x = torch.empty(batch, 2, 256, 256, device="meta")
        backend.reassemble(x, torch.empty(1, 1, 256, 256, device="meta").expand(batch, 1, 256, 256), 1, 1)
    assert types == ["int32", "int32", "int64"]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_more_than_two_billion_elements():
    x = torch.randn(2, 2**12 + 8, 512, 512, device=DEVICE, dtype=torch.float16)
    kernels = torch.randn(2, 9, 512, 512, device=DEVICE, dtype=torch.float16)
    y = backend.reassemble(x, kernels, 3, 1)
    part = y[1:, -2:, -8:].contiguous()
    close(part, plain(x[1:, -2:, -9:].double(), kernels[1:, :, -9:].double(), 3, 1)[:, :, 1:], x[:1, :1, :1])


COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget

class Driver:  # What a launch asks of a GPU that is not there.
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))

triton.runtime.driver.set_active(Driver())
kernels = []
triton.JITFunction.__getitem__ = lambda self, grid: (
    lambda *args, **options: kernels.append(self.run(*args, grid=grid, warmup=True, **options))
)
from fadeviz.ops.backends import cuda as backend, direct
backend.choose = backend.choose_forward = lambda *tensors: direct
dtype = getattr(torch, sys.argv[1])
for memory_format in (torch.contiguous_format, torch.channels_last):
    def empty(*shape):
        return torch.empty(shape, dtype=dtype).contiguous(memory_format=memory_format)
    for k, s, g in ((5, 2, 1), (2, 3, 2)):
        x, w, y = empty(1, 32, 4, 9), empty(1, g * k * k, 4 * s, 9 * s), empty(1, 32, 4 * s, 9 * s)
        backend.reassemble(x, w, k, s, g)
        backend.similarity(y, x, k, s, g)
        for direct._BUSY in (1024, 0):
            backend.spread(y, w, k, s, g)
    x, w, y, gate = empty(1, 32, 4, 9), empty(1, 25, 8, 18), empty(1, 32, 8, 18), empty(1, 1, 8, 18)
    for mixed in ((), (y, gate)):
        _, softmax = backend.fused_forward(x, w, 5, 2, *mixed)
        backend.fused_backward(y, x, softmax, 5, 2, *mixed)
assert len(kernels) == 28 and all(kernel.asm["cubin"] for kernel in kernels)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_compiles_for_hopper(dtype, tmp_path):
    """To machine code for sm_90, ahead of time: no GPU is needed."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    subprocess.run([sys.executable, "-W", "error", "-c", COMPILE, dtype], env=environment, check=True)


class TestInOperators:
    """The kernels where operators call them, through ``torch.library``."""

    @pytest.fixture(autouse=True)
    def chosen(self, monkeypatch):
        monkeypatch.setattr(torch_ops, "_cuda", lambda: backend)
        monkeypatch.setenv("FADEVIZ_BACKEND", "triton")

    @pytest.mark.parametrize("name", ["fade", "carafe", "sapa_i", "a2u"])
    def test_values_and_gradients(self, name, monkeypatch):
        torch.manual_seed(0)
        channels = 4
        operator = build_upsampler(name, channels, kernel_size=3).double().to(DEVICE)
        x = draw((1, channels, 2, 3), torch.float64).requires_grad_()
        skip = Skip(draw((1, channels, 4, 6), torch.float64, seed=1).requires_grad_())
        inputs = [x, skip.feature, *operator.parameters()]
        results = []
        for chosen in ("triton", "tiles"):
            monkeypatch.setenv("FADEVIZ_BACKEND", chosen)
            y = operator(x, skip)
            results.append([y, *torch.autograd.grad(y.sin().sum(), inputs, allow_unused=True)])
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)

    def test_kernels_that_somebody_looks_at_run(self):
        operator, seen = build_upsampler("fade", 2, kernel_size=3, compressed_channels=2).to(DEVICE), []
        x, skip = draw((1, 2, 1, 2)), Skip(draw((1, 2, 2, 4)))
        fused = operator(x, skip)
        operator.kernels.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
        torch.testing.assert_close(operator(x, skip), fused)
        assert seen == [(1, 9, 2, 4)]

    def test_fused_as_an_operator(self):
        x, logits = draw((1, 1, 1, 2), torch.float64), draw((1, 9, 2, 4), torch.float64)
        skip, gate = draw((1, 1, 2, 4), torch.float64), draw((1, 1, 2, 4), torch.float64).sigmoid()
        inputs = [tensor.requires_grad_() for tensor in (x, logits, skip, gate)]
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.fadeviz.fused, (*inputs, 3, 2), test_utils=tests)
        torch.library.opcheck(torch.ops.fadeviz.fused, (x, logits, None, None, 3, 2), test_utils=tests)

    @pytest.mark.slow
    def test_fused_twice_differentiable(self):
        x, logits = draw((1, 1, 1, 2), torch.float64), draw((1, 9, 2, 4), torch.float64)
        skip, gate = draw((1, 1, 2, 4), torch.float64), draw((1, 1, 2, 4), torch.float64).sigmoid()
        inputs = [tensor.requires_grad_() for tensor in (x, logits, skip, gate)]
        assert torch.autograd.gradgradcheck(lambda *given: torch.ops.fadeviz.fused(*given, 3, 2)[0], inputs)
