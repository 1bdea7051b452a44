"""Small runs of the other tasks: of a matting network, and of one that tells many classes apart."""

import numpy as np

from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import SnapshotStore
from fadeviz.storage.stored_run import StoredRun
from render_runs import LAYER, disc, make_run

ERRORS = {"sad": 12.3456, "mse": 0.0123456, "grad": 7.5, "conn": 11.25}
"""Of the test at step 110; ten times as large at step 50."""

NAMES = ["wall", "sky", "bed", "horse"]
CHOSEN = [3, 2]
"""The class of the object in each image."""

__all__ = ["CHOSEN", "ERRORS", "LAYER", "NAMES", "make_class_run", "make_matting_run"]


def _change(run, truth, metrics, **info):
    store = SnapshotStore(run.path, run.run_id)
    store.write_observation(run.observation[0], *truth)
    store.write_info(RunInfo.from_dict(run.info.to_dict() | info))
    for line in metrics:
        store.append_metrics(line)
    return StoredRun(run.path)


def make_matting_run(path, **options):
    """The discs have a soft rim; what is at least half opaque is the mask. Tested at steps 50 and 110."""
    run = make_run(path, **options)
    far = disc(*run.observation[1].shape[1:])
    alpha = np.rint(np.clip(0.5 - 2 * far, 0, 1) * 255).astype(np.uint8)
    alphas = np.stack([alpha, np.roll(alpha, 6, axis=1)])
    trimaps = np.select([alphas == 0, alphas == 255], [0, 255], 128).astype(np.uint8)
    metrics = [
        {"step": 50, "loss": 0.5, "lr": 0.1, "test_loss": 0.25, **{name: 10 * one for name, one in ERRORS.items()}},
        {"step": 60, "loss": 0.4, "lr": 0.1},
        {"step": 110, "loss": 0.3, "lr": 0.1, "test_loss": 0.125, **ERRORS},
    ]
    masks = (alphas >= 128).astype(np.uint8)
    return _change(run, (masks, (alphas, trimaps)), metrics, task="matting", network_title="matting network")


def make_class_run(path, *, chosen=CHOSEN, names=NAMES, **options):
    """A horse before a wall with a bed, then the same masks with the bed as the object; a rim of them is ignored."""
    run = make_run(path, **options)
    height, width = run.observation[1].shape[1:]
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 3, width // 2 :] = 2
    mask[disc(height, width) < 0] = 3
    mask[-3:] = 255
    metrics = [
        {"step": 50, "loss": 0.5, "test_loss": 2.0, "miou": 0.125, "accuracy": 0.5},
        {"step": 110, "loss": 0.3, "test_loss": 1.0, "miou": 0.25, "accuracy": 0.625},
    ]
    observation = {"names": list(run.info.observation.names), "foreground": chosen}
    return _change(
        run, (np.stack([mask, mask]),), metrics,
        task="segmentation", classes=len(NAMES), data={"name": "ade20k", "classes": names}, observation=observation,
    )  # fmt: skip
