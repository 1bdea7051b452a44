"""Small runs whose answer is known: ellipses whose outline or interior appears first."""

import numpy as np

from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from fadeviz.storage.stored_run import StoredRun
from render_runs import LAYER

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
PLACES = ((9, 10, 7, 6), (22, 9, 6, 7), (10, 22, 6, 6), (22, 22, 7, 7), (16, 15, 8, 6), (13, 13, 6, 9))
"""Centre and radii of each image's ellipse: rows, columns."""

SIZE = 32


def depths():
    """Distance to each ellipse's contour in units of its radius, about, ``(N, h, w)``: -1 in its centre."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.0
    return np.stack([np.hypot((y - row) / high, (x - column) / wide) - 1 for row, column, high, wide in PLACES])


def planted(kind, seed=0, steps=STEPS):
    """Maps ``(S, N, h, w)``: filled ``inward`` or ``outward``, outline from the ``start``, or ``place`` alone."""
    rng = np.random.default_rng(seed)
    depth, place = depths(), np.exp(-4 * depths()[4].clip(-1) ** 2)
    time = np.log1p(steps) / np.log1p(steps[-1])
    maps = rng.normal(scale=0.15, size=(len(steps), *depth.shape))
    for index, t in enumerate(time):
        reached = {
            "inward": (depth < 0) & (depth > -1.6 * (t - 0.2)),
            "outward": (depth < 0) & (depth < -1.2 + 1.5 * (t - 0.1)),
            "start": (depth < 0) & ((depth > -0.35) | (t > 0.6)),
            "place": np.broadcast_to(place, depth.shape) * t,
        }[kind]
        maps[index] += reached
    return maps.astype(np.float32)


def make_onset_run(path, kind, *, upsampler="fade", seed=0, steps=STEPS):
    """Write a run of six images and open it."""
    store = SnapshotStore(path, f"{upsampler}{seed}")
    for step, maps in zip(steps, planted(kind, seed, steps), strict=True):
        store.write(step, [Snapshot(step, LAYER, 0, "feature", maps)])
    inside = depths() < 0
    images = np.full((*inside.shape, 3), 90, np.uint8)
    images[inside] = (150, 90, 40)
    store.write_observation(images, inside.astype(np.uint8))
    info = {
        "status": "finished",
        "upsampler": upsampler,
        "title": upsampler.upper(),
        "network": "segnet",
        "network_title": "SegNet",
        "config": {"seed": seed, "data": "drawn"},
        "layers": {LAYER: {"size": [SIZE, SIZE]}},
        "figure_layer": LAYER,
        "observation": {"names": [f"ellipse_{number}" for number in range(len(PLACES))]},
    }
    store.write_info(RunInfo.from_dict(info))
    return StoredRun(path)
