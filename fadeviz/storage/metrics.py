"""The metrics that a test of each task gives: their names, units, and which one represents the task."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One number that a test gives.

    Attributes:
        title: the name that papers use.
        unit: the unit of its values, for an axis.
        meaning: a short explanation.
        column: the heading of its column in a table; empty if tables leave it out.
        brief: whether table rows and one-line summaries include it; curves show every metric.
    """

    title: str
    unit: str
    meaning: str
    column: str = ""
    brief: bool = True

    def text(self, value: float) -> str:
        """Format a value: shares with three decimals, errors, which have no upper bound, with three digits."""
        if self.unit == "share":
            return f"{value:.3f}"
        return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


@dataclass(frozen=True)
class TaskMetrics:
    """The metrics of one task.

    Attributes:
        meaning: a description, in words.
        note: a remark for readers of the numbers; empty if there is none.
        metrics: the metrics by their names in metrics.jsonl and run.json. The first is the headline: every
            test has it.
    """

    meaning: str
    note: str
    metrics: Mapping[str, Metric]

    @property
    def headline(self) -> str:
        """The name of the metric that represents the task where there is room for one."""
        return next(iter(self.metrics))


TASK_METRICS: Mapping[str, TaskMetrics] = {
    "segmentation": TaskMetrics(
        "how well the network segments the test images",
        "",
        {
            "miou": Metric("mIoU", "share", "mean over classes of intersection over union", "mIoU"),
            "boundary_iou": Metric("Boundary IoU", "share", "of the bands along the contours", "BIoU"),
            "boundary_iou_fine": Metric("Boundary IoU, fine", "share", "the same with a narrower band", brief=False),
        },
    ),
    "matting": TaskMetrics(
        "how far the network's mattes of the test images are from the true ones",
        "The errors are of the pixels that the trimaps leave unknown, means over the images.",
        {
            "sad": Metric("SAD", "sum / 1000", "absolute errors of alpha; lower is better", "SAD"),
            "mse": Metric("MSE", "mean", "squared errors of alpha; lower is better", "MSE"),
            "grad": Metric("Grad", "sum / 1000", "squared errors of its gradient; lower is better"),
            "conn": Metric("Conn", "sum / 1000", "errors of its connectedness; lower is better"),
        },
    ),
}
"""The metrics by task."""

METRICS: Mapping[str, Metric] = {
    name: metric for task in TASK_METRICS.values() for name, metric in task.metrics.items()
}
"""All metrics by name, grouped by task."""


def headline(metrics: Container[str]) -> str | None:
    """The name of the headline metric in a run's result or a line of its metrics; None if it holds no test.

    Example::

        headline({"step": 40, "loss": 0.4, "miou": 0.7})   # "miou"
        headline({"step": 41, "loss": 0.4})                # None
    """
    return next((task.headline for task in TASK_METRICS.values() if task.headline in metrics), None)


__all__ = ["METRICS", "TASK_METRICS", "Metric", "TaskMetrics", "headline"]
