"""Movies with a known order of learning: a disc that is filled from its outline, or from its centre."""

import numpy as np

SIDE, RADIUS = 48, 14
STEPS = tuple(range(0, 210, 10))


def radius_of_cells(side=SIDE):
    y, x = np.mgrid[0:side, 0:side] + 0.5 - side / 2
    return np.hypot(x, y)


def mask():
    return (radius_of_cells() < RADIUS).astype(np.uint8)


def movie(kind, steps=STEPS, noise=0.0, seed=0):
    """(S, h, w): at step t of T, the share t / T of the radius is lit; step 0 is noise, as a constant is undefined."""
    rng = np.random.default_rng(seed)
    radius = radius_of_cells()
    frames = []
    for step in steps:
        done = step / steps[-1]
        if kind == "inward":  # from the outline to the centre
            lit = (radius < RADIUS) & (radius >= RADIUS * (1 - done))
        elif kind == "outward":  # from the centre to the outline
            lit = radius < RADIUS * done
        elif kind == "complete":
            lit = radius < RADIUS
        else:
            lit = np.zeros_like(radius, bool)
        frame = lit + noise * rng.normal(size=lit.shape)
        if kind == "noise" or (step == 0 and kind != "constant" and kind != "complete"):
            frame = rng.normal(size=lit.shape)
        frames.append(frame)
    return np.stack(frames).astype(np.float32)
