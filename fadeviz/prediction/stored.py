"""Predictions that a run stored while it was recorded, for comparisons without its network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from ..storage.snapshot_files import some_steps
from ..storage.stored_run import StoredRun


class StoredPredictor:
    """What a run predicted for its observed images at one recorded step.

    Attributes:
        run: the run.
        task: ``segmentation`` or ``matting``.
        classes: number of classes of its masks, and of those that it predicted.
        step: the optimiser step.
    """

    def __init__(self, run: StoredRun, step: int | None = None) -> None:
        """Read the predictions.

        Args:
            run: a run with predictions.
            step: a recorded step; None takes the last one.

        Raises:
            FadevizError: if the run has no predictions, or no such step.
        """
        if run.info.predictions is None:
            raise FadevizError(
                f"{run.address} has no stored predictions. Record them: predictions=True of a Recorder, or fadeviz "
                "record --predictions"
            )
        if not run.steps or (step is not None and step not in run.steps):
            raise FadevizError(f"{run.address} has no snapshot of step {step}. It has: {some_steps(run.steps)}")
        self.run, self.step = run, run.steps[-1] if step is None else step
        self._predicted = run.prediction(self.step)
        self.task = "segmentation" if run.info.predictions == "classes" else "matting"
        labels = self._predicted[self._predicted < 255] if self.task == "segmentation" else np.zeros(1, np.uint8)
        self.classes = max(run.info.classes or 2, int(labels.max(initial=0)) + 1)

    def check_size(self, size: int | None) -> None:
        """Check that no other size is asked for than that of the observed images.

        Raises:
            FadevizError: if ``size`` is given.
        """
        if size is not None:
            raise FadevizError(f"the predictions of {self.run.address} are stored at one size. Leave out size=...")

    def observed(self, index: int) -> NDArray[np.uint8] | NDArray[np.float32]:
        """The class of each pixel of an observed image, uint8; or its alpha, float32 in [0, 1]."""
        value = self._predicted[index]
        return value if self.task == "segmentation" else value.astype(np.float32) / np.float32(255)


__all__ = ["StoredPredictor"]
