"""Plots of an analysis: its curves and distance-time maps as panels, written to PNG, PDF or SVG files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Unpack

from .analysis.curves import Curves
from .analysis.grouping import describe_inside, describe_missing_masks, group_runs, group_title, recorded_by_command
from .analysis.logged import describe_gaps, explain_logged, logged_curves, shown_names
from .analysis.measures import MEASURES, PLOTS, describe_group
from .analysis.onsets import Onsets, OperatorOnset
from .analysis.result import Analysis, analyze
from .errors import FadevizError, brief, unknown_name
from .onset_panels import KYMOGRAPH_QUANTITY, caption_of_kymographs, kymograph_panels
from .render.kymographs import write_kymographs
from .render.labels import provenance
from .render.page import check_ending
from .render.panels import Curve, CurvePanel, KymographPanel
from .render.plots import write_curves
from .render.step_axis import choose_step_axis
from .render.style import FigureStyle, StyleOptions
from .storage.layers_of_runs import LayerOfRuns
from .storage.metrics import METRICS
from .storage.opening import RunLike, stored_runs
from .storage.stored_run import StoredRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """The content of one plot, before it is drawn.

    Attributes:
        what: a name in ``PLOTS``.
        caption: sentences below the panels, the most needed first; as many are drawn as fit into two lines.
        provenance: the ids of the runs and all of the caption, for the file's metadata.
        curves: panels of curves; empty for a plot of distance-time maps.
        kymographs: distance-time maps; empty for a plot of curves.
        quantity: label of the colour bar of distance-time maps.
        left_out: titles of the operators that lack what the plot shows.
        notes: what else is to be known of the curves, a sentence each, without a full stop.
    """

    what: str
    caption: tuple[str, ...]
    provenance: str
    curves: tuple[CurvePanel, ...] = ()
    kymographs: tuple[KymographPanel, ...] = ()
    quantity: str = ""
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class WrittenPlots(NamedTuple):
    """The result of :func:`plot`.

    Attributes:
        files: the files, in the order of the plots.
        notes: caveats about the runs, and operators that a plot leaves out; a sentence each, without a full stop.
        figures: the figures of matplotlib, to be changed and saved again: ``figures[0].axes[0].set_ylim(0, 1)``.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    figures: tuple[Figure, ...]


def plot(
    runs: RunLike | Sequence[RunLike] | Analysis,
    output: str | os.PathLike[str],
    *,
    what: str | Sequence[str] = "kymograph",
    layer: LayerOfRuns | None = None,
    kind: str = "feature",
    call: int = 0,
    step_axis: str = "auto",
    labels: Sequence[str] = (),
    title: str | None = None,
    caption: bool = True,
    **style: Unpack[StyleOptions],
) -> WrittenPlots:
    """Plot the measures of runs: distance-time maps, or curves over training with 95 % intervals.

    Args:
        runs: one or more runs that observed the same images (open runs, folders or addresses); or an analysis of them,
            whose own layer, kind and call are then used.
        output: file to write; its extension sets the format: .png, .pdf or .svg. For several plots, the name contains
            ``{what}``: ``figures/{what}.png``.
        what: plot or plots to write; names in :data:`~fadeviz.analysis.measures.PLOTS`. For ``logged`` alone, no maps
            are read or measured.
        layer, kind, call: see :func:`~fadeviz.analysis.result.analyze`.
        step_axis: how training steps are drawn, a name in :data:`~fadeviz.render.step_axis.STEP_AXES`: ``"auto"`` is
            linear where the snapshots are roughly evenly spaced, otherwise log(1 + step).
        labels: what each operator is called in the plots, in the order of the runs; empty for their own names.
        title: a title above each plot; None for none.
        caption: whether sentences below each plot say what it shows.
        style: the fields of :class:`~fadeviz.render.style.FigureStyle`: width, font, font_size, dpi, transparent. By
            default a plot of one panel is as wide as a column of a paper, and one of several at most as a page.

    Returns:
        The files that were written, notes on them, and the figures.

    Raises:
        FadevizError: if a plot or step axis is unknown, the file extension is not supported, there are several plots
            but only one file, the labels are not one for each operator, a value of ``style`` is out of range, or no run
            has what a plot shows; see also :func:`~fadeviz.analysis.result.analyze`.

    Example::

        fadeviz.plot(["outputs/fade", "outputs/carafe"], "figures/{what}.svg", what=["kymograph", "responses"])
    """
    names = list(dict.fromkeys([what] if isinstance(what, str) else what))
    for name in names:
        if name not in PLOTS:
            raise unknown_name("plot", name, PLOTS)
    target = os.fspath(output)
    if len(names) > 1 and "{what}" not in target:
        raise FadevizError(f"several plots, but one file {target}. Put {{what}} into its name: plot_{{what}}.png")
    check_ending(target, "plot")  # before minutes of measuring
    choose_step_axis([], step_axis)
    look = FigureStyle(**style)
    files, notes, figures = [], [], []
    plots: list[Plot] = []
    caveats: tuple[str, ...] = ()
    if names == ["logged"] and not isinstance(runs, Analysis):
        plots = [_logged_plot(_relabelled(_groups(stored_runs(runs)), labels))]
    else:
        analysis = runs if isinstance(runs, Analysis) else analyze(runs, layer=layer, kind=kind, call=call)
        plots, caveats = [make_plot(analysis, name, labels=labels) for name in names], analysis.notes
    for name, made in zip(names, plots, strict=True):
        files.append(Path(target.replace("{what}", name)))
        shown = made if caption else replace(made, caption=())
        figures.append(write_plot(shown, files[-1], step_axis=step_axis, title=title or "", style=look))
        if made.left_out:
            notes.append(f"left out {', '.join(made.left_out)}: not all runs have what the plot {name!r} shows")
        notes += made.notes
    return WrittenPlots(tuple(files), (*notes, *caveats), tuple(figures))


def make_plot(analysis: Analysis, what: str, *, labels: Sequence[str] = ()) -> Plot:
    """The panels and the caption of one plot.

    Args:
        analysis: the measured analysis.
        what: a name in ``PLOTS``.
        labels: what each operator is called, in their order; empty for their own names.

    Raises:
        FadevizError: if the plot is unknown, the labels are not one for each operator, or no run has what it shows.
    """
    if what not in PLOTS:
        raise unknown_name("plot", what, PLOTS)
    onsets = analysis.onsets
    if labels:
        titles = one_for_each(labels, [operator.title for operator in onsets.operators])
        renamed = [replace(operator, title=t) for operator, t in zip(onsets.operators, titles, strict=True)]
        # The curves are those of the operators' names, and are not measured anew.
        relabelled = Analysis(replace(onsets, operators=tuple(renamed)))
        relabelled.__dict__["curves"] = analysis.curves
        analysis, onsets = relabelled, relabelled.onsets
    if what == "logged":
        return _logged_plot({operator.name: (operator.title, operator.runs) for operator in onsets.operators})
    subject = [_subject(analysis, what)]
    inside = describe_inside(onsets.operators[0].runs[0])
    if inside and what in _OF_THE_INSIDE:
        subject.append(f"{inside[0].upper()}{inside[1:]}.")
    runs = [run for operator in onsets.operators for run in operator.runs]
    if what == "kymograph":
        panels = kymograph_panels(onsets)
        if not panels:
            raise FadevizError(f"there is no distance-time map. {_lacking_objects(onsets, 2)}")
        caption = (*caption_of_kymographs(onsets), *subject, "Depth is in inscribed radii of the object.")
        origin = provenance(runs, caption)
        shown = {panel.title for panel in panels}
        absent = tuple(operator.title for operator in onsets.operators if operator.title not in shown)
        return Plot(what, caption, origin, kymographs=panels, quantity=KYMOGRAPH_QUANTITY, left_out=absent)
    curves = tuple((_by_operator if what in _BY_OPERATOR else _by_measure)(analysis, what))
    if not curves:
        raise FadevizError(f"none of the runs has what the plot {what!r} shows. {_remedy(analysis, what)}")
    meaning, *details = _explanation(analysis, what)
    caption = (meaning, *subject, *details)
    left_out = [
        operator.title
        for operator, own in zip(onsets.operators, analysis.curves.values(), strict=True)
        if not any(MEASURES[name].group == what for name in own)
    ]
    return Plot(what, caption, provenance(runs, caption), curves, left_out=tuple(left_out))


def one_for_each(labels: Sequence[str], titles: Sequence[str]) -> Sequence[str]:
    """The labels, which must be one for each operator."""
    if isinstance(labels, str) or len(labels) != len(titles):
        given = [labels] if isinstance(labels, str) else list(labels)
        raise FadevizError(
            f"labels={given}: {len(given)} for {len(titles)} operators, {', '.join(map(brief, titles))}. "
            "Give one for each, in this order"
        )
    if len(set(labels)) < len(labels):
        raise FadevizError(f"labels={list(labels)}: some are the same. Give each operator a label of its own")
    return labels


def write_plot(
    made: Plot,
    output: str | os.PathLike[str],
    *,
    step_axis: str = "auto",
    title: str = "",
    style: FigureStyle | None = None,
) -> Figure:
    """Draw a plot and write it to a file; the ending decides: .png, .pdf or .svg.

    Returns:
        The figure.

    Raises:
        FadevizError: if the file ending is not supported, the step axis is unknown, or the file cannot be written.
    """
    words = {"step_axis": step_axis, "title": title, "provenance": made.provenance}
    if made.curves:
        return write_curves(made.curves, output, caption=made.caption, style=style, **words)
    return write_kymographs(made.kymographs, output, quantity=made.quantity, caption=made.caption, style=style, **words)


# --- captions ---------------------------------------------------------------------------------------------------------

_OF_THE_INSIDE = ("kymograph", "responses", "auc", "gate", "classes")
_MANY = 4
"""Number of images above which a caption counts them instead of naming them."""


def _subject(analysis: Analysis, what: str) -> str:
    """The measured maps, and the number of images and runs."""
    onsets = analysis.onsets
    runs = sum(len(operator.runs) for operator in onsets.operators)
    count = f"{runs} run{'s' * (runs > 1)}"
    if what == "quality":
        return f"The whole network on its test images, {count}."
    images = f"{len(onsets.images)} image{'s' * (len(onsets.images) > 1)}"
    if len(onsets.images) <= _MANY:
        images += f" ({', '.join(map(brief, onsets.images))})"
    return f"{onsets.layer_title}, {onsets.kind}; {images}, {count}."


def _explanation(analysis: Analysis, what: str) -> list[str]:
    """The meaning of the curves and bands, and what else is to be known of them."""
    if what == "quality":
        note = describe_group(what, {name for curves in analysis.curves.values() for name in curves})[1]
        return list(filter(None, ["Lines: median over runs; bands: its 95 % interval over seeds.", note]))
    lines = "Lines: median over runs and images; bands: its 95 % interval over seeds and images."
    if what == "responses":
        return [
            "Lines: own mask less other images' masks, mean over runs; bands: its 95 % interval. Grey: chance level. "
            "Dotted: arrivals.",
        ]
    if what in ("learning", "classes"):
        return [lines, "Kernels, guide and decoder feature: of the first images only, those recorded in full."]
    return [lines]


def _lacking_objects(onsets: Onsets, needed: int) -> str:
    """What is missing where fewer images than needed have an object with an interior, and what to do."""
    images = "no image has" if needed == 1 else "fewer than two images have"
    missing = describe_missing_masks(onsets.operators[0].runs[0])
    return f"{onsets.layer_title}: " + (
        missing
        or f"{images} an object with an interior at this resolution. Choose a finer layer, or observe other images"
    )


def _remedy(analysis: Analysis, what: str) -> str:
    """Advice if no run has what a plot shows; it depends on whether a command or a user's own loop recorded it."""
    onsets = analysis.onsets
    run = onsets.operators[0].runs[0]
    by_command = recorded_by_command(run)
    if what == "quality" and by_command:
        return (
            f"{run.address}/metrics.jsonl has no test up to step {onsets.steps[-1]}: "
            f"continue with fadeviz record --resume --out {run.address}"
        )
    if what == "quality":
        return "Log test results in your training loop: recorder.log(step, miou=...), or sad=... for mattes"
    kinds = {"gate": "gate,kernel_entropy", "classes": "channels"}.get(what)
    if what == "responses":
        return _lacking_objects(onsets, 2) if len(onsets.kept) < 2 else "The masks of all images are the same"
    if what == "auc" and not onsets.kept:
        return _lacking_objects(onsets, 1)
    if what == "continuity" and len(onsets.steps) == 1:
        return "It compares snapshots, and there is one"
    if kinds is None:
        return f"The maps are constant or not finite at every step{', or too small' * (what == 'spectrum')}"
    how = f"fadeviz record --kinds {kinds} ..." if by_command else f'Recorder(..., kinds="{kinds}")'
    return f"Record it, with an operator that has it: {how}"


# --- what was logged --------------------------------------------------------------------------------------------------

_Groups = Mapping[str, tuple[str, Sequence[StoredRun]]]
"""The title and the runs of each operator, by its name."""


def _groups(runs: Sequence[StoredRun]) -> _Groups:
    if not runs:
        raise FadevizError("there is nothing to plot. Give at least one run")
    return {
        name: (group_title(name, members), members) for name, members in group_runs(dict.fromkeys(runs, ""))[0].items()
    }


def _relabelled(groups: _Groups, labels: Sequence[str]) -> _Groups:
    if not labels:
        return groups
    titles = one_for_each(labels, [title for title, _ in groups.values()])
    return {name: (title, runs) for title, (name, (_, runs)) in zip(titles, groups.items(), strict=True)}


def _logged_plot(groups: _Groups) -> Plot:
    """A panel for each name, a curve for each operator."""
    curves = [logged_curves(members) for _, members in groups.values()]
    names, more = shown_names(curves)
    titles = [title for title, _ in groups.values()]
    labels = titles if len(set(titles)) == len(titles) else list(groups)
    panels, notes = [], []
    for name in names:
        drawn = [(*both, own[name]) for both, own in zip(zip(labels, groups, strict=True), curves, strict=True)
                 if name in own]  # fmt: skip
        notes += [note for label, _, curve in drawn if (note := describe_gaps(f"{name} of {label}", curve))]
        lines = [
            Curve(label, curve.steps, curve.middle, curve.low, curve.high, operator=operator)
            for label, operator, curve in drawn
            if not all(map(math.isnan, curve.middle))
        ]
        if lines:
            title, unit = (METRICS[name].title, METRICS[name].unit) if name in METRICS else (name, "")
            panels.append(CurvePanel(title, "", unit, lines))
    runs = [run for _, members in groups.values() for run in members]
    if not panels:
        raise FadevizError(
            f"none of the runs logged a finite number: {runs[0].address}/metrics.jsonl has none. Log some in your "
            "training loop: recorder.log(step, loss=...)"
        )
    if more:
        notes.append(f"{len(names)} of {len(names) + len(more)} logged names are drawn, without {', '.join(more[:6])}"
                     f"{' and others' * (len(more) > 6)}")  # fmt: skip
    left_out = tuple(title for title, own in zip(titles, curves, strict=True) if not own)
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    caption = (explain_logged(curves), f"Numbers that the training logged, {count}.")
    return Plot("logged", caption, provenance(runs, caption), tuple(panels), left_out=left_out, notes=tuple(notes))


# --- panels -----------------------------------------------------------------------------------------------------------

_BY_OPERATOR = ("responses", "learning", "gate", "classes")
"""Groups of measures with one panel per operator; the others have one panel per measure."""

_UNITS = {
    "responses": "response (1: perfect)",
    "learning": "similarity to the last snapshot",
    "gate": "mean",
    "classes": "cosine similarity",
}
_SPANS = {"responses": (-0.2, 1.02), "learning": (-0.25, 1.02), "gate": (0.0, 1.02)}

_SAME_COLOUR = (
    ("_readout", ""),
    ("_cka", "_correlation"),
    ("entropy_", "gate_"),
    ("inter_", "intra_"),
)
"""Measures that take the colour of another one: part of the name, and what stands there in the other's."""


def _subtitle(operator: OperatorOnset) -> str:
    return f"{len(operator.seeds)} seed{'s' if len(operator.seeds) > 1 else ''}; {operator.map.verdict}"


def _by_operator(analysis: Analysis, what: str) -> list[CurvePanel]:
    """A panel for each operator, a curve for each measure."""
    panels = []
    for operator, measured in zip(analysis.onsets.operators, analysis.curves.values(), strict=True):
        names = [name for name in measured if MEASURES[name].group == what]
        marks = {}
        if what == "responses":
            marks = _marks(operator)
        curves = [_curve(measured, name, what, marks) for name in names]
        if curves:
            levels = [measured[name].chance for name in names if math.isfinite(measured[name].chance)]
            chance = max(levels, default=None)
            unit, span = _UNITS[what], _SPANS.get(what)
            panels.append(CurvePanel(operator.title, _subtitle(operator), unit, curves, span, chance, scale=what))
    return panels


def _marks(operator: OperatorOnset) -> dict[str, float]:
    """The arrivals of the responses that are shown."""
    marks = {}
    for onset, suffix in ((operator.map, ""), (operator.readout, "_readout")):
        if onset is not None:
            marks[f"outline{suffix}"] = onset.outline.arrival_steps[0]
            marks[f"interior{suffix}"] = onset.interior.arrival_steps[0]
    return marks


def _curve(measured: Curves, name: str, what: str, marks: Mapping[str, float]) -> Curve:
    curve, like = measured[name], None
    for part, other in _SAME_COLOUR:
        if part in name:
            like = _label(name.replace(part, other), what)
    return Curve(
        _label(name, what),
        curve.steps,
        curve.middle,
        curve.low,
        curve.high,
        mark=marks.get(name, math.nan),
        like=like,
    )


def _label(name: str, what: str) -> str:
    measure = MEASURES[name]
    return f"{measure.title} ({measure.unit})" if what == "learning" else measure.title


def _by_measure(analysis: Analysis, what: str) -> list[CurvePanel]:
    """A panel for each measure, a curve for each operator."""
    onsets = analysis.onsets
    titles = [operator.title for operator in onsets.operators]
    labels = titles if len(set(titles)) == len(titles) else [operator.name for operator in onsets.operators]
    panels = []
    for name, measure in MEASURES.items():
        if measure.group != what:
            continue
        curves = [
            Curve(label, own[name].steps, own[name].middle, own[name].low, own[name].high, operator=operator)
            for label, (operator, own) in zip(labels, analysis.curves.items(), strict=True)
            if name in own
        ]
        if curves:
            panels.append(CurvePanel(measure.title, measure.meaning, measure.unit, curves))
    return panels


__all__ = ["PLOTS", "Plot", "WrittenPlots", "make_plot", "one_for_each", "plot", "write_plot"]
