"""What a test says of a network: the figures of each task, what they are called, and which one stands for all."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One number that a test gives.

    Attributes:
        title: what papers call it.
        unit: of its values, for an axis.
        meaning: a few words.
        column: its heading in a table; empty where a table has no room for it.
        brief: whether a row of a file and a line of words tell it; curves show all there are.
    """

    title: str
    unit: str
    meaning: str
    column: str = ""
    brief: bool = True

    def text(self, value: float) -> str:
        """A value to be read: shares in three decimals, errors, which have no upper end, in three digits."""
        if self.unit == "share":
            return f"{value:.3f}"
        return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


@dataclass(frozen=True)
class Test:
    """What networks of one task are tested for.

    Attributes:
        meaning: what the figures tell, in words.
        note: what has to be said beside them; empty for nothing.
        figures: by their names in metrics.jsonl and run.json. The first is the headline: a test always has it.
    """

    meaning: str
    note: str
    figures: Mapping[str, Figure]

    @property
    def headline(self) -> str:
        """The name of the figure that stands for all."""
        return next(iter(self.figures))


TESTS: Mapping[str, Test] = {
    "segmentation": Test(
        "how well the network segments the test images",
        "",
        {
            "miou": Figure("mIoU", "share", "mean over classes of intersection over union", "mIoU"),
            "boundary_iou": Figure("Boundary IoU", "share", "of the bands along the contours", "BIoU"),
            "boundary_iou_fine": Figure("Boundary IoU, fine", "share", "the same with a narrower band", brief=False),
        },
    ),
    "matting": Test(
        "how far the network's mattes of the test images are from the true ones",
        "The errors are of the pixels that the trimaps leave unknown, means over the images.",
        {
            "sad": Figure("SAD", "sum / 1000", "absolute errors of alpha; lower is better", "SAD"),
            "mse": Figure("MSE", "mean", "squared errors of alpha; lower is better", "MSE"),
            "grad": Figure("Grad", "sum / 1000", "squared errors of its gradient; lower is better"),
            "conn": Figure("Conn", "sum / 1000", "errors of its connectedness; lower is better"),
        },
    ),
}
"""By the name of the task."""

FIGURES: Mapping[str, Figure] = {name: figure for test in TESTS.values() for name, figure in test.figures.items()}
"""All figures by their names, those of a task together."""


def headline(metrics: Container[str]) -> str | None:
    """The name of the figure that stands for all in a run's result or a line of its metrics; None if it is no test.

    Example::

        headline({"step": 40, "loss": 0.4, "miou": 0.7})   # "miou"
        headline({"step": 41, "loss": 0.4})                # None
    """
    return next((test.headline for test in TESTS.values() if test.headline in metrics), None)


__all__ = ["FIGURES", "TESTS", "Figure", "Test", "headline"]
