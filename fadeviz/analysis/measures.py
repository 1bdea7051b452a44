"""The measures and their groups: what each quantity is called, its unit, and what it means."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..storage.metrics import METRICS, TASK_METRICS


@dataclass(frozen=True)
class Measure:
    """A quantity that is measured over training.

    Attributes:
        title: short name, for a curve's label.
        unit: unit of the values, for the axis.
        group: group of curves that it belongs to, a name in ``GROUPS``.
        meaning: one phrase.
    """

    title: str
    unit: str
    group: str
    meaning: str


GROUPS = {
    "responses": "how much more outline and interior are shown for the own mask than for other images' masks",
    "auc": "how well the map detects the contour and the object, place included",
    "spectrum": "how fine the map is, and how much of it repeats with the upsampling grid",
    "learning": "how similar the parts of the operator are to their final state",
    "gate": "gate and kernel entropy inside the object, along its contour and outside",
    "classes": "how well the features of the two classes are separated",
    "continuity": "how much changes from one snapshot to the next",
    "quality": "how well the network does on its test images",
}
"""Groups of measures that are drawn together."""

PLOTS = {
    "kymograph": "where on the object the map is higher than for other images' objects, over the training",
    **GROUPS,
    "logged": "the numbers that the training logged: loss, learning rate, and any others",
}
"""What can be plotted: the distance-time map, the groups of measures over training, and what was logged."""

MEASURES = {
    "outline": Measure(
        "outline", "response", "responses", "just inside the contour against just outside, own mask less other masks"
    ),
    "interior": Measure(
        "interior", "response", "responses", "deep inside against well outside, own mask less other masks"
    ),
    "outline_readout": Measure(
        "outline, readout", "response", "responses", "the outline in a linear readout of all channels"
    ),
    "interior_readout": Measure(
        "interior, readout", "response", "responses", "the interior in a linear readout of all channels"
    ),
    "boundary_auc": Measure("boundary AUC", "AUC", "auc", "how well the steepness of the map detects the contour band"),
    "region_auc": Measure("region AUC", "AUC", "auc", "how well the map's values detect the object; below 0.5: dark"),
    "centroid": Measure("spectral centroid", "cycles per pixel", "spectrum", "mean radial frequency of the map"),
    "high_share": Measure("energy above 0.25 cycles per pixel", "share", "spectrum", "share of the map's energy"),
    "checkerboard": Measure(
        "checkerboard", "share of variance", "spectrum", "what repeats with the upsampling grid within 2 x 2 pixels"
    ),
    "nyquist": Measure("power on the grid's lines", "ratio", "spectrum", "relative to the power beside them; 1: flat"),
    "constant": Measure(
        "constant input", "share of rms", "spectrum", "pattern that the operator makes of a constant input"
    ),
    "map_correlation": Measure("the map", "correlation", "learning", "of the map with that of the last snapshot"),
    "gate_correlation": Measure("gate", "correlation", "learning", "of the gate with that of the last snapshot"),
    "kernels_correlation": Measure("kernels", "correlation", "learning", "of all kernel weights with the last ones"),
    "guide_correlation": Measure("encoder guide", "correlation", "learning", "of all channels with the last ones"),
    "channels_correlation": Measure("decoder feature", "correlation", "learning", "of all channels with the last ones"),
    "kernels_cka": Measure("kernels", "linear CKA", "learning", "of the kernels with the last ones"),
    "guide_cka": Measure("encoder guide", "linear CKA", "learning", "of the channels with the last ones"),
    "channels_cka": Measure("decoder feature", "linear CKA", "learning", "of the channels with the last ones"),
    "gate_inside": Measure("gate inside", "gate", "gate", "1 takes the encoder's feature, 0 the upsampled one"),
    "gate_band": Measure("gate on the contour", "gate", "gate", "mean over the band along the contour"),
    "gate_outside": Measure("gate outside", "gate", "gate", "mean over the background"),
    "entropy_inside": Measure("entropy inside", "of log K^2", "gate", "1 is a box blur, 0 copies one neighbour"),
    "entropy_band": Measure("entropy on the contour", "of log K^2", "gate", "mean over the band along the contour"),
    "entropy_outside": Measure("entropy outside", "of log K^2", "gate", "mean over the background"),
    "intra_edge": Measure("own class, edge", "cosine", "classes", "pixels of the band with their own class's centre"),
    "inter_edge": Measure("other class, edge", "cosine", "classes", "pixels of the band with the other class's centre"),
    "intra_interior": Measure("own class, interior", "cosine", "classes", "other pixels with their own class's centre"),
    "inter_interior": Measure("other class, interior", "cosine", "classes", "other pixels with the other's centre"),
    "frame_correlation": Measure("to the previous snapshot", "correlation", "continuity", "of the map"),
    "pixel_change": Measure("change of a pixel", "grey levels of 255", "continuity", "mean, each frame normalised"),
    "luminance_change": Measure("change of the mean", "grey levels of 255", "continuity", "each frame normalised"),
    **{name: Measure(metric.title, metric.unit, "quality", metric.meaning) for name, metric in METRICS.items()},
}
"""All measures, in the order of tables and plots."""


def describe_group(group: str, measures: Collection[str]) -> tuple[str, str]:
    """The meaning of a group of curves, and a remark for their reader (empty if there is none).

    Args:
        group: a name in ``GROUPS``.
        measures: the available measures of the group; those of ``quality`` depend on the task.
    """
    tasks = [task for task in TASK_METRICS.values() if not task.metrics.keys().isdisjoint(measures)]
    if group != "quality" or not tasks:
        return GROUPS[group], ""
    return "; ".join(task.meaning for task in tasks), " ".join(task.note for task in tasks if task.note)
