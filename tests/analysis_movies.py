"""Movies with a known order: discs at several places that are filled from their outline, or from their centre."""

import numpy as np

SIDE = 48
STEPS = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 65, 100, 150, 200)
DISCS = ((20, 20, 11), (30, 26, 9), (22, 30, 12), (27, 18, 10), (17, 25, 8), (31, 31, 10), (24, 23, 13), (29, 21, 8))
"""Row and column of the centre, and radius."""


def radius_of_cells(row=24, column=24, side=SIDE):
    y, x = np.mgrid[0:side, 0:side] + 0.5
    return np.hypot(y - row, x - column)


def masks(count=8, side=SIDE):
    return np.stack([radius_of_cells(row, column, side) < radius for row, column, radius in DISCS[:count]]).astype(
        np.uint8
    )


def movie(kind, steps=STEPS, *, images=8, noise=0.3, seed=0):
    """(S, N, h, w) float32: how much of each disc is lit grows with log(1 + step), under noise.

    inward: from the outline to the centre; outward; together: all of it fades in; start: a line at step 0 that fills;
    complete: all of it from step 0; returns: a faint line up to step 2, nothing, then all of it fades in;
    dips: all of it but in the middle of the training; ends: all of it, in the first half;
    blob: the same place in every image; noise; constant.
    """
    rng = np.random.default_rng(seed)
    frames = []
    for step in steps:
        done = np.log1p(step) / np.log1p(max(steps[-1], 1))
        row = []
        for y, x, radius in DISCS[:images]:
            depth = radius_of_cells(y, x) / radius  # 1 on the contour
            inside = depth < 1
            lit = {
                "inward": inside & (depth >= 1 - done),
                "outward": depth < done,
                "together": inside * done,
                "start": inside & ((depth > 1 - 2 / radius) | (depth >= 1 - done)),
                "complete": inside,
                "returns": 0.35 * (inside & (depth > 1 - 2 / radius))
                if step < 3
                else inside * (2 * done - 1) * (done > 0.5),
                "dips": inside * (not 0.4 < done < 0.7),
                "ends": inside * (done < 0.5),
                "blob": radius_of_cells() < 14 * done,
                "noise": np.zeros_like(inside),
                "constant": np.zeros_like(inside),
            }[kind]
            row.append(lit + (0 if kind == "constant" else noise) * rng.normal(size=inside.shape))
        frames.append(row)
    return np.array(frames, np.float32)
