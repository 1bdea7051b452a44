"""Sampling at points: native code, torch's operators and a loop agree; threads, chunks, launches, derivatives."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fadeviz import FadevizError
from fadeviz.ops import query_points, sampled
from fadeviz.ops.backends import native_library, sampler

needs_compiler = pytest.mark.skipif(native_library.library() is None, reason="no C compiler")

SHAPES = [
    # channels, groups, heads, points, low-resolution size, scale
    (4, 2, 1, 9, (3, 5), 2),
    (6, 3, 2, 4, (4, 3), 1),
    (8, 1, 4, 1, (1, 6), 3),
    (24, 2, 1, 9, (2, 2), 2),
    (40, 1, 1, 25, (5, 1), 2),
    (160, 2, 2, 9, (3, 9), 2),
    (5, 1, 1, 9, (1, 1), 2),
]


def draw(channels, groups, heads, count, size, scale, dtype=torch.float64, memory_format=torch.contiguous_format):
    """A map, points of which many lie outside, kernels, a high-resolution map and a bias."""
    torch.manual_seed(0)
    high = tuple(scale * n for n in size)
    maps = [
        torch.randn(2, channels, *size, dtype=dtype),
        4 * torch.randn(2, groups * count * 2, *high, dtype=torch.promote_types(dtype, torch.float32)),
        torch.randn(2, heads * count, *high, dtype=dtype),
        torch.randn(2, channels, *high, dtype=dtype),
    ]
    maps[1].view(-1)[::3] = maps[1].view(-1)[::3].round()  # on pixels and on the border
    return [m.contiguous(memory_format=memory_format) for m in maps], torch.randn(heads, count, channels // heads).to(
        dtype
    )


def everything(maps, bias, groups, heads):
    x, points, kernels, y = maps
    return [
        sampled.sampled_sums(x, points, kernels, groups, heads),
        sampled.sampled_logits(y, x, points, bias, groups, heads),
        sampled.sampled_logits(y, x, points, None, groups, heads),
        *sampled.sampled_gradients(y, x, points, kernels, None, groups, heads, False, [True] * 3),
        *sampled.sampled_gradients(y, x, points, kernels, bias, groups, heads, True, [True] * 3),
    ]


def slow_sums(x, points, kernels, groups, heads):
    b, channels, h, w = x.shape
    high, wide = points.shape[2:]
    count = points.shape[1] // (2 * groups)
    y = x.new_zeros(b, channels, high, wide)
    for sample in range(b):
        for c in range(channels):
            g, head = c * groups // channels, c * heads // channels
            for i in range(high):
                for j in range(wide):
                    for m in range(count):
                        down, across = points[sample, (g * count + m) * 2 : (g * count + m) * 2 + 2, i, j].tolist()
                        row = (i + down) * (h - 1) / max(high - 1, 1)
                        column = (j + across) * (w - 1) / max(wide - 1, 1)
                        for r in (math.floor(row), math.floor(row) + 1):
                            for k in (math.floor(column), math.floor(column) + 1):
                                if 0 <= r < h and 0 <= k < w:
                                    share = (1 - abs(row - r)) * (1 - abs(column - k))
                                    y[sample, c, i, j] += (
                                        kernels[sample, head * count + m, i, j] * share * x[sample, c, r, k]
                                    )
    return y


@pytest.mark.parametrize("backend", ["tiles", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_sums_by_the_definition(shape, backend, monkeypatch):
    monkeypatch.setenv("FADEVIZ_BACKEND", backend)
    (x, points, kernels, _), _ = draw(*shape)
    want = slow_sums(x, points, kernels, *shape[1:3])
    torch.testing.assert_close(sampled.sampled_sums(x, points, kernels, *shape[1:3]), want, rtol=0, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_code_against_torch(shape, dtype, tolerance, memory_format, monkeypatch):
    maps, bias = draw(*shape, dtype=dtype, memory_format=memory_format)
    monkeypatch.setenv("FADEVIZ_BACKEND", "tiles")
    # On whole pixels float32 may fall on either side, where the slopes differ; and bfloat16 sums are rounded twice.
    want = everything([m.double() for m in maps], bias.double(), *shape[1:3])
    monkeypatch.setenv("FADEVIZ_BACKEND", "native")
    got = everything(maps, bias, *shape[1:3])
    for n, (a, b) in enumerate(zip(got, want, strict=True)):
        if n in (4, 7) and dtype != torch.float64:
            assert (a.double() - b).abs().gt(0.1 + 0.01 * b.abs()).double().mean() < 0.05
            continue
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * b.abs().max().item())
    assert got[0].dtype == dtype
    assert got[0].is_contiguous(memory_format=memory_format) or maps[0][0, 0].numel() == 1


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_any_strides(shape):
    maps, bias = draw(*shape)
    want = everything(maps, bias, *shape[1:3])
    wide = [F.pad(m, (1, 2, 0, 1)) for m in maps]
    sliced = [m[..., : m.shape[2] - 1, 1 : m.shape[3] - 2] for m in wide]
    padded = [torch.cat((m, m), 1).contiguous(memory_format=torch.channels_last)[:, : m.shape[1]] for m in maps]
    for views in (sliced, padded, [m.transpose(2, 3).contiguous().transpose(2, 3) for m in maps]):
        for got, wanted in zip(everything(views, bias, *shape[1:3]), want, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@needs_compiler
def test_same_bits_with_any_number_of_threads():
    maps, bias = draw(32, 2, 1, 9, (24, 24), 2, torch.float32, torch.channels_last)
    learned, before, results = torch.randn(4, 18, 48, 48), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            normed = query_points.pixel_norm_backward(maps[3][:, :4], maps[3][:, 4:8], torch.ones(4), 1e-5)
            results.append([*everything(maps, bias, 2, 1), query_points.neighbour_points(learned, 2, 3.0), *normed])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@needs_compiler
def test_points_that_are_no_numbers_end_nothing():
    maps, bias = draw(*SHAPES[0], dtype=torch.float32)
    maps[1][:, ::5] = math.nan
    maps[1][:, 1::5] = math.inf
    maps[1][:, 2::5] = -1e30
    everything(maps, bias, *SHAPES[0][1:3])


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_point_by_point_of_a_large_map(shape, monkeypatch):
    monkeypatch.setenv("FADEVIZ_BACKEND", "tiles")
    maps, bias = draw(*shape)
    want = everything(maps, bias, *shape[1:3])
    monkeypatch.setitem(sampler._CHUNK_BYTES, "cpu", 1)
    for got, wanted in zip(everything(maps, bias, *shape[1:3]), want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


class Launches(TorchDispatchMode):
    """Counts the operators that launch something on a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and "empty" not in str(func):
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_launches_do_not_grow_with_the_points():
    counts = []
    for points in (9, 25):
        (x, at, kernels, y), bias = draw(4, 2, 1, points, (4, 4), 2, torch.float32)
        walk = sampler.Sampler(x, sampler.Points(at, 2, 1))
        with Launches() as launches:
            walk.sums(kernels)
            walk.logits(y, bias)
            walk.gradients(y, kernels, True, True)
        counts.append(launches.count)
    assert counts[0] == counts[1] <= 13


@pytest.mark.parametrize("backend", ["tiles", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("reach", [0.0, 2.5])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_neighbour_points(count, reach, memory_format, backend, monkeypatch):
    monkeypatch.setenv("FADEVIZ_BACKEND", backend)
    torch.manual_seed(0)
    learned = torch.randn(6, 2 * count, 3, 5, dtype=torch.float64).contiguous(memory_format=memory_format)
    learned.requires_grad_()
    points = query_points.neighbour_points(learned, 3, reach)
    side = math.isqrt(count)
    for m in range(count):
        for d, regular in enumerate((m // side - side // 2, m % side - side // 2)):
            want = reach * learned.view(2, 3, 2 * count, 3, 5)[:, :, 2 * m + d].tanh() + regular
            torch.testing.assert_close(points[:, 2 * m + d :: 2 * count], want, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(lambda z: query_points.neighbour_points(z, 3, reach), learned, fast_mode=True)
    single = query_points.neighbour_points(learned.detach().float(), 3, reach)
    torch.testing.assert_close(single.double(), points.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["tiles", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8, 16, 32])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("size", [(1, 1), (37, 30)])
def test_norm_of_few_channels(channels, size, dtype, tolerance, backend, monkeypatch):
    monkeypatch.setenv("FADEVIZ_BACKEND", backend)
    torch.manual_seed(0)
    x, grad = torch.randn(2, 2, channels, *size, dtype=dtype)
    weight, bias = torch.randn(2, channels, dtype=dtype)
    given = [t.requires_grad_() for t in (x, weight, bias)]
    results = []
    for run in (
        lambda x, weight, bias: query_points.pixel_norm(x, weight, bias, 0.5),
        lambda x, weight, bias: F.layer_norm(x.permute(0, 2, 3, 1), (channels,), weight, bias, 0.5).permute(0, 3, 1, 2),
    ):
        y = run(*given)
        results.append([y, *torch.autograd.grad(y, given, grad)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["tiles", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "groups"), [(2, 2), (4, 1), (3, 2), (4, 2), (1, 2)])
@pytest.mark.parametrize("size", [(1, 1), (5, 4), (1, 7), (19, 33)])
def test_convolutions_of_few_channels(channels, groups, size, memory_format, backend, monkeypatch):
    monkeypatch.setenv("FADEVIZ_BACKEND", backend)
    torch.manual_seed(0)
    normal = partial(torch.randn, dtype=torch.float64)
    query = normal(2, groups * channels, *size).contiguous(memory_format=memory_format).requires_grad_()
    depthwise, weight, bias = normal(channels, 1, 3, 3), normal(18, channels, 3, 3), normal(18)
    given = [query, *(t.mul_(0.1).requires_grad_() for t in (depthwise, weight, bias))]
    up, regular = normal(2, 18 * groups, *size), torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    regular = torch.stack((regular.repeat_interleave(3), regular.repeat(3)), 1).view(-1, 1, 1)

    def by_torch():
        hidden = F.conv2d(query.reshape(-1, channels, *size), depthwise, padding=1, groups=channels)
        points = regular + 5 * F.conv2d(hidden, weight, bias, padding=1).tanh()
        return points.reshape(2, 18 * groups, *size)

    def by_operators():
        return query_points.convolved_points(
            query_points.group_conv(query, depthwise, groups), weight, bias, groups, 5.0
        )

    results = [[y, *torch.autograd.grad(y, given, up)] for y in (by_operators(), by_torch())]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["tiles", pytest.param("native", marks=needs_compiler)])
def test_convolutions_as_operators(backend, monkeypatch):
    monkeypatch.setenv("FADEVIZ_BACKEND", backend)
    torch.manual_seed(0)
    query = torch.randn(2, 4, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = [torch.randn(2, 1, 3, 3), torch.randn(18, 2, 3, 3) / 9, torch.randn(18)]
    depthwise, weight, bias = (w.requires_grad_() for w in weights)
    hidden = query_points.group_conv(query, depthwise, 2).detach().requires_grad_()
    torch.library.opcheck(query_points.group_conv, (query, depthwise, 2))
    torch.library.opcheck(query_points.convolved_points, (hidden, weight, bias, 2, 5.0))


@pytest.mark.parametrize("backend", ["tiles", pytest.param("native", marks=needs_compiler)])
def test_second_derivatives_are_refused(backend, monkeypatch):
    monkeypatch.setenv("FADEVIZ_BACKEND", backend)
    (x, points, kernels, _), _ = draw(*SHAPES[0])
    y = sampled.sampled_sums(x.requires_grad_(), points, kernels, 2, 1)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(FadevizError, match="LDA-AQU has first derivatives only"):
        grad.sum().backward()
