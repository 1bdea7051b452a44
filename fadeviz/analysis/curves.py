"""Every measure over the training: one course a measure and operator, for curves, reports and files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..storage.metrics import FIGURES as TESTED
from ..storage.metrics import TESTS
from ..storage.stored_run import Maps, StoredRun
from .blocks import in_blocks
from .classes import class_similarity
from .gates import mean_by_region
from .order import LearningOrder, OperatorOrder
from .regions import Regions, build_regions
from .similarity import cka_to_final, continuity, correlation, to_final
from .spectrum import measure_spectrum, phase_pattern
from .statistics import bootstrap_band


@dataclass(frozen=True)
class Measure:
    """What a course shows.

    Attributes:
        title: a few words, for a curve's label.
        unit: of the values, for the axis.
        figure: the group of curves it belongs to, a name in ``FIGURES``.
        meaning: one sentence.
    """

    title: str
    unit: str
    figure: str
    meaning: str


FIGURES = {
    "responses": "what the map shows: the outline, the interior",
    "spectrum": "how fine the map is, and how much of it repeats with the upsampling grid",
    "learning": "how alike the operator's parts are to what they become",
    "gate": "gate and kernels inside the object, along its contour and outside",
    "classes": "how well the features of the two classes are apart",
    "continuity": "how much changes from one snapshot to the next",
    "quality": "how well the network does on its test images",
}
"""Groups of measures that share an axis."""


MEASURES = {
    "edge": Measure("edge", "response", "responses", "how well the steepness of the map marks the contour band"),
    "interior": Measure("interior", "response", "responses", "how well its values tell the inside from the outside"),
    "edge_elsewhere": Measure("edge, other masks", "response", "responses", "the same with the masks of other images"),
    "interior_elsewhere": Measure(
        "interior, other masks", "response", "responses", "the same with the masks of other images"
    ),
    "edge_raw": Measure("edge, without ranks", "response", "responses", "of the map's own gradient, not its ranks'"),
    "centroid": Measure("spectral centroid", "cycles per pixel", "spectrum", "mean radial frequency of the map"),
    "high_share": Measure("energy above 0.25 cycles per pixel", "share", "spectrum", "of the map's energy"),
    "checkerboard": Measure(
        "checkerboard", "share within a period", "spectrum", "what repeats with the upsampling grid"
    ),
    "nyquist": Measure("power on the grid's lines", "times that beside", "spectrum", "1 for a flat spectrum"),
    "constant": Measure("constant input", "of its rms", "spectrum", "pattern that the operator makes of a constant"),
    "map_correlation": Measure("the map", "correlation", "learning", "of the map with its last one"),
    "gate_correlation": Measure("gate", "correlation", "learning", "of the gate with its last one"),
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
    "frame_correlation": Measure("to the snapshot before", "correlation", "continuity", "of the map"),
    "pixel_change": Measure("change of a pixel", "grey levels of 255", "continuity", "mean, each frame normalised"),
    "luminance_change": Measure("change of the mean", "grey levels of 255", "continuity", "each frame normalised"),
    **{name: Measure(one.title, one.unit, "quality", one.meaning) for name, one in TESTED.items()},
}
"""All measures, in the order in which they are told."""


def group_words(figure: str, measures: Collection[str]) -> tuple[str, str]:
    """What a group of curves shows, and what has to be said beside them; empty for nothing.

    Args:
        figure: a name in ``FIGURES``.
        measures: those of the group that there are: tests of other tasks measure other things.
    """
    tests = [test for test in TESTS.values() if not test.figures.keys().isdisjoint(measures)]
    if figure != "quality" or not tests:
        return FIGURES[figure], ""
    return "; ".join(test.meaning for test in tests), " ".join(test.note for test in tests if test.note)


@dataclass(frozen=True)
class Course:
    """One measure of one operator over the training.

    Attributes:
        measure: a name in ``MEASURES``.
        steps: ``(S,)`` increasing.
        values: ``(R, S, N)``, runs, steps and images; NaN where undefined. N is 1 for what a run has only once, and the
            first observation images for what is recorded of those alone.
        middle: ``(S,)``, median over runs and images.
        low: ``(S,)``, lower end of its 95 % interval over seeds and images.
        high: ``(S,)``, upper end.
    """

    measure: str
    steps: tuple[int, ...]
    values: NDArray[np.float64]
    middle: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def operator_courses(order: LearningOrder, operator: OperatorOrder) -> dict[str, Course]:
    """All measures of one operator over the training.

    Responses, spectrum, similarity of the map and continuity are of the layer and kind of ``order``; the other measures
    are of what was recorded of the layer besides, and of the network's tests.

    Returns:
        Courses by the names in ``MEASURES``, in that order; without those that a run of the operator lacks.
    """
    found: dict[str, NDArray[np.float64]] = {
        "edge": np.stack([one.edge for one in operator.measured]),
        "interior": np.stack([one.interior for one in operator.measured]),
        "edge_elsewhere": np.stack([one.edge_elsewhere for one in operator.measured]),
        "interior_elsewhere": np.stack([one.interior_elsewhere for one in operator.measured]),
        "edge_raw": np.stack([one.edge_raw for one in operator.measured]),
    }
    parts = [_of_run(run, order) for run in operator.runs]
    for name in parts[0]:
        if all(name in part for part in parts):
            images = min(part[name].shape[1] for part in parts)  # of the large kinds a run may keep more than another
            found[name] = np.stack([part[name][:, :images] for part in parts])
    courses = {name: _course(name, order.steps, values) for name, values in found.items()}
    courses.update(_tests(operator.runs, order.steps[-1]))
    return {name: courses[name] for name in MEASURES if name in courses and np.isfinite(courses[name].values).any()}


def _of_run(run: StoredRun, order: LearningOrder) -> dict[str, NDArray[np.float64]]:
    """The measures of one run's maps, ``(S, N)`` each."""
    kinds = [kind for kind in run.layers[order.layer] if order.call == 0 or order.call in run.calls(order.layer, kind)]
    found = _over_training(run, order, order.kind, _of_map)
    if "constant" in kinds:
        found |= _over_training(run, order, "constant", lambda maps, *_: {"constant": _own_pattern(maps)})
    for kind, name in (("gate", "gate"), ("kernel_entropy", "entropy")):
        if kind in kinds:
            found |= _over_training(run, order, kind, partial(_by_region, name))
    for kind in ("kernels", "guide", "channels"):
        if kind in kinds:
            found |= _over_training(run, order, kind, partial(_of_channels, kind))
    return found


_Measured = dict[str, NDArray[np.float64]]


def _over_training(
    run: StoredRun,
    order: LearningOrder,
    kind: str,
    measure: Callable[[NDArray[np.float32], NDArray[np.float32], Sequence[Regions]], _Measured],
) -> _Measured:
    """Apply ``measure`` to a run's maps, block by block; it also gets the last map and the regions."""
    maps = run.maps(order.layer, kind, steps=order.steps, call=order.call)
    last, regions = maps[-1], _regions_for(maps, run, order)
    parts = []
    for start, block in in_blocks(maps, before=1):
        found = measure(block[1:] if start else block, last, regions)
        parts.append(found | _changes(block, first=not start) if measure is _of_map else found)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_map(maps: NDArray[np.float32], last: NDArray[np.float32], _: Sequence[Regions]) -> _Measured:
    centroid, high, board = measure_spectrum(maps)
    return {
        "centroid": centroid,
        "high_share": high,
        "checkerboard": board.share,
        "nyquist": board.nyquist,
        "map_correlation": to_final(maps, last),
    }


def _changes(maps: NDArray[np.float32], *, first: bool) -> _Measured:
    """Of each step to the one before it: the first of all has none."""
    moved = continuity(maps)
    found = {
        "frame_correlation": moved.correlation,
        "pixel_change": moved.pixel_change,
        "luminance_change": moved.luminance_change,
    }
    missing = np.full((1, maps.shape[1]), np.nan)
    return {name: np.concatenate([missing, values]) for name, values in found.items()} if first else found


def _of_channels(
    kind: str, maps: NDArray[np.float32], last: NDArray[np.float32], regions: Sequence[Regions]
) -> _Measured:
    found = {
        f"{kind}_correlation": correlation(_as_row(maps), _as_row(last)),
        f"{kind}_cka": cka_to_final(maps, last),
    }
    return found | _classes(maps, regions[: maps.shape[1]]) if kind == "channels" else found


def _own_pattern(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """Root mean square of the phase pattern over that of the map, whose mean may be near 0; NaN for a map of zeros."""
    pattern = np.sqrt((phase_pattern(maps) ** 2).mean((-2, -1)))
    level = np.sqrt((maps.astype(np.float64) ** 2).mean((-2, -1)))
    return np.divide(pattern, level, out=np.full(pattern.shape, np.nan), where=level > 0)


def _as_row(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Flatten all channels of a map into a row: ``(..., C, h, w)`` -> ``(..., 1, C h w)``."""
    return maps.reshape(*maps.shape[:-3], 1, -1)


def _regions_for(maps: Maps, run: StoredRun, order: LearningOrder) -> Sequence[Regions]:
    """The regions at the maps' own size: the parts of an operator may be finer or coarser than its output."""
    size = (maps.shape[-2], maps.shape[-1])
    if size == order.regions[0].band.shape:
        return order.regions
    pixels, share = order.half_width
    return [build_regions(mask, size, pixels=pixels, share=share) for mask in run.foregrounds]


def _by_region(
    name: str, maps: NDArray[np.float32], last: NDArray[np.float32], regions: Sequence[Regions]
) -> _Measured:
    parts = (np.stack([getattr(one, part) for one in regions]) for part in ("inside", "band", "outside"))
    means = mean_by_region(maps, *parts)
    found = {f"{name}_inside": means.inside, f"{name}_band": means.band, f"{name}_outside": means.outside}
    return {"gate_correlation": to_final(maps, last), **found} if name == "gate" else found


def _classes(channels: NDArray[np.float32], regions: Sequence[Regions]) -> dict[str, NDArray[np.float64]]:
    inside = np.stack([one.distance < 0 for one in regions])
    similar = class_similarity(channels, np.stack([inside, ~inside], 1), np.stack([one.band for one in regions]))
    return {
        "intra_edge": similar.edge.intra,
        "inter_edge": similar.edge.inter,
        "intra_interior": similar.interior.intra,
        "inter_interior": similar.interior.inter,
    }


def _tests(runs: Sequence[StoredRun], last: int) -> dict[str, Course]:
    """The figures of the tests that all runs have in common, up to the last step that is measured."""
    metrics = [[line for line in run.metrics() if line["step"] <= last] for run in runs]
    found: dict[str, Course] = {}
    for test in TESTS.values():
        lines = [{line["step"]: line for line in one if test.headline in line} for one in metrics]
        steps = tuple(sorted(set(lines[0]).intersection(*lines)))
        if steps:
            told = {
                name: [[[_number(run[step].get(name))] for step in steps] for run in lines] for name in test.figures
            }
            found |= {name: _course(name, steps, np.array(values)) for name, values in told.items()}
    return found


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _course(name: str, steps: Sequence[int], values: NDArray[np.float64]) -> Course:
    middle, low, high = bootstrap_band(values)
    return Course(name, tuple(steps), values, middle, low, high)
