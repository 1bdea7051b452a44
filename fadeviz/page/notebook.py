"""The view of a run in a notebook: its maps, with a slider over the recorded steps."""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import brief
from ..render.classes import class_key, largest_shares, names_classes
from ..render.colormap import colorize
from ..render.frames import FrameSequence, select_frames, spread
from ..render.labels import captions, format_number, truth_image, truth_name
from ..render.selection import MapSelection
from ..storage.metrics import METRICS
from ..storage.several_runs import describe_snapshots
from ..storage.snapshots import CHANNEL_KINDS, KINDS
from ..storage.stored_run import StoredRun
from . import json_text, script

FRAMES = 40
"""Maximum number of steps shown, evenly spaced over those recorded."""

_STILL = 6
"""Number of steps in the table shown where scripts do not run."""
_SIDE = 128
"""Longest side of an image in pixels; larger ones are averaged down."""
_MAX_BYTES = 600_000
"""Maximum size of the frames, in base64; where they take more, fewer steps are shown."""


def render_html(run: StoredRun) -> str:
    """The HTML that a notebook shows for a run: maps of the first image, in the ranges and colours of ``fadeviz grid``.

    It is self-contained (no network access). A script builds the slider; where scripts do not run, a table of a few
    steps is shown instead.

    Returns:
        HTML of less than 1 MB.

    Raises:
        FadevizError: if the run has no intact snapshot.
    """
    steps = spread(run.steps, FRAMES)
    sequences = _sequences(run, steps)
    frames = [[_png(_reduced(pixels)) for pixels in _colors(sequence)] for sequence in sequences]
    total = sum(map(len, (text for row in frames for text in row)))
    places = spread(range(len(steps)), max(2, int(len(steps) * min(1.0, _MAX_BYTES / total))))
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
            *([] if observed_image is None else _legend(run, sequences[0].image)),
            *([f'<p style="font-size: smaller">{escape(run.lost)}</p>'] if run.lost else []),
            f'<p style="font-size: smaller">{escape(_caption(run, sequences, len(places)))}</p>',
            f"<script>(() => {{{script('notebook')}fadeviz.show({json_text(name)}, {json_text(data)});}})();</script>",
            "</div>",
        ]
    )


def _legend(run: StoredRun, image: int) -> list[str]:
    """The colours of the classes in the observed image's mask, and how to read them; nothing for unnamed two."""
    if not names_classes(run):
        return []
    key = class_key([run], largest_shares([run.observation[1][image]]))
    square = "display: inline-block; width: 0.8em; height: 0.8em; border: 1px solid #666; background: #"
    classes = [
        f'<span style="margin-right: 1em"><span style="{square}{bytes(colour).hex()}"></span> '
        f"{escape(brief(name, 40))}</span>"
        for name, colour in key.legend
    ]
    return [f'<p style="font-size: smaller">{"".join(classes)} {escape(key.sentence())}</p>']


def _sequences(run: StoredRun, steps: Sequence[int]) -> list[FrameSequence]:
    """The kind that figures show first, and gradient and readout beside it."""
    recorded = [kind for kind in KINDS if any(kind in kinds for kinds in run.layers.values())]
    first = next((kind for kind in recorded if kind not in CHANNEL_KINDS), next(iter(recorded), "feature"))
    layer = run.default_layer(first)
    kinds = dict.fromkeys([first, *(kind for kind in ("gradient", "readout") if kind in run.layers[layer])])
    return [select_frames([run], MapSelection(layer=layer, kind=kind, steps=steps, channels=1))[0] for kind in kinds]


def _colors(sequence: FrameSequence) -> NDArray[np.uint8]:
    return colorize(sequence.unit, "gray")


def _reduced(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = -(-max(pixels.shape[:2]) // _SIDE)
    return pixels if factor == 1 else np.asarray(Image.fromarray(pixels).reduce(factor))


def _png(pixels: NDArray[np.uint8]) -> str:
    """Pixels ``(h, w, 3)`` as a PNG in base64."""
    grey = bool((pixels == pixels[..., :1]).all())
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0]) if grey else pixels).save(file, "PNG", compress_level=9)
    return base64.b64encode(file.getvalue()).decode()


def _label(sequence: FrameSequence) -> str:
    kind = sequence.kind.replace("_", " ")
    return kind if sequence.channel is None else f"{kind}, channel {sequence.channel}"


def _range(sequence: FrameSequence, frame: int) -> str:
    low, high = sequence.limits[frame]
    return f"{format_number(low)} to {format_number(high)}"


def _facts(run: StoredRun) -> str:
    seed, network = run.info.config.seed, run.info.network_title or run.info.network
    steps = run.steps
    facts = [
        network or "",
        f"seed {seed}" if seed is not None else "",
        f"run {run.run_id}",
        run.info.status or "",
        describe_snapshots(steps),
        f"{len(run.broken)} files damaged" if run.broken else "",
        run.address,
    ]
    return " · ".join(fact for fact in facts if fact)


def _metrics(run: StoredRun, steps: Sequence[int]) -> list[str]:
    """The metrics of each step as text; empty where none were logged."""
    titles = {"loss": "loss", **{name: metric.title for name, metric in METRICS.items() if metric.brief}}
    texts: dict[int, dict[str, str]] = {step: {} for step in steps}
    for line in run.metrics():
        for name, title in titles.items():
            if line["step"] in texts and isinstance(line.get(name), int | float):
                texts[line["step"]][name] = f"{title} {line[name]:.3g}"
    return [", ".join(by_name[name] for name in titles if name in by_name) for by_name in texts.values()]


def _caption(run: StoredRun, sequences: Sequence[FrameSequence], shown: int) -> str:
    title, *sentences = captions(sequences)
    others = [f"{_label(sequence).capitalize()}: {KINDS[sequence.kind]}." for sequence in sequences[1:]]
    sentences = [title, *others, *sentences]
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
    others = {
        "image": [f"{images - 1} more image{'s' * (images > 2)}"] if images > 1 else [],
        "kind": [kind.replace("_", " ") for kind in run.layers[layer] if kind not in shown],
        "call": [f"call{'s' * (len(calls) > 2)} {', '.join(str(call) for call in calls if call)}"] * (len(calls) > 1),
        "layer": [f"{len(run.layers) - 1} more layer{'s' * (len(run.layers) > 2)}"] if len(run.layers) > 1 else [],
    }
    items = [item for several in others.values() for item in several]
    options = ", ".join(f"{option}=..." for option, several in others.items() if several)
    return [f"Also recorded: {', '.join(items)}; see run.grid({options})."] if items else []


def _table(data: Mapping[str, Any]) -> str:
    """A few of the steps, for where scripts do not run."""
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


__all__ = ["FRAMES", "render_html"]
