"""Regions of a mask at a layer's resolution, against a disc's radius and against loops."""

import math

import numpy as np
import pytest

from fadeviz import FadevizError
from fadeviz.analysis.regions import build_regions, cell_means, coverage, signed_distance


def disc(side, radius):
    y, x = np.mgrid[0:side, 0:side] + 0.5 - side / 2
    return (np.hypot(x, y) < radius).astype(np.uint8)


def slow_distance(mask, size):
    """From every pixel's centre to every piece of line between unlike pixels, by clamping onto the piece."""
    inside = mask != 0
    (height, width), (rows, columns) = inside.shape, size
    pieces = [
        (y + 1, x, y + 1, x + 1) for y in range(height - 1) for x in range(width) if inside[y, x] != inside[y + 1, x]
    ]
    pieces += [
        (y, x + 1, y + 1, x + 1) for y in range(height) for x in range(width - 1) if inside[y, x] != inside[y, x + 1]
    ]
    found = np.empty(inside.shape)
    for y, x in np.ndindex(inside.shape):
        nearest = min(
            math.hypot(
                (min(max(y + 0.5, top), bottom) - y - 0.5) * rows / height,
                (min(max(x + 0.5, left), right) - x - 0.5) * columns / width,
            )
            for top, left, bottom, right in pieces
        )
        found[y, x] = -nearest if inside[y, x] else nearest
    return found


def slow_means(values, size):
    """Each pixel split into as many equal parts as make the grids fit."""
    fine = np.kron(values, np.ones(size))
    return fine.reshape(size[0], values.shape[0], size[1], values.shape[1]).mean(axis=(1, 3))


@pytest.mark.parametrize("size", [(7, 9), (3, 4), (14, 9), (1, 1)])
def test_means_and_distance_are_those_of_the_slow_formulas(size):
    mask = np.random.default_rng(0).integers(0, 2, (7, 9)).astype(np.uint8)
    assert np.allclose(cell_means(mask, size), slow_means(mask.astype(float), size))
    assert np.allclose(signed_distance(mask, size), slow_means(slow_distance(mask, size), size))


def test_a_disc_at_half_the_resolution():
    mask = disc(96, 30.0)
    share = coverage(mask, (48, 48))
    assert share.sum() * 4 == pytest.approx(mask.sum())
    assert share.min() == 0
    assert share.max() == 1
    y, x = np.mgrid[0:48, 0:48] + 0.5 - 24
    distance = signed_distance(mask, (48, 48))
    assert np.abs(distance - (np.hypot(x, y) - 15)).max() < 0.45  # half a pixel of the mask along the diagonal
    regions = build_regions(mask, (48, 48), pixels=2, share=0)
    assert np.array_equal(regions.band, np.abs(distance) <= 2)
    assert (regions.band.astype(int) + regions.inside + regions.outside == 1).all()
    assert regions.inside[24, 24]
    assert regions.outside[0, 0]


def test_a_straight_contour_between_the_cells():
    mask = np.zeros((12, 12), bool)
    mask[:, 5:] = 7  # any class but 0
    assert np.allclose(signed_distance(mask, (4, 4)), np.tile(5 / 3 - np.arange(4) - 0.5, (4, 1)))


def test_the_wider_half_width_counts_and_classes_are_foreground():
    mask = disc(32, 8) * 5
    assert build_regions(mask, (30, 40), pixels=1, share=0.1).half_width == pytest.approx(5)
    assert build_regions(mask, (30, 40), pixels=6, share=0.1).half_width == 6
    assert np.array_equal(build_regions(mask, (16, 16)).inside, build_regions(mask > 0, (16, 16)).inside)


@pytest.mark.parametrize(("mask", "whole"), [(np.zeros((8, 8)), "outside"), (np.ones((8, 8)), "inside")])
def test_without_a_contour_there_is_one_region(mask, whole):
    regions = build_regions(mask, (4, 4))
    assert getattr(regions, whole).all()
    assert not regions.band.any()
    assert np.isinf(regions.distance).all()


def test_a_tiny_map_is_all_band():
    regions = build_regions(disc(32, 10), (2, 2))
    assert regions.band.all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_regions(np.zeros((2, 3, 3)), (3, 3)), r"mask \(2, 3, 3\)"),
        (lambda: build_regions(np.zeros((3, 3)), (0, 3)), r"maps \(0, 3\)"),
        (lambda: build_regions(np.zeros((3, 3)), (3, 3), pixels=0, share=0), "half-width 0; it must be above 0"),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(FadevizError, match=message):
        call()
