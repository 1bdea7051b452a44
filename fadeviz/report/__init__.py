"""One page for a reader without fadeviz: verdict, maps to step through, curves and distance-time maps, in one file."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from .. import __version__
from ..analysis.order import LearningOrder, learning_order
from ..errors import FadevizError, unknown_name
from ..render.colormap import NON_FINITE, palette
from ..render.normalize import SCOPES
from ..storage.files import write_whole
from ..storage.opening import RunLike, stored_runs
from ..storage.snapshots import KINDS
from ..storage.stored_run import StoredRun
from . import text
from .charts import chart_groups, kymograph_data
from .contour import contour_path, image_uri
from .sequences import MAP_KINDS, Movies, Selection, select_movies, shortest, wanted_maps

ENDINGS = (".html", ".htm")

PALETTES = ("gray", "viridis", "cividis", "magma", "inferno")
"""The colour maps that a reader can choose from."""

_SLACK = 4000  # bytes kept for what is only known at the end: the names of what was left out


def write_report(
    runs: RunLike | Sequence[RunLike],
    output: str | os.PathLike[str],
    *,
    layers: Sequence[str] = (),
    kinds: Sequence[str] = (),
    images: int = 4,
    max_mb: float = 6.0,
    title: str | None = None,
    call: int = 0,
) -> tuple[str, ...]:
    """Write runs as one self-contained HTML page: what was learned first, and the maps that show it.

    The page makes no network access. The same runs, given by the same paths, make the same bytes. Maps are stored in
    256 levels per frame.

    Args:
        runs: one or several that observed the same images, opened or by the paths of their folders; the runs of one
            operator are its seeds.
        output: a file that ends in .html.
        layers: dotted names of the layers to show, the first is measured; none takes all, and measures the network's
            intermediate one.
        kinds: names in ``MAP_KINDS``; the first is measured. None takes all, and measures features.
        images: how many observed images to show, from the first; all are measured.
        max_mb: the file's largest size in millions of bytes; maps that do not fit are named in the page.
        title: of the page.
        call: which call to show, and to measure, of layers that run several times in a forward pass.

    Returns:
        Notes: what was left out of the page.

    Raises:
        FadevizError: runs that cannot be compared or measured, unknown layers or kinds, or too little room.
    """
    opened = stored_runs(runs)
    path = Path(output)
    if path.suffix.lower() not in ENDINGS:
        raise FadevizError(f"cannot write {path.name}: a report is a page. Give a name that ends in .html")
    if images < 1:
        raise FadevizError(f"{images} images: at least 1 is needed")
    if not max_mb > 0:
        raise FadevizError(f"{max_mb:g} MB: a page needs more. Give a positive number of megabytes")
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
        if kind not in MAP_KINDS:
            raise FadevizError(
                f"kind {kind!r} is not one map of each image, as a page shows. Choose from {', '.join(MAP_KINDS)}"
            )
    for layer in layers:
        if opened and not any(layer in run.layers for run in opened):
            known = {name for run in opened for name in run.layers}
            raise unknown_name("layer in these runs", layer, known, f"fadeviz info {opened[0].address}")
    order = learning_order(
        opened, layers[0] if layers else None, kinds[0] if kinds else "feature", call=call, allow_few_steps=True
    )
    members = [run for operator in order.operators for run in operator.runs]
    ranks = [rank for operator in order.operators for rank in range(len(operator.runs))]
    command = _command(opened, path, layers, kinds, images, max_mb, title, call)
    shown = min(images, len(order.images))
    steps, thinned = text.shown_steps(order)
    content = _content(order, steps, members, shown, command, title)
    besides = tuple(_not_asked_for(order, members, layers, kinds, shown))
    limit = int(max_mb * 1e6)
    selection = select_movies(
        members,
        ranks,
        steps,
        shown,
        limit - _SLACK - len(_page(content, Selection((), 0, (), besides), order)),
        layers=layers,
        kinds=kinds,
        first=order.layer,
        needed="Give a larger --max-mb, or fewer runs",
        call=call,
    )
    selection = replace(selection, left_out=(*thinned, *selection.left_out, *besides))
    page = _page(content, selection, order)
    if len(page) > limit:
        raise FadevizError(f"the page takes {len(page) / 1e6:.2f} MB, more than {max_mb:g}. Give a larger --max-mb")
    write_whole(path, page)
    return selection.left_out


def _command(
    runs: Sequence[StoredRun],
    output: Path,
    layers: Sequence[str],
    kinds: Sequence[str],
    images: int,
    max_mb: float,
    title: str | None,
    call: int,
) -> str:
    words = ["fadeviz", "report", *(run.address for run in runs), "-o", output.name]
    words += [word for layer in layers for word in ("--layer", layer)]
    words += [word for kind in kinds for word in ("--kind", kind)]
    words += ["--images", str(images)] if images != 4 else []
    words += ["--max-mb", f"{max_mb:.12g}"] if max_mb != 6 else []
    words += ["--title", title] if title is not None else []
    words += ["--call", str(call)] if call else []
    return text.plain(shlex.join(words), 4000)


def _not_asked_for(
    order: LearningOrder, runs: Sequence[StoredRun], layers: Sequence[str], kinds: Sequence[str], images: int
) -> list[str]:
    """What the runs hold besides what the page shows, and how to include it."""
    said = []
    if images < len(order.images):
        said.append(f"images {images + 1} to {len(order.images)}: --images {len(order.images)} shows them")
    calls: dict[str, set[int]] = {}
    for layer, kind in wanted_maps(runs, layers, kinds, order.layer):
        if layer not in calls:  # all kinds of a layer have the same calls
            calls[layer] = {n for run in runs if kind in run.layers.get(layer, ()) for n in run.calls(layer, kind)}
    for layer, numbers in calls.items():
        others = [str(number) for number in sorted(numbers) if number != order.call]
        if order.call not in numbers:
            said.append(f"{layer}, which has no call {order.call}")
        elif others:
            said.append(f"call{'s' * (len(others) > 1)} {', '.join(others)} of {layer}: --call shows another")
    longest = max(len(run.steps) for run in runs)
    if longest > len(order.steps):
        said.append(f"{longest - len(order.steps)} steps, as not all runs have them")
    recorded = {kind for run in runs for having in run.layers.values() for kind in having}
    many = [kind for kind in KINDS if kind in recorded and kind not in MAP_KINDS]
    if many and not kinds:
        said.append(f"{', '.join(many)}: no map of each image; fadeviz grid --kind {many[0]} draws them")
    return said


# --- what the page shows ----------------------------------------------------------------------------------------------


def _content(
    order: LearningOrder, steps: Sequence[int], runs: Sequence[StoredRun], images: int, command: str, title: str | None
) -> dict[str, Any]:
    """Everything but the maps: ``data`` for the script, the rest as text for the page."""
    pictures, _ = runs[0].observation
    mattes = runs[0].mattes
    networks = dict.fromkeys(str(run.info.get("network_title") or run.info.get("network") or "") for run in runs)
    operators = _listed([text.plain(operator.title, 60) for operator in order.operators])
    numbers = {id(run): number for number, run in enumerate(runs)}
    data = {
        "layer": order.layer,
        "kind": order.kind,
        "steps": list(steps),
        "images": [
            {
                "name": text.plain(name, 80),
                "image": image_uri(picture),
                "contour": contour_path(inside),
                "size": list(inside.shape),
                **({} if mattes is None else {"matte": image_uri(mattes[0][number])}),
            }
            for number, (name, picture, inside) in enumerate(
                zip(order.images[:images], pictures, runs[0].foregrounds, strict=False)
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
            for operator in order.operators
        ],
        "groups": chart_groups(order),
        "kymographs": kymograph_data(order),
        "kinds": {kind: KINDS[kind] for kind in MAP_KINDS},
        "scopes": SCOPES,
        "palettes": {name: _base64(palette(name).tobytes()) for name in PALETTES},
        "nonFinite": list(NON_FINITE),
    }
    where = _listed([text.plain(name, 60) for name in networks if name])
    return {
        "title": text.plain(title, 300) if title is not None else f"{operators}{f' in {where}' if where else ''}",
        "measured": f"{text.plain(order.layer_title)}, {order.kind}: {len(order.images)} images, {len(order.steps)} "
        f"snapshots, steps {order.steps[0]:,} to {order.steps[-1]:,}",
        "verdicts": text.verdict_rows(order),
        "comparisons": text.comparison_sentences(order),
        "caveats": text.caveats(order),
        "rules": text.rules(order),
        "settings": text.settings(runs),
        "command": command,
        "data": data,
    }


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def _map_data(movies: Movies, number: int) -> dict[str, Any]:
    """The limits of all movies of a layer and kind, and where in the page they are."""
    return {
        "layer": movies.layer,
        "kind": movies.kind,
        "shared": {str(image): list(limits) for image, limits in movies.shared.items()},
        "movies": [
            {
                "run": run,
                "image": image,
                "size": list(movies.sizes[run]),
                "element": f"movie-{number}-{run}-{image}",
                "low": shortest(one.low),
                "high": shortest(one.high),
                "own": list(movies.own[run, image]),
                "holes": one.holes,
            }
            for (run, image), one in movies.packed.items()
        ],
    }


# --- the page ---------------------------------------------------------------------------------------------------------


def _page(content: dict[str, Any], selection: Selection, order: LearningOrder) -> bytes:
    """The whole file. Only :func:`_escape` and :func:`_json` turn what runs say of themselves into its text."""
    room = files(__package__)
    markup, style, script = (room.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    data = content["data"] | {
        "shown": list(selection.runs),
        "count": selection.images,
        "maps": [_map_data(movies, number) for number, movies in enumerate(selection.movies)],
    }
    elements = [
        f'<script type="text/plain" id="movie-{number}-{run}-{image}">{_base64(one.data)}</script>'
        for number, movies in enumerate(selection.movies)
        for (run, image), one in movies.packed.items()
    ]
    slots = {
        "title": _escape(content["title"]),
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "measured": _escape(content["measured"]),
        "verdicts": _verdicts(content["verdicts"]),
        "comparisons": _comparisons(content["comparisons"]),
        "caveats": _items(content["caveats"]),
        "rules": _rules(*content["rules"]),
        "left_out": _left_out(selection.left_out),
        "settings": _settings(*content["settings"]),
        "command": _escape(content["command"]),
        "version": _escape(__version__),
        "data": _json(data),
        "movies": "\n".join(elements),
    }
    # One pass: what is put in is never searched again.
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: slots[found[1]], markup)
    return text.encode("utf-8", "replace")


def _policy(style: str, script: str) -> str:
    """A content security policy under which this page can run its own script and style, and load nothing."""

    def digest(text: str) -> str:
        return "'sha256-" + _base64(hashlib.sha256(text.encode()).digest()) + "'"

    return (
        f"default-src 'none'; img-src data: blob:; style-src {digest(style)}; script-src {digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def _json(data: object) -> str:
    """JSON that can stand in a script element: ASCII alone, without the characters that could end it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _items(sentences: Iterable[str]) -> str:
    return "".join(f"<li>{_escape(sentence)}</li>" for sentence in sentences)


def _comparisons(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    opened = " open" if len(sentences) <= 2 else ""  # of two operators; more would push the maps off the screen
    note = "<p>p-values are not corrected for the number of comparisons.</p>"
    summary = "The operators compared in pairs"
    return f'<details class="aside"{opened}><summary>{summary}</summary><ul>{_items(sentences)}</ul>{note}</details>'


def _left_out(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    return f'<details class="aside"><summary>Not in this file</summary><ul>{_items(sentences)}</ul></details>'


def _verdicts(rows: Sequence[dict[str, str]]) -> str:
    columns = (("lead", "lead, steps"), ("edge", "outline half-way at"), ("interior", "interior half-way at"))
    parts = []
    for row in rows:
        cells = "".join(f"<div><dt>{name}</dt><dd>{_escape(row[key])}</dd></div>" for key, name in columns)
        parts.append(
            f'<article class="verdict"><h2>{_escape(row["title"])}</h2>'
            f'<p class="word">{_escape(row["word"])}</p><p>{_escape(row["sentence"])}</p><dl>{cells}</dl></article>'
        )
    return "".join(parts)


def _rules(operators: Sequence[str], words: Mapping[str, Sequence[str]]) -> str:
    body = _rows((rule, row) for rule, row in words.items())
    return _table("The verdicts by other rules", _row("th", ["", *operators], "col"), body)


def _settings(names: Sequence[str], unlike: dict[str, list[str]], alike: dict[str, str]) -> str:
    """A table of what differs, a row a setting while that is readable, and a list of what does not."""
    parts = []
    if unlike:
        if len(names) <= 4:
            head, body = ["", *names], _rows(unlike.items())
        else:
            head = ["folder", *unlike]
            body = _rows((name, [row[number] for row in unlike.values()]) for number, name in enumerate(names))
        parts.append("<h3>What differs</h3>" + _table("Settings that differ", _row("th", head, "col"), body, "marked"))
    if alike:
        said = "The run" if len(names) == 1 else "The same in all runs"
        cells = "".join(f"<div><dt>{_escape(k)}</dt><dd>{_escape(v)}</dd></div>" for k, v in alike.items())
        parts.append(f'<h3>{said}</h3><dl class="settings">{cells}</dl>')
    return "".join(parts)


def _rows(rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    return "".join(f'<tr><th scope="row">{_escape(name)}</th>{_row("td", cells)}</tr>' for name, cells in rows)


def _row(tag: str, cells: Iterable[str], scope: str = "") -> str:
    scoped = f' scope="{scope}"' if scope else ""
    return "".join(f"<{tag}{scoped}>{_escape(cell)}</{tag}>" if cell else "<td></td>" for cell in cells)


def _table(name: str, head: str, body: str, kind: str = "") -> str:
    # Wide tables scroll in a box of their own, which a keyboard can reach.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_escape(name)}">'
        f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


__all__ = ["ENDINGS", "PALETTES", "write_report"]
