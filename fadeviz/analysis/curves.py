"""Curves: every measure of an operator over training, for plots, reports and files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..storage.maps import Maps
from ..storage.measured import stored_measurement
from ..storage.metrics import TASK_METRICS
from ..storage.stored_run import StoredRun
from .blocks import in_blocks
from .classes import class_similarity
from .gates import mean_by_region
from .measures import MEASURES
from .onset import Onset
from .onsets import Onsets, OperatorOnset, digest_of
from .regions import Regions, build_regions
from .similarity import cka_to_final, continuity, correlation, correlation_to_final
from .spectrum import measure_spectrum, phase_pattern
from .statistics import bootstrap_band

METHOD = 1
"""Version of what is measured here: stored measures of another version are measured again."""


@dataclass(frozen=True)
class MeasureCurve:
    """One measure of one operator over training: R runs, S steps, N images.

    Attributes:
        measure: a name in ``MEASURES``.
        steps: the S steps, increasing.
        values: ``(R, S, N)``; NaN where undefined. N is 1 for what a run has only once (tests), and fewer than all
            images for kinds recorded of the first images only.
        middle: ``(S,)``, median over runs and images; of responses their mean over runs.
        low: ``(S,)``, lower end of its 95 % interval over seeds and images.
        high: ``(S,)``, upper end of the interval.
        chance: for responses, the magnitude that the smoothed curve stays below by chance, in 95 % of the permutations
            of the masks; NaN for other measures.
    """

    measure: str
    steps: tuple[int, ...]
    values: NDArray[np.float64]
    middle: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    chance: float = math.nan


Curves = Mapping[str, MeasureCurve]
"""The curves of one operator, by the names in ``MEASURES``."""


def operator_curves(onsets: Onsets, operator: OperatorOnset) -> dict[str, MeasureCurve]:
    """All measures of one operator over training.

    Responses, AUC, spectrum, continuity and the map's similarity are measured for the layer and kind of ``onsets``; the
    other measures use the kinds recorded beside it, and the network's tests.

    Args:
        onsets: the measured onsets.
        operator: one of its operators.

    Returns:
        Curves by the names in ``MEASURES``, in that order; without measures that a run of the operator lacks.
    """
    tables = {
        name: np.stack([getattr(contrasts, name) for contrasts in operator.contrasts])
        for name in ("boundary_auc", "region_auc")
    }
    runs = [_stored(run, onsets) for run in operator.runs]
    for name in runs[0]:
        if all(name in measured for measured in runs):
            images = min(measured[name].shape[1] for measured in runs)  # large kinds may cover more images in one run
            tables[name] = np.stack([measured[name][:, :images] for measured in runs])
    curves = {name: _curve(name, onsets.steps, values) for name, values in tables.items() if values.size}
    curves |= _responses(operator.map, onsets.steps, "")
    if operator.readout is not None:
        curves |= _responses(operator.readout, onsets.steps, "_readout")
    curves.update(_tests(operator.runs, onsets.steps[-1]))
    return {name: curves[name] for name in MEASURES if name in curves and np.isfinite(curves[name].values).any()}


def _responses(onset: Onset, steps: Sequence[int], suffix: str) -> dict[str, MeasureCurve]:
    """The two responses, with their jackknife intervals, and the chance level of each; none where there are none."""
    curves = {}
    for name, reading in (("outline", onset.outline), ("interior", onset.interior)):
        key = f"{name}{suffix}"
        if not reading.measured:
            continue
        curves[key] = MeasureCurve(
            key, tuple(steps), reading.run_curves[:, :, None], reading.curve, reading.low, reading.high, reading.chance
        )
    return curves


def _stored(run: StoredRun, onsets: Onsets) -> Mapping[str, NDArray[np.float64]]:
    """:func:`_of_run`, from what is stored beside the run if that is of the same maps and masks."""
    return stored_measurement(
        run,
        f"curves {onsets.layers[run]}/{onsets.call}/{onsets.kind}",
        {
            "method": METHOD,
            "masks": digest_of(run.foregrounds),
            "steps": onsets.steps,
            "kinds": sorted(run.layers[onsets.layers[run]]),
        },
        lambda: _of_run(run, onsets),
        steps=onsets.steps,
    )


def _of_run(run: StoredRun, onsets: Onsets) -> dict[str, NDArray[np.float64]]:
    """The measures of one run's maps, ``(S, N)`` each."""
    layer = onsets.layers[run]
    kinds = [kind for kind in run.layers[layer] if onsets.call == 0 or onsets.call in run.calls(layer, kind)]
    measured = _over_training(run, onsets, onsets.kind, _of_map)
    if "constant" in kinds:
        measured |= _over_training(run, onsets, "constant", lambda maps, *_: {"constant": _own_pattern(maps)})
    for kind, name in (("gate", "gate"), ("kernel_entropy", "entropy")):
        if kind in kinds:
            measured |= _over_training(run, onsets, kind, partial(_by_region, name))
    for kind in ("kernels", "guide", "channels"):
        if kind in kinds:
            measured |= _over_training(run, onsets, kind, partial(_of_channels, kind))
    return measured


_Measured = dict[str, NDArray[np.float64]]


def _over_training(
    run: StoredRun,
    onsets: Onsets,
    kind: str,
    measure: Callable[[NDArray[np.float32], NDArray[np.float32], Sequence[Regions]], _Measured],
) -> _Measured:
    """Apply ``measure`` to a run's maps, block by block, with the last map and the regions."""
    maps = run.maps(onsets.layers[run], kind, steps=onsets.steps, call=onsets.call)
    last, regions = maps[-1], _regions_for(maps, run, onsets)
    parts = []
    for start, block in in_blocks(maps, before=1):
        measured = measure(block[1:] if start else block, last, regions)
        parts.append(measured | _changes(block, first=not start) if measure is _of_map else measured)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_map(maps: NDArray[np.float32], last: NDArray[np.float32], _: Sequence[Regions]) -> _Measured:
    centroid, high, board = measure_spectrum(maps)
    return {
        "centroid": centroid,
        "high_share": high,
        "checkerboard": board.share,
        "nyquist": board.nyquist,
        "map_correlation": correlation_to_final(maps, last),
    }


def _changes(maps: NDArray[np.float32], *, first: bool) -> _Measured:
    """Changes from each step's predecessor, which the first of all lacks."""
    changes = continuity(maps)
    measured = {
        "frame_correlation": changes.correlation,
        "pixel_change": changes.pixel_change,
        "luminance_change": changes.luminance_change,
    }
    missing = np.full((1, maps.shape[1]), np.nan)
    return {name: np.concatenate([missing, values]) for name, values in measured.items()} if first else measured


def _of_channels(
    kind: str, maps: NDArray[np.float32], last: NDArray[np.float32], regions: Sequence[Regions]
) -> _Measured:
    measured = {
        f"{kind}_correlation": correlation(_as_row(maps), _as_row(last)),
        f"{kind}_cka": cka_to_final(maps, last),
    }
    return measured | _classes(maps, regions[: maps.shape[1]]) if kind == "channels" else measured


def _own_pattern(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """Root mean square of the phase pattern over that of the map, as its mean may be near 0; NaN for a map of zeros."""
    pattern = np.sqrt((phase_pattern(maps) ** 2).mean((-2, -1)))
    level = np.sqrt((maps.astype(np.float64) ** 2).mean((-2, -1)))
    return np.divide(pattern, level, out=np.full(pattern.shape, np.nan), where=level > 0)


def _as_row(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Flatten all channels of a map into a row: ``(..., C, h, w)`` -> ``(..., 1, C h w)``."""
    return maps.reshape(*maps.shape[:-3], 1, -1)


def _regions_for(maps: Maps, run: StoredRun, onsets: Onsets) -> Sequence[Regions]:
    """The regions at the maps' own size: an operator's parts may be finer or coarser than its output."""
    size = (maps.shape[-2], maps.shape[-1])
    if size == onsets.regions[0].band.shape:
        return onsets.regions
    return [build_regions(mask, size) for mask in run.foregrounds]


def _by_region(
    name: str, maps: NDArray[np.float32], last: NDArray[np.float32], regions: Sequence[Regions]
) -> _Measured:
    parts = (np.stack([getattr(region, part) for region in regions]) for part in ("inside", "band", "outside"))
    means = mean_by_region(maps, *parts)
    measured = {f"{name}_inside": means.inside, f"{name}_band": means.band, f"{name}_outside": means.outside}
    return {"gate_correlation": correlation_to_final(maps, last), **measured} if name == "gate" else measured


def _classes(channels: NDArray[np.float32], regions: Sequence[Regions]) -> dict[str, NDArray[np.float64]]:
    inside = np.stack([region.distance < 0 for region in regions])
    similarity = class_similarity(
        channels, np.stack([inside, ~inside], 1), np.stack([region.band for region in regions])
    )
    return {
        "intra_edge": similarity.edge.intra,
        "inter_edge": similarity.edge.inter,
        "intra_interior": similarity.interior.intra,
        "inter_interior": similarity.interior.inter,
    }


def _tests(runs: Sequence[StoredRun], last: int) -> dict[str, MeasureCurve]:
    """The metrics of the tests that all runs have in common, up to the last measured step."""
    metrics = [[line for line in run.metrics() if line["step"] <= last] for run in runs]
    curves: dict[str, MeasureCurve] = {}
    for task in TASK_METRICS.values():
        lines = [{line["step"]: line for line in run if task.headline in line} for run in metrics]
        steps = tuple(sorted(set(lines[0]).intersection(*lines)))
        if steps:
            tables = {
                name: [[[_as_float(run[step].get(name))] for step in steps] for run in lines] for name in task.metrics
            }
            curves |= {name: _curve(name, steps, np.array(values)) for name, values in tables.items()}
    return curves


def _as_float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _curve(name: str, steps: Sequence[int], values: NDArray[np.float64]) -> MeasureCurve:
    middle, low, high = bootstrap_band(values)
    return MeasureCurve(name, tuple(steps), values, middle, low, high)
