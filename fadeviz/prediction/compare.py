"""Comparison of runs: their predictions for the same images side by side, as papers show them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from ..data import Sample
from ..data.matting.compositing import UNKNOWN
from ..data.transforms import IGNORED
from ..errors import FadevizError, printable
from ..experiment import load_data
from ..render.classes import ClassKey, class_key, has_colours, largest_shares, names_classes
from ..render.colormap import colour_classes
from ..render.comparison import write_comparison
from ..render.comparison_layout import Row
from ..render.frames import choose_labels
from ..render.labels import data_name, describe_runs, provenance
from ..render.style import FigureStyle, StyleOptions
from ..render.zoom import Box, choose_zoom
from ..storage.metrics import METRICS
from ..storage.opening import RunLike, stored_runs
from ..storage.several_runs import run_labels
from ..storage.stored_run import StoredRun
from ..training.matting_metrics import measure_matte
from ..training.tasks import TASKS
from .predictor import Predictor, find_trimap, read_image
from .stored import StoredPredictor

SHOWN = 4
"""Number of observed images shown if none are named."""


def parse_zoom(text: str) -> Box | str:
    """Read a zoom: ``auto``, ``none``, or a window as ``LEFT,TOP,SIDE`` in pixels of the image.

    Raises:
        FadevizError: if ``text`` is anything else.

    Example:
        >>> parse_zoom("40,16,32")
        Box(left=40, top=16, side=32)
    """
    if text in ("auto", "none"):
        return text
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise FadevizError(f"zoom={text!r}: must be auto, none, or a window in pixels: LEFT,TOP,SIDE")
    return Box(*map(int, parts))


def compare(
    runs: RunLike | Sequence[RunLike],
    output: str | os.PathLike[str],
    *,
    images: Sequence[int] = (),
    test: Sequence[int] = (),
    files: Sequence[str | Path] = (),
    trimaps: str | Path | None = None,
    data_dir: str | Path | None = None,
    zoom: Box | str = "auto",
    size: int | None = None,
    cell: int | None = None,
    step: int | None = None,
    device: str = "auto",
    on_error: Callable[[str], None] | None = None,
    labels: Sequence[str] = (),
    title: str | None = None,
    caption: bool = True,
    **style: Unpack[StyleOptions],
) -> list[str]:
    """Predict the same images with every run and draw the results side by side.

    A run without a known network, such as one of a :class:`Recorder`, shows the predictions that were stored at its
    last recorded step.

    The score of each result is given below it: the mean IoU of its classes, or a matte's SAD and MSE in the
    unknown region. The best score of a row is bold, unless several are as good.

    Args:
        runs: one or several runs, opened or by the paths of their folders, with the same task and, for segmentation,
            the same classes. Each needs its last checkpoint, or stored predictions.
        output: the image to write: .png, .pdf or .svg.
        images: indices of observed images; the first ``SHOWN`` if there is no ``images``, ``test`` or ``files``.
            Observed images need nothing but the runs' folders.
        test: indices of test images of the runs' data set, as the runs were tested on them.
        files: image files of your own; they have no true mask to compare with.
        trimaps: folder of their trimaps, for matting; by default they are beside the images.
        data_dir: folder of the data set; None takes the one that the first run was recorded with.
        zoom: the window to enlarge: ``auto``, which is where the runs disagree most along the contours of each image
            (:func:`~fadeviz.render.zoom.choose_zoom`); ``none``; or a window, the same in all images.
        size: shorter side at which the network sees an image, in pixels; see
            :class:`~fadeviz.prediction.predictor.Predictor`.
        cell: width of a column in pixels; None uses 300 pixels per inch.
        step: a recorded step: all runs show the predictions that were stored at it. None takes the last checkpoints,
            and the last stored predictions of runs without one.
        device: ``auto``, ``cpu`` or ``cuda``.
        on_error: called with one line for each of ``files`` that cannot be read, has no trimap or cannot be predicted,
            which is then left out of the figure; None raises the first error. At least one image must remain.
        labels: a heading for each run, in the order of the runs; empty for the runs' own.
        title: title above the figure; None for none.
        caption: whether sentences below say what is shown, as many as fit into two lines. All of them are in the file's
            metadata.
        style: the fields of :class:`~fadeviz.render.style.FigureStyle`: width, font, font_size, dpi, transparent.

    Returns:
        A line for each image: its name and the scores of the runs.

    Raises:
        FadevizError: if the runs cannot be compared, an image does not exist, or the window does not fit into one.

    Example::

        fadeviz.compare(["outputs/fade", "outputs/carafe"], "panel.pdf", images=[0, 2], width="85mm")
    """
    opened = stored_runs(runs)
    if not opened:
        raise FadevizError("compare needs at least one run")
    look, headings = FigureStyle(**style), choose_labels(opened, labels)
    predictors = [_predictor(run, step, device) for run in opened]
    _check_task(predictors)
    first = predictors[0]
    for predictor in predictors:
        predictor.check_size(size)
    networks = _networks(predictors) if test or files else []
    rows = []
    if images or not (test or files):
        has_truth = _has_truth(first.run)
        observed = _observed(opened, images)
        shown = images or range(len(observed))
        rows = [
            _row(predictors, sample, has_truth, zoom, size, index)
            for index, sample in zip(shown, observed, strict=True)
        ]
    if test:
        rows += [_row(networks, sample, True, zoom, size) for sample in _test_images(networks, test, data_dir)]
    if files:
        rows += _own_rows(networks, files, trimaps, zoom, size, on_error, alone=not rows)
    key = None
    if TASKS[first.task].has_classes and (first.classes > 2 or any(map(names_classes, opened))):
        key = class_key(opened, largest_shares(values for _, maps in rows for values in maps), classes=first.classes)
    sentences = _caption(predictors, rows, zoom, key)
    write_comparison(
        [row for row, _ in rows],
        headings,
        Path(output),
        cell=cell,
        legend=key.legend if key else (),
        caption=sentences if caption else (),
        provenance=provenance(opened, sentences),
        title=title or "",
        style=look,
    )
    names = run_labels(opened, [run.name for run in opened])
    return [_score_line(row, names) for row, _ in rows if row.scores]


def _predictor(run: StoredRun, step: int | None, device: str) -> Predictor | StoredPredictor:
    """What predicts for a run: its network; or what was stored, of a given step or where the network is not known."""
    if step is not None:
        return StoredPredictor(run, step)
    known = "network" in run.info.config
    if run.info.predictions is not None and not (known and run.file("checkpoints/last.pt").exists()):
        return StoredPredictor(run)
    if not known:
        raise FadevizError(
            f"{run.address} was recorded in a training loop of its own: its network is not known here, and its "
            "predictions were not stored. Record it with predictions=True, or give a run of: fadeviz record"
        )
    return Predictor(run, device)


def _networks(predictors: Sequence[Predictor | StoredPredictor]) -> list[Predictor]:
    """The predictors, which must all have a network: only that predicts for images that were not observed."""
    networks = [predictor for predictor in predictors if isinstance(predictor, Predictor)]
    if len(networks) < len(predictors):
        stored = next(predictor for predictor in predictors if isinstance(predictor, StoredPredictor))
        raise FadevizError(
            f"{stored.run.address} has stored predictions, which are of its observed images alone. Leave out test=... "
            "and files=..., and choose with images=..."
        )
    return networks


def _has_truth(run: StoredRun) -> bool:
    """Whether the masks of the observed images are known: without masks a recorder stores zeros."""
    return "network" in run.info.config or bool(run.observation[1].any())


def _check_task(predictors: Sequence[Predictor | StoredPredictor]) -> None:
    """Raise unless all runs have the same task and the same number of classes.

    Stored predictions may show a class that the masks do not; the largest number then counts for all of them.
    """
    stored = [predictor for predictor in predictors if isinstance(predictor, StoredPredictor)]
    for predictor in stored:
        predictor.classes = max(other.classes for other in stored)
    first, *others = predictors
    for other in others:
        if (other.task, other.classes) != (first.task, first.classes):
            tasks = [
                f"{p.run.address} is for {p.task}" + f" into {p.classes} classes" * TASKS[p.task].has_classes
                for p in (other, first)
            ]
            raise FadevizError(f"{', '.join(tasks)}: they cannot be compared. Give runs of the same task")


def _score_line(row: Row, names: Sequence[str]) -> str:
    scores = (f"{name} {' '.join(text.split())}" for name, text in zip(names, row.scores, strict=True))
    return printable(f"{row.name}: {', '.join(scores)}")


_Maps = list[NDArray[np.uint8]]
"""Class maps of the results, and of the ground truth if it is known, for the legend."""


def _own_rows(
    predictors: Sequence[Predictor],
    files: Sequence[str | Path],
    trimaps: str | Path | None,
    zoom: Box | str,
    size: int | None,
    on_error: Callable[[str], None] | None,
    alone: bool,
) -> list[tuple[Row, _Maps]]:
    """The runs' results for the user's own images; ``alone`` if there are no other rows."""
    rows: list[tuple[Row, _Maps]] = []
    errors: list[str] = []
    folder = None if trimaps is None else Path(trimaps)
    for path in map(Path, files):
        try:
            trimap = find_trimap(path, folder) if not TASKS[predictors[0].task].has_classes else None
            rows.append(_row(predictors, read_image(path, trimap), False, zoom, size))
        except FadevizError as error:
            # With nothing else to draw, the error itself is the most helpful.
            if on_error is None or (alone and len(files) == 1):
                raise
            errors.append(str(error))
    if alone and errors and not rows:
        raise FadevizError(f"none of the {len(files)} images can be drawn; the first error: {errors[0]}")
    if on_error is not None:
        for line in errors:
            on_error(line)
    return rows


def _observed(runs: Sequence[StoredRun], wanted: Sequence[int]) -> list[Sample]:
    """Images that all runs observed."""
    first = runs[0]
    images, masks = first.observation
    for run in runs[1:]:
        if not np.array_equal(run.observation[0], images) or not np.array_equal(run.observation[1], masks):
            raise FadevizError(
                f"{run.address} and {first.address} observed different images. "
                "Name other images: test=[0, 1] or files=[FILE]"
            )
    for index in wanted:
        if not 0 <= index < len(images):
            raise FadevizError(
                f"no observed image {index} in {first.address}: there are {len(images)}, from 0 to {len(images) - 1}"
            )
    alphas, trimaps = first.mattes or (None, None)
    if alphas is None and any(run.info.predictions == "alpha" for run in runs):
        alphas = first.foregrounds.astype(np.uint8) * np.uint8(255)  # a recorder's mask is the truth of its mattes
    return [
        Sample(
            first.info.observation.name_of(i),
            images[i],
            masks[i],
            None if alphas is None else alphas[i].astype(np.float32) / np.float32(255),
            None if trimaps is None else trimaps[i],
        )
        for i in wanted or range(min(SHOWN, len(images)))
    ]


def _test_images(predictors: Sequence[Predictor], wanted: Sequence[int], data_dir: str | Path | None) -> list[Sample]:
    """Images of the set that every run was tested on."""
    first = predictors[0]
    moved = {} if data_dir is None else {"data_dir": str(data_dir)}
    splits = load_data(dataclasses.replace(first.config, **moved))  # type: ignore[arg-type]
    for other in predictors:
        same = (other.config.data, other.config.split_seed) == (first.config.data, first.config.split_seed)
        if not same or _identity(dict(other.run.info.data)) != _identity(splits.info):
            raise FadevizError(
                f"{other.run.address} was not tested on the test images of "
                f"{data_dir or first.config.data_dir or 'this set'}: the files, split_seed or subset differ. "
                "Use files=[FILE]"
            )
    dataset = splits.test
    count = dataset.count or 0
    for index in wanted:
        if not 0 <= index < count:
            raise FadevizError(f"no test image {index}: {first.config.data} has {count}, from 0 to {count - 1}")
    return [dataset[index] for index in wanted]


def _identity(info: object) -> object:
    """The identity of a data set, as run.json stores it, without its location."""
    stored = json.loads(json.dumps(info))
    return {k: v for k, v in stored.items() if k not in ("folder", "notes")} if isinstance(stored, dict) else None


def _row(
    predictors: Sequence[Predictor | StoredPredictor],
    sample: Sample,
    has_truth: bool,
    zoom: Box | str,
    size: int | None,
    observed: int | None = None,
) -> tuple[Row, _Maps]:
    """The results of all runs for one image, and their class maps.

    ``has_truth`` says whether its ground truth is known, and ``observed`` which observed image it is, if it is one.
    """
    results = [
        predictor(sample, size=size) if isinstance(predictor, Predictor) else predictor.observed(observed or 0)
        for predictor in predictors
    ]
    matting = not TASKS[predictors[0].task].has_classes
    classes = predictors[0].classes
    truth: NDArray[np.uint8] | NDArray[np.float32] | None = (
        (sample.alpha if matting else sample.mask) if has_truth else None
    )
    box = zoom if isinstance(zoom, Box) else None
    if zoom == "auto" and matting and truth is None and len(results) == 1:
        if sample.trimap is not None:
            # Nothing disagrees: the largest unknown region. Partly transparent, all of it counts as a contour.
            unknown = np.where(sample.trimap == UNKNOWN, np.float32(0.5), np.float32(0))
            box = choose_zoom([unknown], np.zeros_like(unknown))
    elif zoom == "auto":
        box = choose_zoom(results, truth, ignored=None if matting else IGNORED)
    texts: list[str] = []
    scores: list[float] = []
    for result in results if truth is not None else ():
        if matting:
            trimap = np.full(sample.mask.shape, UNKNOWN, np.uint8) if sample.trimap is None else sample.trimap
            errors = measure_matte(result, sample._replace(trimap=trimap))  # type: ignore[arg-type]
            scores.append(-errors["sad"])
            texts.append(f"SAD {METRICS['sad'].text(errors['sad'])}  MSE {errors['mse']:.3f}")
        else:
            scores.append(mean_iou(result, truth, classes))  # type: ignore[arg-type]
            texts.append(f"mIoU {scores[-1]:.3f}")
    row = Row(
        sample.name,
        sample.image,
        None if truth is None else _to_image(truth, predictors[0]),
        tuple(_to_image(result, predictors[0]) for result in results),
        tuple(texts),
        _best(scores),
        sample.trimap if matting else None,
        box,
        smooth=matting,
    )
    return row, [] if matting else [np.asarray(m, np.uint8) for m in [*results, *([] if truth is None else [truth])]]


def _best(scores: list[float]) -> int | None:
    """The index of the best of several scores; None where there is none, or several are as good."""
    if len(scores) < 2 or np.isnan(scores).all():
        return None
    best = int(np.nanargmax(scores))
    return best if scores.count(scores[best]) == 1 else None


def mean_iou(prediction: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> float:
    """Mean intersection over union of the classes in the ground truth or the prediction, without ignored pixels.

    Shape: ``(H, W)`` twice; NaN where everything is ignored.
    """
    valid = truth < classes
    a, b = prediction[valid].astype(np.int64), truth[valid].astype(np.int64)
    both = np.bincount(a[a == b], minlength=classes)
    either = np.bincount(a, minlength=classes)[:classes] + np.bincount(b, minlength=classes) - both
    present = either > 0
    return float((both[present] / either[present]).mean()) if present.any() else float("nan")


def _to_image(values: NDArray[np.uint8] | NDArray[np.float32], first: Predictor | StoredPredictor) -> NDArray[np.uint8]:
    """A mask or a matte, ready to show; a mask in the colours of the first run's classes."""
    if np.issubdtype(values.dtype, np.floating):
        return np.rint(values * 255).astype(np.uint8)
    if has_colours(first.run, first.classes):
        return colour_classes(values.astype(np.uint8), first.classes, first.run.info.data.class_colors)
    return np.where(values == 1, 255, 0).astype(np.uint8)


def _caption(
    predictors: Sequence[Predictor | StoredPredictor],
    rows: Sequence[tuple[Row, _Maps]],
    zoom: Box | str,
    key: ClassKey | None,
) -> list[str]:
    """The sentences of the caption: the operators, then the content of the figure."""
    first = predictors[0]
    networks = dict.fromkeys(
        predictor.run.info.network_title or str(predictor.run.info.config.get("network", "network"))
        for predictor in predictors
    )
    data = dict.fromkeys(name for predictor in predictors if (name := data_name(predictor.run)))
    steps = dict.fromkeys(predictor.step for predictor in predictors)
    lines = [
        f"{' and '.join(networks)}, trained{' on ' * bool(data)}{' and '.join(data)} for "
        f"{' and '.join(map(str, steps))} steps. "
        f"{describe_runs([predictor.run for predictor in predictors])}."
    ]
    scored = any(row.scores for row, _ in rows)
    has_classes = TASKS[first.task].has_classes
    shown = ["White: class 1." if has_classes else "Alpha from 0 (black) to 1 (white)."]
    if key is not None:
        shown = [key.sentence()]
    if scored and not has_classes and all(row.trimap is None for row, _ in rows):
        shown.append("SAD / 1000 and MSE over the whole image, with the mask as the truth.")
    elif scored and not has_classes:
        shown.append("SAD / 1000 and MSE over the unknown region (grey in the trimap).")
    elif scored:
        shown.append("mIoU: mean over the classes in ground truth or prediction.")
    if zoom == "auto" and len(predictors) > 1:
        shown.append("Boxes: windows in which the runs disagree most along contours.")
    elif zoom == "auto" and scored:
        shown.append("Boxes: windows of the largest error along contours, where the ground truth is known.")
    return [*lines, *shown]


__all__ = ["compare", "mean_iou", "parse_zoom"]
