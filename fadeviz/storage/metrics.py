"""The metrics that a test of each task gives, and of each class: their names, units, and which represents the task."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any


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


CLASS_METRICS: Mapping[str, Metric] = {
    "iou": Metric("IoU", "share", "intersection over union", "IoU"),
    "boundary_iou": METRICS["boundary_iou"],
    "boundary_iou_fine": METRICS["boundary_iou_fine"],
}
"""The metrics of each class, where there are more than two."""

CLASS_KEY = "class_metrics"
"""The key in run.json and in a line of metrics.jsonl under which each of them is a list: a value per label, or null."""


def headline(metrics: Container[str]) -> str | None:
    """The name of the headline metric in a run's result or a line of its metrics; None if it holds no test.

    Example::

        headline({"step": 40, "loss": 0.4, "miou": 0.7})   # "miou"
        headline({"step": 41, "loss": 0.4})                # None
    """
    return next((task.headline for task in TASK_METRICS.values() if task.headline in metrics), None)


def class_metrics(line: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """The metrics of each class in a line of metrics.jsonl, by name and label; empty if it has none, or no numbers."""
    found = line.get(CLASS_KEY)
    if not isinstance(found, dict) or not all(map(_are_numbers, found.values())):
        return {}
    return {name: [None if value is None else float(value) for value in found[name]] for name in found}


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        value is None or (isinstance(value, float | int) and abs(value) < 2**63) for value in values
    )


__all__ = [
    "CLASS_KEY",
    "CLASS_METRICS",
    "METRICS",
    "TASK_METRICS",
    "Metric",
    "TaskMetrics",
    "class_metrics",
    "headline",
]
