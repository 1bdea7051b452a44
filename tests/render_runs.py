"""Small runs for the tests of the drawing layer: a disc whose outline or inside lights up first."""

import numpy as np

from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from fadeviz.storage.stored_run import StoredRun

LAYER = "decoder.3.upsample"
STEPS = tuple(range(0, 120, 10))


def disc(height, width):
    """Distance to the border of a disc: negative inside, about 1 at the corners."""
    y, x = np.mgrid[0:height, 0:width]
    radius = np.hypot((y - height / 2 + 0.5) / height, (x - width / 2 + 0.5) / width)
    return (radius - 0.3) / 0.3


def make_run(
    path,
    *,
    upsampler="fade",
    run_id="a1b2c3",
    seed=0,
    size=(24, 32),
    steps=STEPS,
    maps=None,
    corner=0,
    outline_first=True,
    channels=6,
    calls=1,
):
    """Write a run and open it. ``maps`` ``(T, h, w)`` replaces the drawn feature maps of image 0.

    Of several ``calls`` of the layer each one's maps are every other cell of those before.
    """
    height, width = size
    store = SnapshotStore(path, run_id)
    rng = np.random.default_rng(seed)
    far = disc(height, width)
    for index, step in enumerate(steps):
        grown = (index + 1) / len(steps)
        band = np.exp(-((far / (0.1 + grown)) ** 2)) if outline_first else np.maximum(0, grown - 0.5 - far)
        noise = rng.normal(size=(height, width)) * 0.3 * (1 - grown)
        feature = np.stack([band + noise, band.T.reshape(height, width)]).astype(np.float32)
        if maps is not None:
            feature[0] = maps[index]
        waves = np.stack([np.sin(far * (c + 1) * 2) * (channels - c) for c in range(channels)])
        waves[1] = 2 * waves[0]  # a twin of channel 0, that is not to be drawn beside it
        values = {
            "feature": feature,
            "gradient": np.maximum(feature - 0.5, 0),
            "channels": (waves * grown)[None].astype(np.float32),
            "gate": np.clip(feature, 0.2, 0.7),
        }
        every = [
            (call, kind, value[..., :: 2**call, :: 2**call]) for call in range(calls) for kind, value in values.items()
        ]
        store.write(step, [Snapshot(step, LAYER, call, kind, value) for call, kind, value in every])
    images = np.full((2, height * 2, width * 2, 3), 90, np.uint8)
    inside = disc(height * 2, width * 2) < 0
    aside = np.roll(inside, 6, axis=1)  # the second image's mask: of equal masks there is no response
    images[:, inside] = (150, 90, 40)
    images[:, 0, 0] = corner
    store.write_observation(images, np.stack([inside, aside]).astype(np.uint8))
    store.write_info(
        RunInfo.from_dict(
            {
                "status": "finished",
                "upsampler": upsampler,
                "title": upsampler.upper(),
                "network": "segnet",
                "network_title": "SegNet",
                "config": {"seed": seed, "data": "drawn"},
                "layers": {LAYER: {"size": [height, width]}},
                "figure_layer": LAYER,
                "observation": {"names": ["disc_0", "disc_1"]},
                "parameters": 1234,
            }
        )
    )
    return StoredRun(path)
