"""The reassembly family: every backend against slow loops, its gradients, and what torch asks of an operator."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from fadeviz import FadevizError
from fadeviz.benchmark.memory import MeasuringProcess
from fadeviz.ops import compressed
from fadeviz.ops.backends import native_library
from fadeviz.ops.compressed import compressed_conv
from fadeviz.ops.reassemble import KernelSoftmax, blend, choose_backend, kernel_softmax, reassemble, similarity, spread
from fadeviz.upsamplers import UPSAMPLERS, Skip, build_upsampler

CPU_BACKENDS = ["tiles", "native"]
FORMATS = [torch.contiguous_format, torch.channels_last]
# kernel size, scale, groups, channels, low-resolution size
CASES = [
    (5, 2, 1, 4, (5, 7)),
    (3, 2, 1, 20, (4, 4)),
    (7, 3, 1, 4, (6, 5)),
    (4, 2, 1, 16, (5, 6)),
    (1, 2, 1, 3, (3, 3)),
    (5, 1, 1, 70, (9, 2)),
    (3, 4, 2, 32, (5, 3)),
    (5, 2, 4, 8, (1, 9)),
    (6, 2, 1, 5, (1, 1)),
    (9, 2, 3, 3, (3, 20)),
    (5, 2, 2, 36, (6, 37)),
    (11, 2, 1, 6, (4, 18)),
]


@pytest.fixture(params=CPU_BACKENDS)
def backend(request):
    if request.param == "native" and native_library.library() is None:
        # A compiler that is there must build it: a broken source would otherwise pass for a missing compiler.
        assert not any(map(shutil.which, ("cc", "gcc", "clang")))
        pytest.skip("needs a C compiler")
    return request.param


def plain(x, kernels, k, s, groups=1):
    """Unfold, repeat, einsum: the definition in torch's own operators."""
    b, c, h, w = x.shape
    before = k // 2
    x = F.pad(x, (before, k - 1 - before, before, k - 1 - before))
    windows = F.unfold(x, k).view(b, groups, c // groups, k * k, h, w)
    windows = windows.repeat_interleave(s, 4).repeat_interleave(s, 5)
    weights = kernels.reshape(b, groups, k * k, h * s, w * s)
    return torch.einsum("bgckhw,bgkhw->bgchw", windows, weights).reshape(b, c, h * s, w * s)


def slow_reassemble(x, kernels, k, s, groups):
    b, c, h, w = x.shape
    y = x.new_zeros(b, c, h * s, w * s)
    for n in range(c):
        g = n // (c // groups)
        for i in range(h * s):
            for j in range(w * s):
                for u in range(k):
                    for v in range(k):
                        row, column = i // s + u - k // 2, j // s + v - k // 2
                        if 0 <= row < h and 0 <= column < w:
                            y[:, n, i, j] += kernels[:, (g * k + u) * k + v, i, j] * x[:, n, row, column]
    return y


def make(case, dtype=torch.float64, memory_format=torch.contiguous_format, batch=2):
    k, s, groups, channels, (h, w) = case
    torch.manual_seed(0)
    x = torch.randn(batch, channels, h, w, dtype=torch.float64)
    kernels = torch.randn(batch, groups * k * k, h * s, w * s, dtype=torch.float64)
    y = torch.randn(batch, channels, h * s, w * s, dtype=torch.float64)
    return [t.to(dtype).contiguous(memory_format=memory_format) for t in (x, kernels, y)]


def test_plain_is_the_definition():
    for case in CASES[:4]:
        k, s, groups, *_ = case
        x, kernels, _ = make(case)
        torch.testing.assert_close(plain(x, kernels, k, s, groups), slow_reassemble(x, kernels, k, s, groups))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(backend, case, memory_format):
    k, s, groups, *_ = case
    x, kernels, y = make(case, memory_format=memory_format)
    inputs = [x.requires_grad_(), kernels.requires_grad_()]
    got, want = reassemble(x, kernels, k, s, groups, backend), plain(x, kernels, k, s, groups)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(got, inputs, y), torch.autograd.grad(want, inputs, y), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_similarity(backend, case, memory_format):
    k, s, groups, *_ = case
    key, cotangent, query = make(case, memory_format=memory_format)
    inputs = [query.requires_grad_(), key.requires_grad_()]
    got = similarity(query, key, k, s, groups, backend)
    b, c, h, w = query.shape
    weights = torch.zeros_like(cotangent).requires_grad_()
    # reassemble is linear in its kernels: the derivative along each is the inner product with the window.
    want = torch.autograd.grad(plain(key, weights, k, s, groups), weights, query, create_graph=True)[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        torch.autograd.grad(got, inputs, cotangent),
        torch.autograd.grad(want, inputs, cotangent),
        rtol=0,
        atol=1e-11,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", CASES[:7])
def test_lower_precision(backend, case, memory_format, dtype):
    k, s, groups, *_ = case
    x, kernels, y = make(case, dtype, memory_format)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    for function, first, second in (
        (reassemble, x, kernels),
        (similarity, y, x),
        (spread, y, kernels),
    ):
        got = function(first, second, k, s, groups, backend)
        want = function(first.double(), second.double(), k, s, groups, "tiles")
        assert got.dtype == (torch.float32 if function is similarity else dtype)
        assert (got - want).abs().max() <= tolerance * want.abs().max()


def test_mixed_precision_and_mixed_formats(backend):
    x, kernels, y = make(CASES[0])
    want = plain(x, kernels, 5, 2)
    low = reassemble(x.bfloat16(), kernels.float().contiguous(memory_format=torch.channels_last), 5, 2, 1, backend)
    assert low.dtype == torch.bfloat16
    assert (low - want).abs().max() <= 0.03 * want.abs().max()
    x, kernels = x.bfloat16().requires_grad_(), kernels.float().requires_grad_()
    grads = torch.autograd.grad(reassemble(x, kernels, 5, 2, 1, backend), (x, kernels), y.bfloat16())
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32]


def test_maps_that_are_views(backend):
    # Neither contiguous nor channels last: a crop, a transpose, every other channel, an expanded map.
    torch.manual_seed(0)
    big = torch.randn(2, 8, 20, 9, dtype=torch.float64)
    kernels = torch.randn(1, 9, 10, 12, dtype=torch.float64).expand(2, 9, 10, 12)
    for x in (big[:, :4, 3:8, 1:7], big.transpose(2, 3)[:, :4, 1:6, 2:8], big[:, ::2, :5, :6]):
        torch.testing.assert_close(reassemble(x, kernels, 3, 2, 1, backend), plain(x, kernels, 3, 2))
        y = torch.randn(2, 4, 10, 12, dtype=torch.float64)[:, :, :, :]
        want = torch.autograd.functional.vjp(lambda x: plain(x, kernels, 3, 2), x, y)[1]
        torch.testing.assert_close(spread(y, kernels, 3, 2, 1, backend), want)


def test_what_lies_around_a_view_is_not_read(backend):
    torch.manual_seed(0)
    for k, s, channels, (h, w) in ((5, 2, 5, (6, 21)), (4, 3, 18, (3, 13)), (3, 1, 3, (5, 35))):
        maps = []
        for c, height, width in ((channels, h, w), (k * k, h * s, w * s), (channels, h * s, w * s)):
            around = torch.full((2, c + 2, height + 2, width + 5), torch.nan)
            inner = around[:, 1:-1, 1:-1, 2:-3]
            maps.append(inner.copy_(torch.randn(inner.shape)))
        x, kernels, y = maps
        for function, first, second in ((reassemble, x, kernels), (similarity, y, x), (spread, y, kernels)):
            got = function(first, second, k, s, 1, backend)
            assert torch.equal(got, function(first.contiguous(), second.contiguous(), k, s, 1, backend))
            assert got.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layouts_do_not_change_a_bit(dtype):
    if native_library.library() is None:
        pytest.skip("needs a C compiler")
    # Contiguous maps are computed on planes, others with their channels side by side; all sums are made in one order.
    for case in [*CASES, (5, 2, 1, 64, (5, 16)), (2, 1, 1, 7, (3, 33)), (7, 2, 2, 42, (8, 9)), (3, 4, 1, 17, (2, 15))]:
        k, s, groups, *_ = case
        results = []
        for memory_format in FORMATS:
            x, kernels, y = make(case, dtype, memory_format)
            for function, first, second in ((reassemble, x, kernels), (similarity, y, x), (spread, y, kernels)):
                results.append(function(first, second, k, s, groups, "native"))
        for contiguous, channels_last in zip(results[:3], results[3:], strict=True):
            assert torch.equal(contiguous, channels_last)


def test_many_chunks(backend):
    # Large enough that tile rows and images fall into several chunks, with ragged tiles at the rim.
    torch.manual_seed(0)
    x = torch.randn(3, 32, 50, 43, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(3, 25, 100, 86, dtype=torch.float64, requires_grad=True)
    fast, slow = reassemble(x, kernels, 5, 2, 1, backend), plain(x, kernels, 5, 2)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-11)
    cotangent = torch.randn_like(slow)
    got = torch.autograd.grad(fast, (x, kernels), cotangent)
    want = torch.autograd.grad(slow, (x, kernels), cotangent)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_windows_higher_than_a_chunk(backend):
    # A chunk of the tiles is 4 rows here, so that a window reaches over four of them.
    torch.manual_seed(0)
    y = torch.randn(2, 64, 18, 19, dtype=torch.float64)
    kernels = torch.randn(2, 121, 18, 19, dtype=torch.float64)
    want = torch.autograd.functional.vjp(lambda x: plain(x, kernels, 11, 1), y, y)[1]
    torch.testing.assert_close(spread(y, kernels, 11, 1, 1, backend), want, rtol=0, atol=1e-10)
    torch.testing.assert_close(reassemble(y, kernels, 11, 1, 1, backend), plain(y, kernels, 11, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("side", [7, 14])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_memory_of_the_tiles(side, layout, measuring):
    extra, why = measuring.peak({"what": "reassembly", "form": "tiles", "layout": layout, "shape": [4, 512, side]})
    if extra is None:
        pytest.skip(why[0])
    needed = 2 * 4 * 4 * (512 * side**2 + (25 + 512) * (2 * side) ** 2)  # x, kernels, y and the gradients
    assert needed / 2 + extra <= 1.5 * needed


@pytest.fixture(scope="module")
def measuring():
    with MeasuringProcess(torch.device("cpu"), 1) as process:
        yield process


def test_threads_do_not_change_a_bit(backend):
    x, kernels, y = make((5, 2, 1, 24, (13, 9)), torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                [
                    reassemble(x, kernels, 5, 2, 1, backend),
                    similarity(y, x, 5, 2, 1, backend),
                    spread(y, kernels, 5, 2, 1, backend),
                    kernel_softmax(kernels, None, 5, 1, backend),
                ]
            )
    finally:
        torch.set_num_threads(before)
    if backend == "native":  # the products of the tiles are the BLAS library's, which promises nothing
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))
    for a, b in zip(results[0], results[2], strict=True):
        torch.testing.assert_close(a, b)


def test_one_hot_centre_is_nearest_exactly(backend):
    x = torch.randn(1, 3, 6, 5)
    kernels = torch.zeros(1, 25, 12, 10)
    kernels[:, 12] = 1
    y = reassemble(x, kernels, 5, 2, backend=backend)
    assert torch.equal(y, F.interpolate(x, scale_factor=2, mode="nearest"))


def test_keeps_the_memory_format(backend):
    last = torch.channels_last
    x = torch.randn(2, 8, 6, 5).contiguous(memory_format=last)
    kernels, y = torch.rand(2, 9, 12, 10), torch.randn(2, 8, 12, 10)
    assert reassemble(x, kernels, 3, 2, 1, backend).is_contiguous(memory_format=last)
    assert reassemble(x.contiguous(), kernels, 3, 2, 1, backend).is_contiguous()
    assert similarity(y.contiguous(memory_format=last), x, 3, 2, 1, backend).is_contiguous(memory_format=last)
    assert spread(y, kernels, 3, 2, 1, backend).is_contiguous()
    assert kernel_softmax(kernels.contiguous(memory_format=last), None, 3, 1, backend).is_contiguous(memory_format=last)


def test_gradient_of_one_argument_alone(backend):
    x, kernels, y = make(CASES[0])
    x.requires_grad_(), kernels.requires_grad_()

    def grads(x, kernels, *wanted):
        return torch.autograd.grad(reassemble(x, kernels, 5, 2, 1, backend), wanted, y)

    both = grads(x, kernels, x, kernels)
    assert torch.equal(grads(x, kernels.detach(), x)[0], both[0])
    assert torch.equal(grads(x.detach(), kernels, kernels)[0], both[1])


def test_twice_differentiable(backend):
    x, kernels, y = (t[:1].detach().requires_grad_() for t in make((3, 2, 1, 2, (3, 2))))
    logits = kernels.detach().clone().requires_grad_()
    coarse = torch.randn(1, 9, 3, 2, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(1, 1, 6, 4, dtype=torch.float64, requires_grad=True)
    check = torch.autograd.gradgradcheck
    assert check(lambda x, w: reassemble(x, w, 3, 2, 1, backend), (x, kernels))
    assert check(lambda q, k: similarity(q, k, 3, 2, 1, backend), (y, x))
    assert check(lambda y, w: spread(y, w, 3, 2, 1, backend), (y, kernels))
    assert check(lambda a, b: kernel_softmax(a, b, 3, 1, backend), (logits, coarse))
    weight, rim = torch.randn(2, 2, 3, 3).double(), torch.randn(2, 3, 3).double()
    conv = [t.requires_grad_() for t in (weight, torch.randn(2).double(), rim)]
    assert check(lambda y, *rest: torch.ops.fadeviz.rimmed_conv(y, *rest, 1, 1), (y, *conv))
    assert check(blend, (y, y.detach().flip(0).sin().requires_grad_(), gate))


def test_empty_batch(backend):
    x, kernels = torch.zeros(0, 4, 5, 6, requires_grad=True), torch.zeros(0, 9, 10, 12, requires_grad=True)
    y = reassemble(x, kernels, 3, 2, 1, backend)
    assert y.shape == (0, 4, 10, 12)
    assert [g.shape for g in torch.autograd.grad(y.sum(), (x, kernels))] == [x.shape, kernels.shape]
    coarse = torch.zeros(0, 9, 5, 6, requires_grad=True)
    normalised = kernel_softmax(kernels, coarse, 3, 1, backend)
    assert [g.shape for g in torch.autograd.grad(normalised.sum(), (kernels, coarse))] == [kernels.shape, coarse.shape]


class TestSoftmax:
    @pytest.mark.parametrize("memory_format", FORMATS)
    @pytest.mark.parametrize(("k", "groups", "scale"), [(5, 1, 2), (3, 2, 3), (1, 1, 2), (4, 3, 1), (7, 1, 4)])
    @pytest.mark.parametrize("with_coarse", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_values_and_gradients(self, backend, k, groups, scale, memory_format, with_coarse, dtype):
        torch.manual_seed(0)
        shape = (2, groups * k * k, 5 * scale, 6 * scale)
        logits = (8 * torch.randn(shape)).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        coarse = torch.randn(2, groups * k * k, 5, 6).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        total, inputs = logits, [logits]
        if with_coarse:
            total, inputs = logits + F.interpolate(coarse, scale_factor=scale, mode="nearest"), [logits, coarse]
        want = total.reshape(2, groups, k * k, *shape[2:]).softmax(2).reshape(shape)
        got = kernel_softmax(logits, coarse if with_coarse else None, k, groups, backend)
        cotangent = torch.randn(shape).to(dtype)
        tolerance = {"rtol": 1e-12, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-6}
        torch.testing.assert_close(got, want, **tolerance)
        torch.testing.assert_close(
            torch.autograd.grad(got, inputs, cotangent), torch.autograd.grad(want, inputs, cotangent), **tolerance
        )

    def test_extreme_logits(self, backend):
        logits = torch.zeros(1, 9, 1, 6)
        logits[0, :, 0, 0] = torch.linspace(-1e4, 0, 9)  # nothing but the largest is left
        logits[0, :, 0, 1] = torch.linspace(-90, 0, 9)  # down to the smallest numbers
        logits[0, :, 0, 2] = 3e38
        logits[0, 1:, 0, 3] = -torch.inf
        logits[0, 0, 0, 4] = torch.nan
        logits[0, 0, 0, 5] = torch.inf
        got, want = kernel_softmax(logits, None, 3, 1, backend), logits.double().softmax(1).float()
        torch.testing.assert_close(got[..., :4], want[..., :4], rtol=1e-5, atol=1e-38)
        assert got[..., 4:].isnan().all()

    def test_kernels_sum_to_one(self, backend):
        kernels = kernel_softmax(torch.randn(2, 50, 6, 6), None, 5, 2, backend)
        torch.testing.assert_close(kernels.unflatten(1, (2, 25)).sum(2), torch.ones(2, 2, 6, 6))

    def test_is_float32_under_autocast(self):
        logits = torch.randn(1, 9, 4, 4).bfloat16()
        assert KernelSoftmax(3)(logits).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert KernelSoftmax(3)(logits).dtype == torch.float32

    def test_shapes_that_do_not_fit(self):
        with pytest.raises(FadevizError, match="the logits have 9 channels; kernel_size 5 and groups 1 need 25"):
            kernel_softmax(torch.zeros(1, 9, 4, 4))
        with pytest.raises(FadevizError, match=r"logits are \(1, 9, 5, 4\), coarse ones \(1, 9, 2, 2\)"):
            kernel_softmax(torch.zeros(1, 9, 5, 4), torch.zeros(1, 9, 2, 2), 3)


class TestBlend:
    @pytest.mark.parametrize("memory_format", FORMATS)
    @pytest.mark.parametrize("channels", [1, 5, 16, 37])
    @pytest.mark.parametrize("name", ["native", "tiles"])
    def test_values_and_gradients(self, memory_format, channels, name, monkeypatch):
        monkeypatch.setenv("FADEVIZ_BACKEND", name)
        torch.manual_seed(0)
        shape = (2, channels, 23, 31)
        maps = [torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format) for _ in range(3)]
        r, e, grad = maps
        gate = torch.rand(2, 1, 23, 31, dtype=torch.float64)
        inputs = [r.requires_grad_(), e.requires_grad_(), gate.requires_grad_()]
        want = gate * e + (1 - gate) * r
        got = blend(r, e, gate)
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(
            torch.autograd.grad(got, inputs, grad), torch.autograd.grad(want, inputs, grad), rtol=1e-12, atol=1e-12
        )

    def test_mixed_formats_and_types(self):
        r, e, gate = torch.randn(1, 4, 6, 6).bfloat16(), torch.randn(1, 4, 6, 6), torch.rand(1, 1, 6, 6)
        got = blend(r.contiguous(memory_format=torch.channels_last), e, gate)
        torch.testing.assert_close(got, gate * e + (1 - gate) * r.float())


class TestMisuse:
    def test_blend_checks_its_shapes(self):
        r, e, gate = torch.zeros(2, 4, 4, 4), torch.ones(2, 4, 4, 4), torch.rand(2, 1, 4, 4)
        for maps in ((r, e, gate[:1]), (r, e, gate.expand(2, 4, 4, 4)), (r, e[:1], gate), (r, e[:, :2], gate)):
            with pytest.raises(FadevizError, match="two maps of one shape and a gate of"):
                blend(*maps)

    @pytest.mark.skipif(native_library.library() is None, reason="needs a C compiler")
    def test_native_refuses_what_it_cannot_read(self):
        x = torch.zeros(1, 2, 3, 3)
        with pytest.raises(FadevizError, match="supports kernel_size up to 64 and scale_factor up to 16, not 97 and 1"):
            reassemble(x, torch.zeros(1, 97 * 97, 3, 3), 97, 1, backend="native")
        with pytest.raises(FadevizError, match="not 1 and 17"):
            reassemble(x, torch.zeros(1, 1, 51, 51), 1, 17, backend="native")
        with pytest.raises(FadevizError, match="reads floating-point maps on the CPU, not torch.int64"):
            reassemble(x.long(), torch.zeros(1, 9, 6, 6), 3, backend="native")
        with pytest.raises(FadevizError, match="the maps are on cpu, meta. Move them to one device"):
            reassemble(x, torch.zeros(1, 9, 6, 6, device="meta"), 3, backend="native")

    @pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch itself
    def test_forward_mode_is_refused_not_zero(self):
        x, kernels = torch.randn(1, 2, 3, 3), torch.rand(1, 9, 6, 6)
        with pytest.raises(FadevizError, match="there is no forward-mode derivative"):
            torch.func.jvp(lambda x: reassemble(x, kernels, 3), (x,), (x,))

    def test_autocast_rounds_no_float32_maps(self, backend):
        x, kernels, y = make(CASES[2], torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            low = similarity(y, x, 7, 3, 1, backend), reassemble(x, kernels, 7, 3, 1, backend)
        torch.testing.assert_close(low, (similarity(y, x, 7, 3, 1), reassemble(x, kernels, 7, 3)))

    @pytest.mark.parametrize("name", ["fade", "carafe", "encoder_kernel"])
    def test_autocast_leaves_float64_alone(self, name):
        torch.manual_seed(0)
        operator = build_upsampler(name, 8).double()
        x, skip = torch.randn(1, 8, 4, 5).double(), Skip(torch.randn(1, 8, 8, 10).double())
        want = operator(x, skip)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(operator(x, skip), want, rtol=1e-12, atol=1e-12)

    def test_convolutions_of_another_class_are_called(self):
        class Loud(torch.nn.Conv2d):
            def forward(self, x):
                return super().forward(x) * 0 + 7

        operator = build_upsampler("fade", 8)
        x, skip = torch.randn(1, 8, 4, 5), Skip(torch.randn(1, 8, 8, 10))
        before = operator(x, skip)
        operator.semi_shift.compressor_encoder.__class__ = Loud
        assert not torch.equal(operator(x, skip), before)

    def test_samples_of_guide_and_map_must_match(self):
        with pytest.raises(FadevizError, match="FADE: skip.feature has batch size 1, but x has 2"):
            build_upsampler("fade", 4)(torch.zeros(2, 4, 3, 3), Skip(torch.zeros(1, 4, 6, 6)))


UNOPTIMISED = tuple(flag.replace("-O3", "-O0") for flag in native_library._FLAGS)
"""For libraries that are built to be found, damaged or refused, and compute nothing: built in no time."""


class TestChoice:
    def test_by_name(self, monkeypatch):
        x = torch.zeros(1, 4, 3, 3)
        expected = "tiles" if native_library.library() is None else "native"
        assert choose_backend(x, 5, 2) == expected
        assert choose_backend(x.to("meta"), 5, 2) == "tiles"
        monkeypatch.setenv("FADEVIZ_BACKEND", "tiles")
        assert choose_backend(x, 5, 2) == "tiles"
        monkeypatch.setenv("FADEVIZ_BACKEND", "tile")
        with pytest.raises(FadevizError, match="no backend 'tile'. Nearest: 'tiles'"):
            choose_backend(x, 5, 2)

    def test_unknown_name(self):
        with pytest.raises(FadevizError, match="no backend 'cuda'"):
            reassemble(torch.zeros(1, 4, 3, 3), torch.zeros(1, 9, 6, 6), 3, 2, backend="cuda")

    def test_kernels_too_large_for_the_c_code(self):
        assert choose_backend(torch.zeros(1, 1, 2, 2), 65, 2) == "tiles"

    @pytest.mark.parametrize("trouble", ["no compiler", "broken compiler", "no folder"])
    def test_without_a_compiler_the_tiles_serve(self, trouble, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        if trouble == "no compiler":
            monkeypatch.setenv("PATH", str(tmp_path))
        elif trouble == "broken compiler":
            (tmp_path / "cc").write_text("#!/bin/sh\nexit 1\n")
            (tmp_path / "cc").chmod(0o755)
            monkeypatch.setenv("PATH", str(tmp_path))
        else:
            (tmp_path / "cache").write_text("a file where the folder should be")
            monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "cache"))
        native_library.library.cache_clear()
        try:
            assert native_library.library() is None
            x, kernels, _ = make(CASES[0])
            assert choose_backend(x, 5, 2) == "tiles"
            torch.testing.assert_close(reassemble(x, kernels, 5, 2), plain(x, kernels, 5, 2))
            with pytest.raises(FadevizError, match="backend='native' needs a C compiler"):
                reassemble(x, kernels, 5, 2, backend="native")
        finally:
            native_library.library.cache_clear()

    @pytest.mark.parametrize(
        "script",
        [
            "",  # an empty file: no shell takes it for a program, and some do
            "#!/nonexistent/interpreter",
            "#!/bin/sh\nexit 0",  # makes nothing
            "#!/bin/sh\nyes nonsense | head -c 100000; yes nonsense | head -c 100000 >&2; exit 3",
            "#!/bin/sh\ncat; exit 1",  # waits for input
            '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo nonsense > "$2"',  # no library
            '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; mkdir "$2"',
            "#!/bin/sh\nkill -9 $$",
        ],
    )
    def test_an_odd_compiler_leaves_the_tiles(self, script, monkeypatch, tmp_path, capfd):
        (tmp_path / "odd").write_text(script)
        (tmp_path / "odd").chmod(0o755)
        monkeypatch.setenv("CC", f"{tmp_path / 'odd'} -O2 -Wall")
        self.falls_back(monkeypatch, tmp_path, capfd)

    @pytest.mark.parametrize("cc", ["", "/nonexistent", "'never closed", 'cc "', "cc\\", "/", ".", "\udcff", "  "])
    def test_an_odd_name_of_a_compiler_leaves_the_tiles(self, cc, monkeypatch, tmp_path, capfd):
        monkeypatch.setenv("CC", cc)
        self.falls_back(monkeypatch, tmp_path, capfd)

    @pytest.mark.parametrize("trouble", ["no home", "no user", "a relative home", "no folder for temporary files"])
    def test_without_a_place_for_the_library(self, trouble, monkeypatch, tmp_path, capfd):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.chdir(tmp_path)
        if trouble == "a relative home":
            monkeypatch.setenv("HOME", "somewhere")
            monkeypatch.setenv("XDG_CACHE_HOME", "cache")
        if trouble != "no home":

            def nobody(uid):
                raise KeyError(f"getpwuid(): uid not found: {uid}")

            monkeypatch.setattr("pwd.getpwuid", nobody)
        if trouble == "no folder for temporary files":

            def nowhere():
                raise FileNotFoundError("No usable temporary directory found")

            monkeypatch.setattr(native_library, "tempfile", SimpleNamespace(gettempdir=nowhere))
        # The user's cache, if any, is there already: it is not for this test to build in it.
        monkeypatch.setenv("PATH", str(tmp_path))
        assert all(folder.is_absolute() for folder in native_library._folders())
        self.falls_back(monkeypatch, tmp_path, capfd, home=False)
        assert list(tmp_path.iterdir()) == []

    def falls_back(self, monkeypatch, tmp_path, capfd, home=True):
        """All others but $CC hidden, there is no library, and the tiles compute silently."""
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        which = shutil.which
        monkeypatch.setattr(
            native_library.shutil, "which", lambda name: None if name in ("cc", "gcc", "clang") else which(name)
        )
        if home:
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
            monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        native_library.library.cache_clear()
        try:
            assert native_library.library() is None
            x, kernels, _ = make(CASES[0])
            torch.testing.assert_close(reassemble(x, kernels, 5, 2), plain(x, kernels, 5, 2))
        finally:
            native_library.library.cache_clear()
        assert capfd.readouterr() == ("", "")

    @pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
    def test_a_library_of_something_else_is_not_used(self, monkeypatch, tmp_path):
        make = f'echo "int x;" | {shutil.which("cc")} -shared -xc - -o "$2"'
        (tmp_path / "odd").write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; {make}')
        (tmp_path / "odd").chmod(0o755)
        monkeypatch.setenv("CC", str(tmp_path / "odd"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(native_library, "_FLAGS", UNOPTIMISED)
        native_library.library.cache_clear()
        try:
            loaded = native_library.library()
            assert loaded is not None
            assert hasattr(loaded, "fadeviz_reassemble_f32")
        finally:
            native_library.library.cache_clear()

    @pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
    def test_builds_in_an_empty_cache_and_leaves_one_file(self, tmp_path):
        code = "from fadeviz.ops.backends import native_library; "
        code += f"native_library._FLAGS = {UNOPTIMISED!r}; assert native_library.library() is not None"
        environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        pair = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
        assert [process.wait() for process in pair] == [0, 0]
        (library,) = (tmp_path / "fadeviz").iterdir()
        assert library.suffix == ".so"

    @pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
    def test_a_damaged_library_is_built_again(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(native_library, "_FLAGS", UNOPTIMISED)
        native_library.library.cache_clear()
        (tmp_path / "fadeviz").mkdir(mode=0o700)
        try:
            path = native_library._find(tmp_path / "fadeviz", shutil.which("cc"), 32)
            whole = path.read_bytes()
            path.write_bytes(whole[:3000])
            assert native_library._find(tmp_path / "fadeviz", shutil.which("cc"), 32).read_bytes() == whole
        finally:
            native_library.library.cache_clear()

    @pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
    def test_a_folder_others_can_write_to_is_not_trusted(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
        monkeypatch.setattr(native_library, "_FLAGS", UNOPTIMISED)
        (tmp_path / "fadeviz").mkdir()
        (tmp_path / "fadeviz").chmod(0o777)
        native_library.library.cache_clear()
        try:
            assert native_library.library() is not None
            assert list((tmp_path / "fadeviz").iterdir()) == []
        finally:
            native_library.library.cache_clear()


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("cc") is None, reason="needs a compiler on x86-64")
@pytest.mark.slow
@pytest.mark.parametrize("processor", ["haswell", "x86-64"])
def test_narrower_vectors(processor, tmp_path, monkeypatch):
    # Machines without AVX-512, and without AVX: the same code with other vectors.
    if processor == "haswell" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs AVX2")
    flags = [flag if flag != "-march=native" else f"-march={processor}" for flag in native_library._FLAGS]
    monkeypatch.setattr(native_library, "_FLAGS", [*flags, "-mfma"] if processor == "haswell" else flags)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native_library.library.cache_clear()
    try:
        assert native_library.library() is not None
        for case in CASES:
            for memory_format in FORMATS:
                test_values_and_gradients("native", case, memory_format)
                test_lower_precision("native", case, memory_format, torch.float32)
        for k, groups, scale in ((5, 1, 2), (3, 2, 3), (2, 1, 2), (7, 1, 2)):
            TestSoftmax().test_values_and_gradients(
                "native", k, groups, scale, torch.channels_last, True, torch.float32
            )
        TestSoftmax().test_extreme_logits("native")
    finally:
        native_library.library.cache_clear()


class TestAsOperators:
    def test_opcheck(self, backend):
        x, kernels, y = make(CASES[0], memory_format=torch.channels_last)
        x.requires_grad_(), kernels.requires_grad_(), y.requires_grad_()
        ops = torch.ops.fadeviz
        options = (5, 2, 1, backend)
        gate = torch.rand(2, 1, 10, 14, dtype=torch.float64, requires_grad=True)
        coarse = torch.randn(2, 25, 5, 7, dtype=torch.float64, requires_grad=True)
        torch.library.opcheck(ops.reassemble, (x, kernels, *options))
        torch.library.opcheck(ops.similarity, (y, x, *options))
        torch.library.opcheck(ops.spread, (y, kernels, *options))
        torch.library.opcheck(ops.kernel_softmax, (kernels, coarse, *options, torch.float64))
        torch.library.opcheck(ops.kernel_softmax, (kernels, None, 5, 1, 1, backend, torch.float64))
        weight, rim = torch.randn(3, 4, 3, 3).double().requires_grad_(), torch.randn(3, 3, 3).double().requires_grad_()
        torch.library.opcheck(ops.rimmed_conv, (y, weight, torch.randn(3).double(), rim, 1, 1))
        torch.library.opcheck(ops.blend, (y, y.detach().sin().requires_grad_(), gate))

    @pytest.mark.parametrize("name", ["fade", "carafe"])
    def test_traces_without_a_break(self, name):
        # aot_eager traces forward and backward as the compiler does, without compiling anything.
        torch.manual_seed(0)
        operator = build_upsampler(name, 8)
        x, feature = torch.randn(1, 8, 5, 4, requires_grad=True), torch.randn(1, 8, 10, 8, requires_grad=True)
        compiled = torch.compile(operator, backend="aot_eager", fullgraph=True)
        results = []
        for module in (operator, compiled):
            y = module(x, Skip(feature))
            results.append((y, *torch.autograd.grad(y.square().sum(), [x, *operator.parameters()])))
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler, in itself
def test_compiles():
    """The real compiler, forward and backward, on a network of one operator."""
    torch.manual_seed(0)
    operator = build_upsampler("fade", 8)
    x, feature = torch.randn(1, 8, 6, 5, requires_grad=True), torch.randn(1, 8, 12, 10, requires_grad=True)
    results = []
    for module in (operator, torch.compile(operator, fullgraph=True)):
        y = module(x, Skip(feature))
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, feature, *operator.parameters()])))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


class TestCompressedConv:
    @pytest.mark.parametrize("on_gpu", [False, True])
    @pytest.mark.parametrize("size", [(9, 7), (3, 3), (2, 1), (1, 8), (4, 5)])
    @pytest.mark.parametrize(("k", "dilation"), [(3, 1), (5, 1), (3, 2), (1, 1)])
    def test_one_convolution_equals_two(self, size, k, dilation, on_gpu, monkeypatch):
        monkeypatch.setattr(compressed, "_is_launch_bound", lambda x: on_gpu)
        torch.manual_seed(0)
        compressor = torch.nn.Conv2d(3, 32, 1).double()
        conv = torch.nn.Conv2d(32, 5, k, padding=(k - 1) * dilation // 2, dilation=dilation).double()
        x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
        inputs = [x, *compressor.parameters(), *conv.parameters()]
        want, got = conv(compressor(x)), compressed_conv(x, compressor, conv)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        cotangent = torch.randn_like(want)
        torch.testing.assert_close(
            torch.autograd.grad(got, inputs, cotangent),
            torch.autograd.grad(want, inputs, cotangent),
            rtol=1e-11,
            atol=1e-11,
        )

    def test_modules_that_somebody_looks_at_run(self):
        compressor, conv = torch.nn.Conv2d(3, 32, 1), torch.nn.Conv2d(32, 5, 3, padding=1)
        seen = []
        x = torch.randn(1, 3, 6, 6)
        before = compressed_conv(x, compressor, conv)
        handle = compressor.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
        torch.testing.assert_close(compressed_conv(x, compressor, conv), before)
        handle.remove()
        compressed_conv(x, compressor, conv)
        assert seen == [(1, 32, 6, 6)]


def test_shapes_that_do_not_fit():
    with pytest.raises(FadevizError, match=r"kernels are \(1, 9, 10, 10\).*need \(1, 25, 10, 10\)"):
        reassemble(torch.zeros(1, 4, 5, 5), torch.zeros(1, 9, 10, 10), 5, 2)
    with pytest.raises(FadevizError, match="3 channels do not divide into 2 groups"):
        reassemble(torch.zeros(1, 3, 5, 5), torch.zeros(1, 18, 10, 10), 3, 2, groups=2)
    with pytest.raises(FadevizError, match=r"the query is \(1, 4, 9, 10\).*\(1, 4, 10, 10\) is needed"):
        similarity(torch.zeros(1, 4, 9, 10), torch.zeros(1, 4, 5, 5), 5, 2)


def test_every_backend_gives_every_operator_the_same(monkeypatch):
    for name in UPSAMPLERS:
        torch.manual_seed(0)
        operator = build_upsampler(name, 8).double().eval()
        feature = torch.randn(2, 8, 10, 14, dtype=torch.float64)
        _, indices = operator.pool(feature)
        x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
        results = []
        for backend in CPU_BACKENDS:
            monkeypatch.setenv("FADEVIZ_BACKEND", backend)
            results.append(operator(x, Skip(feature, indices)))
        torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)
