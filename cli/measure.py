"""The commands that measure stored runs: analyze and plot."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fadeviz.errors import FadevizError

from .runs import CALL, RUN, Output, is_stdout, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fadeviz.analysis.kymograph import Kymograph
    from fadeviz.analysis.order import LearningOrder, OperatorOrder
    from fadeviz.analysis.table import Courses
    from fadeviz.render.panels import CurvePanel

_RUNS = click.argument("runs", nargs=-1, required=True, type=RUN)
_LAYER = click.option("--layer", default=None, help="Layer to measure.  [default: the network's intermediate one]")
_KIND = click.option("--kind", "map_kind", default="feature", show_default=True, help="Kind of map to measure.")
_CALL = click.option("--call", type=int, default=0, show_default=True, help=CALL)

_RESPONSES = click.option(
    "--responses", default="plain", show_default=True,
    metavar="plain|raw-edge|beyond-position|raw-beyond-position|other-masks",
    help="Which responses the learning times are of: as they are; the edge response from the map's own gradient, not "
         "its ranks'; each less that for other images' masks, which any centred blob has too; or that of the other "
         "masks alone, as a control.",
)  # fmt: skip

_UNTIL = click.option(
    "--until", default="end", show_default=True, metavar="end|peak",
    help="What a response is learned towards: its level at the end of the training, or its peak, as an outline can "
         "come and go.",
)  # fmt: skip


@click.command()
@_RUNS
@_LAYER
@_KIND
@_CALL
@_RESPONSES
@_UNTIL
@click.option("--json", "json_file", type=Output(text=True, dir_okay=False), metavar="FILE",
              help="Write all numbers here; -: to standard output, with the table on standard error.")  # fmt: skip
@click.option(
    "--csv",
    "csv_file",
    type=Output(text=True, dir_okay=False),
    metavar="FILE",
    help="Write the table here; - as for --json.",
)
def analyze(
    runs: tuple[Path | str, ...],
    layer: str | None,
    map_kind: str,
    call: int,
    responses: str,
    until: str,
    json_file: Path | None,
    csv_file: Path | None,
) -> None:
    """Measure what RUNS learn first, outline or interior: one row an operator, with intervals over images and seeds."""
    from fadeviz.analysis.curves import operator_courses
    from fadeviz.analysis.table import course_rows, describe, number, other_rules, summary_rows

    piped = [file for file in (json_file, csv_file) if is_stdout(file)]
    if len(piped) > 1:
        raise click.UsageError("--json - and --csv - both write to standard output: choose one")
    order = _order(runs, layer, map_kind, responses, until, call)
    courses = [operator_courses(order, operator) for operator in order.operators]
    rows = summary_rows(order, courses)
    others = other_rules(order)
    if json_file is not None:
        whole = {
            "layer": order.layer,
            "call": order.call,
            "kind": order.kind,
            "steps": list(order.steps),
            "images": list(order.images),
            "responses": order.rules.which,
            "until": order.rules.until,
            "operators": [{**row, "courses": course_rows(one)} for row, one in zip(rows, courses, strict=True)],
            "comparisons": [
                {
                    "first": one.first,
                    "second": one.second,
                    "seeds": list(one.seeds),
                    **{
                        unit: {
                            "difference": number(t.difference),
                            "p": number(t.p),
                            "pairs": t.count,
                        }
                        for unit, t in one.tests.items()
                    },
                }
                for one in order.comparisons
            ],
            "other_rules": others,
            "notes": list(order.notes),
        }
        write_text(json_file, json.dumps(whole, allow_nan=False) + "\n")
    if csv_file is not None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(json.dumps(v) if isinstance(v, list | dict) else v for v in row.values())
        write_text(csv_file, text.getvalue())
    click.echo(describe(order, rows, others), err=bool(piped))
    for file in (json_file, csv_file):
        if file is not None and file not in piped:
            click.echo(f"wrote {file}", err=bool(piped))


_FIGURES = {
    "kymograph": "the map's values by distance to the contour and step",
    "edge-kymograph": "its steepness, likewise",
    "responses": "edge and interior response, and the same for other images' masks",
    "spectrum": "how fine the map is, and its checkerboard",
    "learning": "how alike map, gate, kernels, guide and decoder feature are to what they become",
    "gate": "gate and kernel entropy inside, on the contour and outside",
    "classes": "feature similarity within and between classes",
    "continuity": "change from one snapshot to the next",
    "quality": "mIoU and Boundary IoU of the tests, or the errors of their mattes",
}


@click.command()
@_RUNS
@click.option(
    "--kind",
    "figures",
    type=click.Choice(list(_FIGURES)),
    multiple=True,
    default=["kymograph"],
    show_default=True,
    help="May be given several times. " + "; ".join(f"{name}: {what}" for name, what in _FIGURES.items()) + ".",
)
@_LAYER
@click.option("--map-kind", default="feature", show_default=True, help="Kind of map to measure.")
@_CALL
@_RESPONSES
@_UNTIL
@click.option("-o", "--output", type=Output(path_type=str), required=True, metavar="FILE",
              help="The figure: .png, .pdf or .svg. Of several kinds: figures/{kind}.png.")  # fmt: skip
def plot(
    runs: tuple[Path | str, ...],
    figures: tuple[str, ...],
    layer: str | None,
    map_kind: str,
    call: int,
    responses: str,
    until: str,
    output: str,
) -> None:
    """Draw what was measured of RUNS: distance-time maps, or curves over the training with 95 % intervals."""
    from fadeviz.analysis.curves import operator_courses
    from fadeviz.render.page import check_ending

    if len(set(figures)) > 1 and "{kind}" not in output:
        raise FadevizError(
            f"several kinds of figure, but one file {output}. Put {{kind}} into its name: fig_{{kind}}.png"
        )
    check_ending(output, "plot")  # before minutes of measuring
    order = _order(runs, layer, map_kind, responses, until, call)
    courses = [] if _KYMOGRAPHS.keys() >= set(figures) else [operator_courses(order, one) for one in order.operators]
    for figure in dict.fromkeys(figures):
        path = Path(output.replace("{kind}", figure))
        _draw(order, courses, figure, path)
        click.echo(f"wrote {path}")
    for note in order.notes:
        click.echo(f"note: {note}", err=True)


def _draw(order: LearningOrder, courses: Sequence[Courses], figure: str, output: Path) -> None:
    from fadeviz.analysis.curves import MEASURES, group_words
    from fadeviz.analysis.grouping import describe_inside
    from fadeviz.render.labels import brief
    from fadeviz.render.panels import KymographPanel
    from fadeviz.render.plots import write_curves, write_kymographs

    runs = f"Runs: {', '.join(brief(run.run_id) for operator in order.operators for run in operator.runs)}"
    images = f"{len(order.images)} images: {', '.join(map(brief, order.images))}"
    caption = f"{order.layer_title}, {order.kind}. {images}. {runs}. "
    inside = describe_inside(order.operators[0].runs[0])
    if inside and figure in _OF_THE_INSIDE:
        caption += f"{inside[0].upper()}{inside[1:]}. "
    if figure in _KYMOGRAPHS:
        quantity, sentence = _KYMOGRAPHS[figure]
        kymographs = [op.value_kymograph if figure == "kymograph" else op.gradient_kymograph for op in order.operators]
        write_kymographs(
            [
                KymographPanel(op.title, _subtitle(op), order.steps, k.edges, k.value)
                for op, k in zip(order.operators, kymographs, strict=True)
            ],
            output,
            quantity=f"mean rank of the map's {quantity}\n(0 lowest, 1 highest)",
            caption=f"{caption}Dashed: the contour. White: chance level (0.5). {_cut_off(kymographs)}{sentence}",
        )
        return
    panels = (_by_operator if figure in _ONE_PANEL_AN_OPERATOR else _by_measure)(order, courses, figure)
    if not panels:
        raise FadevizError(f"none of the runs has what the figure {figure!r} shows. {_remedy(order, figure)}")
    sentence = "Lines: median over runs and images; bands: its 95 % interval over seeds and images."
    if figure == "responses":
        sentence += (
            " Dotted curves: the same for the masks of other images, which a map that knows only where objects tend to "
            "be reaches too. Upright: median step of half of the way, if enough maps have one."
        )
    elif figure == "quality":
        caption = f"The whole network on its test images. {runs}. "
        note = group_words(figure, {name for one in courses for name in one})[1]
        sentence = " ".join(filter(None, ["Lines: median over runs; bands: its 95 % interval over seeds.", note]))
    elif figure in ("learning", "classes"):
        sentence += " Kernels, guide and decoder feature: of the first images alone, as many as were recorded whole."
    write_curves(panels, output, caption=caption + sentence)
    lacking = [
        operator.title
        for operator, one in zip(order.operators, courses, strict=True)
        if not any(MEASURES[name].figure == figure for name in one)
    ]
    if lacking:
        click.echo(f"note: left out {', '.join(lacking)}: not all runs have what the figure {figure!r} shows", err=True)


def _cut_off(kymographs: Sequence[Kymograph]) -> str:
    """A sentence on the distances that are not drawn; empty if all are."""
    from fadeviz.render.panels import shown_distances

    edges = [one.edges for one in kymographs]
    last, farthest = shown_distances(edges)[1], max(float(one[-1]) for one in edges)
    return f"Not drawn: distances of {last:g} to {farthest:g} px outside. " if farthest > last else ""


def _remedy(order: LearningOrder, figure: str) -> str:
    """What to do if no run has what a figure shows; runs of a user's own loop are recorded differently."""
    run = order.operators[0].runs[0]
    by_command = "upsampler" in (run.info.get("config") or {})
    if figure == "quality" and by_command:
        return (
            f"{run.address}/metrics.jsonl has no test up to step {order.steps[-1]}: "
            f"continue with fadeviz record --resume --out {run.address}"
        )
    if figure == "quality":
        return "Log test results in your training loop: recorder.log(step, miou=...), or sad=... for mattes"
    kinds = {"gate": "gate,kernel_entropy", "classes": "channels"}.get(figure)
    if kinds is None:
        return "The maps are constant or not finite at every step"
    how = f"fadeviz record --kinds {kinds} ..." if by_command else f'Recorder(..., kinds="{kinds}")'
    return f"Record it, with an operator that has it: {how}"


_KYMOGRAPHS = {
    "kymograph": (
        "values",
        "A front that moves down from the contour is an interior that fills; one that moves up to it, one that grows "
        "from its middle.",
    ),
    "edge-kymograph": ("steepness", "An orange line along the contour is an outline."),
}
_OF_THE_INSIDE = ("kymograph", "edge-kymograph", "responses", "gate", "classes")
_ONE_PANEL_AN_OPERATOR = ("responses", "learning", "gate", "classes")
_SPANS = {"responses": (-0.5, 1.02), "learning": (-0.25, 1.02), "gate": (0.0, 1.02)}


def _subtitle(operator: OperatorOrder) -> str:
    return f"{len(operator.seeds)} seed{'s' if len(operator.seeds) > 1 else ''}; {operator.verdict.word}"


def _by_operator(order: LearningOrder, courses: Sequence[Courses], figure: str) -> list[CurvePanel]:
    """A panel for each operator, a line for each measure."""
    from fadeviz.analysis.curves import MEASURES
    from fadeviz.analysis.table import speaks_for
    from fadeviz.render.panels import Curve, CurvePanel

    panels = []
    for operator, having in zip(order.operators, courses, strict=True):
        times = {"edge": operator.edge_t50, "interior": operator.interior_t50}
        marks = {name: t50.estimate for name, t50 in times.items() if speaks_for(t50, operator.lead.size)}
        curves = []
        names = [name for name in having if MEASURES[name].figure == figure]
        if figure == "responses":
            names = [n for n in ("edge", "edge_elsewhere", "interior", "interior_elsewhere") if n in having]
        for name in names:
            measure, course = MEASURES[name], having[name]
            label = f"{measure.title} ({measure.unit})" if figure == "learning" else measure.title
            mark = marks.get(name, math.nan) if figure == "responses" else math.nan
            like = None
            if name.endswith("_elsewhere"):
                like = MEASURES[name.removesuffix("_elsewhere")].title
            elif name.endswith("_cka"):
                like = f"{measure.title} ({MEASURES[name.replace('_cka', '_correlation')].unit})"
            elif name.startswith(("entropy_", "inter_")):
                like = MEASURES[name.replace("entropy_", "gate_").replace("inter_", "intra_")].title
            curves.append(
                Curve(label, course.steps, course.middle, course.low, course.high, mark, like, "_elsewhere" in name)
            )
        if curves:
            unit = {"responses": "response (1 perfect)", "learning": "similarity to the last snapshot",
                    "gate": "mean", "classes": "cosine similarity"}[figure]  # fmt: skip
            panels.append(CurvePanel(operator.title, _subtitle(operator), unit, curves, _SPANS.get(figure)))
    return panels


def _by_measure(order: LearningOrder, courses: Sequence[Courses], figure: str) -> list[CurvePanel]:
    """A panel for each measure, a line for each operator."""
    from fadeviz.analysis.curves import MEASURES
    from fadeviz.render.panels import Curve, CurvePanel

    titles = [operator.title for operator in order.operators]
    labels = titles if len(set(titles)) == len(titles) else [operator.name for operator in order.operators]
    panels = []
    for name, measure in MEASURES.items():
        found = [(label, one[name]) for label, one in zip(labels, courses, strict=True) if name in one]
        if measure.figure == figure and found:
            curves = [Curve(label, c.steps, c.middle, c.low, c.high) for label, c in found]
            panels.append(CurvePanel(measure.title, measure.meaning, measure.unit, curves))
    return panels


def _order(
    runs: tuple[Path | str, ...], layer: str | None, kind: str, responses: str, until: str, call: int
) -> LearningOrder:
    from fadeviz import open_run
    from fadeviz.analysis.order import learning_order

    return learning_order([open_run(path) for path in runs], layer, kind, which=responses, until=until, call=call)


__all__ = ["analyze", "plot"]
