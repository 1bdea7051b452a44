"""Runs in a notebook: a run shows itself with a slider over its recorded steps, and draws its grids inline."""

from __future__ import annotations

import base64
import io
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from .errors import FadevizError
from .storage.metrics import FIGURES
from .storage.snapshots import CHANNEL_KINDS, KINDS
from .storage.stored_run import StoredRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .render.frames import FrameSequence
    from .render.selection import MapOptions

FRAMES = 40
"""At most so many steps are shown: evenly spaced over those recorded."""

_STILL = 6
"""Steps in the table that stands where no script runs."""
_SIDE = 128
"""Longest side of an image, in pixels: what is larger is averaged."""
_ROOM = 600_000
"""Bytes for the frames, in base64: where they take more, fewer steps are shown."""


class Run(StoredRun):
    """A run that a notebook shows: as the last line of a cell it becomes a page with a slider over its steps.

    Example::

        run = fadeviz.open_run("outputs/fade")
        run                                        # in a notebook: its maps, with a slider
        run.grid(kind="gradient", normalize="run") # what `fadeviz grid` draws, inline
    """

    def grid(
        self,
        *others: StoredRun,
        colormap: str = "gray",
        columns: int | None = None,
        scale: int | None = None,
        **options: Unpack[MapOptions],
    ) -> Figure:
        """Draw the frames of this run, and of others to compare with, as ``fadeviz grid`` does.

        Args:
            others: runs that observed the same images.
            colormap, columns, scale: see :func:`fadeviz.render.grid.write_grid`.
            options: the fields of :class:`~fadeviz.render.selection.MapSelection`: layer, kind, image, channel,
                channels, normalize, percentiles, steps, call.

        Returns:
            A figure that shows itself in a notebook, and that pyplot does not know of: there is nothing to close.

        Raises:
            FadevizError: as :func:`~fadeviz.render.grid.write_grid`.
        """
        from .render.grid import draw_grid
        from .render.selection import MapSelection

        selection = MapSelection(**options)
        figure = draw_grid([self, *others], selection, colormap=colormap, columns=columns, scale=scale)
        # Where no notebook backend of matplotlib was loaded, nobody else shows a figure.
        figure._repr_png_ = lambda: _figure_png(figure)  # type: ignore[attr-defined]
        return figure

    def _repr_html_(self) -> str:
        try:
            return render_html(self)
        except FadevizError as error:  # a run that cannot be drawn is still to be told of
            return f"<pre>Run({escape(repr(self.address))})\n{escape(str(error))}</pre>"


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run for reading: a folder, or an address that fsspec knows; see :class:`Run`.

    Args:
        path: the run's folder; or ``s3://bucket/run``, ``https://host/run``, ``memory://run`` ...

    Returns:
        The run, which shows itself in a notebook. Of an address each file is fetched when it is first needed.

    Raises:
        FadevizError: no such folder, no or damaged run.json, a newer format, or an address that cannot be read.

    Example::

        run = fadeviz.open_run("outputs/fade")
        maps = run.maps(kind="feature", image=0)   # (steps, h, w) float32, read where it is indexed
    """
    return Run(path)


def render_html(run: StoredRun) -> str:
    """What a notebook shows of a run: maps of the first image, in the ranges and colours of ``fadeviz grid``.

    It is whole by itself and asks for nothing. The slider is built by a script; where scripts do not run there is a
    table of a few steps.

    Returns:
        HTML of less than 1 MB.

    Raises:
        FadevizError: a run without a whole snapshot.
    """
    from .render.frames import spread
    from .render.labels import truth_image, truth_name

    steps = spread(run.steps, FRAMES)
    sequences = _sequences(run, steps)
    frames = [[_png(_reduced(pixels)) for pixels in _colors(sequence)] for sequence in sequences]
    total = sum(map(len, (text for row in frames for text in row)))
    places = spread(range(len(steps)), max(2, int(len(steps) * min(1.0, _ROOM / total))))
    metrics = _metrics(run, [steps[place] for place in places])
    ranges = [[_range(sequence, place) for place in places] for sequence in sequences]
    frames = [[row[place] for place in places] for row in frames]
    kinds = [_label(sequence) for sequence in sequences]
    observed_image, observed = sequences[0].observed_image, []
    if observed_image is not None:
        observed = [
            ("image", _png(_reduced(observed_image))),
            (f"true {truth_name(run)}", _png(_reduced(truth_image(run, sequences[0].image)))),
        ]
    data = {
        "steps": [steps[place] for place in places],
        "metrics": metrics,
        "kinds": [{"name": k, "frames": f, "ranges": r} for k, f, r in zip(kinds, frames, ranges, strict=True)],
    }
    name = f"fadeviz-{uuid.uuid4().hex}"
    return "\n".join(
        [
            f'<div id="{name}" class="tex2jax_ignore mathjax_ignore" style="max-width: 60em">',
            f"<div><b>{escape(run.title)}</b> {escape(_facts(run))}</div>",
            '<div class="fadeviz-still">',
            "".join(_image(text, label, "fadeviz-observed") for label, text in observed),
            _table(data),
            "</div>",
            '<div class="fadeviz-view"></div>',
            *([f'<p style="font-size: smaller">{escape(run.lost)}</p>'] if run.lost else []),
            f'<p style="font-size: smaller">{escape(_caption(run, sequences, len(places)))}</p>',
            f"<script>({_SCRIPT})({json.dumps(name)}, {_for_script(data)});</script>",
            "</div>",
        ]
    )


def _sequences(run: StoredRun, steps: Sequence[int]) -> list[FrameSequence]:
    """The kind that figures show first, and the gradient beside it."""
    from .render.frames import select_frames
    from .render.selection import MapSelection

    recorded = [kind for kind in KINDS if any(kind in kinds for kinds in run.layers.values())]
    first = next((kind for kind in recorded if kind not in CHANNEL_KINDS), next(iter(recorded), "feature"))
    layer = run.default_layer(first)
    kinds = dict.fromkeys([first, *(kind for kind in ("gradient",) if kind in run.layers[layer])])
    return [select_frames([run], MapSelection(layer=layer, kind=kind, steps=steps, channels=1))[0] for kind in kinds]


def _colors(sequence: FrameSequence) -> NDArray[np.uint8]:
    from .render.colormap import colorize

    return colorize(sequence.unit, "gray")


def _reduced(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    factor = -(-max(pixels.shape[:2]) // _SIDE)
    return pixels if factor == 1 else np.asarray(Image.fromarray(pixels).reduce(factor))


def _png(pixels: NDArray[np.uint8]) -> str:
    """Pixels ``(h, w, 3)`` as a PNG in base64."""
    from PIL import Image

    grey = bool((pixels == pixels[..., :1]).all())
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0]) if grey else pixels).save(file, "PNG", compress_level=9)
    return base64.b64encode(file.getvalue()).decode()


def _figure_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi)
    return file.getvalue()


def _label(sequence: FrameSequence) -> str:
    kind = sequence.kind.replace("_", " ")
    return kind if sequence.channel is None else f"{kind}, channel {sequence.channel}"


def _range(sequence: FrameSequence, frame: int) -> str:
    from .render.labels import format_number

    low, high = sequence.limits[frame]
    return f"{format_number(low)} to {format_number(high)}"


def _facts(run: StoredRun) -> str:
    config = run.info.get("config") or {}
    network = run.info.get("network_title") or run.info.get("network")
    steps = run.steps
    facts = [
        str(network) if network else "",
        f"seed {config['seed']}" if config.get("seed") is not None else "",
        f"run {run.run_id}",
        str(run.info.get("status") or ""),
        f"{len(steps)} snapshots, steps {steps[0]} to {steps[-1]}",
        f"{len(run.broken)} files damaged" if run.broken else "",
        run.address,
    ]
    return " · ".join(fact for fact in facts if fact)


def _metrics(run: StoredRun, steps: Sequence[int]) -> list[str]:
    """What metrics.jsonl says of each step, in words."""
    words = {"loss": "loss", **{name: one.title for name, one in FIGURES.items() if one.brief}}
    found: dict[int, dict[str, str]] = {step: {} for step in steps}
    for line in run.metrics():
        for name, word in words.items():
            if line["step"] in found and isinstance(line.get(name), int | float):
                found[line["step"]][name] = f"{word} {line[name]:.3g}"
    return [", ".join(told[name] for name in words if name in told) for told in found.values()]


def _caption(run: StoredRun, sequences: Sequence[FrameSequence], shown: int) -> str:
    from .render.labels import captions

    what, *sentences = captions(sequences)
    others = [f"{_label(sequence).capitalize()}: {KINDS[sequence.kind]}." for sequence in sequences[1:]]
    sentences = [what, *others, *sentences]
    if shown < len(run.steps):
        sentences.append(f"{shown} of {len(run.steps)} recorded steps.")
    sentences += _not_shown(run, sequences)
    height, width = sequences[0].maps.shape[1:]
    factor = -(-max(height, width) // _SIDE)
    if factor > 1:
        sentences.append(f"Maps of {height}x{width} cells, shown as averages over {factor}x{factor}.")
    return " ".join(sentences)


def _not_shown(run: StoredRun, sequences: Sequence[FrameSequence]) -> list[str]:
    """A sentence on what else was recorded, and how to draw it."""
    layer, shown = sequences[0].layer, {sequence.kind for sequence in sequences}
    calls = run.calls(layer, sequences[0].kind)
    images = len(run.maps(layer, sequences[0].kind).images if run.lost else run.observation[0])
    besides = {
        "image": [f"{images - 1} more image{'s' * (images > 2)}"] if images > 1 else [],
        "kind": [kind.replace("_", " ") for kind in run.layers[layer] if kind not in shown],
        "call": [f"call{'s' * (len(calls) > 2)} {', '.join(str(call) for call in calls if call)}"] * (len(calls) > 1),
        "layer": [f"{len(run.layers) - 1} more layer{'s' * (len(run.layers) > 2)}"] if len(run.layers) > 1 else [],
    }
    words = [word for listed in besides.values() for word in listed]
    options = ", ".join(f"{option}=..." for option, listed in besides.items() if listed)
    return [f"Also recorded: {', '.join(words)}; see run.grid({options})."] if words else []


def _table(data: Mapping[str, Any]) -> str:
    """A few of the steps, for where no script runs."""
    from .render.frames import spread

    places = spread(range(len(data["steps"])), _STILL)
    rows = [["<th>step</th>", *(f"<th>{data['steps'][place]}</th>" for place in places)]]
    for kind in data["kinds"]:
        row = [f"<th>{escape(kind['name'])}</th>"]
        for place in places:
            label = f"{kind['name']}, step {data['steps'][place]}"
            row.append(f"<td>{_image(kind['frames'][place], label)}<br>{escape(kind['ranges'][place])}</td>")
        rows.append(row)
    if any(data["metrics"]):
        rows.append(["<th></th>", *(f"<td>{escape(data['metrics'][place])}</td>" for place in places)])
    return "<table>" + "".join(f"<tr>{''.join(row)}</tr>" for row in rows) + "</table>"


def _image(text: str, label: str, group: str = "") -> str:
    kind = f' class="{group}"' if group else ""
    return (
        f'<img{kind} src="data:image/png;base64,{text}" alt="{escape(label)}" title="{escape(label)}" width="96" '
        'style="image-rendering: pixelated">'
    )


def _for_script(data: object) -> str:
    """JSON that ends no script element and opens no comment, whatever the names in it are."""
    return json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# Text goes in as text, never as HTML. The same output may be on a page twice, as in a second view of a notebook.
_SCRIPT = """(id, data) => {
  for (const box of document.querySelectorAll("#" + id)) {
    const view = box.querySelector(".fadeviz-view"), still = box.querySelector(".fadeviz-still");
    if (view.firstChild) continue;
    const make = (parent, tag, text) => {
      const element = parent.appendChild(document.createElement(tag));
      if (text) element.textContent = text;
      return element;
    };
    const line = make(view, "label"), slider = make(line, "input"), said = make(line, "span");
    line.style.cssText = "display: flex; gap: 1em; align-items: center; margin: 0.5em 0";
    Object.assign(slider, {type: "range", min: 0, max: data.steps.length - 1, step: 1});
    slider.value = data.steps.length - 1;
    slider.style.cssText = "flex: 0 1 30em; margin: 0";
    slider.setAttribute("aria-label", "step");
    const row = make(view, "div");
    row.style.cssText = "display: flex; flex-wrap: wrap; gap: 0.75em";
    const tile = (image, label) => {
      const figure = make(row, "figure");
      figure.style.margin = "0";
      figure.appendChild(image);
      image.width = 200;
      image.style.cssText = "display: block; image-rendering: pixelated; max-width: none";
      make(figure, "figcaption", label).style.fontSize = "smaller";
      return figure;
    };
    for (const image of still.querySelectorAll(".fadeviz-observed")) tile(image.cloneNode(), image.alt);
    const tiles = data.kinds.map(kind => tile(new Image(), kind.name));
    const show = () => {
      const at = Number(slider.value);
      said.textContent = "step " + data.steps[at] + (data.metrics[at] ? ": " + data.metrics[at] : "");
      slider.setAttribute("aria-valuetext", said.textContent);
      data.kinds.forEach((kind, index) => {
        const [image, caption] = tiles[index].children;
        image.src = "data:image/png;base64," + kind.frames[at];
        image.alt = kind.name + ", step " + data.steps[at];
        caption.textContent = kind.name + ", " + kind.ranges[at];
      });
    };
    slider.addEventListener("input", show);
    show();
    still.style.display = "none";
  }
}"""


__all__ = ["FRAMES", "Run", "open_run", "render_html"]
