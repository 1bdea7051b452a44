"""Reports: verdict, maps to step through, curves and distance-time maps of runs in one self-contained HTML file."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..analysis.onsets import Onsets
from ..analysis.result import Analysis, analyze
from ..analysis.text import describe_images
from ..errors import FadevizError, unknown_name
from ..onset_panels import KYMOGRAPH_QUANTITY, explain_kymographs, kymograph_panels
from ..page import palettes, signed_colours
from ..render.colormap import NON_FINITE
from ..render.panels import kymograph_span
from ..storage.files import write_whole
from ..storage.layers_of_runs import LayerOfRuns, describe_layers, layers_of
from ..storage.opening import RunLike, stored_runs
from ..storage.several_runs import check_distinct, describe_snapshots
from ..storage.snapshots import KINDS
from ..storage.stored_run import StoredRun
from . import text
from .charts import chart_groups, signature_data
from .contour import contour_path, image_uri
from .page import render_page
from .predictions import SHARE, select_report_predictions
from .sequences import MAP_KINDS, LayerNames, ReportSelection, page_layers, select_sequences, wanted_maps

ENDINGS = (".html", ".htm")

_RESERVE = 4000
"""Bytes kept free for what is only known at the end: the sentences on what was left out."""


def write_report(
    runs: RunLike | Sequence[RunLike],
    output: str | os.PathLike[str],
    *,
    layers: Sequence[LayerOfRuns] = (),
    kinds: Sequence[str] = (),
    images: int = 4,
    max_mb: float = 6.0,
    title: str | None = None,
    call: int = 0,
) -> tuple[str, ...]:
    """Write a self-contained HTML report (no network access): what the runs show first, and the maps that show it.

    The same runs, given by the same paths, give the same bytes. Maps are stored in 256 levels per frame.

    Args:
        runs: one or more runs that observed the same images, opened or by the paths of their folders; several runs of
            one operator are measured together, as its seeds.
        output: the file to write; its name ends in .html.
        layers: the layers to show, the first of which is measured: dotted names; or, of a layer whose name differs
            between the runs, mappings that name it for each run, by its folder or its label:
            ``[{"a": "up1", "b": "up1.op"}]``. None shows all, and measures the network's intermediate layer.
        kinds: names in ``MAP_KINDS``, the first of which is measured; none shows all, and measures features.
        images: number of observed images to show, counted from the first; all are measured.
        max_mb: maximum size of the file in millions of bytes; maps that do not fit are listed on the page.
        title: heading of the page; None uses the operators and the network.
        call: index of the call to show and to measure, of layers that run several times in a forward pass.

    Returns:
        Notes on what was left out of the page.

    Raises:
        FadevizError: if the runs cannot be compared or measured, a layer or kind is unknown, an option is invalid, or
            ``max_mb`` is too small.
    """
    opened, path = stored_runs(runs), Path(output)
    _check(opened, path, layers, kinds, images, max_mb)
    analysis = analyze(opened, layer=layers[0] if layers else None, kind=kinds[0] if kinds else "feature", call=call)
    onsets = analysis.onsets
    shown_layers = page_layers(opened, onsets.layers, layers)
    ordered = [run for operator in onsets.operators for run in operator.runs]
    images_shown = min(images, len(onsets.images))
    steps, thinned = text.shown_steps(onsets)
    command = _command(opened, path, layers, kinds, images, max_mb, title, call)
    content = _content(analysis, steps, ordered, images_shown, command, title)
    not_requested = tuple(_not_requested(onsets, ordered, shown_layers, kinds, images_shown))
    limit = int(max_mb * 1e6)
    room = limit - _RESERVE - len(render_page(content, ReportSelection(left_out=not_requested)))
    every = range(len(ordered))
    predictions, no_room = select_report_predictions(ordered, every, steps, images_shown, int(SHARE * room))
    if predictions is not None:
        room = limit - _RESERVE - len(render_page(content, ReportSelection(left_out=not_requested), predictions))
    while True:
        selection = select_sequences(
            ordered,
            [seed for operator in onsets.operators for seed in range(len(operator.runs))],
            steps,
            images_shown,
            room,
            layers=shown_layers,
            kinds=kinds,
            advice="Give a larger max_mb=..., or fewer runs",
            call=call,
        )
        selection = replace(selection, left_out=(*thinned, *selection.left_out, *no_room, *not_requested))
        page = render_page(content, selection, predictions)
        if len(page) <= limit:
            break
        # What surrounds many small sequences takes more than the estimate, which the space kept free did not cover.
        room -= len(page) - limit
    write_whole(path, page)
    return selection.left_out


def _check(
    runs: Sequence[StoredRun],
    path: Path,
    layers: Sequence[LayerOfRuns],
    kinds: Sequence[str],
    images: int,
    max_mb: float,
) -> None:
    if path.suffix.lower() not in ENDINGS:
        raise FadevizError(f"{path}: a report is an HTML page. Give a name that ends in .html")
    if images < 1:
        raise FadevizError(f"images={images}: must be at least 1")
    if not max_mb > 0:
        raise FadevizError(f"max_mb={max_mb:g}: must be a positive number of megabytes")
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
        if kind not in MAP_KINDS:
            raise FadevizError(
                f"kinds={kind!r}: has no single map per image, which a page needs. Choose from {', '.join(MAP_KINDS)}"
            )
    for layer in layers:
        if isinstance(layer, str) and runs and not any(run.matching_layers(layer) for run in runs):
            recorded = {name for run in runs for name in run.layers}
            raise unknown_name("layer in these runs", layer, recorded, f"fadeviz info {runs[0].address}")
    check_distinct(runs)
    for layer in layers:
        layers_of(runs, layer)  # raises before minutes of measuring


def _command(
    runs: Sequence[StoredRun],
    output: Path,
    layers: Sequence[LayerOfRuns],
    kinds: Sequence[str],
    images: int,
    max_mb: float,
    title: str | None,
    call: int,
) -> str:
    words = ["fadeviz", "report", *(run.address for run in runs), "-o", output.name]
    for layer in layers:
        named = [layer] if isinstance(layer, str) else [f"{run}={name}" for run, name in layer.items()]
        words += [word for text in named for word in ("--layer", text)]
    words += [word for kind in kinds for word in ("--kind", kind)]
    words += ["--images", str(images)] if images != 4 else []
    words += ["--max-mb", f"{max_mb:.12g}"] if max_mb != 6 else []
    words += ["--title", title] if title is not None else []
    words += ["--call", str(call)] if call else []
    return text.plain(shlex.join(words), 4000)


def _not_requested(
    onsets: Onsets, runs: Sequence[StoredRun], layers: Sequence[LayerNames], kinds: Sequence[str], images: int
) -> list[str]:
    """Sentences on what the page does not show of the runs, and how to include it."""
    sentences = []
    if images < len(onsets.images):
        sentences.append(f"images {images + 1} to {len(onsets.images)}: shown with images={len(onsets.images)}")
    calls: dict[str, set[int]] = {}
    for layer, kind in wanted_maps(runs, layers, kinds):
        title = describe_layers(layer)
        if title not in calls:  # all kinds of a layer have the same calls
            recorded = [run for run, name in layer.items() if kind in run.layers[name]]
            calls[title] = {call for run in recorded for call in run.calls(layer[run], kind)}
    for title, numbers in calls.items():
        others = [str(number) for number in sorted(numbers) if number != onsets.call]
        if onsets.call not in numbers:
            sentences.append(f"{title}, which has no call {onsets.call}")
        elif others:
            sentences.append(f"call{'s' * (len(others) > 1)} {', '.join(others)} of {title}: choose with call=...")
    longest = max(len(run.steps) for run in runs)
    if longest > len(onsets.steps):
        sentences.append(f"{longest - len(onsets.steps)} steps, because not all runs have them")
    all_kinds = {kind for run in runs for recorded_kinds in run.layers.values() for kind in recorded_kinds}
    no_maps = [kind for kind in KINDS if kind in all_kinds and kind not in MAP_KINDS]
    if no_maps and not kinds:
        sentences.append(
            f"{', '.join(no_maps)}: no single map per image; draw them with fadeviz grid --kind {no_maps[0]}"
        )
    return sentences


# --- what the page shows ----------------------------------------------------------------------------------------------


def _content(
    analysis: Analysis, steps: Sequence[int], runs: Sequence[StoredRun], images: int, command: str, title: str | None
) -> dict[str, Any]:
    """Everything but the maps: ``data`` for the script, and the text of the page."""
    onsets = analysis.onsets
    panels = kymograph_panels(onsets)
    observed, _ = runs[0].observation
    mattes = runs[0].mattes
    networks = dict.fromkeys(run.info.network_title or run.info.network or "" for run in runs)
    operators = _listed([text.plain(operator.title, 60) for operator in onsets.operators])
    numbers = {id(run): number for number, run in enumerate(runs)}
    data = {
        "layer": onsets.layer,
        "kind": onsets.kind,
        "steps": list(steps),
        "images": [
            {
                "name": text.plain(name, 80),
                "image": image_uri(image),
                "contour": contour_path(inside),
                "size": list(inside.shape),
                **({} if mattes is None else {"matte": image_uri(mattes[0][number])}),
                **({"object": text.plain(inner, 40)} if (inner := runs[0].info.object_name(number)) else {}),
            }
            for number, (name, image, inside) in enumerate(
                zip(onsets.images[:images], observed, runs[0].foregrounds, strict=False)
            )
        ],
        "operators": [
            {
                "title": text.plain(operator.title, 80),
                "runs": [
                    {"run": numbers[id(run)], "seed": None if seed is None else text.plain(seed, 20)}
                    for run, seed in zip(operator.runs, operator.seeds, strict=True)
                ],
            }
            for operator in onsets.operators
        ],
        "groups": chart_groups(analysis),
        "signature": signature_data(panels),
        "kinds": {kind: KINDS[kind] for kind in MAP_KINDS},
        "palettes": palettes(),
        "signed": signed_colours(),
        "nonFinite": list(NON_FINITE),
    }
    where = _listed([text.plain(name, 60) for name in networks if name])
    return {
        "title": text.plain(title, 300) if title is not None else f"{operators}{f' in {where}' if where else ''}",
        "measured": f"{text.plain(onsets.layer_title)}, {onsets.kind}: {describe_images(onsets)}, "
        f"{describe_snapshots(onsets.steps)}",
        "verdicts": text.verdict_rows(onsets, panels),
        "key": (KYMOGRAPH_QUANTITY, explain_kymographs(onsets), kymograph_span(panels)) if panels else None,
        "table": text.onset_table(analysis),
        "classes": text.class_table(onsets),
        "comparisons": text.comparison_sentences(onsets),
        "caveats": text.caveats(onsets),
        "settings": text.settings(runs),
        "command": command,
        "data": data,
    }


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


__all__ = ["ENDINGS", "write_report"]
