"""A stored run that displays itself in a notebook, and its grids and animations."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from .errors import FadevizError
from .storage.layers_of_runs import LayerOfRuns
from .storage.listing import RunEntry, describe, find_runs, format_entries
from .storage.opening import RunLike, stored_runs
from .storage.remote import is_address
from .storage.stored_run import StoredRun
from .storage.summary import RunSummary, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .analysis.result import Analysis
    from .render.drawing import Notes
    from .render.selection import AnimationOptions, GridOptions


class Run(StoredRun):
    """A stored run. As the last line of a notebook cell, it is displayed with a slider over its steps.

    Its settings, metrics, observed images and maps are those of
    :class:`~fadeviz.storage.stored_run.StoredRun`.

    Example::

        run = fadeviz.open_run("outputs/fade")
        run                                         # in a notebook: its maps, with a slider
        run.grid(kind="gradient", normalize="run")  # what `fadeviz grid` draws, inline
        run.animate(fadeviz.open_run("outputs/carafe"))
    """

    def grid(
        self,
        *others: StoredRun,
        colormap: str = "gray",
        columns: int | None = None,
        scale: int | None = None,
        **options: Unpack[GridOptions],
    ) -> Figure:
        """Draw the frames of this run, and of others to compare with, as ``fadeviz grid`` does.

        Args:
            others: runs that observed the same images.
            colormap: ``gray``, ``signed`` or the name of a matplotlib colour map.
            columns: frames per row; None chooses a figure about 1.7 times as wide as high.
            scale: width and height of a map value in pixels; None makes cells of about 120 pixels.
            options: the fields of :class:`~fadeviz.render.selection.MapSelection` (layer, kind, image, channel,
                channels, normalize, percentiles, steps, call), of
                :class:`~fadeviz.render.selection.FigureContent` (labels, title, caption, images, overlay, alpha,
                difference, crop) and of
                :class:`~fadeviz.render.style.FigureStyle` (width, font, font_size, dpi, transparent).

        Returns:
            A figure that a notebook displays. pyplot does not manage it, so there is nothing to close.

        Raises:
            FadevizError: under the same conditions as :func:`~fadeviz.render.grid.write_grid`.
        """
        from .render.grid import draw_grid
        from .render.selection import split_options

        selection, content, style = split_options(options)
        figure = draw_grid(
            [self, *others], selection, colormap=colormap, columns=columns, scale=scale, content=content, style=style
        )
        # Where no notebook backend of matplotlib was loaded, nothing else shows a figure.
        figure._repr_png_ = lambda: _png(figure)  # type: ignore[attr-defined]
        return figure

    def animate(
        self,
        *others: StoredRun,
        duration_ms: int = 130,
        colormap: str = "gray",
        scale: int | None = None,
        **options: Unpack[AnimationOptions],
    ) -> Animation:
        """Draw the training of this run, and of others beside it, as ``fadeviz animate`` does.

        Args:
            others: runs that observed the same images.
            duration_ms: duration of a frame in milliseconds: a multiple of 10, at least 20.
            colormap: ``gray``, ``signed`` or the name of a matplotlib colour map.
            scale: width and height of a map value in pixels; None makes tiles of about 256 pixels.
            options: as for :meth:`grid`, without width, dpi and transparent, which are of figures on paper.

        Returns:
            An animated PNG that a notebook displays; :func:`animate` writes other formats.

        Raises:
            FadevizError: under the same conditions as :func:`~fadeviz.render.animation.write_animation`.
        """
        with tempfile.TemporaryDirectory(prefix="fadeviz-") as folder:
            file = Path(folder) / "animation.png"
            notes = animate([self, *others], file, duration_ms=duration_ms, colormap=colormap, scale=scale, **options)
            return Animation(file.read_bytes(), notes)

    def analyze(
        self,
        *others: StoredRun,
        layer: LayerOfRuns | None = None,
        kind: str = "feature",
        call: int = 0,
    ) -> Analysis:
        """Measure what this run, and others to compare with, show first: outline or interior.

        Args:
            others: runs that observed the same images; those of one operator are measured together.
            layer, kind, call: see :func:`fadeviz.analyze`.

        Returns:
            The analysis: print it, or take its rows, verdicts and curves.

        Raises:
            FadevizError: under the same conditions as :func:`fadeviz.analyze`.
        """
        from .analysis.result import analyze

        runs = [self, *others]
        return analyze(runs, layer=layer, kind=kind, call=call)

    def summary(self) -> RunSummary:
        """The settings, snapshots, result and damage, as ``fadeviz info`` prints them: ``print(run.summary())``."""
        return summarize(self)

    def _repr_html_(self) -> str:
        from .page.notebook import render_html

        try:
            return render_html(self)
        except FadevizError as error:  # a run that cannot be drawn is still described
            return f"<pre>Run({escape(repr(self.address))})\n{escape(str(error))}</pre>"


@dataclass(frozen=True)
class Animation:
    """An animation in memory, which a notebook displays.

    Attributes:
        data: the bytes of an animated PNG, which loops.
        notes: notes on what was omitted or marked.
    """

    data: bytes
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Animation({len(self.data):,} bytes)"

    def _repr_png_(self) -> bytes:
        return self.data


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run for reading: a folder, or an address that fsspec supports; see :class:`Run`.

    Args:
        path: the run's folder; or ``s3://bucket/run``, ``https://host/run``, ``memory://run`` ...

    Returns:
        The run, which displays itself in a notebook. At an address, each file is fetched when it is first needed.

    Raises:
        FadevizError: if there is no such folder, its run.json is missing, damaged or of a newer format, or the address
            cannot be read.

    Example::

        run = fadeviz.open_run("outputs/fade")
        maps = run.maps(kind="feature", image=0)   # (steps, h, w) float32, read where it is indexed
    """
    return Run(path)


class RunList(list[Run]):
    """Runs as a list; printing it gives a table of them, as ``fadeviz ls`` does."""

    def __init__(self, runs: Iterable[Run] = (), folder: str | os.PathLike[str] = ".") -> None:
        """The runs that are listed, and the folder to which the table relates their paths."""
        super().__init__(runs)
        self.folder = Path(folder)

    def entries(self) -> list[RunEntry]:
        """Each run with its status, progress and last metrics, as they are now; nothing of the maps is read."""
        return [describe(run, os.path.relpath(run.path, self.folder)) for run in self]

    def to_dicts(self) -> list[dict[str, Any]]:
        """The entries as JSON-serialisable dictionaries."""
        return [entry.to_dict() for entry in self.entries()]

    def __str__(self) -> str:
        return format_entries(self.entries())


def list_runs(folder: str | os.PathLike[str], *, on_error: Callable[[str], None] | None = None) -> RunList:
    """The runs in a folder and its subfolders, such as those of a sweep, sorted by path.

    Args:
        folder: where to look; may be a run's folder itself.
        on_error: called with one line for each run that cannot be opened, which is then left out; None raises the
            first error.

    Returns:
        A list of runs, which is printed as a table.

    Raises:
        FadevizError: if there is no such folder, or a run cannot be opened and there is no ``on_error``.

    Example::

        print(fadeviz.list_runs("outputs"))       # what `fadeviz ls outputs` prints
        for run in fadeviz.list_runs("outputs"):
            print(run.name, run.status, len(run.steps))
    """
    if is_address(folder):
        raise FadevizError(f"{folder} is an address, of which nothing is listed. Open each run with open_run")
    if not os.path.isdir(folder):
        raise FadevizError(f"no folder {folder}. Give a folder that holds runs, such as outputs")
    runs = RunList(folder=folder)
    for path in find_runs(Path(folder)):
        try:
            runs.append(open_run(path))
        except FadevizError as error:
            if on_error is None:
                raise
            on_error(str(error))
    return runs


def grid(
    runs: RunLike | Sequence[RunLike],
    output: str | os.PathLike[str],
    *,
    colormap: str = "gray",
    columns: int | None = None,
    scale: int | None = None,
    **options: Unpack[GridOptions],
) -> Notes:
    """Draw the frames of one or several runs as a figure: a PNG, PDF or SVG file, by its ending.

    Args:
        runs: one run, or several to compare; opened, or paths or addresses of their folders.
        output: the file to write.
        colormap: ``gray``, ``signed`` or the name of a matplotlib colour map.
        columns: frames per row; None chooses a figure about 1.7 times as wide as high.
        scale: width and height of a map value in pixels; None makes cells of about 120 pixels.
        options: the fields of :class:`~fadeviz.render.selection.MapSelection` (layer, kind, image, channel,
            channels, normalize, percentiles, steps, call), of :class:`~fadeviz.render.selection.FigureContent` (labels,
            title, caption, images, overlay, alpha, difference, crop) and of
            :class:`~fadeviz.render.style.FigureStyle` (width, font, font_size, dpi, transparent).

    Returns:
        Notes on what was omitted or marked, as a tuple; its ``description`` says in full what the file shows.

    Raises:
        FadevizError: under the same conditions as :func:`~fadeviz.render.grid.write_grid`.

    Example::

        fadeviz.grid(["outputs/fade", "outputs/carafe"], "gradients.pdf", kind="gradient", normalize="shared")
        fadeviz.grid(runs, "paper.pdf", width="85mm", labels=["FADE (ours)", "CARAFE"], steps=[0, 100, 300])
    """
    from .render.grid import write_grid
    from .render.selection import split_options

    selection, content, style = split_options(options)
    return write_grid(
        stored_runs(runs), os.fspath(output), selection, colormap=colormap, columns=columns, scale=scale,
        content=content, style=style,
    )  # fmt: skip


def animate(
    runs: RunLike | Sequence[RunLike],
    output: str | os.PathLike[str],
    *,
    duration_ms: int = 130,
    colormap: str = "gray",
    scale: int | None = None,
    **options: Unpack[AnimationOptions],
) -> Notes:
    """Draw one or several runs side by side as an animation: GIF, APNG, WebP or MP4, by the file's ending.

    Args:
        runs: one run, or several to compare; opened, or paths or addresses of their folders.
        output: the file to write.
        duration_ms: duration of a frame in milliseconds: a multiple of 10, at least 20.
        colormap: ``gray``, ``signed`` or the name of a matplotlib colour map.
        scale: width and height of a map value in pixels; None makes tiles of about 256 pixels.
        options: as for :func:`grid`, without width, dpi and transparent, which are of figures on paper.

    Returns:
        Notes on what was omitted or marked, as a tuple; its ``description`` says in full what the file shows.

    Raises:
        FadevizError: under the same conditions as :func:`~fadeviz.render.animation.write_animation`.
        MissingExtra: if ffmpeg is needed and not installed.

    Example::

        fadeviz.animate(["outputs/fade", "outputs/carafe"], "features.gif")
    """
    from .render.animation import write_animation
    from .render.selection import split_options

    selection, content, style = split_options(options)
    return write_animation(
        stored_runs(runs), os.fspath(output), selection, duration_ms=duration_ms, colormap=colormap, scale=scale,
        content=content, style=style,
    )  # fmt: skip


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi)
    return file.getvalue()


__all__ = ["Animation", "Run", "RunList", "animate", "grid", "list_runs", "open_run"]
