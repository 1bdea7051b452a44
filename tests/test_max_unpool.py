"""Max pooling with positions and the way back, against plain loops: odd sizes, both rounding modes, ties."""

import math

import pytest
import torch

from fadeviz import FadevizError
from fadeviz.upsamplers import MaxUnpool, Skip
from oracles import FORMATS


def slow_pool(feature, s, ceil_mode):
    """The first maximum of every window in row-major order, and where it was."""
    rows, columns = (math.ceil(side / s) if ceil_mode else side // s for side in feature.shape[-2:])
    wide = feature.shape[-1]
    pooled = feature.new_zeros(*feature.shape[:2], rows, columns)
    indices = torch.zeros_like(pooled, dtype=torch.int64)
    for n, plane in enumerate(feature.flatten(0, 1)):
        for i in range(rows):
            for j in range(columns):
                best, place = -math.inf, None
                for row in range(i * s, min(i * s + s, feature.shape[-2])):
                    for column in range(j * s, min(j * s + s, wide)):
                        if place is None or plane[row, column].item() > best:
                            best, place = plane[row, column].item(), row * wide + column
                pooled.flatten(0, 1)[n, i, j] = best
                indices.flatten(0, 1)[n, i, j] = place
    return pooled, indices


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("size", "s"), [((6, 4), 2), ((5, 8), 2), ((7, 5), 2), ((8, 7), 3), ((2, 3), 2)])
def test_against_the_slow_loop(size, s, ceil_mode, memory_format):
    torch.manual_seed(0)
    # Few values, so that most windows tie; some windows are below everything.
    feature = torch.randint(-2, 2, (2, 3, *size)).double()
    feature[feature == -2] = -math.inf
    operator = MaxUnpool(3, scale_factor=s, ceil_mode=ceil_mode)
    pooled, indices = operator.pool(feature.contiguous(memory_format=memory_format))
    want_pooled, want_indices = slow_pool(feature, s, ceil_mode)
    assert torch.equal(pooled, want_pooled)
    assert torch.equal(indices, want_indices)
    x = torch.randn_like(want_pooled).contiguous(memory_format=memory_format).requires_grad_()
    y = operator(x, Skip(feature, indices))
    want = torch.zeros_like(feature)
    for n in range(2):
        for c in range(3):
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    place = want_indices[n, c, i, j].item()
                    want[n, c, place // size[1], place % size[1]] = x[n, c, i, j].item()
    assert torch.equal(y, want)
    cotangent = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, x, cotangent)
    assert torch.equal(grad.flatten(2), cotangent.flatten(2).gather(2, want_indices.flatten(2)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_are_moved_not_changed(dtype):
    torch.manual_seed(0)
    operator, feature = MaxUnpool(4, ceil_mode=True), torch.randn(1, 4, 7, 10).to(dtype)
    pooled, indices = operator.pool(feature)
    with torch.autocast("cpu", torch.bfloat16):
        y = operator(pooled, Skip(feature, indices))
    assert y.dtype == dtype
    assert y.shape == feature.shape
    assert torch.equal(y[y != 0], feature[y != 0])
    assert torch.equal(operator.pool(y)[0], pooled.clamp(min=0))


def test_a_window_of_one_pixel_keeps_its_sign():
    feature = torch.full((1, 1, 3, 3), -1.0)
    operator = MaxUnpool(1, ceil_mode=True)
    pooled, indices = operator.pool(feature)
    again, _ = operator.pool(operator(pooled, Skip(feature, indices)))
    assert again.flatten().tolist() == [0, 0, 0, -1]


def test_costs_nothing():
    assert MaxUnpool(64).multiply_adds(112, 112) == 0
    assert "ceil_mode" not in repr(MaxUnpool(4))
    assert "ceil_mode=True" in repr(MaxUnpool(4, ceil_mode=True))


def test_a_feature_of_another_size():
    feature = torch.zeros(1, 2, 7, 8)
    pooled, indices = MaxUnpool(2).pool(feature)
    assert pooled.shape == (1, 2, 3, 4)
    with pytest.raises(FadevizError, match="x is 3x4, but skip.feature is 7x8, .*ceil_mode True pool to 4x4"):
        MaxUnpool(2, ceil_mode=True)(pooled, Skip(feature, indices))
    with pytest.raises(FadevizError, match="x is 3x4, but skip.feature is 14x8, .*ceil_mode False pool to 7x4"):
        MaxUnpool(2)(pooled, Skip(torch.zeros(1, 2, 14, 8), indices))
    with pytest.raises(FadevizError, match=r"skip.indices are \(1, 2, 3, 4\), but x is \(1, 1, 3, 4\)"):
        MaxUnpool(2)(pooled[:, :1], Skip(feature, indices))
