"""The figures that a paper needs, chosen by what is in the runs, in one folder with a contact sheet and a README."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack

from .analysis.choice import Choice, choose_frames
from .analysis.grouping import describe_missing_masks, group_runs, group_title
from .analysis.latex import latex_table
from .analysis.result import Analysis, analyze
from .errors import FadevizError, brief
from .plotting import one_for_each, plot
from .render.contact_sheet import SheetEntry, write_contact_sheet
from .render.page import ENDINGS
from .render.style import FigureStyle, StyleOptions
from .run import animate, grid
from .storage.files import write_whole
from .storage.layers_of_runs import LayerOfRuns, choose_layers
from .storage.metrics import METRICS
from .storage.opening import RunLike, stored_runs
from .storage.several_runs import check_distinct, common_steps
from .storage.snapshots import CHANNEL_KINDS, KINDS
from .storage.stored_run import StoredRun

_COMPARED = 3
"""Number of images in the comparison of predictions."""


class WrittenFigures(NamedTuple):
    """The result of :func:`figures`.

    Attributes:
        files: all files that were written, with the contact sheet and the README last.
        image: index of the image that the maps show; None without maps.
        steps: the steps that the grids show.
        notes: what was left out, and caveats about the figures; a sentence each, without a full stop.
    """

    files: tuple[Path, ...]
    image: int | None
    steps: tuple[int, ...]
    notes: tuple[str, ...]


def figures(
    runs: RunLike | Sequence[RunLike],
    output: str | os.PathLike[str],
    *,
    layer: LayerOfRuns | None = None,
    call: int = 0,
    image: int | None = None,
    steps: Sequence[int] | None = None,
    count: int = 8,
    formats: Sequence[str] = ("pdf", "png"),
    labels: Sequence[str] = (),
    caption: bool = True,
    device: str = "auto",
    **style: Unpack[StyleOptions],
) -> WrittenFigures:
    """Draw the handful of figures that a paper needs into one folder.

    ``features`` and ``gradients`` (grids of maps), ``kymograph`` (the distance-time maps), ``responses`` (outline and
    interior over training), ``metrics`` (tests or, without any, what was logged), ``predictions`` (side by side),
    ``animation`` (a GIF), ``verdicts`` (a table as CSV and LaTeX), a contact sheet of all, and a README with the
    command that redraws each. What cannot be drawn of these runs is left out, with a note.

    Grids, animation and predictions show the first run of each operator, the one with the lowest seed; measures and
    curves are of all runs. The image is the one in which the operators' maps differ most, and the steps those between
    which they change most: see :func:`~fadeviz.analysis.choice.choose_frames`. The same runs give the same files.

    Args:
        runs: one or more runs: recorded, imported or of a :class:`Recorder`; open, or folders or addresses.
        output: the folder to write into; files of the same names are replaced.
        layer: layer to show and to measure, or one for each run; None takes the network's intermediate one.
        call: which call of a layer that runs several times in a forward pass.
        image: index of the observed image to show; None chooses one.
        steps: recorded steps of the grids; None chooses ``count`` steps.
        count: number of steps to choose, with the first and the last.
        formats: of the figures: pdf, png and svg.
        labels: what each operator is called, in the order of the runs; or one label for each run, the same for all
            runs of an operator. Empty for the operators' own. ``verdicts.csv`` keeps these.
        caption: whether sentences below the figures say what they show.
        device: where predictions are computed: ``auto``, ``cpu`` or ``cuda``.
        style: the fields of :class:`~fadeviz.render.style.FigureStyle`: width, font, font_size, dpi, transparent.

    Raises:
        FadevizError: if a format or an option is unknown, the folder holds a run, a run cannot be opened or is given
            twice, two runs of an operator have the same seed, the labels are not one for each, or nothing can be drawn.

    Example::

        fadeviz.figures(fadeviz.list_runs("outputs/study"), "figures", width="column", formats=["pdf"])
    """
    opened, folder = stored_runs(runs), Path(output)
    if not opened:
        raise FadevizError("there is nothing to draw. Give at least one run")
    check_distinct(opened)
    FigureStyle(**style)
    wanted = list(dict.fromkeys([formats] if isinstance(formats, str) else formats))
    known = [ending[1:] for ending in ENDINGS]
    if not wanted or not set(wanted) <= set(known):
        raise FadevizError(f"formats={wanted}: one or more of {', '.join(known)} are needed")
    if (folder / "run.json").exists():
        raise FadevizError(f"{folder} holds a run. Choose another folder for the figures")
    with tempfile.TemporaryDirectory(prefix="fadeviz-") as previews:
        drawing = _Drawing(opened, folder, layer, call, wanted, labels, caption, style, device, Path(previews))
        drawing.choose(image, steps, count)
        drawing.maps("features", "feature", "Maps of the layer at chosen steps, one block for each operator.")
        drawing.maps("gradients", "gradient", "The loss's gradient with respect to the same maps.")
        drawing.measures()
        drawing.predictions()
        drawing.animation()
        return drawing.finish()


@dataclass(frozen=True)
class _Drawn:
    """One thing that was written: its name, files, what it shows, the command, and a raster image for the sheet."""

    name: str
    files: tuple[Path, ...]
    text: str
    command: str
    preview: Path | None = None


class _Drawing:
    """Draws one figure after the other, and remembers what was drawn and what was left out."""

    def __init__(
        self,
        runs: Sequence[StoredRun],
        folder: Path,
        layer: LayerOfRuns | None,
        call: int,
        formats: Sequence[str],
        labels: Sequence[str],
        caption: bool,
        style: StyleOptions,
        device: str,
        previews: Path,
    ) -> None:
        self.runs, self.folder, self.layer, self.call = runs, folder, layer, call
        self.formats, self.caption, self.style = formats, caption, style
        self.device, self.previews = device, previews
        self.kind, self.layers, reason = self._layers()
        self.groups = group_runs(self.layers or dict.fromkeys(runs, ""))[0]
        self.first = [members[0] for members in self.groups.values()]
        self.labels = self._labels(labels)
        self.choice: Choice | None = None
        self.drawn: list[_Drawn] = []
        self.left_out: dict[str, str] = {} if self.layers else {"features": reason}
        self.notes: list[str] = []

    def _layers(self) -> tuple[str, dict[StoredRun, str], str]:
        """The first kind with one map per image that all runs have, its layers, and why there is none."""
        reasons = []
        for kind in (kind for kind in KINDS if kind not in CHANNEL_KINDS):
            try:
                return kind, choose_layers(self.runs, self.layer, kind, self.call), ""
            except FadevizError as error:
                reasons.append(str(error))
        return "", {}, reasons[0]

    def _labels(self, labels: Sequence[str]) -> Sequence[str]:
        """A label for each operator."""
        titles = [group_title(name, members) for name, members in self.groups.items()]
        if not labels or isinstance(labels, str) or len(labels) != len(self.runs):
            return one_for_each(labels, titles) if labels else ()
        own = dict(zip(self.runs, labels, strict=True))
        several = [list(dict.fromkeys(own[run] for run in members)) for members in self.groups.values()]
        for title, different in zip(titles, several, strict=True):
            if len(different) > 1:
                raise FadevizError(
                    f"labels={list(labels)}: {', '.join(map(brief, different))} are for runs of one operator, "
                    f"{brief(title)}. Give its runs the same label"
                )
        return one_for_each([different[0] for different in several], titles)

    # --- what to show -------------------------------------------------------------------------------------------------

    def choose(self, image: int | None, steps: Sequence[int] | None, count: int) -> None:
        """Choose the image and the steps."""
        if not self.layers:
            return
        chosen = {run: self.layers[run] for run in self.first}
        try:
            self.choice = choose_frames(chosen, self.kind, count=count, image=image, call=self.call)
        except FadevizError as error:
            if image is not None or count < 2:  # the user's own mistake
                raise
            self.left_out["features"] = str(error)
            return
        if steps is not None:
            self.choice = Choice(self.choice.images, common_steps(self.first, steps))

    def _layer_options(self, runs: Sequence[StoredRun], kind: str) -> tuple[LayerOfRuns | None, list[str]]:
        """The layer of some of the runs, for a function and for the command line."""
        if self.layer is None and runs[0].default_layer(kind) == self.layers[runs[0]]:
            return None, []
        layers = {run: self.layers[run] for run in runs}
        if len(set(layers.values())) == 1:
            name = next(iter(layers.values()))
            return name, ["--layer", name]
        options = [word for run, name in layers.items() for word in ("--layer", f"{run.address}={name}")]
        return {run.address: name for run, name in layers.items()}, options

    def _call_options(self) -> list[str]:
        return ["--call", str(self.call)] if self.call else []

    def _style_options(self) -> list[str]:
        """Labels, caption and style for the command line."""
        words = [word for label in self.labels for word in ("--label", label)]
        words += [] if self.caption else ["--no-caption"]
        for name, value in self.style.items():
            flag = f"--{name.replace('_', '-')}"
            words += [flag] if value is True else [] if value in (None, False) else [flag, str(value)]
        return words

    def _try(self, name: str, draw: Callable[[], _Drawn]) -> None:
        """Draw one figure, or note why it cannot be."""
        try:
            self.drawn.append(draw())
        except FadevizError as error:
            self.left_out[name] = str(error)

    def _write(self, name: str, write: Callable[[Path], Sequence[str]]) -> tuple[tuple[Path, ...], Path]:
        """Write a figure in all formats; and as PNG for the contact sheet, if that is none of them."""
        files = tuple(self.folder / f"{name}.{ending}" for ending in self.formats)
        for file in files:
            notes = write(file)
        self.notes += [f"{name}: {note}" for note in notes]
        preview = next((file for file in files if file.suffix == ".png"), None)
        if preview is None:
            preview = self.previews / f"{name}.png"
            write(preview)
        return files, preview

    # --- figures ------------------------------------------------------------------------------------------------------

    def maps(self, name: str, kind: str, text: str) -> None:
        """A grid of maps; of another kind than features where no features were recorded."""
        if self.choice is None:
            return
        kind = self.kind if name == "features" else kind
        self._try(name, partial(self._grid, name, kind, text, self.choice))

    def _grid(self, name: str, kind: str, text: str, choice: Choice) -> _Drawn:
        layer, words = self._layer_options(self.first, kind)
        image, steps = choice.images[0], choice.steps

        def write(file: Path) -> Sequence[str]:
            return grid(
                self.first, file, layer=layer, kind=kind, image=image, steps=steps, call=self.call,
                labels=self.labels, caption=self.caption, **self.style,
            )  # fmt: skip

        files, preview = self._write(name, write)
        shown = ["--kind", kind, "--image", str(image), "--steps", ",".join(map(str, steps))]
        command = _command(
            "grid", self.first, [*words, *self._call_options(), *shown, *self._style_options()], files[0]
        )
        return _Drawn(name, files, text, command, preview)

    def animation(self) -> None:
        """The whole training as a GIF."""
        if self.choice is not None:
            self._try("animation", partial(self._animate, self.choice))

    def _animate(self, choice: Choice) -> _Drawn:
        layer, words = self._layer_options(self.first, self.kind)
        file = self.folder / "animation.gif"
        notes = animate(
            self.first, file, layer=layer, kind=self.kind, image=choice.images[0], call=self.call, labels=self.labels
        )
        self.notes += [f"animation: {note}" for note in notes]
        shown = ["--kind", self.kind, "--image", str(choice.images[0])]
        shown += [word for label in self.labels for word in ("--label", label)]
        command = _command("animate", self.first, [*words, *self._call_options(), *shown], file)
        text = "The maps of all recorded steps; the contact sheet shows the last one."
        return _Drawn("animation", (file,), text, command, file)

    def measures(self) -> None:
        """What is measured: distance-time maps, responses, the verdicts as a table; and curves of metrics."""
        analysis = self._analyze()
        if analysis is not None:
            for name, text in (
                ("kymograph", "Where on the object the maps are higher than for other images' objects, over training."),
                ("responses", "How much more outline and interior are shown for the own mask than for others."),
            ):
                self._try(name, partial(self._plot, name, name, text, analysis))
            self._try("verdicts", partial(self._table, analysis))
        if analysis is not None and _tested_twice(analysis):
            text = "The metrics of the tests over training."
            self._try("metrics", partial(self._plot, "metrics", "quality", text, analysis))
        else:
            text = "The numbers that the training logged."
            self._try("metrics", partial(self._plot, "metrics", "logged", text, None))

    def _analyze(self) -> Analysis | None:
        reason = "" if self.kind == "feature" else "no features were recorded"
        if not reason:
            try:
                analysis = analyze(self.runs, layer=self._layer_options(self.runs, "feature")[0], call=self.call)
            except FadevizError as error:
                reason = str(error)
            else:
                if analysis.onsets.kept:
                    self.notes += analysis.notes
                    return analysis
                reason = describe_missing_masks(self.runs[0]) or (
                    f"{analysis.onsets.layer_title}: no image has an object with an interior at this resolution"
                )
        self.left_out |= dict.fromkeys(("kymograph", "responses", "verdicts"), reason)
        return None

    def _plot(self, name: str, what: str, text: str, analysis: Analysis | None) -> _Drawn:
        """A plot of an analysis; or, without one, of what was logged."""

        def write(file: Path) -> Sequence[str]:
            source = self.runs if analysis is None else analysis
            written = plot(source, file, what=what, labels=self.labels, caption=self.caption, **self.style)
            return [note for note in written.notes if analysis is None or note not in analysis.notes]

        files, preview = self._write(name, write)
        options = ["--what", what]
        if analysis is not None:
            options += [*self._layer_options(self.runs, "feature")[1], *self._call_options()]
        options += self._style_options()
        return _Drawn(name, files, text, _command("plot", self.runs, options, files[0]), preview)

    def _table(self, analysis: Analysis) -> _Drawn:
        files = self.folder / "verdicts.csv", self.folder / "verdicts.tex"
        titles = self.labels or [row["title"] for row in analysis.table]
        table = latex_table([row | {"title": title} for row, title in zip(analysis.table, titles, strict=True)])
        for file, content in zip(files, (analysis.to_csv(), table), strict=True):
            write_whole(file, content.encode())
        words = [*self._layer_options(self.runs, "feature")[1], *self._call_options()]
        command = _command("analyze", self.runs, words, files[0], option="--csv")
        text = (
            "What each operator shows first, outline or interior: all numbers (CSV), and a table for LaTeX (booktabs)."
        )
        return _Drawn("verdicts", files, text, command)

    def predictions(self) -> None:
        """What the networks predict, or what was stored of that."""
        self._try("predictions", self._compare)

    def _compare(self) -> _Drawn:
        from .prediction.compare import compare  # brings torch

        count = min(len(run.observation[0]) for run in self.first)
        order = self.choice.images if self.choice is not None else range(count)
        images = sorted([index for index in order if index < count][:_COMPARED])

        def write(file: Path) -> Sequence[str]:
            compare(
                self.first,
                file,
                images=images,
                device=self.device,
                labels=self.labels,
                caption=self.caption,
                **self.style,
            )
            return []

        files, preview = self._write("predictions", write)
        shown = ["--images", ",".join(map(str, images))]
        shown += self._style_options()
        shown += ["--device", self.device] if self.device != "auto" else []
        text = "What each network predicts for the images in which the maps differ most, enlarged where they disagree."
        return _Drawn("predictions", files, text, _command("compare", self.first, shown, files[0]), preview)

    # --- the folder ---------------------------------------------------------------------------------------------------

    def finish(self) -> WrittenFigures:
        """Write the contact sheet and the README."""
        if not self.drawn:
            raise FadevizError(f"nothing can be drawn: {'; '.join(self._left_out())}")
        sheet, readme = self.folder / "contact_sheet.png", self.folder / "README.md"
        shown = [SheetEntry(one.name, one.text, one.preview) for one in self.drawn if one.preview is not None]
        if shown:
            write_contact_sheet(shown, sheet)
        write_whole(readme, self._readme().encode())
        notes = [f"left out {line}" for line in self._left_out()]
        files = [file for one in self.drawn for file in one.files] + [sheet] * bool(shown) + [readme]
        steps, image = ((), None) if self.choice is None else (self.choice.steps, self.choice.images[0])
        return WrittenFigures(tuple(files), image, steps, (*notes, *dict.fromkeys(self.notes)))

    def _left_out(self) -> list[str]:
        """What was left out, and why; what has the same reason in one line."""
        names: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            names.setdefault(reason, []).append(name)
        return [f"{', '.join(several)}: {reason}" for reason, several in names.items()]

    def _readme(self) -> str:
        runs = [
            f"- {title}: {', '.join(f'`{run.address}`' for run in members)}"
            for title, members in zip(self.labels or self.groups, self.groups.values(), strict=True)
        ]
        lines = [
            "# Figures",
            "",
            "Runs, the first of each operator in grids, animation and predictions:",
            "",
            *runs,
            "",
        ]
        if self.choice is not None:
            names = self.first[0].info.observation.names
            image = self.choice.images[0]
            name = f" (`{brief(names[image])}`)" if image < len(names) else ""
            several = "in which the operators' maps differ most" if len(self.first) > 1 else "whose maps change most"
            lines += [
                f"Image {image}{name} of {len(self.choice.images)}, by default the one {several}. Steps "
                f"{', '.join(map(str, self.choice.steps))}, by default those between which the maps change most.",
                "",
            ]
        for one in self.drawn:
            files = ", ".join(f"[{file.name}]({file.name})" for file in one.files)
            lines += [f"## {one.name}", "", f"{one.text} {files}", "", "```console", one.command, "```", ""]
        options: list[str] = []
        if self.choice is not None:
            steps = ",".join(map(str, self.choice.steps))
            options += [*self._layer_options(self.runs, self.kind)[1], *self._call_options()]
            options += ["--image", str(self.choice.images[0]), "--steps", steps]
        options += ["--format", ",".join(self.formats), *self._style_options()]
        options += ["--device", self.device] if self.device != "auto" else []
        lines += ["## All of them", "", "```console", _command("figures", self.runs, options, self.folder), "```", ""]
        if self.left_out:
            lines += ["## Left out", "", *(f"- {line}" for line in self._left_out()), ""]
        if self.notes:
            lines += ["## Notes", "", *(f"- {note}" for note in dict.fromkeys(self.notes)), ""]
        return "\n".join(lines)


def _command(name: str, runs: Sequence[StoredRun], options: Sequence[str], output: Path, option: str = "-o") -> str:
    """A line for the shell."""
    return shlex.join(["fadeviz", name, *(run.address for run in runs), *options, option, str(output)])


def _tested_twice(analysis: Analysis) -> bool:
    """Whether a metric was tested more than once: a single point is no curve."""
    curves = (curve for own in analysis.curves.values() for name, curve in own.items() if name in METRICS)
    return any(len(curve.steps) > 1 for curve in curves)


__all__ = ["WrittenFigures", "figures"]
